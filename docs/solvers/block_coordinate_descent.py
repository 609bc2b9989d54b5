"""Blocks on a grid: a few coordinates with large gradients, or a forest of most of them."""

import numpy as np
import scipy.sparse

from refnorm.solvers import block_coordinate_descent, greedy_block, greedy_forest, label_propagation_problem

SIDE, LABELLED, UPDATES = 24, 30, 4


def grid_problem():
    """Return the labels of a grid (NaN where unknown), the problem of filling them in, and its unknown nodes."""
    rng = np.random.default_rng(0)
    line = scipy.sparse.diags_array([np.ones(SIDE - 1)] * 2, offsets=[1, -1])
    weights = scipy.sparse.kronsum(line, line)
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    labels = np.full(SIDE**2, np.nan)
    known = rng.choice(SIDE**2, LABELLED, replace=False)
    labels[known] = np.where(np.hypot(row - 9, column - 14)[known] < 7, 1.0, -1.0)
    return labels, *label_propagation_problem(weights, labels)


def tree_lines(nodes):
    """Return the couplings among some nodes of the grid as one broken line."""
    column, row = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    inside = np.isin(np.arange(SIDE**2), nodes).reshape(SIDE, SIDE)
    across, down = inside[:, 1:] & inside[:, :-1], inside[1:] & inside[:-1]
    gap = np.full(across.sum() + down.sum(), np.nan)
    ends = [np.concatenate([t[:, :-1][across], t[:-1][down]]) for t in (column, row)]
    others = [np.concatenate([t[:, 1:][across], t[1:][down]]) for t in (column, row)]
    return [np.stack([a, b, gap], axis=1).ravel() for a, b in zip(ends, others, strict=True)]


def figure():
    """Values on a grid of 24 by 24 places, known at 30 of them (-1 dark violet, 1 dark orange), the others to be the mean of their
    neighbours. Left: the forest (white) of the first update, 72 % of the unknown places and not one cycle. Then what four
    updates make of a start at 0 (white): blocks of the nine places with the largest scores leave 78 % of the gap to the
    minimum, forests, each of them solved exactly in linear time, leave 19 %. Right: the solution."""
    import matplotlib.pyplot as plt

    labels, problem, unknown = grid_problem()
    curvature = problem.matrix.diagonal()

    def nine(gradient):
        return greedy_block(gradient, 9, lipschitz=curvature)

    def forest(gradient):
        return greedy_forest(problem.matrix, np.abs(gradient) / np.sqrt(curvature))

    start = np.zeros(len(unknown))
    tables = {"first forest": labels}
    for name, rule, update, max_iter in (
        ("blocks of 9", nine, "matrix", UPDATES),
        ("forests", forest, "forest", UPDATES),
        ("solution", forest, "forest", 60),
    ):
        result = block_coordinate_descent(problem, start, rule=rule, update=update, max_iter=max_iter)
        tables[name] = labels.copy()
        tables[name][unknown] = result.x
    fig, axes = plt.subplots(1, 4, figsize=(7, 2.1), layout="constrained")
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.set_facecolor("#8a8a8a")
        ax.imshow(table.reshape(SIDE, SIDE), cmap="PuOr_r", vmin=-1, vmax=1)
        ax.set_title(name, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    first = unknown[forest(problem.gradient(problem.image(start), start))]
    axes[0].plot(*tree_lines(first), color="white", linewidth=1)
    return fig
