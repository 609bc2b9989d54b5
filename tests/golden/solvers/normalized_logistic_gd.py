"""Truth for large-step logistic regression: hand calculations, mpmath, PyTorch's autograd, rational perceptrons."""

from fractions import Fraction

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
X, TARGET = np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1])


def exact(weight, x, target):
    """Loss, gradient and normalized direction."""
    w = [mpmath.mpf(float(v)) for v in weight]
    rows = [[int(t) * mpmath.mpf(float(v)) for v in row] for row, t in zip(x, target, strict=True)]
    margins = [mpmath.fsum(a * b for a, b in zip(row, w, strict=True)) for row in rows]
    loss = mpmath.fsum(mpmath.log1p(mpmath.exp(-m)) for m in margins) / len(rows)
    shares = [1 / (1 + mpmath.exp(m)) for m in margins]
    pull = [mpmath.fsum(s * row[j] for s, row in zip(shares, rows, strict=True)) for j in range(len(w))]
    total = mpmath.fsum(shares)
    return (
        np.array(float(loss)),
        np.array([float(-p / len(rows)) for p in pull]),
        np.array([float(p / total) for p in pull]),
    )


def exact_descent(x, target, rate, steps, normalize):
    """Weight, loss and errors of a run of known length."""
    rows = [[int(t) * mpmath.mpf(float(v)) for v in row] for row, t in zip(x, target, strict=True)]
    w = [mpmath.mpf(0)] * x.shape[1]
    losses, errors = [], []

    def margins():
        return [mpmath.fsum(a * b for a, b in zip(row, w, strict=True)) for row in rows]

    while len(losses) < steps and any(m <= 0 for m in margins()):
        shares = [1 / (1 + mpmath.exp(m)) for m in margins()]
        size = mpmath.fsum(shares) if normalize else len(rows)
        pull = [mpmath.fsum(s * row[j] for s, row in zip(shares, rows, strict=True)) for j in range(len(w))]
        w = [v + mpmath.mpf(rate) * p / size for v, p in zip(w, pull, strict=True)]
        losses.append(float(mpmath.fsum(mpmath.log1p(mpmath.exp(-m)) for m in margins()) / len(rows)))
        errors.append(float(sum(m <= 0 for m in margins())))
    weight = np.array([float(v) for v in w])
    return weight, np.array(len(losses)), np.array(errors[-1] == 0), np.array(losses), np.array(errors)


def rational_perceptron(x, target, *, batch):
    rows = [[int(t) * Fraction(float(v)) for v in row] for row, t in zip(x, target, strict=True)]
    w, errors, position = [Fraction(0)] * x.shape[1], [], 0

    def margins():
        return [sum(a * b for a, b in zip(row, w, strict=True)) for row in rows]

    while any(m <= 0 for m in margins()):
        if batch:
            pulls = [Fraction(1) if m < 0 else Fraction(1, 2) if m == 0 else Fraction(0) for m in margins()]
            w = [v + sum(p * row[j] for p, row in zip(pulls, rows, strict=True)) / len(rows) for j, v in enumerate(w)]
        else:
            while margins()[position] > 0:
                position = (position + 1) % len(rows)
            w = [v + r for v, r in zip(w, rows[position], strict=True)]
            position = (position + 1) % len(rows)
        errors.append(float(sum(m <= 0 for m in margins())))
    return np.array([float(v) for v in w]), np.array(len(errors)), np.array(True), np.array(errors)


def separable(rng, n, d):
    """Samples with a few binary digits, so that margins are exact and no tie depends on rounding."""
    x = np.round(rng.standard_normal((n, d)) * 16) / 16
    normal = rng.standard_normal(d)
    keep = np.abs(x @ normal) > 0.2
    return x[keep], np.where(x[keep] @ normal > 0, 1, -1)


