"""``refnorm list``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from refnorm.cli import _options as options
from refnorm.cli._output import Problem, console, print_json

if TYPE_CHECKING:
    from refnorm.catalogue import Status

MARK = {True: "yes", False: "missing", None: "–"}


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("list")(list_methods)


def list_methods(
    word: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="Only methods whose name, title or functions hold all the words."),
    ] = None,
    room: Annotated[str | None, typer.Option("--room", metavar="ROOM", help="Only this room.")] = None,
    json: options.Json = False,
) -> None:
    """List the methods and what exists of each."""
    import refnorm
    from refnorm import catalogue

    if room is not None and room not in refnorm.ROOMS:
        raise Problem(f"--room: expected one of {', '.join(refnorm.ROOMS)}, got {room!r}")
    words = [part.lower() for part in word or ()]
    chosen = [
        method
        for method in catalogue.methods()
        if room in (None, method.room)
        and all(part in " ".join((method.chapter, method.title, *method.functions)).lower() for part in words)
    ]
    if not chosen:
        raise Problem(f"WORD: expected words of a method's name, title or functions, got {' '.join(word or ())!r}")
    statuses = [catalogue.status(method) for method in chosen]
    if json:
        print_json([summary(status) for status in statuses])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("title", overflow="fold")
    for name in ("functions", "vjp", "golden", "kernels"):
        table.add_column(name, justify="right")
    table.add_column("claim")
    for status in statuses:
        method = status.method
        counts = [len(status.functions), len(status.vjps), status.golden_cases, len(status.kernels)]
        title = f"{method.title} ({method.year})"
        table.add_row(method.chapter, title, *(str(count or "–") for count in counts), MARK[status.claim])
    out = console()
    out.print(table)
    out.print(
        f"{len(chosen)} {'method' if len(chosen) == 1 else 'methods'}; `refnorm show METHOD` tells more about one",
        style="dim",
    )


def summary(status: "Status") -> dict[str, Any]:
    """Describe a method for a program."""
    method = status.method
    return {
        "method": method.chapter,
        "title": method.title,
        "authors": method.authors,
        "year": method.year,
        "arxiv": method.arxiv,
        "functions": list(status.functions),
        "vjps": list(status.vjps),
        "golden_cases": status.golden_cases,
        "kernels": list(status.kernels),
        "parts": status.parts,
    }
