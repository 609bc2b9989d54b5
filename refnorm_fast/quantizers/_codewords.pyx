"""Sums of codewords: checks and layout; the arithmetic is in _kernels/quantize.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "quantize.pxi"

from refnorm.quantizers import _pv_tuning


def additive_dequantize(codes, codebooks, scales, *, out=None):
    """Return the weights that codes stand for: each group is a scale times a sum of codewords.

    Parameters
    ----------
    codes : int array (R, G, M)
        0 to K - 1: for each of G groups of a row, a codeword of each codebook.
    codebooks : float32 or float64 array (M, K, g)
        At least two codewords each.
    scales : array (R,)
        One a row.
    out : array (R, G g), optional
        Takes the result.

    Returns
    -------
    array (R, G g)
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.additive_dequantize`; also if ``out`` does not fit.

    References
    ----------
    Malinovskii et al. (2024), arXiv 2405.14852, section on vector quantization; Egiazarian et al. (2024).

    Examples
    --------
    >>> codebooks = np.array([[[1.0, 2.0], [0.0, -1.0]]])
    >>> additive_dequantize(np.array([[[0], [1]]]), codebooks, np.array([2.0]))
    array([[ 2.,  4.,  0., -2.]])
    """
    cdef np.ndarray given = <np.ndarray> numpy.asarray(codes)
    cdef np.ndarray books = _float_array(codebooks, "codebooks"), factors
    if _suit(given, books) and _is_vector_of(scales, books, np.PyArray_DIM(given, 0)):
        factors = _plain(numpy.asarray(scales))
        y = _summed(_plain(given), _plain(books), factors, out)
        if y is not None:
            return y
    return _by_reference(_pv_tuning.additive_dequantize, out, (codes, codebooks, scales), {})


cdef bint _suit(np.ndarray codes, np.ndarray books):
    """Whether shapes and dtypes fit; codewords of one entry are left to the reference, which adds them in another order."""
    if np.PyArray_NDIM(codes) != 3 or np.PyArray_NDIM(books) != 3 or np.PyArray_SIZE(codes) == 0:
        return False
    if not np.PyArray_ISINTEGER(codes) or not np.PyArray_ISNOTSWAPPED(codes):
        return False
    # The kernel reads codes as unsigned: a negative one must not look like a codeword's.
    if np.PyArray_ISSIGNED(codes) and np.PyArray_DIM(books, 1) > numpy.iinfo((<object> codes).dtype).max:
        return False
    return (np.PyArray_DIM(codes, 2) == np.PyArray_DIM(books, 0) and np.PyArray_DIM(books, 1) >= 2
            and np.PyArray_DIM(books, 2) >= 2)


cdef bint _is_vector_of(scales, np.ndarray books, size_t length):
    cdef np.ndarray array = <np.ndarray> numpy.asarray(scales)
    return (np.PyArray_NDIM(array) == 1 and <size_t> np.PyArray_DIM(array, 0) == length
            and np.PyArray_TYPE(array) == np.PyArray_TYPE(books) and np.PyArray_ISNOTSWAPPED(array))


cdef _summed(np.ndarray codes, np.ndarray books, np.ndarray scales, out):
    """The weights, in `out` if that is given; None if a code is not within its codebook."""
    cdef size_t rows = np.PyArray_DIM(codes, 0), groups = np.PyArray_DIM(codes, 1), count = np.PyArray_DIM(codes, 2)
    cdef size_t words = np.PyArray_DIM(books, 1), width = np.PyArray_DIM(books, 2)
    cdef np.npy_intp[2] shape
    cdef np.ndarray y
    cdef void *source = np.PyArray_DATA(codes)
    cdef void *table = np.PyArray_DATA(books)
    cdef void *factors = np.PyArray_DATA(scales)
    cdef void *to
    cdef int item = np.PyArray_ITEMSIZE(codes), wrong
    cdef bint single = np.PyArray_TYPE(books) == np.NPY_FLOAT
    shape[0], shape[1] = rows, groups * width
    y = rn_empty(2, shape, np.PyArray_TYPE(books))
    if out is not None:
        _check_out(out, y)
        if (_direct(<np.ndarray> out) and _apart(codes, <np.ndarray> out) and _apart(books, <np.ndarray> out)
                and _apart(scales, <np.ndarray> out)):
            y = <np.ndarray> out
    to = np.PyArray_DATA(y)
    with nogil:
        if single:
            wrong = rn_quantize().codewords_f32(source, item, <float *> table, <float *> factors, rows, groups, count, words, width, <float *> to)
        else:
            wrong = rn_quantize().codewords_f64(source, item, <double *> table, <double *> factors, rows, groups, count, words, width, <double *> to)
    if wrong:
        return None
    if out is None or y is out:
        return y
    out[...] = y
    return out
