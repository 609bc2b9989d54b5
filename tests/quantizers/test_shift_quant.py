import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    L1BatchNormState,
    ShiftQuantized,
    grouping_variance_bound,
    l1_batch_norm,
    l1_batch_norm_vjp,
    l1_norm,
    l1_norm_vjp,
    shift_groups,
    shift_linear,
    shift_linear_vjp,
    shift_matmul,
    shift_quantize,
)

RNG = np.random.default_rng(1)
STATE = L1BatchNormState(RNG.standard_normal(4), RNG.random(4) + 0.5)


def held_rounding(x, weight, *, forward_bits):
    """The layer with the errors of both roundings held."""
    held = []
    for array in (x, weight):
        scale = np.abs(array).max() / (2 ** (forward_bits - 1) - 1)
        held.append(scale * np.rint(array / scale) - array)
    return lambda x, weight, **_: (x + held[0]) @ (weight + held[1])


def linear_case(shape, bits):
    x, weight = RNG.standard_normal(shape[:2]), RNG.standard_normal(shape[1:])
    return x, weight, {"forward_bits": bits, "grad_bits": None}


def batch_norm_output(training, axes=(0,)):
    def call(x, gain, bias, **options):
        (y, _), back = l1_batch_norm_vjp(x, gain, bias, STATE, training=training, axes=axes, **options)
        return y, back

    return call


def norm_args(shape, axis=-1):
    units = shape[axis]
    return RNG.standard_normal(shape), RNG.standard_normal(units), RNG.standard_normal(units)


SMALL, WIDE = linear_case((3, 5, 4), 4), linear_case((1, 2, 3), 8)

GRADIENT_CASES = [
    GradientCase(shift_linear_vjp, SMALL[:2], SMALL[2], surrogate=held_rounding(*SMALL[:2], forward_bits=4), name="4 bits"),
    GradientCase(shift_linear_vjp, WIDE[:2], WIDE[2], surrogate=held_rounding(*WIDE[:2], forward_bits=8), name="8 bits"),
    GradientCase(l1_norm_vjp, norm_args((3, 7)), step=1e-4),
    GradientCase(l1_norm_vjp, norm_args((2, 5, 3), 1), {"axis": 1, "match_std": True, "eps": 0.1}, step=1e-4, name="other axis, matched"),
    GradientCase(l1_norm_vjp, (np.array([1.0, 2.0, 6.0]), np.array([1.0, -2.0, 0.5]), np.zeros(3)), {"eps": 1e-9}, step=1e-4, name="signs that do not cancel"),
    GradientCase(l1_batch_norm_vjp, norm_args((6, 4)), call=batch_norm_output(True), step=1e-4, name="training"),
    GradientCase(l1_batch_norm_vjp, norm_args((6, 4)), {"match_std": True}, call=batch_norm_output(False), name="inference"),
    GradientCase(l1_batch_norm_vjp, norm_args((3, 4, 2, 2), 1), call=batch_norm_output(True, (0, 2, 3)), step=1e-4, name="images"),
]  # fmt: skip


def gradient(rng, examples=6, channels=9):
    return rng.standard_normal((examples, channels)) * np.exp(2 * rng.standard_normal(channels))


