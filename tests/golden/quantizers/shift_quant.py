"""Truth for ShiftQuant and L1 normalization: hand calculations, mpmath, integers of Python, PyTorch in float64."""

from dataclasses import make_dataclass
from fractions import Fraction

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-13, "relative_of_largest")
Quantized = make_dataclass("ShiftQuantized", ["q", "shift", "scale", "n_groups"])
State = make_dataclass("L1BatchNormState", ["mean", "deviation"])


def cases():
    rng = np.random.default_rng(241110948)
    return [*by_hand(), *exact(rng), *differentiated(rng)]


def by_hand():
    row, source = np.array([[8.0, 3.0, -0.9]]), "by hand"
    found = Quantized(
        np.array([[7, 5, -6]], dtype=np.int8), np.array([[0, 1, 3]], dtype=np.int8), np.array(8 / 7), 4
    )  # fmt: skip
    ones = np.ones((3, 1), dtype=np.int8)
    one, zero = np.ones(3), np.zeros(3)
    ulp = Tolerance(2, "ulp")
    return [
        GoldenCase("quantizers.shift_groups", "by hand", (row,), found.shift, source),
        GoldenCase("quantizers.shift_matmul", "by hand", (found, ones, 1.0), np.array([[10.0]]), source, ulp),
        # eps is nearly 0, and moves the result by less than the tolerance.
        GoldenCase(
            "quantizers.l1_norm", "1, 2, 6", (np.array([1.0, 2.0, 6.0]), one, zero), np.array([-1.0, -0.5, 1.5]), source,
            CLOSE, options={"eps": 1e-15},
        ),
        GoldenCase(
            "quantizers.l1_norm", "1, 2, 6", (np.array([1.0, 2.0, 6.0]), one, zero), source=source, tolerance=CLOSE,
            cotangent=np.array([1.0, 0, 0]), options={"eps": 1e-15},
            expected=(np.array([2 / 9, -5 / 18, 1 / 18]), np.array([-1.0, 0, 0]), np.array([1.0, 0, 0])),
        ),
        *(
            GoldenCase(
                "quantizers.grouping_variance_bound", f"8, 3, 0.9 {method}", (np.array([8.0, 3.0, 0.9]), method),
                np.array(total / (3 * 4 * 49)), source, ulp, options={"n_groups": groups},
            )
            for method, groups, total in (
                ("tensor", 4, 192.0), ("shift", 4, 81.0), ("channel", 4, 73.81), ("optimal", 2, 82.0),
            )
        ),
    ]  # fmt: skip


def exact(rng):
    g = rng.standard_normal((20, 12)) * np.exp(2 * rng.standard_normal(12))
    found = []
    for bits, groups in ((4, 4), (6, 8), (3, 1)):
        ranges = [max(abs(Fraction(float(v))) for v in column) for column in g.T]
        top, highest = max(ranges), 2 ** (bits - 1) - 1
        shifts = []
        for value in ranges:
            fits = [n for n in range(groups) if value <= top / 2**n]
            shifts.append(max(fits))
        shift = np.array([shifts], dtype=np.int8)
        scaled = [[Fraction(float(v)) * highest * 2**n / top for v, n in zip(row, shifts, strict=True)] for row in g]
        q = np.array([[round(v) for v in row] for row in scaled], dtype=np.int8)
        name = f"{bits} bits, {groups} groups"
        source = "Python's fractions, exact"
        found.append(
            GoldenCase("quantizers.shift_groups", name, (g,), shift, source, options={"n_groups": groups})
        )  # fmt: skip
        codes = (q, shift, np.array(float(top / highest)), np.array(groups))
        options = {"bits": bits, "n_groups": groups, "rounding": "nearest"}
        found.append(GoldenCase("quantizers.shift_quantize", name, (g,), codes, source, options=options))
        weight = rng.integers(-31, 32, (12, 5)).astype(np.int8)
        scale = float(top / highest)
        total = [
            [
                sum(int(q[t, c]) * int(weight[c, k]) * Fraction(scale) / 2 ** shifts[c] for c in range(12))
                * Fraction(1, 32)
                for k in range(5)
            ]
            for t in range(20)
        ]
        expected = np.array([[float(v) for v in row] for row in total])
        args = (Quantized(q, shift, np.array(scale), groups), weight, 1 / 32)
        found.append(GoldenCase("quantizers.shift_matmul", name, args, expected, source, Tolerance(2, "ulp")))
    return found


