"""The operations of an encoder in NumPy, each with its pullback: one implementation of the ops contract.

A model is written once against such a namespace (:mod:`refnorm.models` calls nothing else), and a
namespace of kernels with the same names makes it fast. Texts of different lengths lie end to end in one
array of T tokens, text ``i`` in rows ``offsets[i]`` to ``offsets[i + 1]``: there is no padding, so none is
computed.

``linear_residual_norm`` and ``embed`` join what a kernel can do while the rows are in cache. ``out=``, where
offered, is an array that receives the result; it must not overlap an argument.
"""

from __future__ import annotations

import itertools
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F, IntArray, Pullback
from refnorm.attention import scaled_dot_product_attention_vjp
from refnorm.nn import embedding_vjp, gelu, gelu_vjp, linear_vjp, relu, relu_vjp
from refnorm.norms import layer_norm, layer_norm_vjp

__all__ = [
    "ACTIVATIONS",
    "attention",
    "attention_vjp",
    "embed",
    "embed_vjp",
    "linear",
    "linear_activated_vjp",
    "linear_residual_norm",
    "linear_residual_norm_vjp",
    "mean_pool_normalize",
    "mean_pool_normalize_vjp",
    "prepare_linear",
]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
"""What ``linear`` accepts as ``activation`` besides ``None``."""

BLOCK = 256
"""Rows handled together where an operation needs float64 temporaries: they stay small."""

SMALLEST_NORM = 1e-12
"""Mean vectors shorter than this are divided by it instead of by their length, as PyTorch's ``normalize``
does: a zero vector stays zero."""

Handle: TypeAlias = tuple[Any, Any]


def prepare_linear(weight: Array[F], bias: Array[F]) -> Handle:
    """Bring a layer's weights into the form that :func:`linear` wants; here, as they are.

    Parameters
    ----------
    weight : array (I, O)
    bias : array (O,)

    Returns
    -------
    tuple
        A handle for :func:`linear` and :func:`linear_residual_norm`; its content is this module's affair.
    """
    return weight, bias


def linear(x: Array[F], handle: Handle, *, activation: str | None = None, out: Array[F] | None = None) -> Array[F]:
    """Linear layer and activation.

    Parameters
    ----------
    x : array (T, I)
    handle
        From :func:`prepare_linear`.
    activation : one of :data:`ACTIVATIONS`, optional
    out : array (T, O), optional
        Receives the result.

    Returns
    -------
    array (T, O)

    Examples
    --------
    >>> linear(np.array([[1.0, -2.0]]), prepare_linear(np.eye(2), np.zeros(2)), activation="relu")
    array([[1., 0.]])
    """
    weight, bias = handle
    y: Array[F] = np.matmul(x, weight, out=out)
    y += bias
    if activation is not None:
        _checks.one_of(activation, "activation", ACTIVATIONS)
        for start in range(0, len(y), BLOCK):
            rows = y[start : start + BLOCK]
            rows[...] = _activate(rows, activation)
    return y


