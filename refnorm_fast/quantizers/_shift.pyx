"""ShiftQuant: checks, layout and the order of products; the arithmetic is in _kernels/quantize.c and _kernels/int8.c."""

import numpy

cimport numpy as np
from libc.float cimport DBL_MIN, FLT_MIN
from libc.math cimport frexp, isinf, ldexp, nextafter, nextafterf
from libc.stdint cimport int8_t

np.import_array()

include "../_kernels/rows.pxi"
include "quantize.pxi"

cdef extern from "int8.h":
    ctypedef struct rn_int8_table:
        size_t (*padded_width)(size_t width) nogil
        size_t (*packed_bytes)(size_t depth, size_t width) nogil
        void (*pack)(const int8_t *q, size_t q_stride, size_t depth, size_t width, int8_t *packed, int32_t *sums) nogil
        void (*pack_columns)(const int8_t *q, size_t q_stride, size_t depth, size_t width, int8_t *packed,
                             int32_t *sums) nogil
        int (*scaled)(int wide, const int8_t *a, const int8_t *times, size_t rows, size_t depth, const int8_t *packed,
                      const int32_t *sums, size_t width, double power, double scale, void *y) nogil
    const rn_int8_table *rn_int8() nogil

from refnorm.quantizers import ShiftQuantized, _shift_quant

from refnorm_fast.quantizers._core import MOST_TERMS, int8_matmul

DRAWN = 1 << 16
"""Random numbers drawn at a time."""


cdef rn_layout _channels_along(np.ndarray x, int axis):
    """The layout whose channels are the entries of one axis."""
    cdef rn_layout layout
    cdef int i
    layout.outer = layout.inner = 1
    layout.channels = np.PyArray_DIM(x, axis)
    for i in range(np.PyArray_NDIM(x)):
        if i < axis:
            layout.outer *= np.PyArray_DIM(x, i)
        elif i > axis:
            layout.inner *= np.PyArray_DIM(x, i)
    return layout


cdef rn_layout _all_together(np.ndarray x):
    """The layout of one channel."""
    cdef rn_layout layout
    layout.outer = layout.channels = 1
    layout.inner = np.PyArray_SIZE(x)
    return layout


cdef class _Groups:
    """Shifts, powers of 2 and the scale of an array's channels."""

    cdef np.ndarray shift, powers
    cdef double scale

    cdef int8_t *shifts(self) noexcept:
        return <int8_t *> np.PyArray_DATA(self.shift)


cdef _Groups _grouped(np.ndarray x, rn_layout layout, int n_groups, int highest):
    """The groups of `x`, contiguous and not empty; None if an entry is not finite."""
    cdef _Groups groups = _Groups()
    cdef np.npy_intp channels = layout.channels, c
    cdef int type = np.PyArray_TYPE(x), exponent, top_exponent, shift
    cdef np.ndarray low = rn_empty(1, &channels, type), high = rn_empty(1, &channels, type)
    cdef double *range_of
    cdef double largest = 0, top, significand
    if not _extremes(x, layout, low, high):
        return None
    groups.shift, groups.powers = rn_empty(1, &channels, np.NPY_INT8), rn_empty(1, &channels, np.NPY_DOUBLE)
    range_of = <double *> np.PyArray_DATA(groups.powers)
    for c in range(channels):
        if type == np.NPY_FLOAT:
            range_of[c] = max(-(<float *> np.PyArray_DATA(low))[c], (<float *> np.PyArray_DATA(high))[c])
        else:
            range_of[c] = max(-(<double *> np.PyArray_DATA(low))[c], (<double *> np.PyArray_DATA(high))[c])
        largest = max(largest, range_of[c])
    # As in the reference: the quotient of two significands costs one power of 2 if it is below 1.
    top = frexp(largest, &top_exponent)
    for c in range(channels):
        shift = n_groups - 1
        if range_of[c] > 0:
            significand = frexp(range_of[c], &exponent)
            shift = min(max(top_exponent - exponent - (top < significand), 0), shift)
        groups.shifts()[c] = <int8_t> shift
        range_of[c] = ldexp(1, shift)
    groups.scale = _scale_of(largest, highest, type == np.NPY_FLOAT)
    return groups


cdef double _scale_of(double largest, int highest, bint single) noexcept:
    """``max(largest / highest, smallest normal number)`` in the array's type, below what overflows again; 1 for 0."""
    cdef float one
    cdef double scale
    if largest == 0:
        return 1
    if single:
        one = max(<float> largest / <float> highest, FLT_MIN)
        return nextafterf(one, 0) if isinf(<float> (one * <float> highest)) else one
    scale = max(largest / highest, DBL_MIN)
    return nextafter(scale, 0) if isinf(scale * highest) else scale


