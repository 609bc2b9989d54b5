"""Power norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import PowerNormState
from refnorm.norms import power_norm_v_vjp as _reference_power_norm_v_vjp
from refnorm.norms import power_norm_vjp as _reference_power_norm_vjp
from refnorm.norms._power_norm import _checked_state
from refnorm_fast.norms._group import group_scale_vjp

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


cdef class _PowerNorm:
    """Checked arguments of a power norm on tokens that are scaled by groups, and the numbers of every channel."""

    cdef _Tokens tokens
    cdef object back_groups, batch_square, used, after

    cdef back(self, dy, backward_mean, divisor, double decay, eps, bint training, state):
        """``((dx, dgain, dbias), state)``"""
        cdef _Layout at = self.tokens.at
        cdef np.ndarray g = at.cotangent(dy)
        total, product = _products(at, g)
        inverse = 1 / numpy.sqrt(self.used + eps)
        gain = self.tokens.gain.astype(numpy.float64)
        scale, slope, final = gain / numpy.sqrt(divisor + eps), 0.0, self.after
        if training:
            # The exact term would be z mean(dz z) if z were scaled by its own batch; its running estimate stands for it.
            power = self.batch_square * inverse * inverse
            along = gain * product * inverse / at.count()
            slope = -backward_mean * inverse / numpy.sqrt(divisor + eps)
            moved = backward_mean * (1 - (1 - decay) * power) + (1 - decay) * along
            final = PowerNormState(final.mean_square, moved.astype(state.backward_mean.dtype), final.iteration)
        dx = _combined(at, g, scale, slope)
        if self.back_groups is not None:
            (dx,) = self.back_groups(dx)
        return (dx, _as_units(at, product * inverse), _as_units(at, total)), final


def power_norm(x, gain, bias, state, *, decay_forward=0.9, decay_backward=0.9, warmup=10000, groups=1, eps=1e-5,
               mask=None, training=True, backward_scale="running"):
    """Scale tokens by groups, then divide each channel by the running root mean square.

    Parameters
    ----------
    x : array (..., C)
        Tokens.
    gain, bias : arrays (C,)
    state : PowerNormState
        Before this batch.
    decay_forward, decay_backward : floats in [0, 1)
        Weight of the past in the running mean square and in the backward statistic.
    warmup : int >= 0
        Number of first batches that are divided by their own mean square.
    groups : int >= 1 or ``None``
        For :func:`group_scale`, which comes first; ``None`` leaves it out.
    eps : float > 0
        Added to mean squares.
    mask : boolean array (...), optional
        Tokens that count; with one, the reference does the work.
    training : bool
    backward_scale : ``"running"`` or ``"batch"``

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : PowerNormState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.power_norm`.

    Notes
    -----
    One sweep scales the tokens, one forms the mean squares, one writes the output.

    References
    ----------
    Shen et al. (2020), arXiv 2003.07845, algorithm 2.

    Examples
    --------
    >>> from refnorm.norms import PowerNormState
    >>> x, one, zero = np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> y, state = power_norm(x, one, zero, PowerNormState.create(1), warmup=0, groups=None, eps=1e-12)
    >>> y.ravel().round(6), state.mean_square.round(6)
    (array([3., 4.]), array([2.15]))
    """
    return power_norm_vjp(
        x, gain, bias, state, decay_forward=decay_forward, decay_backward=decay_backward, warmup=warmup, groups=groups,
        eps=eps, mask=mask, training=training, backward_scale=backward_scale)[0]


def power_norm_vjp(x, gain, bias, state, *, decay_forward=0.9, decay_backward=0.9, warmup=10000, groups=1, eps=1e-5,
                   mask=None, training=True, backward_scale="running"):
    """Return :func:`power_norm` and its pullback ``dy -> ((dx, dgain, dbias), state)``.

    The gradient of ``x`` is the approximation of :func:`refnorm.norms.power_norm_vjp`.

    Examples
    --------
    >>> from refnorm.norms import PowerNormState
    >>> x, one, zero = np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> (y, state), pullback = power_norm_vjp(x, one, zero, PowerNormState.create(1))
    >>> pullback(np.array([[1.0], [1.0]]))[0][2]
    array([2.])
    """
    cdef _PowerNorm c
    if mask is not None:
        return _reference_power_norm_vjp(
            x, gain, bias, state, decay_forward=decay_forward, decay_backward=decay_backward, warmup=warmup, groups=groups,
            eps=eps, mask=mask, training=training, backward_scale=backward_scale)
    cdef np.ndarray array = _float_array(x, "x")
    c = _PowerNorm.__new__(_PowerNorm)
    c.tokens = _check_tokens(array, gain, bias, eps)
    mean_square, backward_mean = _checked_state(state, array)
    _checks.in_range(decay_forward, "decay_forward", 0, 1, closed="left")
    _checks.in_range(decay_backward, "decay_backward", 0, 1, closed="left")
    warmup = _checks.whole(warmup, "warmup", low=0)
    _checks.one_of(backward_scale, "backward_scale", ("running", "batch"))
    if groups is not None:
        scaled, c.back_groups = group_scale_vjp(array, groups=groups, eps=eps)
        c.tokens.at = _layout(scaled, (1ull << (np.PyArray_NDIM(array) - 1)) - 1)
    c.used, c.after = mean_square, state
    if training:
        channels = _statistics(c.tokens.at)
        _norm(SQUARE, c.tokens.at, None, None, None, channels, 0)
        c.batch_square = channels[:, SPREAD_COLUMN].copy()
        iteration, moved = state.iteration + 1, mean_square
        if iteration <= warmup:
            c.used = c.batch_square
            moved = moved * ((iteration - 1) / iteration) + c.batch_square / iteration
        moved = decay_forward * moved + (1 - decay_forward) * c.batch_square
        c.after = PowerNormState(moved.astype(state.mean_square.dtype), state.backward_mean, iteration)
    inverse = 1 / numpy.sqrt(c.used + eps)
    y = _output(GIVEN, c.tokens.at, c.tokens.gain, c.tokens.bias, None,
                _given_statistics(c.tokens.at, numpy.zeros(len(inverse)), inverse))
    divisor = c.batch_square if training and backward_scale == "batch" else c.used
    return (y, c.after), lambda dy: c.back(dy, backward_mean, divisor, decay_backward, eps, training, state)
