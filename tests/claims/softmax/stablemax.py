"""Evidence for StableMax and orthogonal gradients: no collapse, no scaling up, generalization after fitting."""

import itertools

import numpy as np
import small_data

from refnorm.claims import Claim
from refnorm.softmax import (
    cross_entropy_vjp,
    nlm_cosine,
    orthogonalize_gradient,
    softmax_collapse_rate,
    stablemax_cross_entropy_vjp,
)

CLASSES = 113
MODULUS, WIDTH, STEPS, RATE = 23, 128, 2000, 1e-2
GROKKING_SEEDS = (0, 1)


def claims() -> list[Claim]:
    return [collapse(), scaling(), grokking()]


def usual_slope(logits, target):
    """Slope of the softmax cross-entropy at the label, as usually computed: exp / sum - 1, in the logits' dtype."""
    terms = np.exp(logits - logits.max())
    return float(terms[target] / terms.sum() - logits.dtype.type(1))


def collapse() -> Claim:
    logits = np.zeros((1, CLASSES), np.float32)
    target, one = np.array([40]), np.float32(1)
    logits[0, 40] = 30
    usual, rate = usual_slope(logits[0], 40), softmax_collapse_rate(logits, target)
    careful = float(cross_entropy_vjp(logits, target)[1](one)[0][0, 40])
    logits[0, 40] = 1e6
    stable = float(stablemax_cross_entropy_vjp(logits, target)[1](one)[0][0, 40])
    truth = -112 / (1e6 + 113) / (1e6 + 1)
    return Claim(
        statement="In float32, softmax cross-entropy as it is usually computed stops learning once the right "
        "logit of 113 leads by 30; StableMax still has a slope, and the right one, at a lead of a million.",
        expected="softmax: slope exactly 0 and row reported as collapsed; StableMax: relative error of the slope below 1e-6",
        holds=bool(usual == 0 and rate == 1 and abs(stable / truth - 1) < 1e-6),
        figures={
            "lead 30: softmax slope, exp / sum - 1": usual,
            "lead 30: softmax slope by expm1 of the log-probability": careful,
            "lead 1e6: StableMax slope": stable,
        },
    )


def relu_network(weights, x, target):
    """Mean loss, number of right answers and gradients of a ReLU network without biases."""
    inputs = [x]
    for weight in weights[:-1]:
        inputs.append(np.maximum(inputs[-1] @ weight, 0))
    logits = inputs[-1] @ weights[-1]
    loss, back = cross_entropy_vjp(logits, target)
    (dy,) = back(loss.dtype.type(1))
    grads = []
    for weight, h in zip(reversed(weights), reversed(inputs), strict=True):
        grads.append(h.T @ dy)
        dy = (dy @ weight.T) * (h > 0)
    return float(loss), float((logits.argmax(axis=1) == target).mean()), grads[::-1]


def fit_and_go_on(seed):
    """Descend to 100 % and 500 steps further; return all cosines and both growths of the weights' norm."""
    data = small_data.digits(seed=seed)
    x, target = data.x[:300], data.target[:300]
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(shape) / 8 for shape in ((64, 64), (64, 10))]

    def norm(weights):
        return sum(float(np.linalg.norm(w)) for w in weights)

    weights, cosines, left = start, [], None
    while left != 0:
        _, right, grads = relu_network(weights, x, target)
        cosines.append(float(np.mean(nlm_cosine(weights, grads))))
        weights = [w - 0.1 * g for w, g in zip(weights, grads, strict=True)]
        left = 500 if left is None and right == 1 else left and left - 1
    plain = norm(weights) - norm(start)
    weights = start
    for _ in cosines:
        _, right, grads = relu_network(weights, x, target)
        weights = [w - 0.1 * orthogonalize_gradient(w, g) for w, g in zip(weights, grads, strict=True)]
    return np.array(cosines), plain, norm(weights) - norm(start), right


def scaling() -> Claim:
    cosines, plain, orthogonal, right = fit_and_go_on(seed=0)
    early, late = float(cosines[:20].mean()), float(cosines[-100:].mean())
    return Claim(
        statement="After the last training error is gone, descent mostly scales the weights up (naive loss "
        "minimisation); orthogonal gradients do not (digits, two layers, full batches).",
        expected="cosine between weights and descent below 0.3 in the first 20 steps, above 0.6 in the last 100; "
        "the norms' growth with orthogonal gradients below 0.05 of the growth without",
        holds=bool(early < 0.3 and late > 0.6 and orthogonal < 0.05 * plain),
        figures={
            "steps": len(cosines),
            "cosine, first 20 steps": early,
            "cosine, last 100 steps": late,
            "growth of the norms": plain,
            "growth with orthogonal gradients": orthogonal,
            "training accuracy with orthogonal gradients": right,
        },
    )


