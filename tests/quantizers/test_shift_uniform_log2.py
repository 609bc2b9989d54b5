import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import gelu
from refnorm.norms import layer_norm
from refnorm.quantizers import (
    FeedForward,
    FeedForwardGrids,
    SulqParams,
    calibrate_channelwise,
    log2_fake_quantize,
    log2_fake_quantize_vjp,
    log_sqrt2_fake_quantize,
    quantized_feed_forward,
    quantized_feed_forward_vjp,
    smooth_optimize,
    sulq_calibrate,
    sulq_decode,
    sulq_encode,
    sulq_fake_quantize,
    sulq_fake_quantize_vjp,
    sulq_matmul,
    sulq_matmul_vjp,
)
from refnorm.softmax import softmax

RNG = np.random.default_rng(1)
WEIGHTS = softmax(2 * RNG.standard_normal((3, 7)))
HAND = SulqParams(1.0, 0.0, 1.0, 2)


def held_exponent(a, shift, params, *, integer_exponent=True):
    """The smooth function with the errors of both roundings held."""
    v = np.log2(a + shift)
    q = np.rint((v - params.low) / params.step)
    inside = (q >= 0) & (q <= params.highest)
    exponent = np.clip(q, 0, params.highest) * params.step + params.low
    exponent = np.rint(exponent) if integer_exponent else exponent
    held = exponent - v

    def surrogate(a, shift, params, **_):
        return np.where(inside, (a + shift) * 2.0**held, 2.0**exponent) - shift

    return surrogate


def sulq_case(a, shift, params, name, **options):
    return GradientCase(
        sulq_fake_quantize_vjp, (a, shift, params), options,
        surrogate=held_exponent(a, shift, params, **options), step=1e-4, name=name,
    )  # fmt: skip


def held_logarithm(a, scale, *, bits):
    codes = np.rint(-np.log2(np.maximum(a, 1e-300) / scale))
    ratio = scale * 2.0**-codes / np.maximum(a, 1e-300)

    def surrogate(a, scale, **_):
        # scale 2^(log2(a / scale) - error), in which the scale cancels.
        return np.where(codes < 0, scale, np.where(codes >= 2**bits, 0.0, a * ratio))

    return surrogate


def block(rng, channels=5, inner=6, outputs=4, dtype=np.float64):
    shapes = ((channels,), (channels,), (channels, inner), (inner,), (inner, outputs), (outputs,))
    return FeedForward(*((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype) for shape in shapes))


def grids(bits=3, weights=True):
    return FeedForwardGrids(
        np.linspace(0.2, 0.6, 5), np.array([2.0, 3, 4, 3, 5]), np.array(0.4), np.array(1.0), bits,
        np.linspace(0.3, 0.5, 6)[None] if weights else None, np.linspace(0.3, 0.6, 4)[None] if weights else None, 3,
    )  # fmt: skip


X, BLOCK = RNG.standard_normal((7, 5)), block(RNG)


def rounded(x, scale, zero, highest, lowest=0):
    """Distance of the quantized number from x where it is inside, and the end where it is not."""
    code = np.rint(x / scale) + zero
    return scale * (np.clip(code, lowest, highest) - zero), (code >= lowest) & (code <= highest)


def straight_through_block(block, x, *, grids):
    def steps(block, x, found):
        """One forward pass; ``found`` collects (value, inside, point) or hands out what an earlier pass collected."""
        replay = iter(found) if found else None

        def through(value, scale, zero, highest, lowest=0):
            if replay is None:
                quantized, inside = rounded(value, scale, zero, highest, lowest)
                found.append((quantized, inside, value))
                return quantized
            quantized, inside, at = next(replay)
            return np.where(inside, value + (quantized - at), quantized)

        top = 2**grids.bits - 1
        normed = through(layer_norm(x, block.gain, block.bias), grids.input_scale, grids.input_zero, top)
        inner, outer = block.inner_weight, block.outer_weight
        if grids.inner_scale is not None:
            most = 2 ** (grids.weight_bits - 1) - 1
            inner, outer = (
                through(w, s, 0, most, -most - 1) for w, s in ((inner, grids.inner_scale), (outer, grids.outer_scale))
            )
        hidden = through(gelu(normed @ inner + block.inner_bias), grids.hidden_scale, grids.hidden_zero, top)
        return hidden @ outer + block.outer_bias

    found = []
    steps(block, x, found)
    return lambda block, x, **_: steps(block, x, found)


