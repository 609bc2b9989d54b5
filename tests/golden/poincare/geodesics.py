"""Truth for geodesics of the Poincaré ball: textbook formulas in mpmath, the hyperboloid model, geoopt."""

import numpy as np
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance

ball = load(TESTS / "golden" / "poincare" / "ball.py")


def cases():
    rng = np.random.default_rng(20180524)
    found = by_hand()
    for dtype, n, curvature in ball.SETTINGS:
        limits = ball.LIMITS[dtype]
        points, others = ball.regimes(dtype, n, 3, curvature), ball.regimes(dtype, n, 4, curvature)
        boundary = points["at the boundary"]
        pairs = {regime: (points[regime], others[regime]) for regime in points}
        pairs["nearly equal"] = (points["in the middle"], np.nextafter(points["in the middle"], dtype(0)))
        pairs["nearly opposite, at the boundary"] = (boundary, -np.nextafter(boundary, dtype(0)))
        pairs["from the boundary to the middle"] = (boundary, others["in the middle"])
        pairs["from the middle to the boundary"] = (others["in the middle"], boundary)
        for name, truth in (("logmap", ball.logmap), ("dist", ball.dist)):
            found += ball.exact_cases(f"poincare.{name}", truth, pairs, curvature, rng, limits)

        inner = {regime: pairs[regime] for regime in ("in the middle", "nearly equal")}
        found += ball.exact_cases("poincare.dist_sq", ball.dist_sq, inner, curvature, rng, limits)

        def vectors(scale, n=n, curvature=curvature, dtype=dtype):
            return (scale * rng.standard_normal((3, n)) / np.sqrt(curvature)).astype(dtype)

        chosen = ("in the middle", "at the origin", "from the boundary to the middle")
        turned = {regime: (*pairs[regime], vectors(1.0)) for regime in chosen}
        found += ball.exact_cases("poincare.gyration", ball.gyration_closed, turned, curvature, rng, limits)
        found += ball.exact_cases("poincare.transport", ball.transport, turned, curvature, rng, limits)
        starts = {
            "in the middle": (points["in the middle"], vectors(0.3)),
            "at the origin": (points["at the origin"], vectors(1e-3)),
            "at the boundary": (boundary, vectors(1.0)),
        }
        found += ball.exact_cases(
            "poincare.expmap", ball.expmap, starts, curvature, rng, limits, options={"project": False}
        )
    return found + hyperboloid() + from_geoopt()


def by_hand():
    x, y = np.array([[0.5, 0.0]]), np.array([[0.0, 0.5]])
    return [
        GoldenCase(
            function="poincare.gyration",
            name="a vector outside the ball",
            args=(x, y, np.array([[1.0, 0.0]]), 1.0),
            expected=np.array([[15.0, -8.0]]) / 17,
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by hand: D = 17/16, alpha = -1/16, beta = -1/4",
        ),
        GoldenCase(
            function="poincare.dist",
            name="coinciding points: zero, and a zero cotangent by convention",
            args=(x, x, 1.0),
            cotangent=np.array([1.0]),
            expected=(np.zeros((1, 2)), np.zeros((1, 2)), np.array(0.0)),
            source="by definition",
        ),
    ]


def hyperboloid():
    """Lift x to (factor - 1, factor sqrt(c) x); there, cosh(sqrt(c) d) is minus the Lorentz product."""
    rng = np.random.default_rng(6)
    c = 0.3
    x, y = (0.5 * rng.standard_normal((8, 5)) for _ in range(2))

    def lift(a):
        factor = 2 / (1 - c * (a * a).sum(axis=-1, keepdims=True))
        return factor - 1, factor * np.sqrt(c) * a

    (time_x, space_x), (time_y, space_y) = lift(x), lift(y)
    distance = np.arccosh((time_x * time_y)[:, 0] - (space_x * space_y).sum(axis=-1)) / np.sqrt(c)
    return [
        GoldenCase(
            function="poincare.dist",
            name="hyperboloid",
            args=(x, y, c),
            expected=distance,
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="arcosh of the Lorentz product on the hyperboloid, NumPy float64",
        )
    ]


def from_geoopt():
    import geoopt
    import torch

    rng = np.random.default_rng(7)
    manifold = geoopt.PoincareBall(c=0.75).double()
    c = float(manifold.c)
    x, y, v = (0.3 * rng.standard_normal((6, 4)) for _ in range(3))
    xt, yt, vt = (torch.tensor(a) for a in (x, y, v))
    results = {
        "expmap": ((x, v), manifold.expmap(xt, vt, project=False), {"project": False}),
        "logmap": ((x, y), manifold.logmap(xt, yt), {}),
        "dist": ((x, y), manifold.dist(xt, yt), {}),
        "gyration": ((x, y, v), manifold.gyration(xt, yt, vt), {}),
        "transport": ((x, y, v), manifold.transp(xt, yt, vt), {}),
    }
    return [
        GoldenCase(
            function=f"poincare.{name}",
            name="geoopt",
            args=(*arrays, c),
            options=options,
            expected=result.numpy(),
            tolerance=Tolerance(1e-11, "relative_of_largest"),
            source=f"geoopt {geoopt.__version__}, float64 (its clamps cost digits)",
        )
        for name, (arrays, result, options) in results.items()
    ]
