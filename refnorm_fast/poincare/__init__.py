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
from refnorm_fast.poincare._image import (
    avg_pool2d,
    avg_pool2d_vjp,
    conv2d,
    conv2d_vjp,
    midpoint,
    midpoint_batch_norm,
    midpoint_statistics,
)
from refnorm_fast.poincare._resnet import poincare_resnet, poincare_resnet_vjp

__all__ = [
    "avg_pool2d",
    "avg_pool2d_vjp",
    "conv2d",
    "conv2d_vjp",
    "dist",
    "dist_sq",
    "exp0",
    "expmap",
    "fully_connected",
    "log0",
    "logmap",
    "midpoint",
    "midpoint_batch_norm",
    "midpoint_statistics",
    "mobius_add",
    "poincare_resnet",
    "poincare_resnet_vjp",
    "project_ball",
]
