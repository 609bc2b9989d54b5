"""Implicit differentiation: gradients through the solution of an optimization problem.

F(x(theta), theta) = 0,  A = -dF/dx,  B = dF/dtheta:     A dx = B dtheta,   dtheta = B^T u with A^T u = dx
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._conditions import FixedPoint, FunctionVjp, RootProblem
from refnorm.solvers._linear_solvers import (
    DEFAULT_TOL,
    LinearSolveResult,
    MatVec,
    bicgstab,
    cg,
    gmres,
    normal_cg,
)
from refnorm.solvers._projections import soft_threshold

METHOD = Method(
    title="Efficient and Modular Implicit Differentiation",
    authors="Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-López, Pedregosa, Vert",
    year=2021,
    arxiv="2105.15183",
    functions=(
        "root_vjp",
        "root_jvp",
        "custom_root",
        "custom_fixed_point",
        "Root",
        "FixedPoint",
        "Stationary",
        "GradientStep",
        "NewtonStep",
        "ProximalGradient",
        "ProjectedGradient",
        "MirrorDescent",
        "QPKkt",
        "cg",
        "normal_cg",
        "gmres",
        "bicgstab",
        "ridge",
        "lasso",
    ),
    chapter="solvers/implicit_differentiation",
)

LU_LARGEST = 200
"""Up to this many unknowns ``"auto"`` forms the matrix, one product a column, and factors it."""

LINEAR_SOLVERS = ("auto", "lu", "cg", "normal_cg", "gmres", "bicgstab")


@dataclass(frozen=True)
class SolveInfo:
    """How the linear system of an implicit derivative was solved.

    Parameters
    ----------
    n_iter
        Iterations; 1 for a factorization.
    converged
        Whether the solver met its tolerance.
    residual
        Norm of ``A^T u - cotangent`` (or of ``A dx - B dtheta``), computed afresh at the end, with the
        shift of ``ridge`` where there is one.
    """

    n_iter: int
    converged: bool
    residual: float


def root_vjp(
    problem: RootProblem,
    x: AnyArray,
    theta: tuple[Any, ...],
    cotangent: AnyArray,
    *,
    linear_solver: str = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    ridge: float = 0.0,
) -> tuple[tuple[Any, ...], SolveInfo]:
    """Pull a cotangent of a solution back to the parameters of its optimality condition.

    Parameters
    ----------
    problem : RootProblem
        The condition ``F(x, theta) = 0``.
    x : float array
        Solution, whatever solver found it.
    theta : tuple
        Parameters of the condition.
    cotangent : array of the shape of ``x``
    linear_solver : ``"auto"``, ``"lu"``, ``"cg"``, ``"normal_cg"``, ``"gmres"`` or ``"bicgstab"``
        ``"auto"`` is LU up to 200 unknowns; above, CG if the problem is symmetric, else GMRES.
    tol : float >= 0, optional
        Relative tolerance; 1e-10 for float64 and 1e-5 for float32 by default.
    max_iter : int >= 1, optional
        Ten times the number of unknowns by default.
    ridge : float >= 0
        Solve with ``A + ridge I``, or ``A - ridge I`` where the problem's ``orientation`` is -1; for a
        singular ``A``. With ``"normal_cg"`` it is Tikhonov's term ``A A^T + ridge I``.

    Returns
    -------
    cotangents : tuple, one entry a parameter
    info : SolveInfo

    Raises
    ------
    TypeError, ValueError
        If a shape differs, a number is outside its range, or LU finds a singular matrix.

    Notes
    -----
    ``A^T u = cotangent`` with ``A = -dF/dx``, then ``dtheta = (dF/dtheta)^T u``. One ``u`` serves every
    parameter. An iterative solver that fails says so in ``info.converged``.

    References
    ----------
    Blondel et al. (2021), arXiv 2105.15183, section 2.1.

    Examples
    --------
    >>> from refnorm.solvers import Stationary
    >>> problem = Stationary(lambda x, a: (a * x - 1, lambda u: (a * u, x * u)))
    >>> root_vjp(problem, np.array([0.5]), (np.array([2.0]),), np.array([1.0]))[0]
    (array([-0.25]),)
    """
    x, theta = _root(x, theta)
    dx = np.asarray(cotangent, dtype=x.dtype)
    _checks.shape(dx, "cotangent", x.shape)
    pullback = _linearize(problem, x, theta)

    def transposed(v: AnyArray) -> AnyArray:
        return -np.ravel(pullback(v.reshape(x.shape))[0])

    u, info = _solve(
        transposed,
        lambda: _forward(problem, x, theta, transposed),
        np.ravel(dx),
        problem=problem,
        linear_solver=linear_solver,
        tol=tol,
        max_iter=max_iter,
        ridge=ridge,
    )
    return tuple(pullback(u.reshape(x.shape))[1:]), info


def root_jvp(
    problem: RootProblem,
    x: AnyArray,
    theta: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    linear_solver: str = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    ridge: float = 0.0,
) -> tuple[AnyArray, SolveInfo]:
    """Push tangents of the parameters forward to the solution of an optimality condition.

    Parameters
    ----------
    tangents : tuple
        One entry a parameter, of its shape; ``None`` stands for 0.
    problem, x, theta, linear_solver, tol, max_iter, ridge
        As in :func:`root_vjp`.

    Returns
    -------
    dx : array of the shape of ``x``
    info : SolveInfo

    Raises
    ------
    TypeError, ValueError
        As :func:`root_vjp`.

    Notes
    -----
    ``A dx = B dtheta``. Forward products that the problem does not offer (``jvp_x``, ``jvp_theta``) are
    made from one backward product an unknown.

    References
    ----------
    Blondel et al. (2021), arXiv 2105.15183, section 2.1.

    Examples
    --------
    >>> from refnorm.solvers import Stationary
    >>> problem = Stationary(lambda x, a: (a * x - 1, lambda u: (a * u, x * u)))
    >>> root_jvp(problem, np.array([0.5]), (np.array([2.0]),), (np.array([4.0]),))[0]
    array([-1.])
    """
    x, theta = _root(x, theta)
    if len(tangents) != len(theta):
        _checks.fail("tangents", f"{len(theta)} entries", len(tangents))
    for number, (tangent, parameter) in enumerate(zip(tangents, theta, strict=True)):
        if tangent is not None:
            _checks.shape(np.asarray(tangent), f"tangents[{number}]", np.shape(parameter))
    pullback = _linearize(problem, x, theta)

    def transposed(v: AnyArray) -> AnyArray:
        return -np.ravel(pullback(v.reshape(x.shape))[0])

    jvp_theta = getattr(problem, "jvp_theta", None)
    if jvp_theta is not None:
        filled = [
            np.zeros_like(parameter) if tangent is None else tangent
            for tangent, parameter in zip(tangents, theta, strict=True)
        ]
        right = np.ravel(jvp_theta(x, *theta, *filled))
    else:
        # Entry i of B dtheta is <B^T e_i, dtheta>.
        right = np.array([_inner(pullback(unit.reshape(x.shape))[1:], tangents) for unit in np.eye(x.size)])
    forward = _forward(problem, x, theta, transposed)
    dx, info = _solve(
        forward,
        lambda: transposed,
        right.astype(x.dtype),
        problem=problem,
        linear_solver=linear_solver,
        tol=tol,
        max_iter=max_iter,
        ridge=ridge,
    )
    return dx.reshape(x.shape), info


@dataclass(frozen=True)
class ImplicitPullback:
    """Pullback of a solver, ``dx -> (dx0, *dtheta)``; what :func:`custom_root` returns.

    Parameters
    ----------
    residual_norm
        Norm of the condition at the solver's result.
    is_root
        Whether that is at most ``residual_tol``; if not, the derivatives are as wrong as the solution.

    Notes
    -----
    A call raises ``ArithmeticError`` if the linear solver fails; :meth:`with_info` returns what it has.
    """

    residual_norm: float
    is_root: bool
    solve: Callable[[AnyArray], tuple[tuple[Any, ...], SolveInfo]]
    start: Any

    def __call__(self, dx: AnyArray) -> tuple[Any, ...]:
        cotangents, info = self.with_info(dx)
        if not info.converged:
            raise ArithmeticError(
                f"linear_solver: expected convergence, got residual {info.residual:.2e} after {info.n_iter} iterations"
            )
        return cotangents

    def with_info(self, dx: AnyArray) -> tuple[tuple[Any, ...], SolveInfo]:
        """Return the cotangents, converged or not, and how the linear system was solved."""
        dtheta, info = self.solve(dx)
        # The solution does not depend on where the solver began.
        dx0 = None if self.start is None else np.zeros_like(self.start)
        return (dx0, *dtheta), info


def custom_root(
    solver: Callable[..., Any],
    problem: RootProblem,
    *,
    linear_solver: str = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    ridge: float = 0.0,
    residual_tol: float = 1e-6,
) -> Callable[..., tuple[AnyArray, ImplicitPullback]]:
    """Give any solver a pullback, by the condition that its result satisfies.

    Parameters
    ----------
    solver : callable
        ``solver(x0, *theta)`` returns the solution, or a record with the solution in its field ``x``.
    problem : RootProblem
        The condition ``F(x, theta) = 0``.
    linear_solver, tol, max_iter, ridge
        As in :func:`root_vjp`.
    residual_tol : float >= 0
        Largest norm of the condition at the result for which the pullback's ``is_root`` is true.

    Returns
    -------
    callable
        ``(x0, *theta) -> (x, pullback)``; the pullback maps ``dx`` to ``(dx0, *dtheta)``, where ``dx0`` is 0
        (``None`` if ``x0`` is).

    Raises
    ------
    ValueError
        If a number is outside its range or ``linear_solver`` is not known.

    References
    ----------
    Blondel et al. (2021), arXiv 2105.15183, section 2.2.

    Examples
    --------
    >>> from refnorm.solvers import Stationary
    >>> problem = Stationary(lambda x, a: (a * x - 1, lambda u: (a * u, x * u)))
    >>> reciprocal_vjp = custom_root(lambda x0, a: 1 / a, problem)
    >>> x, pullback = reciprocal_vjp(None, np.array([2.0]))
    >>> x, pullback(np.array([1.0])), pullback.is_root
    (array([0.5]), (None, array([-0.25])), True)
    """
    _checks.one_of(linear_solver, "linear_solver", LINEAR_SOLVERS)
    _checks.non_negative(ridge, "ridge")
    _checks.non_negative(residual_tol, "residual_tol")

    def solve_vjp(x0: AnyArray | None, *theta: Any) -> tuple[AnyArray, ImplicitPullback]:
        found = solver(x0, *theta)
        x = _checks.float_array(getattr(found, "x", found), "solver")
        norm = float(np.linalg.norm(problem.residual(x, *theta)))
        return x, ImplicitPullback(
            residual_norm=norm,
            is_root=norm <= residual_tol,
            solve=lambda dx: root_vjp(
                problem,
                x,
                theta,
                dx,
                linear_solver=linear_solver,
                tol=tol,
                max_iter=max_iter,
                ridge=ridge,
            ),
            start=x0,
        )

    return solve_vjp


def custom_fixed_point(
    solver: Callable[..., Any], map_vjp: FunctionVjp, **options: Any
) -> Callable[..., tuple[AnyArray, ImplicitPullback]]:
    """Give the solver of a fixed-point equation a pullback, by the map whose fixed point it finds.

    Parameters
    ----------
    solver : callable
        As in :func:`custom_root`.
    map_vjp : callable
        ``map_vjp(x, *theta) -> (value, pullback)``.
    **options
        Those of :func:`custom_root`.

    Returns
    -------
    callable, as from :func:`custom_root`

    Raises
    ------
    ValueError
        As :func:`custom_root`.

    Examples
    --------
    Heron's map ``(x + a / x) / 2`` has the fixed point ``sqrt(a)``.

    >>> def heron_vjp(x, a):
    ...     return (x + a / x) / 2, lambda u: ((1 - a / x**2) / 2 * u, u / (2 * x))
    >>> root_vjp = custom_fixed_point(lambda x0, a: np.sqrt(a), heron_vjp)
    >>> root_vjp(None, np.array([4.0]))[1](np.array([1.0]))
    (None, array([0.25]))
    """
    return custom_root(solver, FixedPoint(map_vjp), **options)


def ridge(features: Array[F], target: Array[F], penalty: Array[F] | float) -> Array[F]:
    """Return the minimiser of ``1/2 |features w - target|^2 + penalty/2 |w|^2``.

    Parameters
    ----------
    features : array (n, d)
    target : array (n,)
    penalty : number >= 0

    Returns
    -------
    array (d,)

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs, the penalty is negative, or it is too small to make the solution
        unique.

    Notes
    -----
    ``(features^T features + penalty I) w = features^T target``, factored in float64.

    References
    ----------
    Hoerl, Kennard (1970), Technometrics 12, 55-67.

    Examples
    --------
    >>> ridge(np.eye(2), np.array([2.0, 4.0]), 1.0)
    array([1., 2.])
    """
    return ridge_vjp(features, target, penalty)[0]


def ridge_vjp(features: Array[F], target: Array[F], penalty: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`ridge` and its pullback ``dw -> (dfeatures, dtarget, dpenalty)``.

    It is :func:`root_vjp` for the stationarity condition, written out.
    """
    x, y, amount, dtype = _regression(features, target, penalty)
    try:
        factor = _cholesky(x.T @ x + amount * np.eye(x.shape[1]))
    except np.linalg.LinAlgError:
        _checks.fail("penalty", "a number large enough for a unique solution", float(amount))
    w = _cholesky_solve(factor, x.T @ y)
    residual = y - x @ w

    def pullback(dw: Array[F]) -> tuple[AnyArray, AnyArray, AnyArray]:
        # H w = X^T y with H = X^T X + penalty I. With H u = dw, <dw, .> of its differential,
        # H dw = dX^T (y - X w) - X^T dX w + X^T dy - dpenalty w, is u against the right-hand side.
        u = _cholesky_solve(factor, np.asarray(dw, dtype=np.float64))
        dx = np.outer(residual, u) - np.outer(x @ u, w)
        return dx.astype(dtype), (x @ u).astype(dtype), np.asarray(-(u @ w), dtype=dtype)

    return w.astype(dtype), pullback


