"""HESSO: train and prune in one run, by fading out the least important groups of parameters.

param = param - learning_rate (direction + weight_decay param)                       all parameters
param = param (N - t - 1) / (N - t),   t = 1 ... N - 1                              groups that fade out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, IntArray, Method, Tree
from refnorm.solvers._protocol import check_betas, update_leaves, zeros_like
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning",
    authors="Chen, Qu, Aponte, Banbury, Ko, Ding, Ma, Lyapunov, Zharkov, Liang",
    year=2024,
    arxiv="2409.09085",
    functions=(
        "HESSOState",
        "HESSOCRICState",
        "GroupSpec",
        "HESSO",
        "HESSOCRIC",
        "importance_scores",
        "group_sparsity",
        "mlp_groups",
        "compress_mlp",
    ),
    chapter="solvers/structured_sparse_optimizer",
)

BASES = ("sgd", "adam", "adamw")
CRITERIA = ("magnitude", "average_magnitude", "cosine", "taylor1", "taylor2")

GUARD = 1e-8
"""Added to norms before a division: a group or direction that is 0 gives a cosine of 0, not NaN."""

SIZE_GUARD = 1e-6
"""Added to a group's size in its average magnitude, as in the authors' code."""

LARGEST_SPARSITY = 0.999
"""The target is cut here, so that some group is left."""

ADAM_EPS = 1e-8


@dataclass(frozen=True)
class GroupSpec:
    """Parameters that are kept or removed together, such as all incoming weights of a neuron.

    Parameters
    ----------
    name
        For messages.
    members
        Triples ``(path, axis, indices)``: the slices of the parameter at ``path`` (as in ``"0.weight"``,
        see :func:`refnorm.tree.tree_leaves`) along ``axis``.
    layer
        Groups of one layer are counted together by ``divisible``.
    """

    name: str
    members: tuple[tuple[str, int, tuple[int, ...]], ...]
    layer: str = ""


def _equal_weights() -> dict[str, float]:
    return dict.fromkeys(CRITERIA, 0.2)


def importance_scores(
    params: Tree, direction: Tree, groups: Sequence[GroupSpec], *, weights: Mapping[str, float] | None = None
) -> Array[np.float64]:
    """Score every group; the lowest scores belong to the most redundant groups.

    Parameters
    ----------
    params, direction : parameter trees of one structure
        The direction is what the optimizer subtracts, up to the learning rate.
    groups : sequence of GroupSpec
    weights : dict from criteria to numbers, optional
        Of ``"magnitude"``, ``"average_magnitude"``, ``"cosine"``, ``"taylor1"`` and ``"taylor2"``; 0.2 each if
        left out.

    Returns
    -------
    float64 array (groups,)

    Raises
    ------
    TypeError, ValueError
        If a group is empty, overlaps another one or names what is not there, or a criterion is unknown.

    Notes
    -----
    With a group's parameters ``x`` and direction ``d``, the criteria are ``|x|``, ``|x| / size``,
    ``1 + cos(x, d)``, ``|<x, d>|`` and ``<x, d>^2 / 2``; each is divided by its norm over all groups.
    ``-<x, d>`` is what removing the group would change the loss by, to first order, if ``d`` is the gradient.

    References
    ----------
    Chen et al. (2024), arXiv 2409.09085.

    Examples
    --------
    >>> groups = [GroupSpec("first", (("", 0, (0, 1)),)), GroupSpec("second", (("", 0, (2,)),))]
    >>> params, direction = np.array([3.0, 0.0, -4.0]), np.array([1.0, 0.0, 0.0])
    >>> importance_scores(params, direction, groups, weights={"magnitude": 1.0}).round(6)
    array([0.6, 0.8])
    """
    chosen = _check_weights(_equal_weights() if weights is None else weights)
    return _scores(params, direction, _membership(params, groups), len(groups), chosen)


@dataclass(frozen=True)
class HESSOState:
    """State of :class:`HESSO`.

    Parameters
    ----------
    step
        Steps done.
    first, second
        Trees like the parameters: running averages of the gradients and their squares (``second`` stays 0
        for ``"sgd"``).
    pruned, active
        Boolean arrays (groups,): removed for ever; fading out.
    membership
        Tree like the parameters: the group of every number, -1 where there is none.
    layers
        The layer of every group, counted from 0.
    """

    step: int
    first: Tree
    second: Tree
    pruned: Array[np.bool_]
    active: Array[np.bool_]
    membership: Tree
    layers: IntArray


@dataclass(frozen=True)
class HESSO:
    """Hybrid structured-sparse optimizer: SGD or Adam that fades groups out on the way.

    Parameters
    ----------
    base : ``"sgd"``, ``"adam"`` or ``"adamw"``
        Where the direction comes from.
    learning_rate : float > 0
    target_sparsity : float in [0, 1)
        Part of the groups to remove.
    start : int >= 0
        Steps of plain training before the first group is chosen.
    steps : int >= 2 ``periods``
        Steps in which groups are removed.
    periods : int >= 1
        Equal parts of ``steps``; each chooses its share of the groups afresh.
    divisible : int >= 1
        The groups that stay in a layer are a positive multiple of it, so fewer may be removed.
    momentum : float in [0, 1)
        Of ``"sgd"``.
    betas : two floats in [0, 1)
        Of Adam.
    weight_decay : float >= 0, optional
        Added to the gradient for ``"sgd"`` and ``"adam"`` (0 by default), beside the direction for ``"adamw"``
        (0.01 by default).
    score_weights : dict from criteria to numbers
        See :func:`importance_scores`.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    A period has ``N = steps // periods`` steps. At its first one the lowest scoring groups become active; from
    then on they are multiplied by ``(N - t - 1) / (N - t)`` after each step t, so without a gradient they would
    shrink linearly, and they are exactly 0 at ``t = N - 1``.

    References
    ----------
    Chen et al. (2024), arXiv 2409.09085 (HESSO).

    Examples
    --------
    >>> params = np.array([4.0, 1.0])
    >>> groups = [GroupSpec(str(i), (("", 0, (i,)),)) for i in range(2)]
    >>> optimizer = HESSO(base="sgd", learning_rate=0.1, target_sparsity=0.5, start=0, steps=4)
    >>> state = optimizer.init(params, groups)
    >>> for _ in range(3):
    ...     params, state = optimizer.step(params, np.zeros(2), state)
    ...     print(params.round(3), state.pruned)
    [4.    0.667] [False False]
    [4.    0.333] [False False]
    [4. 0.] [False  True]
    """

    base: str = "adamw"
    learning_rate: float = 1e-3
    target_sparsity: float = 0.5
    start: int = 0
    steps: int = 1000
    periods: int = 1
    divisible: int = 1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    score_weights: Mapping[str, float] = field(default_factory=_equal_weights)

    def __post_init__(self) -> None:
        _check_base(self)
        _checks.whole(self.start, "start", low=0)
        _checks.whole(self.periods, "periods", low=1)
        _checks.whole(self.steps, "steps", low=2 * self.periods)

    def init(self, params: Tree, groups: Sequence[GroupSpec]) -> HESSOState:
        """Return the state before the first step; raises as :func:`importance_scores`."""
        return _initial(params, groups)

    def step(self, params: Tree, grads: Tree, state: HESSOState) -> tuple[Tree, HESSOState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        direction, first, second = _direction(self, params, grads, state.first, state.second, state.step + 1)
        length, late = self.steps // self.periods, state.step - self.start
        period, t = late // length, late % length + 1
        pruned, active = state.pruned, state.active
        if late >= 0 and period < self.periods and t == 1:
            scores = _scores(params, direction, state.membership, len(pruned), self.score_weights)
            active = _lowest(scores, self._quota(len(pruned), period), pruned, state.layers, self.divisible)
        params = _descend(self, params, direction)
        factor = np.where(pruned, 0.0, np.where(active, _fade(t, length), 1.0))
        if t == length - 1:
            pruned, active = pruned | active, np.zeros_like(active)
        params = _scale_groups(params, state.membership, factor)
        return params, replace(state, step=state.step + 1, first=first, second=second, pruned=pruned, active=active)

    def _quota(self, count: int, period: int) -> int:
        wanted = _to_prune(count, self.target_sparsity)
        share = wanted // self.periods
        return wanted - share * (self.periods - 1) if period == self.periods - 1 else share


@dataclass(frozen=True)
class HESSOCRICState:
    """State of :class:`HESSOCRIC`.

    Parameters
    ----------
    step, first, second, pruned, active, membership, layers
        As in :class:`HESSOState`; ``active`` are the groups that fade out, on trial or in earnest.
    phase
        ``"warm-up"``, ``"trial"``, ``"pruning"`` or ``"done"``.
    since
        Steps of the present phase or trial that are done.
    cycle
        Number of the trial, from 1.
    tried, candidates
        Boolean arrays (groups,): groups of this and earlier trials; those that looked redundant in this one.
    score_sum, score_count
        Sum of all scores recorded in trials, and their number.
    saved
        Parameters and running averages from before the trials, to which each trial returns.
    """

    step: int
    first: Tree
    second: Tree
    pruned: Array[np.bool_]
    active: Array[np.bool_]
    membership: Tree
    layers: IntArray
    phase: str
    since: int
    cycle: int
    tried: Array[np.bool_]
    candidates: Array[np.bool_]
    score_sum: Array[np.float64]
    score_count: int
    saved: tuple[Tree, Tree, Tree] | None


@dataclass(frozen=True)
class HESSOCRIC:
    """HESSO with corrective redundancy identification: groups fade out on trial before they are removed.

    Parameters
    ----------
    base, learning_rate, target_sparsity, start, divisible, momentum, betas, weight_decay, score_weights
        As in :class:`HESSO`.
    sampling_steps : int >= 2
        Length of a trial.
    hybrid_steps : int >= 2
        Steps in which the groups that proved redundant are removed.
    max_cycles : int >= 1
        Largest number of trials.
    tolerance : int >= 0
        Trials end when at most that many groups look redundant that have not been tried.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    A trial fades its groups out in ``sampling_steps`` steps, records all scores on the way, and is undone:
    parameters and running averages return to where they were. The first trial takes the lowest scoring
    groups; the next ones take the groups that were among the lowest at some step of the trial before and have
    not been tried. In the end the lowest mean scores decide.

    References
    ----------
    Chen et al. (2024), arXiv 2409.09085 (HESSO-CRIC).

    Examples
    --------
    >>> params = np.array([4.0, 1.0, 2.0])
    >>> groups = [GroupSpec(str(i), (("", 0, (i,)),)) for i in range(3)]
    >>> optimizer = HESSOCRIC(base="sgd", target_sparsity=0.4, sampling_steps=4, hybrid_steps=3)
    >>> state = optimizer.init(params, groups)
    >>> for _ in range(4 + 2):
    ...     params, state = optimizer.step(params, np.zeros(3), state)
    ...     print(state.phase, params.round(3))
    trial [4.    0.667 2.   ]
    trial [4.    0.333 2.   ]
    trial [4. 0. 2.]
    pruning [4. 1. 2.]
    pruning [4.  0.5 2. ]
    done [4. 0. 2.]
    """

    base: str = "adamw"
    learning_rate: float = 1e-3
    target_sparsity: float = 0.5
    start: int = 0
    sampling_steps: int = 100
    hybrid_steps: int = 1000
    max_cycles: int = 10
    tolerance: int = 0
    divisible: int = 1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    score_weights: Mapping[str, float] = field(default_factory=_equal_weights)

    def __post_init__(self) -> None:
        _check_base(self)
        _checks.whole(self.start, "start", low=0)
        _checks.whole(self.sampling_steps, "sampling_steps", low=2)
        _checks.whole(self.hybrid_steps, "hybrid_steps", low=2)
        _checks.whole(self.max_cycles, "max_cycles", low=1)
        _checks.whole(self.tolerance, "tolerance", low=0)

    def init(self, params: Tree, groups: Sequence[GroupSpec]) -> HESSOCRICState:
        """Return the state before the first step; raises as :func:`importance_scores`."""
        plain = _initial(params, groups)
        none = np.zeros(len(groups), bool)
        return HESSOCRICState(
            **{name: getattr(plain, name) for name in plain.__dataclass_fields__},
            phase="warm-up",
            since=0,
            cycle=0,
            tried=none,
            candidates=none,
            score_sum=np.zeros(len(groups)),
            score_count=0,
            saved=None,
        )

    def step(self, params: Tree, grads: Tree, state: HESSOCRICState) -> tuple[Tree, HESSOCRICState]:
        """Return parameters and state after one step; the last step of a trial returns to before it."""
        some = _to_prune(len(state.pruned), self.target_sparsity) > 0
        if some and state.phase == "warm-up" and state.step == self.start:
            saved = (params, state.first, state.second)
            state = replace(state, phase="trial", since=0, cycle=1, saved=saved)
        # After a trial Adam's bias correction, too, must count from where the averages were saved.
        counted = state.step + 1 if state.cycle == 0 else self.start + 1 + state.since
        direction, first, second = _direction(self, params, grads, state.first, state.second, counted)
        if state.phase == "trial":
            state = self._observe(params, direction, state)
        length = self.sampling_steps if state.phase == "trial" else self.hybrid_steps
        fade = _fade(state.since + 1, length)
        factor = np.where(state.pruned, 0.0, np.where(state.active, fade, 1.0))
        params = _scale_groups(_descend(self, params, direction), state.membership, factor)
        state = replace(state, step=state.step + 1, since=state.since + 1, first=first, second=second)
        if state.phase == "trial" and state.since == self.sampling_steps:
            return self._end_trial(state)
        if state.phase == "pruning" and state.since == self.hybrid_steps - 1:
            state = replace(state, phase="done", pruned=state.active, active=np.zeros_like(state.active))
        return params, state

    def _observe(self, params: Tree, direction: Tree, state: HESSOCRICState) -> HESSOCRICState:
        """Record the scores of a trial's step, and who is among the lowest."""
        scores = _scores(params, direction, state.membership, len(state.tried), self.score_weights)
        lowest = self._redundant(scores, state)
        if state.cycle == 1 and state.since == 0:
            state = replace(state, active=lowest, tried=lowest)
        return replace(
            state,
            candidates=state.candidates | (lowest & ~state.tried),
            score_sum=state.score_sum + scores,
            score_count=state.score_count + 1,
        )

    def _end_trial(self, state: HESSOCRICState) -> tuple[Tree, HESSOCRICState]:
        assert state.saved is not None
        params, first, second = state.saved
        state = replace(
            state, first=first, second=second, since=0, candidates=np.zeros_like(state.tried), active=state.candidates
        )
        if state.active.sum() <= self.tolerance or state.cycle >= self.max_cycles:
            redundant = self._redundant(state.score_sum / state.score_count, state)
            return params, replace(state, phase="pruning", active=redundant, saved=None)
        return params, replace(state, cycle=state.cycle + 1, tried=state.tried | state.active)

    def _redundant(self, scores: Array[np.float64], state: HESSOCRICState) -> Array[np.bool_]:
        wanted = _to_prune(len(scores), self.target_sparsity)
        return _lowest(scores, wanted, np.zeros(len(scores), bool), state.layers, self.divisible)


