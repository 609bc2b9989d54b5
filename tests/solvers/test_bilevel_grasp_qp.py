import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    contact_frame,
    contact_frame_vjp,
    equal_force_energy,
    equal_force_energy_vjp,
    friction_qp,
    grasp_energy,
    grasp_energy_vjp,
    grasp_matrix,
    grasp_matrix_vjp,
    optimize_grasp,
    project_ellipsoid,
    project_ellipsoid_vjp,
    solve_qp,
    solve_qp_admm,
    solve_qp_vjp,
)

RNG = np.random.default_rng(51)
AXES = np.array([1.0, 0.7, 0.5])
P, N = project_ellipsoid(RNG.standard_normal((3, 3)), AXES)
TARGETS = np.concatenate([np.eye(6), -np.eye(6)])[[0, 2, 4, 7, 11]]
FRICTION = {"friction": 0.6}
CENTER = {"center": (0.1, -0.2, 0.05), "length": 0.8}


def axes_of(normals):
    """The stopped vector a of every frame."""
    e = np.where(np.abs(normals[:, 1:2]) > 0.99, [[0.0, 0, 1]], [[0.0, 1, 0]])
    a = e - (e * normals).sum(axis=1, keepdims=True) * normals
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def frame_with(a):
    def frame(n):
        y = a - (a * n).sum(axis=1, keepdims=True) * n
        first = y / np.linalg.norm(y, axis=1, keepdims=True)
        return first, np.cross(n, first)

    return frame


def matrix_with(a, center=(0.0, 0, 0), length=1.0):
    """The grasp matrix for normals of any length, with the frames' vector a held fixed."""

    def matrix(p, n):
        first, second = frame_with(a)(n)
        columns = [np.concatenate([v, np.cross((p - center) / length, v)], axis=1) for v in (n, first, second)]
        return np.stack(columns, axis=2)

    return matrix


def value_with(a, penalty=0.01, counted=True, **options):
    """The program's value (or the energy) from a solver without derivatives."""

    def value(p, n, targets, **_):
        matrix = matrix_with(a)(p, n)
        flat = np.concatenate(list(matrix), axis=1)
        found = []
        for target in targets:
            h, rows, low, high = friction_qp(matrix, target, penalty=penalty, **options)
            x = solve_qp_admm(h, np.zeros(len(h)), rows, low, high).x
            gap = flat @ x[:-1] - x[-1] * target
            found.append(gap @ gap + counted * penalty * (x[:-1:3] ** 2).sum())
        return np.array(found)

    return value


def random_program(rng, n=4, rows=6):
    """A strictly convex program whose feasible set contains a random point."""
    root = rng.standard_normal((n, n))
    a, inside = rng.standard_normal((rows, n)), rng.standard_normal(n)
    low, high = a @ inside - rng.uniform(0.1, 1, rows), a @ inside + rng.uniform(0.1, 1, rows)
    low[0] = high[0] = a[0] @ inside
    low[1] = -np.inf
    return root @ root.T + 0.5 * np.eye(n), 3 * rng.standard_normal(n), a, low, high


def equation_vjp(quadratic, linear, constraints, bound, low, high):
    """A program whose first row is an equation; its one bound stands for both."""
    lower, upper = (np.concatenate([bound, side]) for side in (low, high))
    x, back = solve_qp_vjp(quadratic, linear, constraints, lower, upper)

    def pullback(dx):
        dquadratic, dlinear, dconstraints, dlower, dupper = back(dx)
        return dquadratic, dlinear, dconstraints, (dlower + dupper)[:1], dlower[1:], dupper[1:]

    return x, pullback


def free_lower_vjp(quadratic, linear, constraints, upper):
    low = np.full(len(upper), -np.inf)
    x, back = solve_qp_vjp(quadratic, linear, constraints, low, upper)

    def pullback(dx):
        dquadratic, dlinear, dconstraints, _, dupper = back(dx)
        return dquadratic, dlinear, dconstraints, dupper

    return x, pullback


H, G, A, LOW, HIGH = random_program(np.random.default_rng(7))
FINITE_LOW = np.where(np.isfinite(LOW), LOW, -9.0)

