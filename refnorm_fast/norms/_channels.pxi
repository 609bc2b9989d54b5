# Norms with statistics per channel over the batch: layout, calls of _kernels/channel_norm.c, checks of arguments.
# Include after rows.pxi; the module has imported numpy.

from libc.math cimport sqrt

include "_arguments.pxi"
include "_channel_norm.pxi"


# ---- layout ----------------------------------------------------------------------------------------------------------


cdef bint _fits(np.ndarray x, unsigned long long over, order, rn_channel_shape *shape):
    """Whether the axes of `x`, taken in `order`, are batch, then channels, then batch again; their sizes go to `shape`.
    Bits of `over` are the batch's axes; None is the order as it stands."""
    cdef int stage = 0, last = -1, axis, i
    cdef size_t size
    shape[0] = rn_channel_shape(1, 1, 1, 1, 0)
    for i in range(np.PyArray_NDIM(x)):
        axis = i if order is None else order[i]
        size = <size_t> np.PyArray_DIM(x, axis)
        if size == 1:
            continue
        if over >> axis & 1:
            if stage == 0:
                shape.outer *= size
            else:
                stage = 2
                shape.inner *= size
        else:
            if stage == 2 or axis < last:
                return False
            stage = 1
            last = axis
            shape.channels *= size
    return True


cdef unsigned long long _axes(axes, np.ndarray x) except? 0:
    """The axes as bits, checked."""
    cdef unsigned long long over = 0
    cdef int ndim = np.PyArray_NDIM(x)
    if axes is _FIRST and ndim:
        return 1
    for axis in _checks.axes(axes, ndim, "axes"):
        over |= 1ull << <int> axis
    return over


_FIRST = (0,)


cdef tuple _units(np.ndarray x, unsigned long long over):
    """Sizes of the axes that are not in `over`."""
    cdef int i
    return tuple([np.PyArray_DIM(x, i) for i in range(np.PyArray_NDIM(x)) if not over >> i & 1])


cdef tuple _listed(np.ndarray x, unsigned long long over, bint inside):
    cdef int i
    return tuple([i for i in range(np.PyArray_NDIM(x)) if (over >> i & 1) == inside])


cdef int _not_empty(np.ndarray x, unsigned long long over) except -1:
    if np.PyArray_SIZE(x) == 0:
        _checks.not_empty(x, "x", _listed(x, over, True))
    return 0


cdef class _Layout:
    """How an array is seen as outer x channels x inner: its axes in `order`, contiguous."""

    cdef rn_channel_shape shape
    cdef object units, order, inverse
    cdef np.ndarray x  # in that order
    cdef np.ndarray original

    cdef np.ndarray arrange(self, array):
        """Another array of the same shape in that order, contiguous."""
        if self.order is not None:
            array = array.transpose(self.order)
        return _in_order(array)

    cdef restore(self, np.ndarray arranged):
        return arranged if self.inverse is None else (<object> arranged).transpose(self.inverse)

    cdef np.ndarray cotangent(self, dy):
        array = numpy.asarray(dy, dtype=self.x.dtype)
        _checks.shape(array, "dy", (<object> self.original).shape)
        return self.arrange(array)

    cdef bint empty(self):
        return self.x.size == 0

    cdef size_t count(self):
        """Values a channel."""
        return self.shape.outer * self.shape.inner


cdef _Layout _layout(np.ndarray x, unsigned long long over, bint batch_first=False):
    cdef _Layout self = _Layout.__new__(_Layout)
    self.original = x
    self.units = _units(x, over)
    self.x = x
    if np.PyArray_IS_C_CONTIGUOUS(x) and _fits(x, over, None, &self.shape):
        return self
    strides = (<object> x).strides
    order = tuple(sorted(range(np.PyArray_NDIM(x)), key=lambda axis: -strides[axis]))
    arranged = (<object> x).transpose(order)
    if arranged.flags.c_contiguous and not (batch_first and order[0] != 0) and _fits(x, over, order, &self.shape):
        self.order = order
    elif not _fits(x, over, None, &self.shape):
        self.order = _listed(x, over, False) + _listed(x, over, True)
        _fits(x, over, self.order, &self.shape)
    self.x = self.arrange(x)
    if self.order is not None:
        self.inverse = tuple(numpy.argsort(self.order).tolist())
    return self


