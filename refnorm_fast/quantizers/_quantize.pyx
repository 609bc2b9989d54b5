"""Uniform grids: checks and layout; the arithmetic is in _kernels/quantize.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "quantize.pxi"

from refnorm._arrays import sum_to
from refnorm.quantizers import _affine, _layerwise_calibration
from refnorm.quantizers._calibration import grid_of_range

cdef enum Target:
    TO_BYTES = 0
    TO_INT32 = 1
    TO_POINTS = 2
    TO_SLOPES = 3

cdef enum CodeType:
    INT8 = 0
    UINT8 = 1
    INT32 = 2

_ROUNDINGS = {"nearest": 0, "floor": 1, "away": 2}
LARGEST_OFFSET = 1 << 22
"""Codes of 8 bits minus an offset below this are exact in float32."""
FEW = 16
"""Entries in a row with the same parameters for which a loop of their own is worth its start."""


cdef class _Grid:
    """Parameters of an array's entries: one a channel of its layout, as contiguous arrays of its dtype."""

    cdef np.ndarray scale, offset
    cdef rn_layout layout
    cdef tuple shape
    """Of the parameters, broadcast, with a size for each dimension of the array."""
    cdef int lowest, highest, repeat
    cdef tuple scale_shape, offset_shape
    cdef bint learned_offset


cdef inline np.ndarray _scalar(double value, int type):
    cdef np.ndarray array = rn_empty(0, NULL, type)
    if type == np.NPY_FLOAT:
        (<float *> np.PyArray_DATA(array))[0] = <float> value
    else:
        (<double *> np.PyArray_DATA(array))[0] = value
    return array


cdef inline bint _fits(np.ndarray parameter, np.ndarray x) noexcept:
    cdef int i, ndim = np.PyArray_NDIM(parameter)
    if ndim == 0:
        return True
    if ndim != np.PyArray_NDIM(x):
        return False
    for i in range(ndim):
        if np.PyArray_DIM(parameter, i) != 1 and np.PyArray_DIM(parameter, i) != np.PyArray_DIM(x, i):
            return False
    return True


cdef bint _all_within(np.ndarray values, double low, double high) noexcept:
    """Whether every entry of a contiguous float array is > low and <= high."""
    cdef size_t i, size = np.PyArray_SIZE(values)
    cdef double value
    for i in range(size):
        if np.PyArray_TYPE(values) == np.NPY_FLOAT:
            value = (<float *> np.PyArray_DATA(values))[i]
        else:
            value = (<double *> np.PyArray_DATA(values))[i]
        if not (value > low and value <= high):
            return False
    return True


cdef np.ndarray _scale_array(scale, int type):
    """A scale as an array, or None if the reference has to judge it."""
    cdef np.ndarray array
    if scale.__class__ is float or scale.__class__ is int:
        array = _scalar(scale, type)
    else:
        array = <np.ndarray> numpy.asarray(scale)
        if np.PyArray_TYPE(array) != type or not np.PyArray_ISNOTSWAPPED(array):
            return None
        array = _plain(array)
    return array if _all_within(array, 0, 3.5e38 if type == np.NPY_FLOAT else 1.7976931348623157e308) else None


cdef _Grid _grid(np.ndarray x, scale, zero_point, int lowest, int highest):
    """The grid of the entries of `x`, or None if the reference has to judge the parameters."""
    cdef _Grid grid = _Grid.__new__(_Grid)
    cdef int type = np.PyArray_TYPE(x)
    cdef np.ndarray step = _scale_array(scale, type), offset
    if step is None or np.PyArray_NDIM(x) == 0 or np.PyArray_SIZE(x) == 0:
        return None
    grid.learned_offset = False
    if zero_point.__class__ is int:
        if not lowest <= zero_point <= highest:
            return None
        offset = _scalar(zero_point, type)
    else:
        given = numpy.asarray(zero_point)
        if given.dtype.kind in "iu":
            offset = _plain(given.astype(x.dtype))
        elif given.dtype == x.dtype:
            grid.learned_offset = True
            offset = _plain(numpy.rint(given))
        else:
            return None
        if not _all_within(offset, lowest - 1, highest):
            return None
    if not (_fits(step, x) and _fits(offset, x)):
        return None
    grid.lowest, grid.highest = lowest, highest
    _lay_out(grid, x, step, offset)
    return grid


