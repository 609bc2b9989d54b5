"""Quantize a loaded encoder after training, with any of the quantizers room's methods.

The four linear layers of each block are replaced; embeddings and norms stay in float32. Everything is computed
in NumPy with the values that the codes stand for, so that a method's effect on embeddings can be seen; memory is
counted as if the codes were packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, IntArray
from refnorm.models import reference_ops
from refnorm.models._calibration_text import SENTENCES
from refnorm.models._encoder import Encoder
from refnorm.models._ops import Ops
from refnorm.quantizers import (
    adaquant,
    affine_qparams,
    calibrate_channelwise,
    dequantize,
    fit_affine_quant,
    fit_codebook,
    fit_rounding,
    llm_int8_linear,
    log_sqrt2_fake_quantize,
    quantize,
    quantize_weight,
    range_fake_quantize,
    reparameterize_layernorm,
    sulq_calibrate,
    sulq_fake_quantize,
)
from refnorm.quantizers._calibration import LayerRecorder, choose_range, fake_quantize_range
from refnorm.softmax import softmax

QUANTIZATIONS: dict[str, tuple[int, int]] = {
    "affine": (2, 8),
    "affine_quant": (2, 8),
    "gradient_ptq": (2, 8),
    "joint_codebook": (2, 4),
    "layerwise_calibration": (2, 8),
    "llm_int8": (8, 8),
    "rep_quant": (2, 8),
    "shift_uniform_log2": (2, 8),
}
"""Methods by name, with the fewest and the most bits that they take here."""

LINEARS = ("qkv", "attention", "inner", "outer")
BEHIND_NORM = ("qkv", "inner")
"""Layers whose inputs are outputs of a layer norm."""

CALIBRATION_ROWS = 1024
"""Rows of each layer's inputs that are kept at most; the sentences of this package have some eight hundred tokens."""

ATTENTION_SAMPLE = 20_000
"""Attention weights that are kept to calibrate their quantizer."""

AFFINE_ROWS = 256
"""Rows that a transform is fitted to: each step of the fit runs over all of them."""

NEURONS_OF_A_CODEBOOK = 16

CODEBOOK_STEPS = {2: 8, 3: 4, 4: 2}
"""Steps of learning codes, by bits: a step touches 2^bits numbers a weight."""

PERCENTILES = (0.999, 0.9999, 1.0)
"""Ranges of activations that are tried, from the one that clips most."""

