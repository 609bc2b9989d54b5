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

__all__ = [
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
