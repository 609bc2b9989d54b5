"""Functional Tucker decomposition: a tensor whose indices are real numbers, with smooth functions as factors.

    y = core x_1 u_1(i_1) ... x_K u_K(i_K) + noise,      every component of u_k a Matern Gaussian process

Each process is the output of a linear stochastic differential equation, so a Kalman smoother infers it in linear
time; messages from the entries, the core and the noise are iterated with damping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import scipy.special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Functional Bayesian Tucker Decomposition for Continuous-indexed Tensor Data",
    authors="Fang, Yu, Wang, Li, Kirby, Zhe",
    year=2023,
    arxiv="2311.04829",
    functions=(
        "FunctionalTuckerResult",
        "MaternSDE",
        "SmootherResult",
        "fit_functional_tucker",
        "gp_interpolate",
        "kalman_smoother",
        "matern_sde",
        "predict_functional_tucker",
        "sde_transition",
        "smoothed_mean",
    ),
    chapter="solvers/functional_tucker",
)

SMOOTHNESS = (0.5, 1.5)
LARGEST_CORE = 4096
"""Largest number of entries of the core: second moments have the square of it."""

FIRST_MESSAGE = 1e-3
"""Precision of the message that an entry sends before the first sweep; it is damped away."""

CORE_VARIANCE = 1e3
"""Prior variance of the core's entries: weak for targets of unit variance."""

FACTOR_DAMPING, CORE_DAMPING, NOISE_DAMPING = 0.5, 0.9, 0.6
"""Share of the old message that is kept, as in the authors' code: the core is the slowest."""

NOISE_SHAPE, NOISE_RATE = 1.0, 1.0
"""Gamma prior of the noise's precision."""


@dataclass(frozen=True)
class MaternSDE:
    """A Matern process as a stochastic differential equation; made by :func:`matern_sde`.

    Parameters
    ----------
    smoothness
        0.5 (state: the value) or 1.5 (state: value and slope).
    length_scale, variance
        Of the process.
    """

    smoothness: float
    length_scale: float
    variance: float


@dataclass(frozen=True)
class SmootherResult:
    """Posterior of R independent processes at J times; the state of each has s entries, D = R s.

    Parameters
    ----------
    times
        The times, increasing, (J,).
    mean, covariance
        Of the values given all observations, (J, R) and (J, R, R).
    state_mean, state_covariance
        Of the states given all observations, (J, D) and (J, D, D), process by process.
    filtered_mean, filtered_covariance
        Given the observations up to each time.
    predicted_mean, predicted_covariance
        Given the observations before it.
    sde
        The prior.
    """

    times: AnyArray
    mean: AnyArray
    covariance: AnyArray
    state_mean: AnyArray
    state_covariance: AnyArray
    filtered_mean: AnyArray
    filtered_covariance: AnyArray
    predicted_mean: AnyArray
    predicted_covariance: AnyArray
    sde: MaternSDE


@dataclass(frozen=True)
class FunctionalTuckerResult:
    """Outcome of :func:`fit_functional_tucker`.

    Parameters
    ----------
    factors
        Posterior of each mode's functions at its distinct indices.
    core_mean
        Mean of the core, (R_1, ..., R_K).
    core_covariance
        Covariance of its entries in C order, (R, R) with R the product of the ranks.
    noise_variance
        Rate over shape of the noise's posterior.
    n_iter
        Number of sweeps.
    converged
        Whether the last sweep changed no mean by more than the tolerance.
    history
        Arrays ``residual`` (root mean square on the training entries), ``change`` and ``noise_variance``.
    """

    factors: tuple[SmootherResult, ...]
    core_mean: AnyArray
    core_covariance: AnyArray
    noise_variance: float
    n_iter: int
    converged: bool
    history: Mapping[str, Array[np.float64]]


