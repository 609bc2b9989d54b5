"""Multi-head self-attention.

query, key, value = x @ weight_in + bias_in, split into three and then into heads
y = concatenate(attention(query_h, key_h, value_h) for each head h) @ weight_out + bias_out
"""

from __future__ import annotations

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.attention._scaled_dot_product import scaled_dot_product_attention_vjp
from refnorm.nn import linear_vjp

METHOD = Method(
    title="Multi-head attention (Attention Is All You Need)",
    authors="Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin",
    year=2017,
    arxiv="1706.03762",
    functions=("multi_head_attention",),
    chapter="attention/multi_head",
    paper=False,
)


def multi_head_attention(
    x: Array[F],
    weight_in: Array[F],
    bias_in: Array[F] | None,
    weight_out: Array[F],
    bias_out: Array[F] | None,
    *,
    heads: int,
    lengths: IntArray | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array[F]:
    """Let every position of a sequence look at the others, in several subspaces at once.

    Parameters
    ----------
    x : array (N, L, H)
        N sequences of L positions.
    weight_in, bias_in : arrays (H, 3 D) and (3 D,)
        Projections to queries, keys and values, side by side in this order; D is a multiple of ``heads``.
        The bias may be ``None``.
    weight_out, bias_out : arrays (D, H') and (H',)
        Projection of the concatenated heads. The bias may be ``None``.
    heads : int >= 1
        Head ``h`` takes columns ``h D/heads .. (h + 1) D/heads`` of queries, keys and values.
    lengths : integer array (N,), optional
        Sequence ``n`` ends after ``lengths[n]`` positions; the rest is padding.
    mask : boolean array, broadcastable to (N, heads, L, L), optional
        True where the query may attend to the key.
    causal : bool
        No position looks at a later one.
    scale : float > 0, optional
        Factor of the scores; ``1 / sqrt(D / heads)`` by default.

    Returns
    -------
    array (N, L, H'), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``mask`` is not boolean.
    ValueError
        If a shape does not fit, or a length is below 0 or above L.

    Notes
    -----
    Padding neither attends nor is attended to: its rows of the result are ``bias_out``, its rows of ``x``
    have the cotangent 0, and whatever finite numbers it holds change nothing else.

    References
    ----------
    Vaswani et al. (2017), arXiv 1706.03762, section 3.2.2.

    Examples
    --------
    >>> x = np.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> weight_in = np.hstack([np.zeros((2, 4)), np.eye(2)])
    >>> multi_head_attention(x, weight_in, None, np.eye(2), None, heads=2, lengths=np.array([2]))
    array([[[2., 3.],
            [2., 3.],
            [0., 0.]]])
    """
    return multi_head_attention_vjp(
        x, weight_in, bias_in, weight_out, bias_out,
        heads=heads, lengths=lengths, mask=mask, causal=causal, scale=scale,
    )[0]  # fmt: skip


def multi_head_attention_vjp(
    x: Array[F],
    weight_in: Array[F],
    bias_in: Array[F] | None,
    weight_out: Array[F],
    bias_out: Array[F] | None,
    *,
    heads: int,
    lengths: IntArray | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`multi_head_attention` and its pullback.

    The pullback maps ``dy`` to ``(dx, dweight_in, dbias_in, dweight_out, dbias_out)``; the entry of a bias
    that is ``None`` is ``None``. Parameters, errors and references are those of
    :func:`multi_head_attention`.
    """
    x = _checks.float_array(x, "x", ndim=3)
    weight_in = _checks.float_array(weight_in, "weight_in", ndim=2)
    heads = _checks.whole(heads, "heads", low=1)
    if weight_in.shape[1] % (3 * heads) or not weight_in.shape[1]:
        _checks.fail("weight_in", f"a positive multiple of 3 heads = {3 * heads} columns", weight_in.shape)
    sequences, positions, hidden = x.shape
    width = weight_in.shape[1] // 3
    _checks.shape(weight_in, "weight_in", (hidden, 3 * width))
    weight_out = _checks.float_array(weight_out, "weight_out", ndim=2)
    _checks.shape(weight_out, "weight_out", (width, weight_out.shape[1]))
    for name, bias, weight in (("bias_in", bias_in, weight_in), ("bias_out", bias_out, weight_out)):
        if bias is not None:
            _checks.shape(_checks.float_array(bias, name), name, (weight.shape[1],))
    _checks.same_dtype("x", x, weight_in=weight_in, bias_in=bias_in, weight_out=weight_out, bias_out=bias_out)

    projected, project_pullback = linear_vjp(x, weight_in, bias_in)
    query, key, value = split_heads(projected, heads)
    inside = _inside(lengths, sequences, positions)
    if inside is not None:
        mask = inside if mask is None else inside & mask
    context, attention_pullback = scaled_dot_product_attention_vjp(
        query, key, value, mask=mask, causal=causal, scale=scale
    )
    merged = np.ascontiguousarray(context.transpose(0, 2, 1, 3)).reshape(sequences, positions, width)
    y, out_pullback = linear_vjp(merged, weight_out, bias_out)

    def pullback(
        dy: Array[F],
    ) -> tuple[Array[F], Array[F], Array[F] | None, Array[F], Array[F] | None]:
        # Splitting and merging heads only move entries; their adjoints move them back.
        dmerged, dweight_out, dbias_out = out_pullback(dy)
        dcontext = dmerged.reshape(sequences, positions, heads, width // heads).transpose(0, 2, 1, 3)
        dprojected = merge_heads(*attention_pullback(dcontext))
        dx, dweight_in, dbias_in = project_pullback(dprojected)
        return dx, dweight_in, dbias_in, dweight_out, dbias_out

    return y, pullback


def split_heads(projected: Array[F], heads: int) -> tuple[Array[F], Array[F], Array[F]]:
    """Return queries, keys and values (N, heads, L, D / heads), views of their joint array (N, L, 3 D)."""
    width = projected.shape[2] // (3 * heads)
    parts = projected.reshape(*projected.shape[:2], 3, heads, width).transpose(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def merge_heads(query: Array[F], key: Array[F], value: Array[F]) -> Array[F]:
    """Put queries, keys and values side by side: the adjoint and the inverse of :func:`split_heads`."""
    parts = np.stack([query, key, value]).transpose(1, 3, 0, 2, 4)
    joint: Array[F] = np.ascontiguousarray(parts).reshape(*parts.shape[:2], 3 * parts.shape[3] * parts.shape[4])
    return joint


def _inside(lengths: IntArray | None, sequences: int, positions: int) -> AnyArray | None:
    """Return, for each sequence, which pairs of query and key both lie within it: (N, 1, L, L)."""
    if lengths is None:
        return None
    given = _checks.integer_array(lengths, "lengths", ndim=1, low=0, high=positions)
    _checks.shape(given, "lengths", (sequences,))
    valid = np.arange(positions) < given[:, None]
    return (valid[:, :, None] & valid[:, None, :])[:, None]
