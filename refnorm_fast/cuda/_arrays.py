"""Argument checks for arrays on a GPU, rows, and the shape of a launch.

:mod:`refnorm._checks` does the checks that look at shape and dtype alone; those that would convert to NumPy are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray
from refnorm_fast.cuda._device import DeviceArray, Size, device

SHARED_BYTES = 44 * 1024
"""Shared memory for rows. A block has 48 KB on every GPU without asking for more; reductions take up to 4 of them."""

SHORT_ROW = 1024
"""Entries up to which one warp works on a row."""

LARGE_TEAM = 512
"""Threads of a block at most, as the kernels are compiled."""

ELEMENTWISE_BLOCK = 256
MOST_BLOCKS = 2**20
"""Rows or elements beyond this many blocks are taken in turns."""


def array(x: Any) -> DeviceArray:
    """Return ``x`` as an array of the device; a host array or number is copied there."""
    if hasattr(x, "__cuda_array_interface__"):
        return device().adopt(x)
    return device().from_host(np.asarray(x))


def float_array(x: Any, name: str, *, ndim: int | None = None, min_ndim: int = 0) -> Any:
    """Return ``x`` as a C-contiguous float32 or float64 array of the device, or raise what the reference does."""
    result = array(x)
    if result.dtype not in (np.float32, np.float64):
        _checks.fail_type(name, "a float32 or float64 array", f"dtype {result.dtype}")
    check_ndim(result, name, ndim, min_ndim)
    return device().contiguous(result)


def integer_array(x: Any, name: str, *, ndim: int | None = None) -> Any:
    """Return ``x`` as a C-contiguous integer array of the device, or raise what the reference does."""
    result = array(x)
    if not np.issubdtype(result.dtype, np.integer):
        _checks.fail_type(name, "an integer array", f"dtype {result.dtype}")
    check_ndim(result, name, ndim, 0)
    return device().contiguous(result)


def check_ndim(x: DeviceArray, name: str, ndim: int | None, min_ndim: int) -> None:
    if ndim is not None and x.ndim != ndim:
        _checks.fail(name, f"{ndim} dimensions", f"shape {x.shape}")
    if x.ndim < min_ndim:
        _checks.fail(name, f"at least {min_ndim} dimension{'s' if min_ndim > 1 else ''}", f"shape {x.shape}")


def cotangent(g: Any, name: str, shape: Sequence[int], dtype: Any) -> Any:
    """Return a cotangent of the given shape in the given dtype."""
    result = array(g)
    _checks.shape(result, name, shape)  # type: ignore[arg-type]
    if result.dtype != dtype:
        result = result.astype(dtype)
    return device().contiguous(result)


def empty(shape: Sequence[int], dtype: Any) -> Any:
    return device().empty(tuple(shape), np.dtype(dtype))


def empty_like(x: DeviceArray) -> Any:
    return empty(x.shape, x.dtype)


def to_host(x: Any) -> AnyArray:
    """Return an argument as a NumPy array, wherever it is."""
    return device().to_host(device().adopt(x)) if hasattr(x, "__cuda_array_interface__") else np.asarray(x)


def number(x: Any) -> Any:
    """Return a Python or NumPy number as it is, and a 0-d array on the device as a NumPy one."""
    return to_host(x) if hasattr(x, "__cuda_array_interface__") else x


class Rows:
    """An array as the rows of a C-contiguous matrix along one axis, and the way back."""

    def __init__(self, x: Any, axis: int) -> None:
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim
        self.order = (*(i for i in range(x.ndim) if i != axis), axis)
        self.last = axis == x.ndim - 1
        self.length = int(x.shape[axis])
        self.rows = x.size // self.length if self.length else 0
        self.outer = tuple(x.shape[i] for i in self.order[:-1])
        self.x = self.of(x)

    def of(self, x: Any) -> Any:
        """Return an array of the same shape with the axis of the rows last."""
        return device().contiguous(x if self.last else x.transpose(self.order))

    def back(self, y: Any) -> Any:
        """Return rows in the order of the array's axes."""
        if self.last:
            return y
        inverse = tuple(int(i) for i in np.argsort(self.order))
        return device().contiguous(y.transpose(inverse))

    def cotangent(self, g: Any, name: str) -> Any:
        return self.of(cotangent(g, name, self.shape, self.dtype))

    def fresh(self) -> Any:
        return empty((*self.outer, self.length), self.dtype)


def run(
    unit: str, kernel: str, dtype: Any, grid: Size | int, block: Size | int, *arguments: Any, shared: int = 0
) -> None:
    """Launch a kernel. Python's int, float, bool and None become its index, double, int and null arguments."""
    sizes = [(size, 1, 1) if isinstance(size, int) else size for size in (grid, block)]
    if 0 in sizes[0]:
        return
    device().launch(unit, kernel, np.dtype(dtype), sizes[0], sizes[1], shared, [_argument(a) for a in arguments])


def _argument(value: Any) -> Any:
    if value is None:
        return np.uint64(0)
    if isinstance(value, (bool, np.bool_)):
        return np.int32(value)
    if isinstance(value, int):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value


def run_rows(unit: str, kernel: str, dtype: Any, rows: int, length: int, *arguments: Any, cached: bool = True) -> None:
    """Launch a kernel that gives each row to a team.

    The kernel's last argument, after those given, is whether rows are kept in shared memory; a kernel that does not
    keep them (``cached=False``) has no such argument.
    """
    row_bytes = length * np.dtype(dtype).itemsize
    teams, team = 1, LARGE_TEAM
    if length <= SHORT_ROW:
        team = 32
        teams = max(1, min(8, rows, SHARED_BYTES // max(1, row_bytes)))
    fits = cached and row_bytes * teams <= SHARED_BYTES
    if cached:
        arguments = (*arguments, fits)
    grid = min(MOST_BLOCKS, -(-rows // teams))
    run(unit, kernel, dtype, grid, (team, teams, 1), *arguments, shared=row_bytes * teams if fits else 0)


def run_elements(unit: str, kernel: str, dtype: Any, count: int, *arguments: Any) -> None:
    """Launch a kernel with one thread for each of ``count`` elements."""
    run(unit, kernel, dtype, min(MOST_BLOCKS, -(-count // ELEMENTWISE_BLOCK)), ELEMENTWISE_BLOCK, *arguments)
