"""Lion-K: sign momentum with any convex function in the place of the 1-norm, and its Lyapunov function.

blend    = beta1 momentum - (1 - beta1) grad
param    = param + learning_rate (gradient of kappa at blend - weight_decay param)
momentum = beta2 momentum - (1 - beta2) grad
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._protocol import check_betas, update_leaves, zeros_like

METHOD = Method(
    title="Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts",
    authors="Chen, Liu, Liang, Liu",
    year=2024,
    arxiv="2310.05898",
    functions=(
        "Kappa",
        "LionK",
        "LionKState",
        "LionODEResult",
        "integrate_lion_ode",
        "lion_kappa_update",
        "lyapunov",
        "lyapunov_rate",
        "make_kappa",
    ),
    chapter="solvers/lion_kappa",
)

DOMAIN_SLACK = 1e-12
"""Distance from the domain that counts as rounding: a coordinate held at its bound is off by a few ULP."""

_DECAYS = ("explicit", "implicit")
_SCHEMES = ("rk4", "euler")


@dataclass(frozen=True)
class Kappa:
    """A convex function of an array, with all that Lion-K and its Lyapunov function ask of it.

    Made by :func:`make_kappa`. All functions take float arrays of any shape.

    Parameters
    ----------
    name
        As given to :func:`make_kappa`.
    value
        ``z -> number``.
    gradient
        ``z -> array like z``, a subgradient at kinks.
    hessian_product
        ``(z, v) -> array``: the second derivative at ``z`` times ``v``, 0 at kinks.
    conjugate
        ``y -> number``: ``max_z <y, z> - value(z)``, infinite outside the domain.
    conjugate_gradient
        ``y -> array``: the shortest subgradient of the conjugate.
    distance_to_domain
        ``y -> number``: Euclidean distance to the points where the conjugate is finite.
    """

    name: str
    value: Callable[[AnyArray], float]
    gradient: Callable[[AnyArray], AnyArray]
    hessian_product: Callable[[AnyArray, AnyArray], AnyArray]
    conjugate: Callable[[AnyArray], float]
    conjugate_gradient: Callable[[AnyArray], AnyArray]
    distance_to_domain: Callable[[AnyArray], float]
    # What make_kappa was given, which tells a kernel all it needs; None for a function from elsewhere.
    _options: Mapping[str, float] | None = field(default=None, init=False, repr=False, compare=False)

    def in_domain(self, y: AnyArray) -> bool:
        """Return whether the conjugate is finite at ``y``, but for rounding."""
        return self.distance_to_domain(y) <= DOMAIN_SLACK


def make_kappa(
    name: str, *, power: float = 1.5, axis: int = -1, width: float = 1.0, threshold: float = 0.1, k: int = 1
) -> Kappa:
    """Return a convex function from the catalogue.

    Parameters
    ----------
    name : str
        ``"l1"`` (Lion), ``"l2"``, ``"sq"``, ``"lp"``, ``"group"``, ``"huber"``, ``"softl1"``, ``"relu"``,
        ``"topk"``; see Notes.
    power : float > 1
        Of ``"lp"``.
    axis : int
        Of ``"group"``: each slice along it is a group.
    width : float > 0
        Of ``"huber"``: half the width of its parabola.
    threshold : float >= 0
        Of ``"softl1"``.
    k : int >= 1
        Of ``"topk"``; at most the size of the array.

    Returns
    -------
    Kappa

    Raises
    ------
    TypeError, ValueError
        If the name is unknown or a parameter is outside its range.

    Notes
    -----
    ======== =============================================== ======================================
    name     value                                           domain of the conjugate
    ======== =============================================== ======================================
    l1       ``sum |z|``                                     ``max |y| <= 1``
    l2       ``|z|_2``                                       ``|y|_2 <= 1``
    sq       ``|z|_2^2 / 2``                                 everything
    lp       ``sum |z|^power / power``                       everything
    group    sum of the groups' 2-norms                      every group's norm at most 1
    huber    ``z^2 / (2 width)``, ``|z| - width / 2``        ``max |y| <= 1``
    softl1   ``sum max(|z| - threshold, 0)``                 ``max |y| <= 1``
    relu     ``sum max(z, 0)``                               ``0 <= y <= 1``
    topk     sum of the k largest ``|z|``                    ``max |y| <= 1``, ``sum |y| <= k``
    ======== =============================================== ======================================

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (examples of kappa).

    Examples
    --------
    >>> kappa = make_kappa("huber", width=2.0)
    >>> kappa.gradient(np.array([-5.0, 1.0, 0.0])), kappa.value(np.array([-5.0, 1.0, 0.0]))
    (array([-1. ,  0.5,  0. ]), 4.25)
    >>> kappa.conjugate(np.array([2.0, 0.0, 0.0]))
    inf
    """
    _checks.one_of(name, "name", tuple(_CATALOGUE))
    _checks.in_range(power, "power", 1.0, math.inf, closed="neither")
    _checks.positive(width, "width")
    _checks.non_negative(threshold, "threshold")
    _checks.whole(k, "k", low=1)
    _checks.whole(axis, "axis")
    options: dict[str, Any] = {"power": power, "axis": axis, "width": width, "threshold": threshold, "k": k}
    kappa = _CATALOGUE[name](**options)
    object.__setattr__(kappa, "_options", options)
    return kappa


def lion_kappa_update(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 1.0,
    kappa: str | Kappa = "l1",
    decay: str = "explicit",
) -> tuple[Array[F], Array[F]]:
    """Take one Lion-K step on one array.

    Parameters
    ----------
    param, grad, momentum : arrays of one shape and dtype
        Parameter, its gradient, and the running average of *negative* gradients (0 before the first step).
    learning_rate : float > 0
    beta1, beta2 : floats in [0, 1)
        Weight of the momentum in the blend, and in the momentum of the next step.
    weight_decay : float >= 0
        ``"explicit"`` decay needs ``learning_rate * weight_decay < 2``.
    kappa : Kappa or its name
        See :func:`make_kappa`.
    decay : ``"explicit"`` or ``"implicit"``
        ``param + rate (step - decay param)``, as in Lion, or ``(param + rate step) / (1 + rate decay)``.

    Returns
    -------
    param, momentum : arrays of the same shape and dtype

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ, a number is outside its range or a name is unknown.

    Notes
    -----
    NaN stays in its coordinate where kappa is a sum over coordinates, and spreads where it is not.

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (Lion-K).

    Examples
    --------
    >>> lion_kappa_update(np.array([1.0]), np.array([2.0]), np.array([0.0]), learning_rate=0.1)
    (array([0.8]), array([-0.02]))
    """
    return lion_kappa_update_vjp(
        param,
        grad,
        momentum,
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        kappa=kappa,
        decay=decay,
    )[0]


def lion_kappa_update_vjp(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 1.0,
    kappa: str | Kappa = "l1",
    decay: str = "explicit",
) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`lion_kappa_update` and its pullback ``(dparam, dmomentum) -> (dparam, dgrad, dmomentum)``.

    For unrolled training loops. At kinks of kappa no gradient passes through its step.
    """
    param, grad, momentum = _same_arrays(param, grad, momentum)
    chosen = _check_step(learning_rate, (beta1, beta2), weight_decay, kappa, decay)
    blend = beta1 * momentum - (1 - beta1) * grad
    step = chosen.gradient(blend)
    shrink = 1 - learning_rate * weight_decay
    if decay == "implicit":
        # param' = param + rate (step - decay param'), solved for param'.
        shrink = 1 / (1 + learning_rate * weight_decay)
        learning_rate = learning_rate * shrink
    after: AnyArray = np.asarray(shrink * param + learning_rate * step)
    momentum_after: AnyArray = np.asarray(beta2 * momentum - (1 - beta2) * grad)

    def pullback(cotangent: tuple[AnyArray, AnyArray]) -> tuple[AnyArray, AnyArray, AnyArray]:
        dafter, dmomentum_after = (np.asarray(entry, dtype=param.dtype) for entry in cotangent)
        # The Hessian of kappa is symmetric: it maps cotangents of its gradient to cotangents of the blend.
        dblend = learning_rate * chosen.hessian_product(blend, dafter)
        return (
            np.asarray(shrink * dafter),
            np.asarray(-(1 - beta1) * dblend - (1 - beta2) * dmomentum_after),
            np.asarray(beta1 * dblend + beta2 * dmomentum_after),
        )

    return (after, momentum_after), pullback


