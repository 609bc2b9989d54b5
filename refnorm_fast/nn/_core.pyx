"""Linear layer and activations: checks and layout; the arithmetic is in _kernels/activation.c and _kernels/gemm.c."""

import numpy

cimport numpy as np

np.import_array()

include "../_kernels/rows.pxi"

cdef extern from "activation.h":
    enum:
        RN_RELU
        RN_GELU
        RN_GELU_TANH
        RN_SIGMOID
        RN_SILU
        RN_SOFTPLUS
        RN_ERF
    ctypedef struct rn_activation_table:
        void (*value_f32)(int function, const float *x, float *y, size_t count) nogil
        void (*value_f64)(int function, const double *x, double *y, size_t count) nogil
        void (*both_f32)(int function, const float *x, float *y, float *slope, size_t count) nogil
        void (*both_f64)(int function, const double *x, double *y, double *slope, size_t count) nogil
        void (*product_f32)(int function, const float *slope, const float *dy, float *dx, size_t count) nogil
        void (*product_f64)(int function, const double *slope, const double *dy, double *dx, size_t count) nogil
    const rn_activation_table *rn_activation() nogil

cdef extern from "gemm.h":
    ctypedef struct rn_linear_call:
        const float *x
        size_t x_stride, rows
        const float *packed
        const float *bias
        size_t depth, width
        float *out
        size_t out_stride
        int activation
        const float *residual
        const float *gain
        const float *shift
        size_t residual_stride
        float eps
    ctypedef struct rn_gemm_table:
        size_t (*padded_width)(size_t width) nogil
        void (*pack)(const float *weight, ptrdiff_t depth_stride, ptrdiff_t width_stride, size_t depth, size_t width,
                     float *packed) nogil
        int (*linear)(const rn_linear_call *call) nogil
    const rn_gemm_table *rn_gemm() nogil

# From this number of rows on, packing the weight costs less than it saves.
PACKED_ROWS = 24


cdef np.ndarray _value(int function, np.ndarray x, out):
    cdef np.ndarray y
    cdef size_t count = np.PyArray_SIZE(x)
    cdef const void *source
    cdef void *target
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    if out is not None:
        _check_out(out, x)
        y = <np.ndarray> out
        if not (np.PyArray_IS_C_CONTIGUOUS(x) and np.PyArray_IS_C_CONTIGUOUS(y) and np.PyArray_ISALIGNED(y)
                and (_identical(x, y) or _apart(x, y))):
            y[...] = _value(function, numpy.array(x, order="C"), None)
            return y
    else:
        if not np.PyArray_IS_C_CONTIGUOUS(x):
            x = _in_order(x)
        y = _fresh(x)
    source = np.PyArray_DATA(x)
    target = np.PyArray_DATA(y)
    with nogil:
        if single:
            rn_activation().value_f32(function, <const float *> source, <float *> target, count)
        else:
            rn_activation().value_f64(function, <const double *> source, <double *> target, count)
    return y


cdef np.ndarray _product(int function, np.ndarray slope, dy):
    """dy times the slopes."""
    cdef np.ndarray cotangent = _in_order(numpy.asarray(dy, dtype=slope.dtype))
    _checks.shape(cotangent, "dy", (<object> slope).shape)
    cdef np.ndarray dx = _fresh(slope)
    cdef size_t count = np.PyArray_SIZE(slope)
    cdef const void *factors = np.PyArray_DATA(slope)
    cdef const void *given = np.PyArray_DATA(cotangent)
    cdef void *target = np.PyArray_DATA(dx)
    cdef bint single = np.PyArray_TYPE(slope) == np.NPY_FLOAT
    with nogil:
        if single:
            rn_activation().product_f32(function, <const float *> factors, <const float *> given, <float *> target, count)
        else:
            rn_activation().product_f64(function, <const double *> factors, <const double *> given, <double *> target, count)
    return dx


cdef _value_and_pullback(int function, given):
    cdef np.ndarray x = _in_order(_float_array(given, "x")), y = _fresh(x), slope = _fresh(x)
    cdef size_t count = np.PyArray_SIZE(x)
    cdef const void *source = np.PyArray_DATA(x)
    cdef void *value_to = np.PyArray_DATA(y)
    cdef void *slope_to = np.PyArray_DATA(slope)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    with nogil:
        if single:
            rn_activation().both_f32(function, <const float *> source, <float *> value_to, <float *> slope_to, count)
        else:
            rn_activation().both_f64(function, <const double *> source, <double *> value_to, <double *> slope_to, count)

    def pullback(dy):
        return (_product(function, slope, dy),)

    return y, pullback


