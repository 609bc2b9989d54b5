"""EvoNorm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import EvoNormState, default_groups
from refnorm.norms._evonorm import _running_var

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
