"""Low-rank matrix completion by alternating minimization, with exact or sketched regressions.

right_j = argmin_v sum over observed (i, j) of (left_i . v - M_ij)^2,   right <- orthonormal,
and the same for the rows of left;  M ~ left right^T
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import svds

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Low Rank Matrix Completion via Robust Alternating Minimization in Nearly Linear Time",
    authors="Gu, Song, Yin, Zhang",
    year=2023,
    arxiv="2302.11068",
    functions=(
        "CompletionResult",
        "LeastSquaresResult",
        "complete_matrix",
        "count_sketch",
        "gaussian_sketch",
        "incoherence",
        "least_squares",
        "masked_regressions",
        "sketched_least_squares",
        "spectral_init",
        "srht_sketch",
        "subspace_distance",
    ),
    chapter="solvers/alternating_matrix_completion",
)

SKETCH_ROWS_PER_COLUMN = {"count": 8, "srht": 8, "gaussian": 4}
"""Default sketch size per unknown. Incoherent columns do with it; the guarantee for every matrix needs k rows
per unknown (count) or log k (SRHT)."""

DENSE_SVD_LARGEST = 1000
"""Largest smaller side of a matrix that is decomposed as a dense one."""

_SOLVERS = ("exact", "sketch")


@dataclass(frozen=True)
class CompletionResult:
    """Outcome of :func:`complete_matrix`: the completed matrix is ``left @ right.T``.

    Parameters
    ----------
    left
        Factor (m, k), which carries the scale.
    right
        Factor (n, k) with orthonormal columns.
    n_iter
        Number of iterations, of two half-steps each.
    converged
        Whether the residual, or its last relative change, is at most the tolerance.
    history
        Array ``residual``: norm of the error on the observed entries, relative to their norm.
    """

    left: AnyArray
    right: AnyArray
    n_iter: int
    converged: bool
    history: Mapping[str, Array[np.float64]]


@dataclass(frozen=True)
class LeastSquaresResult:
    """Outcome of :func:`sketched_least_squares`.

    Parameters
    ----------
    x
        Solution (k,).
    n_iter
        Number of conjugate-gradient steps after the sketched start.
    residual
        Norm of ``matrix x - right``.
    converged
        Whether the slope met the tolerance.
    """

    x: AnyArray
    n_iter: int
    residual: float
    converged: bool


def complete_matrix(
    rows: IntArray,
    columns: IntArray,
    values: Array[F],
    shape: tuple[int, int],
    *,
    rank: int,
    n_iter: int = 30,
    solver: str = "exact",
    accuracy: float = 1e-3,
    sketch: str = "count",
    sketch_size: int | None = None,
    clip: float | None = None,
    sample_splitting: bool = False,
    strict: bool = False,
    tol: float = 1e-9,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> CompletionResult:
    """Fill in a low-rank matrix of which some entries are known.

    Parameters
    ----------
    rows, columns : integer arrays (N,)
        Places of the known entries, each place once. For a mask: ``np.nonzero(mask)``.
    values : array (N,)
        The entries.
    shape : two ints
        Shape (m, n) of the matrix.
    rank : int from 1 to min(m, n)
    n_iter : int >= 1
        Largest number of iterations.
    solver : ``"exact"`` or ``"sketch"``
        How the regressions of a half-step are solved.
    accuracy : float in (0, 1)
        For ``"sketch"``: see :func:`sketched_least_squares`.
    sketch : ``"count"``, ``"gaussian"`` or ``"srht"``
    sketch_size : int >= rank, optional
        Rows of a sketch; ``8 rank`` (4 for ``"gaussian"``) by default.
    clip : float >= 1, optional
        Incoherence at which the start is clipped; see :func:`spectral_init`.
    sample_splitting : bool
        Use a new part of the entries in every half-step, as the theory does, instead of all in each.
    strict : bool
        Raise if a row or column has fewer than ``rank`` known entries; otherwise it gets the solution of
        smallest norm.
    tol : float >= 0
    rng : numpy.random.Generator
        Draws sketches and splits.
    callback : callable, optional
        Called with a :class:`Progress` after every iteration; a true result ends the run.

    Returns
    -------
    CompletionResult

    Raises
    ------
    TypeError, ValueError
        If shapes differ, a place lies outside or is given twice, a value is not finite, or a number is
        outside its range.
    Diverged
        If the residual grows without bound.

    Notes
    -----
    Work is done in float64. One iteration costs ``O(N k^2)`` for exact regressions and
    ``O(N k log(1/accuracy) + (m + n) k^3)`` for sketched ones.

    References
    ----------
    Gu, Song, Yin, Zhang (2023), arXiv 2302.11068; Jain, Netrapalli, Sanghavi (2013), arXiv 1212.0467,
    algorithm 2.

    Examples
    --------
    >>> matrix = np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 2.0])
    >>> known = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], bool)
    >>> result = complete_matrix(*np.nonzero(known), matrix[known], (3, 3), rank=1, n_iter=100,
    ...                          rng=np.random.default_rng(0))
    >>> (result.left @ result.right.T).round(6)
    array([[ 1., -1.,  2.],
           [ 2., -2.,  4.],
           [ 3., -3.,  6.]])
    """
    places, values, shape, rank = _problem(rows, columns, values, shape, rank)
    n_iter = _checks.whole(n_iter, "n_iter", low=1)
    _checks.one_of(solver, "solver", _SOLVERS)
    _checks.non_negative(tol, "tol")
    _checks.generator(rng)
    size = _sketch_size(sketch, sketch_size, rank)
    _checks.in_range(accuracy, "accuracy", 0.0, 1.0, closed="neither")
    if strict:
        _enough(places, shape, rank)
    known = values.astype(np.float64)
    # One part for the start and one for each half-step; without splitting all parts are the same.
    parts = [np.arange(len(known))] * (2 * n_iter + 1)
    if sample_splitting:
        parts = np.array_split(rng.permutation(len(known)), 2 * n_iter + 1)

    def half_step(factor: AnyArray, part: AnyArray, axis: int) -> AnyArray:
        here, other = places[axis][part], places[1 - axis][part]
        if solver == "exact":
            return masked_regressions(factor, here, other, known[part], shape[1 - axis])
        return _sketched_half_step(factor, here, other, known[part], shape[1 - axis], accuracy, sketch, size, rng)

    monitor = Monitor("complete_matrix", callback=callback, hint="use a smaller rank or more entries")
    norm = float(np.linalg.norm(known)) or 1.0
    left = spectral_init(places[0][parts[0]], places[1][parts[0]], known[parts[0]], shape, rank=rank, clip=clip)
    last = np.inf
    for step in range(n_iter):
        right = np.linalg.qr(half_step(np.linalg.qr(left)[0], parts[2 * step + 1], 0))[0]
        left = half_step(right, parts[2 * step + 2], 1)
        error = (left[places[0]] * right[places[1]]).sum(axis=1) - known
        residual = float(np.linalg.norm(error)) / norm
        stopped = monitor.record(residual=residual)
        converged = residual <= tol or abs(last - residual) <= tol * last < np.inf
        last = residual
        if converged or stopped:
            break
    return CompletionResult(
        left=left.astype(values.dtype),
        right=right.astype(values.dtype),
        n_iter=monitor.n_iter,
        converged=converged,
        history=monitor.history(),
    )


def masked_regressions(factor: Array[F], rows: IntArray, columns: IntArray, values: Array[F], n: int) -> Array[F]:
    """Solve one regression a column, on the entries that the column has: half of an iteration.

    Parameters
    ----------
    factor : array (m, k)
        The factor that is held fixed.
    rows, columns : integer arrays (N,)
        Places of the known entries.
    values : array (N,)
    n : int >= 1
        Number of columns.

    Returns
    -------
    array (n, k)
        Row ``j`` minimises ``sum (factor[rows] . v - values)^2`` over the entries of column ``j``; it is the
        solution of smallest norm if there are several, so 0 for a column without entries.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes differ or a place lies outside.

    Notes
    -----
    Normal equations, ``(sum u u^T) v = sum u M``, for all columns at once, solved by eigenvalues; those below
    ``k eps`` times the largest count as 0. For the other half exchange rows and columns.

    References
    ----------
    Jain, Netrapalli, Sanghavi (2013), arXiv 1212.0467, algorithm 2.

    Examples
    --------
    >>> left = np.array([[1.0], [2.0]])
    >>> masked_regressions(left, np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([3.0, 6.0, 5.0]), 3)
    array([[3.],
           [5.],
           [0.]])
    """
    factor = _checks.float_array(factor, "factor", ndim=2)
    values = _checks.float_array(values, "values", ndim=1)
    _checks.same_dtype("factor", factor, values=values)
    n = _checks.whole(n, "n", low=1)
    rows = _checks.integer_array(rows, "rows", low=0, high=len(factor) - 1)
    columns = _checks.integer_array(columns, "columns", low=0, high=n - 1)
    _checks.shape(rows, "rows", values.shape)
    _checks.shape(columns, "columns", values.shape)
    k = factor.shape[1]
    wide = factor.astype(np.float64)
    squares = (wide[:, :, None] * wide[:, None, :]).reshape(len(wide), k * k)
    where = (columns, rows)
    seen = scipy.sparse.csr_array((np.ones(len(values)), where), shape=(n, len(wide)))
    known = scipy.sparse.csr_array((values.astype(np.float64), where), shape=(n, len(wide)))
    eigenvalues, vectors = np.linalg.eigh((seen @ squares).reshape(n, k, k))
    kept = eigenvalues > k * np.finfo(np.float64).eps * eigenvalues[:, -1:]
    inverse = np.where(kept, 1 / np.where(kept, eigenvalues, 1), 0)
    projected = np.einsum("nki,nk->ni", vectors, known @ wide) * inverse
    return np.asarray(np.einsum("nki,ni->nk", vectors, projected), dtype=factor.dtype)


def _sketched_half_step(
    factor: AnyArray,
    rows: AnyArray,
    columns: AnyArray,
    values: AnyArray,
    n: int,
    accuracy: float,
    sketch: str,
    size: int,
    rng: np.random.Generator,
) -> AnyArray:
    order = np.argsort(columns, kind="stable")
    ends = np.searchsorted(columns[order], np.arange(n + 1))
    found = np.zeros((n, factor.shape[1]))
    for j in range(n):
        entries = order[ends[j] : ends[j + 1]]
        if len(entries):
            found[j] = _solve_by_sketch(factor[rows[entries]], values[entries], accuracy, sketch, size, rng).x
    return found


def sketched_least_squares(
    matrix: Array[F],
    right: Array[F],
    *,
    accuracy: float = 1e-3,
    sketch: str = "count",
    sketch_size: int | None = None,
    rng: np.random.Generator,
) -> LeastSquaresResult:
    """Solve a tall least-squares problem in time nearly linear in its entries.

    Parameters
    ----------
    matrix : array (N, k)
    right : array (N,)
    accuracy : float in (0, 1)
        The run ends when the slope in preconditioned coordinates is at most so many times ``|right|``.
    sketch : ``"count"``, ``"gaussian"`` or ``"srht"``
    sketch_size : int >= k, optional
        ``8 k`` (4 for ``"gaussian"``) by default; if it is at least N the problem is solved directly.
    rng : numpy.random.Generator

    Returns
    -------
    LeastSquaresResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite or a number is outside its range.

    Notes
    -----
    A random ``S`` with few rows keeps the geometry: with ``S matrix = Q R``, the columns of ``matrix R^-1`` are
    nearly orthonormal. So ``R^-1 Q^T S right`` is a good start and R a good preconditioner: conjugate
    gradients on the normal equations in ``z = R x`` gain a digit every few steps, whatever the condition of
    ``matrix``. At most ``log(1/accuracy) + 5`` steps are taken. If the sketch has lost rank, the solution
    of smallest norm is found directly.

    References
    ----------
    Rokhlin, Tygert (2008), Proceedings of the National Academy of Sciences 105, 13212-13217; Gu, Song, Yin,
    Zhang (2023), arXiv 2302.11068.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> matrix = rng.standard_normal((500, 3))
    >>> result = sketched_least_squares(matrix, matrix @ np.array([1.0, 2.0, 3.0]), rng=rng)
    >>> result.x.round(6)
    array([1., 2., 3.])
    """
    matrix, right = _system(matrix, right)
    _checks.in_range(accuracy, "accuracy", 0.0, 1.0, closed="neither")
    size = _sketch_size(sketch, sketch_size, matrix.shape[1])
    wide = matrix.astype(np.float64), right.astype(np.float64)
    result = _solve_by_sketch(*wide, accuracy, sketch, size, _checks.generator(rng))
    return LeastSquaresResult(result.x.astype(matrix.dtype), result.n_iter, result.residual, result.converged)


def _solve_by_sketch(
    matrix: AnyArray, right: AnyArray, accuracy: float, sketch: str, size: int, rng: np.random.Generator
) -> LeastSquaresResult:
    k = matrix.shape[1]
    joined = np.column_stack([matrix, right])
    sketched = joined if size >= len(matrix) else _SKETCHES[sketch](joined, size, rng)
    q, r = np.linalg.qr(sketched[:, :k])
    diagonal = np.abs(np.diag(r))
    if len(r) < k or diagonal.min() <= k * np.finfo(np.float64).eps * diagonal.max():
        x = np.linalg.lstsq(matrix, right, rcond=None)[0]
        return LeastSquaresResult(x, 0, float(np.linalg.norm(matrix @ x - right)), True)
    # R is small: its inverse costs k^3 once and makes every solve a product.
    inverse = scipy.linalg.solve_triangular(r, np.eye(k))
    z = q.T @ sketched[:, k]
    residual = right - matrix @ (inverse @ z)
    slope = inverse.T @ (matrix.T @ residual)
    direction, square = slope, float(slope @ slope)
    limit, steps = (accuracy * float(np.linalg.norm(right))) ** 2, 0
    most = 0 if size >= len(matrix) else math.ceil(math.log(1 / accuracy)) + 5
    while square > limit and steps < most:
        steps += 1
        image = matrix @ (inverse @ direction)
        length = square / float(image @ image)
        z = z + length * direction
        residual = residual - length * image
        slope = inverse.T @ (matrix.T @ residual)
        square, previous = float(slope @ slope), square
        direction = slope + square / previous * direction
    converged = square <= limit or size >= len(matrix)
    return LeastSquaresResult(inverse @ z, steps, float(np.linalg.norm(residual)), converged)


def count_sketch(matrix: Array[F], size: int, rng: np.random.Generator) -> Array[F]:
    """Add every row, with a random sign, to one of ``size`` rows drawn at random.

    Parameters
    ----------
    matrix : array (N, ...)
    size : int >= 1
        Number of rows of the sketch.
    rng : numpy.random.Generator

    Returns
    -------
    array (size, ...)

    Raises
    ------
    TypeError, ValueError
        If ``matrix`` is not a float array or ``size < 1``.

    Notes
    -----
    The result is ``S matrix`` with ``E[S^T S] = I``, at one addition for each entry.

    References
    ----------
    Clarkson, Woodruff (2013), arXiv 1207.6365.

    Examples
    --------
    >>> np.abs(count_sketch(np.array([[1.0], [2.0]]), 1, np.random.default_rng(0)))
    array([[3.]])
    """
    matrix, size = _sketched(matrix, size)
    target = _checks.generator(rng).integers(size, size=len(matrix))
    sign = rng.choice(np.array([-1, 1], matrix.dtype), size=len(matrix))
    sketch = scipy.sparse.csr_array((sign, (target, np.arange(len(matrix)))), shape=(size, len(matrix)))
    return np.asarray(sketch @ matrix.reshape(len(matrix), -1)).reshape(size, *matrix.shape[1:])


def gaussian_sketch(matrix: Array[F], size: int, rng: np.random.Generator) -> Array[F]:
    """Return ``S matrix`` with independent normal entries of variance ``1 / size`` in ``S``.

    Parameters, result and errors are those of :func:`count_sketch`.

    Notes
    -----
    The best sketch for its size, and the most expensive one: ``size`` operations for each entry.

    Examples
    --------
    >>> gaussian_sketch(np.ones((100, 2)), 3, np.random.default_rng(0)).shape
    (3, 2)
    """
    matrix, size = _sketched(matrix, size)
    sketch = _checks.generator(rng).standard_normal((size, len(matrix))) / np.sqrt(size)
    return np.asarray(np.tensordot(sketch.astype(matrix.dtype), matrix, axes=1))


def srht_sketch(matrix: Array[F], size: int, rng: np.random.Generator) -> Array[F]:
    """Flip signs at random, mix all rows by a Hadamard transform, and keep ``size`` of them.

    Parameters, result and errors are those of :func:`count_sketch`; rows of zeros bring N to a power of two,
    and ``size`` may not exceed that.

    Notes
    -----
    ``log2 N`` additions for each entry. The transform is orthogonal, so ``E[S^T S] = I``.

    References
    ----------
    Ailon, Chazelle (2009), SIAM Journal on Computing 39, 302-322.

    Examples
    --------
    >>> full = srht_sketch(np.eye(4), 4, np.random.default_rng(0))
    >>> (full.T @ full).round(12)
    array([[1., 0., 0., 0.],
           [0., 1., 0., 0.],
           [0., 0., 1., 0.],
           [0., 0., 0., 1.]])
    """
    matrix, size = _sketched(matrix, size)
    padded = 1 << max(len(matrix) - 1, 0).bit_length()
    _checks.whole(size, "size", low=1, high=padded)
    sign = _checks.generator(rng).choice(np.array([-1, 1], matrix.dtype), size=len(matrix))
    mixed = np.zeros((padded, math.prod(matrix.shape[1:])), matrix.dtype)
    mixed[: len(matrix)] = sign[:, None] * matrix.reshape(len(matrix), -1)
    half = 1
    while half < padded:
        # The butterfly of the Hadamard transform: sums and differences of entries `half` apart.
        pairs = mixed.reshape(padded // (2 * half), 2, half, -1)
        mixed = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(padded, -1)
        half *= 2
    kept = mixed[rng.choice(padded, size=size, replace=False)]
    return np.asarray(kept / np.sqrt(size).astype(matrix.dtype)).reshape(size, *matrix.shape[1:])


_SKETCHES = {"count": count_sketch, "gaussian": gaussian_sketch, "srht": srht_sketch}


def spectral_init(
    rows: IntArray,
    columns: IntArray,
    values: Array[F],
    shape: tuple[int, int],
    *,
    rank: int,
    clip: float | None = None,
) -> Array[F]:
    """Return the leading left singular vectors of the known entries, with zeros for the others.

    Parameters
    ----------
    rows, columns, values, shape, rank
        As in :func:`complete_matrix`.
    clip : float >= 1, optional
        Incoherence mu: entries above ``2 mu sqrt(rank / m)`` in size are set to 0, and the columns made
        orthonormal again.

    Returns
    -------
    array (m, rank), dtype of ``values``
        Orthonormal columns; the largest entry of each is positive.

    Raises
    ------
    TypeError, ValueError
        As :func:`complete_matrix`.

    Notes
    -----
    If entries are seen with probability p, the known ones divided by p are the matrix in expectation. The
    factor does not change the singular vectors.

    References
    ----------
    Jain, Netrapalli, Sanghavi (2013), arXiv 1212.0467, algorithm 2.

    Examples
    --------
    >>> spectral_init(np.array([0, 1]), np.array([0, 0]), np.array([3.0, 4.0]), (2, 1), rank=1)
    array([[0.6],
           [0.8]])
    """
    places, values, shape, rank = _problem(rows, columns, values, shape, rank)
    if clip is not None and not clip >= 1:
        _checks.fail("clip", "a number >= 1, or None", clip)
    known = scipy.sparse.csr_array((values.astype(np.float64), places), shape=shape)
    if min(shape) <= DENSE_SVD_LARGEST:
        left = np.linalg.svd(known.toarray(), full_matrices=False)[0][:, :rank]
    else:
        # The iteration needs a start, and a fixed one makes the result repeatable.
        start = np.random.default_rng(0).standard_normal(min(shape))
        left, singular, _ = svds(known, k=rank, v0=start)
        left = left[:, np.argsort(-singular)]
    if clip is not None:
        kept = np.abs(left) <= 2 * clip * math.sqrt(rank / shape[0])
        left = np.linalg.qr(np.where(kept, left, 0))[0]
    largest = np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0)
    return np.asarray(left * np.where(largest < 0, -1, 1), dtype=values.dtype)


def subspace_distance(first: Array[F], second: Array[F]) -> float:
    """Return the sine of the largest angle between the spans of two matrices' columns.

    Parameters
    ----------
    first, second : arrays (m, k)
        Linearly independent columns, not necessarily orthonormal.

    Returns
    -------
    float
        From 0, equal spans, to 1.

    Raises
    ------
    TypeError, ValueError
        If the shapes differ.

    Notes
    -----
    ``|(I - U U^T) V|_2`` with orthonormal bases U and V. The difference is formed before the norm is taken,
    so that small distances keep their digits.

    References
    ----------
    Jain, Netrapalli, Sanghavi (2013), arXiv 1212.0467.

    Examples
    --------
    >>> round(subspace_distance(np.array([[1.0], [0.0]]), np.array([[4.0], [3.0]])), 6)
    0.6
    """
    first, second = _tall(first, "first"), _tall(second, "second")
    _checks.same_dtype("first", first, second=second)
    _checks.shape(second, "second", first.shape)
    u, v = np.linalg.qr(first.astype(np.float64))[0], np.linalg.qr(second.astype(np.float64))[0]
    return min(1.0, float(np.linalg.norm(v - u @ (u.T @ v), 2)))


def incoherence(factor: Array[F]) -> float:
    """Return how unevenly the span of a matrix's columns rests on the rows.

    Parameters
    ----------
    factor : array (m, k)
        Linearly independent columns, not necessarily orthonormal.

    Returns
    -------
    float
        ``sqrt(m / k)`` times the largest row norm of an orthonormal basis: from 1, all rows matter alike, to
        ``sqrt(m / k)``, one row alone spans a direction.

    Raises
    ------
    TypeError, ValueError
        If ``factor`` is not a float matrix with at least as many rows as columns.

    References
    ----------
    Jain, Netrapalli, Sanghavi (2013), arXiv 1212.0467.

    Examples
    --------
    >>> round(incoherence(np.ones((4, 1))), 6), round(incoherence(np.eye(4, 1)), 6)
    (1.0, 2.0)
    """
    factor = _tall(factor, "factor")
    basis = np.linalg.qr(factor.astype(np.float64))[0]
    return float(np.sqrt(len(factor) / factor.shape[1] * np.square(basis).sum(axis=1).max()))


def least_squares(matrix: Array[F], right: Array[F]) -> Array[F]:
    """Return the minimiser of ``|matrix x - right|``, the exact regression of a half-step.

    Parameters
    ----------
    matrix : array (N, k), N >= k
        Linearly independent columns.
    right : array (N,)

    Returns
    -------
    array (k,)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite, or the columns are linearly dependent.

    Notes
    -----
    By a QR factorization in float64. With ``w = (A^T A)^-1 g`` for the cotangent ``g`` of the solution ``x``:
    ``dright = A w`` and ``dmatrix = (right - A x) w^T - A w x^T``.

    Examples
    --------
    >>> least_squares(np.array([[1.0], [1.0]]), np.array([1.0, 3.0]))
    array([2.])
    """
    return least_squares_vjp(matrix, right)[0]


def least_squares_vjp(matrix: Array[F], right: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`least_squares` and its pullback ``dx -> (dmatrix, dright)``."""
    matrix, right = _system(matrix, right)
    a, b = matrix.astype(np.float64), right.astype(np.float64)
    q, r = np.linalg.qr(a)
    diagonal = np.abs(np.diag(r))
    if len(a) < a.shape[1] or diagonal.min() <= len(a) * np.finfo(np.float64).eps * diagonal.max():
        _checks.fail("matrix", "linearly independent columns", f"rank below {a.shape[1]}")
    x = scipy.linalg.solve_triangular(r, q.T @ b)
    residual = b - a @ x

    def pullback(dx: Array[F]) -> tuple[AnyArray, AnyArray]:
        # A^T A x = A^T b, differentiated: A^T A dx = dA^T (b - A x) - A^T dA x + A^T db. With A^T A w = g the
        # product of g with dx is that of w with the right-hand side; and A w = Q R^-T g.
        half = scipy.linalg.solve_triangular(r, np.asarray(dx, dtype=np.float64), trans="T")
        w, image = scipy.linalg.solve_triangular(r, half), q @ half
        dmatrix = np.outer(residual, w) - np.outer(image, x)
        return dmatrix.astype(matrix.dtype), image.astype(matrix.dtype)

    return np.asarray(x, dtype=matrix.dtype), pullback


