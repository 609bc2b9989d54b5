"""What both frameworks need: the leaves of a call's arguments, their names, and a pullback's entries for them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refnorm._arrays import is_differentiable
from refnorm.tree import tree_leaves, tree_map


def framework(name: str) -> Any:
    """Import a framework, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(f"{name}: not installed; pip install {name}", name=name) from None


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a value is an array of NumPy's, or a number of NumPy's own."""
    return isinstance(leaf, (np.ndarray, np.generic))


def named_after(f_vjp: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``function`` the name of ``f_vjp`` without its ending."""
    name = name_of(f_vjp)
    function.__name__ = function.__qualname__ = name.removesuffix("_vjp")
    function.__doc__ = f"Call ``{name}`` and differentiate with its pullback."
    return function


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves in their fixed order."""
    return [leaf for _, leaf in tree_leaves(tree)]


def with_leaves(tree: Any, leaves: Sequence[Any]) -> Any:
    """Rebuild ``tree`` with other leaves, in the order of :func:`leaves_of`."""
    following = iter(leaves)
    return tree_map(lambda _: next(following), tree)


def leaf_names(f_vjp: Callable[..., Any], args: Sequence[Any]) -> list[str]:
    """Name every leaf of the arguments as the function's signature does, with its path behind."""
    parameters = list(inspect.signature(f_vjp).parameters.values())
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [*named, *(f"argument {position}" for position in range(len(named), len(args)))]
    return [
        f"{name}.{path}" if path else name
        for name, argument in zip(names, args, strict=False)
        for path, _ in tree_leaves(argument)
    ]


def leaf_cotangents(f_vjp: Callable[..., Any], args: Sequence[Any], entries: Sequence[Any]) -> list[Any]:
    """Return one cotangent a leaf of the arguments, ``None`` for leaves that a pullback has no entry for."""
    has_entry = [argument is None or is_differentiable(argument) for argument in args]
    if sum(has_entry) != len(entries):
        raise ValueError(
            f"{name_of(f_vjp)}: expected one cotangent for each of {sum(has_entry)} float "
            f"arguments from the pullback, got {len(entries)}"
        )
    following = iter(entries)
    found: list[Any] = []
    for argument, present in zip(args, has_entry, strict=True):
        entry = next(following) if present else None
        # By path, since a framework may hand a dictionary over in another order.
        cotangents = dict(tree_leaves(entry)) if entry is not None else {}
        for path, leaf in tree_leaves(argument):
            if entry is not None and leaf is not None and path not in cotangents:
                raise ValueError(f"{name_of(f_vjp)}: expected a cotangent of {path} from the pullback, got none")
            found.append(cotangents.get(path))
    return found


def name_of(f_vjp: Callable[..., Any]) -> str:
    return str(getattr(f_vjp, "__name__", "f_vjp"))
