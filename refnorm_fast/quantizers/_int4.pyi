from refnorm._typing import Array, F, Pullback
from refnorm.quantizers import Int4Weight

def int4_linear(
    x: Array[F], weight: Int4Weight, bias: Array[F] | None = None, *, out: Array[F] | None = None
) -> Array[F]: ...
def int4_linear_vjp(x: Array[F], weight: Int4Weight, bias: Array[F] | None = None) -> tuple[Array[F], Pullback]: ...
