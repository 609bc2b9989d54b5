"""What one bad batch does to the next, and how a norm with fixed statistics disappears in the layer behind it."""

import numpy as np

from refnorm.norms import UnifiedNormState, fold_into_linear, unified_norm

TOKENS, CHANNELS, OUTPUTS, BEFORE = 400, 8, 6, 80
SCALES = np.array([0.5, 2.0, 1.0, 0.35, 1.5, 3.0, 0.7, 0.45])
"""Root mean squares of the channels."""
FACTORS = np.geomspace(1, 100, 21)


def train(factor, outlier_filtration):
    """Return the state after ordinary batches and one that is ``factor`` times too large, and the next one's divisor."""
    rng = np.random.default_rng(0)
    one, zero, state = np.ones(CHANNELS), np.zeros(CHANNELS), UnifiedNormState.create(CHANNELS)
    for size in [1.0] * BEFORE + [factor, 1.0]:
        x = size * SCALES * rng.standard_normal((TOKENS, CHANNELS))
        y, state = unified_norm(x, one, zero, state, warmup=0, outlier_filtration=outlier_filtration)
    return state, x[0, 0] / y[0, 0] / SCALES[0]


def figure():
    r"""Left, the number that an ordinary batch is divided by after one that was too large, relative to what it should be. In
    an arithmetic mean over the squares of four batches the bad one takes over; in the geometric mean only its fourth root
    counts, and 100 times too large becomes 3 times. The filter keeps out what is twice too large or more. Right, the norm in
    use is one factor a channel (rows). It multiplies the rows of the next layer's weight $A$ once, and the folded
    weight $A'$ does the work of both."""
    import matplotlib.pyplot as plt

    fig, (plot, *images) = plt.subplots(1, 4, figsize=(7, 2.8), layout="constrained", width_ratios=(3.4, 0.3, 1.3, 1.3))
    states, plain = zip(*[train(factor, False) for factor in FACTORS], strict=True)
    arithmetic = [np.sqrt(np.mean(state.forward_buffer[:, 0])) / SCALES[0] for state in states]
    filtered = [train(factor, True)[1] for factor in FACTORS]
    curves = ((arithmetic, "#8a8a8a", "--", "arithmetic", (5, 6)), (plain, "#1f77b4", "-", "geometric", (30, 3.2)))
    for values, colour, style, name, place in (*curves, (filtered, "#d62728", ":", "with the filter", (14, 0.66))):
        plot.loglog(FACTORS, values, style, color=colour, linewidth=2.5)
        plot.text(*place, name, color=colour, ha="center")
    plot.set(xlabel="size of the bad batch", ylabel="divisor of the next", ylim=(0.5, 60))
    weight = np.random.default_rng(1).standard_normal((CHANNELS, OUTPUTS))
    zero, square = np.zeros(CHANNELS), states[0].mean_square
    folded, _ = fold_into_linear(weight, np.zeros(OUTPUTS), np.ones(CHANNELS), zero, square)
    factor, _ = unified_norm(np.ones((1, CHANNELS)), np.ones(CHANNELS), zero, states[0], training=False)
    for ax, values, name in zip(images, (factor.T, weight, folded), ("norm", "$A$", "$A'$"), strict=True):
        ax.imshow(values, cmap="PuOr_r", vmin=-4, vmax=4, aspect="auto")
        ax.set_title(name, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    return fig
