"""Truth for bank normalization: mpmath with 50 digits, SciPy, PyTorch autograd in float64, counting by hand."""

import mpmath
import numpy as np
import scipy
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
SCIPY = f"scipy {scipy.__version__}"


def torch_factor(sim, bank, sharpness, dynamic, k):
    """Log of the normalized similarities, and which rows are active."""
    log = sharpness * sim - torch.logsumexp(sharpness * bank, dim=0)
    if not dynamic:
        return log, torch.ones(len(sim), dtype=torch.bool)
    popular = torch.topk(bank, k, dim=1).indices.flatten()
    rows = torch.isin(sim.argmax(dim=1), popular)
    return torch.where(rows[:, None], log, sharpness * sim), rows


def cases():
    rng = np.random.default_rng(2310)
    found = []

    def add(function, name, args, expected, tolerance, source=TORCH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        sim, bank = np.array([[0.9, 0.8], [0.7, 0.1]], dtype), np.array([[0.9, 0.1], [0.8, 0.2]], dtype)
        logs = [mpmath.log(sum(mpmath.exp(10 * mpmath.mpf(float(v))) for v in column)) for column in bank.T]
        exact = np.array(
            [[float(10 * mpmath.mpf(float(v)) - log) for v, log in zip(row, logs, strict=True)] for row in sim]
        )
        options = {"sharpness": 10.0}
        limit = Tolerance(4, "ulp_of_largest")
        add("inverted_softmax", f"{label}, a hub", (sim, bank), exact, limit, MPMATH, options=options)
        add("dynamic_inverted_softmax", f"{label}, a hub", (sim, bank), exact, limit, MPMATH, options=options)
        turned = sim[:, ::-1].copy()
        inactive = np.array([[float(10 * mpmath.mpf(float(v))) for v in row] for row in turned])
        add(
            "dynamic_inverted_softmax",
            f"{label}, no popular item is best",
            (turned, bank),
            inactive,
            limit,
            MPMATH,
            options=options,
        )

    sim, queries, gallery = (rng.uniform(-1, 1, s) for s in ((6, 8), (2, 8), (3, 8)))
    g = rng.standard_normal((6, 8))
    close = Tolerance(1e-13, "relative_of_largest")
    for log in (True, False):
        for dynamic, inactive in ((False, None), (True, "exp"), (True, "raw")):
            options = {"log": log, "sharpness": 4.0} | ({"inactive": inactive, "k": 2} if dynamic else {})
            ts, tb = (torch.tensor(v, requires_grad=True) for v in (sim, queries))
            value, rows = torch_factor(ts, tb, 4.0, dynamic, 2)
            value = value if log else torch.exp(value)
            if inactive == "raw":
                value = torch.where(rows[:, None], value, ts)
            value.backward(torch.tensor(g))
            function = "dynamic_inverted_softmax" if dynamic else "inverted_softmax"
            name = f"log {log}, inactive {inactive}"
            add(function, name, (sim, queries), value.detach().numpy(), close, options=options)
            add(function, name, (sim, queries), (ts.grad.numpy(), tb.grad.numpy()), close, options=options, cotangent=g)

            leaves = ts, tq, tg = [torch.tensor(v, requires_grad=True) for v in (sim, queries, gallery)]
            logs, rows = zip(*(torch_factor(ts, b, s, dynamic, 1) for b, s in ((tq, 2.0), (tg, 3.0))), strict=True)
            factors = [torch.exp(v) for v in logs]
            mixed = torch.zeros(6, dtype=torch.bool)
            if inactive == "raw":
                factors = [torch.where(r[:, None], f, ts) for r, f in zip(rows, factors, strict=True)]
                mixed = ~(rows[0] & rows[1])
            value = factors[0] * factors[1]
            if log:
                value = torch.where(mixed[:, None], value, logs[0] + logs[1])
            value.backward(torch.tensor(g))
            options = {"log": log, "dynamic": dynamic, "query_sharpness": 2.0, "gallery_sharpness": 3.0}
            options |= {"inactive": inactive} if dynamic else {}
            args = (sim, queries, gallery)
            add("dual_bank_norm", name, args, value.detach().numpy(), close, options=options)
            add(
                "dual_bank_norm", name, args, tuple(v.grad.numpy() for v in leaves), close, options=options, cotangent=g
            )
    logs = (
        1 / 1.99 * sim
        - scipy.special.logsumexp(queries / 1.99, axis=0)
        + 3 * sim
        - scipy.special.logsumexp(3 * gallery, axis=0)
    )
    add("dual_bank_norm", "default sharpnesses", (sim, queries, gallery), logs, close, SCIPY)

    small = np.array([[0.9, 0.2, 0.1, 0.0], [0.8, 0.1, 0.7, 0.0], [0.1, 0.9, 0.3, 0.0]])
    for k, counts in ((1, [2, 1, 0, 0]), (2, [2, 2, 2, 0]), (4, [3, 3, 3, 3])):
        add("k_occurrence", f"{k} best", (small,), np.array(counts), Tolerance(), "by hand", options={"k": k})
        skew = np.array(scipy.stats.skew(counts)) if k < 4 else np.array(0.0)
        add(
            "hubness_skewness",
            f"{k} best",
            (small,),
            skew,
            Tolerance(1e-13, "relative"),
            SCIPY if k < 4 else "by hand",
            options={"k": k},
        )
    add(
        "hubness_skewness", "only what occurs", (np.concatenate([small, small[:1]]),), np.array(0.0), Tolerance(), "by hand: 3 and 1",
        options={"k": 1, "include_zero": False},
    )  # fmt: skip
    truth = np.array([1, 2, 1])
    for k, expected in ((1, 1 / 3), (2, 1.0)):
        add(
            "recall_at_k",
            f"{k} best",
            (small, truth),
            np.array(expected),
            Tolerance(1, "ulp"),
            "by hand",
            options={"k": k},
        )
    return found
