"""Learned roundings against PyTorch's compositions and the reference: in cache, in the last cache, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

COUNTS = (1 << 10, 1 << 16, 1 << 20, 1 << 24)
SHAPES = ((256, 256), (1024, 1024), (4096, 4096))
EXPONENT = 7.5


def races() -> Iterator[dict]:
    for count in COUNTS:
        yield rectified(count)
        yield rectified_both_ways(count)
    for count in COUNTS[1:3]:
        for exponent in (2.0, EXPONENT):
            yield regulariser(count, exponent)
    for shape in SHAPES:
        yield soft(shape)
        yield soft_both_ways(shape)


def race(name: str, shape: str, candidates: dict[str, Callable], exact: Callable, bytes_moved: int) -> dict:
    def check() -> dict[str, float]:
        wanted = np.asarray(exact())
        unit = np.spacing(np.float32(np.abs(wanted).max()))
        return {label: float(np.abs(np.asarray(call()) - wanted).max() / unit) for label, call in candidates.items()}

    return {
        "method": "quantizers/gradient_ptq",
        "name": name,
        "shape": shape,
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": bytes_moved,
        "check": check,
        "check_unit": "ULP of the largest",
    }


def logits(count: int) -> np.ndarray:
    """None so close to an end of the relaxation that rounding decides on which side it lies."""
    v = np.random.default_rng(0).uniform(-3, 3, count).astype(np.float32)
    return np.where(np.abs(np.abs(v) - np.float32(np.log(11))) < 1e-4, np.float32(0), v)


def rectified(count: int) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    v = logits(count)
    tensor, into, out = torch.from_numpy(v), torch.empty(count), np.empty_like(v)

    def in_torch() -> np.ndarray:
        torch.sigmoid(tensor, out=into)
        return into.mul_(1.2).add_(-0.1).clamp_(0, 1).numpy()

    candidates = {
        "refnorm_fast": lambda: fast.rectified_sigmoid(v, out=out),
        "PyTorch, in place": in_torch,
        "NumPy reference": lambda: reference.rectified_sigmoid(v),
    }
    return race(
        "rectified sigmoid",
        str(count),
        candidates,
        lambda: reference.rectified_sigmoid(v.astype(np.float64)),
        8 * count,
    )


def rectified_both_ways(count: int) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    v, dy = logits(count), np.random.default_rng(1).standard_normal(count, dtype=np.float32)
    tensor, cotangent = torch.from_numpy(v).requires_grad_(), torch.from_numpy(dy)

    def in_torch() -> np.ndarray:
        h = (torch.sigmoid(tensor) * 1.2 - 0.1).clamp(0, 1)
        return torch.autograd.grad(h, tensor, cotangent)[0].numpy()

    candidates = {
        "refnorm_fast": lambda: fast.rectified_sigmoid_vjp(v)[1](dy)[0],
        "PyTorch": in_torch,
        "NumPy reference": lambda: reference.rectified_sigmoid_vjp(v)[1](dy)[0],
    }

    def exact() -> np.ndarray:
        return reference.rectified_sigmoid_vjp(v.astype(np.float64))[1](dy.astype(np.float64))[0]

    return race("rectified sigmoid and pullback", str(count), candidates, exact, 24 * count)


def regulariser(count: int, exponent: float) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    h, one = np.random.default_rng(0).random(count, dtype=np.float32), np.ones((), np.float32)
    tensor = torch.from_numpy(h).requires_grad_()

    def in_torch() -> np.ndarray:
        value = (1 - (2 * tensor - 1).abs().pow(exponent)).sum()
        return torch.autograd.grad(value, tensor)[0].numpy()

    candidates = {
        "refnorm_fast": lambda: fast.rounding_regulariser_vjp(h, exponent=exponent)[1](one)[0],
        "PyTorch": in_torch,
        "NumPy reference": lambda: reference.rounding_regulariser_vjp(h, exponent=exponent)[1](one)[0],
    }

    def exact() -> np.ndarray:
        return reference.rounding_regulariser_vjp(h.astype(np.float64), exponent=exponent)[1](np.ones(()))[0]

    return race(f"regulariser and pullback, exponent {exponent:g}", str(count), candidates, exact, 16 * count)


def layer(shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, dtype=np.float32)
    return weight, np.full(shape[1], 0.5, np.float32), logits(weight.size).reshape(shape), weight[::-1].copy()


def soft(shape: tuple[int, int]) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    weight, scale, v, _ = layer(shape)
    tensors = [torch.from_numpy(a) for a in (weight, scale, v)]

    def in_torch() -> np.ndarray:
        w, s, u = tensors
        h = torch.sigmoid(u).mul_(1.2).add_(-0.1).clamp_(0, 1)
        return torch.div(w, s).floor_().add_(h).clamp_(-8, 7).mul_(s).numpy()

    candidates = {
        "refnorm_fast": lambda: fast.soft_quantize(weight, scale, v, bits=4),
        "PyTorch, in place where it can": in_torch,
        "NumPy reference": lambda: reference.soft_quantize(weight, scale, v, bits=4),
    }

    def exact() -> np.ndarray:
        return reference.soft_quantize(*(a.astype(np.float64) for a in (weight, scale, v)), bits=4)

    return race("soft quantized weight", "x".join(map(str, shape)), candidates, exact, 12 * weight.size)


def soft_both_ways(shape: tuple[int, int]) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    weight, scale, v, dy = layer(shape)
    w, cotangent = torch.from_numpy(weight), torch.from_numpy(dy)
    s, u = torch.from_numpy(scale).requires_grad_(), torch.from_numpy(v).requires_grad_()

    def in_torch() -> np.ndarray:
        h = (torch.sigmoid(u) * 1.2 - 0.1).clamp(0, 1)
        y = s * (torch.floor(w / s.detach()) + h).clamp(-8, 7)
        return torch.autograd.grad(y, (s, u), cotangent)[1].numpy()

    candidates = {
        "refnorm_fast": lambda: fast.soft_quantize_vjp(weight, scale, v, bits=4)[1](dy)[2],
        "PyTorch": in_torch,
        "NumPy reference": lambda: reference.soft_quantize_vjp(weight, scale, v, bits=4)[1](dy)[2],
    }

    def exact() -> np.ndarray:
        wide = [a.astype(np.float64) for a in (weight, scale, v)]
        return reference.soft_quantize_vjp(*wide, bits=4)[1](dy.astype(np.float64))[2]

    return race("soft quantized weight and pullback", "x".join(map(str, shape)), candidates, exact, 36 * weight.size)
