"""The affine quantizer, codes by the largest magnitude and int8 products on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray
from refnorm_fast.cuda._arrays import (
    array,
    empty,
    float_array,
    integer_array,
    run,
    run_elements,
    run_rows,
    to_host,
)
from refnorm_fast.cuda._device import device

__all__ = ["absmax_quantize", "dequantize", "int8_matmul", "matmul_vectorwise", "quantize"]

FEWEST_BITS, MOST_BITS = 2, 16
HIGHEST = 127
MOST_TERMS = (2**31 - 1) // HIGHEST**2
TILE = 32
_ROUNDINGS = ("nearest", "stochastic", "floor", "away")
_ON_DEVICE = {"nearest": 0, "floor": 1, "away": 2}
_BLOCK = 256


def _flag() -> Any:
    return array(np.zeros(1, np.int32))


def _raise_if_set(flag: Any, x: Any, name: str) -> None:
    """Raise if a kernel has met a number that is not finite. The host waits for the kernel here."""
    if to_host(flag)[0]:
        _checks.finite(to_host(x), name)


class _Parameter:
    """A scale or zero point of shape () or with sizes 1, as the kernels address it."""

    def __init__(self, values: AnyArray, name: str, shape: tuple[int, ...], of: str) -> None:
        fits = values.ndim == len(shape) and all(n in (1, whole) for n, whole in zip(values.shape, shape, strict=True))
        if values.ndim and not fits:
            _checks.fail(name, f"shape () or {shape} with any size 1, like {of}", values.shape)
        kept = [i for i, n in enumerate(values.shape) if n != 1]
        if kept and kept[-1] - kept[0] >= len(kept):
            # Axes between those that the parameter varies along: it is written out along them.
            last = kept[-1] + 1
            values = np.broadcast_to(values, (*shape[:last], *values.shape[last:]))
            kept = list(range(last))
        self.values = np.ascontiguousarray(values).reshape(-1)
        self.inner = math.prod(shape[kept[-1] + 1 :]) if kept else 1

    def arguments(self, dtype: Any) -> tuple[Any, int, int]:
        return array(self.values.astype(dtype)), max(1, self.inner), max(1, self.values.size)


def _scale(scale: Any, dtype: Any, shape: tuple[int, ...]) -> _Parameter:
    step = to_host(scale)
    step = step.astype(dtype) if type(scale) in (float, int) else step
    step = _checks.float_array(step, "scale")
    if step.dtype != dtype:
        _checks.fail_type("scale", f"dtype {dtype} like x", step.dtype)
    if not (np.isfinite(step) & (step > 0)).all():
        _checks.fail("scale", "finite numbers > 0", step)
    return _Parameter(step, "scale", shape, "x")


def quantize(
    x: Any,
    scale: Any,
    zero_point: Any,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
) -> Any:
    """Replace each number of an array on a GPU by its code; see :func:`refnorm.quantizers.quantize`.

    Scale and zero point may be on the host or on the GPU; they are checked on the host, which waits for the GPU.
    Stochastic rounding draws from a generator of the host and is not available here.
    """
    x = float_array(x, "x")
    _checks.whole(bits, "bits", low=FEWEST_BITS, high=MOST_BITS)
    if not signed and narrow:
        _checks.fail("narrow", "False for an unsigned grid", narrow)
    lowest = -(2 ** (bits - 1)) + int(narrow) if signed else 0
    highest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = _scale(scale, x.dtype, x.shape)
    zeros = to_host(zero_point)
    if zeros.dtype.kind == "f":
        _checks.same_dtype("x", x, zero_point=zeros)
        _checks.finite(zeros, "zero_point")
        zeros = np.rint(zeros)
        if ((zeros < lowest) | (zeros > highest)).any():
            _checks.fail("zero_point", f"values from {lowest} to {highest}", zeros)
    else:
        zeros = _checks.integer_array(zeros, "zero_point", low=lowest, high=highest)
    offset = _Parameter(zeros, "zero_point", x.shape, "x")
    _checks.one_of(rounding, "rounding", _ROUNDINGS)
    if rounding == "stochastic":
        raise ValueError(
            "rounding: 'stochastic' is not available on a GPU; refnorm.quantizers.quantize takes a copy on the host"
        )
    codes = empty(x.shape, np.int32 if bits > 8 else np.int8 if signed else np.uint8)
    flag = _flag()
    run_elements(
        "quantizers", "quantize_affine", x.dtype, x.size,
        x, *step.arguments(x.dtype), *offset.arguments(np.int32), codes, bits > 8, flag, float(lowest), float(highest),
        np.int32(_ON_DEVICE[rounding]), x.size,
    )  # fmt: skip
    _raise_if_set(flag, x, "x")
    return codes


def dequantize(q: Any, scale: Any, zero_point: Any) -> Any:
    """Return the grid points of codes on a GPU; see :func:`refnorm.quantizers.dequantize`."""
    q = integer_array(q, "q")
    dtype = to_host(scale).dtype
    step = _scale(scale, dtype, q.shape)
    offset = _Parameter(_checks.integer_array(to_host(zero_point), "zero_point"), "zero_point", q.shape, "q")
    x = empty(q.shape, dtype)
    wide = q if q.dtype == np.int64 else device().contiguous(q.astype(np.int64))
    run_elements(
        "quantizers", "dequantize_affine", dtype, q.size,
        wide, *step.arguments(dtype), *offset.arguments(np.int64), x, q.size,
    )  # fmt: skip
    return x


def absmax_quantize(x: Any, *, axis: int | Sequence[int] | None = None) -> tuple[Any, Any]:
    """Quantize an array on a GPU by its largest magnitude; see :func:`refnorm.quantizers.absmax_quantize`.

    That the numbers are finite is checked, for which the host waits for the GPU.
    """
    x = float_array(x, "x")
    kept = () if axis is None else _checks.axes(axis, x.ndim)
    flag = _flag()
    if kept:
        codes, absmax = _absmax_slices(x, kept, flag)
    else:
        codes, absmax = empty(x.shape, np.int8), empty((), x.dtype)
        blocks = max(1, min(1024, -(-x.size // _BLOCK)))
        parts = empty((blocks,), x.dtype)
        run("quantizers", "absmax_parts", x.dtype, blocks, _BLOCK, x, parts, flag, x.size)
        run("quantizers", "absmax_total", x.dtype, 1, _BLOCK, parts, absmax, blocks)
        run_elements("quantizers", "absmax_codes", x.dtype, x.size, x, absmax, codes, flag, x.size)
    _raise_if_set(flag, x, "x")
    return codes, absmax


def _absmax_slices(x: Any, kept: tuple[int, ...], flag: Any) -> tuple[Any, Any]:
    """Return codes and constants with the slices along ``kept`` as rows."""
    order = (*kept, *(i for i in range(x.ndim) if i not in kept))
    moved = order != tuple(range(x.ndim))
    source = device().contiguous(x.transpose(order)) if moved else x
    codes = empty(source.shape, np.int8)
    absmax = empty(tuple(n if i in kept else 1 for i, n in enumerate(x.shape)), x.dtype)
    rows = math.prod(x.shape[i] for i in kept)
    length = math.prod(x.shape[i] for i in order[len(kept) :])
    run_rows("quantizers", "absmax_rows", x.dtype, rows, length, source, codes, absmax, flag, rows, length)
    if moved:
        codes = device().contiguous(codes.transpose(tuple(int(i) for i in np.argsort(order))))
    return codes, absmax


def _int8_matrix(x: Any, name: str) -> Any:
    matrix = integer_array(x, name, ndim=2)
    if matrix.dtype != np.int8:
        _checks.integer_array(to_host(matrix), name, ndim=2, low=-HIGHEST)
        _checks.fail_type(name, "dtype int8", matrix.dtype)
    return matrix


def _check_terms(terms: int, name: str) -> None:
    if terms > MOST_TERMS:
        _checks.fail(name, f"at most {MOST_TERMS} terms, whose int32 sum is exact", terms)


def _product(kernel: str, dtype: Any, a: Any, b: Any, result: Any, *constants: Any) -> Any:
    rows, depth = a.shape
    columns, flag = b.shape[0], _flag()
    grid = (-(-rows // TILE), -(-columns // TILE), 1)
    run("quantizers", kernel, dtype, grid, (16, 16, 1), a, b, *constants, result, flag, rows, columns, depth)
    return flag


def int8_matmul(a: Any, b: Any) -> Any:
    """Multiply int8 matrices on a GPU exactly, ``a @ b.T`` in int32; see :func:`refnorm.quantizers.int8_matmul`."""
    a, b = _int8_matrix(a, "a"), _int8_matrix(b, "b")
    if a.shape[1] != b.shape[1]:
        _checks.fail("b", f"shape (N, {a.shape[1]}) like a", b.shape)
    _check_terms(a.shape[1], "a")
    product = empty((a.shape[0], b.shape[0]), np.int32)
    flag = _product("int8_product", np.float32, a, b, product)
    if to_host(flag)[0] or not product.size:
        for matrix, name in ((a, "a"), (b, "b")):
            _checks.integer_array(to_host(matrix), name, low=-HIGHEST)
    return product


def matmul_vectorwise(x: Any, weight: Any) -> Any:
    """Multiply matrices on a GPU in int8, a constant a row and column; see :func:`refnorm.quantizers.matmul_vectorwise`."""
    x, weight = float_array(x, "x", ndim=2), float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    if weight.shape[0] != x.shape[1]:
        _checks.fail("weight", f"shape ({x.shape[1]}, N)", weight.shape)
    _check_terms(x.shape[1], "x")
    columns = device().contiguous(weight.transpose((1, 0)))
    x_codes, x_constants = absmax_quantize(x, axis=0)
    try:
        codes, constants = absmax_quantize(columns, axis=0)
    except ValueError:
        _checks.finite(to_host(weight), "weight")
        raise
    product = empty((x.shape[0], weight.shape[1]), x.dtype)
    _product("int8_product_scaled", x.dtype, x_codes, codes, product, x_constants, constants)
    return product
