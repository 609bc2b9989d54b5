"""The book as EPUB and PDF: what can be tested without LaTeX, and a small EPUB."""

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

for module in ("sphinx", "myst_parser", "latex2mathml"):
    pytest.importorskip(module, reason='the book needs pip install ".[docs]"')

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "docs" / "_ext"
MATHML = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture(scope="module")
def forms():
    sys.path.insert(0, str(EXTENSION))
    try:
        yield importlib.import_module("book_forms")
    finally:
        sys.path.remove(str(EXTENSION))


@pytest.fixture(scope="module")
def tool():
    loader = importlib.machinery.SourceFileLoader("refnorm_book_tool", str(ROOT / "tools" / "book"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def tree(forms, text, macros=None):
    return ElementTree.fromstring(forms.mathml(text, macros or {}, "block"))


def test_macros_are_whole_commands(forms):
    assert forms.with_macros(r"\R^n,\Re", {"R": r"\mathbb{R}"}) == r"\mathbb{R}^n,\Re"


def test_aligned_rows_become_a_table(forms):
    made = tree(forms, r"\begin{aligned}a&=b,&c&=d\\e&=f\end{aligned}")
    rows = made.findall(f".//{MATHML}mtr")
    assert [len(row) for row in rows] == [4, 2]
    # The second pair of columns stands apart.
    assert rows[0][2][0].tag == f"{MATHML}mspace"
    assert {table.get("columnspacing") for table in made.iter(f"{MATHML}mtable")} == {"0em"}


def test_gathered_rows_are_centred(forms):
    made = tree(forms, r"\begin{gathered}a\\[2pt]b\end{gathered}")
    assert {cell.get("columnalign") for cell in made.iter(f"{MATHML}mtd")} == {"center"}
    assert {table.get("columnspacing") for table in made.iter(f"{MATHML}mtable")} == {"0em"}


def test_a_row_may_begin_with_a_bracket(forms):
    assert "[" in "".join(tree(forms, r"\begin{cases}[x]&y\\z&w\end{cases}").itertext())


def test_names_contain_no_other_parts(forms):
    made = tree(forms, r"\operatorname{clip}(\mathrm{LN}_x)+\mathbf{x}")
    names = [e for kind in ("mi", "mo", "mn") for e in made.iter(MATHML + kind)]
    assert names
    assert not [e for e in names if len(e)]


def test_letters_keep_their_style(forms):
    made = tree(forms, r"x\in\mathbb R,\mathbf 1,\mathcal L,\mathrm d")
    assert "".join(made.itertext()) == "x∈ℝ,𝟏,ℒ,d"
    assert {e.get("mathvariant") for e in made.iter() if "mathvariant" in e.attrib} <= {"normal"}


def test_no_formula_is_passed_over(forms):
    # An environment that the converter does not know leaves a bare ampersand.
    with pytest.raises(ElementTree.ParseError):
        forms.mathml(r"\begin{unknown}a&b\end{unknown}", {}, "inline")


def test_lists_and_signatures_are_strict_xhtml(forms):
    body = "<dt><dl>\n<dd>a: int,</dd>\n<dd>b</dd>\n</dl></dt><dd><p><ul><li><p>x</p></li></ul></p></dd>"
    made = ElementTree.fromstring(f"<dl>{forms.strict(body)}</dl>")
    assert [line.text for line in made.iter("span")] == ["a: int,", "b"]
    assert not [p for p in made.iter("p") if p.find("ul") is not None]
    # A list of terms stays as it is.
    assert forms.strict("<dl><dt>a</dt><dd>b</dd></dl>") == "<dl><dt>a</dt><dd>b</dd></dl>"


CONF = """
import sys
sys.path[:0] = [{extension!r}, {root!r}]
project, author, version, copyright = "small", "nobody", "1", "nobody"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx_exercise", "refnorm_book", "book_forms"]
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
suppress_warnings = ["myst.mathjax"]
exclude_patterns = ["_generated", "_out", "_doctrees"]
epub_identifier = epub_uid = epub_description = epub_contributor = "small"
epub_scheme = "ID"
refnorm_book_root = {work!r}
"""

PAGE = """# A page

A formula $x_i$ and

$$
y=\\sqrt{x}
$$ (one)

````{exercise}
:label: task

Use {eq}`one`.
````

````{solution} task
:class: dropdown

So it is.
````

```{drawing} picture
```
"""

PICTURE = '''
def figure():
    """A line."""
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    ax.set_title("two words")
    ax.plot([0, 1])
    return fig
'''


def test_an_epub_has_formulas_and_no_scripts(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "conf.py").write_text(CONF.format(extension=str(EXTENSION), root=str(ROOT), work=str(tmp_path)))
    (docs / "index.md").write_text("# Top\n\n```{toctree}\npage\n```\n")
    (docs / "page.md").write_text(PAGE)
    (docs / "picture.py").write_text(PICTURE)
    command = [sys.executable, "-m", "sphinx", "-b", "epub", "-W", "-q", "-d", str(docs / "_doctrees")]
    process = subprocess.run([*command, str(docs), str(docs / "_out")], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    with zipfile.ZipFile(docs / "_out" / "small.epub") as book:
        assert book.namelist()[0] == "mimetype"
        page = book.read("page.xhtml").decode()
        ElementTree.fromstring(page[page.index("<html") :])
        assert "<msub><mi>x</mi><mi>i</mi></msub>" in page
        assert '<span class="eqno">(1)</span>' in page
        assert "<script" not in page
        assert "exercise.css" not in page
        assert re.search(
            r'<details class="solution dropdown admonition" id="[^"]+">\s*<summary class="admonition-title">Solution to Exercise 1</summary>'
            r"\s*<section>\s*<p>So it is.</p>",
            page,
        )
        assert "drawn-dark" not in page
        listing = book.read("content.opf").decode()
        assert 'href="page.xhtml" properties="mathml"' in listing
        assert 'href="index.xhtml" properties' not in listing
        (drawing,) = [name for name in book.namelist() if name.endswith(".svg")]
        svg = book.read(drawing)
        assert b"<!DOCTYPE" not in svg
        assert all(path.get("d") for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"))


def test_the_tool_names_the_packages_that_a_pdf_needs(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.missing_for_pdf() == sorted({*tool.LATEX_COMMANDS.values(), *tool.LATEX_FILES.values()})
    monkeypatch.setattr(sys, "argv", ["book", "--pdf"])
    monkeypatch.setattr(tool, "build", lambda clean: pytest.fail("it builds before it looks for LaTeX"))
    assert tool.main() == 2
    assert "apt-get install fonts-freefont-otf latexmk librsvg2-bin" in capsys.readouterr().err


def test_the_checker_of_epubs_is_run_as_it_is_packed(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.epub_checker() == []
    checker = tmp_path / "epubcheck"
    for content, command in ((b"#!/bin/sh\n", [str(checker)]), (b"PK\x03\x04", ["java", "-jar", str(checker)])):
        checker.write_bytes(content)
        checker.chmod(0o755)
        assert tool.epub_checker() == command


def test_the_tool_says_what_is_missing(tool, monkeypatch, capsys):
    assert tool.installed("sphinx.builders")
    monkeypatch.setattr(tool, "NEEDED", ("sphinx", "absent_namespace.part"))
    monkeypatch.setattr(sys, "argv", ["book"])
    assert tool.main() == 2
    assert 'absent_namespace.part missing: pip install ".[docs]"' in capsys.readouterr().err