def lasso(
    features: Array[F],
    target: Array[F],
    penalty: Array[F] | float,
    *,
    tol: float = 1e-12,
    max_iter: int = 10_000,
) -> Array[F]:
    """Return the minimiser of ``1/2 |features w - target|^2 + penalty |w|_1``.

    Parameters
    ----------
    features : array (n, d)
    target : array (n,)
    penalty : number >= 0
    tol : float > 0
        Largest violation of the optimality condition, relative to ``max |features^T target|``.
    max_iter : int >= 1
        Sweeps over the coordinates.

    Returns
    -------
    array (d,)

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs, a number is outside its range, or ``max_iter`` sweeps do not suffice.

    Notes
    -----
    Coordinate descent in float64. When a sweep leaves the signs as they were, the linear equations of that
    support are solved, and their solution is taken if it satisfies the condition: the digits of a direct
    solver, where the solution is unique.

    References
    ----------
    Tibshirani (1996), Journal of the Royal Statistical Society B 58; Friedman, Hastie, Tibshirani (2010),
    Journal of Statistical Software 33, 1-22, for the sweep.

    Examples
    --------
    >>> lasso(np.eye(3), np.array([3.0, -0.5, -2.0]), 1.0)
    array([ 2.,  0., -1.])
    """
    return lasso_vjp(features, target, penalty, tol=tol, max_iter=max_iter)[0]


