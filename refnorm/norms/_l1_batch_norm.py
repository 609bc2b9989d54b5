"""L1 batch normalization: the mean absolute deviation in the place of the standard deviation.

deviation = mean |x - mean(x)|                                                   (over the batch)
y = gain * (x - mean) / (scale * deviation + eps) + bias        (scale: 1, or sqrt(pi / 2) to match the std)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="L1-Norm Batch Normalization",
    authors="Wu, Li, Deng, Liu, Wu, Xie, Shi; Hoffer, Banner, Golan, Soudry",
    year=2018,
    arxiv="1802.09769",
    functions=("l1_batch_norm", "l1_batch_statistics", "update_l1_running_statistics"),
    chapter="norms/l1_batch_norm",
    paper=False,
)

STD_OVER_DEVIATION = float(np.sqrt(np.pi / 2))
"""Standard deviation over mean absolute deviation of a normal variable: E|z| = sqrt(2 / pi)."""


def l1_batch_statistics(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[Array[F], Array[F]]:
    """Mean and mean absolute deviation from it, over the given axes.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    axes : axes of ``x``
        Those that are averaged over; the others index units.

    Returns
    -------
    mean, deviation : arrays of the shape of ``x`` along the other axes, dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If an axis does not exist or is given twice, or there is nothing to average over.

    Notes
    -----
    ``deviation = mean |x - mean|``, with float64 sums. There is no square, so nothing overflows before ``x``
    itself is near the end of its range.

    References
    ----------
    Wu et al. (2018), arXiv 1802.09769, equation 5.

    Examples
    --------
    >>> l1_batch_statistics(np.array([[1.0], [2.0], [6.0]]))
    (array([3.]), array([2.]))
    """
    return l1_batch_statistics_vjp(x, axes)[0]


def l1_batch_statistics_vjp(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`l1_batch_statistics` and its pullback ``(dmean, ddeviation) -> (dx,)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    over = _checks.axes(axes, x.ndim, "axes")
    _checks.not_empty(x, "x", over)
    mean, centred, deviation = _l1_moments(x, over)

    def pullback(cotangent: tuple[Array[F], Array[F]]) -> tuple[Array[F]]:
        dmean, ddeviation = (np.expand_dims(entry, over) for entry in cotangent)
        count = x.size // mean.size
        dx = (dmean + ddeviation * _centred_sign(centred, over)) / count
        return (dx.astype(x.dtype),)

    units = tuple(size for axis, size in enumerate(x.shape) if axis not in over)
    return (mean.reshape(units).astype(x.dtype), deviation.reshape(units).astype(x.dtype)), pullback


def update_l1_running_statistics(
    running_mean: Array[F],
    running_deviation: Array[F],
    mean: Array[F],
    deviation: Array[F],
    *,
    momentum: float = 0.1,
) -> tuple[Array[F], Array[F]]:
    """Move the running statistics towards those of one more batch.

    Parameters
    ----------
    running_mean, running_deviation : arrays of one shape
        0 and 1 before the first batch.
    mean, deviation : arrays of the same shape
        From :func:`l1_batch_statistics`.
    momentum : float in [0, 1]
        Weight of the batch.

    Returns
    -------
    running_mean, running_deviation

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or the momentum is out of range.

    Notes
    -----
    Both are plain exponential averages. There is no counterpart of the variance's factor ``n / (n - 1)``:
    the bias of the mean absolute deviation depends on the distribution.

    References
    ----------
    Wu et al. (2018), arXiv 1802.09769, section III.

    Examples
    --------
    >>> update_l1_running_statistics(np.zeros(1), np.ones(1), np.array([2.0]), np.array([3.0]))
    (array([0.2]), array([1.2]))
    """
    running_mean = _checks.float_array(running_mean, "running_mean")
    others = {"running_deviation": running_deviation, "mean": mean, "deviation": deviation}
    running_deviation, mean, deviation = (_checks.float_array(array, name) for name, array in others.items())
    for name, array in (("running_deviation", running_deviation), ("mean", mean), ("deviation", deviation)):
        _checks.same_dtype("running_mean", running_mean, **{name: array})
        _checks.shape(array, name, running_mean.shape)
    _checks.in_range(momentum, "momentum", 0, 1)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_deviation + momentum * deviation,
    )


def l1_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    deviation: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
    match_std: bool = False,
) -> Array[F]:
    """Normalize each unit by its mean absolute deviation over the batch, or by given statistics.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    gain, bias : arrays of the shape of ``x`` along the axes that are not in ``axes``
        Scale and shift of each unit; 1 and 0 at initialization.
    mean, deviation : arrays of the same shape, optional
        Running statistics. Give both for inference, neither for training.
    axes : axes of ``x``
        Those that the statistics are taken over.
    eps : float > 0
        Added to the (scaled) deviation.
    match_std : bool
        Multiply the deviation by ``sqrt(pi / 2)``, which makes it the standard deviation of normal data, so
        that a network may change between this and ordinary batch norm.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape or axis is wrong, ``eps <= 0``, only one of ``mean`` and ``deviation`` is given, a
        deviation is negative, or in training there is nothing to average over.

    Notes
    -----
    ``y = gain (x - mean) / (scale deviation + eps) + bias``. The function has kinks where an entry equals
    its unit's mean; there the sign is taken as 0.

    References
    ----------
    Wu et al. (2018), arXiv 1802.09769, equations 5 to 7; Hoffer, Banner, Golan, Soudry (2018), arXiv
    1803.01814, section 4 (the factor).

    Examples
    --------
    >>> x, gain, bias = np.array([[1.0], [2.0], [6.0]]), np.ones(1), np.zeros(1)
    >>> l1_batch_norm(x, gain, bias, eps=1e-9).ravel().round(6)
    array([-1. , -0.5,  1.5])
    """
    return l1_batch_norm_vjp(x, gain, bias, mean, deviation, axes=axes, eps=eps, match_std=match_std)[0]


def l1_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    deviation: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
    match_std: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`l1_batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dmean, ddeviation)``.

    The last two entries are ``None`` in training.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    over = _checks.axes(axes, x.ndim, "axes")
    units = tuple(size for axis, size in enumerate(x.shape) if axis not in over)
    if (mean is None) != (deviation is None):
        _checks.fail("mean, deviation", "both for inference or neither for training", "only one of them")
    for name, array in (("gain", gain), ("bias", bias), ("mean", mean), ("deviation", deviation)):
        if array is not None or name in ("gain", "bias"):
            array = _checks.float_array(array, name)
            _checks.same_dtype("x", x, **{name: array})
            _checks.shape(array, name, units)
    _checks.positive(eps, "eps")
    gain_, bias_ = np.expand_dims(gain, over), np.expand_dims(bias, over)
    factor = STD_OVER_DEVIATION if match_std else 1.0

    if mean is None or deviation is None:
        _checks.not_empty(x, "x", over)
        _, centred, spread = _l1_moments(x, over)
    else:
        if deviation.size and deviation.real.min() < 0:
            _checks.fail("deviation", "values >= 0", deviation.real.min())
        centred, spread = x - _wide(np.expand_dims(mean, over)), _wide(np.expand_dims(deviation, over))
    inv_scale = 1 / (factor * spread + eps)
    x_hat = centred * inv_scale

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F], Array[F] | None, Array[F] | None]:
        dgain, dbias = (dy * x_hat).sum(axis=over), _wide(dy).sum(axis=over)
        dx_hat = dy * gain_
        if mean is None or deviation is None:
            # d deviation = mean(sign dx) - mean(sign) mean(dx): the deviation sees each entry's side, less
            # the mean side. x_hat's place in the pullback of the L2 form is taken by that sign.
            along = (dx_hat * x_hat).mean(axis=over, keepdims=True)
            sign = _centred_sign(centred, over)
            dx = inv_scale * (dx_hat - dx_hat.mean(axis=over, keepdims=True) - factor * sign * along)
            dmean = ddeviation = None
        else:
            # Given statistics are constants: d inv_scale / d deviation = -factor inv_scale^2.
            dx = inv_scale * dx_hat
            dmean = -dx.sum(axis=over).astype(x.dtype)
            ddeviation = (-factor * (dx * x_hat).sum(axis=over)).astype(x.dtype)
        return dx.astype(x.dtype), dgain.astype(x.dtype), dbias.astype(x.dtype), dmean, ddeviation

    y: Array[F] = (gain_ * x_hat + bias_).astype(x.dtype)
    return y, pullback


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x).astype(np.float64, copy=False)


def _l1_moments(x: AnyArray, over: tuple[int, ...]) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Mean, centred values and mean absolute deviation in float64, with the averaged axes kept."""
    wide = _wide(x)
    mean = wide.mean(axis=over, keepdims=True)
    with np.errstate(invalid="ignore"):
        centred = wide - mean
    return mean, centred, np.abs(centred).mean(axis=over, keepdims=True)


def _centred_sign(centred: AnyArray, over: tuple[int, ...]) -> AnyArray:
    sign = np.sign(centred)
    return np.asarray(sign - sign.mean(axis=over, keepdims=True))
