import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    add_rms_norm,
    add_rms_norm_vjp,
    compress,
    compress_vjp,
    compressed_rms_norm,
    compressed_rms_norm_vjp,
    decompress,
    decompress_vjp,
    layer_norm,
    rms_norm,
    rms_norm_vjp,
    zero_mean_linear,
    zero_mean_linear_vjp,
)

RNG = np.random.default_rng(7)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    GradientCase(rms_norm_vjp, draw((3, 5), 5, 5), method="complex"),
    GradientCase(rms_norm_vjp, (*draw((2, 3, 4)), None, None), {"eps": 1e-2}, method="complex", name="no affine part"),
    GradientCase(rms_norm_vjp, (*draw((3, 4), 4), None), method="complex", name="gain alone"),
    GradientCase(rms_norm_vjp, (*draw((3, 4)), None, *draw(4)), name="bias alone, differences"),
    GradientCase(rms_norm_vjp, (np.zeros((2, 4)), *draw(4, 4)), {"eps": 0.1}, method="complex", name="zero"),
    GradientCase(add_rms_norm_vjp, draw((2, 3, 5), (2, 3, 5), 5, 5), method="complex"),
    GradientCase(add_rms_norm_vjp, (*draw((3, 4), (3, 4)), None, None), {"eps": 1e-2}, method="complex", name="plain"),
    GradientCase(compressed_rms_norm_vjp, draw((3, 5)), method="complex"),
    GradientCase(compressed_rms_norm_vjp, draw((2, 3, 1)), {"eps": 1e-2}, name="one entry, differences"),
    GradientCase(compressed_rms_norm_vjp, (np.zeros((2, 4)),), {"eps": 0.1}, method="complex", name="zero"),
    GradientCase(compress_vjp, draw((3, 5)), method="complex"),
    GradientCase(decompress_vjp, draw((3, 5)), method="complex"),
    GradientCase(zero_mean_linear_vjp, draw((2, 3, 4), (4, 5), 5), method="complex"),
    GradientCase(zero_mean_linear_vjp, draw(4, (4, 5), 5), name="one vector, differences"),
]

sizes = st.integers(2, 40)
seeds = st.integers(0, 999)


