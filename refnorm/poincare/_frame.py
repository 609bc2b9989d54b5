"""The setting of one call: which axis holds the vectors, which curvature, which dtype comes back.

Inside, every vector lies on the last axis in float64, and lengths are measured in a power of two that
brings the curvature between 1/2 and 2. Both changes are exact, so a formula written for the inside needs
no care for axes, for float32 or for a curvature of 10^-300.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray
from refnorm.poincare._numerics import Wide, dot, gap

LONGEST, SHRINK = 2.0**960, 2.0**-64
"""What is longer than the first is shrunk by the second: its norm exists for 2^120 coordinates, and it still is longer
than 2^380 radii, where hyperbolic tangents are 1."""


@dataclass(frozen=True)
class Point:
    """Points of the ball with what the formulas need: |x|^2 and 1 - curvature |x|^2, each with a kept axis."""

    at: Wide
    square: Wide
    gap: Wide

    def opposite(self) -> Point:
        return Point(-self.at, self.square, self.gap)


class Frame:
    """Checks the arguments of one call and converts arrays in and out.

    Parameters
    ----------
    curvature
        What the caller gave: a finite number > 0, or a 0-d float array.
    axis
        Axis of the vectors.
    check
        Whether points outside the ball raise.
    **arrays
        The float arrays of the call, by argument name; the first one sets dtype and shape.
    """

    def __init__(self, curvature: Any, axis: int, check: bool, **arrays: Any) -> None:
        checked = {name: _checks.float_array(array, name, min_ndim=1) for name, array in arrays.items()}
        (first_name, first), *others = checked.items()
        _checks.same_dtype(first_name, first, **dict(others))
        for name, array in others:
            _checks.shape(array, name, first.shape)
        (self.axis,) = _checks.axes(axis, first.ndim)
        _checks.not_empty(first, first_name, (self.axis,))
        self.dtype, self.shape, self.check = first.dtype, first.shape, check
        self.given, value = read_curvature(curvature)
        exponent = math.frexp(value)[1] // 2
        self.curvature, self.unit = math.ldexp(value, -2 * exponent), math.ldexp(1.0, exponent)

    def reshaped(self, shape: tuple[int, ...], axis: int) -> Frame:
        """Return the frame of a result with another shape or another axis of the vectors."""
        frame = copy.copy(self)
        frame.shape, frame.axis = shape, axis
        return frame

    def vector(self, array: Any) -> Wide:
        """Bring a vector argument inside: float64, last axis, in units of the frame."""
        with np.errstate(over="ignore"):
            inside: Wide = np.moveaxis(np.asarray(array, dtype=np.float64), self.axis, -1) * self.unit
        return inside

    def arrow(self, array: Any) -> tuple[Wide, Wide]:
        """Bring a vector inside of which, beyond any length, only the direction counts; return its factor, too.

        The factor is the unit of the frame, or a small number for what would overflow in that unit.
        """
        given = np.moveaxis(np.asarray(array, dtype=np.float64), self.axis, -1)
        with np.errstate(over="ignore"):
            overflows = (np.abs(given) * self.unit > LONGEST).any(axis=-1, keepdims=True)
        factor = np.where(overflows, SHRINK, self.unit)
        return given * factor, factor

    def point(self, array: Any, name: str) -> Point:
        """Bring points inside; those outside the ball raise if the call checks."""
        x = self.vector(array)
        with np.errstate(over="ignore", invalid="ignore"):
            square = dot(x, x)
            far = self.curvature * square >= 2
            gap_x = gap(np.where(far, 0.0, x), self.curvature)
            gap_x = np.where(far, 1 - self.curvature * square, gap_x)
        if self.check and (gap_x <= 0).any():
            largest = 1 - float(np.nanmin(gap_x))
            _checks.fail(name, "points with curvature * |x|^2 < 1", f"a largest value of {largest:.17g}")
        return Point(x, square, gap_x)

    def cotangent(self, array: Any, size: int | None = None) -> Wide:
        """Bring the cotangent of a vector result inside; ``size`` is the vectors' length if it changed."""
        array = np.asarray(array)
        kept = self.shape[self.axis] if size is None else size
        _checks.shape(array, "cotangent", (*self.shape[: self.axis], kept, *self.shape[self.axis + 1 :]))
        inside: Wide = np.moveaxis(array.astype(np.float64, copy=False), self.axis, -1) / self.unit
        return inside

    def scalar_cotangent(self, array: Any, degree: int = 0) -> Wide:
        """Bring the cotangent of one number a vector inside; ``degree`` is the power of length that it has."""
        array = np.asarray(array)
        _checks.shape(array, "cotangent", self.shape[: self.axis] + self.shape[self.axis + 1 :])
        return np.expand_dims(array.astype(np.float64, copy=False), -1) / self.unit**degree

    def leave(self, vector: Wide) -> AnyArray:
        """Take a vector result outside."""
        return self._outside(vector / self.unit)

    def leave_inside(self, vector: Wide) -> AnyArray:
        """Take points outside, rounding towards the interior.

        A point closer to the boundary than the numbers of the dtype resolve would be rounded onto the
        sphere or beyond. It is moved inward by 1, 2, 4 ... units in the last place until it lies inside.
        """
        rounded = (vector / self.unit).astype(self.dtype)
        step = float(np.finfo(self.dtype).eps)
        while True:
            wide = rounded.astype(np.float64) * self.unit
            with np.errstate(over="ignore", invalid="ignore"):
                outside = gap(wide, self.curvature) <= 0
            if not outside.any():
                return self._outside(rounded)
            rounded = np.where(outside, rounded * self.dtype.type(1 - step), rounded)
            step *= 2

    def leave_scalar(self, scalar: Wide, degree: int = 0) -> AnyArray:
        """Take one number a vector outside."""
        with np.errstate(over="ignore"):
            value: AnyArray = (scalar[..., 0] / self.unit**degree).astype(self.dtype)
        return value

    def leave_cotangent(self, vector: Wide, factor: Wide | None = None) -> AnyArray:
        """Take the cotangent of a vector argument outside; ``factor`` is that of :meth:`arrow`."""
        return self._outside(vector * (self.unit if factor is None else factor))

    def leave_curvature(self, terms: Wide) -> AnyArray:
        """Sum the curvature's cotangent over all points and take it outside."""
        dtype = self.given.dtype if self.given is not None else self.dtype
        with np.errstate(over="ignore"):
            total: AnyArray = np.asarray(terms.sum() / self.unit**2, dtype=dtype)
        return total

    def _outside(self, vector: AnyArray) -> AnyArray:
        with np.errstate(over="ignore"):
            moved: AnyArray = np.moveaxis(vector, -1, self.axis).astype(self.dtype)
        return moved


def read_curvature(value: Any, name: str = "curvature") -> tuple[AnyArray | None, float]:
    """Return the given 0-d float array, if it is one, and its value; raise unless finite and > 0."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "fiu":
        _checks.fail_type(name, "a number or a 0-d float array", f"{array.dtype} of shape {array.shape}")
    number = float(array)
    _checks.positive(number, name)
    is_array = isinstance(value, (np.ndarray, np.generic)) and array.dtype.kind == "f"
    return (array if is_array else None), number
