"""Few-shot classification by clustering: prototypes, a graph Laplacian, and a bound that is minimised by softmax.

energy = sum z log z + sum cost z - laplacian_weight/2 sum_pq w_pq z_p . z_q        (rows of z on the simplex)
z_p   <- softmax(-cost_p + laplacian_weight sum_q w_pq z_q)                         (never raises the energy)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.special
from scipy.spatial.distance import cdist

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax import softmax_vjp
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Transductive Few-Shot Learning: Clustering is All You Need?",
    authors="Ziko, Boudiaf, Dolz, Granger, Ben Ayed",
    year=2021,
    arxiv="2106.09516",
    functions=(
        "TransductiveResult",
        "bound_step",
        "knn_affinity",
        "laplacian_energy",
        "prototype_costs",
        "transductive_cluster",
    ),
    chapter="solvers/transductive_clustering",
)


@dataclass(frozen=True)
class TransductiveResult:
    """Outcome of :func:`transductive_cluster`.

    Parameters
    ----------
    labels
        Class of each query, (Q,).
    assignments
        Probabilities of the classes for each query, (Q, K).
    prototypes
        Centre of each class, (K, d).
    n_iter
        Number of outer iterations.
    converged
        Whether the last outer iteration moved no prototype by more than the tolerance; for fixed prototypes,
        whether the energy stood still.
    history
        Array ``energy``: at the start, and after every bound step and every prototype step.
    """

    labels: IntArray
    assignments: AnyArray
    prototypes: AnyArray
    n_iter: int
    converged: bool
    history: Mapping[str, Array[np.float64]]


def knn_affinity(x: Array[F], *, k: int = 3) -> Array[F]:
    """Return the symmetric graph of nearest neighbours.

    Parameters
    ----------
    x : array (N, d)
    k : int from 1 to N - 1
        Number of neighbours.

    Returns
    -------
    array (N, N), dtype of ``x``
        1 where one of the two points is among the ``k`` nearest of the other; 0 on the diagonal.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a finite float matrix or ``k`` is outside its range.

    Notes
    -----
    Of points at the same distance the first ones count. A row has at least k ones.

    References
    ----------
    Ziko, Dolz, Granger, Ben Ayed (2020), arXiv 2006.15486.

    Examples
    --------
    >>> knn_affinity(np.array([[0.0], [1.0], [5.0]]), k=1)
    array([[0., 1., 0.],
           [1., 0., 1.],
           [0., 1., 0.]])
    """
    x = _points(x, "x")
    k = _checks.whole(k, "k", low=1, high=max(len(x) - 1, 1))
    distances = cdist(x, x, "sqeuclidean")
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    graph = np.zeros(distances.shape, x.dtype)
    np.put_along_axis(graph, nearest, 1, axis=1)
    return np.maximum(graph, graph.T)


def prototype_costs(x: Array[F], prototypes: Array[F], *, temperature: float = 1.0) -> Array[F]:
    """Return the squared distances from points to prototypes, over the temperature.

    Parameters
    ----------
    x : array (N, d)
    prototypes : array (K, d)
    temperature : float > 0
        Small values make assignments hard.

    Returns
    -------
    array (N, K), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``temperature`` is not > 0.

    References
    ----------
    Ziko et al. (2021), arXiv 2106.09516.

    Examples
    --------
    >>> prototype_costs(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 2.0]]), temperature=2.0)
    array([[2. , 0.5]])
    """
    return prototype_costs_vjp(x, prototypes, temperature=temperature)[0]


def prototype_costs_vjp(x: Array[F], prototypes: Array[F], *, temperature: float = 1.0) -> tuple[Array[F], Pullback]:
    """Return :func:`prototype_costs` and its pullback ``dcost -> (dx, dprototypes)``."""
    x, prototypes = _checks.float_array(x, "x", ndim=2), _checks.float_array(prototypes, "prototypes", ndim=2)
    _checks.same_dtype("x", x, prototypes=prototypes)
    _checks.shape(prototypes, "prototypes", (len(prototypes), x.shape[1]))
    _checks.positive(temperature, "temperature")
    # Differences first: |x|^2 - 2 x m + |m|^2 would cancel for points near a prototype far from the origin.
    apart = x[:, None, :] - prototypes
    cost = (apart * apart).sum(axis=-1) / temperature

    def pullback(dcost: Array[F]) -> tuple[Array[F], Array[F]]:
        dapart = (2 / temperature) * np.asarray(dcost)[..., None] * apart
        return dapart.sum(axis=1), -dapart.sum(axis=0)

    return cost, pullback


def laplacian_energy(z: Array[F], cost: Array[F], w: Array[F], *, laplacian_weight: float = 0.7) -> Array[F]:
    """Return the relaxed clustering energy of soft assignments.

    Parameters
    ----------
    z : array (N, K), entries >= 0
        Assignments; rows sum to 1. Labelled points have one-hot rows.
    cost : array (N, K)
        Cost of each assignment, as from :func:`prototype_costs`.
    w : array (N, N)
        Affinities.
    laplacian_weight : float >= 0

    Returns
    -------
    array (), dtype of ``z``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``laplacian_weight < 0``.

    Notes
    -----
    ``sum z log z + sum cost z - laplacian_weight/2 sum_pq w_pq z_p . z_q`` with ``0 log 0 = 0``; a negative
    entry gives NaN. For one-hot rows the last term is, up to a constant, ``laplacian_weight/2`` times the sum
    of ``w_pq |z_p - z_q|^2`` over pairs. The slope in ``z`` at an entry 0 is ``-inf``.

    References
    ----------
    Ziko et al. (2021), arXiv 2106.09516; Ziko et al. (2020), arXiv 2006.15486.

    Examples
    --------
    >>> one_hot, cost = np.eye(2), np.array([[1.0, 9.0], [9.0, 2.0]])
    >>> float(laplacian_energy(one_hot, cost, np.ones((2, 2)), laplacian_weight=1.0))
    2.0
    """
    return laplacian_energy_vjp(z, cost, w, laplacian_weight=laplacian_weight)[0]


def laplacian_energy_vjp(
    z: Array[F], cost: Array[F], w: Array[F], *, laplacian_weight: float = 0.7
) -> tuple[Array[F], Pullback]:
    """Return :func:`laplacian_energy` and its pullback ``dy -> (dz, dcost, dw)``."""
    z, cost, w = _graph_arguments(z, cost, w, laplacian_weight)
    # xlogy is 0 at 0; it has no complex version for a step, where z is never 0.
    entropy = z * np.log(z) if np.iscomplexobj(z) else scipy.special.xlogy(z, z)
    value = np.asarray((entropy + cost * z - laplacian_weight / 2 * (w @ z) * z).sum())

    def pullback(dy: Array[F]) -> tuple[AnyArray, AnyArray, AnyArray]:
        with np.errstate(divide="ignore"):
            slope = np.log(z) + 1 + cost - laplacian_weight / 2 * (w @ z + w.T @ z)
        return dy * slope, dy * z, -laplacian_weight / 2 * dy * (z @ z.T)

    return value, pullback


def bound_step(z: Array[F], cost: Array[F], w: Array[F], *, laplacian_weight: float = 0.7) -> Array[F]:
    """Minimise the bound of the energy that touches it at ``z``: one softmax for each point.

    Parameters
    ----------
    z, cost, w, laplacian_weight
        As in :func:`laplacian_energy`.

    Returns
    -------
    array (N, K), dtype of ``z``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or ``laplacian_weight < 0``.

    Notes
    -----
    ``softmax(-cost + laplacian_weight w z)`` row by row. If ``w`` is symmetric without negative eigenvalues,
    the energy does not rise. Rows of labelled points are for the caller to keep.

    References
    ----------
    Ziko et al. (2020), arXiv 2006.15486.

    Examples
    --------
    >>> z = np.array([[0.5, 0.5], [1.0, 0.0]])
    >>> bound_step(z, np.zeros((2, 2)), np.ones((2, 2)) - np.eye(2), laplacian_weight=np.log(3.0)).round(4)
    array([[0.75, 0.25],
           [0.5 , 0.5 ]])
    """
    return bound_step_vjp(z, cost, w, laplacian_weight=laplacian_weight)[0]


def bound_step_vjp(
    z: Array[F], cost: Array[F], w: Array[F], *, laplacian_weight: float = 0.7
) -> tuple[Array[F], Pullback]:
    """Return :func:`bound_step` and its pullback ``dy -> (dz, dcost, dw)``."""
    z, cost, w = _graph_arguments(z, cost, w, laplacian_weight)
    logits: AnyArray = -cost + laplacian_weight * (w @ z)
    y, softmax_pullback = softmax_vjp(logits, algorithm="three_pass_reload")

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        (dlogits,) = softmax_pullback(dy)
        return laplacian_weight * (w.T @ dlogits), -dlogits, laplacian_weight * (dlogits @ z.T)

    return y, pullback


def transductive_cluster(
    x_support: Array[F],
    y_support: IntArray,
    x_query: Array[F],
    *,
    n_classes: int,
    laplacian_weight: float = 0.7,
    temperature: float = 1.0,
    k: int = 3,
    update_prototypes: bool = True,
    hard: bool = False,
    psd_shift: bool = True,
    inner_iter: int = 20,
    outer_iter: int = 15,
    tol: float = 1e-6,
    callback: Callback | None = None,
) -> TransductiveResult:
    """Label all queries of a few-shot task at once, by clustering them around the labelled points.

    Parameters
    ----------
    x_support : array (S, d)
        Features of the labelled points; the defaults are meant for features of unit length.
    y_support : integer array (S,)
        Their classes, 0 to ``n_classes - 1``, each at least once.
    x_query : array (Q, d)
        Features of the points to label.
    n_classes : int >= 1
    laplacian_weight : float >= 0
        Weight of the agreement with neighbours; 0 is soft k-means with labelled points.
    temperature : float > 0
        Divides the squared distances.
    k : int from 1 to S + Q - 1
        Neighbours in the graph.
    update_prototypes : bool
        Move the prototypes; False with a graph is LaplacianShot.
    hard : bool
        Assign every query to one class: k-means.
    psd_shift : bool
        Add a multiple of the identity to the affinities that makes their eigenvalues >= 0. Without it the
        energy may rise.
    inner_iter, outer_iter : int >= 1
        Bound steps between prototype steps, and their rounds.
    tol : float >= 0
        Relative change of the energy that ends a round; move of a prototype's entry that ends the run.
    callback : callable, optional
        Called with a :class:`Progress` after every step; a true result ends the run.

    Returns
    -------
    TransductiveResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite, a class has no labelled point, or a number is
        outside its range.

    Notes
    -----
    Bound steps for the queries alternate with ``prototype = sum z x / sum z`` over all points, labelled ones
    included. Both lower :func:`laplacian_energy` or keep it.

    References
    ----------
    Ziko et al. (2021), arXiv 2106.09516; Ziko et al. (2020), arXiv 2006.15486.

    Examples
    --------
    >>> support, query = np.array([[0.0], [1.0]]), np.array([[0.1], [0.3], [0.6], [0.9]])
    >>> result = transductive_cluster(support, np.array([0, 1]), query, n_classes=2, k=1, temperature=0.1)
    >>> result.labels
    array([0, 0, 1, 1])
    """
    support, query = _points(x_support, "x_support"), _points(x_query, "x_query")
    _checks.same_dtype("x_support", support, x_query=query)
    _checks.shape(query, "x_query", (len(query), support.shape[1]))
    n_classes = _checks.whole(n_classes, "n_classes", low=1)
    labels = _checks.integer_array(y_support, "y_support", low=0, high=n_classes - 1)
    _checks.shape(labels, "y_support", support.shape[:1])
    absent = np.flatnonzero(np.bincount(labels, minlength=n_classes) == 0)
    if absent.size:
        _checks.fail("y_support", "every class at least once", f"none of class {absent[0]}")
    inner_iter = _checks.whole(inner_iter, "inner_iter", low=1)
    outer_iter = _checks.whole(outer_iter, "outer_iter", low=1)
    _checks.non_negative(tol, "tol")

    x = np.concatenate([support, query]).astype(np.float64)
    w = knn_affinity(x, k=k)
    if psd_shift:
        w = w + max(0.0, -float(np.linalg.eigvalsh(w)[0])) * np.eye(len(w))
    monitor = Monitor("transductive_cluster", callback=callback, hint="use psd_shift=True")
    fixed = np.eye(n_classes)[labels]
    prototypes = fixed.T @ x[: len(support)] / fixed.sum(axis=0)[:, None]
    cost = prototype_costs(x, prototypes, temperature=temperature)

    def assigned(z: AnyArray | None) -> AnyArray:
        # The first assignment looks at the prototypes alone.
        weight = 0.0 if z is None else laplacian_weight
        soft = bound_step(np.zeros_like(cost) if z is None else z, cost, w, laplacian_weight=weight)
        chosen = np.eye(n_classes)[soft.argmax(axis=1)] if hard else soft
        return np.concatenate([fixed, chosen[len(support) :]])

    def energy() -> float:
        return float(laplacian_energy(z, cost, w, laplacian_weight=laplacian_weight))

    z = assigned(None)
    last = energy()
    stopped, converged, rounds = monitor.record(energy=last), False, 0
    while rounds < outer_iter and not (stopped or converged):
        rounds += 1
        settled = False
        for _ in range(inner_iter):
            z, before = assigned(z), last
            last = energy()
            stopped = monitor.record(energy=last)
            settled = abs(last - before) <= tol * abs(last)
            if settled or stopped:
                break
        if not update_prototypes:
            converged = settled
            break
        moved = z.T @ x / z.sum(axis=0)[:, None]
        converged = bool(np.abs(moved - prototypes).max() <= tol)
        prototypes, cost = moved, prototype_costs(x, moved, temperature=temperature)
        last = energy()
        stopped = monitor.record(energy=last) or stopped
    return TransductiveResult(
        labels=z[len(support) :].argmax(axis=1),
        assignments=z[len(support) :].astype(support.dtype),
        prototypes=prototypes.astype(support.dtype),
        n_iter=rounds,
        converged=converged,
        history=monitor.history(),
    )


def _points(x: AnyArray, name: str) -> AnyArray:
    x = _checks.float_array(x, name, ndim=2)
    _checks.not_empty(x, name, (0, 1))
    _checks.finite(x, name)
    return x


def _graph_arguments(
    z: AnyArray, cost: AnyArray, w: AnyArray, laplacian_weight: float
) -> tuple[AnyArray, AnyArray, AnyArray]:
    z, cost, w = _checks.float_array(z, "z", ndim=2), _checks.float_array(cost, "cost"), _checks.float_array(w, "w")
    _checks.same_dtype("z", z, cost=cost, w=w)
    _checks.shape(cost, "cost", z.shape)
    _checks.shape(w, "w", (len(z), len(z)))
    _checks.non_negative(laplacian_weight, "laplacian_weight")
    return z, cost, w
