"""Batch norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import BatchNormState, update_running_statistics

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
