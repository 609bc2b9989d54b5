"""Layer norm, RMS norm, group norm and instance norm on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import Pullback
from refnorm_fast.cuda._arrays import cotangent, empty, empty_like, float_array, number, run, run_elements, run_rows

__all__ = [
    "group_norm",
    "group_norm_vjp",
    "instance_norm",
    "instance_norm_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
]

MOST_CHUNKS = 256
"""Parts in which rows are summed over; each has at least ``FEWEST_ROWS``."""

FEWEST_ROWS = 64


class _Norm:
    """One call: checked arguments, how the array divides into rows, and the statistics that a pullback needs."""

    def __init__(self, x: Any, gain: Any, bias: Any, rows: int, length: int, eps: float, centred: bool) -> None:
        self.x, self.gain, self.bias, self.eps, self.centred = x, gain, bias, eps, centred
        self.rows, self.length = rows, length
        self.groups, self.places = 1, 1
        self.centre: Any = None
        self.inv_std: Any = None

    def forward(self, *, save: bool) -> Any:
        y = empty_like(self.x)
        if save:
            self.centre, self.inv_std = empty((self.rows,), np.float64), empty((self.rows,), np.float64)
        run_rows(
            "norms", "norm_rows", self.x.dtype, self.rows, self.length,
            self.x, self.gain, self.bias, y, self.centre, self.inv_std, self.eps, self.centred,
            self.groups, self.places, self.rows, self.length,
        )  # fmt: skip
        return y

    def backward(self, dy: Any) -> Any:
        dx = empty_like(self.x)
        run_rows(
            "norms", "norm_backward", self.x.dtype, self.rows, self.length,
            self.x, self.gain, dy, dx, self.centre, self.inv_std, self.centred,
            self.groups, self.places, self.rows, self.length, cached=False,
        )  # fmt: skip
        return dx

    def unit_sums(self, dy: Any, shape: tuple[int, ...], gain: bool, bias: bool) -> tuple[Any, Any]:
        """Return the cotangents of a gain and a bias that each entry of a row has of its own; ``None`` if not wanted."""
        dgain = empty(shape, self.x.dtype) if gain else None
        dbias = empty(shape, self.x.dtype) if bias else None
        if not (gain or bias):
            return None, None
        chunk = max(FEWEST_ROWS, -(-self.rows // MOST_CHUNKS))
        chunks = -(-self.rows // chunk)
        partials = empty((chunks, 2, self.length), np.float64)
        grid = (-(-self.length // 32), chunks, 1)
        run(
            "norms", "unit_partials", self.x.dtype, grid, (32, 8, 1),
            self.x, dy, self.centre, self.inv_std, partials, self.rows, self.length, chunk,
        )  # fmt: skip
        run_elements("norms", "unit_totals", self.x.dtype, self.length, partials, dgain, dbias, chunks, self.length)
        return dgain, dbias


def _eps(eps: Any) -> float:
    value = float(number(eps))
    _checks.positive(value, "eps")
    return value


def _layer(x: Any, gain: Any, bias: Any, eps: float, axes: Sequence[int]) -> tuple[_Norm, tuple[int, ...]]:
    x = float_array(x, "x", min_ndim=1)
    gain, bias = float_array(gain, "gain"), float_array(bias, "bias")
    _checks.same_dtype("x", x, gain=gain, bias=bias)
    over = _checks.axes(axes, x.ndim, "axes")
    if over != tuple(range(x.ndim - len(over), x.ndim)):
        _checks.fail("axes", f"the last axes of {x.ndim}", tuple(axes))
    _checks.not_empty(x, "x", over)
    units = x.shape[over[0] :]
    _checks.shape(gain, "gain", units)
    _checks.shape(bias, "bias", units)
    length = math.prod(units)
    return _Norm(x, gain, bias, x.size // length, length, _eps(eps), True), units


def layer_norm(x: Any, gain: Any, bias: Any, *, eps: float = 1e-5, axes: Sequence[int] = (-1,)) -> Any:
    """Layer norm of an array on a GPU; see :func:`refnorm.norms.layer_norm`."""
    return _layer(x, gain, bias, eps, axes)[0].forward(save=False)


def layer_norm_vjp(
    x: Any, gain: Any, bias: Any, *, eps: float = 1e-5, axes: Sequence[int] = (-1,)
) -> tuple[Any, Pullback]:
    """Return :func:`layer_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    norm, units = _layer(x, gain, bias, eps, axes)
    y = norm.forward(save=True)

    def pullback(dy: Any) -> tuple[Any, Any, Any]:
        g = cotangent(dy, "dy", norm.x.shape, norm.x.dtype)
        return (norm.backward(g), *norm.unit_sums(g, units, True, True))

    return y, pullback


def _rms(x: Any, gain: Any, bias: Any, eps: float) -> _Norm:
    x = float_array(x, "x", min_ndim=1)
    _checks.not_empty(x, "x", (x.ndim - 1,))
    given = {"gain": gain, "bias": bias}
    for name, entry in given.items():
        if entry is not None:
            given[name] = float_array(entry, name)
            _checks.same_dtype("x", x, **{name: given[name]})
            _checks.shape(given[name], name, x.shape[-1:])
    length = int(x.shape[-1])
    return _Norm(x, given["gain"], given["bias"], x.size // length, length, _eps(eps), False)


def rms_norm(x: Any, gain: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """RMS norm of an array on a GPU; see :func:`refnorm.norms.rms_norm`."""
    return _rms(x, gain, bias, eps).forward(save=False)


def rms_norm_vjp(x: Any, gain: Any = None, bias: Any = None, *, eps: float = 1e-5) -> tuple[Any, Pullback]:
    """Return :func:`rms_norm` and its pullback ``dy -> (dx, dgain, dbias)``, ``None`` for what was left out."""
    norm = _rms(x, gain, bias, eps)
    y = norm.forward(save=True)

    def pullback(dy: Any) -> tuple[Any, Any, Any]:
        g = cotangent(dy, "dy", norm.x.shape, norm.x.dtype)
        return (norm.backward(g), *norm.unit_sums(g, norm.x.shape[-1:], gain is not None, bias is not None))

    return y, pullback


def _group(x: Any, gain: Any, bias: Any, groups: int, eps: float) -> _Norm:
    x = float_array(x, "x", min_ndim=2)
    gain, bias = float_array(gain, "gain"), float_array(bias, "bias")
    _checks.same_dtype("x", x, gain=gain, bias=bias)
    groups = _checks.whole(groups, "groups", low=1)
    examples, channels, *others = x.shape
    if channels % groups:
        _checks.fail("groups", f"a divisor of the {channels} channels", groups)
    places = math.prod(others)
    entries = channels // groups * places
    if entries == 0:
        _checks.fail("x", "at least one entry in a group", f"shape {x.shape}")
    _checks.shape(gain, "gain", (channels,))
    _checks.shape(bias, "bias", (channels,))
    norm = _Norm(x, gain, bias, examples * groups, entries, _eps(eps), True)
    norm.groups, norm.places = groups, places
    return norm


def group_norm(x: Any, gain: Any, bias: Any, *, groups: int = 32, eps: float = 1e-5) -> Any:
    """Group norm of an array on a GPU; see :func:`refnorm.norms.group_norm`."""
    return _group(x, gain, bias, groups, eps).forward(save=False)


def group_norm_vjp(x: Any, gain: Any, bias: Any, *, groups: int = 32, eps: float = 1e-5) -> tuple[Any, Pullback]:
    """Return :func:`group_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    norm = _group(x, gain, bias, groups, eps)
    y = norm.forward(save=True)
    examples, channels = norm.x.shape[:2]

    def pullback(dy: Any) -> tuple[Any, Any, Any]:
        g = cotangent(dy, "dy", norm.x.shape, norm.x.dtype)
        dgain, dbias = empty_like(norm.gain), empty_like(norm.bias)
        run(
            "norms", "channel_totals", norm.x.dtype, channels, 256,
            norm.x, g, norm.centre, norm.inv_std, dgain, dbias, examples, channels, norm.groups, norm.places,
        )  # fmt: skip
        return norm.backward(g), dgain, dbias

    return y, pullback


def instance_norm(x: Any, gain: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """Instance norm of an array on a GPU; see :func:`refnorm.norms.instance_norm`."""
    x = float_array(x, "x", min_ndim=3)
    return group_norm(x, gain, bias, groups=int(x.shape[1]) or 1, eps=eps)


def instance_norm_vjp(x: Any, gain: Any, bias: Any, *, eps: float = 1e-5) -> tuple[Any, Pullback]:
    """Return :func:`instance_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x = float_array(x, "x", min_ndim=3)
    return group_norm_vjp(x, gain, bias, groups=int(x.shape[1]) or 1, eps=eps)
