#!/usr/bin/env python
"""Write the golden vectors from the independent sources in tests/golden.

    python tools/make_golden.py                     all methods
    python tools/make_golden.py norms/layer_norm    one or more
    python tools/make_golden.py --check             compare with the stored files instead of writing

Needs ``pip install ".[golden]"``: the truth comes from mpmath, PyTorch and the official packages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from discovery import load  # noqa: E402

from refnorm.conformance import GOLDEN_ROOT, load_cases, save_cases  # noqa: E402


def main() -> int:
    makers = ROOT / "tests" / "golden"
    known = sorted(path.relative_to(makers).with_suffix("").as_posix() for path in makers.glob("*/*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="ROOM/METHOD", help=f"of {', '.join(known)}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a stored file differs")
    options = parser.parse_args()
    unknown = sorted(set(options.methods) - set(known))
    if unknown:
        parser.error(f"no maker for {', '.join(unknown)}; known: {', '.join(known)}")
    differing = []
    for method in options.methods or known:
        cases = load(makers / f"{method}.py").cases()
        if options.check:
            with tempfile.TemporaryDirectory() as folder:
                fresh = [path.read_bytes() for path in save_cases(method, cases, Path(folder))]
            stored = [GOLDEN_ROOT / f"{method}{suffix}" for suffix in (".json", ".npz")]
            same = all(path.is_file() for path in stored) and fresh == [path.read_bytes() for path in stored]
            print(f"{method}: {'same' if same else 'DIFFERS'}")
            differing += [] if same else [method]
            continue
        manifest, data = save_cases(method, cases)
        size = (manifest.stat().st_size + data.stat().st_size) / 1024
        print(f"{method}: {len(load_cases(method))} cases, {size:.0f} KiB")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
