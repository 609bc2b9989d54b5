"""Every method, discovered from the rooms, with a status computed from what exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import refnorm
from refnorm._names import got
from refnorm._typing import Method
from refnorm.conformance import load_cases, method_names

PARTS = ("function", "vjp", "gradient check", "golden", "claim", "kernel", "chapter")
"""What a method may consist of, in the order of the catalogue's columns."""

_REFERENCES = re.compile(r"^References\n-+\n(.*?)(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
"""The section of a docstring in numpydoc's form."""


@dataclass(frozen=True)
class Status:
    """What exists of one method.

    A part is ``True`` or ``False``, or ``None`` where it does not apply (nothing to differentiate)
    or cannot be seen (tests and chapters live in a source checkout, not in an installed package).
    """

    method: Method
    functions: tuple[str, ...]
    missing: tuple[str, ...]
    vjps: tuple[str, ...]
    checked_vjps: tuple[str, ...]
    golden_cases: int
    claim: bool | None
    kernels: tuple[str, ...]
    chapter: bool | None

    @property
    def parts(self) -> dict[str, bool | None]:
        """The columns of the catalogue table, by the names in :data:`PARTS`."""
        source = source_root() is not None
        return {
            "function": not self.missing,
            "vjp": bool(self.vjps) or None,
            "gradient check": (set(self.vjps) <= set(self.checked_vjps) if self.vjps else None) if source else None,
            "golden": self.golden_cases > 0,
            "claim": self.claim,
            "kernel": bool(self.kernels) or None,
            "chapter": self.chapter,
        }


def source_root() -> Path | None:
    """Return the checkout that this package is imported from, or ``None`` for an installed package."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None


@cache
def methods() -> tuple[Method, ...]:
    """Return every method's record, by room and name."""
    found = []
    for room in refnorm.ROOMS:
        package = importlib.import_module(f"refnorm.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            record = getattr(importlib.import_module(f"refnorm.{room}.{module.name}"), "METHOD", None)
            if isinstance(record, Method):
                found.append(record)
    return tuple(sorted(found, key=lambda record: record.chapter))


def find(name: str) -> Method:
    """Return the method called ``"room/method"`` or, where only one fits, ``"method"`` or that has a function of that name.

    Raises
    ------
    ValueError
        If there is none, or more than one; the message names those, or the nearest.

    Examples
    --------
    >>> find("layer_norm").chapter
    'norms/layer_norm'
    >>> find("gelu").chapter
    'nn/activations'
    """
    bare = name.removesuffix("_vjp")

    def fits(method: Method) -> bool:
        return (
            name == method.name or bare in method.functions or bare in [f"{method.room}.{f}" for f in method.functions]
        )

    matches = [m for m in methods() if name == m.chapter] or [m for m in methods() if fits(m)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"name: expected one of {', '.join(m.chapter for m in matches)}, got {name!r}")
    known = [m.chapter for m in methods()] + [f"{m.room}.{f}" for m in methods() for f in m.functions]
    raise ValueError(f"name: expected a method such as norms/layer_norm or a function of one, got {got(name, known)}")


def module_of(method: Method) -> ModuleType:
    """Return the module that implements a method: its docstring holds the formula."""
    return importlib.import_module(f"refnorm.{method.room}._{method.name}")


def references(method: Method) -> dict[str, tuple[str, ...]]:
    """Return where the public functions of a method stand in the literature.

    Returns
    -------
    dict
        The text of each ``References`` section, on one line, with the names of the functions and classes that have it, both in
        the order of the method's functions. Helpers that stand nowhere are absent.

    Examples
    --------
    >>> next(iter(references(find("norms/layer_norm")).items()))
    ('Ba, Kiros, Hinton (2016), arXiv 1607.06450, equations 3 and 4.', ('add_layer_norm', 'layer_norm'))
    """
    room = importlib.import_module(f"refnorm.{method.room}")
    found: dict[str, tuple[str, ...]] = {}
    for name in method.functions:
        section = _REFERENCES.search(inspect.getdoc(getattr(room, name)) or "")
        if section:
            text = " ".join(section[1].split())
            found[text] = (*found.get(text, ()), name)
    return found


def status(method: Method) -> Status:
    """Look at the packages, the golden files and, in a checkout, the tests and the book."""
    room = importlib.import_module(f"refnorm.{method.room}")
    vjps = tuple(f"{name}_vjp" for name in method.functions if hasattr(room, f"{name}_vjp"))
    root = source_root()
    return Status(
        method=method,
        functions=method.functions,
        missing=tuple(name for name in method.functions if not hasattr(room, name)),
        vjps=vjps,
        checked_vjps=_checked_vjps(root / "tests" / method.room / f"test_{method.name}.py") if root else (),
        golden_cases=len(load_cases(method.chapter)) if method.chapter in method_names() else 0,
        claim=(root / "tests" / "claims" / f"{method.chapter}.py").is_file() if root else None,
        kernels=_kernels(method),
        chapter=(root / "docs" / f"{method.chapter}.md").is_file() if root else None,
    )


def _kernels(method: Method) -> tuple[str, ...]:
    try:
        room = importlib.import_module(f"refnorm_fast.{method.room}")
    except ImportError:
        return ()
    names = [name for function in method.functions for name in (function, f"{function}_vjp")]
    return tuple(name for name in names if hasattr(room, name))


def _checked_vjps(path: Path) -> tuple[str, ...]:
    """Names that a test file hands to ``GradientCase``, found without importing it."""
    if not path.is_file():
        return ()
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    first = (
        call.args[0]
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "GradientCase" and call.args
    )
    return tuple(
        dict.fromkeys(
            node.id if isinstance(node, ast.Name) else node.attr
            for node in first
            if isinstance(node, (ast.Name, ast.Attribute))
        )
    )


def format_table() -> str:
    """The catalogue as Markdown, one line a method."""
    sign = {True: "yes", False: "MISSING", None: "–"}
    lines = ["| method | paper | functions (with vjp) | " + " | ".join(PARTS[2:]) + " |"]
    lines.append("|" + " --- |" * (3 + len(PARTS[2:])))
    for method in methods():
        current = status(method)
        parts = current.parts
        cells = [sign[parts[name]] for name in PARTS[2:]]
        cells[1] = f"{current.golden_cases} cases" if current.golden_cases else "MISSING"
        counts = f"{len(current.functions)} ({len(current.vjps)})"
        title = f"{method.title} ({method.year})"
        lines.append(f"| `{method.chapter}` | {title} | {counts} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
