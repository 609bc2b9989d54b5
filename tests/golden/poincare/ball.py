"""Truth for the Poincaré ball: the textbook formulas in mpmath, complex numbers, geoopt.

Central differences with a step of 10^-60 and 150 digits give cotangents that are exact, too.
"""

import mpmath
import numpy as np
from mpmath import mpf

from refnorm.conformance import GoldenCase, Tolerance

DIGITS = 150
STEP = mpf(10) ** -60


def vec(values):
    return [mpf(float(v)) for v in np.ravel(values)]


def dot(a, b):
    return mpmath.fsum(p * q for p, q in zip(a, b, strict=True))


def plus(a, b, scale=1):
    return [p + scale * q for p, q in zip(a, b, strict=True)]


def times(scale, a):
    return [scale * p for p in a]


def length(a):
    return mpmath.sqrt(dot(a, a))


def mobius_add(x, y, c):
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    top = plus(times(1 + 2 * c * xy + c * yy, x), times(1 - c * xx, y))
    return times(1 / (1 + 2 * c * xy + c * c * xx * yy), top)


def exp0(v, c):
    s = mpmath.sqrt(c) * length(v)
    return times(mpmath.tanh(s) / s, v) if s else v


def log0(y, c):
    s = mpmath.sqrt(c) * length(y)
    return times(mpmath.atanh(s) / s, y) if s else y


def mobius_scalar_mul(r, x, c):
    return exp0(times(r, log0(x, c)), c)


def mobius_matvec(matrix, x, c):
    rows = [matrix[i : i + len(x)] for i in range(0, len(matrix), len(x))]
    tangent = log0(x, c)
    return exp0([dot(row, tangent) for row in rows], c)


def conformal_factor(x, c):
    return [2 / (1 - c * dot(x, x))]


def expmap(x, v, c):
    s = mpmath.sqrt(c) * length(v)
    return mobius_add(x, times(mpmath.tanh(s / (1 - c * dot(x, x))) / s, v), c) if s else x


def logmap(x, y, c):
    return times(1 - c * dot(x, x), log0(mobius_add(times(-1, x), y, c), c))


def dist(x, y, c):
    return times(2, [length(log0(mobius_add(times(-1, x), y, c), c))])


def dist_sq(x, y, c):
    # From the square of artanh's series argument, so that it is smooth for the differences at x = y.
    return [dist(x, y, c)[0] ** 2]


def gyration(u, v, w, c):
    # The definition needs w in the ball; the rotation is linear, so a small multiple will do.
    small = mpf(10) ** -30 if length(w) else mpf(1)
    turned = mobius_add(times(-1, mobius_add(u, v, c)), mobius_add(u, mobius_add(v, times(small, w), c), c), c)
    return times(1 / small, turned)


def gyration_closed(u, v, w, c):
    uw, vw, uv, uu, vv = dot(u, w), dot(v, w), dot(u, v), dot(u, u), dot(v, v)
    alpha = -c * c * uw * vv + c * vw + 2 * c * c * uv * vw
    beta = -c * c * vw * uu - c * uw
    return plus(w, plus(times(alpha, u), times(beta, v)), 2 / (1 + 2 * c * uv + c * c * uu * vv))


def transport(x, y, v, c):
    return times((1 - c * dot(y, y)) / (1 - c * dot(x, x)), gyration_closed(y, times(-1, x), v, c))


def value(function, args):
    """Evaluate on floats and arrays of one vector each; the result is a flat float64 array."""
    with mpmath.workdps(DIGITS):
        return np.array([float(entry) for entry in function(*_inputs(args))])


def cotangents(function, args, cotangent):
    """Differentiate <cotangent, function(args)> by every entry of every argument."""
    with mpmath.workdps(DIGITS):
        return _cotangents(function, args, cotangent)


def _cotangents(function, args, cotangent):
    inputs, u, found = _inputs(args), vec(cotangent), []
    for position, arg in enumerate(inputs):
        entries = arg if isinstance(arg, list) else [arg]
        slopes = []
        for i in range(len(entries)):
            sides = []
            for sign in (1, -1):
                moved = list(entries)
                moved[i] += sign * STEP
                at = list(inputs)
                at[position] = moved if isinstance(arg, list) else moved[0]
                sides.append(dot(u, function(*at)))
            slopes.append(float((sides[0] - sides[1]) / (2 * STEP)))
        found.append(np.array(slopes).reshape(np.shape(args[position])))
    return tuple(found)


def _inputs(args):
    return [vec(arg) if np.ndim(arg) else mpf(float(arg)) for arg in args]


