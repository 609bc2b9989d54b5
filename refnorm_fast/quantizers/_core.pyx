"""LLM.int8(): checks and layout; the arithmetic is in _kernels/int8.c."""

import weakref

import numpy

cimport numpy as np
from libc.stdint cimport int32_t, int64_t, uint8_t

from refnorm.quantizers import Int8Weight
from refnorm.quantizers import absmax_quantize as _reference_absmax_quantize
from refnorm.quantizers import llm_int8_linear as _reference_linear
from refnorm.quantizers import llm_int8_linear_vjp as _reference_linear_vjp
from refnorm.quantizers import vectorwise_quantize as _reference_vectorwise_quantize
from refnorm.quantizers import zeropoint_quantize
from refnorm.quantizers._int8 import check_matrices, rescale
from refnorm.quantizers._llm_int8 import ACTIVATIONS, _activate_vjp
from refnorm_fast.nn import gelu_vjp, relu_vjp

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "int8.h":
    ctypedef struct rn_int8_table:
        size_t (*padded_width)(size_t width) nogil
        size_t (*packed_bytes)(size_t depth, size_t width) nogil
        void (*pack)(const signed char *q, size_t q_stride, size_t depth, size_t width, signed char *packed,
                     int32_t *sums) nogil
        void (*transpose)(const signed char *source, size_t rows, size_t columns, signed char *to) nogil
        int (*matmul)(const signed char *a, size_t a_stride, size_t rows, size_t depth, const signed char *packed,
                      const int32_t *sums, size_t width, int32_t *c, size_t c_stride) nogil
        int (*matmul_rows)(const signed char *a, size_t rows, size_t depth, const signed char *q, size_t width,
                           int32_t *c) nogil
        int (*row_constants)(const float *x, size_t x_stride, size_t rows, size_t depth, float threshold,
                             float *largest, uint8_t *outlier) nogil
        void (*quantize)(const float *x, size_t x_stride, size_t rows, size_t depth, const float *largest,
                         const uint8_t *outlier, signed char *q) nogil
        void (*outlier_weights)(const signed char *packed, size_t depth, size_t width, const float *scale,
                                const int64_t *columns, size_t count, float *weights) nogil
        int (*dequantized)(const signed char *q, const float *largest, size_t rows, size_t depth,
                           const signed char *packed, const int32_t *sums, const float *scale, const float *bias,
                           size_t width, const float *large, size_t count, const float *weights, int activation,
                           const float *residual, float *out, size_t out_stride) nogil
    const rn_int8_table *rn_int8() nogil

# Sums of this many products of codes fit int32.
MOST_TERMS = (2**31 - 1) // 127**2

# The numbers of epilogue.h.
_ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}

# No outlier column.
_NONE = numpy.zeros(0, numpy.intp)

# Up to this many rows, packing the other matrix would take longer than the product.
FEW_ROWS = 64


cdef void *_at(array) noexcept:
    return np.PyArray_DATA(<np.ndarray> array)


cdef class Packed:
    """Codes of a weight in the kernels' order."""

    cdef object codes, sums, scale
    cdef const rn_int8_table *table
    cdef size_t depth, width, wide

    def __init__(self, q, scale):
        cdef np.ndarray source = _in_order(q)
        self.table = rn_int8()
        self.width = source.shape[0]
        self.depth = source.shape[1]
        self.wide = self.table.padded_width(self.width)
        room = numpy.empty(self.table.packed_bytes(self.depth, self.width) + 64, numpy.int8)
        skip = -<size_t> _at(room) % 64
        self.codes = room[skip:]
        self.sums = numpy.zeros(self.wide, numpy.int32)
        self.scale = None
        if scale is not None:
            self.scale = numpy.zeros(self.wide, numpy.float32)
            self.scale[: self.width] = scale
        cdef const signed char *codes = <const signed char *> _at(source)
        cdef signed char *target = <signed char *> _at(self.codes)
        cdef int32_t *sums = <int32_t *> _at(self.sums)
        with nogil:
            self.table.pack(codes, self.depth, self.depth, self.width, target, sums)


