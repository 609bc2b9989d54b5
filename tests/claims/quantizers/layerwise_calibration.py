"""Evidence for AdaQuant: calibrated layers, the integer program, statistics that are repaired."""

import itertools

import numpy as np
from small_data import digits
from small_networks import accuracy, batches, mlp_init, mlp_loss_and_grads, mlp_vjp

from refnorm.claims import Claim
from refnorm.quantizers import (
    adaquant,
    affine_qparams,
    allocate_bits_ip,
    fake_quantize,
    para_normalize,
    range_fake_quantize,
)
from refnorm.softmax import cross_entropy

SEEDS = range(5)
NETWORK_SEEDS = range(3)
BITS = (8, 4, 2)
SIZES = (64, 64, 32, 10)


def claims() -> list[Claim]:
    networks = [degradations(seed) for seed in NETWORK_SEEDS]
    return [calibrated(), program(networks), additive(networks), statistics(), repaired()]


def layer(seed: int, rows: int):
    rng = np.random.default_rng(seed)
    mixing, weight = rng.standard_normal((64, 64)) / 8, rng.standard_normal((64, 32)) / 8
    x, fresh = (np.maximum(rng.standard_normal((n, 64)) @ mixing, 0) for n in (rows, 512))
    return x, fresh, weight


def error(x, weight, input_range, quantized) -> float:
    return float(np.mean((range_fake_quantize(x, *input_range, bits=4) @ quantized - x @ weight) ** 2))


def gain(seed: int, rows: int) -> float:
    """Error on fresh inputs after calibration, relative to that with the extremes as ranges."""
    x, fresh, weight = layer(seed, rows)
    plain = adaquant(x, weight, np.zeros(32), weight_bits=4, bits=4, n_iter=1, holdout=0.0, batch_size=None)
    found = adaquant(x, weight, np.zeros(32), weight_bits=4, bits=4, rng=np.random.default_rng(seed))
    ours = range_fake_quantize(fresh, *found.input_range, bits=4) @ found.quantized_weight + found.bias
    return float(np.mean((ours - fresh @ weight) ** 2)) / error(
        fresh, weight, plain.input_range, plain.quantized_weight
    )


def calibrated() -> Claim:
    ratios = {rows: [gain(seed, rows) for seed in SEEDS] for rows in (512, 64)}
    return Claim(
        statement="A hundred steps on one layer's inputs and outputs lower its error on fresh inputs, and 64 rows are "
        "enough for that (4 bits).",
        expected="relative to min-max ranges, mean ratio of 5 seeds at most 0.95 and each below 1, for 512 rows and for 64",
        holds=all(np.mean(values) <= 0.95 and max(values) < 1 for values in ratios.values()),
        figures={f"mean ratio, {rows} rows": float(np.mean(values)) for rows, values in ratios.items()}
        | {f"largest ratio, {rows} rows": max(values) for rows, values in ratios.items()},
    )


def degradations(seed: int):
    """Train a network on digits; return sizes, the cost of each choice alone, and the loss of every choice for all."""
    data, rng = digits(seed=seed), np.random.default_rng(seed)
    params = mlp_init(rng, SIZES)
    for batch in batches(rng, len(data.x), 64, 8):
        _, grads = mlp_loss_and_grads(params, data.x[batch], data.target[batch])
        params = [(w - 0.2 * dw, b - 0.2 * db) for (w, b), (dw, db) in zip(params, grads, strict=True)]

    def quantized(weight, bits):
        return fake_quantize(weight, *affine_qparams(weight, bits=bits, method="absmax"), bits=bits)

    options = [[quantized(weight, bits) for bits in BITS] for weight, _ in params]

    def loss(choice):
        chosen = [(options[i][c], params[i][1]) for i, c in enumerate(choice)]
        return float(cross_entropy(mlp_vjp(chosen, data.x_test)[0], data.target_test))

    measured = {choice: loss(choice) for choice in itertools.product(range(3), repeat=3)}
    base = measured[0, 0, 0]
    costs = np.array([[max(measured[tuple(c if i == l else 0 for i in range(3))] - base, 1e-6) for c in range(3)] for l in range(3)])  # fmt: skip # noqa: E741
    costs[:, 0] = 0
    return np.array([w.size for w, _ in params]), costs, measured


def program(networks) -> Claim:
    best, regret, choices = True, 0.0, set()
    for sizes, costs, measured in networks:
        savings = sizes[:, None] * (8.0 - np.array(BITS))
        choice, objective = allocate_bits_ip(costs, savings, 4.0 * sizes.sum())
        feasible = [c for c in measured if savings[range(3), list(c)].sum() >= 4.0 * sizes.sum()]
        best &= all(objective <= costs[range(3), list(c)].sum() + 1e-12 for c in feasible)
        regret = max(regret, measured[tuple(choice)] - measured[1, 1, 1])
        choices.add("/".join(str(BITS[c]) for c in choice))
    return Claim(
        statement="With a budget of 4 bits a weight, the integer program finds the allocation with the least predicted "
        "damage, and the network is no worse than with 4 bits everywhere (digits, 3 layers).",
        expected="least predicted cost of all that fit, and a loss at most 0.001 above 4/4/4, on each of 3 seeds",
        holds=best and regret <= 1e-3,
        figures={"allocations chosen": ", ".join(sorted(choices)), "largest excess over 4/4/4": regret},
    )


