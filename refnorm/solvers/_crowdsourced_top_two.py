"""Top-two answers in crowdsourcing: who is right, and which wrong answer is nearly right.

P(answer = a) = reliability_i (certainty_j [a = first_j] + (1 - certainty_j) [a = second_j]) + (1 - reliability_i) / K
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax import soft_cross_entropy_vjp
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Recovering Top-Two Answers and Confusion Probability in Multi-Choice Crowdsourcing",
    authors="Jeong, Chung",
    year=2023,
    arxiv="2301.00006",
    functions=(
        "DawidSkeneResult",
        "TopTwoResult",
        "simulate_top_two",
        "top_two_spectral",
        "top_two_likelihood",
        "top_two",
        "majority_top_two",
        "dawid_skene",
        "soft_label_cross_entropy",
    ),
    chapter="solvers/crowdsourced_top_two",
)

FEWEST_CHOICES = 3
"""With two choices every answer is one of the top two."""

RELIABILITY_LIMITS = (0.001, 0.999)
CERTAINTY_LIMITS = (0.501, 0.999)
"""Estimates are clipped: a reliability of 1 would have infinite weight, and at a certainty of 1/2 the two
answers could not be told apart. The limits are those of the authors' code."""

CERTAINTY_WIDTH = 1e-10
"""Width of the interval at which the bisection for a certainty stops."""

SMOOTHING = 0.01
"""Count that Dawid and Skene's method gives to every answer in advance, so that none is impossible."""


@dataclass(frozen=True)
class TopTwoResult:
    """Estimates of :func:`top_two_spectral` and :func:`top_two`.

    Parameters
    ----------
    first, second : integer arrays (tasks,)
        The answer held to be true and the one most easily taken for it, from 1 to K.
    reliability : array (workers,)
        Probability that a worker knows the task.
    certainty : array (tasks,)
        Probability with which a worker who knows it prefers ``first`` to ``second``.
    scores : array (tasks, K)
        Spectral score of every answer, about ``|reliability| (P(answer | known) - 1/K)``.
    answered : boolean array (tasks,)
        False where nobody answered; the answers are then 1 and 2, and mean nothing.
    """

    first: IntArray
    second: IntArray
    reliability: Array[np.float64]
    certainty: Array[np.float64]
    scores: Array[np.float64]
    answered: Array[np.bool_]


def simulate_top_two(
    rng: np.random.Generator,
    n_workers: int,
    n_tasks: int,
    n_choices: int,
    reliability: Array[F],
    certainty: Array[F],
    rate: float,
) -> tuple[IntArray, IntArray, IntArray]:
    """Draw answers from the model.

    Parameters
    ----------
    rng : numpy.random.Generator
    n_workers, n_tasks : int >= 1
    n_choices : int >= 3
        Number K of choices of every task.
    reliability : array (n_workers,), in [0, 1]
    certainty : array (n_tasks,), in [1/2, 1]
    rate : float in [0, 1]
        Probability that a worker is asked about a task.

    Returns
    -------
    answers : integer array (n_workers, n_tasks)
        From 1 to K, and 0 where the worker was not asked.
    first, second : integer arrays (n_tasks,)
        True and most confusing answer, drawn uniformly.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range or a shape does not fit.

    References
    ----------
    Jeong, Chung (2023), arXiv 2301.00006 (the model).

    Examples
    --------
    >>> answers, first, second = simulate_top_two(
    ...     np.random.default_rng(0), 4, 5, 3, np.ones(4), np.ones(5), rate=1.0
    ... )
    >>> bool((answers == first).all())
    True
    """
    rng = _checks.generator(rng)
    n_workers = _checks.whole(n_workers, "n_workers", low=1)
    n_tasks = _checks.whole(n_tasks, "n_tasks", low=1)
    n_choices = _checks.whole(n_choices, "n_choices", low=FEWEST_CHOICES)
    knows = _numbers(reliability, "reliability", n_workers, 0.0, 1.0)
    prefers = _numbers(certainty, "certainty", n_tasks, 0.5, 1.0)
    _checks.in_range(rate, "rate", 0.0, 1.0)
    first = rng.integers(1, n_choices + 1, n_tasks)
    second = 1 + (first - 1 + rng.integers(1, n_choices, n_tasks)) % n_choices
    shape = (n_workers, n_tasks)
    known = np.where(rng.random(shape) < prefers, first, second)
    said = np.where(rng.random(shape) < knows[:, None], known, rng.integers(1, n_choices + 1, shape))
    return np.where(rng.random(shape) < rate, said, 0), first, second


