"""The Poincaré ball as a gyrovector space: addition, scaling, linear maps, and the maps at the origin.

    x (+) y = ((gap_x + c|x+y|^2) x + gap_x y) / (gap_x gap_y + c|x+y|^2)        gap_x = 1 - c|x|^2

The usual formula has 1 + 2c<x,y> + c|y|^2 and 1 + 2c<x,y> + c^2|x|^2|y|^2 in place of the two sums; both
cancel when x and y nearly are opposite points near the boundary. The sums have positive terms only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.poincare._frame import Frame, Point
from refnorm.poincare._numerics import (
    SATURATED,
    Wide,
    artanh_bend,
    artanh_ratio,
    direction,
    dot,
    norm,
    project_off,
    ratio,
    sech_square,
    tanh_bend,
    tanh_ratio,
)

METHOD = Method(
    title="The Poincaré ball as a gyrovector space",
    authors="Ungar; Ganea, Bécigneul, Hofmann",
    year=2018,
    arxiv="1805.09112",
    functions=(
        "mobius_add",
        "mobius_scalar_mul",
        "mobius_matvec",
        "exp0",
        "log0",
        "conformal_factor",
        "project_ball",
    ),
    chapter="poincare/ball",
    paper=False,
)

PROJECTION_MARGIN = {np.dtype(np.float32): 4e-3, np.dtype(np.float64): 1e-5}
"""How far inside the boundary a projection ends, as a fraction of the radius.

