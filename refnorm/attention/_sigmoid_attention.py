"""Sigmoid attention: every weight for itself.

sigmoid_attention(query, key, value) = sigmoid(scale query key^T + bias) value,    bias = -log(number of keys)
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.attention._scaled_dot_product import allowed_pairs, checked_inputs
from refnorm.nn import sigmoid

METHOD = Method(
    title="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    authors="Ramapuram, Danieli, Dhekane, Weers, Busbridge, Ablin, Likhomanenko, Digani, Gu, Shidani, Webb",
    year=2025,
    arxiv="2409.04431",
    functions=("alibi_bias", "qk_norm", "row_mass", "sigmoid_attention", "sigmoid_bias"),
    chapter="attention/sigmoid_attention",
)

BIASES = ("-log_n", "per_row")

STEEPEST_SLOPE = 8.0
"""The slopes of ALiBi's heads are a geometric sequence that ends at ``2^-8``."""


def sigmoid_attention(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    bias: Any = "-log_n",
    attn_bias: Array[F] | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
    block: int | None = None,
) -> Array[F]:
    """Add up the values, each weighed by the probability that its key fits the query.

    Parameters
    ----------
    query : array (..., L, E)
    key : array (..., S, E)
    value : array (..., S, V)
        Leading axes broadcast against each other. ``S`` is at least 1.
    bias : "-log_n", "per_row", number, or array that broadcasts to (..., L, S)
        Added to the scores. ``"-log_n"``: ``-log S``, whatever the masks; ``"per_row"``: minus the logarithm of the number
        of keys that the query may attend to.
    attn_bias : array, broadcastable to (..., L, S), optional
        Added to the scores too, for instance :func:`alibi_bias`; minus infinity excludes a pair.
    mask : boolean array, broadcastable to (..., L, S), optional
        True where the query may attend to the key. The weight of the other pairs is 0.
    causal : bool
        Query ``i`` attends to keys ``0 .. i`` only; combined with ``mask`` where both are given.
    scale : float > 0, optional
        Factor of the scores; ``1 / sqrt(E)`` by default.
    block : int >= 1, optional
        Keys that are weighed at a time, here and in the pullback: no more weights than ``L * block`` a head are held. All keys
        by default.

    Returns
    -------
    array (..., L, V), dtype of ``query``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, ``mask`` is not boolean, or ``block`` is no integer.
    ValueError
        If a shape does not fit, ``E`` or ``S`` is 0, ``bias`` is an unknown word, ``scale`` is not a finite number > 0, or
        ``block`` is below 1.

    Notes
    -----
    The weights of a row do not sum to 1. With ``bias = -log S`` and scores of 0 their sum is ``S / (S + 1)``. A
    weight of exactly 0 still multiplies its value: NaN or infinity in a value makes the outputs of all queries NaN, masked
    or not. ``sigmoid_attention(query, key, numpy.eye(S))`` gives the weights themselves. Blocks of keys change the order of
    a sum and nothing else.

    References
    ----------
    Ramapuram et al. (2025), arXiv 2409.04431, section 2.

    Examples
    --------
    >>> query, key = np.array([[1.0]]), np.array([[0.0], [np.log(2)]])
    >>> sigmoid_attention(query, key, np.eye(2)).round(4)
    array([[0.3333, 0.5   ]])
    >>> sigmoid_attention(query, key, np.array([[1.0], [2.0]])).round(4)
    array([[1.3333]])
    """
    return sigmoid_attention_vjp(
        query, key, value, bias=bias, attn_bias=attn_bias, mask=mask, causal=causal, scale=scale, block=block
    )[0]


