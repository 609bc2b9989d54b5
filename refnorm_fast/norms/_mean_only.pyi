from collections.abc import Sequence

from refnorm._typing import Array, F, Pullback

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
