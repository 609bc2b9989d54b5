"""The list of public names is reviewed: the code agrees with it, and the changelog names what it changed."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool():
    loader = SourceFileLoader("public_api_tool", str(ROOT / "tools" / "public_api"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


api = tool()


def listed(name):
    return api.parse((ROOT / "tests" / "api" / name).read_text())


def test_the_list_is_what_the_code_has():
    pytest.importorskip("refnorm_fast", exc_type=ImportError, reason="this installation has no kernels")
    assert api.check(listed("public.txt"), api.entries()) == [], "run tools/public_api and look at the difference"


def test_the_changelog_names_every_difference_from_the_last_release():
    changed = api.differences(listed("released.txt"), listed("public.txt"))
    assert api.unlisted(changed, (ROOT / "CHANGELOG.md").read_text()) == []


def test_the_list_has_both_packages_every_room_and_nothing_that_differs_between_machines():
    lines = listed("public.txt")
    for name in (
        "refnorm.norms.layer_norm",
        "refnorm.norms.layer_norm_vjp",
        "refnorm.solvers.Lion.step",
        "refnorm.conformance.run",
        "refnorm_fast.norms.layer_norm",
        "refnorm_fast.set_num_threads",
        "refnorm_fast.cuda.softmax.softmax",
    ):
        assert name in lines
    assert lines["refnorm.norms.layer_norm"].endswith("eps: float = 1e-05, axes: Sequence[int] = (-1,)) -> Array[F]")
    assert not [line for line in lines.values() if " at 0x" in line or str(ROOT) in line]
    assert list(lines) == sorted(lines)


CHANGELOG = """# Changelog

## Unreleased

### Added
- `refnorm.norms.new_norm` and the class `Fresh`; a function old_word is not in backticks.
### Changed
- `layer_norm(x, gain)` takes an option.

## 0.1.0

### Added
- `earlier`
"""


@pytest.mark.parametrize(
    ("kind", "name", "named"),
    [
        ("added", "refnorm.norms.new_norm", True),
        ("added", "refnorm_fast.norms.new_norm", False),
        ("added", "refnorm_fast.norms.Fresh", True),
        ("added", "refnorm.norms.Fresh", True),
        ("changed", "refnorm.norms.layer_norm", True),
        ("added", "refnorm.norms.old_word", False),
        ("added", "refnorm.norms.norm", False),
        ("added", "refnorm.norms.earlier", False),
        ("added", "refnorm.norms.layer_norm", False),
        ("added", "refnorm.norms.new_norm_vjp", False),
        ("removed", "refnorm.norms.new_norm", False),
        ("added", "refnorm.norms.Fresh.new_norm", False),
    ],
)
def test_a_difference_must_be_named_in_backticks_under_its_heading(kind, name, named):
    said = api.unlisted({kind: [name]}, CHANGELOG)
    assert (
        said == [] if named else (len(said) == 1 and said[0].startswith(f"{name} was {kind}: name it in CHANGELOG.md"))
    )


def test_a_function_speaks_for_its_pullback_and_a_class_for_its_members():
    together = [
        "refnorm.norms.new_norm",
        "refnorm.norms.new_norm_vjp",
        "refnorm.norms.Fresh",
        "refnorm.norms.Fresh.step",
    ]
    assert api.unlisted({"added": together}, CHANGELOG) == []


def test_a_changelog_without_its_section_is_an_error():
    with pytest.raises(ValueError, match='CHANGELOG.md: expected a section "## Unreleased", found none'):
        api.unreleased("# Changelog\n\n## 0.1.0\n")


def test_differences_say_what_was_added_changed_and_removed():
    before, after = {"a": "a(x)", "b": "b(x)", "c": "c"}, {"a": "a(x)", "b": "b(x, y)", "d": "d"}
    assert api.differences(before, after) == {"added": ["d"], "changed": ["b"], "removed": ["c"]}
    assert api.check(before, after) == ["added in the code: d", "changed in the code: b", "removed in the code: c"]


def test_lines_of_every_kind_of_name():
    class Owner:
        limit = 3

        def __init__(self, x: int = 1) -> None: ...

        def step(self, grads: list[int], *, dtype: type = np.float32) -> None: ...

        @property
        def size(self) -> int:
            return 0

        @classmethod
        def build(cls) -> None: ...

        def _hidden(self) -> None: ...

    Owner.__module__ = "refnorm.room"
    lines = api.describe("refnorm.room.Owner", Owner)
    assert lines == {
        "refnorm.room.Owner": "class refnorm.room.Owner(x: int = 1)",
        "refnorm.room.Owner.limit": "refnorm.room.Owner.limit: int",
        "refnorm.room.Owner.step": (
            "refnorm.room.Owner.step(self, grads: list[int], *, dtype: type = numpy.float32) -> None"
        ),
        "refnorm.room.Owner.size": "property refnorm.room.Owner.size: int",
        "refnorm.room.Owner.build": "classmethod refnorm.room.Owner.build(cls) -> None",
    }
    assert api.parse("# head\n\n" + "\n".join(lines.values())) == lines
    assert api.describe("refnorm.LIMITS", (1, 2)) == {"refnorm.LIMITS": "refnorm.LIMITS: tuple = (1, 2)"}
    assert api.literal(SimpleNamespace(f=lambda: 0)) == "<SimpleNamespace>"
