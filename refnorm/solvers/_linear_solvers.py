"""Matrix-free linear solvers: all that they know of a matrix is its product with a vector.

Each solves ``A x = b`` and stops when ``|A x - b| <= max(tol |b|, atol)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.sparse import linalg as sparse

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F

MatVec: TypeAlias = Callable[[AnyArray], AnyArray]

DEFAULT_TOL = {"float64": 1e-10, "float32": 1e-5}
"""A few digits above the rounding error of the dtype."""

ITERATIONS_PER_UNKNOWN = 10
"""Default ``max_iter`` per unknown: in exact arithmetic 1 suffices, rounding delays it."""

GMRES_RESTART = 20


@dataclass(frozen=True)
class LinearSolveResult:
    """Outcome of a linear solver.

    Parameters
    ----------
    x
        The last iterate, of shape (d,).
    n_iter
        Number of iterations.
    converged
        Whether the stopping rule was met.
    history
        Norm of the residual before the first and after each iteration, (n_iter + 1,). CG on the normal
        equations reports the norm of the equations' own residual.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: Array[np.float64]


def cg(
    matvec: MatVec,
    b: Array[F],
    *,
    x0: Array[F] | None = None,
    tol: float | None = None,
    atol: float = 0.0,
    max_iter: int | None = None,
) -> LinearSolveResult:
    """Solve ``A x = b`` by conjugate gradients, for a symmetric definite ``A``.

    Parameters
    ----------
    matvec : callable
        Returns ``A v`` for a vector ``v`` (d,).
    b : array (d,)
        Right-hand side.
    x0 : array (d,), optional
        Start; 0 by default.
    tol : float >= 0, optional
        Relative tolerance; 1e-10 for float64 and 1e-5 for float32 by default.
    atol : float >= 0
        Absolute tolerance.
    max_iter : int >= 1, optional
        ``10 d`` by default.

    Returns
    -------
    LinearSolveResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a number is outside its range.

    Notes
    -----
    ``A`` may as well be negative definite: every sign in the recursion appears twice. A direction with
    ``p^T A p = 0`` ends the run unconverged.

    References
    ----------
    Hestenes, Stiefel (1952), Journal of Research of the National Bureau of Standards 49, 409-436.

    Examples
    --------
    >>> matrix = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> result = cg(lambda v: matrix @ v, np.array([1.0, 2.0]))
    >>> result.x.round(6), result.n_iter, result.converged
    (array([0.090909, 0.636364]), 2, True)
    """
    right, x, limit, max_iter = _start(b, x0, tol, atol, max_iter)
    residual = right - _product(matvec, x)
    direction = residual
    square = float(residual @ residual)
    history = [np.sqrt(square)]
    while not history[-1] <= limit and len(history) <= max_iter:
        image = _product(matvec, direction)
        curvature = float(direction @ image)
        if curvature == 0 or not np.isfinite(curvature):
            break
        # The step that minimises along the direction; the next direction is A-orthogonal to all before.
        step = square / curvature
        x = x + step * direction
        residual = residual - step * image
        square, previous = float(residual @ residual), square
        history.append(np.sqrt(square))
        direction = residual + square / previous * direction
    return LinearSolveResult(x, len(history) - 1, bool(history[-1] <= limit), np.array(history))


def normal_cg(
    matvec: MatVec,
    b: Array[F],
    *,
    rmatvec: MatVec,
    x0: Array[F] | None = None,
    tol: float | None = None,
    atol: float = 0.0,
    max_iter: int | None = None,
    ridge: float = 0.0,
) -> LinearSolveResult:
    """Solve ``A x = b`` by conjugate gradients on ``(A^T A + ridge I) x = A^T b``.

    Parameters
    ----------
    matvec, rmatvec : callables
        Return ``A v`` and ``A^T v``.
    ridge : float >= 0
        Tikhonov term, for a singular ``A``.
    b, x0, tol, atol, max_iter
        As in :func:`cg`; the tolerance is that of the normal equations.

    Returns
    -------
    LinearSolveResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a number is outside its range.

    Notes
    -----
    Any square ``A`` will do, at the price of its squared condition number.

    Examples
    --------
    >>> matrix = np.array([[0.0, 2.0], [-1.0, 0.0]])
    >>> normal_cg(lambda v: matrix @ v, np.array([2.0, 3.0]), rmatvec=lambda v: matrix.T @ v).x.round(6)
    array([-3.,  1.])
    """
    _checks.non_negative(ridge, "ridge")
    b = _checks.float_array(b, "b", ndim=1)

    def normal(v: AnyArray) -> AnyArray:
        return np.asarray(_product(rmatvec, _product(matvec, v)) + ridge * v)

    return cg(normal, _product(rmatvec, b), x0=x0, tol=tol, atol=atol, max_iter=max_iter)


