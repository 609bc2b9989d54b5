import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    bits_per_weight,
    fit_codebook,
    fold_permutation,
    fold_permutation_vjp,
    group_neurons,
    kmeans_codebook,
    refit_codebook,
    soft_map,
    soft_map_vjp,
)
from refnorm.quantizers._joint_codebook import _lloyd, _lloyd_sorted

RNG = np.random.default_rng(1)
EXACT = {"gradient": "exact"}

GRADIENT_CASES = [
    GradientCase(soft_map_vjp, (RNG.standard_normal(4), RNG.standard_normal((5, 4))), EXACT, method="complex"),
    GradientCase(soft_map_vjp, (RNG.standard_normal((3, 4)), RNG.standard_normal((5, 3, 4))), EXACT, method="complex", name="a codebook for each column"),
    GradientCase(soft_map_vjp, (RNG.standard_normal((2, 1, 2)), 9 * RNG.standard_normal((2, 3, 2))), EXACT, method="complex", name="sharp"),
    GradientCase(soft_map_vjp, (np.ones(1), RNG.standard_normal((3, 1))), EXACT, name="one codeword"),
    GradientCase(fold_permutation_vjp, (RNG.standard_normal((2, 4)), RNG.standard_normal((4, 3)), np.array([2, 0, 3, 1])), method="complex"),
]  # fmt: skip


@given(seed=st.integers(0, 999), kernel=st.sampled_from(["exp", "rational"]))
def test_proximal_rule_descends(seed, kernel):
    rng = np.random.default_rng(seed)
    codebook, logits, target = np.sort(rng.standard_normal(4)), rng.standard_normal((6, 4)), rng.standard_normal(6)
    y, pullback = soft_map_vjp(codebook, logits, kernel=kernel)
    _, dlogits = pullback(2 * (y - target))
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-12)
    step = 1e-5 / max(np.abs(dlogits).max(), 1e-9)
    after = soft_map(codebook, logits - step * dlogits)
    assert (np.square(after - target) <= np.square(y - target) + 1e-12).all()


@given(seed=st.integers(0, 999))
def test_proximal_and_exact_agree_in_sign_before_centring(seed):
    rng = np.random.default_rng(seed)
    codebook, logits = np.sort(rng.standard_normal(3)), rng.standard_normal((6, 3))
    y = soft_map(codebook, logits)
    exact = soft_map_vjp(codebook, logits, gradient="exact")[1](np.ones(6))[1]
    assert (np.sign(exact) == np.sign(codebook - y[:, None])).all()


def test_far_codeword_dominates_the_exact_gradient_but_not_the_proximal_one():
    codebook, logits = np.array([0.0, 1.0, 10.0]), np.zeros((1, 3))
    exact = np.abs(soft_map_vjp(codebook, logits, gradient="exact")[1](np.ones(1))[1][0])
    assert exact.argmax() == 2
    # Before centring the kernel has made the distances 3.67, 2.67, 6.33 into weights that decrease.
    near = np.exp(-np.array([3.6667, 2.6667, 6.3333]) / 5)
    assert near.argmin() == 2
    proximal = soft_map_vjp(codebook, logits)[1](np.ones(1))[1][0]
    expected = 5 * near / 3 * np.array([-1, -1, 1])
    np.testing.assert_allclose(proximal, expected - expected.mean(), rtol=1e-4)


@given(seed=st.integers(0, 99), n_groups=st.integers(1, 9), method=st.sampled_from(["sort", "kmeans"]))
def test_groups_are_an_ordered_partition(seed, n_groups, method):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 9)) * np.exp(rng.standard_normal(9))
    permutation, boundaries = group_neurons(weight, n_groups, method=method, rng=rng)
    assert sorted(permutation.tolist()) == list(range(9))
    assert boundaries[0] == 0
    assert boundaries[-1] == 9
    assert (np.diff(boundaries) >= 0).all()
    spread = weight[:, permutation].std(axis=0)
    if method == "sort":
        assert (np.diff(spread) >= 0).all()
        assert np.ptp(np.diff(boundaries)) <= 1


def test_clusters_of_neurons_are_found():
    sizes = np.array([1.0, 10, 1, 10, 10, 1])
    weight = RNG.uniform(0.9, 1.1, (50, 6)) * RNG.choice([-1, 1], (50, 6)) * sizes
    permutation, boundaries = group_neurons(weight, 2, method="kmeans", rng=RNG)
    assert boundaries.tolist() == [0, 3, 6]
    assert set(permutation[:3]) == {0, 2, 5}


def test_folded_permutation_keeps_the_network():
    w1, w2, x = RNG.standard_normal((3, 5)), RNG.standard_normal((5, 2)), RNG.standard_normal((4, 3))
    p1, p2 = fold_permutation(w1, w2, RNG.permutation(5))
    np.testing.assert_allclose(np.maximum(x @ p1, 0) @ p2, np.maximum(x @ w1, 0) @ w2)


