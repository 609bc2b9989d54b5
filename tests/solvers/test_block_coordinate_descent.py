import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, LogisticRegression

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    Diverged,
    active_set_bound,
    block_coordinate_descent,
    block_scores,
    forest_solve,
    greedy_block,
    greedy_forest,
    greedy_quadratic_block,
    grid_combs,
    label_propagation_problem,
    least_squares_problem,
    logistic_problem,
    partition_blocks,
    prox_bcd_l1,
    quadratic_problem,
    softmax_problem,
)

RNG = np.random.default_rng(17)
MATRIX, TARGET = RNG.standard_normal((12, 6)), RNG.standard_normal(12)
LABELS, CLASSES = np.where(RNG.random(12) < 0.5, 1, -1), RNG.integers(3, size=12)


def positive(n, seed, density=1.0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n)) * (rng.random((n, n)) < density)
    return root @ root.T + 0.1 * np.eye(n)


PROBLEMS = {
    "least squares": least_squares_problem(MATRIX, TARGET, penalty=0.1),
    "logistic": logistic_problem(MATRIX, LABELS, penalty=0.2),
    "softmax": softmax_problem(MATRIX, CLASSES, 3, penalty=0.3),
    "quadratic": quadratic_problem(positive(6, 0), RNG.standard_normal(6)),
}


def value_vjp(x, *, problem):
    """A problem's hand-written gradient, in the form that the gradient check wants."""
    image = PROBLEMS[problem].image(x)
    return np.asarray(PROBLEMS[problem].value(image, x)), lambda g: (g * PROBLEMS[problem].gradient(image, x),)


def gradient_vjp(x, *, problem):
    """Its Hessian: symmetric, so the pullback multiplies by it."""
    image, everything = PROBLEMS[problem].image(x), np.arange(len(x))
    hessian = PROBLEMS[problem].hessian(image, x, everything)
    return PROBLEMS[problem].gradient(image, x), lambda g: (hessian @ g,)


GRADIENT_CASES = [
    GradientCase(f_vjp, (RNG.standard_normal(PROBLEMS[name].size),), {"problem": name}, name=f"{name} {f_vjp.__name__}")
    for name in PROBLEMS
    for f_vjp in (value_vjp, gradient_vjp)
]


def run(name="least squares", **options):
    problem = PROBLEMS[name]
    options = {"blocks": partition_blocks(problem.size, 2), "max_iter": 3000, "tol": 1e-9} | options
    return block_coordinate_descent(problem, np.zeros(problem.size), **options)


@pytest.mark.parametrize("name", PROBLEMS)
def test_hessian_never_exceeds_its_bound(name):
    problem, rng = PROBLEMS[name], np.random.default_rng(0)
    for _ in range(50):
        x = rng.choice([0.1, 1, 10]) * rng.standard_normal(problem.size)
        block = np.sort(rng.permutation(problem.size)[:4])
        slack = problem.hessian_bound(block) - problem.hessian(problem.image(x), x, block)
        assert np.linalg.eigvalsh(slack).min() >= -1e-9


@pytest.mark.parametrize("name", PROBLEMS)
def test_moved_image_is_the_image_of_the_moved_point(name):
    problem, rng = PROBLEMS[name], np.random.default_rng(1)
    x, block, step = rng.standard_normal(problem.size), np.array([4, 1, 0]), rng.standard_normal(3)
    moved = x.copy()
    moved[block] += step
    np.testing.assert_allclose(problem.moved(problem.image(x), block, step), problem.image(moved), atol=1e-13)


def test_two_coordinates_by_hand():
    problem = quadratic_problem(np.array([[2.0, 1.0], [1.0, 8.0]]), np.zeros(2))
    gradient, blocks = problem.gradient(problem.image(np.ones(2)), np.ones(2)), partition_blocks(2, 1)
    bounds = [problem.hessian_bound(block) for block in blocks]
    np.testing.assert_array_equal(block_scores(gradient, blocks, rule="gs"), [3, 9])
    np.testing.assert_allclose(block_scores(gradient, blocks, bounds=bounds) ** 2 / 2, [2.25, 5.0625], rtol=1e-14)
    result = block_coordinate_descent(problem, np.ones(2), blocks=blocks, max_iter=1)
    np.testing.assert_allclose(result.x, [1, -1 / 8], rtol=1e-11)
    assert result.history["block"] == [1]