def group_sparsity(params: Tree, groups: Sequence[GroupSpec]) -> float:
    """Return the part of the groups whose parameters are all 0.

    Parameters
    ----------
    params : parameter tree
    groups : sequence of GroupSpec

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    TypeError, ValueError
        As :func:`importance_scores`, or if there is no group.

    Examples
    --------
    >>> groups = [GroupSpec(str(i), (("", 0, (i,)),)) for i in range(4)]
    >>> group_sparsity(np.array([0.0, 2.0, 0.0, 1.0]), groups)
    0.5
    """
    if not len(groups):
        _checks.fail("groups", "at least one group", 0)
    membership = _membership(params, groups)
    return float((_group_sums(tree_map(lambda leaf: leaf != 0, params), membership, len(groups)) == 0).mean())


def mlp_groups(params: Sequence[tuple[AnyArray, AnyArray]]) -> list[GroupSpec]:
    """Return one group for each hidden neuron: its incoming weights and its bias.

    Parameters
    ----------
    params : list of (weight (inputs, outputs), bias (outputs,))

    Returns
    -------
    list of GroupSpec, layer by layer

    Raises
    ------
    TypeError, ValueError
        If the shapes do not follow each other.

    Examples
    --------
    >>> groups = mlp_groups([(np.ones((2, 3)), np.ones(3)), (np.ones((3, 1)), np.ones(1))])
    >>> len(groups), groups[0].members
    (3, (('0.0', 1, (0,)), ('0.1', 0, (0,))))
    """
    layers = _check_mlp(params)
    return [
        GroupSpec(f"layer {number}, neuron {unit}", ((f"{number}.0", 1, (unit,)), (f"{number}.1", 0, (unit,))), str(number))
        for number, (weight, _) in enumerate(layers[:-1])
        for unit in range(weight.shape[1])
    ]  # fmt: skip


