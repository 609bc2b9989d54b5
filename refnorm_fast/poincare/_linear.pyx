"""The Poincaré fully connected layer and its logits: checks, layout and products; the arithmetic around the products is in
_kernels/poincare.c (forward) and _kernels/ball.c (backward), float32 products forward in _kernels/gemm.c."""

import math

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

include "points.pxi"

from refnorm.poincare._numerics import cosh_excess

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

cdef extern from "ball.h":
    int RN_BALL_BLOCK
    ctypedef struct rn_planes:
        const double *slope
        const double *length
        const double *inverse_length
        const double *cosh
        const double *sinh
        const double *bias
        const double *excess
        size_t padded

    ctypedef struct rn_ball_table:
        int (*linear_back_f32)(int, const float *, const float *, const double *, const rn_planes *, float *, double *, double *, double *, double *, size_t, size_t, double, double) nogil
        int (*linear_back_f64)(int, const double *, const double *, const double *, const rn_planes *, double *, double *, double *, double *, double *, size_t, size_t, double, double) nogil
        void (*gaps_back_f32)(const float *, const double *, float *, double *, size_t, size_t, double) nogil
        void (*gaps_back_f64)(const double *, const double *, double *, double *, size_t, size_t, double) nogil
        void (*turn_columns_f32)(float *, const float *, const double *, const double *, double *, size_t, size_t) nogil
        void (*turn_columns_f64)(double *, const double *, const double *, const double *, double *, size_t, size_t) nogil
    const rn_ball_table *rn_ball() nogil

cdef class _Layer:
    """The arguments of one call, and what a column or a row contributes besides their product."""

    cdef np.ndarray points, matrix, gaps, squares, lengths, cosh, sinh, slope, angle
    cdef size_t rows, length, stride, width
    cdef double c, root
    cdef bint in_single
    cdef object dtype, work, shape, given_shape, curvature_dtype


cdef _Layer _layer(x, weight, bias, curvature, bint check):
    """The call's arguments, or None if the reference has to look at them."""
    cdef _Layer a = _Layer.__new__(_Layer)
    cdef np.ndarray points = _float_array(x, "x")
    cdef np.ndarray matrix = _float_array(weight, "weight")
    cdef np.ndarray offsets = _float_array(bias, "bias")
    cdef int ndim = np.PyArray_NDIM(points)
    cdef bint single = np.PyArray_TYPE(points) == np.NPY_FLOAT
    a.c = _curvature(curvature)
    if (a.c == 0 or ndim == 0 or np.PyArray_NDIM(matrix) != 2 or np.PyArray_NDIM(offsets) != 1
            or np.PyArray_TYPE(points) != np.PyArray_TYPE(matrix) or np.PyArray_TYPE(points) != np.PyArray_TYPE(offsets)
            or np.PyArray_DIM(points, ndim - 1) != np.PyArray_DIM(matrix, 0)
            or np.PyArray_DIM(matrix, 1) != np.PyArray_DIM(offsets, 0) or np.PyArray_SIZE(matrix) == 0):
        return None
    a.given_shape = (<object> points).shape
    a.points = _rows(points, &a.rows, &a.length, &a.stride)
    a.matrix = _in_order(matrix)
    a.width = np.PyArray_DIM(matrix, 1)
    a.root = math.sqrt(a.c)
    a.dtype = points.dtype
    a.curvature_dtype = curvature.dtype if isinstance(curvature, (numpy.ndarray, numpy.generic)) else a.dtype
    a.shape = (*a.given_shape[: ndim - 1], a.width)
    a.squares = _column_squares(a.matrix)
    a.angle = 2 * a.root * offsets.astype(numpy.float64)
    # The reference measures lengths by their largest entry, and limits the bias.
    if not (numpy.abs(a.angle).max() <= 500) or not _ordinary(a.squares, a.matrix):
        return None
    a.lengths = numpy.sqrt(a.squares)
    a.cosh, a.sinh = numpy.cosh(a.angle), numpy.sinh(a.angle)
    a.slope = numpy.divide(2 * a.root * a.cosh, a.lengths, out=numpy.zeros(a.width), where=a.lengths > 0)
    a.gaps = numpy.empty(a.rows)
    if a.rows and _gaps(a.points, a.rows, a.length, a.stride, a.c, a.gaps) and check:
        return None
    a.in_single = (single and a.length >= SHORT and a.rows and a.slope.max() <= LARGEST_SLOPE
                   and numpy.abs(a.sinh).max() <= LARGEST_SLOPE and 2 * a.lengths.max() <= LARGEST_SLOPE
                   and a.gaps.min() >= SMALLEST_GAP)
    a.work = numpy.float32 if a.in_single else numpy.float64
    return a


