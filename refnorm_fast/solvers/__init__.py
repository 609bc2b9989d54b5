"""Optimizers whose step is one or two passes of a SIMD kernel over all arrays of a network."""

from refnorm_fast.solvers._core import (
    adamp_update,
    ema_update,
    lion_kappa_update,
    lion_update,
    sgdp_update,
    sign_momentum,
)
from refnorm_fast.solvers._optimizers import SGDP, AdaGrad, AdaGradNorm, AdamP, Lion, LionK

__all__ = [
    "SGDP",
    "AdaGrad",
    "AdaGradNorm",
    "AdamP",
    "Lion",
    "LionK",
    "adamp_update",
    "ema_update",
    "lion_kappa_update",
    "lion_update",
    "sgdp_update",
    "sign_momentum",
]
