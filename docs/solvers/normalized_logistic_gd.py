"""What samples pull at large steps, and the way of two methods to a separating weight."""

import numpy as np

from refnorm.solvers import logistic_gd, logistic_gradient

COUNT, RATE = 60, 1000.0
ODD = np.array([-0.95, np.sqrt(1 - 0.95**2)])


def samples():
    """All samples are (1, 0) but one, which points almost the other way; all are of class 1."""
    return np.vstack([np.tile([1.0, 0.0], (COUNT - 1, 1)), ODD]), np.ones(COUNT, int)


def shares(margins, rate):
    """What a sample pulls whose margin is a multiple of the rate."""
    one, target = np.ones((1, 1)), np.ones(1, int)
    return [-logistic_gradient(np.array([rate * margin]), one, target)[0] for margin in margins]


def path(normalize):
    """Iterates divided by the learning rate, until all samples are on their side."""
    x, target = samples()
    run = logistic_gd(x, target, learning_rate=RATE, max_iter=1000, normalize=normalize)
    steps = range(1, run.n_iter + 1)
    ends = [logistic_gd(x, target, learning_rate=RATE, max_iter=k, normalize=normalize).weight for k in steps]
    return np.vstack([[0, 0], ends]) / RATE


def figure():
    r"""Left: what a sample pulls, $\sigma(-m)$, against $m/\gamma$, its margin in units of the step. At large steps a sample
    pulls wholly or not at all, as in the perceptron. Right: the weight's way at $\gamma=1000$, for 59 samples $(1,0)$ and
    one that points almost the other way. In the shaded wedge all are on their side. The first step goes along the mean, and then only the one
    sample is wrong. Averaged over all 60 its pull is small, and gradient descent takes 29 steps; divided by the mean pull
    it counts fully, and the second step ends in the wedge."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=[1, 1.7])
    margins = np.linspace(-2, 2, 81)
    for rate, style in ((1.0, "-"), (5.0, "--"), (100.0, ":")):
        left.plot(margins, shares(margins, rate), style, color="#1f77b4", linewidth=2, label=rf"$\gamma={rate:g}$")
    left.set(xlabel=r"margin / $\gamma$", ylabel="pull of a sample", yticks=[0, 0.5, 1])
    left.legend(fontsize=9, handlelength=1.5)

    far = 0.45
    right.fill([0, 0, far * ODD[1] / -ODD[0]], [0, far, far], color="#2ca02c", alpha=0.25, linewidth=0)
    for normalize, style, color in ((False, ".-", "#d62728"), (True, "o--", "#9467bd")):
        way = path(normalize)
        name = "normalized" if normalize else "gradient descent"
        right.plot(*way.T, style, color=color, linewidth=1, label=f"{name}, {len(way) - 1} steps")
        right.plot(*way[-1], "*", color=color, markersize=13)
    right.set(xlabel=r"$\theta_1/\gamma$", ylabel=r"$\theta_2/\gamma$", xlim=(-0.05, 1.02), ylim=(-0.02, far))
    right.legend(fontsize=10, loc="upper right")
    return fig
