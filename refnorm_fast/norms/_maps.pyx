"""Norms with scale and shift from maps (SPADE): checks and layout; the arithmetic is in _kernels/norm.c."""

import numpy

cimport numpy as np

from refnorm import norms as _reference
from refnorm.nn import relu_vjp
from refnorm.norms._spatially_adaptive_norm import _resize_nearest, _same_conv, _silu_vjp

np.import_array()

include "../_kernels/rows.pxi"
include "_channels.pxi"

cdef extern from "norm.h":
    ctypedef struct rn_groups:
        int kind
        size_t examples, groups, channels, places, ddof
        double eps
    ctypedef struct rn_norm_table:
        void (*modulate_f32)(const rn_groups *, const float *, const float *, const float *, float *, const double *, const double *) nogil
        void (*modulate_f64)(const rn_groups *, const double *, const double *, const double *, double *, const double *, const double *) nogil
        void (*modulate_backward_f32)(const rn_groups *, const float *, const float *, const float *, float *, float *, const double *, const double *) nogil
        void (*modulate_backward_f64)(const rn_groups *, const double *, const double *, const double *, double *, double *, const double *, const double *) nogil
        void (*norm_modulate_f32)(const rn_groups *, const float *, const float *, const float *, float *, double *, double *) nogil
        void (*norm_modulate_f64)(const rn_groups *, const double *, const double *, const double *, double *, double *, double *) nogil
        int (*group_norm_backward_f32)(const rn_groups *, const float *, const float *, const float *, float *, float *, float *, const double *, const double *) nogil
        int (*group_norm_backward_f64)(const rn_groups *, const double *, const double *, const double *, double *, double *, double *, const double *, const double *) nogil
    const rn_norm_table *rn_norm() nogil

cdef enum:
    LAYER_NORM = 0


cdef class _Rows:
    """Rows of a contiguous x, and their statistics where x is not standardized yet."""

    cdef rn_groups shape
    cdef np.ndarray x
    cdef object centre, inv_std
    cdef bint single

    cdef _Layout batch  # where the statistics are the batch's
    cdef np.ndarray channels

    def __cinit__(self, np.ndarray x, size_t rows, eps):
        self.x = _in_order(x)
        self.single = np.PyArray_TYPE(x) == np.NPY_FLOAT
        size = np.PyArray_SIZE(x)
        self.shape = rn_groups(kind=LAYER_NORM, examples=rows, groups=1, channels=size // rows if rows else 0, places=1, ddof=0,
                               eps=eps)

    cdef take_batch_statistics(self):
        """Every plane's centre and scale are its channel's over the batch; rows are planes."""
        self.batch = _layout(self.x, 0b1101)
        self.channels = _statistics(self.batch)
        _norm(BATCH, self.batch, None, None, None, self.channels, self.shape.eps)
        examples = np.PyArray_DIM(self.x, 0)
        centre = (<object> self.channels)[:, MEAN_COLUMN] + (<object> self.channels)[:, LOW_COLUMN]
        self.centre, self.inv_std = (
            numpy.tile(values, examples) for values in (centre, (<object> self.channels)[:, INVERSE_COLUMN]))

    cdef modulated(self, gain, bias, np.ndarray y, bint standardize):
        """y = h (1 + gain) + bias"""
        cdef np.ndarray gains = _in_order(gain)
        cdef np.ndarray shifts = _in_order(bias)
        if standardize:
            self.centre, self.inv_std = numpy.empty(self.shape.examples), numpy.empty(self.shape.examples)
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *g = np.PyArray_DATA(gains)
        cdef void *b = np.PyArray_DATA(shifts)
        cdef void *to = np.PyArray_DATA(y)
        cdef double *centre = <double *> _data(self.centre)
        cdef double *inv_std = <double *> _data(self.inv_std)
        cdef rn_groups *shape = &self.shape
        with nogil:
            if shape.examples == 0:
                pass
            elif standardize and self.single:
                rn_norm().norm_modulate_f32(shape, <float *> x, <float *> g, <float *> b, <float *> to, centre, inv_std)
            elif standardize:
                rn_norm().norm_modulate_f64(shape, <double *> x, <double *> g, <double *> b, <double *> to, centre, inv_std)
            elif self.single:
                rn_norm().modulate_f32(shape, <float *> x, <float *> g, <float *> b, <float *> to, centre, inv_std)
            else:
                rn_norm().modulate_f64(shape, <double *> x, <double *> g, <double *> b, <double *> to, centre, inv_std)
        return y

    cdef tuple back(self, gain, np.ndarray dy):
        """The cotangents of h and of the gains."""
        cdef np.ndarray gains = _in_order(gain)
        cdef np.ndarray dh = _fresh(self.x)
        cdef np.ndarray dgain = _fresh(self.x)
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *g = np.PyArray_DATA(gains)
        cdef void *up = np.PyArray_DATA(dy)
        cdef void *to = np.PyArray_DATA(dh)
        cdef void *to_gain = np.PyArray_DATA(dgain)
        cdef double *centre = <double *> _data(self.centre)
        cdef double *inv_std = <double *> _data(self.inv_std)
        cdef rn_groups *shape = &self.shape
        with nogil:
            if shape.examples == 0:
                pass
            elif self.single:
                rn_norm().modulate_backward_f32(shape, <float *> x, <float *> g, <float *> up, <float *> to, <float *> to_gain, centre, inv_std)
            else:
                rn_norm().modulate_backward_f64(shape, <double *> x, <double *> g, <double *> up, <double *> to, <double *> to_gain, centre, inv_std)
        return dh, dgain

    cdef np.ndarray back_norm(self, np.ndarray dh):
        """The cotangent of x from that of h, in its memory where rows have statistics of their own."""
        if self.batch is not None:
            return _backward(BATCH, self.batch, dh, None, self.channels)[0]
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *up = np.PyArray_DATA(dh)
        cdef double *centre = <double *> _data(self.centre)
        cdef double *inv_std = <double *> _data(self.inv_std)
        cdef rn_groups *shape = &self.shape
        cdef int failed = 0
        with nogil:
            if shape.examples == 0:
                pass
            elif self.single:
                failed = rn_norm().group_norm_backward_f32(shape, <float *> x, NULL, <float *> up, <float *> up, NULL, NULL, centre, inv_std)
            else:
                failed = rn_norm().group_norm_backward_f64(shape, <double *> x, NULL, <double *> up, <double *> up, NULL, NULL, centre, inv_std)
        if failed:
            raise MemoryError
        return dh

    cdef np.ndarray cotangent(self, dy):
        array = numpy.asarray(dy, dtype=(<object> self.x).dtype)
        _checks.shape(array, "dy", (<object> self.x).shape)
        return _in_order(array)


