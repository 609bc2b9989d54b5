"""StableMax: checks and layout; the arithmetic is in _kernels/softmax_stable_body.h."""

import numpy

cimport numpy as np
from libc.stdint cimport int64_t

np.import_array()

include "../_kernels/rows.pxi"
include "reductions.pxi"

cdef extern from "softmax.h":
    ctypedef struct rn_stable_stats:
        double largest, scale, total, log_sum
    ctypedef struct rn_softmax_table:
        void (*stable_s_f32)(const float *, float *, size_t) nogil
        void (*stable_s_f64)(const double *, double *, size_t) nogil
        void (*stable_s_backward_f32)(const float *, const float *, float *, size_t) nogil
        void (*stable_s_backward_f64)(const double *, const double *, double *, size_t) nogil
        void (*stablemax_f32)(const float *, size_t, float *, size_t, size_t) nogil
        void (*stablemax_f64)(const double *, size_t, double *, size_t, size_t) nogil
        void (*log_stablemax_f32)(const float *, size_t, float *, size_t, size_t, rn_stable_stats *) nogil
        void (*log_stablemax_f64)(const double *, size_t, double *, size_t, size_t, rn_stable_stats *) nogil
        void (*stablemax_backward_f32)(const float *, size_t, const float *, const float *, float *, size_t, size_t) nogil
        void (*stablemax_backward_f64)(const double *, size_t, const double *, const double *, double *, size_t, size_t) nogil
        void (*log_stablemax_backward_f32)(const float *, size_t, const float *, float *, size_t, size_t, const rn_stable_stats *) nogil
        void (*log_stablemax_backward_f64)(const double *, size_t, const double *, double *, size_t, size_t, const rn_stable_stats *) nogil
        void (*stable_cross_entropy_f32)(const float *, size_t, const int64_t *, size_t, size_t, double *, rn_stable_stats *) nogil
        void (*stable_cross_entropy_f64)(const double *, size_t, const int64_t *, size_t, size_t, double *, rn_stable_stats *) nogil
        void (*stable_cross_entropy_backward_f32)(const float *, size_t, const int64_t *, float *, size_t, size_t, const double *, const rn_stable_stats *) nogil
        void (*stable_cross_entropy_backward_f64)(const double *, size_t, const int64_t *, double *, size_t, size_t, const double *, const rn_stable_stats *) nogil
    const rn_softmax_table *rn_softmax() nogil

cdef enum Form:
    STABLE_S
    STABLEMAX
    LOG_STABLEMAX


cdef _run(Form form, np.ndarray x, np.ndarray y, size_t rows, size_t length, size_t stride, rn_stable_stats *stats):
    """Rows of x to the C-contiguous y, which is x itself or apart from it."""
    cdef void *source = np.PyArray_DATA(x)
    cdef void *target = np.PyArray_DATA(y)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    with nogil:
        if form == STABLE_S:
            if single:
                rn_softmax().stable_s_f32(<const float *> source, <float *> target, rows * length)
            else:
                rn_softmax().stable_s_f64(<const double *> source, <double *> target, rows * length)
        elif form == STABLEMAX:
            if single:
                rn_softmax().stablemax_f32(<const float *> source, stride, <float *> target, rows, length)
            else:
                rn_softmax().stablemax_f64(<const double *> source, stride, <double *> target, rows, length)
        elif single:
            rn_softmax().log_stablemax_f32(<const float *> source, stride, <float *> target, rows, length, stats)
        else:
            rn_softmax().log_stablemax_f64(<const double *> source, stride, <double *> target, rows, length, stats)


cdef np.ndarray _forward(Form form, np.ndarray x, int axis, out):
    """Along `axis`; stable_s, which has none, takes the last one and only whole arrays at one stride."""
    cdef size_t rows, length, stride
    cdef np.ndarray y
    if out is not None:
        _check_out(out, x)
        y = <np.ndarray> out
        if not (_identical(x, y) or _apart(x, y)):
            y[...] = _forward(form, x, axis, None)
            return y
    else:
        y = _fresh(x)
    if (axis == np.PyArray_NDIM(x) - 1 and np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y)
            and _rows_of(x, 1, &rows, &length, &stride) and (form != STABLE_S or stride == length)):
        _run(form, x, y, rows, length, stride, NULL)
    else:
        _in_chunks(lambda part: _forward(form, part, part.ndim - 1, part),
                   numpy.moveaxis(x, axis, -1), numpy.moveaxis(y, axis, -1))
    return y