@given(seed=st.integers(0, 99), k=st.integers(1, 6), plus=st.booleans())
def test_kmeans_is_a_fixed_point(seed, k, plus):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, 8))
    codebook, index = kmeans_codebook(weight, k, n_iter=500, rng=rng if plus else None)
    assert (np.diff(codebook) >= 0).all()
    np.testing.assert_array_equal(index, np.abs(weight[..., None] - codebook).argmin(axis=-1))
    for j in range(k):
        if (index == j).any():
            assert codebook[j] == pytest.approx(weight[index == j].mean())


def test_fewer_distinct_weights_than_codewords():
    codebook, index = kmeans_codebook(np.array([2.0, 2.0, 5.0]), 4, rng=RNG)
    assert set(codebook.tolist()) == {2.0, 5.0}
    assert (codebook[index] == [2.0, 2.0, 5.0]).all()
    y, pullback = soft_map_vjp(np.full(3, 2.0), np.zeros((2, 3)))
    assert y.tolist() == [2, 2]
    assert (pullback(np.ones(2))[1] == 0).all()


def layer(rng, rows=60, inputs=8, outputs=6, dtype=np.float64):
    x = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, inputs)) + 0.3 * rng.standard_normal((rows, inputs))
    weight = rng.standard_normal((inputs, outputs)) * np.exp(rng.standard_normal(outputs))
    return x.astype(dtype), weight.astype(dtype)


def output_error(x, weight, found):
    return np.square(x @ (found.weight - weight)).sum() / len(x)


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"forward": "hard"}, {"gradient": "exact"}, {"kernel": "rational"}, {"grouping": "kmeans"}])  # fmt: skip
def test_learning_lowers_the_output_error(options):
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((64, 8)) @ rng.standard_normal((8, 32)), rng.standard_normal((32, 8))
    plain, found = (
        fit_codebook(
            x, weight, n_groups=2, n_iter=n, learning_rates=(0.1, 1e-3), rng=np.random.default_rng(0), **options
        )
        for n in (0, 200)
    )
    assert output_error(x, weight, found) < 0.6 * output_error(x, weight, plain)


def test_result_is_what_its_codes_say():
    x, weight = layer(np.random.default_rng(5))
    for shared in (False, True):
        found = fit_codebook(x, weight, n_groups=3, n_iter=40, shared=shared)
        group = np.repeat(np.arange(3), np.diff(found.boundaries))
        rebuilt = np.empty_like(weight)
        for place, column in enumerate(found.permutation):
            book = found.codebooks[0 if shared else group[place]]
            rebuilt[:, column] = found.scales[place] * book[found.codes[:, place]]
        np.testing.assert_array_equal(rebuilt, found.weight)
        assert found.codebooks.shape == (1 if shared else 3, 4)
        assert len(np.unique(found.weight[:, found.permutation[:2]])) <= 4 * (1 + shared)
        assert found.n_iter == len(found.history["loss"]) == 40


def test_first_loss_is_that_of_the_sharp_mixture():
    x, weight = layer(np.random.default_rng(5))
    found = fit_codebook(x, weight, n_groups=1, n_iter=1)
    codebook, _ = kmeans_codebook(weight, 4)
    gap = (codebook[-1] - codebook[0]) / 3
    soft = soft_map(codebook, -5 * np.abs(weight[..., None] - codebook) / gap)
    assert found.history["loss"][0] == pytest.approx(np.square(x @ (soft - weight)).sum() / len(x))


@given(seed=st.integers(0, 99))
def test_refitted_codewords_are_the_best(seed):
    rng = np.random.default_rng(seed)
    x, weight = layer(rng, 20, 5, 4)
    codes, boundaries = rng.integers(0, 3, (5, 4)), np.array([0, 1, 4])
    best = refit_codebook(x, weight, codes, boundaries, codebooks=np.zeros((2, 3)))
    group = np.array([0, 1, 1, 1])

    def error(books):
        return np.square(x @ (books[group[None], codes] - weight)).sum()

    for change in 0.1 * rng.standard_normal((5, 2, 3)):
        assert error(best) <= error(best + change) * (1 + 1e-9)


def test_unused_codewords_stay():
    x, weight = layer(np.random.default_rng(5))
    books = np.array([[7.0, 8.0, 9.0]])
    fitted = refit_codebook(x, weight, np.ones(weight.shape, int), np.array([0, 6]), codebooks=books)
    assert fitted[0, [0, 2]].tolist() == [7, 9]
    assert fitted[0, 1] != 8


def test_memory_is_codes_and_codebooks():
    assert bits_per_weight((100, 10), 4, 1) == 2 + 4 * 32 / 1000
    assert bits_per_weight((100, 10), 5, 1, codeword_bits=16) == 3 + 5 * 16 / 1000


