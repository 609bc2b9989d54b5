"""Power norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import power_norm_v_vjp as _reference_power_norm_v_vjp

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
