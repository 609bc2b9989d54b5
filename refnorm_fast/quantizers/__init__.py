"""Low-precision matrix products as SIMD kernels."""

from refnorm_fast.quantizers._core import (
    Int8Weight,
    absmax_quantize,
    int8_matmul,
    llm_int8_linear,
    llm_int8_linear_vjp,
    matmul_vectorwise,
    quantize_weight,
    vectorwise_quantize,
)
from refnorm_fast.quantizers._int4 import int4_linear, int4_linear_vjp

__all__ = [
    "Int8Weight",
    "absmax_quantize",
    "int4_linear",
    "int4_linear_vjp",
    "int8_matmul",
    "llm_int8_linear",
    "llm_int8_linear_vjp",
    "matmul_vectorwise",
    "quantize_weight",
    "vectorwise_quantize",
]
