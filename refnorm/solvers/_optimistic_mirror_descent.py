"""Optimistic online mirror descent: play with a guess of the next gradient, then correct.

play  = project(point - rate hint)
point = project(point - rate grad),      hint = the last gradient
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._projections import ball_projection_vjp, box_projection_vjp, simplex_projection_vjp

METHOD = Method(
    title="Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex Optimization",
    authors="Chen, Zhang, Tu, Zhao, Zhang",
    year=2023,
    arxiv="2302.04552",
    functions=(
        "BallDomain",
        "BoxDomain",
        "DynamicOMD",
        "DynamicOMDState",
        "OnlineDomain",
        "OnlineResult",
        "OptimisticOMD",
        "OptimisticOMDState",
        "SEAStatistics",
        "SimplexDomain",
        "entropic_step",
        "master_bound",
        "metric_projection",
        "optimistic_step",
        "run_online",
        "sea_statistics",
    ),
    chapter="solvers/optimistic_mirror_descent",
)

MEMBERSHIP = 1e-6
"""Distance from a domain, relative to its size, that counts as rounding; float32 plays are off by 1e-7."""

GRADIENT_SLACK = 1e-6
"""Relative excess of a gradient over its bound that counts as rounding, likewise."""

REFACTOR_EVERY = 1000
"""Rounds after which the updated inverse of the metric is computed afresh, against drift."""

SMOOTHNESS_WEIGHT = 10.0
"""``10 D^2 L^2`` under the root keeps the rate below ``1 / (3 L)``, so that steps stay small against smoothness."""

_GEOMETRIES = ("euclidean", "entropic", "newton")
_STEPS = ("adaptive", "strongly_convex", "fixed")


class OnlineDomain(Protocol):
    """A convex set of plays; all methods act on the last axis."""

    def project_vjp(self, x: AnyArray) -> tuple[AnyArray, Pullback]:
        """Return the nearest point and the pullback ``dy -> (dx,)``."""
        ...

    def project(self, x: AnyArray) -> AnyArray:
        """Return the nearest point."""
        ...

    def diameter(self, size: int) -> float:
        """Return the largest distance of two points with ``size`` entries."""
        ...

    def linear_minimum(self, grad: AnyArray) -> AnyArray:
        """Return the least value of ``<grad, u>`` over the domain."""
        ...


@dataclass(frozen=True)
class BoxDomain:
    """All points whose entries lie between two numbers.

    Parameters
    ----------
    low, high : floats, low < high

    Raises
    ------
    ValueError
        If the bounds are not finite or not in order.

    Examples
    --------
    >>> BoxDomain(-1.0, 1.0).project(np.array([0.5, 3.0]))
    array([0.5, 1. ])
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            _checks.fail("low, high", "finite bounds in order", (self.low, self.high))

    def project_vjp(self, x: AnyArray) -> tuple[AnyArray, Pullback]:
        """Return the nearest point and the pullback ``dy -> (dx,)``."""
        y, pullback = box_projection_vjp(x, self.low, self.high)
        return y, lambda dy: pullback(dy)[:1]

    def project(self, x: AnyArray) -> AnyArray:
        """Return the nearest point."""
        return self.project_vjp(x)[0]

    def diameter(self, size: int) -> float:
        """Return the largest distance of two points with ``size`` entries."""
        return (self.high - self.low) * math.sqrt(size)

    def linear_minimum(self, grad: AnyArray) -> AnyArray:
        """Return the least value of ``<grad, u>`` over the domain."""
        return np.asarray(np.minimum(self.low * grad, self.high * grad).sum(axis=-1))


