"""Operations on points of the Poincaré ball and their pullbacks: checks and layout; the arithmetic is in _kernels/ball.c.

A pullback keeps its own copies of the points, which the kernel of the forward pass writes along the way.
"""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

include "points.pxi"

from refnorm_fast.poincare import _core as core

cdef extern from "ball.h":
    ctypedef struct rn_ball_table:
        void (*ray_back_f32)(int, const float *, const float *, float *, const double *, size_t, double *, double *, size_t, size_t, double, double) nogil
        void (*ray_back_f64)(int, const double *, const double *, double *, const double *, size_t, double *, double *, size_t, size_t, double, double) nogil
        void (*pair_back_f32)(int, const float *, const float *, const float *, float *, float *, double *, size_t, size_t, double, double) nogil
        void (*pair_back_f64)(int, const double *, const double *, const double *, double *, double *, double *, size_t, size_t, double, double) nogil
        void (*dist_back_f32)(int, const float *, const float *, const float *, float *, float *, double *, size_t, size_t, double) nogil
        void (*dist_back_f64)(int, const double *, const double *, const double *, double *, double *, double *, size_t, size_t, double) nogil
        int (*scale_f32)(const float *, const double *, size_t, float *, size_t, size_t, double) nogil
        int (*scale_f64)(const double *, const double *, size_t, double *, size_t, size_t, double) nogil
        int (*factor_f32)(const float *, size_t, float *, float *, size_t, size_t, double) nogil
        int (*factor_f64)(const double *, size_t, double *, double *, size_t, size_t, double) nogil
        void (*factor_back_f32)(const float *, const float *, float *, double *, size_t, size_t, double) nogil
        void (*factor_back_f64)(const double *, const double *, double *, double *, size_t, size_t, double) nogil
        int (*turn_f32)(int, const float *, const float *, const float *, float *, size_t, size_t, double) nogil
        int (*turn_f64)(int, const double *, const double *, const double *, double *, size_t, size_t, double) nogil
        void (*turn_back_f32)(int, const float *, const float *, const float *, const float *, float *, float *, float *, double *, size_t, size_t, double) nogil
        void (*turn_back_f64)(int, const double *, const double *, const double *, const double *, double *, double *, double *, double *, size_t, size_t, double) nogil
        int (*relu_f32)(const float *, float *, size_t, size_t, double, double) nogil
        int (*relu_f64)(const double *, double *, size_t, size_t, double, double) nogil
        void (*relu_back_f32)(const float *, const float *, float *, double *, size_t, size_t, double, double) nogil
        void (*relu_back_f64)(const double *, const double *, double *, double *, size_t, size_t, double, double) nogil
    const rn_ball_table *rn_ball() nogil

# The rest of Kind: a scaling as the maps along rays count it, the conformal factor, the two rotations, ReLU.
cdef enum More:
    RAY_SCALE = 3
    FACTOR = 8
    GYRATION = 9
    TRANSPORT = 10
    SCALE = 11
    RELU = 12


cdef class _Points:
    """The arguments of one call as rows, and the setting that they share."""

    cdef list rows_of, kept
    cdef size_t strides[3]
    cdef size_t rows, length
    cdef int axis, ndim
    cdef double c
    cdef bint last, single
    cdef object dtype, shape, scalar_shape, curvature_dtype

    cdef object vectors(self, np.ndarray rows):
        """Rows as the caller's layout has them."""
        return rows if self.last else numpy.moveaxis(rows, -1, self.axis)

    cdef object scalars(self, np.ndarray values):
        return values if self.ndim > 1 else values[()]

    cdef object curvature_of(self, np.ndarray terms):
        return numpy.asarray(terms.sum(), dtype=self.curvature_dtype)


