"""Runs the code cells of notebooks, and keeps what they showed until code that they ran on changes."""

from __future__ import annotations

import asyncio
import doctest
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbclient
import nbformat.v4
import run_script

TIME_LIMIT = 120
"""Seconds for one cell; the slowest is meant to take a few."""

COMPARISON = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

FRESH_START = """\
import sys, numpy
for name in [name for name in sys.modules if name.partition(".")[0] == {package!r}]:
    del sys.modules[name]
numpy.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
get_ipython().compile.reset_compiler_flags()
get_ipython().run_line_magic("reset", "-f")
"""
"""A kernel takes a second to start, so one runs many notebooks. Each finds no names, and imports the package anew."""

WHAT_WAS_IMPORTED = """\
import json, sys
print(json.dumps(sorted(module.__file__ for name, module in list(sys.modules.items())
    if name.partition(".")[0].startswith({package!r}) and getattr(module, "__file__", None))))
"""


@dataclass(frozen=True)
class CodeCell:
    """Code, and what a page says that it prints or raises; ``None`` if it says nothing."""

    source: str
    expected: str | None = None
    raises: str | None = None
    hidden: bool = False
    files: tuple[str, ...] = ()
    """Data that the code reads, relative to the checkout."""


@dataclass(frozen=True)
class Run:
    """The outputs of each cell, in the notebook format, and what is wrong with them."""

    outputs: list[list[dict[str, Any]]]
    problems: list[str]


def printed(outputs: Sequence[Mapping[str, Any]]) -> str:
    """Return what a terminal would show of a cell's outputs."""
    shown = ""
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            shown += output["text"]
        elif output["output_type"] == "execute_result":
            shown += output["data"]["text/plain"] + "\n"
    return shown


def problem(cell: CodeCell, outputs: Sequence[Mapping[str, Any]]) -> str:
    """Say what a cell did that its page does not say; empty if all is well."""
    errors = [output for output in outputs if output["output_type"] == "error"]
    warnings = [o["text"] for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
    raised = f"{errors[0]['ename']}: {errors[0]['evalue']}" if errors else ""
    expected = re.sub(r"^[\w.]*\.(?=\w+:)", "", cell.raises or "")
    check = doctest.OutputChecker().check_output
    if (raised or expected) and not check(expected or "no exception\n", f"{raised}\n", COMPARISON):
        return f"expected {expected.strip() or 'no exception'}, got {raised or 'none'}, from\n{cell.source}"
    if warnings:
        return f"a warning, {warnings[0].strip()}, from\n{cell.source}"
    if cell.expected is not None and not cell.raises and not check(cell.expected, printed(outputs), COMPARISON):
        return f"the page says\n{cell.expected}but\n{printed(outputs)}is printed by\n{cell.source}"
    return ""


class Runner:
    """Runs chapters and keeps their outputs.

    Parameters
    ----------
    root
        The checkout that holds the package.
    cache
        Folder for the outputs: one file a chapter.
    package
        The package that is imported anew for each chapter; outputs depend on its sources, and on those of packages
        whose names begin like it.
    """

    def __init__(self, root: Path, cache: Path, package: str = "refnorm") -> None:
        self.root, self.cache, self.package = root, cache, package

    def run_all(self, chapters: Mapping[str, Sequence[CodeCell]], workers: int) -> dict[str, Run]:
        """Return the outputs of every chapter, running those whose stored outputs are out of date."""
        missing = [name for name, cells in chapters.items() if self.stored(name, cells) is None]
        parts = [part for part in (missing[number::workers] for number in range(workers)) if part]
        with ThreadPoolExecutor(max_workers=max(1, len(parts))) as pool:
            fresh = list(pool.map(lambda part: self.run({name: chapters[name] for name in part}), parts))
        done = {name: outputs for part in fresh for name, outputs in part.items()}
        found = {name: done.get(name) or self.stored(name, cells) or [] for name, cells in chapters.items()}
        return {name: Run(outputs, self.problems(chapters[name], outputs)) for name, outputs in found.items()}

    def problems(self, cells: Sequence[CodeCell], outputs: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
        said = (problem(cell, shown) for cell, shown in zip(cells, outputs, strict=True))
        return [text for text in said if text]

    def stored(self, name: str, cells: Sequence[CodeCell]) -> list[list[dict[str, Any]]] | None:
        """Return the stored outputs, if they came from the same cells and sources with the same releases."""
        try:
            kept = json.loads((self.cache / f"{name}.json").read_text())
            if kept["cells"] != [cell.source for cell in cells] or kept["versions"] != run_script.versions():
                return None
            for path, expected in kept["inputs"].items():
                if run_script.digest(self.root / path) != expected:
                    return None
        except (OSError, ValueError, KeyError):
            return None
        outputs: list[list[dict[str, Any]]] = kept["outputs"]
        return outputs

    def run(self, chapters: Mapping[str, Sequence[CodeCell]]) -> dict[str, list[list[dict[str, Any]]]]:
        """Run chapters one after the other in one kernel, and store their outputs."""
        cell = nbformat.v4.new_code_cell
        before, after = (text.format(package=self.package) for text in (FRESH_START, WHAT_WAS_IMPORTED))
        book = nbformat.v4.new_notebook()
        for cells in chapters.values():
            book.cells += [cell(before), *(cell(c.source) for c in cells), cell(after)]
        self.execute(book)
        found, left = {}, iter(book.cells)
        for name, cells in chapters.items():
            problem_at_start = next(left).outputs
            outputs = [[clean(output) for output in next(left).outputs] for _ in cells]
            files = next(left).outputs
            if problem_at_start or len(files) != 1:
                raise RuntimeError(f"notebook {name}: the kernel could not be made ready: {problem_at_start or files}")
            self.store(name, cells, outputs, json.loads(files[0]["text"]))
            found[name] = outputs
        return found

    def execute(self, book: nbformat.NotebookNode) -> None:
        # One thread, as for the evidence: several kernels run at a time, and sums do not depend on the cores.
        single = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        paths = os.pathsep.join(filter(None, (str(self.root), os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, **single, "PYTHONPATH": paths, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        with tempfile.TemporaryDirectory() as folder:
            client = nbclient.NotebookClient(
                book,
                kernel_name="python3",
                timeout=TIME_LIMIT,
                allow_errors=True,
                record_timing=False,
                coalesce_streams=True,  # a text may arrive in pieces
                resources={"metadata": {"path": folder}},
            )
            asyncio.run(client.async_execute(env=environment, stderr=subprocess.DEVNULL))

    def store(
        self, name: str, cells: Sequence[CodeCell], outputs: list[list[dict[str, Any]]], imported: Sequence[str]
    ) -> None:
        paths = {Path(path) for path in imported} | {self.root / path for cell in cells for path in cell.files}
        inputs = {
            path.relative_to(self.root).as_posix(): run_script.digest(path)
            for path in sorted(paths)
            if path.is_relative_to(self.root) and path.is_file()
        }
        kept = {
            "cells": [cell.source for cell in cells],
            "outputs": outputs,
            "inputs": inputs,
            "versions": run_script.versions(),
        }
        target = self.cache / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(kept, indent=1))
        part.replace(target)


def clean(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return an output without what differs from run to run: a traceback names files of this machine."""
    kept = json.loads(json.dumps(output))
    if kept["output_type"] == "error":
        kept["traceback"] = [f"{kept['ename']}: {kept['evalue']}"]
    kept.pop("execution_count", None)
    return dict(kept)
