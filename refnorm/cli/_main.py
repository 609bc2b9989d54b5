"""The command's entrance: every command is a module's ``add``, and every way to end has its exit status."""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refnorm.cli._output import Problem, ReaderGone

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130
"""128 + the number of SIGINT, as shells report it."""

COMMANDS = ("embed", "search", "list", "show", "claims", "race", "conformance", "config")
"""In the order of the help page; ``list`` lives in ``refnorm.cli._list``."""

COMPLETE = "_REFNORM_COMPLETE"
"""The variable by which a shell asks for completions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; ``sys.argv`` by default. Returns the exit status."""
    try:
        try:
            import rich  # noqa: F401
            import typer
        except ModuleNotFoundError as error:
            return _complain(f'{error.name} is not installed; `pip install "refnorm[demo]"` installs what this needs')
        command = typer.main.get_command(_app())
        try:
            given = list(sys.argv[1:] if arguments is None else arguments)
            if not given and COMPLETE not in os.environ:
                given = ["--help"]
            status = command.main(args=given, prog_name="refnorm", standalone_mode=False, complete_var=COMPLETE)
        except typer.Abort:
            raise KeyboardInterrupt from None
        # Depending on typer's version, an interrupt arrives as an exception or as this status.
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except (ReaderGone, BrokenPipeError):
        # The interpreter must not try to flush what is left.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Problem as problem:
        return _complain(str(problem))
    except Exception as error:
        # A usage error of typer, in whichever version's class; everything else is a defect, to be seen whole.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(str(message()))


def _complain(message: str, status: int = 2) -> int:
    print(f"refnorm: {' '.join(message.split())}", file=sys.stderr)
    return status


def _app() -> "typer.Typer":
    import typer

    app = typer.Typer(
        name="refnorm",
        help="Machine-learning papers as readable NumPy: look them up, test your own implementation, search text.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        importlib.import_module(f"refnorm.cli._{name}").add(app)
    return app
