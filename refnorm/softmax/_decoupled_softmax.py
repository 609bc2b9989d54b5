"""Softmax losses for several right answers, and softmax's counterpart for "among the k best".

decoupled:   log p_l = score_l - log(exp(score_l) + sum over negatives of exp(score))        (l: a positive)
soft top-k:  y = sigmoid(sharpness * (score + shift)),   shift such that sum(y) = k
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax._cross_entropy import _reduce, log_softmax_vjp, logsumexp_vjp
from refnorm.softmax._two_pass import softmax

METHOD = Method(
    title="Dual-Encoders for Extreme Multi-Label Classification",
    authors="Gupta, Khatri, Rawat, Bhojanapalli, Jain, Dhillon",
    year=2023,
    arxiv="2310.10636",
    functions=(
        "decoupled_softmax_loss",
        "log_soft_topk",
        "multilabel_bce_loss",
        "multilabel_softmax_loss",
        "soft_topk",
        "soft_topk_loss",
    ),
    chapter="softmax/decoupled_softmax",
)

MOST_ITERATIONS = 100
"""Of the search for the shift. Bisection alone would exhaust float64 in 64; Newton's steps need about 6."""
STEP_TOLERANCE = 2 * float(np.finfo(np.float64).eps)

_REDUCTIONS = ("mean", "sum", "none")


def decoupled_softmax_loss(
    scores: Array[F],
    positives: AnyArray,
    weights: Array[F] | None = None,
    *,
    reduction: str = "mean",
    normalize_by_positives: bool = True,
) -> Array[F]:
    """Cross-entropy of each positive label against the negative labels only.

    Parameters
    ----------
    scores : array (B, L)
        One row a query. A label that shall take no part has the score ``-inf`` and is no positive.
    positives : boolean or 0/1 integer array (B, L)
        The right labels, any number in a row.
    weights : array (B, L), optional
        Weight of each positive, >= 0; entries of other labels are not read.
    reduction : {"mean", "sum", "none"}
        Over the rows.
    normalize_by_positives : bool
        Divide a row's loss by its number of positives.

    Returns
    -------
    array, () or (B,), dtype of ``scores``

    Raises
    ------
    TypeError
        If scores or weights are not float32 or float64, the dtypes differ, or positives are not boolean or integer.
    ValueError
        If a shape is wrong, there is no label, a weight is negative, a positive is neither 0 nor 1, the reduction
        is unknown, or there is no row to take the mean of.

    Notes
    -----
    With ``D`` the log-sum-exp of the row's negatives, a positive costs ``log(1 + exp(D - score))``. A row without
    positives costs 0 but counts as a row; a row without negatives costs 0.

    References
    ----------
    Gupta et al. (2023), arXiv 2310.10636, the decoupled softmax.

    Examples
    --------
    >>> scores, positives = np.array([[2.0, 1.0, 0.0, -1.0]]), np.array([[1, 1, 0, 0]])
    >>> float(decoupled_softmax_loss(scores, positives).round(6))
    0.288726
    """
    options: dict[str, Any] = {"reduction": reduction, "normalize_by_positives": normalize_by_positives}
    return decoupled_softmax_loss_vjp(scores, positives, weights, **options)[0]