cdef _lay_out(_Grid grid, np.ndarray x, np.ndarray step, np.ndarray offset):
    """Fill in layout and parameters."""
    cdef int ndim = np.PyArray_NDIM(x), first = -1, last = -1, i
    cdef rn_layout *layout = &grid.layout
    layout.outer = layout.channels = layout.inner = 1
    grid.repeat = 1
    if np.PyArray_NDIM(step) == 0 and np.PyArray_NDIM(offset) == 0:
        layout.inner = np.PyArray_SIZE(x)
        grid.scale, grid.offset = step, offset
        grid.scale_shape = grid.offset_shape = grid.shape = ()
        return
    grid.scale_shape, grid.offset_shape = (<object> step).shape, (<object> offset).shape
    for i in range(ndim):
        if (np.PyArray_NDIM(step) and np.PyArray_DIM(step, i) != 1) or (np.PyArray_NDIM(offset) and np.PyArray_DIM(offset, i) != 1):
            last = i
            if first < 0:
                first = i
    kept = []
    for i in range(ndim):
        if first <= i <= last and first >= 0:
            layout.channels *= np.PyArray_DIM(x, i)
            kept.append(np.PyArray_DIM(x, i))
        else:
            kept.append(1)
            if i < first:
                layout.outer *= np.PyArray_DIM(x, i)
            else:
                layout.inner *= np.PyArray_DIM(x, i)
    grid.shape = tuple(kept)
    grid.scale = _in_order(numpy.broadcast_to(step, grid.shape))
    grid.offset = _in_order(numpy.broadcast_to(offset, grid.shape))
    if 1 < layout.inner < FEW and layout.channels > 1 and layout.outer > 1:
        grid.repeat = layout.inner
        layout.channels *= layout.inner
        layout.inner = 1
        grid.scale = numpy.repeat((<object> grid.scale).ravel(), grid.repeat)
        grid.offset = numpy.repeat((<object> grid.offset).ravel(), grid.repeat)


cdef bint _run(Target target, int rounding, np.ndarray x, _Grid grid, np.ndarray y, np.ndarray slope):
    """Whether all entries of the contiguous array `x` are finite."""
    cdef void *source = np.PyArray_DATA(x)
    cdef void *scale = np.PyArray_DATA(grid.scale)
    cdef void *offset = np.PyArray_DATA(grid.offset)
    cdef void *to = np.PyArray_DATA(y)
    cdef void *slopes = NULL if slope is None else np.PyArray_DATA(slope)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef rn_layout layout = grid.layout
    cdef int lowest = grid.lowest, highest = grid.highest, wrong
    with nogil:
        if single:
            wrong = rn_quantize().affine_f32(target, rounding, <float *> source, <float *> scale, <float *> offset, lowest, highest, layout, to, <float *> slopes)
        else:
            wrong = rn_quantize().affine_f64(target, rounding, <double *> source, <double *> scale, <double *> offset, lowest, highest, layout, to, <double *> slopes)
    return wrong == 0


cdef bint _all_finite(np.ndarray x) except -1:
    cdef rn_layout layout
    layout.outer = layout.channels = 1
    layout.inner = np.PyArray_SIZE(x)
    return _extremes(x, layout, _scalar(0, np.PyArray_TYPE(x)), _scalar(0, np.PyArray_TYPE(x)))


cdef inline int _rounding(bits, object signed, narrow, rounding):
    """The kernels' number of a rounding, or -1 if the reference has to judge the options or to round at random."""
    if bits.__class__ is not int or not 2 <= bits <= 16 or not (signed is True or signed is False):
        return -1
    if not (narrow is False or (narrow is True and signed is True)) or rounding.__class__ is not str:
        return -1
    return _ROUNDINGS.get(rounding, -1)