# Packed weights by the identity of the Int8Weight, as long as that lives. Only read-only codes, which
# :func:`quantize_weight` makes, are kept: others could change between two calls.
_kept = weakref.WeakKeyDictionary()


cdef Packed _packed(weight):
    cdef Packed found
    if weight.q.flags.writeable or weight.scale.flags.writeable or not isinstance(weight, Int8Weight):
        return Packed(weight.q, weight.scale)
    found = _kept.get(weight)
    if found is None or found.table != rn_int8():
        found = Packed(weight.q, weight.scale)
        _kept[weight] = found
    return found


cdef np.ndarray _contiguous(np.ndarray x):
    return x if np.PyArray_IS_C_CONTIGUOUS(x) else _in_order(x)


cdef _constants(np.ndarray x, float threshold):
    """Largest magnitudes of the rows of a C-contiguous float32 matrix, and its outlier columns as bytes."""
    cdef size_t rows = x.shape[0], depth = x.shape[1]
    largest = numpy.zeros(rows, numpy.float32)
    outlier = numpy.zeros(depth, numpy.uint8)
    cdef const float *source = <const float *> _at(x)
    cdef float *constants = <float *> _at(largest)
    cdef uint8_t *columns = <uint8_t *> _at(outlier)
    cdef int wrong
    with nogil:
        wrong = rn_int8().row_constants(source, depth, rows, depth, threshold, constants, columns)
    if wrong:
        _checks.finite(x, "x")
    return largest, outlier


cdef _codes(np.ndarray x, largest, outlier):
    cdef size_t rows = x.shape[0], depth = x.shape[1]
    q = numpy.empty((rows, depth), numpy.int8)
    cdef const float *source = <const float *> _at(x)
    cdef const float *constants = <const float *> _at(largest)
    cdef const uint8_t *columns = <const uint8_t *> _at(outlier) if outlier is not None else NULL
    cdef signed char *target = <signed char *> _at(q)
    with nogil:
        rn_int8().quantize(source, depth, rows, depth, constants, columns, target)
    return q


cdef _quantized(np.ndarray x, threshold, row_stats):
    """Codes, row constants and outlier columns of a C-contiguous float32 matrix."""
    _checks.non_negative(threshold, "threshold")
    _checks.one_of(row_stats, "row_stats", ("elements", "columns"))
    # x >= threshold in float32, as the reference compares: a threshold between two float32 is raised to the next.
    limit = numpy.float32(threshold)
    if float(limit) < threshold:
        limit = numpy.nextafter(limit, numpy.float32(numpy.inf))
    largest, outlier = _constants(x, limit)
    columns = numpy.flatnonzero(outlier)
    if row_stats == "columns" and columns.size:
        regular = x.copy()
        regular[:, columns] = 0
        largest = _constants(regular, 0)[0]
    return _codes(x, largest, outlier if columns.size else None), largest, columns


def absmax_quantize(x, *, axis=None):
    """Quantize to 8 bits by the largest magnitude; see :func:`refnorm.quantizers.absmax_quantize`.

    float32 with one constant for all of ``x`` or one a row of a matrix runs on the kernel; the rest is the
    reference's computation. The codes are the same.

    Examples
    --------
    >>> import numpy as np
    >>> absmax_quantize(np.array([[1.0, -2.0], [0.5, 0.25]], np.float32), axis=0)[0]
    array([[  64, -127],
           [ 127,   64]], dtype=int8)
    """
    if _on_gpu(x):
        return _dispatch.call("quantizers.absmax_quantize", None, x, axis=axis)
    cdef np.ndarray array = _float_array(x, "x")
    kept = () if axis is None else _checks.axes(axis, array.ndim)
    if np.PyArray_TYPE(array) != np.NPY_FLOAT or array.ndim == 0 or array.size == 0 or (kept and not (
        array.ndim == 2 and kept == (0,)
    )):
        return _reference_absmax_quantize(x, axis=axis)
    array = _contiguous(array)
    rows = numpy.reshape(array, (-1, array.shape[array.ndim - 1]))
    largest, _ = _constants(rows, 0)
    if kept:
        return _codes(rows, largest, None), largest.reshape(-1, 1)
    absmax = largest.max()
    largest[...] = absmax
    return _codes(rows, largest, None).reshape((<object> array).shape), numpy.asarray(absmax)


