"""Soft-NMS: non-maximum suppression that lowers scores in place of deleting boxes.

repeat:  take the box with the best score out;  score_i = score_i * decay(iou(best, i))  for all that are left

decay:   hard  [iou <= threshold]      linear  1 - iou above the threshold, else 1      gaussian  exp(-iou^2 / sigma)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback

METHOD = Method(
    title="Soft-NMS -- Improving Object Detection With One Line of Code",
    authors="Bodla, Singh, Chellappa, Davis",
    year=2017,
    arxiv="1704.04503",
    functions=("SoftNMSResult", "box_iou", "decay", "soft_nms"),
    chapter="softmax/soft_nms",
)

DECAYS = ("gaussian", "linear", "hard")
PRUNE_RULES = ("all", "overlap")


def box_iou(a: Array[F], b: Array[F], *, offset: float = 0.0) -> Array[F]:
    """Intersection over union of every box of one list with every box of another.

    Parameters
    ----------
    a, b : arrays (n, 4) and (m, 4)
        Boxes ``(x1, y1, x2, y2)`` with ``x1 <= x2`` and ``y1 <= y2``.
    offset : float >= 0
        Added to every side: 0 for boxes with real corners, 1 for corners that are the first and the last pixel.

    Returns
    -------
    array (n, m), dtype of the boxes
        In [0, 1]; 0 where both boxes have no area.

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, a corner is not finite or a box ends before it begins, or ``offset < 0``.

    Notes
    -----
    ``inter / (area_a + area_b - inter)``, where ``inter`` is the product over both directions of
    ``max(0, min(ends) - max(beginnings) + offset)``.

    References
    ----------
    Bodla et al. (2017), arXiv 1704.04503, section 3; ``offset=1`` is the convention of its implementation.

    Examples
    --------
    >>> box_iou(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0.0, 0.0, 10.0, 5.0], [20.0, 0.0, 30.0, 9.0]]))
    array([[0.5, 0. ]])
    """
    return box_iou_vjp(a, b, offset=offset)[0]


def box_iou_vjp(a: Array[F], b: Array[F], *, offset: float = 0.0) -> tuple[Array[F], Pullback]:
    """Return :func:`box_iou` and its pullback ``diou -> (da, db)``.

    Where two corners coincide, each box gets half of the corner's cotangent; boxes that do not overlap get none.
    Parameters, errors and references are those of :func:`box_iou`.
    """
    a, b = _boxes(a, "a"), _boxes(b, "b")
    _checks.same_dtype("a", a, b=b)
    _checks.non_negative(offset, "offset")
    iou, sides, inter, union = _overlap(_wide(a), _wide(b), offset)

    def pullback(diou: Array[F]) -> tuple[Array[F], Array[F]]:
        # iou = inter / (area_a + area_b - inter), with inter as an argument of its own:
        # its slope is (union + inter) / union^2, that of each area -inter / union^2.
        over = np.divide(diou, union * union, out=np.zeros_like(union), where=union.real > 0)
        darea = -inter * over
        # inter = width * height: each side's slope is the other side. A side clipped at 0 has none.
        dside = ((union + inter) * over)[..., None] * sides[..., ::-1] * (sides.real > 0)
        begin_a, end_a = _shares(a[:, None], b[None])
        # The side ends where the first of the two boxes ends, and begins where the last one begins.
        da = np.concatenate([-(dside * begin_a).sum(axis=1), (dside * end_a).sum(axis=1)], axis=1)
        db = np.concatenate([-(dside * (1 - begin_a)).sum(axis=0), (dside * (1 - end_a)).sum(axis=0)], axis=1)
        da = da + _area_slopes(_wide(a), offset) * darea.sum(axis=1)[:, None]
        db = db + _area_slopes(_wide(b), offset) * darea.sum(axis=0)[:, None]
        return da.astype(a.dtype), db.astype(b.dtype)

    return iou.astype(np.result_type(a.dtype, b.dtype)), pullback


def decay(iou: Array[F], *, method: str = "gaussian", iou_threshold: float = 0.3, sigma: float = 0.5) -> Array[F]:
    """Factor by which a box's score falls next to a better box.

    Parameters
    ----------
    iou : array of any shape
        Overlaps in [0, 1].
    method : {"gaussian", "linear", "hard"}
    iou_threshold : float in [0, 1]
        For ``"linear"`` and ``"hard"``: overlaps up to and including it cost nothing.
    sigma : float > 0
        Width of the Gaussian, in units of squared overlap.

    Returns
    -------
    array in [0, 1], shape and dtype of ``iou``

    Raises
    ------
    TypeError
        If ``iou`` is neither float32 nor float64.
    ValueError
        If an option is unknown or outside its range.

    Notes
    -----
    Gaussian: ``exp(-iou^2 / sigma)``. Linear: ``1 - iou`` above the threshold and 1 below. Hard: 0 above and 1
    below, which is plain non-maximum suppression.

    References
    ----------
    Bodla et al. (2017), arXiv 1704.04503, section 3.

    Examples
    --------
    >>> decay(np.array([0.1, 0.5]), method="linear"), decay(np.array([0.1, 0.5])).round(3)
    (array([1. , 0.5]), array([0.98 , 0.607]))
    """
    return decay_vjp(iou, method=method, iou_threshold=iou_threshold, sigma=sigma)[0]


def decay_vjp(
    iou: Array[F], *, method: str = "gaussian", iou_threshold: float = 0.3, sigma: float = 0.5
) -> tuple[Array[F], Pullback]:
    """Return :func:`decay` and its pullback ``dfactor -> (diou,)``.

    The jump at the threshold counts as flat. Parameters, errors and references are those of :func:`decay`.
    """
    iou = _checks.float_array(iou, "iou")
    _check_decay(method, iou_threshold, sigma)
    above = iou.real > iou_threshold
    if method == "gaussian":
        factor = np.exp(-iou * iou / sigma)
    else:
        factor = np.where(above, 1 - iou if method == "linear" else 0, 1)
    factor = np.asarray(factor.astype(iou.dtype))

    def pullback(dfactor: Array[F]) -> tuple[Array[F]]:
        if method == "gaussian":
            slope = -2 / sigma * iou * factor
        else:
            slope = np.where(above, -1.0 if method == "linear" else 0.0, 0.0)
        return (np.asarray(dfactor * slope).astype(iou.dtype),)

    return factor, pullback


@dataclass(frozen=True)
class SoftNMSResult:
    """What :func:`soft_nms` keeps, best first.

    Parameters
    ----------
    indices : integer array (k,)
        Positions of the kept boxes in the input.
    scores : array (k,)
        Their lowered scores, which never increase from one to the next.
    """

    indices: IntArray
    scores: AnyArray


def soft_nms(
    boxes: Array[F],
    scores: Array[F],
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
    offset: float = 0.0,
    prune: str = "all",
    labels: IntArray | None = None,
) -> SoftNMSResult:
    """Rank boxes so that a box near a better one loses score.

    Parameters
    ----------
    boxes : array (n, 4)
        ``(x1, y1, x2, y2)`` with ``x1 <= x2`` and ``y1 <= y2``.
    scores : array (n,)
        At least 0.
    method, iou_threshold, sigma
        As in :func:`decay`. ``"hard"`` is plain non-maximum suppression.
    score_threshold : float >= 0
        A box whose score falls below it is dropped.
    offset : float >= 0
        As in :func:`box_iou`.
    prune : {"all", "overlap"}
        ``"all"`` returns no box below ``score_threshold``. ``"overlap"`` tests a box only when another one
        that overlaps it is taken, so that a lone box stays whatever its score.
    labels : integer array (n,), optional
        Boxes with different labels do not touch each other's scores.

    Returns
    -------
    SoftNMSResult

    Raises
    ------
    TypeError
        If boxes or scores are not float32 or float64, the dtypes differ, or labels are not integers.
    ValueError
        If a shape is wrong, a number is not finite, a box ends before it begins, a score is negative, or an
        option is unknown or outside its range.

    Notes
    -----
    With kept boxes numbered in output order, ``score'_r = score_r prod_{q < r} decay(iou(q, r))``. Of equal
    scores the one with the smallest index comes first. Scores are held in float64 while boxes are ranked.

    References
    ----------
    Bodla et al. (2017), arXiv 1704.04503, figure 2 (the algorithm) and section 3.

    Examples
    --------
    >>> boxes = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [20.0, 20.0, 30.0, 30.0]])
    >>> kept = soft_nms(boxes, np.array([0.9, 0.8, 0.7]))
    >>> kept.indices, kept.scores.round(4)
    (array([0, 2, 1]), array([0.9   , 0.7   , 0.4852]))
    """
    boxes, scores = _boxes(boxes, "boxes"), _checks.float_array(scores, "scores")
    _checks.same_dtype("boxes", boxes, scores=scores)
    _checks.shape(scores, "scores", boxes.shape[:1])
    _checks.finite(scores, "scores")
    if (scores.real < 0).any():
        _checks.fail("scores", "numbers of at least 0", scores.real.min())
    _check_decay(method, iou_threshold, sigma)
    _checks.non_negative(score_threshold, "score_threshold")
    _checks.non_negative(offset, "offset")
    _checks.one_of(prune, "prune", PRUNE_RULES)
    classes = _classes(labels, len(boxes))

    corners, current = _wide(boxes), _wide(scores).copy()
    left = np.flatnonzero((current.real >= score_threshold) | (prune == "overlap"))
    order: list[int] = []
    while left.size:
        best = left[current.real[left].argmax()]
        order.append(int(best))
        left = left[left != best]
        iou = _overlap(corners[best : best + 1], corners[left], offset)[0][0] * (classes[left] == classes[best])
        factor = decay(iou, method=method, iou_threshold=iou_threshold, sigma=sigma)
        current[left] = current[left] * factor
        dropped = current.real[left] < score_threshold
        if prune == "overlap":
            dropped &= iou.real > 0
        if method == "hard":  # also at a score_threshold of 0
            dropped |= factor == 0
        left = left[~dropped]
    indices = np.array(order, dtype=np.intp)
    return SoftNMSResult(indices=indices, scores=current[indices].astype(scores.dtype))


def soft_nms_vjp(
    boxes: Array[F],
    scores: Array[F],
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
    offset: float = 0.0,
    prune: str = "all",
    labels: IntArray | None = None,
) -> tuple[SoftNMSResult, Pullback]:
    """Return :func:`soft_nms` and its pullback ``dscores' -> (dboxes, dscores)``.

    The cotangent is that of the kept boxes' scores, (k,). The order and the set of kept boxes count as constants:
    they are, except where two scores meet or one meets the threshold. A dropped box gets 0. Parameters, errors
    and references are those of :func:`soft_nms`.
    """
    decay_options: dict[str, Any] = {"method": method, "iou_threshold": iou_threshold, "sigma": sigma}
    rest: dict[str, Any] = {"score_threshold": score_threshold, "offset": offset, "prune": prune, "labels": labels}
    result = soft_nms(boxes, scores, **decay_options, **rest)
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    kept = result.indices
    classes = _classes(labels, len(boxes))[kept]

    def pullback(dkept: Array[F]) -> tuple[Array[F], Array[F]]:
        corners = _wide(boxes[kept])
        iou, to_boxes = box_iou_vjp(corners, corners, offset=offset)
        factor, to_iou = decay_vjp(iou, **decay_options)
        # Row q, column r: the factor that q puts on r, 1 unless q comes first and has the same label.
        acts = np.triu(classes[:, None] == classes[None], k=1)
        factor = np.where(acts, factor, 1)
        # s'_r = s_r prod_q F_qr: linear in s_r and in each factor, whose slope is s_r times the product of the
        # *other* factors. It is built from both ends: s'_r / F_qr would be 0 / 0 for equal boxes.
        dscores, dboxes = np.zeros(scores.shape), np.zeros(boxes.shape)
        dscores[kept] = dkept * factor.prod(axis=0)
        dfactor = np.where(acts, dkept * scores[kept] * _products_of_others(factor), 0)
        da, db = to_boxes(to_iou(dfactor)[0])
        dboxes[kept] = da + db
        return dboxes.astype(boxes.dtype), dscores.astype(scores.dtype)

    return result, pullback


def _products_of_others(factor: AnyArray) -> AnyArray:
    """Column by column, the product of all entries but the one at hand."""
    ones = np.ones((1, factor.shape[1]))
    before = np.cumprod(np.concatenate([ones, factor[:-1]]), axis=0)
    after = np.cumprod(np.concatenate([ones, factor[:0:-1]]), axis=0)[::-1]
    return np.asarray((before * after)[: len(factor)])


def _overlap(a: AnyArray, b: AnyArray, offset: float) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """IoU (n, m), sides of the intersections (n, m, 2), their areas and the unions' areas."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]) + offset
    sides = np.maximum(sides, 0)
    inter = sides[..., 0] * sides[..., 1]
    union = _areas(a, offset)[:, None] + _areas(b, offset)[None] - inter
    iou = np.divide(inter, union, out=np.zeros_like(inter), where=union.real > 0)
    return iou, sides, inter, union


