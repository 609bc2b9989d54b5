"""Gates whose weight and temperature are multiplied by one factor, and how likely they make the same data."""

import numpy as np

from refnorm.softmax import TemperatureMoE, moe_nll, temperature_gate

WEIGHT, TEMPERATURE = 2.0, 0.4
LOOKS = ((0.25, "#2ca02c", 6, "-"), (1, "#1f77b4", 3, "-"), (4, "#d62728", 2, "--"))


def gate(x, factor, activation):
    """Share of the first of two experts, whose gate weight and temperature are both multiplied by ``factor``."""
    weight = np.array([[factor * WEIGHT], [0.0]])
    return temperature_gate(x[:, None], weight, np.zeros(2), factor * TEMPERATURE, activation=activation)[:, 0]


def losses(factors, activation):
    """Mean negative log-likelihood of 2000 points from the mixture with factor 1."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, 2000)
    first = rng.random(len(x)) < gate(x, 1, activation)
    slope, shift, variance = np.array([[2.0], [-2.0]]), np.array([1.0, -1.0]), np.array([0.1, 0.2])
    expert = np.where(first, 0, 1)
    y = slope[expert, 0] * x + shift[expert] + np.sqrt(variance[expert]) * rng.standard_normal(len(x))
    found = []
    for c in factors:
        weight = np.array([[c * WEIGHT], [0.0]])
        params = TemperatureMoE(weight, np.zeros(2), np.float64(c * TEMPERATURE), slope, shift, variance)
        found.append(moe_nll(x[:, None], y, params, activation=activation).mean())
    return np.array(found)


def figure():
    r"""Share of the first of two experts when the gate's weight 2 and its temperature 0.4 are both multiplied by $c$. Left: with a linear
    gate all three curves are one, so no data can tell them apart. Middle: with a sigmoid before the division each $c$ is another gate. Right: mean
    loss of 2000 points that were drawn with $c=1$, above its value there: a flat line for the linear gate, a valley at the truth
    for the sigmoid one."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(7, 2.8), layout="constrained")
    x = np.linspace(-2, 2, 81)
    factors = np.geomspace(0.25, 4, 33)
    for ax, activation, style in ((axes[0], "identity", "--"), (axes[1], "sigmoid", "-")):
        for c, color, width, dash in LOOKS:
            ax.plot(x, gate(x, c, activation), dash, color=color, linewidth=width, label=f"c = {c:g}")
        loss = losses(factors, activation)
        axes[2].plot(factors, loss - loss[16], style, color="black", linewidth=2)
        ax.set(xlabel="input x", ylim=(-0.03, 1.03))
    axes[0].set_title("linear gate", fontsize=11)
    axes[1].set_title("sigmoid gate", fontsize=11)
    axes[0].set_ylabel("share of expert 1")
    axes[1].legend(fontsize=10, handlelength=1.2, loc="lower right", borderaxespad=0)
    axes[2].text(2.3, 0.0012, "linear")
    axes[2].text(0.55, 0.027, "sigmoid")
    axes[2].set(xlabel="factor c", ylabel="loss, nats", xscale="log")
    axes[2].set_xticks([0.25, 1, 4], ["¼", "1", "4"])
    axes[2].minorticks_off()
    return fig
