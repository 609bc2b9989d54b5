# Maps (N, C, ...) as N * C planes, each of which the sweeps of _kernels/channel_norm.c take for a channel of its own.
# Include after rows.pxi; the module has imported numpy.

include "_channel_norm.pxi"

SHORTEST_PLANE = 32
"""Places from which on planes are swept; the reference takes shorter ones, which would be all bookkeeping."""


cdef inline bint _swept(x):
    """Whether planes are long enough for the sweeps."""
    return x.size >= SHORTEST_PLANE * x.shape[0] * x.shape[1]


cdef inline double *_doubles(np.ndarray array) noexcept:
    return <double *> np.PyArray_DATA(array)


cdef inline np.ndarray _wide(array):
    """As a contiguous float64 array."""
    return numpy.array(array, dtype=numpy.float64, order="C")


cdef class _Planes:
    """x, and its planes' moments as an array of rn_channel."""

    cdef np.ndarray x, moments
    cdef rn_channel_shape shape
    cdef size_t examples, channels
    cdef bint single
    cdef double places

    def __cinit__(self, np.ndarray x):
        self.x = _in_order(x)
        self.single = np.PyArray_TYPE(x) == np.NPY_FLOAT
        self.examples, self.channels = np.PyArray_DIM(x, 0), np.PyArray_DIM(x, 1)
        cdef size_t planes = self.examples * self.channels
        self.shape = rn_channel_shape(1, planes, np.PyArray_SIZE(x) // planes, 1, 0)
        self.places = self.shape.inner
        self.moments = numpy.empty((planes, 5))
        cdef void *source = np.PyArray_DATA(self.x)
        cdef rn_channel *found = self.own()
        cdef int failed
        with nogil:
            if self.single:
                failed = rn_channel_norm().norm_f32(MEAN, <const float *> source, NULL, NULL, NULL, self.shape, 0, 1, found)
            else:
                failed = rn_channel_norm().norm_f64(MEAN, <const double *> source, NULL, NULL, NULL, self.shape, 0, 1, found)
        if failed:
            raise MemoryError

    cdef rn_channel *own(self):
        return <rn_channel *> np.PyArray_DATA(self.moments)

    cdef own_mean(self):
        return (self.moments[:, 0] + self.moments[:, 1]).reshape(self.examples, self.channels)

    cdef own_var(self):
        return self.moments[:, 2].reshape(self.examples, self.channels)

    cdef np.ndarray lines(self):
        """Room for one rn_channel_line a plane."""
        return numpy.empty((self.shape.channels, 5))

    cdef write(self, np.ndarray lines, out):
        """scale * (x - mean) + level"""
        cdef np.ndarray y
        if out is not None:
            _check_out(out, self.x)
            y = <np.ndarray> out
            if not np.PyArray_ISCARRAY(y) or not (_identical(self.x, y) or _apart(self.x, y)):
                y[...] = self.write(lines, None)
                return y
        else:
            y = _fresh(self.x)
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *to = np.PyArray_DATA(y)
        cdef const rn_channel_line *line = <const rn_channel_line *> np.PyArray_DATA(lines)
        cdef int failed
        with nogil:
            if self.single:
                failed = rn_channel_norm().apply_f32(<const float *> x, <float *> to, self.shape, line)
            else:
                failed = rn_channel_norm().apply_f64(<const double *> x, <double *> to, self.shape, line)
        if failed:
            raise MemoryError
        return y

    cdef np.ndarray cotangent(self, dy):
        array = numpy.asarray(dy, dtype=(<object> self.x).dtype)
        _checks.shape(array, "dy", (<object> self.x).shape)
        return _in_order(array)

    cdef np.ndarray sums(self, np.ndarray dy, np.ndarray lines):
        """Every plane's sum(dy) and sum(dy (x - mean)), the means as in the lines."""
        cdef np.ndarray found = numpy.empty((self.shape.channels, 2))
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *up = np.PyArray_DATA(dy)
        cdef double *total = _doubles(found)
        cdef const rn_channel_line *line = <const rn_channel_line *> np.PyArray_DATA(lines)
        cdef int failed
        with nogil:
            if self.single:
                failed = rn_channel_norm().sums_f32(<const float *> x, <const float *> up, self.shape, line, total)
            else:
                failed = rn_channel_norm().sums_f64(<const double *> x, <const double *> up, self.shape, line, total)
        if failed:
            raise MemoryError
        return found

    cdef np.ndarray combine(self, np.ndarray dy, np.ndarray lines):
        """scale * (dy - level) + slope * (x - mean)"""
        cdef np.ndarray dx = _fresh(self.x)
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *up = np.PyArray_DATA(dy)
        cdef void *to = np.PyArray_DATA(dx)
        cdef const rn_channel_line *line = <const rn_channel_line *> np.PyArray_DATA(lines)
        cdef int failed
        with nogil:
            if self.single:
                failed = rn_channel_norm().combine_f32(<const float *> x, <const float *> up, <float *> to, self.shape, line, NULL)
            else:
                failed = rn_channel_norm().combine_f64(<const double *> x, <const double *> up, <double *> to, self.shape, line, NULL)
        if failed:
            raise MemoryError
        return dx
