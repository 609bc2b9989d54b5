"""Matrix products in bfloat16 from float32 operands, against the peers' from operands that are bfloat16 already."""

from __future__ import annotations

import numpy as np

SHAPES = ((64, 64, 64), (1, 4096, 4096), (16, 4096, 4096), (256, 4096, 4096), (1024, 1024, 1024), (1024, 1536, 384))
"""Rows, inputs and outputs of the product with a matrix (inputs, outputs)."""


def races() -> list[dict]:
    found = [*(product(*shape) for shape in SHAPES), layer(256, 1536, 384)]
    return [*found, *(stored(*shape) for shape in SHAPES)]


def bound(a: np.ndarray, b: np.ndarray, candidates: dict) -> dict:
    """What all races share: the error against the exact product of the rounded operands."""
    from refnorm.quantizers import round_bfloat16

    exact = round_bfloat16(a).astype(np.float64) @ round_bfloat16(b)
    rows, inputs, outputs = len(a), len(b), b.shape[1]
    return {
        "method": "quantizers/half_precision_training",
        "shape": f"{rows}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * (rows * inputs + inputs * outputs + rows * outputs),
        "ops": 2 * rows * inputs * outputs,
        "check": lambda: {
            label: float(np.linalg.norm(np.asarray(call(), np.float64) - exact) / np.linalg.norm(exact))
            for label, call in candidates.items()
        },
        "check_unit": "relative",
    }


def product(rows: int, inputs: int, outputs: int) -> dict:
    import refnorm_fast.quantizers as fast
    from refnorm.quantizers import Precision

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    precision = Precision("bfloat16", "float32", "float32")
    out = np.empty((rows, outputs), np.float32)
    candidates = {
        "refnorm_fast": lambda: fast.matmul_lowp(a, b, precision=precision, out=out),
        "NumPy, float32": lambda: np.matmul(a, b, out=out),
    }
    try:
        import torch

        floats = torch.from_numpy(a), torch.from_numpy(b)
        rounded = tuple(each.bfloat16() for each in floats)
        candidates["torch, bfloat16 operands"] = lambda: torch.mm(*rounded).float().numpy()
        candidates["torch, rounding included"] = lambda: torch.mm(*(each.bfloat16() for each in floats)).float().numpy()
    except ImportError:
        pass
    return {**bound(a, b, candidates), "name": "bfloat16 product"}


def stored(rows: int, inputs: int, outputs: int) -> dict:
    """Weights that are bfloat16 already on both sides; both round the inputs and give float32."""
    import refnorm_fast.quantizers as fast

    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    kept = fast.round_weight_bfloat16(weight)
    out = np.empty((rows, outputs), np.float32)
    candidates = {
        "refnorm_fast": lambda: fast.bfloat16_linear(x, kept, out=out),
        "NumPy, float32": lambda: np.matmul(x, weight, out=out),
    }
    try:
        import torch

        floats, rounded = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(weight.T)).bfloat16()

        def torch_layer():
            with torch.inference_mode():
                return torch.nn.functional.linear(floats.bfloat16(), rounded).float().numpy()

        candidates["torch, bfloat16 weights"] = torch_layer
    except ImportError:
        pass
    shared = bound(x, weight, candidates)
    moved = 4 * rows * (inputs + outputs) + 2 * inputs * outputs
    return {**shared, "bytes": moved, "name": "linear layer, weights stored in bfloat16"}


def layer(rows: int, inputs: int, outputs: int) -> dict:
    import refnorm_fast.quantizers as fast
    from refnorm.quantizers import Precision

    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, inputs), (outputs, inputs)))
    precision = Precision("bfloat16", "float32", "float32")
    out = np.empty((rows, outputs), np.float32)
    candidates = {
        "refnorm_fast": lambda: fast.linear_lowp(x, weight, precision=precision, out=out),
        "NumPy, float32": lambda: np.matmul(x, weight.T, out=out),
    }
    try:
        import torch

        floats = torch.from_numpy(x), torch.from_numpy(weight)
        rounded = tuple(each.bfloat16() for each in floats)

        def torch_layer():
            with torch.inference_mode():
                return torch.nn.functional.linear(*rounded).float().numpy()

        candidates["torch, bfloat16 operands"] = torch_layer
    except ImportError:
        pass
    return {**bound(x, weight.T, candidates), "name": "bfloat16 linear layer"}
