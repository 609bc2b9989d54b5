"""Scaled dot-product attention.

attention(query, key, value) = softmax(scale query key^T) value        (softmax over the keys)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.softmax import softmax_vjp

METHOD = Method(
    title="Scaled dot-product attention (Attention Is All You Need)",
    authors="Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin",
    year=2017,
    arxiv="1706.03762",
    functions=("scaled_dot_product_attention",),
    chapter="attention/scaled_dot_product",
    paper=False,
)

ALGORITHM = "three_pass_reload"
"""Softmax by the row maximum: in NumPy it is the quickest, and its error, a few units in the last place of a
weight, is below that of the products around it."""


def scaled_dot_product_attention(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array[F]:
    """Average the values, each query weighing them by its likeness to their keys.

    Parameters
    ----------
    query : array (..., L, E)
    key : array (..., S, E)
    value : array (..., S, V)
        Leading axes broadcast against each other.
    mask : boolean array, broadcastable to (..., L, S), optional
        True where the query may attend to the key.
    causal : bool
        Query ``i`` attends to keys ``0 .. i`` only; combined with ``mask`` where both are given.
    scale : float > 0, optional
        Factor of the scores; ``1 / sqrt(E)`` by default.

    Returns
    -------
    array (..., L, V), dtype of ``query``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``mask`` is not boolean.
    ValueError
        If a shape does not fit, ``E`` is 0 or ``scale`` is not a finite number > 0.

    Notes
    -----
    A query that may attend to nothing (or for which there are no keys) gives zeros and has the gradient
    zero. A weight of exactly 0 still multiplies its value: NaN or infinity in a value makes the outputs of
    all queries NaN, masked or not.

    References
    ----------
    Vaswani et al. (2017), arXiv 1706.03762, equation 1 and section 3.2.1.

    Examples
    --------
    >>> query, key = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> scaled_dot_product_attention(query, key, np.array([[2.0], [4.0]]))
    array([[3.]])
    >>> scaled_dot_product_attention(query, key, np.array([[2.0], [4.0]]), mask=np.array([[True, False]]))
    array([[2.]])
    """
    return scaled_dot_product_attention_vjp(query, key, value, mask=mask, causal=causal, scale=scale)[0]


def scaled_dot_product_attention_vjp(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`scaled_dot_product_attention` and its pullback ``dy -> (dquery, dkey, dvalue)``.

    Parameters, errors and references are those of :func:`scaled_dot_product_attention`.
    """
    query, key, value, lead, scale = checked_inputs(query, key, value, scale)
    factor = query.dtype.type(scale)
    allowed = allowed_pairs(mask, causal, (*lead, query.shape[-2], key.shape[-2]))

    # Views of heads inside a wider array have strides that NumPy's matrix product cannot hand to BLAS.
    query, key, value = (np.ascontiguousarray(array) for array in (query, key, value))
    scores: Array[F] = factor * (query @ _transposed(key))
    weights, softmax_pullback = _masked_softmax(scores, allowed)
    y: Array[F] = weights @ value

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # y = P v is bilinear, P = softmax(s) row by row, s = scale q k^T is bilinear again. Weights that
        # the mask holds at 0 are constant, and softmax's pullback multiplies by the weight: their scores
        # get 0 without further ado.
        dvalue = _transposed(weights) @ dy
        dscores = factor * softmax_pullback(dy @ _transposed(value))
        dquery = dscores @ key
        dkey = _transposed(dscores) @ query
        return sum_to(dquery, query.shape), sum_to(dkey, key.shape), sum_to(dvalue, value.shape)

    return y, pullback


def _masked_softmax(scores: Array[F], allowed: AnyArray | None) -> tuple[Array[F], Any]:
    """Return softmax over the allowed entries of each row (zeros where there are none) and its pullback."""
    if scores.shape[-1] == 0:
        return scores, lambda dweights: dweights
    if allowed is None:
        weights, pullback = softmax_vjp(scores, algorithm=ALGORITHM)
        return weights, lambda dweights: pullback(dweights)[0]
    some = allowed.any(axis=-1, keepdims=True)
    zero = scores.dtype.type(0)
    # Rows without any allowed key get the scores 0, whose softmax is finite, and are cleared afterwards.
    fenced = np.where(allowed, scores, np.where(some, scores.dtype.type(-np.inf), zero))
    weights, pullback = softmax_vjp(fenced, algorithm=ALGORITHM)

    def masked_pullback(dweights: Array[F]) -> Array[F]:
        dscores: Array[F] = pullback(np.where(allowed, dweights, zero))[0]
        return np.where(allowed, dscores, zero)

    return np.where(allowed, weights, zero), masked_pullback


def checked_inputs(
    query: Array[F], key: Array[F], value: Array[F], scale: float | None
) -> tuple[Array[F], Array[F], Array[F], tuple[int, ...], float]:
    """Return attention's arguments as arrays, their common leading axes, and the scale."""
    query = _checks.float_array(query, "query", min_ndim=2)
    key, value = _checks.float_array(key, "key", min_ndim=2), _checks.float_array(value, "value", min_ndim=2)
    _checks.same_dtype("query", query, key=key, value=value)
    _checks.not_empty(query, "query", (query.ndim - 1,))
    _checks.shape(key, "key", (*key.shape[:-1], query.shape[-1]))
    _checks.shape(value, "value", (*value.shape[:-2], key.shape[-2], value.shape[-1]))
    lead = _broadcast("query, key, value", query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    _checks.positive(scale, "scale")
    return query, key, value, lead, scale


def allowed_pairs(mask: AnyArray | None, causal: bool, shape: tuple[int, ...]) -> AnyArray | None:
    """Return which query may attend to which key, of the given shape, or ``None`` for all pairs."""
    allowed: AnyArray | None = None
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_:
            _checks.fail_type("mask", "a boolean array (True: may attend)", f"dtype {mask.dtype}")
        try:
            allowed = np.broadcast_to(mask, shape)
        except ValueError:
            _checks.fail("mask", f"a shape that broadcasts to {shape}", mask.shape)
    if causal:
        below = np.tri(shape[-2], shape[-1], dtype=bool)
        allowed = np.broadcast_to(below, shape) if allowed is None else allowed & below
    return allowed


def _broadcast(names: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        _checks.fail(names, "leading axes that broadcast", " and ".join(map(str, shapes)))


def _transposed(array: Array[F]) -> Array[F]:
    return np.swapaxes(array, -1, -2)