def decoupled_softmax_loss_vjp(
    scores: Array[F],
    positives: AnyArray,
    weights: Array[F] | None = None,
    *,
    reduction: str = "mean",
    normalize_by_positives: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`decoupled_softmax_loss` and its pullback ``dloss -> (dscores, dweights)``.

    The entry of weights that were left out is ``None``. Parameters, errors and references are those of
    :func:`decoupled_softmax_loss`.
    """
    scores, right, share = _arguments(scores, positives, weights, reduction, normalize_by_positives)
    wide = _wide(scores)
    rival, to_negatives = logsumexp_vjp(np.where(right, -np.inf, wide), keepdims=True)
    alone = rival.real == -np.inf
    # A row without negatives has margin -inf at every positive, also where -inf - (-inf) would be NaN.
    margin = np.where(alone, -np.inf, np.where(alone, 0, rival) - np.where(right, wide, 0))
    cost = np.where(right, _softplus(margin), 0)
    value, row_weights = _reduce((share * cost).sum(axis=1), np.ones(len(scores), np.bool_), reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F] | None]:
        # A positive's slope is minus the probability that its negatives beat it; what the positives of a row ask
        # for in total is paid by its negatives, in proportion to exp(score). No positive pays for another.
        row = row_weights(dloss)[:, None]
        asked = row * share * np.where(right, _sigmoid(margin), 0)
        (paid,) = to_negatives(asked.sum(axis=1, keepdims=True))
        dscores = np.where(right, -asked, np.where(alone, 0, paid))
        return dscores.astype(scores.dtype), _weight_cotangent(weights, row * cost, right, normalize_by_positives)

    return np.asarray(_in_dtype_of(scores, value)), pullback


def multilabel_softmax_loss(
    scores: Array[F],
    positives: AnyArray,
    weights: Array[F] | None = None,
    *,
    reduction: str = "mean",
    normalize_by_positives: bool = False,
) -> Array[F]:
    """Sum of the ordinary softmax cross-entropies of all positive labels.

    Parameters, errors and results are those of :func:`decoupled_softmax_loss`, except that rows are not divided by
    their number of positives unless asked.

    Notes
    -----
    Each positive has all other labels, the other positives included, in its denominator.

    References
    ----------
    Gupta et al. (2023), arXiv 2310.10636, the baseline.

    Examples
    --------
    >>> scores, positives = np.array([[2.0, 1.0, 0.0, -1.0]]), np.array([[1, 1, 0, 0]])
    >>> float(multilabel_softmax_loss(scores, positives).round(6))
    1.880379
    """
    options: dict[str, Any] = {"reduction": reduction, "normalize_by_positives": normalize_by_positives}
    return multilabel_softmax_loss_vjp(scores, positives, weights, **options)[0]


def multilabel_softmax_loss_vjp(
    scores: Array[F],
    positives: AnyArray,
    weights: Array[F] | None = None,
    *,
    reduction: str = "mean",
    normalize_by_positives: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`multilabel_softmax_loss` and its pullback ``dloss -> (dscores, dweights)``."""
    scores, right, share = _arguments(scores, positives, weights, reduction, normalize_by_positives)
    z, to_scores = log_softmax_vjp(_wide(scores))
    cost = np.where(right, -z, 0)
    value, row_weights = _reduce((share * cost).sum(axis=1), np.ones(len(scores), np.bool_), reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F] | None]:
        row = row_weights(dloss)[:, None]
        (dscores,) = to_scores(-row * share)
        return dscores.astype(scores.dtype), _weight_cotangent(weights, row * cost, right, normalize_by_positives)

    return np.asarray(_in_dtype_of(scores, value)), pullback


def multilabel_bce_loss(
    scores: Array[F], positives: AnyArray, weights: Array[F] | None = None, *, reduction: str = "mean"
) -> Array[F]:
    """Binary cross-entropy of every label by itself.

    Parameters, errors and results are those of :func:`decoupled_softmax_loss`; a row's loss is the mean over its
    labels, and ``weights`` multiply the terms of the positives.

    Notes
    -----
    ``log(1 + exp(-score))`` for a positive and ``log(1 + exp(score))`` for a negative label.

    References
    ----------
    Gupta et al. (2023), arXiv 2310.10636, the baseline.

    Examples
    --------
    >>> float(multilabel_bce_loss(np.array([[2.0, 0.0]]), np.array([[1, 0]])).round(6))
    0.410038
    """
    return multilabel_bce_loss_vjp(scores, positives, weights, reduction=reduction)[0]


def multilabel_bce_loss_vjp(
    scores: Array[F], positives: AnyArray, weights: Array[F] | None = None, *, reduction: str = "mean"
) -> tuple[Array[F], Pullback]:
    """Return :func:`multilabel_bce_loss` and its pullback ``dloss -> (dscores, dweights)``."""
    scores, right, share = _arguments(scores, positives, weights, reduction, False)
    signed = np.where(right, -_wide(scores), _wide(scores))
    factor = np.where(right, share, 1) / scores.shape[1]
    cost = _softplus(signed)
    value, row_weights = _reduce((factor * cost).sum(axis=1), np.ones(len(scores), np.bool_), reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F] | None]:
        row = row_weights(dloss)[:, None]
        dscores = row * factor * _sigmoid(signed) * np.where(right, -1, 1)
        return dscores.astype(scores.dtype), _weight_cotangent(weights, row * cost / scores.shape[1], right, False)

    return np.asarray(_in_dtype_of(scores, value)), pullback


