"""ZeroQ: quantize a network without data, from what its batch-norm layers remember.

    x = argmin sum_i |mean_i - mean(h_i(x))|^2 + |std_i - std(h_i(x))|^2           (inputs of batch norms, by descent on x)

The distilled x gives ranges of activations and the sensitivity of each layer; a Pareto frontier chooses bits from these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.quantizers._calibration import check_bits, fake_quantize_range
from refnorm.quantizers._descent import Descent
from refnorm.softmax import log_softmax
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="ZeroQ: A Novel Zero Shot Quantization Framework",
    authors="Cai, Yao, Dong, Gholami, Mahoney, Keutzer",
    year=2020,
    arxiv="2001.00281",
    functions=(
        "bn_stats_loss",
        "DistillResult",
        "distill_data",
        "activation_ranges",
        "layer_sensitivity",
        "Frontier",
        "pareto_frontier",
    ),
    chapter="quantizers/zero_shot_quant",
)

STATS = ("image", "batch")

BN_EPS = 1e-6
"""Added to variances (the authors' code): it bounds the gradient of the deviation of constant maps."""

PLATEAU_THRESHOLD = 1e-4
"""Share by which a loss must fall below the best one to count as an improvement."""

PLATEAU_FACTOR = 0.1
"""What the learning rate is multiplied by on a plateau."""


def bn_stats_loss(h: Array[F], mean: Array[F], std: Array[F], *, stats: str = "image", eps: float = BN_EPS) -> Array[F]:
    """Return how far the statistics of activations are from given ones.

    Parameters
    ----------
    h : array (B, C, ...)
        Input of a batch norm.
    mean, std : arrays (C,)
        What it should have.
    stats : {"image", "batch"}
        Statistics of each image over its pixels, with the mean of the losses; or of the whole batch.
    eps : float >= 0
        Added to the variance of ``h``, whose divisor is the number of entries less one.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, or there are fewer than two entries a channel.

    Notes
    -----
    ``sum_c (mean(h_c) - mean_c)^2 + (sqrt(var(h_c) + eps) - std_c)^2``, averaged over the images.

    References
    ----------
    Cai et al. (2020), arXiv 2001.00281, equation 3.

    Examples
    --------
    >>> float(bn_stats_loss(np.array([[[1.0, 3.0]]]), np.zeros(1), np.ones(1), eps=0.0).round(6))
    4.171573
    """
    return bn_stats_loss_vjp(h, mean, std, stats=stats, eps=eps)[0]


def bn_stats_loss_vjp(
    h: Array[F], mean: Array[F], std: Array[F], *, stats: str = "image", eps: float = BN_EPS
) -> tuple[Array[F], Pullback]:
    """Return :func:`bn_stats_loss` and its pullback ``dloss -> (dh, dmean, dstd)``."""
    h = _checks.float_array(h, "h", min_ndim=2)
    mean, std = _checks.float_array(mean, "mean"), _checks.float_array(std, "std")
    _checks.same_dtype("h", h, mean=mean, std=std)
    _checks.not_empty(h, "h", range(h.ndim))
    _checks.shape(mean, "mean", h.shape[1:2])
    _checks.shape(std, "std", h.shape[1:2])
    _checks.one_of(stats, "stats", STATS)
    _checks.non_negative(eps, "eps")
    axes = tuple(range(2, h.ndim)) if stats == "image" else (0, *range(2, h.ndim))
    count = int(np.prod([h.shape[axis] for axis in axes], dtype=int))
    if count < 2:
        _checks.fail("h", f"at least 2 entries a channel of each {stats}", f"shape {h.shape}")

    own_mean = h.mean(axis=axes, keepdims=True)
    centred = h - own_mean
    own_std = np.sqrt((centred * centred).sum(axis=axes, keepdims=True) / (count - 1) + eps)
    channels = (-1, *(1,) * (h.ndim - 2))
    mean_off, std_off = own_mean - mean.reshape(channels), own_std - std.reshape(channels)
    sets = len(own_mean)
    loss: Array[F] = np.asarray((mean_off * mean_off + std_off * std_off).sum() / sets)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        scale = np.asarray(2 * dloss / sets, h.dtype)
        # d own_mean / dh = 1 / M, and d own_std / dh = (h - own_mean) / ((M - 1) own_std): the mean's own share of the
        # variance is 0, as the centred entries sum to 0. A constant map without eps has no derivative: 0.
        safe = np.where(own_std == 0, 1, own_std)
        dh = scale * (mean_off / count + std_off * centred / ((count - 1) * safe))
        others = tuple(axis for axis in range(h.ndim) if axis != 1)
        return dh, -scale * mean_off.sum(axis=others), -scale * std_off.sum(axis=others)

    return loss, pullback


@dataclass(frozen=True, eq=False)
class DistillResult:
    """Inputs made by :func:`distill_data`.

    Parameters
    ----------
    x : array
        After the last step.
    n_iter : int
    history : dict of arrays
        Before every step: ``loss``, and the ``learning_rate`` of the step.
    """

    x: AnyArray
    n_iter: int
    history: Mapping[str, AnyArray]


def distill_data(
    layers: Sequence[Callable[[AnyArray], tuple[AnyArray, Pullback]]],
    batch_norms: Sequence[tuple[int, Array[F], Array[F]]],
    shape: Sequence[int],
    *,
    n_iter: int = 500,
    learning_rate: float = 0.5,
    patience: int = 100,
    min_learning_rate: float = 1e-4,
    stats: str = "image",
    eps: float = BN_EPS,
    rng: np.random.Generator,
    callback: Callback | None = None,
) -> DistillResult:
    """Make inputs whose statistics inside a network are those that its batch norms have stored.

    Parameters
    ----------
    layers
        The network in order: each maps ``x`` to ``(y, pullback)``, and the first cotangent is that of ``x``. Batch norms use
        their stored statistics. Layers after the last batch norm are not called.
    batch_norms
        For each batch norm its index in ``layers``, stored mean (C,) and stored variance (C,).
    shape : ints
        Of the inputs: (B, C, ...).
    n_iter : int >= 1
    learning_rate : float > 0
        Adam's, at the beginning.
    patience : int >= 0
        The rate falls to a tenth after more steps than this without a better loss.
    min_learning_rate : float > 0
        It falls no further.
    stats, eps
        As in :func:`bn_stats_loss`.
    rng : numpy.random.Generator
        For the start, normal with mean 0 and deviation 1.
    callback
        Called after every step with a :class:`refnorm.solvers.Progress`; a true result ends the run.

    Returns
    -------
    DistillResult
        Of the dtype of the statistics.

    Raises
    ------
    TypeError, ValueError
        If there is no batch norm, an index or variance is out of its range, or shapes do not fit.
    Diverged
        If the loss grows beyond bounds.

    Notes
    -----
    The loss is the sum of :func:`bn_stats_loss` over the batch norms' inputs and over ``x`` itself, with mean 0 and deviation 1.

    References
    ----------
    Cai et al. (2020), arXiv 2001.00281, algorithm 1.

    Examples
    --------
    >>> double = lambda x: (2 * x, lambda dy: (2 * dy,))
    >>> norms = [(1, np.array([1.0]), np.array([4.0]))]
    >>> found = distill_data([double, double], norms, (1, 1, 8), n_iter=200, rng=np.random.default_rng(0))
    >>> float(found.x.mean().round(3)), float(found.x.std(ddof=1).round(3))
    (0.4, 1.0)
    """
    targets, dtype = _targets(batch_norms, len(layers), eps)
    _checks.whole(n_iter, "n_iter", low=1)
    _checks.positive(learning_rate, "learning_rate")
    _checks.whole(patience, "patience", low=0)
    _checks.positive(min_learning_rate, "min_learning_rate")
    x: AnyArray = _checks.generator(rng).standard_normal(tuple(shape)).astype(dtype)
    descent, monitor = Descent({"x": learning_rate}), Monitor("distill_data", callback=callback)
    rate, best, waited = learning_rate, np.inf, 0
    for _ in range(n_iter):
        loss, dx = _loss_and_grad(layers, targets, x, {"stats": stats, "eps": eps})
        x = descent.step({"x": x}, {"x": dx}, share=rate / learning_rate)["x"]
        if monitor.record(loss=loss, learning_rate=rate):
            break
        best, waited = (loss, 0) if loss < best * (1 - PLATEAU_THRESHOLD) else (best, waited + 1)
        if waited > patience:
            rate, waited = min(rate, max(rate * PLATEAU_FACTOR, min_learning_rate)), 0
    return DistillResult(x, monitor.n_iter, monitor.history())


def _targets(
    batch_norms: Sequence[tuple[int, AnyArray, AnyArray]], n_layers: int, eps: float
) -> tuple[dict[int, tuple[AnyArray, AnyArray]], np.dtype[Any]]:
    """Return mean and deviation by layer, and their dtype."""
    if not batch_norms:
        _checks.fail("batch_norms", "at least one", "none")
    _checks.non_negative(eps, "eps")
    targets = {}
    for index, mean, var in batch_norms:
        _checks.whole(index, "batch_norms", low=0, high=n_layers - 1)
        mean, var = _checks.float_array(mean, "mean", ndim=1), _checks.float_array(var, "var", ndim=1)
        if not (var >= 0).all():
            _checks.fail("var", "values >= 0", var.min())
        targets[int(index)] = (mean, np.asarray(np.sqrt(var + eps), mean.dtype))
    return targets, next(iter(targets.values()))[0].dtype


def _loss_and_grad(
    layers: Sequence[Callable[[AnyArray], tuple[AnyArray, Pullback]]],
    targets: Mapping[int, tuple[AnyArray, AnyArray]],
    x: AnyArray,
    options: Mapping[str, Any],
) -> tuple[float, AnyArray]:
    one = np.ones((), x.dtype)
    channels = x.shape[1:2]
    value, pullback = bn_stats_loss_vjp(x, np.zeros(channels, x.dtype), np.ones(channels, x.dtype), **options)
    loss, dx, h = float(value), pullback(one)[0], x
    steps: list[tuple[Pullback | None, AnyArray | None]] = []
    for index in range(max(targets) + 1):
        local = None
        if index in targets:
            value, pullback = bn_stats_loss_vjp(h, *targets[index], **options)
            loss, local = loss + float(value), pullback(one)[0]
        if index == max(targets):
            steps.append((None, local))
        else:
            h, through = layers[index](h)
            steps.append((through, local))
    # Backwards: what comes through the layer, plus the local cotangent at its input.
    dh: AnyArray | float = 0.0
    for back, local in reversed(steps):
        dh = dh if back is None else back(dh)[0]
        dh = dh if local is None else dh + local
    return loss, np.asarray(dx + dh)


def activation_ranges(forward: Callable[[AnyArray], Sequence[AnyArray]], x: Array[F]) -> tuple[Array[F], Array[F]]:
    """Return the smallest and the largest value of each activation over a batch.

    Parameters
    ----------
    forward
        Maps ``x`` to a sequence of activations.
    x : array (B, ...)

    Returns
    -------
    low, high : arrays (number of activations,)

    Raises
    ------
    TypeError, ValueError
        If an activation is empty, not finite or no float array.

    References
    ----------
    Cai et al. (2020), arXiv 2001.00281, section 3.

    Examples
    --------
    >>> activation_ranges(lambda x: [x, x * x], np.array([[-2.0, 1.0]]))
    (array([-2.,  1.]), array([1., 4.]))
    """
    found = [_checks.float_array(a, "activation", min_ndim=1) for a in forward(_checks.float_array(x, "x", min_ndim=1))]
    for activation in found:
        _checks.not_empty(activation, "activation", range(activation.ndim))
        _checks.finite(activation, "activation")
    return np.array([a.min() for a in found]), np.array([a.max() for a in found])


def layer_sensitivity(
    forward: Callable[[list[AnyArray], AnyArray], AnyArray],
    weights: Sequence[Array[F]],
    x: Array[F],
    bits: Sequence[int],
    *,
    axis: int | None = 0,
) -> Array[np.float64]:
    """Return how much the outputs change if the weights of one layer alone are quantized.

    Parameters
    ----------
    forward
        Maps ``(weights, x)`` to logits (B, classes).
    weights : sequence of L arrays
    x : array (B, ...)
        For example from :func:`distill_data`.
    bits : sequence of ints, 2 to 16
    axis : int or None
        Each index along this axis of a weight (its output channels) has a range of its own; ``None`` for one range a layer.

    Returns
    -------
    float64 array (L, len(bits))

    Raises
    ------
    TypeError, ValueError
        If arrays are no floats, logits are no matrix, or an option is out of its range.

    Notes
    -----
    The mean over the inputs of ``KL(p || q)``, with the class probabilities p of the full network and q with layer i at k bits.

    References
    ----------
    Cai et al. (2020), arXiv 2001.00281, equation 4.

    Examples
    --------
    >>> forward = lambda weights, x: x @ weights[0].T
    >>> weight = np.array([[1.0, 0.2, 0.0], [-1.0, 0.0, 0.0]])
    >>> layer_sensitivity(forward, [weight], np.ones((1, 3)), (2, 8)).round(5)
    array([[0.00077, 0.     ]])
    """
    arrays = [_checks.float_array(w, "weights", min_ndim=1) for w in weights]
    choices = [check_bits(k) for k in bits]
    reference = _log_probabilities(forward(arrays, x))
    found = np.zeros((len(arrays), len(choices)))
    for i, weight in enumerate(arrays):
        kept = None if axis is None else _checks.axes(axis, weight.ndim)[0]
        over = tuple(a for a in range(weight.ndim) if a != kept)
        low, high = weight.min(axis=over, keepdims=True), weight.max(axis=over, keepdims=True)
        for j, k in enumerate(choices):
            changed = [*arrays[:i], fake_quantize_range(weight, low, high, bits=k), *arrays[i + 1 :]]
            off = reference - _log_probabilities(forward(changed, x))
            # KL is never negative; rounding may make it so where both agree.
            found[i, j] = max(0.0, float((np.exp(reference) * off).sum(axis=1).mean()))
    return found


def _log_probabilities(logits: AnyArray) -> AnyArray:
    return log_softmax(_checks.float_array(logits, "logits", ndim=2).astype(np.float64))


@dataclass(frozen=True, eq=False)
class Frontier:
    """Choices of bits that no other choice beats in both size and sensitivity.

    Parameters
    ----------
    size : int array (n,)
        Bits of all weights, ascending.
    sensitivity : float64 array (n,)
        Sum over the layers, descending.
    choice : int array (n, L)
        Bits of each layer.
    """

    size: IntArray
    sensitivity: AnyArray
    choice: IntArray

    def select(self, budget: float) -> IntArray:
        """Return the bits (L,) with the least sensitivity whose size is at most ``budget``, or raise ``ValueError``."""
        if not budget >= self.size[0]:
            _checks.fail("budget", f"at least the smallest size {self.size[0]}", budget)
        return np.asarray(self.choice[np.searchsorted(self.size, budget, side="right") - 1])


def pareto_frontier(sensitivity: Array[F], sizes: IntArray, bits: Sequence[int], *, max_points: int = 4096) -> Frontier:
    """Return the best choices of bits for each total size.

    Parameters
    ----------
    sensitivity : array (L, K)
        From :func:`layer_sensitivity`.
    sizes : int array (L,), >= 1
        Weights of each layer.
    bits : sequence of K ints >= 1
    max_points : int >= 2
        Where there are more points after a layer, one is kept in each of as many intervals of size.

    Returns
    -------
    Frontier
        Exact as long as ``max_points`` is not exceeded.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, a sensitivity is not finite or a number is out of its range.

    Notes
    -----
    Layer by layer, every point is extended by every choice, and dominated points are dropped. Of equals the
    lexicographically smallest choice stays.

    References
    ----------
    Cai et al. (2020), arXiv 2001.00281, section 3.2.

    Examples
    --------
    >>> frontier = pareto_frontier(np.array([[0.5, 0.1], [0.4, 0.2]]), np.array([1, 2]), (2, 4))
    >>> frontier.size, frontier.sensitivity.round(6)
    (array([ 6,  8, 12]), array([0.9, 0.5, 0.3]))
    >>> frontier.select(11)
    array([4, 2])
    """
    sensitivity = _checks.float_array(sensitivity, "sensitivity", ndim=2)
    _checks.not_empty(sensitivity, "sensitivity", (0, 1))
    _checks.finite(sensitivity, "sensitivity")
    options = np.array([_checks.whole(k, "bits", low=1) for k in bits])
    _checks.shape(options, "bits", sensitivity.shape[1:])
    sizes = _checks.integer_array(sizes, "sizes", ndim=1, low=1)
    _checks.shape(sizes, "sizes", sensitivity.shape[:1])
    _checks.whole(max_points, "max_points", low=2)
    size, total, choice = np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int64)
    for row, count in zip(sensitivity.astype(np.float64), sizes.astype(np.int64), strict=True):
        size = (size[:, None] + count * options).ravel()
        total = (total[:, None] + row).ravel()
        choice = np.column_stack([np.repeat(choice, len(options), axis=0), np.tile(options, len(choice))])
        kept = _undominated(size, total, choice)
        if len(kept) > max_points:
            kept = kept[_last_of_each_interval(size[kept], max_points)]
        size, total, choice = size[kept], total[kept], choice[kept]
    return Frontier(size, total, choice)


def _undominated(size: IntArray, total: AnyArray, choice: IntArray) -> IntArray:
    """Return the indices of points without a better one, by size."""
    order = np.lexsort((*choice.T[::-1], total, size))
    least_before = np.minimum.accumulate(np.concatenate([[np.inf], total[order][:-1]]))
    return order[total[order] < least_before]


def _last_of_each_interval(size: IntArray, n: int) -> IntArray:
    """Return the largest size in each of n intervals; the smallest of all has the first one to itself."""
    interval = np.ceil((size - size[0]) * ((n - 1) / (size[-1] - size[0])))
    return np.flatnonzero(np.append(np.diff(interval) > 0, True))