def _areas(boxes: AnyArray, offset: float) -> AnyArray:
    return np.asarray((boxes[:, 2:] - boxes[:, :2] + offset).prod(axis=1))


def _area_slopes(boxes: AnyArray, offset: float) -> AnyArray:
    """Slopes of each area in its four corners: the other side, negative at the beginnings."""
    other = (boxes[:, 2:] - boxes[:, :2] + offset)[:, ::-1]
    return np.concatenate([-other, other], axis=1)


def _shares(a: AnyArray, b: AnyArray) -> tuple[AnyArray, AnyArray]:
    """How much of the intersection's beginnings and ends belongs to ``a``: all, half or nothing."""
    difference = np.sign((a - b).real)
    return (1 + difference[..., :2]) / 2, (1 - difference[..., 2:]) / 2


def _boxes(boxes: AnyArray, name: str) -> AnyArray:
    boxes = _checks.float_array(boxes, name, ndim=2)
    _checks.shape(boxes, name, (len(boxes), 4))
    _checks.finite(boxes, name)
    wrong = (boxes.real[:, :2] > boxes.real[:, 2:]).any(axis=1)
    if wrong.any():
        at = int(wrong.argmax())
        _checks.fail(name, "x1 <= x2 and y1 <= y2 in every box", f"{boxes[at].tolist()} at index {at}")
    return boxes


def _check_decay(method: str, iou_threshold: float, sigma: float) -> None:
    _checks.one_of(method, "method", DECAYS)
    _checks.in_range(iou_threshold, "iou_threshold", 0.0, 1.0)
    _checks.positive(sigma, "sigma")


def _classes(labels: IntArray | None, n: int) -> IntArray:
    if labels is None:
        return np.zeros(n, dtype=np.intp)
    labels = _checks.integer_array(labels, "labels", ndim=1)
    _checks.shape(labels, "labels", (n,))
    return labels


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x.astype(np.result_type(x, np.float64), copy=False))
