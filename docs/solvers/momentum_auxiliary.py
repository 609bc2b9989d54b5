"""Which blocks' weights a block's update depends on, under three ways of training."""

import dataclasses

import numpy as np
from sklearn.datasets import load_digits

from refnorm.solvers import ema_update, init_local_net, local_grads
from refnorm.tree import tree_leaves, tree_map

BLOCKS, WIDTH = 5, 32
VARIANTS = {"end_to_end": "end to end", "greedy": "blocks, no twin", "man": "momentum auxiliary"}


def gradients(net, x, target):
    """Return the gradient of each layer of the network, in order, as one vector each."""
    grads = local_grads(net, x, target)[1]
    return [
        np.concatenate([leaf.ravel() for _, leaf in tree_leaves(layer)]) for block in grads.blocks for layer in block
    ]


def moved(net, number):
    """Return the network with the weights of one layer changed by a hundredth, and the averages following at once."""
    rng = np.random.default_rng(number)
    nudge = lambda a: a + 0.01 * np.sqrt(2 / WIDTH) * rng.standard_normal(a.shape)  # noqa: E731
    flat = [tree_map(nudge, layer) if i == number else layer for i, layer in enumerate(sum(net.blocks, ()))]
    per = len(flat) // len(net.blocks)
    layers = [tuple(flat[i : i + per]) for i in range(0, len(flat), per)]
    ema = tuple(ema_update(net.ema[j], layers[j + 1][0], momentum=0.0) for j in range(len(net.ema)))
    return dataclasses.replace(net, blocks=tuple(layers), ema=ema)


def influence(variant):
    """Return how much a small change of each layer's weights (columns) changes each layer's gradient (rows)."""
    x, target = load_digits(return_X_y=True)
    x, target = x[:100] / 16, target[:100]
    blocks = 1 if variant == "end_to_end" else BLOCKS
    net = init_local_net(np.random.default_rng(0), [64] + [WIDTH] * BLOCKS, blocks, 10, variant=variant, head_hidden=32)
    net = moved(net, BLOCKS)
    before = gradients(net, x, target)
    table = np.empty((BLOCKS, BLOCKS))
    for j in range(BLOCKS):
        after = gradients(moved(net, j), x, target)
        table[:, j] = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(after, before, strict=True)]
    return table


def figure():
    r"""What a layer's update depends on, in networks of five layers that read digits. The weights of one layer (column) are changed by
    about 1 %, and a square says by how much the gradient of another one (row) changes; where it is blank, not at all. End to end every gradient depends on every
    layer. In blocks of one layer without twins it depends on the layers before and on its own, and no block sees what comes next. The momentum
    auxiliary network adds one step of foresight: through the average of the next block's first layer (which has caught up with
    that layer here), one more diagonal."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained", sharey=True)
    for ax, (variant, title) in zip(axes, VARIANTS.items(), strict=True):
        table = np.ma.masked_equal(100 * influence(variant), 0)
        image = ax.imshow(table, cmap="viridis_r", vmin=0, vmax=10, extent=(0.5, BLOCKS + 0.5, BLOCKS + 0.5, 0.5))
        ax.set(xlabel="layer changed", xticks=range(1, BLOCKS + 1), yticks=range(1, BLOCKS + 1))
        ax.set_title(title, fontsize=11)
        ax.grid(visible=False)
    axes[0].set_ylabel("gradient of layer")
    fig.colorbar(image, ax=axes, label="change in %", ticks=[0, 5, 10])
    return fig
