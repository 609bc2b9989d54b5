"""Evidence for gradient noise: a way out of all-zero weights, and what annealing is good for."""

import itertools

import numpy as np
from small_data import digits
from small_networks import accuracy, batches, mlp_loss_and_grads, mlp_vjp

from refnorm.claims import Claim
from refnorm.solvers import GradientNoise, noise_std
from refnorm.tree import tree_map

SIZES = (64, 50, 50, 50, 50, 50, 10)
RATE, BATCH, STEPS = 0.1, 50, 3000
SEEDS = (0, 1)


class Descent:
    """Gradient descent, the optimizer that gets the noisy gradients."""

    def init(self, params):
        return None

    def step(self, params, grads, state):
        return tree_map(lambda p, g: p - RATE * g, params, grads), None


def claims() -> list[Claim]:
    return [zero_start(), annealing(), stationary()]


def train(variance: float, seed: int, *, every: int = STEPS):
    """Train from zero weights and biases; return test accuracies, and the zeros among weights after one step."""
    data, rng = digits(seed=seed), np.random.default_rng(seed)
    params = [(np.zeros((a, b)), np.zeros(b)) for a, b in itertools.pairwise(SIZES)]
    optimizer = GradientNoise(Descent(), variance=variance)
    state, scores, zeros = optimizer.init(params), [], -1
    epochs = 1 + STEPS // (len(data.x) // BATCH)
    for step, rows in enumerate(batches(rng, len(data.x), BATCH, epochs), start=1):
        _, grads = mlp_loss_and_grads(params, data.x[rows], data.target[rows])
        params, state = optimizer.step(params, grads, state, rng)
        if step == 1:
            zeros = sum(int((weight == 0).sum()) for weight, _ in params)
        if step % every == 0:
            scores.append(accuracy(mlp_vjp(params, data.x_test)[0], data.target_test))
        if step == STEPS:
            break
    return scores, zeros


def zero_start() -> Claim:
    noisy, quiet = ([train(variance, seed) for seed in SEEDS] for variance in (0.01, 0.0))
    worst, best = min(scores[-1] for scores, _ in noisy), max(scores[-1] for scores, _ in quiet)
    zeros = max(zeros for _, zeros in noisy)
    return Claim(
        statement="A network of five hidden layers that starts with all weights and biases 0 learns with "
        "gradient noise and never without it (digits, 3000 steps).",
        expected="test accuracy above 0.8 with noise on both seeds, at most 0.12 without; "
        "no weight is 0 after one noisy step",
        holds=bool(worst > 0.8 and best <= 0.12 and zeros == 0),
        figures={
            "test accuracy with noise, worse seed": worst,
            "test accuracy without noise, better seed": best,
            "weights at 0 after one step with noise": zeros,
            "weights at 0 after one step without noise": quiet[0][1],
        },
    )


def least_squares(decay: float, *, steps: int = 5000, seeds: int = 10, variance: float = 1.0, rate: float = 0.01):
    """Return the loss gap after every step (steps, seeds), and the eigenvalues of each seed's Hessian."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((seeds, 100, 10))
    hessian = np.swapaxes(features, 1, 2) @ features / 100
    error, gaps = rng.standard_normal((seeds, 10)), np.empty((steps, seeds))
    for step in range(steps):
        grad = np.einsum("sij,sj->si", hessian, error)
        gaps[step] = 0.5 * np.einsum("si,si->s", error, grad)
        std = noise_std(step, variance=variance, decay=decay)
        error = error - rate * (grad + std * rng.standard_normal(grad.shape))
    return gaps, np.linalg.eigvalsh(hessian)


def annealing() -> Claim:
    annealed, fixed = (float(least_squares(decay)[0][-1].mean()) for decay in (0.55, 0.0))
    return Claim(
        statement="On least squares, annealed noise ends closer to the minimum than noise of the same first "
        "variance that stays (5000 steps, mean of ten problems).",
        expected="loss gap at most half; the law of the stationary variance predicts 5000^-0.55",
        holds=annealed <= 0.5 * fixed,
        figures={
            "loss gap, annealed": annealed,
            "loss gap, fixed": fixed,
            "ratio": annealed / fixed,
            "predicted ratio": 5000**-0.55,
        },
    )


def stationary() -> Claim:
    rate = 0.01
    gaps, curvature = least_squares(0.0)
    # A coordinate of curvature h has variance rate / (h (2 - rate h)) around the minimum, and gap h/2 of it.
    predicted = float((rate / (2 * (2 - rate * curvature))).sum(axis=1).mean())
    measured = float(gaps[2000:].mean())
    return Claim(
        statement="Fixed noise leaves the stationary gap rate variance / (2 (2 - rate h)) in each coordinate, "
        "about a quarter of rate times variance whatever the curvature h.",
        expected="mean over the last 3000 steps and ten problems within 5 percent",
        holds=abs(measured / predicted - 1) < 0.05,
        figures={"measured gap": measured, "predicted gap": predicted},
    )


def figure():
    """Test accuracy from zero weights with and without noise, and loss gaps on least squares for fixed and
    annealed noise, each beside the curve of the stationary law."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for variance, label in ((0.01, "variance 0.01"), (0.0, "no noise")):
        scores, _ = train(variance, 0, every=100)
        left.plot(100 * np.arange(1, len(scores) + 1), scores, label=label)
    left.set(xlabel="step", ylabel="test accuracy", ylim=(0, 1), title="Digits, five hidden layers of zeros")
    left.legend()
    steps = np.arange(1, 5001)
    for decay, colour, label in ((0.0, "C1", "fixed"), (0.55, "C0", "annealed")):
        gaps, curvature = least_squares(decay)
        law = 0.01 * float((1 / (2 * (2 - 0.01 * curvature))).sum(axis=1).mean())
        right.plot(steps, gaps.mean(axis=1), color=colour, label=label)
        right.plot(steps, law * steps**-decay, "--", color=colour, lw=1, label=f"{label}, law")
    right.set(xscale="log", yscale="log", xlabel="step", ylabel="loss gap", title="Least squares, mean of ten")
    right.legend()
    return fig
