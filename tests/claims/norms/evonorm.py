"""Evidence for EvoNorm: no activation needed, one sample is enough, and good layers are rare."""

import functools

import numpy as np
from small_conv_networks import chain_vjp, train_chain, two_conv_net
from small_data import digits
from small_networks import accuracy, batches

from refnorm.claims import Claim
from refnorm.nn import relu_vjp
from refnorm.norms import (
    EvoNormState,
    Expression,
    batch_norm,
    batch_norm_vjp,
    batch_statistics,
    evonorm_b0_eval_vjp,
    evonorm_b0_train,
    evonorm_b0_train_vjp,
    evonorm_s0,
    evonorm_s0_vjp,
    expression_accuracy,
    group_norm_vjp,
    random_expression,
    update_running_statistics,
)

IMAGE_AXES = (0, 2, 3)
SEEDS, WIDTHS, EPOCHS, RATE, GROUPS = range(2), (12, 24), 4, 0.05, 4
EXPRESSIONS, NODES, THRESHOLD = 50, 5, 0.2

RELU_OF_BATCH_NORM = Expression(
    (
        ("batch_mean", (0,)),
        ("neg", (4,)),
        ("add", (0, 5)),
        ("batch_std", (0,)),
        ("div", (6, 7)),
        ("max", (1, 8)),
    )
)


def claims() -> list[Claim]:
    return [independence(), training(), nonlinearity(), search()]


def independence() -> Claim:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 8, 6, 6))
    one, zero, state = np.ones(8), np.zeros(8), EvoNormState.create(8)
    by_sample = evonorm_s0(x[:1], one, zero, one) - evonorm_s0(x, one, zero, one)[:1]
    by_batch = evonorm_b0_train(x[:1], one, zero, one, state)[0] - evonorm_b0_train(x, one, zero, one, state)[0][:1]
    figures = {"S0": float(np.abs(by_sample).max()), "B0": float(np.abs(by_batch).max())}
    return Claim(
        statement="S0 of a sample does not depend on its batch; B0 does.",
        expected="largest change between batches of 1 and 32: exactly 0, and above 0.05",
        holds=figures["S0"] == 0 and figures["B0"] > 0.05,
        figures={f"largest change, {name}": value for name, value in figures.items()},
    )


class BatchNormLayer:
    def __init__(self, channels):
        self.running = np.zeros(channels), np.ones(channels)

    def __call__(self, x, gain, bias):
        count = x.size // x.shape[1]
        self.running = update_running_statistics(*self.running, *batch_statistics(x, IMAGE_AXES), count)
        y, pullback = batch_norm_vjp(x, gain, bias, axes=IMAGE_AXES)
        return y, lambda dy: pullback(dy)[:3]

    def for_test(self, x, gain, bias):
        return batch_norm_vjp(x, gain, bias, *self.running, axes=IMAGE_AXES)


class B0Layer:
    def __init__(self, channels):
        self.state = EvoNormState.create(channels)

    def __call__(self, x, *params):
        (y, self.state), pullback = evonorm_b0_train_vjp(x, *params, self.state)
        return y, pullback

    def for_test(self, x, *params):
        return evonorm_b0_eval_vjp(x, *params, self.state)


def nothing(x):
    return x, lambda dy: (dy,)


LAYERS = {
    "B0": (B0Layer, 3, nothing),
    "batch norm, ReLU": (BatchNormLayer, 2, relu_vjp),
    "batch norm alone": (BatchNormLayer, 2, nothing),
    "S0": (lambda width: functools.partial(evonorm_s0_vjp, groups=GROUPS), 3, nothing),
    "group norm, ReLU": (lambda width: functools.partial(group_norm_vjp, groups=GROUPS), 2, relu_vjp),
}
"""For every layer: its maker, its number of parameters a channel, and the activation after it."""


def test_accuracy(name: str, seed: int) -> float:
    make, count, activation = LAYERS[name]
    data, rng = digits(images=True), np.random.default_rng(seed)
    mean, std = data.x.mean(), data.x.std()
    layers, params = two_conv_net(
        rng, None, lambda width: (np.ones(width), np.zeros(width), np.ones(width))[:count], WIDTHS
    )
    widths = iter(WIDTHS)
    layers = [make(next(widths)) if layer is None else activation if layer is relu_vjp else layer for layer in layers]
    order = batches(rng, len(data.x), 32, EPOCHS)
    params = train_chain(layers, params, (data.x - mean) / std, data.target, order, learning_rate=RATE)
    tested = [getattr(layer, "for_test", layer) for layer in layers]
    return accuracy(chain_vjp(tested, params, (data.x_test - mean) / std)[0], data.target_test)


