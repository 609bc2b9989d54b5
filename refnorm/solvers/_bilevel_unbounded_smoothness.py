"""BO-REP: bilevel optimization with normalized momentum, a refined start and periodic lower updates.

minimise F(x) = upper(x, y*(x)),    y*(x) = argmin_y lower(x, y)
grad F    = upper_x - lower_xy z,   lower_yy z = upper_y
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.special import expit

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax import log_softmax
from refnorm.solvers._linear_solvers import cg
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis",
    authors="Hao, Gong, Liu",
    year=2024,
    arxiv="2401.09587",
    functions=(
        "BilevelProblem",
        "BilevelResult",
        "bo_rep",
        "hyper_cleaning_gradient",
        "hyper_cleaning_loss",
        "hyper_cleaning_problem",
        "implicit_hypergradient",
        "lower_solution_pullback",
        "ridge_tuning_problem",
    ),
    chapter="solvers/bilevel_unbounded_smoothness",
)

TINY = 1e-10
"""Added to the norm that divides, as in the authors' program: a momentum far below it makes no step."""

_REFINE = ("sgd", "epoch_sgd")

Oracle: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class BilevelProblem:
    """An upper function, and derivatives of it and of a lower function that is strongly convex in ``y``.

    All take ``(x, y, rng)``, the last two ``(x, y, v, rng)`` with ``v`` of the shape of ``y``. They may draw
    their own samples from ``rng``; those that are exact ignore it.

    Parameters
    ----------
    upper
        Value of the upper function.
    upper_x, upper_y
        Its gradients, of the shapes of ``x`` and ``y``.
    lower_y
        Gradient of the lower function in ``y``.
    lower_yy
        Hessian of the lower function in ``y``, times ``v``.
    lower_xy
        Derivative of ``<lower_y, v>`` in ``x``, of the shape of ``x``.
    """

    upper: Oracle
    upper_x: Oracle
    upper_y: Oracle
    lower_y: Oracle
    lower_yy: Oracle
    lower_xy: Oracle