@dataclass(frozen=True)
class LionKState:
    """State of :class:`LionK`.

    Parameters
    ----------
    momentum
        Tree like the parameters: running average of the negative gradients.
    """

    momentum: Tree


@dataclass(frozen=True)
class LionK:
    """The Lion-K optimizer.

    Parameters
    ----------
    learning_rate : float > 0
    betas : two floats in [0, 1)
        Weight of the momentum in the blend, and in the momentum of the next step.
    weight_decay : float >= 0
        The bound on the parameters is its inverse, for functions with a bounded domain.
    kappa : Kappa or its name
        See :func:`make_kappa`; applied to every array of the parameters by itself.
    decay : ``"explicit"`` or ``"implicit"``
        See :func:`lion_kappa_update`.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    It minimises ``f(x) + kappa*(weight_decay x) / weight_decay``. With ``kappa="l1"`` it is
    :class:`refnorm.solvers.Lion`, and the second term the constraint ``max |x| <= 1 / weight_decay``.

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (Lion-K).

    Examples
    --------
    The minimum of ``(x - 3)^2 / 2`` with ``|x| <= 1``:

    >>> optimizer = LionK(learning_rate=0.01)
    >>> x = np.array([0.0])
    >>> state = optimizer.init(x)
    >>> for _ in range(2000):
    ...     x, state = optimizer.step(x, x - 3, state)
    >>> x.round(6)
    array([1.])
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1.0
    kappa: str | Kappa = "l1"
    decay: str = "explicit"

    def __post_init__(self) -> None:
        _check_step(self.learning_rate, self.betas, self.weight_decay, self.kappa, self.decay)

    def init(self, params: Tree) -> LionKState:
        """Return the state before the first step: no momentum."""
        return LionKState(momentum=zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: LionKState) -> tuple[Tree, LionKState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""

        def update(param: AnyArray, grad: AnyArray, momentum: AnyArray) -> tuple[AnyArray, ...]:
            return lion_kappa_update(
                param,
                grad,
                momentum,
                learning_rate=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=self.weight_decay,
                kappa=self.kappa,
                decay=self.decay,
            )

        params, momentum = update_leaves(update, params, grads, {"state.momentum": state.momentum})
        return params, LionKState(momentum=momentum)


def lyapunov(
    x: Array[F],
    momentum: Array[F],
    loss: float,
    kappa: str | Kappa,
    *,
    gradient_rate: float = 1.0,
    momentum_rate: float = 1.0,
    weight_decay: float = 1.0,
    lookahead: float = 0.0,
) -> float:
    """Return the Lyapunov function of Lion-K in continuous time.

    Parameters
    ----------
    x, momentum : arrays of one shape and dtype
    loss : float
        Value of the minimised function at ``x``.
    kappa : Kappa or its name
    gradient_rate, momentum_rate, weight_decay : floats > 0
        The constants of :func:`integrate_lion_ode`.
    lookahead : float in [0, 1 / momentum_rate]

    Returns
    -------
    float
        Infinite where ``weight_decay x`` is outside the domain of kappa's conjugate.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    Notes
    -----
    ``gradient_rate f + (momentum_rate / decay) kappa* + c (kappa* + kappa(m) - decay <m, x>)`` with the
    conjugate ``kappa*`` at ``decay x`` and
    ``c = (1 - lookahead momentum_rate) / (1 + lookahead decay)``. The bracket is Fenchel's gap, never negative.

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (the Lyapunov function).

    Examples
    --------
    >>> lyapunov(np.array([0.5]), np.array([0.25]), 2.0, "l1")
    2.125
    """
    x, momentum, chosen = _state(x, momentum, kappa)
    _check_constants(gradient_rate, momentum_rate, weight_decay, lookahead)
    factor = (1 - lookahead * momentum_rate) / (1 + lookahead * weight_decay)
    conjugate = chosen.conjugate(weight_decay * x)
    if math.isinf(conjugate):
        return math.inf
    gap = conjugate + chosen.value(momentum) - weight_decay * float(np.sum(momentum * x))
    return float(gradient_rate * loss + momentum_rate / weight_decay * conjugate + factor * gap)


def lyapunov_rate(
    x: Array[F],
    momentum: Array[F],
    grad: Array[F],
    kappa: str | Kappa,
    *,
    gradient_rate: float = 1.0,
    momentum_rate: float = 1.0,
    weight_decay: float = 1.0,
    lookahead: float = 0.0,
) -> float:
    """Return the time derivative of :func:`lyapunov` along the equations of Lion-K.

    Parameters
    ----------
    x, momentum, grad : arrays of one shape and dtype
        ``grad`` is the gradient of the minimised function at ``x``.
    kappa, gradient_rate, momentum_rate, weight_decay, lookahead
        As in :func:`lyapunov`.

    Returns
    -------
    float <= 0, but for rounding

    Raises
    ------
    TypeError, ValueError
        As in :func:`lyapunov`.

    Notes
    -----
    The negative of two terms, each a product of differences of a monotone map and its argument. Inside the
    domain of the conjugate.

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (the Lyapunov function).

    Examples
    --------
    >>> lyapunov_rate(np.array([0.5]), np.array([0.25]), np.array([1.0]), "l1")
    -0.25
    """
    x, momentum, chosen = _state(x, momentum, kappa)
    grad = _like(grad, "grad", x)
    _check_constants(gradient_rate, momentum_rate, weight_decay, lookahead)
    factor = (1 - lookahead * momentum_rate) / (1 + lookahead * weight_decay)
    # blend = m + lookahead dm/dt
    pull = gradient_rate * grad + momentum_rate * momentum
    blend = momentum - lookahead * pull
    step = chosen.gradient(blend)
    k = chosen.conjugate_gradient(weight_decay * x)
    # weight_decay x is a subgradient at k, and step one at blend: by monotony the product is not negative.
    primal = float(np.sum((blend - k) * (step - weight_decay * x)))
    dual = float(np.sum(pull * (chosen.gradient(momentum) - step)))
    return -(momentum_rate + weight_decay) / (1 + lookahead * weight_decay) * primal - factor * dual


@dataclass(frozen=True)
class LionODEResult:
    """Outcome of :func:`integrate_lion_ode`.

    Parameters
    ----------
    x, momentum
        Paths (n_iter + 1, d), the start included.
    time
        (n_iter + 1,).
    n_iter
        Steps made.
    converged
        Whether the speed fell to ``tol``.
    history
        ``speed``, the norm of the right-hand side, after each step.
    """

    x: AnyArray
    momentum: AnyArray
    time: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def integrate_lion_ode(
    gradient: Callable[[AnyArray], AnyArray],
    x0: Array[F],
    kappa: str | Kappa,
    *,
    momentum0: Array[F] | None = None,
    gradient_rate: float = 1.0,
    momentum_rate: float = 1.0,
    weight_decay: float = 1.0,
    lookahead: float = 0.0,
    step_size: float = 1e-2,
    max_iter: int = 1000,
    scheme: str = "rk4",
    tol: float = 0.0,
    callback: Callback | None = None,
) -> LionODEResult:
    """Follow Lion-K in continuous time.

    Parameters
    ----------
    gradient : callable
        ``gradient(x)`` returns the gradient (d,) of the minimised function.
    x0 : array (d,)
    kappa : Kappa or its name
    momentum0 : array (d,), optional
        0 by default.
    gradient_rate, momentum_rate, weight_decay : floats > 0
    lookahead : float in [0, 1 / momentum_rate]
    step_size : float > 0
        Time step.
    max_iter : int >= 1
        Number of steps.
    scheme : ``"rk4"`` or ``"euler"``
    tol : float >= 0
        The run ends when the speed is at most this.
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    LionODEResult

    Raises
    ------
    TypeError, ValueError
        If a shape differs or a number is outside its range.
    Diverged
        If the speed grows without bound.

    Notes
    -----
    ``dm/dt = -gradient_rate grad - momentum_rate m`` and
    ``dx/dt = kappa'(m + lookahead dm/dt) - weight_decay x``. An Euler step of length ``h`` with equal rates is
    :func:`lion_kappa_update` with ``1 - beta2 = h momentum_rate``, ``1 - beta1 = lookahead momentum_rate``.

    References
    ----------
    Chen et al. (2024), arXiv 2310.05898 (the Lion-K ODE).

    Examples
    --------
    >>> result = integrate_lion_ode(lambda x: x - 3.0, np.zeros(1), "sq", max_iter=2000)
    >>> result.x[-1].round(6)
    array([1.5])
    """
    x = _checks.float_array(x0, "x0", ndim=1)
    x, momentum, chosen = _state(x, np.zeros_like(x) if momentum0 is None else momentum0, kappa)
    _check_constants(gradient_rate, momentum_rate, weight_decay, lookahead)
    _checks.positive(step_size, "step_size")
    _checks.one_of(scheme, "scheme", _SCHEMES)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")

    def field(state: AnyArray) -> AnyArray:
        grad = np.asarray(gradient(state[0]))
        _checks.shape(grad, "gradient", x.shape)
        pull = gradient_rate * grad + momentum_rate * state[1]
        return np.stack([chosen.gradient(state[1] - lookahead * pull) - weight_decay * state[0], -pull])

    monitor = Monitor("integrate_lion_ode", callback=callback, hint="use a smaller step_size")
    path, converged = [np.stack([x, momentum])], False
    while not converged and monitor.n_iter < max_iter:
        path.append(_advance(field, path[-1], step_size, scheme))
        speed = float(np.linalg.norm(field(path[-1])))
        converged = speed <= tol
        if monitor.record(speed=speed):
            break
    states = np.asarray(path, dtype=x.dtype)
    time = np.arange(len(path)) * step_size
    return LionODEResult(states[:, 0], states[:, 1], time, monitor.n_iter, converged, monitor.history())


def _advance(field: Callable[[AnyArray], AnyArray], state: AnyArray, h: float, scheme: str) -> AnyArray:
    first = field(state)
    if scheme == "euler":
        return np.asarray(state + h * first)
    second = field(state + h / 2 * first)
    third = field(state + h / 2 * second)
    fourth = field(state + h * third)
    return np.asarray(state + h / 6 * (first + 2 * second + 2 * third + fourth))


# --- the catalogue ------------------------------------------------------------------------------------------


def _zeros(*arrays: AnyArray) -> AnyArray:
    return np.zeros_like(arrays[0])


def _number(value: Any) -> float:
    return float(value)


def _indicator(distance: float, value: float = 0.0) -> float:
    return value if distance <= DOMAIN_SLACK else math.inf


def _to_box(y: AnyArray, low: float = -1.0) -> float:
    return _number(np.linalg.norm(np.ravel(y - np.clip(y, low, 1.0))))


def _l1(**_: Any) -> Kappa:
    return Kappa(
        "l1",
        value=lambda z: _number(np.abs(z).sum()),
        gradient=np.sign,
        hessian_product=_zeros,
        conjugate=lambda y: _indicator(_to_box(y)),
        conjugate_gradient=_zeros,
        distance_to_domain=_to_box,
    )


def _group(*, axis: int | None, name: str = "group", **_: Any) -> Kappa:
    """Sum of 2-norms over slices along an axis; ``None`` takes the whole array."""

    def norms(z: AnyArray) -> AnyArray:
        # Divided by the largest entry, so that the squares of small float32 numbers do not vanish.
        largest = np.abs(z).max(axis=axis, keepdims=True, initial=0)
        unit = np.where((largest > 0) & (largest < math.inf), largest, np.ones_like(largest))
        return np.asarray(unit * np.sqrt(((z / unit) ** 2).sum(axis=axis, keepdims=True)))

    def per_norm(z: AnyArray, numerator: AnyArray) -> AnyArray:
        size = norms(z)
        return np.divide(numerator, size, out=np.zeros_like(numerator), where=size > 0)

    def gradient(z: AnyArray) -> AnyArray:
        # 0 at 0 is a subgradient; a NaN must not be taken for it.
        return np.asarray(np.where(np.isnan(norms(z)), np.nan, per_norm(z, z)), dtype=z.dtype)

    def hessian_product(z: AnyArray, v: AnyArray) -> AnyArray:
        # A unit vector moves perpendicularly to itself, the slower the longer z is.
        unit = per_norm(z, z)
        return per_norm(z, v - unit * (unit * v).sum(axis=axis, keepdims=True))

    def distance(y: AnyArray) -> float:
        return _number(np.linalg.norm(np.ravel(np.maximum(norms(y) - 1, 0))))

    return Kappa(
        name,
        value=lambda z: _number(norms(z).sum()),
        gradient=gradient,
        hessian_product=hessian_product,
        conjugate=lambda y: _indicator(distance(y)),
        conjugate_gradient=_zeros,
        distance_to_domain=distance,
    )


def _l2(**_: Any) -> Kappa:
    return _group(axis=None, name="l2")


def _sq(**_: Any) -> Kappa:
    return Kappa(
        "sq",
        value=lambda z: _number(0.5 * (z * z).sum()),
        gradient=np.copy,
        hessian_product=lambda z, v: np.asarray(np.copy(v)),
        conjugate=lambda y: _number(0.5 * (y * y).sum()),
        conjugate_gradient=np.copy,
        distance_to_domain=lambda y: 0.0,
    )


def _lp(*, power: float, **_: Any) -> Kappa:
    dual = power / (power - 1)

    def hessian_product(z: AnyArray, v: AnyArray) -> AnyArray:
        # Below power 2 the second derivative is infinite at 0: a kink of the gradient, and nothing passes.
        size = np.abs(z)
        bend = np.power(size, power - 2, out=np.zeros_like(size), where=(size > 0) | (power >= 2))
        return np.asarray((power - 1) * bend * v)

    return Kappa(
        "lp",
        value=lambda z: _number((np.abs(z) ** power).sum() / power),
        gradient=lambda z: np.asarray(np.sign(z) * np.abs(z) ** (power - 1)),
        hessian_product=hessian_product,
        conjugate=lambda y: _number((np.abs(y) ** dual).sum() / dual),
        conjugate_gradient=lambda y: np.asarray(np.sign(y) * np.abs(y) ** (dual - 1)),
        distance_to_domain=lambda y: 0.0,
    )


def _huber(*, width: float, **_: Any) -> Kappa:
    def value(z: AnyArray) -> float:
        size = np.abs(z)
        return _number(np.where(size <= width, size * size / (2 * width), size - width / 2).sum())

    return Kappa(
        "huber",
        value=value,
        gradient=lambda z: np.clip(z / width, -1, 1),
        hessian_product=lambda z, v: np.asarray(np.where(np.abs(z) < width, v / width, 0), dtype=v.dtype),
        conjugate=lambda y: _indicator(_to_box(y), _number(width / 2 * (y * y).sum())),
        conjugate_gradient=lambda y: np.asarray(width * y),
        distance_to_domain=_to_box,
    )


def _softl1(*, threshold: float, **_: Any) -> Kappa:
    return Kappa(
        "softl1",
        value=lambda z: _number(np.maximum(np.abs(z) - threshold, 0).sum()),
        # "not below" instead of "above" lets a NaN through.
        gradient=lambda z: np.sign(np.where(np.abs(z) <= threshold, np.zeros_like(z), z)),
        hessian_product=_zeros,
        conjugate=lambda y: _indicator(_to_box(y), _number(threshold * np.abs(y).sum())),
        conjugate_gradient=lambda y: np.asarray(threshold * np.sign(y)),
        distance_to_domain=_to_box,
    )


def _relu(**_: Any) -> Kappa:
    def distance(y: AnyArray) -> float:
        return _to_box(y, low=0.0)

    return Kappa(
        "relu",
        value=lambda z: _number(np.maximum(z, 0).sum()),
        gradient=lambda z: np.heaviside(z, np.zeros_like(z)),
        hessian_product=_zeros,
        conjugate=lambda y: _indicator(distance(y)),
        conjugate_gradient=_zeros,
        distance_to_domain=distance,
    )


def _topk(*, k: int, **_: Any) -> Kappa:
    def largest(z: AnyArray) -> AnyArray:
        _checks.whole(k, "k", low=1, high=z.size)
        size = -np.abs(np.ravel(z))
        # What a stable sort has in its first k places, NaN behind all numbers: of equal entries the first ones win.
        last = np.partition(size, k - 1)[k - 1]
        ahead, equal = (~np.isnan(size), np.isnan(size)) if np.isnan(last) else (size < last, size == last)
        before = np.flatnonzero(ahead)
        chosen = np.concatenate([before, np.flatnonzero(equal)[: k - len(before)]])
        return chosen[np.argsort(size[chosen], kind="stable")]

    def gradient(z: AnyArray) -> AnyArray:
        chosen, flat = largest(z), np.ravel(z)
        step = np.where(np.isnan(flat), flat, np.zeros_like(flat))
        step[chosen] = np.sign(flat[chosen])
        return np.asarray(step.reshape(z.shape))

    def distance(y: AnyArray) -> float:
        size = np.abs(np.ravel(y)).astype(np.float64)
        nearest = np.clip(size - _shift_to_sum(size, k), 0, 1)
        return _number(np.linalg.norm(size - nearest))

    return Kappa(
        "topk",
        value=lambda z: _number(np.abs(np.ravel(z))[largest(z)].sum()),
        gradient=gradient,
        hessian_product=_zeros,
        conjugate=lambda y: _indicator(distance(y)),
        conjugate_gradient=_zeros,
        distance_to_domain=distance,
    )


def _shift_to_sum(size: AnyArray, total: float) -> float:
    """Return the smallest ``t >= 0`` with ``sum clip(size - t, 0, 1) <= total``."""

    def excess(a: AnyArray, t: AnyArray) -> AnyArray:
        ordered = np.sort(a)[::-1]
        above = np.searchsorted(-ordered, -t)
        return np.asarray(np.concatenate([[0.0], np.cumsum(ordered)])[above] - above * t)

    # The sum is piecewise linear in t, with corners at the entries and the entries less 1.
    corners = np.unique(np.concatenate([[0.0], size, size - 1]))
    corners = corners[corners >= 0]
    sums = excess(size, corners) - excess(size - 1, corners)
    return _number(np.interp(total, sums[::-1], corners[::-1])) if sums[0] > total else 0.0


_CATALOGUE: dict[str, Callable[..., Kappa]] = {
    "l1": _l1,
    "l2": _l2,
    "sq": _sq,
    "lp": _lp,
    "group": _group,
    "huber": _huber,
    "softl1": _softl1,
    "relu": _relu,
    "topk": _topk,
}


# --- checks -------------------------------------------------------------------------------------------------


def _chosen(kappa: Any) -> Kappa:
    return kappa if isinstance(kappa, Kappa) else make_kappa(kappa)


def _check_step(learning_rate: float, betas: tuple[float, float], weight_decay: float, kappa: Any, decay: str) -> Kappa:
    _checks.positive(learning_rate, "learning_rate")
    check_betas(betas, closed="left")
    _checks.non_negative(weight_decay, "weight_decay")
    _checks.one_of(decay, "decay", _DECAYS)
    if decay == "explicit" and learning_rate * weight_decay >= 2:
        _checks.fail("learning_rate * weight_decay", "a number < 2 for explicit decay", learning_rate * weight_decay)
    return _chosen(kappa)


def _check_constants(gradient_rate: float, momentum_rate: float, weight_decay: float, lookahead: float) -> None:
    _checks.positive(gradient_rate, "gradient_rate")
    _checks.positive(momentum_rate, "momentum_rate")
    _checks.positive(weight_decay, "weight_decay")
    _checks.in_range(lookahead, "lookahead", 0.0, 1 / momentum_rate)


def _like(array: Any, name: str, x: AnyArray) -> AnyArray:
    checked = _checks.float_array(array, name)
    _checks.same_dtype("x", x, **{name: checked})
    _checks.shape(checked, name, x.shape)
    return checked


def _state(x: Any, momentum: Any, kappa: Any) -> tuple[AnyArray, AnyArray, Kappa]:
    x = _checks.float_array(x, "x")
    return x, _like(momentum, "momentum", x), _chosen(kappa)


def _same_arrays(param: Any, grad: Any, momentum: Any) -> tuple[AnyArray, AnyArray, AnyArray]:
    param = _checks.float_array(param, "param")
    grad, momentum = _checks.float_array(grad, "grad"), _checks.float_array(momentum, "momentum")
    _checks.same_dtype("param", param, grad=grad, momentum=momentum)
    _checks.shape(grad, "grad", param.shape)
    _checks.shape(momentum, "momentum", param.shape)
    return param, grad, momentum