GRADIENT_CASES = [
    GradientCase(contact_frame_vjp, (N,), surrogate=frame_with(axes_of(N)), name="random normals"),
    GradientCase(
        contact_frame_vjp,
        (np.array([[0.0, 1.0, 0.0], [0.05, -np.sqrt(1 - 0.0025), 0.0]]),),
        surrogate=frame_with(axes_of(np.array([[0.0, 1.0, 0.0], [0.05, -1.0, 0.0]]))),
        name="along y",
    ),
    GradientCase(
        grasp_matrix_vjp,
        (P, N),
        CENTER,
        surrogate=lambda p, n, **_: matrix_with(axes_of(N), CENTER["center"], CENTER["length"])(p, n),
        name="three contacts",
    ),
    GradientCase(equal_force_energy_vjp, (P, N), surrogate=lambda p, n: (lambda t: t @ t)(matrix_with(axes_of(N))(p, n)[:, :, 0].mean(axis=0))),
    GradientCase(project_ellipsoid_vjp, (1.3 * P, AXES), method="complex"),
    GradientCase(equation_vjp, (H, G, A, HIGH[:1], FINITE_LOW[1:], HIGH[1:]), step=1e-4, name="an equation and intervals"),
    GradientCase(solve_qp_vjp, (H, G, A, FINITE_LOW - 1, HIGH + 1), step=1e-4, name="intervals"),
    GradientCase(free_lower_vjp, (H, G, A, HIGH), step=1e-4, name="one-sided"),
    GradientCase(
        grasp_energy_vjp,
        (P, N, TARGETS),
        FRICTION,
        surrogate=value_with(axes_of(N), **FRICTION),
        step=1e-4,
        name="envelope: the program's value",
    ),
    GradientCase(
        grasp_energy_vjp,
        (P, N, TARGETS),
        FRICTION | {"mode": "kkt"},
        surrogate=value_with(axes_of(N), counted=False, **FRICTION),
        step=1e-4,
        name="kkt: the energy itself",
    ),
]  # fmt: skip


@given(seed=st.integers(0, 999))
def test_frames_are_right_handed_and_orthonormal(seed):
    n = np.random.default_rng(seed).standard_normal((5, 3))
    n[0] = [0, 1, 0]
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    frame = np.stack([n, *contact_frame(n)], axis=1)
    np.testing.assert_allclose(frame @ frame.swapaxes(1, 2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frame), 1, rtol=1e-12)


def test_wrench_of_a_force_is_the_force_and_its_torque():
    forces = RNG.standard_normal((3, 3))
    first, second = contact_frame(N)
    world = forces[:, :1] * N + forces[:, 1:2] * first + forces[:, 2:] * second
    wrench = np.einsum("mij,mj->i", grasp_matrix(P, N, **CENTER), forces)
    np.testing.assert_allclose(wrench[:3], world.sum(axis=0), atol=1e-14)
    arm = (P - np.array(CENTER["center"])) / CENTER["length"]
    np.testing.assert_allclose(wrench[3:], np.cross(arm, world).sum(axis=0), atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 5), rows=st.integers(2, 8))
def test_solutions_satisfy_the_optimality_conditions(seed, n, rows):
    h, g, a, low, high = random_program(np.random.default_rng(seed), n, rows)
    result = solve_qp_admm(h, g, a, low, high)
    assert result.converged
    x, y, image = result.x, result.dual, a @ result.x
    np.testing.assert_allclose(h @ x + g + a.T @ y, 0, atol=1e-6)
    assert (image >= low - 1e-6).all()
    assert (image <= high + 1e-6).all()
    assert (y[(image > low + 1e-4) & (low < high)] >= -1e-6).all()
    assert (y[(image < high - 1e-4) & (low < high)] <= 1e-6).all()


def test_iterations_alone_reach_what_polishing_gives():
    polished = solve_qp_admm(H, G, A, LOW, HIGH)
    plain = solve_qp_admm(H, G, A, LOW, HIGH, polish=False, tol=1e-10)
    assert plain.converged
    assert plain.n_iter >= polished.n_iter
    np.testing.assert_allclose(plain.x, polished.x, atol=1e-8)
    np.testing.assert_allclose(plain.dual, polished.dual, atol=1e-7)
    for rho in (1e-3, 50.0):
        np.testing.assert_allclose(solve_qp_admm(H, G, A, LOW, HIGH, rho=rho).x, polished.x, atol=1e-8)


def test_one_iteration_is_the_three_updates():
    rho, sigma = 0.3, 1e-3
    rng = np.random.default_rng(0)
    x, z, y = rng.standard_normal(4), rng.standard_normal(6), rng.standard_normal(6)
    from refnorm.solvers._bilevel_grasp_qp import _linear_map

    matrix, offset = _linear_map((H, G, A, LOW, HIGH), rho, sigma)
    got = matrix @ np.concatenate([x, z, y]) + offset
    y = y + rho * (A @ x - z)
    x = np.linalg.solve(H + sigma * np.eye(4) + rho * A.T @ A, sigma * x - G + A.T @ (rho * z - y))
    np.testing.assert_allclose(got, np.concatenate([x, A @ x + y / rho, y]), rtol=1e-10, atol=1e-12)


