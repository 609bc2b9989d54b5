"""Norms whose statistics come from the moments of every channel of every example: checks and layout; the sweeps are
those of _kernels/channel_norm.c, which take each of these planes for a channel of its own."""

import numpy

cimport numpy as np

from refnorm import norms as _reference
from refnorm.norms import BatchChannelState, UnMixState
from refnorm.norms._batch_channel_norm import _checked as _check_batch_channel
from refnorm.norms._unmix_test_time_norm import _assignments
from refnorm.norms._unmix_test_time_norm import _checked as _check_components

np.import_array()

include "../_kernels/rows.pxi"
include "_channel_norm.pxi"

SHORTEST_PLANE = 32
"""Places from which on planes are swept; the reference takes shorter ones, which would be all bookkeeping."""


cdef class _Planes:
    """x (N, C, ...) as N * C planes. Numbers of one a plane are float64 arrays (N, C)."""

    cdef np.ndarray x
    cdef rn_channel_shape shape
    cdef object pair  # (N, C)
    cdef bint single
    cdef readonly double places

    def __cinit__(self, np.ndarray x):
        self.x = _in_order(x)
        self.pair = (<object> x).shape[:2]
        self.single = np.PyArray_TYPE(x) == np.NPY_FLOAT
        planes = self.pair[0] * self.pair[1]
        self.places = np.PyArray_SIZE(x) // planes
        self.shape = rn_channel_shape(1, planes, np.PyArray_SIZE(x) // planes, 1, 0)

    cdef _norm(self, int kind, np.ndarray channels, bias, y):
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *shift = NULL if bias is None else np.PyArray_DATA(<np.ndarray> bias)
        cdef void *to = NULL if y is None else np.PyArray_DATA(<np.ndarray> y)
        cdef rn_channel *found = <rn_channel *> np.PyArray_DATA(channels)
        cdef int failed
        with nogil:
            if self.single:
                failed = rn_channel_norm().norm_f32(kind, <const float *> x, NULL, <const float *> shift, <float *> to, self.shape, 0, 1, found)
            else:
                failed = rn_channel_norm().norm_f64(kind, <const double *> x, NULL, <const double *> shift, <double *> to, self.shape, 0, 1, found)
        if failed:
            raise MemoryError

    cdef tuple moments(self):
        """Every plane's mean and variance."""
        channels = numpy.zeros((self.shape.channels, 5))
        self._norm(MEAN, channels, None, None)
        return (channels[:, 0] + channels[:, 1]).reshape(self.pair), channels[:, 2].reshape(self.pair)

    cdef write(self, mean, scale, level, out):
        """scale * (x - mean) + level"""
        cdef np.ndarray y
        if out is not None:
            _check_out(out, self.x)
            y = <np.ndarray> out
            if not np.PyArray_ISCARRAY(y) or not (_identical(self.x, y) or _apart(self.x, y)):
                y[...] = self.write(mean, scale, level, None)
                return y
        else:
            y = _fresh(self.x)
        channels = numpy.zeros((self.shape.channels, 5))
        channels[:, 0] = numpy.broadcast_to(mean, self.pair).ravel()
        channels[:, 4] = numpy.broadcast_to(scale, self.pair).ravel()
        bias = _in_order(numpy.broadcast_to(level, self.pair), (<object> self.x).dtype)
        self._norm(GIVEN, channels, bias, y)
        return y

    cdef np.ndarray cotangent(self, dy):
        array = numpy.asarray(dy, dtype=(<object> self.x).dtype)
        _checks.shape(array, "dy", (<object> self.x).shape)
        return _in_order(array)

    cdef np.ndarray _lines(self, mean, scale, level, slope):
        lines = numpy.zeros((self.shape.channels, 5))
        for column, values in ((0, mean), (2, scale), (3, level), (4, slope)):
            lines[:, column] = numpy.broadcast_to(values, self.pair).ravel()
        return lines

    cdef tuple sums(self, np.ndarray dy, mean):
        """Every plane's sum(dy) and sum(dy (x - mean))."""
        cdef np.ndarray found = numpy.zeros((self.shape.channels, 2))
        cdef np.ndarray lines = self._lines(mean, 1, 0, 0)
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *up = np.PyArray_DATA(dy)
        cdef double *total = <double *> np.PyArray_DATA(found)
        cdef const rn_channel_line *line = <const rn_channel_line *> np.PyArray_DATA(lines)
        cdef int failed
        with nogil:
            if self.single:
                failed = rn_channel_norm().sums_f32(<const float *> x, <const float *> up, self.shape, line, total)
            else:
                failed = rn_channel_norm().sums_f64(<const double *> x, <const double *> up, self.shape, line, total)
        if failed:
            raise MemoryError
        return found[:, 0].reshape(self.pair), found[:, 1].reshape(self.pair)

    cdef np.ndarray combine(self, np.ndarray dy, scale, slope, mean, constant):
        """scale * dy + slope * (x - mean) + constant, where a scale of 0 goes with a constant of 0."""
        cdef np.ndarray dx = _fresh(self.x)
        scale = numpy.broadcast_to(scale, self.pair)
        level = numpy.divide(-constant, scale, out=numpy.zeros(self.pair), where=scale != 0)
        cdef np.ndarray lines = self._lines(mean, scale, level, slope)
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


cdef inline bint _swept(x):
    """Whether planes are long enough for the sweeps."""
    return x.size >= SHORTEST_PLANE * x.shape[0] * x.shape[1]


cdef _wide(array):
    return array.astype(numpy.float64)


# ---- batch norm, then group norm -----------------------------------------------------------------------------------


cdef class _BatchChannel:
    """The two steps as one line a plane: u_hat = alpha (x - own_mean) + hat_mean. Everything is about the plane's own
    mean, which no other number of its size then has to cancel."""

    cdef _Planes planes
    cdef object own_mean, own_var  # of every plane
    cdef object apart, inverse, a, group_gain, group_inverse, alpha, hat_mean
    cdef object dtype
    cdef Py_ssize_t groups

    cdef by_group(self, values):
        """Sums over the channels of a group: (N, C) to (N, G)."""
        return values.reshape(len(values), self.groups, -1).sum(axis=2)

    cdef by_channel(self, values):
        """A group's numbers for each of its channels: (..., G) to (..., C)."""
        return numpy.repeat(values, self.planes.pair[1] // self.groups, axis=-1)

    cdef step(self, mean, var, gain, bias, group_gain, group_bias, eps, out):
        """y for the mean and variance of every channel."""
        channels = self.planes.pair[1] // self.groups
        self.apart, self.inverse = self.own_mean - mean, 1 / numpy.sqrt(var + eps)
        self.a = gain * self.inverse
        middle = self.a * self.apart + bias
        middle -= self.by_channel(self.by_group(middle) / channels)
        spread = self.by_group(self.a * self.a * self.own_var + middle * middle) / channels
        self.group_gain = self.by_channel(_wide(group_gain))
        self.group_inverse = self.by_channel(1 / numpy.sqrt(spread + eps))
        self.alpha, self.hat_mean = self.group_inverse * self.a, self.group_inverse * middle
        level = self.group_gain * self.hat_mean + self.by_channel(_wide(group_bias))
        return self.planes.write(self.own_mean, self.group_gain * self.alpha, level, out)

    cdef tuple pull(self, dy, bint own):
        """The cotangents; own: mean and variance are the batch's, not constants."""
        cdef np.ndarray up = self.planes.cotangent(dy)
        total, product = self.planes.sums(up, self.own_mean)
        places = self.planes.places
        entries = places * (self.planes.pair[1] // self.groups)
        along = self.alpha * product + self.hat_mean * total
        mean_up = self.group_gain * self.by_channel(self.by_group(total) / entries)
        mean_along = self.group_gain * self.by_channel(self.by_group(along) / entries)
        # du = steep * dy + slope * (x - own_mean) + constant, and its sums over each plane
        steep = self.group_inverse * self.group_gain
        slope = -self.group_inverse * mean_along * self.alpha
        constant = -self.group_inverse * (mean_up + self.hat_mean * mean_along)
        down = steep * total + places * constant
        dbias = down.sum(axis=0)
        along_x = (steep * product + places * slope * self.own_var + self.apart * down).sum(axis=0)
        if own:
            count = places * self.planes.pair[0]
            tilt = self.inverse * self.inverse * along_x / count
            slope = slope - tilt
            constant = constant - dbias / count - tilt * self.apart
        dx = self.planes.combine(up, self.a * steep, self.a * slope, self.own_mean, self.a * constant)
        sums = (along_x * self.inverse, dbias, self.by_group(along).sum(axis=0), self.by_group(total).sum(axis=0))
        return dx, *(one.astype(self.dtype) for one in sums)


cdef _BatchChannel _batch_channel(np.ndarray x, groups):
    cdef _BatchChannel self = _BatchChannel.__new__(_BatchChannel)
    self.planes, self.groups, self.dtype = _Planes(x), groups, (<object> x).dtype
    self.own_mean, self.own_var = self.planes.moments()
    return self


cdef tuple _with_batch_statistics(np.ndarray x, gain, bias, group_gain, group_bias, groups, eps, out):
    cdef _BatchChannel c = _batch_channel(x, groups)
    mean = c.own_mean.mean(axis=0)
    apart = c.own_mean - mean
    var = (c.own_var + apart * apart).mean(axis=0)
    return c.step(mean, var, gain, bias, group_gain, group_bias, eps, out), c


def batch_channel_norm(x, gain, bias, group_gain, group_bias, *, groups=32, eps=1e-5, out=None):
    """Normalize by batch statistics, then each example by groups of channels.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps; with fewer than 32 places the reference does the work.
    gain, bias : arrays (C,)
        Scale and shift after the batch step.
    group_gain, group_bias : arrays (groups,)
        Scale and shift after the group step.
    groups : int >= 1
        Number of groups; it divides C.
    eps : float > 0
        Added to both variances.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.batch_channel_norm`; also if ``out`` does not fit.

    Notes
    -----
    One sweep for the moments of every channel of every example, from which both variances follow, and one that applies
    both steps as a single affine map.

    References
    ----------
    Qiao et al. (2019), arXiv 1903.10520, section 4 and algorithm 1.

    Examples
    --------
    >>> x = np.array([[1.0, 5.0], [3.0, 1.0]])
    >>> batch_channel_norm(x, np.ones(2), np.zeros(2), np.ones(1), np.zeros(1), groups=1).round(3)
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    array = _check_batch_channel(_float_array(x, "x"), gain, bias, group_gain, group_bias, groups, eps)
    if _swept(array):
        return _with_batch_statistics(array, gain, bias, group_gain, group_bias, groups, eps, out)[0]
    y = _reference.batch_channel_norm(array, gain, bias, group_gain, group_bias, groups=groups, eps=eps)
    if out is None:
        return y
    _check_out(out, y)
    out[...] = y
    return out


def batch_channel_norm_vjp(x, gain, bias, group_gain, group_bias, *, groups=32, eps=1e-5):
    """Return :func:`batch_channel_norm` and its pullback.

    The pullback is ``dy -> (dx, dgain, dbias, dgroup_gain, dgroup_bias)``. ``x`` must not change before it has run.

    Examples
    --------
    >>> one, zero = np.ones(1), np.zeros(1)
    >>> y, pullback = batch_channel_norm_vjp(np.arange(64.0).reshape(2, 1, 32), one, zero, one, zero, groups=1)
    >>> pullback(np.ones((2, 1, 32)))[4]
    array([64.])
    """
    cdef _BatchChannel c
    array = _check_batch_channel(_float_array(x, "x"), gain, bias, group_gain, group_bias, groups, eps)
    if not _swept(array):
        return _reference.batch_channel_norm_vjp(array, gain, bias, group_gain, group_bias, groups=groups, eps=eps)
    y, c = _with_batch_statistics(array, gain, bias, group_gain, group_bias, groups, eps, None)
    return y, lambda dy: c.pull(dy, True)


def batch_channel_norm_estimated(x, gain, bias, group_gain, group_bias, state, *, groups=32, rate=0.1, eps=1e-5,
                                 training=True):
    """Normalize by running estimates, then each example by groups of channels.

    Parameters
    ----------
    x : array (N, C, ...)
        Feature maps; with fewer than 32 places the reference does the work.
    gain, bias : arrays (C,)
        Scale and shift after the channel step.
    group_gain, group_bias : arrays (groups,)
        Scale and shift after the group step.
    state : BatchChannelState
        The estimates before this batch.
    groups : int >= 1
        Number of groups; it divides C.
    rate : float in [0, 1]
        Weight of this batch in the estimates.
    eps : float > 0
        Added to both variances.
    training : bool
        Whether the estimates are updated (before they are used).

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : BatchChannelState
        The estimates that ``y`` was made with.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.batch_channel_norm_estimated`.

    References
    ----------
    Qiao et al. (2019), arXiv 1903.10520, algorithm 1.

    Examples
    --------
    >>> from refnorm.norms import BatchChannelState
    >>> state = BatchChannelState.create(2)
    >>> x, one, zero = np.array([[1.0, 5.0]]), np.ones(2), np.zeros(2)
    >>> y, state = batch_channel_norm_estimated(x, one, zero, one[:1], zero[:1], state, groups=1)
    >>> state
    BatchChannelState(mean=array([0.1, 0.5]), var=array([1. , 3.4]))
    """
    return batch_channel_norm_estimated_vjp(
        x, gain, bias, group_gain, group_bias, state, groups=groups, rate=rate, eps=eps, training=training)[0]


def batch_channel_norm_estimated_vjp(x, gain, bias, group_gain, group_bias, state, *, groups=32, rate=0.1, eps=1e-5,
                                     training=True):
    """Return :func:`batch_channel_norm_estimated` and its pullback.

    The pullback is ``dy -> (dx, dgain, dbias, dgroup_gain, dgroup_bias)``. ``x`` must not change before it has run.

    Examples
    --------
    >>> from refnorm.norms import BatchChannelState
    >>> x, one, zero = np.arange(64.0).reshape(2, 1, 32), np.ones(1), np.zeros(1)
    >>> (y, state), pullback = batch_channel_norm_estimated_vjp(
    ...     x, one, zero, one, zero, BatchChannelState.create(1), groups=1)
    >>> pullback(np.ones((2, 1, 32)))[4]
    array([64.])
    """
    cdef _BatchChannel c
    array = _check_batch_channel(_float_array(x, "x"), gain, bias, group_gain, group_bias, groups, eps)
    if not _swept(array):
        return _reference.batch_channel_norm_estimated_vjp(
            array, gain, bias, group_gain, group_bias, state, groups=groups, rate=rate, eps=eps, training=training)
    _checks.in_range(rate, "rate", 0, 1)
    mean, var = _checks.float_array(state.mean, "state.mean"), _checks.float_array(state.var, "state.var")
    for name, given in (("state.mean", mean), ("state.var", var)):
        _checks.same_dtype("x", array, **{name: given})
        _checks.shape(given, name, array.shape[1:2])
    if var.min() < 0:
        _checks.fail("state.var", "values >= 0", var.min())
    c = _batch_channel(array, groups)
    if training and not numpy.isfinite(c.own_var).all():  # the moment about the estimate is not made of these
        return _reference.batch_channel_norm_estimated_vjp(
            array, gain, bias, group_gain, group_bias, state, groups=groups, rate=rate, eps=eps, training=training)
    if training:
        # Update, then use. The second moment is taken about the estimate of before.
        apart = c.own_mean - mean
        moment = (c.own_var + apart * apart).mean(axis=0)
        mean = ((1 - rate) * mean + rate * c.own_mean.mean(axis=0)).astype(mean.dtype)
        var = ((1 - rate) * var + rate * moment).astype(var.dtype)
    y = c.step(_wide(mean), _wide(var), gain, bias, group_gain, group_bias, eps, None)
    return (y, BatchChannelState(mean, var)), lambda dy: c.pull(dy, False)


# ---- a mixture of components, each example's own ------------------------------------------------------------------


def unmix_norm(x, gain, bias, state, *, rate, temperature=0.07, eps=1e-5, between=False):
    """Normalize each test example by the mixture of the components, one of which it has pulled to itself.

    Parameters
    ----------
    x : array (B, C, H, W), or with other axes of places
        Test batch; with fewer than 32 places the reference does the work.
    gain, bias : arrays (C,)
    state : UnMixState
        Components before this batch.
    rate : float in [0, 1]
        How far the batch moves the components.
    temperature : float > 0
    eps : float > 0
        Added to the variance.
    between : bool
        Count the distance of means when a component is blended with an example.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : UnMixState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.unmix_norm`.

    Notes
    -----
    One sweep for the moments of every channel of every example and one for the output; what is blended in between is
    as small as the components.

    References
    ----------
    Tomar et al. (2024), arXiv 2401.08328, the section on UnMix-TNS.

    Examples
    --------
    >>> from refnorm.norms import UnMixState
    >>> state = UnMixState(np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]]))
    >>> y, after = unmix_norm(np.array([[[1.0, 3.0]]]), np.ones(1), np.zeros(1), state, rate=0.1, eps=1e-12)
    >>> y.round(4), after.means.ravel().round(3)
    (array([[[0.2887, 1.4434]]]), array([ 1.1, -1. ]))
    """
    return unmix_norm_vjp(x, gain, bias, state, rate=rate, temperature=temperature, eps=eps, between=between)[0]


def unmix_norm_vjp(x, gain, bias, state, *, rate, temperature=0.07, eps=1e-5, between=False):
    """Return :func:`unmix_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Assignments and components are constants in the backward pass. ``x`` must not change before the pullback has run.

    Examples
    --------
    >>> from refnorm.norms import UnMixState
    >>> state = UnMixState(np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]]))
    >>> (y, after), pullback = unmix_norm_vjp(np.ones((1, 1, 40)), np.ones(1), np.zeros(1), state, rate=0.1)
    >>> pullback(np.ones((1, 1, 40)))[2]
    array([40.])
    """
    cdef _Planes planes
    cdef object array
    options = {"rate": rate, "temperature": temperature, "eps": eps, "between": between}
    array = _float_array(x, "x")
    if array.ndim < 3 or array.size == 0 or not _swept(array):
        return _reference.unmix_norm_vjp(array, gain, bias, state, **options)
    for name, given in (("gain", gain), ("bias", bias)):
        _checks.same_dtype("x", array, **{name: _checks.float_array(given, name)})
        _checks.shape(given, name, array.shape[1:2])
    means, variances = _check_components(state, array)
    _checks.in_range(rate, "rate", 0, 1)
    _checks.positive(temperature, "temperature")
    _checks.positive(eps, "eps")
    planes = _Planes(array)
    own_mean, own_var = planes.moments()
    p = _assignments(own_mean, means, temperature)[..., None]  # (B, K, 1)
    gap = own_mean[:, None] - means
    blended_mean = means + p * gap
    blended_var = (1 - p) * variances + p * own_var[:, None]
    if between:
        blended_var = blended_var + p * (1 - p) * gap * gap
    mean = blended_mean.mean(axis=1)
    deviation = blended_mean - mean[:, None]
    inverse = 1 / numpy.sqrt(blended_var.mean(axis=1) + (deviation * deviation).mean(axis=1) + eps)
    scale, count, dtype = _wide(gain) * inverse, len(means), array.dtype
    y = planes.write(mean, scale, bias, None)

    def pullback(dy):
        cdef np.ndarray up = planes.cotangent(dy)
        total, product = planes.sums(up, mean)
        dmean, dvar = -scale * total, -0.5 * scale * inverse * inverse * product
        # Every blended component has the share 1 / count of mean and variance, an example's statistics the share p of it.
        dblended = (dmean[:, None] + 2 * deviation * dvar[:, None]) / count
        if between:
            dblended = dblended + 2 * (1 - p) * gap * dvar[:, None] / count
        down_mean, down_var = (p * dblended).sum(axis=1), dvar / count * p.sum(axis=1)
        dx = planes.combine(up, scale, 2 * down_var / planes.places, own_mean, down_mean / planes.places)
        return dx, (product * inverse).sum(axis=0).astype(dtype), total.sum(axis=0).astype(dtype)

    moved = [
        (old + rate * (p * (own[:, None] - old)).mean(axis=0)).astype(state.means.dtype)
        for old, own in ((means, own_mean), (variances, own_var))
    ]
    return (y, UnMixState(*moved)), pullback
