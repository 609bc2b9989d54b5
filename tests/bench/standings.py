"""How the kernels stand against their best peers, from the results that ``tools/race`` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "_data" / "race.json"


DRAW = 0.95
"""A ratio below is a race that was lost: timings of the same code differ by less."""


@dataclass(frozen=True)
class Standing:
    """One of our candidates against the fastest peer of one race."""

    method: str
    name: str
    shape: str
    ours: str
    peer: str
    ratio: float
    """Times that the peer takes longer: the median over the rounds, and its quartiles."""
    low: float
    high: float
    errors: tuple[float, float] | None
    """Ours and the peer's, in the race's own unit."""
    gb_per_s: float | None
    """Bytes of the floor by the time taken; ``None`` where the race states no bytes."""
    floor_bytes: float | None


def load(path: Path = RESULTS) -> dict[str, Any]:
    """Return the stored results; without a file, a race that nobody ran."""
    if not path.is_file():
        return {"races": [], "machine": "", "copy_gb_per_s": math.nan, "threads": 0, "command": "tools/race"}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def is_peer(label: str) -> bool:
    """Whether a candidate does the same thing and is not ours: not a yardstick such as a plain copy."""
    return not (
        label.startswith(("refnorm", "reference", "two_pass", "three_pass", "online", "copy")) or "plain" in label
    )


def standings(races: Iterable[dict[str, Any]]) -> list[Standing]:
    """Return one entry a race, and one more where the int8 encoder runs beside the float one."""
    found = []
    for race in races:
        results, errors = race["results"], race["accuracy"]
        peers = {label: entry for label, entry in results.items() if is_peer(label)}
        if not peers:
            continue
        best = min(peers, key=lambda label: peers[label]["median_ms"])
        for ours in dict.fromkeys((race["ours"], "refnorm_fast, int8")):
            if ours not in results:
                continue
            main = ours == race["ours"]
            # The stored ratios are those to the race's own candidate.
            scale = 1.0 if main else results[ours]["ratio"]
            found.append(
                Standing(
                    race["method"],
                    race["name"] if main else f"{race['name']} (int8)",
                    race["shape"],
                    ours,
                    best,
                    *(peers[best][key] / scale for key in ("ratio", "ratio_low", "ratio_high")),
                    errors=(errors[ours], errors[best]) if ours in errors and best in errors else None,
                    gb_per_s=race.get("gb_per_s") if main else None,
                    floor_bytes=race.get("floor_bytes") if main else None,
                )
            )
    return found


def by_kernel(entries: Iterable[Standing]) -> dict[tuple[str, str], list[Standing]]:
    """Group entries of one kernel, whose shapes differ."""
    groups: dict[tuple[str, str], list[Standing]] = {}
    for entry in entries:
        groups.setdefault((entry.method, entry.name), []).append(entry)
    return groups


def geometric_mean(entries: Sequence[Standing]) -> float:
    return math.exp(sum(math.log(entry.ratio) for entry in entries) / len(entries))


def lost(entries: Iterable[Standing]) -> list[Standing]:
    """The races in which a peer is faster, the clearest first."""
    return sorted((entry for entry in entries if entry.ratio < DRAW), key=lambda entry: entry.ratio)
