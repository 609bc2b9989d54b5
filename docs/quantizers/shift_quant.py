"""The codes of a gradient whose channels differ in range, with one scale for all and with shifted scales."""

import numpy as np

from refnorm.quantizers import shift_quantize


def gradient():
    """Return a gradient of ten examples and twelve channels whose ranges fall by factors of about 1.35."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((10, 12)) * 1.35 ** -np.arange(12)


def figure():
    r"""A gradient of twelve channels, sorted by range but for chance, in codes of 4 bits, from $-7$ to 7 (rounded to nearest). Left:
    the largest channel sets the one scale, and the right half of the channels has hardly a code but 0. Right: each channel's
    scale is halved as often as its range allows, up to three times (the shifts $n_c$ stand above the columns). The codes are
    spread over all channels, and the differences between scales are shifts, which a sum of integers can follow."""
    import matplotlib.pyplot as plt

    g = gradient()
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained", sharey=True)
    for ax, n_groups, title in ((axes[0], 1, "one scale"), (axes[1], 4, "scales $s$, $s/2$, $s/4$, $s/8$")):
        made = shift_quantize(g, bits=4, n_groups=n_groups, rounding="nearest")
        image = ax.imshow(made.q, cmap="PuOr_r", vmin=-7, vmax=7, aspect="auto")
        for c, shift in enumerate(made.shift.ravel()):
            ax.text(c, -0.7, str(shift), ha="center", va="bottom")
        ax.set(xlabel="channel", xticks=[0, 5, 10], yticks=[0, 5])
        ax.set_title(title, fontsize=11, pad=18)
        ax.grid(visible=False)
    axes[0].set_ylabel("example")
    fig.colorbar(image, ax=axes, ticks=[-7, 0, 7], label="code", shrink=0.8)
    return fig
