"""Two measures of the size of a batch while one of its values moves away."""

import numpy as np

from refnorm import norms

MATCH = np.sqrt(np.pi / 2)


def batch(outlier):
    """Return 99 normal values and an outlier."""
    return np.append(np.random.default_rng(5).standard_normal(99), outlier)[:, None]


def sizes(x):
    """Return the standard deviation and the matched mean absolute deviation."""
    (_, var), (_, deviation) = norms.batch_statistics(x), norms.l1_batch_statistics(x)
    return np.sqrt(var[0]), MATCH * deviation[0]


def figure():
    r"""Left, a batch of 99 normal values and one at 20, normalized in two ways; the outlier itself lies far outside on the right. Right, both
    measures of the batch's size against the value of the outlier. Near zero they agree, with the factor $\sqrt{\pi/2}$ of the absolute
    deviation. Squares make the outlier count more the farther it is: at 50 the standard deviation is nearly six times
    what it was, and batch norm shrinks the other 99 values by as much; the absolute deviation has not doubled."""
    import matplotlib.pyplot as plt

    x, one, zero = batch(20), np.ones(1), np.zeros(1)
    rows = (
        ("batch\nnorm", norms.batch_norm(x, one, zero), "#1f77b4"),
        ("L1 batch\nnorm", norms.l1_batch_norm(x, one, zero, match_std=True), "#d62728"),
    )
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for height, (_, y, color) in enumerate(rows):
        left.plot(y, np.full(y.shape, height), "|", color=color, markersize=28)
    left.set(xlabel="normalized value", xlim=(-3, 3), ylim=(-0.6, 1.6))
    left.set_yticks((0, 1), [name for name, _, _ in rows])
    places = np.linspace(0, 50, 51)
    curves = np.array([sizes(batch(place)) for place in places])
    right.plot(places, curves[:, 0], color="#1f77b4", linewidth=2)
    right.plot(places, curves[:, 1], "--", color="#d62728", linewidth=2)
    right.text(20, 3.4, "standard\ndeviation", color="#1f77b4", ha="center")
    right.text(32, 0.35, "absolute deviation", color="#d62728", ha="center")
    right.set(xlabel="value of the outlier", ylabel="size of the batch", ylim=(0, 5.5))
    return fig
