"""Layer norm and its relatives: checks and layout; the arithmetic is in _kernels/norm.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"
include "_arguments.pxi"

cdef extern from "norm.h":
    ctypedef struct rn_norm_table:
        int (*norm_f32)(int, const float *, size_t, const float *, const float *, const float *, float *, size_t, size_t, double, double *, double *) nogil
        int (*norm_f64)(int, const double *, size_t, const double *, const double *, const double *, double *, size_t, size_t, double, double *, double *) nogil
        int (*add_norm_f32)(int, const float *, const float *, const float *, const float *, float *, float *, size_t, size_t, double, double *, double *) nogil
        int (*add_norm_f64)(int, const double *, const double *, const double *, const double *, double *, double *, size_t, size_t, double, double *, double *) nogil
        int (*norm_backward_f32)(int, const float *, size_t, const float *, const float *, float *, float *, float *, size_t, size_t, const double *, const double *) nogil
        int (*norm_backward_f64)(int, const double *, size_t, const double *, const double *, double *, double *, double *, size_t, size_t, const double *, const double *) nogil
    const rn_norm_table *rn_norm() nogil

cdef enum Kind:
    LAYER_NORM = 0
    RMS_NORM = 1
    COMPRESSED_RMS_NORM = 2


cdef inline _unit_array(given, name, np.ndarray x, int trailing):
    """`given` as a contiguous array of the shape of the last `trailing` axes of `x`, or None."""
    cdef np.ndarray array
    cdef int i, offset = np.PyArray_NDIM(x) - trailing
    if given is None:
        return None
    array = _float_array(given, name)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(x):
        _checks.same_dtype("x", x, **{name: array})
    if np.PyArray_NDIM(array) != trailing:
        _checks.shape(array, name, (<object> x).shape[offset:])
    for i in range(trailing):
        if np.PyArray_DIM(array, i) != np.PyArray_DIM(x, offset + i):
            _checks.shape(array, name, (<object> x).shape[offset:])
    return array if np.PyArray_IS_C_CONTIGUOUS(array) else _in_order(array)


cdef inline int _trailing(axes, np.ndarray x) except -1:
    """Number of normalized axes, which are the last ones."""
    cdef int ndim = np.PyArray_NDIM(x), i, count = 1
    if ndim == 0:
        _checks.float_array(x, "x", min_ndim=1)
    if axes is not _LAST:
        over = _checks.axes(axes, ndim, "axes")
        count = len(over)
        if over != tuple(range(ndim - count, ndim)):
            _checks.fail("axes", f"the last axes of {ndim}", tuple(axes))
    for i in range(ndim - count, ndim):
        if np.PyArray_DIM(x, i) == 0:
            _checks.not_empty(x, "x", tuple(range(ndim - count, ndim)))
    return count


_LAST = (-1,)


cdef _run(int kind, np.ndarray x, residual, gain, bias, np.ndarray y, size_t rows, size_t length, size_t stride, double eps,
          centre, inv_std):
    cdef void *source = np.PyArray_DATA(x)
    cdef void *more = _data(residual)
    cdef void *scale = _data(gain)
    cdef void *shift = _data(bias)
    cdef void *target = np.PyArray_DATA(y)
    cdef double *centres = <double *> _data(centre)
    cdef double *inv_stds = <double *> _data(inv_std)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int failed
    if rows == 0:
        return
    with nogil:
        if single:
            failed = rn_norm().norm_f32(kind, <const float *> source, stride, <const float *> more, <const float *> scale, <const float *> shift, <float *> target, rows, length, eps, centres, inv_stds)
        else:
            failed = rn_norm().norm_f64(kind, <const double *> source, stride, <const double *> more, <const double *> scale, <const double *> shift, <double *> target, rows, length, eps, centres, inv_stds)
    if failed:
        raise MemoryError


cdef np.ndarray _forward(int kind, np.ndarray x, np.ndarray residual, gain, bias, int trailing, double eps, out):
    cdef size_t rows, length, stride
    cdef np.ndarray y
    if bias is not None and gain is None:
        gain = numpy.ones_like(bias)
    if out is not None:
        _check_out(out, x)
        y = <np.ndarray> out
        if not (_identical(x, y) or _apart(x, y)) or not (residual is None or _identical(residual, y) or _apart(residual, y)) \
                or not (gain is None or _apart(gain, y)) or not (bias is None or _apart(bias, y)):
            y[...] = _forward(kind, x, residual, gain, bias, trailing, eps, None)
            return y
    else:
        y = _fresh(x)
    if (np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y) and _rows_of(x, trailing, &rows, &length, &stride)
            and (residual is None or np.PyArray_IS_C_CONTIGUOUS(residual))):
        _run(kind, x, residual, gain, bias, y, rows, length, stride, eps, None, None)
    elif residual is not None:
        # Contiguous copies of a few rows at a time would need both operands in step; a whole copy is the rare case here.
        y[...] = _forward(kind, _in_order(x), _in_order(residual), gain, bias, trailing, eps, None)
    else:
        _rows_in_chunks(kind, x, gain, bias, y, trailing, eps)
    return y


cdef _rows_in_chunks(int kind, np.ndarray x, gain, bias, np.ndarray y, int trailing, double eps):
    """Normalize an array with an awkward layout in copies of about CHUNK elements, at least one example each."""
    cdef int lead = np.PyArray_NDIM(x) - trailing
    if lead == 0 or x.size <= CHUNK:
        y[...] = _forward(kind, numpy.array(x, order="C"), None, gain, bias, trailing, eps, None)
    elif x.shape[0] == 1:
        _rows_in_chunks(kind, (<object> x)[0], gain, bias, (<object> y)[0], trailing, eps)
    else:
        step = max(1, x.shape[0] * CHUNK // x.size)
        for first in range(0, x.shape[0], step):
            _rows_in_chunks(kind, (<object> x)[first : first + step], gain, bias, (<object> y)[first : first + step], trailing, eps)


cdef class _Saved:
    """What a pullback needs: rows of x, their centres and scales."""

    cdef np.ndarray x
    cdef np.ndarray original
    cdef object gain
    cdef np.ndarray centre
    cdef np.ndarray inv_std
    cdef size_t rows, length, stride
    cdef int kind


cdef _forward_saved(int kind, np.ndarray x, gain, bias, int trailing, double eps):
    cdef _Saved s = _Saved.__new__(_Saved)
    s.kind = kind
    s.original = x
    s.x = _rows_contiguous(x, trailing, &s.rows, &s.length, &s.stride)
    s.gain = gain
    s.centre = numpy.empty(s.rows)
    s.inv_std = numpy.empty(s.rows)
    cdef np.ndarray y = _fresh(x)
    scale = numpy.ones_like(bias) if bias is not None and gain is None else gain
    _run(kind, s.x, None, scale, bias, y, s.rows, s.length, s.stride, eps, s.centre, s.inv_std)
    return y, s


cdef _sum_forward_saved(int kind, np.ndarray x, np.ndarray residual, gain, bias, double eps):
    """Value for the last axis of x + residual, and what the pullback needs: the sum takes x's place."""
    cdef _Saved s = _Saved.__new__(_Saved)
    cdef np.ndarray y = _fresh(x)
    cdef np.ndarray total = _fresh(x)
    x, residual = _in_order(x), _in_order(residual)
    s.kind = kind
    s.original = s.x = total
    _rows_of(total, 1, &s.rows, &s.length, &s.stride)
    s.gain = gain
    s.centre = numpy.empty(s.rows)
    s.inv_std = numpy.empty(s.rows)
    factors = numpy.ones_like(bias) if bias is not None and gain is None else gain
    cdef void *one = np.PyArray_DATA(x)
    cdef void *other = np.PyArray_DATA(residual)
    cdef void *scale = _data(factors)
    cdef void *shift = _data(bias)
    cdef void *target = np.PyArray_DATA(y)
    cdef void *sums = np.PyArray_DATA(total)
    cdef double *centre = <double *> np.PyArray_DATA(s.centre)
    cdef double *inv_std = <double *> np.PyArray_DATA(s.inv_std)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int failed = 0
    with nogil:
        if s.rows == 0:
            pass
        elif single:
            failed = rn_norm().add_norm_f32(kind, <const float *> one, <const float *> other, <const float *> scale, <const float *> shift, <float *> target, <float *> sums, s.rows, s.length, eps, centre, inv_std)
        else:
            failed = rn_norm().add_norm_f64(kind, <const double *> one, <const double *> other, <const double *> scale, <const double *> shift, <double *> target, <double *> sums, s.rows, s.length, eps, centre, inv_std)
    if failed:
        raise MemoryError
    return y, s


