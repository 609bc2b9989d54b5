"""Evidence for training in 16 bits: accuracy, vanishing gradients, and the order of 16-bit sums."""

import numpy as np
from small_data import digits
from small_networks import accuracy, batches

from refnorm.claims import Claim
from refnorm.nn import relu_vjp
from refnorm.quantizers import (
    LossScaler,
    Precision,
    conv2d_lowp_vjp,
    dot_error_bound,
    linear_lowp_vjp,
    matmul_lowp,
    round_float16,
    sgd_lowp_step,
    softmax_cross_entropy_lowp_vjp,
)

SINGLE = Precision("float32", "float32", "float32")
MIXED = Precision("float16", "float32", "float32")
HALF = Precision("float16", "float16", "float16")
BRAIN = Precision("bfloat16", "bfloat16", "bfloat16")
SEEDS = range(3)
LEARNING_RATE, BATCH = 0.05, 32
HALF_STEPS = 20


def claims() -> list[Claim]:
    return [parity(), half_parity(), underflow(), sums(), errors()]


def network(rng):
    shapes = ((8, 1, 3, 3), (16, 8, 3, 3), (10, 256))
    weights = [rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) for shape in shapes]
    return [array for weight in weights for array in (weight, np.zeros(len(weight)))]


def forward_vjp(params, x, precision):
    """Logits of convolution, convolution with stride 2 and a linear layer, and the pullback to the parameters."""
    y, back1 = conv2d_lowp_vjp(x, *params[:2], padding=1, precision=precision)
    y, relu1 = relu_vjp(y)
    y, back2 = conv2d_lowp_vjp(y, *params[2:4], stride=2, padding=1, precision=precision)
    y, relu2 = relu_vjp(y)
    shape = y.shape
    logits, back3 = linear_lowp_vjp(y.reshape(len(y), -1), *params[4:], precision=precision)

    def pullback(dlogits):
        dy, *last = back3(dlogits)
        dy, *middle = back2(*relu2(dy.reshape(shape)))
        _, *first = back1(*relu1(dy))
        return [*first, *middle, *last]

    return logits, pullback


def gradients(params, x, target, precision, dloss):
    logits, back = forward_vjp(params, x, precision)
    _, loss_back = softmax_cross_entropy_lowp_vjp(logits, np.eye(10)[target], precision.storage)
    return back(loss_back(np.array(dloss))[0])


def standardized(seed):
    data = digits(images=True, seed=seed)
    mean, std = data.x.mean(), data.x.std()
    return (data.x - mean) / std, data.target, (data.x_test - mean) / std, data.target_test


def trained_accuracy(seed, precision, *, epochs=1, steps=10**6, loss_scale=1.0):
    rng = np.random.default_rng(seed)
    x, target, x_test, target_test = standardized(seed)
    params = network(rng)
    scaler = LossScaler(initial=loss_scale, dynamic=False)
    state = scaler.init()
    for step, batch in enumerate(batches(rng, len(x), BATCH, epochs)):
        if step == steps:
            break
        scaled = gradients(params, x[batch], target[batch], precision, float(scaler.scale(np.array(1.0), state)))
        grads, finite = scaler.unscale(scaled, state)
        if finite:
            params = [
                sgd_lowp_step(param, grad, learning_rate=LEARNING_RATE, storage=precision.storage)[0]
                for param, grad in zip(params, grads, strict=True)
            ]
    wide = Precision(precision.storage, "float32", "float32")
    return accuracy(forward_vjp(params, x_test, wide)[0], target_test)


def parity() -> Claim:
    single = [trained_accuracy(seed, SINGLE) for seed in SEEDS]
    mixed = [trained_accuracy(seed, MIXED) for seed in SEEDS]
    return Claim(
        statement="Training with weights, activations and gradients in float16 and float32 sums is as accurate as float32 "
        "(two convolutions and a linear layer, 8 x 8 digits, 1 epoch).",
        expected="test accuracy at most 0.01 below float32 on each of 3 seeds",
        holds=all(low >= full - 0.01 for low, full in zip(mixed, single, strict=True)),
        figures={
            "float32, mean accuracy": float(np.mean(single)),
            "float16, mean accuracy": float(np.mean(mixed)),
            "largest loss of accuracy": float(np.max(np.subtract(single, mixed))),
        },
    )


def half_parity() -> Claim:
    single = trained_accuracy(0, SINGLE, steps=HALF_STEPS)
    half = trained_accuracy(0, HALF, steps=HALF_STEPS, loss_scale=256.0)
    return Claim(
        statement="So is training with every sum and every update in float16 as well, with a loss scale of 256.",
        expected=f"test accuracy at most 0.03 below float32 after {HALF_STEPS} steps, 1 seed",
        holds=half >= single - 0.03,
        figures={"float32, accuracy": single, "float16 everywhere, accuracy": half},
    )


