"""Matrix products in bfloat16: checks and layout; the arithmetic is in _kernels/bf16.c."""

import numpy

cimport numpy as np

from refnorm.quantizers import linear_lowp_vjp as _reference_linear_vjp
from refnorm.quantizers import matmul_lowp as _reference_matmul
from refnorm.quantizers._half_precision_training import HALF, ORDERS

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "bf16.h":
    ctypedef struct rn_bf16_call:
        const void *a
        const void *b
        const void *bias
        ptrdiff_t a_row, a_depth, b_depth, b_column
        size_t rows, depth, width
        void *out
        int wide
    ctypedef struct rn_bf16_table:
        int (*matmul)(const rn_bf16_call *call) nogil
    const rn_bf16_table *rn_bf16() nogil


cdef bint _on_kernel(precision, fused):
    """Operands in bfloat16, exact products, sums in float32: what the kernel computes."""
    return (precision.storage == "bfloat16" and precision.accumulate == "float32"
            and (fused or precision.product in ("float32", "float64")))


cdef _product(np.ndarray a, np.ndarray b, bias, out):
    """`a @ b` in bfloat16, with a bias; the arrays have been checked."""
    shape = a.shape[0], b.shape[1]
    if out is not None and not (type(out) is np.ndarray and np.PyArray_ISCARRAY(<np.ndarray> out)
                                and out.dtype == a.dtype and out.shape == shape):
        _check_out(out, numpy.broadcast_to(a.dtype.type(0), shape))
    cdef bint direct = out is not None and np.PyArray_ISCARRAY(<np.ndarray> out) and _apart(out, a) and _apart(out, b)
    direct = direct and (bias is None or _apart(out, bias))
    cdef np.ndarray result = out if direct else _new(a, b)
    cdef rn_bf16_call call
    cdef np.npy_intp item = np.PyArray_ITEMSIZE(a)
    call.a = np.PyArray_DATA(a)
    call.b = np.PyArray_DATA(b)
    call.bias = np.PyArray_DATA(<np.ndarray> bias) if bias is not None else NULL
    call.a_row = np.PyArray_STRIDE(a, 0) // item
    call.a_depth = np.PyArray_STRIDE(a, 1) // item
    call.b_depth = np.PyArray_STRIDE(b, 0) // item
    call.b_column = np.PyArray_STRIDE(b, 1) // item
    call.rows, call.depth, call.width = a.shape[0], a.shape[1], b.shape[1]
    call.out = np.PyArray_DATA(result)
    call.wide = np.PyArray_TYPE(a) == np.NPY_DOUBLE
    cdef int failed
    with nogil:
        failed = rn_bf16().matmul(&call)
    if failed:
        raise MemoryError("matmul_lowp: no memory for the rounded operands")
    if out is None or direct:
        return result
    out[...] = result
    return out


cdef np.ndarray _new(np.ndarray a, np.ndarray b):
    cdef np.npy_intp shape[2]
    shape[0] = a.shape[0]
    shape[1] = b.shape[1]
    return rn_empty(2, shape, np.PyArray_TYPE(a))


cdef np.ndarray _whole_strides(np.ndarray x):
    """`x`, or a copy of it whose strides are whole numbers of items."""
    cdef np.npy_intp item = np.PyArray_ITEMSIZE(x)
    if np.PyArray_STRIDE(x, 0) % item or np.PyArray_STRIDE(x, 1) % item:
        return _in_order(x)
    return x


cdef np.ndarray _matrix(x, name):
    cdef np.ndarray array = _float_array(x, name)
    if array.ndim != 2:
        _checks.float_array(array, name, ndim=2)
    return _whole_strides(array)


def matmul_lowp(a, b, *, precision=HALF, order="sequential", fused=False, out=None):
    """Multiply matrices with every rounding of a low precision; see :func:`refnorm.quantizers.matmul_lowp`.

    bfloat16 operands with exact products and sums in float32 (``Precision("bfloat16", "float32", "float32")``) run on the
    kernel, other precisions on the reference. A result differs from the reference's by the order of summation, and where
    the sum lies near the middle of two bfloat16 numbers by their distance. Where the CPU multiplies pairs of bfloat16,
    products and sums below 2^-126 count as 0.

    Parameters
    ----------
    a : array (M, K)
    b : array (K, N)
    precision : Precision
    order : {"sequential", "lanes", "pairwise"}
    fused : bool
    out : array (M, N) of the dtype of ``a``, optional
        Receives the result.

    Examples
    --------
    >>> import numpy as np
    >>> from refnorm.quantizers import Precision
    >>> matmul_lowp(np.array([[1.0, 257.0]]), np.ones((2, 1)), precision=Precision("bfloat16", "float32", "float32"))
    array([[256.]])
    """
    cdef np.ndarray left, right
    if not _on_kernel(precision, fused):
        result = _reference_matmul(a, b, precision=precision, order=order, fused=fused)
        if out is None:
            return result
        _check_out(out, result)
        out[...] = result
        return out
    left, right = _matrix(a, "a"), _matrix(b, "b")
    _checks.same_dtype("a", left, b=right)
    _checks.shape(right, "b", (left.shape[1], right.shape[1]))
    _checks.one_of(order, "order", ORDERS)
    return _product(left, right, None, out)


def linear_lowp(x, weight, bias=None, *, precision=HALF, out=None):
    """Apply a linear layer in low precision; see :func:`refnorm.quantizers.linear_lowp`.

    The kernel runs for the precisions that :func:`matmul_lowp` names.

    Parameters
    ----------
    x : array (N, I)
    weight : array (O, I)
    bias : array (O,), optional
    precision : Precision
    out : array (N, O) of the dtype of ``x``, optional
        Receives the result.

    Examples
    --------
    >>> import numpy as np
    >>> linear_lowp(np.array([[2048.0, 1.0, 1.0, 1.0]]), np.ones((1, 4)))
    array([[2050.]])
    """
    if not _on_kernel(precision, False):
        result = _reference_linear_vjp(x, weight, bias, precision=precision)[0]
        if out is None:
            return result
        _check_out(out, result)
        out[...] = result
        return out
    cdef np.ndarray rows = _matrix(x, "x"), outputs = _matrix(weight, "weight")
    _checks.same_dtype("x", rows, weight=outputs)
    _checks.shape(rows, "x", (rows.shape[0], outputs.shape[1]))
    if bias is not None:
        bias = _checks.float_array(bias, "bias")
        _checks.same_dtype("x", rows, bias=bias)
        _checks.shape(bias, "bias", (outputs.shape[0],))
        bias = numpy.require(bias, requirements="CA")
    return _product(rows, outputs.T, bias, out)


def linear_lowp_vjp(x, weight, bias=None, *, precision=HALF):
    """Return :func:`linear_lowp` and its pullback ``dy -> (dx, dweight, dbias)``, in low precision too."""
    if not _on_kernel(precision, False):
        return _reference_linear_vjp(x, weight, bias, precision=precision)
    y = linear_lowp(x, weight, bias, precision=precision)
    # Views, as the reference holds them.
    rows, outputs = numpy.asarray(x), numpy.asarray(weight)

    def pullback(dy):
        dx = matmul_lowp(dy, outputs, precision=precision)
        dweight = matmul_lowp(numpy.asarray(dy).T, rows, precision=precision)
        ones = numpy.ones((1, len(dy)), rows.dtype)
        return dx, dweight, None if bias is None else matmul_lowp(ones, dy, precision=precision)[0]

    return y, pullback
