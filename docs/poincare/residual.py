"""The three small operations of a residual network, each on points of the disk."""

import numpy as np

from refnorm.poincare import avg_pool2d, exp0, midpoint, mobius_add, relu, residual_add

BRANCH, CENTRE = np.array([0.5, 0.3]), np.array([0.1, -0.05])
PIXELS = np.array([[0.95, 0.1], [0.55, 0.75], [-0.1, 0.6], [0.35, -0.45]])


def ring(distance):
    """Return a circle of points at a distance from the centre."""
    angles = np.linspace(0, 2 * np.pi, 181)
    return exp0(distance / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=-1), 1.0)


def shifted(centre, points):
    return mobius_add(np.tile(centre, (len(points), 1)), points, 1.0)


def pooled(points):
    """Pool four points as the pixels of one image."""
    image = np.ascontiguousarray(points.T).reshape(1, 2, 2, 2)
    return avg_pool2d(image, 1.0, size=2).ravel()


def figure():
    r"""Left: $f\oplus s$ for a fixed $f$, the dot, and all $s$ at the distances 1, 2 and 3 from the centre. The sums of
    coordinates, dotted, leave the disk; Möbius sums lie on circles inside it. Middle: three circles, dotted, and their images under
    ReLU. The upper right quadrant stays, the lower left one goes to the centre, and the other two are pressed onto its edges.
    Right: four pixels, pooled by averaging logarithms, the directions and lengths seen from the centre (square), and their
    midpoint (diamond). With features as long as these the two are not the same."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
    sums, fold, pool = axes
    for distance in (1, 2, 3):
        skip = ring(distance)
        sums.plot(*residual_add(np.tile(BRANCH, (len(skip), 1)), skip, 1.0).T, color="#1f77b4", linewidth=1.3)
        sums.plot(*(BRANCH + skip).T, ":", color="#d62728", linewidth=1.3)
    sums.plot(*BRANCH, "o", color="#1f77b4", markersize=4)
    for distance in (1, 2, 3):
        shape = shifted(CENTRE, ring(distance))
        fold.plot(*shape.T, ":", color="#8a8a8a", linewidth=1.3)
        fold.plot(*relu(shape, 1.0).T, color="#1f77b4", linewidth=1.6)
    for pixel in PIXELS:
        pool.plot(*np.stack([0 * pixel, pixel]).T, ":", color="#8a8a8a", linewidth=1)
    pool.plot(*PIXELS.T, "o", color="#1f77b4", markersize=5)
    pool.plot(*pooled(PIXELS), "s", color="#1f77b4", markersize=7)
    pool.plot(*midpoint(PIXELS, 1.0), "D", color="#d62728", markersize=7, markerfacecolor="none")
    for ax, title in zip(axes, ("residual sum", "ReLU", "pooling"), strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="black"))
        ax.set_title(title, fontsize=11)
        ax.set(aspect="equal", xlim=(-1.03, 1.45 if ax is sums else 1.03), ylim=(-1.03, 1.23 if ax is sums else 1.03))
        ax.set_axis_off()
    return fig
