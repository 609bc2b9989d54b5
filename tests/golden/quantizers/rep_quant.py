"""Truth for RepQuant: hand calculations, mpmath, and PyTorch in float64 (quantiles, autograd, Adam)."""

from dataclasses import make_dataclass

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
Record = make_dataclass("Reparameterized", ["gain", "bias", "weight", "linear_bias", "scale", "zero", "r1", "r2"])


def cases():
    rng = np.random.default_rng(20240208)
    return [*by_hand(), *logarithms(rng), *ranges(rng), *reparameterized(rng), *clipping(rng)]


def by_hand():
    return [
        GoldenCase(
            function="quantizers.reparameterize_layernorm",
            name="hand calculation",
            args=(np.ones(2), np.zeros(2), np.eye(2), np.zeros(2), np.array([0.1, 0.4]), np.array([3.0, 7.0])),
            expected=(
                np.array([2.5, 0.625]), np.array([-0.5, 0.5]), np.diag([0.4, 1.6]), np.array([0.2, -0.8]),
                np.array(0.25), np.array(5.0), np.array([0.4, 1.6]), np.array([0.5, -0.5]),
            ),
            tolerance=Tolerance(1e-15, "relative_of_largest"),
            source="by hand: means 1/4 and 5; r1 = (0.4, 1.6), r2 = (5 - zero) / 4",
        ),
        GoldenCase(
            function="quantizers.log_sqrt2_quantize",
            name="hand calculation",
            args=(np.array([0.3, 1.0, 0.0]), 1.0),
            options={"bits": 4},
            expected=(np.array([3, 0, 15], np.uint8), np.array([False, False, True])),
            source="by hand: -2 log2 0.3 = 3.474",
        ),
        GoldenCase(
            function="quantizers.uniform_codes",
            name="zero point off the grid",
            args=(np.array([[-101.0, 99.0], [-98.5, 101.6]]), np.array([1.0, 1.0]), np.array([101.0, -99.0])),
            options={"bits": 2},
            expected=np.array([[0, 0], [3, 3]], np.int32),
            source="by hand: -98.5 is a tie, to -98; codes 3 and 102 - 99",
        ),
    ]  # fmt: skip


def logarithms(rng):
    found = []
    for bits, scale in ((4, 1.0), (3, 0.37), (8, 0.8)):
        a = rng.dirichlet(np.full(60, 0.3))
        exact = [-2 * mpmath.log(mpmath.mpf(float(v)) / mpmath.mpf(scale), 2) for v in a]
        assert all(abs(u - mpmath.floor(u) - 0.5) > 1e-9 for u in exact)
        rounded = [int(mpmath.nint(u)) for u in exact]
        zeroed = np.array([r >= 2**bits for r in rounded])
        q = np.clip(rounded, 0, 2**bits - 1).astype(np.uint8)
        values = np.array(
            [float(0 if z else mpmath.mpf(scale) * mpmath.mpf(2) ** (-mpmath.mpf(int(c)) / 2)) for c, z in zip(q, zeroed, strict=True)]
        )  # fmt: skip
        cotangent = rng.standard_normal(60)
        slope = np.array([float(mpmath.mpf(float(y)) / mpmath.mpf(float(v))) for y, v in zip(values, a, strict=True)])
        above = np.array(rounded) < 0
        common = {"options": {"bits": bits}, "args": (a, scale), "name": f"{bits} bits, scale {scale}", "source": "mpmath, 50 digits"}  # fmt: skip
        close = Tolerance(4, "ulp")
        found += [
            GoldenCase(function="quantizers.log_sqrt2_quantize", **common, expected=(q, zeroed)),
            GoldenCase(function="quantizers.log_sqrt2_fake_quantize", **common, expected=values, tolerance=close),
            GoldenCase(
                function="quantizers.log_sqrt2_fake_quantize", **common, cotangent=cotangent,
                expected=(np.where(above, 0, cotangent * slope), np.array(cotangent[above].sum())),
                tolerance=Tolerance(1e-14, "relative_of_largest"),
            ),
        ]  # fmt: skip
        for name in ("log_sqrt2_dequantize", "log2_reparam_dequantize"):
            args = common | {"args": (q, zeroed, scale), "options": {}}
            found.append(GoldenCase(function=f"quantizers.{name}", **args, expected=values, tolerance=close))
    return found


