"""Learning-rate schedules from the gradient norms of an earlier run; linear decay is the worst case.

rate_t = w_t sum(w_(t+1), ..., w_T) / sum(w),    w_t = 1 / norm_t^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from scipy.optimize import minimize

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._protocol import Optimizer, update_leaves, zeros_like
from refnorm.tree import tree_map

METHOD = Method(
    title="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
    authors="Defazio, Cutkosky, Mehta, Mishchenko",
    year=2023,
    arxiv="2310.07831",
    functions=(
        "LastIterate",
        "LastIterateState",
        "PolynomialFit",
        "ScheduleResult",
        "ScheduledSGD",
        "ScheduledSGDState",
        "cosine_decay",
        "fit_polynomial",
        "inverse_power_decay",
        "linear_decay",
        "optimize_schedule",
        "refine_schedule",
        "schedule_bound",
        "schedule_from_weights",
        "smooth_norms",
        "step_decay",
        "warmup_polynomial",
        "weight_bound",
    ),
    chapter="solvers/refined_schedule",
)

FLOOR = 1e-12
"""Smallest smoothed norm, relative to the largest: a norm of 0 would take all the weight."""

LONGEST = 10_000
"""Longer runs are thinned to this many norms, as in the authors' program: the filter's cost grows with its width."""

SMALLEST_RATE = 1e-8
"""Lower bound of the rates in :func:`optimize_schedule`; the bound divides by their sums."""

_KINDS = {"sgd": -2, "adam": -1}
_WARMUPS, _POWERS = np.arange(0, 51) / 100, np.arange(5, 31) / 10


def smooth_norms(norms: Array[F], *, window: float = 0.1) -> Array[F]:
    """Smooth gradient norms by a running median.

    Parameters
    ----------
    norms : array (T,), T >= 2
        Not negative. NaN and infinity are replaced by interpolation between their neighbours.
    window : float in (0, 1]
        Width of the filter as a fraction of the run.

    Returns
    -------
    array (T,)

    Raises
    ------
    TypeError, ValueError
        If there are fewer than two norms, none is finite, one is negative, or ``window`` is outside its range.

    Notes
    -----
    The width is the odd number ``2 floor(floor(window T) / 2) + 1``. The run is continued beyond its end by
    reflection, so that the end is not flattened; the first norm is repeated before its beginning.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (smoothing of the norms).

    Examples
    --------
    >>> smooth_norms(np.array([1.0, 9.0, 1.0, 2.0, 3.0]), window=0.6)
    array([1., 1., 2., 2., 2.])
    """
    norms = _norms(norms)
    _checks.in_range(window, "window", 0.0, 1.0, closed="right")
    finite = np.isfinite(norms)
    if not finite.all():
        steps = np.arange(len(norms))
        norms = np.interp(steps, steps[finite], norms[finite]).astype(norms.dtype)
    width = 2 * (math.floor(window * len(norms)) // 2) + 1
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    return np.asarray(scipy.ndimage.median_filter(padded, size=width, mode="nearest")[: len(norms)])


def schedule_from_weights(weights: Array[F]) -> Array[F]:
    """Return the learning rates whose last iterate has the guarantee of the weighted average.

    Parameters
    ----------
    weights : array (T,), T >= 1
        Positive.

    Returns
    -------
    array (T,)
        The last rate is 0.

    Raises
    ------
    TypeError, ValueError
        If there is no weight or one is not positive.

    Notes
    -----
    ``rate_t = w_t (w_(t+1) + ... + w_T) / (w_1 + ... + w_T)``. Sums are float64.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (schedule of a sequence of weights).

    Examples
    --------
    >>> schedule_from_weights(np.ones(4))
    array([0.75, 0.5 , 0.25, 0.  ])
    """
    return schedule_from_weights_vjp(weights)[0]


def schedule_from_weights_vjp(weights: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`schedule_from_weights` and its pullback ``dschedule -> (dweights,)``."""
    weights = _positive(weights, "weights")
    wide = _wide(weights)
    suffix = _suffix_sums(wide)
    # The suffix sum less the weight itself would cancel where one weight dominates.
    total, later = suffix[0], np.append(suffix[1:], 0)
    schedule = wide * later / total

    def pullback(dschedule: AnyArray) -> tuple[AnyArray]:
        # A weight acts on its own rate, on every earlier rate as part of the later weights, and on the total.
        d = _wide(np.asarray(dschedule))
        earlier = np.concatenate([[0.0], np.cumsum(d * wide)[:-1]])
        return (((d * later + earlier - d @ schedule) / total).astype(weights.dtype),)

    return np.asarray(schedule, dtype=weights.dtype), pullback


