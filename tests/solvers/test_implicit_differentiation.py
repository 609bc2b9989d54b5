import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, check_vjp
from refnorm.solvers import (
    GradientStep,
    MirrorDescent,
    NewtonStep,
    ProjectedGradient,
    ProximalGradient,
    QPKkt,
    Root,
    Stationary,
    bicgstab,
    box_projection,
    box_projection_vjp,
    cg,
    custom_fixed_point,
    custom_root,
    gmres,
    lasso,
    lasso_prox_vjp,
    lasso_vjp,
    normal_cg,
    ridge,
    ridge_prox_vjp,
    ridge_vjp,
    root_jvp,
    root_vjp,
    simplex_projection,
    simplex_projection_vjp,
)

RNG = np.random.default_rng(14)
FEATURES, TARGET = RNG.standard_normal((7, 4)), RNG.standard_normal(7)
QUADRATIC = 0.3 * RNG.standard_normal((4, 4)) + 2 * np.eye(4)
LINEAR = RNG.standard_normal(4)
EQUAL, EQUAL_TO = RNG.standard_normal((2, 4)), RNG.standard_normal(2)


def ridge_gradient_vjp(w, features, target, penalty):
    residual = features @ w - target

    def pullback(u):
        image = features @ u
        return (
            features.T @ image + penalty * u,
            np.outer(residual, u) + np.outer(image, w),
            -image,
            np.asarray(u @ w),
        )

    return features.T @ residual + penalty * w, pullback


def least_squares_gradient_vjp(w, features, target):
    gradient, pullback = ridge_gradient_vjp(w, features, target, 0.0)
    return gradient, lambda u: pullback(u)[:3]


def quadratic_gradient_vjp(x, matrix, linear):
    """Gradient of x^T S x / 2 + linear^T x for the symmetric part S; x may be rows of points."""
    symmetric = (matrix + matrix.T) / 2

    def pullback(u):
        outer = np.tensordot(u, x, axes=(tuple(range(u.ndim - 1)),) * 2)
        return u @ symmetric, (outer + outer.T) / 2, u

    return x @ symmetric + linear, pullback


def iterate(step, x):
    """Run a contraction until it stands still but for rounding."""
    for _ in range(20_000):
        after = step(x)
        if np.abs(after - x).max() < 3e-16:
            return after
        x = after
    return x


def on_the_simplex(x0, matrix, linear):
    return iterate(lambda x: simplex_projection(x - 0.3 * quadratic_gradient_vjp(x, matrix, linear)[0]), x0)


def in_the_box(x0, matrix, linear, lower, upper):
    return iterate(lambda x: box_projection(x - 0.3 * quadratic_gradient_vjp(x, matrix, linear)[0], lower, upper), x0)


def solve_equality_qp(x0, quadratic, linear, equal, equal_to, *_):
    m = len(equal_to)
    kkt = np.block([[(quadratic + quadratic.T) / 2, equal.T], [equal, np.zeros((m, m))]])
    return np.linalg.solve(kkt, np.concatenate([-linear, equal_to]))


def solve_qp(x0, quadratic, linear, equal, equal_to, inequal, bound):
    """Try every set of active inequalities: the right one has positive multipliers and no violation."""
    n, k = len(linear), len(bound)
    for mask in range(2**k):
        active = np.array([bool(mask >> i & 1) for i in range(k)])
        rows = inequal[active] if equal is None else np.vstack([equal, inequal[active]])
        right = bound[active] if equal is None else np.concatenate([equal_to, bound[active]])
        if len(right) > n:
            continue
        found = solve_equality_qp(x0, quadratic, linear, rows, right)
        z, multipliers = found[:n], found[n + (0 if equal is None else len(equal_to)) :]
        if (inequal @ z <= bound + 1e-12).all() and (multipliers > 0).all():
            full = np.zeros(k)
            full[active] = multipliers
            return np.concatenate([z, found[n : len(found) - active.sum()], full])
    raise AssertionError("a bounded problem has a solution")


