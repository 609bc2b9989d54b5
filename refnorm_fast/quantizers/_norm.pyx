"""A norm and the quantizer that follows it: checks and layout; the arithmetic is in _kernels/norm_codes.h."""

import numpy

cimport numpy as np
from libc.stdint cimport uint8_t

from refnorm import quantizers as _reference

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "norm.h":
    ctypedef struct rn_code_grid:
        float scale, zero_point, lowest
    ctypedef struct rn_norm_table:
        int (*norm_codes)(int, const float *, size_t, const float *, const float *, size_t, size_t, double, float *, const rn_code_grid *, uint8_t *) nogil
    const rn_norm_table *rn_norm() nogil

cdef enum Kind:
    LAYER_NORM = 0
    RMS_NORM = 1


cdef inline bint _fits(given, np.npy_intp length):
    """Whether `given` is a contiguous float32 vector of `length` entries."""
    return (type(given) is np.ndarray and np.PyArray_TYPE(<np.ndarray> given) == np.NPY_FLOAT
            and np.PyArray_NDIM(<np.ndarray> given) == 1 and np.PyArray_DIM(<np.ndarray> given, 0) == length
            and np.PyArray_IS_C_CONTIGUOUS(<np.ndarray> given) and np.PyArray_ISBEHAVED_RO(<np.ndarray> given))


cdef bint _plain(x, gain, bias, eps):
    """Whether the kernel takes these arguments: float32 and right. All others are the reference's."""
    cdef np.npy_intp length
    if type(x) is not np.ndarray or np.PyArray_TYPE(<np.ndarray> x) != np.NPY_FLOAT or np.PyArray_NDIM(<np.ndarray> x) == 0:
        return False
    length = np.PyArray_DIM(<np.ndarray> x, np.PyArray_NDIM(<np.ndarray> x) - 1)
    return (length > 0 and (gain is None or _fits(gain, length))
            and (bias is None or _fits(bias, length)) and 0 < eps < numpy.inf)


cdef _codes(int kind, np.ndarray x, gain, bias, double eps, np.ndarray q, absmax, const rn_code_grid *grid):
    """Whether every normalized entry was finite; codes go to q, largest magnitudes to absmax."""
    cdef size_t rows, length, stride
    x = _rows_contiguous(_float_array(x, "x"), 1, &rows, &length, &stride)
    if gain is None and bias is not None:
        gain = numpy.ones_like(bias)
    cdef const float *from_ = <const float *> np.PyArray_DATA(x)
    cdef const float *scale = <const float *> (NULL if gain is None else np.PyArray_DATA(<np.ndarray> gain))
    cdef const float *shift = <const float *> (NULL if bias is None else np.PyArray_DATA(<np.ndarray> bias))
    cdef float *largest = <float *> (NULL if absmax is None else np.PyArray_DATA(<np.ndarray> absmax))
    cdef uint8_t *codes = <uint8_t *> np.PyArray_DATA(q)
    cdef int failed = 0
    if rows == 0:
        return True
    with nogil:
        failed = rn_norm().norm_codes(kind, from_, stride, scale, shift, rows, length, eps, largest, grid, codes)
    if failed < 0:
        raise MemoryError
    return failed == 0


cdef _by_absmax(int kind, x, gain, bias, eps):
    """Codes and largest magnitudes, or None if these are the reference's arguments or errors."""
    if not _plain(x, gain, bias, eps):
        return None
    q = numpy.empty(x.shape, numpy.int8)
    absmax = numpy.empty((*x.shape[:-1], 1), numpy.float32)
    return (q, absmax) if _codes(kind, x, gain, bias, eps, q, absmax, NULL) else None


cdef _on_grid(int kind, x, gain, bias, scale, zero_point, eps, lowest):
    """Codes, or None if these are the reference's arguments or errors."""
    cdef rn_code_grid grid
    if not _plain(x, gain, bias, eps) or type(scale) is not float or type(zero_point) is not int or type(lowest) is not int:
        return None
    grid.scale = scale
    if lowest not in (-128, 0):
        return None
    grid.lowest = lowest
    if not (0 < grid.scale < numpy.inf and grid.lowest <= zero_point <= grid.lowest + 255):
        return None
    grid.zero_point = zero_point
    q = numpy.empty(x.shape, numpy.int8 if lowest < 0 else numpy.uint8)
    return q if _codes(kind, x, gain, bias, eps, q, None, &grid) else None


