"""Batch-channel normalization and weight standardization, for batches of very few images.

weight_hat = (weight - mean) / sqrt(var + eps)                                    (each output filter)
x_dot      = gain * (x - mean) / sqrt(var + eps) + bias      (each channel; batch or running estimates)
y          = group_gain * (x_dot - mean) / sqrt(var + eps) + group_bias   (each group of each example)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.norms._group_norm import standardize

METHOD = Method(
    title="Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    authors="Qiao, Wang, Liu, Shen, Yuille",
    year=2019,
    arxiv="1903.10520",
    functions=("BatchChannelState", "batch_channel_norm", "batch_channel_norm_estimated", "weight_standardize"),
    chapter="norms/batch_channel_norm",
)


@dataclass(frozen=True)
class BatchChannelState:
    """Running estimates of every channel's mean and variance.

    Parameters
    ----------
    mean, var : arrays (C,)
        0 and 1 before the first batch.

    Examples
    --------
    >>> BatchChannelState.create(2)
    BatchChannelState(mean=array([0., 0.]), var=array([1., 1.]))
    """

    mean: AnyArray
    var: AnyArray

    @classmethod
    def create(cls, channels: int, dtype: Any = np.float64) -> BatchChannelState:
        """Return the state before the first batch."""
        channels = _checks.whole(channels, "channels", low=1)
        return cls(np.zeros(channels, dtype), np.ones(channels, dtype))


def weight_standardize(weight: Array[F], *, eps: float = 1e-5, ddof: int = 1) -> Array[F]:
    """Give every output filter mean 0 and variance 1.

    Parameters
    ----------
    weight : array (O, ...)
        Filters, for example (O, C, A, B).
    eps : float > 0
        Added to the variance.
    ddof : 0 or 1
        The sum of squares is divided by the number of entries less ``ddof``.

    Returns
    -------
    array, shape and dtype of ``weight``

    Raises
    ------
    TypeError
        If ``weight`` is neither float32 nor float64, or ``ddof`` is not an integer.
    ValueError
        If a filter has no more than ``ddof`` entries, or an option is out of range.

    Notes
    -----
    ``(weight - mean) / sqrt(var + eps)`` for every filter, to be used as the filter of a convolution. The
    gradient flows through mean and variance. A constant filter gives 0.

    References
    ----------
    Qiao et al. (2019), arXiv 1903.10520, equations 7 and 8.

    Examples
    --------
    >>> weight_standardize(np.array([[1.0, 2.0, 3.0, 4.0]]), ddof=0).round(3)
    array([[-1.342, -0.447,  0.447,  1.342]])
    """
    return weight_standardize_vjp(weight, eps=eps, ddof=ddof)[0]


def weight_standardize_vjp(weight: Array[F], *, eps: float = 1e-5, ddof: int = 1) -> tuple[Array[F], Pullback]:
    """Return :func:`weight_standardize` and its pullback ``dweight_hat -> (dweight,)``."""
    weight = _checks.float_array(weight, "weight", min_ndim=2)
    _checks.positive(eps, "eps")
    ddof = _checks.whole(ddof, "ddof", low=0, high=1)
    entries = int(np.prod(weight.shape[1:]))
    if entries <= ddof:
        _checks.fail("weight", f"more than {ddof} entries in a filter", f"shape {weight.shape}")
    standard, back = standardize(weight, tuple(range(1, weight.ndim)), eps, ddof)
    weight_hat: Array[F] = standard.astype(weight.dtype)

    def pullback(dweight_hat: Array[F]) -> tuple[Array[F]]:
        # Layer norm's pullback on each filter; with ddof the mean of dweight_hat * weight_hat, and only that
        # one, is a sum divided by the entries less ddof.
        return (back(np.asarray(dweight_hat)).astype(weight.dtype),)

    return weight_hat, pullback


def batch_channel_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> Array[F]:
    """Normalize by batch statistics, then each example by groups of channels: the form for large batches.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps.
    gain, bias : arrays (C,)
        Scale and shift after the batch step; 1 and 0 at initialization.
    group_gain, group_bias : arrays (groups,)
        Scale and shift after the group step; 1 and 0 at initialization.
    groups : int >= 1
        Number of groups; it divides C.
    eps : float > 0
        Added to both variances.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``groups`` is not an integer.
    ValueError
        If ``groups`` does not divide C, there is nothing to average over, a shape is wrong or ``eps <= 0``.

    Notes
    -----
    Batch norm followed by group norm with one gain and bias a group. In use, call
    :func:`batch_channel_norm_estimated` with running statistics and ``training=False``.

    References
    ----------
    Qiao et al. (2019), arXiv 1903.10520, section 4 and algorithm 1.

    Examples
    --------
    >>> x = np.array([[1.0, 5.0], [3.0, 1.0]])
    >>> batch_channel_norm(x, np.ones(2), np.zeros(2), np.ones(1), np.zeros(1), groups=1).round(3)
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    return batch_channel_norm_vjp(x, gain, bias, group_gain, group_bias, groups=groups, eps=eps)[0]