cdef _codes(np.ndarray x, rn_layout layout, _Groups groups, int highest, np.ndarray q, rng):
    """Fill `q`. Random numbers are drawn in the order of the entries, in pieces."""
    cdef size_t total = np.PyArray_SIZE(x), begin = 0, end
    cdef void *source = np.PyArray_DATA(x)
    cdef void *to = np.PyArray_DATA(q)
    cdef const double *powers = <const double *> np.PyArray_DATA(groups.powers)
    cdef double scale = groups.scale
    cdef const double *numbers
    cdef np.ndarray drawn
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT, bytes = np.PyArray_TYPE(q) == np.NPY_INT8
    while begin < total:
        end = total
        numbers = NULL
        if rng is not None:
            end = min(total, begin + <size_t> DRAWN)
            drawn = rng.random(end - begin)
            numbers = <const double *> np.PyArray_DATA(drawn)
        with nogil:
            if single:
                rn_quantize().shift_codes_f32(bytes, <float *> source, scale, powers, numbers, highest, layout, begin, end, to)
            else:
                rn_quantize().shift_codes_f64(bytes, <double *> source, scale, powers, numbers, highest, layout, begin, end, to)
        begin = end


def shift_quantize(g, *, bits=4, n_groups=4, axis=-1, rounding="stochastic", rng=None):
    """Quantize symmetrically, with scales that differ by powers of 2 from channel to channel.

    Parameters
    ----------
    g : float32 or float64 array
        Finite numbers, for example the cotangent of a layer's output.
    bits : int >= 2
        Codes run from ``-(2^(bits - 1) - 1)`` to ``2^(bits - 1) - 1``; ``bits + n_groups - 1 <= 16``.
    n_groups : int >= 1
        Number of scales; 1 is one scale for all of ``g``.
    axis : int
        The axis of channels: the one that the product to come sums over.
    rounding : {"stochastic", "nearest"}
    rng : numpy.random.Generator
        Needed by, and only used for, stochastic rounding; it gives the reference's numbers.

    Returns
    -------
    ShiftQuantized
        Equal to the reference's, entry for entry.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.shift_quantize`.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 3.

    Examples
    --------
    >>> found = shift_quantize(np.array([[8.0, 3.0, -0.9]]), rounding="nearest")
    >>> found.q, (7 * found.dequantize()).round(9)
    (array([[ 7,  5, -6]], dtype=int8), array([[56., 20., -6.]]))
    """
    cdef np.ndarray x = _float_array(g, "g"), q
    cdef rn_layout layout
    cdef _Groups groups = None
    cdef int ndim = np.PyArray_NDIM(x), channel, highest
    if (np.PyArray_SIZE(x) and axis.__class__ is int and -ndim <= axis < ndim and bits.__class__ is int
            and n_groups.__class__ is int and bits >= 2 and n_groups >= 1 and bits + n_groups <= 17
            and (rounding == "nearest" or (rounding == "stochastic" and isinstance(rng, numpy.random.Generator)))):
        channel = axis % ndim
        highest = (1 << (<int> bits - 1)) - 1
        x = _plain(x)
        layout = _channels_along(x, channel) if n_groups > 1 else _all_together(x)
        groups = _grouped(x, layout, n_groups, highest)
    if groups is None:
        return _shift_quant.shift_quantize(g, bits=bits, n_groups=n_groups, axis=axis, rounding=rounding, rng=rng)
    q = rn_empty(ndim, np.PyArray_DIMS(x), np.NPY_INT8 if bits <= 8 else np.NPY_INT16)
    _codes(x, layout, groups, highest, q, rng if rounding == "stochastic" else None)
    shape = [1] * ndim
    shape[channel] = np.PyArray_DIM(x, channel)
    shift = groups.shift.reshape(shape) if n_groups > 1 else numpy.zeros(shape, numpy.int8)
    return ShiftQuantized(q, shift, numpy.array(groups.scale, x.dtype), n_groups)


cdef bint _is_int8_matrix(array) noexcept:
    """Whether it has codes from -127 to 127."""
    return isinstance(array, np.ndarray) and np.PyArray_TYPE(<np.ndarray> array) == np.NPY_INT8 and np.PyArray_NDIM(<np.ndarray> array) == 2


