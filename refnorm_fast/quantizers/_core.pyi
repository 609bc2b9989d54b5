from collections.abc import Sequence

from refnorm._typing import Array, F, IntArray, Pullback
from refnorm.quantizers import Int8Weight as Int8Weight

def absmax_quantize(x: Array[F], *, axis: int | Sequence[int] | None = None) -> tuple[IntArray, Array[F]]: ...
def vectorwise_quantize(
    x: Array[F], *, threshold: float = 0.0, row_stats: str = "elements"
) -> tuple[IntArray, Array[F], IntArray]: ...
def quantize_weight(weight: Array[F]) -> Int8Weight: ...
def int8_matmul(a: IntArray, b: IntArray, *, out: IntArray | None = None) -> IntArray: ...
def matmul_vectorwise(x: Array[F], weight: Array[F]) -> Array[F]: ...
def matmul_tensorwise(x: Array[F], weight: Array[F]) -> Array[F]: ...
def matmul_rowwise(x: Array[F], weight: Array[F]) -> Array[F]: ...
def matmul_zeropoint(x: Array[F], weight: Array[F]) -> Array[F]: ...
def llm_int8_linear(
    x: Array[F],
    weight: Int8Weight,
    bias: Array[F] | None = None,
    *,
    threshold: float = 6.0,
    row_stats: str = "elements",
    outlier_weights: str = "dequantized",
    w_float: Array[F] | None = None,
    activation: str | None = None,
    residual: Array[F] | None = None,
    out: Array[F] | None = None,
) -> Array[F]: ...
def llm_int8_linear_vjp(
    x: Array[F],
    weight: Int8Weight,
    bias: Array[F] | None = None,
    *,
    threshold: float = 6.0,
    row_stats: str = "elements",
    outlier_weights: str = "dequantized",
    w_float: Array[F] | None = None,
    activation: str | None = None,
    residual: Array[F] | None = None,
    scale_gradient: bool = False,
) -> tuple[Array[F], Pullback]: ...
