"""LLM.int8() against the peers: the exact integer product, and a whole linear layer with float inputs."""

from __future__ import annotations

import os
import warnings

import numpy as np

SHAPES = ((1, 4096, 4096), (16, 4096, 4096), (256, 4096, 4096), (1024, 1536, 384), (1024, 384, 1536))
"""Rows, inputs and outputs: decoding, a short prompt, a long one, and the two feed-forward layers of MiniLM."""

OUTLIERS = 4
"""Columns of 384 to 4096 that are multiplied in float, by every candidate that knows how."""


def races() -> list[dict]:
    import refnorm_fast.quantizers as fast

    plain = [product(fast, *shape) for shape in SHAPES] + [layer(fast, *shape) for shape in SHAPES]
    return plain + [layer_and_gelu(fast, *shape) for shape in SHAPES]


def text(rows: int, inputs: int, outputs: int) -> str:
    return f"{rows}x{inputs}x{outputs}"


def product(fast, rows: int, inputs: int, outputs: int) -> dict:
    rng = np.random.default_rng(0)
    a = rng.integers(-127, 128, (rows, inputs), dtype=np.int8)
    b = rng.integers(-127, 128, (outputs, inputs), dtype=np.int8)
    candidates = {"refnorm_fast": lambda: fast.int8_matmul(a, b)}
    try:
        import torch

        left, right = torch.from_numpy(a), torch.from_numpy(b).t()
        torch._int_mm(left, right)
        candidates["torch._int_mm"] = lambda: torch._int_mm(left, right)
    except (ImportError, AttributeError, RuntimeError):
        pass

    def check():
        exact = a.astype(np.float64) @ b.astype(np.float64).T
        return {label: int((np.asarray(call()) != exact).sum()) for label, call in candidates.items()}

    return {
        "method": "quantizers/llm_int8",
        "name": "int8 product",
        "shape": text(rows, inputs, outputs),
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": rows * inputs + outputs * inputs + 4 * rows * outputs,
        "ops": 2 * rows * inputs * outputs,
        "check": check,
        "check_unit": "wrong entries",
    }


def layer(fast, rows: int, inputs: int, outputs: int) -> dict:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs)).clip(-5, 5).astype(np.float32)
    x[:, rng.choice(inputs, OUTLIERS, replace=False)] *= 8
    weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    packed = fast.quantize_weight(weight)
    candidates = {
        "refnorm_fast": lambda: fast.llm_int8_linear(x, packed, bias),
        "NumPy, float32": lambda: x @ weight + bias,
    }
    for label, make in (("torch, dynamic int8", torch_dynamic), ("onnxruntime, dynamic int8", onnxruntime_dynamic)):
        try:
            call = make(x, weight, bias)
            call()
        except (ImportError, AttributeError, RuntimeError):
            continue
        candidates[label] = call

    def check():
        exact = x.astype(np.float64) @ weight.astype(np.float64) + bias
        size = np.linalg.norm(exact)
        return {label: float(np.linalg.norm(np.asarray(call()) - exact) / size) for label, call in candidates.items()}

    return {
        "method": "quantizers/llm_int8",
        "name": f"linear layer, {OUTLIERS} outlier columns",
        "shape": text(rows, inputs, outputs),
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": inputs * outputs + 4 * rows * (inputs + outputs) + 12 * outputs,
        "ops": 2 * rows * inputs * outputs,
        "check": check,
        "check_unit": "relative",
    }


def layer_and_gelu(fast, rows: int, inputs: int, outputs: int) -> dict:
    """GELU of the layer plus a residual branch, in one call and as three."""
    import refnorm_fast.nn as nn

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs)).clip(-5, 5).astype(np.float32)
    weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    bias, residual = (rng.standard_normal(shape).astype(np.float32) for shape in (outputs, (rows, outputs)))
    packed = fast.quantize_weight(weight)
    candidates = {
        "refnorm_fast": lambda: fast.llm_int8_linear(x, packed, bias, activation="gelu", residual=residual),
        "refnorm_fast, three calls": lambda: nn.gelu(fast.llm_int8_linear(x, packed, bias)) + residual,
    }
    try:
        import torch

        linear, added = torch_dynamic(x, weight, bias), torch.from_numpy(residual)
        linear()
        candidates["torch, dynamic int8"] = lambda: torch.nn.functional.gelu(linear()) + added
    except (ImportError, AttributeError, RuntimeError):
        pass

    def check():
        from refnorm.nn import gelu

        exact = gelu(x.astype(np.float64) @ weight.astype(np.float64) + bias) + residual
        size = np.linalg.norm(exact)
        return {label: float(np.linalg.norm(np.asarray(call()) - exact) / size) for label, call in candidates.items()}

    return {
        "method": "quantizers/llm_int8",
        "name": "linear layer, GELU and residual",
        "shape": text(rows, inputs, outputs),
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": inputs * outputs + 4 * rows * (inputs + 2 * outputs) + 12 * outputs,
        "ops": 2 * rows * inputs * outputs,
        "check": check,
        "check_unit": "relative",
    }


def torch_dynamic(x, weight, bias):
    """PyTorch's dynamically quantized layer: one scale a tensor for the input, one an output for the weights."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = torch.from_numpy(np.ascontiguousarray(weight.T))
        scales = columns.abs().amax(dim=1).double() / 127
        codes = torch.quantize_per_channel(columns, scales, torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8)
        handle = torch.ops.quantized.linear_prepack(codes, torch.from_numpy(bias))
    inputs = torch.from_numpy(x)
    return lambda: torch.ops.quantized.linear_dynamic(inputs, handle)


def onnxruntime_dynamic(x, weight, bias):
    """ONNX Runtime's fused operator for the same."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    scales = np.abs(weight).max(axis=0) / 127
    codes = np.rint(weight / scales).astype(np.int8)
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "codes", "scales", "", "bias"], ["y"], domain="com.microsoft"
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), weight.shape[1]])],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("codes", codes), ("scales", scales.astype(np.float32)), ("bias", bias))
        ],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]
