import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    complete_matrix,
    count_sketch,
    gaussian_sketch,
    incoherence,
    least_squares,
    least_squares_vjp,
    masked_regressions,
    sketched_least_squares,
    spectral_init,
    srht_sketch,
    subspace_distance,
)

RNG = np.random.default_rng(3)
SKETCHES = {"count": count_sketch, "gaussian": gaussian_sketch, "srht": srht_sketch}

GRADIENT_CASES = [
    GradientCase(least_squares_vjp, (RNG.standard_normal((6, 3)), RNG.standard_normal(6))),
    GradientCase(least_squares_vjp, (RNG.standard_normal((3, 3)), RNG.standard_normal(3)), name="square"),
    GradientCase(least_squares_vjp, (np.array([[2.0]]), np.array([3.0])), name="one unknown"),
    GradientCase(
        least_squares_vjp,
        (RNG.standard_normal((8, 2)) * np.array([1.0, 1e-3]), RNG.standard_normal(8)),
        step=1e-5,
        name="badly scaled columns",
    ),
]


def problem(seed, m=40, n=50, k=2, p=0.5):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((m, k)) @ rng.standard_normal((k, n))
    return matrix, rng.random((m, n)) < p


def complete(matrix, mask, **options):
    options = {"rng": np.random.default_rng(0), **options}
    return complete_matrix(*np.nonzero(mask), matrix[mask], matrix.shape, **options)


@pytest.mark.parametrize(
    "options", [{}, {"solver": "sketch"}, {"solver": "sketch", "sketch": "gaussian"}, {"clip": 3.0}]
)
def test_hidden_entries_of_a_low_rank_matrix_are_found(options):
    matrix, mask = problem(0)
    result = complete(matrix, mask, rank=2, **options)
    error = (result.left @ result.right.T - matrix)[~mask]
    assert np.linalg.norm(error) < 1e-6 * np.linalg.norm(matrix[~mask])
    assert result.converged
    assert len(result.history["residual"]) == result.n_iter
    np.testing.assert_allclose(result.right.T @ result.right, np.eye(2), atol=1e-12)


def test_one_iteration_completes_what_is_fully_known():
    matrix, mask = problem(1)
    result = complete(matrix, np.ones_like(mask), rank=2, n_iter=1)
    np.testing.assert_allclose(result.left @ result.right.T, matrix, atol=1e-12)


def test_one_iteration_is_the_truncated_svd_for_a_full_matrix():
    matrix = RNG.standard_normal((7, 5))
    result = complete(matrix, np.ones((7, 5), bool), rank=2, n_iter=1)
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(result.left @ result.right.T, u[:, :2] * s[:2] @ v[:2], atol=1e-12)


def test_two_by_two_by_hand():
    # Rank one and 1, 2, 2 known leave 4 for the hidden entry.
    left = np.array([[1.0], [2.0]]) / np.sqrt(5)
    places = np.array([0, 1, 0]), np.array([0, 0, 1])
    right = masked_regressions(left, *places, np.array([1.0, 2.0, 2.0]), 2)
    np.testing.assert_allclose(right, [[np.sqrt(5)], [2 * np.sqrt(5)]], rtol=1e-15)
    np.testing.assert_allclose((left @ right.T)[1, 1], 4, rtol=1e-15)


def test_sample_splitting_completes_from_separate_parts():
    matrix, mask = problem(2, m=100, n=100, k=1, p=0.9)
    result = complete(matrix, mask, rank=1, n_iter=6, sample_splitting=True, tol=0.0)
    assert np.linalg.norm(result.left @ result.right.T - matrix) < 1e-2 * np.linalg.norm(matrix)


def test_noise_ends_at_its_own_level():
    matrix, mask = problem(3)
    noisy = matrix + 1e-3 * np.random.default_rng(9).standard_normal(matrix.shape)
    result = complete(noisy, mask, rank=2, n_iter=200)
    assert result.converged
    assert np.linalg.norm(result.left @ result.right.T - matrix) < 1e-3 * np.sqrt(matrix.size)


def test_order_of_the_entries_does_not_matter():
    matrix, mask = problem(4)
    rows, columns = np.nonzero(mask)
    order = np.random.default_rng(1).permutation(len(rows))
    one = complete(matrix, mask, rank=2, n_iter=3)
    other = complete_matrix(
        rows[order], columns[order], matrix[mask][order], matrix.shape, rank=2, n_iter=3, rng=np.random.default_rng(0)
    )
    np.testing.assert_allclose(one.left @ one.right.T, other.left @ other.right.T, atol=1e-10)


@given(seed=st.integers(0, 99), k=st.integers(1, 4))
def test_half_step_solves_every_columns_regression(seed, k):
    rng = np.random.default_rng(seed)
    factor, mask, matrix = rng.standard_normal((8, k)), rng.random((8, 6)) < 0.5, rng.standard_normal((8, 6))
    found = masked_regressions(factor, *np.nonzero(mask), matrix[mask], 6)
    for j in range(6):
        expected = np.linalg.lstsq(factor[mask[:, j]], matrix[mask[:, j], j], rcond=None)[0]
        np.testing.assert_allclose(found[j], expected, rtol=1e-5, atol=1e-7)