cdef np.ndarray _unit_array(given, name, np.ndarray x, tuple units):
    """`given` as a contiguous array with one entry a channel."""
    cdef np.ndarray array = _float_array(given, name)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(x):
        _checks.same_dtype("x", x, **{name: array})
    if (<object> array).shape != units:
        _checks.shape(array, name, units)
    return array if np.PyArray_IS_C_CONTIGUOUS(array) else _in_order(array)


# ---- calls of the kernels --------------------------------------------------------------------------------------------


cdef _norm(int kind, _Layout at, gain, bias, y, np.ndarray channels, double eps=1, double factor=1):
    """y = gain * c * inverse + bias, in the layout's order; `channels` takes the statistics, or has those given."""
    cdef void *x = np.PyArray_DATA(at.x)
    cdef void *scale = _data(gain)
    cdef void *shift = _data(bias)
    cdef void *to = _data(y)
    cdef rn_channel *found = <rn_channel *> np.PyArray_DATA(channels)
    cdef bint single = np.PyArray_TYPE(at.x) == np.NPY_FLOAT
    cdef rn_channel_shape shape = at.shape
    cdef int failed
    if at.empty():
        return
    with nogil:
        if single:
            failed = rn_channel_norm().norm_f32(kind, <const float *> x, <const float *> scale, <const float *> shift, <float *> to, shape, eps, factor, found)
        else:
            failed = rn_channel_norm().norm_f64(kind, <const double *> x, <const double *> scale, <const double *> shift, <double *> to, shape, eps, factor, found)
    if failed:
        raise MemoryError


cdef tuple _backward(int kind, _Layout at, dy, gain, np.ndarray channels, double factor=1):
    """dx, and for every channel sum(dy) and sum(dy c)."""
    cdef np.ndarray g = at.cotangent(dy)
    cdef np.ndarray dx = _fresh(at.x)
    cdef np.ndarray sums = numpy.zeros((np.PyArray_DIM(channels, 0), 2))
    cdef void *x = np.PyArray_DATA(at.x)
    cdef void *up = np.PyArray_DATA(g)
    cdef void *scale = _data(gain)
    cdef void *to = np.PyArray_DATA(dx)
    cdef double *total = <double *> np.PyArray_DATA(sums)
    cdef const rn_channel *found = <const rn_channel *> np.PyArray_DATA(channels)
    cdef bint single = np.PyArray_TYPE(at.x) == np.NPY_FLOAT
    cdef rn_channel_shape shape = at.shape
    cdef int failed = 0
    if not at.empty():
        with nogil:
            if single:
                failed = rn_channel_norm().backward_f32(kind, <const float *> x, <const float *> up, <const float *> scale, <float *> to, shape, factor, found, total)
            else:
                failed = rn_channel_norm().backward_f64(kind, <const double *> x, <const double *> up, <const double *> scale, <double *> to, shape, factor, found, total)
    if failed:
        raise MemoryError
    return at.restore(dx), sums[:, 0], sums[:, 1]


cdef np.ndarray _statistics(_Layout at):
    """Room for rn_channel, one per ghost batch and channel."""
    return numpy.zeros((at.shape.ghosts * at.shape.channels, 5))


cdef np.ndarray _given_statistics(_Layout at, mean, inverse):
    """Statistics with a mean and an inverse deviation that are given, a float64 array."""
    cdef np.ndarray channels = _statistics(at)
    (<object> channels)[:, MEAN_COLUMN] = mean.reshape(-1)
    (<object> channels)[:, INVERSE_COLUMN] = inverse.reshape(-1)
    return channels