Quantizer: TypeAlias = Callable[[AnyArray], AnyArray]
Advance: TypeAlias = Callable[[int, int], None]
"""Called with the layers that are done and the number of all of them."""


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A linear layer that :func:`quantize_encoder` has made.

    Parameters
    ----------
    apply : function
        Maps inputs (T, I) to outputs (T, O), bias included.
    nbytes : int
        Memory of codes, scales and bias.
    """

    apply: Quantizer
    nbytes: int


class QuantizedOps:
    """The reference operations, with linear layers and attention weights that are quantized.

    Parameters
    ----------
    attention_quantizer : function, optional
        Applied to softmax attention weights.
    """

    ACTIVATIONS = reference_ops.ACTIVATIONS
    prepare_linear = staticmethod(reference_ops.prepare_linear)
    embed = staticmethod(reference_ops.embed)
    mean_pool_normalize = staticmethod(reference_ops.mean_pool_normalize)

    def __init__(self, attention_quantizer: Quantizer | None = None) -> None:
        self._attention_quantizer = attention_quantizer

    def linear(
        self, x: AnyArray, handle: Any, /, *, activation: str | None = None, out: AnyArray | None = None
    ) -> AnyArray:
        """Linear layer and activation."""
        y = _activated(handle.apply(x), activation)
        if out is None:
            return y
        out[...] = y
        return out

    def linear_residual_norm(
        self,
        x: AnyArray,
        handle: Any,
        residual: AnyArray,
        gain: AnyArray,
        bias: AnyArray,
        /,
        *,
        eps: float,
        out: AnyArray | None = None,
    ) -> AnyArray:
        """Layer norm of (linear layer plus residual)."""
        y = self.linear(x, handle, out=out)
        y += residual
        return reference_ops._norm_in_place(y, gain, bias, eps)

    def attention(
        self,
        query: AnyArray,
        key: AnyArray,
        value: AnyArray,
        offsets: IntArray,
        heads: int,
        /,
        *,
        scale: float,
        out: AnyArray | None = None,
    ) -> AnyArray:
        """Multi-head softmax attention of each text within itself."""
        if self._attention_quantizer is None:
            return reference_ops.attention(query, key, value, offsets, heads, scale=scale, out=out)
        y = np.empty(query.shape, query.dtype) if out is None else out
        for start, stop in reference_ops._ranges(offsets, len(query)):
            q, k, v = (reference_ops._heads(part[start:stop], heads) for part in (query, key, value))
            weights = self._attention_quantizer(softmax(q @ k.swapaxes(1, 2) * q.dtype.type(scale)))
            y[start:stop] = reference_ops._joined(weights @ v)
        return y


def _activated(y: AnyArray, activation: str | None) -> AnyArray:
    if activation is not None:
        _checks.one_of(activation, "activation", reference_ops.ACTIVATIONS)
        for start in range(0, len(y), reference_ops.BLOCK):
            rows = y[start : start + reference_ops.BLOCK]
            rows[...] = reference_ops._activate(rows, activation)
    return y


def check_quantization(method: str, bits: int) -> None:
    """Raise unless there is a quantization of that name that takes so many bits."""
    _checks.one_of(method, "method", tuple(QUANTIZATIONS))
    fewest, most = QUANTIZATIONS[method]
    if isinstance(bits, bool) or not isinstance(bits, int) or not fewest <= bits <= most:
        expected = str(fewest) if fewest == most else f"an integer from {fewest} to {most}"
        _checks.fail("bits", f"{expected} for {method}", bits)


def quantize_encoder(
    encoder: Encoder,
    method: str,
    *,
    bits: int = 8,
    texts: Sequence[str] | None = None,
    rows: int = CALIBRATION_ROWS,
    seed: int = 0,
    progress: Advance | None = None,
) -> Encoder:
    """Return an encoder whose linear layers are quantized.

    Parameters
    ----------
    encoder : Encoder
        With the reference backend.
    method : str
        One of :data:`refnorm.models.QUANTIZATIONS`: a chapter of the quantizers' part.
    bits : int
        Of weights, and of activations where the method quantizes them. ``llm_int8`` takes 8, ``joint_codebook`` 2 to 4
        (of weights only, as ``affine`` and ``gradient_ptq``), the others 2 to 8.
    texts : sequence of str, optional
        Calibration data, not the text to be embedded; some fifty sentences of this package by default.
    rows : int >= 16
        Rows of each layer's inputs to calibrate with.
    seed : int
        Of the sample, and of methods that draw at random.
    progress : function, optional
        Called with the number of layers that are done and of all layers.

    Returns
    -------
    Encoder

    Raises
    ------
    TypeError, ValueError
        If there is no such method, it does not take these bits, there is no text, or the encoder has another backend.

    Examples
    --------
    >>> encoder = load_encoder()                                                 # doctest: +SKIP
    >>> small = quantize_encoder(encoder, "gradient_ptq", bits=4)                # doctest: +SKIP
    >>> vectors = small.embed(["A cat sits on the mat."])                        # doctest: +SKIP
    """
    check_quantization(method, bits)
    _checks.whole(rows, "rows", low=16)
    if cast(Any, encoder.ops) is not reference_ops:
        _checks.fail("encoder", "one with the reference backend", getattr(encoder.ops, "__name__", "another"))
    if texts is not None and not texts:
        _checks.fail("texts", "at least one text", 0)
    recorder, attention = _observed(encoder, SENTENCES if texts is None else texts, rows, seed)
    layers, done, total = [], 0, len(LINEARS) * len(encoder.weights["layers"])
    for number, layer in enumerate(encoder.weights["layers"]):
        made = dict(layer)
        for name in LINEARS:
            weight, bias = layer[name]
            task = _Task(
                recorder.sample(f"{number}.{name}").x, np.ascontiguousarray(weight), bias, bits,
                name in BEHIND_NORM, np.random.default_rng([seed, number, LINEARS.index(name)]),
            )  # fmt: skip
            made[name] = _BUILDERS[method](task)
            done += 1
            if progress is not None:
                progress(done, total)
        layers.append(made)
    ops = QuantizedOps(_attention_quantizer(method, bits, attention))
    return replace(encoder, ops=cast(Ops, ops), weights=dict(encoder.weights) | {"layers": layers})


def matrix_bytes(encoder: Encoder) -> int:
    """Return the memory of an encoder's linear layers, quantized or not."""
    total = 0
    for layer in encoder.weights["layers"]:
        for name in LINEARS:
            handle = layer[name]
            total += handle.nbytes if isinstance(handle, QuantizedLinear) else sum(part.nbytes for part in handle)
    return total


