"""Elementwise quantizers against PyTorch, ONNX Runtime and NumPy: call overhead, in cache, in the last cache, in memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np

LAYERS = ((16, 256, 256), (512, 1024, 1024))
"""Examples, inputs and outputs of a linear layer."""
SHAPES = ((16, 64), (256, 1024), (2048, 2048), (4096, 8192))
OURS, OURS_OUT = "refnorm_fast", "refnorm_fast out="
SCALE = 0.0137
REFERENCE_ENTRIES = 1 << 22
"""Beyond, NumPy and PyTorch's fake quantization would take a race's whole time."""


def races() -> Iterator[dict]:
    warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
    for shape in SHAPES:
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        small = x.size <= REFERENCE_ENTRIES
        yield quantize(x)
        if small:
            yield quantize_channels(x)
            yield fake_quantize(x)
            yield fake_quantize_backward(x)
        yield dequantize(x)
        yield ranges(x)
        yield half(x, "float16")
        yield half(x, "bfloat16")
        if small:
            a = np.random.default_rng(0).standard_exponential(shape, dtype=np.float32)
            a /= a.max()
            yield log2(a)
            yield log_sqrt2(a)
            yield sulq(a)
            yield shift_codes(x)
    for layer in LAYERS:
        yield shift_layer(*layer)


def race(method: str, name: str, x: np.ndarray, byte_count: int, candidates: dict[str, Callable], exact, ours=OURS_OUT):
    """``check``: share of the entries that differ from the reference's."""

    def check() -> dict[str, float]:
        if x.size > REFERENCE_ENTRIES:
            return {}
        expected = exact()
        return {label: float(np.mean(_numpy(call()) != expected)) for label, call in candidates.items()}

    return {
        "method": method,
        "name": name,
        "shape": f"{x.shape[0]}x{x.shape[1]}",
        "candidates": candidates,
        "ours": ours,
        "bytes": byte_count * x.size,
        "check": check,
        "check_unit": "of the entries differ",
    }


def _numpy(result) -> np.ndarray:
    if getattr(result, "is_quantized", False):
        result = result.int_repr()
    if type(result).__name__ == "OrtValue":
        result = result.numpy()
    return np.asarray(result)


