"""Entries of three images before and after batch norm with ReLU, B0 and S0."""

import numpy as np

from refnorm import nn, norms

SIZES, OFFSETS = (0.4, 1.0, 2.0), (1.5, 0.5, -0.5)


def images(rng):
    """Return three images of one channel with deviations and means of their own."""
    x = rng.standard_normal((3, 1, 7, 7))
    x = (x - x.mean(axis=(2, 3), keepdims=True)) / x.std(axis=(2, 3), keepdims=True)
    return x * np.reshape(SIZES, (3, 1, 1, 1)) + np.reshape(OFFSETS, (3, 1, 1, 1))


def layers(x):
    """Return what the three layers make of the images."""
    one, zero = np.ones(1), np.zeros(1)
    return {
        "batch norm, ReLU": nn.relu(norms.batch_norm(x, one, zero, axes=(0, 2, 3))),
        "B0": norms.evonorm_b0_train(x, one, zero, one, norms.EvoNormState.create(1))[0],
        "S0": norms.evonorm_s0(x, one, zero, one, groups=1),
    }


def figure():
    r"""Every entry of three images of one channel, with deviations of 0.4 (blue dots), 1 (red crosses) and 2 (purple
    triangles) and means of 1.5, 0.5 and -0.5, before and after a layer. Batch norm with ReLU is one curve for the whole batch, and cuts at
    the batch's mean, 0.5. B0 is one line, with the batch's deviation, until it bends towards 1, the sooner the larger the image's own
    deviation; S0 is a rounded ReLU with a slope of its own for each image. Neither of the two moves zero."""
    import matplotlib.pyplot as plt

    x = images(np.random.default_rng(0))
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained", sharex=True)
    for ax, (name, y) in zip(axes, layers(x).items(), strict=True):
        for k, (marker, color) in enumerate((("o", "#1f77b4"), ("x", "#d62728"), ("^", "#9467bd"))):
            ax.plot(x[k].ravel(), y[k].ravel(), marker, color=color, markersize=4, label=f"image {k}")
        ax.axvline(0, color="black", linewidth=1)
        ax.axhline(0, color="black", linewidth=1)
        ax.set(title=name, xlabel="input")
    axes[0].set_ylabel("output")
    return fig
