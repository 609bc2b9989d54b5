"""Softmax and its relatives as SIMD kernels: also over the largest entries, StableMax and Soft-NMS."""

from refnorm_fast.softmax._boxes import box_iou, box_iou_vjp, soft_nms, soft_nms_vjp
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
from refnorm_fast.softmax._dual_bank_norm import (
    dual_bank_norm,
    dual_bank_norm_vjp,
    inverted_softmax,
    inverted_softmax_vjp,
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
    "box_iou",
    "box_iou_vjp",
    "cross_entropy",
    "cross_entropy_vjp",
    "dual_bank_norm",
    "dual_bank_norm_vjp",
    "inverted_softmax",
    "inverted_softmax_vjp",
    "log_softmax",
    "log_softmax_vjp",
    "log_stablemax",
    "log_stablemax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "soft_cross_entropy",
    "soft_cross_entropy_vjp",
    "soft_nms",
    "soft_nms_vjp",
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
