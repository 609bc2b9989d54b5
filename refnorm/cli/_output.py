"""What the commands share: problems for the user, files that appear only when whole, JSON, the terminal's width."""

import contextlib
import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 100
"""Columns of running text, however wide the terminal is."""

PIPE_WIDTH = 160
"""Columns of a table that is not written to a terminal, unless the variable COLUMNS says how many."""

SUFFIXES = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", "": "text"}
"""Formats of files by the end of their names."""


class Problem(Exception):
    """Bad input; the message is one line for the user."""


class ReaderGone(Exception):
    """Who reads our standard output has seen enough. (typer would take a BrokenPipeError for a failure.)"""


def console(stream: IO[str] | None = None) -> "Console":
    """Return a console for ``stream`` (stdout by default) that takes no text for markup."""
    from rich.console import Console

    target = stream or sys.stdout
    known = target.isatty() or "COLUMNS" in os.environ
    return Console(file=target, highlight=False, markup=False, width=None if known else PIPE_WIDTH)


def print_json(content: Any) -> None:
    """Write one JSON document to stdout; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(finite(content), ensure_ascii=False, indent=1, allow_nan=False))


def finite(content: Any) -> Any:
    """Return a copy of a JSON-like value with ``None`` for every NaN and infinity."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return content


def reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def chosen_format(form: str | None, output: str | None, known: tuple[str, ...]) -> str:
    if form is None:
        suffix = Path(output).suffix.lower() if output else ""
        form = SUFFIXES.get(suffix, "")
        if form not in known:
            ends = ", ".join(end for end, name in SUFFIXES.items() if end and name in known)
            raise Problem(f"--output: expected --format or a name that ends in one of {ends}, got {output!r}")
    if form not in known:
        raise Problem(f"--format: expected one of {', '.join(known)}, got {form!r}")
    if form == "npy" and output is None:
        raise Problem("--format npy: expected --output with it, got none")
    return form


def check_output(output: str) -> None:
    path = Path(output)
    if path.is_dir():
        raise Problem(f"--output: expected a file, got a directory: {output}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise Problem(f"--output: no such directory: {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise Problem(f"--output: no permission to write {output}")


@contextlib.contextmanager
def opened(output: str | None, *, binary: bool) -> Iterator[Any]:
    """Open the output; a file appears under its name only when all has been written."""
    if output is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        return
    # Through a symbolic link, its target is replaced, not the link.
    path = Path(output).resolve()
    regular = not path.exists() or stat.S_ISREG(path.stat().st_mode)
    target = path.with_name(f".{path.name}.{os.getpid()}.part") if regular else path
    encoding = None if binary else "utf-8"
    try:
        with target.open("wb" if binary else "w", encoding=encoding) as stream:
            yield stream
        if regular:
            target.replace(path)
    except OSError as error:
        raise Problem(f"--output: {output}: {reason(error)}") from None
    finally:
        if regular:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
