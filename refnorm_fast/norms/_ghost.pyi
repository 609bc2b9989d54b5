from refnorm._typing import Array, F, Pullback
from refnorm.norms import GhostBatchState

def ghost_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    ghost_size: int = 128,
    eps: float = 1e-5,
    merge_last: bool = False,
    out: Array[F] | None = None,
) -> Array[F]: ...
def ghost_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    ghost_size: int = 128,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> tuple[Array[F], Pullback]: ...
def ghost_batch_norm_train(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: GhostBatchState,
    *,
    ghost_size: int = 128,
    momentum: float = 0.1,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> tuple[Array[F], GhostBatchState]: ...
def ghost_batch_norm_train_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: GhostBatchState,
    *,
    ghost_size: int = 128,
    momentum: float = 0.1,
    eps: float = 1e-5,
    merge_last: bool = False,
) -> tuple[tuple[Array[F], GhostBatchState], Pullback]: ...
