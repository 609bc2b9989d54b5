"""Evidence for layer normalization: invariances, independence of the batch, safer training."""

import itertools

import numpy as np
from sklearn.datasets import load_digits

from refnorm.claims import Claim
from refnorm.norms import InvarianceReport, Invariances, batch_norm, invariance_report, layer_norm, layer_norm_vjp

TRAINING_SEEDS = range(8)
STEPS, BATCH, HIDDEN_LAYERS, WIDTH = 300, 4, 4, 64


def claims() -> list[Claim]:
    return [invariances(), table(), batch_independence(), training()]


def invariances() -> Claim:
    rng = np.random.default_rng(0)
    weight, x, shift = rng.standard_normal((32, 16)), rng.standard_normal((20, 16)), rng.standard_normal(16)
    one_row, one_case = weight.copy(), x.copy()
    one_row[3] *= 3
    one_case[5] *= 5
    gain, bias = np.ones(32), np.zeros(32)

    def change(new_weight, new_x):
        # eps far below the variance stands for the paper's eps = 0.
        before, after = (layer_norm(a @ w.T, gain, bias, eps=1e-300) for a, w in ((x, weight), (new_x, new_weight)))
        return float(np.abs(after - before).max())

    kept = {
        "whole weight matrix times 3": change(3 * weight, x),
        "same vector added to all weight rows": change(weight + shift, x),
        "one case times 5": change(weight, one_case),
    }
    lost = {
        "one weight row times 3": change(one_row, x),
        "constant vector added to all cases": change(weight, x + shift),
    }
    return Claim(
        statement="Rescaling or re-centring the weight matrix, or rescaling one case, changes nothing; "
        "rescaling a single row of weights or shifting the data does (Table 1 of the paper).",
        expected="largest change below 1e-12 for the first three, above 1e-2 for the last two",
        holds=max(kept.values()) < 1e-12 and min(lost.values()) > 1e-2,
        figures=kept | lost,
    )


PAPER = InvarianceReport(
    layer_norm=Invariances(True, True, False, True, False, True),
    batch_norm=Invariances(True, False, True, True, True, False),
)


def table() -> Claim:
    seeds = 20
    agreeing = sum(invariance_report(np.random.default_rng(seed)) == PAPER for seed in range(seeds))
    return Claim(
        statement="Layer norm and batch norm keep different things: of the six changes in the paper's Table 1 they "
        "ignore two in common and two each of their own.",
        expected="all twelve entries of both rows as printed, on every one of 20 seeds",
        holds=agreeing == seeds,
        figures={"seeds with the paper's table, of 20": agreeing},
    )


def digits():
    data = load_digits()
    return (data.data - data.data.mean()) / data.data.std(), data.target


def batch_independence() -> Claim:
    x, _ = digits()
    weight = np.random.default_rng(0).standard_normal((64, 64)) / 8
    gain, bias = np.ones(64), np.zeros(64)

    # einsum keeps each row's sum in one order whatever the batch; a BLAS product need not.
    small, large = (np.einsum("ni,ij->nj", x[:size], weight) for size in (4, 64))
    layer_change = np.abs(layer_norm(small, gain, bias) - layer_norm(large, gain, bias)[:4]).max()
    batch_change = np.abs(batch_norm(small, gain, bias) - batch_norm(large, gain, bias)[:4]).max()
    return Claim(
        statement="The output for one example does not depend on the other examples of its batch.",
        expected="layer norm: exactly 0 between batches of 4 and 64; batch norm in training mode: above 0.5",
        holds=bool(layer_change == 0 and batch_change > 0.5),
        figures={
            "layer norm, largest change": float(layer_change),
            "batch norm, largest change": float(batch_change),
        },
    )