cdef int _gelu_form(approximate) except -1:
    if approximate == "none":
        return RN_GELU
    if approximate == "tanh":
        return RN_GELU_TANH
    _checks.one_of(approximate, "approximate", ("none", "tanh"))
    return -1


def relu(x, *, out=None):
    """Keep positive numbers, replace negative ones by 0; see :func:`refnorm.nn.relu`.

    Parameters
    ----------
    x : float32 or float64 array of any shape
    out : array of the shape and dtype of ``x``, optional
        Receives the result; may be ``x`` or overlap it.

    Examples
    --------
    >>> import numpy as np
    >>> relu(np.array([-2.0, 0.0, 3.0]))
    array([0., 0., 3.])
    """
    return _value(RN_RELU, _float_array(x, "x"), out)


def relu_vjp(x):
    """Return :func:`relu` and its pullback ``dy -> (dx,)``."""
    return _value_and_pullback(RN_RELU, x)


def gelu(x, *, approximate="none", out=None):
    """``x Phi(x)``, within 1 ULP in float32; see :func:`refnorm.nn.gelu`.

    Parameters
    ----------
    x : float32 or float64 array of any shape
    approximate : {"none", "tanh"}
    out : array of the shape and dtype of ``x``, optional
        Receives the result; may be ``x`` or overlap it.

    Examples
    --------
    >>> import numpy as np
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    cdef np.ndarray array = _float_array(x, "x")
    return _value(_gelu_form(approximate), array, out)


def gelu_vjp(x, *, approximate="none"):
    """Return :func:`gelu` and its pullback ``dy -> (dx,)``."""
    array = _float_array(x, "x")
    return _value_and_pullback(_gelu_form(approximate), array)


def sigmoid(x, *, out=None):
    """``1 / (1 + exp(-x))``, within 2 ULP; see :func:`refnorm.nn.sigmoid`.

    Parameters
    ----------
    x : float32 or float64 array of any shape
    out : array of the shape and dtype of ``x``, optional
        Receives the result; may be ``x`` or overlap it.

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid(np.array([-1.0, 0.0, 1.0])).round(4)
    array([0.2689, 0.5   , 0.7311])
    """
    return _value(RN_SIGMOID, _float_array(x, "x"), out)


def sigmoid_vjp(x):
    """Return :func:`sigmoid` and its pullback ``dy -> (dx,)``."""
    return _value_and_pullback(RN_SIGMOID, x)


def silu(x, *, out=None):
    """``x / (1 + exp(-x))``, within 2 ULP; see :func:`refnorm.nn.silu`.

    Parameters
    ----------
    x : float32 or float64 array of any shape
    out : array of the shape and dtype of ``x``, optional
        Receives the result; may be ``x`` or overlap it.

    Examples
    --------
    >>> import numpy as np
    >>> silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return _value(RN_SILU, _float_array(x, "x"), out)


def silu_vjp(x):
    """Return :func:`silu` and its pullback ``dy -> (dx,)``."""
    return _value_and_pullback(RN_SILU, x)


def softplus(x, *, out=None):
    """``log(1 + exp x)``, within 2 ULP; see :func:`refnorm.nn.softplus`.

    Parameters
    ----------
    x : float32 or float64 array of any shape
    out : array of the shape and dtype of ``x``, optional
        Receives the result; may be ``x`` or overlap it.

    Examples
    --------
    >>> import numpy as np
    >>> softplus(np.array([-1.0, 0.0, 1.0])).round(4)
    array([0.3133, 0.6931, 1.3133])
    """
    return _value(RN_SOFTPLUS, _float_array(x, "x"), out)


def softplus_vjp(x):
    """Return :func:`softplus` and its pullback ``dy -> (dx,)``."""
    return _value_and_pullback(RN_SOFTPLUS, x)


def erf(x, *, out=None):
    """The error function, within 2 ULP; see :func:`refnorm.nn.erf`.

    Parameters
    ----------
    x : float32 or float64 array of any shape
    out : array of the shape and dtype of ``x``, optional
        Receives the result; may be ``x`` or overlap it.

    Examples
    --------
    >>> import numpy as np
    >>> erf(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.8427,  0.    ,  0.8427])
    """
    return _value(RN_ERF, _float_array(x, "x"), out)


def erf_vjp(x):
    """Return :func:`erf` and its pullback ``dy -> (dx,)``."""
    return _value_and_pullback(RN_ERF, x)


