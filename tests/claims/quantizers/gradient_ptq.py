"""Evidence for learned rounding: what it gains, how little data it takes, how near the optimum it comes; mixed bits."""

import functools
import itertools

import numpy as np
from small_data import digits
from small_networks import accuracy, batches, mlp_init, mlp_loss_and_grads, mlp_vjp

from refnorm.claims import Claim
from refnorm.quantizers import affine_qparams, allocate_bits, fake_quantize, fit_rounding, importance

SEEDS = range(3)
SMALL_SEEDS = range(20)
STEPS = 800
RATE = 2e-2


def claims() -> list[Claim]:
    return [learned(), little_data(), optimality(), mixed()]


@functools.cache
def problem(seed: int):
    """Inputs of low rank, fresh ones, and weights."""
    rng = np.random.default_rng(seed)
    mixing = np.hstack([rng.standard_normal((64, 16)), 0.1 * np.eye(64)])
    x = rng.standard_normal((1024, 80)) @ mixing.T
    return x[:512], x[512:], rng.standard_normal((64, 32)) / 8


@functools.cache
def fit(seed: int, rows: int = 512, learn: tuple[str, ...] = ("rounding",)):
    x, _, weight = problem(seed)
    return fit_rounding(
        x[:rows], weight, np.zeros(32), bits=3, n_iter=STEPS, learning_rate=RATE, learn=learn
    )  # fmt: skip


def error(seed: int, weight, bias=0.0) -> float:
    """Mean squared error of the outputs for fresh inputs."""
    _, fresh, true = problem(seed)
    return float(np.mean((fresh @ (weight - true) + bias) ** 2))


def nearest(weight, bits: int, rounding: str = "nearest", rng=None):
    scale, zero_point = affine_qparams(weight, bits=bits, axis=1, method="mse")
    return fake_quantize(weight, scale, zero_point, bits=bits, rounding=rounding, rng=rng)


def learned() -> Claim:
    gains, weight_errors, best_random, undecided = [], [], [], []
    for seed in SEEDS:
        _, _, weight = problem(seed)
        found, plain = fit(seed), nearest(weight, 3)
        gains.append(error(seed, found.weight) / error(seed, plain))
        weight_errors.append(float(np.mean((found.weight - weight) ** 2) / np.mean((plain - weight) ** 2)))
        rng = np.random.default_rng(seed)
        draws = [error(seed, nearest(weight, 3, "stochastic", rng)) for _ in range(50)]
        best_random.append(min(draws) / error(seed, found.weight))
        undecided.append(float(np.mean((found.h > 0.05) & (found.h < 0.95))))
    return Claim(
        statement="Learned rounding has a small part of the output error of rounding to nearest, though the weights "
        "themselves are farther off (3 bits, inputs of low rank).",
        expected="on fresh inputs at most 0.25 of nearest, at most a fifth of the best of 50 stochastic roundings, and a "
        "larger error of the weights, on each of 3 seeds",
        holds=max(gains) <= 0.25 and min(best_random) >= 5 and min(weight_errors) > 1,
        figures={
            "largest ratio to nearest": max(gains),
            "smallest ratio, best stochastic to learned": min(best_random),
            "smallest ratio of weight errors": min(weight_errors),
            "largest share of undecided roundings": max(undecided),
        },
    )


def little_data() -> Claim:
    fewer = [error(seed, fit(seed, 64).weight) / error(seed, fit(seed).weight) for seed in SEEDS]
    biased = []
    for seed in SEEDS:
        found = fit(seed, 512, ("rounding", "bias"))
        biased.append(error(seed, found.weight, found.bias) / error(seed, fit(seed).weight))
    return Claim(
        statement="64 rows of calibration data do nearly as well as 512, and learning the bias as well changes little.",
        expected="error below 1.4 of that with 512 rows, and at most 1.08 with the bias, on each of 3 seeds",
        holds=max(fewer) < 1.4 and max(biased) <= 1.08,
        figures={"largest ratio, 64 rows": max(fewer), "largest ratio, bias learned": max(biased)},
    )


def ratios_to_optimum(seed: int) -> tuple[float, float]:
    """Output errors of nearest and of learned rounding, relative to the best of all 256 roundings; 2 bits."""
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((64, 3)) @ rng.standard_normal((3, 8)), rng.standard_normal((8, 1))
    scale = affine_qparams(weight, bits=2, axis=1, method="mse")[0]
    floor = np.floor(weight / scale)
    # Clipped codes decide nothing: all that is on the grid is tried.
    ups = np.array(list(itertools.product((0, 1), repeat=8))).T
    options = scale * np.clip(floor + ups, -2, 1)
    errors = np.square(x @ (options - weight)).sum(axis=0)
    found = fit_rounding(x, weight, np.zeros(1), bits=2, n_iter=STEPS, learning_rate=RATE, penalty=0.1)
    size = errors.min()
    return tuple(float(np.square(x @ (w - weight)).sum() / size) for w in (nearest(weight, 2), found.weight))


