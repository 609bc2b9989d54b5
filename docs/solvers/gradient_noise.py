"""A start of perfect symmetry: descent without noise, with noise of fixed and with noise of decaying variance."""

import numpy as np

from refnorm.solvers import add_gradient_noise

STEPS, RATE = 400, 0.05


def loss(p):
    x, y = p
    return (x**2 - 1) ** 2 / 2 + y**2 / 2


def path(variance, decay, seed):
    """Return the points of gradient descent from (0, 1.6), where the slope in x is 0 by symmetry."""
    rng, point = np.random.default_rng(seed), np.array([0.0, 1.6])
    points = [point]
    for step in range(STEPS):
        slope = np.array([2 * point[0] * (point[0] ** 2 - 1), point[1]])
        point = point - RATE * add_gradient_noise(slope, step, variance=variance, decay=decay, rng=rng)
        points.append(point)
    return np.array(points).T


def figure():
    r"""Two valleys and a saddle between them. Left: descent from the middle of the ridge has no slope to either side; it walks
    straight to the saddle and stays there (dashed). Noise of any kind leads out, here into either valley. Right: the loss. Noise of
    fixed variance 0.3 (orange) goes on shaking in the valley, at 0.006 on average over the last hundred steps; with the
    decay $\gamma=0.55$ (blue) it has settled to 0.0004."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    x, y = np.meshgrid(np.linspace(-1.8, 1.8, 60), np.linspace(-0.8, 1.8, 50))
    left.contour(x, y, loss(np.stack([x, y])), [0.05, 0.15, 0.3, 0.5, 0.9, 1.5, 2.5], colors="#8a8a8a", linewidths=0.8)
    for variance, decay, seed, colour, style in (
        (0.0, 0.0, 0, "black", "--"),
        (0.3, 0.0, 0, "#ff7f0e", "-"),
        (0.3, 0.55, 1, "#1f77b4", "-"),
    ):
        points = path(variance, decay, seed)
        left.plot(*points[:, :150], style, color=colour, linewidth=1.2)
        right.plot(loss(points), style, color=colour, linewidth=1)
    left.plot(0, 1.6, "o", color="black")
    left.set(xlabel="$x$", ylabel="$y$", xticks=[-1, 0, 1], yticks=[0, 1])
    left.grid(visible=False)
    for text, height, colour in (("no noise", 0.7, "black"), ("fixed", 0.06, "#ff7f0e"), ("annealed", 6e-6, "#1f77b4")):
        right.text(STEPS, height, text, color=colour, ha="right")
    right.set(xlabel="step", ylabel="loss", yscale="log", ylim=(2e-6, 4))
    return fig
