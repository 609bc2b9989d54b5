"""I&S-ViT: a logarithmic quantizer that reaches zero, and a three-stage optimization of quantized blocks.

v = log2(a + shift)      q = clip(round((v - low) / step), 0, 2^bits - 1)
y = 2^round(low + step q) - shift                              (step = (high - low) / (2^bits - 1))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.nn import gelu_vjp, linear_vjp
from refnorm.norms import layer_norm, layer_norm_vjp
from refnorm.quantizers._affine import affine_qparams, fake_quantize_vjp
from refnorm.quantizers._calibration import check_bits, choose_range, fake_quantize_grid_vjp, grid_of_range
from refnorm.quantizers._descent import Descent
from refnorm.quantizers._rep_quant import calibrate_channelwise, log_codes, reparameterize_layernorm
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="I&S-ViT: An Inclusive & Stable Method for Pushing the Limit of Post-Training ViTs Quantization",
    authors="Zhong, Hu, Lin, Chen, Ji",
    year=2023,
    arxiv="2311.10126",
    functions=(
        "SulqParams",
        "sulq_calibrate",
        "sulq_encode",
        "sulq_decode",
        "sulq_fake_quantize",
        "sulq_matmul",
        "log2_fake_quantize",
        "FeedForward",
        "FeedForwardGrids",
        "quantized_feed_forward",
        "SmoothOptimization",
        "smooth_optimize",
    ),
    chapter="quantizers/shift_uniform_log2",
)

DEFAULT_SHIFTS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Candidates of the authors' code."""

LEVELS = ("b_bits", "official")

MOST_LOG_BITS = 8


@dataclass(frozen=True)
class SulqParams:
    """A calibrated shift-uniform-log2 quantizer.

    Parameters
    ----------
    shift : float > 0
        Added before the logarithm, taken away behind the power.
    low, high : float
        Range of ``log2(a + shift)`` in the calibration data.
    bits : int, 2 to 8
    levels : {"b_bits", "official"}
        ``2^bits`` levels, or one more, as in the authors' code.
    """

    shift: float
    low: float
    high: float
    bits: int
    levels: str = "b_bits"

    def __post_init__(self) -> None:
        _checks.positive(self.shift, "shift")
        _checks.whole(self.bits, "bits", low=2, high=MOST_LOG_BITS)
        _checks.one_of(self.levels, "levels", LEVELS)
        if not self.low <= self.high:
            _checks.fail("high", f"a number >= low = {self.low}", self.high)

    @property
    def highest(self) -> int:
        """The largest code."""
        return int(2**self.bits) - (self.levels == "b_bits")

    @property
    def step(self) -> float:
        """Distance of two levels in the logarithm; 1 if the range is empty."""
        return (self.high - self.low) / self.highest or 1.0


def sulq_calibrate(
    a: Array[F],
    *,
    bits: int,
    shifts: Sequence[float] = DEFAULT_SHIFTS,
    levels: str = "b_bits",
    integer_exponent: bool = True,
) -> SulqParams:
    """Choose the shift with the least squared error, and the range of the logarithm.

    Parameters
    ----------
    a : array
        Attention weights: finite, >= 0, at least one.
    bits : int, 2 to 8
    shifts : floats > 0
        Candidates; the first of several equals wins.
    levels, integer_exponent
        As in :class:`SulqParams` and :func:`sulq_decode`.

    Returns
    -------
    SulqParams

    Raises
    ------
    TypeError, ValueError
        If ``a`` is empty, negative or not finite, or an option is out of its range.

    References
    ----------
    Zhong et al. (2023), arXiv 2311.10126, section on the shift-uniform-log2 quantizer.

    Examples
    --------
    >>> sulq_calibrate(np.array([0.0, 0.25, 0.5, 1.0]), bits=2, shifts=(1.0,))
    SulqParams(shift=1.0, low=0.0, high=1.0, bits=2, levels='b_bits')
    """
    a = _attention(a)
    _checks.not_empty(a, "a", range(a.ndim))
    if not len(shifts):
        _checks.fail("shifts", "at least one", 0)
    best, best_error = None, np.inf
    for shift in shifts:
        _checks.positive(shift, "shifts")
        low, high = (float(np.log2(end.astype(np.float64) + shift)) for end in (a.min(), a.max()))
        params = SulqParams(float(shift), low, high, bits, levels)
        decoded = sulq_decode(sulq_encode(a, params), params, integer_exponent=integer_exponent)
        error = float(np.square(decoded - a).sum())
        if best is None or error < best_error:
            best, best_error = params, error
    assert best is not None
    return best


