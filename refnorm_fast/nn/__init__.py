"""Linear layer and activations as SIMD kernels."""

from refnorm_fast.nn._core import (
    erf,
    erf_vjp,
    gelu,
    gelu_vjp,
    linear,
    linear_vjp,
    relu,
    relu_vjp,
    sigmoid,
    sigmoid_vjp,
    silu,
    silu_vjp,
    softplus,
    softplus_vjp,
)

__all__ = [
    "erf",
    "erf_vjp",
    "gelu",
    "gelu_vjp",
    "linear",
    "linear_vjp",
    "relu",
    "relu_vjp",
    "sigmoid",
    "sigmoid_vjp",
    "silu",
    "silu_vjp",
    "softplus",
    "softplus_vjp",
]
