"""Truth for multi-label softmax losses: mpmath with 50 digits, PyTorch autograd in float64, hand calculations."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def sigmoid(v):
    return 1 / (1 + mpmath.exp(-v))


def exact_topk(row, k, sharpness):
    """Soft top-k of a list of mpf by 200 bisections."""
    low, high = -max(row) - 60 / sharpness, -min(row) + 60 / sharpness
    for _ in range(200):
        middle = (low + high) / 2
        if mpmath.fsum(sigmoid(sharpness * (v + middle)) for v in row) < k:
            low = middle
        else:
            high = middle
    return [sigmoid(sharpness * (v + low)) for v in row]


def exact_pullback(row, k, sharpness, cotangent, log):
    """Derivatives by differences with a step of 1e-20, whose error is 1e-40."""
    step, slopes = mpmath.mpf(10) ** -20, []

    def value(r):
        y = exact_topk(r, k, sharpness)
        return mpmath.fsum(c * (mpmath.log(v) if log else v) for c, v in zip(cotangent, y, strict=True))

    for j in range(len(row)):
        moved = [[v + s * step * (i == j) for i, v in enumerate(row)] for s in (1, -1)]
        slopes.append(float((value(moved[0]) - value(moved[1])) / (2 * step)))
    return np.array(slopes)


def losses(name, scores, right, weights, normalize):
    count = torch.clamp(right.sum(dim=1), min=1) if normalize else 1
    if name == "multilabel_bce_loss":
        signed = torch.where(right, -scores, scores)
        return (torch.where(right, weights, 1.0) * torch.nn.functional.softplus(signed)).mean(dim=1)
    if name == "multilabel_softmax_loss":
        cost = -torch.log_softmax(scores, dim=1)
    else:
        rival = torch.logsumexp(scores.masked_fill(right, -torch.inf), dim=1, keepdim=True)
        cost = torch.logaddexp(rival, scores) - scores
    return (torch.where(right, weights * cost, 0.0)).sum(dim=1) / count


def cases():
    rng = np.random.default_rng(2310)
    found = []

    def add(function, name, args, expected, tolerance, source=MPMATH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    rival = mpmath.log(1 + mpmath.exp(-1))
    hand = sum(mpmath.log(1 + mpmath.exp(rival - s)) for s in (2, 1)) / 2
    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        scores, right = np.array([[2, 1, 0, -1]], dtype), np.array([[True, True, False, False]])
        add(
            "decoupled_softmax_loss",
            f"{label}, two positives",
            (scores, right),
            np.array(float(hand)),
            Tolerance(4, "ulp"),
        )
        spread = np.array([[60, 0, -5, 3], [-400, 2, 300, 1]], dtype)
        right = np.array([[True, False, True, False], [True, True, False, False]])
        rows = []
        for row, mask in zip(spread, right, strict=True):
            out = mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in row[~mask]))
            rows.append(float(mpmath.fsum(mpmath.log1p(mpmath.exp(out - mpmath.mpf(float(v)))) for v in row[mask]) / 2))
        add(
            "decoupled_softmax_loss", f"{label}, far apart", (spread, right), np.array(rows), Tolerance(4, "ulp"),
            options={"reduction": "none"},
        )  # fmt: skip

    scores = 2 * rng.standard_normal((5, 8))
    right = rng.random((5, 8)) < 0.3
    right[2], right[3, 0], right[3, 1] = False, True, True
    weights = rng.uniform(0.2, 2, (5, 8))
    per_row = rng.standard_normal(5)
    for name in ("decoupled_softmax_loss", "multilabel_softmax_loss", "multilabel_bce_loss"):
        for reduction, cotangent in (("mean", np.array(1.25)), ("sum", np.array(-0.5)), ("none", per_row)):
            for normalize in (True, False) if name != "multilabel_bce_loss" else (None,):
                ts, tw = (torch.tensor(v, requires_grad=True) for v in (scores, weights))
                rows = losses(name, ts, torch.tensor(right), tw, normalize)
                value = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
                value.backward(torch.tensor(cotangent))
                options = {"reduction": reduction} | (
                    {} if normalize is None else {"normalize_by_positives": normalize}
                )
                label = f"{reduction}, normalized: {normalize}"
                common = {"options": options, "source": TORCH}
                args = (scores, right, weights)
                add(name, label, args, value.detach().numpy(), Tolerance(1e-13, "relative_of_largest"), **common)
                grads = (ts.grad.numpy(), tw.grad.numpy())
                add(name, label, args, grads, Tolerance(1e-13, "relative_of_largest"), cotangent=cotangent, **common)
    alone = np.array([[True, True, True]])
    add(
        "decoupled_softmax_loss",
        "no negatives",
        (scores[:1, :3], alone),
        np.array(0.0),
        Tolerance(),
        "by hand: nothing competes",
    )
    add(
        "decoupled_softmax_loss",
        "no negatives",
        (scores[:1, :3], alone),
        (np.zeros((1, 3)),),
        Tolerance(),
        "by hand",
        cotangent=np.array(1.0),
    )

    for k, sharpness in ((1, 1.0), (2, 0.5), (4, 5.0), (5, 1.0)):
        row = 2 * rng.standard_normal((2, 6))
        exact = [[mpmath.mpf(float(v)) for v in r] for r in row]
        y = [exact_topk(r, k, mpmath.mpf(sharpness)) for r in exact]
        options, name = {"sharpness": sharpness}, f"{k} of 6, sharpness {sharpness:g}"
        g = rng.standard_normal((2, 6))
        for function, log in (("soft_topk", False), ("log_soft_topk", True)):
            value = np.array([[float(mpmath.log(v) if log else v) for v in r] for r in y])
            add(function, name, (row, k), value, Tolerance(1e-13, "relative"), options=options)
            slopes = np.array(
                [exact_pullback(r, k, mpmath.mpf(sharpness), c, log) for r, c in zip(exact, g, strict=True)]
            )
            add(
                function,
                name,
                (row, k),
                (slopes,),
                Tolerance(1e-12, "relative_of_largest"),
                options=options,
                cotangent=g,
            )
        positives = np.array([[False, True, True, False, False, False], [True, False, False, False, False, False]])
        costs = [
            -mpmath.fsum(mpmath.log(v) for v, p in zip(r, m, strict=True) if p) / m.sum()
            for r, m in zip(y, positives, strict=True)
        ]
        add(
            "soft_topk_loss", name, (row, positives), np.array(float(sum(costs) / 2)), Tolerance(1e-13, "relative"),
            options={"k": k, "sharpness": sharpness},
        )  # fmt: skip
        ones = -1.0 * positives / positives.sum(axis=1, keepdims=True) / 2
        slopes = np.array(
            [exact_pullback(r, k, mpmath.mpf(sharpness), c, True) for r, c in zip(exact, ones, strict=True)]
        )
        add(
            "soft_topk_loss", name, (row, positives), (slopes,), Tolerance(1e-12, "relative_of_largest"),
            options={"k": k, "sharpness": sharpness}, cotangent=np.array(1.0),
        )  # fmt: skip
    for sharpness in (0.25, 1.0, 8.0):
        half = mpmath.mpf(sharpness) / 2
        add(
            "soft_topk", f"two scores, sharpness {sharpness:g}", (np.array([1.0, 0.0]), 1),
            np.array([float(sigmoid(half)), float(sigmoid(-half))]), Tolerance(2, "ulp"), options={"sharpness": sharpness},
        )  # fmt: skip
    far = np.array([2000.0, 0.0])
    add(
        "log_soft_topk",
        "saturated",
        (far, 1),
        np.array([0.0, -1000.0]),
        Tolerance(1, "ulp"),
        "by hand: y_1 = exp(-1000) / (1 + exp(-1000))",
    )
    add(
        "log_soft_topk", "saturated", (far, 1), (np.array([-0.5, 0.5]),), Tolerance(2, "ulp"), "by hand: z_1 = (s_1 - s_0) / 2",
        cotangent=np.array([0.0, 1.0]),
    )  # fmt: skip
    return found
