"""Layer-adaptive pruning: one ratio a layer, by dynamic programming over measured output distortion.

    minimize  sum_l curves[l, d_l]   subject to   sum_l survivors[l, d_l] <= budget

``curves[l, d]`` is what the network's output loses when layer ``l`` alone is pruned at ``ratios[d]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback

METHOD = Method(
    title="Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
    authors="Xu, Wang, Geng, Lin, Wu, Li, Lin",
    year=2023,
    arxiv="2308.10438",
    functions=(
        "RatioAllocation",
        "allocate_ratios",
        "apply_mask",
        "distortion_curves",
        "erk_ratios",
        "global_ratios",
        "iterative_targets",
        "lamp_ratios",
        "lamp_scores",
        "magnitude_mask",
        "relative_ratios",
    ),
    chapter="quantizers/layer_adaptive_pruning",
)

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""A product within this relative distance of the next whole number is that number: 0.29 * 100 is 29."""

MOST_BUCKETS = 4096
"""Default resolution of the budget. The table of choices then takes 8 KiB a layer, whatever the network's size."""

MOST_RATIOS = 65536
"""Choices are stored in 16 bits."""


def magnitude_mask(weight: Array[F], ratio: float) -> Array[np.bool_]:
    """Mark the entries that stay when the smallest ones are pruned.

    Parameters
    ----------
    weight : array of any shape, finite
    ratio : float
        ``floor(ratio * size)`` entries go; none for ``ratio <= 0``, all for ``ratio >= 1``.

    Returns
    -------
    bool array of the shape of ``weight``
        False for the entries that are smallest in magnitude. Of equal ones, those with the lower flat index go first.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is not float32 or float64 or holds NaN or infinity, or ``ratio`` is not finite.

    References
    ----------
    Xu et al. (2023), arXiv 2308.10438, section 3.

    Examples
    --------
    >>> magnitude_mask(np.array([0.5, -0.1, 0.1, 2.0]), 0.25)
    array([ True, False,  True,  True])
    """
    weight = _checks.float_array(weight, "weight")
    _checks.finite(weight, "weight")
    if not np.isfinite(ratio):
        _checks.fail("ratio", "a finite number", ratio)
    return _keep_largest(np.abs(weight), _floor(min(max(ratio, 0.0), 1.0) * weight.size))


def apply_mask(weight: Array[F], mask: Array[np.bool_]) -> Array[F]:
    """Set the entries that a mask leaves out to 0.

    Parameters
    ----------
    weight : array
    mask : bool array of the same shape

    Returns
    -------
    array, shape and dtype of ``weight``
        NaN and infinity disappear with their entries.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.

    Examples
    --------
    >>> apply_mask(np.array([1.0, 2.0]), np.array([True, False]))
    array([1., 0.])
    """
    return apply_mask_vjp(weight, mask)[0]


def apply_mask_vjp(weight: Array[F], mask: Array[np.bool_]) -> tuple[Array[F], Pullback]:
    """Return :func:`apply_mask` and its pullback ``dy -> (dweight,)``: pruned entries stay pruned in training.

    Parameters and errors are those of :func:`apply_mask`.
    """
    weight, mask = _checks.float_array(weight, "weight"), np.asarray(mask)
    if mask.dtype != np.bool_:
        _checks.fail_type("mask", "a bool array", f"dtype {mask.dtype}")
    _checks.shape(mask, "mask", weight.shape)
    y: Array[F] = np.where(mask, weight, np.zeros_like(weight))

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # y = weight where kept, the constant 0 elsewhere.
        dweight: Array[F] = np.where(mask, dy, np.zeros_like(weight))
        return (dweight,)

    return y, pullback


