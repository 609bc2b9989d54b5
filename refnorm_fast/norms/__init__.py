"""Layer norm, RMS norm and compressed RMS norm as SIMD kernels."""

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
    "compressed_rms_norm",
    "compressed_rms_norm_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
]
