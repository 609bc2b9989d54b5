"""Evidence for the affine quantizer: six decibels a bit, learned steps, rounding that is right on average."""

import numpy as np
from sklearn.datasets import load_digits

from refnorm.claims import Claim
from refnorm.quantizers import affine_qparams, fake_quantize, fake_quantize_vjp, lsq_scale, quantize

TRAINING_SEEDS = range(5)
STEPS, BATCH, HIDDEN, LEARNING_RATE, MOMENTUM = 400, 64, 32, 0.05, 0.9
TRAINING_EXAMPLES = 1200


def claims() -> list[Claim]:
    return [six_decibels(), learned_step(), small_updates()]


def signal_to_noise(x, x_hat) -> float:
    """In decibels."""
    return float(10 * np.log10(np.square(x).sum() / np.square(x_hat - x).sum()))


def six_decibels() -> Claim:
    x = np.random.default_rng(0).uniform(-1, 1, 100_000)
    bits = np.arange(3, 13)
    measured = []
    for b in bits:
        scale, zero_point = affine_qparams(x, bits=int(b), symmetric=False)
        measured.append(signal_to_noise(x, fake_quantize(x, scale, zero_point, bits=int(b))))
    # Uniform numbers have variance 1/3, uniform errors (2 / (2^b - 1))^2 / 12: a ratio of (2^b - 1)^2.
    predicted = 20 * np.log10(2.0**bits - 1)
    worst = float(np.abs(np.array(measured) - predicted).max())
    gains = np.diff(measured)
    return Claim(
        statement="On uniform numbers the signal-to-noise ratio is 20 log10(2^b - 1) decibels: a further bit gains 6.",
        expected="within 0.1 dB of the prediction from 3 to 12 bits",
        holds=worst < 0.1,
        figures={
            "largest distance from the prediction, dB": worst,
            "8 bits, dB": measured[5],
            "gain of the 4th bit, dB": float(gains[0]),
            "gain of the 12th bit, dB": float(gains[-1]),
        },
    )


def digits():
    data = load_digits()
    x, target = data.data / 16 - 0.3, data.target
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], target[order]


def train(kind: str, seed: int, bits: int = 2):
    """Train a network with one hidden layer; return training loss, test accuracy and float weights.

    ``kind``: ``"float"``, ``"absmax"`` or ``"mse"`` (the scale is a function of the weights, held constant in
    the backward pass) or ``"learned"`` (LSQ).
    """
    x, target = digits()
    rng = np.random.default_rng(seed)
    sizes = (64, HIDDEN, 10)
    params = {f"w{i}": rng.standard_normal((sizes[i], sizes[i + 1])) * np.sqrt(2 / sizes[i]) for i in (0, 1)}
    params |= {f"b{i}": np.zeros(sizes[i + 1]) for i in (0, 1)}
    if kind == "learned":
        params |= {f"s{i}": lsq_scale(params[f"w{i}"], bits=bits) for i in (0, 1)}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}

    def quantized(i):
        w = params[f"w{i}"]
        if kind == "float":
            return w, lambda g: (g, None)
        if kind == "learned":
            return fake_quantize_vjp(w, params[f"s{i}"], 0, bits=bits, lsq_grad_scale=True)
        scale, zero_point = affine_qparams(w, bits=bits, method=kind, n_grid=10)
        return fake_quantize_vjp(w, scale, zero_point, bits=bits)

    def forward(x):
        (w0, pull0), (w1, pull1) = quantized(0), quantized(1)
        hidden = np.maximum(x @ w0 + params["b0"], 0)
        logits = hidden @ w1 + params["b1"]
        shifted = logits - logits.max(axis=1, keepdims=True)
        return hidden, w1, pull0, pull1, shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    for _ in range(STEPS):
        batch = rng.integers(TRAINING_EXAMPLES, size=BATCH)
        hidden, w1, pull0, pull1, log_probability = forward(x[batch])
        d = np.exp(log_probability)
        d[np.arange(BATCH), target[batch]] -= 1
        d /= BATCH
        grads = {"b1": d.sum(axis=0)}
        dw1, ds1 = pull1(hidden.T @ d)
        d = (d @ w1.T) * (hidden > 0)
        grads["b0"] = d.sum(axis=0)
        dw0, ds0 = pull0(x[batch].T @ d)
        grads |= {"w0": dw0, "w1": dw1}
        if kind == "learned":
            grads |= {"s0": ds0, "s1": ds1}
        for name, grad in grads.items():
            velocity[name] = MOMENTUM * velocity[name] + grad
            params[name] = params[name] - LEARNING_RATE * velocity[name]

    log_probability = forward(x)[-1]
    rows = np.arange(TRAINING_EXAMPLES)
    loss = float(-log_probability[rows, target[:TRAINING_EXAMPLES]].mean())
    right = log_probability.argmax(axis=1) == target
    return loss, float(right[TRAINING_EXAMPLES:].mean()), params