def soft_topk(scores: Array[F], k: int | IntArray, *, sharpness: float = 1.0) -> Array[F]:
    """Soft indicator of being among the k largest scores.

    Parameters
    ----------
    scores : array (..., L)
        Finite, or ``-inf`` for an entry that shall get 0.
    k : int, or integer array (...)
        From 1 to one less than the number of finite scores of the row.
    sharpness : float > 0
        The larger, the closer to 0 and 1.

    Returns
    -------
    array in [0, 1], shape and dtype of ``scores``
        Each row sums to k.

    Raises
    ------
    TypeError
        If ``scores`` is not float32 or float64, or ``k`` is not an integer.
    ValueError
        If ``k`` is outside its range or of another shape, ``sharpness`` is not > 0, or a score is NaN or ``inf``.

    Notes
    -----
    ``y = sigmoid(sharpness (scores + shift))``, with the one shift for which the row sums to k.

    References
    ----------
    Gupta et al. (2023), arXiv 2310.10636, the soft top-k operator.

    Examples
    --------
    >>> soft_topk(np.array([3.0, 2.0, 0.0, -1.0]), 2, sharpness=2.0).round(4)
    array([0.982 , 0.8808, 0.1192, 0.018 ])
    """
    return soft_topk_vjp(scores, k, sharpness=sharpness)[0]


