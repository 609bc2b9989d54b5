"""Multi-level training: merge neurons and layers, train the small network, copy back, blend with the big one.

F[a, i] = [i in group a] / |group a|        T[i, a] = [i in group a]        F T = I
coalesce:  weight' = T_in^T weight F_out^T        (inputs summed, outputs averaged)
copy back: weight  = F_in^T weight' T_out^T       (inputs split evenly, outputs copied)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="A Multi-Level Framework for Accelerating Training Transformer Models",
    authors="Zou, Zhang, Deng",
    year=2024,
    arxiv="2404.07999",
    functions=(
        "VCycleResult",
        "WidthPlan",
        "averaging_matrix",
        "copy_matrix",
        "pair_scheme",
        "depth_matrix",
        "coalesce_linear",
        "decoalesce_linear",
        "coalesce_depth",
        "decoalesce_depth",
        "coalesce",
        "decoalesce",
        "interpolate",
        "mlp_width_plan",
        "vcycle_train",
    ),
    chapter="solvers/multilevel_training",
)

Groups: TypeAlias = Sequence[Sequence[int]]
"""A partition of the indices 0 to n - 1: one group for each index of the small axis."""

RULES = ("average", "sum")


@dataclass(frozen=True)
class WidthPlan:
    """How every axis of every parameter shrinks.

    Parameters
    ----------
    axes
        For the path of a parameter (see :func:`refnorm.tree.tree_leaves`), one entry an axis: ``None`` for an axis
        that stays, ``("average", groups)`` for outputs, biases and embeddings, ``("sum", groups)`` for inputs.
        Parameters that are not named stay as they are.
    normalized
        The network normalizes over these axes. Copies then keep mean and variance only if all groups of an axis
        are of one size, and other groups are refused.
    """

    axes: Mapping[str, tuple[tuple[str, Groups] | None, ...]]
    normalized: bool = False


Depth: TypeAlias = tuple[str, AnyArray] | None
"""Key of the list of layers in the parameters, and the averaging matrix (small, big) of its layers."""


def averaging_matrix(groups: Groups, n: int) -> Array[np.float64]:
    """Return the matrix that replaces every group by its mean.

    Parameters
    ----------
    groups : sequence of sequences of ints
        A partition of 0 to ``n - 1``.
    n : int >= 1

    Returns
    -------
    float64 array (groups, n)

    Raises
    ------
    TypeError, ValueError
        If an index is missing, occurs twice or is out of range.

    Examples
    --------
    >>> averaging_matrix([(0, 2), (1,)], 3)
    array([[0.5, 0. , 0.5],
           [0. , 1. , 0. ]])
    """
    copied = copy_matrix(groups, n)
    return np.ascontiguousarray((copied / copied.sum(axis=0)).T)


def copy_matrix(groups: Groups, n: int) -> Array[np.float64]:
    """Return the matrix that copies one number to every member of its group.

    Parameters, errors as for :func:`averaging_matrix`.

    Returns
    -------
    float64 array (n, groups)
        ``averaging_matrix(groups, n) @ copy_matrix(groups, n)`` is the identity.

    Examples
    --------
    >>> copy_matrix([(0, 2), (1,)], 3)
    array([[1., 0.],
           [0., 1.],
           [1., 0.]])
    """
    n = _checks.whole(n, "n", low=1)
    members = [_checks.whole(index, "groups", low=0, high=n - 1) for group in groups for index in group]
    if sorted(members) != list(range(n)) or not all(len(group) for group in groups):
        _checks.fail(
            "groups", f"every index from 0 to {n - 1} exactly once, and no empty group", [tuple(g) for g in groups]
        )
    matrix = np.zeros((n, len(groups)))
    matrix[members, np.repeat(np.arange(len(groups)), [len(group) for group in groups])] = 1
    return matrix


def pair_scheme(d: int, *, block: int = 1, near: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return the groups that halve an axis.

    Parameters
    ----------
    d : int >= 2
        Size of the axis, an even number of blocks.
    block : int >= 1
        Indices that move together, such as the size of a head.
    near : bool
        Pair each block with its neighbour; otherwise block i with block i + half.

    Returns
    -------
    tuple of pairs

    Raises
    ------
    TypeError, ValueError
        If ``d`` is not an even number of blocks.

    Examples
    --------
    >>> pair_scheme(4)
    ((0, 2), (1, 3))
    >>> pair_scheme(8, block=2, near=True)
    ((0, 2), (1, 3), (4, 6), (5, 7))
    """
    block = _checks.whole(block, "block", low=1)
    d = _checks.whole(d, "d", low=2)
    if d % (2 * block):
        _checks.fail("d", f"an even number of blocks of {block}", d)
    index = np.arange(d).reshape(-1, block)
    first, second = (index[0::2], index[1::2]) if near else np.split(index, 2)
    return tuple((int(a), int(b)) for a, b in zip(first.ravel(), second.ravel(), strict=True))


