"""Truth for matrix completion: mpmath in 50 digits, SciPy's regressions, hand calculations."""

import mpmath
import numpy as np
import scipy.linalg

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
STEP = mpmath.mpf(10) ** -20


def exact(array):
    return mpmath.matrix([[mpmath.mpf(float(v)) for v in row] for row in array])


def basis(matrix):
    return mpmath.qr(exact(matrix), mode="skinny")[0]


def largest_sine(first, second):
    u, v = basis(first), basis(second)
    return np.array(float(mpmath.svd_r(v - u * (u.T * v), compute_uv=False)[0]))


def unevenness(factor):
    q = basis(factor)
    rows = [mpmath.fsum(q[i, j] ** 2 for j in range(q.cols)) for i in range(q.rows)]
    return np.array(float(mpmath.sqrt(max(rows) * q.rows / q.cols)))


def leading_vectors(matrix, rank):
    left = np.array(mpmath.svd_r(exact(matrix))[0].tolist(), dtype=float)[:, :rank]
    return left * np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])


def regressions(factor, mask, matrix):
    found = np.zeros((matrix.shape[1], factor.shape[1]))
    for j, seen in enumerate(mask.T):
        if seen.any():
            found[j] = scipy.linalg.lstsq(factor[seen], matrix[seen, j], lapack_driver="gelsd")[0]
    return found


def least_squares_in_digits(matrix, right, cotangent):
    """Return the solution of the normal equations, and the slope of its product with the cotangent in every entry."""
    a, b = exact(matrix), exact(right[:, None])

    def solution():
        return mpmath.lu_solve(a.T * a, a.T * b)

    def value():
        return mpmath.fsum(mpmath.mpf(float(g)) * v for g, v in zip(cotangent, solution(), strict=True))

    def slope(holder, i, j):
        holder[i, j] += STEP
        up = value()
        holder[i, j] -= 2 * STEP
        down = value()
        holder[i, j] += STEP
        return float((up - down) / (2 * STEP))

    n, k = matrix.shape
    x = np.array([float(v) for v in solution()])
    dmatrix = np.array([[slope(a, i, j) for j in range(k)] for i in range(n)])
    return x, (dmatrix, np.array([slope(b, i, 0) for i in range(n)]))


def cases():
    rng = np.random.default_rng(20230222)
    found = []

    def add(function, name, args, expected, limit, source, **more):
        found.append(
            GoldenCase(
                function=f"solvers.{function}",
                name=name,
                args=args,
                expected=expected,
                tolerance=Tolerance(limit, "relative_of_largest"),
                source=source,
                **more,
            )
        )

    digits = "mpmath, 50 digits"
    for m, k in ((6, 1), (9, 3), (4, 4)):
        first, second = rng.standard_normal((2, m, k))
        if m > k:
            add(
                "subspace_distance",
                f"random spans {m} x {k}",
                (first, second),
                largest_sine(first, second),
                1e-14,
                digits,
            )
            near = first + 1e-9 * second
            add("subspace_distance", f"close spans {m} x {k}", (first, near), largest_sine(first, near), 1e-6, digits)
        add("incoherence", f"{m} x {k}", (first,), unevenness(first), 1e-14, digits)

    mask, matrix = rng.random((7, 5)) < 0.7, rng.standard_normal((7, 5))
    places = np.nonzero(mask)
    add(
        "spectral_init",
        "7 x 5, rank 2",
        (*places, matrix[mask], (7, 5)),
        leading_vectors(np.where(mask, matrix, 0), 2),
        1e-13,
        digits,
        options={"rank": 2},
    )
    add(
        "spectral_init",
        "a spike that is clipped",
        (np.arange(5), np.zeros(5, int), np.array([1.0, 1.0, 1.0, 1.0, 10.0]), (5, 1)),
        np.array([[0.5], [0.5], [0.5], [0.5], [0.0]]),
        1e-15,
        "by hand: 10 / sqrt(104) is above 2 / sqrt(5), the others are not",
        options={"rank": 1, "clip": 1.0},
    )

    for m, n, k, p in ((9, 6, 2, 0.7), (5, 8, 3, 0.4)):
        factor, mask, matrix = rng.standard_normal((m, k)), rng.random((m, n)) < p, rng.standard_normal((m, n))
        mask[:, 0] = False
        args = (factor, *np.nonzero(mask), matrix[mask], n)
        expected = regressions(factor, mask, matrix)
        add(
            "masked_regressions",
            f"{m} x {n}, rank {k}",
            args,
            expected,
            1e-11,
            "scipy.linalg.lstsq, a column at a time",
        )
    add(
        "masked_regressions",
        "two by two with a hidden entry",
        (np.array([[1.0], [2.0]]) / np.sqrt(5), np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([1.0, 2.0, 2.0]), 2),
        np.array([[np.sqrt(5)], [2 * np.sqrt(5)]]),
        1e-15,
        "by hand: sqrt(5) and 2 sqrt(5)",
    )

    for n, k in ((7, 3), (4, 4), (30, 1)):
        matrix, right, cotangent = rng.standard_normal((n, k)), rng.standard_normal(n), rng.standard_normal(k)
        x, gradients = least_squares_in_digits(matrix, right, cotangent)
        args = (matrix, right)
        add("least_squares", f"{n} x {k}", args, x, 1e-12, digits)
        source = f"{digits}: central differences of step 1e-20"
        add("least_squares", f"{n} x {k}", args, gradients, 1e-11, source, cotangent=cotangent)
    return found
