"""Softmax and its relatives: checks and layout; the arithmetic is in _kernels/softmax.c."""

import numpy

cimport numpy as np
from libc.stdint cimport int64_t, uint8_t

np.import_array()

include "../_kernels/rows.pxi"
include "reductions.pxi"

from refnorm.softmax import _cross_entropy as _reference_logs
from refnorm.softmax import _two_pass as _reference

cdef extern from "softmax.h":
    ctypedef struct rn_where:
        const uint8_t *mask
        const int64_t *at
        double temperature
    ctypedef struct rn_softmax_table:
        int (*softmax_where_f32)(const float *, size_t, const rn_where *, float *, size_t, size_t) nogil
        int (*softmax_where_f64)(const double *, size_t, const rn_where *, double *, size_t, size_t) nogil
        void (*softmax_backward_where_f32)(const float *, const float *, const rn_where *, float *, size_t, size_t) nogil
        void (*softmax_backward_where_f64)(const double *, const double *, const rn_where *, double *, size_t, size_t) nogil
        void (*log_softmax_where_f32)(const float *, size_t, const rn_where *, float *, size_t, size_t, double *, double *) nogil
        void (*log_softmax_where_f64)(const double *, size_t, const rn_where *, double *, size_t, size_t, double *, double *) nogil
        void (*from_stats_where_f32)(const float *, size_t, const float *, const rn_where *, float *, size_t, size_t, const double *, const double *, const double *) nogil
        void (*from_stats_where_f64)(const double *, size_t, const double *, const rn_where *, double *, size_t, size_t, const double *, const double *, const double *) nogil
        int (*stats_where_columns_f32)(const float *, const rn_where *, size_t, size_t, size_t, double *, double *) nogil
        int (*stats_where_columns_f64)(const double *, const rn_where *, size_t, size_t, size_t, double *, double *) nogil
        void (*scaled_minus_f32)(const float *, double, const double *, float *, size_t, size_t) nogil
        void (*scaled_minus_f64)(const double *, double, const double *, double *, size_t, size_t) nogil
        int (*softmax_f32)(const float *, size_t, float *, size_t, size_t, int) nogil
        int (*softmax_f64)(const double *, size_t, double *, size_t, size_t, int) nogil
        int (*row_stats_f32)(const float *, size_t, size_t, size_t, double *, double *) nogil
        int (*row_stats_f64)(const double *, size_t, size_t, size_t, double *, double *) nogil
        int (*log_softmax_f32)(const float *, size_t, float *, size_t, size_t, double *, double *) nogil
        int (*log_softmax_f64)(const double *, size_t, double *, size_t, size_t, double *, double *) nogil
        void (*softmax_from_stats_f32)(const float *, size_t, float *, size_t, size_t, const double *, const double *, const double *) nogil
        void (*softmax_from_stats_f64)(const double *, size_t, double *, size_t, size_t, const double *, const double *, const double *) nogil
        void (*softmax_backward_f32)(const float *, const float *, float *, size_t, size_t) nogil
        void (*softmax_backward_f64)(const double *, const double *, double *, size_t, size_t) nogil
        void (*log_softmax_backward_f32)(const float *, size_t, const float *, float *, size_t, size_t, const double *, const double *) nogil
        void (*log_softmax_backward_f64)(const double *, size_t, const double *, double *, size_t, size_t, const double *, const double *) nogil
        int (*cross_entropy_f32)(const float *, size_t, const int64_t *, size_t, size_t, double, double *, double *, double *) nogil
        int (*cross_entropy_f64)(const double *, size_t, const int64_t *, size_t, size_t, double, double *, double *, double *) nogil
        void (*cross_entropy_backward_f32)(const float *, size_t, const int64_t *, float *, size_t, size_t, double, const double *, const double *, const double *) nogil
        void (*cross_entropy_backward_f64)(const double *, size_t, const int64_t *, double *, size_t, size_t, double, const double *, const double *, const double *) nogil
        int (*soft_cross_entropy_f32)(const float *, const float *, size_t, size_t, double *, double *, double *, double *) nogil
        int (*soft_cross_entropy_f64)(const double *, const double *, size_t, size_t, double *, double *, double *, double *) nogil
        void (*soft_cross_entropy_backward_f32)(const float *, const float *, float *, float *, size_t, size_t, const double *, const double *, const double *, const double *) nogil
        void (*soft_cross_entropy_backward_f64)(const double *, const double *, double *, double *, size_t, size_t, const double *, const double *, const double *, const double *) nogil
        int (*softmax_columns_f32)(const float *, float *, size_t, size_t, size_t) nogil
        int (*softmax_columns_f64)(const double *, double *, size_t, size_t, size_t) nogil
        int (*log_softmax_columns_f32)(const float *, float *, size_t, size_t, size_t, double *, double *) nogil
        int (*log_softmax_columns_f64)(const double *, double *, size_t, size_t, size_t, double *, double *) nogil
        int (*softmax_from_stats_columns_f32)(const float *, float *, size_t, size_t, size_t, const double *, const double *, const double *) nogil
        int (*softmax_from_stats_columns_f64)(const double *, double *, size_t, size_t, size_t, const double *, const double *, const double *) nogil
        int (*softmax_backward_columns_f32)(const float *, const float *, float *, size_t, size_t, size_t) nogil
        int (*softmax_backward_columns_f64)(const double *, const double *, double *, size_t, size_t, size_t) nogil
        int (*log_softmax_backward_columns_f32)(const float *, const float *, float *, size_t, size_t, size_t, const double *, const double *) nogil
        int (*log_softmax_backward_columns_f64)(const double *, const double *, double *, size_t, size_t, size_t, const double *, const double *) nogil
    const rn_softmax_table *rn_softmax() nogil

ALGORITHMS = ("two_pass", "three_pass_recompute", "three_pass_reload", "online")
# The two-pass form for rows of any size, without the switch to the reload form in cache: for measurements.
cdef dict _CODES = {"two_pass": 0, "three_pass_recompute": 1, "three_pass_reload": 2, "online": 3, "_two_pass_always": 4}

cdef enum Form:
    SOFTMAX
    LOG_SOFTMAX


