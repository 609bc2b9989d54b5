"""Bilevel grasp synthesis: the forces that match a wrench by a small quadratic program, the contacts by its gradient.

lower:  min over forces f   |G f - k target|^2 + penalty |normal forces|^2      f in the friction cones
upper:  min over contacts   sum over targets of |G f* - k target|^2             d/dG = 2 (G f* - k target) f*^T
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="BODex: Scalable and Efficient Robotic Dexterous Grasp Synthesis Using Bilevel Optimization",
    authors="Chen, Ke, Wang",
    year=2024,
    arxiv="2412.16490",
    functions=(
        "QPResult",
        "GraspResult",
        "contact_frame",
        "grasp_matrix",
        "solve_qp_admm",
        "solve_qp",
        "friction_qp",
        "grasp_energy",
        "equal_force_energy",
        "project_ellipsoid",
        "optimize_grasp",
    ),
    chapter="solvers/bilevel_grasp_qp",
)

UNIT_TOLERANCE = 1e-6
"""Largest deviation of a normal's length from 1."""

ALMOST_PARALLEL = 0.99
"""Where a normal is closer to the y axis than this cosine, the frame is built from the z axis."""

RHO_STEP, RHO_LOW, RHO_HIGH = 5.0, 1e-3, 1e3
"""The penalty rho moves on a grid with this ratio, between these limits, as in the authors' code."""

POLISH_TOLERANCE = 1e-10
"""How far a polished point may violate the optimality conditions, relative to the size of its numbers."""

LARGEST_FORCE = 1.0
"""Upper bound of a normal force: the unit of force."""

MODES = ("envelope", "kkt")


def contact_frame(normals: Array[F]) -> tuple[Array[F], Array[F]]:
    """Return two tangents for every contact normal.

    Parameters
    ----------
    normals : array (m, 3)
        Unit vectors.

    Returns
    -------
    first, second : arrays (m, 3)
        ``normal, first, second`` is a right-handed orthonormal frame.

    Raises
    ------
    TypeError, ValueError
        If a normal is not of length 1.

    Notes
    -----
    ``a`` is the y axis (the z axis where the normal is almost parallel to y) projected on the tangent plane, and a
    constant for the pullback; ``first`` is ``a`` projected and normalized once more, ``second = normal x first``.

    References
    ----------
    Chen, Ke, Wang (2024), arXiv 2412.16490.

    Examples
    --------
    >>> contact_frame(np.array([[1.0, 0.0, 0.0]]))
    (array([[0., 1., 0.]]), array([[0., 0., 1.]]))
    """
    return contact_frame_vjp(normals)[0]