def _problem(
    rows: IntArray, columns: IntArray, values: Array[F], shape: tuple[int, int], rank: int
) -> tuple[tuple[AnyArray, AnyArray], AnyArray, tuple[int, int], int]:
    if not isinstance(shape, tuple) or len(shape) != 2:
        _checks.fail("shape", "two integers", shape)
    m, n = (_checks.whole(size, "shape", low=1) for size in shape)
    values = _checks.float_array(values, "values", ndim=1)
    _checks.not_empty(values, "values", (0,))
    _checks.finite(values, "values")
    rows = _checks.integer_array(rows, "rows", low=0, high=m - 1)
    columns = _checks.integer_array(columns, "columns", low=0, high=n - 1)
    _checks.shape(rows, "rows", values.shape)
    _checks.shape(columns, "columns", values.shape)
    flat = rows.astype(np.int64) * n + columns
    repeated = len(flat) - len(np.unique(flat))
    if repeated:
        _checks.fail("rows, columns", "every place once", f"{repeated} repeated")
    return (rows, columns), values, (m, n), _checks.whole(rank, "rank", low=1, high=min(m, n))


def _enough(places: tuple[AnyArray, AnyArray], shape: tuple[int, int], rank: int) -> None:
    for name, index, size in zip(("rows", "columns"), places, shape, strict=True):
        few = int((np.bincount(index, minlength=size) < rank).sum())
        if few:
            _checks.fail(name, f"at least {rank} entries in each", f"{few} with fewer")