GRADIENT_CASES = [
    sulq_case(WEIGHTS, 0.05, SulqParams(0.05, -4.3, -0.5, 4), "integer exponents"),
    sulq_case(WEIGHTS, np.array(0.03), SulqParams(0.03, -4.0, -1.5, 3), "clipped at both ends"),
    sulq_case(WEIGHTS, 0.05, SulqParams(0.05, -4.3, -0.5, 4), "exponents not rounded", integer_exponent=False),
    sulq_case(np.array([0.0, 0.5, 1.0]), 0.1, SulqParams(0.1, -3.0, 0.2, 4, "official"), "zero, and one level more"),
    GradientCase(sulq_matmul_vjp, (RNG.integers(0, 8, (3, 5)), RNG.standard_normal((5, 2)), SulqParams(0.05, -4.3, 0.1, 3)), method="complex"),
    GradientCase(sulq_matmul_vjp, (RNG.integers(0, 8, (2, 3, 5)), RNG.standard_normal((2, 5, 4)), SulqParams(0.05, -4.3, 0.1, 3)), method="complex", name="heads"),
    *(
        GradientCase(
            log2_fake_quantize_vjp, (WEIGHTS, np.array(scale)), {"bits": bits},
            surrogate=held_logarithm(WEIGHTS, scale, bits=bits), step=1e-4, name=f"{bits} bits, scale {scale}",
        )
        for scale, bits in ((1.0, 4), (0.2, 3), (0.9, 2))
    ),
    GradientCase(quantized_feed_forward_vjp, (BLOCK, X), name="in float"),
    GradientCase(quantized_feed_forward_vjp, (BLOCK, X), {"grids": grids()}, surrogate=straight_through_block(BLOCK, X, grids=grids()), name="weights and activations"),
    GradientCase(quantized_feed_forward_vjp, (BLOCK, X), {"grids": grids(weights=False)}, surrogate=straight_through_block(BLOCK, X, grids=grids(weights=False)), name="activations"),
]  # fmt: skip


@given(seed=st.integers(0, 999), bits=st.integers(2, 8), shift=st.sampled_from([0.001, 0.05, 1.0]))
def test_error_of_the_logarithm_is_at_most_half_a_step(seed, bits, shift):
    a = softmax(3 * np.random.default_rng(seed).standard_normal(50))
    params = sulq_calibrate(a, bits=bits, shifts=(shift,))
    decoded = sulq_decode(sulq_encode(a, params), params, integer_exponent=False)
    assert (np.abs(np.log2(decoded + shift) - np.log2(a + shift)) <= params.step / 2 * (1 + 1e-9)).all()
    shifted = sulq_decode(sulq_encode(a, params), params)
    assert (np.abs(np.log2(shifted + shift) - np.log2(a + shift)) <= params.step / 2 + 0.5 + 1e-9).all()


@given(seed=st.integers(0, 999), bits=st.integers(2, 5))
def test_both_ends_of_the_range_are_used_and_zero_stays_near_zero(seed, bits):
    a = np.append(softmax(3 * np.random.default_rng(seed).standard_normal(50)), 0.0)
    params = sulq_calibrate(a, bits=bits)
    q = sulq_encode(a, params)
    assert q.min() == 0
    assert q.max() == 2**bits - 1
    assert abs(sulq_decode(q, params, integer_exponent=False)[-1]) < 1e-12
    assert abs(sulq_decode(q, params)[-1]) <= params.shift


def test_calibration_takes_the_shift_with_the_least_error():
    a = softmax(3 * RNG.standard_normal((20, 30)))
    for integer_exponent in (True, False):
        errors = {}
        for shift in (0.001, 0.01, 0.1, 1.0):
            params = sulq_calibrate(a, bits=4, shifts=(shift,))
            decoded = sulq_decode(sulq_encode(a, params), params, integer_exponent=integer_exponent)
            errors[shift] = np.square(decoded - a).sum()
        chosen = sulq_calibrate(a, bits=4, shifts=tuple(errors), integer_exponent=integer_exponent)
        assert chosen.shift == min(errors, key=errors.get)


@given(seed=st.integers(0, 999), integer_exponent=st.booleans(), levels=st.sampled_from(["b_bits", "official"]))
def test_fake_quantization_is_the_round_trip(seed, integer_exponent, levels):
    a = softmax(3 * np.random.default_rng(seed).standard_normal((4, 9)))
    params = sulq_calibrate(a, bits=3, levels=levels)
    expected = sulq_decode(sulq_encode(a, params), params, integer_exponent=integer_exponent)
    np.testing.assert_array_equal(
        sulq_fake_quantize(a, params.shift, params, integer_exponent=integer_exponent), expected
    )


