"""What ``refnorm conformance`` and ``python -m refnorm.conformance`` do; the two differ only in how they read options."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from refnorm.conformance._export import compare_exported, export_vectors, load_exported
from refnorm.conformance._files import load_cases, method_names
from refnorm.conformance._report import report
from refnorm.conformance._runner import format_table, load_implementation, run
from refnorm.conformance._version import VECTORS_VERSION


class UsageError(Exception):
    """Bad input; the message is one line for the user."""


def run_command(
    implementation: str, methods: Sequence[str] | None = None, *, as_json: bool = False, vectors: str | None = None
) -> int:
    """Hold an implementation to the vectors and print the outcome; 0 if every case passed, else 1."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        outcomes = run(
            load_implementation(implementation),
            methods=methods or None,
            vectors=None if vectors is None else load_exported(vectors),
        )
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from None
    print(json.dumps(report(outcomes, implementation), indent=1) if as_json else format_table(outcomes))
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def export_command(
    directory: str, methods: Sequence[str] | None = None, *, overwrite: bool = False, as_json: bool = False
) -> int:
    """Write the vectors as a folder and say what was written."""
    try:
        index = export_vectors(directory, methods=methods or None, overwrite=overwrite)
    except ValueError as error:
        text = str(error).replace("directory:", "DIR:", 1).replace("or overwrite,", "or --overwrite,", 1)
        raise UsageError(text.replace("methods:", "--method:", 1)) from None
    except OSError as error:
        raise UsageError(f"DIR: {directory}: {error.strerror or error}") from None
    cases = sum(entry["cases"] for entry in index["methods"])
    size = sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
    facts = {"directory": os.fspath(directory), "methods": len(index["methods"]), "cases": cases, "bytes": size}
    if as_json:
        print(json.dumps(facts | {"vectors_version": VECTORS_VERSION}, indent=1))
    else:
        print(
            f"{directory}: {cases:,} cases of {facts['methods']} methods, {size / 1e6:.1f} MB, "
            f"vectors {VECTORS_VERSION}; README.md there describes the files"
        )
    return 0


def compare_command(directory: str, *, as_json: bool = False) -> int:
    """Print what changed since an export."""
    try:
        changes = compare_exported(directory)
    except ValueError as error:
        raise UsageError(f"DIR: {error}") from None
    if as_json:
        print(json.dumps(changes, indent=1))
        return 0
    for kind, names in changes.items():
        for name in names:
            print(f"{kind:<8} {name}")
    major, minor = changes["removed"] or changes["changed"], changes["added"]
    step = "MAJOR" if major else "MINOR" if minor else "neither number"
    print(", ".join(f"{len(names)} {kind}" for kind, names in changes.items()) + f": the version rises by {step}")
    return 0


def list_command(*, as_json: bool = False) -> int:
    """Print the methods with golden vectors and their functions."""
    found = {}
    for method in method_names():
        targets = [case.target for case in load_cases(method)]
        found[method] = {name: targets.count(name) for name in dict.fromkeys(targets)}
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    for method, functions in found.items():
        print(f"{method}: {', '.join(f'{name} ({count})' for name, count in functions.items())}")
    return 0
