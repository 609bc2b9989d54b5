"""Attention: averages of values, weighted by the likeness of queries and keys."""

from refnorm.attention._multi_head import multi_head_attention, multi_head_attention_vjp
from refnorm.attention._scaled_dot_product import scaled_dot_product_attention, scaled_dot_product_attention_vjp

__all__ = [
    "multi_head_attention",
    "multi_head_attention_vjp",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_vjp",
]