cdef _Points _gather(tuple names, tuple given, curvature, axis, bint contiguous, bint keep):
    """The call's arguments, or None if the reference has to look at them. With `keep`, `kept` are arrays that nobody else
    writes: None stands for a copy that the kernel has yet to make."""
    cdef _Points p = _Points.__new__(_Points)
    cdef list arrays = [_float_array(x, name) for x, name in zip(given, names)]
    cdef np.ndarray first = arrays[0], rows
    cdef bint own
    cdef int i
    p.c = _curvature(curvature)
    p.ndim = np.PyArray_NDIM(first)
    if (p.c == 0 or p.ndim == 0 or type(axis) is not int or not -p.ndim <= axis < p.ndim
            or np.PyArray_DIM(first, axis % p.ndim) == 0):
        return None
    for other in arrays[1:]:
        if np.PyArray_TYPE(<np.ndarray> other) != np.PyArray_TYPE(first) or not _same_shape(first, <np.ndarray> other):
            return None
    p.axis = axis % p.ndim
    p.last = p.axis == p.ndim - 1
    p.dtype = first.dtype
    p.single = np.PyArray_TYPE(first) == np.NPY_FLOAT
    p.shape = (<object> first).shape
    p.scalar_shape = p.shape[: p.axis] + p.shape[p.axis + 1 :]
    p.curvature_dtype = curvature.dtype if isinstance(curvature, (numpy.ndarray, numpy.generic)) else p.dtype
    p.rows_of, p.kept = [], []
    for i in range(len(arrays)):
        own = True
        if not p.last:
            rows = numpy.array(numpy.moveaxis(arrays[i], p.axis, -1), order="C")
            _rows_of(rows, 1, &p.rows, &p.length, &p.strides[i])
        else:
            rows = _rows(arrays[i], &p.rows, &p.length, &p.strides[i])
            own = rows is not arrays[i]
            if contiguous and (not np.PyArray_IS_C_CONTIGUOUS(rows) or keep and not own):
                rows, own = numpy.array(rows, order="C"), True
        p.rows_of.append(rows)
        p.kept.append(rows if own else None)
    return p


cdef list _room_to_keep(_Points p):
    """Arrays for the copies that the kernel makes, in place of what is None in `kept`; returned are those alone."""
    cdef list room = [None if kept is not None else _fresh(rows) for kept, rows in zip(p.kept, p.rows_of)]
    p.kept = [kept if kept is not None else fresh for kept, fresh in zip(p.kept, room)]
    return room


cdef np.ndarray _scalars_like(_Points p):
    return numpy.empty(p.scalar_shape if p.last else (<object> p.rows_of[0]).shape[: p.ndim - 1], p.dtype)


