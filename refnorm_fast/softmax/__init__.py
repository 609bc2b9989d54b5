"""Softmax, log-softmax, log-sum-exp, cross-entropy and softmax over the largest entries as SIMD kernels."""

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

__all__ = [
    "cross_entropy",
    "cross_entropy_vjp",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "soft_cross_entropy",
    "soft_cross_entropy_vjp",
    "softmax",
    "softmax_vjp",
    "topk_softmax",
    "topk_softmax_vjp",
]
