"""Text files that are looked through before anything is computed from them."""

import codecs
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from refnorm.cli._output import Problem, reason


@dataclass(frozen=True)
class Source:
    """A text that has been looked through once."""

    path: str
    """As given; ``-`` is standard input."""
    characters: int
    content: bytes | None
    """Held where it cannot be read twice: standard input, a pipe."""

    @property
    def name(self) -> str:
        """What the file is called in the output; bytes that are no text have a sign in their place."""
        return "standard input" if self.path == "-" else os.fsencode(self.path).decode("utf-8", "replace")

    def open(self) -> TextIO:
        if self.content is None:
            return Path(self.path).open(encoding="utf-8-sig")
        return io.TextIOWrapper(io.BytesIO(self.content), encoding="utf-8-sig")


def checked_source(name: str) -> Source:
    """Read a file through, so that bad input is found before anything is computed or written."""
    try:
        if name == "-":
            content: bytes | None = sys.stdin.buffer.read()
        elif Path(name).is_dir():
            raise Problem(f"{name}: expected a file, got a directory")
        else:
            content = None if Path(name).is_file() else Path(name).read_bytes()
        characters, blank, decoder = 0, True, codecs.getincrementaldecoder("utf-8")()
        with io.BytesIO(content) if content is not None else Path(name).open("rb") as stream:
            position = 0
            while block := stream.read(1 << 20):
                if (zero := block.find(b"\0")) >= 0:
                    raise Problem(f"{name}: expected UTF-8 text, got binary data (a zero byte at {position + zero})")
                try:
                    text = decoder.decode(block)
                except UnicodeDecodeError as error:
                    # The decoder's own position counts from the bytes that it had kept back.
                    raise Problem(f"{name}: expected UTF-8 text, got other bytes ({error.reason})") from None
                position += len(block)
                characters += len(text)
                blank = blank and not text.strip()
        if decoder.getstate()[0]:
            raise Problem(f"{name}: expected UTF-8 text, got an unfinished character at the end")
    except OSError as error:
        raise Problem(f"{name}: {reason(error)}") from None
    except ValueError as error:
        # A zero character, or one that no file name can have.
        raise Problem(f"{name!r}: expected a file name, got: {error}") from None
    if not position:
        raise Problem(f"{name}: expected text, got an empty file")
    if blank:
        raise Problem(f"{name}: expected text, got nothing but white space")
    return Source(name, characters, content)
