"""Evidence for RepQuant: exact reparameterization, what it saves, the logarithmic quantizer, dual clipping."""

import numpy as np

from refnorm.claims import Claim
from refnorm.quantizers import (
    calibrate_channelwise,
    fit_dual_clipping,
    log2_reparam_dequantize,
    log_sqrt2_dequantize,
    log_sqrt2_quantize,
    reparameterize_layernorm,
    uniform_codes,
)
from refnorm.quantizers._calibration import fake_quantize_range
from refnorm.softmax import softmax

SEEDS = range(5)


def claims() -> list[Claim]:
    return [exactness(), one_grid(), attention(), clipping()]


def problem(seed: int, rows: int = 2048):
    """A layer norm whose channels differ in scale and offset, before a linear layer."""
    rng = np.random.default_rng(seed)
    gain, bias = np.exp(1.2 * rng.standard_normal(64)), rng.standard_normal(64)
    weight, linear_bias = rng.standard_normal((64, 64)) / 8, rng.standard_normal(64)
    return rng.standard_normal((rows, 64)), gain, bias, weight, linear_bias


def exactness() -> Claim:
    differing, worst, spread = 0, 0.0, 0.0
    for seed in SEEDS:
        x_hat, gain, bias, weight, linear_bias = problem(seed)
        x = x_hat * gain + bias
        scale, zero = calibrate_channelwise(x, bits=4)
        made = reparameterize_layernorm(gain, bias, weight, linear_bias, scale, zero)
        changed = x_hat * made.gain + made.bias
        before = uniform_codes(x, scale, zero, bits=4)
        differing += int((uniform_codes(changed, made.scale, made.zero, bits=4) != before).sum())
        outputs = changed @ made.weight + made.linear_bias
        worst = max(worst, float(np.abs(outputs - (x @ weight + linear_bias)).max()))
        spread = max(spread, float(made.r1.max() / made.r1.min()))
    return Claim(
        statement="One grid for the layer gives the codes that a grid for each channel gave, and the float layer is "
        "unchanged.",
        expected="no differing code among 131 072, and outputs equal to 1e-12, on each of 5 seeds",
        holds=differing == 0 and worst < 1e-12,
        figures={
            "codes that differ": differing,
            "largest difference of outputs": worst,
            "largest ratio of two channels' scales": spread,
        },
    )


def error_ratio(seed: int) -> float:
    """Output error with the reparameterized grid, relative to one min-max grid; 4 bits."""
    x_hat, gain, bias, weight, linear_bias = problem(seed)
    x = x_hat * gain + bias
    made = reparameterize_layernorm(gain, bias, weight, linear_bias, *calibrate_channelwise(x, bits=4))
    codes = uniform_codes(x_hat * made.gain + made.bias, made.scale, made.zero, bits=4)
    ours = made.scale * (codes - made.zero) @ made.weight + made.linear_bias
    plain = fake_quantize_range(x, x.min(), x.max(), bits=4) @ weight + linear_bias
    target = x @ weight + linear_bias
    return float(np.mean((ours - target) ** 2) / np.mean((plain - target) ** 2))


def one_grid() -> Claim:
    ratios = [error_ratio(seed) for seed in SEEDS]
    return Claim(
        statement="On channels of very different ranges, the reparameterized grid has a small part of the output error "
        "of a min-max grid for the layer (4 bits).",
        expected="mean squared error at most 0.2 of it on each of 5 seeds",
        holds=max(ratios) <= 0.2,
        figures={"smallest ratio": min(ratios), "largest ratio": max(ratios)},
    )


