"""What rounding ``x - max(x)`` costs a float32 softmax."""

import numpy as np


def worst_ulps():
    """Return bin edges of max - x and, by variant, the worst error of exp in units in the last place."""
    rng = np.random.default_rng(0)
    top = rng.uniform(1, 4, 400_000).astype(np.float32)
    x = (top - rng.uniform(0, 85, top.shape)).astype(np.float32)
    exact = np.exp(x.astype(np.float64) - top.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    # Only the subtraction is rounded to float32; exp itself is taken in float64, so that its error is not seen.
    rounded = np.exp((x - top).astype(np.float64))
    shifted = rounded.astype(np.float32)
    carried = np.exp((x - top).astype(np.float64) + residual(x, top)).astype(np.float32)
    distance = top.astype(np.float64) - x.astype(np.float64)
    edges = np.arange(0, 86)
    which = np.digitize(distance, edges) - 1
    found = {}
    for name, values in (("x - max, rounded", shifted), ("rounding error carried along", carried)):
        ulps = np.abs(values - exact) / unit
        found[name] = np.array([ulps[which == i].max() for i in range(len(edges) - 1)])
    return edges, found


def residual(x, top):
    """The rounding error of ``x - top``, exactly (Knuth's TwoSum)."""
    difference = x - top
    virtual = difference - x
    return ((x - (difference - virtual)) - (top + virtual)).astype(np.float64)


def figure():
    """Worst error of exp(x - max) in float32, by distance from the maximum. Rounding the difference costs half a
    unit in its last place, which exp turns into a relative error that doubles with every octave of the distance;
    with the rounding error carried along, half an ULP is left."""
    import matplotlib.pyplot as plt

    edges, found = worst_ulps()
    fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for (name, values), style in zip(found.items(), ("-", "--"), strict=True):
        ax.stairs(values, edges, label=name, linestyle=style, linewidth=1.6)
    ax.set(xlabel="max - x", ylabel="worst error, ULP", xticks=[0, 8, 16, 32, 64, 85], yticks=[0, 4, 8, 16, 32, 64])
    ax.legend()
    return fig
