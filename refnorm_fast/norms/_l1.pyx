"""L1 batch norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import l1_batch_statistics_vjp as _reference_l1_batch_statistics_vjp
from refnorm.norms._l1_batch_norm import STD_OVER_DEVIATION

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
