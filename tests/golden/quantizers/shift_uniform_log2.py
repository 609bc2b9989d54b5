"""Truth for the shift-uniform-log2 quantizer: hand calculations, mpmath, PyTorch in float64 (autograd, Adam)."""

from dataclasses import make_dataclass

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
Params = make_dataclass("SulqParams", ["shift", "low", "high", "bits", "highest", "step"])
Chosen = make_dataclass("SulqParams", ["shift", "low", "high", "bits", "levels"])
Block = make_dataclass("FeedForward", ["gain", "bias", "inner_weight", "inner_bias", "outer_weight", "outer_bias"])


def params(shift, low, high, bits):
    return Params(shift, low, high, bits, 2**bits - 1, (high - low) / (2**bits - 1))


def cases():
    rng = np.random.default_rng(20231116)
    return [*by_hand(), *exact(rng), *differentiated(rng), *block(rng)]


def by_hand():
    a, hand = np.array([0.0, 0.25, 0.5, 1.0]), params(1.0, 0.0, 1.0, 2)
    source = "by hand: log2 1, 1.25, 1.5, 2 = 0, 0.322, 0.585, 1 in thirds"
    third = 2.0 ** (np.arange(4) / 3.0) - 1
    ulp = Tolerance(4, "ulp_of_largest")
    return [
        GoldenCase("quantizers.sulq_encode", "hand calculation", (a, hand), np.arange(4, dtype=np.uint8), source),
        GoldenCase("quantizers.sulq_decode", "hand calculation", (np.arange(4), hand), np.array([0.0, 0, 1, 1]), source),
        GoldenCase(
            "quantizers.sulq_decode", "exponents not rounded", (np.arange(4), hand), third, source, ulp,
            {"integer_exponent": False},
        ),
        GoldenCase(
            "quantizers.sulq_fake_quantize", "hand calculation", (np.array([0.5]), 1.0, hand), cotangent=np.ones(1),
            expected=(np.array([2 / 1.5]), np.array(2 / 1.5 - 1)), source="by hand: 2^1 / (0.5 + 1)", tolerance=ulp,
        ),
        GoldenCase(
            "quantizers.sulq_matmul", "hand calculation", (np.array([[0, 3], [1, 2]]), np.array([[1.0], [2.0]]), hand),
            np.array([[2.0], [2.0]]), "by hand: decoded weights (0, 1) and (0, 1)",
        ),
        GoldenCase(
            "quantizers.sulq_matmul", "hand calculation", (np.array([[0, 3], [1, 2]]), np.array([[1.0], [2.0]]), hand),
            (np.array([[0.0], [3.0]]), ), "by hand: the decoded weights' columns (0, 0) and (1, 1)",
            cotangent=np.array([[1.0], [2.0]]),
        ),
        GoldenCase("quantizers.sulq_fake_quantize", "hand calculation", (a, 1.0, hand), np.array([0.0, 0, 1, 1]), source),
        GoldenCase(
            "quantizers.sulq_calibrate", "one candidate", (np.array([0.0, 0.5, 1.0]),),
            Chosen(1.0, 0.0, 1.0, 2, "b_bits"), "by hand: from log2 1 to log2 2", options={"bits": 2, "shifts": (1.0,)},
        ),
    ]  # fmt: skip


