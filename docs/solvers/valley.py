"""Paths of six optimizers, from one start, on two functions of the plane."""

import numpy as np

from refnorm.solvers import SGDP, AdaGrad, AdamP, Lion

STEPS = 60
LEARNING_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
AREA = (-3.0, 3.0), (-2.0, 2.0)
FAR = 50.0
"""A path that gets this far from the origin has left the picture for good."""

OPTIMIZERS = {
    "SGD with momentum": (lambda rate: SGDP(learning_rate=rate, momentum=0.9), (2,)),
    "SGDP": (lambda rate: SGDP(learning_rate=rate, momentum=0.9), (1, 2)),
    "Adam": (lambda rate: AdamP(learning_rate=rate), (2,)),
    "AdamP": (lambda rate: AdamP(learning_rate=rate), (1, 2)),
    "AdaGrad": (lambda rate: AdaGrad(learning_rate=rate), (2,)),
    "Lion": (lambda rate: Lion(learning_rate=rate), (2,)),
}
"""The optimizer for a learning rate, and the shape of its parameter: SGDP and AdamP project the rows of matrices, and treat
a vector as SGD with momentum and Adam do."""

AXES = np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
CURVATURES = np.array([0.2, 4.0])
"""Along the valley and across it."""
BOTTOM = np.array([1.2, 0.6])
TARGET = np.array([np.cos(1.9), np.sin(1.9)])


def quadratic(x):
    """Return the value and the gradient of a valley twenty times as steep across as along."""
    at = (x - BOTTOM) @ AXES.T
    return 0.5 * (at**2 @ CURVATURES), (CURVATURES * at) @ AXES


def direction_only(x):
    """Return the value and the gradient of ``1 - cos(angle to the target)``, which the length of ``x`` does not change."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length
    cosine = unit @ TARGET
    return 1 - cosine, (cosine[..., None] * unit - TARGET) / length


LANDSCAPES = {
    "a narrow valley": (quadratic, np.array([-2.4, 0.3]), (0.02, 0.1, 0.3, 0.8, 1.6, 3.0, 5.0, 8.0)),
    "only the direction counts": (
        direction_only,
        np.array([0.7, -0.35]),
        (0.02, 0.1, 0.25, 0.5, 0.8, 1.1, 1.4, 1.7, 1.9),
    ),
}
"""The function, where the paths start, and the values of the contour lines."""


def path(function, start, name, learning_rate):
    """Return the points that an optimizer visits: fewer than all steps if it leaves for good."""
    make, shape = OPTIMIZERS[name]
    optimizer = make(learning_rate)
    params = start.reshape(shape)
    state = optimizer.init(params)
    points = [start]
    while len(points) <= STEPS and np.linalg.norm(points[-1]) < FAR:
        _, gradient = function(points[-1])
        params, state = optimizer.step(params, gradient.reshape(shape), state)
        points.append(params.ravel())
    return np.array(points)


def heights(function, count=160):
    """Return a grid of the area with the function's values on it; an even number of points leaves out the origin."""
    (left, right), (low, high) = AREA
    x, y = np.meshgrid(np.linspace(left, right, count), np.linspace(low, high, count))
    return x, y, function(np.stack([x, y], axis=-1))[0]


def contours(function, levels):
    """Return the contour lines, level by level, every third point of them."""
    from contourpy import contour_generator

    lines = contour_generator(*heights(function, 80)).multi_lines(levels)
    return [np.concatenate([line[:-1:3], line[-1:]]).round(2).tolist() for level in lines for line in level]


def listed(function, points):
    """Return a path as JSON: its points, and the function's value at each."""
    values = function(points)[0]
    return {"points": points.round(3).tolist(), "values": [float(f"{value:.3g}") for value in values]}


def data():
    """Return the contours and, by optimizer and learning rate, the path."""
    return {
        "area": AREA,
        "steps": STEPS,
        "rates": LEARNING_RATES,
        "names": list(OPTIMIZERS),
        "landscapes": [
            {
                "name": landscape,
                "contours": contours(function, levels),
                "paths": [
                    [listed(function, path(function, start, name, rate)) for rate in LEARNING_RATES]
                    for name in OPTIMIZERS
                ],
            }
            for landscape, (function, start, levels) in LANDSCAPES.items()
        ],
    }


def figure():
    """Paths of six optimizers from one start (on paper: 60 steps with the learning rate 0.1). In a narrow valley momentum overshoots, while
    Lion and Adam move by about the same length along each axis, whatever the slope. Where only the direction of the
    weights counts, momentum drives SGD and Adam outwards, where each step turns the weights less; SGDP and AdamP project that
    growth away."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.4), layout="constrained", sharey=True)
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e")
    for ax, (landscape, (function, start, levels)) in zip(axes, LANDSCAPES.items(), strict=True):
        ax.contour(*heights(function), levels=levels, colors="#8a8a8a", linewidths=0.6, alpha=0.7)
        for name, colour in zip(OPTIMIZERS, colours, strict=True):
            points = path(function, start, name, 0.1)
            style = "--" if name in ("SGDP", "AdamP") else "-"
            ax.plot(*points.T, style, marker="o", markersize=2, linewidth=1.1, color=colour, label=name)
        ax.set(xlim=AREA[0], ylim=AREA[1], aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        ax.set_title(landscape, fontsize=10)
        ax.grid(visible=False)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7.5, columnspacing=1)
    return fig
