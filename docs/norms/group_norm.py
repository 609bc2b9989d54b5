"""Which channels of an example share a mean and a variance, and what they keep of each other."""

import numpy as np

from refnorm import norms

CHANNELS, SIDE = 8, 4


def example(rng):
    """Return one image (1, 8, 4, 4): the last four channels are strong, channel 5 is stronger, channel 1 is shifted."""
    x = rng.standard_normal((1, CHANNELS, SIDE, SIDE))
    x[:, 4:] *= 3
    x[:, 5] *= 2
    x[:, 1] += 3
    return x


def figure():
    """One example of eight channels (rows), each with its sixteen places side by side; a frame encloses the entries that
    share a mean and a variance. With one group, which is layer norm over channels and places, the strong lower half keeps the upper one small.
    Two groups bring both halves to one size, and channel 5 stays the strongest of its group, channel 1 the brightest of
    its own. Instance norm, a group for each channel, removes these differences as well."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    x = example(np.random.default_rng(0))
    gain, bias = np.ones(CHANNELS), np.zeros(CHANNELS)
    tables = {
        "input": (x / x.std(), 0),
        "one group": (norms.group_norm(x, gain, bias, groups=1), 1),
        "two groups": (norms.group_norm(x, gain, bias, groups=2), 2),
        "instance": (norms.instance_norm(x, gain, bias), 8),
    }
    fig, axes = plt.subplots(1, 4, figsize=(7, 2.3), layout="constrained", sharey=True)
    for ax, (name, (table, groups)) in zip(axes, tables.items(), strict=True):
        image = ax.imshow(table.reshape(CHANNELS, -1), cmap="PuOr_r", vmin=-3, vmax=3, aspect="auto")
        for k in range(groups):
            height = CHANNELS / groups
            frame = Rectangle((-0.5, k * height - 0.5), SIDE**2, height, fill=False, edgecolor="#d62728", linewidth=2)
            ax.add_patch(frame).set_clip_on(False)
        ax.set(title=name, xlabel="place", xticks=[0, 15], yticks=[1, 5])
        ax.grid(visible=False)
    axes[0].set_ylabel("channel")
    fig.colorbar(image, ax=axes, ticks=[-3, 0, 3])
    return fig
