"""A picture written as a combination of pictures that nobody stores, and what an adapter of a layer has to store."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm.quantizers import BasisGenerator, parameter_count

COUNTS = (4, 16, 48, 64)


def combined(digit, n_basis):
    """Return the combination of the first random bases that is nearest to a digit."""
    generator = BasisGenerator(seed=2024, shape=digit.shape, n_basis=n_basis)
    bases = generator.bases(0, n_basis).reshape(n_basis, -1).astype(np.float64)
    coefficients = np.linalg.lstsq(bases.T, digit.ravel(), rcond=None)[0]
    return generator.combine(coefficients)


def figure():
    r"""Left: a digit of 64 pixels, a random picture made from a seed, and the combinations of 4, 16, 48 and 64 such pictures
    that come nearest to the digit, with the share of its squared norm that they have. Only the seed and the coefficients are
    stored. Their number is free: each one more brings the combination closer, and as many as there are pixels leave nothing. Right: the numbers stored for a layer
    with $n$ inputs and $n$ outputs. A low-rank adapter grows with $n$ and with its rank, and at rank 1 it can shrink no
    further; with random bases the count is whatever one chooses."""
    import matplotlib.pyplot as plt

    digit = load_digits().images[3] / 16
    pictures = {"digit": digit, "basis": BasisGenerator(2024, (8, 8), 1).bases(0, 1)[0]}
    for n in COUNTS:
        found = combined(digit, n)
        share = 1 - ((found - digit) ** 2).sum() / (digit**2).sum()
        pictures[f"{n}: {share:.0%}"] = found
    fig = plt.figure(figsize=(7, 2.9), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(3, 3.2))
    axes = left.subplots(2, 3)
    for ax, (name, picture) in zip(axes.flat, pictures.items(), strict=True):
        ax.imshow(picture, cmap="PuOr_r", vmin=-1, vmax=1)
        ax.set_title(name, fontsize=10)
    for ax in axes.flat:
        ax.set_axis_off()
    ax, sizes = right.subplots(), 2 ** np.arange(5, 15)
    for rank, style in ((16, "-."), (4, "--"), (1, "-")):
        counts = [parameter_count((n, n), rank=rank) for n in sizes]
        ax.loglog(sizes, counts, style, color="#1f77b4")
        ax.annotate(f"rank {rank}", (sizes[-1], counts[-1]), (4, -4), textcoords="offset points")
    for n_basis, style, name in ((1024, ":", "2048"), (32, "-", "64 coefficients")):
        counts = [parameter_count((n, n), n_basis=(n_basis, n_basis)) for n in sizes]
        ax.loglog(sizes, counts, style, color="#d62728", linewidth=2)
        ax.annotate(name, (sizes[-1], counts[-1]), (0, -13), textcoords="offset points", ha="right")
    ax.set(xlabel="$n$", ylabel="numbers stored", xticks=[100, 1000, 10000], ylim=(20, None), xlim=(30, 1.3e5))
    return fig
