"""Learned roundings: checks and layout; the arithmetic is in _kernels/rounding.c."""

import numpy

cimport numpy as np
from libc.math cimport isfinite

np.import_array()

include "../_kernels/rows.pxi"

from refnorm import quantizers as _reference
from refnorm.quantizers import _gradient_ptq
from refnorm.quantizers._calibration import check_bits

cdef extern from "rounding.h":
    int RN_ROUND_SIGMOID, RN_ROUND_DIRECT, RN_ROUND_STE
    ctypedef struct rn_soft_quantization:
        const void *weight
        const void *v
        const void *scale
        void *y
        void *q
        void *slope
        size_t rows, columns
        int per_column, variable
        double lowest, highest
    ctypedef struct rn_soft_quantization_back:
        const void *dy
        const void *q
        const void *slope
        const void *scale
        void *dv
        void *dscale
        size_t rows, columns
        int per_column
    ctypedef struct rn_rounding_table:
        void (*rectify_f32)(const float *v, float *h, float *slope, size_t count) nogil
        void (*rectify_f64)(const double *v, double *h, double *slope, size_t count) nogil
        void (*product_f32)(const float *slope, const float *dy, float *dx, size_t count) nogil
        void (*product_f64)(const double *slope, const double *dy, double *dx, size_t count) nogil
        int (*regularise_f32)(const float *h, float *slope, size_t count, double exponent, double *sum) nogil
        int (*regularise_f64)(const double *h, double *slope, size_t count, double exponent, double *sum) nogil
        void (*scaled_f32)(const float *x, double factor, float *y, size_t count) nogil
        void (*scaled_f64)(const double *x, double factor, double *y, size_t count) nogil
        int (*soft_quantize_f32)(const rn_soft_quantization *call) nogil
        int (*soft_quantize_f64)(const rn_soft_quantization *call) nogil
        int (*soft_quantize_back_f32)(const rn_soft_quantization_back *call) nogil
        int (*soft_quantize_back_f64)(const rn_soft_quantization_back *call) nogil
    const rn_rounding_table *rn_rounding() nogil


cdef inline bint _single(np.ndarray x) noexcept:
    return np.PyArray_TYPE(x) == np.NPY_FLOAT


# ---- the rectified sigmoid -----------------------------------------------------------------------------------------

cdef _rectify(np.ndarray v, np.ndarray h, slope):
    """C-contiguous arrays of one shape and dtype; `slope` may be None."""
    cdef size_t count = np.PyArray_SIZE(v)
    cdef const void *source = np.PyArray_DATA(v)
    cdef void *to = np.PyArray_DATA(h)
    cdef void *slope_to = NULL if slope is None else np.PyArray_DATA(<np.ndarray> slope)
    cdef bint single = _single(v)
    with nogil:
        if single:
            rn_rounding().rectify_f32(<const float *> source, <float *> to, <float *> slope_to, count)
        else:
            rn_rounding().rectify_f64(<const double *> source, <double *> to, <double *> slope_to, count)


def rectified_sigmoid(v, *, out=None):
    """Return ``clip(1.2 sigmoid(v) - 0.1, 0, 1)``; see :func:`refnorm.quantizers.rectified_sigmoid`.

    Parameters
    ----------
    v : float32 or float64 array of any shape
    out : array of the shape and dtype of ``v``, optional
        Receives the result; may be ``v`` or overlap it.

    Returns
    -------
    array, shape and dtype of ``v``

    Raises
    ------
    TypeError, ValueError
        If ``v`` is not float32 or float64, or ``out`` does not fit.

    Notes
    -----
    Between the ends it is ``1/2 + 3/5 tanh(v / 2)``, an odd polynomial: no exponential and no division. Within 2 units
    in the last place of 1.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662; Nagel et al. (2020), arXiv 2004.10568, equation 23.

    Examples
    --------
    >>> import numpy as np
    >>> rectified_sigmoid(np.array([-9.0, 0.0, 9.0]))
    array([0. , 0.5, 1. ])
    """
    cdef np.ndarray x = _float_array(v, "v"), y
    if out is None:
        x = _in_order(x)
        y = _fresh(x)
    else:
        _check_out(out, x)
        y = <np.ndarray> out
        if not (np.PyArray_IS_C_CONTIGUOUS(x) and np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y)
                and (_identical(x, y) or _apart(x, y))):
            y[...] = rectified_sigmoid(x)
            return y
    _rectify(x, y, None)
    return y


