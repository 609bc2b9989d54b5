"""Small convolutional networks for claims: chains of ``_vjp`` functions, trained by momentum SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from refnorm._typing import AnyArray, IntArray, Pullback
from refnorm.nn import conv2d_vjp, linear_vjp, relu_vjp
from refnorm.softmax import cross_entropy_vjp

Layer = Callable[..., tuple[AnyArray, Pullback]]
"""``layer(x, *params) -> (y, pullback)`` with ``pullback(dy) -> (dx, *dparams)``: any ``_vjp`` of that form."""

Params = list[tuple[AnyArray, ...]]


def conv3x3(x: AnyArray, weight: AnyArray) -> tuple[AnyArray, Pullback]:
    """Convolve with 3 x 3 filters and padding 1, without bias."""
    y, pullback = conv2d_vjp(x, weight, padding=1)
    return y, lambda dy: pullback(dy)[:2]


def mean_of_places(x: AnyArray) -> tuple[AnyArray, Pullback]:
    """Average every channel over the image."""
    places = x.shape[2] * x.shape[3]
    return x.mean(axis=(2, 3)), lambda dy: (np.broadcast_to(dy[:, :, None, None] / places, x.shape),)


def chain_vjp(layers: Sequence[Layer], params: Params, x: AnyArray) -> tuple[AnyArray, Pullback]:
    """Apply the layers in turn; the pullback returns ``(dx, dparams)``."""
    pullbacks = []
    for layer, own in zip(layers, params, strict=True):
        x, back = layer(x, *own)
        pullbacks.append(back)

    def pullback(dy: AnyArray) -> tuple[AnyArray, Params]:
        grads: Params = []
        for back in reversed(pullbacks):
            dy, *own = back(dy)
            grads.append(tuple(own))
        return dy, grads[::-1]

    return x, pullback


def two_conv_net(
    rng: np.random.Generator, norm: Layer, norm_params: Callable[[int], tuple[AnyArray, ...]], widths: Sequence[int]
) -> tuple[list[Layer], Params]:
    """Return conv - norm - ReLU, once a width, then pooling and a linear layer to 10 classes."""
    layers: list[Layer] = []
    params: Params = []
    channels = 1
    for width in widths:
        weight = rng.standard_normal((width, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        layers += [conv3x3, norm, relu_vjp]
        params += [(weight,), norm_params(width), ()]
        channels = width
    layers += [mean_of_places, linear_vjp]
    params += [(), (rng.standard_normal((channels, 10)) / np.sqrt(channels), np.zeros(10))]
    return layers, params


def train_chain(
    layers: Sequence[Layer],
    params: Params,
    x: AnyArray,
    target: IntArray,
    batches: Iterable[IntArray],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    each_step: Callable[[float], Any] = lambda loss: None,
) -> Params:
    """Return the parameters after one step of momentum SGD a batch, on the mean cross-entropy."""
    velocity = [tuple(np.zeros_like(p) for p in own) for own in params]
    for batch in batches:
        logits, network = chain_vjp(layers, params, x[batch])
        loss, back = cross_entropy_vjp(logits, target[batch])
        _, grads = network(back(np.array(1.0))[0])
        pairs = zip(velocity, grads, strict=True)
        velocity = [tuple(momentum * v + g for v, g in zip(vs, gs, strict=True)) for vs, gs in pairs]
        params = [
            tuple(p - learning_rate * v for p, v in zip(ps, vs, strict=True))
            for ps, vs in zip(params, velocity, strict=True)
        ]
        each_step(float(loss))
    return params
