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

    ctypedef struct rn_poincare_pixels:
        size_t images, channels, area
        double curvature

    ctypedef struct rn_poincare_midpoint:
        double *middle
        double gap, variance

    ctypedef struct rn_poincare_normalization:
        const double *middle
        const double *centre
        double middle_gap, centre_gap, scale, margin

    ctypedef struct rn_poincare_image_table:
        int (*midpoint_f32)(const rn_poincare_pixels *, const float *, const float *, int, rn_poincare_midpoint *) nogil
        int (*midpoint_f64)(const rn_poincare_pixels *, const double *, const double *, int, rn_poincare_midpoint *) nogil
        int (*normalize_f32)(const rn_poincare_pixels *, const float *, const rn_poincare_normalization *, float *) nogil
        int (*normalize_f64)(const rn_poincare_pixels *, const double *, const rn_poincare_normalization *, double *) nogil
        int (*point_wise_f32)(const rn_poincare_pixels *, const float *, const float *, double, float *) nogil
        int (*point_wise_f64)(const rn_poincare_pixels *, const double *, const double *, double, double *) nogil
        int (*avg_pool2d_f32)(const rn_poincare_conv *, const float *, float *) nogil
        int (*avg_pool2d_f64)(const rn_poincare_conv *, const double *, double *) nogil
        int (*conv2d_f32)(const rn_poincare_conv *, const float *, const float *, const float *, const float *, const float *, float *) nogil
        int (*conv2d_wide)(const rn_poincare_conv *, const float *, const double *, const double *, const double *, const double *, float *) nogil
        int (*conv2d_f64)(const rn_poincare_conv *, const double *, const double *, const double *, const double *, const double *, double *) nogil
    const rn_poincare_image_table *rn_poincare_image() nogil

cdef extern from "poincare.h":
    ctypedef struct rn_poincare_table:
        void (*column_squares_f32)(const float *, size_t, size_t, double *) nogil
        void (*column_squares_f64)(const double *, size_t, size_t, double *) nogil
        int (*gaps_f64)(const double *, size_t, double *, size_t, size_t, double) nogil
    const rn_poincare_table *rn_poincare() nogil

# Curvatures for which no square of a length leaves the range, in float64 and in float32; the reference changes the unit
# of length beyond.
cdef double LARGEST_CURVATURE = 1e100
cdef double LARGEST_CURVATURE_SINGLE = 1e24

# float32 patches of fewer entries are computed in float64: there the rounding of single operations is what one sees.
cdef size_t SHORT = 24

# Largest cosh of a bias over a column's length for which float32 arithmetic cannot overflow.
cdef double LARGEST_SLOPE = 1e12

# A midpoint with a larger gap stays inside the ball when it is rounded to float32.
cdef double SAFE_GAP = 1e-3

# From this relative radius of exp0(bias) on, a geodesic through it may end where sums of squares cancel.
cdef double OUTER = 0.5

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
    return x if np.PyArray_IS_C_CONTIGUOUS(x) else _in_order(x)


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


cdef np.ndarray _pixels_first(np.ndarray x):
    """Rows (..., N, n) as (..., n, N): a pixel's coordinates lie apart, neighbouring pixels together."""
    return _in_order(numpy.swapaxes(x, -1, -2))


cdef np.ndarray _images_of(np.ndarray x, rn_poincare_pixels *pixels):
    """Points (N, C) or (N, C, H, W) as images of pixels; the former as one image (C, N)."""
    if np.PyArray_NDIM(x) == 2:
        pixels.images, pixels.channels, pixels.area = 1, np.PyArray_DIM(x, 1), np.PyArray_DIM(x, 0)
        return _pixels_first(x)
    pixels.images, pixels.channels = np.PyArray_DIM(x, 0), np.PyArray_DIM(x, 1)
    pixels.area = np.PyArray_DIM(x, 2) * np.PyArray_DIM(x, 3)
    return _contiguous(x)


cdef int _gather(const rn_poincare_pixels *pixels, np.ndarray x, size_t at, np.ndarray weights, bint variance, rn_poincare_midpoint *to):
    cdef const rn_poincare_image_table *table = rn_poincare_image()
    cdef char *points = <char *> np.PyArray_DATA(x)
    cdef char *of = NULL if weights is None else <char *> np.PyArray_DATA(weights)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef size_t item = np.PyArray_ITEMSIZE(x), count = pixels.images * pixels.area
    cdef int failed
    points += at * count * pixels.channels * item
    if of != NULL:
        of += at * count * item
    with nogil:
        if single:
            failed = table.midpoint_f32(pixels, <const float *> points, <const float *> of, variance, to)
        else:
            failed = table.midpoint_f64(pixels, <const double *> points, <const double *> of, variance, to)
    if failed & MEMORY:
        raise MemoryError("midpoint: no memory for the points' masses")
    return failed


