"""Convergent graph solver: a layer that is the unique fixed point of a contraction on a graph.

z = activation(contraction A z + b),   A[destination, source] = normalized edge weights,   |A|_1 <= 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.tree import tree_leaves

METHOD = Method(
    title="Convergent Graph Solvers",
    authors="Park, Choo, Park",
    year=2022,
    arxiv="2106.01680",
    functions=(
        "ConvergentGraphSolver",
        "GraphFixedPointResult",
        "contractive_weights",
        "graph_fixed_point",
        "graph_solver",
        "init_graph_solver",
    ),
    chapter="solvers/convergent_graph_solver",
)

NORMS = ("degree", "softmax")
METHODS = ("iterate", "direct")
LEAK = 0.2
"""Slope of the leaky ReLU on the negative side."""

MIDDLE = 0.5
"""Edge logits begin here, in the middle of the interval that is not clipped: a clipped edge does not learn."""

Affine: TypeAlias = tuple[AnyArray, AnyArray]


def _leaky(u: AnyArray) -> tuple[AnyArray, AnyArray]:
    slope = np.where(u.real > 0, 1.0, LEAK).astype(u.real.dtype)
    return slope * u, slope


def _tanh(u: AnyArray) -> tuple[AnyArray, AnyArray]:
    z = np.tanh(u)
    return z, 1 - z * z


ACTIVATIONS: dict[str, Callable[[AnyArray], tuple[AnyArray, AnyArray]]] = {
    "identity": lambda u: (u, np.ones_like(u)),
    "tanh": _tanh,
    "leaky_relu": _leaky,
}
"""Value and slope; slopes are between 0 and 1, so that no activation expands."""


@dataclass(frozen=True)
class GraphFixedPointResult:
    """Outcome of :func:`graph_fixed_point`.

    Parameters
    ----------
    x : array (n, H)
        The fixed point, one column a head.
    n_iter
        Applications of the map; 0 for the direct solution.
    converged
        Whether the last step was shorter than ``tol``.
    history
        ``step``: Frobenius norm of each step.
    error_bound
        Upper bound of the distance to the fixed point, as the largest 1-norm of a head; 0 for the direct solution.
    """

    x: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]
    error_bound: float


@dataclass(frozen=True)
class ConvergentGraphSolver:
    """Weights of a network around the fixed-point layer.

    Parameters
    ----------
    edge_encoder, node_encoder, decoder : tuples of (weight, bias)
        Multilayer perceptrons with ReLU between their layers.
    edge_head : (weight, bias)
        From an edge's message to its logits, one a head.
    node_head : (weight, bias)
        From a node's state to its biases, one a head.
    """

    edge_encoder: tuple[Affine, ...]
    node_encoder: tuple[Affine, ...]
    edge_head: Affine
    node_head: Affine
    decoder: tuple[Affine, ...]


def contractive_weights(logits: Array[F], src: IntArray, dst: IntArray, n: int, *, norm: str = "degree") -> Array[F]:
    """Edge weights whose matrix has no column sum above 1.

    Parameters
    ----------
    logits : array (E, H)
        One number an edge and head.
    src, dst : integer arrays (E,)
        Source and destination of every edge, from 0 to n - 1; edges may repeat.
    n : int >= 1
        Number of nodes.
    norm : {"degree", "softmax"}
        Clip to [0, 1] and divide by the source's number of outgoing edges; or softmax over those edges.

    Returns
    -------
    array (E, H), dtype of ``logits``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong, an index is out of range or an option is unknown.

    Notes
    -----
    ``A[dst, src] = weight`` then has non-negative entries and ``|A|_1 <= 1``. Where a logit is clipped, and at 0
    and 1 themselves, the derivative is 0.

    References
    ----------
    Park, Choo, Park (2022), arXiv 2106.01680, section 4.

    Examples
    --------
    >>> src, dst = np.array([0, 0, 1]), np.array([1, 2, 0])
    >>> contractive_weights(np.array([[0.5], [2.0], [-1.0]]), src, dst, 3)
    array([[0.25],
           [0.5 ],
           [0.  ]])
    """
    return contractive_weights_vjp(logits, src, dst, n, norm=norm)[0]


def contractive_weights_vjp(
    logits: Array[F], src: IntArray, dst: IntArray, n: int, *, norm: str = "degree"
) -> tuple[Array[F], Pullback]:
    """Return :func:`contractive_weights` and its pullback ``dweights -> (dlogits,)``."""
    logits = _checks.float_array(logits, "logits", ndim=2)
    edges = _Edges(src, dst, n, len(logits))
    _checks.one_of(norm, "norm", NORMS)
    if norm == "degree":
        degree = np.bincount(edges.src, minlength=edges.n)[edges.src, None].astype(logits.real.dtype)
        inside = (logits.real > 0) & (logits.real < 1)
        clipped = np.where(inside, logits, np.clip(logits.real, 0, 1)).astype(logits.dtype)
        shared: Array[F] = np.asarray(clipped / degree)
        return shared, lambda dweights: (np.where(inside, dweights / degree, 0).astype(logits.dtype),)
    largest = np.full((edges.n, logits.shape[1]), -np.inf, logits.real.dtype)
    np.maximum.at(largest, edges.src, logits.real)
    terms = np.exp(logits - largest[edges.src])
    weights: Array[F] = np.asarray(terms / edges.from_sources(terms)[edges.src])

    def pullback(dweights: Array[F]) -> tuple[AnyArray]:
        return (weights * (dweights - edges.from_sources(weights * dweights)[edges.src]),)

    return weights, pullback


def graph_fixed_point(
    logits: Array[F],
    b: Array[F],
    src: IntArray,
    dst: IntArray,
    *,
    contraction: float = 0.5,
    activation: str = "identity",
    norm: str = "degree",
    method: str = "iterate",
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> GraphFixedPointResult:
    """Fixed point of ``z = activation(contraction A z + b)`` on a graph, for every head.

    Parameters
    ----------
    logits : array (E, H)
        Turned into edge weights by :func:`contractive_weights`.
    b : array (n, H)
        Biases of the nodes.
    src, dst : integer arrays (E,)
        Source and destination of every edge.
    contraction : float in (0, 1)
        Factor by which the map shrinks distances, at least.
    activation : {"identity", "tanh", "leaky_relu"}
    norm : {"degree", "softmax"}
    method : {"iterate", "direct"}
        Repeat the map from 0, or solve the linear system by a sparse factorization (identity only).
    tol : float > 0
        The iteration ends at a step of this Frobenius norm.
    max_iter : int >= 1
    callback : callable, optional
        Called with a ``Progress`` after every application; a true result ends the run.

    Returns
    -------
    GraphFixedPointResult

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape, index or option is wrong.

    Notes
    -----
    The column sums of A are at most 1, so the map contracts in the 1-norm of each head: the fixed point exists,
    is unique, and ``|z_k - z|_1 <= contraction^k |z_0 - z|_1``, for any logits.

    References
    ----------
    Park, Choo, Park (2022), arXiv 2106.01680, section 4.

    Examples
    --------
    >>> logits, b = np.array([[1.0], [0.5]]), np.array([[1.0], [0.0]])
    >>> graph_fixed_point(logits, b, np.array([0, 1]), np.array([1, 0]), method="direct").x * 7
    array([[8.],
           [4.]])
    """
    system = _System(logits, b, src, dst, contraction, activation, norm)
    tol, max_iter = _options(method, activation, tol, max_iter)
    if method == "direct":
        return GraphFixedPointResult(system.direct(system.b, transposed=False), 0, True, {}, 0.0)
    monitor = Monitor("graph_fixed_point", callback=callback, hint="use finite logits and biases")
    z, step, converged = np.zeros_like(system.b), np.zeros_like(system.b), False
    for _ in range(max_iter):
        following = system.apply(z)
        z, step = following, following - z
        length = float(np.linalg.norm(step))
        stop = monitor.record(step=length)
        converged = length < tol
        if converged or stop:
            break
    bound = contraction / (1 - contraction) * float(np.abs(step).sum(axis=0).max(initial=0.0))
    return GraphFixedPointResult(z, monitor.n_iter, converged, monitor.history(), bound)


def graph_fixed_point_vjp(
    logits: Array[F],
    b: Array[F],
    src: IntArray,
    dst: IntArray,
    *,
    contraction: float = 0.5,
    activation: str = "identity",
    norm: str = "degree",
    method: str = "iterate",
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> tuple[AnyArray, Pullback]:
    """Return the fixed point of :func:`graph_fixed_point` and its pullback ``dz -> (dlogits, db)``.

    The derivative is that of the exact fixed point, by one more solve with the transposed matrix; the iterations
    leave no trace in it.
    """
    options: dict[str, Any] = {"contraction": contraction, "activation": activation, "norm": norm}
    result = graph_fixed_point(
        logits, b, src, dst, **options, method=method, tol=tol, max_iter=max_iter, callback=callback
    )
    z = result.x
    system = _System(logits, b, src, dst, contraction, activation, norm)
    slope = ACTIVATIONS[activation](system.argument(z))[1]

    def pullback(dz: Array[F]) -> tuple[AnyArray, AnyArray]:
        # z = activation(u), u = c A z + b:  (I - c A^T D) y = dz gives db = D y and dA = c (D y) z^T on the edges.
        if method == "direct":
            y = system.direct(dz, transposed=True)
        else:
            y = system.adjoint(dz, slope, tol, max_iter)
        db = slope * y
        dweights = contraction * db[system.edges.dst] * z[system.edges.src]
        return system.back_weights(dweights)[0], db

    return z, pullback


class _Edges:
    """Checked indices, and sums of edge values at their sources or destinations."""

    def __init__(self, src: IntArray, dst: IntArray, n: int, count: int) -> None:
        self.n = _checks.whole(n, "n", low=1)
        self.src = _checks.integer_array(src, "src", ndim=1, low=0, high=self.n - 1)
        self.dst = _checks.integer_array(dst, "dst", ndim=1, low=0, high=self.n - 1)
        _checks.shape(self.src, "src", (count,))
        _checks.shape(self.dst, "dst", (count,))
        self._matrices: dict[str, Any] = {}

    def from_sources(self, values: AnyArray) -> AnyArray:
        return self._sum("src", self.src, values)

    def at_destinations(self, values: AnyArray) -> AnyArray:
        return self._sum("dst", self.dst, values)

    def _sum(self, name: str, index: AnyArray, values: AnyArray) -> AnyArray:
        if name not in self._matrices:
            ones = np.ones(len(index), values.real.dtype)
            place = (index, np.arange(len(index)))
            self._matrices[name] = scipy.sparse.csr_array((ones, place), shape=(self.n, len(index)))
        return np.asarray(self._matrices[name] @ values)


class _System:
    """The map ``z -> activation(c A z + b)`` for all heads, its linear solve and the adjoint's."""

    def __init__(
        self,
        logits: AnyArray,
        b: AnyArray,
        src: IntArray,
        dst: IntArray,
        contraction: float,
        activation: str,
        norm: str,
    ) -> None:
        self.b = _checks.float_array(b, "b", ndim=2)
        _checks.not_empty(self.b, "b", (0, 1))
        logits = _checks.float_array(logits, "logits", ndim=2)
        _checks.same_dtype("logits", logits, b=self.b)
        _checks.shape(self.b, "b", (len(self.b), logits.shape[1]))
        _checks.in_range(contraction, "contraction", 0, 1, closed="neither")
        _checks.one_of(activation, "activation", tuple(ACTIVATIONS))
        self.contraction, self.activation = contraction, ACTIVATIONS[activation]
        self.edges = _Edges(src, dst, len(self.b), len(logits))
        self.weights, self.back_weights = contractive_weights_vjp(logits, src, dst, len(self.b), norm=norm)
        self._factor: Any = None

    def argument(self, z: AnyArray) -> AnyArray:
        flow = self.edges.at_destinations(self.weights * z[self.edges.src])
        return np.asarray(self.contraction * flow + self.b)

    def apply(self, z: AnyArray) -> AnyArray:
        return self.activation(self.argument(z))[0]

    def adjoint(self, dz: AnyArray, slope: AnyArray, tol: float, max_iter: int) -> AnyArray:
        """Solve ``y = c A^T D y + dz`` by the same contraction, now in the largest entry."""
        y = np.asarray(dz)
        for _ in range(max_iter):
            flow = self.edges.from_sources(self.weights * (slope * y)[self.edges.dst])
            following = self.contraction * flow + dz
            step, y = float(np.linalg.norm(following - y)), following
            if step < tol:
                break
        return y

    def direct(self, right: AnyArray, *, transposed: bool) -> AnyArray:
        """Solve ``(I - c A) z = right`` or its transpose, all heads in one sparse factorization."""
        if self._factor is None:
            size, heads = self.b.shape
            shift = size * np.arange(heads)
            place = ((self.edges.dst[:, None] + shift).ravel(), (self.edges.src[:, None] + shift).ravel())
            whole = (size * heads,) * 2
            matrix = scipy.sparse.coo_array((self.contraction * self.weights.ravel(), place), shape=whole)
            identity = scipy.sparse.eye_array(size * heads, dtype=matrix.dtype)
            self._factor = scipy.sparse.linalg.splu((identity - matrix).tocsc())
        flat = np.ascontiguousarray(right.T).ravel().astype(self.weights.dtype)
        solution = self._factor.solve(flat, trans="T" if transposed else "N")
        return np.asarray(solution.reshape(right.shape[::-1]).T)


