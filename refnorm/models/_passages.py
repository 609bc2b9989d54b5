"""Cut text files into passages that an encoder can take whole, and remember where each one stood."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from refnorm import _checks

LONGEST_PARAGRAPH = 20_000
"""Characters read before a paragraph is cut whatever it holds: a file without line breaks stays a stream."""

PARAGRAPHS_AT_ONCE = 128
"""Paragraphs given to the tokenizer together, which works on several at a time."""

SENTENCE_ENDS = (".", "!", "?", "…", ":", ";", "。", "！", "？", '."', ".”", ".)", "?”", "!”")


@dataclass(frozen=True)
class Passage:
    """A piece of a file."""

    source: str
    """The file's name."""
    first_line: int
    last_line: int
    text: str
    tokens: int
    """Without special tokens."""


@dataclass(frozen=True)
class _Piece:
    first_line: int
    text: str
    tokens: int


def split_passages(stream: TextIO, source: str, tokenizer: Any, max_tokens: int) -> Iterator[Passage]:
    """Cut a text into passages of at most ``max_tokens`` tokens.

    Paragraphs (blocks of lines between blank ones) that follow each other share a passage as long as they
    fit. One that does not fit by itself is cut, behind the last sentence end or line break in the second
    half of what fits; failing that, at the last space; failing that, behind a token.

    Parameters
    ----------
    stream : text file
        Read line by line.
    source : str
        Name to put into the passages.
    tokenizer : tokenizers.Tokenizer
        Without truncation and padding.
    max_tokens : int >= 1
        Not counting special tokens.

    Yields
    ------
    Passage
        In the order of the text; none for a text without words. Line numbers count from 1.
    """
    _checks.whole(max_tokens, "max_tokens", low=1)
    single = len(tokenizer.encode("a", add_special_tokens=False))
    joint = max(0, len(tokenizer.encode("a\n\na", add_special_tokens=False)) - 2 * single)
    held: list[_Piece] = []
    used = 0
    for piece in _pieces(_paragraphs(stream), tokenizer, max_tokens):
        if held and used + joint + piece.tokens > max_tokens:
            yield _joined(held, source, used)
            held, used = [], 0
        used += piece.tokens + (joint if held else 0)
        held.append(piece)
    if held:
        yield _joined(held, source, used)


def _joined(pieces: list[_Piece], source: str, tokens: int) -> Passage:
    last = pieces[-1]
    return Passage(
        source=source,
        first_line=pieces[0].first_line,
        last_line=last.first_line + last.text.count("\n"),
        text="\n\n".join(piece.text for piece in pieces),
        tokens=tokens,
    )


def _paragraphs(stream: TextIO) -> Iterator[tuple[int, str]]:
    """Yield ``(number of its first line, text)`` of each block of lines that are not blank."""
    lines: list[str] = []
    size, first, number = 0, 1, 1
    while line := stream.readline(LONGEST_PARAGRAPH):
        if lines and (not line.strip() or size + len(line) > LONGEST_PARAGRAPH):
            yield first, "".join(lines).rstrip()
            lines, size = [], 0
        if line.strip():
            if not lines:
                first = number
            lines.append(line)
            size += len(line)
        number += line.endswith("\n")
    if lines:
        yield first, "".join(lines).rstrip()


def _pieces(paragraphs: Iterable[tuple[int, str]], tokenizer: Any, max_tokens: int) -> Iterator[_Piece]:
    remaining = iter(paragraphs)
    while batch := list(itertools.islice(remaining, PARAGRAPHS_AT_ONCE)):
        encodings = tokenizer.encode_batch([text for _, text in batch], add_special_tokens=False)
        for (first_line, text), encoding in zip(batch, encodings, strict=True):
            count = len(encoding.ids)
            if 0 < count <= max_tokens:
                yield _Piece(first_line, text, count)
            elif count:
                for start, stop in _cuts(text, encoding.offsets, max_tokens):
                    begin, end = encoding.offsets[start][0], encoding.offsets[stop - 1][1]
                    yield _Piece(first_line + text.count("\n", 0, begin), text[begin:end], stop - start)


def _cuts(text: str, spans: list[tuple[int, int]], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of tokens, of at most ``max_tokens`` each, that end where a reader would pause."""
    start = 0
    while len(spans) - start > max_tokens:
        latest = start + max_tokens
        stop = next(
            (
                place
                for place in range(latest, start + max_tokens // 2, -1)
                if _pauses(text, spans[place - 1][1], spans[place][0])
            ),
            0,
        )
        if not stop:
            stop = next((place for place in range(latest, start, -1) if spans[place][0] > spans[place - 1][1]), latest)
        yield start, stop
        start = stop
    yield start, len(spans)


def _pauses(text: str, end: int, begin: int) -> bool:
    """Whether a sentence or a line ends between two tokens, the first ending at ``end``."""
    gap = text[end:begin]
    before = text[max(0, end - 2) : end]
    return "\n" in gap or (before.endswith(SENTENCE_ENDS) and (bool(gap) or not before[-1].isascii()))
