import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    BilevelProblem,
    Diverged,
    bo_rep,
    hyper_cleaning_gradient,
    hyper_cleaning_gradient_vjp,
    hyper_cleaning_loss,
    hyper_cleaning_loss_vjp,
    hyper_cleaning_problem,
    implicit_hypergradient,
    lower_solution_pullback,
    ridge_tuning_problem,
)

RNG = np.random.default_rng(17)


def cleaning_data(n=5, d=3, classes=4, rng=RNG):
    arrays = rng.standard_normal(n), rng.standard_normal((d, classes)), rng.standard_normal((n, d))
    return (*arrays, rng.integers(0, classes, n))


GRADIENT_CASES = [
    GradientCase(hyper_cleaning_loss_vjp, cleaning_data(), {"ridge": 0.3}),
    GradientCase(hyper_cleaning_loss_vjp, cleaning_data(1, 2, 2), {"ridge": 0.0}, name="one sample"),
    GradientCase(hyper_cleaning_gradient_vjp, cleaning_data(), {"ridge": 0.3}),
    GradientCase(hyper_cleaning_gradient_vjp, cleaning_data(1, 2, 2), {"ridge": 0.0}, name="one sample"),
    GradientCase(hyper_cleaning_gradient_vjp, cleaning_data(3, 4, 1), name="one class"),
]


def quadratic(matrix, metric, centre):
    """lower = |y - matrix x|² in the metric, upper = sum cosh(2 (y - centre))."""
    return BilevelProblem(
        upper=lambda x, y, rng: float(np.cosh(2 * (y - centre)).sum()),
        upper_x=lambda x, y, rng: np.zeros_like(x),
        upper_y=lambda x, y, rng: 2 * np.sinh(2 * (y - centre)),
        lower_y=lambda x, y, rng: metric @ (y - matrix @ x),
        lower_yy=lambda x, y, v, rng: metric @ v,
        lower_xy=lambda x, y, v, rng: -matrix.T @ metric @ v,
    )


def identity():
    """lower = (y - x)² / 2, upper = y² / 2."""
    return BilevelProblem(
        upper=lambda x, y, rng: float(0.5 * np.sum(y * y)),
        upper_x=lambda x, y, rng: np.zeros_like(x),
        upper_y=lambda x, y, rng: y,
        lower_y=lambda x, y, rng: y - x,
        lower_yy=lambda x, y, v, rng: v,
        lower_xy=lambda x, y, v, rng: -v,
    )


OPTIONS = {"learning_rate": 0.1, "lower_learning_rate": 0.5, "aux_learning_rate": 1.0, "refine_steps": 0}


def run(problem, x0, y0, max_iter, **options):
    return bo_rep(problem, x0, y0, max_iter=max_iter, **{"rng": np.random.default_rng(0)} | OPTIONS | options)


def test_two_steps_by_hand():
    one = np.ones(1)
    first = run(identity(), one, one, 1, momentum=0.0, period=1, lower_steps=0)
    np.testing.assert_array_equal(first.x, 1)
    np.testing.assert_array_equal(first.z, 1)
    second = run(identity(), one, one, 2, momentum=0.0, period=1, lower_steps=0)
    np.testing.assert_allclose(second.x, 0.9, atol=1e-10)


def test_updated_aux_variable_may_come_first():
    one = np.ones(1)
    result = run(identity(), one, one, 1, momentum=0.0, lower_steps=0, aux_first=True)
    np.testing.assert_allclose(result.x, 0.9, atol=1e-10)


@given(seed=st.integers(0, 99), d=st.integers(1, 5))
def test_hypergradient_of_a_quadratic_is_the_closed_form(seed, d):
    rng = np.random.default_rng(seed)
    matrix, centre, x = rng.standard_normal((d, d)), rng.standard_normal(d), rng.standard_normal(d)
    root = rng.standard_normal((d, d))
    problem = quadratic(matrix, root @ root.T + np.eye(d), centre)
    expected = 2 * matrix.T @ np.sinh(2 * (matrix @ x - centre))
    got = implicit_hypergradient(problem, x, matrix @ x)
    np.testing.assert_allclose(got, expected, atol=1e-8 * np.abs(expected).max())