def optimality() -> Claim:
    plain, found = np.array([ratios_to_optimum(seed) for seed in SMALL_SEEDS]).T
    return Claim(
        statement="It comes nearer to the best of all roundings than rounding to nearest, but seldom finds it (8 weights, "
        "2 bits, inputs of rank 3).",
        expected="median ratio to the optimum of 20 seeds below 0.8 of that of nearest; not worse than nearest in at least "
        "16, and within a tenth of the optimum in less than half",
        holds=bool(
            np.median(found) < 0.8 * np.median(plain)
            and (found <= plain * (1 + 1e-9)).sum() >= 16
            and (found <= 1.1).sum() < 10
        ),
        figures={
            "median ratio to the optimum, learned": float(np.median(found)),
            "median ratio to the optimum, nearest": float(np.median(plain)),
            "not worse than nearest, of 20": int((found <= plain * (1 + 1e-9)).sum()),
            "within 10 % of the optimum, of 20": int((found <= 1.1).sum()),
        },
    )


def mixed(seeds=SEEDS) -> Claim:
    accuracy_change, distortion, average = [], [], []
    for seed in seeds:
        data, rng = digits(seed=seed), np.random.default_rng(seed)
        params = mlp_init(rng, (64, 64, 32, 10))
        for batch in batches(rng, len(data.x), 64, 8):
            _, grads = mlp_loss_and_grads(params, data.x[batch], data.target[batch])
            params = [(w - 0.2 * dw, b - 0.2 * db) for (w, b), (dw, db) in zip(params, grads, strict=True)]
        logits, pull = mlp_vjp(params, data.x[:256])
        grads, _ = pull(2 * logits / logits.size)
        weights = [w for w, _ in params]
        matter = importance(weights, [dw for dw, _ in grads], axis=1)
        sizes = np.concatenate([np.full(w.shape[1], w.shape[0]) for w in weights])
        bits = allocate_bits(matter, sizes, average_bits=4.0)
        average.append(float((bits * sizes).sum() / sizes.sum()))
        outputs = []
        for chosen in (bits, np.full_like(bits, 4)):
            parts = np.split(chosen, np.cumsum([w.shape[1] for w in weights])[:-1])
            made = [(quantize_outputs(w, part), b) for (w, b), part in zip(params, parts, strict=True)]
            outputs.append(mlp_vjp(made, data.x_test)[0])
        true = mlp_vjp(params, data.x_test)[0]
        hits = [accuracy(y, data.target_test) for y in outputs]
        accuracy_change.append(hits[0] - hits[1])
        distortion.append(float(np.square(outputs[0] - true).mean() / np.square(outputs[1] - true).mean()))
    return Claim(
        statement="Bits distributed over output neurons by importance keep a network's outputs nearer to the float ones than "
        "the same bits everywhere, and its accuracy as high (digits, 2, 4 or 8 bits, 4 on average).",
        expected="average at most 4; output distortion at most 0.9 of that of 4 bits everywhere, accuracy at most 0.02 below, "
        "on each of 3 seeds",
        holds=max(average) <= 4 and max(distortion) <= 0.9 and min(accuracy_change) >= -0.02,
        figures={
            "largest average of bits": max(average),
            "largest ratio of distortions": max(distortion),
            "smallest change of accuracy": min(accuracy_change),
        },
    )


def quantize_outputs(weight, bits):
    """Quantize each column with its own number of bits."""
    found = np.empty_like(weight)
    for b in np.unique(bits):
        columns = bits == b
        found[:, columns] = nearest(weight[:, columns], int(b))
    return found


def figure():
    """Relaxed roundings before and after, and output error against weight error of three ways of rounding."""
    import matplotlib.pyplot as plt

    _, _, weight = problem(0)
    found, plain = fit(0), nearest(weight, 3)
    scale = affine_qparams(weight, bits=3, axis=1, method="mse")[0]
    fraction = weight / scale - np.floor(weight / scale)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    left.plot(fraction.ravel(), found.h.ravel(), ".", markersize=3, alpha=0.4)
    left.set(xlabel="fraction of the weight between two codes", ylabel="learned rounding", title="One dot a weight")
    rng = np.random.default_rng(0)
    draws = [nearest(weight, 3, "stochastic", rng) for _ in range(50)]
    size = np.mean((plain - weight) ** 2)
    for label, made, marker in (
        ("stochastic", draws, "."),
        ("nearest", [plain], "s"),
        ("learned", [found.weight], "o"),
    ):
        right.plot([np.mean((w - weight) ** 2) / size for w in made], [error(0, w) for w in made], marker, label=label)
    right.set(xlabel="error of the weights, relative to nearest", ylabel="error of fresh outputs", yscale="log")
    right.legend()
    return fig
