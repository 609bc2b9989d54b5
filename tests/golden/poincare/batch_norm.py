"""Truth for midpoint batch normalization: textbook formulas in mpmath and PyTorch (autograd), hypll, by hand."""

import mpmath
import numpy as np
import torch
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance

ball, textbook = (load(TESTS / "golden" / "poincare" / f"{name}.py") for name in ("ball", "conv2d"))
POINTS = 4


def dot(x, y):
    return (x * y).sum(-1, keepdim=True)


def mobius_add(x, y, c):
    top = (1 + 2 * c * dot(x, y) + c * dot(y, y)) * x + (1 - c * dot(x, x)) * y
    return top / (1 + 2 * c * dot(x, y) + c * c * dot(x, x) * dot(y, y))


def factor(x, c):
    return 2 / (1 - c * dot(x, x))


def logmap(x, y, c):
    return 2 / factor(x, c) * textbook.log0(mobius_add(-x, y, c), c)


def expmap(x, v, c):
    # exp0 of the vector of the same hyperbolic length, moved to x.
    return mobius_add(x, textbook.exp0(factor(x, c) / 2 * v, c), c)


def gyration(u, v, w, c):
    uw, vw, uv, uu, vv = dot(u, w), dot(v, w), dot(u, v), dot(u, u), dot(v, v)
    alpha = -c * c * uw * vv + c * vw + 2 * c * c * uv * vw
    beta = -c * c * vw * uu - c * uw
    return w + 2 * (alpha * u + beta * v) / (1 + 2 * c * uv + c * c * uu * vv)


def transport(x, y, v, c):
    return factor(x, c) / factor(y, c) * gyration(y, -x, v, c)


def midpoint(x, c):
    n = (factor(x, c) * x).sum(0, keepdim=True) / (factor(x, c) - 1).sum(0, keepdim=True)
    return n / (1 + torch.sqrt(1 - c * dot(n, n)))


def variance(x, mean, c):
    d = (
        2
        / torch.sqrt(c)
        * torch.atanh(torch.sqrt(c) * torch.sqrt(dot(mobius_add(-mean, x, c), mobius_add(-mean, x, c))))
    )
    return (d * d).mean()


def batch_norm(x, bias, gain, c, mean=None, var=None, eps=1e-6, clipped=True):
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    mean = midpoint(rows, c) if mean is None else mean[None]
    var = variance(rows, mean, c) if var is None else var
    centre = textbook.exp0(bias[None], c)
    t = torch.sqrt(gain / (var + eps)) * transport(mean, centre, logmap(mean, rows, c), c)
    y = expmap(centre, t, c)
    y = textbook.project(y, c) if clipped else y
    return y.reshape(x.movedim(1, -1).shape).movedim(-1, 1)


def statistics(x, c):
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    mean = midpoint(rows, c)
    return torch.cat([mean[0], variance(rows, mean, c)[None]])


def mp_batch_norm(x, bias, gain, c):
    """Four points of the plane, in rows."""
    points = [x[2 * i : 2 * i + 2] for i in range(POINTS)]
    factors = [2 / (1 - c * ball.dot(p, p)) for p in points]
    top = [mpmath.fsum(f * p[k] for f, p in zip(factors, points, strict=True)) for k in range(2)]
    n = ball.times(1 / mpmath.fsum(f - 1 for f in factors), top)
    mean = ball.times(1 / (1 + mpmath.sqrt(1 - c * ball.dot(n, n))), n)
    var = mpmath.fsum(ball.dist(mean, p, c)[0] ** 2 for p in points) / POINTS
    centre = ball.exp0(bias, c)
    scale = mpmath.sqrt(gain / (var + mpmath.mpf(1e-6)))
    out = []
    for p in points:
        carried = ball.transport(mean, centre, ball.logmap(mean, p, c), c)
        out += ball.expmap(centre, ball.times(scale, carried), c)
    return out


def cases():
    rng = np.random.default_rng(20230327)
    found = by_hand() + exact(rng)
    for name, shape, c, options in (
        ("vectors", (7, 3), 1.0, {}),
        ("images", (2, 4, 3, 2), 0.1, {}),
        ("wide eps", (2, 2, 2, 3), 2.0, {"eps": 0.5}),
    ):
        x = 0.5 * rng.standard_normal(shape) / np.sqrt(c * shape[1])
        x += 0.3 * rng.standard_normal((shape[1],) + (1,) * (len(shape) - 2)) / np.sqrt(c * shape[1])
        args = (x, 0.3 * rng.standard_normal(shape[1]) / np.sqrt(c), np.array(0.7 / c), c)
        found += textbook.torch_cases(
            f"training, {name}",
            lambda *a, options=options: batch_norm(*a, **options),
            "poincare.midpoint_batch_norm",
            args,
            options,
            rng,
        )
        given = (0.2 * rng.standard_normal(shape[1]) / np.sqrt(c), np.array(0.9 / c))
        found += textbook.torch_cases(
            f"inference, {name}",
            lambda *a, options=options: batch_norm(*a, **options),
            "poincare.midpoint_batch_norm",
            (*args, *given),
            options,
            rng,
        )
        found += statistics_cases(name, x, c, rng)
    far = (*args[:2], np.array(12.0 / c), c)
    found += textbook.torch_cases(
        "partly projected", batch_norm, "poincare.midpoint_batch_norm", far, {}, rng, limit=1e-10
    )
    return found + from_hypll(rng)


