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
        int by_rows

    ctypedef struct rn_poincare_midpoint:
        double *middle
        double gap, variance
        double *heaviest
        double *drift
        double mass, weights, scatter

    ctypedef struct rn_poincare_normalization:
        const double *middle
        const double *centre
        double middle_gap, centre_gap, scale, margin

    ctypedef struct rn_poincare_image_table:
        int (*midpoint_f32)(const rn_poincare_pixels *, const float *, int, rn_poincare_midpoint *) nogil
        int (*midpoint_f64)(const rn_poincare_pixels *, const double *, int, rn_poincare_midpoint *) nogil
        int (*midpoints_f32)(const rn_poincare_pixels *, size_t, const float *, const float *, double *, double *) nogil
        int (*midpoints_f64)(const rn_poincare_pixels *, size_t, const double *, const double *, double *, double *) nogil
        int (*midpoints_back_f32)(const rn_poincare_pixels *, size_t, const float *, const float *, const double *, float *, float *, double *) nogil
        int (*midpoints_back_f64)(const rn_poincare_pixels *, size_t, const double *, const double *, const double *, double *, double *, double *) nogil
        int (*normalize_f32)(const rn_poincare_pixels *, const float *, const rn_poincare_normalization *, float *) nogil
        int (*normalize_f64)(const rn_poincare_pixels *, const double *, const rn_poincare_normalization *, double *) nogil
        int (*normalize_sums_f32)(const rn_poincare_pixels *, const float *, const rn_poincare_normalization *, const float *, double *) nogil
        int (*normalize_sums_f64)(const rn_poincare_pixels *, const double *, const rn_poincare_normalization *, const double *, double *) nogil
        int (*normalize_back_f32)(const rn_poincare_pixels *, const float *, const rn_poincare_normalization *, const float *, const rn_poincare_midpoint *, const double *, double, float *, double *) nogil
        int (*normalize_back_f64)(const rn_poincare_pixels *, const double *, const rn_poincare_normalization *, const double *, const rn_poincare_midpoint *, const double *, double, double *, double *) nogil
        int (*point_wise_f32)(const rn_poincare_pixels *, const float *, const float *, double, float *) nogil
        int (*point_wise_f64)(const rn_poincare_pixels *, const double *, const double *, double, double *) nogil
        int (*avg_pool2d_f32)(const rn_poincare_conv *, const float *, float *) nogil
        int (*avg_pool2d_f64)(const rn_poincare_conv *, const double *, double *) nogil
        int (*avg_pool2d_back_f32)(const rn_poincare_conv *, const float *, const float *, float *, double *) nogil
        int (*avg_pool2d_back_f64)(const rn_poincare_conv *, const double *, const double *, double *, double *) nogil
        int (*conv2d_f32)(const rn_poincare_conv *, const float *, const float *, const float *, const float *, const float *, float *) nogil
        int (*conv2d_wide)(const rn_poincare_conv *, const float *, const double *, const double *, const double *, const double *, float *) nogil
        int (*conv2d_f64)(const rn_poincare_conv *, const double *, const double *, const double *, const double *, const double *, double *) nogil
        int (*conv2d_back_f32)(const rn_poincare_conv *, const float *, const float *, const float *, const float *, const float *, const float *, const float *, float *, double *) nogil
        int (*conv2d_back_wide)(const rn_poincare_conv *, const float *, const double *, const double *, const double *, const double *, const double *, const float *, float *, double *) nogil
        int (*conv2d_back_f64)(const rn_poincare_conv *, const double *, const double *, const double *, const double *, const double *, const double *, const double *, double *, double *) nogil
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
    """Slopes, offsets, powers and the biases' cosh of a layer's hyperplanes, or None where the reference has to look at them."""
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
    return slope, numpy.sinh(angle), 2 * lengths, numpy.cosh(angle)


def conv2d(x, weight, bias, curvature, *, kernel, stride=1, padding=0, check=True, project=True, out=None):
    """Poincaré convolution; see :func:`refnorm.poincare.conv2d`. ``out`` takes the result.

    Notes
    -----
    Patches of 24 entries and more are computed in float32 where the arrays are float32, with sums over pixels'
    coordinates in float64: relative to the reference, errors of a few units in the last place times the largest logit.
    """
    cdef _Convolution layer = _Convolution.of(x, weight, bias, curvature, kernel, stride, padding, project)
    if layer is None:
        return _store(reference.conv2d(x, weight, bias, curvature, kernel=kernel, stride=stride, padding=padding, check=check,
                                       project=project), out)
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, layer.images.dtype), layer.shape))
    direct = _direct(out, (layer.images, layer.matrix, layer.offsets))
    cdef np.ndarray y = out if direct else _empty(layer.shape, np.PyArray_TYPE(layer.images))
    if layer.forward(y) and check:
        return reference.conv2d(x, weight, bias, curvature, kernel=kernel, stride=stride, padding=padding, project=project)
    return out if direct else _store(y, out)


