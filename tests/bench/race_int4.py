"""Linear layers on 4-bit weights against the peers' 4-bit layers, and against float32 layers."""

from __future__ import annotations

import os

import numpy as np

SHAPES = ((1, 4096, 4096), (1, 4096, 11008), (4, 4096, 4096), (16, 4096, 4096), (64, 4096, 4096), (256, 4096, 4096))
"""Rows, inputs and outputs: decoding, small batches, prompts."""

SMALL = (1, 384, 1536)


def races() -> list[dict]:
    found = []
    for activations in ("float", "int8"):
        found += [layer(*shape, 128, activations) for shape in (SMALL, *SHAPES)]
        found += [layer(1, 4096, 4096, 32, activations), layer(64, 4096, 4096, 32, activations)]
    return [*found, backward(64, 4096, 4096, 128)]


def layer(rows: int, inputs: int, outputs: int, group: int, activations: str) -> dict:
    """Like against like: peers that round the inputs to 8 bits meet the form that does, the others the other one."""
    import refnorm_fast.quantizers as fast
    from refnorm.quantizers import dequantize_weight_int4

    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    x, bias = rng.standard_normal((rows, inputs)).astype(np.float32), rng.standard_normal(outputs).astype(np.float32)
    packed = fast.quantize_weight_int4(weight, group_size=group)
    w_hat = np.ascontiguousarray(dequantize_weight_int4(packed).astype(np.float32))
    out = np.empty((rows, outputs), np.float32)
    candidates = {
        "refnorm_fast": lambda: fast.int4_linear(x, packed, bias, activations=activations, out=out),
        "NumPy, float32 weights": lambda: x @ w_hat + bias,
    }
    peers = [
        ("torch, float32 weights", torch_float),
        ("torch, 4-bit weights, bfloat16", torch_int4),
        ("onnxruntime, 4-bit weights", onnxruntime_int4),
    ]
    if activations == "int8":
        peers = [("onnxruntime, 4-bit weights, 8-bit inputs", onnxruntime_int8_inputs)]
    for label, make in peers:
        try:
            call = make(x, packed, w_hat, bias)
            call()
        except (ImportError, AttributeError, RuntimeError):
            continue
        candidates[label] = call
    exact = x.astype(np.float64) @ dequantize_weight_int4(packed) + bias
    size = np.linalg.norm(exact)
    return {
        "method": "quantizers/affine_quant",
        "name": f"4-bit layer, groups of {group}" + (", 8-bit activations" if activations == "int8" else ""),
        "shape": f"{rows}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": packed.q.nbytes
        + packed.scale.nbytes
        + packed.zero_point.nbytes
        + 4 * (rows * (inputs + outputs) + outputs),
        "ops": 2 * rows * inputs * outputs,
        "check": lambda: {
            label: float(np.linalg.norm(np.asarray(call(), np.float64) - exact) / size)
            for label, call in candidates.items()
        },
        "check_unit": "relative",
    }


def backward(rows: int, inputs: int, outputs: int, group: int) -> dict:
    import refnorm_fast.quantizers as fast
    from refnorm.quantizers import dequantize_weight_int4, quantize_weight_int4

    rng = np.random.default_rng(0)
    packed = quantize_weight_int4(rng.standard_normal((inputs, outputs)).astype(np.float32), group_size=group)
    w_hat = dequantize_weight_int4(packed)
    float_rows = np.ascontiguousarray(w_hat.T.astype(np.float32))
    x, dy = (rng.standard_normal((rows, width)).astype(np.float32) for width in (inputs, outputs))
    pullback = fast.int4_linear_vjp(x, packed)[1]
    candidates = {"refnorm_fast": lambda: pullback(dy)[0], "NumPy, float32 weights": lambda: dy @ float_rows}
    try:
        import torch

        tensors = torch.from_numpy(dy), torch.from_numpy(float_rows)
        candidates["torch, float32 weights"] = lambda: torch.mm(*tensors).numpy()
    except ImportError:
        pass
    exact = dy.astype(np.float64) @ w_hat.T
    return {
        "method": "quantizers/affine_quant",
        "name": f"4-bit layer, groups of {group}, backward",
        "shape": f"{rows}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": packed.q.nbytes + packed.scale.nbytes + packed.zero_point.nbytes + 4 * rows * (inputs + outputs),
        "ops": 2 * rows * inputs * outputs,
        "check": lambda: {
            label: float(np.linalg.norm(call() - exact) / np.linalg.norm(exact)) for label, call in candidates.items()
        },
        "check_unit": "relative",
    }


def torch_float(x, packed, w_hat, bias):
    import torch

    tensors = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(w_hat.T)), torch.from_numpy(bias)

    def call():
        with torch.inference_mode():
            return torch.nn.functional.linear(*tensors).numpy()

    return call


def torch_int4(x, packed, w_hat, bias):
    """PyTorch's weight-only 4-bit product; its zero points are the weights that the code 8 stands for."""
    import torch

    codes = np.stack([packed.q & 15, packed.q >> 4], axis=2).reshape(len(packed.q), -1).astype(np.int32)
    handle = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes), 1)
    middle = packed.scale * (8 - packed.zero_point.astype(np.float32))
    constants = torch.from_numpy(np.stack([packed.scale.T, middle.T], axis=2)).bfloat16().contiguous()
    inputs, shift = torch.from_numpy(x).bfloat16(), torch.from_numpy(bias).bfloat16()

    def call():
        with torch.inference_mode():
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, handle, packed.group_size, constants)
            return (y + shift).float().numpy()

    return call


def onnxruntime_int4(x, packed, w_hat, bias, accuracy_level=0):
    """ONNX Runtime's MatMulNBits; level 4 lets it quantize the inputs to 8 bits."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    outputs, groups = packed.scale.shape
    zeros = packed.zero_point if groups % 2 == 0 else np.pad(packed.zero_point, ((0, 0), (0, 1)))
    constants = {
        "codes": packed.q.reshape(outputs, groups, packed.group_size // 2),
        "scales": packed.scale.reshape(-1),
        "zeros": (zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1),
        "bias": bias,
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales", "zeros", "", "bias"], ["y"], domain="com.microsoft",
        K=packed.inputs, N=outputs, bits=4, block_size=packed.group_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), outputs])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def onnxruntime_int8_inputs(x, packed, w_hat, bias):
    return onnxruntime_int4(x, packed, w_hat, bias, accuracy_level=4)