def sulq_encode(a: Array[F], params: SulqParams) -> IntArray:
    """Return ``clip(round((log2(a + shift) - low) / step), 0, highest)``.

    Parameters
    ----------
    a : array
        Finite, >= 0.
    params : SulqParams

    Returns
    -------
    uint8 array of the shape of ``a`` (uint16 where 8 bits have the additional level)

    Raises
    ------
    TypeError, ValueError
        If ``a`` is negative or not finite.

    References
    ----------
    Zhong et al. (2023), arXiv 2311.10126, section on the shift-uniform-log2 quantizer.

    Examples
    --------
    >>> sulq_encode(np.array([0.0, 0.25, 0.5, 1.0]), SulqParams(1.0, 0.0, 1.0, 2))
    array([0, 1, 2, 3], dtype=uint8)
    """
    unclipped = _unclipped(_attention(a), params.shift, params)
    q: IntArray = np.clip(unclipped, 0, params.highest).astype(np.uint8 if params.highest < 256 else np.uint16)
    return q


def sulq_decode(q: IntArray, params: SulqParams, *, integer_exponent: bool = True) -> Array[np.float64]:
    """Return ``2^(low + step q) - shift``.

    Parameters
    ----------
    q : int array
        Codes.
    params : SulqParams
    integer_exponent : bool
        Round the exponent, so that the power is a shift.

    Returns
    -------
    float64 array of the shape of ``q``
        May lie slightly outside of the range of the data, below 0 too.

    Raises
    ------
    TypeError, ValueError
        If ``q`` holds no integers or a code beyond the highest.

    References
    ----------
    Zhong et al. (2023), arXiv 2311.10126, section on the shift-uniform-log2 quantizer.

    Examples
    --------
    >>> params = SulqParams(1.0, 0.0, 1.0, 2)
    >>> sulq_decode(np.arange(4), params)
    array([0., 0., 1., 1.])
    >>> sulq_decode(np.arange(4), params, integer_exponent=False).round(4)
    array([0.    , 0.2599, 0.5874, 1.    ])
    """
    q = _checks.integer_array(q, "q", low=0, high=params.highest)
    return _power(q.astype(np.float64), params, integer_exponent) - params.shift


def _attention(a: AnyArray) -> AnyArray:
    a = _checks.float_array(a, "a")
    _checks.finite(a, "a")
    if (a < 0).any():
        _checks.fail("a", "numbers >= 0", a.min())
    return a


def _unclipped(a: AnyArray, shift: AnyArray | float, params: SulqParams) -> AnyArray:
    return np.asarray(np.rint((np.log2(a + shift) - params.low) / params.step))


def _power(q: AnyArray, params: SulqParams, integer_exponent: bool) -> AnyArray:
    exponent = q * params.step + params.low
    if integer_exponent:
        return np.asarray(np.ldexp(np.ones((), q.dtype), np.rint(exponent).astype(np.int32)))
    return np.asarray(np.exp2(exponent))