def learned_step() -> Claim:
    results = {
        kind: np.array([train(kind, seed)[:2] for seed in TRAINING_SEEDS])
        for kind in ("float", "absmax", "mse", "learned")
    }
    loss = {kind: float(np.median(runs[:, 0])) for kind, runs in results.items()}
    accuracy = {kind: float(np.median(runs[:, 1])) for kind, runs in results.items()}
    return Claim(
        statement="At 2 bits, a step size learned by its own gradient trains far better than the largest weight's, "
        "and as well as one searched anew at every step (digits, one hidden layer, all weights quantized).",
        expected="median training loss of 5 seeds with the learned step below a quarter of that with absmax, and "
        "below 1.3 times that with the mse range",
        holds=loss["learned"] < 0.25 * loss["absmax"] and loss["learned"] < 1.3 * loss["mse"],
        figures={f"median training loss, {kind}": value for kind, value in loss.items()}
        | {f"median test accuracy, {kind}": value for kind, value in accuracy.items()},
    )


def small_updates() -> Claim:
    """A weight on a grid of step 1 receives 1000 updates of 0.01."""
    rng = np.random.default_rng(0)
    moved = {}
    for rounding in ("nearest", "stochastic"):
        weight = np.zeros(200)
        for _ in range(1000):
            weight = quantize(weight + 0.01, 1.0, 0, rounding=rounding, rng=rng).astype(np.float64)
        moved[rounding] = weight
    mean = float(moved["stochastic"].mean())
    # The sum of 1000 Bernoulli(0.01) steps has variance 9.9; five standard errors of the mean of 200 weights.
    slack = 5 * np.sqrt(9.9 / 200)
    return Claim(
        statement="Updates smaller than half a step are lost by rounding to nearest and survive, on average, "
        "stochastic rounding.",
        expected="after updates that add up to 10: nearest exactly 0, stochastic 10 within five standard errors",
        holds=bool((moved["nearest"] == 0).all() and abs(mean - 10) < slack),
        figures={
            "mean weight, nearest": float(moved["nearest"].mean()),
            "mean weight, stochastic": mean,
            "five standard errors": float(slack),
        },
    )


def errors_by_bits(weight, bits):
    """Relative error (Frobenius) of a weight matrix by range and granularity; outputs are columns."""
    variants = {
        "per tensor, absmax": {"method": "absmax"},
        "per tensor, mse": {"method": "mse"},
        "per output, absmax": {"method": "absmax", "axis": 1},
        "per output, minmax with zero point": {"symmetric": False, "axis": 1},
        "per output, mse": {"method": "mse", "axis": 1},
    }
    size = np.linalg.norm(weight)
    found = {}
    for name, options in variants.items():
        found[name] = []
        for b in bits:
            scale, zero_point = affine_qparams(weight, bits=b, **options)
            found[name].append(float(np.linalg.norm(fake_quantize(weight, scale, zero_point, bits=b) - weight) / size))
    return found


def figure():
    """Error of a trained weight matrix by bits: what the range and a scale for each output buy."""
    import matplotlib.pyplot as plt

    weight = train("float", seed=0)[2]["w0"]
    weight = weight[np.abs(weight).max(axis=1) > 0]
    bits = range(2, 11)
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, errors), marker in zip(errors_by_bits(weight, bits).items(), "osv^D", strict=True):
        ax.plot(bits, errors, marker=marker, markersize=4, label=name)
    ax.set(xlabel="bits", ylabel="relative error of the weights", yscale="log", xticks=list(bits))
    ax.set_title("First layer of a network trained on digits")
    ax.legend()
    return fig
