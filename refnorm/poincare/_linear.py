"""Poincaré multinomial logistic regression and the Poincaré fully connected layer.

v_k = 2 |z_k| / sqrt(c) arsinh(p_k)          signed, scaled distance of x to the k-th hyperplane
y   = w / (1 + sqrt(1 + c|w|^2))             w_k = sinh(sqrt(c) v_k) / sqrt(c)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.poincare._ball import clip
from refnorm.poincare._frame import Frame, Point
from refnorm.poincare._numerics import Wide, cosh_excess, direction, dot, norm, ratio, tanh_excess

METHOD = Method(
    title="Poincaré fully connected layer",
    authors="Shimizu, Mukuta, Harada; van Spengler, Berkhout, Mettes",
    year=2021,
    arxiv="2006.08210",
    functions=("mlr", "fully_connected", "init_identity", "init_baseline"),
    chapter="poincare/linear",
    paper=False,
)

BIAS_LIMIT = 500.0
"""Largest ``2 sqrt(c) |bias|``. cosh(500) = 10^217 times the conformal factor and its square stay finite."""

SINH_LIMIT = 300.0
"""Beyond this argument sinh is continued as sinh(300) e^(a - 300), exact to 10^-260; its squares stay finite."""


def mlr(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
) -> Array[F]:
    """Return the signed distances of points to hyperplanes, scaled: logits of a hyperbolic classifier.

    Parameters
    ----------
    x : array (..., n)
        Points with ``curvature * |x|^2 < 1``.
    weight : array (n, m)
        Column k is normal to hyperplane k at its foot point; its length scales the distance.
    bias : array (m,)
        Where hyperplane k meets the ray along column k: half the hyperbolic distance from the origin.
    curvature : float or 0-d array > 0
        Minus the sectional curvature; the ball's radius is ``curvature ** -0.5``.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its row is meaningless.

    Returns
    -------
    array (..., m), dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape does not fit, the curvature is not finite and > 0, ``2 sqrt(curvature) |bias|``
        exceeds 500, or a point is outside (the message gives the largest ``curvature * |x|^2``).

    Notes
    -----
    ``p_k = (2 sqrt(c) <x, z_k>/|z_k| cosh(2 sqrt(c) bias_k) - (1 + c|x|^2) sinh(2 sqrt(c) bias_k)) / gap_x``
    with ``gap_x = 1 - c|x|^2``. A column of zeros gives the logit 0 and, by convention, the cotangent 0.
    As the curvature goes to 0, the logit goes to ``4 (<x, z_k> - |z_k| bias_k)``.

    References
    ----------
    Shimizu, Mukuta, Harada (2021), arXiv 2006.08210, equation 6;
    Ganea, Bécigneul, Hofmann (2018), arXiv 1805.09112, theorem 5.

    Examples
    --------
    >>> mlr(np.array([0.5, 0.0]), np.array([[1.0], [0.0]]), np.array([0.25]), 1.0).round(6)
    array([1.197225])
    """
    return mlr_vjp(x, weight, bias, curvature, check=check)[0]


def mlr_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`mlr` and its pullback ``dv -> (dx, dweight, dbias, dcurvature)``.

    Parameters, errors and references are those of :func:`mlr`.
    """
    frame, planes, point = _prepare(x, weight, bias, curvature, check)
    v, back = measure(point.at @ planes.unit.T, point.gap, planes, frame.curvature)

    def pullback(dv: Array[F]) -> tuple[AnyArray, ...]:
        return _leave(frame, planes, point, back(frame.cotangent(dv, planes.length.size)))

    return frame.leave(v), pullback


def fully_connected(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
    project: bool = True,
) -> Array[F]:
    """Map points to the point whose signed distances to the coordinate hyperplanes are the logits of ``mlr``.

    Parameters
    ----------
    x : array (..., n)
        Points with ``curvature * |x|^2 < 1``.
    weight : array (n, m)
        Column k belongs to output coordinate k; see :func:`mlr` and :func:`init_identity`.
    bias : array (m,)
        See :func:`mlr`.
    curvature, check
        As in :func:`mlr`; input and output ball have the same curvature.
    project : bool
        Whether the result is projected to a ball smaller by a margin (see ``project_ball``). Without it,
        results are rounded inward where they would fall on the boundary.

    Returns
    -------
    array (..., m), dtype of ``x``
        Points of the ball.

    Raises
    ------
    TypeError, ValueError
        As :func:`mlr`.

    Notes
    -----
    ``w_k = sinh(sqrt(c) mlr_k)/sqrt(c)`` and ``y = w / (1 + sqrt(1 + c|w|^2))``. With ``weight = I/2`` and
    ``bias = 0`` this is the identity. Logits of any size are allowed: sinh is carried with a common factor
    ``e^-shift`` of the row, which cancels in ``y``.

    References
    ----------
    Shimizu, Mukuta, Harada (2021), arXiv 2006.08210, section 3.2;
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.1.

    Examples
    --------
    >>> fully_connected(np.array([0.5, 0.0]), np.eye(2), np.array([0.25, 0.0]), 1.0).round(6)
    array([0.536061, 0.      ])
    """
    return fully_connected_vjp(x, weight, bias, curvature, check=check, project=project)[0]