def conv2d_vjp(x, weight, bias, curvature, *, kernel, stride=1, padding=0, check=True, project=True):
    """Poincaré convolution and its pullback; see :func:`refnorm.poincare.conv2d_vjp`.

    Notes
    -----
    The pullback computes the products of the forward pass anew. Of the curvature's cotangent it knows
    ``(<dx, x> + <dbias, bias> - <dy, y>) / (2 curvature)``, the layer having no other length: near the origin, where
    these nearly cancel, it is accurate to the arrays' rounding of ``<dy, y>`` and not of itself.
    """
    cdef _Convolution layer = _Convolution.of(x, weight, bias, curvature, kernel, stride, padding, project)

    def fallback():
        return reference.conv2d_vjp(x, weight, bias, curvature, kernel=kernel, stride=stride, padding=padding, check=check,
                                    project=project)

    if layer is None:
        return fallback()
    # The caller may write to his arrays before he calls the pullback.
    layer.images, layer.matrix, layer.offsets = (numpy.array(a) for a in (layer.images, layer.matrix, layer.offsets))
    cdef np.ndarray y = _empty(layer.shape, np.PyArray_TYPE(layer.images))
    if layer.forward(y) and check:
        return fallback()
    given = _curvature_dtype(curvature, layer.images.dtype)
    return y, lambda dy: layer.backward(dy, given)


cdef np.ndarray _cotangent(dy, tuple shape, dtype):
    array = numpy.asarray(dy)
    _checks.shape(array, "cotangent", shape)
    return _float_array(_in_order(array, dtype), "cotangent")


cdef class _Convolution:
    """The checked arguments of a convolution: contiguous arrays, and what a kernel call needs."""

    cdef rn_poincare_conv call
    cdef np.ndarray images, matrix, offsets
    cdef tuple planes, shape
    cdef bint wide

    @staticmethod
    cdef _Convolution of(x, weight, bias, curvature, kernel, stride, padding, bint project):
        """None where the reference has to look at the arguments."""
        cdef _Convolution self = _Convolution.__new__(_Convolution)
        cdef np.ndarray images = _float_array(x, "x"), matrix = _float_array(weight, "weight"), offsets = _float_array(bias, "bias")
        cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
        cdef double c = _curvature(curvature, single)
        cdef tuple size = _pair(kernel, 1), step = _pair(stride, 1), pad = _pair(padding, 0)
        if (c == 0 or size is None or step is None or pad is None or np.PyArray_NDIM(images) != 4 or 0 in (<object> images).shape[1:]
                or np.PyArray_NDIM(matrix) != 2 or np.PyArray_NDIM(offsets) != 1 or np.PyArray_SIZE(matrix) == 0
                or np.PyArray_TYPE(images) != np.PyArray_TYPE(matrix) or np.PyArray_TYPE(images) != np.PyArray_TYPE(offsets)
                or np.PyArray_DIM(images, 1) * size[0] * size[1] != np.PyArray_DIM(matrix, 0)
                or np.PyArray_DIM(matrix, 1) != np.PyArray_DIM(offsets, 0)
                or np.PyArray_DIM(images, 2) + 2 * pad[0] < size[0] or np.PyArray_DIM(images, 3) + 2 * pad[1] < size[1]):
            return None
        self.images, self.matrix, self.offsets = _in_order(images), _in_order(matrix), offsets
        self.planes = _planes(self.matrix, offsets, c)
        if self.planes is None:
            return None
        self.wide = single and (np.PyArray_DIM(matrix, 0) < <np.npy_intp> SHORT
                                or not all([numpy.abs(each).max() <= LARGEST_SLOPE for each in self.planes]))
        self.call.images, self.call.channels, self.call.height, self.call.width = (<object> images).shape
        self.call.outputs = np.PyArray_DIM(matrix, 1)
        self.call.rows, self.call.columns = size
        self.call.down, self.call.across = step
        self.call.top, self.call.left = pad
        self.call.out_height = (self.call.height + 2 * self.call.top - self.call.rows) // self.call.down + 1
        self.call.out_width = (self.call.width + 2 * self.call.left - self.call.columns) // self.call.across + 1
        self.call.curvature = c
        self.call.share = _share(np.PyArray_DIM(matrix, 0), self.call.channels)
        self.call.margin = reference._ball.PROJECTION_MARGIN[images.dtype] if project else -1.0
        self.shape = (self.call.images, self.call.outputs, self.call.out_height, self.call.out_width)
        return self

    cdef bint forward(self, np.ndarray y) except -1:
        """Fill in the result; return whether a point lies outside."""
        cdef int failed = 0
        if self.call.images:
            failed = _convolve(&self.call, self.images, self.matrix, self.planes, y, self.wide)
        if failed & MEMORY:
            raise MemoryError("conv2d: no memory for a tile of rows")
        return failed & OUTSIDE

    cdef backward(self, dy, curvature_dtype):
        """Cotangents of image, weight, bias and curvature."""
        cdef np.ndarray g = _cotangent(dy, self.shape, self.images.dtype), dx = _fresh(self.images)
        cdef size_t depth = np.PyArray_DIM(self.matrix, 0), width = self.call.outputs
        cdef np.ndarray sums = numpy.zeros((depth + 2) * width + 2)
        if self.call.images and _convolve_back(&self.call, self.images, self.matrix, self.planes, g, dx, sums, self.wide):
            raise MemoryError("conv2d: no memory for a tile of rows")
        lengths = self.planes[2] / 2
        present = lengths > 0
        units = numpy.divide(self.matrix, lengths, out=numpy.zeros((depth, width)), where=present)
        turned = sums[: depth * width].reshape(depth, width) * present
        grown, biases = sums[depth * width : (depth + 2) * width].reshape(2, width)
        dweight = turned + (grown - (turned * units).sum(axis=0)) * units
        dbias = 2 * numpy.sqrt(self.call.curvature) * biases
        dcurvature = (sums[(depth + 2) * width] + numpy.dot(dbias, self.offsets) - sums[(depth + 2) * width + 1]) / (2 * self.call.curvature)
        dtype = self.images.dtype
        return dx, dweight.astype(dtype), dbias.astype(dtype), numpy.asarray(dcurvature, curvature_dtype)


