"""Truth for learned rounding: hand calculations, mpmath, exhaustive search, PyTorch in float64 (autograd, optimizers)."""

import itertools
from fractions import Fraction

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-12, "relative_of_largest")
ULP = Tolerance(8, "ulp_of_largest")


def cases():
    rng = np.random.default_rng(20230815)
    return [*by_hand(), *sigmoids(rng), *quantized(rng), *fitted(rng), *powers(rng), slope()]


def by_hand():
    return [
        GoldenCase(
            "quantizers.rounding_regulariser", "hand calculation", (np.array([0.3]),), cotangent=np.array(1.0),
            expected=(np.array([1.6]),), source="by hand: -2 2 0.4 (-1)", tolerance=ULP,
        ),
        GoldenCase(
            "quantizers.rounding_regulariser", "hand calculation", (np.array([0.3, 0.5, 1.0]),), np.array(1.84),
            "by hand: 1 - 0.16, 1, 0", ULP,
        ),
        GoldenCase(
            "quantizers.soft_quantize", "up and down", (np.array([[0.3, -1.2, 9.0]]), np.array(0.5), np.array([[-9.0, 9.0, 9.0]])),
            np.array([[0.0, -1.0, 3.5]]), "by hand: floors 0, -3, 18; the last one is clipped to 7", options={"bits": 4},
        ),
        GoldenCase(
            "quantizers.importance", "two layers", ([np.array([[1.0, -2.0]]), np.array([[3.0]])], [np.array([[3.0, 1.0]]), np.array([[-2.0]])]),
            np.array([5.0, 6.0]), "by hand",
        ),
        GoldenCase(
            "quantizers.allocate_bits", "one step each", (np.array([100.0, 1.0, 0.01]), np.array([10, 10, 10])),
            np.array([8, 4, 2]), "by hand: 2 to 4 for the first two, then 4 to 8 for the first", options={"average_bits": 4.7},
        ),
        GoldenCase(
            "quantizers.allocate_bits", "a large group is too dear", (np.array([1.0, 1.0]), np.array([100, 1])),
            np.array([2, 8]), "by hand: the small group gains more a bit; 2.5 bits do not pay for the large one", options={"average_bits": 2.5},
        ),
    ]  # fmt: skip


def sigmoids(rng):
    v = np.append(2 * rng.standard_normal(9), [-2.5, 0.0, 2.5, 40.0, -700.0])
    exact = [mpmath.mpf(6) / 5 / (1 + mpmath.exp(-mpmath.mpf(float(u)))) - mpmath.mpf(1) / 10 for u in v]
    cotangent = rng.standard_normal(len(v))
    slopes = [
        mpmath.mpf(6) / 5 * (e + mpmath.mpf(1) / 10) / mpmath.mpf("1.2") * (1 - (e + mpmath.mpf(1) / 10) / mpmath.mpf("1.2"))
        if 0 < e < 1 else mpmath.mpf(0)
        for e in exact
    ]  # fmt: skip
    h = rng.uniform(0, 1, 7)
    logits = [
        mpmath.log((mpmath.mpf(float(u)) + mpmath.mpf("0.1")) / (mpmath.mpf("1.1") - mpmath.mpf(float(u)))) for u in h
    ]
    source = "mpmath, 50 digits"
    return [
        GoldenCase("quantizers.rectified_sigmoid", "both sides", (v,), np.array([float(min(max(e, 0), 1)) for e in exact]), source, ULP),
        GoldenCase(
            "quantizers.rectified_sigmoid", "both sides", (v,), cotangent=cotangent, source=source, tolerance=ULP,
            expected=(np.array([float(mpmath.mpf(float(c)) * s) for c, s in zip(cotangent, slopes, strict=True)]),),
        ),
        GoldenCase("quantizers.rectified_sigmoid_inverse", "fractions", (h,), np.array([float(u) for u in logits]), source, ULP),
        GoldenCase("quantizers.rectified_sigmoid_inverse", "0.3", (np.array([0.3]),), np.array([float(mpmath.log(mpmath.mpf(1) / 2))]), source, ULP),
    ]  # fmt: skip


def through(u):
    return u + (torch.round(u) - u).detach()


def bend(w, power):
    return w if power == 1 else torch.sign(w) * torch.abs(w) ** power


def soft(weight, scale, v, bits, variable, power):
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    u = bend(weight, power).detach() / scale.detach()
    if variable == "ste":
        code = (
            u.detach()
            + (torch.round(u + torch.clamp(v, -1, 1)) - u - torch.clamp(v, -1, 1)).detach()
            + torch.clamp(v, -1, 1)
        )
    elif variable == "direct":
        code = torch.floor(u) + torch.clamp(v, 0, 1)
    else:
        code = torch.floor(u) + torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
    return bend(scale * torch.clamp(code, lowest, highest), 1 / power)


def quantized(rng):
    found = []
    for variable, power, per_column in (
        ("sigmoid", 1.0, True),
        ("direct", 1.0, False),
        ("ste", 0.6, True),
        ("sigmoid", 0.5, True),
    ):
        weight, v = rng.standard_normal((2, 6, 4))
        v = v + 0.5 * (variable == "direct")
        scale = rng.uniform(0.15, 0.5, 4) if per_column else np.array(0.3)
        tw, tv, ts = (torch.tensor(a, requires_grad=True) for a in (weight, v, scale))
        y = soft(tw, ts, tv, 3, variable, power)
        cotangent = rng.standard_normal((6, 4))
        y.backward(torch.tensor(cotangent))
        common = {
            "function": "quantizers.soft_quantize",
            "name": f"{variable}, power {power}",
            "args": (weight, scale, v),
        }
        common |= {
            "options": {"bits": 3, "variable": variable, "power": power},
            "tolerance": CLOSE,
            "source": f"{TORCH}, autograd",
        }
        found.append(GoldenCase(**common, expected=y.detach().numpy()))
        found.append(
            GoldenCase(**common, cotangent=cotangent, expected=(np.zeros((6, 4)), ts.grad.numpy(), tv.grad.numpy()))
        )
    return found