def test_column_without_entries_gives_a_zero_row():
    found = masked_regressions(np.ones((2, 1)), np.array([0]), np.array([2]), np.array([5.0]), 4)
    np.testing.assert_array_equal(found, [[0], [0], [5], [0]])


def test_rank_above_the_true_one_is_harmless():
    matrix, mask = problem(5, k=1, p=0.7)
    result = complete(matrix, mask, rank=2, n_iter=60)
    assert np.linalg.norm((result.left @ result.right.T - matrix)[mask]) < 1e-6 * np.linalg.norm(matrix)


@pytest.mark.parametrize("sketch", list(SKETCHES))
@pytest.mark.parametrize("accuracy", [1e-2, 1e-8])
def test_sketched_solution_is_accurate_whatever_the_condition(sketch, accuracy):
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((400, 4)) @ np.diag([1.0, 1e-2, 1e-4, 1e3]) @ rng.standard_normal((4, 4))
    right = rng.standard_normal(400)
    result = sketched_least_squares(matrix, right, accuracy=accuracy, sketch=sketch, rng=rng)
    exact = np.linalg.lstsq(matrix, right, rcond=None)[0]
    assert result.converged
    assert np.linalg.norm(matrix @ (result.x - exact)) <= 3 * accuracy * np.linalg.norm(right)
    np.testing.assert_allclose(result.residual, np.linalg.norm(matrix @ result.x - right), rtol=1e-6)


def test_small_systems_are_solved_directly():
    matrix, right = RNG.standard_normal((9, 3)), RNG.standard_normal(9)
    result = sketched_least_squares(matrix, right, rng=np.random.default_rng(0))
    assert result.n_iter == 0
    np.testing.assert_allclose(result.x, np.linalg.lstsq(matrix, right, rcond=None)[0], rtol=1e-10)


@pytest.mark.parametrize("matrix", [np.ones((50, 2)), RNG.standard_normal((2, 4))], ids=["equal columns", "wide"])
def test_dependent_columns_give_the_solution_of_smallest_norm(matrix):
    right = RNG.standard_normal(len(matrix))
    result = sketched_least_squares(matrix, right, rng=np.random.default_rng(0))
    np.testing.assert_allclose(result.x, np.linalg.pinv(matrix) @ right, atol=1e-10)


@pytest.mark.parametrize("sketch", list(SKETCHES.values()), ids=list(SKETCHES))
def test_sketches_keep_the_gram_matrix_in_the_mean(sketch):
    matrix = RNG.standard_normal((11, 2))
    rng = np.random.default_rng(8)
    draws = np.array([np.ravel((s := sketch(matrix, 5, rng)).T @ s) for _ in range(1500)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - np.ravel(matrix.T @ matrix)) < 5 * error).all()


@pytest.mark.parametrize("sketch", list(SKETCHES.values()), ids=list(SKETCHES))
def test_sketches_are_linear_and_take_vectors(sketch):
    a, b = RNG.standard_normal((2, 13, 3))
    draw = [sketch(m, 4, np.random.default_rng(2)) for m in (a, b, 2 * a - b, (2 * a - b)[:, 1])]
    np.testing.assert_allclose(draw[2], 2 * draw[0] - draw[1], atol=1e-13)
    np.testing.assert_allclose(draw[3], draw[2][:, 1], atol=1e-13)


def test_full_hadamard_sketch_keeps_all_distances():
    matrix = RNG.standard_normal((8, 3))
    sketch = srht_sketch(matrix, 8, np.random.default_rng(0))
    np.testing.assert_allclose(sketch.T @ sketch, matrix.T @ matrix, atol=1e-12)


@given(seed=st.integers(0, 99), k=st.integers(1, 4))
def test_distance_depends_on_the_spans_only(seed, k):
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, 7, k))
    change = rng.standard_normal((k, k)) + 3 * np.eye(k)
    distance = subspace_distance(first, second)
    assert 0 <= distance <= 1
    np.testing.assert_allclose(subspace_distance(first @ change, second), distance, atol=1e-10)
    np.testing.assert_allclose(subspace_distance(second, first), distance, atol=1e-10)
    assert subspace_distance(first, first @ change) < 1e-10


@given(seed=st.integers(0, 99), k=st.integers(1, 4))
def test_incoherence_lies_between_its_bounds(seed, k):
    factor = np.random.default_rng(seed).standard_normal((9, k))
    assert 1 - 1e-12 <= incoherence(factor) <= np.sqrt(9 / k) + 1e-12


