"""The Poincaré ball on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refnorm import _checks, poincare
from refnorm._typing import Pullback
from refnorm_fast.cuda._arrays import (
    LARGE_TEAM,
    Rows,
    array,
    cotangent,
    empty,
    float_array,
    number,
    run,
    run_rows,
    to_host,
)

__all__ = [
    "dist",
    "dist_sq",
    "dist_sq_vjp",
    "dist_vjp",
    "exp0",
    "exp0_vjp",
    "expmap",
    "log0",
    "log0_vjp",
    "logmap",
    "mobius_add",
    "mobius_add_vjp",
    "project_ball",
    "project_ball_vjp",
]

PROJECTION_MARGIN = {np.dtype(np.float32): 4e-3, np.dtype(np.float64): 1e-5}


class _Call:
    """One call: checked arguments as rows, the curvature and unit inside, and the way results go back."""

    def __init__(self, curvature: Any, axis: int, **arrays: Any) -> None:
        checked = {name: float_array(x, name, min_ndim=1) for name, x in arrays.items()}
        (first_name, first), *others = checked.items()
        _checks.same_dtype(first_name, first, **dict(others))
        for name, x in others:
            _checks.shape(x, name, first.shape)
        (last,) = _checks.axes(axis, first.ndim)
        _checks.not_empty(first, first_name, (last,))
        self.rows = Rows(first, last)
        self.dtype = first.dtype
        self.names = tuple(checked)
        self.x = tuple(self.rows.of(x) for x in checked.values())
        given = number(curvature)
        value = np.asarray(given)
        if value.ndim or value.dtype.kind not in "fiu":
            _checks.fail_type("curvature", "a number or a 0-d float array", f"{value.dtype} of shape {value.shape}")
        self.given_curvature = float(value)
        _checks.positive(self.given_curvature, "curvature")
        is_array = isinstance(given, (np.ndarray, np.generic)) and value.dtype.kind == "f"
        self.curvature_dtype = value.dtype if is_array else self.dtype
        exponent = math.frexp(self.given_curvature)[1] // 2
        self.curvature = math.ldexp(self.given_curvature, -2 * exponent)
        self.unit = math.ldexp(1.0, exponent)

    def run(self, kernel: str, *arguments: Any) -> None:
        rows, length = self.rows.rows, self.rows.length
        common = (self.curvature, self.unit, rows, length)
        run_rows("poincare", kernel, self.dtype, rows, length, *arguments, *common, cached=False)

    def points(self, kernel: str, result: Any, check: bool, *options: Any) -> Any:
        """Run a kernel that says whether its points are inside the ball; if one is not, raise what the reference does."""
        outside = array(np.zeros(2, np.int32))
        self.run(kernel, *self.x, result, outside, *options)
        if check and to_host(outside).any():
            for name, x, wrong in zip(self.names, self.x, to_host(outside), strict=False):
                if wrong:
                    self._raise(name, to_host(x))
        return result

    def _raise(self, name: str, points: Any) -> None:
        try:
            poincare.log0(points, self.given_curvature)
        except ValueError as error:
            raise ValueError(f"{name}{str(error).removeprefix('y')}") from None

    def fresh(self) -> Any:
        return self.rows.fresh()

    def scalars(self) -> Any:
        return empty(self.rows.outer, self.dtype)

    def terms(self) -> Any:
        return empty((self.rows.rows,), np.float64)

    def curvature_cotangent(self, terms: Any) -> Any:
        total = empty((), np.float64)
        run("poincare", "curvature_total", self.dtype, 1, LARGE_TEAM, terms, total, self.rows.rows, self.unit)
        return total.astype(self.curvature_dtype)

    def margin(self, project: bool) -> float:
        return PROJECTION_MARGIN[self.dtype] if project else -1.0


def mobius_add(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> Any:
    """Add points of the ball on a GPU; see :func:`refnorm.poincare.mobius_add`.

    With ``check``, the host waits for the kernel, here and in the other functions of points.
    """
    call = _Call(curvature, axis, x=x, y=y)
    return call.rows.back(call.points("mobius_add", call.fresh(), check))


def mobius_add_vjp(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> tuple[Any, Pullback]:
    """Return :func:`mobius_add` and its pullback ``dz -> (dx, dy, dcurvature)``."""
    call = _Call(curvature, axis, x=x, y=y)
    z = call.points("mobius_add", call.fresh(), check)

    def pullback(dz: Any) -> tuple[Any, Any, Any]:
        g, dx, dy, terms = call.rows.cotangent(dz, "cotangent"), call.fresh(), call.fresh(), call.terms()
        call.run("mobius_add_backward", *call.x, g, dx, dy, terms)
        return call.rows.back(dx), call.rows.back(dy), call.curvature_cotangent(terms)

    return call.rows.back(z), pullback


def exp0(v: Any, curvature: Any, *, axis: int = -1, project: bool = True) -> Any:
    """Exponential map at the origin on a GPU; see :func:`refnorm.poincare.exp0`."""
    return exp0_vjp(v, curvature, axis=axis, project=project)[0]


def exp0_vjp(v: Any, curvature: Any, *, axis: int = -1, project: bool = True) -> tuple[Any, Pullback]:
    """Return :func:`exp0` and its pullback ``dy -> (dv, dcurvature)``."""
    call = _Call(curvature, axis, v=v)
    y, margin = call.fresh(), call.margin(project)
    call.run("exp0", *call.x, y, margin)

    def pullback(dy: Any) -> tuple[Any, Any]:
        g, dv, terms = call.rows.cotangent(dy, "cotangent"), call.fresh(), call.terms()
        call.run("exp0_backward", *call.x, g, dv, terms, margin)
        return call.rows.back(dv), call.curvature_cotangent(terms)

    return call.rows.back(y), pullback


def log0(y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> Any:
    """Logarithmic map at the origin on a GPU; see :func:`refnorm.poincare.log0`."""
    return log0_vjp(y, curvature, axis=axis, check=check)[0]


def log0_vjp(y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> tuple[Any, Pullback]:
    """Return :func:`log0` and its pullback ``dv -> (dy, dcurvature)``."""
    call = _Call(curvature, axis, y=y)
    v = call.points("log0", call.fresh(), check)

    def pullback(dv: Any) -> tuple[Any, Any]:
        g, dy, terms = call.rows.cotangent(dv, "cotangent"), call.fresh(), call.terms()
        call.run("log0_backward", *call.x, g, dy, terms)
        return call.rows.back(dy), call.curvature_cotangent(terms)

    return call.rows.back(v), pullback


def project_ball(x: Any, curvature: Any, *, axis: int = -1, eps: float | None = None) -> Any:
    """Projection onto a slightly smaller ball on a GPU; see :func:`refnorm.poincare.project_ball`."""
    return project_ball_vjp(x, curvature, axis=axis, eps=eps)[0]


def project_ball_vjp(x: Any, curvature: Any, *, axis: int = -1, eps: float | None = None) -> tuple[Any, Pullback]:
    """Return :func:`project_ball` and its pullback ``dy -> (dx, dcurvature)``."""
    call = _Call(curvature, axis, x=x)
    if eps is not None:
        _checks.in_range(eps, "eps", 0.0, 1.0, closed="left")
    y, margin = call.fresh(), call.margin(True) if eps is None else float(eps)
    call.run("project_ball", *call.x, y, margin)

    def pullback(dy: Any) -> tuple[Any, Any]:
        g, dx, terms = call.rows.cotangent(dy, "cotangent"), call.fresh(), call.terms()
        call.run("project_ball_backward", *call.x, g, dx, terms, margin)
        return call.rows.back(dx), call.curvature_cotangent(terms)

    return call.rows.back(y), pullback


def expmap(x: Any, v: Any, curvature: Any, *, axis: int = -1, check: bool = True, project: bool = True) -> Any:
    """Exponential map at a point on a GPU; see :func:`refnorm.poincare.expmap`."""
    call = _Call(curvature, axis, x=x, v=v)
    return call.rows.back(call.points("expmap", call.fresh(), check, call.margin(project)))


def logmap(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> Any:
    """Logarithmic map at a point on a GPU; see :func:`refnorm.poincare.logmap`."""
    call = _Call(curvature, axis, x=x, y=y)
    return call.rows.back(call.points("logmap", call.fresh(), check))


def _distance(x: Any, y: Any, curvature: Any, axis: int, check: bool, squared: bool) -> tuple[Any, Pullback]:
    call = _Call(curvature, axis, x=x, y=y)
    value = call.points("distance", call.scalars(), check, squared)

    def pullback(dd: Any) -> tuple[Any, Any, Any]:
        g, dx, dy, terms = cotangent(dd, "cotangent", value.shape, call.dtype), call.fresh(), call.fresh(), call.terms()
        call.run("distance_backward", *call.x, g, dx, dy, terms, squared)
        return call.rows.back(dx), call.rows.back(dy), call.curvature_cotangent(terms)

    return value, pullback


def dist(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> Any:
    """Hyperbolic distance on a GPU; see :func:`refnorm.poincare.dist`."""
    return dist_vjp(x, y, curvature, axis=axis, check=check)[0]


def dist_vjp(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> tuple[Any, Pullback]:
    """Return :func:`dist` and its pullback ``dd -> (dx, dy, dcurvature)``."""
    return _distance(x, y, curvature, axis, check, False)


def dist_sq(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> Any:
    """Squared hyperbolic distance on a GPU; see :func:`refnorm.poincare.dist_sq`."""
    return dist_sq_vjp(x, y, curvature, axis=axis, check=check)[0]


def dist_sq_vjp(x: Any, y: Any, curvature: Any, *, axis: int = -1, check: bool = True) -> tuple[Any, Pullback]:
    """Return :func:`dist_sq` and its pullback ``dd -> (dx, dy, dcurvature)``."""
    return _distance(x, y, curvature, axis, check, True)
