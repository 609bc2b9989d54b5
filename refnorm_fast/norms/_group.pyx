"""Norms over groups of channels: checks and layout; the arithmetic is in _kernels/norm.c."""

import numpy

cimport numpy as np

from refnorm import norms as _reference

np.import_array()

include "../_kernels/rows.pxi"
include "_arguments.pxi"

cdef extern from "norm.h":
    ctypedef struct rn_groups:
        int kind
        size_t examples, groups, channels, places, ddof
        double eps
    ctypedef struct rn_norm_table:
        int (*group_norm_f32)(const rn_groups *, const float *, const float *, const float *, float *, double *, double *) nogil
        int (*group_norm_f64)(const rn_groups *, const double *, const double *, const double *, double *, double *, double *) nogil
        int (*group_norm_backward_f32)(const rn_groups *, const float *, const float *, const float *, float *, float *, float *, const double *, const double *) nogil
        int (*group_norm_backward_f64)(const rn_groups *, const double *, const double *, const double *, double *, double *, double *, const double *, const double *) nogil
    const rn_norm_table *rn_norm() nogil

cdef enum Kind:
    LAYER_NORM = 0
    RMS_NORM = 1


cdef class _Groups:
    """Sizes of the groups, and what a pullback needs: x, its rows' centres and scales, gain."""

    cdef rn_groups shape
    cdef np.ndarray x
    cdef np.ndarray original
    cdef object gain
    cdef object bias
    cdef object centre
    cdef object inv_std


cdef _refuse(name, arguments, options):
    """Raise what the reference raises."""
    getattr(_reference, name)(*arguments, **options)
    raise AssertionError(f"{name}: the kernel refuses what the reference takes")


cdef inline long _whole(value, bint *fits) except? -1:
    """`value` as a number, if it is an int that the reference takes."""
    fits[0] = isinstance(value, (int, numpy.integer)) and not isinstance(value, bool) and 0 <= value < 1 << 62
    return value if fits[0] else 0


cdef inline object _channel_array(given, name, np.ndarray x, np.npy_intp channels):
    """`given` as a contiguous array of `channels` entries with the dtype of x, or None if it is not."""
    cdef np.ndarray array = _float_array(given, name)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(x) or np.PyArray_NDIM(array) != 1 or np.PyArray_DIM(array, 0) != channels:
        return None
    return array if np.PyArray_IS_C_CONTIGUOUS(array) else _in_order(array)


cdef _Groups _channel_groups(np.ndarray x, groups, eps):
    """Groups of the channels of x (N, C, ...), or None if an argument does not fit."""
    cdef _Groups g = _Groups.__new__(_Groups)
    cdef bint fits
    cdef long count = _whole(groups, &fits)
    cdef int i
    if not fits or count < 1 or np.PyArray_NDIM(x) < 2 or np.PyArray_DIM(x, 1) % count:
        return None
    g.shape.kind = LAYER_NORM
    g.shape.examples = np.PyArray_DIM(x, 0)
    g.shape.groups = count
    g.shape.channels = np.PyArray_DIM(x, 1) // count
    g.shape.places = 1
    for i in range(2, np.PyArray_NDIM(x)):
        g.shape.places *= np.PyArray_DIM(x, i)
    g.shape.ddof = 0
    g.shape.eps = _positive(eps)
    g.original = x
    if g.shape.channels * g.shape.places == 0:
        return None
    return g


cdef np.ndarray _forward(_Groups g, np.ndarray x, out, bint save):
    """y for contiguous or any other x; with `save`, g keeps what the pullback needs."""
    cdef np.ndarray y
    cdef np.ndarray source = x
    if not np.PyArray_IS_C_CONTIGUOUS(x):
        source = _in_order(x)
    if out is None:
        y = _fresh(x)
    else:
        _check_out(out, x)
        y = <np.ndarray> out
        if (not (np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y)) or not (_identical(source, y) or _apart(source, y))
                or not (g.gain is None or _apart(g.gain, y)) or not (g.bias is None or _apart(g.bias, y))):
            y[...] = _forward(g, x, None, save)
            return y
    cdef np.npy_intp rows = g.shape.examples * g.shape.groups
    if save:
        g.x = source
        g.centre = numpy.empty(rows)
        g.inv_std = numpy.empty(rows)
    if rows == 0:
        return y
    cdef void *from_ = np.PyArray_DATA(source)
    cdef void *to = np.PyArray_DATA(y)
    cdef void *gain = _data(g.gain)
    cdef void *bias = _data(g.bias)
    cdef double *centre = <double *> _data(g.centre)
    cdef double *inv_std = <double *> _data(g.inv_std)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef rn_groups *shape = &g.shape
    cdef int failed
    with nogil:
        if single:
            failed = rn_norm().group_norm_f32(shape, <const float *> from_, <const float *> gain, <const float *> bias, <float *> to, centre, inv_std)
        else:
            failed = rn_norm().group_norm_f64(shape, <const double *> from_, <const double *> gain, <const double *> bias, <double *> to, centre, inv_std)
    if failed:
        raise MemoryError
    return y


