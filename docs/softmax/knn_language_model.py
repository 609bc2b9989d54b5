"""Stored contexts that vote for the next character, beside a model that knows only the last one."""

import numpy as np
from sklearn.datasets import load_iris

from refnorm.softmax import knn_log_prob, knn_search

WINDOW, NEIGHBOURS, TEMPERATURE, WEIGHT = 12, 32, 0.3, 0.5
QUERY = "e transactio"


def experiment():
    """The stored contexts closest to the query, their scores, and the next character by model and by neighbours."""
    text = " ".join(load_iris().DESCR.lower().split())
    letters = sorted(set(text))
    codes = np.array([letters.index(c) for c in text])
    # A context's vector is the sum of its characters' random embeddings, the last one weighing most.
    embedding = np.random.default_rng(0).standard_normal((len(letters), 24)) / np.sqrt(24)
    windows = np.lib.stride_tricks.sliding_window_view(codes[:-1], WINDOW)
    vectors = np.einsum("nwd,w->nd", embedding[windows], 0.7 ** np.arange(WINDOW - 1, -1, -1.0))
    values, stored = codes[WINDOW:], int(0.8 * len(windows))

    pairs = np.full((len(letters), len(letters)), 0.05)
    np.add.at(pairs, (codes[:stored], codes[1 : stored + 1]), 1)
    model = pairs[letters.index(QUERY[-1])]
    query = text.index(QUERY, stored)
    scores, found = knn_search(vectors[query : query + 1], vectors[:stored], k=NEIGHBOURS)
    vote = knn_log_prob(scores, values[found], vocab=len(letters), temperature=TEMPERATURE)
    contexts = [text[i + 3 : i + WINDOW + 1] for i in found[0]]
    return letters, contexts, scores[0], model / model.sum(), np.exp(vote[0])


def figure():
    """What follows "...transactio"? Left: the ten contexts of a stored text that are closest to it, each with the character that followed, and
    their shares of the softmax over 32 neighbours. The word "transaction" is not in the store, but words with its ending are. Right: the
    model, which counts pairs of characters and knows only that an o came last, spreads its probability; the neighbours give n 0.70; half of
    each gives 0.46."""
    import matplotlib.pyplot as plt

    letters, contexts, scores, model, vote = experiment()
    share = np.exp((scores - scores.max()) / TEMPERATURE)
    share /= share.sum()
    mixture = (1 - WEIGHT) * model + WEIGHT * vote
    best = np.argsort(-mixture)[:6]
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", width_ratios=(1, 1.3))
    left.barh(np.arange(10), share[:10], color="#1f77b4")
    left.set_yticks(np.arange(10), [f"{c[:-1]}|{c[-1]}".replace(" ", "␣") for c in contexts[:10]], family="monospace")
    left.invert_yaxis()
    left.set(xlabel="share of a neighbour")
    left.grid(visible=False, axis="y")
    at = np.arange(len(best))
    for offset, values, color, name in (
        (-0.27, model, "#8a8a8a", "model"),
        (0, vote, "#1f77b4", "neighbours"),
        (0.27, mixture, "#d62728", "half of each"),
    ):
        right.bar(at + offset, values[best], 0.25, color=color, label=name)
    right.set_xticks(at, [letters[i].replace(" ", "␣") for i in best], family="monospace")
    right.set(xlabel="next character", ylabel="probability")
    right.grid(visible=False, axis="x")
    right.legend()
    return fig
