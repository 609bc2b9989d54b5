import dataclasses

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    LastIterate,
    Lion,
    ScheduledSGD,
    cosine_decay,
    fit_polynomial,
    inverse_power_decay,
    linear_decay,
    optimize_schedule,
    refine_schedule,
    schedule_bound,
    schedule_bound_vjp,
    schedule_from_weights,
    schedule_from_weights_vjp,
    smooth_norms,
    step_decay,
    warmup_polynomial,
    weight_bound,
    weight_bound_vjp,
)

RNG = np.random.default_rng(19)


def positive(n, rng=RNG):
    return np.exp(rng.standard_normal(n))


GRADIENT_CASES = [
    GradientCase(schedule_from_weights_vjp, (positive(6),), method="complex"),
    GradientCase(schedule_from_weights_vjp, (positive(1),), name="one weight"),
    GradientCase(weight_bound_vjp, (positive(5), positive(5), np.array(1.7))),
    GradientCase(weight_bound_vjp, (positive(1), np.array([0.1]), 0.5), name="one weight, small norm"),
    GradientCase(schedule_bound_vjp, (positive(7), positive(7), np.array(1.7)), step=1e-3),
    GradientCase(schedule_bound_vjp, (positive(1), positive(1), 0.5), name="one rate"),
    GradientCase(
        schedule_bound_vjp, (positive(2), np.array([1e-3, 1.0]), 2.0), name="two rates, a small norm", step=1e-4
    ),
]


