import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refnorm

PACKAGE = Path(refnorm.__file__).parent
OPTIONAL = {"cli", "__main__.py", "sklearn"}
"""Modules and folders that belong to an extra."""


def imports(path, *, top_level_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_reference_stands_on_numpy_and_scipy_alone(path):
    allowed = {*sys.stdlib_module_names, "numpy", "scipy", "refnorm"}
    if OPTIONAL & {path.name, path.parent.name}:
        pytest.skip("belongs to an extra")
    assert {name.split(".")[0] for name in imports(path, top_level_only=True)} <= allowed
    assert "refnorm_fast" not in {name.split(".")[0] for name in imports(path, top_level_only=False)}


def test_import_is_light():
    code = "import sys, refnorm; print(*sorted(m for m in sys.modules if m.split('.')[0] in ('refnorm', 'scipy')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["refnorm"]


def test_rooms_load_when_used_and_unknown_names_are_errors():
    assert refnorm.norms.__name__ == "refnorm.norms"
    assert set(refnorm.ROOMS) <= set(dir(refnorm))
    with pytest.raises(AttributeError, match="module 'refnorm' has no attribute 'cooking'"):
        refnorm.cooking  # noqa: B018
