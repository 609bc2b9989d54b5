"""Softmax attention without a stored score matrix against PyTorch's and against the plain NumPy formula."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SHAPES = ((12, 64, 32), (12, 256, 32), (12, 512, 64), (96, 512, 64), (4, 2048, 64))
"""Heads, positions (queries and keys) and entries of a head."""


def races() -> Iterator[dict]:
    import refnorm_fast.attention as fast

    both = [(shape, causal) for shape in SHAPES for causal in (False, True)]
    for shape, causal in both:
        yield race(fast, *shape, causal)
    for shape, causal in both:
        yield backward(fast, *shape, causal)


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
    wide = (array[:, :4].astype(np.float64) for array in (query, key, value))
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
        "check": lambda: {label: float(np.abs(call()[:, :4] - exact).max()) for label, call in candidates.items()},
        "check_unit": "largest error",
    }


def backward(fast, heads: int, length: int, depth: int, causal: bool) -> dict:
    """The backward pass alone, from a forward pass that every candidate has behind it."""
    from refnorm.attention import scaled_dot_product_attention_vjp

    rng = np.random.default_rng(0)
    query, key, value, dy = rng.standard_normal((4, 1, heads, length, depth)).astype(np.float32)
    _, pullback = fast.scaled_dot_product_attention_vjp(query, key, value, causal=causal)
    _, reference = scaled_dot_product_attention_vjp(query, key, value, causal=causal)
    candidates = {"refnorm_fast": lambda: pullback(dy), "NumPy": lambda: reference(dy)}
    try:
        import torch

        tensors = [torch.from_numpy(array).requires_grad_() for array in (query, key, value)]
        y = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
        cotangent = torch.from_numpy(dy)
        candidates["PyTorch"] = lambda: torch.autograd.grad(y, tensors, cotangent, retain_graph=True)
    except ImportError:
        pass

    def check() -> dict[str, float]:
        few = [array[:, :4].astype(np.float64) for array in (query, key, value, dy)]
        exact = scaled_dot_product_attention_vjp(*few[:3], causal=causal)[1](few[3])
        return {
            label: max(
                float(np.abs(np.asarray(mine)[:, :4] - true).max()) for mine, true in zip(call(), exact, strict=True)
            )
            for label, call in candidates.items()
        }

    pairs = length * (length + 1) // 2 if causal else length * length
    return {
        "method": "attention/scaled_dot_product",
        "name": "causal attention, backward" if causal else "attention, backward",
        "shape": f"{heads} heads, {length} positions, {depth} entries",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * 8 * heads * length * depth,
        "ops": 10 * heads * pairs * depth,
        "check": check,
        "check_unit": "largest error",
    }
