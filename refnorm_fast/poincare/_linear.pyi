from refnorm._typing import Array, F, Pullback

def fully_connected(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def fully_connected_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]: ...
def mlr(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def mlr_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
