"""Truth for data hyper-cleaning: hand calculations, mpmath, PyTorch's autograd of first and second order."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]} autograd, float64"


def exact(x, weight, features, target, ridge):
    """Loss and its gradient in the weight."""
    n, d, c = len(features), *weight.shape
    w = [[mpmath.mpf(float(v)) for v in row] for row in weight]
    f = [[mpmath.mpf(float(v)) for v in row] for row in features]
    loss, grad = mpmath.mpf(0), [[mpmath.mpf(ridge) * w[i][j] for j in range(c)] for i in range(d)]
    for i in range(n):
        share = 1 / (1 + mpmath.exp(-mpmath.mpf(float(x[i]))))
        logits = [mpmath.fsum(f[i][k] * w[k][j] for k in range(d)) for j in range(c)]
        total = mpmath.fsum(mpmath.exp(v) for v in logits)
        loss += share * (mpmath.log(total) - logits[target[i]]) / n
        for j in range(c):
            residual = mpmath.exp(logits[j]) / total - (1 if j == target[i] else 0)
            for k in range(d):
                grad[k][j] += share * f[i][k] * residual / n
    loss += mpmath.mpf(ridge) / 2 * mpmath.fsum(v * v for row in w for v in row)
    return np.array(float(loss)), np.array([[float(v) for v in row] for row in grad])


def torch_loss(x, weight, features, target, ridge):
    each = torch.nn.functional.cross_entropy(features @ weight, torch.tensor(target), reduction="none")
    return (torch.sigmoid(x) * each).mean() + ridge / 2 * (weight**2).sum()


def cases():
    rng = np.random.default_rng(20240117)
    found = [
        GoldenCase(
            function="solvers.hyper_cleaning_loss",
            name="uniform probabilities",
            args=(np.zeros(2), np.zeros((1, 2)), np.ones((2, 1)), np.array([0, 1])),
            expected=np.array(np.log(2) / 2),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: log 2 at weight 1/2",
        ),
        GoldenCase(
            function="solvers.hyper_cleaning_gradient",
            name="uniform probabilities",
            args=(np.zeros(2), np.zeros((1, 2)), np.ones((2, 1)), np.array([0, 0])),
            expected=np.array([[-0.25, 0.25]]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: half of (-1/2, 1/2)",
        ),
    ]
    for name, scale, ridge in (("normal", 1.0, 0.1), ("large logits", 40.0, 0.0), ("weights off", -50.0, 0.01)):
        x, weight, features = rng.standard_normal(6), rng.standard_normal((4, 3)), rng.standard_normal((6, 4))
        target = rng.integers(0, 3, 6)
        if scale < 0:
            x = x + scale
        else:
            weight = scale * weight
        loss, grad = exact(x, weight, features, target, ridge)
        common = {"args": (x, weight, features, target), "options": {"ridge": ridge}}
        found += [
            GoldenCase(
                function="solvers.hyper_cleaning_loss",
                name=name,
                expected=loss,
                tolerance=Tolerance(1e-13, "relative"),
                source="mpmath, 50 digits",
                **common,
            ),
            GoldenCase(
                function="solvers.hyper_cleaning_gradient",
                name=name,
                expected=grad,
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source="mpmath, 50 digits",
                **common,
            ),
        ]
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, features)]
        first = torch.autograd.grad(1.3 * torch_loss(*tensors, target, ridge), tensors)
        found.append(
            GoldenCase(
                function="solvers.hyper_cleaning_loss",
                name=f"cotangents, {name}",
                cotangent=np.array(1.3),
                expected=tuple(t.numpy() for t in first),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
                **common,
            )
        )
        cotangent = rng.standard_normal((4, 3))
        (slope,) = torch.autograd.grad(torch_loss(*tensors, target, ridge), tensors[1], create_graph=True)
        second = torch.autograd.grad((slope * torch.tensor(cotangent)).sum(), tensors)
        found.append(
            GoldenCase(
                function="solvers.hyper_cleaning_gradient",
                name=f"cross term and Hessian products, {name}",
                cotangent=cotangent,
                expected=tuple(t.numpy() for t in second),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=f"{TORCH}, twice",
                **common,
            )
        )
    return found
