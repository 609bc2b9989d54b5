"""The encoder's operations on kernels against the reference's, and against a plain computation for int8."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from refnorm.models import bert_embed, bert_init, reference_ops
from refnorm.models._bert import forward, prepare
from refnorm_fast.models import Int8EncoderOps, _core, ops
from tests.fast import support

BACKENDS = ("fast", "fast-int8")


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def layer(rng, depth, width):
    weight = (rng.standard_normal((depth, width)) / depth**0.5).astype(np.float32)
    return weight, rng.standard_normal(width).astype(np.float32)


def wide(*arrays):
    return tuple(array.astype(np.float64) for array in arrays)


def cosines(a, b):
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_norm_after_residual_follows_the_reference():
    rng = np.random.default_rng(0)
    for width in (1, 7, 31, 32, 33, 384):
        weight, bias = layer(rng, 40, width)
        x, residual = (
            rng.standard_normal((29, 40)).astype(np.float32),
            rng.standard_normal((29, width)).astype(np.float32),
        )
        gain, shift = rng.standard_normal((2, width)).astype(np.float32)
        handle = ops("fast").prepare_linear(weight, bias)
        expected = reference_ops.linear_residual_norm(
            *wide(x), wide(weight, bias), *wide(residual, gain, shift), eps=1e-5
        )
        got = ops("fast").linear_residual_norm(x, handle, residual, gain, shift, eps=1e-5)
        np.testing.assert_allclose(got, expected, atol=2e-5)
        in_place = residual.copy()
        ops("fast").linear_residual_norm(x, handle, in_place, gain, shift, eps=1e-5, out=in_place)
        np.testing.assert_array_equal(in_place, got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 3, 5, 47, 48, 49, 131, 300])
def test_feed_forward_is_its_two_layers(backend, rows):
    rng = np.random.default_rng(rows)
    backend_ops = ops(backend)
    first = backend_ops.prepare_linear(*layer(rng, 40, 150))
    second = backend_ops.prepare_linear(*layer(rng, 150, 40))
    x = rng.standard_normal((rows, 40)).astype(np.float32)
    gain, shift = rng.standard_normal((2, 40)).astype(np.float32)
    for activation in backend_ops.ACTIVATIONS:
        hidden = backend_ops.linear(x, first, activation=activation)
        expected = backend_ops.linear_residual_norm(hidden, second, x, gain, shift, eps=1e-12)
        for count in (1, 2, 3):
            with support.threads(count):
                got = backend_ops.feed_forward(x, first, second, gain, shift, eps=1e-12, activation=activation)
            np.testing.assert_array_equal(got, expected)
        out = np.empty_like(x)
        backend_ops.feed_forward(x, first, second, gain, shift, eps=1e-12, activation=activation, out=out)
        np.testing.assert_array_equal(out, expected)


def test_embedding_follows_the_reference():
    rng = np.random.default_rng(1)
    tables = [rng.standard_normal((rows, 48)).astype(np.float32) for rows in (100, 20, 2)]
    gain, shift = rng.standard_normal((2, 48)).astype(np.float32)
    ids = [rng.integers(0, len(table), 37) for table in tables]
    got = ops("fast").embed(*ids, *tables, gain, shift, eps=1e-12)
    np.testing.assert_allclose(got, reference_ops.embed(*ids, *wide(*tables, gain, shift), eps=1e-12), atol=5e-6)
    with pytest.raises(ValueError, match="token_ids: expected values of at most 99, got 100"):
        ops("fast").embed(np.array([100]), np.array([0]), np.array([0]), *tables, gain, shift, eps=1e-12)
    with pytest.raises(ValueError, match="position_ids: expected values of at least 0, got -1"):
        ops("fast").embed(np.array([1]), np.array([-1]), np.array([0]), *tables, gain, shift, eps=1e-12)


def test_pooling_follows_the_reference():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 33)).astype(np.float32)
    offsets = np.array([0, 1, 20, 40])
    got = ops("fast").mean_pool_normalize(x, offsets)
    np.testing.assert_allclose(got, reference_ops.mean_pool_normalize(x.astype(float), offsets), atol=1e-6)
    x[0] = 0
    np.testing.assert_array_equal(ops("fast").mean_pool_normalize(x, offsets)[0], np.zeros(33))
    with pytest.raises(ValueError, match="offsets: expected at least one row"):
        ops("fast").mean_pool_normalize(x, np.array([0, 0, 40]))


def quantized_layer(x, weight, bias, group, weight_top, row_top, threshold):
    """The int8 layer in plain NumPy, float64 after the codes."""
    y = np.zeros((len(x), weight.shape[1])) + bias
    for start in range(0, weight.shape[0], group):
        rows, block = x[:, start : start + group], weight[start : start + group]
        scale = np.abs(block).max(axis=0) / np.float32(weight_top)
        codes = np.rint(block / scale)
        regular = np.abs(rows) < threshold
        some = regular.any(axis=1, keepdims=True)
        low = np.where(some, np.where(regular, rows, np.inf).min(axis=1, keepdims=True), 0)
        high = np.where(some, np.where(regular, rows, -np.inf).max(axis=1, keepdims=True), 0)
        step = (high - low) / np.float32(row_top)
        # A group of one entry, or of equal ones, is its smallest value.
        level = np.clip(np.rint((rows - low) / np.where(step > 0, step, 1)), 0, row_top)
        exact = np.where(regular, low + step * level, rows)
        y += exact.astype(np.float64) @ (codes * scale).astype(np.float64)
    return y


@pytest.mark.parametrize("depth", [1, 2, 7, 8, 9, 127, 128, 129, 136, 384, 400])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 50])
def test_int8_layer_computes_what_it_says(isa, depth, rows):
    rng = np.random.default_rng(depth)
    weight, bias = layer(rng, depth, 41)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    if depth > 8:
        x[0, 5], x[-1, depth - 1] = 7.5, -31.0
    backend = ops("fast-int8")
    got = backend.linear(x, backend.prepare_linear(weight, bias))
    weight_top, row_top = (63, 127) if isa in ("avx2", "avx512") else (127, 255)
    group = 384 if isa == "avx512vnni" else 128
    expected = quantized_layer(x, weight, bias, group, weight_top, row_top, 6.0)
    # A level that float32 rounds the other way at a tie moves one product by a step of x times a weight.
    step = 12 / row_top * np.abs(weight).max()
    assert np.abs(got - expected).max() <= 1e-4 + step
    assert np.median(np.abs(got - expected)) <= 2e-5
    # What quantization costs: half a step of each operand, independent errors.
    exact = x.astype(float) @ weight + bias
    if depth >= 127:
        assert np.linalg.norm(got - exact) <= 0.02 * np.linalg.norm(exact)


def test_outliers_cost_no_precision():
    rng = np.random.default_rng(3)
    weight, bias = layer(rng, 384, 64)
    x = rng.standard_normal((20, 384)).astype(np.float32)
    x[:, 17] = 50 * np.sign(x[:, 17])
    regular = np.delete(x, 17, axis=1).astype(float) @ np.delete(weight, 17, axis=0)
    exact = x.astype(float) @ weight + bias
    errors = {}
    for threshold in (0.0, 6.0):
        backend = Int8EncoderOps(threshold=threshold)
        got = backend.linear(x, backend.prepare_linear(weight, bias))
        # The weight of the outlier stays in int8, so its own product has that error in both.
        dequantized = np.linalg.norm(got - exact)
        errors[threshold] = dequantized / np.linalg.norm(regular)
    assert errors[6.0] < 0.6 * errors[0.0]


def test_int8_rows_do_not_depend_on_their_company():
    rng = np.random.default_rng(4)
    backend = ops("fast-int8")
    handle = backend.prepare_linear(*layer(rng, 200, 70))
    x = rng.standard_normal((131, 200)).astype(np.float32) * 3
    whole = backend.linear(x, handle)
    for rows in support.TAILS:
        np.testing.assert_array_equal(backend.linear(x[:rows], handle), whole[:rows])
    for count in (1, 2, 5):
        with support.threads(count):
            np.testing.assert_array_equal(backend.linear(x, handle), whole)


def test_special_numbers_in_an_int8_layer():
    rng = np.random.default_rng(5)
    weight, bias = layer(rng, 150, 20)
    weight[:, 3] = 0
    backend = ops("fast-int8")
    handle = backend.prepare_linear(weight, bias)
    x = np.zeros((6, 150), np.float32)
    x[1] = 3.25
    x[2] = 1e-42
    x[3, 149] = 1e30
    got = backend.linear(x, handle)
    np.testing.assert_allclose(got[0], bias, atol=1e-7)
    np.testing.assert_allclose(got[1], 3.25 * weight.sum(axis=0) + bias, atol=0.5)
    np.testing.assert_allclose(got[2], bias, atol=1e-6)
    np.testing.assert_allclose(got[3] / 1e30, weight[149], atol=0.02)
    np.testing.assert_allclose(got[:, 3], bias[3], rtol=1e-6)
    x[4, 2], x[5, 2] = np.nan, np.inf
    got = backend.linear(x, handle)
    assert np.isnan(got[4, [0, 1, 2, 4]]).all()
    assert not np.isfinite(got[5, [0, 1, 2, 4]]).any()
    with pytest.raises(ValueError, match="weight: expected finite values"):
        backend.prepare_linear(np.full((2, 2), np.nan, np.float32), None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_encoder(backend):
    rng = np.random.default_rng(6)
    heads, eps = 4, 1e-12
    params = bert_init(rng, vocabulary=120, hidden=128, inner=256, layers=2, positions=64)
    offsets = np.array([0, 1, 20, 70, 100])
    token_ids = rng.integers(0, 120, 100)
    expected = bert_embed(params, token_ids, offsets, heads=heads, eps=eps)
    single = {
        name: [{k: v.astype(np.float32) for k, v in one.items()} for one in value]
        if name == "layers"
        else value.astype(np.float32)
        for name, value in params.items()
    }
    backend_ops = ops(backend)
    hidden = forward(
        prepare(single, backend_ops),
        token_ids,
        offsets,
        backend_ops,
        heads=heads,
        eps=eps,
        activation="gelu",
        first_position=0,
    )
    got = backend_ops.mean_pool_normalize(hidden, offsets)
    assert cosines(got, expected).min() >= (0.999999 if backend == "fast" else 0.995)


def test_layouts():
    rng = np.random.default_rng(7)
    for backend in BACKENDS:
        backend_ops = ops(backend)
        weight, bias = layer(rng, 24, 16)
        handle = backend_ops.prepare_linear(weight, bias)
        x = rng.standard_normal((10, 24)).astype(np.float32)
        for name, view in support.layouts(x).items():
            expected = backend_ops.linear(view.copy(), handle)
            np.testing.assert_array_equal(backend_ops.linear(view, handle), expected, err_msg=name)
        for name, view in support.layouts(weight).items():
            again = backend_ops.linear(x, backend_ops.prepare_linear(view, bias))
            expected = backend_ops.linear(x, backend_ops.prepare_linear(view.copy(), bias))
            np.testing.assert_array_equal(again, expected, err_msg=name)


def test_bad_input():
    backend_ops = ops("fast")
    handle = backend_ops.prepare_linear(np.zeros((3, 4), np.float32), np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"x: expected shape \(rows, 3\), got \(2, 4\)"):
        backend_ops.linear(np.zeros((2, 4), np.float32), handle)
    with pytest.raises(TypeError, match="x: expected a float32 array, got dtype float64"):
        backend_ops.linear(np.zeros((2, 3)), handle)
    with pytest.raises(ValueError, match="activation: expected one of 'gelu', 'gelu_tanh', 'relu'"):
        backend_ops.linear(np.zeros((2, 3), np.float32), handle, activation="swish")
    with pytest.raises(ValueError, match="backend: expected one of 'fast', 'fast-int8'"):
        ops("slow")
    with pytest.raises(ValueError, match=r"residual: expected shape"):
        backend_ops.linear_residual_norm(
            np.zeros((2, 3), np.float32), handle, np.zeros((1, 4), np.float32), np.ones(4), np.ones(4), eps=1e-5
        )


def test_examples():
    assert doctest.testmod(_core).failed == 0
