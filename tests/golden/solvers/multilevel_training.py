"""Truth for multi-level training: hand calculations, sums over groups in rational arithmetic, PyTorch's gradients."""

from fractions import Fraction

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import WidthPlan

VERSION = f"torch {torch.__version__.split('+')[0]}, float64"


def grouped(weight, bias, inputs, outputs):
    """Inputs of a group summed, outputs averaged, entry by entry in rational numbers."""
    w, b = [[Fraction(v) for v in row] for row in weight.tolist()], [Fraction(v) for v in bias.tolist()]
    small = [[float(sum(w[i][o] for i in a for o in c) / len(c)) for c in outputs] for a in inputs]
    return np.array(small), np.array([float(sum(b[o] for o in c) / len(c)) for c in outputs])


def spread(weight, bias, inputs, outputs):
    """Outputs copied to their group, inputs split evenly."""
    big = np.zeros((sum(map(len, inputs)), sum(map(len, outputs))))
    grown = np.zeros(big.shape[1])
    for a, group in enumerate(inputs):
        for c, copies in enumerate(outputs):
            for i in group:
                for o in copies:
                    big[i, o] = float(Fraction(float(weight[a, c])) / len(group))
                    grown[o] = bias[c]
    return big, grown


def torch_grads(arrays, cotangents, function):
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    total = sum((torch.tensor(c) * v).sum() for c, v in zip(cotangents, function(*tensors), strict=True))
    total.backward()
    return tuple(tensor.grad.numpy() for tensor in tensors)


