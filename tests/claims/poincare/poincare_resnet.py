"""Evidence for the Poincaré ResNet: initialization, midpoint normalization, memory, and a little training."""

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from discovery import TESTS, load
from small_data import digits

from refnorm.claims import Claim
from refnorm.poincare import PoincareResNet, RiemannianAdam, frechet_mean, midpoint_batch_norm
from refnorm.poincare import _poincare_resnet as module
from refnorm.softmax import cross_entropy_vjp
from refnorm.tree import tree_map

linear, conv = (load(TESTS / "claims" / "poincare" / f"{name}.py") for name in ("linear", "conv2d"))
KINDS = {
    "unfolded": "half the identity, unfolded",
    "centre": "half the identity, centre",
    "baseline": "random, earlier",
}
SEEDS, BATCH, TRAINING_STEPS = (0, 1), 16, 24
RECORDED = 44.1
"""Megabytes that PyTorch saves for the backward pass of the same network in hypll; see the chapter."""


def claims() -> list[Claim]:
    return [lengths_in_fully_connected_layers(), frechet_variant(), memory(), early_training()]


def lengths_in_fully_connected_layers() -> Claim:
    identity, random = (linear.lengths(kind, 0)[-1] for kind in (True, False))
    return Claim(
        statement="Half the identity as weight keeps the length of features over twenty fully connected layers; earlier "
        "networks' random weights send them to the origin.",
        expected="mean length after over before: within 1e-3 of 1, against below 1e-6",
        holds=bool(abs(identity - 1) < 1e-3 and random < 1e-6),
        figures={"half the identity: |ratio - 1|": float(abs(identity - 1)), "random: ratio": float(random)},
    )


@dataclass(frozen=True)
class _FrechetNetwork:
    """The network with Fréchet means in place of midpoints: statistics are fixed layer by layer, from the bottom."""

    network: PoincareResNet
    iterations: list = field(default_factory=list)

    def forward(self, params, x):
        def normalize(y, bias, gain, curvature, mean, var, eps, check, project):
            rows = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
            result = frechet_mean(rows, curvature)
            self.iterations.append(result.n_iter)
            given = (result.x, result.variance)
            return midpoint_batch_norm(y, bias, gain, curvature, *given, eps=eps), given, None

        usual, module.LAYERS.normalize = module.LAYERS.normalize, normalize
        try:
            return self.network.forward(params, x)
        finally:
            module.LAYERS.normalize = usual


def moved(params, rng):
    return tree_map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape) * (leaf.ndim > 0), params)


def frechet_differences(seeds):
    differences, agreement, iterations = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        network = PoincareResNet.of_depth(20, channels=(4, 8, 16), channels_in=1, init_kind="centre")
        params = moved(network.init(rng), rng)
        x = digits(images=True).x[:16]
        other = _FrechetNetwork(network)
        left, right = network.forward(params, x), other.forward(params, x)
        differences.append(float(np.linalg.norm(left - right) / np.linalg.norm(right)))
        agreement.append(float((left.argmax(axis=1) == right.argmax(axis=1)).mean()))
        iterations.append(min(other.iterations))
    return differences, agreement, iterations


def frechet_variant() -> Claim:
    differences, agreement, iterations = frechet_differences(range(3))
    return Claim(
        statement="Through 20 layers with 19 normalizations, midpoints in place of Fréchet means change the logits little and "
        "cost a fraction: every iteration of a Fréchet mean is a midpoint and all distances (16 digits, 3 random "
        "networks).",
        expected="logits differ by less than 15 % of their length; at least 5 times as many passes over each batch",
        holds=max(differences) < 0.15 and 1 + 2 * min(iterations) >= 5,
        figures={
            "largest relative difference of the logits": max(differences),
            "same class, smallest fraction": min(agreement),
            "passes of a Fréchet mean, at least (a midpoint's: 1)": 1 + 2 * min(iterations),
        },
    )


