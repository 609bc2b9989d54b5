"""Truth for log-softmax and the cross-entropies: mpmath with 50 digits, PyTorch and SciPy in float64."""

import mpmath
import numpy as np
import scipy
import torch

from refnorm.conformance import GoldenCase, Tolerance
from tests.golden.softmax.two_pass import where_cases

mpmath.mp.dps = 50
MPMATH = "mpmath, 50 digits"
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def total(row):
    return mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in row))


def log_softmax_rows(x):
    return np.array([[float(mpmath.mpf(float(v)) - total(row)) for v in row] for row in x])


def cases():
    rng = np.random.default_rng(1990)
    found = [case for case in where_cases(np.random.default_rng(20)) if case.function != "softmax.softmax"]

    def add(function, name, args, expected, tolerance, source=MPMATH, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}",
                name=name,
                args=args,
                expected=expected,
                tolerance=tolerance,
                source=source,
                **more,
            )
        )

    for scale in (1, 10, 30):
        for size in (10, 1000):
            x = (scale * rng.standard_normal((2, size))).astype(np.float32)
            add(
                "log_softmax", f"float32, N(0, {scale}), rows of {size}", (x,), log_softmax_rows(x), Tolerance(2, "ulp")
            )
    x = 10 * rng.standard_normal((3, 20))
    add("log_softmax", "float64", (x,), log_softmax_rows(x), Tolerance(6, "ulp"))
    for dtype in (np.float32, np.float64):
        label = np.dtype(dtype).name
        sure = np.array([[50, 0, -5], [1000, 1001, 1002], [-3, 17, -4]], dtype)
        add("log_softmax", f"{label}, confident rows", (sure,), log_softmax_rows(sure), Tolerance(2, "ulp"))
        special = np.array([[1, 1, -np.inf], [-np.inf] * 3, [np.inf, 0, 1], [np.nan, 0, 1]], dtype)
        nan = [np.nan] * 3
        add(
            "log_softmax",
            f"{label}, masked, infinite and NaN entries",
            (special,),
            np.array([[-np.log(2), -np.log(2), -np.inf], nan, nan, nan]),
            Tolerance(1, "ulp"),
            "by hand",
        )
        add(
            "logsumexp",
            f"{label}, masked, infinite and NaN entries",
            (special,),
            np.array([1 + np.log(2), -np.inf, np.inf, np.nan]),
            Tolerance(1, "ulp"),
            "by hand",
        )
        large = np.concatenate([1000 + rng.standard_normal((1, 40)), 30 * rng.standard_normal((1, 40))]).astype(dtype)
        add(
            "logsumexp",
            f"{label}, offset 1000 and N(0, 30)",
            (large,),
            np.array([float(total(row)) for row in large]),
            Tolerance(2, "ulp"),
        )
        add(
            "cross_entropy",
            f"{label}, 1000 to 1002",
            (np.array([[1000, 1001, 1002]], dtype), np.array([2])),
            np.array(float(mpmath.log(1 + mpmath.exp(-1) + mpmath.exp(-2)))),
            Tolerance(2, "ulp"),
        )
        y = [float(mpmath.exp(k) / (1 + mpmath.e + mpmath.e**2)) for k in range(3)]
        add(
            "cross_entropy",
            f"{label}, 1000 to 1002",
            (np.array([[1000, 1001, 1002]], dtype), np.array([2])),
            (np.array([[y[0], y[1], -y[0] - y[1]]]),),
            Tolerance(4, "ulp"),
            cotangent=np.array(1.0, dtype),
        )
        add(
            "log_softmax",
            f"{label}, 1000 to 1002",
            (np.array([1000, 1001, 1002], dtype),),
            (np.array([1.0, 0.0, -1.0]),),
            Tolerance(1, "ulp_of_largest"),
            "by hand: the cotangent sums to 0",
            cotangent=np.array([1.0, 0.0, -1.0], dtype),
        )

    x = (4 * rng.standard_normal((6, 9))).astype(np.float32).astype(np.float64)
    g = rng.standard_normal((6, 9)).astype(np.float32).astype(np.float64)
    target = np.array([3, 0, -100, 8, 8, 5])
    soft = rng.dirichlet(np.ones(9), 6).astype(np.float32).astype(np.float64)
    weights = rng.standard_normal(6).astype(np.float32).astype(np.float64)
    limits = {
        np.float32: Tolerance(8 * 2.0**-24, "relative_of_largest"),
        np.float64: Tolerance(1e-14, "relative_of_largest"),
    }

    def differentiated(function, *arrays, cotangent):
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        value = function(*tensors)
        value.backward(torch.tensor(cotangent))
        return value.detach().numpy(), tuple(t.grad.numpy() for t in tensors)

    for dtype, limit in limits.items():
        label = np.dtype(dtype).name
        for axis in (0, 1):
            value, grads = differentiated(lambda t, axis=axis: torch.log_softmax(t, axis), x, cotangent=g)
            add("log_softmax", f"{label}, axis {axis}", (x.astype(dtype),), value, limit, TORCH, options={"axis": axis})
            add(
                "log_softmax",
                f"{label}, axis {axis}",
                (x.astype(dtype),),
                grads,
                limit,
                TORCH,
                options={"axis": axis},
                cotangent=g.astype(dtype),
            )
        value = scipy.special.logsumexp(x, axis=0, keepdims=True)
        add(
            "logsumexp",
            f"{label}, first axis kept",
            (x.astype(dtype),),
            value,
            limit,
            f"scipy {scipy.__version__}, float64",
            options={"axis": 0, "keepdims": True},
        )
        _, grads = differentiated(lambda t: torch.logsumexp(t, 1), x, cotangent=weights)
        add("logsumexp", f"{label}, rows", (x.astype(dtype),), grads, limit, TORCH, cotangent=weights.astype(dtype))
        for reduction in ("mean", "sum", "none"):
            cotangent = weights if reduction == "none" else np.array(0.75)
            for smoothing in (0.0, 0.125):
                options = {"reduction": reduction, "label_smoothing": smoothing}
                value, grads = differentiated(
                    lambda t, o=options: torch.nn.functional.cross_entropy(t, torch.tensor(target), **o),
                    x,
                    cotangent=cotangent,
                )
                name = f"{label}, {reduction}, smoothing {smoothing}"
                args = (x.astype(dtype), target)
                add("cross_entropy", name, args, value, limit, TORCH, options=options)
                add(
                    "cross_entropy", name, args, grads, limit, TORCH, options=options, cotangent=cotangent.astype(dtype)
                )
            options = {"reduction": reduction}
            for kind, weight in (("distributions", soft), ("any numbers", g)):
                value, grads = differentiated(
                    lambda t, q, o=options: torch.nn.functional.cross_entropy(t, q, **o), x, weight, cotangent=cotangent
                )
                name, args = f"{label}, {reduction}, {kind}", (x.astype(dtype), weight.astype(dtype))
                add("soft_cross_entropy", name, args, value, limit, TORCH, options=options)
                add(
                    "soft_cross_entropy",
                    name,
                    args,
                    grads,
                    limit,
                    TORCH,
                    options=options,
                    cotangent=cotangent.astype(dtype),
                )
    return found
