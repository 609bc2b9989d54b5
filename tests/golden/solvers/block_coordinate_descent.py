"""Truth for block coordinate descent: hand calculations, mpmath, SciPy's sparse direct solver, and trial."""

import mpmath
import numpy as np
import scipy
import scipy.sparse
import scipy.sparse.linalg
import sklearn
from sklearn.linear_model import Lasso

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
SCIPY = f"scipy {scipy.__version__}, sparse direct solver"


def exact_scores(gradient, blocks, bounds, rule):
    scores = []
    for block, bound in zip(blocks, bounds, strict=True):
        g, matrix = mpmath.matrix(gradient[block].tolist()), mpmath.matrix(bound.tolist())
        if rule == "gsl":
            score = mpmath.norm(g) / mpmath.sqrt(max(mpmath.eigsy(matrix, eigvals_only=True)))
        elif rule == "gsd":
            sums = [mpmath.fsum(abs(matrix[i, j]) for j in range(len(block))) for i in range(len(block))]
            score = mpmath.sqrt(mpmath.fsum(v * v / s for v, s in zip(g, sums, strict=True)))
        else:
            score = mpmath.sqrt((g.T * mpmath.lu_solve(matrix, g))[0])
        scores.append(float(score))
    return np.array(scores)


def is_forest(edges, nodes):
    """By pulling off leaves until none is left."""
    alive = set(nodes)
    while alive:
        leaves = [n for n in alive if sum((a in alive and b in alive and n in (a, b)) for a, b in edges) <= 1]
        if not leaves:
            return False
        alive -= set(leaves[:1])
    return True


def forest_by_trial(matrix, scores):
    edges = [(i, j) for i in range(len(matrix)) for j in range(i) if matrix[i, j] != 0]
    chosen = []
    for node in sorted(range(len(matrix)), key=lambda i: (-scores[i], i)):
        if is_forest(edges, [*chosen, node]):
            chosen.append(node)
    return np.array(sorted(chosen))


def laplacian(rng, n, density):
    weights = np.triu(rng.random((n, n)) < density, 1) * rng.random((n, n))
    weights = weights + weights.T
    return np.diag(weights.sum(axis=1) + 0.05) - weights