cdef class _Pullback:
    """Cotangent of a result -> cotangents of the arguments; ``again(arrays, check)`` is the reference's function."""

    cdef _Points p
    cdef int kind
    cdef double margin
    cdef object again
    cdef np.ndarray factors
    cdef object factor_dtype

    def __call__(self, cotangent):
        cdef _Points p = self.p
        cdef bint scalar = self.kind == DIST or self.kind == DIST_SQ or self.kind == FACTOR
        given = numpy.asarray(cotangent)
        _checks.shape(given, "cotangent", p.scalar_shape if scalar else p.shape)
        if given.dtype != p.dtype:
            return self.again(tuple(p.vectors(kept) for kept in p.kept), False)[1](given)
        cdef np.ndarray g = numpy.array(given if scalar or p.last else numpy.moveaxis(given, p.axis, -1), order="C", copy=None)
        if not np.PyArray_ISBEHAVED_RO(g):
            g = g.copy()
        cdef list results = [_fresh(kept) for kept in p.kept]
        cdef np.ndarray terms = numpy.empty(p.rows)
        cdef np.ndarray of_factors = numpy.empty(p.rows if self.kind == SCALE else 0)
        if p.rows:
            self.run(g, results, terms, of_factors)
        vectors = [p.vectors(result) for result in results]
        dcurvature = p.curvature_of(terms)
        if self.kind == SCALE:
            dscale = of_factors.reshape(p.scalar_shape) if np.PyArray_NDIM(self.factors) else of_factors.sum()
            return numpy.asarray(dscale.astype(self.factor_dtype)), vectors[0], dcurvature
        return *vectors, dcurvature

    cdef run(self, np.ndarray g, list results, np.ndarray terms, np.ndarray of_factors):
        cdef _Points p = self.p
        cdef void *up = np.PyArray_DATA(g)
        cdef void *a = _data(p.kept[0])
        cdef void *da = _data(results[0])
        cdef void *b = NULL
        cdef void *db = NULL
        cdef void *d = NULL
        cdef void *dd = NULL
        cdef double *sums = <double *> np.PyArray_DATA(terms)
        cdef double *factor_sums = <double *> np.PyArray_DATA(of_factors)
        cdef const double *factors = NULL
        cdef size_t step = 0
        cdef int kind = self.kind
        cdef const rn_ball_table *table = rn_ball()
        if len(results) > 1:
            b, db = _data(p.kept[1]), _data(results[1])
        if len(results) > 2:
            d, dd = _data(p.kept[2]), _data(results[2])
        if kind == TRANSPORT:
            # From its second argument to its first, as the kernel counts.
            a, b, da, db = b, a, db, da
        if self.factors is not None:
            factors = <const double *> np.PyArray_DATA(self.factors)
            step = 1 if np.PyArray_NDIM(self.factors) else 0
            kind = RAY_SCALE
        with nogil:
            if kind <= RAY_SCALE and b == NULL:
                if p.single:
                    table.ray_back_f32(kind, <const float *> a, <const float *> up, <float *> da, factors, step, factor_sums, sums, p.rows, p.length, p.c, self.margin)
                else:
                    table.ray_back_f64(kind, <const double *> a, <const double *> up, <double *> da, factors, step, factor_sums, sums, p.rows, p.length, p.c, self.margin)
            elif kind <= EXPMAP:
                if p.single:
                    table.pair_back_f32(kind - ADD, <const float *> a, <const float *> b, <const float *> up, <float *> da, <float *> db, sums, p.rows, p.length, p.c, self.margin)
                else:
                    table.pair_back_f64(kind - ADD, <const double *> a, <const double *> b, <const double *> up, <double *> da, <double *> db, sums, p.rows, p.length, p.c, self.margin)
            elif kind <= DIST_SQ:
                if p.single:
                    table.dist_back_f32(kind - DIST, <const float *> a, <const float *> b, <const float *> up, <float *> da, <float *> db, sums, p.rows, p.length, p.c)
                else:
                    table.dist_back_f64(kind - DIST, <const double *> a, <const double *> b, <const double *> up, <double *> da, <double *> db, sums, p.rows, p.length, p.c)
            elif kind == FACTOR:
                if p.single:
                    table.factor_back_f32(<const float *> a, <const float *> up, <float *> da, sums, p.rows, p.length, p.c)
                else:
                    table.factor_back_f64(<const double *> a, <const double *> up, <double *> da, sums, p.rows, p.length, p.c)
            elif kind == RELU:
                if p.single:
                    table.relu_back_f32(<const float *> a, <const float *> up, <float *> da, sums, p.rows, p.length, p.c, self.margin)
                else:
                    table.relu_back_f64(<const double *> a, <const double *> up, <double *> da, sums, p.rows, p.length, p.c, self.margin)
            elif p.single:
                table.turn_back_f32(kind == TRANSPORT, <const float *> a, <const float *> b, <const float *> d, <const float *> up, <float *> da, <float *> db, <float *> dd, sums, p.rows, p.length, p.c)
            else:
                table.turn_back_f64(kind == TRANSPORT, <const double *> a, <const double *> b, <const double *> d, <const double *> up, <double *> da, <double *> db, <double *> dd, sums, p.rows, p.length, p.c)


cdef _Pullback _pullback(_Points p, int kind, double margin, again):
    cdef _Pullback pullback = _Pullback.__new__(_Pullback)
    pullback.p = p
    pullback.kind = kind
    pullback.margin = margin
    pullback.again = again
    return pullback


