"""Projections and proximal maps: the closest point of a set, or of a penalty's pull, with derivatives.

box:      min(max(x, lower), upper)            simplex:  max(x - shift, 0), entries summing to 1
ball:     x min(1, radius / |x|)               soft threshold:  sign(x) max(|x| - threshold, 0)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="Projections and proximal maps",
    authors="Moreau (proximal maps); Held, Wolfe, Crowder (simplex)",
    year=1965,
    arxiv=None,
    functions=(
        "box_projection",
        "simplex_projection",
        "ball_projection",
        "soft_threshold",
        "lasso_prox",
        "ridge_prox",
    ),
    chapter="solvers/projections",
    paper=False,
)


def box_projection(x: Array[F], lower: Array[F] | float, upper: Array[F] | float) -> Array[F]:
    """Clip every entry to its interval.

    Parameters
    ----------
    x : array
    lower, upper : numbers or arrays of the shape of ``x``
        Bounds, ``lower <= upper``; infinite where there is none.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs or a lower bound exceeds its upper bound.

    Notes
    -----
    NaN stays NaN. At a bound the derivative in ``x`` is 0 and the bound has it: ``1[lower < x < upper]``.

    Examples
    --------
    >>> box_projection(np.array([-2.0, 0.3, 5.0]), 0.0, 1.0)
    array([0. , 0.3, 1. ])
    """
    return box_projection_vjp(x, lower, upper)[0]


def box_projection_vjp(x: Array[F], lower: Array[F] | float, upper: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`box_projection` and its pullback ``dy -> (dx, dlower, dupper)``."""
    x = _checks.float_array(x, "x")
    low, high = _like(lower, x, "lower"), _like(upper, x, "upper")
    if (low > high).any():
        _checks.fail("lower", "bounds not above upper", f"{int((low > high).sum())} that are")
    below, above = x <= low, x >= high
    # Where the interval is one point both masks hold: the lower bound takes the cotangent.
    above = above & ~below
    y: Array[F] = np.where(below, low, np.where(above, high, x))

    def pullback(dy: Array[F]) -> tuple[Array[F], AnyArray, AnyArray]:
        inside = np.where(below | above, 0, dy).astype(x.dtype)
        return inside, _back(np.where(below, dy, 0), low), _back(np.where(above, dy, 0), high)

    return y, pullback


def simplex_projection(x: Array[F], *, total: float = 1.0) -> Array[F]:
    """Project each vector on the simplex ``{y >= 0, sum(y) = total}``.

    Parameters
    ----------
    x : array (..., n)
    total : float > 0
        Sum of the entries of each result.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array with n >= 1 or ``total`` is not > 0.

    Notes
    -----
    ``y = max(x - shift, 0)`` with the one shift that gives the sum. With entries in descending order,
    ``k`` is the largest count for which the k-th entry exceeds ``(sum of the first k - total) / k``,
    which is then the shift. A vector with NaN or +infinity becomes NaN; -infinity becomes 0.

    References
    ----------
    Held, Wolfe, Crowder (1974), Validation of subgradient optimization, Mathematical Programming 6.

    Examples
    --------
    >>> simplex_projection(np.array([0.6, 0.5, -1.0]))
    array([0.55, 0.45, 0.  ])
    """
    return simplex_projection_vjp(x, total=total)[0]


