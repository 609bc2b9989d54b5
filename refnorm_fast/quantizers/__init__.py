"""LLM.int8() and its exact integer product as SIMD kernels."""

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
from refnorm_fast.quantizers._norm import (
    layer_norm_absmax_quantize,
    layer_norm_quantize,
    rms_norm_absmax_quantize,
    rms_norm_quantize,
)

__all__ = [
    "Int8Weight",
    "absmax_quantize",
    "int8_matmul",
    "layer_norm_absmax_quantize",
    "layer_norm_quantize",
    "llm_int8_linear",
    "llm_int8_linear_vjp",
    "matmul_vectorwise",
    "quantize_weight",
    "rms_norm_absmax_quantize",
    "rms_norm_quantize",
    "vectorwise_quantize",
]
