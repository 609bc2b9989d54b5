"""Evidence for training only batch norm: random features suffice for much, and other parameters do not do as well."""

import functools

import numpy as np
from small_data import digits

from refnorm.claims import Claim
from refnorm.nn import avg_pool2d
from refnorm.norms import RandomFeatureResNet, run_batch_norm_only

SEEDS, WIDTH, DEPTH, EPOCHS, BATCH = range(2), 16, 3, 5, 32


def claims() -> list[Claim]:
    return [expressive(), not_everything(), disabled()]


@functools.cache
def data():
    """Digits of 4 x 4 pixels, standardized, in float32."""
    found = digits(images=True, test=597)
    mean, std = found.x.mean(), found.x.std()
    x, x_test = (avg_pool2d((images - mean) / std, 2).astype(np.float32) for images in (found.x, found.x_test))
    return x, found.target, x_test, found.target_test


MODEL = RandomFeatureResNet(width=WIDTH, depth=DEPTH)


@functools.cache
def run(mode: str, seed: int):
    return run_batch_norm_only(np.random.default_rng(seed), mode, *data(), model=MODEL, epochs=EPOCHS, batch_size=BATCH)


def expressive() -> Claim:
    only, other = (np.array([run(mode, seed).test_accuracy for seed in SEEDS]) for mode in ("bn", "random_per_channel"))
    return Claim(
        statement="Gains and biases of batch norm alone train a network of random filters far above chance, and above the same "
        "number of other parameters, two weights of every filter (digits of 4 x 4 pixels, three residual blocks, 5 epochs).",
        expected="mean test accuracy of 2 seeds above 0.2 (chance: 0.1) and above that of the random weights by 0.05; the same "
        "number of trained parameters",
        holds=bool(only.mean() > 0.2 and (only - other).mean() > 0.05)
        and run("bn", 0).trained == run("random_per_channel", 0).trained,
        figures={
            "test accuracy, batch norm only": float(only.mean()),
            "test accuracy, two weights a filter": float(other.mean()),
            "trained parameters, each": run("bn", 0).trained,
        },
    )


def not_everything() -> Claim:
    whole, only = run("all", 0), run("bn", 0)
    return Claim(
        statement="Training all parameters is better still.",
        expected="test accuracy higher by more than 0.1, first seed",
        holds=whole.test_accuracy - only.test_accuracy > 0.1,
        figures={
            "test accuracy, all parameters": whole.test_accuracy,
            "test accuracy, batch norm only": only.test_accuracy,
            "trained parameters, all": whole.trained,
        },
    )


def disabled() -> Claim:
    changes, shares = [], []
    x_test, target_test = data()[2:]
    for seed in SEEDS:
        trained = run("bn", seed)
        params = {
            name: np.where(np.abs(array) < 0.01, 0, array).astype(array.dtype) if name.endswith(".gain") else array
            for name, array in trained.params.items()
        }
        logits, _ = MODEL.apply(params, trained.states, x_test, training=False)
        changes.append(abs(float((logits.argmax(axis=1) == target_test).mean()) - trained.test_accuracy))
        shares.append(trained.disabled)
    return Claim(
        statement="Features whose gain has come near zero are switched off: setting these gains to exactly zero changes nothing.",
        expected="test accuracy changed by less than 0.02, each of 2 seeds",
        holds=max(changes) < 0.02,
        figures={"largest change of accuracy": max(changes), "share of gains below 0.01": float(np.mean(shares))},
    )


def figure():
    """Left: training loss of the three choices of parameters. Right: gains before and after training only batch norm."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    names = {"random_per_channel": "two weights a filter", "bn": "batch norm only", "all": "all parameters"}
    for mode, label in names.items():
        left.plot(range(1, EPOCHS + 1), run(mode, 0).history, "o-", markersize=3, label=label)
    left.set(xlabel="epoch", ylabel="training loss", xticks=range(1, EPOCHS + 1))
    left.legend(fontsize=8)
    bins = np.linspace(-1, 3, 41)
    start = MODEL.init(np.random.default_rng(0))
    for label, params in (("before", start), ("after", run("bn", 0).params)):
        gains = np.concatenate([array for name, array in params.items() if name.endswith(".gain")])
        right.hist(gains, bins, alpha=0.6, label=label)
    right.set(xlabel="gain", ylabel="number of channels")
    right.legend(fontsize=8)
    return fig
