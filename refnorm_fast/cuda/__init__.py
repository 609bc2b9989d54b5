"""The functions of :mod:`refnorm` as CUDA kernels, for arrays on a GPU: same rooms, same names, same signatures.

Results are CuPy arrays. The public functions of :mod:`refnorm_fast` come here by themselves when they are given an
array on a GPU; CuPy is imported when the first such array arrives.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

ROOMS = ("attention", "norms", "poincare", "quantizers", "softmax", "solvers")

__all__ = ["ROOMS", "attention", "norms", "poincare", "quantizers", "softmax", "solvers"]

if TYPE_CHECKING:
    from refnorm_fast.cuda import attention, norms, poincare, quantizers, softmax, solvers


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
