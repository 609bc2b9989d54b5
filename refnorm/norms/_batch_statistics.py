"""Statistics over a batch, and the normalization that uses them.

mean, var = batch_statistics(x, axes)                                            (training)
y = gain * (x - mean) / sqrt(var + eps) + bias
running = (1 - momentum) * running + momentum * batch                            (for inference)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="Batch statistics and batch normalization",
    authors="Ioffe, Szegedy",
    year=2015,
    arxiv="1502.03167",
    functions=("batch_statistics", "update_running_statistics", "batch_norm"),
    chapter="norms/batch_statistics",
    paper=False,
)


def batch_statistics(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[Array[F], Array[F]]:
    """Mean and biased variance over the given axes.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    axes : axes of ``x``
        Those that are averaged over; the others index units, each with statistics of its own.

    Returns
    -------
    mean, var : arrays of the shape of ``x`` along the other axes, dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If an axis does not exist or is given twice, or there is nothing to average over.

    Notes
    -----
    ``var = mean((x - mean)^2)``, from centred values and with float64 sums. NaN or infinity makes its
    unit's statistics NaN (the mean may be infinite) and no other's.

    References
    ----------
    Ioffe, Szegedy (2015), arXiv 1502.03167, algorithm 1.

    Examples
    --------
    >>> mean, var = batch_statistics(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> mean, var
    (array([ 2., 10.]), array([1., 0.]))
    """
    return batch_statistics_vjp(x, axes)[0]


def batch_statistics_vjp(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`batch_statistics` and its pullback ``(dmean, dvar) -> (dx,)``.

    Parameters, errors and references are those of :func:`batch_statistics`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    over = _checks.axes(axes, x.ndim, "axes")
    _checks.not_empty(x, "x", over)
    count = _count(x, over)
    mean, centred, var = _moments(x, over)

    def pullback(cotangent: tuple[Array[F], Array[F]]) -> tuple[Array[F]]:
        # Every entry has the share 1 / count of the mean. In the variance the mean's own dependence on x
        # drops out, because the centred values sum to 0.
        dmean, dvar = (np.expand_dims(entry, over) for entry in cotangent)
        dx = (dmean + 2 * dvar * centred) / count
        return (dx.astype(x.dtype),)

    units = tuple(size for axis, size in enumerate(x.shape) if axis not in over)
    return (mean.reshape(units).astype(x.dtype), var.reshape(units).astype(x.dtype)), pullback


def update_running_statistics(
    running_mean: Array[F],
    running_var: Array[F],
    mean: Array[F],
    var: Array[F],
    count: int,
    *,
    momentum: float = 0.1,
) -> tuple[Array[F], Array[F]]:
    """Move the running statistics towards those of one more batch.

    Parameters
    ----------
    running_mean, running_var : arrays of one shape
        0 and 1 before the first batch.
    mean, var : arrays of the same shape
        From :func:`batch_statistics`, the variance biased.
    count : int >= 2
        Number of values that each statistic was taken over.
    momentum : float in [0, 1]
        Weight of the batch.

    Returns
    -------
    running_mean, running_var

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``count`` is not an integer.
    ValueError
        If a shape is wrong, ``count < 2`` or the momentum is out of range.

    Notes
    -----
    The batch's variance enters as the unbiased estimate ``var * count / (count - 1)``: in inference it
    stands for the variance of the population. These are statistics, not parameters, and have no gradient.

    References
    ----------
    Ioffe, Szegedy (2015), arXiv 1502.03167, algorithm 2, step 10.

    Examples
    --------
    >>> zero, one = np.zeros(1), np.ones(1)
    >>> update_running_statistics(zero, one, np.array([2.0]), np.array([3.0]), 4)
    (array([0.2]), array([1.3]))
    """
    running_mean = _checks.float_array(running_mean, "running_mean")
    named = {"running_var": running_var, "mean": mean, "var": var}
    running_var, mean, var = (_checks.float_array(array, name) for name, array in named.items())
    for name, array in (("running_var", running_var), ("mean", mean), ("var", var)):
        _checks.same_dtype("running_mean", running_mean, **{name: array})
        _checks.shape(array, name, running_mean.shape)
    count = _checks.whole(count, "count", low=2)
    _checks.in_range(momentum, "momentum", 0, 1)
    unbiased = var * (count / (count - 1))
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


def batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
) -> Array[F]:
    """Normalize each unit over the batch (training) or by given statistics (inference).

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    gain, bias : arrays of the shape of ``x`` along the axes that are not in ``axes``
        Scale and shift of each unit; 1 and 0 at initialization.
    mean, var : arrays of the same shape, optional
        Running statistics. Give both for inference, neither for training.
    axes : axes of ``x``
        Those that the statistics are taken over.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape or axis is wrong, ``eps <= 0``, only one of ``mean`` and ``var`` is given, a variance
        is negative, or in training there is nothing to average over.

    Notes
    -----
    ``y = gain (x - mean) / sqrt(var + eps) + bias``. In training an example's output depends on the
    whole batch; in inference on the example alone.

    References
    ----------
    Ioffe, Szegedy (2015), arXiv 1502.03167, algorithms 1 and 2.

    Examples
    --------
    >>> x, gain, bias = np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1)
    >>> batch_norm(x, gain, bias, eps=1e-9).ravel().round(6)
    array([-1.,  1.])
    >>> batch_norm(x, gain, bias, np.array([1.0]), np.array([4.0]), eps=1e-9).ravel().round(6)
    array([0., 1.])
    """
    return batch_norm_vjp(x, gain, bias, mean, var, axes=axes, eps=eps)[0]


def batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]:
    """Return :func:`batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dmean, dvar)``.

    The last two entries are ``None`` in training. Parameters, errors and references are those of
    :func:`batch_norm`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    over = _checks.axes(axes, x.ndim, "axes")
    units = tuple(size for axis, size in enumerate(x.shape) if axis not in over)
    if (mean is None) != (var is None):
        _checks.fail("mean, var", "both for inference or neither for training", "only one of them")
    for name, array in (("gain", gain), ("bias", bias), ("mean", mean), ("var", var)):
        if array is not None or name in ("gain", "bias"):
            array = _checks.float_array(array, name)
            _checks.same_dtype("x", x, **{name: array})
            _checks.shape(array, name, units)
    _checks.positive(eps, "eps")
    scale, shift = np.expand_dims(gain, over), np.expand_dims(bias, over)

    if mean is None or var is None:
        _checks.not_empty(x, "x", over)
        _, centred, spread = _moments(x, over)
    else:
        if var.size and var.real.min() < 0:
            _checks.fail("var", "values >= 0", var.real.min())
        centred, spread = x - _wide(np.expand_dims(mean, over)), _wide(np.expand_dims(var, over))
    inv_std = 1 / np.sqrt(spread + eps)
    x_hat = centred * inv_std

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F], Array[F] | None, Array[F] | None]:
        dgain, dbias = (dy * x_hat).sum(axis=over), _wide(dy).sum(axis=over)
        dx_hat = dy * scale
        if mean is None or var is None:
            # As in layer norm, over other axes: the output cannot feel a common shift of a unit's values
            # or (but for eps) their scale, so the gradient is projected off 1 and x_hat.
            along = (dx_hat * x_hat).mean(axis=over, keepdims=True)
            dx = inv_std * (dx_hat - dx_hat.mean(axis=over, keepdims=True) - x_hat * along)
            dmean = dvar = None
        else:
            # Given statistics are constants: the map is affine in x. d inv_std / d var = -inv_std^3 / 2.
            dx = inv_std * dx_hat
            dmean = -dx.sum(axis=over).astype(x.dtype)
            dvar = (-0.5 * (dx * x_hat * inv_std).sum(axis=over)).astype(x.dtype)
        return dx.astype(x.dtype), dgain.astype(x.dtype), dbias.astype(x.dtype), dmean, dvar

    dtype = np.result_type(*(array for array in (x, gain, bias, mean, var) if array is not None))
    y: Array[F] = np.asarray(scale * x_hat + shift, dtype=dtype)
    return y, pullback


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x).astype(np.result_type(x, np.float64), copy=False)


def _count(x: AnyArray, over: tuple[int, ...]) -> int:
    return int(np.prod([x.shape[axis] for axis in over]))


def _moments(x: AnyArray, over: tuple[int, ...]) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Mean, centred values and biased variance in float64, with the averaged axes kept."""
    wide = _wide(x)
    mean = wide.mean(axis=over, keepdims=True)
    with np.errstate(invalid="ignore"):
        centred = wide - mean
        var = (centred * centred).mean(axis=over, keepdims=True)
    return mean, centred, var