def cosine_vjp(x, a):
    return np.cos(a * x), lambda u: (-a * np.sin(a * x) * u, -x * np.sin(a * x) * u)


def find_cosine(x0, a):
    return iterate(lambda x: np.cos(a * x), x0)


START = np.full(4, 0.25)
SIMPLEX = ProjectedGradient(quadratic_gradient_vjp, simplex_projection_vjp, step_size=0.3)
MIRROR = MirrorDescent(quadratic_gradient_vjp, step_size=0.5)
BOX = ProjectedGradient(quadratic_gradient_vjp, box_projection_vjp, step_size=0.3, set_arguments=2)
LASSO = ProximalGradient(least_squares_gradient_vjp, lasso_prox_vjp, step_size=0.05)
STATIONARY = Stationary(ridge_gradient_vjp)


def solved(solver, problem, **options):
    """The pullback without the entry of the start, which the differences cannot see."""
    solve_vjp = custom_root(solver, problem, **options)

    def solution_vjp(*theta):
        x, pullback = solve_vjp(START, *theta)
        assert pullback.is_root
        return x, lambda dx: pullback(dx)[1:]

    return solution_vjp


INEQUALITIES = (np.vstack([np.eye(4), RNG.standard_normal((1, 4))]), np.array([0.1, 5.0, 0.2, 4.0, 0.3]))
RIDGE = (FEATURES, TARGET, 0.3)

GRADIENT_CASES = [
    GradientCase(ridge_vjp, (FEATURES, TARGET, 0.3)),
    GradientCase(ridge_vjp, (FEATURES[:2], TARGET[:2], np.array(0.3)), name="wide"),
    GradientCase(lasso_vjp, (FEATURES, TARGET, 0.8), step=1e-4),
    GradientCase(lasso_vjp, (FEATURES, TARGET, 2.5), step=1e-4, name="sparser"),
    GradientCase(lasso_vjp, (FEATURES, TARGET, 100.0), step=1e-4, name="all zero"),
    GradientCase(root_vjp, RIDGE, call=solved(lambda x0, *t: ridge(*t), STATIONARY), name="stationary"),
    GradientCase(
        root_vjp, RIDGE, call=solved(lambda x0, *t: ridge(*t), GradientStep(ridge_gradient_vjp, 0.1)), name="gradient step"
    ),
    GradientCase(root_vjp, RIDGE, call=solved(lambda x0, *t: ridge(*t), NewtonStep(ridge_gradient_vjp)), name="Newton"),
    GradientCase(
        root_vjp,
        (FEATURES, TARGET, 0.3),
        call=solved(
            lambda x0, *t: ridge(*t),
            ProximalGradient(least_squares_gradient_vjp, ridge_prox_vjp, step_size=0.05),
        ),
        name="proximal ridge",
    ),
    GradientCase(
        root_vjp, (FEATURES, TARGET, 0.8), call=solved(lambda x0, *t: lasso(*t), LASSO), step=1e-4, name="proximal lasso"
    ),
    GradientCase(
        root_vjp,
        (FEATURES, TARGET, 0.8),
        call=solved(
            lambda x0, *t: lasso(*t),
            ProximalGradient(least_squares_gradient_vjp, lasso_prox_vjp, step_size=np.array([0.02, 0.05, 0.1, 0.01])),
        ),
        step=1e-4,
        name="block proximal lasso",
    ),
    GradientCase(root_vjp, (QUADRATIC, LINEAR), call=solved(on_the_simplex, SIMPLEX), step=1e-4, name="simplex"),
    GradientCase(root_vjp, (QUADRATIC, LINEAR), call=solved(on_the_simplex, MIRROR), step=1e-4, name="mirror descent"),
    GradientCase(root_vjp, (QUADRATIC, LINEAR, -0.2, 0.3), call=solved(in_the_box, BOX), step=1e-4, name="box"),
    GradientCase(
        root_vjp,
        (QUADRATIC, LINEAR, EQUAL, EQUAL_TO, None, None),
        call=solved(solve_equality_qp, QPKkt()),
        step=1e-3,
        name="equality QP",
    ),
    GradientCase(
        root_vjp,
        (QUADRATIC, LINEAR, None, None, *INEQUALITIES),
        call=solved(solve_qp, QPKkt()),
        step=1e-4,
        name="inequality QP",
    ),
    GradientCase(
        root_vjp,
        (QUADRATIC, LINEAR, EQUAL[:1], EQUAL_TO[:1], *INEQUALITIES),
        call=solved(solve_qp, QPKkt()),
        step=1e-4,
        name="QP with both",
    ),
    GradientCase(
        root_vjp,
        (np.array([0.4, 0.8, 1.1]),),
        call=lambda a: _without_start(custom_fixed_point(find_cosine, cosine_vjp), np.full(3, 0.5), a),
        name="fixed point",
    ),
    *(
        GradientCase(
            root_vjp,
            RIDGE,
            call=solved(lambda x0, *t: ridge(*t), STATIONARY, linear_solver=linear_solver, tol=1e-13),
            name=linear_solver,
        )
        for linear_solver in ("lu", "cg", "normal_cg", "gmres", "bicgstab")
    ),
]  # fmt: skip


