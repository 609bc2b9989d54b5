"""Truth for AffineQuant: hand calculations, and PyTorch in float64 (autograd through linalg.inv, Adam)."""

from fractions import Fraction

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.quantizers import Int4Weight

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-11, "relative_of_largest")
ULP = Tolerance(4, "ulp_of_largest")


def cases():
    rng = np.random.default_rng(20240319)
    return [
        *by_hand(),
        *layers(rng),
        fitted(rng),
        *four_bits(np.random.default_rng(4)),
        *equivalent(np.random.default_rng(5)),
    ]


def by_hand():
    transform, x, weight = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[4.0, 2.0]]), np.ones((2, 1))
    mask = np.array([[1.0, 0.5], [0.5, 1.0]])
    return [
        GoldenCase(
            "quantizers.affine_equivalent", "hand calculation", (x, weight, np.zeros(1), transform, np.zeros(2)),
            (np.array([[2.0, 1.0]]), np.array([[2.5], [1.0]]), np.zeros(1)),
            "by hand: P = (2, 1/2; 0, 1), inverse (1/2, -1/4; 0, 1)", ULP, {"mask": mask},
        ),
        GoldenCase(
            "quantizers.gradual_mask", "five rows, second of three epochs", (5, 1, 3),
            np.array(
                [
                    [1.0, 0.1, 0.1, 0, 0],
                    [0.1, 1.0, 0.1, 0.1, 0],
                    [0.1, 0.1, 1.0, 0.1, 0.1],
                    [0, 0.1, 0.1, 1.0, 0.1],
                    [0, 0, 0.1, 0.1, 1.0],
                ]
            ),
            "by hand: floor(4 / 2) + 1 = 3 bands",
        ),
        GoldenCase(
            "quantizers.gradual_mask", "blocks of two, last epoch", (4, 4, 5),
            np.array([[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 1]]), "by hand",
            options={"stability": 0.5, "block": 2},
        ),
        GoldenCase(
            "quantizers.dominance_margin", "hand calculation", (np.array([[3.0, -1.0, 0.5], [0, -2.0, 1.5], [1, 1, 4.0]]),),
            np.array(0.5), "by hand: 1.5, 0.5, 2", ULP,
        ),
        GoldenCase(
            "quantizers.smooth_init", "hand calculation", (np.array([[4.0, -1.0], [0.0, 3.0]]), np.array([[1.0, -1], [0.25, 0.12]])),
            (np.diag([2.0, np.sqrt(12.0)]), np.array([2.0, 1.0])), "by hand: square roots of 4 / 1 and 3 / 0.25", ULP,
        ),
    ]  # fmt: skip


def through(u):
    return u + (torch.round(u) - u).detach()


def quantize(value, low, high, bits):
    scale = (high - low) / (2**bits - 1)
    zero = through(-low / scale)
    return scale * (torch.clamp(through(value / scale) + zero, 0, 2**bits - 1) - zero)


def forward(x, weight, bias, transform, shift, clip_high, clip_low, *, mask, weight_bits, bits, range_gradient=False):
    p = transform * mask
    w, b, a = p @ weight, bias + shift @ weight, (x - shift) @ torch.linalg.inv(p)
    if weight_bits:
        high = torch.sigmoid(clip_high) * torch.clamp(w.max(0).values, min=0)
        low = torch.sigmoid(clip_low) * torch.clamp(w.min(0).values, max=0)
        w = quantize(w, low, high, weight_bits)
    if bits:
        low, high = a.min(1, keepdim=True).values, a.max(1, keepdim=True).values
        a = quantize(a, *((low, high) if range_gradient else (low.detach(), high.detach())), bits)
    return w, a @ w + b


def layers(rng):
    found = []
    shapes = ((9, 5), (5, 4), (4,), (5, 5), (5,), (4,), (4,))
    for name, mask, options in (
        ("full matrix", np.ones((5, 5)), {"weight_bits": 4, "bits": 4}),
        (
            "masked, 3 bits",
            np.where(np.abs(np.subtract.outer(range(5), range(5))) < 2, 1.0, 0.0),
            {"weight_bits": 3, "bits": 3},
        ),
        ("weights only", np.ones((5, 5)), {"weight_bits": 4, "bits": None}),
    ):
        arrays = [rng.standard_normal(shape) for shape in shapes]
        arrays[3] = 2 * np.eye(5) + 0.4 * arrays[3]
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        _, y = forward(*tensors, mask=torch.tensor(mask), **options)
        cotangent = rng.standard_normal((9, 4))
        y.backward(torch.tensor(cotangent))
        common = {"function": "quantizers.affine_quant_linear", "name": name, "args": tuple(arrays)}
        common |= {"options": {"mask": mask, **options}, "tolerance": CLOSE, "source": f"{TORCH}, autograd"}
        found.append(GoldenCase(**common, expected=y.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=tuple(t.grad.numpy() for t in tensors)))
    return found


