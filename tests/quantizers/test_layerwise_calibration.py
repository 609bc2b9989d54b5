import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import batch_norm
from refnorm.quantizers import (
    adaquant,
    adaquant_simplex,
    allocate_bits_ip,
    bias_correction,
    para_normalize,
    range_fake_quantize,
    range_fake_quantize_vjp,
    reestimate_bn,
)
from refnorm.quantizers._layerwise_calibration import PAPER_RATES

RNG = np.random.default_rng(1)
SAMPLE = 2 * RNG.standard_normal((5, 4))


def held_errors(x, width, minimum, *, bits):
    """The smooth function with the errors of both roundings held."""
    highest = 2**bits - 1
    cut = np.clip(width, 1e-6, 1e5)
    scale = cut / highest
    ideal = -minimum / scale
    rounded = np.rint(ideal)
    zero = np.clip(rounded, 0, highest)
    error, code = np.rint(x / scale) - x / scale, np.rint(x / scale) + zero

    def surrogate(x, width, minimum, **_):
        scale = np.clip(width, 1e-6, 1e5) / highest
        now = np.where(zero == rounded, -minimum / scale + rounded - ideal, zero)
        outside = scale * (np.where(code < 0, 0, highest) - now)
        return np.where((code < 0) | (code > highest), outside, scale * (x / scale + error))

    return surrogate


def case(x, width, minimum, name, bits):
    return GradientCase(
        range_fake_quantize_vjp, (x, np.asarray(width), np.asarray(minimum)), {"bits": bits},
        surrogate=held_errors(x, np.asarray(width), np.asarray(minimum), bits=bits), step=1e-4, name=name,
    )  # fmt: skip


GRADIENT_CASES = [
    case(SAMPLE, 3.0, -1.1, "one range, clipped at both ends", 3),
    case(SAMPLE, RNG.uniform(2, 5, (1, 4)), -RNG.uniform(1, 2, (1, 4)), "a range for each column", 4),
    case(SAMPLE, 2.0, 1.0, "zero point clipped: the range does not hold 0", 4),
    case(SAMPLE, 2.0, -4.0, "zero point clipped at the upper end", 4),
    case(1e-7 * SAMPLE, 5e-7, -2e-7, "width below the narrowest", 2),
]


def layer(rng, rows=120, inputs=10, outputs=6, dtype=np.float64):
    x = np.maximum(rng.standard_normal((rows, inputs)), 0).astype(dtype)
    return x, (rng.standard_normal((inputs, outputs)) / 3).astype(dtype), rng.standard_normal(outputs).astype(dtype)


def error_of(found, x, weight, bias, bits):
    quantized = range_fake_quantize(x, *found.input_range, bits=bits)
    return float(np.mean((quantized @ found.quantized_weight + found.bias - (x @ weight + bias)) ** 2))


@given(seed=st.integers(0, 99), bits=st.integers(2, 8))
def test_range_of_the_data_moves_numbers_by_at_most_a_step(seed, bits):
    x = np.random.default_rng(seed).standard_normal(30)
    x = x - x.mean()
    y = range_fake_quantize(x, np.ptp(x), x.min(), bits=bits)
    assert np.abs(y - x).max() <= np.ptp(x) / (2**bits - 1) * (1 + 1e-9)
    assert len(np.unique(y)) <= 2**bits


def test_best_step_on_the_rows_held_out_is_returned():
    x, weight, bias = layer(RNG)
    found = adaquant(x, weight, bias, weight_bits=3, bits=3, n_iter=80, rng=np.random.default_rng(3))
    held_out = np.random.default_rng(3).permutation(len(x))[:24]
    error = error_of(found, x[held_out], weight[:], bias, 3)
    assert error == pytest.approx(found.history["loss"].min(), rel=1e-12)
    assert error < 0.9 * found.history["loss"][0]


def test_first_loss_is_that_of_the_extremes():
    x, weight, bias = layer(RNG)
    found = adaquant(x, weight, bias, weight_bits=4, bits=4, n_iter=1, holdout=0.0, batch_size=None)
    low, high = np.minimum(weight.min(axis=0), 0), np.maximum(weight.max(axis=0), 0)
    w = range_fake_quantize(weight, (high - low)[None], low[None], bits=4)
    expected = np.mean((range_fake_quantize(x, x.max(), np.array(0.0), bits=4) @ w - x @ weight) ** 2)
    assert found.history["loss"].tolist() == pytest.approx([expected], rel=1e-12)
    np.testing.assert_array_equal(found.weight, weight)


def test_sequential_mode_matches_the_float_outputs_from_disturbed_inputs():
    x, weight, bias = layer(RNG)
    disturbed = x + 0.3
    found = adaquant(
        x, weight, bias, weight_bits=8, bits=8, n_iter=400, holdout=0.0, batch_size=None, x_quantized=disturbed,
        learning_rates={"weight": 1e-3, "bias": 1e-2, "weight_range": 1e-3, "input_range": 1e-3},
    )  # fmt: skip
    error = range_fake_quantize(disturbed, *found.input_range, bits=8) @ found.quantized_weight + found.bias
    assert np.mean((error - (x @ weight + bias)) ** 2) < 0.01 * found.history["loss"][0]


