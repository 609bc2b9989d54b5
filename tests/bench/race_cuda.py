"""CUDA kernels against PyTorch on the same GPU. Without a GPU, CuPy or a PyTorch with CUDA there is nothing to race.

Every candidate is timed to the end of its work: it waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SHAPES = ((64, 128), (4096, 1024), (512, 32768))
HEADS, LENGTH, DEPTH = 32, 1024, 64
CHECKED = 64
"""Rows at most whose error is measured."""

OURS = "refnorm_fast.cuda"


def races() -> Iterator[dict]:
    try:
        import cupy
        import torch

        usable = cupy.cuda.runtime.getDeviceCount() > 0 and torch.cuda.is_available()
    except Exception:  # no CuPy, or CuPy without a driver: each has an exception of its own
        return
    if not usable:
        return
    for rows, length in SHAPES:
        yield from row_races(cupy, torch, rows, length)
    yield attention(cupy, torch)


def waiting(call: Callable[[], Any], synchronize: Callable[[], None]) -> Callable[[], Any]:
    def run() -> Any:
        result = call()
        synchronize()
        return result

    return run


def race(
    method: str, name: str, shape: str, bytes_: int, ours: Callable, theirs: Callable, truth: Any, torch: Any
) -> dict:
    candidates = {
        OURS: waiting(ours, torch.cuda.synchronize),
        "torch": waiting(theirs, torch.cuda.synchronize),
    }

    def check() -> dict[str, float]:
        errors = {}
        for label, call in candidates.items():
            y = call()
            host = (y.get() if hasattr(y, "get") else y.detach().cpu().numpy())[: len(truth)]
            errors[label] = float(np.abs(host - truth).max() / np.spacing(np.abs(truth).max().astype(np.float32)))
        return errors

    return {
        "method": method,
        "name": name,
        "shape": shape,
        "candidates": candidates,
        "ours": OURS,
        "bytes": bytes_,
        "check": check,
        "check_unit": "ULP of the largest",
    }


def row_races(cupy: Any, torch: Any, rows: int, length: int) -> Iterator[dict]:
    import refnorm
    from refnorm_fast import cuda

    rng = np.random.default_rng(0)
    host = rng.standard_normal((rows, length), dtype=np.float32)
    gain, bias = rng.standard_normal((2, length), dtype=np.float32)
    x, g, b = (cupy.asarray(a) for a in (host, gain, bias))
    tx, tg, tb = (torch.from_numpy(a).cuda() for a in (host, gain, bias))
    shape, wide = f"{rows}x{length}", [a.astype(np.float64) for a in (host[:CHECKED], gain, bias)]
    functional = torch.nn.functional
    yield race(
        "softmax/two_pass", "softmax on a GPU", shape, 2 * host.nbytes,
        lambda: cuda.softmax.softmax(x), lambda: torch.softmax(tx, -1), refnorm.softmax.softmax(wide[0]), torch,
    )  # fmt: skip
    yield race(
        "norms/layer_norm", "layer_norm on a GPU", shape, 2 * host.nbytes,
        lambda: cuda.norms.layer_norm(x, g, b), lambda: functional.layer_norm(tx, (length,), tg, tb),
        refnorm.norms.layer_norm(*wide), torch,
    )  # fmt: skip


def attention(cupy: Any, torch: Any) -> dict:
    import refnorm
    from refnorm_fast import cuda

    rng = np.random.default_rng(0)
    host = rng.standard_normal((3, HEADS, LENGTH, DEPTH), dtype=np.float32)
    ours = [cupy.asarray(a) for a in host]
    theirs = [torch.from_numpy(a).cuda() for a in host]
    return race(
        "attention/scaled_dot_product", "attention on a GPU", f"{HEADS} heads, {LENGTH} x {DEPTH}", 4 * host[0].nbytes,
        lambda: cuda.attention.scaled_dot_product_attention(*ours),
        lambda: torch.nn.functional.scaled_dot_product_attention(*theirs),
        refnorm.attention.scaled_dot_product_attention(*host[:, :1].astype(np.float64)), torch,
    )  # fmt: skip
