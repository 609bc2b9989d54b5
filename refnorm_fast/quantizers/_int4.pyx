"""Linear layers on 4-bit weights: checks and layout; the arithmetic is in _kernels/int4.c."""

import weakref

import numpy

cimport numpy as np
from libc.stdint cimport uint8_t

from refnorm.quantizers import Int4Weight
from refnorm.quantizers import quantize_weight_int4 as _reference_quantize_weight
from refnorm.quantizers._int4 import ACTIVATIONS, check_int4_weight

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "int4.h":
    ctypedef struct rn_int4_weight:
        const uint8_t *codes
        const void *scale
        const uint8_t *zero
        size_t depth, width, group
    ctypedef struct rn_int4_table:
        int (*linear_f32)(const rn_int4_weight *weight, const float *x, size_t rows, const float *bias, float *out) nogil
        int (*linear_f64)(const rn_int4_weight *weight, const double *x, size_t rows, const double *bias,
                          double *out) nogil
        void (*dequantize_f32)(const rn_int4_weight *weight, size_t first, size_t last, float *to) nogil
        void (*dequantize_f64)(const rn_int4_weight *weight, size_t first, size_t last, double *to) nogil
        int (*in_8_bits_f32)(const float *x, size_t rows, size_t depth, size_t group, float *to) nogil
        int (*in_8_bits_f64)(const double *x, size_t rows, size_t depth, size_t group, double *to) nogil
        size_t (*packed_bytes)(const rn_int4_weight *weight) nogil
        void (*pack)(const rn_int4_weight *weight, void *packed) nogil
        int (*linear_bytes)(const rn_int4_weight *weight, const void *packed, const float *x, size_t rows, const float *bias,
                            float *out) nogil
    const rn_int4_table *rn_int4() nogil

# Weights that the pullback dequantizes at a time.
DEQUANTIZED = 1 << 20


cdef np.ndarray _carray(array):
    """`array` itself, or a copy in C order if it is not contiguous and aligned."""
    if type(array) is np.ndarray and np.PyArray_ISCARRAY_RO(<np.ndarray> array):
        return <np.ndarray> array
    return numpy.require(array, requirements="CA")


cdef bint _disjoint(np.ndarray a, np.ndarray b) noexcept:
    """Whether two C-contiguous arrays have no byte in common."""
    cdef char *first = <char *> np.PyArray_DATA(a)
    cdef char *second = <char *> np.PyArray_DATA(b)
    return first + np.PyArray_NBYTES(a) <= second or second + np.PyArray_NBYTES(b) <= first


cdef class Parts:
    """Contiguous codes, scales and zero points of a weight, and the kernels' view of them."""

    cdef np.ndarray codes, scale, zero
    cdef rn_int4_weight view

    def __init__(self, weight, bint copy):
        parts = weight.q, weight.scale, weight.zero_point
        if copy:
            parts = tuple(numpy.array(part, order="C") for part in parts)
        self.codes, self.scale, self.zero = _carray(parts[0]), _carray(parts[1]), _carray(parts[2])
        self.view.codes = <const uint8_t *> np.PyArray_DATA(self.codes)
        self.view.scale = np.PyArray_DATA(self.scale)
        self.view.zero = <const uint8_t *> np.PyArray_DATA(self.zero)
        self.view.depth = weight.inputs
        self.view.width = self.codes.shape[0]
        self.view.group = weight.group_size

    cdef bint apart_from(self, np.ndarray out) noexcept:
        return _disjoint(out, self.codes) and _disjoint(out, self.scale) and _disjoint(out, self.zero)


cdef class Packed:
    """Codes of a weight in the order of the products with 8-bit inputs."""

    cdef np.ndarray room
    cdef void *start
    cdef const rn_int4_table *table

    def __init__(self, Parts parts):
        self.table = rn_int4()
        self.room = numpy.empty(self.table.packed_bytes(&parts.view) + 64, numpy.uint8)
        self.start = <char *> np.PyArray_DATA(self.room) + (-<size_t> np.PyArray_DATA(self.room) % 64)
        if self.room.size > 64:
            with nogil:
                self.table.pack(&parts.view, self.start)