def fitted(rng):
    x = rng.standard_normal((30, 4)) * np.array([0.3, 1.0, 3.0, 9.0]) + rng.standard_normal(4)
    weight, bias = rng.standard_normal((4, 3)), rng.standard_normal(3)
    epochs, steps, stability = 3, 6, 0.1
    tx, tw, tb = (torch.tensor(a) for a in (x, weight, bias))
    start = np.sqrt(np.abs(x).max(0) / np.abs(weight).max(1))
    learned = [np.diag(start), (x.max(0) + x.min(0)) / 2, np.full(3, 4.0), np.full(3, 4.0)]
    learned = transform, shift, clip_high, clip_low = [torch.tensor(a, requires_grad=True) for a in learned]
    optimizer = torch.optim.Adam([{"params": learned[:2], "lr": 5e-3}, {"params": learned[2:], "lr": 1e-2}], eps=1e-8)
    target, best, losses, margins = tx @ tw + tb, None, [], []
    distance = np.abs(np.subtract.outer(range(4), range(4)))
    for epoch in range(epochs):
        bands = (3 * epoch) // (epochs - 1) + 1
        mask = torch.tensor(np.where(distance == 0, 1.0, np.where(distance < bands, stability, 0.0)))
        for _ in range(steps):
            w, y = forward(tx, tw, tb, *learned, mask=mask, weight_bits=4, bits=4)
            loss = ((y - target) ** 2).mean()
            p = (transform * mask).detach().numpy()
            if best is None or loss.item() < min(losses):
                held = [t.detach().numpy().copy() for t in (shift, clip_high, clip_low, w)]
                best = (p, np.linalg.inv(p), *held, bias + held[0] @ weight)
            losses.append(loss.item())
            off = np.abs(p).sum(1) - np.abs(np.diagonal(p))
            margins.append((np.abs(np.diagonal(p)) - off).min())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return GoldenCase(
        "quantizers.fit_affine_quant", "three epochs of six steps", (x, weight, bias),
        (*best, np.array(epochs * steps), np.array(losses), np.array(margins)), f"{TORCH}: autograd and Adam",
        Tolerance(1e-8, "relative_of_largest"), {"n_epochs": epochs, "steps_per_epoch": steps},
    )  # fmt: skip


def exact_codes(column, group_size):
    """Codes, scales and zero points of one output's weights, by Python's exact fractions."""
    codes, scales, zero_points = [], [], []
    for first in range(0, len(column), group_size):
        group = [Fraction(float(value)) for value in column[first : first + group_size]]
        low, high = min(*group, Fraction(0)), max(*group, Fraction(0))
        scale = (high - low) / 15
        zero = round(-low / scale)
        codes += [min(max(round(value / scale) + zero, 0), 15) for value in group]
        scales.append(scale)
        zero_points.append(zero)
    return codes, scales, zero_points


