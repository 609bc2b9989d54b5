"""Batch norm, then group norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm import norms as _reference
from refnorm.norms import BatchChannelState
from refnorm.norms._batch_channel_norm import _checked

np.import_array()

include "../_kernels/rows.pxi"
include "_planes.pxi"


cdef class _BatchChannel:
    """The two steps as one line a plane, and what the pullback needs of them."""

    cdef _Planes planes
    cdef rn_batch_channel step
    cdef np.ndarray gain, bias, group_gain, group_bias, mean, var, saved

    def __cinit__(self, np.ndarray x, gain, bias, group_gain, group_bias, groups, eps):
        self.planes = _Planes(x)
        self.gain, self.bias, self.group_gain, self.group_bias = (
            _wide(gain), _wide(bias), _wide(group_gain), _wide(group_bias))
        cdef size_t channels = self.planes.channels, planes = self.planes.shape.channels, count = groups
        self.mean, self.var = numpy.empty(channels), numpy.empty(channels)
        self.saved = numpy.empty(channels + 3 * planes + self.planes.examples * count)
        cdef double *saved = _doubles(self.saved)
        self.step = rn_batch_channel(
            examples=self.planes.examples, channels=channels, groups=count, own_statistics=True,
            places=self.planes.places, eps=eps, own=self.planes.own(), gain=_doubles(self.gain), bias=_doubles(self.bias),
            group_gain=_doubles(self.group_gain), group_bias=_doubles(self.group_bias), mean=_doubles(self.mean),
            var=_doubles(self.var), inverse=saved, apart=saved + channels, alpha=saved + channels + planes,
            middle=saved + channels + 2 * planes, group_inverse=saved + channels + 3 * planes)

    cdef give(self, mean, var):
        """Statistics that are constants, in the place of the batch's."""
        self.step.own_statistics = False
        (<object> self.mean)[...] = mean
        (<object> self.var)[...] = var

    cdef value(self, out):
        cdef np.ndarray lines = self.planes.lines()
        cdef rn_channel_line *line = <rn_channel_line *> np.PyArray_DATA(lines)
        with nogil:
            rn_channel_norm().batch_channel_step(&self.step, line)
        return self.planes.write(lines, out)

    cdef tuple pull(self, dy):
        cdef np.ndarray up = self.planes.cotangent(dy)
        cdef np.ndarray lines = self.planes.lines()
        (<object> lines)[:, :2] = (<object> self.planes.moments)[:, :2]
        (<object> lines)[:, 2:] = 1, 0, 0
        cdef np.ndarray sums = self.planes.sums(up, lines)
        cdef size_t channels = self.step.channels, groups = self.step.groups
        cdef np.ndarray found = numpy.empty(2 * (channels + groups))
        cdef double *total = _doubles(found)
        cdef double *of_planes = _doubles(sums)
        cdef rn_channel_line *line = <rn_channel_line *> np.PyArray_DATA(lines)
        cdef rn_batch_channel_sums to = rn_batch_channel_sums(
            total, total + channels, total + 2 * channels, total + 2 * channels + groups)
        with nogil:
            rn_channel_norm().batch_channel_pull(&self.step, of_planes, line, to)
        narrow = (<object> found).astype((<object> self.planes.x).dtype)
        return (self.planes.combine(up, lines), narrow[:channels].copy(), narrow[channels : 2 * channels].copy(),
                narrow[2 * channels : 2 * channels + groups].copy(), narrow[2 * channels + groups :].copy())


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
    array = _checked(_float_array(x, "x"), gain, bias, group_gain, group_bias, groups, eps)
    if _swept(array):
        return (<_BatchChannel> _BatchChannel(array, gain, bias, group_gain, group_bias, groups, eps)).value(out)
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
    array = _checked(_float_array(x, "x"), gain, bias, group_gain, group_bias, groups, eps)
    if not _swept(array):
        return _reference.batch_channel_norm_vjp(array, gain, bias, group_gain, group_bias, groups=groups, eps=eps)
    c = _BatchChannel(array, gain, bias, group_gain, group_bias, groups, eps)
    return c.value(None), lambda dy: c.pull(dy)


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
    array = _checked(_float_array(x, "x"), gain, bias, group_gain, group_bias, groups, eps)
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
    c = _BatchChannel(array, gain, bias, group_gain, group_bias, groups, eps)
    own_mean, own_var = c.planes.own_mean(), c.planes.own_var()
    if training and not numpy.isfinite(own_var).all():  # the moment about the estimate is not made of these
        return _reference.batch_channel_norm_estimated_vjp(
            array, gain, bias, group_gain, group_bias, state, groups=groups, rate=rate, eps=eps, training=training)
    if training:
        # Update, then use. The second moment is taken about the estimate of before.
        apart = own_mean - mean
        moment = (own_var + apart * apart).mean(axis=0)
        mean = ((1 - rate) * mean + rate * own_mean.mean(axis=0)).astype(mean.dtype)
        var = ((1 - rate) * var + rate * moment).astype(var.dtype)
    c.give(mean, var)
    return (c.value(None), BatchChannelState(mean, var)), lambda dy: c.pull(dy)
