"""RepQuant: calibrate with an accurate quantizer, then turn it exactly into a simple one.

LayerNorm outputs, one scale a channel -> one scale a layer:
    gain' = gain / r1      bias' = bias / r1 - r2      weight' = r1 weight      linear_bias' = linear_bias + r2' weight'
Softmax outputs, powers of sqrt(2) -> powers of 2:
    scale 2^(-q / 2) = (scale, or sqrt(2) scale for odd q) 2^(-ceil(q / 2))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.quantizers._affine import _positive_scale
from refnorm.quantizers._calibration import (
    PERCENTILES,
    check_bits,
    choose_range,
    fake_quantize_range_vjp,
    grid_of_range,
)
from refnorm.quantizers._descent import Descent
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via Scale "
    "Reparameterization",
    authors="Li, Liu, Zhang, Gu",
    year=2024,
    arxiv="2402.05628",
    functions=(
        "calibrate_channelwise",
        "uniform_codes",
        "Reparameterized",
        "reparameterize_layernorm",
        "log_sqrt2_quantize",
        "log_sqrt2_dequantize",
        "log2_reparam_dequantize",
        "log_sqrt2_fake_quantize",
        "DualClipping",
        "fit_dual_clipping",
    ),
    chapter="quantizers/rep_quant",
)

MOST_LOG_BITS = 8
"""Codes are uint8; 2^(-255 / 2) is below what a float32 softmax holds anyway."""

FIRST_CLIP_LOGIT = 4.0
"""sigmoid(4) = 0.982: the clipping range begins just inside the extremes, where the sigmoid still has a slope."""


def calibrate_channelwise(
    x: Array[F], *, bits: int, percentiles: Sequence[float] = PERCENTILES
) -> tuple[Array[F], Array[F]]:
    """Choose a scale and a zero point for each channel.

    Parameters
    ----------
    x : array (..., D)
        Outputs of the layer norm, finite.
    bits : int, 2 to 16
        Width of a code; codes run from 0 to ``2^bits - 1``.
    percentiles : floats in (0.5, 1]
        Of the ranges between the quantiles ``1 - p`` and ``p``, each channel takes the one with the least
        squared error.

    Returns
    -------
    scale : array (D,), dtype of ``x``, > 0
    zero : array (D,), dtype of ``x``
        Whole numbers, the code of 0, which may lie off the grid where a channel's range does not hold 0.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is empty, not finite or of another dtype, or an option is out of its range.

    Notes
    -----
    ``scale = (high - low) / (2^bits - 1)``, ``zero = round(-low / scale)``. A constant channel, whose range is
    empty, takes the mean of the other scales.

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on scale reparameterization for LayerNorm activations.

    Examples
    --------
    >>> x = np.array([[0.0, -6.0], [3.0, 9.0]])
    >>> calibrate_channelwise(x, bits=2, percentiles=(1.0,))
    (array([1., 5.]), array([0., 1.]))
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    low, high = choose_range(
        x, bits=bits, group=1, method="best_percentile", percentiles=percentiles, include_zero=False
    )
    scale, _ = grid_of_range(low, high, bits=bits)
    constant = high == low
    if constant.any():
        scale = np.where(constant, scale[~constant].mean() if not constant.all() else 1, scale).astype(x.dtype)
    zero: Array[F] = np.rint(-low / scale).astype(x.dtype) + x.dtype.type(0)
    return scale, zero


