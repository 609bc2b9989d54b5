"""Evidence for nearest-neighbour language models: neighbours help, their temperature matters, search may be approximate."""

import functools

import numpy as np
from sklearn import datasets

from refnorm.claims import Claim
from refnorm.softmax import (
    cross_entropy_vjp,
    fit_interpolation,
    ivf_build,
    ivf_search,
    knn_log_prob,
    knn_search,
    log_softmax,
    perplexity,
)

WINDOW, EMBEDDING, HIDDEN, EPOCHS, BATCH, RATE = 8, 16, 64, 6, 128, 3e-3
NEIGHBOURS, CELLS, PROBES = 512, 32, 16
TEMPERATURES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
SEED = 0


def claims() -> list[Claim]:
    return [interpolation(), temperature(), nothing(), approximate()]


@functools.cache
def corpus():
    """Contexts of 8 characters and the next one, from the descriptions of scikit-learn's data sets; 61 characters."""
    names = ("iris", "digits", "wine", "breast_cancer", "diabetes", "linnerud")
    text = "".join(getattr(datasets, f"load_{name}")().DESCR for name in names).lower()
    letters = sorted(set(text))
    codes = np.array([letters.index(c) for c in text])
    contexts = np.lib.stride_tricks.sliding_window_view(codes[:-1], WINDOW)
    return contexts, codes[WINDOW:], len(letters)


def forward(params, contexts):
    embedding, weight, bias, out, out_bias = params
    x = embedding[contexts].reshape(len(contexts), -1)
    hidden = np.tanh(x @ weight + bias)
    return x, hidden, hidden @ out + out_bias


def train(seed):
    contexts, following, vocabulary = corpus()
    rng = np.random.default_rng(seed)
    inputs = WINDOW * EMBEDDING
    params = [
        0.1 * rng.standard_normal((vocabulary, EMBEDDING)),
        rng.standard_normal((inputs, HIDDEN)) / np.sqrt(inputs),
        np.zeros(HIDDEN),
        rng.standard_normal((HIDDEN, vocabulary)) / np.sqrt(HIDDEN),
        np.zeros(vocabulary),
    ]
    first, second = ([np.zeros_like(p) for p in params] for _ in range(2))
    seen, step = int(0.8 * len(contexts)), 0
    for _ in range(EPOCHS):
        order = rng.permutation(seen)
        for start in range(0, seen - BATCH + 1, BATCH):
            rows, step = order[start : start + BATCH], step + 1
            x, hidden, logits = forward(params, contexts[rows])
            (dlogits,) = cross_entropy_vjp(logits, following[rows])[1](1.0)
            dhidden = (dlogits @ params[3].T) * (1 - hidden**2)
            dembedding = np.zeros_like(params[0])
            np.add.at(dembedding, contexts[rows], (dhidden @ params[1].T).reshape(BATCH, WINDOW, EMBEDDING))
            grads = [dembedding, x.T @ dhidden, dhidden.sum(axis=0), hidden.T @ dlogits, dlogits.sum(axis=0)]
            scale = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            for i, grad in enumerate(grads):
                first[i] = 0.9 * first[i] + 0.1 * grad
                second[i] = 0.999 * second[i] + 0.001 * grad**2
                params[i] = params[i] - scale * first[i] / (np.sqrt(second[i]) + 1e-8)
    return params, seen


def at_target(log_p, target):
    return np.take_along_axis(log_p, target[:, None], axis=1)[:, 0]


@functools.cache
def experiment(seed):
    """Log-probabilities of held-out characters: the model's, and the neighbours' by search and temperature."""
    contexts, following, vocabulary = corpus()
    params, seen = train(seed)
    keys, values = forward(params, contexts[:seen])[1], following[:seen]
    _, queries, logits = forward(params, contexts[seen::2])
    target = following[seen::2]
    index = ivf_build(keys, n_cells=CELLS, rng=np.random.default_rng(seed))
    searches = {
        "exact": knn_search(queries, keys, k=NEIGHBOURS),
        "approximate": ivf_search(index, queries, k=NEIGHBOURS, n_probe=PROBES),
    }
    votes = {
        (name, t): at_target(knn_log_prob(scores, values[found], vocab=vocabulary, temperature=t), target)
        for name, (scores, found) in searches.items()
        for t in TEMPERATURES
    }
    return at_target(log_softmax(logits), target), votes