def simplex_projection_vjp(x: Array[F], *, total: float = 1.0) -> tuple[Array[F], Pullback]:
    """Return :func:`simplex_projection` and its pullback ``dy -> (dx,)``.

    On the support S of the result the derivative is ``I - 1 1^T / |S|``, elsewhere 0.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.not_empty(x, "x", (x.ndim - 1,))
    _checks.positive(total, "total")
    # The largest entry is subtracted first: the result does not feel a common shift, the sums do.
    largest = x.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        centred = x.astype(np.float64) - largest
        ordered = -np.sort(-centred, axis=-1)
        counts = np.arange(1, x.shape[-1] + 1)
        shifts = (np.cumsum(ordered, axis=-1) - total) / counts
        size = np.maximum((ordered > shifts).sum(axis=-1, keepdims=True), 1)
        shift = np.take_along_axis(shifts, size - 1, axis=-1)
        projected = np.maximum(centred - shift, 0.0)
    support = projected > 0
    y: Array[F] = projected.astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        kept = np.where(support, dy, 0)
        mean = kept.sum(axis=-1, keepdims=True) / np.maximum(support.sum(axis=-1, keepdims=True), 1)
        return (np.where(support, kept - mean, 0).astype(x.dtype),)

    return y, pullback


def ball_projection(x: Array[F], radius: Array[F] | float) -> Array[F]:
    """Project each vector on the Euclidean ball around 0.

    Parameters
    ----------
    x : array (..., n)
    radius : number > 0

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array of at least one dimension or ``radius`` is not > 0.

    Notes
    -----
    ``x`` inside, ``radius x / |x|`` outside, where the derivative is ``radius / |x| (I - unit unit^T)``.
    On the sphere itself the outside's derivative is taken.

    Examples
    --------
    >>> ball_projection(np.array([3.0, 4.0]), 1.0)
    array([0.6, 0.8])
    """
    return ball_projection_vjp(x, radius)[0]


def ball_projection_vjp(x: Array[F], radius: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`ball_projection` and its pullback ``dy -> (dx, dradius)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    bound = _number(radius, x, "radius")
    _checks.positive(float(bound), "radius")
    # Dividing by the largest entry first keeps the sum of squares from overflow and underflow.
    largest = np.abs(x).max(axis=-1, keepdims=True, initial=0.0)
    unit_scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    norm = unit_scale * np.sqrt(np.square(x / unit_scale).sum(axis=-1, keepdims=True, dtype=np.float64))
    outside = norm >= bound
    direction = np.where(outside, x / np.where(outside, norm, 1.0), 0.0)
    y: Array[F] = np.where(outside, bound * direction, x).astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F], AnyArray]:
        radial = (direction * dy).sum(axis=-1, keepdims=True)
        tangential = bound / np.where(outside, norm, 1.0) * (dy - direction * radial)
        return np.where(outside, tangential, dy).astype(x.dtype), _back(radial, bound)

    return y, pullback


def soft_threshold(x: Array[F], threshold: Array[F] | float) -> Array[F]:
    """Move every entry towards 0 by ``threshold``, and to 0 if it is closer than that.

    Parameters
    ----------
    x : array
    threshold : number or array of the shape of ``x``, >= 0

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape differs or a threshold is negative.

    Notes
    -----
    ``sign(x) max(|x| - threshold, 0)``, the proximal map of ``threshold |x|``. Derivatives:
    ``1[|x| > threshold]`` in ``x`` and ``-sign(x)`` in the threshold on that support, 0 elsewhere.

    Examples
    --------
    >>> soft_threshold(np.array([-3.0, 0.5, 2.0]), 1.0)
    array([-2.,  0.,  1.])
    """
    return soft_threshold_vjp(x, threshold)[0]


def soft_threshold_vjp(x: Array[F], threshold: Array[F] | float) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_threshold` and its pullback ``dy -> (dx, dthreshold)``."""
    x = _checks.float_array(x, "x")
    bound = _like(threshold, x, "threshold")
    if (bound < 0).any():
        _checks.fail("threshold", "values >= 0", float(bound.min()))
    active = np.abs(x) > bound
    # A NaN is neither above nor below the threshold; it stays.
    y: Array[F] = np.where(active, x - bound * np.sign(x), np.where(np.isnan(x), x, 0)).astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F], AnyArray]:
        dx = np.where(active, dy, 0).astype(x.dtype)
        return dx, _back(-np.sign(x) * dx, bound)

    return y, pullback


