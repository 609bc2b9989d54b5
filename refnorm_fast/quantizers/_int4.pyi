from refnorm._typing import Array, F, Pullback
from refnorm.quantizers import Int4Weight

def quantize_weight_int4(weight: Array[F], *, group_size: int = 128, method: str = "minmax") -> Int4Weight: ...
def int4_linear(
    x: Array[F],
    weight: Int4Weight,
    bias: Array[F] | None = None,
    *,
    activations: str = "float",
    out: Array[F] | None = None,
) -> Array[F]: ...
def int4_linear_vjp(
    x: Array[F], weight: Int4Weight, bias: Array[F] | None = None, *, activations: str = "float"
) -> tuple[Array[F], Pullback]: ...
