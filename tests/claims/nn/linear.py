"""Evidence for the linear layer: gradient descent through its pullback ends at least squares."""

import numpy as np

from refnorm.claims import Claim
from refnorm.nn import linear_vjp


def claims() -> list[Claim]:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((200, 8)), rng.standard_normal((200, 3))
    weight, bias = np.zeros((8, 3)), np.zeros(3)
    for _ in range(400):
        y, pullback = linear_vjp(x, weight, bias)
        _, dweight, dbias = pullback((y - target) / len(x))
        weight, bias = weight - 0.5 * dweight, bias - 0.5 * dbias
    solution = np.linalg.lstsq(np.c_[x, np.ones(len(x))], target, rcond=None)[0]
    difference = float(np.abs(np.r_[weight, bias[None]] - solution).max())
    return [
        Claim(
            statement="Gradient descent on the squared error arrives at the least-squares solution.",
            expected="after 400 steps, largest difference from LAPACK's solution below 1e-10",
            holds=difference < 1e-10,
            figures={"largest difference": difference},
        )
    ]
