"""Which entries of a table of examples and units a norm takes together."""

import numpy as np

from refnorm import norms


def tables():
    """Return the table of summed inputs and what two norms make of it."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 8))
    x[1] *= 4  # one loud example
    x[:, 5] += 5  # one unit that has drifted
    gain, bias = np.ones(8), np.zeros(8)
    return {
        "summed inputs": x,
        "batch norm, by columns": norms.batch_norm(x, gain, bias, axes=(0,)),
        "layer norm, by rows": norms.layer_norm(x, gain, bias),
    }


def figure():
    """The same six examples of eight units, before and after two norms; outlined is one group that shares a mean and a
    variance. Batch norm removes the drift of unit 5, and the loud example 1 stays loud in every column; layer norm brings
    each example to the same size by itself, and needs no other example to do it."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    outlines = (None, Rectangle((4.5, -0.5), 1, 6), Rectangle((-0.5, 0.5), 8, 1))
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.5), layout="constrained")
    for ax, (name, table), outline in zip(axes, tables().items(), outlines, strict=True):
        image = ax.imshow(table, cmap="PuOr_r", vmin=-4, vmax=4)
        if outline:
            outline.set(fill=False, edgecolor="#d62728", linewidth=2.5, clip_on=False)
            ax.add_patch(outline)
        ax.set_title(name, fontsize=11)
        ax.set(xlabel="unit", xticks=[0, 5], yticks=[0, 1, 5])
        ax.grid(visible=False)
    axes[0].set_ylabel("example")
    fig.colorbar(image, ax=axes, shrink=0.8, ticks=[-4, 0, 4])
    return fig
