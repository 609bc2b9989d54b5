"""Softmax and its relatives as SIMD kernels."""

from refnorm_fast.softmax._core import softmax

__all__ = ["softmax"]
