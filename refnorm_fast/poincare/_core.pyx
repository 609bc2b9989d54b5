"""The Poincaré ball: checks and layout; the arithmetic is in _kernels/poincare.c, the product in _kernels/gemm.c."""

import math

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

include "points.pxi"

cdef extern from "gemm.h":
    ctypedef struct rn_linear_call:
        const float *x
        size_t x_stride, rows
        const float *packed
        const float *bias
        size_t depth, width
        float *out
        size_t out_stride
        int activation
        const float *residual
        const float *gain
        const float *shift
        size_t residual_stride
        float eps

    ctypedef struct rn_gemm_table:
        size_t (*padded_width)(size_t) nogil
        void (*pack)(const float *, ptrdiff_t, ptrdiff_t, size_t, size_t, float *) nogil
        int (*linear)(const rn_linear_call *) nogil
    const rn_gemm_table *rn_gemm() nogil

# A product of float32 vectors shorter than this is accumulated in float64.
cdef size_t SHORT = 32

# Largest cosh of a bias over a column's length, and smallest gap, for which float32 arithmetic cannot overflow.
cdef double LARGEST_SLOPE = 1e12
cdef double SMALLEST_GAP = 1e-18


cdef _apply(Kind kind, tuple names, x, y, curvature, axis, bint check, double margin, out, fallback):
    """Run a kernel; whatever is unusual or wrong goes to ``fallback``, the reference, which raises or computes it."""
    cdef np.ndarray a = _float_array(x, names[0])
    cdef np.ndarray b = None
    cdef np.ndarray z
    cdef double c = _curvature(curvature)
    cdef size_t rows, length, x_stride, y_stride = 0
    cdef int ndim = np.PyArray_NDIM(a)
    if y is not None:
        b = _float_array(y, names[1])
    if (c == 0 or ndim == 0 or type(axis) is not int or not -ndim <= axis < ndim or np.PyArray_DIM(a, axis % ndim) == 0
            or (b is not None and (np.PyArray_TYPE(a) != np.PyArray_TYPE(b) or not _same_shape(a, b)))):
        return _store(fallback(), out)
    shape = (<object> a).shape
    last = axis % ndim == ndim - 1
    if not last:
        a = numpy.ascontiguousarray(numpy.moveaxis(a, axis, -1))
        b = None if b is None else numpy.ascontiguousarray(numpy.moveaxis(b, axis, -1))
    a = _rows(a, &rows, &length, &x_stride)
    if b is not None:
        b = _rows(b, &rows, &length, &y_stride)
    direct = False
    if out is not None:
        if kind >= DIST:
            _check_scalars(out, a, shape, axis % ndim)
        else:
            _check_out(out, _float_array(x, names[0]))
        direct = (last and out.flags.c_contiguous and out.flags.aligned
                  and (_identical(a, out) or _apart(a, out)) and (b is None or _identical(b, out) or _apart(b, out)))
    if direct:
        z = out
    elif kind >= DIST:
        z = numpy.empty((<object> a).shape[: ndim - 1], a.dtype)
    else:
        z = _fresh(a)
    # In place, an argument is gone when a point turns out to lie outside; so look first.
    if direct and check and kind < DIST and kind != EXP0 and kind != PROJECT and (_identical(a, out) or (b is not None and _identical(b, out))):
        if _outside(a, c) or (b is not None and kind != EXPMAP and _outside(b, c)):
            return _store(fallback(), out)
    if rows and _run(kind, a, b, z, None, None, rows, length, x_stride, y_stride, c, margin) and check:
        return _store(fallback(), out)
    if direct:
        return out
    if kind >= DIST:
        result = z if ndim > 1 else z[()]
    else:
        result = z if last else numpy.moveaxis(z, -1, axis)
    return _store(result, out)


cdef bint _outside(np.ndarray x, double curvature):
    cdef size_t rows, length, stride
    _rows_of(x, 1, &rows, &length, &stride)
    return rows > 0 and bool(_gaps(x, rows, length, stride, curvature, numpy.empty(rows)))