cdef tuple _backward(_Groups g, dy):
    """dx, dgain and dbias, or dx alone where there is no gain."""
    cdef np.ndarray down = _in_order(numpy.asarray(dy, dtype=g.x.dtype))
    _checks.shape(down, "dy", (<object> g.original).shape)
    cdef np.ndarray dx = _fresh(g.original)
    dgain = None if g.gain is None else numpy.zeros_like(g.gain)
    dbias = None if g.gain is None else numpy.zeros_like(g.bias)
    cdef void *x = np.PyArray_DATA(g.x)
    cdef void *up = np.PyArray_DATA(down)
    cdef void *to = np.PyArray_DATA(dx)
    cdef void *gain = _data(g.gain)
    cdef void *gain_sums = _data(dgain)
    cdef void *bias_sums = _data(dbias)
    cdef double *centre = <double *> _data(g.centre)
    cdef double *inv_std = <double *> _data(g.inv_std)
    cdef bint single = np.PyArray_TYPE(g.x) == np.NPY_FLOAT
    cdef rn_groups *shape = &g.shape
    cdef int failed = 0
    with nogil:
        if shape.examples * shape.groups == 0:
            pass
        elif single:
            failed = rn_norm().group_norm_backward_f32(shape, <const float *> x, <const float *> gain, <const float *> up, <float *> to, <float *> gain_sums, <float *> bias_sums, centre, inv_std)
        else:
            failed = rn_norm().group_norm_backward_f64(shape, <const double *> x, <const double *> gain, <const double *> up, <double *> to, <double *> gain_sums, <double *> bias_sums, centre, inv_std)
    if failed:
        raise MemoryError
    return (dx,) if g.gain is None else (dx, dgain, dbias)


cdef _with_pullback(_Groups g):
    y = _forward(g, g.original, None, True)

    def pullback(dy):
        return _backward(g, dy)

    return y, pullback


cdef _Groups _group_norm(x, gain, bias, groups, eps, name, options):
    cdef np.ndarray array = _float_array(x, "x")
    cdef _Groups g = _channel_groups(array, groups, eps)
    if g is not None:
        g.gain = _channel_array(gain, "gain", array, np.PyArray_DIM(array, 1))
        g.bias = _channel_array(bias, "bias", array, np.PyArray_DIM(array, 1))
    if g is None or g.gain is None or g.bias is None:
        _refuse(name, (x, gain, bias), options)
    return g