def _without_start(solve_vjp, x0, *theta):
    x, pullback = solve_vjp(x0, *theta)
    return x, lambda dx: pullback(dx)[1:]


# The conditions themselves, at points that are no solutions.
@pytest.mark.parametrize(
    ("problem", "args"),
    [
        (STATIONARY, (RNG.standard_normal(4), *RIDGE)),
        (GradientStep(ridge_gradient_vjp, 0.1), (RNG.standard_normal(4), *RIDGE)),
        (LASSO, (RNG.standard_normal(4), FEATURES, TARGET, 0.8)),
        (SIMPLEX, (RNG.dirichlet(np.ones(4), 3), QUADRATIC, RNG.standard_normal((3, 4)))),
        (MIRROR, (RNG.dirichlet(np.ones(4), 3), QUADRATIC, RNG.standard_normal((3, 4)))),
        (BOX, (RNG.uniform(-0.2, 0.3, 4), QUADRATIC, LINEAR, -0.2, 0.3)),
        (QPKkt(), (RNG.standard_normal(11), QUADRATIC, LINEAR, EQUAL, EQUAL_TO, *INEQUALITIES)),
        (QPKkt(), (RNG.standard_normal(6), QUADRATIC, LINEAR, EQUAL, EQUAL_TO, None, None)),
    ],
)
def test_conditions_have_right_pullbacks(problem, args):
    check_vjp(problem.residual_vjp, *args, options={}, step=1e-4)
    u = RNG.standard_normal(args[0].shape)
    entries = problem.residual_vjp(*args)[1](u)
    np.testing.assert_array_equal(problem.vjp_x(*args, u), entries[0])
    for one, other in zip(problem.vjp_theta(*args, u), entries[1:], strict=True):
        assert one is other is None or (one == other).all()


def test_scalar_by_hand():
    problem = Stationary(lambda x, a: (a * x - 1, lambda u: (a * u, x * u)))
    (slope,), info = root_vjp(problem, np.array([0.5]), (np.array([2.0]),), np.array([1.0]))
    assert slope == -0.25
    assert info.converged
    assert root_jvp(problem, np.array([0.5]), (np.array([2.0]),), (np.array([1.0]),))[0] == -0.25


def test_ridge_by_hand():
    w, pullback = ridge_vjp(np.eye(2), np.array([2.0, 4.0]), 1.0)
    np.testing.assert_allclose(w, [1, 2], rtol=1e-15)
    assert [float(pullback(unit)[2]) for unit in np.eye(2)] == pytest.approx([-0.5, -1.0])


