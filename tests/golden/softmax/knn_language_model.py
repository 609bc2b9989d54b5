"""Truth for the nearest-neighbour language model: hand calculations, scikit-learn's search, PyTorch autograd, mpmath."""

from dataclasses import make_dataclass

import mpmath
import numpy as np
import sklearn
import torch
from sklearn.neighbors import NearestNeighbors

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
SKLEARN = f"scikit-learn {sklearn.__version__}, brute force"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def torch_vote(scores, values, temperature, vocab):
    """Log-probabilities of the tokens, with -inf where there is no neighbour."""
    log_share = torch.log_softmax(scores / temperature, dim=1)
    columns = [
        torch.logsumexp(log_share.masked_fill(torch.tensor(values != w), -torch.inf), dim=1) for w in range(vocab)
    ]
    return torch.stack(columns, dim=1)


Index = make_dataclass("IVFIndex", ["keys", "centroids", "cells"])


def cases():
    rng = np.random.default_rng(2301)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    line = (np.array([[0.0]]), np.array([[0.0], [1.0], [2.0]]))
    for metric, scores, indices in (
        ("sqeuclidean", [0.0, -1.0, -4.0], [0, 1, 2]),
        ("euclidean", [0.0, -1.0, -2.0], [0, 1, 2]),
        ("inner_product", [0.0, 0.0, 0.0], [0, 1, 2]),
    ):
        add(
            "knn_search", f"three keys on a line, {metric}", line, (np.array([scores]), np.array([indices])), Tolerance(),
            "by hand", options={"k": 3, "metric": metric},
        )  # fmt: skip
    queries, keys = rng.standard_normal((5, 4)), rng.standard_normal((30, 4))
    for metric, power in (("sqeuclidean", 2), ("euclidean", 1)):
        distance, indices = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(keys).kneighbors(queries)
        add(
            "knn_search", f"7 of 30 keys, {metric}", (queries, keys), (-(distance**power), indices),
            Tolerance(1e-12, "relative"), SKLEARN, options={"k": 7, "metric": metric},
        )  # fmt: skip
    g = rng.standard_normal((5, 7))
    for metric in ("sqeuclidean", "euclidean", "inner_product"):
        tq, tk = (torch.tensor(v, requires_grad=True) for v in (queries, keys))
        apart = ((tq[:, None] - tk[None]) ** 2).sum(dim=2)
        every = {"sqeuclidean": -apart, "euclidean": -torch.sqrt(apart), "inner_product": tq @ tk.T}[metric]
        torch.topk(every, 7, dim=1).values.backward(torch.tensor(g))
        add(
            "knn_search", f"7 of 30 keys, {metric}", (queries, keys), (tq.grad.numpy(), tk.grad.numpy()),
            Tolerance(1e-12, "relative_of_largest"), options={"k": 7, "metric": metric}, cotangent=g,
        )  # fmt: skip

    scores, values = np.array([[0.0, -1.0, -4.0]]), np.array([[0, 1, 0]])
    total = 1 + mpmath.exp(-1) + mpmath.exp(-4)
    first, second = (1 + mpmath.exp(-4)) / total, mpmath.exp(-1) / total
    exact = np.array([[float(mpmath.log(first)), float(mpmath.log(second)), -np.inf]])
    add("knn_log_prob", "three neighbours", (scores, values), exact, Tolerance(4, "ulp"), MPMATH, options={"vocab": 3})
    mixed = np.array(float(-mpmath.log(mpmath.mpf("0.75") / 2 + first / 4)))
    add(
        "knn_lm_nll",
        "three neighbours",
        (np.zeros((1, 2)), scores, values, np.array([0]), 0.25, 1.0),
        mixed,
        Tolerance(4, "ulp"),
        MPMATH,
    )
    far = np.array([[0.0, -5000.0, -5000.0]])
    add(
        "knn_log_prob", "far neighbours", (far, np.array([[0, 1, 1]])), np.array([[0, np.log(2) - 5000, -np.inf]]),
        Tolerance(2, "ulp"), "by hand", options={"vocab": 3},
    )  # fmt: skip

    scores, values = -3 * rng.exponential(size=(6, 9)), rng.integers(5, size=(6, 9))
    logits, target = 2 * rng.standard_normal((6, 5)), rng.integers(5, size=6)
    for temperature in (0.25, 1.0, 5.0):
        ts = torch.tensor(scores, requires_grad=True)
        value = torch_vote(ts, values, temperature, 5)
        seen = torch.isfinite(value)
        g = rng.standard_normal((6, 5))
        (value[seen] * torch.tensor(g)[seen]).sum().backward()
        options, name = {"vocab": 5, "temperature": temperature}, f"9 neighbours, temperature {temperature:g}"
        add(
            "knn_log_prob",
            name,
            (scores, values),
            value.detach().numpy(),
            Tolerance(1e-13, "relative"),
            options=options,
        )
        add(
            "knn_log_prob", name, (scores, values), (ts.grad.numpy(),), Tolerance(1e-12, "relative_of_largest"),
            options=options, cotangent=g,
        )  # fmt: skip
        for weight in (0.2, 0.9):
            for reduction, cotangent in (("mean", np.array(1.5)), ("none", rng.standard_normal(6))):
                leaves = tl, ts, tw, tt = [
                    torch.tensor(v, requires_grad=True)
                    for v in (logits, scores, np.array(weight), np.array(temperature))
                ]
                share = torch.softmax(ts / tt, dim=1)
                p_knn = (share * torch.tensor(values == target[:, None])).sum(dim=1)
                p_lm = torch.softmax(tl, dim=1)[torch.arange(6), torch.tensor(target)]
                nll = -torch.log((1 - tw) * p_lm + tw * p_knn)
                value = nll.mean() if reduction == "mean" else nll
                value.backward(torch.tensor(cotangent))
                args = (logits, scores, values, target, weight, temperature)
                name = f"{reduction}, weight {weight:g}, temperature {temperature:g}"
                options = {"reduction": reduction}
                add("knn_lm_nll", name, args, value.detach().numpy(), Tolerance(1e-12, "relative"), options=options)
                grads = tuple(v.grad.numpy() for v in leaves)
                add(
                    "knn_lm_nll",
                    name,
                    args,
                    grads,
                    Tolerance(1e-11, "relative_of_largest"),
                    options=options,
                    cotangent=cotangent,
                )
    add("perplexity", "two tokens", (np.log(np.array([0.5, 0.125])),), np.array(4.0), Tolerance(4, "ulp"), "by hand")
    keys = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0]])
    index = Index(keys, np.array([[0.5, 0], [10.5, 0]]), (np.array([0, 1]), np.array([2, 3])))
    for name, options, scores, indices in (
        ("one cell", {"k": 2, "n_probe": 1}, [[-4.0, -9.0]], [[1, 0]]),
        ("one cell has too few", {"k": 3, "n_probe": 1}, [[-4.0, -9.0, -49.0]], [[1, 0, 2]]),
        ("centroids for keys", {"k": 1, "n_probe": 2, "rescore": False}, [[-6.25]], [[0]]),
    ):
        found.append(
            GoldenCase(
                "softmax.ivf_search", name, (index, np.array([[3.0, 0]])), (np.array(scores), np.array(indices)),
                "by hand: squared distances", options=options,
            )
        )  # fmt: skip
    lm, near = (np.log(rng.dirichlet(np.ones(6))) for _ in range(2))
    odds = [mpmath.exp(mpmath.mpf(b) - mpmath.mpf(a)) - 1 for a, b in zip(lm.tolist(), near.tolist(), strict=True)]
    weight = mpmath.findroot(lambda w: mpmath.fsum(o / (1 + w * o) for o in odds), (0.01, 0.99), solver="anderson")
    found.append(
        GoldenCase(
            "softmax.fit_interpolation", "six tokens", (lm, near), {"knn_weight": np.array(float(weight))},
            "mpmath, 50 digits: root of the likelihood's derivative", Tolerance(1e-7, "relative"),
            {"tol": 1e-12, "max_iter": 100_000}, kind="fields",
        )
    )  # fmt: skip
    return found
