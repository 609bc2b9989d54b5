"""Normalization layers as SIMD kernels."""

from refnorm_fast.norms._channel import (
    batch_norm,
    batch_norm_eval,
    batch_norm_eval_vjp,
    batch_norm_train,
    batch_norm_train_vjp,
    batch_norm_vjp,
    batch_statistics,
    batch_statistics_vjp,
)
from refnorm_fast.norms._core import (
    add_layer_norm,
    compressed_rms_norm,
    compressed_rms_norm_vjp,
    layer_norm,
    layer_norm_vjp,
    rms_norm,
    rms_norm_vjp,
)

__all__ = [
    "add_layer_norm",
    "batch_norm",
    "batch_norm_eval",
    "batch_norm_eval_vjp",
    "batch_norm_train",
    "batch_norm_train_vjp",
    "batch_norm_vjp",
    "batch_statistics",
    "batch_statistics_vjp",
    "compressed_rms_norm",
    "compressed_rms_norm_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
]
