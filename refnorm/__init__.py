"""Machine-learning papers as readable, typed NumPy, each with a hand-derived backward pass.

Rooms (``refnorm.norms``, ``refnorm.softmax``, ...) load when they are first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

ROOMS = ("attention", "models", "nn", "norms", "poincare", "quantizers", "softmax", "solvers")

__all__ = [
    "ROOMS",
    "__version__",
    "attention",
    "catalogue",
    "claims",
    "conformance",
    "gradcheck",
    "interop",
    "models",
    "nn",
    "norms",
    "poincare",
    "quantizers",
    "softmax",
    "solvers",
    "tree",
    "verify",
]

if TYPE_CHECKING:
    from refnorm import (
        attention,
        catalogue,
        claims,
        conformance,
        gradcheck,
        interop,
        models,
        nn,
        norms,
        poincare,
        quantizers,
        softmax,
        solvers,
        tree,
        verify,
    )


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
