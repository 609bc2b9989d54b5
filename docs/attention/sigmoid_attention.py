"""What happens to all weights of a query when one key begins to fit."""

import numpy as np

from refnorm.attention import scaled_dot_product_attention, sigmoid_attention

OTHERS = np.array([1.0, 0.0, -1.0])


def figure():
    r"""Weights of four keys when the score of the first (thick, red) rises and the others stay at 1, 0 and $-1$ (blue, purple, green); dotted is the sum of
    the weights. With softmax the sum is held at 1, so what the first key gains the others lose, and when nothing fits, some key still
    gets the weight. With the sigmoid, here with the bias $-\ln4$, the others do not notice; the sum is free, and goes from 0.69 to 1.68."""
    import matplotlib.pyplot as plt

    score = np.linspace(-6, 6, 61)
    keys = np.eye(4)
    queries = np.concatenate([score[:, None], np.tile(OTHERS, (61, 1))], axis=1)  # scores are the queries' entries
    fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
    for ax, attention, name in (
        (axes[0], scaled_dot_product_attention, "softmax attention"),
        (axes[1], sigmoid_attention, "sigmoid attention"),
    ):
        weights = attention(queries, keys, np.eye(4), scale=1.0)
        for weight, color, style, width in zip(
            weights.T, ("#d62728", "#1f77b4", "#9467bd", "#2ca02c"), ("-", "-", "--", "-."), (3, 2, 2, 2), strict=True
        ):
            ax.plot(score, weight, style, color=color, linewidth=width)
        ax.plot(score, weights.sum(axis=1), ":", color="black", linewidth=2)
        ax.set_title(name, fontsize=11)
        ax.set(xlabel="score of the first key", ylim=(-0.05, 1.75))
    axes[0].set_ylabel("weight")
    return fig
