"""Find test modules, claim scripts and golden makers by a method's name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).parent


def load(path: Path) -> ModuleType:
    """Import a file below ``tests`` once, under a name made from its path."""
    name = "_".join(("discovered", *path.relative_to(TESTS).with_suffix("").parts))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def claim_names() -> list[str]:
    """Methods ``"room/method"`` that have a claim script."""
    root = TESTS / "claims"
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.py"))


def evidence_of(name: str) -> list[dict[str, Any]]:
    """Run the claims of ``"room/method"``, or look up what they gave if nothing that they import has changed."""
    root = TESTS.parent
    if str(root / "docs" / "_ext") not in sys.path:
        sys.path.append(str(root / "docs" / "_ext"))
    from evidence import Store

    store = Store(root, root / ".cache" / "claims")
    return store.obtain(name, TESTS / "claims" / f"{name}.py").claims
