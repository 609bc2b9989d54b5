from refnorm._typing import Array, F, Pullback
from refnorm.norms import EvoNormState

def evonorm_s0(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    nonlinearity: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def evonorm_s0_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[Array[F], Pullback]: ...
def evonorm_b0_train(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    decay: float = 0.9,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[Array[F], EvoNormState]: ...
def evonorm_b0_train_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    decay: float = 0.9,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[tuple[Array[F], EvoNormState], Pullback]: ...
def evonorm_b0_eval(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    eps: float = 1e-5,
    nonlinearity: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def evonorm_b0_eval_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[Array[F], Pullback]: ...