cdef class _Rows:
    """An array's rows, moved to the last axis, and where they go back."""

    cdef np.ndarray x
    cdef np.ndarray original
    cdef int axis
    cdef bint last
    cdef bint single
    cdef size_t rows, length, stride

    cdef object put_back(self, np.ndarray y):
        return y if self.last else _in_order(numpy.moveaxis(y, -1, self.axis))

    cdef np.ndarray cotangent(self, g, name):
        cdef np.ndarray array = numpy.asarray(g, dtype=(<object> self.original).dtype)
        _checks.shape(array, name, (<object> self.original).shape)
        return _in_order(array if self.last else numpy.moveaxis(array, self.axis, -1))


cdef _Rows _rows_along(np.ndarray array, int axis):
    cdef _Rows r = _Rows.__new__(_Rows)
    r.original = array
    r.axis = axis
    r.last = axis == np.PyArray_NDIM(array) - 1
    r.single = np.PyArray_TYPE(array) == np.NPY_FLOAT
    r.x = _rows_contiguous(array if r.last else numpy.moveaxis(array, axis, -1), 1, &r.rows, &r.length, &r.stride)
    return r


cdef np.ndarray _stats_for(size_t rows):
    return numpy.empty((rows, 4))  # an rn_stable_stats a row


def stable_s(x, *, out=None):
    """Positive, increasing function that replaces the exponential in StableMax.

    Parameters
    ----------
    x : array of any shape
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.stable_s`; also if ``out`` does not fit.

    Notes
    -----
    ``s(x) = x + 1`` for ``x >= 0`` and ``1 / (1 - x)`` below, rounded once.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> stable_s(np.array([-3.0, -1.0, 0.0, 1.0, 3.0]))
    array([0.25, 0.5 , 1.  , 2.  , 4.  ])
    """
    cdef np.ndarray array = _float_array(x, "x")
    if np.PyArray_NDIM(array) == 0:
        if out is None:
            return stable_s(array.reshape(1)).reshape(())
        _check_out(out, array)
        out[...] = stable_s(array)
        return out
    if np.PyArray_SIZE(array) == 0:
        if out is not None:
            _check_out(out, array)
        return _fresh(array) if out is None else out
    return _forward(STABLE_S, array, np.PyArray_NDIM(array) - 1, out)


def stable_s_vjp(x):
    """Return :func:`stable_s` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`stable_s`.

    Notes
    -----
    ``dx = dy``, below 0 ``dy / (1 - x)^2``.

    Examples
    --------
    >>> y, pullback = stable_s_vjp(np.array([-1.0, 1.0]))
    >>> pullback(np.ones(2))[0]
    array([0.25, 1.  ])
    """
    cdef np.ndarray array = _in_order(_float_array(x, "x")).reshape(numpy.shape(x))
    y = stable_s(array)

    def pullback(dy):
        cdef np.ndarray g = _in_order(numpy.broadcast_to(
            numpy.asarray(dy, dtype=(<object> array).dtype), (<object> array).shape))
        cdef np.ndarray dx = _fresh(array)
        cdef size_t count = np.PyArray_SIZE(array)
        cdef void *source = np.PyArray_DATA(array)
        cdef void *up = np.PyArray_DATA(g)
        cdef void *target = np.PyArray_DATA(dx)
        with nogil:
            if np.PyArray_TYPE(dx) == np.NPY_FLOAT:
                rn_softmax().stable_s_backward_f32(<const float *> source, <const float *> up, <float *> target, count)
            else:
                rn_softmax().stable_s_backward_f64(<const double *> source, <const double *> up, <double *> target, count)
        return (dx,)

    return y, pullback


