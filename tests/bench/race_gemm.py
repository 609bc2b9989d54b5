"""Packed float32 linear layers with what follows them, at the shapes of the MiniLM encoder, against the peers."""

from __future__ import annotations

import numpy as np

ROWS = (1, 32, 1024)
LAYERS = ((384, 1152), (384, 1536), (1536, 384))
"""Inputs and outputs: fused projection of attention, and the two feed-forward layers."""

EPS = 1e-12


def races() -> list[dict]:
    from refnorm_fast.models import ops

    found = [linear(ops("fast"), rows, *layer, None) for rows in ROWS for layer in LAYERS]
    found += [linear(ops("fast"), 1024, 384, 1536, "gelu"), feed_forward(ops("fast"), 1024, 384, 1536)]
    return found


def parameters(rng, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    return weight, rng.standard_normal(outputs).astype(np.float32)


def linear(ops, rows: int, inputs: int, outputs: int, activation: str | None) -> dict:
    rng = np.random.default_rng(0)
    weight, bias = parameters(rng, inputs, outputs)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    handle = ops.prepare_linear(weight, bias)
    out, plain = np.empty((rows, outputs), np.float32), np.empty((rows, outputs), np.float32)
    candidates = {"refnorm_fast": lambda: ops.linear(x, handle, activation=activation, out=out)}
    if activation is None:

        def numpy_linear():
            np.matmul(x, weight, out=plain)
            return np.add(plain, bias, out=plain)

        candidates["NumPy"] = numpy_linear
    try:
        import torch

        tensors = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(weight.T)), torch.from_numpy(bias)

        def torch_linear():
            with torch.inference_mode():
                y = torch.nn.functional.linear(*tensors)
                return (y if activation is None else torch.nn.functional.gelu(y)).numpy()

        candidates["PyTorch"] = torch_linear
    except ImportError:
        pass
    from refnorm.models import reference_ops

    wide = (weight.astype(np.float64), bias.astype(np.float64))
    exact = reference_ops.linear(x.astype(np.float64), wide, activation=activation)
    return {
        "method": "nn/linear",
        "name": "linear" if activation is None else f"linear and {activation}",
        "shape": f"{rows}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * (inputs * outputs + rows * (inputs + outputs)),
        "ops": 2 * rows * inputs * outputs,
        "check": lambda: {label: float(np.abs(call() - exact).max()) for label, call in candidates.items()},
        "check_unit": "largest error",
    }


def feed_forward(ops, rows: int, width: int, inner: int) -> dict:
    rng = np.random.default_rng(0)
    first, second = parameters(rng, width, inner), parameters(rng, inner, width)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    gain, shift = rng.standard_normal((2, width)).astype(np.float32)
    handles = ops.prepare_linear(*first), ops.prepare_linear(*second)
    out = np.empty_like(x)
    candidates = {"refnorm_fast": lambda: ops.feed_forward(x, *handles, gain, shift, eps=EPS, out=out)}
    try:
        import torch
        from torch.nn import functional

        tensors = [torch.from_numpy(np.ascontiguousarray(array.T)) for array in (*first, *second)]
        given, scale, offset = (torch.from_numpy(array) for array in (x, gain, shift))

        def torch_block():
            with torch.inference_mode():
                hidden = functional.gelu(functional.linear(given, *tensors[:2]))
                summed = functional.linear(hidden, *tensors[2:]) + given
                return functional.layer_norm(summed, (width,), scale, offset, EPS).numpy()

        candidates["PyTorch"] = torch_block
    except ImportError:
        pass
    from refnorm.models import reference_ops

    arrays = [array.astype(np.float64) for array in (*first, *second, x, gain, shift)]
    hidden = reference_ops.linear(arrays[4], (arrays[0], arrays[1]), activation="gelu")
    exact = reference_ops.linear_residual_norm(hidden, (arrays[2], arrays[3]), *arrays[4:], eps=EPS)
    return {
        "method": "nn/linear",
        "name": "linear, gelu, linear, residual, layer norm",
        "shape": f"{rows}x{width}x{inner}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * (2 * width * inner + 2 * rows * width),
        "ops": 4 * rows * width * inner,
        "check": lambda: {label: float(np.abs(call() - exact).max()) for label, call in candidates.items()},
        "check_unit": "largest error",
    }