cdef int _convolve(const rn_poincare_conv *call, np.ndarray images, np.ndarray matrix, tuple planes, np.ndarray y, bint wide):
    cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
    cdef object dtype = numpy.float32 if single and not wide else numpy.float64
    cdef np.ndarray slope, offset, power
    slope, offset, power = (each.astype(dtype, copy=False) for each in planes[:3])
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


cdef int _convolve_back(const rn_poincare_conv *call, np.ndarray images, np.ndarray matrix, tuple planes, np.ndarray g, np.ndarray dx, np.ndarray sums, bint wide):
    cdef bint single = np.PyArray_TYPE(images) == np.NPY_FLOAT
    cdef object dtype = numpy.float32 if single and not wide else numpy.float64
    cdef np.ndarray slope, offset, power, cosh
    slope, offset, power, cosh = (each.astype(dtype, copy=False) for each in planes)
    matrix = (<object> matrix).astype(dtype, copy=False)
    cdef void *source = np.PyArray_DATA(images)
    cdef void *of = np.PyArray_DATA(matrix)
    cdef void *a = np.PyArray_DATA(slope)
    cdef void *b = np.PyArray_DATA(offset)
    cdef void *e = np.PyArray_DATA(power)
    cdef void *f = np.PyArray_DATA(cosh)
    cdef void *given = np.PyArray_DATA(g)
    cdef void *to = np.PyArray_DATA(dx)
    cdef double *total = <double *> np.PyArray_DATA(sums)
    cdef const rn_poincare_image_table *table = rn_poincare_image()
    cdef int failed
    with nogil:
        if not single:
            failed = table.conv2d_back_f64(call, <const double *> source, <const double *> of, <const double *> a, <const double *> b, <const double *> e, <const double *> f, <const double *> given, <double *> to, total)
        elif wide:
            failed = table.conv2d_back_wide(call, <const float *> source, <const double *> of, <const double *> a, <const double *> b, <const double *> e, <const double *> f, <const float *> given, <float *> to, total)
        else:
            failed = table.conv2d_back_f32(call, <const float *> source, <const float *> of, <const float *> a, <const float *> b, <const float *> e, <const float *> f, <const float *> given, <float *> to, total)
    return failed


cdef np.ndarray _pixels_first(np.ndarray x):
    """Rows (..., N, n) as (..., n, N): a pixel's coordinates lie apart, neighbouring pixels together."""
    return _in_order(numpy.swapaxes(x, -1, -2))


cdef np.ndarray _images_of(np.ndarray x, rn_poincare_pixels *pixels):
    """Points (N, C) or (N, C, H, W) as images of pixels; the former as one image (C, N)."""
    pixels.by_rows = 0
    if np.PyArray_NDIM(x) == 2:
        pixels.images, pixels.channels, pixels.area = 1, np.PyArray_DIM(x, 1), np.PyArray_DIM(x, 0)
        return _pixels_first(x)
    pixels.images, pixels.channels = np.PyArray_DIM(x, 0), np.PyArray_DIM(x, 1)
    pixels.area = np.PyArray_DIM(x, 2) * np.PyArray_DIM(x, 3)
    return _in_order(x)


cdef _rounded(np.ndarray wide, double gap, double c, dtype):
    """Points in a dtype, rounded inward where they would leave the ball; ``gap`` is the smallest of theirs."""
    if dtype == numpy.float32 and gap > SAFE_GAP:
        return wide.astype(dtype)
    frame = reference._frame.Frame(c, -1, False, x=wide.astype(dtype))
    return frame.leave_inside(wide * frame.unit)


cdef _curvature_dtype(curvature, dtype):
    return curvature.dtype if isinstance(curvature, (numpy.ndarray, numpy.generic)) and curvature.dtype.kind == "f" else dtype