cdef _with_pullback(Kind kind, tuple names, tuple given, curvature, axis, bint check, double margin, again):
    """Result and pullback of a map that the kernels of poincare.h compute; what is wrong goes to the reference."""
    cdef _Points p = _gather(names, given, curvature, axis, False, True)
    cdef np.ndarray z
    if p is None:
        return again(given, check)
    cdef list room = _room_to_keep(p)
    z = _scalars_like(p) if kind >= DIST else _fresh(p.rows_of[0])
    second, keep = (p.rows_of[1], room[1]) if len(room) > 1 else (None, None)
    if p.rows and _run(kind, p.rows_of[0], second, z, room[0], keep, p.rows, p.length, p.strides[0],
                       p.strides[1] if len(room) > 1 else 0, p.c, margin) and check:
        return again(given, check)
    pullback = _pullback(p, kind, margin, again)
    p.rows_of = None
    return p.scalars(z) if kind >= DIST else p.vectors(z), pullback


def mobius_add_vjp(x, y, curvature, *, axis=-1, check=True):
    """Return the sum and its pullback ``dz -> (dx, dy, dcurvature)``; see :func:`refnorm.poincare.mobius_add_vjp`."""
    if _on_gpu(x):
        return _dispatch.call("poincare.mobius_add_vjp", None, x, y, curvature, axis=axis, check=check)
    return _with_pullback(ADD, ("x", "y"), (x, y), curvature, axis, check, -1.0, lambda points, checked:
                          reference.mobius_add_vjp(*points, curvature, axis=axis, check=checked))


def exp0_vjp(v, curvature, *, axis=-1, project=True):
    """Return the map and its pullback ``dy -> (dv, dcurvature)``; see :func:`refnorm.poincare.exp0_vjp`."""
    if _on_gpu(v):
        return _dispatch.call("poincare.exp0_vjp", None, v, curvature, axis=axis, project=project)
    return _with_pullback(EXP0, ("v",), (v,), curvature, axis, True, _margin(_float_array(v, "v")) if project else -1.0,
                          lambda points, checked: reference.exp0_vjp(*points, curvature, axis=axis, project=project))


def log0_vjp(y, curvature, *, axis=-1, check=True):
    """Return the map and its pullback ``dv -> (dy, dcurvature)``; see :func:`refnorm.poincare.log0_vjp`."""
    if _on_gpu(y):
        return _dispatch.call("poincare.log0_vjp", None, y, curvature, axis=axis, check=check)
    return _with_pullback(LOG0, ("y",), (y,), curvature, axis, check, -1.0, lambda points, checked:
                          reference.log0_vjp(*points, curvature, axis=axis, check=checked))


def project_ball_vjp(x, curvature, *, axis=-1, eps=None):
    """Return the projection and its pullback ``dy -> (dx, dcurvature)``; see :func:`refnorm.poincare.project_ball_vjp`."""
    if _on_gpu(x):
        return _dispatch.call("poincare.project_ball_vjp", None, x, curvature, axis=axis, eps=eps)
    margin = _margin(_float_array(x, "x")) if eps is None else eps
    _checks.in_range(margin, "eps", 0.0, 1.0, closed="left")
    return _with_pullback(PROJECT, ("x",), (x,), curvature, axis, True, margin, lambda points, checked:
                          reference.project_ball_vjp(*points, curvature, axis=axis, eps=eps))


def expmap_vjp(x, v, curvature, *, axis=-1, check=True, project=True):
    """Return the map and its pullback ``dy -> (dx, dv, dcurvature)``; see :func:`refnorm.poincare.expmap_vjp`."""
    return _with_pullback(EXPMAP, ("x", "v"), (x, v), curvature, axis, check,
                          _margin(_float_array(x, "x")) if project else -1.0, lambda points, checked:
                          reference.expmap_vjp(*points, curvature, axis=axis, check=checked, project=project))


def logmap_vjp(x, y, curvature, *, axis=-1, check=True):
    """Return the map and its pullback ``dv -> (dx, dy, dcurvature)``; see :func:`refnorm.poincare.logmap_vjp`."""
    return _with_pullback(LOGMAP, ("x", "y"), (x, y), curvature, axis, check, -1.0, lambda points, checked:
                          reference.logmap_vjp(*points, curvature, axis=axis, check=checked))


