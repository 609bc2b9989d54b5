import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import Lasso

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    Diverged,
    admm_relu,
    gate_violation,
    gated_objective,
    gated_objective_vjp,
    recover_relu,
    relu_objective,
    relu_objective_vjp,
    robust_hinge,
    robust_hinge_vjp,
    sample_patterns,
    sampled_convex_program,
)

RNG = np.random.default_rng(1)
PATTERNS = RNG.random((4, 5)) < 0.5
LABELS = np.array([1.0, -1.0, 1.0, 1.0, -1.0])


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GROUPS = normal((4, 3), (4, 3))

GRADIENT_CASES = [
    GradientCase(relu_objective_vjp, normal((5, 3), (5,), (4, 3), (4,)), {"penalty": 0.3}, method="complex"),
    GradientCase(relu_objective_vjp, normal((1, 1), (1,), (1, 1), (1,)), {"penalty": 0.0}, method="complex"),
    GradientCase(gated_objective_vjp, (*normal((5, 3), (5,)), PATTERNS, *GROUPS), {"penalty": 0.3}, method="complex"),
    GradientCase(
        gated_objective_vjp,
        (*normal((5, 3), (5,)), PATTERNS, np.zeros((4, 3)), np.zeros((4, 3))),
        {"penalty": 0.0},
        method="complex",
        name="all rows zero, no penalty",
    ),
    GradientCase(
        robust_hinge_vjp, (RNG.standard_normal((5, 3)), LABELS, PATTERNS, *GROUPS), {"radius": 0.1}, method="complex"
    ),
    GradientCase(
        robust_hinge_vjp,
        (RNG.standard_normal((5, 3)), LABELS, PATTERNS, *(0.01 * g for g in GROUPS)),
        {"radius": 0.0},
        method="complex",
        name="every example violates",
    ),
]


def planted(seed, n=12):
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.standard_normal(n), np.ones(n)])
    weight = rng.standard_normal((2, 2))
    return x, np.maximum(x @ weight.T, 0) @ np.array([1.0, -1.0]), rng


def test_patterns_on_a_line_with_bias_are_the_cuts_between_neighbours():
    points = np.array([0.3, -1.0, 2.0, 0.9])
    found = sample_patterns(np.column_stack([points, np.ones(4)]), 4000, rng=np.random.default_rng(0))
    right = {tuple(points >= cut) for cut in (-2, -0.5, 0.5, 1.5, 3)}
    assert {tuple(row) for row in found} == right | {tuple(~np.array(row)) for row in right}


def test_row_of_zeros_is_active_in_every_pattern():
    assert sample_patterns(np.array([[0.0, 0.0], [1.0, 2.0]]), 50, rng=np.random.default_rng(0))[:, 0].all()


@given(seed=st.integers(0, 99))
def test_patterns_are_distinct_and_few(seed):
    x = np.random.default_rng(seed).standard_normal((6, 2))
    found = sample_patterns(x, 300, rng=np.random.default_rng(seed))
    assert len(np.unique(found, axis=0)) == len(found) <= 2 * 6


@given(penalty=st.floats(0.01, 0.9))
def test_one_example_by_hand(penalty):
    result = admm_relu(
        np.ones((1, 1)), np.ones(1), np.array([[True], [False]]), penalty=penalty, coupling=0.5, tol=1e-10
    )
    assert result.converged
    np.testing.assert_allclose(result.v, [[1 - penalty], [0]], atol=1e-8)
    np.testing.assert_array_equal(result.w, 0)
    np.testing.assert_allclose(result.objective, penalty - penalty**2 / 2, atol=1e-8)
    weight, output = recover_relu(result.v, result.w)
    np.testing.assert_allclose([weight[0, 0], output[0]], np.sqrt(1 - penalty), atol=1e-8)


def test_large_penalty_gives_the_empty_network():
    x, target, rng = planted(3)
    result = admm_relu(x, target, sample_patterns(x, 200, rng=rng), penalty=1e3, coupling=1.0)
    assert result.converged
    assert not result.v.any()
    assert not result.w.any()
    assert recover_relu(result.v, result.w)[1].shape == (0,)