def batch_channel_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]:
    """Return :func:`batch_channel_norm` and its pullback.

    The pullback is ``dy -> (dx, dgain, dbias, dgroup_gain, dgroup_bias)``.
    """
    x = _checked(x, gain, bias, group_gain, group_bias, groups, eps)
    places = _places(x)
    x_hat, back_batch = standardize(x, places, eps)
    scale, shift = np.expand_dims(gain, places), np.expand_dims(bias, places)
    wide, back_groups = _group_step(scale * x_hat + shift, group_gain, group_bias, groups, eps)
    y: Array[F] = wide.astype(np.result_type(x, gain, bias, group_gain, group_bias), copy=False)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        ddot, dgroup_gain, dgroup_bias = back_groups(np.asarray(dy))
        grads = (
            back_batch(ddot * scale),
            (ddot * x_hat).sum(axis=places),
            ddot.sum(axis=places),
            dgroup_gain,
            dgroup_bias,
        )
        return tuple(grad.astype(x.dtype) for grad in grads)

    return y, pullback


def batch_channel_norm_estimated(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    state: BatchChannelState,
    *,
    groups: int = 32,
    rate: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
) -> tuple[Array[F], BatchChannelState]:
    """Normalize by running estimates, then each example by groups: the form for micro-batches and for use.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps; one pixel is enough.
    gain, bias : arrays (C,)
        Scale and shift after the channel step.
    group_gain, group_bias : arrays (groups,)
        Scale and shift after the group step.
    state : BatchChannelState
        The estimates of mean and variance before this batch.
    groups : int >= 1
        Number of groups; it divides C.
    rate : float in [0, 1]
        Weight of this batch in the estimates; 0 freezes them.
    eps : float > 0
        Added to both variances.
    training : bool
        Whether the estimates are updated (before they are used).

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : BatchChannelState
        The estimates that ``y`` was made with.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``groups`` is not an integer.
    ValueError
        If ``groups`` does not divide C, there is nothing to average over, a shape is wrong, an estimated
        variance is negative or an option is out of range.

    Notes
    -----
    The batch's mean moves the estimate of the mean; its mean square *about the old estimate* moves that of
    the variance. This is a variance plus a squared error of the mean, so it stays positive for a single pixel.
    The estimates are constants for the gradient.

    References
    ----------
    Qiao et al. (2019), arXiv 1903.10520, algorithm 1.

    Examples
    --------
    >>> state = BatchChannelState.create(2)
    >>> x, one, zero = np.array([[1.0, 5.0]]), np.ones(2), np.zeros(2)
    >>> y, state = batch_channel_norm_estimated(x, one, zero, one[:1], zero[:1], state, groups=1)
    >>> state
    BatchChannelState(mean=array([0.1, 0.5]), var=array([1. , 3.4]))
    """
    return batch_channel_norm_estimated_vjp(
        x, gain, bias, group_gain, group_bias, state, groups=groups, rate=rate, eps=eps, training=training
    )[0]


