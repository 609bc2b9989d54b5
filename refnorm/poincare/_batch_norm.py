"""Batch normalization in the Poincaré ball: centre at the midpoint, scale geodesic distances, move to a learned point.

y = exp_b(sqrt(gain / (var + eps)) P_{mean -> b} log_mean(x)),         b = exp0(bias)
mean = midpoint(x),   var = mean over the batch of dist(x, mean)^2               (training)
running mean = point at the fraction momentum of the geodesic to the batch's     (for inference)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.poincare._ball import clip, expand
from refnorm.poincare._frame import Frame, Point
from refnorm.poincare._geodesics import aim, carry, expmap, follow, logmap
from refnorm.poincare._midpoint import gather
from refnorm.poincare._numerics import Wide, dot, gap

METHOD = Method(
    title="Poincaré midpoint batch normalization",
    authors="van Spengler, Berkhout, Mettes",
    year=2023,
    arxiv="2303.14027",
    functions=("midpoint_batch_norm", "midpoint_statistics", "update_running_midpoint"),
    chapter="poincare/batch_norm",
    paper=False,
)

DEFAULT_EPS = 1e-6


def midpoint_batch_norm(
    x: Array[F],
    bias: Array[F],
    gain: Array[F],
    curvature: float | Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    eps: float = DEFAULT_EPS,
    check: bool = True,
    project: bool = True,
) -> Array[F]:
    """Normalize points by the batch's midpoint and variance (training) or by given ones (inference).

    Parameters
    ----------
    x : array (N, C) or (N, C, H, W), at least one point
        Points with ``curvature * |x|^2 < 1``, vectors along axis 1. All images and pixels form the batch.
    bias : array (C,)
        Tangent vector at the origin; the result is centred at ``exp0(bias)``. 0 at initialization.
    gain : 0-d array > 0
        Variance of the result. 1 at initialization.
    curvature : float or 0-d array > 0
        Minus the sectional curvature; the ball's radius is ``curvature ** -0.5``.
    mean : array (C,), optional
        A point of the ball. Give mean and variance for inference, neither for training.
    var : 0-d array >= 0, optional
        Mean squared distance to ``mean``.
    eps : float > 0
        Added to the variance.
    check : bool
        Whether a point on or outside the boundary raises.
    project : bool
        Whether the result is projected to a ball smaller by a margin (see ``project_ball``).

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, there is no point, ``gain`` or ``eps`` is not > 0, only one of mean and variance
        is given, the variance is negative, the curvature is not finite and > 0, or a point is outside.

    Notes
    -----
    ``exp_b(sqrt(gain / (var + eps)) P log_mean(x))`` with ``b = exp0(bias)`` and P parallel transport from the
    mean to b. One variance for all channels: hyperbolic space looks the same in all directions, and a scale a
    coordinate would depend on the axes. As transport keeps lengths, the mean squared distance of the
    result to b is ``gain var / (var + eps)`` exactly. In training all of this is differentiated, the
    statistics included; NaN anywhere makes everything NaN. A batch of one point gives b.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.2;
    Lou et al. (2020), arXiv 2003.00335, section 5.

    Examples
    --------
    >>> x, bias, gain = np.array([[0.6], [0.0]]), np.zeros(1), np.array(1.0)
    >>> midpoint_batch_norm(x, bias, gain, 1.0).ravel().round(6)
    array([ 0.462117, -0.462117])
    """
    return midpoint_batch_norm_vjp(x, bias, gain, curvature, mean, var, eps=eps, check=check, project=project)[0]


def midpoint_batch_norm_vjp(
    x: Array[F],
    bias: Array[F],
    gain: Array[F],
    curvature: float | Array[F],
    mean: Array[F] | None = None,
    var: Array[F] | None = None,
    *,
    eps: float = DEFAULT_EPS,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`midpoint_batch_norm` and its pullback ``dy -> (dx, dbias, dgain, dcurvature, dmean, dvar)``.

    The last two entries are ``None`` in training. Parameters, errors and references are those of
    :func:`midpoint_batch_norm`.
    """
    y, _, pullback = normalize(x, bias, gain, curvature, mean, var, eps, check, project)
    return y, pullback


