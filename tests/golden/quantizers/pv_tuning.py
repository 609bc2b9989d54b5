"""Truth for PV-Tuning: hand calculations, scikit-learn's k-means, SciPy's distances, PyTorch's autograd and Adam."""

import itertools

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.quantizers import AdditiveQuantized

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-12, "relative_of_largest")
ULP = Tolerance(4, "ulp_of_largest")


def cases():
    rng = np.random.default_rng(20240523)
    return [*by_hand(), *clusters(rng), *exhaustive(rng), *dequantized(rng), *searched(rng), *optimized(rng)]


def by_hand():
    vector, x0 = np.array([0.0, 0.2, 0.4, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])
    half = 2.1  # |a|^2 / 2: the objective is |x - a|^2 / 2 without it.
    near = {"tolerance": Tolerance(1e-14, "relative_of_largest")}
    return [
        GoldenCase("quantizers.partition", "three values", (np.array([2.0, -1, 0, 2, 0]),), np.array([2, 0, 1, 2, 1]), "by hand"),
        GoldenCase("quantizers.values", "three values", (np.array([2.0, -1, 0, 2, 0]),), np.array([-1.0, 0, 2]), "by hand"),
        GoldenCase(
            "quantizers.pv_exact_quadratic", "four numbers", (np.eye(4), vector, x0),
            (np.array([0.2, 0.2, 0.2, 2.0]), np.array(2), np.array(True), np.array([0.375, 0.04]) - half, np.array([1.0, 0])),
            "by hand: class means, then nearest values, twice", **near,
        ),
        GoldenCase(
            "quantizers.pv_linearized_quadratic", "four numbers, one pair of steps", (np.eye(4), vector, x0), options={"n_iter": 1},
            expected=(np.array([0.1, 0.1, 0.1, 1.2]), np.array(1), np.array(False), np.array([0.375]) - half, np.array([1.0])),
            source="by hand: class means 0.1 and 1.2, midpoint 0.65", **near,
        ),
        GoldenCase(
            "quantizers.pv_linearized_quadratic", "one coordinate moves, with its own curvature",
            (np.diag([4.0, 1.0, 1.0]), np.array([0.0, 2.0, 0.0]), np.array([0.0, 0.0, 1.0])), options={"n_iter": 1, "subspace": 1},
            # L = 4: class means (0 + 0.5) / 2 and 0.75. Gradients 1, -1.75, 0.75: the second moves to 0.25 + 1.75 = 2.
            expected=(np.array([0.25, 0.75, 0.75]), np.array(1), np.array(False), np.array([0.125 + 0.5625 - 1.5]), np.array([1.0])),
            source="by hand: with L = 4 it would have stayed", **near,
        ),
    ]  # fmt: skip


def clusters(rng):
    """With A = I the linearized steps are Lloyd's algorithm, begun at the classes of the start."""
    found = []
    for d, c in ((12, 2), (60, 5), (90, 8)):
        vector = rng.standard_normal(d)
        centres = np.sort(rng.choice(vector, c, replace=False))
        x0 = centres[np.abs(vector[:, None] - centres).argmin(axis=1)]
        fit = KMeans(c, init=centres[:, None], n_init=1, tol=0, max_iter=1000, algorithm="lloyd").fit(vector[:, None])
        x = fit.cluster_centers_[fit.labels_, 0]
        steps = lloyd_steps(vector, centres)
        found.append(
            GoldenCase(
                "quantizers.pv_linearized_quadratic", f"Lloyd's algorithm, {c} values",
                (np.eye(d), vector, x0),
                (x, np.array(len(steps)), np.array(True), np.array([s[0] for s in steps]), np.array([s[1] for s in steps])),
                "scikit-learn: KMeans; steps counted by a loop over plain lists", CLOSE,
            )
        )  # fmt: skip
    return found


def lloyd_steps(vector, centres):
    """Objective and number of changed labels after each round, until nothing moves."""
    labels = [int(np.argmin([abs(v - c) for c in centres])) for v in vector]
    centres, steps = list(centres), []
    while True:
        before = list(centres)
        for j in set(labels):
            centres[j] = float(np.mean([v for v, label in zip(vector, labels, strict=True) if label == j]))
        after = [int(np.argmin([abs(v - c) for c in centres])) for v in vector]
        changed = sum(a != b for a, b in zip(labels, after, strict=True))
        labels = after
        x = np.array([centres[j] for j in labels])
        steps.append((float(((x - vector) ** 2).sum() / 2 - (vector**2).sum() / 2), float(changed)))
        if changed == 0 and np.allclose(before, centres, rtol=0, atol=1e-14):
            return steps


def exhaustive(rng):
    """One pair of exact steps, by solving for two values and trying all assignments one at a time."""
    root, wanted = rng.standard_normal((6, 6)), rng.standard_normal(6)
    matrix = root @ root.T
    vector, x0 = matrix @ wanted, np.array([0.5, -0.5, 0.5, 0.5, -0.5, -0.5])

    def objective(x):
        return sum(x[i] * matrix[i, j] * x[j] for i in range(6) for j in range(6)) / 2 - sum(vector * x)

    low, high = x0 < 0, x0 > 0
    system = [[matrix[np.ix_(a, b)].sum() for b in (low, high)] for a in (low, high)]
    two = torch.linalg.solve(torch.tensor(system), torch.tensor([vector[low].sum(), vector[high].sum()])).numpy()
    best = np.array(min(itertools.product(two, repeat=6), key=lambda x: objective(np.array(x))))
    changed = (best != np.where(low, two[0], two[1])).sum()
    return [
        GoldenCase(
            "quantizers.pv_exact_quadratic", "six coordinates, one pair of steps", (matrix, vector, x0), options={"n_iter": 1},
            expected=(best, np.array(1), np.array(changed == 0), np.array([objective(best)]), np.array([float(changed)])),
            source="torch solve, and a loop over 64 assignments", tolerance=Tolerance(1e-11, "relative_of_largest"),
        )
    ]  # fmt: skip