cdef np.ndarray _inner_products(_Layer a, np.ndarray y):
    """Rows of <x, z_k>, in `y`, a contiguous array of the call's working dtype."""
    cdef np.ndarray flat = numpy.reshape(y, (a.rows, a.width))
    if a.in_single:
        _packed_product(a.points, a.rows, a.length, a.stride, a.matrix, a.width, flat)
    elif a.rows:
        wide = numpy.reshape(a.points, (a.rows, a.length)).astype(numpy.float64, copy=False)
        numpy.matmul(wide, a.matrix.astype(numpy.float64, copy=False), out=flat)
    return flat


cdef _finish(_Layer a, np.ndarray flat, bint layer, double margin):
    """In place, inner products to logits or to points."""
    cdef double unit = 2 if layer else 2 / a.root
    cdef np.ndarray slope = a.slope.astype(a.work, copy=False), offset = a.sinh.astype(a.work, copy=False)
    cdef np.ndarray power = (unit * a.lengths).astype(a.work, copy=False)
    cdef void *to = np.PyArray_DATA(flat)
    cdef const double *of_rows = <const double *> np.PyArray_DATA(a.gaps)
    cdef void *first = np.PyArray_DATA(slope)
    cdef void *second = np.PyArray_DATA(offset)
    cdef void *third = np.PyArray_DATA(power)
    cdef const rn_poincare_table *table = rn_poincare()
    with nogil:
        if layer and a.in_single:
            table.linear_f32(<float *> to, a.rows, a.width, of_rows, <const float *> first, <const float *> second, <const float *> third, a.c, margin)
        elif layer:
            table.linear_f64(<double *> to, a.rows, a.width, of_rows, <const double *> first, <const double *> second, <const double *> third, a.c, margin)
        elif a.in_single:
            table.logits_f32(<float *> to, a.rows, a.width, of_rows, <const float *> first, <const float *> second, <const float *> third)
        else:
            table.logits_f64(<double *> to, a.rows, a.width, of_rows, <const double *> first, <const double *> second, <const double *> third)


cdef np.ndarray _leave(_Layer a, np.ndarray flat, bint layer):
    """Results in the dtype of the arguments."""
    if flat.dtype == a.dtype:
        return numpy.reshape(flat, a.shape)
    return numpy.reshape(_rounded(flat, a.c) if layer else flat.astype(a.dtype), a.shape)


cdef _forward(x, weight, bias, curvature, bint check, bint layer, double margin, out, fallback):
    cdef _Layer a = _layer(x, weight, bias, curvature, check)
    cdef np.ndarray y, flat
    if a is None:
        return _store(fallback(), out)
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, a.dtype), a.shape))
    direct = (out is not None and out.dtype == a.work and out.flags.c_contiguous and out.flags.aligned
              and _apart(out, a.points) and _apart(out, a.matrix))
    y = out if direct else _empty(a.shape, a.work)
    if a.rows:
        flat = _inner_products(a, y)
        _finish(a, flat, layer, margin)
        y = out if direct else _leave(a, flat, layer)
    return out if direct else _store(y.astype(a.dtype, copy=False), out)