def statistics_cases(name, x, c, rng):
    value, cotangent, slopes = textbook.differentiated(statistics, (x, c), rng)
    common = {
        "function": "poincare.midpoint_statistics",
        "name": name,
        "args": (x, c),
        "source": f"torch {torch.__version__.split('+')[0]} autograd of the textbook formulas, float64",
        "tolerance": Tolerance(1e-12, "relative_of_largest"),
    }
    split = (value[:-1], np.array(value[-1])), (cotangent[:-1], np.array(cotangent[-1]))
    return [GoldenCase(**common, expected=split[0]), GoldenCase(**common, cotangent=split[1], expected=slopes)]


def exact(rng):
    found = []
    for dtype in (np.float64, np.float32):
        x = (0.3 * rng.standard_normal((POINTS, 2)) + 0.2).clip(-0.6, 0.6).astype(dtype)
        args = (x, np.array([0.3, -0.2], dtype), np.asarray(0.8, dtype), 0.75)
        cotangent = rng.standard_normal(x.shape).astype(dtype)
        common = {
            "function": "poincare.midpoint_batch_norm",
            "name": np.dtype(dtype).name,
            "args": args,
            "options": {"project": False},
            "source": "mpmath, 150 digits",
        }
        limits = ball.LIMITS[dtype]
        expected = ball.value(mp_batch_norm, args).reshape(x.shape)
        slopes = tuple(np.asarray(slope) for slope in ball.cotangents(mp_batch_norm, args, cotangent))
        found += [
            GoldenCase(**common, expected=expected, tolerance=Tolerance(limits[0], "ulp_of_largest")),
            GoldenCase(
                **common, cotangent=cotangent, expected=slopes, tolerance=Tolerance(limits[1], "ulp_of_largest")
            ),
        ]
    return found


def by_hand():
    x = np.array([[0.6, 0.0], [0.0, 0.0]])
    distance = np.log(2.0)  # from the midpoint 1/3: 2 artanh(1/3)
    reach = np.tanh(distance / np.sqrt(distance**2 + 1e-6) / 2)
    return [
        GoldenCase(
            function="poincare.midpoint_batch_norm",
            name="two points",
            args=(x, np.zeros(2), np.array(1.0), 1.0),
            expected=np.array([[reach, 0.0], [-reach, 0.0]]),
            tolerance=Tolerance(8, "ulp_of_largest"),
            source="by hand: both at distance log(2) from (1/3, 0), then at almost 1 from the origin",
        ),
        GoldenCase(
            function="poincare.midpoint_batch_norm",
            name="a single point goes to the bias's point",
            args=(x[:1], np.array([0.0, 0.5]), np.array(2.0), 1.0),
            expected=np.array([[0.0, np.tanh(0.5)]]),
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by definition",
        ),
        GoldenCase(
            function="poincare.update_running_midpoint",
            name="half way",
            args=(np.zeros(2), np.array(1.0), np.array([0.6, 0.0]), np.array(3.0), 1.0),
            options={"momentum": 0.5},
            expected=(np.array([1 / 3, 0.0]), np.array(2.0)),
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by hand: artanh(3/5) = 2 artanh(1/3)",
        ),
        GoldenCase(
            function="poincare.update_running_midpoint",
            name="a tenth of a diameter's part",
            args=(np.array([0.25]), np.array(1.0), np.array([-0.5]), np.array(4.0), 1.0),
            expected=(np.array([np.tanh(0.9 * np.arctanh(0.25) + 0.1 * np.arctanh(-0.5))]), np.array(1.3)),
            tolerance=Tolerance(8, "ulp"),
            source="by hand: artanh is linear along a diameter",
        ),
    ]


def from_hypll(rng):
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.nn import HBatchNorm2d
    from hypll.tensors import ManifoldTensor

    c = 0.25  # hypll keeps the curvature in float32; this one's root is exact there
    manifold = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))
    layer = HBatchNorm2d(3, manifold, use_midpoint=True)
    x, bias, gain = 0.5 * rng.standard_normal((2, 3, 4, 2)), 0.4 * rng.standard_normal(3), np.array(1.7)
    layer.norm.bias = torch.nn.Parameter(torch.tensor(bias))
    layer.norm.weight = torch.nn.Parameter(torch.tensor(gain))
    y = layer(ManifoldTensor(torch.tensor(x), manifold=manifold, man_dim=1)).tensor.detach().numpy()
    return [
        GoldenCase(
            function="poincare.midpoint_batch_norm",
            name="hypll",
            args=(x, bias, gain, c),
            expected=y,
            tolerance=Tolerance(1e-12, "relative_of_largest"),
            source="hypll 0.1.1, float64",
        )
    ]