def test_clipping_removes_a_spike():
    rows, columns = np.nonzero(np.ones((20, 20), bool))
    matrix = 0.01 * np.random.default_rng(0).standard_normal((20, 20)) + np.ones((20, 20))
    matrix[3] *= 100
    plain, clipped = (spectral_init(rows, columns, matrix.ravel(), (20, 20), rank=1, clip=c) for c in (None, 1.0))
    assert incoherence(plain) > 4
    assert clipped[3] == 0
    np.testing.assert_allclose(np.linalg.norm(clipped), 1)


def test_large_matrices_start_from_the_same_singular_vectors():
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.standard_normal((1100, 3)))[0], np.linalg.qr(rng.standard_normal((1001, 3)))[0]
    matrix = left * np.array([5.0, 3.0, 1.0]) @ right.T
    start = spectral_init(*np.nonzero(np.ones(matrix.shape)), matrix.ravel(), matrix.shape, rank=3)
    np.testing.assert_allclose(np.abs((start * left).sum(axis=0)), 1, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    matrix, mask = problem(6)
    matrix = matrix.astype(dtype)
    result = complete(matrix, mask, rank=2, n_iter=2)
    x, pullback = least_squares_vjp(matrix[:, :2], matrix[:, 2])
    sketched = sketched_least_squares(matrix[:, :2], matrix[:, 2], sketch_size=8, rng=RNG).x
    arrays = [result.left, result.right, x, *pullback(x), sketched]
    arrays += [sketch(matrix, 4, RNG) for sketch in SKETCHES.values()]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    matrix, mask = problem(7)
    rows, columns, values = *np.nonzero(mask), matrix[mask]
    for array in (matrix, rows, columns, values):
        array.setflags(write=False)
    complete_matrix(rows, columns, values, matrix.shape, rank=2, n_iter=2, solver="sketch", rng=RNG)
    least_squares_vjp(matrix[:, :2], matrix[:, 2])[1](np.ones(2))
    for sketch in SKETCHES.values():
        sketch(matrix, 4, RNG)


def test_callback_ends_the_run():
    assert complete(*problem(0), rank=2, tol=0.0, callback=lambda progress: progress.n_iter == 2).n_iter == 2


ROWS, COLUMNS, VALUES = np.array([0, 1, 1]), np.array([0, 0, 1]), np.ones(3)


def call(rows=ROWS, columns=COLUMNS, values=VALUES, shape=(2, 2), **options):
    return complete_matrix(rows, columns, values, shape, **{"rank": 1, "rng": RNG, **options})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: call(rank=3), ValueError, "rank: expected an integer >= 1 and <= 2, got 3"),
        (lambda: call(rows=np.array([0, 0, 0]), columns=np.array([0, 0, 1])), ValueError, "rows, columns: expected every place once, got 1 repeated"),
        (lambda: call(rows=np.array([0, 1, 2])), ValueError, "rows: expected values of at most 1, got 2"),
        (lambda: call(columns=COLUMNS.astype(float)), TypeError, "columns: expected an integer array, got dtype float64"),
        (lambda: call(values=VALUES[:2]), ValueError, r"rows: expected shape \(2,\), got \(3,\)"),
        (lambda: call(values=VALUES * np.nan), ValueError, "values: expected finite values, got 3 that are not"),
        (lambda: call(shape=(2, 2, 2)), ValueError, "shape: expected two integers"),
        (lambda: call(solver="magic"), ValueError, "solver: expected one of 'exact', 'sketch', got 'magic'"),
        (lambda: call(sketch="magic"), ValueError, "sketch: expected one of 'count', 'gaussian', 'srht', got 'magic'"),
        (lambda: call(accuracy=1.0), ValueError, r"accuracy: expected a number in \(0.0, 1.0\), got 1.0"),
        (lambda: call(sketch_size=0), ValueError, "sketch_size: expected an integer >= 1, got 0"),
        (lambda: call(clip=0.5), ValueError, "clip: expected a number >= 1, or None, got 0.5"),
        (lambda: call(rows=np.array([0, 0]), columns=np.array([0, 1]), values=VALUES[:2], strict=True), ValueError, "rows: expected at least 1 entries in each, got 1 with fewer"),
        (lambda: call(rng=3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: least_squares(np.ones((3, 2)), np.ones(3)), ValueError, "matrix: expected linearly independent columns, got rank below 2"),
        (lambda: least_squares(np.ones((1, 2)), np.ones(1)), ValueError, "matrix: expected linearly independent columns"),
        (lambda: sketched_least_squares(np.ones((3, 2)), np.ones(2), rng=RNG), ValueError, r"right: expected shape \(3,\)"),
        (lambda: count_sketch(np.ones((3, 2)), 0, RNG), ValueError, "size: expected an integer >= 1, got 0"),
        (lambda: srht_sketch(np.ones((3, 2)), 5, RNG), ValueError, "size: expected an integer >= 1 and <= 4, got 5"),
        (lambda: subspace_distance(np.ones((3, 2)), np.ones((3, 1))), ValueError, r"second: expected shape \(3, 2\)"),
        (lambda: incoherence(np.ones((2, 3))), ValueError, "factor: expected at least as many rows as columns"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
