"""One tree drawn in the plane and in the Poincaré disk, and two points added in either order."""

import numpy as np

from refnorm.poincare import expmap, logmap, mobius_add

DEPTH, STEP, OUTERMOST = 4, 1.77, -108
"""Levels below the root, the length of a branch in the disk, and where the 108 nodes of the last level begin.

Branches at right angles keep apart if cosh(STEP / 2) is at least the root of 2, that is from 1.7627 on.
"""
X, Y = np.array([0.6, 0.0]), np.array([0.0, 0.55])


def turned(vectors, angle):
    cosine, sine = np.cos(angle), np.sin(angle)
    return vectors @ np.array([[cosine, sine], [-sine, cosine]])


def follow(starts, velocities):
    return expmap(starts, velocities, 1.0, project=False)


def tree(go, back, step):
    """Return the branches as pairs (parent, child): the root has four, each further node three, at right angles."""
    corners = np.arange(4) * np.pi / 2
    parents = np.zeros((4, 2))
    children = go(parents, step * np.stack([np.cos(corners), np.sin(corners)], axis=-1))
    branches = [(parents, children)]
    for _ in range(DEPTH - 1):
        home = back(children, parents)
        parents = np.concatenate([children] * 3)
        children = go(parents, np.concatenate([turned(home, angle) for angle in corners[1:]]))
        branches.append((parents, children))
    return tuple(np.concatenate(ends) for ends in zip(*branches, strict=True))


def figure():
    r"""One recipe, drawn in the plane and in the disk: a tree whose nodes have three branches each, the root four, all of one
    length and at right angles. In the plane its 161 nodes crowd into 41 places, and cycles arise that the tree does not
    have. In the disk no two branches meet, all have the hyperbolic length 1.77, and different nodes are at least that far
    apart. Right, two points added in either order, the path to the second moved to the end of the first: the sums
    differ, but only by a rotation about the centre."""
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.7), layout="constrained", width_ratios=(1, 1.25, 1))
    flat = tree(lambda at, v: at + v, lambda at, goal: goal - at, 0.24)
    curved = tree(follow, lambda at, goal: logmap(at, goal, 1.0), STEP / 2)
    times = np.linspace(0, 1, 10)
    straight = [flat[0] + t * (flat[1] - flat[0]) for t in (0, 1)]
    arcs = [follow(curved[0], t * logmap(*curved, 1.0)) for t in times]
    for ax, ways, (_, ends) in zip(axes, (straight, arcs), (flat, curved), strict=False):
        ax.add_collection(LineCollection(np.stack(ways, axis=1).round(4), colors="#1f77b4", linewidths=0.9))
        ax.plot(*ends[:OUTERMOST].T, "o", color="#1f77b4", markersize=2)
    axes[0].plot(*flat[1].T, "o", color="#1f77b4", markersize=2)
    for first, second, colour in ((X, Y, "#d62728"), (Y, X, "#9467bd")):
        carried = mobius_add(np.tile(first, (10, 1)), times[:, None] * second, 1.0)
        axes[2].plot(*np.concatenate([[np.zeros(2)], carried]).T, color=colour)
        axes[2].plot(*carried[-1], "o", color=colour)
    for place, name in (((0.6, -0.19), "$x$"), ((-0.14, 0.5), "$y$"), ((0.36, 0.25), r"$x\oplus y$")):
        axes[2].text(*place, name, ha="center", fontsize=11)
    axes[2].text(0.24, 0.79, r"$y\oplus x$", ha="center", fontsize=11)
    for ax in axes:
        if ax is not axes[0]:
            ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#8a8a8a"))
        ax.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
        ax.axis("off")
    return fig
