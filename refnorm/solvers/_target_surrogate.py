"""Target-based surrogates: one gradient of the loss in the space of predictions, many steps of the model.

h(theta) = loss(f(theta)),   anchor = f(theta_t),   gradient = loss'(anchor)
q(theta) = loss(anchor) + <gradient, f(theta) - anchor> + |f(theta) - anchor|^2 / (2 step_size)
theta_(t+1) = a point with a smaller q, found without another look at the loss
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback, Tree
from refnorm.softmax import cross_entropy_vjp
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="Target-based Surrogates for Stochastic Optimization",
    authors="Lavington, Vaswani, Babanezhad, Schmidt, Le Roux",
    year=2023,
    arxiv="2302.02607",
    functions=(
        "TargetSurrogateResult",
        "linear_model",
        "logistic_target_loss",
        "minimize_target_surrogate",
        "random_batches",
        "squared_target_loss",
        "target_loss",
        "target_smoothness",
        "target_step_size",
        "target_surrogate",
        "target_surrogate_value_grad",
    ),
    chapter="solvers/target_surrogate",
)

Rows: TypeAlias = Any
"""An index of examples, along the first axis of the predictions: an integer array or ``slice(None)``."""

LossGrad: TypeAlias = Callable[[AnyArray, Rows], tuple[Any, AnyArray]]
"""``(predictions, rows) -> (value, gradient in the predictions)``."""

ModelVjp: TypeAlias = Callable[[Tree, Rows], tuple[AnyArray, Pullback]]
"""``(theta, rows) -> (predictions, pullback)``; the first entry of the pullback is the cotangent of theta."""

ALL: Rows = slice(None)

SMOOTHNESS = {"squared": 1.0, "logistic": 0.25, "softmax": 0.5}
"""Largest curvature of one example's loss in its prediction."""

SCHEDULES = ("constant", "stochastic", "exponential")

ARMIJO_SLOPE = 0.5
"""Part of the predicted decrease that a step must reach; at 1/2 an exact minimum along a line just passes."""

ARMIJO_SHRINK = 0.9
ARMIJO_FIRST = 10.0
"""First step of a line search in units of ``step_size``."""

ARMIJO_TRIALS = 400
"""10 * 0.9^400 is 5e-18: below it a step no longer changes a number of its own size."""


@dataclass(frozen=True)
class TargetSurrogateResult:
    """Outcome of :func:`minimize_target_surrogate`.

    Parameters
    ----------
    x
        The parameters, with the structure of ``theta0``.
    n_iter
        Outer steps.
    converged
        Whether the gradient of the loss on all examples fell to ``tol``; False with batches, which cannot tell.
    history
        One entry an outer step. ``loss``: after the step on all examples; with batches, before the step on the
        batch. ``surrogate``: q at the new parameters. ``gradient_norm``: of the loss in theta, before the step.
        ``inner_steps``: steps taken on the surrogate. Without batches also ``bound_holds``: 1 where
        ``loss <= surrogate``, up to rounding.
    n_loss_grads
        Calls of ``loss_grad``, the expensive part.
    n_model_calls
        Calls of ``model_vjp``.
    """

    x: Tree
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]
    n_loss_grads: int
    n_model_calls: int


def target_surrogate(
    prediction: Array[F], anchor: Array[F], gradient: Array[F], *, step_size: float, loss: float = 0.0
) -> Array[F]:
    """Quadratic model of a loss around the predictions at which its gradient is known.

    Parameters
    ----------
    prediction : array
        New predictions.
    anchor, gradient : arrays of the same shape
        Predictions at which the loss was evaluated, and its gradient there.
    step_size : float > 0
        The model is above the loss where ``step_size`` is at most 1 / (the loss's smoothness).
    loss : float
        The loss at the anchor.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs, or ``step_size`` is not positive.

    Notes
    -----
    ``q = loss + <gradient, prediction - anchor> + |prediction - anchor|^2 / (2 step_size)``.

    References
    ----------
    Lavington et al. (2023), arXiv 2302.02607, section 3.

    Examples
    --------
    >>> float(target_surrogate(np.array([3.0]), np.array([0.0]), np.array([-3.0]), step_size=1.0, loss=4.5))
    0.0
    """
    return target_surrogate_vjp(prediction, anchor, gradient, step_size=step_size, loss=loss)[0]


