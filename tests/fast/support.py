"""What the tests of the kernels share: instruction set levels, awkward layouts, awkward numbers, error in ULP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

if os.environ.get("REFNORM_PURE"):
    pytest.skip("REFNORM_PURE: this installation has no kernels", allow_module_level=True)

from refnorm_fast import _runtime

AnyArray = np.ndarray[Any, np.dtype[Any]]

ISAS = _runtime.available_isas()
DTYPES = (np.float32, np.float64)
# Every length of a tail after whole vectors and unrolled groups of vectors, for all vector sizes.
TAILS = range(131)

HOSTILE = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1e-30, 88.0, -104.0, 1e4, -65536.0, 1e30, -3e38, 3e38)
SPECIAL = (np.nan, np.inf, -np.inf)


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    before = _runtime.use_isa(name)
    try:
        yield
    finally:
        _runtime.use_isa(before)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    _runtime.set_num_threads(count)
    try:
        yield
    finally:
        _runtime.set_num_threads(None)


def misaligned(x: AnyArray) -> AnyArray:
    """A copy of ``x`` whose data start one byte after a multiple of the item size."""
    memory = np.empty(x.nbytes + 1, np.uint8)
    copy = memory[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def off_vector(x: AnyArray) -> AnyArray:
    """A copy of ``x`` aligned to its items but to no vector."""
    memory = np.empty(x.size + 16, x.dtype)
    start = next(i for i in range(1, 16) if (memory.ctypes.data + i * x.itemsize) % 64 == x.itemsize)
    copy = memory[start : start + x.size].reshape(x.shape)
    copy[...] = x
    return copy


def read_only(x: AnyArray) -> AnyArray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def layouts(x: AnyArray) -> dict[str, AnyArray]:
    """The same numbers as ``x`` (two dimensions or more) in every layout that a caller may have."""
    doubled = np.repeat(np.repeat(x, 2, axis=0), 2, axis=-1)
    wide = np.concatenate([x, x], axis=-1)
    return {
        "C": x.copy(),
        "Fortran": np.asfortranarray(x),
        "every other row": np.repeat(x, 2, axis=0)[::2],
        "every other entry": doubled[::2, ..., ::2],
        "columns of a wider array": wide[..., : x.shape[-1]],
        "reversed": x[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
        "read-only": read_only(x),
        "misaligned by a byte": misaligned(x),
        "off a vector boundary": off_vector(x),
        "row repeated by a zero stride": np.broadcast_to(x[:1], x.shape),
    }


def check_out(function: Callable[..., AnyArray], x: AnyArray) -> None:
    """``out=`` of every kind gives bit for bit the result without it, and the given array back."""
    expected = function(x.copy())
    outs = {
        "fresh": np.empty_like(x),
        "Fortran": np.asfortranarray(np.empty_like(x)),
        "strided": np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2],
        "reversed": np.empty_like(x)[::-1],
        "misaligned": misaligned(x),
    }
    for name, out in outs.items():
        assert function(x, out=out) is out, name
        np.testing.assert_array_equal(out, expected, err_msg=name)
    in_place = x.copy()
    function(in_place, out=in_place)
    np.testing.assert_array_equal(in_place, expected, err_msg="in place")
    for shift in (1, 3):
        for back in (False, True):
            memory = np.empty(x.size + shift, x.dtype)
            low, high = memory[: x.size].reshape(x.shape), memory[shift:].reshape(x.shape)
            source, out = (high, low) if back else (low, high)
            source[...] = x
            function(source, out=out)
            np.testing.assert_array_equal(out, expected, err_msg=f"overlapping by {shift}, back {back}")
    memory = np.empty((x.shape[0] + 1, *x.shape[1:]), x.dtype)
    memory[:-1] = x
    function(memory[:-1], out=memory[:0:-1])
    np.testing.assert_array_equal(memory[:0:-1], expected, err_msg="overlapping, reversed")


def check_out_errors(function: Callable[..., AnyArray], x: AnyArray) -> None:
    with pytest.raises(TypeError, match="out: expected an array, got list"):
        function(x, out=[0.0])
    other = np.float64 if x.dtype == np.float32 else np.float32
    with pytest.raises(TypeError, match="out: expected dtype"):
        function(x, out=np.empty(x.shape, other))
    with pytest.raises(ValueError, match="out: expected shape"):
        function(x, out=np.empty((*x.shape, 1), x.dtype))
    with pytest.raises(ValueError, match="out: expected a writable array"):
        function(x, out=read_only(x))
