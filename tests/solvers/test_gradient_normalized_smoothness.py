import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize
from scipy.special import expit

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    gradient_regularized_newton,
    logsumexp_oracle,
    power_residual_oracle,
    rank_one_step,
    rank_one_step_vjp,
    regularized_newton_step,
    regularized_newton_step_vjp,
    smoothness_radius,
    soft_maximum,
    soft_maximum_hessian,
    soft_maximum_vjp,
)

RNG = np.random.default_rng(21)


def semidefinite(d, rank=None, rng=RNG):
    root = rng.standard_normal((d, rank or d))
    return root @ root.T


GRADIENT_CASES = [
    GradientCase(regularized_newton_step_vjp, (RNG.standard_normal(4), semidefinite(4), 0.7, None)),
    GradientCase(
        regularized_newton_step_vjp,
        (RNG.standard_normal(3), semidefinite(3, 1), 1.3, semidefinite(3) + np.eye(3)),
        name="own norm, singular Hessian",
    ),
    GradientCase(regularized_newton_step_vjp, (RNG.standard_normal(2), np.zeros((2, 2)), 0.5, None), name="no Hessian"),
    GradientCase(rank_one_step_vjp, (RNG.standard_normal(4), 2.0, RNG.standard_normal(4), 0.7)),
    GradientCase(rank_one_step_vjp, (RNG.standard_normal(3), 1.5, np.zeros(3), 0.7), name="vector 0"),
    GradientCase(soft_maximum_vjp, (RNG.standard_normal(3), RNG.standard_normal((5, 3)), RNG.standard_normal(5))),
    GradientCase(
        soft_maximum_vjp,
        (RNG.standard_normal(2), RNG.standard_normal((4, 2)), RNG.standard_normal(4)),
        {"smoothing": 0.2},
        name="smoothing 0.2",
        step=1e-3,
    ),
    GradientCase(soft_maximum_vjp, (np.zeros(2), np.zeros((3, 2)), np.zeros(3)), {"smoothing": 2.0}, name="all equal"),
]


def quadratic(matrix):
    return lambda x: float(0.5 * x @ matrix @ x), lambda x: matrix @ x, lambda x: matrix


def logistic(seed=0, n=40, d=5):
    rng = np.random.default_rng(seed)
    signed = rng.standard_normal((n, d))

    def fun(w):
        return float(np.logaddexp(0, -signed @ w).mean() + 0.05 * w @ w)

    def gradient(w):
        return -expit(-signed @ w) @ signed / n + 0.1 * w

    def hessian(w):
        share = expit(-signed @ w)
        return (share * (1 - share) * signed.T) @ signed / n + 0.1 * np.eye(d)

    return fun, gradient, hessian


@given(seed=st.integers(0, 999), d=st.integers(1, 6), rank=st.integers(1, 6), damping=st.floats(1e-3, 1e3))
def test_step_is_no_longer_than_gradient_over_damping(seed, d, rank, damping):
    rng = np.random.default_rng(seed)
    grad, hessian, metric = rng.standard_normal(d), semidefinite(d, rank, rng), semidefinite(d, rng=rng) + np.eye(d)
    step = regularized_newton_step(grad, hessian, damping, metric)
    primal, dual = np.sqrt(step @ metric @ step), np.sqrt(grad @ np.linalg.solve(metric, grad))
    assert primal <= dual / damping * (1 + 1e-9)
    assert step @ grad < 0


@given(seed=st.integers(0, 999), d=st.integers(1, 8), coefficient=st.floats(0, 1e3), damping=st.floats(1e-2, 1e2))
def test_rank_one_step_is_the_dense_one(seed, d, coefficient, damping):
    grad, vector = np.random.default_rng(seed).standard_normal((2, d))
    dense = regularized_newton_step(grad, coefficient * np.outer(vector, vector), damping)
    np.testing.assert_allclose(rank_one_step(grad, coefficient, vector, damping), dense, rtol=1e-8, atol=1e-10)


