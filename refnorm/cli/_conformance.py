"""``refnorm conformance``."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from refnorm.cli import _options as options
from refnorm.cli._names import complete_method
from refnorm.cli._output import Problem

Methods = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="METHOD", help="Only this; may be repeated.", autocompletion=complete_method),
]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="A folder.")]


def add(app: typer.Typer) -> None:
    """Add the group to the application."""
    group = typer.Typer(
        help="Golden vectors: hold an implementation to them, export them for other languages.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command()(run)
    group.command()(export)
    group.command()(compare)
    group.command("list")(list_vectors)
    app.add_typer(group, name="conformance")


def run(
    implementation: Annotated[
        str,
        typer.Argument(
            metavar="MODULE[:MAPPING]", help="my_package.my_module, or a mapping of names to functions in one."
        ),
    ],
    method: Methods = None,
    vectors: Annotated[
        str | None, typer.Option("--vectors", metavar="DIR", help="An exported folder instead of this package's.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Hold an implementation to the golden vectors; exit status 1 if it fails one."""
    from refnorm.conformance import _commands

    _end(_commands.run_command, implementation, _found(method), as_json=json, vectors=vectors)


def export(
    directory: Directory,
    method: Methods = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    json: options.Json = False,
) -> None:
    """Write the vectors as a folder that programs in any language read."""
    from refnorm.conformance import _commands

    _end(_commands.export_command, directory, _found(method), overwrite=overwrite, as_json=json)


def compare(directory: Directory, json: options.Json = False) -> None:
    """List what changed since a folder was exported."""
    from refnorm.conformance import _commands

    _end(_commands.compare_command, directory, as_json=json)


def list_vectors(json: options.Json = False) -> None:
    """List the functions with golden vectors, and how many cases there are of each."""
    from refnorm.conformance import _commands

    _end(_commands.list_command, as_json=json)


def _found(names: list[str] | None) -> list[str] | None:
    """Let a method be named without its room, as everywhere on this command line."""
    from refnorm import catalogue

    try:
        return [catalogue.find(name).chapter for name in names or ()] or None
    except ValueError as error:
        raise Problem(str(error).replace("name:", "--method:", 1)) from None


def _end(command: Callable[..., int], *arguments: Any, **named: Any) -> None:
    from refnorm.conformance import _commands

    try:
        raise typer.Exit(command(*arguments, **named))
    except _commands.UsageError as error:
        raise Problem(str(error)) from None
