"""RMSNorm, its compressed form, and the linear map whose output needs no centring.

RMS(x)  = x / sqrt(mean(x^2) + eps)
CRMS(x) = x / sqrt((sum(x^2) + sum(x)^2) / d + eps)      (x: the first d - 1 of d entries that sum to 0)
LN(x)   = RMS(x - mean(x))                                (so a zero-mean main branch needs no centring)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.norms._layer_norm import checked_sum

METHOD = Method(
    title="Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
    authors="Jiang, Gu, Zhu, Pan",
    year=2023,
    arxiv="2305.14858",
    functions=(
        "add_rms_norm",
        "compress",
        "compressed_rms_norm",
        "decompress",
        "rms_norm",
        "zero_mean_linear",
    ),
    chapter="norms/compressed_rms_norm",
)


def rms_norm(x: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5) -> Array[F]:
    """Divide each vector by the root of its mean square.

    Parameters
    ----------
    x : array (..., d)
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, the last axis is empty or ``eps <= 0``.

    Notes
    -----
    ``y = gain * x / sqrt(mean(x^2) + eps) + bias``. This equals layer norm exactly where the entries of
    ``x`` sum to 0, and nowhere else. The mean is taken in float64; there, squares of entries
    beyond 1e154 overflow and the result is 0. An infinity becomes NaN and the finite entries beside it 0; NaN
    makes its vector NaN, and no other.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> rms_norm(np.array([1.0, 2.0, -3.0]), eps=1e-12).round(4)
    array([ 0.4629,  0.9258, -1.3887])
    """
    return rms_norm_vjp(x, gain, bias, eps=eps)[0]


def rms_norm_vjp(
    x: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]:
    """Return :func:`rms_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    The entry of an argument that was left out is ``None``. Parameters, errors and references are those of
    :func:`rms_norm`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.not_empty(x, "x", (x.ndim - 1,))
    units = x.shape[-1:]
    for name, array in (("gain", gain), ("bias", bias)):
        if array is not None:
            array = _checks.float_array(array, name)
            _checks.same_dtype("x", x, **{name: array})
            _checks.shape(array, name, units)
    _checks.positive(eps, "eps")
    wide = _wide(x)
    with np.errstate(over="ignore", invalid="ignore"):
        inv_rms = 1 / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
        x_hat = wide * inv_rms
        y = (x_hat if gain is None else x_hat * gain) + (0 if bias is None else bias)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F] | None, Array[F] | None]:
        # d x_hat = inv_rms (dx - x_hat mean(x_hat dx)), which is symmetric: the gradient loses its part
        # along x_hat, the direction in which only the length of x changes.
        dx_hat = _wide(dy) if gain is None else _wide(dy) * gain
        dx = inv_rms * (dx_hat - x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True))
        dgain = None if gain is None else sum_to(dy * x_hat, units).astype(x.dtype)
        dbias = None if bias is None else sum_to(_wide(dy), units).astype(x.dtype)
        return dx.astype(x.dtype), dgain, dbias

    return np.asarray(y, dtype=_common(x, gain, bias)), pullback


def add_rms_norm(
    x: Array[F], residual: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> Array[F]:
    """RMS norm of ``x + residual``: a residual block's end.

    Parameters
    ----------
    x, residual : arrays (..., d) of one shape and dtype
        What a branch adds, and the main branch.
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, the last axis is empty or ``eps <= 0``.

    Notes
    -----
    ``rms_norm(x + residual, gain, bias, eps=eps)``, the sum rounded to the dtype of ``x``.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> add_rms_norm(np.array([1.0, 1.0]), np.array([2.0, 3.0]), eps=1e-12).round(4)
    array([0.8485, 1.1314])
    """
    return add_rms_norm_vjp(x, residual, gain, bias, eps=eps)[0]


def add_rms_norm_vjp(
    x: Array[F], residual: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]:
    """Return :func:`add_rms_norm` and its pullback ``dy -> (dx, dresidual, dgain, dbias)``.

    ``dx`` and ``dresidual`` are one array; the entry of an argument that was left out is ``None``. Parameters, errors
    and references are those of :func:`add_rms_norm`.
    """
    y, back = rms_norm_vjp(checked_sum(x, residual), gain, bias, eps=eps)

    def pullback(dy: Array[F]) -> tuple[Array[F] | None, ...]:
        # Both terms of a sum receive its cotangent: one array for both.
        dsum, dgain, dbias = back(dy)
        return dsum, dsum, dgain, dbias

    return y, pullback


def compressed_rms_norm(x: Array[F], *, eps: float = 1e-5) -> Array[F]:
    """RMSNorm of a vector that sums to zero and is stored without its last entry.

    Parameters
    ----------
    x : array (..., d - 1)
        The first entries; the last one is minus their sum.
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    array, shape and dtype of ``x``
        The first d - 1 entries of the normalized vector, which sums to zero as well.

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If the last axis is empty or ``eps <= 0``.

    Notes
    -----
    ``y = x / sqrt((sum(x^2) + sum(x)^2) / d + eps)``. Sums are taken in float64: the implied last entry is
    only as good as the sum.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> compressed_rms_norm(np.array([1.0, 2.0]), eps=1e-12).round(4)
    array([0.4629, 0.9258])
    """
    return compressed_rms_norm_vjp(x, eps=eps)[0]


def compressed_rms_norm_vjp(x: Array[F], *, eps: float = 1e-5) -> tuple[Array[F], Pullback]:
    """Return :func:`compressed_rms_norm` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`compressed_rms_norm`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.not_empty(x, "x", (x.ndim - 1,))
    _checks.positive(eps, "eps")
    wide, full_size = _wide(x), x.shape[-1] + 1
    with np.errstate(over="ignore", invalid="ignore"):
        total = wide.sum(axis=-1, keepdims=True)
        square = ((wide * wide).sum(axis=-1, keepdims=True) + total * total) / full_size
        inv_rms = 1 / np.sqrt(square + eps)
        y = wide * inv_rms

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # d square = 2/d <x + total, dx>: an entry is felt directly and through the implied last one.
        # Unlike RMSNorm's, this map is not symmetric.
        along = (dy * y).sum(axis=-1, keepdims=True) / full_size
        dx = inv_rms * (dy - along * inv_rms * (wide + total))
        return (dx.astype(x.dtype),)

    return np.asarray(y, dtype=x.dtype), pullback


def compress(x: Array[F]) -> Array[F]:
    """Drop the last entry of vectors that sum to zero.

    Parameters
    ----------
    x : array (..., d), d >= 2

    Returns
    -------
    array (..., d - 1)
        The inverse of :func:`decompress` if the entries of ``x`` sum to zero; this is not checked.

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If fewer than two entries are given.

    Examples
    --------
    >>> compress(np.array([1.0, 2.0, -3.0]))
    array([1., 2.])
    """
    return compress_vjp(x)[0]


def compress_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`compress` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    if x.shape[-1] < 2:
        _checks.fail("x", "at least two entries along the last axis", f"shape {x.shape}")

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return (np.concatenate((dy, np.zeros_like(dy[..., :1])), axis=-1),)  # the dropped entry is not felt

    return x[..., :-1].copy(), pullback


def decompress(x: Array[F]) -> Array[F]:
    """Append the entry that makes each vector sum to zero.

    Parameters
    ----------
    x : array (..., d - 1)

    Returns
    -------
    array (..., d)

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If the last axis is empty.

    Examples
    --------
    >>> decompress(np.array([1.0, 2.0]))
    array([ 1.,  2., -3.])
    """
    return decompress_vjp(x)[0]


def decompress_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`decompress` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.not_empty(x, "x", (x.ndim - 1,))
    last = -_wide(x).sum(axis=-1, keepdims=True)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return (dy[..., :-1] - dy[..., -1:],)

    return np.concatenate((x, last.astype(x.dtype)), axis=-1), pullback


def zero_mean_linear(x: Array[F], weight: Array[F], bias: Array[F]) -> Array[F]:
    """Linear map whose output is centred, so that it sums to zero.

    Parameters
    ----------
    x : array (..., I)
    weight : array (I, d)
    bias : array (d,)

    Returns
    -------
    array (..., d), dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or ``d = 0``.

    Notes
    -----
    ``y = x weight + bias`` minus its mean over the last axis. The raw weight stays the parameter; training it
    this way is training the centred weight.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> zero_mean_linear(np.array([1.0]), np.array([[1.0, 2.0, 6.0]]), np.zeros(3))
    array([-2., -1.,  3.])
    """
    return zero_mean_linear_vjp(x, weight, bias)[0]


def zero_mean_linear_vjp(x: Array[F], weight: Array[F], bias: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`zero_mean_linear` and its pullback ``dy -> (dx, dweight, dbias)``.

    Parameters, errors and references are those of :func:`zero_mean_linear`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    weight = _checks.float_array(weight, "weight", ndim=2)
    bias = _checks.float_array(bias, "bias", ndim=1)
    _checks.same_dtype("x", x, weight=weight, bias=bias)
    _checks.shape(weight, "weight", (x.shape[-1], weight.shape[1]))
    _checks.shape(bias, "bias", weight.shape[1:])
    _checks.not_empty(bias, "bias", (0,))
    y = centred(x @ weight + bias)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # Centring is symmetric: the cotangent is centred, and what follows is the plain linear pullback.
        dsum = centred(dy)
        rows = dsum.reshape(-1, dsum.shape[-1])
        return dsum @ weight.T, x.reshape(-1, x.shape[-1]).T @ rows, rows.sum(axis=0)

    return y, pullback


def centred(x: AnyArray) -> AnyArray:
    """Subtract the mean over the last axis, which is taken in float64."""
    shifted: AnyArray = x - _wide(x).mean(axis=-1, keepdims=True)
    return shifted.astype(x.dtype, copy=False)


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x).astype(np.result_type(x, np.float64), copy=False)


def _common(*arrays: AnyArray | None) -> Any:
    return np.result_type(*(array for array in arrays if array is not None))
