import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    BallDomain,
    BoxDomain,
    DynamicOMD,
    OptimisticOMD,
    SimplexDomain,
    entropic_step,
    entropic_step_vjp,
    master_bound,
    metric_projection,
    optimistic_step,
    optimistic_step_vjp,
    run_online,
    sea_statistics,
)

RNG = np.random.default_rng(23)
DOMAINS = (BoxDomain(-1.0, 2.0), BallDomain(1.5), SimplexDomain())
RATE = np.array(0.4)

GRADIENT_CASES = [
    GradientCase(optimistic_step_vjp, (*RNG.standard_normal((2, 4)), RATE), name="no domain"),
    GradientCase(
        optimistic_step_vjp,
        (*RNG.standard_normal((2, 3, 4)), np.array([0.3, 0.7, 2.0])),
        name="a rate a row",
    ),
    GradientCase(
        optimistic_step_vjp, (3 * RNG.standard_normal(5), RNG.standard_normal(5), RATE), {"domain": BoxDomain()}, name="box", step=1e-3
    ),
    GradientCase(
        optimistic_step_vjp, (3 * RNG.standard_normal(5), RNG.standard_normal(5), RATE), {"domain": BallDomain()}, name="ball, outside"
    ),
    GradientCase(
        optimistic_step_vjp, (RNG.standard_normal(5) / 9, RNG.standard_normal(5) / 9, RATE), {"domain": BallDomain()}, name="ball, inside"
    ),
    GradientCase(
        optimistic_step_vjp, (*RNG.standard_normal((2, 5)), RATE), {"domain": SimplexDomain()}, name="simplex", step=1e-3
    ),
    GradientCase(entropic_step_vjp, (RNG.dirichlet(np.ones(5)), RNG.standard_normal(5), RATE), step=1e-3),
    GradientCase(
        entropic_step_vjp,
        (RNG.dirichlet(np.ones(4), size=3), RNG.standard_normal((3, 4)), np.array([0.3, 0.7, 2.0])),
        name="a rate a row",
        step=1e-3,
    ),
]  # fmt: skip


def random_play(domain, shape, rng):
    return domain.project(rng.standard_normal(shape))


def fixed(domain, rate=0.5, **options):
    return OptimisticOMD(domain, step="fixed", learning_rate=rate, grad_bound=100.0, **options)


def test_three_rounds_by_hand():
    learner = fixed(BoxDomain(-1.0, 1.0))
    result = run_online(learner, lambda t, x, rng: np.ones(1), np.zeros(1), 3, rng=RNG)
    np.testing.assert_array_equal(result.plays[:, 0], [0, -1, -1])
    np.testing.assert_array_equal(result.hints[:, 0], [0, 1, 1])
    np.testing.assert_array_equal(result.regret, [1, 1, 1])


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 99), rate=st.floats(0.01, 10))
def test_regret_is_within_the_master_bound(domain, seed, rate):
    rng = np.random.default_rng(seed)
    result = run_online(
        fixed(domain, rate), lambda t, x, r: r.standard_normal(3), random_play(domain, 3, rng), 12, rng=rng
    )
    for _ in range(3):
        u = random_play(domain, 3, rng)
        regret = np.sum(result.gradients * (result.plays - u))
        assert regret <= master_bound(result.plays, result.gradients, result.hints, u, learning_rate=rate) + 1e-9


@given(seed=st.integers(0, 99), rate=st.floats(0.01, 10))
def test_entropic_regret_is_within_the_master_bound(seed, rate):
    rng = np.random.default_rng(seed)
    learner = fixed(SimplexDomain(), rate, geometry="entropic")
    result = run_online(learner, lambda t, x, r: r.standard_normal(4), rng.dirichlet(np.ones(4)), 12, rng=rng)
    u = np.eye(4)[rng.integers(4)]
    options = {"learning_rate": rate, "geometry": "entropic"}
    bound = master_bound(result.plays, result.gradients, result.hints, u, **options)
    assert np.sum(result.gradients * (result.plays - u)) <= bound + 1e-9


@given(seed=st.integers(0, 99))
def test_gradients_split_into_noise_drift_and_movement(seed):
    rng = np.random.default_rng(seed)
    now, before, x, y = rng.standard_normal((4, 3))
    noise_now, noise_before = rng.standard_normal((2, 3))
    # F_t = |x - c_t|² / 2: gradients at the plays x and y, smoothness 1.
    g, h = x - now + noise_now, y - before + noise_before
    terms = (noise_now, (x - now) - (x - before), x - y, noise_before)
    assert np.sum((g - h) ** 2) <= 4 * sum(np.sum(term**2) for term in terms) + 1e-12


