"""Evidence for learned codebooks: grouping, learning, the proximal rule, and where codes go."""

import functools
import itertools

import numpy as np

from refnorm.claims import Claim
from refnorm.quantizers import bits_per_weight, fit_codebook, group_neurons, kmeans_codebook, soft_map_vjp

SEEDS = range(5)
LEARNING_SEEDS = range(3)
STEPS = 300
LOGIT_RATES = (1e-2, 1e-1)


def claims() -> list[Claim]:
    return [grouping(), learning(), proximal(), neighbours()]


def problem(seed: int):
    """Correlated inputs, and neurons whose weights differ in size."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((512, 16)) @ rng.standard_normal((16, 64)) + 0.3 * rng.standard_normal((512, 64))) / 4
    weight = rng.standard_normal((64, 64)) / 8 * np.exp(0.8 * rng.standard_normal(64))
    return x, weight


def error(x, weight, found) -> float:
    return float(np.square(x @ (found - weight)).mean())


def grouped_kmeans(weight, n_groups: int):
    """Weights replaced by 2-bit codewords, a codebook for each group, without learning."""
    permutation, boundaries = group_neurons(weight, n_groups)
    found = np.empty_like(weight)
    for start, stop in itertools.pairwise(boundaries):
        columns = permutation[start:stop]
        codebook, index = kmeans_codebook(weight[:, columns], 4)
        found[:, columns] = codebook[index]
    return found


def grouping() -> Claim:
    ratios = []
    for seed in SEEDS:
        x, weight = problem(seed)
        ratios.append(error(x, weight, grouped_kmeans(weight, 8)) / error(x, weight, grouped_kmeans(weight, 1)))
    return Claim(
        statement="Codebooks for eight groups of neurons of like spread have a smaller error than one codebook, for a "
        "quarter of a bit a weight (2-bit codes, no learning).",
        expected="mean squared error of the outputs: median ratio of 5 seeds at most 0.75, each at most 0.85",
        holds=bool(np.median(ratios) <= 0.75 and max(ratios) <= 0.85),
        figures={
            "median ratio": float(np.median(ratios)),
            "largest ratio": max(ratios),
            "bits a weight, eight codebooks": bits_per_weight((64, 64), 4, 8),
            "bits a weight, one codebook": bits_per_weight((64, 64), 4, 1),
        },
    )


@functools.cache
def learned(seed: int, gradient: str, rate: float):
    """Error relative to grouped k-means, and the fit's history."""
    x, weight = problem(seed)
    found = fit_codebook(x, weight, n_iter=STEPS, learning_rates=(rate, 1e-3), gradient=gradient)
    return error(x, weight, found.weight) / error(x, weight, grouped_kmeans(weight, 8)), found.history


def learning() -> Claim:
    ratios = {rate: [learned(seed, "proximal", rate)[0] for seed in LEARNING_SEEDS] for rate in LOGIT_RATES}
    refit = []
    for seed in LEARNING_SEEDS:
        x, weight = problem(seed)
        found = fit_codebook(x, weight, n_iter=0)
        refit.append(error(x, weight, found.weight) / error(x, weight, grouped_kmeans(weight, 8)))
    return Claim(
        statement="Learning codes and codebooks together, by the error of the layer's outputs, gains far more than "
        "refitting codebooks for given codes.",
        expected="error at most 0.6 of grouped k-means with either learning rate, on each of 3 seeds",
        holds=max(max(values) for values in ratios.values()) <= 0.6,
        figures={f"largest ratio, rate {rate:g}": max(values) for rate, values in ratios.items()}
        | {"smallest ratio, refitted only": min(refit)},
    )


def proximal() -> Claim:
    ratios = [learned(s, "proximal", 1e-1)[0] / learned(s, "exact", 1e-1)[0] for s in LEARNING_SEEDS]
    return Claim(
        statement="The proximal rule ends at a smaller error than the exact gradient.",
        expected="smaller on each of 3 seeds, with logit rate 0.1",
        holds=max(ratios) < 1,
        refuted="Adam divides each logit's gradient by its own size, which removes most of the exact gradient's preference "
        "for far codewords, the defect that the rule is made for",
        figures={"smallest ratio of errors": min(ratios), "largest ratio of errors": max(ratios)},
    )


def neighbours() -> Claim:
    shares = {}
    for gradient in ("proximal", "exact"):
        histories = [learned(seed, gradient, 1e-1)[1] for seed in LEARNING_SEEDS]
        changed, jumped = (sum(h[name].sum() for h in histories) for name in ("changed", "jumped"))
        shares[gradient] = float(1 - jumped / changed)
    return Claim(
        statement="Codes change to neighbouring codewords.",
        expected="at least 0.95 of all changes of 3 seeds, with the proximal rule and logit rate 0.1",
        holds=shares["proximal"] >= 0.95,
        figures={f"share of changes to a neighbour, {name}": share for name, share in shares.items()},
    )


def figure():
    """Training error of both rules, and the gradients of twelve logits by the place of their codewords."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for gradient in ("exact", "proximal"):
        left.plot(learned(0, gradient, 1e-1)[1]["loss"], label=gradient)
    left.set(xlabel="step", ylabel="squared error of the mixtures' outputs", yscale="log")
    left.legend()
    codebook, logits = np.linspace(-5.5, 5.5, 12), np.zeros((1, 12))
    for gradient in ("exact", "proximal"):
        right.plot(
            codebook, 12 * soft_map_vjp(codebook, logits, gradient=gradient)[1](np.ones(1))[1][0], "o", label=gradient
        )
    right.set(xlabel="codeword", ylabel="gradient of its logit, times 12", title="Equal shares: the mixture is at 0")
    right.legend()
    return fig
