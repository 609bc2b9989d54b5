"""What only a source checkout has: evidence scripts, races, chapters."""

import importlib
import sys
from pathlib import Path
from typing import Any

from refnorm.cli._output import Problem


def checkout(what: str) -> Path:
    """Return the checkout that the package is imported from.

    Raises
    ------
    Problem
        For an installed package; the message says how to get ``what``.
    """
    from refnorm.catalogue import source_root

    root = source_root()
    if root is None:
        raise Problem(
            f"{what} are not part of the installed package: get the source (the repository or the sdist, unpacked), "
            'run `pip install --editable ".[test,demo,bench]"` in it, and repeat the command'
        )
    return root


def claim_script(root: Path, method: str) -> Path:
    """Return where the evidence script of ``"room/method"`` is, or would be."""
    return root / "tests" / "claims" / f"{method}.py"


def evidence(root: Path) -> tuple[Any, type[Exception]]:
    """Return the store of measured evidence that the book uses too, and the error of a script that fails."""
    folder = str(root / "docs" / "_ext")
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.import_module("evidence")
    return module.Store(root, root / ".cache" / "claims"), module.ScriptFailed
