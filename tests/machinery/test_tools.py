import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SPEC = """# Example norm
`refnorm.norms.example` · paper: An Example of Normalization, Doe et al., 2021, arXiv 2101.00001 · official code: none

## Public API
- `example(x, *, eps=1e-5)`/`_vjp`
- `example_scale(x)`, `example_shift(x)`
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what ``tools/new_method`` looks at."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "new_method", tmp_path / "tools")
    (tmp_path / "refnorm" / "norms").mkdir(parents=True)
    (tmp_path / "refnorm" / "norms" / "__init__.py").touch()
    (tmp_path / "spec.md").write_text(SPEC)
    return tmp_path


def new_method(checkout, *arguments):
    return subprocess.run(
        [sys.executable, "tools/new_method", *arguments], cwd=checkout, capture_output=True, text=True
    )


def test_new_method_lays_out_every_file_from_a_specification(checkout):
    made = new_method(checkout, "norms/example", "--spec", "spec.md")
    assert made.returncode == 0, made.stderr
    module = (checkout / "refnorm/norms/_example.py").read_text()
    assert 'title="An Example of Normalization"' in module
    assert "year=2021" in module
    assert 'functions=("example", "example_scale", "example_shift")' in module
    for path in (
        "tests/norms/test_example.py",
        "tests/golden/norms/example.py",
        "tests/claims/norms/example.py",
    ):
        compile((checkout / path).read_text(), path, "exec")
    assert "# An Example of Normalization" in (checkout / "docs/norms/example.md").read_text()
    assert "author = {Doe and others}" in (checkout / "docs/bib/example.bib").read_text()


def test_new_method_separates_authors_as_bibtex_wants(checkout):
    options = ["--title", "T", "--authors", "Ba, Kiros, and Hinton", "--year", "2016"]
    assert new_method(checkout, "norms/other", *options).returncode == 0
    assert "author = {Ba and Kiros and Hinton}" in (checkout / "docs/bib/other.bib").read_text()


def test_new_method_touches_no_existing_file(checkout):
    new_method(checkout, "norms/example", "--spec", "spec.md")
    (checkout / "refnorm/norms/_example.py").write_text("mine")
    again = new_method(checkout, "norms/example", "--spec", "spec.md")
    assert "these exist and stay as they are" in again.stderr
    assert (checkout / "refnorm/norms/_example.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("example",), "method: expected ROOM/NAME"),
        (
            ("nowhere/example",),
            "room: expected one of attention, models, nn, norms, poincare, quantizers, softmax, solvers, got 'nowhere'",
        ),
        (
            ("cli/example",),
            "room: expected one of attention, models, nn, norms, poincare, quantizers, softmax, solvers, got 'cli'",
        ),
        (("norms/other",), "no specification says title, authors, year: give --title --authors --year"),
        (("norms/other", "--spec", "absent.md"), "spec: expected a file, got absent.md"),
    ],
)
def test_new_method_says_what_is_wrong(checkout, arguments, message):
    refused = new_method(checkout, *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (checkout / "docs").exists()


def test_make_golden_refuses_an_unknown_method():
    refused = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_golden.py", "norms/none"], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no maker for norms/none" in refused.stderr