def lasso_vjp(
    features: Array[F],
    target: Array[F],
    penalty: Array[F] | float,
    *,
    tol: float = 1e-12,
    max_iter: int = 10_000,
) -> tuple[Array[F], Pullback]:
    """Return :func:`lasso` and its pullback ``dw -> (dfeatures, dtarget, dpenalty)``.

    It is :func:`root_vjp` for the proximal gradient condition, written out: on the support the signs
    stay, off it the weights do. The pullback raises ``ValueError`` if the columns of the support are
    linearly dependent, where the solution is not unique.
    """
    x, y, amount, dtype = _regression(features, target, penalty)
    _checks.positive(tol, "tol")
    w = _coordinate_descent(x, y, float(amount), tol, _checks.whole(max_iter, "max_iter", low=1))
    residual = y - x @ w
    support = w != 0

    def pullback(dw: Array[F]) -> tuple[AnyArray, AnyArray, AnyArray]:
        # On the support: X_S^T (X_S w_S - y) + penalty sign(w_S) = 0, a linear system with a constant
        # sign vector; as in ridge_vjp otherwise.
        columns = x[:, support]
        u = np.zeros_like(w)
        try:
            factor = _cholesky(columns.T @ columns)
        except np.linalg.LinAlgError:
            _checks.fail("features", "linearly independent columns on the support", f"{columns.shape[1]} dependent")
        u[support] = _cholesky_solve(factor, np.asarray(dw, dtype=np.float64)[support])
        dx = np.outer(residual, u) - np.outer(x @ u, w)
        return dx.astype(dtype), (x @ u).astype(dtype), np.asarray(-(np.sign(w) @ u), dtype=dtype)

    return w.astype(dtype), pullback


