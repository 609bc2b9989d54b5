"""Softmax and the norms against PyTorch and SciPy: short rows, rows in cache, rows in the last cache, rows in memory.

Every race has two candidates of ours, one that allocates its result and one that writes into ``out``; so has PyTorch
where it knows ``out=``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SHAPES = ((64, 128), (4096, 1024), (512, 32768), (16, 4194304))
CHECKED = 1 << 22
"""Entries at most whose error is measured: whole rows, the first ones."""

OURS, OURS_OUT = "refnorm_fast", "refnorm_fast out="


def races() -> Iterator[dict]:
    import torch

    # What a call costs: hardly any arithmetic.
    short = np.random.default_rng(0).standard_normal((1, 64), dtype=np.float32)
    yield softmax(short, torch.from_numpy(short))
    for rows, length in SHAPES:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, length), dtype=np.float32)
        gain, bias = rng.standard_normal((2, length), dtype=np.float32)
        tensors = [torch.from_numpy(a) for a in (x, gain, bias)]
        yield softmax(x, tensors[0])
        if x.size < 1 << 25:
            yield masked_softmax(x, tensors[0])
        yield log_softmax(x, tensors[0])
        yield layer_norm(x, gain, bias, *tensors)
        yield rms_norm(x, gain, *tensors[:2])
        yield compressed_rms_norm(x)
    yield baselines(1024, 4096)
    yield baselines(1, 1 << 24)


def race(
    method: str, name: str, x: np.ndarray, candidates: dict[str, Callable], exact: Callable, ours=OURS_OUT
) -> dict:
    def check() -> dict[str, float]:
        rows = max(1, CHECKED // x.shape[1])
        expected = exact(x[:rows].astype(np.longdouble))
        return {label: worst_ulp(np.asarray(call())[:rows], expected) for label, call in candidates.items()}

    return {
        "method": method,
        "name": name,
        "shape": f"{x.shape[0]}x{x.shape[1]}",
        "candidates": candidates,
        "ours": ours,
        "bytes": floor_bytes(name, x),
        "check": check,
        "check_unit": "ULP" if "softmax" in name else "ULP of the largest",
    }


def floor_bytes(name: str, x: np.ndarray) -> int:
    """Bytes that must move: one read and one write of what a row's cache holds between the passes, else two reads."""
    held = x[0].nbytes <= 1 << 19
    return x.nbytes * (2 if held else 3)


def worst_ulp(y: np.ndarray, expected: np.ndarray) -> float:
    if expected.ndim == 3:  # an error relative to the largest entry: the last index holds it
        expected = expected[..., 0]
        unit = np.spacing(np.abs(expected).max().astype(np.float32)).astype(np.longdouble)
    else:
        unit = np.abs(np.spacing(np.abs(expected).astype(np.float32))).astype(np.longdouble)
    return float((np.abs(y - expected) / unit).max())


def exact_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def exact_log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(x, tensor) -> dict:
    import scipy.special
    import sklearn.utils.extmath
    import torch

    import refnorm_fast.softmax as fast

    out, tensor_out = np.empty_like(x), torch.empty_like(tensor)
    candidates = {
        OURS: lambda: fast.softmax(x),
        OURS_OUT: lambda: fast.softmax(x, out=out),
        "torch": lambda: torch.softmax(tensor, -1),
        "torch out=": lambda: torch.softmax(tensor, -1, out=tensor_out),
    }
    if x.size < 1 << 25:
        candidates["scipy"] = lambda: scipy.special.softmax(x, axis=-1)
        candidates["scikit-learn"] = lambda: sklearn.utils.extmath.softmax(x)
    return race("softmax/two_pass", "softmax", x, candidates, exact_softmax)


