"""Rounding the two weights of one output, and the penalty that makes relaxed roundings decide."""

import numpy as np

from refnorm.quantizers import (
    rectified_sigmoid_inverse,
    rectified_sigmoid_vjp,
    rounding_regulariser,
    rounding_regulariser_vjp,
    soft_quantize_vjp,
)

WEIGHT, ONE = np.array([[1.4], [2.35]]), np.ones(1)
PENALTY, STEPS, RATE = 0.3, 600, 1.0


def moments():
    """Return the second moments of inputs that move together."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 2)) @ np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.0]])).T
    return x.T @ x / len(x)


def path(h2):
    """Descend on output error and, after a fifth of the steps, penalty; return the relaxed weights by step."""
    v, places = rectified_sigmoid_inverse(WEIGHT - np.floor(WEIGHT)), []
    for step in range(STEPS):
        soft, pull = soft_quantize_vjp(WEIGHT, ONE, v, bits=4)
        places.append(soft[:, 0])
        dv = pull(2 * h2 @ (soft - WEIGHT))[2]
        if step >= STEPS / 5:
            h, pull_h = rectified_sigmoid_vjp(v)
            exponent = 2 + 9 * (1 + np.cos(np.pi * (step / STEPS - 0.2) / 0.8))
            (dh,) = rounding_regulariser_vjp(h, exponent=exponent)[1](np.array(PENALTY))
            dv = dv + pull_h(dh)[0]
        v = v - RATE * dv
    return np.array(places)


def figure():
    r"""Left: the plane of two weights whose inputs move together. The weights, the cross, lie between four pairs of codes, and the
    grey curves are levels of the output's squared error. The nearest pair (square) has an error of 0.54; rounding the one
    up and the other down has 0.10 and 0.11, because the two errors nearly cancel. Descent on relaxed weights, in blue, follows the
    valley to the better one. Right: the penalty for three exponents; a large one holds only what is nearly 0 or 1, a small one
    drives everything to a decision."""
    import matplotlib.pyplot as plt

    h2 = moments()
    fig, (plane, penalty) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained", width_ratios=(1, 1))
    ends = np.meshgrid(np.linspace(0.6, 2.4, 90), np.linspace(1.6, 3.4, 90))
    offset = np.stack([ends[0] - WEIGHT[0], ends[1] - WEIGHT[1]], axis=-1)
    error = np.einsum("...i,ij,...j->...", offset, h2, offset)
    plane.contour(*ends, error, levels=[0.03, 0.105, 0.25, 0.54, 1, 1.5, 2.5], colors="#8a8a8a", linewidths=0.8)
    for code, marker in (((1, 2), "s"), ((2, 2), "o"), ((1, 3), "o"), ((2, 3), "o")):
        value = (code - WEIGHT[:, 0]) @ h2 @ (code - WEIGHT[:, 0])
        plane.plot(*code, marker, color="#d62728" if marker == "s" else "black", markersize=7)
        plane.annotate(f"{value:.2f}", code, xytext=(8, 5), textcoords="offset points", fontsize=10)
    plane.plot(*path(h2).T, color="#1f77b4", linewidth=2.2)
    plane.plot(*WEIGHT[:, 0], "x", color="black", markersize=9, markeredgewidth=2)
    plane.set(xlabel="$w_1/s$", ylabel="$w_2/s$", xticks=[1, 2], yticks=[2, 3], aspect="equal", xlim=(0.6, 2.4))
    h = np.linspace(0, 1, 201)
    for exponent, style in ((20, "-"), (6, "--"), (2, ":")):
        values = [float(rounding_regulariser(np.array([x]), exponent=exponent)) for x in h]
        penalty.plot(h, values, style, color="#9467bd", linewidth=1.8, label=rf"$\beta={exponent}$")
    penalty.set(xlabel="$h$", ylabel="penalty", xticks=[0, 0.5, 1], yticks=[0, 1])
    penalty.legend(loc="lower center")
    return fig