def rectified_sigmoid_vjp(v):
    """Return :func:`rectified_sigmoid` and its pullback ``dy -> (dv,)``.

    The slope is made with the value, so that the way back is a product.
    """
    cdef np.ndarray x = _in_order(_float_array(v, "v")), h = _fresh(x), slope = _fresh(x)
    _rectify(x, h, slope)

    def pullback(dy):
        return (_product(slope, dy),)

    return h, pullback


cdef np.ndarray _product(np.ndarray slope, dy):
    """dy times the slopes, 0 where they are 0."""
    cdef np.ndarray given = _in_order(numpy.asarray(dy, dtype=slope.dtype))
    _checks.shape(given, "dy", (<object> slope).shape)
    cdef np.ndarray dx = _fresh(slope)
    cdef size_t count = np.PyArray_SIZE(slope)
    cdef const void *factors = np.PyArray_DATA(slope)
    cdef const void *cotangent = np.PyArray_DATA(given)
    cdef void *target = np.PyArray_DATA(dx)
    cdef bint single = _single(slope)
    with nogil:
        if single:
            rn_rounding().product_f32(<const float *> factors, <const float *> cotangent, <float *> target, count)
        else:
            rn_rounding().product_f64(<const double *> factors, <const double *> cotangent, <double *> target, count)
    return dx


# ---- the regulariser -----------------------------------------------------------------------------------------------

cdef np.ndarray _regularise(np.ndarray h, exponent, slope):
    """The sum as an array (); `slope` is None or an array to write to."""
    if not (isfinite(exponent) and exponent >= 1):
        _checks.fail("exponent", "a finite number >= 1", exponent)
    cdef size_t count = np.PyArray_SIZE(h)
    cdef const void *source = np.PyArray_DATA(h)
    cdef void *slope_to = NULL if slope is None else np.PyArray_DATA(<np.ndarray> slope)
    cdef double power = exponent, total = 0
    cdef bint single = _single(h)
    cdef int failed
    with nogil:
        if single:
            failed = rn_rounding().regularise_f32(<const float *> source, <float *> slope_to, count, power, &total)
        else:
            failed = rn_rounding().regularise_f64(<const double *> source, <double *> slope_to, count, power, &total)
    if failed:
        raise MemoryError
    return numpy.asarray(total, h.dtype)


def rounding_regulariser(h, *, exponent=2.0):
    """Return ``sum(1 - |2 h - 1|^exponent)``; see :func:`refnorm.quantizers.rounding_regulariser`.

    Parameters
    ----------
    h : float32 or float64 array
        Relaxed roundings from 0 to 1.
    exponent : float >= 1
        Large: only what is nearly decided is pushed.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If ``h`` is not float or ``exponent < 1``.

    Notes
    -----
    One pass; the sum is float64 and does not depend on the number of threads.

    References
    ----------
    Nagel et al. (2020), arXiv 2004.10568, equation 24.

    Examples
    --------
    >>> import numpy as np
    >>> float(rounding_regulariser(np.array([0.0, 0.5, 1.0])))
    1.0
    """
    return _regularise(_in_order(_float_array(h, "h")), exponent, None)