@dataclass(frozen=True)
class BallDomain:
    """The Euclidean ball around 0.

    Parameters
    ----------
    radius : float > 0

    Raises
    ------
    ValueError
        If the radius is not positive.

    Examples
    --------
    >>> BallDomain(1.0).project(np.array([3.0, 4.0]))
    array([0.6, 0.8])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        _checks.positive(self.radius, "radius")

    def project_vjp(self, x: AnyArray) -> tuple[AnyArray, Pullback]:
        """Return the nearest point and the pullback ``dy -> (dx,)``."""
        y, pullback = ball_projection_vjp(x, self.radius)
        return y, lambda dy: pullback(dy)[:1]

    def project(self, x: AnyArray) -> AnyArray:
        """Return the nearest point."""
        return self.project_vjp(x)[0]

    def diameter(self, size: int) -> float:
        """Return the largest distance of two points."""
        return 2 * self.radius

    def linear_minimum(self, grad: AnyArray) -> AnyArray:
        """Return the least value of ``<grad, u>`` over the domain."""
        return np.asarray(-self.radius * np.linalg.norm(grad, axis=-1))


@dataclass(frozen=True)
class SimplexDomain:
    """All points with entries of at least 0 that sum to 1.

    Examples
    --------
    >>> SimplexDomain().project(np.array([1.0, 0.5]))
    array([0.75, 0.25])
    """

    def project_vjp(self, x: AnyArray) -> tuple[AnyArray, Pullback]:
        """Return the nearest point and the pullback ``dy -> (dx,)``."""
        return simplex_projection_vjp(x)

    def project(self, x: AnyArray) -> AnyArray:
        """Return the nearest point."""
        return self.project_vjp(x)[0]

    def diameter(self, size: int) -> float:
        """Return the largest distance of two points with ``size`` entries."""
        return math.sqrt(2) if size > 1 else 0.0

    def linear_minimum(self, grad: AnyArray) -> AnyArray:
        """Return the least value of ``<grad, u>`` over the domain."""
        return np.asarray(grad.min(axis=-1))


def optimistic_step(
    point: Array[F], hint: Array[F], learning_rate: Array[F] | float, *, domain: OnlineDomain | None = None
) -> Array[F]:
    """Return the nearest point of a domain to a gradient step.

    Parameters
    ----------
    point, hint : arrays (..., d) of one shape and dtype
        Where the step starts, and the gradient or the guess of one.
    learning_rate : number or array (...,)
    domain : OnlineDomain, optional
        The whole space by default.

    Returns
    -------
    array (..., d)

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ.

    Notes
    -----
    ``project(point - learning_rate hint)``: the minimum of ``rate <hint, x> + |x - point|^2 / 2``.

    References
    ----------
    Chen et al. (2023), arXiv 2302.04552 (optimistic OMD).

    Examples
    --------
    >>> optimistic_step(np.array([-0.5]), np.array([2.0]), 0.5, domain=BoxDomain(-1.0, 1.0))
    array([-1.])
    """
    return optimistic_step_vjp(point, hint, learning_rate, domain=domain)[0]


def optimistic_step_vjp(
    point: Array[F], hint: Array[F], learning_rate: Array[F] | float, *, domain: OnlineDomain | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`optimistic_step` and its pullback ``dstep -> (dpoint, dhint, dlearning_rate)``."""
    point, hint, rate = _step_arguments(point, hint, learning_rate)
    wide = rate[..., None] if rate.ndim else rate
    target = point - wide * hint
    step, project_back = (target, lambda dy: (dy,)) if domain is None else domain.project_vjp(target)

    def pullback(dstep: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        # Through the projection first; below it everything is bilinear.
        (dtarget,) = project_back(np.asarray(dstep, dtype=point.dtype))
        return dtarget, -wide * dtarget, -sum_to((hint * dtarget).sum(axis=-1), rate.shape)

    return np.asarray(step), pullback


def entropic_step(point: Array[F], hint: Array[F], learning_rate: Array[F] | float) -> Array[F]:
    """Return the multiplicative step on the simplex.

    Parameters
    ----------
    point : array (..., d)
        Not negative; an entry of 0 stays 0.
    hint, learning_rate
        As in :func:`optimistic_step`.

    Returns
    -------
    array (..., d)
        Sums to 1 over the last axis.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or an entry of ``point`` is negative.

    Notes
    -----
    ``point exp(-learning_rate hint)``, normalized: the minimum of ``rate <hint, x> + KL(x, point)`` over the
    simplex. Exponents are shifted by the largest logarithm of the result.

    References
    ----------
    Chen et al. (2023), arXiv 2302.04552 (optimistic OMD); the entropy as in Hedge.

    Examples
    --------
    >>> entropic_step(np.array([0.5, 0.5]), np.array([np.log(2.0), 0.0]), 1.0).round(6)
    array([0.333333, 0.666667])
    """
    return entropic_step_vjp(point, hint, learning_rate)[0]


def entropic_step_vjp(point: Array[F], hint: Array[F], learning_rate: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`entropic_step` and its pullback ``dstep -> (dpoint, dhint, dlearning_rate)``."""
    point, hint, rate = _step_arguments(point, hint, learning_rate)
    if (point < 0).any():
        _checks.fail("point", "entries >= 0", float(point.min()))
    wide = rate[..., None] if rate.ndim else rate
    with np.errstate(divide="ignore"):
        logits = np.log(point) - wide * hint
    largest = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - largest).sum(axis=-1, keepdims=True)
    step = np.exp(logits - largest) / total

    def pullback(dstep: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        # A softmax of log(point) - rate hint: its logits get step (dstep - <step, dstep>).
        centred = np.asarray(dstep, dtype=point.dtype)
        centred = centred - (step * centred).sum(axis=-1, keepdims=True)
        dlogits = step * centred
        # step / point without the quotient, which is 0 / 0 where the point is 0. It may be beyond the numbers.
        with np.errstate(over="ignore", invalid="ignore"):
            dpoint = np.where(centred == 0, 0, centred * (np.exp(-wide * hint - largest) / total))
        return dpoint.astype(point.dtype), -wide * dlogits, -sum_to((hint * dlogits).sum(axis=-1), rate.shape)

    return np.asarray(step, dtype=point.dtype), pullback


def metric_projection(
    x: Array[F], metric: Array[F], domain: OnlineDomain, *, tol: float = 1e-10, max_iter: int = 10_000
) -> Array[F]:
    """Return the nearest point of a domain in the norm of a matrix.

    Parameters
    ----------
    x : array (d,)
    metric : array (d, d)
        Symmetric and positive definite.
    domain : OnlineDomain
    tol : float > 0
        Largest residual of the fixed-point equation, relative to ``1 + |x|``.
    max_iter : int >= 1

    Returns
    -------
    array (d,)

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ, the matrix is not positive definite, or ``max_iter`` does not suffice.

    Notes
    -----
    Minimises ``<metric (y - x), y - x> / 2`` by accelerated projected gradients with restarts.

    References
    ----------
    Beck, Teboulle (2009), SIAM Journal on Imaging Sciences 2, 183-202.

    Examples
    --------
    >>> metric_projection(np.array([2.0, 0.0]), np.array([[2.0, 1.0], [1.0, 2.0]]), BoxDomain(-1.0, 1.0)).round(6)
    array([1. , 0.5])
    """
    x = _checks.float_array(x, "x", ndim=1)
    metric = _checks.float_array(metric, "metric")
    _checks.same_dtype("x", x, metric=metric)
    _checks.shape(metric, "metric", (x.size, x.size))
    _checks.positive(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    spectrum = np.linalg.eigvalsh(metric)
    if not spectrum[0] > 0:
        _checks.fail("metric", "a positive definite matrix", f"eigenvalue {spectrum[0]:.3g}")
    # float32 cannot meet the default tolerance.
    limit = max(tol, 10 * float(np.finfo(x.dtype).eps)) * (1 + float(np.linalg.norm(x)))

    def gradient_step(z: AnyArray) -> AnyArray:
        return domain.project(np.asarray(z - metric @ (z - x) / spectrum[-1], dtype=x.dtype))

    y = z = domain.project(x)
    inertia = 1.0
    for _ in range(max_iter):
        following = gradient_step(z)
        # Momentum that points uphill is dropped.
        if (z - following) @ (following - y) > 0:
            inertia = 1.0
        grown = (1 + math.sqrt(1 + 4 * inertia**2)) / 2
        z = np.asarray(following + (inertia - 1) / grown * (following - y), dtype=x.dtype)
        y, inertia = following, grown
        if float(np.linalg.norm(y - gradient_step(y))) <= limit:
            return y
    return _checks.fail("max_iter", f"enough iterations for a residual of {limit:.1e}", max_iter)


@dataclass(frozen=True)
class OptimisticOMDState:
    """State of :class:`OptimisticOMD` between two rounds.

    Parameters
    ----------
    point
        The corrected point (..., d).
    hint
        The last gradient; 0 before the first round.
    step
        Number of the next round, from 1.
    variation
        Sum of ``|gradient - hint|^2`` up to here (...,), float64.
    metric, inverse
        Of the ``"newton"`` geometry (d, d), else ``None``.
    """

    point: AnyArray
    hint: AnyArray
    step: int
    variation: AnyArray
    metric: AnyArray | None = None
    inverse: AnyArray | None = None


@dataclass(frozen=True)
class OptimisticOMD:
    """Optimistic online mirror descent.

    Parameters
    ----------
    domain : OnlineDomain
        Set of plays.
    geometry : ``"euclidean"``, ``"entropic"`` or ``"newton"``
        Projected gradient steps, multiplicative steps on the simplex, or steps in the metric of all past
        gradients, for exp-concave losses.
    step : ``"adaptive"``, ``"strongly_convex"`` or ``"fixed"``
        Rule of the learning rate, for the first two geometries; ``"entropic"`` takes ``"fixed"`` only.
    grad_bound : float > 0
        No gradient is longer; a longer one is refused.
    smoothness : float >= 0
        Of the expected losses; 0 if they are linear or it is unknown.
    learning_rate : float > 0, optional
        Of ``step="fixed"``.
    strong_convexity : float > 0, optional
        Of ``step="strongly_convex"``.
    exp_concavity : float > 0, optional
        Of ``geometry="newton"``.

    Raises
    ------
    TypeError, ValueError
        If a parameter is outside its range, missing, or does not go with another.

    Notes
    -----
    Round ``t``: play; see the gradient; correct; the hint is that gradient. Rates, with ``D`` the diameter:
    ``D / sqrt(10 D^2 smoothness^2 + 4 grad_bound^2 + variation)``, or ``2 / (strong_convexity t)``. The metric is
    ``(1 + b/2 grad_bound^2) I + b/2 sum g g^T`` with ``b = min(1 / (4 grad_bound D), exp_concavity) / 2``.
    Leading axes are runs side by side, each with its own variation (not with ``"newton"``).

    References
    ----------
    Chen et al. (2023), arXiv 2302.04552.

    Examples
    --------
    >>> learner = OptimisticOMD(BoxDomain(-1.0, 1.0), step="fixed", learning_rate=0.5, grad_bound=1.0)
    >>> state = learner.init(np.array([0.0]))
    >>> for _ in range(3):
    ...     print(learner.play(state))
    ...     state = learner.observe(state, np.array([1.0]))
    [0.]
    [-1.]
    [-1.]
    """

    domain: OnlineDomain
    geometry: str = "euclidean"
    step: str = "adaptive"
    grad_bound: float = 1.0
    smoothness: float = 0.0
    learning_rate: float | None = None
    strong_convexity: float | None = None
    exp_concavity: float | None = None

    def __post_init__(self) -> None:
        _checks.one_of(self.geometry, "geometry", _GEOMETRIES)
        _checks.one_of(self.step, "step", _STEPS)
        _checks.positive(self.grad_bound, "grad_bound")
        _checks.non_negative(self.smoothness, "smoothness")
        if self.geometry == "entropic":
            _checks.one_of(self.step, "step", ("fixed",))
            if not isinstance(self.domain, SimplexDomain):
                _checks.fail_type("domain", "a SimplexDomain for entropic steps", type(self.domain).__name__)
        needed = "exp_concavity" if self.geometry == "newton" else _PARAMETER[self.step]
        if needed is not None:
            value = getattr(self, needed)
            _checks.positive(math.nan if value is None else value, needed)

    def init(self, x1: Array[F]) -> OptimisticOMDState:
        """Return the state before the first round, which plays ``x1`` (..., d)."""
        point = _checks.float_array(x1, "x1", ndim=1 if self.geometry == "newton" else None, min_ndim=1)
        _check_inside(point, "x1", self.domain)
        metric = inverse = None
        if self.geometry == "newton":
            scale = 1 + self._curvature(point.size) / 2 * self.grad_bound**2
            metric, inverse = np.eye(point.size) * scale, np.eye(point.size) / scale
        return OptimisticOMDState(point, np.zeros_like(point), 1, np.zeros(point.shape[:-1]), metric, inverse)

    def play(self, state: OptimisticOMDState) -> AnyArray:
        """Return this round's play: a step from the corrected point along the hint."""
        return self._step(state, state.hint)

    def observe(self, state: OptimisticOMDState, grad: Array[F]) -> OptimisticOMDState:
        """Return the state after the gradient at the play is seen."""
        grad = _gradient(grad, state.point, self.grad_bound)
        surprise = (grad.astype(np.float64) - state.hint) ** 2
        after = dataclasses.replace(
            state,
            point=self._step(state, grad),
            hint=grad,
            step=state.step + 1,
            variation=state.variation + surprise.sum(axis=-1),
        )
        return after if state.metric is None else self._turned(after, grad)

    def _step(self, state: OptimisticOMDState, direction: AnyArray) -> AnyArray:
        if self.geometry == "newton":
            assert state.metric is not None
            assert state.inverse is not None
            target = state.point - state.inverse @ direction
            dtype = state.point.dtype
            return metric_projection(target, state.metric, self.domain).astype(dtype)
        if self.geometry == "entropic":
            return entropic_step(state.point, direction, self._rate(state))
        return optimistic_step(state.point, direction, self._rate(state), domain=self.domain)

    def _rate(self, state: OptimisticOMDState) -> AnyArray:
        if self.step == "fixed":
            return np.asarray(self.learning_rate)
        if self.step == "strongly_convex":
            assert self.strong_convexity is not None
            return np.asarray(2 / (self.strong_convexity * state.step))
        diameter = self.domain.diameter(state.point.shape[-1])
        floor = SMOOTHNESS_WEIGHT * (diameter * self.smoothness) ** 2 + 4 * self.grad_bound**2
        return np.asarray(diameter / np.sqrt(floor + state.variation))

    def _curvature(self, size: int) -> float:
        assert self.exp_concavity is not None
        return 0.5 * min(1 / (4 * self.grad_bound * self.domain.diameter(size)), self.exp_concavity)

    def _turned(self, state: OptimisticOMDState, grad: AnyArray) -> OptimisticOMDState:
        assert state.metric is not None
        assert state.inverse is not None
        weight, g = self._curvature(grad.size) / 2, grad.astype(np.float64)
        metric = state.metric + weight * np.outer(g, g)
        if state.step % REFACTOR_EVERY == 0:
            inverse = np.linalg.inv(metric)
        else:
            # Sherman, Morrison: a rank-one change of the metric is one of the inverse.
            turned = state.inverse @ g
            inverse = state.inverse - weight * np.outer(turned, turned) / (1 + weight * (g @ turned))
        return dataclasses.replace(state, metric=metric, inverse=inverse)


_PARAMETER = {"adaptive": None, "fixed": "learning_rate", "strongly_convex": "strong_convexity"}


@dataclass(frozen=True)
class DynamicOMDState:
    """State of :class:`DynamicOMD` between two rounds.

    Parameters
    ----------
    points
        One corrected point a base learner (N, d).
    hint
        The last gradient (d,).
    losses
        Sum of the linearised losses of each base learner (N,), float64.
    variation
        Sum of ``|gradient - hint|^2``.
    """

    points: AnyArray
    hint: AnyArray
    losses: AnyArray
    variation: float


@dataclass(frozen=True)
class DynamicOMD:
    """Optimistic mirror descent against a moving comparator: a set of fixed rates, weighted by how they do.

    Parameters
    ----------
    domain : OnlineDomain
    n_steps : int >= 1
        Number of rounds to come; the smallest rate is chosen for it.
    grad_bound, smoothness
        As in :class:`OptimisticOMD`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is outside its range.

    Notes
    -----
    ``N = ceil(log2(1 + n_steps) / 2) + 1`` base learners with the rates ``top 2^-i``,
    ``top = D / sqrt(10 D^2 smoothness^2 + 4 grad_bound^2)``. Their weights are those of optimistic Hedge, a softmax of
    ``-sharpness (losses + <hint, plays>)``, with
    ``sharpness = sqrt(log N / (D^2 (4 grad_bound^2 + variation)))``; the play is their weighted mean.

    References
    ----------
    Chen et al. (2023), arXiv 2302.04552 (dynamic regret).

    Examples
    --------
    >>> learner = DynamicOMD(BoxDomain(-1.0, 1.0), n_steps=100)
    >>> state = learner.init(np.array([0.0]))
    >>> for _ in range(30):
    ...     state = learner.observe(state, np.array([1.0]))
    >>> bool(learner.play(state)[0] < -0.9)
    True
    """

    domain: OnlineDomain
    n_steps: int
    grad_bound: float = 1.0
    smoothness: float = 0.0

    def __post_init__(self) -> None:
        _checks.whole(self.n_steps, "n_steps", low=1)
        _checks.positive(self.grad_bound, "grad_bound")
        _checks.non_negative(self.smoothness, "smoothness")

    def rates(self, size: int) -> Array[np.float64]:
        """Return the base learners' rates for plays of ``size`` entries."""
        diameter = self.domain.diameter(size)
        top = diameter / math.sqrt(SMOOTHNESS_WEIGHT * (diameter * self.smoothness) ** 2 + 4 * self.grad_bound**2)
        count = math.ceil(0.5 * math.log2(1 + self.n_steps)) + 1
        return np.asarray(top * 0.5 ** np.arange(count))

    def init(self, x1: Array[F]) -> DynamicOMDState:
        """Return the state before the first round, which plays ``x1`` (d,)."""
        point = _checks.float_array(x1, "x1", ndim=1)
        _check_inside(point, "x1", self.domain)
        count = len(self.rates(point.size))
        return DynamicOMDState(np.tile(point, (count, 1)), np.zeros_like(point), np.zeros(count), 0.0)

    def base_plays(self, state: DynamicOMDState) -> AnyArray:
        """Return the plays (N, d) of all base learners."""
        return self._steps(state, state.hint)

    def play(self, state: DynamicOMDState) -> AnyArray:
        """Return this round's play."""
        plays = self.base_plays(state)
        diameter = self.domain.diameter(plays.shape[1])
        scale = diameter**2 * (4 * self.grad_bound**2 + state.variation)
        scores = -math.sqrt(math.log(len(plays)) / scale) * (state.losses + plays @ state.hint)
        weights = np.exp(scores - scores.max())
        return np.asarray((weights / weights.sum()) @ plays, dtype=plays.dtype)

    def observe(self, state: DynamicOMDState, grad: Array[F]) -> DynamicOMDState:
        """Return the state after the gradient at the play is seen."""
        grad = _gradient(grad, state.hint, self.grad_bound)
        surprise = float(np.sum((grad.astype(np.float64) - state.hint) ** 2))
        losses = state.losses + self.base_plays(state) @ grad
        return DynamicOMDState(self._steps(state, grad), grad, losses, state.variation + surprise)

    def _steps(self, state: DynamicOMDState, direction: AnyArray) -> AnyArray:
        rates = self.rates(state.points.shape[1]).astype(state.points.dtype)
        everywhere = np.broadcast_to(direction, state.points.shape)
        return optimistic_step(state.points, everywhere, rates, domain=self.domain)


@dataclass(frozen=True)
class OnlineResult:
    """Outcome of :func:`run_online`.

    Parameters
    ----------
    x
        The last play.
    plays, gradients, hints
        Of every round (T, ..., d).
    regret
        Linearised regret after each round (T, ...), against the best fixed point for the rounds up to there.
    n_iter
        Rounds.
    """

    x: AnyArray
    plays: AnyArray
    gradients: AnyArray
    hints: AnyArray
    regret: Array[np.float64]
    n_iter: int


def run_online(
    learner: OptimisticOMD | DynamicOMD,
    gradient: Callable[[int, AnyArray, np.random.Generator], AnyArray],
    x1: Array[F],
    n_steps: int,
    *,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> OnlineResult:
    """Let a learner play against gradients.

    Parameters
    ----------
    learner : OptimisticOMD or DynamicOMD
    gradient : callable
        ``gradient(t, x, rng)`` returns the gradient of round ``t = 1, 2, ...`` at the play ``x``.
    x1 : array (..., d)
        First play.
    n_steps : int >= 1
        Rounds.
    rng : numpy.random.Generator
        Handed to ``gradient``.
    callback
        Told the length of the gradients after every round, see :class:`refnorm.solvers.Progress`.

    Returns
    -------
    OnlineResult

    Raises
    ------
    TypeError, ValueError
        If a gradient has another shape or is longer than the learner's bound, or a number is outside its range.

    Notes
    -----
    ``sum <g_s, x_s> - min_u <sum g_s, u>``. For convex losses it is an upper bound of the regret.

    References
    ----------
    Chen et al. (2023), arXiv 2302.04552.

    Examples
    --------
    >>> learner = OptimisticOMD(BoxDomain(-1.0, 1.0), step="fixed", learning_rate=0.5)
    >>> result = run_online(learner, lambda t, x, rng: np.ones(1), np.zeros(1), 3, rng=np.random.default_rng(0))
    >>> result.regret
    array([1., 1., 1.])
    """
    n_steps = _checks.whole(n_steps, "n_steps", low=1)
    rng = _checks.generator(rng)
    state: Any = learner.init(x1)
    monitor = Monitor("run_online", callback=callback, hint="check the gradients")
    plays, gradients, hints = [], [], []
    for t in range(1, n_steps + 1):
        hints.append(state.hint)
        plays.append(learner.play(state))
        gradients.append(np.asarray(gradient(t, plays[-1], rng)))
        state = learner.observe(state, gradients[-1])
        if monitor.record(gradient_norm=float(np.linalg.norm(gradients[-1]))):
            break
    all_plays, all_gradients = np.stack(plays), np.stack(gradients)
    wide = all_gradients.astype(np.float64)
    paid = np.cumsum((wide * all_plays).sum(axis=-1), axis=0)
    regret = paid - learner.domain.linear_minimum(np.cumsum(wide, axis=0))
    return OnlineResult(plays[-1], all_plays, all_gradients, np.stack(hints), regret, monitor.n_iter)


def master_bound(
    plays: Array[F],
    gradients: Array[F],
    hints: Array[F],
    comparator: Array[F],
    *,
    learning_rate: float,
    geometry: str = "euclidean",
) -> Array[np.float64]:
    """Return the regret bound of optimistic mirror descent with a fixed rate, for any sequence whatever.

    Parameters
    ----------
    plays, gradients, hints : arrays (T, ..., d)
        As in :class:`OnlineResult`; the first hint is 0.
    comparator : array (..., d)
        A point of the domain.
    learning_rate : float > 0
    geometry : ``"euclidean"`` or ``"entropic"``

    Returns
    -------
    array (...,)
        At least ``sum <g_t, x_t - u>``.

    Raises
    ------
    TypeError, ValueError
        If shapes differ or a number is outside its range.

    Notes
    -----
    ``B(u, x_1) / rate + rate sum |g_t - m_t|_*^2 - sum |x_t - x_(t-1)|^2 / (4 rate)``. The divergence and the norms
    are half the squared distance and 2-norms; or the Kullback-Leibler divergence, the 1-norm and, dual, the
    largest entry.

    References
    ----------
    Chen et al. (2023), arXiv 2302.04552; the constants are derived in the chapter.

    Examples
    --------
    >>> x, g = np.array([[0.0], [-1.0], [-1.0]]), np.ones((3, 1))
    >>> float(master_bound(x, g, np.array([[0.0], [1.0], [1.0]]), np.array([-1.0]), learning_rate=0.5))
    1.0
    """
    x = _checks.float_array(plays, "plays", min_ndim=2)
    g, m = _checks.float_array(gradients, "gradients"), _checks.float_array(hints, "hints")
    u = _checks.float_array(comparator, "comparator")
    _checks.not_empty(x, "plays", (0,))
    _checks.shape(g, "gradients", x.shape)
    _checks.shape(m, "hints", x.shape)
    _checks.shape(u, "comparator", x.shape[1:])
    _checks.positive(learning_rate, "learning_rate")
    _checks.one_of(geometry, "geometry", _GEOMETRIES[:2])
    x, surprise = x.astype(np.float64), np.abs(g.astype(np.float64) - m)
    moved = np.abs(np.diff(x, axis=0))
    if geometry == "entropic":
        start = np.where(u > 0, u * np.log(np.where(u > 0, u, 1) / x[0]), 0).sum(axis=-1)
        surprises, moves = surprise.max(axis=-1) ** 2, moved.sum(axis=-1) ** 2
    else:
        start = 0.5 * ((u - x[0]) ** 2).sum(axis=-1)
        surprises, moves = (surprise**2).sum(axis=-1), (moved**2).sum(axis=-1)
    stability = moves.sum(axis=0) / (4 * learning_rate)
    return np.asarray(start / learning_rate + learning_rate * surprises.sum(axis=0) - stability)


@dataclass(frozen=True)
class SEAStatistics:
    """How noisy and how variable a sequence of losses is; see :func:`sea_statistics`.

    Parameters
    ----------
    noise
        Sum over the rounds of the gradients' variance.
    drift
        Sum of the squared changes of the expected gradient.
    largest_noise, largest_drift
        The largest term of each.
    """

    noise: float
    drift: float
    largest_noise: float
    largest_drift: float


def sea_statistics(noise: Array[F], means: Array[F]) -> SEAStatistics:
    """Measure the two quantities in the regret bounds of the stochastically extended adversary.

    Parameters
    ----------
    noise : array (T, samples, d)
        Draws of the gradients' deviation from their expectation in each round.
    means : array (T, d)
        Expected gradients at one point; for losses that differ by linear terms, any.

    Returns
    -------
    SEAStatistics

    Raises
    ------
    TypeError, ValueError
        If shapes differ.

    References
    ----------
    Sachs et al. (2022), Advances in Neural Information Processing Systems 35 (the model).

    Examples
    --------
    >>> sea_statistics(np.array([[[1.0], [-1.0]], [[0.0], [0.0]]]), np.array([[0.0], [2.0]]))
    SEAStatistics(noise=1.0, drift=4.0, largest_noise=1.0, largest_drift=4.0)
    """
    noise = _checks.float_array(noise, "noise", ndim=3)
    means = _checks.float_array(means, "means")
    _checks.not_empty(noise, "noise", (0, 1))
    _checks.shape(means, "means", (len(noise), noise.shape[2]))
    variances = (noise.astype(np.float64) ** 2).sum(axis=2).mean(axis=1)
    changes = (np.diff(means.astype(np.float64), axis=0) ** 2).sum(axis=1)
    return SEAStatistics(
        float(variances.sum()), float(changes.sum()), float(variances.max()), float(changes.max(initial=0.0))
    )


def _step_arguments(point: Any, hint: Any, learning_rate: Any) -> tuple[AnyArray, AnyArray, AnyArray]:
    point = _checks.float_array(point, "point", min_ndim=1)
    hint = _checks.float_array(hint, "hint")
    _checks.same_dtype("point", point, hint=hint)
    _checks.shape(hint, "hint", point.shape)
    rate = np.asarray(learning_rate).astype(point.dtype)
    if rate.ndim:
        _checks.shape(rate, "learning_rate", point.shape[:-1])
    return point, hint, rate


def _check_inside(x: AnyArray, name: str, domain: OnlineDomain) -> None:
    distance = float(np.abs(domain.project(x) - x).max(initial=0.0))
    if not distance <= MEMBERSHIP * (1 + domain.diameter(x.shape[-1])):
        _checks.fail(name, "a point of the domain", f"one at distance {distance:.3g}")


def _gradient(grad: Any, like: AnyArray, bound: float) -> AnyArray:
    checked = _checks.float_array(grad, "grad")
    _checks.same_dtype("x1", like, grad=checked)
    _checks.shape(checked, "grad", like.shape)
    longest = float(np.sqrt((checked.astype(np.float64) ** 2).sum(axis=-1)).max(initial=0.0))
    if not longest <= bound * (1 + GRADIENT_SLACK):
        _checks.fail("grad", f"a norm of at most grad_bound = {bound:g}", f"{longest:.6g}")
    return checked