def test_two_steps_by_hand():
    seen = []
    result = gradient_regularized_newton(
        *quadratic(np.eye(1)), np.array([1.0]), max_iter=2, eps=1e-300, callback=lambda p: seen.append(dict(p.values))
    )
    np.testing.assert_allclose(result.x, [0.1], rtol=1e-12)
    assert [values["radius"] for values in seen] == [1.0, 2.0]
    np.testing.assert_allclose(result.history["step_norm"], [0.5, 0.4], rtol=1e-12)
    assert not result.converged


def test_large_radius_solves_a_quadratic_at_once():
    matrix = semidefinite(4) + np.eye(4)
    result = gradient_regularized_newton(*quadratic(matrix), RNG.standard_normal(4), radius0=1e12, grad_tol=1e-6)
    assert result.n_iter == 1
    assert result.converged


@given(seed=st.integers(0, 99), radius0=st.sampled_from([1e-6, 1.0, 1e6]))
def test_logistic_regression_ends_where_scipy_does(seed, radius0):
    fun, gradient, hessian = logistic(seed)
    result = gradient_regularized_newton(fun, gradient, hessian, np.ones(5), radius0=radius0, grad_tol=1e-9)
    peer = minimize(fun, np.ones(5), jac=gradient, hess=hessian, method="trust-ncg", tol=1e-10)
    assert result.converged
    np.testing.assert_allclose(result.x, peer.x, atol=1e-7)


@pytest.mark.parametrize("model", ["exact", "gauss_newton", "none"])
def test_every_step_descends_and_stays_inside_its_radius(model):
    oracle = logsumexp_oracle(RNG.uniform(-1, 1, (30, 4)), RNG.uniform(-1, 1, 30), 0.2)
    hessian = {"exact": oracle.hessian, "gauss_newton": oracle.gauss_newton, "none": lambda x: None}[model]
    result = gradient_regularized_newton(oracle.fun, oracle.gradient, hessian, np.ones(4), max_iter=60)
    assert (np.diff(result.history["fun"]) <= 1e-12).all()
    assert (result.history["step_norm"] <= result.history["radius"] + 1.1e-8).all()
    assert result.history["trials"].max() <= 40


def test_without_hessian_the_step_is_normalized_descent():
    x = RNG.standard_normal(3)
    result = gradient_regularized_newton(
        lambda z: float(0.5 * z @ z), lambda z: z, lambda z: None, x, radius0=0.25, max_iter=1
    )
    np.testing.assert_allclose(result.x, x - 0.25 * x / np.linalg.norm(x), rtol=1e-7)


def test_pair_is_its_outer_product():
    fun, gradient, _ = logistic(3)
    runs = [
        gradient_regularized_newton(fun, gradient, model, np.ones(5), max_iter=15)
        for model in (
            lambda w: (2.0, gradient(w)),
            lambda w: 2.0 * np.outer(gradient(w), gradient(w)),
        )
    ]
    np.testing.assert_allclose(runs[0].x, runs[1].x, rtol=1e-8)


def test_own_norm_is_a_change_of_coordinates():
    fun, gradient, hessian = logistic(4)
    root = np.linalg.cholesky(semidefinite(5) + np.eye(5)).T
    inverse = np.linalg.inv(root)
    plain = gradient_regularized_newton(
        lambda z: fun(inverse @ z),
        lambda z: inverse.T @ gradient(inverse @ z),
        lambda z: inverse.T @ hessian(inverse @ z) @ inverse,
        root @ np.ones(5),
        max_iter=4,
    )
    normed = gradient_regularized_newton(fun, gradient, hessian, np.ones(5), norm_matrix=root.T @ root, max_iter=4)
    np.testing.assert_allclose(root @ normed.x, plain.x, rtol=1e-8)
    np.testing.assert_allclose(normed.history["step_norm"], plain.history["step_norm"], rtol=1e-8)