# Packed weights by the identity of the Int4Weight, as long as that lives. Only those with read-only parts, which
# :func:`quantize_weight_int4` makes, are kept: others could change between two calls.
_kept = weakref.WeakKeyDictionary()


cdef const void *_packed(weight, Parts parts) except? NULL:
    cdef Packed found
    if (type(weight) is not Int4Weight or weight.q.flags.writeable or weight.scale.flags.writeable
            or weight.zero_point.flags.writeable):
        return NULL
    found = _kept.get(weight)
    if found is None or found.table != rn_int4():
        found = Packed(parts)
        _kept[weight] = found
    return found.start


def quantize_weight_int4(weight, *, group_size=128, method="minmax"):
    """Quantize a weight matrix to 4 bits; see :func:`refnorm.quantizers.quantize_weight_int4`.

    The arrays of the result are read-only, so that :func:`int4_linear` with ``activations="int8"`` may keep its own packed
    copy of the codes with it.

    Examples
    --------
    >>> import numpy as np
    >>> quantize_weight_int4(np.array([[0.0], [1.5], [3.0]])).q
    array([[128,  15]], dtype=uint8)
    """
    packed = _reference_quantize_weight(weight, group_size=group_size, method=method)
    for part in (packed.q, packed.scale, packed.zero_point):
        part.flags.writeable = False
    return packed


cdef _checked(x, weight, bias, activations):
    """`x` and `bias` as arrays, after the reference's checks but that for finite numbers."""
    cdef np.ndarray array = _float_array(x, "x")
    if array.ndim == 0:
        _checks.float_array(array, "x", min_ndim=1)
    check_int4_weight(weight)
    _checks.same_dtype("x", array, **{"weight.scale": numpy.asarray(weight.scale)})
    if array.shape[array.ndim - 1] != weight.inputs:
        _checks.fail("x", f"shape (..., {weight.inputs}) like weight", (<object> array).shape)
    if bias is not None:
        bias = _checks.float_array(bias, "bias")
        _checks.same_dtype("x", array, bias=bias)
        _checks.shape(bias, "bias", (len(weight.q),))
        bias = _carray(bias)
    if activations != "float":
        _checks.one_of(activations, "activations", ACTIVATIONS)
    return array, bias


cdef _in_8_bits(np.ndarray source, Parts parts):
    """What the 8-bit codes of a contiguous array's rows stand for."""
    cdef np.ndarray result = numpy.empty_like(source)
    cdef bint single = np.PyArray_TYPE(source) == np.NPY_FLOAT
    cdef const void *given = np.PyArray_DATA(source)
    cdef void *target = np.PyArray_DATA(result)
    cdef size_t rows = source.size // parts.view.depth
    cdef int bad
    with nogil:
        if single:
            bad = rn_int4().in_8_bits_f32(<const float *> given, rows, parts.view.depth, parts.view.group, <float *> target)
        else:
            bad = rn_int4().in_8_bits_f64(<const double *> given, rows, parts.view.depth, parts.view.group,
                                          <double *> target)
    if bad:
        _checks.finite(source, "x")
    return result