def contact_frame_vjp(normals: Array[F]) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`contact_frame` and its pullback ``(dfirst, dsecond) -> (dnormals,)``."""
    normals = _unit_normals(normals)
    axis = np.zeros_like(normals)
    steep = np.abs(normals[:, 1]) > ALMOST_PARALLEL
    axis[~steep, 1] = axis[steep, 2] = 1
    a = axis - _dot(axis, normals) * normals
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    # The second projection changes nothing in value; it is what the derivative goes through.
    along = _dot(a, normals)
    y = a - along * normals
    size = np.linalg.norm(y, axis=1, keepdims=True)
    first = y / size
    second = np.cross(normals, first)

    def pullback(cotangents: tuple[AnyArray, AnyArray]) -> tuple[AnyArray]:
        dfirst, dsecond = (np.asarray(c) for c in cotangents)
        # <d, n x t> = <t x d, n> = <d x n, t>
        dnormals = np.cross(first, dsecond)
        dfirst = dfirst + np.cross(dsecond, normals)
        dy = (dfirst - _dot(dfirst, first) * first) / size
        dnormals = dnormals - _dot(dy, normals) * a - along * dy
        return (dnormals.astype(normals.dtype),)

    return (first, second), pullback


def grasp_matrix(
    positions: Array[F], normals: Array[F], *, center: Any = (0.0, 0.0, 0.0), length: float = 1.0
) -> Array[F]:
    """Return the map from contact forces to the wrench on the object.

    Parameters
    ----------
    positions, normals : arrays (m, 3)
        Contact points, and unit normals that point into the object.
    center : three numbers
        Point about which torques are taken.
    length : float > 0
        Unit of length of the torque, which makes it comparable with the force.

    Returns
    -------
    array (m, 6, 3)
        Columns: unit forces along the normal and both tangents. Rows: force, then torque.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, a normal is not of length 1, or there is no contact.

    Notes
    -----
    A force v at p has the wrench ``(v, (p - center) / length x v)``.

    References
    ----------
    Chen, Ke, Wang (2024), arXiv 2412.16490.

    Examples
    --------
    >>> grasp_matrix(np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 0.0]]))[0]
    array([[ 1.,  0.,  0.],
           [ 0.,  1.,  0.],
           [ 0.,  0.,  1.],
           [ 0., -1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0.,  0.]])
    """
    return grasp_matrix_vjp(positions, normals, center=center, length=length)[0]


def grasp_matrix_vjp(
    positions: Array[F], normals: Array[F], *, center: Any = (0.0, 0.0, 0.0), length: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`grasp_matrix` and its pullback ``dmatrix -> (dpositions, dnormals)``."""
    positions, normals = _checks.float_array(positions, "positions", ndim=2), _unit_normals(normals)
    _checks.same_dtype("positions", positions, normals=normals)
    _checks.shape(positions, "positions", normals.shape)
    _checks.positive(length, "length")
    middle = np.asarray(center, dtype=positions.dtype)
    _checks.shape(middle, "center", (3,))
    (first, second), back_frame = contact_frame_vjp(normals)
    arm = ((positions - middle) / length)[:, None, :]
    forces = np.stack([normals, first, second], axis=1)
    matrix = np.concatenate([forces, np.cross(arm, forces)], axis=2).swapaxes(1, 2)

    def pullback(dmatrix: AnyArray) -> tuple[AnyArray, AnyArray]:
        dcolumns = np.asarray(dmatrix).swapaxes(1, 2)
        dforce, dtorque = dcolumns[..., :3], dcolumns[..., 3:]
        # <d, r x v> = <d x r, v> = <v x d, r>
        dv = dforce + np.cross(dtorque, arm)
        darm = np.cross(forces, dtorque).sum(axis=1)
        dnormals = dv[:, 0] + back_frame((dv[:, 1], dv[:, 2]))[0]
        return (darm / length).astype(positions.dtype), dnormals.astype(normals.dtype)

    return np.ascontiguousarray(matrix), pullback


