import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import layer_norm
from refnorm.quantizers import (
    Reparameterized,
    calibrate_channelwise,
    fit_dual_clipping,
    log2_reparam_dequantize,
    log_sqrt2_dequantize,
    log_sqrt2_fake_quantize,
    log_sqrt2_fake_quantize_vjp,
    log_sqrt2_quantize,
    reparameterize_layernorm,
    reparameterize_layernorm_vjp,
    uniform_codes,
)
from refnorm.quantizers._calibration import fake_quantize_range
from refnorm.softmax import softmax

RNG = np.random.default_rng(1)


def layers(rng, channels, outputs, dtype=np.float64):
    """A layer norm and a linear layer, and grids for the channels between them."""
    shapes = ((channels,), (channels,), (channels, outputs), (outputs,))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    scale = np.exp(rng.standard_normal(channels)).astype(dtype)
    return (*arrays, scale, rng.integers(-4, 20, channels).astype(dtype))


def straight_through_log(a, scale, *, bits):
    u = -2 * np.log2(np.maximum(a, 1e-300) / scale)
    error, codes = np.rint(u) - u, np.rint(u)

    def surrogate(a, scale, **_):
        # scale 2^(-(u + error) / 2) with u = -2 log2(a / scale), in which the scale cancels.
        return np.where(codes < 0, scale, np.where(codes >= 2**bits, 0.0, a * 2.0 ** (-error / 2)))

    return surrogate


WEIGHTS = softmax(2 * RNG.standard_normal((3, 7)))


def straight_through_mean(gain, bias, weight, linear_bias, scale, zero, *, round_zero=True):
    held = np.rint(CASE[5].mean()) - CASE[5].mean()
    s, z = scale.mean(), zero.mean() + held
    r1, r2 = scale / s, s * (z - zero)
    return Reparameterized(
        gain / r1, bias / r1 - r2, r1[:, None] * weight, linear_bias + r2 @ (r1[:, None] * weight), s, z, r1, r2
    )


CASE = layers(RNG, 5, 3)

GRADIENT_CASES = [
    GradientCase(reparameterize_layernorm_vjp, CASE, surrogate=straight_through_mean, name="rounded mean"),
    GradientCase(
        reparameterize_layernorm_vjp, layers(RNG, 4, 2), {"round_zero": False}, method="complex", name="exact mean"
    ),
    GradientCase(reparameterize_layernorm_vjp, layers(RNG, 1, 1), {"round_zero": False}, name="one channel"),
    *(
        GradientCase(
            log_sqrt2_fake_quantize_vjp, (WEIGHTS, np.array(scale)), {"bits": bits},
            surrogate=straight_through_log(WEIGHTS, scale, bits=bits), step=1e-4, name=name,
        )
        for scale, bits, name in ((1.0, 4, "all inside"), (0.2, 3, "clipped at the scale"), (0.9, 2, "some zeroed"))
    ),
    GradientCase(
        log_sqrt2_fake_quantize_vjp, (np.array([0.0, 0.5, 0.9]), 0.7), {"bits": 4},
        surrogate=straight_through_log(np.array([0.0, 0.5, 0.9]), 0.7, bits=4), step=1e-4, name="scale is a float",
    ),
]  # fmt: skip


@given(seed=st.integers(0, 999), bits=st.integers(2, 8), channels=st.integers(1, 9))
def test_reparameterization_changes_neither_codes_nor_outputs(seed, bits, channels):
    rng = np.random.default_rng(seed)
    gain, bias, weight, linear_bias, _, _ = layers(rng, channels, 4)
    x_hat = rng.standard_normal((50, channels))
    x = x_hat * gain + bias
    scale, zero = calibrate_channelwise(x, bits=bits)
    made = reparameterize_layernorm(gain, bias, weight, linear_bias, scale, zero)
    changed = x_hat * made.gain + made.bias
    np.testing.assert_allclose(changed, x / made.r1 - made.r2, rtol=1e-9, atol=1e-12 * np.abs(changed).max())
    before = uniform_codes(x, scale, zero, bits=bits)
    after = uniform_codes(changed, made.scale, made.zero, bits=bits)
    # A quotient within rounding of a tie may go either way.
    tie = np.abs(x / scale - np.floor(x / scale) - 0.5) < 1e-9 * (1 + np.abs(x / scale))
    assert (before == after)[~tie].all()
    expected = x @ weight + linear_bias
    np.testing.assert_allclose(
        changed @ made.weight + made.linear_bias, expected, atol=1e-11 * np.abs(made.r2).max() + 1e-11
    )


def test_the_layer_norm_itself_makes_the_changed_inputs():
    gain, bias, weight, linear_bias, scale, zero = layers(RNG, 6, 3)
    made = reparameterize_layernorm(gain, bias, weight, linear_bias, scale, zero)
    raw = RNG.standard_normal((4, 6))
    np.testing.assert_allclose(
        layer_norm(raw, made.gain, made.bias) @ made.weight + made.linear_bias,
        layer_norm(raw, gain, bias) @ weight + linear_bias,
        rtol=1e-10,
    )


