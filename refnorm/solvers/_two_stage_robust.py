"""Two-stage robust optimization: decide, let the worst happen, react; and a network that predicts the reaction's value.

min over x   first_stage(x) + max over xi  min over y, r  second_stage(y, r, xi)
value(x, xi) ~ head([rho_x(mean_i phi_x(a_i)), rho_xi(mean_i phi_xi(b_i))])
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.solvers._adamp import AdamP
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Neur2RO: Neural Two-Stage Robust Optimization",
    authors="Dumouchelle, Julien, Kurtz, Khalil",
    year=2023,
    arxiv="2310.04345",
    functions=(
        "RobustSolution",
        "CCGResult",
        "ReluProgram",
        "KnapsackInstance",
        "random_knapsack",
        "second_stage_value",
        "worst_case_exact",
        "solve_exact",
        "ccg",
        "exact_main",
        "set_value",
        "init_value_net",
        "SetValueNet",
        "knapsack_data",
        "train_value_net",
        "interval_bounds",
        "relu_milp_constraints",
        "neural_main",
        "neural_adversary",
        "neural_ccg",
    ),
    chapter="solvers/two_stage_robust",
)

ENUMERATE_UP_TO = 8
"""Items up to which the 3^n reactions (leave, produce, produce and repair) are listed: 6561 for 8."""

SAME_SCENARIO = 1e-3
"""Distance (sum of absolute differences) below which a scenario counts as one that is known."""

BOUND_PADDING = 1e-9
"""Added to both ends of every interval: rounding must not cut off a value that is possible."""

SNAP = 1e-6
"""Entries of a scenario that are so close to 0 or 1 are rounded: HiGHS's feasibility tolerance."""

LP_TOLERANCE = 1e-9
"""Relative gap between a linear program's value and the best reaction's at which both count as equal."""

FEATURES = 7
"""Numbers that describe an item: its decision or degradation, cost, profit, degradation, outsourcing, repair, capacity."""

STARTS = 20
ASCENT_STEPS = 60
ASCENT_RATE = 0.1
"""Projected gradient ascent: random starts, steps, and the step's length in units of the box, falling to 0."""

NO_PROJECTION = 5e-324
"""Threshold at which AdamP is Adam: the smallest positive number."""

Layers: TypeAlias = Sequence[tuple[AnyArray, AnyArray]]
"""Weight (inputs, outputs) and bias (outputs,) of every layer; ReLU between them."""


@dataclass(frozen=True)
class KnapsackInstance:
    """A two-stage knapsack: accept items, see profits degrade, then produce, repair or outsource.

    Parameters
    ----------
    cost, profit, degradation, outsourcing, repair : arrays (n,), >= 0
        Weight of an item, its nominal profit, the largest loss of profit, the cost of having it made elsewhere,
        and the weight of a repair, which undoes the loss.
    capacity : float >= 0
        Largest weight of what is produced and repaired.
    budget : float from 0 to n
        Largest sum of the relative degradations.
    """

    cost: AnyArray
    profit: AnyArray
    degradation: AnyArray
    outsourcing: AnyArray
    repair: AnyArray
    capacity: float
    budget: float

    def __post_init__(self) -> None:
        size = np.shape(self.cost)
        for name in ("cost", "profit", "degradation", "outsourcing", "repair"):
            array = _checks.float_array(getattr(self, name), name, ndim=1)
            _checks.shape(array, name, size)
            _checks.finite(array, name)
            if (array < 0).any():
                _checks.fail(name, "numbers >= 0", float(array.min()))
        _checks.non_negative(self.capacity, "capacity")
        _checks.in_range(self.budget, "budget", 0.0, float(len(self.cost)))

    @property
    def n(self) -> int:
        return len(self.cost)

    def first_stage(self, x: AnyArray) -> float:
        """Return ``sum (outsourcing - profit) x``."""
        return _first_stage(self, x)


@dataclass(frozen=True)
class RobustSolution:
    """Decision, its worst-case value, and the scenario that causes it."""

    x: AnyArray
    value: float
    xi: AnyArray


def random_knapsack(n: int, rng: np.random.Generator, *, budget: float = 2.0) -> KnapsackInstance:
    """Draw an instance in which repairs are worth their weight only for some items.

    Parameters
    ----------
    n : int >= 1
    rng : numpy.random.Generator
    budget : float from 0 to ``n``

    Returns
    -------
    KnapsackInstance

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    Notes
    -----
    Costs are uniform on [1, 20]; repair, profit, degradation and outsourcing are uniform multiples of cost or
    profit; the capacity is half of the costs' sum.

    Examples
    --------
    >>> random_knapsack(3, np.random.default_rng(0)).n
    3
    """
    n = _checks.whole(n, "n", low=1)
    rng = _checks.generator(rng)
    cost = rng.uniform(1, 20, n)
    repair, profit = cost * rng.uniform(0.1, 0.6, n), cost * rng.uniform(0.8, 1.6, n)
    degradation, outsourcing = profit * rng.uniform(0.2, 0.9, n), profit * rng.uniform(1.1, 1.5, n)
    return KnapsackInstance(cost, profit, degradation, outsourcing, repair, 0.5 * float(cost.sum()), budget)


def second_stage_value(
    instance: KnapsackInstance, x: AnyArray, xi: AnyArray
) -> tuple[float, Array[np.float64], Array[np.float64]]:
    """Return the best reaction to a scenario.

    Parameters
    ----------
    instance : KnapsackInstance
    x : array (n,) of 0 and 1
        Accepted items.
    xi : array (n,) in [0, 1]
        Relative degradations.

    Returns
    -------
    value : float
    y, r : float64 arrays (n,) of 0 and 1
        What is produced and what is repaired.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit or an entry is out of range.

    Notes
    -----
    The smallest ``sum (degradation xi - outsourcing) y - degradation xi r`` with
    ``sum cost y + repair r <= capacity`` and ``r <= y <= x``; by listing all reactions up to 8 items, above by
    SciPy's ``milp`` (HiGHS).

    References
    ----------
    Dumouchelle et al. (2023), arXiv 2310.04345 (the two-stage knapsack problem).

    Examples
    --------
    >>> one = np.ones(1)
    >>> instance = KnapsackInstance(one, 5 * one, 4 * one, 3 * one, one, capacity=2.0, budget=1.0)
    >>> second_stage_value(instance, one, 0.9 * one)
    (-3.0, array([1.]), array([1.]))
    """
    x, xi = _decision(instance, x), _scenario(instance, xi)
    loss = instance.degradation * xi
    if _size(instance) <= ENUMERATE_UP_TO:
        y, r = _reactions(_size(instance))
        fits = (y @ instance.cost + r @ instance.repair <= instance.capacity) & (y <= x).all(axis=1)
        values = np.where(fits, y @ (loss - instance.outsourcing) - r @ loss, np.inf)
        best = int(values.argmin())
        return float(values[best]), y[best], r[best]
    program = _Program()
    y_at, r_at = _reaction(program, instance, x)
    program.minimize(y_at, loss - instance.outsourcing)
    program.minimize(r_at, -loss)
    found, value, _ = program.solve()
    return value, _whole(found[y_at]), _whole(found[r_at])


