"""Causal graphs by swaps in a topological order, guided by the gradient of an acyclicity function.

score(W) = |X - X W|^2 / (2 n)          W[i, j] != 0 only if i comes before j in the order
h(W)     = -log det(s I - |W|) + d log s,   grad h [i, j] > 0  iff  there is a directed path from j to i
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Optimizing NOTEARS Objectives via Topological Swaps",
    authors="Deng, Bello, Aragam, Ravikumar",
    year=2023,
    arxiv="2305.17277",
    functions=(
        "TopoResult",
        "acyclicity",
        "fit_order",
        "swap_candidates",
        "swap",
        "topo_search",
        "kkt_residual",
        "threshold_graph",
        "structural_hamming",
    ),
    chapter="solvers/notears_topological_swaps",
)

KINDS = ("logdet", "exp", "poly")
TRANSFORMS = ("abs", "square")

IMPROVEMENT = 1e-12
"""Relative decrease of the loss below which a swap counts as rounding: otherwise swaps could go round in circles."""

SMALL_SET, LARGE_SET = 100, 400
"""Largest default numbers of candidate pairs, as in the authors' code for 30 variables."""

EDGE_THRESHOLD = 0.3
"""Weights below it are set to 0 in the end, as is usual with weights of at least 0.5."""

COLLINEAR = 1e-11
"""Square of the smallest pivot, relative to the largest variance, below which the Gram matrix is not trusted: it
squares the condition number, so half of the digits are gone. The regression is then solved from the data."""

LASSO_SWEEPS, LASSO_TOLERANCE = 10_000, 1e-10
"""Largest number of sweeps of coordinate descent, and the relative change at which it ends."""


@dataclass(frozen=True)
class TopoResult:
    """Outcome of :func:`topo_search`.

    Parameters
    ----------
    weight : array (d, d)
        ``weight[i, j]`` is the effect of variable i on variable j.
    topo : tuple of ints
        The order; causes come before effects.
    loss : float
        ``|X - X W|^2 / (2 n)``.
    n_iter, converged, history
        Rounds of swaps; whether no candidate improves any more; ``loss`` and the number of ``swaps`` of every round,
        beginning with the start.
    """

    weight: AnyArray
    topo: tuple[int, ...]
    loss: float
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def acyclicity(weight: Array[F], *, kind: str = "logdet", transform: str = "abs", s: float = 1.0) -> Array[F]:
    """Measure how far a weighted graph is from having no cycle.

    Parameters
    ----------
    weight : array (d, d)
    kind : ``"logdet"``, ``"exp"`` or ``"poly"``
        ``-log det(s I - A) + d log s``, ``tr exp(A) - d``, or ``tr (I + A / d)^d - d``.
    transform : ``"abs"`` or ``"square"``
        ``A = |W|`` or ``A = W * W``.
    s : float > 0
        For ``"logdet"``; above the spectral radius of A.

    Returns
    -------
    array (), dtype of ``weight``
        0 if and only if the graph is acyclic, else positive.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is not square or not finite, an option is unknown, or ``s`` is too small.

    Notes
    -----
    The pullback's matrix for A is ``(s I - A)^-T``, ``exp(A)^T`` or ``((I + A/d)^(d-1))^T``; entry (i, j) is positive
    if and only if there is a directed path from j to i. With ``"abs"`` it is multiplied by the sign of the weight, 0
    at 0; with ``"square"`` by twice the weight.

    References
    ----------
    Zheng et al. (2018), arXiv 1803.01422 (``"exp"``). Yu et al. (2019), arXiv 1904.10098 (``"poly"``). Bello, Aragam,
    Ravikumar (2022), arXiv 2209.08037 (``"logdet"``).

    Examples
    --------
    >>> chain, loop = np.array([[0.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 0.5], [0.5, 0.0]])
    >>> float(acyclicity(chain)) == 0, float(acyclicity(loop).round(6))
    (True, 0.287682)
    """
    return acyclicity_vjp(weight, kind=kind, transform=transform, s=s)[0]


