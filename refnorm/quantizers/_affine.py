"""The uniform affine quantizer.

    q = clip(round(x / scale) + zero_point, lowest, highest)        x_hat = scale * (q - zero_point)

Everything uniform in this room is built on it: rounding modes, ranges, and the straight-through gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback

METHOD = Method(
    title="Uniform affine quantization with learned step sizes",
    authors="Esser, McKinstry, Bablani, Appuswamy, Modha; after Jacob et al. (2018)",
    year=2020,
    arxiv="1902.08153",
    functions=(
        "affine_qparams",
        "quantize",
        "layer_norm_quantize",
        "rms_norm_quantize",
        "dequantize",
        "fake_quantize",
        "lsq_scale",
        "rounding_error_bound",
    ),
    chapter="quantizers/affine",
    paper=False,
)

FEWEST_BITS, MOST_BITS = 2, 16
RANGES = ("minmax", "absmax", "mse", "percentile")
ROUNDINGS = ("nearest", "stochastic", "floor", "away")


def affine_qparams(
    x: Array[F],
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    symmetric: bool = True,
    axis: int | Sequence[int] | None = None,
    method: str = "minmax",
    percentile: float = 0.999,
    n_grid: int = 100,
) -> tuple[Array[F], IntArray]:
    """Choose scale and zero point from data.

    Parameters
    ----------
    x : array
        The data, finite.
    bits : int, 2 to 16
        Width of a code.
    signed, narrow : bool
        The grid: ``-2^(b-1) .. 2^(b-1)-1``, without its lowest code if ``narrow``; unsigned ``0 .. 2^b-1``.
    symmetric : bool
        Keep the zero point at 0. A signed range is then widened to ``[-m, m]`` with ``m`` the larger
        magnitude of its ends; an unsigned one starts at 0, so that negative data are clipped.
    axis : int, ints or None
        Axes whose slices get parameters of their own (per channel: the channel axis; per group: reshape
        the last axis to (groups, group size) and name all axes but the last). None: one pair for all of ``x``.
    method : {"minmax", "absmax", "mse", "percentile"}
        ``minmax``: the range of the data and 0. ``absmax``: ``scale = max|x| / highest``, symmetric only.
        ``percentile``: the range between the quantiles ``1 - percentile`` and ``percentile``, and 0.
        ``mse``: the range ``i / n_grid`` times the min-max range, ``i = 1 .. n_grid``, with the smallest sum
        of squared errors; the larger range wins a tie.
    percentile : float in (0.5, 1]
        For ``method="percentile"``.
    n_grid : int >= 1
        Ranges tried by ``method="mse"``.

    Returns
    -------
    scale : array of the dtype of ``x``, > 0
        Shape () for ``axis=None``, otherwise 1 everywhere but along ``axis``.
    zero_point : int32 array of the same shape
        The code of 0.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.
    ValueError
        If ``x`` holds NaN or infinity or has no entry in a slice, or an option is out of its range.

    Notes
    -----
    With the range ``[low, high]``, 0 included, ``scale = (high - low) / (highest - lowest)`` and
    ``zero_point = clip(lowest - round(low / scale), lowest, highest)``. A slice of zeros gets scale 1. A scale
    below the smallest normal number is raised to it: a subnormal scale has few digits, and the error of at
    most half a scale that is allowed anyway is below every normal number.

    There is no ``affine_qparams_vjp``: where the scale is a function of the data, this library treats it as
    a constant.

    References
    ----------
    Jacob et al. (2018), arXiv 1712.05877, section 2.1.

    Examples
    --------
    >>> scale, zero_point = affine_qparams(np.array([0.0, 0.5, 1.0, 2.0]), symmetric=False)
    >>> float(scale) == 2 / 255, int(zero_point)
    (True, -128)
    """
    x = _finite(x, "x")
    lowest, highest = _grid(bits, signed, narrow)
    _checks.one_of(method, "method", RANGES)
    if method == "absmax" and not symmetric:
        _checks.fail("symmetric", "True for method 'absmax'", symmetric)
    over, kept_shape = _reduced_axes(x, axis)

    # float64 until the end: high - low overflows float32 for data near its largest number.
    low = np.minimum(x.min(axis=over, keepdims=True), 0).astype(np.float64)
    high = np.maximum(x.max(axis=over, keepdims=True), 0).astype(np.float64)
    if method == "percentile":
        _checks.in_range(percentile, "percentile", 0.5, 1.0, closed="right")
        # Interpolation subtracts neighbours, which overflows between the two largest numbers unless halved.
        ends = 2 * np.quantile(x / np.float64(2), [1 - percentile, percentile], axis=over, keepdims=True)
        low, high = np.minimum(ends[0], 0), np.maximum(ends[1], 0)

    def parameters(shrink: float) -> tuple[Array[F], AnyArray]:
        if method == "absmax" or (symmetric and signed):
            step = np.maximum(-low, high) * shrink / highest
        elif symmetric:
            step = high * shrink / highest
        else:
            # Divided before subtracting: high - low may overflow, scale cannot.
            step = high * shrink / (highest - lowest) - low * shrink / (highest - lowest)
        smallest = np.finfo(x.dtype).tiny
        scale = np.where(step == 0, 1, np.maximum(step, smallest)).astype(x.dtype)
        if symmetric:
            return scale, np.zeros_like(scale)
        return scale, np.clip(lowest - np.rint(low * shrink / scale), lowest, highest)

    scale, zero_point = parameters(1.0)
    if method == "mse":
        _checks.whole(n_grid, "n_grid", low=1)
        best = _squared_error(x, scale, zero_point, lowest, highest, over)
        for i in range(n_grid - 1, 0, -1):
            candidate = parameters(i / n_grid)
            error = _squared_error(x, *candidate, lowest, highest, over)
            better = error < best
            best = np.where(better, error, best)
            scale = np.where(better, candidate[0], scale)
            zero_point = np.where(better, candidate[1], zero_point)
    return scale.reshape(kept_shape), zero_point.reshape(kept_shape).astype(np.int32)


def quantize(
    x: Array[F],
    scale: Array[F] | float,
    zero_point: IntArray | int,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
) -> IntArray:
    """Replace each number by the code of the nearest grid point.

    Parameters
    ----------
    x : array
        Finite numbers.
    scale : array > 0, dtype of ``x``, or float
        Distance of two grid points; shape (), or the number of dimensions of ``x`` with every size 1 or that
        of ``x``.
    zero_point : int array or int
        The code of 0, on the grid; shape () or as for ``scale``.
    bits, signed, narrow
        The grid, as in :func:`affine_qparams`.
    rounding : {"nearest", "stochastic", "floor", "away"}
        ``nearest``: ties to the even number. ``away``: ties away from 0. ``floor``: down.
        ``stochastic``: up or down at random so that the expected value is ``x / scale``.
    rng : numpy.random.Generator
        Needed by, and only used for, stochastic rounding.

    Returns
    -------
    array of the shape of ``x``
        int8 or uint8 for up to 8 bits, int32 beyond.

    Raises
    ------
    TypeError
        If a dtype is wrong, or ``rng`` is missing for stochastic rounding.
    ValueError
        If ``x`` holds NaN or infinity, ``scale`` is not finite and positive, ``zero_point`` is off the grid, a
        shape does not fit, or an option is out of its range.

    Notes
    -----
    ``clip(round(x / scale) + zero_point, lowest, highest)``: rounding comes first, so that ``zero_point``
    moves no tie.

    Examples
    --------
    >>> quantize(np.array([0.0, 0.5, 1.0, 2.0]), 2 / 255, -128)
    array([-128,  -64,    0,  127], dtype=int8)
    """
    rounded = _rounded(x, scale, zero_point, bits, signed, narrow, rounding, rng)
    codes = np.clip(rounded.r + rounded.zero_point, rounded.lowest, rounded.highest)
    q: IntArray = codes.astype(_code_dtype(bits, signed))
    return q


def dequantize(q: IntArray, scale: Array[F] | float, zero_point: IntArray | int) -> Array[F]:
    """Return the grid points of codes: ``scale * (q - zero_point)``.

    Parameters
    ----------
    q : int array
        Codes.
    scale, zero_point
        As in :func:`quantize`. A Python float gives a float64 result.

    Returns
    -------
    array of the shape of ``q`` and the dtype of ``scale``

    Raises
    ------
    TypeError, ValueError
        If ``q`` or ``zero_point`` are not integers, ``scale`` is not positive, or a shape does not fit.

    Examples
    --------
    >>> dequantize(np.array([-128, 0, 127], dtype=np.int8), 2 / 255, -128).round(4)
    array([0.    , 1.0039, 2.    ])
    """
    q = _checks.integer_array(q, "q")
    dtype = np.asarray(scale).dtype
    step = _positive_scale(scale, dtype, q.shape)
    offset = _checks.integer_array(zero_point, "zero_point")
    _fits(offset, "zero_point", q.shape, "q")
    # int64: int8 codes minus a zero point leave int8.
    x_hat: Array[F] = step * (q.astype(np.int64) - offset).astype(step.dtype)
    return x_hat


def fake_quantize(
    x: Array[F],
    scale: Array[F] | float,
    zero_point: AnyArray | int,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
) -> Array[F]:
    """Quantize and dequantize: the nearest grid point of each number, as a float.

    Parameters
    ----------
    x, scale, bits, signed, narrow, rounding, rng
        As in :func:`quantize`.
    zero_point : int array, int, or float array of the dtype of ``x``
        A float array is a zero point that is being learned: it is rounded to the nearest integer here, and
        :func:`fake_quantize_vjp` returns its cotangent.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`quantize`.

    Notes
    -----
    Equal to ``dequantize(quantize(x, scale, zero_point), scale, zero_point)``, bit for bit.

    References
    ----------
    Esser et al. (2020), arXiv 1902.08153, equations 1 and 2.

    Examples
    --------
    >>> fake_quantize(np.array([0.3, 0.6, 9.0]), 0.5, 0, bits=4)
    array([0.5, 0.5, 3.5])
    """
    return fake_quantize_vjp(x, scale, zero_point, bits=bits, signed=signed, narrow=narrow, rounding=rounding, rng=rng)[
        0
    ]


def fake_quantize_vjp(
    x: Array[F],
    scale: Array[F] | float,
    zero_point: AnyArray | int,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    lsq_grad_scale: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`fake_quantize` and its straight-through pullback.

    The pullback is ``dy -> (dx, dscale)`` for an integer zero point and ``dy -> (dx, dscale, dzero_point)``
    for a float one. It is the exact gradient of the function in which ``round(u)`` is replaced by ``u`` plus
    the rounding error that was made, held constant.

    Parameters, errors and references are those of :func:`fake_quantize`, and

    Parameters
    ----------
    lsq_grad_scale : bool
        Multiply ``dscale`` by ``1 / sqrt(N * highest)``, ``N`` the number of entries that share one scale,
        which brings the relative size of the scale's updates near that of the weights' (Esser et al., section 2.2).
    """
    rounded = _rounded(x, scale, zero_point, bits, signed, narrow, rounding, rng)
    x, step, offset = rounded.x, rounded.scale, rounded.zero_point
    code = rounded.r + offset
    below, above = code < rounded.lowest, code > rounded.highest
    inside = ~(below | above)
    clipped = np.clip(code, rounded.lowest, rounded.highest)
    y: Array[F] = step * (clipped - offset)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # Inside, x_hat = scale round(x / scale) and d round(u) := du, so
        #     d x_hat / d scale = round(u) + scale (-x / scale^2) = round(u) - u:
        # the rounding error in units of the scale. Outside, x_hat = scale (end - zero_point).
        slope = np.where(inside, rounded.error, clipped - offset)
        dscale = sum_to(dy * slope, step.shape)
        if lsq_grad_scale:
            sharing = x.size / max(step.size, 1)
            dscale = (dscale / np.sqrt(max(sharing, 1) * rounded.highest)).astype(x.dtype)
        dx = np.where(inside, dy, 0).astype(x.dtype)
        if not rounded.learned_offset:
            return dx, dscale
        # Inside, the zero point is added and taken away again; outside only the latter.
        return dx, dscale, sum_to(np.where(inside, 0, -dy * step).astype(x.dtype), offset.shape)

    return y, pullback