def zero_fraction(seed, precision, dloss):
    x, target, _, _ = standardized(seed)
    grads = gradients(network(np.random.default_rng(seed)), x[:BATCH], target[:BATCH], precision, dloss)
    weights = np.concatenate([grad.ravel() for grad in grads[::2]])
    return float((weights == 0).mean())


def underflow() -> Claim:
    small = 1e-6
    plain = [zero_fraction(seed, MIXED, small) for seed in SEEDS]
    scaled = [zero_fraction(seed, MIXED, small * 2.0**15) for seed in SEEDS]
    single = [zero_fraction(seed, SINGLE, small) for seed in SEEDS]
    return Claim(
        statement="Small gradients vanish in float16, and a loss scale keeps them (loss multiplied by 1e-6).",
        expected="on each of 3 seeds, at least 0.7 of the weights' gradients 0 without a scale; with 2^15 at most 0.01 more "
        "than in float32",
        holds=min(plain) >= 0.7 and max(np.subtract(scaled, single)) <= 0.01,
        figures={
            "zeros, float16, smallest fraction": min(plain),
            "zeros, float16 with the scale, largest fraction": max(scaled),
            "zeros, float32, largest fraction": max(single),
        },
    )


def sums() -> Claim:
    ones = np.ones((1, 4096))
    found = {
        f"{name}, {order}": float(matmul_lowp(ones, ones.T, precision=precision, order=order)[0, 0])
        for name, precision, orders in (
            ("float16", HALF, ("sequential", "lanes", "pairwise")),
            ("bfloat16", BRAIN, ("sequential", "lanes")),
        )
        for order in orders
    }
    return Claim(
        statement="A running sum of ones stops where one is half the distance of two numbers, and two lanes go twice as far: "
        "the weight gradient, which is summed in sequence, saturates before the forward pass does.",
        expected="4096 ones: 2048, 4096 and 4096 in float16, 256 and 512 in bfloat16",
        holds=list(found.values()) == [2048, 4096, 4096, 256, 512],
        figures=found,
    )


TERMS = (64, 256, 1024)


def relative_errors(terms, order):
    rng = np.random.default_rng(terms)
    a, b = round_float16(rng.standard_normal((200, terms))), round_float16(rng.standard_normal((terms, 1)))
    return np.abs(matmul_lowp(a, b, order=order) - a @ b) / (np.abs(a) @ np.abs(b))


def errors() -> Claim:
    found = {(terms, order): relative_errors(terms, order) for terms in TERMS for order in ("sequential", "lanes")}
    bounded = all(error.max() <= dot_error_bound(terms, 2.0**-11, order) for (terms, order), error in found.items())
    ratios = [float(found[terms, "lanes"].mean() / found[terms, "sequential"].mean()) for terms in TERMS]
    return Claim(
        statement="The error of a float16 dot product stays below its bound, and two lanes make it smaller.",
        expected="200 products of 64, 256 and 1024 normal terms: all below the bound; ratio of mean errors below 0.95 on average",
        holds=bounded and float(np.mean(ratios)) < 0.95,
        figures={f"mean error of lanes / sequential, {k} terms": ratio for k, ratio in zip(TERMS, ratios, strict=True)}
        | {"largest error / bound": max(
            float(error.max() / dot_error_bound(terms, 2.0**-11, order)) for (terms, order), error in found.items()
        )},
    )  # fmt: skip


def figure():
    """Running sums of ones that stop at 2048 and 4096, and a histogram of gradients against the range of float16."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    counts = np.unique(np.geomspace(32, 10000, 24).astype(int))
    for name, precision in (("float16", HALF), ("bfloat16", BRAIN)):
        for order, style in (("sequential", "-"), ("lanes", "--")):
            totals = [
                matmul_lowp(np.ones((1, n)), np.ones((n, 1)), precision=precision, order=order)[0, 0] for n in counts
            ]
            color = "C0" if name == "float16" else "C1"
            left.plot(counts, totals, style, color=color, label=f"{name}, {order}")
    left.plot(counts, counts, ":", color="gray", label="exact")
    left.set(xlabel="number of ones", ylabel="their 16-bit sum", xscale="log", yscale="log")
    left.legend()
    x, target, _, _ = standardized(0)
    grads = gradients(network(np.random.default_rng(0)), x[:BATCH], target[:BATCH], SINGLE, 1e-6)
    sizes = np.abs(np.concatenate([grad.ravel() for grad in grads[::2]]))
    logs = np.log2(sizes[sizes > 0])
    bins = np.arange(-42, 0)
    right.hist(logs, bins, alpha=0.6, label="gradients")
    right.hist(logs + 15, bins, alpha=0.6, label="times $2^{15}$")
    right.axvline(-25, color="black", linestyle="--", label="rounded to 0 below")
    right.set(xlabel="$\\log_2$ of the magnitude", ylabel="number of weights", ylim=(0, 900))
    right.legend(loc="upper right")
    return fig