def additive(networks) -> Claim:
    found = []
    for _, costs, measured in networks:
        summed = [costs[range(3), list(choice)].sum() for choice in measured]
        found.append(float(np.corrcoef(summed, [value - measured[0, 0, 0] for value in measured.values()])[0, 1]))
    return Claim(
        statement="The damage of quantizing several layers is roughly the sum of the damages of each alone, which the "
        "integer program assumes.",
        expected="correlation over all 27 allocations at least 0.6 on each of 3 seeds",
        holds=min(found) >= 0.6,
        figures={"smallest correlation": min(found), "largest correlation": max(found)},
    )


def statistics() -> Claim:
    eps, mean_error, spread_error = 1e-5, 0.0, 0.0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        y = rng.standard_normal((2000, 8)) * np.exp(rng.standard_normal(8)) + rng.standard_normal(8)
        noisy = y + 0.5 * y.std(axis=0) * rng.standard_normal(y.shape)
        weight, bias = para_normalize(y, noisy, np.eye(8), np.zeros(8), eps=eps)
        fixed = noisy @ weight + bias
        mean_error = max(mean_error, float(np.abs(fixed.mean(axis=0) - y.mean(axis=0)).max()))
        relative = np.abs(fixed.std(axis=0) / y.std(axis=0) - 1)
        spread_error = max(spread_error, float((relative / (eps / noisy.var(axis=0))).max()))
    return Claim(
        statement="Para-normalization gives each channel its mean back, and its standard deviation but for eps.",
        expected="means to 1e-12; relative error of the standard deviation at most 0.51 eps / variance, on each of 5 seeds",
        holds=mean_error < 1e-12 and spread_error <= 0.51,
        figures={"largest error of a mean": mean_error, "relative error of a spread, in eps / variance": spread_error},
    )


def repair(seed: int) -> tuple[float, float, float]:
    """Test accuracy of a network in float, with 2-bit weights, and with 2-bit weights and repaired layers."""
    data, rng = digits(seed=seed), np.random.default_rng(seed)
    params = mlp_init(rng, SIZES)
    for batch in batches(rng, len(data.x), 64, 8):
        _, grads = mlp_loss_and_grads(params, data.x[batch], data.target[batch])
        params = [(w - 0.2 * dw, b - 0.2 * db) for (w, b), (dw, db) in zip(params, grads, strict=True)]
    coarse = [(fake_quantize(w, *affine_qparams(w, bits=2, method="mse"), bits=2), b) for w, b in params]
    repaired = []
    h = h_quantized = data.x[:256]
    for (weight, bias), (weight_q, _) in zip(params, coarse, strict=True):
        y = h @ weight + bias
        repaired.append(para_normalize(y, h_quantized @ weight_q + bias, weight_q, bias))
        h, h_quantized = np.maximum(y, 0), np.maximum(h_quantized @ repaired[-1][0] + repaired[-1][1], 0)
    return tuple(accuracy(mlp_vjp(p, data.x_test)[0], data.target_test) for p in (params, coarse, repaired))


def repaired() -> Claim:
    found = np.array([repair(seed) for seed in SEEDS])
    gains = found[:, 2] - found[:, 1]
    return Claim(
        statement="Repairing every layer's statistics with 256 unlabelled inputs brings back part of the accuracy that "
        "2-bit weights cost (digits).",
        expected="mean gain over 5 seeds at least 0.04, and no seed worse",
        holds=bool(gains.mean() >= 0.04 and gains.min() >= 0),
        figures={
            "mean accuracy, float": float(found[:, 0].mean()),
            "mean accuracy, 2 bits": float(found[:, 1].mean()),
            "mean accuracy, 2 bits repaired": float(found[:, 2].mean()),
            "smallest gain": float(gains.min()),
        },
    )


def figure():
    """Error of a calibrated layer by rows of calibration data; predicted against measured damage of allocations."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    rows = (16, 32, 64, 128, 256, 512, 1024)
    ratios = np.array([[gain(seed, n) for seed in SEEDS] for n in rows])
    left.plot(rows, ratios.mean(axis=1), marker="o", markersize=4)
    left.fill_between(rows, ratios.min(axis=1), ratios.max(axis=1), alpha=0.15)
    left.axhline(1, color="gray", linestyle=":")
    left.set(xlabel="rows of calibration data", ylabel="error relative to min-max ranges", xscale="log")
    left.set_xticks(rows, [str(n) for n in rows])
    left.minorticks_off()
    _, costs, measured = degradations(0)
    summed = [costs[range(3), list(choice)].sum() for choice in measured]
    right.plot(summed, [value - measured[0, 0, 0] for value in measured.values()], "o", markersize=5)
    right.axline((0, 0), slope=1, color="gray", linestyle=":")
    right.set(xlabel="sum of the layers' damages", ylabel="measured damage", title="27 allocations of 8, 4 and 2 bits")
    return fig