def normalize(
    x: Any,
    bias: Any,
    gain: Any,
    curvature: Any,
    mean: Any,
    var: Any,
    eps: float,
    check: bool,
    project: bool,
) -> tuple[AnyArray, tuple[AnyArray, AnyArray], Pullback]:
    """Return the normalized points, the mean and variance that were used, and the pullback."""
    batch = _Batch.of(x, curvature, check)
    frame, rows, c = batch.frame, batch.rows, batch.frame.curvature
    bias, gain = batch.vector(bias, "bias"), batch.scalar(gain, "gain")
    _checks.positive(float(gain), "gain")
    _checks.positive(eps, "eps")
    given = batch.given(mean, var)
    # Variances, and so gain and eps, are squares of lengths.
    wide_gain, wide_eps = float(gain) * frame.unit**2, eps * frame.unit**2

    centre, back_centre = _centre(bias.astype(np.float64)[None] * frame.unit, frame)
    if given is None:
        middle, back_middle = gather(rows, np.ones_like(rows.gap), c)
    else:
        middle = given[0]
    log, back_log = aim(middle, rows, c)
    variance = _variance(log, middle) if given is None else given[1]
    scale = np.sqrt(wide_gain / (variance + wide_eps))
    moved, back_carry = carry(middle, centre, log, c)
    y, back_exp = follow(centre, scale * moved, c)
    y, back_projection = clip(y, frame, project)

    def pullback(dy: Array[F]) -> tuple[AnyArray | None, ...]:
        g, dc = back_projection(batch.in_rows(frame.cotangent(dy)))
        dcentre, dscaled, dc_exp = back_exp(g)
        # scale = sqrt(gain / (var + eps)).
        dscale = (dscaled * moved).sum()
        dgain = dscale * scale / (2 * wide_gain)
        dvariance = -dscale * scale / (2 * (variance + wide_eps))
        dmiddle, dcentre_carry, dlog, dc_carry = back_carry(scale * dscaled)
        if given is None:
            # var = mean |2 log / gap|^2: distances are the lengths of logarithms.
            dlog = dlog + 8 * dvariance / (len(log) * middle.gap**2) * log
        dmiddle_log, drows, dc_log = back_log(dlog)
        dmiddle = _sum_rows(dmiddle + dmiddle_log)
        terms = dc.sum() + dc_exp.sum() + dc_carry.sum() + dc_log.sum()
        dmean = dvar = None
        if given is None:
            dgap = -2 * dvariance * variance / middle.gap
            dmiddle = dmiddle - 2 * c * dgap * middle.at
            drows_middle, dc_middle, _ = back_middle(dmiddle)
            drows = drows + drows_middle
            terms = terms + dc_middle.sum() - (dgap * middle.square).sum()
        else:
            dmean = (dmiddle[0] * frame.unit).astype(frame.dtype)
            dvar = np.asarray(dvariance.sum() * frame.unit**2, frame.dtype)
        dbias, dc_centre = back_centre(_sum_rows(dcentre + dcentre_carry))
        return (
            frame.leave_cotangent(batch.in_images(drows)),
            (dbias[0] * frame.unit).astype(frame.dtype),
            np.asarray(dgain.sum() * frame.unit**2, frame.dtype),
            frame.leave_curvature(terms + dc_centre.sum()),
            dmean,
            dvar,
        )

    return frame.leave_inside(batch.in_images(y)), batch.leave(middle, variance), pullback


def midpoint_statistics(x: Array[F], curvature: float | Array[F], *, check: bool = True) -> tuple[Array[F], Array[F]]:
    """Return the midpoint of a batch of points and their mean squared distance to it.

    Parameters
    ----------
    x : array (N, C) or (N, C, H, W), at least one point
    curvature, check
        As in :func:`midpoint_batch_norm`.

    Returns
    -------
    mean : array (C,)
    var : 0-d array

    Raises
    ------
    TypeError, ValueError
        As :func:`midpoint_batch_norm`.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.2.

    Examples
    --------
    >>> mean, var = midpoint_statistics(np.array([[0.6], [0.0]]), 1.0)
    >>> mean.round(6), var.round(6) == round(np.log(2.0) ** 2, 6)
    (array([0.333333]), np.True_)
    """
    return midpoint_statistics_vjp(x, curvature, check=check)[0]


