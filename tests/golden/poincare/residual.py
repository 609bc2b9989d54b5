"""Truth for ReLU, residual sum and pooling: textbook formulas in mpmath and PyTorch (autograd), hypll, by hand."""

import mpmath
import numpy as np
import torch
import torch.nn.functional as functional
from discovery import TESTS, load

from refnorm.conformance import GoldenCase, Tolerance

ball, textbook, normal = (
    load(TESTS / "golden" / "poincare" / f"{name}.py") for name in ("ball", "conv2d", "batch_norm")
)


def mp_relu(x, c):
    return ball.exp0([max(entry, mpmath.mpf(0)) for entry in ball.log0(x, c)], c)


def relu(x, c):
    return textbook.project(textbook.exp0(torch.relu(textbook.log0(x, c)), c), c)


def avg_pool2d(x, c, size, stride=None):
    tangent = textbook.log0(x.movedim(1, -1), c).movedim(-1, 1)
    pooled = functional.avg_pool2d(tangent, size, stride).movedim(1, -1)
    return textbook.project(textbook.exp0(pooled, c), c).movedim(-1, 1)


def cases():
    rng = np.random.default_rng(20230328)
    found = by_hand()
    for dtype, n, curvature in ball.SETTINGS:
        limits = ball.LIMITS[dtype]
        batches = {regime: (points,) for regime, points in ball.regimes(dtype, n, 12, curvature).items()}
        found += ball.exact_cases("poincare.relu", mp_relu, batches, curvature, rng, limits, options={"project": False})
    for name, shape, c, options in (
        ("two by two", (2, 3, 4, 4), 1.0, {"size": 2}),
        ("overlapping and uneven", (1, 2, 5, 4), 0.3, {"size": (3, 2), "stride": (2, 1)}),
        ("everything", (2, 2, 3, 3), 0.1, {"size": 3}),
    ):
        x = 0.5 * rng.standard_normal(shape) / np.sqrt(c * shape[1])
        found += textbook.torch_cases(
            name, lambda x, c, options=options: avg_pool2d(x, c, **options), "poincare.avg_pool2d", (x, c), options, rng
        )
    x, y = (0.4 * rng.standard_normal((2, 2, 3, 2))).clip(-0.7, 0.7)
    for order, truth in (("fr", normal.mobius_add), ("rf", lambda x, y, c: normal.mobius_add(y, x, c))):
        found += textbook.torch_cases(order, truth, "poincare.residual_add", (x, y, 0.8), {"order": order}, rng)
    x = (0.5 * rng.standard_normal((2, 3, 4))).clip(-0.6, 0.6)
    x[..., 0] = np.abs(x[..., 0])  # autograd gives NaN where nothing is positive
    found += textbook.torch_cases("torch", relu, "poincare.relu", (x, 0.6), {}, rng)
    return found + from_hypll(rng)


def by_hand():
    return [
        GoldenCase(
            function="poincare.residual_add",
            name="function first",
            args=(np.array([0.5, 0.0]), np.array([0.0, 0.5]), 1.0),
            expected=np.array([10.0, 6.0]) / 17,
            tolerance=Tolerance(2, "ulp"),
            source="by hand",
        ),
        GoldenCase(
            function="poincare.residual_add",
            name="skip first",
            args=(np.array([0.5, 0.0]), np.array([0.0, 0.5]), 1.0),
            options={"order": "rf"},
            expected=np.array([6.0, 10.0]) / 17,
            tolerance=Tolerance(2, "ulp"),
            source="by hand",
        ),
        GoldenCase(
            function="poincare.relu",
            name="a negative coordinate",
            args=(np.array([[0.3, -0.4]]), 1.0),
            expected=np.array([[np.tanh(0.6 * np.arctanh(0.5)), 0.0]]),
            tolerance=Tolerance(4, "ulp_of_largest"),
            source="by hand: the logarithm is artanh(1/2) (0.6, -0.8)",
        ),
        GoldenCase(
            function="poincare.avg_pool2d",
            name="halfway on a diameter",
            args=(np.array([[[[0.6, 0.0]]]]), 1.0),
            options={"size": (1, 2)},
            expected=np.array([[[[1 / 3]]]]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: artanh(3/5) = 2 artanh(1/3)",
        ),
    ]


def from_hypll(rng):
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.nn import HReLU
    from hypll.tensors import ManifoldTensor

    c = 0.25  # hypll keeps the curvature in float32; this one's root is exact there
    manifold = PoincareBall(Curvature(c, constraining_strategy=lambda value: value))
    x = 0.6 * rng.standard_normal((5, 3))
    y = HReLU(manifold)(ManifoldTensor(torch.tensor(x), manifold=manifold, man_dim=-1)).tensor.numpy()
    return [
        GoldenCase(
            function="poincare.relu",
            name="hypll",
            args=(x, c),
            expected=y,
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="hypll 0.1.1, float64",
        )
    ]