def target_surrogate_vjp(
    prediction: Array[F], anchor: Array[F], gradient: Array[F], *, step_size: float, loss: float = 0.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`target_surrogate` and its pullback ``dq -> (dprediction, danchor, dgradient)``.

    A step of the method holds anchor and gradient fixed and uses the first entry only.
    """
    prediction = _checks.float_array(prediction, "prediction")
    anchor, gradient = _checks.float_array(anchor, "anchor"), _checks.float_array(gradient, "gradient")
    _checks.same_dtype("prediction", prediction, anchor=anchor, gradient=gradient)
    _checks.shape(anchor, "anchor", prediction.shape)
    _checks.shape(gradient, "gradient", prediction.shape)
    _checks.positive(step_size, "step_size")
    moved = prediction - anchor
    # One sum of products: <g + moved / (2 step_size), moved>.
    value = np.asarray(loss + ((gradient + moved / (2 * step_size)) * moved).sum())

    def pullback(dq: Array[F]) -> tuple[AnyArray, AnyArray, AnyArray]:
        slope = dq * (gradient + moved / step_size)
        return slope, -slope, dq * moved

    return value, pullback


def target_surrogate_value_grad(
    theta: Tree,
    model_vjp: ModelVjp | AnyArray,
    anchor: Array[F],
    gradient: Array[F],
    *,
    step_size: float,
    loss: float = 0.0,
    rows: Rows = ALL,
) -> tuple[Array[F], Tree]:
    """Value of the surrogate at the model's parameters, and its gradient.

    Parameters
    ----------
    theta : parameters of the model
    model_vjp : callable, or array (n, d)
        ``(theta, rows) -> (predictions, pullback)``; an array ``x`` stands for ``linear_model(x)``.
    anchor, gradient, step_size, loss
        As in :func:`target_surrogate`.
    rows : index
        The examples that the anchor is about.

    Returns
    -------
    value : array ()
    grad : of the structure of ``theta``

    Raises
    ------
    TypeError, ValueError
        As :func:`target_surrogate`.

    Notes
    -----
    One pullback of the model with the cotangent ``gradient + (f(theta) - anchor) / step_size``. At the
    parameters of the anchor it is the gradient of the loss itself.

    Examples
    --------
    >>> x = np.array([[2.0]])
    >>> target_surrogate_value_grad(np.array([0.0]), x, np.array([0.0]), np.array([-3.0]), step_size=1.0)
    (array(0.), array([-6.]))
    """
    prediction, back = _as_model(model_vjp)(theta, rows)
    value, surrogate = target_surrogate_vjp(prediction, anchor, gradient, step_size=step_size, loss=loss)
    return value, back(surrogate(np.ones((), prediction.dtype))[0])[0]


def minimize_target_surrogate(
    loss_grad: LossGrad,
    model_vjp: ModelVjp | AnyArray,
    theta0: Tree,
    *,
    step_size: float,
    inner_steps: int,
    inner_rate: float | None = None,
    schedule: str = "constant",
    n_iter: int = 100,
    batches: Iterable[IntArray] | None = None,
    tol: float = 1e-8,
    inner_tol: float = 1e-6,
    callback: Callback | None = None,
) -> TargetSurrogateResult:
    """Minimise ``loss(f(theta))`` with few gradients of the loss and many of the model.

    Parameters
    ----------
    loss_grad : callable
        ``(predictions, rows) -> (value, gradient)``, for example :func:`target_loss`.
    model_vjp : callable, or array (n, d)
        ``(theta, rows) -> (predictions, pullback)``; an array ``x`` stands for ``linear_model(x)``.
    theta0 : array or tree of arrays
        Parameters to begin with.
    step_size : float > 0
        In the space of predictions. Up to 1 / (smoothness of the loss) every outer step without batches
        decreases the loss, see :func:`target_smoothness`.
    inner_steps : int >= 1
        Gradient steps on each surrogate. With 1 the method is gradient descent.
    inner_rate : float > 0, optional
        Length of an inner step in units of the current ``step_size``; ``1 / |x|_2^2`` is right for
        ``linear_model(x)``. By default, a backtracking line search from 10.
    schedule : {"constant", "stochastic", "exponential"}
        ``step_size`` times 1, ``1 / sqrt(t)`` or ``n_iter^(-t / n_iter)`` at step t = 1, 2, ...
    n_iter : int >= 1
        Largest number of outer steps.
    batches : iterable of integer arrays, optional
        Examples of each outer step, for example :func:`random_batches`; all examples by default. The run ends
        with the iterable.
    tol : float >= 0
        Without batches, the run ends at parameters where the gradient of the loss is at most ``tol``.
    inner_tol : float >= 0
        Inner steps end when the surrogate's gradient has shrunk by this factor.
    callback : callable, optional
        Called with a ``Progress`` after every outer step; a true result ends the run.

    Returns
    -------
    TargetSurrogateResult

    Raises
    ------
    TypeError, ValueError
        If an option is out of range, or the gradient has another shape than the predictions.
    Diverged
        If the loss grows without bound.

    Notes
    -----
    Without batches any decrease of q decreases the loss: ``h(theta_(t+1)) <= q(theta_(t+1)) <= q(theta_t) =
    h(theta_t)``. A larger ``step_size`` than 1 / smoothness is allowed and loses this bound, which
    ``history["bound_holds"]`` shows. With batches, the surrogate forgets all other examples: it takes a
    decreasing ``step_size`` or a model that can fit every example.

    References
    ----------
    Lavington et al. (2023), arXiv 2302.02607, algorithm 1 and equations 4 to 6.

    Examples
    --------
    >>> half_square = lambda z, rows: (0.5 * float((z - 3) @ (z - 3)), z - 3)
    >>> x = np.array([[2.0]])
    >>> result = minimize_target_surrogate(half_square, x, np.zeros(1), step_size=1.0, inner_steps=1, inner_rate=0.25)
    >>> result.x, result.n_iter, result.converged
    (array([1.5]), 1, True)
    """
    model = _as_model(model_vjp)
    theta = tree_map(lambda leaf: _checks.float_array(leaf, "theta0"), theta0)
    _checks.positive(step_size, "step_size")
    inner_steps = _checks.whole(inner_steps, "inner_steps", low=1)
    if inner_rate is not None:
        _checks.positive(inner_rate, "inner_rate")
    _checks.one_of(schedule, "schedule", SCHEDULES)
    n_iter = _checks.whole(n_iter, "n_iter", low=1)
    _checks.non_negative(tol, "tol")
    _checks.non_negative(inner_tol, "inner_tol")

    monitor = Monitor("minimize_target_surrogate", callback=callback, hint="use a smaller step_size or inner_rate")
    full, gradient_norm = batches is None, np.inf
    loss_grads = model_calls = 0
    for t, rows in enumerate(_rows_of_steps(batches, n_iter), start=1):
        if t == 1 or not full:
            at = model(theta, rows)
            loss, gradient, gradient_norm = _look(loss_grad, at, rows)
            loss_grads, model_calls = loss_grads + 1, model_calls + 1
        if full and gradient_norm <= tol:
            break
        size = target_step_size(t, step_size, schedule=schedule, n_iter=n_iter)
        surrogate = _Surrogate(model, rows, at[0], gradient, size, loss)
        theta, at, value, taken = surrogate.minimize(theta, at, inner_steps, inner_rate, inner_tol)
        model_calls += surrogate.calls
        record = {"loss": loss, "surrogate": value, "gradient_norm": gradient_norm, "inner_steps": taken}
        if full:
            loss, gradient, gradient_norm = _look(loss_grad, at, rows)
            loss_grads += 1
            record |= {"loss": loss, "bound_holds": float(loss <= value + _rounding(loss, at[0]))}
        if monitor.record(**record):
            break
    converged = full and gradient_norm <= tol
    return TargetSurrogateResult(theta, monitor.n_iter, converged, monitor.history(), loss_grads, model_calls)


class _Surrogate:
    """The surrogate of one outer step: values, gradients, and steps down."""

    def __init__(
        self,
        model: ModelVjp,
        rows: Rows,
        anchor: AnyArray,
        gradient: AnyArray,
        step_size: float,
        loss: float,
    ) -> None:
        self.model, self.rows, self.anchor, self.gradient = model, rows, anchor, gradient
        self.step_size, self.loss, self.calls = step_size, loss, 0

    def evaluate(self, at: tuple[AnyArray, Pullback]) -> tuple[float, AnyArray]:
        """Value, and the slope in the predictions."""
        value, back = target_surrogate_vjp(at[0], self.anchor, self.gradient, step_size=self.step_size, loss=self.loss)
        return float(value), back(np.ones((), at[0].dtype))[0]

    def minimize(
        self, theta: Tree, at: tuple[AnyArray, Pullback], steps: int, rate: float | None, tol: float
    ) -> tuple[Tree, tuple[AnyArray, Pullback], float, int]:
        """Return the parameters, the model there, the value there and the number of steps taken."""
        value, slope = self.evaluate(at)
        trial, first = (ARMIJO_FIRST if rate is None else rate), None
        for step in range(steps):
            grad = at[1](slope)[0]
            norm = _norm(grad)
            first = norm if first is None else first
            if norm <= tol * first:
                return theta, at, value, step
            for _ in range(ARMIJO_TRIALS if rate is None else 1):
                length = trial * self.step_size
                moved = tree_map(lambda leaf, g, length=length: leaf - length * g, theta, grad)
                there = self.model(moved, self.rows)
                self.calls += 1
                lower, following = self.evaluate(there)
                if rate is not None or lower <= value - ARMIJO_SLOPE * length * norm**2:
                    break
                trial *= ARMIJO_SHRINK
            else:  # no step is short enough: the decrease has sunk below rounding
                return theta, at, value, step
            theta, at, value, slope = moved, there, lower, following
        return theta, at, value, steps


def target_step_size(t: int, step_size: float, *, schedule: str = "constant", n_iter: int = 1) -> float:
    """Step size in the space of predictions at outer step ``t``.

    Parameters
    ----------
    t : int >= 1
    step_size : float > 0
    schedule : {"constant", "stochastic", "exponential"}
    n_iter : int >= 1
        Length of the whole run; the exponential schedule ends at ``step_size / n_iter``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a number is out of range or the schedule is unknown.

    Examples
    --------
    >>> [target_step_size(t, 8.0, schedule="exponential", n_iter=4) for t in (2, 4)]
    [4.0, 2.0]
    """
    _checks.whole(t, "t", low=1)
    _checks.positive(step_size, "step_size")
    _checks.one_of(schedule, "schedule", SCHEDULES)
    _checks.whole(n_iter, "n_iter", low=1)
    if schedule == "stochastic":
        return float(step_size / np.sqrt(t))
    return float(step_size * (float(n_iter) ** (-t / n_iter) if schedule == "exponential" else 1.0))


def target_smoothness(loss: str, n: int) -> float:
    """Smoothness of a mean loss in the predictions of ``n`` examples: the inverse of the largest safe step.

    Parameters
    ----------
    loss : {"squared", "logistic", "softmax"}
    n : int >= 1
        Number of examples that the mean is over.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If the loss is unknown or ``n`` is not a positive integer.

    Notes
    -----
    One example's curvature is at most 1 (squared), ``max p (1 - p) = 1/4`` (logistic) or 1/2 (softmax: the
    largest eigenvalue of ``diag(p) - p p^T``); the mean divides by n.

    Examples
    --------
    >>> target_smoothness("logistic", 200)
    0.00125
    """
    _checks.one_of(loss, "loss", tuple(SMOOTHNESS))
    return SMOOTHNESS[loss] / _checks.whole(n, "n", low=1)


def target_loss(loss: str, target: AnyArray) -> LossGrad:
    """Return ``(predictions, rows) -> (value, gradient)`` of a mean loss over the examples of ``rows``.

    Parameters
    ----------
    loss : {"squared", "logistic", "softmax"}
        :func:`squared_target_loss`, :func:`logistic_target_loss`, or ``refnorm.softmax.cross_entropy``.
    target : array (n, ...)
        Targets of all examples, as those functions want them.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If the loss is unknown.

    Examples
    --------
    >>> loss_grad = target_loss("logistic", np.array([1, -1]))
    >>> value, gradient = loss_grad(np.zeros(2), slice(None))
    >>> float(value.round(4)), gradient
    (0.6931, array([-0.25,  0.25]))
    """
    functions: dict[str, Callable[..., tuple[AnyArray, Pullback]]] = {
        "squared": squared_target_loss_vjp,
        "logistic": logistic_target_loss_vjp,
        "softmax": cross_entropy_vjp,
    }
    _checks.one_of(loss, "loss", tuple(functions))
    targets = np.asarray(target)

    def loss_grad(prediction: AnyArray, rows: Rows) -> tuple[AnyArray, AnyArray]:
        value, pullback = functions[loss](prediction, targets[rows])
        return value, pullback(np.ones((), value.dtype))[0]

    return loss_grad


def squared_target_loss(prediction: Array[F], target: Array[F]) -> Array[F]:
    """Half the squared distance of predictions from targets, as a mean over examples.

    Parameters
    ----------
    prediction, target : arrays (n, ...)

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs, or there is no example.

    Examples
    --------
    >>> float(squared_target_loss(np.array([1.0, 3.0]), np.array([0.0, 1.0])))
    1.25
    """
    return squared_target_loss_vjp(prediction, target)[0]


def squared_target_loss_vjp(prediction: Array[F], target: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`squared_target_loss` and its pullback ``dloss -> (dprediction, dtarget)``."""
    prediction = _checks.float_array(prediction, "prediction", min_ndim=1)
    target = _checks.float_array(target, "target")
    _checks.same_dtype("prediction", prediction, target=target)
    _checks.shape(target, "target", prediction.shape)
    _checks.not_empty(prediction, "prediction", (0,))
    missed = prediction - target
    value = np.asarray((missed * missed).sum() / (2 * len(missed)))

    def pullback(dloss: Array[F]) -> tuple[AnyArray, AnyArray]:
        slope = dloss / len(missed) * missed
        return slope, -slope

    return value, pullback