def sigmoid_attention_vjp(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    bias: Any = "-log_n",
    attn_bias: Array[F] | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`sigmoid_attention` and its pullback ``dy -> (dquery, dkey, dvalue)``.

    The cotangents of ``bias`` and of ``attn_bias`` follow, in this order, for those of the two that are float arrays
    (a number is a constant). Parameters, errors and references are those of :func:`sigmoid_attention`.
    """
    query, key, value, lead, scale = checked_inputs(query, key, value, scale)
    _checks.not_empty(key, "key", (key.ndim - 2,))
    shape = (*lead, query.shape[-2], key.shape[-2])
    allowed = allowed_pairs(mask, causal, shape)
    factor = query.dtype.type(scale)
    added = [
        score_bias(bias, allowed, shape, query),
        None if attn_bias is None else score_addend(attn_bias, "attn_bias", shape, query),
    ]

    # Views of heads inside a wider array have strides that NumPy's matrix product cannot hand to BLAS.
    query, key, value = (np.ascontiguousarray(array) for array in (query, key, value))
    parts = key_blocks(shape[-1], block)

    def scores_of(part: slice) -> Array[F]:
        scores: Array[F] = factor * (query @ np.swapaxes(key[..., part, :], -1, -2))
        for addend in added:
            if addend is not None:
                scores = scores + np.broadcast_to(addend, shape)[..., part]
        return scores

    def visible(part: slice, array: Array[F]) -> Array[F]:
        return array if allowed is None else np.where(allowed[..., part], array, array.dtype.type(0))

    # No row is summed over: blocks of keys add up, in any order.
    y: Array[F] = functools.reduce(
        np.add, (visible(part, sigmoid(scores_of(part))) @ value[..., part, :] for part in parts)
    )

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        biases = [given for given in (bias, attn_bias) if isinstance(given, np.ndarray)]
        totals = [np.zeros((*lead, *array.shape[-2:]), y.dtype) for array in (query, key, value)]
        of_biases = [np.zeros(given.shape, y.dtype) for given in biases]
        for part in parts:
            # y = P v is bilinear; P = sigmoid(s) entry by entry, whose slope is P (1 - P): no entry of a row knows of
            # the others. 1 - P = sigmoid(-s) keeps its digits where P is near 1. Nothing is kept for it but the arguments.
            scores = scores_of(part)
            weights = sigmoid(scores)
            slope = visible(part, weights * sigmoid(-scores))
            dscores = (dy @ np.swapaxes(value[..., part, :], -1, -2)) * slope
            totals[0] += factor * (dscores @ key[..., part, :])
            totals[1][..., part, :] = factor * (np.swapaxes(dscores, -1, -2) @ query)
            totals[2][..., part, :] = np.swapaxes(visible(part, weights), -1, -2) @ dy
            # A bias is added to all scores that it is broadcast to, so it collects their cotangents.
            for total in of_biases:
                own = total[..., part] if total.ndim and total.shape[-1] == shape[-1] else total
                own += sum_to(dscores, own.shape)
        given = (sum_to(total, array.shape) for total, array in zip(totals, (query, key, value), strict=True))
        return (*given, *of_biases)

    return y, pullback


def key_blocks(keys: int, block: int | None) -> list[slice]:
    """Return the parts of the keys that are worked on one after the other."""
    size = keys if block is None else _checks.whole(block, "block", low=1)
    return [slice(first, first + size) for first in range(0, keys, size)]


def score_bias(bias: Any, allowed: AnyArray | None, shape: tuple[int, ...], query: AnyArray) -> AnyArray:
    """Return the array that ``bias`` adds to the scores, of a shape that broadcasts to theirs."""
    keys = shape[-1]
    if isinstance(bias, str):
        _checks.one_of(bias, "bias", BIASES)
        if bias == "-log_n" or allowed is None:
            return sigmoid_bias(keys).astype(query.dtype)
        # A row without any key has no weights, whatever its bias.
        seen = np.maximum(allowed.sum(axis=-1, keepdims=True), 1)
        return sigmoid_bias(seen).astype(query.dtype)
    if isinstance(bias, (int, float, np.integer, np.floating)) and not isinstance(bias, bool):
        return np.asarray(bias, dtype=query.dtype)
    return score_addend(bias, "bias", shape, query)


def score_addend(given: Any, name: str, shape: tuple[int, ...], query: AnyArray) -> AnyArray:
    """Return ``given`` as an array that can be added to scores of that shape, or raise."""
    array = _checks.float_array(given, name)
    _checks.same_dtype("query", query, **{name: array})
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        _checks.fail(name, f"a shape that broadcasts to {shape}", array.shape)
    return array


def sigmoid_bias(n: Any) -> AnyArray:
    """Return the bias with which ``n`` weights at scores of 0 sum to ``n / (n + 1)``.

    Parameters
    ----------
    n : integer >= 1 or array of such

    Returns
    -------
    float64 array, shape of ``n``
        ``-log n``.

    Raises
    ------
    TypeError
        If ``n`` is not of integers.
    ValueError
        If an entry is below 1.

    References
    ----------
    Ramapuram et al. (2025), arXiv 2409.04431, section 2.

    Examples
    --------
    >>> sigmoid_bias(np.array([1, 8])).round(4)
    array([-0.    , -2.0794])
    """
    return np.asarray(-np.log(_checks.integer_array(n, "n", low=1).astype(np.float64)))


def alibi_bias(n: int, m: int, heads: int) -> AnyArray:
    """Return attention's linear bias against distance, one slope a head.

    Parameters
    ----------
    n, m : int >= 0
        Numbers of queries and of keys.
    heads : int >= 1

    Returns
    -------
    float64 array (heads, n, m)
        ``-slope |i - j|`` with the slope ``2^(-8 h / heads)`` for the heads ``h = 1 .. heads``.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If ``n`` or ``m`` is negative or ``heads`` below 1.

    References
    ----------
    Ramapuram et al. (2025), arXiv 2409.04431, after Press et al. (2022), arXiv 2108.12409, section 3.

    Examples
    --------
    >>> alibi_bias(1, 3, 2)[:, 0]
    array([[-0.        , -0.0625    , -0.125     ],
           [-0.        , -0.00390625, -0.0078125 ]])
    """
    n, m = _checks.whole(n, "n", low=0), _checks.whole(m, "m", low=0)
    heads = _checks.whole(heads, "heads", low=1)
    slopes = np.exp2(-STEEPEST_SLOPE * np.arange(1, heads + 1) / heads)
    distance = np.abs(np.arange(n)[:, None] - np.arange(m))
    return np.asarray(-slopes[:, None, None] * distance)


def qk_norm(query: Array[F], key: Array[F], *, eps: float = 1e-6) -> tuple[Array[F], Array[F]]:
    """Bring every query and every key to root mean square 1, which bounds the scores.

    Parameters
    ----------
    query : array (..., L, E)
    key : array (..., S, E)
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    pair of arrays
        ``x / sqrt(mean(x^2) + eps)`` over the last axis, for each of the two.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If ``E`` is 0 or differs, or ``eps`` is not a finite number > 0.

    Notes
    -----
    Two rows of root mean square 1 have a scalar product of at most ``E``: scores scaled by ``1 / sqrt(E)`` are at most
    ``sqrt(E)``.

    References
    ----------
    Ramapuram et al. (2025), arXiv 2409.04431.

    Examples
    --------
    >>> query, key = qk_norm(np.array([[3.0, 3.0]]), np.array([[0.0, 2.0]]))
    >>> query.round(3), key.round(3)
    (array([[1., 1.]]), array([[0.   , 1.414]]))
    """
    return qk_norm_vjp(query, key, eps=eps)[0]


def qk_norm_vjp(query: Array[F], key: Array[F], *, eps: float = 1e-6) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`qk_norm` and its pullback ``(dquery_out, dkey_out) -> (dquery, dkey)``."""
    query, key = _checks.float_array(query, "query", min_ndim=1), _checks.float_array(key, "key", min_ndim=1)
    _checks.same_dtype("query", query, key=key)
    _checks.not_empty(query, "query", (query.ndim - 1,))
    _checks.shape(key, "key", (*key.shape[:-1], query.shape[-1]))
    _checks.positive(eps, "eps")
    (query_out, query_back), (key_out, key_back) = (_rms_norm_vjp(array, eps) for array in (query, key))

    def pullback(cotangents: tuple[Array[F], Array[F]]) -> tuple[Array[F], Array[F]]:
        dquery_out, dkey_out = cotangents
        return query_back(dquery_out), key_back(dkey_out)

    return (query_out, key_out), pullback


def _rms_norm_vjp(x: Array[F], eps: float) -> tuple[Array[F], Any]:
    inverse = (1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)).astype(x.dtype)
    y: Array[F] = x * inverse

    def pullback(dy: Array[F]) -> Array[F]:
        # d inverse = -inverse^3 mean(x dx): what dy has along y goes.
        dx: Array[F] = inverse * (dy - y * (y * dy).mean(axis=-1, keepdims=True))
        return dx

    return y, pullback


def row_mass(weights: Array[F]) -> Array[F]:
    """Return the sum of every query's weights, which softmax would hold at 1.

    Parameters
    ----------
    weights : array (..., L, S)
        Weights of attention.

    Returns
    -------
    array (..., L)

    Raises
    ------
    TypeError
        If ``weights`` is not float32 or float64.
    ValueError
        If it has no dimension.

    References
    ----------
    Ramapuram et al. (2025), arXiv 2409.04431, section 2.

    Examples
    --------
    >>> row_mass(sigmoid_attention(np.zeros((1, 4)), np.zeros((9, 4)), np.eye(9)))
    array([0.9])
    """
    weights = _checks.float_array(weights, "weights", min_ndim=1)
    return np.asarray(weights.sum(axis=-1))
