"""Calls that both frameworks differentiate: pullbacks of several rooms, with what is awkward about each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refnorm import attention, nn, norms, poincare, softmax

RNG = np.random.default_rng(7)


class Case(NamedTuple):
    f_vjp: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape)


CASES = {
    "layer_norm": Case(norms.layer_norm_vjp, (normal(3, 5), normal(5), normal(5)), {"eps": 1e-3}),
    "softmax": Case(softmax.softmax_vjp, (normal(3, 4),), {"axis": 0}),
    "integer argument": Case(softmax.cross_entropy_vjp, (normal(3, 4), np.array([3, 0, 1])), {"label_smoothing": 0.1}),
    "attention": Case(
        attention.scaled_dot_product_attention_vjp,
        (normal(2, 3, 4), normal(2, 3, 4), normal(2, 3, 5)),
        {"causal": True},
    ),
    "tuple of values": Case(attention.qk_norm_vjp, (normal(2, 3, 4), normal(2, 3, 4)), {}),
    "constant by position": Case(norms.batch_statistics_vjp, (normal(4, 3), (0,)), {}),
    "Poincaré linear": Case(
        poincare.fully_connected_vjp, (0.2 * normal(3, 4), normal(4, 2), 0.1 * normal(2), np.array(0.7)), {}
    ),
    "curvature as a number": Case(
        poincare.fully_connected_vjp, (0.2 * normal(3, 4), normal(4, 2), 0.1 * normal(2), 0.7), {}
    ),
    "argument left out": Case(nn.linear_vjp, (normal(3, 4), normal(4, 2), None), {}),
}