def lsq_scale(
    x: Array[F],
    *,
    bits: int = 8,
    signed: bool = True,
    axis: int | Sequence[int] | None = None,
) -> Array[F]:
    """Return the first step size of LSQ, ``2 mean|x| / sqrt(highest)``, from which it is then learned.

    Parameters
    ----------
    x, bits, signed, axis
        As in :func:`affine_qparams`.

    Returns
    -------
    array of the dtype of ``x``, > 0
        Shape () for ``axis=None``, otherwise 1 everywhere but along ``axis``; 1 for a slice of zeros.

    Raises
    ------
    TypeError, ValueError
        As :func:`affine_qparams`.

    References
    ----------
    Esser et al. (2020), arXiv 1902.08153, section 2.1.

    Examples
    --------
    >>> float(lsq_scale(np.array([-1.0, 1.0, 3.0, -3.0]), bits=3))
    2.3094010767585034
    """
    x = _finite(x, "x")
    _, highest = _grid(bits, signed, False)
    over, kept_shape = _reduced_axes(x, axis)
    # Divided before averaging: the sum of many numbers near the largest one would overflow.
    count = x.size // max(int(np.prod(kept_shape)), 1)
    mean = (np.abs(x).astype(np.float64) / count).sum(axis=over)
    step = mean * (2 / np.sqrt(highest))
    smallest = np.finfo(x.dtype).tiny
    return np.where(mean == 0, 1, np.maximum(step, smallest)).astype(x.dtype).reshape(kept_shape)