def worst_case_exact(instance: KnapsackInstance, x: AnyArray) -> tuple[float, Array[np.float64]]:
    """Return a decision's value in the worst scenario, and that scenario.

    Parameters
    ----------
    instance : KnapsackInstance
    x : array (n,) of 0 and 1

    Returns
    -------
    value : float
        First stage included.
    xi : float64 array (n,)

    Raises
    ------
    TypeError, ValueError
        If ``x`` does not fit.

    Notes
    -----
    A reaction's cost is linear in the scenario, so the best reaction's is concave and piecewise linear:
    ``max t`` with ``t <= cost(y, r, xi)`` for all reactions is a linear program. Only the reactions that matter are
    added, one best reaction at a time. The maximum need not lie in a vertex.

    Examples
    --------
    >>> one = np.ones(1)
    >>> instance = KnapsackInstance(one, 5 * one, 4 * one, 3 * one, one, capacity=1.0, budget=1.0)
    >>> value, xi = worst_case_exact(instance, one)
    >>> value, bool(xi[0] >= 0.75)
    (-2.0, True)
    """
    x = _decision(instance, x)
    xi, top = np.zeros(_size(instance)), np.inf
    slopes: list[AnyArray] = []
    offsets: list[float] = []
    while True:
        value, y, r = second_stage_value(instance, x, xi)
        if value >= top - LP_TOLERANCE * (1 + abs(value)):
            return _first_stage(instance, x) + value, xi
        slopes.append(instance.degradation * (y - r))
        offsets.append(-float(instance.outsourcing @ y))
        program = _Program()
        xi_at, top_at = _budgeted(program, instance), program.add(1, -np.inf, np.inf)
        for slope, offset in zip(slopes, offsets, strict=True):
            program.row([(top_at, [1.0]), (xi_at, -slope)], -np.inf, offset)
        program.minimize(top_at, np.array([-1.0]))
        found, negative, _ = program.solve()
        xi, top = _snap(found[xi_at]), -negative


def solve_exact(instance: KnapsackInstance) -> RobustSolution:
    """Return the decision with the best worst case, by going through all decisions.

    Parameters
    ----------
    instance : KnapsackInstance
        Of at most 8 items.

    Returns
    -------
    RobustSolution

    Raises
    ------
    ValueError
        If there are more items.

    Notes
    -----
    A decision's value in known scenarios bounds its worst case from below; decisions are taken in the order of
    that bound, and the rest is left out once it exceeds the best worst case.

    Examples
    --------
    >>> solution = solve_exact(random_knapsack(3, np.random.default_rng(0)))
    >>> solution.x.shape, bool(solution.value <= 0)
    ((3,), True)
    """
    if _size(instance) > ENUMERATE_UP_TO:
        _checks.fail("instance", f"at most {ENUMERATE_UP_TO} items", _size(instance))
    decisions = np.array(list(itertools.product((0.0, 1.0), repeat=_size(instance))))
    first = decisions @ (instance.outsourcing - instance.profit)
    bound = first + _all_second_stages(instance, decisions, np.zeros(_size(instance)))
    done, best = np.zeros(len(decisions), bool), RobustSolution(decisions[0], np.inf, np.zeros(_size(instance)))
    while True:
        number = int(np.where(done, np.inf, bound).argmin())
        if done[number] or bound[number] >= best.value:
            return best
        value, xi = worst_case_exact(instance, decisions[number])
        done[number] = True
        if value < best.value:
            best = RobustSolution(decisions[number], value, xi)
        bound = np.maximum(bound, first + _all_second_stages(instance, decisions, xi))


@dataclass(frozen=True)
class CCGResult:
    """Outcome of :func:`ccg`.

    Parameters
    ----------
    x : array (n,)
        The best decision that was visited.
    value : float
        Its exact worst case.
    scenarios : array (k, n)
        All scenarios that were used.
    n_iter, converged, history
        Iterations; whether no new scenario was found (and every program was solved to the end); the values of the
        main problem and of the adversary.
    """

    x: AnyArray
    value: float
    scenarios: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


Main: TypeAlias = Callable[[KnapsackInstance, AnyArray], tuple[AnyArray, float]]
"""From the instance and the scenarios (k, n) to the decision and its value against them."""

Adversary: TypeAlias = Callable[[KnapsackInstance, AnyArray], tuple[float, AnyArray]]
"""From the instance and a decision to the worst value and the scenario."""


def ccg(
    instance: KnapsackInstance,
    adversary: Adversary,
    main: Main,
    *,
    max_iter: int = 30,
    tol: float = 1e-6,
    scenarios: AnyArray | None = None,
    callback: Callback | None = None,
) -> CCGResult:
    """Column-and-constraint generation: decide against the known scenarios, look for a worse one, repeat.

    Parameters
    ----------
    instance : KnapsackInstance
    adversary, main : callables
        :func:`worst_case_exact` and :func:`exact_main` for the classical algorithm.
    max_iter : int >= 1
    tol : float >= 0
        The search ends when the adversary's value exceeds the main problem's by no more, or when its scenario is
        within 0.001 of a known one.
    scenarios : array (k, n), optional
        Scenarios to begin with; no degradation by default.
    callback : callable, optional
        Told both values after every iteration; a true result ends the search.

    Returns
    -------
    CCGResult

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit or an option is out of range.

    Notes
    -----
    With exact parts the main problem's value rises to the optimum. With predicted ones the search may stop at a poor
    decision; every visited one is therefore valued exactly, and the best is returned.

    References
    ----------
    Zeng, Zhao (2013), Solving two-stage robust optimization problems using a column-and-constraint generation
    method. Dumouchelle et al. (2023), arXiv 2310.04345.

    Examples
    --------
    >>> instance = random_knapsack(4, np.random.default_rng(1))
    >>> result = ccg(instance, worst_case_exact, exact_main)
    >>> result.converged, bool(np.isclose(result.value, solve_exact(instance).value))
    (True, True)
    """
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    known = [_scenario(instance, xi) for xi in (np.zeros((1, _size(instance))) if scenarios is None else scenarios)]
    if not known:
        _checks.fail("scenarios", "at least one scenario", 0)
    monitor = Monitor("ccg", callback=callback, hint="check that the instance's numbers are of similar size")
    visited, converged = [], False
    for _ in range(max_iter):
        x, value = main(instance, np.array(known))
        visited.append(x)
        worst, xi = adversary(instance, x)
        stop = monitor.record(value=value, adversary=worst)
        distance = min(float(np.abs(xi - old).sum()) for old in known)
        if worst <= value + tol or distance < SAME_SCENARIO:
            converged = True
            break
        if stop:
            break
        known.append(_snap(xi))
    exact = {x.tobytes(): worst_case_exact(instance, x)[0] for x in {x.tobytes(): x for x in visited}.values()}
    values = [exact[x.tobytes()] for x in visited]
    best = int(np.argmin(values))
    return CCGResult(visited[best], values[best], np.array(known), monitor.n_iter, converged, monitor.history())


