"""``refnorm search``."""

import heapq
from typing import TYPE_CHECKING, Annotated

import typer

from refnorm.cli import _options as options
from refnorm.cli._job import Job, prepare
from refnorm.cli._output import Problem, chosen_format, opened
from refnorm.cli._writers import json_line, record, show_hit

if TYPE_CHECKING:
    from refnorm._typing import AnyArray
    from refnorm.models._passages import Passage


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(search)


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.")],
    file: options.Files,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="Passages to show.")] = 5,
    model: options.Model = None,
    backend: options.Backend = None,
    output: options.Output = None,
    format: options.Format = None,
    passage_tokens: options.PassageTokens = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    quantize: options.Quantize = None,
    bits: options.Bits = None,
    calibration: options.Calibration = None,
) -> None:
    """Find the passages of text files whose meaning is nearest to a query."""
    if not query.strip():
        raise Problem("QUERY: expected words, got none")
    if top < 1:
        raise Problem(f"--top: expected an integer >= 1, got {top}")
    chosen = chosen_format(format, output, ("text", "jsonl"))
    job = prepare(file, model, backend, output, passage_tokens, threads, quiet, (quantize, bits, calibration))
    hits = _best(job, query, top)
    with opened(output, binary=False) as stream:
        for rank, (score, passage) in enumerate(hits, 1):
            if chosen == "jsonl":
                json_line(stream, {"rank": rank, "score": score} | record(passage))
            else:
                show_hit(stream, rank, score, passage, last=rank == len(hits))
    job.report()


def _best(job: Job, query: str, top: int) -> "list[tuple[float, Passage]]":
    """Return the passages with the highest cosine similarity to the query, best first."""
    import numpy as np

    def unit(vectors: "AnyArray") -> "AnyArray":
        scaled: AnyArray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return scaled

    wanted = unit(job.encoder.embed([query]))[0]
    heap: list[tuple[float, int, Passage]] = []
    number = 0
    for passages, vectors in job.run():
        for score, passage in zip(unit(vectors) @ wanted, passages, strict=True):
            # Of equal scores the earlier passage wins.
            entry = (float(score), -number, passage)
            number += 1
            if len(heap) < top:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    return [(score, passage) for score, _, passage in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
