"""Evidence for sigmoid attention: its size at initialization, its rows' independence, and two numbers on its slope."""

import numpy as np

from refnorm.attention import (
    row_mass,
    scaled_dot_product_attention,
    scaled_dot_product_attention_vjp,
    sigmoid_attention,
    sigmoid_attention_vjp,
)
from refnorm.claims import Claim

LENGTHS = (64, 256, 1024)
DEPTH = 64
SEEDS = range(3)
KINDS = {
    "softmax": scaled_dot_product_attention,
    "sigmoid, bias -log n": sigmoid_attention,
    "sigmoid, no bias": lambda *arrays: sigmoid_attention(*arrays, bias=0.0),
}


def mean_norms(kind, shift):
    """Return the mean length of an output row for every sequence length."""
    found = []
    for length in LENGTHS:
        norms = []
        for seed in SEEDS:
            query, key, value = np.random.default_rng([seed, length]).standard_normal((3, length, DEPTH))
            norms.append(np.linalg.norm(KINDS[kind](query, key, value + shift), axis=-1).mean())
        found.append(float(np.mean(norms)))
    return found


def exponent(norms):
    return float(np.polyfit(np.log(LENGTHS), np.log(norms), 1)[0])


def slope_growth(vjp, seed):
    """Return how much the largest singular value of the Jacobian of self-attention grows from tokens of norm 1 to norm 8."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((8, 4))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    to_query, to_key, to_value = rng.standard_normal((3, 4, 4)) / 2
    largest = []
    for size in (1.0, 8.0):
        x = size * tokens
        y, pullback = vjp(x @ to_query, x @ to_key, x @ to_value)
        rows = []
        for unit in np.eye(y.size):
            dquery, dkey, dvalue = pullback(unit.reshape(y.shape))
            rows.append((dquery @ to_query.T + dkey @ to_key.T + dvalue @ to_value.T).ravel())
        largest.append(np.linalg.norm(np.array(rows), 2))
    return largest[1] / largest[0]


def norm_claim(shift):
    slopes = {kind: exponent(mean_norms(kind, shift)) for kind in KINDS}
    least = 0.9 if shift else 0.4
    distance = abs(slopes["sigmoid, bias -log n"] - slopes["softmax"])
    values = "values of mean 1" if shift else "centred values"
    return Claim(
        statement="Without a bias the output of sigmoid attention grows with the sequence length n; the bias -log n holds "
        f"it at softmax's size ({values}).",
        expected=f"exponent of the mean row norm in n without a bias at least {least}; with it within 0.1 of softmax's",
        holds=slopes["sigmoid, no bias"] >= least and distance <= 0.1,
        figures={f"exponent, {kind}": slope for kind, slope in slopes.items()},
    )


def mass_claim():
    length = LENGTHS[-1]
    query, key, unit = np.zeros((1, 4)), np.zeros((length, 4)), np.eye(length)
    mass, heavy = (float(row_mass(sigmoid_attention(query, key, unit, bias=b))[0]) for b in ("-log_n", 0.0))
    return Claim(
        statement="At scores of 0 the bias -log n brings the sum of a row's weights to n / (n + 1).",
        expected="error below 1e-12; at n = 1024 at least 100 times smaller than without the bias",
        holds=abs(mass - length / (length + 1)) < 1e-12 and heavy / mass >= 100,
        figures={"sum of weights": mass, "sum without bias": heavy, "ratio": heavy / mass},
    )


def independence_claim():
    rng = np.random.default_rng(5)
    query, key = rng.standard_normal((16, 8)), rng.standard_normal((32, 8))
    moved = key.copy()
    moved[7] += 1
    unit, others = np.eye(32), np.arange(32) != 7
    changes = {
        name: float(np.abs((attend(query, moved, unit) - attend(query, key, unit))[:, others]).max())
        for name, attend in (("sigmoid", sigmoid_attention), ("softmax", scaled_dot_product_attention))
    }
    growth = {
        name: float(np.median([slope_growth(vjp, seed) for seed in range(20)]))
        for name, vjp in (("softmax", scaled_dot_product_attention_vjp), ("sigmoid", sigmoid_attention_vjp))
    }
    return Claim(
        statement="Keys do not compete: moving one key leaves all other weights of sigmoid attention as they are.",
        expected="largest change of the other weights exactly 0; softmax's above 1e-3",
        holds=changes["sigmoid"] == 0 and changes["softmax"] > 1e-3,
        figures={
            "change of the other weights, sigmoid": changes["sigmoid"],
            "change of the other weights, softmax": changes["softmax"],
            "growth of the Jacobian's norm from token norm 1 to 8, median of 20, sigmoid": growth["sigmoid"],
            "growth of the Jacobian's norm from token norm 1 to 8, median of 20, softmax": growth["softmax"],
        },
    )


def claims() -> list[Claim]:
    return [norm_claim(0.0), norm_claim(1.0), mass_claim(), independence_claim()]


def figure():
    """Mean length of an output row against sequence length, for centred values (left) and values of mean 1 (right)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharex=True)
    for axis, shift in zip(axes, (0.0, 1.0), strict=True):
        for kind in KINDS:
            axis.loglog(LENGTHS, mean_norms(kind, shift), "o-", label=kind)
        axis.set(title="values of mean 1" if shift else "centred values", xlabel="sequence length")
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axis.minorticks_off()
    axes[0].set_ylabel("mean norm of an output row")
    axes[1].legend()
    return fig
