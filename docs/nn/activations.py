"""The gates behind ReLU, GELU and SiLU, and the random gate whose mean GELU is."""

import numpy as np
from scipy.special import ndtr

from refnorm import nn


def figure():
    r"""Left, what the input is multiplied by: ReLU's gate is 0 or 1, GELU's is the probability that a standard normal number is below the
    input, SiLU's is the logistic function. Right, 300 inputs, each kept or set to 0 at random with GELU's probability (dots):
    far to the left nearly all are dropped, far to the right nearly all are kept. GELU is their mean at every place, and
    nothing in it is random; it rounds ReLU's corner, and dips below 0 where a few negative inputs would still be kept."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    x = np.linspace(-3, 3, 241)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9), layout="constrained")
    left.plot(x, x > 0, "--", color="black")
    left.plot(x, ndtr(x), color="#d62728", linewidth=2)
    left.plot(x, nn.sigmoid(x), "-.", color="#1f77b4", linewidth=2)
    left.text(0.12, 1.04, "ReLU")
    left.text(-0.95, 0.04, "GELU", color="#d62728")
    left.text(-2.2, 0.22, "SiLU", color="#1f77b4")
    left.set(xlabel="input", ylabel="gate", ylim=(-0.1, 1.2))

    points = rng.uniform(-3, 3, 300)
    right.plot(points, points * (rng.random(300) < ndtr(points)), ".", color="#8a8a8a", markersize=4)
    right.plot(x, nn.relu(x), "--", color="black")
    right.plot(x, nn.gelu(x), color="#d62728", linewidth=2.5)
    right.set(xlabel="input", ylabel="output")
    return fig
