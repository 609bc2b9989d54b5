"""Attention: averages of values, weighted by the likeness of queries and keys."""

from refnorm.attention._multi_head import multi_head_attention, multi_head_attention_vjp
from refnorm.attention._scaled_dot_product import scaled_dot_product_attention, scaled_dot_product_attention_vjp
from refnorm.attention._sigmoid_attention import (
    alibi_bias,
    qk_norm,
    qk_norm_vjp,
    row_mass,
    sigmoid_attention,
    sigmoid_attention_vjp,
    sigmoid_bias,
)

__all__ = [
    "alibi_bias",
    "multi_head_attention",
    "multi_head_attention_vjp",
    "qk_norm",
    "qk_norm_vjp",
    "row_mass",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_vjp",
    "sigmoid_attention",
    "sigmoid_attention_vjp",
    "sigmoid_bias",
]