cdef _integer_product(q, shift, int n_groups, weight):
    """``2^(n_groups - 1) sum_c q_tc 2^-shift_c weight_ck`` in float64, exact; None if the codes do not suit the kernel."""
    if not (_is_int8_matrix(q) and _is_int8_matrix(weight) and q.size and weight.size and q.shape[1] == len(weight)):
        return None
    if not (isinstance(shift, np.ndarray) and shift.dtype == numpy.int8 and shift.shape == (1, q.shape[1])):
        return None
    if len(weight) > MOST_TERMS or shift.min() < 0 or shift.max() >= n_groups or q.min() < -127 or weight.min() < -127:
        return None
    up = n_groups - 1 - shift[0]
    largest = numpy.maximum(q.max(axis=0), numpy.negative(q.min(axis=0))).astype(numpy.int64)
    if (largest << up).max() <= 127:
        return int8_matmul(q << up, weight.T).astype(numpy.float64)
    # The shifts after the sums: channels that share one are a product of their own.
    total = numpy.zeros((len(q), weight.shape[1]))
    for one in numpy.unique(up):
        channels = numpy.flatnonzero(up == one)
        total += int8_matmul(_plain(q[:, channels]), weight[channels].T) * float(1 << int(one))
    return total


def shift_matmul(g, weight, weight_scale, *, out=None):
    """Multiply shift-quantized rows by an integer matrix: shifts and one sum of integers.

    Parameters
    ----------
    g : ShiftQuantized
        Codes (T, C), channels along the last axis.
    weight : int array (C, K)
        Codes. int8 codes from -127 to 127 on both sides are multiplied by int8 kernels, others by the reference.
    weight_scale : float, array () or array (K,)
        What one unit of the codes stands for: for all of them, or for each output.
    out : array (T, K), optional
        Takes the result.

    Returns
    -------
    array (T, K), dtype of ``g.scale``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.shift_matmul`; also if ``out`` does not fit.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948, section 3 (product without rearranging memory).

    Examples
    --------
    >>> found = shift_quantize(np.array([[8.0, 3.0, -0.9]]), rounding="nearest")
    >>> shift_matmul(found, np.ones((3, 1), dtype=np.int8), 1.0)
    array([[10.]])
    """
    scales = numpy.asarray(weight_scale)
    total = None
    if scales.shape == () or scales.shape == getattr(weight, "shape", ())[1:]:
        total = _integer_product(g.q, g.shift, g.n_groups, weight)
    if total is None:
        return _by_reference(_shift_quant.shift_matmul, out, (g, weight, weight_scale), {})
    total *= 2.0 ** (1 - g.n_groups)
    total *= float(g.scale) * scales.astype(numpy.float64)
    y = total.astype(g.scale.dtype, copy=False)
    if out is None:
        return y
    _check_out(out, y)
    out[...] = y
    return out


def shift_linear(x, weight, *, forward_bits=4, out=None):
    """Apply a linear layer with integer inputs and weights.

    Parameters
    ----------
    x : array (T, I)
        Finite numbers.
    weight : array (I, O)
        Finite numbers.
    forward_bits : int, 2 to 16
        Width of the codes of ``x`` and ``weight``; one scale each, by the largest magnitude.
    out : array (T, O), optional
        Takes the result.

    Returns
    -------
    array (T, O), dtype of ``x``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.shift_linear`; also if ``out`` does not fit.

    References
    ----------
    Guo et al. (2024), arXiv 2411.10948.

    Examples
    --------
    >>> shift_linear(np.array([[7.0, 2.2]]), np.array([[1.0], [3.5]]), forward_bits=4)
    array([[14.]])
    """
    return _by_reference(_linear, out, (x, weight, forward_bits), {})


def _linear(x, weight, forward_bits):
    return shift_linear_vjp(x, weight, forward_bits=forward_bits, grad_bits=None)[0]


def shift_linear_vjp(x, weight, *, forward_bits=4, grad_bits=4, n_groups=4, rng=None):
    """Return :func:`shift_linear` and its integer pullback ``dy -> (dx, dweight)``.

    Parameters and errors are those of :func:`refnorm.quantizers.shift_linear_vjp`, and so are all results, bit for bit
    wherever the pullback works on integers.
    """
    if _suits(x, weight, forward_bits) and (grad_bits is None or (
        _is_whole(grad_bits, 2, 8) and _is_whole(n_groups, 1, 8) and isinstance(rng, numpy.random.Generator)
    )):
        layer = _Layer.of(x, weight, forward_bits)
        if layer is not None:
            return layer.outputs(), lambda dy: layer.back(dy, grad_bits, n_groups, rng)
    return _composed(x, weight, forward_bits, grad_bits, n_groups, rng)


