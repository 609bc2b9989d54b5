"""Softmax and its relatives: exponentials divided by their sum, without overflow."""

from refnorm.softmax._cross_entropy import (
    cross_entropy,
    cross_entropy_vjp,
    log_softmax,
    log_softmax_vjp,
    logsumexp,
    logsumexp_vjp,
    soft_cross_entropy,
    soft_cross_entropy_vjp,
)
from refnorm.softmax._two_pass import (
    ExtExp,
    ext_add,
    ext_exp,
    ext_log,
    ext_sum,
    ext_to_float,
    memory_traffic,
    online_merge,
    softmax,
    softmax_vjp,
)

__all__ = [
    "ExtExp",
    "cross_entropy",
    "cross_entropy_vjp",
    "ext_add",
    "ext_exp",
    "ext_log",
    "ext_sum",
    "ext_to_float",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "memory_traffic",
    "online_merge",
    "soft_cross_entropy",
    "soft_cross_entropy_vjp",
    "softmax",
    "softmax_vjp",
]