def dist_vjp(x, y, curvature, *, axis=-1, check=True):
    """Return distances and their pullback ``dd -> (dx, dy, dcurvature)``; see :func:`refnorm.poincare.dist_vjp`."""
    if _on_gpu(x):
        return _dispatch.call("poincare.dist_vjp", None, x, y, curvature, axis=axis, check=check)
    return _with_pullback(DIST, ("x", "y"), (x, y), curvature, axis, check, -1.0, lambda points, checked:
                          reference.dist_vjp(*points, curvature, axis=axis, check=checked))


def dist_sq_vjp(x, y, curvature, *, axis=-1, check=True):
    """Return squared distances and their pullback ``dd -> (dx, dy, dcurvature)``; see :func:`refnorm.poincare.dist_sq_vjp`."""
    if _on_gpu(x):
        return _dispatch.call("poincare.dist_sq_vjp", None, x, y, curvature, axis=axis, check=check)
    return _with_pullback(DIST_SQ, ("x", "y"), (x, y), curvature, axis, check, -1.0, lambda points, checked:
                          reference.dist_sq_vjp(*points, curvature, axis=axis, check=checked))


# ---- what has no kernel in poincare.h --------------------------------------------------------------------------------


cdef int _run_more(int kind, _Points p, np.ndarray z, kept, np.ndarray factors, double margin) except -1:
    cdef void *a = _data(p.rows_of[0])
    cdef void *b = _data(p.rows_of[1]) if len(p.rows_of) > 1 else NULL
    cdef void *d = _data(p.rows_of[2]) if len(p.rows_of) > 2 else NULL
    cdef void *to = np.PyArray_DATA(z)
    cdef void *keep = _data(kept)
    cdef const double *of_rows = NULL
    cdef size_t step = 0, stride = p.strides[0]
    cdef int outside
    cdef const rn_ball_table *table = rn_ball()
    if kind == TRANSPORT:
        a, b = b, a
    if factors is not None:
        of_rows = <const double *> np.PyArray_DATA(factors)
        step = 1 if np.PyArray_NDIM(factors) else 0
    with nogil:
        if kind == FACTOR:
            if p.single:
                outside = table.factor_f32(<const float *> a, stride, <float *> to, <float *> keep, p.rows, p.length, p.c)
            else:
                outside = table.factor_f64(<const double *> a, stride, <double *> to, <double *> keep, p.rows, p.length, p.c)
        elif kind == SCALE:
            if p.single:
                outside = table.scale_f32(<const float *> a, of_rows, step, <float *> to, p.rows, p.length, p.c)
            else:
                outside = table.scale_f64(<const double *> a, of_rows, step, <double *> to, p.rows, p.length, p.c)
        elif kind == RELU:
            if p.single:
                outside = table.relu_f32(<const float *> a, <float *> to, p.rows, p.length, p.c, margin)
            else:
                outside = table.relu_f64(<const double *> a, <double *> to, p.rows, p.length, p.c, margin)
        elif p.single:
            outside = table.turn_f32(kind == TRANSPORT, <const float *> a, <const float *> b, <const float *> d, <float *> to, p.rows, p.length, p.c)
        else:
            outside = table.turn_f64(kind == TRANSPORT, <const double *> a, <const double *> b, <const double *> d, <double *> to, p.rows, p.length, p.c)
    return outside


cdef bint _takes(out, _Points p):
    """Whether a kernel may write its vectors to `out`: nothing that it reads lies there."""
    if out is None or not p.last or not out.flags.c_contiguous or not out.flags.aligned:
        return False
    for rows in p.rows_of:
        if not _apart(rows, out):
            return False
    return True


cdef _forward(int kind, tuple names, tuple given, curvature, axis, bint check, np.ndarray factors, out, again, double margin=-1.0):
    cdef _Points p = _gather(names, given, curvature, axis, kind != FACTOR, False)
    cdef np.ndarray z
    if p is None:
        return _store(again(given, check)[0], out)
    if out is not None:
        if kind == FACTOR:
            _check_scalars(out, p.rows_of[0], p.shape, p.axis)
        else:
            _check_out(out, numpy.broadcast_to(numpy.empty(1, p.dtype), p.shape))
    if kind == FACTOR:
        z = _scalars_like(p)
    else:
        z = out if _takes(out, p) else _fresh(p.rows_of[0])
    if p.rows and _run_more(kind, p, z, None, factors, margin) and check:
        return _store(again(given, check)[0], out)
    if z is out:
        return out
    return _store(p.scalars(z) if kind == FACTOR else p.vectors(z), out)


