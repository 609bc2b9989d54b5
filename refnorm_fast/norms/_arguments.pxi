# Arguments that the modules of this room share. Include after rows.pxi.


cdef inline void *_data(array) noexcept:
    return NULL if array is None else np.PyArray_DATA(<np.ndarray> array)


cdef inline double _positive(eps) except? -1:
    cdef double value = eps
    if not (value > 0 and value < numpy.inf):
        _checks.positive(eps, "eps")
    return value