def sulq_fake_quantize(
    a: Array[F],
    shift: Array[F] | float,
    params: SulqParams,
    *,
    integer_exponent: bool = True,
    clamp: bool = False,
) -> Array[F]:
    """Encode and decode, with a shift that can be learned.

    Parameters
    ----------
    a : array
        Finite, >= 0.
    shift : array () of the dtype of ``a``, or float, > 0
        Used in the place of ``params.shift``; the range of ``params`` stays.
    params : SulqParams
    integer_exponent : bool
        As in :func:`sulq_decode`.
    clamp : bool
        Cut the result to [0, 1].

    Returns
    -------
    array, shape and dtype of ``a``

    Raises
    ------
    TypeError, ValueError
        If ``a`` is negative or not finite, or ``shift`` is not a positive number of the dtype of ``a``.

    References
    ----------
    Zhong et al. (2023), arXiv 2311.10126, section on the shift-uniform-log2 quantizer.

    Examples
    --------
    >>> sulq_fake_quantize(np.array([0.0, 0.25, 0.5, 1.0]), 1.0, SulqParams(1.0, 0.0, 1.0, 2))
    array([0., 0., 1., 1.])
    """
    return sulq_fake_quantize_vjp(a, shift, params, integer_exponent=integer_exponent, clamp=clamp)[0]