def _coordinate_descent(x: AnyArray, y: AnyArray, penalty: float, tol: float, max_iter: int) -> AnyArray:
    gram, pull = x.T @ x, x.T @ y
    limit = tol * np.abs(pull).max(initial=0.0)

    def solves(w: AnyArray) -> bool:
        # pull - gram w is penalty sign(w) where w is not 0, and within +-penalty elsewhere.
        slope = pull - gram @ w
        on, off = np.abs(slope - penalty * np.sign(w)), np.abs(slope) - penalty
        return bool(np.where(w != 0, on, off).max(initial=0.0) <= limit)

    w, signs = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for _ in range(max_iter):
        for j in np.flatnonzero(np.diag(gram) > 0):
            rest = pull[j] - gram[j] @ w + gram[j, j] * w[j]
            w[j] = soft_threshold(rest, penalty) / gram[j, j]
        if (np.sign(w) == signs).all():
            exact, support = np.zeros_like(w), w != 0
            try:
                factor = _cholesky(gram[np.ix_(support, support)])
                exact[support] = _cholesky_solve(factor, (pull - penalty * signs)[support])
            except np.linalg.LinAlgError:
                exact = w
            if (np.sign(exact) == signs).all() and solves(exact):
                return exact
        if solves(w):
            return w
        signs = np.sign(w)
    return _checks.fail("max_iter", "enough sweeps to reach tol", max_iter)