def stablemax(x, *, axis=-1, out=None):
    """Softmax with a function of linear growth in place of the exponential.

    Parameters
    ----------
    x : array of at least one dimension
        Logits.
    axis : int
        The axis along which the result sums to 1.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.stablemax`; also if ``out`` does not fit.

    Notes
    -----
    ``p_i = s(x_i) / sum_j s(x_j)`` with :func:`stable_s`, in float64 until each factor is rounded.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> (7 * stablemax(np.array([1.0, 0.0, -1.0]))).round(12)
    array([4., 2., 1.])
    """
    cdef np.ndarray array = _float_array(x, "x")
    return _forward(STABLEMAX, array, _axis_of(array, axis), out)


def stablemax_vjp(x, *, axis=-1):
    """Return :func:`stablemax` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`stablemax`.

    Notes
    -----
    ``dx = y (dy - sum(dy y)) / (1 + |x|)``.

    Examples
    --------
    >>> y, pullback = stablemax_vjp(np.array([0.0, 0.0]))
    >>> pullback(np.array([1.0, 0.0]))[0]
    array([ 0.25, -0.25])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef _Rows r = _rows_along(array, _axis_of(array, axis))
    cdef np.ndarray y = _fresh(r.x)
    _run(STABLEMAX, r.x, y, r.rows, r.length, r.stride, NULL)

    def pullback(dy):
        cdef np.ndarray g = r.cotangent(dy, "dy")
        cdef np.ndarray dx = _fresh(y)
        cdef void *source = np.PyArray_DATA(r.x)
        cdef void *value = np.PyArray_DATA(y)
        cdef void *up = np.PyArray_DATA(g)
        cdef void *target = np.PyArray_DATA(dx)
        with nogil:
            if r.single:
                rn_softmax().stablemax_backward_f32(<const float *> source, r.stride, <const float *> value, <const float *> up, <float *> target, r.rows, r.length)
            else:
                rn_softmax().stablemax_backward_f64(<const double *> source, r.stride, <const double *> value, <const double *> up, <double *> target, r.rows, r.length)
        return (r.put_back(dx),)

    return r.put_back(y), pullback


def log_stablemax(x, *, axis=-1, out=None):
    """Logarithm of :func:`stablemax`, accurate where the result is near 0 as well.

    Parameters
    ----------
    x, axis, out
        As for :func:`stablemax`.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`stablemax`.

    Notes
    -----
    ``(h - largest h) - log_sum`` with ``h = sign(x) log(1 + |x|)``, in float64.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> np.exp(log_stablemax(np.array([3.0, 0.0, -1.0, -1.0]))).round(4)
    array([0.6667, 0.1667, 0.0833, 0.0833])
    """
    cdef np.ndarray array = _float_array(x, "x")
    return _forward(LOG_STABLEMAX, array, _axis_of(array, axis), out)


def log_stablemax_vjp(x, *, axis=-1):
    """Return :func:`log_stablemax` and its pullback ``dz -> (dx,)``.

    Parameters, errors and references are those of :func:`log_stablemax`.

    Notes
    -----
    ``dx = (dz - p sum(dz)) / (1 + |x|)``.

    Examples
    --------
    >>> z, pullback = log_stablemax_vjp(np.array([0.0, 0.0]))
    >>> pullback(np.array([1.0, 0.0]))[0]
    array([ 0.5, -0.5])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef _Rows r = _rows_along(array, _axis_of(array, axis))
    cdef np.ndarray z = _fresh(r.x)
    cdef np.ndarray stats = _stats_for(r.rows)
    _run(LOG_STABLEMAX, r.x, z, r.rows, r.length, r.stride, <rn_stable_stats *> np.PyArray_DATA(stats))

    def pullback(dz):
        cdef np.ndarray g = r.cotangent(dz, "dz")
        cdef np.ndarray dx = _fresh(r.x)
        cdef void *source = np.PyArray_DATA(r.x)
        cdef void *up = np.PyArray_DATA(g)
        cdef void *target = np.PyArray_DATA(dx)
        cdef rn_stable_stats *rows = <rn_stable_stats *> np.PyArray_DATA(stats)
        with nogil:
            if r.single:
                rn_softmax().log_stablemax_backward_f32(<const float *> source, r.stride, <const float *> up, <float *> target, r.rows, r.length, rows)
            else:
                rn_softmax().log_stablemax_backward_f64(<const double *> source, r.stride, <const double *> up, <double *> target, r.rows, r.length, rows)
        return (r.put_back(dx),)

    return r.put_back(z), pullback