@given(seed=st.integers(0, 99), rate=st.floats(0.01, 5), d=st.integers(1, 6))
def test_entropic_step_minimises_its_objective(seed, rate, d):
    rng = np.random.default_rng(seed)
    point, hint = rng.dirichlet(np.ones(d)), rng.standard_normal(d)
    step = entropic_step(point, hint, rate)
    assert step.sum() == pytest.approx(1, rel=1e-12)

    def objective(x):
        return rate * hint @ x + np.sum(x * np.log(x / point))

    for _ in range(5):
        assert objective(step) <= objective(rng.dirichlet(np.ones(d))) + 1e-10


def test_entropic_step_survives_large_exponents_and_zeros():
    point, hint = np.array([0.0, 1e-300, 1.0]), np.array([-1e6, -1e5, 1e5])
    step, pullback = entropic_step_vjp(point, hint, 1.0)
    np.testing.assert_array_equal(step, [0, 1, 0])
    assert np.isfinite(pullback(np.ones(3))[1]).all()


def test_pullback_of_the_entropic_step_reaches_an_entry_of_zero():
    point, hint = np.array([0.0, 0.5, 0.5]), np.array([1.0, 0.0, 0.0])
    dpoint, dhint, _ = entropic_step_vjp(point, hint, 1.0)[1](np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(dpoint, [np.exp(-1), 0, 0], rtol=1e-12)
    np.testing.assert_array_equal(dhint, 0)


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 99))
def test_domains_know_their_diameter_and_linear_minimum(domain, seed):
    rng = np.random.default_rng(seed)
    grad, plays = rng.standard_normal(4), domain.project(3 * rng.standard_normal((20, 4)))
    assert (plays @ grad >= domain.linear_minimum(grad) - 1e-12).all()
    far = domain.project(-1e6 * grad)
    assert far @ grad == pytest.approx(float(domain.linear_minimum(grad)), rel=1e-6, abs=1e-6)
    pairs = np.linalg.norm(plays[:, None] - plays[None], axis=2)
    assert pairs.max() <= domain.diameter(4) + 1e-12


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 30))
def test_metric_projection_is_the_nearest_point_in_its_norm(domain, seed):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((3, 3))
    metric, x = root @ root.T + 0.2 * np.eye(3), 3 * rng.standard_normal(3)
    y = metric_projection(x, metric, domain)
    np.testing.assert_allclose(domain.project(y), y, atol=1e-9)

    def distance(z):
        return (z - x) @ metric @ (z - x)

    for _ in range(20):
        z = domain.project(y + 0.3 * rng.standard_normal(3))
        assert distance(y) <= distance(z) + 1e-7


def test_metric_projection_on_a_box_is_that_of_scipy():
    metric, x = np.array([[2.0, 1.5], [1.5, 3.0]]), np.array([2.0, -3.0])
    found = minimize(lambda z: (z - x) @ metric @ (z - x), np.zeros(2), bounds=[(-1, 1)] * 2, tol=1e-14)
    np.testing.assert_allclose(metric_projection(x, metric, BoxDomain()), found.x, atol=1e-6)
    np.testing.assert_allclose(metric_projection(x, np.eye(2), BallDomain()), x / np.linalg.norm(x), atol=1e-9)


def test_adaptive_rate_is_that_of_the_paper():
    learner = OptimisticOMD(BoxDomain(-1.0, 1.0), grad_bound=2.0, smoothness=0.5)
    state, x, point, hint, variation = learner.init(np.zeros(2)), np.zeros(2), np.zeros(2), np.zeros(2), 0.0
    rng = np.random.default_rng(0)
    diameter = 2 * np.sqrt(2)
    for _ in range(6):
        rate = diameter / np.sqrt(10 * diameter**2 * 0.25 + 16 + variation)
        x = np.clip(point - rate * hint, -1, 1)
        np.testing.assert_allclose(learner.play(state), x, rtol=1e-12)
        grad = rng.uniform(-1, 1, 2)
        point, variation, hint = np.clip(point - rate * grad, -1, 1), variation + np.sum((grad - hint) ** 2), grad
        state = learner.observe(state, grad)
    np.testing.assert_allclose(state.variation, variation, rtol=1e-12)


