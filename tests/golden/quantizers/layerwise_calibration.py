"""Truth for AdaQuant: hand calculations, exhaustive search, PyTorch in float64 (autograd, Adam, batch norm)."""

import itertools

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-12, "relative_of_largest")


def cases():
    rng = np.random.default_rng(20200614)
    return [*by_hand(), *ranges(rng), *programs(rng), *statistics(rng), calibrated(rng)]


def by_hand():
    costs, savings = np.array([[0.0, 0.1], [0.0, 0.5]]), np.array([[0.0, 40.0], [0.0, 120.0]])
    return [
        GoldenCase(
            "quantizers.range_fake_quantize", "hand calculation",
            (np.array([1.4, -0.6, 7.0]), np.array(3.0), np.array(-1.0)), np.array([1.0, -1.0, 2.0]),
            "by hand: scale 1, zero -1, codes from -2 to 1", options={"bits": 2},
        ),
        GoldenCase(
            "quantizers.allocate_bits_ip", "the second layer saves enough", (costs, savings, 100.0),
            (np.array([0, 1]), np.array(0.5)), "by hand", tolerance=CLOSE,
        ),
        GoldenCase(
            "quantizers.allocate_bits_ip", "both are needed", (costs, savings, 130.0),
            (np.array([1, 1]), np.array(0.6)), "by hand", tolerance=CLOSE,
        ),
    ]  # fmt: skip


def through(u):
    return u + (torch.round(u) - u).detach()


def quantize(x, width, minimum, bits):
    """The signed grid, with straight-through roundings."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = torch.clamp(width, 1e-6, 1e5) / (2**bits - 1)
    zero = torch.clamp(through(lowest - minimum / scale), lowest, highest)
    return scale * (torch.clamp(through(x / scale) + zero, lowest, highest) - zero)


def ranges(rng):
    found = []
    x = 2 * rng.standard_normal((7, 4))
    per_output = (rng.uniform(2, 5, (1, 4)), -rng.uniform(0.5, 2, (1, 4)))
    for name, bits, (width, minimum) in (
        ("a range for each column", 4, per_output),
        ("one range", 3, (np.array(3.3), np.array(-1.2))),
        ("a range without 0", 4, (np.array(2.0), np.array(1.0))),
    ):
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, width, minimum)]
        y = quantize(*tensors, bits)
        cotangent = rng.standard_normal(x.shape)
        y.backward(torch.tensor(cotangent))
        common = {"function": "quantizers.range_fake_quantize", "name": name, "args": (x, width, minimum)}
        common |= {"options": {"bits": bits}, "tolerance": CLOSE, "source": f"{TORCH}, autograd"}
        found.append(GoldenCase(**common, expected=y.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found


def programs(rng):
    found = []
    for layers, choices in ((4, 3), (6, 4)):
        costs, savings = rng.random((layers, choices)), rng.integers(1, 50, (layers, choices)).astype(float)
        required = float(np.floor(0.7 * savings.max(axis=1).sum()))
        rows = np.arange(layers)
        best, choice = min(
            (costs[rows, list(one)].sum(), one)
            for one in itertools.product(range(choices), repeat=layers)
            if savings[rows, list(one)].sum() >= required
        )
        found.append(
            GoldenCase(
                "quantizers.allocate_bits_ip", f"{layers} layers, {choices} configurations", (costs, savings, required),
                (np.array(choice), np.array(best)), "exhaustive search", tolerance=CLOSE,
            )
        )  # fmt: skip
    return found


def statistics(rng):
    x, weight, coarse = rng.standard_normal((30, 5)), rng.standard_normal((5, 3)), rng.integers(-1, 2, (5, 3)) * 1.0
    bias = rng.standard_normal(3)
    y, y_quantized = x @ weight + bias, x @ coarse + bias
    norm = torch.nn.BatchNorm1d(3, eps=1e-5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight[:] = torch.tensor(y).std(0, unbiased=False)
        norm.bias[:] = torch.tensor(y).mean(0)
        # A batch norm is affine given its batch: its value at basis vectors is the folded layer.
        stacked = torch.tensor(y_quantized)
        factor = norm.weight / torch.sqrt(stacked.var(0, unbiased=False) + 1e-5)
        new_weight = (torch.tensor(coarse) * factor).numpy()
        new_bias = (norm(stacked)[0] - torch.tensor(x[0] @ new_weight)).numpy()
    return [
        GoldenCase(
            "quantizers.para_normalize", "coarse weights", (y, y_quantized, coarse, bias), (new_weight, new_bias),
            f"{TORCH}: BatchNorm1d", CLOSE,
        ),
        GoldenCase(
            "quantizers.bias_correction", "coarse weights", (y, y_quantized, bias),
            (torch.tensor(bias) + torch.tensor(y).mean(0) - torch.tensor(y_quantized).mean(0)).numpy(), TORCH, CLOSE,
        ),
    ]  # fmt: skip


def calibrated(rng):
    x, weight, bias = (
        np.maximum(rng.standard_normal((60, 8)), 0),
        rng.standard_normal((8, 5)) / 3,
        rng.standard_normal(5),
    )
    steps, bits = 30, 4
    rates = {"weight": 2e-3, "bias": 3e-3, "weight_range": 1e-3, "input_range": 2e-2}
    low, high = np.minimum(weight.min(0, keepdims=True), 0), np.maximum(weight.max(0, keepdims=True), 0)
    start = (weight, bias, high - low, low, np.array(x.max()), np.array(0.0))
    w, b, width, minimum, input_width, input_minimum = tensors = [torch.tensor(a, requires_grad=True) for a in start]
    groups = ((w, "weight"), (b, "bias"), (width, "weight_range"), (minimum, "weight_range"))
    groups += ((input_width, "input_range"), (input_minimum, "input_range"))
    optimizer = torch.optim.Adam([{"params": [t], "lr": rates[name]} for t, name in groups], eps=1e-8)
    tx = torch.tensor(x)
    target = tx @ torch.tensor(weight) + torch.tensor(bias)
    losses, met = [], []
    for _ in range(steps):
        quantized = quantize(w, width, minimum, bits)
        loss = ((quantize(tx, input_width, input_minimum, bits) @ quantized + b - target) ** 2).mean()
        losses.append(loss.item())
        met.append([t.detach().numpy().copy() for t in (*tensors, quantized)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert int(np.argmin(losses)) > 0
    return GoldenCase(
        "quantizers.adaquant", "30 steps on all rows", (x, weight, bias),
        (*met[int(np.argmin(losses))], np.array(steps), np.array(losses)),
        f"{TORCH}: autograd and Adam", Tolerance(1e-9, "relative_of_largest"),
        {
            "weight_bits": bits, "bits": bits, "n_iter": steps, "batch_size": None, "holdout": 0.0,
            "learning_rates": rates,
        },
    )  # fmt: skip
