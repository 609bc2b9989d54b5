"""One step of descent from eight places of the disk: by coordinates, and along geodesics."""

import numpy as np

from refnorm.poincare import RiemannianSGD, dist_sq_vjp, expmap, logmap

TARGET = np.array([-0.25, 0.1])
RATE = 0.04


def starts():
    """Return eight points of the disk, from the middle to near its rim."""
    angles = np.radians([20, 75, 130, 165, 205, 250, 290, 335])
    radii = np.array([0.5, 0.9, 0.75, 0.92, 0.8, 0.6, 0.93, 0.85])
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def gradient(x):
    """Return the gradient, by coordinates, of half the squared distance to the target."""
    return dist_sq_vjp(x, np.tile(TARGET, (len(x), 1)), 1.0)[1](np.full(len(x), 0.5))[0]


def level(distance):
    """Return the circle of points at a distance from the target."""
    angles = np.linspace(0, 2 * np.pi, 90)
    # Tangent vectors of a hyperbolic length: the metric stretches them by the conformal factor.
    length = distance * (1 - TARGET @ TARGET) / 2
    velocity = length * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return expmap(np.tile(TARGET, (len(velocity), 1)), velocity, 1.0)


def figure():
    r"""One step from eight points towards the minimum, the cross, of half the squared distance to it; grey circles are 1, 2, 3
    and 4 away from it. Left: the gradient by coordinates, at one rate for all. The metric stretches lengths near the rim, so the
    gradient grows there: what is a cautious step from the middle throws points near the rim past the minimum, one of them out of
    the disk. Right: Riemannian SGD with $\eta=\frac12$ walks half of each geodesic, from the middle and from the rim alike."""
    import matplotlib.pyplot as plt

    x = starts()
    flat = x - RATE * gradient(x)
    optimizer = RiemannianSGD(learning_rate=0.5)
    curved, _ = optimizer.step(x, gradient(x), optimizer.init(x))
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    for ax in axes:
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="black"))
        for distance in (1, 2, 3, 4):
            ax.plot(*level(distance).T, color="#8a8a8a", linewidth=0.6)
        ax.plot(*x.T, "o", color="#1f77b4", markersize=5)
        ax.plot(*TARGET, "+", color="black", markersize=10, markeredgewidth=2)
        ax.set_aspect("equal")
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        ax.set_axis_off()
    for start, end in zip(x, flat, strict=True):
        axes[0].annotate(
            "", end, start, arrowprops={"arrowstyle": "->", "color": "#d62728", "shrinkA": 0, "shrinkB": 0}
        )
    for start, end in zip(x, curved, strict=True):
        shares = np.linspace(0, 1, 20)[:, None]
        way = expmap(np.tile(start, (20, 1)), shares * logmap(start, end, 1.0), 1.0)
        axes[1].plot(*way.T, color="#2ca02c", linewidth=1.5)
        axes[1].plot(*end, "s", color="#2ca02c", markersize=5)
    return fig
