"""Lion's steps on a valley, and how long its direction remembers a gradient."""

import numpy as np

from refnorm.solvers import SGDP, Lion, lion_gradient_weights

CURVATURES = np.array([0.3, 6.0])
START = np.array([-1.9, 0.75])


def path(optimizer, steps):
    """Return the points of a run on ``(0.3 x^2 + 6 y^2) / 2``."""
    points, state = [START], optimizer.init(START)
    for _ in range(steps):
        point, state = optimizer.step(points[-1], CURVATURES * points[-1], state)
        points.append(point)
    return np.array(points)


def figure():
    r"""Left: a valley twenty times as steep across as along. Each step of gradient descent (squares) follows the slope, and along
    the bottom it creeps. Each of Lion's steps (dots) goes by 0.1 in both entries, and so along a diagonal, steep or flat; at the bottom it goes
    to and fro, because it cannot move by less. Right: the weight that the gradient of $k$ steps ago has in Lion's direction. The current
    gradient has the weight 0.1 of a short average ($\beta=0.9$), and the past fades as slowly as in a long one ($\beta=0.99$): quick
    to react and slow to forget."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(4, 3))
    x, y = np.meshgrid(np.linspace(-2.1, 0.4, 60), np.linspace(-0.9, 0.9, 60))
    levels = (0.02, 0.1, 0.3, 0.6, 1, 1.5, 2)
    left.contour(
        x, y, (CURVATURES[0] * x**2 + CURVATURES[1] * y**2) / 2, levels=levels, colors="#8a8a8a", linewidths=0.6
    )
    left.plot(*path(SGDP(learning_rate=0.1), 20).T, "s--", color="#d62728", markersize=3.5, label="gradient descent")
    left.plot(*path(Lion(learning_rate=0.1), 20).T, "o-", color="#1f77b4", markersize=4, label="Lion")
    left.set(aspect="equal", xlabel="first entry", ylabel="second entry")
    left.grid(visible=False)
    left.legend(loc="lower right")
    k = np.arange(61)
    for name, betas, style, colour in (
        (r"$\beta=0.9$", (0.9, 0.9), "--", "#8a8a8a"),
        (r"$\beta=0.99$", (0.99, 0.99), ":", "#8a8a8a"),
        ("Lion", (0.9, 0.99), "-", "#1f77b4"),
    ):
        right.semilogy(k, lion_gradient_weights(60, betas), style, color=colour, linewidth=2, label=name)
    right.semilogy(0, lion_gradient_weights(0)[0], "o", color="#1f77b4")
    right.set(xlabel="age $k$ of the gradient", ylabel="weight", ylim=(5e-4, 0.2))
    right.legend()
    return fig
