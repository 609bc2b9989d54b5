"""Measurements at scattered real indices, and the surface that products of smooth functions make of them."""

import numpy as np

from refnorm.solvers import fit_functional_tucker, predict_functional_tucker

ENTRIES, GRID, GAP = 140, 50, (0.6, 0.75)


def surface(index):
    """Return a sum of two products of functions of the two indices."""
    t, place = index.T
    return np.sin(5 * t) * np.cos(7 * place) + (t - 0.5) * place * 2


def reconstruction():
    """Return the measurements, and mean and standard deviation of the fitted model on a grid."""
    rng = np.random.default_rng(0)
    index = rng.random((ENTRIES, 2))
    width = GAP[1] - GAP[0]
    index[:, 0] *= 1 - width
    index[:, 0] += width * (index[:, 0] > GAP[0])
    y = surface(index) + 0.05 * rng.standard_normal(ENTRIES)
    scale = y.std()
    model = fit_functional_tucker(index, y / scale, ranks=(2, 2), length_scales=0.3, max_iter=40, rng=rng)
    middle = (np.arange(GRID) + 0.5) / GRID
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1).reshape(-1, 2)
    mean, variance = predict_functional_tucker(model, grid)
    shape = (GRID, GRID)
    return index, y, scale * mean.reshape(shape), scale * np.sqrt(variance).reshape(shape)


def figure():
    """Left: 140 noisy measurements at times and places that lie on no grid, none of them between the times 0.6 and 0.75. Middle: the
    mean of a model with two functions of time and two of place, at 50 by 50 points that were never measured; its error is
    0.03 on average, less than the noise of one measurement (0.05). Right: the standard deviation that the model states
    for a new measurement. It is near 0.12, but up to 0.32 in the gap, where the functions of time are not held by
    any value."""
    import matplotlib.pyplot as plt

    index, y, mean, deviation = reconstruction()
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained", sharey=True)
    limits = {"vmin": -1.5, "vmax": 1.5, "cmap": "PuOr_r"}
    axes[0].scatter(*index.T, c=y, s=14, **limits, edgecolors="#8a8a8a", linewidths=0.3)
    extent = {"extent": (0, 1, 0, 1), "origin": "lower", "aspect": "auto"}
    first = axes[1].imshow(mean.T, **extent, **limits)
    second = axes[2].imshow(deviation.T, **extent, cmap="viridis", vmin=0)
    for ax, name in zip(axes, ("measurements", "mean", "standard deviation"), strict=True):
        ax.set_title(name, fontsize=11)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="time", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        ax.grid(visible=False)
    axes[0].set_ylabel("place")
    fig.colorbar(first, ax=axes[1], ticks=[-1, 0, 1])
    fig.colorbar(second, ax=axes[2])
    return fig