def test_indefinite_hessian_is_a_failed_trial():
    def fun(x):
        return float(0.25 * (x**4).sum() - 0.5 * (x**2).sum())

    result = gradient_regularized_newton(
        fun, lambda x: x**3 - x, lambda x: np.diag(3 * x**2 - 1), np.array([0.1, -0.2]), radius0=100.0
    )
    assert result.converged
    np.testing.assert_allclose(np.abs(result.x), 1, atol=1e-7)
    assert result.history["trials"][0] > 1


def test_exhausted_trials_keep_the_point():
    # The gradient has the wrong sign: no step can descend.
    result = gradient_regularized_newton(
        lambda x: float(x @ x), lambda x: -2 * x, lambda x: np.eye(2), np.ones(2), max_trials=5
    )
    assert not result.converged
    assert result.n_iter == 0
    np.testing.assert_array_equal(result.x, 1)


def test_values_that_are_not_finite_are_failed_trials():
    def fun(x):
        return float(x[0] - np.log(x[0])) if x[0] > 0 else np.nan

    result = gradient_regularized_newton(
        fun, lambda x: 1 - 1 / x, lambda x: np.diag(1 / x**2), np.array([5.0]), radius0=1e3
    )
    assert result.converged
    np.testing.assert_allclose(result.x, 1, atol=1e-7)


def test_rounding_of_the_value_does_not_stop_the_search():
    # A large constant hides every gain below 1e-7.
    fun, gradient, hessian = logistic(5)
    result = gradient_regularized_newton(lambda w: fun(w) + 1e9, gradient, hessian, np.ones(5), grad_tol=1e-10)
    assert result.converged


def test_constant_radius_takes_every_step():
    fun, gradient, hessian = logistic(6)
    result = gradient_regularized_newton(
        fun, gradient, hessian, np.ones(5), radius0=0.5, adaptive=False, max_iter=100, grad_tol=1e-6
    )
    assert result.converged
    assert set(result.history["radius"]) == {0.5}
    assert set(result.history["trials"]) == {1}


def test_ends_at_a_stationary_start_or_target():
    result = gradient_regularized_newton(*quadratic(np.eye(2)), np.zeros(2))
    assert result.converged
    assert result.n_iter == 0
    assert result.history == {}
    reached = gradient_regularized_newton(*quadratic(np.eye(2)), np.ones(2), target=0.1)
    assert reached.converged
    assert reached.fun <= 0.1 < np.append(1.0, reached.history["fun"])[-2]


@pytest.mark.parametrize("power", [2.0, 3.0, 4.0])
def test_power_residual_matches_differences(power):
    def residual(x):
        return np.array([x[0] ** 2 + x[1] - 1, np.sin(x[1]), x[0] * x[1]])

    def jacobian(x):
        return np.array([[2 * x[0], 1], [0, np.cos(x[1])], [x[1], x[0]]])

    def curvature(x, w):
        return np.array([[2 * w[0], w[2]], [w[2], -np.sin(x[1]) * w[1]]])

    oracle = power_residual_oracle(residual, jacobian, power, curvature=curvature)
    x = np.array([0.7, -0.4])
    assert check_grad(oracle.fun, oracle.gradient, x) < 1e-6
    columns = [(oracle.gradient(x + h) - oracle.gradient(x - h)) / 2e-6 for h in 1e-6 * np.eye(2)]
    np.testing.assert_allclose(oracle.hessian(x), np.transpose(columns), atol=1e-7)
    coefficient, vector = oracle.fisher_term(x)
    size = np.linalg.norm(residual(x))
    rest = oracle.gauss_newton(x) - coefficient * np.outer(vector, vector)
    np.testing.assert_allclose(rest, size ** (power - 2) * jacobian(x).T @ jacobian(x), atol=1e-12)
    # (p - 2) / |u|^p times the outer product of the gradient is the same term.
    grad = oracle.gradient(x)
    np.testing.assert_allclose(
        coefficient * np.outer(vector, vector), (power - 2) / size**power * np.outer(grad, grad), atol=1e-12
    )


