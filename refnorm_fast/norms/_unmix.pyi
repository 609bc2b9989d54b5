from refnorm._typing import Array, F, Pullback
from refnorm.norms import UnMixState

def unmix_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnMixState,
    *,
    rate: float,
    temperature: float = 0.07,
    eps: float = 1e-5,
    between: bool = False,
) -> tuple[Array[F], UnMixState]: ...
def unmix_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnMixState,
    *,
    rate: float,
    temperature: float = 0.07,
    eps: float = 1e-5,
    between: bool = False,
) -> tuple[tuple[Array[F], UnMixState], Pullback]: ...