cdef class _Sets:
    """The checked arguments of a midpoint: sets of points that are rows."""

    cdef rn_poincare_pixels pixels
    cdef np.ndarray points, weights
    cdef size_t sets
    cdef tuple shape

    @staticmethod
    cdef _Sets of(x, curvature, weights):
        """None where the reference has to look at the arguments."""
        cdef _Sets self = _Sets.__new__(_Sets)
        cdef np.ndarray points = _float_array(x, "x")
        cdef np.ndarray of = None if weights is None else _float_array(weights, "weights")
        cdef double c = _curvature(curvature, False)
        cdef int ndim = np.PyArray_NDIM(points)
        shape = (<object> points).shape
        if c == 0 or ndim < 2 or shape[ndim - 1] == 0 or shape[ndim - 2] == 0:
            return None
        if of is not None and (np.PyArray_TYPE(of) != np.PyArray_TYPE(points) or (<object> of).shape != shape[: ndim - 1]
                               or not of.any(axis=-1).all()):
            return None
        self.points, self.weights = _in_order(points), None if of is None else _in_order(of)
        self.shape = shape[: ndim - 2] + shape[ndim - 1 :]
        self.pixels.images, self.pixels.channels, self.pixels.area, self.pixels.curvature = 1, shape[ndim - 1], shape[ndim - 2], c
        self.pixels.by_rows = 1
        self.sets = np.PyArray_SIZE(points) // (self.pixels.channels * self.pixels.area)
        return self

    cdef forward(self, bint check):
        """The midpoints, or None if a point lies outside."""
        cdef np.ndarray wide = numpy.empty(self.shape), gaps = numpy.empty(self.sets)
        cdef void *points = np.PyArray_DATA(self.points)
        cdef void *of = NULL if self.weights is None else np.PyArray_DATA(self.weights)
        cdef double *to = <double *> np.PyArray_DATA(wide)
        cdef double *beyond = <double *> np.PyArray_DATA(gaps)
        cdef bint single = np.PyArray_TYPE(self.points) == np.NPY_FLOAT
        cdef const rn_poincare_pixels *pixels = &self.pixels
        cdef size_t sets = self.sets
        cdef int failed = 0
        with nogil:
            if sets and single:
                failed = rn_poincare_image().midpoints_f32(pixels, sets, <const float *> points, <const float *> of, to, beyond)
            elif sets:
                failed = rn_poincare_image().midpoints_f64(pixels, sets, <const double *> points, <const double *> of, to, beyond)
        if failed & MEMORY:
            raise MemoryError("midpoint: no memory for the points' masses")
        if failed and check:
            return None
        return _rounded(wide, gaps.min(initial=1.0), self.pixels.curvature, self.points.dtype)

    cdef backward(self, dm, curvature_dtype):
        """Cotangents of points, curvature and weights."""
        array = numpy.asarray(dm)
        _checks.shape(array, "cotangent", self.shape)
        cdef np.ndarray g = _in_order(array, numpy.float64), terms = numpy.zeros(self.sets)
        cdef np.ndarray dx = _fresh(self.points), dweights = None if self.weights is None else _fresh(self.weights)
        cdef void *points = np.PyArray_DATA(self.points)
        cdef void *of = NULL if self.weights is None else np.PyArray_DATA(self.weights)
        cdef const double *given = <const double *> np.PyArray_DATA(g)
        cdef void *to = np.PyArray_DATA(dx)
        cdef void *beside = NULL if dweights is None else np.PyArray_DATA(dweights)
        cdef double *sums = <double *> np.PyArray_DATA(terms)
        cdef bint single = np.PyArray_TYPE(dx) == np.NPY_FLOAT
        cdef const rn_poincare_pixels *pixels = &self.pixels
        cdef size_t sets = self.sets
        cdef int failed = 0
        with nogil:
            if sets and single:
                failed = rn_poincare_image().midpoints_back_f32(pixels, sets, <const float *> points, <const float *> of, given, <float *> to, <float *> beside, sums)
            elif sets:
                failed = rn_poincare_image().midpoints_back_f64(pixels, sets, <const double *> points, <const double *> of, given, <double *> to, <double *> beside, sums)
        if failed:
            raise MemoryError("midpoint: no memory for the points' masses")
        return dx, numpy.asarray(terms.sum(), curvature_dtype), dweights


def midpoint(x, curvature, weights=None, *, check=True, out=None):
    """Gyromidpoint; see :func:`refnorm.poincare.midpoint`. ``out`` takes the result."""
    cdef _Sets sets = _Sets.of(x, curvature, weights)
    if sets is not None and out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, sets.points.dtype), sets.shape))
    y = None if sets is None else sets.forward(check)
    return _store(reference.midpoint(x, curvature, weights, check=check) if y is None else y, out)


def midpoint_vjp(x, curvature, weights=None, *, check=True):
    """Gyromidpoint and its pullback; see :func:`refnorm.poincare.midpoint_vjp`.

    Notes
    -----
    The pullback keeps a copy of the points and computes the midpoint anew.
    """
    cdef _Sets sets = _Sets.of(x, curvature, weights)
    y = None if sets is None else sets.forward(check)
    if y is None:
        return reference.midpoint_vjp(x, curvature, weights, check=check)
    # The caller may write to his arrays before he calls the pullback.
    sets.points, sets.weights = numpy.array(sets.points), None if weights is None else numpy.array(sets.weights)
    given = _curvature_dtype(curvature, sets.points.dtype)
    return y, lambda dm: sets.backward(dm, given)


cdef bint _is_batch(np.ndarray points) noexcept:
    return (np.PyArray_NDIM(points) == 2 or np.PyArray_NDIM(points) == 4) and np.PyArray_SIZE(points) > 0


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


