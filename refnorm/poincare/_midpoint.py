"""Means of points of the Poincaré ball: the gyromidpoint in closed form, the Fréchet mean by iteration.

midpoint = A / (B + sqrt(B^2 - c|A|^2))       A = sum w_i factor_i x_i,  B = sum w_i (factor_i - 1)

B^2 - c|A|^2 cancels near the boundary. It equals W^2 + 4 c S V, with the weights' sum W, the mass
S = sum w_i/gap_i and the scatter V = sum w_i/gap_i |x_i - mean|^2 about the mean with weights w_i/gap_i: sums
of positive terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.poincare._frame import Frame, Point
from refnorm.poincare._geodesics import segment
from refnorm.poincare._numerics import Wide, dot, ratio
from refnorm.solvers._monitor import Callback, Monitor

METHOD = Method(
    title="Poincaré midpoint and Fréchet mean",
    authors="Ungar; Lou, Katsman, Jiang, Belongie, Lim, De Sa",
    year=2020,
    arxiv="2003.00335",
    functions=("midpoint", "frechet_mean", "FrechetMeanResult"),
    chapter="poincare/midpoint",
    paper=False,
)

ROUNDING = 2.0**-50
"""Eight units roundoff: divided by the gap, the distance that the rounding of a point's coordinates may move it."""

FRECHET_TOL = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
"""Default tolerance, in units of the radius of curvature: what points in the middle of the ball resolve."""


def midpoint(
    x: Array[F],
    curvature: float | Array[F],
    weights: Array[F] | None = None,
    *,
    check: bool = True,
) -> Array[F]:
    """Return the gyromidpoint of points: a mean in closed form.

    Parameters
    ----------
    x : array (..., N, n), N >= 1
        Points with ``curvature * |x|^2 < 1``; the mean is taken over the last axis but one.
    curvature : float or 0-d array > 0
        Minus the sectional curvature; the ball's radius is ``curvature ** -0.5``.
    weights : array (..., N), optional
        1 each by default; not all 0. A negative weight counts as its absolute value at ``-x``.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its batch is meaningless.

    Returns
    -------
    array (..., n), dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, there is no point or no weight, the curvature is not finite and > 0, or a
        point is outside (the message gives the largest ``curvature * |x|^2``).

    Notes
    -----
    ``A / (B + sqrt(B^2 - c|A|^2))`` with ``A = sum w_i factor_i x_i``, ``B = sum |w_i| (factor_i - 1)`` and the
    conformal factors. On the hyperboloid it is the weighted sum of the points, normalized. It minimizes
    ``sum w_i sinh(sqrt(c) dist(x_i, m) / 2)^2``, where the Fréchet mean minimizes ``sum w_i dist(x_i, m)^2``.
    The error, as a vector, is a few units roundoff of the result's length, at the boundary, too.

    References
    ----------
    Ungar (2008), Analytic Hyperbolic Geometry and Albert Einstein's Special Theory of Relativity, chapter 6;
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.2.

    Examples
    --------
    >>> x = np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    >>> midpoint(x, 1.0).round(6)
    array([0.161913, 0.161913])
    >>> midpoint(x, 1.0, np.array([1.0, 0.0, 0.0]))
    array([0.5, 0. ])
    """
    return midpoint_vjp(x, curvature, weights, check=check)[0]


