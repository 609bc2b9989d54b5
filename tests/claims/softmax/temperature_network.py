"""Evidence for temperature networks: a predicted temperature beats the best fixed one; the exact one is on the sphere."""

import functools

import numpy as np
from scipy.special import rel_entr

from refnorm.claims import Claim
from refnorm.softmax import (
    init_tempnet,
    log_softmax,
    robust_temperature_loss_vjp,
    softmax,
    solve_temperature,
    tempnet,
    tempnet_vjp,
)
from refnorm.tree import tree_map

VOCABULARY, TRAIN, VALIDATION, TEST = 50, 600, 300, 500
BOUNDS = {"lowest": 0.05, "highest": 5.0}
HIDDEN, STEPS, RATE = 32, 200, 1e-2
RADII = (0.4, 0.8, 1.6)
FIXED = np.geomspace(0.05, 20, 60)
SEEDS = (0, 1)


def claims() -> list[Claim]:
    return [predicted(), sphere()]


def contexts(seed, readable=True):
    """Logits of a frozen model, true distributions, sampled targets, and the bit that tells which contexts are flat."""
    rng = np.random.default_rng(seed)
    n = TRAIN + VALIDATION + TEST
    scores, flat = rng.standard_normal((n, VOCABULARY)), rng.random(n) < 0.5
    truth = softmax(scores / np.where(flat, 2.0, 0.3)[:, None])
    # Flat contexts have larger logits, and a constant that softmax does not see but the network can read.
    logits = np.where(flat[:, None], 3 * scores + 3 * readable, scores)
    target = (rng.random((n, 1)) > np.cumsum(truth, axis=1)).sum(axis=1).clip(max=VOCABULARY - 1)
    return logits, truth, target, flat


def cross_entropy_at(logits, truth, temperature):
    return float(-(truth * log_softmax(logits / temperature)).sum(axis=1).mean())


def train(logits, target, radius, seed):
    params = init_tempnet(np.random.default_rng(seed), feature_dim=VOCABULARY, hidden=HIDDEN)
    first = second = tree_map(np.zeros_like, params)
    for step in range(1, STEPS + 1):
        temperature, network = tempnet_vjp(params, logits, **BOUNDS)
        _, loss = robust_temperature_loss_vjp(logits, target, temperature, radius=radius)
        grads, _ = network(loss(1.0)[1])
        first = tree_map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        scale = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        params = tree_map(lambda p, m, v, scale=scale: p - scale * m / (np.sqrt(v) + 1e-8), params, first, second)
    return params


@functools.cache
def experiment(seed, readable=True):
    """Test cross-entropy of the network, of the best fixed temperature, and of both true temperatures; and predictions."""
    logits, truth, target, flat = contexts(seed, readable)
    parts = np.split(np.arange(len(logits)), [TRAIN, TRAIN + VALIDATION])
    networks = [train(logits[parts[0]], target[parts[0]], radius, seed) for radius in RADII]

    def score(params, rows):
        return cross_entropy_at(logits[rows], truth[rows], tempnet(params, logits[rows], **BOUNDS)[:, None])

    chosen = min(networks, key=lambda params: score(params, parts[1]))
    fixed = min(FIXED, key=lambda t: cross_entropy_at(logits[parts[1]], truth[parts[1]], t))
    test = parts[2]
    oracle = np.where(flat[test], 6.0, 0.3)[:, None]
    losses = [score(chosen, test), *(cross_entropy_at(logits[test], truth[test], t) for t in (fixed, oracle))]
    return losses, fixed, tempnet(chosen, logits[test], **BOUNDS), flat[test]


def predicted() -> Claim:
    losses = np.array([experiment(seed)[0] for seed in SEEDS])
    ratio = losses[:, 0] / losses[:, 1]
    return Claim(
        statement="Where contexts want different temperatures and their logits show which, a temperature network trained on "
        "the robust loss predicts better than any single temperature (50 classes, 600 contexts to train on).",
        expected="test cross-entropy at most 0.95 of that of the best fixed temperature, on each of 2 seeds",
        holds=bool(ratio.max() <= 0.95),
        figures={
            "best fixed temperature: cross-entropy": float(losses[:, 1].mean()),
            "temperature network: cross-entropy": float(losses[:, 0].mean()),
            "true temperatures: cross-entropy": float(losses[:, 2].mean()),
            "largest ratio, network to fixed": float(ratio.max()),
        },
    )


def sphere() -> Claim:
    logits = np.random.default_rng(0).standard_normal((1000, VOCABULARY))
    solution = solve_temperature(logits, radius=0.5)
    p = softmax(logits / solution.temperature[:, None])
    off = float(np.abs(rel_entr(p, 1 / VOCABULARY).sum(axis=1) - 0.5).max())
    inside = bool(((solution.temperature > 0.01) & (solution.temperature < 5)).all())
    return Claim(
        statement="The best temperature of a row is the one whose softmax is at distance radius from the uniform "
        "distribution (1000 random rows, radius 0.5).",
        expected="all strictly between the bounds, |KL - radius| below 1e-8",
        holds=inside and off < 1e-8,
        figures={"largest |KL - radius|": off, "iterations": solution.n_iter},
    )


def figure():
    """Left: the robust loss of one row of logits against the temperature, for three radii, with its minimum marked. Right:
    temperatures that the trained network predicts on test contexts of both kinds, and the best fixed one."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    row = np.random.default_rng(3).standard_normal((1, VOCABULARY))
    grid = np.geomspace(0.15, 4, 200)
    for radius in (0.2, 0.5, 1.0):
        rows, top = np.repeat(row, len(grid), axis=0), np.full(len(grid), row.argmax())
        values = robust_temperature_loss_vjp(rows, top, grid, radius=radius, reduction="none")[0]
        best = solve_temperature(row, radius=radius).temperature
        at_best = robust_temperature_loss_vjp(row, top[:1], best, radius=radius)[0]
        (line,) = left.semilogx(grid, values, label=f"radius {radius}")
        left.plot(best, at_best, "o", color=line.get_color())
    left.set(xlabel="temperature", ylabel="robust loss", title="One row of logits")
    left.set_xticks([0.2, 0.5, 1, 2, 4], labels=["0.2", "0.5", "1", "2", "4"])
    left.minorticks_off()
    left.legend()
    _, fixed, temperature, flat = experiment(SEEDS[0])
    bins = np.linspace(0, 5, 41)
    right.hist(temperature[~flat], bins, alpha=0.7, label="peaked contexts")
    right.hist(temperature[flat], bins, alpha=0.7, label="flat contexts")
    right.axvline(fixed, color="k", ls="--", label="best fixed")
    right.set(xlabel="predicted temperature", ylabel="test contexts", title="Temperature network")
    right.set_ylim(top=1.6 * right.get_ylim()[1])
    right.legend()
    return fig
