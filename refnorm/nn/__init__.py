"""Shared building blocks of networks: linear and convolutional layers, activations, pooling, embedding."""

from refnorm.nn._activations import (
    erf,
    erf_vjp,
    gelu,
    gelu_vjp,
    relu,
    relu_vjp,
    sigmoid,
    sigmoid_vjp,
    silu,
    silu_vjp,
    softplus,
    softplus_vjp,
)
from refnorm.nn._conv2d import conv2d, conv2d_vjp
from refnorm.nn._embedding import embedding, embedding_vjp
from refnorm.nn._linear import linear, linear_vjp
from refnorm.nn._pooling import avg_pool2d, avg_pool2d_vjp, max_pool2d, max_pool2d_vjp

__all__ = [
    "avg_pool2d",
    "avg_pool2d_vjp",
    "conv2d",
    "conv2d_vjp",
    "embedding",
    "embedding_vjp",
    "erf",
    "erf_vjp",
    "gelu",
    "gelu_vjp",
    "linear",
    "linear_vjp",
    "max_pool2d",
    "max_pool2d_vjp",
    "relu",
    "relu_vjp",
    "sigmoid",
    "sigmoid_vjp",
    "silu",
    "silu_vjp",
    "softplus",
    "softplus_vjp",
]