def compress_mlp(
    params: Sequence[tuple[AnyArray, AnyArray]], pruned: Array[np.bool_]
) -> list[tuple[AnyArray, AnyArray]]:
    """Drop the hidden neurons that were pruned; a ReLU network's outputs stay the same.

    Parameters
    ----------
    params : list of (weight (inputs, outputs), bias (outputs,))
    pruned : boolean array (hidden neurons,)
        In the order of :func:`mlp_groups`. Their incoming weights and biases are 0.

    Returns
    -------
    list of (weight, bias), smaller

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, or a pruned neuron's weights are not 0.

    Examples
    --------
    >>> params = [(np.array([[1.0, 0.0, 2.0]]), np.array([0.0, 0.0, 1.0])), (np.array([[1.0], [5.0], [3.0]]), np.zeros(1))]
    >>> [weight.tolist() for weight, _ in compress_mlp(params, np.array([False, True, False]))]
    [[[1.0, 2.0]], [[1.0], [3.0]]]
    """
    layers = _check_mlp(params)
    widths = [weight.shape[1] for weight, _ in layers[:-1]]
    pruned = np.asarray(pruned)
    if pruned.dtype != np.bool_:
        _checks.fail_type("pruned", "a boolean array", f"dtype {pruned.dtype}")
    _checks.shape(pruned, "pruned", (sum(widths),))
    drop = np.split(pruned, np.cumsum(widths)[:-1]) if widths else []
    for number, (gone, (weight, bias)) in enumerate(zip(drop, layers, strict=False)):
        if weight[:, gone].any() or bias[gone].any():
            _checks.fail("pruned", "neurons whose incoming weights and bias are 0", f"others in layer {number}")
    inputs = [np.ones(layers[0][0].shape[0], bool), *(~gone for gone in drop)]
    outputs = [*(~gone for gone in drop), np.ones(layers[-1][0].shape[1], bool)]
    return [
        (weight[np.ix_(rows, columns)], bias[columns])
        for (weight, bias), rows, columns in zip(layers, inputs, outputs, strict=True)
    ]


