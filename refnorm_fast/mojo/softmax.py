"""Softmax in Mojo; see :mod:`refnorm.softmax`."""

from __future__ import annotations

import numpy as np

from refnorm import _checks
from refnorm import softmax as reference
from refnorm._typing import Array, F
from refnorm_fast.mojo._build import call, in_order, suffix

__all__ = ["softmax"]


def softmax(x: Array[F], *, axis: int = -1, algorithm: str = "two_pass") -> Array[F]:
    """Softmax along an axis; see :func:`refnorm.softmax.softmax`.

    Notes
    -----
    float32 rows are computed in float32, and in float64 if they hold finite entries beyond 1e4, infinity or NaN.
    Algorithms other than ``"two_pass"`` are the reference's.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    last = _checks.axes((axis,), x.ndim)[0]
    _checks.not_empty(x, "x", (last,))
    if algorithm != "two_pass":
        return reference.softmax(x, axis=axis, algorithm=algorithm)
    rows = in_order(np.moveaxis(x, last, -1))
    y = np.empty_like(rows)
    length = rows.shape[-1]
    call("rn_softmax" + suffix(rows), rows, y, rows.size // length, length)
    return np.ascontiguousarray(np.moveaxis(y, -1, last))
