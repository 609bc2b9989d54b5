"""Chapters as Jupyter notebooks: how pages are cut, that cells are run and held to the page, and the built ones."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

for module in ("sphinx", "myst_parser", "nbclient", "sphinx_markdown_builder", "resvg_py"):
    pytest.importorskip(module, reason='the book needs pip install ".[docs]"')

nbformat = importlib.import_module("nbformat")

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "docs" / "_ext"
BOOK = Path(os.environ.get("REFNORM_BOOK", "not built")).resolve()
in_book = pytest.mark.skipif(
    not (BOOK / "index.html").is_file(), reason="needs a fresh build of the book: run tools/book --check"
)


@pytest.fixture(scope="module")
def notebooks():
    """The extension, which lies beside modules that it imports by their bare names."""
    sys.path.insert(0, str(EXTENSION))
    try:
        yield importlib.import_module("notebooks")
    finally:
        sys.path.remove(str(EXTENSION))


@pytest.fixture(scope="module")
def runner(notebooks):
    return sys.modules["notebook_runner"]


# --- what the code needs


def test_names_are_those_that_run(notebooks):
    source = '''
@decorated
def f(x: Annotated, y=DEFAULT) -> Returned:
    """Text."""
    value: Local = helper(x)
    return value
'''
    assert notebooks.names_read(source) - {"x", "value"} == {"decorated", "DEFAULT", "helper"}


def test_imports_are_spelled_as_in_the_module(notebooks):
    from refnorm.norms import _layer_norm

    lines = notebooks.import_lines(_layer_norm, {"np", "sum_to", "_trailing", "layer_norm", "absent"}, ("layer_norm",))
    assert lines == [
        "import numpy as np",
        "from refnorm._arrays import sum_to",
        "from refnorm.norms import layer_norm",
        "from refnorm.norms._layer_norm import _trailing",
    ]


def test_a_session_gets_a_cell_for_each_output(notebooks):
    cells = list(
        notebooks.sample_cells(">>> a = 1\n>>> a + 1\n2\n>>> 1 / 0\nTraceback (most recent call last):\nE: no\n")
    )
    assert [(cell.source, cell.expected, cell.raises) for cell in cells] == [
        ("a = 1\na + 1", "2\n", None),
        ("1 / 0", "Traceback (most recent call last):\nE: no\n", "E: no\n"),
    ]


# --- running


def package(root, answer):
    (root / "sample").mkdir(exist_ok=True)
    (root / "sample" / "__init__.py").write_text(f"ANSWER = {answer}\n")


def test_what_is_printed_in_pieces_is_one_text(runner, tmp_path):
    package(tmp_path, 1)
    pieces = "import sys, time\nsys.stdout.write('in')\nsys.stdout.flush()\ntime.sleep(0.5)\nprint(' pieces')"
    cells = {"a/pieces": [runner.CodeCell(pieces, "in pieces\n")]}
    made = runner.Runner(tmp_path, tmp_path / "cache", "sample")
    assert made.run_all(cells, 1)["a/pieces"].problems == []
    (outputs,) = made.stored("a/pieces", cells["a/pieces"])
    assert len(outputs) == 1


def test_cells_run_again_when_their_code_changes(runner, tmp_path):
    package(tmp_path, 41)
    cells = {
        "a/first": [runner.CodeCell("import sample\nleft = 1"), runner.CodeCell("sample.ANSWER + 1", "42\n")],
        # Nothing is left of the notebook before it.
        "a/second": [runner.CodeCell("'left' in globals()", "False\n")],
    }
    made = runner.Runner(tmp_path, tmp_path / "cache", "sample")
    assert {name: run.problems for name, run in made.run_all(cells, 1).items()} == {"a/first": [], "a/second": []}
    assert made.stored("a/first", cells["a/first"])
    assert made.stored("a/first", cells["a/first"][:1]) is None
    stored = json.loads((tmp_path / "cache" / "a" / "first.json").read_text())
    assert list(stored["inputs"]) == ["sample/__init__.py"]
    package(tmp_path, 50)
    assert made.stored("a/first", cells["a/first"]) is None
    assert made.stored("a/second", cells["a/second"])
    (problem,) = made.run_all(cells, 1)["a/first"].problems
    assert "the page says\n42\nbut\n51\nis printed by\nsample.ANSWER + 1" in problem


STREAM = {"output_type": "stream", "name": "stdout", "text": "2\n"}
RESULT = {"output_type": "execute_result", "data": {"text/plain": "3"}}
WARNING = {"output_type": "stream", "name": "stderr", "text": "careful"}
ERROR = {"output_type": "error", "ename": "Mismatch", "evalue": "off by 2", "traceback": []}


@pytest.mark.parametrize(
    ("expected", "raises", "outputs", "wrong"),
    [
        (None, None, [STREAM], ""),
        ("2\n3\n", None, [STREAM, RESULT], ""),
        ("2 ... 3\n", None, [{**STREAM, "text": "2   9\n"}, RESULT], ""),
        ("2\n4\n", None, [STREAM, RESULT], "the page says"),
        ("2\n", None, [], "the page says"),
        ("", None, [STREAM], "the page says"),
        (None, None, [WARNING], "a warning"),
        (None, None, [ERROR], "no exception"),
        ("Traceback ...", "refnorm.checks.Mismatch: off by ...\n", [ERROR], ""),
        ("Traceback ...", "refnorm.checks.Mismatch: off by 3\n", [ERROR], "off by 3"),
        ("Traceback ...", "refnorm.checks.Mismatch: off by 2\n", [], "got none"),
    ],
)
def test_what_a_cell_shows_is_held_to_the_page(runner, expected, raises, outputs, wrong):
    found = runner.problem(runner.CodeCell("code", expected, raises), outputs)
    assert wrong in found
    assert bool(wrong) == bool(found)


# --- a small book


CONF = """
import sys
sys.path[:0] = [{extension!r}, {root!r}]
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx_exercise", "sphinx_proof", "refnorm_book", "book_forms", "notebooks"]
myst_enable_extensions = ["dollarmath"]
book_macros = {{"mean": r"\\operatorname{{mean}}"}}
mathjax3_config = {{"tex": {{"macros": book_macros}}}}
exclude_patterns = ["_generated", "_out", "_doctrees"]
html_theme = "basic"
numfig = True
numfig_secnum_depth = 0
suppress_warnings = ["myst.mathjax"]
refnorm_book_root = {work!r}
"""

PAGE = """# A page

