"""Arrays on a GPU find their way to the CUDA kernels, through CuPy, and what is said when that cannot be."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refnorm_fast.cuda import _device, softmax


class FakeKernel:
    def __init__(self, calls: list[Any], name: str) -> None:
        self.calls, self.name = calls, name

    def __call__(self, grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
        self.calls.append((self.name, grid, block, arguments, shared_mem))


class OnGPU(np.ndarray[Any, Any]):
    """What the pretended CuPy has for arrays."""

    __cuda_array_interface__: dict[str, Any] = {"version": 3}  # noqa: RUF012


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> SimpleNamespace:
    """A pretended CuPy, which records what it is asked to compile and to launch."""
    seen = SimpleNamespace(launches=[], compiled=[], paths=[])

    class NVRTCError(RuntimeError):
        pass

    nvrtc = ModuleType("cupy.cuda.nvrtc")
    nvrtc.__dict__.update(
        NVRTCError=NVRTCError,
        getVersion=lambda: (13, 0),
        createProgram=lambda text, name, headers, names: SimpleNamespace(text=text),
        compileProgram=lambda program, flags: seen.compiled.append((program.text, flags)),
        getPTX=lambda program: "// ptx",
        destroyProgram=lambda program: None,
    )

    class RawModule:
        def __init__(self, *, path: str) -> None:
            seen.paths.append(path)

        def get_function(self, name: str) -> FakeKernel:
            return FakeKernel(seen.launches, name)

    module = ModuleType("cupy")
    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(compute_capability="120"), runtime=SimpleNamespace(getDevice=lambda: 0)
    )
    module.__dict__.update(
        RawModule=RawModule,
        cuda=cuda,
        asarray=lambda x: x,
        empty=lambda shape, dtype: np.empty(shape, dtype).view(OnGPU),
        ascontiguousarray=lambda x: np.ascontiguousarray(x).view(OnGPU),
        array=lambda x: np.array(x).view(OnGPU),
        asnumpy=lambda x: np.array(x),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nvrtc", nvrtc)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(_device, "_current", None)
    return seen


def test_launch_through_cupy(cupy: SimpleNamespace, tmp_path: Any) -> None:
    x = np.zeros((3, 5), np.float32).view(OnGPU)
    y = softmax.softmax(x)
    assert isinstance(y, OnGPU)
    ((kernel, grid, block, arguments, shared),) = cupy.launches
    assert (kernel, grid, block, shared) == ("softmax_rows", (1, 1, 1), (32, 3, 1), 60)
    assert arguments[1] is y
    assert [type(a) for a in arguments[2:]] == [np.int64, np.int64, np.int32]
    assert arguments[2:] == (3, 5, 1)
    ((text, flags),) = cupy.compiled
    assert text == _device.source("softmax")
    assert set(flags) == {
        "--std=c++17",
        "--fmad=false",
        "-DREAL=float",
        "-DREAL_IS_DOUBLE=0",
        "--gpu-architecture=compute_90",
    }
    (file,) = (tmp_path / "cache").iterdir()
    assert file.read_text() == "// ptx"
    assert cupy.paths == [str(file)]


def test_kernels_are_compiled_once(cupy: SimpleNamespace) -> None:
    x = np.zeros((3, 5), np.float64).view(OnGPU)
    softmax.softmax(x)
    softmax.softmax(x)
    softmax.log_softmax(x)
    assert [launch[0] for launch in cupy.launches] == ["softmax_rows", "softmax_rows", "log_softmax_rows"]
    assert len(cupy.compiled) == 1
    with _device.using(_device.CuPyDevice()):  # as another process would
        softmax.softmax(x)
    assert len(cupy.compiled) == 1


def test_left_out_arrays_are_null_pointers(cupy: SimpleNamespace) -> None:
    softmax.log_softmax(np.zeros((3, 5)).view(OnGPU))
    ((_, _, _, arguments, _),) = cupy.launches
    assert type(arguments[2]) is np.uint64
    assert arguments[2] == 0


def test_compiler_messages_reach_the_user(cupy: SimpleNamespace) -> None:
    nvrtc = sys.modules["cupy.cuda.nvrtc"]

    def fail(program: Any, flags: Any) -> None:
        raise nvrtc.NVRTCError("NVRTC_ERROR_COMPILATION")

    nvrtc.__dict__.update(compileProgram=fail, getProgramLog=lambda program: "line 7: what is this?")
    with pytest.raises(RuntimeError, match="line 7: what is this"):
        softmax.softmax(np.zeros(3).view(OnGPU))


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(_device, "_current", None)
    with pytest.raises(ImportError, match=r"pip install refnorm\[cuda\]"):
        softmax.softmax(np.zeros(3).view(OnGPU))
