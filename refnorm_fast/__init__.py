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
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

SPIN_COUNT = 3000
"""Times that an idle OpenMP thread looks for work before it sleeps, about 50 microseconds.

GNU OpenMP's own default, 300 000, keeps a thread on its core for milliseconds after a call. Whatever else wants
that core waits as long, and if it is the caller itself, whose thread the system has put on the same core, a
call of 0.1 ms takes a scheduler's slice of 4 ms.
"""


@contextmanager
def _short_spin() -> Iterator[None]:
    """Have the OpenMP runtime read :data:`SPIN_COUNT` when it is loaded, unless the user has said what it shall do."""
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


try:
    with _short_spin():
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