def soft_topk_vjp(scores: Array[F], k: int | IntArray, *, sharpness: float = 1.0) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_topk` and its pullback ``dy -> (dscores,)``.

    Parameters, errors and references are those of :func:`soft_topk`.
    """
    scores, u = _shifted(scores, k, sharpness)
    y = _sigmoid(u)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # sum sigmoid(sharpness (s + t)) = k defines t(s): dt/ds_j = -v_j / sum(v) with v = sharpness y (1 - y).
        # So dy_i/ds_j = v_i ([i = j] - v_j / sum(v)): what the entries get in total is taken back through t.
        direct = sharpness * y * _sigmoid(-u) * dy
        return ((direct - _slope_shares(u) * direct.sum(axis=-1, keepdims=True)).astype(scores.dtype),)

    return y.astype(scores.dtype), pullback


def log_soft_topk(scores: Array[F], k: int | IntArray, *, sharpness: float = 1.0) -> Array[F]:
    """Logarithm of :func:`soft_topk`, finite also where that underflows to 0.

    Parameters, errors and references are those of :func:`soft_topk`.

    Returns
    -------
    array, shape and dtype of ``scores``

    Examples
    --------
    >>> log_soft_topk(np.array([2000.0, 0.0]), 1)
    array([    0., -1000.])
    """
    return log_soft_topk_vjp(scores, k, sharpness=sharpness)[0]


def log_soft_topk_vjp(scores: Array[F], k: int | IntArray, *, sharpness: float = 1.0) -> tuple[Array[F], Pullback]:
    """Return :func:`log_soft_topk` and its pullback ``dz -> (dscores,)``."""
    scores, u = _shifted(scores, k, sharpness)
    z = 0 - _softplus(-u)

    def pullback(dz: Array[F]) -> tuple[Array[F]]:
        # (log y)' = 1 - y in u; the rest as for y itself.
        direct = sharpness * _sigmoid(-u) * dz
        return ((direct - _slope_shares(u) * direct.sum(axis=-1, keepdims=True)).astype(scores.dtype),)

    return np.asarray(z.astype(scores.dtype)), pullback


def soft_topk_loss(
    scores: Array[F],
    positives: AnyArray,
    weights: Array[F] | None = None,
    *,
    k: int | str,
    sharpness: float = 1.0,
    reduction: str = "mean",
    normalize_by_positives: bool = True,
) -> Array[F]:
    """Cross-entropy of the positives' soft membership in the k best labels.

    Parameters
    ----------
    scores, positives, weights, reduction, normalize_by_positives
        As in :func:`decoupled_softmax_loss`.
    k : int from 1 to L - 1, or ``"num_pos"``
        ``"num_pos"`` takes each row's number of positives.
    sharpness : float > 0
        As in :func:`soft_topk`.

    Returns
    -------
    array, () or (B,), dtype of ``scores``

    Raises
    ------
    TypeError, ValueError
        As :func:`decoupled_softmax_loss` and :func:`soft_topk`; or if a row has no negative for ``"num_pos"``.

    Notes
    -----
    ``-log y`` of each positive, with ``y`` from :func:`soft_topk`. A positive that is among the k best already
    costs next to nothing, wherever it stands among them.

    References
    ----------
    Gupta et al. (2023), arXiv 2310.10636, the soft top-k loss.

    Examples
    --------
    >>> scores, positives = np.array([[4.0, 3.0, -3.0, -4.0]]), np.array([[0, 1, 0, 0]])
    >>> float(soft_topk_loss(scores, positives, k=2).round(4)), float(soft_topk_loss(scores, positives, k=1).round(4))
    (0.0486, 0.9768)
    """
    options: dict[str, Any] = {"reduction": reduction, "normalize_by_positives": normalize_by_positives}
    return soft_topk_loss_vjp(scores, positives, weights, k=k, sharpness=sharpness, **options)[0]


def soft_topk_loss_vjp(
    scores: Array[F],
    positives: AnyArray,
    weights: Array[F] | None = None,
    *,
    k: int | str,
    sharpness: float = 1.0,
    reduction: str = "mean",
    normalize_by_positives: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_topk_loss` and its pullback ``dloss -> (dscores, dweights)``.

    The entry of weights that were left out is ``None``. Parameters, errors and references are those of
    :func:`soft_topk_loss`.
    """
    scores, right, share = _arguments(scores, positives, weights, reduction, normalize_by_positives)
    if isinstance(k, str):
        _checks.one_of(k, "k", ("num_pos",))
        if right.all(axis=1).any():
            _checks.fail("positives", 'a negative in every row for k="num_pos"', "a row of positives")
        counts: int | IntArray = np.maximum(right.sum(axis=1), 1)  # a row without positives costs 0 whatever its k
    else:
        counts = k
    z, to_scores = log_soft_topk_vjp(_wide(scores), counts, sharpness=sharpness)
    cost = np.where(right, -z, 0)
    value, row_weights = _reduce((share * cost).sum(axis=1), np.ones(len(scores), np.bool_), reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F] | None]:
        row = row_weights(dloss)[:, None]
        (dscores,) = to_scores(-row * share)
        return dscores.astype(scores.dtype), _weight_cotangent(weights, row * cost, right, normalize_by_positives)

    return np.asarray(value.astype(scores.dtype)), pullback


def _shifted(scores: AnyArray, k: int | IntArray, sharpness: float) -> tuple[AnyArray, AnyArray]:
    """The checked scores, and ``u = sharpness (scores + shift)`` with ``sum sigmoid(u) = k``, in float64."""
    scores = _checks.float_array(scores, "scores", min_ndim=1)
    _checks.positive(sharpness, "sharpness")
    if (np.isnan(scores) | (scores == np.inf)).any():
        _checks.fail("scores", "finite numbers or -inf", "NaN or inf")
    rows = scores.shape[:-1]
    finite = np.isfinite(scores).sum(axis=-1)
    if np.ndim(k) == 0:
        k = _checks.whole(k if isinstance(k, int) else np.asarray(k)[()], "k", low=1)
    counts = _checks.integer_array(np.broadcast_to(k, rows) if np.ndim(k) == 0 else k, "k", low=1)
    _checks.shape(counts, "k", rows)
    wrong = counts >= finite
    if wrong.any():
        first = np.unravel_index(int(wrong.argmax()), rows) if rows else ()
        _checks.fail("k", "less than the number of finite scores in its row", f"{counts[first]} of {finite[first]}")
    return scores, _find_shift(_wide(scores), counts[..., None], sharpness)


def _find_shift(scores: AnyArray, k: AnyArray, sharpness: float) -> AnyArray:
    # The k largest should be near 1, the others near 0. Comparing what the k largest lack with what the others
    # have, in logarithms, has no cancellation: sum(y) = k is lost in rounding where all y are nearly 0 or 1.
    order = np.argsort(-scores, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(scores.shape[-1]), order.shape), axis=-1)
    top = rank < k
    last_in, first_out = (np.take_along_axis(scores, np.take_along_axis(order, at, -1), -1) for at in (k - 1, k))
    u = sharpness * (scores - (last_in + (first_out - last_in) / 2))

    # With the origin half-way between rank k and k + 1, the shift lies between -log(L - k) and log(k): the first
    # one out alone has exp(2 shift) to exp(shift) times what the last one in lacks.
    low, high = -np.log(scores.shape[-1] - k), np.log(k)
    shift = np.zeros(low.shape)
    for _ in range(MOST_ITERATIONS):
        gap, slope = _imbalance(u + shift, top)
        low, high = np.where(gap < 0, shift, low), np.where(gap < 0, high, shift)
        newton = shift - gap / slope
        # A row that has arrived stands on one of its bounds and stays there.
        inside = (newton > low) & (newton < high) | (newton == shift)
        following = np.where(inside, newton, (low + high) / 2)
        done = np.abs(following - shift) <= STEP_TOLERANCE * np.maximum(1, np.abs(shift))
        shift = following
        if done.all():
            break
    return np.asarray(u + shift)


def _imbalance(u: AnyArray, top: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Log of what the others have over what the top entries lack, and its slope in a shift of u."""
    has, lacks = np.where(top, -np.inf, -_softplus(-u)), np.where(top, -_softplus(u), -np.inf)
    parts = [logsumexp_vjp(a, keepdims=True) for a in (has, lacks)]
    # d log sigmoid(u) = sigmoid(-u) du: each sum's slope is the mean of 1 - sigmoid over its own terms.
    slopes = [
        (back(np.ones(value.shape))[0] * other).sum(axis=-1, keepdims=True)
        for (value, back), other in zip(parts, (_sigmoid(-u), _sigmoid(u)), strict=True)
    ]
    return parts[0][0] - parts[1][0], slopes[0] + slopes[1]


