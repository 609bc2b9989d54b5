"""ShiftQuant: gradients in integers whose scales differ by powers of 2 from channel to channel.

shift_c = clip(floor(log2(range / range_c)), 0, n_groups - 1)        q = round(2^shift_c g / scale)
g_hat @ w_hat = scale w_scale 2^-(n_groups - 1) sum_c (q_c << (n_groups - 1 - shift_c)) w_q_c
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.norms import l1_batch_statistics, update_l1_running_statistics
from refnorm.norms._l1_batch_norm import STD_OVER_DEVIATION
from refnorm.norms._l1_batch_norm import l1_batch_norm_vjp as _batch_norm_vjp

METHOD = Method(
    title="Towards Accurate and Efficient Sub-8-Bit Integer Training",
    authors="Guo, Liu, Xie, Li, Ning, Meng, Zeng, Lei, Fang, Wang",
    year=2024,
    arxiv="2411.10948",
    functions=(
        "shift_groups",
        "ShiftQuantized",
        "shift_quantize",
        "shift_matmul",
        "shift_linear",
        "l1_norm",
        "L1BatchNormState",
        "l1_batch_norm",
        "grouping_variance_bound",
    ),
    chapter="quantizers/shift_quant",
)

MOST_SHIFTED_BITS = 16
"""Width of a code after its shift."""

LARGEST_EXACT = 2.0**53
"""Sums of integers up to here are exact in float64 in any order."""

ROUNDINGS = ("stochastic", "nearest")
GROUPINGS = ("shift", "tensor", "channel", "optimal")


def shift_groups(g: Array[F], *, n_groups: int = 4, axis: int = -1) -> IntArray:
    """Return by how many powers of 2 each channel's range is below the largest one.

    Parameters
    ----------
    g : array
        Finite numbers.
    n_groups : int, 1 to 15
        Shifts run from 0 to ``n_groups - 1``.
    axis : int
        The axis of channels.

    Returns
    -------
    int8 array, 1 everywhere but along ``axis``
        ``clip(floor(log2(range / range_c)), 0, n_groups - 1)`` with ``range_c = max |g|`` of a channel and
        ``range`` the largest of them. A channel of zeros has the largest shift.

    Raises
    ------
    TypeError, ValueError
        If ``g`` is not a float array with finite entries, or an option is out of its range.

    Notes
    -----
    Significands and exponents are compared, so that ranges at exact powers of 2 fall on the right side.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 3 (power-of-two grouping).

    Examples
    --------
    >>> shift_groups(np.array([[8.0, 3.0, -0.9]]))
    array([[0, 1, 3]], dtype=int8)
    """
    ranges = _ranges(g, axis)
    return _shifts(ranges, _checks.whole(n_groups, "n_groups", low=1, high=MOST_SHIFTED_BITS - 1))


def _ranges(g: AnyArray, axis: int) -> AnyArray:
    g = _checks.float_array(g, "g", min_ndim=1)
    _checks.finite(g, "g")
    channel = _checks.axes(axis, g.ndim)[0]
    over = tuple(i for i in range(g.ndim) if i != channel)
    ranges: AnyArray = np.abs(g).max(axis=over, keepdims=True, initial=0)
    return ranges


def _shifts(ranges: AnyArray, n_groups: int) -> IntArray:
    significand, exponent = np.frexp(ranges)
    top_significand, top_exponent = np.frexp(ranges.max(initial=0))
    # range / range_c = (f / f_c) 2^(e - e_c) with f, f_c in [1/2, 1): the quotient of the significands
    # lies in (1/2, 2) and costs one power of 2 if it is below 1.
    shifts = top_exponent.astype(np.int64) - exponent - (top_significand < significand)
    shifts = np.where(ranges == 0, n_groups - 1, np.clip(shifts, 0, n_groups - 1))
    return shifts.astype(np.int8)


@dataclass(frozen=True, eq=False)
class ShiftQuantized:
    """Codes with one scale, and a shift for each channel.

    Parameters
    ----------
    q : int array
        Codes.
    shift : int8 array, 1 everywhere but along the axis of channels
    scale : array ()
        A code stands for ``q scale 2^-shift``.
    n_groups : int
        Shifts are below it.
    """

    q: IntArray
    shift: IntArray
    scale: AnyArray
    n_groups: int

    def dequantize(self) -> AnyArray:
        """Return ``q scale 2^-shift``, in the dtype of the scale."""
        scales = np.ldexp(self.scale, -self.shift.astype(np.int32)).astype(self.scale.dtype)
        x_hat: AnyArray = self.q.astype(self.scale.dtype) * scales
        return x_hat


def shift_quantize(
    g: Array[F],
    *,
    bits: int = 4,
    n_groups: int = 4,
    axis: int = -1,
    rounding: str = "stochastic",
    rng: np.random.Generator | None = None,
) -> ShiftQuantized:
    """Quantize symmetrically, with scales that differ by powers of 2 from channel to channel.

    Parameters
    ----------
    g : array
        Finite numbers, for example the cotangent of a layer's output.
    bits : int >= 2
        Codes run from ``-(2^(bits - 1) - 1)`` to ``2^(bits - 1) - 1``; ``bits + n_groups - 1 <= 16``.
    n_groups : int >= 1
        Number of scales; 1 is one scale for all of ``g``.
    axis : int
        The axis of channels: the one that the product to come sums over.
    rounding : {"stochastic", "nearest"}
        ``stochastic``: up or down at random, so that the expected value is ``g``. ``nearest``: ties to even.
    rng : numpy.random.Generator
        Needed by, and only used for, stochastic rounding.

    Returns
    -------
    ShiftQuantized
        int8 codes for up to 8 bits, int16 beyond.

    Raises
    ------
    TypeError, ValueError
        If ``g`` is not a float array with finite entries, an option is out of its range, or ``rng`` is
        missing.

    Notes
    -----
    ``scale = max|g| / (2^(bits - 1) - 1)``, or 1 if all is 0, and at least the smallest normal number. Nothing is
    clipped, because ``range_c <= 2^-shift_c range``.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 3.

    Examples
    --------
    >>> found = shift_quantize(np.array([[8.0, 3.0, -0.9]]), rounding="nearest")
    >>> found.q, (7 * found.dequantize()).round(9)
    (array([[ 7,  5, -6]], dtype=int8), array([[56., 20., -6.]]))
    """
    ranges = _ranges(g, axis)
    highest = _highest(bits, n_groups)
    _checks.one_of(rounding, "rounding", ROUNDINGS)
    g = np.asarray(g)
    shift = _shifts(ranges, n_groups)
    scale = _scale(ranges.max(initial=0), highest)
    # float64, so that the random number is not rounded away against the code.
    u = np.ldexp(g.astype(np.float64) / float(scale), shift.astype(np.int32))
    codes = np.rint(u) if rounding == "nearest" else np.floor(u + _checks.generator(rng).random(u.shape))
    # The scale is rounded, so the largest quotient may exceed the highest code by a rounding error.
    q: IntArray = np.clip(codes, -highest, highest).astype(np.int8 if bits <= 8 else np.int16)
    return ShiftQuantized(q, shift, scale, n_groups)


def _scale(largest: AnyArray, highest: int) -> AnyArray:
    scale = np.maximum(largest / largest.dtype.type(highest), np.finfo(largest.dtype).tiny)
    # Rounded up, it may be too large by itself for the highest code of data near the largest number.
    with np.errstate(over="ignore"):
        scale = np.nextafter(scale, 0, dtype=scale.dtype) if np.isinf(scale * highest) else scale
    return np.asarray(scale if largest > 0 else 1, largest.dtype)


def _highest(bits: int, n_groups: int) -> int:
    _checks.whole(bits, "bits", low=2)
    _checks.whole(n_groups, "n_groups", low=1)
    if bits + n_groups - 1 > MOST_SHIFTED_BITS:
        _checks.fail("bits, n_groups", f"bits + n_groups - 1 <= {MOST_SHIFTED_BITS}", f"{bits} and {n_groups}")
    return int(2 ** (bits - 1)) - 1


def shift_matmul(g: ShiftQuantized, weight: IntArray, weight_scale: AnyArray | float) -> AnyArray:
    """Multiply shift-quantized rows by an integer matrix: shifts and one sum of integers.

    Parameters
    ----------
    g : ShiftQuantized
        Codes (T, C), channels along the last axis.
    weight : int array (C, K)
        Codes.
    weight_scale : float, array () or array (K,)
        What one unit of the codes stands for: for all of them, or for each output.

    Returns
    -------
    array (T, K), dtype of ``g.scale``

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, ``weight`` holds no integers, or the sums may exceed 2^53.

    Notes
    -----
    ``scale weight_scale 2^-(n_groups - 1) sum_c (q_tc << (n_groups - 1 - shift_c)) weight_ck``. The shifted codes
    have ``bits + n_groups - 1`` bits, and all scales stay outside of the sum.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 3 (product without rearranging memory).

    Examples
    --------
    >>> found = shift_quantize(np.array([[8.0, 3.0, -0.9]]), rounding="nearest")
    >>> shift_matmul(found, np.ones((3, 1), dtype=np.int8), 1.0)
    array([[10.]])
    """
    weight = _checks.integer_array(weight, "weight", ndim=2)
    q = _checks.integer_array(g.q, "g.q", ndim=2)
    channels = q.shape[1]
    _checks.shape(g.shift, "g.shift", (1, channels))
    _checks.shape(weight, "weight", (channels, weight.shape[1]))
    scales = np.asarray(weight_scale)
    if scales.shape not in ((), weight.shape[1:]):
        _checks.fail("weight_scale", f"shape () or {weight.shape[1:]}", scales.shape)
    shifted = q.astype(np.int64) << (g.n_groups - 1 - g.shift.astype(np.int64))
    largest = [float(np.abs(codes.astype(np.float64)).max(initial=0)) for codes in (shifted, weight)]
    if largest[0] * largest[1] * channels > LARGEST_EXACT:
        _checks.fail("weight", "codes whose sums stay below 2^53", f"a magnitude of {largest[1]:g}")
    total = shifted.astype(np.float64) @ weight.astype(np.float64)
    y: AnyArray = np.ldexp(total, 1 - g.n_groups) * (float(g.scale) * scales.astype(np.float64))
    return y.astype(g.scale.dtype)


def shift_linear(x: Array[F], weight: Array[F], *, forward_bits: int = 4) -> Array[F]:
    """Apply a linear layer with integer inputs and weights.

    Parameters
    ----------
    x : array (T, I)
        Finite numbers.
    weight : array (I, O)
        Finite numbers.
    forward_bits : int, 2 to 16
        Width of the codes of ``x`` and ``weight``; one scale each, by the largest magnitude.

    Returns
    -------
    array (T, O), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If an array is not a finite float array, the dtypes differ, or a shape or option does not fit.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948.

    Examples
    --------
    >>> shift_linear(np.array([[7.0, 2.2]]), np.array([[1.0], [3.5]]), forward_bits=4)
    array([[14.]])
    """
    return shift_linear_vjp(x, weight, forward_bits=forward_bits, grad_bits=None)[0]


def shift_linear_vjp(
    x: Array[F],
    weight: Array[F],
    *,
    forward_bits: int = 4,
    grad_bits: int | None = 4,
    n_groups: int = 4,
    rng: np.random.Generator | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`shift_linear` and its integer pullback ``dy -> (dx, dweight)``.

    The expected value of the pullback is the exact one of ``x_hat @ weight_hat``, the roundings of ``x`` and
    ``weight`` counting as the identity.

    Parameters, errors and references are those of :func:`shift_linear`, and

    Parameters
    ----------
    grad_bits : int >= 2 or None
        Width of the codes of ``dy``. None leaves it in float.
    n_groups : int >= 1
        Scales along the axis that is summed over: outputs for ``dx``, examples for ``dweight``.
    rng : numpy.random.Generator
        For stochastic rounding; not needed if ``grad_bits`` is None.
    """
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    _checks.shape(x, "x", (len(x), len(weight)))
    _checks.finite(x, "x")
    _checks.finite(weight, "weight")
    if grad_bits is not None:
        _highest(grad_bits, n_groups)
        rng = _checks.generator(rng)
    # One group is one scale for everything.
    codes = shift_quantize(x, bits=forward_bits, n_groups=1, rounding="nearest")
    weights = shift_quantize(weight, bits=forward_bits, n_groups=1, rounding="nearest")
    y = shift_matmul(codes, weights.q, weights.scale)

    def pullback(dy: Array[F]) -> tuple[AnyArray, AnyArray]:
        dy = np.asarray(dy)
        if grad_bits is None:
            return dy @ weights.dequantize().T, codes.dequantize().T @ dy
        # dx sums over outputs, dweight over examples: each has channels along the axis that it sums over.
        by_output = shift_quantize(dy, bits=grad_bits, n_groups=n_groups, rng=rng)
        by_example = shift_quantize(dy.T, bits=grad_bits, n_groups=n_groups, rng=rng)
        dx = shift_matmul(by_output, weights.q.T, weights.scale)
        return dx, shift_matmul(by_example, codes.q, codes.scale).T

    return y, pullback