cdef int _gaps(np.ndarray x, size_t rows, size_t length, size_t stride, double curvature, np.ndarray gaps):
    cdef void *a = np.PyArray_DATA(x)
    cdef double *to = <double *> np.PyArray_DATA(gaps)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int outside
    with nogil:
        if single:
            outside = rn_poincare().gaps_f32(<const float *> a, stride, to, rows, length, curvature)
        else:
            outside = rn_poincare().gaps_f64(<const double *> a, stride, to, rows, length, curvature)
    return outside


def mobius_add(x, y, curvature, *, axis=-1, check=True, out=None):
    """Add points of the Poincaré ball; see :func:`refnorm.poincare.mobius_add`. ``out`` takes the result."""
    return _apply(ADD, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.mobius_add(x, y, curvature, axis=axis, check=check))


def exp0(v, curvature, *, axis=-1, project=True, out=None):
    """Exponential map at the origin; see :func:`refnorm.poincare.exp0`. ``out`` takes the result."""
    return _apply(EXP0, ("v",), v, None, curvature, axis, True, _margin(_float_array(v, "v")) if project else -1.0, out,
                  lambda: reference.exp0(v, curvature, axis=axis, project=project))


def log0(y, curvature, *, axis=-1, check=True, out=None):
    """Logarithmic map at the origin; see :func:`refnorm.poincare.log0`. ``out`` takes the result."""
    return _apply(LOG0, ("y",), y, None, curvature, axis, check, -1.0, out,
                  lambda: reference.log0(y, curvature, axis=axis, check=check))


def project_ball(x, curvature, *, axis=-1, eps=None, out=None):
    """Projection onto a slightly smaller ball; see :func:`refnorm.poincare.project_ball`. ``out`` takes the result."""
    if eps is None:
        eps = _margin(_float_array(x, "x"))
    _checks.in_range(eps, "eps", 0.0, 1.0, closed="left")
    return _apply(PROJECT, ("x",), x, None, curvature, axis, True, eps, out,
                  lambda: reference.project_ball(x, curvature, axis=axis, eps=eps))


def expmap(x, v, curvature, *, axis=-1, check=True, project=True, out=None):
    """Exponential map at a point; see :func:`refnorm.poincare.expmap`. ``out`` takes the result."""
    return _apply(EXPMAP, ("x", "v"), x, v, curvature, axis, check, _margin(_float_array(x, "x")) if project else -1.0, out,
                  lambda: reference.expmap(x, v, curvature, axis=axis, check=check, project=project))


def logmap(x, y, curvature, *, axis=-1, check=True, out=None):
    """Logarithmic map at a point; see :func:`refnorm.poincare.logmap`. ``out`` takes the result."""
    return _apply(LOGMAP, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.logmap(x, y, curvature, axis=axis, check=check))


def dist(x, y, curvature, *, axis=-1, check=True, out=None):
    """Hyperbolic distance; see :func:`refnorm.poincare.dist`. ``out`` takes the result."""
    return _apply(DIST, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.dist(x, y, curvature, axis=axis, check=check))


def dist_sq(x, y, curvature, *, axis=-1, check=True, out=None):
    """Squared hyperbolic distance; see :func:`refnorm.poincare.dist_sq`. ``out`` takes the result."""
    return _apply(DIST_SQ, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.dist_sq(x, y, curvature, axis=axis, check=check))