def _check_mlp(params: Sequence[tuple[AnyArray, AnyArray]]) -> list[tuple[AnyArray, AnyArray]]:
    layers = [
        (_checks.float_array(w, f"params.{i}.0", ndim=2), _checks.float_array(b, f"params.{i}.1", ndim=1))
        for i, (w, b) in enumerate(params)
    ]
    if not layers:
        _checks.fail("params", "at least one layer", 0)
    for i, (weight, bias) in enumerate(layers):
        inputs = weight.shape[0] if i == 0 else layers[i - 1][0].shape[1]
        _checks.shape(weight, f"params.{i}.0", (inputs, weight.shape[1]))
        _checks.shape(bias, f"params.{i}.1", (weight.shape[1],))
    return layers


def _check_base(optimizer: HESSO | HESSOCRIC) -> None:
    _checks.one_of(optimizer.base, "base", BASES)
    _checks.positive(optimizer.learning_rate, "learning_rate")
    _checks.in_range(optimizer.target_sparsity, "target_sparsity", 0.0, 1.0, closed="left")
    _checks.whole(optimizer.divisible, "divisible", low=1)
    _checks.in_range(optimizer.momentum, "momentum", 0.0, 1.0, closed="left")
    check_betas(optimizer.betas, closed="left")
    if optimizer.weight_decay is not None:
        _checks.non_negative(optimizer.weight_decay, "weight_decay")
    _check_weights(optimizer.score_weights)


