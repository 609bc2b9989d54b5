"""Ghost batch normalization, and what else a large batch needs: rate, clipping, more updates.

y = gain * (x - mean_k) / sqrt(var_k + eps) + bias      (statistics of the k-th ghost batch of ghost_size examples)
learning_rate_large = sqrt(large / small) * learning_rate_small
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.norms._batch_statistics import update_running_statistics
from refnorm.norms._group_norm import standardize
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    functions=(
        "DiffusionFit",
        "GhostBatchState",
        "adapt_regime",
        "clip_by_global_norm",
        "fit_diffusion",
        "ghost_batch_norm",
        "ghost_batch_norm_train",
        "scale_learning_rate",
        "weight_distance",
    ),
    chapter="norms/ghost_batch_norm",
)

LARGEST_POWER = 4.0
"""End of the interval in which :func:`fit_diffusion` looks for a power: far beyond free flight, which is 1."""


@dataclass(frozen=True)
class GhostBatchState:
    """Running mean and variance of every channel.

    Parameters
    ----------
    mean, var : arrays (C,)
        0 and 1 before the first batch.

    Examples
    --------
    >>> GhostBatchState.create(2)
    GhostBatchState(mean=array([0., 0.]), var=array([1., 1.]))
    """

    mean: AnyArray
    var: AnyArray

    @classmethod
    def create(cls, channels: int, dtype: Any = np.float64) -> GhostBatchState:
        """Return the state before the first batch."""
        channels = _checks.whole(channels, "channels", low=1)
        return cls(np.zeros(channels, dtype), np.ones(channels, dtype))


def ghost_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    ghost_size: int = 128,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> Array[F]:
    """Normalize each ghost batch, a run of consecutive examples, by its own statistics.

    Parameters
    ----------
    x : array (B, C, ...)
        A large batch.
    gain, bias : arrays (C,)
        Scale and shift of each channel, shared by all ghost batches; 1 and 0 at initialization.
    ghost_size : int >= 1
        Examples of a ghost batch; the last one may be smaller.
    eps : float > 0
        Added to the variance.
    merge_last : bool
        Let a last ghost batch that is smaller join the one before it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``ghost_size`` is not an integer.
    ValueError
        If a shape is wrong, an option is out of range, there are no examples, or a ghost batch has a single
        value for a channel.

    Notes
    -----
    With ``ghost_size >= B`` this is batch norm. The output for an example depends on its ghost batch only.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, algorithm 1.

    Examples
    --------
    >>> x = np.array([[1.0], [3.0], [2.0], [6.0]])
    >>> ghost_batch_norm(x, np.ones(1), np.zeros(1), ghost_size=2, eps=1e-9).ravel().round(6)
    array([-1.,  1., -1.,  1.])
    """
    return ghost_batch_norm_vjp(x, gain, bias, ghost_size=ghost_size, eps=eps, merge_last=merge_last)[0]


def ghost_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    ghost_size: int = 128,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`ghost_batch_norm` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x = _checks.float_array(x, "x", min_ndim=2)
    for name, array in (("gain", gain), ("bias", bias)):
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (x.shape[1],))
    _checks.positive(eps, "eps")
    chunks = _chunks(x, ghost_size, merge_last)
    places = (0, *range(2, x.ndim))
    scale, shift = np.expand_dims(gain, places), np.expand_dims(bias, places)
    normed = [standardize(x[chunk], places, eps) for chunk in chunks]
    x_hat = np.concatenate([part for part, _ in normed])
    y: Array[F] = (scale * x_hat + shift).astype(np.result_type(x, gain, bias))

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # The ghost batches do not know of each other: batch norm's pullback on each. Gain and bias are shared.
        dx_hat = dy * scale
        dx = np.concatenate([back(dx_hat[chunk]) for chunk, (_, back) in zip(chunks, normed, strict=True)])
        dgain, dbias = (dy * x_hat).sum(axis=places), np.sum(dy, axis=places, dtype=np.float64)
        return dx.astype(x.dtype), dgain.astype(x.dtype), dbias.astype(x.dtype)

    return y, pullback


def ghost_batch_norm_train(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: GhostBatchState,
    *,
    ghost_size: int = 128,
    momentum: float = 0.1,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> tuple[Array[F], GhostBatchState]:
    """Normalize ghost batches and move the running statistics once for each of them, in order.

    Parameters
    ----------
    x, gain, bias, ghost_size, eps, merge_last
        As in :func:`ghost_batch_norm`.
    state : GhostBatchState
        Running statistics before this batch.
    momentum : float in [0, 1]
        Weight of one ghost batch in the running statistics.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : GhostBatchState

    Raises
    ------
    TypeError, ValueError
        As :func:`ghost_batch_norm`, or if the state does not fit or ``momentum`` is out of range.

    Notes
    -----
    With K ghost batches, ``running = (1 - momentum)^K running + sum_k momentum (1 - momentum)^(K - k) batch_k``;
    the variances enter unbiased. For use, give the statistics to ``batch_norm``.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, algorithm 1.

    Examples
    --------
    >>> x = np.array([[1.0], [3.0], [2.0], [6.0]])
    >>> y, state = ghost_batch_norm_train(x, np.ones(1), np.zeros(1), GhostBatchState.create(1), ghost_size=2)
    >>> state.mean
    array([0.58])
    """
    options: dict[str, Any] = {"ghost_size": ghost_size, "momentum": momentum, "eps": eps, "merge_last": merge_last}
    return ghost_batch_norm_train_vjp(x, gain, bias, state, **options)[0]


def ghost_batch_norm_train_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: GhostBatchState,
    *,
    ghost_size: int = 128,
    momentum: float = 0.1,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> tuple[tuple[Array[F], GhostBatchState], Pullback]:
    """Return :func:`ghost_batch_norm_train` and its pullback ``dy -> (dx, dgain, dbias)``.

    The state takes no cotangent and gets none.
    """
    y, pullback = ghost_batch_norm_vjp(x, gain, bias, ghost_size=ghost_size, eps=eps, merge_last=merge_last)
    wide = np.real(x).astype(np.float64)
    mean, var = _checks.float_array(state.mean, "state.mean"), _checks.float_array(state.var, "state.var")
    for name, array in (("state.mean", mean), ("state.var", var)):
        _checks.same_dtype("x", x, **{name: array})
        _checks.shape(array, name, (x.shape[1],))
    places = (0, *range(2, x.ndim))
    running = mean.astype(np.float64), var.astype(np.float64)
    for chunk in _chunks(x, ghost_size, merge_last):
        part = wide[chunk]
        count = part.size // x.shape[1]
        running = update_running_statistics(
            *running, part.mean(axis=places), part.var(axis=places), count, momentum=momentum
        )
    return (y, GhostBatchState(running[0].astype(mean.dtype), running[1].astype(var.dtype))), pullback


def _chunks(x: AnyArray, ghost_size: int, merge_last: bool) -> list[slice]:
    """Return the ghost batches as slices of the first axis."""
    ghost_size = _checks.whole(ghost_size, "ghost_size", low=1)
    _checks.not_empty(x, "x", range(x.ndim))
    size = len(x)
    starts = list(range(0, size, ghost_size))
    if merge_last and len(starts) > 1 and size % ghost_size:
        starts.pop()
    chunks = [slice(a, b) for a, b in zip(starts, [*starts[1:], size], strict=True)]
    smallest = (chunks[-1].stop - chunks[-1].start) * (x[0, 0].size)
    if min(smallest, min(ghost_size, size) * x[0, 0].size) < 2:
        _checks.fail(
            "ghost_size",
            f"ghost batches of at least 2 values a channel (merge_last=True may help) of {size}",
            ghost_size,
        )
    return chunks


def scale_learning_rate(learning_rate: float, small: int, large: int, *, rule: str = "sqrt") -> float:
    """Return the learning rate for a large batch, from one that is good for a small batch.

    Parameters
    ----------
    learning_rate : float > 0
        For batches of ``small`` examples.
    small, large : ints >= 1
        Batch sizes.
    rule : ``"sqrt"`` or ``"linear"``
        Factor ``sqrt(large / small)``, or ``large / small`` for comparison.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If a size is not an integer.
    ValueError
        If an argument is out of range.

    Notes
    -----
    The noise of one update has covariance ``learning_rate^2 / batch`` times that of a gradient; the root keeps
    it the same.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, section 4.1, equation 7.

    Examples
    --------
    >>> scale_learning_rate(0.1, 128, 2048), scale_learning_rate(0.1, 128, 2048, rule="linear")
    (0.4, 1.6)
    """
    _checks.positive(learning_rate, "learning_rate")
    ratio = _checks.whole(large, "large", low=1) / _checks.whole(small, "small", low=1)
    _checks.one_of(rule, "rule", ("sqrt", "linear"))
    return float(learning_rate * (np.sqrt(ratio) if rule == "sqrt" else ratio))


def clip_by_global_norm(grads: Tree, max_norm: float = 5.0) -> tuple[Tree, float]:
    """Shorten a whole gradient to a largest norm.

    Parameters
    ----------
    grads : tree of float arrays
        All gradients of a model; leaves may be ``None``.
    max_norm : float > 0

    Returns
    -------
    grads : tree of the same structure, shapes and dtypes
    norm : float
        Euclidean norm of all entries before clipping.

    Raises
    ------
    TypeError
        If a leaf is not float32 or float64.
    ValueError
        If ``max_norm <= 0``.

    Notes
    -----
    All leaves are multiplied by ``min(1, max_norm / norm)``: the direction stays. The norm is taken after division
    by the largest entry, so squares do not overflow. With NaN or infinity in a leaf the norm is not finite,
    and the gradient is returned as it is.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, section 4.1.

    Examples
    --------
    >>> clip_by_global_norm({"w": np.array([6.0]), "b": np.array([8.0])})
    ({'w': array([3.]), 'b': array([4.])}, 10.0)
    """
    _checks.positive(max_norm, "max_norm")
    norm = _global_norm(grads, "grads")
    scale = max_norm / norm if np.isfinite(norm) and norm > max_norm else 1.0
    return tree_map(lambda leaf: None if leaf is None else np.asarray(leaf) * scale, grads), norm


def adapt_regime(boundaries: Sequence[int], small: int, large: int) -> tuple[int, ...]:
    """Stretch the epochs of a schedule so that a large batch gets as many updates as a small one.

    Parameters
    ----------
    boundaries : ints >= 0
        Epochs at which the schedule for batches of ``small`` examples changes or ends.
    small, large : ints >= 1
        Batch sizes.

    Returns
    -------
    tuple of ints
        Each boundary times ``ceil(large / small)``.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If a boundary is negative or a size is below 1.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, section 5.

    Examples
    --------
    >>> adapt_regime([81, 122, 164], 128, 4096)
    (2592, 3904, 5248)
    """
    small, large = _checks.whole(small, "small", low=1), _checks.whole(large, "large", low=1)
    return tuple(_checks.whole(epoch, "boundaries", low=0) * -(-large // small) for epoch in boundaries)


def weight_distance(params: Tree, start: Tree) -> float:
    """Return the Euclidean distance of all parameters from where they started.

    Parameters
    ----------
    params, start : trees of float arrays of one structure

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If the structures, shapes or dtypes differ.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, section 3.

    Examples
    --------
    >>> weight_distance([np.array([3.0]), np.array([1.0])], [np.array([0.0]), np.array([5.0])])
    5.0
    """

    def difference(now: Any, then: Any) -> Any:
        if now is None or then is None:
            return None
        now, then = _checks.float_array(now, "params"), _checks.float_array(then, "start")
        _checks.same_dtype("params", now, start=then)
        _checks.shape(then, "start", now.shape)
        return now.astype(np.float64) - then

    return _global_norm(tree_map(difference, params, start, path="start"), "params")


def _global_norm(tree: Tree, name: str) -> float:
    leaves = [
        _checks.float_array(leaf, f"{name}.{path}" if path else name).astype(np.float64)
        for path, leaf in tree_leaves(tree)
        if leaf is not None and np.size(leaf)
    ]
    largest = max((float(np.abs(leaf).max()) for leaf in leaves), default=0.0)
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(sum(float(((leaf / largest) ** 2).sum()) for leaf in leaves)))


@dataclass(frozen=True)
class DiffusionFit:
    """Two laws for a distance over time, each fitted by least squares.

    Parameters
    ----------
    log_intercept, log_slope, log_r2
        ``distance = intercept + slope log(t)`` and its share of explained variance.
    power_scale, power, power_r2
        ``distance = scale t^power`` and its share of explained variance.
    """

    log_intercept: float
    log_slope: float
    log_r2: float
    power_scale: float
    power: float
    power_r2: float


def fit_diffusion(t: Array[F], distance: Array[F]) -> DiffusionFit:
    """Fit a logarithm and a power to the distance of weights from their start.

    Parameters
    ----------
    t : array (T,)
        Numbers of updates, all > 0, at least three different ones.
    distance : array (T,)
        Distances after that many updates, not all equal.

    Returns
    -------
    DiffusionFit

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If shapes differ, a number is not finite, a time is not positive, or there are too few different ones.

    Notes
    -----
    Both fits minimize the sum of squares of the distances themselves, so that their ``r2`` can be compared. For
    each power the best scale has a closed form, and the power is searched between 0 and 4. A random walk in a
    potential of random steps goes like ``log(t)``; free diffusion has the power 1/2.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, section 3, equations 5 and 6.

    Examples
    --------
    >>> t = np.arange(1.0, 200.0)
    >>> fit = fit_diffusion(t, 1 + 2 * np.log(t))
    >>> round(fit.log_slope, 6), round(fit.log_r2, 6), fit.power_r2 < 1
    (2.0, 1.0, True)
    """
    t, distance = _checks.float_array(t, "t", ndim=1), _checks.float_array(distance, "distance")
    _checks.same_dtype("t", t, distance=distance)
    _checks.shape(distance, "distance", t.shape)
    _checks.finite(t, "t")
    _checks.finite(distance, "distance")
    if len(np.unique(t)) < 3 or t.min() <= 0:
        _checks.fail("t", "at least three different times > 0", t)
    log_t, d = np.log(t.astype(np.float64)), distance.astype(np.float64)
    total = float(((d - d.mean()) ** 2).sum())
    if total == 0:
        _checks.fail("distance", "values that are not all equal", d[0])
    centred = log_t - log_t.mean()
    slope = float(centred @ d / (centred @ centred))
    intercept = float(d.mean() - slope * log_t.mean())

    def power_law(power: float) -> tuple[float, float]:
        # Times are divided by the last one, so that no power overflows.
        shape = np.exp(power * (log_t - log_t.max()))
        scale = float(shape @ d / (shape @ shape))
        return scale, float(((d - scale * shape) ** 2).sum())

    power = float(
        minimize_scalar(
            lambda p: power_law(p)[1], bounds=(0.0, LARGEST_POWER), method="bounded", options={"xatol": 1e-10}
        ).x
    )
    scale, residual = power_law(power)
    return DiffusionFit(
        log_intercept=intercept,
        log_slope=slope,
        log_r2=1 - float(((d - intercept - slope * log_t) ** 2).sum()) / total,
        power_scale=scale * float(np.exp(-power * log_t.max())),
        power=power,
        power_r2=1 - residual / total,
    )
