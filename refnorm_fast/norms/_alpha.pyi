from refnorm._typing import Array, F, Pullback

def alpha_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    source_mean: Array[F],
    source_var: Array[F],
    *,
    source_weight: float = 0.9,
    ddof: int = 1,
    moments: str = "linear",
    eps: float = 1e-5,
    detach_stats: bool = False,
    out: Array[F] | None = None,
) -> Array[F]: ...
def alpha_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    source_mean: Array[F],
    source_var: Array[F],
    *,
    source_weight: float = 0.9,
    ddof: int = 1,
    moments: str = "linear",
    eps: float = 1e-5,
    detach_stats: bool = False,
) -> tuple[Array[F], Pullback]: ...