def logistic_target_loss(prediction: Array[F], target: IntArray) -> Array[F]:
    """Mean logistic loss of logits against labels -1 and 1.

    Parameters
    ----------
    prediction : array (n,)
        Logits of the label 1.
    target : integer array (n,)
        Labels -1 or 1.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs, a label is neither -1 nor 1, or there is no example.

    Notes
    -----
    ``mean log(1 + exp(-target prediction))``.

    Examples
    --------
    >>> float(logistic_target_loss(np.array([0.0, 0.0]), np.array([1, -1])).round(6))
    0.693147
    """
    return logistic_target_loss_vjp(prediction, target)[0]


def logistic_target_loss_vjp(prediction: Array[F], target: IntArray) -> tuple[Array[F], Pullback]:
    """Return :func:`logistic_target_loss` and its pullback ``dloss -> (dprediction,)``."""
    prediction = _checks.float_array(prediction, "prediction", ndim=1)
    target = _checks.integer_array(target, "target", ndim=1)
    _checks.shape(target, "target", prediction.shape)
    _checks.not_empty(prediction, "prediction", (0,))
    if (np.abs(target) != 1).any():
        _checks.fail("target", "labels -1 and 1", target[np.abs(target) != 1][0])
    sign = target.astype(prediction.dtype)
    margin = sign * prediction
    value = np.asarray(np.logaddexp(0, -margin).mean(), prediction.dtype)

    def pullback(dloss: Array[F]) -> tuple[Array[F]]:
        # d log(1 + e^-m) = -dm / (1 + e^m): one minus the probability of the right label.
        return ((-dloss / len(margin)) * sign * scipy.special.expit(-margin),)

    return value, pullback