def fully_connected_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`fully_connected` and its pullback ``dy -> (dx, dweight, dbias, dcurvature)``.

    Parameters, errors and references are those of :func:`fully_connected`.
    """
    frame, planes, point = _prepare(x, weight, bias, curvature, check)
    y, back = connect(point.at @ planes.unit.T, point.gap, planes, frame.curvature)
    y, back_projection = clip(y, frame, project)

    def pullback(dy: Array[F]) -> tuple[AnyArray, ...]:
        g, dc = back_projection(frame.cotangent(dy, planes.length.size))
        return _leave(frame, planes, point, back(g), dc)

    return frame.leave_inside(y), pullback


def _across(g: Wide, heading: Wide, radial: Wide, a: Wide) -> Wide:
    """Return the part of ``g`` across ``heading`` with the entry of the largest ``a`` accurate on its own.

    Near the boundary sinh lets one entry dwarf all others. Its part across is then tiny, g_k - h_k <g,h>
    is rounding noise, and the sum over j of h_j (h_j g_k - h_k g_j), the same number, is not.
    """
    across = g - radial * heading
    k = np.abs(a).argmax(axis=-1)[..., None]
    g_k, h_k = np.take_along_axis(g, k, -1), np.take_along_axis(heading, k, -1)
    np.put_along_axis(across, k, dot(heading, heading * g_k - h_k * g), -1)
    return across


@dataclass(frozen=True)
class Planes:
    """The hyperplanes: lengths and unit vectors of the weight's columns, biases in units of the frame."""

    length: Wide
    unit: Wide
    bias: Wide


@dataclass(frozen=True)
class _Sides:
    """sinh of the distances, p = N/gap with N = 2 sqrt(c) <x,unit> cosh(b) - (1 + c|x|^2) sinh(b)."""

    inner: Wide
    gap: Wide
    sinh: Wide
    cosh_bias: Wide
    sinh_bias: Wide


@dataclass(frozen=True)
class PlaneCotangents:
    """Cotangents of the inner products, the gaps, the columns' lengths, the biases, and the curvature's terms."""

    inner: Wide
    gap: Wide
    length: Wide
    bias: Wide
    curvature: Wide


def _prepare(x: Any, weight: Any, bias: Any, curvature: Any, check: bool) -> tuple[Frame, Planes, Point]:
    frame = Frame(curvature, -1, check, x=x)
    return frame, planes_of(weight, bias, frame, frame.shape[-1]), frame.point(x, "x")


def planes_of(weight: Any, bias: Any, frame: Frame, features: int) -> Planes:
    """Check weight and bias of a layer on ``features`` coordinates and bring them inside the frame."""
    weight, bias = _checks.float_array(weight, "weight", ndim=2), _checks.float_array(bias, "bias")
    _checks.same_dtype("x", np.empty(0, frame.dtype), weight=weight, bias=bias)
    _checks.shape(weight, "weight", (features, weight.shape[1]))
    _checks.not_empty(weight, "weight", (1,))
    _checks.shape(bias, "bias", (weight.shape[1],))
    columns = weight.T.astype(np.float64)
    length = norm(columns)
    # Biases are lengths, weights are not.
    planes = Planes(length[:, 0], direction(columns), bias.astype(np.float64) * frame.unit)
    reach = 2 * np.sqrt(frame.curvature) * float(np.abs(planes.bias).max())
    if reach > BIAS_LIMIT:
        _checks.fail("bias", f"2 sqrt(curvature) |bias| <= {BIAS_LIMIT:g}", f"a largest value of {reach:g}")
    return planes


def measure(inner: Wide, gap: Wide, planes: Planes, c: float) -> tuple[Wide, Callable[[Wide], PlaneCotangents]]:
    """Return the logits from inner products <x, unit_k> and gaps, inside the frame, and their pullback."""
    root = np.sqrt(c)
    sides = _sides(inner, gap, planes, root)
    angle = np.arcsinh(sides.sinh)

    def back(g: Wide) -> PlaneCotangents:
        # v = 2|z|/sqrt(c) A: its own explicit 1/sqrt(c) cancels the leading part of dA/dsqrt(c), tanh(A)/sqrt(c).
        dangle = 2 * planes.length / root * g
        dlength = _sum_rows(2 / root * g * angle)
        droot = dot(dangle, tanh_excess(angle)) / root
        return _pull_sides(sides, planes, dangle, dlength, droot, root)

    return 2 * planes.length / root * angle, back