cdef class _Pullback:
    """Cotangent of a result -> cotangents of the arguments, from kept points, weight and inner products."""

    cdef _Layer a
    cdef np.ndarray inner
    cdef bint layer
    cdef double margin
    cdef object again

    def __call__(self, cotangent):
        cdef _Layer a = self.a
        given = numpy.asarray(cotangent)
        _checks.shape(given, "cotangent", a.shape)
        if a.rows == 0 or given.dtype != a.dtype:
            return self.again(numpy.reshape(a.points, a.given_shape), a.matrix)[1](given)
        cdef np.ndarray g = numpy.array(given, dtype=a.work, order="C", copy=None)
        if not np.PyArray_ISBEHAVED_RO(g):
            g = g.copy()
        cdef np.ndarray points = numpy.reshape(a.points, (a.rows, a.length)).astype(a.work, copy=False)
        cdef np.ndarray matrix = a.matrix.astype(a.work, copy=False)
        cdef np.ndarray m = _empty((a.rows, a.width), a.work), dgaps = numpy.empty(a.rows), terms = numpy.empty(a.rows)
        dlengths, dbias = self.pull_columns(g, m, dgaps, terms)
        cdef np.ndarray dx = _empty((a.rows, a.length), a.work), dweight = _empty((a.length, a.width), a.work)
        numpy.matmul(m, matrix.T, out=dx)
        numpy.matmul(points.T, m, out=dweight)
        self.pull_gaps_and_lengths(points, matrix, dx, dweight, dgaps, terms, dlengths)
        return (numpy.reshape(dx.astype(a.dtype, copy=False), a.given_shape), dweight.astype(a.dtype, copy=False),
                dbias.astype(a.dtype), numpy.asarray(terms.sum(), dtype=a.curvature_dtype))

    cdef tuple pull_columns(self, np.ndarray g, np.ndarray m, np.ndarray dgaps, np.ndarray terms):
        """The cotangents of the columns' lengths and biases; those of inner products and gaps go to `m` and `dgaps`."""
        cdef _Layer a = self.a
        cdef size_t padded = (a.width + 7) // 8 * 8, blocks = (a.rows + RN_BALL_BLOCK - 1) // RN_BALL_BLOCK
        cdef np.ndarray columns = numpy.zeros((7, padded)), sums = numpy.empty((2, blocks, padded))
        inverse = numpy.divide(1.0, a.lengths, out=numpy.zeros(a.width), where=a.lengths > 0)
        columns[:, : a.width] = (a.slope, a.lengths, inverse, a.cosh, a.sinh, a.angle / (2 * a.root), cosh_excess(a.angle) / a.c)
        cdef const double *of_columns = <const double *> np.PyArray_DATA(columns)
        cdef double *of_lengths = <double *> np.PyArray_DATA(sums)
        cdef rn_planes planes
        planes.slope = of_columns
        planes.length = of_columns + padded
        planes.inverse_length = of_columns + 2 * padded
        planes.cosh = of_columns + 3 * padded
        planes.sinh = of_columns + 4 * padded
        planes.bias = of_columns + 5 * padded
        planes.excess = of_columns + 6 * padded
        planes.padded = padded
        cdef void *inner = np.PyArray_DATA(self.inner)
        cdef void *up = np.PyArray_DATA(g)
        cdef void *to = np.PyArray_DATA(m)
        cdef const double *gaps = <const double *> np.PyArray_DATA(a.gaps)
        cdef double *of_gaps = <double *> np.PyArray_DATA(dgaps)
        cdef double *of_rows = <double *> np.PyArray_DATA(terms)
        cdef int failed
        with nogil:
            if a.in_single:
                failed = rn_ball().linear_back_f32(self.layer, <const float *> inner, <const float *> up, gaps, &planes, <float *> to, of_gaps, of_rows, of_lengths, of_lengths + blocks * padded, a.rows, a.width, a.c, self.margin)
            else:
                failed = rn_ball().linear_back_f64(self.layer, <const double *> inner, <const double *> up, gaps, &planes, <double *> to, of_gaps, of_rows, of_lengths, of_lengths + blocks * padded, a.rows, a.width, a.c, self.margin)
        if failed:
            raise MemoryError
        totals = sums.sum(axis=1)
        return _in_order(totals[0, : a.width]), totals[1, : a.width]

    cdef pull_gaps_and_lengths(self, np.ndarray points, np.ndarray matrix, np.ndarray dx, np.ndarray dweight, np.ndarray dgaps,
                               np.ndarray terms, np.ndarray dlengths):
        cdef _Layer a = self.a
        # A column of zeros has no direction, and its cotangent is zero.
        cdef np.ndarray lengths = numpy.where(a.lengths > 0, a.lengths, 1.0), room = numpy.empty(a.width)
        cdef void *x = np.PyArray_DATA(points)
        cdef void *z = np.PyArray_DATA(matrix)
        cdef void *to = np.PyArray_DATA(dx)
        cdef void *turned = np.PyArray_DATA(dweight)
        cdef const double *of_gaps = <const double *> np.PyArray_DATA(dgaps)
        cdef double *of_rows = <double *> np.PyArray_DATA(terms)
        cdef const double *sizes = <const double *> np.PyArray_DATA(lengths)
        cdef const double *growth = <const double *> np.PyArray_DATA(dlengths)
        cdef double *along = <double *> np.PyArray_DATA(room)
        cdef const rn_ball_table *table = rn_ball()
        with nogil:
            if a.in_single:
                table.gaps_back_f32(<const float *> x, of_gaps, <float *> to, of_rows, a.rows, a.length, a.c)
                table.turn_columns_f32(<float *> turned, <const float *> z, sizes, growth, along, a.length, a.width)
            else:
                table.gaps_back_f64(<const double *> x, of_gaps, <double *> to, of_rows, a.rows, a.length, a.c)
                table.turn_columns_f64(<double *> turned, <const double *> z, sizes, growth, along, a.length, a.width)


