"""Names of methods for completion: read from file names, because importing all methods takes seconds."""

from pathlib import Path

import refnorm

PACKAGE = Path(refnorm.__file__).parent


def method_names() -> list[str]:
    """Return ``"room/method"`` for every module of a room that holds a method's record."""
    return sorted(
        f"{room}/{path.stem.removeprefix('_')}"
        for room in refnorm.ROOMS
        for path in (PACKAGE / room).glob("_[!_]*.py")
        if "\nMETHOD = Method(" in path.read_text(encoding="utf-8")
    )


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that a word on the command line may become; its room may be left out."""
    names = method_names()
    return [name for name in names if name.startswith(incomplete)] or [
        name for name in names if name.split("/")[1].startswith(incomplete)
    ]
