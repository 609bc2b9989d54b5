"""The Poincaré ball as SIMD kernels."""

from refnorm_fast.poincare._core import (
    dist,
    dist_sq,
    exp0,
    expmap,
    fully_connected,
    log0,
    logmap,
    mobius_add,
    project_ball,
)
from refnorm_fast.poincare._image import conv2d

__all__ = [
    "conv2d",
    "dist",
    "dist_sq",
    "exp0",
    "expmap",
    "fully_connected",
    "log0",
    "logmap",
    "mobius_add",
    "project_ball",
]
