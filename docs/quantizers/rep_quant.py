"""Three channels with a grid each, before and after they are moved onto one grid; powers of the root of 2."""

import numpy as np

from refnorm.quantizers import (
    calibrate_channelwise,
    log_sqrt2_dequantize,
    reparameterize_layernorm,
    uniform_codes,
)

BITS = 3
GAIN, BIAS = np.array([0.4, 2.0, 1.0]), np.array([0.5, -1.5, 3.0])


def channels():
    """Return inputs, codes and grids of three channels before the change, and the same after it."""
    x_hat = np.random.default_rng(0).standard_normal((40, 3))
    x = x_hat * GAIN + BIAS
    scale, zero = calibrate_channelwise(x, bits=BITS)
    made = reparameterize_layernorm(GAIN, BIAS, np.ones((3, 1)), np.zeros(1), scale, zero)
    changed = x_hat * made.gain + made.bias
    before = x, uniform_codes(x, scale, zero, bits=BITS), scale, zero
    return before, (
        changed,
        uniform_codes(changed, made.scale, made.zero, bits=BITS),
        np.full(3, made.scale),
        np.full(3, made.zero),
    )


def figure():
    r"""Left: outputs of a layer norm in three channels, with the eight levels of a 3-bit grid for each channel (strokes); two
    colours tell even codes from odd ones. Middle: the same numbers after gain and bias have been changed. One grid
    serves all three channels, and every number has kept its code. Right: the levels $2^{-q/2}$ for attention weights. Those
    with even codes are powers of 2; those with odd codes are powers of 2 times $\sqrt2$, and so shifts with a second scale."""
    import matplotlib.pyplot as plt

    before, after = channels()
    even, odd = "#1f77b4", "#d62728"
    fig, axes = plt.subplots(1, 3, figsize=(7, 3.2), layout="constrained")
    offsets = np.linspace(-0.25, 0.25, 40)
    for ax, (x, codes, scale, zero) in zip(axes, (before, after), strict=False):
        for d in range(3):
            levels = scale[d] * (np.arange(2**BITS) - zero[d])
            ax.hlines(levels, d - 0.38, d + 0.38, color="#8a8a8a", linewidth=1)
            ax.scatter(d + offsets, x[:, d], s=9, c=[(even, odd)[int(q) % 2] for q in codes[:, d]], zorder=2)
        ax.set(xticks=range(3), xlabel="channel")
        ax.grid(visible=False)
    axes[0].set(ylabel="output of the norm")
    axes[0].set_title("a grid each", fontsize=11)
    axes[1].set_title("one grid, same codes", fontsize=11)
    codes = np.arange(8, dtype=np.uint8)
    levels = log_sqrt2_dequantize(codes, np.zeros(8, bool), 1.0)
    for q, level in enumerate(levels):
        colour, row = ((even, 1), (odd, 0))[q % 2]
        axes[2].vlines(level, 2.1, 2.9, color=colour, linewidth=2)
        axes[2].vlines(level, row + 0.1, row + 0.9, color=colour, linewidth=2)
        if q < 5:
            axes[2].text(level, 2.95, str(q), ha="center", color=colour)
    axes[2].set_yticks([0.5, 1.5, 2.5], [r"$\sqrt{2}\cdot2^{-k}$", "$2^{-k}$", r"$2^{-q/2}$"])
    axes[2].set(xlabel="attention weight", xlim=(0, 1.05), ylim=(0, 3.3))
    axes[2].grid(visible=False)
    axes[2].set_title("codes $q$ of attention", fontsize=11)
    return fig
