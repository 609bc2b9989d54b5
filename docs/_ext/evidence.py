"""Results of the evidence scripts, kept until a source file that they were made from changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import run_script

RUNNER = Path(run_script.__file__)
TIME_LIMIT = 300
"""Seconds; an evidence script is meant to take a tenth of it at most."""


class ScriptFailed(RuntimeError):
    """A script raised, or took too long; the message ends with what it printed last."""


@dataclass(frozen=True)
class Evidence:
    """What one script measured and drew."""

    claims: list[dict[str, Any]]
    drawing: dict[str, Any] | None
    seconds: float
    folder: Path
    inputs: tuple[str, ...]


class Store:
    """Runs scripts and keeps their results.

    Parameters
    ----------
    root
        The checkout.
    cache
        Folder for the results; one folder a script is made below it.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    def obtain(self, name: str, script: Path) -> Evidence:
        """Return the script's results, running it only if what is stored is out of date."""
        return self.stored(name, script) or self.run(name, script)

    def obtain_all(self, scripts: Iterable[tuple[str, Path]], workers: int) -> None:
        """Bring the stored results up to date, several scripts at a time; failures are left to `obtain`."""
        missing = [(name, script) for name, script in scripts if self.stored(name, script) is None]

        def attempt(pair: tuple[str, Path]) -> None:
            try:
                self.run(*pair)
            except ScriptFailed:
                return

        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            list(pool.map(attempt, missing))

    def stored(self, name: str, script: Path) -> Evidence | None:
        """Return what is stored, if it was made from the same sources with the same releases."""
        folder = self.cache / name
        try:
            result = json.loads((folder / "result.json").read_text())
            if script.relative_to(self.root).as_posix() not in result["inputs"]:
                return None
            if result["versions"] != run_script.versions():
                return None
            for path, expected in result["inputs"].items():
                if run_script.digest(self.root / path) != expected:
                    return None
        except (OSError, ValueError, KeyError):
            return None
        return Evidence(result["claims"], result["drawing"], result["seconds"], folder, tuple(result["inputs"]))

    def run(self, name: str, script: Path) -> Evidence:
        """Run the script and store its results; a failure leaves the stored ones untouched."""
        folder = self.cache / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One thread a script: several run at a time, and sums do not depend on the machine's cores.
        single = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
            target = Path(part) / "result"
            target.mkdir()
            try:
                process = subprocess.run(
                    [sys.executable, str(RUNNER), str(self.root), str(script), str(target)],
                    capture_output=True,
                    text=True,
                    timeout=TIME_LIMIT,
                    env={**os.environ, **single, "MPLBACKEND": "Agg"},
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise ScriptFailed(f"{script}: no result within {TIME_LIMIT} s") from None
            if process.returncode:
                raise ScriptFailed(f"{script}: {process.stderr.strip()[-1500:]}")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(target, folder)
        evidence = self.stored(name, script)
        if evidence is None:
            raise ScriptFailed(f"{script}: a source file changed while the script ran; build again")
        return evidence