cdef inline int _lowest(int bits, bint has_sign, bint narrow) noexcept:
    return -(1 << (bits - 1)) + narrow if has_sign else 0


cdef inline int _highest(int bits, bint has_sign) noexcept:
    return (1 << (bits - has_sign)) - 1


def quantize(x, scale, zero_point, *, bits=8, object signed=True, narrow=False, rounding="nearest", rng=None, out=None):
    """Replace each number by the code of the nearest grid point.

    Parameters
    ----------
    x : float32 or float64 array
        Finite numbers.
    scale : array > 0, dtype of ``x``, or float
        Distance of two grid points; shape (), or the number of dimensions of ``x`` with every size 1 or that
        of ``x``.
    zero_point : int array or int
        The code of 0, on the grid; shape () or as for ``scale``.
    bits : int, 2 to 16
    signed, narrow : bool
        The grid, as in :func:`affine_qparams`.
    rounding : {"nearest", "stochastic", "floor", "away"}
        Stochastic rounding is the reference's.
    rng : numpy.random.Generator
        Needed by, and only used for, stochastic rounding.
    out : int8, uint8 or int32 array, optional
        Takes the codes.

    Returns
    -------
    array of the shape of ``x``
        int8 or uint8 for up to 8 bits, int32 beyond. Equal to the reference's, entry for entry.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.quantize`; also if ``out`` does not fit.

    Notes
    -----
    ``clip(round(x / scale) + zero_point, lowest, highest)``, with a division: a product with ``1 / scale``
    rounds twice and has other ties.

    References
    ----------
    Jacob et al. (2018), arXiv 1712.05877, section 2.1.

    Examples
    --------
    >>> quantize(np.array([0.0, 0.5, 1.0, 2.0]), 2 / 255, -128)
    array([-128,  -64,    0,  127], dtype=int8)
    """
    if _on_gpu(x):
        return _dispatch.call("quantizers.quantize", out, x, scale, zero_point, bits=bits, signed=signed,
                              narrow=narrow, rounding=rounding, rng=rng)
    cdef np.ndarray array = _float_array(x, "x"), codes
    cdef int mode = _rounding(bits, signed, narrow, rounding), type
    cdef _Grid grid = None
    if mode >= 0:
        grid = _grid(array, scale, zero_point, _lowest(bits, signed, narrow), _highest(bits, signed))
    if grid is not None:
        type = np.NPY_INT32 if bits > 8 else np.NPY_INT8 if signed else np.NPY_UINT8
        codes = _codes_target(out, array, type)
        if _run(TO_INT32 if bits > 8 else TO_BYTES, mode, _plain(array), grid, codes, None):
            if out is None or codes is out:
                return codes
            out[...] = codes
            return out
    return _by_reference(_affine.quantize, out, (array, scale, zero_point),
                         dict(bits=bits, signed=signed, narrow=narrow, rounding=rounding, rng=rng))


cdef np.ndarray _codes_target(out, np.ndarray x, int type):
    """Where the codes of `x` go: `out`, or an array of their own if there is none or it shares memory with `x`."""
    if out is not None:
        _check_target(out, x, type)
        if _direct(<np.ndarray> out) and _apart(x, <np.ndarray> out):
            return <np.ndarray> out
    return rn_empty(np.PyArray_NDIM(x), np.PyArray_DIMS(x), type)


