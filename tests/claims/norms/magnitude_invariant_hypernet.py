"""Evidence for magnitude invariant hypernetworks: proportionality, its end, and what training gains."""

import functools

import numpy as np
from small_data import digits

from refnorm.claims import Claim
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.norms import encode_cos_sin, hypernet_vjp, init_hypernet, magnitude_profile, unflatten_vjp
from refnorm.softmax import cross_entropy_vjp
from refnorm.tree import tree_leaves, tree_map

SEEDS = range(5)
SHAPES = {"weight1": (64, 16), "bias1": (16,), "weight2": (16, 10), "bias2": (10,)}
VARIANTS = {
    "default": {"encoding": "none", "residual": False},
    "residual only": {"encoding": "none"},
    "encoding only": {"residual": False},
    "both": {},
}
INPUTS = np.array([[0.1], [0.2], [0.5], [1.0]])


def claims() -> list[Claim]:
    return [proportionality(), gradients(), training()]


def proportionality() -> Claim:
    raw = magnitude_profile(INPUTS, (1, 16, 128, 1000), np.random.default_rng(0), n_draws=100, encoding="none")
    encoded = magnitude_profile(INPUTS, (2, 16, 128, 1000), np.random.default_rng(0), n_draws=100)
    slope = float(np.polyfit(np.log(INPUTS[:, 0]), np.log(raw), 1)[0])
    ratio = float(encoded.max() / encoded.min())
    norms = np.linalg.norm(encode_cos_sin(np.linspace(0, 1, 101)[:, None]), axis=1)
    return Claim(
        statement="A hypernetwork's output is proportional to its input; with the encoding its size is the same everywhere "
        "(one input, hidden layers of 16 and 128, 1000 outputs, 100 random networks).",
        expected="slope of log size against log input 1 to within 1e-10; with the encoding, sizes at 0.1, 0.2, 0.5 and 1 "
        "within 15% of each other; norm of the code 1 to within 4e-16",
        holds=abs(slope - 1) < 1e-10 and ratio < 1.15 and float(np.abs(norms - 1).max()) < 4e-16,
        figures={
            "slope without encoding": slope,
            "largest over smallest size, without encoding": float(raw.max() / raw.min()),
            "largest over smallest size, with encoding": ratio,
        },
    )


@functools.cache
def data():
    return digits(scale=8.0)


def start(variant, seed):
    inputs = 1 if VARIANTS[variant].get("encoding") == "none" else 2
    return init_hypernet((inputs, 16, 128), SHAPES, np.random.default_rng(seed))


def loss_and_grads(params, variant, strength, x, target):
    """Cross-entropy, and the gradient of it with the penalty whose weight the hypernetwork is told."""
    theta, back_hyper = hypernet_vjp(np.array([[strength]]), params, **VARIANTS[variant])
    primary, back_cut = unflatten_vjp(theta[0], SHAPES)
    a, back_first = linear_vjp(x, primary["weight1"], primary["bias1"])
    h, back_relu = relu_vjp(a)
    logits, back_second = linear_vjp(h, primary["weight2"], primary["bias2"])
    loss, back_loss = cross_entropy_vjp(logits, target)
    dh, dweight2, dbias2 = back_second(back_loss(np.array(1.0))[0])
    _, dweight1, dbias1 = back_first(back_relu(dh)[0])
    penalty = 2 * 10.0 ** (-4 + 3 * strength)
    cotangents = {
        "weight1": dweight1 + penalty * primary["weight1"], "bias1": dbias1,
        "weight2": dweight2 + penalty * primary["weight2"], "bias2": dbias2,
    }  # fmt: skip
    return float(loss), back_hyper(back_cut(cotangents)[0][None])[1]


@functools.cache
def spread_of_gradients(variant, seed):
    """Standard deviation over mean of the first layer's gradient norm, over inputs, at the start."""
    rng = np.random.default_rng(500 + seed)
    params, batch = start(variant, seed), rng.integers(len(data().x), size=64)
    norms = [
        np.linalg.norm(loss_and_grads(params, variant, s, data().x[batch], data().target[batch])[1].weights[0])
        for s in rng.random(60)
    ]
    return float(np.std(norms) / np.mean(norms))


def gradients() -> Claim:
    spread = {v: float(np.mean([spread_of_gradients(v, seed) for seed in SEEDS])) for v in ("default", "both")}
    ratio = spread["default"] / spread["both"]
    return Claim(
        statement="Without the encoding the first layer's gradient varies with the input; with it, much less "
        "(digits, primary network 64-16-10, at the start).",
        expected="coefficient of variation of the gradient's norm over 60 inputs, mean of 5 seeds: more than twice as large "
        "for the default",
        holds=ratio > 2,
        figures={f"coefficient of variation, {v}": s for v, s in spread.items()} | {"ratio": ratio},
    )


@functools.cache
def losses(variant, seed, least=0):
    """Cross-entropy of each step of Adam, until the mean of 20 falls below 0.5 and at least ``least`` steps."""
    rng = np.random.default_rng(900 + seed)
    params = start(variant, seed)
    first = second = tree_map(np.zeros_like, params)
    history = []
    for step in range(1, 501):
        batch = rng.integers(len(data().x), size=64)
        loss, grads = loss_and_grads(params, variant, rng.random(), data().x[batch], data().target[batch])
        history.append(loss)
        if step >= max(20, least) and np.mean(history[-20:]) < 0.5:
            break
        first = tree_map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        a, b = 1 - 0.9**step, 1 - 0.999**step
        params = tree_map(lambda p, m, v, a=a, b=b: p - 1e-3 * (m / a) / (np.sqrt(v / b) + 1e-8), params, first, second)
    assert all(np.isfinite(leaf).all() for _, leaf in tree_leaves(params))
    return history


def training() -> Claim:
    steps = {v: float(np.median([len(losses(v, seed)) for seed in SEEDS])) for v in VARIANTS}
    ratio = steps["both"] / steps["default"]
    return Claim(
        statement="Training is faster with the encoding and the base than without; the encoding does most of it "
        "(digits, the input sets the weight penalty, Adam 0.001).",
        expected="median of 5 seeds of the steps until the running cross-entropy of 20 steps is below 0.5: at most 0.85 of "
        "the default's",
        holds=ratio <= 0.85,
        figures={f"steps, {v}": s for v, s in steps.items()} | {"ratio": ratio},
    )


def figure():
    """Left, size of predicted weights against the input: a line through 0 without encoding, flat on the circle. Right, losses."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    x = np.linspace(0, 1, 21)[:, None]
    for encoding, label in (("none", "none (default)"), ("complement", "x and 1 - x"), ("cos_sin", "cosine and sine")):
        sizes = (1 if encoding == "none" else 2, 16, 128, 300)
        left.plot(x, magnitude_profile(x, sizes, np.random.default_rng(0), n_draws=60, encoding=encoding), label=label)
    left.set(xlabel="input", ylabel="root mean square of the output", ylim=(0, None))
    left.legend(title="encoding")
    for variant in VARIANTS:
        curves = [losses(variant, seed, least=90)[:90] for seed in range(2)]
        smooth = np.convolve(np.mean(curves, axis=0), np.ones(10) / 10, mode="valid")
        right.plot(np.arange(10, 91), smooth, label=variant)
    right.set(xlabel="step", ylabel="cross-entropy (mean of 10 steps)")
    right.legend()
    return fig
