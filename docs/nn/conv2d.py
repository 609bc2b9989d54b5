"""A digit, the matrix of its patches, and the image that one filter makes of it."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm import nn

ROW, COLUMN = 2, 5  # the place that is followed through the layer


def figure():
    """A digit of 8 x 8 pixels and a filter that looks for left edges, which is laid on every place in turn (frame: one of
    them). im2col copies the nine pixels under each of the 64 places into a row of a matrix; the matrix times the flattened
    filter gives all pixels of the output at once. Bright strokes answer with one sign at their left edge and with
    the other at their right one, wherever in the image they are."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    x = load_digits().images[None, :1] / 16
    filters = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None]
    # Nine filters that each pick one pixel of the patch: their outputs are the columns of im2col's matrix.
    patches = nn.conv2d(x, np.eye(9).reshape(9, 1, 3, 3), padding=1)[0].reshape(9, 64).T
    y = nn.conv2d(x, filters, padding=1)
    size = np.abs(y).max()

    fig, axes = plt.subplots(1, 4, figsize=(7, 2.7), layout="constrained", width_ratios=(4, 2, 2, 4))
    axes[0].imshow(x[0, 0], cmap="viridis")
    axes[1].imshow(filters[0, 0], cmap="PuOr_r", vmin=-3, vmax=3)
    axes[2].imshow(patches, cmap="viridis", aspect="auto")
    axes[3].imshow(y[0, 0], cmap="PuOr_r", vmin=-size, vmax=size)
    frames = (
        (axes[0], (COLUMN - 1.5, ROW - 1.5), 3, 3),
        (axes[2], (-0.5, 8 * ROW + COLUMN - 0.5), 9, 1),
        (axes[3], (COLUMN - 0.5, ROW - 0.5), 1, 1),
    )
    for ax, corner, width, height in frames:
        frame = Rectangle(
            corner, width, height, fill=False, edgecolor="#d62728", linewidth=1.5 if ax is axes[2] else 2.5
        )
        ax.add_patch(frame).set_clip_on(False)
    for ax, name in zip(axes, ("digit", "filter", "patches", "output"), strict=True):
        ax.set_title(name, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    axes[2].set(xlabel="9 pixels", ylabel="64 places")
    return fig