def test_simplex_improves_the_ranges_and_nothing_else():
    x, weight, bias = layer(RNG)
    found = adaquant_simplex(x, weight, bias, weight_bits=3, bits=3, max_iter=60)
    np.testing.assert_array_equal(found.weight, weight)
    np.testing.assert_array_equal(found.bias, bias)
    assert found.n_iter == len(found.history["loss"]) == 60
    assert error_of(found, x, weight, bias, 3) == pytest.approx(found.history["loss"].min(), rel=1e-12)
    assert found.history["loss"].min() < found.history["loss"][0]


def test_callback_ends_both_calibrations():
    x, weight, bias = layer(RNG)

    def stop(progress):
        return progress.n_iter == 3

    for found in (
        adaquant(x, weight, bias, weight_bits=4, bits=4, rng=RNG, callback=stop),
        adaquant_simplex(x, weight, bias, weight_bits=4, bits=4, callback=stop),
    ):
        assert found.n_iter == 3


@given(seed=st.integers(0, 999), layers=st.integers(1, 4), choices=st.integers(1, 3))
def test_allocation_is_the_best_of_all(seed, layers, choices):
    rng = np.random.default_rng(seed)
    costs, savings = rng.random((layers, choices)), rng.integers(0, 30, (layers, choices)).astype(float)
    required = 0.6 * savings.max(axis=1).sum()
    choice, objective = allocate_bits_ip(costs, savings, required)
    rows = np.arange(layers)
    assert savings[rows, choice].sum() >= required
    best = min(
        costs[rows, list(one)].sum()
        for one in itertools.product(range(choices), repeat=layers)
        if savings[rows, list(one)].sum() >= required
    )
    assert objective == pytest.approx(best, abs=1e-12)
    assert objective == pytest.approx(costs[rows, choice].sum())


def test_allocation_that_must_take_everything():
    choice, objective = allocate_bits_ip(np.array([[0.0, 0.1], [0.0, 0.5]]), np.array([[0, 40.0], [0, 120.0]]), 160.0)
    assert choice.tolist() == [1, 1]
    assert objective == pytest.approx(0.6)