def test_a_limit_or_the_callback_ends_the_iterations():
    options = {"polish": False, "tol": 0.0}
    short = solve_qp_admm(H, G, A, LOW, HIGH, max_iter=30, **options)
    assert (short.n_iter, short.converged, len(short.history["primal"])) == (30, False, 2)
    asked = solve_qp_admm(H, G, A, LOW, HIGH, callback=lambda progress: True, **options)
    assert (asked.n_iter, asked.converged) == (25, False)


OPPOSITE = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
LIFT = np.array([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(("strength", "energy"), [(2.0, 1.0), (0.5, 0.0), (1.5, 0.25)])
def test_two_fingers_that_lift_by_hand(strength, energy):
    found = grasp_energy(OPPOSITE, -OPPOSITE, LIFT, friction=0.5, strength=strength, penalty=0.0)
    np.testing.assert_allclose(found, [energy], atol=1e-9)


def test_the_penalty_lowers_the_force_by_hand():
    # Minimize (k - 2 mu f)^2 + 0.02 f^2 with k = 1/2, mu = 1/2: f = 0.5 / 1.02.
    found = grasp_energy(OPPOSITE, -OPPOSITE, LIFT, friction=0.5)
    np.testing.assert_allclose(found, [(0.5 - 0.5 / 1.02) ** 2], rtol=1e-9)
    h, rows, low, high = friction_qp(grasp_matrix(OPPOSITE, -OPPOSITE), LIFT[0], friction=0.5)
    x = solve_qp(h, np.zeros(7), rows, low, high)
    np.testing.assert_allclose(x[[0, 3]], 0.5 / 1.02, rtol=1e-9)
    np.testing.assert_allclose(x[6], 0.5, rtol=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_forces_lie_in_their_cones_and_more_friction_never_hurts(seed):
    rng = np.random.default_rng(seed)
    p, n = project_ellipsoid(rng.standard_normal((3, 3)), AXES)
    values = []
    for friction in (0.2, 0.6, 1.0):
        h, rows, low, high = friction_qp(grasp_matrix(p, n), TARGETS[0], friction=friction)
        x = solve_qp(h, np.zeros(10), rows, low, high)
        forces = x[:-1].reshape(3, 3)
        assert (np.linalg.norm(forces[:, 1:], axis=1) <= friction * forces[:, 0] / np.cos(np.pi / 8) + 1e-9).all()
        assert ((forces[:, 0] >= 0.01 - 1e-9) & (forces[:, 0] <= 1 + 1e-9)).all()
        values.append(float(x @ h @ x))
    assert values[0] >= values[1] - 1e-9 >= values[2] - 2e-9


def test_groups_ask_for_forces():
    matrix = grasp_matrix(P, N)
    h, rows, low, high = friction_qp(matrix, TARGETS[0], friction=0.5, groups=[((0, 2), 1.5)])
    x = solve_qp(h, np.zeros(10), rows, low, high)
    assert x[0] + x[6] >= 1.5 - 1e-9


def test_moving_object_and_center_together_changes_nothing():
    shift = np.array([0.3, -2.0, 1.0])
    moved = grasp_energy(P + shift, N, TARGETS, center=tuple(shift), **FRICTION)
    np.testing.assert_allclose(moved, grasp_energy(P, N, TARGETS, **FRICTION), rtol=1e-7, atol=1e-10)


@given(seed=st.integers(0, 999))
def test_projected_points_lie_on_the_ellipsoid_with_inward_unit_normals(seed):
    p, n = project_ellipsoid(np.random.default_rng(seed).standard_normal((4, 3)), AXES)
    np.testing.assert_allclose(((p / AXES) ** 2).sum(axis=1), 1, rtol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(n, axis=1), 1, rtol=1e-13)
    assert ((n * p).sum(axis=1) < 0).all()


def test_optimization_lowers_the_energy_and_keeps_the_best():
    start = np.random.default_rng(53).standard_normal((3, 3))

    def surface(p):
        return project_ellipsoid_vjp(p, AXES)

    def energy(p, n):
        return grasp_energy_vjp(p, n, TARGETS[:2], **FRICTION)

    result = optimize_grasp(start, surface, energy, steps=25, learning_rate=0.1)
    assert result.energy <= result.history["energy"].min()
    assert result.energy < 0.2 * result.history["energy"][0]
    np.testing.assert_allclose(energy(result.positions, result.normals)[0].sum(), result.energy, rtol=1e-9)
    ended = optimize_grasp(start, surface, energy, callback=lambda progress: True)
    assert (ended.n_iter, ended.converged) == (1, False)
    rest = optimize_grasp(OPPOSITE, lambda p: project_ellipsoid_vjp(p, np.ones(3)), equal_force_energy_vjp)
    assert (rest.n_iter, rest.converged, rest.energy) == (1, True, 0.0)


def test_slope_of_the_whole_step_is_that_of_the_energy_on_the_surface():
    p = P.copy()

    def on_surface(p):
        return float(equal_force_energy(*project_ellipsoid(p, AXES)))

    (q, n), back_surface = project_ellipsoid_vjp(p, AXES)
    _, back = equal_force_energy_vjp(q, n)
    slope = back_surface(back(np.array(1.0)))[0]
    for i, j in ((0, 0), (1, 2), (2, 1)):
        step = np.zeros((3, 3))
        step[i, j] = 1e-6
        np.testing.assert_allclose(
            slope[i, j], (on_surface(p + step) - on_surface(p - step)) / 2e-6, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype):
    p, n, targets = (array.astype(dtype) for array in (P, N, TARGETS[:2]))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    program = tuple(array.astype(dtype) for array in (H, G, A, LOW, HIGH))
    for array in (p, n, targets, *program):
        array.setflags(write=False)
    energy, pullback = grasp_energy_vjp(p, n, targets, mode="kkt", **FRICTION)
    x, back = solve_qp_vjp(*program)
    assert {a.dtype for a in (energy, *pullback(energy), x, *back(x))} == {np.dtype(dtype)}


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: contact_frame(2 * N), ValueError, "normals: expected vectors of length 1, got a length that is off by 1"),
        (lambda: contact_frame(np.zeros((0, 3))), ValueError, "normals: expected at least one contact, got 0"),
        (lambda: grasp_matrix(P[:2], N), ValueError, r"positions: expected shape \(3, 3\), got \(2, 3\)"),
        (lambda: grasp_matrix(P, N, length=0.0), ValueError, "length: expected a finite number > 0, got 0.0"),
        (lambda: solve_qp(EYE, np.ones(2), EYE, np.ones(2), np.zeros(2)), ValueError, "lower: expected bounds not above upper, got 2 that are"),
        (lambda: solve_qp(EYE, np.ones(3), EYE, np.zeros(2), np.ones(2)), ValueError, r"quadratic: expected shape \(3, 3\), got \(2, 2\)"),
        (lambda: solve_qp(EYE, np.ones(2), EYE, np.zeros(2), np.ones(2), rho=0.0), ValueError, "rho: expected a finite number > 0, got 0.0"),
        (lambda: grasp_energy(P, N, TARGETS, friction=1.5), ValueError, r"friction: expected a number in \(0.0, 1.0\], got 1.5"),
        (lambda: grasp_energy(P, N, TARGETS[:, :5], friction=0.5), ValueError, r"targets: expected shape \(5, 6\), got \(5, 5\)"),
        (lambda: grasp_energy(P, N, TARGETS, friction=0.5, mode="exact"), ValueError, "mode: expected one of 'envelope', 'kkt', got 'exact'"),
        (lambda: grasp_energy(P, N, TARGETS, friction=0.5, groups=[((0,), 2.0)]), ValueError, r"groups: expected a force of at most 1 for each contact, got 2.0 for \[0\]"),
        (lambda: friction_qp(grasp_matrix(P, N), TARGETS[0], friction=0.5, n_facets=2), ValueError, "n_facets: expected an integer >= 3, got 2"),
        (lambda: project_ellipsoid(0 * P, AXES), ValueError, "positions: expected no point at 0, got at least one"),
        (lambda: project_ellipsoid(P, -AXES), ValueError, "axes: expected numbers > 0"),
        (lambda: optimize_grasp(P, None, None, steps=0), ValueError, "steps: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("strength", [np.nan, np.inf])
def test_a_strength_that_is_not_finite_is_named(strength):
    with pytest.raises(ValueError, match=f"strength: expected a finite number, got {strength}"):
        grasp_energy(OPPOSITE, -OPPOSITE, LIFT, friction=0.5, strength=strength)
