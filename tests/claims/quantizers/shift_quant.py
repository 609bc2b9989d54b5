"""Evidence for ShiftQuant: variance near that of a scale for each channel, no bias, training, exact integers."""

import numpy as np
from small_data import digits
from small_networks import accuracy, batches

from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.quantizers import (
    grouping_variance_bound,
    shift_linear_vjp,
    shift_matmul,
    shift_quantize,
)
from refnorm.softmax import cross_entropy_vjp

BITS = 4
HIGHEST = 2 ** (BITS - 1) - 1
GROUPS = 8
SEEDS = range(3)
TRAINING_SEEDS = range(5)
STEPS = 300


def claims() -> list[Claim]:
    return [variance(), unbiased(), training(), exact_integers()]


def gradient(seed, examples=256, channels=128):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((examples, channels)) * np.exp(1.5 * rng.standard_normal(channels)), rng


def channel_errors(g, rng, n_groups, draws=20):
    """Mean squared error of each channel; ``n_groups=None`` gives each channel a scale of its own."""
    total = np.zeros(g.shape[1])
    for _ in range(draws):
        if n_groups is None:
            steps = np.abs(g).max(axis=0) / HIGHEST
            back = np.floor(g / steps + rng.random(g.shape)) * steps
        else:
            back = shift_quantize(g, bits=BITS, n_groups=n_groups, rng=rng).dequantize()
        total += np.square(back - g).mean(axis=0)
    return total / draws


def variance() -> Claim:
    to_ideal, tensor, worst = [], [], []
    for seed in SEEDS:
        g, rng = gradient(seed)
        ranges = np.abs(g).max(axis=0)
        shift, one, ideal = (channel_errors(g, rng, groups) for groups in (GROUPS, 1, None))
        to_ideal.append(float(np.median(shift / ideal)))
        tensor.append(float(np.median(one / shift)))
        inner = ranges > 2.0 ** -(GROUPS - 1) * ranges.max()
        worst.append(float((shift / ideal)[inner].max()))
    return Claim(
        statement="With scales that differ by powers of 2 the error is near that of a free scale for each channel, and far "
        "from that of one scale (4 bits, 8 groups, 128 channels of log-normal ranges).",
        expected="mean squared error of the median channel, on each of 3 seeds: at most 3.5 times the ideal one, and at most "
        "a tenth of one scale's; no channel above the last threshold beyond 5 times its ideal",
        holds=max(to_ideal) <= 3.5 and min(tensor) >= 10 and max(worst) <= 5,
        figures={
            "median of shift / ideal, largest": max(to_ideal),
            "median of one scale / shift, smallest": min(tensor),
            "worst channel / its ideal": max(worst),
        },
    )


def unbiased(draws=4000) -> Claim:
    g, rng = gradient(0, 64)
    total = np.zeros(g.shape)
    for _ in range(draws):
        found = shift_quantize(g, bits=BITS, n_groups=GROUPS, rng=rng)
        total += found.dequantize()
    steps = found.scale * 2.0**-found.shift
    fraction = g / steps - np.floor(g / steps)
    counted = fraction * (1 - fraction) > 1e-4
    error = np.abs(total / draws - g) / (steps * np.sqrt(fraction * (1 - fraction) / draws + ~counted))
    return Claim(
        statement="Stochastic rounding keeps the gradient unbiased.",
        expected=f"mean of {draws} draws within 6 standard errors, each of 8192 entries",
        holds=float(error[counted].max()) <= 6,
        figures={"largest deviation, in standard errors": float(error[counted].max()), "entries": int(counted.sum())},
    )


