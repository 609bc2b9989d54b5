"""Readers of files and of the command line, each fed one damaged input that a seed determines.

A target returns how it ended. Every way to end but the ones that are documented is a finding: the exception passes
through.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fuzz import mutations
from tiny_model import write_model

from refnorm import catalogue, cli
from refnorm.conformance import export_vectors, function_names, load_cases, load_exported, method_names, run
from refnorm.conformance._files import GOLDEN_ROOT
from refnorm.models import ModelError, load_encoder
from refnorm.norms import layer_norm

TEXT = "the cat sat on the mat.\n\nthe dog run fast. one two three?\n\n\nhello world, blue sun!\n"

MODULES = {
    "modules.json": json.dumps([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}])
}
POOLING = {"1_Pooling/config.json": json.dumps({"pooling_mode_mean_tokens": True})}

# Small, and with arrays, records, options and cotangents between them.
METHODS = ("norms/layer_norm", "norms/power_norm", "solvers/lion", "nn/linear")


@contextlib.contextmanager
def folder_of(make: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a copy of a valid folder, which is made once."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "copy"
        shutil.copytree(_made(make), target)
        yield target


@functools.cache
def _made(make: Callable[[Path], object]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="refnorm-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make(folder / "valid")
    return folder / "valid"


def _model(folder: Path) -> None:
    write_model(folder, files=MODULES | POOLING)


def _golden(folder: Path) -> None:
    for method in METHODS:
        (folder / method).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".npz"):
            shutil.copy(GOLDEN_ROOT / f"{method}{suffix}", folder / f"{method}{suffix}")


def _exported(folder: Path) -> None:
    export_vectors(folder, methods=METHODS)


def _damage(rng: random.Random, path: Path) -> None:
    damage = {
        ".json": mutations.damaged_json, ".npz": mutations.damaged_npz, ".safetensors": mutations.damaged_safetensors,
    }.get(path.suffix, mutations.damaged_bytes)  # fmt: skip
    path.write_bytes(damage(rng, path.read_bytes()))


def _refused(error: Exception) -> str:
    assert 10 < len(str(error)) < 1000, f"{len(str(error))} characters: {str(error)[:1000]}"
    assert "\n" not in str(error)
    return "refused"


def model_directory(rng: random.Random) -> str:
    """Load a model with one damaged file; if it loads, embed a text with it."""
    with folder_of(_model) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        _damage(rng, rng.choice(files))
        try:
            encoder = load_encoder(folder, backend="reference")
            encoder.embed(["the cat sat on the mat", "", "\ue000 \u2603 caf\u00e9 zz9", "." * 300])
        except ModelError as error:
            return _refused(error)
    return "loaded"


def golden_files(rng: random.Random) -> str:
    """Read golden files, one of them damaged."""
    with folder_of(_golden) as folder:
        method = rng.choice(METHODS)
        _damage(rng, folder / f"{method}{rng.choice(('.json', '.npz'))}")
        try:
            function_names(folder)
            for name in method_names(folder):
                load_cases(name, folder)
        except ValueError as error:
            return _refused(error)
    return "read"


def exported_folder(rng: random.Random) -> str:
    """Read an exported folder with one damaged file, whose digest may be right, and hold a function to it."""
    with folder_of(_exported) as folder:
        path = rng.choice(sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")))
        _damage(rng, path)
        if path.name != "index.json" and rng.random() < 0.8:
            index = json.loads((folder / "index.json").read_text())
            for entry in index["methods"]:
                for name in entry["sha256"]:
                    entry["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            (folder / "index.json").write_text(json.dumps(index))
        try:
            run({"norms.layer_norm": layer_norm}, vectors=load_exported(folder))
        except ValueError as error:
            return _refused(error)
    return "read"


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    before, root = Path.cwd(), catalogue.source_root
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    # As an installed package: no command runs scripts for minutes.
    catalogue.source_root = lambda: None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        os.chdir(before)
        catalogue.source_root = root


def _command(folder: Path, arguments: list[str]) -> str:
    with _in_folder(folder) as (_, err):
        status = cli.main(arguments)
    assert status in (0, 1, 2), f"{arguments}: status {status}"
    message = err.getvalue()
    if status == 2:
        assert message.startswith("refnorm: "), message
        assert message.count("\n") == 1, message
    return f"status {status}"


def text_files(rng: random.Random) -> str:
    """Embed or search a damaged text."""
    with folder_of(_model) as folder:
        (folder / "a.txt").write_bytes(mutations.damaged_bytes(rng, (TEXT * rng.choice((1, 1, 40))).encode()))
        command = rng.choice((["embed", "a.txt"], ["search", "cat", "a.txt"]))
        form = rng.choice(([], ["--format", "jsonl"], ["--passage-tokens", "8"]))
        return _command(folder, [*command, *form, "--model", ".", "--backend", "reference", "-q"])


WORDS = (
    "embed", "search", "list", "show", "claims", "race", "conformance", "config", "run", "export", "compare", "a.txt", "-",
    "--help", "-h", "--json", "--model", ".", "--backend", "reference", "fast", "--top", "-k", "0", "-1", "3", "99999999999999999999",
    "--format", "npy", "jsonl", "--output", "-o", "out.npy", "out.jsonl", "none/x", "--threads", "1", "--passage-tokens", "8",
    "--quantize", "affine", "llm_int8", "--bits", "4", "--calibration", "--room", "norms", "layer_norm", "norms/layer_norm",
    "norms.layer_norm", "layer", "conv2d", "", " ", "é", "\udcff", "[bold]", "%s", "{0}", "../..", "/", "a" * 3000, "--", "---",
    "--method", "--vectors", "--overwrite", "json", "json:dumps", "refnorm:ROOMS", "no.such", ":", "x:", "os:nothing", "..",
    "--rounds", "--budget", "nan", "-q", "--quiet", "config.json", "model.safetensors", "\n", "a\tb", "1e400", "--version",
)  # fmt: skip
STARTS = (
    ["embed"], ["embed", "a.txt", "--model", "."], ["search", "cat", "a.txt", "--model", "."], ["list"], ["show"], ["config"],
    ["claims"], ["race"], ["conformance"], ["conformance", "run"], ["conformance", "run", "json"], ["conformance", "compare"],
    ["conformance", "export"], ["conformance", "run", "refnorm", "--method", "nn/linear"], [],
)  # fmt: skip


def arguments(rng: random.Random) -> str:
    """Give the command words that belong to it, in no order."""
    words = [*rng.choice(STARTS), *rng.choices(WORDS, k=rng.randrange(5))]
    # Without an end, standard input is waited for.
    words = ["a.txt" if word == "-" else word for word in words]
    if words[:2] == ["conformance", "export"] and "--method" not in words:
        words += ["--method", "nn/linear"]
    with folder_of(_model) as folder:
        (folder / "a.txt").write_text(TEXT)
        return _command(folder, words)


TARGETS: dict[str, Callable[[random.Random], str]] = {
    target.__name__: target for target in (model_directory, golden_files, exported_folder, text_files, arguments)
}


def run_target(name: str, seed: int) -> str:
    """Run one damaged input and tell how it ended."""
    # Warnings of NumPy about absurd but finite weights are no findings.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return TARGETS[name](random.Random(f"{name} {seed}"))
