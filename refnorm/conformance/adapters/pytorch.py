"""PyTorch's operators under this package's names, and their gradients by PyTorch's autograd."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from refnorm.conformance.adapters import plain


def functions() -> dict[str, Callable[..., Any]]:
    """Return PyTorch's operators, and a ``_vjp`` for each, by the names of the golden vectors.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    """
    torch = importlib.import_module("torch")
    operators = _Operators(torch).by_name()
    pullbacks = {f"{name}_vjp": _vjp(torch, operator) for name, operator in operators.items()}
    return {name: _value(torch, operator) for name, operator in operators.items()} | pullbacks


def _tensors(torch: Any, values: Any, *, requires_grad: bool) -> list[Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.tensor(value)
        return tensor.requires_grad_() if requires_grad and tensor.is_floating_point() else tensor

    return [convert(value) for value in values]


def _value(torch: Any, operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        with torch.no_grad():
            return operator(*_tensors(torch, args, requires_grad=False), **options).numpy()

    return call


def _vjp(torch: Any, operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        leaves = _tensors(torch, args, requires_grad=True)
        value = operator(*leaves, **options)

        def pullback(cotangent: Any) -> tuple[Any, ...]:
            wanted = [leaf for leaf in leaves if getattr(leaf, "requires_grad", False)]
            # An argument that the value does not depend on has the gradient zero.
            found = torch.autograd.grad(
                value, wanted, torch.tensor(cotangent, dtype=value.dtype), allow_unused=True, materialize_grads=True
            )
            return tuple(gradient.numpy() for gradient in found)

        return value.detach().numpy(), pullback

    return call


class _Operators:
    """What this package calls an operator, in terms of what PyTorch calls it."""

    def __init__(self, torch: Any) -> None:
        self.torch, self.functional = torch, torch.nn.functional

    def by_name(self) -> dict[str, Callable[..., Any]]:
        torch, functional = self.torch, self.functional
        return {
            "softmax.softmax": plain(self.softmax),
            "softmax.log_softmax": plain(lambda x, axis=-1: functional.log_softmax(x, axis)),
            "softmax.logsumexp": plain(lambda x, axis=-1, keepdims=False: torch.logsumexp(x, axis, keepdims)),
            "softmax.cross_entropy": self.cross_entropy,
            "softmax.soft_cross_entropy": self.cross_entropy,
            "norms.layer_norm": self.layer_norm,
            "norms.rms_norm": self.rms_norm,
            "norms.group_norm": self.group_norm,
            "norms.instance_norm": lambda x, gain, bias, eps=1e-5: functional.instance_norm(
                x, None, None, gain, bias, eps=eps
            ),
            "norms.batch_norm": self.batch_norm,
            "norms.weight_norm": lambda direction, gain, axis=0: torch._weight_norm(
                direction, gain.reshape([-1 if i == axis else 1 for i in range(direction.ndim)]), axis
            ),
            "nn.gelu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
            "nn.relu": functional.relu,
            "nn.silu": functional.silu,
            "nn.sigmoid": torch.sigmoid,
            "nn.softplus": functional.softplus,
            "nn.erf": torch.erf,
            "nn.linear": lambda x, weight, bias=None: functional.linear(x, weight.T, bias),
            "nn.conv2d": lambda x, weight, bias=None, stride=1, padding=0: functional.conv2d(
                x, weight, bias, stride=stride, padding=padding
            ),
            "nn.embedding": functional.embedding,
            "nn.max_pool2d": lambda x, size, stride=None, padding=0: functional.max_pool2d(x, size, stride, padding),
            "nn.avg_pool2d": lambda x, size, stride=None, padding=0: functional.avg_pool2d(x, size, stride, padding),
            "attention.scaled_dot_product_attention": self.attention,
        }

    def softmax(self, x: Any, axis: int = -1, algorithm: str = "two_pass") -> Any:
        if algorithm != "two_pass":
            raise NotImplementedError("one algorithm only")
        return self.functional.softmax(x, axis)

    def cross_entropy(self, logits: Any, target: Any, **options: Any) -> Any:
        return self.functional.cross_entropy(logits, target, **options)

    def layer_norm(self, x: Any, gain: Any, bias: Any, eps: float = 1e-5, axes: Any = (-1,)) -> Any:
        return self.functional.layer_norm(x, x.shape[-len(axes) :], gain, bias, eps)

    def rms_norm(self, x: Any, gain: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
        y = self.functional.rms_norm(x, x.shape[-1:], gain, eps)
        return y if bias is None else y + bias

    def group_norm(self, x: Any, gain: Any, bias: Any, groups: int = 32, eps: float = 1e-5) -> Any:
        return self.functional.group_norm(x, groups, gain, bias, eps)

    def batch_norm(
        self, x: Any, gain: Any, bias: Any, mean: Any = None, var: Any = None, axes: Any = (0,), eps: float = 1e-5
    ) -> Any:
        if mean is not None and mean.requires_grad:
            raise NotImplementedError("no gradient with respect to given statistics")
        return self.functional.batch_norm(x, mean, var, gain, bias, training=mean is None, eps=eps)

    def attention(
        self, query: Any, key: Any, value: Any, mask: Any = None, causal: bool = False, scale: Any = None
    ) -> Any:
        mask = None if mask is None else self.torch.tensor(mask)
        return self.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale
        )