cdef tuple _backward(_Saved s, dy, dgain, dbias):
    """dx, with the sums over the rows written to the arrays `dgain` and `dbias`, which may be None."""
    cdef np.ndarray g = _in_order(numpy.asarray(dy, dtype=s.x.dtype))
    _checks.shape(g, "dy", (<object> s.original).shape)
    cdef np.ndarray dx = _fresh(s.original)
    sums = dgain
    if dbias is not None and dgain is None:
        sums = numpy.empty_like(dbias)
    cdef void *x = np.PyArray_DATA(s.x)
    cdef void *up = np.PyArray_DATA(g)
    cdef void *to = np.PyArray_DATA(dx)
    cdef void *gain = _data(s.gain)
    cdef void *gain_sums = _data(sums)
    cdef void *bias_sums = _data(dbias)
    cdef double *centre = <double *> np.PyArray_DATA(s.centre)
    cdef double *inv_std = <double *> np.PyArray_DATA(s.inv_std)
    cdef bint single = np.PyArray_TYPE(s.x) == np.NPY_FLOAT
    cdef int failed = 0
    if s.rows == 0:
        for total in (dgain, dbias):
            if total is not None:
                total[...] = 0
        return (dx,)
    with nogil:
        if single:
            failed = rn_norm().norm_backward_f32(s.kind, <const float *> x, s.stride, <const float *> gain, <const float *> up, <float *> to, <float *> gain_sums, <float *> bias_sums, s.rows, s.length, centre, inv_std)
        else:
            failed = rn_norm().norm_backward_f64(s.kind, <const double *> x, s.stride, <const double *> gain, <const double *> up, <double *> to, <double *> gain_sums, <double *> bias_sums, s.rows, s.length, centre, inv_std)
    if failed:
        raise MemoryError
    return (dx,)