def depth_matrix(n_layers: int, *, near: bool = True) -> Array[np.float64]:
    """Return the matrix that averages pairs of layers.

    Parameters
    ----------
    n_layers : int >= 2, even
    near : bool
        Pair neighbours; otherwise layer i with layer i + half.

    Returns
    -------
    float64 array (n_layers / 2, n_layers)

    Raises
    ------
    TypeError, ValueError
        If the number of layers is odd.

    Examples
    --------
    >>> depth_matrix(4)
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    """
    return averaging_matrix(pair_scheme(n_layers, near=near), n_layers)


def coalesce_linear(
    weight: Array[F], bias: Array[F], average_out: Array[F], copy_in: Array[F]
) -> tuple[Array[F], Array[F]]:
    """Shrink a linear layer: sum the inputs of a group, average its outputs.

    Parameters
    ----------
    weight, bias : arrays (I, O) and (O,)
        Of ``y = x @ weight + bias``.
    average_out : array (O', O)
        As from :func:`averaging_matrix`.
    copy_in : array (I, I')
        As from :func:`copy_matrix`.

    Returns
    -------
    weight, bias : arrays (I', O') and (O',)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit.

    Notes
    -----
    ``weight' = copy_in^T weight average_out^T`` and ``bias' = average_out bias``.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999 (coalescing).

    Examples
    --------
    >>> average, copied = averaging_matrix([(0, 1)], 2), np.ones((1, 1))
    >>> coalesce_linear(np.array([[1.0, 3.0]]), np.zeros(2), average, copied)
    (array([[2.]]), array([0.]))
    """
    return coalesce_linear_vjp(weight, bias, average_out, copy_in)[0]


