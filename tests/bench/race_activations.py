"""Activations of one array against PyTorch, SciPy and numexpr: in cache, in the last cache, in memory; value and gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

COUNTS = (1 << 10, 1 << 16, 1 << 20, 1 << 25)
CHECKED = 1 << 18
"""Entries whose error is measured."""


def races() -> Iterator[dict]:
    for count in COUNTS:
        x, dy = np.random.default_rng(0).standard_normal((2, count), dtype=np.float32)
        for name in ("sigmoid", "silu", "softplus", "erf", "gelu", "relu"):
            yield value(name, x)
    x, dy = np.random.default_rng(0).standard_normal((2, 1 << 20), dtype=np.float32)
    for name in ("sigmoid", "silu", "softplus", "gelu"):
        yield gradient(name, x, dy)


def value(name: str, x: np.ndarray) -> dict:
    import numexpr
    import torch
    from scipy import special

    import refnorm_fast
    from refnorm import nn as reference

    kernel, tensor, y = getattr(refnorm_fast.nn, name), torch.from_numpy(x), np.empty_like(x)
    into = torch.from_numpy(y)
    functional = torch.nn.functional
    numexpr.set_num_threads(2)
    candidates: dict[str, Callable] = {"refnorm_fast out=": lambda: kernel(x, out=y)}
    if name in ("sigmoid", "erf"):
        in_torch = getattr(torch, name)
        candidates["PyTorch out="] = lambda: in_torch(tensor, out=into).numpy()
    elif name == "relu":
        candidates["PyTorch out="] = lambda: torch.clamp_min(tensor, 0, out=into).numpy()
    else:
        in_torch = getattr(functional, name)
        candidates["PyTorch"] = lambda: in_torch(tensor).numpy()
        candidates["refnorm_fast"] = lambda: kernel(x)
    formulas = {"sigmoid": "1 / (1 + exp(-x))", "silu": "x / (1 + exp(-x))", "softplus": "log1p(exp(x))"}
    if name in formulas:
        candidates["numexpr out="] = lambda: numexpr.evaluate(formulas[name], {"x": x}, out=y)
    scipy = {"sigmoid": special.expit, "erf": special.erf}
    if name in scipy:
        candidates["SciPy out="] = lambda: scipy[name](x, out=y)

    def check() -> dict[str, float]:
        exact = getattr(reference, name)(x[:CHECKED].astype(np.float64))
        return {label: ulp(np.asarray(call())[:CHECKED], exact) for label, call in candidates.items()}

    return {
        "method": "nn/activations",
        "name": name,
        "shape": str(x.size),
        "candidates": candidates,
        "ours": "refnorm_fast"
        if "refnorm_fast" in candidates and "PyTorch out=" not in candidates
        else "refnorm_fast out=",
        "bytes": 2 * x.nbytes,
        "check": check,
        "check_unit": "ULP",
    }


def gradient(name: str, x: np.ndarray, dy: np.ndarray) -> dict:
    """The backward pass alone, from a forward pass that both have behind them."""
    import torch

    import refnorm_fast
    from refnorm import nn as reference

    _, pullback = getattr(refnorm_fast.nn, f"{name}_vjp")(x)
    tensor, cotangent = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)
    y = getattr(torch if name == "sigmoid" else torch.nn.functional, name)(tensor)
    candidates = {
        "refnorm_fast": lambda: pullback(dy)[0],
        "PyTorch": lambda: torch.autograd.grad(y, tensor, cotangent, retain_graph=True)[0].numpy(),
    }

    def check() -> dict[str, float]:
        exact = getattr(reference, f"{name}_vjp")(x[:CHECKED].astype(np.float64))[1](dy[:CHECKED].astype(np.float64))[0]
        largest = np.spacing(np.abs(exact).max().astype(np.float32))
        return {label: float(np.abs(call()[:CHECKED] - exact).max() / largest) for label, call in candidates.items()}

    return {
        "method": "nn/activations",
        "name": f"{name}, backward",
        "shape": str(x.size),
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 3 * x.nbytes,
        "check": check,
        "check_unit": "ULP of the largest",
    }


def ulp(y: np.ndarray, exact: np.ndarray) -> float:
    unit = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return float((np.abs(y - exact) / unit).max())
