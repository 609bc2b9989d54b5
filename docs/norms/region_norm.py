"""A photograph with a hole, normalized as a whole and by regions."""

import numpy as np

from refnorm.norms import instance_norm, region_normalize

SIZES = (10, 26)
"""Rows of the hole, of 42."""


def photograph():
    """Return the brightness of a bundled photograph, reduced to 42 rows."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg")[:420].mean(axis=-1) / 255
    return grey.reshape(42, 10, 64, 10).mean(axis=(1, 3))


def known(rows):
    mask = np.ones((42, 64), bool)
    mask[21 - rows // 2 : 21 + rows // 2, 32 - rows : 32 + rows] = False
    return mask


def figure():
    """A photograph of a pavilion with two holes of zeros, and what two norms make of it. Taken over the whole image, mean and
    deviation depend on the hole: the sky in the upper right corner is 1.30 above, and 1.89 below, where
    half of the image is gone. Taken for each region apart, the known pixels have mean 0 and deviation 1 whatever the hole,
    and the same sky is 1.26 and 1.24; without a hole it would be 1.27."""
    import matplotlib.pyplot as plt

    image = photograph()
    fig, axes = plt.subplots(2, 3, figsize=(7, 3.1), layout="constrained")
    for row, rows in zip(axes, SIZES, strict=True):
        mask = known(rows)[None, None]
        x = np.where(mask, image, 0)
        whole, apart = instance_norm(x, np.ones(1), np.zeros(1)), region_normalize(x, mask)
        row[0].imshow(x[0, 0], cmap="viridis", vmin=0, vmax=1)
        for ax, y in zip(row[1:], (whole, apart), strict=True):
            drawn = ax.imshow(y[0, 0], cmap="PuOr_r", vmin=-2.5, vmax=2.5)
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
    for ax, name in zip(axes[0], ("input", "whole image", "regions"), strict=True):
        ax.set_title(name, fontsize=11)
    fig.colorbar(drawn, ax=axes[:, 2], ticks=[-2, 0, 2])
    return fig