def exact_main(instance: KnapsackInstance, scenarios: AnyArray) -> tuple[Array[np.float64], float]:
    """Decide against a list of scenarios, with one exact reaction for each.

    Parameters
    ----------
    instance : KnapsackInstance
    scenarios : array (k, n)

    Returns
    -------
    x : float64 array (n,)
    value : float

    Raises
    ------
    TypeError, ValueError
        If a scenario does not fit or there is none.

    Examples
    --------
    >>> instance = random_knapsack(4, np.random.default_rng(1))
    >>> x, value = exact_main(instance, np.zeros((1, 4)))
    >>> bool(np.isclose(value, instance.first_stage(x) + second_stage_value(instance, x, np.zeros(4))[0]))
    True
    """
    program = _Program()
    x_at = program.add(_size(instance), 0, 1, integer=True)
    worst_at = program.add(1, -np.inf, np.inf)
    program.minimize(x_at, instance.outsourcing - instance.profit)
    program.minimize(worst_at, np.ones(1))
    for xi in _scenario_list(instance, scenarios):
        loss = instance.degradation * xi
        y_at, r_at = _reaction(program, instance, x_at)
        program.row([(worst_at, [1.0]), (y_at, instance.outsourcing - loss), (r_at, loss)], 0, np.inf)
    found, value, _ = program.solve()
    return _whole(found[x_at]), value


def init_value_net(rng: np.random.Generator, *, embed: int = 16, pool: int = 8, code: int = 4, head: int = 8) -> Tree:
    """Draw the weights of a set-based value network.

    Parameters
    ----------
    rng : numpy.random.Generator
    embed, pool, code, head : ints >= 1
        Hidden units and outputs of the items' networks, outputs of the pooled networks (which have ``embed`` hidden
        units as well), and hidden units of the head.

    Returns
    -------
    dict of lists of arrays
        ``phi_x``, ``rho_x``, ``phi_xi``, ``rho_xi``: two weights each, no biases; ``head``: two pairs of weight and
        bias.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Examples
    --------
    >>> sorted(init_value_net(np.random.default_rng(0)))
    ['head', 'phi_x', 'phi_xi', 'rho_x', 'rho_xi']
    """
    rng = _checks.generator(rng)
    for name, size in (("embed", embed), ("pool", pool), ("code", code), ("head", head)):
        _checks.whole(size, name, low=1)

    def weights(*sizes: int) -> list[AnyArray]:
        return [rng.standard_normal(pair) * np.sqrt(2 / pair[0]) for pair in itertools.pairwise(sizes)]

    found: dict[str, Any] = {}
    for part in ("x", "xi"):
        found[f"phi_{part}"] = weights(FEATURES, embed, pool)
        found[f"rho_{part}"] = weights(pool, embed, code)
    found["head"] = [(weight, np.zeros(weight.shape[1])) for weight in weights(2 * code, head, 1)]
    return found


def set_value(params: Tree, decisions: Array[F], scenarios: Array[F]) -> Array[F]:
    """Predict second-stage values from two sets of items.

    Parameters
    ----------
    params
        As from :func:`init_value_net`.
    decisions, scenarios : arrays (N, n, 7)
        Scaled features of every item; the first one is the decision, or the degradation.

    Returns
    -------
    array (N,), dtype of the arguments

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit.

    Notes
    -----
    ``head([rho_x(mean_i phi_x(a_i)), rho_xi(mean_i phi_xi(b_i))])``; each part has one hidden ReLU layer. The order of
    the items does not matter.

    References
    ----------
    Dumouchelle et al. (2023), arXiv 2310.04345.

    Examples
    --------
    >>> params = init_value_net(np.random.default_rng(0))
    >>> set_value(params, np.ones((2, 5, 7)), np.ones((2, 5, 7))).shape
    (2,)
    """
    return set_value_vjp(params, decisions, scenarios)[0]


