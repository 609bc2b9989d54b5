"""Low-precision matrix products as SIMD kernels."""

from refnorm_fast.quantizers._bf16 import linear_lowp, linear_lowp_vjp, matmul_lowp
from refnorm_fast.quantizers._core import (
    Int8Weight,
    absmax_quantize,
    int8_matmul,
    llm_int8_linear,
    llm_int8_linear_vjp,
    matmul_rowwise,
    matmul_tensorwise,
    matmul_vectorwise,
    matmul_zeropoint,
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
    "linear_lowp",
    "linear_lowp_vjp",
    "llm_int8_linear",
    "llm_int8_linear_vjp",
    "matmul_lowp",
    "matmul_rowwise",
    "matmul_tensorwise",
    "matmul_vectorwise",
    "matmul_zeropoint",
    "quantize_weight",
    "vectorwise_quantize",
]
