"""Evidence for AdamP and SGDP: why momentum makes weights grow, and what the projection does about it."""

import numpy as np

from refnorm.claims import Claim
from refnorm.solvers import SGDP

DIMENSION, RATE, MOMENTUM, NOISE, STEPS, LAST = 64, 0.5, 0.9, 0.1, 1000, 100


def claims() -> list[Claim]:
    return [norm_identity(), slowdown_and_cure()]


def unit(vector):
    return vector / np.linalg.norm(vector)


def gradient(w, target):
    """Slope of ``1 - cos(w, target)`` for a vector ``target``: orthogonal to ``w``, of size 1 / |w|."""
    direction = unit(w)
    return -(target - direction * (direction @ target)) / np.linalg.norm(w)


def norm_identity() -> Claim:
    rng = np.random.default_rng(0)
    target, w = unit(rng.standard_normal(DIMENSION)), unit(rng.standard_normal(DIMENSION))
    buffer, squares, worst = np.zeros(DIMENSION), [], 0.0
    growth_here, growth_past = 0.0, 0.0
    for t in range(200):
        buffer = MOMENTUM * buffer + gradient(w, target)
        after = w - RATE * buffer
        squares.append(float(buffer @ buffer))
        past = sum(MOMENTUM ** (t - k) * squares[k] for k in range(t))
        predicted = w @ w + RATE**2 * squares[-1] + 2 * RATE**2 * past
        worst = max(worst, abs(float(after @ after) / predicted - 1))
        growth_here, growth_past = growth_here + squares[-1], growth_past + 2 * past
        w = after
    return Claim(
        statement="For a scale-invariant loss, momentum adds to |w|^2 not only the square of each step but "
        "twice the discounted squares of all steps before it (the lemma on norm growth by momentum).",
        expected="relative error of the identity below 1e-10 at each of 200 heavy-ball steps",
        holds=worst < 1e-10,
        figures={
            "worst relative error": worst,
            "growth of |w|^2 in units of the squared steps alone": 1 + growth_past / growth_here,
            "its limit for steps of constant size, 1 + 2 b / (1 - b)": 1 + 2 * MOMENTUM / (1 - MOMENTUM),
        },
    )


def race(optimizer, seed: int):
    """Return |w| and the angle to the iterate before, for each step on noisy gradients."""
    rng = np.random.default_rng(seed)
    target, w = unit(rng.standard_normal(DIMENSION)), unit(rng.standard_normal(DIMENSION))
    # Two dimensions, one channel: the optimizer may look for scale invariance.
    w = w[None]
    state, norms, angles = optimizer.init(w), [], []
    for _ in range(STEPS):
        noisy = target + NOISE * rng.standard_normal(DIMENSION)
        after, state = optimizer.step(w, gradient(w[0], noisy)[None], state)
        cosine = float(unit(w[0]) @ unit(after[0]))
        angles.append(float(np.arccos(min(cosine, 1.0))))
        norms.append(float(np.linalg.norm(after)))
        w = after
    return norms, angles


def optimizers():
    # A threshold of 0, but for the smallest number, takes the projection out.
    return {
        "gradient descent": SGDP(RATE, delta=5e-324),
        "momentum": SGDP(RATE, momentum=MOMENTUM, delta=5e-324),
        "SGDP": SGDP(RATE, momentum=MOMENTUM),
    }


def slowdown_and_cure() -> Claim:
    size, angle = {}, {}
    for name, optimizer in optimizers().items():
        norms, angles = race(optimizer, seed=0)
        size[name], angle[name] = norms[-1], float(np.mean(angles[-LAST:]))
    holds = size["momentum"] > 2 * size["SGDP"] and angle["SGDP"] > 4 * angle["momentum"]
    return Claim(
        statement="Momentum makes a scale-invariant weight grow until its steps on the sphere are tiny; "
        "projecting the update removes that growth and keeps the steps (64 dimensions, noisy gradients).",
        expected="|w| with momentum above twice that with SGDP; mean angle of the last 100 of 1000 steps "
        "with SGDP above 4 times that with momentum",
        holds=bool(holds),
        figures={f"|w| at the end, {name}": value for name, value in size.items()}
        | {f"mean angle of a step in radians, {name}": value for name, value in angle.items()},
    )


def figure():
    """Norm of the weight and angle of a step over a run, for three optimizers."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    for name, optimizer in optimizers().items():
        norms, angles = race(optimizer, seed=0)
        axes[0].plot(norms, label=name)
        axes[1].plot(np.convolve(angles, np.ones(20) / 20, mode="valid"), label=name)
    axes[0].set(xlabel="step", ylabel="norm of the weight")
    axes[1].set(xlabel="step", ylabel="angle of a step (mean of 20)", yscale="log")
    axes[0].legend()
    return fig
