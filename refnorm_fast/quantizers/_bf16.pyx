"""Matrix products in bfloat16: checks and layout; the arithmetic is in _kernels/bf16.c."""

import weakref

import numpy

cimport numpy as np
from libc.stdint cimport uint16_t

from refnorm.quantizers import linear_lowp_vjp as _reference_linear_vjp
from refnorm.quantizers import matmul_lowp as _reference_matmul
from refnorm.quantizers._bfloat16 import BFLOAT16, Bfloat16Weight, bfloat16_floats
from refnorm.quantizers._bfloat16 import round_weight_bfloat16 as _reference_round_weight
from refnorm.quantizers._half_precision_training import HALF, ORDERS

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "bf16.h":
    ctypedef struct rn_bf16_call:
        const void *a
        const void *b
        const void *bias
        const void *packed
        ptrdiff_t a_row, a_depth, b_depth, b_column
        size_t rows, depth, width
        void *out
        int wide
    ctypedef struct rn_bf16_table:
        int (*matmul)(const rn_bf16_call *call) nogil
        size_t (*packed_bytes)(size_t depth, size_t width) nogil
        int (*pack)(const uint16_t *bits, size_t depth, size_t width, void *packed) nogil
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
    call.packed = NULL
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


cdef class Packed:
    """Bits of a weight in the kernels' order."""

    cdef np.ndarray room
    cdef void *start
    cdef const rn_bf16_table *table
    cdef bint subnormal

    def __init__(self, np.ndarray bits):
        cdef size_t width = bits.shape[0], depth = bits.shape[1]
        cdef const uint16_t *codes = <const uint16_t *> np.PyArray_DATA(bits)
        self.table = rn_bf16()
        self.room = numpy.empty(self.table.packed_bytes(depth, width) + 64, numpy.uint8)
        self.start = <char *> np.PyArray_DATA(self.room) + (-<size_t> np.PyArray_DATA(self.room) % 64)
        with nogil:
            self.subnormal = self.table.pack(codes, depth, width, self.start)


# Packed weights by the identity of the Bfloat16Weight, as long as that lives. Only read-only bits, which
# :func:`round_weight_bfloat16` makes, are kept: others could change between two calls.
_kept = weakref.WeakKeyDictionary()


cdef Packed _packed(weight, np.ndarray bits):
    cdef Packed found
    if type(weight) is not Bfloat16Weight or weight.bits.flags.writeable:
        return Packed(_in_order(bits))
    found = _kept.get(weight)
    if found is None or found.table != rn_bf16():
        found = Packed(_in_order(bits))
        _kept[weight] = found
    return found


def round_weight_bfloat16(weight):
    """Round a weight matrix (K, N) to bfloat16 once; see :func:`refnorm.quantizers.round_weight_bfloat16`.

    The array of the result is read-only, so that :func:`bfloat16_linear` may keep its own packed copy with it.

    Examples
    --------
    >>> import numpy as np
    >>> round_weight_bfloat16(np.array([[1.0, 257.0]])).bits
    array([[16256],
           [17280]], dtype=uint16)
    """
    rounded = _reference_round_weight(weight)
    rounded.bits.flags.writeable = False
    return rounded