def _check_weights(weights: Mapping[str, float]) -> Mapping[str, float]:
    for name, weight in weights.items():
        _checks.one_of(name, "score_weights", CRITERIA)
        _checks.non_negative(weight, "score_weights")
    if not any(weights.values()):
        _checks.fail("score_weights", "at least one weight > 0", dict(weights))
    return weights


def _initial(params: Tree, groups: Sequence[GroupSpec]) -> HESSOState:
    none = np.zeros(len(groups), bool)
    _, layers = np.unique([group.layer for group in groups], return_inverse=True)
    zeros = zeros_like(params)
    return HESSOState(0, zeros, zeros, none, none, _membership(params, groups), np.asarray(layers, np.intp))


def _membership(params: Tree, groups: Sequence[GroupSpec]) -> Tree:
    """Return a tree like ``params`` with the number of every entry's group, or -1."""
    places = {
        path: np.full(np.shape(_checks.float_array(leaf, f"params.{path}" if path else "params")), -1, np.intp)
        for path, leaf in tree_leaves(params)
        if leaf is not None
    }
    for number, group in enumerate(groups):
        claimed = 0
        for path, axis, indices in group.members:
            if path not in places:
                _checks.fail("groups", f"paths of parameters in {group.name!r}", repr(path))
            place = places[path]
            axis = _checks.axes(axis, place.ndim, "groups")[0]
            wanted = _checks.integer_array(
                np.asarray(indices, dtype=np.intp), "groups", low=0, high=place.shape[axis] - 1
            )
            where = (slice(None),) * axis + (wanted,)
            taken = place[where]
            if (taken >= 0).any():
                _checks.fail("groups", "no parameter in two groups", f"{group.name!r} and {groups[taken.max()].name!r}")
            place[where] = number
            claimed += taken.size
        if not claimed:
            _checks.fail("groups", "at least one parameter in every group", f"none in {group.name!r}")
    following = iter(places.values())
    return tree_map(lambda leaf: None if leaf is None else next(following), params)


