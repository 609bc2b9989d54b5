"""Poincaré layers on images: checks and layout; the arithmetic is in _kernels/poincare_image.c."""

import functools

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

import refnorm.poincare as reference

cdef extern from "poincare_image.h":
    int OUTSIDE "RN_POINCARE_OUTSIDE"
    int MEMORY "RN_POINCARE_MEMORY"
    ctypedef struct rn_poincare_conv:
        size_t images, channels, height, width, outputs
        size_t rows, columns, down, across, top, left, out_height, out_width
        double curvature, share, margin

    ctypedef struct rn_poincare_image_table:
        int (*conv2d_f32)(const rn_poincare_conv *, const float *, const float *, const float *, const float *, const float *, float *) nogil
        int (*conv2d_wide)(const rn_poincare_conv *, const float *, const double *, const double *, const double *, const double *, float *) nogil
        int (*conv2d_f64)(const rn_poincare_conv *, const double *, const double *, const double *, const double *, const double *, double *) nogil
    const rn_poincare_image_table *rn_poincare_image() nogil

cdef extern from "poincare.h":
    ctypedef struct rn_poincare_table:
        void (*column_squares_f32)(const float *, size_t, size_t, double *) nogil
        void (*column_squares_f64)(const double *, size_t, size_t, double *) nogil
    const rn_poincare_table *rn_poincare() nogil

# Curvatures for which no square of a length leaves the range, in float64 and in float32; the reference changes the unit
# of length beyond.
cdef double LARGEST_CURVATURE = 1e100
cdef double LARGEST_CURVATURE_SINGLE = 1e24

# float32 patches of fewer entries are computed in float64: there the rounding of single operations is what one sees.
cdef size_t SHORT = 24

# Largest cosh of a bias over a column's length for which float32 arithmetic cannot overflow.
cdef double LARGEST_SLOPE = 1e12

_share = functools.lru_cache(maxsize=256)(reference._conv2d.beta_scale)


cdef double _curvature(curvature, bint single) except -1:
    """The curvature, or 0 if the reference has to look at it."""
    cdef double value, limit = LARGEST_CURVATURE_SINGLE if single else LARGEST_CURVATURE
    if type(curvature) is not float:
        if not isinstance(curvature, (float, int, numpy.floating, numpy.ndarray)) or numpy.ndim(curvature):
            return 0.0
        if isinstance(curvature, numpy.ndarray) and curvature.dtype.kind != "f":
            return 0.0
    value = float(curvature)
    return value if 1 / limit <= value <= limit else 0.0


cdef tuple _pair(value, long low):
    """An option as two integers of at least ``low``, or None if the reference has to look at it."""
    if type(value) is int:
        value = (value, value)
    if type(value) is not tuple or len(value) != 2 or type(value[0]) is not int or type(value[1]) is not int:
        return None
    return value if low <= value[0] < 1 << 31 and low <= value[1] < 1 << 31 else None


cdef np.ndarray _contiguous(np.ndarray x):
    return x if np.PyArray_IS_C_CONTIGUOUS(x) else numpy.ascontiguousarray(x)


cdef np.ndarray _empty(tuple shape, int dtype):
    cdef np.npy_intp dims[4]
    cdef int i
    for i in range(len(shape)):
        dims[i] = shape[i]
    return rn_empty(len(shape), dims, dtype)


cdef _store(result, out):
    if out is None:
        return result
    _check_out(out, numpy.asarray(result))
    out[...] = result
    return out


cdef bint _direct(out, tuple inputs):
    """Whether a kernel can write to ``out`` while it reads the inputs."""
    if out is None or not (out.flags.c_contiguous and out.flags.aligned):
        return False
    for array in inputs:
        if not _apart(out, array):
            return False
    return True


cdef tuple _planes(np.ndarray matrix, np.ndarray offsets, double c):
    """Slopes, offsets and powers of a layer's hyperplanes, or None where the reference has to look at them."""
    cdef size_t depth = np.PyArray_DIM(matrix, 0), width = np.PyArray_DIM(matrix, 1)
    cdef np.ndarray squares = numpy.empty(width)
    cdef double *to = <double *> np.PyArray_DATA(squares)
    cdef void *source = np.PyArray_DATA(matrix)
    with nogil:
        if np.PyArray_TYPE(matrix) == np.NPY_FLOAT:
            rn_poincare().column_squares_f32(<const float *> source, depth, width, to)
        else:
            rn_poincare().column_squares_f64(<const double *> source, depth, width, to)
    angle = (2 * numpy.sqrt(c)) * offsets.astype(numpy.float64)
    small = squares < 1e-280
    # The reference measures lengths in units of the largest entry, and limits the bias.
    if not squares.max() < 1e280 or (small.any() and matrix[:, small].any()) or not numpy.abs(angle).max() <= 500:
        return None
    lengths = numpy.sqrt(squares)
    slope = numpy.divide(numpy.cosh(angle), lengths, out=numpy.zeros(width), where=lengths > 0)
    return slope, numpy.sinh(angle), 2 * lengths