def exact(rng):
    found = []
    for bits, shift in ((4, 0.05), (3, 0.005), (8, 0.2)):
        a = np.append(rng.dirichlet(np.full(60, 0.3)), [0.0, 1.0])
        # A range that clips at both ends.
        low, high = float(np.log2(shift)) + 0.25, float(np.log2(1 + shift)) - 0.125
        p = params(shift, low, high, bits)
        step = (mpmath.mpf(high) - mpmath.mpf(low)) / (2**bits - 1)
        u = [(mpmath.log(mpmath.mpf(float(v)) + mpmath.mpf(shift), 2) - mpmath.mpf(low)) / step for v in a]
        assert all(abs(v - mpmath.floor(v) - 0.5) > 1e-9 for v in u)
        q = np.array([min(max(int(mpmath.nint(v)), 0), 2**bits - 1) for v in u])
        exponents = [mpmath.mpf(int(c)) * step + mpmath.mpf(low) for c in q]
        assert all(abs(e - mpmath.floor(e) - 0.5) > 1e-9 for e in exponents)
        common = {"source": "mpmath, 50 digits", "name": f"{bits} bits, shift {shift}"}
        found.append(GoldenCase("quantizers.sulq_encode", args=(a, p), expected=q.astype(np.uint8), **common))
        for integer in (True, False):
            values = [mpmath.mpf(2) ** (mpmath.nint(e) if integer else e) - mpmath.mpf(shift) for e in exponents]
            found.append(
                GoldenCase(
                    "quantizers.sulq_decode", args=(q, p), expected=np.array([float(v) for v in values]),
                    options={"integer_exponent": integer}, tolerance=Tolerance(8, "ulp_of_largest"),
                    **common | {"name": f"{common['name']}, integer exponent {integer}"},
                )
            )  # fmt: skip
        scale = 0.4
        codes = [
            mpmath.nint(-mpmath.log(mpmath.mpf(float(v)) / mpmath.mpf(scale), 2)) if v else mpmath.mpf(999) for v in a
        ]
        values = [0 if c >= 2**bits else mpmath.mpf(scale) * mpmath.mpf(2) ** -max(c, 0) for c in codes]
        found.append(
            GoldenCase(
                "quantizers.log2_fake_quantize", args=(a, scale), options={"bits": bits},
                expected=np.array([float(v) for v in values]), tolerance=Tolerance(1, "ulp"), **common,
            )
        )  # fmt: skip
    return found


def through(u):
    return u + (torch.round(u) - u).detach()


def differentiated(rng):
    found = []
    a = rng.dirichlet(np.full(40, 0.4))
    for bits, shift, low, high, integer in ((4, 0.05, -4.0, -1.2, True), (3, 0.01, -6.0, -2.0, False)):
        p = params(shift, low, high, bits)
        ta, ts = torch.tensor(a, requires_grad=True), torch.tensor(shift, dtype=torch.float64, requires_grad=True)
        q = torch.clamp(through((torch.log2(ta + ts) - low) / p.step), 0, p.highest)
        exponent = q * p.step + low
        y = 2 ** (through(exponent) if integer else exponent) - ts
        cotangent = rng.standard_normal(40)
        y.backward(torch.tensor(cotangent))
        found.append(
            GoldenCase(
                "quantizers.sulq_fake_quantize", f"{bits} bits, integer exponent {integer}", (a, shift, p),
                cotangent=cotangent, expected=(ta.grad.numpy(), ts.grad.numpy()), source=f"{TORCH}, autograd",
                options={"integer_exponent": integer}, tolerance=Tolerance(1e-12, "relative_of_largest"),
            )
        )  # fmt: skip
    ta, ts = torch.tensor(a, requires_grad=True), torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    u = through(-torch.log2(ta / ts))
    y = torch.where(u >= 8, 0.0, ts * 2 ** -torch.clamp(u, 0, 7))
    cotangent = rng.standard_normal(40)
    y.backward(torch.tensor(cotangent))
    found.append(
        GoldenCase(
            "quantizers.log2_fake_quantize", "clipped and zeroed", (a, 0.05), cotangent=cotangent, options={"bits": 3},
            expected=(ta.grad.numpy(), ts.grad.numpy()), source=f"{TORCH}, autograd",
            tolerance=Tolerance(1e-12, "relative_of_largest"),
        )
    )  # fmt: skip
    return found


