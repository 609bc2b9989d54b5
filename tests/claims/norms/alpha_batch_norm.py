"""Evidence for calibrated batch statistics: the best mixture lies between the ends, and Core lowers its loss."""

import functools

import numpy as np
from small_data import digits
from small_networks import accuracy, batches

from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.norms import (
    alpha_batch_norm,
    alpha_batch_norm_vjp,
    batch_norm,
    batch_norm_vjp,
    batch_statistics,
    core_adapt,
    update_running_statistics,
)
from refnorm.softmax import cross_entropy_vjp

SEEDS = range(3)
WEIGHTS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
HIDDEN, EPOCHS, BATCH, STREAM = 64, 20, 16, 100


def claims() -> list[Claim]:
    return [between_the_ends(), ends(), core_step()]


@functools.cache
def data():
    split = digits(test=597)
    mean, std = split.x.mean(axis=0), split.x.std(axis=0) + 1e-8
    keep = split.x.std(axis=0) > 1e-3
    return ((split.x - mean) / std)[:, keep], split.target, ((split.x_test - mean) / std)[:, keep], split.target_test


def forward(weights, norms, x):
    """Linear - norm - ReLU twice, then linear; ``norms`` are functions ``x -> (y, pullback)``."""
    back = []
    for weight, norm in zip(weights[:-1], norms, strict=True):
        x, linear_back = linear_vjp(x, weight)
        x, norm_back = norm(x)
        x, relu_back = relu_vjp(x)
        back.append((linear_back, norm_back, relu_back))
    x, last = linear_vjp(x, weights[-1])

    def pullback(dy):
        dy, dweight, _ = last(dy)
        dweights, dnorms = [dweight], []
        for linear_back, norm_back, relu_back in reversed(back):
            dy, *dnorm = norm_back(relu_back(dy)[0])
            dy, dweight, _ = linear_back(dy)
            dweights.append(dweight)
            dnorms.append(dnorm)
        return dweights[::-1], dnorms[::-1]

    return x, pullback