cdef _rounded(np.ndarray wide, double gap, double c, dtype):
    """Points in a dtype, rounded inward where they would leave the ball; ``gap`` is the smallest of theirs."""
    if dtype == numpy.float32 and gap > SAFE_GAP:
        return wide.astype(dtype)
    frame = reference._frame.Frame(c, -1, False, x=wide.astype(dtype))
    return frame.leave_inside(wide * frame.unit)


def midpoint(x, curvature, weights=None, *, check=True, out=None):
    """Gyromidpoint; see :func:`refnorm.poincare.midpoint`. ``out`` takes the result."""
    cdef np.ndarray points = _float_array(x, "x")
    cdef np.ndarray of = None if weights is None else _float_array(weights, "weights")
    cdef double c = _curvature(curvature, False), gap = 1
    cdef int ndim = np.PyArray_NDIM(points), failed = 0
    cdef rn_poincare_pixels pixels
    cdef rn_poincare_midpoint to
    cdef np.ndarray wide
    cdef size_t i, sets

    def fallback():
        return _store(reference.midpoint(x, curvature, weights, check=check), out)

    shape = (<object> points).shape
    if c == 0 or ndim < 2 or shape[ndim - 1] == 0 or shape[ndim - 2] == 0:
        return fallback()
    if of is not None:
        if (np.PyArray_TYPE(of) != np.PyArray_TYPE(points) or (<object> of).shape != shape[: ndim - 1]
                or not of.any(axis=-1).all()):
            return fallback()
        of = _contiguous(of)
    wide = numpy.empty(shape[: ndim - 2] + shape[ndim - 1 :])
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, points.dtype), (<object> wide).shape))
    pixels.images, pixels.channels, pixels.area, pixels.curvature = 1, shape[ndim - 1], shape[ndim - 2], c
    sets = np.PyArray_SIZE(wide) // pixels.channels
    turned = _pixels_first(points)
    for i in range(sets):
        to.middle = <double *> np.PyArray_DATA(wide) + i * pixels.channels
        failed |= _gather(&pixels, turned, i, of, False, &to)
        gap = min(gap, to.gap)
    if failed & OUTSIDE and check:
        return fallback()
    return _store(_rounded(wide, gap, c, points.dtype), out)


cdef _statistics(np.ndarray points, double c, np.ndarray middle, rn_poincare_pixels *pixels, rn_poincare_midpoint *to):
    """Fill in the midpoint and the variance of a batch; return the batch as images and what failed."""
    images = _images_of(points, pixels)
    pixels.curvature = c
    to.middle = <double *> np.PyArray_DATA(middle)
    return images, _gather(pixels, images, 0, None, True, to)


cdef bint _is_batch(np.ndarray points) noexcept:
    return (np.PyArray_NDIM(points) == 2 or np.PyArray_NDIM(points) == 4) and np.PyArray_SIZE(points) > 0


def midpoint_statistics(x, curvature, *, check=True):
    """Midpoint and mean squared distance to it; see :func:`refnorm.poincare.midpoint_statistics`."""
    cdef np.ndarray points = _float_array(x, "x")
    cdef double c = _curvature(curvature, False)
    cdef rn_poincare_pixels pixels
    cdef rn_poincare_midpoint to
    cdef np.ndarray middle
    if c == 0 or not _is_batch(points):
        return reference.midpoint_statistics(x, curvature, check=check)
    middle = numpy.empty(np.PyArray_DIM(points, 1))
    _, failed = _statistics(points, c, middle, &pixels, &to)
    if failed and check:
        return reference.midpoint_statistics(x, curvature, check=check)
    return _rounded(middle, to.gap, c, points.dtype), numpy.asarray(to.variance, points.dtype)


cdef np.ndarray _vector(given, name, np.ndarray points):
    """A vector of one entry a channel, or None if the reference has to look at it."""
    cdef np.ndarray array = _float_array(given, name)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(points) or np.PyArray_NDIM(array) != 1 or np.PyArray_DIM(array, 0) != np.PyArray_DIM(points, 1):
        return None
    return array.astype(numpy.float64)


