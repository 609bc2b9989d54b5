"""A batch of points with one label a class: the nearest label, and clustering."""

import numpy as np

from refnorm.solvers import knn_affinity, prototype_costs, transductive_cluster

CENTRES = np.array([[0.0, 0.0], [2.6, 0.3], [1.1, 2.2]])
LABELLED = np.array([[0.75, 0.35], [3.3, -0.4], [1.0, 3.1]])  # one of each class, none of them typical


def task():
    """Points of three round clusters and their classes."""
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(3), 40)
    return CENTRES[target] + 0.6 * rng.standard_normal((len(target), 2)), target


def figure():
    r"""A hundred and twenty points of three clusters, one labelled point for each (large, with a border); rings are wrong labels. Left: each
    point takes the class of the nearest labelled one. None of these is typical of its cluster, and 20 points go to the wrong
    class. Right: points and prototypes find one another, with the graph of three nearest neighbours (grey); arrows lead from
    the labelled points to the prototypes in the end. The clusters were there before any label, and 5 errors are left."""
    import matplotlib.pyplot as plt

    x, target = task()
    nearest = prototype_costs(x, LABELLED).argmin(axis=1)
    found = transductive_cluster(
        LABELLED, np.arange(3), x, n_classes=3, temperature=0.5, laplacian_weight=0.5, tol=1e-4
    )
    every = np.concatenate([LABELLED, x])
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharey=True)
    marks = (("o", "#1f77b4"), ("^", "#ff7f0e"), ("s", "#2ca02c"))
    for ax, labels in zip(axes, (nearest, found.labels), strict=True):
        for label, (mark, color) in enumerate(marks):
            ax.plot(*x[labels == label].T, mark, color=color, markersize=4)
            ax.plot(*LABELLED[label], mark, color=color, markersize=11, markeredgecolor="black", markeredgewidth=1.5)
        wrong = labels != target
        ax.plot(*x[wrong].T, "o", color="#d62728", markersize=10, markerfacecolor="none")
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"{np.count_nonzero(wrong)} of {len(x)} wrong", fontsize=11)
        ax.grid(visible=False)
    pairs = np.argwhere(np.triu(knn_affinity(every)) > 0)
    lines = np.full((3 * len(pairs), 2), np.nan)
    lines[0::3], lines[1::3] = every[pairs[:, 0]], every[pairs[:, 1]]
    axes[1].plot(*lines.T, color="#8a8a8a", linewidth=0.6, zorder=0)
    for start, end in zip(LABELLED, found.prototypes, strict=True):
        axes[1].annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 2})
    return fig
