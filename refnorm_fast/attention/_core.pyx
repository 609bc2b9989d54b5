"""Attention: checks and layout; the arithmetic is in _kernels/attention.c."""

import math

import numpy

cimport numpy as np
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

np.import_array()

include "../_kernels/rows.pxi"

from refnorm._arrays import sum_to
from refnorm.attention._multi_head import merge_heads, split_heads
from refnorm.attention._scaled_dot_product import allowed_pairs
from refnorm.attention._sigmoid_attention import score_addend, score_bias, sigmoid_bias
from refnorm_fast.nn._core import linear, linear_vjp

cdef extern from "attention.h":
    ctypedef struct rn_attention_item:
        const void *query
        const void *key
        const void *value
        void *out
        size_t length, keys, depth, width
        ptrdiff_t query_stride, key_stride, value_stride, out_stride
        double scale
        const uint8_t *mask
        ptrdiff_t mask_row, mask_key
        int causal
        ptrdiff_t causal_shift
        void *statistics
        const void *row_bias
        ptrdiff_t row_bias_stride
        const void *pair_bias
        ptrdiff_t pair_bias_row, pair_bias_key
    ctypedef struct rn_attention_cotangents:
        rn_attention_item item
        const void *dy
        ptrdiff_t dy_stride
        void *dquery
        void *dkey
        void *dvalue
        void *drow_bias
        void *dpair_bias
    ctypedef struct rn_attention_table:
        int (*items_f32)(const rn_attention_item *items, size_t count) nogil
        int (*items_f64)(const rn_attention_item *items, size_t count) nogil
        int (*backward_f32)(const rn_attention_cotangents *items, size_t count) nogil
        int (*backward_f64)(const rn_attention_cotangents *items, size_t count) nogil
    const rn_attention_table *rn_attention() nogil


cdef np.ndarray _rows_adjacent(array):
    """`array`, or a copy of it if the entries of a row are not adjacent or strides are no whole entries."""
    cdef np.ndarray given = array
    cdef int i, ndim = given.ndim
    cdef bint fits = given.shape[ndim - 1] <= 1 or given.strides[ndim - 1] == np.PyArray_ITEMSIZE(given)
    for i in range(ndim - 1):
        if given.strides[i] % np.PyArray_ITEMSIZE(given) != 0:
            fits = False
    return given if fits else _in_order(given)


def scaled_dot_product_attention(query, key, value, *, mask=None, causal=False, scale=None, out=None):
    """Average the values, each query weighing them by its likeness to their keys.

    See :func:`refnorm.attention.scaled_dot_product_attention`, whose arguments and errors these are.

    Parameters
    ----------
    query : array (..., L, E)
    key : array (..., S, E)
    value : array (..., S, V)
        Leading axes broadcast. float32 or float64.
    mask : boolean array, broadcastable to (..., L, S), optional
        True where the query may attend to the key.
    causal : bool
        Query ``i`` attends to keys ``0 .. i`` only.
    scale : float > 0, optional
        ``1 / sqrt(E)`` by default.
    out : array (..., L, V), optional
        Receives the result; may overlap the arguments.

    Notes
    -----
    No score matrix is stored: blocks of at most 512 keys pass through the first-level cache, with the online
    softmax. Where the causal rule excludes a block of keys altogether, its values are not read, so NaN in them does
    not spread as it does in the reference.

    Examples
    --------
    >>> import numpy as np
    >>> query, key = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> scaled_dot_product_attention(query, key, np.array([[2.0], [4.0]]))
    array([[3.]])
    """
    if _on_gpu(query):
        return _dispatch.call("attention.scaled_dot_product_attention", out, query, key, value, mask=mask,
                              causal=causal, scale=scale)
    query, key, value, mask, scale, lead = _checked(query, key, value, mask, scale)
    shape = (*lead, query.shape[query.ndim - 2], value.shape[value.ndim - 1])
    _check_result(out, shape, query.dtype)
    direct = _writes_directly(out, query, key, value, mask)
    result = out if direct else numpy.empty(shape, query.dtype)
    if result.size:
        _attend(query, key, value, mask, bool(causal), scale, result, lead, None, None, None)
    if out is None or direct:
        return result
    out[...] = result
    return out


cdef _check_result(out, shape, dtype):
    """Raise unless `out` is None or can take a result of that shape and dtype."""
    if out is None or (type(out) is numpy.ndarray and out.dtype is dtype and out.shape == shape and out.flags.writeable):
        return
    _check_out(out, numpy.broadcast_to(dtype.type(0), shape))


