"""The variance of float32 numbers with a common offset, computed in four ways."""

import numpy as np

SIZE = 1024


def one_pass(x):
    """Mean of the squares less the square of the mean."""
    return float((x * x).mean(dtype=np.float32) - x.mean(dtype=np.float32) ** 2)


def two_pass(x):
    """Mean square of the differences from a float32 mean."""
    centred = x - x.mean(dtype=np.float32)
    return float((centred * centred).mean(dtype=np.float32))


def two_pass_wide_mean(x):
    """The same, with the mean summed and kept in float64."""
    centred = x - x.mean(dtype=np.float64)
    return float((centred * centred).mean())


def welford(x):
    """Running mean and sum of squares, updated with each number, in float32."""
    mean, squares = np.float32(0), np.float32(0)
    for count, value in enumerate(x, 1):
        step = value - mean
        mean = mean + step / np.float32(count)
        squares = squares + step * (value - mean)
    return float(squares) / len(x)


WAYS = {
    "one pass": one_pass,
    "Welford, float32": welford,
    "two passes, float32 mean": two_pass,
    "two passes, float64 mean": two_pass_wide_mean,
}


def errors(seeds=range(5)):
    """Return the offsets and, by way, the median relative error over the seeds."""
    offsets = np.logspace(0, 7, 29)
    found = {name: np.empty((len(offsets), len(seeds))) for name in WAYS}
    for column, seed in enumerate(seeds):
        noise = np.random.default_rng(seed).standard_normal(SIZE)
        for row, offset in enumerate(offsets):
            # The data are what is left after rounding to float32: their exact variance is the truth.
            x = (noise + offset).astype(np.float32)
            exact = float(x.astype(np.longdouble).var())
            for name, way in WAYS.items():
                found[name][row, column] = abs(way(x) - exact) / exact
    return offsets, {name: np.median(values, axis=1) for name, values in found.items()}


def figure():
    """Relative error of the variance of 1024 float32 numbers of standard deviation 1, by their common offset
    (median of five samples). The one-pass formula loses twice as many digits as the offset has."""
    import matplotlib.pyplot as plt

    offsets, found = errors()
    fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for (name, values), style in zip(found.items(), ("-", "-.", "--", ":"), strict=True):
        ax.loglog(offsets, np.maximum(values, 1e-17), style, label=name)
    ax.axhline(1, color="#8a8a8a", linewidth=0.8)
    ax.text(offsets[-1], 0.9, "no digit right", color="#8a8a8a", fontsize=8, ha="right", va="top")
    ax.set(xlabel="offset / standard deviation", ylabel="relative error")
    ax.set_ylim(top=1e9)
    ax.legend(ncols=2, loc="upper left")
    return fig