def linear(x, weight, bias=None, *, out=None):
    """``x @ weight + bias`` over the last axis; see :func:`refnorm.nn.linear`.

    Parameters
    ----------
    x : array (..., I)
    weight : array (I, O)
    bias : array (O,), optional
    out : array (..., O), optional
        Receives the result; may overlap the arguments.

    Notes
    -----
    float32 with many rows runs on the packed kernel, with the bias as the sums' first term; few rows, which would not
    repay the packing, and float64 go to BLAS.

    Examples
    --------
    >>> import numpy as np
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.5, 0.5]))
    array([[1.5, 2.5]])
    """
    cdef np.ndarray source = _float_array(x, "x"), matrix = _float_array(weight, "weight"), rows, target, shift = None
    if source.ndim < 1 or matrix.ndim != 2:
        _checks.float_array(x, "x", min_ndim=1)
        _checks.float_array(weight, "weight", ndim=2)
    if bias is not None:
        shift = _float_array(bias, "bias")
    _checks.same_dtype("x", source, weight=matrix, bias=shift)
    shape = (<object> source).shape[:source.ndim - 1]
    cdef Py_ssize_t inputs = matrix.shape[0], outputs = matrix.shape[1]
    _checks.shape(source, "x", (*shape, inputs))
    if bias is not None:
        _checks.shape(shift, "bias", (outputs,))
    if out is not None:
        _check_out(out, numpy.broadcast_to(source.dtype.type(0), (*shape, outputs)))
    count = 1
    for size in shape:
        count *= size
    rows = _in_order(numpy.reshape(source, (count, inputs)))
    cdef bint direct = (
        out is not None and out.flags.c_contiguous and out.flags.aligned and _apart(out, source) and _apart(out, matrix)
        and (shift is None or _apart(out, shift))
    )
    result = out if direct else numpy.empty((*shape, outputs), source.dtype)
    target = numpy.reshape(result, (count, outputs))
    if np.PyArray_TYPE(source) != np.NPY_FLOAT or count < PACKED_ROWS or inputs == 0 or outputs == 0:
        numpy.matmul(rows, matrix, out=target)
        if shift is not None:
            numpy.add(target, shift, out=target)
    else:
        _packed_product(rows, matrix, shift, target)
    if out is None or direct:
        return result
    out[...] = result
    return out


cdef _packed_product(np.ndarray rows, np.ndarray matrix, np.ndarray shift, np.ndarray target):
    cdef const rn_gemm_table *table = rn_gemm()
    cdef size_t depth = matrix.shape[0], width = matrix.shape[1], padded = table.padded_width(width)
    cdef ptrdiff_t depth_stride, width_stride
    if matrix.strides[0] % 4 != 0 or matrix.strides[1] % 4 != 0:
        matrix = _in_order(matrix)
    depth_stride = matrix.strides[0] // 4
    width_stride = matrix.strides[1] // 4
    cdef np.npy_intp size = depth * padded + 16
    cdef np.ndarray room = rn_empty(1, &size, np.NPY_FLOAT), padded_bias = None
    # Panels begin at cache lines.
    cdef float *packed = <float *> ((<size_t> np.PyArray_DATA(room) + 63) // 64 * 64)
    cdef rn_linear_call call
    if shift is not None:
        padded_bias = numpy.zeros(padded, numpy.float32)
        padded_bias[:width] = shift
    call.x = <const float *> np.PyArray_DATA(rows)
    call.x_stride = depth
    call.rows = rows.shape[0]
    call.packed = packed
    call.bias = <const float *> np.PyArray_DATA(padded_bias) if shift is not None else NULL
    call.depth = depth
    call.width = width
    call.out = <float *> np.PyArray_DATA(target)
    call.out_stride = width
    call.activation = 0
    call.residual = NULL
    call.gain = NULL
    call.shift = NULL
    call.residual_stride = 0
    call.eps = 0
    cdef const float *weight = <const float *> np.PyArray_DATA(matrix)
    cdef int failed
    with nogil:
        table.pack(weight, depth_stride, width_stride, depth, width, packed)
        failed = table.linear(&call)
    if failed:
        raise MemoryError("linear: no memory for a block of rows")


def linear_vjp(x, weight, bias=None):
    """Return :func:`linear` and its pullback ``dy -> (dx, dweight, dbias)``."""
    x, weight = _float_array(x, "x"), _float_array(weight, "weight")
    y = linear(x, weight, bias)
    inputs, outputs = weight.shape
    count = y.size // outputs if outputs else int(numpy.prod(x.shape[: x.ndim - 1]))
    rows = x.reshape(count, inputs)

    def pullback(dy):
        cotangent = numpy.asarray(dy).reshape(count, outputs)
        return (
            numpy.matmul(cotangent, weight.T).reshape(x.shape),
            numpy.matmul(rows.T, cotangent),
            None if bias is None else cotangent.sum(axis=0),
        )

    return y, pullback