cdef _broadcast(array, lead):
    """`array` with the leading axes `lead` before its last two."""
    shape = array.shape
    return array if shape[:len(shape) - 2] == lead else numpy.broadcast_to(array, (*lead, *shape[len(shape) - 2:]))


cdef bint _writes_directly(out, query, key, value, mask, row_bias=None, pair_bias=None):
    """Whether the kernel can write to `out` while it reads the arguments."""
    if out is None or not out.flags.c_contiguous or not out.flags.aligned:
        return False
    for array in (query, key, value, mask, row_bias, pair_bias):
        if array is not None and not _apart(out, array):
            return False
    return True


def scaled_dot_product_attention_vjp(query, key, value, *, mask=None, causal=False, scale=None):
    """Return :func:`scaled_dot_product_attention` and its pullback ``dy -> (dquery, dkey, dvalue)``.

    Notes
    -----
    No score matrix is kept for the pullback, only two numbers a query and the result: the scores are computed again, block by
    block.
    """
    if _on_gpu(query):
        return _dispatch.call("attention.scaled_dot_product_attention_vjp", None, query, key, value, mask=mask,
                              causal=causal, scale=scale)
    query, key, value, mask, scale, lead = _checked(query, key, value, mask, scale)
    given = query, key, value
    # In lines of memory, as the reference does: the pullback reads them again.
    query, key, value = _in_order(query), _in_order(key), _in_order(value)
    y = numpy.empty((*lead, query.shape[query.ndim - 2], value.shape[value.ndim - 1]), query.dtype)
    # Even a row that the kernel never reaches (no values, no heads) has statistics: those of a row without keys.
    statistics = numpy.zeros((*y.shape[:y.ndim - 1], 2), y.dtype)
    if y.size:
        _attend(query, key, value, mask, bool(causal), scale, y, lead, statistics, None, None)
    kept = y.copy()

    def pullback(dy):
        cotangent = _in_order(numpy.asarray(dy, dtype=y.dtype))
        _checks.shape(cotangent, "dy", y.shape)
        totals = [numpy.zeros((*lead, *array.shape[array.ndim - 2:]), y.dtype) for array in given]
        if y.size and totals[1].size:
            _attend_backward(query, key, value, mask, bool(causal), scale, kept, lead, cotangent, totals[0], totals[1],
                             totals[2], statistics, None, None, None, None)
        return tuple(sum_to(total, array.shape) for total, array in zip(totals, given))

    return y, pullback


cdef _checked(query, key, value, mask, scale):
    """The arguments as arrays, the mask broadcast to all scores, the scale, and the common leading axes."""
    query, key, value = _float_array(query, "query"), _float_array(key, "key"), _float_array(value, "value")
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 2:
            _checks.float_array(array, name, min_ndim=2)
        if array.dtype is not query.dtype:
            _checks.same_dtype("query", query, **{name: array})
    _checks.not_empty(query, "query", (query.ndim - 1,))
    _checks.shape(key, "key", (*key.shape[:key.ndim - 1], query.shape[query.ndim - 1]))
    _checks.shape(value, "value", (*value.shape[:value.ndim - 2], key.shape[key.ndim - 2], value.shape[value.ndim - 1]))
    leads = [array.shape[:array.ndim - 2] for array in (query, key, value)]
    lead = leads[0]
    if leads[1] != lead or leads[2] != lead:
        try:
            lead = numpy.broadcast_shapes(*leads)
        except ValueError:
            _checks.fail("query, key, value", "leading axes that broadcast", " and ".join(map(str, leads)))
    if scale is None:
        scale = 1 / math.sqrt(query.shape[query.ndim - 1])
    _checks.positive(scale, "scale")
    cdef Py_ssize_t length = query.shape[query.ndim - 2], keys = key.shape[key.ndim - 2]
    if mask is not None:
        mask = numpy.asarray(mask)
        if mask.dtype != numpy.bool_:
            _checks.fail_type("mask", "a boolean array (True: may attend)", f"dtype {mask.dtype}")
        try:
            mask = numpy.broadcast_to(mask, (*lead, length, keys))
        except ValueError:
            _checks.fail("mask", f"a shape that broadcasts to {(*lead, length, keys)}", mask.shape)
    return query, key, value, mask, scale, lead


cdef Py_ssize_t _product(lead):
    cdef Py_ssize_t count = 1
    for size in lead:
        count *= size
    return count


