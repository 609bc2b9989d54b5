"""Parameter trees: an array, or a nested dict, list, tuple, dataclass or namespace of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from refnorm._typing import Tree


def children(tree: Tree) -> list[tuple[str, Tree]] | None:
    """Return the named children of an inner node, or ``None`` for a leaf (an array or ``None``)."""
    if isinstance(tree, dict):
        return [(str(key), value) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(tree)]
    if isinstance(tree, SimpleNamespace):
        return list(vars(tree).items())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return None


def tree_leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` in a fixed order; paths read like ``"blocks.0.weight"``."""
    nodes = children(tree)
    if nodes is None:
        yield path, tree
        return
    for name, child in nodes:
        yield from tree_leaves(child, f"{path}.{name}" if path else name)


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree, path: str = "") -> Tree:
    """Apply ``function`` to corresponding leaves and rebuild the tree.

    Raises
    ------
    ValueError
        If a tree has another structure than the first one; the message names the place.

    Examples
    --------
    >>> tree_map(lambda a, b: a + b, {"w": 1.0, "b": [2.0]}, {"w": 10.0, "b": [20.0]})
    {'w': 11.0, 'b': [22.0]}
    """
    nodes = children(tree)
    if nodes is None:
        if any(children(other) is not None for other in others):
            raise ValueError(f"{path or 'tree'}: expected a leaf in every tree, got an inner node")
        return function(tree, *others)
    names = [name for name, _ in nodes]
    branches = []
    for other in others:
        other_nodes = children(other)
        if type(other) is not type(tree) or other_nodes is None or [n for n, _ in other_nodes] != names:
            raise ValueError(
                f"{path or 'tree'}: expected the same structure {type(tree).__name__}{names} in every tree"
            )
        branches.append([child for _, child in other_nodes])
    mapped = [
        tree_map(function, child, *(branch[i] for branch in branches), path=f"{path}.{name}" if path else name)
        for i, (name, child) in enumerate(nodes)
    ]
    if isinstance(tree, dict):
        return dict(zip(tree, mapped, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*mapped)
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped)
    named = dict(zip(names, mapped, strict=True))
    return SimpleNamespace(**named) if isinstance(tree, SimpleNamespace) else dataclasses.replace(tree, **named)
