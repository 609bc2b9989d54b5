from refnorm._typing import Array, F, Pullback
from refnorm.norms import BatchChannelState

def batch_channel_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    *,
    groups: int = 32,
    eps: float = 1e-5,
    out: Array[F] | None = None,
) -> Array[F]: ...
def batch_channel_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]: ...
def batch_channel_norm_estimated(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    state: BatchChannelState,
    *,
    groups: int = 32,
    rate: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
) -> tuple[Array[F], BatchChannelState]: ...
def batch_channel_norm_estimated_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    group_gain: Array[F],
    group_bias: Array[F],
    state: BatchChannelState,
    *,
    groups: int = 32,
    rate: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
) -> tuple[tuple[Array[F], BatchChannelState], Pullback]: ...