def acyclicity_vjp(
    weight: Array[F], *, kind: str = "logdet", transform: str = "abs", s: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`acyclicity` and its pullback ``dh -> (dweight,)``."""
    weight = _square(weight, "weight")
    _checks.one_of(transform, "transform", TRANSFORMS)
    wide = weight.astype(np.result_type(weight, np.float64))
    sign = np.sign(wide.real)
    positive = sign * wide if transform == "abs" else wide * wide
    value, grad = _acyclicity(positive, kind, s)

    def pullback(dh: Array[F]) -> tuple[Array[F]]:
        inner = sign if transform == "abs" else 2 * wide
        return ((np.asarray(dh) * grad * inner).astype(weight.dtype),)

    return np.asarray(value).astype(weight.dtype), pullback


def fit_order(data: Array[F], topo: Sequence[int], *, l1: float = 0.0) -> tuple[Array[F], float]:
    """Regress every variable on those before it in an order.

    Parameters
    ----------
    data : array (n, d)
        One row an observation; no intercept is fitted.
    topo : sequence of ints
        A permutation of ``range(d)``; causes before effects.
    l1 : float >= 0
        Penalty on absolute weights.

    Returns
    -------
    weight : array (d, d), dtype of ``data``
    loss : float
        ``|X - X W|^2 / (2 n) + l1 sum |W|``, the smallest that this order allows.

    Raises
    ------
    TypeError, ValueError
        If the data are not finite or ``topo`` is no permutation.

    Notes
    -----
    Where predecessors are collinear, the solution of smallest norm. With a penalty, each regression is a lasso,
    solved by coordinate descent to a relative accuracy of 1e-10.

    Examples
    --------
    >>> x = np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 1.0], [0.0, -1.0]])
    >>> weight, loss = fit_order(x, [0, 1])
    >>> weight.round(6), round(loss, 6)
    (array([[0., 2.],
           [0., 0.]]), 0.5)
    """
    x, order = _data(data), _order(topo, np.shape(data)[1])
    _checks.non_negative(l1, "l1")
    gram = _gram(x)
    weight, losses = np.zeros_like(gram), np.zeros(len(order))
    for place, node in enumerate(order):
        found, losses[place] = _regress(x, gram, node, order[:place], l1)
        weight[order[:place], node] = found
    return weight.astype(np.asarray(data).dtype), float(losses.sum())


def swap_candidates(grad: Array[F], topo: Sequence[int], size: int) -> list[tuple[int, int]]:
    """List the pairs whose exchange is most promising.

    Parameters
    ----------
    grad : array (d, d)
        Gradient of the acyclicity function with respect to ``|W|``.
    topo : sequence of ints
        The present order.
    size : int from 1 to ``d (d - 1) / 2``

    Returns
    -------
    list of (i, j)
        Pairs in which j comes before i, the smallest ``grad[i, j]`` first; of equal ones the lower pair.

    Raises
    ------
    TypeError, ValueError
        If ``topo`` is no permutation or ``size`` is out of range.

    Notes
    -----
    ``grad[i, j] = 0`` says that no path leads from j to i: the edge from i to j would close no cycle.

    References
    ----------
    Deng et al. (2023), arXiv 2305.17277.

    Examples
    --------
    >>> swap_candidates(np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), [0, 1, 2], 2)
    [(2, 0), (2, 1)]
    """
    grad = _square(grad, "grad")
    order = _order(topo, len(grad))
    size = _checks.whole(size, "size", low=1, high=_pairs(len(order)))
    place = np.argsort(order)
    later, earlier = np.nonzero(place[:, None] > place[None, :])
    # np.nonzero lists pairs in the order (i, j), and the sort is stable: ties go to the lower pair.
    chosen = np.argsort(grad[later, earlier], kind="stable")[:size]
    return [(int(i), int(j)) for i, j in zip(later[chosen], earlier[chosen], strict=True)]


def swap(topo: Sequence[int], i: int, j: int) -> list[int]:
    """Return the order with variables ``i`` and ``j`` exchanged.

    Parameters
    ----------
    topo : sequence of ints
        A permutation.
    i, j : ints

    Returns
    -------
    list of ints

    Raises
    ------
    ValueError
        If ``topo`` is no permutation or a variable is not in it.

    Examples
    --------
    >>> swap([2, 0, 1], 1, 2)
    [1, 0, 2]
    """
    order = _order(topo, len(topo))
    for name, node in (("i", i), ("j", j)):
        _checks.whole(node, name, low=0, high=len(order) - 1)
    exchanged = {i: j, j: i}
    return [int(exchanged.get(int(node), node)) for node in order]


def topo_search(
    data: Array[F],
    topo: Sequence[int],
    *,
    size_small: int | None = None,
    size_large: int | None = None,
    n_large: int = 1,
    greedy: bool = True,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> TopoResult:
    """Improve an order by swaps until none of the promising ones helps.

    Parameters
    ----------
    data : array (n, d), d >= 2
    topo : sequence of ints
        The order to begin with.
    size_small, size_large : ints from 1 to ``d (d - 1) / 2``, optional
        Sizes of the candidate sets; at most 100 and 400 by default.
    n_large : int >= 0
        How often the large set may help when the small one does not.
    greedy : bool
        Take all improving swaps that do not overlap in a round, the best first, instead of the single best.
    max_iter : int >= 1
        Largest number of rounds.
    callback : callable, optional
        Told the loss after every round; a true result ends the search.

    Returns
    -------
    TopoResult

    Raises
    ------
    TypeError, ValueError
        If the data are not finite, ``topo`` is no permutation or an option is out of range.

    Notes
    -----
    A swap changes the sets of predecessors only between the two positions, so only those regressions are solved
    again, from the Gram matrix. Swaps whose intervals of positions do not overlap add up: each one's change of the
    loss is what it would be alone.

    References
    ----------
    Deng et al. (2023), arXiv 2305.17277 (TOPO).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> cause = rng.standard_normal(500)
    >>> data = np.stack([2 * cause + rng.standard_normal(500), cause], axis=1)
    >>> result = topo_search(data, [0, 1])
    >>> result.topo, result.weight.round(1)[1, 0], result.n_iter
    ((1, 0), np.float64(2.0), 1)
    """
    x = _data(data)
    d = x.shape[1]
    if d < 2:
        _checks.fail("data", "at least 2 variables", f"shape {x.shape}")
    order = _order(topo, d)
    small = _checks.whole(
        min(SMALL_SET, _pairs(d)) if size_small is None else size_small, "size_small", low=1, high=_pairs(d)
    )
    large = _checks.whole(
        min(LARGE_SET, _pairs(d)) if size_large is None else size_large, "size_large", low=small, high=_pairs(d)
    )
    left = _checks.whole(n_large, "n_large", low=0)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    gram = _gram(x)
    losses = np.array([_regress(x, gram, node, order[:place], 0.0)[1] for place, node in enumerate(order)])
    monitor = Monitor("topo_search", callback=callback, hint="scale the variables")
    stop, converged = monitor.record(loss=float(losses.sum()), swaps=0), False
    while not stop and monitor.n_iter <= max_iter:
        grad = _acyclicity(np.abs(_weights(x, gram, order)), "logdet", 1.0)[1]
        candidates = swap_candidates(grad, order.tolist(), large)
        moves = _improving(x, gram, order, losses, candidates[:small])
        if not moves and left > 0:
            moves = _improving(x, gram, order, losses, candidates[small:])
            left -= bool(moves)
        if not moves:
            converged = True
            break
        taken = 0
        free = np.ones(d, bool)
        for _, first, last, changed in moves if greedy else moves[:1]:
            if free[first : last + 1].all():
                free[first : last + 1] = False
                order[[first, last]] = order[[last, first]]
                losses[first : last + 1] = changed
                taken += 1
        stop = monitor.record(loss=float(losses.sum()), swaps=taken)
    weight = _weights(x, gram, order).astype(np.asarray(data).dtype)
    found = tuple(int(node) for node in order)
    return TopoResult(weight, found, float(losses.sum()), monitor.n_iter - 1, converged, monitor.history())


def kkt_residual(data: Array[F], weight: Array[F]) -> float:
    """Return the largest slope of the score along an edge that could be added or changed without a cycle.

    Parameters
    ----------
    data : array (n, d)
    weight : array (d, d)
        Of an acyclic graph.

    Returns
    -------
    float >= 0
        0 at a point that satisfies the optimality conditions of the constrained problem.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit or the graph has a cycle.

    Notes
    -----
    The largest ``|grad score [i, j]|``, ``i != j``, over the pairs with ``grad h [i, j] = 0``, those without a path
    from j to i.

    References
    ----------
    Wei, Gao, Yu (2020), arXiv 2010.09133. Deng et al. (2023), arXiv 2305.17277.

    Examples
    --------
    >>> x = np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 1.0], [0.0, -1.0]])
    >>> kkt_residual(x, np.zeros((2, 2))), kkt_residual(x, np.array([[0.0, 2.0], [0.0, 0.0]]))
    (1.0, 0.0)
    """
    x, wide = _data(data), _square(weight, "weight").astype(np.float64)
    _checks.shape(wide, "weight", (x.shape[1], x.shape[1]))
    paths = _paths(wide)
    if np.diagonal(paths).any():
        _checks.fail("weight", "a graph without cycles", f"{int(np.diagonal(paths).sum())} variables on cycles")
    slope = -(x.T @ (x - x @ wide)) / len(x)
    free = ~paths.T & ~np.eye(len(wide), dtype=bool)
    return float(np.abs(slope[free]).max(initial=0.0))


def threshold_graph(weight: Array[F], threshold: float = EDGE_THRESHOLD) -> Array[F]:
    """Set small weights to 0.

    Parameters
    ----------
    weight : array (d, d)
    threshold : float >= 0

    Returns
    -------
    array (d, d), dtype of ``weight``

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is not square or ``threshold`` is negative.

    Examples
    --------
    >>> threshold_graph(np.array([[0.0, 0.2], [-0.7, 0.0]]))
    array([[ 0. ,  0. ],
           [-0.7,  0. ]])
    """
    weight = _square(weight, "weight")
    _checks.non_negative(threshold, "threshold")
    return np.asarray(np.where(np.abs(weight) < threshold, 0, weight), dtype=weight.dtype)


def structural_hamming(weight: Array[F], truth: Array[F]) -> int:
    """Count the edges to add, remove or turn around to get from one graph to another.

    Parameters
    ----------
    weight, truth : arrays (d, d)
        There is an edge where an entry is not 0.

    Returns
    -------
    int
        The structural Hamming distance; an edge with the wrong direction counts once.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit.

    Examples
    --------
    >>> structural_hamming(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]]))
    1
    """
    one, other = _square(weight, "weight") != 0, _square(truth, "truth") != 0
    _checks.shape(other, "truth", one.shape)
    # A pair of variables is wrong if either of its two directions is.
    wrong = one != other
    return int(np.triu(wrong | wrong.T).sum())


def _square(weight: AnyArray, name: str) -> AnyArray:
    weight = _checks.float_array(weight, name, ndim=2)
    _checks.shape(weight, name, (len(weight), len(weight)))
    _checks.finite(weight, name)
    return weight


def _data(data: AnyArray) -> Array[np.float64]:
    x = _checks.float_array(data, "data", ndim=2)
    _checks.not_empty(x, "data", (0, 1))
    _checks.finite(x, "data")
    return x.astype(np.float64)


def _order(topo: Sequence[int], d: int) -> AnyArray:
    order = _checks.integer_array(np.asarray(topo), "topo", ndim=1)
    if sorted(order.tolist()) != list(range(d)):
        _checks.fail("topo", f"a permutation of 0 to {d - 1}", order.tolist())
    return order.copy()


def _pairs(d: int) -> int:
    return d * (d - 1) // 2


def _gram(x: AnyArray) -> AnyArray:
    return np.asarray(x.T @ x / len(x))


def _acyclicity(positive: AnyArray, kind: str, s: float) -> tuple[AnyArray, AnyArray]:
    """Return h of a non-negative matrix and its gradient there."""
    _checks.one_of(kind, "kind", KINDS)
    d = len(positive)
    eye = np.eye(d)
    cyclic = bool(_paths(positive).diagonal().any())
    if kind == "logdet":
        _checks.positive(s, "s")
        # Without cycles the spectral radius is 0, whatever the weights are; rounded eigenvalues would not be.
        radius = float(np.abs(np.linalg.eigvals(positive)).max()) if cyclic else 0.0
        if radius >= s:
            _checks.fail("s", f"a number above the spectral radius {radius:.6g}", s)
        sign, log_size = np.linalg.slogdet(s * eye - positive)
        value, grad = d * np.log(s) - log_size - np.log(sign), np.linalg.inv(s * eye - positive).T
    elif kind == "exp":
        exponential = scipy.linalg.expm(positive)
        value, grad = np.trace(exponential) - d, exponential.T
    else:
        factor = eye + positive / max(d, 1)
        power = np.linalg.matrix_power(factor, max(d - 1, 0))
        value, grad = np.trace(power @ factor) - d, power.T
    return value if cyclic else np.zeros_like(value), grad


def _paths(weight: AnyArray) -> AnyArray:
    """Boolean matrix: is there a directed path (of at least one edge) from i to j?"""
    reach = weight != 0
    for _ in range(max(len(weight), 1).bit_length()):
        reach = reach | (reach.astype(np.float32) @ reach.astype(np.float32) > 0)
    return np.asarray(reach)


def _regress(x: AnyArray, gram: AnyArray, node: int, before: AnyArray, l1: float) -> tuple[AnyArray, float]:
    """Return a variable's weights on its predecessors, and its part of the loss."""
    if not len(before):
        return np.zeros(0), float(gram[node, node]) / 2
    right = gram[before, node]
    if l1 > 0:
        found = _lasso(gram[np.ix_(before, before)], right, l1)
    else:
        try:
            factor = scipy.linalg.cho_factor(gram[np.ix_(before, before)])
            found = scipy.linalg.cho_solve(factor, right)
            collinear = np.diagonal(factor[0]).min() ** 2 < COLLINEAR * np.diagonal(gram)[before].max()
        except np.linalg.LinAlgError:
            collinear = True
        if collinear:
            found = np.linalg.lstsq(x[:, before], x[:, node], rcond=None)[0]
            residual = x[:, node] - x[:, before] @ found
            return found, float(residual @ residual) / (2 * len(x))
    loss = gram[node, node] / 2 - found @ right + found @ gram[np.ix_(before, before)] @ found / 2
    return found, float(max(loss, 0.0) + l1 * np.abs(found).sum())