def tuned(seed, search, temperatures):
    """Fit weight and temperature on even positions; return them and the perplexity on odd ones."""
    lm, votes = experiment(seed)
    fits = {t: fit_interpolation(lm[::2], votes[search, t][::2]) for t in temperatures}
    best = max(fits, key=lambda t: fits[t].history["log_likelihood"][-1])
    weight = fits[best].knn_weight
    mixed = np.logaddexp(np.log1p(-weight) + lm[1::2], np.log(weight) + votes[search, best][1::2])
    return weight, best, perplexity(mixed)


def model_alone(seed):
    return perplexity(experiment(seed)[0][1::2])


def interpolation() -> Claim:
    alone = model_alone(SEED)
    weight, _, mixed = tuned(SEED, "exact", (1.0,))
    return Claim(
        statement="The training contexts themselves, looked up by the model's own hidden state, improve the model that was "
        "trained on them (14 975 contexts of 8 characters, 61 characters, 512 neighbours).",
        expected="perplexity on held-out text, weight fitted on other text: at most 0.92 of the model's",
        holds=mixed <= 0.92 * alone,
        figures={
            "model: perplexity": alone,
            "with neighbours: perplexity": mixed,
            "ratio": mixed / alone,
            "fitted weight": weight,
        },
    )


def temperature() -> Claim:
    _, _, plain = tuned(SEED, "exact", (1.0,))
    weight, best, mixed = tuned(SEED, "exact", TEMPERATURES)
    return Claim(
        statement="A good part of the gain needs the right temperature of the neighbours' softmax.",
        expected="weight and temperature fitted: perplexity at most 0.97 of that at temperature 1",
        holds=mixed <= 0.97 * plain,
        figures={
            "with neighbours at the fitted temperature: perplexity": mixed,
            "ratio": mixed / plain,
            "fitted temperature": best,
            "fitted weight": weight,
        },
    )


def nothing() -> Claim:
    lm, votes = experiment(SEED)
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log1p(-0.0) + lm, np.log(0.0) + votes["exact", 1.0])
    difference = float(np.abs(mixed - lm).max())
    return Claim(
        statement="Without weight on the neighbours, the model is what it was.",
        expected="equal bit for bit",
        holds=difference == 0,
        figures={"largest difference of log-probabilities": difference},
    )


def approximate() -> Claim:
    exact, found = (tuned(SEED, search, TEMPERATURES)[2] for search in ("exact", "approximate"))
    return Claim(
        statement="Looking into half of 32 cells of keys is as good as looking at all of them.",
        expected="perplexity within 1 % of exact search",
        holds=abs(found / exact - 1) < 0.01,
        figures={"exact: perplexity": exact, "approximate: perplexity": found, "ratio": found / exact},
    )


def figure():
    """Perplexity on held-out text against the weight of the neighbours, for five temperatures of their softmax; at weight 0
    the model is alone."""
    import matplotlib.pyplot as plt

    lm, votes = experiment(SEED)
    fig, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    weights = np.linspace(0, 0.95, 40)
    for t in (0.2, 0.5, 1.0, 2.0, 8.0):
        with np.errstate(divide="ignore"):
            values = [
                perplexity(np.logaddexp(np.log1p(-w) + lm[1::2], np.log(w) + votes["exact", t][1::2])) for w in weights
            ]
        ax.plot(weights, values, label=f"temperature {t:g}")
    ax.set(
        xlabel="weight of the neighbours", ylabel="perplexity", title="512 neighbours in the hidden layer", ylim=(9, 20)
    )
    ax.legend(ncols=3, loc="upper center")
    return fig