def least_error_scale(weight, highest, lowest):
    """Of a hundred ranges up to the largest magnitude, the one with the least squared error, column by column."""
    found = []
    for column in weight.T:
        scales = np.abs(column).max() * np.arange(100, 0, -1) / 100 / highest
        codes = np.clip(np.rint(column / scales[:, None]), lowest, highest)
        found.append(scales[np.argmin(np.square(codes * scales[:, None] - column).sum(axis=1))])
    return np.array(found)


def fitted(rng):
    found = []
    for loss_name, optimizer_name, variable in (
        ("mse", "adam", "sigmoid"),
        ("cosine", "adamax", "direct"),
        ("kl", "adam", "sigmoid"),
    ):
        x, bias = rng.standard_normal((20, 5)), rng.standard_normal(4)
        steps, bits, rate, other = 25, 3, 0.02, 0.005
        fraction = np.zeros(1)
        # A weight on the grid begins at the end of the relaxation, where rounding decides whether it may move.
        while fraction.min() < 1e-3 or fraction.max() > 1 - 1e-3:
            weight = rng.standard_normal((5, 4))
            scale = least_error_scale(weight, 3, -4)
            fraction = weight / scale - np.floor(weight / scale)
        start = fraction if variable == "direct" else np.log((fraction + 0.1) / (1.1 - fraction))
        v, b, log_scale = (torch.tensor(a, requires_grad=True) for a in (start, bias, np.zeros(4)))
        kind = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}[optimizer_name]
        optimizer = kind([{"params": [v], "lr": rate}, {"params": [b, log_scale], "lr": other}], eps=1e-8)
        tx, tw, ts = torch.tensor(x), torch.tensor(weight), torch.tensor(scale)
        target = tx @ tw + torch.tensor(bias)
        losses = []
        for i in range(steps):
            y = tx @ (torch.exp(log_scale) * soft(tw, ts, v, bits, variable, 1.0)) + b
            if loss_name == "mse":
                loss = ((y - target) ** 2).sum(1).mean()
            elif loss_name == "cosine":
                loss = (1 - torch.nn.functional.cosine_similarity(y, target)).mean()
            else:
                loss = torch.nn.functional.kl_div(
                    torch.log_softmax(y, 1), torch.softmax(target, 1), reduction="batchmean"
                )
            losses.append(loss.item())
            h = torch.clamp(v, 0, 1) if variable == "direct" else torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
            if i >= 0.2 * steps:
                exponent = 2 + 18 * (1 + np.cos(np.pi * (i / steps - 0.2) / 0.8)) / 2
                loss = loss + 0.01 * (1 - torch.abs(2 * h - 1) ** exponent).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        h = torch.clamp(v, 0, 1) if variable == "direct" else torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
        h = h.detach().numpy()
        assert (np.abs(h - 0.5) > 1e-6).all()
        codes = np.clip(np.floor(weight / scale) + (h >= 0.5), -4, 3)
        final = scale * np.exp(log_scale.detach().numpy())
        found.append(
            GoldenCase(
                "quantizers.fit_rounding", f"25 steps: {loss_name}, {optimizer_name}, {variable}", (x, weight, bias),
                (final * codes, codes.astype(np.int32), final, b.detach().numpy(), h, np.array(steps), np.array(losses)),
                f"{TORCH}: autograd and {optimizer_name}", Tolerance(1e-8, "relative_of_largest"),
                {
                    "bits": bits, "loss": loss_name, "optimizer": optimizer_name, "variable": variable, "n_iter": steps,
                    "learn": ("rounding", "bias", "scale"), "learning_rate": rate,
                    "other_learning_rate": other,
                },
            )
        )  # fmt: skip
    return found


def powers(rng):
    found = []
    for cube in (1, 3):
        weight = rng.standard_normal((40, 2)) ** cube
        errors = {}
        for power in np.linspace(1.0, 0.3, 15):
            bent = bend(torch.tensor(weight), power)
            scale = bent.abs().max(0).values / 7
            back = bend(scale * torch.clamp(torch.round(bent / scale), -8, 7), 1 / power)
            errors[power] = ((back - torch.tensor(weight)) ** 2).sum().item()
        best = min(errors, key=errors.get)
        found.append(
            GoldenCase(
                "quantizers.search_power", f"normal numbers to the power {cube}", (weight,), np.array(best), TORCH,
                Tolerance(1e-12, "relative"), {"bits": 4},
            )
        )  # fmt: skip
    assert list(itertools.islice(errors, 1)) == [1.0]
    return found


def slope():
    """d/dh log((h + 0.1) / (1.1 - h)), the stretched sigmoid's inverse."""
    h = np.array([0.0, 0.25, 0.5, 1.0])
    expected = np.array([float(1 / (v + Fraction(1, 10)) + 1 / (Fraction(11, 10) - v)) for v in map(Fraction, h)])
    # The double nearest to 1.1 is off by 4 units of 1.1 - 1.
    source, tolerance = "by hand, Python's fractions", Tolerance(8, "ulp")
    name = "quantizers.rectified_sigmoid_inverse"
    return GoldenCase(name, "slope", (h,), (expected,), source, tolerance, cotangent=np.ones(4))