cdef double _scalar(given, name, np.ndarray points, bint zero):
    """A number > 0, or >= 0 if zero is allowed; -1 if the reference has to look at it."""
    cdef np.ndarray array = _float_array(given, name)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(points) or np.PyArray_NDIM(array) != 0:
        return -1.0
    value = float(array)
    return value if 0 < value < numpy.inf or (zero and value == 0) else -1.0


def midpoint_batch_norm(x, bias, gain, curvature, mean=None, var=None, *, eps=reference._batch_norm.DEFAULT_EPS, check=True,
                        project=True, out=None):
    """Midpoint batch normalization; see :func:`refnorm.poincare.midpoint_batch_norm`. ``out`` takes the result."""
    result, _ = _normalize(x, bias, gain, curvature, mean, var, eps, check, project, out, "midpoint_batch_norm")
    return result


cdef tuple _normalize(x, bias, gain, curvature, mean, var, eps, bint check, bint project, out, name):
    """The normalized points and the statistics (mean, variance) that were used."""
    cdef np.ndarray points = _float_array(x, "x")
    cdef np.ndarray middle, centre, images, y
    cdef double c = _curvature(curvature, False), wide_gain, length, root, spare = 1
    cdef rn_poincare_pixels pixels
    cdef rn_poincare_midpoint to
    cdef rn_poincare_normalization way
    cdef bint training = mean is None
    cdef int failed

    def fallback():
        y, statistics, _ = reference._batch_norm.normalize(x, bias, gain, curvature, mean, var, eps, check, project)
        return _store(y, out), statistics

    if (c == 0 or not _is_batch(points) or (mean is None) != (var is None) or not isinstance(eps, (int, float))
            or not 0 < eps < numpy.inf):
        return fallback()
    centre, wide_gain = _vector(bias, "bias", points), _scalar(gain, "gain", points, False)
    if centre is None or wide_gain < 0:
        return fallback()
    root = numpy.sqrt(c)
    length = root * numpy.linalg.norm(centre)
    if not length < numpy.arctanh(OUTER):
        return fallback()
    if length > 0:
        centre *= numpy.tanh(length) / length
    if training:
        middle = numpy.empty(np.PyArray_DIM(points, 1))
        images, failed = _statistics(points, c, middle, &pixels, &to)
        if failed & OUTSIDE and check:
            return fallback()
    else:
        middle, to.variance = _vector(mean, "mean", points), _scalar(var, "var", points, True)
        if middle is None or to.variance < 0:
            return fallback()
        if rn_poincare().gaps_f64(<const double *> np.PyArray_DATA(middle), np.PyArray_DIM(middle, 0), &to.gap, 1, np.PyArray_DIM(middle, 0), c) and check:
            return fallback()
        images = _images_of(points, &pixels)
        pixels.curvature = c
    way.middle, way.centre = <const double *> np.PyArray_DATA(middle), <const double *> np.PyArray_DATA(centre)
    way.middle_gap = to.gap
    way.centre_gap = 1 - c * numpy.dot(centre, centre)
    way.scale = numpy.sqrt(wide_gain / (to.variance + eps))
    way.margin = reference._ball.PROJECTION_MARGIN[points.dtype] if project else -1.0
    if out is not None:
        _check_out(out, points)
    direct = np.PyArray_NDIM(points) == 4 and _direct(out, (points,))
    y = out if direct else _empty((<object> images).shape, np.PyArray_TYPE(points))
    failed = _run_normalize(&pixels, images, &way, y)
    if failed & MEMORY:
        raise MemoryError(f"{name}: no memory for a vector")
    if failed & OUTSIDE and check:
        return fallback()
    statistics = (_rounded(middle, to.gap, c, points.dtype), numpy.asarray(to.variance, points.dtype)) if training else (mean, var)
    if direct:
        return out, statistics
    return _store(y if np.PyArray_NDIM(points) == 4 else y.T, out), statistics


cdef int _run_normalize(const rn_poincare_pixels *pixels, np.ndarray images, const rn_poincare_normalization *way, np.ndarray y):
    cdef void *source = np.PyArray_DATA(images)
    cdef void *to = np.PyArray_DATA(y)
    cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
    cdef int failed
    with nogil:
        if single:
            failed = rn_poincare_image().normalize_f32(pixels, <const float *> source, way, <float *> to)
        else:
            failed = rn_poincare_image().normalize_f64(pixels, <const double *> source, way, <double *> to)
    return failed


