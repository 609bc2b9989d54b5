"""Short texts, and their likeness before and after an encoder has learned from pairs."""

import itertools

import numpy as np

from refnorm.models import bert_embed, bert_embed_vjp, bert_init
from refnorm.poincare import RiemannianAdam
from refnorm.softmax import cross_entropy_vjp

TOPICS, OWN, COMMON, STEPS, TEMPERATURE = 6, 6, 12, 80, 0.1
SIZES = {"vocabulary": TOPICS * OWN + COMMON, "hidden": 24, "inner": 48, "layers": 2, "positions": 12}


def packed(rng, topics):
    """Draw texts of a few words, six of ten from the topic's own and the rest common; return them end to end."""
    texts = []
    for topic in topics:
        length = int(rng.integers(4, 9))
        own, common = topic * OWN + rng.integers(OWN, size=length), TOPICS * OWN + rng.integers(COMMON, size=length)
        texts.append(np.where(rng.random(length) < 0.6, own, common))
    return np.concatenate(texts), np.cumsum([0, *map(len, texts)])


def trained(params, rng):
    """Return the parameters after some steps towards finding the partner of each text among one of every topic."""
    optimizer = RiemannianAdam(learning_rate=0.01, betas=(0.9, 0.99), curvature=None)
    state, labels = optimizer.init(params), np.arange(TOPICS)
    for _ in range(STEPS):
        y, pullback = bert_embed_vjp(params, *packed(rng, [*labels, *labels]), heads=4)
        left, right = y[:TOPICS], y[TOPICS:]
        _, back = cross_entropy_vjp(left @ right.T / TEMPERATURE, labels)
        error = back(np.array(1.0))[0] / TEMPERATURE
        params, state = optimizer.step(params, pullback(np.concatenate([error @ right, error.T @ left]))[0], state)
    return params


def figure():
    """Left: thirty texts of 4 to 8 words, five of each topic. Colours are words of a topic, grey ones occur in all; the
    empty places at the right are what padding would compute and packing does not. Middle: cosines of the texts' embeddings,
    by an untrained encoder: all are alike. Right: the same after 80 steps on other texts, through the backward pass of this
    chapter. It was never told the topics, only which two texts belong together; the five of a topic are squares
    on the diagonal, and each text's nearest neighbour is of its own topic."""
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    start = bert_init(rng, **SIZES)
    ids, offsets = packed(rng, np.repeat(np.arange(TOPICS), 5))
    table = np.full((len(offsets) - 1, np.diff(offsets).max()), np.nan)
    for row, (begin, end) in enumerate(itertools.pairwise(offsets)):
        table[row, : end - begin] = ids[begin:end] // OWN
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.4), layout="constrained")
    axes[0].imshow(table, cmap=plt.get_cmap("viridis").with_extremes(over="#8a8a8a"), vmax=TOPICS - 1, aspect="auto")
    axes[0].set_title("words", fontsize=11)
    axes[0].set_ylabel("text")
    for ax, (name, params) in zip(axes[1:], (("before", start), ("after", trained(start, rng))), strict=True):
        y = bert_embed(params, ids, offsets, heads=4)
        image = ax.imshow(y @ y.T, cmap="PuOr_r", vmin=-1, vmax=1)
        ax.set_title(f"cosines, {name}", fontsize=11)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    fig.colorbar(image, ax=axes[2], ticks=[-1, 0, 1])
    return fig
