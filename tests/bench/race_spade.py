"""SPADE's norm and modulation against PyTorch's group norm and element-wise operations; the convolutions are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SHAPES = ((2, 64, 14, 14), (8, 128, 28, 28), (8, 128, 128, 128))
OURS, OURS_OUT = "refnorm_fast", "refnorm_fast out="
METHOD = "norms/spatially_adaptive_norm"


def races() -> Iterator[dict]:
    for shape in SHAPES:
        yield from modulate_races(shape)


def race(name: str, shape: tuple[int, ...], candidates: dict[str, Callable], exact: np.ndarray, arrays: int, ours: str):
    unit = np.spacing(np.float32(np.abs(exact).max())).astype(np.longdouble)

    def check() -> dict[str, float]:
        return {label: float(np.abs(np.asarray(call()) - exact).max() / unit) for label, call in candidates.items()}

    return {
        "method": METHOD,
        "name": name,
        "shape": "x".join(map(str, shape)),
        "candidates": candidates,
        "ours": ours,
        "bytes": arrays * exact.size * 4,
        "check": check,
        "check_unit": "ULP of the largest",
    }


def modulate_races(shape: tuple[int, ...]) -> Iterator[dict]:
    import torch

    import refnorm_fast.norms as fast

    x, gain, bias, dy = np.random.default_rng(0).standard_normal((4, *shape), dtype=np.float32)
    out = np.empty_like(x)
    x_, gain_, bias_, dy_ = (torch.from_numpy(a) for a in (x, gain, bias, dy))
    wide = [a.astype(np.longdouble) for a in (x, gain, bias, dy)]
    forward = {
        OURS: lambda: fast.spade_modulate(x, gain, bias),
        OURS_OUT: lambda: fast.spade_modulate(x, gain, bias, out=out),
        "torch": lambda: torch.addcmul(bias_, x_, gain_ + 1),
        "NumPy reference": lambda: x * (1 + gain) + bias,
    }
    yield race("spade_modulate", shape, forward, wide[0] * (1 + wide[1]) + wide[2], 4, OURS_OUT)
    _, pullback = fast.spade_modulate_vjp(x, gain, bias)
    backward = {
        OURS: lambda: pullback(dy)[0],
        "torch": lambda: (dy_ * (gain_ + 1), dy_ * x_)[0],
    }
    yield race("spade_modulate backward", shape, backward, wide[3] * (1 + wide[1]), 5, OURS)