def zero_mean(shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x - x.mean(axis=-1, keepdims=True)


@given(size=sizes, seed=seeds)
def test_zero_mean_vectors_have_layer_norm_rms_norm_and_compressed_norm_in_common(size, seed):
    x = zero_mean((3, size), seed)
    expected = layer_norm(x, np.ones(size), np.zeros(size))
    np.testing.assert_allclose(rms_norm(x), expected, atol=1e-13)
    np.testing.assert_allclose(decompress(compressed_rms_norm(compress(x))), expected, atol=1e-12)


@given(size=sizes, seed=seeds)
def test_compressed_gradient_is_that_of_the_composition(size, seed):
    z, g = np.random.default_rng(seed).standard_normal((2, 3, size))
    full, pull_full = decompress_vjp(z)
    normed, pull_norm = rms_norm_vjp(full)
    value, pull_last = compress_vjp(normed)
    direct, pullback = compressed_rms_norm_vjp(z)
    np.testing.assert_allclose(direct, value, rtol=1e-12)
    composed = pull_full(pull_norm(pull_last(g)[0])[0])[0]
    np.testing.assert_allclose(pullback(g)[0], composed, atol=1e-12 * np.abs(composed).max() + 1e-13)


def test_rms_norm_of_an_offset_vector_is_not_layer_norm():
    x = 1 + RNG.standard_normal((3, 8))
    assert np.abs(rms_norm(x) - layer_norm(x, np.ones(8), np.zeros(8))).max() > 0.1


@given(size=st.integers(1, 40), scale=st.floats(0.1, 10), seed=seeds)
def test_rms_norm_ignores_scale_and_gradient_is_orthogonal_to_the_input(size, scale, seed):
    x, g = np.random.default_rng(seed).standard_normal((2, 3, size))
    y, pullback = rms_norm_vjp(x, eps=1e-300)
    np.testing.assert_allclose(rms_norm(scale * x, eps=1e-300), y, rtol=1e-12)
    np.testing.assert_allclose((pullback(g)[0] * x).sum(axis=-1), 0, atol=1e-11)


@given(size=sizes, seed=seeds)
def test_compress_and_decompress_are_inverse_and_adjoint(size, seed):
    x = zero_mean((2, size), seed)
    np.testing.assert_allclose(decompress(compress(x)), x, atol=1e-14 * size)
    np.testing.assert_array_equal(compress(decompress(x)), x)


def test_zero_vector_gives_zero_and_the_largest_gradient():
    y, pullback = rms_norm_vjp(np.zeros((1, 3)), eps=1e-6)
    assert (y == 0).all()
    np.testing.assert_allclose(pullback(np.array([[1.0, -2, 3]]))[0], 1e3 * np.array([[1, -2, 3]]), rtol=1e-14)
    y, pullback = compressed_rms_norm_vjp(np.zeros((1, 3)), eps=1e-6)
    assert (y == 0).all()
    np.testing.assert_allclose(pullback(np.array([[1.0, -2, 3]]))[0], 1e3 * np.array([[1, -2, 3]]), rtol=1e-14)


def test_zero_mean_linear_is_the_linear_map_with_centred_weights():
    x, weight, bias = draw((4, 3), (3, 6), 6)
    y = zero_mean_linear(x, weight, bias)
    np.testing.assert_allclose(y.sum(axis=-1), 0, atol=1e-14)
    centred = weight - weight.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(y, x @ centred + (bias - bias.mean()), atol=1e-14)


def test_float32_sums_do_not_drift():
    x = (np.float32(1) + RNG.standard_normal(100_000).astype(np.float32)) * np.float32(10)
    last = decompress(x)[-1]
    np.testing.assert_allclose(last, -x.astype(float).sum(), rtol=1e-7)
    exact = x / np.sqrt((x.astype(float) ** 2).mean() + 1e-5)
    np.testing.assert_allclose(rms_norm(x), exact, rtol=2e-7)


def test_huge_float32_entries_do_not_overflow():
    y = rms_norm(np.array([3e38, -3e38], np.float32))
    np.testing.assert_allclose(y, [1, -1], rtol=1e-7)
    np.testing.assert_allclose(compressed_rms_norm(np.array([3e38], np.float32)), [1], rtol=1e-7)


def test_special_values_stay_in_their_vector():
    x = RNG.standard_normal((3, 4))
    x[0, 1], x[1, 2] = np.nan, np.inf
    for norm in (rms_norm, compressed_rms_norm):
        y = norm(x)
        assert np.isnan(y[0]).all()
        assert np.isnan(y[1, 2])
        assert (y[1, [0, 1, 3]] == 0).all()
        assert np.isfinite(y[2]).all()
    assert rms_norm(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    x, gain, weight, bias = (RNG.standard_normal(s).astype(dtype) for s in ((2, 4), 4, (4, 3), 3))
    for array in (x, gain, weight, bias):
        array.setflags(write=False)
    for value, pullback in (
        rms_norm_vjp(x, gain, gain),
        compressed_rms_norm_vjp(x),
        compress_vjp(x),
        decompress_vjp(x),
        zero_mean_linear_vjp(x, weight, bias),
    ):
        assert value.dtype == dtype
        assert all(entry.dtype == dtype for entry in pullback(value))


def test_left_out_arguments_have_no_cotangent():
    y, pullback = rms_norm_vjp(np.ones((2, 3)))
    assert pullback(y)[1:] == (None, None)


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rms_norm(X, np.ones(4)), ValueError, r"gain: expected shape \(3,\), got \(4,\)"),
        (lambda: rms_norm(X, None, np.ones((1, 3))), ValueError, r"bias: expected shape \(3,\), got \(1, 3\)"),
        (lambda: rms_norm(X, np.ones(3, "f4")), TypeError, "gain: expected dtype float64 like x, got float32"),
        (lambda: rms_norm(X, eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: rms_norm(np.ones((2, 0))), ValueError, "x: expected at least one entry along axes"),
        (lambda: rms_norm(np.ones((2, 3), int)), TypeError, "x: expected a float32 or float64 array"),
        (lambda: compressed_rms_norm(np.ones((2, 0))), ValueError, "x: expected at least one entry along axes"),
        (lambda: compressed_rms_norm(X, eps=-1.0), ValueError, "eps: expected a finite number > 0, got -1.0"),
        (lambda: compress(np.ones((2, 1))), ValueError, "x: expected at least two entries along the last axis"),
        (lambda: decompress(np.ones((2, 0))), ValueError, "x: expected at least one entry"),
        (lambda: zero_mean_linear(X, np.ones((4, 5)), np.ones(5)), ValueError, r"weight: expected shape \(3, 5\), got \(4, 5\)"),
        (lambda: zero_mean_linear(X, np.ones((3, 5)), np.ones(4)), ValueError, r"bias: expected shape \(5,\), got \(4,\)"),
        (lambda: zero_mean_linear(X, np.ones((3, 0)), np.ones(0)), ValueError, "bias: expected at least one entry"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_sum_is_normalized_like_any_input():
    x, residual, gain = draw((4, 6), (4, 6), 6)
    np.testing.assert_array_equal(add_rms_norm(x, residual, gain), rms_norm(x + residual, gain))
    dx, dresidual, _, dbias = add_rms_norm_vjp(x, residual, gain)[1](x)
    assert dx is dresidual
    assert dbias is None
