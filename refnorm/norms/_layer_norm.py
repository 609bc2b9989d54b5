"""Layer normalization.

y = gain * (x - mean(x)) / sqrt(var(x) + eps) + bias        (statistics over one example's units)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.norms._batch_statistics import batch_norm

METHOD = Method(
    title="Layer Normalization",
    authors="Ba, Kiros, Hinton",
    year=2016,
    arxiv="1607.06450",
    functions=(
        "InvarianceReport",
        "Invariances",
        "add_layer_norm",
        "invariance_report",
        "layer_norm",
    ),
    chapter="norms/layer_norm",
)

INVARIANT_BELOW = 1e-10
"""Change of a normalized unit, itself of size 1, that counts as rounding."""


def layer_norm(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, axes: Sequence[int] = (-1,)
) -> Array[F]:
    """Normalize each example over its own units.

    Parameters
    ----------
    x : array (..., H)
        Summed inputs of a layer; ``axes`` are the unit axes, all others are examples.
    gain, bias : arrays of the shape of ``x`` along ``axes``
        Scale and shift of each normalized unit; 1 and 0 at initialization.
    eps : float > 0
        Added to the variance.
    axes : trailing axes of ``x``
        ``(-1,)`` normalizes vectors, ``(-3, -2, -1)`` whole images of shape (N, C, H, W).

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If ``axes`` are not the trailing axes, no unit is left, a shape is wrong or ``eps <= 0``.

    Notes
    -----
    The variance is biased, computed from centred values: ``E[x^2] - E[x]^2`` would lose all digits for
    ``x`` near 10^4 in float32. NaN or infinity in a row makes that row NaN and no other.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, equations 3 and 4.

    Examples
    --------
    >>> layer_norm(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4), np.zeros(4)).round(4)
    array([-1.3416, -0.4472,  0.4472,  1.3416])
    """
    return layer_norm_vjp(x, gain, bias, eps=eps, axes=axes)[0]


def layer_norm_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, axes: Sequence[int] = (-1,)
) -> tuple[Array[F], Pullback]:
    """Return :func:`layer_norm` and its pullback ``dy -> (dx, dgain, dbias)``.

    Parameters, errors and references are those of :func:`layer_norm`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    gain, bias = _checks.float_array(gain, "gain"), _checks.float_array(bias, "bias")
    _checks.same_dtype("x", x, gain=gain, bias=bias)
    over = _trailing(axes, x.ndim)
    _checks.not_empty(x, "x", over)
    units = tuple(x.shape[axis] for axis in over)
    _checks.shape(gain, "gain", units)
    _checks.shape(bias, "bias", units)
    _checks.positive(eps, "eps")

    def mean(a: Array[F]) -> Array[F]:
        # float64 sums: a float32 mean of H numbers near 10^6 is already wrong in the digits that remain
        # after centring.
        average: Array[F] = a.mean(axis=over, keepdims=True, dtype=np.result_type(a.dtype, np.float64))
        return average

    centred = x - mean(x)
    inv_std = 1 / np.sqrt(mean(centred * centred) + eps)
    x_hat = (centred * inv_std).astype(x.dtype)
    y: Array[F] = gain * x_hat + bias

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # dx_hat = inv_std (dx - mean dx) - x_hat mean(x_hat dx) inv_std, and this map is symmetric:
        # the gradient is projected off the two directions that the output cannot feel,
        # the constant vector and x_hat, and rescaled.
        dx_hat = dy * gain
        dx = inv_std * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat))
        return dx.astype(x.dtype), sum_to(dy * x_hat, units), sum_to(dy, units)

    return y, pullback


def add_layer_norm(x: Array[F], residual: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5) -> Array[F]:
    """Layer norm of ``x + residual`` over the last axis: a residual block's end.

    Parameters
    ----------
    x, residual : arrays (..., H) of one shape and dtype
        What a branch adds, and the main branch.
    gain, bias : arrays (H,)
        Scale and shift of each normalized unit; 1 and 0 at initialization.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If no unit is left, a shape is wrong or ``eps <= 0``.

    Notes
    -----
    ``layer_norm(x + residual, gain, bias, eps=eps)``, the sum rounded to the dtype of ``x``.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, equations 3 and 4.

    Examples
    --------
    >>> add_layer_norm(np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.ones(2), np.zeros(2)).round(4)
    array([-1.,  1.])
    """
    return add_layer_norm_vjp(x, residual, gain, bias, eps=eps)[0]


