"""Soft-NMS: checks and layout; the arithmetic is in _kernels/select.c."""

import numpy

cimport numpy as np
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

np.import_array()

include "../_kernels/rows.pxi"

from refnorm.softmax import SoftNMSResult
from refnorm.softmax import _soft_nms as reference

cdef extern from "select.h":
    ctypedef struct rn_decay:
        int method
        double iou_threshold, sigma
    ctypedef struct rn_select_table:
        int (*box_iou_f32)(const double *, size_t, const double *, size_t, double, float *) nogil
        int (*box_iou_f64)(const double *, size_t, const double *, size_t, double, double *) nogil
        Py_ssize_t (*soft_nms)(const double *, double *, const int64_t *, size_t, const rn_decay *, double, double, int, int64_t *) nogil
    const rn_select_table *rn_select() nogil


cdef np.ndarray _side_by_side(boxes):
    """Corners (4, n) in float64."""
    return numpy.array(boxes.T, dtype=numpy.float64, order="C")


ctypedef fused real:
    float
    double


cdef bint _take(const real *boxes, const real *scores, size_t n, double *corners, double *wide) noexcept nogil:
    """Boxes and scores in float64; whether all are finite, no box is inside out and no score is below 0."""
    cdef size_t i
    cdef bint sound = True
    for i in range(n):
        corners[i], corners[n + i] = boxes[4 * i], boxes[4 * i + 1]
        corners[2 * n + i], corners[3 * n + i] = boxes[4 * i + 2], boxes[4 * i + 3]
        wide[i] = scores[i]
        # the difference of a number that is not finite and itself is NaN
        sound &= (boxes[4 * i] <= boxes[4 * i + 2]) & (boxes[4 * i + 1] <= boxes[4 * i + 3]) & (scores[i] >= 0)
        sound &= (boxes[4 * i] - boxes[4 * i] == 0) & (boxes[4 * i + 1] - boxes[4 * i + 1] == 0)
        sound &= (boxes[4 * i + 2] - boxes[4 * i + 2] == 0) & (boxes[4 * i + 3] - boxes[4 * i + 3] == 0)
        sound &= scores[i] - scores[i] == 0
    return sound


cdef bint _sound(np.ndarray boxes, np.ndarray scores, np.ndarray corners, np.ndarray current):
    """Whether the arguments need no closer look and are copied to `corners` and `current`: one pass, for the sake of few boxes."""
    if not (np.PyArray_NDIM(boxes) == 2 and np.PyArray_NDIM(scores) == 1 and np.PyArray_DIM(boxes, 1) == 4
            and np.PyArray_DIM(boxes, 0) == np.PyArray_DIM(scores, 0) and np.PyArray_TYPE(boxes) == np.PyArray_TYPE(scores)
            and np.PyArray_ISCARRAY_RO(boxes) and np.PyArray_ISCARRAY_RO(scores)):
        return False
    cdef void *here = np.PyArray_DATA(boxes)
    cdef void *rank = np.PyArray_DATA(scores)
    cdef double *to = <double *> np.PyArray_DATA(corners)
    cdef double *wide = <double *> np.PyArray_DATA(current)
    cdef size_t n = np.PyArray_DIM(boxes, 0)
    if np.PyArray_TYPE(boxes) == np.NPY_FLOAT:
        return _take(<const float *> here, <const float *> rank, n, to, wide)
    return _take(<const double *> here, <const double *> rank, n, to, wide)


cdef bint _plain_options(method, iou_threshold, sigma, score_threshold, offset, prune):
    """Whether the options are floats and words that need no closer look."""
    if not (type(iou_threshold) is float and type(sigma) is float and type(score_threshold) is float and type(offset) is float):
        return False
    cdef double threshold = iou_threshold, width = sigma, least = score_threshold, added = offset
    return (type(method) is str and method in reference.DECAYS and type(prune) is str and prune in reference.PRUNE_RULES
            and 0 <= threshold <= 1 and 0 < width < INFINITY and 0 <= least < INFINITY and 0 <= added < INFINITY)


