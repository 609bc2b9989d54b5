"""The operations of a BERT-family encoder on packed weights, in float32 or with int8 linear layers."""

import numpy as np

cimport numpy as np
from libc.stdint cimport int64_t

from refnorm import _checks

np.import_array()

cdef extern from "array.h":
    object rn_empty(int ndim, np.npy_intp *shape, int type)

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
        int (*feed_forward)(const rn_linear_call *first, const rn_linear_call *second) nogil
        void (*embed)(const int64_t *words, const int64_t *positions, const int64_t *types, size_t rows,
                      const float *token_table, const float *position_table, const float *type_table, size_t hidden,
                      const float *gain, const float *shift, float eps, float *out) nogil
        void (*mean_pool)(const float *x, size_t x_stride, const int64_t *offsets, size_t sequences, size_t hidden,
                          double floor, float *out) nogil
    const rn_gemm_table *rn_gemm() nogil

cdef extern from "attention.h":
    ctypedef struct rn_attention_table:
        int (*packed_f32)(const float *query, const float *key, const float *value, ptrdiff_t query_stride,
                          ptrdiff_t key_stride, ptrdiff_t value_stride, const int64_t *offsets, size_t sequences,
                          size_t heads, size_t depth, double scale, float *out, ptrdiff_t out_stride) nogil
    const rn_attention_table *rn_attention() nogil

cdef extern from "int8.h":
    ctypedef struct rn_int8_layer:
        const signed char *packed
        const float *scale
        const float *offset
        const float *bias
        size_t depth, width
    ctypedef struct rn_int8_call:
        const rn_int8_layer *layer
        const float *x
        size_t x_stride, rows
        float *out
        size_t out_stride
        int activation
        const float *residual
        const float *gain
        const float *shift
        size_t residual_stride
        float eps
        float threshold
    ctypedef struct rn_int8_table:
        size_t group
        int weight_top, row_top
        size_t (*padded_width)(size_t width) nogil
        size_t (*group_bytes)(size_t depth, size_t width) nogil
        void (*pack_groups)(const float *weight, ptrdiff_t depth_stride, ptrdiff_t width_stride, size_t depth,
                            size_t width, signed char *packed, float *scale, float *offset) nogil
        int (*linear)(const rn_int8_call *call) nogil
        int (*feed_forward)(const rn_int8_call *first, const rn_int8_call *second) nogil
    const rn_int8_table *rn_int8() nogil


# Below this length a mean vector counts as zero and is not scaled up to a unit vector.
SMALLEST_LENGTH = 1e-12


cdef object aligned_floats(size_t count):
    """Zeroed float32 array that begins at a cache line."""
    whole = np.zeros(count + 16, np.float32)
    cdef size_t address = <size_t> np.PyArray_DATA(<np.ndarray> whole)
    cdef size_t skip = ((64 - address % 64) % 64) // 4
    return whole[skip:skip + count]