def top_two_spectral(answers: IntArray, n_choices: int) -> TopTwoResult:
    """Estimate the top two answers and all probabilities from singular vectors.

    Parameters
    ----------
    answers : integer array (workers, tasks), at least 2 workers
        From 1 to K; 0 where there is no answer.
    n_choices : int >= 3
        Number K of choices.

    Returns
    -------
    TopTwoResult

    Raises
    ------
    TypeError, ValueError
        If the answers are no integers from 0 to K, or there is none.

    Notes
    -----
    Answers up to k count as -1, answers above k as +1, missing ones as 0. After subtracting
    ``rate (K - 2k) / K`` everywhere, the mean of this matrix has rank one. Its first singular vector weighs the
    workers, and the differences of the weighted answers in k are the scores. Ties go to the lower answer.

    References
    ----------
    Jeong, Chung (2023), arXiv 2301.00006 (stage 1).

    Examples
    --------
    >>> answers = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 2], [3, 1, 3]])
    >>> result = top_two_spectral(answers, 3)
    >>> result.first, result.second
    (array([1, 2, 3]), array([3, 1, 2]))
    """
    answers, n_choices = _check_answers(answers, n_choices)
    tasks = answers.shape[1]
    asked = answers > 0
    rate = asked.mean()
    shifted = []
    for k in range(1, n_choices):
        sign = np.where(answers > k, 1.0, -1.0) * asked
        shifted.append(sign - rate * (n_choices - 2 * k) / n_choices)
    # The mean of every one is -2 rate reliability r^T: the workers' direction is the same, only r differs.
    direction = np.clip(np.mean([_leading_left(matrix) for matrix in shifted], axis=0), 0.0, 1.0)
    weighted = np.stack([direction @ matrix / (2 * rate) for matrix in shifted])
    # weighted is about -|p| (P(answer <= k | known) - k / K); its differences are those of single answers.
    edges = np.zeros((1, tasks))
    scores = -np.diff(np.concatenate([edges, weighted, edges]), axis=0).T
    answered = np.asarray(asked.any(axis=0))
    scores[~answered] = 0.0  # all equal: the lowest two
    first, second = _largest_two(scores)
    reliability = _reliability(answers, first, second, n_choices)
    top = np.take_along_axis(scores, first[:, None] - 1, axis=1)[:, 0]
    certainty = np.clip(1 / n_choices + top / np.linalg.norm(reliability), *CERTAINTY_LIMITS)
    return TopTwoResult(first, second, reliability, certainty, scores, answered)


def top_two_likelihood(
    answers: IntArray, n_choices: int, reliability: Array[F], certainty: Array[F]
) -> tuple[IntArray, IntArray, Array[np.float64]]:
    """Find the most likely pair of every task, for given probabilities.

    Parameters
    ----------
    answers, n_choices
        As in :func:`top_two_spectral`.
    reliability : array (workers,), in [0, 1)
    certainty : array (tasks,), in [1/2, 1]

    Returns
    -------
    first, second : integer arrays (tasks,)
    log_likelihood : array (tasks,)
        Of the pair, relative to workers who all guess.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range or a shape does not fit.

    Notes
    -----
    With the odds ``o_i = p_i / (1 - p_i)``, worker i's answer adds ``log(1 + K q o_i)`` to its being ``first``
    and ``log(1 + K (1 - q) o_i)`` to its being ``second``. Ties go to the lower pair.

    References
    ----------
    Jeong, Chung (2023), arXiv 2301.00006 (stage 2).

    Examples
    --------
    >>> answers = np.array([[2], [2], [3]])
    >>> first, second, ratio = top_two_likelihood(answers, 3, np.full(3, 0.5), np.array([0.75]))
    >>> first, second, ratio.round(5)
    (array([2]), array([3]), array([2.91693]))
    """
    answers, n_choices = _check_answers(answers, n_choices)
    workers, tasks = answers.shape
    knows = _numbers(reliability, "reliability", workers, 0.0, 1.0, closed="left")
    prefers = _numbers(certainty, "certainty", tasks, 0.5, 1.0)
    worker, task = np.nonzero(answers)
    said = answers[worker, task]
    strength = n_choices * (knows / (1 - knows))[worker]

    def total(chance: AnyArray) -> AnyArray:
        place = task * n_choices + said - 1
        evidence = np.bincount(place, np.log1p(strength * chance[task]), minlength=tasks * n_choices)
        return evidence.reshape(tasks, n_choices)

    pairs = total(prefers)[:, :, None] + total(1 - prefers)[:, None, :]
    pairs[:, np.arange(n_choices), np.arange(n_choices)] = -np.inf
    best = pairs.reshape(tasks, -1).argmax(axis=1)
    first, second = np.divmod(best, n_choices)
    return first + 1, second + 1, pairs.reshape(tasks, -1).max(axis=1)