@dataclass(frozen=True)
class BilevelResult:
    """Outcome of :func:`bo_rep`.

    Parameters
    ----------
    x, y, z
        The last upper and lower variables, and the estimate of ``lower_yy^-1 upper_y``.
    n_iter
        Upper steps.
    converged
        Whether the norm of the momentum fell to ``tol``.
    history
        Of each iteration, before its step: the value of ``upper``; and the ``momentum_norm`` that it stepped with.
    """

    x: AnyArray
    y: AnyArray
    z: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def bo_rep(
    problem: BilevelProblem,
    x0: Array[F],
    y0: Array[F],
    *,
    learning_rate: float,
    lower_learning_rate: float,
    aux_learning_rate: float,
    max_iter: int,
    rng: np.random.Generator,
    momentum: float = 0.9,
    period: int = 2,
    lower_steps: int = 5,
    refine_steps: int = 100,
    refine: str = "sgd",
    radius: float | None = None,
    normalize: bool = True,
    aux_first: bool = False,
    tol: float = 0.0,
    callback: Callback | None = None,
) -> BilevelResult:
    """Solve a bilevel problem whose smoothness may grow with the gradient.

    Parameters
    ----------
    problem : BilevelProblem
    x0, y0 : arrays of any shape
        Upper and lower start.
    learning_rate : float > 0
        Length of every upper step (with ``normalize``).
    lower_learning_rate, aux_learning_rate : floats > 0
        Of the descent in ``y`` and in ``z``; both stable below ``2 / (largest eigenvalue of lower_yy)``.
    max_iter : int >= 1
        Upper steps.
    rng : numpy.random.Generator
        Handed to every oracle.
    momentum : float in [0, 1)
    period : int >= 1
        Upper steps from one round of lower updates to the next.
    lower_steps, refine_steps : ints >= 0
        Lower steps of a round, and before the first upper step.
    refine : ``"sgd"`` or ``"epoch_sgd"``
        How the start is refined: with a constant rate, or in epochs of ``lower_steps, 2 lower_steps, ...`` steps
        with halved rates, each begun at the mean of the last.
    radius : float > 0, optional
        Largest distance that ``y`` moves in a round; unlimited by default.
    normalize : bool
        Divide the momentum by its norm; without it the step is ``learning_rate`` times the momentum.
    aux_first : bool
        Update ``z`` before the upper gradient is formed with it, as the authors' program does.
    tol : float >= 0
        The run ends when the momentum's norm is at most this, after the first step.
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    BilevelResult

    Raises
    ------
    TypeError, ValueError
        If an oracle returns another shape than it should, or a number is outside its range.
    Diverged
        If the upper value is not finite or grows without bound.

    Notes
    -----
    Each iteration: lower steps if it is time; ``h = upper_x - lower_xy z``;
    ``z -= aux_rate (lower_yy z - upper_y)``; ``m = momentum m + (1 - momentum) h``;
    ``x -= rate m / (|m| + 1e-10)``. With a constant rate ``x`` ends on a circle of that size around the solution.

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (BO-REP).

    Examples
    --------
    The lower solution is ``y = x``, so ``F = |x - 1|^2 / 2``:

    >>> problem = BilevelProblem(
    ...     upper=lambda x, y, rng: 0.5 * np.sum((y - 1) ** 2), upper_x=lambda x, y, rng: 0 * x,
    ...     upper_y=lambda x, y, rng: y - 1, lower_y=lambda x, y, rng: y - x,
    ...     lower_yy=lambda x, y, v, rng: v, lower_xy=lambda x, y, v, rng: -v)
    >>> result = bo_rep(problem, np.array([3.0]), np.array([0.0]), learning_rate=0.02, lower_learning_rate=0.5,
    ...                 aux_learning_rate=0.5, max_iter=400, rng=np.random.default_rng(0))
    >>> bool(abs(result.x[0] - 1) < 0.2)
    True
    """
    x, y = _checks.float_array(x0, "x0"), _checks.float_array(y0, "y0")
    _checks.same_dtype("x0", x, y0=y)
    for name, rate in (
        ("learning_rate", learning_rate),
        ("lower_learning_rate", lower_learning_rate),
        ("aux_learning_rate", aux_learning_rate),
    ):
        _checks.positive(rate, name)
    _checks.in_range(momentum, "momentum", 0.0, 1.0, closed="left")
    period, max_iter = _checks.whole(period, "period", low=1), _checks.whole(max_iter, "max_iter", low=1)
    lower_steps = _checks.whole(lower_steps, "lower_steps", low=0)
    refine_steps = _checks.whole(refine_steps, "refine_steps", low=0)
    _checks.one_of(refine, "refine", _REFINE)
    if radius is not None:
        _checks.positive(radius, "radius")
    _checks.non_negative(tol, "tol")
    oracles = _Oracles(problem, x, y, _checks.generator(rng))
    monitor = Monitor("bo_rep", callback=callback)

    if refine == "sgd":
        y = _lower_round(oracles, x, y, lower_learning_rate, refine_steps, radius)
    else:
        y = _epochs(oracles, x, y, lower_learning_rate, refine_steps, max(lower_steps, 1))
    z, average, converged = np.zeros_like(y), np.zeros_like(x), False
    for k in range(max_iter):
        if k > 0 and k % period == 0:
            y = _lower_round(oracles, x, y, lower_learning_rate, lower_steps, radius)
        # One step of descent on z^T lower_yy z / 2 - z^T upper_y: z follows lower_yy^-1 upper_y.
        z_next = z - aux_learning_rate * (oracles.lower_yy(x, y, z) - oracles.upper_y(x, y))
        h = oracles.upper_x(x, y) - oracles.lower_xy(x, y, z_next if aux_first else z)
        z = np.asarray(z_next, dtype=y.dtype)
        average = np.asarray(momentum * average + (1 - momentum) * h, dtype=x.dtype)
        length = _norm(average)
        stop = monitor.record(upper=oracles.upper(x, y), momentum_norm=length)
        x = np.asarray(x - learning_rate / ((length + TINY) if normalize else 1.0) * average, dtype=x.dtype)
        # The first gradient is formed with z = 0 and may vanish for that reason alone.
        converged = k > 0 and length <= tol
        if converged or stop:
            break
    return BilevelResult(x, y, z, monitor.n_iter, converged, monitor.history())


def _lower_round(
    oracles: _Oracles, x: AnyArray, y: AnyArray, rate: float, steps: int, radius: float | None
) -> AnyArray:
    centre = y
    for _ in range(steps):
        y = y - rate * oracles.lower_y(x, y)
        if radius is not None:
            moved = y - centre
            y = centre + moved * min(1.0, radius / max(_norm(moved), radius))
    return np.asarray(y, dtype=centre.dtype)


