"""Where the kernels run: the few things that the wrappers ask of a GPU, and CuPy as the one that gives them.

The tests put an emulator in CuPy's place with :func:`using`, so the wrappers themselves are tested without a GPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.resources
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from refnorm._typing import AnyArray

Size = tuple[int, int, int]

OPTIONS = ("--std=c++17", "--fmad=false")
"""Compiler options of every kernel. Contraction would round differently from what the source says."""


NEWEST_ARCHITECTURE = 90
"""What every NVRTC since CUDA 12 knows. The driver translates it for later GPUs."""


class DeviceArray(Protocol):
    """What the wrappers use of an array on a GPU; CuPy's arrays have all of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    def reshape(self, shape: tuple[int, ...], /) -> Any: ...
    def transpose(self, axes: tuple[int, ...], /) -> Any: ...
    def astype(self, dtype: Any, /) -> Any: ...


class Device(Protocol):
    """What the wrappers ask of a GPU."""

    def adopt(self, x: Any) -> DeviceArray:
        """Return ``x``, an object with ``__cuda_array_interface__``, as one of this device's arrays, sharing memory."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Return a C-contiguous array with any content."""

    def contiguous(self, x: DeviceArray) -> DeviceArray:
        """Return ``x`` in C order, itself if it is so already."""

    def from_host(self, x: AnyArray) -> DeviceArray:
        """Copy a NumPy array to the device."""

    def to_host(self, x: DeviceArray) -> AnyArray:
        """Copy an array to a NumPy array, once all kernels before have run."""

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy an array to another one of the same shape and dtype."""

    def launch(
        self,
        unit: str,
        kernel: str,
        dtype: np.dtype[Any],
        grid: Size,
        block: Size,
        shared: int,
        arguments: Sequence[Any],
    ) -> None:
        """Run ``kernel`` of the file ``unit``, compiled for ``dtype``, on NumPy scalars and arrays of the device."""


@functools.cache
def source(unit: str) -> str:
    """Return the text of one of the files in ``kernels``, after the text that all of them share."""
    folder = importlib.resources.files("refnorm_fast.cuda") / "kernels"
    parts = []
    for name in ("common.cu", f"{unit}.cu"):
        parts.append(f'#line 1 "{name}"\n{(folder / name).read_text()}')
    return "\n".join(parts)


def units() -> list[str]:
    """Return the names of the files with kernels."""
    folder = importlib.resources.files("refnorm_fast.cuda") / "kernels"
    return sorted(f.name[:-3] for f in folder.iterdir() if f.name.endswith(".cu") and f.name != "common.cu")


def options(dtype: np.dtype[Any]) -> tuple[str, ...]:
    """Return the compiler options for kernels on ``dtype``."""
    real = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}[dtype]
    return (*OPTIONS, f"-DREAL={real}", f"-DREAL_IS_DOUBLE={int(real == 'double')}")


class CuPyDevice:
    """CuPy's current device and stream. Kernels are compiled at their first use and kept with CuPy's own.

    They are compiled here and not by :class:`cupy.RawModule`, which adds ``-ftz=true``: subnormal float32 numbers
    would become 0.
    """

    def __init__(self) -> None:
        try:
            self._cupy = importlib.import_module("cupy")
        except ImportError as error:
            raise ImportError(
                f"refnorm_fast.cuda: an array on a GPU needs CuPy, which could not be imported ({error}); "
                "`pip install refnorm[cuda]` installs it, or copy the array to the host for the CPU kernels",
                name="cupy",
            ) from None
        self._nvrtc = self._cupy.cuda.nvrtc
        self._functions: dict[tuple[int, str, str, np.dtype[Any]], Any] = {}

    def adopt(self, x: Any) -> DeviceArray:
        array: DeviceArray = self._cupy.asarray(x)
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        array: DeviceArray = self._cupy.empty(shape, dtype)
        return array

    def contiguous(self, x: DeviceArray) -> DeviceArray:
        array: DeviceArray = self._cupy.ascontiguousarray(x).reshape(x.shape)
        return array

    def from_host(self, x: AnyArray) -> DeviceArray:
        array: DeviceArray = self._cupy.array(x)
        return array

    def to_host(self, x: DeviceArray) -> AnyArray:
        array: AnyArray = self._cupy.asnumpy(x)
        return array

    def copy(self, source: DeviceArray, target: Any) -> None:
        target[...] = source

    def launch(
        self,
        unit: str,
        kernel: str,
        dtype: np.dtype[Any],
        grid: Size,
        block: Size,
        shared: int,
        arguments: Sequence[Any],
    ) -> None:
        key = self._cupy.cuda.runtime.getDevice(), unit, kernel, dtype
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = self._module(unit, dtype).get_function(kernel)
        function(grid, block, tuple(arguments), shared_mem=shared)

    def _module(self, unit: str, dtype: np.dtype[Any]) -> Any:
        architecture = min(int(self._cupy.cuda.Device().compute_capability), NEWEST_ARCHITECTURE)
        text, flags = source(unit), (*options(dtype), f"--gpu-architecture=compute_{architecture}")
        key = "\n".join([text, *flags, str(self._nvrtc.getVersion())])
        name = f"refnorm-{unit}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.ptx"
        folder = pathlib.Path(os.environ.get("CUPY_CACHE_DIR") or pathlib.Path.home() / ".cupy" / "kernel_cache")
        file = folder / name
        if not file.exists():
            compiled = ptx(self._nvrtc, text, flags)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
                partial.write(compiled)
            pathlib.Path(partial.name).replace(file)
        return self._cupy.RawModule(path=str(file))


def ptx(nvrtc: Any, text: str, flags: Sequence[str]) -> bytes:
    """Compile with ``cupy.cuda.nvrtc``, an attribute that is no module one could import."""
    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, tuple(flags))
        compiled = nvrtc.getPTX(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"refnorm_fast.cuda: {error}\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)
    return compiled.encode() if isinstance(compiled, str) else bytes(compiled)


_current: Device | None = None


def device() -> Device:
    """Return the device in use: CuPy's, unless :func:`using` has put another one in its place."""
    global _current
    if _current is None:
        _current = CuPyDevice()
    return _current


@contextmanager
def using(other: Device) -> Iterator[None]:
    """Run the kernels on another device inside the block."""
    global _current
    before, _current = _current, other
    try:
        yield
    finally:
        _current = before
