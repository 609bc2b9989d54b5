"""Settings shared by all tests."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("default")

os.environ.setdefault("MPLBACKEND", "Agg")
