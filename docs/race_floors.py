"""How near the memory-bound kernels are to the bytes that must move."""

import numpy as np
from bench import standings

DATA_FILES = ("docs/_data/race.json",)
OUT_OF_CACHE = 64 << 20
"""Bytes of the floor from which a race counts as out of cache."""


def figure():
    """Bytes that a kernel must read and write at least once, divided by the time it takes, for the races whose floor is
    64 MB or more. The line is what copying an array achieves. A copy through the cache first reads the lines that it is
    about to overwrite; a kernel that writes past the cache does not, and may end right of the line.

    Rows are kernels with their size, ordered by the rate."""
    import matplotlib.pyplot as plt

    data = standings.load(standings.RESULTS)
    entries = sorted(
        (
            e
            for e in standings.standings(data["races"])
            if e.gb_per_s and e.floor_bytes and e.floor_bytes >= OUT_OF_CACHE
        ),
        key=lambda entry: entry.gb_per_s,
    )
    copy = data["copy_gb_per_s"]
    fig, ax = plt.subplots(figsize=(7.4, 1.0 + 0.24 * len(entries)), layout="constrained")
    ax.barh(np.arange(len(entries)), [entry.gb_per_s for entry in entries], color="#1f77b4", height=0.6)
    ax.axvline(copy, color="#d62728", linewidth=1.2)
    ax.text(copy, len(entries) - 0.4, f" copy {copy:.0f}", color="#d62728", fontsize=8, va="bottom", ha="center")
    ax.set_yticks(np.arange(len(entries)), [f"{entry.name} {entry.shape}" for entry in entries], fontsize=8)
    ax.set_ylim(-0.7, len(entries) + 0.3)
    ax.set_xlabel("GB/s of the floor")
    return fig
