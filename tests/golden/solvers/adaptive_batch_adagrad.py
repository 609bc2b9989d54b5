"""Truth for AdAdaGrad: hand calculations, tests in rational arithmetic, AdaGrad of PyTorch."""

from fractions import Fraction

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
HAND = np.array([[1.0, 0.0], [3.0, 2.0]])


def rational_tests(grads, tolerance):
    """Each test's (required, statistic, variance, squared norm), exactly, from the binary values."""
    rows = [[Fraction(float(v)) for v in row] for row in grads]
    size, square_tolerance = len(rows), Fraction(tolerance) ** 2
    mean = [sum(column) / size for column in zip(*rows, strict=True)]
    square = sum(m * m for m in mean)

    def variance(values):
        centre = sum(values) / size
        return sum((v - centre) ** 2 for v in values) / (size - 1)

    each = [variance(column) for column in zip(*rows, strict=True)]
    inner = [sum(a * b for a, b in zip(row, mean, strict=True)) for row in rows]
    along = variance(inner) / square
    rest = [[v - i / square * m for v, m in zip(row, mean, strict=True)] for row, i in zip(rows, inner, strict=True)]
    across = sum(variance(column) for column in zip(*rest, strict=True))
    worst = max(range(len(mean)), key=lambda j: each[j] / mean[j] ** 2)

    def outcome(v, s):
        statistic = v / (square_tolerance * s)
        required = max(Fraction(size), Fraction(-(-statistic.numerator // statistic.denominator)))
        return tuple(np.array(float(value)) for value in (required, statistic, v, s))

    return {
        "norm_test": outcome(sum(each), square),
        "inner_product_test": outcome(along, square),
        "orthogonality_test": outcome(across, square),
        "coordinate_norm_test": outcome(each[worst], mean[worst] ** 2),
    }


def hand(function, expected, note, **options):
    return GoldenCase(
        function=f"solvers.{function}",
        name="two samples",
        args=(HAND,),
        options={"tolerance": 0.5, **options},
        expected=tuple(np.array(float(value)) for value in expected),
        tolerance=Tolerance(8, "ulp"),
        source=f"by hand: {note}",
    )


def torch_adagrad(start, gradients, **options):
    params = [torch.tensor(array, requires_grad=True) for array in start]
    optimizer = torch.optim.Adagrad(params, foreach=False, **options)
    for gradient in gradients:
        for param, grad in zip(params, gradient, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
    return [param.detach().numpy() for param in params]


def exact_adagrad_norm(start, gradients, rate, accumulator):
    values = [[mpmath.mpf(float(v)) for v in leaf.ravel()] for leaf in start]
    total = mpmath.mpf(accumulator)
    for gradient in gradients:
        grads = [[mpmath.mpf(float(v)) for v in leaf.ravel()] for leaf in gradient]
        total += mpmath.fsum(g * g for leaf in grads for g in leaf)
        factor = mpmath.mpf(rate) / mpmath.sqrt(total)
        values = [
            [v - factor * g for v, g in zip(row, grad, strict=True)] for row, grad in zip(values, grads, strict=True)
        ]
    return [np.array([float(v) for v in row]).reshape(leaf.shape) for row, leaf in zip(values, start, strict=True)]


def cases():
    rng = np.random.default_rng(20240217)
    found = [
        hand("norm_test", (4, 3.2, 4, 5), "g = (2, 1), v = (2, 2), 4 / (5/4)"),
        hand("inner_product_test", (3, 2.88, 3.6, 5), "inner products 2 and 8, variance 18, 18 / (25/4)"),
        hand("orthogonality_test", (2, 0.32, 0.4, 5), "residuals -+(0.2, -0.4), 0.4 / (5/4)"),
        hand("coordinate_norm_test", (8, 8, 2, 1), "second coordinate: 2 / (1/4)"),
        hand(
            "augmented_inner_product_test",
            (3, 2.88, 3.6, 5),
            "the larger of 2.88 and 0.32",
            orthogonality_tolerance=0.5,
        ),
    ]
    for name, args, largest, expected in (
        ("rounded up", (2, 3.2), 100, 4),
        ("passed", (8, 0.5), 100, 8),
        ("capped", (8, 1e300), 569, 569),
    ):
        found.append(
            GoldenCase(
                function="solvers.next_batch_size",
                name=name,
                args=args,
                options={"max_batch_size": largest},
                expected=np.array(expected),
                source="by hand",
            )
        )
    for name, grads, tolerance in (
        ("12 samples", 0.3 + rng.standard_normal((12, 5)), 0.25),
        ("two samples in seven dimensions", 1 + rng.standard_normal((2, 7)), 1.0),
        ("large mean, float32", (1e4 + rng.standard_normal((20, 4))).astype(np.float32), 1e-4),
    ):
        for function, expected in rational_tests(grads, tolerance).items():
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    name=name,
                    args=(grads,),
                    options={"tolerance": tolerance},
                    expected=expected,
                    tolerance=Tolerance(1e-11, "relative"),
                    source="rational arithmetic",
                )
            )
    for name, ours, theirs in (
        ("defaults", {}, {}),
        ("decay of the rate", {"learning_rate": 0.1, "learning_rate_decay": 0.3}, {"lr": 0.1, "lr_decay": 0.3}),
        (
            "penalty and initial value",
            {"learning_rate": 0.5, "weight_decay": 0.2, "initial_accumulator_value": 0.7, "eps": 1e-3},
            {"lr": 0.5, "weight_decay": 0.2, "initial_accumulator_value": 0.7, "eps": 1e-3},
        ),
    ):
        for dtype in (np.float64, np.float32):
            start = [rng.standard_normal(shape).astype(dtype) for shape in ((5,), (3, 4))]
            gradients = [[rng.standard_normal(leaf.shape).astype(dtype) for leaf in start] for _ in range(8)]
            found.append(
                GoldenCase(
                    function="solvers.AdaGrad",
                    name=f"{name}, {np.dtype(dtype).name}",
                    kind="optimizer",
                    args=(start, gradients),
                    options=ours,
                    expected=torch_adagrad(start, gradients, **theirs),
                    tolerance=Tolerance(8, "ulp_of_largest"),
                    source=f"torch {torch.__version__.split('+')[0]}, torch.optim.Adagrad",
                )
            )
    start = [rng.standard_normal(shape) for shape in ((5,), (3, 4))]
    gradients = [[rng.standard_normal(leaf.shape) for leaf in start] for _ in range(8)]
    found += [
        GoldenCase(
            function="solvers.AdaGradNorm",
            name="one step by hand",
            kind="optimizer",
            args=(np.zeros(2), [np.array([3.0, 4.0])]),
            options={"initial_accumulator_value": 0.0},
            expected=np.array([-0.6, -0.8]),
            tolerance=Tolerance(1, "ulp"),
            source="by hand: the unit vector",
        ),
        GoldenCase(
            function="solvers.AdaGradNorm",
            name="eight steps",
            kind="optimizer",
            args=(start, gradients),
            options={"learning_rate": 0.7, "initial_accumulator_value": 0.01},
            expected=exact_adagrad_norm(start, gradients, 0.7, 0.01),
            tolerance=Tolerance(8, "ulp_of_largest"),
            source="mpmath, 50 digits",
        ),
    ]
    return found
