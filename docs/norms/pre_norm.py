"""The main branch of a transformer before and after its conversion, and what the conversion has taken from it."""

from dataclasses import replace

import numpy as np

from refnorm.norms import init_pre_norm, layer_norm, rms_norm, to_pre_rms
from refnorm.norms._pre_norm import _attention_vjp, _network_vjp

UNITS, BLOCKS = 12, 6


def network(rng):
    """Return a random transformer whose layers also add one number, another for each layer, to all entries."""
    params = init_pre_norm(rng, 9, 5, UNITS, 2, BLOCKS, 4)
    blocks = [
        replace(block, output_bias=block.output_bias + rng.normal(), result_bias=block.result_bias + rng.normal())
        for block in params.blocks
    ]
    return replace(params, blocks=tuple(blocks))


def branch(params, tokens, norm):
    """Return the main branch at the first token: at the start, and after each attention layer and each network."""
    x = params.embedding[tokens] + params.position[: tokens.shape[1]]
    states = [x[0, 0]]
    for block in params.blocks:
        x = x + _attention_vjp(norm(x, block.attention_gain, block.attention_bias), block)[0]
        states.append(x[0, 0])
        x = x + _network_vjp(norm(x, block.network_gain, block.network_bias), block)[0]
        states.append(x[0, 0])
    return np.stack(states, axis=1)


def figure():
    """One token on its way through a random transformer of six blocks: the twelve entries of the main branch after each of twelve
    layers. The converted network in the middle goes through other numbers, but the difference is one number a column, the
    branch's mean, which every layer norm takes away. Each column in the middle sums to zero: its last entry (framed)
    follows from the others and need not be stored."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(3)
    params, tokens = network(rng), rng.integers(9, size=(1, 5))
    before, after = branch(params, tokens, layer_norm), branch(to_pre_rms(params), tokens, rms_norm)
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained", sharey=True)
    names = ("with layer norms", "with RMSNorms", "difference")
    for ax, values, name in zip(axes, (before, after, before - after), names, strict=True):
        image = ax.imshow(values, cmap="PuOr_r", vmin=-6, vmax=6, aspect="auto")
        ax.set_title(name, fontsize=11)
        ax.set(xlabel="layers passed", xticks=[0, 6, 12], yticks=[0, UNITS - 1])
        ax.grid(visible=False)
    frame = plt.Rectangle((-0.5, UNITS - 1.5), 2 * BLOCKS + 1, 1, fill=False, edgecolor="#d62728", linewidth=2.5)
    axes[1].add_patch(frame).set_clip_on(False)
    axes[0].set_ylabel("entry")
    fig.colorbar(image, ax=axes, ticks=[-6, 0, 6])
    return fig
