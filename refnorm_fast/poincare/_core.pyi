from refnorm._typing import Array, F

def mobius_add(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def exp0(
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def log0(
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def project_ball(
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    eps: float | None = None,
    out: Array[F] | None = None,
) -> Array[F]: ...
def expmap(
    x: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def logmap(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def dist(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
def dist_sq(
    x: Array[F],
    y: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    out: Array[F] | None = None,
) -> Array[F]: ...