def trained_accuracy(seed, n_groups, bits=6):
    """Test accuracy of a perceptron 64-64-10; ``n_groups=None`` trains in float."""
    rng, data = np.random.default_rng(seed), digits(seed=seed)
    weights = [rng.standard_normal(shape) * np.sqrt(2 / shape[0]) for shape in ((64, 64), (64, 10))]

    def layer(x, weight):
        if n_groups is None:
            y, back = linear_vjp(x, weight)
            return y, lambda dy: back(dy)[:2]
        return shift_linear_vjp(x, weight, forward_bits=bits, grad_bits=bits, n_groups=n_groups, rng=rng)

    for step, batch in enumerate(batches(rng, len(data.x), 64, 100)):
        if step == STEPS:
            break
        hidden, back1 = layer(data.x[batch], weights[0])
        active, relu = relu_vjp(hidden)
        logits, back2 = layer(active, weights[1])
        _, loss = cross_entropy_vjp(logits, data.target[batch])
        dactive, dweight2 = back2(*loss(np.array(1.0)))
        _, dweight1 = back1(*relu(dactive))
        weights = [weights[0] - 0.1 * dweight1, weights[1] - 0.1 * dweight2]
    hidden = relu_vjp(layer(data.x_test, weights[0])[0])[0]
    return accuracy(layer(hidden, weights[1])[0], data.target_test)


def training() -> Claim:
    found = {
        name: float(np.mean([trained_accuracy(seed, groups) for seed in TRAINING_SEEDS]))
        for name, groups in (("float", None), ("one scale", 1), ("shift", 4))
    }
    return Claim(
        statement="A perceptron trains with 6-bit integers, forward and backward, about as well as in float (digits, 300 "
        "steps).",
        expected="mean test accuracy of 5 seeds at most 0.03 below float and at most 0.015 below one scale",
        holds=found["shift"] >= found["float"] - 0.03 and found["shift"] >= found["one scale"] - 0.015,
        figures={f"{name}, accuracy": value for name, value in found.items()},
    )


def exact_integers() -> Claim:
    worst = 0.0
    for seed in SEEDS:
        g, rng = gradient(seed)
        found = shift_quantize(g, bits=BITS, n_groups=GROUPS, rng=rng)
        weight, scales = rng.integers(-127, 128, (128, 32)), rng.random(32) + 0.1
        truth = found.dequantize() @ (weight * scales)
        worst = max(worst, float(np.abs(shift_matmul(found, weight, scales) - truth).max() / np.abs(truth).max()))
    return Claim(
        statement="The sum of shifted integers is the product of the decoded matrices.",
        expected="relative difference at most 1e-12 in float64 on each of 3 seeds",
        holds=worst <= 1e-12,
        figures={"largest relative difference": worst},
    )


def figure():
    """Error of channels against their range for one scale, shifted scales and free scales, and bounds against groups."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    g, rng = gradient(0)
    ranges = np.abs(g).max(axis=0)
    order = np.argsort(ranges)
    for name, groups, style in (("one scale", 1, "^"), ("shift, 8 groups", GROUPS, "o"), ("a scale each", None, "x")):
        errors = channel_errors(g, rng, groups)
        relative = np.sqrt(errors) / ranges
        left.plot(ranges[order] / ranges.max(), relative[order], style, markersize=4, label=name)
    left.axvline(2.0 ** -(GROUPS - 1), color="gray", linestyle=":", label="last threshold")
    left.set(
        xlabel="range of the channel / largest", ylabel="root mean squared error / range", xscale="log", yscale="log"
    )
    left.legend()
    counts = np.arange(1, 13)
    for method, label in (("shift", "shift"), ("optimal", "best free scales")):
        values = [grouping_variance_bound(ranges, method, bits=BITS, n_groups=int(n)) for n in counts]
        right.plot(counts, values, "o-", label=label)
    ideal = grouping_variance_bound(ranges, "channel", bits=BITS)
    right.axhline(ideal, color="C2", linestyle="--", label="a scale each")
    right.axhline(4 * ideal, color="gray", linestyle=":", label="4 times that")
    right.set(xlabel="groups", ylabel="bound of the variance", yscale="log")
    right.legend()
    return fig