cdef tuple _checked_maps(x_hat, gain_map, bias_map):
    cdef np.ndarray x = _float_array(x_hat, "x_hat")
    cdef list maps = []
    for name, given in (("gain_map", gain_map), ("bias_map", bias_map)):
        array = _float_array(given, name)
        _checks.same_dtype("x_hat", x, **{name: array})
        _checks.shape(array, name, (<object> x).shape)
        maps.append(array)
    return x, *maps


def spade_modulate(x_hat, gain_map, bias_map, *, out=None):
    """Scale and shift every entry by maps: ``x_hat (1 + gain_map) + bias_map``.

    Parameters
    ----------
    x_hat, gain_map, bias_map : arrays of one shape
        Normalized features and the maps.
    out : array, optional
        Takes the result; may be one of the arguments or overlap them.

    Returns
    -------
    array, shape and dtype of ``x_hat``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.spade_modulate`; also if ``out`` does not fit.

    References
    ----------
    Park et al. (2019), arXiv 1903.07291, equation 1.

    Examples
    --------
    >>> spade_modulate(np.array([-1.0, 1.0]), np.array([0.5, -0.5]), np.array([1.0, 2.0]))
    array([-0.5,  2.5])
    """
    x, gain, bias = _checked_maps(x_hat, gain_map, bias_map)
    cdef _Rows rows = _Rows(x, 1 if x.size else 0, 1)
    cdef np.ndarray y
    if out is None:
        return rows.modulated(gain, bias, _fresh(x), False)
    _check_out(out, x)
    y = <np.ndarray> out
    if np.PyArray_ISCARRAY(y) and all(_identical(array, y) or _apart(array, y) for array in (rows.x, gain, bias)):
        return rows.modulated(gain, bias, y, False)
    y[...] = rows.modulated(gain, bias, _fresh(x), False)
    return out


def spade_modulate_vjp(x_hat, gain_map, bias_map):
    """Return :func:`spade_modulate` and its pullback ``dy -> (dx_hat, dgain_map, dbias_map)``.

    ``x_hat`` and ``gain_map`` must not change before the pullback has run; ``dbias_map`` is ``dy`` itself.

    Examples
    --------
    >>> y, pullback = spade_modulate_vjp(np.array([-1.0, 1.0]), np.array([0.5, -0.5]), np.zeros(2))
    >>> pullback(np.array([1.0, 2.0]))[:2]
    (array([1.5, 1. ]), array([-1.,  2.]))
    """
    x, gain, bias = _checked_maps(x_hat, gain_map, bias_map)
    cdef _Rows rows = _Rows(x, 1 if x.size else 0, 1)
    y = rows.modulated(gain, bias, _fresh(x), False)

    def pullback(dy):
        up = rows.cotangent(dy)
        return *rows.back(gain, up), numpy.asarray(dy, dtype=x.dtype)

    return y, pullback


