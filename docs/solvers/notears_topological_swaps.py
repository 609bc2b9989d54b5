"""The weights that regressions find in one order after the other, until the true graph is left."""

import numpy as np

from refnorm.solvers import fit_order, threshold_graph, topo_search

NAMES, SAMPLES = "ABCDEF", 1000
EDGES = {"AB": 1.5, "AC": -1.0, "BD": 1.2, "CD": 0.8, "DE": -1.4, "EF": 1.0, "CF": -0.9}


def data():
    """A linear model with unit noise, in which every letter depends on earlier ones only."""
    x = np.random.default_rng(0).standard_normal((SAMPLES, len(NAMES)))
    for edge, weight in sorted(EDGES.items(), key=lambda item: item[0][1]):
        cause, effect = (NAMES.index(letter) for letter in edge)
        x[:, effect] += weight * x[:, cause]
    return x


def rounds(start="AFDCBE"):
    """Order, weights and loss after every round of the search, which takes the single best exchange in each."""
    x, orders = data(), [[NAMES.index(letter) for letter in start]]
    while not (found := topo_search(x, orders[0], greedy=False, max_iter=len(orders))).converged:
        orders.append(list(found.topo))
    return [(order, *fit_order(x, order)) for order in orders]


def figure():
    """What regressions find in four orders of six variables: rows are causes and columns effects, both sorted by the order,
    so that all weights stand above the diagonal; red letters are exchanged next, and edges are weights of at least 0.3. In
    a wrong order the variables explain one another backwards, which takes more edges and leaves a larger loss. Each
    exchange lowers the loss, and after three of them only the seven edges of the model are left."""
    import matplotlib.pyplot as plt

    found = rounds()
    fig, axes = plt.subplots(1, len(found), figsize=(7, 2.5), layout="constrained")
    for number, (ax, (order, weight, loss)) in enumerate(zip(axes, found, strict=True)):
        image = ax.imshow(weight[np.ix_(order, order)], cmap="PuOr_r", vmin=-1.6, vmax=1.6)
        letters = [NAMES[node] for node in order]
        ax.set_xticks(range(6), letters)
        ax.set_yticks(range(6), letters)
        ax.tick_params(length=0, labelsize=10)
        following = found[min(number + 1, len(found) - 1)][0]
        for place, (now, then) in enumerate(zip(order, following, strict=True)):
            if now != then:
                for label in (ax.get_xticklabels()[place], ax.get_yticklabels()[place]):
                    label.set(color="#d62728", weight="bold")
        ax.grid(visible=False)
        ax.set_title(f"loss {loss:.2f}\n{np.count_nonzero(threshold_graph(weight))} edges", fontsize=10)
    axes[0].set(xlabel="effect", ylabel="cause")
    fig.colorbar(image, ax=axes, shrink=0.7, ticks=[-1.5, 0, 1.5])
    return fig
