"""Joining points of several balls into one: the maps at the origin as kernels, the parts side by side in the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import refnorm.poincare as reference
from refnorm._typing import AnyArray, Array, F, Pullback
from refnorm.poincare._conv2d import beta_scale
from refnorm_fast.poincare._ball import exp0_vjp, log0_vjp
from refnorm_fast.poincare._core import exp0, log0


def beta_concat(
    xs: Sequence[Array[F]],
    curvature: float | Array[F],
    *,
    check: bool = True,
    project: bool = True,
    out: Array[F] | None = None,
) -> Array[F]:
    """Join points of several balls into one point; see :func:`refnorm.poincare.beta_concat`. ``out`` takes the result.

    Notes
    -----
    float32 logarithms are rounded before they are scaled: the result is within a few units in the last place of its length.

    Examples
    --------
    >>> beta_concat([np.array([0.5]), np.array([0.0])], 1.0).round(6)
    array([0.336109, 0.      ])
    """
    arrays = _arrays(xs)
    try:
        tangents = [log0(x, curvature, check=check) for x in arrays]
    except (TypeError, ValueError):
        return reference.beta_concat(
            xs, curvature, check=check, project=project
        )  # raises, with the argument's own name
    return exp0(_side_by_side(arrays, tangents), curvature, project=project, out=out)


def beta_concat_vjp(
    xs: Sequence[Array[F]], curvature: float | Array[F], *, check: bool = True, project: bool = True
) -> tuple[Array[F], Pullback]:
    """Join points of several balls into one, and the pullback; see :func:`refnorm.poincare.beta_concat_vjp`."""
    arrays = _arrays(xs)
    try:
        logs = [log0_vjp(x, curvature, check=check) for x in arrays]
    except (TypeError, ValueError):
        return reference.beta_concat_vjp(xs, curvature, check=check, project=project)
    y, back_exp = exp0_vjp(_side_by_side(arrays, [tangent for tangent, _ in logs]), curvature, project=project)
    scales, ends = _scales(arrays), np.cumsum([x.shape[-1] for x in arrays])[:-1]

    def pullback(dy: Array[F]) -> tuple[Sequence[Array[F]], AnyArray]:
        u, total = back_exp(dy)
        dxs = []
        for scale, (_, back_log), part in zip(scales, logs, np.split(u, ends, axis=-1), strict=True):
            dx, dcurvature = back_log(part * part.dtype.type(scale))
            total = np.asarray(total + dcurvature)
            dxs.append(dx)
        return (tuple(dxs) if isinstance(xs, tuple) else dxs), total

    return y, pullback


def _arrays(xs: Sequence[Array[F]]) -> list[Array[F]]:
    """The parts as arrays, or a list whose logarithm raises where they do not fit together."""
    arrays = [np.asarray(x) for x in xs] if isinstance(xs, (list, tuple)) else []
    fit = all(x.ndim and x.dtype == arrays[0].dtype and x.shape[:-1] == arrays[0].shape[:-1] for x in arrays)
    empty: Array[Any] = np.zeros(0)
    return arrays if arrays and fit else [empty]


def _scales(arrays: list[Array[F]]) -> list[float]:
    features = sum(x.shape[-1] for x in arrays)
    return [beta_scale(features, x.shape[-1]) for x in arrays]


def _side_by_side(arrays: list[Array[F]], tangents: list[Array[F]]) -> Array[F]:
    """The scaled tangents in one array."""
    joined: Array[F] = np.empty((*arrays[0].shape[:-1], sum(x.shape[-1] for x in arrays)), arrays[0].dtype)
    first = 0
    for scale, tangent in zip(_scales(arrays), tangents, strict=True):
        part = joined[..., first : first + tangent.shape[-1]]
        np.multiply(tangent, tangent.dtype.type(scale), out=part)
        first += tangent.shape[-1]
    return joined
