"""``python -m refnorm.conformance``: hold an implementation to the golden vectors, or export them.

The same as ``refnorm conformance``, but for NumPy and SciPy it needs no package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from refnorm.conformance import _commands

COMMANDS = ("run", "export", "compare", "list")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all went well, 1 if a case failed, 2 on bad usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # `python -m refnorm.conformance MODULE` is short for `... run MODULE`.
    if given and given[0] not in COMMANDS and not given[0].startswith("-"):
        given.insert(0, "run")
    options = _parser().parse_args(given)
    try:
        if options.command == "run":
            return _commands.run_command(
                options.implementation, options.method, as_json=options.json, vectors=options.vectors
            )
        if options.command == "export":
            return _commands.export_command(
                options.directory, options.method, overwrite=options.overwrite, as_json=options.json
            )
        if options.command == "compare":
            return _commands.compare_command(options.directory, as_json=options.json)
        return _commands.list_command(as_json=options.json)
    except _commands.UsageError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refnorm.conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="hold an implementation to the vectors")
    run.add_argument("implementation", metavar="MODULE[:MAPPING]", help="importable name, for example refnorm_fast")
    run.add_argument("--vectors", metavar="DIR", help="an exported folder instead of this package's vectors")
    export = commands.add_parser("export", help="write the vectors for programs in other languages")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    for command in (run, export):
        command.add_argument("--method", action="append", metavar="ROOM/METHOD", help="only this one; may be repeated")
    compare = commands.add_parser("compare", help="what changed since an export")
    for command in (export, compare):
        command.add_argument("directory", metavar="DIR")
    listing = commands.add_parser("list", help="the methods and functions with golden vectors")
    for command in (run, export, compare, listing):
        command.add_argument("--json", action="store_true", help="write JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