cdef np.ndarray _given_moments(_Layout at, np.ndarray mean, np.ndarray var, double eps):
    """The same from a mean and a variance."""
    cdef np.ndarray channels = _statistics(at)
    cdef rn_channel *found = <rn_channel *> np.PyArray_DATA(channels)
    cdef bint single = np.PyArray_TYPE(mean) == np.NPY_FLOAT
    cdef void *m = np.PyArray_DATA(mean)
    cdef void *v = np.PyArray_DATA(var)
    cdef size_t i
    for i in range(at.shape.channels):
        found[i].mean = (<float *> m)[i] if single else (<double *> m)[i]
        found[i].spread = (<float *> v)[i] if single else (<double *> v)[i]
        found[i].inverse = 1 / sqrt(found[i].spread + eps)
    return channels


cdef _output(int kind, _Layout at, gain, bias, out, np.ndarray channels, double eps=1, double factor=1):
    """The norm as an array like x, written to `out` if that is given."""
    cdef np.ndarray y
    if out is None:
        y = _fresh(at.x)
        _norm(kind, at, gain, bias, y, channels, eps, factor)
        return at.restore(y)
    _check_out(out, at.original)
    y = <np.ndarray> (out if at.order is None else out.transpose(at.order))
    if (np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y) and (_identical(at.x, y) or _apart(at.x, y))
            and (gain is None or _apart(gain, y)) and (bias is None or _apart(bias, y))):
        _norm(kind, at, gain, bias, y, channels, eps, factor)
    else:
        out[...] = _output(kind, at, gain, bias, None, channels, eps, factor)
    return out


cdef _column(_Layout at, np.ndarray channels, column):
    return (<object> channels)[:, column].reshape(at.units).astype(at.x.dtype)


cdef _mean_of(_Layout at, np.ndarray channels):
    total = (<object> channels)[:, MEAN_COLUMN] + (<object> channels)[:, LOW_COLUMN]
    return total.reshape(at.units).astype(at.x.dtype)


cdef _as_units(_Layout at, values):
    return values.reshape(at.units).astype(at.x.dtype)


cdef np.ndarray _lines(_Layout at, scale=1, slope=0, mean=0, level=0):
    """An array of rn_channel_line."""
    cdef np.ndarray lines = numpy.zeros((at.shape.channels, 5))
    for column, values in ((0, mean), (2, scale), (3, level), (4, slope)):
        (<object> lines)[:, column] = values
    return lines


cdef _products(_Layout at, np.ndarray g, mean=0):
    """For every channel sum(dy) and sum(dy (x - mean))."""
    cdef np.ndarray sums = numpy.zeros((at.shape.channels, 2))
    cdef np.ndarray lines = _lines(at, 1, 0, mean)
    cdef void *x = np.PyArray_DATA(at.x)
    cdef void *up = np.PyArray_DATA(g)
    cdef double *total = <double *> np.PyArray_DATA(sums)
    cdef const rn_channel_line *given = <const rn_channel_line *> np.PyArray_DATA(lines)
    cdef bint single = np.PyArray_TYPE(at.x) == np.NPY_FLOAT
    cdef rn_channel_shape shape = at.shape
    cdef int failed
    if at.empty():
        return sums[:, 0], sums[:, 1]
    with nogil:
        if single:
            failed = rn_channel_norm().sums_f32(<const float *> x, <const float *> up, shape, given, total)
        else:
            failed = rn_channel_norm().sums_f64(<const double *> x, <const double *> up, shape, given, total)
    if failed:
        raise MemoryError
    return sums[:, 0], sums[:, 1]