def matern_sde(smoothness: float, length_scale: float, variance: float = 1.0) -> MaternSDE:
    """Return the stochastic differential equation of a Matern process.

    Parameters
    ----------
    smoothness : 0.5 or 1.5
        0.5 is the Ornstein-Uhlenbeck process; paths of 1.5 have a slope.
    length_scale : float > 0
    variance : float > 0

    Returns
    -------
    MaternSDE

    Raises
    ------
    ValueError
        If a number is outside its range.

    Notes
    -----
    ``dx = F x dt + noise`` with ``F = -1/length_scale``, or ``F = [[0, 1], [-r^2, -2 r]]`` for
    ``r = sqrt(3)/length_scale``; stationary covariance ``variance``, or ``variance diag(1, r^2)``.

    References
    ----------
    Hartikainen, Sarkka (2010), Kalman filtering and smoothing solutions to temporal Gaussian process regression.

    Examples
    --------
    >>> matern_sde(1.5, 0.1)
    MaternSDE(smoothness=1.5, length_scale=0.1, variance=1.0)
    """
    _checks.one_of(smoothness, "smoothness", SMOOTHNESS)
    _checks.positive(length_scale, "length_scale")
    _checks.positive(variance, "variance")
    return MaternSDE(float(smoothness), float(length_scale), float(variance))


def sde_transition(sde: MaternSDE, gap: Array[F]) -> tuple[Array[F], Array[F]]:
    """Return how the state moves over gaps in time.

    Parameters
    ----------
    sde : MaternSDE
    gap : array (...), >= 0

    Returns
    -------
    transition, noise : arrays (..., s, s)
        ``A = expm(F gap)`` and ``Q = P - A P A^T``: the state after the gap is A times the state before, plus
        Gaussian noise of covariance Q.

    Raises
    ------
    TypeError, ValueError
        If ``gap`` is not a float array or has an entry that is negative or not finite.

    Notes
    -----
    With ``a = r gap`` and ``e = exp(-2 a)``, the entries of Q for smoothness 1.5 are ``gammainc(3, 2 a)``,
    ``2 r a^2 e`` and ``r^2 (gammainc(3, 2 a) + 4 a e)``, times the variance. The first is
    ``1 - e (1 + 2 a + 2 a^2)``, of order ``a^3``, without the cancellation.

    Examples
    --------
    >>> transition, noise = sde_transition(matern_sde(0.5, 1.0), np.array(np.log(2.0)))
    >>> transition.round(12), noise.round(12)
    (array([[0.5]]), array([[0.75]]))
    """
    gap = _checks.float_array(gap, "gap")
    if not (np.isfinite(gap).all() and (gap >= 0).all()):
        _checks.fail("gap", "finite values >= 0", f"{gap.min() if np.isfinite(gap).all() else 'others'}")
    if sde.smoothness == 0.5:
        step = gap / sde.length_scale
        transition = np.exp(-step)[..., None, None]
        noise = -sde.variance * np.expm1(-2 * step)[..., None, None]
        return np.asarray(transition, dtype=gap.dtype), np.asarray(noise, dtype=gap.dtype)
    rate = np.sqrt(3) / sde.length_scale
    a = rate * gap
    transition = np.exp(-a)[..., None, None] * _matrix(1 + a, gap, -rate * a, 1 - a)
    squared = np.exp(-2 * a)
    first = scipy.special.gammainc(3, 2 * a)
    mixed = 2 * rate * a * a * squared
    noise = sde.variance * _matrix(first, mixed, mixed, rate**2 * (first + 4 * a * squared))
    return np.asarray(transition, dtype=gap.dtype), np.asarray(noise, dtype=gap.dtype)


def _matrix(a: AnyArray, b: AnyArray, c: AnyArray, d: AnyArray) -> AnyArray:
    return np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)


