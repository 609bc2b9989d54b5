from refnorm._typing import AnyArray, Array, F, Pullback

def region_normalize(
    x: Array[F],
    mask: AnyArray,
    *,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
    out: Array[F] | None = None,
) -> Array[F]: ...
def region_normalize_vjp(
    x: Array[F], mask: AnyArray, *, stats: str = "batch", eps: float = 1e-5, eps_mode: str = "scaled"
) -> tuple[Array[F], Pullback]: ...
def region_norm_basic(
    x: Array[F],
    mask: AnyArray,
    foreground_gain: Array[F],
    foreground_bias: Array[F],
    background_gain: Array[F],
    background_bias: Array[F],
    *,
    shared_bias: bool = False,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
    binarize: bool = False,
    out: Array[F] | None = None,
) -> Array[F]: ...
def region_norm_basic_vjp(
    x: Array[F],
    mask: AnyArray,
    foreground_gain: Array[F],
    foreground_bias: Array[F],
    background_gain: Array[F],
    background_bias: Array[F],
    *,
    shared_bias: bool = False,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
    binarize: bool = False,
) -> tuple[Array[F], Pullback]: ...