def spade(x, condition, hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias, *, norm="group",
          groups=32, activation="silu", eps=1e-5, resize=None):
    """Normalize features and put scale and shift from a semantic map at every pixel.

    Parameters
    ----------
    x : array (N, C, H, W)
        Features.
    condition : array (N, S, H, W)
        Semantic features or one-hot labels; another height and width with ``resize``.
    hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias
        Of three convolutions, which are the reference's.
    norm : ``"group"``, ``"batch"`` or ``"instance"``
        What is normalized over.
    groups : int >= 1
    activation : ``"silu"`` or ``"relu"``
    eps : float > 0
    resize : ``None`` or ``"nearest"``

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.spade`.

    Notes
    -----
    Statistics, scale and shift are one sweep (with ``"batch"`` two: a channel's statistics are known after its last
    example), so that the normalized features never exist in memory; the pullback makes them again from ``x`` and two
    numbers a group.

    References
    ----------
    Park, Liu, Wang, Zhu (2019), arXiv 1903.07291.

    Examples
    --------
    >>> from refnorm.norms import init_spade
    >>> params = init_spade(4, 1, 8, np.random.default_rng(0))
    >>> spade(np.ones((1, 4, 5, 5)), np.ones((1, 1, 5, 5)), *params, groups=2).shape
    (1, 4, 5, 5)
    """
    return spade_vjp(x, condition, hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias, norm=norm,
                     groups=groups, activation=activation, eps=eps, resize=resize)[0]


def spade_vjp(x, condition, hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias, *, norm="group",
              groups=32, activation="silu", eps=1e-5, resize=None):
    """Return :func:`spade` and its pullback.

    The pullback is ``dy -> (dx, dcondition, dhidden_weight, dhidden_bias, dgain_weight, dgain_bias, dbias_weight,
    dbias_bias)``.

    Examples
    --------
    >>> from refnorm.norms import init_spade
    >>> params = init_spade(4, 1, 8, np.random.default_rng(0))
    >>> y, pullback = spade_vjp(np.ones((1, 4, 5, 5)), np.ones((1, 1, 5, 5)), *params, groups=2)
    >>> pullback(y)[7].shape
    (4,)
    """
    params = (hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias)
    cdef object features = _float_array(x, "x")
    if features.ndim != 4 or features.size == 0:
        return _reference.spade_vjp(features, condition, *params, norm=norm, groups=groups, activation=activation, eps=eps,
                                    resize=resize)
    condition = _checks.float_array(condition, "condition", ndim=4)
    _checks.same_dtype("x", features, condition=condition)
    _checks.one_of(norm, "norm", ("group", "batch", "instance"))
    _checks.one_of(activation, "activation", ("silu", "relu"))
    _checks.one_of(resize, "resize", (None, "nearest"))
    _checks.shape(gain_weight, "gain_weight", (features.shape[1], *numpy.shape(gain_weight)[1:]))
    _checks.shape(bias_weight, "bias_weight", (features.shape[1], *numpy.shape(bias_weight)[1:]))
    count = features.shape[1]
    if norm == "group":
        count = _checks.whole(groups, "groups", low=1)
        if features.shape[1] % count:
            _checks.fail("groups", f"a divisor of the {features.shape[1]} channels", groups)
    cdef _Rows rows = _Rows(features, len(features) * count, _positive(eps))
    if resize is None:
        _checks.shape(condition, "condition", (len(features), condition.shape[1], *features.shape[2:]))
    resized, back_resize = _resize_nearest(condition, features.shape[2:])
    raw, back_hidden = _same_conv(resized, hidden_weight, hidden_bias, "hidden_weight")
    hidden, back_act = (_silu_vjp if activation == "silu" else relu_vjp)(raw)
    gain_map, back_gain = _same_conv(hidden, gain_weight, gain_bias, "gain_weight")
    bias_map, back_bias = _same_conv(hidden, bias_weight, bias_bias, "bias_weight")
    for name, given in (("gain_map", gain_map), ("bias_map", bias_map)):
        _checks.same_dtype("x_hat", features, **{name: given})
        _checks.shape(given, name, features.shape)
    if norm == "batch":
        rows.take_batch_statistics()
    y = rows.modulated(gain_map, bias_map, _fresh(features), norm != "batch")

    def pullback(dy):
        up = rows.cotangent(dy)
        dx_hat, dgain_map = rows.back(gain_map, up)
        # Both heads read the same hidden features, whose cotangent is the sum of what the two owe.
        from_gain, *dgain = back_gain(dgain_map)
        from_bias, *dbias = back_bias(up)
        dresized, *dhidden = back_hidden(back_act(from_gain + from_bias)[0])
        return rows.back_norm(dx_hat), back_resize(dresized), *dhidden, *dgain, *dbias

    return y, pullback
