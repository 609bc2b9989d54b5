"""The pixels of a window as points of the disk, and how long the one point is to which they are joined."""

import numpy as np

from refnorm.poincare import beta_concat, exp0, log0

SIZES = (1, 2, 3, 4, 5, 6)
"""Rows of the square windows; each is the corner of the next."""


def pixels():
    """Return an image of points of the disk, two channels a pixel, most of them half-way to the rim or farther."""
    rng = np.random.default_rng(4)
    angle, radius = rng.uniform(0, 2 * np.pi, (6, 6)), rng.uniform(0.45, 0.85, (6, 6))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def lengths(points):
    """Return the Euclidean length of a window's points stacked, joined in the tangent space, and joined with the factor."""
    tangent = log0(points, 1.0).reshape(1, -1)
    joined = beta_concat(list(points[:, None]), 1.0)
    return [np.linalg.norm(vector) for vector in (points, exp0(tangent, 1.0, project=False), joined)]


def figure():
    r"""Left, a window of nine pixels with two channels each: nine points of the disk (blue), and the parts of the one
    joined point to which beta-concatenation brings them (orange). Right, the length of the joined point by the number of
    pixels. Coordinates written one after the other leave the ball (grey) at once; joined in the tangent space they stay inside, but
    run to the rim; with the factor, a window of any size has about the length of a pixel."""
    import matplotlib.pyplot as plt

    image = pixels()
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained", width_ratios=(1, 1.2))
    window = image[:3, :3].reshape(-1, 2)
    joined = beta_concat(list(window[:, None]), 1.0).reshape(-1, 2)
    left.plot(*np.stack([window, joined], axis=1).T, color="#8a8a8a", linewidth=0.8)
    left.plot(*window.T, "o", color="#1f77b4")
    left.plot(*joined.T, "s", color="#ff7f0e", markersize=4)
    left.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
    left.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
    left.axis("off")
    found = np.array([lengths(image[:k, :k].reshape(-1, 2)) for k in SIZES]).T
    styles = (("#d62728", "^--", "stacked"), ("#9467bd", "s:", "joined"), ("#ff7f0e", "o-", "with the factor"))
    for values, (colour, style, name) in zip(found, styles, strict=True):
        right.plot(np.square(SIZES), values, style, color=colour, markersize=4)
        inside = values < 2.3
        right.annotate(
            name,
            (np.square(SIZES)[inside][-1], values[inside][-1]),
            (4, 6),
            ha="right",
            textcoords="offset points",
            color=colour,
        )
    right.axhspan(1, 2.3, color="#8a8a8a", alpha=0.2, linewidth=0)
    right.set(
        xlabel="pixels of the window", ylabel="length of the joined point", ylim=(0, 2.3), xticks=np.square(SIZES)
    )
    return fig