def train(normalize: bool, learning_rate: float, seed: int) -> tuple[float, list[float]]:
    """Return the full training loss after all steps, and the mini-batch losses on the way."""
    x, target = digits()
    rng = np.random.default_rng(seed)
    sizes = [64] + [WIDTH] * HIDDEN_LAYERS + [10]
    weights = [rng.standard_normal((a, b)) * np.sqrt(2 / a) for a, b in itertools.pairwise(sizes)]
    gains, biases = [np.ones(WIDTH)] * HIDDEN_LAYERS, [np.zeros(size) for size in sizes[1:]]

    def loss_and_pullback(x, target):
        h, steps = x, []
        for layer in range(HIDDEN_LAYERS):
            summed = h @ weights[layer]
            if normalize:
                a, pullback = layer_norm_vjp(summed, gains[layer], biases[layer])
            else:
                a, pullback = summed + biases[layer], None
            steps.append((h, pullback, a > 0))
            h = np.maximum(a, 0)
        logits = h @ weights[-1] + biases[-1]
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        rows = np.arange(len(target))

        def backward():
            grad = np.exp(log_probability)
            grad[rows, target] -= 1
            grad /= len(target)
            grads = [(h.T @ grad, None, grad.sum(axis=0))]
            grad = grad @ weights[-1].T
            for layer in reversed(range(HIDDEN_LAYERS)):
                before, pullback, active = steps[layer]
                grad = grad * active
                if pullback:
                    grad, dgain, dbias = pullback(grad)
                else:
                    dgain, dbias = None, grad.sum(axis=0)
                grads.append((before.T @ grad, dgain, dbias))
                grad = grad @ weights[layer].T
            return grads[::-1]

        return -log_probability[rows, target].mean(), backward

    history = []
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            batch = rng.integers(len(x), size=BATCH)
            loss, backward = loss_and_pullback(x[batch], target[batch])
            history.append(float(loss))
            for layer, (dweight, dgain, dbias) in enumerate(backward()):
                weights[layer] = weights[layer] - learning_rate * dweight
                biases[layer] = biases[layer] - learning_rate * dbias
                if dgain is not None:
                    gains[layer] = gains[layer] - learning_rate * dgain
        return float(loss_and_pullback(x, target)[0]), history


def training() -> Claim:
    final = {
        (normalize, rate): np.array([train(normalize, rate, seed)[0] for seed in TRAINING_SEEDS])
        for normalize in (False, True)
        for rate in (0.1, 0.3)
    }
    # A run that ended in NaN counts as no better than guessing.
    plain, normed = (np.nan_to_num(final[n, 0.3], nan=np.log(10.0)) for n in (False, True))
    ratio = float(np.median(normed) / np.median(plain))
    holds = ratio < 0.6 and np.median(final[True, 0.1]) < np.median(final[False, 0.1])
    return Claim(
        statement="Layer norm trains where the plain network fails, and no slower where it does not "
        "(digits, four hidden layers, batches of 4).",
        expected="learning rate 0.3: median final loss below 0.6 of the plain network's; "
        "learning rate 0.1: smaller median loss with layer norm",
        holds=bool(holds),
        figures={
            "rate 0.3: plain runs at NaN or above 1.5, of 8": int((plain > 1.5).sum()),
            "rate 0.3: median loss, plain": float(np.median(plain)),
            "rate 0.3: median loss, layer norm": float(np.median(normed)),
            "rate 0.3: worst loss, layer norm": float(normed.max()),
            "rate 0.1: median loss, plain": float(np.median(final[False, 0.1])),
            "rate 0.1: median loss, layer norm": float(np.median(final[True, 0.1])),
        },
    )


def figure():
    """Mini-batch loss of one run at learning rate 0.3, with and without layer norm."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for normalize, label in ((False, "plain"), (True, "layer norm")):
        _, history = train(normalize, 0.3, seed=0)
        smooth = np.convolve(np.nan_to_num(history, nan=np.nan), np.ones(15) / 15, mode="valid")
        ax.plot(smooth, label=label)
    ax.set(xlabel="step", ylabel="training loss (mean of 15 batches)", yscale="log")
    ax.set_title("Four hidden layers, batches of 4, learning rate 0.3")
    ax.legend()
    return fig
