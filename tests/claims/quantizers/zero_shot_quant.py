"""Evidence for ZeroQ: distilled inputs against real ones and noise, and the frontier against all choices."""

import functools
import itertools

import numpy as np
from scipy.stats import spearmanr
from small_data import digits

from refnorm.claims import Claim
from refnorm.nn import conv2d, conv2d_vjp, relu_vjp
from refnorm.norms import batch_norm, batch_norm_vjp
from refnorm.quantizers import activation_ranges, distill_data, layer_sensitivity, pareto_frontier
from refnorm.quantizers._calibration import fake_quantize_range
from refnorm.softmax import cross_entropy_vjp

SEEDS = range(3)
CHANNELS, TRAINING_STEPS, BATCH = 8, 250, 64
IMAGES, DISTILL_STEPS = 32, 300
BITS = (2, 4, 8)
AXES = (0, 2, 3)


def claims() -> list[Claim]:
    return [statistics(), accuracies(), sensitivities(), frontiers()]


@functools.cache
def data():
    """Digits with one mean and one deviation for all pixels."""
    split = digits(images=True)
    shift, scale = split.x.mean(), split.x.std()
    return (
        ((split.x - shift) / scale).astype(np.float32),
        split.target,
        ((split.x_test - shift) / scale).astype(np.float32),
        split.target_test,
    )