cdef _fill(rn_attention_item *items, query, key, value, mask, bint causal, double scale, result, lead, statistics,
           row_bias, pair_bias):
    """Describe every head: where its rows are and how far apart. The arrays must outlive the description."""
    cdef Py_ssize_t count = _product(lead), i, d
    cdef int ndim = len(lead)
    cdef np.ndarray q = _broadcast(query, lead)
    cdef np.ndarray k = _broadcast(key, lead)
    cdef np.ndarray v = _broadcast(value, lead)
    cdef np.ndarray y = result, allowed = mask
    cdef Py_ssize_t item = np.PyArray_ITEMSIZE(q), rest, index
    cdef np.ndarray rows = row_bias, pairs = pair_bias
    # One number for all rows has no axes.
    cdef np.npy_intp *row_strides = rows.strides if row_bias is not None and rows.ndim else NULL
    cdef char *places[7]
    cdef char *kept = NULL if statistics is None else <char *> np.PyArray_DATA(<np.ndarray> statistics)
    for i in range(count):
        places[0] = <char *> np.PyArray_DATA(q)
        places[1] = <char *> np.PyArray_DATA(k)
        places[2] = <char *> np.PyArray_DATA(v)
        places[3] = <char *> np.PyArray_DATA(y)
        places[4] = <char *> np.PyArray_DATA(allowed) if mask is not None else NULL
        places[5] = <char *> np.PyArray_DATA(rows) if row_bias is not None else NULL
        places[6] = <char *> np.PyArray_DATA(pairs) if pair_bias is not None else NULL
        rest = i
        for d in range(ndim - 1, -1, -1):
            index = rest % y.shape[d]
            rest //= y.shape[d]
            places[0] += index * q.strides[d]
            places[1] += index * k.strides[d]
            places[2] += index * v.strides[d]
            places[3] += index * y.strides[d]
            if mask is not None:
                places[4] += index * allowed.strides[d]
            if row_strides != NULL:
                places[5] += index * row_strides[d]
            if pair_bias is not None:
                places[6] += index * pairs.strides[d]
        items[i].query = places[0]
        items[i].key = places[1]
        items[i].value = places[2]
        items[i].out = places[3]
        items[i].length = q.shape[ndim]
        items[i].keys = k.shape[ndim]
        items[i].depth = q.shape[ndim + 1]
        items[i].width = v.shape[ndim + 1]
        items[i].query_stride = q.strides[ndim] // item
        items[i].key_stride = k.strides[ndim] // item
        items[i].value_stride = v.strides[ndim] // item
        items[i].out_stride = y.strides[ndim] // item
        items[i].scale = scale
        items[i].mask = <const uint8_t *> places[4]
        items[i].mask_row = allowed.strides[ndim] if mask is not None else 0
        items[i].mask_key = allowed.strides[ndim + 1] if mask is not None else 0
        items[i].causal = causal
        items[i].causal_shift = 0
        items[i].statistics = NULL if kept == NULL else kept + i * 2 * items[i].length * item
        items[i].row_bias = places[5]
        items[i].row_bias_stride = 0 if row_strides == NULL else row_strides[ndim] // item
        items[i].pair_bias = places[6]
        items[i].pair_bias_row = pairs.strides[ndim] // item if pair_bias is not None else 0
        items[i].pair_bias_key = pairs.strides[ndim + 1] // item if pair_bias is not None else 0


cdef bint _shared(array):
    """Whether all heads of the last leading axis read the same matrix."""
    return array.ndim == 2 or array.shape[array.ndim - 3] == 1


cdef _attend(query, key, value, mask, bint causal, double scale, result, lead, statistics, row_bias, pair_bias):
    if query.shape[query.ndim - 2] == 1 and not causal and lead and lead[len(lead) - 1] > 1 and _shared(key) and _shared(value):
        # One query each of several heads on the same keys: as the rows of one head they read the keys once.
        query, result = _broadcast(query, lead).swapaxes(-2, -3), result.swapaxes(-2, -3)
        mask = None if mask is None else mask.swapaxes(-2, -3)
        row_bias = row_bias.swapaxes(-1, -2) if row_bias is not None and row_bias.ndim else row_bias
        pair_bias = None if pair_bias is None else pair_bias.swapaxes(-2, -3)
        lead = (*lead[:len(lead) - 1], 1)
    cdef Py_ssize_t count = _product(lead)
    cdef rn_attention_item *items = <rn_attention_item *> malloc(count * sizeof(rn_attention_item))
    if items == NULL:
        raise MemoryError("attention: no memory for the list of heads")
    query, key, value = _rows_adjacent(query), _rows_adjacent(key), _rows_adjacent(value)
    _fill(items, query, key, value, mask, causal, scale, result, lead, statistics, row_bias, pair_bias)
    cdef bint single = np.PyArray_TYPE(<np.ndarray> query) == np.NPY_FLOAT
    cdef int failed
    with nogil:
        failed = rn_attention().items_f32(items, count) if single else rn_attention().items_f64(items, count)
        free(items)
    if failed:
        raise MemoryError("attention: no memory for the keys and values of a head")