def box_iou(a, b, *, offset=0.0, out=None):
    """Intersection over union of every box of one list with every box of another.

    Parameters
    ----------
    a, b : arrays (n, 4) and (m, 4)
        Boxes ``(x1, y1, x2, y2)`` with ``x1 <= x2`` and ``y1 <= y2``.
    offset : float >= 0
        Added to every side.
    out : array (n, m), optional
        Takes the result.

    Returns
    -------
    array (n, m), dtype of the boxes

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.box_iou`; also if ``out`` does not fit.

    References
    ----------
    Bodla et al. (2017), arXiv 1704.04503, section 3.

    Examples
    --------
    >>> box_iou(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0.0, 0.0, 10.0, 5.0], [20.0, 0.0, 30.0, 9.0]]))
    array([[0.5, 0. ]])
    """
    a, b = reference._boxes(a, "a"), reference._boxes(b, "b")
    _checks.same_dtype("a", a, b=b)
    _checks.non_negative(offset, "offset")
    cdef np.npy_intp shape[2]
    shape[0], shape[1] = len(a), len(b)
    cdef np.ndarray iou = rn_empty(2, shape, np.NPY_FLOAT if a.dtype == numpy.float32 else np.NPY_DOUBLE)
    if out is not None:
        _check_out(out, iou)
        if (<np.ndarray> out).flags.c_contiguous and (<np.ndarray> out).flags.aligned:
            iou = out
    cdef np.ndarray one = _side_by_side(a)
    cdef np.ndarray other = _side_by_side(b)
    cdef double *left = <double *> np.PyArray_DATA(one)
    cdef double *right = <double *> np.PyArray_DATA(other)
    cdef void *target = np.PyArray_DATA(iou)
    cdef double added = offset
    cdef bint single = np.PyArray_TYPE(iou) == np.NPY_FLOAT
    cdef int failed
    with nogil:
        if single:
            failed = rn_select().box_iou_f32(left, shape[0], right, shape[1], added, <float *> target)
        else:
            failed = rn_select().box_iou_f64(left, shape[0], right, shape[1], added, <double *> target)
    if failed:
        raise MemoryError
    if out is None:
        return iou
    if iou is not out:
        out[...] = iou
    return out


def box_iou_vjp(a, b, *, offset=0.0):
    """Return :func:`box_iou` and its pullback ``diou -> (da, db)``, which is the reference's.

    Parameters, errors and references are those of :func:`box_iou`.

    Examples
    --------
    >>> iou, pullback = box_iou_vjp(np.array([[1.0, 1.0, 2.0, 2.0]]), np.array([[0.0, 0.0, 4.0, 4.0]]))
    >>> pullback(np.ones((1, 1)))[0]
    array([[-0.0625, -0.0625,  0.0625,  0.0625]])
    """
    iou = box_iou(a, b, offset=offset)

    def pullback(diou):
        return reference.box_iou_vjp(a, b, offset=offset)[1](diou)

    return iou, pullback


