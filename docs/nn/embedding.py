"""The rows of a table before and after it has learned to predict the next word."""

import numpy as np

from refnorm import nn
from refnorm.softmax import cross_entropy_vjp

KINDS = (("a", "the"), ("cat", "dog", "cow", "horse"), ("eats", "sleeps", "runs"), ("full stop",))
WORDS = [word for kind in KINDS for word in kind]
STEPS, RATE = 400, 0.5


def text(rng, sentences=300):
    """Return the ids of random sentences: article, animal, verb, full stop."""
    return np.array([WORDS.index(str(rng.choice(kind))) for _ in range(sentences) for kind in KINDS])


def learn(rng):
    """Return the table before and after learning to predict each word from the one before it."""
    ids = text(rng)
    table, weight = 0.3 * rng.standard_normal((len(WORDS), 2)), rng.standard_normal((2, len(WORDS)))
    start = table
    for _ in range(STEPS):
        vectors, back_table = nn.embedding_vjp(ids[:-1], table)
        scores, back_linear = nn.linear_vjp(vectors, weight)
        _, back_loss = cross_entropy_vjp(scores, ids[1:])
        dvectors, dweight, _ = back_linear(*back_loss(np.float64(1)))
        table, weight = table - RATE * back_table(dvectors)[0], weight - RATE * dweight
    return start, table


def figure():
    """A table of ten words with two numbers each; mark and colour show the kind of word. Left, as it was drawn at random. Right, after it has learned, with a linear
    layer on top, to predict the next word in sentences like "the dog runs" with a full stop. Nobody told it what an article, an animal
    or a verb is; words after which the same words come have ended up in the same place."""
    import matplotlib.pyplot as plt

    styles = (("o", "#1f77b4"), ("s", "#d62728"), ("^", "#2ca02c"), ("D", "black"))
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
    for ax, table in zip(axes, learn(np.random.default_rng(1)), strict=True):
        for kind, (marker, color) in zip(KINDS, styles, strict=True):
            rows = table[[WORDS.index(word) for word in kind]]
            ax.plot(*rows.T, marker, color=color, markersize=6)
            together = np.ptp(rows, axis=0).max() < 0.12 * np.ptp(table, axis=0).max()
            labels = [(rows.mean(axis=0), "\n   ".join(kind))] if together else zip(rows, kind, strict=True)
            for place, label in labels:
                ax.text(*place, "   " + label, va="center", color=color)
        ax.set(xlabel="first number", ylabel="second number")
        ax.margins(0.42, 0.22)
    return fig
