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