cdef np.ndarray rows_of(object x, str name, Py_ssize_t width):
    """x as a float32 matrix whose rows are contiguous; any distance between rows, at least a row's length."""
    cdef np.ndarray array
    if not isinstance(x, np.ndarray) or (<np.ndarray> x).descr.type_num != np.NPY_FLOAT:
        _checks.fail_type(name, "a float32 array", f"dtype {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__)
    array = x
    if array.ndim != 2 or (width >= 0 and array.shape[1] != width):
        _checks.fail(name, f"shape (rows, {width if width >= 0 else 'columns'})", (<object> array).shape)
    if not np.PyArray_ISALIGNED(array) or np.PyArray_ISBYTESWAPPED(array) or (
        array.shape[1] > 1 and array.strides[1] != 4
    ) or (array.shape[0] > 1 and (array.strides[0] < 4 * array.shape[1] or array.strides[0] % 4 != 0)):
        array = np.array(array, np.float32, order="C")
    return array


cdef np.ndarray vector_of(object x, str name, Py_ssize_t width):
    array = np.require(x, np.float32, "CA")
    if array.ndim != 1 or array.shape[0] != width:
        _checks.fail(name, f"shape ({width},)", np.shape(x))
    return array


cdef inline size_t row_stride(np.ndarray array):
    return array.strides[0] // 4 if array.shape[0] > 1 else array.shape[1]


cdef np.ndarray new_matrix(Py_ssize_t rows, Py_ssize_t columns):
    cdef np.npy_intp shape[2]
    shape[0] = rows
    shape[1] = columns
    return rn_empty(2, shape, np.NPY_FLOAT)


cdef int64_t[::1] offsets_of(object offsets, Py_ssize_t rows):
    array = np.require(_checks.integer_array(offsets, "offsets", ndim=1), np.int64, "CA")
    if array.size == 0 or array[0] != 0 or array[array.size - 1] != rows or (np.diff(array) < 0).any():
        _checks.fail("offsets", f"ascending integers from 0 to {rows}", offsets)
    return array


cdef class Linear:
    """A linear layer with its weight packed for the kernels. Made by :meth:`EncoderOps.prepare_linear`."""

    cdef readonly Py_ssize_t depth, width
    cdef np.ndarray packed, bias
    cdef const rn_gemm_table *table

    def __init__(self, weight, bias):
        weight = np.asarray(weight)
        if weight.ndim != 2:
            _checks.fail("weight", "2 dimensions", f"shape {weight.shape}")
        cdef np.ndarray source = np.require(weight, np.float32, "CA")
        self.depth = source.shape[0]
        self.width = source.shape[1]
        self.table = rn_gemm()
        cdef size_t padded = self.table.padded_width(self.width)
        self.packed = aligned_floats(self.depth * padded)
        self.bias = aligned_floats(padded)
        if bias is not None:
            (<object> self.bias)[: self.width] = vector_of(bias, "bias", self.width)
        self.table.pack(<const float *> np.PyArray_DATA(source), self.width, 1, self.depth, self.width,
                        <float *> np.PyArray_DATA(self.packed))

    cdef rn_linear_call call(self, np.ndarray x, np.ndarray out, int activation):
        cdef rn_linear_call call
        call.x = <const float *> np.PyArray_DATA(x) if x is not None else NULL
        call.x_stride = row_stride(x) if x is not None else 0
        call.rows = x.shape[0] if x is not None else 0
        call.packed = <const float *> np.PyArray_DATA(self.packed)
        call.bias = <const float *> np.PyArray_DATA(self.bias)
        call.depth = self.depth
        call.width = self.width
        call.out = <float *> np.PyArray_DATA(out) if out is not None else NULL
        call.out_stride = row_stride(out) if out is not None else 0
        call.activation = activation
        call.residual = NULL
        call.gain = NULL
        call.shift = NULL
        call.residual_stride = 0
        call.eps = 0
        return call


ACTIVATIONS = ("gelu", "gelu_tanh", "relu")


cdef int activation_of(object activation) except -1:
    if activation is None:
        return 0
    _checks.one_of(activation, "activation", ACTIVATIONS)
    return 1 + ACTIVATIONS.index(activation)


cdef np.ndarray target_of(object out, Py_ssize_t rows, Py_ssize_t columns):
    """The caller's ``out`` if results can go straight there, else a fresh matrix."""
    cdef np.ndarray array
    if out is None:
        return new_matrix(rows, columns)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        _checks.fail_type("out", "a float32 array", getattr(out, "dtype", type(out).__name__))
    array = out
    if array.ndim != 2 or array.shape[0] != rows or array.shape[1] != columns:
        _checks.fail("out", f"shape ({rows}, {columns})", out.shape)
    if not out.flags.writeable:
        _checks.fail("out", "a writeable array", "a read-only one")
    if np.PyArray_ISBEHAVED(array) and (columns <= 1 or array.strides[1] == 4) and (
        rows <= 1 or (array.strides[0] >= 4 * columns and array.strides[0] % 4 == 0)
    ):
        return array
    return new_matrix(rows, columns)


cdef object deliver(np.ndarray result, object out):
    if out is None or result is out:
        return result
    out[...] = result
    return out


cdef bint overlaps(object out, object x):
    return out is not None and np.may_share_memory(out, x)


class EncoderOps:
    """The contract that :mod:`refnorm.models` states for a backend, on the kernels.

    Matrices are float32; rows are the tokens of all sequences, one after another.
    """

    name = "fast"
    ACTIVATIONS = ACTIVATIONS

    def prepare_linear(self, weight, bias):
        """Pack ``weight (in, out)`` and ``bias (out,)`` or None for :meth:`linear`."""
        return Linear(weight, bias)

    def linear(self, x, Linear handle not None, *, activation=None, out=None):
        """``activation(x @ weight + bias)`` of ``x (rows, in)``."""
        cdef np.ndarray source = rows_of(x, "x", handle.depth)
        cdef int kind = activation_of(activation)
        cdef np.ndarray target = target_of(None if overlaps(out, x) else out, source.shape[0], handle.width)
        cdef rn_linear_call call = handle.call(source, target, kind)
        cdef int failed
        with nogil:
            failed = handle.table.linear(&call)
        if failed:
            raise MemoryError("linear: no memory for a block of rows")
        return deliver(target, out)

    def linear_residual_norm(self, x, Linear handle not None, residual, gain, bias, *, eps, out=None):
        """``layer_norm(x @ weight + bias' + residual)`` with gain and bias of the norm."""
        cdef np.ndarray source = rows_of(x, "x", handle.depth)
        cdef np.ndarray added = rows_of(residual, "residual", handle.width)
        cdef np.ndarray scale = vector_of(gain, "gain", handle.width), shift = vector_of(bias, "bias", handle.width)
        if added.shape[0] != source.shape[0]:
            _checks.fail("residual", f"shape ({source.shape[0]}, {handle.width})", np.shape(residual))
        cdef bint shared = overlaps(out, x) or overlaps(out, residual)
        cdef np.ndarray target = target_of(None if shared else out, source.shape[0], handle.width)
        cdef rn_linear_call call = handle.call(source, target, 0)
        call.residual = <const float *> np.PyArray_DATA(added)
        call.residual_stride = row_stride(added)
        call.gain = <const float *> np.PyArray_DATA(scale)
        call.shift = <const float *> np.PyArray_DATA(shift)
        call.eps = eps
        cdef int failed
        with nogil:
            failed = handle.table.linear(&call)
        if failed:
            raise MemoryError("linear_residual_norm: no memory for a block of rows")
        return deliver(target, out)

    def feed_forward(self, x, Linear first not None, Linear second not None, gain, bias, *, eps, activation="gelu",
                     out=None):
        """``layer_norm(activation(x @ w1 + b1) @ w2 + b2 + x)``; the hidden activations stay in cache."""
        cdef np.ndarray source = rows_of(x, "x", first.depth)
        if second.depth != first.width or second.width != first.depth:
            _checks.fail("second", f"a layer from {first.width} to {first.depth}", f"{second.depth} to {second.width}")
        cdef np.ndarray scale = vector_of(gain, "gain", second.width), shift = vector_of(bias, "bias", second.width)
        cdef np.ndarray target = target_of(None if overlaps(out, x) else out, source.shape[0], second.width)
        cdef rn_linear_call one = first.call(source, None, activation_of(activation))
        cdef rn_linear_call two = second.call(None, target, 0)
        two.rows = one.rows
        two.residual = one.x
        two.residual_stride = one.x_stride
        two.gain = <const float *> np.PyArray_DATA(scale)
        two.shift = <const float *> np.PyArray_DATA(shift)
        two.eps = eps
        cdef int failed
        with nogil:
            failed = first.table.feed_forward(&one, &two)
        if failed:
            raise MemoryError("feed_forward: no memory for a block of rows")
        return deliver(target, out)

    def embed(self, token_ids, position_ids, type_ids, token_table, position_table, type_table, gain, bias, *, eps):
        """Layer-normalised sum of the three embeddings of every token."""
        cdef np.ndarray word = rows_of(token_table, "token_table", -1)
        cdef Py_ssize_t hidden = word.shape[1]
        cdef np.ndarray position = rows_of(position_table, "position_table", hidden)
        cdef np.ndarray kind = rows_of(type_table, "type_table", hidden)
        if not (word.flags.c_contiguous and position.flags.c_contiguous and kind.flags.c_contiguous):
            word, position, kind = np.ascontiguousarray(word), np.ascontiguousarray(position), np.ascontiguousarray(kind)
        cdef np.ndarray words = np.require(_checks.integer_array(token_ids, "token_ids", ndim=1, low=0, high=word.shape[0] - 1), np.int64, "CA")
        cdef np.ndarray places = np.require(_checks.integer_array(position_ids, "position_ids", ndim=1, low=0, high=position.shape[0] - 1), np.int64, "CA")
        cdef np.ndarray kinds = np.require(_checks.integer_array(type_ids, "type_ids", ndim=1, low=0, high=kind.shape[0] - 1), np.int64, "CA")
        _checks.shape(places, "position_ids", (words.shape[0],))
        _checks.shape(kinds, "type_ids", (words.shape[0],))
        cdef np.ndarray scale = vector_of(gain, "gain", hidden), shift = vector_of(bias, "bias", hidden)
        cdef np.ndarray target = new_matrix(words.shape[0], hidden)
        cdef float small = eps
        with nogil:
            rn_gemm().embed(<const int64_t *> np.PyArray_DATA(words), <const int64_t *> np.PyArray_DATA(places),
                            <const int64_t *> np.PyArray_DATA(kinds), words.shape[0],
                            <const float *> np.PyArray_DATA(word), <const float *> np.PyArray_DATA(position),
                            <const float *> np.PyArray_DATA(kind), hidden, <const float *> np.PyArray_DATA(scale),
                            <const float *> np.PyArray_DATA(shift), small, <float *> np.PyArray_DATA(target))
        return target

    def attention(self, query, key, value, offsets, heads, *, scale=None, out=None):
        """Softmax attention of ``heads`` heads within each sequence ``[offsets[i], offsets[i + 1])``."""
        cdef np.ndarray q = rows_of(query, "query", -1)
        cdef np.ndarray k = rows_of(key, "key", q.shape[1]), v = rows_of(value, "value", q.shape[1])
        if k.shape[0] != q.shape[0] or v.shape[0] != q.shape[0]:
            _checks.fail("key", f"as many rows as query, {q.shape[0]}", f"{k.shape[0]}, value {v.shape[0]}")
        cdef Py_ssize_t count = _checks.whole(heads, "heads", low=1)
        if q.shape[1] % count != 0:
            _checks.fail("heads", f"a divisor of {q.shape[1]} columns", heads)
        cdef size_t depth = q.shape[1] // count
        cdef int64_t[::1] bounds = offsets_of(offsets, q.shape[0])
        cdef bint shared = overlaps(out, query) or overlaps(out, key) or overlaps(out, value)
        cdef np.ndarray target = target_of(None if shared else out, q.shape[0], q.shape[1])
        cdef double factor = scale if scale is not None else 1.0 / np.sqrt(depth)
        cdef ptrdiff_t q_stride = row_stride(q), k_stride = row_stride(k), v_stride = row_stride(v)
        cdef ptrdiff_t out_stride = row_stride(target)
        cdef int failed
        with nogil:
            failed = rn_attention().packed_f32(
                <const float *> np.PyArray_DATA(q), <const float *> np.PyArray_DATA(k),
                <const float *> np.PyArray_DATA(v), q_stride, k_stride, v_stride, &bounds[0], bounds.shape[0] - 1,
                count, depth, factor, <float *> np.PyArray_DATA(target), out_stride)
        if failed:
            raise MemoryError("attention: no memory for the keys and values of a sequence")
        return deliver(target, out)

    def mean_pool_normalize(self, x, offsets):
        """Unit vectors along the mean of each sequence's rows."""
        cdef np.ndarray source = rows_of(x, "x", -1)
        cdef int64_t[::1] bounds = offsets_of(offsets, source.shape[0])
        cdef np.ndarray target = new_matrix(bounds.shape[0] - 1, source.shape[1])
        if (np.diff(bounds) == 0).any():
            _checks.fail("offsets", "at least one row for each text", offsets)
        cdef double floor = SMALLEST_LENGTH
        cdef size_t stride = row_stride(source)
        with nogil:
            rn_gemm().mean_pool(<const float *> np.PyArray_DATA(source), stride, &bounds[0],
                                bounds.shape[0] - 1, source.shape[1], floor, <float *> np.PyArray_DATA(target))
        return target


cdef class Int8Linear:
    """A linear layer with its weight in int8, in groups of the depth that have scales of their own.

    Made by :meth:`Int8EncoderOps.prepare_linear`.
    """

    cdef readonly Py_ssize_t depth, width
    cdef object packed, scale, offset, bias
    cdef const rn_int8_table *table
    cdef rn_int8_layer layer

    def __init__(self, weight, bias):
        weight = np.asarray(weight)
        if weight.ndim != 2:
            _checks.fail("weight", "2 dimensions", f"shape {weight.shape}")
        _checks.finite(weight, "weight")
        cdef np.ndarray source = np.require(weight, np.float32, "CA")
        self.depth = source.shape[0]
        self.width = source.shape[1]
        self.table = rn_int8()
        cdef size_t padded = self.table.padded_width(self.width)
        cdef size_t groups = max(1, (self.depth + self.table.group - 1) // self.table.group)
        self.packed = aligned_floats((self.table.group_bytes(self.depth, self.width) + 3) // 4)
        self.scale = aligned_floats(groups * padded)
        self.offset = aligned_floats(groups * padded)
        self.bias = aligned_floats(padded)
        if bias is not None:
            self.bias[: self.width] = vector_of(bias, "bias", self.width)
        self.table.pack_groups(
            <const float *> np.PyArray_DATA(source), self.width, 1, self.depth, self.width,
            <signed char *> np.PyArray_DATA(<np.ndarray> self.packed),
            <float *> np.PyArray_DATA(<np.ndarray> self.scale), <float *> np.PyArray_DATA(<np.ndarray> self.offset))
        self.layer.packed = <const signed char *> np.PyArray_DATA(<np.ndarray> self.packed)
        self.layer.scale = <const float *> np.PyArray_DATA(<np.ndarray> self.scale)
        self.layer.offset = <const float *> np.PyArray_DATA(<np.ndarray> self.offset)
        self.layer.bias = <const float *> np.PyArray_DATA(<np.ndarray> self.bias)
        self.layer.depth = self.depth
        self.layer.width = self.width

    @property
    def nbytes(self):
        """Bytes of the packed weight with its scales."""
        return self.packed.nbytes + self.scale.nbytes + self.offset.nbytes + self.bias.nbytes

    cdef rn_int8_call call(self, np.ndarray x, np.ndarray out, int activation, float threshold):
        cdef rn_int8_call call
        call.layer = &self.layer
        call.x = <const float *> np.PyArray_DATA(x) if x is not None else NULL
        call.x_stride = row_stride(x) if x is not None else 0
        call.rows = x.shape[0] if x is not None else 0
        call.out = <float *> np.PyArray_DATA(out) if out is not None else NULL
        call.out_stride = row_stride(out) if out is not None else 0
        call.activation = activation
        call.residual = NULL
        call.gain = NULL
        call.shift = NULL
        call.residual_stride = 0
        call.eps = 0
        call.threshold = threshold
        return call


class Int8EncoderOps(EncoderOps):
    """:class:`EncoderOps` with its linear layers in int8.

    A weight is quantized once, in groups of 128 inputs (384 where the processor multiplies
    bytes in 8 bits without loss) with one scale for each output; rows of activations are
    quantized as they come, in the same groups, with a scale and an offset of their own. Entries of magnitude
    ``threshold`` or more do not widen a group's range: what their level leaves of them is multiplied in float
    (the decomposition of LLM.int8(), row by row, so that a text's embedding does not depend on its company).
    Attention, norms and sums stay in float32.

    Parameters
    ----------
    threshold : float >= 0
        0 switches the decomposition off.
    """

    name = "fast-int8"

    def __init__(self, *, threshold=6.0):
        _checks.non_negative(threshold, "threshold")
        self.threshold = float(threshold)

    def prepare_linear(self, weight, bias):
        """Quantize and pack ``weight (in, out)`` and ``bias (out,)`` or None for :meth:`linear`."""
        return Int8Linear(weight, bias)

    def linear(self, x, Int8Linear handle not None, *, activation=None, out=None):
        """``activation(x @ weight + bias)`` of ``x (rows, in)``."""
        cdef np.ndarray source = rows_of(x, "x", handle.depth)
        cdef int kind = activation_of(activation)
        cdef np.ndarray target = target_of(None if overlaps(out, x) else out, source.shape[0], handle.width)
        cdef rn_int8_call call = handle.call(source, target, kind, self.threshold)
        cdef int failed
        with nogil:
            failed = handle.table.linear(&call)
        if failed:
            raise MemoryError("linear: no memory for a block of rows")
        return deliver(target, out)

    def linear_residual_norm(self, x, Int8Linear handle not None, residual, gain, bias, *, eps, out=None):
        """``layer_norm(x @ weight + bias' + residual)`` with gain and bias of the norm."""
        cdef np.ndarray source = rows_of(x, "x", handle.depth)
        cdef np.ndarray added = rows_of(residual, "residual", handle.width)
        cdef np.ndarray scale = vector_of(gain, "gain", handle.width), shift = vector_of(bias, "bias", handle.width)
        if added.shape[0] != source.shape[0]:
            _checks.fail("residual", f"shape ({source.shape[0]}, {handle.width})", np.shape(residual))
        cdef bint shared = overlaps(out, x) or overlaps(out, residual)
        cdef np.ndarray target = target_of(None if shared else out, source.shape[0], handle.width)
        cdef rn_int8_call call = handle.call(source, target, 0, self.threshold)
        call.residual = <const float *> np.PyArray_DATA(added)
        call.residual_stride = row_stride(added)
        call.gain = <const float *> np.PyArray_DATA(scale)
        call.shift = <const float *> np.PyArray_DATA(shift)
        call.eps = eps
        cdef int failed
        with nogil:
            failed = handle.table.linear(&call)
        if failed:
            raise MemoryError("linear_residual_norm: no memory for a block of rows")
        return deliver(target, out)

    def feed_forward(self, x, Int8Linear first not None, Int8Linear second not None, gain, bias, *, eps,
                     activation="gelu", out=None):
        """``layer_norm(activation(x @ w1 + b1) @ w2 + b2 + x)``; the hidden activations stay in cache."""
        cdef np.ndarray source = rows_of(x, "x", first.depth)
        if second.depth != first.width or second.width != first.depth:
            _checks.fail("second", f"a layer from {first.width} to {first.depth}", f"{second.depth} to {second.width}")
        cdef np.ndarray scale = vector_of(gain, "gain", second.width), shift = vector_of(bias, "bias", second.width)
        cdef np.ndarray target = target_of(None if overlaps(out, x) else out, source.shape[0], second.width)
        cdef rn_int8_call one = first.call(source, None, activation_of(activation), self.threshold)
        cdef rn_int8_call two = second.call(None, target, 0, self.threshold)
        two.rows = one.rows
        two.residual = one.x
        two.residual_stride = one.x_stride
        two.gain = <const float *> np.PyArray_DATA(scale)
        two.shift = <const float *> np.PyArray_DATA(shift)
        two.eps = eps
        cdef int failed
        with nogil:
            failed = first.table.feed_forward(&one, &two)
        if failed:
            raise MemoryError("feed_forward: no memory for a block of rows")
        return deliver(target, out)


BACKENDS = {"fast": EncoderOps, "fast-int8": Int8EncoderOps}


def ops(backend="fast"):
    """The encoder's operations of a backend.

    Parameters
    ----------
    backend : {"fast", "fast-int8"}
        Linear layers in float32, or in int8 (:class:`Int8EncoderOps`).

    Returns
    -------
    EncoderOps

    Examples
    --------
    >>> ops("fast-int8").name
    'fast-int8'
    """
    _checks.one_of(backend, "backend", tuple(BACKENDS))
    return BACKENDS[backend]()
