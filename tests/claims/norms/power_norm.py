"""Evidence for power normalization: fluctuating statistics, a bounded backward statistic, the stationary limit."""

import functools

import numpy as np

from refnorm.claims import Claim
from refnorm.norms import PowerNormState, power_norm, power_norm_v, power_norm_v_vjp, power_norm_vjp

TOKENS, CHANNELS, BATCHES = 32, 8, 200
PLAIN = {"warmup": 0, "groups": None}
ONE, ZERO = np.ones(CHANNELS), np.zeros(CHANNELS)


def claims() -> list[Claim]:
    return [fluctuation(), bounded(), stationary()]


@functools.cache
def stream(spread: float):
    """Batches whose scale is log-normal: mean squares, running mean squares, and outputs of both forms."""
    rng = np.random.default_rng(0)
    state, squares, running, by_power, by_batch = PowerNormState.create(CHANNELS), [], [], [], []
    for _ in range(BATCHES):
        x = np.exp(spread * rng.standard_normal()) * rng.standard_normal((TOKENS, CHANNELS))
        squares.append((x * x).mean(axis=0))
        running.append(state.mean_square)
        y, state = power_norm(x, ONE, ZERO, state, **PLAIN)
        by_power.append(np.sqrt((y * y).mean(axis=0)))
        by_batch.append(np.sqrt((power_norm_v(x, ONE, ZERO) ** 2).mean(axis=0)))
    return tuple(np.array(a) for a in (squares, running, by_power, by_batch))


def fluctuation() -> Claim:
    deviation = {}
    for name, spread in (("text-like", 1.0), ("independent", 0.0)):
        squares, running, *_ = stream(spread)
        deviation[name] = float(np.median(np.abs(squares / running - 1)[20:]))
    squares, running, by_power, by_batch = stream(1.0)
    follows = float(np.abs(by_power - np.sqrt(squares / (running + 1e-5))).max())
    flat = float(np.abs(by_batch - 1).max())
    return Claim(
        statement="Where the scale of the data changes from batch to batch, as in text, a batch's mean square is far from "
        "the running one. Power norm passes such changes on; division by the batch's own statistics erases them.",
        expected="median relative distance more than 3 times that of independent data (200 batches of 32 tokens); output "
        "of power norm varies with the data to 1e-9; the batch form's root mean square within 0.01 of 1",
        holds=deviation["text-like"] > 3 * deviation["independent"] and follows < 1e-9 and flat < 0.01,
        figures={f"relative distance, {name}": value for name, value in deviation.items()}
        | {"ratio": deviation["text-like"] / deviation["independent"], "batch form, largest distance from 1": flat},
    )


def bounded() -> Claim:
    rng = np.random.default_rng(0)
    state, largest, premise, powers, alongs = PowerNormState.create(CHANNELS), 0.0, 0.0, [], []
    for _ in range(2000):
        x = np.exp(0.1 * rng.standard_normal()) * rng.standard_normal((TOKENS, CHANNELS))
        dy = rng.uniform(-1, 1, (TOKENS, CHANNELS))
        z = x / np.sqrt(state.mean_square + 1e-5)
        powers.append((z * z).mean(axis=0).min())
        alongs.append(np.abs((dy * z).mean(axis=0)).max())
        premise = max(premise, float(0.1 * (z * z).mean(axis=0).max()))
        state = power_norm_vjp(x, ONE, ZERO, state, **PLAIN)[1](dy)[1]
        largest = max(largest, float(np.abs(state.backward_mean).max()))
    bound = float(max(alongs) / min(powers))
    return Claim(
        statement="The backward statistic stays bounded, and with it the gradient: it never exceeds the largest batch "
        "statistic over the smallest mean square of z (the paper's theorem).",
        expected="2000 batches, |cotangent| <= 1: the premise (1 - decay) mean(z^2) <= 1 holds throughout and the bound is "
        "not exceeded by 1e-9",
        holds=premise <= 1 and largest <= bound + 1e-9,
        figures={"largest backward statistic": largest, "bound": bound, "largest (1 - decay) mean(z^2)": premise},
    )


@functools.cache
def approach():
    """Largest distance of the gradient from the batch form's exact one, batch after batch of the same data."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, TOKENS, CHANNELS))
    exact = power_norm_v_vjp(x, ONE, ZERO, eps=1e-300)[1](dy)[0]
    state, found = PowerNormState.create(CHANNELS), []
    for _ in range(500):
        (dx, _, _), state = power_norm_vjp(x, ONE, ZERO, state, eps=1e-300, **PLAIN)[1](dy)
        found.append(float(np.abs(dx - exact).max()))
    balance = (dy * x).mean(axis=0) / np.sqrt((x * x).mean(axis=0))
    return found, float(np.abs(state.backward_mean - balance).max())


def stationary() -> Claim:
    found, distance = approach()
    return Claim(
        statement="If nothing changes from batch to batch, the approximate gradient becomes the exact one of the form with "
        "batch statistics.",
        expected="after 500 equal batches, gradient and backward statistic within 1e-9 of their limits",
        holds=found[-1] < 1e-9 and distance < 1e-9,
        figures={
            "distance of the gradient, first batch": found[0],
            "distance of the gradient, batch 500": found[-1],
            "distance of the backward statistic": distance,
        },
    )


def figure():
    """Left: mean square of one channel, batch by batch and running. Right: the gradient's way to the exact one."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    for spread, label in ((1.0, "text-like"), (0.0, "independent")):
        squares, running, *_ = stream(spread)
        (line,) = left.plot(squares[:100, 0], linewidth=0.8, label=f"{label}, batch")
        left.plot(running[:100, 0], "--", color=line.get_color(), label=f"{label}, running")
    left.set(yscale="log", xlabel="batch", ylabel="mean square of a channel")
    left.legend(fontsize=8)
    right.plot(np.maximum(approach()[0], 1e-17))
    right.set(yscale="log", xlabel="batch", ylabel="distance from the exact gradient")
    return fig
