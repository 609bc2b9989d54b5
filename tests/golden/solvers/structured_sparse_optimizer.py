"""Truth for HESSO's parts: hand calculations and the criteria in mpmath."""

import mpmath
import numpy as np

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import GroupSpec

mpmath.mp.dps = 50


def exact_scores(entries, weights):
    """Scores from each group's list of pairs (parameter, direction)."""
    criteria = {name: [] for name in ("magnitude", "average_magnitude", "cosine", "taylor1", "taylor2")}
    guard, size_guard = mpmath.mpf(1e-8), mpmath.mpf(1e-6)
    for pairs in entries:
        pairs = [(mpmath.mpf(float(x)), mpmath.mpf(float(d))) for x, d in pairs]
        norm_x = mpmath.sqrt(mpmath.fsum(x * x for x, _ in pairs))
        norm_d = mpmath.sqrt(mpmath.fsum(d * d for _, d in pairs))
        inner = mpmath.fsum(x * d for x, d in pairs)
        criteria["magnitude"].append(norm_x)
        criteria["average_magnitude"].append(norm_x / (len(pairs) + size_guard))
        criteria["cosine"].append(1 + inner / ((norm_x + guard) * (norm_d + guard)))
        criteria["taylor1"].append(abs(inner))
        criteria["taylor2"].append(inner**2 / 2)
    total = [mpmath.mpf(0)] * len(entries)
    for name, weight in weights.items():
        values = criteria[name]
        size = mpmath.sqrt(mpmath.fsum(v * v for v in values) + guard) + guard
        total = [t + mpmath.mpf(weight) * v / size for t, v in zip(total, values, strict=True)]
    return np.array([float(t) for t in total])


def cases():
    rng = np.random.default_rng(20240909)
    scores = "solvers.importance_scores"
    found = [
        GoldenCase(
            function=scores,
            name="two magnitudes by hand",
            args=(
                np.array([3.0, 0.0, -4.0]),
                np.array([1.0, 0.0, 0.0]),
                [GroupSpec("a", (("", 0, (0, 1)),)), GroupSpec("b", (("", 0, (2,)),))],
            ),
            options={"weights": {"magnitude": 1.0}},
            expected=np.array([0.6, 0.8]),
            tolerance=Tolerance(1e-8, "relative"),
            source="by hand: 3 and 4 divided by 5",
        )
    ]
    weight, bias = rng.standard_normal((3, 4)), rng.standard_normal(4)
    dweight, dbias = rng.standard_normal((3, 4)), rng.standard_normal(4)
    weight[:, 1] = bias[1] = 0
    dweight[:, 2] = dbias[2] = 0
    groups = [GroupSpec(str(i), (("0", 1, (i,)), ("1", 0, (i,)))) for i in range(4)]
    entries = [[*zip(weight[:, i], dweight[:, i], strict=True), (bias[i], dbias[i])] for i in range(4)]
    for name, weights in (
        ("all five", dict.fromkeys(("magnitude", "average_magnitude", "cosine", "taylor1", "taylor2"), 0.2)),
        ("average magnitude", {"average_magnitude": 1.0}),
        ("cosine", {"cosine": 1.0}),
        ("taylor1", {"taylor1": 2.0}),
        ("taylor2", {"taylor2": 1.0}),
    ):
        found.append(
            GoldenCase(
                function=scores,
                name=f"neurons with weights and biases, {name}",
                args=((weight, bias), (dweight, dbias), groups),
                options={} if name == "all five" else {"weights": weights},
                expected=exact_scores(entries, weights),
                tolerance=Tolerance(1e-14, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.group_sparsity",
            name="one neuron of four is 0",
            args=((weight, bias), groups),
            expected=np.array(0.25),
            source="by hand",
        )
    )
    layers = [
        (np.array([[1.0, 0.0, 2.0]]), np.array([0.5, 0.0, 1.0])),
        (np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([-1.0, -2.0])),
        (np.array([[7.0], [8.0]]), np.array([9.0])),
    ]
    layers[1][0][:, 0] = layers[1][1][0] = 0
    found.append(
        GoldenCase(
            function="solvers.compress_mlp",
            name="two neurons dropped by hand",
            args=(layers, np.array([False, True, False, True, False])),
            expected=[
                (np.array([[1.0, 2.0]]), np.array([0.5, 1.0])),
                (np.array([[2.0], [6.0]]), np.array([-2.0])),
                (np.array([[8.0]]), np.array([9.0])),
            ],
            source="by hand",
        )
    )
    return found
