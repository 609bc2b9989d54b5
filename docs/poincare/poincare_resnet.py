"""A digit on its way through a network of two channels: every pixel is a point of the disk."""

from types import SimpleNamespace

import numpy as np

from refnorm.poincare import PoincareResNet, poincare_resnet
from refnorm.poincare._poincare_resnet import LAYERS

SHOWN = {1: "convolution", 2: "batch norm", 3: "ReLU", 9: "residual sum"}
"""Which of the network's layers are drawn, by their place in the order of computation."""


def outputs(params, images):
    """Run the network and return every layer's points, in order."""
    seen = []

    def watched(layer):
        def call(*args, **options):
            result = layer(*args, **options)
            seen.append(result[0])
            return result

        return call

    layers = SimpleNamespace(**{name: watched(layer) for name, layer in vars(LAYERS).items()})
    poincare_resnet(params, images, 1.0, ops=layers)
    return seen


def figure():
    """The 64 pixels of a digit in an untrained network of two channels, where each of them is a point of the disk; the colour is
    the brightness that the pixel began with. The first convolution, with random weights, draws the points towards the centre,
    where a deep network would lose them: their mean distance from it in the drawing is 0.13 of the radius. Batch norm spreads
    them again (0.35), ReLU presses them into a quadrant (0.21), and after the first block's residual sum they are wider than
    ever (0.41). No layer leaves the disk."""
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits

    images = load_digits().images[:4, None] / 16
    network = PoincareResNet(channels=(2, 2, 2), blocks=(1, 1, 1), channels_in=1, init_kind="baseline")
    seen = outputs(network.init(np.random.default_rng(4)), images)
    fig, axes = plt.subplots(1, 5, figsize=(7, 1.9), layout="constrained")
    axes[0].imshow(images[0, 0], cmap="viridis")
    axes[0].set_title("image", fontsize=11)
    for ax, (place, name) in zip(axes[1:], SHOWN.items(), strict=True):
        points = seen[place][0].reshape(2, -1)
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
        ax.scatter(*points, c=images[0].ravel(), cmap="viridis", s=9, edgecolors="#8a8a8a", linewidths=0.3)
        ax.set_title(name, fontsize=11)
        ax.set_aspect("equal")
    for ax in axes:
        ax.set_axis_off()
        ax.grid(visible=False)
    return fig
