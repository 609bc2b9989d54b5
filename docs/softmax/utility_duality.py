"""One utility at all scales: the order stays, the probabilities do not."""

import numpy as np

from refnorm.softmax import fit_inverse_temperature, reestimate_probability, soft_regret, utility_sgd_step

FREQUENCIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b")


def learned():
    """A table of utilities after 400 choices, and 2000 choices that were held out."""
    rng = np.random.default_rng(0)
    utility = np.zeros(5)
    for choice in rng.choice(5, size=400, p=FREQUENCIES):
        utility = utility_sgd_step(utility, int(choice), step=0.005)
    return utility, rng.choice(5, size=2000, p=FREQUENCIES)


def figure():
    r"""Five utilities, learned from 400 choices with a step that was too small. Left: their softmax at every scale $\beta$. The curves never cross, so the
    best alternative and the whole order are the same everywhere; the probabilities run from all equal to all or nothing. Dotted: the frequencies with which
    the alternatives are chosen. The plain softmax, $\beta=1$, is too flat; at the scale fitted to held-out choices (vertical line, 4.0) all five
    curves pass within 0.04 of their frequencies. Right: what is fitted, the mean loss of the held-out choices."""
    import matplotlib.pyplot as plt

    utility, choices = learned()
    rows = np.repeat(utility[None], len(choices), axis=0)
    best = fit_inverse_temperature(rows, choices).inverse_temperature
    scales = np.geomspace(0.1, 30, 60)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.1), layout="constrained", width_ratios=(1.5, 1))
    p = np.concatenate([reestimate_probability(utility[None], inverse_temperature=b) for b in scales])
    for curve, frequency, color in zip(p.T, FREQUENCIES, COLORS, strict=True):
        left.semilogx(scales, curve, color=color, linewidth=2)
        left.axhline(frequency, color=color, linestyle=":", linewidth=1.2)
    left.set(xlabel=r"scale $\beta$", ylabel="probability")
    losses = [soft_regret(b * rows, choices) for b in scales]
    right.semilogx(scales, losses, color="black", linewidth=2)
    right.set(xlabel=r"scale $\beta$", ylabel="mean loss, nats", ylim=(1.35, 2))
    for ax in (left, right):
        ax.axvline(best, color="#8a8a8a", linestyle="--")
        ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        ax.minorticks_off()
    return fig