def midpoint_statistics_vjp(
    x: Array[F], curvature: float | Array[F], *, check: bool = True
) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`midpoint_statistics` and its pullback ``(dmean, dvar) -> (dx, dcurvature)``.

    Parameters, errors and references are those of :func:`midpoint_statistics`.
    """
    batch = _Batch.of(x, curvature, check)
    frame, rows, c = batch.frame, batch.rows, batch.frame.curvature
    middle, back_middle = gather(rows, np.ones_like(rows.gap), c)
    log, back_log = aim(middle, rows, c)
    variance = _variance(log, middle)

    def pullback(cotangent: tuple[Array[F], Array[F]]) -> tuple[AnyArray, AnyArray]:
        dmean, dvar = batch.vector(cotangent[0], "cotangent"), batch.scalar(cotangent[1], "cotangent")
        dvariance = float(dvar) / frame.unit**2
        dmiddle, drows, dc = back_log(8 * dvariance / (len(log) * middle.gap**2) * log)
        dgap = -2 * dvariance * variance / middle.gap
        dmiddle = dmean.astype(np.float64)[None] / frame.unit + _sum_rows(dmiddle) - 2 * c * dgap * middle.at
        drows_middle, dc_middle, _ = back_middle(dmiddle)
        terms = dc.sum() + dc_middle.sum() - (dgap * middle.square).sum()
        return frame.leave_cotangent(batch.in_images(drows + drows_middle)), frame.leave_curvature(terms)

    return batch.leave(middle, variance), pullback


def update_running_midpoint(
    running_mean: Array[F],
    running_var: Array[F],
    mean: Array[F],
    var: Array[F],
    curvature: float | Array[F],
    *,
    momentum: float = 0.1,
) -> tuple[Array[F], Array[F]]:
    """Move the running statistics towards those of one more batch.

    Parameters
    ----------
    running_mean, running_var : arrays (C,) and ()
        The origin and 1 before the first batch.
    mean, var : arrays (C,) and ()
        From :func:`midpoint_statistics`.
    curvature : float or 0-d array > 0
    momentum : float in [0, 1]
        Weight of the batch.

    Returns
    -------
    running_mean, running_var

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes differ, the momentum is out of range, or a point is outside.

    Notes
    -----
    The mean moves the fraction ``momentum`` of its way along the geodesic; the variance is averaged. These
    are statistics, not parameters, and have no gradient.

    References
    ----------
    Lou et al. (2020), arXiv 2003.00335, algorithm 3.

    Examples
    --------
    >>> origin, one = np.zeros(1), np.array(1.0)
    >>> mean, var = update_running_midpoint(origin, one, np.array([0.6]), np.array(3.0), 1.0, momentum=0.5)
    >>> mean.round(6), var
    (array([0.333333]), array(2.))
    """
    running_mean = _checks.float_array(running_mean, "running_mean", ndim=1)
    named = {"running_var": running_var, "mean": mean, "var": var}
    running_var, mean, var = (_checks.float_array(array, name) for name, array in named.items())
    for name, array in (("running_var", running_var), ("mean", mean), ("var", var)):
        _checks.same_dtype("running_mean", running_mean, **{name: array})
        _checks.shape(array, name, running_mean.shape if name == "mean" else ())
    _checks.in_range(momentum, "momentum", 0, 1)
    way = logmap(running_mean, mean, curvature)
    moved = expmap(running_mean, np.asarray(momentum * way, way.dtype), curvature, project=False)
    return moved, np.asarray((1 - momentum) * running_var + momentum * var, running_var.dtype)


@dataclass(frozen=True)
class _Batch:
    """The points of a call, one a row, with the frame of the images that they came from."""

    frame: Frame
    rows: Point

    @classmethod
    def of(cls, x: Any, curvature: Any, check: bool) -> _Batch:
        x = _checks.float_array(x, "x", min_ndim=2)
        if x.ndim not in (2, 4):
            _checks.fail("x", "shape (N, C) or (N, C, H, W)", x.shape)
        frame = Frame(curvature, 1, check, x=x)
        _checks.not_empty(x, "x", tuple(range(x.ndim)))
        point = frame.point(x, "x")
        rows = Point(*(part.reshape(-1, part.shape[-1]) for part in (point.at, point.square, point.gap)))
        return cls(frame, rows)

    def in_rows(self, images: Wide) -> Wide:
        return images.reshape(self.rows.at.shape)

    def in_images(self, rows: Wide) -> Wide:
        shape = self.frame.shape
        return rows.reshape(shape[0], *shape[2:], shape[1])

    def vector(self, array: Any, name: str) -> AnyArray:
        return self._checked(array, name, self.frame.shape[1:2])

    def scalar(self, array: Any, name: str) -> AnyArray:
        return self._checked(array, name, ())

    def _checked(self, given: Any, name: str, shape: tuple[int, ...]) -> AnyArray:
        array = _checks.float_array(given, name)
        _checks.same_dtype("x", np.empty(0, self.frame.dtype), **{name: array})
        _checks.shape(array, name, shape)
        return array

    def given(self, mean: Any, var: Any) -> tuple[Point, Wide] | None:
        """Bring given statistics inside; ``None`` if there are none."""
        if (mean is None) != (var is None):
            _checks.fail("mean, var", "both for inference or neither for training", "only one of them")
        if mean is None:
            return None
        mean, var = self.vector(mean, "mean"), self.scalar(var, "var")
        if var < 0:
            _checks.fail("var", "a number >= 0", float(var))
        middle = self.frame.reshaped((1, len(mean)), 1).point(mean[None], "mean")
        return middle, np.full((1, 1), float(var) * self.frame.unit**2)

    def leave(self, middle: Point, variance: Wide) -> tuple[AnyArray, AnyArray]:
        """Take statistics outside."""
        mean = self.frame.reshaped((1, middle.at.shape[-1]), 1).leave_inside(middle.at)[0]
        return mean, np.asarray(variance.sum() / self.frame.unit**2, self.frame.dtype)


def _centre(bias: Wide, frame: Frame) -> tuple[Point, Pullback]:
    """Return the point exp0(bias), always projected, and its pullback."""
    at, back_exp = expand(bias, frame.curvature)
    at, back_projection = clip(at, frame, True)

    def back(u: Wide) -> tuple[Wide, Wide]:
        u, dc = back_projection(u)
        dbias, dc_exp = back_exp(u)
        return dbias, dc + dc_exp

    return Point(at, dot(at, at), gap(at, frame.curvature)), back


def _variance(log: Wide, middle: Point) -> Wide:
    """Return the mean squared hyperbolic length of tangent vectors at ``middle``."""
    squares = dot(log, log).mean(axis=0, keepdims=True)
    variance: Wide = 4 / middle.gap**2 * squares
    return variance


def _sum_rows(array: Wide) -> Wide:
    total: Wide = array.sum(axis=0, keepdims=True)
    return total