def ridge_data(rng):
    return (rng.standard_normal((8, 3)), rng.standard_normal(8), rng.standard_normal((6, 3)), rng.standard_normal(6))


def ridge_solution(data, x):
    return np.linalg.solve(data[0].T @ data[0] / 8 + np.exp(x) * np.eye(3), data[0].T @ data[1] / 8)


@given(seed=st.integers(0, 99), x=st.floats(-3, 2))
def test_hypergradient_is_the_derivative_of_the_objective(seed, x):
    data = ridge_data(np.random.default_rng(seed))
    problem = ridge_tuning_problem(*data)
    y = ridge_solution(data, x)
    np.testing.assert_allclose(problem.lower_y(np.array(x), y, None), 0, atol=1e-13)

    def objective(x):
        return problem.upper(np.array(x), ridge_solution(data, x), None)

    difference = (objective(x + 1e-5) - objective(x - 1e-5)) / 2e-5
    assert float(implicit_hypergradient(problem, np.array(x), y)) == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_pullback_of_the_lower_solution_is_a_dense_solve():
    x, weight, features, target = cleaning_data(12, 3, 2)
    problem = hyper_cleaning_problem(features, target, features[:4], target[:4], ridge=0.1)
    dy = RNG.standard_normal(weight.shape)
    basis = np.eye(weight.size).reshape(-1, *weight.shape)
    hessian = np.stack([problem.lower_yy(x, weight, v, None).ravel() for v in basis], axis=1)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-14)
    v = np.linalg.solve(hessian, dy.ravel()).reshape(weight.shape)
    got = lower_solution_pullback(problem, x, weight, dy)
    np.testing.assert_allclose(got, -problem.lower_xy(x, weight, v, None), rtol=1e-7, atol=1e-10)


def test_many_lower_steps_give_the_exact_gradient():
    rng = np.random.default_rng(4)
    matrix, centre = rng.standard_normal((3, 3)), rng.standard_normal(3)
    problem, x = quadratic(matrix, np.diag([1.0, 2.0, 3.0]), centre), 0.1 * rng.standard_normal(3)
    seen = []
    spied = dataclasses.replace(
        problem, lower_xy=lambda x, y, v, rng: seen.append((x, problem.lower_xy(x, y, v, rng))) or seen[-1][1]
    )
    # A step far below rounding keeps x in place, so that z can settle.
    run(spied, x, np.zeros(3), 200, learning_rate=1e-30, aux_learning_rate=0.5, refine_steps=200)
    np.testing.assert_allclose(-seen[-1][1], implicit_hypergradient(problem, x, matrix @ x), rtol=1e-10)


def test_run_is_the_loop_of_the_paper():
    rng = np.random.default_rng(5)
    matrix, centre, metric = rng.standard_normal((2, 3)), rng.standard_normal(2), np.diag([1.0, 2.0])
    problem, x0, y0 = quadratic(matrix, metric, centre), rng.standard_normal(3), rng.standard_normal(2)
    options = {"lower_learning_rate": 0.3, "aux_learning_rate": 0.2, "refine_steps": 7, "lower_steps": 3, "period": 4}
    result = run(problem, x0, y0, 11, momentum=0.8, **options)
    x, y, z, m = x0, y0, np.zeros(2), np.zeros(3)
    for _ in range(7):
        y = y - 0.3 * metric @ (y - matrix @ x)
    for k in range(11):
        if k > 0 and k % 4 == 0:
            for _ in range(3):
                y = y - 0.3 * metric @ (y - matrix @ x)
        h = matrix.T @ metric @ z
        z = z - 0.2 * (metric @ z - 2 * np.sinh(2 * (y - centre)))
        m = 0.8 * m + 0.2 * h
        x = x - 0.1 * m / (np.linalg.norm(m) + 1e-10)
    for got, expected in ((result.x, x), (result.y, y), (result.z, z)):
        np.testing.assert_allclose(got, expected, rtol=1e-10)
    assert len(result.history["upper"]) == result.n_iter == 11


def test_epochs_halve_the_rate_and_restart_from_their_mean():
    problem, x, y = identity(), np.array([2.0]), np.array([0.0])
    result = run(problem, x, y, 1, refine="epoch_sgd", refine_steps=7, lower_steps=2, lower_learning_rate=0.4)
    rate, expected = 0.4, 0.0
    for length in (2, 4, 1):
        path = []
        for _ in range(length):
            expected = expected - rate * (expected - 2.0)
            path.append(expected)
        expected, rate = float(np.mean(path)), rate / 2
    np.testing.assert_allclose(result.y, expected, rtol=1e-14)


