"""Arrays on a GPU find their way to the CUDA kernels, through CuPy, and what is said when that cannot be."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refnorm
import refnorm_fast
from refnorm_fast import cuda
from refnorm_fast.cuda import _device, _dispatch, softmax


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

    nvrtc = SimpleNamespace(
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
        Device=lambda: SimpleNamespace(compute_capability="120"),
        runtime=SimpleNamespace(getDevice=lambda: 0),
        nvrtc=nvrtc,
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
    nvrtc = sys.modules["cupy"].cuda.nvrtc

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


# ---- from the public functions ---------------------------------------------------------------------------------------


def functions(package: ModuleType) -> dict[str, Any]:
    """The functions of the rooms that have CUDA kernels, by ``"room.function"``."""
    found = {}
    for room in cuda.ROOMS:
        module = importlib.import_module(f"{package.__name__}.{room}")
        for name in module.__all__:
            if callable(getattr(module, name)) and not isinstance(getattr(module, name), type):
                found[f"{room}.{name}"] = getattr(module, name)
    return found


KERNELS, FAST = functions(cuda), functions(refnorm_fast)


@pytest.mark.parametrize("name", KERNELS)
def test_signatures_are_the_reference_s(name: str) -> None:
    room, function = name.split(".")
    reference = inspect.signature(getattr(getattr(refnorm, room), function))
    mine = inspect.signature(KERNELS[name])
    assert [(p.name, p.kind, p.default) for p in mine.parameters.values()] == [
        (p.name, p.kind, p.default) for p in reference.parameters.values()
    ]


def arguments(function: Any) -> dict[str, Any]:
    """A different object for each argument that the function must be given or may."""
    return {name: object() for name in inspect.signature(function).parameters if name != "out"}


@pytest.mark.parametrize("name", sorted(KERNELS.keys() & FAST.keys()))
def test_arrays_on_a_gpu_go_to_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(FAST[name])
    first = next(iter(given))
    given[first] = np.zeros(3).view(OnGPU)
    seen: list[Any] = []
    monkeypatch.setattr(_dispatch, "call", lambda *args, **options: seen.append((args, options)) or "result")
    assert FAST[name](**given) == "result"
    (((called, out, *positional), options),) = seen
    assert (called, out) == (name, None)
    bound = inspect.signature(KERNELS[name]).bind(*positional, **options).arguments
    assert bound == given  # every argument reaches the one of its name


def test_result_of_the_kernel() -> None:
    seen = []

    class Device:
        def __getattr__(self, name: str) -> Any:
            seen.append(name)
            raise KeyError(name)

    with _device.using(Device()), pytest.raises(KeyError):
        refnorm_fast.softmax.softmax(np.zeros(3).view(OnGPU))
    assert seen == ["adopt"]


class Host:
    """A device whose kernels do nothing."""

    def __getattr__(self, name: str) -> Any:
        return {
            "adopt": lambda x: x,
            "contiguous": lambda x: x,
            "empty": lambda shape, dtype: np.full(shape, 7, dtype),
            "launch": lambda *_: None,
            "copy": lambda source, target: np.copyto(target, source),
        }[name]


def test_out_takes_a_copy() -> None:
    x, out = np.zeros(3).view(OnGPU), np.zeros(3).view(OnGPU)
    with _device.using(Host()):
        assert refnorm_fast.softmax.softmax(x, out=out) is out
        assert (out == 7).all()
        parts = np.zeros((2, 3)).view(OnGPU)
        moved = refnorm_fast.solvers.lion_update(x, x, x, out=(parts[0], parts[1]))
        assert [type(part) for part in moved] == [OnGPU, OnGPU]
        assert (parts == 7).all()


def test_out_that_does_not_fit() -> None:
    x = np.zeros(3).view(OnGPU)
    with _device.using(Host()):
        with pytest.raises(TypeError, match="out: expected an array on the GPU, got ndarray"):
            refnorm_fast.softmax.softmax(x, out=np.zeros(3))
        with pytest.raises(TypeError, match="out: expected dtype float64, got dtype float32"):
            refnorm_fast.softmax.softmax(x, out=x.astype(np.float32))
        with pytest.raises(ValueError, match=r"out: expected shape \(3,\), got \(2,\)"):
            refnorm_fast.softmax.softmax(x, out=x[:2])
        with pytest.raises(ValueError, match="out: expected 2 arrays, got 1"):
            refnorm_fast.solvers.lion_update(x, x, x, out=(x,))


def test_functions_without_a_kernel_say_so() -> None:
    x = np.zeros((2, 3)).view(OnGPU)
    with pytest.raises(TypeError, match=r"x: expected an array in host memory, got one on a GPU.*\.get\(\)"):
        refnorm_fast.norms.compressed_rms_norm(x)
    with pytest.raises(TypeError, match="gain: expected an array in host memory"):
        refnorm_fast.norms.layer_norm(np.zeros((2, 3)), x[0], np.zeros(3))