def add_layer_norm_vjp(
    x: Array[F], residual: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]:
    """Return :func:`add_layer_norm` and its pullback ``dy -> (dx, dresidual, dgain, dbias)``.

    ``dx`` and ``dresidual`` are one array. Parameters, errors and references are those of :func:`add_layer_norm`.
    """
    y, back = layer_norm_vjp(checked_sum(x, residual), gain, bias, eps=eps)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F], Array[F]]:
        # Both terms of a sum receive its cotangent: one array for both.
        dsum, dgain, dbias = back(dy)
        return dsum, dsum, dgain, dbias

    return y, pullback


def checked_sum(x: Array[F], residual: Array[F]) -> Array[F]:
    """Return ``x + residual`` of arrays of one shape and dtype, or raise."""
    x, residual = _checks.float_array(x, "x", min_ndim=1), _checks.float_array(residual, "residual")
    _checks.same_dtype("x", x, residual=residual)
    _checks.shape(residual, "residual", x.shape)
    total: Array[F] = x + residual
    return total


def _trailing(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    over = _checks.axes(axes, ndim, "axes")
    if over != tuple(range(ndim - len(over), ndim)):
        _checks.fail("axes", f"the last axes of {ndim}", tuple(axes))
    return over


@dataclass(frozen=True)
class Invariances:
    """Whether normalized units keep their values under each change of weights or data.

    Parameters
    ----------
    weight_matrix_scaled
        All weights times one number.
    weight_matrix_shifted
        One vector added to the incoming weights of every unit.
    weight_vector_scaled
        The incoming weights of a single unit times a number.
    data_scaled, data_shifted
        All cases times one number; one vector added to all cases.
    case_scaled
        A single case times a number.
    """

    weight_matrix_scaled: bool
    weight_matrix_shifted: bool
    weight_vector_scaled: bool
    data_scaled: bool
    data_shifted: bool
    case_scaled: bool


@dataclass(frozen=True)
class InvarianceReport:
    """The rows of the paper's table of invariances that :func:`invariance_report` measures."""

    layer_norm: Invariances
    batch_norm: Invariances


def invariance_report(rng: np.random.Generator) -> InvarianceReport:
    """Measure which changes of weights and data layer norm and batch norm do not notice.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws 32 units with 16 inputs, 20 cases, and the vectors that are added.

    Returns
    -------
    InvarianceReport

    Raises
    ------
    TypeError
        If ``rng`` is not a generator.

    Notes
    -----
    The table is about eps = 0; here eps is far below every variance.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, table 1.

    Examples
    --------
    >>> report = invariance_report(np.random.default_rng(0))
    >>> report.layer_norm.case_scaled, report.batch_norm.case_scaled
    (True, False)
    >>> report.layer_norm.weight_vector_scaled, report.batch_norm.weight_vector_scaled
    (False, True)
    """
    rng = _checks.generator(rng)
    weight, data = rng.standard_normal((32, 16)), rng.standard_normal((20, 16))
    shift = rng.standard_normal(16)
    one_unit, one_case = np.ones((32, 1)), np.ones((20, 1))
    one_unit[3], one_case[5] = 3, 5
    changes = {
        "weight_matrix_scaled": (3 * weight, data),
        "weight_matrix_shifted": (weight + shift, data),
        "weight_vector_scaled": (one_unit * weight, data),
        "data_scaled": (weight, 5 * data),
        "data_shifted": (weight, data + shift),
        "case_scaled": (weight, one_case * data),
    }

    def by_layer(a: AnyArray) -> AnyArray:
        return layer_norm(a, np.ones(32), np.zeros(32), eps=1e-300)

    def by_batch(a: AnyArray) -> AnyArray:
        return batch_norm(a, np.ones(32), np.zeros(32), eps=1e-300)

    return InvarianceReport(
        *(
            Invariances(
                **{
                    name: bool(np.abs(norm(x @ w.T) - norm(data @ weight.T)).max() < INVARIANT_BELOW)
                    for name, (w, x) in changes.items()
                }
            )
            for norm in (by_layer, by_batch)
        )
    )
