from refnorm._typing import Array, F

def conv2d(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    check: bool = True,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def midpoint(
    x: Array[F],
    curvature: float | Array[F],
    weights: Array[F] | None = None,
    *,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def midpoint_statistics(
    x: Array[F], curvature: float | Array[F], *, check: bool = True
) -> tuple[Array[F], Array[F]]: ...
def midpoint_batch_norm(
    x: Array[F],
    bias: Array[F],
    gain: Array[F],
    curvature: float | Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    eps: float = 1e-6,
    check: bool = True,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def avg_pool2d(
    x: Array[F],
    curvature: float | Array[F],
    *,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    check: bool = True,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
