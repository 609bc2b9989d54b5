"""Sparse linear regression under local differential privacy: every user sends one noisy message.

non-interactive:  x x^T + noise  and  x y + noise;   theta = soft_threshold(covariance^-1 moment)
interactive:      groups of users send noisy gradients;   theta <- keep_k(theta - step gradient)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.special
from scipy.optimize import brentq

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.solvers._projections import soft_threshold_vjp

METHOD = Method(
    title="Improved Analysis of Sparse Linear Regression in Local Differential Privacy Model",
    authors="Zhu et al.",
    year=2023,
    arxiv="2310.07367",
    functions=(
        "SparseResult",
        "ball_randomizer",
        "clip_rows",
        "gaussian_sigma",
        "ldp_iht",
        "ldp_lower_bound",
        "nldp_estimate",
        "nldp_messages",
        "nldp_public",
        "randomizer_scale",
        "server_map",
    ),
    chapter="solvers/private_sparse_regression",
)

EIGENVALUE_FLOOR = 0.1
"""Eigenvalues of a noisy covariance are raised to so many times the mean of the positive ones."""


@dataclass(frozen=True)
class SparseResult:
    """Outcome of the estimators.

    Parameters
    ----------
    theta
        The estimate, (d,).
    support
        Indices of its entries that are not 0.
    n_iter
        Rounds of interaction; 1 for the closed forms.
    n_clipped
        Eigenvalues of the noisy covariance that were raised; more than 0 says that there were too few users.
    history
        Arrays ``norm`` (of the estimate) and ``gradient_norm`` (of the noisy mean gradient), one entry a round.
    """

    theta: AnyArray
    support: IntArray
    n_iter: int
    n_clipped: int
    history: Mapping[str, Array[np.float64]]


def clip_rows(x: Array[F], radius: float) -> Array[F]:
    """Shorten every row to length ``radius`` if it is longer.

    Parameters
    ----------
    x : array (..., d)
    radius : float > 0

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array of at least one dimension or ``radius`` is not > 0.

    Notes
    -----
    ``x min(1, radius / |x|)``. What a message can reveal is bounded by this length.

    Examples
    --------
    >>> clip_rows(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.positive(radius, "radius")
    return np.asarray(x * _shrink(x, radius), dtype=x.dtype)


def gaussian_sigma(sensitivity: float, epsilon: float, delta: float, *, analytic: bool = False) -> float:
    """Return the standard deviation of Gaussian noise that gives (epsilon, delta)-differential privacy.

    Parameters
    ----------
    sensitivity : float > 0
        Largest distance between two users' messages before the noise.
    epsilon : float > 0
        At most 1 for the classical formula.
    delta : float in (0, 1)
    analytic : bool
        Solve for the smallest deviation that suffices.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a number is outside its range.

    Notes
    -----
    ``sensitivity sqrt(2 log(1.25/delta)) / epsilon``; or the root of
    ``Phi(s/2 - epsilon/s) - exp(epsilon) Phi(-s/2 - epsilon/s) = delta`` in ``s = sensitivity / sigma``, which holds for
    every epsilon and is smaller.

    References
    ----------
    Dwork, Roth (2014), theorem A.1; Balle, Wang (2018), arXiv 1805.06530, theorem 8.

    Examples
    --------
    >>> round(gaussian_sigma(1.0, 1.0, 1e-5), 6), round(gaussian_sigma(1.0, 1.0, 1e-5, analytic=True), 6)
    (4.844805, 3.730632)
    """
    _checks.positive(sensitivity, "sensitivity")
    _checks.positive(epsilon, "epsilon")
    _checks.in_range(delta, "delta", 0.0, 1.0, closed="neither")
    if not analytic:
        _checks.in_range(epsilon, "epsilon", 0.0, 1.0, closed="right")
        return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon

    def excess(log_ratio: float) -> float:
        # The second term in logarithms: exp(epsilon) may overflow where Phi underflows.
        ratio = math.exp(log_ratio)
        first = scipy.special.ndtr(ratio / 2 - epsilon / ratio)
        return float(first - np.exp(epsilon + scipy.special.log_ndtr(-ratio / 2 - epsilon / ratio)) - delta)

    low, high = math.log(1e-8 * min(1.0, epsilon)), math.log(2 * (math.sqrt(2 * epsilon) + 40))
    root = brentq(excess, low, high, xtol=1e-14, rtol=1e-14)
    return sensitivity / math.exp(root)


def randomizer_scale(dimension: int, epsilon: float, radius: float) -> float:
    """Return the length of the messages of :func:`ball_randomizer`.

    Parameters
    ----------
    dimension : int >= 1
    epsilon : float > 0
    radius : float > 0
        Of the ball that the inputs lie in.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    ``radius (e^epsilon + 1)/(e^epsilon - 1) sqrt(pi)/2 d Gamma((d+1)/2) / Gamma(d/2 + 1)``: the inverse of the mean of
    the message's component along the input. It grows as ``radius sqrt(d) / epsilon``.

    References
    ----------
    Duchi, Jordan, Wainwright (2018), Journal of the American Statistical Association 113, section 4.2.

    Examples
    --------
    >>> round(randomizer_scale(1, 1.0, 1.0), 6), round(randomizer_scale(2, 1.0, 1.0), 6)
    (2.163953, 3.39913)
    """
    d = _checks.whole(dimension, "dimension", low=1)
    _checks.positive(epsilon, "epsilon")
    _checks.positive(radius, "radius")
    gammas = math.exp(scipy.special.gammaln((d + 1) / 2) - scipy.special.gammaln(d / 2 + 1))
    # (e^eps + 1)/(e^eps - 1) = 1/tanh(eps/2), without the cancellation for small eps.
    return radius / math.tanh(epsilon / 2) * math.sqrt(math.pi) / 2 * d * gammas


def ball_randomizer(v: Array[F], epsilon: float, radius: float, rng: np.random.Generator) -> Array[F]:
    """Send a random direction in the place of a vector: unbiased, and epsilon-differentially private.

    Parameters
    ----------
    v : array (..., d)
        One vector a user, of length at most ``radius``.
    epsilon : float > 0
    radius : float > 0
    rng : numpy.random.Generator

    Returns
    -------
    array, shape and dtype of ``v``
        Every message has the same length, :func:`randomizer_scale`; its mean is ``v``.

    Raises
    ------
    TypeError, ValueError
        If ``v`` is not a finite float array, a vector is longer than ``radius`` or a number is outside its range.

    Notes
    -----
    The vector is pushed to the sphere, to ``radius v/|v|`` or its opposite, so that its mean stays; then a uniform
    direction is turned into the half space of it with probability ``e^epsilon / (1 + e^epsilon)``, else into the other.

    References
    ----------
    Duchi, Jordan, Wainwright (2018), Journal of the American Statistical Association 113, section 4.2.

    Examples
    --------
    >>> messages = ball_randomizer(np.full((20000, 1), 0.5), 1.0, 1.0, np.random.default_rng(0))
    >>> sorted(set(messages.ravel().round(6).tolist())), bool(abs(messages.mean() - 0.5) < 0.05)
    ([-2.163953, 2.163953], True)
    """
    v = _checks.float_array(v, "v", min_ndim=1)
    _checks.not_empty(v, "v", (v.ndim - 1,))
    _checks.finite(v, "v")
    scale = randomizer_scale(v.shape[-1], epsilon, radius)
    rng = _checks.generator(rng)
    wide = v.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    # The dtype's own rounding of a vector that was clipped to the radius is not an error.
    if (length > radius * (1 + 4 * np.finfo(v.dtype).eps)).any():
        _checks.fail("v", f"vectors of length at most {radius:g}", f"length {float(length.max()):g}")
    direction = rng.standard_normal(v.shape)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    # A zero vector is pushed to a random pole: every direction is as good.
    pole = np.where(length > 0, wide, rng.standard_normal(v.shape))
    outward = rng.random(length.shape) < 0.5 + length / (2 * radius)
    agree = rng.random(length.shape) < scipy.special.expit(epsilon)
    # outward and agree decide together in which half space of v the message lies.
    wanted = np.where(outward == agree, 1.0, -1.0)
    along = (direction * pole).sum(axis=-1, keepdims=True)
    return np.asarray(scale * direction * np.where(along * wanted >= 0, 1.0, -1.0), dtype=v.dtype)


def nldp_messages(
    x: Array[F],
    y: Array[F],
    epsilon: float,
    delta: float,
    radius: float,
    bound: float,
    rng: np.random.Generator,
    *,
    joint: bool = True,
    analytic: bool = False,
) -> tuple[Array[F], Array[F]]:
    """Return every user's two messages of the non-interactive protocol.

    Parameters
    ----------
    x : array (n, d)
        One row a user.
    y : array (n,)
    epsilon, delta : float > 0, float in (0, 1)
        Privacy of each user; each message gets half.
    radius : float > 0
        Rows are clipped to this length.
    bound : float > 0
        Labels are clipped to this size.
    rng : numpy.random.Generator
    joint : bool
        Shrink the label together with its row, which leaves the linear model intact.
    analytic : bool
        See :func:`gaussian_sigma`.

    Returns
    -------
    covariances, moments : arrays (n, d, d) and (n, d)
        Noisy ``x x^T``, symmetric, and noisy ``x y``. The server needs their means only.

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite or a number is outside its range.

    Notes
    -----
    Two clipped rows have ``|x x^T - x' x'^T|_F <= sqrt(2) radius^2`` and ``|x y - x' y'| <= 2 radius bound``. The noise of
    the upper triangle is mirrored: it is independent there, and the lower triangle reveals nothing more.

    References
    ----------
    Zhu et al. (2023), arXiv 2310.07367, the non-interactive algorithm.

    Examples
    --------
    >>> x, y = np.ones((4, 2)), np.ones(4)
    >>> covariances, moments = nldp_messages(x, y, 1.0, 1e-3, 1.0, 1.0, np.random.default_rng(0))
    >>> covariances.shape, moments.shape, bool((covariances == covariances.swapaxes(1, 2)).all())
    ((4, 2, 2), (4, 2), True)
    """
    x, y = _regression(x, y)
    rng = _checks.generator(rng)
    rows, labels = _clipped(x, y, radius, bound, joint)
    n, d = x.shape
    first = gaussian_sigma(math.sqrt(2) * radius**2, epsilon / 2, delta / 2, analytic=analytic)
    second = gaussian_sigma(2 * radius * bound, epsilon / 2, delta / 2, analytic=analytic)
    upper = np.triu(rng.standard_normal((n, d, d)))
    noise = first * (upper + np.triu(upper, 1).swapaxes(1, 2))
    covariances = rows[:, :, None] * rows[:, None, :] + noise
    moments = rows * labels[:, None] + second * rng.standard_normal((n, d))
    return covariances.astype(x.dtype), moments.astype(x.dtype)


def server_map(covariance: Array[F], moment: Array[F], threshold: Array[F] | float) -> Array[F]:
    """Return ``soft_threshold(covariance^-1 moment, threshold)``.

    Parameters
    ----------
    covariance : array (d, d)
        Invertible; its symmetric part counts.
    moment : array (d,)
    threshold : number >= 0

    Returns
    -------
    array (d,)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, the covariance is singular or the threshold negative.

    Notes
    -----
    The exact solution of: minimise ``|theta|_1`` subject to ``|theta - covariance^-1 moment|_inf <= threshold``.

    References
    ----------
    Zhu et al. (2023), arXiv 2310.07367, the non-interactive algorithm.

    Examples
    --------
    >>> server_map(np.eye(3), np.array([1.0, -0.2, -2.0]), 0.5)
    array([ 0.5,  0. , -1.5])
    """
    return server_map_vjp(covariance, moment, threshold)[0]


def server_map_vjp(covariance: Array[F], moment: Array[F], threshold: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`server_map` and its pullback ``dtheta -> (dcovariance, dmoment, dthreshold)``."""
    covariance, moment = _statistics(covariance, moment)
    symmetric = (covariance + covariance.T).astype(np.float64) / 2
    try:
        z = np.linalg.solve(symmetric, moment.astype(np.float64))
    except np.linalg.LinAlgError:
        _checks.fail("covariance", "an invertible matrix", "a singular one")
    theta, threshold_pullback = soft_threshold_vjp(z.astype(moment.dtype), threshold)

    def pullback(dtheta: Array[F]) -> tuple[AnyArray, AnyArray, AnyArray]:
        # z = C^-1 b: dz = C^-1 (db - dC z). With C a = dz's cotangent, <a, db - dC z>; C is symmetric.
        dz, dthreshold = threshold_pullback(dtheta)
        a = np.linalg.solve(symmetric, np.asarray(dz, dtype=np.float64))
        dcovariance = -(np.outer(a, z) + np.outer(z, a)) / 2
        return dcovariance.astype(moment.dtype), a.astype(moment.dtype), dthreshold

    return theta, pullback


def nldp_estimate(
    covariance: Array[F],
    moment: Array[F],
    *,
    threshold: float | None = None,
    k: int | None = None,
    floor: float = EIGENVALUE_FLOOR,
) -> SparseResult:
    """Estimate a sparse vector from the means of the users' messages.

    Parameters
    ----------
    covariance, moment : arrays (d, d) and (d,)
        Mean messages.
    threshold : float >= 0, optional
        Soft threshold.
    k : int from 1 to d, optional
        Keep the k largest entries instead, without shrinking them. Exactly one of the two is given.
    floor : float > 0
        Eigenvalues below ``floor`` times the mean of the positive ones are raised to that.

    Returns
    -------
    SparseResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite, no eigenvalue is positive or an option is outside its range.

    Notes
    -----
    The noise of a mean of n matrices has eigenvalues of size ``2 sigma sqrt(d / n)``. Until n makes that small, the
    covariance is not even positive, and the estimate is worse than 0: look at ``n_clipped``.

    References
    ----------
    Zhu et al. (2023), arXiv 2310.07367, the non-interactive algorithm.

    Examples
    --------
    >>> result = nldp_estimate(np.eye(3), np.array([1.0, -0.2, -2.0]), k=2)
    >>> result.theta, result.support, result.n_clipped
    (array([ 1.,  0., -2.]), array([0, 2]), 0)
    """
    covariance, moment = _statistics(covariance, moment)
    _checks.finite(covariance, "covariance")
    _checks.finite(moment, "moment")
    _checks.positive(floor, "floor")
    if (threshold is None) == (k is None):
        _checks.fail("threshold, k", "exactly one of the two", (threshold, k))
    eigenvalues, vectors = np.linalg.eigh((covariance + covariance.T).astype(np.float64) / 2)
    if not (eigenvalues > 0).any():
        _checks.fail("covariance", "a positive eigenvalue", f"largest {eigenvalues[-1]:g}")
    smallest = floor * eigenvalues[eigenvalues > 0].mean()
    raised = np.maximum(eigenvalues, smallest)
    fixed = ((vectors * raised) @ vectors.T).astype(moment.dtype)
    theta = server_map(fixed, moment, 0.0 if threshold is None else float(threshold))
    if k is not None:
        theta = _keep_largest(theta, _checks.whole(k, "k", low=1, high=len(moment)))
    return _sparse(theta, 1, int((eigenvalues < smallest).sum()), {})


def nldp_public(
    x_public: Array[F],
    x: Array[F],
    y: Array[F],
    epsilon: float,
    delta: float,
    radius: float,
    bound: float,
    rng: np.random.Generator,
    *,
    threshold: float | None = None,
    k: int | None = None,
    joint: bool = True,
    analytic: bool = False,
) -> SparseResult:
    """Estimate with public unlabelled rows: the users send ``x y`` only, with the whole budget.

    Parameters
    ----------
    x_public : array (m, d)
        Rows without labels from the same distribution that need no protection.
    x, y, epsilon, delta, radius, bound, rng, joint, analytic
        As in :func:`nldp_messages`.
    threshold, k
        As in :func:`nldp_estimate`.

    Returns
    -------
    SparseResult

    Raises
    ------
    TypeError, ValueError
        As those two.

    Notes
    -----
    The public rows are clipped in the same way, so that their covariance is that of the users' rows.

    References
    ----------
    Zhu et al. (2023), arXiv 2310.07367, the algorithm with public data.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, public = rng.standard_normal((50000, 3)), rng.standard_normal((5000, 3))
    >>> nldp_public(public, x, x[:, 1], 1.0, 1e-3, 3.0, 3.0, rng, k=1).support
    array([1])
    """
    x, y = _regression(x, y)
    x_public = _checks.float_array(x_public, "x_public", ndim=2)
    _checks.same_dtype("x", x, x_public=x_public)
    _checks.shape(x_public, "x_public", (len(x_public), x.shape[1]))
    _checks.not_empty(x_public, "x_public", (0,))
    _checks.finite(x_public, "x_public")
    rows, labels = _clipped(x, y, radius, bound, joint)
    sigma = gaussian_sigma(2 * radius * bound, epsilon, delta, analytic=analytic)
    moments = rows * labels[:, None] + sigma * _checks.generator(rng).standard_normal(x.shape)
    public = clip_rows(x_public, radius).astype(np.float64)
    covariance = (public.T @ public / len(public)).astype(x.dtype)
    return nldp_estimate(covariance, moments.mean(axis=0).astype(x.dtype), threshold=threshold, k=k)


def ldp_iht(
    x: Array[F],
    y: Array[F],
    *,
    epsilon: float,
    k: int,
    radius: float,
    bound: float,
    rounds: int | None = None,
    gradient_bound: float | None = None,
    step_size: float = 1.0,
    kept: int | None = None,
    max_norm: float = 1.0,
    joint: bool = True,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> SparseResult:
    """Estimate a sparse vector in rounds: each group of users sends noisy gradients at the present estimate.

    Parameters
    ----------
    x, y, radius, bound, joint
        As in :func:`nldp_messages`.
    epsilon : float > 0
        Privacy of each user, without a delta.
    k : int from 1 to d
        Entries of the true vector that are not 0.
    rounds : int from 1 to n, optional
        Number of groups; ``ceil(log n)`` by default. A few are better in practice.
    gradient_bound : float > 0, optional
        Gradients are clipped to this length. The default is the worst case ``radius (radius max_norm + bound)``; the
        typical length, near sqrt(d), is much better.
    step_size : float > 0
        1 over the largest eigenvalue of the covariance.
    kept : int from k to d, optional
        Entries that are kept in each round, ``min(2 k, d)`` by default.
    max_norm : float > 0
        Known bound of the true vector's length.
    rng : numpy.random.Generator
    callback : callable, optional
        Called with a :class:`Progress` after every round; a true result ends the run.

    Returns
    -------
    SparseResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite or a number is outside its range.

    Notes
    -----
    Every user sends one message, by :func:`ball_randomizer`, of ``x (x . theta - y)`` for clipped x and y.

    References
    ----------
    Zhu et al. (2023), arXiv 2310.07367, the interactive algorithm.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200000, 5))
    >>> result = ldp_iht(x, x[:, 3] * 0.9, epsilon=1.0, k=1, kept=1, radius=4.0, bound=3.0, rounds=3,
    ...                  gradient_bound=2.0, rng=rng)
    >>> result.support, result.n_iter
    (array([3]), 3)
    """
    x, y = _regression(x, y)
    n, d = x.shape
    k = _checks.whole(k, "k", low=1, high=d)
    kept = min(2 * k, d) if kept is None else _checks.whole(kept, "kept", low=k, high=d)
    rounds = _checks.whole(max(1, math.ceil(math.log(n))) if rounds is None else rounds, "rounds", low=1, high=n)
    _checks.positive(step_size, "step_size")
    _checks.positive(max_norm, "max_norm")
    rows, labels = _clipped(x, y, radius, bound, joint)
    limit = radius * (radius * max_norm + bound) if gradient_bound is None else gradient_bound
    _checks.positive(limit, "gradient_bound")
    monitor = Monitor("ldp_iht", callback=callback, hint="use a smaller step_size")
    theta = np.zeros(d)
    for group in np.array_split(_checks.generator(rng).permutation(n), rounds):
        gradient = rows[group] * (rows[group] @ theta - labels[group])[:, None]
        mean = ball_randomizer(clip_rows(gradient, limit), epsilon, limit, rng).mean(axis=0)
        theta = _keep_largest(theta - step_size * mean, kept)
        theta = theta * min(1.0, max_norm / max(float(np.linalg.norm(theta)), np.finfo(np.float64).tiny))
        if monitor.record(norm=float(np.linalg.norm(theta)), gradient_norm=float(np.linalg.norm(mean))):
            break
    return _sparse(theta.astype(x.dtype), monitor.n_iter, 0, monitor.history())


def ldp_lower_bound(n: int, d: int, k: int, epsilon: float, *, interactive: bool = True) -> float:
    """Return the rate that no private estimator can beat, up to a constant.

    Parameters
    ----------
    n, d, k : ints >= 1
        Users, dimension, entries that are not 0; ``k <= d``.
    epsilon : float > 0
    interactive : bool
        Whether users may answer after they have seen other users' messages.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    ``sqrt(d k / n) / epsilon``, times ``sqrt(log d)`` without interaction.

    References
    ----------
    Zhu et al. (2023), arXiv 2310.07367.

    Examples
    --------
    >>> ldp_lower_bound(10000, 16, 4, 0.5)
    0.16
    """
    n, d = _checks.whole(n, "n", low=1), _checks.whole(d, "d", low=1)
    k = _checks.whole(k, "k", low=1, high=d)
    _checks.positive(epsilon, "epsilon")
    return math.sqrt(d * k * (1.0 if interactive else math.log(d)) / n) / epsilon


def _shrink(x: AnyArray, radius: float) -> AnyArray:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(np.minimum(1, radius / np.where(length > 0, length, radius)))


def _clipped(x: AnyArray, y: AnyArray, radius: float, bound: float, joint: bool) -> tuple[AnyArray, AnyArray]:
    """Return clipped rows and labels in float64."""
    _checks.positive(radius, "radius")
    _checks.positive(bound, "bound")
    wide = x.astype(np.float64)
    factor = _shrink(wide, radius)
    labels = np.clip(y.astype(np.float64), -bound, bound)
    # y = x . theta + noise times one factor is the same model for the shorter row.
    return wide * factor, labels * factor[:, 0] if joint else labels


def _keep_largest(theta: AnyArray, k: int) -> AnyArray:
    """Set all but the k largest entries to 0; of equal ones the first are kept."""
    order = np.argsort(-np.abs(theta), kind="stable")
    kept = np.zeros_like(theta)
    kept[order[:k]] = theta[order[:k]]
    return kept


def _sparse(theta: AnyArray, rounds: int, clipped: int, history: Mapping[str, Array[np.float64]]) -> SparseResult:
    return SparseResult(theta, np.flatnonzero(theta), rounds, clipped, history)


def _regression(x: AnyArray, y: AnyArray) -> tuple[AnyArray, AnyArray]:
    x, y = _checks.float_array(x, "x", ndim=2), _checks.float_array(y, "y")
    _checks.same_dtype("x", x, y=y)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(y, "y", x.shape[:1])
    _checks.finite(x, "x")
    _checks.finite(y, "y")
    return x, y


def _statistics(covariance: AnyArray, moment: AnyArray) -> tuple[AnyArray, AnyArray]:
    moment = _checks.float_array(moment, "moment", ndim=1)
    covariance = _checks.float_array(covariance, "covariance")
    _checks.same_dtype("moment", moment, covariance=covariance)
    _checks.not_empty(moment, "moment", (0,))
    _checks.shape(covariance, "covariance", (len(moment), len(moment)))
    return covariance, moment