def group_norm(x, gain, bias, *, groups=32, eps=1e-5, out=None):
    """Normalize each example over groups of its channels.

    Parameters
    ----------
    x : float32 or float64 array (N, C, ...)
        Feature maps; the axes after the second are places of an image and may be missing.
    gain, bias : arrays (C,)
        Scale and shift of each channel.
    groups : int >= 1
        Number of groups; it divides C.
    eps : float > 0
        Added to the variance.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.group_norm`; also if ``out`` does not fit.

    Notes
    -----
    Mean and variance are float64, the variance of centred values. NaN or infinity makes its group of its example
    NaN and nothing else.

    References
    ----------
    Wu, He (2018), arXiv 1803.08494, equations 1, 2, 6 and 7.

    Examples
    --------
    >>> x = np.array([[[1.0, 3.0], [5.0, 7.0]]])
    >>> group_norm(x, np.array([1.0, 2.0]), np.zeros(2), groups=2).round(3)
    array([[[-1.,  1.],
            [-2.,  2.]]])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.group_norm", out, x, gain, bias, groups=groups, eps=eps)
    cdef _Groups g = _group_norm(x, gain, bias, groups, eps, "group_norm", {"groups": groups, "eps": eps})
    return _forward(g, g.original, out, False)


def group_norm_vjp(x, gain, bias, *, groups=32, eps=1e-5):
    """Return :func:`group_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Parameters, errors and references are those of :func:`group_norm`. ``x`` and ``gain`` must not change before the
    pullback has run.

    Notes
    -----
    ``dx = inv_std (g - mean(g) - x_hat mean(g x_hat))`` with ``g = dy * gain``. The sums over examples and places are
    float64, in an order that does not depend on the number of threads.

    Examples
    --------
    >>> y, pullback = group_norm_vjp(np.array([[1.0, 3.0, 5.0, 5.0]]), np.ones(4), np.zeros(4), groups=2)
    >>> pullback(np.array([[1.0, 2.0, 3.0, 4.0]]))[2]
    array([1., 2., 3., 4.])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.group_norm_vjp", None, x, gain, bias, groups=groups, eps=eps)
    return _with_pullback(_group_norm(x, gain, bias, groups, eps, "group_norm_vjp", {"groups": groups, "eps": eps}))


cdef _Groups _instance_norm(x, gain, bias, eps, name):
    cdef np.ndarray array = _float_array(x, "x")
    if np.PyArray_NDIM(array) < 3 or np.PyArray_DIM(array, 1) == 0:
        if np.PyArray_NDIM(array) < 3:
            _refuse(name, (x, gain, bias), {"eps": eps})
        return _group_norm(x, gain, bias, 1, eps, "group_norm", {"groups": 1, "eps": eps})
    return _group_norm(x, gain, bias, np.PyArray_DIM(array, 1), eps, name, {"eps": eps})


def instance_norm(x, gain, bias, *, eps=1e-5, out=None):
    """Normalize each channel of each example over its places.

    Parameters
    ----------
    x : float32 or float64 array (N, C, ...)
        Feature maps with at least one axis of places.
    gain, bias : arrays (C,)
        Scale and shift of each channel.
    eps : float > 0
        Added to the variance.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.instance_norm`; also if ``out`` does not fit.

    Notes
    -----
    :func:`group_norm` with as many groups as channels.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky (2016), arXiv 1607.08022, equation 3.

    Examples
    --------
    >>> instance_norm(np.array([[[1.0, 3.0], [50.0, 70.0]]]), np.ones(2), np.zeros(2)).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.instance_norm", out, x, gain, bias, eps=eps)
    cdef _Groups g = _instance_norm(x, gain, bias, eps, "instance_norm")
    return _forward(g, g.original, out, False)


def instance_norm_vjp(x, gain, bias, *, eps=1e-5):
    """Return :func:`instance_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Parameters, errors and references are those of :func:`instance_norm`. ``x`` and ``gain`` must not change before the
    pullback has run.

    Examples
    --------
    >>> y, pullback = instance_norm_vjp(np.array([[[1.0, 3.0]]]), np.ones(1), np.zeros(1))
    >>> pullback(np.array([[[1.0, 2.0]]]))[2]
    array([3.])
    """
    if _on_gpu(x):
        return _dispatch.call("norms.instance_norm_vjp", None, x, gain, bias, eps=eps)
    return _with_pullback(_instance_norm(x, gain, bias, eps, "instance_norm_vjp"))


cdef _Groups _standardize_groups(x, groups, eps, name):
    cdef _Groups g = _channel_groups(_float_array(x, "x"), groups, eps)
    if g is None:
        _refuse(name, (x,), {"groups": groups, "eps": eps})
    return g


def standardize_groups(x, *, groups=32, eps=1e-5, out=None):
    """Give each example's groups of channels mean 0 and variance 1, without gain and bias.

    Parameters
    ----------
    x : float32 or float64 array (N, C, ...)
        Feature maps; the axes after the second are places of an image and may be missing.
    groups : int >= 1
        Number of groups; it divides C.
    eps : float > 0
        Added to the variance.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.standardize_groups`; also if ``out`` does not fit.

    References
    ----------
    Wu, He (2018), arXiv 1803.08494, equations 1, 2 and 7.

    Examples
    --------
    >>> standardize_groups(np.array([[0.0, 2.0, 10.0, 30.0]]), groups=2).round(3)
    array([[-1.,  1., -1.,  1.]])
    """
    cdef _Groups g = _standardize_groups(x, groups, eps, "standardize_groups")
    return _forward(g, g.original, out, False)


def standardize_groups_vjp(x, *, groups=32, eps=1e-5):
    """Return :func:`standardize_groups` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`standardize_groups`. ``x`` must not change before the pullback
    has run.

    Examples
    --------
    >>> y, pullback = standardize_groups_vjp(np.array([[0.0, 2.0]]), groups=1)
    >>> pullback(np.ones((1, 2)))[0]
    array([[0., 0.]])
    """
    return _with_pullback(_standardize_groups(x, groups, eps, "standardize_groups_vjp"))