@given(seed=st.integers(0, 50), rate=st.floats(1e-3, 1))
def test_every_step_has_the_length_of_the_rate(seed, rate):
    rng = np.random.default_rng(seed)
    problem = quadratic(rng.standard_normal((3, 3)), np.eye(3), rng.standard_normal(3))
    path = []
    spied = dataclasses.replace(problem, upper=lambda x, y, r: path.append(x) or problem.upper(x, y, r))
    run(spied, rng.standard_normal(3), np.zeros(3), 12, learning_rate=rate)
    lengths = np.linalg.norm(np.diff(path[1:], axis=0), axis=1)
    np.testing.assert_allclose(lengths, rate, rtol=1e-6)


def test_radius_keeps_a_round_in_its_ball():
    result = run(identity(), np.array([10.0, 0.0]), np.zeros(2), 1, refine_steps=50, radius=1.5)
    np.testing.assert_allclose(result.y, [1.5, 0.0], rtol=1e-12)
    free = run(identity(), np.array([10.0, 0.0]), np.zeros(2), 1, refine_steps=50)
    np.testing.assert_allclose(free.y, [10.0, 0.0], rtol=1e-10)


def test_momentum_without_a_norm_is_plain_descent():
    one = np.ones(1)
    result = run(identity(), one, one, 3, momentum=0.0, normalize=False, lower_steps=0, learning_rate=0.25)
    np.testing.assert_allclose(result.x, 0.5, rtol=1e-12)


def test_zero_momentum_makes_no_step_and_huge_one_a_normal_step():
    still = run(identity(), np.ones(2), np.zeros(2), 5, lower_steps=0)
    np.testing.assert_array_equal(still.x, 1)
    huge = dataclasses.replace(identity(), upper_x=lambda x, y, rng: np.full_like(x, 3e30))
    for dtype in (np.float32, np.float64):
        result = run(huge, np.zeros(2, dtype), np.zeros(2, dtype), 1)
        np.testing.assert_allclose(result.x, -0.1 / np.sqrt(2), rtol=1e-5)


def test_tolerance_and_callback_end_the_run():
    one = np.ones(1)
    result = run(identity(), one, one, 500, lower_steps=5, period=1, learning_rate=0.01, tol=0.05)
    assert result.converged
    assert result.n_iter < 500
    assert result.history["momentum_norm"][-1] <= 0.05
    stopped = run(identity(), one, one, 500, callback=lambda progress: progress.n_iter == 3)
    assert stopped.n_iter == 3
    assert not stopped.converged


def test_same_generator_same_run():
    noisy = dataclasses.replace(identity(), lower_y=lambda x, y, rng: y - x + rng.standard_normal(y.shape))
    runs = [run(noisy, np.ones(2), np.ones(2), 20, rng=np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].x, runs[1].x)


def test_divergence_is_reported():
    with pytest.raises(Diverged, match="bo_rep: diverged at iteration .*: upper = .*; use a smaller learning_rate"):
        run(identity(), np.ones(1), np.ones(1), 500, lower_learning_rate=5.0)
    with pytest.raises(Diverged, match="upper = nan"):
        run(dataclasses.replace(identity(), upper_x=lambda x, y, rng: np.nan * x), np.ones(1), np.ones(1), 9)


@given(seed=st.integers(0, 99), n=st.integers(1, 6))
def test_cleaning_gradient_is_that_of_the_loss(seed, n):
    x, weight, features, target = cleaning_data(n, rng=np.random.default_rng(seed))
    _, pullback = hyper_cleaning_loss_vjp(x, weight, features, target, ridge=0.2)
    grad = hyper_cleaning_gradient(x, weight, features, target, ridge=0.2)
    np.testing.assert_allclose(pullback(np.array(1.0))[1], grad, atol=1e-14)