def attention_errors(seed: int, bits: int) -> dict[str, float]:
    """Mean squared error of three quantizers of attention weights over 197 keys."""
    a = softmax(3 * np.random.default_rng(seed).standard_normal((500, 197)))
    scale = float(np.quantile(a, 0.99999))
    codes = log_sqrt2_quantize(a, scale, bits=bits)
    ours = log_sqrt2_dequantize(*codes, scale)
    assert (log2_reparam_dequantize(*codes, scale) == ours).all()
    with np.errstate(under="ignore"):
        power = np.rint(-np.log2(a / scale))
    plain = np.where(power >= 2**bits, 0, scale * 2.0 ** -np.clip(power, 0, 2**bits - 1))
    uniform = fake_quantize_range(a, np.array(0.0), np.array(scale), bits=bits)
    return {n: float(np.mean((v - a) ** 2)) for n, v in (("log sqrt 2", ours), ("log 2", plain), ("uniform", uniform))}


def attention() -> Claim:
    found = [attention_errors(seed, 4) for seed in SEEDS]
    to_log2 = max(one["log sqrt 2"] / one["log 2"] for one in found)
    to_uniform = max(one["log sqrt 2"] / one["uniform"] for one in found)
    three = [attention_errors(seed, 3) for seed in SEEDS]
    return Claim(
        statement="Powers of the square root of 2 fit attention weights better than powers of 2 and than a uniform grid "
        "(4 bits), and shifts give the same numbers bit for bit.",
        expected="mean squared error at most 0.4 of log 2 and 0.7 of uniform on each of 5 seeds",
        holds=to_log2 <= 0.4 and to_uniform <= 0.7,
        figures={
            "largest ratio to log 2, 4 bits": to_log2,
            "largest ratio to uniform, 4 bits": to_uniform,
            "smallest ratio to log 2, 3 bits": min(one["log sqrt 2"] / one["log 2"] for one in three),
        },
    )


def clipping() -> Claim:
    ratios = []
    for seed in SEEDS:
        x_hat, gain, bias, weight, _ = problem(seed, rows=512)
        x = x_hat * gain + bias
        x[np.random.default_rng(1000 + seed).random(x.shape) < 0.01] *= 10
        fit = fit_dual_clipping(x, weight, bits=4, n_iter=200)
        low, high = np.minimum(x.min(axis=0), 0), np.maximum(x.max(axis=0), 0)
        error = np.mean((fake_quantize_range(x, low, high, bits=4) @ weight - x @ weight) ** 2)
        ratios.append(float(fit.history["loss"].min() / error))
    return Claim(
        statement="Learned clipping at both ends of every channel lowers the output error where a few entries are large "
        "(1 % of them times 10, 4 bits, 200 steps).",
        expected="mean squared error at most 0.9 of min-max ranges for the channels, on each of 5 seeds",
        holds=max(ratios) <= 0.9,
        figures={"smallest ratio": min(ratios), "largest ratio": max(ratios)},
    )


def figure():
    """Channel ranges before and after reparameterization, and errors of quantizers of attention by bits."""
    import matplotlib.pyplot as plt

    x_hat, gain, bias, weight, linear_bias = problem(0)
    x = x_hat * gain + bias
    made = reparameterize_layernorm(gain, bias, weight, linear_bias, *calibrate_channelwise(x, bits=4))
    changed = x_hat * made.gain + made.bias
    order = np.argsort(gain)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for values, label, color in ((x, "before", "C1"), (changed, "after", "C0")):
        low, high = np.quantile(values[:, order], [0.001, 0.999], axis=0)
        left.fill_between(range(64), low, high, label=label, alpha=0.5, color=color, step="mid")
    left.set(xlabel="channel, in the order of its gain", ylabel="range", title="Inputs of the linear layer")
    left.legend(loc="upper left")
    bits = range(2, 7)
    for name, marker in zip(("log sqrt 2", "log 2", "uniform"), "osv", strict=True):
        errors = [attention_errors(0, b)[name] for b in bits]
        right.plot(bits, errors, marker=marker, markersize=5, label=name.replace("sqrt 2", "√2"))
    right.set(xlabel="bits", ylabel="mean squared error", yscale="log", xticks=list(bits), title="Attention weights")
    right.legend()
    return fig