def dequantize(q, scale, zero_point, *, out=None):
    """Return the grid points of codes: ``scale * (q - zero_point)``.

    Parameters
    ----------
    q : int array
        Codes.
    scale, zero_point
        As in :func:`quantize`. A Python float gives a float64 result.
    out : array, optional
        Takes the result.

    Returns
    -------
    array of the shape of ``q`` and the dtype of ``scale``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.dequantize`; also if ``out`` does not fit.

    Examples
    --------
    >>> dequantize(np.array([-128, 0, 127], dtype=np.int8), 2 / 255, -128).round(4)
    array([0.    , 1.0039, 2.    ])
    """
    if _on_gpu(q):
        return _dispatch.call("quantizers.dequantize", out, q, scale, zero_point)
    cdef np.ndarray codes, y
    cdef _Grid grid
    cdef int type
    if isinstance(q, np.ndarray) and not (scale.__class__ is int):
        codes = <np.ndarray> q
        type = np.NPY_DOUBLE if scale.__class__ is float else np.PyArray_TYPE(<np.ndarray> numpy.asarray(scale))
        if (np.PyArray_TYPE(codes) in (np.NPY_INT8, np.NPY_UINT8, np.NPY_INT32) and np.PyArray_ISNOTSWAPPED(codes)
                and (type == np.NPY_FLOAT or type == np.NPY_DOUBLE)):
            y = rn_empty(np.PyArray_NDIM(codes), np.PyArray_DIMS(codes), type)
            grid = _grid(y, scale, zero_point, -LARGEST_OFFSET, LARGEST_OFFSET)
            if grid is not None and not grid.learned_offset:
                return _points(_plain(codes), grid, y, out)
    return _by_reference(_affine.dequantize, out, (q, scale, zero_point), {})


cdef _points(np.ndarray codes, _Grid grid, np.ndarray y, out):
    """The grid points of codes, in `y` or `out`."""
    cdef int type = np.PyArray_TYPE(codes)
    cdef int kind = INT8 if type == np.NPY_INT8 else UINT8 if type == np.NPY_UINT8 else INT32
    cdef void *source = np.PyArray_DATA(codes)
    cdef void *scale = np.PyArray_DATA(grid.scale)
    cdef void *offset = np.PyArray_DATA(grid.offset)
    cdef void *to
    cdef bint single = np.PyArray_TYPE(y) == np.NPY_FLOAT
    cdef rn_layout layout = grid.layout
    if out is not None:
        _check_out(out, y)
        if (_direct(<np.ndarray> out) and _apart(codes, <np.ndarray> out) and _apart(grid.scale, <np.ndarray> out)
                and _apart(grid.offset, <np.ndarray> out)):
            y = <np.ndarray> out
    to = np.PyArray_DATA(y)
    with nogil:
        if single:
            rn_quantize().affine_points_f32(kind, source, <float *> scale, <float *> offset, layout, <float *> to)
        else:
            rn_quantize().affine_points_f64(kind, source, <double *> scale, <double *> offset, layout, <double *> to)
    if out is None or y is out:
        return y
    out[...] = y
    return out


def fake_quantize(x, scale, zero_point, *, bits=8, object signed=True, narrow=False, rounding="nearest", rng=None, out=None):
    """Quantize and dequantize: the nearest grid point of each number, as a float.

    Parameters
    ----------
    x, scale, bits, signed, narrow, rounding, rng
        As in :func:`quantize`.
    zero_point : int array, int, or float array of the dtype of ``x``
        A float array is rounded to the nearest integer.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.fake_quantize`; also if ``out`` does not fit.

    Notes
    -----
    ``scale * clip(round(x / scale), lowest - zero_point, highest - zero_point)``.

    References
    ----------
    Esser et al. (2020), arXiv 1902.08153, equations 1 and 2.

    Examples
    --------
    >>> fake_quantize(np.array([0.3, 0.6, 9.0]), 0.5, 0, bits=4)
    array([0.5, 0.5, 3.5])
    """
    cdef np.ndarray array = _float_array(x, "x"), source, y
    cdef int mode = _rounding(bits, signed, narrow, rounding)
    cdef _Grid grid = None
    if mode >= 0:
        grid = _grid(array, scale, zero_point, _lowest(bits, signed, narrow), _highest(bits, signed))
    if grid is not None:
        source = _plain(array)
        y = _points_target(out, source, grid)
        # Into itself: a later error could not name the entry that is wrong.
        if (y is not source or _all_finite(source)) and _run(TO_POINTS, mode, source, grid, y, None):
            if out is None or y is out:
                return y
            out[...] = y
            return out
    return _by_reference(_affine.fake_quantize, out, (array, scale, zero_point),
                         dict(bits=bits, signed=signed, narrow=narrow, rounding=rounding, rng=rng))