def batch_channel_norm_estimated_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    state: BatchChannelState,
    *,
    groups: int = 32,
    rate: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
) -> tuple[tuple[Array[F], BatchChannelState], Pullback]:
    """Return :func:`batch_channel_norm_estimated` and its pullback.

    The pullback is ``dy -> (dx, dgain, dbias, dgroup_gain, dgroup_bias)``, exact for constant estimates; the
    state takes no cotangent and gets none.
    """
    x = _checked(x, gain, bias, group_gain, group_bias, groups, eps)
    _checks.in_range(rate, "rate", 0, 1)
    mean, var = _checks.float_array(state.mean, "state.mean"), _checks.float_array(state.var, "state.var")
    for name, array in (("state.mean", mean), ("state.var", var)):
        _checks.same_dtype("x", x, **{name: array})
        _checks.shape(array, name, (x.shape[1],))
    if var.min() < 0:
        _checks.fail("state.var", "values >= 0", var.min())
    places = _places(x)
    if training:
        # Update, then use. The second moment is taken about the estimate of before.
        wide = x.real.astype(np.float64, copy=False)
        moment = ((wide - np.expand_dims(mean, places)) ** 2).mean(axis=places)
        mean = ((1 - rate) * mean + rate * wide.mean(axis=places)).astype(mean.dtype)
        var = ((1 - rate) * var + rate * moment).astype(var.dtype)
    centre, inv_std = np.expand_dims(mean, places), np.expand_dims(1 / np.sqrt(var.astype(np.float64) + eps), places)
    x_hat = (x - centre) * inv_std
    scale, shift = np.expand_dims(gain, places), np.expand_dims(bias, places)
    out, back_groups = _group_step(scale * x_hat + shift, group_gain, group_bias, groups, eps)
    y: Array[F] = out.astype(np.result_type(x, gain, bias, group_gain, group_bias), copy=False)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        ddot, dgroup_gain, dgroup_bias = back_groups(np.asarray(dy))
        # An affine map per channel: the estimates hold a share `rate` of this very batch, but are constants.
        grads = (
            ddot * scale * inv_std,
            (ddot * x_hat).sum(axis=places),
            ddot.sum(axis=places),
            dgroup_gain,
            dgroup_bias,
        )
        return tuple(grad.astype(x.dtype) for grad in grads)

    return (y, BatchChannelState(mean, var)), pullback


def _group_step(
    x: AnyArray, group_gain: AnyArray, group_bias: AnyArray, groups: int, eps: float
) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, AnyArray, AnyArray]]]:
    """Group norm with one gain and bias a group, in float64."""
    blocks = (len(x), groups, x[0].size // groups)
    x_hat, back = standardize(x.reshape(blocks), (2,), eps)
    scale = group_gain[:, None]

    def pullback(dy: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        dblocks = dy.reshape(blocks)
        dx = back(dblocks * scale).reshape(x.shape)
        return dx, (dblocks * x_hat).sum(axis=(0, 2)), dblocks.sum(axis=(0, 2), dtype=x_hat.dtype)

    return (scale * x_hat + group_bias[:, None]).reshape(x.shape), pullback


def _checked(
    x: AnyArray, gain: AnyArray, bias: AnyArray, group_gain: AnyArray, group_bias: AnyArray, groups: int, eps: float
) -> AnyArray:
    x = _checks.float_array(x, "x", min_ndim=2)
    groups = _checks.whole(groups, "groups", low=1)
    channels = x.shape[1]
    if channels % groups:
        _checks.fail("groups", f"a divisor of the {channels} channels", groups)
    sizes = {"gain": channels, "bias": channels, "group_gain": groups, "group_bias": groups}
    for (name, size), array in zip(sizes.items(), (gain, bias, group_gain, group_bias), strict=True):
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (size,))
    _checks.not_empty(x, "x", range(x.ndim))
    _checks.positive(eps, "eps")
    return x


def _places(x: AnyArray) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))