def coalesce_linear_vjp(
    weight: Array[F], bias: Array[F], average_out: Array[F], copy_in: Array[F]
) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`coalesce_linear` and its pullback to ``(dweight, dbias, daverage_out, dcopy_in)``."""
    return _sandwich_vjp(weight, bias, average_out, copy_in, ("average_out", "copy_in"))


def decoalesce_linear(
    weight: Array[F], bias: Array[F], copy_out: Array[F], average_in: Array[F]
) -> tuple[Array[F], Array[F]]:
    """Grow a linear layer: copy the outputs of a group, split its inputs evenly.

    Parameters
    ----------
    weight, bias : arrays (I', O') and (O',)
    copy_out : array (O, O')
        As from :func:`copy_matrix`.
    average_in : array (I', I)
        As from :func:`averaging_matrix`.

    Returns
    -------
    weight, bias : arrays (I, O) and (O,)
        On copied inputs, the layer gives copied outputs: the network's function is kept.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit.

    Notes
    -----
    ``weight = average_in^T weight' copy_out^T`` and ``bias = copy_out bias'``.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999 (de-coalescing).

    Examples
    --------
    >>> copied, average = np.ones((1, 1)), averaging_matrix([(0, 1)], 2)
    >>> decoalesce_linear(np.array([[6.0]]), np.zeros(1), copied, average)
    (array([[3.],
           [3.]]), array([0.]))
    """
    return decoalesce_linear_vjp(weight, bias, copy_out, average_in)[0]


def decoalesce_linear_vjp(
    weight: Array[F], bias: Array[F], copy_out: Array[F], average_in: Array[F]
) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`decoalesce_linear` and its pullback to ``(dweight, dbias, dcopy_out, daverage_in)``."""
    return _sandwich_vjp(weight, bias, copy_out, average_in, ("copy_out", "average_in"))


def coalesce_depth(layers: Sequence[Tree], matrix: Array[F]) -> list[Tree]:
    """Replace layers by weighted sums of layers.

    Parameters
    ----------
    layers : list of parameter trees of one structure
    matrix : array (L', L)
        Rows sum to 1, as from :func:`depth_matrix`.

    Returns
    -------
    list of L' parameter trees

    Raises
    ------
    TypeError, ValueError
        If the matrix has another number of columns, or the layers differ in structure or shape.

    Notes
    -----
    ``layer'_i = sum_j matrix[i, j] layer_j`` for every parameter.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999.

    Examples
    --------
    >>> coalesce_depth([{"w": np.array([1.0])}, {"w": np.array([3.0])}], depth_matrix(2))
    [{'w': array([2.])}]
    """
    return coalesce_depth_vjp(layers, matrix)[0]


def coalesce_depth_vjp(layers: Sequence[Tree], matrix: Array[F]) -> tuple[list[Tree], Pullback]:
    """Return :func:`coalesce_depth` and its pullback ``dlayers' -> (dlayers, dmatrix)``."""
    matrix = _checks.float_array(matrix, "matrix", ndim=2)
    layers = list(layers)
    if not layers or matrix.shape[1] != len(layers):
        _checks.fail("matrix", f"{len(layers)} columns, one a layer", f"shape {matrix.shape}")
    mixed = _mix(matrix, layers)

    def pullback(dmixed: Sequence[Tree]) -> tuple[list[Tree], AnyArray]:
        # Linear in the layers and in the matrix: the transpose, and inner products.
        dmatrix = np.array([[_inner(d, layer) for layer in layers] for d in dmixed]).reshape(matrix.shape)
        return _mix(matrix.T, list(dmixed)), dmatrix.astype(matrix.dtype)

    return mixed, pullback


def decoalesce_depth(layers: Sequence[Tree], matrix: Array[F]) -> list[Tree]:
    """Copy every layer to all layers of its group.

    Parameters
    ----------
    layers : list of L' parameter trees
    matrix : array (L, L')
        Rows sum to 1, as from :func:`copy_matrix`.

    Returns
    -------
    list of L parameter trees

    Raises
    ------
    TypeError, ValueError
        As :func:`coalesce_depth`.

    Notes
    -----
    The same weighted sum as in :func:`coalesce_depth`. Unlike copies of neurons, copies of layers change the
    network's function.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999 (de-coalescing).

    Examples
    --------
    >>> decoalesce_depth([{"w": np.array([2.0])}], np.ones((2, 1)))
    [{'w': array([2.])}, {'w': array([2.])}]
    """
    return coalesce_depth(layers, matrix)


def decoalesce_depth_vjp(layers: Sequence[Tree], matrix: Array[F]) -> tuple[list[Tree], Pullback]:
    """Return :func:`decoalesce_depth` and its pullback ``dlayers -> (dlayers', dmatrix)``."""
    return coalesce_depth_vjp(layers, matrix)


def coalesce(params: Tree, plan: WidthPlan, depth: Depth = None) -> Tree:
    """Shrink a whole network, first in width, then in depth.

    Parameters
    ----------
    params : parameter tree
    plan : WidthPlan
    depth : (key, matrix), optional
        ``params[key]`` is the list of layers, and the matrix averages them, as from :func:`depth_matrix`.

    Returns
    -------
    parameter tree of the same structure

    Raises
    ------
    TypeError, ValueError
        If a scheme does not fit its axis, or sizes of groups differ in a normalized network.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999.

    Examples
    --------
    >>> plan = WidthPlan({"0": (None, ("average", [(0, 1)])), "1": (("sum", [(0, 1)]), None)})
    >>> coalesce([np.array([[1.0, 3.0]]), np.array([[2.0], [4.0]])], plan)
    [array([[2.]]), array([[6.]])]
    """
    return coalesce_vjp(params, plan, depth)[0]


def coalesce_vjp(params: Tree, plan: WidthPlan, depth: Depth = None) -> tuple[Tree, Pullback]:
    """Return :func:`coalesce` and its pullback ``dsmall -> (dparams,)``."""
    small = _apply_plan(params, plan, _shrink)
    back_depth: Pullback | None = None
    if depth is not None:
        small, back_depth = _with_layers(small, depth[0], depth[1])

    def pullback(dsmall: Tree) -> tuple[Tree]:
        wide = dsmall if back_depth is None else back_depth(dsmall)[0]
        # The transpose of a matrix on an axis is the transposed matrix on that axis.
        return (_apply_plan(wide, plan, lambda rule, groups: _shrink(rule, groups).T),)

    return small, pullback


def decoalesce(params: Tree, plan: WidthPlan, depth: Depth = None) -> Tree:
    """Grow a network to the sizes before :func:`coalesce`.

    Parameters and errors are those of :func:`coalesce`, ``params`` being the small network's; ``depth`` has the same
    averaging matrix, of which the copies follow.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999 (de-coalescing).

    Examples
    --------
    >>> plan = WidthPlan({"0": (None, ("average", [(0, 1)])), "1": (("sum", [(0, 1)]), None)})
    >>> decoalesce([np.array([[2.0]]), np.array([[6.0]])], plan)
    [array([[2., 2.]]), array([[3.],
           [3.]])]
    """
    return decoalesce_vjp(params, plan, depth)[0]


def decoalesce_vjp(params: Tree, plan: WidthPlan, depth: Depth = None) -> tuple[Tree, Pullback]:
    """Return :func:`decoalesce` and its pullback ``dbig -> (dparams,)``."""
    big = _apply_plan(params, plan, _grow)
    back_depth: Pullback | None = None
    if depth is not None:
        copies = np.asarray(depth[1]).T
        big, back_depth = _with_layers(big, depth[0], copies / copies.sum(axis=1, keepdims=True))

    def pullback(dbig: Tree) -> tuple[Tree]:
        wide = dbig if back_depth is None else back_depth(dbig)[0]
        return (_apply_plan(wide, plan, lambda rule, groups: _grow(rule, groups).T),)

    return big, pullback


def interpolate(big: Tree, grown: Tree, alpha: float) -> Tree:
    """Blend a network with the one that was grown from its small version.

    Parameters
    ----------
    big, grown : parameter trees of one structure
    alpha : float in [0, 1]
        Weight of ``grown``.

    Returns
    -------
    parameter tree

    Raises
    ------
    TypeError, ValueError
        If the trees differ or ``alpha`` is out of range.

    Notes
    -----
    ``(1 - alpha) big + alpha grown``. The part of ``big`` tells the copies apart again.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999 (interpolation).

    Examples
    --------
    >>> interpolate(np.array([1.0, 3.0]), np.array([2.0, 2.0]), 0.5)
    array([1.5, 2.5])
    """
    return interpolate_vjp(big, grown, alpha)[0]


def interpolate_vjp(big: Tree, grown: Tree, alpha: float) -> tuple[Tree, Pullback]:
    """Return :func:`interpolate` and its pullback ``dparams -> (dbig, dgrown, dalpha)``."""
    weight = np.asarray(alpha)
    _checks.in_range(float(weight.real), "alpha", 0.0, 1.0)

    def blend(a: AnyArray, b: AnyArray) -> AnyArray:
        a, b = _checks.float_array(a, "big"), _checks.float_array(b, "grown")
        _checks.shape(b, "grown", a.shape)
        _checks.same_dtype("big", a, grown=b)
        return np.asarray((1 - alpha) * a + alpha * b)

    blended = tree_map(blend, big, grown, path="grown")

    def pullback(dparams: Tree) -> tuple[Tree, Tree, AnyArray]:
        dbig = tree_map(lambda d: np.asarray((1 - alpha) * d), dparams)
        dgrown = tree_map(lambda d: np.asarray(alpha * d), dparams)
        return dbig, dgrown, np.asarray(_inner(dparams, grown) - _inner(dparams, big))

    return blended, pullback


def mlp_width_plan(params: Sequence[tuple[AnyArray, AnyArray]], *, near: bool = False) -> WidthPlan:
    """Return the plan that halves every hidden layer of a multilayer perceptron.

    Parameters
    ----------
    params : list of (weight (inputs, outputs), bias (outputs,))
        The hidden widths are even.
    near : bool
        As in :func:`pair_scheme`.

    Returns
    -------
    WidthPlan

    Raises
    ------
    TypeError, ValueError
        If a hidden width is odd.

    Examples
    --------
    >>> params = [(np.ones((3, 4)), np.ones(4)), (np.ones((4, 2)), np.ones(2))]
    >>> [weight.shape for weight, _ in coalesce(params, mlp_width_plan(params))]
    [(3, 2), (2, 2)]
    """
    schemes = [None, *(pair_scheme(np.shape(weight)[1], near=near) for weight, _ in params[:-1]), None]
    axes: dict[str, tuple[tuple[str, Groups] | None, ...]] = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(schemes)):
        average = None if outputs is None else ("average", outputs)
        axes[f"{number}.0"] = (None if inputs is None else ("sum", inputs), average)
        axes[f"{number}.1"] = (average,)
    return WidthPlan(axes)


@dataclass(frozen=True)
class VCycleResult:
    """Outcome of :func:`vcycle_train`.

    Parameters
    ----------
    params
        Of the big network.
    n_iter
        Training steps on all levels.
    converged
        Whether all stages were run; false if the callback ended the run.
    cost
        Sum over all steps of the number of parameters that were trained.
    history
        ``loss``, ``level`` (from 1, the big network) and ``cost`` so far, of every step.
    """

    params: Tree
    n_iter: int
    converged: bool
    cost: int
    history: dict[str, Array[np.float64]]


TrainFunction: TypeAlias = Callable[[Tree, int, np.random.Generator], tuple[Tree, Sequence[float]]]
"""From parameters, a number of steps and a generator to the parameters after them and the losses on the way."""


def vcycle_train(
    params: Tree,
    levels: WidthPlan | Sequence[tuple[WidthPlan, Depth]],
    train: TrainFunction,
    *,
    rng: np.random.Generator,
    steps: tuple[int, int, int] = (100, 1000, 1000),
    alpha: float = 0.5,
    callback: Callback | None = None,
) -> VCycleResult:
    """Train on the way down to a small network and on the way up again.

    Parameters
    ----------
    params : parameter tree
        Of the big network.
    levels : WidthPlan, or a list of (WidthPlan, depth)
        One entry for each step down; see :func:`coalesce`.
    train : callable
        ``train(params, steps, rng) -> (params, losses)``. It starts its optimizer afresh.
    rng : numpy.random.Generator
        Handed to ``train``.
    steps : three ints >= 0
        Steps of each level on the way down, of the smallest and the middle levels on the way up, and of the big
        network in the end.
    alpha : float in [0, 1]
        Weight of the grown network in the blend.
    callback : callable, optional
        Told loss, level and cost of every step; a true result ends the run after the present stage.

    Returns
    -------
    VCycleResult

    Raises
    ------
    TypeError, ValueError
        If a plan does not fit or an option is out of range.

    References
    ----------
    Zou, Zhang, Deng (2024), arXiv 2404.07999 (V-cycle).

    Examples
    --------
    >>> def train(params, steps, rng):
    ...     return params, [1.0] * steps
    >>> params = [(np.ones((1, 2)), np.zeros(2)), (np.ones((2, 1)), np.zeros(1))]
    >>> result = vcycle_train(params, mlp_width_plan(params), train, rng=np.random.default_rng(0), steps=(1, 2, 3))
    >>> result.history["level"], result.cost
    (array([1., 2., 2., 1., 1., 1.]), 36)
    """
    rng = _checks.generator(rng)
    down, small, last = (_checks.whole(count, "steps", low=0) for count in steps)
    _checks.in_range(alpha, "alpha", 0.0, 1.0)
    plans = [(levels, None)] if isinstance(levels, WidthPlan) else list(levels)
    monitor = Monitor("vcycle_train", callback=callback, hint="use a smaller learning rate in train")
    cost, kept, stopped = 0, [], False

    def stage(params: Tree, count: int, level: int) -> Tree:
        nonlocal cost, stopped
        if stopped or not count:
            return params
        size = sum(int(np.size(leaf)) for _, leaf in tree_leaves(params) if leaf is not None)
        params, losses = train(params, count, rng)
        for loss in losses:
            cost += size
            stopped |= monitor.record(loss=float(loss), level=level, cost=cost)
        return params

    for level, (plan, depth) in enumerate(plans, start=1):
        params = stage(params, down, level)
        kept.append(params)
        params = coalesce(params, plan, depth)
    params = stage(params, small, len(plans) + 1) if plans else params
    for level in range(len(plans), 0, -1):
        plan, depth = plans[level - 1]
        params = interpolate(kept.pop(), decoalesce(params, plan, depth), alpha)
        params = stage(params, small if level > 1 else last, level)
    params = params if plans else stage(params, last, 1)
    return VCycleResult(params, monitor.n_iter, not stopped, cost, monitor.history())


def _sandwich_vjp(
    weight: AnyArray, bias: AnyArray, out: AnyArray, into: AnyArray, names: tuple[str, str]
) -> tuple[tuple[AnyArray, AnyArray], Pullback]:
    """``weight -> into^T weight out^T`` and ``bias -> out bias``: both directions have this form."""
    weight, bias = _checks.float_array(weight, "weight", ndim=2), _checks.float_array(bias, "bias", ndim=1)
    out, into = _checks.float_array(out, names[0], ndim=2), _checks.float_array(into, names[1], ndim=2)
    _checks.same_dtype("weight", weight, **{"bias": bias, names[0]: out, names[1]: into})
    _checks.shape(bias, "bias", weight.shape[1:])
    _checks.shape(out, names[0], (len(out), weight.shape[1]))
    _checks.shape(into, names[1], (weight.shape[0], into.shape[1]))
    small = into.T @ weight @ out.T

    def pullback(cotangents: tuple[AnyArray, AnyArray]) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
        # <D, A^T W B^T>: each factor's cotangent is the product of the others, so that the shapes fit.
        dweight, dbias = (np.asarray(c) for c in cotangents)
        dout = dweight.T @ (into.T @ weight) + np.outer(dbias, bias)
        dinto = weight @ out.T @ dweight.T
        return into @ dweight @ out, out.T @ dbias, dout, dinto

    return (small, out @ bias), pullback


def _mix(matrix: AnyArray, layers: Sequence[Tree]) -> list[Tree]:
    def total(weights: AnyArray) -> Callable[..., AnyArray]:
        def combine(*leaves: AnyArray) -> AnyArray:
            for leaf in leaves[1:]:
                _checks.shape(np.asarray(leaf), "layers", np.shape(leaves[0]))
            stacked = np.stack([np.asarray(leaf) for leaf in leaves])
            same = weights if weights.dtype.kind == "c" else weights.astype(stacked.dtype)
            return np.asarray(np.tensordot(same, stacked, 1))

        return combine

    return [tree_map(total(row), layers[0], *layers[1:], path="layers") for row in matrix]


def _inner(left: Tree, right: Tree) -> Any:
    pairs = zip(tree_leaves(left), tree_leaves(right), strict=True)
    return sum(np.sum(np.asarray(a) * np.asarray(b)) for (_, a), (_, b) in pairs if a is not None)


def _shrink(rule: str, groups: Groups) -> AnyArray:
    n = sum(len(group) for group in groups)
    return averaging_matrix(groups, n) if rule == "average" else copy_matrix(groups, n).T


def _grow(rule: str, groups: Groups) -> AnyArray:
    n = sum(len(group) for group in groups)
    return copy_matrix(groups, n) if rule == "average" else averaging_matrix(groups, n).T


def _apply_plan(params: Tree, plan: WidthPlan, matrix_of: Callable[[str, Groups], AnyArray]) -> Tree:
    """Multiply every planned axis by its matrix."""
    leaves = []
    for path, leaf in tree_leaves(params):
        rules = plan.axes.get(path, ())
        if leaf is not None and rules:
            leaf = _checks.float_array(leaf, f"params.{path}", ndim=len(rules))
        for axis, entry in enumerate(rules):
            if entry is None or leaf is None:
                continue
            rule, groups = entry
            _checks.one_of(rule, "plan", RULES)
            if plan.normalized and len({len(group) for group in groups}) > 1:
                _checks.fail("plan", "groups of one size in a normalized network", sorted({len(g) for g in groups}))
            matrix = matrix_of(rule, groups)
            if matrix.shape[1] != leaf.shape[axis]:
                _checks.fail("plan", f"groups for axis {axis} of size {leaf.shape[axis]} of {path!r}", matrix.shape[1])
            moved = np.tensordot(matrix.astype(leaf.dtype), leaf, axes=(1, axis))
            leaf = np.ascontiguousarray(np.moveaxis(moved, 0, axis))
        leaves.append(leaf)
    following = iter(leaves)
    return tree_map(lambda _: next(following), params)


def _with_layers(params: Tree, key: str, matrix: AnyArray) -> tuple[Tree, Pullback]:
    """Mix the list of layers inside a dict of parameters."""
    if not isinstance(params, dict) or key not in params:
        _checks.fail("depth", "the key of a list of layers in a dict of parameters", repr(key))
    mixed, back = coalesce_depth_vjp(params[key], matrix)

    def pullback(dmixed: Tree) -> tuple[Tree]:
        return ({**dmixed, key: back(dmixed[key])[0]},)

    return {**params, key: mixed}, pullback