def _epochs(oracles: _Oracles, x: AnyArray, y: AnyArray, rate: float, steps: int, first: int) -> AnyArray:
    """Epoch-SGD: each epoch is twice as long, takes half the rate, and starts from the mean of the last one."""
    length, dtype = first, y.dtype
    while steps > 0:
        total, count = np.zeros_like(y), min(length, steps)
        for _ in range(count):
            y = y - rate * oracles.lower_y(x, y)
            total = total + y
        y, steps, length, rate = total / count, steps - count, 2 * length, rate / 2
    return np.asarray(y, dtype=dtype)


def _norm(a: AnyArray) -> float:
    """Norm of an array of any shape, with squares that neither overflow nor vanish."""
    largest = float(np.abs(a).max(initial=0.0))
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.sqrt(np.sum((a / largest) ** 2)))


class _Oracles:
    """The problem's functions with their shapes checked and the generator filled in."""

    def __init__(self, problem: BilevelProblem, x: AnyArray, y: AnyArray, rng: Any) -> None:
        if not isinstance(problem, BilevelProblem):
            _checks.fail_type("problem", "a BilevelProblem", type(problem).__name__)
        self._problem, self._shapes, self._rng = problem, {"x": x.shape, "y": y.shape}, rng

    def _call(self, name: str, like: str, *args: AnyArray) -> AnyArray:
        result = np.asarray(getattr(self._problem, name)(*args, self._rng))
        _checks.shape(result, name, self._shapes[like])
        return result

    def upper(self, x: AnyArray, y: AnyArray) -> float:
        return float(self._problem.upper(x, y, self._rng))

    def upper_x(self, x: AnyArray, y: AnyArray) -> AnyArray:
        return self._call("upper_x", "x", x, y)

    def upper_y(self, x: AnyArray, y: AnyArray) -> AnyArray:
        return self._call("upper_y", "y", x, y)

    def lower_y(self, x: AnyArray, y: AnyArray) -> AnyArray:
        return self._call("lower_y", "y", x, y)

    def lower_yy(self, x: AnyArray, y: AnyArray, v: AnyArray) -> AnyArray:
        return self._call("lower_yy", "y", x, y, v)

    def lower_xy(self, x: AnyArray, y: AnyArray, v: AnyArray) -> AnyArray:
        return self._call("lower_xy", "x", x, y, v)


def implicit_hypergradient(
    problem: BilevelProblem,
    x: Array[F],
    y: Array[F],
    *,
    tol: float = 1e-10,
    max_iter: int | None = None,
    rng: np.random.Generator | None = None,
) -> Array[F]:
    """Return the gradient of the bilevel objective by the implicit function theorem.

    Parameters
    ----------
    problem : BilevelProblem
        With exact oracles.
    x, y : arrays
        ``y`` is taken for the lower solution at ``x``.
    tol : float > 0
        Relative residual of the linear solve.
    max_iter : int >= 1, optional
        Iterations of conjugate gradients; ten for each entry of ``y`` by default.
    rng : numpy.random.Generator, optional
        For oracles that want one.

    Returns
    -------
    array like ``x``

    Raises
    ------
    TypeError, ValueError
        If an oracle returns another shape than it should, a number is outside its range, or the linear solve
        does not reach ``tol``.

    Notes
    -----
    ``upper_x - lower_xy z`` with ``lower_yy z = upper_y``, solved by conjugate gradients.

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (hypergradient).

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     upper=lambda x, y, rng: 0.5 * y @ y, upper_x=lambda x, y, rng: 0 * x, upper_y=lambda x, y, rng: y,
    ...     lower_y=lambda x, y, rng: 2 * y - x, lower_yy=lambda x, y, v, rng: 2 * v,
    ...     lower_xy=lambda x, y, v, rng: -v)
    >>> implicit_hypergradient(problem, np.array([3.0]), np.array([1.5]))
    array([0.75])
    """
    oracles = _Oracles(problem, np.asarray(x), np.asarray(y), rng)
    upper_y = oracles.upper_y(np.asarray(x), np.asarray(y))
    through = lower_solution_pullback(problem, x, y, upper_y, tol=tol, max_iter=max_iter, rng=rng)
    return np.asarray(oracles.upper_x(np.asarray(x), np.asarray(y)) + through)


