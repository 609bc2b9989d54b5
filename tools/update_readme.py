#!/usr/bin/env python
"""Write the computed parts of README.md: the catalogue table, the tour's output, the measured speeds.

    python tools/update_readme.py           rewrite them
    python tools/update_readme.py --check   exit 1 if they are not up to date

A part stands between ``<!-- NAME -->`` and ``<!-- end NAME -->``. The tour is a Python block followed by the
output it prints; it is run here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def catalogue_part() -> str:
    from refnorm import catalogue

    rows = [
        "| method | what | functions (with vjp) | golden cases | claim | kernel |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in catalogue.methods():
        status = catalogue.status(method)
        rows.append(
            f"| `{method.chapter}` | {method.title} | {len(status.functions)} ({len(status.vjps)}) "
            f"| {status.golden_cases} | {'yes' if status.claim else '–'} | {len(status.kernels) or '–'} |"
        )
    totals = [catalogue.status(method) for method in catalogue.methods()]
    rows.append(
        f"\n{len(totals)} modules, {sum(len(s.functions) for s in totals)} public functions and classes, "
        f"{sum(len(s.vjps) for s in totals)} with a hand-derived backward pass, "
        f"{sum(s.golden_cases for s in totals)} golden cases."
    )
    return "\n".join(rows)


def tour_part(current: str) -> str:
    code = re.search(r"```python\n(.*?)```", current, flags=re.DOTALL)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README tour", "exec"), {"__name__": "__tour__"})  # our own README's code
    return f"```python\n{code}```\n\nprints\n\n```text\n{printed.getvalue()}```"


def speed_part() -> str:
    path = ROOT / "docs" / "_data" / "race.json"
    if not path.is_file():
        return "No race has been run."
    data = json.loads(path.read_text())
    rows = [
        "| kernel | shape | ms | against the best peer | error, ours / peer's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for race in data["races"]:
        ours = race["results"][race["ours"]]
        # a label that begins with "refnorm" is another of our own variants, not a peer
        peers = {label: r for label, r in race["results"].items() if not label.startswith("refnorm")}
        if not peers:
            continue
        best = min(peers, key=lambda label: peers[label]["ratio"])
        error = race["accuracy"]
        unit = race["check_unit"]
        accuracy = (
            f"{error[race['ours']]:.2g} / {error[best]:.2g} {unit}" if best in error and race["ours"] in error else "–"
        )
        rows.append(
            f"| {race['name']} | {race['shape']} | {ours['median_ms']:.3g} "
            f"| {peers[best]['ratio']:.2f}x {best} ({peers[best]['ratio_low']:.2f} to {peers[best]['ratio_high']:.2f}) | {accuracy} |"
        )
    return (
        f"Measured with `{data['command']}` on {data['machine']}, {data['threads']} threads. A ratio above 1 means "
        "that the kernel is that many times faster than the fastest peer (quartiles of the interleaved rounds in "
        "parentheses).\n\n" + "\n".join(rows)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a part is out of date")
    options = parser.parse_args()
    text = README.read_text()
    updated = text
    parts = {"catalogue": lambda _: catalogue_part(), "tour": tour_part, "speed": lambda _: speed_part()}
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n)(.*?)(\n<!-- end {name} -->)", flags=re.DOTALL)
        match = pattern.search(updated)
        if not match:
            print(f"README.md: the part {name} is missing", file=sys.stderr)
            return 1
        updated = updated[: match.start(2)] + make(match[2]) + updated[match.end(2) :]
    if options.check:
        if updated != text:
            print("README.md is out of date: run python tools/update_readme.py", file=sys.stderr)
            return 1
        return 0
    part = README.with_suffix(".part")
    part.write_text(updated)
    os.replace(part, README)
    return 0


if __name__ == "__main__":
    sys.exit(main())
