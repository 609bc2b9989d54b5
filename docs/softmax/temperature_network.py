"""The temperature at which each row of logits lies on a sphere of one radius."""

import numpy as np

from refnorm.softmax import softmax, solve_temperature

RADIUS = 0.8
LOOKS = ((0.4, "#1f77b4", "-"), (1.2, "#2ca02c", "--"), (4.0, "#d62728", "-."))


def divergence(p):
    """KL divergence of a distribution from the uniform one."""
    return np.log(p.shape[-1]) + (p * np.log(p)).sum(axis=-1)


def figure():
    r"""Three contexts, whose 20 logits have the standard deviations 0.4 (blue, solid), 1.2 (green, dashed) and 4 (red, dash-dotted). Left: at the
    common temperature 1 the softmax of the first is nearly flat, that of the last nearly one word. Middle: the divergence from the uniform distribution
    falls as the temperature rises, for each context elsewhere; the best temperature is where it crosses the radius $\rho=0.8$ (dotted). Right: with a
    temperature each, 0.29, 0.72 and 3.6, all three are equally sharp."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(4)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7, 2.9), layout="constrained")
    grid = np.geomspace(0.08, 8, 60)
    rank = np.arange(1, 21)
    for spread, color, style in LOOKS:
        row = rng.standard_normal((1, 20))
        row = np.sort(spread * (row - row.mean()) / row.std())[:, ::-1]
        best = solve_temperature(row, radius=RADIUS).temperature
        left.plot(rank, softmax(row)[0], style, color=color)
        middle.semilogx(grid, divergence(softmax(row / grid[:, None])), style, color=color)
        middle.plot(best, RADIUS, "o", color=color)
        right.plot(rank, softmax(row / best)[0], style, color=color)
    middle.axhline(RADIUS, color="#8a8a8a", linestyle=":", linewidth=2)
    left.set(xlabel="rank of the word", ylabel="probability", ylim=(-0.03, 1), xticks=[1, 10, 20])
    right.set(xlabel="rank of the word", ylim=(-0.03, 1), xticks=[1, 10, 20])
    middle.set(xlabel=r"temperature $\tau$", ylabel="divergence, nats")
    middle.set_xticks([0.1, 1, 8], ["0.1", "1", "8"])
    middle.minorticks_off()
    return fig
