"""A multilayer perceptron with hand-written gradients, for claims that train something small."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from refnorm._typing import AnyArray, IntArray
from refnorm.nn import linear_vjp, relu_vjp
from refnorm.softmax import cross_entropy_vjp

Params = list[tuple[AnyArray, AnyArray]]
"""Weight (inputs, outputs) and bias (outputs,) of every layer."""


def mlp_init(rng: np.random.Generator, sizes: Sequence[int], *, gain: float = 2.0) -> Params:
    """Return weights of variance ``gain / inputs`` and zero biases."""
    return [
        (rng.standard_normal((before, after)) * np.sqrt(gain / before), np.zeros(after))
        for before, after in itertools.pairwise(sizes)
    ]


def mlp_vjp(params: Params, x: AnyArray) -> tuple[AnyArray, Callable[[AnyArray], tuple[Params, AnyArray]]]:
    """Return logits of a ReLU network and the pullback to ``(params, x)``."""
    steps = []
    for layer, (weight, bias) in enumerate(params):
        x, back = linear_vjp(x, weight, bias)
        activate = None
        if layer < len(params) - 1:
            x, activate = relu_vjp(x)
        steps.append((back, activate))

    def pullback(dy: AnyArray) -> tuple[Params, AnyArray]:
        grads: Params = []
        for back, activate in reversed(steps):
            if activate is not None:
                (dy,) = activate(dy)
            dy, dweight, dbias = back(dy)
            grads.append((dweight, dbias))
        return grads[::-1], dy

    return x, pullback


def mlp_loss_and_grads(params: Params, x: AnyArray, target: IntArray) -> tuple[float, Params]:
    """Return the mean cross-entropy and its gradient with respect to the parameters."""
    logits, network = mlp_vjp(params, x)
    loss, back = cross_entropy_vjp(logits, target)
    grads, _ = network(back(np.array(1.0))[0])
    return float(loss), grads


def accuracy(logits: AnyArray, target: IntArray) -> float:
    """Return the fraction of rows whose largest logit is the target's."""
    return float((logits.argmax(axis=-1) == target).mean())


def batches(rng: np.random.Generator, n: int, size: int, epochs: int) -> Iterator[IntArray]:
    """Yield the indices of full mini-batches, in a fresh order every epoch."""
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]