def modular_addition(seed, orthogonal, every=50):
    """Train on half of all sums modulo MODULUS by Adam in float32; return training and test accuracies."""
    rng = np.random.default_rng(seed)
    a, b = np.divmod(np.arange(MODULUS**2), MODULUS)
    x = np.concatenate([np.eye(MODULUS)[a], np.eye(MODULUS)[b]], axis=1).astype(np.float32)
    target = (a + b) % MODULUS
    order = rng.permutation(len(x))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    weights = [
        rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))
        for shape in itertools.pairwise((2 * MODULUS, WIDTH, WIDTH, MODULUS))
    ]
    first, second = [[np.zeros_like(w) for w in weights] for _ in range(2)]
    history = []
    for step in range(1, STEPS + 1):
        _, right, grads = relu_network(weights, x[train], target[train])
        if orthogonal:
            grads = [orthogonalize_gradient(w, g) for w, g in zip(weights, grads, strict=True)]
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        scale = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        weights = [
            w - np.float32(scale) * m / (np.sqrt(v) + np.float32(1e-8))
            for w, m, v in zip(weights, first, second, strict=True)
        ]
        if step % every == 0:
            _, test_right, _ = relu_network(weights, x[test], target[test])
            history.append((step, right, test_right))
    return np.array(history).T


def grokking() -> Claim:
    final = {
        orthogonal: np.array([modular_addition(seed, orthogonal, every=STEPS)[1:, -1] for seed in GROKKING_SEEDS])
        for orthogonal in (False, True)
    }
    return Claim(
        statement="Without any weight decay, Adam with orthogonal gradients goes on to generalize after it has "
        "fitted the training half of addition modulo 23; Adam alone does not.",
        expected="both reach training accuracy 1; test accuracy larger by at least 0.4",
        holds=bool(
            all(f[:, 0].min() > 0.99 for f in final.values()) and (final[True] - final[False])[:, 1].min() >= 0.4
        ),
        figures={
            "Adam: training accuracy, worse of two seeds": final[False][:, 0].min(),
            "Adam: test accuracy, better seed": final[False][:, 1].max(),
            "orthogonal gradients: training accuracy, worse seed": final[True][:, 0].min(),
            "orthogonal gradients: test accuracy, worse seed": final[True][:, 1].min(),
        },
    )


def figure():
    """Left: the slope at the right logit as its lead grows, for softmax as usually computed and StableMax, both in
    float32. Right: test accuracy on addition modulo 23 during training, with and without orthogonal gradients."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    leads = np.geomspace(0.5, 1e4, 120).astype(np.float32)
    logits = np.zeros((len(leads), CLASSES), np.float32)
    logits[:, 0] = leads
    labels = np.zeros(len(leads), int)
    usual = np.array([-usual_slope(row, 0) for row in logits])
    stable = stablemax_cross_entropy_vjp(logits, labels, reduction="none")[1](np.ones(len(leads), np.float32))[0][:, 0]
    seen = usual > 0
    left.loglog(leads[seen], usual[seen], label="softmax, float32")
    left.plot(leads[seen][-1], usual[seen][-1], "x", color="C0")
    left.text(0.9 * leads[seen][-1], usual[seen][-1] / 6, "exactly 0 beyond", ha="center", fontsize=9)
    left.loglog(leads, -stable, label="StableMax, float32")
    left.set(xlabel="lead of the right logit", ylabel="size of its slope", title="113 classes", ylim=(1e-8, 3))
    left.legend()
    for orthogonal, label in ((False, "Adam"), (True, "orthogonal gradients, Adam")):
        steps, train, test = modular_addition(0, orthogonal)
        right.plot(steps, test, color=f"C{int(orthogonal)}", label=f"{label}: test")
        right.plot(steps, train, ":", color=f"C{int(orthogonal)}", label=f"{label}: training")
    right.set(xlabel="step", ylabel="accuracy", title="Addition modulo 23", ylim=(-0.03, 1.05))
    right.legend(fontsize=8)
    return fig