cdef np.ndarray _points_target(out, np.ndarray x, _Grid grid):
    """Where grid points go: `out`, or an array of their own if there is none or the layout does not suit."""
    if out is not None:
        _check_out(out, x)
        if (_direct(<np.ndarray> out) and (out is x or _apart(x, <np.ndarray> out))
                and _apart(grid.scale, <np.ndarray> out) and _apart(grid.offset, <np.ndarray> out)):
            return <np.ndarray> out
    return _fresh(x)


cdef tuple _backward(np.ndarray x, _Grid grid, np.ndarray slope, dy, bint outside):
    """dx, and in the shape of the grid's parameters sums of slope * dy and, if `outside`, of dy where x is clipped."""
    cdef np.ndarray up = _cotangent(dy, x), dx = _fresh(x)
    cdef np.ndarray sums = numpy.empty(grid.layout.channels)
    cdef np.ndarray outside_sums = numpy.empty(grid.layout.channels) if outside else None
    cdef void *slopes = np.PyArray_DATA(slope)
    cdef void *given = np.PyArray_DATA(up)
    cdef void *to = np.PyArray_DATA(dx)
    cdef double *slope_to = <double *> np.PyArray_DATA(sums)
    cdef double *outside_to = <double *> np.PyArray_DATA(outside_sums) if outside else NULL
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef rn_layout layout = grid.layout
    cdef int failed
    with nogil:
        if single:
            failed = rn_quantize().affine_backward_f32(<float *> slopes, <float *> given, <float *> to, layout, slope_to, outside_to)
        else:
            failed = rn_quantize().affine_backward_f64(<double *> slopes, <double *> given, <double *> to, layout, slope_to, outside_to)
    if failed:
        raise MemoryError
    return dx, _in_shape(grid, sums), _in_shape(grid, outside_sums) if outside else None


cdef _in_shape(_Grid grid, sums):
    if grid.repeat > 1:
        sums = sums.reshape(-1, grid.repeat).sum(axis=1)
    return sums.reshape(grid.shape)


cdef _in_parameters(sums, tuple shape, dtype):
    """Sums over what shares a parameter, in the parameter's shape and dtype."""
    return numpy.asarray(sum_to(sums, shape) if len(shape) else sums.sum(), dtype=dtype)


cdef _parameter(_Grid grid, np.ndarray array):
    """A grid's scale or offset as it was before entries were repeated."""
    return (<object> array).reshape(*grid.shape, grid.repeat)[..., 0] if grid.repeat > 1 else array