def layer_norm(x, gain, bias, *, eps=1e-5, axes=_LAST, out=None):
    """Normalize each example over its own units.

    Parameters
    ----------
    x : float32 or float64 array (..., H)
        ``axes`` are the unit axes, all others are examples.
    gain, bias : arrays of the shape of ``x`` along ``axes``
    eps : float > 0
        Added to the variance.
    axes : trailing axes of ``x``
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.layer_norm`; also if ``out`` does not fit.

    Notes
    -----
    Mean and variance are float64, the variance of centred values. A common offset of 10^6 costs no digits in
    float32. NaN or infinity in a row makes that row NaN and no other.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, equations 3 and 4.

    Examples
    --------
    >>> layer_norm(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4), np.zeros(4)).round(4)
    array([-1.3416, -0.4472,  0.4472,  1.3416])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.layer_norm", out, x, gain, bias, eps=eps, axes=axes)
    cdef np.ndarray array = _float_array(x, "x")
    cdef int trailing = _trailing(axes, array)
    return _forward(LAYER_NORM, array, None, _units("gain", gain, array, trailing), _units("bias", bias, array, trailing),
                    trailing, _positive(eps), out)


cdef inline _units(name, given, np.ndarray x, int trailing):
    """A required gain or bias."""
    if given is None:
        _checks.float_array(given, name)
    return _unit_array(given, name, x, trailing)


def layer_norm_vjp(x, gain, bias, *, eps=1e-5, axes=_LAST):
    """Return :func:`layer_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Parameters, errors and references are those of :func:`layer_norm`.

    Notes
    -----
    ``dx = inv_std (g - mean(g) - x_hat mean(g x_hat))`` with ``g = dy * gain``; the sums over the examples are
    float64, in an order that does not depend on the number of threads.

    Examples
    --------
    >>> y, pullback = layer_norm_vjp(np.array([[1.0, 2.0, 3.0]]), np.ones(3), np.zeros(3))
    >>> pullback(np.array([[1.0, 0.0, 0.0]]))[2]
    array([1., 0., 0.])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.layer_norm_vjp", None, x, gain, bias, eps=eps, axes=axes)
    cdef np.ndarray array = _float_array(x, "x")
    cdef int trailing = _trailing(axes, array)
    scale = _units("gain", gain, array, trailing)
    shift = _units("bias", bias, array, trailing)
    y, saved = _forward_saved(LAYER_NORM, array, scale, shift, trailing, _positive(eps))

    def pullback(dy):
        dgain, dbias = numpy.empty_like(scale), numpy.empty_like(shift)
        return (*_backward(saved, dy, dgain, dbias), dgain, dbias)

    return y, pullback


def add_layer_norm(x, residual, gain, bias, *, eps=1e-5, out=None):
    """Layer norm of ``x + residual`` over the last axis, without storing the sum.

    Parameters
    ----------
    x, residual : float32 or float64 arrays (..., H) of one shape and dtype
    gain, bias : arrays (H,)
    eps : float > 0
        Added to the variance.
    out : array, optional
        Takes the result; may be ``x`` or ``residual`` itself or overlap them.

    Returns
    -------
    array, shape and dtype of ``x``
        Bit for bit ``layer_norm(x + residual, gain, bias, eps=eps)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`layer_norm`; also if ``residual`` has another shape or dtype.

    Notes
    -----
    ``gain * (s - mean(s)) / sqrt(var(s) + eps) + bias`` with ``s = x + residual``.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, equations 3 and 4.

    Examples
    --------
    >>> add_layer_norm(np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.ones(2), np.zeros(2)).round(4)
    array([-1.,  1.])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef np.ndarray more = _second_term(array, residual)
    return _forward(LAYER_NORM, array, more, _units("gain", gain, array, 1), _units("bias", bias, array, 1), 1,
                    _positive(eps), out)


cdef np.ndarray _second_term(np.ndarray x, residual):
    """`residual`, if it has the shape and dtype of x."""
    cdef np.ndarray more = _float_array(residual, "residual")
    if np.PyArray_NDIM(x) == 0:
        _checks.float_array(x, "x", min_ndim=1)
    if np.PyArray_TYPE(x) != np.PyArray_TYPE(more):
        _checks.same_dtype("x", x, residual=more)
    if not _same_shape(x, more):
        _checks.shape(more, "residual", (<object> x).shape)
    _trailing(_LAST, x)
    return more


def add_layer_norm_vjp(x, residual, gain, bias, *, eps=1e-5):
    """Return :func:`add_layer_norm` and its pullback ``dy -> (dx, dresidual, dgain, dbias)``.

    Parameters, errors and references are those of :func:`add_layer_norm`. The sum is written once, for the
    pullback; ``dx`` and ``dresidual`` are one array.

    Examples
    --------
    >>> one = np.array([1.0, 2.0, 3.0])
    >>> y, pullback = add_layer_norm_vjp(one, one, np.ones(3), np.zeros(3))
    >>> pullback(np.array([1.0, 0.0, 0.0]))[3]
    array([1., 0., 0.])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef np.ndarray more = _second_term(array, residual)
    scale = _units("gain", gain, array, 1)
    shift = _units("bias", bias, array, 1)
    y, saved = _sum_forward_saved(LAYER_NORM, array, more, scale, shift, _positive(eps))

    def pullback(dy):
        dgain, dbias = numpy.empty_like(scale), numpy.empty_like(shift)
        (dsum,) = _backward(saved, dy, dgain, dbias)
        return dsum, dsum, dgain, dbias

    return y, pullback


def rms_norm(x, gain=None, bias=None, *, eps=1e-5, out=None):
    """Divide each vector by the root of its mean square.

    Parameters
    ----------
    x : float32 or float64 array (..., d)
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.rms_norm`; also if ``out`` does not fit.

    Notes
    -----
    ``y = gain * x / sqrt(mean(x^2) + eps) + bias``, the mean in float64.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858, section 3.

    Examples
    --------
    >>> rms_norm(np.array([1.0, 2.0, -3.0]), eps=1e-12).round(4)
    array([ 0.4629,  0.9258, -1.3887])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.rms_norm", out, x, gain, bias, eps=eps)
    cdef np.ndarray array = _float_array(x, "x")
    cdef int trailing = _trailing(_LAST, array)
    return _forward(RMS_NORM, array, None, _unit_array(gain, "gain", array, 1), _unit_array(bias, "bias", array, 1), trailing,
                    _positive(eps), out)