def top_two(
    answers: IntArray,
    n_choices: int,
    *,
    split: float | None = None,
    refine: bool = True,
    rng: np.random.Generator | None = None,
) -> TopTwoResult:
    """Estimate the top two answers in two stages: spectral, then by likelihood.

    Parameters
    ----------
    answers, n_choices
        As in :func:`top_two_spectral`.
    split : float in (0, 1), optional
        Estimate the probabilities from a random part of the answers of that size and decide on the rest, as
        in the paper's analysis. All answers serve for both if left out.
    refine : bool
        Replace the spectral certainty by the most likely one for the final pair.
    rng : numpy.random.Generator, optional
        For ``split``.

    Returns
    -------
    TopTwoResult
        ``scores`` and ``reliability`` are those of the first stage.

    Raises
    ------
    TypeError, ValueError
        As :func:`top_two_spectral`; or if there is a ``split`` without ``rng``.

    References
    ----------
    Jeong, Chung (2023), arXiv 2301.00006.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> answers, first, second = simulate_top_two(rng, 30, 100, 4, np.full(30, 0.7), np.full(100, 0.8), rate=0.8)
    >>> result = top_two(answers, 4)
    >>> bool((result.first == first).mean() > 0.9), bool(abs(result.certainty.mean() - 0.8) < 0.05)
    (True, True)
    """
    answers, n_choices = _check_answers(answers, n_choices)
    estimate_from, decide_on = answers, answers
    if split is not None:
        _checks.in_range(split, "split", 0.0, 1.0, closed="neither")
        chosen = _checks.generator(rng).random(answers.shape) < split
        estimate_from, decide_on = np.where(chosen, answers, 0), np.where(chosen, 0, answers)
    found = top_two_spectral(estimate_from, n_choices)
    if not decide_on.any():
        _checks.fail("split", "some answers on both sides", split)
    first, second, _ = top_two_likelihood(decide_on, n_choices, found.reliability, found.certainty)
    found = replace(found, first=first, second=second, answered=np.asarray(decide_on.any(axis=0)))
    if not refine:
        return found
    return replace(found, certainty=_most_likely_certainty(decide_on, n_choices, found))


def majority_top_two(answers: IntArray, n_choices: int) -> tuple[IntArray, IntArray]:
    """Return the two most frequent answers of every task.

    Parameters
    ----------
    answers, n_choices
        As in :func:`top_two_spectral`.

    Returns
    -------
    first, second : integer arrays (tasks,)

    Raises
    ------
    TypeError, ValueError
        As :func:`top_two_spectral`.

    Examples
    --------
    >>> majority_top_two(np.array([[1, 2], [3, 2], [3, 1], [3, 0]]), 3)
    (array([3, 2]), array([1, 1]))
    """
    answers, n_choices = _check_answers(answers, n_choices)
    return _largest_two(_counts(answers, n_choices))