def midpoint_vjp(
    x: Array[F],
    curvature: float | Array[F],
    weights: Array[F] | None = None,
    *,
    check: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`midpoint` and its pullback ``dm -> (dx, dcurvature, dweights)``.

    The entry of weights that were left out is ``None``. Parameters, errors and references are those of
    :func:`midpoint`.
    """
    frame, points, wide_weights = _prepare(x, curvature, weights, check)
    middle, back = gather(points, wide_weights, frame.curvature)
    result = frame.reshaped(frame.shape[:-2] + frame.shape[-1:], len(frame.shape) - 2)

    def pullback(dm: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        dx, dc, dweights = back(result.cotangent(dm)[..., None, :])
        given = None if weights is None else dweights[..., 0].astype(frame.dtype)
        return frame.leave_cotangent(dx), frame.leave_curvature(dc), given

    return result.leave_inside(middle.at[..., 0, :]), pullback


def gather(x: Point, weights: Wide, c: float) -> tuple[Point, Pullback]:
    """Return the gyromidpoint over the last axis but one, which is kept, and its pullback inside the frame.

    The pullback returns the cotangents of the points, the curvature's terms, and the cotangents of the weights.
    """
    # Minus a point, with the opposite weight, contributes the same.
    sign = np.where(weights < 0, -1.0, 1.0)
    weight = np.abs(weights)
    at = sign * x.at
    mass = weight / x.gap
    total, sum_weights = _over_points(mass), _over_points(weight)
    mean, offset = _weighted_mean(at, mass, total)
    distance = dot(offset, offset)
    scatter = _over_points(mass * distance)
    root = np.sqrt(sum_weights * sum_weights + 4 * c * total * scatter)
    denominator = 2 * total - sum_weights + root
    middle = 2 * total / denominator * mean
    # The time coordinates on the hyperboloid give the result's gap as accurately as a sum of positive terms.
    point = Point(middle, dot(middle, middle), 2 * root / denominator)

    def back(g: Wide) -> tuple[Wide, Wide, Wide]:
        # m = 2Q/E with Q = sum a_i x_i, E = 2S - W + r, r^2 = W^2 + 4cSV and masses a_i = w_i/gap_i, so
        #     E/2 <g,dm> = <g,dQ> - <g,m> dE/2,
        #     dE/2 = (1 + cV/r) dS + (W/r - 1) dW/2 + cS/r dV + SV/r dc,
        #     dV = sum |x_i - mean|^2 da_i + 2 a_i <x_i - mean, dx_i>:  the mean's own motion drops out.
        along = dot(g, middle)
        # x_i - m = (x_i - mean) + shift mean with shift = (r - W)/E, and r - W is 4cSV/(r + W).
        shift = 4 * c * total * scatter / (root + sum_weights) / denominator
        bend = along * c / root
        bar_mass = 2 / denominator * (dot(g, offset + shift * mean) - bend * (scatter + total * distance))
        dx = 2 * mass / denominator * (g - 2 * bend * total * offset)
        # dgap_i = -2c<x_i,dx_i> - |x_i|^2 dc.
        growth = bar_mass * mass / x.gap
        dx = dx + 2 * c * growth * at
        dc = _over_points(growth * x.square) - 2 * along / denominator * total * scatter / root
        return sign * dx, dc, sign * (bar_mass / x.gap + along * shift / root)

    return point, back


def _over_points(array: Wide) -> Wide:
    total: Wide = array.sum(axis=-2, keepdims=True)
    return total


def _weighted_mean(x: Wide, mass: Wide, total: Wide) -> tuple[Wide, Wide]:
    """Return the mean over points and the offsets from it, both relative to the heaviest point.

    Near the boundary points differ in their last digits only, and their differences are exact.
    """
    heaviest = np.take_along_axis(x, mass.argmax(axis=-2)[..., None], axis=-2)
    difference = x - heaviest
    drift = _over_points(mass * difference) / total
    return heaviest + drift, difference - drift


@dataclass(frozen=True)
class FrechetMeanResult:
    """Result of :func:`frechet_mean`.

    Parameters
    ----------
    x : array (..., n)
        The mean.
    variance : array (...)
        Weighted mean of the squared distances to it.
    n_iter
        Iterations done, for all batches together.
    converged
        Whether the last iteration moved no mean by more than the tolerance.
    history
        By iteration: ``variance`` before it (mean over batches) and the distance ``moved`` (the largest).
    """

    x: AnyArray
    variance: AnyArray
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def frechet_mean(
    x: Array[F],
    curvature: float | Array[F],
    weights: Array[F] | None = None,
    *,
    tol: float | None = None,
    max_iter: int = 500,
    callback: Callback | None = None,
    check: bool = True,
) -> FrechetMeanResult:
    """Return the point with the smallest mean squared distance to given points.

    Parameters
    ----------
    x : array (..., N, n), N >= 1
        Points with ``curvature * |x|^2 < 1``; the mean is taken over the last axis but one.
    curvature, check
        As in :func:`midpoint`.
    weights : array (..., N), optional
        Weights >= 0, 1 each by default; not all 0.
    tol : float >= 0, optional
        The iteration ends when it moves the mean by a distance of at most ``tol / sqrt(curvature)``, or by
        what the rounding of its coordinates allows; 1e-12 in float64 and 1e-6 in float32 by default.
    max_iter : int >= 1
        Largest number of iterations.
    callback : function of a Progress, optional
        Called after every iteration; a true result ends the run.

    Returns
    -------
    FrechetMeanResult

    Raises
    ------
    TypeError, ValueError
        As :func:`midpoint`; also if a weight is negative or an option is out of range.
    Diverged
        If the points hold NaN or infinity.

    Notes
    -----
    Squared distance is a concave function of ``sinh(sqrt(c) dist / 2)^2``. Its tangent there is an upper bound
    whose minimum is a midpoint with weights ``w_i d_i / sinh(d_i)``, ``d_i = sqrt(c) dist(x_i, m)``. So the
    iteration ``m = midpoint(x, w d / sinh(d))`` never increases the variance, needs no step size and converges
    from everywhere; the mean is unique because the variance is strictly convex along geodesics.

    References
    ----------
    Lou et al. (2020), arXiv 2003.00335, algorithm 1.

    Examples
    --------
    >>> result = frechet_mean(np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]), 1.0)
    >>> result.x.round(6), result.converged
    (array([0.15821, 0.15821]), True)
    """
    frame, points, given = _prepare(x, curvature, weights, check)
    if (given < 0).any():
        _checks.fail("weights", "numbers >= 0", float(given.min()))
    tol = FRECHET_TOL[frame.dtype] if tol is None else tol
    _checks.non_negative(tol, "tol")
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    c, root = frame.curvature, np.sqrt(frame.curvature)
    monitor = Monitor("frechet_mean", callback=callback, hint="x must not hold NaN or infinity")
    sum_weights = _over_points(given)
    middle, _ = gather(points, given, c)
    way, converged = segment(middle, points, c), False
    while monitor.n_iter < max_iter and not converged:
        variance = 4 / c * _over_points(given * way.half_length**2) / sum_weights
        # d/sinh(d) with d = 2A is A / (sinh(A) cosh(A)).
        pull = ratio(way.half_length, way.sinh, 1.0) / np.sqrt(1 + way.sinh**2)
        following, _ = gather(points, given * pull, c)
        moved = 2 * segment(middle, following, c).half_length
        middle = following
        way = segment(middle, points, c)
        converged = bool((moved <= tol + ROUNDING / middle.gap).all())
        in_lengths = float(moved.max(initial=0.0)) / root / frame.unit
        mean_variance = float(variance.sum()) / max(variance.size, 1)
        if monitor.record(variance=mean_variance / frame.unit**2, moved=in_lengths):
            break
    variance = 4 / c * _over_points(given * way.half_length**2) / sum_weights
    result = frame.reshaped(frame.shape[:-2] + frame.shape[-1:], len(frame.shape) - 2)
    return FrechetMeanResult(
        x=result.leave_inside(middle.at[..., 0, :]),
        variance=np.asarray(result.leave_scalar(variance[..., 0, :], 2)),
        n_iter=monitor.n_iter,
        converged=converged,
        history=monitor.history(),
    )


def _prepare(x: Any, curvature: Any, weights: Any, check: bool) -> tuple[Frame, Point, Wide]:
    x = _checks.float_array(x, "x", min_ndim=2)
    frame = Frame(curvature, -1, check, x=x)
    _checks.not_empty(x, "x", (x.ndim - 2,))
    if weights is None:
        return frame, frame.point(x, "x"), np.ones((*x.shape[:-1], 1))
    weights = _checks.float_array(weights, "weights")
    _checks.same_dtype("x", x, weights=weights)
    _checks.shape(weights, "weights", x.shape[:-1])
    if (~weights.any(axis=-1)).any():
        _checks.fail("weights", "at least one that is not 0", "zeros")
    return frame, frame.point(x, "x"), weights.astype(np.float64)[..., None]