def uniform_codes(x: Array[F], scale: Array[F], zero: Array[F], *, bits: int) -> IntArray:
    """Return ``clip(round(x / scale) + zero, 0, 2^bits - 1)``.

    Parameters
    ----------
    x : array (..., D)
    scale, zero : arrays () or (D,), dtype of ``x``
        As :func:`calibrate_channelwise` returns them, or a layer's. ``zero`` holds whole numbers, on the grid
        or not.
    bits : int, 2 to 16

    Returns
    -------
    int32 array of the shape of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit, ``scale`` is not positive or ``zero`` not whole.

    Examples
    --------
    >>> uniform_codes(np.array([[0.0, 9.0]]), np.array([1.0, 5.0]), np.array([0.0, 1.0]), bits=2)
    array([[0, 3]], dtype=int32)
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.finite(x, "x")
    scale, zero = _grid(scale, zero, x.shape[-1], x)
    if (zero != np.rint(zero)).any():
        _checks.fail("zero", "whole numbers", zero)
    codes: IntArray = np.clip(np.rint(x / scale) + zero, 0, 2 ** check_bits(bits) - 1).astype(np.int32)
    return codes


def _grid(scale: AnyArray, zero: AnyArray, channels: int, like: AnyArray) -> tuple[AnyArray, AnyArray]:
    scale, zero = _checks.float_array(scale, "scale"), _checks.float_array(zero, "zero")
    _checks.same_dtype("x", like, scale=scale, zero=zero)
    for array, name in ((scale, "scale"), (zero, "zero")):
        if array.shape:
            _checks.shape(array, name, (channels,))
        _checks.finite(array, name)
    if not (scale > 0).all():
        _checks.fail("scale", "numbers > 0", scale)
    return scale, zero


@dataclass(frozen=True, eq=False)
class Reparameterized:
    """A layer norm and the linear layer behind it, after :func:`reparameterize_layernorm`.

    Parameters
    ----------
    gain, bias : arrays (D,)
        Of the layer norm.
    weight : array (D, N)
    linear_bias : array (N,)
    scale, zero : arrays ()
        The one grid for all channels.
    r1, r2 : arrays (D,)
        Each channel was divided by ``r1`` and lowered by ``r2``.
    """

    gain: AnyArray
    bias: AnyArray
    weight: AnyArray
    linear_bias: AnyArray
    scale: AnyArray
    zero: AnyArray
    r1: AnyArray
    r2: AnyArray


def reparameterize_layernorm(
    gain: Array[F],
    bias: Array[F],
    weight: Array[F],
    linear_bias: Array[F],
    scale: Array[F],
    zero: Array[F],
    *,
    round_zero: bool = True,
) -> Reparameterized:
    """Trade a grid for each channel for one grid, by changing the layers on both sides of it.

    Parameters
    ----------
    gain, bias : arrays (D,)
        Of the layer norm ``x = x_hat * gain + bias``.
    weight : array (D, N)
        Of the linear layer ``x @ weight + linear_bias``.
    linear_bias : array (N,)
    scale, zero : arrays (D,)
        From :func:`calibrate_channelwise`; ``scale > 0``.
    round_zero : bool
        Round the mean of the zero points, so that codes stay integers. (The authors' earlier code does not.)

    Returns
    -------
    Reparameterized

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit or a scale is not positive.

    Notes
    -----
    With the means ``s`` of the scales and ``z`` of the zero points: ``r1 = scale / s``, ``r2 = s (z - zero)``,
    so that the linear layer gets ``x / r1 - r2``. Its output is what it was, and codes on the grid ``(s, z)`` are
    those of ``x`` on the channels' grids, because ``x' / s = x / scale + zero - z`` and ``zero - z`` is whole.

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on scale reparameterization for LayerNorm activations.

    Examples
    --------
    >>> ones, none = np.ones(2), np.zeros(2)
    >>> made = reparameterize_layernorm(ones, none, np.eye(2), none, np.array([0.1, 0.4]), np.array([3.0, 7.0]))
    >>> float(made.scale), float(made.zero), made.r1, made.r2
    (0.25, 5.0, array([0.4, 1.6]), array([ 0.5, -0.5]))
    """
    return reparameterize_layernorm_vjp(gain, bias, weight, linear_bias, scale, zero, round_zero=round_zero)[0]


def reparameterize_layernorm_vjp(
    gain: Array[F],
    bias: Array[F],
    weight: Array[F],
    linear_bias: Array[F],
    scale: Array[F],
    zero: Array[F],
    *,
    round_zero: bool = True,
) -> tuple[Reparameterized, Pullback]:
    """Return :func:`reparameterize_layernorm` and its pullback.

    It maps a cotangent with the fields of :class:`Reparameterized` to
    ``(dgain, dbias, dweight, dlinear_bias, dscale, dzero)``; the rounding of the mean zero point is passed
    straight through.
    """
    gain, bias = _checks.float_array(gain, "gain", ndim=1), _checks.float_array(bias, "bias", ndim=1)
    weight, linear_bias = _checks.float_array(weight, "weight", ndim=2), _checks.float_array(linear_bias, "linear_bias")
    _checks.same_dtype("gain", gain, bias=bias, weight=weight, linear_bias=linear_bias)
    channels = gain.shape[0]
    _checks.not_empty(gain, "gain", (0,))
    _checks.shape(bias, "bias", (channels,))
    _checks.shape(weight, "weight", (channels, weight.shape[1]))
    _checks.shape(linear_bias, "linear_bias", weight.shape[1:])
    scale, zero = _checks.float_array(scale, "scale", ndim=1), _checks.float_array(zero, "zero", ndim=1)
    scale, zero = _grid(scale, zero, channels, gain)

    mean_scale, mean_zero = scale.mean(), zero.mean()
    layer_zero = np.rint(mean_zero) if round_zero else mean_zero
    r1, r2 = scale / mean_scale, mean_scale * (layer_zero - zero)
    new_weight = r1[:, None] * weight
    made = Reparameterized(
        gain / r1, bias / r1 - r2, new_weight, linear_bias + r2 @ new_weight,
        np.asarray(mean_scale), np.asarray(layer_zero), r1, r2,
    )  # fmt: skip

    def pullback(d: Reparameterized) -> tuple[AnyArray, ...]:
        # weight' is used twice, as it is and in linear_bias'.
        dnew_weight = d.weight + np.outer(r2, d.linear_bias)
        dr1 = d.r1 - (d.gain * gain + d.bias * bias) / r1**2 + (dnew_weight * weight).sum(axis=1)
        dr2 = d.r2 - d.bias + new_weight @ d.linear_bias
        # r1 = scale / s and r2 = s (z - zero), where s and z are means: each channel gets a share of theirs.
        dmean_scale = d.scale - (dr1 * r1).sum() / mean_scale + (dr2 * (layer_zero - zero)).sum()
        dmean_zero = d.zero + mean_scale * dr2.sum()
        return (
            d.gain / r1, d.bias / r1, r1[:, None] * dnew_weight, np.asarray(d.linear_bias),
            dr1 / mean_scale + dmean_scale / channels, dmean_zero / channels - mean_scale * dr2,
        )  # fmt: skip

    return made, pullback


def log_sqrt2_quantize(a: Array[F], scale: Array[F] | float, *, bits: int) -> tuple[Array[np.uint8], Array[np.bool_]]:
    """Replace numbers from 0 to 1 by codes that stand for powers of the square root of 2.

    Parameters
    ----------
    a : array
        Attention weights: finite, >= 0.
    scale : array () of the dtype of ``a``, or float, > 0
        What code 0 stands for; about the largest entry of ``a``.
    bits : int, 2 to 8

    Returns
    -------
    q : uint8 array of the shape of ``a``
        ``clip(round(-2 log2(a / scale)), 0, 2^bits - 1)``, ties to even.
    zero_mask : bool array
        Where the code would be ``2^bits`` or more: those stand for 0, as 0 itself does.

    Raises
    ------
    TypeError, ValueError
        If ``a`` is negative or not finite, or ``scale`` or ``bits`` are out of their range.

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on scale reparameterization for Softmax activations.

    Examples
    --------
    >>> log_sqrt2_quantize(np.array([1.0, 0.3, 0.001, 0.0]), 1.0, bits=4)
    (array([ 0,  3, 15, 15], dtype=uint8), array([False, False,  True,  True]))
    """
    return log_codes(a, scale, bits, 2)[:2]


def log_codes(
    a: AnyArray, scale: AnyArray | float, bits: int, per_octave: int
) -> tuple[Array[np.uint8], Array[np.bool_], AnyArray, AnyArray]:
    """Return codes with ``per_octave`` levels between a number and its half, the zero mask, codes before clipping, scale."""
    a = _checks.float_array(a, "a")
    _checks.finite(a, "a")
    if (a < 0).any():
        _checks.fail("a", "numbers >= 0", a.min())
    _checks.whole(bits, "bits", low=2, high=MOST_LOG_BITS)
    step = _positive_scale(scale, a.dtype, ())
    with np.errstate(divide="ignore"):
        r = np.rint(-per_octave * np.log2(a / step))
    q = np.clip(r, 0, 2**bits - 1).astype(np.uint8)
    return q, r >= 2**bits, r, step


def log_sqrt2_dequantize(q: IntArray, zero_mask: Array[np.bool_], scale: Array[F] | float) -> Array[F]:
    """Return ``scale * 2^(-q / 2)``, and 0 where ``zero_mask`` says so.

    Parameters
    ----------
    q, zero_mask
        From :func:`log_sqrt2_quantize`.
    scale : array () or float

    Returns
    -------
    array of the shape of ``q`` and the dtype of ``scale``

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on scale reparameterization for Softmax activations.

    Examples
    --------
    >>> log_sqrt2_dequantize(np.array([0, 3, 15], np.uint8), np.array([False, False, True]), 1.0).round(6)
    array([1.      , 0.353553, 0.      ])
    """
    q, step = _codes_and_scale(q, zero_mask, scale)
    # exp2 in float64: in float32 it need not be the nearest number.
    values = step * np.exp2(-q / 2.0).astype(step.dtype)
    return np.where(zero_mask, 0, values).astype(step.dtype)


def log2_reparam_dequantize(q: IntArray, zero_mask: Array[np.bool_], scale: Array[F] | float) -> Array[F]:
    """Return the same numbers as :func:`log_sqrt2_dequantize`, by shifts and one of two scales.

    Parameters and errors are those of :func:`log_sqrt2_dequantize`.

    Notes
    -----
    ``scale' 2^(-ceil(q / 2))`` with ``scale' = scale`` for even and ``sqrt(2) scale`` for odd codes.

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on scale reparameterization for Softmax activations.

    Examples
    --------
    >>> log2_reparam_dequantize(np.array([0, 3, 15], np.uint8), np.array([False, False, True]), 1.0).round(6)
    array([1.      , 0.353553, 0.      ])
    """
    q, step = _codes_and_scale(q, zero_mask, scale)
    parity_scale = np.where(q % 2 == 1, step * step.dtype.type(np.sqrt(2.0)), step)
    return np.where(zero_mask, 0, np.ldexp(parity_scale, -((q + 1) // 2))).astype(step.dtype)


def _codes_and_scale(q: IntArray, zero_mask: Array[np.bool_], scale: AnyArray | float) -> tuple[AnyArray, AnyArray]:
    q = _checks.integer_array(q, "q", low=0, high=2**MOST_LOG_BITS - 1).astype(np.int32)
    _checks.shape(np.asarray(zero_mask), "zero_mask", q.shape)
    return q, _positive_scale(scale, np.asarray(scale).dtype, ())


def log_sqrt2_fake_quantize(a: Array[F], scale: Array[F] | float, *, bits: int) -> Array[F]:
    """Quantize to powers of the square root of 2 and dequantize.

    Parameters, errors and references are those of :func:`log_sqrt2_quantize`.

    Returns
    -------
    array, shape and dtype of ``a``

    Examples
    --------
    >>> log_sqrt2_fake_quantize(np.array([1.0, 0.3, 0.0]), 1.0, bits=4).round(6)
    array([1.      , 0.353553, 0.      ])
    """
    return log_sqrt2_fake_quantize_vjp(a, scale, bits=bits)[0]


def log_sqrt2_fake_quantize_vjp(
    a: Array[F], scale: Array[F] | float, *, bits: int, unit_gradient: bool = False
) -> tuple[Array[F], Pullback]:
    """Return :func:`log_sqrt2_fake_quantize` and its straight-through pullback ``dy -> (da, dscale)``.

    Parameters, errors and references are those of :func:`log_sqrt2_fake_quantize`, and

    Parameters
    ----------
    unit_gradient : bool
        Pass ``da = dy`` where it would be ``dy * y / a``.
    """
    q, zeroed, r, step = log_codes(a, scale, bits, 2)
    a = np.asarray(a)
    y = log_sqrt2_dequantize(q, zeroed, step)
    above = r < 0

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        # With the rounding error c held, y = scale 2^(-(u + c) / 2) for u = -2 log2(a / scale): that is
        # a 2^(-c / 2), which is linear in a and does not depend on the scale. Above the scale, y = scale.
        slope = np.ones_like(a) if unit_gradient else np.divide(y, a, out=np.zeros_like(a), where=~zeroed)
        da = np.where(above | zeroed, 0, dy * slope).astype(a.dtype)
        return da, sum_to(np.where(above, dy, 0).astype(a.dtype), ())

    return y, pullback


@dataclass(frozen=True, eq=False)
class DualClipping:
    """Ranges of channels that :func:`fit_dual_clipping` learned.

    Parameters
    ----------
    lower, upper : arrays (D,)
        The range of each channel.
    scale, zero : arrays (D,)
        Its grid, for :func:`reparameterize_layernorm`.
    n_iter : int
        Steps done.
    history : dict of arrays
        ``loss``: mean squared error of the layer's output at every step, before it.
    """

    lower: AnyArray
    upper: AnyArray
    scale: AnyArray
    zero: AnyArray
    n_iter: int
    history: Mapping[str, AnyArray]


def fit_dual_clipping(
    x: Array[F],
    weight: Array[F],
    *,
    bits: int,
    n_iter: int = 200,
    learning_rate: float = 1e-2,
    callback: Callback | None = None,
) -> DualClipping:
    """Learn how much to clip at both ends of every channel, by the error of the layer's output.

    Parameters
    ----------
    x : array (T, D)
        Inputs of a linear layer.
    weight : array (D, N), dtype of ``x``
    bits : int, 2 to 16
    n_iter : int >= 1
        Steps of Adam.
    learning_rate : float > 0
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the fit.

    Returns
    -------
    DualClipping
        The best ranges that were met.

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an option does not fit.

    Notes
    -----
    ``upper = sigmoid(a) max(x, 0)`` and ``lower = sigmoid(b) min(x, 0)``, with one logit a channel and end,
    minimize ``mean((fake_quantize(x) @ weight - x @ weight)^2)``; the gradient goes straight through both
    roundings.

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on per-channel dual clipping.

    Examples
    --------
    >>> x = np.append(np.linspace(-1, 1, 50), 30.0)[:, None]
    >>> fit = fit_dual_clipping(x, np.ones((1, 1)), bits=4)
    >>> bool(fit.upper[0] < 30), fit.n_iter
    (True, 200)
    """
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    _checks.shape(weight, "weight", (x.shape[1], weight.shape[1]))
    _checks.not_empty(x, "x", (0, 1))
    _checks.finite(x, "x")
    _checks.finite(weight, "weight")
    check_bits(bits)
    _checks.whole(n_iter, "n_iter", low=1)
    largest, smallest = np.maximum(x.max(axis=0), 0), np.minimum(x.min(axis=0), 0)
    target = x @ weight
    params = {name: np.full(x.shape[1], FIRST_CLIP_LOGIT, x.dtype) for name in ("upper", "lower")}
    descent = Descent(dict.fromkeys(params, learning_rate))
    monitor = Monitor("fit_dual_clipping", callback=callback)
    best, best_loss = (smallest, largest), np.inf
    for _ in range(n_iter):
        share = {name: 1 / (1 + np.exp(-logit)) for name, logit in params.items()}
        lower, upper = share["lower"] * smallest, share["upper"] * largest
        quantized, pull = fake_quantize_range_vjp(x, lower, upper, bits=bits)
        error = quantized @ weight - target
        loss = float(np.mean(error * error))
        if loss < best_loss:
            best, best_loss = (lower, upper), loss
        if monitor.record(loss=loss):
            break
        _, dlower, dupper = pull(2 / error.size * error @ weight.T)
        grads = {
            name: d * end * share[name] * (1 - share[name])
            for name, d, end in (("lower", dlower, smallest), ("upper", dupper, largest))
        }
        params = descent.step(params, grads)
    scale, zero = grid_of_range(*best, bits=bits)
    return DualClipping(*best, scale, zero, monitor.n_iter, monitor.history())
