from typing import Any

from refnorm._typing import AnyArray, Array, F, IntArray, Pullback

def scaled_dot_product_attention(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
    out: Array[F] | None = None,
) -> Array[F]: ...
def multi_head_attention(
    x: Array[F],
    weight_in: Array[F],
    bias_in: Array[F] | None,
    weight_out: Array[F],
    bias_out: Array[F] | None,
    *,
    heads: int,
    lengths: IntArray | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array[F]: ...
def scaled_dot_product_attention_vjp(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array[F], Pullback]: ...
def multi_head_attention_vjp(
    x: Array[F],
    weight_in: Array[F],
    bias_in: Array[F] | None,
    weight_out: Array[F],
    bias_out: Array[F] | None,
    *,
    heads: int,
    lengths: IntArray | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array[F], Pullback]: ...
def sigmoid_attention(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    bias: Any = "-log_n",
    attn_bias: Array[F] | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
    block: int | None = None,
    out: Array[F] | None = None,
) -> Array[F]: ...
def sigmoid_attention_vjp(
    query: Array[F],
    key: Array[F],
    value: Array[F],
    *,
    bias: Any = "-log_n",
    attn_bias: Array[F] | None = None,
    mask: AnyArray | None = None,
    causal: bool = False,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array[F], Pullback]: ...
