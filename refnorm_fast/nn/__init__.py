"""Linear layer and activations as SIMD kernels."""

from refnorm_fast.nn._core import gelu, gelu_vjp, linear, linear_vjp, relu, relu_vjp

__all__ = ["gelu", "gelu_vjp", "linear", "linear_vjp", "relu", "relu_vjp"]