def gmres(
    matvec: MatVec,
    b: Array[F],
    *,
    x0: Array[F] | None = None,
    tol: float | None = None,
    atol: float = 0.0,
    max_iter: int | None = None,
    restart: int = GMRES_RESTART,
) -> LinearSolveResult:
    """Solve ``A x = b`` by GMRES, for any invertible ``A``.

    Parameters
    ----------
    restart : int >= 1
        Iterations, and vectors stored, between restarts.
    matvec, b, x0, tol, atol, max_iter
        As in :func:`cg`; ``max_iter`` is rounded up to whole restarts.

    Returns
    -------
    LinearSolveResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a number is outside its range.

    References
    ----------
    Saad, Schultz (1986), SIAM Journal on Scientific and Statistical Computing 7, 856-869.

    Examples
    --------
    >>> matrix = np.array([[0.0, 2.0], [-1.0, 0.0]])
    >>> gmres(lambda v: matrix @ v, np.array([2.0, 3.0])).x.round(6)
    array([-3.,  1.])
    """
    b, x, limit, max_iter = _start(b, x0, tol, atol, max_iter)
    inner = min(_checks.whole(restart, "restart", low=1), max(b.size, 1))
    size = float(np.linalg.norm(b))
    history = [float(np.linalg.norm(b - _product(matvec, x)))]

    def record(relative: float) -> None:
        history.append(float(relative) * size)

    return _scipy(
        sparse.gmres,
        matvec,
        b,
        x,
        limit,
        history,
        recursive=True,
        maxiter=-(-max_iter // inner),
        restart=inner,
        callback=record,
        callback_type="pr_norm",
    )


def bicgstab(
    matvec: MatVec,
    b: Array[F],
    *,
    x0: Array[F] | None = None,
    tol: float | None = None,
    atol: float = 0.0,
    max_iter: int | None = None,
) -> LinearSolveResult:
    """Solve ``A x = b`` by stabilized biconjugate gradients: any ``A``, and a fixed number of vectors.

    Parameters, results and errors are those of :func:`cg`. The history costs one product an iteration.

    References
    ----------
    van der Vorst (1992), SIAM Journal on Scientific and Statistical Computing 13, 631-644.

    Examples
    --------
    >>> matrix = np.array([[2.0, 1.0], [-1.0, 2.0]])
    >>> bicgstab(lambda v: matrix @ v, np.array([4.0, 3.0])).x.round(6)
    array([1., 2.])
    """
    b, x, limit, max_iter = _start(b, x0, tol, atol, max_iter)
    history = [float(np.linalg.norm(b - _product(matvec, x)))]

    def record(iterate: AnyArray) -> None:
        history.append(float(np.linalg.norm(b - _product(matvec, iterate))))

    return _scipy(sparse.bicgstab, matvec, b, x, limit, history, recursive=False, maxiter=max_iter, callback=record)


def _scipy(
    solver: Any,
    matvec: MatVec,
    b: AnyArray,
    x: AnyArray,
    limit: float,
    history: list[float],
    *,
    recursive: bool,
    **options: Any,
) -> LinearSolveResult:
    """Run a solver of SciPy until the residual itself, not its recursion, is below the limit."""
    if not np.isfinite(history[0]):
        return LinearSolveResult(x, 0, False, np.array(history))
    operator = sparse.LinearOperator((b.size, b.size), matvec=lambda v: _product(matvec, np.ravel(v)), dtype=b.dtype)
    status, before = 0, np.inf
    while history[-1] > limit and status == 0 and history[-1] < before:
        before = history[-1]
        found, status = solver(operator, b, x0=x, rtol=0.0, atol=limit, **options)
        x = np.asarray(found, dtype=b.dtype)
        residual = float(np.linalg.norm(b - _product(matvec, x)))
        if recursive:
            history[-1] = residual
        elif history[-1] != residual:
            # The run ended in the middle of an iteration, after the last report.
            history.append(residual)
    return LinearSolveResult(x, len(history) - 1, bool(history[-1] <= limit), np.array(history))


def _start(
    b: AnyArray, x0: AnyArray | None, tol: float | None, atol: float, max_iter: int | None
) -> tuple[AnyArray, AnyArray, float, int]:
    b = _checks.float_array(b, "b", ndim=1)
    x = np.zeros_like(b) if x0 is None else _checks.float_array(x0, "x0")
    _checks.same_dtype("b", b, x0=x)
    _checks.shape(x, "x0", b.shape)
    relative = DEFAULT_TOL[b.dtype.name] if tol is None else tol
    _checks.non_negative(relative, "tol")
    _checks.non_negative(atol, "atol")
    if max_iter is None:
        max_iter = ITERATIONS_PER_UNKNOWN * max(b.size, 1)
    limit = max(relative * float(np.linalg.norm(b)), atol)
    return b, x, limit, _checks.whole(max_iter, "max_iter", low=1)


def _product(matvec: MatVec, v: AnyArray) -> AnyArray:
    image = np.asarray(matvec(v))
    _checks.shape(image, "matvec", v.shape)
    return image.astype(v.dtype, copy=False)
