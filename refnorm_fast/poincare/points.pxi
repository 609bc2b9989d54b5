# Points of the ball as rows, and the maps on them: shared by the room's modules, after rows.pxi.

import refnorm.poincare as reference

cdef extern from "poincare.h":
    ctypedef struct rn_poincare_table:
        int (*unary_f32)(int, const float *, size_t, float *, float *, size_t, size_t, double, double) nogil
        int (*unary_f64)(int, const double *, size_t, double *, double *, size_t, size_t, double, double) nogil
        int (*binary_f32)(int, const float *, size_t, const float *, size_t, float *, float *, float *, size_t, size_t, double, double) nogil
        int (*binary_f64)(int, const double *, size_t, const double *, size_t, double *, double *, double *, size_t, size_t, double, double) nogil
        int (*dist_f32)(int, const float *, size_t, const float *, size_t, float *, float *, float *, size_t, size_t, double) nogil
        int (*dist_f64)(int, const double *, size_t, const double *, size_t, double *, double *, double *, size_t, size_t, double) nogil
        int (*gaps_f32)(const float *, size_t, double *, size_t, size_t, double) nogil
        int (*gaps_f64)(const double *, size_t, double *, size_t, size_t, double) nogil
        void (*column_squares_f32)(const float *, size_t, size_t, double *) nogil
        void (*column_squares_f64)(const double *, size_t, size_t, double *) nogil
        void (*linear_f32)(float *, size_t, size_t, const double *, const float *, const float *, const float *, double, double) nogil
        void (*logits_f32)(float *, size_t, size_t, const double *, const float *, const float *, const float *) nogil
        void (*linear_f64)(double *, size_t, size_t, const double *, const double *, const double *, const double *, double, double) nogil
        void (*logits_f64)(double *, size_t, size_t, const double *, const double *, const double *, const double *) nogil
    const rn_poincare_table *rn_poincare() nogil

cdef enum Kind:
    EXP0 = 0
    LOG0 = 1
    PROJECT = 2
    ADD = 3
    LOGMAP = 4
    EXPMAP = 5
    DIST = 6
    DIST_SQ = 7

# Outside this range of curvatures squares of coordinates may overflow; the reference changes the unit of length then.
cdef double SMALLEST_CURVATURE = 1e-100
cdef double LARGEST_CURVATURE = 1e100

cdef double _curvature(curvature) except -1:
    """The curvature, or 0 if the reference has to look at it."""
    cdef double value
    if type(curvature) is not float and not (isinstance(curvature, (float, int, numpy.floating, numpy.ndarray))
                                             and numpy.ndim(curvature) == 0):
        return 0.0
    if isinstance(curvature, numpy.ndarray) and curvature.dtype.kind != "f":
        return 0.0
    value = float(curvature)
    return value if SMALLEST_CURVATURE <= value <= LARGEST_CURVATURE else 0.0


cdef double _margin(np.ndarray x):
    return reference._ball.PROJECTION_MARGIN[x.dtype]


cdef inline void *_data(array):
    return NULL if array is None else np.PyArray_DATA(<np.ndarray> array)


cdef int _run(Kind kind, np.ndarray x, y, np.ndarray z, kept_x, kept_y, size_t rows, size_t length, size_t x_stride,
              size_t y_stride, double curvature, double margin):
    """Rows of results to `z`, and copies of the points to `kept_x` and `kept_y` unless they are None."""
    cdef void *a = np.PyArray_DATA(x)
    cdef void *b = _data(y)
    cdef void *keep = _data(kept_x)
    cdef void *keep_too = _data(kept_y)
    cdef void *to = np.PyArray_DATA(z)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int outside
    cdef const rn_poincare_table *table = rn_poincare()
    with nogil:
        if kind >= DIST:
            if single:
                outside = table.dist_f32(kind - DIST, <const float *> a, x_stride, <const float *> b, y_stride, <float *> to, <float *> keep, <float *> keep_too, rows, length, curvature)
            else:
                outside = table.dist_f64(kind - DIST, <const double *> a, x_stride, <const double *> b, y_stride, <double *> to, <double *> keep, <double *> keep_too, rows, length, curvature)
        elif kind >= ADD:
            if single:
                outside = table.binary_f32(kind - ADD, <const float *> a, x_stride, <const float *> b, y_stride, <float *> to, <float *> keep, <float *> keep_too, rows, length, curvature, margin)
            else:
                outside = table.binary_f64(kind - ADD, <const double *> a, x_stride, <const double *> b, y_stride, <double *> to, <double *> keep, <double *> keep_too, rows, length, curvature, margin)
        elif single:
            outside = table.unary_f32(kind, <const float *> a, x_stride, <float *> to, <float *> keep, rows, length, curvature, margin)
        else:
            outside = table.unary_f64(kind, <const double *> a, x_stride, <double *> to, <double *> keep, rows, length, curvature, margin)
    return outside


cdef np.ndarray _rows(np.ndarray x, size_t *rows, size_t *length, size_t *stride):
    """`x`, or a copy, as rows that are contiguous and each in a place of its own."""
    if 0 in (<object> x).strides:
        x = numpy.array(x, order="C")
    return _rows_contiguous(x, 1, rows, length, stride)


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


cdef _check_scalars(out, np.ndarray a, shape, axis):
    _check_out(out, numpy.broadcast_to(numpy.empty(1, a.dtype), shape[:axis] + shape[axis + 1 :]))


cdef _store(result, out):
    if out is None:
        return result
    _check_out(out, numpy.asarray(result))
    out[...] = result
    return out
