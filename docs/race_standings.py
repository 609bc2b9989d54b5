"""Where every raced kernel stands: times the best peer, and distance to the bytes that must move."""

import math

import numpy as np
from bench import standings

DATA_FILES = ("docs/_data/race.json",)


def figure():
    """Each point is one size of one kernel, placed by how many times longer the fastest other implementation takes; the
    thin line through it spans the quartiles over the rounds. Points left of 1 are sizes at which the kernel loses.

    Rows are kernels, ordered by the geometric mean over their sizes; the axis is logarithmic."""
    import matplotlib.pyplot as plt

    data = standings.load(standings.RESULTS)
    groups = sorted(
        standings.by_kernel(standings.standings(data["races"])).items(),
        key=lambda item: standings.geometric_mean(item[1]),
    )
    fig, ax = plt.subplots(figsize=(7.4, 1.0 + 0.21 * len(groups)), layout="constrained")
    for row, (_, entries) in enumerate(groups):
        for entry in entries:
            slow = entry.ratio < 0.95
            colour = "#d62728" if slow else "#1f77b4"
            ax.plot([entry.low, entry.high], [row, row], color=colour, linewidth=1.2, alpha=0.6)
            ax.plot(entry.ratio, row, "D" if slow else "o", color=colour, markersize=4)
        ax.plot(standings.geometric_mean(entries), row, "|", color="#000000", markersize=9)
    ax.axvline(1, color="#8a8a8a", linewidth=1)
    highest = max((entry.ratio for _, entries in groups for entry in entries), default=1)
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(0.4, 2 ** math.ceil(math.log2(highest * 1.1)))
    ax.minorticks_off()
    ax.set_yticks(np.arange(len(groups)), [name for (_, name), _ in groups], fontsize=8)
    ax.set_ylim(-0.7, len(groups) - 0.3)
    ax.set_xlabel("times that the best peer takes longer")
    return fig
