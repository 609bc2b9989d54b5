"""Every CUDA kernel compiles for old and recent GPUs, without a warning: with NVRTC, as CuPy does, or with nvcc."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import pathlib
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from refnorm_fast.cuda import _device

ARCHITECTURES = ("75", "90")
"""Turing and Hopper. What compiles for both compiles for what lies between."""

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """Return NVIDIA's run-time compiler, from the system or from the wheel that CuPy uses."""
    names = [ctypes.util.find_library("nvrtc")]
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            names += [str(file) for file in pathlib.Path(folder).glob("lib/libnvrtc.so*")]
    for name in filter(None, names):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compile_with_nvrtc(library: ctypes.CDLL, text: str, flags: list[str]) -> tuple[bytes, str]:
    """Return the PTX and what the compiler had to say."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    failed = library.nvrtcCompileProgram(program, len(flags), encoded)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if failed:
        pytest.fail(log.value.decode())
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value, log.value.decode().strip()


def kernels(unit: str) -> set[str]:
    return set(re.findall(r"^KERNEL (\w+)\(", _device.source(unit), re.MULTILINE))


def entries(ptx: str) -> set[str]:
    return set(re.findall(r"\.entry (\w+)\(", ptx))


def check_ptx(unit: str, ptx: bytes) -> None:
    text = ptx.decode()
    assert entries(text) == kernels(unit)
    assert not re.search(r"\b(add|sub|mul|fma|div|sqrt)[.\w]*\.ftz\.", text), "subnormal numbers would become 0"
    assert not re.search(r"\b(div|sqrt|rcp)[.\w]*\.approx\.f32", text), "a quotient would not be rounded to nearest"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", _device.units())
def test_nvrtc(unit: str, dtype: Any) -> None:
    library = nvrtc()
    if library is None:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    for architecture in ARCHITECTURES:
        flags = [*_device.options(np.dtype(dtype)), f"--gpu-architecture=compute_{architecture}"]
        ptx, log = compile_with_nvrtc(library, _device.source(unit), flags)
        assert not log
        check_ptx(unit, ptx)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", _device.units())
def test_nvcc(unit: str, dtype: Any, tmp_path: pathlib.Path) -> None:
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    (tmp_path / "kernels.cu").write_text(_device.source(unit))
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [NVCC, *_device.options(np.dtype(dtype)), "-Werror", "all-warnings", *targets, "-Xptxas", "-v", "-fatbin"]
    done = subprocess.run(
        [*command, "-o", "kernels.fatbin", "kernels.cu"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    built = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", done.stderr)
    assert set(built) == {(name, a) for name in kernels(unit) for a in ARCHITECTURES}
    # Rows in shared memory leave 4 KB of it to reductions; kernels without rows there may have more.
    static = [int(size) for size in re.findall(r"(\d+) bytes smem", done.stderr)]
    assert max(static, default=0) <= (8192 if unit == "quantizers" else 4096)
    # What does not fit registers goes to memory.
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}


def test_cupy_compiles() -> None:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError).cuda.nvrtc
    flags = (*_device.options(np.dtype(np.float32)), "--gpu-architecture=compute_90")
    check_ptx("softmax", _device.ptx(nvrtc, _device.source("softmax"), flags))
    with pytest.raises(RuntimeError, match=r"refnorm_fast\.cuda(.|\n)*undefined"):
        _device.ptx(nvrtc, "__global__ void f() { missing(); }", flags)
