from refnorm._typing import AnyArray, Array, F, Pullback

def power_norm_v(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    out: Array[F] | None = None,
) -> Array[F]: ...
def power_norm_v_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, mask: AnyArray | None = None
) -> tuple[Array[F], Pullback]: ...
