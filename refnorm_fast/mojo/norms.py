"""Layer norm in Mojo; see :mod:`refnorm.norms`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F
from refnorm.norms._layer_norm import _trailing
from refnorm_fast.mojo._build import call, in_order, suffix

__all__ = ["layer_norm"]


def layer_norm(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, axes: Sequence[int] = (-1,)
) -> Array[F]:
    """Normalize each example over its own units; see :func:`refnorm.norms.layer_norm`.

    Notes
    -----
    All sums and differences are float64.
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
    x, gain, bias = in_order(x), in_order(gain), in_order(bias)
    y, length = np.empty_like(x), math.prod(units)
    call("rn_layer_norm" + suffix(x), x, gain, bias, y, x.size // length, length, float(eps))
    return y
