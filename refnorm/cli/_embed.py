"""``refnorm embed``."""

import typer

from refnorm.cli import _options as options
from refnorm.cli._job import prepare
from refnorm.cli._output import chosen_format, opened
from refnorm.cli._writers import WRITERS


def add(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(embed)


def embed(
    file: options.Files,
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
    """Split text files into passages and compute a vector for each."""
    chosen = chosen_format(format, output, ("text", "jsonl", "npy"))
    job = prepare(file, model, backend, output, passage_tokens, threads, quiet, (quantize, bits, calibration))
    with opened(output, binary=chosen == "npy") as stream:
        writer = WRITERS[chosen](stream, job.encoder.dimension)
        for passages, vectors in job.run():
            for passage, vector in zip(passages, vectors, strict=True):
                writer.write(passage, vector)
        writer.close()
    job.report()