def _group_sums(values: Tree, membership: Tree, count: int) -> Array[np.float64]:
    total = np.zeros(count + 1)
    for (_, leaf), (_, place) in zip(tree_leaves(values), tree_leaves(membership), strict=True):
        if leaf is not None:
            # Group -1 (no group) is counted first and dropped at the end.
            total += np.bincount(place.ravel() + 1, weights=np.ravel(leaf), minlength=count + 1)
    return total[1:]


def _scores(
    params: Tree, direction: Tree, membership: Tree, count: int, weights: Mapping[str, float]
) -> Array[np.float64]:
    def sums(function: Any) -> Array[np.float64]:
        values = tree_map(lambda x, d: None if x is None or d is None else function(x, d), params, direction)
        return _group_sums(values, membership, count)

    def wide(a: AnyArray) -> AnyArray:
        return np.asarray(a, dtype=np.float64)

    size = _group_sums(tree_map(np.ones_like, membership), membership, count)
    norm_x = np.sqrt(sums(lambda x, _: np.square(wide(x))))
    norm_d = np.sqrt(sums(lambda _, d: np.square(wide(d))))
    inner = sums(lambda x, d: wide(x) * d)
    criteria = {
        "magnitude": norm_x,
        "average_magnitude": norm_x / (size + SIZE_GUARD),
        "cosine": 1 + inner / ((norm_x + GUARD) * (norm_d + GUARD)),
        "taylor1": np.abs(inner),
        "taylor2": inner**2 / 2,
    }
    total = np.zeros(count)
    for name, weight in weights.items():
        value = criteria[name]
        total += weight * value / (np.sqrt(np.sum(value**2) + GUARD) + GUARD)
    return total