def fully_connected(x, weight, bias, curvature, *, check=True, project=True, out=None):
    """Poincaré fully connected layer; see :func:`refnorm.poincare.fully_connected`. ``out`` takes the result.

    Notes
    -----
    float32 inner products are accumulated in float32 for vectors of 32 entries and more, as in a matrix product, and
    the hyperbolic functions run in float32: relative to the reference, errors of a few units in the last place times
    the largest logit. Everything else is computed as in the reference.
    """
    cdef np.ndarray points = _float_array(x, "x")
    cdef np.ndarray matrix = _float_array(weight, "weight")
    cdef np.ndarray offsets = _float_array(bias, "bias")
    cdef np.ndarray squares, gaps, y
    cdef double c = _curvature(curvature), root, margin
    cdef size_t rows, length, stride, width
    cdef int ndim = np.PyArray_NDIM(points)

    def fallback():
        return _store(reference.fully_connected(x, weight, bias, curvature, check=check, project=project), out)

    if (c == 0 or ndim == 0 or np.PyArray_NDIM(matrix) != 2 or np.PyArray_NDIM(offsets) != 1
            or np.PyArray_TYPE(points) != np.PyArray_TYPE(matrix) or np.PyArray_TYPE(points) != np.PyArray_TYPE(offsets)
            or np.PyArray_DIM(points, ndim - 1) != np.PyArray_DIM(matrix, 0)
            or np.PyArray_DIM(matrix, 1) != np.PyArray_DIM(offsets, 0) or np.PyArray_SIZE(matrix) == 0):
        return fallback()
    points = _rows(points, &rows, &length, &stride)
    matrix = numpy.ascontiguousarray(matrix)
    width = np.PyArray_DIM(matrix, 1)
    root = math.sqrt(c)
    margin = _margin(points) if project else -1.0

    squares = _column_squares(matrix)
    angle = 2 * root * offsets.astype(numpy.float64)
    # The reference measures lengths by their largest entry, and limits the bias.
    if not (numpy.abs(angle).max() <= 500) or not _ordinary(squares, matrix):
        return fallback()
    lengths = numpy.sqrt(squares)
    slope = numpy.divide(2 * root * numpy.cosh(angle), lengths, out=numpy.zeros(width), where=lengths > 0)
    offset, power = numpy.sinh(angle), 2 * lengths

    gaps = numpy.empty(rows)
    if rows and _gaps(points, rows, length, stride, c, gaps) and check:
        return fallback()
    shape = (*(<object> points).shape[: ndim - 1], width)
    single = np.PyArray_TYPE(points) == np.NPY_FLOAT
    in_single = (single and length >= SHORT and rows and slope.max() <= LARGEST_SLOPE and numpy.abs(offset).max() <= LARGEST_SLOPE
                 and power.max() <= LARGEST_SLOPE and gaps.min() >= SMALLEST_GAP)
    dtype = numpy.float32 if in_single else numpy.float64
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, points.dtype), shape))
    direct = (out is not None and out.dtype == dtype and out.flags.c_contiguous and out.flags.aligned and _apart(out, points)
              and _apart(out, matrix) and _apart(out, offsets))
    y = out if direct else _empty(shape, dtype)
    if rows:
        flat = numpy.reshape(y, (rows, width))
        if in_single:
            _packed_product(points, rows, length, stride, matrix, width, flat)
            _finish_single(flat, gaps, slope.astype(numpy.float32), offset.astype(numpy.float32), power.astype(numpy.float32), c, margin)
        else:
            wide_points = numpy.reshape(points, (rows, length)).astype(numpy.float64, copy=False)
            numpy.matmul(wide_points, matrix.astype(numpy.float64, copy=False), out=flat)
            _finish(flat, gaps, slope, offset, power, c, margin)
            if single:
                y = _rounded(flat, c).reshape(shape)
    if direct:
        return out
    return _store(y.astype(points.dtype, copy=False), out)


cdef np.ndarray _rounded(np.ndarray y, double curvature):
    """float64 points in float32, rounded inward where they would leave the ball."""
    cdef np.ndarray result = y.astype(numpy.float32)
    if _outside(result, curvature):
        result = reference._frame.Frame(curvature, -1, False, x=result).leave_inside(
            y * reference._frame.Frame(curvature, -1, False, x=result).unit)
    return result