def test_optimum_is_that_of_a_general_solver():
    x, target, rng = planted(7, n=4)
    patterns, penalty = sample_patterns(x, 500, rng=rng), 0.05
    count = 2 * len(patterns)
    gates = np.concatenate([np.where(patterns, 1, -1)] * 2)

    def split(z):
        return z[:-count].reshape(count, 2), z[-count:]

    def objective(z):
        groups, size = split(z)
        value, pullback = gated_objective_vjp(x, target, patterns, *np.split(groups, 2), penalty=0.0)
        dv, dw = pullback(np.array(1.0))[2:]
        slope = np.concatenate([dv.ravel(), dw.ravel(), np.full(count, penalty)])
        return float(value) + penalty * size.sum(), slope

    constraints = [
        {"type": "ineq", "fun": lambda z: (gates * (split(z)[0] @ x.T)).ravel()},
        {"type": "ineq", "fun": lambda z: split(z)[1] ** 2 - (split(z)[0] ** 2).sum(axis=1)},
    ]
    start = np.concatenate([0.1 * rng.standard_normal(2 * count), np.ones(count)])
    bounds = [(None, None)] * (2 * count) + [(0, None)] * count
    truth = minimize(
        objective, start, jac=True, method="SLSQP", bounds=bounds, constraints=constraints, options={"maxiter": 500}
    )
    assert truth.success
    result = admm_relu(x, target, patterns, penalty=penalty, coupling=0.1, tol=1e-9, max_iter=20_000)
    assert result.converged
    np.testing.assert_allclose(result.objective, truth.fun, rtol=1e-5)


def test_recovered_network_has_the_convex_value_and_predictions():
    x, target, rng = planted(1)
    result = admm_relu(x, target, sample_patterns(x, 500, rng=rng), penalty=0.01, coupling=0.05, tol=1e-8)
    weight, output = recover_relu(result.v, result.w)
    np.testing.assert_allclose(
        relu_objective(x, target, weight, output, penalty=0.01), result.objective, rtol=1e-4, atol=1e-9
    )
    assert result.violation < 1e-5
    assert set(result.history) == {"objective", "primal_residual", "dual_residual"}
    assert len(result.history["objective"]) == result.n_iter


@given(seed=st.integers(0, 99), penalty=st.floats(0, 2))
def test_recovered_network_is_equal_wherever_the_gates_hold(seed, penalty):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, 2))
    # Weights v lie in the cone of their own pattern.
    v, w = rng.standard_normal((2, 3, 2))
    patterns = x @ v.T >= 0
    w = v * rng.random((3, 1))
    target = rng.standard_normal(6)
    assert gate_violation(x, patterns.T, v, w) == 0
    network = relu_objective(x, target, *recover_relu(v, w), penalty=penalty)
    np.testing.assert_allclose(network, gated_objective(x, target, patterns.T, v, w, penalty=penalty), rtol=1e-10)


def test_too_long_a_dual_step_is_reported():
    x, target, rng = planted(2)
    with pytest.raises(Diverged, match="use a dual_step of at most coupling"):
        admm_relu(x, target, sample_patterns(x, 100, rng=rng), coupling=0.01, dual_step=0.1, max_iter=5000)


def test_callback_ends_the_run():
    x, target, rng = planted(2)
    patterns = sample_patterns(x, 100, rng=rng)
    assert admm_relu(x, target, patterns, callback=lambda progress: progress.n_iter == 3).n_iter == 3
    stopped = sampled_convex_program(x, target, n_neurons=9, rng=rng, callback=lambda progress: progress.n_iter == 3)
    assert stopped.n_iter == 2
    assert not stopped.converged


