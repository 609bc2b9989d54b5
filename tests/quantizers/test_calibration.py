import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import affine_qparams, fake_quantize
from refnorm.quantizers._calibration import (
    LayerRecorder,
    RowReservoir,
    RunningRange,
    choose_range,
    fake_quantize_range,
    fake_quantize_range_vjp,
    grid_of_range,
    split_groups,
    spread_groups,
)
from refnorm.quantizers._descent import Descent

RNG = np.random.default_rng(1)


def held_errors(x, low, high, *, bits, clip_zero=False):
    """The smooth function that the pullback at these arguments belongs to: both rounding errors held."""
    highest = 2**bits - 1
    scale = np.where(high > low, (high - low) / highest, 1.0)
    ideal = -low / scale
    zero = np.clip(np.rint(ideal), 0, highest) if clip_zero else np.rint(ideal)
    on_grid = zero == np.rint(ideal)
    error = np.rint(x / scale) - x / scale
    code = np.rint(x / scale) + zero
    empty = high == low

    def surrogate(x, low, high, **_):
        scale = np.where(empty, 1.0, (high - low) / highest)
        zero_now = np.where(on_grid, -low / scale + (zero - ideal), zero)
        outside = scale * (np.where(code < 0, 0, highest) - zero_now)
        return np.where((code < 0) | (code > highest), outside, scale * (x / scale + error))

    return surrogate


def case(x, low, high, name, **options):
    return GradientCase(
        fake_quantize_range_vjp, (x, low, high), options, surrogate=held_errors(x, low, high, **options), name=name
    )


SAMPLE = 2 * RNG.standard_normal((6, 5))
CHANNELS = (SAMPLE.min(axis=0) * 0.6, SAMPLE.max(axis=0) * 0.7)

GRADIENT_CASES = [
    case(SAMPLE, np.array(-1.5), np.array(2.2), "per tensor, clipped at both ends", bits=3),
    case(SAMPLE, *CHANNELS, "per channel", bits=4),
    case(SAMPLE, SAMPLE.min(axis=1, keepdims=True), SAMPLE.max(axis=1, keepdims=True), "per row", bits=5),
    case(SAMPLE + 9, np.array(6.0), np.array(12.0), "zero point off the grid", bits=4),
    case(SAMPLE + 9, np.array(6.0), np.array(12.0), "zero point clipped to the grid", bits=4, clip_zero=True),
]


@pytest.mark.parametrize("gradient_case", GRADIENT_CASES, ids=lambda case: case.name)
def test_pullback_of_a_learned_range_is_the_gradient_with_held_rounding_errors(gradient_case):
    gradient_case.check()


@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 40), max_size=5), group=st.sampled_from([None, 1, 2, 3]))
def test_running_statistics_do_not_depend_on_the_cuts(seed, cuts, group):
    x = 1e4 + np.random.default_rng(seed).standard_normal((40, 6))
    running = RunningRange(group=group)
    for part in np.split(x, sorted(cuts)):
        running.update(part)
    whole = split_groups(x, group)
    np.testing.assert_array_equal(running.low, whole.min(axis=0))
    np.testing.assert_array_equal(running.high, whole.max(axis=0))
    np.testing.assert_allclose(running.mean, whole.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(running.variance, whole.var(axis=0), rtol=1e-8)
    assert running.count == len(whole)


@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 60), max_size=5), limit=st.integers(1, 80))
def test_sample_of_rows_does_not_depend_on_the_cuts(seed, cuts, limit):
    x = np.arange(120.0).reshape(60, 2)
    whole, parts = RowReservoir(limit, seed=seed), RowReservoir(limit, seed=seed)
    whole.update(x)
    for part in np.split(x, sorted(cuts)):
        parts.update(part)
    np.testing.assert_array_equal(whole.rows, parts.rows)
    assert len(whole.rows) == min(limit, 60)
    assert (np.diff(whole.rows[:, 0]) > 0).all()


def test_every_row_is_as_likely_to_be_kept():
    counts = np.zeros(20)
    for seed in range(2000):
        reservoir = RowReservoir(5, seed=seed)
        reservoir.update(np.arange(20.0)[:, None])
        counts[reservoir.rows[:, 0].astype(int)] += 1
    # 2000 draws with probability 1/4: five standard deviations are 97.
    assert (np.abs(counts - 500) < 97).all()


def test_recorder_keeps_the_same_rows_of_inputs_and_outputs():
    recorder, weight = LayerRecorder(limit=7), RNG.standard_normal((3, 2))
    for _ in range(4):
        x = RNG.standard_normal((2, 5, 3))
        recorder.record("a", x, x @ weight)
        recorder.record("b", x)
    sample = recorder.sample("a")
    np.testing.assert_array_equal(sample.x @ weight, sample.y)
    assert sample.x.shape == (7, 3)
    assert recorder.sample("b").y is None
    assert recorder.names == ["a", "b"]
    np.testing.assert_array_equal(recorder.sample("b").x, sample.x)


