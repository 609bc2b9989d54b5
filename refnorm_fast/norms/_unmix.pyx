"""Normalization by a mixture of components (UnMix-TNS): checks and layout; the arithmetic is in
_kernels/channel_norm.c."""

import numpy

cimport numpy as np

from refnorm import norms as _reference
from refnorm.norms import UnMixState
from refnorm.norms._unmix_test_time_norm import _assignments, _checked

np.import_array()

include "../_kernels/rows.pxi"
include "_planes.pxi"


cdef class _Mixture:
    """The components as blended with every example, and what the pullback needs of them."""

    cdef _Planes planes
    cdef rn_unmix step
    cdef np.ndarray gain, means, variances, share, saved, lines

    def __cinit__(self, np.ndarray x, gain, means, variances, temperature, eps, between):
        self.planes = _Planes(x)
        self.gain, self.means, self.variances = _wide(gain), _wide(means), _wide(variances)
        self.share = _wide(_assignments(self.planes.own_mean(), means, temperature))
        cdef size_t planes = self.planes.shape.channels
        self.saved = numpy.empty(2 * planes)
        cdef double *saved = _doubles(self.saved)
        self.step = rn_unmix(
            examples=self.planes.examples, channels=self.planes.channels, components=len(means), between=between,
            places=self.planes.places, eps=eps, own=self.planes.own(), means=_doubles(self.means),
            variances=_doubles(self.variances), share=_doubles(self.share), gain=_doubles(self.gain), mean=saved,
            inverse=saved + planes)

    cdef value(self, bias, double rate, state):
        """y, and the state after."""
        cdef np.ndarray shift = _wide(bias)
        cdef np.ndarray moved = numpy.empty((2, *(<object> self.means).shape))
        self.lines = self.planes.lines()
        cdef rn_channel_line *line = <rn_channel_line *> np.PyArray_DATA(self.lines)
        cdef double *level = _doubles(shift)
        cdef double *after = _doubles(moved)
        with nogil:
            rn_channel_norm().unmix_step(&self.step, level, line)
            rn_channel_norm().unmix_move(&self.step, rate, after, after + self.step.components * self.step.channels)
        means, variances = moved
        return self.planes.write(self.lines, None), UnMixState(
            means.astype(state.means.dtype), variances.astype(state.variances.dtype))

    cdef tuple pull(self, dy):
        cdef np.ndarray up = self.planes.cotangent(dy)
        cdef np.ndarray sums = self.planes.sums(up, self.lines)
        cdef np.ndarray lines = self.planes.lines()
        cdef np.ndarray found = numpy.empty((2, self.step.channels))
        cdef double *total = _doubles(found)
        cdef double *of_planes = _doubles(sums)
        cdef rn_channel_line *line = <rn_channel_line *> np.PyArray_DATA(lines)
        with nogil:
            rn_channel_norm().unmix_pull(&self.step, of_planes, line, total, total + self.step.channels)
        dgain, dbias = (one.astype((<object> self.planes.x).dtype) for one in <object> found)
        return self.planes.combine(up, lines), dgain, dbias


def unmix_norm(x, gain, bias, state, *, rate, temperature=0.07, eps=1e-5, between=False):
    """Normalize each test example by the mixture of the components, one of which it has pulled to itself.

    Parameters
    ----------
    x : array (B, C, H, W), or with other axes of places
        Test batch; with fewer than 32 places the reference does the work.
    gain, bias : arrays (C,)
    state : UnMixState
        Components before this batch.
    rate : float in [0, 1]
        How far the batch moves the components.
    temperature : float > 0
    eps : float > 0
        Added to the variance.
    between : bool
        Count the distance of means when a component is blended with an example.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : UnMixState

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.norms.unmix_norm`.

    Notes
    -----
    One sweep for the moments of every channel of every example and one for the output; what is blended in between is
    as small as the components.

    References
    ----------
    Tomar et al. (2024), arXiv 2401.08328, the section on UnMix-TNS.

    Examples
    --------
    >>> from refnorm.norms import UnMixState
    >>> state = UnMixState(np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]]))
    >>> y, after = unmix_norm(np.array([[[1.0, 3.0]]]), np.ones(1), np.zeros(1), state, rate=0.1, eps=1e-12)
    >>> y.round(4), after.means.ravel().round(3)
    (array([[[0.2887, 1.4434]]]), array([ 1.1, -1. ]))
    """
    return unmix_norm_vjp(x, gain, bias, state, rate=rate, temperature=temperature, eps=eps, between=between)[0]


def unmix_norm_vjp(x, gain, bias, state, *, rate, temperature=0.07, eps=1e-5, between=False):
    """Return :func:`unmix_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Assignments and components are constants in the backward pass. ``x`` must not change before the pullback has run.

    Examples
    --------
    >>> from refnorm.norms import UnMixState
    >>> state = UnMixState(np.array([[1.0], [-1.0]]), np.array([[0.5], [0.5]]))
    >>> (y, after), pullback = unmix_norm_vjp(np.ones((1, 1, 40)), np.ones(1), np.zeros(1), state, rate=0.1)
    >>> pullback(np.ones((1, 1, 40)))[2]
    array([40.])
    """
    cdef _Mixture c
    cdef object array
    options = {"rate": rate, "temperature": temperature, "eps": eps, "between": between}
    array = _float_array(x, "x")
    if array.ndim < 3 or array.size == 0 or not _swept(array):
        return _reference.unmix_norm_vjp(array, gain, bias, state, **options)
    for name, given in (("gain", gain), ("bias", bias)):
        _checks.same_dtype("x", array, **{name: _checks.float_array(given, name)})
        _checks.shape(given, name, array.shape[1:2])
    means, variances = _checked(state, array)
    _checks.in_range(rate, "rate", 0, 1)
    _checks.positive(temperature, "temperature")
    _checks.positive(eps, "eps")
    c = _Mixture(array, gain, means, variances, temperature, eps, between)
    return c.value(bias, rate, state), lambda dy: c.pull(dy)