def rounding_error_bound(scale: Array[F] | float) -> Array[F]:
    """Return the largest error that rounding to the nearest grid point makes: half a scale.

    It holds for numbers that are not clipped, in exact arithmetic; in floating point, the division and the
    product of :func:`fake_quantize` add two roundings.

    Parameters
    ----------
    scale : array > 0 or float

    Returns
    -------
    array, shape and dtype of ``scale``

    Examples
    --------
    >>> float(rounding_error_bound(0.5))
    0.25
    """
    step = np.asarray(scale)
    bound: AnyArray = _positive_scale(step, step.dtype, step.shape) / 2
    return bound


@dataclass(frozen=True, eq=False)
class _Rounded:
    """Checked arguments, ``r = round(u)`` with ``u = x / scale``, and the rounding error ``r - u``."""

    x: AnyArray
    scale: AnyArray
    zero_point: AnyArray
    learned_offset: bool
    lowest: int
    highest: int
    r: AnyArray
    error: AnyArray


def _rounded(
    x: AnyArray,
    scale: AnyArray | float,
    zero_point: AnyArray | int,
    bits: int,
    signed: bool,
    narrow: bool,
    rounding: str,
    rng: np.random.Generator | None,
) -> _Rounded:
    x = _finite(x, "x")
    lowest, highest = _grid(bits, signed, narrow)
    step = _positive_scale(scale, x.dtype, x.shape)
    offset = np.asarray(zero_point)
    learned = offset.dtype.kind == "f"
    if learned:
        _checks.same_dtype("x", x, zero_point=offset)
        _checks.finite(offset, "zero_point")
        offset = np.rint(offset)
        if ((offset < lowest) | (offset > highest)).any():
            _checks.fail("zero_point", f"values from {lowest} to {highest}", offset)
    else:
        offset = _checks.integer_array(offset, "zero_point", low=lowest, high=highest).astype(x.dtype)
    _fits(offset, "zero_point", x.shape, "x")
    _checks.one_of(rounding, "rounding", ROUNDINGS)
    if rounding == "stochastic":
        rng = _checks.generator(rng)
    # x / scale may overflow to infinity, which is then clipped like any number off the grid.
    with np.errstate(over="ignore", invalid="ignore"):
        u = x / step
        r = _round(u, rounding, rng)
        error = r - u
    return _Rounded(x, step, offset, learned, lowest, highest, r, error)