@given(seed=st.integers(0, 999), n=st.integers(2, 60), window=st.floats(0.01, 1))
def test_smoothing_is_a_median_filter_with_a_reflected_end(seed, n, window):
    norms = positive(n, np.random.default_rng(seed))
    width = 2 * (int(np.floor(window * n)) // 2) + 1
    padded = np.pad(norms, (0, 2 * width), "reflect")
    expected = scipy.ndimage.median_filter(padded, size=width, mode="nearest")[: -2 * width]
    np.testing.assert_array_equal(smooth_norms(norms, window=window), expected)


def test_smoothing_removes_a_spike_and_mends_what_is_not_finite():
    norms = np.ones(50)
    norms[20], norms[30], norms[0] = 1e6, np.nan, np.inf
    np.testing.assert_array_equal(smooth_norms(norms), 1)
    mended = smooth_norms(np.array([1.0, np.nan, 3.0]), window=0.1)
    np.testing.assert_array_equal(mended, [1, 2, 3])


@given(seed=st.integers(0, 999), n=st.integers(1, 40), scale=st.floats(0.1, 10))
def test_schedule_is_homogeneous_ends_at_zero_and_sums_to_a_known_number(seed, n, scale):
    weights = positive(n, np.random.default_rng(seed))
    schedule = schedule_from_weights(weights)
    assert schedule[-1] == 0
    assert (schedule[:-1] > 0).all()
    np.testing.assert_allclose(schedule_from_weights(scale * weights), scale * schedule, rtol=1e-10)
    # Every pair of weights is counted once.
    pairs = (weights.sum() ** 2 - (weights**2).sum()) / 2
    assert schedule.sum() == pytest.approx(pairs / weights.sum(), rel=1e-10, abs=1e-14)


def test_a_dominating_weight_does_not_cancel_the_later_ones():
    schedule = schedule_from_weights(np.array([1e20, 1.0, 1.0]))
    np.testing.assert_allclose(schedule, [2.0, 1e-20, 0.0], rtol=1e-12)


@given(n=st.integers(2, 300), norm=st.floats(1e-100, 1e100))
def test_constant_norms_give_linear_decay(n, norm):
    schedule = refine_schedule(np.full(n, norm))
    np.testing.assert_allclose(schedule, linear_decay(n) / linear_decay(n)[0], atol=1e-12)


@given(seed=st.integers(0, 99), n=st.integers(2, 80), kind=st.sampled_from(["sgd", "adam"]))
def test_refined_shape_ignores_the_scale_of_the_norms(seed, n, kind):
    norms = positive(n, np.random.default_rng(seed))
    shape = refine_schedule(norms, kind=kind)
    assert shape.max() == 1
    assert shape[-1] == 0
    np.testing.assert_allclose(refine_schedule(7.5 * norms, kind=kind), shape, rtol=1e-10, atol=1e-15)


@given(seed=st.integers(0, 99), n=st.integers(2, 50))
def test_refined_weights_minimise_the_bound(seed, n):
    rng = np.random.default_rng(seed)
    norms, distance = positive(n, rng), float(positive(1, rng)[0])
    best = norms**-2 * distance / np.sqrt(np.sum(norms**-2))
    least = distance / np.sqrt(np.sum(norms**-2))
    assert float(weight_bound(best, norms, distance)) == pytest.approx(least, rel=1e-12)
    assert weight_bound(best * positive(n, rng), norms, distance) >= least * (1 - 1e-12)
    absolute = refine_schedule(norms, window=0.5 / n, normalize=False, distance=distance)
    np.testing.assert_allclose(absolute, schedule_from_weights(best), rtol=1e-10)


@given(seed=st.integers(0, 99), n=st.integers(2, 30))
def test_both_bounds_agree_for_a_schedule_and_its_weights_up_to_its_last_step(seed, n):
    # The schedule of positive weights ends with rate 0, so the last gradient is not used; the general bound
    # for the rates before it is not below the best possible bound of the weights.
    rng = np.random.default_rng(seed)
    norms = positive(n, rng)
    total = np.sum(norms**-2)
    rates = schedule_from_weights(norms**-2 / np.sqrt(total))[:-1]
    assert schedule_bound(rates, norms[:-1], 1.0) >= 0.5 / np.sqrt(total)


def test_long_runs_are_thinned_and_stretched_back():
    steps = np.arange(25_001)
    norms = 1 + steps / steps[-1]
    whole = refine_schedule(norms, window=1e-4)
    weights = norms**-2
    suffix = np.cumsum(weights[::-1])[::-1] - weights
    expected = weights * suffix
    assert len(whole) == len(norms)
    np.testing.assert_allclose(whole, expected / expected.max(), atol=1e-3)
    absolute = refine_schedule(norms, window=1e-4, normalize=False, distance=2.0)
    best = weights * 2.0 / np.sqrt(weights.sum())
    np.testing.assert_allclose(absolute, best * suffix / weights.sum(), atol=1e-3 * absolute.max())


def test_norms_of_zero_are_floored():
    schedule = refine_schedule(np.array([1.0, 0.0, 0.0, 1.0]), window=0.1)
    assert np.isfinite(schedule).all()
    assert schedule[1] == 1
    assert schedule[0] < 1e-20


@pytest.mark.parametrize(("seed", "n"), [(0, 2), (1, 3), (2, 7), (3, 12)])
def test_optimized_schedule_is_the_minimum(seed, n):
    norms = positive(n, np.random.default_rng(seed))
    result = optimize_schedule(norms, 1.3)
    peer = minimize(
        lambda log: float(schedule_bound(np.exp(log), norms, 1.3)), np.full(n, -1.0), method="BFGS", tol=1e-9
    )
    assert result.converged
    assert result.value == pytest.approx(float(schedule_bound(result.schedule, norms, 1.3)), rel=1e-12)
    assert result.value <= peer.fun * (1 + 1e-6)
    assert result.history["bound"][-1] == result.value
    assert len(result.history["bound"]) == result.n_iter


def test_optimized_schedule_beats_linear_decay_and_scales():
    norms = np.linspace(3.0, 1.0, 40)
    result = optimize_schedule(norms, 2.0)
    linear = 2.0 / (norms.mean() * np.sqrt(40)) * linear_decay(41)[:40]
    assert result.value < schedule_bound(linear, norms, 2.0)
    scaled = optimize_schedule(100 * norms, 2.0)
    assert scaled.value == pytest.approx(100 * result.value, rel=1e-6)


def test_callback_ends_the_optimization():
    result = optimize_schedule(positive(20), 1.0, callback=lambda progress: progress.n_iter == 2)
    assert result.n_iter == 2
    assert not result.converged


@given(n=st.integers(1, 50))
def test_named_schedules_start_high_and_fall(n):
    for schedule in (
        linear_decay(n),
        cosine_decay(n),
        step_decay(n),
        inverse_power_decay(n),
        warmup_polynomial(n, 0.0, 2.0),
    ):
        assert schedule.shape == (n,)
        assert (np.diff(schedule) <= 1e-15).all()
        assert (schedule >= 0).all()
        assert (schedule <= 1).all()
    assert linear_decay(n)[-1] == cosine_decay(n)[-1] == 0
    assert (inverse_power_decay(n, power=0.0) == 1).all()


@pytest.mark.parametrize(("warmup", "power"), [(0, 5), (0, 10), (7, 13), (20, 30), (50, 20)])
def test_fit_finds_members_of_its_family(warmup, power):
    fit = fit_polynomial(3.7 * warmup_polynomial(400, warmup / 100, power / 10))
    assert fit.error < 1e-12
    assert fit.power == pytest.approx(power / 10)
    assert fit.warmup == pytest.approx(warmup / 100)


def test_fit_of_something_else_reports_its_error():
    fit = fit_polynomial(cosine_decay(200))
    assert 0.01 < fit.error < 0.1


@given(seed=st.integers(0, 99), n=st.integers(1, 8))
def test_conversion_of_descent_with_weights_is_its_schedule(seed, n):
    rng = np.random.default_rng(seed)
    weights = positive(n, rng)
    params = {"a": rng.standard_normal(3), "b": [rng.standard_normal((2, 2)), None]}
    one, two = LastIterate(ScheduledSGD(1.0, weights), weights), ScheduledSGD(1.0, schedule_from_weights(weights))
    x, y, s, r = params, params, one.init(params), two.init(params)
    for _ in range(n):
        grads = {"a": rng.standard_normal(3), "b": [rng.standard_normal((2, 2)), None]}
        x, s = one.step(x, grads, s)
        y, r = two.step(y, grads, r)
    np.testing.assert_allclose(x["a"], y["a"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(x["b"][0], y["b"][0], rtol=1e-10, atol=1e-12)
    assert s.step == r.step == n


def test_guarantee_of_the_conversion_holds_on_a_convex_function():
    rng = np.random.default_rng(2)
    a, b, weights = rng.standard_normal((20, 3)), rng.standard_normal(20), positive(60, rng)
    base = Lion(learning_rate=0.05)

    def value(x):
        return np.abs(a @ x - b).mean()

    optimizer, x = LastIterate(base, weights), np.zeros(3)
    state, regret, u = optimizer.init(x), 0.0, rng.standard_normal(3)
    for t in range(60):
        grad = np.sign(a @ x - b) @ a / 20
        regret += weights[t] * grad @ (state.point - u)
        last = x
        x, state = optimizer.step(x, grad, state)
    # The last iterate at which a gradient was taken.
    assert value(last) - value(u) <= regret / weights.sum() + 1e-12


def test_steps_beyond_the_end_are_refused():
    optimizer = ScheduledSGD(1.0, np.ones(1))
    params, state = optimizer.step(np.ones(2), np.ones(2), optimizer.init(np.ones(2)))
    with pytest.raises(ValueError, match="state.step: expected a step before the schedule's end at 1, got 1"):
        optimizer.step(params, np.ones(2), state)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written_to(dtype):
    weights, norms = positive(6).astype(dtype), positive(6).astype(dtype)
    for array in (weights, norms):
        array.setflags(write=False)
    value, pullback = schedule_from_weights_vjp(weights)
    assert [value.dtype, pullback(value)[0].dtype] == [dtype] * 2
    for f_vjp in (weight_bound_vjp, schedule_bound_vjp):
        value, pullback = f_vjp(weights, norms, dtype(1.5))
        assert [entry.dtype for entry in (value, *pullback(value))] == [dtype] * 4
    for array in (smooth_norms(norms), refine_schedule(norms), optimize_schedule(norms, 1.0).schedule):
        assert array.dtype == dtype
    params, _ = ScheduledSGD(0.5, weights).step(norms, weights, ScheduledSGD(0.5, weights).init(norms))
    assert params.dtype == dtype
    with pytest.raises(dataclasses.FrozenInstanceError):
        ScheduledSGD(0.5, weights).learning_rate = 1.0


ONE = np.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: smooth_norms(np.ones(1)), ValueError, r"norms: expected at least two, got shape \(1,\)"),
        (lambda: smooth_norms(np.array([1.0, -2.0])), ValueError, "norms: expected numbers >= 0, got -2.0"),
        (lambda: smooth_norms(np.full(3, np.nan)), ValueError, "norms: expected at least one finite number, got none"),
        (lambda: smooth_norms(np.ones(3, int)), TypeError, "norms: expected a float32 or float64 array, got dtype int64"),
        (lambda: smooth_norms(ONE, window=0.0), ValueError, r"window: expected a number in \(0.0, 1.0\], got 0.0"),
        (lambda: refine_schedule(np.zeros(4)), ValueError, "norms: expected at least one that is not 0 after smoothing, got zeros"),
        (lambda: refine_schedule(ONE, kind="lion"), ValueError, "kind: expected one of 'sgd', 'adam', got 'lion'"),
        (lambda: refine_schedule(ONE, distance=1.0), ValueError, "distance: expected None with normalize=True or kind='adam', got 1.0"),
        (lambda: schedule_from_weights(np.array([1.0, 0.0])), ValueError, "weights: expected finite numbers > 0"),
        (lambda: schedule_from_weights(np.zeros(0)), ValueError, "weights: expected at least 1 number, got"),
        (lambda: weight_bound(ONE, np.ones(2), 1.0), ValueError, r"norms: expected shape \(3,\), got \(2,\)"),
        (lambda: schedule_bound(ONE, -ONE, 1.0), ValueError, "norms: expected numbers >= 0, got -1.0"),
        (lambda: schedule_bound(ONE, ONE, 0.0), ValueError, "distance: expected a finite number > 0, got 0.0"),
        (lambda: optimize_schedule(np.ones(1), 1.0), ValueError, "norms: expected at least 2 numbers, got"),
        (lambda: linear_decay(0), ValueError, "n_steps: expected an integer >= 1, got 0"),
        (lambda: inverse_power_decay(3, power=-1.0), ValueError, "power: expected a finite number >= 0, got -1.0"),
        (lambda: warmup_polynomial(3, 1.0, 1.0), ValueError, r"warmup: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: fit_polynomial(np.zeros(3)), ValueError, "schedule: expected at least two rates >= 0, not all 0"),
        (lambda: ScheduledSGD(0.0, ONE), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: ScheduledSGD(1.0, -ONE), ValueError, "schedule: expected rates >= 0, got -1.0"),
        (lambda: LastIterate(3, ONE), TypeError, "base: expected an optimizer with init and step, got int"),
        (lambda: LastIterate(Lion(), 0 * ONE), ValueError, "weights: expected finite numbers > 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
