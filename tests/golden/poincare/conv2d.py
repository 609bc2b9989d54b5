"""Truth for the Poincaré convolution: textbook formulas in mpmath and in PyTorch with its autograd, hypll, by hand."""

import mpmath
import numpy as np
import torch
import torch.nn.functional as functional
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance

ball, linear = (load(TESTS / "golden" / "poincare" / f"{name}.py") for name in ("ball", "linear"))


def beta_scale(features, part):
    with mpmath.workdps(30):
        return float(mpmath.beta(mpmath.mpf(features) / 2, 0.5) / mpmath.beta(mpmath.mpf(part) / 2, 0.5))


# Textbook formulas, vectors on the last axis, for torch tensors in the middle of the ball.


def nonzero_length(x):
    """Length, and 1 for the zero vector, whose root autograd cannot differentiate."""
    square = (x * x).sum(-1, keepdim=True)
    return torch.sqrt(torch.where(square > 0, square, 1.0)), square > 0


def exp0(v, c):
    size, nonzero = nonzero_length(v)
    s = torch.sqrt(c) * size
    return torch.where(nonzero, torch.tanh(s) / s, 1.0) * v


def log0(y, c):
    size, nonzero = nonzero_length(y)
    s = torch.sqrt(c) * torch.where(nonzero, size, 0.5)
    return torch.where(nonzero, torch.atanh(s) / s, 1.0) * y


def project(x, c, margin=1e-5):
    radius, (size, nonzero) = (1 - margin) / torch.sqrt(c), nonzero_length(x)
    return torch.where(nonzero & (size > radius), radius * x / size, x)


def fully_connected(x, weight, bias, c):
    root, size = torch.sqrt(c), torch.sqrt((weight * weight).sum(0))
    factor = 2 / (1 - c * (x * x).sum(-1, keepdim=True))
    p = factor * root * (x @ weight / size) * torch.cosh(2 * root * bias) - (factor - 1) * torch.sinh(2 * root * bias)
    w = torch.sinh(2 * size * torch.asinh(p)) / root
    return w / (1 + torch.sqrt(1 + c * (w * w).sum(-1, keepdim=True)))


def beta_concat(xs, c):
    features = sum(x.shape[-1] for x in xs)
    return exp0(torch.cat([beta_scale(features, x.shape[-1]) * log0(x, c) for x in xs], -1), c)