def _round(u: AnyArray, rounding: str, rng: np.random.Generator | None) -> AnyArray:
    if rounding == "nearest":
        return np.rint(u)
    if rounding == "floor":
        return np.floor(u)
    if rng is not None and rounding == "stochastic":
        # float64: u + epsilon would round up too often in float32, where epsilon near 1 vanishes into it.
        return np.floor(u + rng.random(u.shape)).astype(u.dtype)
    # floor(|u| + 1/2) is wrong for the largest number below 1/2, whose sum with 1/2 rounds to 1.
    whole = np.trunc(u)
    rounded: AnyArray = whole + np.where(np.abs(u - whole) >= 0.5, np.sign(u), 0).astype(u.dtype)
    return rounded


def _squared_error(
    x: AnyArray, scale: AnyArray, zero_point: AnyArray, lowest: int, highest: int, over: tuple[int, ...]
) -> AnyArray:
    offset = zero_point.astype(x.dtype)
    # A shrunk range may be so small that a large number overflows its quotient, or its squared error.
    with np.errstate(over="ignore"):
        codes = np.clip(np.rint(x / scale) + offset, lowest, highest)
        squares: AnyArray = np.square((x - scale * (codes - offset)).astype(np.float64))
        total: AnyArray = squares.sum(axis=over, keepdims=True)
    return total