# ---- cross-entropy ------------------------------------------------------------------------------------------------

def stablemax_cross_entropy(logits, target, *, reduction="mean"):
    """Cross-entropy between StableMax of the logits and class labels.

    Parameters
    ----------
    logits : array (B, C)
    target : integer array (B,)
        Classes from 0 to C - 1.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    array, () or (B,), dtype of ``logits``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.stablemax_cross_entropy`.

    Notes
    -----
    ``(largest h - h_target) + log_sum``: no term is negative.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> float(stablemax_cross_entropy(np.array([[1.0, 0.0, -1.0]]), np.array([0])).round(6))
    0.559616
    """
    return stablemax_cross_entropy_vjp(logits, target, reduction=reduction)[0]


def stablemax_cross_entropy_vjp(logits, target, *, reduction="mean"):
    """Return :func:`stablemax_cross_entropy` and its pullback ``dloss -> (dlogits,)``.

    Parameters, errors and references are those of :func:`stablemax_cross_entropy`.

    Examples
    --------
    >>> loss, pullback = stablemax_cross_entropy_vjp(np.zeros((1, 2)), np.array([1]))
    >>> pullback(np.float64(1.0))[0]
    array([[ 0.5, -0.5]])
    """
    cdef np.ndarray array = _logits_of(logits)
    classes = _checks.integer_array(target, "target", ndim=1, low=0, high=np.PyArray_DIM(array, 1) - 1)
    _checks.shape(classes, "target", (array.shape[0],))
    _checks.one_of(reduction, "reduction", REDUCTIONS)
    _check_counted(reduction, array.shape[0], array.shape[0])
    cdef np.ndarray labels = _in_order(numpy.asarray(classes, dtype=numpy.int64))
    cdef _Rows r = _rows_along(array, 1)
    cdef np.ndarray stats = _stats_for(r.rows)
    cdef np.ndarray losses = numpy.empty(r.rows)
    cdef void *source = np.PyArray_DATA(r.x)
    cdef int64_t *wanted = <int64_t *> np.PyArray_DATA(labels)
    cdef double *loss = <double *> np.PyArray_DATA(losses)
    cdef rn_stable_stats *rows = <rn_stable_stats *> np.PyArray_DATA(stats)
    with nogil:
        if r.single:
            rn_softmax().stable_cross_entropy_f32(<const float *> source, r.stride, wanted, r.rows, r.length, loss, rows)
        else:
            rn_softmax().stable_cross_entropy_f64(<const double *> source, r.stride, wanted, r.rows, r.length, loss, rows)
    value = _reduce(losses, reduction, r.rows, r.x.dtype)

    def pullback(dloss):
        cdef np.ndarray weights = _row_weights(dloss, r.x, reduction, r.rows)
        cdef np.ndarray dx = _fresh(r.x)
        cdef void *given = np.PyArray_DATA(r.x)
        cdef void *to = np.PyArray_DATA(dx)
        cdef int64_t *at = <int64_t *> np.PyArray_DATA(labels)
        cdef double *weight = <double *> np.PyArray_DATA(weights)
        cdef rn_stable_stats *kept = <rn_stable_stats *> np.PyArray_DATA(stats)
        with nogil:
            if r.single:
                rn_softmax().stable_cross_entropy_backward_f32(<const float *> given, r.stride, at, <float *> to, r.rows, r.length, weight, kept)
            else:
                rn_softmax().stable_cross_entropy_backward_f64(<const double *> given, r.stride, at, <double *> to, r.rows, r.length, weight, kept)
        return (dx,)

    return value, pullback