def test_para_normalization_restores_mean_and_spread():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((500, 6)), rng.standard_normal((6, 4)), rng.standard_normal(4)
    y_float = x @ weight + bias
    coarse = np.rint(weight)
    y_quantized = x @ coarse + 1.0
    new_weight, new_bias = para_normalize(y_float, y_quantized, coarse, np.ones(4), eps=1e-12)
    repaired = x @ new_weight + new_bias
    np.testing.assert_allclose(repaired.mean(axis=0), y_float.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(repaired.std(axis=0), y_float.std(axis=0), rtol=1e-9)
    # It is the batch norm with the float statistics as gain and bias.
    expected = batch_norm(y_quantized, y_float.std(axis=0), y_float.mean(axis=0), eps=1e-12)
    np.testing.assert_allclose(repaired, expected, atol=1e-9)


def test_dead_channel_is_only_shifted():
    y = np.column_stack([np.zeros(5), np.arange(5.0)])
    weight, bias = para_normalize(y + 3, y, np.ones((2, 2)), np.zeros(2))
    assert weight[0, 0] == 0
    assert bias[0] == 3


@given(seed=st.integers(0, 99))
def test_corrected_bias_has_the_least_error(seed):
    rng = np.random.default_rng(seed)
    y, noisy, bias = rng.standard_normal((9, 3)), rng.standard_normal((9, 3)), rng.standard_normal(3)
    shift = bias_correction(y, noisy, bias) - bias
    best = np.square(noisy + shift - y).sum()
    for other in 0.1 * rng.standard_normal((5, 3)):
        assert np.square(noisy + shift + other - y).sum() >= best


def test_statistics_are_measured_with_the_earlier_ones_in_place():
    x, first, second = RNG.standard_normal((50, 3)), RNG.standard_normal((3, 4)), RNG.standard_normal((4, 2))

    def after(z, mean, variance):
        return np.maximum((z - mean) / np.sqrt(variance + 1e-5), 0)

    (m1, v1), (m2, v2) = reestimate_bn([(lambda h: h @ first, after), (lambda h: h @ second, after)], x)
    z = x @ first
    np.testing.assert_allclose(m1, z.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(v1, z.var(axis=0))
    z = np.maximum((z - m1) / np.sqrt(v1 + 1e-5), 0) @ second
    np.testing.assert_allclose(m2, z.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(v2, z.var(axis=0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_layerwise_calibration(dtype):
    x, weight, bias = layer(RNG, dtype=dtype)
    for found in (
        adaquant(x, weight, bias, weight_bits=4, bits=4, n_iter=3, rng=RNG),
        adaquant_simplex(x, weight, bias, weight_bits=4, bits=4, max_iter=5),
    ):
        assert {
            a.dtype for a in (found.weight, found.bias, found.quantized_weight, *found.weight_range, *found.input_range)
        } == {np.dtype(dtype)}
    y = x @ weight + bias
    assert bias_correction(y, y, bias).dtype == dtype
    assert [a.dtype for a in para_normalize(y, y, weight, bias)] == [dtype] * 2


def test_layerwise_calibration_writes_to_no_argument():
    arrays = layer(RNG)
    for array in arrays:
        array.setflags(write=False)
    adaquant(*arrays, weight_bits=4, bits=4, n_iter=3, rng=RNG)
    adaquant_simplex(*arrays, weight_bits=4, bits=4, max_iter=5)


X, W, B = np.ones((4, 3)), np.ones((3, 2)), np.ones(2)
SMALL = {"weight_bits": 4, "bits": 4}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: range_fake_quantize(X, np.ones(4), np.zeros(3), bits=4), ValueError, "shape mismatch|width: expected a shape"),
        (lambda: range_fake_quantize(X, np.float32(1), np.zeros(3), bits=4), TypeError, "width: expected dtype float64 like x"),
        (lambda: range_fake_quantize(X, np.array(1.0), np.array(0.0), bits=17), ValueError, "bits: expected an integer >= 2 and <= 16, got 17"),
        (lambda: adaquant(X, W.T, B, **SMALL), ValueError, r"weight: expected shape \(3, 3\), got \(2, 3\)"),
        (lambda: adaquant(X, W, np.ones(3), **SMALL), ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        (lambda: adaquant(X[:0], W, B, **SMALL), ValueError, "x: expected at least one entry"),
        (lambda: adaquant(X, W, B, weight_bits=1, bits=4), ValueError, "weight_bits: expected an integer >= 2"),
        (lambda: adaquant(X, W, B, holdout=0.5, **SMALL), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: adaquant(X, W, B, holdout=1.0, **SMALL), ValueError, r"holdout: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: adaquant(X, W, B, learning_rates="fast", rng=RNG, **SMALL), ValueError, "learning_rates: expected 'scaled', 'paper' or a mapping, got 'fast'"),
        (lambda: adaquant(X, W, B, learning_rates={"weight": 1.0}, rng=RNG, **SMALL), ValueError, "learning_rates: expected the names weight, bias"),
        (lambda: adaquant(X, W, B, x_quantized=X[:2], rng=RNG, **SMALL), ValueError, "x_quantized: expected shape"),
        (lambda: adaquant_simplex(X, W, B, max_iter=0, **SMALL), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: allocate_bits_ip(np.zeros((2, 2)), np.ones((2, 2)), 5.0), ValueError, "required: expected at most 2, the largest saving, got 5.0"),
        (lambda: allocate_bits_ip(np.zeros((2, 2)), np.ones((2, 3)), 1.0), ValueError, "savings: expected shape"),
        (lambda: allocate_bits_ip(np.zeros((2, 0)), np.ones((2, 0)), 1.0), ValueError, "costs: expected at least one entry"),
        (lambda: para_normalize(X, X, W, np.ones(3)), ValueError, r"weight: expected shape \(3, 3\), got \(3, 2\)"),
        (lambda: para_normalize(X, X, X, np.ones(3), eps=0), ValueError, "eps: expected a finite number > 0, got 0"),
        (lambda: bias_correction(X, X[:2], np.ones(3)), ValueError, "y_quantized: expected shape"),
        (lambda: reestimate_bn([(lambda h: h[0], None)], X), ValueError, r"layers\[0\]: expected 2 dimensions"),
    ],
)  # fmt: skip
def test_bad_input_of_layerwise_calibration_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_range_with_more_axes_than_the_input_is_refused():
    with pytest.raises(ValueError, match=r"width: expected a shape that broadcasts to \(3,\), got \(2, 3\)"):
        range_fake_quantize(np.zeros(3), np.ones((2, 3)), np.zeros(1), bits=4)


def test_the_papers_learning_rates_are_those_of_its_code():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((24, 4)), rng.standard_normal((4, 3)), np.zeros(3)
    options = {"weight_bits": 4, "bits": 4, "n_iter": 5, "batch_size": None, "holdout": 0.25}
    named, given = (
        adaquant(x, weight, bias, learning_rates=rates, rng=np.random.default_rng(1), **options)
        for rates in ("paper", PAPER_RATES)
    )
    np.testing.assert_array_equal(named.weight, given.weight)
    scaled = adaquant(x, weight, bias, rng=np.random.default_rng(1), **options)
    assert not np.array_equal(scaled.history["loss"], given.history["loss"])
