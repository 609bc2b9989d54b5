"""How many units in the last place a float32 softmax loses, against the distance of a logit from the maximum."""

import numpy as np
from scipy import special

from refnorm import softmax

EDGES = 2 ** np.arange(-1, 6.4, 0.125)


def shifted(x):
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def unshifted(x):
    exps = np.exp(x)
    return exps / exps.sum(axis=-1, keepdims=True)


def worst(y, truth, distance):
    """Return the largest error in units in the last place, in each bin of distances."""
    ulps = np.abs(y - truth) / np.spacing(truth.astype(np.float32))
    bins = np.digitize(distance, EDGES)
    return np.array([ulps[bins == i].max() for i in range(1, len(EDGES))])


def figure():
    r"""Worst error of four float32 softmaxes against the distance of a logit from the largest one, both axes
    logarithmic; in each of sixteen rows the largest logit is between 0.5 and 1, and the others reach down to $-80$. Whoever forms $x-\max x$ in float32, as NumPy users
    and SciPy do, climbs a staircase: at distances from $2^k$ to $2^{k+1}$ the difference is rounded by up to $2^{k-24}$,
    which is up to $2^k$ units in the last place of the result
    (dashed), 64 at the top, besides the two or three that the exponential costs. The exponential and the sum are
    not to blame: without the shift the same two lines stay below 4 units, only that they overflow at $x=88.7$. Softmax
    by pairs needs no shift; with pairs in float64, rounded once at the end, it stays at half a unit everywhere."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    largest = rng.uniform(0.5, 1, (16, 1))
    x = (largest - np.exp(rng.uniform(np.log(0.01), np.log(81), (16, 8192)))).astype(np.float32)
    x[:, :1] = largest
    distance = x[:, :1] - x.astype(np.float64)
    truth = np.exp(-distance) / np.exp(-distance).sum(axis=-1, keepdims=True)
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = 2.0 ** np.arange(8)
    ax.stairs(steps[:-1], steps, baseline=None, color="#8a8a8a", linestyle="--", linewidth=1.5)
    for name, y, where, style in (
        ("NumPy: exp(x - max) / sum", shifted(x), (0.55, 36), {"color": "#d62728", "linewidth": 2.5}),
        ("scipy.special.softmax", special.softmax(x, axis=-1), (0.55, 22), {"color": "#ff7f0e", "linestyle": ":"}),
        ("NumPy: exp(x) / sum", unshifted(x), (21, 1.55), {"color": "#9467bd", "linestyle": "-."}),
        ("refnorm.softmax", softmax.softmax(x), (21, 0.57), {"color": "#1f77b4", "linewidth": 3}),
    ):
        ax.stairs(worst(y, truth, distance), EDGES, baseline=None, **{"linewidth": 2, **style})
        ax.text(*where, name, color=style["color"], va="bottom")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    powers = [0.5, 1, 2, 4, 8, 16, 32, 64]
    ax.set_xticks(powers, ["½", *map(str, powers[1:])])
    ax.set_yticks(powers, ["½", *map(str, powers[1:])])
    ax.set(xlim=(0.48, 90), ylim=(0.35, 90), xlabel="max(x) - x", ylabel="worst error in ULP")
    return fig
