"""Optimizers whose step is one or two passes of a SIMD kernel over all arrays of a network."""

from refnorm_fast.solvers._core import adamp_update, lion_update, sgdp_update, sign_momentum
from refnorm_fast.solvers._optimizers import SGDP, AdaGrad, AdaGradNorm, AdamP, Lion

__all__ = [
    "SGDP",
    "AdaGrad",
    "AdaGradNorm",
    "AdamP",
    "Lion",
    "adamp_update",
    "lion_update",
    "sgdp_update",
    "sign_momentum",
]