def lasso_prox(x: Array[F], penalty: Array[F] | float, *, step_size: Array[F] | float = 1.0) -> Array[F]:
    """Return the proximal map of ``step_size * penalty * |x|_1``: a soft threshold.

    Parameters
    ----------
    x : array
    penalty : number >= 0
    step_size : number or array of the shape of ``x``, > 0
        Not differentiated.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array or a number is outside its range.

    Examples
    --------
    >>> lasso_prox(np.array([-3.0, 0.5]), 2.0, step_size=0.5)
    array([-2.,  0.])
    """
    return lasso_prox_vjp(x, penalty, step_size=step_size)[0]


def lasso_prox_vjp(
    x: Array[F], penalty: Array[F] | float, *, step_size: Array[F] | float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`lasso_prox` and its pullback ``dy -> (dx, dpenalty)``."""
    x = _checks.float_array(x, "x")
    bound = _number(penalty, x, "penalty")
    _checks.non_negative(float(bound), "penalty")
    steps = _steps(step_size, x)
    y, threshold_pullback = soft_threshold_vjp(x, np.asarray(steps * bound))

    def pullback(dy: Array[F]) -> tuple[Array[F], AnyArray]:
        dx, dthreshold = threshold_pullback(dy)
        return dx, _back(steps * dthreshold, bound)

    return y, pullback


def ridge_prox(x: Array[F], penalty: Array[F] | float, *, step_size: Array[F] | float = 1.0) -> Array[F]:
    """Return the proximal map of ``step_size * penalty / 2 * |x|^2``: a shrinkage.

    Parameters
    ----------
    x : array
    penalty : number >= 0
    step_size : number or array of the shape of ``x``, > 0
        Not differentiated.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array or a number is outside its range.

    Notes
    -----
    ``x / (1 + step_size * penalty)``.

    Examples
    --------
    >>> ridge_prox(np.array([-3.0, 0.5]), 2.0, step_size=0.5)
    array([-1.5 ,  0.25])
    """
    return ridge_prox_vjp(x, penalty, step_size=step_size)[0]


def ridge_prox_vjp(
    x: Array[F], penalty: Array[F] | float, *, step_size: Array[F] | float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`ridge_prox` and its pullback ``dy -> (dx, dpenalty)``."""
    x = _checks.float_array(x, "x")
    bound = _number(penalty, x, "penalty")
    _checks.non_negative(float(bound), "penalty")
    steps = _steps(step_size, x)
    shrink = 1 / (1 + steps * bound)
    y: Array[F] = np.asarray(x * shrink)

    def pullback(dy: Array[F]) -> tuple[Array[F], AnyArray]:
        dx: Array[F] = np.asarray(dy * shrink)
        return dx, _back(-steps * shrink * y * dy, bound)

    return y, pullback


def _like(value: Any, x: AnyArray, name: str) -> AnyArray:
    """A number or an array of the shape of ``x``, in the dtype of ``x``."""
    if isinstance(value, np.ndarray):
        _checks.same_dtype("x", x, **{name: _checks.float_array(value, name)})
        if value.ndim:
            _checks.shape(value, name, x.shape)
    array = np.asarray(value, dtype=x.dtype)
    if array.ndim and array.shape != x.shape:
        _checks.shape(array, name, x.shape)
    if np.isnan(array).any():
        _checks.fail(name, "numbers", "NaN")
    return array


def _number(value: Any, x: AnyArray, name: str) -> AnyArray:
    array = _like(value, x, name)
    _checks.shape(array, name, ())
    return array


def _steps(value: Any, x: AnyArray) -> AnyArray:
    steps = _like(value, x, "step_size")
    if not (np.isfinite(steps) & (steps > 0)).all():
        _checks.fail("step_size", "finite numbers > 0", float(steps.min()))
    return steps


def _back(cotangents: AnyArray, argument: AnyArray) -> AnyArray:
    """Cotangent of an argument that one number may have stood for all entries of."""
    summed = cotangents if argument.ndim else cotangents.sum()
    return np.asarray(summed, dtype=argument.dtype)