cdef _run(Form form, np.ndarray x, np.ndarray y, size_t rows, size_t length, size_t stride, int code):
    """Rows of x to the C-contiguous y, which is x itself or apart from it."""
    cdef void *source = np.PyArray_DATA(x)
    cdef void *target = np.PyArray_DATA(y)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int failed
    if rows == 0:
        return
    with nogil:
        if form == SOFTMAX:
            if single:
                failed = rn_softmax().softmax_f32(<const float *> source, stride, <float *> target, rows, length, code)
            else:
                failed = rn_softmax().softmax_f64(<const double *> source, stride, <double *> target, rows, length, code)
        elif single:
            failed = rn_softmax().log_softmax_f32(<const float *> source, stride, <float *> target, rows, length, NULL, NULL)
        else:
            failed = rn_softmax().log_softmax_f64(<const double *> source, stride, <double *> target, rows, length, NULL, NULL)
    if failed:
        raise MemoryError


cdef inline size_t _inner(np.ndarray x, int axis) noexcept:
    """Entries of the axes behind `axis`: the step along it in a C-contiguous array."""
    cdef size_t inner = 1
    cdef int i
    for i in range(axis + 1, np.PyArray_NDIM(x)):
        inner *= np.PyArray_DIM(x, i)
    return inner


cdef _run_columns(Form form, np.ndarray x, np.ndarray y, size_t outer, size_t length, size_t inner):
    """Columns of the C-contiguous x to the C-contiguous y, which is x itself or apart from it."""
    cdef void *source = np.PyArray_DATA(x)
    cdef void *target = np.PyArray_DATA(y)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int failed
    with nogil:
        if form == SOFTMAX:
            if single:
                failed = rn_softmax().softmax_columns_f32(<const float *> source, <float *> target, outer, length, inner)
            else:
                failed = rn_softmax().softmax_columns_f64(<const double *> source, <double *> target, outer, length, inner)
        elif single:
            failed = rn_softmax().log_softmax_columns_f32(<const float *> source, <float *> target, outer, length, inner, NULL, NULL)
        else:
            failed = rn_softmax().log_softmax_columns_f64(<const double *> source, <double *> target, outer, length, inner, NULL, NULL)
    if failed:
        raise MemoryError