def _to_prune(count: int, sparsity: float) -> int:
    return int(count * min(sparsity, LARGEST_SPARSITY))


def _lowest(
    scores: Array[np.float64], wanted: int, pruned: Array[np.bool_], layers: IntArray, divisible: int
) -> Array[np.bool_]:
    """Choose the lowest scores among the groups that are left; of equal ones the first."""
    order = np.argsort(np.where(pruned, np.inf, scores), kind="stable")
    chosen = np.zeros(len(scores), bool)
    chosen[order[: min(wanted, int((~pruned).sum()))]] = True
    for layer in np.unique(layers[chosen]):
        left = (layers == layer) & ~pruned
        kept = int((left & ~chosen).sum())
        if kept == 0 or kept % divisible:
            # Give back the best of the chosen, until the layer's size is a positive multiple again.
            back = min((kept // divisible + 1) * divisible, int(left.sum())) - kept
            inside = [group for group in order if left[group] and chosen[group]]
            chosen[inside[len(inside) - back :]] = False
    return chosen


def _fade(t: int, length: int) -> float:
    """Factor of step t: their product from 1 to t is ``(length - t - 1) / (length - 1)``."""
    return max(length - t - 1, 0) / max(length - t, 1)


def _decay(optimizer: HESSO | HESSOCRIC) -> float:
    if optimizer.weight_decay is not None:
        return optimizer.weight_decay
    return 1e-2 if optimizer.base == "adamw" else 0.0


def _direction(
    optimizer: HESSO | HESSOCRIC, params: Tree, grads: Tree, first: Tree, second: Tree, step: int
) -> tuple[Tree, Tree, Tree]:
    """Return what the base optimizer subtracts, and its running averages."""
    coupled = 0.0 if optimizer.base == "adamw" else _decay(optimizer)
    beta1, beta2 = optimizer.betas

    def update(x: AnyArray, grad: AnyArray, m: AnyArray, v: AnyArray) -> tuple[AnyArray, ...]:
        grad = grad + coupled * x if coupled else grad
        if optimizer.base == "sgd":
            m = optimizer.momentum * m + grad
            return m, m, v
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad * grad
        return (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + ADAM_EPS), m, v

    direction, first, second = update_leaves(update, params, grads, {"state.first": first, "state.second": second})
    # Without a gradient update_leaves leaves the parameter itself: there is no direction then.
    return tree_map(lambda d, g: None if g is None else d, direction, grads), first, second


def _descend(optimizer: HESSO | HESSOCRIC, params: Tree, direction: Tree) -> Tree:
    beside = _decay(optimizer) if optimizer.base == "adamw" else 0.0
    rate = optimizer.learning_rate
    return tree_map(lambda x, d: x if d is None else np.asarray(x - rate * (d + beside * x)), params, direction)


def _scale_groups(params: Tree, membership: Tree, factor: Array[np.float64]) -> Tree:
    with_rest = np.append(factor, 1.0)  # the last one is that of group -1

    def scale(leaf: AnyArray, place: IntArray) -> AnyArray:
        scales = with_rest[place].astype(leaf.dtype)
        # Not a product with 0, which would keep NaN.
        return np.asarray(np.where(scales == 0, leaf.dtype.type(0), leaf * scales))

    return tree_map(lambda leaf, place: None if leaf is None else scale(leaf, place), params, membership)
