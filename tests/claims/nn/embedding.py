"""Evidence for the embedding lookup: the same as one-hot rows times the table, at the price of a copy."""

import numpy as np

from refnorm.claims import Claim
from refnorm.nn import embedding_vjp, linear_vjp


def claims() -> list[Claim]:
    rng = np.random.default_rng(0)
    table, ids = rng.standard_normal((50, 8)), rng.integers(50, size=400)
    y, pullback = embedding_vjp(ids, table)
    product, product_pullback = linear_vjp(np.eye(50)[ids], table)
    dy = rng.standard_normal(y.shape)
    value = float(np.abs(y - product).max())
    gradient = float(np.abs(pullback(dy)[0] - product_pullback(dy)[1]).max())
    return [
        Claim(
            statement="A lookup and its gradient are those of a linear layer on one-hot rows.",
            expected="values equal; gradients within 1e-12 (sums in another order)",
            holds=value == 0 and gradient < 1e-12,
            figures={"value, largest difference": value, "gradient, largest difference": gradient},
        )
    ]
