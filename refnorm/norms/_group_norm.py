"""Group normalization, with instance normalization as its case of one channel a group.

y = gain * (x - mean) / sqrt(var + eps) + bias        (statistics over one example's group of channels)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="Group Normalization and Instance Normalization",
    authors="Wu, He; Ulyanov, Vedaldi, Lempitsky (instance normalization)",
    year=2018,
    arxiv="1803.08494",
    functions=("group_norm", "instance_norm", "standardize_groups"),
    chapter="norms/group_norm",
    paper=False,
)


def standardize_groups(x: Array[F], *, groups: int = 32, eps: float = 1e-5) -> Array[F]:
    """Give each example's groups of channels mean 0 and variance 1, without gain and bias.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps; the axes after the second are places of an image and may be missing.
    groups : int >= 1
        Number of groups; it divides C, and consecutive channels form a group.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, or ``groups`` is not an integer.
    ValueError
        If ``groups`` does not divide C, a group is empty or ``eps <= 0``.

    Notes
    -----
    ``x_hat = (x - mean) / sqrt(var + eps)`` with the biased variance of centred values, summed in float64.
    NaN or infinity makes its group of its example NaN and nothing else.

    References
    ----------
    Wu, He (2018), arXiv 1803.08494, equations 1, 2 and 7.

    Examples
    --------
    >>> standardize_groups(np.array([[0.0, 2.0, 10.0, 30.0]]), groups=2).round(3)
    array([[-1.,  1., -1.,  1.]])
    """
    return standardize_groups_vjp(x, groups=groups, eps=eps)[0]


def standardize_groups_vjp(x: Array[F], *, groups: int = 32, eps: float = 1e-5) -> tuple[Array[F], Pullback]:
    """Return :func:`standardize_groups` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x", min_ndim=2)
    blocks = _blocks(x, groups)
    _checks.positive(eps, "eps")
    x_hat, back = standardize(blocks, (2,), eps)
    y: Array[F] = x_hat.reshape(x.shape).astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return (back(np.reshape(dy, blocks.shape)).reshape(x.shape).astype(x.dtype),)

    return y, pullback


def group_norm(x: Array[F], gain: Array[F], bias: Array[F], *, groups: int = 32, eps: float = 1e-5) -> Array[F]:
    """Normalize each example over groups of its channels.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps; the axes after the second are places of an image and may be missing.
    gain, bias : arrays (C,)
        Scale and shift of each channel; 1 and 0 at initialization.
    groups : int >= 1
        Number of groups; it divides C. One group is layer norm over channels and places, C groups are
        :func:`instance_norm`.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``groups`` is not an integer.
    ValueError
        If ``groups`` does not divide C, a group is empty, a shape is wrong or ``eps <= 0``.

    Notes
    -----
    ``y = gain x_hat + bias`` with ``x_hat`` of :func:`standardize_groups`. An example's output does not depend
    on the other examples, and the rule is the same in training and in use.

    References
    ----------
    Wu, He (2018), arXiv 1803.08494, equations 1, 2, 6 and 7.

    Examples
    --------
    >>> x = np.array([[[1.0, 3.0], [5.0, 7.0]]])
    >>> group_norm(x, np.array([1.0, 2.0]), np.zeros(2), groups=2).round(3)
    array([[[-1.,  1.],
            [-2.,  2.]]])
    """
    return group_norm_vjp(x, gain, bias, groups=groups, eps=eps)[0]


