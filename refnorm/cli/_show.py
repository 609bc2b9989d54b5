"""``refnorm show``."""

import inspect
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from refnorm.cli import _options as options
from refnorm.cli._checkout import claim_script, evidence
from refnorm.cli._evidence import as_json, show_claims
from refnorm.cli._list import summary
from refnorm.cli._output import Problem, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from refnorm._typing import Method


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(show)


def show(method: options.MethodName, json: options.Json = False) -> None:
    """Show a method: formula, source, functions, golden vectors, measured claims and where everything is."""
    from refnorm import catalogue

    try:
        record = catalogue.find(method)
    except ValueError as error:
        raise Problem(str(error).replace("name:", "METHOD:", 1)) from None
    status = catalogue.status(record)
    facts = summary(status) | {
        "formula": inspect.cleandoc(catalogue.module_of(record).__doc__ or ""),
        "signatures": signatures(record),
        "references": {text: list(names) for text, names in catalogue.references(record).items()},
        "golden_sources": golden_sources(record),
        "evidence": measured(record),
        "paths": {name: str(path) for name, path in paths(record).items()},
    }
    if json:
        print_json(facts)
    else:
        _print(console(), facts)


def signatures(method: "Method") -> dict[str, str]:
    """Return how each public name is called; annotations are left to the code."""
    import importlib

    room = importlib.import_module(f"refnorm.{method.room}")
    found = {}
    for name in method.functions:
        signature = inspect.signature(getattr(room, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        found[name] = f"{name}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"
    return found


def golden_sources(method: "Method") -> dict[str, int]:
    """Return who computed the golden values, with the number of cases, the most frequent first."""
    from refnorm.conformance import load_cases, method_names

    cases = load_cases(method.chapter) if method.chapter in method_names() else []
    return dict(Counter(case.source for case in cases).most_common())


def measured(method: "Method") -> dict[str, Any] | None:
    """Return the claims as they were last measured with the present sources, or ``None``."""
    from refnorm.catalogue import source_root

    root = source_root()
    if root is None:
        return None
    store, _ = evidence(root)
    found = store.stored(method.chapter, claim_script(root, method.chapter))
    return None if found is None else as_json(method.chapter, found.claims, found.seconds)


def paths(method: "Method") -> dict[str, Path]:
    """Return the files of a method that exist here."""
    from refnorm.catalogue import module_of, source_root
    from refnorm.conformance import GOLDEN_ROOT

    found = {
        "code": Path(module_of(method).__file__ or ""),
        "golden vectors": GOLDEN_ROOT / f"{method.chapter}.json",
    }
    root = source_root()
    if root is not None:
        found |= {
            "chapter": root / "docs" / f"{method.chapter}.md",
            "tests": root / "tests" / method.room / f"test_{method.name}.py",
            "claim": claim_script(root, method.chapter),
            "golden maker": root / "tests" / "golden" / f"{method.chapter}.py",
        }
    return {name: path for name, path in found.items() if path.is_file()}


def _print(out: "Console", facts: dict[str, Any]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    def head(text: str) -> None:
        out.print()
        out.print(Text(text, "bold"))

    def indented(text: str | Text) -> None:
        out.print(Padding(text, (0, 0, 0, 2), expand=False))

    out.print(Text.assemble((facts["title"], "bold"), "  ", (facts["method"], "cyan")))
    source = f"arXiv {facts['arxiv']}, https://arxiv.org/abs/{facts['arxiv']}" if facts["arxiv"] else "not on arXiv"
    out.print(f"{facts['authors']}, {facts['year']}; {source}", soft_wrap=True)
    head("Formula")
    indented(facts["formula"])
    head("Functions")
    for name, text in facts["signatures"].items():
        marks = [
            "vjp" if f"{name}_vjp" in facts["vjps"] else "",
            "kernel" if name in facts["kernels"] else "",
            "kernel of the vjp" if f"{name}_vjp" in facts["kernels"] else "",
        ]
        indented(Text.assemble(text, "  ", (", ".join(mark for mark in marks if mark), "green")))
    head("Sources")
    for text, names in facts["references"].items():
        indented(text)
        indented(Text(f"  {', '.join(names)}", "cyan"))
    head(f"Golden vectors: {facts['golden_cases']} cases")
    for source, count in facts["golden_sources"].items():
        indented(f"{count:>4}  {source}")
    head("Claims")
    if facts["evidence"] is not None:
        show_claims(out, [claim | {"figures": list(claim["figures"].items())} for claim in facts["evidence"]["claims"]])
    elif "claim" in facts["paths"]:
        indented(f"not measured yet with this version of the code: `refnorm claims {facts['method']}` measures them")
    else:
        indented("the scripts that measure them are in the source checkout, not in the installed package")
    head("Files")
    for name, path in facts["paths"].items():
        out.print(f"  {name:<15} {path}", soft_wrap=True)
