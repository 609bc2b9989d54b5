"""How good a numerical derivative can get, by method and step."""

import numpy as np


def f(x):
    """One unit of a layer norm of (x, 1, -2), which is analytic."""
    centred = np.array([x, 1.0, -2.0]) - (x - 1) / 3
    return centred[0] / np.sqrt((centred * centred).mean() + 1e-5)


def slope(x):
    centred = np.array([x, 1.0, -2.0]) - (x - 1) / 3
    inv_std = 1 / np.sqrt((centred * centred).mean() + 1e-5)
    x_hat = centred * inv_std
    return inv_std * (1 - 1 / 3 - x_hat[0] ** 2 / 3)


def errors(at=0.7):
    """Return the steps and, by method, the relative error of the derivative at ``at``."""
    exact = slope(at)
    steps = np.logspace(0, -16, 65)
    central = [(f(at + h) - f(at - h)) / (2 * h) for h in steps]
    halved = [(f(at + h / 2) - f(at - h / 2)) / h for h in steps]
    found = {
        "forward difference": [(f(at + h) - f(at)) / h for h in steps],
        "central difference": central,
        "Richardson, one level": [b + (b - a) / 3 for a, b in zip(central, halved, strict=True)],
        "complex step": [f(at + 1j * h).imag / h for h in steps],
    }
    return steps, {name: np.abs(np.array(values) - exact) / abs(exact) for name, values in found.items()}


def figure():
    """Relative error of four numerical derivatives as the step shrinks. Differences fall along their truncation
    error, reach a best step, and then lose digits to cancellation; the complex step only falls."""
    import matplotlib.pyplot as plt

    steps, by_method = errors()
    fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for (name, values), style in zip(by_method.items(), ("-", "--", "-.", ":"), strict=True):
        ax.loglog(steps, np.maximum(values, 1e-17), style, label=name)
    ax.axhline(2**-53, color="#8a8a8a", linewidth=0.8)
    ax.text(1, 2**-53 * 1.4, "unit roundoff", color="#8a8a8a", fontsize=8, va="bottom")
    ax.set(xlabel="step h (shrinking to the right)", ylabel="relative error")
    ax.invert_xaxis()
    ax.legend()
    return fig