def int4_linear(x, weight, bias=None, *, activations="float", out=None):
    """Apply a linear layer whose weights have 4 bits; see :func:`refnorm.quantizers.int4_linear`.

    Weights and sums are in the dtype of ``x``. With ``activations="int8"`` and float32, codes meet codes in exact sums of
    integers where the CPU has dot products of bytes and the group size is a multiple of 128, or of 8 and divides 128. A weight
    from :func:`quantize_weight_int4` of this package is packed for that at its first use only.

    Parameters
    ----------
    x : array (..., K)
    weight : Int4Weight of (N, K)
    bias : array (N,) or None
    activations : {"float", "int8"}
    out : array (..., N) of the dtype of ``x``, optional
        Receives the result.

    Examples
    --------
    >>> import numpy as np
    >>> from refnorm.quantizers import quantize_weight_int4
    >>> int4_linear(np.array([[1.0, -2.0, 0.5]]), quantize_weight_int4(np.array([[0.0], [1.5], [3.0]]))).round(4)
    array([[-1.7]])
    """
    array, bias = _checked(x, weight, bias, activations)
    shape = (*array.shape[:-1], len(weight.q))
    if out is not None and not (type(out) is np.ndarray and np.PyArray_ISCARRAY(<np.ndarray> out)
                                and out.dtype == array.dtype and out.shape == shape):
        _check_out(out, numpy.broadcast_to(array.dtype.type(0), shape))
    cdef Parts parts = Parts(weight, False)
    cdef np.ndarray source = _carray(array)
    cdef bint direct = out is not None and np.PyArray_ISCARRAY(<np.ndarray> out) and _disjoint(out, source)
    direct = direct and parts.apart_from(out) and (bias is None or _disjoint(out, bias))
    cdef np.ndarray result = out if direct else _new(source, shape)
    cdef bint single = np.PyArray_TYPE(source) == np.NPY_FLOAT
    cdef const void *given = np.PyArray_DATA(source)
    cdef const void *shift = np.PyArray_DATA(<np.ndarray> bias) if bias is not None else NULL
    cdef void *target = np.PyArray_DATA(result)
    cdef size_t rows = source.size // parts.view.depth
    cdef int failed = 1
    cdef bint rounded = activations == "int8"
    cdef const void *packed
    if rounded and single:
        packed = _packed(weight, parts)
        with nogil:
            failed = rn_int4().linear_bytes(&parts.view, packed, <const float *> given, rows, <const float *> shift,
                                            <float *> target)
        if failed == 2:
            _checks.finite(source, "x")
    if rounded and failed == 1:
        source = _in_8_bits(source, parts)
        given = np.PyArray_DATA(source)
    with nogil:
        if failed < 1:
            pass
        elif single:
            failed = rn_int4().linear_f32(&parts.view, <const float *> given, rows, <const float *> shift, <float *> target)
        else:
            failed = rn_int4().linear_f64(&parts.view, <const double *> given, rows, <const double *> shift,
                                          <double *> target)
    if failed:
        raise MemoryError("int4_linear: no memory for a block of weights")
    if out is None or direct:
        return result
    out[...] = result
    return out


cdef np.ndarray _new(np.ndarray like, shape):
    cdef np.npy_intp sizes[2]
    sizes[0] = like.size // like.shape[like.ndim - 1]
    sizes[1] = shape[len(shape) - 1]
    return rn_empty(2, sizes, np.PyArray_TYPE(like)).reshape(shape)


cdef np.ndarray _weights(Parts parts, size_t first, size_t last, dtype):
    """Weights of the outputs `first` to `last`, one a row."""
    cdef np.ndarray result = numpy.empty((last - first, parts.view.depth), dtype)
    cdef bint single = np.PyArray_TYPE(result) == np.NPY_FLOAT
    cdef void *target = np.PyArray_DATA(result)
    with nogil:
        if single:
            rn_int4().dequantize_f32(&parts.view, first, last, <float *> target)
        else:
            rn_int4().dequantize_f64(&parts.view, first, last, <double *> target)
    return result


def int4_linear_vjp(x, weight, bias=None, *, activations="float"):
    """Return :func:`int4_linear` and its pullback ``dy -> (dx, dbias)``.

    ``dx = dy @ w_hat.T`` is a sum of BLAS products with blocks of dequantized weights.
    """
    array, bias = _checked(x, weight, bias, activations)
    y = int4_linear(array, weight, bias, activations=activations)
    # A copy, so that the pullback multiplies by what the value was computed from even if the caller's arrays change.
    cdef Parts parts = Parts(weight, True)
    shape, dtype, outputs, inputs = array.shape, array.dtype, len(weight.q), weight.inputs
    rows = array.size // inputs

    def pullback(dy):
        g = numpy.asarray(dy, dtype).reshape(rows, outputs)
        dx = numpy.zeros((rows, inputs), dtype)
        step = max(1, DEQUANTIZED // inputs)
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            dx += g[:, first:last] @ _weights(parts, first, last, dtype)
        dbias = None if bias is None else g.sum(axis=0, dtype=numpy.float64).astype(dtype)
        return dx.reshape(shape), dbias

    return y, pullback
