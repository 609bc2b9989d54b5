"""The slope of a solution needs the equation that it satisfies, and not the way on which it was found."""

import numpy as np
from sklearn.datasets import load_diabetes

from refnorm.solvers import Root, custom_root, lasso, lasso_vjp

THETA = 2.0


def condition(x, theta):
    """Return the slope in x of x^4 / 4 + x^2 / 2 - theta x, with its pullback."""
    return x**3 + x - theta, lambda u: ((3 * x**2 + 1) * u, -u)


def walk(x0, theta, newton):
    """Return the points of 25 steps to the root, by Newton's method or gradient descent."""
    points = [x0]
    for _ in range(25):
        x = points[-1]
        points.append(x - condition(x, theta)[0] / (3 * x**2 + 1 if newton else 6.0))
    return np.array(points)


def figure():
    r"""Left: the condition $F(x,\theta)=x^3+x-\theta$ is 0 on the black curve, negative below and positive above. At $\theta=2$ gradient
    descent comes from below (circles) and Newton's method from above (squares); both end on the curve, and its tangent there
    (green) is $-\partial_2F/\partial_1F=\frac14$, whoever has found the point. Right: four of ten weights of a lasso on
    scikit-learn's diabetes data against the penalty (grey), and the tangents that one linear solve gives at the penalties 100 and
    300 (green). They are exact as far as the next kink, where one of the ten weights becomes 0 or leaves it."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained")
    theta, x = np.meshgrid(np.linspace(0, 4, 60), np.linspace(-0.3, 2, 60))
    left.contour(theta, x, condition(x, theta)[0], [-4, -2, 3, 6], colors="#8a8a8a", linewidths=0.7)
    left.text(0.2, 0.95, "$F>0$")
    left.text(2.95, 0.98, "$F<0$")
    left.contour(theta, x, condition(x, theta)[0], [0.0], colors="black", linewidths=2)
    for start, newton, style, colour in ((0.0, False, "o", "#1f77b4"), (2.0, True, "s", "#d62728")):
        points = walk(np.array([start]), THETA, newton)
        left.plot(np.full(len(points), THETA), points, style, color=colour, markersize=6)
    solve_vjp = custom_root(lambda x0, theta: walk(x0, theta, True)[-1], Root(condition))
    root, pullback = solve_vjp(np.ones(1), np.array([THETA]))
    slope = pullback(np.ones(1))[1]
    left.plot(THETA + np.array([-1.2, 1.2]), root + slope * np.array([-1.2, 1.2]), color="#2ca02c", linewidth=3)
    left.set(xlabel=r"$\theta$", ylabel="$x$", xticks=[0, 2, 4], yticks=[0, 1, 2])
    left.grid(visible=False)
    data = load_diabetes()
    target, shown = data.target - data.target.mean(), [2, 3, 6, 8]
    penalties = np.linspace(20, 600, 59)
    weights = np.array([lasso(data.data, target, penalty) for penalty in penalties])
    right.plot(penalties, weights[:, shown], color="#8a8a8a", linewidth=1.5)
    for penalty in (100.0, 300.0):
        found, pullback = lasso_vjp(data.data, target, penalty)
        for j in shown:
            slope = pullback(np.eye(10)[j])[2]
            reach = np.array([-70, 70])
            right.plot(penalty + reach, found[j] + slope * reach, color="#2ca02c", linewidth=2.5)
    right.set(xlabel=r"penalty $\lambda$", ylabel="weight")
    return fig