def cases():
    rng = np.random.default_rng(20241217)
    hand = [
        ("logistic_loss", (np.zeros(2), X, TARGET), np.array(np.log(2.0)), "log 2"),
        ("logistic_gradient", (np.zeros(2), X, TARGET), np.array([0, -0.25]), "-(0, 1) / 4: all ties"),
        ("normalized_direction", (np.zeros(2), X, TARGET), np.array([0, 0.5]), "the mean of both samples"),
    ]
    found = [
        GoldenCase(
            function=f"solvers.{function}",
            name="ties",
            args=args,
            expected=expected,
            tolerance=Tolerance(2, "ulp"),
            source=f"by hand: {note}",
        )
        for function, args, expected, note in hand
    ]
    for name, scale, dtype in (
        ("normal", 1.0, np.float64),
        ("large margins", 300.0, np.float64),
        ("all far on the right side", 0.0, np.float64),
        ("normal", 1.0, np.float32),
    ):
        x = rng.standard_normal((9, 4)).astype(dtype)
        weight = (scale * rng.standard_normal(4)).astype(dtype)
        target = rng.choice([-1, 1], 9)
        if not scale:
            weight = np.array([200.0, 0, 0, 0])
            target = np.where(x @ weight > 0, 1, -1)
        results = exact(weight, x, target)
        limit = 1e-13 if dtype == np.float64 else 3e-6
        for function, expected in zip(
            ("logistic_loss", "logistic_gradient", "normalized_direction"), results, strict=True
        ):
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    name=f"{name}, {np.dtype(dtype).name}",
                    args=(weight, x, target),
                    expected=expected,
                    tolerance=Tolerance(limit, "relative_of_largest"),
                    source="mpmath, 50 digits",
                )
            )
    weight, x, target = rng.standard_normal(4), rng.standard_normal((9, 4)), rng.choice([-1, 1], 9)
    for function in ("logistic_loss", "logistic_gradient", "normalized_direction"):
        tensors = [torch.tensor(a, requires_grad=True) for a in (weight, x)]
        sign = torch.tensor(target.astype(float))
        margin = sign * (tensors[1] @ tensors[0])
        share = torch.sigmoid(-margin)
        value = {
            "logistic_loss": torch.nn.functional.softplus(-margin).mean(),
            "logistic_gradient": -(share * sign) @ tensors[1] / 9,
            "normalized_direction": (share / share.sum() * sign) @ tensors[1],
        }[function]
        cotangent = np.asarray(rng.standard_normal(value.shape))
        value.backward(torch.tensor(cotangent))
        found.append(
            GoldenCase(
                function=f"solvers.{function}",
                name="cotangents",
                args=(weight, x, target),
                cotangent=cotangent,
                expected=tuple(t.grad.numpy() for t in tensors),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source=f"torch {torch.__version__.split('+')[0]} autograd, float64",
            )
        )
    wide = separable(rng, 12, 3)
    for name, (x, target), rate, steps, normalize in (
        ("two samples, rate 4", (X, TARGET), 4.0, 10, False),
        ("two samples, rate 1, normalized", (X, TARGET), 1.0, 10, True),
        ("three features, rate 0.5", wide, 0.5, 7, False),
        ("three features, rate 0.05, normalized", wide, 0.05, 7, True),
    ):
        expected = exact_descent(x, target, rate, steps, normalize)
        found.append(
            GoldenCase(
                function="solvers.logistic_gd",
                name=name,
                args=(x, target),
                options={"learning_rate": rate, "normalize": normalize, "max_iter": steps},
                expected=expected,
                tolerance=Tolerance(1e-12, "relative"),
                source="mpmath, 50 digits",
            )
        )
    for n, d in ((8, 2), (20, 3)):
        x, target = separable(rng, n, d)
        for function, options in (("batch_perceptron", {"max_iter": 10_000}), ("perceptron", {"max_epochs": 10_000})):
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    name=f"{len(x)} samples in {d} dimensions",
                    args=(x, target),
                    options=options,
                    expected=rational_perceptron(x, target, batch=function == "batch_perceptron"),
                    tolerance=Tolerance(1e-13, "relative_of_largest"),
                    source="rational arithmetic",
                )
            )
    for function, args, expected in (
        ("perceptron_bound", (2.0, 0.5), mpmath.mpf(16)),
        ("batch_perceptron_bound", (2.0, 0.5, 7), mpmath.mpf(224)),
        ("normalized_gd_bound", (2.0, 0.5, 20, 4.0), 16 + 2 * mpmath.log(20)),
        ("normalized_gd_bound", (2.0, 0.5, 2, 4.0), 16 + 4 / mpmath.e),
    ):
        found.append(
            GoldenCase(
                function=f"solvers.{function}",
                name=f"arguments {args}",
                args=args,
                expected=np.array(float(expected)),
                tolerance=Tolerance(2, "ulp"),
                source="mpmath, 50 digits, by the formula",
            )
        )
    return found