def lower_solution_pullback(
    problem: BilevelProblem,
    x: Array[F],
    y: Array[F],
    dy: Array[F],
    *,
    tol: float = 1e-10,
    max_iter: int | None = None,
    rng: np.random.Generator | None = None,
) -> Array[F]:
    """Pull a cotangent of the lower solution back to ``x``.

    Parameters
    ----------
    problem, x, y, tol, max_iter, rng
        As in :func:`implicit_hypergradient`.
    dy : array like ``y``
        Cotangent of ``y*(x)``.

    Returns
    -------
    array like ``x``

    Raises
    ------
    TypeError, ValueError
        As in :func:`implicit_hypergradient`.

    Notes
    -----
    ``-lower_xy v`` with ``lower_yy v = dy``: from ``lower_y(x, y*(x)) = 0``, differentiated in ``x``.

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (hypergradient).

    Examples
    --------
    >>> problem = ridge_tuning_problem(np.eye(2), np.array([1.0, 2.0]), np.eye(2), np.zeros(2))
    >>> round(float(lower_solution_pullback(problem, np.array(0.0), np.array([1.0, 2.0]) / 3, np.array([1.0, 0.0]))), 4)
    -0.2222
    """
    x, y = _checks.float_array(x, "x"), _checks.float_array(y, "y")
    dy = _checks.float_array(dy, "dy")
    _checks.same_dtype("x", x, y=y, dy=dy)
    _checks.shape(dy, "dy", y.shape)
    _checks.positive(tol, "tol")
    oracles = _Oracles(problem, x, y, rng)

    def matvec(v: AnyArray) -> AnyArray:
        return np.ravel(oracles.lower_yy(x, y, v.reshape(y.shape)))

    solved = cg(matvec, np.ravel(dy), tol=tol, max_iter=max_iter)
    if not solved.converged:
        _checks.fail("max_iter", f"enough iterations for a relative residual of {tol}", solved.n_iter)
    return np.asarray(-oracles.lower_xy(x, y, solved.x.reshape(y.shape)))


def hyper_cleaning_loss(
    x: Array[F], weight: Array[F], features: Array[F], target: IntArray, *, ridge: float = 1e-3
) -> Array[F]:
    """Return a classifier's loss in which every sample has a weight of its own, to be learned.

    Parameters
    ----------
    x : array (n,)
        Sample ``i`` counts ``sigmoid(x_i)``.
    weight : array (d, classes)
    features : array (n, d), n >= 1
    target : integer array (n,)
        Classes from 0.
    ridge : float >= 0

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a number is outside its range.

    Notes
    -----
    ``mean(sigmoid(x_i) cross_entropy_i) + ridge / 2 |weight|^2``, the lower function of data hyper-cleaning.

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (data hyper-cleaning).

    Examples
    --------
    >>> float(hyper_cleaning_loss(np.zeros(2), np.zeros((1, 2)), np.ones((2, 1)), np.array([0, 1])).round(6))
    0.346574
    """
    return hyper_cleaning_loss_vjp(x, weight, features, target, ridge=ridge)[0]


