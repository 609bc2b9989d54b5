"""Three semantic maps on their way through a convolution, a norm, and a norm that reads the map again."""

import numpy as np

from refnorm.nn import conv2d
from refnorm.norms import init_spade, instance_norm, spade

ROWS, COLUMNS, CHANNELS, SHOWN = 16, 28, 6, 2


def maps():
    """Return one-hot maps of two labels: the first only, the second only, and a thin curve of the second on the first."""
    columns = np.arange(COLUMNS)
    curve = np.zeros((ROWS, COLUMNS), bool)
    curve[np.rint(ROWS / 2 + 4 * np.sin(columns / 4)).astype(int), columns] = True
    second = np.stack([np.zeros_like(curve), np.ones_like(curve), curve])
    return np.stack([~second, second], axis=1).astype(float)


def stages():
    """Return the second label's map, and the features after a convolution, after instance norm, and after SPADE."""
    rng, condition = np.random.default_rng(2), maps()
    bordered = np.pad(condition, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    x = conv2d(bordered, rng.standard_normal((CHANNELS, 2, 3, 3)) / 3)
    plain = instance_norm(x, np.ones(CHANNELS), np.zeros(CHANNELS))
    adaptive = spade(x, condition, *init_spade(CHANNELS, 2, 16, rng), norm="instance")
    return condition[:, 1], x[:, SHOWN], plain[:, SHOWN], adaptive[:, SHOWN]


def figure():
    """Three maps of two labels (rows), the features that a convolution makes of them (one channel), and these after
    instance norm and after instance norm with spatially adaptive gain and bias. The first two maps have one label each,
    and their features differ; the norm subtracts a constant from itself, both come out as zeros, and the label is lost. Of the third
    map the difference between the thin curve and its background is left. The spatially adaptive norm reads the map once more and
    puts something of its own on each label (the frames come from the zeros beyond the border)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(3, 4, figsize=(7, 3.4), layout="constrained")
    names = ("map", "convolution", "instance norm", "spatially adaptive")
    for column, name, images in zip(axes.T, names, stages(), strict=True):
        column[0].set_title(name, fontsize=11)
        for ax, image in zip(column, images, strict=True):
            colours = {"cmap": "viridis", "vmin": 0} if name == "map" else {"cmap": "PuOr_r", "vmin": -1}
            drawn = ax.imshow(image, vmax=1, **colours)
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
    fig.colorbar(drawn, ax=axes, ticks=[-1, 0, 1])
    return fig