def test_strongly_convex_rate_falls_like_one_over_t():
    learner = OptimisticOMD(BallDomain(100.0), step="strongly_convex", strong_convexity=4.0)
    state = learner.init(np.zeros(1))
    for t in range(1, 5):
        before = state.point
        state = learner.observe(state, np.ones(1))
        np.testing.assert_allclose(before - state.point, 0.5 / t, rtol=1e-12)


def test_runs_side_by_side_are_runs_of_their_own():
    rng = np.random.default_rng(1)
    gradients = rng.uniform(-0.5, 0.5, (8, 3, 2))
    learner = OptimisticOMD(BallDomain(1.0))
    start = random_play(learner.domain, (3, 2), rng)
    together = run_online(learner, lambda t, x, r: gradients[t - 1], start, 8, rng=rng)
    for i in range(3):
        alone = run_online(learner, lambda t, x, r, i=i: gradients[t - 1, i], start[i], 8, rng=rng)
        np.testing.assert_allclose(together.plays[:, i], alone.plays, rtol=1e-12)
        np.testing.assert_allclose(together.regret[:, i], alone.regret, rtol=1e-10, atol=1e-12)


def test_newton_geometry_keeps_its_inverse_and_learns():
    rng = np.random.default_rng(3)
    learner = OptimisticOMD(BallDomain(1.0), "newton", grad_bound=2.0, exp_concavity=0.5)
    state, centre = learner.init(np.zeros(3)), np.array([0.3, -0.2, 0.1])
    for _ in range(1200):
        x = learner.play(state)
        a = rng.standard_normal(3)
        a /= np.linalg.norm(a)
        state = learner.observe(state, a * (a @ (x - centre)))
    np.testing.assert_allclose(state.metric @ state.inverse, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(learner.play(state), centre, atol=0.05)
    weight = 0.5 * min(1 / (4 * 2 * 2), 0.5) / 2
    assert np.linalg.eigvalsh(state.metric)[0] >= 1 + weight * 4


def test_perfect_hints_cost_nothing():
    learner = OptimisticOMD(BoxDomain(-1.0, 1.0))
    result = run_online(learner, lambda t, x, rng: np.array([0.7]), np.zeros(1), 500, rng=RNG)
    assert result.regret[-1] == pytest.approx(result.regret[20], abs=1e-9)
    assert result.regret[-1] < 3


@given(seed=st.integers(0, 20), steps=st.integers(1, 60))
def test_meta_learner_is_not_much_worse_than_any_base_learner(seed, steps):
    rng = np.random.default_rng(seed)
    learner = DynamicOMD(BallDomain(1.0), n_steps=steps)
    state, paid = learner.init(np.zeros(2)), 0.0
    for _ in range(steps):
        x = learner.play(state)
        assert np.linalg.norm(x) <= 1 + 1e-12
        grad = BallDomain(1.0).project(rng.standard_normal(2))
        paid += grad @ x
        state = learner.observe(state, grad)
    count = len(learner.rates(2))
    assert count == int(np.ceil(0.5 * np.log2(1 + steps))) + 1
    assert paid - state.losses.min() <= 3 * 2 * np.sqrt(np.log(max(count, 2)) * (4 + state.variation))


def test_statistics_of_a_sine_wave():
    period, steps = 8, 800
    means = np.sin(2 * np.pi * np.arange(steps) / period)[:, None]
    found = sea_statistics(np.zeros((steps, 1, 1)), means)
    assert found.drift == pytest.approx(2 * steps * np.sin(np.pi / period) ** 2, rel=0.01)
    assert found.noise == found.largest_noise == 0


def test_callback_ends_the_run():
    result = run_online(
        fixed(BoxDomain()), lambda t, x, rng: np.ones(1), np.zeros(1), 50, rng=RNG, callback=lambda p: p.n_iter == 4
    )
    assert result.n_iter == len(result.plays) == len(result.regret) == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written_to(dtype):
    point, hint = RNG.dirichlet(np.ones(3)).astype(dtype), RNG.standard_normal(3).astype(dtype)
    for array in (point, hint):
        array.setflags(write=False)
    for step, pullback in (
        optimistic_step_vjp(point, hint, 0.3, domain=BallDomain()),
        entropic_step_vjp(point, hint, 0.3),
    ):
        assert [entry.dtype for entry in (step, *pullback(step))] == [dtype] * 4
    for learner in (
        OptimisticOMD(SimplexDomain(), grad_bound=10.0),
        fixed(SimplexDomain(), geometry="entropic"),
        OptimisticOMD(SimplexDomain(), "newton", grad_bound=10.0, exp_concavity=1.0),
        DynamicOMD(SimplexDomain(), n_steps=10, grad_bound=10.0),
    ):
        result = run_online(learner, lambda t, x, rng: hint, point, 5, rng=RNG)
        assert result.plays.dtype == dtype
    with pytest.raises(dataclasses.FrozenInstanceError):
        learner.grad_bound = 1.0


BOX = BoxDomain(-1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BoxDomain(1.0, -1.0), ValueError, r"low, high: expected finite bounds in order, got \(1.0, -1.0\)"),
        (lambda: BallDomain(0.0), ValueError, "radius: expected a finite number > 0, got 0.0"),
        (lambda: optimistic_step(np.ones(2), np.ones(3), 0.1), ValueError, r"hint: expected shape \(2,\), got \(3,\)"),
        (lambda: optimistic_step(np.ones((2, 3)), np.ones((2, 3)), np.ones(3)), ValueError, r"learning_rate: expected shape \(2,\), got \(3,\)"),
        (lambda: entropic_step(np.array([-0.1, 1.1]), np.ones(2), 1.0), ValueError, "point: expected entries >= 0, got -0.1"),
        (lambda: entropic_step(np.ones(2), np.ones(2, "f4"), 1.0), TypeError, "hint: expected dtype float64 like point, got float32"),
        (lambda: metric_projection(np.ones(2), -np.eye(2), BOX), ValueError, "metric: expected a positive definite matrix"),
        (lambda: metric_projection(9 * np.ones(2), np.diag([1.0, 9e9]) + 0.9, BallDomain(), max_iter=1), ValueError, "max_iter: expected enough iterations"),
        (lambda: OptimisticOMD(BOX, "polar"), ValueError, "geometry: expected one of 'euclidean', 'entropic', 'newton', got 'polar'"),
        (lambda: OptimisticOMD(BOX, step="slow"), ValueError, "step: expected one of 'adaptive', 'strongly_convex', 'fixed', got 'slow'"),
        (lambda: OptimisticOMD(BOX, grad_bound=0.0), ValueError, "grad_bound: expected a finite number > 0, got 0.0"),
        (lambda: OptimisticOMD(BOX, step="fixed"), ValueError, "learning_rate: expected a finite number > 0, got nan"),
        (lambda: OptimisticOMD(BOX, step="strongly_convex", strong_convexity=-1.0), ValueError, "strong_convexity: expected a finite number > 0, got -1.0"),
        (lambda: OptimisticOMD(BOX, "newton"), ValueError, "exp_concavity: expected a finite number > 0, got nan"),
        (lambda: OptimisticOMD(SimplexDomain(), "entropic"), ValueError, "step: expected one of 'fixed', got 'adaptive'"),
        (lambda: OptimisticOMD(BOX, "entropic", "fixed", learning_rate=1.0), TypeError, "domain: expected a SimplexDomain for entropic steps, got BoxDomain"),
        (lambda: OptimisticOMD(BOX).init(np.array([1.5])), ValueError, "x1: expected a point of the domain, got one at distance 0.5"),
        (lambda: OptimisticOMD(SimplexDomain()).init(np.array([0.5, 0.6])), ValueError, "x1: expected a point of the domain"),
        (lambda: OptimisticOMD(BOX).observe(OptimisticOMD(BOX).init(np.zeros(1)), np.array([1.1])), ValueError, "grad: expected a norm of at most grad_bound = 1, got 1.1"),
        (lambda: OptimisticOMD(BOX).observe(OptimisticOMD(BOX).init(np.zeros(1)), np.ones(2)), ValueError, r"grad: expected shape \(1,\), got \(2,\)"),
        (lambda: DynamicOMD(BOX, n_steps=0), ValueError, "n_steps: expected an integer >= 1, got 0"),
        (lambda: run_online(OptimisticOMD(BOX), None, np.zeros(1), 0, rng=RNG), ValueError, "n_steps: expected an integer >= 1, got 0"),
        (lambda: master_bound(np.ones((3, 2)), np.ones((3, 1)), np.ones((3, 2)), np.ones(2), learning_rate=1.0), ValueError, r"gradients: expected shape \(3, 2\), got \(3, 1\)"),
        (lambda: sea_statistics(np.ones((3, 2, 1)), np.ones((2, 1))), ValueError, r"means: expected shape \(3, 1\), got \(2, 1\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
