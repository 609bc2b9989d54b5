"""Logarithmic grids: thresholds, tables and checks; the search is in _kernels/quantize.c.

A code is a step function of t = a / scale, or a + shift: it is known from the places of its steps. They are found with the
reference's own expression, logarithm included, so codes agree at the ties, whatever the last digit of that logarithm is.
"""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "quantize.pxi"

from libc.math cimport fabs, log2

from refnorm.quantizers import _rep_quant, _shift_uniform_log2

cdef enum Slope:
    OVER_ENTRY = 0
    OVER_SEARCHED = 1
    ONE = 2

MOST_BUCKETS = 1 << 13
NEIGHBOURS = 16
"""Numbers on either side of a step where the level must not turn back."""
MOST_SEARCHES = 64
FEW = 1024
"""Entries below which making tables takes longer than the reference."""

UNCERTAIN = 2.0**-20
"""Error of slope * log2(t) + start that the search by logarithm allows for, relative to the largest of its terms."""

_searches = {}
cdef double UNCERTAIN_HERE = UNCERTAIN


cdef class _Search:
    """Tables that find the level of a number, the logarithm that finds most levels without them, and the codes of levels."""

    cdef np.ndarray threshold, before
    cdef rn_search tables


def steps_of(level_of, int count, dtype):
    """Smallest t >= 0 with ``level_of(t) >= k`` for k = 1 .. count, or None if the level turns back near a step."""
    whole = numpy.int32 if dtype == numpy.float32 else numpy.int64
    wanted = numpy.arange(1, count + 1)
    low, high = numpy.zeros(count, whole), numpy.full(count, numpy.array(numpy.inf, dtype).view(whole))
    last = high.copy()
    while (low < high).any():
        middle = low + (high - low) // 2
        enough = level_of(middle.view(dtype)) >= wanted
        low, high = numpy.where(enough, low, middle + 1).astype(whole), numpy.where(enough, middle, high).astype(whole)
    around = high[:, None] + numpy.arange(-NEIGHBOURS, NEIGHBOURS, dtype=whole)
    around = numpy.clip(around, 0, last[:, None])
    reached = level_of(around.ravel().view(dtype)).reshape(around.shape) >= wanted[:, None]
    if not (reached == (around >= high[:, None])).all():
        return None
    return high.view(dtype)


cdef _Search _search_for(key, level_of, int count, dtype, double slope, double start, codes):
    """The search for steps of a function that is round(slope * log2(t) + start) but for its rounding errors.

    `codes`: factor, constant and largest code. Made once; None if the function has steps that tables cannot hold."""
    cdef _Search found
    if key in _searches:
        return _searches[key]
    if len(_searches) >= MOST_SEARCHES:
        _searches.clear()
    with numpy.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steps = steps_of(level_of, count, dtype)
    found = None if steps is None else _tables(steps)
    if found is not None:
        found.tables.levels = count
        found.tables.slope, found.tables.start = slope, start
        found.tables.code_slope, found.tables.code_start, found.tables.code_most = codes
        found.tables.margin = _margin(steps, slope, start)
    _searches[key] = found
    return found


cdef double _margin(steps, double slope, double start):
    """Distance from a tie within which the logarithm is not trusted; 1 if it is of no use.

    Half of it is for the error of the kernel's logarithm, half for that of the reference's, which has moved the steps."""
    steps = steps.astype(numpy.float64)
    used = steps[steps > 0]
    if len(used) < len(steps) or used[-1] > 2.0**126:
        return 1
    margin = 2 * UNCERTAIN * (len(steps) + 1 + abs(start) + slope)
    moved = numpy.abs(slope * numpy.log2(used) + start - (numpy.arange(len(used)) + 0.5))
    return margin if margin < 0.1 and 2 * moved.max() < margin else 1