def regimes(dtype, n, seed, curvature):
    """Batches of points by where they lie: at the boundary, in the middle, at the origin."""
    rng = np.random.default_rng(seed)
    u = float(np.finfo(dtype).epsneg)
    return {
        "at the boundary": ball_points(dtype, n, rng, (1 - u, 1 - 4 * u, 1 - 1000 * u), curvature),
        "in the middle": ball_points(dtype, n, rng, (0.9, 0.5, 0.1), curvature),
        "at the origin": ball_points(dtype, n, rng, (1e-3, 7e-4, 2e-4), curvature),
    }


def ball_points(dtype, n, rng, radii, curvature):
    """Random points of given relative radii, kept strictly inside (decided in mpmath)."""
    points = []
    for radius in radii:
        direction = rng.standard_normal(n)
        x = (direction / np.linalg.norm(direction) * radius / np.sqrt(curvature)).astype(dtype)
        with mpmath.workdps(DIGITS):
            while 1 - mpf(float(curvature)) * dot(vec(x), vec(x)) <= 0:
                x = x * dtype(1 - np.finfo(dtype).eps)
        points.append(x)
    return np.stack(points)


def exact_cases(function, truth, batches, curvature, rng, limits, options=None, shared=()):
    """Cases of values and cotangents, row by row in mpmath.

    ``batches``: regime -> arrays with one row a point; ``shared``: leading arguments common to all rows;
    ``limits``: units in the last place of the largest entry, for values and for cotangents.
    """
    found = []
    for regime, arrays in batches.items():
        dtype = arrays[0].dtype
        tuples = [(*shared, *row, curvature) for row in zip(*arrays, strict=True)]
        expected = np.stack([value(truth, args) for args in tuples])
        per_point = expected.shape[1] == 1 and function.split(".")[1] in PER_POINT
        cotangent = rng.standard_normal(expected.shape).astype(dtype)
        slopes = [cotangents(truth, args, u) for args, u in zip(tuples, cotangent, strict=True)]
        lead = len(shared)
        folded = [sum(entry[i] for entry in slopes) for i in range(lead)]
        folded += [np.stack([entry[i] for entry in slopes]) for i in range(lead, lead + len(arrays))]
        folded.append(np.asarray(sum(entry[-1] for entry in slopes)))
        common = {
            "function": function,
            "name": f"{np.dtype(dtype).name}, curvature {curvature:g}, {regime}",
            "args": (*shared, *arrays, curvature),
            "options": options or {},
            "source": "mpmath, 150 digits",
        }
        found.append(
            GoldenCase(
                **common,
                expected=expected[:, 0] if per_point else expected,
                tolerance=Tolerance(limits[0], "ulp_of_largest"),
            )
        )
        found.append(
            GoldenCase(
                **common,
                cotangent=cotangent[:, 0] if per_point else cotangent,
                expected=tuple(folded),
                tolerance=Tolerance(limits[1], "ulp_of_largest"),
            )
        )
    return found


PER_POINT = ("dist", "dist_sq", "conformal_factor")
SETTINGS = ((np.float64, 3, 0.1), (np.float32, 2, 1.0))
# Values, cotangents. float32 results may be rounded inward by a few units to stay in the ball.
LIMITS = {np.float64: (16, 500), np.float32: (4, 4)}


def cases():
    rng = np.random.default_rng(20180523)
    found = by_hand()
    for dtype, n, curvature in SETTINGS:
        limits = LIMITS[dtype]
        points, others = regimes(dtype, n, 1, curvature), regimes(dtype, n, 2, curvature)
        pairs = {regime: (points[regime], others[regime]) for regime in points}
        boundary = points["at the boundary"]
        pairs["nearly opposite, at the boundary"] = (boundary, -np.nextafter(boundary, dtype(0)))
        pairs["from the boundary to the middle"] = (boundary, others["in the middle"])
        found += exact_cases("poincare.mobius_add", mobius_add, pairs, curvature, rng, limits)
        single = {regime: (batch,) for regime, batch in points.items()}
        found += exact_cases("poincare.log0", log0, single, curvature, rng, limits)
        found += exact_cases("poincare.conformal_factor", conformal_factor, single, curvature, rng, limits)
        found += exact_cases(
            "poincare.mobius_scalar_mul", mobius_scalar_mul, single, curvature, rng, limits, shared=(0.7,)
        )
        matrix = rng.standard_normal((2, n)).astype(dtype)
        inner = {regime: single[regime] for regime in ("in the middle", "at the origin")}
        found += exact_cases("poincare.mobius_matvec", mobius_matvec, inner, curvature, rng, limits, shared=(matrix,))
        vectors = {
            regime: ((scale * rng.standard_normal((3, n)) / np.sqrt(curvature)).astype(dtype),)
            for regime, scale in (("short", 1e-3), ("of length 1", 1.0), ("long", 5.0))
        }
        found += exact_cases("poincare.exp0", exp0, vectors, curvature, rng, limits, options={"project": False})
    return found + complex_numbers() + from_geoopt()


