"""Every public function has golden vectors, or belongs to a kind that cannot have them, or is named here with the reason."""

import dataclasses
import importlib
import inspect
import typing

import pytest

from refnorm import catalogue
from refnorm.conformance import function_names

COVERED = frozenset(function_names())

CALLABLES = ("Callable", "MatVec", "ModelVjp", "LossGrad", "TrainFunction", "Policy", "Optimizer", "Problem", "Oracle")
"""Words of annotations that stand for something to call."""


def public_functions():
    """Yield every public function, class and pullback-giving function, with its name."""
    for method in catalogue.methods():
        room = importlib.import_module(f"refnorm.{method.room}")
        for name in method.functions:
            for one in (name, f"{name}_vjp"):
                if hasattr(room, one):
                    yield f"{method.room}.{one}", getattr(room, one)


def kind_without_vectors(thing):
    """Return why a function or class of this kind has no golden vectors, or an empty string."""
    if isinstance(thing, type):
        return "a class: what it holds or does is covered by the functions that take or return it"
    parameters = inspect.signature(thing).parameters.values()
    if any(parameter.name == "rng" for parameter in parameters):
        return "its result depends on NumPy's random numbers, which other languages do not have"
    required = [p for p in parameters if p.default is p.empty or p.name in ("forward", "project")]
    if any(word in str(parameter.annotation) for parameter in required for word in CALLABLES):
        return "it takes functions, which a file cannot hold"
    return ""


if __name__ == "__main__":
    for name, thing in public_functions():
        if name not in COVERED and not kind_without_vectors(thing):
            s = inspect.signature(thing)
            print(name, s)