def distortion_curves(
    forward: Callable[[Any, list[AnyArray]], AnyArray],
    weights: Sequence[Array[F]],
    x: Any,
    *,
    ratios: Sequence[float] | AnyArray,
    worst_case: bool = False,
) -> Array[np.float64]:
    """Measure what the output loses when each layer alone is pruned.

    Parameters
    ----------
    forward : callable
        ``forward(x, weights)`` returns the network's output, a float array (M, ...) for M inputs. It must give the
        same result every time.
    weights : sequence of L arrays
        The weights that may be pruned.
    x
        Calibration inputs, as ``forward`` wants them. Without data, numbers from N(0, 1) can stand in.
    ratios : increasing numbers in [0, 1]
        The grid.
    worst_case : bool
        Take the largest loss over the inputs instead of the mean.

    Returns
    -------
    float64 array (L, len(ratios))
        Mean squared difference of the output, exactly 0 where nothing is pruned.

    Raises
    ------
    TypeError, ValueError
        If there is no layer, or ``ratios``, a weight or an output of ``forward`` is not as expected.

    References
    ----------
    Xu et al. (2023), arXiv 2308.10438, section 3.

    Examples
    --------
    >>> curves = distortion_curves(lambda x, w: x @ w[0], [np.array([[1.0], [2.0]])], np.eye(2), ratios=[0, 0.5, 1])
    >>> curves
    array([[0. , 0.5, 2.5]])
    """
    grid = _check_ratios(ratios)
    layers = _check_weights(weights)
    target = _checks.float_array(forward(x, list(layers)), "output of forward", min_ndim=1)
    _checks.not_empty(target, "output of forward", range(target.ndim))
    curves = np.zeros((len(layers), len(grid)))
    for number, weight in enumerate(layers):
        for d, ratio in enumerate(grid):
            mask = magnitude_mask(weight, ratio)
            if mask.all():
                continue
            pruned = [*layers[:number], apply_mask(weight, mask), *layers[number + 1 :]]
            output = _checks.float_array(forward(x, pruned), "output of forward")
            _checks.shape(output, "output of forward", target.shape)
            # float64: small losses of float32 networks are sums of many squares.
            difference = output.astype(np.float64) - target
            each = np.mean(difference.reshape(len(target), -1) ** 2, axis=1)
            curves[number, d] = each.max() if worst_case else each.mean()
    return curves


@dataclass(frozen=True, eq=False)
class RatioAllocation:
    """One pruning ratio for each layer.

    Parameters
    ----------
    ratios : float64 array (L,)
        The ratios chosen from the grid.
    objective : float
        Sum of the layers' distortions.
    survivors : int array (L,)
        Weights that stay in each layer.
    """

    ratios: Array[np.float64]
    objective: float
    survivors: IntArray


def allocate_ratios(
    curves: Array[F],
    sizes: Sequence[int] | IntArray,
    *,
    ratios: Sequence[float] | AnyArray,
    sparsity: float,
    previous: Sequence[float] | AnyArray | None = None,
    resolution: int | None = None,
    monotone: bool = False,
) -> RatioAllocation:
    """Choose the ratios whose distortions have the smallest sum, under one budget for all layers.

    Parameters
    ----------
    curves : array (L, S)
        Distortion of each layer at each ratio, finite.
    sizes : L integers >= 1
        Weights of each layer.
    ratios : S increasing numbers in [0, 1]
        The grid of the curves.
    sparsity : float in [0, 1]
        Share of all weights that must go: ``floor((1 - sparsity) * sum(sizes))`` may stay.
    previous : L numbers in [0, 1], optional
        Ratios of an earlier round, below which no layer goes again.
    resolution : int >= 1, optional
        Buckets that the budget is divided into; at most as many as weights may stay. Rounding is up, so that the
        budget is never exceeded. The default is the smaller of the budget and 4096; up to there, the result is the
        exact optimum.
    monotone : bool
        Replace each curve by its running maximum, against noise in the measurement.

    Returns
    -------
    RatioAllocation
        Of choices with equal sums, the one that prunes the last layer least, then the one before it, and so on.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or no choice fits the budget.

    Notes
    -----
    Dynamic programming: ``best_l(j) = min_d curves[l, d] + best_{l-1}(j - survivors[l, d])`` for ``j`` from 0 to the
    budget, then back from the whole budget. The work is L * S * resolution additions.

    References
    ----------
    Xu et al. (2023), arXiv 2308.10438, section 3 (problem and programme).

    Examples
    --------
    >>> made = allocate_ratios(np.array([[0.0, 1, 10], [0, 4, 5]]), [4, 4], ratios=[0, 0.5, 1], sparsity=0.5)
    >>> made.ratios, made.objective
    (array([0.5, 0.5]), 5.0)
    """
    grid = _check_ratios(ratios)
    table, counts = _check_curves(curves, sizes, len(grid))
    _checks.in_range(sparsity, "sparsity", 0.0, 1.0)
    if monotone:
        table = np.maximum.accumulate(table, axis=1)
    stay = np.array([[size - _floor(ratio * size) for ratio in grid] for size in counts])
    allowed = np.ones(stay.shape, bool)
    if previous is not None:
        earlier = np.asarray(previous, np.float64)
        _checks.shape(earlier, "previous", (len(counts),))
        allowed = grid >= earlier[:, None]
        if not allowed.any(axis=1).all():
            _checks.fail("previous", f"numbers of at most {grid[-1]}, the end of the grid", earlier.max())
    budget = _floor((1 - sparsity) * sum(counts))
    least = int(np.where(allowed, stay, stay.max()).min(axis=1).sum())
    if least > budget:
        _checks.fail("sparsity", f"ratios that let at most {budget} weights stay", f"at least {least}")
    cost, buckets = _bucketed(stay, budget, resolution)
    chosen = _programme(table, np.where(allowed, cost, buckets + 1), buckets)
    rows = np.arange(len(counts))
    return RatioAllocation(
        ratios=grid[chosen], objective=float(table[rows, chosen].sum()), survivors=stay[rows, chosen]
    )


