"""Truth for magnitude invariant hypernetworks: hand calculations, mpmath, PyTorch in float64."""

import itertools

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import HypernetParams

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_code(x):
    angles = [[mpmath.pi / 2 * mpmath.mpf(float(v)) for v in row] for row in x]
    return np.array([[float(f(a)) for f in (mpmath.cos, mpmath.sin) for a in row] for row in angles])


def torch_hypernet(x, weights, biases, base, encoding, residual, slope):
    u = x
    if encoding == "cos_sin":
        u = torch.cat([torch.cos(torch.pi / 2 * x), torch.sin(torch.pi / 2 * x)], 1)
    elif encoding == "complement":
        u = torch.cat([x, 1 - x], 1)
    for weight, bias in zip(weights[:-1], biases, strict=True):
        u = torch.nn.functional.leaky_relu(torch.nn.functional.linear(u, weight.T, bias), slope)
    delta = torch.nn.functional.linear(u, weights[-1].T)
    return base + delta if residual else delta


def cases():
    rng = np.random.default_rng(230407645)
    found = []

    def add(function, name, args, expected, source, tolerance, **more):
        found.append(
            GoldenCase(function=f"norms.{function}", name=name, args=args, expected=expected, source=source, tolerance=tolerance, **more)
        )  # fmt: skip

    root3 = np.sqrt(3.0)
    x = np.array([0.0, 1.0, 1 / 3])
    few = Tolerance(2, "ulp_of_largest")
    add(
        "encode_cos_sin", "angles of 0, 90 and 30 degrees", (x,), np.array([1, 0, root3 / 2, 0, 1, 0.5]), "by hand", few
    )
    slope = np.array([np.pi / 2, -np.pi / 2, np.pi / 4 * (root3 - 1)])
    add(
        "encode_cos_sin",
        "angles of 0, 90 and 30 degrees",
        (x,),
        (slope,),
        "by hand: pi/2 (cos - sin)",
        Tolerance(4, "ulp_of_largest"),
        cotangent=np.ones(6),
    )
    # In float64 the angle, up to pi/2, carries two roundings (of pi/2 and of the product): 2.4e-16, or 2.2 units in the
    # last place of a number just below 1, and the function's own half unit. In float32 only the last one counts.
    for dtype, limit in ((np.float64, 3), (np.float32, 1)):
        x = rng.random((6, 3)).astype(dtype)
        add(
            "encode_cos_sin",
            f"random, {np.dtype(dtype).name}",
            (x,),
            exact_code(x),
            "mpmath, 50 digits",
            Tolerance(limit, "ulp_of_largest"),
        )
    x = np.array([[0.25, 1.0], [0.0, 0.5]])
    add("encode_complement", "two rows", (x,), np.array([[0.25, 1, 0.75, 0], [0, 0.5, 1, 0.5]]), "by hand", Tolerance())
    dy = np.array([[1.0, 2.0, 3.0, 5.0], [0.0, 1.0, 4.0, 0.5]])
    add(
        "encode_complement",
        "two rows",
        (x,),
        (np.array([[-2.0, -3.0], [-4.0, 0.5]]),),
        "by hand",
        Tolerance(),
        cotangent=dy,
    )
    add(
        "encode_complement",
        "clipped",
        (np.array([-1.0, 3.0]),),
        np.array([0.0, 1.0, 1.0, 0.0]),
        "by hand",
        Tolerance(),
        options={"clip": True},
    )

    params = HypernetParams((np.array([[2.0], [3.0]]),), (), np.array([1.0]))
    add("hypernet", "one linear layer", (np.array([[1 / 3]]), params), np.array([[2.5 + root3]]), "by hand", few)
    for encoding, residual, slope, sizes in (
        ("cos_sin", True, 0.01, (3, 5, 7)), ("complement", True, 0.2, (4, 6)), ("none", False, 0.01, (6, 4, 9)), ("cos_sin", False, 0.0, (9,)), ("none", True, 0.01, (5, 5)),
    ):  # fmt: skip
        d = 2
        widths = (d if encoding == "none" else 2 * d, *sizes)
        x = rng.random((3, d))
        weights = [rng.standard_normal(pair) for pair in itertools.pairwise(widths)]
        biases = [rng.standard_normal(n) for n in widths[1:-1]]
        base = rng.standard_normal(widths[-1])
        leaf = [torch.tensor(a, requires_grad=True) for a in (x, *weights, *biases, base)]
        value = torch_hypernet(
            leaf[0], leaf[1 : 1 + len(weights)], leaf[1 + len(weights) : -1], leaf[-1], encoding, residual, slope
        )
        cotangent = rng.standard_normal(value.shape)
        value.backward(torch.tensor(cotangent))
        grads = [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in leaf]
        dparams = HypernetParams(tuple(grads[1 : 1 + len(weights)]), tuple(grads[1 + len(weights) : -1]), grads[-1])
        options = {"encoding": encoding, "residual": residual, "slope": slope}
        name = f"{encoding}, residual {residual}, {len(sizes)} layers"
        args = (x, HypernetParams(tuple(weights), tuple(biases), base))
        tolerance = Tolerance(1e-12, "relative_of_largest")
        add("hypernet", name, args, value.detach().numpy(), TORCH, tolerance, options=options)
        add("hypernet", name, args, (grads[0], dparams), TORCH, tolerance, options=options, cotangent=cotangent)
    theta, shapes = np.arange(14.0).reshape(2, 7), {"weight": (2, 2), "bias": (3,)}
    parts = {"weight": np.array([[[0.0, 1], [2, 3]], [[7, 8], [9, 10]]]), "bias": np.array([[4.0, 5, 6], [11, 12, 13]])}
    add("unflatten", "two rows", (theta, shapes), parts, "by hand", Tolerance())
    add("unflatten", "two rows", (theta, shapes), (theta,), "by hand: reading back", Tolerance(), cotangent=parts)
    return found