def l1_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    axis: int = -1,
    eps: float = 1e-5,
    match_std: bool = False,
) -> Array[F]:
    """Normalize each example by its mean absolute deviation.

    Parameters
    ----------
    x : array
    gain, bias : arrays (H,)
        H is the size of ``x`` along ``axis``; 1 and 0 at initialization.
    axis : int
        The axis of units.
    eps : float > 0
        Added to the (scaled) deviation.
    match_std : bool
        Multiply the deviation by ``sqrt(pi / 2)``, which makes it the standard deviation of normal data.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If an argument is not float32 or float64, the dtypes differ, or a shape or option does not fit.

    Notes
    -----
    ``y = gain (x - mean) / (factor mean|x - mean| + eps) + bias``, sums in float64. There is a kink where an
    entry equals the mean; the sign is taken as 0 there. NaN or infinity makes its own example NaN.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 4.

    Examples
    --------
    >>> l1_norm(np.array([1.0, 2.0, 6.0]), np.ones(3), np.zeros(3), eps=1e-9).round(6)
    array([-1. , -0.5,  1.5])
    """
    return l1_norm_vjp(x, gain, bias, axis=axis, eps=eps, match_std=match_std)[0]


def l1_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    axis: int = -1,
    eps: float = 1e-5,
    match_std: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`l1_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    units = _checks.axes(axis, x.ndim)[0]
    _checks.not_empty(x, "x", (units,))
    for name, array in (("gain", gain), ("bias", bias)):
        array = _checks.float_array(array, name)
        _checks.same_dtype("x", x, **{name: array})
        _checks.shape(array, name, (x.shape[units],))
    _checks.positive(eps, "eps")
    along = tuple(x.shape[units] if i == units else 1 for i in range(x.ndim))
    gain_, bias_ = (array.astype(np.float64).reshape(along) for array in (gain, bias))
    factor = STD_OVER_DEVIATION if match_std else 1.0

    def mean(array: AnyArray) -> AnyArray:
        return np.asarray(array.mean(axis=units, keepdims=True))

    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        centred = wide - mean(wide)
    inv_scale = 1 / (factor * mean(np.abs(centred)) + eps)
    x_hat = centred * inv_scale

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        dx_hat = dy * gain_
        # d deviation / d centred_j = sign(centred_j) / H, and d inv_scale = -factor inv_scale^2 d deviation.
        dcentred = inv_scale * (dx_hat - factor * np.sign(centred) * mean(dx_hat * x_hat))
        # The mean is taken off the sign's term too: the signs need not add up to 0.
        dx = (dcentred - mean(dcentred)).astype(x.dtype)
        dgain, dbias = (sum_to(entry, along).reshape(-1).astype(x.dtype) for entry in (dy * x_hat, np.asarray(dy)))
        return dx, dgain, dbias

    y: Array[F] = (gain_ * x_hat + bias_).astype(x.dtype)
    return y, pullback


@dataclass(frozen=True, eq=False)
class L1BatchNormState:
    """Running statistics of :func:`l1_batch_norm`: 0 and 1 before the first batch.

    Parameters
    ----------
    mean, deviation : arrays of one shape
    """

    mean: AnyArray
    deviation: AnyArray


def l1_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: L1BatchNormState,
    *,
    training: bool,
    momentum: float = 0.1,
    axes: tuple[int, ...] = (0,),
    eps: float = 1e-5,
    match_std: bool = False,
) -> tuple[Array[F], L1BatchNormState]:
    """Normalize units by their mean absolute deviation over the batch, and keep running statistics.

    Parameters
    ----------
    x : array
        (N, C), or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    gain, bias : arrays of the shape of ``x`` along the axes that are not in ``axes``
    state : L1BatchNormState
    training : bool
        True: use the batch's statistics, and move the running ones towards them. False: use the running ones.
    momentum : float in [0, 1]
        Weight of the batch.
    axes : axes of ``x``
        Those that the statistics are taken over.
    eps, match_std
        As in :func:`l1_norm`.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : L1BatchNormState

    Raises
    ------
    TypeError, ValueError
        If an argument is not float32 or float64, the dtypes differ, or a shape or option does not fit.

    Notes
    -----
    The layer itself is :func:`refnorm.norms.l1_batch_norm`.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 4.

    Examples
    --------
    >>> state = L1BatchNormState(np.zeros(1), np.ones(1))
    >>> x, gain, bias = np.array([[1.0], [2.0], [6.0]]), np.ones(1), np.zeros(1)
    >>> y, state = l1_batch_norm(x, gain, bias, state, training=True, eps=1e-9)
    >>> y.ravel().round(6), state.mean.round(6), state.deviation
    (array([-1. , -0.5,  1.5]), array([0.3]), array([1.1]))
    """
    return l1_batch_norm_vjp(
        x, gain, bias, state, training=training, momentum=momentum, axes=axes, eps=eps, match_std=match_std
    )[0]


def l1_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: L1BatchNormState,
    *,
    training: bool,
    momentum: float = 0.1,
    axes: tuple[int, ...] = (0,),
    eps: float = 1e-5,
    match_std: bool = False,
) -> tuple[tuple[Array[F], L1BatchNormState], Pullback]:
    """Return :func:`l1_batch_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Running statistics are no parameters: they have no cotangent.
    """
    given = (None, None) if training else (state.mean, state.deviation)
    y, back = _batch_norm_vjp(x, gain, bias, *given, axes=axes, eps=eps, match_std=match_std)
    if training:
        batch = l1_batch_statistics(x, axes)
        moved = update_l1_running_statistics(state.mean, state.deviation, *batch, momentum=momentum)
        state = L1BatchNormState(*moved)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        dx, dgain, dbias, _, _ = back(dy)
        return dx, dgain, dbias

    return (y, state), pullback


def grouping_variance_bound(ranges: Array[F], method: str = "shift", *, bits: int = 4, n_groups: int = 4) -> float:
    """Bound the variance of stochastic rounding, on average over channels.

    Parameters
    ----------
    ranges : array (C,)
        Largest magnitude of each channel, finite, >= 0.
    method : {"shift", "tensor", "channel", "optimal"}
        ``shift``: :func:`shift_groups`. ``tensor``: one scale. ``channel``: a scale for each channel, which no
        integer sum allows. ``optimal``: the best ``n_groups`` scales, chosen freely.
    bits : int >= 2
    n_groups : int >= 1
        For ``shift`` and ``optimal``.

    Returns
    -------
    float
        ``mean_c scale_c^2 / 4``.

    Raises
    ------
    TypeError, ValueError
        If ``ranges`` is empty, negative or not finite, or an option is out of its range.

    Notes
    -----
    A number between two codes at the fraction f has the variance ``f (1 - f) scale^2 <= scale^2 / 4``. For
    the best groups, channels are sorted, and groups are neighbours: dynamic programming over the place of
    the last boundary.

    Examples
    --------
    >>> ranges = np.array([8.0, 3.0, 0.9])
    >>> [round(196 * grouping_variance_bound(ranges, method, n_groups=3), 2) for method in ("tensor", "shift", "channel")]
    [64.0, 28.0, 24.6]
    """
    ranges = _checks.float_array(ranges, "ranges", ndim=1)
    _checks.not_empty(ranges, "ranges", (0,))
    _checks.finite(ranges, "ranges")
    if ranges.min() < 0:
        _checks.fail("ranges", "numbers >= 0", ranges.min())
    _checks.one_of(method, "method", GROUPINGS)
    highest = _highest(bits, n_groups)
    wide = ranges.astype(np.float64)
    if method == "optimal":
        return _best_groups(np.sort(wide), n_groups) / (4 * highest**2 * len(wide))
    covering = {
        "shift": np.ldexp(wide.max(), -_shifts(wide, n_groups).astype(np.int32)),
        "tensor": np.full(len(wide), wide.max()),
        "channel": wide,
    }[method]
    return float(np.mean(np.square(covering / highest)) / 4)


def _best_groups(ranges: AnyArray, n_groups: int) -> float:
    """Smallest ``sum_c (largest range of c's group)^2`` over ``n_groups`` runs of ascending ranges."""
    count = len(ranges)
    # cost[i, j]: channels i .. j - 1 in one group, whose largest range is the last.
    members = np.arange(count + 1)[None] - np.arange(count + 1)[:, None]
    cost = np.where(members > 0, members * np.square(np.concatenate([[0.0], ranges]))[None], np.inf)
    best = np.where(np.arange(count + 1) == 0, 0.0, np.inf)
    for _ in range(n_groups):
        best = np.minimum(best, (best[:, None] + cost).min(axis=0))
    return float(best[count])
