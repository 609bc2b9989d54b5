from refnorm._typing import Array, F, Pullback
from refnorm.quantizers import Bfloat16Weight, Precision

def matmul_lowp(
    a: Array[F],
    b: Array[F],
    *,
    precision: Precision = ...,
    order: str = "sequential",
    fused: bool = False,
    out: Array[F] | None = None,
) -> Array[F]: ...
def linear_lowp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    precision: Precision = ...,
    out: Array[F] | None = None,
) -> Array[F]: ...
def linear_lowp_vjp(
    x: Array[F], weight: Array[F], bias: Array[F] | None = None, *, precision: Precision = ...
) -> tuple[Array[F], Pullback]: ...
def round_weight_bfloat16(weight: Array[F]) -> Bfloat16Weight: ...
def bfloat16_linear(
    x: Array[F], weight: Bfloat16Weight, bias: Array[F] | None = None, *, out: Array[F] | None = None
) -> Array[F]: ...
def bfloat16_linear_vjp(
    x: Array[F], weight: Bfloat16Weight, bias: Array[F] | None = None
) -> tuple[Array[F], Pullback]: ...