def sulq_fake_quantize_vjp(
    a: Array[F],
    shift: Array[F] | float,
    params: SulqParams,
    *,
    integer_exponent: bool = True,
    clamp: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`sulq_fake_quantize` and its straight-through pullback ``dy -> (da, dshift)``.

    Parameters, errors and references are those of :func:`sulq_fake_quantize`.
    """
    a = _attention(a)
    shift = np.asarray(shift, a.dtype) if isinstance(shift, float) else _checks.float_array(shift, "shift", ndim=0)
    _checks.same_dtype("a", a, shift=shift)
    _checks.positive(float(shift), "shift")
    unclipped = _unclipped(a, shift, params)
    q = np.clip(unclipped, 0, params.highest).astype(a.dtype)
    power = _power(q, params, integer_exponent)
    y: Array[F] = (power - shift).astype(a.dtype)
    kept = (y >= 0) & (y <= 1) if clamp else np.ones(y.shape, bool)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        # With both rounding errors held, the exponent is log2(a + shift) + c and
        # y = 2^c (a + shift) - shift: slope 2^c = power / (a + shift). A clipped exponent is constant.
        dy = np.where(kept, dy, 0)
        slope = np.where(q == unclipped, power / (a + shift), 0)
        da = (dy * slope).astype(a.dtype)
        return da, np.asarray((dy * (slope - 1)).sum(), a.dtype)

    return np.clip(y, 0, 1) if clamp else y, pullback


def sulq_matmul(q: IntArray, v: Array[F], params: SulqParams) -> Array[F]:
    """Multiply decoded attention weights by values: shifts, and one correction for all queries.

    Parameters
    ----------
    q : int array (..., T, S)
        Codes of :func:`sulq_encode`.
    v : array (..., S, C)
        Values.
    params : SulqParams

    Returns
    -------
    array (..., T, C), dtype of ``v``

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit or a code is beyond the highest.

    Notes
    -----
    ``decode(q) @ v = 2^e @ v - shift * sum(v, rows)`` with integer exponents ``e``.

    Examples
    --------
    >>> sulq_matmul(np.array([[0, 3]]), np.array([[1.0], [2.0]]), SulqParams(1.0, 0.0, 1.0, 2))
    array([[2.]])
    """
    return sulq_matmul_vjp(q, v, params)[0]


def sulq_matmul_vjp(q: IntArray, v: Array[F], params: SulqParams) -> tuple[Array[F], Pullback]:
    """Return :func:`sulq_matmul` and its pullback ``dy -> (dv,)``."""
    q = _checks.integer_array(q, "q", low=0, high=params.highest)
    v = _checks.float_array(v, "v", min_ndim=2)
    _checks.shape(v, "v", (*q.shape[:-2], q.shape[-1], v.shape[-1]))
    # Powers of 2 are exact in either format.
    power = _power(q.astype(np.float64), params, True).astype(v.dtype)
    y: Array[F] = power @ v - v.dtype.type(params.shift) * v.sum(axis=-2, keepdims=True)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # Every query's output contains -shift times every row of v.
        return (power.swapaxes(-1, -2) @ dy - v.dtype.type(params.shift) * dy.sum(axis=-2, keepdims=True),)

    return y, pullback


def log2_fake_quantize(a: Array[F], scale: Array[F] | float, *, bits: int) -> Array[F]:
    """Quantize to powers of 2 and dequantize: what the shift is an improvement of.

    Parameters
    ----------
    a : array
        Finite, >= 0.
    scale : array () of the dtype of ``a``, or float, > 0
        What code 0 stands for.
    bits : int, 2 to 8

    Returns
    -------
    array, shape and dtype of ``a``
        ``scale 2^(-q)`` with ``q = clip(round(-log2(a / scale)), 0, 2^bits - 1)``; 0 where the code would be
        ``2^bits`` or more.

    Raises
    ------
    TypeError, ValueError
        If ``a`` is negative or not finite, or ``scale`` or ``bits`` are out of their range.

    Examples
    --------
    >>> log2_fake_quantize(np.array([1.0, 0.3, 0.01, 0.0]), 1.0, bits=2)
    array([1.  , 0.25, 0.  , 0.  ])
    """
    return log2_fake_quantize_vjp(a, scale, bits=bits)[0]


def log2_fake_quantize_vjp(a: Array[F], scale: Array[F] | float, *, bits: int) -> tuple[Array[F], Pullback]:
    """Return :func:`log2_fake_quantize` and its straight-through pullback ``dy -> (da, dscale)``."""
    q, zeroed, r, step = log_codes(a, scale, bits, 1)
    a = np.asarray(a)
    y: Array[F] = np.where(zeroed, 0, np.ldexp(step, -q.astype(np.int32))).astype(a.dtype)
    above = r < 0

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        # With the rounding error c held, y = scale 2^(log2(a / scale) - c) = a 2^-c; above the scale, y = scale.
        slope = np.divide(y, a, out=np.zeros_like(a), where=~zeroed & ~above)
        return (dy * slope).astype(a.dtype), np.asarray(np.where(above, dy, 0).sum(), a.dtype)

    return y, pullback


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The feed-forward block ``gelu(layer_norm(x) @ inner_weight + inner_bias) @ outer_weight + outer_bias``.

    Parameters
    ----------
    gain, bias : arrays (D,)
        Of the layer norm.
    inner_weight, inner_bias : arrays (D, I), (I,)
    outer_weight, outer_bias : arrays (I, N), (N,)
    """

    gain: AnyArray
    bias: AnyArray
    inner_weight: AnyArray
    inner_bias: AnyArray
    outer_weight: AnyArray
    outer_bias: AnyArray


TRAINED = ("inner_weight", "inner_bias", "outer_weight", "outer_bias")


@dataclass(frozen=True, eq=False)
class FeedForwardGrids:
    """The grids of a quantized :class:`FeedForward` block.

    Parameters
    ----------
    input_scale, input_zero : arrays () or (D,)
        Of the layer norm's output.
    hidden_scale, hidden_zero : arrays ()
        Of the GELU's output.
    bits : int
        Of activations.
    inner_scale, outer_scale : arrays (1, I), (1, N), or None
        Of the weights, for each output; None leaves the weights in float.
    weight_bits : int
    """

    input_scale: AnyArray
    input_zero: AnyArray
    hidden_scale: AnyArray
    hidden_zero: AnyArray
    bits: int
    inner_scale: AnyArray | None = None
    outer_scale: AnyArray | None = None
    weight_bits: int = 8


def quantized_feed_forward(block: FeedForward, x: Array[F], *, grids: FeedForwardGrids | None = None) -> Array[F]:
    """Apply a feed-forward block, quantized if grids are given.

    Parameters
    ----------
    block : FeedForward
    x : array (T, D)
    grids : FeedForwardGrids, optional

    Returns
    -------
    array (T, N), dtype of ``x``

    Examples
    --------
    >>> one, none = np.ones(2), np.zeros(2)
    >>> block = FeedForward(one, none, np.eye(2), none, np.eye(2), none)
    >>> quantized_feed_forward(block, np.array([[1.0, 3.0]])).round(4)
    array([[-0.1587,  0.8413]])
    """
    return quantized_feed_forward_vjp(block, x, grids=grids)[0]


def quantized_feed_forward_vjp(
    block: FeedForward, x: Array[F], *, grids: FeedForwardGrids | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`quantized_feed_forward` and its pullback ``dy -> (dblock, dx)``.

    All grids are held and all roundings passed straight through.
    """
    normed, pull_norm = layer_norm_vjp(x, block.gain, block.bias)
    pull_input = pull_hidden = pull_inner_weight = pull_outer_weight = None
    inner_weight, outer_weight = block.inner_weight, block.outer_weight
    if grids is not None:
        normed, pull_input = fake_quantize_grid_vjp(normed, grids.input_scale, grids.input_zero, bits=grids.bits)
        if grids.inner_scale is not None and grids.outer_scale is not None:
            bits = grids.weight_bits
            inner_weight, pull_inner_weight = fake_quantize_vjp(inner_weight, grids.inner_scale, 0, bits=bits)
            outer_weight, pull_outer_weight = fake_quantize_vjp(outer_weight, grids.outer_scale, 0, bits=bits)
    summed, pull_inner = linear_vjp(normed, inner_weight, block.inner_bias)
    hidden, pull_gelu = gelu_vjp(summed)
    if grids is not None:
        hidden, pull_hidden = fake_quantize_grid_vjp(hidden, grids.hidden_scale, grids.hidden_zero, bits=grids.bits)
    y, pull_outer = linear_vjp(hidden, outer_weight, block.outer_bias)

    def pullback(dy: Array[F]) -> tuple[FeedForward, Array[F]]:
        dhidden, douter, douter_bias = pull_outer(dy)
        if pull_hidden is not None:
            (dhidden,) = pull_hidden(dhidden)
        dnormed, dinner, dinner_bias = pull_inner(*pull_gelu(dhidden))
        if pull_input is not None:
            (dnormed,) = pull_input(dnormed)
        if pull_inner_weight is not None and pull_outer_weight is not None:
            dinner, douter = pull_inner_weight(dinner)[0], pull_outer_weight(douter)[0]
        dx, dgain, dbias = pull_norm(dnormed)
        return FeedForward(dgain, dbias, dinner, dinner_bias, douter, douter_bias), dx

    return y, pullback


@dataclass(frozen=True, eq=False)
class SmoothOptimization:
    """What :func:`smooth_optimize` found.

    Parameters
    ----------
    block : FeedForward
        Parameters after the last stage; ``quantized_feed_forward(block, x, grids=grids)`` applies them.
    grids : FeedForwardGrids
    n_iter : int
        Steps of the two optimizations together.
    history : dict of arrays
        ``loss``: mean squared error at every step, before it.
    """

    block: FeedForward
    grids: FeedForwardGrids
    n_iter: int
    history: Mapping[str, AnyArray]


def smooth_optimize(
    block: FeedForward,
    x: Array[F],
    *,
    weight_bits: int,
    bits: int,
    steps: tuple[int, int] = (200, 200),
    learning_rate: float = 1e-4,
    batch_size: int | None = None,
    x_quantized: Array[F] | None = None,
    channelwise: bool = True,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> SmoothOptimization:
    """Quantize a block in three stages, each starting where the one before left a smooth problem.

    Parameters
    ----------
    block : FeedForward
    x : array (T, D)
        Inputs of the block in the float network.
    weight_bits, bits : int, 2 to 16
        Of weights and activations.
    steps : two ints >= 0
        Steps of Adam in stages 1 and 3.
    learning_rate : float > 0
        Annealed to 0 within each stage by a cosine. With 1e-3 and 4-bit weights, steps are so large that weights keep
        crossing the same ties, and the loss rises.
    batch_size : int >= 1, optional
        Rows drawn with ``rng`` for a step; all of them by default.
    x_quantized : array (T, D), optional
        Inputs of the block in the network whose earlier blocks are quantized, for stage 3; ``x`` by default.
    channelwise : bool
        False leaves out what makes it smooth: one min-max grid for the layer norm's output from the start.
    rng : numpy.random.Generator
        Needed with ``batch_size``.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the stage.

    Returns
    -------
    SmoothOptimization

    Raises
    ------
    TypeError, ValueError
        If a shape or an option does not fit.

    Notes
    -----
    1. Weights in float, activations quantized, the layer norm's with a grid for each channel; weights and biases
       learn to undo the damage.
    2. :func:`reparameterize_layernorm` turns the channels' grids into one. Nothing changes but the scale of weights.
    3. Weights are quantized too, with a scale for each output, and trained straight through.

    Grids are held while training. The loss is the mean squared error to the float block's output on ``x``.

    References
    ----------
    Zhong et al. (2023), arXiv 2311.10126, section on the smooth optimization strategy.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> shapes = ((6,), (6,), (6, 8), (8,), (8, 6), (6,))
    >>> block = FeedForward(*(rng.standard_normal(shape) for shape in shapes))
    >>> found = smooth_optimize(block, rng.standard_normal((64, 6)), weight_bits=4, bits=4, steps=(50, 50), learning_rate=1e-3)
    >>> found.n_iter, bool(found.history["loss"][-1] < found.history["loss"][50])
    (100, True)
    """
    x = _checks.float_array(x, "x", ndim=2)
    later = x if x_quantized is None else _checks.float_array(x_quantized, "x_quantized")
    _checks.shape(later, "x_quantized", x.shape)
    _checks.same_dtype("x", x, x_quantized=later)
    _checks.not_empty(x, "x", (0, 1))
    check_bits(weight_bits, "weight_bits")
    for count in steps:
        _checks.whole(count, "steps", low=0)
    if batch_size is not None:
        _checks.whole(batch_size, "batch_size", low=1, high=len(x))
        rng = _checks.generator(rng)
    target = quantized_feed_forward(block, x)
    monitor = Monitor("smooth_optimize", callback=callback)

    def optimize(block: FeedForward, grids: FeedForwardGrids, inputs: AnyArray, count: int) -> FeedForward:
        descent = Descent(dict.fromkeys(TRAINED, learning_rate))
        for i in range(count):
            rows = slice(None) if batch_size is None or rng is None else rng.choice(len(x), batch_size, replace=False)
            y, pull = quantized_feed_forward_vjp(block, inputs[rows], grids=grids)
            error = y - target[rows]
            stop = monitor.record(loss=float(np.mean(error * error)))
            dblock, _ = pull(2 / error.size * error)
            moved = descent.step(vars(block), vars(dblock), share=0.5 * (1 + math.cos(math.pi * i / count)))
            block = FeedForward(**moved)
            if stop:
                break
        return block

    grids = _activation_grids(block, x, bits, channelwise)
    block = optimize(block, grids, x, steps[0])
    if channelwise:
        made = reparameterize_layernorm(
            block.gain, block.bias, block.inner_weight, block.inner_bias, grids.input_scale, grids.input_zero
        )
        block = replace(block, gain=made.gain, bias=made.bias, inner_weight=made.weight, inner_bias=made.linear_bias)
        grids = replace(grids, input_scale=made.scale, input_zero=made.zero)
    inner_scale, outer_scale = (
        affine_qparams(weight, bits=weight_bits, axis=1, method="mse")[0]
        for weight in (block.inner_weight, block.outer_weight)
    )
    grids = replace(grids, weight_bits=weight_bits, inner_scale=inner_scale, outer_scale=outer_scale)
    block = optimize(block, grids, later, steps[1])
    return SmoothOptimization(block, grids, monitor.n_iter, monitor.history())


def _activation_grids(block: FeedForward, x: AnyArray, bits: int, channelwise: bool) -> FeedForwardGrids:
    normed = layer_norm(x, block.gain, block.bias)
    hidden, _ = gelu_vjp(linear_vjp(normed, block.inner_weight, block.inner_bias)[0])
    layer = grid_of_range(*choose_range(normed, bits=bits), bits=bits)
    first = calibrate_channelwise(normed, bits=bits) if channelwise else layer
    return FeedForwardGrids(*first, *grid_of_range(*choose_range(hidden, bits=bits), bits=bits), bits)
