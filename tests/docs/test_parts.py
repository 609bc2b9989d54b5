"""The first page of a part compares all its methods and draws where they come from: none may be missing there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PARTS = ("softmax", "norms", "quantizers", "poincare", "solvers")
CHAPTERS = sorted(
    path.relative_to(DOCS) for part in PARTS for path in (DOCS / part).glob("*.md") if path.stem != "index"
)
LINK = re.compile(r"\{doc}`[^`<]+<(\w+)>`")


@pytest.mark.parametrize("part", PARTS)
def test_every_chapter_is_in_the_table_and_in_the_family_tree(part):
    page = (DOCS / part / "index.md").read_text()
    table = "\n".join(line for line in page.splitlines() if line.startswith("| {doc}"))
    tree = re.search(r"^:::\{container\} family-tree$(.*?)^:::$", page, re.MULTILINE | re.DOTALL)
    assert tree is not None
    chapters = {path.stem for path in (DOCS / part).glob("*.md")} - {"index"}
    assert set(LINK.findall(table)) == chapters
    assert set(LINK.findall(tree[1])) == chapters


def section(text: str, title: str) -> str | None:
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else None


@pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
def test_a_chapter_has_all_its_sections(chapter):
    text, name = (DOCS / chapter).read_text(), chapter.with_suffix("").as_posix()
    assert f"{{method}} {name}" in text
    for title in (
        "The idea",
        "Definition",
        "The backward pass, step by step",
        "The code",
        "Numerics",
        "Evidence",
        "References",
    ):
        assert section(text, title), title
    assert f"{{drawing}} {name}" in str(section(text, "The idea"))
    assert "{literalinclude}" in str(section(text, "The code"))
    assert f"{{claims}} {name}" in str(section(text, "Evidence"))
    assert section(text, "The kernel") or section(text, "Cost")
    assert text.count("{exercise}") == text.count("{solution} ") >= 2
    assert "{cite}" in str(section(text, "References"))
    assert f"{{sources}} {name}" in str(section(text, "References"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
def test_a_chapter_leads_to_its_relatives(chapter):
    assert re.search(r"\{doc}`", (DOCS / chapter).read_text())