def _composed(x, weight, forward_bits, grad_bits, n_groups, rng):
    """The layer of the functions above, for every kind of argument."""
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    _checks.shape(x, "x", (len(x), len(weight)))
    _checks.finite(x, "x")
    _checks.finite(weight, "weight")
    if grad_bits is not None:
        _shift_quant._highest(grad_bits, n_groups)
        rng = _checks.generator(rng)
    codes = shift_quantize(x, bits=forward_bits, n_groups=1, rounding="nearest")
    weights = shift_quantize(weight, bits=forward_bits, n_groups=1, rounding="nearest")
    y = shift_matmul(codes, weights.q, weights.scale)
    return y, lambda dy: _composed_back(codes, weights, dy, grad_bits, n_groups, rng)


def _composed_back(codes, weights, dy, grad_bits, n_groups, rng):
    dy = numpy.asarray(dy)
    if grad_bits is None:
        return dy @ weights.dequantize().T, codes.dequantize().T @ dy
    by_output = shift_quantize(dy, bits=grad_bits, n_groups=n_groups, rng=rng)
    by_example = shift_quantize(dy.T, bits=grad_bits, n_groups=n_groups, rng=rng)
    dx = shift_matmul(by_output, weights.q.T, weights.scale)
    return dx, shift_matmul(by_example, codes.q, codes.scale).T


# ---- the layer with codes of 8 bits ------------------------------------------------------------------------------------


cdef bint _is_whole(number, int low, int high):
    return number.__class__ is int and low <= number <= high


cdef bint _suits(x, weight, forward_bits):
    """Whether both are matrices that match, not empty, of a depth whose sums 32 bits hold."""
    cdef np.ndarray left, right
    if type(x) is not np.ndarray or type(weight) is not np.ndarray or not _is_whole(forward_bits, 2, 8):
        return False
    left, right = <np.ndarray> x, <np.ndarray> weight
    return (np.PyArray_TYPE(left) in (np.NPY_FLOAT, np.NPY_DOUBLE) and np.PyArray_TYPE(left) == np.PyArray_TYPE(right)
            and np.PyArray_NDIM(left) == 2 and np.PyArray_NDIM(right) == 2
            and np.PyArray_ISNOTSWAPPED(left) and np.PyArray_ISNOTSWAPPED(right)
            and np.PyArray_DIM(left, 1) == np.PyArray_DIM(right, 0)
            and 0 < np.PyArray_SIZE(left) and 0 < np.PyArray_SIZE(right)
            and max(np.PyArray_DIM(left, 0), np.PyArray_DIM(left, 1), np.PyArray_DIM(right, 1)) <= <np.npy_intp> MOST_TERMS)


