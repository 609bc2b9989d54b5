"""Truth for damped Newton steps and the soft maximum: hand calculations, mpmath, PyTorch's autograd."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]} autograd, float64"


def exact_step(grad, hessian, damping, metric=None):
    d = len(grad)
    metric = np.eye(d) if metric is None else metric
    matrix = mpmath.matrix(d, d)
    for i in range(d):
        for j in range(d):
            matrix[i, j] = (mpmath.mpf(float(hessian[i, j])) + mpmath.mpf(float(hessian[j, i]))) / 2 + mpmath.mpf(
                damping
            ) * mpmath.mpf(float(metric[i, j]))
    right = mpmath.matrix([-mpmath.mpf(float(v)) for v in grad])
    return np.array([float(v) for v in mpmath.lu_solve(matrix, right)])


def exact_soft_maximum(x, matrix, offset, smoothing):
    """Value, Hessian and Gauss-Newton matrix."""
    mu = mpmath.mpf(smoothing)
    rows = [[mpmath.mpf(float(v)) for v in row] for row in matrix]
    point = [mpmath.mpf(float(v)) for v in x]
    logits = [
        (mpmath.fsum(a * b for a, b in zip(row, point, strict=True)) - mpmath.mpf(float(o))) / mu
        for row, o in zip(rows, offset, strict=True)
    ]
    weights = [mpmath.exp(v) for v in logits]
    total = mpmath.fsum(weights)
    portion = [w / total for w in weights]
    d = len(point)
    grad = [mpmath.fsum(p * row[j] for p, row in zip(portion, rows, strict=True)) for j in range(d)]
    gauss = [
        [mpmath.fsum(p * row[i] * row[j] for p, row in zip(portion, rows, strict=True)) / mu for j in range(d)]
        for i in range(d)
    ]
    hessian = [[gauss[i][j] - grad[i] * grad[j] / mu for j in range(d)] for i in range(d)]
    return (
        np.array(float(mu * mpmath.log(total))),
        np.array([[float(v) for v in row] for row in hessian]),
        np.array([[float(v) for v in row] for row in gauss]),
    )


def cases():
    rng = np.random.default_rng(20250616)
    root, metric_root = rng.standard_normal((2, 5, 5))
    grad, hessian, metric = rng.standard_normal(5), root @ root.T, metric_root @ metric_root.T + np.eye(5)
    skewed = hessian + np.triu(rng.standard_normal((5, 5)), 1)
    found = [
        GoldenCase(
            function="solvers.regularized_newton_step",
            name="one dimension",
            args=(np.array([1.0]), np.array([[1.0]]), 1.0),
            expected=np.array([-0.5]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: -1 / (1 + 1)",
        ),
        GoldenCase(
            function="solvers.rank_one_step",
            name="axis",
            args=(np.array([1.0, 1.0]), 3.0, np.array([1.0, 0.0]), 1.0),
            expected=np.array([-0.25, -1.0]),
            source="by hand: diagonal (4, 1)",
        ),
    ]
    for name, args in (
        ("identity norm", (grad, hessian, 0.3)),
        ("own norm", (grad, hessian, 0.3, metric)),
        ("only the symmetric part counts", (grad, skewed, 5.0)),
        ("zero Hessian", (grad, np.zeros((5, 5)), 0.7)),
    ):
        found.append(
            GoldenCase(
                function="solvers.regularized_newton_step",
                name=name,
                args=args,
                expected=exact_step(*args),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    vector = rng.standard_normal(5)
    for coefficient, damping in ((2.0, 0.3), (0.0, 0.5), (1e6, 1e-3)):
        found.append(
            GoldenCase(
                function="solvers.rank_one_step",
                name=f"coefficient {coefficient:g}, damping {damping:g}",
                args=(grad, coefficient, vector, damping),
                expected=exact_rank_one(grad, coefficient, vector, damping),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    cotangent = rng.standard_normal(5)
    for name, extra in (("cotangents", ()), ("cotangents, own norm", (metric,))):
        tensors = [torch.tensor(a, requires_grad=True) for a in (grad, skewed, np.array(5.0), *extra)]
        weight = tensors[3] if extra else torch.eye(5, dtype=torch.float64)
        matrix = (tensors[1] + tensors[1].T) / 2 + tensors[2] * (weight + weight.T) / 2
        (-torch.linalg.solve(matrix, tensors[0])).backward(torch.tensor(cotangent))
        found.append(
            GoldenCase(
                function="solvers.regularized_newton_step",
                name=name,
                args=(grad, skewed, 5.0, *extra),
                cotangent=cotangent,
                expected=tuple(t.grad.numpy() for t in tensors),
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                source=TORCH,
            )
        )
    tensors = [torch.tensor(a, requires_grad=True) for a in (grad, np.array(2.0), vector, np.array(0.3))]
    matrix = tensors[1] * torch.outer(tensors[2], tensors[2]) + tensors[3] * torch.eye(5, dtype=torch.float64)
    (-torch.linalg.solve(matrix, tensors[0])).backward(torch.tensor(cotangent))
    found.append(
        GoldenCase(
            function="solvers.rank_one_step",
            name="cotangents",
            args=(grad, 2.0, vector, 0.3),
            cotangent=cotangent,
            expected=tuple(t.grad.numpy() for t in tensors),
            tolerance=Tolerance(1e-12, "relative_of_largest"),
            source=TORCH,
        )
    )
    for name, smoothing, scale in (("smoothing 1", 1.0, 1.0), ("smoothing 0.05", 0.05, 1.0), ("far apart", 1.0, 400.0)):
        x, rows, offset = rng.standard_normal(3), scale * rng.standard_normal((6, 3)), rng.standard_normal(6)
        value, second, gauss = exact_soft_maximum(x, rows, offset, smoothing)
        common = {"args": (x, rows, offset), "source": "mpmath, 50 digits"}
        found += [
            GoldenCase(
                function="solvers.soft_maximum",
                name=name,
                options={"smoothing": smoothing},
                expected=value,
                tolerance=Tolerance(1e-13, "relative"),
                **common,
            ),
            GoldenCase(
                function="solvers.soft_maximum_hessian",
                name=f"Gauss-Newton, {name}",
                options={"smoothing": smoothing, "gauss_newton": True},
                expected=gauss,
                tolerance=Tolerance(1e-12, "relative_of_largest"),
                **common,
            ),
        ]
        if scale == 1.0:
            found.append(
                GoldenCase(
                    function="solvers.soft_maximum_hessian",
                    name=name,
                    options={"smoothing": smoothing},
                    expected=second,
                    tolerance=Tolerance(1e-12, "relative_of_largest"),
                    **common,
                )
            )
    x, rows, offset = rng.standard_normal(3), rng.standard_normal((6, 3)), rng.standard_normal(6)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, rows, offset)]
    (1.7 * 0.3 * torch.logsumexp((tensors[1] @ tensors[0] - tensors[2]) / 0.3, dim=0)).backward()
    found.append(
        GoldenCase(
            function="solvers.soft_maximum",
            name="cotangents",
            args=(x, rows, offset),
            options={"smoothing": 0.3},
            cotangent=np.array(1.7),
            expected=tuple(t.grad.numpy() for t in tensors),
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source=TORCH,
        )
    )
    return found


def exact_rank_one(grad, coefficient, vector, damping):
    """The same equations with the outer product formed in many digits: in float64 it would be rounded."""
    d = len(grad)
    v = [mpmath.mpf(float(a)) for a in vector]
    matrix = mpmath.matrix(d, d)
    for i in range(d):
        for j in range(d):
            matrix[i, j] = mpmath.mpf(coefficient) * v[i] * v[j] + (mpmath.mpf(damping) if i == j else 0)
    return np.array([float(a) for a in mpmath.lu_solve(matrix, mpmath.matrix([-mpmath.mpf(float(g)) for g in grad]))])