def test_weights_of_samples_switch_them_on_and_off():
    x, weight, features, target = cleaning_data(4)
    x = np.array([-800.0, -800.0, 40.0, 40.0])
    some = hyper_cleaning_loss(np.full(2, 40.0), weight, features[2:], target[2:], ridge=0.0)
    assert hyper_cleaning_loss(x, weight, features, target, ridge=0.0) == pytest.approx(some / 2, rel=1e-12)


def test_mini_batch_oracles_are_unbiased():
    x, weight, features, target = cleaning_data(6, 2, 2)
    exact = hyper_cleaning_problem(features, target, features, target, ridge=0.1)
    batched = hyper_cleaning_problem(features, target, features, target, ridge=0.1, batch_size=2)
    rng, v = np.random.default_rng(0), RNG.standard_normal(weight.shape)
    for name, args in (("lower_y", ()), ("upper_y", ()), ("lower_yy", (v,)), ("lower_xy", (v,))):
        draws = np.array([getattr(batched, name)(x, weight, *args, rng) for _ in range(1000)])
        error = np.abs(draws.mean(axis=0) - getattr(exact, name)(x, weight, *args, None))
        assert (error <= 5 * draws.std(axis=0) / np.sqrt(1000) + 1e-12).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written_to(dtype):
    x, weight, features, target = cleaning_data(6)
    arrays = [a.astype(dtype) for a in (x, weight, features)]
    for array in (*arrays, target):
        array.setflags(write=False)
    for f_vjp in (hyper_cleaning_loss_vjp, hyper_cleaning_gradient_vjp):
        value, pullback = f_vjp(*arrays, target)
        assert [entry.dtype for entry in (value, *pullback(value))] == [dtype] * 4
    problem = hyper_cleaning_problem(arrays[2], target, arrays[2], target, ridge=0.1)
    result = run(problem, arrays[0], arrays[1], 3)
    assert [entry.dtype for entry in (result.x, result.y, result.z)] == [dtype] * 3


DATA = cleaning_data()
RIDGE = ridge_data(RNG)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, lower_learning_rate=-1.0), ValueError, "lower_learning_rate: expected a finite number > 0"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, aux_learning_rate=np.inf), ValueError, "aux_learning_rate: expected a finite number > 0"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, momentum=1.0), ValueError, r"momentum: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, period=0), ValueError, "period: expected an integer >= 1, got 0"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, radius=0.0), ValueError, "radius: expected a finite number > 0, got 0.0"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, refine="adam"), ValueError, "refine: expected one of 'sgd', 'epoch_sgd', got 'adam'"),
        (lambda: run(identity(), np.ones(1), np.ones(1), 1, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: run(identity(), np.ones(1), np.ones(1, "f4"), 1), TypeError, "y0: expected dtype float64 like x0, got float32"),
        (lambda: run(identity(), np.ones(2), np.ones(3), 1), ValueError, r"lower_xy: expected shape \(2,\), got \(3,\)"),
        (lambda: run(None, np.ones(2), np.ones(2), 1), TypeError, "problem: expected a BilevelProblem, got NoneType"),
        (lambda: lower_solution_pullback(identity(), np.ones(2), np.ones(2), np.ones(3)), ValueError, r"dy: expected shape \(2,\), got \(3,\)"),
        (lambda: implicit_hypergradient(quadratic(np.eye(3), np.diag([1.0, 9.0, 99.0]), np.ones(3)), np.ones(3), np.zeros(3), max_iter=1), ValueError, "max_iter: expected enough iterations for a relative residual"),
        (lambda: hyper_cleaning_loss(DATA[0][:2], *DATA[1:]), ValueError, r"x: expected shape \(5,\), got \(2,\)"),
        (lambda: hyper_cleaning_gradient(*DATA[:3], DATA[3] + 4), ValueError, "target: expected values of at most 3"),
        (lambda: hyper_cleaning_problem(DATA[2], DATA[3], DATA[2][:, :2], DATA[3]), ValueError, r"validation_features: expected shape \(5, 3\), got \(5, 2\)"),
        (lambda: hyper_cleaning_problem(DATA[2], DATA[3], DATA[2], DATA[3], batch_size=6), ValueError, "batch_size: expected an integer >= 1 and <= 5, got 6"),
        (lambda: ridge_tuning_problem(*RIDGE[:2], RIDGE[2], RIDGE[3][:2]), ValueError, r"validation_target: expected shape \(6,\), got \(2,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