def cases():
    rng = np.random.default_rng(20240407)
    pair = [(0, 1)]
    plan = WidthPlan({"0": (None, ("average", pair)), "1": (("sum", pair), None)})
    big, small = [np.array([[1.0, 3.0]]), np.array([[2.0], [4.0]])], [np.array([[2.0]]), np.array([[6.0]])]
    grown = [np.array([[2.0, 2.0]]), np.array([[3.0], [3.0]])]
    found = [
        GoldenCase("solvers.coalesce", "two neurons by hand", (big, plan), small, "by hand"),
        GoldenCase("solvers.decoalesce", "two neurons by hand", (small, plan), grown, "by hand"),
        GoldenCase(
            "solvers.interpolate",
            "two neurons by hand",
            (big, grown, 0.5),
            [np.array([[1.5, 2.5]]), np.array([[2.5], [3.5]])],
            "by hand",
        ),
        GoldenCase(
            "solvers.averaging_matrix",
            "unequal groups by hand",
            ([(0, 2, 3), (1,)], 4),
            np.array([[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0]]),
            "by hand",
            tolerance=Tolerance(1, "ulp"),
        ),
        GoldenCase(
            "solvers.copy_matrix",
            "unequal groups by hand",
            ([(0, 2, 3), (1,)], 4),
            np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]]),
            "by hand",
        ),
        GoldenCase(
            "solvers.depth_matrix",
            "layers in pairs with a distance",
            (4,),
            np.array([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]),
            "by hand",
            options={"near": False},
        ),
    ]
    inputs, outputs = [(0, 3), (1, 2)], [(0, 4), (1,), (2, 3)]
    weight, bias = rng.standard_normal((4, 5)), rng.standard_normal(5)
    plan = WidthPlan({"0": (("sum", inputs), ("average", outputs)), "1": (("average", outputs),)})
    small = grouped(weight, bias, inputs, outputs)
    tolerance = Tolerance(4, "ulp_of_largest")
    source = "sums over groups in rational arithmetic"
    found += [
        GoldenCase("solvers.coalesce", "unequal groups", ((weight, bias), plan), small, source, tolerance=tolerance),
        GoldenCase(
            "solvers.decoalesce",
            "unequal groups",
            (small, plan),
            spread(*small, inputs, outputs),
            source,
            tolerance=tolerance,
        ),
    ]
    average = np.array([[0.5, 0, 0, 0, 0.5], [0, 1, 0, 0, 0], [0, 0, 0.5, 0.5, 0]])
    copied = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    found.append(
        GoldenCase(
            "solvers.coalesce_linear",
            "unequal groups",
            (weight, bias, average, copied),
            small,
            source,
            tolerance=tolerance,
        )
    )
    found.append(
        GoldenCase(
            "solvers.decoalesce_linear",
            "unequal groups",
            (*small, np.ceil(average.T), copied.T / 2),
            spread(*small, inputs, outputs),
            source,
            tolerance=tolerance,
        )
    )
    cotangents = (rng.standard_normal((2, 3)), rng.standard_normal(3))
    arrays = (weight, bias, rng.standard_normal((3, 5)), rng.standard_normal((4, 2)))
    for name in ("coalesce_linear", "decoalesce_linear"):
        found.append(
            GoldenCase(
                f"solvers.{name}",
                "any matrices",
                arrays,
                torch_grads(arrays, cotangents, lambda w, b, out, into: (into.T @ w @ out.T, out @ b)),
                VERSION,
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                cotangent=cotangents,
            )
        )
    a, b, cotangent = rng.standard_normal((3, 2, 3))
    alpha = 0.3
    dbig, dgrown, dalpha = torch_grads((a, b, np.array(alpha)), (cotangent,), lambda p, q, t: ((1 - t) * p + t * q,))
    found.append(
        GoldenCase(
            "solvers.interpolate",
            "one matrix",
            (a, b, alpha),
            (dbig, dgrown, dalpha),
            VERSION,
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            cotangent=cotangent,
        )
    )
    layers = [rng.standard_normal((2, 2)) for _ in range(3)]
    matrix, douts = rng.standard_normal((2, 3)), list(rng.standard_normal((2, 2, 2)))

    def mixed(x, y, z, m):
        return tuple(m[i, 0] * x + m[i, 1] * y + m[i, 2] * z for i in range(2))

    grads = torch_grads((*layers, matrix), douts, mixed)
    found.append(
        GoldenCase(
            "solvers.coalesce_depth",
            "three layers to two",
            (layers, matrix),
            (list(grads[:3]), grads[3]),
            VERSION,
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            cotangent=douts,
        )
    )
    plan = WidthPlan({"0": (None, ("average", pair)), "1": (("sum", pair), None)})
    big, small = [np.array([[1.0, 3.0]]), np.array([[2.0], [4.0]])], [np.array([[2.0]]), np.array([[6.0]])]
    found += [
        GoldenCase("solvers.pair_scheme", "halves", (6,), ((0, 3), (1, 4), (2, 5)), "by hand"),
        GoldenCase("solvers.pair_scheme", "neighbours", (6,), ((0, 1), (2, 3), (4, 5)), "by hand", options={"near": True}),
        GoldenCase("solvers.pair_scheme", "heads of two", (8,), ((0, 4), (1, 5), (2, 6), (3, 7)), "by hand", options={"block": 2}),
        # Transposes of averaging a pair of outputs and of adding a pair of inputs, and of their copies.
        GoldenCase(
            "solvers.coalesce", "two neurons by hand", (big, plan), ([np.array([[0.5, 0.5]]), np.array([[2.0], [2.0]])],),
            "by hand", cotangent=[np.array([[1.0]]), np.array([[2.0]])],
        ),
        GoldenCase(
            "solvers.decoalesce", "two neurons by hand", (small, plan), ([np.array([[3.0]]), np.array([[3.5]])],), "by hand",
            cotangent=[np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])],
        ),
    ]  # fmt: skip
    layers, mix = [np.array([1.0, 2.0]), np.array([3.0, 4.0])], np.array([[0.25, 0.75]])
    up = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found += [
        GoldenCase("solvers.coalesce_depth", "one of two", (layers, mix), [np.array([2.5, 3.5])], "by hand"),
        GoldenCase("solvers.decoalesce_depth", "three of two", (layers, up), [layers[0], np.array([2.0, 3.0]), layers[1]], "by hand"),
        GoldenCase(
            "solvers.decoalesce_depth", "three of two", (layers, up),
            ([np.array([1.0, 0.5]), np.array([0.0, 2.5])], np.array([[1.0, 3.0], [2.0, 4.0], [4.0, 8.0]])), "by hand: the transpose, and inner products",
            cotangent=[np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 2.0])],
        ),
    ]  # fmt: skip
    return found