@pytest.mark.parametrize(("n", "neurons", "penalty"), [(12, 5, 0.1), (12, 40, 0.01), (5, 30, 0.5)])
def test_sampled_program_is_the_lasso_of_scikit_learn(n, neurons, penalty):
    x, target, rng = planted(5, n=n)
    result = sampled_convex_program(x, target, n_neurons=neurons, penalty=penalty, rng=rng)
    features = np.maximum(x @ result.weight.T, 0)
    peer = Lasso(alpha=penalty / n, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(features, target).coef_
    residual = features @ peer - target
    value = residual @ residual / 2 + penalty * np.abs(peer).sum()
    assert result.converged
    np.testing.assert_allclose(result.objective, value, rtol=1e-6)
    np.testing.assert_allclose(features @ result.output, features @ peer, atol=1e-4)


def test_more_sampled_neurons_are_never_worse():
    x, target, _ = planted(6)
    values = [
        sampled_convex_program(x, target, n_neurons=n, rng=np.random.default_rng(0)).objective
        for n in (1, 3, 10, 30, 100)
    ]
    assert (np.diff(values) <= 1e-6).all()


def test_sampled_program_with_a_large_penalty_or_no_target_is_empty():
    x, target, rng = planted(6)
    for y, penalty in ((target, 1e4), (0 * target, 0.1)):
        result = sampled_convex_program(x, y, n_neurons=7, penalty=penalty, rng=rng)
        assert result.converged
        assert result.n_iter == 0
        assert not result.output.any()


@given(seed=st.integers(0, 99), radius=st.floats(0, 0.5))
def test_robust_hinge_is_the_worst_corner_of_the_box(seed, radius):
    rng = np.random.default_rng(seed)
    x, v, w = rng.standard_normal((4, 3)), *rng.standard_normal((2, 5, 3))
    labels, patterns = np.sign(rng.standard_normal(4)), rng.random((5, 4)) < 0.5
    effective = patterns.T.astype(float) @ (v - w)
    corners = radius * (2 * np.indices((2, 2, 2)).reshape(3, -1).T - 1.0)
    margins = labels * ((x[None] + corners[:, None]) * effective).sum(axis=-1)
    expected = np.maximum(0, 1 - margins.min(axis=0)).mean()
    np.testing.assert_allclose(robust_hinge(x, labels, patterns, v, w, radius=radius), expected, rtol=1e-12)


def test_robust_gates_hold_at_every_corner():
    x, v, radius = RNG.standard_normal((4, 3)), RNG.standard_normal((5, 3)), 0.2
    patterns = (x @ v.T >= 0).T
    corners = radius * (2 * np.indices((2, 2, 2)).reshape(3, -1).T - 1.0)
    margins = np.where(patterns, 1, -1) * (v @ (x[None] + corners[:, None]).transpose(0, 2, 1))
    np.testing.assert_allclose(gate_violation(x, patterns, v, 0 * v, radius=radius), max(0, -margins.min()), rtol=1e-12)


def test_derivative_of_relu_at_zero_is_zero():
    one = np.ones((1, 1))
    _, pullback = relu_objective_vjp(one, np.ones(1), 0 * one, np.ones(1), penalty=0.0)
    assert pullback(np.array(1.0))[2] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, target, rng = planted(4)
    x, target = x.astype(dtype), target.astype(dtype)
    patterns = sample_patterns(x, 50, rng=rng)
    result = admm_relu(x, target, patterns, max_iter=20)
    sampled = sampled_convex_program(x, target, n_neurons=5, rng=rng)
    weight, output = recover_relu(result.v, result.w)
    loss, pullback = relu_objective_vjp(x, target, weight, output)
    hinge, robust_pullback = robust_hinge_vjp(x, target, patterns, result.v, result.w, radius=0.1)
    gated, gated_pullback = gated_objective_vjp(x, target, patterns, result.v, result.w)
    arrays = [result.v, result.w, sampled.weight, sampled.output, weight, output, loss, hinge, gated]
    one = np.array(1, dtype)
    arrays += [*pullback(one), *robust_pullback(one), *gated_pullback(one)]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    x, target, rng = planted(4)
    patterns = sample_patterns(x, 50, rng=rng)
    for array in (x, target, patterns):
        array.setflags(write=False)
    result = admm_relu(x, target, patterns, max_iter=5)
    sampled_convex_program(x, target, n_neurons=3, rng=rng)
    result.v.setflags(write=False)
    for f_vjp in (gated_objective_vjp, lambda *a: robust_hinge_vjp(*a, radius=0.1)):
        f_vjp(x, target, patterns, result.v, result.v)[1](np.array(1.0))


X, Y, D = np.ones((3, 2)), np.ones(3), np.ones((2, 3), bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: admm_relu(X, Y, D, penalty=-1.0), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: admm_relu(X, Y, D, coupling=0.0), ValueError, "coupling: expected a finite number > 0, got 0.0"),
        (lambda: admm_relu(X, Y, D, dual_step=-1.0), ValueError, "dual_step: expected a finite number > 0"),
        (lambda: admm_relu(X, Y, D[:0]), ValueError, "patterns: expected at least one entry along axes"),
        (lambda: admm_relu(X, Y, D[:, :2]), ValueError, r"patterns: expected shape \(2, 3\), got \(2, 2\)"),
        (lambda: admm_relu(X, Y, np.ones((2, 3))), TypeError, "patterns: expected a boolean array, got dtype float64"),
        (lambda: admm_relu(X, Y[:, None], D), ValueError, r"target: expected 1 dimensions, got shape \(3, 1\)"),
        (lambda: admm_relu(X, Y * np.nan, D), ValueError, "target: expected finite values"),
        (lambda: admm_relu(X, Y, D, max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: sample_patterns(X, 0, rng=RNG), ValueError, "n_draws: expected an integer >= 1, got 0"),
        (lambda: sample_patterns(X * np.inf, 1, rng=RNG), ValueError, "x: expected finite values"),
        (lambda: sample_patterns(X, 1, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: relu_objective(X, Y, X, Y[:2]), ValueError, r"output: expected shape \(3,\), got \(2,\)"),
        (lambda: gated_objective(X, Y, D, X, X), ValueError, r"v: expected shape \(2, 2\), got \(3, 2\)"),
        (lambda: robust_hinge(X, Y, D, X[:2], X[:2], radius=-1.0), ValueError, "radius: expected a finite number >= 0"),
        (lambda: recover_relu(X, X[:2]), ValueError, r"w: expected shape \(3, 2\), got \(2, 2\)"),
        (lambda: sampled_convex_program(X, Y, n_neurons=0, rng=RNG), ValueError, "n_neurons: expected an integer >= 1"),
        (
            lambda: sampled_convex_program(X, Y, n_neurons=1, penalty=0.0, rng=RNG),
            ValueError,
            "penalty: expected a finite number > 0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
