"""``refnorm race``."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from refnorm.cli import _options as options
from refnorm.cli._checkout import checkout
from refnorm.cli._output import Problem


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(race)


def race(
    word: Annotated[
        list[str] | None, typer.Argument(metavar="WORD", help="Only races whose method or file holds a word.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Rounds of a race at most.")] = 21,
    budget: Annotated[float, typer.Option("--budget", metavar="S", help="Seconds of a race at most.")] = 6.0,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Threads of every candidate.")] = 2,
    json: options.Json = False,
) -> None:
    """Race the kernels against PyTorch, ONNX Runtime, SciPy and others, and measure both sides' errors."""
    for name, value in (("--rounds", rounds), ("--threads", threads)):
        if value < 1:
            raise Problem(f"{name}: expected an integer >= 1, got {value}")
    if not 0 < budget < float("inf"):
        raise Problem(f"--budget: expected a number > 0, got {budget}")
    script = checkout("the races") / "tools" / "race"
    command = [sys.executable, str(script), "--rounds", str(rounds), "--budget", str(budget), "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "race.json"
        if json:
            command += ["--json", str(target)]
        sys.stdout.flush()
        # With --json, stdout is for the document alone.
        status = subprocess.run([*command, "--", *(word or ())], stdout=sys.stderr if json else None).returncode
        if json and target.is_file():
            print(target.read_text(encoding="utf-8"), end="")
    raise typer.Exit(status)