class _Watching(QuantizedOps):
    """Runs layers in float, and notes their inputs and the attention weights."""

    def __init__(self, seed: int) -> None:
        self.sample = LayerRecorder(ATTENTION_SAMPLE, seed=seed)
        super().__init__(self._note)

    def _note(self, weights: AnyArray) -> AnyArray:
        self.sample.record("weights", weights.reshape(-1, 1))
        return weights


def _observed(encoder: Encoder, texts: Sequence[str], rows: int, seed: int) -> tuple[LayerRecorder, AnyArray]:
    """Run the float encoder; return a sample of each layer's inputs, and of attention weights."""
    recorder, ops = LayerRecorder(rows, seed=seed), _Watching(seed)

    def watched(name: str, handle: Any) -> QuantizedLinear:
        def apply(x: AnyArray) -> AnyArray:
            recorder.record(name, x)
            return reference_ops.linear(x, handle)

        return QuantizedLinear(apply, 0)

    layers = [
        dict(layer) | {name: watched(f"{number}.{name}", layer[name]) for name in LINEARS}
        for number, layer in enumerate(encoder.weights["layers"])
    ]
    weights = dict(encoder.weights) | {"layers": layers}
    replace(encoder, ops=cast(Ops, ops), weights=weights).embed(texts)
    return recorder, ops.sample.sample("weights").x[:, 0] if layers else np.ones(1, np.float32)


def _attention_quantizer(method: str, bits: int, attention: AnyArray) -> Quantizer | None:
    if method == "rep_quant":
        scale = attention.max()
        return lambda weights: log_sqrt2_fake_quantize(weights, scale, bits=bits)
    if method == "shift_uniform_log2":
        params = sulq_calibrate(attention, bits=bits)
        return lambda weights: sulq_fake_quantize(weights, params.shift, params)
    return None


@dataclass(frozen=True, eq=False)
class _Task:
    """A layer to quantize."""

    x: AnyArray
    weight: AnyArray
    bias: AnyArray
    bits: int
    behind_norm: bool
    rng: np.random.Generator

    def packed_bytes(self, floats: int) -> int:
        """Memory of the codes, of ``floats`` parameters and of the bias."""
        return math.ceil(self.weight.size * self.bits / 8) + 4 * (floats + int(self.bias.size))

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[1])


def _affine(task: _Task) -> QuantizedLinear:
    weight = _nearest(task.weight, task.bits)
    return QuantizedLinear(lambda x: x @ weight + task.bias, task.packed_bytes(task.outputs))


def _llm_int8(task: _Task) -> QuantizedLinear:
    packed = quantize_weight(task.weight)
    return QuantizedLinear(lambda x: llm_int8_linear(x, packed, task.bias), task.packed_bytes(task.outputs))


def _rep_quant(task: _Task) -> QuantizedLinear:
    """Inputs on a grid for each channel, brought to one for the layer; weights on a grid for each output."""
    if not task.behind_norm:
        return _one_range(task)
    channels = task.x.shape[1]
    grids = calibrate_channelwise(task.x, bits=task.bits, percentiles=PERCENTILES)
    # The norm's gain and bias are seen as 1 and 0 here, as the residual connection needs its output unchanged.
    made = reparameterize_layernorm(
        np.ones(channels, task.x.dtype), np.zeros(channels, task.x.dtype), task.weight, task.bias, *grids
    )
    weight = _nearest(made.weight, task.bits)
    highest = 2**task.bits - 1

    def apply(x: AnyArray) -> AnyArray:
        codes = np.clip(np.rint((x * made.gain + made.bias) / made.scale) + made.zero, 0, highest)
        return np.asarray(made.scale * (codes - made.zero) @ weight + made.linear_bias)

    return QuantizedLinear(apply, task.packed_bytes(task.outputs + 2 * channels + 2))