cdef _Search _tables(steps):
    """One step at most to a bucket: a bucket is what shares the leading bits of its pattern."""
    cdef _Search search
    cdef int fraction = 23 if steps.dtype == numpy.float32 else 52, kept
    patterns = steps.view(numpy.int32 if steps.dtype == numpy.float32 else numpy.int64).astype(numpy.int64)
    at_zero = int((patterns == 0).sum())
    patterns, steps = patterns[at_zero:], steps[at_zero:]
    for kept in range(13):
        bucket = patterns >> (fraction - kept)
        if not len(bucket) or bucket[-1] - bucket[0] + 3 > MOST_BUCKETS:
            return None
        if (numpy.diff(bucket) > 0).all():
            break
    else:
        return None
    search = _Search.__new__(_Search)
    base = int(bucket[0]) - 1
    buckets = int(bucket[-1]) - base + 2
    threshold = numpy.full(buckets, numpy.nan, steps.dtype)  # no number is at or above NaN
    threshold[bucket - base] = steps
    search.threshold = threshold
    search.before = (at_zero + numpy.searchsorted(bucket, base + numpy.arange(buckets))).astype(numpy.int32)
    search.tables.threshold = np.PyArray_DATA(search.threshold)
    search.tables.before = <int32_t *> np.PyArray_DATA(search.before)
    search.tables.shift = fraction - kept
    search.tables.buckets = buckets
    search.tables.base = base
    return search


cdef rn_search _divided(_Search search, double divisor) noexcept:
    """The search among entries that are to be divided first."""
    cdef rn_search tables = search.tables
    tables.start -= tables.slope * log2(divisor)
    tables.margin += 2 * UNCERTAIN_HERE * fabs(tables.slope * log2(divisor))
    return tables


cdef np.ndarray _padded(values):
    """With at least 32 entries, which the kernel reads at once."""
    if len(values) < 32:
        values = numpy.concatenate([values, numpy.zeros(32 - len(values), values.dtype)])
    return values


cdef int _forward(_Search search, np.ndarray a, double divisor, double addend, values, y, q, mask):
    """1 if an entry of the contiguous array `a` is negative or not finite."""
    cdef void *source = np.PyArray_DATA(a)
    cdef np.ndarray padded = None if values is None else _padded(values)
    cdef void *table = NULL if values is None else np.PyArray_DATA(padded)
    cdef void *to = NULL if y is None else np.PyArray_DATA(<np.ndarray> y)
    cdef uint8_t *code_to = <uint8_t *> (NULL if q is None else np.PyArray_DATA(<np.ndarray> q))
    cdef uint8_t *mask_to = <uint8_t *> (NULL if mask is None else np.PyArray_DATA(<np.ndarray> mask))
    cdef size_t count = np.PyArray_SIZE(a)
    cdef bint single = np.PyArray_TYPE(a) == np.NPY_FLOAT
    cdef rn_search tables = _divided(search, divisor)
    cdef int wrong
    with nogil:
        if single:
            wrong = rn_quantize().levels_f32(tables, <float *> source, <float> divisor, <float> addend, count, <float *> table, <float *> to, code_to, mask_to)
        else:
            wrong = rn_quantize().levels_f64(tables, <double *> source, divisor, addend, count, <double *> table, <double *> to, code_to, mask_to)
    return wrong


cdef tuple _backward(_Search search, Slope denominator, np.ndarray a, double divisor, double addend, values, int first,
                     int last, dy):
    """The cotangent of `a`, and the sum for the parameter."""
    cdef np.ndarray up = _cotangent(dy, a), da = _fresh(a), padded = _padded(values)
    cdef void *source = np.PyArray_DATA(a)
    cdef void *table = np.PyArray_DATA(padded)
    cdef void *given = np.PyArray_DATA(up)
    cdef void *to = np.PyArray_DATA(da)
    cdef size_t count = np.PyArray_SIZE(a)
    cdef bint single = np.PyArray_TYPE(a) == np.NPY_FLOAT
    cdef rn_search tables = _divided(search, divisor)
    cdef double total = 0
    cdef int failed
    with nogil:
        if single:
            failed = rn_quantize().levels_backward_f32(tables, denominator, <float *> source, <float> divisor, <float> addend, count, <float *> table, first, last, <float *> given, <float *> to, &total)
        else:
            failed = rn_quantize().levels_backward_f64(tables, denominator, <double *> source, divisor, addend, count, <double *> table, first, last, <double *> given, <double *> to, &total)
    if failed:
        raise MemoryError
    return da, numpy.asarray(total, a.dtype)


cdef _values_target(out, np.ndarray a):
    if out is not None:
        _check_out(out, a)
        if _direct(<np.ndarray> out) and _apart(a, <np.ndarray> out):
            return out
    return _fresh(a)


cdef _delivered(y, out):
    if out is None or y is out:
        return y
    out[...] = y
    return out


# ---- powers of 2 and of its root: level 0 stands for 0, level k for the code 2^bits - k, the last one for more than the scale