def refine_schedule(
    norms: Array[F],
    *,
    kind: str = "sgd",
    window: float = 0.1,
    normalize: bool = True,
    distance: float | None = None,
) -> Array[F]:
    """Return the schedule that the gradient norms of an earlier run ask for.

    Parameters
    ----------
    norms : array (T,), T >= 2
        2-norms for SGD, 1-norms for Adam and sign methods.
    kind : ``"sgd"`` or ``"adam"``
        Weights ``norm^-2`` or ``norm^-1``.
    window
        As in :func:`smooth_norms`.
    normalize : bool
        Divide by the largest rate, so that a base learning rate remains to be chosen.
    distance : float > 0, optional
        Distance of the start from the solution, for 2-norms: gives absolute rates, which minimise
        :func:`weight_bound`, and is not combined with ``normalize``.

    Returns
    -------
    array (T,)

    Raises
    ------
    TypeError, ValueError
        As in :func:`smooth_norms`; if all norms are 0, or ``distance`` comes with ``normalize`` or ``"adam"``.

    Notes
    -----
    Runs of more than 10,000 steps are thinned by linear interpolation, and the schedule interpolated back.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (schedule refinement for SGD and Adam).

    Examples
    --------
    >>> refine_schedule(np.array([1.0, 2.0, 1.0]))
    array([1. , 0.2, 0. ])
    >>> refine_schedule(np.full(4, 3.0)).round(6)
    array([1.      , 0.666667, 0.333333, 0.      ])
    """
    norms = _norms(norms)
    _checks.one_of(kind, "kind", tuple(_KINDS))
    if distance is not None:
        _checks.positive(distance, "distance")
        if normalize or kind != "sgd":
            _checks.fail("distance", "None with normalize=True or kind='adam'", distance)
    length = len(norms)
    thin = _stretch(norms, min(length, LONGEST))
    smooth = _wide(smooth_norms(thin, window=window))
    largest = float(smooth.max())
    if largest == 0:
        _checks.fail("norms", "at least one that is not 0 after smoothing", "zeros")
    # Weights matter up to a factor: the largest norm is the unit, and no power overflows.
    weights = np.maximum(smooth / largest, FLOOR) ** _KINDS[kind]
    schedule = schedule_from_weights(weights)
    if normalize:
        schedule = schedule / schedule.max()
    elif distance is not None:
        # The sum under the root runs over the whole run, of which thin is a sample.
        schedule = schedule * distance / (largest * np.sqrt(weights.sum() * length / len(thin)))
    else:
        schedule = schedule * largest ** _KINDS[kind]
    return _stretch(schedule, length).astype(norms.dtype)


def weight_bound(weights: Array[F], norms: Array[F], distance: Array[F] | float) -> Array[F]:
    """Return the bound on the last iterate of gradient descent with :func:`schedule_from_weights`.

    Parameters
    ----------
    weights, norms : arrays (T,)
        Positive weights; gradient 2-norms.
    distance : float > 0
        Of the start from the solution.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    Notes
    -----
    ``(distance^2 + sum w^2 norm^2) / (2 sum w)``; at its least, ``distance / sqrt(sum norm^-2)`` for
    ``w = norm^-2 distance / sqrt(sum norm^-2)``.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (last-iterate bound).

    Examples
    --------
    >>> float(weight_bound(np.ones(4) / 2, np.ones(4), 1.0))
    0.5
    """
    return weight_bound_vjp(weights, norms, distance)[0]