def test_official_levels_are_one_more():
    a = np.linspace(0, 1, 1000)
    params = sulq_calibrate(a, bits=2, levels="official", shifts=(0.1,))
    assert len(np.unique(sulq_encode(a, params))) == 5
    assert len(np.unique(sulq_encode(a, sulq_calibrate(a, bits=2, shifts=(0.1,))))) == 4
    assert sulq_encode(a, sulq_calibrate(a, bits=8, levels="official")).dtype == np.uint16


def test_constant_input_has_one_code():
    params = sulq_calibrate(np.full(5, 0.25), bits=4, shifts=(0.75,))
    assert (params.low, params.high, params.step) == (0.0, 0.0, 1.0)
    assert sulq_encode(np.full(5, 0.25), params).tolist() == [0] * 5
    assert sulq_decode(np.zeros(5, int), params).tolist() == [0.25] * 5


def test_clamp_cuts_to_the_unit_interval_with_its_gradient():
    a, params = np.array([0.0, 0.5, 1.0]), SulqParams(0.35, -1.6, 0.6, 2)
    plain = sulq_fake_quantize(a, 0.35, params)
    assert plain.min() < 0
    assert plain.max() > 0.5
    y, pullback = sulq_fake_quantize_vjp(a, 0.35, params, clamp=True)
    np.testing.assert_array_equal(y, np.clip(plain, 0, 1))
    assert pullback(np.ones(3))[0][0] == 0


@given(seed=st.integers(0, 999), dtype=st.sampled_from([np.float32, np.float64]))
def test_product_of_codes_is_the_product_of_decoded_weights(seed, dtype):
    rng = np.random.default_rng(seed)
    a, v = softmax(rng.standard_normal((2, 4, 6))).astype(dtype), rng.standard_normal((2, 6, 3)).astype(dtype)
    params = sulq_calibrate(a, bits=4)
    q = sulq_encode(a, params)
    y = sulq_matmul(q, v, params)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, sulq_decode(q, params) @ v, atol=1e-5 if dtype == np.float32 else 1e-12)


def test_every_second_level_of_root_two_is_a_power_of_two():
    a = 2.0 ** -np.arange(0, 7.0)
    np.testing.assert_array_equal(log2_fake_quantize(a, 1.0, bits=3), a)
    np.testing.assert_array_equal(log_sqrt2_fake_quantize(a, 1.0, bits=4), a)


def test_float_block_is_layer_norm_and_two_linear_layers():
    expected = gelu(layer_norm(X, BLOCK.gain, BLOCK.bias) @ BLOCK.inner_weight + BLOCK.inner_bias)
    expected = expected @ BLOCK.outer_weight + BLOCK.outer_bias
    np.testing.assert_array_equal(quantized_feed_forward(BLOCK, X), expected)


def test_second_stage_changes_nothing_but_the_grid():
    x = RNG.standard_normal((40, 5))
    found = smooth_optimize(BLOCK, x, weight_bits=16, bits=4, steps=(0, 0))
    assert found.grids.input_scale.shape == ()
    scale, zero = calibrate_channelwise(layer_norm(x, BLOCK.gain, BLOCK.bias), bits=4)
    channels = dataclasses.replace(found.grids, input_scale=scale, input_zero=zero, inner_scale=None)
    np.testing.assert_allclose(
        quantized_feed_forward(found.block, x, grids=found.grids),
        quantized_feed_forward(BLOCK, x, grids=channels), atol=2e-2,
    )  # fmt: skip


def test_optimization_reduces_the_loss_and_reports_it():
    rng = np.random.default_rng(3)
    larger, x, seen = block(rng, 16, 24, 8), rng.standard_normal((120, 16)), []
    found = smooth_optimize(
        larger,
        x,
        weight_bits=4,
        bits=4,
        steps=(60, 60),
        learning_rate=1e-3,
        callback=lambda progress: seen.append(progress.values["loss"]),
    )
    assert found.n_iter == len(seen) == 120
    assert seen[59] < 0.9 * seen[0]
    assert seen[-1] < 0.9 * seen[60]
    error = quantized_feed_forward(found.block, x, grids=found.grids) - quantized_feed_forward(larger, x)
    assert np.mean(error**2) == pytest.approx(seen[-1], rel=0.1)
    assert found.grids.input_scale.shape == ()