def conv2d(x, weight, bias, c, *, kernel, stride=1, padding=0, clipped=True):
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    tangent = log0(x.movedim(1, -1), c).movedim(-1, 1) * beta_scale(x.shape[1] * size[0] * size[1], x.shape[1])
    patches = functional.unfold(tangent, size, padding=padding, stride=stride).movedim(1, -1)
    joined = exp0(patches, c)
    y = fully_connected(project(joined, c) if clipped else joined, weight, bias, c)
    y = (project(y, c) if clipped else y).movedim(-1, 1)
    step, pad = (v if isinstance(v, tuple) else (v, v) for v in (stride, padding))
    out = [(x.shape[2 + i] + 2 * pad[i] - size[i]) // step[i] + 1 for i in range(2)]
    return y.reshape(len(x), -1, *out)


def differentiated(function, args, rng):
    """Value, a random cotangent, and the cotangents of all arguments, by autograd."""
    leaves = [torch.tensor(np.asarray(arg), dtype=torch.float64, requires_grad=True) for arg in args]
    value = function(*leaves)
    cotangent = rng.standard_normal(tuple(value.shape))
    slopes = torch.autograd.grad(value, leaves, torch.tensor(cotangent), allow_unused=True)
    return value.detach().numpy(), cotangent, tuple(slope.numpy() for slope in slopes)


def torch_cases(name, function, called, args, options, rng, limit=1e-12):
    value, cotangent, slopes = differentiated(function, args, rng)
    common = {
        "function": called,
        "name": name,
        "args": args,
        "options": options,
        "source": f"torch {torch.__version__.split('+')[0]} autograd of the textbook formulas, float64",
        "tolerance": Tolerance(limit, "relative_of_largest"),
    }
    return [GoldenCase(**common, expected=value), GoldenCase(**common, cotangent=cotangent, expected=slopes)]


def cases():
    rng = np.random.default_rng(20210603)
    found = by_hand() + exact(rng)
    for name, shape, outputs, c, options in (
        ("padding", (2, 3, 4, 5), 4, 1.0, {"kernel": 3, "padding": 1}),
        ("stride 2, odd size", (1, 2, 7, 7), 3, 0.1, {"kernel": 3, "stride": 2, "padding": 1}),
        ("uneven window, stride and padding", (2, 2, 4, 5), 2, 2.0, {"kernel": (2, 3), "stride": (1, 2), "padding": (0, 1)}),
        ("one pixel", (2, 4, 3, 3), 5, 0.1, {"kernel": 1, "stride": 2}),
    ):  # fmt: skip
        size = options["kernel"] if isinstance(options["kernel"], tuple) else (options["kernel"],) * 2
        x = 0.4 * rng.standard_normal(shape) / np.sqrt(c * shape[1])
        weight = rng.standard_normal((shape[1] * size[0] * size[1], outputs)) / np.sqrt(shape[1])
        bias = 0.1 * rng.standard_normal(outputs) / np.sqrt(c)
        args = (x, weight, bias, c)

        def truth(x, weight, bias, c, options=options):
            return conv2d(x, weight, bias, c, **options)

        found += torch_cases(name, truth, "poincare.conv2d", args, options, rng)
    # Weights so large that half of the outputs are projected, and points so far out that patches are, too.
    x = rng.standard_normal((1, 2, 4, 4))
    x *= 0.999 / np.sqrt((x * x).sum(axis=1, keepdims=True))
    args = (x, 2.0 * rng.standard_normal((8, 3)), 0.1 * rng.standard_normal(3), 1.0)
    found += torch_cases(
        "partly projected", lambda *a: conv2d(*a, kernel=2), "poincare.conv2d", args, {"kernel": 2}, rng, limit=1e-11
    )
    xs = [0.3 * rng.standard_normal((2, 3, n)) for n in (1, 4, 3)]
    value, cotangent, slopes = differentiated(lambda a, b, d, c: beta_concat([a, b, d], c), (*xs, 0.8), rng)
    common = {
        "function": "poincare.beta_concat",
        "name": "three parts",
        "args": (xs, 0.8),
        "source": f"torch {torch.__version__.split('+')[0]} autograd of the textbook formulas, float64",
        "tolerance": Tolerance(1e-12, "relative_of_largest"),
    }
    found += [
        GoldenCase(**common, expected=value),
        GoldenCase(**common, cotangent=cotangent, expected=(*slopes[:3], slopes[3])),
    ]
    return found + from_hypll(rng)


def mp_conv2d(x, weight, bias, c):
    """A 2 x 2 window on 3 x 3 pixels of two channels, two outputs; one row a channel in ``x``."""
    scale = mpmath.beta(4, mpmath.mpf("0.5")) / mpmath.beta(1, mpmath.mpf("0.5"))
    pixels = [ball.log0([x[p], x[9 + p]], c) for p in range(9)]
    outputs = []
    for corner in (0, 1, 3, 4):
        window = [pixels[corner + step] for step in (0, 1, 3, 4)]
        joined = ball.exp0([scale * pixel[channel] for channel in range(2) for pixel in window], c)
        outputs.append(linear.fully_connected(weight, bias, joined, c))
    return [point[channel] for channel in range(2) for point in outputs]


def exact(rng):
    found = []
    for dtype in (np.float64, np.float32):
        x = (0.5 * rng.standard_normal((1, 2, 3, 3))).astype(dtype)
        x /= 1.2 * np.sqrt((x * x).sum(axis=1, keepdims=True)).max().astype(dtype)
        x[..., 0, 0] = 0
        weight, bias = rng.standard_normal((8, 2)).astype(dtype), (0.1 * rng.standard_normal(2)).astype(dtype)
        args = (x, weight, bias, 0.75)
        shape = (1, 2, 2, 2)
        cotangent = rng.standard_normal(shape).astype(dtype)
        common = {
            "function": "poincare.conv2d",
            "name": f"{np.dtype(dtype).name}, a pixel at the origin",
            "args": args,
            "options": {"kernel": 2, "project": False},
            "source": "mpmath, 150 digits",
        }
        value, slopes = ball.value(mp_conv2d, args).reshape(shape), ball.cotangents(mp_conv2d, args, cotangent)
        limits = ball.LIMITS[dtype]
        found += [
            GoldenCase(**common, expected=value, tolerance=Tolerance(limits[0], "ulp_of_largest")),
            GoldenCase(
                **common, cotangent=cotangent, expected=slopes, tolerance=Tolerance(limits[1], "ulp_of_largest")
            ),
        ]
    return found


def by_hand():
    weight = np.zeros((18, 2))
    weight[[4, 13], [0, 1]] = 0.5
    return [
        GoldenCase(
            function="poincare.beta_concat",
            name="two intervals into a disk",
            args=([np.array([0.5]), np.array([0.0])], 1.0),
            expected=np.array([np.tanh(2 / np.pi * np.arctanh(0.5)), 0.0]),
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by hand: B(1, 1/2) / B(1/2, 1/2) = 2/pi, tanh(2/pi artanh(1/2))",
        ),
        GoldenCase(
            function="poincare.init_conv2d_identity",
            name="central pixel",
            args=(2, 2, 3),
            options={"identity": "centre"},
            expected=(weight, np.zeros(2)),
            source="by hand",
        ),
        GoldenCase(
            function="poincare.init_conv2d_identity",
            name="more outputs than entries",
            args=(1, 3, (1, 2)),
            expected=(np.array([[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]]), np.zeros(3)),
            source="by hand",
        ),
    ]


def from_hypll(rng):
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.nn import HConvolution2d
    from hypll.tensors import ManifoldTensor

    c = 0.25  # hypll keeps the curvature in float32; this one's root is exact there
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    manifold = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))
    layer = HConvolution2d(3, 4, 3, manifold, stride=2, padding=1)
    torch.set_default_dtype(before)
    x = 0.3 * rng.standard_normal((2, 3, 6, 5))
    weight, bias = 0.5 * rng.standard_normal((27, 4)), 0.1 * rng.standard_normal(4)
    with torch.no_grad():
        layer.weights.tensor.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
        y = layer(ManifoldTensor(torch.tensor(x), manifold=manifold, man_dim=1)).tensor.numpy()
    return [
        GoldenCase(
            function="poincare.conv2d",
            name="hypll",
            args=(x, weight, bias, c),
            options={"kernel": 3, "stride": 2, "padding": 1},
            expected=y,
            tolerance=Tolerance(1e-12, "relative_of_largest"),
            source="hypll 0.1.1, float64",
        )
    ]
