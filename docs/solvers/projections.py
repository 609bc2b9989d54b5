"""Where projections and a proximal map send the points of a grid."""

import numpy as np

from refnorm.solvers import ball_projection, box_projection, simplex_projection, soft_threshold

MAPS = {
    "box": (lambda x: box_projection(x, -1.0, 1.0), [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]),
    "ball": (lambda x: ball_projection(x, 1.0), [(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 80)]),
    "simplex": (simplex_projection, [(0, 1), (1, 0)]),
    "soft threshold": (lambda x: soft_threshold(x, 1.0), None),
}
"""Each map on rows of points, and the outline of its set."""


def figure():
    r"""Four maps of the plane; an arrow goes from a point to its value (red; a blue dot: the point stays). The projections on a box with sides 2 and
    on a ball of radius 1 leave points inside where they are, and send those outside to the nearest point of the boundary: at corners many share one. The
    simplex of two entries with sum 1 is a segment, and all points are sent to it, in parallel or to an end. The soft threshold with
    $t=1$ moves each coordinate towards 0 by 1, and no further than 0: a whole cross of points loses a coordinate, and a square both."""
    import matplotlib.pyplot as plt

    ticks = np.linspace(-2, 2, 7)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    fig, axes = plt.subplots(1, 4, figsize=(7, 2.3), layout="constrained", sharey=True)
    for ax, (name, (function, outline)) in zip(axes, MAPS.items(), strict=True):
        images = np.array([function(point) for point in points])
        moved = images - points
        far = np.abs(moved).max(axis=1) > 1e-9
        ax.plot(*points[~far].T, "o", color="#1f77b4", markersize=3.5)
        ax.quiver(
            *points[far].T,
            *moved[far].T,
            angles="xy",
            scale_units="xy",
            scale=1,
            color="#1f77b4",
            width=0.008,
            headwidth=4,
        )
        ax.plot(*images[far].T, "o", color="#d62728", markersize=2.5, zorder=3)
        if outline is not None:
            ax.plot(*np.transpose(outline), color="#d62728", linewidth=2)
        ax.set(aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        ax.set_title(name, fontsize=11)
    return fig
