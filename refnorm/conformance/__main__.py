"""``python -m refnorm.conformance MODULE``: hold a module to the golden vectors."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from refnorm.conformance import format_table, method_names, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every case passed, 1 if one failed, 2 on bad usage."""
    parser = argparse.ArgumentParser(prog="python -m refnorm.conformance", description=__doc__)
    parser.add_argument("module", help="importable name, for example refnorm_fast or my_package.my_module")
    parser.add_argument("--method", action="append", metavar="ROOM/METHOD", help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    try:
        unknown = sorted(set(options.method or ()) - set(method_names()))
        if unknown:
            raise ValueError(f"--method: expected one of {', '.join(method_names())}, got {', '.join(unknown)}")
        sys.path.insert(0, "")
        outcomes = run(importlib.import_module(options.module), methods=options.method)
    except (ImportError, ValueError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    print(format_table(outcomes))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
