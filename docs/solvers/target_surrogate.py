"""Gradient steps of the predictions, projected on what a model can predict."""

import itertools

import numpy as np

from refnorm.solvers import minimize_target_surrogate, target_surrogate

CURVATURE, GOAL, START = np.array([0.35, 1.0]), np.array([1.6, -0.1]), np.array([-1.7])


def loss_grad(prediction, rows):
    """An expensive loss of two predictions; it is 1-smooth."""
    missed = prediction - GOAL
    return 0.5 * (CURVATURE * missed) @ missed, CURVATURE * missed


def model(theta, rows=None):
    """A cheap model with a single parameter: its predictions lie on a curve."""
    prediction = np.array([theta[0], 0.5 * theta[0] ** 2 - 0.8])
    return prediction, lambda dz: (np.array([dz[0] + theta[0] * dz[1]]),)


def path(inner_steps, n_iter):
    """Parameters after every outer step."""
    found = [START]
    for steps in range(1, n_iter + 1):
        run = minimize_target_surrogate(
            loss_grad, model, START, step_size=1.0, inner_steps=inner_steps, inner_rate=0.1, n_iter=steps, inner_tol=0.0
        )
        found.append(run.x)
    return np.array(found)[:, 0]


def figure():
    r"""A model with one parameter and two predictions. Left: the space of predictions, with contours of the loss and the curve of all
    that the model can predict. A step goes down the gradient of the loss, off the curve (arrow), and then back to the nearest
    point of the curve (dotted), with many cheap steps of the model and none of the loss. Three gradients lead most of the way
    to the minimum; crosses are three steps of gradient descent, one inner step of the same length for each gradient. Right: the same over the parameter. The first
    surrogate (dashed) touches the loss where its gradient was taken, lies above it everywhere, and is minimised in place of it."""
    import matplotlib.pyplot as plt

    grid = np.linspace(-2, 1.9, 200)
    curve = np.array([model([theta])[0] for theta in grid])
    outer, descent = path(200, 3), path(1, 3)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", width_ratios=[1.2, 1])
    side = np.meshgrid(np.linspace(-2.2, 2.1, 60), np.linspace(-1.3, 1.2, 60))
    level = 0.5 * (CURVATURE[0] * (side[0] - GOAL[0]) ** 2 + CURVATURE[1] * (side[1] - GOAL[1]) ** 2)
    left.contour(*side, level, levels=[0.05, 0.3, 0.8, 1.5, 2.5, 4], colors="#8a8a8a", linewidths=0.6)
    left.plot(*curve.T, color="black", label="predictions")
    for number, (theta, after) in enumerate(itertools.pairwise(outer)):
        z, back = model([theta])[0], model([after])[0]
        loss, gradient = loss_grad(z, None)
        arrow = {"arrowstyle": "-|>", "color": "#1f77b4", "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        left.annotate("", z - gradient, z, arrowprops=arrow)
        left.plot(*np.array([z - gradient, back]).T, ":", color="#1f77b4", linewidth=2)
        for place in (z, back):
            left.plot(*place, "o", color="#1f77b4", markersize=7)
        right.plot(theta, loss, "o", color="#1f77b4", markersize=7)
        if number == 0:
            bound = [target_surrogate(point, z, gradient, step_size=1.0, loss=loss) for point in curve]
            right.plot(grid, bound, "--", color="#1f77b4", linewidth=2, label="first surrogate")
    left.plot(*np.array([model([theta])[0] for theta in descent[1:]]).T, "x", color="#d62728", markersize=8)
    right.plot(grid, [loss_grad(point, None)[0] for point in curve], color="black", label="loss")
    left.set(aspect="equal", xlabel="first prediction", ylabel="second prediction")
    left.grid(visible=False)
    right.set(xlabel=r"parameter $\theta$", ylim=(-0.2, 4))
    right.legend(fontsize=10)
    right.plot(outer[-1], loss_grad(model(outer[-1:])[0], None)[0], "o", color="#1f77b4", markersize=7)
    return fig