cdef _attend_backward(query, key, value, mask, bint causal, double scale, y, lead, np.ndarray dy,
                      np.ndarray dquery, np.ndarray dkey, np.ndarray dvalue, statistics, row_bias, pair_bias,
                      drow_bias, dpair_bias):
    """Write the cotangents of the broadcast arguments; all arrays but the mask and the biases are contiguous."""
    cdef np.ndarray drows = drow_bias, dpairs = dpair_bias
    cdef Py_ssize_t count = _product(lead), i, item = np.PyArray_ITEMSIZE(dy)
    cdef rn_attention_item *items = <rn_attention_item *> malloc(count * sizeof(rn_attention_item))
    cdef rn_attention_cotangents *heads = <rn_attention_cotangents *> malloc(count * sizeof(rn_attention_cotangents))
    if items == NULL or heads == NULL:
        free(items)
        free(heads)
        raise MemoryError("attention: no memory for the list of heads")
    _fill(items, query, key, value, mask, causal, scale, y, lead, statistics, row_bias, pair_bias)
    for i in range(count):
        heads[i].item = items[i]
        heads[i].dy = <char *> np.PyArray_DATA(dy) + i * items[i].length * items[i].width * item
        heads[i].dy_stride = items[i].width
        heads[i].dquery = <char *> np.PyArray_DATA(dquery) + i * items[i].length * items[i].depth * item
        heads[i].dkey = <char *> np.PyArray_DATA(dkey) + i * items[i].keys * items[i].depth * item
        heads[i].dvalue = <char *> np.PyArray_DATA(dvalue) + i * items[i].keys * items[i].width * item
        heads[i].drow_bias = NULL
        heads[i].dpair_bias = NULL
        if drow_bias is not None:
            heads[i].drow_bias = <char *> np.PyArray_DATA(drows) + i * items[i].length * item
        if dpair_bias is not None:
            heads[i].dpair_bias = <char *> np.PyArray_DATA(dpairs) + i * items[i].length * items[i].keys * item
    cdef bint single = np.PyArray_TYPE(dy) == np.NPY_FLOAT
    cdef int failed
    with nogil:
        failed = rn_attention().backward_f32(heads, count) if single else rn_attention().backward_f64(heads, count)
        free(items)
        free(heads)
    if failed:
        raise MemoryError("attention: no memory for the blocks of a head")


def sigmoid_attention(query, key, value, *, bias="-log_n", attn_bias=None, mask=None, causal=False, scale=None, block=None,
                      out=None):
    """Add up the values, each weighed by the probability that its key fits the query.

    See :func:`refnorm.attention.sigmoid_attention`, whose arguments and errors these are.

    Parameters
    ----------
    query : array (..., L, E)
    key : array (..., S, E)
    value : array (..., S, V)
        Leading axes broadcast. float32 or float64; ``S`` is at least 1.
    bias : "-log_n", "per_row", number, or array that broadcasts to (..., L, S)
        Added to the scores.
    attn_bias : array, broadcastable to (..., L, S), optional
        Added to the scores too.
    mask : boolean array, broadcastable to (..., L, S), optional
        True where the query may attend to the key.
    causal : bool
        Query ``i`` attends to keys ``0 .. i`` only.
    scale : float > 0, optional
        ``1 / sqrt(E)`` by default.
    block : int >= 1, optional
        Without effect: the kernel always works block by block, and chooses the size by itself.
    out : array (..., L, V), optional
        Receives the result; may overlap the arguments.

    Notes
    -----
    No score matrix is stored. Where the causal rule excludes a block of keys altogether, its values are not read, so NaN
    in them does not spread as it does in the reference. Weights below ``2^-125`` in float32, ``exp(-700)`` in float64, are 0.

    Examples
    --------
    >>> import numpy as np
    >>> query, key = np.array([[1.0]]), np.array([[0.0], [np.log(2)]])
    >>> sigmoid_attention(query, key, np.array([[1.0], [2.0]])).round(4)
    array([[1.3333]])
    """
    query, key, value, mask, scale, lead = _checked(query, key, value, mask, scale)
    rows, pairs = _score_biases(bias, attn_bias, mask, causal, query, key, lead)
    if block is not None:
        _checks.whole(block, "block", low=1)
    shape = (*lead, query.shape[query.ndim - 2], value.shape[value.ndim - 1])
    _check_result(out, shape, query.dtype)
    direct = _writes_directly(out, query, key, value, mask, rows, pairs)
    result = out if direct else numpy.empty(shape, query.dtype)
    if result.size:
        _attend(query, key, value, mask, bool(causal), scale, result, lead, None, rows, pairs)
    if out is None or direct:
        return result
    out[...] = result
    return out


