"""What all optimizers share: pure functions of (parameters, gradients, state), over parameter trees.

An optimizer is a frozen dataclass of hyper-parameters with two methods::

    state = optimizer.init(params)
    params, state = optimizer.step(params, grads, state)

Nothing is written in place. A changed learning rate is a changed optimizer, for the same state:
``dataclasses.replace(optimizer, learning_rate=rate)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Tree
from refnorm.tree import tree_leaves, tree_map

State = TypeVar("State")


class Optimizer(Protocol[State]):
    """The two methods that every optimizer of this room has.

    Parameters are an array or a (nested) dict, list, tuple or dataclass of float32 or float64 arrays;
    gradients have the same structure. A gradient of ``None`` leaves its parameter and state as they are.
    """

    def init(self, params: Tree) -> State:
        """Return the state before the first step."""
        ...

    def step(self, params: Tree, grads: Tree, state: State) -> tuple[Tree, State]:
        """Return the parameters and the state after one step."""
        ...


def zeros_like(params: Tree) -> Tree:
    """Return a tree of zeros in the shapes and dtypes of ``params``."""
    leaves = [
        None if leaf is None else np.zeros_like(_checks.float_array(leaf, name))
        for name, leaf in _named_leaves(params, "params")
    ]
    return _rebuild(params, leaves)


def update_leaves(
    update: Callable[..., tuple[AnyArray, ...]], params: Tree, grads: Tree, buffers: Mapping[str, Tree]
) -> tuple[Tree, ...]:
    """Apply ``update(param, grad, *buffers)`` to corresponding leaves.

    Parameters
    ----------
    update
        Returns the leaf's parameter and buffers after the step, in the order of its arguments.
    params, grads
        Trees of one structure.
    buffers
        Trees of the same structure, by the name that errors call them: ``{"state.momentum": ...}``.

    Returns
    -------
    tuple of trees: parameters, then the buffers

    Raises
    ------
    TypeError, ValueError
        If structure, shape or dtype of a leaf differs from the parameter's; the message names the leaf.
    """
    trees = {"grads": grads, **buffers}
    for name, tree in trees.items():
        tree_map(lambda *_: None, params, tree, path=name)
    columns = [[leaf for _, leaf in tree_leaves(tree)] for tree in trees.values()]
    rows: list[tuple[Any, ...]] = []
    for (path, leaf), *others in zip(tree_leaves(params), *columns, strict=True):
        if leaf is None or others[0] is None:
            rows.append((leaf, *others[1:]))
            continue
        param = _checks.float_array(leaf, _at("params", path))
        arrays = [_checks.float_array(other, _at(n, path)) for n, other in zip(trees, others, strict=True)]
        for name, array in zip(trees, arrays, strict=True):
            _checks.shape(array, _at(name, path), param.shape)
            _checks.same_dtype(_at("params", path), param, **{_at(name, path): array})
        rows.append(update(param, *arrays))
    return tuple(_rebuild(params, [row[i] for row in rows]) for i in range(1 + len(buffers)))


def check_betas(betas: Sequence[float], *, closed: str) -> None:
    """Raise unless ``betas`` are two numbers from 0 to 1; ``closed`` as in ``_checks.in_range``."""
    if len(betas) != 2:
        _checks.fail("betas", "two numbers", betas)
    for beta in betas:
        _checks.in_range(beta, "betas", 0.0, 1.0, closed=closed)


def _at(name: str, path: str) -> str:
    return f"{name}.{path}" if path else name


def _named_leaves(tree: Tree, name: str) -> list[tuple[str, Any]]:
    return [(_at(name, path), leaf) for path, leaf in tree_leaves(tree)]


def _rebuild(tree: Tree, leaves: Sequence[Any]) -> Tree:
    following = iter(leaves)
    return tree_map(lambda _: next(following), tree)