@dataclass(frozen=True)
class DawidSkeneResult:
    """Outcome of :func:`dawid_skene`.

    Parameters
    ----------
    posterior : array (tasks, K)
        Probability of every answer being the true one.
    confusion : array (workers, K, K)
        Probability that a worker says the second index when the first is true.
    prior : array (K,)
    first, second : integer arrays (tasks,)
        The two most probable answers.
    n_iter, converged, history
        Iterations; whether the last change of the posterior was below the tolerance; log-likelihood and change
        of every iteration.
    """

    posterior: Array[np.float64]
    confusion: Array[np.float64]
    prior: Array[np.float64]
    first: IntArray
    second: IntArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def dawid_skene(
    answers: IntArray, n_choices: int, *, max_iter: int = 50, tol: float = 1e-6, callback: Callback | None = None
) -> DawidSkeneResult:
    """Estimate true answers and every worker's confusion matrix by expectation maximization.

    Parameters
    ----------
    answers, n_choices
        As in :func:`top_two_spectral`.
    max_iter : int >= 1
    tol : float >= 0
        Largest change of a probability at which the iteration stops.
    callback : callable, optional
        Told the log-likelihood after every iteration; a true result ends it.

    Returns
    -------
    DawidSkeneResult

    Raises
    ------
    TypeError, ValueError
        As :func:`top_two_spectral`, or if an option is out of range.

    Notes
    -----
    It begins with the shares of votes. Every answer counts 0.01 in advance. A baseline that knows nothing of
    confusing answers: each worker has ``K (K - 1)`` parameters of their own.

    References
    ----------
    Dawid, Skene (1979), Maximum likelihood estimation of observer error-rates using the EM algorithm.

    Examples
    --------
    >>> result = dawid_skene(np.array([[1, 2, 3, 1], [1, 2, 3, 2], [2, 2, 3, 1]]), 3)
    >>> result.first, result.converged
    (array([1, 2, 3, 1]), True)
    """
    answers, n_choices = _check_answers(answers, n_choices)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.non_negative(tol, "tol")
    workers, tasks = answers.shape
    # One row a task, one column a worker and answer: both steps of EM are products with this matrix.
    said = (answers.T[:, :, None] == np.arange(1, n_choices + 1)).reshape(tasks, -1).astype(np.float64)
    counts = _counts(answers, n_choices) + np.finfo(np.float64).tiny
    posterior = counts / counts.sum(axis=1, keepdims=True)
    monitor = Monitor("dawid_skene", callback=callback, hint="check the answers")
    converged = False
    for _ in range(max_iter):
        prior = posterior.mean(axis=0)
        table = (posterior.T @ said).reshape(n_choices, workers, n_choices) + SMOOTHING
        confusion = table / table.sum(axis=2, keepdims=True)
        with np.errstate(divide="ignore"):
            joint = np.log(prior) + said @ np.log(confusion).reshape(n_choices, -1).T
        largest = joint.max(axis=1, keepdims=True)
        shares = np.exp(joint - largest)
        total = shares.sum(axis=1, keepdims=True)
        previous, posterior = posterior, shares / total
        change = float(np.abs(posterior - previous).max())
        converged = change <= tol
        if monitor.record(log_likelihood=float((largest + np.log(total)).sum()), change=change) or converged:
            break
    first, second = _largest_two(posterior)
    return DawidSkeneResult(
        posterior,
        confusion.transpose(1, 0, 2),
        prior,
        first,
        second,
        monitor.n_iter,
        converged,
        monitor.history(),
    )


def soft_label_cross_entropy(
    logits: Array[F], first: IntArray, second: IntArray, certainty: Array[F], *, reduction: str = "mean"
) -> Array[F]:
    """Cross-entropy of a classifier with the label ``certainty`` at one answer and the rest at another.

    Parameters
    ----------
    logits : array (tasks, K)
    first, second : integer arrays (tasks,)
        Answers from 1 to K.
    certainty : array (tasks,)
        Weight of ``first``; ``second`` has ``1 - certainty``.
    reduction : {"mean", "sum", "none"}
        As in :func:`refnorm.softmax.soft_cross_entropy`.

    Returns
    -------
    array, () or (tasks,), dtype of ``logits``

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit or an answer is out of range.

    Notes
    -----
    A task's loss is ``-q log y_first - (1 - q) log y_second`` with ``y = softmax(logits)``.

    Examples
    --------
    >>> loss = soft_label_cross_entropy(np.zeros((1, 4)), np.array([1]), np.array([3]), np.array([0.7]))
    >>> float(loss.round(6))
    1.386294
    """
    return soft_label_cross_entropy_vjp(logits, first, second, certainty, reduction=reduction)[0]