def rms_norm_vjp(x, gain=None, bias=None, *, eps=1e-5):
    """Return :func:`rms_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    The entry of an argument that was left out is ``None``. Parameters, errors and references are those of
    :func:`rms_norm`.

    Notes
    -----
    ``dx = inv_rms (g - x_hat mean(g x_hat))`` with ``g = dy * gain``.

    Examples
    --------
    >>> y, pullback = rms_norm_vjp(np.array([3.0, 4.0]))
    >>> pullback(np.array([3.0, 4.0]))[0].round(4)
    array([0., 0.])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.rms_norm_vjp", None, x, gain, bias, eps=eps)
    cdef np.ndarray array = _float_array(x, "x")
    cdef int trailing = _trailing(_LAST, array)
    scale = _unit_array(gain, "gain", array, 1)
    shift = _unit_array(bias, "bias", array, 1)
    y, saved = _forward_saved(RMS_NORM, array, scale, shift, trailing, _positive(eps))

    def pullback(dy):
        dgain = None if scale is None else numpy.empty_like(scale)
        dbias = None if shift is None else numpy.empty_like(shift)
        return (*_backward(saved, dy, dgain, dbias), dgain, dbias)

    return y, pullback


def add_rms_norm(x, residual, gain=None, bias=None, *, eps=1e-5, out=None):
    """RMS norm of ``x + residual``, without storing the sum.

    Parameters
    ----------
    x, residual : float32 or float64 arrays (..., d) of one shape and dtype
    gain, bias : arrays (d,), optional
        Scale and shift of each entry; left out they are 1 and 0.
    eps : float > 0
        Added to the mean square.
    out : array, optional
        Takes the result; may be ``x`` or ``residual`` itself or overlap them.

    Returns
    -------
    array, shape and dtype of ``x``
        Bit for bit ``rms_norm(x + residual, gain, bias, eps=eps)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.add_rms_norm`; also if ``out`` does not fit.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858, section 3.

    Examples
    --------
    >>> add_rms_norm(np.array([1.0, 1.0]), np.array([2.0, 3.0]), eps=1e-12).round(4)
    array([0.8485, 1.1314])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef np.ndarray more = _second_term(array, residual)
    return _forward(RMS_NORM, array, more, _unit_array(gain, "gain", array, 1), _unit_array(bias, "bias", array, 1), 1,
                    _positive(eps), out)


def add_rms_norm_vjp(x, residual, gain=None, bias=None, *, eps=1e-5):
    """Return :func:`add_rms_norm` and its pullback ``dy -> (dx, dresidual, dgain, dbias)``.

    The entry of an argument that was left out is ``None``. Parameters, errors and references are those of
    :func:`add_rms_norm`. The sum is written once, for the
    pullback; ``dx`` and ``dresidual`` are one array.

    Examples
    --------
    >>> y, pullback = add_rms_norm_vjp(np.array([3.0, 4.0]), np.zeros(2))
    >>> pullback(np.array([3.0, 4.0]))[1].round(4)
    array([0., 0.])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef np.ndarray more = _second_term(array, residual)
    scale = _unit_array(gain, "gain", array, 1)
    shift = _unit_array(bias, "bias", array, 1)
    y, saved = _sum_forward_saved(RMS_NORM, array, more, scale, shift, _positive(eps))

    def pullback(dy):
        dgain = None if scale is None else numpy.empty_like(scale)
        dbias = None if shift is None else numpy.empty_like(shift)
        (dsum,) = _backward(saved, dy, dgain, dbias)
        return dsum, dsum, dgain, dbias

    return y, pullback


def compressed_rms_norm(x, *, eps=1e-5, out=None):
    """RMSNorm of a vector that sums to zero and is stored without its last entry.

    Parameters
    ----------
    x : float32 or float64 array (..., d - 1)
        The first entries; the last one is minus their sum.
    eps : float > 0
        Added to the mean square.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.compressed_rms_norm`; also if ``out`` does not fit.

    Notes
    -----
    ``y = x / sqrt((sum(x^2) + sum(x)^2) / d + eps)``, the sums in float64.

    References
    ----------
    Jiang, Gu, Zhu, Pan (2023), arXiv 2305.14858, section 3.

    Examples
    --------
    >>> compressed_rms_norm(np.array([1.0, 2.0]), eps=1e-12).round(4)
    array([0.4629, 0.9258])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef int trailing = _trailing(_LAST, array)
    return _forward(COMPRESSED_RMS_NORM, array, None, None, None, trailing, _positive(eps), out)


def compressed_rms_norm_vjp(x, *, eps=1e-5):
    """Return :func:`compressed_rms_norm` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`compressed_rms_norm`.

    Notes
    -----
    ``dx = inv_rms dy - inv_rms^3 / d sum(dy x) (x + sum(x))``.

    Examples
    --------
    >>> y, pullback = compressed_rms_norm_vjp(np.array([1.0, 2.0]), eps=1e-12)
    >>> pullback(np.array([1.0, 0.0]))[0].round(4)
    array([ 0.3307, -0.1653])
    """
    cdef np.ndarray array = _float_array(x, "x")
    cdef int trailing = _trailing(_LAST, array)
    y, saved = _forward_saved(COMPRESSED_RMS_NORM, array, None, None, trailing, _positive(eps))

    def pullback(dy):
        return _backward(saved, dy, None, None)

    return y, pullback
