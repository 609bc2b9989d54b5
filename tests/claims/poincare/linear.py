"""Evidence for the Poincaré linear layer: what its initialisation does to the length of features."""

import numpy as np

from refnorm.claims import Claim
from refnorm.poincare import exp0, fully_connected, init_baseline, init_identity, mlr

SIZE, POINTS, LAYERS, SEEDS = 64, 100, 20, range(5)


def claims() -> list[Claim]:
    return [norm_preservation(), wrong_conformal_factor(), signed_distances()]


def start(rng):
    return exp0(0.5 * rng.standard_normal((POINTS, SIZE)) / 8, 1.0)


def lengths(identity, seed):
    """Mean length of the features after each layer, relative to the input's."""
    rng = np.random.default_rng(seed)
    x = start(rng)
    found = [np.linalg.norm(x, axis=-1).mean()]
    for _ in range(LAYERS):
        parameters = init_identity(SIZE, SIZE) if identity else init_baseline(SIZE, SIZE, rng)
        x = fully_connected(x, *parameters, 1.0)
        found.append(np.linalg.norm(x, axis=-1).mean())
    return np.array(found) / found[0]


def norm_preservation() -> Claim:
    identity, baseline = (np.stack([lengths(kind, seed) for seed in SEEDS]) for kind in (True, False))
    return Claim(
        statement="With half the identity as weight, twenty layers keep the length of the features; with the earlier "
        "random weights they collapse to the origin (64 coordinates, 5 seeds).",
        expected="mean length after 20 layers over before: within [0.999, 1.001], against below 1e-6",
        holds=bool(np.abs(identity[:, -1] - 1).max() <= 1e-3 and baseline[:, -1].max() < 1e-6),
        figures={
            "identity: largest |ratio - 1| after 20 layers": float(np.abs(identity[:, -1] - 1).max()),
            "baseline: ratio after 1 layer, smallest": float(baseline[:, 1].min()),
            "baseline: ratio after 1 layer, largest": float(baseline[:, 1].max()),
            "baseline: largest ratio after 20 layers": float(baseline[:, -1].max()),
        },
    )


def wrong_conformal_factor() -> Claim:
    """The layer with 2 (1 - c|x|^2) in place of 2 / (1 - c|x|^2), weight I/2, curvature 1."""
    rng = np.random.default_rng(0)
    x = start(rng)
    factor = 2 * (1 - (x * x).sum(axis=-1, keepdims=True))
    w = factor * x
    y = w / (1 + np.sqrt(1 + (w * w).sum(axis=-1, keepdims=True)))
    right = fully_connected(x, *init_identity(SIZE, SIZE), 1.0)
    wrong_change = float(np.abs(np.linalg.norm(y, axis=-1) / np.linalg.norm(x, axis=-1) - 1).min())
    right_change = float(np.abs(right - x).max())
    return Claim(
        statement="Half the identity is the identity of the ball because of 2/(1 - c|x|^2); multiplying by "
        "1 - c|x|^2 instead, as in published code, shortens every feature.",
        expected="largest change below 1e-14; with the other factor every length changes by more than 1e-2",
        holds=right_change < 1e-14 and wrong_change > 1e-2,
        figures={"right factor, largest change": right_change, "other factor, smallest change of length": wrong_change},
    )


def signed_distances() -> Claim:
    rng = np.random.default_rng(1)
    c = 0.5
    x = exp0(rng.standard_normal((200, 10)), c)
    weight, bias = 0.2 * rng.standard_normal((10, 7)), 0.3 * rng.standard_normal(7)
    y = fully_connected(x, weight, bias, c, project=False)
    # Distance to the hyperplane y_k = 0 through the origin, half the logit of the k-th unit vector.
    to_planes = mlr(y, np.eye(7) / 2, np.zeros(7), c)
    logits = mlr(x, weight, bias, c)
    error = float((np.abs(to_planes - logits) / (1e-3 + np.abs(logits))).max())
    return Claim(
        statement="The output is the point whose signed distances to the coordinate hyperplanes are the logits.",
        expected="largest relative difference below 1e-11",
        holds=error < 1e-11,
        figures={"largest relative difference": error},
    )


def figure():
    """Mean length of the features by layer, for the two initialisations."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for identity, label, colour in ((True, "half the identity", "tab:blue"), (False, "random, earlier", "tab:orange")):
        for seed in SEEDS:
            ax.semilogy(lengths(identity, seed), color=colour, lw=1, label=label if seed == 0 else None)
    ax.set(xlabel="layer", ylabel="mean length, relative to the input", xticks=range(0, LAYERS + 1, 4))
    ax.legend(frameon=False)
    return fig
