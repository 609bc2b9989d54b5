"""``refnorm claims``."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import typer

from refnorm.cli import _options as options
from refnorm.cli._checkout import checkout, claim_script, evidence
from refnorm.cli._evidence import as_json, show_claims
from refnorm.cli._output import Problem, console, print_json


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(claims)


def claims(method: options.MethodNames = None, json: options.Json = False) -> None:
    """Measure the papers' claims again; exit status 1 if one does not come out as the book says."""
    root = checkout("the scripts that measure the claims")
    names = _chosen(root, method or ())
    if importlib.util.find_spec("matplotlib") is None:
        raise Problem('matplotlib is not installed; `pip install "refnorm[test]"` installs what this needs')
    store, script_failed = evidence(root)
    out, measured, as_stated = console(), [], True
    for name in names:
        if sys.stderr.isatty():
            print(f"measuring {name} ...", file=sys.stderr)
        try:
            found = store.run(name, claim_script(root, name))
        except script_failed as error:
            raise Problem(str(error)) from None
        as_stated &= all(claim["as_stated"] for claim in found.claims)
        measured.append(as_json(name, found.claims, found.seconds))
        if not json:
            out.print(f"{name} ({found.seconds:.1f} s)", style="bold")
            show_claims(out, found.claims)
    if json:
        print_json(measured)
    raise typer.Exit(0 if as_stated else 1)


def _chosen(root: Path, given: Any) -> list[str]:
    from refnorm import catalogue

    if not given:
        methods = catalogue.methods()
    else:
        try:
            methods = tuple(catalogue.find(name) for name in given)
        except ValueError as error:
            raise Problem(str(error).replace("name:", "METHOD:", 1)) from None
    names = list(dict.fromkeys(method.chapter for method in methods))
    without = [name for name in names if not claim_script(root, name).is_file()]
    if given and without:
        raise Problem(f"METHOD: expected methods with a claim, got {', '.join(without)}")
    return [name for name in names if name not in without]