cdef class _Batch:
    """A batch of points as images of pixels, its midpoint and variance, and what it is normalized to."""

    cdef rn_poincare_pixels pixels
    cdef rn_poincare_midpoint at
    cdef rn_poincare_normalization way
    cdef np.ndarray images, middle, gathered, bias, centre
    cdef tuple shape
    cdef double gain, eps
    cdef bint training

    @staticmethod
    cdef _Batch of(x, curvature):
        """None where the reference has to look at the arguments."""
        cdef _Batch self = _Batch.__new__(_Batch)
        cdef np.ndarray points = _float_array(x, "x")
        self.pixels.curvature = _curvature(curvature, False)
        if self.pixels.curvature == 0 or not _is_batch(points):
            return None
        self.shape = (<object> points).shape
        self.images = _images_of(points, &self.pixels)
        self.middle = numpy.zeros(self.pixels.channels)
        self.gathered = numpy.empty((2, self.pixels.channels))
        self.at.middle = <double *> np.PyArray_DATA(self.middle)
        self.at.heaviest = <double *> np.PyArray_DATA(self.gathered)
        self.at.drift = self.at.heaviest + self.pixels.channels
        # For the statistics alone the way is a step of scale 1 to the origin.
        self.training, self.bias, self.centre = True, numpy.zeros(self.pixels.channels), numpy.zeros(self.pixels.channels)
        self.way.centre_gap, self.way.scale, self.way.margin = 1, 1, -1
        return self

    cdef bint gather(self) except -1:
        """Fill in midpoint and variance; return whether a point lies outside."""
        cdef void *points = np.PyArray_DATA(self.images)
        cdef bint single = np.PyArray_TYPE(self.images) == np.NPY_FLOAT
        cdef const rn_poincare_pixels *pixels = &self.pixels
        cdef rn_poincare_midpoint *to = &self.at
        cdef int failed
        with nogil:
            if single:
                failed = rn_poincare_image().midpoint_f32(pixels, <const float *> points, 1, to)
            else:
                failed = rn_poincare_image().midpoint_f64(pixels, <const double *> points, 1, to)
        if failed & MEMORY:
            raise MemoryError("midpoint_statistics: no memory for the points' masses")
        return failed & OUTSIDE

    cdef tuple statistics(self):
        dtype = self.images.dtype
        return _rounded(self.middle, self.at.gap, self.pixels.curvature, dtype), numpy.asarray(self.at.variance, dtype)

    cdef bint aim(self, bias, gain, mean, var, eps, bint check, bint project) except -1:
        """Fill in what the batch is normalized by and to; return whether the reference has to look at the arguments."""
        cdef np.ndarray points = self.images if len(self.shape) == 4 else self.images.T
        cdef double c = self.pixels.curvature, length
        if (mean is None) != (var is None) or not isinstance(eps, (int, float)) or not 0 < eps < numpy.inf:
            return True
        self.bias, self.gain, self.eps = _vector(bias, "bias", points), _scalar(gain, "gain", points, False), eps
        if self.bias is None or self.gain < 0:
            return True
        length = numpy.sqrt(c) * numpy.linalg.norm(self.bias)
        if not length < numpy.arctanh(OUTER):
            return True
        self.centre = self.bias * (numpy.tanh(length) / length if length > 0 else 1.0)
        self.training = mean is None
        if self.training:
            if self.gather() and check:
                return True
        else:
            middle, self.at.variance = _vector(mean, "mean", points), _scalar(var, "var", points, True)
            if middle is None or self.at.variance < 0:
                return True
            self.middle[...] = middle
            if rn_poincare().gaps_f64(self.at.middle, self.pixels.channels, &self.at.gap, 1, self.pixels.channels, c) and check:
                return True
        self.way.centre_gap = 1 - c * numpy.dot(self.centre, self.centre)
        self.way.scale = numpy.sqrt(self.gain / (self.at.variance + eps))
        self.way.margin = reference._ball.PROJECTION_MARGIN[self.images.dtype] if project else -1.0
        return False

    cdef rn_poincare_normalization *rails(self):
        self.way.middle, self.way.centre = self.at.middle, <const double *> np.PyArray_DATA(self.centre)
        self.way.middle_gap = self.at.gap
        return &self.way

    cdef bint forward(self, np.ndarray y) except -1:
        """Fill in the normalized pixels; return whether a point lies outside."""
        cdef void *source = np.PyArray_DATA(self.images)
        cdef void *to = np.PyArray_DATA(y)
        cdef bint single = np.PyArray_TYPE(self.images) == np.NPY_FLOAT
        cdef const rn_poincare_pixels *pixels = &self.pixels
        cdef const rn_poincare_normalization *way = self.rails()
        cdef int failed
        with nogil:
            if single:
                failed = rn_poincare_image().normalize_f32(pixels, <const float *> source, way, <float *> to)
            else:
                failed = rn_poincare_image().normalize_f64(pixels, <const double *> source, way, <double *> to)
        if failed & MEMORY:
            raise MemoryError("midpoint_batch_norm: no memory for a vector")
        return failed & OUTSIDE

    cdef object leave(self, np.ndarray images):
        """Pixels in the shape in which the points came."""
        return images if len(self.shape) == 4 else images.T

    cdef np.ndarray sums(self, np.ndarray g):
        """Cotangents of the middle, of the centre, the sum of A e, and the scale's cotangent; zeros of g if it is None."""
        cdef np.ndarray results = numpy.empty(3 * self.pixels.channels + 1)
        cdef double *to = <double *> np.PyArray_DATA(results)
        cdef void *source = np.PyArray_DATA(self.images)
        cdef void *given = NULL if g is None else np.PyArray_DATA(g)
        cdef bint single = np.PyArray_TYPE(self.images) == np.NPY_FLOAT
        cdef const rn_poincare_pixels *pixels = &self.pixels
        cdef const rn_poincare_normalization *way = self.rails()
        cdef int failed
        with nogil:
            if single:
                failed = rn_poincare_image().normalize_sums_f32(pixels, <const float *> source, way, <const float *> given, to)
            else:
                failed = rn_poincare_image().normalize_sums_f64(pixels, <const double *> source, way, <const double *> given, to)
        if failed:
            raise MemoryError("midpoint_batch_norm: no memory for the sums over a batch")
        return results

    cdef tuple pull(self, np.ndarray g, np.ndarray dmiddle, double dvariance):
        """dx as images, <dx, x> and <g, y>, from the cotangents of y and, in training, of the statistics."""
        cdef np.ndarray dx = _fresh(self.images), products = numpy.empty(2)
        cdef double *sums = <double *> np.PyArray_DATA(products)
        cdef double by_distance = dvariance * self.distance_share()
        cdef void *source = np.PyArray_DATA(self.images)
        cdef void *given = NULL if g is None else np.PyArray_DATA(g)
        cdef void *to = np.PyArray_DATA(dx)
        cdef const rn_poincare_midpoint *of = &self.at if self.training else NULL
        cdef const double *turn = <const double *> np.PyArray_DATA(dmiddle)
        cdef bint single = np.PyArray_TYPE(self.images) == np.NPY_FLOAT
        cdef const rn_poincare_pixels *pixels = &self.pixels
        cdef const rn_poincare_normalization *way = self.rails()
        cdef int failed
        with nogil:
            if single:
                failed = rn_poincare_image().normalize_back_f32(pixels, <const float *> source, way, <const float *> given, of, turn, by_distance, <float *> to, sums)
            else:
                failed = rn_poincare_image().normalize_back_f64(pixels, <const double *> source, way, <const double *> given, of, turn, by_distance, <double *> to, sums)
        if failed:
            raise MemoryError("midpoint_batch_norm: no memory for the sums over a batch")
        return dx, products[0], products[1]

    cdef double distance_share(self):
        """The variance is the mean of 4/c A^2: its derivative by A over A."""
        return 8 / (self.pixels.curvature * self.pixels.images * self.pixels.area)

    cdef np.ndarray middle_of_variance(self, np.ndarray sums, double dvariance):
        """The variance's share in the cotangent of the midpoint."""
        channels = self.pixels.channels
        return -dvariance * self.distance_share() * numpy.sqrt(self.pixels.curvature) / self.at.gap * sums[2 * channels : 3 * channels]

    cdef np.ndarray bias_cotangent(self, np.ndarray dcentre):
        """Through centre = tanh(s)/s bias: tanh(s)/s across the bias, sech(s)^2 along it."""
        cdef double size = numpy.linalg.norm(self.bias), s = numpy.sqrt(self.pixels.curvature) * size
        if s == 0:
            return dcentre
        unit = self.bias / size
        radial = numpy.dot(dcentre, unit)
        return numpy.tanh(s) / s * (dcentre - radial * unit) + radial / numpy.cosh(s) ** 2 * unit

    cdef tuple backward(self, dy, curvature_dtype):
        """Cotangents of points, bias, gain, curvature, and given statistics."""
        cdef np.ndarray g = _cotangent(dy, self.shape, self.images.dtype)
        cdef size_t channels = self.pixels.channels
        if len(self.shape) == 2:
            g = _pixels_first(g)
        sums = self.sums(g)
        dmiddle, dscale = sums[:channels], sums[3 * channels]
        # scale = sqrt(gain / (var + eps)).
        dgain = dscale * self.way.scale / (2 * self.gain)
        dvariance = -dscale * self.way.scale / (2 * (self.at.variance + self.eps))
        if self.training:
            dmiddle = dmiddle + self.middle_of_variance(sums, dvariance)
        dx, along, total = self.pull(g, _in_order(dmiddle), dvariance if self.training else 0)
        dbias = self.bias_cotangent(sums[channels : 2 * channels])
        # All lengths times r, all variances times r^2 and the curvature over r^2 give r times the result.
        along += numpy.dot(dbias, self.bias) + 2 * (dgain * self.gain + dvariance * self.eps)
        if not self.training:
            along += numpy.dot(dmiddle, self.middle) + 2 * dvariance * self.at.variance
        dtype = self.images.dtype
        given = (None, None) if self.training else (dmiddle.astype(dtype), numpy.asarray(dvariance, dtype))
        dcurvature = numpy.asarray((along - total) / (2 * self.pixels.curvature), curvature_dtype)
        return self.leave(dx), dbias.astype(dtype), numpy.asarray(dgain, dtype), dcurvature, *given

    cdef tuple statistics_back(self, cotangent, curvature_dtype):
        """Cotangents of points and curvature, from those of midpoint and variance."""
        dtype, channels = self.images.dtype, self.pixels.channels
        dmean, dvar = cotangent
        for given, shape in ((dmean, (channels,)), (dvar, ())):
            array = _checks.float_array(given, "cotangent")
            _checks.same_dtype("x", self.images, cotangent=array)
            _checks.shape(array, "cotangent", shape)
        dvariance = float(dvar)
        dmiddle = numpy.asarray(dmean, numpy.float64)
        total = numpy.dot(dmiddle, self.middle) + 2 * dvariance * self.at.variance
        turn = dmiddle + self.middle_of_variance(self.sums(None), dvariance)
        dx, along, _ = self.pull(None, turn, dvariance)
        return self.leave(dx), numpy.asarray((along - total) / (2 * self.pixels.curvature), curvature_dtype)

    cdef keep(self):
        """Own the points: the caller may write to his before he calls the pullback."""
        self.images = numpy.array(self.images)


