"""The races' own kernels under pytest-benchmark, to compare one commit with another.

    pytest tests/bench/test_speed.py --benchmark-only --benchmark-autosave
    pytest tests/bench/test_speed.py --benchmark-only --benchmark-compare -k softmax

Without ``--benchmark-only`` nothing is timed: a test that fails on a busy machine teaches people to ignore it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
FILES = sorted(Path(__file__).parent.glob("race_*.py"))


def load(stem: str) -> ModuleType:
    if stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(stem, Path(__file__).with_name(f"{stem}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[stem] = module
        spec.loader.exec_module(module)
    return sys.modules[stem]


@cache
def titles(stem: str) -> list[str]:
    """Return what the races of a file are called; their arrays are let go one by one."""
    return [f"{race['name']} {race['shape']}" for race in load(stem).races()]


class Sequence:
    """Hands out the races of a file in order, holding the arrays of one at a time."""

    current: tuple[str, int, Iterator[dict[str, Any]]] | None = None

    @classmethod
    def race(cls, stem: str, index: int) -> dict[str, Any]:
        if cls.current is None or cls.current[0] != stem or cls.current[1] > index:
            cls.current = (stem, 0, load(stem).races())
        _, position, races = cls.current
        for _ in range(index - position):
            next(races)
        cls.current = (stem, index + 1, races)
        return next(races)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = metafunc.config.getoption("benchmark_only", False)
    if wanted:
        pytest.importorskip("torch", reason='the races need pip install ".[bench]"')
    pairs = (
        [(path.stem, index, title) for path in FILES for index, title in enumerate(titles(path.stem))] if wanted else []
    )
    metafunc.parametrize(
        ("stem", "index"), [pair[:2] for pair in pairs], ids=[f"{pair[0][5:]}: {pair[2]}" for pair in pairs]
    )


def test_speed(benchmark: Any, stem: str, index: int) -> None:
    race = Sequence.race(stem, index)
    benchmark.group = f"{race['method']} {race['name']}"
    benchmark.extra_info["floor_bytes"] = race.get("bytes")
    benchmark(race["candidates"][race["ours"]])