cdef np.ndarray _forward_columns(Form form, np.ndarray x, np.ndarray y, int axis):
    """Along an axis with entries behind it; y is x itself or apart from it."""
    cdef size_t inner = _inner(x, axis), length = np.PyArray_DIM(x, axis)
    if np.PyArray_SIZE(x) == 0:
        return y
    if np.PyArray_IS_C_CONTIGUOUS(x) and np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y):
        _run_columns(form, x, y, np.PyArray_SIZE(x) // (length * inner), length, inner)
    elif np.PyArray_SIZE(x) <= CHUNK:
        part = numpy.array(x, order="C")
        y[...] = _forward_columns(form, part, part, axis)
    else:
        # pieces of the longest other axis, which does not matter to any column
        split = max((size, i) for i, size in enumerate((<object> x).shape) if i != axis)[1]
        here, there = numpy.moveaxis(x, split, 0), numpy.moveaxis(y, split, 0)
        step = max(1, len(here) * CHUNK // x.size)
        for first in range(0, len(here), step):
            part = numpy.array(numpy.moveaxis(here[first : first + step], 0, split), order="C")
            there[first : first + step] = numpy.moveaxis(_forward_columns(form, part, part, axis), split, 0)
    return y


cdef np.ndarray _forward(Form form, np.ndarray x, int axis, int code, out):
    cdef size_t rows, length, stride
    cdef np.ndarray y
    if out is not None:
        _check_out(out, x)
        y = <np.ndarray> out
        if not (_identical(x, y) or _apart(x, y)):
            y[...] = _forward(form, x, axis, code, None)
            return y
    else:
        y = _fresh(x)
    if code == 0 and _inner(x, axis) > 1:
        return _forward_columns(form, x, y, axis)
    if (axis == np.PyArray_NDIM(x) - 1 and np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y)
            and _rows_of(x, 1, &rows, &length, &stride)):
        _run(form, x, y, rows, length, stride, code)
    else:
        _in_chunks(lambda part: _forward(form, part, part.ndim - 1, code, part),
                   numpy.moveaxis(x, axis, -1), numpy.moveaxis(y, axis, -1))
    return y


cdef int _code_of(algorithm) except -1:
    code = _CODES.get(algorithm) if isinstance(algorithm, str) else None
    if code is None:
        _checks.one_of(algorithm, "algorithm", ALGORITHMS)
    return code


def softmax(x, *, axis=-1, algorithm="two_pass", where=None, temperature=1.0, out=None):
    """Softmax: ``y = exp(x) / sum(exp(x))`` along one axis.

    Parameters
    ----------
    x : float32 or float64 array of any shape with at least one axis
    axis : int
        Axis that sums to 1; it must not be empty.
    algorithm : {"two_pass", "three_pass_recompute", "three_pass_reload", "online"}
        How memory is passed over. ``"two_pass"`` keeps exponentials in cache for rows that fit there and otherwise
        uses the two-pass algorithm; the others are its baselines, which round ``x - max(x)`` and are less accurate.
    where : boolean array, broadcastable to the shape of ``x``, optional
        True for the entries that take part. The others are not read; their result is 0.
    temperature : float > 0
        The logits are ``x / temperature``.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.softmax`; also if ``out`` does not fit.

    Notes
    -----
    float32 results are within 2 units in the last place, subnormal ones included, at every temperature. A row that
    holds NaN or positive infinity, or nothing but negative infinity, becomes NaN; one in which nothing takes part
    becomes 0.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438.

    Examples
    --------
    >>> softmax(np.array([1000.0, 1001.0, 1002.0])).round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    if _on_gpu(x):
        return _dispatch.call("softmax.softmax", out, x, axis=axis, algorithm=algorithm, where=where, temperature=temperature)
    cdef np.ndarray array = _float_array(x, "x")
    if where is not None or not _is_one(temperature):
        return _forward_where(SOFTMAX, array, axis, algorithm, where, temperature, out)
    return _forward(SOFTMAX, array, _axis_of(array, axis), _code_of(algorithm), out)


def log_softmax(x, *, axis=-1, where=None, temperature=1.0, out=None):
    """Logarithm of the softmax: ``x - log(sum(exp(x)))`` along one axis.

    Parameters
    ----------
    x, axis, where, temperature, out
        As for :func:`softmax`; entries that take no part are negative infinity.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    ``(x - largest) - log_sum`` with ``log_sum = log1p(sum of the other exponentials)``: both terms have one sign,
    so a value near 0 keeps its digits.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438 (the sum).

    Examples
    --------
    >>> log_softmax(np.array([0.0, 0.0])).round(4)
    array([-0.6931, -0.6931])
    """
    if _on_gpu(x):
        return _dispatch.call("softmax.log_softmax", out, x, axis=axis, where=where, temperature=temperature)
    cdef np.ndarray array = _float_array(x, "x")
    if where is not None or not _is_one(temperature):
        return _forward_where(LOG_SOFTMAX, array, axis, "two_pass", where, temperature, out)
    return _forward(LOG_SOFTMAX, array, _axis_of(array, axis), 0, out)


# ---- with pullbacks: the array's rows, or the columns of the contiguous array ----------------------------------------

cdef class _Rows:
    """An array's rows along one axis, and where they go back. An axis with entries behind it has `columns` instead."""

    cdef np.ndarray x
    cdef np.ndarray original
    cdef int axis
    cdef bint in_place
    cdef bint columns
    cdef bint single
    cdef size_t rows, length, stride, outer, inner

    cdef object put_back(self, np.ndarray y):
        return y if self.in_place else _in_order(numpy.moveaxis(y, -1, self.axis))

    cdef np.ndarray cotangent(self, g, name):
        """A cotangent of the array's shape, in its dtype, as contiguous rows."""
        cdef np.ndarray array = numpy.asarray(g, dtype=(<object> self.original).dtype)
        _checks.shape(array, name, (<object> self.original).shape)
        return _in_order(array if self.in_place else numpy.moveaxis(array, self.axis, -1))


cdef _Rows _rows_along(np.ndarray array, int axis, bint columns=True):
    cdef _Rows r = _Rows.__new__(_Rows)
    r.original = array
    r.axis = axis
    r.single = np.PyArray_TYPE(array) == np.NPY_FLOAT
    r.inner = _inner(array, axis)
    r.columns = columns and r.inner > 1
    r.in_place = r.columns or axis == np.PyArray_NDIM(array) - 1
    if r.columns:
        r.x = _in_order(array)
        r.length = np.PyArray_DIM(array, axis)
        r.rows = np.PyArray_SIZE(array) // r.length
        r.outer = r.rows // r.inner
        return r
    r.x = _rows_contiguous(array if r.in_place else numpy.moveaxis(array, axis, -1), 1, &r.rows, &r.length, &r.stride)
    return r


cdef class _Stats:
    """Each row's largest entry and log_sum, so that log(sum(exp(x))) = largest + log_sum."""

    cdef np.ndarray largest
    cdef np.ndarray log_sum


cdef _Stats _stats_of(_Rows r, np.ndarray z):
    """The rows' stats; log-softmax to `z` on the way unless it is None."""
    cdef _Stats s = _Stats.__new__(_Stats)
    cdef int failed = 0
    s.largest = numpy.empty(r.rows)
    s.log_sum = numpy.empty(r.rows)
    cdef double *largest = <double *> np.PyArray_DATA(s.largest)
    cdef double *log_sum = <double *> np.PyArray_DATA(s.log_sum)
    cdef void *x = np.PyArray_DATA(r.x)
    cdef void *target = NULL if z is None else np.PyArray_DATA(z)
    if r.rows:
        with nogil:
            if r.columns:
                if r.single:
                    failed = rn_softmax().log_softmax_columns_f32(<const float *> x, <float *> target, r.outer, r.length, r.inner, largest, log_sum)
                else:
                    failed = rn_softmax().log_softmax_columns_f64(<const double *> x, <double *> target, r.outer, r.length, r.inner, largest, log_sum)
            elif r.single:
                failed = rn_softmax().log_softmax_f32(<const float *> x, r.stride, <float *> target, r.rows, r.length, largest, log_sum)
            else:
                failed = rn_softmax().log_softmax_f64(<const double *> x, r.stride, <double *> target, r.rows, r.length, largest, log_sum)
    if failed:
        raise MemoryError
    return s


def softmax_vjp(x, *, axis=-1, algorithm="two_pass", where=None, temperature=1.0):
    """Return :func:`softmax` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`softmax`.

    Notes
    -----
    ``dx = y * (dy - sum(dy * y)) / temperature``; 0, and nothing read, where an entry takes no part.

    Examples
    --------
    >>> y, pullback = softmax_vjp(np.array([1.0, 2.0]))
    >>> float(pullback(np.ones(2))[0].sum().round(12))
    0.0
    """
    if _on_gpu(x):
        return _dispatch.call("softmax.softmax_vjp", None, x, axis=axis, algorithm=algorithm, where=where, temperature=temperature)
    cdef np.ndarray array = _float_array(x, "x")
    if where is not None or not _is_one(temperature):
        return _softmax_where_vjp(array, axis, algorithm, _kept(where), temperature)
    cdef int along = _axis_of(array, axis), code = _code_of(algorithm)
    cdef _Rows r = _rows_along(array, along, code == 0)
    cdef np.ndarray rows_y = _fresh(r.x)
    if r.columns:
        _forward_columns(SOFTMAX, r.x, rows_y, along)
    else:
        _run(SOFTMAX, r.x, rows_y, r.rows, r.length, r.stride, code)

    def pullback(dy):
        cdef np.ndarray g = r.cotangent(dy, "dy")
        cdef np.ndarray dx = _fresh(rows_y)
        cdef void *y_data = np.PyArray_DATA(rows_y)
        cdef void *g_data = np.PyArray_DATA(g)
        cdef void *dx_data = np.PyArray_DATA(dx)
        cdef int failed = 0
        with nogil:
            if r.columns:
                if r.single:
                    failed = rn_softmax().softmax_backward_columns_f32(<const float *> y_data, <const float *> g_data, <float *> dx_data, r.outer, r.length, r.inner)
                else:
                    failed = rn_softmax().softmax_backward_columns_f64(<const double *> y_data, <const double *> g_data, <double *> dx_data, r.outer, r.length, r.inner)
            elif r.single:
                rn_softmax().softmax_backward_f32(<const float *> y_data, <const float *> g_data, <float *> dx_data, r.rows, r.length)
            else:
                rn_softmax().softmax_backward_f64(<const double *> y_data, <const double *> g_data, <double *> dx_data, r.rows, r.length)
        if failed:
            raise MemoryError
        return (r.put_back(dx),)

    return r.put_back(rows_y), pullback


def log_softmax_vjp(x, *, axis=-1, where=None, temperature=1.0):
    """Return :func:`log_softmax` and its pullback ``dz -> (dx,)``.

    Parameters, errors and references are those of :func:`log_softmax`.

    Notes
    -----
    ``dx = (dz - softmax(x) * sum(dz)) / temperature``; 0, and nothing read, where an entry takes no part.

    Examples
    --------
    >>> z, pullback = log_softmax_vjp(np.array([0.0, 0.0]))
    >>> pullback(np.array([1.0, 0.0]))[0]
    array([ 0.5, -0.5])
    """
    if _on_gpu(x):
        return _dispatch.call("softmax.log_softmax_vjp", None, x, axis=axis, where=where, temperature=temperature)
    cdef np.ndarray array = _float_array(x, "x")
    if where is not None or not _is_one(temperature):
        return _log_softmax_where_vjp(array, axis, _kept(where), temperature)
    cdef _Rows r = _rows_along(array, _axis_of(array, axis))
    cdef np.ndarray z = _fresh(r.x)
    cdef _Stats s = _stats_of(r, z)

    def pullback(dz):
        cdef np.ndarray g = r.cotangent(dz, "dz")
        cdef np.ndarray dx = _fresh(r.x)
        cdef void *x_data = np.PyArray_DATA(r.x)
        cdef void *g_data = np.PyArray_DATA(g)
        cdef void *dx_data = np.PyArray_DATA(dx)
        cdef double *largest = <double *> np.PyArray_DATA(s.largest)
        cdef double *log_sum = <double *> np.PyArray_DATA(s.log_sum)
        cdef int failed = 0
        with nogil:
            if r.columns:
                if r.single:
                    failed = rn_softmax().log_softmax_backward_columns_f32(<const float *> x_data, <const float *> g_data, <float *> dx_data, r.outer, r.length, r.inner, largest, log_sum)
                else:
                    failed = rn_softmax().log_softmax_backward_columns_f64(<const double *> x_data, <const double *> g_data, <double *> dx_data, r.outer, r.length, r.inner, largest, log_sum)
            elif r.single:
                rn_softmax().log_softmax_backward_f32(<const float *> x_data, r.stride, <const float *> g_data, <float *> dx_data, r.rows, r.length, largest, log_sum)
            else:
                rn_softmax().log_softmax_backward_f64(<const double *> x_data, r.stride, <const double *> g_data, <double *> dx_data, r.rows, r.length, largest, log_sum)
        if failed:
            raise MemoryError
        return (r.put_back(dx),)

    return r.put_back(z), pullback


cdef _logsumexp(_Rows r, _Stats s, bint keepdims):
    total = s.largest + s.log_sum
    undefined = numpy.isnan(total)
    if undefined.any():
        # No finite largest entry: the largest itself is the limit (NaN, inf or -inf).
        total[undefined] = (<object> r.original).max(axis=r.axis).reshape(r.rows)[undefined]
    shape = list((<object> r.original).shape)
    if keepdims:
        shape[r.axis] = 1
    else:
        del shape[r.axis]
    with numpy.errstate(over="ignore"):
        return total.astype(r.x.dtype).reshape(shape)


def logsumexp(x, *, axis=-1, keepdims=False, where=None, temperature=1.0):
    """Logarithm of the sum of exponentials along one axis.

    Parameters
    ----------
    x, axis, where, temperature
        As for :func:`softmax`; the result is not multiplied by the temperature.
    keepdims : bool
        Keep the axis, with one entry.

    Returns
    -------
    array, dtype of ``x``, its shape without ``axis``

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    ``largest + log1p(rest)``. Nothing but negative infinity gives negative infinity; positive infinity gives itself.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438 (the sum).

    Examples
    --------
    >>> float(logsumexp(np.array([1000.0, 1000.0])).round(4))
    1000.6931
    """
    if _on_gpu(x):
        return _dispatch.call("softmax.logsumexp", None, x, axis=axis, keepdims=keepdims, where=where, temperature=temperature)
    cdef np.ndarray array = _float_array(x, "x")
    if where is not None or not _is_one(temperature):
        return _logsumexp_where(array, axis, keepdims, where, temperature, False)[0]
    cdef _Rows r = _rows_along(array, _axis_of(array, axis))
    return _logsumexp(r, _stats_of(r, None), keepdims)


def logsumexp_vjp(x, *, axis=-1, keepdims=False, where=None, temperature=1.0):
    """Return :func:`logsumexp` and its pullback ``dlse -> (dx,)``.

    Parameters, errors and references are those of :func:`logsumexp`.

    Notes
    -----
    ``dx = dlse * softmax(x)``.

    Examples
    --------
    >>> y, pullback = logsumexp_vjp(np.array([0.0, 0.0]))
    >>> pullback(np.float64(2.0))[0]
    array([1., 1.])
    """
    if _on_gpu(x):
        return _dispatch.call("softmax.logsumexp_vjp", None, x, axis=axis, keepdims=keepdims, where=where, temperature=temperature)
    cdef np.ndarray array = _float_array(x, "x")
    if where is not None or not _is_one(temperature):
        return _logsumexp_where(array, axis, keepdims, _kept(where), temperature, True)
    cdef _Rows r = _rows_along(array, _axis_of(array, axis))
    cdef _Stats s = _stats_of(r, None)
    value = _logsumexp(r, s, keepdims)

    def pullback(dlse):
        wide = numpy.asarray(dlse, dtype=numpy.float64)
        _checks.shape(wide, "dlse", value.shape)
        cdef np.ndarray factor = _in_order(wide).reshape(r.rows)
        return (r.put_back(_softmax_times(r, s, factor)),)

    return value, pullback


cdef np.ndarray _softmax_times(_Rows r, _Stats s, np.ndarray factor):
    cdef np.ndarray dx = _fresh(r.x)
    cdef void *x_data = np.PyArray_DATA(r.x)
    cdef void *dx_data = np.PyArray_DATA(dx)
    cdef double *largest = <double *> np.PyArray_DATA(s.largest)
    cdef double *log_sum = <double *> np.PyArray_DATA(s.log_sum)
    cdef double *weight = <double *> np.PyArray_DATA(factor)
    cdef int failed = 0
    with nogil:
        if r.columns:
            if r.single:
                failed = rn_softmax().softmax_from_stats_columns_f32(<const float *> x_data, <float *> dx_data, r.outer, r.length, r.inner, largest, log_sum, weight)
            else:
                failed = rn_softmax().softmax_from_stats_columns_f64(<const double *> x_data, <double *> dx_data, r.outer, r.length, r.inner, largest, log_sum, weight)
        elif r.single:
            rn_softmax().softmax_from_stats_f32(<const float *> x_data, r.stride, <float *> dx_data, r.rows, r.length, largest, log_sum, weight)
        else:
            rn_softmax().softmax_from_stats_f64(<const double *> x_data, r.stride, <double *> dx_data, r.rows, r.length, largest, log_sum, weight)
    if failed:
        raise MemoryError
    return dx


# ---- over the entries that take part, of x / temperature -------------------------------------------------------------

cdef inline bint _is_one(temperature):
    return type(temperature) is float and <double> temperature == 1.0


cdef inline _kept(where):
    """A mask that stays as it is until the pullback, before it is broadcast."""
    return None if where is None else numpy.array(where)


cdef class _Selection:
    """Which entries of an array take part, as rows along its last axis, and the temperature."""

    cdef np.ndarray mask  # keeps the bytes alive
    cdef np.ndarray at
    cdef rn_where where


cdef _Selection _selection(chosen, double temperature):
    """`chosen`: the mask at the array's shape, its axis the last one, or None."""
    cdef _Selection s = _Selection.__new__(_Selection)
    s.where.temperature = temperature
    s.where.mask = NULL
    s.where.at = NULL
    if chosen is None:
        return s
    last = chosen.ndim - 1  # the modules are compiled without negative indices
    if chosen.shape[last] != 1 and chosen.strides[last] != 1:
        chosen = numpy.array(chosen, order="C")
    s.mask = chosen
    s.where.mask = <const uint8_t *> np.PyArray_DATA(s.mask)
    if not np.PyArray_IS_C_CONTIGUOUS(s.mask):
        at = numpy.zeros(chosen.shape[:-1], dtype=numpy.int64)
        for axis, (size, step) in enumerate(zip(chosen.shape[:-1], chosen.strides[:-1])):
            at += (step * numpy.arange(size)).reshape((-1,) + (1,) * (at.ndim - 1 - axis))
        s.at = at
        s.where.at = <const int64_t *> np.PyArray_DATA(s.at)
    return s


# Temperatures at which the kernels' constants are normal numbers of both types.
cdef double LEAST_TEMPERATURE = 2.0 ** -60
cdef double MOST_TEMPERATURE = 2.0 ** 60


cdef _chosen(np.ndarray array, where, temperature, int axis):
    """The checked mask with `axis` last, or None; and whether the kernels take the temperature."""
    cdef bint last = axis == np.PyArray_NDIM(array) - 1
    if (last and type(where) is np.ndarray and np.PyArray_TYPE(<np.ndarray> where) == np.NPY_BOOL
            and _same_shape(array, <np.ndarray> where) and type(temperature) is float
            and LEAST_TEMPERATURE <= <double> temperature <= MOST_TEMPERATURE):
        return where, True  # nothing to check or to broadcast
    chosen = _reference._chosen(where, (<object> array).shape)
    _checks.positive(temperature, "temperature")
    return (None if chosen is None else numpy.moveaxis(chosen, axis, -1)), LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE


cdef _run_where(Form form, np.ndarray x, np.ndarray y, _Selection s, size_t rows, size_t length, size_t stride):
    cdef void *source = np.PyArray_DATA(x)
    cdef void *target = np.PyArray_DATA(y)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int failed = 0
    if rows == 0:
        return
    with nogil:
        if form == SOFTMAX:
            if single:
                failed = rn_softmax().softmax_where_f32(<const float *> source, stride, &s.where, <float *> target, rows, length)
            else:
                failed = rn_softmax().softmax_where_f64(<const double *> source, stride, &s.where, <double *> target, rows, length)
        elif single:
            rn_softmax().log_softmax_where_f32(<const float *> source, stride, &s.where, <float *> target, rows, length, NULL, NULL)
        else:
            rn_softmax().log_softmax_where_f64(<const double *> source, stride, &s.where, <double *> target, rows, length, NULL, NULL)
    if failed:
        raise MemoryError


cdef _where_in_chunks(Form form, x, chosen, y, double temperature):
    """Along the last axis, in copies of about CHUNK elements."""
    if x.size <= CHUNK or x.ndim == 1:
        part = numpy.array(x, order="C")
        length = part.shape[part.ndim - 1]
        _run_where(form, part, part, _selection(chosen, temperature), part.size // length, length, length)
        y[...] = part
    elif x.shape[0] == 1:
        _where_in_chunks(form, x[0], None if chosen is None else chosen[0], y[0], temperature)
    else:
        step = max(1, x.shape[0] * CHUNK // x.size)
        for first in range(0, x.shape[0], step):
            part = slice(first, first + step)
            _where_in_chunks(form, x[part], None if chosen is None else chosen[part], y[part], temperature)


cdef _forward_where(Form form, np.ndarray x, axis, algorithm, where, temperature, out):
    cdef size_t rows, length, stride
    cdef int along = _axis_of(x, axis), code = _code_of(algorithm)
    cdef np.ndarray y
    chosen, taken = _chosen(x, where, temperature, along)
    if out is not None:
        _check_out(out, x)
    if code or not taken:
        if form == SOFTMAX:
            found = _reference.softmax(x, axis=axis, algorithm=algorithm, where=where, temperature=temperature)
        else:
            found = _reference_logs.log_softmax(x, axis=axis, where=where, temperature=temperature)
        if out is None:
            return found
        out[...] = found
        return out
    y = _fresh(x) if out is None else <np.ndarray> out
    if not (_identical(x, y) or _apart(x, y)):
        y[...] = _forward_where(form, x, axis, algorithm, where, temperature, None)
    elif (along == np.PyArray_NDIM(x) - 1 and np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y)
            and _rows_of(x, 1, &rows, &length, &stride)):
        _run_where(form, x, y, _selection(chosen, temperature), rows, length, stride)
    elif np.PyArray_SIZE(x):
        _where_in_chunks(form, numpy.moveaxis(x, along, -1), chosen, numpy.moveaxis(y, along, -1), temperature)
    return y


cdef np.ndarray _stats_pull(_Rows r, _Stats s, _Selection w, np.ndarray g, np.ndarray factor):
    """Rows of (g - softmax sum(g)) / temperature, or, without g, of factor / temperature softmax."""
    cdef np.ndarray dx = _fresh(r.x)
    cdef void *x = np.PyArray_DATA(r.x)
    cdef void *up = NULL if g is None else np.PyArray_DATA(g)
    cdef void *to = np.PyArray_DATA(dx)
    cdef double *largest = <double *> np.PyArray_DATA(s.largest)
    cdef double *log_sum = <double *> np.PyArray_DATA(s.log_sum)
    cdef double *weight = NULL if factor is None else <double *> np.PyArray_DATA(factor)
    with nogil:
        if r.single:
            rn_softmax().from_stats_where_f32(<const float *> x, r.stride, <const float *> up, &w.where, <float *> to, r.rows, r.length, largest, log_sum, weight)
        else:
            rn_softmax().from_stats_where_f64(<const double *> x, r.stride, <const double *> up, &w.where, <double *> to, r.rows, r.length, largest, log_sum, weight)
    return dx


cdef _Stats _stats_where(_Rows r, _Selection w, np.ndarray z):
    cdef _Stats s = _Stats.__new__(_Stats)
    s.largest = numpy.empty(r.rows)
    s.log_sum = numpy.empty(r.rows)
    cdef double *largest = <double *> np.PyArray_DATA(s.largest)
    cdef double *log_sum = <double *> np.PyArray_DATA(s.log_sum)
    cdef void *x = np.PyArray_DATA(r.x)
    cdef void *target = NULL if z is None else np.PyArray_DATA(z)
    cdef int failed = 0
    with nogil:
        if r.columns:
            if r.rows == 0:
                pass
            elif r.single:
                failed = rn_softmax().stats_where_columns_f32(<const float *> x, &w.where, r.outer, r.length, r.inner, largest, log_sum)
            else:
                failed = rn_softmax().stats_where_columns_f64(<const double *> x, &w.where, r.outer, r.length, r.inner, largest, log_sum)
        elif r.single:
            rn_softmax().log_softmax_where_f32(<const float *> x, r.stride, &w.where, <float *> target, r.rows, r.length, largest, log_sum)
        else:
            rn_softmax().log_softmax_where_f64(<const double *> x, r.stride, &w.where, <double *> target, r.rows, r.length, largest, log_sum)
    if failed:
        raise MemoryError
    return s


def _scaled_minus(x, double scale, minus):
    """``x * scale - minus`` of a matrix, `minus` float64 and one a column, formed in float64."""
    cdef np.ndarray rows = _in_order(x), y = _fresh(rows)
    cdef void *source = np.PyArray_DATA(rows)
    cdef void *target = np.PyArray_DATA(y)
    cdef const double *each = <const double *> np.PyArray_DATA(<np.ndarray> minus)
    cdef size_t count = np.PyArray_DIM(rows, 0), columns = np.PyArray_DIM(rows, 1)
    cdef bint single = np.PyArray_TYPE(rows) == np.NPY_FLOAT
    with nogil:
        if single:
            rn_softmax().scaled_minus_f32(<const float *> source, scale, each, <float *> target, count, columns)
        else:
            rn_softmax().scaled_minus_f64(<const double *> source, scale, each, <double *> target, count, columns)
    return y


cdef _softmax_where_vjp(np.ndarray array, axis, algorithm, where, temperature):
    cdef int along = _axis_of(array, axis), code = _code_of(algorithm)
    chosen, taken = _chosen(array, where, temperature, along)
    if code or not taken:
        return _reference.softmax_vjp(array, axis=axis, algorithm=algorithm, where=where, temperature=temperature)
    cdef _Rows r = _rows_along(array, along, False)
    cdef _Selection w = _selection(chosen, temperature)
    cdef np.ndarray rows_y = _fresh(r.x)
    _run_where(SOFTMAX, r.x, rows_y, w, r.rows, r.length, r.stride)

    def pullback(dy):
        cdef np.ndarray g = r.cotangent(dy, "dy")
        cdef np.ndarray dx = _fresh(rows_y)
        cdef void *y_data = np.PyArray_DATA(rows_y)
        cdef void *g_data = np.PyArray_DATA(g)
        cdef void *to = np.PyArray_DATA(dx)
        with nogil:
            if r.single:
                rn_softmax().softmax_backward_where_f32(<const float *> y_data, <const float *> g_data, &w.where, <float *> to, r.rows, r.length)
            else:
                rn_softmax().softmax_backward_where_f64(<const double *> y_data, <const double *> g_data, &w.where, <double *> to, r.rows, r.length)
        return (r.put_back(dx),)

    return r.put_back(rows_y), pullback


cdef _log_softmax_where_vjp(np.ndarray array, axis, where, temperature):
    cdef int along = _axis_of(array, axis)
    chosen, taken = _chosen(array, where, temperature, along)
    if not taken:
        return _reference_logs.log_softmax_vjp(array, axis=axis, where=where, temperature=temperature)
    cdef _Rows r = _rows_along(array, along, False)
    cdef _Selection w = _selection(chosen, temperature)
    cdef np.ndarray z = _fresh(r.x)
    cdef _Stats s = _stats_where(r, w, z)

    def pullback(dz):
        return (r.put_back(_stats_pull(r, s, w, r.cotangent(dz, "dz"), None)),)

    return r.put_back(z), pullback


cdef _logsumexp_where(np.ndarray array, axis, keepdims, where, temperature, bint pull):
    cdef int along = _axis_of(array, axis)
    chosen, taken = _chosen(array, where, temperature, along)
    if not taken:
        return _reference_logs.logsumexp_vjp(array, axis=axis, keepdims=keepdims, where=where, temperature=temperature)
    cdef _Rows r = _rows_along(array, along, chosen is None and not pull)
    cdef _Selection w = _selection(chosen, temperature)
    cdef _Stats s = _stats_where(r, w, None)
    total = s.largest / temperature + s.log_sum
    undefined = numpy.isnan(total)
    if undefined.any():
        # No finite largest entry among those that take part: that itself is the limit (NaN, inf or -inf).
        part = <object> r.x
        if r.columns:
            part = part.reshape(r.outer, r.length, r.inner).swapaxes(1, 2)
        part = part.reshape(r.rows, r.length)[undefined]
        here = True if chosen is None else numpy.reshape(chosen, (r.rows, r.length))[undefined]
        total[undefined] = part.max(axis=1, initial=-numpy.inf, where=here)
    shape = list((<object> array).shape)
    if keepdims:
        shape[along] = 1
    else:
        del shape[along]
    with numpy.errstate(over="ignore"):
        value = total.astype(array.dtype).reshape(shape)
    if not pull:
        return value, None

    def pullback(dlse):
        wide = numpy.asarray(dlse, dtype=numpy.float64)
        _checks.shape(wide, "dlse", value.shape)
        return (r.put_back(_stats_pull(r, s, w, None, _in_order(wide).reshape(r.rows))),)

    return value, pullback


# ---- cross-entropy ------------------------------------------------------------------------------------------------

cdef class _Hard:
    """Checked arguments of the cross-entropy with integer targets, and what its value leaves behind."""

    cdef _Rows r
    cdef _Stats s
    cdef np.ndarray target
    cdef double smoothing
    cdef size_t counted
    cdef object value


cdef _Hard _cross_entropy(logits, target, label_smoothing, ignore_index, reduction):
    cdef _Hard h = _Hard.__new__(_Hard)
    cdef np.ndarray array = _logits_of(logits)
    classes = _checks.integer_array(target, "target", ndim=1)
    _checks.shape(classes, "target", (array.shape[0],))
    _checks.in_range(label_smoothing, "label_smoothing", 0, 1, closed="left")
    _checks.whole(ignore_index, "ignore_index")
    _checks.one_of(reduction, "reduction", REDUCTIONS)
    counts = classes != ignore_index
    wrong = counts & ((classes < 0) | (classes >= array.shape[1]))
    if wrong.any():
        _checks.fail("target", f"classes from 0 to {array.shape[1] - 1} or {ignore_index}", classes[wrong][0])
    h.target = numpy.where(counts, classes, -1).astype(numpy.int64)
    h.counted = int(counts.sum())
    _check_counted(reduction, h.counted, array.shape[0])
    h.smoothing = label_smoothing
    h.r = _rows_along(array, 1)
    h.s = _Stats.__new__(_Stats)
    h.s.largest = numpy.empty(h.r.rows)
    h.s.log_sum = numpy.empty(h.r.rows)
    cdef np.ndarray losses = numpy.empty(h.r.rows)
    cdef void *x = np.PyArray_DATA(h.r.x)
    cdef double *loss = <double *> np.PyArray_DATA(losses)
    cdef double *largest = <double *> np.PyArray_DATA(h.s.largest)
    cdef double *log_sum = <double *> np.PyArray_DATA(h.s.log_sum)
    cdef int64_t *classes_data = <int64_t *> np.PyArray_DATA(h.target)
    cdef int failed = 0
    if h.r.rows:
        with nogil:
            if h.r.single:
                failed = rn_softmax().cross_entropy_f32(<const float *> x, h.r.stride, classes_data, h.r.rows, h.r.length, h.smoothing, loss, largest, log_sum)
            else:
                failed = rn_softmax().cross_entropy_f64(<const double *> x, h.r.stride, classes_data, h.r.rows, h.r.length, h.smoothing, loss, largest, log_sum)
    if failed:
        raise MemoryError
    h.value = _reduce(losses, reduction, h.counted, h.r.x.dtype)
    return h


def cross_entropy(logits, target, *, label_smoothing=0.0, ignore_index=-100, reduction="mean"):
    """Cross-entropy of the softmax of ``logits`` with integer targets.

    Parameters
    ----------
    logits : array (B, C)
    target : integer array (B,)
        Classes from 0 to C - 1, or ``ignore_index``.
    label_smoothing : float in [0, 1)
        Part of the target distribution that is spread evenly over all classes.
    ignore_index : int
        Rows with this target have loss 0 and do not count in the mean.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    array () or, for ``reduction="none"``, (B,); dtype of ``logits``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.cross_entropy`.

    Notes
    -----
    ``log_sum + (1 - label_smoothing) (largest - x_target) + label_smoothing (largest - mean(x))``: a sum of terms
    that are not negative.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438 (the sum of exponentials).

    Examples
    --------
    >>> float(cross_entropy(np.array([[1000.0, 1001.0, 1002.0]]), np.array([2])).round(6))
    0.407606
    """
    if _on_gpu(logits):
        return _dispatch.call("softmax.cross_entropy", None, logits, target, label_smoothing=label_smoothing,
                              ignore_index=ignore_index, reduction=reduction)
    return _cross_entropy(logits, target, label_smoothing, ignore_index, reduction).value


def cross_entropy_vjp(logits, target, *, label_smoothing=0.0, ignore_index=-100, reduction="mean"):
    """Return :func:`cross_entropy` and its pullback ``dloss -> (dlogits,)``.

    Parameters, errors and references are those of :func:`cross_entropy`; the integer target has no cotangent.

    Notes
    -----
    ``dlogits = weight * (softmax(logits) - q)`` with the target distribution ``q``, in one pass over the logits.

    Examples
    --------
    >>> loss, pullback = cross_entropy_vjp(np.zeros((1, 2)), np.array([1]))
    >>> pullback(np.float64(1.0))[0]
    array([[ 0.5, -0.5]])
    """
    if _on_gpu(logits):
        return _dispatch.call("softmax.cross_entropy_vjp", None, logits, target, label_smoothing=label_smoothing,
                              ignore_index=ignore_index, reduction=reduction)
    cdef _Hard h = _cross_entropy(logits, target, label_smoothing, ignore_index, reduction)

    def pullback(dloss):
        cdef np.ndarray weights = _row_weights(dloss, h.r.x, reduction, h.counted)
        cdef np.ndarray dx = _fresh(h.r.x)
        cdef void *x = np.PyArray_DATA(h.r.x)
        cdef void *to = np.PyArray_DATA(dx)
        cdef double *weight = <double *> np.PyArray_DATA(weights)
        cdef double *largest = <double *> np.PyArray_DATA(h.s.largest)
        cdef double *log_sum = <double *> np.PyArray_DATA(h.s.log_sum)
        cdef int64_t *classes = <int64_t *> np.PyArray_DATA(h.target)
        with nogil:
            if h.r.single:
                rn_softmax().cross_entropy_backward_f32(<const float *> x, h.r.stride, classes, <float *> to, h.r.rows, h.r.length, h.smoothing, weight, largest, log_sum)
            else:
                rn_softmax().cross_entropy_backward_f64(<const double *> x, h.r.stride, classes, <double *> to, h.r.rows, h.r.length, h.smoothing, weight, largest, log_sum)
        return (dx,)

    return h.value, pullback


cdef class _Soft:
    cdef _Rows r
    cdef _Stats s
    cdef np.ndarray q
    cdef np.ndarray q_sum
    cdef object value


cdef _Soft _soft_cross_entropy(logits, target, reduction):
    cdef _Soft h = _Soft.__new__(_Soft)
    cdef np.ndarray array = _logits_of(logits)
    cdef np.ndarray given = _float_array(target, "target")
    _checks.same_dtype("logits", array, target=given)
    _checks.shape(given, "target", (array.shape[0], array.shape[1]))
    _checks.one_of(reduction, "reduction", REDUCTIONS)
    _check_counted(reduction, array.shape[0], array.shape[0])
    h.r = _rows_along(_in_order(array), 1)
    h.q = _in_order(given)
    h.s = _Stats.__new__(_Stats)
    h.s.largest = numpy.empty(h.r.rows)
    h.s.log_sum = numpy.empty(h.r.rows)
    h.q_sum = numpy.empty(h.r.rows)
    cdef np.ndarray losses = numpy.empty(h.r.rows)
    cdef void *x = np.PyArray_DATA(h.r.x)
    cdef void *weights = np.PyArray_DATA(h.q)
    cdef double *loss = <double *> np.PyArray_DATA(losses)
    cdef double *sums = <double *> np.PyArray_DATA(h.q_sum)
    cdef double *largest = <double *> np.PyArray_DATA(h.s.largest)
    cdef double *log_sum = <double *> np.PyArray_DATA(h.s.log_sum)
    cdef int failed = 0
    if h.r.rows:
        with nogil:
            if h.r.single:
                failed = rn_softmax().soft_cross_entropy_f32(<const float *> x, <const float *> weights, h.r.rows, h.r.length, loss, sums, largest, log_sum)
            else:
                failed = rn_softmax().soft_cross_entropy_f64(<const double *> x, <const double *> weights, h.r.rows, h.r.length, loss, sums, largest, log_sum)
    if failed:
        raise MemoryError
    h.value = _reduce(losses, reduction, h.r.rows, h.r.x.dtype)
    return h


def soft_cross_entropy(logits, target, *, reduction="mean"):
    """Cross-entropy of the softmax of ``logits`` with weights of the classes, which need not sum to 1.

    Parameters
    ----------
    logits, target : arrays (B, C) of one dtype
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    array () or, for ``reduction="none"``, (B,); dtype of ``logits``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.softmax.soft_cross_entropy`.

    Notes
    -----
    ``sum(target * (largest - x)) + log_sum * sum(target)``; a weight of exactly 0 counts as 0 even where ``x`` is
    negative infinity.

    References
    ----------
    Dukhan, Ablavatski (2020), arXiv 2001.04438 (the sum of exponentials).

    Examples
    --------
    >>> float(soft_cross_entropy(np.zeros((1, 2)), np.array([[0.25, 0.75]])).round(6))
    0.693147
    """
    return _soft_cross_entropy(logits, target, reduction).value


def soft_cross_entropy_vjp(logits, target, *, reduction="mean"):
    """Return :func:`soft_cross_entropy` and its pullback ``dloss -> (dlogits, dtarget)``.

    Parameters, errors and references are those of :func:`soft_cross_entropy`.

    Notes
    -----
    ``dlogits = weight * (softmax(logits) * sum(target) - target)`` and
    ``dtarget = weight * (logsumexp(logits) - logits)``.

    Examples
    --------
    >>> loss, pullback = soft_cross_entropy_vjp(np.zeros((1, 2)), np.array([[0.25, 0.75]]))
    >>> pullback(np.float64(1.0))[0]
    array([[ 0.25, -0.25]])
    """
    cdef _Soft h = _soft_cross_entropy(logits, target, reduction)

    def pullback(dloss):
        cdef np.ndarray weights = _row_weights(dloss, h.r.x, reduction, h.r.rows)
        cdef np.ndarray dx = _fresh(h.r.x)
        cdef np.ndarray dq = _fresh(h.r.x)
        cdef void *x = np.PyArray_DATA(h.r.x)
        cdef void *given = np.PyArray_DATA(h.q)
        cdef void *to = np.PyArray_DATA(dx)
        cdef void *to_q = np.PyArray_DATA(dq)
        cdef double *weight = <double *> np.PyArray_DATA(weights)
        cdef double *sums = <double *> np.PyArray_DATA(h.q_sum)
        cdef double *largest = <double *> np.PyArray_DATA(h.s.largest)
        cdef double *log_sum = <double *> np.PyArray_DATA(h.s.log_sum)
        with nogil:
            if h.r.single:
                rn_softmax().soft_cross_entropy_backward_f32(<const float *> x, <const float *> given, <float *> to, <float *> to_q, h.r.rows, h.r.length, weight, sums, largest, log_sum)
            else:
                rn_softmax().soft_cross_entropy_backward_f64(<const double *> x, <const double *> given, <double *> to, <double *> to_q, h.r.rows, h.r.length, weight, sums, largest, log_sum)
        return dx, dq

    return h.value, pullback
