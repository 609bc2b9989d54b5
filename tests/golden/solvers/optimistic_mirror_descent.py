"""Truth for optimistic mirror descent: hand calculations, mpmath, PyTorch's autograd."""

import itertools

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]} autograd, float64"


def exact_entropic(point, hint, rate):
    rows = []
    for x, m in zip(np.atleast_2d(point), np.atleast_2d(hint), strict=True):
        weights = [
            mpmath.mpf(float(a)) * mpmath.exp(-mpmath.mpf(rate) * mpmath.mpf(float(b)))
            for a, b in zip(x, m, strict=True)
        ]
        rows.append([float(w / mpmath.fsum(weights)) for w in weights])
    return np.array(rows).reshape(point.shape)


def exact_master(plays, gradients, hints, u, rate, geometry):
    x, g, m = ([[mpmath.mpf(float(v)) for v in row] for row in array] for array in (plays, gradients, hints))
    c, eta = [mpmath.mpf(float(v)) for v in u], mpmath.mpf(rate)
    differences = [[a - b for a, b in zip(p, q, strict=True)] for p, q in zip(g, m, strict=True)]
    moves = [[a - b for a, b in zip(p, q, strict=True)] for p, q in zip(x[1:], x[:-1], strict=True)]
    if geometry == "entropic":
        start = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(c, x[0], strict=True) if a > 0)
        surprise = mpmath.fsum(max(abs(v) for v in row) ** 2 for row in differences)
        moved = mpmath.fsum(mpmath.fsum(abs(v) for v in row) ** 2 for row in moves)
    else:
        start = mpmath.fsum((a - b) ** 2 for a, b in zip(c, x[0], strict=True)) / 2
        surprise = mpmath.fsum(v * v for row in differences for v in row)
        moved = mpmath.fsum(v * v for row in moves for v in row)
    return np.array(float(start / eta + eta * surprise - moved / (4 * eta)))


def cases():
    rng = np.random.default_rng(20230209)
    found = [
        GoldenCase(
            function="solvers.optimistic_step",
            name="one dimension, no domain",
            args=(np.array([-0.5]), np.array([2.0]), 0.5),
            expected=np.array([-1.5]),
            source="by hand",
        ),
        GoldenCase(
            function="solvers.entropic_step",
            name="one half, one third",
            args=(np.array([0.5, 0.5]), np.array([np.log(2.0), 0.0]), 1.0),
            expected=np.array([1 / 3, 2 / 3]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: weights 1/4 and 1/2",
        ),
        GoldenCase(
            function="solvers.entropic_step",
            name="an entry of 0 stays 0",
            args=(np.array([0.0, 1.0]), np.array([-50.0, 3.0]), 1.0),
            expected=np.array([0.0, 1.0]),
            source="by hand",
        ),
        GoldenCase(
            function="solvers.master_bound",
            name="three rounds, tight",
            args=(
                np.array([[0.0], [-1.0], [-1.0]]),
                np.ones((3, 1)),
                np.array([[0.0], [1.0], [1.0]]),
                np.array([-1.0]),
            ),
            options={"learning_rate": 0.5},
            expected=np.array(1.0),
            source="by hand: 1 + 1/2 - 1/2",
        ),
        GoldenCase(
            function="solvers.sea_statistics",
            name="two rounds",
            args=(np.array([[[1.0], [-1.0]], [[0.0], [0.0]]]), np.array([[0.0], [2.0]])),
            expected=tuple(np.array(v) for v in (1.0, 4.0, 1.0, 4.0)),
            source="by hand",
        ),
    ]
    noise, means = rng.standard_normal((6, 3, 2)), rng.standard_normal((6, 2))
    variances = [mpmath.fsum(mpmath.mpf(float(v)) ** 2 for v in block.ravel()) / 3 for block in noise]
    changes = [
        mpmath.fsum((mpmath.mpf(float(b)) - mpmath.mpf(float(a))) ** 2 for a, b in zip(p, q, strict=True))
        for p, q in itertools.pairwise(means)
    ]
    found.append(
        GoldenCase(
            function="solvers.sea_statistics",
            name="six rounds",
            args=(noise, means),
            expected=tuple(
                np.array(float(v)) for v in (mpmath.fsum(variances), mpmath.fsum(changes), max(variances), max(changes))
            ),
            tolerance=Tolerance(1e-14, "relative"),
            source="mpmath, 50 digits",
        )
    )
    for name, shape, rate, dtype in (
        ("vector", (5,), 0.7, np.float64),
        ("rows", (3, 4), 2.0, np.float64),
        ("large exponents", (6,), 500.0, np.float64),
        ("float32", (5,), 0.7, np.float32),
    ):
        point = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1] or None).astype(dtype)
        hint = rng.standard_normal(shape).astype(dtype)
        rate = float(dtype(rate))
        found.append(
            GoldenCase(
                function="solvers.entropic_step",
                name=name,
                args=(point, hint, rate),
                expected=exact_entropic(point, hint, rate),
                tolerance=Tolerance(1e-12 if dtype == np.float64 else 1e-6, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    for name, shape in (("vector", (5,)), ("rows", (3, 4))):
        point, hint = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1] or None), rng.standard_normal(shape)
        rate = rng.uniform(0.5, 2, shape[:-1])
        cotangent = rng.standard_normal(shape)
        for function in ("optimistic_step", "entropic_step"):
            tensors = [torch.tensor(a, requires_grad=True) for a in (point, hint, rate)]
            x, m, r = tensors
            step = x - r[..., None] * m if len(shape) > 1 else x - r * m
            if function == "entropic_step":
                weights = x * torch.exp(-(r[..., None] if len(shape) > 1 else r) * m)
                step = weights / weights.sum(dim=-1, keepdim=True)
            step.backward(torch.tensor(cotangent))
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    name=f"cotangents, {name}",
                    args=(point, hint, np.asarray(rate)),
                    cotangent=cotangent,
                    expected=tuple(t.grad.numpy() for t in tensors),
                    tolerance=Tolerance(1e-13, "relative_of_largest"),
                    source=TORCH,
                )
            )
    for geometry in ("euclidean", "entropic"):
        plays, u = rng.dirichlet(np.ones(4), size=7), rng.dirichlet(np.ones(4))
        gradients, hints = rng.standard_normal((2, 7, 4))
        found.append(
            GoldenCase(
                function="solvers.master_bound",
                name=geometry,
                args=(plays, gradients, hints, u),
                options={"learning_rate": 0.3, "geometry": geometry},
                expected=exact_master(plays, gradients, hints, u, 0.3, geometry),
                tolerance=Tolerance(1e-13, "relative"),
                source="mpmath, 50 digits",
            )
        )
    return found
