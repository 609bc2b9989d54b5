"""Group and instance norm, and the backward passes of the norms, against PyTorch and ONNX Runtime.

Backward races hold what the forward pass saved; every call returns fresh gradients of the input, gain and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

SHAPES = ((1, 64, 8, 8), (8, 512, 7, 7), (8, 256, 14, 14), (4, 320, 64, 64), (32, 256, 56, 56))
ROWS = ((64, 128), (256, 768), (4096, 1024), (512, 32768))
FILTERS = ((64, 64, 3, 3), (512, 512, 3, 3))

OURS, OURS_OUT = "refnorm_fast", "refnorm_fast out="


def races() -> Iterator[dict]:
    for shape in SHAPES:
        for groups in (32, shape[1]):
            x, gain, bias, dy = images(shape)
            yield forward(x, gain, bias, groups)
            yield backward(x, gain, bias, dy, groups)
    for rows, length in ROWS:
        rng = np.random.default_rng(0)
        x, dy = rng.standard_normal((2, rows, length), dtype=np.float32)
        gain, bias = rng.standard_normal((2, length), dtype=np.float32)
        yield layer_norm_backward(x, gain, bias, dy)
        yield rms_norm_backward(x, gain, dy)
        more = rng.standard_normal((rows, length), dtype=np.float32)
        yield add_layer_norm(x, more, gain, bias)
        yield add_layer_norm_backward(x, more, gain, bias, dy)
        yield layer_norm_codes(x, gain, bias)
    for shape in FILTERS:
        yield weight_standardize(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def images(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    gain, bias = rng.standard_normal((2, shape[1]), dtype=np.float32)
    return x, gain, bias, dy


def race(
    method: str, name: str, x: np.ndarray, candidates: dict[str, Callable], exact: Callable, passes: int, ours=OURS
):
    """`passes`: arrays of the size of x that must move. Each candidate returns an array or a tuple of arrays, whose error
    is measured in ULP of the largest entry, or of codes in codes."""

    def check() -> dict[str, float]:
        expected = exact()
        return {label: max(errors(call(), expected)) for label, call in candidates.items()}

    return {
        "method": method,
        "name": name,
        "shape": "x".join(map(str, x.shape)),
        "candidates": candidates,
        "ours": ours,
        "bytes": passes * x.nbytes,
        "check": check,
        "check_unit": "ULP of the largest",
    }


def errors(found, expected: tuple[np.ndarray, ...]) -> Iterator[float]:
    found = found if isinstance(found, (tuple, list)) else (found,)
    for one, other in zip(found, expected, strict=True):
        one = np.asarray(one)
        unit = 1.0 if one.dtype == np.int8 else float(np.spacing(np.abs(other).max().astype(np.float32)))
        yield float(np.abs(one.reshape(other.shape) - other).max()) / unit


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in arrays]


def forward(x, gain, bias, groups) -> dict:
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    out = np.empty_like(x)
    tensors = [torch.from_numpy(a) for a in (x, gain, bias)]
    instance = groups == x.shape[1]
    candidates = {
        OURS: lambda: fast.group_norm(x, gain, bias, groups=groups),
        OURS_OUT: lambda: fast.group_norm(x, gain, bias, groups=groups, out=out),
        "torch group_norm": lambda: torch.nn.functional.group_norm(tensors[0], groups, *tensors[1:]),
        "onnxruntime": onnx_call(x, gain, bias, groups),
    }
    if instance:
        candidates["torch instance_norm"] = lambda: torch.nn.functional.instance_norm(
            tensors[0], None, None, *tensors[1:], True
        )
    if x.size < 1 << 20:
        candidates["refnorm (NumPy)"] = lambda: refnorm.norms.group_norm(x, gain, bias, groups=groups)

    def exact():
        return (refnorm.norms.group_norm(*wide(x, gain, bias), groups=groups),)

    name = "instance_norm" if instance else "group_norm"
    return race("norms/group_norm", name, x, candidates, exact, 2, OURS_OUT)


def onnx_call(x, gain, bias, groups) -> Callable:
    """ONNX Runtime's kernel, by a model of one node; the standard operator, or InstanceNormalization's."""
    import onnxruntime
    from onnx import TensorProto, helper

    def value(name, array):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)

    instance = groups == x.shape[1]
    options = {} if instance else {"num_groups": groups}
    kind = "InstanceNormalization" if instance else "GroupNormalization"
    node = helper.make_node(kind, ["x", "gain", "bias"], ["y"], epsilon=1e-5, **options)
    graph = helper.make_graph(
        [node], "norm", [value("x", x), value("gain", gain), value("bias", bias)], [value("y", x)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": x, "gain": gain, "bias": bias}
    return lambda: session.run(None, feeds)[0]


def torch_backward(function: Callable, *arrays: np.ndarray) -> Callable:
    """Gradients of `function` of the arrays but the last, which is the cotangent."""
    import torch

    *inputs, dy = (torch.from_numpy(a) for a in arrays)
    inputs = [one.clone().requires_grad_() for one in inputs]
    y = function(*inputs)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def backward(x, gain, bias, dy, groups) -> dict:
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    _, pullback = fast.group_norm_vjp(x, gain, bias, groups=groups)
    functional = torch.nn.functional
    candidates = {
        OURS: lambda: pullback(dy),
        "torch group_norm": torch_backward(lambda x, *p: functional.group_norm(x, groups, *p), x, gain, bias, dy),
    }
    instance = groups == x.shape[1]
    if instance:
        candidates["torch instance_norm"] = torch_backward(
            lambda x, *p: functional.instance_norm(x, None, None, *p, True), x, gain, bias, dy
        )

    def exact():
        return refnorm.norms.group_norm_vjp(*wide(x, gain, bias), groups=groups)[1](dy.astype(np.float64))

    name = "instance_norm backward" if instance else "group_norm backward"
    return race("norms/group_norm", name, x, candidates, exact, 3)


def layer_norm_backward(x, gain, bias, dy) -> dict:
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    _, pullback = fast.layer_norm_vjp(x, gain, bias)
    units = (x.shape[1],)
    candidates = {
        OURS: lambda: pullback(dy),
        "torch": torch_backward(lambda x, *p: torch.nn.functional.layer_norm(x, units, *p), x, gain, bias, dy),
    }

    def exact():
        return refnorm.norms.layer_norm_vjp(*wide(x, gain, bias))[1](dy.astype(np.float64))

    return race("norms/layer_norm", "layer_norm backward", x, candidates, exact, 3)


def rms_norm_backward(x, gain, dy) -> dict:
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    _, back = fast.rms_norm_vjp(x, gain)
    units = (x.shape[1],)
    candidates = {
        OURS: lambda: back(dy)[:2],
        "torch": torch_backward(lambda x, g: torch.nn.functional.rms_norm(x, units, g, 1e-5), x, gain, dy),
    }

    def exact():
        return refnorm.norms.rms_norm_vjp(*wide(x, gain))[1](dy.astype(np.float64))[:2]

    return race("norms/compressed_rms_norm", "rms_norm backward", x, candidates, exact, 3)


def add_layer_norm(x, residual, gain, bias) -> dict:
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    out, units = np.empty_like(x), (x.shape[1],)
    tensors = [torch.from_numpy(a) for a in (x, residual, gain, bias)]
    candidates = {
        OURS: lambda: fast.add_layer_norm(x, residual, gain, bias),
        OURS_OUT: lambda: fast.add_layer_norm(x, residual, gain, bias, out=out),
        "torch add, layer_norm": lambda: torch.nn.functional.layer_norm(tensors[0] + tensors[1], units, *tensors[2:]),
    }

    def exact():
        return (refnorm.norms.add_layer_norm(*wide(x, residual, gain, bias)),)

    return race("norms/layer_norm", "add_layer_norm", x, candidates, exact, 3, OURS_OUT)


def add_layer_norm_backward(x, residual, gain, bias, dy) -> dict:
    """Forward and backward together: the sum is what the forward pass must keep."""
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    units = (x.shape[1],)
    inputs = [torch.from_numpy(a).clone().requires_grad_() for a in (x, residual, gain, bias)]
    cotangent = torch.from_numpy(dy)

    def composed():
        y = torch.nn.functional.layer_norm(inputs[0] + inputs[1], units, *inputs[2:])
        return torch.autograd.grad(y, inputs, cotangent)

    candidates = {
        OURS: lambda: fast.add_layer_norm_vjp(x, residual, gain, bias)[1](dy),
        "torch add, layer_norm": composed,
    }

    def exact():
        return refnorm.norms.add_layer_norm_vjp(*wide(x, residual, gain, bias))[1](dy.astype(np.float64))

    return race("norms/layer_norm", "add_layer_norm and backward", x, candidates, exact, 8)


def layer_norm_codes(x, gain, bias) -> dict:
    import torch

    import refnorm_fast.norms
    import refnorm_fast.quantizers as fast

    units = (x.shape[1],)
    tensors = [torch.from_numpy(a) for a in (x, gain, bias)]

    def torch_codes():
        y = torch.nn.functional.layer_norm(tensors[0], units, *tensors[1:])
        absmax = y.abs().amax(-1, keepdim=True)
        return (y * (127 / absmax)).round_().to(torch.int8)

    candidates = {
        OURS: lambda: fast.layer_norm_absmax_quantize(x, gain, bias)[0],
        "refnorm_fast, two calls": lambda: fast.absmax_quantize(refnorm_fast.norms.layer_norm(x, gain, bias), axis=0)[
            0
        ],
        "torch layer_norm, absmax codes": torch_codes,
    }

    def exact():
        import refnorm.quantizers

        return (refnorm.quantizers.layer_norm_absmax_quantize(*wide(x, gain, bias))[0].astype(np.float64),)

    found = race("norms/layer_norm", "layer_norm_absmax_quantize", x, candidates, exact, 1)
    found["bytes"] = x.nbytes + x.size
    found["check_unit"] = "codes"
    return found


def weight_standardize(weight) -> dict:
    import torch

    import refnorm.norms
    import refnorm_fast.norms as fast

    out, tensor = np.empty_like(weight), torch.from_numpy(weight)

    def composed():
        filters = tensor.flatten(1)
        variance, mean = torch.var_mean(filters, 1, correction=1, keepdim=True)
        return ((filters - mean) * torch.rsqrt(variance + 1e-5)).view_as(tensor)

    candidates = {
        OURS: lambda: fast.weight_standardize(weight),
        OURS_OUT: lambda: fast.weight_standardize(weight, out=out),
        "torch var_mean": composed,
    }

    def exact():
        return (refnorm.norms.weight_standardize(weight.astype(np.float64)),)

    return race("norms/batch_channel_norm", "weight_standardize", weight, candidates, exact, 2, OURS_OUT)
