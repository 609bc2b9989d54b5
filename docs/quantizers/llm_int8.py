"""Activations with outlying columns, and the 8-bit codes of their rows with these columns and without them."""

import numpy as np

from refnorm.quantizers import vectorwise_quantize

ROWS, FEATURES, LOUD = 24, 48, (9, 30)


def activations():
    """Return standard normal rows, two columns of which are some forty times larger."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((ROWS, FEATURES))
    x[:, LOUD] = np.array([40.0, -25.0]) * (1 + 0.1 * rng.standard_normal((ROWS, 2)))
    return x


def figure():
    """Left: 24 tokens with 48 features, two of which are about 40 and -25 in every token; all others are of size 1. Middle:
    the codes of all columns, each row scaled by its largest magnitude. The 46 regular features share the 23 codes from -11 to 11.
    Right: the two columns are taken out and multiplied in float. Scaled by what is left, the regular features use 220 of the 255 codes, and
    their rounding error is 16 times smaller."""
    import matplotlib.pyplot as plt

    x = activations()
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.3), layout="constrained")
    panels = [("activations", x, 40)]
    for name, threshold in (("codes, all columns", 0.0), ("codes, two taken out", 6.0)):
        codes, _, out = vectorwise_quantize(x, threshold=threshold)
        shown = codes.astype(float)
        shown[:, out] = np.nan
        panels.append((name, shown, 127))
    for ax, (name, table, largest) in zip(axes, panels, strict=True):
        ax.imshow(table, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
        ax.set_title(name, fontsize=11)
        ax.set(xlabel="feature", xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.set_facecolor("#8a8a8a")
    axes[0].set_ylabel("token")
    return fig
