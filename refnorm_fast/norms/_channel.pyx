"""Norms with statistics per channel over the batch: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import BatchNormState, update_running_statistics

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "channel_norm.h":
    ctypedef struct rn_channel_shape:
        size_t outer, channels, inner, ghosts, ghost_outer

    ctypedef struct rn_channel:
        double mean, low, spread, sign, inverse

    ctypedef struct rn_channel_line:
        double mean, low, scale, level, slope

    ctypedef struct rn_channel_norm_table:
        int (*norm_f32)(int, const float *, const float *, const float *, float *, rn_channel_shape, double, double, rn_channel *) nogil
        int (*norm_f64)(int, const double *, const double *, const double *, double *, rn_channel_shape, double, double, rn_channel *) nogil
        int (*backward_f32)(int, const float *, const float *, const float *, float *, rn_channel_shape, double, const rn_channel *, double *) nogil
        int (*backward_f64)(int, const double *, const double *, const double *, double *, rn_channel_shape, double, const rn_channel *, double *) nogil
        int (*sums_f32)(const float *, const float *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*sums_f64)(const double *, const double *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*combine_f32)(const float *, const float *, float *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*combine_f64)(const double *, const double *, double *, rn_channel_shape, const rn_channel_line *, double *) nogil
    const rn_channel_norm_table *rn_channel_norm() nogil

cdef enum Kind:
    BATCH = 0
    L1 = 1
    SQUARE = 2
    MEAN = 3
    GIVEN = 4

# Columns of an array of rn_channel.
MEAN_COLUMN, LOW_COLUMN, SPREAD_COLUMN, SIGN_COLUMN, INVERSE_COLUMN = range(5)


# ---- layout --------------------------------------------------------------------------------------------------------


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
    for axis in _checks.axes(axes, ndim, "axes"):
        over |= 1ull << <int> axis
    return over


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


cdef inline void *_data(array) noexcept:
    return NULL if array is None else np.PyArray_DATA(<np.ndarray> array)


cdef np.ndarray _unit_array(given, name, np.ndarray x, tuple units):
    """`given` as a contiguous array with one entry a channel."""
    cdef np.ndarray array = _float_array(given, name)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(x):
        _checks.same_dtype("x", x, **{name: array})
    if (<object> array).shape != units:
        _checks.shape(array, name, units)
    return array if np.PyArray_IS_C_CONTIGUOUS(array) else _in_order(array)


cdef inline double _positive(eps) except? -1:
    cdef double value = eps
    if not (value > 0 and value < numpy.inf):
        _checks.positive(eps, "eps")
    return value


# ---- calls of the kernels ------------------------------------------------------------------------------------------


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
    cdef np.ndarray channels = _statistics(at)
    (<object> channels)[:, MEAN_COLUMN] = mean.reshape(-1)
    (<object> channels)[:, INVERSE_COLUMN] = inverse.reshape(-1)
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


# ---- batch norm ----------------------------------------------------------------------------------------------------


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


cdef np.ndarray _batch_channels(_Checked c, double eps, int *kind):
    """Statistics to be filled in training, or those that follow from a given mean and variance."""
    if c.mean is None:
        kind[0] = BATCH
        return _statistics(c.at)
    kind[0] = GIVEN
    return _given_statistics(c.at, c.mean, 1 / numpy.sqrt(c.spread.astype(numpy.float64) + eps))


cdef _batch_pullback(_Checked c, np.ndarray channels, int kind):
    def pullback(dy):
        dx, total, product = _backward(kind, c.at, dy, c.gain, channels)
        inverse = (<object> channels)[:, INVERSE_COLUMN]
        dgain, dbias = _as_units(c.at, product * inverse), _as_units(c.at, total)
        if kind == BATCH:
            return dx, dgain, dbias, None, None
        # d inverse / d var = -inverse^3 / 2
        scale = c.gain.reshape(-1) * inverse
        return (dx, dgain, dbias, _as_units(c.at, -scale * total),
                _as_units(c.at, -0.5 * scale * inverse * inverse * product))

    return pullback


def batch_statistics(x, axes=(0,)):
    """Mean and biased variance over the given axes.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    axes : axes of ``x``
        Those that are averaged over; the others index units, each with statistics of its own.

    Returns
    -------
    mean, var : arrays of the shape of ``x`` along the other axes, dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.batch_statistics`.

    Notes
    -----
    Sums of deviations from a guess at the mean, so that a common offset costs no digits. NaN or infinity makes its
    unit's statistics NaN (the mean may be infinite) and no other's.

    References
    ----------
    Ioffe, Szegedy (2015), arXiv 1502.03167, algorithm 1.

    Examples
    --------
    >>> mean, var = batch_statistics(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> mean, var
    (array([ 2., 10.]), array([1., 0.]))
    """
    cdef _Layout at = _statistics_layout(x, axes)
    channels = _statistics(at)
    _norm(BATCH, at, None, None, None, channels, 0)
    return _mean_of(at, channels), _column(at, channels, SPREAD_COLUMN)


cdef _Layout _statistics_layout(x, axes):
    cdef np.ndarray array = _batch(x, 1)
    cdef unsigned long long over = _axes(axes, array)
    _not_empty(array, over)
    return _layout(array, over)


def batch_statistics_vjp(x, axes=(0,)):
    """Return :func:`batch_statistics` and its pullback ``(dmean, dvar) -> (dx,)``.

    Parameters, errors and references are those of :func:`batch_statistics`.

    Notes
    -----
    ``dx = (dmean + 2 dvar (x - mean)) / count``: one sweep.

    Examples
    --------
    >>> statistics, pullback = batch_statistics_vjp(np.array([[1.0], [3.0]]))
    >>> pullback((np.array([2.0]), np.array([1.0])))[0].ravel()
    array([0., 2.])
    """
    cdef _Layout at = _statistics_layout(x, axes)
    channels = _statistics(at)
    _norm(BATCH, at, None, None, None, channels, 0)

    def pullback(cotangent):
        dmean, dvar = (numpy.asarray(entry, dtype=numpy.float64) for entry in cotangent)
        for name, entry in (("dmean", dmean), ("dvar", dvar)):
            _checks.shape(entry, name, at.units)
        line = channels.copy()
        line[:, INVERSE_COLUMN] = (2 * dvar / at.count()).reshape(-1)
        bias = _in_order((dmean / at.count()).reshape(-1).astype(at.x.dtype))
        return (_output(GIVEN, at, None, bias, None, line),)

    return (_mean_of(at, channels), _column(at, channels, SPREAD_COLUMN)), pullback


def batch_norm(x, gain, bias, mean=None, var=None, *, axes=(0,), eps=1e-5, out=None):
    """Normalize each unit over the batch (training) or by given statistics (inference).

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    gain, bias : arrays of the shape of ``x`` along the axes that are not in ``axes``
    mean, var : arrays of the same shape, optional
        Running statistics. Give both for inference, neither for training.
    axes : axes of ``x``
        Those that the statistics are taken over.
    eps : float > 0
        Added to the variance.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.batch_norm`; also if ``out`` does not fit.

    Notes
    -----
    ``y = gain (x - mean) / sqrt(var + eps) + bias``, with the statistics of :func:`batch_statistics` in training.

    References
    ----------
    Ioffe, Szegedy (2015), arXiv 1502.03167, algorithms 1 and 2.

    Examples
    --------
    >>> x, gain, bias = np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1)
    >>> batch_norm(x, gain, bias, eps=1e-9).ravel().round(6)
    array([-1.,  1.])
    >>> batch_norm(x, gain, bias, np.array([1.0]), np.array([4.0]), eps=1e-9).ravel().round(6)
    array([0., 1.])
    """
    cdef _Checked c = _check_axes_norm(x, gain, bias, mean, var, "var", axes, eps)
    cdef int kind
    channels = _batch_channels(c, eps, &kind)
    return _output(kind, c.at, c.gain, c.bias, out, channels, eps)


def batch_norm_vjp(x, gain, bias, mean=None, var=None, *, axes=(0,), eps=1e-5):
    """Return :func:`batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dmean, dvar)``.

    The last two entries are ``None`` in training. Parameters, errors and references are those of
    :func:`batch_norm`.

    Notes
    -----
    One sweep for the sums of ``dy`` and ``dy (x - mean)`` of every channel, one for ``dx``; by given statistics both
    are the same.

    Examples
    --------
    >>> y, pullback = batch_norm_vjp(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1))
    >>> pullback(np.array([[1.0], [0.0]]))[2]
    array([1.])
    """
    cdef _Checked c = _check_axes_norm(x, gain, bias, mean, var, "var", axes, eps)
    cdef int kind
    channels = _batch_channels(c, eps, &kind)
    y = _output(kind, c.at, c.gain, c.bias, None, channels, eps)
    return y, _batch_pullback(c, channels, kind)


def batch_norm_train(x, gain, bias, state, *, momentum=0.1, eps=1e-5):
    """Normalize channels over the batch and move the running statistics.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps.
    gain, bias : arrays (C,)
    state : BatchNormState
        Before this batch.
    momentum : float in [0, 1]
        Weight of the batch in the running statistics.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : BatchNormState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.batch_norm_train`.

    Notes
    -----
    :func:`batch_norm`, and the running statistics from the same sums.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 2.

    Examples
    --------
    >>> from refnorm.norms import BatchNormState
    >>> x, one, zero = np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1)
    >>> y, state = batch_norm_train(x, one, zero, BatchNormState.create(1))
    >>> y.ravel().round(4), state.mean, state.var
    (array([-1.,  1.]), array([0.2]), array([1.1]))
    """
    return batch_norm_train_vjp(x, gain, bias, state, momentum=momentum, eps=eps)[0]


def batch_norm_train_vjp(x, gain, bias, state, *, momentum=0.1, eps=1e-5):
    """Return :func:`batch_norm_train` and its pullback ``dy -> (dx, dgain, dbias)``.

    The state takes no cotangent and gets none.

    Examples
    --------
    >>> from refnorm.norms import BatchNormState
    >>> x, one, zero = np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1)
    >>> (y, state), pullback = batch_norm_train_vjp(x, one, zero, BatchNormState.create(1))
    >>> pullback(np.array([[1.0], [1.0]]))[2]
    array([2.])
    """
    cdef _Checked c = _check_channel_norm(x, gain, bias, None, None, eps)
    cdef int kind
    if c.at.count() < 2:
        _checks.fail("x", "at least two values a channel", f"shape {(<object> c.at.original).shape}")
    channels = _batch_channels(c, eps, &kind)
    y = _output(kind, c.at, c.gain, c.bias, None, channels, eps)
    running = update_running_statistics(
        state.mean, state.var, _mean_of(c.at, channels), _column(c.at, channels, SPREAD_COLUMN), c.at.count(),
        momentum=momentum)
    back = _batch_pullback(c, channels, kind)
    return (y, BatchNormState(*running)), lambda dy: back(dy)[:3]


def batch_norm_eval(x, gain, bias, state, *, eps=1e-5, out=None):
    """Normalize channels by running statistics.

    Parameters
    ----------
    x : array (N, C, ...)
    gain, bias : arrays (C,)
    state : BatchNormState
    eps : float > 0
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.batch_norm_eval`; also if ``out`` does not fit.

    References
    ----------
    Frankle, Schwab, Morcos (2020), arXiv 2003.00152, section 2.

    Examples
    --------
    >>> from refnorm.norms import BatchNormState
    >>> state = BatchNormState(np.array([1.0]), np.array([4.0]))
    >>> batch_norm_eval(np.array([[5.0]]), np.ones(1), np.zeros(1), state, eps=1e-12)
    array([[2.]])
    """
    cdef _Checked c = _check_channel_norm(x, gain, bias, state.mean, state.var, eps)
    cdef int kind
    channels = _batch_channels(c, eps, &kind)
    return _output(kind, c.at, c.gain, c.bias, out, channels, eps)


def batch_norm_eval_vjp(x, gain, bias, state, *, eps=1e-5):
    """Return :func:`batch_norm_eval` and its pullback ``dy -> (dx, dgain, dbias)``.

    Examples
    --------
    >>> from refnorm.norms import BatchNormState
    >>> state = BatchNormState(np.array([1.0]), np.array([4.0]))
    >>> y, pullback = batch_norm_eval_vjp(np.array([[5.0]]), np.ones(1), np.zeros(1), state, eps=1e-12)
    >>> pullback(np.array([[2.0]]))[0]
    array([[1.]])
    """
    cdef _Checked c = _check_channel_norm(x, gain, bias, state.mean, state.var, eps)
    cdef int kind
    channels = _batch_channels(c, eps, &kind)
    y = _output(kind, c.at, c.gain, c.bias, None, channels, eps)
    back = _batch_pullback(c, channels, kind)
    return y, lambda dy: back(dy)[:3]
