"""The command ``refnorm``: embed and search text files, list the methods, test an implementation.

Exit status: 0 when all went well, 1 when ``conformance`` found a failure, 2 for bad input (one line on
stderr says which), 130 when interrupted.
"""

import codecs
import contextlib
import heapq
import importlib
import importlib.util
import io
import itertools
import json
import os
import stat
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TextIO

# NumPy is imported by the commands, not here: --threads has to be known before. Annotations are evaluated
# (typer reads those of the commands), so names of types that are imported late stand in quotes.
if TYPE_CHECKING:
    import typer

    from refnorm._typing import AnyArray
    from refnorm.models import Encoder
    from refnorm.models._passages import Passage

INTERRUPTED = 130
"""128 + the number of SIGINT, as shells report it."""

SMALLEST_PASSAGE = 8
"""Tokens; below, a passage is hardly a text."""

EXCERPT = 300
"""Characters of a passage that are shown."""

MOST_CALIBRATION_PASSAGES = 64
"""Passages of --calibration that are read."""

WIDEST = 100
"""Columns of running text, however wide the terminal is."""

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


SUFFIXES = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", "": "text"}
"""Formats of files by the end of their names."""


class Problem(Exception):
    """Bad input; the message is one line for the user."""


class _ReaderGone(Exception):
    """Who reads our standard output has seen enough. (typer would take a BrokenPipeError for a failure.)"""


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
            status = command.main(args=given or ["--help"], prog_name="refnorm", standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None
        # Depending on typer's version, an interrupt arrives as an exception or as this status.
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except (_ReaderGone, BrokenPipeError):
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
        help="Machine-learning papers as readable NumPy; a sentence encoder for text files.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Text files in UTF-8; - is standard input.")]
    model = Annotated[
        str | None,
        typer.Option("--model", metavar="DIR", help="Directory of a BERT-family model. [default: all-MiniLM-L6-v2]"),
    ]
    backend = Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", help="reference, fast or fast-int8. [default: fast if installed]"),
    ]
    output = Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="Write here instead.")]
    form = Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="text or jsonl; embed also npy. [default: by PATH, or text]"),
    ]
    threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="Threads. [default: all cores]")]
    quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")]
    tokens = Annotated[
        int | None,
        typer.Option(
            "--passage-tokens", metavar="N", help="Longest passage in tokens. [default: what the model takes]"
        ),
    ]

    quantize = Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="METHOD",
            help="Quantize the model first: affine, affine_quant, gradient_ptq, joint_codebook, layerwise_calibration, llm_int8, "
            "rep_quant or shift_uniform_log2.",
        ),
    ]
    bits = Annotated[
        int | None, typer.Option("--bits", metavar="N", help="Bits of --quantize, 2 to 8. [default: 8 or the most]")
    ]
    calibration = Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text to calibrate --quantize with; may be repeated. [default: built in]",
        ),
    ]

    @app.command()
    def embed(
        file: files,
        model: model = None,
        backend: backend = None,
        output: output = None,
        format: form = None,
        passage_tokens: tokens = None,
        threads: threads = None,
        quiet: quiet = False,
        quantize: quantize = None,
        bits: bits = None,
        calibration: calibration = None,
    ) -> None:
        """Split text files into passages and compute a vector for each."""
        chosen = _format(format, output, ("text", "jsonl", "npy"))
        job = _prepare(file, model, backend, output, passage_tokens, threads, quiet, (quantize, bits, calibration))
        with _opened(output, binary=chosen == "npy") as stream:
            writer = _WRITERS[chosen](stream, job.encoder.dimension)
            for passages, vectors in job.run():
                for passage, vector in zip(passages, vectors, strict=True):
                    writer.write(passage, vector)
            writer.close()
        job.report()

    @app.command()
    def search(
        query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.")],
        file: files,
        top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="Passages to show.")] = 5,
        model: model = None,
        backend: backend = None,
        output: output = None,
        format: form = None,
        passage_tokens: tokens = None,
        threads: threads = None,
        quiet: quiet = False,
        quantize: quantize = None,
        bits: bits = None,
        calibration: calibration = None,
    ) -> None:
        """Find the passages of text files whose meaning is nearest to a query."""
        if not query.strip():
            raise Problem("QUERY: expected words, got none")
        if top < 1:
            raise Problem(f"--top: expected an integer >= 1, got {top}")
        chosen = _format(format, output, ("text", "jsonl"))
        job = _prepare(file, model, backend, output, passage_tokens, threads, quiet, (quantize, bits, calibration))
        hits = _best(job, query, top)
        with _opened(output, binary=False) as stream:
            for rank, (score, passage) in enumerate(hits, 1):
                if chosen == "jsonl":
                    _json_line(stream, {"rank": rank, "score": score} | _record(passage))
                else:
                    _show_hit(stream, rank, score, passage, last=rank == len(hits))
        job.report()

    @app.command()
    def catalogue(
        method: Annotated[
            str | None, typer.Argument(metavar="METHOD", help="Only this one, for example norms/layer_norm.")
        ] = None,
    ) -> None:
        """List the methods and what exists of each."""
        from refnorm import catalogue as listing

        if method is None:
            print(listing.format_table())
            return
        try:
            status = listing.status(listing.find(method))
        except ValueError as error:
            raise Problem(str(error)) from None
        record = status.method
        source = f"arXiv {record.arxiv}" if record.arxiv else "no arXiv paper"
        print(f"{record.chapter}: {record.title} ({record.authors}, {record.year}, {source})")
        print(f"functions: {', '.join(status.functions)}")
        print(f"kernels: {', '.join(status.kernels) or 'none'}")
        for part, exists in status.parts.items():
            print(f"{part}: {'not applicable' if exists is None else 'yes' if exists else 'missing'}")

    @app.command()
    def config() -> None:
        """Show versions, instruction set, threads and backends."""
        import numpy

        import refnorm

        print(f"{'refnorm':>15}: {refnorm.__version__}")
        print(f"{'python':>15}: {sys.version.split()[0]}")
        print(f"{'numpy':>15}: {numpy.__version__}")
        try:
            kernels = importlib.import_module("refnorm_fast")
        except ImportError as error:
            print(f"{'kernels':>15}: none ({error})")
        else:
            kernels.show_config()

    @app.command()
    def conformance(
        context: typer.Context,
        module: Annotated[str, typer.Argument(metavar="MODULE", help="For example my_package.my_module.")],
        method: Annotated[
            list[str] | None, typer.Option("--method", metavar="ROOM/METHOD", help="Only this; may be repeated.")
        ] = None,
    ) -> None:
        """Hold an implementation to the golden vectors; exit status 1 if it fails one."""
        runner = importlib.import_module("refnorm.conformance.__main__")
        status = runner.main([module, *(part for name in method or () for part in ("--method", name))])
        raise typer.Exit(status)

    return app


