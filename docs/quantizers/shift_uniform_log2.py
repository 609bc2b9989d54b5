"""A shift before the logarithm: the range that it leaves to be quantized, and the levels of three quantizers."""

import numpy as np

from refnorm.quantizers import log2_fake_quantize, sulq_calibrate, sulq_decode
from refnorm.softmax import softmax

BITS = 3


def figure():
    r"""Left: the logarithm of an attention weight runs to $-\infty$ at 0 (dashed). With the shift $\eta=0.05$, which calibration chose
    for softmax weights of normal logits, it ends at $\log_2\eta=-4.3$ (solid), and eight evenly spaced levels (dotted) cover all
    that can occur, 0 included. Right: the weights that the eight codes of 3 bits stand for. Powers of 2 halve from level to level, have
    nothing between 0.50 and 0.99, and no code for 0: what is too small is *made* 0 (the first dot). The shifted levels
    reach 0 with a code of their own, and lie closer for large weights. Even ones have a single level below 0.1, where most attention weights are."""
    import matplotlib.pyplot as plt

    weights = softmax(3 * np.random.default_rng(0).standard_normal((500, 197)))
    top = float(weights.max())
    params = sulq_calibrate(weights, bits=BITS, integer_exponent=False)
    codes = np.arange(2**BITS, dtype=np.uint8)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(3, 4))
    a = np.geomspace(1e-4, 1, 200)
    left.semilogx(a, np.log2(a), "--", color="#8a8a8a")
    left.semilogx(a, np.log2(a + params.shift), color="#1f77b4", linewidth=2)
    for level in params.low + codes * params.step:
        left.axhline(level, color="#1f77b4", linestyle=":", linewidth=1)
    left.text(1.3e-4, params.low - 0.4, r"$\log_2(a+\eta)$", color="#1f77b4", va="top")
    left.text(4e-3, -9.5, r"$\log_2a$", color="#8a8a8a")
    left.set(xlabel="attention weight $a$", ylabel="logarithm", ylim=(-11, 0.5))
    left.grid(visible=False)
    levels = {
        "powers of 2": log2_fake_quantize(np.append(0.0, top * 0.5**codes), top, bits=BITS),
        "shifted": sulq_decode(codes, params, integer_exponent=False),
        "even": top * codes / codes[-1],
    }
    for row, values in enumerate(levels.values()):
        colour = ("#d62728", "#1f77b4", "#8a8a8a")[row]
        right.plot(values, np.full(len(values), -row), "o", color=colour, markersize=6)
        right.hlines(-row, 0, 1, color=colour, linewidth=1)
    right.set_yticks([0, -1, -2], levels)
    right.set(xlabel="weight that a code stands for", ylim=(-2.5, 0.5))
    right.grid(visible=False)
    return fig