cdef _Search _log_search(np.ndarray a, bits, int per_octave):
    """None if the reference has to judge or to compute."""
    if np.PyArray_SIZE(a) < FEW or bits.__class__ is not int or not 2 <= bits <= 8:
        return None
    dtype, ends = a.dtype, 2**bits

    def level_of(t):
        return numpy.clip(ends - numpy.rint(-per_octave * numpy.log2(t)), 0, ends + 1)

    return _search_for(("log", dtype.char, bits, per_octave), level_of, ends + 1, dtype, per_octave, ends, (-1, ends, ends - 1))


cdef _scale_of(scale, dtype):
    """The scale as the reference takes it, or None if the reference has to judge it."""
    try:
        return _rep_quant._positive_scale(scale, dtype, ())
    except (TypeError, ValueError):
        return None


cdef _log_codes(int bits):
    """Code and zero mask of every level."""
    codes = numpy.clip(2**bits - numpy.arange(2**bits + 2), 0, 2**bits - 1).astype(numpy.uint8)
    return codes, numpy.arange(2**bits + 2) == 0


cdef _log_values(int bits, int per_octave, step):
    """The number that every level stands for."""
    codes, zeroed = _log_codes(bits)
    if per_octave == 2:
        return _rep_quant.log_sqrt2_dequantize(codes, zeroed, step)
    return numpy.where(zeroed, 0, numpy.ldexp(step, -codes.astype(numpy.int32))).astype(step.dtype)


def log_sqrt2_quantize(a, scale, *, bits):
    """Replace numbers from 0 to 1 by codes that stand for powers of the square root of 2.

    Parameters
    ----------
    a : float32 or float64 array
        Attention weights: finite, >= 0.
    scale : array () of the dtype of ``a``, or float, > 0
        What code 0 stands for; about the largest entry of ``a``.
    bits : int, 2 to 8

    Returns
    -------
    q : uint8 array of the shape of ``a``
        ``clip(round(-2 log2(a / scale)), 0, 2^bits - 1)``, ties to even.
    zero_mask : bool array
        Where the code would be ``2^bits`` or more. Both are equal to the reference's, entry for entry.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.log_sqrt2_quantize`.

    References
    ----------
    Li et al. (2024), arXiv 2402.05628, section on scale reparameterization for Softmax activations.

    Examples
    --------
    >>> log_sqrt2_quantize(np.array([1.0, 0.3, 0.001, 0.0]), 1.0, bits=4)
    (array([ 0,  3, 15, 15], dtype=uint8), array([False, False,  True,  True]))
    """
    cdef np.ndarray array = _float_array(a, "a")
    cdef _Search search = _log_search(array, bits, 2)
    step = None if search is None else _scale_of(scale, array.dtype)
    if step is not None:
        array = _plain(array)
        q = rn_empty(np.PyArray_NDIM(array), np.PyArray_DIMS(array), np.NPY_UINT8)
        mask = rn_empty(np.PyArray_NDIM(array), np.PyArray_DIMS(array), np.NPY_BOOL)
        if not _forward(search, array, step, 0, None, None, q, mask):
            return q, mask
    return _rep_quant.log_sqrt2_quantize(array, scale, bits=bits)


cdef _log_fake(reference, int per_octave, a, scale, bits, out):
    cdef np.ndarray array = _float_array(a, "a")
    cdef _Search search = _log_search(array, bits, per_octave)
    step = None if search is None else _scale_of(scale, array.dtype)
    if step is not None:
        array = _plain(array)
        y = _values_target(out, array)
        if not _forward(search, array, step, 0, _log_values(bits, per_octave, step), y, None, None):
            return _delivered(y, out)
    return _by_reference(reference, out, (array, scale), dict(bits=bits))


cdef _log_fake_vjp(int per_octave, a, scale, bits, bint unit_gradient):
    """Value and pullback, or None if the reference has to judge or to compute."""
    cdef np.ndarray array = _float_array(a, "a")
    cdef _Search search = _log_search(array, bits, per_octave)
    step = None if search is None else _scale_of(scale, array.dtype)
    if step is None:
        return None
    array = _plain(array)
    y, values = _fresh(array), _log_values(bits, per_octave, step)
    if _forward(search, array, step, 0, values, y, None, None):
        return None
    values = values.copy()
    values[[0, -1]] = 0
    if unit_gradient:
        values[1:-1] = 1
    # Where the slope is 0, the reference multiplies by it, or (the root of 2) puts 0.
    first, last = (0, 2**bits + 1) if per_octave == 1 else (1, 2**bits)

    def pullback(dy):
        return _backward(search, ONE if unit_gradient else OVER_ENTRY, array, step, 0, values, first, last, dy)

    return y, pullback


