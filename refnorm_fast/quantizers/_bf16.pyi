from refnorm._typing import Array, F, Pullback
from refnorm.quantizers import Precision

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
