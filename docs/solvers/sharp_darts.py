"""A blend of three operations, and what is left when only the strongest stays."""

import numpy as np

from refnorm.softmax import softmax
from refnorm.solvers import AdamP, discretize, mixed_op, mixed_op_vjp

POINTS, STEPS, SEED = 40, 200, 0


def operations(x):
    """Return the candidates x, x^2 and sin 3x."""
    return np.stack([x, x**2, np.sin(3 * x)])


def search(seed, **options):
    """Return gains and logits after a search on 40 training and 40 validation points, and the training points."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (2, POINTS))
    target = np.sin(3 * x) + 0.1 * rng.standard_normal(x.shape)
    gain, logits = 0.5 + 0.1 * rng.standard_normal(3), 1e-3 * rng.standard_normal(3)
    # A projection threshold of 0, but for the smallest number: AdamP is Adam.
    of_gain = AdamP(learning_rate=0.05, delta=5e-324)
    of_logits = AdamP(learning_rate=0.02, betas=(0.5, 0.999), delta=5e-324)
    state_gain, state_logits = of_gain.init(gain), of_logits.init(logits)
    for _ in range(STEPS):
        for part in (1, 0):  # logits on validation points, then gains on training points
            inputs = operations(x[part])
            y, back = mixed_op_vjp(gain[:, None] * inputs, logits, **options)
            doutputs, dlogits = back(2 * (y - target[part]) / POINTS)
            if part:
                logits, state_logits = of_logits.step(logits, dlogits, state_logits)
            else:
                gain, state_gain = of_gain.step(gain, (doutputs * inputs).sum(axis=1), state_gain)
    return gain, logits, x[0], target[0]


def figure():
    r"""Two searches with the same random numbers for an operation that fits noisy points of $\sin3x$, among $x$, $x^2$ and $\sin3x$, each
    with a gain that is learned. Both blends (blue) fit. Left: in the scalar mixture $\sin3x$ wins with the weight 0.59, for
    which its gain makes up; alone (red), at weight 1, it is far too large. Right: under max-W the winner's share is 1,
    its gain is near 1, the others have faded, and alone it is the blend."""
    import matplotlib.pyplot as plt

    grid = np.linspace(-1, 1, 101)
    fig, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", sharey=True)
    for ax, weighting, name in zip(axes, ("scalar", "max_w"), ("scalar mixture", "max-W"), strict=True):
        gain, logits, x, target = search(SEED, weighting=weighting)
        outputs, best = gain[:, None] * operations(grid), int(discretize(logits))
        ax.plot(x, target, ".", color="#8a8a8a")
        ax.plot(
            grid, mixed_op(outputs, logits, weighting=weighting), color="#1f77b4", linewidth=4, alpha=0.7, label="blend"
        )
        ax.plot(grid, outputs[best], "--", color="#d62728", linewidth=2, label="winner alone")
        weights = ", ".join(f"{weight:.2f}" for weight in softmax(logits))
        ax.set_title(f"{name}: weights {weights}; gain {gain[best]:.2f}", fontsize=9)
        ax.set(xlabel="x")
    axes[0].set_ylabel("output")
    axes[0].legend(fontsize=10)
    return fig