def kalman_smoother(times: Array[F], y: Array[F], noise: Array[F], sde: MaternSDE) -> SmootherResult:
    """Infer R independent processes from noisy observations of all of them, in time linear in their number.

    Parameters
    ----------
    times : array (J,)
        Strictly increasing.
    y : array (J, R)
        Observations.
    noise : array (J, R, R)
        Their noise covariances, symmetric and positive definite.
    sde : MaternSDE
        The prior of each process; their means are 0.

    Returns
    -------
    SmootherResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, times do not increase, or a covariance is not positive definite.

    Notes
    -----
    Exactly Gaussian-process regression with the Matern kernel, at the observed times.

    References
    ----------
    Hartikainen, Sarkka (2010); Rauch, Tung, Striebel (1965), AIAA Journal 3, 1445-1450.

    Examples
    --------
    >>> far = np.array([[[1.0]], [[1e12]]])
    >>> result = kalman_smoother(np.array([0.0, np.log(2.0)]), np.array([[1.0], [0.0]]), far, matern_sde(0.5, 1.0))
    >>> result.mean.round(6).ravel(), result.covariance.round(6).ravel()
    (array([0.5 , 0.25]), array([0.5  , 0.875]))
    """
    times, y, noise = _observations(times, y, noise)
    precision = np.linalg.inv(noise.astype(np.float64))
    information = np.einsum("jab,jb->ja", precision, y.astype(np.float64))
    return _smooth(times.astype(np.float64), precision, information, sde, y.dtype)


def _smooth(times: AnyArray, precision: AnyArray, information: AnyArray, sde: MaternSDE, dtype: Any) -> SmootherResult:
    """Filter forwards and smooth backwards, from the precisions and information of the observations.

    An observation of precision Lambda and information eta = Lambda y may know nothing about some directions:
    Lambda is never inverted.
    """
    steps, r = information.shape
    stationary = _stationary(sde, r)
    size = len(stationary) // r
    value = np.arange(r) * size
    transition, noise = (_blocks(part, r) for part in sde_transition(sde, np.diff(times, prepend=times[0])))
    eigenvalues, vectors = np.linalg.eigh(precision)
    roots = vectors * np.sqrt(np.maximum(eigenvalues, 0))[:, None, :]
    shape = (steps, len(stationary))
    predicted, filtered = np.zeros(shape), np.zeros(shape)
    predicted_p, filtered_p = np.zeros((*shape, shape[1])), np.zeros((*shape, shape[1]))
    mean, p = np.zeros(shape[1]), stationary
    for j in range(steps):
        if j:
            mean, p = transition[j] @ mean, transition[j] @ p @ transition[j].T + noise[j]
        predicted[j], predicted_p[j] = mean, p
        # gain = Lambda (I + S Lambda)^-1 in a symmetric form, with Lambda = L L^T and S the variance of the values.
        across = p[:, value]
        spread, root = across[value], roots[j]
        gain = root @ np.linalg.solve(np.eye(r) + root.T @ spread @ root, root.T)
        surprise = information[j] - precision[j] @ mean[value]
        mean = mean + across @ (surprise - gain @ (spread @ surprise))
        p = p - across @ gain @ across.T
        filtered[j], filtered_p[j] = mean, p = mean, (p + p.T) / 2
    smoothed, smoothed_p = filtered.copy(), filtered_p.copy()
    # All gains at once: only the two recursions are sequential.
    back = np.linalg.solve(predicted_p[1:], transition[1:] @ filtered_p[:-1]).transpose(0, 2, 1)
    for j in range(steps - 2, -1, -1):
        smoothed[j] += back[j] @ (smoothed[j + 1] - predicted[j + 1])
        smoothed_p[j] += back[j] @ (smoothed_p[j + 1] - predicted_p[j + 1]) @ back[j].T
    parts = {
        "times": times,
        "mean": smoothed[:, value],
        "covariance": smoothed_p[:, value][:, :, value],
        "state_mean": smoothed,
        "state_covariance": smoothed_p,
        "filtered_mean": filtered,
        "filtered_covariance": filtered_p,
        "predicted_mean": predicted,
        "predicted_covariance": predicted_p,
    }
    return SmootherResult(**{name: part.astype(dtype) for name, part in parts.items()}, sde=sde)