def _slope_shares(u: AnyArray) -> AnyArray:
    """``v / sum(v)`` with ``v = y (1 - y)``, as a softmax: all v may underflow."""
    return softmax(-_softplus(u) - _softplus(-u))


def _arguments(
    scores: AnyArray, positives: AnyArray, weights: AnyArray | None, reduction: str, normalize: bool
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Checked scores, the mask of positives, and each positive's share of its row's loss (0 elsewhere)."""
    scores = _checks.float_array(scores, "scores", ndim=2)
    _checks.one_of(reduction, "reduction", _REDUCTIONS)
    _checks.not_empty(scores, "scores", (0, 1) if reduction == "mean" else (1,))
    right = np.asarray(positives)
    if right.dtype != np.bool_:
        right = _checks.integer_array(right, "positives", low=0, high=1) == 1
    _checks.shape(right, "positives", scores.shape)
    share = right.astype(np.float64)
    if weights is not None:
        weights = _checks.float_array(weights, "weights")
        _checks.same_dtype("scores", scores, weights=weights)
        _checks.shape(weights, "weights", scores.shape)
        if (weights.real[right] < 0).any():
            _checks.fail("weights", "numbers of at least 0", weights.real[right].min())
        share = np.where(right, _wide(weights), 0)
    return scores, right, share / _divisor(right, normalize)


def _divisor(right: AnyArray, normalize: bool) -> AnyArray:
    count = np.maximum(right.sum(axis=1, keepdims=True), 1)
    return count if normalize else np.ones_like(count)


def _weight_cotangent(weights: AnyArray | None, cost: AnyArray, right: AnyArray, normalize: bool) -> AnyArray | None:
    """The loss is linear in the weights of the positives, with their costs as slopes."""
    if weights is None:
        return None
    return np.asarray(np.where(right, cost, 0) / _divisor(right, normalize)).astype(np.asarray(weights).dtype)


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x).astype(np.result_type(x, np.float64), copy=False)


def _in_dtype_of(x: AnyArray, value: AnyArray) -> AnyArray:
    return value if np.iscomplexobj(value) else value.astype(x.dtype)


def _softplus(z: AnyArray) -> AnyArray:
    """``log(1 + exp(z))`` without overflow, accurate in both tails."""
    above = z.real > 0
    return np.where(above, z, 0) + np.log1p(np.exp(np.where(above, -z, z)))


def _sigmoid(z: AnyArray) -> AnyArray:
    above = z.real > 0
    small = np.exp(np.where(above, -z, z))
    return np.asarray(np.where(above, 1, small) / (1 + small))
