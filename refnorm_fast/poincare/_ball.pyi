from refnorm._typing import Array, F, Pullback

def mobius_add_vjp(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def exp0_vjp(
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    project: bool = True,
) -> tuple[Array[F], Pullback]: ...
def log0_vjp(
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def project_ball_vjp(
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    eps: float | None = None,
) -> tuple[Array[F], Pullback]: ...
def expmap_vjp(
    x: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]: ...
def logmap_vjp(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def dist_vjp(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def dist_sq_vjp(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def conformal_factor(
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def conformal_factor_vjp(
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def gyration(
    u: Array[F],
    v: Array[F],
    w: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def gyration_vjp(
    u: Array[F],
    v: Array[F],
    w: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def transport(
    x: Array[F],
    y: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def transport_vjp(
    x: Array[F],
    y: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
def mobius_scalar_mul(
    scale: float | Array[F],
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def mobius_scalar_mul_vjp(
    scale: float | Array[F],
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]: ...