Money is \\$, a mean is $\\mean(x)$, {{doc}}`another`.

$$
y=1
$$ (one)

| a | b |
| --- | --- |
| $\\|x\\|$ | x \\| y |

```pycon
>>> 1 + 1
{sum}
```

```{{prf:theorem}} Fact
:label: fact

It is so.
```

````{{exercise}}
:label: task

Use {{eq}}`one`.
````

````{{solution}} task
:class: dropdown

Like this.

```pycon
>>> 2 + 2
4
```
````
"""


def build(folder, total):
    docs = folder / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "conf.py").write_text(CONF.format(extension=str(EXTENSION), root=str(ROOT), work=str(folder)))
    (docs / "index.md").write_text("# Top\n\n```{notebooks}\n```\n\n```{toctree}\npage\nanother\n```\n")
    (docs / "page.md").write_text(PAGE.format(sum=total))
    (docs / "another.md").write_text("# Another\n\n```python\nprint('hello')\n```\n")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", str(docs / "_doctrees")]
    process = subprocess.run([*command, str(docs), str(docs / "_out")], capture_output=True, text=True, check=False)
    return process.returncode, process.stdout + process.stderr


def test_a_page_becomes_a_notebook(tmp_path):
    status, said = build(tmp_path, 2)
    assert status == 0, said
    out = tmp_path / "docs" / "_out"
    made = nbformat.read(out / "_notebooks" / "page.ipynb", as_version=4)
    nbformat.validate(made)
    text = "\n\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert r"Money is \$, a mean is $\operatorname{mean}(x)$, [Another](another.ipynb)." in text
    assert "$$\ny=1\\tag{1}\n$$" in text
    assert r"$\vert x\vert $" in text
    assert r"x \| y" in text
    assert "**Theorem 1 (Fact)**" in text
    assert "**Exercise 1**\n\nUse (1)." in text
    assert "<summary>Solution to Exercise 1</summary>\n\nLike this.\n\n</details>" in text
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == ["1 + 1", "2 + 2"]
    assert code[0].outputs[0].data["text/plain"] == "2"
    assert [cell.execution_count for cell in code] == [1, 2]
    # A solution's code is folded like its text.
    assert [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in code] == [False, True]
    assert 'href="_notebooks/page.ipynb" download' in (out / "page.html").read_text()
    assert 'href="_notebooks/refnorm-notebooks.zip" download' in (out / "index.html").read_text()
    with zipfile.ZipFile(out / "_notebooks" / "refnorm-notebooks.zip") as packed:
        assert packed.namelist() == ["refnorm-notebooks/another.ipynb", "refnorm-notebooks/page.ipynb"]

    # The page says 3 where 2 is printed: no cell changed, so the stored output is held to it.
    status, said = build(tmp_path, 3)
    assert status != 0
    assert "the page says\n3\nbut\n2\nis printed by\n1 + 1" in said


# --- the book


def built():
    return sorted((BOOK / "_notebooks").rglob("*.ipynb")) if (BOOK / "index.html").is_file() else []


@in_book
def test_every_chapter_has_a_notebook():
    from refnorm import catalogue

    made = {path.relative_to(BOOK / "_notebooks").with_suffix("").as_posix() for path in built()}
    chapters = {method.chapter for method in catalogue.methods() if (ROOT / "docs" / f"{method.chapter}.md").is_file()}
    assert chapters | {"front/notation", "front/backward", "front/floating_point"} <= made


@in_book
@pytest.mark.parametrize("path", built(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_of_the_book(path):
    made = nbformat.read(path, as_version=4)
    nbformat.validate(made)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    text = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert code
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    failed = [c.source for c in code if any(o.output_type == "error" for o in c.outputs) and "tags" not in c.metadata]
    assert not failed
    assert str(ROOT) not in path.read_text(encoding="utf-8")
    # Nothing of the page's own markup is left, and pictures are inside.
    assert not re.search(r"\{(doc|eq|cite|ref|func|mod|prf:\w+)\}`|^:{3,}|^`{3,}\{", text, re.MULTILINE)
    shown = re.findall(r"\]\(attachment:([^)]+)\)", text)
    held = [name for cell in made.cells for name in cell.get("attachments", {})]
    assert sorted(shown) == sorted(held)
    for target in re.findall(r"\]\(([^)]+\.ipynb)\)", text):
        assert (path.parent / target).is_file(), target