def layer_norm_absmax_quantize(x, gain, bias, *, eps=1e-5):
    """Normalize each vector and quantize it to 8 bits by its own largest magnitude.

    Parameters
    ----------
    x : float32 or float64 array (..., H)
    gain, bias : arrays (H,)
        Scale and shift of each normalized unit.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    q : int8 array of the shape of ``x``
        Codes from -127 to 127; ``q * absmax / 127`` approximates the normalized vectors.
    absmax : array (..., 1), dtype of ``x``
        Largest magnitude of each normalized vector.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.layer_norm_absmax_quantize`.

    Notes
    -----
    For float32, bit for bit the codes of :func:`refnorm_fast.norms.layer_norm`, whose result is not stored.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450; Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> q, absmax = layer_norm_absmax_quantize(np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones(4), np.zeros(4))
    >>> q, absmax.round(4)
    (array([[-127,  -42,   42,  127]], dtype=int8), array([[1.3416]]))
    """
    found = None if gain is None or bias is None else _by_absmax(LAYER_NORM, x, gain, bias, eps)
    return _reference.layer_norm_absmax_quantize(x, gain, bias, eps=eps) if found is None else found


def layer_norm_quantize(x, gain, bias, scale, zero_point, *, eps=1e-5, lowest=-128):
    """Normalize each vector and quantize it to 8 bits on a given grid.

    Parameters
    ----------
    x : float32 or float64 array (..., H)
    gain, bias : arrays (H,)
        Scale and shift of each normalized unit.
    scale : float > 0
        Distance of two grid points.
    zero_point : int
        The code of 0, on the grid.
    eps : float > 0
        Added to the variance.
    lowest : -128 or 0
        The grid: codes from -128 to 127, or from 0 to 255.

    Returns
    -------
    int8 or uint8 array of the shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.layer_norm_quantize`.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450.

    Examples
    --------
    >>> layer_norm_quantize(np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones(4), np.zeros(4), 0.02, 0)
    array([[-67, -22,  22,  67]], dtype=int8)
    """
    found = None if gain is None or bias is None else _on_grid(LAYER_NORM, x, gain, bias, scale, zero_point, eps, lowest)
    if found is None:
        return _reference.layer_norm_quantize(x, gain, bias, scale, zero_point, eps=eps, lowest=lowest)
    return found


def rms_norm_absmax_quantize(x, gain=None, bias=None, *, eps=1e-5):
    """Divide each vector by its root mean square and quantize it to 8 bits by its own largest magnitude.

    Parameters
    ----------
    x : float32 or float64 array (..., d)
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    q : int8 array of the shape of ``x``
        Codes from -127 to 127; ``q * absmax / 127`` approximates the normalized vectors.
    absmax : array (..., 1), dtype of ``x``
        Largest magnitude of each normalized vector.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.rms_norm_absmax_quantize`.

    Notes
    -----
    For float32, bit for bit the codes of :func:`refnorm_fast.norms.rms_norm`, whose result is not stored.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858; Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> q, absmax = rms_norm_absmax_quantize(np.array([[3.0, 4.0]]), eps=1e-12)
    >>> q, absmax.round(4)
    (array([[ 95, 127]], dtype=int8), array([[1.1314]]))
    """
    found = _by_absmax(RMS_NORM, x, gain, bias, eps)
    return _reference.rms_norm_absmax_quantize(x, gain, bias, eps=eps) if found is None else found


def rms_norm_quantize(x, scale, zero_point, gain=None, bias=None, *, eps=1e-5, lowest=-128):
    """Divide each vector by its root mean square and quantize it to 8 bits on a given grid.

    Parameters
    ----------
    x : float32 or float64 array (..., d)
    scale : float > 0
        Distance of two grid points.
    zero_point : int
        The code of 0, on the grid.
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.
    lowest : -128 or 0
        The grid: codes from -128 to 127, or from 0 to 255.

    Returns
    -------
    int8 or uint8 array of the shape of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.rms_norm_quantize`.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858.

    Examples
    --------
    >>> rms_norm_quantize(np.array([[3.0, 4.0]]), 0.01, 0, eps=1e-12)
    array([[ 85, 113]], dtype=int8)
    """
    found = _on_grid(RMS_NORM, x, gain, bias, scale, zero_point, eps, lowest)
    if found is None:
        return _reference.rms_norm_quantize(x, scale, zero_point, gain, bias, eps=eps, lowest=lowest)
    return found