cdef _Groups _rows(np.ndarray x, int kind, size_t rows, size_t groups, size_t length, size_t ddof, double eps):
    """Rows of `length` entries each, without gain."""
    cdef _Groups g = _Groups.__new__(_Groups)
    g.shape = rn_groups(kind=kind, examples=rows, groups=groups, channels=length, places=1, ddof=ddof, eps=eps)
    g.original = x
    return g


cdef _Groups _weight_standardize(weight, eps, ddof, name):
    cdef np.ndarray array = _float_array(weight, "weight")
    cdef bint fits
    cdef long less = _whole(ddof, &fits)
    cdef np.npy_intp entries = 1
    cdef int i
    for i in range(1, np.PyArray_NDIM(array)):
        entries *= np.PyArray_DIM(array, i)
    if np.PyArray_NDIM(array) < 2 or not fits or less > 1 or entries <= less:
        _refuse(name, (weight,), {"eps": eps, "ddof": ddof})
    return _rows(array, LAYER_NORM, np.PyArray_DIM(array, 0), 1, entries, less, _positive(eps))


def weight_standardize(weight, *, eps=1e-5, ddof=1, out=None):
    """Give every output filter mean 0 and variance 1.

    Parameters
    ----------
    weight : float32 or float64 array (O, ...)
        Filters, for example (O, C, A, B).
    eps : float > 0
        Added to the variance.
    ddof : 0 or 1
        The sum of squares is divided by the number of entries less ``ddof``.
    out : array, optional
        Takes the result; may be ``weight`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``weight``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.weight_standardize`; also if ``out`` does not fit.

    References
    ----------
    Qiao et al. (2019), arXiv 1903.10520, equations 7 and 8.

    Examples
    --------
    >>> weight_standardize(np.array([[1.0, 2.0, 3.0, 4.0]]), ddof=0).round(3)
    array([[-1.342, -0.447,  0.447,  1.342]])
    """
    cdef _Groups g = _weight_standardize(weight, eps, ddof, "weight_standardize")
    return _forward(g, g.original, out, False)


def weight_standardize_vjp(weight, *, eps=1e-5, ddof=1):
    """Return :func:`weight_standardize` and its pullback ``dweight_hat -> (dweight,)``.

    Parameters, errors and references are those of :func:`weight_standardize`. ``weight`` must not change before the
    pullback has run.

    Examples
    --------
    >>> weight_hat, pullback = weight_standardize_vjp(np.array([[1.0, 2.0, 3.0]]))
    >>> pullback(np.ones((1, 3)))[0]
    array([[0., 0., 0.]])
    """
    return _with_pullback(_weight_standardize(weight, eps, ddof, "weight_standardize_vjp"))