def _onnx(operator: str, x: np.ndarray, output: str) -> Callable:
    """One quantization operator of ONNX Runtime, with bound input and output."""
    import onnxruntime
    from onnx import TensorProto, helper

    types = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8}
    shape = list(x.shape)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "scale", "zero"], ["y"])],
        "quantize",
        [helper.make_tensor_value_info("x", types[str(x.dtype)], shape)],
        [helper.make_tensor_value_info("y", types[output], shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [SCALE]),
            helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Its threads would look for work on the cores of the candidate after it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    given, made = (onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in (x, np.empty(x.shape, output)))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", made)

    def call():
        session.run_with_iobinding(binding)
        return made

    return call


def quantize(x: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor, out = torch.from_numpy(x), np.empty(x.shape, np.int8)
    candidates = {
        OURS: lambda: fast.quantize(x, SCALE, 0),
        OURS_OUT: lambda: fast.quantize(x, SCALE, 0, out=out),
        "torch": lambda: torch.quantize_per_tensor(tensor, SCALE, 0, torch.qint8),
        "ONNX Runtime": _onnx("QuantizeLinear", x, "int8"),
    }
    return race("quantizers/affine", "quantize", x, 5, candidates, lambda: reference.quantize(x, SCALE, 0))


def _channels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(0.01, 0.02, len(x), dtype=np.float32), np.zeros(len(x), np.int32)


def quantize_channels(x: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    scale, zero = _channels(x)
    tensor, out = torch.from_numpy(x), np.empty(x.shape, np.int8)
    scales, zeros = torch.from_numpy(scale), torch.from_numpy(zero)
    rows, offsets = scale[:, None], zero[:, None]
    candidates = {
        OURS: lambda: fast.quantize(x, rows, offsets),
        OURS_OUT: lambda: fast.quantize(x, rows, offsets, out=out),
        "torch": lambda: torch.quantize_per_channel(tensor, scales, zeros, 0, torch.qint8),
    }
    return race(
        "quantizers/affine", "quantize by channel", x, 5, candidates, lambda: reference.quantize(x, rows, offsets)
    )


def dequantize(x: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    scale, out = np.float32(SCALE), np.empty_like(x)
    tensor = torch.quantize_per_tensor(torch.from_numpy(x), SCALE, 0, torch.qint8)
    codes = tensor.int_repr().numpy()
    candidates = {
        OURS: lambda: fast.dequantize(codes, scale, 0),
        OURS_OUT: lambda: fast.dequantize(codes, scale, 0, out=out),
        "torch": lambda: tensor.dequantize(),
        "ONNX Runtime": _onnx("DequantizeLinear", codes, "float32"),
    }
    return race("quantizers/affine", "dequantize", x, 5, candidates, lambda: reference.dequantize(codes, scale, 0))


def fake_quantize(x: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor, out = torch.from_numpy(x), np.empty_like(x)
    candidates = {
        OURS: lambda: fast.fake_quantize(x, SCALE, 0),
        OURS_OUT: lambda: fast.fake_quantize(x, SCALE, 0, out=out),
        "torch fake_quantize": lambda: torch.fake_quantize_per_tensor_affine(tensor, SCALE, 0, -128, 127),
        "torch elementwise": lambda: torch.clamp_(torch.round_(torch.div(tensor, SCALE)), -128, 127).mul_(SCALE),
    }
    return race("quantizers/affine", "fake_quantize", x, 8, candidates, lambda: reference.fake_quantize(x, SCALE, 0))


def fake_quantize_backward(x: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    dy = np.random.default_rng(1).standard_normal(x.shape, dtype=np.float32)
    scale = np.float32(SCALE)
    pullback, expected = fast.fake_quantize_vjp(x, scale, 0)[1], reference.fake_quantize_vjp(x, scale, 0)[1]
    tensor, cotangent = torch.from_numpy(x), torch.from_numpy(dy)
    learned = torch.tensor([SCALE]), torch.zeros(1)
    backward = torch.ops.aten._fake_quantize_learnable_per_tensor_affine_backward
    candidates = {
        OURS: lambda: pullback(dy)[0],
        "torch learnable": lambda: backward(cotangent, tensor, *learned, -128, 127)[0],
    }
    return race("quantizers/affine", "fake_quantize_vjp, pullback", x, 12, candidates, lambda: expected(dy)[0], OURS)


def ranges(x: np.ndarray) -> dict:
    import torch
    from torch.ao.quantization.observer import MinMaxObserver

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor = torch.from_numpy(x)
    observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)

    def observed():
        observer(tensor)
        return observer.calculate_qparams()[0]

    candidates = {OURS: lambda: fast.affine_qparams(x)[0], "torch MinMaxObserver": observed}
    return race("quantizers/affine", "affine_qparams", x, 4, candidates, lambda: reference.affine_qparams(x)[0], OURS)


def half(x: np.ndarray, name: str) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor, out = torch.from_numpy(x), np.empty_like(x)
    ours, format = getattr(fast, f"round_{name}"), getattr(torch, name)
    candidates = {
        OURS: lambda: ours(x),
        OURS_OUT: lambda: ours(x, out=out),
        "torch to and back": lambda: tensor.to(format).to(torch.float32),
    }
    exact = getattr(reference, f"round_{name}")
    return race("quantizers/half_precision_training", f"round_{name}", x, 8, candidates, lambda: exact(x))


def log2(a: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor, out = torch.from_numpy(a), np.empty_like(a)

    def composed():
        r = torch.log2(tensor).neg_().round_()
        return torch.where(r >= 16, 0.0, torch.exp2(r.clamp_(0, 15).neg_()))

    candidates = {
        OURS: lambda: fast.log2_fake_quantize(a, 1.0, bits=4),
        OURS_OUT: lambda: fast.log2_fake_quantize(a, 1.0, bits=4, out=out),
        "torch": composed,
        "numpy": lambda: reference.log2_fake_quantize(a, 1.0, bits=4),
    }
    exact = candidates["numpy"]
    return race("quantizers/shift_uniform_log2", "log2_fake_quantize", a, 8, candidates, exact)


def log_sqrt2(a: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor = torch.from_numpy(a)

    def composed():
        r = torch.log2(tensor).mul_(-2).round_()
        return r.clamp(0, 15).to(torch.uint8), r >= 16

    candidates = {
        OURS: lambda: fast.log_sqrt2_quantize(a, 1.0, bits=4),
        "torch": composed,
        "numpy": lambda: reference.log_sqrt2_quantize(a, 1.0, bits=4),
    }
    codes = {label: (lambda call=call: call()[0]) for label, call in candidates.items()}
    return race("quantizers/rep_quant", "log_sqrt2_quantize", a, 6, codes, codes["numpy"], OURS)


def sulq(a: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    low, high = float(np.log2(0.01)), float(np.log2(1.01))
    params = reference.SulqParams(0.01, low, high, 4)
    tensor, step = torch.from_numpy(a), params.step

    def composed():
        return torch.log2(tensor + 0.01).sub_(low).div_(step).round_().clamp_(0, 15).to(torch.uint8)

    candidates = {
        OURS: lambda: fast.sulq_encode(a, params),
        "torch": composed,
        "numpy": lambda: reference.sulq_encode(a, params),
    }
    return race("quantizers/shift_uniform_log2", "sulq_encode", a, 5, candidates, candidates["numpy"], OURS)


def shift_codes(x: np.ndarray) -> dict:
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    tensor = torch.from_numpy(x)

    def composed():
        ranges = tensor.abs().amax(0, keepdim=True)
        top = ranges.amax()
        shift = torch.log2(top / ranges).floor_().clamp_(0, 3)
        u = (tensor / (top / 7)) * torch.exp2(shift)
        return u.round_().clamp_(-7, 7).to(torch.int8)

    candidates = {
        OURS: lambda: fast.shift_quantize(x, rounding="nearest").q,
        "torch": composed,
        "numpy": lambda: reference.shift_quantize(x, rounding="nearest").q,
    }
    return race("quantizers/shift_quant", "shift_quantize", x, 5, candidates, candidates["numpy"], OURS)


def shift_layer(examples: int, inputs: int, outputs: int) -> dict:
    """Forward and backward; PyTorch has the layer in float32 only, which is exact for these codes."""
    import torch

    import refnorm.quantizers as reference
    import refnorm_fast.quantizers as fast

    rng = np.random.default_rng(0)
    x, weight, dy = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((examples, inputs), (inputs, outputs), (examples, outputs))
    )
    tensors = [torch.from_numpy(a) for a in (x, weight, dy)]

    def codes(tensor, rounded: bool):
        scale = tensor.abs().amax() / 7
        u = tensor / scale
        return (u.round_() if rounded else u.add_(torch.rand_like(u)).floor_()).clamp_(-7, 7).mul_(scale)

    def composed():
        a, b = codes(tensors[0], True), codes(tensors[1], True)
        g = codes(tensors[2], False)
        return a @ b, g @ b.T, a.T @ g

    def call(side):
        y, pullback = side.shift_linear_vjp(x, weight, rng=np.random.default_rng(1))
        return y, *pullback(dy)

    candidates = {OURS: lambda: call(fast), "torch, one scale": composed, "numpy": lambda: call(reference)}
    return {
        "method": "quantizers/shift_quant",
        "name": "shift_linear_vjp and its pullback",
        "shape": f"{examples}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": OURS,
        "ops": 6 * examples * inputs * outputs,
        "check": lambda: {
            label: float(max(np.abs(a - b).max() for a, b in zip(call(side), call(reference), strict=True)))
            for label, side in ((OURS, fast), ("numpy", reference))
        },
        "check_unit": "largest difference",
    }
