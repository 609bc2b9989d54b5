from collections.abc import Sequence

from refnorm._typing import Array, F, Pullback

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
