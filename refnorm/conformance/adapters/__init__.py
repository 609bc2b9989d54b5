"""Frameworks' own operators, held to the golden vectors: worked examples of an adapter.

An adapter maps names to functions that take NumPy arrays and give them back; what an operator cannot do raises
``NotImplementedError``::

    python -m refnorm.conformance run refnorm.conformance.adapters.pytorch:functions
    python -m refnorm.conformance run refnorm.conformance.adapters.onnx:functions

The frameworks are not installed with this package: ``pip install "refnorm[bench]"`` has both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def plain(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operator without mask and temperature say that it has none."""

    def call(*args: Any, where: Any = None, temperature: float = 1.0, **options: Any) -> Any:
        if where is not None or temperature != 1:
            raise NotImplementedError("no mask and no temperature")
        return operator(*args, **options)

    return call
