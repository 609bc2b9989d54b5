"""Gradient descent on two weights in a ravine, on the weights themselves and on a direction and a length."""

import numpy as np

from refnorm.norms import weight_norm, weight_norm_vjp

GOAL = np.array([2.2, 1.1])
ALONG, ACROSS = 0.4, 6.0
"""Curvature of the loss along the line to the goal, and across it."""
START, RATE, STEPS, SHOWN = np.array([2.4, -0.6]), 0.36, 20, 6
"""Plain descent converges for rates below 2 / ACROSS = 0.33."""


def curvature():
    unit = GOAL / np.linalg.norm(GOAL)
    return ACROSS * np.eye(2) + (ALONG - ACROSS) * np.outer(unit, unit)


def plain():
    """Return the path of descent on the weights."""
    path = [START]
    for _ in range(STEPS):
        path.append(path[-1] - RATE * curvature() @ (path[-1] - GOAL))
    return np.array(path)


def normalized():
    """Return the path of descent on direction and length, as weights."""
    direction, gain = START[None], np.array([np.linalg.norm(START)])
    path = [START]
    for _ in range(STEPS):
        weight, pullback = weight_norm_vjp(direction, gain)
        change, dgain = pullback((weight - GOAL) @ curvature())
        direction, gain = direction - RATE * change, gain - RATE * dgain
        path.append(weight_norm(direction, gain)[0])
    return np.array(path)


def figure():
    r"""Two weights, a loss with a narrow valley (grey), and descent from one point at one rate, which is too large by a
    twelfth. On the weights themselves each step overshoots by more than the last one. On direction and length the first
    step goes astray as well. But it has lengthened the direction by half, from 2.5 to 3.7, so that the same gradient
    turns the weights by less than half as much from then on, and the path settles in the valley and follows it to the goal."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", sharex=True, sharey=True)
    grid = np.stack(np.meshgrid(np.linspace(-0.6, 3.4, 80), np.linspace(-1.4, 2.9, 80)), axis=-1)
    loss = np.einsum("...i,ij,...j->...", grid - GOAL, curvature(), grid - GOAL) / 2
    for ax, way, name in zip(
        axes, (plain()[:SHOWN], normalized()), ("on the weights", "on direction and length"), strict=True
    ):
        ax.contour(*np.moveaxis(grid, -1, 0), loss, np.geomspace(0.05, 30, 9), colors="#8a8a8a", linewidths=0.7)
        ax.plot(*way.T, "o-", color="#1f77b4", markersize=4, linewidth=1.2)
        ax.plot(0, 0, "+", color="black", markersize=10)
        ax.plot(*GOAL, "*", color="#d62728", markersize=12)
        ax.set(title=name, xlim=(-0.6, 3.4), ylim=(-1.4, 2.9), aspect="equal", xlabel="$w_1$")
    axes[0].set_ylabel("$w_2$")
    return fig