def _options(method: str, activation: str, tol: float, max_iter: int) -> tuple[float, int]:
    _checks.one_of(method, "method", METHODS)
    if method == "direct" and activation != "identity":
        _checks.fail("method", "'iterate' with this activation", repr(method))
    _checks.positive(tol, "tol")
    return tol, _checks.whole(max_iter, "max_iter", low=1)


def init_graph_solver(
    rng: np.random.Generator,
    node_features: int,
    edge_features: int,
    outputs: int,
    *,
    heads: int = 8,
    hidden: int = 64,
    dtype: Any = np.float64,
) -> ConvergentGraphSolver:
    """Draw the weights of :func:`graph_solver`.

    Parameters
    ----------
    rng : numpy.random.Generator
    node_features, edge_features : int >= 1
        Sizes of the inputs.
    outputs : int >= 1
        Numbers predicted for each node.
    heads, hidden : int >= 1
        Fixed points, and width of all perceptrons.
    dtype : float32 or float64

    Returns
    -------
    ConvergentGraphSolver
        Uniform on ``+-1 / sqrt(inputs)``, with 0.5 added to the biases of the edge logits.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive integer.

    Examples
    --------
    >>> len(init_graph_solver(np.random.default_rng(0), 1, 1, 1).decoder)
    2
    """
    rng = _checks.generator(rng)
    named = {"node_features": node_features, "edge_features": edge_features, "outputs": outputs}
    for name, size in {**named, "heads": heads, "hidden": hidden}.items():
        _checks.whole(size, name, low=1)

    def affine(inputs: int, size: int, offset: float = 0.0) -> Affine:
        limit = 1 / np.sqrt(inputs)
        bias = rng.uniform(-limit, limit, size) + offset
        return np.asarray(rng.uniform(-limit, limit, (inputs, size)), dtype), np.asarray(bias, dtype)

    return ConvergentGraphSolver(
        edge_encoder=(affine(2 * node_features + edge_features, hidden), affine(hidden, hidden)),
        node_encoder=(affine(node_features + hidden, hidden), affine(hidden, hidden)),
        edge_head=affine(hidden, heads, MIDDLE),
        node_head=affine(hidden, heads),
        decoder=(affine(heads, hidden), affine(hidden, outputs)),
    )