def torch_weights(codes, codebooks, scales):
    parts = sum(codebooks[m][torch.tensor(codes[..., m])] for m in range(codes.shape[2]))
    return (scales[:, None, None] * parts).reshape(codes.shape[0], -1)


def dequantized(rng):
    found = []
    for rows, groups, m, k, g in ((2, 3, 1, 4, 2), (3, 2, 2, 3, 4), (1, 4, 3, 2, 1)):
        codes = rng.integers(k, size=(rows, groups, m))
        arrays = rng.standard_normal((m, k, g)), rng.standard_normal(rows)
        cotangent = rng.standard_normal((rows, groups * g))
        leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        value = torch_weights(codes, *leaves)
        value.backward(torch.tensor(cotangent))
        name = f"{m} codebooks of {k}, groups of {g}"
        args = (codes, *arrays)
        found += [
            GoldenCase("quantizers.additive_dequantize", name, args, value.detach().numpy(), f"{TORCH}: gather", ULP),
            GoldenCase(
                "quantizers.additive_dequantize", name, args, tuple(leaf.grad.numpy() for leaf in leaves),
                f"{TORCH}: autograd", CLOSE, cotangent=cotangent,
            ),
        ]  # fmt: skip
    return found


def searched(rng):
    """All sums of codewords, by SciPy; a beam as wide as a codebook finds the best of all pairs."""
    found = []
    for m, k, g in ((1, 8, 3), (2, 4, 2)):
        codebooks, scales = rng.standard_normal((m, k, g)), np.array([1.5, -0.5, 0.0])
        codes, target = rng.integers(k, size=(3, 5, m)), rng.standard_normal((3, 5 * g))
        sums = np.array([sum(codebooks[i, c] for i, c in enumerate(all_)) for all_ in np.ndindex(*(k,) * m)])
        best = np.stack([cdist(target[r].reshape(5, g), scales[r] * sums).argmin(axis=1) for r in range(3)])
        truth = np.stack(np.unravel_index(best, (k,) * m), axis=-1)
        truth[2] = codes[2]
        found.append(
            GoldenCase(
                "quantizers.nearest_codes", f"{m} codebooks of {k}, the last row's scale 0",
                (target, AdditiveQuantized(codes, codebooks, scales)), truth, "SciPy: cdist over all sums of codewords",
                options={"beam_size": k},
            )
        )  # fmt: skip
    return found


def optimized(rng):
    """Ten steps along fixed gradients: torch's Adam on codebooks, scales and a float copy; SciPy's distances for codes."""
    found = []
    for name, options in {
        "codes stay": {"learning_rate_values": 0.01, "learning_rate_codes": 1e-6, "trust_ratio": 1.0},
        "straight-through": {
            "learning_rate_values": 0.02, "learning_rate_codes": 0.1, "max_code_change": 1.0, "trust_ratio": float("inf"),
            "delta_decay": 0.0,
        },
    }.items():  # fmt: skip
        weight = rng.standard_normal((4, 6))
        codebooks, scales = rng.standard_normal((1, 5, 2)), rng.uniform(0.5, 1.5, 4)
        codes = np.stack([cdist(weight[r].reshape(3, 2), scales[r] * codebooks[0]).argmin(axis=1) for r in range(4)])[
            ..., None
        ]
        grads = [rng.standard_normal((4, 6)) for _ in range(10)]
        start = AdditiveQuantized(codes, codebooks, scales)
        leaves = [torch.tensor(a, requires_grad=True) for a in (codebooks, scales)]
        copy = torch_weights(codes, *leaves).detach().clone().requires_grad_()
        rates = [options["learning_rate_values"]] * 2 + [options["learning_rate_codes"]]
        adam = torch.optim.Adam(
            [{"params": [p], "lr": r} for p, r in zip([*leaves, copy], rates, strict=True)], betas=(0.9, 0.95)
        )
        for grad in grads:
            adam.zero_grad()
            torch_weights(codes, *leaves).backward(torch.tensor(grad))
            copy.grad = torch.tensor(grad)
            adam.step()
            if name == "straight-through":
                book, factor = (leaf.detach().numpy() for leaf in leaves)
                target = copy.detach().numpy().reshape(4, 3, 2)
                codes = np.stack([cdist(target[r], factor[r] * book[0]).argmin(axis=1) for r in range(4)])[..., None]
        expected = (codes, *(leaf.detach().numpy() for leaf in leaves))
        found.append(
            GoldenCase(
                "quantizers.PVOptimizer", name, (start, grads), expected, f"{TORCH}: Adam, autograd; SciPy: cdist", CLOSE,
                options=options, kind="optimizer",
            )
        )  # fmt: skip
    return found