def masked_softmax(x, tensor) -> dict:
    """Seven entries in ten take part, at temperature 0.7."""
    import torch

    import refnorm_fast.softmax as fast

    where = np.random.default_rng(1).random(x.shape) < 0.7
    out, left_out, rows = np.empty_like(x), torch.from_numpy(~where), max(1, CHECKED // x.shape[1])
    candidates = {
        OURS: lambda: fast.softmax(x, where=where, temperature=0.7),
        OURS_OUT: lambda: fast.softmax(x, where=where, temperature=0.7, out=out),
        "torch": lambda: torch.softmax((tensor / 0.7).masked_fill_(left_out, -torch.inf), -1),
    }

    def exact(wide):
        return exact_softmax(np.where(where[:rows], wide / np.longdouble(0.7), -np.inf))

    found = race("softmax/two_pass", "softmax, masked, temperature 0.7", x, candidates, exact)
    found["bytes"] += x.size
    return found


def log_softmax(x, tensor) -> dict:
    import torch

    import refnorm_fast.softmax as fast

    out = np.empty_like(x)
    candidates = {
        OURS: lambda: fast.log_softmax(x),
        OURS_OUT: lambda: fast.log_softmax(x, out=out),
        "torch": lambda: torch.log_softmax(tensor, -1),
    }
    return race("softmax/cross_entropy", "log_softmax", x, candidates, exact_log_softmax)


def layer_norm(x, gain, bias, tensor, tensor_gain, tensor_bias) -> dict:
    import torch

    import refnorm_fast.norms as fast

    out, units = np.empty_like(x), (x.shape[1],)

    def exact(wide):
        centred = wide - wide.mean(axis=-1, keepdims=True)
        inv_std = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
        return (centred * inv_std * gain + bias)[..., None]

    candidates = {
        OURS: lambda: fast.layer_norm(x, gain, bias),
        OURS_OUT: lambda: fast.layer_norm(x, gain, bias, out=out),
        "torch": lambda: torch.nn.functional.layer_norm(tensor, units, tensor_gain, tensor_bias),
    }
    return race("norms/layer_norm", "layer_norm", x, candidates, exact)


def rms_norm(x, gain, tensor, tensor_gain) -> dict:
    import torch

    import refnorm_fast.norms as fast

    out, units = np.empty_like(x), (x.shape[1],)

    def exact(wide):
        return (wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + 1e-5) * gain)[..., None]

    candidates = {
        OURS: lambda: fast.rms_norm(x, gain),
        OURS_OUT: lambda: fast.rms_norm(x, gain, out=out),
        "torch": lambda: torch.nn.functional.rms_norm(tensor, units, tensor_gain, 1e-5),
    }
    return race("norms/compressed_rms_norm", "rms_norm", x, candidates, exact)


def compressed_rms_norm(x) -> dict:
    import refnorm_fast.norms as fast

    out = np.empty_like(x)

    def exact(wide):
        square = ((wide * wide).sum(axis=-1, keepdims=True) + wide.sum(axis=-1, keepdims=True) ** 2) / (x.shape[1] + 1)
        return (wide / np.sqrt(square + 1e-5))[..., None]

    candidates = {
        OURS: lambda: fast.compressed_rms_norm(x),
        OURS_OUT: lambda: fast.compressed_rms_norm(x, out=out),
    }
    return race("norms/compressed_rms_norm", "compressed_rms_norm", x, candidates, exact)


def baselines(rows: int, length: int) -> dict:
    """The paper's comparison: its algorithm against the three others, same flags, same exponential, one thread."""
    import refnorm_fast.softmax as fast
    from refnorm_fast import set_num_threads

    x = np.random.default_rng(0).standard_normal((rows, length), dtype=np.float32)
    out = np.empty_like(x)

    def candidate(name: str) -> Callable:
        def call() -> np.ndarray:
            set_num_threads(1)
            try:
                return fast.softmax(x, algorithm=name, out=out)
            finally:
                set_num_threads(None)

        return call

    candidates = {name: candidate(name) for name in ("two_pass", "three_pass_recompute", "three_pass_reload", "online")}
    found = race("softmax/two_pass", "softmax algorithms", x, candidates, exact_softmax, ours="two_pass")
    algorithms = dict(candidates)
    expected = exact_softmax(x.astype(np.longdouble))
    found["check"] = lambda: {label: worst_ulp(call(), expected) for label, call in algorithms.items()}
    candidates["copy"] = lambda: np.copyto(out, x)  # the yardstick: what moving the bytes once each way costs
    return found
