"""Where gradient descent can go with a filter as it is, and with a filter that is standardized first."""

import numpy as np

from refnorm import norms

PLANE = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # an orthonormal basis of the filters that sum to 0


def data():
    """Return inputs of three entries, and what the standardized filter of the plane's point (1, 1) makes of them."""
    x = np.random.default_rng(0).standard_normal((200, 3))
    weight_hat = norms.weight_standardize(np.ones((1, 2)) @ PLANE, ddof=0)
    return x, (x @ weight_hat.T)[:, 0]


def loss_and_slope(points, standardized):
    """Return the squared error of the filter at each point of the plane, and minus its gradient along the plane."""
    x, target = data()
    weight = points @ PLANE
    if standardized:
        used, pullback = norms.weight_standardize_vjp(weight, ddof=0)
    else:
        used, pullback = weight, lambda dweight: (dweight,)
    error = used @ x.T - target
    (dweight,) = pullback(2 * error @ x / len(x))
    return (error**2).mean(axis=1), -dweight @ PLANE.T


def figure():
    r"""Filters of three weights, seen in the plane of those whose mean is zero, and what descending the squared error of a
    filter does to them (arrows: the step for a fixed learning rate; colour: the error). Used as it is, a filter
    is pushed wherever the error falls, and far out it is pushed hard. Standardized first, only its direction counts: all
    arrows turn it about the origin, none lengthens or shortens it, and they get shorter in proportion as the filter is longer."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.3), layout="constrained", sharey=True)
    side = np.linspace(-3, 3, 61)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    rays = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    points = np.concatenate([radius * rays for radius in (0.8, 1.6, 2.6)])
    for ax, standardized, name in zip(axes, (False, True), ("filter as it is", "standardized filter"), strict=True):
        loss, _ = loss_and_slope(grid, standardized)
        image = ax.imshow(
            np.log10(loss.reshape(61, 61) + 1e-2),
            cmap="viridis",
            origin="lower",
            extent=(-3, 3, -3, 3),
            vmin=-2,
            vmax=1.5,
        )
        _, slope = loss_and_slope(points, standardized)
        ax.quiver(*points.T, *slope.T, color="#ff7f0e", angles="xy", scale_units="xy", scale=9, width=0.009)
        ax.set(title=name, xticks=[-2, 0, 2], yticks=[-2, 0, 2], xlim=(-3, 3), ylim=(-3, 3), xlabel="along (1, -1, 0)")
        ax.grid(visible=False)
    axes[0].set_ylabel("along (1, 1, -2)")
    fig.colorbar(image, ax=axes, shrink=0.8, label="log$_{10}$ of the error")
    return fig