cdef _Groups _group_scale(x, groups, eps, name):
    cdef np.ndarray array = _float_array(x, "x")
    cdef int ndim = np.PyArray_NDIM(array), i
    cdef bint fits
    cdef long count = _whole(groups, &fits)
    cdef np.npy_intp channels = np.PyArray_DIM(array, ndim - 1) if ndim else 0
    cdef size_t tokens = 1
    if not fits or count < 1 or channels == 0 or channels % count:
        _refuse(name, (x,), {"groups": groups, "eps": eps})
    for i in range(ndim - 1):
        tokens *= np.PyArray_DIM(array, i)
    return _rows(array, RMS_NORM, tokens, count, channels // count, 0, _positive(eps))


def group_scale(x, *, groups=1, eps=1e-5, out=None):
    """Divide each token by its root mean square over groups of channels.

    Parameters
    ----------
    x : float32 or float64 array (..., C)
    groups : int >= 1
        Number of groups; it divides C.
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
        As :func:`refnorm.norms.group_scale`; also if ``out`` does not fit.

    References
    ----------
    Shen et al. (2020), arXiv 2003.07845, and the authors' code.

    Examples
    --------
    >>> group_scale(np.array([[3.0, 4.0, 10.0, 10.0]]), groups=2).round(6)
    array([[0.848528, 1.13137 , 1.      , 1.      ]])
    """
    cdef _Groups g = _group_scale(x, groups, eps, "group_scale")
    return _forward(g, g.original, out, False)


def group_scale_vjp(x, *, groups=1, eps=1e-5):
    """Return :func:`group_scale` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`group_scale`. ``x`` must not change before the pullback has run.

    Examples
    --------
    >>> y, pullback = group_scale_vjp(np.array([[3.0, 4.0]]), eps=1e-12)
    >>> pullback(np.array([[3.0, 4.0]]))[0].round(4)
    array([[0., 0.]])
    """
    return _with_pullback(_group_scale(x, groups, eps, "group_scale_vjp"))


cdef tuple _weight_norm(direction, gain, axis):
    """Weights as (units, entries), groups with what their pullback needs, the axis; or None where the reference must act:
    for errors, units of zeros, infinities, and sizes whose squares leave the range of float64."""
    cdef np.ndarray array = _float_array(direction, "direction")
    cdef np.ndarray length = _float_array(gain, "gain")
    if np.PyArray_NDIM(array) == 0 or np.PyArray_SIZE(array) == 0:
        return None
    (over,) = _checks.axes(axis, array.ndim, "axis")
    cdef np.npy_intp units = np.PyArray_DIM(array, over)
    cdef np.npy_intp entries = np.PyArray_SIZE(array) // units
    if np.PyArray_TYPE(length) != np.PyArray_TYPE(array) or np.PyArray_NDIM(length) != 1 or np.PyArray_DIM(length, 0) != units:
        return None
    sizes = numpy.abs(length)
    if sizes.min(where=sizes > 0, initial=1) < 1e-30:  # a gain that loses digits when divided
        return None
    # gain x / |x| is an RMS norm of one row a unit, with gain / sqrt(entries).
    rows = _in_order(numpy.moveaxis(array, over, 0))
    cdef _Groups g = _Groups.__new__(_Groups)
    g.shape = rn_groups(kind=RMS_NORM, examples=1, groups=units, channels=1, places=entries, ddof=0, eps=_NO_EPS)
    g.original = rows
    g.gain = ((<object> length) * float(entries) ** -0.5).astype(length.dtype)
    g.bias = numpy.zeros_like(g.gain)
    weight = _forward(g, rows, None, True)
    scales = g.inv_std
    if not ((scales > 1e-140) & (scales < 1e140) | numpy.isnan(scales)).all():
        return None
    return weight, g, over


# Added to a mean square: nothing beside that of any float32, and of float64 beyond 1e-140.
_NO_EPS = 1e-300


cdef _unit_axis_last_moved(rows, axis):
    """Rows in the layout of the direction, whose unit axis is `axis`."""
    return rows if axis == 0 else _in_order(numpy.moveaxis(rows, 0, axis))


def weight_norm(direction, gain, *, axis=0, out=None):
    """Form weights from a direction and a length for every output unit.

    Parameters
    ----------
    direction : float32 or float64 array
        Weights of any length but 0.
    gain : array (O,)
        The lengths; a negative one turns the direction round.
    axis : axis of ``direction``
        That of the output units.
    out : array, optional
        Takes the result; may be ``direction`` itself or overlap it.

    Returns
    -------
    array, shape and dtype of ``direction``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.weight_norm`; also if ``out`` does not fit.

    References
    ----------
    Salimans, Kingma (2016), arXiv 1602.07868, equation 2.

    Examples
    --------
    >>> weight_norm(np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([10.0, 1.0])).round(6)
    array([[6., 8.],
           [0., 1.]])
    """
    if out is not None:
        _check_out(out, _float_array(direction, "direction"))
    found = _weight_norm(direction, gain, axis)
    if found is None:
        weight = _reference.weight_norm(direction, gain, axis=axis)
    else:
        weight = _unit_axis_last_moved(found[0], found[2])
    if out is None:
        return weight
    out[...] = weight
    return out


def weight_norm_vjp(direction, gain, *, axis=0):
    """Return :func:`weight_norm` and its pullback ``dweight -> (ddirection, dgain)``.

    Parameters, errors and references are those of :func:`weight_norm`. ``direction`` must not change before the pullback
    has run.

    Examples
    --------
    >>> weight, pullback = weight_norm_vjp(np.array([[3.0, 4.0]]), np.array([5.0]))
    >>> pullback(np.array([[3.0, 4.0]]))[1].round(6)
    array([5.])
    """
    found = _weight_norm(direction, gain, axis)
    if found is None:
        return _reference.weight_norm_vjp(direction, gain, axis=axis)
    weight, g, over = found
    shape = numpy.shape(direction)

    def pullback(dweight):
        dweight = numpy.asarray(dweight)
        _checks.shape(dweight, "dweight", shape)
        dx, dgain, _ = _backward(g, numpy.moveaxis(dweight, over, 0))
        root = (<object> dx)[0].size ** -0.5
        return _unit_axis_last_moved(dx, over), (dgain * root).astype(dgain.dtype)

    return _unit_axis_last_moved(weight, over), pullback