cdef _forward_vjp(int kind, tuple names, tuple given, curvature, axis, bint check, np.ndarray factors, factor_dtype, again,
                  double margin=-1.0):
    cdef _Points p = _gather(names, given, curvature, axis, kind != FACTOR, True)
    cdef np.ndarray z
    cdef _Pullback pullback
    if p is None:
        return again(given, check)
    cdef list room = _room_to_keep(p)
    z = _scalars_like(p) if kind == FACTOR else _fresh(p.rows_of[0])
    if p.rows and _run_more(kind, p, z, room[0], factors, margin) and check:
        return again(given, check)
    pullback = _pullback(p, kind, margin, again)
    pullback.factors = factors
    pullback.factor_dtype = factor_dtype
    p.rows_of = None
    return p.scalars(z) if kind == FACTOR else p.vectors(z), pullback


def conformal_factor(x, curvature, *, axis=-1, check=True, out=None):
    """Hyperbolic length per Euclidean length; see :func:`refnorm.poincare.conformal_factor`. ``out`` takes the result."""
    return _forward(FACTOR, ("x",), (x,), curvature, axis, check, None, out, lambda points, checked:
                    reference.conformal_factor_vjp(*points, curvature, axis=axis, check=checked))


def conformal_factor_vjp(x, curvature, *, axis=-1, check=True):
    """Return the factor and its pullback ``dfactor -> (dx, dcurvature)``; see :func:`refnorm.poincare.conformal_factor_vjp`."""
    return _forward_vjp(FACTOR, ("x",), (x,), curvature, axis, check, None, None, lambda points, checked:
                        reference.conformal_factor_vjp(*points, curvature, axis=axis, check=checked))


def gyration(u, v, w, curvature, *, axis=-1, check=True, out=None):
    """Rotate vectors; see :func:`refnorm.poincare.gyration`. ``out`` takes the result."""
    return _forward(GYRATION, ("u", "v", "w"), (u, v, w), curvature, axis, check, None, out, lambda points, checked:
                    reference.gyration_vjp(*points, curvature, axis=axis, check=checked))


def gyration_vjp(u, v, w, curvature, *, axis=-1, check=True):
    """Return the vectors and their pullback ``dy -> (du, dv, dw, dcurvature)``; see :func:`refnorm.poincare.gyration_vjp`."""
    return _forward_vjp(GYRATION, ("u", "v", "w"), (u, v, w), curvature, axis, check, None, None, lambda points, checked:
                        reference.gyration_vjp(*points, curvature, axis=axis, check=checked))


def transport(x, y, v, curvature, *, axis=-1, check=True, out=None):
    """Parallel transport; see :func:`refnorm.poincare.transport`. ``out`` takes the result."""
    return _forward(TRANSPORT, ("x", "y", "v"), (x, y, v), curvature, axis, check, None, out, lambda points, checked:
                    reference.transport_vjp(*points, curvature, axis=axis, check=checked))


def transport_vjp(x, y, v, curvature, *, axis=-1, check=True):
    """Return the vectors and their pullback ``dw -> (dx, dy, dv, dcurvature)``; see :func:`refnorm.poincare.transport_vjp`."""
    return _forward_vjp(TRANSPORT, ("x", "y", "v"), (x, y, v), curvature, axis, check, None, None, lambda points, checked:
                        reference.transport_vjp(*points, curvature, axis=axis, check=checked))


cdef np.ndarray _factors(scale, x, axis):
    """The numbers that scale, in a row's order, or None if the reference has to look at them."""
    array = numpy.asarray(scale)
    cdef object points = _float_array(x, "x")
    if array.dtype.kind not in "fiu":
        return None
    if array.ndim:
        if type(axis) is not int or not -points.ndim <= axis < points.ndim or array.dtype != points.dtype:
            return None
        place = axis % points.ndim
        if array.shape != points.shape[:place] + points.shape[place + 1 :]:
            return None
    return numpy.array(array, dtype=numpy.float64, order="C")


