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
        a = _in_order(numpy.moveaxis(a, axis, -1))
        b = None if b is None else _in_order(numpy.moveaxis(b, axis, -1))
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


# A product of float32 vectors shorter than this is accumulated in float64.
cdef size_t SHORT = 32


cdef np.ndarray _rounded(np.ndarray y, double curvature):
    """float64 points in float32, rounded inward where they would leave the ball."""
    cdef np.ndarray result = y.astype(numpy.float32)
    if _outside(result, curvature):
        result = reference._frame.Frame(curvature, -1, False, x=result).leave_inside(
            y * reference._frame.Frame(curvature, -1, False, x=result).unit)
    return result
