# The axis that a softmax runs along, and losses over rows: shared by the room's modules. Include after rows.pxi.


cdef int _axis_of(np.ndarray x, axis) except -1:
    """`axis` as a non-negative number, the axis not being empty."""
    cdef int ndim = np.PyArray_NDIM(x)
    cdef int one = -1
    if ndim == 0:
        _checks.float_array(x, "x", min_ndim=1)
    if type(axis) is int and -ndim <= axis < ndim:
        one = axis
        if one < 0:
            one += ndim
    else:
        one = _checks.axes((axis,), ndim)[0]
    if np.PyArray_DIM(x, one) == 0:
        _checks.not_empty(x, "x", (one,))
    return one


REDUCTIONS = ("mean", "sum", "none")


cdef _reduce(np.ndarray losses, reduction, size_t counted, dtype):
    """The losses, or their sum or mean in float64, rounded once to `dtype`."""
    with numpy.errstate(over="ignore"):
        if reduction == "none":
            return losses.astype(dtype)
        total = losses.sum()
        return numpy.asarray(total / counted if reduction == "mean" else total).astype(dtype)


cdef np.ndarray _row_weights(dloss, np.ndarray logits, reduction, size_t counted):
    """What each row's loss is multiplied by: float64, one a row."""
    wide = numpy.asarray(dloss, dtype=numpy.float64)
    rows = np.PyArray_DIM(logits, 0)
    _checks.shape(wide, "dloss", (rows,) if reduction == "none" else ())
    if reduction == "none":
        return _in_order(wide)
    return numpy.full(rows, wide / counted if reduction == "mean" else wide)


cdef _check_counted(reduction, size_t counted, size_t rows):
    if reduction == "mean" and counted == 0:
        _checks.fail("target", "at least one row that is not ignored for the mean", f"{rows} rows, 0 counted")


cdef np.ndarray _logits_of(logits):
    cdef np.ndarray array = _float_array(logits, "logits")
    if np.PyArray_NDIM(array) != 2:
        _checks.float_array(array, "logits", ndim=2)
    if np.PyArray_DIM(array, 1) == 0:
        _checks.not_empty(array, "logits", (1,))
    return array