def test_equality_qp_has_the_formulas_of_the_symmetric_system():
    x = solve_equality_qp(None, QUADRATIC, LINEAR, EQUAL, EQUAL_TO)
    dx = RNG.standard_normal(6)
    z, nu = x[:4], x[4:]
    kkt = np.block([[(QUADRATIC + QUADRATIC.T) / 2, EQUAL.T], [EQUAL, np.zeros((2, 2))]])
    u, v = np.split(np.linalg.solve(kkt, dx), [4])
    theta = (QUADRATIC, LINEAR, EQUAL, EQUAL_TO, None, None)
    (dq, dc, de, dd, dm, dh), _ = root_vjp(QPKkt(), x, theta, dx)
    np.testing.assert_allclose(dq, -(np.outer(u, z) + np.outer(z, u)) / 2, rtol=1e-10)
    np.testing.assert_allclose(dc, -u, rtol=1e-10)
    np.testing.assert_allclose(de, -(np.outer(nu, u) + np.outer(v, z)), rtol=1e-10)
    np.testing.assert_allclose(dd, v, rtol=1e-10)
    assert dm is dh is None


@pytest.mark.parametrize("linear_solver", ["auto", "lu", "cg", "normal_cg", "gmres", "bicgstab"])
@pytest.mark.parametrize("problem", [STATIONARY, GradientStep(ridge_gradient_vjp, 0.1), LASSO], ids=["F", "T", "prox"])
def test_forward_and_backward_products_agree(problem, linear_solver):
    theta = (FEATURES, TARGET, 0.8)
    w = lasso(*theta) if problem is LASSO else ridge(*theta)
    dw = RNG.standard_normal(4)
    tangents = (RNG.standard_normal(FEATURES.shape), None, np.asarray(0.7))
    if linear_solver == "cg" and problem is LASSO:
        pytest.skip("not symmetric")
    options = {"linear_solver": linear_solver, "tol": 1e-12}
    cotangents, info = root_vjp(problem, w, theta, dw, **options)
    moved, forward_info = root_jvp(problem, w, theta, tangents, **options)
    assert info.converged
    assert forward_info.converged
    expected = (cotangents[0] * tangents[0]).sum() + cotangents[2] * tangents[2]
    np.testing.assert_allclose(dw @ moved, expected, rtol=1e-9)


class Handwritten:
    """Ridge with the plain products of the protocol and the optional forward ones."""

    symmetric = True
    orientation = -1

    def residual(self, w, x, y, penalty):
        return x.T @ (x @ w - y) + penalty * w

    def vjp_x(self, w, x, y, penalty, u):
        return x.T @ (x @ u) + penalty * u

    def vjp_theta(self, w, x, y, penalty, u):
        return ridge_gradient_vjp(w, x, y, penalty)[1](u)[1:]

    def jvp_x(self, w, x, y, penalty, v):
        return self.vjp_x(w, x, y, penalty, v)

    def jvp_theta(self, w, x, y, penalty, dx, dy, dpenalty):
        return dx.T @ (x @ w - y) + x.T @ (dx @ w - dy) + dpenalty * w