def log_sqrt2_fake_quantize(a, scale, *, bits, out=None):
    """Quantize to powers of the square root of 2 and dequantize.

    Parameters, errors and references are those of :func:`log_sqrt2_quantize`.

    Parameters
    ----------
    out : array, optional
        Takes the result; may be ``a`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``a``
        Equal to the reference's, bit for bit.

    Examples
    --------
    >>> log_sqrt2_fake_quantize(np.array([1.0, 0.3, 0.0]), 1.0, bits=4).round(6)
    array([1.      , 0.353553, 0.      ])
    """
    return _log_fake(_rep_quant.log_sqrt2_fake_quantize, 2, a, scale, bits, out)


def log_sqrt2_fake_quantize_vjp(a, scale, *, bits, unit_gradient=False):
    """Return :func:`log_sqrt2_fake_quantize` and its straight-through pullback ``dy -> (da, dscale)``.

    Parameters, errors and references are those of :func:`log_sqrt2_fake_quantize`, and

    Parameters
    ----------
    unit_gradient : bool
        Pass ``da = dy`` where it would be ``dy * y / a``.
    """
    made = _log_fake_vjp(2, a, scale, bits, unit_gradient)
    return _rep_quant.log_sqrt2_fake_quantize_vjp(a, scale, bits=bits, unit_gradient=unit_gradient) if made is None else made


def log2_fake_quantize(a, scale, *, bits, out=None):
    """Quantize to powers of 2 and dequantize: what the shift is an improvement of.

    Parameters
    ----------
    a : float32 or float64 array
        Finite, >= 0.
    scale : array () of the dtype of ``a``, or float, > 0
        What code 0 stands for.
    bits : int, 2 to 8
    out : array, optional
        Takes the result; may be ``a`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``a``
        ``scale 2^(-q)`` with ``q = clip(round(-log2(a / scale)), 0, 2^bits - 1)``; 0 where the code would be
        ``2^bits`` or more. Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.log2_fake_quantize`; also if ``out`` does not fit.

    Examples
    --------
    >>> log2_fake_quantize(np.array([1.0, 0.3, 0.01, 0.0]), 1.0, bits=2)
    array([1.  , 0.25, 0.  , 0.  ])
    """
    return _log_fake(_shift_uniform_log2.log2_fake_quantize, 1, a, scale, bits, out)


def log2_fake_quantize_vjp(a, scale, *, bits):
    """Return :func:`log2_fake_quantize` and its straight-through pullback ``dy -> (da, dscale)``."""
    made = _log_fake_vjp(1, a, scale, bits, False)
    return _shift_uniform_log2.log2_fake_quantize_vjp(a, scale, bits=bits) if made is None else made


# ---- from codes -------------------------------------------------------------------------------------------------------------


cdef _looked_up(np.ndarray q, mask, np.ndarray values, out):
    """values[q], 0 where the mask is set."""
    cdef np.ndarray codes = _plain(q), zeros = None if mask is None else _plain(mask)
    cdef np.ndarray y = rn_empty(np.PyArray_NDIM(q), np.PyArray_DIMS(q), np.PyArray_TYPE(values))
    cdef uint8_t *source = <uint8_t *> np.PyArray_DATA(codes)
    cdef uint8_t *zeroed = NULL if mask is None else <uint8_t *> np.PyArray_DATA(zeros)
    cdef void *table = np.PyArray_DATA(values)
    cdef void *to
    cdef size_t count = np.PyArray_SIZE(q)
    cdef bint single = np.PyArray_TYPE(values) == np.NPY_FLOAT
    if out is not None:
        _check_out(out, y)
        if _direct(<np.ndarray> out) and _apart(codes, <np.ndarray> out) and (mask is None or _apart(zeros, <np.ndarray> out)):
            y = <np.ndarray> out
    to = np.PyArray_DATA(y)
    with nogil:
        if single:
            rn_quantize().lookup_f32(source, zeroed, <float *> table, <float *> to, count)
        else:
            rn_quantize().lookup_f64(source, zeroed, <double *> table, <double *> to, count)
    return _delivered(y, out)


cdef bint _many_bytes(q) noexcept:
    return isinstance(q, np.ndarray) and np.PyArray_TYPE(<np.ndarray> q) == np.NPY_UINT8 and np.PyArray_SIZE(q) >= FEW


