"""The function that replaces the exponential, and two descents on a loss that scaling up can lower for ever."""

import numpy as np

from refnorm.softmax import cross_entropy_vjp, orthogonalize_gradient, stable_s

POINTS = np.array([[1.5, 0.5], [0.4, 1.6], [1.2, -0.5], [-0.3, 1.2], [0.9, 0.9]])
LABELS = np.zeros(len(POINTS), int)


def loss_and_slope(weight):
    """Mean loss of a linear classifier with logits (w x, 0), and its gradient."""
    logits = np.stack([POINTS @ weight, np.zeros(len(POINTS))], axis=1)
    loss, back = cross_entropy_vjp(logits, LABELS)
    return float(loss), back(np.float64(1))[0][:, 0] @ POINTS


def descend(rate, steps, change):
    path = [np.array([-0.4, 2.0])]
    for _ in range(steps):
        path.append(path[-1] - rate * change(path[-1], loss_and_slope(path[-1])[1]))
    return np.array(path)


def figure():
    r"""Left: what a logit weighs before the division by the sum. $e^x$ is straight on this logarithmic axis; $s(x)$ has the same value
    and slope at 0 and shares $s(-x)=1/s(x)$, but grows only linearly and vanishes only like $1/|x|$. Right: cross-entropy over the two weights
    of a linear classifier whose examples can all be right (contours, each a tenth of the last). Descent (red, dots every 300
    steps) finds the direction early and then walks straight outward, for ever: that is naive loss minimisation. Orthogonal gradients (blue)
    may only turn; they end in nearly the same direction, at almost the length of the start."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.3), layout="constrained")
    x = np.linspace(-6, 6, 121)
    left.semilogy(x, np.exp(x), "--", color="#d62728", linewidth=2)
    left.semilogy(x, stable_s(x), color="#1f77b4", linewidth=2)
    left.text(0.3, 120, "$e^x$", color="#d62728", fontsize=13)
    left.text(3.8, 1.4, "$s(x)$", color="#1f77b4", fontsize=13)
    left.set(xlabel="logit x", ylabel="weight", ylim=(2e-3, 500))

    grid = np.linspace(-1, 9, 41)
    values = np.array([[loss_and_slope(np.array([a, b]))[0] for a in grid] for b in grid])
    right.contour(grid, grid, values, levels=10.0 ** np.arange(-5, 1), colors="#8a8a8a", linewidths=1)
    plain = descend(4.0, 1500, lambda _, slope: slope)
    turned = descend(0.1, 400, orthogonalize_gradient)
    right.plot(*plain.T, color="#d62728", linewidth=2)
    right.plot(*plain[::300].T, "o", color="#d62728")
    circle = 2.04 * np.exp(1j * np.linspace(-0.4, 1.9, 60))
    right.plot(circle.real, circle.imag, ":", color="#1f77b4")
    right.text(2.4, 0.2, "orthogonal\ngradients", color="#1f77b4")
    right.text(6.7, 5.3, "descent", color="#d62728")
    right.plot(*turned.T, color="#1f77b4", linewidth=3)
    right.set(xlabel="first weight", ylabel="second weight", aspect="equal")
    right.grid(visible=False)
    return fig
