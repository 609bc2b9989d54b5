"""The way from a public function of :mod:`refnorm_fast` to its CUDA kernel."""

from __future__ import annotations

import importlib
from typing import Any

from refnorm import _checks


def call(name: str, out: Any, *args: Any, **options: Any) -> Any:
    """Call ``refnorm_fast.cuda.ROOM.FUNCTION``, for the name ``"ROOM.FUNCTION"``, and copy the result to ``out``."""
    room, function = name.split(".")
    result = getattr(importlib.import_module(f"refnorm_fast.cuda.{room}"), function)(*args, **options)
    if out is None:
        return result
    if not isinstance(result, tuple):
        _copy(result, out)
        return out
    if not isinstance(out, (tuple, list)) or len(out) != len(result):
        got = len(out) if isinstance(out, (tuple, list)) else type(out).__name__
        _checks.fail("out", f"{len(result)} arrays", got)
    for part, target in zip(result, out, strict=True):
        _copy(part, target)
    return tuple(out)


def _copy(result: Any, out: Any) -> None:
    from refnorm_fast.cuda._device import device

    if not hasattr(out, "__cuda_array_interface__"):
        _checks.fail_type("out", "an array on the GPU", type(out).__name__)
    target = device().adopt(out)
    if target.dtype != result.dtype:
        _checks.fail_type("out", f"dtype {result.dtype}", f"dtype {target.dtype}")
    _checks.shape(target, "out", result.shape)  # type: ignore[arg-type]
    device().copy(result, target)


def refuse(name: str) -> None:
    """Raise: an argument is on a GPU where it cannot be."""
    raise TypeError(
        f"{name}: expected an array in host memory, got one on a GPU; this function has no CUDA kernel, or its first "
        "argument is in host memory. Copy the array to the host: .get() in CuPy, .cpu() in PyTorch"
    )