def soft_label_cross_entropy_vjp(
    logits: Array[F], first: IntArray, second: IntArray, certainty: Array[F], *, reduction: str = "mean"
) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_label_cross_entropy` and its pullback ``dloss -> (dlogits, dcertainty)``."""
    logits = _checks.float_array(logits, "logits", ndim=2)
    tasks, choices = logits.shape
    first = _checks.integer_array(first, "first", ndim=1, low=1, high=choices)
    second = _checks.integer_array(second, "second", ndim=1, low=1, high=choices)
    certainty = _checks.float_array(certainty, "certainty")
    _checks.same_dtype("logits", logits, certainty=certainty)
    for name, array in (("first", first), ("second", second), ("certainty", certainty)):
        _checks.shape(array, name, (tasks,))
    rows = np.arange(tasks)
    target = np.zeros(logits.shape, dtype=np.result_type(logits, certainty))
    target[rows, first - 1] += certainty
    target[rows, second - 1] += 1 - certainty
    loss, back = soft_cross_entropy_vjp(logits.astype(target.dtype, copy=False), target, reduction=reduction)

    def pullback(dloss: Any) -> tuple[AnyArray, AnyArray]:
        dlogits, dtarget = back(dloss)
        # The certainty enters the target at the first answer with +1 and at the second with -1.
        dcertainty = dtarget[rows, first - 1] - dtarget[rows, second - 1]
        return dlogits.astype(logits.dtype), dcertainty.astype(certainty.dtype)

    return loss, pullback


def _check_answers(answers: IntArray, n_choices: int) -> tuple[IntArray, int]:
    n_choices = _checks.whole(n_choices, "n_choices", low=FEWEST_CHOICES)
    answers = _checks.integer_array(answers, "answers", ndim=2, low=0, high=n_choices)
    if answers.shape[0] < 2 or answers.shape[1] < 1:
        _checks.fail("answers", "at least 2 workers and 1 task", f"shape {answers.shape}")
    if not answers.any():
        _checks.fail("answers", "at least one answer", "only 0")
    return answers, n_choices


def _numbers(values: Any, name: str, size: int, low: float, high: float, closed: str = "both") -> Array[np.float64]:
    array = _checks.float_array(values, name).astype(np.float64)
    _checks.shape(array, name, (size,))
    for value in array[~((array >= low) & (array < high if closed == "left" else array <= high))][:1]:
        _checks.in_range(float(value), name, low, high, closed=closed)
    return array


def _leading_left(matrix: AnyArray) -> AnyArray:
    """Return the first left singular vector, with the sign that makes its sum positive."""
    rows, columns = matrix.shape
    # The smaller Gram matrix: its squared singular values are far apart where the signal is strong.
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1])
    vector = vectors[:, 0] if rows <= columns else matrix @ vectors[:, 0]
    size = np.linalg.norm(vector)
    vector = vector / size if size > 0 else np.full(rows, 1 / np.sqrt(rows))
    total = vector.sum()
    if total == 0:
        total = np.linalg.norm(np.maximum(vector, 0)) - np.linalg.norm(np.minimum(vector, 0))
    return np.asarray(-vector if total < 0 else vector)


def _largest_two(scores: AnyArray) -> tuple[IntArray, IntArray]:
    order = np.argsort(-scores, axis=1, kind="stable")
    return order[:, 0] + 1, order[:, 1] + 1


def _counts(answers: IntArray, n_choices: int) -> AnyArray:
    return np.asarray((answers[:, :, None] == np.arange(1, n_choices + 1)).sum(axis=0))


def _reliability(answers: IntArray, first: IntArray, second: IntArray, n_choices: int) -> Array[np.float64]:
    # A worker who guesses hits the pair with probability 2 / K, one who knows always does.
    hits = ((answers == first) | (answers == second)).sum(axis=1)
    asked = (answers > 0).sum(axis=1)
    share = np.where(asked > 0, hits / np.maximum(asked, 1), 0.0)
    guess = 2 / n_choices
    return np.asarray(np.clip((share - guess) / (1 - guess), *RELIABILITY_LIMITS))


def _most_likely_certainty(answers: IntArray, n_choices: int, found: TopTwoResult) -> Array[np.float64]:
    """Maximize each task's concave log-likelihood over [1/2, 1] by bisecting its decreasing slope."""
    tasks = answers.shape[1]
    worker, task = np.nonzero(answers)
    said = answers[worker, task]
    strength = n_choices * (found.reliability / (1 - found.reliability))[worker]
    for_first, for_second = said == found.first[task], said == found.second[task]
    low, high = np.full(tasks, 0.5), np.ones(tasks)
    while (high - low).max() > CERTAINTY_WIDTH:
        middle = (low + high) / 2
        q = middle[task]
        slope = for_first * strength / (1 + strength * q) - for_second * strength / (1 + strength * (1 - q))
        rising = np.bincount(task, slope, minlength=tasks) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    return np.asarray((low + high) / 2)
