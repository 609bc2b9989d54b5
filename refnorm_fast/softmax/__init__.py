"""Softmax, log-softmax, log-sum-exp, cross-entropy, softmax over the largest entries and StableMax as SIMD kernels."""

from refnorm_fast.softmax._core import (
    cross_entropy,
    cross_entropy_vjp,
    log_softmax,
    log_softmax_vjp,
    logsumexp,
    logsumexp_vjp,
    soft_cross_entropy,
    soft_cross_entropy_vjp,
    softmax,
    softmax_vjp,
)
from refnorm_fast.softmax._select import topk_softmax, topk_softmax_vjp
from refnorm_fast.softmax._stable import (
    log_stablemax,
    log_stablemax_vjp,
    stable_s,
    stable_s_vjp,
    stablemax,
    stablemax_cross_entropy,
    stablemax_cross_entropy_vjp,
    stablemax_vjp,
)

__all__ = [
    "cross_entropy",
    "cross_entropy_vjp",
    "log_softmax",
    "log_softmax_vjp",
    "log_stablemax",
    "log_stablemax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "soft_cross_entropy",
    "soft_cross_entropy_vjp",
    "softmax",
    "softmax_vjp",
    "stable_s",
    "stable_s_vjp",
    "stablemax",
    "stablemax_cross_entropy",
    "stablemax_cross_entropy_vjp",
    "stablemax_vjp",
    "topk_softmax",
    "topk_softmax_vjp",
]
