"""Geodesics of the Poincaré ball: distance, exponential and logarithmic map, gyration, parallel transport.

    d(x, y) = 2/sqrt(c) arsinh sqrt(c |x - y|^2 / (gap_x gap_y))                 gap_x = 1 - c|x|^2

The logarithm, the distance and its gradient are one computation: a length and a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refnorm._typing import Array, F, Method, Pullback
from refnorm.poincare._ball import clip, translate, translate_pullback
from refnorm.poincare._frame import Frame, Point
from refnorm.poincare._numerics import (
    SATURATED,
    Wide,
    direction,
    dot,
    norm,
    project_off,
    ratio,
    sech_square,
    tanh_bend,
    tanh_excess,
)

METHOD = Method(
    title="Geodesics of the Poincaré ball",
    authors="Ganea, Bécigneul, Hofmann",
    year=2018,
    arxiv="1805.09112",
    functions=("expmap", "logmap", "dist", "dist_sq", "gyration", "transport"),
    chapter="poincare/geodesics",
    paper=False,
)

OUTER = 0.5
"""From this relative radius on, a radius is handled through its distance to the boundary."""


def expmap(
    x: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    project: bool = True,
) -> Array[F]:
    """Follow the geodesic that starts at ``x`` with velocity ``v`` for unit time.

    Parameters
    ----------
    x : array (..., n)
        Points with ``curvature * |x|^2 < 1``, vectors along ``axis``.
    v : array of the shape of ``x``
        Tangent vectors at ``x``, in coordinates of the ball, of any length.
    curvature : float or 0-d array > 0
        Minus the sectional curvature; the ball's radius is ``curvature ** -0.5``.
    axis : int
        Axis of the vectors.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its row is meaningless.
    project : bool
        Whether the result is projected to a ball smaller by a margin (see ``project_ball``). Without it,
        results are rounded inward where they would fall on the boundary.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the dtypes differ.
    ValueError
        If shapes differ, the curvature is not finite and > 0, or a point is outside (the message gives
        the largest ``curvature * |x|^2``).

    Notes
    -----
    ``x (+) tanh(t)/sqrt(c) v/|v|`` with ``t = sqrt(c)|v|/gap_x``. The result is exact for a point and a
    velocity that differ from the given ones by a few units roundoff. Near the boundary that is a real
    displacement: a turn of the velocity by u moves a far end point by up to ``u / gap_x``. float32
    arguments are computed in float64, where this is below float32's own rounding.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, lemma 2.

    Examples
    --------
    >>> expmap(np.array([0.5, 0.0]), np.array([0.0, 0.75]), 1.0).round(6)
    array([0.689964, 0.498858])
    """
    return expmap_vjp(x, v, curvature, axis=axis, check=check, project=project)[0]


def expmap_vjp(
    x: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`expmap` and its pullback ``dy -> (dx, dv, dcurvature)``.

    Parameters, errors and references are those of :func:`expmap`.
    """
    frame = Frame(curvature, axis, check, x=x, v=v)
    velocity, factor = frame.arrow(v)
    y, back = follow(frame.point(x, "x"), velocity, frame.curvature)
    clipped, back_projection = clip(y, frame, project)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        u, dc_projection = back_projection(frame.cotangent(dy))
        dx, dv, dc = back(u)
        return frame.leave_cotangent(dx), frame.leave_cotangent(dv, factor), frame.leave_curvature(dc + dc_projection)

    return frame.leave_inside(clipped), pullback