def avg_pool2d(x, curvature, *, size, stride=None, check=True, project=True, out=None):
    """Average pooling of logarithms; see :func:`refnorm.poincare.avg_pool2d`. ``out`` takes the result."""
    cdef np.ndarray images = _float_array(x, "x"), y
    cdef rn_poincare_conv call
    cdef double c = _curvature(curvature, False)
    cdef tuple window = _pair(size, 1), step = window if stride is None else _pair(stride, 1)
    cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
    cdef int failed

    def fallback():
        return _store(reference.avg_pool2d(x, curvature, size=size, stride=stride, check=check, project=project), out)

    if (c == 0 or window is None or step is None or np.PyArray_NDIM(images) != 4 or 0 in (<object> images).shape[1:]
            or np.PyArray_DIM(images, 2) < window[0] or np.PyArray_DIM(images, 3) < window[1]):
        return fallback()
    images = _contiguous(images)
    call.images, call.channels, call.height, call.width = (<object> images).shape
    call.rows, call.columns = window
    call.down, call.across = step
    call.out_height = (call.height - call.rows) // call.down + 1
    call.out_width = (call.width - call.columns) // call.across + 1
    call.curvature = c
    call.margin = reference._ball.PROJECTION_MARGIN[images.dtype] if project else -1.0
    cdef tuple shape = (call.images, call.channels, call.out_height, call.out_width)
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, images.dtype), shape))
    y = out if _direct(out, (images,)) else _empty(shape, np.PyArray_TYPE(images))
    cdef void *source = np.PyArray_DATA(images)
    cdef void *to = np.PyArray_DATA(y)
    with nogil:
        if single:
            failed = rn_poincare_image().avg_pool2d_f32(&call, <const float *> source, <float *> to)
        else:
            failed = rn_poincare_image().avg_pool2d_f64(&call, <const double *> source, <double *> to)
    if failed & MEMORY:
        raise MemoryError("avg_pool2d: no memory for the logarithms of an image")
    if failed & OUTSIDE and check:
        return fallback()
    return out if y is out else _store(y, out)


cdef np.ndarray _point_wise(np.ndarray x, np.ndarray other, double c, bint check):
    """relu of images, or their residual sum with others; None if the reference has to look at them."""
    cdef rn_poincare_pixels pixels
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int failed
    if (c == 0 or np.PyArray_NDIM(x) != 4 or np.PyArray_DIM(x, 1) == 0
            or (other is not None and (np.PyArray_TYPE(x) != np.PyArray_TYPE(other) or not _same_shape(x, other)))):
        return None
    x = _images_of(x, &pixels)
    pixels.curvature = c
    cdef double margin = reference._ball.PROJECTION_MARGIN[x.dtype]
    cdef np.ndarray y = _fresh(x)
    other = None if other is None else _contiguous(other)
    cdef void *source = np.PyArray_DATA(x)
    cdef void *second = NULL if other is None else np.PyArray_DATA(other)
    cdef void *to = np.PyArray_DATA(y)
    with nogil:
        if single:
            failed = rn_poincare_image().point_wise_f32(&pixels, <const float *> source, <const float *> second, margin, <float *> to)
        else:
            failed = rn_poincare_image().point_wise_f64(&pixels, <const double *> source, <const double *> second, margin, <double *> to)
    return None if failed and check else y


def relu_images(x, curvature):
    """``relu(x, curvature, axis=1)`` of images (N, C, H, W)."""
    y = _point_wise(_float_array(x, "x"), None, _curvature(curvature, False), True)
    return reference.relu(x, curvature, axis=1) if y is None else y


def add_images(f, skip, curvature, *, order="fr"):
    """``residual_add(f, skip, curvature, order=order, axis=1)`` of images (N, C, H, W)."""
    pair = (f, skip) if order == "fr" else (skip, f)
    y = None
    if order in ("fr", "rf"):
        y = _point_wise(_float_array(pair[0], "f"), _float_array(pair[1], "skip"), _curvature(curvature, False), True)
    return reference.residual_add(f, skip, curvature, order=order, axis=1) if y is None else y


def normalize_images(x, bias, gain, curvature, mean, var, eps, check, project):
    """Normalized points, and the mean and variance that were used; arguments are those of ``midpoint_batch_norm``."""
    return _normalize(x, bias, gain, curvature, mean, var, eps, check, project, None, "midpoint_batch_norm")
