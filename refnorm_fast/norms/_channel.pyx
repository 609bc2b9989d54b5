"""Norms with statistics per channel over the batch: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np
from libc.math cimport sqrt

from refnorm.norms import BatchNormState, EvoNormState, GhostBatchState, default_groups, update_running_statistics
from refnorm.norms import l1_batch_statistics_vjp as _reference_l1_batch_statistics_vjp
from refnorm.norms import power_norm_v_vjp as _reference_power_norm_v_vjp
from refnorm.norms import unified_norm_vjp as _reference_unified_norm_vjp
from refnorm.norms._evonorm import _running_var
from refnorm.norms._ghost_batch_norm import _chunks
from refnorm.norms._l1_batch_norm import STD_OVER_DEVIATION
from refnorm.norms._unified_norm import RATIO_FROM, RATIO_LIMIT, _advance, _advance_backward, _check_state, _on_its_own

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
        int (*evonorm_b0_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, double, int, rn_channel *, rn_channel *) nogil
        int (*evonorm_b0_backward_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, double, int, const rn_channel *, const rn_channel *, double *) nogil
        int (*evonorm_s0_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, size_t, double, rn_channel *) nogil
        int (*evonorm_s0_backward_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, size_t, double, const rn_channel *, double *) nogil
        int (*evonorm_b0_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, double, int, rn_channel *, rn_channel *) nogil
        int (*evonorm_b0_backward_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, double, int, const rn_channel *, const rn_channel *, double *) nogil
        int (*evonorm_s0_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, size_t, double, rn_channel *) nogil
        int (*evonorm_s0_backward_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, size_t, double, const rn_channel *, double *) nogil
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
    return _given_moments(c.at, c.mean, c.spread, eps)


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


def batch_statistics(x, axes=_FIRST):
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


def batch_statistics_vjp(x, axes=_FIRST):
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


def batch_norm(x, gain, bias, mean=None, var=None, *, axes=_FIRST, eps=1e-5, out=None):
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


def batch_norm_vjp(x, gain, bias, mean=None, var=None, *, axes=_FIRST, eps=1e-5):
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


# ---- ghost batch norm ----------------------------------------------------------------------------------------------


cdef class _Ghosts:
    """Checked arguments of a ghost batch norm, with a layout that is cut along the batch."""

    cdef _Layout at
    cdef np.ndarray gain, bias
    cdef list chunks


cdef _Ghosts _check_ghosts(x, gain, bias, ghost_size, eps, merge_last):
    cdef _Ghosts self = _Ghosts.__new__(_Ghosts)
    cdef np.ndarray array = _batch(x, 2)
    cdef unsigned long long over = _all_but_second(array)
    cdef tuple units = _units(array, over)
    self.gain = _unit_array(gain, "gain", array, units)
    self.bias = _unit_array(bias, "bias", array, units)
    _positive(eps)
    self.chunks = _chunks(array, ghost_size, merge_last)
    self.at = _layout(array, over, True)
    cdef size_t rows_of_example = self.at.shape.outer // <size_t> np.PyArray_DIM(array, 0)
    self.at.shape.ghosts = len(self.chunks)
    self.at.shape.ghost_outer = rows_of_example * <size_t> (self.chunks[0].stop - self.chunks[0].start)
    return self


cdef _ghost_pullback(_Ghosts c, np.ndarray channels):
    def pullback(dy):
        dx, total, product = _backward(BATCH, c.at, dy, c.gain, channels)
        ghosts = (len(c.chunks), -1)
        dgain = (product * (<object> channels)[:, INVERSE_COLUMN]).reshape(ghosts).sum(axis=0)
        return dx, _as_units(c.at, dgain), _as_units(c.at, total.reshape(ghosts).sum(axis=0))

    return pullback


def ghost_batch_norm(x, gain, bias, *, ghost_size=128, eps=1e-5, merge_last=False, out=None):
    """Batch norm with the statistics of small parts of the batch.

    Parameters
    ----------
    x : array (N, C, ...)
        Batch, cut along its first axis.
    gain, bias : arrays (C,)
    ghost_size : int >= 1
        Examples of a ghost batch; the last one has what is left.
    eps : float > 0
        Added to the variance.
    merge_last : bool
        Whether a last ghost batch that is too small joins the one before.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.ghost_batch_norm`; also if ``out`` does not fit.

    Notes
    -----
    :func:`batch_norm` of every ghost batch: what fits a core's cache is read from memory once.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, section 4.

    Examples
    --------
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> ghost_batch_norm(x, np.ones(1), np.zeros(1), ghost_size=2).ravel().round(3)
    array([-1.,  1., -1.,  1.])
    """
    cdef _Ghosts c = _check_ghosts(x, gain, bias, ghost_size, eps, merge_last)
    return _output(BATCH, c.at, c.gain, c.bias, out, _statistics(c.at), eps)


def ghost_batch_norm_vjp(x, gain, bias, *, ghost_size=128, eps=1e-5, merge_last=False):
    """Return :func:`ghost_batch_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Examples
    --------
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, pullback = ghost_batch_norm_vjp(x, np.ones(1), np.zeros(1), ghost_size=2)
    >>> pullback(np.ones((4, 1)))[2]
    array([4.])
    """
    cdef _Ghosts c = _check_ghosts(x, gain, bias, ghost_size, eps, merge_last)
    channels = _statistics(c.at)
    y = _output(BATCH, c.at, c.gain, c.bias, None, channels, eps)
    return y, _ghost_pullback(c, channels)


def ghost_batch_norm_train(x, gain, bias, state, *, ghost_size=128, momentum=0.1, eps=1e-5, merge_last=False):
    """Ghost batch norm that moves the running statistics, once a ghost batch.

    Parameters
    ----------
    x : array (N, C, ...)
    gain, bias : arrays (C,)
    state : GhostBatchState
        Before this batch.
    ghost_size : int >= 1
    momentum : float in [0, 1]
        Weight of one ghost batch in the running statistics.
    eps : float > 0
    merge_last : bool

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : GhostBatchState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.ghost_batch_norm_train`.

    Notes
    -----
    :func:`ghost_batch_norm`, and the running statistics from the same sums.

    References
    ----------
    Hoffer, Hubara, Soudry (2017), arXiv 1705.08741, algorithm 1.

    Examples
    --------
    >>> from refnorm.norms import GhostBatchState
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, state = ghost_batch_norm_train(x, np.ones(1), np.zeros(1), GhostBatchState.create(1), ghost_size=2)
    >>> state.mean.round(3)
    array([2.18])
    """
    return ghost_batch_norm_train_vjp(
        x, gain, bias, state, ghost_size=ghost_size, momentum=momentum, eps=eps, merge_last=merge_last)[0]


def ghost_batch_norm_train_vjp(x, gain, bias, state, *, ghost_size=128, momentum=0.1, eps=1e-5, merge_last=False):
    """Return :func:`ghost_batch_norm_train` and its pullback ``dy -> (dx, dgain, dbias)``.

    The state takes no cotangent and gets none.

    Examples
    --------
    >>> from refnorm.norms import GhostBatchState
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> (y, state), pullback = ghost_batch_norm_train_vjp(x, np.ones(1), np.zeros(1), GhostBatchState.create(1))
    >>> pullback(np.ones((4, 1)))[2]
    array([4.])
    """
    cdef _Ghosts c = _check_ghosts(x, gain, bias, ghost_size, eps, merge_last)
    channels = _statistics(c.at)
    y = _output(BATCH, c.at, c.gain, c.bias, None, channels, eps)
    mean, var = _float_array(state.mean, "state.mean"), _float_array(state.var, "state.var")
    for name, array in (("state.mean", mean), ("state.var", var)):
        _checks.same_dtype("x", c.at.original, **{name: array})
        _checks.shape(array, name, c.at.units)
    places = c.at.original.size // (len(c.at.original) * len(mean))
    running = (mean.astype(numpy.float64), var.astype(numpy.float64))
    for chunk, found in zip(c.chunks, channels.reshape(len(c.chunks), len(mean), 5)):
        running = update_running_statistics(
            *running, found[:, MEAN_COLUMN] + found[:, LOW_COLUMN], found[:, SPREAD_COLUMN],
            (chunk.stop - chunk.start) * places, momentum=momentum)
    after = GhostBatchState(running[0].astype(mean.dtype), running[1].astype(var.dtype))
    return (y, after), _ghost_pullback(c, channels)


# ---- L1 batch norm -------------------------------------------------------------------------------------------------


def l1_batch_statistics(x, axes=_FIRST):
    """Mean and mean absolute deviation over the given axes.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    axes : axes of ``x``

    Returns
    -------
    mean, deviation : arrays of the shape of ``x`` along the other axes, dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.l1_batch_statistics`.

    References
    ----------
    Wu et al. (2018), arXiv 1802.09769, equation 3.

    Examples
    --------
    >>> l1_batch_statistics(np.array([[1.0], [5.0]]))
    (array([3.]), array([2.]))
    """
    cdef _Layout at = _statistics_layout(x, axes)
    channels = _statistics(at)
    _norm(L1, at, None, None, None, channels, 0)
    return _mean_of(at, channels), _column(at, channels, SPREAD_COLUMN)


def l1_batch_statistics_vjp(x, axes=_FIRST):
    """Return :func:`l1_batch_statistics` and its pullback ``(dmean, ddeviation) -> (dx,)``, which is the reference's.

    Examples
    --------
    >>> statistics, pullback = l1_batch_statistics_vjp(np.array([[1.0], [5.0]]))
    >>> pullback((np.array([0.0]), np.array([2.0])))[0].ravel()
    array([-1.,  1.])
    """
    value = l1_batch_statistics(x, axes)
    return value, lambda cotangent: _reference_l1_batch_statistics_vjp(x, axes)[1](cotangent)


cdef np.ndarray _l1_channels(_Checked c, double eps, double factor, int *kind):
    if c.mean is None:
        kind[0] = L1
        return _statistics(c.at)
    kind[0] = GIVEN
    return _given_statistics(c.at, c.mean, 1 / (factor * c.spread.astype(numpy.float64) + eps))


def l1_batch_norm(x, gain, bias, mean=None, deviation=None, *, axes=_FIRST, eps=1e-5, match_std=False, out=None):
    """Batch norm that divides by the mean absolute deviation.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    gain, bias : arrays of the shape of ``x`` along the axes that are not in ``axes``
    mean, deviation : arrays of the same shape, optional
        Running statistics. Give both for inference, neither for training.
    axes : axes of ``x``
        Those that the statistics are taken over.
    eps : float > 0
        Added to the divisor.
    match_std : bool
        Multiply the deviation by the root of pi / 2, so that it estimates the standard deviation of normal values.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.l1_batch_norm`; also if ``out`` does not fit.

    Notes
    -----
    Three sweeps: the mean, the deviation from it, the result.

    References
    ----------
    Wu et al. (2018), arXiv 1802.09769, equation 4.

    Examples
    --------
    >>> l1_batch_norm(np.array([[1.0], [5.0]]), np.ones(1), np.zeros(1), eps=1e-12).ravel()
    array([-1.,  1.])
    """
    cdef _Checked c = _check_axes_norm(x, gain, bias, mean, deviation, "deviation", axes, eps)
    cdef double factor = STD_OVER_DEVIATION if match_std else 1.0
    cdef int kind
    channels = _l1_channels(c, eps, factor, &kind)
    return _output(kind, c.at, c.gain, c.bias, out, channels, eps, factor)


def l1_batch_norm_vjp(x, gain, bias, mean=None, deviation=None, *, axes=_FIRST, eps=1e-5, match_std=False):
    """Return :func:`l1_batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dmean, ddeviation)``.

    The last two entries are ``None`` in training. Parameters, errors and references are those of
    :func:`l1_batch_norm`.

    Examples
    --------
    >>> y, pullback = l1_batch_norm_vjp(np.array([[1.0], [5.0]]), np.ones(1), np.zeros(1))
    >>> pullback(np.array([[1.0], [0.0]]))[2]
    array([1.])
    """
    cdef _Checked c = _check_axes_norm(x, gain, bias, mean, deviation, "deviation", axes, eps)
    cdef double factor = STD_OVER_DEVIATION if match_std else 1.0
    cdef int kind
    channels = _l1_channels(c, eps, factor, &kind)
    y = _output(kind, c.at, c.gain, c.bias, None, channels, eps, factor)

    def pullback(dy):
        dx, total, product = _backward(kind, c.at, dy, c.gain, channels, factor)
        inverse = (<object> channels)[:, INVERSE_COLUMN]
        dgain, dbias = _as_units(c.at, product * inverse), _as_units(c.at, total)
        if kind == L1:
            return dx, dgain, dbias, None, None
        # d inverse / d deviation = -factor inverse^2
        scale = c.gain.reshape(-1) * inverse
        return dx, dgain, dbias, _as_units(c.at, -scale * total), _as_units(c.at, -factor * scale * inverse * product)

    return y, pullback


# ---- mean-only batch norm ------------------------------------------------------------------------------------------


cdef class _MeanOnly:
    cdef _Layout at
    cdef np.ndarray bias
    cdef object mean


cdef _MeanOnly _check_mean_only(x, bias, mean, axes):
    cdef _MeanOnly self = _MeanOnly.__new__(_MeanOnly)
    cdef np.ndarray array = _batch(x, 1)
    cdef unsigned long long over = _axes(axes, array)
    cdef tuple units = _units(array, over)
    self.bias = _unit_array(bias, "bias", array, units)
    if mean is None:
        _not_empty(array, over)
    else:
        self.mean = _unit_array(mean, "mean", array, units)
    self.at = _layout(array, over)
    return self


cdef _mean_only(_MeanOnly c, out):
    if c.mean is None:
        return _output(MEAN, c.at, None, c.bias, out, _statistics(c.at))
    return _output(GIVEN, c.at, None, c.bias, out, _given_statistics(c.at, c.mean, numpy.ones(c.at.shape.channels)))


def mean_only_batch_norm(x, bias, mean=None, *, axes=_FIRST, out=None):
    """Subtract each unit's mean over the batch, and leave its scale to the weights.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    bias : array of the shape of ``x`` along the axes that are not in ``axes``
        Added after the mean is gone.
    mean : array of the same shape, optional
        Running mean, for inference; left out in training.
    axes : axes of ``x``
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.mean_only_batch_norm`; also if ``out`` does not fit.

    References
    ----------
    Salimans, Kingma (2016), arXiv 1602.07868, equations 11 and 12.

    Examples
    --------
    >>> mean_only_batch_norm(np.array([[1.0], [5.0]]), np.array([10.0])).ravel()
    array([ 8., 12.])
    """
    return _mean_only(_check_mean_only(x, bias, mean, axes), out)


def mean_only_batch_norm_vjp(x, bias, mean=None, *, axes=_FIRST):
    """Return :func:`mean_only_batch_norm` and its pullback ``dy -> (dx, dbias, dmean)``.

    The last entry is ``None`` in training.

    Notes
    -----
    Centring is a symmetric projection: its pullback centres the cotangent.

    Examples
    --------
    >>> y, pullback = mean_only_batch_norm_vjp(np.array([[1.0], [5.0]]), np.array([10.0]))
    >>> pullback(np.array([[1.0], [0.0]]))[0].ravel()
    array([ 0.5, -0.5])
    """
    cdef _MeanOnly c = _check_mean_only(x, bias, mean, axes)

    def pullback(dy):
        # The input itself plays no part: the kernel is given the cotangent in its place.
        cdef _Layout at = _another(c.at, dy)
        channels = _given_statistics(at, numpy.zeros(at.shape.channels), numpy.ones(at.shape.channels))
        dx, total, _ = _backward(MEAN if c.mean is None else GIVEN, at, dy, None, channels)
        dbias = _as_units(at, total)
        return dx, dbias, None if c.mean is None else -dbias

    return _mean_only(c, None), pullback


cdef _Layout _another(_Layout at, dy):
    """The layout of a cotangent."""
    cdef _Layout self = _Layout.__new__(_Layout)
    self.shape = at.shape
    self.units, self.order, self.inverse = at.units, at.order, at.inverse
    self.original = at.original
    self.x = at.cotangent(dy)
    return self


# ---- EvoNorm -------------------------------------------------------------------------------------------------------


cdef class _Evo:
    """Checked arguments of an EvoNorm, and the statistics that its pullback needs."""

    cdef _Layout at
    cdef np.ndarray gain, bias, slope, channels, instances
    cdef size_t groups
    cdef bint training
    cdef double eps


cdef _Evo _check_evonorm(x, gain, bias, slope, eps):
    cdef _Evo self = _Evo.__new__(_Evo)
    cdef np.ndarray array = _float_array(x, "x")
    if np.PyArray_NDIM(array) != 4:
        _checks.float_array(array, "x", ndim=4)
    cdef tuple units = _units(array, 0b1101)
    self.gain = _unit_array(gain, "gain", array, units)
    self.bias = _unit_array(bias, "bias", array, units)
    self.slope = _unit_array(slope, "slope", array, units)
    _not_empty(array, 0b1111)
    self.eps = _positive(eps)
    # The kernels read the places of a channel in one piece.
    self.at = _Layout.__new__(_Layout)
    self.at.original = array
    self.at.units = units
    self.at.x = _in_order(array)
    _fits(self.at.x, 0b1101, None, &self.at.shape)
    self.at.shape.outer = np.PyArray_DIM(array, 0)
    self.at.shape.inner = np.PyArray_DIM(array, 2) * np.PyArray_DIM(array, 3)
    return self


cdef _linear_evonorm(_Evo c, out):
    """gain * x + bias, which is left without the nonlinearity."""
    channels = _given_statistics(c.at, numpy.zeros(c.at.shape.channels), numpy.ones(c.at.shape.channels))

    def pullback(dy):
        dx, total, product = _backward(GIVEN, c.at, dy, c.gain, channels)
        return dx, _as_units(c.at, product), _as_units(c.at, total), numpy.zeros_like(c.slope)

    return _output(GIVEN, c.at, c.gain, c.bias, out, channels), pullback


cdef _evonorm(_Evo c, out):
    """B0, or S0 where there are groups."""
    cdef np.ndarray y
    if out is None:
        y = _fresh(c.at.x)
    else:
        _check_out(out, c.at.original)
        y = <np.ndarray> out
        if not (np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y) and (_identical(c.at.x, y) or _apart(c.at.x, y))
                and _apart(c.gain, y) and _apart(c.bias, y) and _apart(c.slope, y)):
            y[...] = _evonorm(c, None)
            return y
    cdef void *x = np.PyArray_DATA(c.at.x)
    cdef void *gain = np.PyArray_DATA(c.gain)
    cdef void *bias = np.PyArray_DATA(c.bias)
    cdef void *slope = np.PyArray_DATA(c.slope)
    cdef void *to = np.PyArray_DATA(y)
    cdef rn_channel *channels = <rn_channel *> _data(c.channels)
    cdef rn_channel *instances = <rn_channel *> np.PyArray_DATA(c.instances)
    cdef bint single = np.PyArray_TYPE(c.at.x) == np.NPY_FLOAT
    cdef rn_channel_shape shape = c.at.shape
    cdef size_t groups = c.groups
    cdef int training = c.training, failed
    cdef double eps = c.eps
    with nogil:
        if groups and single:
            failed = rn_channel_norm().evonorm_s0_f32(<const float *> x, <const float *> gain, <const float *> bias, <const float *> slope, <float *> to, shape, groups, eps, instances)
        elif groups:
            failed = rn_channel_norm().evonorm_s0_f64(<const double *> x, <const double *> gain, <const double *> bias, <const double *> slope, <double *> to, shape, groups, eps, instances)
        elif single:
            failed = rn_channel_norm().evonorm_b0_f32(<const float *> x, <const float *> gain, <const float *> bias, <const float *> slope, <float *> to, shape, eps, training, channels, instances)
        else:
            failed = rn_channel_norm().evonorm_b0_f64(<const double *> x, <const double *> gain, <const double *> bias, <const double *> slope, <double *> to, shape, eps, training, channels, instances)
    if failed:
        raise MemoryError
    return y


cdef _evonorm_backward(_Evo c, dy):
    """``(dx, dgain, dbias, dslope)``"""
    cdef np.ndarray g = c.at.cotangent(dy)
    cdef np.ndarray dx = _fresh(c.at.x)
    cdef np.ndarray sums = numpy.empty((len(c.gain), 3))
    cdef void *x = np.PyArray_DATA(c.at.x)
    cdef void *up = np.PyArray_DATA(g)
    cdef void *gain = np.PyArray_DATA(c.gain)
    cdef void *slope = np.PyArray_DATA(c.slope)
    cdef void *to = np.PyArray_DATA(dx)
    cdef double *total = <double *> np.PyArray_DATA(sums)
    cdef const rn_channel *channels = <const rn_channel *> _data(c.channels)
    cdef const rn_channel *instances = <const rn_channel *> np.PyArray_DATA(c.instances)
    cdef bint single = np.PyArray_TYPE(c.at.x) == np.NPY_FLOAT
    cdef rn_channel_shape shape = c.at.shape
    cdef size_t groups = c.groups
    cdef int training = c.training, failed
    cdef double eps = c.eps
    with nogil:
        if groups and single:
            failed = rn_channel_norm().evonorm_s0_backward_f32(<const float *> x, <const float *> up, <const float *> gain, <const float *> slope, <float *> to, shape, groups, eps, instances, total)
        elif groups:
            failed = rn_channel_norm().evonorm_s0_backward_f64(<const double *> x, <const double *> up, <const double *> gain, <const double *> slope, <double *> to, shape, groups, eps, instances, total)
        elif single:
            failed = rn_channel_norm().evonorm_b0_backward_f32(<const float *> x, <const float *> up, <const float *> gain, <const float *> slope, <float *> to, shape, eps, training, channels, instances, total)
        else:
            failed = rn_channel_norm().evonorm_b0_backward_f64(<const double *> x, <const double *> up, <const double *> gain, <const double *> slope, <double *> to, shape, eps, training, channels, instances, total)
    if failed:
        raise MemoryError
    return (dx, *[_as_units(c.at, (<object> sums)[:, k]) for k in range(3)])


cdef _Evo _check_s0(x, gain, bias, slope, groups, eps):
    cdef _Evo c = _check_evonorm(x, gain, bias, slope, eps)
    channels = len(c.gain)
    chosen = default_groups(channels) if groups is None else _checks.whole(groups, "groups", low=1)
    if channels % chosen:
        _checks.fail("groups", f"a divisor of the {channels} channels", chosen)
    c.groups = chosen
    if channels // c.groups * c.at.shape.inner < 2:
        shape = (<object> c.at.original).shape
        _checks.fail("x", "at least two entries in a group", f"shape {shape} with {chosen} groups")
    c.instances = numpy.empty((c.at.shape.outer * c.groups, 5))
    return c


def evonorm_s0(x, gain, bias, slope, *, groups=None, eps=1e-5, nonlinearity=True, out=None):
    """EvoNorm-S0: a swish divided by the deviation of a group of channels.

    Parameters
    ----------
    x : array (N, C, H, W)
    gain, bias, slope : arrays (C,)
    groups : int >= 1, optional
        Number of groups, a divisor of C; left out: the largest up to 32.
    eps : float > 0
        Added to the variance.
    nonlinearity : bool
        If false, ``gain * x + bias``.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.evonorm_s0`; also if ``out`` does not fit.

    Notes
    -----
    ``gain * x * sigmoid(slope * x) / std + bias``. The moments are those of :func:`batch_statistics`.

    References
    ----------
    Liu, Brock, Simonyan, Le (2020), arXiv 2004.02967, section 4.

    Examples
    --------
    >>> x = np.array([1.0, -1.0]).reshape(1, 1, 1, 2)
    >>> evonorm_s0(x, np.ones(1), np.zeros(1), np.ones(1), eps=1e-12).ravel().round(4)
    array([ 0.7311, -0.2689])
    """
    cdef _Evo c = _check_s0(x, gain, bias, slope, groups, eps)
    return _evonorm(c, out) if nonlinearity else _linear_evonorm(c, out)[0]


def evonorm_s0_vjp(x, gain, bias, slope, *, groups=None, eps=1e-5, nonlinearity=True):
    """Return :func:`evonorm_s0` and its pullback ``dy -> (dx, dgain, dbias, dslope)``.

    Examples
    --------
    >>> x, one = np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.ones(1)
    >>> y, pullback = evonorm_s0_vjp(x, one, one, one)
    >>> pullback(np.ones((1, 1, 1, 2)))[2]
    array([2.])
    """
    cdef _Evo c = _check_s0(x, gain, bias, slope, groups, eps)
    if not nonlinearity:
        return _linear_evonorm(c, None)
    return _evonorm(c, None), lambda dy: _evonorm_backward(c, dy)


cdef _Evo _check_b0(x, gain, bias, slope, state, eps, bint training):
    cdef _Evo c = _check_evonorm(x, gain, bias, slope, eps)
    old = _running_var(state, c.at.original)
    c.training = training
    c.channels = _statistics(c.at)
    (<object> c.channels)[:, SPREAD_COLUMN] = old
    c.instances = numpy.empty((c.at.shape.outer * c.at.shape.channels, 5))
    return c


def evonorm_b0_train(x, gain, bias, slope, state, *, decay=0.9, eps=1e-5, nonlinearity=True):
    """EvoNorm-B0 with the batch's deviation, and the running variance moved.

    Parameters
    ----------
    x : array (N, C, H, W)
    gain, bias, slope : arrays (C,)
    state : EvoNormState
        Before this batch.
    decay : float in [0, 1]
        Weight of the running variance before.
    eps : float > 0
        Added to both variances.
    nonlinearity : bool
        If false, ``gain * x + bias``, and the state is left as it is.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : EvoNormState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.evonorm_b0_train`.

    Notes
    -----
    ``gain * x / max(std_batch, slope * x + std_instance) + bias``; the batch's moments follow from the instances'.

    References
    ----------
    Liu, Brock, Simonyan, Le (2020), arXiv 2004.02967, section 4.

    Examples
    --------
    >>> from refnorm.norms import EvoNormState
    >>> x, one = np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.ones(1)
    >>> y, state = evonorm_b0_train(x, one, 0 * one, one, EvoNormState.create(1), eps=1e-12)
    >>> y.ravel().round(4)
    array([ 0.5, -1. ])
    """
    return evonorm_b0_train_vjp(x, gain, bias, slope, state, decay=decay, eps=eps, nonlinearity=nonlinearity)[0]


def evonorm_b0_train_vjp(x, gain, bias, slope, state, *, decay=0.9, eps=1e-5, nonlinearity=True):
    """Return :func:`evonorm_b0_train` and its pullback ``dy -> (dx, dgain, dbias, dslope)``.

    Examples
    --------
    >>> from refnorm.norms import EvoNormState
    >>> x, one = np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.ones(1)
    >>> (y, state), pullback = evonorm_b0_train_vjp(x, one, one, one, EvoNormState.create(1))
    >>> pullback(np.ones((1, 1, 1, 2)))[2]
    array([2.])
    """
    cdef _Evo c = _check_b0(x, gain, bias, slope, state, eps, True)
    _checks.in_range(decay, "decay", 0, 1)
    old = state.var
    if not nonlinearity:
        y, pullback = _linear_evonorm(c, None)
        return (y, EvoNormState(old)), pullback
    y = _evonorm(c, None)
    moved = decay * old + (1 - decay) * (<object> c.channels)[:, SPREAD_COLUMN]
    return (y, EvoNormState(moved.astype(old.dtype))), lambda dy: _evonorm_backward(c, dy)


def evonorm_b0_eval(x, gain, bias, slope, state, *, eps=1e-5, nonlinearity=True, out=None):
    """EvoNorm-B0 with the running variance.

    Parameters
    ----------
    x : array (N, C, H, W)
    gain, bias, slope : arrays (C,)
    state : EvoNormState
    eps : float > 0
    nonlinearity : bool
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.evonorm_b0_eval`; also if ``out`` does not fit.

    References
    ----------
    Liu, Brock, Simonyan, Le (2020), arXiv 2004.02967, section 4.

    Examples
    --------
    >>> from refnorm.norms import EvoNormState
    >>> x, one = np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.ones(1)
    >>> evonorm_b0_eval(x, one, 0 * one, one, EvoNormState(4 * one), eps=1e-12).ravel().round(4)
    array([ 0.5, -0.5])
    """
    cdef _Evo c = _check_b0(x, gain, bias, slope, state, eps, False)
    return _evonorm(c, out) if nonlinearity else _linear_evonorm(c, out)[0]


def evonorm_b0_eval_vjp(x, gain, bias, slope, state, *, eps=1e-5, nonlinearity=True):
    """Return :func:`evonorm_b0_eval` and its pullback ``dy -> (dx, dgain, dbias, dslope)``.

    Examples
    --------
    >>> from refnorm.norms import EvoNormState
    >>> x, one = np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.ones(1)
    >>> y, pullback = evonorm_b0_eval_vjp(x, one, one, one, EvoNormState(4 * one))
    >>> pullback(np.ones((1, 1, 1, 2)))[2]
    array([2.])
    """
    cdef _Evo c = _check_b0(x, gain, bias, slope, state, eps, False)
    if not nonlinearity:
        return _linear_evonorm(c, None)
    return _evonorm(c, None), lambda dy: _evonorm_backward(c, dy)


# ---- quadratic means over the tokens -------------------------------------------------------------------------------


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


def power_norm_v(x, gain, bias, *, eps=1e-5, mask=None, out=None):
    """Divide channels by the root of their mean square over the batch.

    Parameters
    ----------
    x : array (..., C)
        Tokens.
    gain, bias : arrays (C,)
    eps : float > 0
        Added to the mean square.
    mask : boolean array (...), optional
        Tokens that count; with one, the reference does the work.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.power_norm_v`; also if ``out`` does not fit.

    References
    ----------
    Shen et al. (2020), arXiv 2003.07845, section 4.1.

    Examples
    --------
    >>> power_norm_v(np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1), eps=1e-12).ravel().round(4)
    array([0.8485, 1.1314])
    """
    cdef _Tokens c
    if mask is not None:
        y = _reference_power_norm_v_vjp(x, gain, bias, eps=eps, mask=mask)[0]
        if out is None:
            return y
        _check_out(out, y)
        out[...] = y
        return out
    c = _check_tokens(x, gain, bias, eps)
    return _output(SQUARE, c.at, c.gain, c.bias, out, _statistics(c.at), eps)


def power_norm_v_vjp(x, gain, bias, *, eps=1e-5, mask=None):
    """Return :func:`power_norm_v` and its pullback ``dy -> (dx, dgain, dbias)``.

    Examples
    --------
    >>> y, pullback = power_norm_v_vjp(np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1))
    >>> pullback(np.array([[1.0], [1.0]]))[2]
    array([2.])
    """
    cdef _Tokens c
    if mask is not None:
        return _reference_power_norm_v_vjp(x, gain, bias, eps=eps, mask=mask)
    c = _check_tokens(x, gain, bias, eps)
    channels = _statistics(c.at)
    y = _output(SQUARE, c.at, c.gain, c.bias, None, channels, eps)

    def pullback(dy):
        dx, total, product = _backward(SQUARE, c.at, dy, c.gain, channels)
        return dx, _as_units(c.at, product * channels[:, INVERSE_COLUMN]), _as_units(c.at, total)

    return y, pullback


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


def unified_norm(x, gain, bias, state, *, momentum=0.9, warmup=4000, outlier_filtration=False, eps=1e-5, mask=None,
                 training=True):
    """Divide channels by a mean square that is smoothed over the last batches.

    Parameters
    ----------
    x : array (..., C)
        Tokens.
    gain, bias : arrays (C,)
    state : UnifiedNormState
        Before this batch.
    momentum : float in (0, 1)
    warmup : int >= 0
    outlier_filtration : bool
    eps : float > 0
    mask : boolean array (...), optional
        Tokens that count; with one, the reference does the work.
    training : bool

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : UnifiedNormState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.unified_norm`.

    Notes
    -----
    One sweep for the mean squares, one for the output; what is kept per channel moves as in the reference.

    References
    ----------
    Yang et al. (2022), arXiv 2208.01313, section 3.

    Examples
    --------
    >>> from refnorm.norms import UnifiedNormState
    >>> x, one = np.array([[3.0], [4.0]]), np.ones(1)
    >>> y, state = unified_norm(x, one, 0 * one, UnifiedNormState.create(1), eps=1e-12)
    >>> y.ravel().round(4)
    array([0.8485, 1.1314])
    """
    return unified_norm_vjp(x, gain, bias, state, momentum=momentum, warmup=warmup, outlier_filtration=outlier_filtration,
                            eps=eps, mask=mask, training=training)[0]


def unified_norm_vjp(x, gain, bias, state, *, momentum=0.9, warmup=4000, outlier_filtration=False, eps=1e-5, mask=None,
                     training=True):
    """Return :func:`unified_norm` and its pullback ``dy -> ((dx, dgain, dbias), state)``.

    Examples
    --------
    >>> from refnorm.norms import UnifiedNormState
    >>> x, one = np.array([[3.0], [4.0]]), np.ones(1)
    >>> (y, state), pullback = unified_norm_vjp(x, one, 0 * one, UnifiedNormState.create(1))
    >>> pullback(np.array([[1.0], [1.0]]))[0][2]
    array([2.])
    """
    cdef _Tokens c
    if mask is not None:
        return _reference_unified_norm_vjp(
            x, gain, bias, state, momentum=momentum, warmup=warmup, outlier_filtration=outlier_filtration, eps=eps,
            mask=mask, training=training)
    c = _check_tokens(x, gain, bias, eps)
    _check_state(state, c.at.original)
    _checks.in_range(momentum, "momentum", 0, 1, closed="neither")
    warmup = _checks.whole(warmup, "warmup", low=0)
    running = state.mean_square.astype(numpy.float64)
    used, ratio, after, alone = running, 1.0, state, True
    if training:
        channels = _statistics(c.at)
        _norm(SQUARE, c.at, None, None, None, channels, 0)
        square = channels[:, SPREAD_COLUMN].copy()
        used, after, alone = _advance(state, square, warmup, outlier_filtration, momentum)
        if alone or _on_its_own(after, warmup, len(state.forward_buffer)):
            used = square
        if not alone and after.iteration > max(RATIO_FROM, warmup):
            ratio = numpy.sqrt((used + eps) / (running + eps)).clip(1 / RATIO_LIMIT, RATIO_LIMIT)
    inverse = 1 / numpy.sqrt(used + eps)
    y = _output(GIVEN, c.at, c.gain, c.bias, None, _given_statistics(c.at, numpy.zeros(len(running)), inverse))

    def pullback(dy):
        cdef np.ndarray g = c.at.cotangent(dy)
        total, product = _products(c.at, g)
        scale, slope, final = c.gain * ratio * inverse, 0.0, after
        if training:
            along = scale * product / c.at.count()
            part, final = _advance_backward(after, along, warmup, alone, momentum)
            slope = -inverse * inverse * part
        dx = _combined(c.at, g, scale, slope)
        return (dx, _as_units(c.at, product * inverse * ratio), _as_units(c.at, total)), final

    return (y, after), pullback


# ---- a mixture of given and own statistics -------------------------------------------------------------------------


cdef class _Mixture:
    """Checked arguments of an alpha batch norm, its statistics and the output's."""

    cdef _Layout at
    cdef np.ndarray gain, bias
    cdef object own_mean, gap, inverse, mean
    cdef double correction, between