def connect(inner: Wide, gap: Wide, planes: Planes, c: float) -> tuple[Wide, Callable[[Wide], PlaneCotangents]]:
    """Return the layer's points from inner products <x, unit_k> and gaps, inside the frame, and their pullback."""
    root = np.sqrt(c)
    sides = _sides(inner, gap, planes, root)
    angle = np.arcsinh(sides.sinh)
    a = 2 * planes.length * angle
    held, excess, one = _hold(a)
    w = np.sign(a) * np.sinh(held) * excess
    root_term = np.sqrt(one * one + dot(w, w))

    def back(g: Wide) -> PlaneCotangents:
        # y = W/(sqrt(c)(1 + T)), T = sqrt(1 + |W|^2), dW = cosh(a) da. |y| grows by d|W|/(sqrt(c) T (1 + T)),
        # its direction turns by the part of dW across W over |W|.
        a = 2 * planes.length * angle
        held, excess, _ = _hold(a)
        heading = direction(w)
        radial = dot(g, heading)
        bracket = _across(g, heading, radial, a) + one / root_term * radial * heading
        outer = 1 / (root * (one + root_term))
        cosh = np.cosh(held) * excess
        da = outer * cosh * bracket
        # In sqrt(c): the explicit -<g,y>/sqrt(c) and the leading part sum(da a)/sqrt(c) of da/dsqrt(c)
        # nearly cancel for short y, where a cosh(a) - sinh(a) and a term of third order are left.
        together = np.where(np.abs(a) <= SINH_LIMIT, cosh_excess(np.sign(a) * held) * excess, a * cosh - w)
        short = dot(g, together) - radial * dot(w, w) / (one + root_term) / root_term * dot(heading, a * cosh)
        long = dot(bracket, a * cosh) - radial * norm(w)
        droot = outer / root * np.where(root_term > 2 * one, long, short)
        dangle = 2 * planes.length * da
        droot = droot + dot(dangle, tanh_excess(angle)) / root
        return _pull_sides(sides, planes, dangle, _sum_rows(2 * da * angle), droot, root)

    return w / (root * (one + root_term)), back


def _hold(a: Wide) -> tuple[Wide, Wide, Wide]:
    """Return |a| up to the limit of sinh, and e^-shift times what is left of e^|a| and times 1.

    The shift is what a row's largest entry has beyond the limit: 1 becomes ``one``, sinh(a) becomes
    sign(a) sinh(held) excess, and their ratios stay.
    """
    size = np.abs(a)
    held = np.minimum(size, SINH_LIMIT)
    shift = np.maximum(size.max(axis=-1, keepdims=True) - SINH_LIMIT, 0.0)
    return held, np.exp(size - held - shift), np.exp(-shift)


def _sides(inner: Wide, gap: Wide, planes: Planes, root: float) -> _Sides:
    angle = 2 * root * planes.bias
    cosh, sinh = np.cosh(angle), np.sinh(angle)
    # 1 + c|x|^2 is written 2 - gap: exact where it matters, as c|x|^2 nears 1.
    return _Sides(inner, gap, (2 * root * inner * cosh - (2 - gap) * sinh) / gap, cosh, sinh)


def _pull_sides(
    sides: _Sides, planes: Planes, dangle: Wide, dlength: Wide, droot: Wide, root: float
) -> PlaneCotangents:
    """Pull the cotangent of the angle A = arsinh(p) back.

    Of dA/dsqrt(c) the part tanh(A)/sqrt(c), from p being sqrt(c) times a function of c, is already in ``droot``.
    """
    # The square of p would leave the range for a bias beyond 177/sqrt(c).
    dtop = dangle / np.hypot(1.0, sides.sinh) / sides.gap
    dinner = dtop * 2 * root * sides.cosh_bias
    # p = N/gap, N = ... - (2 - gap) sinh(b).
    dgap = (dtop * (sides.sinh_bias - sides.sinh)).sum(axis=-1, keepdims=True)
    dbias = dtop * 2 * root * (2 * root * sides.inner * sides.sinh_bias - (2 - sides.gap) * sides.cosh_bias)
    # In sqrt(c), beyond p = sqrt(c) f: f = (2 <x,unit> cosh(b) - (1 + c|x|^2) sinh(b)/sqrt(c)) / gap with
    # b = 2 sqrt(c) bias; only cosh, sinh(b)/sqrt(c) and the two gaps vary.
    b = 2 * root * planes.bias
    varying = 4 * sides.inner * planes.bias * sides.sinh_bias - (2 - sides.gap) * cosh_excess(b) / (root * root)
    droot = droot + root * dot(dtop, varying)
    return PlaneCotangents(dinner, dgap, dlength, _sum_rows(dbias), droot / (2 * root))


