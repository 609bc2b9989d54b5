"""Two classes of shifted test data in batches of few classes, normalized by three mixtures of statistics."""

import numpy as np

from refnorm import norms

SHIFT, NOISE, BATCH = 1.0, 0.35, 16
SHARES = np.tile([0.1, 0.9], 5)  # of the second class in each batch: every batch is almost of one class


def stream(rng):
    """Return the test batches, one feature each, and the classes; in training the classes were at -1 and 1."""
    labels = rng.random((len(SHARES), BATCH)) < SHARES[:, None]
    return np.where(labels, 1.0, -1.0) + SHIFT + NOISE * rng.standard_normal(labels.shape), labels


def normalized(batches, weight):
    """Return the batches, each normalized with the given weight of the source's statistics."""
    gain, bias, mean, var = np.ones(1), np.zeros(1), np.zeros(1), np.full(1, 1 + NOISE**2)
    rows = [norms.alpha_batch_norm(x[:, None], gain, bias, mean, var, source_weight=weight) for x in batches]
    return np.concatenate(rows, axis=1).T


def figure():
    r"""One feature of two classes (circles, crosses) that the source had at -1 and 1; the next layer cuts at 0, the
    heavy line. The test data are shifted by 1, and each batch of 16, one row, is mostly of one class. With the source's
    statistics the circles lie on the cut: 77% of all examples are on the right side. With the batch's own, the common class
    of each batch is moved onto the cut: 74%. In between, 84%."""
    import matplotlib.pyplot as plt

    x, labels = stream(np.random.default_rng(2))
    row = np.broadcast_to(np.arange(len(x))[:, None], x.shape)
    fig, axes = plt.subplots(1, 3, figsize=(7, 3), layout="constrained", sharex=True, sharey=True)
    for ax, weight in zip(axes, (1, 0.3, 0), strict=True):
        y = normalized(x, weight)
        for which, marker, color in ((False, "o", "#1f77b4"), (True, "x", "#d62728")):
            ax.plot(y[labels == which], row[labels == which], marker, color=color, markersize=4)
        ax.axvline(0, color="black", linewidth=2)
        ax.set(xlabel=f"normalized, $a={weight}$", yticks=[0, 3, 6, 9], xlim=(-3.3, 3.3))
    axes[0].set_ylabel("test batch")
    return fig
