"""What standardizing the features of every point takes from a field, and what a grid of scales and shifts gives back."""

import numpy as np

from refnorm import norms

FEATURES, NODES = 12, 17


def features(x):
    """Return smooth random features that are large near 0.7 and lifted near 0.25."""
    rng = np.random.default_rng(4)
    waves = norms.random_fourier_features(x, rng.standard_normal((1, 40)), bandwidth=1.5)
    smooth = waves @ rng.standard_normal((80, FEATURES)) / 9
    return smooth * (0.4 + 2 * np.exp(-(((x - 0.7) / 0.08) ** 2))) + 3 * np.exp(-(((x - 0.25) / 0.08) ** 2))


def figure():
    r"""Twelve features of the points of a line. They are large near 0.7 and lifted near 0.25: that is what tells these places
    from the others. Standardized point by point, the features have the same mean and the same deviation everywhere, and
    both marks are gone. A grid of 17 nodes (dots) holds a scale and a shift, here the deviation and mean that the features had at the
    nodes; read at every point by linear interpolation, they bring the marks back."""
    import matplotlib.pyplot as plt

    x = np.linspace(0, 1, 161)[:, None]
    h, weight, bias = features(x), np.eye(FEATURES), np.zeros(FEATURES)
    nodes = np.linspace(0, 1, NODES)[:, None]
    grid = np.stack([features(nodes).std(axis=1), features(nodes).mean(axis=1)])
    read = norms.grid_interpolate(grid, x)
    plain = norms.cam_layer(h, weight, bias, activation="none")
    both = norms.cam_layer(h, weight, bias, grid, x, activation="none")

    fig, axes = plt.subplots(2, 2, figsize=(7, 3.8), layout="constrained", sharex=True)
    for ax, lines, name in (
        (axes[0, 0], h, "features"),
        (axes[0, 1], plain, "standardized"),
        (axes[1, 1], both, "standardized and modulated"),
    ):
        ax.plot(x, lines, color="#1f77b4", linewidth=0.8)
        ax.set_title(name, fontsize=11)
    curves = axes[1, 0]
    for k, (name, color, style, place) in enumerate(
        (("scale", "#d62728", "-", 0.74), ("shift", "#9467bd", "--", 0.29))
    ):
        curves.plot(x, read[:, k], style, color=color)
        curves.plot(nodes, grid[k], "o", color=color, markersize=4)
        curves.text(place, 2.2, name, color=color)
    curves.set_title("grid", fontsize=11)
    for ax in axes[1]:
        ax.set_xlabel("$x$")
    return fig