def _sketch_size(sketch: str, size: int | None, k: int) -> int:
    _checks.one_of(sketch, "sketch", tuple(_SKETCHES))
    if size is None:
        return SKETCH_ROWS_PER_COLUMN[sketch] * k
    return _checks.whole(size, "sketch_size", low=k)


def _sketched(matrix: AnyArray, size: int) -> tuple[AnyArray, int]:
    matrix = _checks.float_array(matrix, "matrix", min_ndim=1)
    return matrix, _checks.whole(size, "size", low=1)


def _system(matrix: AnyArray, right: AnyArray) -> tuple[AnyArray, AnyArray]:
    matrix, right = _checks.float_array(matrix, "matrix", ndim=2), _checks.float_array(right, "right")
    _checks.same_dtype("matrix", matrix, right=right)
    _checks.not_empty(matrix, "matrix", (0, 1))
    _checks.shape(right, "right", matrix.shape[:1])
    _checks.finite(matrix, "matrix")
    _checks.finite(right, "right")
    return matrix, right


def _tall(matrix: AnyArray, name: str) -> AnyArray:
    matrix = _checks.float_array(matrix, name, ndim=2)
    if not 1 <= matrix.shape[1] <= len(matrix):
        _checks.fail(name, "at least as many rows as columns, and a column", f"shape {matrix.shape}")
    return matrix