def midpoint_statistics(x, curvature, *, check=True):
    """Midpoint and mean squared distance to it; see :func:`refnorm.poincare.midpoint_statistics`."""
    cdef _Batch batch = _Batch.of(x, curvature)
    if batch is None or batch.gather() and check:
        return reference.midpoint_statistics(x, curvature, check=check)
    return batch.statistics()


def midpoint_statistics_vjp(x, curvature, *, check=True):
    """Midpoint, mean squared distance to it, and their pullback; see :func:`refnorm.poincare.midpoint_statistics_vjp`.

    Notes
    -----
    The curvature's cotangent is ``(<dx, x> - <dmean, mean> - 2 dvar var) / (2 curvature)``; see :func:`conv2d_vjp`.
    """
    cdef _Batch batch = _Batch.of(x, curvature)
    if batch is None or batch.gather() and check:
        return reference.midpoint_statistics_vjp(x, curvature, check=check)
    batch.keep()
    given = _curvature_dtype(curvature, batch.images.dtype)
    return batch.statistics(), lambda cotangent: batch.statistics_back(cotangent, given)


def midpoint_batch_norm(x, bias, gain, curvature, mean=None, var=None, *, eps=reference._batch_norm.DEFAULT_EPS, check=True,
                        project=True, out=None):
    """Midpoint batch normalization; see :func:`refnorm.poincare.midpoint_batch_norm`. ``out`` takes the result."""
    cdef np.ndarray y = None
    cdef _Batch batch = _Batch.of(x, curvature)
    direct = False
    if batch is not None and not batch.aim(bias, gain, mean, var, eps, check, project):
        if out is not None:
            _check_out(out, _float_array(x, "x"))
        direct = len(batch.shape) == 4 and _direct(out, (batch.images,))
        y = out if direct else _fresh(batch.images)
        if batch.forward(y) and check:
            y = None
    if y is None:
        return _store(reference.midpoint_batch_norm(x, bias, gain, curvature, mean, var, eps=eps, check=check, project=project), out)
    return out if direct else _store(batch.leave(y), out)