_ALL_CODES = numpy.arange(256, dtype=numpy.uint8)
_NO_ZEROS = numpy.zeros(256, bool)


cdef _dequantized(reference, q, zero_mask, scale, out):
    if (_many_bytes(q) and isinstance(zero_mask, np.ndarray) and np.PyArray_TYPE(<np.ndarray> zero_mask) == np.NPY_BOOL
            and _same_shape(<np.ndarray> q, <np.ndarray> zero_mask)):
        return _looked_up(q, zero_mask, reference(_ALL_CODES, _NO_ZEROS, scale), out)
    return _by_reference(reference, out, (q, zero_mask, scale), {})


def log_sqrt2_dequantize(q, zero_mask, scale, *, out=None):
    """Return ``scale * 2^(-q / 2)``, and 0 where ``zero_mask`` says so.

    Parameters
    ----------
    q, zero_mask
        From :func:`log_sqrt2_quantize`.
    scale : array () or float
    out : array, optional
        Takes the result.

    Returns
    -------
    array of the shape of ``q`` and the dtype of ``scale``
        Equal to the reference's, bit for bit.

    Examples
    --------
    >>> log_sqrt2_dequantize(np.array([0, 3, 15], np.uint8), np.array([False, False, True]), 1.0).round(6)
    array([1.      , 0.353553, 0.      ])
    """
    return _dequantized(_rep_quant.log_sqrt2_dequantize, q, zero_mask, scale, out)


def log2_reparam_dequantize(q, zero_mask, scale, *, out=None):
    """Return the same numbers as :func:`log_sqrt2_dequantize`, by shifts and one of two scales.

    Parameters and errors are those of :func:`log_sqrt2_dequantize`.

    Examples
    --------
    >>> log2_reparam_dequantize(np.array([0, 3, 15], np.uint8), np.array([False, False, True]), 1.0).round(6)
    array([1.      , 0.353553, 0.      ])
    """
    return _dequantized(_rep_quant.log2_reparam_dequantize, q, zero_mask, scale, out)


# ---- uniform codes of log2(a + shift): level 0 is below the range, level k the code k - 1, the last one above the range


cdef _Search _sulq_search(np.ndarray a, params):
    """None if the reference has to judge or to compute."""
    if np.PyArray_SIZE(a) < FEW or not isinstance(params, _shift_uniform_log2.SulqParams):
        return None
    dtype, low, step, highest = a.dtype, params.low, params.step, params.highest
    if not (numpy.isfinite(low) and numpy.isfinite(step)):
        return None

    def level_of(t):
        return numpy.clip(numpy.rint((numpy.log2(t) - low) / step) + 1, 0, highest + 2)

    return _search_for(("sulq", dtype.char, low, step, highest), level_of, highest + 2, dtype, 1 / step, 1 - low / step,
                       (1, -1, highest))


cdef _sulq_codes(params):
    """The code of every level."""
    return numpy.clip(numpy.arange(params.highest + 3) - 1, 0, params.highest)


def sulq_encode(a, params):
    """Return ``clip(round((log2(a + shift) - low) / step), 0, highest)``.

    Parameters
    ----------
    a : float32 or float64 array
        Finite, >= 0.
    params : SulqParams

    Returns
    -------
    uint8 array of the shape of ``a`` (uint16 where 8 bits have the additional level)
        Equal to the reference's, entry for entry.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.sulq_encode`.

    Examples
    --------
    >>> from refnorm.quantizers import SulqParams
    >>> sulq_encode(np.array([0.0, 0.25, 0.5, 1.0]), SulqParams(1.0, 0.0, 1.0, 2))
    array([0, 1, 2, 3], dtype=uint8)
    """
    cdef np.ndarray array = _float_array(a, "a")
    cdef _Search search = _sulq_search(array, params)
    if search is not None and params.highest < 256:
        array = _plain(array)
        q = rn_empty(np.PyArray_NDIM(array), np.PyArray_DIMS(array), np.NPY_UINT8)
        if not _forward(search, array, 1, params.shift, None, None, q, None):
            return q
    return _shift_uniform_log2.sulq_encode(array, params)


