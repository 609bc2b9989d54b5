"""Activation patterns as sectors of the plane of hidden weights, and the network that a convex program finds in them."""

import numpy as np

from refnorm.solvers import admm_relu, recover_relu, sample_patterns

FEATURE = np.array([-1.7, -0.7, 0.0, 0.7, 1.7])
TARGET = np.array([0.9, 0.2, 0.1, 0.9, 0.5])
DRAWS = 400


def solve():
    """Return the data with a column of ones, and the solution of the convex program over all patterns."""
    x = np.stack([FEATURE, np.ones(len(FEATURE))], axis=1)
    patterns = sample_patterns(x, DRAWS, rng=np.random.default_rng(0))
    return x, admm_relu(x, TARGET, patterns, penalty=0.01, coupling=0.03, max_iter=4000)


def figure():
    """Left: the plane of a hidden neuron's weight and bias. Each of five examples cuts it by a line into weights for which it is
    active (1) and others (0); what is left are 10 sectors, and within one of them the neuron is linear in its weights. Arrows
    are the neurons that the convex program found, blue with a positive and red with a negative output weight; each lies in a
    sector or on its border. Right: their outputs (dashed) and the sum (black) through the data. A neuron on a border has its
    kink exactly at an example, as the red ones at $x=1$."""
    import matplotlib.pyplot as plt

    x, result = solve()
    weight, output = recover_relu(result.v, result.w, tol=1e-3)
    colours = np.where(output > 0, "#1f77b4", "#d62728")
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
    normals = np.stack([-x[:, 1], x[:, 0]], axis=1) / np.linalg.norm(x, axis=1, keepdims=True)
    for normal in normals:
        left.plot(*np.stack([-3 * normal, 3 * normal]).T, color="#8a8a8a", linewidth=1)
    borders = np.sort(np.concatenate([np.arctan2(*s * normals.T[::-1]) for s in (1, -1)]))
    middles = (borders + np.append(borders[1:], borders[0] + 2 * np.pi)) / 2
    for direction in np.stack([np.cos(middles), np.sin(middles)], axis=1):
        pattern = "".join(str(int(active)) for active in x @ direction >= 0)
        left.text(*1.4 * direction, pattern, fontsize=9, ha="center", va="center")
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 2}
    for w, colour in zip(weight, colours, strict=True):
        left.annotate("", w, (0, 0), arrowprops=arrow | {"color": colour})
    left.set(aspect="equal", xlim=(-1.85, 1.85), ylim=(-1.6, 1.6), xlabel="weight of $x$", ylabel="bias")
    left.grid(visible=False)
    line = np.linspace(-2, 2, 401)
    parts = np.maximum(np.stack([line, np.ones(len(line))], axis=1) @ weight.T, 0) * output
    for part, colour in zip(parts.T, colours, strict=True):
        right.plot(line, part, "--", color=colour, linewidth=1)
    right.plot(line, parts.sum(axis=1), color="black")
    right.plot(FEATURE, TARGET, "o", color="black")
    right.set(xlabel="$x$", ylabel="target", ylim=(-0.7, 1.4))
    return fig
