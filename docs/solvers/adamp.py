"""A weight of which only the direction counts, moved with and without the radial part of momentum."""

import numpy as np

from refnorm.solvers import SGDP

TARGET = np.array([np.cos(2.5), np.sin(2.5)])
STEPS = 30


def gradient(w):
    """Return the gradient of ``1 - cos(angle between w and the target)``."""
    length = np.linalg.norm(w)
    return ((w @ TARGET) * w / length**2 - TARGET) / length


def path(shape):
    """Return the points of a run; a weight that is a vector is never projected, a matrix with one row is."""
    optimizer = SGDP(learning_rate=0.12, momentum=0.9)
    w = np.array([1.0, 0.0]).reshape(shape)
    state, points = optimizer.init(w), [w.ravel()]
    for _ in range(STEPS):
        w, state = optimizer.step(w, gradient(w.ravel()).reshape(shape), state)
        points.append(w.ravel())
    return np.array(points)


def figure():
    r"""A loss that depends on the direction of the weight alone: it is least along the dashed ray. Left: 30 steps from one start, with
    momentum 0.9 and the same learning rate. The circles have the radii 1, 2, 4 and 6. Momentum flings the weight outwards, to nearly 6 times its
    length, where a step turns it less; SGDP reaches the ray at 1.3 times. Right: the share of each step that points
    along the weight. The gradient has none, but old gradients belong to old weights, and after ten steps 0.7 of momentum's step is
    radial. SGDP removes it."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained", width_ratios=(4, 3))
    runs = ((2,), "#d62728", "o-"), ((1, 2), "#1f77b4", "s-")
    for shape, colour, style in runs:
        points = path(shape)
        left.plot(*points.T, style, color=colour, markersize=3.5, linewidth=1.2)
        steps, weights = np.diff(points, axis=0), points[:-1]
        lengths = np.linalg.norm(steps, axis=1) * np.linalg.norm(weights, axis=1)
        right.plot(range(1, STEPS + 1), (steps * weights).sum(axis=1) / lengths, style, color=colour, markersize=3.5)
    for radius in (1, 2, 4, 6):
        left.add_patch(plt.Circle((0, 0), radius, fill=False, color="#8a8a8a", linestyle=":"))
    left.plot(*np.outer(TARGET, (0, 6.5)), color="#8a8a8a", linestyle="--")
    left.plot(0, 0, "+", color="black")
    left.set(aspect="equal", xlim=(-5.4, 2.6), ylim=(-0.8, 5), xlabel="first entry", ylabel="second entry")
    left.grid(visible=False)
    left.text(-0.7, 3.2, "momentum", color="#d62728")
    left.text(-0.35, 1.42, "SGDP", color="#1f77b4", ha="center")
    right.set(xlabel="step", ylabel="radial share of the step")
    return fig