@given(seed=st.integers(0, 999), n_groups=st.integers(1, 8))
def test_groups_hold_the_ranges_between_powers_of_two(seed, n_groups):
    g = gradient(np.random.default_rng(seed))
    shifts, ranges = shift_groups(g, n_groups=n_groups)[0], np.abs(g).max(axis=0)
    assert (ranges <= ranges.max() * 2.0**-shifts).all()
    inner = shifts < n_groups - 1
    assert (ranges[inner] > ranges.max() * 2.0 ** -(shifts[inner] + 1.0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_powers_of_two_and_their_neighbours_fall_on_the_right_side(dtype):
    for top in (dtype(1), dtype(3), np.finfo(dtype).max, dtype(0.1)):
        half = top / 2
        g = np.array([[top, half, np.nextafter(half, top), np.nextafter(half, dtype(0)), top / 4, 0]], dtype=dtype)
        assert shift_groups(g, n_groups=4)[0].tolist() == [0, 1, 0, 1, 2, 3]


@given(seed=st.integers(0, 999), bits=st.integers(2, 8), n_groups=st.integers(1, 8))
def test_error_is_below_one_step_of_the_channel_and_half_a_step_to_nearest(seed, bits, n_groups):
    rng = np.random.default_rng(seed)
    g = gradient(rng)
    for rounding, most in (("nearest", 0.5), ("stochastic", 1.0)):
        found = shift_quantize(g, bits=bits, n_groups=n_groups, rounding=rounding, rng=rng)
        step = found.scale * 2.0**-found.shift
        assert (np.abs(found.dequantize() - g) <= most * step * (1 + 1e-12)).all()
        assert np.abs(found.q).max() == 2 ** (bits - 1) - 1


@given(seed=st.integers(0, 999), n_groups=st.integers(1, 6), per_output=st.booleans())
def test_integer_product_is_the_product_of_the_decoded_matrices(seed, n_groups, per_output):
    rng = np.random.default_rng(seed)
    found = shift_quantize(gradient(rng), bits=6, n_groups=n_groups, rng=rng)
    weight = rng.integers(-31, 32, (9, 4))
    scale = rng.random(4) if per_output else 0.3
    truth = found.dequantize() @ (weight * scale)
    np.testing.assert_allclose(shift_matmul(found, weight, scale), truth, rtol=1e-12, atol=1e-12 * np.abs(truth).max())


def test_codes_that_are_exact_stay_whatever_the_random_numbers():
    g = np.array([[7.0, 3.0, 0.5, -0.25]])
    for seed in range(20):
        found = shift_quantize(g, n_groups=5, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(found.dequantize(), g)


def test_quantization_is_unbiased():
    rng = np.random.default_rng(0)
    g = gradient(rng)
    draws = np.stack([shift_quantize(g, rng=rng).dequantize() for _ in range(3000)])
    error = np.abs(draws.mean(axis=0) - g)
    assert (error <= 6 * draws.std(axis=0) / np.sqrt(3000) + 1e-12).all()


def test_axis_only_says_where_the_channels_are():
    g = gradient(RNG)
    found, turned = (shift_quantize(a, axis=axis, rounding="nearest") for a, axis in ((g, 1), (g.T, 0)))
    np.testing.assert_array_equal(found.q, turned.q.T)
    assert (found.shift.shape, turned.shift.shape) == ((1, 9), (9, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_tiny_and_huge_gradients_keep_their_sign_and_scale(dtype):
    found = shift_quantize(np.zeros((2, 3), dtype), rounding="nearest")
    assert found.scale == 1
    assert (found.q == 0).all()
    assert (found.shift == 3).all()
    smallest, largest = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    for value in (largest, np.finfo(dtype).tiny * 64):
        back = shift_quantize(np.array([[value, -value / 4]], dtype), rounding="nearest").dequantize()
        np.testing.assert_allclose(back, [[value, -value / 4]], rtol=1e-6)
    assert (shift_quantize(np.array([[smallest]], dtype), rounding="nearest").q == 0).all()
    assert shift_quantize(np.zeros((0, 3), dtype), rounding="nearest").q.shape == (0, 3)


def test_integer_layer_has_the_exact_pullback_on_average():
    rng = np.random.default_rng(0)
    x, weight, dy = rng.standard_normal((5, 6)), rng.standard_normal((6, 3)), gradient(rng, 5, 3)
    y, exact = shift_linear_vjp(x, weight, grad_bits=None)
    _, back = shift_linear_vjp(x, weight, rng=rng)
    np.testing.assert_array_equal(y, shift_linear(x, weight))
    draws = [back(dy) for _ in range(3000)]
    for drawn, truth in zip(zip(*draws, strict=True), exact(dy), strict=True):
        stack = np.stack(drawn)
        assert (np.abs(stack.mean(axis=0) - truth) <= 6 * stack.std(axis=0) / np.sqrt(3000) + 1e-9).all()


def test_wide_codes_approach_the_float_layer():
    x, weight, dy = RNG.standard_normal((5, 6)), RNG.standard_normal((6, 3)), RNG.standard_normal((5, 3))
    y, back = shift_linear_vjp(x, weight, forward_bits=13, grad_bits=13, rng=np.random.default_rng(0))
    for got, truth in zip((y, *back(dy)), (x @ weight, dy @ weight.T, x.T @ dy), strict=True):
        np.testing.assert_allclose(got, truth, atol=2e-3 * np.abs(truth).max())


@given(seed=st.integers(0, 999), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_l1_norm_has_mean_0_deviation_1_and_ignores_shift_and_scale(seed, shift, scale):
    x = np.random.default_rng(seed).standard_normal((2, 8))
    gain, bias = np.ones(8), np.zeros(8)
    y = l1_norm(x, gain, bias, eps=1e-12)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(y).mean(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(l1_norm(scale * x + shift, gain, bias, eps=1e-12), y, atol=1e-9)


def test_matched_l1_norm_of_normal_data_has_deviation_one():
    x = np.random.default_rng(0).standard_normal((1, 100000)) * 3
    y = l1_norm(x, np.ones(100000), np.zeros(100000), match_std=True)
    assert abs(y.std() - 1) < 0.01


def test_constant_example_gives_the_bias_and_a_gradient_over_eps():
    gain, bias, dy = np.ones(3), np.array([1.0, 2.0, 3.0]), np.array([3.0, 0.0, 0.0])
    y, back = l1_norm_vjp(np.full(3, 5.0), gain, bias, eps=0.5)
    np.testing.assert_array_equal(y, bias)
    np.testing.assert_allclose(back(dy)[0], [4.0, -2.0, -2.0])


def test_running_statistics_follow_the_batches_and_stay_in_inference():
    x, gain, bias = RNG.standard_normal((50, 4)) + 3, np.ones(4), np.zeros(4)
    state = L1BatchNormState(np.zeros(4), np.ones(4))
    for _ in range(200):
        y, state = l1_batch_norm(x, gain, bias, state, training=True)
    np.testing.assert_allclose(state.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(state.deviation, np.abs(x - x.mean(axis=0)).mean(axis=0), rtol=1e-6)
    z, same = l1_batch_norm(x, gain, bias, state, training=False)
    assert same is state
    np.testing.assert_allclose(z, y, atol=1e-6)


@given(seed=st.integers(0, 999), n_groups=st.integers(1, 5))
def test_bounds_are_in_order_and_shift_is_within_4_of_the_ideal(seed, n_groups):
    ranges = np.exp(np.random.default_rng(seed).standard_normal(7))
    bound = {
        m: grouping_variance_bound(ranges, m, n_groups=n_groups) for m in ("channel", "optimal", "shift", "tensor")
    }
    assert list(bound.values()) == sorted(bound.values()) or n_groups == 1
    wide = grouping_variance_bound(ranges, "shift", bits=4, n_groups=13)
    assert bound["channel"] <= wide < 4 * bound["channel"]


@given(seed=st.integers(0, 99), n_groups=st.integers(1, 4))
def test_best_groups_are_those_of_all_partitions(seed, n_groups):
    ranges = np.random.default_rng(seed).random(6)
    runs = np.sort(ranges)
    costs = []
    for cuts in itertools.combinations_with_replacement(range(7), n_groups - 1):
        pieces = np.split(runs, sorted(cuts))
        costs.append(sum(len(piece) * piece.max(initial=0) ** 2 for piece in pieces))
    expected = min(costs) / (4 * 49 * 6)
    assert grouping_variance_bound(ranges, "optimal", n_groups=n_groups) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written(dtype):
    x, weight, gain = (RNG.standard_normal(s).astype(dtype) for s in ((3, 4), (4, 2), (4,)))
    for array in (x, weight, gain):
        array.setflags(write=False)
    y, back = shift_linear_vjp(x, weight, rng=np.random.default_rng(0))
    z, norm_back = l1_norm_vjp(x, gain, gain)
    (b, state), batch_back = l1_batch_norm_vjp(x, gain, gain, L1BatchNormState(gain, np.abs(gain)), training=True)
    found = shift_quantize(x, rounding="nearest")
    results = [y, *back(y), z, *norm_back(z), b, *batch_back(b), state.mean, state.deviation, found.dequantize()]
    assert {result.dtype for result in results} == {np.dtype(dtype)}
    assert found.q.dtype == np.int8
    assert shift_quantize(x, bits=9, rounding="nearest").q.dtype == np.int16


G, ONES = np.ones((2, 3)), np.ones((3, 2), dtype=np.int8)
FOUND = shift_quantize(G, rounding="nearest")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: shift_groups(np.arange(3)), TypeError, "g: expected a float32 or float64 array, got dtype int64"),
        (lambda: shift_groups(np.array([1.0, np.nan])), ValueError, "g: expected finite values, got 1 that are not, the first at index (1,)"),
        (lambda: shift_groups(G, n_groups=0), ValueError, "n_groups: expected an integer >= 1 and <= 15, got 0"),
        (lambda: shift_groups(G, axis=2), ValueError, "axis: expected integers from -2 to 1, got 2"),
        (lambda: shift_quantize(G, bits=1, rounding="nearest"), ValueError, "bits: expected an integer >= 2, got 1"),
        (lambda: shift_quantize(G, bits=12, n_groups=6, rounding="nearest"), ValueError, "bits, n_groups: expected bits + n_groups - 1 <= 16, got 12 and 6"),
        (lambda: shift_quantize(G), TypeError, "rng: expected a numpy.random.Generator (numpy.random.default_rng(seed)), got NoneType"),
        (lambda: shift_quantize(G, rounding="up"), ValueError, "rounding: expected one of 'stochastic', 'nearest', got 'up'"),
        (lambda: shift_matmul(FOUND, np.ones((3, 2)), 1.0), TypeError, "weight: expected an integer array, got dtype float64"),
        (lambda: shift_matmul(FOUND, ONES[:2], 1.0), ValueError, "weight: expected shape (3, 2), got (2, 2)"),
        (lambda: shift_matmul(FOUND, ONES, np.ones(3)), ValueError, "weight_scale: expected shape () or (2,), got (3,)"),
        (lambda: shift_matmul(FOUND, ONES.astype(np.int64) << 60, 1.0), ValueError, "weight: expected codes whose sums stay below 2^53, got a magnitude of 1.15292e+18"),
        (lambda: shift_matmul(ShiftQuantized(FOUND.q, FOUND.shift.T, FOUND.scale, 4), ONES, 1.0), ValueError, "g.shift: expected shape (1, 3), got (3, 1)"),
        (lambda: shift_linear(G, np.ones((2, 2))), ValueError, "x: expected shape (2, 2), got (2, 3)"),
        (lambda: shift_linear_vjp(G, np.ones((3, 2))), TypeError, "rng: expected a numpy.random.Generator (numpy.random.default_rng(seed)), got NoneType"),
        (lambda: l1_norm(G, np.ones(2), np.ones(3)), ValueError, "gain: expected shape (3,), got (2,)"),
        (lambda: l1_norm(G, np.ones(3), np.ones(3), eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: l1_norm(np.ones((2, 0)), np.ones(0), np.ones(0)), ValueError, "x: expected at least one entry along axes (1,), got shape (2, 0)"),
        (lambda: grouping_variance_bound(np.array([-1.0])), ValueError, "ranges: expected numbers >= 0, got -1.0"),
        (lambda: grouping_variance_bound(np.ones(2), "best"), ValueError, "method: expected one of 'shift', 'tensor', 'channel', 'optimal', got 'best'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
