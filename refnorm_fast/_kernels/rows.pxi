# How a room's functions see an array as rows: shared by the rooms that work row by row. `include "rows.pxi"`.
# An including module has cimported numpy as np, imported it as numpy, and called np.import_array().

from refnorm import _checks
from refnorm_fast.cuda import _dispatch

cdef extern from "array.h":
    object rn_empty(int ndim, np.npy_intp *shape, int type)


cdef inline bint _on_gpu(x):
    """Whether `x` is an array on a GPU. A NumPy array costs no more than a look at its type."""
    return type(x) is not np.ndarray and hasattr(x, "__cuda_array_interface__")


cdef inline np.ndarray _float_array(x, name):
    """`x` as an aligned float32 or float64 array, itself if it is one."""
    cdef np.ndarray array
    if type(x) is np.ndarray:
        array = <np.ndarray> x
        if (np.PyArray_TYPE(array) == np.NPY_FLOAT or np.PyArray_TYPE(array) == np.NPY_DOUBLE) and np.PyArray_ISBEHAVED_RO(array):
            return array
    elif _on_gpu(x):
        _dispatch.refuse(name)
    array = numpy.asarray(_checks.float_array(x, name))
    if not np.PyArray_ISBEHAVED_RO(array):
        array = array.copy()
    return array


cdef inline np.ndarray _in_order(np.ndarray x, dtype=None):
    """`x` in C order, aligned to its items and, if given, of `dtype`: itself if it is, else a copy. (`ascontiguousarray`
    hands back what is contiguous even where it is misaligned.)"""
    if dtype is not None and x.dtype != dtype:
        return numpy.array(x, dtype=dtype, order="C")
    return x if np.PyArray_ISCARRAY_RO(x) else numpy.array(x, order="C")


cdef inline bint _same_shape(np.ndarray a, np.ndarray b) noexcept:
    cdef int i
    if np.PyArray_NDIM(a) != np.PyArray_NDIM(b):
        return False
    for i in range(np.PyArray_NDIM(a)):
        if np.PyArray_DIM(a, i) != np.PyArray_DIM(b, i):
            return False
    return True


cdef inline bint _rows_of(np.ndarray x, int trailing, size_t *rows, size_t *length, size_t *stride) noexcept:
    """Split `x` into rows over its last `trailing` axes; False unless each row is contiguous and one stride leads
    from row to row. `stride` is in elements."""
    cdef int ndim = np.PyArray_NDIM(x), i
    cdef np.npy_intp item = np.PyArray_ITEMSIZE(x), expected = item, step = 0
    cdef bint known = False
    rows[0] = 1
    length[0] = 1
    for i in range(ndim - 1, -1, -1):
        if i >= ndim - trailing:
            length[0] *= np.PyArray_DIM(x, i)
        else:
            rows[0] *= np.PyArray_DIM(x, i)
    stride[0] = length[0]
    if np.PyArray_IS_C_CONTIGUOUS(x) or rows[0] == 0:
        return True
    for i in range(ndim - 1, ndim - trailing - 1, -1):
        if np.PyArray_DIM(x, i) != 1:
            if np.PyArray_STRIDE(x, i) != expected:
                return False
            expected *= np.PyArray_DIM(x, i)
    for i in range(ndim - trailing - 1, -1, -1):
        if np.PyArray_DIM(x, i) != 1:
            if not known:
                step = np.PyArray_STRIDE(x, i)
                if step < 0 or step % item != 0:
                    return False
                expected = step
                known = True
            elif np.PyArray_STRIDE(x, i) != expected:
                return False
            expected *= np.PyArray_DIM(x, i)
    if known:
        stride[0] = step // item
    return True


cdef inline np.ndarray _fresh(np.ndarray like):
    return rn_empty(np.PyArray_NDIM(like), np.PyArray_DIMS(like), np.PyArray_TYPE(like))


cdef _check_out(out, np.ndarray like):
    """Raise unless `out` can take a result with the shape and dtype of `like`."""
    cdef np.ndarray array
    if not isinstance(out, np.ndarray):
        _checks.fail_type("out", "an array", type(out).__name__)
    array = <np.ndarray> out
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(like) or not np.PyArray_ISNOTSWAPPED(array):
        _checks.fail_type("out", f"dtype {like.dtype}", f"dtype {array.dtype}")
    if not _same_shape(array, like):
        _checks.fail("out", f"shape {(<object> like).shape}", f"{out.shape}")
    if not np.PyArray_ISWRITEABLE(array):
        _checks.fail("out", "a writable array", "a read-only one")


cdef inline bint _bounds(np.ndarray a, char **low, char **high) noexcept:
    """The bytes that an array's entries lie between; False if it has none."""
    cdef int i
    cdef np.npy_intp reach
    low[0] = np.PyArray_BYTES(a)
    high[0] = low[0] + np.PyArray_ITEMSIZE(a)
    for i in range(np.PyArray_NDIM(a)):
        if np.PyArray_DIM(a, i) == 0:
            return False
        reach = (np.PyArray_DIM(a, i) - 1) * np.PyArray_STRIDE(a, i)
        if reach < 0:
            low[0] += reach
        else:
            high[0] += reach
    return True


cdef inline bint _apart(np.ndarray a, np.ndarray b) noexcept:
    """Whether the memory of two arrays is disjoint, judged by its bounds."""
    cdef char *low_a
    cdef char *high_a
    cdef char *low_b
    cdef char *high_b
    if not (_bounds(a, &low_a, &high_a) and _bounds(b, &low_b, &high_b)):
        return True
    return high_a <= low_b or high_b <= low_a


cdef inline bint _identical(np.ndarray a, np.ndarray b) noexcept:
    """Whether two C-contiguous arrays of one shape are the same memory."""
    return (np.PyArray_DATA(a) == np.PyArray_DATA(b) and np.PyArray_IS_C_CONTIGUOUS(a)
            and np.PyArray_IS_C_CONTIGUOUS(b))


cdef inline np.ndarray _rows_contiguous(np.ndarray x, int trailing, size_t *rows, size_t *length, size_t *stride):
    """`x`, or a copy of it if its rows are not contiguous at one stride."""
    if _rows_of(x, trailing, rows, length, stride):
        return x
    x = _in_order(x)
    _rows_of(x, trailing, rows, length, stride)
    return x


# Elements that a copy for a kernel holds at a time when the array's own layout does not suit.
CHUNK = 1 << 18


def _in_chunks(function, x, y):
    """`y[...] = function(x)` for a function of rows along the last axis, in copies of about CHUNK elements."""
    if x.size <= CHUNK or x.ndim == 1:
        y[...] = function(numpy.array(x, order="C"))
    elif x.shape[0] == 1:
        _in_chunks(function, x[0], y[0])
    else:
        step = max(1, x.shape[0] * CHUNK // x.size)
        for first in range(0, x.shape[0], step):
            _in_chunks(function, x[first : first + step], y[first : first + step])
