"""Check an installation, with nothing but what it installed: ``python -m refnorm.verify``.

Four questions, each answered in the place where the packages will be used:

- Are the files those of the wheel? Their digests are held to the record that the wheel brought along.
- Do the examples in the docstrings print what they say?
- Does ``refnorm`` reproduce its golden vectors, which come from elsewhere (:mod:`refnorm.conformance`)?
- Does ``refnorm_fast``, at every instruction set level of this processor?
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import doctest
import hashlib
import importlib
import importlib.metadata
import io
import pkgutil
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy

import refnorm
from refnorm import conformance

__all__ = ["Check", "check_examples", "check_files", "check_golden", "verify"]

EXAMPLE_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes
    ----------
    name : str
        What was checked, for example ``"golden vectors of refnorm"``.
    count : int
        How many things of its kind were looked at.
    failures : tuple of str
        One text for each that was not as it should be; empty if all were.
    note : str
        Why the check looked at nothing, or what it left out.
    """

    name: str
    count: int
    failures: tuple[str, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether there was no failure."""
        return not self.failures


def verify(*, report: Callable[[Check], None] | None = None) -> list[Check]:
    """Run every check that this installation allows.

    Parameters
    ----------
    report
        Called with each check when it is done.

    Returns
    -------
    list of Check

    Examples
    --------
    >>> checks = verify()  # doctest: +SKIP
    >>> all(check.passed for check in checks)  # doctest: +SKIP
    True
    """
    done = []
    for check in _checks():
        done.append(check)
        if report:
            report(check)
    return done


def _checks() -> Iterator[Check]:
    yield check_files()
    yield check_examples(refnorm)
    yield check_golden(refnorm)
    try:
        fast = importlib.import_module("refnorm_fast")
    except ImportError as error:
        yield Check("kernels of refnorm_fast", 0, note=f"left out: {error}")
        return
    runtime = importlib.import_module("refnorm_fast._runtime")
    yield check_examples(fast)
    before = runtime.isa()
    try:
        for level in runtime.available_isas():
            runtime.use_isa(level)
            yield check_golden(fast, level)
    finally:
        runtime.use_isa(before)


def check_files(distribution: Distribution | None = None) -> Check:
    """Hold the installed files to the digests in the wheel's record.

    Parameters
    ----------
    distribution
        That of ``refnorm`` by default.

    Returns
    -------
    Check
        It has looked at no file if the package is used from a source folder.
    """
    name = "files against the wheel's record"
    try:
        found = distribution or importlib.metadata.distribution("refnorm")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, 0, note="left out: refnorm is not installed, but imported from a folder")
    record = found.read_text("RECORD") or ""
    entries = [row for row in csv.reader(io.StringIO(record)) if len(row) == 3 and row[1]]
    if distribution is None and not any(row[0] == "refnorm/verify.py" for row in entries):
        return Check(name, 0, note="left out: refnorm is used from its source folder")
    failures = [
        problem for path, digest, _ in entries if (problem := _compare(Path(str(found.locate_file(path))), digest))
    ]
    return Check(name, len(entries), tuple(failures))


def _compare(path: Path, recorded: str) -> str:
    algorithm, _, expected = recorded.partition("=")
    try:
        digest = hashlib.new(algorithm, path.read_bytes()).digest()
    except OSError as error:
        return f"{path}: {error.strerror}"
    # The record's encoding: base64 for file names, without the padding.
    actual = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return "" if actual == expected else f"{path}: {algorithm} digest {actual}, expected {expected}"


def check_examples(package: ModuleType) -> Check:
    """Run the examples in the docstrings of a package's modules.

    Parameters
    ----------
    package
        Its submodules are imported. One that needs a package which is not installed is left out.

    Returns
    -------
    Check
    """
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(verbose=False, optionflags=EXAMPLE_OPTIONS)
    failures, absent = [], set()
    for name in sorted({package.__name__, *_submodules(package)}):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            needed = (error.name or "").split(".")[0]
            if isinstance(error, ModuleNotFoundError) and needed != package.__name__.split(".")[0]:
                absent.add(needed)
            else:
                failures.append(f"import {name}: {error}")
            continue
        for test in finder.find(module, extraglobs={"np": np}):
            said = io.StringIO()
            if runner.run(test, out=said.write).failed:
                failures.append(said.getvalue())
    note = f"modules that need {', '.join(sorted(absent))} were left out" if absent else ""
    return Check(f"examples in the docstrings of {package.__name__}", runner.tries, tuple(failures), note)


def _submodules(package: ModuleType) -> list[str]:
    """Names of all modules below ``package``, but for those that run something when they are imported, and the
    library of kernels, which has a module's suffix and is none."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda name: None)
    names = [module.name for module in found]
    return [name for name in names if name.rpartition(".")[2] not in ("__main__", "librefnorm_kernels")]


def check_golden(package: ModuleType, level: str = "") -> Check:
    """Hold a package's functions to the golden vectors.

    Parameters
    ----------
    package
        ``refnorm``, ``refnorm_fast``, or any module that :func:`refnorm.conformance.run` takes.
    level
        Appended to the name of the check.

    Returns
    -------
    Check
    """
    outcomes = conformance.run(package)
    failures = [
        f"{outcome.function}, {outcome.name}: "
        + (outcome.problem or f"error {outcome.error:.3g}, limit {outcome.limit:.3g} ({outcome.rule})")
        for outcome in outcomes
        if not outcome.passed
    ]
    name = f"golden vectors of {package.__name__}" + (f", {level}" if level else "")
    return Check(name, len(outcomes), tuple(failures))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every check passed, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m refnorm.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    print(f"refnorm {refnorm.__version__} in {Path(refnorm.__file__).parent}")
    print(
        f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, {platform.platform()}"
    )
    start = time.perf_counter()
    checks = verify(report=_print)
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} passed, {failed} failed ({time.perf_counter() - start:.0f} s)")
    return 1 if failed else 0


def _print(check: Check) -> None:
    verdict = f"{len(check.failures)} FAILED" if check.failures else "ok" if check.count else "–"
    print(f"{check.name:<52}{check.count:>7}  {verdict}", flush=True)
    for failure in check.failures:
        print(f"    {failure.strip()}")
    if check.note:
        print(f"    {check.note}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
