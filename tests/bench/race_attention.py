"""Softmax and sigmoid attention without a stored score matrix against PyTorch and against the plain NumPy formula."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SHAPES = ((12, 64, 32), (12, 256, 32), (12, 512, 64), (96, 512, 64), (4, 2048, 64))
"""Heads, positions (queries and keys) and entries of a head."""

FEW_QUERIES = ((1, 1, 16, 16), (1, 1, 4096, 64), *((n, 12, keys, 64) for keys in (512, 4096) for n in (1, 4, 16)))
"""Queries, heads, keys and entries of a head: the overhead of a call, and steps of a decoder."""

GROUPED = (8, 4, 1024, 128)
"""Sets of keys and values, heads that share one, keys and entries of a head."""


def races() -> Iterator[dict]:
    import refnorm_fast.attention as fast

    both = [(shape, causal) for shape in SHAPES for causal in (False, True)]
    for shape, causal in both:
        yield race(fast, *shape, causal)
    for shape, causal in both:
        yield backward(fast, *shape, causal)
    for shape in SHAPES:
        yield sigmoid(fast, *shape)
    for shape in SHAPES:
        yield sigmoid_backward(fast, *shape)
    for queries, *shape in FEW_QUERIES:
        yield race(fast, *shape, False, queries=queries)
    yield grouped(fast, *GROUPED)


def race(fast, heads: int, length: int, depth: int, causal: bool, queries: int | None = None) -> dict:
    from refnorm.attention import scaled_dot_product_attention

    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, heads, length, depth)).astype(np.float32)
    query = np.ascontiguousarray(query[:, :, :queries])
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
    pairs = length * (length + 1) // 2 if causal else query.shape[2] * length
    few = {None: "", 1: ", one query"}.get(queries, f", {queries} queries")
    return {
        "method": "attention/scaled_dot_product",
        "name": f"causal attention{few}" if causal else f"attention{few}",
        "shape": f"{heads} heads, {length} {'positions' if queries is None else 'keys'}, {depth} entries",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * 2 * (query.size + key.size),
        "ops": 4 * heads * pairs * depth,
        "check": lambda: {label: float(np.abs(call()[:, :4] - exact).max()) for label, call in candidates.items()},
        "check_unit": "largest error",
    }


def grouped(fast, sets: int, heads: int, keys: int, depth: int) -> dict:
    """A decoder's step whose heads share keys and values in groups."""
    from refnorm.attention import scaled_dot_product_attention

    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, sets, heads, 1, depth)).astype(np.float32)
    key, value = rng.standard_normal((2, 1, sets, 1, keys, depth)).astype(np.float32)
    out = np.empty_like(query)
    candidates = {
        "refnorm_fast": lambda: fast.scaled_dot_product_attention(query, key, value, out=out),
        "NumPy": lambda: scaled_dot_product_attention(query, key, value),
    }
    try:
        import torch

        tensors = [torch.from_numpy(a).reshape(1, -1, a.shape[-2], depth) for a in (query, key, value)]

        def torch_attention():
            with torch.inference_mode():
                y = torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=True)
                return y.reshape(query.shape).numpy()

        candidates["PyTorch"] = torch_attention
    except ImportError:
        pass
    exact = scaled_dot_product_attention(*(array.astype(np.float64) for array in (query, key, value)))
    return {
        "method": "attention/scaled_dot_product",
        "name": "attention, one query",
        "shape": f"{sets} groups of {heads} heads, {keys} keys, {depth} entries",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * 2 * (query.size + key.size),
        "ops": 4 * query.size * keys,
        "check": lambda: {label: float(np.abs(call() - exact).max()) for label, call in candidates.items()},
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


def torch_sigmoid_attention(query, key, value):
    """The composition on PyTorch's operations, the scores changed in place where no gradient is recorded."""
    import math

    import torch

    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if torch.is_grad_enabled():
        return torch.sigmoid(scores - math.log(key.shape[-2])) @ value
    return scores.sub_(math.log(key.shape[-2])).sigmoid_() @ value


def sigmoid(fast, heads: int, length: int, depth: int) -> dict:
    from refnorm.attention import sigmoid_attention

    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, heads, length, depth)).astype(np.float32)
    out = np.empty_like(query)
    candidates = {
        "refnorm_fast": lambda: fast.sigmoid_attention(query, key, value, out=out),
        "NumPy": lambda: sigmoid_attention(query, key, value),
    }
    try:
        import torch

        tensors = [torch.from_numpy(array) for array in (query, key, value)]

        def composition():
            with torch.inference_mode():
                return torch_sigmoid_attention(*tensors).numpy()

        def softmax_peer():
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(*tensors).numpy()

        candidates["PyTorch"] = composition
        candidates["PyTorch's softmax attention"] = softmax_peer
    except ImportError:
        pass
    exact = sigmoid_attention(*(array[:, :4].astype(np.float64) for array in (query, key, value)))

    def check() -> dict[str, float]:
        calls = {label: call for label, call in candidates.items() if "softmax" not in label}
        return {label: float(np.abs(call()[:, :4] - exact).max()) for label, call in calls.items()}

    return {
        "method": "attention/sigmoid_attention",
        "name": "sigmoid attention",
        "shape": f"{heads} heads, {length} positions, {depth} entries",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * 4 * heads * length * depth,
        "ops": 4 * heads * length * length * depth,
        "check": check,
        "check_unit": "largest error",
    }


def sigmoid_backward(fast, heads: int, length: int, depth: int) -> dict:
    """The backward pass alone, from a forward pass that every candidate has behind it."""
    from refnorm.attention import sigmoid_attention_vjp

    rng = np.random.default_rng(0)
    query, key, value, dy = rng.standard_normal((4, 1, heads, length, depth)).astype(np.float32)
    _, pullback = fast.sigmoid_attention_vjp(query, key, value)
    _, reference = sigmoid_attention_vjp(query, key, value)
    candidates = {"refnorm_fast": lambda: pullback(dy), "NumPy": lambda: reference(dy)}
    try:
        import torch

        tensors = [torch.from_numpy(array).requires_grad_() for array in (query, key, value)]
        y, cotangent = torch_sigmoid_attention(*tensors), torch.from_numpy(dy)
        candidates["PyTorch"] = lambda: torch.autograd.grad(y, tensors, cotangent, retain_graph=True)
    except ImportError:
        pass

    def check() -> dict[str, float]:
        few = [array[:, :4].astype(np.float64) for array in (query, key, value, dy)]
        exact = sigmoid_attention_vjp(*few[:3])[1](few[3])
        return {
            label: max(
                float(np.abs(np.asarray(mine)[:, :4] - true).max()) for mine, true in zip(call(), exact, strict=True)
            )
            for label, call in candidates.items()
        }

    return {
        "method": "attention/sigmoid_attention",
        "name": "sigmoid attention, backward",
        "shape": f"{heads} heads, {length} positions, {depth} entries",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * 7 * heads * length * depth,
        "ops": 10 * heads * length * length * depth,
        "check": check,
        "check_unit": "largest error",
    }