@functools.cache
def trained(seed: int):
    """Weights (two convolutions, a linear layer), gains, biases, and the stored statistics of both batch norms."""
    x, target = data()[:2]
    rng = np.random.default_rng(seed)
    shapes = [(CHANNELS, 1, 3, 3), (CHANNELS, CHANNELS, 3, 3), (10, CHANNELS)]
    params = [(rng.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for s in shapes]
    params += [np.ones(CHANNELS, np.float32), np.ones(CHANNELS, np.float32)]
    params += [np.zeros(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32), np.zeros(10, np.float32)]
    speed = [np.zeros_like(p) for p in params]
    for _ in range(TRAINING_STEPS):
        batch = rng.integers(len(x), size=BATCH)
        grads = gradients(params, x[batch], target[batch])
        speed = [np.float32(0.9) * v + g for v, g in zip(speed, grads, strict=True)]
        params = [p - np.float32(0.05) * v for p, v in zip(params, speed, strict=True)]
    stats, h = [], x
    for i in range(2):
        h = conv2d(h, params[i], padding=1)
        stats.append((h.mean(axis=AXES), h.var(axis=AXES)))
        h = np.maximum(batch_norm(h, params[3 + i], params[5 + i], *stats[i], axes=AXES), 0)
    return params, stats


def gradients(params, x, target):
    h, backs = x, []
    for i in range(2):
        h, through_conv = conv2d_vjp(h, params[i], padding=1)
        h, through_norm = batch_norm_vjp(h, params[3 + i], params[5 + i], axes=AXES)
        h, through_relu = relu_vjp(h)
        backs.append((through_conv, through_norm, through_relu))
    pooled = h.mean(axis=(2, 3))
    _, back = cross_entropy_vjp(pooled @ params[2].T + params[7], target)
    dlogits = back(np.float32(1))[0]
    found = {2: dlogits.T @ pooled, 7: dlogits.sum(axis=0)}
    dh = np.broadcast_to((dlogits @ params[2])[:, :, None, None] / np.float32(64), h.shape)
    for i in (1, 0):
        through_conv, through_norm, through_relu = backs[i]
        dh, found[3 + i], found[5 + i] = through_norm(through_relu(dh)[0])[:3]
        dh, found[i] = through_conv(dh)[:2]
    return [found[i] for i in range(8)]


def activations(seed: int, weights, x, ranges=None, bits: int = 8):
    """The two ReLU outputs, quantized if ranges are given, and the logits."""
    params, stats = trained(seed)
    found, h = [], x
    for i in range(2):
        h = conv2d(h, weights[i], padding=1)
        h = np.maximum(batch_norm(h, params[3 + i], params[5 + i], *stats[i], axes=AXES), 0)
        if ranges is not None:
            h = fake_quantize_range(h, ranges[0][i], ranges[1][i], bits=bits)
        found.append(h)
    return [*found, h.mean(axis=(2, 3)) @ weights[2].T + params[7]]


@functools.cache
def distilled(seed: int):
    params, stats = trained(seed)

    def conv(i):
        return lambda x: conv2d_vjp(x, params[i], padding=1)

    def norm(i):
        return lambda x: batch_norm_vjp(x, params[3 + i], params[5 + i], *stats[i], axes=AXES)

    layers = [conv(0), norm(0), relu_vjp, conv(1), norm(1)]
    return distill_data(
        layers,
        [(1, *stats[0]), (4, *stats[1])],
        (IMAGES, 1, 8, 8),
        n_iter=DISTILL_STEPS,
        rng=np.random.default_rng(1000 + seed),
    )


def inputs(seed: int):
    rng = np.random.default_rng(2000 + seed)
    x = data()[0]
    return {
        "distilled": distilled(seed).x,
        "noise": rng.standard_normal((IMAGES, 1, 8, 8)).astype(np.float32),
        "real": x[rng.choice(len(x), IMAGES, replace=False)],
    }


@functools.cache
def ranges(seed: int):
    weights = trained(seed)[0][:3]
    return {kind: activation_ranges(lambda x: activations(seed, weights, x)[:2], x) for kind, x in inputs(seed).items()}


def statistics() -> Claim:
    falls, off = [], {"distilled": [], "noise": []}
    for seed in SEEDS:
        losses = distilled(seed).history["loss"]
        falls.append(losses[0] / losses[-1])
        real = ranges(seed)["real"][1]
        for kind, errors in off.items():
            errors.append(float(np.abs(ranges(seed)[kind][1] / real - 1).mean()))
    ratios = np.array(off["distilled"]) / off["noise"]
    return Claim(
        statement="Inputs with the stored statistics give the ranges of activations that real images give; noise does not.",
        expected="loss falls at least 100-fold on each of 3 seeds; mean ratio of the ranges' relative errors at most 0.6",
        holds=bool(min(falls) >= 100 and ratios.mean() <= 0.6),
        figures={
            "smallest fall of the loss, first over last": float(min(falls)),
            "mean ratio of errors": float(ratios.mean()),
            "mean relative error, distilled": float(np.mean(off["distilled"])),
            "mean relative error, noise": float(np.mean(off["noise"])),
        },
    )


@functools.cache
def accuracy(seed: int, kind: str, bits: int) -> float:
    _, _, x, target = data()
    weights = trained(seed)[0][:3]
    if kind == "float":
        return float((activations(seed, weights, x)[2].argmax(axis=1) == target).mean())
    quantized = []
    for w in weights:
        over = tuple(range(1, w.ndim))
        low, high = w.min(axis=over, keepdims=True), w.max(axis=over, keepdims=True)
        quantized.append(fake_quantize_range(w, low, high, bits=4))
    logits = activations(seed, quantized, x, ranges(seed)[kind], bits)[2]
    return float((logits.argmax(axis=1) == target).mean())


def accuracies() -> Claim:
    mean = {
        (kind, bits): float(np.mean([accuracy(seed, kind, bits) for seed in SEEDS]))
        for kind in ("distilled", "noise", "real")
        for bits in (3, 4)
    }
    worst = min(accuracy(s, "distilled", b) - accuracy(s, "real", b) for s in SEEDS for b in (3, 4))
    return Claim(
        statement="Ranges from distilled inputs serve as well as ranges from real images, and better than ranges from noise.",
        expected="4-bit weights: distilled at most 0.05 below real, on each of 3 seeds with 3- and 4-bit activations; mean ahead of noise "
        "by more than 0.02 at 3 bits",
        holds=worst >= -0.05 and mean["distilled", 3] - mean["noise", 3] > 0.02,
        figures={f"mean accuracy, {kind}, {bits}-bit activations": value for (kind, bits), value in mean.items()}
        | {
            "smallest lead of distilled over real": worst,
            "mean accuracy, float": float(np.mean([accuracy(s, "float", 0) for s in SEEDS])),
        },
    )


@functools.cache
def sensitivity(seed: int, kind: str):
    weights = trained(seed)[0][:3]
    return layer_sensitivity(lambda w, x: activations(seed, w, x)[2], weights, inputs(seed)[kind], BITS)


def sensitivities() -> Claim:
    agreement = {
        kind: [float(spearmanr(sensitivity(s, kind).ravel(), sensitivity(s, "real").ravel()).statistic) for s in SEEDS]
        for kind in ("distilled", "noise")
    }
    return Claim(
        statement="Distilled inputs rank layers and bits by sensitivity as real images do.",
        expected="rank correlation over 3 layers and 3 numbers of bits at least 0.85 on each of 3 seeds",
        holds=min(agreement["distilled"]) >= 0.85,
        figures={f"smallest rank correlation, {kind}": min(values) for kind, values in agreement.items()},
    )


def frontiers() -> Claim:
    equal = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sizes, found = rng.integers(50, 5000, 6), rng.exponential(size=(6, 1)) * np.array([1, 0.1, 0.001])
        frontier = pareto_frontier(found, sizes, BITS)
        picks = np.array(list(itertools.product(range(3), repeat=6)))
        size = (sizes * np.array(BITS)[picks]).sum(axis=1)
        total = found[np.arange(6), picks].sum(axis=1)
        budgets = np.linspace(size.min(), size.max(), 50)
        least = [total[size <= budget].min() for budget in budgets]
        chosen = [sum(found[i, BITS.index(k)] for i, k in enumerate(frontier.select(b))) for b in budgets]
        equal += bool(np.allclose(chosen, least, rtol=1e-12, atol=0))
    return Claim(
        statement="The frontier, built layer by layer, holds the best choice of bits for every budget.",
        expected="least sensitivity of all 729 choices for 50 budgets, on each of 20 networks of 6 layers",
        holds=equal == 20,
        figures={"networks with all budgets right, of 20": equal},
    )


def figure():
    """Four distilled inputs, the loss of the distillation, and the frontier of a small network."""
    import matplotlib.pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    found = distilled(0)
    rows = found.x[:4, 0].reshape(2, 2, 8, 8).transpose(0, 2, 1, 3).reshape(16, 16)
    left.imshow(rows, cmap="gray")
    left.axhline(7.5, color="white", lw=2)
    left.axvline(7.5, color="white", lw=2)
    left.set(xticks=[], yticks=[], title="four distilled inputs")
    left.grid(visible=False)
    middle.semilogy(found.history["loss"])
    middle.set(xlabel="step", ylabel="loss", title="distillation")
    weights = trained(0)[0][:3]
    for kind, mark in (("distilled", "o-"), ("real", "s--")):
        frontier = pareto_frontier(sensitivity(0, kind), np.array([w.size for w in weights]), BITS)
        right.semilogy(frontier.size / 8, frontier.sensitivity, mark, label=kind, ms=4)
    right.set(xlabel="bytes of weights", ylabel="sum of sensitivities", title="frontier")
    right.legend()
    return fig
