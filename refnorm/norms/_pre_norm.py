"""Transformers with the norm before each layer, and their exact conversion to RMSNorm.

    X = embedding + position;   X = X + F(norm(X)) for each layer F;   logits = norm(X) head

A layer norm removes the main branch's mean. If everything that is added to the branch is centred, once and
in the weights, there is no mean to remove: layer norm may become RMSNorm, and one entry may be left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, IntArray, Method, Pullback
from refnorm.norms._compressed_rms_norm import centred, compress, compressed_rms_norm_vjp, rms_norm_vjp
from refnorm.norms._layer_norm import layer_norm_vjp
from refnorm.softmax import softmax_vjp

METHOD = Method(
    title="Pre-norm transformers and their conversion",
    authors="Jiang, Gu, Zhu, Pan",
    year=2023,
    arxiv="2305.14858",
    functions=(
        "PreNormBlock",
        "PreNormParams",
        "init_pre_norm",
        "pre_norm_forward",
        "to_pre_crms",
        "to_pre_rms",
    ),
    chapter="norms/pre_norm",
    paper=False,
)


@dataclass(frozen=True)
class PreNormBlock:
    """One attention layer and one two-layer network, each on the normalized main branch.

    Parameters
    ----------
    attention_gain, attention_bias : arrays (d,) or None
        Affine part of the norm before attention; ``None`` once it is folded into the weights behind it.
    query_weight, key_weight, value_weight : arrays (heads, d, k)
    query_bias, value_bias : arrays (heads, k)
        Keys have none: it would add one number to all scores of a query, which softmax does not feel.
    output_weight, output_bias : arrays (heads, k, d), (d,)
    network_gain, network_bias : arrays (d,) or None
        Affine part of the norm before the network.
    hidden_weight, hidden_bias : arrays (d, f), (f,)
    result_weight, result_bias : arrays (f, d), (d,)
    """

    attention_gain: AnyArray | None
    attention_bias: AnyArray | None
    query_weight: AnyArray
    query_bias: AnyArray
    key_weight: AnyArray
    value_weight: AnyArray
    value_bias: AnyArray
    output_weight: AnyArray
    output_bias: AnyArray
    network_gain: AnyArray | None
    network_bias: AnyArray | None
    hidden_weight: AnyArray
    hidden_bias: AnyArray
    result_weight: AnyArray
    result_bias: AnyArray


@dataclass(frozen=True)
class PreNormParams:
    """A transformer encoder with the norm before each layer, and a linear read-out.

    Parameters
    ----------
    embedding, position : arrays (V, d), (L, d)
        One row a token, one row a place; L is the longest sequence.
    blocks : tuple of PreNormBlock
    final_gain, final_bias : arrays (d,) or None
        Affine part of the last norm.
    head_weight, head_bias : arrays (d, K), (K,)
        Read-out of K logits a place.
    """

    embedding: AnyArray
    position: AnyArray
    blocks: tuple[PreNormBlock, ...]
    final_gain: AnyArray | None
    final_bias: AnyArray | None
    head_weight: AnyArray
    head_bias: AnyArray


def init_pre_norm(
    rng: np.random.Generator,
    tokens: int,
    places: int,
    units: int,
    heads: int,
    blocks: int,
    outputs: int,
    *,
    dtype: Any = np.float64,
) -> PreNormParams:
    """Draw random parameters: Gaussian weights of variance 1 / inputs, gains near 1, biases near 0.

    Parameters
    ----------
    rng : numpy.random.Generator
    tokens, places, units, heads, blocks, outputs : int >= 1 (``blocks`` >= 0)
        Vocabulary, longest sequence, width d of the main branch (a multiple of ``heads``), attention heads,
        blocks, and logits. The hidden layers have 4 d units.
    dtype : float32 or float64

    Returns
    -------
    PreNormParams

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Examples
    --------
    >>> init_pre_norm(np.random.default_rng(0), 11, 8, 6, 2, 1, 5).blocks[0].query_weight.shape
    (2, 6, 3)
    """
    rng = _checks.generator(rng)
    named = {"tokens": tokens, "places": places, "units": units, "heads": heads, "blocks": blocks, "outputs": outputs}
    for name, number in named.items():
        _checks.whole(number, name, low=0 if name == "blocks" else 1)
    if units % heads:
        _checks.fail("units", f"a multiple of heads = {heads}", units)
    size = units // heads

    def weight(inputs: int, *shape: int) -> AnyArray:
        drawn: AnyArray = (rng.standard_normal(shape) / np.sqrt(inputs)).astype(dtype)
        return drawn

    def gain() -> AnyArray:
        drawn: AnyArray = (1 + 0.2 * rng.standard_normal(units)).astype(dtype)
        return drawn

    def bias(*shape: int) -> AnyArray:
        drawn: AnyArray = (0.2 * rng.standard_normal(shape)).astype(dtype)
        return drawn

    def block() -> PreNormBlock:
        inward = (units, heads, units, size)
        return PreNormBlock(
            attention_gain=gain(),
            attention_bias=bias(units),
            query_weight=weight(*inward),
            query_bias=bias(heads, size),
            key_weight=weight(*inward),
            value_weight=weight(*inward),
            value_bias=bias(heads, size),
            output_weight=weight(units, heads, size, units),
            output_bias=bias(units),
            network_gain=gain(),
            network_bias=bias(units),
            hidden_weight=weight(units, units, 4 * units),
            hidden_bias=bias(4 * units),
            result_weight=weight(4 * units, 4 * units, units),
            result_bias=bias(units),
        )

    return PreNormParams(
        embedding=weight(1, tokens, units),
        position=weight(1, places, units),
        blocks=tuple(block() for _ in range(blocks)),
        final_gain=gain(),
        final_bias=bias(units),
        head_weight=weight(units, units, outputs),
        head_bias=bias(outputs),
    )


def to_pre_rms(params: PreNormParams) -> PreNormParams:
    """Convert a Pre-LN transformer to one with RMSNorm that computes the same function.

    Parameters
    ----------
    params : PreNormParams
        For ``kind="ln"`` of :func:`pre_norm_forward`.

    Returns
    -------
    PreNormParams
        For ``kind="rms"``; the norms' gains and biases are ``None``.

    Notes
    -----
    Everything that is added to the main branch is centred, so the branch sums to zero and its layer norms
    are RMSNorms; the norms' gains and biases go into the weights behind them. Exact but for rounding.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> params, tokens = init_pre_norm(rng, 11, 8, 6, 2, 2, 5), np.array([[1, 2, 3]])
    >>> before, after = pre_norm_forward(params, tokens), pre_norm_forward(to_pre_rms(params), tokens, kind="rms")
    >>> bool(np.abs(after - before).max() < 1e-12)
    True
    """
    blocks = []
    for block in params.blocks:
        folded = {}
        for name in ("query", "value"):
            folded[f"{name}_weight"], folded[f"{name}_bias"] = _fold(
                block.attention_gain,
                block.attention_bias,
                getattr(block, f"{name}_weight"),
                getattr(block, f"{name}_bias"),
            )
        # The norm's bias gives the keys a bias, which has no effect.
        folded["key_weight"] = _scaled(block.attention_gain, block.key_weight)
        folded["hidden_weight"], folded["hidden_bias"] = _fold(
            block.network_gain, block.network_bias, block.hidden_weight, block.hidden_bias
        )
        written = {
            name: centred(getattr(block, name))
            for name in ("output_weight", "output_bias", "result_weight", "result_bias")
        }
        blocks.append(
            PreNormBlock(
                attention_gain=None, attention_bias=None, network_gain=None, network_bias=None, **folded, **written
            )
        )
    head_weight, head_bias = _fold(params.final_gain, params.final_bias, params.head_weight, params.head_bias)
    return PreNormParams(
        embedding=centred(params.embedding),
        position=centred(params.position),
        blocks=tuple(blocks),
        final_gain=None,
        final_bias=None,
        head_weight=head_weight,
        head_bias=head_bias,
    )


def to_pre_crms(params: PreNormParams) -> PreNormParams:
    """Convert a Pre-LN transformer to one whose main branch has one entry less.

    Parameters
    ----------
    params : PreNormParams
        For ``kind="ln"`` of :func:`pre_norm_forward`.

    Returns
    -------
    PreNormParams
        For ``kind="crms"``: the main branch has d - 1 entries, the last one is implied.

    Raises
    ------
    ValueError
        If ``d = 1``: nothing would be left.

    Notes
    -----
    What is added to the main branch loses its last column after centring. What reads it sees an implied
    last entry of minus the sum, so the last row of its weight is subtracted from all others.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> params, tokens = init_pre_norm(rng, 11, 8, 6, 2, 2, 5), np.array([[1, 2, 3]])
    >>> before, after = pre_norm_forward(params, tokens), pre_norm_forward(to_pre_crms(params), tokens, kind="crms")
    >>> bool(np.abs(after - before).max() < 1e-12)
    True
    """
    if params.embedding.shape[-1] < 2:
        _checks.fail("params.embedding", "at least two units", f"shape {params.embedding.shape}")
    params = to_pre_rms(params)

    def reader(weight: AnyArray) -> AnyArray:
        read: AnyArray = weight[..., :-1, :] - weight[..., -1:, :]
        return read

    blocks = tuple(
        dataclasses.replace(
            block,
            **{name: reader(getattr(block, name)) for name in _READERS},
            **{name: compress(getattr(block, name)) for name in _WRITERS},
        )
        for block in params.blocks
    )
    return dataclasses.replace(
        params,
        embedding=compress(params.embedding),
        position=compress(params.position),
        blocks=blocks,
        head_weight=reader(params.head_weight),
    )


_READERS = ("query_weight", "key_weight", "value_weight", "hidden_weight")
_WRITERS = ("output_weight", "output_bias", "result_weight", "result_bias")


def pre_norm_forward(params: PreNormParams, tokens: IntArray, *, kind: str = "ln", eps: float = 1e-5) -> AnyArray:
    """Logits of a transformer encoder with the norm before each layer.

    Parameters
    ----------
    params : PreNormParams
    tokens : integer array (B, L)
        Rows of the embedding, at most as many a sequence as there are places.
    kind : {"ln", "rms", "crms"}
        The norm that ``params`` are for.
    eps : float > 0
        Added to variances and mean squares.

    Returns
    -------
    array (B, L, K), dtype of the parameters

    Raises
    ------
    TypeError
        If the tokens are not integers.
    ValueError
        If a token or the length is out of range, the kind is unknown, or ``"crms"`` comes with gains.

    Notes
    -----
    ``X = embedding + position``; in each block ``X += attention(norm(X))``, ``X += network(norm(X))`` with
    softmax attention over all places and a ReLU; logits ``norm(X) head_weight + head_bias``.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> params = init_pre_norm(np.random.default_rng(0), 11, 8, 6, 2, 1, 5)
    >>> pre_norm_forward(params, np.array([[3, 1, 4, 1], [5, 9, 2, 6]])).shape
    (2, 4, 5)
    """
    return pre_norm_forward_vjp(params, tokens, kind=kind, eps=eps)[0]


def pre_norm_forward_vjp(
    params: PreNormParams, tokens: IntArray, *, kind: str = "ln", eps: float = 1e-5
) -> tuple[AnyArray, Pullback]:
    """Return :func:`pre_norm_forward` and its pullback ``dlogits -> (dparams,)``.

    Parameters, errors and references are those of :func:`pre_norm_forward`.
    """
    _checks.one_of(kind, "kind", tuple(_NORMS))
    tokens = _checks.integer_array(tokens, "tokens", ndim=2, low=0, high=len(params.embedding) - 1)
    length = tokens.shape[1]
    if length > len(params.position):
        _checks.fail("tokens", f"at most {len(params.position)} places", f"shape {tokens.shape}")
    if kind == "crms" and params.final_gain is not None:
        _checks.fail("params", "converted parameters without gains for kind 'crms'", "final_gain")
    norm_vjp = _NORMS[kind]

    x = params.embedding[tokens] + params.position[:length]
    pullbacks = []
    for block in params.blocks:
        for layer_vjp, gain, bias in (
            (_attention_vjp, block.attention_gain, block.attention_bias),
            (_network_vjp, block.network_gain, block.network_bias),
        ):
            normed, pull_norm = norm_vjp(x, gain, bias, eps)
            update, pull_layer = layer_vjp(normed, block)
            x = x + update
            pullbacks.append((pull_norm, pull_layer))
    normed, pull_final = norm_vjp(x, params.final_gain, params.final_bias, eps)
    logits = normed @ params.head_weight + params.head_bias

    def pullback(dlogits: AnyArray) -> tuple[PreNormParams]:
        dhead_weight = np.einsum("bld,blk->dk", normed, dlogits)
        dx, dfinal_gain, dfinal_bias = pull_final(dlogits @ params.head_weight.T)
        layers: list[tuple[Any, ...]] = []
        for pull_norm, pull_layer in reversed(pullbacks):
            # x + F(norm(x)): the cotangent goes on along the branch and takes up the layer's part.
            dnormed, dlayer = pull_layer(dx)
            through, dgain, dbias = pull_norm(dnormed)
            dx = dx + through
            layers.append((dgain, dbias, dlayer))
        layers.reverse()
        blocks = tuple(
            PreNormBlock(*attention[:2], *attention[2], *network[:2], *network[2])
            for attention, network in zip(layers[::2], layers[1::2], strict=True)
        )
        dembedding, dposition = np.zeros_like(params.embedding), np.zeros_like(params.position)
        np.add.at(dembedding, tokens, dx)
        dposition[:length] = dx.sum(axis=0)
        return (
            PreNormParams(
                dembedding, dposition, blocks, dfinal_gain, dfinal_bias, dhead_weight, dlogits.sum(axis=(0, 1))
            ),
        )

    return logits, pullback


def _attention_vjp(x: AnyArray, block: PreNormBlock) -> tuple[AnyArray, Pullback]:
    weights = (block.query_weight, block.key_weight, block.value_weight)
    q, k, v = (np.einsum("bld,hdk->bhlk", x, weight) for weight in weights)
    q, v = q + block.query_bias[:, None], v + block.value_bias[:, None]
    scale = 1 / float(np.sqrt(q.shape[-1]))
    attention, pull_softmax = softmax_vjp(np.einsum("bhlk,bhmk->bhlm", q, k) * scale)
    mixed = np.einsum("bhlm,bhmk->bhlk", attention, v)
    y = np.einsum("bhlk,hkd->bld", mixed, block.output_weight) + block.output_bias

    def pullback(dy: AnyArray) -> tuple[AnyArray, tuple[AnyArray, ...]]:
        dmixed = np.einsum("bld,hkd->bhlk", dy, block.output_weight)
        dscores = pull_softmax(np.einsum("bhlk,bhmk->bhlm", dmixed, v))[0] * scale
        dq = np.einsum("bhlm,bhmk->bhlk", dscores, k)
        dk = np.einsum("bhlm,bhlk->bhmk", dscores, q)
        dv = np.einsum("bhlm,bhlk->bhmk", attention, dmixed)
        dx = np.zeros_like(x)
        dweights = []
        for dpart, weight in zip((dq, dk, dv), weights, strict=True):
            dx = dx + np.einsum("bhlk,hdk->bld", dpart, weight)
            dweights.append(np.einsum("bld,bhlk->hdk", x, dpart))
        grads = (dweights[0], dq.sum(axis=(0, 2)), *dweights[1:], dv.sum(axis=(0, 2)))
        return dx, (*grads, np.einsum("bhlk,bld->hkd", mixed, dy), dy.sum(axis=(0, 1)))

    return y, pullback


def _network_vjp(x: AnyArray, block: PreNormBlock) -> tuple[AnyArray, Pullback]:
    before = x @ block.hidden_weight + block.hidden_bias
    active = before.real > 0
    hidden = before * active
    y = hidden @ block.result_weight + block.result_bias

    def pullback(dy: AnyArray) -> tuple[AnyArray, tuple[AnyArray, ...]]:
        dbefore = (dy @ block.result_weight.T) * active
        grads = (
            np.einsum("bld,blf->df", x, dbefore),
            dbefore.sum(axis=(0, 1)),
            np.einsum("blf,bld->fd", hidden, dy),
            dy.sum(axis=(0, 1)),
        )
        return dbefore @ block.hidden_weight.T, grads

    return y, pullback


def _layer_norm_vjp(x: AnyArray, gain: AnyArray | None, bias: AnyArray | None, eps: float) -> Any:
    units = x.shape[-1:]
    scale = np.ones(units, x.real.dtype) if gain is None else gain
    shift = np.zeros(units, x.real.dtype) if bias is None else bias
    y, pull = layer_norm_vjp(x, scale, shift, eps=eps)

    def pullback(dy: AnyArray) -> tuple[Any, ...]:
        dx, dscale, dshift = pull(dy)
        return dx, None if gain is None else dscale, None if bias is None else dshift

    return y, pullback


def _rms_norm_vjp(x: AnyArray, gain: AnyArray | None, bias: AnyArray | None, eps: float) -> Any:
    return rms_norm_vjp(x, gain, bias, eps=eps)


def _compressed_vjp(x: AnyArray, gain: AnyArray | None, bias: AnyArray | None, eps: float) -> Any:
    y, pull = compressed_rms_norm_vjp(x, eps=eps)
    return y, lambda dy: (*pull(dy), None, None)


_NORMS = {"ln": _layer_norm_vjp, "rms": _rms_norm_vjp, "crms": _compressed_vjp}


def _fold(
    gain: AnyArray | None, norm_bias: AnyArray | None, weight: AnyArray, bias: AnyArray
) -> tuple[AnyArray, AnyArray]:
    """Weight and bias that do to the bare norm's output what these did after its affine part."""
    if norm_bias is not None:
        bias = bias + np.einsum("d,...dk->...k", norm_bias, weight)
    return _scaled(gain, weight), bias


def _scaled(gain: AnyArray | None, weight: AnyArray) -> AnyArray:
    return weight if gain is None else weight * gain[:, None]
