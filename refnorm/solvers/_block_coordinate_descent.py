"""Block coordinate descent: which block of coordinates to update next, and how.

scores:   |g_b|,   |g_b| / sqrt(L_b),   sum_i g_i^2 / D_i,   g_b^T H_b^-1 g_b       (H_b bounds the Hessian)
updates:  x_b - g_b / L_b,   x_b - H_b^-1 g_b,   exact solves by elimination along a forest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import scipy.special
from scipy.sparse import csgraph

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method
from refnorm.softmax import softmax
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._projections import soft_threshold

METHOD = Method(
    title="Let's Make Block Coordinate Descent Converge Faster",
    authors="Nutini, Laradji, Schmidt",
    year=2022,
    arxiv="1712.08859",
    functions=(
        "BlockDescentResult",
        "BlockProblem",
        "active_set_bound",
        "block_coordinate_descent",
        "block_scores",
        "forest_solve",
        "greedy_block",
        "greedy_forest",
        "greedy_quadratic_block",
        "grid_combs",
        "label_propagation_problem",
        "least_squares_problem",
        "logistic_problem",
        "partition_blocks",
        "prox_bcd_l1",
        "quadratic_problem",
        "softmax_problem",
    ),
    chapter="solvers/block_coordinate_descent",
)

SCHEMES = ("order", "sort", "average", "random")
SCORES = ("gs", "gsl", "gsd", "gsq")
RULES = ("cyclic", "random", "lipschitz", *SCORES, "mi")
UPDATES = ("gradient", "backtracking", "matrix", "newton", "forest")
PROX_RULES = ("cyclic", "gss", "gsr", "gsq")

RIDGE = 1e-12
"""Added to a Hessian block, relative to its mean diagonal entry, so that a singular one can be solved with."""

ARMIJO = 1e-4
HALVINGS = 60
"""2^-60 of a step is below the rounding error of the point it is added to."""

ROUNDING = 16
"""Differences of values below so many units of rounding say nothing."""

NEAR_ZERO = 1e-4
"""A coordinate this close to its bound, with the gradient pushing against it, is held by its own scale."""


class BlockProblem(Protocol):
    """A smooth function of ``x`` (n,) that knows its curvature block by block.

    It keeps an *image* of x, such as ``matrix @ x``, which a block update changes at the cost of the block.
    """

    @property
    def size(self) -> int:
        """Number of coordinates."""
        ...

    def image(self, x: AnyArray) -> AnyArray:
        """Return the image from scratch."""
        ...

    def moved(self, image: AnyArray, block: IntArray, step: AnyArray) -> AnyArray:
        """Return the image after ``x[block] += step``."""
        ...

    def value(self, image: AnyArray, x: AnyArray) -> float:
        """Return the function's value."""
        ...

    def gradient(self, image: AnyArray, x: AnyArray) -> AnyArray:
        """Return the whole gradient."""
        ...

    def hessian(self, image: AnyArray, x: AnyArray, block: IntArray) -> AnyArray:
        """Return the block of the Hessian at x."""
        ...

    def hessian_bound(self, block: IntArray) -> AnyArray:
        """Return a matrix that is at least as large as that block of the Hessian at every x."""
        ...


