"""A gallery with a hub: which queries it wins, before and after its popularity is taken off."""

import numpy as np

from refnorm.softmax import inverted_softmax

COUNT, HUB = 12, 3


def similarities():
    """Cosines of queries, and of a bank of other queries, with a gallery whose item 3 points where queries do on average."""
    rng = np.random.default_rng(3)
    meaning = rng.standard_normal((COUNT, 20))
    common = rng.standard_normal(20)
    items = meaning + 0.8 * rng.standard_normal((COUNT, 20))
    items[HUB] += 2 * common
    queries = meaning + 0.8 * rng.standard_normal((COUNT, 20)) + common
    bank = 1.28 * rng.standard_normal((200, 20)) + common
    items, queries, bank = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (items, queries, bank))
    return queries @ items.T, bank @ items.T


def figure():
    """Similarities of 12 queries to 12 gallery items, the right item of each on the diagonal; circles mark the best item of each
    row. Left, cosines: item 3 lies in the mean direction of all queries, its whole column is bright, and it wins 8 of the 12 rows.
    Right, the logarithm of the inverted softmax over a bank of 200 other queries: one number has been taken off each column, most
    of all off the hub's, and each query finds its own item."""
    import matplotlib.pyplot as plt

    sim, bank = similarities()
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    tables = {"cosine": sim, "log of inverted softmax": inverted_softmax(sim, bank, sharpness=10.0)}
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        best = table.argmax(axis=1)
        image = ax.imshow(table, cmap="viridis")
        fig.colorbar(image, ax=ax, shrink=0.85)
        ax.plot(
            best, np.arange(COUNT), "o", color="#d62728", markerfacecolor="none", markersize=11, markeredgewidth=2.5
        )
        ax.set_title(name, fontsize=11)
        ax.set(xlabel="gallery item", xticks=[0, HUB, COUNT - 1], yticks=[0, COUNT - 1])
        ax.grid(visible=False)
    axes[0].set_ylabel("query")
    return fig