def gp_interpolate(result: SmootherResult, new_times: Array[F]) -> tuple[Array[F], Array[F]]:
    """Return the posterior of the values at other times, before, between and after the observed ones.

    Parameters
    ----------
    result : SmootherResult
    new_times : array (M,)
        In any order.

    Returns
    -------
    mean, covariance : arrays (M, R) and (M, R, R)

    Raises
    ------
    TypeError, ValueError
        If ``new_times`` is not a finite float vector.

    Notes
    -----
    A time between two others is a step of the smoother without an observation: predicted from the *filtered* state
    before it and corrected by the smoothed state after it. The process is reversible, so it runs backwards from
    the first time, with the sign of the slope changed.

    Examples
    --------
    >>> result = kalman_smoother(np.zeros(1), np.ones((1, 1)), np.ones((1, 1, 1)), matern_sde(0.5, 1.0))
    >>> mean, covariance = gp_interpolate(result, np.log(np.array([0.5, 2.0])))
    >>> mean.round(6).ravel(), covariance.round(6).ravel()
    (array([0.25, 0.25]), array([0.875, 0.875]))
    """
    new_times = _checks.float_array(new_times, "new_times", ndim=1)
    _checks.finite(new_times, "new_times")
    times, new = result.times.astype(np.float64), new_times.astype(np.float64)
    r = result.mean.shape[1]
    stationary = _stationary(result.sde, r)
    after = np.searchsorted(times, new, side="right")
    before = np.maximum(after - 1, 0)

    def moved(mean: AnyArray, p: AnyArray, transition: AnyArray, noise: AnyArray) -> tuple[AnyArray, AnyArray]:
        return np.einsum("mab,mb->ma", transition, mean), transition @ p @ transition.swapaxes(1, 2) + noise

    gap, noise = (_blocks(part, r) for part in sde_transition(result.sde, np.abs(new - times[before])))
    # Backwards in time the slope changes its sign, and nothing else.
    turn = np.tile([1.0, -1.0][: len(stationary) // r], r)
    turned = np.where((after == 0)[:, None, None], turn[:, None] * turn, 1.0)
    gap, noise = gap * turned, noise * turned
    inside = (after > 0) & (after < len(times))
    start = result.filtered_mean[before], result.filtered_covariance[before]
    outside = result.state_mean[before], result.state_covariance[before]
    mean, p = moved(
        np.where(inside[:, None], start[0], outside[0]).astype(np.float64),
        np.where(inside[:, None, None], start[1], outside[1]).astype(np.float64), gap, noise,
    )  # fmt: skip
    if inside.any():
        following = after[inside]
        onward = _blocks(sde_transition(result.sde, times[following] - new[inside])[0], r)
        expected = result.predicted_covariance[following].astype(np.float64)
        back = np.linalg.solve(expected, onward @ p[inside]).swapaxes(1, 2)
        mean[inside] += np.einsum("mab,mb->ma", back, (result.state_mean - result.predicted_mean)[following])
        p[inside] += back @ (result.state_covariance[following] - expected) @ back.swapaxes(1, 2)
    value = np.arange(r) * (len(stationary) // r)
    dtype = new_times.dtype
    return np.asarray(mean[:, value], dtype=dtype), np.asarray(p[:, value][:, :, value], dtype=dtype)


def smoothed_mean(y: Array[F], *, times: Array[F], noise: Array[F], sde: MaternSDE) -> Array[F]:
    """Return the mean of :func:`kalman_smoother` as a function of the observations, which is linear.

    Parameters
    ----------
    y : array (J, R)
    times, noise, sde
        As in :func:`kalman_smoother`; not differentiated.

    Returns
    -------
    array (J, R)

    Raises
    ------
    TypeError, ValueError
        As :func:`kalman_smoother`.

    Notes
    -----
    ``mean = (K^-1 + V^-1)^-1 V^-1 y`` with the kernel matrix K and the noise V. The adjoint is
    ``V^-1 (K^-1 + V^-1)^-1``: one more pass of the smoother, on ``V`` times the cotangent.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> smoothed_mean(one, times=np.zeros(1), noise=np.ones((1, 1, 1)), sde=matern_sde(0.5, 1.0))
    array([[0.5]])
    """
    return smoothed_mean_vjp(y, times=times, noise=noise, sde=sde)[0]


def smoothed_mean_vjp(y: Array[F], *, times: Array[F], noise: Array[F], sde: MaternSDE) -> tuple[Array[F], Pullback]:
    """Return :func:`smoothed_mean` and its pullback ``dmean -> (dy,)``."""
    mean = kalman_smoother(times, y, noise, sde).mean
    noise = np.asarray(noise)

    def pullback(dmean: Array[F]) -> tuple[AnyArray]:
        scaled = np.einsum("jab,jb->ja", noise, dmean).astype(noise.dtype)
        passed = kalman_smoother(times, scaled, noise, sde).mean
        return (np.linalg.solve(noise, passed[..., None])[..., 0].astype(noise.dtype),)

    return mean, pullback


def fit_functional_tucker(
    index: Array[F],
    target: Array[F],
    *,
    ranks: Sequence[int],
    smoothness: float = 1.5,
    length_scales: float | Sequence[float] = 0.1,
    variance: float = 1.0,
    core_covariance: bool = False,
    initial_noise: float = 0.01,
    max_iter: int = 100,
    tol: float = 1e-4,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> FunctionalTuckerResult:
    """Fit a tensor with real-valued indices by smooth factor functions and a core.

    Parameters
    ----------
    index : array (N, K)
        Index of each entry in each mode, best scaled to [0, 1].
    target : array (N,)
        The entries, best scaled to unit variance.
    ranks : K ints >= 1
        Number of functions of each mode.
    smoothness : 0.5 or 1.5
    length_scales : float > 0, or one a mode
    variance : float > 0
        Prior variance of the functions.
    core_covariance : bool
        Let the factors' messages count the uncertainty of the core as well; the paper's code does not.
    initial_noise : float > 0
        Variance of the noise that the first sweep assumes. With a large value the first functions of each mode
        explain what they can and the others never leave their prior: the result has rank 1.
    max_iter : int >= 1
        Sweeps over factors, core and noise.
    tol : float >= 0
        Largest change of a mean that counts as none.
    rng : numpy.random.Generator
        Draws the first means.
    callback : callable, optional
        Called with a :class:`Progress` after every sweep; a true result ends the run.

    Returns
    -------
    FunctionalTuckerResult

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype differs, a value is not finite, a number is outside its range or the core has more than
        4096 entries.
    Diverged
        If the residual grows without bound.

    Notes
    -----
    Conditional expectation propagation: each entry sends Gaussian messages to the functions and the core and a
    Gamma message to the noise; of an old message 0.5, 0.9 and 0.6 are kept. Factors and core may exchange a scale:
    compare reconstructions, not factors.

    References
    ----------
    Fang et al. (2023), arXiv 2311.04829.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> index = rng.random((200, 2))
    >>> target = np.sin(3 * index[:, 0]) * np.cos(2 * index[:, 1])
    >>> result = fit_functional_tucker(index, target, ranks=(1, 1), length_scales=0.5, max_iter=20, rng=rng)
    >>> mean, _ = predict_functional_tucker(result, np.array([[0.5, 0.5]]))
    >>> bool(abs(mean[0] - np.sin(1.5) * np.cos(1.0)) < 0.05)
    True
    """
    index, target, ranks, scales = _tensor(index, target, ranks, length_scales)
    sdes = [matern_sde(smoothness, scale, variance) for scale in scales]
    _checks.non_negative(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _checks.positive(initial_noise, "initial_noise")
    wide = index.astype(np.float64), target.astype(np.float64)
    state = _Messages(*wide, ranks, sdes, initial_noise, _checks.generator(rng))
    monitor = Monitor("fit_functional_tucker", callback=callback, hint="scale the targets to unit variance")
    converged = False
    for _ in range(max_iter):
        before = [*state.means, state.core]
        for mode in range(len(ranks)):
            state.update_factor(mode, core_covariance)
        state.update_core()
        residual = state.update_noise()
        change = max(float(np.abs(a - b).max()) for a, b in zip([*state.means, state.core], before, strict=True))
        stopped = monitor.record(residual=residual, change=change, noise_variance=state.rate / state.shape)
        converged = change < tol
        if converged or stopped:
            break
    return FunctionalTuckerResult(
        factors=tuple(factor for factor in state.factors if factor is not None),
        core_mean=state.core.reshape(ranks).astype(target.dtype),
        core_covariance=state.core_covariance.astype(target.dtype),
        noise_variance=state.rate / state.shape,
        n_iter=monitor.n_iter,
        converged=converged,
        history=monitor.history(),
    )


class _Messages:
    """Posterior means and covariances, and the sums of the messages that they are made of."""

    def __init__(
        self,
        index: AnyArray,
        target: AnyArray,
        ranks: tuple[int, ...],
        sdes: list[MaternSDE],
        initial_noise: float,
        rng: np.random.Generator,
    ) -> None:
        self.target, self.ranks, self.sdes = target, ranks, sdes
        n, size = len(target), int(np.prod(ranks))
        distinct = [np.unique(column, return_inverse=True) for column in index.T]
        self.times = [times for times, _ in distinct]
        self.places = [place.reshape(-1) for _, place in distinct]
        self.means = [rng.random((len(t), r)) for t, r in zip(self.times, ranks, strict=True)]
        self.covariances = [np.tile(np.eye(r), (len(t), 1, 1)) for t, r in zip(self.times, ranks, strict=True)]
        self.factors: list[SmootherResult | None] = [None] * len(ranks)
        counts = [np.bincount(place) for place in self.places]
        # Damping is linear, so it may act on the sums: no message of a single entry is stored.
        self.precision = [
            FIRST_MESSAGE * count[:, None, None] * np.eye(r) for count, r in zip(counts, ranks, strict=True)
        ]
        self.information = [FIRST_MESSAGE * self._gather(mode, rng.random((n, r))) for mode, r in enumerate(ranks)]
        self.core: AnyArray = rng.random(size)
        self.core_covariance: AnyArray = np.eye(size)
        self.core_precision = n * FIRST_MESSAGE * np.eye(size)
        self.core_information = FIRST_MESSAGE * rng.random((n, size)).sum(axis=0)
        self.shape, self.messages = NOISE_SHAPE + n / 2, initial_noise * n / 2
        self.rate = NOISE_RATE + self.messages
        self.noise_precision = 1 / initial_noise

    def _gather(self, mode: int, values: AnyArray) -> AnyArray:
        """Sum over the entries of each distinct index of a mode."""
        total = np.zeros((len(self.times[mode]), *values.shape[1:]))
        np.add.at(total, self.places[mode], values)
        return total

    def _moments(self, modes: Sequence[int]) -> tuple[AnyArray, AnyArray]:
        """Return the mean of the Kronecker product of the modes' vectors at every entry, and its second moment."""
        first = [self.means[k][self.places[k]] for k in modes]
        second = [
            (self.covariances[k] + self.means[k][:, :, None] * self.means[k][:, None, :])[self.places[k]] for k in modes
        ]
        return reduce(_kron_vectors, first, np.ones((len(self.target), 1))), reduce(
            _kron_matrices, second, np.ones((len(self.target), 1, 1))
        )

    def update_factor(self, mode: int, core_covariance: bool) -> None:
        mean, second = self._moments([k for k in range(len(self.ranks)) if k != mode])
        unfolded = np.moveaxis(self.core.reshape(self.ranks), mode, 0).reshape(self.ranks[mode], -1)
        slope = mean @ unfolded.T
        square = unfolded @ second @ unfolded.T
        if core_covariance:
            square = square + np.einsum("acbd,ncd->nab", self._unfolded_covariance(mode), second)
        keep, tau = FACTOR_DAMPING, self.noise_precision
        self.precision[mode] = keep * self.precision[mode] + (1 - keep) * tau * self._gather(mode, square)
        pulled = tau * self._gather(mode, self.target[:, None] * slope)
        self.information[mode] = keep * self.information[mode] + (1 - keep) * pulled
        found = _smooth(self.times[mode], self.precision[mode], self.information[mode], self.sdes[mode], np.float64)
        self.factors[mode], self.means[mode], self.covariances[mode] = found, found.mean, found.covariance

    def _unfolded_covariance(self, mode: int) -> AnyArray:
        k = len(self.ranks)
        tensor = self.core_covariance.reshape(self.ranks * 2)
        tensor = np.moveaxis(tensor, (mode, k + mode), (0, k))
        r = self.ranks[mode]
        return tensor.reshape(r, self.core.size // r, r, self.core.size // r)

    def update_core(self) -> None:
        mean, second = self._moments(range(len(self.ranks)))
        keep, tau = CORE_DAMPING, self.noise_precision
        self.core_precision = keep * self.core_precision + (1 - keep) * tau * second.sum(axis=0)
        self.core_information = keep * self.core_information + (1 - keep) * tau * (self.target @ mean)
        posterior = self.core_precision + np.eye(self.core.size) / CORE_VARIANCE
        self.core_covariance = np.linalg.inv((posterior + posterior.T) / 2)
        self.core = self.core_covariance @ self.core_information

    def update_noise(self) -> float:
        mean, second = self._moments(range(len(self.ranks)))
        fitted = mean @ self.core
        squares = self.target**2 - 2 * self.target * fitted + np.einsum("nab,a,b->n", second, self.core, self.core)
        self.messages = NOISE_DAMPING * self.messages + (1 - NOISE_DAMPING) * float(squares.sum()) / 2
        self.rate = NOISE_RATE + self.messages
        self.noise_precision = self.shape / self.rate
        return float(np.sqrt(np.mean((self.target - fitted) ** 2)))


def predict_functional_tucker(result: FunctionalTuckerResult, index: Array[F]) -> tuple[Array[F], Array[F]]:
    """Return mean and variance of entries at any indices.

    Parameters
    ----------
    result : FunctionalTuckerResult
    index : array (M, K)

    Returns
    -------
    mean, variance : arrays (M,)
        The variance of an observation, noise included.

    Raises
    ------
    TypeError, ValueError
        If ``index`` is not a finite float array of K columns.

    Notes
    -----
    With w the core and z the product of the functions, both uncertain and taken as independent:
    ``E[w] . E[z]`` and ``E[w]^T E[z z^T] E[w] - mean^2 + tr(Cov[w] E[z z^T]) + noise``.

    References
    ----------
    Fang et al. (2023), arXiv 2311.04829.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> index = rng.random((50, 2))
    >>> result = fit_functional_tucker(index, index[:, 0] - index[:, 1], ranks=(2, 2), max_iter=5, rng=rng)
    >>> mean, variance = predict_functional_tucker(result, np.array([[0.5, 0.5], [9.0, 9.0]]))
    >>> bool(variance[1] > variance[0] > 0)
    True
    """
    index = _checks.float_array(index, "index", ndim=2)
    _checks.shape(index, "index", (len(index), len(result.factors)))
    _checks.finite(index, "index")
    moments = [
        gp_interpolate(f, np.asarray(column, np.float64)) for f, column in zip(result.factors, index.T, strict=True)
    ]
    z = reduce(_kron_vectors, [mean for mean, _ in moments])
    zz = reduce(_kron_matrices, [covariance + mean[:, :, None] * mean[:, None, :] for mean, covariance in moments])
    core, covariance = result.core_mean.ravel().astype(np.float64), result.core_covariance.astype(np.float64)
    mean = z @ core
    variance = np.einsum("nab,ab->n", zz, np.outer(core, core) + covariance) - mean**2 + result.noise_variance
    return np.asarray(mean, dtype=index.dtype), np.asarray(variance, dtype=index.dtype)


def _kron_vectors(a: AnyArray, b: AnyArray) -> AnyArray:
    return np.asarray(np.einsum("na,nb->nab", a, b).reshape(len(a), -1))


def _kron_matrices(a: AnyArray, b: AnyArray) -> AnyArray:
    size = a.shape[1] * b.shape[1]
    return np.asarray(np.einsum("nab,ncd->nacbd", a, b).reshape(len(a), size, size))


def _stationary(sde: MaternSDE, r: int) -> AnyArray:
    """Return the stationary covariance of r independent states, (D, D)."""
    rate = np.sqrt(3) / sde.length_scale
    entries = [sde.variance] if sde.smoothness == 0.5 else [sde.variance, sde.variance * rate**2]
    return np.diag(np.tile(entries, r))


def _blocks(matrices: AnyArray, r: int) -> AnyArray:
    """Return block-diagonal matrices of r equal blocks."""
    size = matrices.shape[-1]
    return np.asarray(np.einsum("ij,mab->miajb", np.eye(r), matrices).reshape(len(matrices), r * size, r * size))


def _observations(times: AnyArray, y: AnyArray, noise: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    times, y = _checks.float_array(times, "times", ndim=1), _checks.float_array(y, "y", ndim=2)
    noise = _checks.float_array(noise, "noise")
    _checks.same_dtype("y", y, times=times, noise=noise)
    _checks.not_empty(y, "y", (0, 1))
    _checks.shape(times, "times", y.shape[:1])
    _checks.shape(noise, "noise", (*y.shape, y.shape[1]))
    for name, array in (("times", times), ("y", y), ("noise", noise)):
        _checks.finite(array, name)
    if not (np.diff(times) > 0).all():
        _checks.fail("times", "strictly increasing values", f"{int((np.diff(times) <= 0).sum())} that are not")
    if not (np.linalg.eigvalsh(noise) > 0).all():
        _checks.fail("noise", "positive definite matrices", "others")
    return times, y, noise


def _tensor(
    index: AnyArray, target: AnyArray, ranks: Sequence[int], length_scales: float | Sequence[float]
) -> tuple[AnyArray, AnyArray, tuple[int, ...], list[float]]:
    index, target = _checks.float_array(index, "index", ndim=2), _checks.float_array(target, "target", ndim=1)
    _checks.same_dtype("index", index, target=target)
    _checks.not_empty(index, "index", (0, 1))
    _checks.shape(target, "target", index.shape[:1])
    _checks.finite(index, "index")
    _checks.finite(target, "target")
    checked = tuple(_checks.whole(rank, "ranks", low=1) for rank in ranks)
    modes = index.shape[1]
    if len(checked) != modes:
        _checks.fail("ranks", f"{modes} integers", tuple(ranks))
    if np.prod(checked) > LARGEST_CORE:
        _checks.fail("ranks", f"a core of at most {LARGEST_CORE} entries", int(np.prod(checked)))
    scales = [length_scales] * modes if isinstance(length_scales, (int, float)) else list(length_scales)
    if len(scales) != modes:
        _checks.fail("length_scales", f"one number or {modes}", length_scales)
    return index, target, checked, [float(scale) for scale in scales]