@pytest.mark.parametrize("method", ["minmax", "percentile", "best_percentile", "mse"])
@pytest.mark.parametrize("group", [None, 1, 2])
def test_ranges_of_groups_are_those_of_their_channels(method, group):
    x = RNG.standard_t(3, size=(50, 4))
    low, high = choose_range(x, bits=4, group=group, method=method)
    if group is None:
        assert low.shape == ()
        np.testing.assert_array_equal(low, choose_range(x.reshape(-1, 1), bits=4, group=1, method=method)[0][0])
        return
    for i in range(4 // group):
        one = choose_range(x[:, i * group : (i + 1) * group], bits=4, method=method)
        assert (low[i], high[i]) == one


@given(seed=st.integers(0, 99), bits=st.integers(2, 5))
def test_searched_ranges_are_no_worse_than_the_extremes(seed, bits):
    x = np.random.default_rng(seed).standard_t(2, size=(200, 3))

    def error(method):
        low, high = choose_range(x, bits=bits, group=1, method=method, percentiles=(0.9, 0.99, 1.0))
        return np.square(fake_quantize_range(x, low, high, bits=bits) - x).sum(axis=0)

    for method in ("mse", "best_percentile"):
        assert (error(method) <= error("minmax")).all()


def test_range_quantizer_agrees_with_the_affine_one_where_both_apply():
    x = RNG.standard_normal((5, 7))
    scale, zero_point = affine_qparams(x, bits=4, signed=False, symmetric=False)
    expected = fake_quantize(x, scale, zero_point, bits=4, signed=False)
    actual = fake_quantize_range(x, x.min(), x.max(), bits=4)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    np.testing.assert_allclose(grid_of_range(x.min(), x.max(), bits=4)[0], scale, rtol=1e-15)


def test_empty_range_has_scale_one_and_no_gradient():
    y, pullback = fake_quantize_range_vjp(np.array([3.0, 3.0]), np.array(3.0), np.array(3.0), bits=4)
    assert y.tolist() == [3.0, 3.0]
    assert pullback(np.ones(2))[2] == 0


def test_parameters_of_groups_are_repeated():
    assert spread_groups(np.array([1.0, 2.0]), 4, 2).tolist() == [1, 1, 2, 2]
    assert spread_groups(np.array(3.0), 2, None).tolist() == [3, 3]


@pytest.mark.parametrize("kind", ["adam", "adamax", "sgd"])
def test_descent_finds_the_minimum_of_a_quadratic(kind):
    descent = Descent({"x": 0.1 if kind != "sgd" else 0.01}, kind=kind)
    params = {"x": np.array([3.0, -2.0]), "fixed": np.ones(1)}
    for i in range(2000):
        params = descent.step(params, {"x": params["x"] * np.array([1.0, 10.0])}, share=1 - i / 2000)
    np.testing.assert_allclose(params["x"], 0, atol=1e-3)
    assert params["fixed"] == 1


@pytest.mark.parametrize("kind", ["adam", "adamax"])
def test_first_step_has_the_length_of_the_learning_rate(kind):
    start = {"x": np.zeros(3, np.float32)}
    moved = Descent({"x": 0.5}, kind=kind).step(start, {"x": np.array([1e-3, -5.0, 100.0], np.float32)})
    np.testing.assert_allclose(moved["x"], [-0.5, 0.5, -0.5], rtol=1e-4)
    assert moved["x"].dtype == np.float32
    assert (start["x"] == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RowReservoir(0), ValueError, "limit: expected an integer >= 1, got 0"),
        (lambda: RowReservoir().rows, ValueError, "calibration data: expected at least one row, got 0"),
        (lambda: RowReservoir().update(np.ones(3)), ValueError, r"batch: expected 2 dimensions, got shape \(3,\)"),
        (lambda: RunningRange(group=3).update(np.ones((2, 4))), ValueError, "group: expected a divisor of 4 channels, got 3"),
        (lambda: RunningRange().update(np.array([np.nan])), ValueError, "batch: expected finite values"),
        (lambda: choose_range(np.zeros((0, 2)), bits=4), ValueError, "x: expected at least one entry"),
        (lambda: choose_range(np.ones(2), bits=1), ValueError, "bits: expected an integer >= 2 and <= 16, got 1"),
        (lambda: choose_range(np.ones(2), bits=4, method="max"), ValueError, "method: expected one of 'minmax'"),
        (lambda: fake_quantize_range(np.ones(2), np.array(1.0), np.array(0.0), bits=4), ValueError, "high: expected at least low"),
        (lambda: LayerRecorder().sample("a"), ValueError, r"name: expected a recorded layer \(none so far\), got 'a'"),
        (lambda: Descent({"x": 0.0}), ValueError, "learning rate of x: expected a finite number > 0, got 0.0"),
        (lambda: Descent({}, kind="lion"), ValueError, "optimizer: expected one of 'adam'"),
    ],
)  # fmt: skip
def test_bad_calibration_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