def test_unrounded_mean_keeps_the_outputs_too():
    gain, bias, weight, linear_bias, scale, _ = layers(RNG, 6, 3)
    zero = np.array([3.0, 4, 4, 5, 6, 7])
    made = reparameterize_layernorm(gain, bias, weight, linear_bias, scale, zero, round_zero=False)
    assert float(made.zero) == zero.mean()
    x = RNG.standard_normal((4, 6))
    np.testing.assert_allclose((x / made.r1 - made.r2) @ made.weight + made.linear_bias, x @ weight + linear_bias)


def test_constant_channel_takes_the_mean_scale():
    x = RNG.standard_normal((40, 3))
    x[:, 1] = 5.0
    scale, zero = calibrate_channelwise(x, bits=4)
    assert scale[1] == scale[[0, 2]].mean()
    assert zero[1] == np.rint(-5 / scale[1])
    assert calibrate_channelwise(np.full((3, 2), 7.0), bits=4)[0].tolist() == [1, 1]


def test_channel_without_zero_in_its_range_uses_all_codes():
    x = np.linspace(100.0, 103.0, 4)[:, None]
    scale, zero = calibrate_channelwise(x, bits=2, percentiles=(1.0,))
    assert (float(scale[0]), float(zero[0])) == (1.0, -100.0)
    assert uniform_codes(x, scale, zero, bits=2).ravel().tolist() == [0, 1, 2, 3]


def test_each_channel_takes_its_best_percentile():
    x = np.column_stack([np.append(np.linspace(-1, 1, 2000), 100.0), np.linspace(-1, 1, 2001)])
    scale, _ = calibrate_channelwise(x, bits=8, percentiles=(0.999, 1.0))
    # Clipping 100 costs more than all the rounding of a wide grid; clipping the even channel costs anything.
    assert scale[0] == pytest.approx(101 / 255)
    assert scale[1] == pytest.approx(2 / 255)


@given(
    seed=st.integers(0, 999),
    bits=st.integers(2, 8),
    dtype=st.sampled_from([np.float32, np.float64]),
    power=st.integers(-6, 3),
)
def test_shifts_give_the_same_numbers_bit_for_bit(seed, bits, dtype, power):
    rng = np.random.default_rng(seed)
    scale = np.asarray(rng.uniform(0.5, 1) * 2.0**power, dtype)
    a = (softmax(4 * rng.standard_normal(40)) * scale).astype(dtype)
    codes = log_sqrt2_quantize(a, scale, bits=bits)
    values = log_sqrt2_dequantize(*codes, scale)
    assert values.dtype == dtype
    # sqrt(2) and 2^(-1/2) are the same digits; the product with the scale is rounded once in both.
    np.testing.assert_array_equal(log2_reparam_dequantize(*codes, scale), values)
    np.testing.assert_array_equal(log_sqrt2_fake_quantize(a, scale, bits=bits), values)


@given(seed=st.integers(0, 999))
def test_relative_error_is_at_most_a_quarter_power_of_two(seed):
    a = np.random.default_rng(seed).uniform(2.0**-7.4, 1, 100)
    ratio = log_sqrt2_fake_quantize(a, 1.0, bits=4) / a
    assert (np.abs(np.log2(ratio)) <= 0.25 + 1e-12).all()


def test_small_numbers_and_zero_become_zero_and_large_ones_the_scale():
    a = np.array([0.0, 2.0**-7.8, 2.0**-7.7, 0.5, 0.99, 1.0, 3.0])
    q, zeroed = log_sqrt2_quantize(a, 1.0, bits=4)
    assert q.tolist() == [15, 15, 15, 2, 0, 0, 0]
    assert zeroed.tolist() == [True, True, False, False, False, False, False]
    assert log_sqrt2_fake_quantize(a, 1.0, bits=4)[[0, 1, -1]].tolist() == [0, 0, 1]


def test_unit_gradient_is_one_inside():
    a = np.array([0.0, 0.001, 0.3, 0.5, 2.0])
    _, pullback = log_sqrt2_fake_quantize_vjp(a, 1.0, bits=4, unit_gradient=True)
    da, dscale = pullback(np.full(5, 3.0))
    assert da.tolist() == [0, 0, 3, 3, 0]
    assert dscale == 3