def linear_activated_vjp(
    x: Array[F], weight: Array[F], bias: Array[F], *, activation: str | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`linear` and its pullback ``dy -> (dx, dweight, dbias)``."""
    summed, pull_linear = linear_vjp(x, weight, bias)
    if activation is None:
        return summed, pull_linear
    y, pull_activation = _activate_vjp(summed, activation)
    return y, lambda dy: pull_linear(*pull_activation(dy))


def linear_residual_norm(
    x: Array[F],
    handle: Handle,
    residual: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float,
    out: Array[F] | None = None,
) -> Array[F]:
    """Layer norm of (linear layer plus residual): the end of both halves of a post-norm block.

    Parameters
    ----------
    x : array (T, I)
    handle
        From :func:`prepare_linear`.
    residual : array (T, O)
    gain, bias : arrays (O,)
        Of the layer norm.
    eps : float > 0
    out : array (T, O), optional
        Receives the result.

    Returns
    -------
    array (T, O)
    """
    y = linear(x, handle, out=out)
    y += residual
    return _norm_in_place(y, gain, bias, eps)


def linear_residual_norm_vjp(
    x: Array[F],
    weight: Array[F],
    linear_bias: Array[F],
    residual: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float,
) -> tuple[Array[F], Pullback]:
    """Return :func:`linear_residual_norm` and its pullback, whose entries follow the arguments."""
    product, pull_linear = linear_vjp(x, weight, linear_bias)
    y, pull_norm = layer_norm_vjp(product + residual, gain, bias, eps=eps)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dsum, dgain, dbias = pull_norm(dy)
        # A sum hands its cotangent to both terms unchanged.
        return (*pull_linear(dsum), dsum, dgain, dbias)

    return y, pullback


def embed(
    token_ids: IntArray,
    position_ids: IntArray,
    type_ids: IntArray,
    token_table: Array[F],
    position_table: Array[F],
    type_table: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float,
    out: Array[F] | None = None,
) -> Array[F]:
    """Layer norm of the sum of a token's three embeddings.

    Parameters
    ----------
    token_ids, position_ids, type_ids : integer arrays (T,)
        Rows of the three tables.
    token_table, position_table, type_table : arrays (V, H), (P, H), (K, H)
    gain, bias : arrays (H,)
    eps : float > 0
    out : array (T, H), optional
        Receives the result.

    Returns
    -------
    array (T, H)
    """
    y = np.take(token_table, token_ids, axis=0, out=out, mode="clip" if out is not None else "raise")
    y += position_table[position_ids]
    y += type_table[type_ids]
    return _norm_in_place(y, gain, bias, eps)


def embed_vjp(
    token_ids: IntArray,
    position_ids: IntArray,
    type_ids: IntArray,
    token_table: Array[F],
    position_table: Array[F],
    type_table: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float,
) -> tuple[Array[F], Pullback]:
    """Return :func:`embed` and its pullback ``dy -> (dtoken, dposition, dtype_table, dgain, dbias)``."""
    found = [
        embedding_vjp(ids, table)
        for ids, table in ((token_ids, token_table), (position_ids, position_table), (type_ids, type_table))
    ]
    y, pull_norm = layer_norm_vjp(found[0][0] + found[1][0] + found[2][0], gain, bias, eps=eps)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dsum, dgain, dbias = pull_norm(dy)
        return (*(pull_table(dsum)[0] for _, pull_table in found), dgain, dbias)

    return y, pullback


def attention(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    offsets: IntArray,
    heads: int,
    *,
    scale: float | None = None,
    out: Array[F] | None = None,
) -> Array[F]:
    """Multi-head softmax attention of each text within itself.

    Parameters
    ----------
    query, key, value : arrays (T, H)
        May be views of columns of one array. Head ``h`` takes columns ``h H/heads .. (h + 1) H/heads``.
    offsets : integer array (n + 1,)
        Text ``i`` lies in rows ``offsets[i]`` to ``offsets[i + 1]``; from 0 to T, not decreasing.
    heads : int >= 1
    scale : float > 0, optional
        ``1 / sqrt(H / heads)`` by default.
    out : array (T, H), optional
        Receives the result.

    Returns
    -------
    array (T, H)

    Examples
    --------
    >>> x = np.array([[1.0], [3.0], [5.0]])
    >>> attention(np.zeros((3, 1)), x, x, np.array([0, 2, 3]), 1)
    array([[2.],
           [2.],
           [5.]])
    """
    y: Array[F] = np.empty(query.shape, query.dtype) if out is None else out
    for start, stop in _ranges(offsets, len(query)):
        y[start:stop] = _attend(query, key, value, start, stop, heads, scale)[0]
    return y


def attention_vjp(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    offsets: IntArray,
    heads: int,
    *,
    scale: float | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`attention` and its pullback ``dy -> (dquery, dkey, dvalue)``."""
    ranges = _ranges(offsets, len(query))
    parts = [_attend(query, key, value, start, stop, heads, scale) for start, stop in ranges]
    y: Array[F] = np.concatenate([part[0] for part in parts]) if parts else np.zeros_like(query)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # Texts do not see each other, so their pullbacks run one by one.
        entries = [pull(_heads(dy[start:stop], heads)) for (start, stop), (_, pull) in zip(ranges, parts, strict=True)]
        if not entries:
            return np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
        return tuple(np.concatenate([_joined(entry[i]) for entry in entries]) for i in range(3))

    return y, pullback


def mean_pool_normalize(x: Array[F], offsets: IntArray) -> Array[F]:
    """Mean of each text's rows, scaled to length 1.

    Parameters
    ----------
    x : array (T, H)
    offsets : integer array (n + 1,)
        As for :func:`attention`; no text may be empty.

    Returns
    -------
    array (n, H)

    Examples
    --------
    >>> mean_pool_normalize(np.array([[3.0, 3.0], [3.0, 5.0], [0.0, 2.0]]), np.array([0, 2, 3]))
    array([[0.6, 0.8],
           [0. , 1. ]])
    """
    return mean_pool_normalize_vjp(x, offsets)[0]


def mean_pool_normalize_vjp(x: Array[F], offsets: IntArray) -> tuple[Array[F], Pullback]:
    """Return :func:`mean_pool_normalize` and its pullback ``dy -> (dx,)``."""
    mean, pull_mean = mean_pool_vjp(x, offsets)
    y, pull_normalize = normalize_vjp(mean)
    return y, lambda dy: pull_mean(*pull_normalize(dy))


def mean_pool_vjp(x: Array[F], offsets: IntArray) -> tuple[Array[F], Pullback]:
    """Return the mean of each text's rows and its pullback ``dy -> (dx,)``."""
    ranges = _ranges(offsets, len(x), empty_allowed=False)
    counts = np.array([stop - start for start, stop in ranges])
    y = np.array([x[start:stop].mean(axis=0) for start, stop in ranges], x.dtype).reshape(-1, x.shape[1])

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # Every row of a text has the weight 1 / rows in its mean.
        share = (dy / counts[:, None]).astype(x.dtype)
        return (np.repeat(share, counts, axis=0),)

    return y, pullback


def normalize_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return rows scaled to length 1 and the pullback ``dy -> (dx,)``."""
    length = np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), x.dtype.type(SMALLEST_NORM))
    y: Array[F] = x / length

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # y = x / |x|: a longer x changes nothing, so the part of dy along y is projected out. Below the
        # smallest length the division is by a constant and nothing is projected.
        along = np.where(length > SMALLEST_NORM, (dy * y).sum(axis=-1, keepdims=True), 0).astype(x.dtype)
        return ((dy - y * along) / length,)

    return y, pullback


def _activate(x: Array[F], name: str) -> Array[F]:
    return relu(x) if name == "relu" else gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def _activate_vjp(x: Array[F], name: str) -> tuple[Array[F], Pullback]:
    _checks.one_of(name, "activation", ACTIVATIONS)
    return relu_vjp(x) if name == "relu" else gelu_vjp(x, approximate="tanh" if name == "gelu_tanh" else "none")


def _norm_in_place(y: Array[F], gain: Array[F], bias: Array[F], eps: float) -> Array[F]:
    for start in range(0, len(y), BLOCK):
        rows = y[start : start + BLOCK]
        rows[...] = layer_norm(rows, gain, bias, eps=eps)
    return y


def _attend(
    query: Array[F], key: Array[F], value: Array[F], start: int, stop: int, heads: int, scale: float | None
) -> tuple[Array[F], Pullback]:
    parts = (_heads(array[start:stop], heads) for array in (query, key, value))
    context, pullback = scaled_dot_product_attention_vjp(*parts, scale=scale)
    return _joined(context), pullback


def _heads(rows: Array[F], heads: int) -> Array[F]:
    """View (L, H) as (heads, L, H / heads)."""
    return rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)


def _joined(parts: Array[F]) -> Array[F]:
    """Undo :func:`_heads`."""
    return parts.transpose(1, 0, 2).reshape(parts.shape[1], -1)


def _ranges(offsets: IntArray, total: int, *, empty_allowed: bool = True) -> list[tuple[int, int]]:
    given = _checks.integer_array(offsets, "offsets", ndim=1, low=0, high=total)
    ends = [int(end) for end in given]
    if not ends or ends[0] != 0 or ends[-1] != total or any(b < a for a, b in itertools.pairwise(ends)):
        _checks.fail("offsets", f"numbers from 0 to {total} that do not decrease", ends)
    ranges = list(itertools.pairwise(ends))
    if not empty_allowed and any(a == b for a, b in ranges):
        _checks.fail("offsets", "at least one row for each text", ends)
    return [pair for pair in ranges if pair[0] < pair[1]]
