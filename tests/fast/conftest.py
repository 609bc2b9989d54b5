"""The kernels' tests compare with the reference; that they run it says nothing about how well it is tested itself."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("_cov"):  # only then is anything measured
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker("no_cover")
