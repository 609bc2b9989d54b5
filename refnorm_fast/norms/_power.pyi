from refnorm._typing import AnyArray, Array, F, Pullback
from refnorm.norms import PowerNormState

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
def power_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: PowerNormState,
    *,
    decay_forward: float = 0.9,
    decay_backward: float = 0.9,
    warmup: int = 10000,
    groups: int | None = 1,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
    backward_scale: str = "running",
) -> tuple[Array[F], PowerNormState]: ...
def power_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: PowerNormState,
    *,
    decay_forward: float = 0.9,
    decay_backward: float = 0.9,
    warmup: int = 10000,
    groups: int | None = 1,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
    backward_scale: str = "running",
) -> tuple[tuple[Array[F], PowerNormState], Pullback]: ...
