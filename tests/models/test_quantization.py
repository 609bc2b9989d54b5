import importlib
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="loading models needs the extra demo")
pytest.importorskip("tokenizers", reason="loading models needs the extra demo")

from tiny_model import write_model

from refnorm.models import QUANTIZATIONS, load_encoder, matrix_bytes, quantize_encoder, reference_ops
from refnorm.models._calibration_text import SENTENCES
from refnorm.models._quantization import LINEARS, QuantizedOps

TEXTS = ["the cat sat on the mat.", "hello world", "softmax norm, gradient!", "river boat", "one two three and one."]
CALIBRATION = [
    "the dog run fast on the mat.",
    "is it not that blue house of the moon?",
    "a tree by the river, in the sun",
] * 3


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def quantized(encoder):
    """Every method at its most bits, made once."""
    return {
        name: quantize_encoder(encoder, name, bits=most, texts=CALIBRATION) for name, (_, most) in QUANTIZATIONS.items()
    }


@pytest.mark.parametrize("method", sorted(QUANTIZATIONS))
def test_embeddings_stay_near_those_in_float(encoder, quantized, method):
    expected, actual = encoder.embed(TEXTS), quantized[method].embed(TEXTS)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, rtol=1e-5)
    cosine = (expected * actual).sum(axis=1)
    assert cosine.min() > (0.85 if QUANTIZATIONS[method][1] == 4 else 0.97)
    assert np.abs(expected - actual).max() > 1e-5


@pytest.mark.parametrize("method", sorted(QUANTIZATIONS))
def test_memory_is_codes_and_a_few_floats(encoder, quantized, method):
    sizes = [weight.size for layer in encoder.weights["layers"] for weight, _ in (layer[name] for name in LINEARS)]
    codes = math.ceil(sum(sizes) * QUANTIZATIONS[method][1] / 8)
    assert codes < matrix_bytes(quantized[method])
    # In layers as small as these, the float transform of affine_quant outweighs the codes.
    assert matrix_bytes(quantized[method]) < matrix_bytes(encoder) * (2 if method == "affine_quant" else 1)
    assert matrix_bytes(encoder) == 4 * sum(sizes) + 4 * sum(
        bias.size for layer in encoder.weights["layers"] for _, bias in (layer[name] for name in LINEARS)
    )


@pytest.mark.parametrize(
    "method", ["rep_quant", "shift_uniform_log2", "gradient_ptq", "layerwise_calibration", "affine_quant"]
)
def test_fewer_bits_are_worse(encoder, quantized, method):
    expected = encoder.embed(TEXTS)
    few = quantize_encoder(encoder, method, bits=2, texts=CALIBRATION).embed(TEXTS)
    many = quantized[method].embed(TEXTS)
    assert np.square(few - expected).sum() > 2 * np.square(many - expected).sum()


def test_weights_take_no_more_values_than_there_are_codes(encoder):
    made = quantize_encoder(encoder, "gradient_ptq", bits=2, texts=CALIBRATION)
    eye = np.eye(8, dtype=np.float32)
    for layer in made.weights["layers"]:
        weight = layer["qkv"].apply(eye) - layer["qkv"].apply(np.zeros((1, 8), np.float32))
        assert max(len(np.unique(column.round(4))) for column in weight.T) <= 4


def test_result_depends_on_seed_and_texts_only(encoder):
    first, again, other = (
        quantize_encoder(encoder, "layerwise_calibration", bits=4, texts=texts, seed=seed).embed(TEXTS)
        for texts, seed in ((CALIBRATION, 0), (CALIBRATION, 0), (TEXTS, 0))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_text_of_the_package_is_the_default(encoder):
    plain = quantize_encoder(encoder, "rep_quant", bits=4).embed(TEXTS)
    np.testing.assert_array_equal(plain, quantize_encoder(encoder, "rep_quant", bits=4, texts=SENTENCES).embed(TEXTS))


def test_progress_counts_layers(encoder):
    seen = []
    quantize_encoder(encoder, "llm_int8", texts=CALIBRATION, progress=lambda *at: seen.append(at))
    assert seen == [(i, 8) for i in range(1, 9)]


def test_given_encoder_is_left_alone(encoder):
    before = encoder.embed(TEXTS)
    quantize_encoder(encoder, "rep_quant", bits=2, texts=CALIBRATION)
    np.testing.assert_array_equal(encoder.embed(TEXTS), before)


def test_attention_with_a_quantizer_that_does_nothing_is_the_reference():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 7, 4)).astype(np.float32)
    offsets = np.array([0, 3, 3, 7])
    expected = reference_ops.attention(query, key, value, offsets, 2, scale=0.5)
    actual = QuantizedOps(lambda weights: weights).attention(query, key, value, offsets, 2, scale=0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_quantized_layer_writes_into_an_array_if_it_is_given_one():
    ops = QuantizedOps()
    handle = SimpleNamespace(apply=lambda x: 2 * x - 1)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    out = np.empty_like(x)
    assert ops.linear(x, handle, activation="relu", out=out) is out
    np.testing.assert_array_equal(out, np.maximum(2 * x - 1, 0))
    np.testing.assert_array_equal(ops.linear(x, handle, activation="relu"), out)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("int4",), {}, "method: expected one of 'affine', 'affine_quant', .* got 'int4'"),
        (("llm_int8",), {"bits": 4}, "bits: expected 8 for llm_int8, got 4"),
        (("joint_codebook",), {"bits": 8}, "bits: expected an integer from 2 to 4 for joint_codebook, got 8"),
        (("rep_quant",), {"bits": 1}, "bits: expected an integer from 2 to 8 for rep_quant, got 1"),
        (("rep_quant",), {"texts": []}, "texts: expected at least one text, got 0"),
        (("rep_quant",), {"rows": 4}, "rows: expected an integer >= 16, got 4"),
    ],
)
def test_bad_quantization_is_named(encoder, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        quantize_encoder(encoder, *arguments, **options)


def test_quantized_encoder_is_not_quantized_again(encoder, quantized):
    with pytest.raises(ValueError, match="encoder: expected one with the reference backend, got another"):
        quantize_encoder(quantized["rep_quant"], "rep_quant")


def test_quantizers_are_loaded_only_when_needed():
    code = "import sys, refnorm.models; assert 'refnorm.quantizers' not in sys.modules; refnorm.models.quantize_encoder"
    subprocess.run([sys.executable, "-c", code + "; assert 'refnorm.quantizers' in sys.modules"], check=True)
    with pytest.raises(AttributeError, match="no attribute 'quantise_encoder'"):
        importlib.import_module("refnorm.models").quantise_encoder  # noqa: B018
