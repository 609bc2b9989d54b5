"""Truth for the ready uses of implicit differentiation: solutions in 50 digits, and their differences.

The solutions come from linear solves in mpmath (for the lasso on the support that scikit-learn finds, which
is then checked); their derivatives from central differences with a step of 1e-20, of which 40 digits are
right. No formula for a gradient is involved.
"""

import mpmath
import numpy as np
from sklearn.linear_model import Lasso

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 60
STEP = mpmath.mpf(10) ** -20


def solve_on(columns, x, y, penalty, quadratic, signs):
    """Minimise 1/2 |x w - y|^2 + the penalty, over the given columns; all numbers are mpf."""
    k, rows = len(columns), range(len(y))
    matrix, right = mpmath.zeros(k, k), mpmath.zeros(k, 1)
    for a, i in enumerate(columns):
        right[a] = mpmath.fsum(x[r][i] * y[r] for r in rows) - (0 if quadratic else penalty * int(signs[i]))
        for b, j in enumerate(columns):
            matrix[a, b] = mpmath.fsum(x[r][i] * x[r][j] for r in rows)
        if quadratic:
            matrix[a, a] += penalty
    solution = mpmath.lu_solve(matrix, right) if k else []
    w = [mpmath.mpf(0)] * len(x[0])
    for a, i in enumerate(columns):
        w[i] = solution[a]
    return w


def truth(features, target, penalty, quadratic, cotangent):
    x = [[mpmath.mpf(float(v)) for v in row] for row in features]
    y, p = [mpmath.mpf(float(v)) for v in target], mpmath.mpf(float(penalty))
    signs = np.ones(features.shape[1])
    if not quadratic:
        # scikit-learn divides the squares by the number of rows.
        model = Lasso(alpha=float(penalty) / len(target), fit_intercept=False, tol=1e-12, max_iter=100_000)
        signs = np.sign(model.fit(features.astype(float), target.astype(float)).coef_)
    columns = [int(i) for i in np.flatnonzero(signs)]

    def solution():
        return solve_on(columns, x, y, p, quadratic, signs)

    w = solution()
    if not quadratic:
        assert all(mpmath.sign(w[i]) == signs[i] for i in columns)
        for j in range(features.shape[1]):
            slope = mpmath.fsum(x[r][j] * (y[r] - mpmath.fsum(x[r][i] * w[i] for i in columns)) for r in range(len(y)))
            assert abs(slope) <= p * (1 + mpmath.mpf(10) ** -40)
    g = [mpmath.mpf(float(v)) for v in cotangent]

    def slope_along(change):
        change(STEP)
        up = solution()
        change(-2 * STEP)
        down = solution()
        change(STEP)
        return float(mpmath.fsum(a * (b - c) for a, b, c in zip(g, up, down, strict=True)) / (2 * STEP))

    def move(holder, index):
        def change(step):
            holder[index] += step

        return change

    dx = np.array([[slope_along(move(row, j)) for j in range(len(row))] for row in x])
    dy = np.array([slope_along(move(y, r)) for r in range(len(y))])

    def change_penalty(step):
        nonlocal p
        p += step

    return np.array([float(v) for v in w]), (dx, dy, np.array(slope_along(change_penalty)))


def cases():
    rng = np.random.default_rng(20210531)
    found = [
        GoldenCase(
            function="solvers.ridge",
            name="hand calculation",
            args=(np.eye(2), np.array([2.0, 4.0]), 1.0),
            cotangent=np.array([1.0, 0.0]),
            # w = y / (1 + penalty) here; dX from (X^T X + 1) dw = dX^T (y - w) - dX w with y - w = w.
            expected=(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([0.5, 0.0]), np.array(-0.5)),
            tolerance=Tolerance(2, "ulp_of_largest"),
            source="by hand",
        ),
        GoldenCase(
            function="solvers.lasso",
            name="hand calculation",
            args=(np.eye(3), np.array([3.0, -0.5, -2.0]), 1.0),
            cotangent=np.array([1.0, 1.0, 1.0]),
            expected=(
                # u = (1, 0, 1), y - w = (1, -0.5, -1), w = (2, 0, -1): (y - w) u^T - u w^T.
                np.array([[-1.0, 0.0, 2.0], [-0.5, 0.0, -0.5], [-3.0, 0.0, 0.0]]),
                np.array([1.0, 0.0, 1.0]),
                np.array(0.0),
            ),
            tolerance=Tolerance(2, "ulp_of_largest"),
            source="by hand",
        ),
    ]
    for dtype, limit in ((np.float64, 1e-12), (np.float32, 1e-6)):
        for rows, size, penalty in ((7, 4, 0.5), (4, 6, 1.25)):
            features, target = rng.standard_normal((rows, size)), rng.standard_normal(rows)
            features, target = features.astype(dtype), target.astype(dtype)
            cotangent = rng.standard_normal(size).astype(dtype)
            for name, quadratic in (("ridge", True), ("lasso", False)):
                value, cotangents = truth(features, target, penalty, quadratic, cotangent)
                common = {
                    "function": f"solvers.{name}",
                    "name": f"{rows} rows, {size} columns, {np.dtype(dtype).name}",
                    "args": (features, target, penalty),
                    "tolerance": Tolerance(limit, "relative_of_largest"),
                    "source": "mpmath, 60 digits; derivatives by differences",
                }
                found.append(GoldenCase(**common, expected=value))
                found.append(GoldenCase(**common, cotangent=cotangent, expected=cotangents))
    return found