def linear_model(x: Array[F]) -> ModelVjp:
    """Return the model ``(theta, rows) -> (x[rows] @ theta, pullback)``.

    Parameters
    ----------
    x : array (n, d)
        Features of all examples. ``theta`` is (d,) or (d, outputs).

    Returns
    -------
    callable

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float matrix.

    Examples
    --------
    >>> prediction, pullback = linear_model(np.array([[1.0, 2.0], [3.0, 4.0]]))(np.ones(2), slice(None))
    >>> prediction, pullback(np.array([1.0, 0.0]))
    (array([3., 7.]), (array([1., 2.]),))
    """
    x = _checks.float_array(x, "x", ndim=2)

    def model(theta: Tree, rows: Rows = ALL) -> tuple[AnyArray, Pullback]:
        features = x[rows]
        return features @ theta, lambda dz: (features.T @ dz,)

    return model


def random_batches(rng: np.random.Generator, n: int, size: int) -> Iterator[IntArray]:
    """Yield batches of distinct examples without end, in a fresh order every pass.

    Parameters
    ----------
    rng : numpy.random.Generator
    n, size : int >= 1
        Examples in all, and in a batch; the last ``n % size`` of each pass are left out.

    Yields
    ------
    integer array (size,)

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or ``size > n``.

    Examples
    --------
    >>> next(random_batches(np.random.default_rng(0), 10, 3)).shape
    (3,)
    """
    rng = _checks.generator(rng)
    n = _checks.whole(n, "n", low=1)
    size = _checks.whole(size, "size", low=1, high=n)

    def endless() -> Iterator[IntArray]:
        while True:
            order = rng.permutation(n)
            yield from (order[start : start + size] for start in range(0, n - size + 1, size))

    return endless()


