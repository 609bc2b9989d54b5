"""Evidence for Lion: uniform steps, the box of weight decay, small learning rates, sign and noise."""

import numpy as np
from scipy.stats import norm
from sklearn.datasets import load_digits

from refnorm.claims import Claim
from refnorm.solvers import AdamP, Lion, lion_update

RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
SEEDS = range(5)
BATCH, EPOCHS = 64, 30


def claims() -> list[Claim]:
    return [uniform_magnitude(), implicit_constraint(), learning_rates(), noise()]


def uniform_magnitude() -> Claim:
    rng = np.random.default_rng(0)
    param, grad = rng.standard_normal((2, 1000))
    grad *= 10.0 ** rng.integers(-8, 9, size=1000)
    grad[:10] = 0
    moved = lion_update(param, grad, np.zeros(1000), learning_rate=0.25)[0] - param
    error = np.abs(np.abs(moved[10:]) - 0.25).max()
    return Claim(
        statement="Without decay every coordinate with a non-zero direction moves by exactly the learning "
        "rate, whatever the size of its gradient.",
        expected="worst deviation below 1e-15 over gradients from 1e-8 to 1e8; zero gradients move nothing",
        holds=bool(error < 1e-15 and (moved[:10] == 0).all()),
        figures={"worst deviation from the learning rate": float(error), "coordinates": 1000},
    )


def implicit_constraint() -> Claim:
    rate, decay, steps = 0.01, 0.5, 2000
    start = np.array([-3.0, 0.0, 5.0])
    optimizer, params = Lion(learning_rate=rate, weight_decay=decay), start
    state, worst = optimizer.init(params), 0.0
    for step in range(1, steps + 1):
        params, state = optimizer.step(params, -np.ones(3), state)
        predicted = 1 / decay - (1 - rate * decay) ** step * (1 / decay - start)
        worst = max(worst, float(np.abs(params - predicted).max()))
    distance = float(np.abs(params - 1 / decay).max())
    return Claim(
        statement="With decay the iterates are drawn into the box |p| <= 1 / weight_decay: on a constant "
        "slope the distance to its face shrinks by exactly 1 - learning_rate * weight_decay a step.",
        expected="worst deviation from that law below 1e-12 over 2000 steps",
        holds=worst < 1e-12,
        figures={"worst deviation from the law": worst, "distance from the face at the end": distance},
    )


def digits():
    data = load_digits()
    x = (data.data - data.data.mean(axis=0)) / np.where(data.data.std(axis=0) > 0, data.data.std(axis=0), 1)
    return np.column_stack([x, np.ones(len(x))]), data.target


def losses_and_gradients(weights, x, target):
    """Softmax regression for a stack of weight matrices (runs, inputs, classes) on the same data."""
    logits = x @ weights
    logits = logits - logits.max(axis=-1, keepdims=True)
    probability = np.exp(logits)
    total = probability.sum(axis=-1, keepdims=True)
    rows = np.arange(len(target))
    losses = (np.log(total[..., 0]) - logits[:, rows, target]).mean(axis=-1)
    probability /= total
    probability[:, rows, target] -= 1
    return losses, x.T @ probability / len(target)


def train(optimizers, seed: int):
    """Return each optimizer's loss on all data after 30 epochs; all see the same batches."""
    x, target = digits()
    rng = np.random.default_rng(seed)
    weights = np.zeros((len(optimizers), x.shape[1], 10))
    states = [optimizer.init(weight) for optimizer, weight in zip(optimizers, weights, strict=True)]
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for first in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[first : first + BATCH]
            _, grads = losses_and_gradients(weights, x[batch], target[batch])
            for run, optimizer in enumerate(optimizers):
                weights[run], states[run] = optimizer.step(weights[run], grads[run], states[run])
    return losses_and_gradients(weights, x, target)[0]


def sweep(seed: int) -> dict[str, list[float]]:
    makers = {"Lion": lambda rate: Lion(learning_rate=rate), "Adam": adam}
    optimizers = [make(rate) for make in makers.values() for rate in RATES]
    losses = train(optimizers, seed).reshape(len(makers), len(RATES))
    return {name: [float(loss) for loss in row] for name, row in zip(makers, losses, strict=True)}


def adam(rate):
    # A threshold of 0, but for the smallest number, takes the projection out of AdamP: Adam is left.
    return AdamP(learning_rate=rate, delta=5e-324)


def learning_rates() -> Claim:
    figures: dict[str, float | int | str] = {}
    ratios = []
    for seed in SEEDS:
        best = {}
        for name, losses in sweep(seed).items():
            best[name] = RATES[int(np.argmin(losses))]
            figures[f"seed {seed}: best rate of {name}"] = best[name]
            figures[f"seed {seed}: its loss with {name}"] = min(losses)
        ratios.append(best["Adam"] / best["Lion"])
    return Claim(
        statement="Lion wants a learning rate several times smaller than Adam's (logistic regression on "
        "digits, batches of 64, 30 epochs, eight rates).",
        expected="best rate at least 5 times smaller on each of five seeds",
        holds=bool(min(ratios) >= 5),
        figures=figures | {"smallest ratio of best rates": float(min(ratios))},
    )


def noise() -> Claim:
    rng = np.random.default_rng(0)
    draws, rate = 100_000, 0.5
    figures: dict[str, float | int | str] = {}
    worst = 0.0
    for signal in (0.01, 0.1, 0.5, 1.0, 3.0):
        for batch in (1, 16):
            grad = signal + rng.standard_normal(draws) / np.sqrt(batch)
            moved = -lion_update(np.zeros(draws), grad, np.zeros(draws), learning_rate=rate)[0]
            chance = norm.cdf(signal * np.sqrt(batch))
            predicted = rate * (2 * chance - 1)
            error = 2 * rate * np.sqrt(chance * (1 - chance) / draws)
            # Where one sign is almost certain the binomial is no longer normal: one draw is the unit.
            off = abs(moved.mean() - predicted) / max(error, 2 * rate / draws)
            worst = max(worst, float(off))
            figures[f"mean move / rate, signal {signal:g}, batch {batch}"] = float(moved.mean() / rate)
    return Claim(
        statement="The first step's mean move is rate (2 Phi(signal sqrt(batch) / noise) - 1): proportional "
        "to the signal while it is buried in noise, saturated at the learning rate above it.",
        expected="within 4 standard errors of 100,000 draws for ten pairs of signal and batch size",
        holds=worst < 4,
        figures=figures | {"worst deviation in standard errors": worst},
    )


def figure():
    """Final loss against the learning rate, one line a seed."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for seed in (0, 1):
        for (name, losses), colour in zip(sweep(seed).items(), ("C1", "C0"), strict=True):
            ax.plot(RATES, losses, "o-", color=colour, label=name if seed == 0 else None)
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss on all data after 30 epochs")
    ax.set_title("Digits, logistic regression, batches of 64 (two seeds)")
    ax.legend()
    return fig