def rounding_regulariser_vjp(h, *, exponent=2.0):
    """Return :func:`rounding_regulariser` and its pullback ``dy -> (dh,)``."""
    cdef np.ndarray x = _in_order(_float_array(h, "h")), slope = _fresh(x)
    value = _regularise(x, exponent, slope)

    def pullback(dy):
        cotangent = numpy.asarray(dy)
        _checks.shape(cotangent, "dy", ())
        return (_scaled(slope, -2 * float(exponent) * float(cotangent)),)

    return value, pullback


cdef np.ndarray _scaled(np.ndarray x, double factor):
    cdef np.ndarray y = _fresh(x)
    cdef size_t count = np.PyArray_SIZE(x)
    cdef const void *source = np.PyArray_DATA(x)
    cdef void *target = np.PyArray_DATA(y)
    cdef bint single = _single(x)
    with nogil:
        if single:
            rn_rounding().scaled_f32(<const float *> source, factor, <float *> target, count)
        else:
            rn_rounding().scaled_f64(<const double *> source, factor, <double *> target, count)
    return y


# ---- quantized weights ---------------------------------------------------------------------------------------------

cdef class _SoftQuantization:
    """Checked arguments of one call, in C order."""

    cdef np.ndarray weight, v, scale
    cdef rn_soft_quantization call

    cdef np.ndarray run(self, np.ndarray y, q, slope):
        """y; raises if a weight is not finite."""
        cdef bint single = _single(self.weight), finite
        self.call.y = np.PyArray_DATA(y)
        self.call.q = NULL if q is None else np.PyArray_DATA(<np.ndarray> q)
        self.call.slope = NULL if slope is None else np.PyArray_DATA(<np.ndarray> slope)
        with nogil:
            if single:
                finite = rn_rounding().soft_quantize_f32(&self.call)
            else:
                finite = rn_rounding().soft_quantize_f64(&self.call)
        if not finite:
            _checks.finite(self.weight, "weight")
        return y


cdef bint _positive(np.ndarray scale) noexcept:
    """Whether all of a contiguous array is above 0."""
    cdef np.npy_intp i, count = np.PyArray_SIZE(scale)
    cdef const float *single = <const float *> np.PyArray_DATA(scale)
    cdef const double *wide = <const double *> np.PyArray_DATA(scale)
    for i in range(count):
        if not ((single[i] if _single(scale) else wide[i]) > 0):
            return False
    return True


cdef _SoftQuantization _soft(weight, scale, v, bits, variable):
    cdef _SoftQuantization made = _SoftQuantization.__new__(_SoftQuantization)
    cdef np.ndarray w = _float_array(weight, "weight")
    if np.PyArray_NDIM(w) != 2:
        _checks.float_array(w, "weight", ndim=2)
    cdef np.ndarray logits = _float_array(v, "v"), step = _float_array(scale, "scale")
    if np.PyArray_TYPE(logits) != np.PyArray_TYPE(w) or np.PyArray_TYPE(step) != np.PyArray_TYPE(w):
        _checks.same_dtype("weight", w, scale=step, v=logits)
    if not _same_shape(logits, w):
        _checks.shape(logits, "v", (<object> w).shape)
    if np.PyArray_NDIM(step) != 0:
        _checks.shape(step, "scale", (np.PyArray_DIM(w, 1),))
    step = _in_order(step)
    if not _positive(step):
        _checks.fail("scale", "numbers > 0", step)
    _checks.one_of(variable, "variable", _gradient_ptq.VARIABLES)
    made.weight, made.v, made.scale = _in_order(w), _in_order(logits), step
    made.call.weight, made.call.v = np.PyArray_DATA(made.weight), np.PyArray_DATA(made.v)
    made.call.scale = np.PyArray_DATA(step)
    made.call.rows, made.call.columns = np.PyArray_DIM(w, 0), np.PyArray_DIM(w, 1)
    made.call.per_column = np.PyArray_NDIM(step) != 0
    made.call.variable = (RN_ROUND_SIGMOID if variable == "sigmoid" else
                          RN_ROUND_DIRECT if variable == "direct" else RN_ROUND_STE)
    made.call.highest = 2.0 ** (check_bits(bits) - 1) - 1
    made.call.lowest = -made.call.highest - 1
    return made


