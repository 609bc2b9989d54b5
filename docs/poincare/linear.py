"""What a fully connected layer reads off at its input, and where it puts the output."""

import numpy as np

from refnorm.poincare import fully_connected, mlr

ANGLES = np.array([0.3, 2.0])
WEIGHT, BIAS = 0.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)]), np.array([0.35, -0.2])
"""Columns are the normals of the two hyperplanes; at the length 1/2 the layer reads off distances as they are."""
PLAIN = 0.5 * np.eye(2), np.zeros(2)
X = np.array([[0.57484954, 0.44937175]])
"""The point with the signed distances 1 and 1.5."""
STEP = 0.5


def readings(weight, bias, points):
    """Return the signed distances to both hyperplanes on an array of points of the disk."""
    return mlr(points.reshape(-1, 2), weight, bias, 1.0).reshape(*points.shape[:-1], 2)


def figure():
    r"""Input and output of a layer of the disk with two units. Left, the two learned hyperplanes (thick), and the curves that
    keep a distance of 0.5, 1, 1.5, ... from them. They are no geodesics, but meet the rim where their hyperplane does. The
    layer reads off that $x$ has the signed distance 1 from the blue one and 1.5 from the red one. Right, the coordinate
    axes with their curves: $y$ is the only point with these two distances from them."""
    import matplotlib.pyplot as plt

    radius, angle = np.meshgrid(np.tanh(np.linspace(0, 2.5, 60)), np.linspace(0, 2 * np.pi, 121))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    levels = STEP * np.arange(-6, 7)
    y = fully_connected(X, WEIGHT, BIAS, 1.0)
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
    for ax, layer, point, name in zip(axes, ((WEIGHT, BIAS), PLAIN), (X, y), ("$x$", "$y$"), strict=True):
        values = readings(*layer, points)
        for k, colour in ((0, "#1f77b4"), (1, "#d62728")):
            ax.contour(
                *np.moveaxis(points, -1, 0),
                values[..., k],
                levels[levels != 0],
                colors=colour,
                linewidths=0.7,
                linestyles="-",
            )
            ax.contour(*np.moveaxis(points, -1, 0), values[..., k], [0.0], colors=colour, linewidths=2.5)
        ax.plot(*point[0], "o", color="black")
        ax.annotate(name, point[0], (6, 4), textcoords="offset points", fontsize=13)
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
        ax.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
        ax.axis("off")
    return fig