@pytest.mark.parametrize("rule", ["cyclic", "random", "lipschitz", "gs", "gsl", "gsd", "gsq", "mi"])
def test_every_rule_reaches_the_minimum(rule):
    result = run(rule=rule, rng=np.random.default_rng(0))
    assert result.converged
    expected = np.linalg.solve(MATRIX.T @ MATRIX + 0.1 * np.eye(6), MATRIX.T @ TARGET)
    np.testing.assert_allclose(result.x, expected, atol=1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("update", ["gradient", "backtracking", "matrix", "newton"])
def test_every_update_decreases_every_problem_to_its_minimum(name, update):
    result = run(name, update=update, max_iter=8000, tol=1e-7)
    assert result.converged
    assert (np.diff(result.history["objective"]) <= 1e-12).all()


def test_logistic_minimum_is_that_of_a_peer():
    peer = LogisticRegression(C=1 / 0.2, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(MATRIX, LABELS)
    np.testing.assert_allclose(run("logistic", update="newton", tol=1e-10).x, peer.coef_[0], atol=1e-6)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), size=st.integers(1, 4), rule=st.sampled_from(["gs", "gsl", "gsd", "gsq"]))
def test_guaranteed_decrease_is_reached_by_the_matrix_update(seed, size, rule):
    problem = quadratic_problem(positive(6, seed), np.random.default_rng(seed).standard_normal(6))
    blocks = partition_blocks(6, size)
    x = np.random.default_rng(seed + 1).standard_normal(6)
    gradient = problem.gradient(problem.image(x), x)
    bounds = [problem.hessian_bound(block) for block in blocks]
    scores = block_scores(gradient, blocks, rule=rule, bounds=bounds)
    result = block_coordinate_descent(problem, x, blocks=blocks, rule=rule, max_iter=1, tol=0)
    assert result.history["block"] == [np.argmax(scores)]
    if rule != "gs":
        before = problem.value(problem.image(x), x)
        assert before - result.history["objective"][0] >= scores.max() ** 2 / 2 * (1 - 1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 999))
def test_scores_are_ordered_by_the_tightness_of_their_bounds(seed):
    rng = np.random.default_rng(seed)
    bound, g, block = positive(4, seed), rng.standard_normal(4), [np.arange(4)]
    scores = [block_scores(g, block, rule=rule, bounds=[bound])[0] for rule in ("gsl", "gsd", "gsq")]
    assert scores[2] >= max(scores[:2]) * (1 - 1e-9)


def test_sums_of_sizes_can_replace_sums_of_squares():
    g, blocks, bounds = np.array([3.0, -4.0]), [np.array([0, 1])], [np.diag([4.0, 16.0])]
    scores = [block_scores(g, blocks, rule=rule, bounds=bounds, score_norm=1)[0] for rule in ("gs", "gsl", "gsd")]
    np.testing.assert_allclose(scores, [7, 7 / 4, 3 / 2 + 1], rtol=1e-15)


def test_block_without_curvature_is_left_alone():
    matrix = MATRIX.copy()
    matrix[:, 2:4] = 0
    problem = least_squares_problem(matrix, TARGET)
    for update in ("gradient", "matrix", "newton"):
        result = block_coordinate_descent(
            problem, np.ones(6), blocks=partition_blocks(6, 2), rule="cyclic", update=update, max_iter=3000, tol=1e-8
        )
        np.testing.assert_array_equal(result.x[2:4], 1)
        assert result.converged


def test_singular_block_is_solved_with_a_ridge():
    matrix = np.column_stack([MATRIX[:, 0], MATRIX[:, 0], MATRIX[:, 1]])
    result = block_coordinate_descent(
        least_squares_problem(matrix, TARGET), np.zeros(3), blocks=[np.array([0, 1]), np.array([2])], tol=1e-8
    )
    assert result.converged


@pytest.mark.parametrize("scheme", ["order", "sort", "average", "random"])
@given(n=st.integers(1, 30), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_partition_holds_every_coordinate_once(scheme, n, size, seed):
    size, rng = min(size, n), np.random.default_rng(seed)
    blocks = partition_blocks(n, size, scheme=scheme, lipschitz=rng.random(n), rng=rng)
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.arange(n))
    assert all(len(block) == size for block in blocks[:-1])


