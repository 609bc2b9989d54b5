"""Where the examples of a test stream sorted by class come to lie, by three ways to choose the statistics."""

import numpy as np

from refnorm.norms import batch_norm, unmix_init, unmix_norm, unmix_rate

CENTRES = np.array([[2.0, 0.6], [-0.4, 1.9], [-1.8, -0.8], [0.5, -2.0]])
BATCH, RUN, ROUNDS, SIDE, SHOWN = 64, 4, 40, 3, 12
"""Examples in a batch, batches of one class in a row, rounds through the classes, places either way, and dots drawn a batch."""
SHIFT = np.array([1.2, 0.9])
ONE, ZERO = np.ones(2), np.zeros(2)


def features(rng, label, shift):
    """Return a batch of one class: the class's centre, a deviation for each example, and noise over the places."""
    own = CENTRES[label] + shift + 0.3 * rng.standard_normal((BATCH, 2))
    return own[:, :, None, None] + 0.5 * rng.standard_normal((BATCH, 2, SIDE, SIDE))


def stream():
    """Return the means of examples from the last round, by way to normalize and class."""
    rng = np.random.default_rng(0)
    source = np.concatenate([features(rng, label, 0) for label in range(4)])
    mean, var = source.mean(axis=(0, 2, 3)), source.var(axis=(0, 2, 3))
    state, rate, found = unmix_init(mean, var, rng), unmix_rate(0.1, BATCH), []
    for label in np.tile(np.repeat(np.arange(4), RUN), ROUNDS):
        x = features(rng, label, SHIFT)
        un_mixed, state = unmix_norm(x, ONE, ZERO, state, rate=rate)
        by_source = batch_norm(x, ONE, ZERO, mean, var, axes=(0, 2, 3))
        by_batch = batch_norm(x, ONE, ZERO, axes=(0, 2, 3))
        found.append([way[:SHOWN].mean(axis=(2, 3)) for way in (by_source, by_batch, un_mixed)])
    return np.moveaxis(np.array(found[-4 * RUN :]), 1, 0).reshape(3, 4, RUN * SHOWN, 2)


def figure():
    """Examples of four classes after a norm, at the end of a shifted stream of 640 batches whose classes come in runs of four batches;
    the cross is the origin, around which the classes lay in training. With the source's statistics the shift remains.
    With those of the batch, which holds one class only, every class is moved to the origin, and they cannot be told apart. Un-mixed
    statistics keep the classes apart, and the memory has taken away half of the shift (from 0.97 to 0.50)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained", sharex=True, sharey=True)
    points, names = stream(), ("the source's", "the batch's own", "un-mixed")
    kinds = (("#1f77b4", "o"), ("#d62728", "s"), ("#2ca02c", "^"), ("#ff7f0e", "D"))
    for ax, name, by_class in zip(axes, names, points, strict=True):
        for (colour, marker), cloud in zip(kinds, by_class, strict=True):
            ax.plot(*cloud.T, marker, color=colour, markersize=3)
        ax.plot(0, 0, "+", color="black", markersize=14, markeredgewidth=2)
        ax.set(title=name, xlabel="channel 0", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
        ax.set(xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    axes[0].set_ylabel("channel 1")
    return fig