cdef class _Panels:
    """Codes in the order in which products read them."""

    cdef const rn_int8_table *table
    cdef np.ndarray room
    cdef size_t depth, width
    cdef int8_t *codes
    cdef int32_t *sums

    def __cinit__(self, np.ndarray q, bint columns):
        """The right operand is `q` (depth, width) if `columns`, else the transpose of `q` (width, depth)."""
        cdef const int8_t *source = <const int8_t *> np.PyArray_DATA(q)
        cdef size_t stride = q.shape[1], before, bytes
        cdef np.npy_intp total
        self.table = rn_int8()
        self.depth, self.width = q.shape[not columns], q.shape[columns]
        before = 4 * self.table.padded_width(self.width) + 64
        bytes = self.table.packed_bytes(self.depth, self.width)
        total = before + bytes + 64
        self.room = rn_empty(1, &total, np.NPY_INT8)
        self.sums = <int32_t *> ((<size_t> np.PyArray_DATA(self.room) + 63) // 64 * 64)
        self.codes = <int8_t *> ((<size_t> self.sums + before - 1) // 64 * 64)
        with nogil:
            if columns:
                self.table.pack_columns(source, stride, self.depth, self.width, self.codes, self.sums)
            else:
                self.table.pack(source, stride, self.depth, self.width, self.codes, self.sums)

    cdef np.ndarray times(self, np.ndarray q, np.ndarray factors, double power, double scale, int type):
        """``q @ panels * power * scale``; `factors`, or None, belong to the columns of `q`."""
        cdef np.npy_intp shape[2]
        shape[0], shape[1] = q.shape[0], self.width
        cdef np.ndarray y = rn_empty(2, shape, type)
        cdef const int8_t *codes = <const int8_t *> np.PyArray_DATA(q)
        cdef const int8_t *each = NULL if factors is None else <const int8_t *> np.PyArray_DATA(factors)
        cdef void *target = np.PyArray_DATA(y)
        cdef size_t rows = q.shape[0]
        cdef int wide = type == np.NPY_DOUBLE, failed
        with nogil:
            failed = self.table.scaled(wide, codes, each, rows, self.depth, self.codes, self.sums, self.width, power,
                                       scale, target)
        if failed:
            raise MemoryError("no memory for a block of rows")
        return y


cdef class _Layer:
    """Codes of a layer's inputs (T, I) and weights (I, O), and their scales."""

    cdef np.ndarray inputs, weights
    cdef double input_scale, weight_scale
    cdef int type

    @staticmethod
    cdef _Layer of(np.ndarray x, np.ndarray weight, int bits):
        """The layer, or None if an entry is not finite."""
        cdef _Layer layer = _Layer()
        layer.type = np.PyArray_TYPE(x)
        layer.inputs = _one_scale(x, bits, &layer.input_scale)
        if layer.inputs is None:
            return None
        layer.weights = _one_scale(weight, bits, &layer.weight_scale)
        return None if layer.weights is None else layer

    cdef outputs(self):
        cdef _Panels panels = _Panels(self.weights, True)
        return panels.times(self.inputs, None, 1, self.input_scale * self.weight_scale, self.type)

    cdef back(self, given, grad_bits, n_groups, rng):
        cdef np.ndarray dy, turned, by_output, by_example
        cdef _Groups outputs, examples
        cdef rn_layout layout
        cdef int highest, groups
        cdef double power
        given = numpy.asarray(given)
        dtype = numpy.float32 if self.type == np.NPY_FLOAT else numpy.float64
        if grad_bits is not None:
            highest, groups = (1 << (<int> grad_bits - 1)) - 1, n_groups
            if (given.dtype == dtype and given.shape == (self.inputs.shape[0], self.weights.shape[1])
                    and highest << (groups - 1) <= 127):
                dy = _plain(given)
                outputs = _grouped(dy, _channels_along(dy, 1), groups, highest)
                examples = _grouped(dy, _channels_along(dy, 0), groups, highest)
                if outputs is not None and examples is not None:
                    power = ldexp(1, 1 - groups)
                    by_output = rn_empty(2, np.PyArray_DIMS(dy), np.NPY_INT8)
                    _codes(dy, _channels_along(dy, 1), outputs, highest, by_output, rng)
                    turned = _in_order(dy.T)
                    by_example = rn_empty(2, np.PyArray_DIMS(turned), np.NPY_INT8)
                    _codes(turned, _channels_along(turned, 1), examples, highest, by_example, rng)
                    dx = _Panels(self.weights, False).times(by_output, _raised(outputs, groups), power,
                                                            outputs.scale * self.weight_scale, self.type)
                    dweight = _Panels(self.inputs, True).times(by_example, _raised(examples, groups), power,
                                                               examples.scale * self.input_scale, self.type)
                    return dx, dweight.T
        codes, weights = _quantized(self.inputs, self.input_scale, dtype), _quantized(self.weights, self.weight_scale, dtype)
        return _composed_back(codes, weights, given, grad_bits, n_groups, rng)


cdef _quantized(np.ndarray q, double scale, dtype):
    return ShiftQuantized(q, numpy.zeros((1, q.shape[1]), numpy.int8), numpy.array(scale, dtype), 1)


cdef np.ndarray _one_scale(np.ndarray x, int bits, double *scale):
    """Codes of 8 bits with one scale, to nearest; None if an entry is not finite."""
    cdef int highest = (1 << (bits - 1)) - 1
    cdef np.ndarray q
    x = _plain(x)
    cdef _Groups groups = _grouped(x, _all_together(x), 1, highest)
    if groups is None:
        return None
    scale[0] = groups.scale
    q = rn_empty(2, np.PyArray_DIMS(x), np.NPY_INT8)
    _codes(x, _all_together(x), groups, highest, q, None)
    return q


cdef np.ndarray _raised(_Groups groups, int n_groups):
    """``2^(n_groups - 1 - shift)`` of each channel."""
    cdef np.ndarray factors = _fresh(groups.shift)
    cdef int8_t *to = <int8_t *> np.PyArray_DATA(factors)
    cdef np.npy_intp c
    for c in range(np.PyArray_SIZE(factors)):
        to[c] = <int8_t> (1 << (n_groups - 1 - groups.shifts()[c]))
    return factors
