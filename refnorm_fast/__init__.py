"""The functions of :mod:`refnorm` as SIMD kernels: same rooms, same names, same signatures, and ``out=``.

Rooms (``refnorm_fast.norms``, ``refnorm_fast.softmax``, ...) load when they are first used.

Examples
--------
>>> import numpy as np
>>> import refnorm_fast
>>> refnorm_fast.softmax.softmax(np.zeros(4, np.float32))
array([0.25, 0.25, 0.25, 0.25], dtype=float32)
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

try:
    from refnorm_fast._runtime import get_num_threads, isa, set_num_threads, show_config
except ModuleNotFoundError as error:
    if error.name != "refnorm_fast._runtime":
        raise
    raise ImportError(
        "refnorm_fast: this installation has no compiled kernels (REFNORM_PURE was set, or it is a bare source "
        "tree); `pip install --force-reinstall refnorm` without REFNORM_PURE builds them with a C compiler",
        name="refnorm_fast",
    ) from None

ROOMS = ("attention", "models", "nn", "norms", "poincare", "quantizers", "softmax", "solvers")

__all__ = [
    "ROOMS",
    "attention",
    "get_num_threads",
    "isa",
    "models",
    "nn",
    "norms",
    "poincare",
    "quantizers",
    "set_num_threads",
    "show_config",
    "softmax",
    "solvers",
]

if TYPE_CHECKING:
    from refnorm_fast import attention, models, nn, norms, poincare, quantizers, softmax, solvers


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
