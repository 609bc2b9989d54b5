"""Logistic regression by gradient descent with large steps, the perceptrons, and the normalized method.

weight = weight + learning_rate sum_i p_i target_i x_i,    p = share_i / sum(share),    share = sigmoid(-margin)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax import softmax
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
    authors="Tyurin",
    year=2024,
    arxiv="2412.08424",
    functions=(
        "SeparationResult",
        "batch_perceptron",
        "batch_perceptron_bound",
        "logistic_gd",
        "logistic_gradient",
        "logistic_loss",
        "normalized_direction",
        "normalized_gd_bound",
        "perceptron",
        "perceptron_bound",
    ),
    chapter="solvers/normalized_logistic_gd",
)

SMALLEST_MEAN_MARGIN = 2 / math.e
"""With ``c`` at least this, ``1 / e <= c / 2``: the last step of the proof of :func:`normalized_gd_bound`."""

OVERFLOW = 1e250
"""A large step makes the loss large on purpose; only a loss that has left the numbers is divergence."""


def logistic_loss(weight: Array[F], x: Array[F], target: IntArray) -> Array[F]:
    """Return the mean logistic loss of a linear classifier through the origin.

    Parameters
    ----------
    weight : array (d,)
    x : array (n, d), n >= 1
        Samples; finite.
    target : integer array (n,)
        Classes -1 and 1.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, there is no sample, ``x`` is not finite or a class is neither -1 nor 1.

    Notes
    -----
    ``mean log(1 + exp(-margin))`` with ``margin = target x weight``, without overflow on either side.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424 (logistic regression).

    Examples
    --------
    >>> float(logistic_loss(np.zeros(2), np.eye(2), np.array([1, -1])).round(6))
    0.693147
    """
    return logistic_loss_vjp(weight, x, target)[0]


def logistic_loss_vjp(weight: Array[F], x: Array[F], target: IntArray) -> tuple[Array[F], Pullback]:
    """Return :func:`logistic_loss` and its pullback ``dloss -> (dweight, dx)``.

    Parameters, errors and references are those of :func:`logistic_loss`.
    """
    weight, x, sign = _problem(weight, x, target)
    margin = sign * (x @ weight)

    def pullback(dloss: AnyArray) -> tuple[AnyArray, AnyArray]:
        # d log(1 + e^-m) / dm = -share: what a sample still pulls, from 1 (hopelessly wrong) to 0.
        dscore = -dloss / len(x) * sign * expit(-margin)
        return np.asarray(dscore @ x, dtype=x.dtype), np.asarray(np.outer(dscore, weight), dtype=x.dtype)

    return np.asarray(np.logaddexp(0, -margin).mean(), dtype=x.dtype), pullback


def logistic_gradient(weight: Array[F], x: Array[F], target: IntArray) -> Array[F]:
    """Return the gradient of :func:`logistic_loss` with respect to the weight.

    Parameters and errors are those of :func:`logistic_loss`.

    Returns
    -------
    array (d,)

    Notes
    -----
    ``-mean share_i target_i x_i`` with ``share = sigmoid(-margin)``.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424 (LR+GD).

    Examples
    --------
    >>> logistic_gradient(np.zeros(2), np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1]))
    array([ 0.  , -0.25])
    """
    return logistic_gradient_vjp(weight, x, target)[0]


def logistic_gradient_vjp(weight: Array[F], x: Array[F], target: IntArray) -> tuple[Array[F], Pullback]:
    """Return :func:`logistic_gradient` and its pullback ``dgradient -> (dweight, dx)``.

    The first entry is the product of the Hessian with ``dgradient``.
    """
    weight, x, sign = _problem(weight, x, target)
    n = len(x)
    share = expit(-sign * (x @ weight))

    def pullback(dgradient: AnyArray) -> tuple[AnyArray, AnyArray]:
        # dshare = -share (1 - share) dmargin, and dmargin = sign (dx weight + x dweight); sign^2 = 1.
        dscore = share * (1 - share) * (x @ dgradient) / n
        dx = np.outer(dscore, weight) - np.outer(sign * share / n, dgradient)
        return np.asarray(dscore @ x, dtype=x.dtype), np.asarray(dx, dtype=x.dtype)

    return np.asarray(-(sign * share) @ x / n, dtype=x.dtype), pullback


def normalized_direction(weight: Array[F], x: Array[F], target: IntArray) -> Array[F]:
    """Return the normalized method's step: the negative gradient divided by the mean share.

    Parameters and errors are those of :func:`logistic_loss`.

    Returns
    -------
    array (d,)
        A weighted mean of the signed samples ``target_i x_i``.

    Notes
    -----
    The weights are ``softmax(log share)``, which have no 0 to divide by when all shares underflow.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424 (Normalized LR+GD).

    Examples
    --------
    >>> normalized_direction(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1])).round(6)
    array([0.300489, 0.349755])
    """
    return normalized_direction_vjp(weight, x, target)[0]


def normalized_direction_vjp(weight: Array[F], x: Array[F], target: IntArray) -> tuple[Array[F], Pullback]:
    """Return :func:`normalized_direction` and its pullback ``ddirection -> (dweight, dx)``."""
    weight, x, sign = _problem(weight, x, target)
    margin = sign * (x @ weight)
    portion = softmax(-np.logaddexp(0, margin))

    def pullback(ddirection: AnyArray) -> tuple[AnyArray, AnyArray]:
        # A softmax moves by portion (dlogit - mean dlogit), and dlogit = d log share = -sigmoid(m) dm.
        dportion = sign * (x @ ddirection)
        dscore = -sign * expit(margin) * portion * (dportion - portion @ dportion)
        dx = np.outer(dscore, weight) + np.outer(sign * portion, ddirection)
        return np.asarray(dscore @ x, dtype=x.dtype), np.asarray(dx, dtype=x.dtype)

    return np.asarray((sign * portion) @ x, dtype=x.dtype), pullback


@dataclass(frozen=True)
class SeparationResult:
    """Outcome of a search for a separating hyperplane through the origin.

    Parameters
    ----------
    weight
        The last normal vector (d,).
    n_iter
        Updates made.
    converged
        Whether every margin is positive.
    history
        After each update: the ``loss`` (of :func:`logistic_gd` only) and the number of ``errors``, samples
        whose margin is not positive. Empty if no update was needed.
    """

    weight: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def logistic_gd(
    x: Array[F],
    target: IntArray,
    *,
    learning_rate: float,
    max_iter: int,
    normalize: bool = False,
    weight0: Array[F] | None = None,
    callback: Callback | None = None,
) -> SeparationResult:
    """Run gradient descent on the logistic loss until all samples are classified.

    Parameters
    ----------
    x, target
        As in :func:`logistic_loss`.
    learning_rate : float > 0
        Any size will do on separable data.
    max_iter : int >= 1
    normalize : bool
        Step along :func:`normalized_direction` instead of the negative gradient.
    weight0 : array (d,), optional
        Start; 0 by default.
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    SeparationResult

    Raises
    ------
    TypeError, ValueError
        As in :func:`logistic_loss`, or if a number is outside its range.
    Diverged
        If the loss is not a number, or grows beyond 10^250.

    Notes
    -----
    A margin of exactly 0 counts as an error. On data that no hyperplane separates the run ends with
    ``max_iter`` and ``converged=False``.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424 (LR+GD and Normalized LR+GD).

    Examples
    --------
    >>> x, target = np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1])
    >>> result = logistic_gd(x, target, learning_rate=1.0, normalize=True, max_iter=100)
    >>> result.converged, result.n_iter
    (True, 2)
    """
    _checks.positive(learning_rate, "learning_rate")
    step = normalized_direction if normalize else lambda *problem: -logistic_gradient(*problem)

    def update(weight: AnyArray) -> AnyArray:
        return np.asarray(weight + learning_rate * step(weight, x, target))

    return _until_separated("logistic_gd", update, x, target, max_iter, weight0, callback, with_loss=True)


def batch_perceptron(
    x: Array[F], target: IntArray, *, max_iter: int, callback: Callback | None = None
) -> SeparationResult:
    """Run the batch perceptron: every wrong sample pulls with weight 1, every tie with 1/2.

    Parameters
    ----------
    x, target
        As in :func:`logistic_loss`.
    max_iter : int >= 1
    callback
        See :class:`refnorm.solvers.Progress`.

    Returns
    -------
    SeparationResult

    Raises
    ------
    TypeError, ValueError
        As in :func:`logistic_loss`, or if a number is outside its range.

    Notes
    -----
    ``weight += mean(pull_i target_i x_i)`` from 0. It is the limit of ``weight / learning_rate`` of
    :func:`logistic_gd` for large learning rates; its own learning rate would only scale it.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424 (batch perceptron).

    Examples
    --------
    >>> result = batch_perceptron(np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1]), max_iter=100)
    >>> result.weight, result.n_iter
    (array([0.25, 0.5 ]), 4)
    """
    signed = _signed(x, target)

    def update(weight: AnyArray) -> AnyArray:
        pull = np.heaviside(-(signed @ weight), 0.5).astype(signed.dtype)
        return np.asarray(weight + pull @ signed / len(signed))

    return _until_separated("batch_perceptron", update, x, target, max_iter, None, callback)


def perceptron(x: Array[F], target: IntArray, *, max_epochs: int, callback: Callback | None = None) -> SeparationResult:
    """Run the classical perceptron: go round the samples, add each one that is not on its side.

    Parameters
    ----------
    x, target
        As in :func:`logistic_loss`.
    max_epochs : int >= 1
        Rounds.
    callback
        Called after every update, see :class:`refnorm.solvers.Progress`.

    Returns
    -------
    SeparationResult
        ``n_iter`` counts updates, that is mistakes.

    Raises
    ------
    TypeError, ValueError
        As in :func:`logistic_loss`, or if a number is outside its range.

    References
    ----------
    Novikoff (1962), Symposium on the Mathematical Theory of Automata 12, 615-622.

    Examples
    --------
    >>> result = perceptron(np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1]), max_epochs=10)
    >>> result.weight, result.n_iter
    (array([1., 2.]), 5)
    """
    signed = _signed(x, target)
    max_epochs = _checks.whole(max_epochs, "max_epochs", low=1)
    monitor = Monitor("perceptron", callback=callback)
    weight = np.zeros(signed.shape[1], signed.dtype)
    epoch, position = 0, 0
    wrong = np.flatnonzero(~(signed @ weight > 0))
    while wrong.size:
        # The samples up to the next mistake change nothing, so all margins are taken at once.
        ahead = wrong[wrong >= position]
        if not ahead.size:
            epoch, position = epoch + 1, 0
            if epoch == max_epochs:
                break
            continue
        weight = weight + signed[ahead[0]]
        position = int(ahead[0]) + 1
        wrong = np.flatnonzero(~(signed @ weight > 0))
        if monitor.record(errors=len(wrong)):
            break
    return SeparationResult(weight, monitor.n_iter, not wrong.size, monitor.history())


def perceptron_bound(radius: float, margin: float) -> float:
    """Return the largest number of mistakes of :func:`perceptron`.

    Parameters
    ----------
    radius : float > 0
        Largest norm of a sample.
    margin : float > 0
        Largest distance of the nearest sample from a separating hyperplane through the origin.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a number is outside its range.

    Notes
    -----
    ``(radius / margin)^2``.

    References
    ----------
    Novikoff (1962), Symposium on the Mathematical Theory of Automata 12, 615-622.

    Examples
    --------
    >>> perceptron_bound(1.0, 0.25)
    16.0
    """
    _checks.positive(radius, "radius")
    _checks.positive(margin, "margin")
    return (radius / margin) ** 2


def batch_perceptron_bound(radius: float, margin: float, n: int) -> float:
    """Return a bound on the number of updates of :func:`batch_perceptron`.

    Parameters
    ----------
    radius, margin
        As in :func:`perceptron_bound`.
    n : int >= 1
        Number of samples.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    ``2 n (radius / margin)^2``. The factor ``n`` is real: a single wrong sample pulls with weight ``1 / n``.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424, for the rate; the constant is derived in the chapter.

    Examples
    --------
    >>> batch_perceptron_bound(1.0, 0.25, 10)
    320.0
    """
    return 2 * _checks.whole(n, "n", low=1) * perceptron_bound(radius, margin)


def normalized_gd_bound(radius: float, margin: float, n: int, learning_rate: float) -> float:
    """Return a bound on the number of updates of :func:`logistic_gd` with ``normalize=True``.

    Parameters
    ----------
    radius, margin, n
        As in :func:`batch_perceptron_bound`.
    learning_rate : float > 0

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    ``(radius^2 + 2 max(log n, 2 / e) / learning_rate) / margin^2``: from
    ``learning_rate = log(n) / radius^2`` on, three times the perceptron's.

    References
    ----------
    Tyurin (2024), arXiv 2412.08424, for the rate; the constant is derived in the chapter.

    Examples
    --------
    >>> round(normalized_gd_bound(1.0, 0.25, 10, 100.0), 3)
    16.737
    """
    bound = perceptron_bound(radius, margin)
    _checks.positive(learning_rate, "learning_rate")
    mean_margin = max(math.log(_checks.whole(n, "n", low=1)), SMALLEST_MEAN_MARGIN)
    return bound + 2 * mean_margin / learning_rate / margin**2


def _problem(weight: Any, x: Any, target: Any) -> tuple[AnyArray, AnyArray, AnyArray]:
    x = _checks.float_array(x, "x", ndim=2)
    _checks.not_empty(x, "x", (0,))
    _checks.finite(x, "x")
    weight = _checks.float_array(weight, "weight")
    _checks.same_dtype("x", x, weight=weight)
    _checks.shape(weight, "weight", x.shape[1:])
    target = _checks.integer_array(target, "target", ndim=1)
    _checks.shape(target, "target", x.shape[:1])
    wrong = (target != 1) & (target != -1)
    if wrong.any():
        _checks.fail("target", "classes -1 and 1", target[wrong][0])
    return weight, x, target.astype(x.dtype)


def _signed(x: Any, target: Any) -> AnyArray:
    """Return the samples times their class: a vector that has each on its positive side separates."""
    x = _checks.float_array(x, "x", ndim=2)
    _, x, sign = _problem(np.zeros(x.shape[1], x.dtype), x, target)
    return np.asarray(sign[:, None] * x)


def _until_separated(
    name: str,
    update: Callable[[AnyArray], AnyArray],
    x: Any,
    target: Any,
    max_iter: int,
    weight0: Any,
    callback: Callback | None,
    *,
    with_loss: bool = False,
) -> SeparationResult:
    signed = _signed(x, target)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    weight = np.zeros(signed.shape[1], signed.dtype) if weight0 is None else _checks.float_array(weight0, "weight0")
    _checks.shape(weight, "weight0", signed.shape[1:])
    monitor = Monitor(name, callback=callback, growth=OVERFLOW)
    converged = bool((signed @ weight > 0).all())
    while not converged and monitor.n_iter < max_iter:
        with np.errstate(over="ignore", invalid="ignore"):
            weight = update(weight)
            margin = signed @ weight
            loss = {"loss": float(np.logaddexp(0, -margin).mean())} if with_loss else {}
        errors = int((~(margin > 0)).sum())
        converged = errors == 0
        if monitor.record(**loss, errors=errors):
            break
    return SeparationResult(weight, monitor.n_iter, converged, monitor.history())