@dataclass(eq=False)
class _Job:
    """Files to embed, and the encoder to do it with."""

    encoder: "Encoder"
    sources: list["_Source"]
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
            for passage in self._split():
                pending.append(passage)
                sizes.append(len(passage.text))
                yield passage.text

        started = time.perf_counter()
        with _progress(sum(source.characters for source in self.sources), self.quiet) as advance:

            def done(positions: Sequence[int], tokens: int) -> None:
                self.tokens += tokens
                advance(sum(sizes[position] for position in positions))

            for vectors in self.encoder.stream(texts(), max_tokens=self.max_tokens, progress=done):
                self.passages += len(vectors)
                yield list(pending), vectors
                pending.clear()
        self.seconds = time.perf_counter() - started

    def _split(self) -> "Iterator[Passage]":
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


def _prepare(
    files: Sequence[str],
    model: str | None,
    backend: str | None,
    output: str | None,
    passage_tokens: int | None,
    threads: int | None,
    quiet: bool,
    quantized: tuple[str | None, int | None, Sequence[str] | None],
) -> _Job:
    """Check everything that can be checked before the work begins, the cheap things first."""
    if threads is not None and threads < 1:
        raise Problem(f"--threads: expected an integer >= 1, got {threads}")
    sources = [_checked_source(name) for name in files]
    if output is not None:
        _check_output(output)
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
    job = _Job(encoder, sources, passage_tokens or longest, backend, quiet)
    return job if quantization is None else quantization.applied(job)


@dataclass(frozen=True)
class _Quantization:
    """What --quantize asks for."""

    method: str
    bits: int
    calibration: list["_Source"]

    def applied(self, job: _Job) -> _Job:
        """Return the job with a quantized encoder."""
        from refnorm.models import matrix_bytes, quantize_encoder

        before = job.encoder
        texts = None
        if self.calibration:
            reading = replace(job, sources=self.calibration)
            texts = [passage.text for passage in itertools.islice(reading._split(), MOST_CALIBRATION_PASSAGES)]
        started = time.perf_counter()
        with _progress(len(before.weights["layers"]) * 4, job.quiet, "calibrating") as advance:
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
    return _Quantization(method, bits, [_checked_source(name) for name in calibration or ()])


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