def hyper_cleaning_loss_vjp(
    x: Array[F], weight: Array[F], features: Array[F], target: IntArray, *, ridge: float = 1e-3
) -> tuple[Array[F], Pullback]:
    """Return :func:`hyper_cleaning_loss` and its pullback ``dloss -> (dx, dweight, dfeatures)``."""
    x, weight, features, target = _cleaning(x, weight, features, target, ridge)
    n = len(features)
    log_probability = log_softmax(features @ weight)
    losses = -log_probability[np.arange(n), target]
    share = expit(x)

    def pullback(dloss: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        scale = np.asarray(dloss, dtype=x.dtype)
        dlogits = scale / n * share[:, None] * _residual(log_probability, target)
        return (
            scale / n * share * (1 - share) * losses,
            features.T @ dlogits + scale * ridge * weight,
            dlogits @ weight.T,
        )

    value = (share * losses).mean() + ridge / 2 * np.sum(weight * weight)
    return np.asarray(value, dtype=x.dtype), pullback


def hyper_cleaning_gradient(
    x: Array[F], weight: Array[F], features: Array[F], target: IntArray, *, ridge: float = 1e-3
) -> Array[F]:
    """Return the gradient of :func:`hyper_cleaning_loss` with respect to the classifier's weight.

    Parameters, errors and references are those of :func:`hyper_cleaning_loss`.

    Returns
    -------
    array (d, classes)

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (data hyper-cleaning).

    Examples
    --------
    >>> hyper_cleaning_gradient(np.zeros(2), np.zeros((1, 2)), np.ones((2, 1)), np.array([0, 0]))
    array([[-0.25,  0.25]])
    """
    return hyper_cleaning_gradient_vjp(x, weight, features, target, ridge=ridge)[0]


def hyper_cleaning_gradient_vjp(
    x: Array[F], weight: Array[F], features: Array[F], target: IntArray, *, ridge: float = 1e-3
) -> tuple[Array[F], Pullback]:
    """Return :func:`hyper_cleaning_gradient` and its pullback ``dgradient -> (dx, dweight, dfeatures)``.

    The first two entries are all that a bilevel method asks of second derivatives: the cross term
    and the Hessian, both times a vector.
    """
    x, weight, features, target = _cleaning(x, weight, features, target, ridge)
    n = len(features)
    log_probability = log_softmax(features @ weight)
    probability, residual = np.exp(log_probability), _residual(log_probability, target)
    share = expit(x)

    def pullback(dgradient: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        # gradient = features^T (share residual) / n + ridge weight, so <dgradient, gradient> is the mean of
        # share <slope, residual> with slope = features dgradient, and a residual moves like its softmax.
        v = np.asarray(dgradient, dtype=x.dtype)
        slope = features @ v
        centred = slope - (probability * slope).sum(axis=1, keepdims=True)
        dlogits = share[:, None] / n * probability * centred
        return (
            share * (1 - share) / n * (slope * residual).sum(axis=1),
            features.T @ dlogits + ridge * v,
            dlogits @ weight.T + share[:, None] / n * residual @ v.T,
        )

    gradient = features.T @ (share[:, None] * residual) / n + ridge * weight
    return np.asarray(gradient, dtype=x.dtype), pullback


def hyper_cleaning_problem(
    features: Array[F],
    target: IntArray,
    validation_features: Array[F],
    validation_target: IntArray,
    *,
    ridge: float = 1e-3,
    batch_size: int | None = None,
) -> BilevelProblem:
    """Return the problem of weighting training samples so that a linear classifier does well on others.

    Parameters
    ----------
    features, target
        Training data (n, d), (n,), some of it mislabelled.
    validation_features, validation_target
        Clean data (m, d), (m,).
    ridge : float > 0
        Makes the lower function strongly convex.
    batch_size : int >= 1, optional
        Samples that each oracle draws for itself; all of them by default.

    Returns
    -------
    BilevelProblem
        With ``x`` (n,) and ``y`` (d, classes); see :func:`hyper_cleaning_loss`.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs or a number is outside its range.

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (data hyper-cleaning).

    Examples
    --------
    >>> problem = hyper_cleaning_problem(np.ones((2, 1)), np.array([0, 1]), np.ones((1, 1)), np.array([0]))
    >>> problem.upper_y(np.zeros(2), np.zeros((1, 2)), None)
    array([[-0.5,  0.5]])
    """
    _checks.positive(ridge, "ridge")
    features = _checks.float_array(features, "features", ndim=2)
    validation_features = _checks.float_array(validation_features, "validation_features", ndim=2)
    _checks.same_dtype("features", features, validation_features=validation_features)
    _checks.shape(validation_features, "validation_features", (len(validation_features), features.shape[1]))
    sizes = len(features), len(validation_features)
    if batch_size is not None:
        batch_size = _checks.whole(batch_size, "batch_size", low=1, high=min(sizes))
    # sigmoid(40) rounds to 1: the validation samples all count alike.
    certain = np.full(sizes[1], 40.0, dtype=features.dtype)

    def rows(n: int, rng: Any) -> Any:
        return slice(None) if batch_size is None else _checks.generator(rng).choice(n, batch_size, replace=False)

    def upper(x: AnyArray, y: AnyArray, rng: Any) -> float:
        return float(hyper_cleaning_loss(certain, y, validation_features, validation_target, ridge=0.0))

    def upper_y(x: AnyArray, y: AnyArray, rng: Any) -> AnyArray:
        some = rows(sizes[1], rng)
        return hyper_cleaning_gradient(certain[some], y, validation_features[some], validation_target[some], ridge=0.0)

    def lower_y(x: AnyArray, y: AnyArray, rng: Any) -> AnyArray:
        some = rows(sizes[0], rng)
        return hyper_cleaning_gradient(x[some], y, features[some], target[some], ridge=ridge)

    def second(x: AnyArray, y: AnyArray, v: AnyArray, rng: Any) -> tuple[Any, tuple[AnyArray, ...]]:
        some = rows(sizes[0], rng)
        return some, hyper_cleaning_gradient_vjp(x[some], y, features[some], target[some], ridge=ridge)[1](v)

    def lower_xy(x: AnyArray, y: AnyArray, v: AnyArray, rng: Any) -> AnyArray:
        some, (dx, _, _) = second(x, y, v, rng)
        full = np.zeros_like(x)
        full[some] = dx
        return full

    return BilevelProblem(
        upper=upper,
        upper_x=lambda x, y, rng: np.zeros_like(x),
        upper_y=upper_y,
        lower_y=lower_y,
        lower_yy=lambda x, y, v, rng: second(x, y, v, rng)[1][1],
        lower_xy=lower_xy,
    )


def ridge_tuning_problem(
    features: Array[F], target: Array[F], validation_features: Array[F], validation_target: Array[F]
) -> BilevelProblem:
    """Return the problem of choosing a ridge penalty by the error on other data.

    Parameters
    ----------
    features, target : arrays (n, d), (n,)
    validation_features, validation_target : arrays (m, d), (m,)

    Returns
    -------
    BilevelProblem
        ``x`` () is the logarithm of the penalty, ``y`` (d,) the regression's weight.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs.

    Notes
    -----
    Lower function ``mean((features y - target)^2) / 2 + exp(x) / 2 |y|^2``, upper function the same mean on
    the validation data without penalty.

    References
    ----------
    Hao, Gong, Liu (2024), arXiv 2401.09587 (hyperparameter optimization).

    Examples
    --------
    >>> problem = ridge_tuning_problem(np.eye(2), np.array([1.0, 2.0]), np.eye(2), np.zeros(2))
    >>> problem.lower_y(np.array(0.0), np.zeros(2), None)
    array([-0.5, -1. ])
    """
    features, target = _regression(features, target, "")
    validation_features, validation_target = _regression(validation_features, validation_target, "validation_")
    _checks.same_dtype("features", features, validation_features=validation_features)
    _checks.shape(validation_features, "validation_features", (len(validation_features), features.shape[1]))

    def error(y: AnyArray) -> AnyArray:
        return np.asarray(validation_features @ y - validation_target)

    return BilevelProblem(
        upper=lambda x, y, rng: float(0.5 * np.mean(error(y) ** 2)),
        upper_x=lambda x, y, rng: np.zeros_like(x),
        upper_y=lambda x, y, rng: error(y) @ validation_features / len(validation_features),
        lower_y=lambda x, y, rng: (features @ y - target) @ features / len(features) + np.exp(x) * y,
        lower_yy=lambda x, y, v, rng: (features @ v) @ features / len(features) + np.exp(x) * v,
        lower_xy=lambda x, y, v, rng: np.asarray(np.exp(x) * (y @ v)),
    )


def _residual(log_probability: AnyArray, target: AnyArray) -> AnyArray:
    """Probabilities less the target's one."""
    residual = np.exp(log_probability)
    residual[np.arange(len(target)), target] -= 1
    return residual


def _cleaning(
    x: Any, weight: Any, features: Any, target: Any, ridge: float
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    x = _checks.float_array(x, "x", ndim=1)
    weight = _checks.float_array(weight, "weight", ndim=2)
    features = _checks.float_array(features, "features", ndim=2)
    _checks.same_dtype("x", x, weight=weight, features=features)
    _checks.not_empty(features, "features", (0,))
    _checks.shape(x, "x", features.shape[:1])
    _checks.shape(weight, "weight", (features.shape[1], weight.shape[1]))
    target = _checks.integer_array(target, "target", ndim=1, low=0, high=weight.shape[1] - 1)
    _checks.shape(target, "target", features.shape[:1])
    _checks.non_negative(ridge, "ridge")
    return x, weight, features, target


def _regression(features: Any, target: Any, prefix: str) -> tuple[AnyArray, AnyArray]:
    features = _checks.float_array(features, f"{prefix}features", ndim=2)
    target = _checks.float_array(target, f"{prefix}target")
    _checks.same_dtype(f"{prefix}features", features, **{f"{prefix}target": target})
    _checks.shape(target, f"{prefix}target", features.shape[:1])
    return features, target
