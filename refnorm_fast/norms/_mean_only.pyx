"""Mean-only batch norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
