"""Truth for StableMax: mpmath with 50 digits, PyTorch in float64, hand calculations."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def s(v):
    v = mpmath.mpf(float(v))
    return v + 1 if v >= 0 else 1 / (1 - v)


def shares(row):
    terms = [s(v) for v in row]
    return [term / mpmath.fsum(terms) for term in terms]


def torch_log_stablemax(x, axis):
    s = torch.where(x < 0, 1 / (1 - x), x + 1)
    return torch.log(s / s.sum(axis, keepdim=True))


def cases():
    rng = np.random.default_rng(2501)
    found = []

    def add(function, name, args, expected, tolerance, source=MPMATH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    hand = np.array([1.0, 0.0, -1.0])
    add("stable_s", "hand calculation", (hand,), np.array([2, 1, 0.5]), Tolerance(), "by hand")
    add(
        "stable_s", "hand calculation", (hand,), (np.array([1, 1, 0.25]),), Tolerance(), "by hand", cotangent=np.ones(3)
    )
    add("stablemax", "hand calculation", (hand,), np.array([4, 2, 1]) / 7, Tolerance(1, "ulp"), "by hand")
    loss = np.array(float(mpmath.log(mpmath.mpf(7) / 4)))
    add("stablemax_cross_entropy", "hand calculation", (hand[None], np.array([0])), loss, Tolerance(4, "ulp"))
    add(
        "stablemax_cross_entropy", "hand calculation", (hand[None], np.array([0])),
        (np.array([[-3 / 14, 2 / 7, 1 / 14]]),), Tolerance(4, "ulp"), "by hand", cotangent=np.array(1.0),
    )  # fmt: skip
    inf, nan = np.inf, np.nan
    special = np.array([[1, 1, -inf], [-inf] * 3, [inf, 0, 1], [nan, 0, 1]])
    add(
        "stablemax",
        "masked, infinite and NaN entries",
        (special,),
        np.array([[0.5, 0.5, 0], *[[nan] * 3] * 3]),
        Tolerance(),
        "by hand",
    )

    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        for scale in (1e-3, 1, 30, 1e6):
            x = (scale * rng.standard_normal((3, 40))).astype(dtype)
            truth = [shares(row) for row in x]
            as_float = np.array([[float(p) for p in row] for row in truth])
            logs = np.array([[float(mpmath.log(p)) for p in row] for row in truth])
            add("stablemax", f"{label}, N(0, {scale:g})", (x,), as_float, Tolerance(4, "ulp"))
            add("log_stablemax", f"{label}, N(0, {scale:g})", (x,), logs, Tolerance(8, "ulp"))
        add(
            "stable_s", f"{label}, N(0, 1e6)", (x,), np.array([[float(s(v)) for v in row] for row in x]), Tolerance(2, "ulp")
        )  # fmt: skip
        sure = np.zeros((1, 113), dtype)
        sure[0, 5] = 1e6
        others = mpmath.mpf(112) / (mpmath.mpf(10) ** 6 + 113)
        add(
            "stablemax_cross_entropy", f"{label}, a logit of a million", (sure, np.array([5])),
            np.array(float(-mpmath.log1p(-others))), Tolerance(8, "ulp"),
        )  # fmt: skip
        slopes = np.full((1, 113), float(others / 112))
        slopes[0, 5] = float(-others / (1 + mpmath.mpf(10) ** 6))
        add(
            "stablemax_cross_entropy", f"{label}, a logit of a million", (sure, np.array([5])), (slopes,),
            Tolerance(8, "ulp"), cotangent=np.array(1.0, dtype),
        )  # fmt: skip

    x, g = 3 * rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    target, weights = np.array([0, 6, 3, 3, 1]), rng.standard_normal(5)
    limit = Tolerance(1e-14, "relative_of_largest")
    for axis in (0, 1):
        for function, of_log in (("stablemax", torch.exp), ("log_stablemax", lambda z: z)):
            t = torch.tensor(x, requires_grad=True)
            of_log(torch_log_stablemax(t, axis)).backward(torch.tensor(g))
            add(function, f"axis {axis}", (x,), (t.grad.numpy(),), limit, TORCH, options={"axis": axis}, cotangent=g)
    for reduction, cotangent in (("mean", np.array(1.5)), ("sum", np.array(-0.5)), ("none", weights)):
        t = torch.tensor(x, requires_grad=True)
        losses = -torch_log_stablemax(t, 1)[torch.arange(5), torch.tensor(target)]
        value = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]
        value.backward(torch.tensor(cotangent))
        options = {"reduction": reduction}
        add("stablemax_cross_entropy", reduction, (x, target), value.detach().numpy(), limit, TORCH, options=options)
        add(
            "stablemax_cross_entropy",
            reduction,
            (x, target),
            (t.grad.numpy(),),
            limit,
            TORCH,
            options=options,
            cotangent=cotangent,
        )

    add(
        "orthogonalize_gradient", "rescaled", (np.array([1.0, 0.0]), np.array([3.0, 4.0])), np.array([0.0, 5.0]),
        Tolerance(1, "ulp"), "by hand",
    )  # fmt: skip
    add(
        "orthogonalize_gradient", "not rescaled", (np.array([1.0, 1.0]), np.array([1.0, 0.0])), np.array([0.5, -0.5]),
        Tolerance(1, "ulp"), "by hand", options={"rescale": False},
    )  # fmt: skip
    add(
        "orthogonalize_gradient", "diagonal weights", (np.array([1.0, 1.0]), np.array([1.0, 0.0])),
        np.array([1, -1]) / np.sqrt(2), Tolerance(2, "ulp"), "by hand",
    )  # fmt: skip
    for rescale in (True, False):
        weight, grad = rng.standard_normal((2, 4, 6)).astype(np.float32)
        w, g = (mpmath.matrix([mpmath.mpf(float(v)) for v in a.ravel()]) for a in (weight, grad))
        left = g - (w.T * g)[0] / (w.T * w)[0] * w
        if rescale:
            left = left * (mpmath.norm(g) / mpmath.norm(left))
        expected = np.array([float(v) for v in left]).reshape(4, 6)
        add(
            "orthogonalize_gradient", f"float32 matrix, rescale {rescale}", (weight, grad), expected,
            Tolerance(2, "ulp"), options={"rescale": rescale},
        )  # fmt: skip
    logits = np.array([[10.0, 0], [20, 0], [20, 0], [0, 40]])
    add(
        "softmax_collapse_rate", "one of four rows in float32", (logits, np.array([0, 0, 1, 0])), np.array(0.25),
        Tolerance(), "by hand: exp(-10) counts in a float32 sum, exp(-20) does not; the last two are wrong answers",
    )  # fmt: skip
    add(
        "nlm_cosine", "two arrays", ([np.array([1.0, 0.0]), np.ones(2)], [np.array([-3.0, 4.0]), np.ones(2)]),
        [np.array(0.6), np.array(-1.0)], Tolerance(2, "ulp"), "by hand",
    )  # fmt: skip
    return found