def soft_nms(boxes, scores, *, method="gaussian", iou_threshold=0.3, sigma=0.5, score_threshold=1e-3, offset=0.0,
             prune="all", labels=None):
    """Rank boxes so that a box near a better one loses score.

    Parameters
    ----------
    boxes : array (n, 4)
        ``(x1, y1, x2, y2)`` with ``x1 <= x2`` and ``y1 <= y2``.
    scores : array (n,)
        At least 0.
    method, iou_threshold, sigma
        As in :func:`refnorm.softmax.decay`. ``"hard"`` is plain non-maximum suppression.
    score_threshold : float >= 0
        A box whose score falls below it is dropped.
    offset : float >= 0
        As in :func:`box_iou`.
    prune : {"all", "overlap"}
        Whether only boxes that overlap the one taken are tested against ``score_threshold``.
    labels : integer array (n,), optional
        Boxes with different labels do not touch each other's scores.

    Returns
    -------
    SoftNMSResult

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.soft_nms`.

    Notes
    -----
    Scores are held in float64 while boxes are ranked. Of equal scores the one with the smallest index comes first.

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
    cdef np.ndarray given = _float_array(boxes, "boxes")
    cdef np.ndarray ranked = _float_array(scores, "scores")
    cdef np.npy_intp sides[2]
    sides[0], sides[1] = 4, np.PyArray_DIM(given, 0) if np.PyArray_NDIM(given) else 0
    cdef np.ndarray corners = np.PyArray_SimpleNew(2, sides, np.NPY_DOUBLE)
    cdef np.ndarray current = np.PyArray_SimpleNew(1, sides + 1, np.NPY_DOUBLE)
    cdef np.ndarray order = np.PyArray_SimpleNew(1, sides + 1, np.NPY_INT64)
    if not (_plain_options(method, iou_threshold, sigma, score_threshold, offset, prune)
            and _sound(given, ranked, corners, current)):
        given, ranked = reference._boxes(boxes, "boxes"), _checks.float_array(scores, "scores")
        _checks.same_dtype("boxes", given, scores=ranked)
        _checks.shape(ranked, "scores", (<object> given).shape[:1])
        _checks.finite(ranked, "scores")
        if ((<object> ranked) < 0).any():
            _checks.fail("scores", "numbers of at least 0", (<object> ranked).min())
        reference._check_decay(method, iou_threshold, sigma)
        _checks.non_negative(score_threshold, "score_threshold")
        _checks.non_negative(offset, "offset")
        _checks.one_of(prune, "prune", reference.PRUNE_RULES)
        corners = _side_by_side(given)
        current = numpy.array(ranked, dtype=numpy.float64, order="C")
    cdef np.ndarray classes = None
    if labels is not None:
        classes = _in_order(numpy.asarray(reference._classes(labels, np.PyArray_DIM(given, 0)), dtype=numpy.int64))
    cdef rn_decay decay
    decay.method = reference.DECAYS.index(method)
    decay.iou_threshold = iou_threshold
    decay.sigma = sigma
    cdef double *numbers = <double *> np.PyArray_DATA(corners)
    cdef double *lowered = <double *> np.PyArray_DATA(current)
    cdef int64_t *groups = NULL if classes is None else <int64_t *> np.PyArray_DATA(classes)
    cdef int64_t *places = <int64_t *> np.PyArray_DATA(order)
    cdef size_t n = np.PyArray_DIM(given, 0)
    cdef double threshold = score_threshold, added = offset
    cdef int overlap = prune == "overlap"
    cdef Py_ssize_t kept
    with nogil:
        kept = rn_select().soft_nms(numbers, lowered, groups, n, &decay, threshold, added, overlap, places)
    if kept < 0:
        raise MemoryError
    cdef np.npy_intp count = kept
    cdef np.ndarray indices = np.PyArray_SimpleNew(1, &count, np.NPY_INTP)
    cdef np.ndarray final = np.PyArray_SimpleNew(1, &count, np.NPY_DOUBLE)
    cdef np.npy_intp i
    for i in range(count):
        (<np.npy_intp *> np.PyArray_DATA(indices))[i] = places[i]
        (<double *> np.PyArray_DATA(final))[i] = lowered[places[i]]
    return SoftNMSResult(indices=indices, scores=final if np.PyArray_TYPE(ranked) == np.NPY_DOUBLE else final.astype(numpy.float32))


def soft_nms_vjp(boxes, scores, *, method="gaussian", iou_threshold=0.3, sigma=0.5, score_threshold=1e-3, offset=0.0,
                 prune="all", labels=None):
    """Return :func:`soft_nms` and its pullback ``dscores' -> (dboxes, dscores)``, which is the reference's.

    Parameters, errors and references are those of :func:`soft_nms`.

    Examples
    --------
    >>> boxes = np.array([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    >>> kept, pullback = soft_nms_vjp(boxes, np.array([0.9, 0.8]))
    >>> pullback(np.array([1.0, 2.0]))[1]
    array([1., 2.])
    """
    options = {"method": method, "iou_threshold": iou_threshold, "sigma": sigma, "score_threshold": score_threshold,
               "offset": offset, "prune": prune, "labels": labels}
    result = soft_nms(boxes, scores, **options)

    def pullback(dkept):
        return reference.soft_nms_vjp(boxes, scores, **options)[1](dkept)

    return result, pullback