def _lasso(gram: AnyArray, right: AnyArray, l1: float) -> AnyArray:
    """Minimize ``w G w / 2 - r w + l1 |w|_1`` by coordinate descent."""
    weight = np.zeros(len(right))
    for _ in range(LASSO_SWEEPS):
        before = weight.copy()
        for k in np.flatnonzero(np.diagonal(gram) > 0):
            # The best value of one weight, all others held: soft thresholding.
            pull = right[k] - gram[k] @ weight + gram[k, k] * weight[k]
            weight[k] = np.sign(pull) * max(abs(pull) - l1, 0.0) / gram[k, k]
        if np.abs(weight - before).max() <= LASSO_TOLERANCE * np.abs(weight).max():
            break
    return weight


def _weights(x: AnyArray, gram: AnyArray, order: AnyArray) -> AnyArray:
    weight = np.zeros_like(gram)
    for place, node in enumerate(order):
        weight[order[:place], node] = _regress(x, gram, node, order[:place], 0.0)[0]
    return weight


def _improving(
    x: AnyArray, gram: AnyArray, order: AnyArray, losses: AnyArray, pairs: Sequence[tuple[int, int]]
) -> list[tuple[float, int, int, AnyArray]]:
    """Return ``(change, first, last, losses between)`` of the swaps that lower the loss, the best first."""
    place = np.argsort(order)
    least = -IMPROVEMENT * (1 + float(losses.sum()))
    moves = []
    for i, j in pairs:
        first, last = int(place[j]), int(place[i])
        moved = order.copy()
        moved[[first, last]] = moved[[last, first]]
        # Outside the interval nobody's set of predecessors changes.
        between = np.array([_regress(x, gram, moved[k], moved[:k], 0.0)[1] for k in range(first, last + 1)])
        change = float(between.sum() - losses[first : last + 1].sum())
        if change < least:
            moves.append((change, first, last, between))
    return sorted(moves, key=lambda move: move[0])
