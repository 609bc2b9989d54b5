# The table of _kernels/quantize.h: shared by the modules that use it. Included after "../_kernels/rows.pxi".

from libc.stdint cimport int32_t, int64_t, uint8_t

cdef extern from "quantize.h":
    ctypedef struct rn_layout:
        size_t outer, channels, inner
    ctypedef struct rn_search:
        const void *threshold
        const int32_t *before
        int shift, buckets
        int64_t base
        int levels
        double slope, start, margin
        int code_slope, code_start, code_most
    ctypedef struct rn_quantize_table:
        int (*affine_f32)(int, int, const float *, const float *, const float *, int, int, rn_layout, void *, float *) noexcept nogil
        int (*affine_f64)(int, int, const double *, const double *, const double *, int, int, rn_layout, void *, double *) noexcept nogil
        int (*affine_backward_f32)(const float *, const float *, float *, rn_layout, double *, double *) noexcept nogil
        int (*affine_backward_f64)(const double *, const double *, double *, rn_layout, double *, double *) noexcept nogil
        void (*affine_points_f32)(int, const void *, const float *, const float *, rn_layout, float *) noexcept nogil
        void (*affine_points_f64)(int, const void *, const double *, const double *, rn_layout, double *) noexcept nogil
        int (*extremes_f32)(const float *, rn_layout, float *, float *) noexcept nogil
        int (*extremes_f64)(const double *, rn_layout, double *, double *) noexcept nogil
        int (*magnitudes_f32)(const float *, rn_layout, double, double *) noexcept nogil
        int (*magnitudes_f64)(const double *, rn_layout, double, double *) noexcept nogil
        void (*round_f32)(int, const float *, float *, size_t) noexcept nogil
        void (*round_f64)(int, const double *, double *, size_t) noexcept nogil
        void (*round_stochastic_f32)(int, const float *, const double *, float *, size_t) noexcept nogil
        void (*round_stochastic_f64)(int, const double *, const double *, double *, size_t) noexcept nogil
        int (*levels_f32)(rn_search, const float *, float, float, size_t, const float *, float *, uint8_t *, uint8_t *) noexcept nogil
        int (*levels_f64)(rn_search, const double *, double, double, size_t, const double *, double *, uint8_t *, uint8_t *) noexcept nogil
        int (*levels_backward_f32)(rn_search, int, const float *, float, float, size_t, const float *, int, int, const float *, float *, double *) noexcept nogil
        int (*levels_backward_f64)(rn_search, int, const double *, double, double, size_t, const double *, int, int, const double *, double *, double *) noexcept nogil
        void (*lookup_f32)(const uint8_t *, const uint8_t *, const float *, float *, size_t) noexcept nogil
        void (*lookup_f64)(const uint8_t *, const uint8_t *, const double *, double *, size_t) noexcept nogil
        void (*shift_codes_f32)(int, const float *, double, const double *, const double *, int, rn_layout, size_t, size_t, void *) noexcept nogil
        void (*shift_codes_f64)(int, const double *, double, const double *, const double *, int, rn_layout, size_t, size_t, void *) noexcept nogil
        int (*codewords_f32)(const void *, int, const float *, const float *, size_t, size_t, size_t, size_t, size_t, float *) noexcept nogil
        int (*codewords_f64)(const void *, int, const double *, const double *, size_t, size_t, size_t, size_t, size_t, double *) noexcept nogil
    const rn_quantize_table *rn_quantize() noexcept nogil


cdef inline np.ndarray _plain(array):
    """`array` itself if it is contiguous and aligned, or a copy that is; NumPy returns a scalar for many a 0-d array."""
    cdef np.ndarray given = <np.ndarray> (array if isinstance(array, np.ndarray) else numpy.asarray(array))
    if np.PyArray_IS_C_CONTIGUOUS(given) and np.PyArray_ISBEHAVED_RO(given):
        return given
    return numpy.array(given, order="C")


cdef _check_target(out, np.ndarray like, int type):
    """Raise unless `out` can take a result with the shape of `like` and the dtype that `type` numbers."""
    cdef np.ndarray array
    if isinstance(out, np.ndarray):
        array = <np.ndarray> out
        if (np.PyArray_TYPE(array) == type and np.PyArray_ISBEHAVED(array) and _same_shape(array, like)):
            return
    _check_out(out, numpy.broadcast_to(rn_empty(0, NULL, type), (<object> like).shape))


cdef inline bint _direct(np.ndarray out):
    """Whether a kernel can write to `out`."""
    return np.PyArray_IS_C_CONTIGUOUS(out) and np.PyArray_ISBEHAVED(out)


cdef _by_reference(function, out, arguments, options):
    """What the reference returns, in `out` if that is given."""
    result = function(*arguments, **options)
    if out is None:
        return result
    _check_out(out, numpy.asarray(result))
    out[...] = result
    return out


cdef np.ndarray _cotangent(dy, np.ndarray like):
    """`dy` with the shape and dtype of `like`, contiguous."""
    given = numpy.asarray(dy, dtype=like.dtype)
    if not _same_shape(<np.ndarray> given, like):
        given = numpy.broadcast_to(given, (<object> like).shape)
    return _plain(given)


cdef inline bint _extremes(np.ndarray x, rn_layout layout, np.ndarray low, np.ndarray high) except -1:
    """Whether all entries of the contiguous array `x` are finite; its channels' smallest and largest entries."""
    cdef void *source = np.PyArray_DATA(x)
    cdef void *least = np.PyArray_DATA(low)
    cdef void *most = np.PyArray_DATA(high)
    cdef bint single = np.PyArray_TYPE(x) == np.NPY_FLOAT
    cdef int wrong
    with nogil:
        if single:
            wrong = rn_quantize().extremes_f32(<float *> source, layout, <float *> least, <float *> most)
        else:
            wrong = rn_quantize().extremes_f64(<double *> source, layout, <double *> least, <double *> most)
    if wrong < 0:
        raise MemoryError
    return wrong == 0