@dataclass(frozen=True)
class QPResult:
    """Outcome of :func:`solve_qp_admm`.

    Parameters
    ----------
    x : array (n,)
    z : array (rows,)
        ``A x``, inside its bounds.
    dual : array (rows,)
        Multipliers: negative at a lower bound, positive at an upper bound.
    n_iter, converged, history
        Iterations of ADMM; whether the tolerance was met or the polished point is optimal; the residuals ``primal``
        and ``dual`` at every check.
    """

    x: AnyArray
    z: AnyArray
    dual: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def solve_qp_admm(
    quadratic: Array[F],
    linear: Array[F],
    constraints: Array[F],
    lower: Array[F],
    upper: Array[F],
    *,
    rho: float = 0.1,
    sigma: float = 1e-6,
    tol: float = 1e-8,
    max_iter: int = 20_000,
    check_every: int = 25,
    polish: bool = True,
    callback: Callback | None = None,
) -> QPResult:
    """Minimize ``x^T H x / 2 + g^T x`` with ``l <= A x <= u`` by a linear map and a clamp, again and again.

    Parameters
    ----------
    quadratic : array (n, n)
        Positive semidefinite H; only its symmetric part counts.
    linear : array (n,)
    constraints : array (rows, n)
        A.
    lower, upper : arrays (rows,)
        May be infinite; equal for an equation.
    rho : float > 0
        First penalty; it moves on a grid of factors 5 between 0.001 and 1000.
    sigma : float > 0
        Proximal term, which makes a singular H harmless.
    tol : float >= 0
        Largest residuals, times the square root of their number.
    max_iter, check_every : ints >= 1
        Iterations, and how many pass between two looks at the residuals.
    polish : bool
        At every check, solve the equations of the active rows, and stop if the point satisfies all optimality conditions.
    callback : callable, optional
        Told the residuals at every check; a true result ends the run.

    Returns
    -------
    QPResult
        In the dtype of the arguments; computed in float64.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit, a lower bound exceeds its upper bound, or an option is out of range.

    Notes
    -----
    With ``D = H + sigma I + rho A^T A``: ``y += rho (A x - z)``, ``x = D^-1 (sigma x - g + A^T (rho z - y))``,
    ``z = clip(A x + y / rho, l, u)``. The first two and the inside of the third are one matrix times (x, z, y).

    References
    ----------
    Bishop, Zhang, Gurumurthy, Tracy, Manchester (2023), arXiv 2311.18056 (ReLU-QP). Stellato et al. (2020), arXiv 1711.08013
    (OSQP: the residuals, the rule for rho and the polishing).

    Examples
    --------
    >>> result = solve_qp_admm(np.eye(2), np.array([-2.0, -0.5]), np.eye(2), np.zeros(2), np.ones(2))
    >>> result.x.round(9), result.dual.round(9), result.converged
    (array([1. , 0.5]), array([1., 0.]), True)
    """
    program, dtype = _program(quadratic, linear, constraints, lower, upper)
    for name, value in (("rho", rho), ("sigma", sigma)):
        _checks.positive(value, name)
    _checks.non_negative(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    check_every = _checks.whole(check_every, "check_every", low=1)
    h, g, a, low, high = program
    n, rows = len(g), len(low)
    state, maps = np.zeros(n + 2 * rows), {rho: _linear_map(program, rho, sigma)}
    monitor = Monitor("solve_qp_admm", callback=callback, hint="scale the problem")
    done, converged, stop = 0, False, False
    x, z, y = state[:n], state[n : n + rows], state[n + rows :]
    while done < max_iter and not (converged or stop):
        matrix, offset = maps[rho]
        for _ in range(min(check_every, max_iter - done)):
            state = matrix @ state + offset
            np.clip(state[n : n + rows], low, high, out=state[n : n + rows])
            done += 1
        x, z, y = state[:n], state[n : n + rows], state[n + rows :]
        primal = float(np.abs(a @ x - z).max(initial=0.0))
        dual = float(np.abs(h @ x + g + a.T @ y).max(initial=0.0))
        stop = monitor.record(primal=primal, dual=dual)
        converged = primal <= tol * np.sqrt(rows) and dual <= tol * np.sqrt(n)
        polished = _polished(program, z, y) if polish else None
        if polished is not None:
            (x, z, y), converged = polished, True
        elif not converged:
            rho = _next_rho(rho, primal, dual, program, x, z, y)
            if rho not in maps:
                maps[rho] = _linear_map(program, rho, sigma)
    return QPResult(
        x.astype(dtype), z.astype(dtype), y.astype(dtype), done, bool(converged), monitor.history()
    )  # fmt: skip


def solve_qp(
    quadratic: Array[F], linear: Array[F], constraints: Array[F], lower: Array[F], upper: Array[F], **options: Any
) -> Array[F]:
    """Return the minimizer that :func:`solve_qp_admm` finds; parameters and errors are the same.

    Notes
    -----
    The pullback differentiates the optimality conditions on the active rows. A row whose bound is met with a
    multiplier of 0 counts as inactive; there the minimizer has no derivative.

    References
    ----------
    Amos, Kolter (2017), arXiv 1703.00443, section 3.

    Examples
    --------
    >>> solve_qp(np.eye(2), np.array([-2.0, -0.5]), np.eye(2), np.zeros(2), np.ones(2)).round(9)
    array([1. , 0.5])
    """
    return solve_qp_vjp(quadratic, linear, constraints, lower, upper, **options)[0]


def solve_qp_vjp(
    quadratic: Array[F], linear: Array[F], constraints: Array[F], lower: Array[F], upper: Array[F], **options: Any
) -> tuple[Array[F], Pullback]:
    """Return :func:`solve_qp` and its pullback ``dx -> (dquadratic, dlinear, dconstraints, dlower, dupper)``.

    Where both bounds of a row are equal, each receives half of the equation's cotangent.
    """
    result = solve_qp_admm(quadratic, linear, constraints, lower, upper, **options)
    program, dtype = _program(quadratic, linear, constraints, lower, upper)
    h, _, a, low, high = program
    x, y = result.x.astype(np.float64), result.dual.astype(np.float64)
    # A multiplier that is rounding error belongs to a row that is met by chance.
    y = np.where(np.abs(y) <= POLISH_TOLERANCE * np.abs(y).max(initial=0.0), 0.0, y)
    active = np.flatnonzero(_active(program, result.z.astype(np.float64), y))

    def pullback(dx: AnyArray) -> tuple[AnyArray, ...]:
        # H dx + dH x + dg + A^T dy + dA^T y = 0 and A dx + dA x = db on the active rows. With the symmetric
        # matrix K of this system and K (u, v) = (dx, 0), the cotangents are read off from -<(u, v), right-hand side>.
        u, v = _solve_kkt(h, a[active], np.asarray(dx, dtype=np.float64), np.zeros(len(active)))
        da, db = np.zeros_like(a), np.zeros(len(a))
        da[active] = -(np.outer(v, x) + np.outer(y[active], u))
        db[active] = v
        at_low = np.where(low == high, 0.5, np.where(y < 0, 1.0, 0.0))
        found = (-(np.outer(u, x) + np.outer(x, u)) / 2, -u, da, at_low * db, (1 - at_low) * db)
        return tuple(array.astype(dtype) for array in found)

    return result.x, pullback


def friction_qp(
    matrix: Array[F],
    target: Array[F],
    *,
    friction: float,
    strength: float = 0.5,
    penalty: float = 0.01,
    n_facets: int = 8,
    min_force: float = 0.01,
    groups: Sequence[tuple[Sequence[int], float]] = (),
) -> tuple[Array[F], Array[F], Array[F], Array[F]]:
    """Return the quadratic program that matches one wrench with forces inside the friction cones.

    Parameters
    ----------
    matrix : array (m, 6, 3)
        As from :func:`grasp_matrix`.
    target : array (6,)
    friction : float in (0, 1]
    strength : float
        Factor k of the target.
    penalty : float >= 0
        On the squares of normal forces: spreads the load.
    n_facets : int >= 3
        Facets of the pyramid around each cone.
    min_force : float in [0, 1)
        Smallest normal force; the largest is 1.
    groups : sequence of (contacts, force)
        Smallest sum of the normal forces of some contacts.

    Returns
    -------
    quadratic, constraints, lower, upper
        For variables ``(forces, k)``; the linear term is 0.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, a shape does not fit, or a group cannot give its force.

    Notes
    -----
    ``H = M^T M + penalty`` on normal entries, ``M = [G, -target]``. The rows are ``sin(t) f1 + cos(t) f2 <= friction fn``
    for every facet, ``min_force <= fn <= 1``, ``k = strength``, and the groups.

    References
    ----------
    Chen, Ke, Wang (2024), arXiv 2412.16490.

    Examples
    --------
    >>> matrix = grasp_matrix(np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), np.array([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    >>> target = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    >>> [array.shape for array in friction_qp(matrix, target, friction=0.5)]
    [(7, 7), (19, 7), (19,), (19,)]
    """
    matrix = _checks.float_array(matrix, "matrix", ndim=3)
    _checks.shape(matrix, "matrix", (len(matrix), 6, 3))
    target = _checks.float_array(target, "target")
    _checks.same_dtype("matrix", matrix, target=target)
    _checks.shape(target, "target", (6,))
    constraints, lower, upper = _cones(len(matrix), friction, strength, n_facets, min_force, groups)
    _checks.non_negative(penalty, "penalty")
    wrench = np.column_stack([np.concatenate(list(matrix), axis=1), -target])
    quadratic = wrench.T @ wrench
    normal = 3 * np.arange(len(matrix))
    quadratic[normal, normal] += penalty
    return quadratic, *(array.astype(matrix.dtype) for array in (constraints, lower, upper))


def grasp_energy(
    positions: Array[F],
    normals: Array[F],
    targets: Array[F],
    *,
    friction: float,
    center: Any = (0.0, 0.0, 0.0),
    length: float = 1.0,
    strength: float = 0.5,
    penalty: float = 0.01,
    n_facets: int = 8,
    min_force: float = 0.01,
    groups: Sequence[tuple[Sequence[int], float]] = (),
    mode: str = "envelope",
) -> Array[F]:
    """Return how far the best contact forces stay from each target wrench.

    Parameters
    ----------
    positions, normals : arrays (m, 3)
        As in :func:`grasp_matrix`.
    targets : array (s, 6)
    center, length
        As in :func:`grasp_matrix`.
    friction, strength, penalty, n_facets, min_force, groups
        As in :func:`friction_qp`.
    mode : ``"envelope"`` or ``"kkt"``
        Of the pullback: forces held fixed, or moving with the contacts.

    Returns
    -------
    array (s,), dtype of ``positions``
        ``|G f - strength target|^2`` at the optimal forces; the penalty is not counted.

    Raises
    ------
    TypeError, ValueError
        As :func:`grasp_matrix` and :func:`friction_qp`.

    Notes
    -----
    With ``"envelope"`` the pullback is the exact gradient of the program's value, penalty included (the envelope
    theorem); with ``"kkt"`` it is that of the energy itself. They differ by a term of the size of the penalty.

    References
    ----------
    Chen, Ke, Wang (2024), arXiv 2412.16490.

    Examples
    --------
    >>> positions = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    >>> lift = np.array([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    >>> grasp_energy(positions, -positions, lift, friction=0.5, strength=2.0, penalty=0.0).round(9)
    array([1.])
    """
    return grasp_energy_vjp(
        positions, normals, targets, friction=friction, center=center, length=length, strength=strength,
        penalty=penalty, n_facets=n_facets, min_force=min_force, groups=groups, mode=mode,
    )[0]  # fmt: skip


def grasp_energy_vjp(
    positions: Array[F],
    normals: Array[F],
    targets: Array[F],
    *,
    friction: float,
    center: Any = (0.0, 0.0, 0.0),
    length: float = 1.0,
    strength: float = 0.5,
    penalty: float = 0.01,
    n_facets: int = 8,
    min_force: float = 0.01,
    groups: Sequence[tuple[Sequence[int], float]] = (),
    mode: str = "envelope",
) -> tuple[Array[F], Pullback]:
    """Return :func:`grasp_energy` and its pullback ``denergy -> (dpositions, dnormals, dtargets)``."""
    _checks.one_of(mode, "mode", MODES)
    matrix, back_matrix = grasp_matrix_vjp(positions, normals, center=center, length=length)
    targets = _checks.float_array(targets, "targets", ndim=2)
    _checks.same_dtype("positions", matrix, targets=targets)
    _checks.shape(targets, "targets", (len(targets), 6))
    m, wide, wished = len(matrix), matrix.astype(np.float64), targets.astype(np.float64)
    backs: list[Pullback | None] = []
    solutions = np.zeros((len(targets), 3 * m + 1))
    for number, target in enumerate(wished):
        program = friction_qp(
            wide, target, friction=friction, strength=strength, penalty=penalty, n_facets=n_facets,
            min_force=min_force, groups=groups,
        )  # fmt: skip
        arguments = (program[0], np.zeros(3 * m + 1), *program[1:])
        solutions[number], back = solve_qp_vjp(*arguments)
        backs.append(back if mode == "kkt" else None)
    flat = np.concatenate(list(wide), axis=1)
    forces, strengths = solutions[:, :-1], solutions[:, -1:]
    gaps = forces @ flat.T - strengths * wished
    energy = np.sum(gaps**2, axis=1).astype(matrix.dtype)

    def pullback(denergy: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        weight = 2 * np.asarray(denergy, dtype=np.float64)[:, None] * gaps
        dflat, dtargets = weight.T @ forces, -strengths * weight
        for number, back in enumerate(backs):
            if back is None:
                continue
            # The forces move as well: dE/dx = 2 M^T gap goes through the program, and H = M^T M + penalty.
            wrench = np.column_stack([flat, -wished[number]])
            dquadratic = back(wrench.T @ weight[number])[0]
            dwrench = 2 * wrench @ dquadratic
            dflat = dflat + dwrench[:, :-1]
            dtargets[number] -= dwrench[:, -1]
        dmatrix = np.stack(np.split(dflat, m, axis=1))
        return *back_matrix(dmatrix.astype(matrix.dtype)), dtargets.astype(targets.dtype)

    return energy, pullback


def equal_force_energy(
    positions: Array[F], normals: Array[F], *, center: Any = (0.0, 0.0, 0.0), length: float = 1.0
) -> Array[F]:
    """Return the squared wrench of equal forces along all normals: an energy that needs no program.

    Parameters and errors are those of :func:`grasp_matrix`.

    Returns
    -------
    array (), dtype of ``positions``

    Notes
    -----
    ``|mean over contacts of G[:, 0]|^2``. It is 0 for balanced normals, whatever friction could do.

    Examples
    --------
    >>> positions = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    >>> float(equal_force_energy(positions, -positions))
    0.0
    """
    return equal_force_energy_vjp(positions, normals, center=center, length=length)[0]


def equal_force_energy_vjp(
    positions: Array[F], normals: Array[F], *, center: Any = (0.0, 0.0, 0.0), length: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`equal_force_energy` and its pullback ``denergy -> (dpositions, dnormals)``."""
    matrix, back = grasp_matrix_vjp(positions, normals, center=center, length=length)
    total = matrix[:, :, 0].mean(axis=0)

    def pullback(denergy: AnyArray) -> tuple[AnyArray, AnyArray]:
        dmatrix = np.zeros_like(matrix)
        dmatrix[:, :, 0] = 2 * np.asarray(denergy) * total / len(matrix)
        dpositions, dnormals = back(dmatrix)
        return dpositions, dnormals

    return np.asarray(total @ total), pullback


def project_ellipsoid(positions: Array[F], axes: Array[F]) -> tuple[Array[F], Array[F]]:
    """Move points along their rays to an ellipsoid, and return them with the inward normals there.

    Parameters
    ----------
    positions : array (m, 3)
        None of them 0.
    axes : array (3,), > 0
        Half axes of the ellipsoid around 0.

    Returns
    -------
    positions, normals : arrays (m, 3)

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, a point is 0 or an axis is not positive.

    Examples
    --------
    >>> project_ellipsoid(np.array([[3.0, 0.0, 0.0]]), np.array([2.0, 1.0, 1.0]))
    (array([[2., 0., 0.]]), array([[-1., -0., -0.]]))
    """
    return project_ellipsoid_vjp(positions, axes)[0]


def project_ellipsoid_vjp(positions: Array[F], axes: Array[F]) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`project_ellipsoid` and its pullback ``(dpositions, dnormals) -> (dpositions, daxes)``."""
    p = _checks.float_array(positions, "positions", ndim=2)
    axes = _checks.float_array(axes, "axes")
    _checks.same_dtype("positions", p, axes=axes)
    _checks.shape(axes, "axes", (3,))
    _checks.shape(p, "positions", (len(p), 3))
    if not (axes.real > 0).all():
        _checks.fail("axes", "numbers > 0", axes)
    if not p.real.any(axis=1).all():
        _checks.fail("positions", "no point at 0", "at least one")
    size = np.sqrt(np.sum((p / axes) ** 2, axis=1, keepdims=True))
    q = p / size
    steep = q / axes**2
    length = np.sqrt(np.sum(steep**2, axis=1, keepdims=True))
    normals = -steep / length

    def pullback(cotangents: tuple[AnyArray, AnyArray]) -> tuple[AnyArray, AnyArray]:
        dq, dnormals = (np.asarray(c) for c in cotangents)
        dsteep = -(dnormals - _dot(dnormals, normals) * normals) / length
        dq = dq + dsteep / axes**2
        # size = |p / axes|: d size = (p / axes^2) dp / size - (p^2 / axes^3) daxes / size
        dsize = -_dot(dq, p) / size**2
        dp = dq / size + dsize * p / axes**2 / size
        daxes = -2 * (dsteep * q).sum(axis=0) / axes**3 - (dsize * p**2 / size).sum(axis=0) / axes**3
        return dp.astype(p.dtype), daxes.astype(axes.dtype)

    return (q, normals), pullback


@dataclass(frozen=True)
class GraspResult:
    """Outcome of :func:`optimize_grasp`.

    Parameters
    ----------
    positions, normals : arrays (m, 3)
        Of the best grasp on the way.
    energy : float
        Its energy.
    n_iter, converged, history
        Steps; whether the contacts came to rest; the ``energy`` and the largest ``move`` of every step.
    """

    positions: AnyArray
    normals: AnyArray
    energy: float
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


Surface: TypeAlias = Callable[[AnyArray], tuple[tuple[AnyArray, AnyArray], Pullback]]
"""From free points to ``((positions, normals), pullback)`` on the object, such as ``project_ellipsoid_vjp``."""

Energy: TypeAlias = Callable[[AnyArray, AnyArray], tuple[AnyArray, Pullback]]
"""From positions and normals to the energy (any shape) and its pullback to both."""


def optimize_grasp(
    positions: Array[F],
    surface: Surface,
    energy: Energy,
    *,
    steps: int = 100,
    learning_rate: float = 0.05,
    tol: float = 1e-6,
    callback: Callback | None = None,
) -> GraspResult:
    """Move contacts over an object's surface, down the gradient of an energy.

    Parameters
    ----------
    positions : array (m, 3)
        Contacts to begin with; they are projected first.
    surface : callable
        Projection on the surface with its pullback; its first entry is the cotangent of the points.
    energy : callable
        For example ``lambda p, n: grasp_energy_vjp(p, n, targets, friction=0.5)`` without the last cotangent.
    steps : int >= 1
    learning_rate : float > 0
    tol : float >= 0
        The run ends when no coordinate moves by more.
    callback : callable, optional
        Told energy and largest move of every step; a true result ends the run.

    Returns
    -------
    GraspResult

    Raises
    ------
    TypeError, ValueError
        If an option is out of range, and as ``surface`` and ``energy``.

    Notes
    -----
    ``p = project(p - learning_rate dE/dp)``, where dE/dp goes through the projection, so the turning of the normals is
    part of it. The energy need not fall in every step; the best grasp on the way is returned.

    References
    ----------
    Chen, Ke, Wang (2024), arXiv 2412.16490.

    Examples
    --------
    >>> axes = np.ones(3)
    >>> start = np.array([[1.0, 0.1, 0.0], [-1.0, 0.2, 0.0]])
    >>> result = optimize_grasp(start, lambda p: project_ellipsoid_vjp(p, axes), equal_force_energy_vjp, learning_rate=0.5)
    >>> bool(result.energy < 1e-6)
    True
    """
    steps = _checks.whole(steps, "steps", low=1)
    _checks.positive(learning_rate, "learning_rate")
    _checks.non_negative(tol, "tol")
    monitor = Monitor("optimize_grasp", callback=callback)
    (p, n), back_surface = surface(_checks.float_array(positions, "positions", ndim=2))
    best, converged = (np.inf, p, n), False
    for _ in range(steps):
        value, back_energy = energy(p, n)
        total = float(np.sum(value))
        if total < best[0]:
            best = (total, p, n)
        dp, dn = back_energy(np.ones_like(value))[:2]
        # p lies on the surface already: projecting it again changes nothing but gives the derivative there.
        slope = back_surface((dp, dn))[0]
        (moved, n), back_surface = surface(p - learning_rate * slope)
        move = float(np.abs(moved - p).max())
        p = moved
        if monitor.record(energy=total, move=move):
            break
        if move <= tol:
            converged = True
            break
    total = float(np.sum(energy(p, n)[0]))
    if total < best[0]:
        best = (total, p, n)
    return GraspResult(best[1], best[2], best[0], monitor.n_iter, converged, monitor.history())


def _dot(a: AnyArray, b: AnyArray) -> AnyArray:
    return np.asarray(np.sum(a * b, axis=-1, keepdims=True))


def _unit_normals(normals: AnyArray) -> AnyArray:
    normals = _checks.float_array(normals, "normals", ndim=2)
    _checks.shape(normals, "normals", (len(normals), 3))
    if not len(normals):
        _checks.fail("normals", "at least one contact", 0)
    off = np.abs(np.linalg.norm(normals, axis=1) - 1).max()
    if not off <= UNIT_TOLERANCE:
        _checks.fail("normals", "vectors of length 1", f"a length that is off by {off:.3g}")
    return normals


def _cones(
    m: int,
    friction: float,
    strength: float,
    n_facets: int,
    min_force: float,
    groups: Sequence[tuple[Sequence[int], float]],
) -> tuple[AnyArray, AnyArray, AnyArray]:
    _checks.in_range(friction, "friction", 0.0, 1.0, closed="right")
    _checks.in_range(min_force, "min_force", 0.0, LARGEST_FORCE, closed="left")
    n_facets = _checks.whole(n_facets, "n_facets", low=3)
    if not np.isfinite(strength):
        _checks.fail("strength", "a finite number", strength)
    angle = 2 * np.pi * np.arange(n_facets) / n_facets
    facets = np.stack([np.full(n_facets, -friction), np.sin(angle), np.cos(angle)], axis=1)
    normal = np.kron(np.eye(m), [[1.0, 0.0, 0.0]])
    sums = np.zeros((len(groups), 3 * m))
    for row, (contacts, force) in enumerate(groups):
        members = sorted({_checks.whole(contact, "groups", low=0, high=m - 1) for contact in contacts})
        if not force <= LARGEST_FORCE * len(members):
            _checks.fail("groups", f"a force of at most {LARGEST_FORCE:g} for each contact", f"{force} for {members}")
        sums[row] = normal[members].sum(axis=0)
    rows = np.concatenate([np.kron(np.eye(m), facets), normal, np.zeros((1, 3 * m)), sums])
    last = np.zeros((len(rows), 1))
    last[n_facets * m + m] = 1
    least = np.array([force for _, force in groups], dtype=np.float64)
    lower = [np.full(n_facets * m, -np.inf), np.full(m, min_force), np.array([strength]), least]
    upper = [np.zeros(n_facets * m), np.full(m, LARGEST_FORCE), np.array([strength]), np.full(len(groups), np.inf)]
    return np.hstack([rows, last]), np.concatenate(lower), np.concatenate(upper)


_Arrays: TypeAlias = tuple[AnyArray, AnyArray, AnyArray, AnyArray, AnyArray]


def _program(
    quadratic: AnyArray, linear: AnyArray, constraints: AnyArray, lower: AnyArray, upper: AnyArray
) -> tuple[_Arrays, Any]:
    h = _checks.float_array(quadratic, "quadratic", ndim=2)
    g, a = _checks.float_array(linear, "linear", ndim=1), _checks.float_array(constraints, "constraints", ndim=2)
    low, high = _checks.float_array(lower, "lower", ndim=1), _checks.float_array(upper, "upper", ndim=1)
    _checks.same_dtype("quadratic", h, linear=g, constraints=a, lower=low, upper=high)
    _checks.shape(h, "quadratic", (len(g), len(g)))
    _checks.shape(a, "constraints", (len(a), len(g)))
    _checks.shape(low, "lower", (len(a),))
    _checks.shape(high, "upper", (len(a),))
    for name, array in (("quadratic", h), ("linear", g), ("constraints", a)):
        _checks.finite(array, name)
    if not (low <= high).all():
        _checks.fail("lower", "bounds not above upper", f"{int((~(low <= high)).sum())} that are")
    wide = [array.astype(np.float64) for array in (h, g, a, low, high)]
    return ((wide[0] + wide[0].T) / 2, wide[1], wide[2], wide[3], wide[4]), h.dtype


def _linear_map(program: _Arrays, rho: float, sigma: float) -> tuple[AnyArray, AnyArray]:
    """Matrix and offset of one iteration on ``(x, z, y)``, before the clamp of z."""
    h, g, a, low, _ = program
    n, rows = len(g), len(low)
    inverse = np.linalg.inv(h + sigma * np.eye(n) + rho * a.T @ a)
    # y+ = y + rho (A x - z) is put into the other two lines.
    to_x = inverse @ np.hstack([sigma * np.eye(n) - rho * a.T @ a, 2 * rho * a.T, -a.T])
    eye = np.eye(rows)
    to_z = a @ to_x + np.hstack([a, -eye, eye / rho])
    to_y = np.hstack([rho * a, -rho * eye, eye])
    shift = -inverse @ g
    return np.vstack([to_x, to_z, to_y]), np.concatenate([shift, a @ shift, np.zeros(rows)])


def _next_rho(rho: float, primal: float, dual: float, program: _Arrays, x: AnyArray, z: AnyArray, y: AnyArray) -> float:
    """Move rho one step on its grid if the residuals are far out of balance."""
    h, _, a, _, _ = program
    tiny = np.finfo(np.float64).tiny

    def size(*vectors: AnyArray) -> float:
        return max(float(np.abs(v).max(initial=0.0)) for v in vectors) + tiny

    relative = (primal / size(a @ x, z)) / max(dual / size(h @ x, a.T @ y), tiny)
    wanted = float(np.clip(rho * np.sqrt(relative), RHO_LOW, RHO_HIGH))
    if wanted > RHO_STEP * rho and rho * RHO_STEP <= RHO_HIGH:
        return rho * RHO_STEP
    if wanted < rho / RHO_STEP and rho / RHO_STEP >= RHO_LOW:
        return rho / RHO_STEP
    return rho


def _active(program: _Arrays, z: AnyArray, y: AnyArray) -> AnyArray:
    _, _, _, low, high = program
    return np.asarray(((z <= low) & (y < 0)) | ((z >= high) & (y > 0)) | (low == high))


def _solve_kkt(h: AnyArray, rows: AnyArray, top: AnyArray, bottom: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Solve ``[[H, A^T], [A, 0]] (u, v) = (top, bottom)``, with the shortest solution if there are many."""
    n, k = len(top), len(rows)
    system = np.block([[h, rows.T], [rows, np.zeros((k, k))]])
    right = np.concatenate([top, bottom])
    found = np.linalg.lstsq(system, right, rcond=1e-13)[0]
    return found[:n], found[n:]


def _polished(program: _Arrays, z: AnyArray, y: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray] | None:
    """Solve the equations of the active rows; return the point if it satisfies all optimality conditions."""
    h, g, a, low, high = program
    active = _active(program, z, y)
    bound = np.where(y < 0, low, high)[active]
    x, multipliers = _solve_kkt(h, a[active], -g, bound)
    dual = np.zeros(len(low))
    dual[active] = multipliers
    image = a @ x
    limit = POLISH_TOLERANCE * (1 + max(float(np.abs(v).max(initial=0.0)) for v in (x, dual, g)))
    below, above = (low < high) & active & (y < 0), (low < high) & active & (y > 0)
    right = (
        np.abs(h @ x + g + a.T @ dual).max(initial=0.0) <= limit
        and (image >= low - limit).all()
        and (image <= high + limit).all()
        and (dual[below] <= limit).all()
        and (dual[above] >= -limit).all()
    )
    z = np.clip(image, low, high)
    z[active] = bound
    return (x, z, dual) if right else None
