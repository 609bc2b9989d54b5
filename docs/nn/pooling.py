"""A digit, pooled in two ways, and where the cotangents of the pooled pixels go."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm import nn


def figure():
    """A digit of 8 x 8 pixels and its pooled images, one number for each window of 2 x 2 pixels. The maximum keeps thin strokes at full
    brightness, the mean greys them. On the right a cotangent of 1 for every pooled pixel, sent back: through the maximum all
    of it goes to the one pixel that won its window (in a window of equal pixels to the first, at the upper left), through the mean every
    pixel gets a quarter."""
    import matplotlib.pyplot as plt

    x = load_digits().images[None, 3:4] / 16
    (largest, back_max), (mean, back_mean) = nn.max_pool2d_vjp(x, 2), nn.avg_pool2d_vjp(x, 2)
    panels = {
        "digit": x,
        "maximum": largest,
        "mean": mean,
        "back, maximum": back_max(np.ones_like(largest))[0],
        "back, mean": back_mean(np.ones_like(mean))[0],
    }
    fig, axes = plt.subplots(1, 5, figsize=(7, 1.9), layout="constrained")
    for ax, (name, image) in zip(axes, panels.items(), strict=True):
        shown = ax.imshow(image[0, 0], cmap="viridis", vmin=0, vmax=1)
        side = image.shape[-1]
        lines = np.arange(0, side + 1, 2 if side == 8 else 1) - 0.5
        ax.set_title(name, fontsize=11)
        ax.set(xticks=lines, yticks=lines)
        ax.tick_params(length=0, labelbottom=False, labelleft=False)
        ax.grid(color="#8a8a8a", linewidth=0.8)
    fig.colorbar(shown, ax=axes, ticks=[0, 0.25, 1], shrink=0.7)
    return fig