def differentiated(rng):
    found = []
    for axis, match in ((-1, False), (1, True)):
        x = rng.standard_normal((3, 6, 5))
        units = x.shape[axis]
        along = (1, units, 1) if axis == 1 else (units,)
        gain, bias = rng.standard_normal(units), rng.standard_normal(units)
        leaves = [torch.tensor(array, requires_grad=True) for array in (x, gain, bias)]
        centred = leaves[0] - leaves[0].mean(axis, keepdim=True)
        scale = float(mpmath.sqrt(mpmath.pi / 2)) if match else 1.0
        y = leaves[1].reshape(along) * centred / (scale * centred.abs().mean(axis, keepdim=True) + 1e-5)
        y = y + leaves[2].reshape(along)
        found += both(
            "quantizers.l1_norm", f"axis {axis}", (x, gain, bias), leaves, y, rng, {"axis": axis, "match_std": match}
        )
    for training in (True, False):
        x, gain, bias = (rng.standard_normal(s) for s in ((7, 3), (3,), (3,)))
        mean, deviation = rng.standard_normal(3), rng.random(3) + 0.5
        leaf, torch_gain, torch_bias = leaves = [torch.tensor(a, requires_grad=True) for a in (x, gain, bias)]
        batch = leaf.mean(0)
        spread = (leaf - batch).abs().mean(0)
        used = (batch, spread) if training else (torch.tensor(mean), torch.tensor(deviation))
        y = torch_gain * (leaf - used[0]) / (used[1] + 1e-5) + torch_bias
        moved = (0.75 * mean + 0.25 * batch.detach().numpy(), 0.75 * deviation + 0.25 * spread.detach().numpy())
        cotangent = np.cos(np.arange(21.0)).reshape(7, 3)
        grads = tuple(g.numpy() for g in torch.autograd.grad(y, leaves, torch.tensor(cotangent), retain_graph=True))
        state = moved if training else (mean, deviation)
        found.append(
            GoldenCase(
                "quantizers.l1_batch_norm", f"training {training}", (x, gain, bias, State(mean, deviation)),
                (y.detach().numpy(), *state), TORCH, CLOSE, {"training": training, "momentum": 0.25},
            )
        )  # fmt: skip
        found.append(
            GoldenCase(
                "quantizers.l1_batch_norm", f"training {training}", (x, gain, bias, State(mean, deviation)),
                grads, f"{TORCH}: autograd", CLOSE, {"training": training, "momentum": 0.25}, cotangent,
            )
        )  # fmt: skip
    for bits in (4, 7):
        x, weight = rng.standard_normal((6, 5)), rng.standard_normal((5, 4))
        leaves = [torch.tensor(array, requires_grad=True) for array in (x, weight)]
        highest = 2 ** (bits - 1) - 1
        steps = [leaf.detach().abs().max() / highest for leaf in leaves]
        hats = [
            leaf + (step * torch.round(leaf / step) - leaf).detach() for leaf, step in zip(leaves, steps, strict=True)
        ]
        y = hats[0] @ hats[1]
        cotangent = rng.standard_normal((6, 4))
        y.backward(torch.tensor(cotangent))
        common = {"args": (x, weight), "source": TORCH, "tolerance": CLOSE, "name": f"{bits} bits"}
        name = "quantizers.shift_linear"
        options = {"forward_bits": bits}
        found.append(GoldenCase(name, expected=y.detach().numpy(), options=options, **common))
        grads = tuple(leaf.grad.numpy() for leaf in leaves)
        options = {**options, "grad_bits": None}
        found.append(GoldenCase(name, expected=grads, cotangent=cotangent, options=options, **common))
    return found


def both(function, name, args, leaves, y, rng, options):
    cotangent = rng.standard_normal(tuple(y.shape))
    y.backward(torch.tensor(cotangent))
    common = {"function": function, "name": name, "args": args, "source": f"{TORCH}, autograd", "tolerance": CLOSE}
    return [
        GoldenCase(expected=y.detach().numpy(), options=options, **common),
        GoldenCase(
            expected=tuple(leaf.grad.numpy() for leaf in leaves), cotangent=cotangent, options=options, **common
        ),
    ]  # fmt: skip
