"""Layer norm, RMS norm and compressed RMS norm, group norms and weight standardization as SIMD kernels."""

from refnorm_fast.norms._core import (
    add_layer_norm,
    add_layer_norm_vjp,
    add_rms_norm,
    add_rms_norm_vjp,
    compressed_rms_norm,
    compressed_rms_norm_vjp,
    layer_norm,
    layer_norm_vjp,
    rms_norm,
    rms_norm_vjp,
)
from refnorm_fast.norms._group import (
    group_norm,
    group_norm_vjp,
    group_scale,
    group_scale_vjp,
    instance_norm,
    instance_norm_vjp,
    standardize_groups,
    standardize_groups_vjp,
    weight_standardize,
    weight_standardize_vjp,
)

__all__ = [
    "add_layer_norm",
    "add_layer_norm_vjp",
    "add_rms_norm",
    "add_rms_norm_vjp",
    "compressed_rms_norm",
    "compressed_rms_norm_vjp",
    "group_norm",
    "group_norm_vjp",
    "group_scale",
    "group_scale_vjp",
    "instance_norm",
    "instance_norm_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
    "standardize_groups",
    "standardize_groups_vjp",
    "weight_standardize",
    "weight_standardize_vjp",
]