def memory() -> Claim:
    network = PoincareResNet.of_depth(8, channels_in=1)
    params, x = network.init(np.random.default_rng(0)), np.random.default_rng(1).random((8, 1, 16, 16))
    kept = [
        conv.kept_bytes(replace(network, recompute=again).forward_vjp(params, x)[1]) / 1e6 for again in (False, True)
    ]
    return Claim(
        statement="Hand-derived pullbacks need a fraction of a recorded graph's memory: half as they are, and a tenth if each "
        "keeps its layer's arguments only and computes the rest again (8 layers, 8 images of 16 x 16, float64).",
        expected="at most a half, and at most a tenth",
        holds=kept[0] <= RECORDED / 2 and kept[1] <= RECORDED / 10,
        figures={
            "pullbacks, MB": kept[0],
            "pullbacks that compute again, MB": kept[1],
            "recorded graph, MB": RECORDED,
        },
    )


@cache
def training_losses(kind, seed):
    """Loss by step: 8 layers, Adam, batches of 16 digits."""
    data, rng = digits(seed=seed, images=True), np.random.default_rng(seed)
    network = PoincareResNet.of_depth(8, channels=(4, 8, 16), channels_in=1, init_kind=kind)
    params, optimizer = network.init(rng), RiemannianAdam(learning_rate=0.01, curvature=None)
    state, losses = optimizer.init(params), []
    for _ in range(TRAINING_STEPS):
        chosen = rng.permutation(len(data.x))[:BATCH]
        logits, pullback = network.forward_vjp(params, data.x[chosen])
        loss, back = cross_entropy_vjp(logits, data.target[chosen])
        losses.append(float(loss))
        params, state = optimizer.step(params, pullback(back(np.array(1.0))[0])[0], state)
        params = network.constrain(params)
    return np.array(losses)


def early_training() -> Claim:
    final = {kind: float(np.mean([training_losses(kind, seed)[-10:] for seed in SEEDS])) for kind in KINDS}
    return Claim(
        statement="On digits, a network of 8 layers that starts from half the identity learns faster than one that starts from "
        "random weights (24 steps of 16 images, mean loss of the last ten, 2 seeds).",
        expected="loss at most 0.95 of the random start's, for both identities",
        holds=max(final["unfolded"], final["centre"]) <= 0.95 * final["baseline"],
        figures={name: final[kind] for kind, name in KINDS.items()},
    )


def figure():
    """Left: training loss by step for three initializations, mean of two seeds and of five steps; both identities
    are below the random start. Right: memory of the backward pass, on a logarithmic axis:
    44 MB for a recorded graph, 17 for pullbacks, 2 for pullbacks that compute again.
    """
    import matplotlib.pyplot as plt

    fig, (curves, bars) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(1.4, 1))
    for kind, colour in zip(KINDS, ("tab:purple", "tab:blue", "tab:orange"), strict=True):
        mean = np.mean([training_losses(kind, seed) for seed in SEEDS], axis=0)
        curves.plot(
            np.arange(3, TRAINING_STEPS - 1),
            np.convolve(mean, np.ones(5) / 5, "valid"),
            color=colour,
            label=KINDS[kind],
        )
    curves.set(xlabel="step", ylabel="cross-entropy", ylim=(1.2, 2.35))
    curves.legend(frameon=False)
    found = memory().figures
    names = ("recorded graph, MB", "pullbacks, MB", "pullbacks that compute again, MB")
    drawn = bars.barh(range(3), [found[name] for name in names], color=("0.6", "tab:blue", "tab:green"))
    bars.bar_label(drawn, fmt="%.1f", padding=3)
    bars.set(xscale="log", xlim=(1, 150), xlabel="MB", yticks=range(3))
    bars.set_yticklabels(["recorded\ngraph", "pullbacks", "pullbacks that\ncompute again"])
    bars.invert_yaxis()
    return fig
