"""A batch off the centre of the disk, normalized by its coordinates and by the geometry."""

import numpy as np

from refnorm.norms import batch_norm
from refnorm.poincare import exp0, expmap, logmap, midpoint, midpoint_batch_norm

ONE = np.array(1.0)


def batch():
    """Return 40 points of the disk about a place off the centre."""
    rng = np.random.default_rng(2)
    return exp0(np.array([0.9, 0.55]) + 0.45 * rng.standard_normal((40, 2)), 1.0)


def panels():
    """Return the batch and what the two norms make of it, by name."""
    x = batch()
    coordinates = batch_norm(x, np.ones(2), np.zeros(2), axes=(0,))
    return {
        "the batch": x,
        "coordinates normalized": coordinates,
        "midpoint batch norm": midpoint_batch_norm(x, np.zeros(2), ONE, 1.0),
    }


def spokes(points):
    """Return the geodesics from the points' midpoint to each of them."""
    middle = np.tile(midpoint(points, 1.0), (len(points), 1))
    ways = logmap(middle, points, 1.0)
    return [expmap(middle, share * ways, 1.0) for share in np.linspace(0, 1, 12)]


def figure():
    """Forty points of the disk, far from its centre (left). Standardizing the two coordinates (middle) puts 23 of them, the
    crosses, outside the circle, where there are no points. Midpoint batch norm (right) looks at every point along the
    geodesic from the midpoint, the grey lines, scales the lengths of these geodesics to a mean square of 1, and takes the
    midpoint to the centre: nothing leaves the disk, and seen from the midpoint every point stays in its direction."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.7), layout="constrained")
    for ax, (name, points) in zip(axes, panels().items(), strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
        inside = np.linalg.norm(points, axis=1) < 1
        if inside.all():
            for way in np.stack(spokes(points), axis=1):
                ax.plot(*way.T, color="#8a8a8a", linewidth=0.6)
            ax.plot(*midpoint(points, 1.0), "+", color="#d62728", markersize=11, markeredgewidth=2)
        ax.plot(*points[inside].T, "o", color="#1f77b4", markersize=3)
        ax.plot(*points[~inside].T, "x", color="#d62728", markersize=4)
        ax.set_title(name, fontsize=11)
        ax.set_aspect("equal")
        ax.set_axis_off()
    return fig
