"""Rounding to 16-bit formats: checks and layout; the arithmetic is in _kernels/quantize.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "quantize.pxi"

cdef enum Format:
    FLOAT16 = 0
    BFLOAT16 = 1

_STORAGES = {"float16": 0, "bfloat16": 1, "float32": 2}
DRAWN = 1 << 13
"""Random numbers drawn at a time."""


cdef _rounded(x, Format format, out):
    cdef np.ndarray array = _plain(_float_array(x, "x")), y
    cdef void *source = np.PyArray_DATA(array)
    cdef void *to
    cdef size_t count = np.PyArray_SIZE(array)
    cdef bint single = np.PyArray_TYPE(array) == np.NPY_FLOAT
    if out is not None:
        _check_out(out, array)
    if out is not None and _direct(<np.ndarray> out) and (out is array or _apart(array, <np.ndarray> out)):
        y = <np.ndarray> out
    else:
        y = _fresh(array)
    to = np.PyArray_DATA(y)
    with nogil:
        if single:
            rn_quantize().round_f32(format, <float *> source, <float *> to, count)
        else:
            rn_quantize().round_f64(format, <double *> source, <double *> to, count)
    if out is None or y is out:
        return y
    out[...] = y
    return out


def round_float16(x, *, out=None):
    """Round to IEEE binary16, ties to even.

    Parameters
    ----------
    x : float32 or float64 array
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``
        Numbers with 11 significant binary digits; from 65520 on infinity, below 2^-24 multiples of it. NaN
        stays NaN. Equal to the reference's, bit for bit, other numbers than NaN.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, or ``out`` does not fit.
    ValueError
        If ``out`` does not fit.

    References
    ----------
    IEEE 754-2019, section 4.3.1.

    Examples
    --------
    >>> round_float16(np.array([0.1, 2049.0, 2051.0, 65519.0, 65520.0])).tolist()
    [0.0999755859375, 2048.0, 2052.0, 65504.0, inf]
    """
    return _rounded(x, FLOAT16, out)


def round_bfloat16(x, *, out=None):
    """Round to bfloat16, ties to even: the exponents of float32 with 8 significant binary digits.

    Parameters
    ----------
    x : float32 or float64 array
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``
        Equal to the reference's, bit for bit; NaN stays as it is.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, or ``out`` does not fit.
    ValueError
        If ``out`` does not fit.

    Notes
    -----
    float64 input is rounded once.

    References
    ----------
    Kalamkar et al. (2019), arXiv 1905.12322.

    Examples
    --------
    >>> round_bfloat16(np.array([1.01, 257.0, 3.4e38])).tolist()
    [1.0078125, 256.0, inf]
    """
    return _rounded(x, BFLOAT16, out)


def stochastic_round(x, storage="float16", *, rng, out=None):
    """Round up or down at random, so that the expected value is ``x``.

    Parameters
    ----------
    x : float32 or float64 array
    storage : {"float16", "bfloat16", "float32"}
    rng : numpy.random.Generator
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``
        Equal to the reference's with the same generator, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.stochastic_round`; also if ``out`` does not fit.

    Notes
    -----
    The random numbers are drawn a few thousand at a time, in the order of the reference's one large draw.

    References
    ----------
    Gupta et al. (2015), arXiv 1502.02551, section 3.1.

    Examples
    --------
    >>> y = stochastic_round(np.full(10000, 2049.0), rng=np.random.default_rng(0))
    >>> sorted(set(y.tolist())), bool(abs(y.mean() - 2049) < 0.05)
    ([2048.0, 2050.0], True)
    """
    cdef np.ndarray array = _plain(_float_array(x, "x")), y, drawn
    cdef size_t count = np.PyArray_SIZE(array), first = 0, length
    cdef char *source
    cdef char *to
    cdef double *random
    cdef size_t item = np.PyArray_ITEMSIZE(array)
    cdef bint single = np.PyArray_TYPE(array) == np.NPY_FLOAT
    cdef int format
    _checks.one_of(storage, "storage", tuple(_STORAGES))
    _checks.generator(rng)
    format = _STORAGES[storage]
    if out is not None:
        _check_out(out, array)
    if out is not None and _direct(<np.ndarray> out) and (out is array or _apart(array, <np.ndarray> out)):
        y = <np.ndarray> out
    else:
        y = _fresh(array)
    drawn = numpy.empty(min(count, DRAWN))
    source, to, random = np.PyArray_BYTES(array), np.PyArray_BYTES(y), <double *> np.PyArray_DATA(drawn)
    while first < count:
        length = min(count - first, <size_t> DRAWN)
        rng.random(out=(<object> drawn)[:length])
        with nogil:
            if single:
                rn_quantize().round_stochastic_f32(format, <float *> (source + first * item), random, <float *> (to + first * item), length)
            else:
                rn_quantize().round_stochastic_f64(format, <double *> (source + first * item), random, <double *> (to + first * item), length)
        first += length
    if out is None or y is out:
        return y
    out[...] = y
    return out
