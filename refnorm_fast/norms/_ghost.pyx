"""Ghost batch norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import GhostBatchState, update_running_statistics
from refnorm.norms._ghost_batch_norm import _chunks

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
