"""How passages and their vectors are written: text for people, JSON lines and NumPy's format for programs."""

import json
import textwrap
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from refnorm.cli._output import WIDEST

if TYPE_CHECKING:
    from refnorm._typing import AnyArray
    from refnorm.models._passages import Passage

EXCERPT = 300
"""Characters of a passage that are shown."""


class TextWriter:
    """One line a passage: where it stands, the first numbers of its vector, how it begins."""

    def __init__(self, stream: IO[str], dimension: int) -> None:
        self.stream, self.dimension = stream, dimension

    def write(self, passage: "Passage", vector: "AnyArray") -> None:
        numbers = " ".join(f"{float(value):+.4f}" for value in vector[:4])
        dots = " ..." if self.dimension > 4 else ""
        self.stream.write(f"{place(passage)}  [{numbers}{dots}]  {excerpt(passage.text, 60)}\n")

    def close(self) -> None:
        self.stream.flush()


class JsonWriter:
    """One JSON object a line."""

    def __init__(self, stream: IO[str], dimension: int) -> None:
        self.stream = stream

    def write(self, passage: "Passage", vector: "AnyArray") -> None:
        # Nine digits bring every float32 back exactly.
        json_line(self.stream, record(passage) | {"embedding": [float(f"{float(value):.9g}") for value in vector]})

    def close(self) -> None:
        self.stream.flush()


class NpyWriter:
    """A float32 array (passages, dimension) in NumPy's file format, whose length is filled in at the end."""

    def __init__(self, stream: IO[bytes], dimension: int) -> None:
        self.stream, self.dimension, self.rows = stream, dimension, 0
        self._header()

    def _header(self) -> None:
        import numpy as np

        shape = (self.rows, self.dimension)
        np.lib.format.write_array_header_1_0(self.stream, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def write(self, passage: "Passage", vector: "AnyArray") -> None:
        self.stream.write(vector.astype("<f4").tobytes())
        self.rows += 1

    def close(self) -> None:
        # The format reserves room for the number of rows to grow, so the header keeps its length.
        end = self.stream.tell()
        self.stream.seek(0)
        self._header()
        assert self.stream.tell() == end - 4 * self.rows * self.dimension
        self.stream.seek(end)


WRITERS: dict[str, Callable[[Any, int], Any]] = {"text": TextWriter, "jsonl": JsonWriter, "npy": NpyWriter}


def show_hit(stream: IO[str], rank: int, score: float, passage: "Passage", *, last: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    head = Text.assemble((f"{rank:>3}  ", "bold"), (f"{score:.4f}", "green"), "  ", (place(passage), "cyan"))
    console.print(head, soft_wrap=True)
    margin = " " * 5
    width = min(console.width, WIDEST)
    body = textwrap.fill(excerpt(passage.text, EXCERPT), width, initial_indent=margin, subsequent_indent=margin)
    console.print(Text(body), soft_wrap=True)
    if not last:
        console.print()


def place(passage: "Passage") -> str:
    """``file:line`` first, as editors and terminals know it."""
    lines = (
        f"{passage.first_line}-{passage.last_line}" if passage.last_line > passage.first_line else passage.first_line
    )
    return f"{passage.source}:{lines}"


def excerpt(text: str, length: int) -> str:
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    cut = flat[: length - 3]
    # At a space, unless the last word is longer than the text before it.
    space = cut.rfind(" ")
    return (cut[:space] if space > length // 2 else cut) + "..."


def record(passage: "Passage") -> dict[str, Any]:
    return {
        "file": passage.source,
        "first_line": passage.first_line,
        "last_line": passage.last_line,
        "text": passage.text,
    }


def json_line(stream: IO[str], record: dict[str, Any]) -> None:
    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