def mobius_scalar_mul(scale, x, curvature, *, axis=-1, check=True, out=None):
    """Multiply points by numbers; see :func:`refnorm.poincare.mobius_scalar_mul`. ``out`` takes the result."""
    factors = _factors(scale, x, axis)
    if factors is None:
        return _store(reference.mobius_scalar_mul(scale, x, curvature, axis=axis, check=check), out)
    return _forward(SCALE, ("x",), (x,), curvature, axis, check, factors, out, lambda points, checked:
                    reference.mobius_scalar_mul_vjp(scale, *points, curvature, axis=axis, check=checked))


def mobius_scalar_mul_vjp(scale, x, curvature, *, axis=-1, check=True):
    """Return the multiples and their pullback ``dy -> (dscale, dx, dcurvature)``;
    see :func:`refnorm.poincare.mobius_scalar_mul_vjp`."""
    factors = _factors(scale, x, axis)
    if factors is None:
        return reference.mobius_scalar_mul_vjp(scale, x, curvature, axis=axis, check=check)
    own = numpy.array(scale) if isinstance(scale, (numpy.ndarray, numpy.generic)) else scale
    dtype = own.dtype if isinstance(own, numpy.ndarray) and own.dtype.kind == "f" else _float_array(x, "x").dtype
    return _forward_vjp(SCALE, ("x",), (x,), curvature, axis, check, factors, dtype, lambda points, checked:
                        reference.mobius_scalar_mul_vjp(own, *points, curvature, axis=axis, check=checked))


def relu(x, curvature, *, axis=-1, check=True, project=True, out=None):
    """ReLU of the points' logarithms; see :func:`refnorm.poincare.relu`. ``out`` takes the result."""
    return _forward(RELU, ("x",), (x,), curvature, axis, check, None, out, lambda points, checked:
                    reference.relu_vjp(*points, curvature, axis=axis, check=checked, project=project),
                    _margin(_float_array(x, "x")) if project else -1.0)


def relu_vjp(x, curvature, *, axis=-1, check=True, project=True):
    """Return the points and their pullback ``dy -> (dx, dcurvature)``; see :func:`refnorm.poincare.relu_vjp`."""
    return _forward_vjp(RELU, ("x",), (x,), curvature, axis, check, None, None, lambda points, checked:
                        reference.relu_vjp(*points, curvature, axis=axis, check=checked, project=project),
                        _margin(_float_array(x, "x")) if project else -1.0)


ORDERS = reference._residual.ORDERS


def residual_add(f, skip, curvature, *, order="fr", axis=-1, check=True, out=None):
    """Möbius sum of a branch and its input; see :func:`refnorm.poincare.residual_add`. ``out`` takes the result."""
    _checks.one_of(order, "order", ORDERS)
    names, points = ("f", "skip"), (_float_array(f, "f"), _float_array(skip, "skip"))
    if order == "rf":
        names, points = names[::-1], points[::-1]
    return _apply(ADD, names, points[0], points[1], curvature, axis, check, -1.0, out,
                  lambda: reference.residual_add(f, skip, curvature, order=order, axis=axis, check=check))


def residual_add_vjp(f, skip, curvature, *, order="fr", axis=-1, check=True):
    """Return the sum and its pullback ``dy -> (df, dskip, dcurvature)``; see :func:`refnorm.poincare.residual_add_vjp`."""
    _checks.one_of(order, "order", ORDERS)
    names, points = ("f", "skip"), (_float_array(f, "f"), _float_array(skip, "skip"))
    if order == "fr":
        return _with_pullback(ADD, names, points, curvature, axis, check, -1.0, lambda pair, checked:
                              reference.residual_add_vjp(*pair, curvature, axis=axis, check=checked))

    def swapped(pullback):
        def pull(dy):
            first, second, dcurvature = pullback(dy)
            return second, first, dcurvature

        return pull

    def again(pair, checked):
        y, pullback = reference.residual_add_vjp(*pair[::-1], curvature, order="rf", axis=axis, check=checked)
        return y, swapped(pullback)

    y, pullback = _with_pullback(ADD, names[::-1], points[::-1], curvature, axis, check, -1.0, again)
    return y, swapped(pullback)


