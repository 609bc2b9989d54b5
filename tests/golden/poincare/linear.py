"""Truth for the Poincaré linear layer: the papers' formulas in mpmath, hand calculations, hypll."""

import mpmath
import numpy as np
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance

ball = load(TESTS / "golden" / "poincare" / "ball.py")


def mlr(weight, bias, x, c):
    n, m = len(x), len(bias)
    root, factor = mpmath.sqrt(c), 2 / (1 - c * ball.dot(x, x))
    logits = []
    for k in range(m):
        column = [weight[i * m + k] for i in range(n)]
        size = ball.length(column)
        angle = 2 * root * bias[k]
        along = factor * root * ball.dot(x, column) / size
        p = along * mpmath.cosh(angle) - (factor - 1) * mpmath.sinh(angle)
        logits.append(2 * size / root * mpmath.asinh(p))
    return logits


def fully_connected(weight, bias, x, c):
    root = mpmath.sqrt(c)
    w = [mpmath.sinh(root * v) / root for v in mlr(weight, bias, x, c)]
    return ball.times(1 / (1 + mpmath.sqrt(1 + c * ball.dot(w, w))), w)


def cases():
    rng = np.random.default_rng(20210101)
    found = by_hand()
    for n, m in ((2, 2), (2, 3), (3, 2)):
        halves = np.array([[0.5 * (i == j) for j in range(m)] for i in range(n)])
        found.append(GoldenCase("poincare.init_identity", f"{n} to {m}", (n, m), (halves, np.zeros(m)), "by hand"))
    for dtype in (np.float64, np.float32):
        limits = ball.LIMITS[dtype]
        for n, m, curvature in ((3, 4, 0.1), (2, 2, 1.0)):
            weight = (0.5 * rng.standard_normal((n, m))).astype(dtype)
            bias = (0.3 * rng.standard_normal(m) / np.sqrt(curvature)).astype(dtype)
            batches = {regime: (points,) for regime, points in ball.regimes(dtype, n, 8, curvature).items()}
            for name, truth, options in (
                ("mlr", mlr, {}),
                ("fully_connected", fully_connected, {"project": False}),
            ):
                exact = ball.exact_cases(
                    f"poincare.{name}", truth, batches, curvature, rng, limits, options, shared=(weight, bias)
                )
                found += [reorder(case) for case in exact]
    return found + from_hypll()


def reorder(case):
    """Put the points before the weights, as the package does."""
    # At the origin the logits are 4 |column| bias whatever the curvature: its cotangent is what is left of
    # terms 10^6 times larger.
    delicate = case.function == "poincare.mlr" and "float64" in case.name and "origin" in case.name
    limit = 1e7 if delicate and case.cotangent is not None else case.tolerance.limit

    def order(entries):
        weight, bias, x, curvature = entries
        return x, weight, bias, curvature

    expected = order(case.expected) if case.cotangent is not None else case.expected
    return GoldenCase(
        function=case.function,
        name=case.name,
        args=order(case.args),
        options=case.options,
        cotangent=case.cotangent,
        expected=expected,
        tolerance=Tolerance(limit, case.tolerance.rule),
        source=case.source,
    )


def by_hand():
    x, weight = np.array([[0.5, 0.0]]), np.array([[1.0], [0.0]])
    found = [
        GoldenCase(
            function="poincare.mlr",
            name="plane through the origin",
            args=(x, weight, np.zeros(1), 1.0),
            expected=np.array([[2 * np.log(3.0)]]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: twice the distance artanh(1/2) 2",
        ),
        GoldenCase(
            function="poincare.mlr",
            name="plane halfway there",
            args=(x, weight, np.array([0.25]), 1.0),
            expected=np.array([[2 * np.log(3.0) - 1.0]]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: the plane's foot point is 2 * 0.25 from the origin, on the ray to x",
        ),
    ]
    rng = np.random.default_rng(9)
    for n, c in ((5, 1.0), (3, 0.1)):
        x = 0.5 * rng.standard_normal((6, n)) / np.sqrt(c * n)
        found.append(
            GoldenCase(
                function="poincare.fully_connected",
                name=f"half the identity keeps every point, curvature {c:g}",
                args=(x, 0.5 * np.eye(n), np.zeros(n), c),
                options={"project": False},
                expected=x,
                tolerance=Tolerance(8, "ulp_of_largest"),
                source="by theorem: 1 + c|factor x|^2 is a square",
            )
        )
    return found


def from_hypll():
    import hypll
    import torch
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.manifolds.poincare_ball.math.linalg import poincare_fully_connected, poincare_hyperplane_dists

    rng = np.random.default_rng(10)
    c = 0.7
    assert PoincareBall(Curvature(c)) is not None
    x, weight, bias = (s * rng.standard_normal(d) for s, d in ((0.3, (6, 4)), (0.5, (4, 3)), (0.2, (3,))))
    tensors = [torch.tensor(a) for a in (x, weight, bias)]
    common = {
        "args": (x, weight, bias, c),
        "tolerance": Tolerance(1e-12, "relative_of_largest"),
        "source": f"hypll {getattr(hypll, '__version__', '0.1.1')}, float64",
        "name": "hypll",
    }
    return [
        GoldenCase(
            function="poincare.mlr",
            expected=poincare_hyperplane_dists(*tensors, torch.tensor(c, dtype=torch.float64)).numpy(),
            **common,
        ),
        GoldenCase(
            function="poincare.fully_connected",
            options={"project": False},
            expected=poincare_fully_connected(*tensors, torch.tensor(c, dtype=torch.float64)).numpy(),
            **common,
        ),
    ]