def ranges(rng):
    x = rng.standard_normal((400, 5)) * np.exp(rng.standard_normal(5)) + rng.standard_normal(5)
    x[::37] *= 8
    tensor, bits, percentiles = torch.tensor(x), 4, (0.9, 0.99, 1.0)
    best = [(np.inf, 0, 0)] * 5
    for p in percentiles:
        low, high = torch.quantile(tensor, 1 - p, dim=0), torch.quantile(tensor, p, dim=0)
        scale = (high - low) / (2**bits - 1)
        zero = torch.round(-low / scale)
        values = scale * (torch.clamp(torch.round(tensor / scale) + zero, 0, 2**bits - 1) - zero)
        for d, error in enumerate(((values - tensor) ** 2).sum(dim=0).tolist()):
            if error < best[d][0]:
                best[d] = (error, scale[d].item(), zero[d].item())
    assert len({entry[1] for entry in best}) == 5
    return [
        GoldenCase(
            function="quantizers.calibrate_channelwise",
            name="three percentiles",
            args=(x,),
            options={"bits": bits, "percentiles": percentiles},
            expected=(np.array([entry[1] for entry in best]), np.array([entry[2] for entry in best])),
            tolerance=Tolerance(1e-13, "relative"),
            source=f"{TORCH}: quantile",
        )
    ]


def reparameterized(rng):
    found = []
    for round_zero in (True, False):
        shapes = ((6,), (6,), (6, 4), (4,))
        arrays = [rng.standard_normal(shape) for shape in shapes]
        arrays += [np.exp(rng.standard_normal(6)), rng.integers(-3, 18, 6).astype(float)]
        gain, bias, weight, linear_bias, scale, zero = tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        s, z = scale.mean(), zero.mean()
        if round_zero:
            z = z + (torch.round(z) - z).detach()
        r1 = scale / s
        r2 = (-zero * scale) / r1 + z * s
        changed = r1[:, None] * weight
        values = (gain / r1, bias / r1 - r2, changed, linear_bias + (changed * r2[:, None]).sum(0), s, z, r1, r2)
        names = ("gain", "bias", "weight", "linear_bias", "scale", "zero", "r1", "r2")
        cotangent = {n: np.asarray(rng.standard_normal(tuple(v.shape))) for n, v in zip(names, values, strict=True)}
        torch.autograd.backward(values, [torch.tensor(c) for c in cotangent.values()])
        common = {
            "function": "quantizers.reparameterize_layernorm",
            "name": f"round_zero {round_zero}",
            "args": tuple(arrays),
            "options": {"round_zero": round_zero},
            "tolerance": Tolerance(1e-12, "relative_of_largest"),
            "source": f"{TORCH}, autograd; r2 by the paper's other form",
        }
        found.append(GoldenCase(**common, expected=tuple(v.detach().numpy() for v in values)))
        record = Record(**cotangent)
        found.append(GoldenCase(**common, cotangent=record, expected=tuple(t.grad.numpy() for t in tensors)))
    return found


def clipping(rng):
    x = rng.standard_normal((40, 4)) * np.array([0.2, 1.0, 3.0, 1.0])
    x[::9] *= 6
    weight, bits, steps = rng.standard_normal((4, 3)), 4, 25
    tensor, w = torch.tensor(x), torch.tensor(weight)
    a, b = (torch.full((4,), 4.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([a, b], lr=0.05, eps=1e-8)
    losses, ranges_met = [], []

    def through(u):
        return u + (torch.round(u) - u).detach()

    for _ in range(steps):
        low, high = torch.sigmoid(b) * tensor.min(0).values, torch.sigmoid(a) * tensor.max(0).values
        scale = (high - low) / (2**bits - 1)
        zero = through(-low / scale)
        quantized = scale * (torch.clamp(through(tensor / scale) + zero, 0, 2**bits - 1) - zero)
        loss = ((quantized @ w - tensor @ w) ** 2).mean()
        losses.append(loss.item())
        ranges_met.append([t.detach().numpy().copy() for t in (low, high, scale, zero)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    low, high, scale, zero = ranges_met[int(np.argmin(losses))]
    return [
        GoldenCase(
            function="quantizers.fit_dual_clipping",
            name="25 steps of Adam",
            args=(x, weight),
            options={"bits": bits, "n_iter": steps, "learning_rate": 0.05},
            expected=(low, high, scale, zero, np.array(steps), np.array(losses)),
            tolerance=Tolerance(1e-9, "relative_of_largest"),
            source=f"{TORCH}: autograd and Adam",
        )
    ]