def test_sorted_partition_puts_like_with_like():
    blocks = partition_blocks(4, 2, scheme="sort", lipschitz=np.array([4.0, 1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(blocks, [[1, 3], [2, 0]])


def test_greedy_block_breaks_ties_by_index_and_skips_flat_coordinates():
    np.testing.assert_array_equal(greedy_block(np.ones(4), 2), [0, 1])
    np.testing.assert_array_equal(greedy_block(np.ones(3), 2, lipschitz=np.array([0.0, 1.0, 4.0])), [1, 2])


def test_thresholding_finds_the_best_pair_of_a_well_scaled_model():
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        bound, g = np.eye(6) + 0.1 * positive(6, seed) / 6, rng.standard_normal(6)
        best = max(
            itertools.combinations(range(6), 2),
            key=lambda pair: g[list(pair)] @ np.linalg.solve(bound[np.ix_(pair, pair)], g[list(pair)]),
        )
        found += tuple(greedy_quadratic_block(g, bound, 2)) == best
    assert found >= 18


@settings(max_examples=50)
@given(n=st.integers(1, 12), seed=st.integers(0, 9999), density=st.floats(0, 0.6))
def test_greedy_forest_has_no_cycle_and_cannot_grow(n, seed, density):
    rng = np.random.default_rng(seed)
    graph = np.triu(rng.random((n, n)) < density, 1)
    matrix = (graph + graph.T) * -1.0 + n * np.eye(n)
    chosen = greedy_forest(matrix, rng.random(n))

    def cyclic(nodes):
        part = scipy.sparse.csr_array((graph + graph.T)[np.ix_(nodes, nodes)])
        trees = scipy.sparse.csgraph.connected_components(part, directed=False)[0]
        return part.nnz // 2 > len(nodes) - trees

    assert not cyclic(chosen)
    assert all(cyclic(np.append(chosen, node)) for node in set(range(n)) - set(chosen.tolist()))


@settings(max_examples=50)
@given(n=st.integers(1, 12), seed=st.integers(0, 9999), sparse=st.booleans())
def test_forest_solve_is_the_solution_of_the_block(n, seed, sparse):
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((n, n)) < 0.3, 1) * rng.random((n, n))
    weights = weights + weights.T
    matrix = np.diag(weights.sum(axis=1) + 0.1) - weights
    block = greedy_forest(matrix, rng.random(n))
    linear, x = rng.standard_normal((2, n))
    rest = np.setdiff1d(np.arange(n), block)
    expected = np.linalg.solve(matrix[np.ix_(block, block)], linear[block] - matrix[np.ix_(block, rest)] @ x[rest])
    given_matrix = scipy.sparse.csc_array(matrix) if sparse else matrix
    np.testing.assert_allclose(forest_solve(given_matrix, linear, block, x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 4), (4, 5), (7, 6)])
def test_combs_are_two_trees(height, width):
    node = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate(
        [np.stack([node[:, 1:], node[:, :-1]], -1).reshape(-1, 2), np.stack([node[1:], node[:-1]], -1).reshape(-1, 2)]
    )
    graph = np.zeros((height * width,) * 2)
    graph[pairs[:, 0], pairs[:, 1]] = graph[pairs[:, 1], pairs[:, 0]] = 1
    combs = grid_combs(height, width)
    np.testing.assert_array_equal(np.sort(np.concatenate(combs)), np.arange(height * width))
    for comb in combs:
        part = graph[np.ix_(comb, comb)]
        assert scipy.sparse.csgraph.connected_components(part)[0] == 1
        assert part.sum() / 2 == len(comb) - 1


def test_forest_updates_minimise_label_propagation():
    rng = np.random.default_rng(0)
    weights = np.triu(rng.random((15, 15)) < 0.3, 1) * rng.random((15, 15))
    weights = scipy.sparse.csr_array(weights + weights.T + np.diag(np.ones(14), 1) + np.diag(np.ones(14), -1))
    labels = np.full(15, np.nan)
    labels[[0, 7]] = -1.0, 1.0
    problem, nodes = label_propagation_problem(weights, labels)
    result = block_coordinate_descent(
        problem,
        np.zeros(13),
        rule=lambda g: greedy_forest(problem.matrix, np.abs(g)),
        update="forest",
        tol=1e-10,
    )
    assert result.converged
    assert (result.history["block"] == -1).all()
    whole = labels.copy()
    whole[nodes] = result.x
    # Every unlabelled node is the weighted mean of its neighbours.
    mean = weights @ whole / weights.sum(axis=1)
    np.testing.assert_allclose(whole[nodes], mean[nodes], atol=1e-9)
    assert (np.abs(whole) <= 1 + 1e-12).all()


@pytest.mark.parametrize("rule", ["gsq", "gsr", "gss", "cyclic"])
@pytest.mark.parametrize("size", [1, 3])
def test_lasso_is_that_of_a_peer(rule, size):
    rng = np.random.default_rng(4)
    matrix, target = rng.standard_normal((30, 9)), rng.standard_normal(30)
    peer = Lasso(alpha=5.0 / 30, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(matrix, target).coef_
    blocks = partition_blocks(9, size)
    result = prox_bcd_l1(matrix, target, 5.0, blocks=blocks, rule=rule, max_iter=20000)
    assert result.converged
    np.testing.assert_allclose(result.x, peer, atol=1e-9)
    np.testing.assert_array_equal(result.x == 0, peer == 0)
    assert (np.diff(result.history["objective"]) <= 1e-12).all()


@pytest.mark.parametrize("two_metric", [False, True])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_non_negative_least_squares_is_that_of_a_peer(two_metric, seed):
    rng = np.random.default_rng(seed)
    matrix, target = rng.standard_normal((15, 6)), rng.standard_normal(15)
    peer = scipy.optimize.nnls(matrix, target)[0]
    result = prox_bcd_l1(
        matrix,
        target,
        0.0,
        blocks=partition_blocks(6, 3),
        rule="gss",
        non_negative=True,
        two_metric=two_metric,
        max_iter=30000,
        tol=1e-9,
    )
    assert result.converged
    assert (result.x >= 0).all()
    np.testing.assert_allclose(result.x, peer, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_identification_happens_before_its_bound(seed):
    rng = np.random.default_rng(seed)
    matrix, target, penalty = rng.standard_normal((40, 6)), rng.standard_normal(40), 6.0
    everything = [np.arange(6)]
    solution = prox_bcd_l1(matrix, target, penalty, blocks=everything, max_iter=5000, tol=1e-12).x
    hessian = np.linalg.eigvalsh(matrix.T @ matrix)
    limit = active_set_bound(
        matrix.T @ (matrix @ solution - target),
        solution,
        penalty,
        lipschitz=float(hessian[-1]),
        distance=float(np.linalg.norm(solution - 1)),
        # A proximal gradient step contracts distances by at most this.
        rate=float(1 - hessian[0] / hessian[-1]),
    )
    for extra in (1, 2, 5):
        x = prox_bcd_l1(matrix, target, penalty, blocks=everything, x0=np.ones(6), max_iter=limit + extra, tol=0).x
        assert (x[solution == 0] == 0).all()


def test_bound_is_zero_without_zeros_and_undefined_for_degenerate_ones():
    options = {"lipschitz": 1.0, "distance": 1.0, "rate": 0.5}
    assert active_set_bound(np.array([-1.0]), np.array([2.0]), 1.0, **options) == 0
    with pytest.raises(ValueError, match="gradient: expected slopes below the penalty at all zeros"):
        active_set_bound(np.array([-1.0]), np.array([0.0]), 1.0, **options)


def test_callback_stops_and_divergence_is_named():
    assert run(callback=lambda progress: progress.n_iter == 3).n_iter == 3

    class Wrong(type(PROBLEMS["quadratic"])):
        def hessian_bound(self, block):
            return super().hessian_bound(block) / 10

    problem = Wrong(positive(4, 0), np.ones(4))
    with pytest.raises(Diverged, match="use update='backtracking'"):
        block_coordinate_descent(problem, np.ones(4), blocks=partition_blocks(4, 2), rule="cyclic")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    matrix, target = MATRIX.astype(dtype), TARGET.astype(dtype)
    problem = least_squares_problem(matrix, target)
    for update in ("gradient", "matrix", "newton", "backtracking"):
        result = block_coordinate_descent(
            problem, np.zeros(6, dtype), blocks=partition_blocks(6, 2), update=update, max_iter=5
        )
        assert result.x.dtype == dtype
    assert prox_bcd_l1(matrix, target, 1.0, blocks=partition_blocks(6, 2), max_iter=5).x.dtype == dtype
    assert forest_solve(np.eye(3, dtype=dtype), np.ones(3, dtype), np.arange(2), np.ones(3, dtype)).dtype == dtype
    assert block_scores(target, [np.arange(3)], rule="gs").dtype == dtype


def test_arguments_are_not_written_to():
    x, blocks = np.zeros(6), partition_blocks(6, 2)
    for array in (x, *blocks):
        array.setflags(write=False)
    block_coordinate_descent(PROBLEMS["least squares"], x, blocks=blocks, max_iter=5)
    prox_bcd_l1(MATRIX, TARGET, 1.0, blocks=blocks, x0=x, max_iter=5)


Q, C = np.eye(3), np.zeros(3)
RING = np.array([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(blocks=[np.arange(5)]), ValueError, "blocks: expected every coordinate in exactly one block, got coordinate 5 in 0"),
        (lambda: run(blocks=[np.arange(6), np.array([2])]), ValueError, "blocks: expected every coordinate in exactly one block, got coordinate 2 in 2"),
        (lambda: run(blocks=None), ValueError, "blocks: expected a partition for a named rule, got None"),
        (lambda: run(rule="best"), ValueError, "rule: expected one of 'cyclic', 'random'"),
        (lambda: run(rule="random"), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: run(update="exact"), ValueError, "update: expected one of 'gradient'"),
        (lambda: run(update="forest"), ValueError, "update: expected a quadratic_problem with 'forest', got _LinearModel"),
        (lambda: run(rule=lambda g: np.array([6])), ValueError, "rule: expected values of at most 5, got 6"),
        (lambda: run(max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: partition_blocks(3, 4), ValueError, "size: expected an integer >= 1 and <= 3, got 4"),
        (lambda: partition_blocks(3, 1, scheme="sort"), ValueError, r"lipschitz: expected an array \(3,\) for scheme 'sort', got None"),
        (lambda: partition_blocks(3, 1, scheme="random"), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: block_scores(C, [np.arange(3)], rule="gsq"), ValueError, "bounds: expected 1 matrices, got none"),
        (lambda: block_scores(C, [np.arange(3)], rule="mi"), ValueError, "rule: expected one of 'gs', 'gsl', 'gsd', 'gsq', got 'mi'"),
        (lambda: forest_solve(RING, C, np.arange(3), C), ValueError, "block: expected couplings without a cycle, got 3 couplings of 3 coordinates"),
        (lambda: forest_solve(-Q, C, np.arange(3), C), ValueError, "matrix: expected a positive definite block, got pivot -1.0 at coordinate 2"),
        (lambda: greedy_forest(np.ones((2, 3)), C), ValueError, r"matrix: expected a square matrix, got shape \(2, 3\)"),
        (lambda: greedy_forest(Q, np.zeros(2)), ValueError, r"scores: expected shape \(3,\), got \(2,\)"),
        (lambda: grid_combs(1, 3), ValueError, "height: expected an integer >= 2, got 1"),
        (lambda: logistic_problem(MATRIX, np.zeros(12, int)), ValueError, "target: expected labels -1 and 1, got 0"),
        (lambda: softmax_problem(MATRIX, CLASSES, 2), ValueError, "target: expected values of at most 1, got 2"),
        (lambda: least_squares_problem(MATRIX, TARGET[:3]), ValueError, r"target: expected shape \(12,\), got \(3,\)"),
        (lambda: quadratic_problem(Q[:2], C), ValueError, r"matrix: expected shape \(3, 3\), got \(2, 3\)"),
        (lambda: label_propagation_problem(Q, C), ValueError, r"labels: expected at least one NaN \(an unlabelled node\), got none"),
        (lambda: prox_bcd_l1(MATRIX, TARGET, -1.0, blocks=[np.arange(6)]), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: prox_bcd_l1(MATRIX, TARGET, 1.0, blocks=[np.arange(6)], two_metric=True), ValueError, "two_metric: expected non_negative=True with it, got False"),
        (lambda: prox_bcd_l1(MATRIX, TARGET, 1.0, blocks=[np.arange(6)], non_negative=True, x0=-np.ones(6)), ValueError, "x0: expected values of at least 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_block_of_columns_of_zeros_stays_and_a_callback_ends_the_descent():
    matrix, target = np.eye(3) * [1.0, 0.0, 2.0], np.array([3.0, 5.0, 1.0])
    options = {"blocks": [np.array([i]) for i in range(3)], "rule": "cyclic"}
    x0 = np.array([0.0, 7.0, 0.0])
    whole = prox_bcd_l1(matrix, target, 0.5, x0=x0, max_iter=6, **options)
    np.testing.assert_allclose(whole.x, [2.5, 7.0, 0.375])
    cut = prox_bcd_l1(matrix, target, 0.5, x0=x0, callback=lambda progress: True, **options)
    assert (cut.n_iter, cut.converged) == (1, False)