def sigmoid_attention_vjp(query, key, value, *, bias="-log_n", attn_bias=None, mask=None, causal=False, scale=None, block=None):
    """Return :func:`sigmoid_attention` and its pullback ``dy -> (dquery, dkey, dvalue)``, followed by the cotangents of
    ``bias`` and ``attn_bias`` where these are arrays.

    Notes
    -----
    Nothing but the arguments is kept for the pullback: scores are computed again, block by block. Only a bias with an
    entry for every key costs an array of all scores' cotangents.
    """
    query, key, value, mask, scale, lead = _checked(query, key, value, mask, scale)
    rows, pairs = _score_biases(bias, attn_bias, mask, causal, query, key, lead)
    if block is not None:
        _checks.whole(block, "block", low=1)
    given = query, key, value
    query, key, value = _in_order(query), _in_order(key), _in_order(value)
    cdef Py_ssize_t length = query.shape[query.ndim - 2], keys = key.shape[key.ndim - 2]
    y = numpy.empty((*lead, length, value.shape[value.ndim - 1]), query.dtype)
    if y.size:
        _attend(query, key, value, mask, bool(causal), scale, y, lead, None, rows, pairs)
    biases = [array.shape for array in (bias, attn_bias) if isinstance(array, numpy.ndarray)]
    # What the caller does to a bias afterwards is not the pullback's business.
    rows, pairs = _kept(rows, bias, attn_bias), _kept(pairs, bias, attn_bias)

    def pullback(dy):
        cotangent = _in_order(numpy.asarray(dy, dtype=y.dtype))
        _checks.shape(cotangent, "dy", y.shape)
        totals = [numpy.zeros((*lead, *array.shape[array.ndim - 2:]), y.dtype) for array in given]
        by_row = [_same_for_all_keys(shape) for shape in biases]
        drows = numpy.zeros((*lead, length, 1), y.dtype) if any(by_row) else None
        dpairs = None if all(by_row) else numpy.zeros((*lead, length, keys), y.dtype)
        if y.size:
            _attend_backward(query, key, value, mask, bool(causal), scale, y, lead, cotangent, totals[0], totals[1],
                             totals[2], None, rows, pairs, drows, dpairs)
        return (
            *(sum_to(total, array.shape) for total, array in zip(totals, given)),
            *(sum_to(drows if short else dpairs, shape) for short, shape in zip(by_row, biases)),
        )

    return y, pullback


cdef bint _same_for_all_keys(shape):
    return len(shape) == 0 or shape[len(shape) - 1] == 1


cdef _kept(array, bias, attn_bias):
    """`array`, or a copy of what it shows of a caller's array, in the same shape."""
    if array is None or all(_apart(array, given) for given in (bias, attn_bias) if isinstance(given, numpy.ndarray)):
        return array
    # An axis of stride 0 repeats one entry.
    once = tuple(slice(None) if stride else slice(1) for stride in array.strides)
    return numpy.broadcast_to(array[once].copy(), array.shape)


