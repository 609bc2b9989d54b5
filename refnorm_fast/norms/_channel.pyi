from collections.abc import Sequence

from refnorm._typing import AnyArray, Array, F, Pullback
from refnorm.norms import BatchNormState, EvoNormState, GhostBatchState, UnifiedNormState

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
def l1_batch_statistics(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[Array[F], Array[F]]: ...
def l1_batch_statistics_vjp(x: Array[F], axes: Sequence[int] = (0,)) -> tuple[tuple[Array[F], Array[F]], Pullback]: ...
def l1_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    deviation: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
    match_std: bool = False,
    out: Array[F] | None = None,
) -> Array[F]: ...
def l1_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    deviation: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    eps: float = 1e-5,
    match_std: bool = False,
) -> tuple[Array[F], Pullback]: ...
def mean_only_batch_norm(
    x: Array[F],
    bias: Array[F],
    mean: Array[F] | None = None,
    *,
    axes: Sequence[int] = (0,),
    out: Array[F] | None = None,
) -> Array[F]: ...
def mean_only_batch_norm_vjp(
    x: Array[F], bias: Array[F], mean: Array[F] | None = None, *, axes: Sequence[int] = (0,)
) -> tuple[Array[F], Pullback]: ...
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