cdef _Mixture _mixture(x, gain, bias, source_mean, source_var, source_weight, ddof, moments, eps):
    cdef _Mixture self = _Mixture.__new__(_Mixture)
    cdef np.ndarray array = _batch(x, 2)
    cdef unsigned long long over = _all_but_second(array)
    cdef tuple units = _units(array, over)
    self.gain, self.bias = _unit_array(gain, "gain", array, units), _unit_array(bias, "bias", array, units)
    given_mean = _unit_array(source_mean, "source_mean", array, units)
    given_var = _unit_array(source_var, "source_var", array, units)
    if given_var.size and given_var.min() < 0:
        _checks.fail("source_var", "values >= 0", given_var.min())
    _checks.in_range(source_weight, "source_weight", 0, 1)
    _checks.one_of(ddof, "ddof", (0, 1))
    _checks.one_of(moments, "moments", ("linear", "mixture"))
    _not_empty(array, over)
    _positive(eps)
    self.at = _layout(array, over)
    own = _statistics(self.at)
    _norm(BATCH, self.at, None, None, None, own, 0)
    cdef size_t count = self.at.count()
    self.own_mean = own[:, MEAN_COLUMN] + own[:, LOW_COLUMN]
    self.gap = given_mean.astype(numpy.float64) - self.own_mean
    self.correction = count / <double> (count - ddof) if count > 1 else 1.0
    self.between = source_weight * (1 - source_weight) if moments == "mixture" else 0.0
    self.mean = source_weight * given_mean.astype(numpy.float64) + (1 - source_weight) * self.own_mean
    var = source_weight * given_var.astype(numpy.float64)
    var = var + (1 - source_weight) * self.correction * own[:, SPREAD_COLUMN]
    if self.between:
        var = var + self.between * self.gap * self.gap
    self.inverse = 1 / numpy.sqrt(var + eps)
    return self


