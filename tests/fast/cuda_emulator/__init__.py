"""A device for :func:`refnorm_fast.cuda._device.using` that runs the CUDA kernels on the CPU, through g++."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from refnorm_fast.cuda._device import Size, options, source

HEADER = pathlib.Path(__file__).parent / "emulator.h"
COMPILER = shutil.which("g++") or shutil.which("c++")
GUARD = 64
FAILURES = {
    1: "block, grid, shared memory or number of arguments out of range",
    2: "a barrier that not all threads reach",
    3: "a write past the end of shared memory",
}
KERNEL = re.compile(r"^KERNEL (\w+)\(", re.MULTILINE)


class EmulatedArray:
    """An array of the emulated device. Like CuPy's, it does not turn into a NumPy array by itself."""

    def __init__(self, view: np.ndarray[Any, Any], memory: np.ndarray[Any, Any] | None = None) -> None:
        self.view = view
        self.memory = memory  # of arrays that the device allocated: their bytes between two guards

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.view.__array_interface__, "version": 3}

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    shape = property(lambda self: self.view.shape)
    dtype = property(lambda self: self.view.dtype)
    ndim = property(lambda self: self.view.ndim)
    size = property(lambda self: self.view.size)

    def __len__(self) -> int:
        return len(self.view)

    def __neg__(self) -> EmulatedArray:
        return EmulatedArray(-self.view)

    def reshape(self, shape: tuple[int, ...]) -> EmulatedArray:
        return EmulatedArray(self.view.reshape(shape), self.memory)

    def transpose(self, axes: tuple[int, ...]) -> EmulatedArray:
        return EmulatedArray(self.view.transpose(axes), self.memory)

    def astype(self, dtype: Any) -> EmulatedArray:
        return EmulatedArray(self.view.astype(dtype))

    def check_guards(self) -> None:
        if self.memory is not None:
            assert (self.memory[:GUARD] == 0xA5).all(), "a kernel wrote before the start of an array"
            assert (self.memory[-GUARD:] == 0xA5).all(), "a kernel wrote past the end of an array"


class Emulator:
    """The emulated device. ``order`` is the order in which the threads of a block take turns, 0 or 1."""

    def __init__(self, order: int = 0) -> None:
        self.order = order
        self.launches: list[str] = []
        self._libraries: dict[tuple[str, Any], ctypes.CDLL] = {}

    def adopt(self, x: Any) -> EmulatedArray:
        assert isinstance(x, EmulatedArray)
        return x

    def empty(self, shape: tuple[int, ...], dtype: Any) -> EmulatedArray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = np.full(size + 2 * GUARD, 0xA5, np.uint8)
        memory[GUARD : GUARD + size] = 0xFF  # NaN, and for integers -1
        return EmulatedArray(memory[GUARD : GUARD + size].view(dtype).reshape(shape), memory)

    def contiguous(self, x: EmulatedArray) -> EmulatedArray:
        return x if x.view.flags.c_contiguous and x.view.flags.aligned else self.from_host(x.view)

    def from_host(self, x: np.ndarray[Any, Any]) -> EmulatedArray:
        copy = self.empty(x.shape, x.dtype)
        copy.view[...] = x
        return copy

    def to_host(self, x: EmulatedArray) -> np.ndarray[Any, Any]:
        return x.view.copy()

    def copy(self, source: EmulatedArray, target: EmulatedArray) -> None:
        target.view[...] = source.view

    def launch(
        self, unit: str, kernel: str, dtype: Any, grid: Size, block: Size, shared: int, arguments: Sequence[Any]
    ) -> None:
        self.launches.append(kernel)
        arrays = [a for a in arguments if isinstance(a, EmulatedArray)]
        assert all(a.view.flags.c_contiguous for a in arrays)
        values = [np.uint64(a.view.ctypes.data) if isinstance(a, EmulatedArray) else a for a in arguments]
        boxes = [np.array([value]) for value in values]
        pointers = (ctypes.c_void_p * len(boxes))(*(box.ctypes.data for box in boxes))
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
        function = getattr(self._library(unit, dtype), f"emulate_{kernel}")
        failed = function(*sizes, ctypes.c_size_t(shared), len(boxes), pointers, self.order)
        if failed:
            raise RuntimeError(f"{kernel}: {FAILURES[failed]}")
        for a in arrays:
            a.check_guards()

    def _library(self, unit: str, dtype: Any) -> ctypes.CDLL:
        key = unit, np.dtype(dtype)
        if key not in self._libraries:
            self._libraries[key] = ctypes.CDLL(str(build(unit, np.dtype(dtype))))
        return self._libraries[key]


def build(unit: str, dtype: Any) -> pathlib.Path:
    """Compile a file of kernels for the CPU, unless it lies ready in the folder for temporary files."""
    kernels = source(unit)
    entries = "\n".join(
        f'extern "C" int emulate_{name}(const unsigned *grid, const unsigned *block, size_t shared, int count, '
        f"void **arguments, int order) {{ return emulator::launch({name}, grid, block, shared, count, arguments, order); }}"
        for name in KERNEL.findall(kernels)
    )
    text = f"{HEADER.read_text()}\n{kernels}\n{entries}\n"
    defines = [flag for flag in options(dtype) if flag.startswith("-D")]
    # No contraction, as on the GPU; otherwise what is quick to compile.
    command = [
        "-x",
        "c++",
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fPIC",
        "-shared",
        *defines,
    ]
    digest = hashlib.sha256(" ".join([text, *command]).encode()).hexdigest()[:24]
    folder = pathlib.Path(tempfile.gettempdir()) / f"refnorm-cuda-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{unit}-{digest}.so"
    if not library.exists():
        assert COMPILER is not None
        partial = folder / f"{library.name}.{os.getpid()}"
        done = subprocess.run(
            [COMPILER, *command, "-o", str(partial), "-"], input=text, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        partial.replace(library)
    return library
