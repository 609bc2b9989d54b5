#!/usr/bin/env python
"""Write the computed parts of README.md: the catalogue table, the tour's output, the evidence, the measured speeds.

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
sys.path.insert(0, str(ROOT / "tests"))

from bench import standings  # noqa: E402


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
    """One row a race's name: the best peer at each shape, the ratios' geometric mean and the worst."""
    data = standings.load()
    entries = standings.standings(data["races"])
    if not entries:
        return "No race has been run."
    rows = [
        "| kernel | shapes | times the best peer | least | errors there, ours / peer's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (_, name), group in standings.by_kernel(entries).items():
        least = min(group, key=lambda entry: entry.ratio)
        accuracy = f"{least.errors[0]:.2g} / {least.errors[1]:.2g}" if least.errors else "–"
        rows.append(
            f"| {name} | {len(group)} | {standings.geometric_mean(group):.2f} "
            f"| {least.ratio:.2f} at {least.shape}, {least.peer} | {accuracy} |"
        )
    slower = len(standings.lost(entries))
    return (
        f"Measured with `{data['command']}` on {data['machine']}, {data['threads']} threads; a NumPy copy moves "
        f"{data['copy_gb_per_s']:.0f} GB/s there. Ratios above 1 mean that the kernel is faster than the fastest peer "
        f"of that shape. Over all {len(entries)} races the geometric mean is {standings.geometric_mean(entries):.2f}; "
        f"{slower} of them are below {standings.DRAW}. The rows give the geometric mean over a kernel's shapes, and the least. "
        "The full tables, with the spread of each "
        "ratio, the floors and the units of the errors, stand in the chapters and on the book's page of races.\n\n"
        + "\n".join(rows)
    )


def evidence_part() -> str:
    """One row a room of what ``tools/evidence`` measured, and the claims that do not show."""
    path = ROOT / "docs" / "_data" / "evidence.json"
    if not path.is_file():
        return "No evidence has been collected."
    data = json.loads(path.read_text())
    rows = [
        f"Collected with `{data['command']}`; the room introductions of the book say where each figure comes from.\n",
        "| room | functions (with vjp) | gradient checks | worst relative gradient error | golden cases | claims that hold |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    sources: dict[str, int] = {}
    refuted = []
    for room, found in data["rooms"].items():
        total = found["claims_holding"] + len(found["claims_refuted"])
        rows.append(
            f"| `{room}` | {found['functions']} ({found['vjps']}) | {found['gradient_cases']} "
            f"| {found['worst_gradient_error']:.0e} | {found['golden_cases']} | {found['claims_holding']} of {total} |"
        )
        for kind, count in found["golden_sources"].items():
            sources[kind] = sources.get(kind, 0) + count
        refuted += found["claims_refuted"]
    ordered = sorted(sources.items(), key=lambda item: -item[1])
    rows.append("\nGolden cases by source: " + ", ".join(f"{kind} {count}" for kind, count in ordered) + ".")
    if refuted:
        rows.append("\nClaims that do not show in miniature (why is on their pages):\n")
        for claim in refuted:
            figures = "; ".join(
                f"{name} {value:.3g}" if isinstance(value, (int, float)) else f"{name} {value}"
                for name, value in claim["figures"].items()
            )
            rows.append(f"- `{claim['method']}`: {claim['statement']} Measured: {figures}.")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a part is out of date")
    options = parser.parse_args()
    text = README.read_text()
    updated = text
    parts = {
        "catalogue": lambda _: catalogue_part(),
        "tour": tour_part,
        "evidence": lambda _: evidence_part(),
        "speed": lambda _: speed_part(),
    }
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
