"""Gradients of single samples early and late in training, and the batch that the norm test asks for."""

import numpy as np
from sklearn.datasets import load_breast_cancer

from refnorm.solvers import AdaGradNorm, norm_test

TOLERANCE, LATE = 0.5, 3


def data():
    """Return two standardized features of each sample, and its sign."""
    x, y = load_breast_cancer(return_X_y=True)
    x = x[:, [0, 1]]
    return (x - x.mean(axis=0)) / x.std(axis=0), 2.0 * y - 1


def gradients(w, x, y):
    """Return each sample's gradient of the logistic loss."""
    return -(y / (1 + np.exp(y * (x @ w))))[:, None] * x


def figure():
    r"""Mean gradients of 60 batches (dots) of a logistic regression with two weights, around the mean of all samples (end of the arrow from 0).
    The circle has half of the arrow's length for its radius: the error that the norm test allows with $\eta=0.5$. Left: at
    the start gradients are long, and batches of 8, of which 57 % fall into the circle, are about what the test asks for. Middle, enlarged: three
    steps of AdaGrad-Norm later the samples still differ, but their mean is short, and 25 % fall into it. Right: the
    test demands 69 samples there, and of such batches 68 % do."""
    import matplotlib.pyplot as plt

    x, y = data()
    optimizer, w = AdaGradNorm(learning_rate=1.0), np.zeros(2)
    state, weights = optimizer.init(w), [w]
    for _ in range(LATE):
        w, state = optimizer.step(w, gradients(w, x, y).mean(axis=0), state)
        weights.append(w)
    needed = int(np.ceil(norm_test(gradients(w, x, y), tolerance=TOLERANCE).statistic))
    rng = np.random.default_rng(0)
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.7), layout="constrained")
    for ax, step, size in zip(axes, (0, LATE, LATE), (8, 8, needed), strict=True):
        g = gradients(weights[step], x, y)
        mean = g.mean(axis=0)
        batches = np.array([g[rng.choice(len(g), size, replace=False)].mean(axis=0) for _ in range(60)])
        ax.plot(*batches.T, "o", color="#1f77b4", markersize=3.5, alpha=0.7)
        radius = TOLERANCE * np.linalg.norm(mean)
        ax.add_patch(plt.Circle(mean, radius, fill=False, color="#d62728", linewidth=2))
        ax.annotate("", mean, (0, 0), arrowprops={"arrowstyle": "->", "color": "black", "lw": 2})
        ax.plot(0, 0, "+", color="black", markersize=9)
        ax.set(aspect="equal", xlabel="first entry")
        scale = 0.7 if step == 0 else 0.3
        ax.set(xlim=(-0.4 * scale, 1.2 * scale), ylim=(-0.8 * scale, 0.9 * scale))
        ax.set_title(f"{'start' if step == 0 else f'step {LATE}'}, batches of {size}", fontsize=11)
    axes[0].set_ylabel("second entry")
    return fig