def turn_columns(planes: Planes, rows: Wide, bar: PlaneCotangents) -> Wide:
    """Return the weight's cotangent from the points' coordinates, one point a row.

    Columns turn under the part of the cotangent across them, and grow under their lengths' cotangent. The
    factor |z| that is in the cotangent and the 1/|z| of the turning cancel, so that short columns are harmless.
    """
    dinner = bar.inner.reshape(len(rows), planes.length.size)
    turn = ratio(dinner, np.broadcast_to(planes.length, dinner.shape), 0.0).T @ rows
    turn = turn - dot(turn, planes.unit) * planes.unit
    return (turn + bar.length[:, None] * planes.unit).T


def _sum_rows(array: Wide) -> Wide:
    total: Wide = array.reshape(-1, array.shape[-1]).sum(axis=0)
    return total


def _leave(
    frame: Frame, planes: Planes, x: Point, bar: PlaneCotangents, dc: Wide | None = None
) -> tuple[AnyArray, ...]:
    """Pull the cotangents of inner products and gaps back to the arguments; ``dc`` is a projection's share."""
    # gap = 1 - c|x|^2.
    dx = bar.inner @ planes.unit - 2 * frame.curvature * bar.gap * x.at
    dweight = turn_columns(planes, x.at.reshape(-1, x.at.shape[-1]), bar)
    terms = bar.curvature - bar.gap * x.square
    return (
        frame.leave_cotangent(dx),
        dweight.astype(frame.dtype),
        (bar.bias * frame.unit).astype(frame.dtype),
        frame.leave_curvature(terms if dc is None else terms + dc),
    )


def init_identity(features_in: int, features_out: int, *, dtype: Any = np.float64) -> tuple[AnyArray, AnyArray]:
    """Return weight and bias with which :func:`fully_connected` keeps the leading coordinates.

    Parameters
    ----------
    features_in, features_out : int >= 1
        Lengths n and m of the vectors; for n = m the layer is the identity of the ball.
    dtype : numpy.float32 or numpy.float64

    Returns
    -------
    weight : array (features_in, features_out)
        Half the rectangular identity. For ``features_out > features_in`` the surplus columns are 0, and
        since a column of zeros has cotangent 0 they would never learn: use it for ``features_out <= features_in``.
    bias : array (features_out,)
        Zeros.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer >= 1, or the dtype is another one.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.1.

    Examples
    --------
    >>> init_identity(2, 2)[0]
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    n, m = _sizes(features_in, features_out, dtype)
    return 0.5 * np.eye(n, m, dtype=dtype), np.zeros(m, dtype)


def init_baseline(
    features_in: int, features_out: int, rng: np.random.Generator, *, dtype: Any = np.float64
) -> tuple[AnyArray, AnyArray]:
    """Return the random weight that earlier Poincaré networks start from, and a zero bias.

    Parameters
    ----------
    features_in, features_out : int >= 1
        Lengths n and m of the vectors.
    rng : numpy.random.Generator
    dtype : numpy.float32 or numpy.float64

    Returns
    -------
    weight : array (features_in, features_out)
        Independent normal entries of variance ``1/(2 n m)``.
    bias : array (features_out,)
        Zeros.

    Raises
    ------
    TypeError, ValueError
        As :func:`init_identity`; also if ``rng`` is not a generator.

    References
    ----------
    Shimizu, Mukuta, Harada (2021), arXiv 2006.08210, section 3.2.

    Examples
    --------
    >>> weight, bias = init_baseline(64, 64, np.random.default_rng(0))
    >>> weight.shape, bias.any(), round(float(weight.std() * np.sqrt(2 * 64 * 64)), 1)
    ((64, 64), np.False_, 1.0)
    """
    n, m = _sizes(features_in, features_out, dtype)
    weight = _checks.generator(rng).standard_normal((n, m)) / np.sqrt(2 * n * m)
    return weight.astype(dtype), np.zeros(m, dtype)


def _sizes(features_in: Any, features_out: Any, dtype: Any) -> tuple[int, int]:
    _checks.one_of(np.dtype(dtype), "dtype", (np.dtype(np.float32), np.dtype(np.float64)))
    return (
        _checks.whole(features_in, "features_in", low=1),
        _checks.whole(features_out, "features_out", low=1),
    )