def training() -> Claim:
    names = [name for name in LAYERS if name != "batch norm alone"]
    found = {name: float(np.mean([test_accuracy(name, seed) for seed in SEEDS])) for name in names}
    found["batch norm alone, first seed"] = test_accuracy("batch norm alone", SEEDS[0])
    holds = (
        found["B0"] >= found["batch norm, ReLU"] - 0.12
        and found["S0"] >= found["group norm, ReLU"] - 0.12
        and found["B0"] - found["batch norm alone, first seed"] > 0.12
    )
    return Claim(
        statement="B0 takes the place of batch norm and ReLU together, S0 that of group norm and ReLU (digits, two "
        "convolutions, momentum SGD).",
        expected="mean test accuracy of 2 seeds no more than 0.12 below the pair's; B0 above batch norm without an "
        "activation by more than 0.12",
        holds=bool(holds),
        figures={f"test accuracy, {name}": value for name, value in found.items()},
    )


def nonlinearity() -> Claim:
    x = np.random.default_rng(0).standard_normal((32, 8, 6, 6))
    one, zero, state = np.ones(8), np.zeros(8), EvoNormState.create(8)
    standard = batch_norm(x, one, zero, axes=IMAGE_AXES)

    def correlation(slope, other):
        y, _ = evonorm_b0_train(x, one, zero, slope * one, state)
        return float(np.corrcoef(y.ravel(), other.ravel())[0, 1])

    linear, bent, relu = (
        correlation(0.0, standard),
        correlation(1.0, standard),
        correlation(1.0, np.maximum(standard, 0)),
    )
    return Claim(
        statement="The slope is what makes B0 nonlinear: without it B0 is nearly batch norm without centring. With it, B0 is "
        "not a ReLU either.",
        expected="on normal data, correlation with batch norm above 0.99 at slope 0 and between 0.92 and 0.98 at slope 1; "
        "with ReLU of batch norm below 0.8",
        holds=linear > 0.99 and 0.92 < bent < 0.98 and relu < 0.8,
        figures={
            "slope 0, with batch norm": linear,
            "slope 1, with batch norm": bent,
            "slope 1, with ReLU of batch norm": relu,
        },
    )


def search() -> Claim:
    data, rng = digits(images=True), np.random.default_rng(0)
    x, target = (data.x[:300] - data.x.mean()) / data.x.std(), data.target[:300]

    def score(expression):
        return expression_accuracy(expression, x, target, rng, channels=(8, 8), steps=60, batch_size=16)

    known = score(RELU_OF_BATCH_NORM)
    scores = np.array([score(random_expression(rng, NODES)) for _ in range(EXPRESSIONS)])
    rejected = float((scores < THRESHOLD).mean())
    return Claim(
        statement="Good layers are rare: nearly all random expressions fail to train a small network, which is why cheap "
        "rejection pays.",
        expected="more than 75% of 50 random expressions of 5 nodes below 20% training accuracy after 60 "
        "steps; ReLU of batch norm, written as an expression, passes",
        holds=rejected > 0.75 and known >= THRESHOLD,
        figures={
            "share rejected": rejected,
            "best training accuracy": float(scores.max()),
            "training accuracy, ReLU of batch norm": known,
        },
    )


def figure():
    """What each layer does to one number, the deviations of its sample and batch being 1: S0, B0 and their slopes."""
    import matplotlib.pyplot as plt

    z = np.linspace(-4, 4, 401)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    for slope in (0.0, 0.5, 1.0, 3.0):
        left.plot(z, z / (1 + np.exp(-slope * z)), label=f"slope {slope:g}")
        right.plot(z, z / np.maximum(1, slope * z + 1), label=f"slope {slope:g}")
    left.set(title="S0: x sigmoid(slope x)", xlabel="x", ylabel="y", ylim=(-4.2, 4.2))
    right.set(title="B0: x / max(1, slope x + 1)", xlabel="x")
    left.legend()
    right.legend()
    return fig
