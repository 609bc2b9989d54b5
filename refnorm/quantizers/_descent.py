"""First-order steps over named arrays: what the methods share that fit something to calibration data.

The named arrays of one fit (weights, ranges, logits) live on different scales, so each has its learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray

KINDS = ("adam", "adamax", "sgd")

EPS = 1e-8
"""Added to the denominator, far below the root mean square of any gradient that matters (Kingma and Ba)."""


class Descent:
    """Adam, Adamax, or SGD with momentum, over a dict of arrays.

    Parameters
    ----------
    learning_rates : mapping of str to float > 0
        By the name of the array; arrays without one are not moved.
    kind : {"adam", "adamax", "sgd"}
    betas : two floats in [0, 1)
        Decay of the two averages; SGD takes the first one as its momentum.

    References
    ----------
    Kingma, Ba (2015), arXiv 1412.6980, algorithms 1 and 2.

    Examples
    --------
    >>> descent = Descent({"weight": 0.1})
    >>> descent.step({"weight": np.array([1.0, 2.0])}, {"weight": np.array([3.0, -0.1])})["weight"].round(6)
    array([0.9, 2.1])
    """

    def __init__(
        self, learning_rates: Mapping[str, float], *, kind: str = "adam", betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        for name, rate in learning_rates.items():
            _checks.positive(rate, f"learning rate of {name}")
        _checks.one_of(kind, "optimizer", KINDS)
        self._rates, self._kind, self._betas = dict(learning_rates), kind, betas
        self._first: dict[str, AnyArray] = {}
        self._second: dict[str, AnyArray] = {}
        self._steps = 0

    def step(
        self, params: Mapping[str, AnyArray], grads: Mapping[str, AnyArray], *, share: float = 1.0
    ) -> dict[str, AnyArray]:
        """Return the arrays after a step of ``share`` times each learning rate; nothing is written in place."""
        self._steps += 1
        moved = dict(params)
        for name, rate in self._rates.items():
            if name in grads and name in params:
                direction = self._direction(name, grads[name])
                moved[name] = np.asarray(params[name] - share * rate * direction).astype(np.asarray(grads[name]).dtype)
        return moved

    def _direction(self, name: str, grad: AnyArray) -> AnyArray:
        beta1, beta2 = self._betas
        if self._kind == "sgd":
            self._first[name] = beta1 * self._first.get(name, np.zeros_like(grad)) + grad
            return self._first[name]
        first = beta1 * self._first.get(name, np.zeros_like(grad)) + (1 - beta1) * grad
        before = self._second.get(name, np.zeros_like(grad))
        self._first[name] = first
        # Both averages begin at 0; dividing by 1 - beta^t makes them averages of the gradients seen so far.
        if self._kind == "adamax":
            self._second[name] = np.maximum(beta2 * before, np.abs(grad) + EPS)
            return np.asarray(first / (1 - beta1**self._steps) / self._second[name])
        self._second[name] = beta2 * before + (1 - beta2) * grad * grad
        corrected = np.sqrt(self._second[name] / (1 - beta2**self._steps))
        return np.asarray(first / (1 - beta1**self._steps) / (corrected + EPS))