@pytest.mark.parametrize("linear_solver", ["auto", "cg", "normal_cg"])
def test_a_problem_written_by_hand(linear_solver):
    w, dw = ridge(*RIDGE), RNG.standard_normal(4)
    options = {"linear_solver": linear_solver, "tol": 1e-13}
    for ours, theirs in zip(root_vjp(Handwritten(), w, RIDGE, dw, **options)[0], ridge_vjp(*RIDGE)[1](dw), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    tangents = (RNG.standard_normal(FEATURES.shape), RNG.standard_normal(7), np.asarray(0.3))
    moved = root_jvp(Handwritten(), w, RIDGE, tangents, **options)[0]
    np.testing.assert_allclose(moved, root_jvp(STATIONARY, w, RIDGE, tangents)[0], rtol=1e-10)


@given(step=st.floats(0.01, 0.5), seed=st.integers(0, 20))
def test_step_size_cancels(step, seed):
    dx = np.random.default_rng(seed).standard_normal(4)
    x = on_the_simplex(START, QUADRATIC, LINEAR)
    results = [
        root_vjp(ProjectedGradient(quadratic_gradient_vjp, simplex_projection_vjp, s), x, (QUADRATIC, LINEAR), dx)[0]
        for s in (step, 0.3)
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def test_start_has_no_gradient():
    _, pullback = custom_root(on_the_simplex, SIMPLEX)(START, QUADRATIC, LINEAR)
    assert (pullback(np.ones(4))[0] == 0).all()


def test_a_result_record_is_accepted():
    problem = Root(lambda x, b: (QUADRATIC @ x - b, lambda u: (QUADRATIC.T @ u, -u)))
    solve_vjp = custom_root(lambda x0, b: gmres(lambda v: QUADRATIC @ v, b), problem)
    _, pullback = solve_vjp(None, LINEAR)
    np.testing.assert_allclose(pullback(LINEAR)[1], np.linalg.solve(QUADRATIC.T, LINEAR), rtol=1e-12)
    assert pullback(LINEAR)[0] is None


def test_a_bad_solution_is_reported():
    solve_vjp = custom_root(lambda x0, *t: ridge(*t) + 0.1, STATIONARY)
    _, pullback = solve_vjp(None, *RIDGE)
    assert not pullback.is_root
    assert pullback.residual_norm > 0.1


def test_an_unsolved_system_is_an_error_or_reported():
    solve_vjp = custom_root(lambda x0, *t: ridge(*t), STATIONARY, linear_solver="cg", max_iter=1)
    _, pullback = solve_vjp(None, *RIDGE)
    with pytest.raises(ArithmeticError, match="linear_solver: expected convergence, got residual"):
        pullback(np.ones(4))
    _, info = pullback.with_info(np.ones(4))
    assert not info.converged
    assert info.n_iter == 1


SINGULAR = Stationary(lambda x, b: (np.array([x[0] - b[0], 0.0]), lambda u: (u * [1, 0], u * [-1, 0])))


def test_singular_system():
    x, theta = np.array([1.0, 5.0]), (np.array([1.0, 0.0]),)
    with pytest.raises(ValueError, match="problem: expected an invertible derivative of the residual in x"):
        root_vjp(SINGULAR, x, theta, np.ones(2))
    assert not root_vjp(SINGULAR, x, theta, np.ones(2), linear_solver="cg")[1].converged
    for linear_solver in ("lu", "cg", "gmres", "bicgstab"):
        (slope,), info = root_vjp(SINGULAR, x, theta, np.ones(2), ridge=0.25, linear_solver=linear_solver)
        assert info.converged
        np.testing.assert_allclose(slope, [1 / 1.25, 0], rtol=1e-9)
    (slope,), _ = root_vjp(SINGULAR, x, theta, np.ones(2), ridge=0.25, linear_solver="normal_cg")
    np.testing.assert_allclose(slope, [1 / 1.25, 0], rtol=1e-9)


def test_ridge_moves_a_minimum_away_from_singularity():
    """With F the gradient, A = -Hessian: a shift of +ridge would meet the eigenvalue 1 below."""
    problem = Stationary(lambda x, b: (x - b, lambda u: (u, -u)))
    (slope,), _ = root_vjp(problem, np.ones(2), (np.ones(2),), np.ones(2), ridge=1.0)
    np.testing.assert_allclose(slope, [0.5, 0.5])


def test_many_unknowns_take_an_iterative_solver():
    diagonal = np.linspace(1, 3, 300)

    def gradient_vjp(x, b):
        return diagonal * x - b, lambda u: (diagonal * u, -u)

    for problem in (Stationary(gradient_vjp), Root(gradient_vjp)):
        (slope,), info = root_vjp(problem, np.ones(300) / diagonal, (np.ones(300),), np.ones(300))
        assert info.n_iter > 1
        np.testing.assert_allclose(slope, 1 / diagonal, rtol=1e-8)


def test_float32_is_kept():
    theta = (FEATURES.astype("f4"), TARGET.astype("f4"), np.float32(0.3))
    for vjp in (ridge_vjp, lasso_vjp):
        w, pullback = vjp(*theta[:2], np.asarray(theta[2]))
        assert [w.dtype, *(entry.dtype for entry in pullback(w))] == [np.float32] * 4
    cotangents, info = root_vjp(STATIONARY, ridge(*theta), theta, np.ones(4, "f4"))
    assert info.converged
    assert [entry.dtype for entry in cotangents] == [np.float32] * 3


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_lasso_satisfies_its_condition(scale):
    features, target = RNG.standard_normal((20, 30)), RNG.standard_normal(20)
    w = lasso(features, target, scale)
    slope = features.T @ (target - features @ w)
    np.testing.assert_allclose(slope[w != 0], scale * np.sign(w[w != 0]), rtol=1e-10)
    assert (np.abs(slope[w == 0]) <= scale * (1 + 1e-10)).all()
    assert np.count_nonzero(w) <= 20


def test_lasso_with_a_column_of_zeros_and_no_penalty():
    features = FEATURES.copy()
    features[:, 1] = 0
    w = lasso(features, TARGET, 0.0)
    assert w[1] == 0
    np.testing.assert_allclose(features.T @ (features @ w - TARGET), 0, atol=1e-12)


def test_lasso_pullback_refuses_dependent_columns():
    features = np.column_stack([FEATURES[:, 0], FEATURES[:, 1], FEATURES[:, 0] + FEATURES[:, 1]])
    w, pullback = lasso_vjp(features, features @ np.ones(3), 0.0)
    assert w.all()
    with pytest.raises(
        ValueError, match="features: expected linearly independent columns on the support, got 3 dependent"
    ):
        pullback(np.ones(3))


MATRIX = RNG.standard_normal((12, 12))
POSITIVE = MATRIX @ MATRIX.T + np.eye(12)
RIGHT = RNG.standard_normal(12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("solver", "matrix"), [(cg, POSITIVE), (cg, -POSITIVE), (gmres, MATRIX), (bicgstab, POSITIVE), (normal_cg, MATRIX + 6 * np.eye(12))]
)  # fmt: skip
def test_linear_solvers(solver, matrix, dtype):
    matrix, right = matrix.astype(dtype), RIGHT.astype(dtype)
    options = {"rmatvec": lambda v: matrix.T @ v} if solver is normal_cg else {}
    result = solver(lambda v: matrix @ v, right, **options)
    assert result.converged
    assert result.x.dtype == dtype
    assert result.history.shape == (result.n_iter + 1,)
    if solver is not normal_cg:
        assert result.history[-1] <= 1.01 * {np.float32: 1e-5, np.float64: 1e-10}[dtype] * np.linalg.norm(right)
    np.testing.assert_allclose(result.x, np.linalg.solve(matrix, right), rtol=3e-2 if dtype == np.float32 else 1e-6)


def test_cg_takes_the_steps_of_scipy():
    ours, theirs = [], []
    for steps in range(1, 9):
        ours.append(cg(lambda v: POSITIVE @ v, RIGHT, max_iter=steps, tol=0.0).x)
        theirs.append(scipy.sparse.linalg.cg(POSITIVE, RIGHT, maxiter=steps, rtol=0.0)[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_cg_ends_after_as_many_steps_as_eigenvalues():
    diagonal = np.repeat([1.0, 4.0, 9.0], 5)
    assert cg(lambda v: diagonal * v, np.ones(15)).n_iter == 3


@pytest.mark.parametrize("solver", [cg, gmres, bicgstab])
def test_solvers_start_where_they_are_told_and_stop_at_once(solver):
    exact = np.linalg.solve(POSITIVE, RIGHT)
    result = solver(lambda v: POSITIVE @ v, RIGHT, x0=exact)
    assert (result.n_iter, result.converged) == (0, True)
    np.testing.assert_array_equal(result.x, exact)
    zero = solver(lambda v: POSITIVE @ v, np.zeros(12))
    assert (zero.n_iter, zero.converged, np.abs(zero.x).max()) == (0, True, 0.0)
    assert solver(lambda v: v, np.zeros(0)).converged


@pytest.mark.parametrize("solver", [cg, gmres, bicgstab])
def test_solvers_report_failure(solver):
    assert not solver(
        lambda v: POSITIVE @ v, RIGHT, max_iter=1, tol=1e-14, **({"restart": 1} if solver is gmres else {})
    ).converged
    assert not solver(lambda v: 0 * v, RIGHT).converged
    assert not solver(lambda v: v, np.full(3, np.nan)).converged


def test_normal_cg_with_a_ridge_is_tikhonov():
    matrix = MATRIX[:, :1] @ MATRIX[:1]
    x = normal_cg(lambda v: matrix @ v, RIGHT, rmatvec=lambda v: matrix.T @ v, ridge=0.5).x
    np.testing.assert_allclose(x, np.linalg.solve(matrix.T @ matrix + 0.5 * np.eye(12), matrix.T @ RIGHT), rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ridge(FEATURES, TARGET[:3], 1.0), ValueError, r"target: expected shape \(7,\), got \(3,\)"),
        (lambda: ridge(FEATURES, TARGET, -1.0), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: ridge(FEATURES[:2], TARGET[:2], 0.0), ValueError, "penalty: expected a number large enough"),
        (lambda: ridge(FEATURES * np.nan, TARGET, 1.0), ValueError, "features: expected finite values"),
        (lambda: ridge(FEATURES, TARGET.astype("f4"), 1.0), TypeError, "target: expected dtype float64 like features"),
        (lambda: lasso(FEATURES, TARGET, 0.1, max_iter=1), ValueError, "max_iter: expected enough sweeps to reach tol, got 1"),
        (lambda: lasso(FEATURES, TARGET, 0.1, tol=0.0), ValueError, "tol: expected a finite number > 0, got 0.0"),
        (lambda: cg(lambda v: v, np.ones((2, 2))), ValueError, "b: expected 1 dimensions"),
        (lambda: cg(lambda v: v[:1], np.ones(2)), ValueError, r"matvec: expected shape \(2,\), got \(1,\)"),
        (lambda: cg(lambda v: v, np.ones(2), x0=np.ones(3)), ValueError, r"x0: expected shape \(2,\), got \(3,\)"),
        (lambda: cg(lambda v: v, np.ones(2), tol=-1.0), ValueError, "tol: expected a finite number >= 0, got -1.0"),
        (lambda: gmres(lambda v: v, np.ones(2), max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: custom_root(None, STATIONARY, linear_solver="qr"), ValueError, "linear_solver: expected one of 'auto'"),
        (lambda: root_vjp(STATIONARY, np.ones(4), RIDGE, np.ones(3)), ValueError, r"cotangent: expected shape \(4,\)"),
        (lambda: root_vjp(STATIONARY, np.ones(4), FEATURES, np.ones(4)), TypeError, "theta: expected a tuple of parameters"),
        (lambda: root_jvp(STATIONARY, np.ones(4), RIDGE, (None,)), ValueError, "tangents: expected 3 entries, got 1"),
        (lambda: root_jvp(STATIONARY, np.ones(4), RIDGE, (None, np.ones(2), None)), ValueError, r"tangents\[1\]: expected shape"),
        (lambda: GradientStep(ridge_gradient_vjp, 0.0), ValueError, "step_size: expected a finite number > 0, got 0.0"),
        (lambda: ProximalGradient(ridge_gradient_vjp, lasso_prox_vjp, step_size=np.array([1.0, -1.0])), ValueError, "step_size"),
        (lambda: LASSO.residual(np.ones(4)), ValueError, "theta: expected at least 1 parameters, got 0"),
        (lambda: QPKkt().residual(np.ones(4), QUADRATIC, LINEAR), ValueError, "theta: expected the six parameters"),
        (lambda: QPKkt().residual(np.ones(4), QUADRATIC, LINEAR, EQUAL, None, None, None), ValueError, "d: expected an array"),
        (lambda: QPKkt().residual(np.ones(3), QUADRATIC, LINEAR, None, None, None, None), ValueError, r"x: expected shape \(4,\)"),
        (lambda: QPKkt().residual(np.ones(4), QUADRATIC[:2], LINEAR, None, None, None, None), ValueError, "Q: expected shape"),
        (lambda: NewtonStep(SINGULAR.gradient_vjp).residual(np.ones(2), np.ones(2)), ValueError, "function_vjp: expected an invertible"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