cdef _with_pullback(x, weight, bias, curvature, bint check, bint layer, double margin, again):
    cdef _Layer a = _layer(x, weight, bias, curvature, check)
    cdef _Pullback pullback = _Pullback.__new__(_Pullback)
    cdef np.ndarray y
    if a is None:
        return again(x, weight, bias, check)
    offsets = numpy.array(bias)
    a.points = numpy.array(numpy.reshape(a.points, (a.rows, a.length)), order="C")
    a.stride = a.length
    a.matrix = numpy.array(a.matrix)
    pullback.a = a
    pullback.layer = layer
    pullback.margin = margin
    pullback.again = lambda points, matrix: again(points, matrix, offsets, False)
    pullback.inner = _inner_products(a, _empty((a.rows, a.width), a.work))
    y = _empty((a.rows, a.width), a.work)
    y[...] = pullback.inner
    if a.rows:
        _finish(a, y, layer, margin)
    return _leave(a, y, layer), pullback


def mlr(x, weight, bias, curvature, *, check=True, out=None):
    """Logits of a hyperbolic classifier; see :func:`refnorm.poincare.mlr`. ``out`` takes the result.

    Notes
    -----
    float32 is computed as in :func:`fully_connected`.
    """
    return _forward(x, weight, bias, curvature, check, False, -1.0, out,
                    lambda: reference.mlr(x, weight, bias, curvature, check=check))


def mlr_vjp(x, weight, bias, curvature, *, check=True):
    """Return the logits and their pullback ``dv -> (dx, dweight, dbias, dcurvature)``; see :func:`refnorm.poincare.mlr_vjp`."""
    return _with_pullback(x, weight, bias, curvature, check, False, -1.0, lambda points, matrix, offsets, checked:
                          reference.mlr_vjp(points, matrix, offsets, curvature, check=checked))


def fully_connected(x, weight, bias, curvature, *, check=True, project=True, out=None):
    """Poincaré fully connected layer; see :func:`refnorm.poincare.fully_connected`. ``out`` takes the result.

    Notes
    -----
    float32 inner products are accumulated in float32 for vectors of 32 entries and more, as in a matrix product, and
    the hyperbolic functions run in float32: relative to the reference, errors of a few units in the last place times
    the largest logit. Everything else is computed as in the reference.
    """
    return _forward(x, weight, bias, curvature, check, True, _margin(_float_array(x, "x")) if project else -1.0, out,
                    lambda: reference.fully_connected(x, weight, bias, curvature, check=check, project=project))


def fully_connected_vjp(x, weight, bias, curvature, *, check=True, project=True):
    """Return the points and their pullback ``dy -> (dx, dweight, dbias, dcurvature)``;
    see :func:`refnorm.poincare.fully_connected_vjp`.

    Notes
    -----
    Two products more, in the precision of the first, and between them every scalar in float64.
    """
    return _with_pullback(x, weight, bias, curvature, check, True, _margin(_float_array(x, "x")) if project else -1.0,
                          lambda points, matrix, offsets, checked: reference.fully_connected_vjp(
                              points, matrix, offsets, curvature, check=checked, project=project))


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