def fake_quantize_vjp(x, scale, zero_point, *, bits=8, object signed=True, narrow=False, rounding="nearest", rng=None,
                      lsq_grad_scale=False):
    """Return :func:`fake_quantize` and its straight-through pullback.

    The pullback is ``dy -> (dx, dscale)`` for an integer zero point and ``dy -> (dx, dscale, dzero_point)``
    for a float one. Parameters, errors and references are those of :func:`fake_quantize`, and

    Parameters
    ----------
    lsq_grad_scale : bool
        Multiply ``dscale`` by ``1 / sqrt(N * highest)``, ``N`` the number of entries that share one scale.

    Notes
    -----
    The forward pass leaves the slope by the scale of each entry, so the way back divides no more. Sums are float64, in
    an order that does not depend on the number of threads.

    Examples
    --------
    >>> y, pullback = fake_quantize_vjp(np.array([0.3, 0.6, 9.0]), 0.5, 0, bits=4)
    >>> [cotangent.round(4).tolist() for cotangent in pullback(np.ones(3))]
    [[1.0, 1.0, 0.0], 7.2]
    """
    cdef np.ndarray array = _float_array(x, "x"), y, slope
    cdef int mode = _rounding(bits, signed, narrow, rounding)
    cdef _Grid grid = None
    if mode >= 0:
        grid = _grid(array, scale, zero_point, _lowest(bits, signed, narrow), _highest(bits, signed))
    if grid is not None:
        array = _plain(array)
        y, slope = _fresh(array), _fresh(array)
    if grid is None or not _run(TO_SLOPES, mode, array, grid, y, slope):
        return _affine.fake_quantize_vjp(x, scale, zero_point, bits=bits, signed=signed, narrow=narrow, rounding=rounding,
                                         rng=rng, lsq_grad_scale=lsq_grad_scale)
    dtype, size = array.dtype, array.size

    def pullback(dy):
        dx, sums, outside = _backward(slope, grid, slope, dy, grid.learned_offset)
        dscale = _in_parameters(sums, grid.scale_shape, dtype)
        if lsq_grad_scale:
            sharing = size / max(dscale.size, 1)
            dscale = numpy.asarray(dscale / numpy.sqrt(max(sharing, 1) * grid.highest), dtype=dtype)
        if not grid.learned_offset:
            return dx, dscale
        return dx, dscale, _in_parameters(-outside * _parameter(grid, grid.scale), grid.offset_shape, dtype)

    return y, pullback


def affine_qparams(x, *, bits=8, object signed=True, narrow=False, symmetric=True, axis=None, method="minmax", percentile=0.999,
                   n_grid=100):
    """Choose scale and zero point from data.

    Parameters
    ----------
    x : float32 or float64 array
        The data, finite.
    bits : int, 2 to 16
        Width of a code.
    signed, narrow : bool
        The grid: ``-2^(b-1) .. 2^(b-1)-1``, without its lowest code if ``narrow``; unsigned ``0 .. 2^b-1``.
    symmetric : bool
        Keep the zero point at 0.
    axis : int, ints or None
        Axes whose slices get parameters of their own.
    method : {"minmax", "absmax", "mse", "percentile"}
        ``mse`` and ``percentile`` are the reference's.
    percentile : float in (0.5, 1]
    n_grid : int >= 1

    Returns
    -------
    scale : array of the dtype of ``x``, > 0
        Shape () for ``axis=None``, otherwise 1 everywhere but along ``axis``.
    zero_point : int32 array of the same shape
        Both are equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.affine_qparams`.

    Notes
    -----
    The ends of the ranges come from one pass over the data; the reference then chooses the parameters from them.

    References
    ----------
    Jacob et al. (2018), arXiv 1712.05877, section 2.1.

    Examples
    --------
    >>> scale, zero_point = affine_qparams(np.array([0.0, 0.5, 1.0, 2.0]), symmetric=False)
    >>> float(scale) == 2 / 255, int(zero_point)
    (True, -128)
    """
    cdef np.ndarray array = _float_array(x, "x"), ends
    cdef rn_layout layout
    options = dict(bits=bits, signed=signed, narrow=narrow, symmetric=symmetric, method=method, percentile=percentile,
                   n_grid=n_grid)
    if method.__class__ is str and (method == "minmax" or method == "absmax"):
        shape = _channels_along(axis, array, &layout)
        if shape is not None:
            ends = numpy.empty((2, layout.channels), array.dtype)
            if _extremes(_plain(array), layout, <np.ndarray> (<object> ends)[0], <np.ndarray> (<object> ends)[1]):
                scale, zero_point = _affine.affine_qparams(ends, axis=1, **options)
                return scale.reshape(shape), zero_point.reshape(shape)
    return _affine.affine_qparams(array, axis=axis, **options)