cdef _combined(_Layout at, np.ndarray g, scale, slope, mean=0, level=0):
    """scale * (dy - level) + slope * (x - mean)"""
    cdef np.ndarray dx = _fresh(at.x)
    cdef np.ndarray lines = _lines(at, scale, slope, mean, level)
    cdef void *x = np.PyArray_DATA(at.x)
    cdef void *up = np.PyArray_DATA(g)
    cdef void *to = np.PyArray_DATA(dx)
    cdef const rn_channel_line *given = <const rn_channel_line *> np.PyArray_DATA(lines)
    cdef bint single = np.PyArray_TYPE(at.x) == np.NPY_FLOAT
    cdef rn_channel_shape shape = at.shape
    cdef int failed
    if at.empty():
        return at.restore(dx)
    with nogil:
        if single:
            failed = rn_channel_norm().combine_f32(<const float *> x, <const float *> up, <float *> to, shape, given, NULL)
        else:
            failed = rn_channel_norm().combine_f64(<const double *> x, <const double *> up, <double *> to, shape, given, NULL)
    if failed:
        raise MemoryError
    return at.restore(dx)


# ---- arguments -------------------------------------------------------------------------------------------------------


cdef class _Checked:
    """Checked arguments of a batch norm."""

    cdef _Layout at
    cdef np.ndarray gain, bias
    cdef object mean, spread  # None, or given


cdef _Checked _check_norm(np.ndarray x, unsigned long long over, gain, bias, mean, spread, spread_name, eps):
    """The checks of a norm that is given its mean and spread, or neither."""
    cdef _Checked self = _Checked.__new__(_Checked)
    cdef tuple units = _units(x, over)
    if (mean is None) != (spread is None):
        _checks.fail(f"mean, {spread_name}", "both for inference or neither for training", "only one of them")
    self.gain = _unit_array(gain, "gain", x, units)
    self.bias = _unit_array(bias, "bias", x, units)
    if mean is not None:
        self.mean = _unit_array(mean, "mean", x, units)
        self.spread = _unit_array(spread, spread_name, x, units)
    _positive(eps)
    if mean is None:
        _not_empty(x, over)
    elif self.spread.size and self.spread.min() < 0:
        _checks.fail(spread_name, "values >= 0", self.spread.min())
    self.at = _layout(x, over)
    return self


cdef np.ndarray _batch(x, int min_ndim):
    cdef np.ndarray array = _float_array(x, "x")
    if np.PyArray_NDIM(array) < min_ndim:
        _checks.float_array(array, "x", min_ndim=min_ndim)
    return array


cdef inline unsigned long long _all_but_second(np.ndarray x) noexcept:
    return ((1ull << np.PyArray_NDIM(x)) - 1) & ~2ull


cdef inline _Checked _check_axes_norm(x, gain, bias, mean, spread, spread_name, axes, eps):
    cdef np.ndarray array = _batch(x, 1)
    return _check_norm(array, _axes(axes, array), gain, bias, mean, spread, spread_name, eps)


cdef inline _Checked _check_channel_norm(x, gain, bias, mean, var, eps):
    cdef np.ndarray array = _batch(x, 2)
    return _check_norm(array, _all_but_second(array), gain, bias, mean, var, "var", eps)


cdef _Layout _statistics_layout(x, axes):
    cdef np.ndarray array = _batch(x, 1)
    cdef unsigned long long over = _axes(axes, array)
    _not_empty(array, over)
    return _layout(array, over)


cdef class _Tokens:
    """Checked arguments of a norm whose channels are the last axis."""

    cdef _Layout at
    cdef np.ndarray gain, bias


cdef _Tokens _check_tokens(x, gain, bias, eps):
    cdef _Tokens self = _Tokens.__new__(_Tokens)
    cdef np.ndarray array = _batch(x, 2)
    cdef int last = np.PyArray_NDIM(array) - 1
    cdef unsigned long long over = (1ull << last) - 1
    cdef tuple units = _units(array, over)
    self.gain = _unit_array(gain, "gain", array, units)
    self.bias = _unit_array(bias, "bias", array, units)
    _positive(eps)
    if np.PyArray_SIZE(array) == 0 and 0 in (<object> array).shape[:last]:
        _checks.fail("x", "at least one token that counts", f"shape {(<object> array).shape}")
    self.at = _layout(array, over)
    return self
