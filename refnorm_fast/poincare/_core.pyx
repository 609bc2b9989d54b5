"""The Poincaré ball: checks and layout; the arithmetic is in _kernels/poincare.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

include "points.pxi"

cdef _apply(Kind kind, tuple names, x, y, curvature, axis, bint check, double margin, out, fallback):
    """Run a kernel; whatever is unusual or wrong goes to ``fallback``, the reference, which raises or computes it."""
    cdef np.ndarray a = _float_array(x, names[0])
    cdef np.ndarray b = None
    cdef np.ndarray z
    cdef double c = _curvature(curvature)
    cdef size_t rows, length, x_stride, y_stride = 0
    cdef int ndim = np.PyArray_NDIM(a)
    if y is not None:
        b = _float_array(y, names[1])
    if (c == 0 or ndim == 0 or type(axis) is not int or not -ndim <= axis < ndim or np.PyArray_DIM(a, axis % ndim) == 0
            or (b is not None and (np.PyArray_TYPE(a) != np.PyArray_TYPE(b) or not _same_shape(a, b)))):
        return _store(fallback(), out)
    shape = (<object> a).shape
    last = axis % ndim == ndim - 1
    if not last:
        a = _in_order(numpy.moveaxis(a, axis, -1))
        b = None if b is None else _in_order(numpy.moveaxis(b, axis, -1))
    a = _rows(a, &rows, &length, &x_stride)
    if b is not None:
        b = _rows(b, &rows, &length, &y_stride)
    direct = False
    if out is not None:
        if kind >= DIST:
            _check_scalars(out, a, shape, axis % ndim)
        else:
            _check_out(out, _float_array(x, names[0]))
        direct = (last and out.flags.c_contiguous and out.flags.aligned
                  and (_identical(a, out) or _apart(a, out)) and (b is None or _identical(b, out) or _apart(b, out)))
    if direct:
        z = out
    elif kind >= DIST:
        z = numpy.empty((<object> a).shape[: ndim - 1], a.dtype)
    else:
        z = _fresh(a)
    # In place, an argument is gone when a point turns out to lie outside; so look first.
    if direct and check and kind < DIST and kind != EXP0 and kind != PROJECT and (_identical(a, out) or (b is not None and _identical(b, out))):
        if _outside(a, c) or (b is not None and kind != EXPMAP and _outside(b, c)):
            return _store(fallback(), out)
    if rows and _run(kind, a, b, z, None, None, rows, length, x_stride, y_stride, c, margin) and check:
        return _store(fallback(), out)
    if direct:
        return out
    if kind >= DIST:
        result = z if ndim > 1 else z[()]
    else:
        result = z if last else numpy.moveaxis(z, -1, axis)
    return _store(result, out)


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


def dist(x, y, curvature, *, axis=-1, check=True, out=None):
    """Hyperbolic distance; see :func:`refnorm.poincare.dist`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.dist", out, x, y, curvature, axis=axis, check=check)
    return _apply(DIST, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.dist(x, y, curvature, axis=axis, check=check))


def dist_sq(x, y, curvature, *, axis=-1, check=True, out=None):
    """Squared hyperbolic distance; see :func:`refnorm.poincare.dist_sq`. ``out`` takes the result."""
    if _on_gpu(x):
        return _dispatch.call("poincare.dist_sq", out, x, y, curvature, axis=axis, check=check)
    return _apply(DIST_SQ, ("x", "y"), x, y, curvature, axis, check, -1.0, out,
                  lambda: reference.dist_sq(x, y, curvature, axis=axis, check=check))
