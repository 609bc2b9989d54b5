"""Quantizers: numbers on a grid of few codes, products of codes, and gradients through rounding."""

from refnorm.quantizers._affine import (
    affine_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_vjp,
    lsq_scale,
    quantize,
    rounding_error_bound,
)
from refnorm.quantizers._int8 import (
    absmax_quantize,
    int8_matmul,
    matmul_rowwise,
    matmul_tensorwise,
    matmul_vectorwise,
    matmul_zeropoint,
    zeropoint_quantize,
)
from refnorm.quantizers._llm_int8 import (
    Int8Weight,
    int8_matmul_trainable,
    int8_matmul_trainable_vjp,
    llm_int8_linear,
    llm_int8_linear_vjp,
    outlier_features,
    quantize_weight,
    vectorwise_quantize,
)

__all__ = [
    "Int8Weight",
    "absmax_quantize",
    "affine_qparams",
    "dequantize",
    "fake_quantize",
    "fake_quantize_vjp",
    "int8_matmul",
    "int8_matmul_trainable",
    "int8_matmul_trainable_vjp",
    "llm_int8_linear",
    "llm_int8_linear_vjp",
    "lsq_scale",
    "matmul_rowwise",
    "matmul_tensorwise",
    "matmul_vectorwise",
    "matmul_zeropoint",
    "outlier_features",
    "quantize",
    "quantize_weight",
    "rounding_error_bound",
    "vectorwise_quantize",
    "zeropoint_quantize",
]