def soft_quantize(weight, scale, v, *, bits, variable="sigmoid", power=1.0, out=None):
    """Quantize weights with a rounding that is a variable; see :func:`refnorm.quantizers.soft_quantize`.

    Parameters
    ----------
    weight, scale, v, bits, variable, power
        As in :func:`refnorm.quantizers.soft_quantize`. A ``power`` other than 1 is computed by the reference.
    out : array of the shape and dtype of ``weight``, optional
        Receives the result; may be ``weight`` or ``v`` or overlap them.

    Returns
    -------
    array (K, N), dtype of ``weight``

    Raises
    ------
    TypeError, ValueError
        As :func:`refnorm.quantizers.soft_quantize`; also if ``out`` does not fit.

    Notes
    -----
    One pass, in which the weights are also checked.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662, section on the optimized variable and on non-uniform grids.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([[0.3, -1.2]])
    >>> soft_quantize(weight, np.array(0.5), np.array([[-9.0, 9.0]]), bits=4)
    array([[ 0., -1.]])
    """
    cdef _SoftQuantization made
    cdef np.ndarray y
    if type(power) not in (int, float) or power != 1:
        y = _reference.soft_quantize(weight, scale, v, bits=bits, variable=variable, power=power)
        if out is None:
            return y
        _check_out(out, y)
        out[...] = y
        return out
    made = _soft(weight, scale, v, bits, variable)
    if out is None:
        return made.run(_fresh(made.weight), None, None)
    _check_out(out, made.weight)
    # Nothing is written if a weight is not finite.
    out[...] = made.run(_fresh(made.weight), None, None)
    return out


def soft_quantize_vjp(weight, scale, v, *, bits, variable="sigmoid", power=1.0):
    """Return :func:`soft_quantize` and its pullback ``dy -> (dweight, dscale, dv)``.

    The clipped codes and the slopes are kept: the way back reads them and ``dy``, and writes ``dv``.
    """
    if type(power) not in (int, float) or power != 1:
        return _reference.soft_quantize_vjp(weight, scale, v, bits=bits, variable=variable, power=power)
    cdef _SoftQuantization made = _soft(weight, scale, v, bits, variable)
    cdef np.ndarray q = _fresh(made.weight), slope = _fresh(made.weight)
    y = made.run(_fresh(made.weight), q, slope)
    step = made.scale

    def pullback(dy):
        return _soft_back(q, slope, step, dy)

    return y, pullback


cdef _soft_back(np.ndarray q, np.ndarray slope, np.ndarray scale, dy):
    cdef np.ndarray given = _in_order(numpy.asarray(dy, dtype=q.dtype))
    _checks.shape(given, "dy", (<object> q).shape)
    cdef np.ndarray dv = _fresh(q), dscale = _fresh(scale)
    cdef rn_soft_quantization_back call
    cdef bint single = _single(q)
    cdef int failed
    call.dy, call.q, call.slope = np.PyArray_DATA(given), np.PyArray_DATA(q), np.PyArray_DATA(slope)
    call.scale, call.dv, call.dscale = np.PyArray_DATA(scale), np.PyArray_DATA(dv), np.PyArray_DATA(dscale)
    call.rows, call.columns = np.PyArray_DIM(q, 0), np.PyArray_DIM(q, 1)
    call.per_column = np.PyArray_NDIM(scale) != 0
    with nogil:
        if single:
            failed = rn_rounding().soft_quantize_back_f32(&call)
        else:
            failed = rn_rounding().soft_quantize_back_f64(&call)
    if failed:
        raise MemoryError
    return numpy.zeros((<object> q).shape, q.dtype), dscale, dv