def block(rng):
    shapes = ((5,), (5,), (5, 8), (8,), (8, 4), (4,))
    arrays = [rng.standard_normal(s) / np.sqrt(s[0]) for s in shapes]
    arrays[0] = np.exp(rng.standard_normal(5))
    x, cotangent = rng.standard_normal((12, 5)), rng.standard_normal((12, 4))
    tensors = [torch.tensor(a, requires_grad=True) for a in (*arrays, x)]
    gain, bias, inner, inner_bias, outer, outer_bias, tx = tensors

    def forward(tx, gain, bias, inner, inner_bias, outer, outer_bias):
        normed = torch.nn.functional.layer_norm(tx, (5,), gain, bias)
        return torch.nn.functional.gelu(normed @ inner + inner_bias) @ outer + outer_bias

    y = forward(tx, gain, bias, inner, inner_bias, outer, outer_bias)
    y.backward(torch.tensor(cotangent))
    common = {"name": "in float", "args": (Block(*arrays), x), "tolerance": Tolerance(1e-12, "relative_of_largest")}
    found = [
        GoldenCase("quantizers.quantized_feed_forward", **common, expected=y.detach().numpy(), source=TORCH),
        GoldenCase(
            "quantizers.quantized_feed_forward", **common, cotangent=cotangent, source=f"{TORCH}, autograd",
            expected=tuple(t.grad.numpy() for t in tensors),
        ),
    ]  # fmt: skip
    return [*found, optimized(rng, arrays, x, forward)]


def optimized(rng, arrays, x, forward):
    """The third stage alone: one grid for the inputs, weights and activations quantized, ten steps of Adam."""
    bits, weight_bits, steps, rate = 4, 16, 10, 1e-3
    gain, bias = (torch.tensor(a) for a in arrays[:2])
    learned = [torch.tensor(a, requires_grad=True) for a in arrays[2:]]
    tx = torch.tensor(x)
    with torch.no_grad():
        target = forward(tx, gain, bias, *learned)
        normed = torch.nn.functional.layer_norm(tx, (5,), gain, bias)
        hidden = torch.nn.functional.gelu(normed @ learned[0] + learned[1])

    def grid(t):
        low, high = min(t.min().item(), 0), max(t.max().item(), 0)
        scale = (high - low) / (2**bits - 1)
        return scale, round(-low / scale)

    def quantize(t, scale, zero, highest, lowest=0):
        return scale * (torch.clamp(through(t / scale) + zero, lowest, highest) - zero)

    grids = grid(normed), grid(hidden)
    top = 2 ** (weight_bits - 1) - 1
    # At 16 bits the search for the range keeps the full range: rounding costs nothing next to clipping.
    scales = [learned[i].detach().abs().max(0, keepdim=True).values / top for i in (0, 2)]
    optimizer = torch.optim.Adam(learned, lr=rate, eps=1e-8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        inner, inner_bias, outer, outer_bias = learned
        inner, outer = (quantize(w, s, 0, top, -top - 1) for w, s in ((inner, scales[0]), (outer, scales[1])))
        hidden = torch.nn.functional.gelu(quantize(normed, *grids[0], 15) @ inner + inner_bias)
        y = quantize(hidden, *grids[1], 15) @ outer + outer_bias
        loss = ((y - target) ** 2).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scalars = [np.asarray(v, np.float64) for pair in grids for v in pair]
    return GoldenCase(
        "quantizers.smooth_optimize", "ten steps of the third stage", (Block(*arrays), x),
        expected=(
            *arrays[:2], *(t.detach().numpy() for t in learned), *scalars, np.array(bits), *(s.numpy() for s in scales),
            np.array(weight_bits), np.array(steps), np.array(losses),
        ),
        options={"bits": bits, "weight_bits": weight_bits, "steps": (0, steps), "channelwise": False, "learning_rate": rate},
        tolerance=Tolerance(1e-9, "relative_of_largest"), source=f"{TORCH}: autograd, Adam, cosine schedule",
    )  # fmt: skip