def conv2d(x, weight, bias, curvature, *, kernel, stride=1, padding=0, check=True, project=True, out=None):
    """Poincaré convolution; see :func:`refnorm.poincare.conv2d`. ``out`` takes the result.

    Notes
    -----
    Patches of 24 entries and more are computed in float32 where the arrays are float32, with sums over pixels'
    coordinates in float64: relative to the reference, errors of a few units in the last place times the largest logit.
    """
    cdef np.ndarray images = _float_array(x, "x")
    cdef np.ndarray matrix = _float_array(weight, "weight")
    cdef np.ndarray offsets = _float_array(bias, "bias")
    cdef rn_poincare_conv call
    cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
    cdef double c = _curvature(curvature, single)
    cdef tuple size = _pair(kernel, 1), step = _pair(stride, 1), pad = _pair(padding, 0)

    def fallback():
        return _store(reference.conv2d(x, weight, bias, curvature, kernel=kernel, stride=stride, padding=padding,
                                       check=check, project=project), out)

    if (c == 0 or size is None or step is None or pad is None or np.PyArray_NDIM(images) != 4 or 0 in (<object> images).shape[1:]
            or np.PyArray_NDIM(matrix) != 2 or np.PyArray_NDIM(offsets) != 1 or np.PyArray_SIZE(matrix) == 0
            or np.PyArray_TYPE(images) != np.PyArray_TYPE(matrix) or np.PyArray_TYPE(images) != np.PyArray_TYPE(offsets)
            or np.PyArray_DIM(images, 1) * size[0] * size[1] != np.PyArray_DIM(matrix, 0)
            or np.PyArray_DIM(matrix, 1) != np.PyArray_DIM(offsets, 0)
            or np.PyArray_DIM(images, 2) + 2 * pad[0] < size[0] or np.PyArray_DIM(images, 3) + 2 * pad[1] < size[1]):
        return fallback()
    images, matrix = _contiguous(images), _contiguous(matrix)
    call.images, call.channels, call.height, call.width = (<object> images).shape
    call.outputs = np.PyArray_DIM(matrix, 1)
    call.rows, call.columns = size
    call.down, call.across = step
    call.top, call.left = pad
    call.out_height = (call.height + 2 * call.top - call.rows) // call.down + 1
    call.out_width = (call.width + 2 * call.left - call.columns) // call.across + 1
    call.curvature = c
    call.share = _share(np.PyArray_DIM(matrix, 0), call.channels)
    call.margin = reference._ball.PROJECTION_MARGIN[images.dtype] if project else -1.0

    cdef tuple planes = _planes(matrix, offsets, c)
    cdef tuple shape = (call.images, call.outputs, call.out_height, call.out_width)
    if planes is None:
        return fallback()
    cdef bint wide = single and (np.PyArray_DIM(matrix, 0) < <np.npy_intp> SHORT or not all([numpy.abs(each).max() <= LARGEST_SLOPE for each in planes]))
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, images.dtype), shape))
    cdef np.ndarray y = out if _direct(out, (images, matrix, offsets)) else _empty(shape, np.PyArray_TYPE(images))
    cdef int failed = 0
    if call.images:
        failed = _convolve(&call, images, matrix, planes, y, wide)
    if failed & MEMORY:
        raise MemoryError("conv2d: no memory for a tile of rows")
    if failed & OUTSIDE and check:
        return fallback()
    return out if y is out else _store(y, out)


cdef int _convolve(const rn_poincare_conv *call, np.ndarray images, np.ndarray matrix, tuple planes, np.ndarray y, bint wide):
    cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
    cdef object dtype = numpy.float32 if single and not wide else numpy.float64
    cdef np.ndarray slope, offset, power
    slope, offset, power = (each.astype(dtype, copy=False) for each in planes)
    matrix = (<object> matrix).astype(dtype, copy=False)
    cdef void *source = np.PyArray_DATA(images)
    cdef void *of = np.PyArray_DATA(matrix)
    cdef void *a = np.PyArray_DATA(slope)
    cdef void *b = np.PyArray_DATA(offset)
    cdef void *e = np.PyArray_DATA(power)
    cdef void *to = np.PyArray_DATA(y)
    cdef const rn_poincare_image_table *table = rn_poincare_image()
    cdef int failed
    with nogil:
        if not single:
            failed = table.conv2d_f64(call, <const double *> source, <const double *> of, <const double *> a, <const double *> b, <const double *> e, <double *> to)
        elif wide:
            failed = table.conv2d_wide(call, <const float *> source, <const double *> of, <const double *> a, <const double *> b, <const double *> e, <float *> to)
        else:
            failed = table.conv2d_f32(call, <const float *> source, <const float *> of, <const float *> a, <const float *> b, <const float *> e, <float *> to)
    return failed