def vectorwise_quantize(x, *, threshold=0.0, row_stats="elements"):
    """Quantize the rows of a matrix to 8 bits; see :func:`refnorm.quantizers.vectorwise_quantize`.

    One pass over ``x`` finds row constants and outlier columns, a second one the codes. float64 takes the
    reference's path; the results are the same.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, 8.0]], np.float32)
    >>> vectorwise_quantize(x, threshold=6.0)[0]
    array([[  64, -127,    0],
           [  11,  127,    0]], dtype=int8)
    """
    cdef np.ndarray array = _float_array(x, "x")
    if array.ndim != 2 or np.PyArray_TYPE(array) != np.NPY_FLOAT:
        return _reference_vectorwise_quantize(x, threshold=threshold, row_stats=row_stats)
    return _quantized(_contiguous(array), threshold, row_stats)


def quantize_weight(weight):
    """Quantize a weight matrix (K, N) once, with one constant for each output.

    See :func:`refnorm.quantizers.quantize_weight`. The arrays of the result are read-only, so that the kernels may
    keep their own packed copy of the codes with it.

    Examples
    --------
    >>> import numpy as np
    >>> quantize_weight(np.array([[0.5], [-1.0]], np.float32)).q
    array([[  64, -127]], dtype=int8)
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    if weight.shape[0] > MOST_TERMS:
        _checks.fail("weight", f"at most {MOST_TERMS} terms, whose int32 sum is exact", weight.shape[0])
    try:
        q, scale = absmax_quantize(_in_order(weight.T), axis=0)
    except ValueError:
        _checks.finite(weight, "weight")
        raise
    parts = q, scale.reshape(-1), q.sum(axis=1, dtype=numpy.int32)
    for part in parts:
        part.flags.writeable = False
    return Int8Weight(*parts)


def int8_matmul(a, b, *, out=None):
    """Multiply int8 matrices exactly, ``a (T, K) @ b (N, K).T`` in int32; see :func:`refnorm.quantizers.int8_matmul`.

    Parameters
    ----------
    out : int32 array (T, N), optional
        Receives the result.

    Examples
    --------
    >>> import numpy as np
    >>> int8_matmul(np.array([[64, -127]], dtype=np.int8), np.array([[127, 127]], dtype=np.int8))
    array([[-8001]], dtype=int32)
    """
    if _on_gpu(a):
        return _dispatch.call("quantizers.int8_matmul", out, a, b)
    left, right = _int8_matrix(a, "a"), _int8_matrix(b, "b", len(a) > FEW_ROWS)
    if left.shape[1] != right.shape[1]:
        _checks.fail("b", f"shape (N, {left.shape[1]}) like a", right.shape)
    if left.shape[1] > MOST_TERMS:
        _checks.fail("a", f"at most {MOST_TERMS} terms, whose int32 sum is exact", left.shape[1])
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.int32(0), (left.shape[0], right.shape[0])))
        if not (out.flags.c_contiguous and out.flags.aligned and _apart(out, left)):
            out[...] = int8_matmul(left, right)
            return out
    result = out if out is not None else numpy.empty((left.shape[0], right.shape[0]), numpy.int32)
    if left.shape[0] <= FEW_ROWS:
        return _few_rows(left, right, result)
    cdef Packed packed = Packed(right, None)
    cdef const signed char *codes = <const signed char *> _at(left)
    cdef const signed char *panels = <const signed char *> _at(packed.codes)
    cdef const int32_t *sums = <const int32_t *> _at(packed.sums)
    cdef int32_t *target = <int32_t *> _at(result)
    cdef size_t rows = left.shape[0]
    cdef int failed
    with nogil:
        failed = packed.table.matmul(codes, packed.depth, rows, packed.depth, panels, sums, packed.width, target,
                                     packed.width)
    if failed:
        raise MemoryError("int8_matmul: no memory for a block of rows")
    return result


cdef _few_rows(left, right, result):
    cdef const signed char *codes = <const signed char *> _at(left)
    cdef const signed char *others = <const signed char *> _at(right)
    cdef int32_t *target = <int32_t *> _at(result)
    cdef size_t rows = left.shape[0], depth = left.shape[1], width = right.shape[0]
    cdef const rn_int8_table *table = rn_int8()
    cdef int status
    with nogil:
        status = table.matmul_rows(codes, rows, depth, others, width, target)
    if status > 0:
        _int8_matrix(right, "b")  # raises
    if status < 0:
        raise MemoryError("int8_matmul: no memory for the rows")
    return result


cdef _int8_matrix(array, name, look=True):
    """A contiguous int8 matrix; where `look` is false, somebody else looks for -128."""
    matrix = numpy.asarray(array)
    if matrix.dtype != numpy.int8 or matrix.ndim != 2 or (look and matrix.size and matrix.min() == -128):
        matrix = _checks.integer_array(array, name, ndim=2, low=-127)
        _checks.fail_type(name, "dtype int8", matrix.dtype)
    if matrix.flags.f_contiguous and not matrix.flags.c_contiguous and matrix.flags.aligned:
        return _transposed(matrix.T)
    return _in_order(matrix)


cdef np.ndarray _transposed(np.ndarray matrix):
    """The transpose of a C-contiguous int8 matrix, C-contiguous itself."""
    cdef np.npy_intp shape[2]
    shape[0], shape[1] = matrix.shape[1], matrix.shape[0]
    cdef np.ndarray result = rn_empty(2, shape, np.NPY_INT8)
    cdef const signed char *source = <const signed char *> _at(matrix)
    cdef signed char *target = <signed char *> _at(result)
    with nogil:
        rn_int8().transpose(source, shape[1], shape[0], target)
    return result


def matmul_vectorwise(x, weight):
    """``x (T, K) @ weight (K, N)`` in int8 with a constant for each row and column.

    See :func:`refnorm.quantizers.matmul_vectorwise`.

    Examples
    --------
    >>> import numpy as np
    >>> matmul_vectorwise(np.array([[1.0, -2.0]]), np.array([[0.5], [1.0]])).round(4)
    array([[-1.4921]])
    """
    if _on_gpu(x):
        return _dispatch.call("quantizers.matmul_vectorwise", None, x, weight)
    x = _checks.float_array(x, "x", ndim=2)
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    if weight.shape[0] != x.shape[1]:
        _checks.fail("weight", f"shape ({x.shape[1]}, N)", weight.shape)
    return llm_int8_linear(x, quantize_weight(weight), threshold=0.0)


def _absmax_product(x, weight, x_axis):
    """Quantize both matrices by absmax, the weight by one constant, and multiply."""
    x, weight = check_matrices(x, weight)
    if x.dtype != numpy.float32 or x.shape[1] == 0:
        codes, constants = _reference_absmax_quantize(x, axis=x_axis)
        other, constant = _reference_absmax_quantize(weight)
        return rescale(int8_matmul(codes, other.T), constants, constant).astype(x.dtype)
    cdef np.ndarray rows = _contiguous(numpy.asarray(x))
    codes, constants = absmax_quantize(rows, axis=x_axis)
    other, constant = absmax_quantize(_in_order(weight.T))
    packed = Int8Weight(other, numpy.full(len(other), constant, numpy.float32), None)
    largest = _in_order(numpy.broadcast_to(constants.reshape(-1), (len(rows),)))
    result = _new_matrix(rows.shape[0], len(other))
    _product(rows, codes, largest, _NONE, packed, None, None, None, None, result)
    return result


def matmul_tensorwise(x, weight):
    """``x (T, K) @ weight (K, N)`` in int8 with one constant for each matrix.

    See :func:`refnorm.quantizers.matmul_tensorwise`.

    Examples
    --------
    >>> import numpy as np
    >>> matmul_tensorwise(np.array([[1.0, -2.0]]), np.array([[0.5], [1.0]])).round(4)
    array([[-1.4921]])
    """
    return _absmax_product(x, weight, None)


def matmul_rowwise(x, weight):
    """``x (T, K) @ weight (K, N)`` in int8 with a constant for each row of ``x`` and one for ``weight``.

    See :func:`refnorm.quantizers.matmul_rowwise`.

    Examples
    --------
    >>> import numpy as np
    >>> matmul_rowwise(np.array([[1.0, -2.0], [0.0, 0.1]]), np.array([[0.5], [1.0]])).round(4)
    array([[-1.4921],
           [ 0.1   ]])
    """
    return _absmax_product(x, weight, 0)


def matmul_zeropoint(x, weight):
    """``x (T, K) @ weight (K, N)`` in int8 with a zero point for each matrix.

    See :func:`refnorm.quantizers.matmul_zeropoint`. The integer product is the kernel's, the rest the reference's.

    Examples
    --------
    >>> import numpy as np
    >>> matmul_zeropoint(np.array([[1.0, 2.0]]), np.array([[0.5], [1.0]]))
    array([[2.5]])
    """
    x, weight = check_matrices(x, weight)
    x_codes, x_n, x_z = zeropoint_quantize(x)
    codes, n, z = zeropoint_quantize(_in_order(weight.T))
    # z_x times the column sums, and z_w times the row sums less those of the constant: int64, as the products need.
    columns = x_z * codes.sum(axis=1, dtype=numpy.int64)
    rows = z * (x_codes.sum(axis=1, keepdims=True, dtype=numpy.int64) - x.shape[1] * x_z)
    corrected = int8_matmul(x_codes, codes) - columns
    corrected -= rows
    return (corrected / float(x_n) / float(n)).astype(x.dtype)


def _wide_linear(x, weight, bias, threshold, row_stats, outlier_weights, w_float):
    """The layer in float64: the reference's computation around the kernel's integer product."""
    rows = x.reshape(-1, x.shape[x.ndim - 1])
    q, largest, outliers = _reference_vectorwise_quantize(rows, threshold=threshold, row_stats=row_stats)
    product = rescale(int8_matmul(q, weight.q), largest[:, None], numpy.ones(1))
    if outlier_weights == "float":
        product *= weight.scale
        product += rows[:, outliers] @ w_float[outliers]
    else:
        product += rows[:, outliers] @ (weight.q[:, outliers].T / 127)
        product *= weight.scale
    if bias is not None:
        product += bias
    return product.reshape(*x.shape[:-1], len(weight.q))


def llm_int8_linear(x, weight, bias=None, *, threshold=6.0, row_stats="elements", outlier_weights="dequantized",
                    w_float=None, activation=None, residual=None, out=None):
    """Apply a linear layer whose weights are int8; see :func:`refnorm.quantizers.llm_int8_linear`.

    Parameters
    ----------
    x : array (..., K)
    weight : Int8Weight of (N, K)
        One from :func:`quantize_weight` of this package is packed for the kernel at its first use only.
    bias : array (N,) or None
    threshold, row_stats, outlier_weights, w_float, activation, residual
        As in the reference.
    out : array (..., N), optional
        Receives the result; may overlap the arguments, and may be ``residual``, to which the layer is then added.

    Notes
    -----
    The integer product equals the reference's bit for bit; constants, outlier columns and bias follow in float32
    for float32. Activation and residual are applied to a tile of results before it leaves the nearest cache; float32 GELU
    is within 6e-7 absolutely. For float64 the kernel does the integer product, and the rest is the computation of the reference.

    Examples
    --------
    >>> import numpy as np
    >>> weight = quantize_weight(np.array([[0.5, -1.0], [1.0, 0.25], [-0.1, 0.2]], np.float32))
    >>> llm_int8_linear(np.array([[1.0, -2.0, 0.5], [0.25, 3.0, 8.0]], np.float32), weight).round(5)
    array([[-1.54328, -1.41339],
           [ 2.31205,  2.07087]], dtype=float32)
    """
    cdef np.ndarray array = _float_array(x, "x")
    if array.ndim == 0 or weight.q.ndim != 2 or weight.q.shape[1] == 0:
        y = _reference_linear(x, weight, bias, threshold=threshold, row_stats=row_stats,
                              outlier_weights=outlier_weights, w_float=w_float, activation=activation,
                              residual=residual)
        if out is None:
            return y
        _check_out(out, y)
        out[...] = y
        return out
    outputs, terms = weight.q.shape
    if weight.q.dtype != numpy.int8:
        _checks.fail_type("weight.q", "dtype int8", weight.q.dtype)
    scale = _checks.float_array(weight.scale, "weight.scale")
    _checks.same_dtype("x", array, **{"weight.scale": scale})
    _checks.shape(scale, "weight.scale", (outputs,))
    shape = (<object> array).shape
    if array.shape[array.ndim - 1] != terms:
        _checks.fail("x", f"shape (..., {terms}) like weight.q", shape)
    if terms > MOST_TERMS:
        _checks.fail("x", f"at most {MOST_TERMS} terms, whose int32 sum is exact", terms)
    if bias is not None:
        bias = _checks.float_array(bias, "bias")
        _checks.same_dtype("x", array, bias=bias)
        _checks.shape(bias, "bias", (outputs,))
    _checks.one_of(outlier_weights, "outlier_weights", ("dequantized", "float"))
    if outlier_weights == "float":
        if w_float is None:
            _checks.fail("w_float", "the float weights for outlier_weights 'float'", None)
        w_float = _checks.float_array(w_float, "w_float")
        _checks.same_dtype("x", array, w_float=w_float)
        _checks.shape(w_float, "w_float", (terms, outputs))
    result_shape = (*shape[: array.ndim - 1], outputs)
    if activation is not None:
        _checks.one_of(activation, "activation", ACTIVATIONS)
    if residual is not None:
        residual = _checks.float_array(residual, "residual")
        _checks.same_dtype("x", array, residual=residual)
        _checks.shape(residual, "residual", result_shape)
    if out is not None:
        _check_out(out, numpy.broadcast_to(array.dtype.type(0), result_shape))
    if np.PyArray_TYPE(array) != np.NPY_FLOAT:
        y = _wide_linear(array, weight, bias, threshold, row_stats, outlier_weights, w_float)
        y = _activate_vjp(y, activation)[0]
        if residual is not None:
            y = y + residual
        if out is None:
            return y
        out[...] = y
        return out
    cdef np.ndarray rows = numpy.reshape(_contiguous(array), (-1, terms))
    q, largest, columns = _quantized(rows, threshold, row_stats)
    direct = out is not None and out.flags.c_contiguous and out.flags.aligned and _apart(out, rows) and (
        bias is None or _apart(out, bias))
    if residual is not None:
        residual = _contiguous(residual)
        # In place is right: the kernel reads an entry of the residual before it writes there.
        direct = direct and (_apart(out, residual) or _identical(out, residual))
    result = out if direct else _new_matrix(rows.shape[0], outputs).reshape(result_shape)
    _product(rows, q, largest, columns, weight, bias, w_float if outlier_weights == "float" else None, activation, residual,
             result)
    if out is None or direct:
        return result
    out[...] = result
    return out


cdef np.ndarray _new_matrix(Py_ssize_t rows, Py_ssize_t columns):
    cdef np.npy_intp shape[2]
    shape[0] = rows
    shape[1] = columns
    return rn_empty(2, shape, np.NPY_FLOAT)


cdef _outlier_weights(Packed packed, columns):
    """Dequantized weights of outlier columns, one a row, padded."""
    cdef np.ndarray places = _in_order(columns, numpy.int64)
    cdef np.ndarray weights = numpy.empty((len(columns), packed.wide), numpy.float32)
    cdef const signed char *panels = <const signed char *> _at(packed.codes)
    cdef const float *scale = <const float *> _at(packed.scale)
    cdef const int64_t *at = <const int64_t *> np.PyArray_DATA(places)
    cdef float *target = <float *> np.PyArray_DATA(weights)
    cdef size_t count = len(columns)
    with nogil:
        packed.table.outlier_weights(panels, packed.depth, packed.width, scale, at, count, target)
    return weights


cdef _product(np.ndarray rows, q, largest, columns, weight, bias, w_float, activation, residual, result):
    cdef Packed packed = _packed(weight)
    cdef size_t count = columns.size, height = rows.shape[0]
    padded_bias = None
    if bias is not None:
        padded_bias = numpy.zeros(packed.wide, numpy.float32)
        padded_bias[: packed.width] = bias
    weights = large = None
    if count:
        large = _in_order((<object> rows)[:, columns])
        if w_float is None:
            weights = _outlier_weights(packed, columns)
        else:
            weights = numpy.zeros((count, packed.wide), numpy.float32)
            weights[:, : packed.width] = w_float[columns]
    cdef const signed char *codes = <const signed char *> _at(q)
    cdef const float *constants = <const float *> _at(largest)
    cdef const signed char *panels = <const signed char *> _at(packed.codes)
    cdef const int32_t *sums = <const int32_t *> _at(packed.sums)
    cdef const float *scale = <const float *> _at(packed.scale)
    cdef const float *shift = <const float *> _at(padded_bias) if bias is not None else NULL
    cdef const float *entries = <const float *> _at(large) if count else NULL
    cdef const float *dense = <const float *> _at(weights) if count else NULL
    cdef const float *added = <const float *> _at(residual) if residual is not None else NULL
    cdef float *target = <float *> _at(result)
    cdef int function = _ACTIVATIONS[activation], failed
    with nogil:
        failed = packed.table.dequantized(codes, constants, height, packed.depth, panels, sums, scale, shift, packed.width,
                                          entries, count, dense, function, added, target, packed.width)
    if failed:
        raise MemoryError("llm_int8_linear: no memory for a block of rows")


def llm_int8_linear_vjp(x, weight, bias=None, *, threshold=6.0, row_stats="elements", outlier_weights="dequantized",
                        w_float=None, activation=None, residual=None, scale_gradient=False):
    """Return :func:`llm_int8_linear` and its straight-through pullback ``dy -> (dx, dbias)``.

    With a residual, its cotangent follows as the last. With ``scale_gradient`` the pullback is that of :func:`refnorm.quantizers.llm_int8_linear_vjp`. Otherwise
    ``dx = dy @ w_hat.T`` is one BLAS product with the weights that the layer multiplied with.
    """
    array = _checks.float_array(x, "x", min_ndim=1)
    if scale_gradient or array.dtype != numpy.float32:
        return _reference_linear_vjp(x, weight, bias, threshold=threshold, row_stats=row_stats,
                                     outlier_weights=outlier_weights, w_float=w_float, activation=activation,
                                     residual=residual, scale_gradient=scale_gradient)
    # The pullback of an activation needs the sum before it, which is then no step within the kernel.
    y = llm_int8_linear(array, weight, bias, threshold=threshold, row_stats=row_stats, outlier_weights=outlier_weights,
                        w_float=w_float, residual=residual if activation is None else None)
    pull_activation = None
    if activation is not None:
        _checks.one_of(activation, "activation", ACTIVATIONS)
        if activation == "relu":
            y, pull_activation = relu_vjp(y)
        else:
            y, pull_activation = gelu_vjp(y, approximate="tanh" if activation == "gelu_tanh" else "none")
        if residual is not None:
            residual = _checks.float_array(residual, "residual")
            _checks.same_dtype("x", array, residual=residual)
            _checks.shape(residual, "residual", y.shape)
            y += residual
    outputs, terms = weight.q.shape
    outliers = None
    if outlier_weights == "float":
        rows = _in_order(array).reshape(-1, terms)
        outliers = numpy.flatnonzero((numpy.abs(rows) >= threshold).any(axis=0)) if threshold > 0 else None

    def pullback(dy):
        upstream = numpy.asarray(dy, numpy.float32).reshape(y.shape)
        cotangent = (upstream if pull_activation is None else pull_activation(upstream)[0]).reshape(-1, outputs)
        w_hat = weight.q.T * (weight.scale / numpy.float32(127))
        if outliers is not None:
            w_hat[outliers] = w_float[outliers]
        dx = numpy.matmul(cotangent, w_hat.T).reshape(array.shape)
        dbias = None if bias is None else cotangent.sum(axis=0, dtype=numpy.float64).astype(numpy.float32)
        return (dx, dbias) if residual is None else (dx, dbias, upstream.copy())

    return y, pullback
