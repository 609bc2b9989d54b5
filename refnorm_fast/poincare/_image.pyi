from refnorm._typing import AnyArray, Array, F, Pullback

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
def conv2d_vjp(
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
) -> tuple[Array[F], Pullback]: ...
def midpoint(
    x: Array[F],
    curvature: float | Array[F],
    weights: Array[F] | None = None,
    *,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def midpoint_vjp(
    x: Array[F],
    curvature: float | Array[F],
    weights: Array[F] | None = None,
    *,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def midpoint_statistics_vjp(
    x: Array[F], curvature: float | Array[F], *, check: bool = True
) -> tuple[tuple[Array[F], Array[F]], Pullback]: ...
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
def midpoint_batch_norm_vjp(
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
) -> tuple[Array[F], Pullback]: ...
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
def avg_pool2d_vjp(
    x: Array[F],
    curvature: float | Array[F],
    *,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]: ...
def relu_images(x: Array[F], curvature: float | Array[F]) -> Array[F]: ...
def add_images(f: Array[F], skip: Array[F], curvature: float | Array[F], *, order: str = "fr") -> Array[F]: ...
def normalize_images(
    x: Array[F],
    bias: Array[F],
    gain: Array[F],
    curvature: float | Array[F],
    mean: Array[F] | None,
    var: Array[F] | None,
    eps: float,
    check: bool,
    project: bool,
) -> tuple[Array[F], tuple[AnyArray, AnyArray]]: ...
def normalize_images_vjp(
    x: Array[F],
    bias: Array[F],
    gain: Array[F],
    curvature: float | Array[F],
    mean: Array[F] | None,
    var: Array[F] | None,
    eps: float,
    check: bool,
    project: bool,
) -> tuple[Array[F], tuple[AnyArray, AnyArray], Pullback]: ...