def group_norm_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], *, groups: int = 32, eps: float = 1e-5
) -> tuple[Array[F], Pullback]:
    """Return :func:`group_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x = _checks.float_array(x, "x", min_ndim=2)
    gain, bias = _checks.float_array(gain, "gain"), _checks.float_array(bias, "bias")
    _checks.same_dtype("x", x, gain=gain, bias=bias)
    blocks = _blocks(x, groups)
    channels = x.shape[1]
    _checks.shape(gain, "gain", (channels,))
    _checks.shape(bias, "bias", (channels,))
    _checks.positive(eps, "eps")
    standard, back = standardize(blocks, (2,), eps)
    x_hat = standard.reshape(x.shape)
    places = tuple(axis for axis in range(x.ndim) if axis != 1)
    scale, shift = np.expand_dims(gain, places), np.expand_dims(bias, places)
    y: Array[F] = np.asarray(scale * x_hat + shift, dtype=np.result_type(x, gain, bias))

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # Gain and bias are shared by all examples and places of a channel, the statistics by a group's
        # channels: the sums run over different axes.
        dgain, dbias = (dy * x_hat).sum(axis=places), np.sum(dy, axis=places, dtype=x_hat.dtype)
        dx = back((dy * scale).reshape(blocks.shape)).reshape(x.shape)
        return dx.astype(x.dtype), dgain.astype(x.dtype), dbias.astype(x.dtype)

    return y, pullback


def instance_norm(x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5) -> Array[F]:
    """Normalize each channel of each example over its places.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps with at least one axis of places.
    gain, bias : arrays (C,)
        Scale and shift of each channel; 1 and 0 at initialization.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If ``x`` has no places, a shape is wrong or ``eps <= 0``.

    Notes
    -----
    :func:`group_norm` with as many groups as channels. Brightness and contrast of a channel of an image are
    gone afterwards; an image of one pixel gives the bias.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky (2016), arXiv 1607.08022, equation 3.

    Examples
    --------
    >>> instance_norm(np.array([[[1.0, 3.0], [50.0, 70.0]]]), np.ones(2), np.zeros(2)).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    return instance_norm_vjp(x, gain, bias, eps=eps)[0]


def instance_norm_vjp(x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5) -> tuple[Array[F], Pullback]:
    """Return :func:`instance_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x = _checks.float_array(x, "x", min_ndim=3)
    return group_norm_vjp(x, gain, bias, groups=x.shape[1] or 1, eps=eps)


def standardize(
    x: AnyArray, over: Sequence[int], eps: float, ddof: int = 0
) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    """Standardize over axes, in float64: the step that most normalizations of this room share.

    Returns ``x_hat = (x - mean) / sqrt(var + eps)`` and its pullback ``dx_hat -> dx``; nothing is rounded to
    the dtype of ``x``. The variance is the sum of squares divided by the count less ``ddof``.
    """
    axes = tuple(over)
    wide = x.astype(np.result_type(x, np.float64), copy=False)
    share = 1 / (int(np.prod([x.shape[axis] for axis in axes])) - ddof)
    with np.errstate(invalid="ignore"):
        centred = wide - wide.mean(axis=axes, keepdims=True)
        inv_std = 1 / np.sqrt((centred * centred).sum(axis=axes, keepdims=True) * share + eps)
        x_hat = centred * inv_std

    def pullback(dx_hat: AnyArray) -> AnyArray:
        # d x_hat = inv_std (dx - mean dx - x_hat share sum(x_hat dx)), a symmetric map of dx: the constant
        # vector and (but for eps) x_hat are directions that the output cannot feel.
        along = (dx_hat * x_hat).sum(axis=axes, keepdims=True) * share
        return np.asarray(inv_std * (dx_hat - dx_hat.mean(axis=axes, keepdims=True) - x_hat * along))

    return x_hat, pullback


def _blocks(x: Array[F], groups: int) -> Array[F]:
    """Return ``x`` as (N, groups, entries of a group)."""
    groups = _checks.whole(groups, "groups", low=1)
    examples, channels, *places = x.shape
    if channels % groups:
        _checks.fail("groups", f"a divisor of the {channels} channels", groups)
    entries = channels // groups * int(np.prod(places))
    if entries == 0:
        _checks.fail("x", "at least one entry in a group", f"shape {x.shape}")
    return x.reshape(examples, groups, entries)