@dataclass(frozen=True)
class BlockDescentResult:
    """Outcome of :func:`block_coordinate_descent` or :func:`prox_bcd_l1`.

    Parameters
    ----------
    x
        The last iterate, (n,).
    n_iter
        Block updates.
    converged
        Whether the stopping rule was met.
    history
        One entry an update. ``objective``: after it; ``block``: number of the block, -1 where a function chose it.
        :func:`prox_bcd_l1` also notes ``support``, the number of non-zero coordinates.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


@dataclass(frozen=True, eq=False)
class _LinearModel:
    """``sum_examples loss(matrix @ x) + penalty / 2 |x|^2`` for a loss given by its three derivatives."""

    matrix: AnyArray
    penalty: float
    loss: Callable[[AnyArray], float]
    slope: Callable[[AnyArray], AnyArray]
    curvature: Callable[[AnyArray], AnyArray]
    largest_curvature: float

    @property
    def size(self) -> int:
        return int(self.matrix.shape[1])

    def image(self, x: AnyArray) -> AnyArray:
        return np.asarray(self.matrix @ x)

    def moved(self, image: AnyArray, block: IntArray, step: AnyArray) -> AnyArray:
        return np.asarray(image + self.matrix[:, block] @ step)

    def value(self, image: AnyArray, x: AnyArray) -> float:
        return float(self.loss(image) + self.penalty / 2 * (x @ x))

    def gradient(self, image: AnyArray, x: AnyArray) -> AnyArray:
        return np.asarray(self.matrix.T @ self.slope(image) + self.penalty * x)

    def hessian(self, image: AnyArray, x: AnyArray, block: IntArray) -> AnyArray:
        columns = self.matrix[:, block]
        return np.asarray(columns.T @ (self.curvature(image)[:, None] * columns)) + self.penalty * np.eye(len(block))

    def hessian_bound(self, block: IntArray) -> AnyArray:
        columns = self.matrix[:, block]
        return np.asarray(self.largest_curvature * (columns.T @ columns)) + self.penalty * np.eye(len(block))


@dataclass(frozen=True, eq=False)
class _Quadratic:
    """``x^T matrix x / 2 - <linear, x>``; the image is ``matrix @ x``."""

    matrix: Any
    linear: AnyArray

    @property
    def size(self) -> int:
        return len(self.linear)

    def image(self, x: AnyArray) -> AnyArray:
        return np.asarray(self.matrix @ x)

    def moved(self, image: AnyArray, block: IntArray, step: AnyArray) -> AnyArray:
        return np.asarray(image + self.matrix[:, block] @ step)

    def value(self, image: AnyArray, x: AnyArray) -> float:
        return float(x @ (image / 2 - self.linear))

    def gradient(self, image: AnyArray, x: AnyArray) -> AnyArray:
        return np.asarray(image - self.linear)

    def hessian(self, image: AnyArray, x: AnyArray, block: IntArray) -> AnyArray:
        return self.hessian_bound(block)

    def hessian_bound(self, block: IntArray) -> AnyArray:
        rows = self.matrix[block][:, block]
        return np.asarray(rows.toarray() if scipy.sparse.issparse(rows) else rows)


@dataclass(frozen=True, eq=False)
class _Softmax:
    """Summed cross-entropy of ``features @ x.reshape(d, classes)``; a coordinate is (feature, class)."""

    features: AnyArray
    onehot: AnyArray
    penalty: float

    @property
    def size(self) -> int:
        return int(self.features.shape[1] * self.onehot.shape[1])

    def image(self, x: AnyArray) -> AnyArray:
        return np.asarray(self.features @ x.reshape(self.features.shape[1], -1))

    def moved(self, image: AnyArray, block: IntArray, step: AnyArray) -> AnyArray:
        feature, label = self._pairs(block)
        logits = image.copy()
        np.add.at(logits.T, label, (self.features[:, feature] * step).T)
        return logits

    def value(self, image: AnyArray, x: AnyArray) -> float:
        # log sum exp(logits) - logit of the label
        loss = scipy.special.logsumexp(image, axis=1).sum() - (self.onehot * image).sum()
        return float(loss + self.penalty / 2 * (x @ x))

    def gradient(self, image: AnyArray, x: AnyArray) -> AnyArray:
        return np.asarray((self.features.T @ (softmax(image) - self.onehot)).ravel() + self.penalty * x)

    def hessian(self, image: AnyArray, x: AnyArray, block: IntArray) -> AnyArray:
        feature, label = self._pairs(block)
        columns, chance = self.features[:, feature], softmax(image)[:, label]
        same = (label[:, None] == label).astype(x.dtype)
        # sum_e a_ei a_ej p_ec ([c = c'] - p_ec')
        whole = same * ((columns * chance).T @ columns) - (columns * chance).T @ (columns * chance)
        return np.asarray(whole) + self.penalty * np.eye(len(block))

    def hessian_bound(self, block: IntArray) -> AnyArray:
        feature, label = self._pairs(block)
        columns, classes = self.features[:, feature], self.onehot.shape[1]
        # diag(p) - p p^T <= (I - 1 1^T / k) / 2 for every p (Böhning's bound).
        weight = ((label[:, None] == label) - 1 / classes) / 2
        return np.asarray(weight * (columns.T @ columns)) + self.penalty * np.eye(len(block))

    def _pairs(self, block: IntArray) -> tuple[AnyArray, AnyArray]:
        return block // self.onehot.shape[1], block % self.onehot.shape[1]


def least_squares_problem(matrix: Array[F], target: Array[F], *, penalty: float = 0.0) -> BlockProblem:
    """``|matrix x - target|^2 / 2 + penalty / 2 |x|^2``.

    Parameters
    ----------
    matrix : array (m, n)
    target : array (m,)
    penalty : float >= 0

    Returns
    -------
    BlockProblem

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs or the penalty is negative.

    Examples
    --------
    >>> problem = least_squares_problem(np.eye(2), np.array([3.0, 4.0]))
    >>> problem.value(problem.image(np.zeros(2)), np.zeros(2))
    12.5
    """
    matrix, target = _regression(matrix, target, penalty)
    return _LinearModel(
        matrix,
        penalty,
        lambda image: 0.5 * float((image - target) @ (image - target)),
        lambda image: np.asarray(image - target),
        np.ones_like,
        1.0,
    )


def logistic_problem(matrix: Array[F], target: IntArray, *, penalty: float = 0.0) -> BlockProblem:
    """``sum log(1 + exp(-target (matrix x))) + penalty / 2 |x|^2`` for labels -1 and 1.

    Parameters
    ----------
    matrix : array (m, n)
    target : integer array (m,)
        Labels -1 or 1.
    penalty : float >= 0

    Returns
    -------
    BlockProblem

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or label is wrong or the penalty is negative.

    Examples
    --------
    >>> problem = logistic_problem(np.eye(2), np.array([1, -1]))
    >>> problem.gradient(problem.image(np.zeros(2)), np.zeros(2))
    array([-0.5,  0.5])
    """
    labels = _checks.integer_array(target, "target", ndim=1)
    if (np.abs(labels) != 1).any():
        _checks.fail("target", "labels -1 and 1", labels[np.abs(labels) != 1][0])
    matrix, sign = _regression(matrix, labels.astype(np.asarray(matrix).dtype), penalty)

    def curvature(image: AnyArray) -> AnyArray:
        chance = scipy.special.expit(image)
        return np.asarray(chance * (1 - chance))

    return _LinearModel(
        matrix,
        penalty,
        lambda image: float(np.logaddexp(0, -sign * image).sum()),
        lambda image: np.asarray(-sign * scipy.special.expit(-sign * image)),
        curvature,
        0.25,
    )


def softmax_problem(matrix: Array[F], target: IntArray, classes: int, *, penalty: float = 0.0) -> BlockProblem:
    """Summed cross-entropy of logits ``matrix @ x.reshape(d, classes)`` plus ``penalty / 2 |x|^2``.

    Parameters
    ----------
    matrix : array (m, d)
    target : integer array (m,)
        Classes from 0 to ``classes - 1``.
    classes : int >= 2
    penalty : float >= 0

    Returns
    -------
    BlockProblem
        Of size ``d * classes``; coordinate ``j * classes + c`` is feature j's weight for class c.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or label is wrong or the penalty is negative.

    Examples
    --------
    >>> problem = softmax_problem(np.eye(2), np.array([0, 1]), 2)
    >>> problem.gradient(problem.image(np.zeros(4)), np.zeros(4))
    array([-0.5,  0.5,  0.5, -0.5])
    """
    classes = _checks.whole(classes, "classes", low=2)
    labels = _checks.integer_array(target, "target", ndim=1, low=0, high=classes - 1)
    matrix, labels = _regression(matrix, labels.astype(np.asarray(matrix).dtype), penalty)
    return _Softmax(matrix, np.eye(classes, dtype=matrix.dtype)[labels.astype(int)], penalty)


def quadratic_problem(matrix: Any, linear: Array[F]) -> BlockProblem:
    """``x^T matrix x / 2 - <linear, x>`` for a symmetric positive semi-definite matrix.

    Parameters
    ----------
    matrix : array or sparse array (n, n)
    linear : array (n,)

    Returns
    -------
    BlockProblem

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong.

    Examples
    --------
    >>> problem = quadratic_problem(np.array([[2.0, 1.0], [1.0, 8.0]]), np.zeros(2))
    >>> problem.gradient(problem.image(np.ones(2)), np.ones(2))
    array([3., 9.])
    """
    linear = _checks.float_array(linear, "linear", ndim=1)
    matrix = scipy.sparse.csr_array(matrix) if scipy.sparse.issparse(matrix) else _checks.float_array(matrix, "matrix")
    _checks.shape(matrix, "matrix", (len(linear), len(linear)))
    _checks.same_dtype("linear", linear, matrix=matrix)
    return _Quadratic(matrix, linear)


def label_propagation_problem(weights: Any, labels: Array[F]) -> tuple[BlockProblem, IntArray]:
    """``sum_ij w_ij (x_i - x_j)^2 / 2`` over the edges of a graph, as a function of the unlabelled nodes.

    Parameters
    ----------
    weights : array or sparse array (n, n)
        Symmetric, non-negative edge weights with a zero diagonal.
    labels : array (n,)
        Values of labelled nodes, NaN elsewhere.

    Returns
    -------
    problem : BlockProblem
        A quadratic in the unlabelled nodes (up to a constant); its matrix is a part of the graph's Laplacian.
    unlabelled : integer array
        The nodes that its coordinates stand for.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong or no node is unlabelled.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859.

    Examples
    --------
    >>> chain = np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> problem, nodes = label_propagation_problem(chain, np.array([-1.0, np.nan, 1.0]))
    >>> nodes, problem.hessian_bound(np.array([0]))
    (array([1]), array([[2.]]))
    """
    labels = _checks.float_array(labels, "labels", ndim=1)
    graph = scipy.sparse.csr_array(weights)
    _checks.shape(graph, "weights", (len(labels), len(labels)))
    unlabelled = np.flatnonzero(np.isnan(labels))
    if not unlabelled.size:
        _checks.fail("labels", "at least one NaN (an unlabelled node)", "none")
    laplacian = scipy.sparse.diags_array(graph.sum(axis=1)).tocsr() - graph
    known = np.where(np.isnan(labels), 0, labels)
    pull = -(laplacian @ known)[unlabelled]
    return quadratic_problem(laplacian[unlabelled][:, unlabelled], pull.astype(labels.dtype)), unlabelled


def _regression(matrix: AnyArray, target: AnyArray, penalty: float) -> tuple[AnyArray, AnyArray]:
    matrix, target = _checks.float_array(matrix, "matrix", ndim=2), _checks.float_array(target, "target")
    _checks.same_dtype("matrix", matrix, target=target)
    _checks.shape(target, "target", matrix.shape[:1])
    _checks.non_negative(penalty, "penalty")
    return matrix, target


def partition_blocks(
    n: int,
    size: int,
    *,
    scheme: str = "order",
    lipschitz: AnyArray | None = None,
    rng: np.random.Generator | None = None,
) -> list[IntArray]:
    """Divide coordinates into blocks of one size (the last may be smaller).

    Parameters
    ----------
    n, size : int, 1 <= size <= n
    scheme : {"order", "sort", "average", "random"}
        Neighbours; coordinates of similar curvature; the smallest with the largest; at random.
    lipschitz : array (n,)
        Curvature bound of each coordinate, for "sort" and "average".
    rng : numpy.random.Generator
        For "random".

    Returns
    -------
    list of integer arrays

    Raises
    ------
    TypeError, ValueError
        If an option is out of range or the scheme's argument is missing.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, section 3.

    Examples
    --------
    >>> partition_blocks(4, 2, scheme="average", lipschitz=np.array([1.0, 4.0, 2.0, 3.0]))
    [array([0, 1]), array([2, 3])]
    """
    n = _checks.whole(n, "n", low=1)
    size = _checks.whole(size, "size", low=1, high=n)
    _checks.one_of(scheme, "scheme", SCHEMES)
    order = np.arange(n)
    if scheme == "random":
        order = _checks.generator(rng).permutation(n)
    elif scheme != "order":
        if lipschitz is None:
            _checks.fail("lipschitz", f"an array ({n},) for scheme {scheme!r}", None)
        _checks.shape(np.asarray(lipschitz), "lipschitz", (n,))
        order = np.argsort(lipschitz, kind="stable")
        if scheme == "average":  # smallest, largest, second smallest, second largest, ...
            order = np.stack([order, order[::-1]], axis=1).ravel()[:n]
    return [order[start : start + size] for start in range(0, n, size)]


def block_scores(
    gradient: Array[F],
    blocks: Sequence[IntArray],
    *,
    rule: str = "gsl",
    bounds: Sequence[AnyArray] | None = None,
    score_norm: int = 2,
) -> Array[F]:
    """How promising each block is; the greedy rules take the largest.

    Parameters
    ----------
    gradient : array (n,)
    blocks : sequence of integer arrays
    rule : {"gs", "gsl", "gsd", "gsq"}
        See Notes.
    bounds : sequence of arrays (|b|, |b|)
        Bounds ``H_b`` of the Hessian's blocks; not needed for "gs".
    score_norm : {2, 1}
        1 replaces square roots of sums of squares by sums of sizes (not for "gsq").

    Returns
    -------
    array (number of blocks,)

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, or the bounds are missing or of a wrong number or shape.

    Notes
    -----
    With ``L_b`` the largest eigenvalue of ``H_b`` and ``D_i`` the row sums of its sizes, so that
    ``H_b <= diag(D) `` and ``H_b <= L_b I``, the scores' squares are twice the guaranteed decrease (for "gs": with
    ``L_b = 1``): ``|g_b|^2`` ("gs"), ``|g_b|^2 / L_b`` ("gsl"), ``sum g_i^2 / D_i`` ("gsd"),
    ``g_b^T H_b^-1 g_b`` ("gsq"). A block without curvature scores 0.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, section 2.

    Examples
    --------
    >>> bounds = [np.array([[2.0]]), np.array([[8.0]])]
    >>> block_scores(np.array([3.0, 9.0]), [np.array([0]), np.array([1])], bounds=bounds).round(3)
    array([2.121, 3.182])
    """
    gradient = _checks.float_array(gradient, "gradient", ndim=1)
    _checks.one_of(rule, "rule", SCORES)
    _checks.one_of(score_norm, "score_norm", (1, 2))
    if rule != "gs" and (bounds is None or len(bounds) != len(blocks)):
        _checks.fail("bounds", f"{len(blocks)} matrices", "none" if bounds is None else len(bounds))
    scales = [
        _scale(rule, bounds[number]) if bounds is not None and rule != "gs" else 1.0 for number in range(len(blocks))
    ]
    return np.array(
        [_score(gradient[block], scale, rule, score_norm) for block, scale in zip(blocks, scales, strict=True)],
        dtype=gradient.dtype,
    )


def _scale(rule: str, bound: AnyArray) -> Any:
    """What a rule has to know of a block: a number, a diagonal, or the whole bound."""
    if rule == "gsl":
        return max(float(np.linalg.eigvalsh(bound)[-1]), 0.0)
    return np.abs(bound).sum(axis=1) if rule == "gsd" else bound


def _score(g: AnyArray, scale: Any, rule: str, score_norm: int) -> float:
    if rule == "gsq":
        return float(np.sqrt(np.maximum(g @ _solve(scale, g), 0)))
    divided = np.divide(g, np.sqrt(scale), out=np.zeros_like(g), where=np.asarray(scale) > 0)
    return float(np.abs(divided).sum() if score_norm == 1 else np.sqrt(divided @ divided))


def _solve(matrix: AnyArray, g: AnyArray) -> AnyArray:
    """``matrix^-1 g`` with a tiny ridge; 0 where there is no curvature at all."""
    mean = float(np.trace(matrix)) / max(len(matrix), 1)
    if mean <= 0:
        return np.zeros_like(g)
    return np.asarray(np.linalg.solve(matrix + RIDGE * mean * np.eye(len(matrix)), g)).astype(g.dtype)


def greedy_block(gradient: Array[F], size: int, *, lipschitz: Array[F] | None = None) -> IntArray:
    """The ``size`` coordinates with the largest ``|g_i| / sqrt(lipschitz_i)``, in ascending order.

    Parameters
    ----------
    gradient : array (n,)
    size : int, 1 <= size <= n
    lipschitz : array (n,), optional
        Curvature bounds; 1 by default.

    Returns
    -------
    integer array (size,)

    Raises
    ------
    TypeError, ValueError
        If a shape or the size is wrong.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859.

    Examples
    --------
    >>> greedy_block(np.array([3.0, -9.0, 5.0]), 2, lipschitz=np.array([1.0, 100.0, 1.0]))
    array([0, 2])
    """
    gradient = _checks.float_array(gradient, "gradient", ndim=1)
    size = _checks.whole(size, "size", low=1, high=len(gradient))
    score = np.abs(gradient)
    if lipschitz is not None:
        _checks.shape(np.asarray(lipschitz), "lipschitz", gradient.shape)
        score = np.divide(
            score,
            np.sqrt(np.asarray(lipschitz, score.dtype)),
            out=np.zeros_like(score),
            where=np.asarray(lipschitz) > 0,
        )
    return np.sort(np.argsort(-score, kind="stable")[:size])


def greedy_quadratic_block(gradient: Array[F], bound: Array[F], size: int, *, steps: int = 10) -> IntArray:
    """Approximately the block of ``size`` coordinates on which the quadratic model decreases most.

    Parameters
    ----------
    gradient : array (n,)
    bound : array (n, n)
        Bound of the whole Hessian.
    size : int, 1 <= size <= n
    steps : int >= 1
        Steps of iterative hard thresholding.

    Returns
    -------
    integer array (size,), ascending

    Raises
    ------
    TypeError, ValueError
        If a shape or a number is wrong.

    Notes
    -----
    The best block is a combinatorial problem. Here ``d <- keep_largest(d - (gradient + bound d) / L)`` from 0, and
    the coordinates of the last ``d`` are the block. A coordinate of small curvature may never get in.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, section 3.2.

    Examples
    --------
    >>> greedy_quadratic_block(np.array([3.0, 9.0, 5.0]), np.diag([1.0, 4.0, 1.0]), 2)
    array([1, 2])
    """
    gradient = _checks.float_array(gradient, "gradient", ndim=1)
    _checks.shape(np.asarray(bound), "bound", (len(gradient), len(gradient)))
    size, steps = _checks.whole(size, "size", low=1, high=len(gradient)), _checks.whole(steps, "steps", low=1)
    largest = float(np.linalg.eigvalsh(bound)[-1])
    direction = np.zeros_like(gradient)
    kept: IntArray = np.arange(size)
    for _ in range(steps if largest > 0 else 0):
        moved = direction - (gradient + bound @ direction) / largest
        kept = greedy_block(moved, size)
        direction = np.zeros_like(gradient)
        direction[kept] = moved[kept]
    return kept


def greedy_forest(matrix: Any, scores: AnyArray) -> IntArray:
    """The block of most promising coordinates whose couplings have no cycle.

    Parameters
    ----------
    matrix : array or sparse array (n, n)
        Symmetric; coordinates i and j are coupled where entry (i, j) is not 0.
    scores : array (n,)
        For example ``|gradient| / sqrt(diagonal)``.

    Returns
    -------
    integer array, ascending

    Raises
    ------
    ValueError
        If a shape is wrong.

    Notes
    -----
    Coordinates in order of falling score (ties: the lower index first); one joins unless two of its neighbours
    are already connected with each other.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, section 5.

    Examples
    --------
    >>> triangle = np.ones((3, 3)) + 2 * np.eye(3)
    >>> greedy_forest(triangle, np.array([1.0, 3.0, 2.0]))
    array([1, 2])
    """
    graph = _couplings(matrix)
    scores = np.asarray(scores)
    _checks.shape(scores, "scores", graph.shape[:1])
    parent = list(range(graph.shape[0]))  # trees as sets: every node points towards its tree's root
    chosen = [False] * graph.shape[0]
    starts, neighbours = graph.indptr.tolist(), graph.indices.tolist()

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in np.argsort(-scores, kind="stable").tolist():
        roots = [root(other) for other in neighbours[starts[node] : starts[node + 1]] if chosen[other]]
        if len(set(roots)) == len(roots):
            chosen[node] = True
            for other in roots:
                parent[other] = node
    return np.flatnonzero(chosen)


def _couplings(matrix: Any) -> Any:
    graph = scipy.sparse.csr_array(matrix)
    if graph.shape[0] != graph.shape[1]:
        _checks.fail("matrix", "a square matrix", f"shape {graph.shape}")
    graph = graph - scipy.sparse.diags_array(graph.diagonal())
    graph.eliminate_zeros()
    return graph.tocsr()


def grid_combs(height: int, width: int) -> tuple[IntArray, IntArray]:
    """Divide a grid with four neighbours a node into two trees, interleaved like combs.

    Parameters
    ----------
    height, width : int >= 2
        Node ``row * width + column``.

    Returns
    -------
    tuple of two integer arrays
        The first row with the even columns down to the last row but one; and the rest.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer of at least 2.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859.

    Examples
    --------
    >>> grid_combs(2, 3)
    (array([0, 1, 2]), array([3, 4, 5]))
    """
    height, width = _checks.whole(height, "height", low=2), _checks.whole(width, "width", low=2)
    row, column = np.divmod(np.arange(height * width), width)
    first = (row == 0) | ((column % 2 == 0) & (row < height - 1))
    return np.flatnonzero(first), np.flatnonzero(~first)


def forest_solve(matrix: Any, linear: Array[F], block: IntArray, x: Array[F]) -> Array[F]:
    """Minimise ``x^T matrix x / 2 - <linear, x>`` over a block without cycles, in time proportional to the block.

    Parameters
    ----------
    matrix : array or sparse array (n, n)
        Symmetric and positive definite on the block.
    linear, x : arrays (n,)
        Coordinates outside the block are kept.
    block : integer array
        Distinct coordinates whose couplings form a forest.

    Returns
    -------
    array (len(block),)
        The new values of ``x[block]``.

    Raises
    ------
    TypeError, ValueError
        If a shape is wrong, the block has a cycle, or a pivot is not positive.

    Notes
    -----
    Gaussian elimination from the leaves to the roots creates no new couplings: a leaf's pivot and right-hand side
    are messages to its parent.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, section 5.

    Examples
    --------
    >>> chain = np.array([[2.0, -1, 0], [-1, 2, -1], [0, -1, 2]])
    >>> forest_solve(chain, np.array([1.0, 0, 0]), np.array([0, 1, 2]), np.zeros(3))
    array([0.75, 0.5 , 0.25])
    """
    linear, x = _checks.float_array(linear, "linear", ndim=1), _checks.float_array(x, "x")
    _checks.same_dtype("linear", linear, x=x)
    block = _checks.integer_array(block, "block", ndim=1, low=0, high=len(linear) - 1)
    matrix = scipy.sparse.csr_array(matrix)
    _checks.shape(matrix, "matrix", (len(linear), len(linear)))
    _checks.shape(x, "x", linear.shape)
    rows = matrix[block]
    inside = rows[:, block]
    order, parent, coupling = _rooted(inside)
    outside = x.copy()
    outside[block] = 0
    pivot = inside.diagonal().tolist()
    right = (linear[block] - rows @ outside).tolist()
    solution = [0.0] * len(block)
    for node in reversed(order):  # leaves first
        if not pivot[node] > 0:
            _checks.fail("matrix", "a positive definite block", f"pivot {pivot[node]} at coordinate {block[node]}")
        if parent[node] >= 0:
            factor = coupling[node] / pivot[node]
            pivot[parent[node]] -= factor * coupling[node]
            right[parent[node]] -= factor * right[node]
    for node in order:  # roots first
        above = coupling[node] * solution[parent[node]] if parent[node] >= 0 else 0.0
        solution[node] = (right[node] - above) / pivot[node]
    return np.array(solution, dtype=linear.dtype)


def _rooted(inside: Any) -> tuple[list[int], list[int], list[float]]:
    """Nodes of a forest with parents before children, each node's parent (-1 for a root), and their coupling."""
    graph, count = _couplings(inside), inside.shape[0]
    trees, label = csgraph.connected_components(graph, directed=False)
    if graph.nnz // 2 != count - trees:
        _checks.fail("block", "couplings without a cycle", f"{graph.nnz // 2} couplings of {count} coordinates")
    # One more node above the first node of every tree makes it a single tree.
    first = np.unique(label, return_index=True)[1]
    above = scipy.sparse.coo_array((np.ones(trees), (np.zeros(trees, int), first)), shape=(1, count))
    joined = scipy.sparse.block_array([[abs(graph), above.T], [above, None]]).tocsr()
    order, parent = csgraph.breadth_first_order(joined, count, directed=False)
    parent = np.where(parent[:count] == count, -1, parent[:count])
    coupling = np.where(parent >= 0, np.asarray(inside[np.arange(count), np.maximum(parent, 0)]).ravel(), 0.0)
    return order[1:].tolist(), parent.tolist(), coupling.tolist()