@dataclass(frozen=True)
class _Source:
    """A text that has been looked through once."""

    name: str
    characters: int
    content: bytes | None
    """Held where it cannot be read twice: standard input, a pipe."""

    def open(self) -> TextIO:
        if self.content is None:
            return Path(self.name).open(encoding="utf-8-sig")
        return io.TextIOWrapper(io.BytesIO(self.content), encoding="utf-8-sig")


def _checked_source(name: str) -> _Source:
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
        raise Problem(f"{name}: {_reason(error)}") from None
    if not position:
        raise Problem(f"{name}: expected text, got an empty file")
    if blank:
        raise Problem(f"{name}: expected text, got nothing but white space")
    return _Source("standard input" if name == "-" else name, characters, content)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def _format(form: str | None, output: str | None, known: tuple[str, ...]) -> str:
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


def _check_output(output: str) -> None:
    path = Path(output)
    if path.is_dir():
        raise Problem(f"--output: expected a file, got a directory: {output}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise Problem(f"--output: no such directory: {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise Problem(f"--output: no permission to write {output}")


@contextlib.contextmanager
def _opened(output: str | None, *, binary: bool) -> Iterator[Any]:
    """Open the output; a file appears under its name only when all has been written."""
    if output is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderGone from None
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
        raise Problem(f"--output: {output}: {_reason(error)}") from None
    finally:
        if regular:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)


class _TextWriter:
    """One line a passage: where it stands, the first numbers of its vector, how it begins."""

    def __init__(self, stream: IO[str], dimension: int) -> None:
        self.stream, self.dimension = stream, dimension

    def write(self, passage: "Passage", vector: "AnyArray") -> None:
        numbers = " ".join(f"{float(value):+.4f}" for value in vector[:4])
        dots = " ..." if self.dimension > 4 else ""
        self.stream.write(f"{_place(passage)}  [{numbers}{dots}]  {_excerpt(passage.text, 60)}\n")

    def close(self) -> None:
        self.stream.flush()


class _JsonWriter:
    """One JSON object a line."""

    def __init__(self, stream: IO[str], dimension: int) -> None:
        self.stream = stream

    def write(self, passage: "Passage", vector: "AnyArray") -> None:
        # Nine digits bring every float32 back exactly.
        _json_line(self.stream, _record(passage) | {"embedding": [float(f"{float(value):.9g}") for value in vector]})

    def close(self) -> None:
        self.stream.flush()


class _NpyWriter:
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


_WRITERS: dict[str, Callable[[Any, int], Any]] = {"text": _TextWriter, "jsonl": _JsonWriter, "npy": _NpyWriter}


def _best(job: _Job, query: str, top: int) -> "list[tuple[float, Passage]]":
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


def _show_hit(stream: IO[str], rank: int, score: float, passage: "Passage", *, last: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    head = Text.assemble((f"{rank:>3}  ", "bold"), (f"{score:.4f}", "green"), "  ", (_place(passage), "cyan"))
    console.print(head, soft_wrap=True)
    margin = " " * 5
    width = min(console.width, WIDEST)
    body = textwrap.fill(_excerpt(passage.text, EXCERPT), width, initial_indent=margin, subsequent_indent=margin)
    console.print(Text(body), soft_wrap=True)
    if not last:
        console.print()


def _place(passage: "Passage") -> str:
    """``file:line`` first, as editors and terminals know it."""
    lines = (
        f"{passage.first_line}-{passage.last_line}" if passage.last_line > passage.first_line else passage.first_line
    )
    return f"{passage.source}:{lines}"


def _excerpt(text: str, length: int) -> str:
    flat = " ".join(text.split())
    if len(flat) <= length:
        return flat
    cut = flat[: length - 3]
    # At a space, unless the last word is longer than the text before it.
    space = cut.rfind(" ")
    return (cut[:space] if space > length // 2 else cut) + "..."


def _record(passage: "Passage") -> dict[str, Any]:
    return {
        "file": passage.source,
        "first_line": passage.first_line,
        "last_line": passage.last_line,
        "text": passage.text,
    }


def _json_line(stream: IO[str], record: dict[str, Any]) -> None:
    stream.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _progress(total: int, quiet: bool, what: str = "embedding") -> Iterator[Callable[[int], None]]:
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