def exact_int4(weight, group_size):
    columns = [exact_codes(column, group_size) for column in weight.T]
    q = np.zeros((weight.shape[1], (len(weight) + 1) // 2), np.uint8)
    for n, (codes, _, _) in enumerate(columns):
        for k, code in enumerate(codes):
            q[n, k // 2] += code << 4 * (k % 2)
    scale = np.array([[float(s) for s in scales] for _, scales, _ in columns], weight.dtype)
    zero_point = np.array([zeros for _, _, zeros in columns], np.uint8)
    return Int4Weight(q, scale, zero_point, len(weight), group_size)


def four_bits(rng):
    """Codes from exact fractions; layers from PyTorch's float64 product with weights dequantized entry by entry."""
    found = []
    for inputs, outputs, group_size, dtype in ((8, 3, 4, np.float64), (37, 5, 16, np.float64), (70, 6, 32, np.float32)):
        weight = rng.standard_normal((inputs, outputs)).astype(dtype)
        packed = exact_int4(weight, group_size)
        name = f"{inputs} inputs in groups of {group_size}, {np.dtype(dtype)}"
        w_hat = np.zeros((inputs, outputs))
        for n in range(outputs):
            for k in range(inputs):
                code, g = int(packed.q[n, k // 2]) >> 4 * (k % 2) & 15, k // group_size
                w_hat[k, n] = (code - int(packed.zero_point[n, g])) * float(packed.scale[n, g])
        found += [
            GoldenCase(
                "quantizers.quantize_weight_int4", name, (weight,),
                (packed.q, packed.scale, packed.zero_point, np.array(inputs), np.array(group_size)),
                "exact fractions", Tolerance(1, "ulp"), {"group_size": group_size},
            ),
            GoldenCase(
                "quantizers.dequantize_weight_int4", name, (packed,), w_hat, "one entry at a time", Tolerance(1, "ulp")
            ),
        ]  # fmt: skip
        x, bias = rng.standard_normal((2, 4, inputs)).astype(dtype), rng.standard_normal(outputs).astype(dtype)
        dy = rng.standard_normal((2, 4, outputs)).astype(dtype)
        wide = [torch.tensor(array.astype(np.float64), requires_grad=True) for array in (x, bias)]
        y = wide[0] @ torch.tensor(w_hat) + wide[1]
        y.backward(torch.tensor(dy.astype(np.float64)))
        close = Tolerance(2e-6 if dtype == np.float32 else 1e-13, "relative_of_largest")
        common = {"function": "quantizers.int4_linear", "name": name, "args": (x, packed, bias), "tolerance": close}
        common |= {"source": f"{TORCH}, dequantized weights"}
        found.append(GoldenCase(**common, expected=y.detach().numpy().astype(dtype)))
        found.append(GoldenCase(**common, cotangent=dy, expected=tuple(t.grad.numpy().astype(dtype) for t in wide)))
        # A float32 product is off by as much as the weights' range, not the result, is large.
        close = Tolerance(5e-6 if dtype == np.float32 else 1e-13, "relative_of_largest")
        wide = [torch.tensor(array.astype(np.float64), requires_grad=True) for array in (x, bias)]
        moved = torch.tensor(exact_8_bits(x, group_size)) - wide[0].detach()
        y = (wide[0] + moved) @ torch.tensor(w_hat) + wide[1]
        y.backward(torch.tensor(dy.astype(np.float64)))
        common |= {"name": f"8-bit activations, {name}", "options": {"activations": "int8"}, "tolerance": close}
        common |= {"source": f"exact fractions, {TORCH}"}
        found.append(GoldenCase(**common, expected=y.detach().numpy().astype(dtype)))
        found.append(GoldenCase(**common, cotangent=dy, expected=tuple(t.grad.numpy().astype(dtype) for t in wide)))
    return found


def exact_8_bits(x, group_size):
    """What the 8-bit codes of each group of a row stand for, by Python's exact fractions."""
    x_hat = np.zeros(x.shape)
    for row in np.ndindex(*x.shape[:-1]):
        for first in range(0, x.shape[-1], group_size):
            group = [Fraction(float(value)) for value in x[row][first : first + group_size]]
            largest = max(abs(value) for value in group)
            for k, value in enumerate(group):
                x_hat[row][first + k] = float(round(127 * value / largest) * largest / 127)
    return x_hat


def equivalent(rng):
    """Gradients through the equivalent layer: x' = (x - shift) P^-1, weight' = P weight, bias' = bias + shift weight."""
    found = []
    for masked in (False, True):
        arrays = [rng.standard_normal(s) for s in ((6, 4), (4, 3), (3,), (4, 4), (4,))]
        arrays[3] += 4 * np.eye(4)
        mask = np.tril(np.full((4, 4), 0.5)) + np.triu(np.ones((4, 4))) if masked else None
        x, weight, bias, transform, shift = leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        p = transform if mask is None else transform * torch.tensor(mask)
        values = ((x - shift) @ torch.linalg.inv(p), p @ weight, bias + shift @ weight)
        cotangents = tuple(rng.standard_normal(tuple(v.shape)) for v in values)
        sum((torch.tensor(c) * v).sum() for c, v in zip(cotangents, values, strict=True)).backward()
        found.append(
            GoldenCase(
                "quantizers.affine_equivalent", f"gradient, masked {masked}", tuple(arrays),
                tuple(leaf.grad.numpy() for leaf in leaves), f"torch {torch.__version__.split('+')[0]}, float64: autograd",
                Tolerance(1e-12, "relative_of_largest"), {"mask": mask}, cotangents,
            )
        )  # fmt: skip
    return found
