"""Softmax and sigmoid attention as kernels that keep no score matrix in memory."""

from refnorm_fast.attention._core import (
    multi_head_attention,
    multi_head_attention_vjp,
    scaled_dot_product_attention,
    scaled_dot_product_attention_vjp,
    sigmoid_attention,
    sigmoid_attention_vjp,
)

__all__ = [
    "multi_head_attention",
    "multi_head_attention_vjp",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_vjp",
    "sigmoid_attention",
    "sigmoid_attention_vjp",
]