def alpha_batch_norm(x, gain, bias, source_mean, source_var, *, source_weight=0.9, ddof=1, moments="linear", eps=1e-5,
                     detach_stats=False, out=None):
    """Normalize a test batch by a mixture of the training statistics and its own.

    Parameters
    ----------
    x : array (N, C, ...)
        Test batch.
    gain, bias : arrays (C,)
    source_mean, source_var : arrays (C,)
        Running statistics.
    source_weight : float in [0, 1]
        Weight of the running statistics.
    ddof : {0, 1}
    moments : {"linear", "mixture"}
    eps : float > 0
        Added to the variance.
    detach_stats : bool
        Treat the test statistics as constants in the backward pass.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.alpha_batch_norm`; also if ``out`` does not fit.

    References
    ----------
    You, Li, Zhao (2021), arXiv 2110.04065, the section on alpha-BN.

    Examples
    --------
    >>> x, one, zero = np.array([[2.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> alpha_batch_norm(x, one, zero, zero, one, source_weight=0.5, ddof=0, eps=1e-12).ravel().round(4)
    array([0.5, 2.5])
    """
    cdef _Mixture c = _mixture(x, gain, bias, source_mean, source_var, source_weight, ddof, moments, eps)
    return _output(GIVEN, c.at, c.gain, c.bias, out, _given_statistics(c.at, c.mean, c.inverse))