def midpoint_batch_norm_vjp(x, bias, gain, curvature, mean=None, var=None, *, eps=reference._batch_norm.DEFAULT_EPS, check=True,
                            project=True):
    """Midpoint batch normalization and its pullback; see :func:`refnorm.poincare.midpoint_batch_norm_vjp`.

    Notes
    -----
    Two passes over points and cotangents, the first for all sums over the batch. The curvature's cotangent follows from all others'
    as in :func:`conv2d_vjp`.
    """
    y, _, pullback = normalize_images_vjp(x, bias, gain, curvature, mean, var, eps, check, project)
    return y, pullback


cdef tuple _normalize(x, bias, gain, curvature, mean, var, eps, bint check, bint project, bint keep):
    """The normalized points, the statistics (mean, variance) that were used and the batch; or None for the reference."""
    cdef _Batch batch = _Batch.of(x, curvature)
    cdef np.ndarray y
    if batch is None or batch.aim(bias, gain, mean, var, eps, check, project):
        return None
    y = _fresh(batch.images)
    if batch.forward(y) and check:
        return None
    if keep:
        batch.keep()
    return batch.leave(y), batch.statistics() if batch.training else (mean, var), batch


def normalize_images(x, bias, gain, curvature, mean, var, eps, check, project):
    """Normalized points, and the mean and variance that were used; arguments are those of ``midpoint_batch_norm``."""
    found = _normalize(x, bias, gain, curvature, mean, var, eps, check, project, False)
    if found is None:
        return reference._batch_norm.normalize(x, bias, gain, curvature, mean, var, eps, check, project)[:2]
    return found[:2]


def normalize_images_vjp(x, bias, gain, curvature, mean, var, eps, check, project):
    """Normalized points, the mean and variance that were used, and the pullback of the points."""
    cdef _Batch batch
    found = _normalize(x, bias, gain, curvature, mean, var, eps, check, project, True)
    if found is None:
        return reference._batch_norm.normalize(x, bias, gain, curvature, mean, var, eps, check, project)
    y, statistics, batch = found
    given = _curvature_dtype(curvature, batch.images.dtype)
    return y, statistics, lambda dy: batch.backward(dy, given)


