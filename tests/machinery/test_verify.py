"""``python -m refnorm.verify``: each check passes on what is right and fails on what is not."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

import refnorm
from refnorm import verify
from refnorm.norms import layer_norm


def installed(folder):
    """A distribution of two files with a wheel's record."""
    files = {"thing/__init__.py": b"", "thing/data.bin": b"\x00\x01"}
    info = folder / "thing-1.0.dist-info"
    rows = [f"{info.name}/RECORD,,"]
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    return importlib.metadata.PathDistribution(info)


def test_files_as_recorded_pass_and_changed_or_lost_ones_fail(tmp_path):
    distribution = installed(tmp_path)
    assert verify.check_files(distribution) == verify.Check("files against the wheel's record", 2)
    (tmp_path / "thing" / "data.bin").write_bytes(b"\x00\x02")
    (tmp_path / "thing" / "__init__.py").unlink()
    check = verify.check_files(distribution)
    assert not check.passed
    assert [failure.split(": ")[1][:13] for failure in check.failures] == ["No such file ", "sha256 digest"]


def test_without_a_wheel_the_files_are_left_out(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    check = verify.check_files()
    assert (check.count, check.passed) == (0, True)
    assert check.note == "left out: refnorm is not installed, but imported from a folder"


def test_an_editable_installation_has_no_record_of_the_sources(monkeypatch, tmp_path):
    distribution = installed(tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    assert verify.check_files().note == "left out: refnorm is used from its source folder"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package's modules and import it."""

    def make(**modules: str) -> ModuleType:
        folder = tmp_path / "specimen"
        folder.mkdir()
        for name, source in {"__init__": "", **modules}.items():
            (folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module("specimen")

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "specimen"]:
        del sys.modules[name]


def test_examples_that_print_what_they_say_pass(package):
    check = verify.check_examples(package(right='"""\n>>> np.arange(2) + 1\narray([1, 2])\n>>> [0,  1]\n[0, 1]\n"""'))
    assert check == verify.Check("examples in the docstrings of specimen", 2)


def test_an_example_that_prints_something_else_fails_and_is_shown(package):
    check = verify.check_examples(package(right='""">>> 1\n1\n"""', wrong='"""\n>>> 1 + 1\n3\n"""'))
    assert check.count == 2
    (failure,) = check.failures
    assert "1 + 1" in failure
    assert "Expected:\n    3\nGot:\n    2" in failure


def test_a_module_that_needs_an_absent_package_is_left_out_and_said(package):
    check = verify.check_examples(package(extra="import no_such_package.part"))
    assert check.passed
    assert check.note == "modules that need no_such_package were left out"


@pytest.mark.parametrize("source", ["from specimen import nothing", "import specimen.gone"])
def test_a_module_of_ours_that_cannot_be_imported_fails(package, source):
    (failure,) = verify.check_examples(package(broken=source)).failures
    assert failure.startswith("import specimen.broken: ")


def test_programs_are_not_run(package):
    assert verify.check_examples(package(__main__="raise SystemExit(1)")).passed


def test_golden_vectors_find_a_wrong_function():
    right = ModuleType("right")
    right.layer_norm = layer_norm
    assert verify.check_golden(right, "somewhere").name == "golden vectors of right, somewhere"
    assert verify.check_golden(right).passed
    wrong = ModuleType("wrong")
    wrong.layer_norm = lambda x, gain, bias, **options: layer_norm(x, gain, bias, **options) * (1 + np.float32(1e-4))
    check = verify.check_golden(wrong)
    assert check.failures
    assert check.failures[0].startswith("norms.layer_norm, ")
    assert "limit" in check.failures[0]


@pytest.fixture
def quick(monkeypatch):
    """The checks that take seconds say only what they were asked."""
    monkeypatch.setattr(verify, "check_examples", lambda package: verify.Check(f"examples {package.__name__}", 1))
    monkeypatch.setattr(
        verify, "check_golden", lambda package, level="": verify.Check(f"golden {package.__name__} {level}".strip(), 1)
    )


def test_kernels_are_checked_at_every_level_of_the_processor(quick):
    pytest.importorskip("refnorm_fast", exc_type=ImportError, reason="this installation has no kernels")
    runtime = importlib.import_module("refnorm_fast._runtime")
    before, seen = runtime.isa(), []
    checks = verify.verify(report=seen.append)
    assert seen == checks
    assert [check.name for check in checks[1:]] == [
        "examples refnorm",
        "golden refnorm",
        "examples refnorm_fast",
        *(f"golden refnorm_fast {level}" for level in runtime.available_isas()),
    ]
    assert runtime.isa() == before


def test_without_kernels_the_rest_is_checked(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "refnorm_fast", None)
    *_, last = verify.verify()
    assert last.passed
    assert last.count == 0
    assert last.note.startswith("left out: ")


def test_the_command_says_what_failed_and_exits_with_1(quick, monkeypatch, capsys):
    assert verify.main([]) == 0
    assert " passed, 0 failed (" in capsys.readouterr().out
    monkeypatch.setattr(
        verify, "check_golden", lambda package, level="": verify.Check("golden", 2, ("norms.f, case: bad",))
    )
    assert verify.main([]) == 1
    said = capsys.readouterr().out
    assert f"refnorm {refnorm.__version__} in " in said
    assert "1 FAILED\n    norms.f, case: bad\n" in said


def test_the_command_is_a_module_that_explains_itself():
    told = subprocess.run(
        [sys.executable, "-m", "refnorm.verify", "--help"], capture_output=True, text=True, check=True
    )
    assert "Do the examples in the docstrings print what they say?" in told.stdout
