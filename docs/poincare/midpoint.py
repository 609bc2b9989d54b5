"""How the midpoint is made, and how it moves with its points while the mean of coordinates does not."""

import numpy as np

from refnorm.poincare import expmap, logmap, midpoint, mobius_add

ON_LINE = np.array([[-0.55], [-0.2], [0.74]])
"""Three points of the ball of dimension one, which is an interval."""
IN_DISK = np.array([[-0.93, 0.2], [-0.3, -0.9], [-0.2, 0.1]])
SHIFT = np.array([0.62, 0.3])


def lifted(x):
    """Return points of the ball on the hyperboloid t^2 - p^2 = 1: p and t."""
    factor = 2 / (1 - (x * x).sum(axis=-1, keepdims=True))
    return np.concatenate([factor * x, factor - 1], axis=-1)


def moved(points):
    """Translate points by the isometry that takes the centre to ``SHIFT``."""
    return mobius_add(np.tile(SHIFT, (len(points), 1)), points, 1.0)


def draw_construction(ax):
    points, middle = lifted(ON_LINE), midpoint(ON_LINE, 1.0)[None]
    mean, above, p = points.mean(axis=0), lifted(middle)[0], np.linspace(-1.9, 4.2, 120)
    ax.plot(p, np.sqrt(1 + p * p), color="black", linewidth=1.2)
    ax.plot([-1, 1], [0, 0], color="black", linewidth=3, solid_capstyle="butt")
    for x, place in zip(ON_LINE, points, strict=True):
        ax.plot([0, place[0]], [-1, place[1]], color="#8a8a8a", linewidth=0.8)
        ax.plot([x[0], place[0]], [0, place[1]], "o", color="#1f77b4", markersize=5)
    ax.plot([0, mean[0]], [0, mean[1]], "--", color="#d62728", linewidth=1.2)
    ax.plot(*mean, "D", color="#d62728", markersize=6, markerfacecolor="none")
    ax.plot([0, above[0]], [-1, above[1]], color="#d62728", linewidth=0.8)
    ax.plot([middle[0, 0], above[0]], [0, above[1]], "o", color="#d62728", markersize=6)
    ax.annotate("average", mean, xytext=(-8, 5), textcoords="offset points", ha="right")
    ax.annotate("ball", (1, 0), xytext=(5, -4), textcoords="offset points")
    ax.annotate("hyperboloid", (2.3, 2.5), xytext=(-6, 8), textcoords="offset points", ha="right")
    ax.set(xlim=(-1.9, 4.2), ylim=(-1.1, 3.6), aspect="equal")


def draw_moved(ax):
    for points, style in ((IN_DISK, "-"), (moved(IN_DISK), "--")):
        for start, end in zip(points, np.roll(points, 1, axis=0), strict=True):
            way = expmap(np.tile(start, (20, 1)), np.linspace(0, 1, 20)[:, None] * logmap(start, end, 1.0), 1.0)
            ax.plot(*way.T, style, color="#1f77b4", linewidth=1)
        ax.plot(*points.T, "o", color="#1f77b4", markersize=4)
        ax.plot(*midpoint(points, 1.0), "o", color="#d62728", markersize=6)
        ax.plot(*points.mean(axis=0), "^", color="#9467bd", markersize=6)
    for centre, marker, colour in ((midpoint(IN_DISK, 1.0), "o", "#d62728"), (IN_DISK.mean(axis=0), "^", "#9467bd")):
        ax.plot(*moved(centre[None])[0], marker, color=colour, markersize=11, markerfacecolor="none")
    ax.set(aspect="equal", xlim=(-1.02, 1.02), ylim=(-1.02, 1.02))


def figure():
    """Left: the midpoint of three points of the one-dimensional ball, the thick line. Rays from below lift them to the
    hyperboloid, where they are averaged (diamond); the dashed ray scales the average back to the hyperboloid, and the
    first ray takes it back to the ball. Right: three points, and the same three carried along by an isometry, dashed.
    Their midpoint (full disks) arrives where the isometry takes it, the open disk. The mean of coordinates (full
    triangles) does not: it should have come to the open triangle, and lies near one of the points instead."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained", width_ratios=(1.25, 1))
    axes[1].add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
    draw_construction(axes[0])
    draw_moved(axes[1])
    for ax in axes:
        ax.set_axis_off()
    return fig