def test_dual_clipping_returns_its_best_and_improves_on_the_first_loss():
    x = RNG.standard_normal((80, 6)) * np.exp(RNG.standard_normal(6))
    x[RNG.random(x.shape) < 0.02] *= 10
    weight = RNG.standard_normal((6, 4))
    fit = fit_dual_clipping(x, weight, bits=4, n_iter=60, learning_rate=0.1)
    loss = np.mean((fake_quantize_range(x, fit.lower, fit.upper, bits=4) @ weight - x @ weight) ** 2)
    assert loss == pytest.approx(fit.history["loss"].min())
    assert loss < fit.history["loss"][0]
    assert (fit.lower >= x.min(axis=0)).all()
    assert (fit.upper <= x.max(axis=0)).all()
    codes = uniform_codes(x, fit.scale, fit.zero, bits=4)
    np.testing.assert_allclose(
        fit.scale * (codes - fit.zero), fake_quantize_range(x, fit.lower, fit.upper, bits=4), atol=1e-12
    )


def test_dual_clipping_stops_when_the_callback_says_so():
    fit = fit_dual_clipping(
        RNG.standard_normal((8, 2)), np.eye(2), bits=4, callback=lambda progress: progress.n_iter == 3
    )
    assert fit.n_iter == len(fit.history["loss"]) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_rep_quant(dtype):
    arrays = layers(RNG, 4, 3, dtype)
    made, pullback = reparameterize_layernorm_vjp(*arrays)
    assert {np.asarray(leaf).dtype for leaf in vars(made).values()} == {np.dtype(dtype)}
    assert [entry.dtype for entry in pullback(made)] == [dtype] * 6
    x = RNG.standard_normal((9, 4)).astype(dtype)
    assert [entry.dtype for entry in calibrate_channelwise(x, bits=4)] == [dtype] * 2
    fit = fit_dual_clipping(x, arrays[2], bits=4, n_iter=2)
    assert fit.lower.dtype == fit.scale.dtype == dtype
    y, pullback = log_sqrt2_fake_quantize_vjp(softmax(x), 1.0, bits=4)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 2


def test_rep_quant_writes_to_no_argument():
    arrays = layers(RNG, 4, 3)
    for array in (*arrays, WEIGHTS):
        array.setflags(write=False)
    made, pullback = reparameterize_layernorm_vjp(*arrays)
    pullback(made)
    y, pullback = log_sqrt2_fake_quantize_vjp(WEIGHTS, 1.0, bits=4)
    pullback(y)


G, W = np.ones(2), np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: log_sqrt2_quantize(np.array([-0.1]), 1.0, bits=4), ValueError, "a: expected numbers >= 0, got -0.1"),
        (lambda: log_sqrt2_quantize(np.array([np.nan]), 1.0, bits=4), ValueError, "a: expected finite values"),
        (lambda: log_sqrt2_quantize(G, 0.0, bits=4), ValueError, "scale: expected finite numbers > 0, got 0.0"),
        (lambda: log_sqrt2_quantize(G, 1.0, bits=9), ValueError, "bits: expected an integer >= 2 and <= 8, got 9"),
        (lambda: log_sqrt2_dequantize(G, G > 0, 1.0), TypeError, "q: expected an integer array"),
        (lambda: log_sqrt2_dequantize(np.array([1]), G > 0, 1.0), ValueError, r"zero_mask: expected shape \(1,\), got \(2,\)"),
        (lambda: calibrate_channelwise(np.zeros((0, 2)), bits=4), ValueError, "x: expected at least one entry"),
        (lambda: calibrate_channelwise(W, bits=4, percentiles=(0.4,)), ValueError, r"percentiles: expected a number in \(0.5, 1.0\]"),
        (lambda: uniform_codes(W, np.ones(3), np.full(3, 0.5), bits=4), ValueError, "zero: expected whole numbers"),
        (lambda: uniform_codes(W, np.ones(2), np.zeros(3), bits=4), ValueError, r"scale: expected shape \(3,\), got \(2,\)"),
        (lambda: reparameterize_layernorm(G, G, W, np.ones(3), 0 * G, G), ValueError, "scale: expected numbers > 0"),
        (lambda: reparameterize_layernorm(G, G, W.T, np.ones(2), G, G), ValueError, r"weight: expected shape \(2, 2\), got \(3, 2\)"),
        (lambda: reparameterize_layernorm(G, G, W, G, G, G), ValueError, r"linear_bias: expected shape \(3,\), got \(2,\)"),
        (lambda: reparameterize_layernorm(G, G.astype("f4"), W, G, G, G), TypeError, "bias: expected dtype float64 like gain"),
        (lambda: fit_dual_clipping(W, np.ones((2, 2)), bits=4), ValueError, r"weight: expected shape \(3, 2\), got \(2, 2\)"),
        (lambda: fit_dual_clipping(W, np.ones((3, 2)), bits=4, n_iter=0), ValueError, "n_iter: expected an integer >= 1, got 0"),
        (lambda: fit_dual_clipping(W, np.ones((3, 2)), bits=4, learning_rate=0), ValueError, "learning rate of upper: expected a finite number > 0"),
    ],
)  # fmt: skip
def test_bad_input_of_rep_quant_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