@functools.cache
def trained(seed):
    """Weights, affine parameters and running statistics of a network that knows clean digits only."""
    rng = np.random.default_rng(seed)
    x, target, _, _ = data()
    sizes = [(x.shape[1], HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10)]
    weights = [rng.standard_normal(size) * np.sqrt(2 / size[0]) for size in sizes]
    affine = [[np.ones(HIDDEN), np.zeros(HIDDEN)] for _ in range(2)]
    running = [(np.zeros(HIDDEN), np.ones(HIDDEN)) for _ in range(2)]
    velocity = [np.zeros_like(p) for p in (*weights, *affine[0], *affine[1])]
    for batch in batches(rng, len(x), 64, EPOCHS):

        def norm(a, layer, affine=affine):
            running[layer] = update_running_statistics(*running[layer], *batch_statistics(a), len(a))
            return batch_norm_vjp(a, *affine[layer])

        logits, network = forward(weights, [functools.partial(norm, layer=layer) for layer in range(2)], x[batch])
        _, back = cross_entropy_vjp(logits, target[batch])
        dweights, dnorms = network(back(np.array(1.0))[0])
        grads = (*dweights, *dnorms[0][:2], *dnorms[1][:2])
        velocity = [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
        moved = [p - 0.1 * v for p, v in zip((*weights, *affine[0], *affine[1]), velocity, strict=True)]
        weights, affine = moved[:3], [moved[3:5], moved[5:]]
    return weights, affine, running


def network_of(seed):
    """Return the network in use as a function of its affine parameters."""
    weights, affine, running = trained(seed)

    def network_vjp(params, x, source_weight):
        norms = [
            functools.partial(
                lambda a, own, stats: alpha_batch_norm_vjp(a, *own, *stats, source_weight=source_weight), own=own, stats=stats
            )
            for own, stats in zip(params, running, strict=True)
        ]  # fmt: skip
        logits, back = forward(weights, norms, x)
        return logits, lambda dlogits: ([dnorm[:2] for dnorm in back(dlogits)[1]],)

    return network_vjp, affine


def shifted_stream(seed, count):
    """Batches of 16 from three classes each; every feature is scaled by 1.5 and shifted once for all."""
    rng = np.random.default_rng(1000 + seed)
    _, _, x, target = data()
    shift = 1.5 + 1.5 * rng.standard_normal(x.shape[1])
    for _ in range(count):
        classes = rng.choice(10, 3, replace=False)
        chosen = rng.choice(np.flatnonzero(np.isin(target, classes)), BATCH, replace=False)
        yield 1.5 * x[chosen] + shift, target[chosen]


@functools.cache
def accuracies(seed):
    network_vjp, affine = network_of(seed)
    stream = list(shifted_stream(seed, STREAM))
    _, _, x, target = data()
    clean = accuracy(network_vjp(affine, x, 1.0)[0], target)
    shifted = [np.mean([accuracy(network_vjp(affine, x, a)[0], target) for x, target in stream]) for a in WEIGHTS]
    return clean, np.array(shifted)


def between_the_ends() -> Claim:
    clean = float(np.mean([accuracies(seed)[0] for seed in SEEDS]))
    mean = np.mean([accuracies(seed)[1] for seed in SEEDS], axis=0)
    best = max(mean[2:5])
    return Claim(
        statement="Under a strong shift and batches with few classes, a mixture of source and batch statistics "
        "classifies better than either alone (digits, network with two batch norms trained on clean data).",
        expected="mean accuracy of 3 seeds: the best of source weights 0.5, 0.7, 0.9 exceeds both ends by more than 0.05",
        holds=bool(best > mean[0] + 0.05 and best > mean[-1] + 0.05),
        figures={"clean accuracy": clean} | {f"source weight {a:g}": float(m) for a, m in zip(WEIGHTS, mean, strict=True)},
    )  # fmt: skip


def ends() -> Claim:
    rng = np.random.default_rng(0)
    x, gain, bias, mean = (rng.standard_normal(s) for s in ((8, 5, 3, 3), 5, 5, 5))
    var, over = rng.random(5) + 0.5, (0, 2, 3)
    use = alpha_batch_norm(x, gain, bias, mean, var, source_weight=1.0) - batch_norm(
        x, gain, bias, mean, var, axes=over
    )
    train = alpha_batch_norm(x, gain, bias, mean, var, source_weight=0.0, ddof=0) - batch_norm(x, gain, bias, axes=over)
    figures = {
        "weight 1 against batch norm in use": float(np.abs(use).max()),
        "weight 0 against batch norm in training": float(np.abs(train).max()),
    }
    return Claim(
        statement="The ends of the mixture are batch norm in use and batch norm in training.",
        expected="both differences exactly 0 (the second with the biased variance)",
        holds=not any(figures.values()),
        figures=figures,
    )


@functools.cache
def core_steps(seed):
    """Relative change of the loss on the same batch by one step, for each learning rate."""
    network_vjp, affine = network_of(seed)
    changes = {}
    for rate in (1e-3, 1e-2):
        pairs = [
            core_adapt(network_vjp, affine, [x, x], learning_rate=rate).losses for x, _ in shifted_stream(seed, 50)
        ]
        changes[rate] = np.array([after / before - 1 for before, after in pairs])
    return changes


def core_step() -> Claim:
    shares = {rate: float(np.mean([core_steps(seed)[rate] < 0 for seed in SEEDS])) for rate in (1e-3, 1e-2)}
    changes = {rate: float(np.mean([core_steps(seed)[rate] for seed in SEEDS])) for rate in shares}
    return Claim(
        statement="One step of Core on gains and biases lowers the class correlation of the batch it was made on.",
        expected="in at least 95% of 150 shifted batches (3 seeds), for learning rates 0.001 and 0.01",
        holds=min(shares.values()) >= 0.95,
        figures={f"share of batches, rate {rate:g}": share for rate, share in shares.items()}
        | {f"mean relative change, rate {rate:g}": change for rate, change in changes.items()},
    )


def figure():
    """Accuracy on shifted digits against the weight of the source statistics: low at both ends, high in between."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for seed in SEEDS:
        ax.plot(WEIGHTS, accuracies(seed)[1], color="C0", alpha=0.35, label="one seed" if seed == 0 else None)
    ax.plot(
        WEIGHTS, np.mean([accuracies(seed)[1] for seed in SEEDS], axis=0), "o-", color="C0", label="mean of 3 seeds"
    )
    ax.set(xlabel="weight of the source statistics", ylabel="accuracy", ylim=(0.4, 0.9))
    ax.set_title("Digits, scaled and shifted; batches of 16 from three classes")
    ax.legend(loc="lower left")
    return fig
