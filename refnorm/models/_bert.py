"""BERT: a Transformer encoder, here as a map from texts to vectors.

x = layer_norm(token_table[token] + position_table[position] + type_table[type])
for each layer:
    x = layer_norm(x + linear(attention(x)))
    x = layer_norm(x + linear(gelu(linear(x))))
embedding = mean of a text's rows of x, scaled to length 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.models import reference_ops
from refnorm.models._ops import Ops

METHOD = Method(
    title="BERT sentence encoder (BERT; Sentence-BERT)",
    authors="Devlin, Chang, Lee, Toutanova; Reimers, Gurevych",
    year=2019,
    arxiv="1810.04805",
    functions=("bert_embed", "bert_encode", "bert_init"),
    chapter="models/bert",
    paper=False,
)

Params = Mapping[str, Any]

INITIAL_STD = 0.02
"""Standard deviation of the weights at initialization (the authors' code)."""


def bert_init(
    rng: np.random.Generator,
    *,
    vocabulary: int,
    hidden: int,
    inner: int,
    layers: int,
    positions: int = 512,
    types: int = 2,
    dtype: Any = np.float64,
) -> dict[str, Any]:
    """Draw parameters of an untrained encoder.

    Parameters
    ----------
    rng : numpy.random.Generator
    vocabulary, positions, types : int >= 1
        Rows of the three embedding tables.
    hidden : int >= 1
        Width H of a token's vector.
    inner : int >= 1
        Width I of the feed-forward part, usually 4 H.
    layers : int >= 0
    dtype : float32 or float64

    Returns
    -------
    dict
        ``token_table`` (V, H), ``position_table`` (P, H), ``type_table`` (K, H), ``gain`` and ``bias``
        (H,) of the norm behind them, and ``layers``, a list of dicts: ``qkv_weight`` (H, 3 H), ``qkv_bias``,
        ``attention_weight`` (H, H), ``attention_bias``, ``attention_gain``, ``attention_norm_bias``,
        ``inner_weight`` (H, I), ``inner_bias``, ``outer_weight`` (I, H), ``outer_bias``, ``outer_gain``,
        ``outer_norm_bias``.

    Examples
    --------
    >>> params = bert_init(np.random.default_rng(0), vocabulary=10, hidden=4, inner=8, layers=2)
    >>> params["layers"][1]["qkv_weight"].shape
    (4, 12)
    """
    rng = _checks.generator(rng)
    for name, size in (("vocabulary", vocabulary), ("hidden", hidden), ("inner", inner), ("positions", positions)):
        _checks.whole(size, name, low=1)
    _checks.whole(layers, "layers", low=0)
    _checks.whole(types, "types", low=1)

    def weight(*shape: int) -> AnyArray:
        return (INITIAL_STD * rng.standard_normal(shape)).astype(dtype)

    def constant(value: float, size: int) -> AnyArray:
        return np.full(size, value, dtype)

    def layer() -> dict[str, AnyArray]:
        found = {}
        for name, rows, columns in (
            ("qkv", hidden, 3 * hidden),
            ("attention", hidden, hidden),
            ("inner", hidden, inner),
            ("outer", inner, hidden),
        ):
            found[f"{name}_weight"], found[f"{name}_bias"] = weight(rows, columns), constant(0, columns)
        for name in ("attention", "outer"):
            found[f"{name}_gain"], found[f"{name}_norm_bias"] = constant(1, hidden), constant(0, hidden)
        return found

    return {
        "token_table": weight(vocabulary, hidden),
        "position_table": weight(positions, hidden),
        "type_table": weight(types, hidden),
        "gain": constant(1, hidden),
        "bias": constant(0, hidden),
        "layers": [layer() for _ in range(layers)],
    }


def bert_encode(
    params: Params,
    token_ids: IntArray,
    offsets: IntArray,
    *,
    heads: int,
    eps: float = 1e-12,
    activation: str = "gelu",
    first_position: int = 0,
) -> AnyArray:
    """Run the encoder on texts that lie end to end.

    Parameters
    ----------
    params : tree of arrays
        As :func:`bert_init` makes it.
    token_ids : integer array (T,)
        The tokens of all texts, special tokens included.
    offsets : integer array (n + 1,)
        Text ``i`` is tokens ``offsets[i]`` to ``offsets[i + 1]``.
    heads : int >= 1
        Divides the hidden width.
    eps : float > 0
        Of all layer norms.
    activation : {"gelu", "gelu_tanh", "relu"}
    first_position : int >= 0
        Row of the position table that a text's first token gets: 0 for BERT, 2 for RoBERTa.

    Returns
    -------
    array (T, H), dtype of the parameters

    Raises
    ------
    ValueError
        If an id is outside its table, a text has more tokens than there are positions, ``offsets`` do not
        run from 0 to T, or ``heads`` does not divide the width.

    Notes
    -----
    Texts do not see each other, so the result for a text does not depend on its neighbours. All tokens
    have type 0.

    References
    ----------
    Devlin et al. (2019), arXiv 1810.04805, section 3 and Figure 2. Vaswani et al. (2017), arXiv 1706.03762,
    section 3.1 (the layer).

    Examples
    --------
    >>> params = bert_init(np.random.default_rng(0), vocabulary=10, hidden=4, inner=8, layers=2)
    >>> bert_encode(params, np.array([3, 1, 4, 1, 5]), np.array([0, 3, 5]), heads=2).shape
    (5, 4)
    """
    check_config(params, heads, eps)
    _checks.one_of(activation, "activation", reference_ops.ACTIVATIONS)
    prepared = prepare(params, cast(Ops, reference_ops))
    return forward(
        prepared, token_ids, offsets, cast(Ops, reference_ops),
        heads=heads, eps=eps, activation=activation, first_position=first_position,
    )  # fmt: skip


def bert_encode_vjp(
    params: Params,
    token_ids: IntArray,
    offsets: IntArray,
    *,
    heads: int,
    eps: float = 1e-12,
    activation: str = "gelu",
    first_position: int = 0,
) -> tuple[AnyArray, Pullback]:
    """Return :func:`bert_encode` and its pullback ``dy -> (dparams,)``, a tree like ``params``.

    Parameters, errors and references are those of :func:`bert_encode`.
    """
    check_config(params, heads, eps)
    tables = _tables(params)
    token_ids, position_ids, type_ids = input_ids(tables, token_ids, offsets, first_position)
    x, pull_embed = reference_ops.embed_vjp(token_ids, position_ids, type_ids, *tables, eps=eps)
    pulls = []
    for layer in params["layers"]:
        x, pull = _layer_vjp(layer, x, offsets, heads, eps, activation)
        pulls.append(pull)

    def pullback(dy: AnyArray) -> tuple[dict[str, Any]]:
        dlayers = []
        for pull in reversed(pulls):
            dy, dlayer = pull(dy)
            dlayers.append(dlayer)
        names = ("token_table", "position_table", "type_table", "gain", "bias")
        dparams = dict(zip(names, pull_embed(dy), strict=True)) | {"layers": dlayers[::-1]}
        return ({name: dparams[name] for name in params},)

    return x, pullback


def _layer_vjp(
    layer: Params, x: Array[F], offsets: IntArray, heads: int, eps: float, activation: str
) -> tuple[Array[F], Pullback]:
    """One layer of :func:`forward` in the reference operations, with its pullback."""
    width = x.shape[1]
    scale = 1 / math.sqrt(width // heads)
    qkv, pull_qkv = reference_ops.linear_activated_vjp(x, layer["qkv_weight"], layer["qkv_bias"])
    context, pull_attention = reference_ops.attention_vjp(
        qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :], offsets, heads, scale=scale
    )
    middle, pull_middle = reference_ops.linear_residual_norm_vjp(
        context, layer["attention_weight"], layer["attention_bias"], x,
        layer["attention_gain"], layer["attention_norm_bias"], eps=eps,
    )  # fmt: skip
    inner, pull_inner = reference_ops.linear_activated_vjp(
        middle, layer["inner_weight"], layer["inner_bias"], activation=activation
    )
    y, pull_outer = reference_ops.linear_residual_norm_vjp(
        inner, layer["outer_weight"], layer["outer_bias"], middle,
        layer["outer_gain"], layer["outer_norm_bias"], eps=eps,
    )  # fmt: skip

    def pullback(dy: Array[F]) -> tuple[Array[F], dict[str, Array[F]]]:
        # Backwards through the five steps. `middle` and `x` are used twice, by the next step and by the
        # residual connection around it, so their cotangents are sums of two.
        found: dict[str, Array[F]] = {}
        dinner, found["outer_weight"], found["outer_bias"], dmiddle, found["outer_gain"], found["outer_norm_bias"] = (
            pull_outer(dy)
        )
        dmiddle_inner, found["inner_weight"], found["inner_bias"] = pull_inner(dinner)
        (
            dcontext,
            found["attention_weight"],
            found["attention_bias"],
            dx,
            found["attention_gain"],
            found["attention_norm_bias"],
        ) = pull_middle(dmiddle + dmiddle_inner)
        dqkv = np.concatenate(pull_attention(dcontext), axis=1)
        dx_qkv, found["qkv_weight"], found["qkv_bias"] = pull_qkv(dqkv)
        return dx + dx_qkv, {name: found[name] for name in layer}

    return y, pullback


def bert_embed(
    params: Params,
    token_ids: IntArray,
    offsets: IntArray,
    *,
    heads: int,
    eps: float = 1e-12,
    activation: str = "gelu",
    first_position: int = 0,
) -> AnyArray:
    """Return one unit vector a text: the mean of its tokens' vectors, normalized.

    Parameters and errors are those of :func:`bert_encode`; a text without tokens is an error too.

    Returns
    -------
    array (n, H), dtype of the parameters
        Scalar products of rows are cosine similarities.

    References
    ----------
    Reimers, Gurevych (2019), arXiv 1908.10084, section 3 (mean pooling).

    Examples
    --------
    >>> params = bert_init(np.random.default_rng(0), vocabulary=10, hidden=4, inner=8, layers=2)
    >>> y = bert_embed(params, np.array([3, 1, 4, 1, 5]), np.array([0, 3, 5]), heads=2)
    >>> (y**2).sum(axis=1)
    array([1., 1.])
    """
    hidden = bert_encode(
        params, token_ids, offsets, heads=heads, eps=eps, activation=activation, first_position=first_position
    )
    return reference_ops.mean_pool_normalize(hidden, offsets)


def bert_embed_vjp(
    params: Params,
    token_ids: IntArray,
    offsets: IntArray,
    *,
    heads: int,
    eps: float = 1e-12,
    activation: str = "gelu",
    first_position: int = 0,
) -> tuple[AnyArray, Pullback]:
    """Return :func:`bert_embed` and its pullback ``dy -> (dparams,)``, a tree like ``params``."""
    hidden, pull_encode = bert_encode_vjp(
        params, token_ids, offsets, heads=heads, eps=eps, activation=activation, first_position=first_position
    )
    y, pull_pool = reference_ops.mean_pool_normalize_vjp(hidden, offsets)
    return y, lambda dy: pull_encode(*pull_pool(dy))


def prepare(params: Params, ops: Ops) -> dict[str, Any]:
    """Replace each pair of weight and bias by the operations' handle."""
    layers = [prepare_layer(layer, ops) for layer in params["layers"]]
    return {name: value for name, value in params.items() if name != "layers"} | {"layers": layers}


def prepare_layer(layer: Params, ops: Ops) -> dict[str, Any]:
    """Replace each pair of weight and bias of one layer by the operations' handle."""
    found: dict[str, Any] = {
        name: ops.prepare_linear(layer[f"{name}_weight"], layer[f"{name}_bias"])
        for name in ("qkv", "attention", "inner", "outer")
    }
    for name in ("attention", "outer"):
        found[f"{name}_gain"], found[f"{name}_norm_bias"] = layer[f"{name}_gain"], layer[f"{name}_norm_bias"]
    return found | {"inner_width": len(layer["inner_bias"])}


def forward(
    prepared: Params,
    token_ids: IntArray,
    offsets: IntArray,
    ops: Ops,
    *,
    heads: int,
    eps: float,
    activation: str,
    first_position: int,
    buffers: dict[str, AnyArray] | None = None,
) -> AnyArray:
    """Run an encoder whose weights :func:`prepare` has made ready for ``ops``; returns (T, H).

    ``buffers`` keeps the large arrays from call to call (fresh ones cost page faults). The result may be
    one of them, to be used before the next call.
    """
    tables = _tables(prepared)
    token_ids, position_ids, type_ids = input_ids(tables, token_ids, offsets, first_position)
    width = tables[0].shape[1]
    scale = 1 / math.sqrt(width // heads)
    x = ops.embed(token_ids, position_ids, type_ids, *tables, eps=eps)

    def room(name: str, columns: int) -> AnyArray | None:
        if buffers is None:
            return None
        held = buffers.get(name)
        if held is None or len(held) < len(x) or held.shape[1] != columns or held.dtype != x.dtype:
            held = buffers[name] = np.empty((len(x), columns), x.dtype)
        return held[: len(x)]

    for layer in prepared["layers"]:
        qkv = ops.linear(x, layer["qkv"], out=room("qkv", 3 * width))
        query, key, value = (qkv[:, i * width : (i + 1) * width] for i in range(3))
        context = ops.attention(query, key, value, offsets, heads, scale=scale, out=room("context", width))
        middle = ops.linear_residual_norm(
            context, layer["attention"], x, layer["attention_gain"], layer["attention_norm_bias"],
            eps=eps, out=room("middle", width),
        )  # fmt: skip
        inner = ops.linear(middle, layer["inner"], activation=activation, out=room("inner", layer["inner_width"]))
        x = ops.linear_residual_norm(
            inner, layer["outer"], middle, layer["outer_gain"], layer["outer_norm_bias"],
            eps=eps, out=room("x", width),
        )  # fmt: skip
    return x


def input_ids(
    tables: tuple[AnyArray, ...], token_ids: IntArray, offsets: IntArray, first_position: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Check the tokens of packed texts and return the rows of the three tables that each token adds up."""
    ids = _checks.integer_array(token_ids, "token_ids", ndim=1, low=0, high=len(tables[0]) - 1)
    _checks.whole(first_position, "first_position", low=0)
    ends = _checks.integer_array(offsets, "offsets", ndim=1, low=0, high=len(ids))
    lengths = np.diff(ends)
    if not len(ends) or ends[0] != 0 or ends[-1] != len(ids) or (lengths < 0).any():
        _checks.fail("offsets", f"numbers from 0 to {len(ids)} that do not decrease", ends)
    longest, positions = int(lengths.max(initial=0)), len(tables[1]) - first_position
    if longest > positions:
        _checks.fail("offsets", f"texts of at most {positions} tokens", longest)
    position_ids = np.arange(len(ids)) - np.repeat(ends[:-1], lengths) + first_position
    return ids, position_ids, np.zeros_like(position_ids)


def check_config(params: Params, heads: int, eps: float) -> None:
    """Check what the shapes of the arrays cannot say."""
    width = params["token_table"].shape[1]
    _checks.whole(heads, "heads", low=1)
    if width % heads:
        _checks.fail("heads", f"a divisor of the hidden width {width}", heads)
    _checks.positive(eps, "eps")


def _tables(params: Params) -> tuple[AnyArray, ...]:
    return tuple(params[name] for name in ("token_table", "position_table", "type_table", "gain", "bias"))
