from refnorm._typing import AnyArray, Array, F, Pullback
from refnorm.norms import UnifiedNormState

def unified_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnifiedNormState,
    *,
    momentum: float = 0.9,
    warmup: int = 4000,
    outlier_filtration: bool = False,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
) -> tuple[Array[F], UnifiedNormState]: ...
def unified_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnifiedNormState,
    *,
    momentum: float = 0.9,
    warmup: int = 4000,
    outlier_filtration: bool = False,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
) -> tuple[tuple[Array[F], UnifiedNormState], Pullback]: ...