def graph_solver(
    params: ConvergentGraphSolver,
    nodes: Array[F],
    edges: Array[F],
    src: IntArray,
    dst: IntArray,
    *,
    contraction: float = 0.5,
    norm: str = "degree",
    method: str = "direct",
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> Array[F]:
    """Predict a number for every node from the stationary state of a learned graph system.

    Parameters
    ----------
    params : ConvergentGraphSolver
    nodes : array (n, features)
    edges : array (E, features)
    src, dst : integer arrays (E,)
        Several graphs are one graph without edges between them.
    contraction, norm, method, tol, max_iter
        As in :func:`graph_fixed_point`.

    Returns
    -------
    array (n, outputs), dtype of ``nodes``

    Raises
    ------
    TypeError, ValueError
        As :func:`graph_fixed_point`.

    Notes
    -----
    A message for each edge from its two nodes and its own features; a state for each node from its features and the
    mean of its incoming messages; logits and biases from both; the fixed point; and a perceptron on its heads.

    References
    ----------
    Park, Choo, Park (2022), arXiv 2106.01680, section 4.

    Examples
    --------
    >>> params = init_graph_solver(np.random.default_rng(0), 1, 1, 1, hidden=4)
    >>> graph_solver(params, np.ones((3, 1)), np.ones((2, 1)), np.array([0, 1]), np.array([1, 2])).shape
    (3, 1)
    """
    options: dict[str, Any] = {"contraction": contraction, "norm": norm, "method": method}
    return graph_solver_vjp(params, nodes, edges, src, dst, tol=tol, max_iter=max_iter, **options)[0]


def graph_solver_vjp(
    params: ConvergentGraphSolver,
    nodes: Array[F],
    edges: Array[F],
    src: IntArray,
    dst: IntArray,
    *,
    contraction: float = 0.5,
    norm: str = "degree",
    method: str = "direct",
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> tuple[Array[F], Pullback]:
    """Return :func:`graph_solver` and its pullback ``dy -> (dparams, dnodes, dedges)``."""
    nodes, edges = _checks.float_array(nodes, "nodes", ndim=2), _checks.float_array(edges, "edges", ndim=2)
    _checks.not_empty(nodes, "nodes", (0,))
    _checks.same_dtype("nodes", nodes, edges=edges)
    for path, leaf in tree_leaves(params):
        _checks.same_dtype("nodes", nodes, **{f"params.{path}": _checks.float_array(leaf, f"params.{path}")})
    graph = _Edges(src, dst, len(nodes), len(edges))
    arriving = np.maximum(np.bincount(graph.dst, minlength=graph.n), 1)[:, None].astype(nodes.dtype)
    size = nodes.shape[1]

    message, back_message = _perceptron(
        np.concatenate([nodes[graph.src], nodes[graph.dst], edges], axis=1), params.edge_encoder
    )
    mean = graph.at_destinations(message) / arriving
    state, back_state = _perceptron(np.concatenate([nodes, mean], axis=1), params.node_encoder)
    logits, back_edge_head = linear_vjp(message, *params.edge_head)
    b, back_node_head = linear_vjp(state, *params.node_head)
    options: dict[str, Any] = {"contraction": contraction, "norm": norm, "method": method}
    z, back_fixed = graph_fixed_point_vjp(logits, b, src, dst, tol=tol, max_iter=max_iter, **options)
    y, back_decoder = _perceptron(z, params.decoder)

    def pullback(dy: Array[F]) -> tuple[ConvergentGraphSolver, AnyArray, AnyArray]:
        dz, ddecoder = back_decoder(dy)
        dlogits, db = back_fixed(dz)
        dstate, *dnode_head = back_node_head(db)
        djoined, dnode_encoder = back_state(dstate)
        dmessage, *dedge_head = back_edge_head(dlogits)
        dmessage = dmessage + (djoined[:, size:] / arriving)[graph.dst]
        dinputs, dedge_encoder = back_message(dmessage)
        dnodes = djoined[:, :size] + graph.from_sources(dinputs[:, :size])
        dnodes = dnodes + graph.at_destinations(dinputs[:, size : 2 * size])
        dparams = ConvergentGraphSolver(
            dedge_encoder, dnode_encoder, (dedge_head[0], dedge_head[1]), (dnode_head[0], dnode_head[1]), ddecoder
        )
        return dparams, dnodes, dinputs[:, 2 * size :]

    return y, pullback


def _perceptron(
    x: AnyArray, layers: tuple[Affine, ...]
) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, tuple[Affine, ...]]]]:
    """Affine layers with ReLU between them."""
    steps = []
    for number, (weight, bias) in enumerate(layers):
        x, back = linear_vjp(x, weight, bias)
        activate = None
        if number < len(layers) - 1:
            x, activate = relu_vjp(x)
        steps.append((back, activate))

    def pullback(dy: AnyArray) -> tuple[AnyArray, tuple[Affine, ...]]:
        found = []
        for back, activate in reversed(steps):
            if activate is not None:
                (dy,) = activate(dy)
            dy, dweight, dbias = back(dy)
            found.append((dweight, dbias))
        return dy, tuple(found[::-1])

    return x, pullback