def _cholesky(matrix: AnyArray) -> AnyArray:
    """Factor of a positive matrix; one that is singular to rounding raises ``LinAlgError``."""
    if not matrix.size:
        return matrix
    factor: AnyArray = scipy.linalg.cho_factor(matrix)[0]
    reciprocal = scipy.linalg.lapack.dpocon(factor, np.abs(matrix).sum(axis=0).max())[0]
    if not reciprocal > np.finfo(np.float64).eps:
        raise np.linalg.LinAlgError(f"reciprocal condition number {reciprocal:.1e}")
    return factor


def _cholesky_solve(factor: AnyArray, right: AnyArray) -> AnyArray:
    return np.asarray(scipy.linalg.cho_solve((factor, False), right)) if right.size else right


def _regression(features: Any, target: Any, penalty: Any) -> tuple[AnyArray, AnyArray, AnyArray, Any]:
    features = _checks.float_array(features, "features", ndim=2)
    target = _checks.float_array(target, "target")
    _checks.same_dtype("features", features, target=target)
    _checks.shape(target, "target", features.shape[:1])
    _checks.finite(features, "features")
    _checks.finite(target, "target")
    if isinstance(penalty, np.ndarray):
        _checks.same_dtype("features", features, penalty=_checks.float_array(penalty, "penalty"))
        _checks.shape(penalty, "penalty", ())
    _checks.non_negative(float(penalty), "penalty")
    wide = np.float64
    return features.astype(wide), target.astype(wide), np.asarray(penalty, dtype=wide), features.dtype


def _root(x: Any, theta: Any) -> tuple[AnyArray, tuple[Any, ...]]:
    if not isinstance(theta, (tuple, list)):
        _checks.fail_type("theta", "a tuple of parameters", type(theta).__name__)
    return _checks.float_array(x, "x"), tuple(theta)


def _linearize(problem: RootProblem, x: AnyArray, theta: tuple[Any, ...]) -> Callable[[AnyArray], tuple[Any, ...]]:
    """The map ``u -> ((dF/dx)^T u, *(dF/dtheta)^T u)`` at one point."""
    residual_vjp = getattr(problem, "residual_vjp", None)
    if residual_vjp is not None:
        pullback: Callable[[AnyArray], tuple[Any, ...]] = residual_vjp(x, *theta)[1]
        return pullback
    return lambda u: (problem.vjp_x(x, *theta, u), *problem.vjp_theta(x, *theta, u))