def alpha_batch_norm_vjp(x, gain, bias, source_mean, source_var, *, source_weight=0.9, ddof=1, moments="linear",
                         eps=1e-5, detach_stats=False):
    """Return :func:`alpha_batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dsource_mean, dsource_var)``.

    Notes
    -----
    The batch's share of the cotangents of mean and variance goes on to ``x``, by an affine map in the sweep that
    makes ``dx`` anyway.

    Examples
    --------
    >>> x, one, zero = np.array([[2.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> y, pullback = alpha_batch_norm_vjp(x, one, zero, zero, one)
    >>> pullback(np.array([[1.0], [1.0]]))[2]
    array([2.])
    """
    cdef _Mixture c = _mixture(x, gain, bias, source_mean, source_var, source_weight, ddof, moments, eps)
    y = _output(GIVEN, c.at, c.gain, c.bias, None, _given_statistics(c.at, c.mean, c.inverse))

    def pullback(dy):
        cdef np.ndarray g = c.at.cotangent(dy)
        total, product = _products(c.at, g, c.mean)
        scale = c.gain * c.inverse
        dmean, dvar = -scale * total, -0.5 * scale * c.inverse * c.inverse * product
        dgap = 2 * c.between * c.gap * dvar
        slope, constant = numpy.zeros_like(scale), numpy.zeros_like(scale)
        if not detach_stats:
            own = (1 - source_weight) / c.at.count()
            slope, constant = 2 * own * c.correction * dvar, own * dmean - dgap / c.at.count()
        # Where the gain is 0, so are the cotangents of the statistics.
        level = numpy.divide(-constant, scale, out=numpy.zeros_like(scale), where=scale != 0)
        dx = _combined(c.at, g, scale, slope, c.own_mean, level)
        entries = (product * c.inverse, total, source_weight * dmean + dgap, source_weight * dvar)
        return (dx, *[_as_units(c.at, entry) for entry in entries])

    return y, pullback