def test_batches_and_inputs_of_the_quantized_network_are_used():
    x = RNG.standard_normal((60, 5))
    first, again, other = (
        smooth_optimize(
            BLOCK,
            x,
            weight_bits=4,
            bits=4,
            steps=(3, 3),
            batch_size=16,
            x_quantized=moved,
            rng=np.random.default_rng(0),
        )
        for moved in (x, x, x + 0.1 * x**2)
    )
    np.testing.assert_array_equal(first.history["loss"], again.history["loss"])
    np.testing.assert_array_equal(first.history["loss"][:3], other.history["loss"][:3])
    assert first.history["loss"][3] != other.history["loss"][3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_sulq(dtype):
    a, params = WEIGHTS.astype(dtype), SulqParams(0.05, -4.3, -0.5, 4)
    for made in (
        sulq_fake_quantize_vjp(a, 0.05, params),
        sulq_fake_quantize_vjp(a, dtype(0.05), params, integer_exponent=False),
        log2_fake_quantize_vjp(a, 1.0, bits=3),
    ):
        assert made[0].dtype == dtype
        assert [entry.dtype for entry in made[1](made[0])] == [dtype] * 2
    found = smooth_optimize(block(RNG, dtype=dtype), X.astype(dtype), weight_bits=4, bits=4, steps=(2, 2))
    assert found.block.inner_weight.dtype == dtype
    assert quantized_feed_forward(found.block, X.astype(dtype), grids=found.grids).dtype == dtype


def test_sulq_writes_to_no_argument():
    arrays = [WEIGHTS.copy(), X.copy(), *vars(block(RNG)).values()]
    for array in arrays:
        array.setflags(write=False)
    y, pullback = sulq_fake_quantize_vjp(arrays[0], 0.05, SulqParams(0.05, -4.3, -0.5, 4), clamp=True)
    pullback(y)
    smooth_optimize(FeedForward(*arrays[2:]), arrays[1], weight_bits=4, bits=4, steps=(2, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sulq_calibrate(np.array([-0.1]), bits=4), ValueError, "a: expected numbers >= 0, got -0.1"),
        (lambda: sulq_calibrate(np.zeros(0), bits=4), ValueError, "a: expected at least one entry"),
        (lambda: sulq_calibrate(np.ones(1), bits=4, shifts=()), ValueError, "shifts: expected at least one, got 0"),
        (lambda: sulq_calibrate(np.ones(1), bits=4, shifts=(0.0,)), ValueError, "shifts: expected a finite number > 0, got 0.0"),
        (lambda: SulqParams(0.1, 0.0, 1.0, 9), ValueError, "bits: expected an integer >= 2 and <= 8, got 9"),
        (lambda: SulqParams(0.1, 1.0, 0.0, 4), ValueError, "high: expected a number >= low = 1.0, got 0.0"),
        (lambda: SulqParams(0.1, 0.0, 1.0, 4, "more"), ValueError, "levels: expected one of 'b_bits', 'official'"),
        (lambda: sulq_encode(np.ones(1, int), HAND), TypeError, "a: expected a float32 or float64 array, got dtype int64"),
        (lambda: sulq_decode(np.array([4]), HAND), ValueError, "q: expected values of at most 3, got 4"),
        (lambda: sulq_fake_quantize(WEIGHTS, -1.0, HAND), ValueError, "shift: expected a finite number > 0, got -1.0"),
        (lambda: sulq_fake_quantize(WEIGHTS, np.float32(1), HAND), TypeError, "shift: expected dtype float64 like a"),
        (lambda: sulq_matmul(np.zeros((2, 3), int), np.ones((2, 2)), HAND), ValueError, r"v: expected shape \(3, 2\), got \(2, 2\)"),
        (lambda: log2_fake_quantize(-WEIGHTS, 1.0, bits=3), ValueError, "a: expected numbers >= 0"),
        (lambda: smooth_optimize(BLOCK, X, weight_bits=1, bits=4), ValueError, "weight_bits: expected an integer >= 2"),
        (lambda: smooth_optimize(BLOCK, X, weight_bits=4, bits=4, steps=(-1, 0)), ValueError, "steps: expected an integer >= 0, got -1"),
        (lambda: smooth_optimize(BLOCK, X, weight_bits=4, bits=4, batch_size=9), ValueError, "batch_size: expected an integer >= 1 and <= 7, got 9"),
        (lambda: smooth_optimize(BLOCK, X, weight_bits=4, bits=4, batch_size=2), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: smooth_optimize(BLOCK, X, weight_bits=4, bits=4, x_quantized=X[1:]), ValueError, r"x_quantized: expected shape \(7, 5\), got \(6, 5\)"),
    ],
)  # fmt: skip
def test_bad_input_of_sulq_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