cdef np.ndarray _empty(shape, dtype):
    cdef np.npy_intp dims[32]
    cdef int i, ndim = len(shape)
    for i in range(ndim):
        dims[i] = shape[i]
    return rn_empty(ndim, dims, np.NPY_FLOAT if dtype is numpy.float32 else np.NPY_DOUBLE)


cdef np.ndarray _column_squares(np.ndarray matrix):
    cdef size_t depth = np.PyArray_DIM(matrix, 0), width = np.PyArray_DIM(matrix, 1)
    cdef np.ndarray squares = numpy.empty(width)
    cdef double *to = <double *> np.PyArray_DATA(squares)
    cdef void *source = np.PyArray_DATA(matrix)
    cdef bint single = np.PyArray_TYPE(matrix) == np.NPY_FLOAT
    with nogil:
        if single:
            rn_poincare().column_squares_f32(<const float *> source, depth, width, to)
        else:
            rn_poincare().column_squares_f64(<const double *> source, depth, width, to)
    return squares


cdef bint _ordinary(np.ndarray squares, np.ndarray matrix):
    """Whether no sum of squares overflowed or underflowed."""
    if not squares.max() < 1e280:
        return False
    small = squares < 1e-280
    return not small.any() or not (<object> matrix)[:, small].any()


cdef _packed_product(np.ndarray points, size_t rows, size_t length, size_t stride, np.ndarray matrix, size_t width, np.ndarray y):
    cdef const rn_gemm_table *table = rn_gemm()
    cdef np.npy_intp size = length * table.padded_width(width) + 16
    cdef np.ndarray room = rn_empty(1, &size, np.NPY_FLOAT)
    # Panels begin at cache lines.
    cdef float *packed = <float *> ((<size_t> np.PyArray_DATA(room) + 63) // 64 * 64)
    cdef const float *weight = <const float *> np.PyArray_DATA(matrix)
    cdef rn_linear_call call
    cdef int failed
    call.x = <const float *> np.PyArray_DATA(points)
    call.x_stride = stride
    call.rows = rows
    call.packed = packed
    call.bias = NULL
    call.depth = length
    call.width = width
    call.out = <float *> np.PyArray_DATA(y)
    call.out_stride = width
    call.activation = 0
    call.residual = NULL
    call.gain = NULL
    call.shift = NULL
    call.residual_stride = 0
    call.eps = 0
    with nogil:
        table.pack(weight, width, 1, length, width, packed)
        failed = table.linear(&call)
    if failed:
        raise MemoryError("fully_connected: no memory for a block of rows")


cdef _finish_single(np.ndarray y, np.ndarray gaps, np.ndarray slope, np.ndarray offset, np.ndarray power, double c, double margin):
    cdef size_t rows = np.PyArray_DIM(y, 0), width = np.PyArray_DIM(y, 1)
    cdef float *to = <float *> np.PyArray_DATA(y)
    cdef const double *of_rows = <const double *> np.PyArray_DATA(gaps)
    cdef const float *first = <const float *> np.PyArray_DATA(slope)
    cdef const float *second = <const float *> np.PyArray_DATA(offset)
    cdef const float *third = <const float *> np.PyArray_DATA(power)
    with nogil:
        rn_poincare().linear_f32(to, rows, width, of_rows, first, second, third, c, margin)


cdef _finish(np.ndarray y, np.ndarray gaps, np.ndarray slope, np.ndarray offset, np.ndarray power, double c, double margin):
    cdef size_t rows = np.PyArray_DIM(y, 0), width = np.PyArray_DIM(y, 1)
    cdef double *to = <double *> np.PyArray_DATA(y)
    cdef const double *of_rows = <const double *> np.PyArray_DATA(gaps)
    cdef const double *first = <const double *> np.PyArray_DATA(slope)
    cdef const double *second = <const double *> np.PyArray_DATA(offset)
    cdef const double *third = <const double *> np.PyArray_DATA(power)
    with nogil:
        rn_poincare().linear_f64(to, rows, width, of_rows, first, second, third, c, margin)