def bfloat16_linear(x, weight, bias=None, *, out=None):
    """Apply a linear layer whose weights are stored in bfloat16; see :func:`refnorm.quantizers.bfloat16_linear`.

    Products and sums are those of :func:`linear_lowp` for ``Precision("bfloat16", "float32", "float32")``. A weight from
    :func:`round_weight_bfloat16` of this package is packed for the kernel at its first use only.

    Parameters
    ----------
    x : array (..., K)
    weight : Bfloat16Weight of (N, K)
    bias : array (N,) or None
    out : array (..., N) of the dtype of ``x``, optional
        Receives the result.

    Examples
    --------
    >>> import numpy as np
    >>> bfloat16_linear(np.array([[1.0, 257.0]]), round_weight_bfloat16(np.ones((2, 1))))
    array([[256.]])
    """
    cdef np.ndarray array = _float_array(x, "x")
    if array.ndim == 0:
        _checks.float_array(array, "x", min_ndim=1)
    bits = numpy.asarray(weight.bits)
    if bits.dtype != numpy.uint16 or bits.ndim != 2:
        bfloat16_floats(weight)  # raises
    outputs, inputs = bits.shape
    if array.shape[array.ndim - 1] != inputs:
        _checks.fail("x", f"shape (..., {inputs}) like weight", (<object> array).shape)
    if bias is not None:
        bias = _checks.float_array(bias, "bias")
        _checks.same_dtype("x", array, bias=bias)
        _checks.shape(bias, "bias", (outputs,))
        bias = numpy.require(bias, requirements="CA")
    shape = (*(<object> array).shape[:-1], outputs)
    if out is not None and not (type(out) is np.ndarray and np.PyArray_ISCARRAY(<np.ndarray> out)
                                and out.dtype == array.dtype and out.shape == shape):
        _check_out(out, numpy.broadcast_to(array.dtype.type(0), shape))
    cdef np.ndarray rows = array if array.ndim == 2 else _in_order(array).reshape(int(numpy.prod(shape[:-1])), inputs)
    rows = _whole_strides(rows)
    cdef bint direct = out is not None and np.PyArray_ISCARRAY(<np.ndarray> out) and _apart(out, rows)
    direct = direct and (bias is None or _apart(out, bias)) and _apart(out, bits)
    cdef np.ndarray result = out if direct else numpy.empty(shape, array.dtype)
    cdef Packed packed = _packed(weight, bits)
    cdef rn_bf16_call call
    cdef np.npy_intp item = np.PyArray_ITEMSIZE(rows)
    cdef int failed = 1
    if not packed.subnormal:
        call.packed = packed.start
        call.a = np.PyArray_DATA(rows)
        call.b = NULL
        call.bias = np.PyArray_DATA(<np.ndarray> bias) if bias is not None else NULL
        call.a_row = np.PyArray_STRIDE(rows, 0) // item
        call.a_depth = np.PyArray_STRIDE(rows, 1) // item
        call.b_depth = call.b_column = 0
        call.rows, call.depth, call.width = rows.shape[0], inputs, outputs
        call.out = np.PyArray_DATA(result)
        call.wide = np.PyArray_TYPE(rows) == np.NPY_DOUBLE
        with nogil:
            failed = packed.table.matmul(&call)
    if failed < 0:
        raise MemoryError("bfloat16_linear: no memory for the rounded rows")
    if failed:
        _product(rows, bfloat16_floats(weight).astype(rows.dtype, copy=False).T, bias, result.reshape(rows.shape[0], outputs))
    if out is None or direct:
        return result
    out[...] = result
    return out


def bfloat16_linear_vjp(x, weight, bias=None):
    """Return :func:`bfloat16_linear` and its pullback ``dy -> (dx, dbias)``, in bfloat16 too."""
    y = bfloat16_linear(x, weight, bias)
    # A copy, so that the pullback multiplies by what the value was computed from even if the caller's array changes.
    bits = numpy.array(weight.bits) if weight.bits.flags.writeable else weight.bits
    array = numpy.asarray(x)
    dtype, shape, outputs = array.dtype, array.shape, len(bits)

    def pullback(dy):
        rows = int(numpy.prod(shape[:-1]))
        g = numpy.asarray(dy, dtype).reshape(rows, outputs)
        floats = bfloat16_floats(Bfloat16Weight(bits)).astype(dtype, copy=False)
        dx = matmul_lowp(g, floats, precision=BFLOAT16).reshape(shape)
        return dx, None if bias is None else matmul_lowp(numpy.ones((1, rows), dtype), g, precision=BFLOAT16)[0]

    return y, pullback
