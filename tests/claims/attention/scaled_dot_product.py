"""Evidence for the scale of attention: without it, wide queries and keys saturate the softmax."""

import numpy as np

from refnorm.attention import scaled_dot_product_attention_vjp
from refnorm.claims import Claim

WIDTHS = (4, 16, 64, 256, 1024)
KEYS, ROWS = 32, 400


def measure(width, scale):
    """Return the mean largest weight, and the mean length of the gradient of the scores."""
    rng = np.random.default_rng(width)
    query, key = rng.standard_normal((ROWS, 1, width)), rng.standard_normal((ROWS, KEYS, width))
    # With unit vectors as values the output is the weights.
    value = np.broadcast_to(np.eye(KEYS), (ROWS, KEYS, KEYS))
    weights, pullback = scaled_dot_product_attention_vjp(query, key, value, scale=scale)
    dquery = pullback(rng.standard_normal(weights.shape))[0]
    # Per unit of change of the scores, whose own sensitivity to the query is scale times a key.
    gradient = np.linalg.norm(dquery, axis=-1) / (scale * np.sqrt(width))
    return float(weights.max(axis=-1).mean()), float(gradient.mean())


def table():
    return {width: (measure(width, 1.0), measure(width, 1 / np.sqrt(width))) for width in WIDTHS}


def claims() -> list[Claim]:
    found = table()
    (plain_weight, plain_gradient), (scaled_weight, scaled_gradient) = found[1024]
    (_, narrow_gradient), _ = found[4]
    steady = [scaled for _, (_, scaled) in found.values()]
    return [
        Claim(
            statement="Scalar products of wide vectors grow and push the softmax to where its gradient is small; "
            "dividing by the square root of the width counteracts this (section 3.2.1 of the paper).",
            expected="width 1024: mean largest weight above 0.9 without the scale and below 0.3 with it; gradient "
            "below a third of that at width 4 without it; with it, within a factor 1.5 over all widths",
            holds=plain_weight > 0.9
            and scaled_weight < 0.3
            and plain_gradient < narrow_gradient / 3
            and max(steady) / min(steady) < 1.5,
            figures={
                "largest weight, width 1024, no scale": plain_weight,
                "largest weight, width 1024, scaled": scaled_weight,
                "gradient, width 4, no scale": narrow_gradient,
                "gradient, width 1024, no scale": plain_gradient,
                "gradient, width 1024, scaled": scaled_gradient,
                "gradient, scaled, largest over smallest of all widths": max(steady) / min(steady),
            },
        )
    ]


def figure():
    """Mean largest attention weight (left) and gradient (right) against the width, with and without scale."""
    import matplotlib.pyplot as plt

    found = table()
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for which, label in ((0, "no scale"), (1, "1 / sqrt(width)")):
        for column, title in ((0, "largest weight"), (1, "gradient")):
            axes[column].plot(WIDTHS, [found[width][which][column] for width in WIDTHS], "o-", label=label)
            axes[column].set(title=title, xlabel="width of query and key", xscale="log")
    axes[1].set_yscale("log")
    axes[0].legend()
    return fig