cdef _tangents_and_matrix(matrix, x, curvature, axis, bint check):
    """What a product through the tangent space needs, or None if the reference has to look at the call: vectors on the last
    axis and the matrix in the precision of the product, and the curvature. Short float32 vectors are widened."""
    cdef object points = _float_array(x, "x"), weights = _float_array(matrix, "matrix")
    if (_curvature(curvature) == 0 or points.ndim == 0 or type(axis) is not int or not -points.ndim <= axis < points.ndim
            or weights.ndim != 2 or weights.dtype != points.dtype or weights.size == 0
            or weights.shape[1] != points.shape[axis % points.ndim]):
        return None
    rows = numpy.moveaxis(points, axis, -1)
    if check and points.size and _outside(_in_order(rows), _curvature(curvature)):
        return None
    work = numpy.float64 if weights.shape[1] < SHORT else points.dtype
    return rows.astype(work, copy=False), weights.astype(work), numpy.float64(curvature)


cdef _points_of_product(np.ndarray y, x, double curvature, axis):
    """Points on the last axis in the dtype and with the axis of the call, inside the ball after rounding."""
    cdef object dtype = _float_array(x, "x").dtype
    cdef object rows = y if y.dtype == dtype else _rounded(y, curvature)
    return numpy.moveaxis(rows, -1, axis)


def mobius_matvec(matrix, x, curvature, *, axis=-1, check=True, project=False, out=None):
    """Linear map through the tangent space; see :func:`refnorm.poincare.mobius_matvec`. ``out`` takes the result.

    Notes
    -----
    float32 vectors of 32 entries and more are multiplied in float32, their logarithms and the products rounded to it.
    """
    given = _tangents_and_matrix(matrix, x, curvature, axis, check)
    if given is None:
        return _store(reference.mobius_matvec(matrix, x, curvature, axis=axis, check=check, project=project), out)
    points, weights, c = given
    y = _in_order(core.log0(points, c, check=False) @ weights.T)
    core.exp0(y, c, project=False, out=y)
    if project:
        core.project_ball(y, c, eps=_margin(_float_array(x, "x")), out=y)
    return _store(_points_of_product(y, x, c, axis), out)


def mobius_matvec_vjp(matrix, x, curvature, *, axis=-1, check=True, project=False):
    """Return the points and their pullback ``dy -> (dmatrix, dx, dcurvature)``;
    see :func:`refnorm.poincare.mobius_matvec_vjp`."""
    given = _tangents_and_matrix(matrix, x, curvature, axis, check)
    if given is None:
        return reference.mobius_matvec_vjp(matrix, x, curvature, axis=axis, check=check, project=project)
    points, weights, c = given
    dtype = _float_array(x, "x").dtype
    curvature_dtype = curvature.dtype if isinstance(curvature, (numpy.ndarray, numpy.generic)) else dtype
    tangents, back_log = log0_vjp(points, c, check=False)
    y, back_exp = exp0_vjp(tangents @ weights.T, c, project=False)
    back_clip = None
    if project:
        y, back_clip = project_ball_vjp(y, c, eps=_margin(_float_array(x, "x")))
    result = _points_of_product(y, x, c, axis)
    shape, work = result.shape, weights.dtype

    def pullback(dy):
        dy = numpy.asarray(dy)
        _checks.shape(dy, "cotangent", shape)
        u, total = numpy.moveaxis(dy, axis, -1).astype(work, copy=False), 0.0
        for back in (back_clip, back_exp):
            if back is not None:
                u, terms = back(u)
                total += terms
        dx, terms = back_log(u @ weights)
        dmatrix = numpy.reshape(u, (-1, weights.shape[0])).T @ numpy.reshape(tangents, (-1, weights.shape[1]))
        return (dmatrix.astype(dtype, copy=False), numpy.moveaxis(dx, -1, axis).astype(dtype, copy=False),
                numpy.asarray(total + terms, dtype=curvature_dtype))

    return result, pullback
