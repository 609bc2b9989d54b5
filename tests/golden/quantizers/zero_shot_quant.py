"""Truth for ZeroQ: hand calculations, PyTorch's autograd in float64, and frontiers by going through all choices."""

import itertools

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-12, "relative_of_largest")
ULP = Tolerance(8, "ulp_of_largest")


def cases():
    rng = np.random.default_rng(20200101)
    return [*by_hand(), *losses(rng), *frontiers(rng)]


def by_hand():
    root = np.sqrt(2.0)
    args = (np.array([[[1.0, 3.0]]]), np.zeros(1), np.ones(1))
    return [
        GoldenCase("quantizers.bn_stats_loss", "mean 2, variance 2", args, 4 + (root - 1) ** 2, "by hand", ULP, {"eps": 0.0}),
        GoldenCase(
            "quantizers.bn_stats_loss", "mean 2, variance 2", args,
            # 2 (2 / 2 -+ (root - 1) / root); the targets get -2 times what is off.
            (np.array([[[root, 4 - root]]]), np.array([-4.0]), np.array([2 - 2 * root])), "by hand", ULP, {"eps": 0.0},
            cotangent=np.array(1.0),
        ),
        GoldenCase(
            "quantizers.pareto_frontier", "two layers, one choice dominated",
            (np.array([[0.5, 0.1], [0.4, 0.2]]), np.array([1, 2]), (2, 4)),
            (np.array([6, 8, 12]), np.array([0.9, 0.5, 0.3]), np.array([[2, 2], [4, 2], [4, 4]])),
            "by hand: (10, 0.7) is beaten by (8, 0.5)", CLOSE,
        ),
        GoldenCase(
            "quantizers.pareto_frontier", "equals: the smaller first entry stays",
            (np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([3, 3]), (2, 4)),
            (np.array([12, 18, 24]), np.array([4.0, 3.0, 2.0]), np.array([[2, 2], [2, 4], [4, 4]])), "by hand",
        ),
    ]  # fmt: skip


def losses(rng):
    found = []
    for shape, stats in (((3, 2, 4, 4), "image"), ((2, 3, 5), "image"), ((6, 4), "batch"), ((3, 2, 2, 2), "batch")):
        h = 2 * rng.standard_normal(shape) + 1
        mean, std = rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1])
        leaves = [torch.tensor(a, requires_grad=True) for a in (h, mean, std)]
        axes = tuple(range(2, len(shape))) if stats == "image" else (0, *range(2, len(shape)))
        own_mean, own_std = leaves[0].mean(axes), (leaves[0].var(axes, correction=1) + 1e-6).sqrt()
        loss = ((own_mean - leaves[1]) ** 2 + (own_std - leaves[2]) ** 2).sum()
        loss = loss / shape[0] if stats == "image" else loss
        (0.7 * loss).backward()
        name, args = f"statistics of each {stats}, shape {shape}", (h, mean, std)
        found += [
            GoldenCase("quantizers.bn_stats_loss", name, args, loss.detach().numpy(), f"{TORCH}: mean, var", CLOSE, {"stats": stats}),
            GoldenCase(
                "quantizers.bn_stats_loss", name, args, tuple(leaf.grad.numpy() for leaf in leaves), f"{TORCH}: autograd", CLOSE,
                {"stats": stats}, cotangent=np.array(0.7),
            ),
        ]  # fmt: skip
    return found


def frontiers(rng):
    found = []
    for layers, bits in ((4, (2, 4, 8)), (6, (2, 4, 8)), (3, (2, 3, 4, 8))):
        sizes = rng.integers(10, 500, layers)
        # Sixteenths add up exactly, in any order.
        sensitivity = rng.integers(1, 400, (layers, len(bits))) / 16
        points = []
        for picks in itertools.product(range(len(bits)), repeat=layers):
            size = sum(int(n) * bits[k] for n, k in zip(sizes, picks, strict=True))
            points.append(
                (size, sum(float(sensitivity[i, k]) for i, k in enumerate(picks)), tuple(bits[k] for k in picks))
            )
        best = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
        best.sort()
        expected = tuple(np.array(column) for column in zip(*best, strict=True))
        found.append(
            GoldenCase("quantizers.pareto_frontier", f"{layers} layers, {len(bits)} choices", (sensitivity, sizes, bits), expected, "all choices, compared in pairs")
        )  # fmt: skip
    return found
