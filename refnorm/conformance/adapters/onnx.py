"""ONNX operators, as ONNX Runtime computes them on the processor, under this package's names. Values only."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refnorm.conformance.adapters import plain

OPSET = 20
"""The first with Gelu."""

IR_VERSION = 9


def functions() -> dict[str, Callable[..., Any]]:
    """Return ONNX operators by the names of the golden vectors.

    Raises
    ------
    ImportError
        If onnx or onnxruntime is not installed.
    """
    return _Operators(importlib.import_module("onnx"), importlib.import_module("onnxruntime")).by_name()


class _Operators:
    """What this package calls an operator, as a model of one node."""

    def __init__(self, onnx: Any, runtime: Any) -> None:
        self.onnx, self.runtime = onnx, runtime

    def by_name(self) -> dict[str, Callable[..., Any]]:
        return {
            "softmax.softmax": plain(self.softmax),
            "softmax.log_softmax": plain(lambda x, axis=-1: self.run("LogSoftmax", [x], axis=axis)),
            "softmax.logsumexp": plain(
                lambda x, axis=-1, keepdims=False: self.run(
                    "ReduceLogSumExp", [x, np.array([axis])], keepdims=int(keepdims)
                )
            ),
            "norms.layer_norm": self.layer_norm,
            "norms.instance_norm": lambda x, gain, bias, eps=1e-5: self.run(
                "InstanceNormalization", [x, gain, bias], epsilon=eps
            ),
            "nn.gelu": lambda x, approximate="none": self.run("Gelu", [x], approximate=approximate),
            "nn.relu": lambda x: self.run("Relu", [x]),
            "nn.sigmoid": lambda x: self.run("Sigmoid", [x]),
            "nn.softplus": lambda x: self.run("Softplus", [x]),
            "nn.erf": lambda x: self.run("Erf", [x]),
            "nn.conv2d": self.conv2d,
            "nn.embedding": lambda ids, table: self.run("Gather", [table, ids]),
            "nn.max_pool2d": lambda x, size, stride=None, padding=0: self.pool("MaxPool", x, size, stride, padding),
            "nn.avg_pool2d": lambda x, size, stride=None, padding=0: self.pool(
                "AveragePool", x, size, stride, padding, count_include_pad=1
            ),
        }

    def run(self, operator: str, inputs: Sequence[Any], **attributes: Any) -> Any:
        """Run a model of one node.

        Raises
        ------
        NotImplementedError
            If the runtime has the operator not for this dtype.
        """
        helper = self.onnx.helper
        names = [f"input{number}" for number in range(len(inputs))]
        described = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
        ]
        result = helper.make_tensor_value_info("output", described[0].type.tensor_type.elem_type, None)
        node = helper.make_node(operator, names, ["output"], **attributes)
        model = helper.make_model(
            helper.make_graph([node], "one_node", described, [result]),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        options = self.runtime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = self.runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise NotImplementedError(f"{operator} of {inputs[0].dtype}") from None
            raise
        (value,) = session.run(None, dict(zip(names, inputs, strict=True)))
        return value

    def softmax(self, x: Any, axis: int = -1, algorithm: str = "two_pass") -> Any:
        if algorithm != "two_pass":
            raise NotImplementedError("one algorithm only")
        return self.run("Softmax", [x], axis=axis)

    def layer_norm(self, x: Any, gain: Any, bias: Any, eps: float = 1e-5, axes: Any = (-1,)) -> Any:
        return self.run("LayerNormalization", [x, gain, bias], axis=-len(axes), epsilon=eps)

    def conv2d(self, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Any:
        inputs = [x, weight] if bias is None else [x, weight, bias]
        return self.run("Conv", inputs, strides=_two(stride), pads=_two(padding) * 2)

    def pool(self, operator: str, x: Any, size: Any, stride: Any, padding: Any, **attributes: Any) -> Any:
        strides = _two(size if stride is None else stride)
        return self.run(operator, [x], kernel_shape=_two(size), strides=strides, pads=_two(padding) * 2, **attributes)


def _two(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
