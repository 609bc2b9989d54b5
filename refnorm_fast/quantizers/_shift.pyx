"""ShiftQuant: checks, layout and the order of products; the arithmetic is in _kernels/quantize.c and _kernels/int8.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "quantize.pxi"

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


cdef _ranges(np.ndarray x, rn_layout layout, int axis):
    """The largest magnitude of each channel, as `x` has dimensions; None if an entry is not finite."""
    cdef np.npy_intp channels = layout.channels
    cdef np.ndarray low = rn_empty(1, &channels, np.PyArray_TYPE(x)), high = rn_empty(1, &channels, np.PyArray_TYPE(x))
    if not _extremes(x, layout, low, high):
        return None
    shape = [1] * np.PyArray_NDIM(x)
    shape[axis] = channels
    return numpy.maximum(high, numpy.negative(low, out=low), out=high).reshape(shape)


cdef _codes(np.ndarray x, rn_layout layout, double scale, np.ndarray powers, int highest, np.ndarray q, rng):
    """Fill `q`. Random numbers are drawn in the order of the entries, in pieces."""
    cdef size_t total = np.PyArray_SIZE(x), begin = 0, end
    cdef void *source = np.PyArray_DATA(x)
    cdef void *to = np.PyArray_DATA(q)
    cdef const double *factors = <const double *> np.PyArray_DATA(powers)
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
                rn_quantize().shift_codes_f32(bytes, <float *> source, scale, factors, numbers, highest, layout, begin, end, to)
            else:
                rn_quantize().shift_codes_f64(bytes, <double *> source, scale, factors, numbers, highest, layout, begin, end, to)
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
    cdef np.ndarray x = _float_array(g, "g"), powers, q
    cdef rn_layout layout
    cdef int ndim = np.PyArray_NDIM(x), channel
    ranges = None
    if (np.PyArray_SIZE(x) and axis.__class__ is int and -ndim <= axis < ndim and bits.__class__ is int
            and n_groups.__class__ is int and bits >= 2 and n_groups >= 1 and bits + n_groups <= 17
            and (rounding == "nearest" or (rounding == "stochastic" and isinstance(rng, numpy.random.Generator)))):
        channel = axis % ndim
        x = _plain(x)
        layout = _channels_along(x, channel)
        ranges = _ranges(x, layout, channel)
    if ranges is None:
        return _shift_quant.shift_quantize(g, bits=bits, n_groups=n_groups, axis=axis, rounding=rounding, rng=rng)
    highest = _shift_quant._highest(bits, n_groups)
    shift = _shift_quant._shifts(ranges, n_groups)
    scale = _shift_quant._scale(ranges.max(initial=0), highest)
    powers = <np.ndarray> numpy.ldexp(1.0, shift.ravel().astype(numpy.int32))
    q = rn_empty(ndim, np.PyArray_DIMS(x), np.NPY_INT8 if bits <= 8 else np.NPY_INT16)
    _codes(x, layout, float(scale), powers, highest, q, rng if rounding == "stochastic" else None)
    return ShiftQuantized(q, shift, scale, n_groups)


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

    def pullback(dy):
        dy = numpy.asarray(dy)
        if grad_bits is None:
            return dy @ weights.dequantize().T, codes.dequantize().T @ dy
        by_output = shift_quantize(dy, bits=grad_bits, n_groups=n_groups, rng=rng)
        by_example = shift_quantize(dy.T, bits=grad_bits, n_groups=n_groups, rng=rng)
        dx = shift_matmul(by_output, weights.q.T, weights.scale)
        return dx, shift_matmul(by_example, codes.q, codes.scale).T

    return y, pullback