def _as_model(model: ModelVjp | AnyArray) -> ModelVjp:
    if callable(model):
        return model
    return linear_model(_checks.float_array(model, "model_vjp", ndim=2))


def _rows_of_steps(batches: Iterable[IntArray] | None, n_iter: int) -> Iterator[Rows]:
    if batches is None:
        yield from [ALL] * n_iter
    else:
        for _, rows in zip(range(n_iter), batches, strict=False):
            yield _checks.integer_array(rows, "batches", ndim=1)


def _look(loss_grad: LossGrad, at: tuple[AnyArray, Pullback], rows: Rows) -> tuple[float, AnyArray, float]:
    """The loss, its gradient in the predictions, and the norm of its gradient in the parameters."""
    loss, gradient = loss_grad(at[0], rows)
    gradient = _checks.float_array(gradient, "gradient of the loss")
    _checks.shape(gradient, "gradient of the loss", at[0].shape)
    return float(loss), gradient, _norm(at[1](gradient)[0])


def _norm(tree: Tree) -> float:
    return float(np.sqrt(sum(float((leaf * leaf).sum()) for _, leaf in tree_leaves(tree))))


def _rounding(loss: float, prediction: AnyArray) -> float:
    """What the sum over predictions may lose of the loss."""
    return float(abs(loss) * np.finfo(prediction.dtype).eps * max(prediction.size, 1))