def sulq_decode(q, params, *, integer_exponent=True, out=None):
    """Return ``2^(low + step q) - shift``.

    Parameters
    ----------
    q : int array
        Codes.
    params : SulqParams
    integer_exponent : bool
        Round the exponent, so that the power is a shift.
    out : float64 array, optional
        Takes the result.

    Returns
    -------
    float64 array of the shape of ``q``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.sulq_decode`; also if ``out`` does not fit.

    Examples
    --------
    >>> from refnorm.quantizers import SulqParams
    >>> sulq_decode(np.arange(4), SulqParams(1.0, 0.0, 1.0, 2))
    array([0., 0., 1., 1.])
    """
    if _many_bytes(q) and isinstance(params, _shift_uniform_log2.SulqParams) and q.max() <= params.highest:
        values = _shift_uniform_log2.sulq_decode(numpy.arange(params.highest + 1), params, integer_exponent=integer_exponent)
        return _looked_up(q, None, values, out)
    return _by_reference(_shift_uniform_log2.sulq_decode, out, (q, params), dict(integer_exponent=integer_exponent))


cdef _shift_of(shift, dtype):
    """The shift as the reference takes it, or None if the reference has to judge it."""
    given = numpy.asarray(shift, dtype) if isinstance(shift, float) else numpy.asarray(shift)
    if given.ndim != 0 or given.dtype != dtype or not (given > 0 and numpy.isfinite(given)):
        return None
    return given


def sulq_fake_quantize(a, shift, params, *, integer_exponent=True, clamp=False, out=None):
    """Encode and decode, with a shift that can be learned.

    Parameters
    ----------
    a : float32 or float64 array
        Finite, >= 0.
    shift : array () of the dtype of ``a``, or float, > 0
        Used in the place of ``params.shift``; the range of ``params`` stays.
    params : SulqParams
    integer_exponent : bool
        As in :func:`sulq_decode`.
    clamp : bool
        Cut the result to [0, 1].
    out : array, optional
        Takes the result; may be ``a`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``a``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.sulq_fake_quantize`; also if ``out`` does not fit.

    References
    ----------
    Zhong et al. (2023), arXiv 2311.10126, section on the shift-uniform-log2 quantizer.

    Examples
    --------
    >>> from refnorm.quantizers import SulqParams
    >>> sulq_fake_quantize(np.array([0.0, 0.25, 0.5, 1.0]), 1.0, SulqParams(1.0, 0.0, 1.0, 2))
    array([0., 0., 1., 1.])
    """
    cdef np.ndarray array = _float_array(a, "a")
    cdef _Search search = _sulq_search(array, params)
    given = None if search is None else _shift_of(shift, array.dtype)
    if given is not None:
        array = _plain(array)
        y = _values_target(out, array)
        values = _sulq_values(params, given, integer_exponent)[1]
        if not _forward(search, array, 1, given, numpy.clip(values, 0, 1) if clamp else values, y, None, None):
            return _delivered(y, out)
    return _by_reference(_shift_uniform_log2.sulq_fake_quantize, out, (array, shift, params),
                         dict(integer_exponent=integer_exponent, clamp=clamp))


cdef tuple _sulq_values(params, shift, integer_exponent):
    """Power and number of every level."""
    power = _shift_uniform_log2._power(_sulq_codes(params).astype(shift.dtype), params, integer_exponent)
    return power, (power - shift).astype(shift.dtype)


def sulq_fake_quantize_vjp(a, shift, params, *, integer_exponent=True, clamp=False):
    """Return :func:`sulq_fake_quantize` and its straight-through pullback ``dy -> (da, dshift)``.

    Parameters, errors and references are those of :func:`sulq_fake_quantize`.
    """
    cdef np.ndarray array = _float_array(a, "a")
    cdef _Search search = _sulq_search(array, params)
    given = None if search is None else _shift_of(shift, array.dtype)
    made = None
    if given is not None:
        array, shift_value = _plain(array), float(given)
        made = _fresh(array)
        powers, values = _sulq_values(params, given, integer_exponent)
        if _forward(search, array, 1, shift_value, numpy.clip(values, 0, 1) if clamp else values, made, None, None):
            made = None
    if made is None:
        return _shift_uniform_log2.sulq_fake_quantize_vjp(a, shift, params, integer_exponent=integer_exponent, clamp=clamp)
    powers = powers.copy()
    powers[[0, -1]] = 0  # a clipped exponent is constant
    first, last = 0, params.highest + 2
    if clamp:  # numbers grow with their levels
        kept = numpy.flatnonzero((values >= 0) & (values <= 1))
        first, last = (kept[0], kept[-1]) if len(kept) else (1, 0)

    def pullback(dy):
        return _backward(search, OVER_SEARCHED, array, 1, shift_value, powers, first, last, dy)

    return made, pullback