def follow(start: Point, velocity: Wide, c: float) -> tuple[Wide, Pullback]:
    """Return the exponential map, inside the frame, and its pullback to start, velocity and the curvature's terms."""
    root = np.sqrt(c)
    length = norm(velocity)
    unit = direction(velocity)
    with np.errstate(over="ignore"):
        t = np.minimum(root * length / start.gap, SATURATED)
    reach = np.tanh(t)
    step = Point(reach / root * unit, reach * reach / c, sech_square(t))
    total, spread = _arrival(start, unit, t, reach, root)
    denominator = start.gap * step.gap + spread
    y = translate(start, total, spread, denominator)

    def back(u: Wide) -> tuple[Wide, Wide, Wide]:
        dx, dstep, dc = translate_pullback(u, start, step, total, spread, denominator, y, c)
        # step = tanh(t)/sqrt(c) unit: across v it turns, along v it grows with
        # dt = t (<v,dv>/|v|^2 + dc/(2c) - dgap_x/gap_x),   dgap_x = -2c<x,dx> - |x|^2 dc.
        radial = dot(dstep, unit)
        turning = ratio(reach, root * length, 1 / start.gap)
        dv = turning * project_off(dstep, unit, radial) + step.gap / start.gap * radial * unit
        growth = radial * t * step.gap / (root * start.gap)
        dx = dx + 2 * c * growth * start.at
        return dx, dv, dc + growth * start.square + radial * t * tanh_bend(t) / (2 * c * root)

    return y, back


def _arrival(start: Point, unit: Wide, t: Wide, reach: Wide, root: float) -> tuple[Wide, Wide]:
    """Return ``x + unit tanh(t) / root`` and ``c |...|^2`` without losing the boundary.

    A geodesic that dives through the ball ends nearly opposite to its start, where both vectors have
    length 1 - tiny and their sum is made of what a rounded radius has lost. So with r = sqrt(c)|x|, the
    radii are compared through their distances to 1, and the directions through h = sqrt(c) x + r unit:

        sqrt(c) x + tanh(t) unit = h + (tanh(t) - r) unit,      |...|^2 = (tanh(t) - r)^2 + tanh(t)|h|^2/r.

    The second expression is a sum of squares: it is 0 only where the point arrives at the origin's image,
    and there the other term of the denominator is not.
    """
    scaled = root * start.at
    radius = root * norm(start.at)
    decay = np.exp(-2 * t)
    beyond = np.where(
        np.minimum(radius, reach) < OUTER,
        reach - radius,
        start.gap / (1 + radius) - 2 * decay / (1 + decay),
    )
    diving = (dot(scaled, unit) < 0) & (radius >= OUTER)
    turn = scaled + radius * unit
    total = np.where(diving, turn + beyond * unit, scaled + reach * unit)
    spread = np.where(
        diving, beyond * beyond + reach * dot(turn, turn) / np.where(diving, radius, 1.0), dot(total, total)
    )
    return total / root, spread


@dataclass(frozen=True)
class Segment:
    """The geodesic from x to y: ``arsinh(sqrt P)``, its unit direction at x, and the sums it came from."""

    total: Wide
    spread: Wide
    denominator: Wide
    sinh: Wide
    half_length: Wide
    direction: Wide


def segment(x: Point, y: Point, c: float) -> Segment:
    """Compute the geodesic from x to y; the direction is 0 where they coincide.

    With w = y - x, S = c|w|^2 and D = gap_x gap_y + S, the point (-x) (+) y is (gap_x w - S x)/D, and its
    length is |w|/sqrt(D).
    """
    total = y.at - x.at
    length = norm(total)
    spread = c * length * length
    denominator = x.gap * y.gap + spread
    sinh = np.sqrt(c) * length / np.sqrt(x.gap * y.gap)
    unit = (x.gap * direction(total) - c * length * x.at) / np.sqrt(denominator)
    return Segment(total, spread, denominator, sinh, np.arcsinh(sinh), np.where(length == 0, 0.0, unit))


def logmap(x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True) -> Array[F]:
    """Return the velocity at ``x`` of the geodesic that reaches ``y`` after unit time.

    Parameters
    ----------
    x, y : arrays of one shape
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`expmap`.

    Returns
    -------
    array, shape and dtype of ``x``
        Tangent vectors at ``x``.

    Raises
    ------
    TypeError, ValueError
        As :func:`expmap`.

    Notes
    -----
    ``gap_x artanh(s)/s z`` with ``z = (-x) (+) y`` and ``s = sqrt(c)|z|``, computed as a length times a unit
    vector. The error, as a vector, is about (n + 20) units roundoff of the result's length, for any two
    points of the ball, nearly equal and nearly infinite ones included.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, lemma 2.

    Examples
    --------
    >>> logmap(np.array([0.5, 0.0]), np.array([0.0, 0.5]), 1.0).round(6)
    array([-0.540446,  0.324267])
    """
    return logmap_vjp(x, y, curvature, axis=axis, check=check)[0]