def test_power_residual_at_a_root():
    for power, expected in ((2.0, np.eye(2)), (3.0, np.zeros((2, 2)))):
        oracle = power_residual_oracle(lambda x: x, lambda x: np.eye(2), power)
        np.testing.assert_array_equal(oracle.gauss_newton(np.zeros(2)), expected)
        np.testing.assert_array_equal(oracle.gradient(np.zeros(2)), 0)
        assert oracle.hessian is None


@given(seed=st.integers(0, 99), smoothing=st.floats(0.05, 5))
def test_hessians_of_the_soft_maximum(seed, smoothing):
    rng = np.random.default_rng(seed)
    x, matrix, offset = rng.standard_normal(3), rng.standard_normal((6, 3)), rng.standard_normal(6)
    exact = soft_maximum_hessian(x, matrix, offset, smoothing=smoothing)
    gauss = soft_maximum_hessian(x, matrix, offset, smoothing=smoothing, gauss_newton=True)
    grad = soft_maximum_vjp(x, matrix, offset, smoothing=smoothing)[1](np.array(1.0))[0]
    np.testing.assert_allclose(gauss - exact, np.outer(grad, grad) / smoothing, atol=1e-12 / smoothing)
    assert np.linalg.eigvalsh(exact)[0] >= -1e-12 / smoothing
    largest = (matrix @ x - offset).max()
    value = soft_maximum(x, matrix, offset, smoothing=smoothing)
    assert largest - 1e-12 <= value <= largest + smoothing * np.log(6) + 1e-12


