"""The work behind ``embed`` and ``search``: an encoder, what it shall read, and how far it has come."""

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from refnorm.cli._output import Problem, check_output
from refnorm.cli._sources import Source, checked_source

# NumPy is imported by what needs it, not here: --threads has to be known before.
if TYPE_CHECKING:
    from refnorm._typing import AnyArray
    from refnorm.models import Encoder
    from refnorm.models._passages import Passage

SMALLEST_PASSAGE = 8
"""Tokens; below, a passage is hardly a text."""

MOST_CALIBRATION_PASSAGES = 64
"""Passages of --calibration that are read."""

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(eq=False)
class Job:
    """Files to embed, and the encoder to do it with."""

    encoder: "Encoder"
    sources: list[Source]
    max_tokens: int
    backend: str
    quiet: bool
    passages: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def run(self) -> "Iterator[tuple[list[Passage], AnyArray]]":
        """Yield passages and their vectors, some hundred at a time, in the order of the files."""
        pending: list[Passage] = []
        sizes: list[int] = []

        def texts() -> Iterator[str]:
            for passage in self.split():
                pending.append(passage)
                sizes.append(len(passage.text))
                yield passage.text

        started = time.perf_counter()
        with progress_bar(sum(source.characters for source in self.sources), self.quiet) as advance:

            def done(positions: Sequence[int], tokens: int) -> None:
                self.tokens += tokens
                advance(sum(sizes[position] for position in positions))

            for vectors in self.encoder.stream(texts(), max_tokens=self.max_tokens, progress=done):
                self.passages += len(vectors)
                yield list(pending), vectors
                pending.clear()
        self.seconds = time.perf_counter() - started

    def split(self) -> "Iterator[Passage]":
        from refnorm.models._passages import split_passages

        room = self.max_tokens - self.encoder.special_tokens
        for source in self.sources:
            with source.open() as stream:
                yield from split_passages(stream, source.name, self.encoder.tokenizer, room)

    def report(self) -> None:
        """Say on stderr what was done and how fast."""
        if not self.quiet:
            rate = self.tokens / max(self.seconds, 1e-9)
            print(
                f"{self.passages:,} passages, {self.tokens:,} tokens in {self.seconds:.1f} s: "
                f"{rate:,.0f} tokens per second ({self.backend})",
                file=sys.stderr,
            )


def prepare(
    files: Sequence[str],
    model: str | None,
    backend: str | None,
    output: str | None,
    passage_tokens: int | None,
    threads: int | None,
    quiet: bool,
    quantized: tuple[str | None, int | None, Sequence[str] | None],
) -> Job:
    """Check everything that can be checked before the work begins, the cheap things first."""
    if threads is not None and threads < 1:
        raise Problem(f"--threads: expected an integer >= 1, got {threads}")
    sources = [checked_source(name) for name in files]
    if output is not None:
        check_output(output)
    if threads is not None:
        _limit_threads(threads)
    for package in ("safetensors", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            raise Problem(f'{package} is not installed; `pip install "refnorm[demo]"` installs what this needs')

    quantization = _quantization(*quantized, backend)
    from refnorm.models import BACKENDS, ModelError, load_encoder

    if backend is None:
        backend = "fast" if _has_kernels() and quantization is None else "reference"
    if backend not in BACKENDS:
        raise Problem(f"--backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    try:
        encoder = load_encoder(model, backend=backend)
    except ModelError as error:
        raise Problem(str(error)) from None
    except ImportError as error:
        raise Problem(f"--backend {backend}: {error}") from None
    if threads is not None and backend != "reference":
        importlib.import_module("refnorm_fast").set_num_threads(threads)
    longest = encoder.max_tokens
    if passage_tokens is not None and not SMALLEST_PASSAGE <= passage_tokens <= longest:
        raise Problem(
            f"--passage-tokens: expected an integer from {SMALLEST_PASSAGE} to {longest}, got {passage_tokens}"
        )
    job = Job(encoder, sources, passage_tokens or longest, backend, quiet)
    return job if quantization is None else quantization.applied(job)


@dataclass(frozen=True)
class _Quantization:
    """What --quantize asks for."""

    method: str
    bits: int
    calibration: list[Source]

    def applied(self, job: Job) -> Job:
        """Return the job with a quantized encoder."""
        from refnorm.models import matrix_bytes, quantize_encoder

        before = job.encoder
        texts = None
        if self.calibration:
            reading = replace(job, sources=self.calibration)
            texts = [passage.text for passage in itertools.islice(reading.split(), MOST_CALIBRATION_PASSAGES)]
        started = time.perf_counter()
        with progress_bar(len(before.weights["layers"]) * 4, job.quiet, "calibrating") as advance:
            after = quantize_encoder(
                before, self.method, bits=self.bits, texts=texts, progress=lambda done, total: advance(1)
            )
        if not job.quiet:
            print(
                f"quantized with {self.method} in {time.perf_counter() - started:.1f} s: matrices of "
                f"{_megabytes(matrix_bytes(before))} in {_megabytes(matrix_bytes(after))}",
                file=sys.stderr,
            )
        return replace(job, encoder=after, backend=f"{job.backend}, {self.method}, {self.bits} bits")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _quantization(
    method: str | None, bits: int | None, calibration: Sequence[str] | None, backend: str | None
) -> _Quantization | None:
    """Check the options of --quantize before anything is loaded."""
    if method is None:
        for name, given in (("--bits", bits), ("--calibration", calibration)):
            if given:
                raise Problem(f"{name}: expected --quantize with it, got none")
        return None
    from refnorm.models import QUANTIZATIONS

    if method not in QUANTIZATIONS:
        raise Problem(f"--quantize: expected one of {', '.join(QUANTIZATIONS)}, got {method!r}")
    fewest, most = QUANTIZATIONS[method]
    if bits is None:
        bits = most
    if not fewest <= bits <= most:
        expected = str(fewest) if fewest == most else f"an integer from {fewest} to {most}"
        raise Problem(f"--bits: expected {expected} for {method}, got {bits}")
    if backend not in (None, "reference"):
        raise Problem(f"--quantize: expected --backend reference with it, got {backend!r}")
    return _Quantization(method, bits, [checked_source(name) for name in calibration or ()])


def _has_kernels() -> bool:
    try:
        importlib.import_module("refnorm_fast.models")
    except ImportError:
        return False
    return True


def _limit_threads(count: int) -> None:
    if "numpy" not in sys.modules:
        # BLAS and the tokenizer read these once, when they are loaded.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    elif importlib.util.find_spec("threadpoolctl") is not None:
        importlib.import_module("threadpoolctl").threadpool_limits(count)


@contextlib.contextmanager
def progress_bar(total: int, quiet: bool, what: str = "embedding") -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; yields the function that moves it on."""
    if quiet or not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda amount: bar.advance(task, amount)