def logmap_vjp(
    x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`logmap` and its pullback ``dv -> (dx, dy, dcurvature)``.

    Parameters, errors and references are those of :func:`logmap`.
    """
    frame = Frame(curvature, axis, check, x=x, y=y)
    v, back = aim(frame.point(x, "x"), frame.point(y, "y"), frame.curvature)

    def pullback(dv: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        dx, dy, dc = back(frame.cotangent(dv))
        return frame.leave_cotangent(dx), frame.leave_cotangent(dy), frame.leave_curvature(dc)

    return frame.leave(v), pullback


def aim(start: Point, end: Point, c: float) -> tuple[Wide, Pullback]:
    """Return the logarithmic map, inside the frame, and its pullback to start, end and the curvature's terms."""
    root = np.sqrt(c)
    way = segment(start, end, c)
    v = start.gap * way.half_length / root * way.direction

    def back(g: Wide) -> tuple[Wide, Wide, Wide]:
        radial = dot(g, way.direction)
        across = project_off(g, way.direction, radial)
        # Length, v = gap_x A/sqrt(c) e: dA = -sqrt(c) (<e,dx>/gap_x + <e',dy>/gap_y) by the first variation.
        reverse = segment(end, start, c)
        a = way.half_length
        # Direction, e = N/|N| with N = gap_x w - S x: only the part of the cotangent across e counts,
        # <across,de> = <across,dN>/|N|, and <across,N> = 0 makes gap_x <across,w> = S <across,x>.
        across_x = dot(across, start.at)
        heading = direction(way.total)
        tilt = _tilt(across, across_x, heading, start, way, c)
        pace = start.gap * ratio(a, way.sinh, 1.0) / np.sqrt(start.gap * end.gap * way.denominator)
        dx = (
            2 * root * a * (across_x * way.direction - radial * start.at)
            - radial * way.direction
            - pace * (start.gap + way.spread) * across
        )
        dy = start.gap * pace * (across - 2 * dot(across, heading) * heading)
        dy = dy - start.gap / end.gap * radial * reverse.direction
        # The length's part, gap_x dA/dc - (|x|^2 + gap_x/(2c)) A with dA/dc as for the distance. For near
        # points the terms of first order cancel: gap_x |y|^2 - gap_y |x|^2 = |y|^2 - |x|^2 = <y - x, y + x>.
        # Far apart at the boundary that is better known as a difference of gaps.
        growth = dot(way.total, start.at + end.at)
        growth = np.where(root * norm(way.total) < start.gap, growth, (start.gap - end.gap) / c)
        outward = growth / (2 * end.gap)
        dc = radial * (tanh_excess(a) * (2 - start.gap) / (2 * c) + np.tanh(a) * outward)
        return dx, dy, (dc - start.gap * a / np.sqrt(way.denominator) * tilt / c) / root

    return v, back


def _tilt(across: Wide, across_x: Wide, heading: Wide, x: Point, way: Segment, c: float) -> Wide:
    """Return the inner product of ``across`` with the straight direction from x to y.

    The geodesic's direction differs from the straight one by little where the distance is small against
    the gap; there the product follows from gap_x <across,w> = S <across,x>, else it is taken directly.
    """
    bend = np.sqrt(c) * norm(way.total) / x.gap
    return np.where(bend < 1, np.sqrt(c) * bend * across_x, dot(across, heading))


def dist(x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True) -> Array[F]:
    """Return the hyperbolic distance.

    Parameters
    ----------
    x, y : arrays of one shape
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`expmap`.

    Returns
    -------
    array, shape of ``x`` without ``axis``

    Raises
    ------
    TypeError, ValueError
        As :func:`expmap`.

    Notes
    -----
    ``2/sqrt(c) arsinh sqrt(P)`` with ``P = c|x-y|^2 / (gap_x gap_y)``. Every step is well conditioned, so the
    relative error is at most about (n + 12) units roundoff for any two points of the ball; nearly equal
    points keep all their digits. The distance is not differentiable at ``x = y``; the pullback gives 0 there.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, section 2.3.

    Examples
    --------
    >>> dist(np.zeros((2, 1)), np.array([[0.5], [0.75]]), 1.0).round(6)
    array([1.098612, 1.94591 ])
    """
    return dist_vjp(x, y, curvature, axis=axis, check=check)[0]


def dist_vjp(
    x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`dist` and its pullback ``dd -> (dx, dy, dcurvature)``.

    Parameters, errors and references are those of :func:`dist`.
    """
    frame = Frame(curvature, axis, check, x=x, y=y)
    c, root = frame.curvature, np.sqrt(frame.curvature)
    start, end = frame.point(x, "x"), frame.point(y, "y")
    way = segment(start, end, c)

    def pullback(dd: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # First variation of length: moving an end point along the geodesic, away from the other end,
        # lengthens it at the rate of the conformal factor; moving it across does not.
        g = frame.scalar_cotangent(dd, 1)
        back = segment(end, start, c)
        dx = frame.leave_cotangent(-2 * g / start.gap * way.direction)
        dy = frame.leave_cotangent(-2 * g / end.gap * back.direction)
        return dx, dy, frame.leave_curvature(g / (c * root) * _curvature_slope(start, end, way, c))

    return frame.leave_scalar(2 / root * way.half_length, 1), pullback


def _curvature_slope(x: Point, y: Point, way: Segment, c: float) -> Wide:
    """Return ``c^(3/2) d(dist)/dc``.

    With A = arsinh sqrt(P): dP/dc = P (1/c + |x|^2/gap_x + |y|^2/gap_y), and dA/dP = tanh(A) / (2P), so that
    c^(3/2) d(2A/sqrt(c))/dc = tanh(A) (1 + c|x|^2/gap_x + c|y|^2/gap_y) - A, where tanh(A) - A is taken as one.
    """
    a = way.half_length
    growth = c * (x.square / x.gap + y.square / y.gap)
    return tanh_excess(a) + np.tanh(a) * growth


def dist_sq(x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True) -> Array[F]:
    """Return the squared hyperbolic distance, which is smooth everywhere.

    Parameters
    ----------
    x, y : arrays of one shape
        Points of the ball, vectors along ``axis``.
    curvature, axis, check
        As in :func:`expmap`.

    Returns
    -------
    array, shape of ``x`` without ``axis``

    Raises
    ------
    TypeError, ValueError
        As :func:`expmap`.

    Notes
    -----
    The square of :func:`dist`. Its gradient at ``x`` is ``-2 factor_x^2 logmap(x, y)``, with the conformal
    factor ``factor_x = 2/gap_x``.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, section 2.3.

    Examples
    --------
    >>> dist_sq(np.array([[0.5, 0.0]]), np.array([[0.0, 0.5]]), 1.0).round(6)
    array([2.824752])
    """
    return dist_sq_vjp(x, y, curvature, axis=axis, check=check)[0]


def dist_sq_vjp(
    x: Array[F], y: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`dist_sq` and its pullback ``dd -> (dx, dy, dcurvature)``.

    Parameters, errors and references are those of :func:`dist_sq`.
    """
    frame = Frame(curvature, axis, check, x=x, y=y)
    c, root = frame.curvature, np.sqrt(frame.curvature)
    start, end = frame.point(x, "x"), frame.point(y, "y")
    way = segment(start, end, c)
    distance = 2 / root * way.half_length

    def pullback(dd: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # d(d^2) = 2 d dd, and d times the unit direction is the logarithm up to the conformal factor.
        g = frame.scalar_cotangent(dd, 2)
        back = segment(end, start, c)
        dx = frame.leave_cotangent(-4 * g * distance / start.gap * way.direction)
        dy = frame.leave_cotangent(-4 * g * distance / end.gap * back.direction)
        dc = 2 * g * distance / (c * root) * _curvature_slope(start, end, way, c)
        return dx, dy, frame.leave_curvature(dc)

    return frame.leave_scalar(distance * distance, 2), pullback


def gyration(
    u: Array[F],
    v: Array[F],
    w: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> Array[F]:
    """Rotate vectors by what Möbius addition lacks to be associative.

    Parameters
    ----------
    u, v : arrays of one shape
        Points of the ball, vectors along ``axis``.
    w : array of the shape of ``u``
        Any vectors: the rotation is linear in ``w``, so they need not lie in the ball.
    curvature, axis, check
        As in :func:`expmap`; the check is about ``u`` and ``v``.

    Returns
    -------
    array, shape and dtype of ``u``
        ``gyr[u, v] w``, of the length of ``w``.

    Raises
    ------
    TypeError, ValueError
        As :func:`expmap`.

    Notes
    -----
    ``-(u (+) v) (+) (u (+) (v (+) w))`` for small ``w``, computed in closed form: with ``s = u + v``,
    ``S = c|s|^2`` and ``D = gap_u gap_v + S``,
    ``w + 2c/D [(gap_v <w,s> + S <w,v>) u - (<w,s> - gap_u <w,v>) s]``.

    References
    ----------
    Ungar (2008), A Gyrovector Space Approach to Hyperbolic Geometry, equation 3.148.

    Examples
    --------
    >>> u, v, w = np.array([0.5, 0.0]), np.array([0.0, 0.5]), np.array([1.0, 0.0])
    >>> (17 * gyration(u, v, w, 1.0)).round(12)
    array([15., -8.])
    """
    return gyration_vjp(u, v, w, curvature, axis=axis, check=check)[0]


def gyration_vjp(
    u: Array[F],
    v: Array[F],
    w: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`gyration` and its pullback ``dy -> (du, dv, dw, dcurvature)``.

    Parameters, errors and references are those of :func:`gyration`.
    """
    frame = Frame(curvature, axis, check, u=u, v=v, w=w)
    c = frame.curvature
    first, second, vector = frame.point(u, "u"), frame.point(v, "v"), frame.vector(w)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        g = frame.cotangent(dy)
        du, dv, dc = rotate_pullback(g, first, second, vector, c)
        # The inverse of a rotation is its transpose, and gyr[v, u] is the inverse of gyr[u, v].
        dw = rotate(second, first, g, c)
        return *(frame.leave_cotangent(d) for d in (du, dv, dw)), frame.leave_curvature(dc)

    return frame.leave(rotate(first, second, vector, c)), pullback


def rotate(u: Point, v: Point, w: Wide, c: float) -> Wide:
    """Return gyr[u, v] w, inside the frame."""
    total = u.at + v.at
    spread = c * dot(total, total)
    denominator = u.gap * v.gap + spread
    w_total, w_v = dot(w, total), dot(w, v.at)
    along_u = (v.gap * w_total + spread * w_v) / denominator
    along_total = (w_total - u.gap * w_v) / denominator
    return w + 2 * c * (along_u * u.at - along_total * total)


def rotate_pullback(g: Wide, u: Point, v: Point, w: Wide, c: float) -> tuple[Wide, Wide, Wide]:
    """Pull ``g`` back through :func:`rotate` to u and v, and return the terms of the curvature's cotangent.

    <g, gyr w> = <g,w> + 2c E with D E = T <g,u> - K <g,s>, T = gap_v <w,s> + S <w,v>,
    K = <w,s> - gap_u <w,v>. Each bar below is the derivative of E by the named number.
    """
    total = u.at + v.at
    square = dot(total, total)
    spread = c * square
    denominator = u.gap * v.gap + spread
    w_total, w_v, g_total, g_u = dot(w, total), dot(w, v.at), dot(g, total), dot(g, u.at)
    along_u = (v.gap * w_total + spread * w_v) / denominator
    along_total = (w_total - u.gap * w_v) / denominator
    e = along_u * g_u - along_total * g_total
    bar_t, bar_k, bar_denominator = g_u / denominator, -g_total / denominator, -e / denominator
    bar_gap_u = bar_denominator * v.gap - bar_k * w_v
    bar_gap_v = bar_denominator * u.gap + bar_t * w_total
    bar_spread = bar_denominator + bar_t * w_v
    bar_w_total = bar_k + bar_t * v.gap
    bar_w_v = bar_t * spread - bar_k * u.gap
    bar_total = bar_w_total * w - along_total * g + 2 * c * bar_spread * total
    du = bar_total + along_u * g - 2 * c * bar_gap_u * u.at
    dv = bar_total + bar_w_v * w - 2 * c * bar_gap_v * v.at
    dc = 2 * e + 2 * c * (bar_spread * square - bar_gap_u * u.square - bar_gap_v * v.square)
    return 2 * c * du, 2 * c * dv, dc


def transport(
    x: Array[F],
    y: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> Array[F]:
    """Move tangent vectors from ``x`` to ``y`` along the geodesic, without turning them.

    Parameters
    ----------
    x, y : arrays of one shape
        Points of the ball, vectors along ``axis``.
    v : array of the shape of ``x``
        Tangent vectors at ``x``.
    curvature, axis, check
        As in :func:`expmap`; the check is about ``x`` and ``y``.

    Returns
    -------
    array, shape and dtype of ``x``
        Tangent vectors at ``y`` of the same hyperbolic length.

    Raises
    ------
    TypeError, ValueError
        As :func:`expmap`.

    Notes
    -----
    ``gap_y / gap_x gyr[y, -x] v``.

    References
    ----------
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, theorem 4;
    Shimizu, Mukuta, Harada (2021), arXiv 2006.08210, section 3.1.

    Examples
    --------
    From the origin, transport only rescales:

    >>> transport(np.zeros(2), np.array([0.6, 0.0]), np.array([1.0, 1.0]), 1.0)
    array([0.64, 0.64])
    """
    return transport_vjp(x, y, v, curvature, axis=axis, check=check)[0]


def transport_vjp(
    x: Array[F],
    y: Array[F],
    v: Array[F],
    curvature: float | Array[F],
    *,
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`transport` and its pullback ``dw -> (dx, dy, dv, dcurvature)``.

    Parameters, errors and references are those of :func:`transport`.
    """
    frame = Frame(curvature, axis, check, x=x, y=y, v=v)
    turned, back = carry(frame.point(x, "x"), frame.point(y, "y"), frame.vector(v), frame.curvature)

    def pullback(dw: Array[F]) -> tuple[Array[F], ...]:
        *vectors, dc = back(frame.cotangent(dw))
        return *(frame.leave_cotangent(vector) for vector in vectors), frame.leave_curvature(dc)

    return frame.leave(turned), pullback


def carry(start: Point, end: Point, vector: Wide, c: float) -> tuple[Wide, Pullback]:
    """Return parallel transport, inside the frame, and its pullback to start, end, vector and curvature."""
    shrink = end.gap / start.gap
    turned = rotate(end, start.opposite(), vector, c)

    def back(g: Wide) -> tuple[Wide, Wide, Wide, Wide]:
        dy, minus_dx, dc = rotate_pullback(shrink * g, end, start.opposite(), vector, c)
        dv = rotate(start.opposite(), end, shrink * g, c)
        # shrink = gap_y / gap_x, and dgap_x = -2c<x,dx> - |x|^2 dc.
        bar_gap_y = dot(g, turned) / start.gap
        bar_gap_x = -shrink * bar_gap_y
        dx = -minus_dx - 2 * c * bar_gap_x * start.at
        dy = dy - 2 * c * bar_gap_y * end.at
        return dx, dy, dv, dc - bar_gap_x * start.square - bar_gap_y * end.square

    return shrink * turned, back
