"""Truth for the gyromidpoint: the hyperboloid model and the textbook formula in mpmath, geoopt, hypll."""

import mpmath
import numpy as np
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance

ball = load(TESTS / "golden" / "poincare" / "ball.py")
POINTS = 4


def on_the_hyperboloid(x, c, weights):
    """Add up the points of the hyperboloid, normalize, and come back; a negative weight turns its point over."""
    n = len(x) // POINTS
    root = mpmath.sqrt(c)
    total = [mpmath.mpf(0)] * (n + 1)
    for i in range(POINTS):
        point = ball.times(mpmath.sign(weights[i]), x[i * n : (i + 1) * n])
        factor = 2 / (1 - c * ball.dot(point, point))
        lifted = [factor - 1, *ball.times(factor * root, point)]
        total = ball.plus(total, lifted, abs(weights[i]))
    size = mpmath.sqrt(total[0] ** 2 - ball.dot(total[1:], total[1:]))
    return ball.times(1 / (root * (total[0] + size)), total[1:])


def cases():
    rng = np.random.default_rng(20200302)
    found = by_hand()
    for dtype, n, curvature in ball.SETTINGS:
        for regime, spread in (
            ("in the middle", 0.6),
            ("at the origin", 1e-3),
            ("at the boundary", None),
            ("a cluster at the boundary", 0.0),
        ):
            x = points(dtype, n, rng, spread, curvature)
            for kind in ("equal", "mixed"):
                weights = np.ones(POINTS, dtype) if kind == "equal" else np.array([0.5, -2.0, 1.25, 0.25], dtype)
                if kind == "mixed" and spread == 0.0:
                    weights = np.abs(weights)
                found += exact(x, curvature, weights, f"{np.dtype(dtype).name}, {regime}, {kind} weights", rng)
    for curvature in (1.0, 0.25):
        # On a ray from the origin the ball is a line in the coordinate artanh(sqrt(c) x).
        places = [mpmath.mpf(v) for v in ("0.2", "0.5", "1.1")]
        x = np.array([[[float(mpmath.tanh(v) / mpmath.sqrt(curvature)), 0.0] for v in places]])
        exact_places = [mpmath.atanh(mpmath.sqrt(curvature) * mpmath.mpf(float(v))) for v in x[0, :, 0]]
        mean = mpmath.fsum(exact_places) / 3
        spread = mpmath.fsum((2 * (v - mean)) ** 2 for v in exact_places) / 3 / curvature
        middle = np.array([[float(mpmath.tanh(mean) / mpmath.sqrt(curvature)), 0.0]])
        found.append(
            GoldenCase(
                "poincare.frechet_mean", f"three points on a ray, curvature {curvature:g}", (x, curvature),
                {"x": middle, "variance": np.array([float(spread)])}, "mpmath, 50 digits: the mean of their distances from 0",
                Tolerance(1e-11, "relative_of_largest"), {"tol": 1e-13}, kind="fields",
            )
        )  # fmt: skip
    return found + from_packages()


def points(dtype, n, rng, spread, curvature):
    u = float(np.finfo(dtype).epsneg)
    if spread is None:
        return ball.ball_points(dtype, n, rng, (1 - u, 1 - 4 * u, 1 - 1000 * u, 0.9), curvature)
    if spread == 0.0:
        # Relative radius 1 - 2^14 u, a cluster about as wide as its gap.
        centre = rng.standard_normal(n)
        centre *= (1 - 2.0**14 * u) / np.linalg.norm(centre) / np.sqrt(curvature)
        return (centre + 2.0**12 * u * rng.standard_normal((POINTS, n)) / np.sqrt(curvature * n)).astype(dtype)
    return (spread * rng.standard_normal((POINTS, n)) / np.sqrt(curvature * n)).clip(-0.5, 0.5).astype(dtype)


def exact(x, curvature, weights, name, rng):
    args = (x, curvature, weights)
    expected = ball.value(on_the_hyperboloid, args)
    cotangent = rng.standard_normal(expected.shape).astype(x.dtype)
    limits = ball.LIMITS[x.dtype.type]
    common = {"function": "poincare.midpoint", "name": name, "args": args, "source": "mpmath, 150 digits, hyperboloid"}
    slopes = ball.cotangents(on_the_hyperboloid, args, cotangent)
    return [
        GoldenCase(**common, expected=expected, tolerance=Tolerance(limits[0], "ulp_of_largest")),
        GoldenCase(**common, cotangent=cotangent, expected=slopes, tolerance=Tolerance(limits[1], "ulp_of_largest")),
    ]


def by_hand():
    # Factors 8/3, 8/3, 2; A = (4/3, 4/3), B = 13/3, B^2 - |A|^2 = 137/9.
    middle = 4 / (13 + np.sqrt(137.0))
    return [
        GoldenCase(
            function="poincare.midpoint",
            name="three points",
            args=(np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]), 1.0),
            expected=np.array([middle, middle]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: 4 / (13 + sqrt(137))",
        ),
        GoldenCase(
            function="poincare.midpoint",
            name="two points on a diameter, halfway in artanh",
            args=(np.array([[[0.6, 0.0], [0.0, 0.0]], [[0.8, 0.0], [-0.8, 0.0]]]), 1.0),
            expected=np.array([[1 / 3, 0.0], [0.0, 0.0]]),
            tolerance=Tolerance(2, "ulp_of_largest"),
            source="by hand: artanh(3/5) = 2 artanh(1/3)",
        ),
    ]


def from_packages():
    import geoopt
    import torch
    from hypll.manifolds.poincare_ball.math.stats import midpoint as hypll_midpoint

    rng = np.random.default_rng(7)
    c = 0.7
    x, weights = 0.5 * rng.standard_normal((3, 6, 4)) / np.sqrt(4 * c), rng.uniform(0.2, 2.0, (3, 6))
    manifold = geoopt.PoincareBall(c=torch.tensor(c, dtype=torch.float64))
    common = {"function": "poincare.midpoint"}
    return [
        GoldenCase(
            **common,
            # geoopt keeps softplus(a) for the curvature, and goes through artanh to halve.
            tolerance=Tolerance(1e-10, "relative_of_largest"),
            name="geoopt, weighted",
            args=(x, c, weights),
            expected=manifold.weighted_midpoint(torch.tensor(x), torch.tensor(weights), reducedim=[1]).numpy(),
            source=f"geoopt {geoopt.__version__}, float64",
        ),
        GoldenCase(
            **common,
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            name="hypll",
            args=(x, c),
            expected=hypll_midpoint(torch.tensor(x), torch.tensor(c, dtype=torch.float64), batch_dim=1).numpy(),
            source="hypll 0.1.1, float64",
        ),
    ]
