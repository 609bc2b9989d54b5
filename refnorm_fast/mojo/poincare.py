"""The Poincare fully connected layer in Mojo; see :mod:`refnorm.poincare`."""

from __future__ import annotations

import math

import numpy as np

from refnorm._typing import Array, F
from refnorm.poincare._ball import PROJECTION_MARGIN
from refnorm.poincare._frame import Frame
from refnorm.poincare._linear import planes_of
from refnorm.poincare._numerics import EXACT_GAP
from refnorm_fast.mojo._build import call, in_order, suffix

__all__ = ["fully_connected"]

BLOCK = 64
"""Rows of inner products that the kernel keeps; BLOCK in kernels/poincare.mojo."""


def fully_connected(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    check: bool = True,
    project: bool = True,
) -> Array[F]:
    """Poincare fully connected layer; see :func:`refnorm.poincare.fully_connected`.

    Notes
    -----
    Everything is float64 inside, the inner products too.
    """
    frame = Frame(curvature, -1, check, x=x)
    planes = planes_of(weight, bias, frame, frame.shape[-1])
    # Without projection points may fall on the boundary when they are rounded: that is the frame's affair.
    points = in_order(np.asarray(x, dtype=None if project else np.float64))
    length, width = points.shape[-1], planes.length.size
    rows = points.size // length
    gaps = np.empty(rows)
    call("rn_gaps" + suffix(points), points, gaps, rows, length, frame.unit, frame.curvature)
    if not (gaps > (length + 4) * EXACT_GAP).all():  # the boundary, beyond it, or NaN
        gaps = in_order(frame.point(x, "x").gap.reshape(-1))
    root = math.sqrt(frame.curvature)
    radius = (1 - PROJECTION_MARGIN[frame.dtype]) / root if project else math.inf
    angle = 2 * root * planes.bias
    columns = np.stack([planes.length, np.cosh(angle), np.sinh(angle)])
    y, room = np.empty((*frame.shape[:-1], width), points.dtype), np.empty((min(rows, BLOCK), width))
    call(
        "rn_fully_connected" + suffix(points),
        *(points, y, room, rows, length, width),
        *(gaps, in_order(planes.unit.T), columns, root, radius, frame.unit),
    )
    result: Array[F] = y if project else frame.leave_inside(y * frame.unit)
    return result