def set_value_vjp(params: Tree, decisions: Array[F], scenarios: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`set_value` and its pullback ``dy -> (dparams, ddecisions, dscenarios)``."""
    decisions = _checks.float_array(decisions, "decisions", ndim=3)
    scenarios = _checks.float_array(scenarios, "scenarios", ndim=3)
    _checks.shape(scenarios, "scenarios", decisions.shape)
    _checks.not_empty(decisions, "decisions", (1,))
    code_x, back_x = _encode_vjp(params["phi_x"], params["rho_x"], decisions)
    code_xi, back_xi = _encode_vjp(params["phi_xi"], params["rho_xi"], scenarios)
    y, back_head = _mlp_vjp(params["head"], np.concatenate([code_x, code_xi], axis=1))

    def pullback(dy: Array[F]) -> tuple[Tree, Array[F], Array[F]]:
        dhead, dcode = back_head(np.asarray(dy)[:, None])
        split = code_x.shape[1]
        dphi_x, drho_x, ddecisions = back_x(dcode[:, :split])
        dphi_xi, drho_xi, dscenarios = back_xi(dcode[:, split:])
        # The cotangents come in the order of the parameters' dict, whatever that is.
        found = {"phi_x": dphi_x, "rho_x": drho_x, "phi_xi": dphi_xi, "rho_xi": drho_xi, "head": dhead}
        return {name: found[name] for name in params}, ddecisions, dscenarios

    return y[:, 0], pullback


@dataclass(frozen=True)
class SetValueNet:
    """A trained value network with the scaling of its inputs and of its output.

    Parameters
    ----------
    params
        As from :func:`init_value_net`.
    low, scale : arrays (7,)
        Features are scaled to ``(feature - low) / scale``.
    value_low, value_scale : floats
        The network predicts ``(value - value_low) / value_scale``.
    """

    params: Tree
    low: AnyArray
    scale: AnyArray
    value_low: float
    value_scale: float

    def predict(self, instance: KnapsackInstance, x: AnyArray, xi: AnyArray) -> float:
        """Predict the second-stage value of a decision in a scenario."""
        return self.predict_vjp(instance, x, xi)[0]

    def predict_vjp(self, instance: KnapsackInstance, x: AnyArray, xi: AnyArray) -> tuple[float, Pullback]:
        """Return the prediction and its pullback ``dvalue -> (dx, dxi)``."""
        a, b = (((_features(instance, v) - self.low) / self.scale)[None] for v in (x, xi))
        y, back = set_value_vjp(self.params, a, b)

        def pullback(dvalue: float) -> tuple[AnyArray, AnyArray]:
            _, da, db = back(np.array([float(dvalue) * self.value_scale]))
            # Decision and degradation are the first feature of their items.
            return da[0, :, 0] / self.scale[0], db[0, :, 0] / self.scale[0]

        return float(self.value_low + self.value_scale * y[0]), pullback


def knapsack_data(
    instances: Sequence[KnapsackInstance], rng: np.random.Generator, *, pairs: int = 40
) -> tuple[Array[np.float64], Array[np.float64], Array[np.float64]]:
    """Draw decisions and scenarios, and solve their second stages exactly.

    Parameters
    ----------
    instances : sequence of KnapsackInstance, all of one size
    rng : numpy.random.Generator
    pairs : int >= 1
        Pairs of decision and scenario for each instance.

    Returns
    -------
    decisions, scenarios : float64 arrays (N, n, 7)
        Features, not scaled.
    value : float64 array (N,)

    Raises
    ------
    TypeError, ValueError
        If the sizes differ or there is no instance.

    Notes
    -----
    A decision accepts each item with one random probability. Half of the scenarios degrade as many random items
    completely as the budget allows, half spread it over all items at random.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> [a.shape for a in knapsack_data([random_knapsack(3, rng)], rng, pairs=5)]
    [(5, 3, 7), (5, 3, 7), (5,)]
    """
    rng = _checks.generator(rng)
    pairs = _checks.whole(pairs, "pairs", low=1)
    if not instances or len({_size(instance) for instance in instances}) > 1:
        _checks.fail("instances", "at least one, all of one size", [_size(instance) for instance in instances])
    a, b, values = [], [], []
    for instance in instances:
        for number in range(pairs):
            x = (rng.random(_size(instance)) < rng.random()).astype(np.float64)
            xi = _random_scenario(instance, rng, vertex=number % 2 == 0)
            a.append(_features(instance, x))
            b.append(_features(instance, xi))
            values.append(second_stage_value(instance, x, xi)[0])
    return np.array(a), np.array(b), np.array(values)


def train_value_net(
    data: tuple[AnyArray, AnyArray, AnyArray],
    *,
    rng: np.random.Generator,
    epochs: int = 500,
    learning_rate: float = 1e-3,
    batch: int = 128,
    params: Tree | None = None,
    callback: Callback | None = None,
) -> SetValueNet:
    """Fit a value network to exact second-stage values.

    Parameters
    ----------
    data : (decisions, scenarios, value)
        As from :func:`knapsack_data`.
    rng : numpy.random.Generator
        Draws the weights (if ``params`` is left out) and the batches.
    epochs, batch : ints >= 1
    learning_rate : float > 0
        Of Adam.
    params : optional
        Weights to begin with.
    callback : callable, optional
        Told the mean squared error of the scaled values after every epoch; a true result ends training.

    Returns
    -------
    SetValueNet

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit or an option is out of range.

    References
    ----------
    Dumouchelle et al. (2023), arXiv 2310.04345.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> data = knapsack_data([random_knapsack(3, rng)], rng, pairs=20)
    >>> net = train_value_net(data, rng=rng, epochs=2)
    >>> net.low.shape
    (7,)
    """
    rng = _checks.generator(rng)
    epochs, batch = _checks.whole(epochs, "epochs", low=1), _checks.whole(batch, "batch", low=1)
    decisions, scenarios = (_checks.float_array(part, "data", ndim=3) for part in data[:2])
    value = _checks.float_array(data[2], "data", ndim=1)
    _checks.shape(value, "data", decisions.shape[:1])
    low, scale = _ranges(decisions.reshape(-1, FEATURES))
    low[0], scale[0] = 0.0, 1.0  # decisions and degradations live in [0, 1] already
    value_low, value_scale = (float(part[0]) for part in _ranges(value[:, None]))
    a, b = (decisions - low) / scale, (scenarios - low) / scale
    label = (value - value_low) / value_scale
    params = init_value_net(rng) if params is None else params
    optimizer = AdamP(learning_rate=learning_rate, delta=NO_PROJECTION)
    state = optimizer.init(params)
    monitor = Monitor("train_value_net", callback=callback)
    for _ in range(epochs):
        order, total = rng.permutation(len(label)), 0.0
        for start in range(0, len(label), batch):
            rows = order[start : start + batch]
            y, back = set_value_vjp(params, a[rows], b[rows])
            error = y - label[rows]
            params, state = optimizer.step(params, back(2 * error / len(rows))[0], state)
            total += float(error @ error)
        if monitor.record(error=total / len(label)):
            break
    return SetValueNet(params, low, scale, value_low, value_scale)


def interval_bounds(layers: Layers, lower: AnyArray, upper: AnyArray) -> list[tuple[AnyArray, AnyArray]]:
    """Bound the pre-activations of a ReLU network over a box of inputs.

    Parameters
    ----------
    layers : list of (weight (inputs, outputs), bias (outputs,))
        With ReLU between them.
    lower, upper : arrays (inputs,)

    Returns
    -------
    list of (lower, upper), one pair a layer

    Raises
    ------
    ValueError
        If a lower bound exceeds its upper bound or a shape does not fit.

    Notes
    -----
    ``W+ lower + W- upper + b`` and ``W+ upper + W- lower + b``, with the positive and negative parts of the weight;
    then both ends go through ReLU. Each is widened by 1e-9.

    Examples
    --------
    >>> layers = [(np.array([[2.0]]), np.array([-1.0]))]
    >>> [(float(low.round(6)[0]), float(high.round(6)[0])) for low, high in interval_bounds(layers, np.zeros(1), np.ones(1))]
    [(-1.0, 1.0)]
    """
    low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    _checks.shape(high, "upper", low.shape)
    if (low > high).any():
        _checks.fail("lower", "bounds not above upper", f"{int((low > high).sum())} that are")
    bounds = []
    for number, (weight, bias) in enumerate(layers):
        _checks.shape(np.asarray(weight), f"layers.{number}", (len(low), len(bias)))
        positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
        low, high = (
            low @ positive + high @ negative + bias - BOUND_PADDING,
            high @ positive + low @ negative + bias + BOUND_PADDING,
        )
        bounds.append((low, high))
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    return bounds


@dataclass(frozen=True)
class ReluProgram:
    """A ReLU network as the linear constraints of a mixed-integer program.

    Parameters
    ----------
    matrix, low, high
        ``low <= matrix @ variables <= high``; a sparse matrix.
    variable_low, variable_high, integrality
        Bounds of the variables, and 1 where one is an integer.
    inputs, outputs
        Indices of the network's inputs and outputs among the variables.
    """

    matrix: Any
    low: AnyArray
    high: AnyArray
    variable_low: AnyArray
    variable_high: AnyArray
    integrality: AnyArray
    inputs: AnyArray
    outputs: AnyArray


def relu_milp_constraints(layers: Layers, lower: AnyArray, upper: AnyArray) -> ReluProgram:
    """Write a ReLU network over a box of inputs as mixed-integer linear constraints.

    Parameters
    ----------
    layers, lower, upper
        As in :func:`interval_bounds`.

    Returns
    -------
    ReluProgram

    Raises
    ------
    ValueError
        As :func:`interval_bounds`.

    Notes
    -----
    For a pre-activation ``a`` in ``[l, u]`` and a binary ``s``: ``h >= a``, ``0 <= h <= u s``, ``h <= a - l (1 - s)``.
    Where ``u <= 0`` it is ``h = 0``, and where ``l >= 0`` it is ``h = a``, without a binary.

    References
    ----------
    Fischetti, Jo (2018), Deep neural networks and mixed integer linear optimization, section 2.

    Examples
    --------
    >>> from scipy.optimize import Bounds, LinearConstraint, milp
    >>> p = relu_milp_constraints([(np.array([[2.0]]), np.array([-1.0])), (np.ones((1, 1)), np.zeros(1))], np.zeros(1), np.ones(1))
    >>> goal = np.zeros(len(p.integrality))
    >>> goal[p.outputs] = -1
    >>> result = milp(goal, constraints=LinearConstraint(p.matrix, p.low, p.high), integrality=p.integrality,
    ...               bounds=Bounds(p.variable_low, p.variable_high))
    >>> round(float(result.x[p.inputs][0]), 6), round(-result.fun, 6)
    (1.0, 1.0)
    """
    bounds = interval_bounds(layers, lower, upper)
    program = _Program()
    inputs = program.add(len(np.asarray(lower)), lower, upper)
    outputs = program.relu_network(layers, inputs, bounds)
    return program.constraints(inputs, outputs)


def neural_main(
    instance: KnapsackInstance,
    net: SetValueNet,
    scenarios: AnyArray,
    *,
    formulation: str = "max",
    time_limit: float | None = None,
) -> tuple[Array[np.float64], float, bool]:
    """Decide against a list of scenarios, with predicted second-stage values.

    Parameters
    ----------
    instance : KnapsackInstance
    net : SetValueNet
    scenarios : array (k, n)
    formulation : ``"max"`` or ``"argmax"``
        ``"max"`` minimizes the first stage plus the largest prediction. ``"argmax"`` uses predictions only to pick the
        worst scenario, and pays an exact reaction to it.
    time_limit : float > 0, optional
        Seconds after which HiGHS returns the best decision that it has.

    Returns
    -------
    x : float64 array (n,)
    value : float
        The program's: first stage included.
    optimal : bool
        False if the time was up.

    Raises
    ------
    TypeError, ValueError
        If a scenario does not fit, there is none, or an option is out of range.

    References
    ----------
    Dumouchelle et al. (2023), arXiv 2310.04345.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> instance = random_knapsack(3, rng)
    >>> net = train_value_net(knapsack_data([instance], rng), rng=rng, epochs=5)
    >>> x, value, optimal = neural_main(instance, net, np.zeros((1, 3)))
    >>> bool(np.isclose(value, instance.first_stage(x) + net.predict(instance, x, np.zeros(3))))
    True
    """
    _checks.one_of(formulation, "formulation", ("max", "argmax"))
    listed = _scenario_list(instance, scenarios)
    program = _Program()
    x_at = program.add(_size(instance), 0, 1, integer=True)
    program.minimize(x_at, instance.outsourcing - instance.profit)
    pooled, reach = _pooled_in_x(program, instance, net, x_at)
    predicted, bounds = [], []
    for xi in listed:
        layers = _head_after_x(instance, net, xi)
        bounds.append(interval_bounds(layers, *reach))
        predicted.append(program.relu_network(layers, pooled, bounds[-1]))
    largest = program.add(1, -np.inf, np.inf)
    for at in predicted:
        program.row([(largest, [1.0]), (at, [-1.0])], 0, np.inf)
    if formulation == "max":
        program.minimize(largest, np.array([net.value_scale]))
        program.constant = net.value_low
    else:
        spread = float(max(b[-1][1][0] for b in bounds) - min(b[-1][0][0] for b in bounds))
        _pay_for_worst(program, instance, x_at, largest, predicted, listed, spread)
    found, value, optimal = program.solve(time_limit)
    return _whole(found[x_at]), value, optimal


def neural_adversary(
    instance: KnapsackInstance,
    net: SetValueNet,
    x: AnyArray,
    *,
    method: str = "milp",
    rng: np.random.Generator | None = None,
    time_limit: float | None = None,
) -> tuple[float, Array[np.float64], bool]:
    """Find the scenario with the largest predicted second-stage value.

    Parameters
    ----------
    instance : KnapsackInstance
    net : SetValueNet
    x : array (n,) of 0 and 1
    method : ``"milp"`` or ``"gradient"``
        A mixed-integer program, or projected gradient ascent from 20 random scenarios.
    rng : numpy.random.Generator, optional
        For ``"gradient"``; ``default_rng(0)`` by default.
    time_limit : float > 0, optional
        Seconds, for ``"milp"``.

    Returns
    -------
    value : float
        First stage included.
    xi : float64 array (n,)
    optimal : bool
        Whether the maximum is proved.

    Raises
    ------
    TypeError, ValueError
        If ``x`` does not fit or an option is out of range.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> instance = random_knapsack(3, rng)
    >>> net = train_value_net(knapsack_data([instance], rng), rng=rng, epochs=5)
    >>> exact, _, _ = neural_adversary(instance, net, np.ones(3))
    >>> climbed, _, _ = neural_adversary(instance, net, np.ones(3), method="gradient")
    >>> bool(climbed <= exact + 1e-6)
    True
    """
    _checks.one_of(method, "method", ("milp", "gradient"))
    x = _decision(instance, x)
    if method == "gradient":
        value, xi = _climb(instance, net, x, np.random.default_rng(0) if rng is None else _checks.generator(rng))
        return _first_stage(instance, x) + value, xi, False
    program = _Program()
    xi_at = _budgeted(program, instance)
    layers = _network_in_xi(instance, net, x)
    bounds = interval_bounds(layers, np.zeros(_size(instance)), np.ones(_size(instance)))
    (at,) = program.relu_network(layers, xi_at, bounds)
    program.minimize(np.array([at]), np.array([-net.value_scale]))
    found, _, optimal = program.solve(time_limit)
    xi = _snap(found[xi_at])
    return _first_stage(instance, x) + net.predict(instance, x, xi), xi, optimal


def neural_ccg(
    instance: KnapsackInstance,
    net: SetValueNet,
    *,
    formulation: str = "max",
    method: str = "milp",
    max_iter: int = 30,
    tol: float = 1e-6,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> CCGResult:
    """Column-and-constraint generation with a learned second stage.

    Parameters
    ----------
    instance, net, formulation, time_limit
        As in :func:`neural_main`.
    method
        As in :func:`neural_adversary`.
    max_iter, tol, callback
        As in :func:`ccg`.

    Returns
    -------
    CCGResult

    Raises
    ------
    TypeError, ValueError
        As :func:`neural_main`, :func:`neural_adversary` and :func:`ccg`.

    References
    ----------
    Dumouchelle et al. (2023), arXiv 2310.04345.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> instance = random_knapsack(3, rng)
    >>> net = train_value_net(knapsack_data([instance], rng), rng=rng, epochs=50)
    >>> result = neural_ccg(instance, net)
    >>> result.converged, bool(result.value >= solve_exact(instance).value - 1e-9)
    (True, True)
    """
    proved = []

    def main(instance: KnapsackInstance, scenarios: AnyArray) -> tuple[AnyArray, float]:
        x, _, optimal = neural_main(instance, net, scenarios, formulation=formulation, time_limit=time_limit)
        proved.append(optimal)
        # What the adversary's value is compared with: the worst prediction over the known scenarios.
        return x, _first_stage(instance, x) + max(net.predict(instance, x, xi) for xi in scenarios)

    def adversary(instance: KnapsackInstance, x: AnyArray) -> tuple[float, AnyArray]:
        value, xi, optimal = neural_adversary(instance, net, x, method=method, time_limit=time_limit)
        proved.append(optimal or method == "gradient")
        return value, xi

    result = ccg(instance, adversary, main, max_iter=max_iter, tol=tol, callback=callback)
    return replace(result, converged=result.converged and all(proved))


class _Program:
    """A mixed-integer linear program in the making; all its variables are known by their indices."""

    def __init__(self) -> None:
        self._low: list[AnyArray] = []
        self._high: list[AnyArray] = []
        self._integer: list[AnyArray] = []
        self._goal: list[tuple[AnyArray, AnyArray]] = []
        self._blocks: list[list[tuple[AnyArray, AnyArray]]] = []
        self._row_low: list[AnyArray] = []
        self._row_high: list[AnyArray] = []
        self._count = 0
        self.constant = 0.0

    def add(self, count: int, low: Any, high: Any, *, integer: bool = False) -> AnyArray:
        """Add variables and return their indices."""
        self._low.append(np.broadcast_to(np.asarray(low, dtype=np.float64), count))
        self._high.append(np.broadcast_to(np.asarray(high, dtype=np.float64), count))
        self._integer.append(np.full(count, int(integer)))
        self._count += count
        return np.arange(self._count - count, self._count)

    def minimize(self, at: AnyArray, weights: AnyArray) -> None:
        self._goal.append((at, np.asarray(weights, dtype=np.float64)))

    def block(self, terms: Sequence[tuple[AnyArray, AnyArray]], low: Any, high: Any) -> None:
        """Add rows ``low <= sum of matrix @ variables <= high``; a matrix has one column a variable."""
        rows = len(terms[0][1])
        self._blocks.append([(at, np.asarray(matrix, dtype=np.float64)) for at, matrix in terms])
        self._row_low.append(np.broadcast_to(np.asarray(low, dtype=np.float64), rows))
        self._row_high.append(np.broadcast_to(np.asarray(high, dtype=np.float64), rows))

    def row(self, terms: Sequence[tuple[AnyArray, Any]], low: float, high: float) -> None:
        self.block([(at, np.asarray(weights)[None]) for at, weights in terms], low, high)

    def relu_network(
        self, layers: Layers, inputs: AnyArray, bounds: Sequence[tuple[AnyArray, AnyArray]], *, last: bool = False
    ) -> AnyArray:
        """Add a network and return the indices of its outputs; ``last``: with ReLU after the last layer, too."""
        for number, ((weight, bias), (low, high)) in enumerate(zip(layers, bounds, strict=True)):
            if number < len(layers) - 1 or last:
                inputs = self._relu(np.asarray(weight), np.asarray(bias), low, high, inputs)
                continue
            outputs = self.add(len(bias), low, high)
            self.block([(outputs, np.eye(len(bias))), (inputs, -np.asarray(weight).T)], bias, bias)
            inputs = outputs
        return inputs

    def _relu(self, weight: AnyArray, bias: AnyArray, low: AnyArray, high: AnyArray, inputs: AnyArray) -> AnyArray:
        h = self.add(len(bias), 0, np.maximum(high, 0))
        always, open_ = low >= 0, (low < 0) & (high > 0)
        eye = np.eye(len(bias))
        if always.any():
            self.block([(h, eye[always]), (inputs, -weight.T[always])], bias[always], bias[always])
        if open_.any():
            s = self.add(int(open_.sum()), 0, 1, integer=True)
            at, back = eye[open_], -weight.T[open_]
            self.block([(h, at), (inputs, back)], bias[open_], np.inf)  # h >= a
            self.block([(h, at), (s, -np.diag(high[open_]))], -np.inf, 0)  # h <= u s
            limit = bias[open_] - low[open_]
            self.block([(h, at), (inputs, back), (s, -np.diag(low[open_]))], -np.inf, limit)  # h <= a - l (1 - s)
        return h

    def constraints(self, inputs: AnyArray, outputs: AnyArray) -> ReluProgram:
        rows, columns, values, start = [], [], [], 0
        for block in self._blocks:
            for at, matrix in block:
                row, column = np.nonzero(matrix)
                rows.append(row + start)
                columns.append(at[column])
                values.append(matrix[row, column])
            start += len(block[0][1])

        def joined(parts: Sequence[AnyArray]) -> AnyArray:
            return np.concatenate(parts) if parts else np.zeros(0)

        places = (joined(rows).astype(np.intp), joined(columns).astype(np.intp))
        return ReluProgram(
            csr_array((joined(values), places), shape=(start, self._count)),
            joined(self._row_low),
            joined(self._row_high),
            joined(self._low),
            joined(self._high),
            joined(self._integer),
            inputs,
            outputs,
        )

    def solve(self, time_limit: float | None = None) -> tuple[AnyArray, float, bool]:
        """Return the variables, the value, and whether it is proved to be the smallest."""
        if time_limit is not None:
            _checks.positive(time_limit, "time_limit")
        goal = np.zeros(self._count)
        for at, weights in self._goal:
            np.add.at(goal, at, weights)
        program = self.constraints(np.zeros(0, int), np.zeros(0, int))
        result = milp(
            goal,
            constraints=LinearConstraint(program.matrix, program.low, program.high) if len(program.low) else None,
            integrality=program.integrality,
            bounds=Bounds(program.variable_low, program.variable_high),
            options={} if time_limit is None else {"time_limit": time_limit},
        )
        if result.x is None:
            raise ArithmeticError(f"HiGHS found no solution: {result.message}")
        return np.asarray(result.x), float(result.fun) + self.constant, bool(result.status == 0)


def _size(instance: KnapsackInstance) -> int:
    return len(instance.cost)


def _first_stage(instance: KnapsackInstance, x: AnyArray) -> float:
    return float((instance.outsourcing - instance.profit) @ x)


def _decision(instance: KnapsackInstance, x: AnyArray) -> AnyArray:
    x = np.asarray(x, dtype=np.float64)
    _checks.shape(x, "x", (_size(instance),))
    if not np.isin(x, (0.0, 1.0)).all():
        _checks.fail("x", "entries 0 or 1", x)
    return x


def _scenario(instance: KnapsackInstance, xi: AnyArray) -> AnyArray:
    xi = np.asarray(xi, dtype=np.float64)
    _checks.shape(xi, "xi", (_size(instance),))
    if not ((xi >= 0) & (xi <= 1)).all():
        _checks.fail("xi", "entries in [0, 1]", xi)
    return xi


def _scenario_list(instance: KnapsackInstance, scenarios: AnyArray) -> list[AnyArray]:
    listed = [_scenario(instance, xi) for xi in scenarios]
    if not listed:
        _checks.fail("scenarios", "at least one scenario", 0)
    return listed


def _whole(found: AnyArray) -> Array[np.float64]:
    return np.asarray(np.round(found), dtype=np.float64)


def _snap(xi: AnyArray) -> AnyArray:
    """Round entries next to 0 and 1; the solver's may be a little outside."""
    xi = np.where(xi < SNAP, 0.0, np.where(xi > 1 - SNAP, 1.0, xi))
    return np.asarray(xi)


@lru_cache(maxsize=16)
def _reactions(n: int) -> tuple[AnyArray, AnyArray]:
    states = np.array(list(itertools.product((0, 1, 2), repeat=n)))
    y, r = (states > 0).astype(np.float64), (states == 2).astype(np.float64)
    y.setflags(write=False)
    r.setflags(write=False)
    return y, r


def _all_second_stages(instance: KnapsackInstance, decisions: AnyArray, xi: AnyArray) -> AnyArray:
    """Second-stage values of all 2^n decisions, in the order of ``itertools.product``."""
    loss = instance.degradation * xi
    y, r = _reactions(_size(instance))
    fits = y @ instance.cost + r @ instance.repair <= instance.capacity
    values = np.where(fits, y @ (loss - instance.outsourcing) - r @ loss, np.inf)
    places = 2 ** np.arange(_size(instance))[::-1]
    best = np.full(len(decisions), np.inf)
    np.minimum.at(best, (y @ places).astype(np.intp), values)
    # What can be produced from fewer accepted items can be produced from more.
    numbers = np.arange(len(best))
    for place in places:
        best = np.minimum(best, np.where(numbers & place, best[numbers & ~place], np.inf))
    return best


def _reaction(program: _Program, instance: KnapsackInstance, x: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Add a feasible reaction to a decision, given as numbers (float) or as variables (indices)."""
    decided = x.dtype.kind == "f"
    y = program.add(_size(instance), 0, x if decided else 1, integer=True)
    r = program.add(_size(instance), 0, 1, integer=True)
    eye = np.eye(_size(instance))
    program.row([(y, instance.cost), (r, instance.repair)], -np.inf, instance.capacity)
    program.block([(r, eye), (y, -eye)], -np.inf, 0)
    if not decided:
        program.block([(y, eye), (x, -eye)], -np.inf, 0)
    return y, r


def _budgeted(program: _Program, instance: KnapsackInstance) -> AnyArray:
    xi = program.add(_size(instance), 0, 1)
    program.row([(xi, np.ones(_size(instance)))], 0, instance.budget)
    return xi


def _pay_for_worst(
    program: _Program,
    instance: KnapsackInstance,
    x: AnyArray,
    largest: AnyArray,
    predicted: Sequence[AnyArray],
    scenarios: Sequence[AnyArray],
    spread: float,
) -> None:
    """Choose the scenario with the largest prediction, and charge an exact reaction to it."""
    chosen = program.add(len(scenarios), 0, 1, integer=True)
    program.row([(chosen, np.ones(len(scenarios)))], 1, 1)
    y, r = _reaction(program, instance, x)
    program.minimize(y, -instance.outsourcing)
    eye, ones = np.eye(_size(instance)), np.ones((_size(instance), 1))
    for at, z, xi in zip(predicted, chosen[:, None], scenarios, strict=True):
        # largest <= prediction + spread (1 - z): only the largest prediction can be chosen.
        program.row([(at, [1.0]), (largest, [-1.0]), (z, [-spread])], -spread, np.inf)
        produced, repaired = program.add(_size(instance), 0, 1), program.add(_size(instance), 0, 1)
        # The products y z and r z, from the side to which the costs push them.
        program.block([(produced, eye), (y, -eye), (z, -ones)], -1, np.inf)
        program.block([(repaired, eye), (r, -eye)], -np.inf, 0)
        program.block([(repaired, eye), (z, -ones)], -np.inf, 0)
        program.minimize(produced, instance.degradation * xi)
        program.minimize(repaired, -instance.degradation * xi)


def _encode_vjp(phi: Sequence[AnyArray], rho: Sequence[AnyArray], items: AnyArray) -> tuple[AnyArray, Pullback]:
    """Return ``rho(mean over items of phi(item))`` and its pullback ``dcode -> (dphi, drho, ditems)``."""
    embedded, back_phi = _mlp_vjp([(weight, None) for weight in phi], items)
    code, back_rho = _mlp_vjp([(weight, None) for weight in rho], embedded.mean(axis=1))
    count = items.shape[1]

    def pullback(dcode: AnyArray) -> tuple[list[AnyArray], list[AnyArray], AnyArray]:
        drho, dmean = back_rho(dcode)
        # Every item has the weight 1 / n in the mean; the shared weights of phi sum over items.
        dphi, ditems = back_phi(np.repeat(dmean[:, None] / count, count, axis=1).astype(items.dtype))
        return [weight for weight, _ in dphi], [weight for weight, _ in drho], ditems

    return code, pullback


def _mlp_vjp(layers: Sequence[tuple[AnyArray, AnyArray | None]], x: AnyArray) -> tuple[AnyArray, Pullback]:
    steps: list[tuple[Pullback, Pullback | None]] = []
    for number, (weight, bias) in enumerate(layers):
        x, back = linear_vjp(x, weight, bias)
        activate = None
        if number < len(layers) - 1:
            x, activate = relu_vjp(x)
        steps.append((back, activate))

    def pullback(dy: AnyArray) -> tuple[list[tuple[AnyArray, AnyArray | None]], AnyArray]:
        grads = []
        for back, activate in reversed(steps):
            if activate is not None:
                (dy,) = activate(dy)
            dy, dweight, dbias = back(dy)
            grads.append((dweight, dbias))
        return grads[::-1], dy

    return x, pullback


def _features(instance: KnapsackInstance, first: AnyArray) -> AnyArray:
    capacity = np.full(_size(instance), instance.capacity)
    columns = (
        first,
        instance.cost,
        instance.profit,
        instance.degradation,
        instance.outsourcing,
        instance.repair,
        capacity,
    )
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _ranges(rows: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Smallest value and range of every column; a range of 0 counts as 1."""
    low = rows.min(axis=0).astype(np.float64)
    scale = rows.max(axis=0) - low
    return low, np.where(scale > 0, scale, 1.0)


def _random_scenario(instance: KnapsackInstance, rng: np.random.Generator, *, vertex: bool) -> AnyArray:
    if vertex:
        xi = np.zeros(_size(instance))
        xi[rng.permutation(_size(instance))[: int(instance.budget)]] = 1
        return xi
    return np.minimum(rng.dirichlet(np.ones(_size(instance))) * instance.budget, 1.0)


def _items(instance: KnapsackInstance, net: SetValueNet) -> AnyArray:
    return np.asarray((_features(instance, np.zeros(_size(instance))) - net.low) / net.scale)


def _pooled_in_x(
    program: _Program, instance: KnapsackInstance, net: SetValueNet, x: AnyArray
) -> tuple[AnyArray, tuple[AnyArray, AnyArray]]:
    """Add the hidden layer of rho_x; return its variables and their bounds.

    A function of one binary is linear in it: phi_x costs no binary at all.
    """
    first, second = net.params["phi_x"]
    hidden = net.params["rho_x"][0]
    base = _items(instance, net) @ first
    off, on = np.maximum(base, 0), np.maximum(base + first[0] / net.scale[0], 0)
    onwards = second @ hidden / _size(instance)
    layers = [((on - off) @ onwards, off.sum(axis=0) @ onwards)]
    bounds = interval_bounds(layers, np.zeros(_size(instance)), np.ones(_size(instance)))
    units = program.relu_network(layers, x, bounds, last=True)
    low, high = bounds[0]
    return units, (np.maximum(low, 0), np.maximum(high, 0))


def _head_after_x(instance: KnapsackInstance, net: SetValueNet, xi: AnyArray) -> Layers:
    """The head as a network of rho_x's hidden units, for a scenario that is known."""
    (weight, bias), last = net.params["head"]
    code = net.params["rho_x"][1].shape[1]
    items = ((_features(instance, xi) - net.low) / net.scale)[None]
    known, _ = _encode_vjp(net.params["phi_xi"], net.params["rho_xi"], items)
    return [(net.params["rho_x"][1] @ weight[:code], bias + known[0] @ weight[code:]), last]


def _network_in_xi(instance: KnapsackInstance, net: SetValueNet, x: AnyArray) -> Layers:
    """The whole network as a plain one of the scenario, for a decision that is known."""
    first, second = net.params["phi_xi"]
    (weight, bias), last = net.params["head"]
    n, units = _size(instance), first.shape[1]
    spread = np.kron(np.eye(n), first[:1] / net.scale[0])  # item i's hidden units see xi_i
    pooled = np.tile(second @ net.params["rho_xi"][0] / n, (n, 1))
    code = net.params["rho_x"][1].shape[1]
    items = ((_features(instance, x) - net.low) / net.scale)[None]
    known, _ = _encode_vjp(net.params["phi_x"], net.params["rho_x"], items)
    return [
        (spread, (_items(instance, net) @ first).reshape(n * units)),
        (pooled, np.zeros(pooled.shape[1])),
        (net.params["rho_xi"][1] @ weight[code:], bias + known[0] @ weight[:code]),
        last,
    ]


def _climb(
    instance: KnapsackInstance, net: SetValueNet, x: AnyArray, rng: np.random.Generator
) -> tuple[float, AnyArray]:
    """Projected gradient ascent on the prediction, from many scenarios at once."""
    xi = np.stack([_random_scenario(instance, rng, vertex=start % 2 == 0) for start in range(STARTS)])
    decisions = np.repeat(((_features(instance, x) - net.low) / net.scale)[None], STARTS, axis=0)
    scenarios = np.repeat(_items(instance, net)[None], STARTS, axis=0)
    base = scenarios[:, :, 0].copy()
    best, where = -np.inf, xi[0]
    for step in range(ASCENT_STEPS + 1):
        scenarios[:, :, 0] = base + xi / net.scale[0]
        y, back = set_value_vjp(net.params, decisions, scenarios)
        if y.max() > best:
            best, where = float(y.max()), xi[y.argmax()]
        slope = back(np.ones(STARTS))[2][:, :, 0]
        size = np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        xi = _into_budget(xi + ASCENT_RATE * (1 - step / ASCENT_STEPS) * slope / size, instance.budget)
    return net.value_low + net.value_scale * best, where


def _into_budget(xi: AnyArray, budget: float) -> AnyArray:
    """Project rows on ``0 <= xi <= 1, sum xi <= budget``: clip after a shift that is found by bisection."""
    low, high = np.zeros(len(xi)), np.maximum(xi.max(axis=1), 0.0)
    over = np.clip(xi, 0, 1).sum(axis=1) > budget
    for _ in range(60):
        middle = (low + high) / 2
        above = np.clip(xi - middle[:, None], 0, 1).sum(axis=1) > budget
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(np.clip(xi - np.where(over, high, 0.0)[:, None], 0, 1))
