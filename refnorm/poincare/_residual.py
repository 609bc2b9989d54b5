"""What a residual network needs besides layers: ReLU, the residual sum, average pooling.

relu(x)        = exp0(max(log0(x), 0))
residual_add   = f (+) skip
avg_pool2d(x)  = exp0(mean of log0(x) over a window)
"""

from __future__ import annotations

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F, Method, Pullback
from refnorm.nn._conv2d import add_windows, two_whole, windows
from refnorm.poincare._ball import (
    Inner,
    clip,
    contract,
    expand,
    scaled_bend,
    translate,
    translate_pullback,
)
from refnorm.poincare._frame import Frame, Point
from refnorm.poincare._numerics import (
    Wide,
    artanh_ratio,
    direction,
    dot,
    norm,
    project_off,
    sech_square,
    tanh_ratio,
)

METHOD = Method(
    title="Poincaré ReLU, residual sum and average pooling",
    authors="van Spengler, Berkhout, Mettes",
    year=2023,
    arxiv="2303.14027",
    functions=("relu", "residual_add", "avg_pool2d"),
    chapter="poincare/residual",
    paper=False,
)

ORDERS = ("fr", "rf")


def relu(
    x: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True, project: bool = True
) -> Array[F]:
    """Set the negative coordinates of the points' logarithms to 0.

    Parameters
    ----------
    x : array (..., n)
        Points with ``curvature * |x|^2 < 1``, vectors along ``axis``.
    curvature : float or 0-d array > 0
        Minus the sectional curvature; the ball's radius is ``curvature ** -0.5``.
    axis : int
        Axis of the vectors.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its row is meaningless.
    project : bool
        Whether the result is projected to a ball smaller by a margin (see ``project_ball``).

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64.
    ValueError
        If the curvature is not finite and > 0, or a point is outside (the message gives the largest
        ``curvature * |x|^2``).

    Notes
    -----
    ``exp0(max(log0(x), 0))``. Points whose coordinates all are positive stay where they are; nobody moves
    away from the origin. At 0 the derivative of the maximum is taken as 0.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.3.

    Examples
    --------
    >>> relu(np.array([[0.3, 0.4], [0.0, -0.5]]), 1.0).round(12)
    array([[0.3, 0.4],
           [0. , 0. ]])
    """
    return relu_vjp(x, curvature, axis=axis, check=check, project=project)[0]


