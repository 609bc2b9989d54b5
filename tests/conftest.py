"""Settings shared by all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Makers of golden vectors and races need packages that the tests do not (PyTorch and the papers' own).
collect_ignore_glob = ["golden/*", "bench/*"]

settings.register_profile("default", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("default")

os.environ.setdefault("MPLBACKEND", "Agg")
