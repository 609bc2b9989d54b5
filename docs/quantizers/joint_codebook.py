"""Four values for the weights of a layer: on a grid, in one codebook, and in a codebook for each group of neurons."""

import itertools

import numpy as np

from refnorm.quantizers import affine_qparams, dequantize, group_neurons, kmeans_codebook

INPUTS, NEURONS, GROUPS, CODEWORDS = 15, 24, 4, 4


def weights():
    """Return the weights of neurons that differ in spread, one neuron a column."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((INPUTS, NEURONS)) * np.exp(0.7 * rng.standard_normal(NEURONS)) / 8


def choices(weight):
    """Return by name the weights in the order of their columns, the ends of the groups, and each group's values."""
    everything = np.array([0, NEURONS])
    grid = dequantize(np.arange(-2, 2), *affine_qparams(weight, bits=2, method="mse"))
    order, ends = group_neurons(weight, GROUPS)
    ordered = weight[:, order]
    books = [kmeans_codebook(ordered[:, a:b], CODEWORDS)[0] for a, b in itertools.pairwise(ends)]
    return {
        "even grid": (weight, everything, [grid]),
        "one codebook": (weight, everything, [kmeans_codebook(weight, CODEWORDS)[0]]),
        "reordered, four codebooks": (ordered, ends, books),
    }


def squared_error(weight, ends, books):
    """Return the squared error of the nearest values over the square of the weights."""
    error = 0.0
    for book, a, b in zip(books, ends[:-1], ends[1:], strict=True):
        error += (np.abs(weight[:, a:b, None] - book).min(axis=-1) ** 2).sum()
    return error / (weight**2).sum()


def figure():
    """The weights of 24 neurons, one column of dots each, and the four values that 2 bits can name, in red. Above stands the squared
    error of the nearest values over the square of the weights. K-means places four values a little better than an even grid does, and
    no four values suit both narrow and wide neurons. Sorted by spread and cut into four groups, each with four values of its own,
    the same 2 bits a weight leave two thirds of the error. Learning begins there, and moves values and choices by the layer's
    output."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained", sharey=True)
    for ax, (name, (weight, ends, books)) in zip(axes, choices(weights()).items(), strict=True):
        ax.plot(np.tile(np.arange(NEURONS) + 0.5, INPUTS), weight.ravel(), ".", color="#8a8a8a", markersize=3)
        for book, a, b in zip(books, ends[:-1], ends[1:], strict=True):
            ax.hlines(book, a + 0.1, b - 0.1, color="#d62728", linewidth=2)
        ax.set_title(f"{name}\n{squared_error(weight, ends, books):.2f}", fontsize=10)
        ax.set(xlabel="neuron", xticks=[])
        ax.grid(visible=False)
    axes[0].set_ylabel("weight")
    return fig