def relu_vjp(
    x: Array[F], curvature: float | Array[F], *, axis: int = -1, check: bool = True, project: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`relu` and its pullback ``dy -> (dx, dcurvature)``.

    Parameters, errors and references are those of :func:`relu`.
    """
    frame = Frame(curvature, axis, check, x=x)
    y, back = rectify(frame.point(x, "x"), frame.curvature)
    y, back_projection = clip(y, frame, project)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        u, dc_projection = back_projection(frame.cotangent(dy))
        dx, dc = back(u)
        return frame.leave_cotangent(dx), frame.leave_curvature(dc_projection + dc)

    return frame.leave_inside(y), pullback


def rectify(x: Point, c: float) -> Inner:
    """Return ReLU, inside the frame, and its pullback.

    With e = x/|x|, the part e_+ of its positive coordinates, share = |e_+| and A = artanh(sqrt(c)|x|), the result
    is tanh(share A)/sqrt(c) in the direction of e_+. Length and direction of x are pulled back one by one: near
    the boundary the length's part is what is left when everything across it has cancelled.
    """
    length, unit = norm(x.at), direction(x.at)
    s = np.sqrt(c) * length
    reach = artanh_ratio(s, x.gap)
    positive = np.maximum(unit, 0.0)
    share, heading = norm(positive), direction(positive)
    travelled = share * reach * s

    def back(u: Wide) -> tuple[Wide, Wide]:
        radial = dot(u, heading)
        slope = sech_square(travelled)
        # e turns by de, of which e_+ sees the positive coordinates: its direction turns by the part across it,
        # its length changes by the part along it, d share. Only de across e exists.
        turn = tanh_ratio(travelled) * reach * np.where(unit > 0, project_off(u, heading, radial), 0.0)
        across = turn + slope * reach * radial * (heading - share * unit)
        dx = across + slope * share * radial / x.gap * unit
        return dx, radial * length * scaled_bend(share, travelled, s, x.gap) / (2 * c)

    return np.tanh(travelled) / np.sqrt(c) * heading, back


def residual_add(
    f: Array[F],
    skip: Array[F],
    curvature: float | Array[F],
    *,
    order: str = "fr",
    axis: int = -1,
    check: bool = True,
) -> Array[F]:
    """Add a branch's output and its input by Möbius addition.

    Parameters
    ----------
    f, skip : arrays of one shape
        Points of the ball, vectors along ``axis``: what the branch computed, and what went past it.
    curvature, axis, check
        As in :func:`relu`.
    order : ``"fr"`` or ``"rf"``
        ``f (+) skip``, or ``skip (+) f``. The two differ by a rotation about the origin.

    Returns
    -------
    array, shape and dtype of ``f``
        Strictly inside the ball, but not projected.

    Raises
    ------
    TypeError, ValueError
        As :func:`relu`; also if shapes or dtypes differ, or the order is another one.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.3.

    Examples
    --------
    >>> f, skip = np.array([0.5, 0.0]), np.array([0.0, 0.5])
    >>> 17 * residual_add(f, skip, 1.0), 17 * residual_add(f, skip, 1.0, order="rf")
    (array([10.,  6.]), array([ 6., 10.]))
    """
    return residual_add_vjp(f, skip, curvature, order=order, axis=axis, check=check)[0]


def residual_add_vjp(
    f: Array[F],
    skip: Array[F],
    curvature: float | Array[F],
    *,
    order: str = "fr",
    axis: int = -1,
    check: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`residual_add` and its pullback ``dy -> (df, dskip, dcurvature)``.

    Parameters, errors and references are those of :func:`residual_add`.
    """
    _checks.one_of(order, "order", ORDERS)
    frame = Frame(curvature, axis, check, f=f, skip=skip)
    c = frame.curvature
    points = frame.point(f, "f"), frame.point(skip, "skip")
    left, right = points if order == "fr" else points[::-1]
    total = left.at + right.at
    spread = c * dot(total, total)
    denominator = left.gap * right.gap + spread
    z = translate(left, total, spread, denominator)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        *pair, dc = translate_pullback(frame.cotangent(dy), left, right, total, spread, denominator, z, c)
        df, dskip = pair if order == "fr" else pair[::-1]
        return frame.leave_cotangent(df), frame.leave_cotangent(dskip), frame.leave_curvature(dc)

    return frame.leave_inside(z), pullback


def avg_pool2d(
    x: Array[F],
    curvature: float | Array[F],
    *,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    check: bool = True,
    project: bool = True,
) -> Array[F]:
    """Average the logarithms of the pixels of each window.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images whose pixels are points of the ball, vectors along axis 1.
    curvature, check, project
        As in :func:`relu`.
    size : int or (int, int), >= 1
        Rows and columns of a window.
    stride : int or (int, int), >= 1, optional
        Pixels from one window to the next; ``size`` by default.

    Returns
    -------
    array (N, C, H', W'), dtype of ``x``
        ``H' = (H - size) // stride + 1``, likewise ``W'``.

    Raises
    ------
    TypeError, ValueError
        As :func:`relu`; also if an option is no integer >= 1 or the image is smaller than the window.

    Notes
    -----
    ``exp0(mean(log0(x)))``, a mean that depends on where the origin is, unlike ``midpoint``.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.3.

    Examples
    --------
    On a diameter artanh is the coordinate that is averaged:

    >>> avg_pool2d(np.array([[[[0.6, 0.0]]]]), 1.0, size=(1, 2)).ravel().round(6)
    array([0.333333])
    """
    return avg_pool2d_vjp(x, curvature, size=size, stride=stride, check=check, project=project)[0]


def avg_pool2d_vjp(
    x: Array[F],
    curvature: float | Array[F],
    *,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`avg_pool2d` and its pullback ``dy -> (dx, dcurvature)``.

    Parameters, errors and references are those of :func:`avg_pool2d`.
    """
    x = _checks.float_array(x, "x", ndim=4)
    frame = Frame(curvature, 1, check, x=x)
    window = two_whole(size, "size", 1)
    step = window if stride is None else two_whole(stride, "stride", 1)
    tangent, back_log = contract(frame.point(x, "x"), frame.curvature)
    shape, area = x.shape, window[0] * window[1]
    view = windows(np.moveaxis(tangent, -1, 1), window, step)
    pooled, size_out = np.moveaxis(view.mean(axis=(4, 5)), 1, -1), view.shape
    y, back_exp = expand(pooled, frame.curvature)
    y, back_projection = clip(y, frame, project)
    result = frame.reshaped((*shape[:2], *size_out[2:4]), 1)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        u, dc_projection = back_projection(result.cotangent(dy))
        u, dc_exp = back_exp(u)
        # Every pixel of a window has the same share of its mean.
        share = np.broadcast_to(np.moveaxis(u, -1, 1)[..., None, None] / area, size_out)
        dx, dc_log = back_log(np.moveaxis(add_windows(share, shape, step), 1, -1))
        terms = dc_projection.sum() + dc_exp.sum() + dc_log.sum()
        return frame.leave_cotangent(dx), frame.leave_curvature(terms)

    return result.leave_inside(y), pullback
