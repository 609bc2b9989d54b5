"""Scaled dot-product attention on a GPU, without a matrix of scores in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Pullback
from refnorm_fast.cuda._arrays import array, cotangent, empty, empty_like, float_array, number, run, run_elements
from refnorm_fast.cuda._device import device

__all__ = ["scaled_dot_product_attention", "scaled_dot_product_attention_vjp"]

ROWS, OTHERS, COLUMNS = 16, 32, 128
"""Sizes of a block's tiles, as in the kernels: its rows, the others it walks over, and columns of the result."""

BLOCK = (32, 8, 1)


class _Attention:
    """One call: checked arguments, the batches that belong together, and the launches."""

    def __init__(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float | None) -> None:
        query = float_array(query, "query", min_ndim=2)
        key, value = float_array(key, "key", min_ndim=2), float_array(value, "value", min_ndim=2)
        _checks.same_dtype("query", query, key=key, value=value)
        _checks.not_empty(query, "query", (query.ndim - 1,))
        _checks.shape(key, "key", (*key.shape[:-1], query.shape[-1]))
        _checks.shape(value, "value", (*value.shape[:-2], key.shape[-2], value.shape[-1]))
        leads = tuple(tuple(x.shape[:-2]) for x in (query, key, value))
        try:
            self.lead = np.broadcast_shapes(*leads)
        except ValueError:
            _checks.fail("query, key, value", "leading axes that broadcast", " and ".join(map(str, leads)))
        if scale is None:
            scale = 1 / math.sqrt(query.shape[-1])
        scale = float(number(scale))
        _checks.positive(scale, "scale")
        self.query, self.key, self.value, self.dtype = query, key, value, query.dtype
        self.queries, self.depth = query.shape[-2:]
        self.keys, self.width = value.shape[-2:]
        self.batches = math.prod(self.lead)
        self.indices = [_batches(lead, self.lead) for lead in leads]
        mask, strides, offsets = self._mask(mask)
        table = None
        if mask is not None or any(lead != self.lead for lead in leads):
            table = array(np.stack([*self.indices, offsets]))
        self.causal = bool(causal)
        self.common = (
            table, mask, *strides, self.causal, scale,
            self.batches, self.queries, self.keys, self.depth, self.width,
        )  # fmt: skip

    def _mask(self, mask: Any) -> tuple[Any, tuple[int, int], AnyArray]:
        """Return the mask on the device, its strides along queries and keys, and where each batch begins in it."""
        shape = (*self.lead, self.queries, self.keys)
        if mask is None:
            return None, (0, 0), np.zeros(self.batches, np.int64)
        mask = array(mask)
        if mask.dtype != np.bool_:
            _checks.fail_type("mask", "a boolean array (True: may attend)", f"dtype {mask.dtype}")
        try:
            fits = np.broadcast_shapes(mask.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            _checks.fail("mask", f"a shape that broadcasts to {shape}", mask.shape)
        mask = device().contiguous(mask)
        padded = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
        rows, columns = padded[-2:]
        strides = (columns if rows > 1 else 0, 1 if columns > 1 else 0)
        return mask, strides, _batches(padded[:-2], self.lead) * (rows * columns)

    def _run(self, kernel: str, rows: int, columns: int, *arguments: Any) -> None:
        # Without columns there is still the statistics of the queries to find.
        grid = (self.batches * -(-rows // ROWS), max(1, -(-columns // COLUMNS)), 1)
        shared = (OTHERS * COLUMNS + ROWS * OTHERS) * self.dtype.itemsize
        run("attention", kernel, self.dtype, grid, BLOCK, *arguments, *self.common, shared=shared)

    def forward(self, stats: Any) -> Any:
        y = empty((*self.lead, self.queries, self.width), self.dtype)
        residue = None
        if self.causal:
            columns = math.prod(self.value.shape[:-2]) * self.width
            residue = empty((-(-self.keys // OTHERS) * columns,), self.dtype)
            run_elements(
                "attention", "value_residue", self.dtype, columns, self.value, residue, columns, self.keys, self.width
            )
        self._run("attention_forward", self.queries, self.width, self.query, self.key, self.value, residue, y, stats)
        return y

    def backward(self, y: Any, dy: Any, stats: Any) -> tuple[Any, Any, Any]:
        rows = self.batches * self.queries
        means = empty((rows,), self.dtype)
        run_elements("attention", "attention_means", self.dtype, rows, y, dy, means, rows, self.width)
        known = (self.query, self.key, self.value, dy, stats, means)
        dquery = empty((*self.lead, self.queries, self.depth), self.dtype)
        dkey = empty((*self.lead, self.keys, self.depth), self.dtype)
        dvalue = empty((*self.lead, self.keys, self.width), self.dtype)
        self._run("attention_dquery", self.queries, self.depth, *known, dquery)
        self._run("attention_dkey", self.keys, self.depth, *known, dkey, False)
        self._run("attention_dkey", self.keys, self.width, *known, dvalue, True)
        return (
            self._summed(dquery, self.query, self.indices[0]),
            self._summed(dkey, self.key, self.indices[1]),
            self._summed(dvalue, self.value, self.indices[2]),
        )

    def _summed(self, gradient: Any, like: Any, batches: AnyArray) -> Any:
        """Sum the batches that share one of an argument's, whose leading axes were broadcast."""
        if gradient.shape == like.shape:
            return gradient
        targets, inner = math.prod(like.shape[:-2]), math.prod(like.shape[-2:])
        result = empty_like(like)
        order = np.argsort(batches, kind="stable").astype(np.int64)
        starts = np.searchsorted(batches[order], np.arange(targets + 1)).astype(np.int64)
        run_elements(
            "attention", "sum_batches", self.dtype, targets * inner,
            gradient, result, array(order), array(starts), targets, inner,
        )  # fmt: skip
        return result


def _batches(lead: tuple[int, ...], to: tuple[int, ...]) -> AnyArray:
    """Return for each batch of ``to`` the number of the batch of ``lead`` that is broadcast there."""
    numbers = np.arange(math.prod(lead), dtype=np.int64).reshape(lead)
    return np.ascontiguousarray(np.broadcast_to(numbers, to)).reshape(-1)


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, *, mask: Any = None, causal: bool = False, scale: float | None = None
) -> Any:
    """Softmax attention of arrays on a GPU; see :func:`refnorm.attention.scaled_dot_product_attention`."""
    return _Attention(query, key, value, mask, causal, scale).forward(None)


def scaled_dot_product_attention_vjp(
    query: Any, key: Any, value: Any, *, mask: Any = None, causal: bool = False, scale: float | None = None
) -> tuple[Any, Pullback]:
    """Return :func:`scaled_dot_product_attention` and its pullback ``dy -> (dquery, dkey, dvalue)``.

    The pullback computes the scores again, tile by tile, from each query's largest score and sum.
    """
    call = _Attention(query, key, value, mask, causal, scale)
    stats = empty((call.batches * call.queries, 2), call.dtype)
    y = call.forward(stats)

    def pullback(dy: Any) -> tuple[Any, Any, Any]:
        return call.backward(y, cotangent(dy, "dy", y.shape, call.dtype), stats)

    return y, pullback