def test_radius_of_a_quadratic():
    matrix, x = np.diag([1.0, 4.0]), np.array([2.0, 0.5])
    radii = np.linspace(0.02, 2, 50)
    options = {"radii": radii, "n_directions": 60, "rng": np.random.default_rng(0)}
    size = np.linalg.norm(matrix @ x)
    found = smoothness_radius(lambda z: matrix @ z, None, x, **options)
    assert found == pytest.approx(size / 4, abs=0.05)
    assert smoothness_radius(lambda z: matrix @ z, matrix, x, **options) == radii[-1]
    pair = smoothness_radius(lambda z: matrix @ z, (3.0, np.array([0.0, 1.0])), x, **options)
    assert pair == radii[radii <= size + 1e-9][-1]
    assert smoothness_radius(lambda z: matrix @ z, None, np.zeros(2), **options) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written_to(dtype):
    grad, matrix = RNG.standard_normal(3).astype(dtype), semidefinite(3).astype(dtype)
    for array in (grad, matrix):
        array.setflags(write=False)
    step, pullback = regularized_newton_step_vjp(grad, matrix, 0.5, np.eye(3, dtype=dtype))
    assert [entry.dtype for entry in (step, *pullback(step))] == [dtype] * 5
    step, pullback = rank_one_step_vjp(grad, 2.0, grad, 0.5)
    assert [entry.dtype for entry in (step, *pullback(step))] == [dtype] * 5
    value, pullback = soft_maximum_vjp(grad, matrix, grad)
    assert [entry.dtype for entry in (value, *pullback(value))] == [dtype] * 4
    assert soft_maximum_hessian(grad, matrix, grad).dtype == dtype
    result = gradient_regularized_newton(
        lambda x: float(0.5 * x @ x), lambda x: x, lambda x: np.eye(3, dtype=dtype), grad, grad_tol=1e-4
    )
    assert result.x.dtype == dtype


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: regularized_newton_step(np.ones(2), np.ones((2, 3)), 1.0), ValueError, r"hessian: expected shape \(2, 2\), got \(2, 3\)"),
        (lambda: regularized_newton_step(np.ones(2), -EYE, 0.5), ValueError, "hessian: expected a positive definite matrix after damping, got damping 0.5"),
        (lambda: regularized_newton_step(np.ones(2), EYE, 0.0), ValueError, "damping: expected a finite number > 0, got 0.0"),
        (lambda: regularized_newton_step(np.ones(2), EYE.astype("f4"), 1.0), TypeError, "hessian: expected dtype float64 like grad, got float32"),
        (lambda: rank_one_step(np.ones(2), -1.0, np.ones(2), 1.0), ValueError, "coefficient: expected a finite number >= 0, got -1.0"),
        (lambda: rank_one_step(np.ones(2), 1.0, np.ones(3), 1.0), ValueError, r"vector: expected shape \(2,\), got \(3,\)"),
        (lambda: soft_maximum(np.ones(2), EYE, np.ones(2), smoothing=0.0), ValueError, "smoothing: expected a finite number > 0, got 0.0"),
        (lambda: soft_maximum(np.ones(3), EYE, np.ones(2)), ValueError, r"matrix: expected shape \(2, 3\), got \(2, 2\)"),
        (lambda: logsumexp_oracle(EYE, np.ones(3), 1.0), ValueError, r"offset: expected shape \(2,\), got \(3,\)"),
        (lambda: power_residual_oracle(lambda x: x, lambda x: EYE, 1.5), ValueError, r"power: expected a number in \[2.0, inf\), got 1.5"),
        (lambda: gradient_regularized_newton(*quadratic(EYE), np.ones(2), radius0=0.0), ValueError, "radius0: expected a finite number > 0, got 0.0"),
        (lambda: gradient_regularized_newton(*quadratic(EYE), np.ones(2), norm_matrix=-EYE), ValueError, "norm_matrix: expected a positive definite matrix, got one that is not"),
        (lambda: gradient_regularized_newton(*quadratic(np.eye(3)), np.ones(3), norm_matrix=EYE), ValueError, r"norm_matrix: expected shape \(3, 3\), got \(2, 2\)"),
        (lambda: gradient_regularized_newton(lambda x: 0.0, lambda x: x[:1], lambda x: EYE, np.ones(2)), ValueError, r"gradient: expected shape \(2,\), got \(1,\)"),
        (lambda: gradient_regularized_newton(lambda x: 0.0, lambda x: x, lambda x: np.eye(3), np.ones(2)), ValueError, r"hessian: expected shape \(2, 2\), got \(3, 3\)"),
        (lambda: gradient_regularized_newton(lambda x: 0.0, lambda x: x, lambda x: -9 * EYE, np.ones(2), adaptive=False), ValueError, "hessian: expected a positive definite matrix after damping"),
        (lambda: smoothness_radius(lambda x: x, None, np.ones(2), radii=np.array([2.0, 1.0]), rng=RNG), ValueError, "radii: expected positive increasing numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_callback_ends_the_iteration():
    seen = []
    result = gradient_regularized_newton(
        lambda x: float(x @ x),
        lambda x: 2 * x,
        lambda x: 2 * np.eye(2),
        np.ones(2),
        callback=lambda p: seen.append(p) or True,
    )
    assert (result.n_iter, result.converged, len(seen)) == (1, False, 1)


@pytest.mark.parametrize("model", [None, (0.5, np.array([1.0, -2.0]))])
def test_models_without_a_matrix_agree_with_the_matrix_they_stand_for_in_any_norm(model):
    curvature = np.zeros((2, 2)) if model is None else model[0] * np.outer(model[1], model[1])

    def minimum(hessian):
        return gradient_regularized_newton(
            lambda x: float(np.sqrt(1 + x @ x)), lambda x: x / np.sqrt(1 + x @ x), hessian, np.array([3.0, -1.0]),
            norm_matrix=np.array([[2.0, 0.5], [0.5, 1.0]]), max_iter=5,
        )  # fmt: skip

    short, whole = minimum(lambda x: model), minimum(lambda x: curvature)
    np.testing.assert_allclose(short.x, whole.x, rtol=1e-12)
    assert short.fun < np.sqrt(11)


def test_a_gradient_that_is_not_finite_is_no_progress_in_any_norm():
    def gradient(x):
        return x if np.abs(x).max() >= 1 else np.full_like(x, np.nan)

    result = gradient_regularized_newton(
        lambda x: float(x @ x) / 2, gradient, lambda x: np.eye(2), np.ones(2), norm_matrix=np.eye(2) * 2, max_trials=3
    )
    assert not result.converged
    np.testing.assert_array_equal(result.x, np.ones(2))