def _forward(problem: RootProblem, x: AnyArray, theta: tuple[Any, ...], transposed: MatVec) -> MatVec:
    """The product with ``A``: the problem's own, or by symmetry, or from ``A^T`` one unknown at a time."""
    jvp_x = getattr(problem, "jvp_x", None)
    if jvp_x is not None:
        return lambda v: -np.ravel(jvp_x(x, *theta, v.reshape(x.shape)))
    if getattr(problem, "symmetric", False):
        return transposed
    matrix = _dense(transposed, x.size)
    return lambda v: np.asarray(v @ matrix)


def _dense(matvec: MatVec, size: int) -> AnyArray:
    columns = [np.asarray(matvec(unit), dtype=np.float64) for unit in np.eye(size)]
    return np.stack(columns, axis=1) if columns else np.zeros((0, 0))


def _solve(
    matvec: MatVec,
    rmatvec: Callable[[], MatVec],
    b: AnyArray,
    *,
    problem: RootProblem,
    linear_solver: str,
    tol: float | None,
    max_iter: int | None,
    ridge: float,
) -> tuple[AnyArray, SolveInfo]:
    """Solve with a matrix known by its products; ``rmatvec`` makes the transposed one, if it is needed."""
    _checks.one_of(linear_solver, "linear_solver", LINEAR_SOLVERS)
    _checks.non_negative(ridge, "ridge")
    if linear_solver == "auto":
        large = "cg" if getattr(problem, "symmetric", False) else "gmres"
        linear_solver = "lu" if b.size <= LU_LARGEST else large
    # The shift has to move the spectrum away from 0, and A lies on the side that the problem declares:
    # for a minimum's gradient A = -Hessian, and a positive shift would meet its eigenvalues.
    shift = ridge * getattr(problem, "orientation", 1)

    def shifted(v: AnyArray) -> AnyArray:
        return np.asarray(matvec(v) + shift * v)

    if linear_solver == "lu":
        found = _lu(shifted, b, DEFAULT_TOL[b.dtype.name] if tol is None else tol)
    elif linear_solver == "normal_cg":
        found = normal_cg(matvec, b, rmatvec=rmatvec(), tol=tol, max_iter=max_iter, ridge=ridge)
        return found.x, SolveInfo(found.n_iter, found.converged, float(np.linalg.norm(matvec(found.x) - b)))
    else:
        solver = {"cg": cg, "gmres": gmres, "bicgstab": bicgstab}[linear_solver]
        found = solver(shifted, b, tol=tol, max_iter=max_iter)
    return found.x, SolveInfo(found.n_iter, found.converged, float(np.linalg.norm(shifted(found.x) - b)))


def _lu(matvec: MatVec, b: AnyArray, tol: float) -> LinearSolveResult:
    matrix = _dense(matvec, b.size)
    if not b.size:
        return LinearSolveResult(b, 0, True, np.zeros(1))
    factor, pivots, zero_pivot = scipy.linalg.lapack.dgetrf(matrix)
    size = np.abs(matrix).sum(axis=0).max()
    reciprocal = 0.0 if zero_pivot else scipy.linalg.lapack.dgecon(factor, size)[0]
    if np.isfinite(matrix).all() and not reciprocal > np.finfo(np.float64).eps:
        _checks.fail(
            "problem",
            "an invertible derivative of the residual in x (or ridge > 0)",
            f"reciprocal condition number {reciprocal:.1e}",
        )
    right = b.astype(np.float64)
    solution = scipy.linalg.lapack.dgetrs(factor, pivots, right)[0].astype(b.dtype)
    norms = np.array([np.linalg.norm(right), np.linalg.norm(matrix @ solution - right)])
    # A backward-stable factorization leaves a residual of rounding size against |A| |x|.
    rounding = b.size * np.finfo(b.dtype).eps * size * float(np.linalg.norm(solution))
    return LinearSolveResult(solution, 1, bool(norms[1] <= max(tol * norms[0], rounding)), norms)


def _inner(cotangents: tuple[Any, ...], tangents: tuple[Any, ...]) -> float:
    return float(
        sum(
            np.sum(np.asarray(cotangent) * np.asarray(tangent))
            for cotangent, tangent in zip(cotangents, tangents, strict=True)
            if cotangent is not None and tangent is not None
        )
    )
