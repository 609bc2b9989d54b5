from collections.abc import Sequence

from refnorm._typing import Array, F, Pullback
from refnorm.norms import BatchNormState

def batch_statistics(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[Array[F], Array[F]]: ...
def batch_statistics_vjp(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[tuple[Array[F], Array[F]], Pullback]: ...
def batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
    out: Array[F] | None = None,
) -> Array[F]: ...
def batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]: ...
def batch_norm_train(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: BatchNormState,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array[F], BatchNormState]: ...
def batch_norm_train_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: BatchNormState,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[tuple[Array[F], BatchNormState], Pullback]: ...
def batch_norm_eval(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: BatchNormState,
    *,
    eps: float = 1e-5,
    out: Array[F] | None = None,
) -> Array[F]: ...
def batch_norm_eval_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], state: BatchNormState, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]: ...
