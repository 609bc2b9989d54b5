"""What a reordering of one batch does to one of its examples, for ghost batches of several sizes."""

import numpy as np

from refnorm import norms

BATCH, SIZES = 128, (128, 32, 8)


def figure():
    r"""Left, one unit of a batch of 128 examples, cut into pieces of 32 and of 8: the mean of every piece (bars) is
    another estimate of the one mean of the batch (dotted). Right, one of the examples (ring), normalized 400 times with the batch in a random
    order. The whole batch gives one and the same value; the smaller the ghost batches, the more does the value depend on
    the company that chance puts it in. That noise is what training with small batches had, and the large batch brings back."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, 1))
    x[40] = 1.5
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(5, 4))
    left.plot(x, ".", color="#8a8a8a", markersize=4)
    left.plot(40, x[40], "o", markersize=10, markerfacecolor="none", markeredgecolor="black", markeredgewidth=2)
    left.axhline(x.mean(), color="black", linestyle=":")
    for size, color, width in ((32, "#d62728", 5), (8, "#1f77b4", 3)):
        for first in range(0, BATCH, size):
            mean, _ = norms.batch_statistics(x[first : first + size])
            left.plot([first, first + size - 1], [mean[0]] * 2, color=color, linewidth=width, solid_capstyle="butt")
    left.set(xlabel="place in the batch", ylabel="value", xticks=range(0, BATCH + 1, 32))

    orders = [np.argsort(rng.random(BATCH)) for _ in range(400)]
    bins = np.linspace(0.2, 2.8, 40)
    for size, color in zip(SIZES, ("black", "#d62728", "#1f77b4"), strict=True):
        ghosts = (norms.ghost_batch_norm(x[order], np.ones(1), np.zeros(1), ghost_size=size) for order in orders)
        y = [ghost[order == 40][0, 0] for ghost, order in zip(ghosts, orders, strict=True)]
        if np.ptp(y) < 1e-9:
            right.axvline(y[0], color=color, linewidth=3)
        else:
            right.hist(y, bins, density=True, histtype="step", color=color, linewidth=2)
        place = {128: 0.92, 32: 0.8, 8: 0.68}[size]
        right.text(0.98, place, f"pieces of {size}", color=color, ha="right", transform=right.transAxes)
    right.set(xlim=(0.2, 3.8), xlabel="output for the ringed example", ylabel="density")
    return fig
