"""Softmax over the largest entries: checks and layout; the arithmetic is in _kernels/select.c."""

import numpy

cimport numpy as np
from libc.stdint cimport int32_t, uint8_t

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "select.h":
    ctypedef struct rn_select_table:
        int (*topk_softmax_f32)(const float *, size_t, const float *, float *, uint8_t *, int32_t *, float *, size_t, size_t, size_t, int) nogil
        int (*topk_softmax_f64)(const double *, size_t, const double *, double *, uint8_t *, int32_t *, double *, size_t, size_t, size_t, int) nogil
        int (*topk_softmax_backward_f32)(const float *, const int32_t *, const float *, float *, float *, size_t, size_t, size_t) nogil
        int (*topk_softmax_backward_f64)(const double *, const int32_t *, const double *, double *, double *, size_t, size_t, size_t) nogil
    const rn_select_table *rn_select() nogil


cdef inline void *_data(array) noexcept:
    return NULL if array is None else np.PyArray_DATA(<np.ndarray> array)


cdef class _TopK:
    """Checked arguments, the value, and what the pullback needs: the selected entries' places and weights."""

    cdef np.ndarray weights
    cdef np.ndarray mask
    cdef object bias
    cdef object chosen
    cdef object packed
    cdef size_t rows, length, top_k
    cdef bint single


cdef _TopK _topk(scores, bias, top_k, select_with_bias, bint keep):
    cdef _TopK t = _TopK.__new__(_TopK)
    cdef np.ndarray x = _float_array(scores, "scores")
    cdef size_t stride
    cdef int failed = 0, with_bias = bool(select_with_bias)
    if np.PyArray_NDIM(x) == 0:
        _checks.float_array(x, "scores", min_ndim=1)
    last = np.PyArray_DIM(x, np.PyArray_NDIM(x) - 1)
    if bias is not None:
        bias = _float_array(bias, "bias")
        _checks.same_dtype("scores", x, bias=bias)
        _checks.shape(bias, "bias", (last,))
        bias = _in_order(bias)
    t.top_k = top_k if type(top_k) is int and 0 < top_k <= last else _checks.whole(top_k, "top_k", low=1, high=last)
    t.bias = bias
    t.single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    x = _rows_contiguous(x, 1, &t.rows, &t.length, &stride)
    t.weights = _fresh(x)
    t.mask = rn_empty(np.PyArray_NDIM(x), np.PyArray_DIMS(x), np.NPY_BOOL)
    if keep:
        t.chosen = numpy.empty(t.rows * t.top_k, numpy.int32)
        t.packed = numpy.empty(t.rows * t.top_k, x.dtype)
    cdef void *source = np.PyArray_DATA(x)
    cdef void *added = _data(bias)
    cdef void *weights = np.PyArray_DATA(t.weights)
    cdef uint8_t *mask = <uint8_t *> np.PyArray_DATA(t.mask)
    cdef int32_t *chosen = <int32_t *> _data(t.chosen)
    cdef void *packed = _data(t.packed)
    with nogil:
        if t.single:
            failed = rn_select().topk_softmax_f32(<const float *> source, stride, <const float *> added, <float *> weights, mask, chosen, <float *> packed, t.rows, t.length, t.top_k, with_bias)
        else:
            failed = rn_select().topk_softmax_f64(<const double *> source, stride, <const double *> added, <double *> weights, mask, chosen, <double *> packed, t.rows, t.length, t.top_k, with_bias)
    if failed:
        raise MemoryError
    return t


def topk_softmax(scores, bias=None, *, top_k, select_with_bias=False):
    """Softmax over the K largest scores of each row, 0 elsewhere.

    Parameters
    ----------
    scores : array (..., k)
        One score an expert.
    bias : array (k,), optional
        Added to the scores of the selected experts.
    top_k : int from 1 to k
        How many experts are selected; of equal scores the first ones.
    select_with_bias : bool
        Whether the bias counts in the selection too.

    Returns
    -------
    weights : array (..., k), dtype of ``scores``
    mask : boolean array (..., k)
        Which experts are selected.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.topk_softmax`.

    Notes
    -----
    A row with NaN is NaN, as for softmax. float32 weights are within 2 units in the last place.

    References
    ----------
    Nguyen et al. (2023), arXiv 2309.13850, section 1 (the model).

    Examples
    --------
    >>> weights, mask = topk_softmax(np.array([2.0, 1.0, 0.0]), np.array([0.0, 1.0, 5.0]), top_k=2)
    >>> weights, mask
    (array([0.5, 0.5, 0. ]), array([ True,  True, False]))
    """
    cdef _TopK t = _topk(scores, bias, top_k, select_with_bias, False)
    return t.weights, t.mask


def topk_softmax_vjp(scores, bias=None, *, top_k, select_with_bias=False):
    """Return :func:`topk_softmax` and its pullback ``dweights -> (dscores, dbias)``.

    Parameters, errors and references are those of :func:`topk_softmax`.

    Notes
    -----
    The selection counts as a constant. Cotangents of weights that are not selected are not read: such a weight is 0
    whatever the score. The entry of a bias that was left out is ``None``.

    Examples
    --------
    >>> (weights, mask), pullback = topk_softmax_vjp(np.array([1.0, 1.0, 0.0]), top_k=2)
    >>> pullback(np.array([1.0, 0.0, 7.0]))[0]
    array([ 0.25, -0.25,  0.  ])
    """
    cdef _TopK t = _topk(scores, bias, top_k, select_with_bias, True)

    def pullback(dweights):
        cdef np.ndarray g = numpy.asarray(dweights, dtype=(<object> t.weights).dtype)
        _checks.shape(g, "dweights", (<object> t.weights).shape)
        g = _in_order(g)
        cdef np.ndarray dscores = _fresh(t.weights)
        dbias = None if t.bias is None else _fresh(t.bias)
        cdef void *source = np.PyArray_DATA(g)
        cdef int32_t *chosen = <int32_t *> _data(t.chosen)
        cdef void *packed = _data(t.packed)
        cdef void *target = np.PyArray_DATA(dscores)
        cdef void *sums = _data(dbias)
        cdef int failed
        with nogil:
            if t.single:
                failed = rn_select().topk_softmax_backward_f32(<const float *> source, chosen, <const float *> packed, <float *> target, <float *> sums, t.rows, t.length, t.top_k)
            else:
                failed = rn_select().topk_softmax_backward_f64(<const double *> source, chosen, <const double *> packed, <double *> target, <double *> sums, t.rows, t.length, t.top_k)
        if failed:
            raise MemoryError
        return dscores, dbias

    return (t.weights, t.mask), pullback
