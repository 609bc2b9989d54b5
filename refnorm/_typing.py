"""Types shared by every room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

F = TypeVar("F", bound=np.floating[Any])
G = TypeVar("G", bound=np.generic)

Array: TypeAlias = np.ndarray[Any, np.dtype[G]]
IntArray: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]
AnyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]

Pullback: TypeAlias = Callable[..., tuple[Any, ...]]
"""Maps the cotangent of a value to one cotangent per array argument, in argument order.

Integer arguments have no entry; an optional array that was left out has the entry ``None``.
"""

Tree: TypeAlias = Any
"""An array, or a (nested) dict, list, tuple or dataclass of arrays."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What one module implements and where it comes from.

    Parameters
    ----------
    title, authors, year
        As printed on the paper; a room's basics give the usual name of the subject and its first source.
    arxiv
        Identifier such as ``"1607.06450"``, or ``None`` where there is no such paper.
    functions
        Names of the public functions and classes of the module. ``f_vjp`` is implied by ``f``
        and is not listed; whether it exists is looked up, never declared.
    chapter
        Path below ``docs`` without suffix, which is also the method's name: ``"norms/layer_norm"``.
    paper
        False for a room's basics, which several papers share.
    """

    title: str
    authors: str
    year: int
    arxiv: str | None
    functions: tuple[str, ...]
    chapter: str
    paper: bool = True

    @property
    def room(self) -> str:
        return self.chapter.split("/")[0]

    @property
    def name(self) -> str:
        return self.chapter.split("/")[1]