def by_hand():
    x, y = np.array([0.5, 0.0]), np.array([0.0, 0.5])
    return [
        GoldenCase(
            function="poincare.mobius_add",
            name="half along each axis",
            args=(x, y, 1.0),
            expected=np.array([10.0, 6.0]) / 17,
            tolerance=Tolerance(4, "ulp"),
            source="by hand: a = 5/4, b = 3/4, D = 17/16",
        ),
        GoldenCase(
            function="poincare.mobius_add",
            name="half along each axis, swapped",
            args=(y, x, 1.0),
            expected=np.array([6.0, 10.0]) / 17,
            tolerance=Tolerance(4, "ulp"),
            source="by hand: a = 5/4, b = 3/4, D = 17/16",
        ),
        GoldenCase(
            function="poincare.conformal_factor",
            name="axis 0",
            args=(np.array([[0.0, 0.6], [0.0, 0.0]]), 1.0),
            options={"axis": 0},
            expected=np.array([2.0, 3.125]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: 2/(1 - 0.36)",
        ),
        GoldenCase(
            function="poincare.project_ball",
            name="one inside, one outside",
            args=(np.array([[0.3, 0.2], [3.0, 4.0]]), 4.0),
            options={"eps": 0.2},
            cotangent=np.array([[1.0, 0.0], [1.0, 0.0]]),
            expected=(np.array([[1.0, 0.0], [0.08 * 0.64, -0.08 * 0.48]]), np.array(-0.4 / 8 * 0.6)),
            tolerance=Tolerance(8, "ulp_of_largest"),
            source="by hand: R = 0.4; outside, R/5 (u - 0.6 (0.6, 0.8)) and -R/(2c) 0.6",
        ),
        GoldenCase(
            function="poincare.project_ball",
            name="one inside, one outside",
            args=(np.array([[0.3, 0.2], [3.0, 4.0]]), 4.0),
            options={"eps": 0.2},
            expected=np.array([[0.3, 0.2], [0.24, 0.32]]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: R = 0.4",
        ),
    ]


def complex_numbers():
    rng = np.random.default_rng(1908)
    z, w = (0.99 * np.sqrt(rng.uniform(size=20)) * np.exp(2j * np.pi * rng.uniform(size=20)) for _ in range(2))
    total = (z + w) / (1 + z.conj() * w)
    pairs = [np.stack([a.real, a.imag], axis=-1) for a in (z, w, total)]
    return [
        GoldenCase(
            function="poincare.mobius_add",
            name="complex numbers of the unit disk",
            args=(pairs[0], pairs[1], 1.0),
            expected=pairs[2],
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="complex arithmetic: (z + w)/(1 + conj(z) w)",
        )
    ]


def from_geoopt():
    import geoopt
    import torch

    rng = np.random.default_rng(5)
    ball = geoopt.PoincareBall(c=0.75).double()
    x, y = (0.3 * rng.standard_normal((6, 4)) for _ in range(2))
    matrix = rng.standard_normal((3, 4))
    xt, yt, mt = (torch.tensor(a) for a in (x, y, matrix))
    results = {
        "mobius_add": ((x, y), ball.mobius_add(xt, yt, project=False), {}),
        "mobius_matvec": ((matrix, x), ball.mobius_matvec(mt, xt, project=False), {}),
        "mobius_scalar_mul": ((1.5, x), ball.mobius_scalar_mul(torch.tensor(1.5), xt, project=False), {}),
        "exp0": ((y,), ball.expmap0(yt, project=False), {"project": False}),
        "log0": ((y,), ball.logmap0(yt), {}),
    }
    return [
        GoldenCase(
            function=f"poincare.{name}",
            name="geoopt",
            args=(*arrays, float(ball.c)),
            options=options,
            expected=result.numpy(),
            tolerance=Tolerance(1e-11, "relative_of_largest"),
            source=f"geoopt {geoopt.__version__}, float64 (its clamps cost digits)",
        )
        for name, (arrays, result, options) in results.items()
    ]
