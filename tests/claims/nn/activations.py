"""Evidence for GELU: the expectation that defines it, and how far the tanh form is from it."""

import numpy as np

from refnorm.claims import Claim
from refnorm.nn import gelu, gelu_vjp, relu, relu_vjp

DRAWS = 200_000


def claims() -> list[Claim]:
    rng = np.random.default_rng(0)
    x = np.linspace(-3, 3, 25)
    kept = rng.standard_normal((DRAWS, 1)) <= x
    deviation = np.abs((x * kept).mean(axis=0) - gelu(x))
    # Standard error of the mean of x times a Bernoulli variable.
    error = np.abs(x) * np.sqrt(kept.mean(axis=0) * (1 - kept.mean(axis=0)) / DRAWS) + 1e-12
    worst = float((deviation / error).max())
    grid = np.linspace(-10, 10, 2_000_001)
    distance = np.abs(gelu(grid) - gelu(grid, approximate="tanh"))
    return [
        Claim(
            statement="GELU is the expected value of a unit that keeps its input with the probability that a "
            "standard normal variable is below it (section 2 of the paper).",
            expected="at 25 points, mean of 200000 draws within 4 standard errors",
            holds=worst < 4,
            figures={"largest deviation in standard errors": worst},
        ),
        Claim(
            statement="The tanh form is an approximation, not the same function.",
            expected="largest difference between 4e-4 and 5e-4",
            holds=bool(4e-4 < distance.max() < 5e-4),
            figures={"largest difference": float(distance.max()), "at |x|": float(abs(grid[distance.argmax()]))},
        ),
    ]


def figure():
    """ReLU and GELU (left) and their derivatives (right) between -4 and 4."""
    import matplotlib.pyplot as plt

    x = np.linspace(-4, 4, 801)
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for label, value, f_vjp in (("relu", relu(x), relu_vjp), ("gelu", gelu(x), gelu_vjp)):
        axes[0].plot(x, value, label=label)
        axes[1].plot(x, f_vjp(x)[1](np.ones_like(x))[0], label=label)
    axes[0].set(title="value", xlabel="x")
    axes[1].set(title="derivative", xlabel="x")
    axes[0].legend()
    return fig