def block_coordinate_descent(
    problem: BlockProblem,
    x0: Array[F],
    *,
    blocks: Sequence[IntArray] | None = None,
    rule: str | Callable[[AnyArray], IntArray] = "gsl",
    update: str = "matrix",
    max_iter: int = 1000,
    tol: float = 1e-8,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> BlockDescentResult:
    """Minimise a smooth function by updating one block of coordinates at a time.

    Parameters
    ----------
    problem : BlockProblem
        For example :func:`least_squares_problem`.
    x0 : array (n,)
        Start.
    blocks : sequence of integer arrays, optional
        A partition of the coordinates, see :func:`partition_blocks`.
    rule : {"cyclic", "random", "lipschitz", "gs", "gsl", "gsd", "gsq", "mi"} or callable
        In turn; at random; at random in proportion to ``L_b``; the largest of :func:`block_scores`; the block whose
        update decreases the function most. A callable gets the gradient and returns any block, without a
        partition: ``lambda g: greedy_block(g, 5)``.
    update : {"gradient", "backtracking", "matrix", "newton", "forest"}
        Divide by ``L_b``; by an estimate of it that doubles until the decrease is right; by the Hessian's bound
        (exact for a quadratic); by the Hessian, with a line search; :func:`forest_solve` (quadratics only).
    max_iter : int >= 1
        Block updates.
    tol : float >= 0
        Largest entry of the gradient at the end.
    rng : numpy.random.Generator
        For the random rules.
    callback : callable, optional
        Called with a ``Progress`` after every update; a true result ends the run.

    Returns
    -------
    BlockDescentResult

    Raises
    ------
    TypeError, ValueError
        If the blocks are no partition, or an option is unknown or does not fit the problem.
    Diverged
        If the function grows without bound.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, algorithm 1.

    Examples
    --------
    >>> problem = quadratic_problem(np.array([[2.0, 1.0], [1.0, 8.0]]), np.zeros(2))
    >>> result = block_coordinate_descent(problem, np.ones(2), blocks=partition_blocks(2, 1), max_iter=1)
    >>> result.x, result.history["block"]
    (array([ 1.   , -0.125]), array([1.]))
    """
    x = _checks.float_array(x0, "x0", ndim=1).copy()
    _checks.shape(x, "x0", (problem.size,))
    _checks.one_of(update, "update", UPDATES)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    if update == "forest" and not isinstance(problem, _Quadratic):
        _checks.fail("update", "a quadratic_problem with 'forest'", type(problem).__name__)
    state = _State(problem, x, blocks, rule, update, rng)
    monitor = Monitor("block_coordinate_descent", callback=callback, hint="use update='backtracking'")
    for _ in range(max_iter):
        if state.largest_slope <= tol:
            break
        number, block = state.choose(monitor.n_iter)
        state.apply(block, state.step(block))
        # The image drifts by a rounding error an update: once in a while it is made afresh.
        if (monitor.n_iter + 1) % state.refresh == 0:
            state.renew()
        if monitor.record(objective=state.value, block=number):
            break
    return BlockDescentResult(state.x, monitor.n_iter, state.largest_slope <= tol, monitor.history())


class _State:
    """Point, image, gradient, and what each block's rule and update need of its curvature."""

    def __init__(
        self,
        problem: BlockProblem,
        x: AnyArray,
        blocks: Sequence[IntArray] | None,
        rule: str | Callable[[AnyArray], IntArray],
        update: str,
        rng: np.random.Generator | None,
    ) -> None:
        self.problem, self.x, self.rule, self.update, self.rng = problem, x, rule, update, rng
        self.blocks, self.refresh = [], problem.size
        self.estimate = 1.0
        if not callable(rule):
            _checks.one_of(rule, "rule", RULES)
            if blocks is None:
                _checks.fail("blocks", "a partition for a named rule", None)
            self.blocks = _partition(blocks, problem.size)
            self.refresh = len(self.blocks)
            self.bounds = [problem.hessian_bound(block) for block in self.blocks]
            self.scales = [_scale(rule, bound) if rule in ("gsl", "gsd", "gsq") else 1.0 for bound in self.bounds]
            if rule in ("random", "lipschitz"):
                self.rng = _checks.generator(rng)
                weight = np.array([_scale("gsl", b) if rule == "lipschitz" else 1.0 for b in self.bounds])
                self.chance = weight / weight.sum()
        self.renew()

    def renew(self) -> None:
        self.image = self.problem.image(self.x)
        self._look()

    def _look(self) -> None:
        self.value = self.problem.value(self.image, self.x)
        self.gradient = self.problem.gradient(self.image, self.x)
        self.largest_slope = float(np.abs(self.gradient).max(initial=0.0))

    def apply(self, block: IntArray, step: AnyArray) -> None:
        self.x[block] += step
        self.image = self.problem.moved(self.image, block, step)
        self._look()

    def choose(self, turn: int) -> tuple[int, IntArray]:
        if callable(self.rule):
            block = _checks.integer_array(self.rule(self.gradient), "rule", ndim=1, low=0, high=self.problem.size - 1)
            return -1, block
        if self.rule == "cyclic":
            number = turn % len(self.blocks)
        elif self.rule in ("random", "lipschitz"):
            assert self.rng is not None
            number = int(self.rng.choice(len(self.blocks), p=self.chance))
        elif self.rule == "mi":
            gain = self.value - np.array([self.after(block, self.step(block)) for block in self.blocks])
            if gain.max() <= self.rounding():  # improvements have sunk below rounding: the gradient decides
                gain = np.array([np.linalg.norm(self.gradient[block]) for block in self.blocks])
            number = int(np.argmax(gain))
        else:
            scores = [
                _score(self.gradient[block], scale, self.rule, 2)
                for block, scale in zip(self.blocks, self.scales, strict=True)
            ]
            number = int(np.argmax(scores))
        return number, self.blocks[number]

    def after(self, block: IntArray, step: AnyArray) -> float:
        x = self.x.copy()
        x[block] += step
        return self.problem.value(self.problem.moved(self.image, block, step), x)

    def rounding(self) -> float:
        """What differences of two values may be wrong by."""
        return float(ROUNDING * np.finfo(self.x.dtype).eps * abs(self.value))

    def step(self, block: IntArray) -> AnyArray:
        g = self.gradient[block]
        if self.update == "forest":
            assert isinstance(self.problem, _Quadratic)
            return forest_solve(self.problem.matrix, self.problem.linear, block, self.x) - self.x[block]
        if self.update == "newton":
            direction = -_solve(self.problem.hessian(self.image, self.x, block), g)
            return self._line_search(block, direction, float(g @ direction))
        if self.update == "backtracking":
            return self._doubling(block, g)
        bound = self.problem.hessian_bound(block)
        if self.update == "matrix":
            return -_solve(bound, g)
        largest = _scale("gsl", bound)
        return -g / largest if largest > 0 else np.zeros_like(g)

    def _line_search(self, block: IntArray, direction: AnyArray, slope: float) -> AnyArray:
        length = 1.0
        for _ in range(HALVINGS):
            if self.after(block, length * direction) <= self.value + ARMIJO * length * slope + self.rounding():
                return length * direction
            length /= 2
        return np.zeros_like(direction)

    def _doubling(self, block: IntArray, g: AnyArray) -> AnyArray:
        square = float(g @ g)
        estimate = self.estimate / 2  # so that an estimate that was too large is unlearnt
        for _ in range(2 * HALVINGS):
            step = -g / estimate
            change = self.after(block, step) - self.value
            enough = change <= -square / (2 * estimate)
            if abs(change) <= self.rounding():
                # Then the slope at the new point has to tell: for a quadratic, the decrease is right exactly if it
                # has not turned round.
                x = self.x.copy()
                x[block] += step
                enough = bool(self.problem.gradient(self.problem.moved(self.image, block, step), x)[block] @ g >= 0)
            if enough:
                self.estimate = estimate
                return np.asarray(step)
            estimate *= 2
        return np.zeros_like(g)


def _partition(blocks: Sequence[IntArray], n: int) -> list[IntArray]:
    checked = [_checks.integer_array(block, "blocks", ndim=1, low=0, high=n - 1) for block in blocks]
    counts = np.bincount(np.concatenate(checked), minlength=n) if checked else np.zeros(n, int)
    if (counts != 1).any():
        wrong = int(np.flatnonzero(counts != 1)[0])
        _checks.fail("blocks", "every coordinate in exactly one block", f"coordinate {wrong} in {counts[wrong]}")
    return checked


def prox_bcd_l1(
    matrix: Array[F],
    target: Array[F],
    penalty: float,
    *,
    blocks: Sequence[IntArray],
    rule: str = "gsq",
    non_negative: bool = False,
    two_metric: bool = False,
    x0: Array[F] | None = None,
    max_iter: int = 1000,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> BlockDescentResult:
    """Minimise ``|matrix x - target|^2 / 2 + penalty |x|_1``, or the same over ``x >= 0``, block by block.

    Parameters
    ----------
    matrix : array (m, n)
    target : array (m,)
    penalty : float >= 0
    blocks : sequence of integer arrays
        A partition of the coordinates.
    rule : {"gsq", "gsr", "gss", "cyclic"}
        Largest decrease of the block's model; longest proximal step; largest subgradient of least norm; in turn.
    non_negative : bool
        Also require ``x >= 0``.
    two_metric : bool
        Update the coordinates that are off their bound by Newton's method and the others by their own scale,
        projected (only with ``non_negative``); otherwise by proximal gradient steps.
    x0 : array (n,), optional
        Start; 0 by default.
    max_iter : int >= 1
        Block updates.
    tol : float >= 0
        Largest entry of the subgradient of least norm at the end.
    callback : callable, optional
        Called with a ``Progress`` after every update; a true result ends the run.

    Returns
    -------
    BlockDescentResult

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or option is wrong.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, sections 4 and 6.

    Examples
    --------
    >>> blocks = partition_blocks(2, 1)
    >>> prox_bcd_l1(np.eye(2), np.array([3.0, 0.5]), 1.0, blocks=blocks).x
    array([2., 0.])
    """
    problem = least_squares_problem(matrix, target)
    _checks.non_negative(penalty, "penalty")
    _checks.one_of(rule, "rule", PROX_RULES)
    if two_metric and not non_negative:
        _checks.fail("two_metric", "non_negative=True with it", False)
    parts = _partition(blocks, problem.size)
    start = np.zeros(problem.size, np.asarray(matrix).dtype) if x0 is None else _checks.float_array(x0, "x0").copy()
    _checks.shape(start, "x0", (problem.size,))
    if non_negative and (start < 0).any():
        _checks.fail("x0", "values of at least 0", start.min())
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    solver = _SparseState(problem, start, penalty, parts, non_negative)
    monitor = Monitor("prox_bcd_l1", callback=callback, hint="check the data for huge values")
    while True:
        subgradient = solver.subgradient()
        converged = float(np.abs(subgradient).max(initial=0.0)) <= tol
        if converged or monitor.n_iter == max_iter:
            break
        number = solver.choose(rule, subgradient, monitor.n_iter)
        solver.apply(number, two_metric)
        if monitor.record(objective=solver.objective, block=number, support=int((solver.x != 0).sum())):
            break
    return BlockDescentResult(solver.x, monitor.n_iter, converged, monitor.history())


class _SparseState:
    """Point, residual and gradient of a least-squares problem with a penalty on sizes, or on a half-line."""

    def __init__(
        self, problem: BlockProblem, x: AnyArray, penalty: float, blocks: list[IntArray], non_negative: bool
    ) -> None:
        self.problem, self.x, self.penalty, self.blocks, self.non_negative = problem, x, penalty, blocks, non_negative
        self.bounds = [problem.hessian_bound(block) for block in blocks]
        self.lipschitz = np.array([_scale("gsl", bound) for bound in self.bounds])
        self.image, self.updates = problem.image(x), 0
        self._look()

    def _look(self) -> None:
        self.gradient = self.problem.gradient(self.image, self.x)
        self.objective = self.problem.value(self.image, self.x) + self.penalty * float(np.abs(self.x).sum())

    def subgradient(self) -> AnyArray:
        """The subgradient of least norm; 0 exactly at a solution."""
        up, down = self.gradient + self.penalty, self.gradient - self.penalty
        if self.non_negative:  # at the bound only a negative slope can be followed
            return np.where(self.x > 0, up, np.minimum(up, 0))
        at_zero = np.where(up < 0, up, np.where(down > 0, down, 0))
        return np.where(self.x > 0, up, np.where(self.x < 0, down, at_zero))

    def proximal(self, number: int) -> AnyArray:
        block, largest = self.blocks[number], self.lipschitz[number]
        if largest == 0:
            return self.x[block]
        moved = self.x[block] - self.gradient[block] / largest
        if self.non_negative:
            return np.asarray(np.maximum(moved - self.penalty / largest, 0))
        return np.asarray(soft_threshold(moved, self.penalty / largest))

    def choose(self, rule: str, subgradient: AnyArray, turn: int) -> int:
        if rule == "cyclic":
            return turn % len(self.blocks)
        if rule == "gss":
            return int(np.argmax([np.linalg.norm(subgradient[block]) for block in self.blocks]))
        steps = [self.proximal(number) - self.x[block] for number, block in enumerate(self.blocks)]
        if rule == "gsr":
            return int(np.argmax([np.linalg.norm(step) for step in steps]))
        decrease = [
            -(self.gradient[block] @ step)
            - largest / 2 * (step @ step)
            - self.penalty * (np.abs(self.x[block] + step).sum() - np.abs(self.x[block]).sum())
            for block, largest, step in zip(self.blocks, self.lipschitz, steps, strict=True)
        ]
        return int(np.argmax(decrease))

    def apply(self, number: int, two_metric: bool) -> None:
        block = self.blocks[number]
        value = self._two_metric(number) if two_metric else self.proximal(number)
        step = value - self.x[block]
        self.x[block] = value  # not x + step: a zero stays exactly zero
        self.updates += 1
        renew = self.updates % len(self.blocks) == 0
        self.image = self.problem.image(self.x) if renew else self.problem.moved(self.image, block, step)
        self._look()

    def _two_metric(self, number: int) -> AnyArray:
        block, bound = self.blocks[number], self.bounds[number]
        x, slope = self.x[block], self.gradient[block] + self.penalty
        held = (x < NEAR_ZERO) & (slope > 0)
        scale = float(np.diag(bound)[held].sum())
        direction = np.where(held, -slope / (scale if scale > 0 else 1.0), 0.0)
        direction[~held] = -_solve(bound[np.ix_(~held, ~held)], slope[~held])
        length = 1.0
        for _ in range(HALVINGS):
            trial = np.maximum(x + length * direction, 0)
            step = trial - x
            change = slope @ step + step @ bound @ step / 2
            if change <= ARMIJO * (slope @ step):
                return trial.astype(x.dtype)
            length /= 2
        return x


def active_set_bound(
    gradient: Array[F], x: Array[F], penalty: float, *, lipschitz: float, distance: float, rate: float
) -> int:
    """Number of iterations after which every zero of the solution is set to zero when it is selected.

    Parameters
    ----------
    gradient, x : arrays (n,)
        Gradient of the smooth part at the solution, and the solution.
    penalty : float > 0
        Of the L1 norm.
    lipschitz : float > 0
        L of proximal steps of length 1 / L.
    distance : float > 0
        From the start to the solution.
    rate : float in (0, 1)
        The distance shrinks by this factor an iteration.

    Returns
    -------
    int >= 0

    Raises
    ------
    TypeError, ValueError
        If a shape or number is wrong, or a zero has the full slope ``penalty`` (a degenerate solution, for which
        no such number exists).

    Notes
    -----
    With ``delta = min over zeros of (penalty - |gradient_i|)``, the first k with
    ``rate^k distance <= delta / (2 L)``.

    References
    ----------
    Nutini, Laradji, Schmidt (2022), arXiv 1712.08859, section 6.

    Examples
    --------
    >>> gradient, x = np.array([-1.0, 0.5]), np.array([2.0, 0.0])
    >>> active_set_bound(gradient, x, 1.0, lipschitz=1.0, distance=4.0, rate=0.5)  # 4 / 2^4 = 0.5 / 2
    4
    """
    gradient, x = _checks.float_array(gradient, "gradient", ndim=1), _checks.float_array(x, "x")
    _checks.shape(x, "x", gradient.shape)
    for value, name in ((penalty, "penalty"), (lipschitz, "lipschitz"), (distance, "distance")):
        _checks.positive(value, name)
    _checks.in_range(rate, "rate", 0, 1, closed="neither")
    room = float((penalty - np.abs(gradient[x == 0])).min(initial=np.inf))
    if room <= 0:
        _checks.fail("gradient", "slopes below the penalty at all zeros", f"{penalty - room} for penalty {penalty}")
    if np.isinf(room):
        return 0
    return max(0, int(np.ceil(np.log(2 * lipschitz * distance / room) / np.log(1 / rate))))