cdef _channels_along(axis, np.ndarray x, rn_layout *layout):
    """Shape of the parameters of slices along `axis`, and the layout; None if the reference has to judge or to compute."""
    cdef int ndim = np.PyArray_NDIM(x), i, first, last
    if np.PyArray_SIZE(x) == 0:
        return None
    layout.outer = layout.channels = layout.inner = 1
    if axis is None:
        layout.inner = np.PyArray_SIZE(x)
        return ()
    kept = _checks.axes(axis, ndim)
    first, last = kept[0], kept[len(kept) - 1]
    if last - first + 1 != len(kept):
        return None
    shape = []
    for i in range(ndim):
        shape.append(np.PyArray_DIM(x, i) if first <= i <= last else 1)
        if i < first:
            layout.outer *= np.PyArray_DIM(x, i)
        elif i <= last:
            layout.channels *= np.PyArray_DIM(x, i)
        else:
            layout.inner *= np.PyArray_DIM(x, i)
    if layout.outer * layout.inner < 8:  # a thread's ranges would take as much memory as the data
        return None
    return tuple(shape)


def lsq_scale(x, *, bits=8, object signed=True, axis=None):
    """Return the first step size of LSQ, ``2 mean|x| / sqrt(highest)``, from which it is then learned.

    Parameters
    ----------
    x, bits, signed, axis
        As in :func:`affine_qparams`.

    Returns
    -------
    array of the dtype of ``x``, > 0
        Shape () for ``axis=None``, otherwise 1 everywhere but along ``axis``; 1 for a slice of zeros.

    Raises
    ------
    TypeError, ValueError
        As :func:`affine_qparams`.

    Notes
    -----
    The sum is float64, in an order that does not depend on the number of threads.

    References
    ----------
    Esser et al. (2020), arXiv 1902.08153, section 2.1.

    Examples
    --------
    >>> float(lsq_scale(np.array([-1.0, 1.0, 3.0, -3.0]), bits=3))
    2.3094010767585034
    """
    cdef np.ndarray array = _float_array(x, "x"), source, sums
    cdef rn_layout layout
    cdef void *data
    cdef double *to
    cdef double factor
    cdef int wrong
    cdef bint single = np.PyArray_TYPE(array) == np.NPY_FLOAT
    shape = None
    if _rounding(bits, signed, False, "nearest") >= 0:
        shape = _channels_along(axis, array, &layout)
    if shape is not None:
        source, sums = _plain(array), numpy.empty(layout.channels)
        data, to = np.PyArray_DATA(source), <double *> np.PyArray_DATA(sums)
        factor = 1.0 / (layout.outer * layout.inner)
        with nogil:
            if single:
                wrong = rn_quantize().magnitudes_f32(<float *> data, layout, factor, to)
            else:
                wrong = rn_quantize().magnitudes_f64(<double *> data, layout, factor, to)
        if wrong < 0:
            raise MemoryError
        if wrong == 0:
            step = numpy.maximum(sums * (2 / numpy.sqrt(_highest(bits, signed))), numpy.finfo(array.dtype).tiny)
            return numpy.where(<object> sums == 0, 1, step).astype(array.dtype).reshape(shape)
    return _affine.lsq_scale(array, bits=bits, signed=signed, axis=axis)


def range_fake_quantize(x, width, minimum, *, bits, out=None):
    """Quantize and dequantize on the grid of a range that is given by its width and its lower end.

    Parameters
    ----------
    x : float32 or float64 array
    width, minimum : arrays of the dtype of ``x`` that broadcast to its shape
        ``width`` is cut to [1e-6, 1e5].
    bits : int, 2 to 16
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``
        Equal to the reference's, bit for bit.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.range_fake_quantize`; also if ``out`` does not fit.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on AdaQuant.

    Examples
    --------
    >>> range_fake_quantize(np.array([-3.0, -0.4, 1.4]), np.array(3.0), np.array(-1.0), bits=2)
    array([-1.,  0.,  1.])
    """
    cdef np.ndarray array = _float_array(x, "x"), source, y
    cdef _Grid grid
    range_of = _range(array, width, minimum, bits)
    if range_of is None:
        return _by_reference(_layerwise_calibration.range_fake_quantize, out, (array, width, minimum), dict(bits=bits))
    grid = range_of[0]
    source = _plain(array)
    y = _points_target(out, source, grid)
    _run(TO_POINTS, 0, source, grid, y, None)
    if out is None or y is out:
        return y
    out[...] = y
    return out


