"""Alpha batch norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"


cdef class _Mixture:
    """Checked arguments of an alpha batch norm, its statistics and the output's."""

    cdef _Layout at
    cdef np.ndarray gain, bias
    cdef object own_mean, gap, inverse, mean
    cdef double correction, between


cdef _Mixture _mixture(x, gain, bias, source_mean, source_var, source_weight, ddof, moments, eps):
    cdef _Mixture self = _Mixture.__new__(_Mixture)
    cdef np.ndarray array = _batch(x, 2)
    cdef unsigned long long over = _all_but_second(array)
    cdef tuple units = _units(array, over)
    self.gain, self.bias = _unit_array(gain, "gain", array, units), _unit_array(bias, "bias", array, units)
    given_mean = _unit_array(source_mean, "source_mean", array, units)
    given_var = _unit_array(source_var, "source_var", array, units)
    if given_var.size and given_var.min() < 0:
        _checks.fail("source_var", "values >= 0", given_var.min())
    _checks.in_range(source_weight, "source_weight", 0, 1)
    _checks.one_of(ddof, "ddof", (0, 1))
    _checks.one_of(moments, "moments", ("linear", "mixture"))
    _not_empty(array, over)
    _positive(eps)
    self.at = _layout(array, over)
    own = _statistics(self.at)
    _norm(BATCH, self.at, None, None, None, own, 0)
    cdef size_t count = self.at.count()
    self.own_mean = own[:, MEAN_COLUMN] + own[:, LOW_COLUMN]
    self.gap = given_mean.astype(numpy.float64) - self.own_mean
    self.correction = count / <double> (count - ddof) if count > 1 else 1.0
    self.between = source_weight * (1 - source_weight) if moments == "mixture" else 0.0
    self.mean = source_weight * given_mean.astype(numpy.float64) + (1 - source_weight) * self.own_mean
    var = source_weight * given_var.astype(numpy.float64)
    var = var + (1 - source_weight) * self.correction * own[:, SPREAD_COLUMN]
    if self.between:
        var = var + self.between * self.gap * self.gap
    self.inverse = 1 / numpy.sqrt(var + eps)
    return self


def alpha_batch_norm(x, gain, bias, source_mean, source_var, *, source_weight=0.9, ddof=1, moments="linear", eps=1e-5,
                     detach_stats=False, out=None):
    """Normalize a test batch by a mixture of the training statistics and its own.

    Parameters
    ----------
    x : array (N, C, ...)
        Test batch.
    gain, bias : arrays (C,)
    source_mean, source_var : arrays (C,)
        Running statistics.
    source_weight : float in [0, 1]
        Weight of the running statistics.
    ddof : {0, 1}
    moments : {"linear", "mixture"}
    eps : float > 0
        Added to the variance.
    detach_stats : bool
        Treat the test statistics as constants in the backward pass.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.alpha_batch_norm`; also if ``out`` does not fit.

    References
    ----------
    You, Li, Zhao (2021), arXiv 2110.04065, the section on alpha-BN.

    Examples
    --------
    >>> x, one, zero = np.array([[2.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> alpha_batch_norm(x, one, zero, zero, one, source_weight=0.5, ddof=0, eps=1e-12).ravel().round(4)
    array([0.5, 2.5])
    """
    cdef _Mixture c = _mixture(x, gain, bias, source_mean, source_var, source_weight, ddof, moments, eps)
    return _output(GIVEN, c.at, c.gain, c.bias, out, _given_statistics(c.at, c.mean, c.inverse))


def alpha_batch_norm_vjp(x, gain, bias, source_mean, source_var, *, source_weight=0.9, ddof=1, moments="linear",
                         eps=1e-5, detach_stats=False):
    """Return :func:`alpha_batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dsource_mean, dsource_var)``.

    Notes
    -----
    The batch's share of the cotangents of mean and variance goes on to ``x``, by an affine map in the sweep that
    makes ``dx`` anyway.

    Examples
    --------
    >>> x, one, zero = np.array([[2.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> y, pullback = alpha_batch_norm_vjp(x, one, zero, zero, one)
    >>> pullback(np.array([[1.0], [1.0]]))[2]
    array([2.])
    """
    cdef _Mixture c = _mixture(x, gain, bias, source_mean, source_var, source_weight, ddof, moments, eps)
    y = _output(GIVEN, c.at, c.gain, c.bias, None, _given_statistics(c.at, c.mean, c.inverse))

    def pullback(dy):
        cdef np.ndarray g = c.at.cotangent(dy)
        total, product = _products(c.at, g, c.mean)
        scale = c.gain * c.inverse
        dmean, dvar = -scale * total, -0.5 * scale * c.inverse * c.inverse * product
        dgap = 2 * c.between * c.gap * dvar
        slope, constant = numpy.zeros_like(scale), numpy.zeros_like(scale)
        if not detach_stats:
            own = (1 - source_weight) / c.at.count()
            slope, constant = 2 * own * c.correction * dvar, own * dmean - dgap / c.at.count()
        # Where the gain is 0, so are the cotangents of the statistics.
        level = numpy.divide(-constant, scale, out=numpy.zeros_like(scale), where=scale != 0)
        dx = _combined(c.at, g, scale, slope, c.own_mean, level)
        entries = (product * c.inverse, total, source_weight * dmean + dgap, source_weight * dvar)
        return (dx, *[_as_units(c.at, entry) for entry in entries])

    return y, pullback