def test_callback_ends_the_codebook_fit():
    x, weight = layer(np.random.default_rng(5))
    assert fit_codebook(x, weight, n_groups=2, n_iter=9, callback=lambda progress: progress.n_iter == 4).n_iter == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_codebooks(dtype):
    x, weight = layer(RNG, dtype=dtype)
    found = fit_codebook(x, weight, n_groups=2, n_iter=3)
    assert found.weight.dtype == found.codebooks.dtype == found.scales.dtype == dtype
    y, pullback = soft_map_vjp(found.codebooks[0], np.zeros((3, 4), dtype))
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 2


def test_codebooks_write_to_no_argument():
    x, weight = layer(RNG)
    for array in (x, weight):
        array.setflags(write=False)
    fit_codebook(x, weight, n_groups=2, n_iter=3)
    kmeans_codebook(weight, 3)


X, W = np.ones((4, 3)), np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: group_neurons(W, 3), ValueError, "n_groups: expected an integer >= 1 and <= 2, got 3"),
        (lambda: group_neurons(W, 2, method="size"), ValueError, "method: expected one of 'sort', 'kmeans', got 'size'"),
        (lambda: group_neurons(W, 2, method="kmeans"), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: fold_permutation(W, W.T, np.array([0, 0])), ValueError, "permutation: expected every number from 0 to 1 once"),
        (lambda: fold_permutation(W, W, np.array([0, 1])), ValueError, r"weight_next: expected shape \(2, 2\), got \(3, 2\)"),
        (lambda: kmeans_codebook(np.zeros(0), 2), ValueError, "weight: expected at least one entry"),
        (lambda: kmeans_codebook(W, 0), ValueError, "k: expected an integer >= 1, got 0"),
        (lambda: soft_map(np.ones(3), np.ones((2, 4))), ValueError, r"logits: expected shape \(2, 3\), got \(2, 4\)"),
        (lambda: soft_map(np.ones((2, 3)), np.ones((4, 3))), ValueError, r"codebook: expected a shape that broadcasts to \(4, 3\)"),
        (lambda: soft_map(np.ones(3, "f4"), np.ones((2, 3))), TypeError, "logits: expected dtype float32 like codebook"),
        (lambda: soft_map_vjp(np.ones(3), np.ones((2, 3)), gradient="near"), ValueError, "gradient: expected one of 'proximal', 'exact'"),
        (lambda: soft_map_vjp(np.ones(3), np.ones((2, 3)), kernel="box"), ValueError, "kernel: expected one of 'exp', 'rational'"),
        (lambda: fit_codebook(X, W, k=1), ValueError, "k: expected an integer >= 2, got 1"),
        (lambda: fit_codebook(X, W), ValueError, "n_groups: expected an integer >= 1 and <= 2, got 8"),
        (lambda: fit_codebook(X, W.T, n_groups=1), ValueError, r"weight: expected shape \(3, 3\), got \(2, 3\)"),
        (lambda: fit_codebook(X, W, n_groups=1, penalty=-1.0), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: fit_codebook(X, W, n_groups=1, forward="both"), ValueError, "forward: expected one of 'soft', 'hard'"),
        (lambda: refit_codebook(X, W, np.zeros((3, 2), int), np.array([0, 1])), ValueError, "boundaries: expected numbers from 0 to 2"),
        (lambda: refit_codebook(X, W, np.zeros((2, 2), int), np.array([0, 2])), ValueError, "codes: expected shape"),
        (lambda: refit_codebook(X, W, np.full((3, 2), 4), np.array([0, 2]), codebooks=np.ones((1, 4))), ValueError, "codes: expected values of at most 3, got 4"),
        (lambda: bits_per_weight((0, 3), 4, 1), ValueError, "shape: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_of_codebooks_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_centre_without_points_moves_to_the_point_farthest_from_its_own():
    points = np.array([0.0, 0.0, 1.0, 9.0])
    # No point is nearest to the second and third; they go to 9 and 1, and every point has a centre of its own.
    start = np.array([0.0, 50.0, 60.0])
    np.testing.assert_array_equal(_lloyd_sorted(points, start, 10), [0, 1, 9])
    centres, label = _lloyd(points[:, None], start[:, None])
    np.testing.assert_array_equal(np.sort(centres[:, 0]), [0, 1, 9])
    np.testing.assert_array_equal(centres[label, 0], points)
    # One step is not enough for the means to follow.
    assert not np.array_equal(_lloyd_sorted(points, start, 1), _lloyd_sorted(points, start, 10))
    assert len(_lloyd(points[:, None], start[:, None], 1)[0]) == 3


def test_more_centres_than_distinct_points_stay_where_they_are():
    points = np.array([2.0, 2.0, 2.0])
    assert 2.0 in _lloyd_sorted(points, np.array([1.0, 5.0, 7.0]), 10)
    centres, label = _lloyd(points[:, None], np.array([[1.0], [5.0]]))
    np.testing.assert_array_equal(centres[label, 0], points)