def weight_bound_vjp(weights: Array[F], norms: Array[F], distance: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`weight_bound` and its pullback ``dbound -> (dweights, dnorms, ddistance)``."""
    weights, norms = _pair(weights, norms, "weights")
    w, g, d = _wide(weights), _wide(norms), _distance(distance)
    total = w.sum()
    bound = (d**2 + np.sum((w * g) ** 2)) / (2 * total)

    def pullback(dbound: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        scale = float(dbound) / total
        dtype = weights.dtype
        dweights = scale * (w * g * g - bound)
        return dweights.astype(dtype), (scale * w * w * g).astype(dtype), np.asarray(scale * d, dtype=dtype)

    return np.asarray(bound, dtype=weights.dtype), pullback


def schedule_bound(schedule: Array[F], norms: Array[F], distance: Array[F] | float) -> Array[F]:
    """Return the bound on the last iterate of gradient descent with any sequence of learning rates.

    Parameters
    ----------
    schedule, norms : arrays (T,)
        Positive learning rates; gradient 2-norms.
    distance : float > 0
        Of the start from the solution.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    Notes
    -----
    With ``S_k`` the sum of the rates from ``k`` on and ``Q_k`` that of ``rate^2 norm^2``,
    ``(distance^2 + Q_1) / (2 S_1) + 1/2 sum_(k<T) rate_k Q_k / (S_(k+1) S_k)``.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (bound for arbitrary schedules).

    Examples
    --------
    >>> float(schedule_bound(np.array([1.0, 1.0]), np.ones(2), 1.0))
    1.25
    """
    return schedule_bound_vjp(schedule, norms, distance)[0]


def schedule_bound_vjp(schedule: Array[F], norms: Array[F], distance: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`schedule_bound` and its pullback ``dbound -> (dschedule, dnorms, ddistance)``."""
    schedule, norms = _pair(schedule, norms, "schedule")
    rate, g, d = _wide(schedule), _wide(norms), _distance(distance)
    s, q = _suffix_sums(rate), _suffix_sums((rate * g) ** 2)
    # term_k = rate_k Q_k / (2 S_(k+1) S_k) for all but the last k.
    pair = 1 / (2 * s[1:] * s[:-1])
    terms = rate[:-1] * q[:-1] * pair
    bound = (d**2 + q[0]) / (2 * s[0]) + terms.sum()

    def pullback(dbound: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        ds, dq, direct = np.zeros_like(s), np.zeros_like(q), np.zeros_like(rate)
        direct[:-1] = q[:-1] * pair
        dq[:-1] = rate[:-1] * pair
        dq[0] += 1 / (2 * s[0])
        # Each term divides by the sums from k and from k + 1 on.
        ds[:-1] -= terms / s[:-1]
        ds[1:] -= terms / s[1:]
        ds[0] -= (d**2 + q[0]) / (2 * s[0] ** 2)
        # S_k and Q_k are suffix sums: entry t belongs to all k <= t, so their pullback is a prefix sum.
        ds, dq = np.cumsum(ds), np.cumsum(dq)
        scale, dtype = float(dbound), schedule.dtype
        dschedule = scale * (direct + ds + 2 * rate * g * g * dq)
        dnorms = scale * 2 * rate * rate * g * dq
        return dschedule.astype(dtype), dnorms.astype(dtype), np.asarray(scale * d / s[0], dtype=dtype)

    return np.asarray(bound, dtype=schedule.dtype), pullback


@dataclass(frozen=True)
class ScheduleResult:
    """Outcome of :func:`optimize_schedule`.

    Parameters
    ----------
    schedule
        Learning rates (T,).
    value
        Their :func:`schedule_bound`.
    n_iter
        Iterations.
    converged
        Whether the search met its tolerance.
    history
        ``bound`` after each iteration.
    """

    schedule: AnyArray
    value: float
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def optimize_schedule(
    norms: Array[F], distance: float, *, max_iter: int = 15_000, callback: Callback | None = None
) -> ScheduleResult:
    """Minimise :func:`schedule_bound` over the learning rates.

    Parameters
    ----------
    norms : array (T,), T >= 2
        Positive gradient 2-norms.
    distance : float > 0
    max_iter : int >= 1
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    ScheduleResult

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    L-BFGS-B with 20 corrections from the constant rate ``distance / (mean norm sqrt(T))``, over rates of at
    least 1e-8 in that unit.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (numerically optimal schedules).

    Examples
    --------
    >>> result = optimize_schedule(np.ones(20), 1.0)
    >>> result.converged, bool(result.value < schedule_bound(np.full(20, 20**-0.5), np.ones(20), 1.0))
    (True, True)
    """
    checked = _positive(norms, "norms", least=2)
    d = _distance(distance)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    monitor = Monitor("optimize_schedule", callback=callback, hint="check the norms")
    g = _wide(checked)
    # In these units norms, distance and the best rates are all of size 1.
    size = float(g.mean())
    unit = d / (size * math.sqrt(len(g)))

    def value_and_gradient(x: AnyArray) -> tuple[float, AnyArray]:
        value, pullback = schedule_bound_vjp(unit * x, g, d)
        return float(value), unit * pullback(np.array(1.0))[0]

    def record(intermediate_result: Any) -> None:
        if monitor.record(bound=float(intermediate_result.fun)):
            raise StopIteration

    found = minimize(
        value_and_gradient,
        np.ones(len(g)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(SMALLEST_RATE, None)] * len(g),
        callback=record,
        options={"maxcor": 20, "gtol": 1e-10, "ftol": 100 * np.finfo(np.float64).eps, "maxiter": max_iter},
    )
    schedule = (unit * found.x).astype(checked.dtype)
    return ScheduleResult(schedule, float(found.fun), monitor.n_iter, bool(found.success), monitor.history())


def linear_decay(n_steps: int) -> Array[np.float64]:
    """Return ``1 - t / T`` for ``t = 1, ..., T``: the refined schedule of constant norms, up to a factor.

    Parameters
    ----------
    n_steps : int >= 1

    Returns
    -------
    array (n_steps,)

    Raises
    ------
    TypeError, ValueError
        If ``n_steps`` is no integer >= 1.

    Examples
    --------
    >>> linear_decay(4)
    array([0.75, 0.5 , 0.25, 0.  ])
    """
    return np.asarray(1 - _times(n_steps) / n_steps)


def cosine_decay(n_steps: int) -> Array[np.float64]:
    """Return ``(1 + cos(pi t / T)) / 2`` for ``t = 1, ..., T``.

    Parameters, errors and shape are those of :func:`linear_decay`.

    Examples
    --------
    >>> cosine_decay(2)
    array([0.5, 0. ])
    """
    # sin^2 of the remaining angle: 1 + cos would cancel near the end.
    return np.asarray(np.sin(np.pi / 2 * (n_steps - _times(n_steps)) / n_steps) ** 2)


def inverse_power_decay(n_steps: int, *, power: float = 0.5) -> Array[np.float64]:
    """Return ``t^-power`` for ``t = 1, ..., T``; 0 is a constant rate.

    Parameters
    ----------
    n_steps
        As in :func:`linear_decay`.
    power : float >= 0

    Returns
    -------
    array (n_steps,)

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Examples
    --------
    >>> inverse_power_decay(4, power=1.0)
    array([1.        , 0.5       , 0.33333333, 0.25      ])
    """
    _checks.non_negative(power, "power")
    return np.asarray(_times(n_steps) ** -power)


def step_decay(n_steps: int) -> Array[np.float64]:
    """Return 1, a tenth of it after half of the run, a hundredth after three quarters.

    Parameters, errors and shape are those of :func:`linear_decay`.

    Examples
    --------
    >>> step_decay(4)
    array([1.  , 1.  , 0.1 , 0.01])
    """
    part = _times(n_steps) / n_steps
    return np.asarray(np.where(part > 0.75, 0.01, np.where(part > 0.5, 0.1, 1.0)))


def warmup_polynomial(n_steps: int, warmup: float, power: float) -> Array[np.float64]:
    """Return a linear warm-up followed by polynomial decay to 0.

    Parameters
    ----------
    n_steps
        As in :func:`linear_decay`.
    warmup : float in [0, 1)
        Fraction of the run until the largest rate.
    power : float > 0
        Of the decay.

    Returns
    -------
    array (n_steps,)

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    ``min(t / (warmup T), 1) (1 - max(0, t - warmup T) / (T - warmup T))^power``.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (polynomial fits).

    Examples
    --------
    >>> warmup_polynomial(4, 0.5, 1.0)
    array([0.5, 1. , 0.5, 0. ])
    """
    _checks.in_range(warmup, "warmup", 0.0, 1.0, closed="left")
    _checks.positive(power, "power")
    t, top = _times(n_steps), warmup * n_steps
    rise = np.minimum(t / top, 1) if top > 0 else np.ones(n_steps)
    return np.asarray(rise * np.clip((n_steps - np.maximum(t, top)) / (n_steps - top), 0, 1) ** power)


@dataclass(frozen=True)
class PolynomialFit:
    """Outcome of :func:`fit_polynomial`.

    Parameters
    ----------
    warmup, power
        As in :func:`warmup_polynomial`.
    error
        Root mean square of the difference, for a largest rate of 1.
    """

    warmup: float
    power: float
    error: float


def fit_polynomial(schedule: Array[F]) -> PolynomialFit:
    """Describe a schedule by the warm-up and the power of the nearest :func:`warmup_polynomial`.

    Parameters
    ----------
    schedule : array (T,), T >= 2
        Not negative, not all 0; it is divided by its largest rate.

    Returns
    -------
    PolynomialFit

    Raises
    ------
    TypeError, ValueError
        If there are fewer than two rates, or they are negative, not finite or all 0.

    Notes
    -----
    Least squares over warm-ups of 0, 0.01, ..., 0.5 and powers of 0.5, 0.6, ..., 3.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (polynomial fits).

    Examples
    --------
    >>> fit_polynomial(linear_decay(100) * 7).warmup, fit_polynomial(linear_decay(100)).power
    (0.0, 1.0)
    """
    given = _checks.float_array(schedule, "schedule", ndim=1)
    _checks.finite(given, "schedule")
    if len(given) < 2 or (given < 0).any() or not given.any():
        _checks.fail("schedule", "at least two rates >= 0, not all 0", given)
    shape = _wide(given) / given.max()
    candidates = [(u, p) for u in _WARMUPS for p in _POWERS]
    shapes = (warmup_polynomial(len(shape), u, p) for u, p in candidates)
    errors = [float(np.mean((candidate / candidate.max() - shape) ** 2)) for candidate in shapes]
    # On short runs several candidates are the same; rounding must not choose between them.
    best = int(np.argmin(np.round(errors, 14)))
    return PolynomialFit(float(candidates[best][0]), float(candidates[best][1]), math.sqrt(errors[best]))


@dataclass(frozen=True)
class ScheduledSGDState:
    """State of :class:`ScheduledSGD`.

    Parameters
    ----------
    step
        Steps taken.
    """

    step: int


@dataclass(frozen=True, eq=False)
class ScheduledSGD:
    """Gradient descent with a schedule of learning rates.

    Parameters
    ----------
    learning_rate : float > 0
        Factor of the whole schedule.
    schedule : array (T,)
        Not negative; one rate a step.

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range, and by ``step`` after the schedule's end.

    Notes
    -----
    ``param -= learning_rate schedule_t grad``.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831.

    Examples
    --------
    >>> optimizer = ScheduledSGD(2.0, linear_decay(4))
    >>> params, state = optimizer.step(np.array([1.0]), np.array([1.0]), optimizer.init(np.array([1.0])))
    >>> params
    array([-0.5])
    """

    learning_rate: float
    schedule: AnyArray

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        checked = _checks.float_array(self.schedule, "schedule", ndim=1)
        _checks.finite(checked, "schedule")
        if (checked < 0).any():
            _checks.fail("schedule", "rates >= 0", float(checked.min()))

    def init(self, params: Tree) -> ScheduledSGDState:
        """Return the state before the first step."""
        zeros_like(params)
        return ScheduledSGDState(step=0)

    def step(self, params: Tree, grads: Tree, state: ScheduledSGDState) -> tuple[Tree, ScheduledSGDState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        _within(state.step, len(self.schedule))
        rate = self.learning_rate * float(self.schedule[state.step])
        (params,) = update_leaves(lambda param, grad: (np.asarray(param - rate * grad),), params, grads, {})
        return params, ScheduledSGDState(step=state.step + 1)


@dataclass(frozen=True)
class LastIterateState:
    """State of :class:`LastIterate`.

    Parameters
    ----------
    base
        State of the base learner.
    point
        Tree like the parameters: where the base learner is.
    step
        Steps taken.
    """

    base: Any
    point: Tree
    step: int


@dataclass(frozen=True, eq=False)
class LastIterate:
    """Turn any online learner into one whose last iterate has the guarantee of its weighted average.

    Parameters
    ----------
    base : optimizer
        Gets the gradients at the iterates and moves a point of its own. Its steps should use the weights:
        ``ScheduledSGD(1.0, weights)`` gives gradient descent with :func:`schedule_from_weights`.
    weights : array (T,)
        Positive.

    Raises
    ------
    TypeError, ValueError
        If ``base`` is no optimizer or a weight is not positive, and by ``step`` after the last weight.

    Notes
    -----
    ``param_(t+1) = param_t + (w_(t+1) + ... + w_T) / (w_1 + ... + w_T) (point_(t+1) - point_t)``.

    References
    ----------
    Defazio et al. (2023), arXiv 2310.07831 (conversion of an online learner).

    Examples
    --------
    >>> weights = np.array([1.0, 2.0, 1.0])
    >>> optimizer = LastIterate(ScheduledSGD(1.0, weights), weights)
    >>> params, state = optimizer.step(np.zeros(1), np.ones(1), optimizer.init(np.zeros(1)))
    >>> params, schedule_from_weights(weights)
    (array([-0.75]), array([0.75, 0.5 , 0.  ]))
    """

    base: Optimizer[Any]
    weights: AnyArray

    def __post_init__(self) -> None:
        if not (hasattr(self.base, "init") and hasattr(self.base, "step")):
            _checks.fail_type("base", "an optimizer with init and step", type(self.base).__name__)
        _positive(self.weights, "weights")

    def init(self, params: Tree) -> LastIterateState:
        """Return the state before the first step: the base learner starts at the parameters."""
        return LastIterateState(base=self.base.init(params), point=params, step=0)

    def step(self, params: Tree, grads: Tree, state: LastIterateState) -> tuple[Tree, LastIterateState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        _within(state.step, len(self.weights))
        point, base = self.base.step(state.point, grads, state.base)
        wide = _wide(np.asarray(self.weights))
        share = float(wide[state.step + 1 :].sum() / wide.sum())
        params = tree_map(
            lambda x, new, old: None if x is None else np.asarray(x + share * (new - old)), params, point, state.point
        )
        return params, LastIterateState(base=base, point=point, step=state.step + 1)


def _within(step: int, length: int) -> None:
    if step >= length:
        _checks.fail("state.step", f"a step before the schedule's end at {length}", step)


def _times(n_steps: int) -> AnyArray:
    return np.arange(1.0, 1 + _checks.whole(n_steps, "n_steps", low=1))


def _wide(array: AnyArray) -> AnyArray:
    """As float64, or complex where complex steps check the derivatives."""
    return array.astype(np.result_type(array.dtype, np.float64))


def _suffix_sums(array: AnyArray) -> AnyArray:
    return np.asarray(np.cumsum(array[::-1])[::-1])


def _stretch(values: AnyArray, length: int) -> AnyArray:
    """Resample by linear interpolation; the ends stay."""
    if length == len(values):
        return values
    at = np.linspace(0, len(values) - 1, length)
    return np.interp(at, np.arange(len(values)), values).astype(values.dtype)


def _norms(norms: Any) -> AnyArray:
    checked = _checks.float_array(norms, "norms", ndim=1)
    if len(checked) < 2:
        _checks.fail("norms", "at least two", f"shape {checked.shape}")
    finite = checked[np.isfinite(checked)]
    if not finite.size:
        _checks.fail("norms", "at least one finite number", "none")
    if (checked < 0).any():
        _checks.fail("norms", "numbers >= 0", float(checked.min()))
    return checked


def _positive(array: Any, name: str, *, least: int = 1) -> AnyArray:
    checked = _checks.float_array(array, name, ndim=1)
    if len(checked) < least:
        _checks.fail(name, f"at least {least} number{'s' if least > 1 else ''}", f"shape {checked.shape}")
    if not np.isfinite(checked).all() or (checked.real <= 0).any():
        _checks.fail(name, "finite numbers > 0", checked)
    return checked


def _pair(rates: Any, norms: Any, name: str) -> tuple[AnyArray, AnyArray]:
    rates = _positive(rates, name)
    norms = _checks.float_array(norms, "norms")
    _checks.same_dtype(name, rates, norms=norms)
    _checks.shape(norms, "norms", rates.shape)
    if (norms.real < 0).any():
        _checks.fail("norms", "numbers >= 0", float(norms.min()))
    return rates, norms


def _distance(distance: Any) -> Any:
    value = np.asarray(distance)
    _checks.shape(value, "distance", ())
    _checks.positive(float(value.real), "distance")
    return value[()]