def _one_range(task: _Task) -> QuantizedLinear:
    """Inputs on one grid, with the best of a few ranges."""
    low, high = choose_range(task.x, bits=task.bits, method="best_percentile", percentiles=PERCENTILES)
    weight = _nearest(task.weight, task.bits)
    return QuantizedLinear(
        lambda x: fake_quantize_range(x, low, high, bits=task.bits) @ weight + task.bias,
        task.packed_bytes(task.outputs + 2),
    )


def _nearest(weight: AnyArray, bits: int) -> AnyArray:
    """Round to the grid whose scale has the least squared error, output by output."""
    scale, zero_point = affine_qparams(weight, bits=bits, axis=1, method="mse", n_grid=20)
    return dequantize(quantize(weight, scale, zero_point, bits=bits), scale, zero_point)


def _affine_quant(task: _Task) -> QuantizedLinear:
    channels = task.x.shape[1]
    block = next((side for side in (32, 16, 8) if channels % side == 0 and channels > side), None)
    # No shift: the middle of a channel's range is far from its values where a few of them are large, as behind GELU.
    fit = fit_affine_quant(
        task.x[:AFFINE_ROWS], task.weight, task.bias, weight_bits=task.bits, bits=task.bits, n_epochs=3,
        steps_per_epoch=3, learning_rate=5e-2, clip_learning_rate=0.1, block=block, shift=False,
    )  # fmt: skip

    def apply(x: AnyArray) -> AnyArray:
        moved = (x - fit.shift) @ fit.inverse
        low, high = moved.min(axis=1, keepdims=True), moved.max(axis=1, keepdims=True)
        return np.asarray(fake_quantize_range(moved, low, high, bits=task.bits) @ fit.weight + fit.bias)

    # The inverse is a matrix of blocks, kept in float.
    return QuantizedLinear(apply, task.packed_bytes(2 * task.outputs + channels * (1 + (block or channels))))


def _layerwise_calibration(task: _Task) -> QuantizedLinear:
    fit = adaquant(task.x, task.weight, task.bias, weight_bits=task.bits, bits=task.bits, n_iter=40, rng=task.rng)
    return QuantizedLinear(
        lambda x: range_fake_quantize(x, *fit.input_range, bits=task.bits) @ fit.quantized_weight + fit.bias,
        task.packed_bytes(2 * task.outputs + 2),
    )


def _joint_codebook(task: _Task) -> QuantizedLinear:
    k, groups = 2**task.bits, max(1, task.outputs // NEURONS_OF_A_CODEBOOK)
    fit = fit_codebook(
        task.x, task.weight, k=k, n_groups=groups, n_iter=CODEBOOK_STEPS[task.bits], learning_rates=(0.1, 1e-3),
        rng=task.rng,
    )  # fmt: skip
    return QuantizedLinear(lambda x: x @ fit.weight + task.bias, task.packed_bytes(groups * k))


def _gradient_ptq(task: _Task) -> QuantizedLinear:
    fit = fit_rounding(
        task.x, task.weight, task.bias, bits=task.bits, n_iter=60, learning_rate=0.1, penalty=1e-4,
        batch_size=min(64, len(task.x)), rng=task.rng,
    )  # fmt: skip
    return QuantizedLinear(lambda x: x @ fit.weight + fit.bias, task.packed_bytes(task.outputs))


_BUILDERS: dict[str, Callable[[_Task], QuantizedLinear]] = {
    "affine": _affine,
    "affine_quant": _affine_quant,
    "gradient_ptq": _gradient_ptq,
    "joint_codebook": _joint_codebook,
    "layerwise_calibration": _layerwise_calibration,
    "llm_int8": _llm_int8,
    "rep_quant": _rep_quant,
    "shift_uniform_log2": _rep_quant,
}