def cases():
    rng = np.random.default_rng(20171223)
    one, two = [np.array([0]), np.array([1])], [np.array([[2.0]]), np.array([[8.0]])]
    gradient = np.array([3.0, 9.0])
    found = [
        GoldenCase(
            function="solvers.block_scores",
            name=f"two coordinates by hand, {rule}",
            args=(gradient, one),
            options={"rule": rule, "bounds": two},
            expected=expected,
            tolerance=Tolerance(1e-11 if rule == "gsq" else 1e-15, "relative"),
            source="by hand: 3 / sqrt 2 and 9 / sqrt 8, without the scale for gs",
        )
        for rule, expected in (
            ("gs", gradient),
            ("gsl", np.array([3 / np.sqrt(2), 9 / np.sqrt(8)])),
            ("gsd", np.array([3 / np.sqrt(2), 9 / np.sqrt(8)])),
            ("gsq", np.array([3 / np.sqrt(2), 9 / np.sqrt(8)])),
        )
    ]
    root = rng.standard_normal((12, 9))
    gradient, whole = rng.standard_normal(9), root.T @ root
    blocks = [np.array([3, 0, 7]), np.array([1]), np.array([2, 4, 5, 6, 8])]
    bounds = [whole[np.ix_(b, b)] for b in blocks]
    for rule in ("gsl", "gsd", "gsq"):
        found.append(
            GoldenCase(
                function="solvers.block_scores",
                name=f"blocks of 3, 1 and 5, {rule}",
                args=(gradient, blocks),
                options={"rule": rule, "bounds": bounds},
                expected=exact_scores(gradient, blocks, bounds, rule),
                # The quadratic score has a ridge of 1e-12 of the mean curvature.
                tolerance=Tolerance(1e-10 if rule == "gsq" else 1e-13, "relative"),
                source="mpmath, 50 digits",
            )
        )
    for n, density in ((8, 0.3), (20, 0.15), (30, 0.1)):
        matrix, scores = laplacian(rng, n, density), rng.random(n)
        block = forest_by_trial(matrix, scores)
        found.append(
            GoldenCase(
                function="solvers.greedy_forest",
                name=f"{n} nodes",
                args=(matrix, scores),
                expected=block,
                source="trial: a node joins if leaves can be pulled off one by one until nothing is left",
            )
        )
        linear, x = rng.standard_normal((2, n))
        rest = np.setdiff1d(np.arange(n), block)
        solution = scipy.sparse.linalg.spsolve(
            scipy.sparse.csc_array(matrix[np.ix_(block, block)]), linear[block] - matrix[np.ix_(block, rest)] @ x[rest]
        )
        found.append(
            GoldenCase(
                function="solvers.forest_solve",
                name=f"{n} nodes",
                args=(matrix, linear, block, x),
                expected=solution,
                tolerance=Tolerance(1e-11, "relative_of_largest"),
                source=SCIPY,
            )
        )
    found.append(
        GoldenCase(
            function="solvers.forest_solve",
            name="a chain by hand",
            args=(np.array([[2.0, -1, 0], [-1, 2, -1], [0, -1, 2]]), np.array([1.0, 0, 0]), np.arange(3), np.zeros(3)),
            expected=np.array([0.75, 0.5, 0.25]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: linear from 1 to 0",
        )
    )
    lipschitz = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    for scheme, expected in (
        ("order", ([0, 1], [2, 3], [4, 5])),
        ("sort", ([1, 3], [4, 2], [0, 5])),
        ("average", ([1, 5], [3, 0], [4, 2])),
    ):
        found.append(
            GoldenCase(
                function="solvers.partition_blocks",
                name=scheme,
                args=(6, 2),
                options={"scheme": scheme, "lipschitz": lipschitz},
                expected=tuple(np.array(block) for block in expected),
                source="by hand",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.greedy_block",
            name="scaled, with a flat coordinate",
            args=(np.array([3.0, -9.0, 5.0, 7.0]), 2),
            options={"lipschitz": np.array([1.0, 100.0, 1.0, 0.0])},
            expected=np.array([0, 2]),
            source="by hand: 3, 0.9, 5, and 0 where there is no curvature",
        )
    )
    found.append(
        GoldenCase(
            function="solvers.grid_combs",
            name="3 x 4",
            args=(3, 4),
            expected=(np.array([0, 1, 2, 3, 4, 6]), np.array([5, 7, 8, 9, 10, 11])),
            source="by hand: the first row with the teeth (1, 0) and (1, 2), and the rest",
        )
    )
    gradient, x = np.array([-2.0, 1.25, 2.0, -0.5]), np.array([1.0, 0.0, -3.0, 0.0])
    bound = mpmath.log(2 * 7 * mpmath.mpf(3) / mpmath.mpf("0.75")) / mpmath.log(1 / mpmath.mpf("0.9"))
    found.append(
        GoldenCase(
            function="solvers.active_set_bound",
            name="two zeros",
            args=(gradient, x, 2.0),
            options={"lipschitz": 7.0, "distance": 3.0, "rate": 0.9},
            expected=np.array(int(mpmath.ceil(bound))),
            source="mpmath: log(2 L distance / 0.75) / log(1 / 0.9)",
        )
    )
    # With the identity as bound, the model falls by g_i^2 / 2 a coordinate: the largest gradients are best.
    args = (np.array([1.0, -3.0, 0.5, 2.0]), np.eye(4), 2)
    found.append(GoldenCase("solvers.greedy_quadratic_block", "identity", args, np.array([1, 3]), "by hand"))
    lasso = np.random.default_rng(3)
    matrix, target, penalty = lasso.standard_normal((12, 6)), lasso.standard_normal(12), 2.0
    model = Lasso(alpha=penalty / 12, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(matrix, target)
    assert 0 < np.count_nonzero(model.coef_) < 6
    blocks = [np.arange(3), np.arange(3, 6)]
    found.append(
        GoldenCase(
            "solvers.prox_bcd_l1", "two blocks", (matrix, target, penalty), {"x": model.coef_},
            f"scikit-learn {sklearn.__version__}: Lasso", Tolerance(1e-8, "relative_of_largest"),
            {"blocks": blocks, "tol": 1e-12, "max_iter": 10_000}, kind="fields",
        )
    )  # fmt: skip
    return found
