"""How far a linear model of the gradient is right, and steps that are kept inside of such a radius."""

import numpy as np

from refnorm.solvers import gradient_regularized_newton, logsumexp_oracle, smoothness_radius

LINE = logsumexp_oracle(np.array([[-1.0], [0.0], [1.5]]), np.array([0.0, 0.3, 1.5]), 0.3)
POINT, SHOWN = np.array([0.9]), 6


def radius(hessian):
    """Return the largest radius at the point of the line, from both directions."""
    options = {"radii": np.linspace(0.005, 3, 600), "n_directions": 1, "rng": np.random.default_rng(0)}
    return smoothness_radius(LINE.gradient, hessian, POINT, **options)


def descent():
    """Return the function, the points and the radii of a run on a soft maximum in the plane."""
    rng, points = np.random.default_rng(0), []
    matrix = rng.uniform(-1, 1, (12, 2))
    oracle = logsumexp_oracle(matrix - matrix.mean(axis=0), rng.uniform(-1, 1, 12), 0.1)

    def hessian(x):
        points.append(x)
        return oracle.hessian(x)

    result = gradient_regularized_newton(oracle.fun, oracle.gradient, hessian, np.array([2.5, 2.0]), radius0=0.3)
    return oracle.fun, np.array([*points, result.x]), result.history["radius"]


def figure():
    r"""Left: the gradient of a soft maximum on a line (black), from a point at $h=0$, and two linear models of it: with the exact
    second derivative (blue) and with that of Gauss-Newton (red), which is twice as steep. $\gamma$ is the largest half width at
    which the gradient still runs inside the wedge $g+Hh\pm|h|\,|g|/\gamma$: 0.65 for the exact one, 0.28 for the other.
    Right: a run in the plane from the upper right. Each step stays in a circle of radius $\gamma$; after a success the radius doubles,
    after a failure it is halved, once on the way and three times at the bottom of the valley. Only the first six circles
    are drawn: the others grow without being felt."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained")
    h, g = np.linspace(-1, 1, 200), LINE.gradient(POINT)[0]
    models = {"exact": (LINE.hessian(POINT), "#1f77b4"), "Gauss-Newton": (LINE.gauss_newton(POINT), "#d62728")}
    for name, (hessian, colour) in models.items():
        gamma = radius(hessian)
        inside = np.linspace(-gamma, gamma, 3)
        line, wedge = g + hessian[0, 0] * inside, np.abs(inside) * g / gamma
        left.fill_between(inside, line - wedge, line + wedge, color=colour, alpha=0.25, linewidth=0)
        left.plot(inside, line, "--", color=colour, label=name)
    left.plot(h, [LINE.gradient(POINT + step)[0] for step in h], color="black")
    left.set(xlabel="$h$", ylabel="gradient at $x+h$")
    left.legend(fontsize=9)
    fun, points, radii = descent()
    grids = np.meshgrid(np.linspace(-1.6, 3.2, 50), np.linspace(-1.2, 2.8, 50))
    heights = np.reshape([fun(point) for point in np.stack(grids, axis=-1).reshape(-1, 2)], grids[0].shape)
    right.contour(*grids, heights, 12, colors="#8a8a8a", linewidths=0.7)
    right.plot(*points.T, "o-", color="#1f77b4", markersize=4)
    for point, size in zip(points[:SHOWN], radii[:SHOWN], strict=True):
        right.add_patch(plt.Circle(point, size, fill=False, color="#d62728", linewidth=0.8))
    right.set(aspect="equal", xlim=(-1.6, 3.2), ylim=(-1.2, 2.8), xlabel="$x_1$", ylabel="$x_2$")
    right.grid(visible=False)
    return fig
