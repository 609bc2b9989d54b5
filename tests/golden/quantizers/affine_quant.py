"""Truth for AffineQuant: hand calculations, and PyTorch in float64 (autograd through linalg.inv, Adam)."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-11, "relative_of_largest")
ULP = Tolerance(4, "ulp_of_largest")


def cases():
    rng = np.random.default_rng(20240319)
    return [*by_hand(), *layers(rng), fitted(rng)]


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
