"""The Poincaré ball: checks and layout; the arithmetic is in _kernels/poincare.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

include "points.pxi"

cdef extern from "ball.h":
    ctypedef struct rn_ball_table:
        int (*pair_dist_f32)(int, const float *, size_t, const float *, size_t, float *, double *, size_t, double) nogil
        int (*pair_dist_f64)(int, const double *, size_t, const double *, size_t, double *, double *, size_t, double) nogil
    const rn_ball_table *rn_ball() nogil



def mobius_add(x, y, curvature, *, axis=-1, check=True, out=None):
    """Add points of the Poincaré ball; see :func:`refnorm.poincare.mobius_add`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.mobius_add", out, x, y, curvature, axis=axis, check=check)
    return _apply(ADD, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.mobius_add(x, y, curvature, axis=axis, check=check))


def exp0(v, curvature, *, axis=-1, project=True, out=None):
    """Exponential map at the origin; see :func:`refnorm.poincare.exp0`. ``out`` takes the result."""
    if _on_gpu(v):
        return _dispatch.call("poincare.exp0", out, v, curvature, axis=axis, project=project)
    return _apply(EXP0, ("v",), v, None, curvature, axis, True, _margin(_float_array(v, "v")) if project else -1.0, out,
                  lambda: reference.exp0(v, curvature, axis=axis, project=project))


def log0(y, curvature, *, axis=-1, check=True, out=None):
    """Logarithmic map at the origin; see :func:`refnorm.poincare.log0`. ``out`` takes the result."""
    if _on_gpu(y):
        return _dispatch.call("poincare.log0", out, y, curvature, axis=axis, check=check)
    return _apply(LOG0, ("y",), y, None, curvature, axis, check, -1.0, out,
                  lambda: reference.log0(y, curvature, axis=axis, check=check))


def project_ball(x, curvature, *, axis=-1, eps=None, out=None):
    """Projection onto a slightly smaller ball; see :func:`refnorm.poincare.project_ball`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.project_ball", out, x, curvature, axis=axis, eps=eps)
    if eps is None:
        eps = _margin(_float_array(x, "x"))
    _checks.in_range(eps, "eps", 0.0, 1.0, closed="left")
    return _apply(PROJECT, ("x",), x, None, curvature, axis, True, eps, out,
                  lambda: reference.project_ball(x, curvature, axis=axis, eps=eps))


def expmap(x, v, curvature, *, axis=-1, check=True, project=True, out=None):
    """Exponential map at a point; see :func:`refnorm.poincare.expmap`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.expmap", out, x, v, curvature, axis=axis, check=check, project=project)
    return _apply(EXPMAP, ("x", "v"), x, v, curvature, axis, check, _margin(_float_array(x, "x")) if project else -1.0, out,
                  lambda: reference.expmap(x, v, curvature, axis=axis, check=check, project=project))


def logmap(x, y, curvature, *, axis=-1, check=True, out=None):
    """Logarithmic map at a point; see :func:`refnorm.poincare.logmap`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.logmap", out, x, y, curvature, axis=axis, check=check)
    return _apply(LOGMAP, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.logmap(x, y, curvature, axis=axis, check=check))


cdef bint _all_pairs(x, y, curvature, axis):
    """Whether the arguments are views (n, m, d) of n and of m points, each repeated for all of the other."""
    return (type(x) is numpy.ndarray and type(y) is numpy.ndarray and x.ndim == 3 and x.shape == y.shape and x.dtype == y.dtype
            and x.dtype.type in (numpy.float32, numpy.float64) and axis in (-1, 2) and x.size > 0 and _curvature(curvature) != 0
            and x.strides[1] == 0 and y.strides[0] == 0 and x.shape[0] > 1 and x.shape[1] > 1)


cdef _pair_distances(Kind kind, x, y, curvature, bint check, out, fallback):
    """All distances between points, from the points once, not from their repetitions."""
    cdef np.ndarray a = _in_order(_float_array(x[:, 0], "x")), b = _in_order(_float_array(y[0], "y"))
    cdef np.ndarray z, room
    cdef size_t n = np.PyArray_DIM(a, 0), m = np.PyArray_DIM(b, 0), length = np.PyArray_DIM(a, 1)
    cdef double c = _curvature(curvature)
    cdef bint single = np.PyArray_TYPE(a) == np.NPY_FLOAT
    cdef int outside
    if out is not None:
        _check_out(out, numpy.broadcast_to(numpy.empty(1, a.dtype), x.shape[:2]))
    direct = (out is not None and out.flags.c_contiguous and out.flags.aligned and _apart(a, out) and _apart(b, out))
    z = out if direct else numpy.empty((n, m), a.dtype)
    room = numpy.empty(n)
    cdef const void *of_x = np.PyArray_DATA(a)
    cdef const void *of_y = np.PyArray_DATA(b)
    cdef void *to = np.PyArray_DATA(z)
    cdef double *gaps = <double *> np.PyArray_DATA(room)
    with nogil:
        if single:
            outside = rn_ball().pair_dist_f32(kind - DIST, <const float *> of_x, n, <const float *> of_y, m, <float *> to, gaps, length, c)
        else:
            outside = rn_ball().pair_dist_f64(kind - DIST, <const double *> of_x, n, <const double *> of_y, m, <double *> to, gaps, length, c)
    if outside < 0:
        raise MemoryError
    if outside and check:
        return _store(fallback(), out)
    return out if direct else _store(z, out)


def dist(x, y, curvature, *, axis=-1, check=True, out=None):
    """Hyperbolic distance; see :func:`refnorm.poincare.dist`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.dist", out, x, y, curvature, axis=axis, check=check)
    def fallback():
        return reference.dist(x, y, curvature, axis=axis, check=check)

    if _all_pairs(x, y, curvature, axis):
        return _pair_distances(DIST, x, y, curvature, check, out, fallback)
    return _apply(DIST, ("x", "y"), x, y, curvature, axis, check, -1.0, out, fallback)


def dist_sq(x, y, curvature, *, axis=-1, check=True, out=None):
    """Squared hyperbolic distance; see :func:`refnorm.poincare.dist_sq`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.dist_sq", out, x, y, curvature, axis=axis, check=check)
    def fallback():
        return reference.dist_sq(x, y, curvature, axis=axis, check=check)

    if _all_pairs(x, y, curvature, axis):
        return _pair_distances(DIST_SQ, x, y, curvature, check, out, fallback)
    return _apply(DIST_SQ, ("x", "y"), x, y, curvature, axis, check, -1.0, out, fallback)
