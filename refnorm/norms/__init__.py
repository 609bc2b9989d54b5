"""Normalization layers: what each subtracts, what it divides by, and over which axes."""

from refnorm.norms._layer_norm import layer_norm, layer_norm_vjp

__all__ = ["layer_norm", "layer_norm_vjp"]
