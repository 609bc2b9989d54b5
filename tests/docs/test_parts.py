"""The first page of a part compares all its methods and draws where they come from: none may be missing there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PARTS = ("softmax", "norms", "quantizers", "poincare", "solvers")
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
