"""Region norm: checks and layout; the arithmetic is in _kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm import norms as _reference
from refnorm.norms import resize_mask_nearest
from refnorm.norms._region_norm import _binary

np.import_array()

include "../_kernels/rows.pxi"
include "_arguments.pxi"
include "_channel_norm.pxi"


cdef class _Regions:
    """Checked arguments, with the mask as an array of ones and zeros, and the statistics that the pullback needs."""

    cdef np.ndarray x, mask, gain, bias, counts, eps, found
    cdef rn_channel_shape shape
    cdef bint single

    def __cinit__(self, np.ndarray x, inside, stats, eps, eps_mode, gain=None, bias=None):
        _checks.one_of(stats, "stats", ("batch", "instance"))
        _checks.one_of(eps_mode, "eps_mode", ("scaled", "plain"))
        _positive(eps)
        dtype = (<object> x).dtype
        examples = (<object> x).shape[0]
        instance = stats == "instance"
        self.x, self.single = _in_order(x), np.PyArray_TYPE(x) == np.NPY_FLOAT
        self.mask = numpy.array(inside, dtype=dtype, order="C")
        self.gain, self.bias = gain, bias
        size = (<object> x).shape[2] * (<object> x).shape[3]
        self.shape = rn_channel_shape(
            examples, (<object> x).shape[1], size, examples if instance else 1, 1 if instance else examples)
        ones = inside.reshape(self.shape.ghosts, -1).sum(axis=1)
        pixels = size * (1 if instance else examples)
        self.counts = numpy.stack([ones, pixels - ones], axis=1).astype(numpy.float64)
        scaled = eps * pixels / numpy.maximum(self.counts, 1) if eps_mode == "scaled" else eps
        self.eps = numpy.array(numpy.broadcast_to(scaled, (self.shape.ghosts, 2)), dtype=numpy.float64, order="C")
        self.found = numpy.empty((self.shape.ghosts, self.shape.channels, 2, 5))

    cdef value(self, out):
        cdef np.ndarray y
        if out is None:
            y = _fresh(self.x)
        else:
            _check_out(out, self.x)
            y = <np.ndarray> out
            if not np.PyArray_ISCARRAY(y) or not (_identical(self.x, y) or _apart(self.x, y)):
                y[...] = self.value(None)
                return y
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *mask = np.PyArray_DATA(self.mask)
        cdef void *gain = _data(self.gain)
        cdef void *bias = _data(self.bias)
        cdef void *to = np.PyArray_DATA(y)
        cdef const double *counts = <const double *> np.PyArray_DATA(self.counts)
        cdef const double *eps = <const double *> np.PyArray_DATA(self.eps)
        cdef rn_channel *found = <rn_channel *> np.PyArray_DATA(self.found)
        with nogil:
            if self.single:
                rn_channel_norm().region_f32(<const float *> x, <const float *> mask, <const float *> gain, <const float *> bias, <float *> to, self.shape, counts, eps, found)
            else:
                rn_channel_norm().region_f64(<const double *> x, <const double *> mask, <const double *> gain, <const double *> bias, <double *> to, self.shape, counts, eps, found)
        return y

    cdef tuple pull(self, dy):
        """dx, and sum(dy) and sum(dy x_hat) of every channel and region."""
        array = numpy.asarray(dy, dtype=(<object> self.x).dtype)
        _checks.shape(array, "dy", (<object> self.x).shape)
        cdef np.ndarray up = _in_order(array)
        cdef np.ndarray dx = _fresh(self.x)
        cdef np.ndarray sums = numpy.empty((self.shape.ghosts, self.shape.channels, 2, 2))
        cdef void *x = np.PyArray_DATA(self.x)
        cdef void *mask = np.PyArray_DATA(self.mask)
        cdef void *down = np.PyArray_DATA(up)
        cdef void *gain = _data(self.gain)
        cdef void *to = np.PyArray_DATA(dx)
        cdef const double *counts = <const double *> np.PyArray_DATA(self.counts)
        cdef const rn_channel *found = <const rn_channel *> np.PyArray_DATA(self.found)
        cdef double *total = <double *> np.PyArray_DATA(sums)
        with nogil:
            if self.single:
                rn_channel_norm().region_backward_f32(<const float *> x, <const float *> mask, <const float *> down, <const float *> gain, <float *> to, self.shape, counts, found, total)
            else:
                rn_channel_norm().region_backward_f64(<const double *> x, <const double *> mask, <const double *> down, <const double *> gain, <double *> to, self.shape, counts, found, total)
        along = (<object> sums)[..., 1] * (<object> self.found)[..., 4]
        return dx, (<object> sums)[..., 0].sum(axis=0), along.sum(axis=0)


cdef _Regions _normalized(x, mask, stats, eps, eps_mode):
    """Checked arguments, or None where there is nothing to do."""
    cdef np.ndarray array = _float_array(x, "x")
    if np.PyArray_NDIM(array) != 4:
        _checks.float_array(array, "x", ndim=4)
    shape = (<object> array).shape
    inside = _binary(mask, (shape[0], 1, *shape[2:]), binarize=False)
    return _Regions(array, inside, stats, eps, eps_mode) if np.PyArray_SIZE(array) else None


def region_normalize(x, mask, *, stats="batch", eps=1e-5, eps_mode="scaled", out=None):
    """Standardize the pixels inside and outside of a mask apart.

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    mask : array (N, 1, H, W) of zeros and ones, or booleans
        One region; the pixels outside are the other.
    stats : ``"batch"`` or ``"instance"``
        Whether a region's statistics are taken over all images, or for each image.
    eps : float > 0
        Added to variances.
    eps_mode : ``"scaled"`` or ``"plain"``
        Whether ``eps`` is divided by the region's share of the pixels.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.region_normalize`; also if ``out`` does not fit.

    Notes
    -----
    Three sweeps over a channel for both regions at once: the means, the squares about them, the output.

    References
    ----------
    Yu et al. (2019), arXiv 1911.10375, equations 1 to 4.

    Examples
    --------
    >>> x, mask = np.array([[[[1.0, 3.0, 10.0, 14.0]]]]), np.array([[[[1, 1, 0, 0]]]])
    >>> region_normalize(x, mask, eps=1e-12).round(6)
    array([[[[-1.,  1., -1.,  1.]]]])
    """
    cdef _Regions c = _normalized(x, mask, stats, eps, eps_mode)
    if c is not None:
        return c.value(out)
    y = _reference.region_normalize(x, mask, stats=stats, eps=eps, eps_mode=eps_mode)
    if out is None:
        return y
    _check_out(out, y)
    return out


def region_normalize_vjp(x, mask, *, stats="batch", eps=1e-5, eps_mode="scaled"):
    """Return :func:`region_normalize` and its pullback ``dy -> (dx,)``; the mask has no entry.

    ``x`` must not change before the pullback has run.

    Examples
    --------
    >>> y, pullback = region_normalize_vjp(np.array([[[[1.0, 3.0, 8.0]]]]), np.array([[[[1, 1, 0]]]]))
    >>> pullback(np.ones((1, 1, 1, 3)))[0].ravel()
    array([0., 0., 0.])
    """
    cdef _Regions c = _normalized(x, mask, stats, eps, eps_mode)
    if c is None:
        return _reference.region_normalize_vjp(x, mask, stats=stats, eps=eps, eps_mode=eps_mode)
    return c.value(None), lambda dy: c.pull(dy)[:1]


cdef _Regions _basic(x, mask, params, shared_bias, stats, eps, eps_mode, binarize):
    """Checked arguments, or None where there is nothing to do."""
    cdef np.ndarray array = _float_array(x, "x")
    if np.PyArray_NDIM(array) != 4:
        _checks.float_array(array, "x", ndim=4)
    shape = (<object> array).shape
    arrays = []
    for name, given in zip(("foreground_gain", "foreground_bias", "background_gain", "background_bias"), params):
        one = _float_array(given, name)
        _checks.same_dtype("x", array, **{name: one})
        _checks.shape(one, name, shape[1:2])
        arrays.append(one)
    inside = _binary(resize_mask_nearest(mask, shape[2:]), (shape[0], 1, *shape[2:]), binarize)
    if np.PyArray_SIZE(array) == 0:
        return None
    bias = (arrays[1] + arrays[3], arrays[1] + arrays[3]) if shared_bias else (arrays[1], arrays[3])
    return _Regions(array, inside, stats, eps, eps_mode, numpy.stack([arrays[0], arrays[2]]), numpy.stack(bias))


def region_norm_basic(x, mask, foreground_gain, foreground_bias, background_gain, background_bias, *, shared_bias=False,
                      stats="batch", eps=1e-5, eps_mode="scaled", binarize=False, out=None):
    """Standardize the regions of a given mask, each with a gain and a bias of its own (RN-B).

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    mask : array (N, 1, A, B) of zeros and ones, or booleans
        1 is the foreground; another height and width are brought to those of ``x`` by nearest neighbours.
    foreground_gain, foreground_bias, background_gain, background_bias : arrays (C,)
        A gain is added to 1.
    shared_bias : bool
        Add both biases at every pixel.
    stats, eps, eps_mode
        As in :func:`region_normalize`.
    binarize : bool
        Take values of at least 1/2 as foreground, instead of refusing values other than 0 and 1.
    out : array, optional
        Takes the result; may be ``x`` itself or overlap it.

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.region_norm_basic`; also if ``out`` does not fit.

    References
    ----------
    Yu et al. (2019), arXiv 1911.10375, section 3.2.

    Examples
    --------
    >>> x, mask, zero = np.array([[[[1.0, 3.0, 10.0, 14.0]]]]), np.array([[[[1, 1, 0, 0]]]]), np.zeros(1)
    >>> region_norm_basic(x, mask, np.array([1.0]), zero, zero, np.array([5.0]), eps=1e-12).round(6)
    array([[[[-2.,  2.,  4.,  6.]]]])
    """
    params = (foreground_gain, foreground_bias, background_gain, background_bias)
    cdef _Regions c = _basic(x, mask, params, shared_bias, stats, eps, eps_mode, binarize)
    if c is not None:
        return c.value(out)
    y = _reference.region_norm_basic(
        x, mask, *params, shared_bias=shared_bias, stats=stats, eps=eps, eps_mode=eps_mode, binarize=binarize)
    if out is None:
        return y
    _check_out(out, y)
    return out


def region_norm_basic_vjp(x, mask, foreground_gain, foreground_bias, background_gain, background_bias, *, shared_bias=False,
                          stats="batch", eps=1e-5, eps_mode="scaled", binarize=False):
    """Return :func:`region_norm_basic` and its pullback.

    The pullback is ``dy -> (dx, dforeground_gain, dforeground_bias, dbackground_gain, dbackground_bias)``. ``x`` must not
    change before it has run.

    Examples
    --------
    >>> x, mask, zero = np.array([[[[1.0, 3.0, 10.0, 14.0]]]]), np.array([[[[1, 1, 0, 0]]]]), np.zeros(1)
    >>> y, pullback = region_norm_basic_vjp(x, mask, zero, zero, zero, zero)
    >>> pullback(np.ones((1, 1, 1, 4)))[2]
    array([2.])
    """
    params = (foreground_gain, foreground_bias, background_gain, background_bias)
    cdef _Regions c = _basic(x, mask, params, shared_bias, stats, eps, eps_mode, binarize)
    if c is None:
        return _reference.region_norm_basic_vjp(
            x, mask, *params, shared_bias=shared_bias, stats=stats, eps=eps, eps_mode=eps_mode, binarize=binarize)

    def pullback(dy):
        dx, total, along = c.pull(dy)
        if shared_bias:
            total = numpy.broadcast_to(total.sum(axis=1, keepdims=True), total.shape)
        gains, biases = along.astype(dx.dtype), total.astype(dx.dtype)
        return dx, gains[:, 0].copy(), biases[:, 0].copy(), gains[:, 1].copy(), biases[:, 1].copy()

    return c.value(None), pullback
