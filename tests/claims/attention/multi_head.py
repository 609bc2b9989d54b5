"""Evidence for several heads: one softmax cannot copy two positions at once, two can."""

import numpy as np

from refnorm.attention import multi_head_attention_vjp
from refnorm.claims import Claim

POSITIONS, CONTENT, STEPS, RATE = 6, 4, 600, 0.02
SEEDS = range(4)


def train(heads, seed):
    """Learn to output, at every position, the contents of the first and the last one; return the final loss."""
    rng = np.random.default_rng(seed)
    inner = 2 * CONTENT * 2
    shapes = ((CONTENT + POSITIONS, 3 * inner), (3 * inner,), (inner, 2 * CONTENT), (2 * CONTENT,))
    params = [rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in shapes]
    first, second = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    losses = []
    for step in range(1, STEPS + 1):
        content = rng.standard_normal((32, POSITIONS, CONTENT))
        x = np.concatenate([content, np.broadcast_to(np.eye(POSITIONS), (32, POSITIONS, POSITIONS))], axis=2)
        wanted = np.concatenate([content[:, :1], content[:, -1:]], axis=2)
        y, pullback = multi_head_attention_vjp(x, *params, heads=heads, scale=1.0)
        error = y - wanted
        losses.append(float((error**2).mean()))
        for i, gradient in enumerate(pullback(2 * error / error.size)[1:]):
            # Adam, whose step does not depend on the size of the gradient.
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.99 * second[i] + 0.01 * gradient**2
            mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.99**step)
            params[i] = params[i] - RATE * mean / (np.sqrt(square) + 1e-8)
    return float(np.mean(losses[-20:]))


def claims() -> list[Claim]:
    one, two = (np.array([train(heads, seed) for seed in SEEDS]) for heads in (1, 2))
    return [
        Claim(
            statement="Several heads look at several positions at once; with a single head, averaging inhibits "
            "this (section 3.2.2 of the paper). The task: copy the first and the last of six positions.",
            expected="two heads: every final loss below 0.05; one head: every final loss above 0.3",
            holds=bool(two.max() < 0.05 and one.min() > 0.3),
            figures={
                "one head, smallest final loss": float(one.min()),
                "two heads, largest final loss": float(two.max()),
            },
        )
    ]
