"""``refnorm config``."""

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from typing import Any

import typer

from refnorm.cli import _options as options
from refnorm.cli._job import THREAD_VARIABLES
from refnorm.cli._output import console, print_json

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)[^;]*;.*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"]")


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(config)


def config(json: options.Json = False) -> None:
    """Show versions, instruction set, threads, the model, and which extras are installed."""
    facts = describe()
    if json:
        print_json(facts)
        return
    out = console()

    def line(name: str, value: object) -> None:
        out.print(f"{name:>15}: {value}", soft_wrap=True)

    for name in ("refnorm", "python", "platform", "numpy", "scipy", "checkout", "model"):
        line(name, facts[name] or "none")
    if facts["kernels"] is None:
        line("kernels", f"none ({facts['kernels_problem']})")
    for name, value in (facts["kernels"] or {}).items():
        text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        line(name, ", ".join(text) if isinstance(text, list) else text)
    for name, value in facts["environment"].items():
        line(name, value)
    for extra, packages in facts["extras"].items():
        there = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        missing = ", ".join(name for name, version in packages.items() if not version)
        line(f"[{extra}]", "; ".join(part for part in (there, f"missing: {missing}" if missing else "") if part))


def describe() -> dict[str, Any]:
    """Describe the installation for a program."""
    import refnorm
    from refnorm.catalogue import source_root

    facts: dict[str, Any] = {
        "refnorm": refnorm.__version__,
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "numpy": _version("numpy"),
        "scipy": _version("scipy"),
        "checkout": str(source_root() or "") or None,
        "model": _model(),
        "kernels": None,
        "kernels_problem": None,
        "environment": {name: os.environ[name] for name in (*THREAD_VARIABLES, "REFNORM_ISA") if name in os.environ},
        "extras": extras(),
    }
    try:
        facts["kernels"] = importlib.import_module("refnorm_fast").show_config(print_it=False)
    except ImportError as error:
        facts["kernels_problem"] = str(error)
    return facts


def extras() -> dict[str, dict[str, str | None]]:
    """Return the packages of each extra with the installed versions; ``None`` for one that is missing."""
    found: dict[str, dict[str, str | None]] = {}
    try:
        requirements = importlib.metadata.requires("refnorm") or []
    except importlib.metadata.PackageNotFoundError:
        return found
    for text in requirements:
        if match := REQUIREMENT.match(text):
            found.setdefault(match["extra"], {})[match["name"]] = _version(match["name"])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _model() -> str | None:
    from refnorm.models import ModelError
    from refnorm.models._checkpoint import default_directory

    try:
        return str(default_directory())
    except ModelError:
        return None