No formula here needs it. It bounds what follows: the conformal factor by 1/margin, and the distance from
the origin by artanh(1 - margin) 2/sqrt(c), that is 6.2/sqrt(c) and 12.2/sqrt(c). The values are those in
use in the Poincaré networks that this room reproduces.
"""

DIRECT_BEND = 0.5
"""From this relative radius on, the difference of two derivatives of a scaling has lost no more than 3 bits
that its own conditioning keeps; below it, a split into two small terms is used."""

Inner = tuple[Wide, Callable[[Wide], tuple[Wide, Wide]]]
"""A value inside the frame and its pullback ``cotangent -> (cotangent of the vector, terms of the curvature's)``."""


def mobius_add(
    x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> Array[F]:
    """Add points of the Poincaré ball: the translation along a geodesic through the origin.

    Parameters
    ----------
    x, y : arrays of one shape
        Points with ``curvature * |x|^2 < 1``, vectors along ``axis``. Not commutative: ``y`` is moved by ``x``.
    curvature : float or 0-d array > 0
        Minus the sectional curvature; the ball's radius is ``curvature ** -0.5``.
    axis : int
        Axis of the vectors.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its row is meaningless.

    Returns
    -------
    array, shape and dtype of ``x``
        Points strictly inside the ball: a sum nearer to the boundary than the dtype resolves is rounded
        inward.

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the dtypes differ.
    ValueError
        If shapes differ, the curvature is not finite and > 0, or a point is outside (the message gives
        the largest ``curvature * |x|^2``).

    Notes
    -----
    With ``w = x + y``, ``gap_x = 1 - c|x|^2`` and ``S = c|w|^2``,
    ``x (+) y = (gap_x w + S x) / (gap_x gap_y + S)``. The error of the result, as a vector, is at most
    about 6 (n + 8) units roundoff of its length, for every pair of points of the ball.
    NaN or infinity in a row makes that row NaN and no other.

    References
    ----------
    Ungar (2008), A Gyrovector Space Approach to Hyperbolic Geometry, definition 3.40;
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, equation 4.

    Examples
    --------
    >>> mobius_add(np.array([0.5, 0.0]), np.array([0.0, 0.5]), 1.0) * 17
    array([10.,  6.])
    """
    return mobius_add_vjp(x, y, curvature, axis=axis, check=check)[0]


def mobius_add_vjp(
    x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`mobius_add` and its pullback ``dz -> (dx, dy, dcurvature)``.

    Parameters, errors and references are those of :func:`mobius_add`.
    """
    frame = Frame(curvature, axis, check, x=x, y=y)
    c = frame.curvature
    left, right = frame.point(x, "x"), frame.point(y, "y")
    total = left.at + right.at
    spread = c * dot(total, total)
    denominator = left.gap * right.gap + spread
    z = translate(left, total, spread, denominator)

    def pullback(dz: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        dx, dy, dc = translate_pullback(frame.cotangent(dz), left, right, total, spread, denominator, z, c)
        return frame.leave_cotangent(dx), frame.leave_cotangent(dy), frame.leave_curvature(dc)

    return frame.leave_inside(z), pullback


def translate(x: Point, total: Wide, spread: Wide, denominator: Wide) -> Wide:
    """Return x (+) y from ``total = x + y``, ``spread = c |x + y|^2`` and the denominator."""
    z: Wide = (x.gap * total + spread * x.at) / denominator
    return z


def translate_pullback(
    u: Wide, x: Point, y: Point, total: Wide, spread: Wide, denominator: Wide, z: Wide, c: float
) -> tuple[Wide, Wide, Wide]:
    """Pull ``u`` back through :func:`translate`: cotangents of x and y, and the terms of the curvature's.

    From D z = gap_x w + S x with D = gap_x gap_y + S, dgap_x = -2c<x,dx> - |x|^2 dc and
    dS = 2c<w,dw> + |w|^2 dc:

        D <u,dz> = dgap_x (<u,w> - gap_y <u,z>) + gap_x <u,dw> + dS (<u,x> - <u,z>) + S <u,dx>
                   - gap_x <u,z> dgap_y.

    The two brackets are small differences, but both are multiples of one number that is not:
    <u,w> - gap_y <u,z> = S k and <u,x> - <u,z> = -gap_x k with k = (<u,w> - gap_y <u,x>) / D.
    """
    u_total, u_x = dot(u, total), dot(u, x.at)
    u_z = (x.gap * u_total + spread * u_x) / denominator
    k = (u_total - y.gap * u_x) / denominator
    dx = (x.gap + spread) / denominator * u - 2 * c * k * z
    # The bracket is the rotation gyr[y, x] u: the map y -> x (+) y scales by gap_x / D and rotates.
    dy = x.gap / denominator * (u - 2 * c * (k * total - u_z * y.at))
    dc = (x.gap * u_z * y.square - k * dot(total, total)) / denominator
    return dx, dy, dc


def conformal_factor(x: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True) -> Array[F]:
    """Return ``2 / (1 - curvature |x|^2)``: hyperbolic length per Euclidean length at ``x``.

    Parameters
    ----------
    x : array (..., n)
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`mobius_add`.

    Returns
    -------
    array, shape of ``x`` without ``axis``
        At least 2. Relative error at most 3 units roundoff, also where ``1 - curvature |x|^2`` is 10^-16
        or less.

    Raises
    ------
    TypeError, ValueError
        As :func:`mobius_add`.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, section 2.3.

    Examples
    --------
    >>> conformal_factor(np.array([[0.0, 0.0], [0.6, 0.0]]), 1.0)
    array([2.   , 3.125])
    """
    return conformal_factor_vjp(x, curvature, axis=axis, check=check)[0]


def conformal_factor_vjp(
    x: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`conformal_factor` and its pullback ``dfactor -> (dx, dcurvature)``.

    Parameters, errors and references are those of :func:`conformal_factor`.
    """
    frame = Frame(curvature, axis, check, x=x)
    point = frame.point(x, "x")
    factor = 2 / point.gap

    def pullback(dfactor: Array[F]) -> tuple[Array[F], Array[F]]:
        # d(2/gap) = -factor^2/2 dgap, and dgap = -2c<x,dx> - |x|^2 dc.
        g = frame.scalar_cotangent(dfactor) * factor * factor
        dx = frame.leave_cotangent(frame.curvature * g * point.at)
        return dx, frame.leave_curvature(g * point.square / 2)

    return frame.leave_scalar(factor), pullback


def exp0(v: Array[F], curvature: float | Array[F], *, axis: int = -1, project: bool = True) -> Array[F]:
    """Map tangent vectors at the origin to the points that their geodesics reach after unit time.

    Parameters
    ----------
    v : array (..., n)
        Tangent vectors along ``axis``, of any length.
    curvature, axis
        As in :func:`mobius_add`.
    project : bool
        Whether the result is projected to a ball smaller by a margin (see :func:`project_ball`). Without
        it, results are rounded inward where they would fall on the boundary.

    Returns
    -------
    array, shape and dtype of ``v``

    Raises
    ------
    TypeError, ValueError
        As :func:`mobius_add`.

    Notes
    -----
    ``exp0(v) = tanh(s)/s v`` with ``s = sqrt(c)|v|``. ``exp0(0) = 0`` with the identity as derivative.
    The error, as a vector, is a few units roundoff of the result's length.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, lemma 2.

    Examples
    --------
    >>> exp0(np.array([0.6, 0.8]), 1.0).round(6)
    array([0.456956, 0.609275])
    """
    return exp0_vjp(v, curvature, axis=axis, project=project)[0]


def exp0_vjp(
    v: Array[F], curvature: float | Array[F], *, axis: int = -1, project: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`exp0` and its pullback ``dy -> (dv, dcurvature)``.

    Parameters, errors and references are those of :func:`exp0`.
    """
    frame = Frame(curvature, axis, True, v=v)
    tangent, factor = frame.arrow(v)
    y, back = expand(tangent, frame.curvature)
    y, back_projection = clip(y, frame, project)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        u, dc = back_projection(frame.cotangent(dy))
        dv, dc_more = back(u)
        return frame.leave_cotangent(dv, factor), frame.leave_curvature(dc + dc_more)

    return frame.leave_inside(y), pullback


def expand(v: Wide, c: float) -> Inner:
    """Return the exponential map at the origin, inside the frame, and its pullback."""
    length = norm(v)
    unit = direction(v)
    s = np.sqrt(c) * length
    scale = tanh_ratio(s)
    with np.errstate(invalid="ignore"):
        y = np.where(s >= SATURATED, unit / np.sqrt(c), scale * v)

    def back(u: Wide) -> tuple[Wide, Wide]:
        # d(tanh(s)/s) = (sech^2 s - tanh(s)/s) ds/s, with ds/s = <v,dv>/|v|^2 + dc/(2c): along v the
        # derivative is sech^2, across it tanh(s)/s.
        radial = dot(u, unit)
        dv = scale * project_off(u, unit, radial) + sech_square(s) * radial * unit
        return dv, radial * length * tanh_bend(s) / (2 * c)

    return y, back


def log0(y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True) -> Array[F]:
    """Map points to the tangent vectors at the origin that reach them: the inverse of :func:`exp0`.

    Parameters
    ----------
    y : array (..., n)
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`mobius_add`.

    Returns
    -------
    array, shape and dtype of ``y``

    Raises
    ------
    TypeError, ValueError
        As :func:`mobius_add`.

    Notes
    -----
    ``log0(y) = artanh(s)/s y`` with ``s = sqrt(c)|y|``, computed as ``arsinh(s / sqrt(1 - s^2))`` from an
    accurate ``1 - s^2``: the error, as a vector, is a few units roundoff of the result's length also for
    points within one unit in the last place of the boundary.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, lemma 2.

    Examples
    --------
    >>> log0(np.array([0.0, 1 - 2.0**-53]), 1.0).round(4)
    array([ 0.   , 18.715])
    """
    return log0_vjp(y, curvature, axis=axis, check=check)[0]


def log0_vjp(
    y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`log0` and its pullback ``dv -> (dy, dcurvature)``.

    Parameters, errors and references are those of :func:`log0`.
    """
    frame = Frame(curvature, axis, check, y=y)
    v, back = contract(frame.point(y, "y"), frame.curvature)

    def pullback(dv: Array[F]) -> tuple[Array[F], Array[F]]:
        dy, dc = back(frame.cotangent(dv))
        return frame.leave_cotangent(dy), frame.leave_curvature(dc)

    return frame.leave(v), pullback


def contract(y: Point, c: float) -> Inner:
    """Return the logarithmic map at the origin, inside the frame, and its pullback."""
    length = norm(y.at)
    s = np.sqrt(c) * length
    scale = artanh_ratio(s, y.gap)

    def back(u: Wide) -> tuple[Wide, Wide]:
        # As for exp0: along y the derivative is artanh' = 1/(1-s^2), across it artanh(s)/s.
        unit = direction(y.at)
        radial = dot(u, unit)
        dy = scale * project_off(u, unit, radial) + radial / y.gap * unit
        return dy, radial * length * artanh_bend(s, y.gap) / (2 * c)

    return scale * y.at, back


def project_ball(x: Array[F], curvature: float | Array[F], *, axis: int = -1, eps: float | None = None) -> Array[F]:
    """Move points beyond a radius slightly smaller than the ball's onto that radius.

    Parameters
    ----------
    x : array (..., n)
        Any vectors along ``axis``.
    curvature, axis
        As in :func:`mobius_add`.
    eps : float in [0, 1), optional
        Margin as a fraction of the radius; by default 4e-3 in float32 and 1e-5 in float64. With 0, only
        vectors outside the open ball move.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        As :func:`mobius_add`.
    ValueError
        If the curvature is not finite and > 0, or ``eps`` is out of range.

    Notes
    -----
    ``R x / |x|`` where ``|x| > R = (1 - eps)/sqrt(c)``, else ``x``. The pullback is the identity inside and
    on ``|x| = R``; beyond, it removes the radial part.

    References
    ----------
    Van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027.

    Examples
    --------
    >>> project_ball(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0, eps=0.5)
    array([[0.3, 0.4],
           [0.3, 0.4]])
    """
    return project_ball_vjp(x, curvature, axis=axis, eps=eps)[0]


def project_ball_vjp(
    x: Array[F], curvature: float | Array[F], *, axis: int = -1, eps: float | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`project_ball` and its pullback ``dy -> (dx, dcurvature)``.

    Parameters, errors and references are those of :func:`project_ball`.
    """
    frame = Frame(curvature, axis, True, x=x)
    if eps is not None:
        _checks.in_range(eps, "eps", 0.0, 1.0, closed="left")
    vector, factor = frame.arrow(x)
    y, back = clip(vector, frame, True, eps)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        dx, dc = back(frame.cotangent(dy))
        return frame.leave_cotangent(dx, factor), frame.leave_curvature(dc)

    return frame.leave_inside(y), pullback


def clip(x: Wide, frame: Frame, project: bool, margin: float | None = None) -> Inner:
    """Return the projection, inside the frame, and its pullback; the identity if ``project`` is false."""
    if not project:
        return x, lambda u: (u, np.zeros_like(u[..., :1]))
    margin = PROJECTION_MARGIN[frame.dtype] if margin is None else margin
    c, length = frame.curvature, norm(x)
    radius = (1 - margin) / np.sqrt(c)
    outside = length > radius
    if not outside.any():
        return clip(x, frame, False)
    unit = direction(x)

    def back(u: Wide) -> tuple[Wide, Wide]:
        # Outside, the length has no influence any more, and dR = -R dc/(2c) acts along the unit vector.
        radial = dot(u, unit)
        shrink = ratio(radius, np.where(outside, length, 0.0), 0.0)
        dx = np.where(outside, shrink * project_off(u, unit, radial), u)
        return dx, np.where(outside, -radius / (2 * c) * radial, 0.0)

    return np.where(outside, radius * unit, x), back


def mobius_scalar_mul(
    scale: float | Array[F],
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> Array[F]:
    """Multiply points by numbers: move along the geodesic from the origin to ``scale`` times the distance.

    Parameters
    ----------
    scale : float, 0-d array or array of the shape of ``x`` without ``axis``
        One number for all points, or one each.
    x : array (..., n)
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`mobius_add`.

    Returns
    -------
    array, shape and dtype of ``x``
        Rounded inward where it would fall on the boundary.

    Raises
    ------
    TypeError, ValueError
        As :func:`mobius_add`; also if ``scale`` has another shape.

    Notes
    -----
    ``tanh(scale artanh(s))/s x`` with ``s = sqrt(c)|x|``, which is ``exp0(scale log0(x))``.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, equation 5.

    Examples
    --------
    Doubling is adding a point to itself:

    >>> x = np.array([0.3, -0.4])
    >>> mobius_scalar_mul(2.0, x, 1.0), mobius_add(x, x, 1.0)
    (array([ 0.48, -0.64]), array([ 0.48, -0.64]))
    """
    return mobius_scalar_mul_vjp(scale, x, curvature, axis=axis, check=check)[0]


def mobius_scalar_mul_vjp(
    scale: float | Array[F],
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`mobius_scalar_mul` and its pullback ``dy -> (dscale, dx, dcurvature)``.

    Parameters, errors and references are those of :func:`mobius_scalar_mul`.
    """
    frame = Frame(curvature, axis, check, x=x)
    c, point = frame.curvature, frame.point(x, "x")
    factor, factor_dtype = _scale(scale, frame)
    length = norm(point.at)
    unit = direction(point.at)
    s = np.sqrt(c) * length
    reach = np.arcsinh(s / np.sqrt(point.gap))
    travelled = np.abs(factor) * reach
    stretch = ratio(np.sign(factor) * np.tanh(travelled), s, factor)

    def pullback(dy: Array[F]) -> tuple[Any, Array[F], Array[F]]:
        u = frame.cotangent(dy)
        radial = dot(u, unit)
        slope = sech_square(travelled)
        # Across x the map is a multiplication by tanh(scale artanh s)/s. Along x it is
        # tanh(scale artanh s)/sqrt(c), with derivative sech^2 (artanh(s) dscale + scale ds/(1-s^2)).
        dx = stretch * project_off(u, unit, radial) + factor * slope / point.gap * radial * unit
        dscale = radial * slope * reach / np.sqrt(c)
        bend = scaled_bend(factor, travelled, s, point.gap)
        dscale = dscale[..., 0].astype(factor_dtype) if np.ndim(scale) else dscale.sum().astype(factor_dtype)
        dc = frame.leave_curvature(radial * length * bend / (2 * c))
        return np.asarray(dscale), frame.leave_cotangent(dx), dc

    return frame.leave_inside(stretch * point.at), pullback


def scaled_bend(factor: Wide, travelled: Wide, s: Wide, gap_s: Wide) -> Wide:
    """Return s d/ds (tanh(factor artanh s)/s), given ``travelled = |factor| artanh(s)`` and ``gap_s = 1 - s^2``.

    It is factor sech^2/(1-s^2) - tanh/s. Near the origin both are close to the factor, and what each lacks is
    known better than their difference.
    """
    small = factor * (tanh_bend(travelled) / gap_s + tanh_ratio(travelled) * artanh_bend(s, gap_s))
    large = factor * sech_square(travelled) / gap_s - ratio(np.sign(factor) * np.tanh(travelled), s, 0.0)
    return np.where(s < DIRECT_BEND, small, large)


def _scale(scale: Any, frame: Frame) -> tuple[Wide, Any]:
    """Return the scale with a last axis of size 1, and the dtype of its cotangent."""
    array = np.asarray(scale)
    if array.dtype.kind not in "fiu":
        _checks.fail_type("scale", "numbers", f"dtype {array.dtype}")
    if array.ndim:
        _checks.shape(array, "scale", frame.shape[: frame.axis] + frame.shape[frame.axis + 1 :])
        _checks.same_dtype("x", np.empty(0, frame.dtype), scale=array)
    is_array = isinstance(scale, (np.ndarray, np.generic)) and array.dtype.kind == "f"
    return np.expand_dims(array.astype(np.float64), -1), array.dtype if is_array else frame.dtype


def mobius_matvec(
    matrix: Array[F],
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    project: bool = False,
) -> Array[F]:
    """Apply a linear map to points through the tangent space at the origin.

    Parameters
    ----------
    matrix : array (m, n)
    x : array (..., n)
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`mobius_add`.
    project : bool
        Whether the result is projected as by :func:`project_ball`.

    Returns
    -------
    array (..., m), dtype of ``x``
        Rounded inward where it would fall on the boundary; the new vectors lie along the same axis.

    Raises
    ------
    TypeError, ValueError
        As :func:`mobius_add`; also if ``matrix`` is not of shape (m, n) with m > 0.

    Notes
    -----
    ``exp0(matrix @ log0(x))``. Orthogonal matrices act as they do in Euclidean space.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, equation 13.

    Examples
    --------
    >>> turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> mobius_matvec(turn, np.array([0.3, 0.4]), 1.0)
    array([-0.4,  0.3])
    """
    return mobius_matvec_vjp(matrix, x, curvature, axis=axis, check=check, project=project)[0]


def mobius_matvec_vjp(
    matrix: Array[F],
    x: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    project: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`mobius_matvec` and its pullback ``dy -> (dmatrix, dx, dcurvature)``.

    Parameters, errors and references are those of :func:`mobius_matvec`.
    """
    frame = Frame(curvature, axis, check, x=x)
    weights: AnyArray = _checks.float_array(matrix, "matrix", ndim=2)
    _checks.same_dtype("x", np.empty(0, frame.dtype), matrix=weights)
    size = frame.shape[frame.axis]
    _checks.shape(weights, "matrix", (weights.shape[0], size))
    _checks.not_empty(weights, "matrix", (0,))
    wide = weights.astype(np.float64)
    tangent, back_log = contract(frame.point(x, "x"), frame.curvature)
    y, back_exp = expand(tangent @ wide.T, frame.curvature)
    y, back_projection = clip(y, frame, project)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        u, dc_projection = back_projection(frame.cotangent(dy, len(wide)))
        u, dc_exp = back_exp(u)
        dx, dc_log = back_log(u @ wide)
        dmatrix = u.reshape(-1, len(wide)).T @ tangent.reshape(-1, size)
        dc = frame.leave_curvature(dc_projection + dc_exp + dc_log)
        return dmatrix.astype(frame.dtype), frame.leave_cotangent(dx), dc

    return frame.leave_inside(y), pullback