cdef class _Pooling:
    """The checked arguments of average pooling."""

    cdef rn_poincare_conv call
    cdef np.ndarray images
    cdef tuple shape

    @staticmethod
    cdef _Pooling of(x, curvature, size, stride, bint project):
        """None where the reference has to look at the arguments."""
        cdef _Pooling self = _Pooling.__new__(_Pooling)
        cdef np.ndarray images = _float_array(x, "x")
        cdef double c = _curvature(curvature, False)
        cdef tuple window = _pair(size, 1), step = window if stride is None else _pair(stride, 1)
        if (c == 0 or window is None or step is None or np.PyArray_NDIM(images) != 4 or 0 in (<object> images).shape[1:]
                or np.PyArray_DIM(images, 2) < window[0] or np.PyArray_DIM(images, 3) < window[1]):
            return None
        self.images = _in_order(images)
        self.call.images, self.call.channels, self.call.height, self.call.width = (<object> images).shape
        self.call.rows, self.call.columns = window
        self.call.down, self.call.across = step
        self.call.out_height = (self.call.height - self.call.rows) // self.call.down + 1
        self.call.out_width = (self.call.width - self.call.columns) // self.call.across + 1
        self.call.curvature = c
        self.call.margin = reference._ball.PROJECTION_MARGIN[images.dtype] if project else -1.0
        self.shape = (self.call.images, self.call.channels, self.call.out_height, self.call.out_width)
        return self

    cdef bint forward(self, np.ndarray y) except -1:
        """Fill in the result; return whether a point lies outside."""
        cdef void *source = np.PyArray_DATA(self.images)
        cdef void *to = np.PyArray_DATA(y)
        cdef bint single = np.PyArray_TYPE(y) == np.NPY_FLOAT
        cdef const rn_poincare_conv *call = &self.call
        cdef int failed
        with nogil:
            if single:
                failed = rn_poincare_image().avg_pool2d_f32(call, <const float *> source, <float *> to)
            else:
                failed = rn_poincare_image().avg_pool2d_f64(call, <const double *> source, <double *> to)
        if failed & MEMORY:
            raise MemoryError("avg_pool2d: no memory for the logarithms of an image")
        return failed & OUTSIDE

    cdef backward(self, dy, curvature_dtype):
        """Cotangents of images and curvature."""
        cdef np.ndarray g = _cotangent(dy, self.shape, self.images.dtype), dx = _fresh(self.images)
        cdef np.ndarray results = numpy.zeros((self.call.images, 2))
        cdef void *source = np.PyArray_DATA(self.images)
        cdef void *given = np.PyArray_DATA(g)
        cdef void *to = np.PyArray_DATA(dx)
        cdef double *sums = <double *> np.PyArray_DATA(results)
        cdef bint single = np.PyArray_TYPE(dx) == np.NPY_FLOAT
        cdef const rn_poincare_conv *call = &self.call
        cdef int failed
        with nogil:
            if single:
                failed = rn_poincare_image().avg_pool2d_back_f32(call, <const float *> source, <const float *> given, <float *> to, sums)
            else:
                failed = rn_poincare_image().avg_pool2d_back_f64(call, <const double *> source, <const double *> given, <double *> to, sums)
        if failed:
            raise MemoryError("avg_pool2d: no memory for the cotangents of an image")
        along, total = results.sum(axis=0)
        return dx, numpy.asarray((along - total) / (2 * self.call.curvature), curvature_dtype)


def avg_pool2d(x, curvature, *, size, stride=None, check=True, project=True, out=None):
    """Average pooling of logarithms; see :func:`refnorm.poincare.avg_pool2d`. ``out`` takes the result."""
    cdef _Pooling layer = _Pooling.of(x, curvature, size, stride, project)
    if layer is None:
        return _store(reference.avg_pool2d(x, curvature, size=size, stride=stride, check=check, project=project), out)
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, layer.images.dtype), layer.shape))
    direct = _direct(out, (layer.images,))
    cdef np.ndarray y = out if direct else _empty(layer.shape, np.PyArray_TYPE(layer.images))
    if layer.forward(y) and check:
        return reference.avg_pool2d(x, curvature, size=size, stride=stride, project=project)
    return out if direct else _store(y, out)


def avg_pool2d_vjp(x, curvature, *, size, stride=None, check=True, project=True):
    """Average pooling of logarithms and its pullback; see :func:`refnorm.poincare.avg_pool2d_vjp`.

    Notes
    -----
    The curvature's cotangent is ``(<dx, x> - <dy, y>) / (2 curvature)``; see :func:`conv2d_vjp`.
    """
    cdef _Pooling layer = _Pooling.of(x, curvature, size, stride, project)

    def fallback():
        return reference.avg_pool2d_vjp(x, curvature, size=size, stride=stride, check=check, project=project)

    if layer is None:
        return fallback()
    layer.images = numpy.array(layer.images)
    cdef np.ndarray y = _empty(layer.shape, np.PyArray_TYPE(layer.images))
    if layer.forward(y) and check:
        return fallback()
    given = _curvature_dtype(curvature, layer.images.dtype)
    return y, lambda dy: layer.backward(dy, given)


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
    other = None if other is None else _in_order(other)
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