cdef _score_biases(bias, attn_bias, mask, causal, query, key, lead):
    """What is added to the scores: one number or an array (*lead, L) and, if anything differs between keys, one
    (*lead, L, S)."""
    cdef Py_ssize_t length = query.shape[query.ndim - 2], keys = key.shape[key.ndim - 2]
    _checks.not_empty(key, "key", (key.ndim - 2,))
    shape = (*lead, length, keys)
    if attn_bias is None and isinstance(bias, str) and bias == "-log_n":
        return numpy.array(-math.log(keys), query.dtype), None
    if isinstance(bias, str) and bias == "per_row" and mask is None and causal:
        added = sigmoid_bias(numpy.arange(1, length + 1).clip(max=keys)[:, None]).astype(query.dtype)
    else:
        needs_pairs = isinstance(bias, str) and bias == "per_row" and mask is not None
        added = score_bias(bias, allowed_pairs(mask, causal, shape) if needs_pairs else None, shape, query)
    pairs = None if attn_bias is None else score_addend(attn_bias, "attn_bias", shape, query)
    if not _same_for_all_keys(added.shape):
        pairs = added if pairs is None else added + pairs
        added = numpy.zeros((), query.dtype)
    rows = _in_order(numpy.asarray(added[..., 0] if added.ndim else added))
    if added.ndim:
        rows = numpy.broadcast_to(rows, (*lead, length))
    return rows, None if pairs is None else numpy.broadcast_to(_in_order(pairs), shape)


def multi_head_attention(x, weight_in, bias_in, weight_out, bias_out, *, heads, lengths=None, mask=None, causal=False,
                         scale=None):
    """Let every position of a sequence look at the others, in several subspaces at once.

    See :func:`refnorm.attention.multi_head_attention`, whose arguments and errors these are.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> weight_in = np.hstack([np.zeros((2, 4)), np.eye(2)])
    >>> multi_head_attention(x, weight_in, None, np.eye(2), None, heads=2, lengths=np.array([2]))
    array([[[2., 3.],
            [2., 3.],
            [0., 0.]]])
    """
    x, weight_in, mask = _sequences(x, weight_in, heads, lengths, mask)
    sequences, positions = x.shape[:2]
    projected = linear(x, weight_in, bias_in)
    depth = weight_in.shape[1] // (3 * heads)
    query, key, value = projected.reshape(sequences, positions, 3, heads, depth).transpose(2, 0, 3, 1, 4)
    merged = numpy.empty((sequences, positions, heads * depth), x.dtype)
    context = scaled_dot_product_attention(query, key, value, mask=mask, causal=causal, scale=scale)
    merged.reshape(sequences, positions, heads, depth)[...] = context.transpose(0, 2, 1, 3)
    return linear(merged, weight_out, bias_out)


def multi_head_attention_vjp(x, weight_in, bias_in, weight_out, bias_out, *, heads, lengths=None, mask=None,
                             causal=False, scale=None):
    """Return :func:`multi_head_attention` and its pullback; see :func:`refnorm.attention.multi_head_attention_vjp`."""
    x, weight_in, mask = _sequences(x, weight_in, heads, lengths, mask)
    projected, project_pullback = linear_vjp(x, weight_in, bias_in)
    query, key, value = split_heads(projected, heads)
    context, attention_pullback = scaled_dot_product_attention_vjp(query, key, value, mask=mask, causal=causal, scale=scale)
    sequences, positions = x.shape[:2]
    width = weight_in.shape[1] // 3
    merged = context.transpose(0, 2, 1, 3).reshape(sequences, positions, width)
    y, out_pullback = linear_vjp(merged, weight_out, bias_out)

    def pullback(dy):
        dmerged, dweight_out, dbias_out = out_pullback(dy)
        dcontext = dmerged.reshape(sequences, positions, heads, width // heads).transpose(0, 2, 1, 3)
        dx, dweight_in, dbias_in = project_pullback(merge_heads(*attention_pullback(dcontext)))
        return dx, dweight_in, dbias_in, dweight_out, dbias_out

    return y, pullback


def _sequences(x, weight_in, heads, lengths, mask):
    """The input, the weight and the mask that keeps every sequence to itself."""
    x = _checks.float_array(x, "x", ndim=3)
    weight_in = _checks.float_array(weight_in, "weight_in", ndim=2)
    heads = _checks.whole(heads, "heads", low=1)
    if weight_in.shape[1] % (3 * heads) or not weight_in.shape[1]:
        _checks.fail("weight_in", f"a positive multiple of 3 heads = {3 * heads} columns", weight_in.shape)
    sequences, positions = x.shape[:2]
    inside = None
    if lengths is not None:
        ends = _checks.integer_array(lengths, "lengths", ndim=1, low=0, high=positions)
        _checks.shape(ends, "lengths", (sequences,))
        present = numpy.arange(positions) < ends[:, None]
        inside = present[:, None, :, None] & present[:, None, None, :]
    if inside is not None:
        mask = inside if mask is None else inside & mask
    return x, weight_in, mask