def _bucketed(stay: IntArray, budget: int, resolution: int | None) -> tuple[IntArray, int]:
    if resolution is None:
        buckets = min(budget, MOST_BUCKETS)
    else:
        buckets = min(budget, _checks.whole(resolution, "resolution", low=1))
    if budget == 0:
        return (stay > 0).astype(np.int64), 0
    # Up: cost >= stay * buckets / budget, so that costs within the buckets are weights within the budget.
    return -(-stay * buckets // budget), buckets


def _programme(curves: Array[np.float64], cost: IntArray, buckets: int) -> IntArray:
    """Return one column a row, with the least sum of ``curves`` among those whose costs fit the buckets."""
    best = np.zeros(buckets + 1)
    choices = np.zeros((len(curves), buckets + 1), np.uint16)
    for row, (curve, needs) in enumerate(zip(curves, cost, strict=True)):
        improved = np.full(buckets + 1, np.inf)
        for d in np.flatnonzero(needs <= buckets):
            # All budgets j at once: this choice leaves j - need to the layers before.
            candidate = curve[d] + best[: buckets + 1 - needs[d]]
            better = candidate < improved[needs[d] :]
            improved[needs[d] :][better] = candidate[better]
            choices[row, needs[d] :][better] = d
        best = improved
    if np.isinf(best[-1]):
        _checks.fail("resolution", "buckets fine enough for the smallest layers", buckets)
    left, chosen = buckets, np.zeros(len(curves), np.int64)
    for row in range(len(curves) - 1, -1, -1):
        chosen[row] = choices[row, left]
        left -= int(cost[row, chosen[row]])
    return chosen


def iterative_targets(rate: float, n_rounds: int) -> Array[np.float64]:
    """Return the sparsity after each round, if each removes one share of what is left.

    Parameters
    ----------
    rate : float in (0, 1)
        Share of the remaining weights that a round removes.
    n_rounds : int >= 1

    Returns
    -------
    float64 array (n_rounds,)
        ``1 - (1 - rate)^i`` for ``i = 1 .. n_rounds``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> iterative_targets(0.5, 3)
    array([0.5  , 0.75 , 0.875])
    """
    _checks.in_range(rate, "rate", 0.0, 1.0, closed="neither")
    rounds = np.arange(1, _checks.whole(n_rounds, "n_rounds", low=1) + 1)
    # expm1 and log1p keep the digits of small rates.
    targets: Array[np.float64] = -np.expm1(rounds * np.log1p(-rate))
    return targets


def relative_ratios(ratios: Array[F], previous: Array[F]) -> Array[F]:
    """Return the share of the weights left by an earlier round that the next one removes.

    Parameters
    ----------
    ratios, previous : arrays of one shape, in [0, 1]
        Pruned shares of all weights, after and before the round.

    Returns
    -------
    array, shape and dtype of ``ratios``
        ``max(0, 1 - (1 - ratios) / (1 - previous))``, and 0 where nothing was left.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or ranges do not fit.

    Examples
    --------
    >>> relative_ratios(np.array([0.75, 0.5, 1.0]), np.array([0.5, 0.5, 1.0]))
    array([0.5, 0. , 0. ])
    """
    ratios, previous = _checks.float_array(ratios, "ratios"), _checks.float_array(previous, "previous")
    _checks.same_dtype("ratios", ratios, previous=previous)
    _checks.shape(previous, "previous", ratios.shape)
    for name, array in (("ratios", ratios), ("previous", previous)):
        if not ((array >= 0) & (array <= 1)).all():
            _checks.fail(name, "numbers in [0, 1]", array)
    left = np.where(previous < 1, 1 - previous, np.ones_like(previous))
    removed: Array[F] = np.where(previous < 1, np.maximum(0, (ratios - previous) / left), np.zeros_like(ratios))
    return removed


def erk_ratios(shapes: Sequence[Sequence[int]], sparsity: float) -> Array[np.float64]:
    """Return the ratios of the Erdos-Renyi-kernel rule, which keeps a larger share of small layers.

    Parameters
    ----------
    shapes : sequence of L shapes
        Of the weights.
    sparsity : float in [0, 1]
        Share of all weights that goes.

    Returns
    -------
    float64 array (L,)
        ``1 - min(1, c * sum(shape) / prod(shape))``, with the ``c`` that keeps ``1 - sparsity`` of all weights.

    Raises
    ------
    TypeError, ValueError
        If a size is no integer or below 1, or ``sparsity`` is out of its range.

    References
    ----------
    Evci et al. (2020), Rigging the Lottery, arXiv 1911.11134, section 3.

    Examples
    --------
    >>> erk_ratios([(10, 10), (20, 20)], 0.5).round(4)
    array([0.1667, 0.5833])
    """
    if not len(shapes):
        _checks.fail("shapes", "at least one", shapes)
    for shape in shapes:
        for size in shape:
            _checks.whole(size, "shapes", low=1)
    _checks.in_range(sparsity, "sparsity", 0.0, 1.0)
    sizes = np.array([np.prod(shape) for shape in shapes], np.float64)
    score = np.array([np.sum(shape) for shape in shapes], np.float64) / sizes
    density = np.ones(len(sizes))
    open_layers = np.ones(len(sizes), bool)
    # A layer that would keep more than all keeps all, and the others share what is left. Each round closes one
    # layer at least.
    while open_layers.any():
        left = (1 - sparsity) * sizes.sum() - sizes[~open_layers].sum()
        density[open_layers] = score[open_layers] * left / (score * sizes)[open_layers].sum()
        over = open_layers & (density > 1)
        if not over.any():
            break
        density[over] = 1
        open_layers &= ~over
    return 1 - density


def global_ratios(weights: Sequence[Array[F]], sparsity: float) -> Array[np.float64]:
    """Return the ratios that one magnitude threshold for all layers leads to.

    Parameters
    ----------
    weights : sequence of L arrays, finite
    sparsity : float in [0, 1]
        Share of all weights that goes.

    Returns
    -------
    float64 array (L,)
        Pruned share of each layer.

    Raises
    ------
    TypeError, ValueError
        If there is no layer, or a weight or ``sparsity`` is not as described.

    Examples
    --------
    >>> global_ratios([np.array([1.0, 2.0]), np.array([0.5, 0.1])], 0.5)
    array([0., 1.])
    """
    return _threshold_ratios([np.abs(weight) for weight in _check_weights(weights)], sparsity)


def lamp_scores(weight: Array[F]) -> Array[F]:
    """Return each weight's share of the squares that are left once all smaller weights are gone.

    Parameters
    ----------
    weight : array of any shape, finite

    Returns
    -------
    array, shape and dtype of ``weight``, in [0, 1]
        1 for the largest magnitude, if it is the only one; 0 for a weight of 0.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is not float32 or float64 or holds NaN or infinity.

    Notes
    -----
    ``w_i^2 / sum_{|w_j| >= |w_i|} w_j^2``.

    References
    ----------
    Lee et al. (2021), Layer-adaptive Sparsity for the Magnitude-based Pruning, arXiv 2010.07611, equation 4.

    Examples
    --------
    >>> lamp_scores(np.array([1.0, -2.0, 0.0, 2.0])).round(4)
    array([0.1111, 0.5   , 0.    , 0.5   ])
    """
    weight = _checks.float_array(weight, "weight")
    _checks.finite(weight, "weight")
    magnitude = np.abs(weight).reshape(-1).astype(np.float64)
    largest = magnitude.max(initial=0.0)
    if largest == 0:
        return np.zeros_like(weight)
    # The score has no scale; dividing first keeps squares in the range.
    squares = (magnitude / largest) ** 2
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    tail = np.cumsum(ascending[::-1])[::-1]
    first_equal = np.searchsorted(ascending, ascending, side="left")
    scores = np.empty_like(squares)
    scores[order] = ascending / tail[first_equal]
    shares: Array[F] = scores.reshape(weight.shape).astype(weight.dtype)
    return shares


def lamp_ratios(weights: Sequence[Array[F]], sparsity: float) -> Array[np.float64]:
    """Return the ratios that one threshold on :func:`lamp_scores` for all layers leads to.

    Parameters, result and errors are those of :func:`global_ratios`.

    References
    ----------
    Lee et al. (2021), Layer-adaptive Sparsity for the Magnitude-based Pruning, arXiv 2010.07611, section 3.

    Examples
    --------
    >>> lamp_ratios([np.array([1.0, 2.0]), np.array([0.5, 0.1])], 0.5)
    array([0.5, 0.5])
    """
    return _threshold_ratios([lamp_scores(weight.astype(np.float64)) for weight in _check_weights(weights)], sparsity)


def _threshold_ratios(scores: list[AnyArray], sparsity: float) -> Array[np.float64]:
    _checks.in_range(sparsity, "sparsity", 0.0, 1.0)
    sizes = [score.size for score in scores]
    together = np.concatenate([score.reshape(-1) for score in scores])
    kept = _keep_largest(together, _floor(sparsity * together.size))
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    return np.array([(size - int(part.sum())) / size for part, size in zip(parts, sizes, strict=True)])


def _keep_largest(score: AnyArray, n_pruned: int) -> Array[np.bool_]:
    """Mark all but the ``n_pruned`` smallest scores; of equal ones, those with the lower flat index go first."""
    if n_pruned == 0:
        return np.ones(score.shape, bool)
    flat = score.reshape(-1)
    threshold = np.partition(flat, n_pruned - 1)[n_pruned - 1]
    kept = flat > threshold
    equal = np.flatnonzero(flat == threshold)
    kept[equal[n_pruned - int((flat < threshold).sum()) :]] = True
    mask: Array[np.bool_] = kept.reshape(score.shape)
    return mask


def _floor(value: float) -> int:
    return int(np.floor(value * (1 + ROUNDING)))


def _check_ratios(ratios: Sequence[float] | AnyArray) -> Array[np.float64]:
    grid = np.asarray(ratios, np.float64)
    if grid.ndim != 1 or not 1 <= grid.size <= MOST_RATIOS:
        _checks.fail("ratios", f"1 to {MOST_RATIOS} numbers in one dimension", f"shape {grid.shape}")
    if not (grid[0] >= 0 and grid[-1] <= 1 and (np.diff(grid) > 0).all()):
        _checks.fail("ratios", "increasing numbers in [0, 1]", grid)
    return grid


def _check_weights(weights: Sequence[Array[F]]) -> list[AnyArray]:
    layers = [_checks.float_array(weight, f"weights[{i}]") for i, weight in enumerate(weights)]
    if not layers:
        _checks.fail("weights", "at least one array", "none")
    for i, weight in enumerate(layers):
        _checks.not_empty(weight, f"weights[{i}]", range(weight.ndim))
        _checks.finite(weight, f"weights[{i}]")
    return layers


def _check_curves(
    curves: AnyArray, sizes: Sequence[int] | IntArray, n_ratios: int
) -> tuple[Array[np.float64], list[int]]:
    table = _checks.float_array(curves, "curves", ndim=2).astype(np.float64)
    counts = _checks.integer_array(sizes, "sizes", ndim=1, low=1)
    if not counts.size:
        _checks.fail("sizes", "at least one layer", "none")
    _checks.shape(table, "curves", (len(counts), n_ratios))
    wrong = ~np.isfinite(table).all(axis=1)
    if wrong.any():
        _checks.fail("curves", "finite values", f"NaN or infinity in layer {int(np.argmax(wrong))}")
    return table, [int(count) for count in counts]