def _grid(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Return the lowest and the highest code."""
    _checks.whole(bits, "bits", low=FEWEST_BITS, high=MOST_BITS)
    if not signed:
        if narrow:
            _checks.fail("narrow", "False for an unsigned grid", narrow)
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


def _code_dtype(bits: int, signed: bool) -> type[np.integer[Any]]:
    if bits > 8:
        return np.int32
    return np.int8 if signed else np.uint8


def _reduced_axes(x: AnyArray, axis: int | Sequence[int] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes that share parameters, and the shape of the parameters."""
    kept = () if axis is None else _checks.axes(axis, x.ndim)
    over = tuple(i for i in range(x.ndim) if i not in kept)
    _checks.not_empty(x, "x", over)
    return over, () if axis is None else tuple(n if i in kept else 1 for i, n in enumerate(x.shape))


def _finite(x: AnyArray, name: str) -> AnyArray:
    array = _checks.float_array(x, name)
    _checks.finite(array, name)
    return array


def _positive_scale(scale: AnyArray | float, dtype: Any, shape: tuple[int, ...]) -> AnyArray:
    """Return ``scale`` as an array of ``dtype`` that broadcasts to ``shape`` without enlarging it."""
    step = np.asarray(scale, dtype=dtype) if type(scale) in (float, int) else np.asarray(scale)
    step = _checks.float_array(step, "scale")
    if step.dtype != dtype:
        _checks.fail_type("scale", f"dtype {dtype} like x", step.dtype)
    if not (np.isfinite(step) & (step > 0)).all():
        _checks.fail("scale", "finite numbers > 0", step)
    _fits(step, "scale", shape, "x")
    return step


def _fits(parameter: AnyArray, name: str, shape: tuple[int, ...], of: str) -> None:
    sizes_fit = parameter.ndim == len(shape) and all(
        size in (1, whole) for size, whole in zip(parameter.shape, shape, strict=True)
    )
    if parameter.ndim and not sizes_fit:
        _checks.fail(name, f"shape () or {shape} with any size 1, like {of}", parameter.shape)
