"""Softmax attention without a stored score matrix against PyTorch's and against the plain NumPy formula."""

from __future__ import annotations

import numpy as np

SHAPES = ((12, 64, 32), (12, 256, 32), (12, 512, 64), (4, 2048, 64))
"""Heads, positions (queries and keys) and entries of a head."""


def races() -> list[dict]:
    import refnorm_fast.attention as fast

    return [race(fast, *shape, causal) for shape in SHAPES for causal in (False, True)]


def race(fast, heads: int, length: int, depth: int, causal: bool) -> dict:
    from refnorm.attention import scaled_dot_product_attention

    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, heads, length, depth)).astype(np.float32)
    out = np.empty_like(query)
    candidates = {
        "refnorm_fast": lambda: fast.scaled_dot_product_attention(query, key, value, causal=causal, out=out),
        "NumPy": lambda: scaled_dot_product_attention(query, key, value, causal=causal),
    }
    try:
        import torch

        tensors = [torch.from_numpy(array) for array in (query, key, value)]

        def torch_attention():
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal).numpy()

        candidates["PyTorch"] = torch_attention
    except ImportError:
        pass
    wide = (array.astype(np.float64) for array in (query, key, value))
    exact = scaled_dot_product_attention(*wide, causal=causal)
    pairs = length * (length + 1) // 2 if causal else length * length
    return {
        "method": "attention/scaled_dot_product",
        "name": "causal attention" if causal else "attention",
        "shape": f"{heads} heads, {length} positions, {depth} entries",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * 4 * heads * length * depth,
        "ops": 4 * heads * pairs * depth,
        "check": lambda: {label: float(np.abs(call() - exact).max()) for label, call in candidates.items()},
        "check_unit": "largest error",
    }