cdef _range(np.ndarray x, width, minimum, bits):
    """Grid, low end, high end, cut width, and whether the zero point was on the grid before it was held there.

    None if the reference has to judge the arguments."""
    cdef _Grid grid
    if bits.__class__ is not int or not 2 <= bits <= 16 or np.PyArray_SIZE(x) == 0 or np.PyArray_NDIM(x) == 0:
        return None
    given, low = numpy.asarray(width), numpy.asarray(minimum)
    if given.dtype != x.dtype or low.dtype != x.dtype or given.ndim > x.ndim or low.ndim > x.ndim:
        return None
    if not (numpy.isfinite(given).all() and numpy.isfinite(low).all()):
        return None
    for parameter in (given, low):
        if not _fits(<np.ndarray> _with_ndim(parameter, x.ndim), x):
            return None
    cut = numpy.clip(given, _layerwise_calibration.NARROWEST, _layerwise_calibration.WIDEST)
    high = low + cut
    scale, unclipped = grid_of_range(low, high, bits=bits)
    zero = numpy.clip(unclipped, 0, 2**bits - 1)
    grid = _Grid.__new__(_Grid)
    grid.lowest, grid.highest = 0, 2**bits - 1
    grid.learned_offset = True
    _lay_out(grid, x, _plain(_with_ndim(scale, x.ndim)), _plain(_with_ndim(zero, x.ndim)))
    return grid, low, high, given, cut, scale, zero == unclipped


cdef _with_ndim(parameter, int ndim):
    """`parameter` with sizes of 1 in front, unless it is one number."""
    if parameter.ndim == 0:
        return parameter
    return parameter.reshape((1,) * (ndim - parameter.ndim) + parameter.shape)


def range_fake_quantize_vjp(x, width, minimum, *, bits):
    """Return :func:`range_fake_quantize` and its straight-through pullback ``dy -> (dx, dwidth, dminimum)``.

    Parameters, errors and references are those of :func:`range_fake_quantize`.

    Examples
    --------
    >>> y, pullback = range_fake_quantize_vjp(np.array([-3.0, -0.4, 1.4]), np.array(3.0), np.array(-1.0), bits=2)
    >>> [cotangent.round(4).tolist() for cotangent in pullback(np.ones(3))]
    [[0.0, 1.0, 1.0], 0.0, 1.0]
    """
    cdef np.ndarray array = _float_array(x, "x"), y, slope
    cdef _Grid grid
    range_of = _range(array, width, minimum, bits)
    if range_of is None:
        return _layerwise_calibration.range_fake_quantize_vjp(array, width, minimum, bits=bits)
    grid, low, high, given, cut, scale, on_grid = range_of
    array = _plain(array)
    y, slope = _fresh(array), _fresh(array)
    _run(TO_SLOPES, 0, array, grid, y, slope)
    dtype, highest = array.dtype, grid.highest
    shape, low, high, scale = scale.shape, low.astype(float), high.astype(float), scale.astype(float)

    def pullback(dy):
        dx, sums, outside = _backward(slope, grid, slope, dy, True)
        dscale = _in_parameters(sums, shape, float)
        dzero = _in_parameters(-outside * _parameter(grid, grid.scale), shape, float) * on_grid
        # zero = -low / scale, and scale = (high - low) / highest with high = low + width; an empty range has a
        # constant scale.
        dscale = (dscale + dzero * low / scale**2) * (high > low)
        dhigh, dlow = dscale / highest, -dscale / highest - dzero / scale
        dwidth = sum_to(dhigh, given.shape) * (cut == given)
        return dx, numpy.asarray(dwidth, dtype), numpy.asarray(sum_to(dlow, low.shape) + sum_to(dhigh, low.shape), dtype)

    return y, pullback
