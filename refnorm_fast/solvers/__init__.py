"""Optimizers whose update of an array is one or two passes of a SIMD kernel."""

from refnorm_fast.solvers._core import adamp_update, lion_update, sgdp_update, sign_momentum
from refnorm_fast.solvers._optimizers import SGDP, AdamP, Lion

__all__ = ["SGDP", "AdamP", "Lion", "adamp_update", "lion_update", "sgdp_update", "sign_momentum"]
