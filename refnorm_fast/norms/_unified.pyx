"""Unified norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm.norms import unified_norm_vjp as _reference_unified_norm_vjp
from refnorm.norms._unified_norm import RATIO_FROM, RATIO_LIMIT, _advance, _advance_backward, _check_state, _on_its_own

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


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
