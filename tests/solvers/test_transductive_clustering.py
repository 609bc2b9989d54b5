import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    bound_step,
    bound_step_vjp,
    knn_affinity,
    laplacian_energy,
    laplacian_energy_vjp,
    prototype_costs,
    prototype_costs_vjp,
    transductive_cluster,
)

RNG = np.random.default_rng(9)


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def simplex(rng, n, k):
    return rng.dirichlet(np.ones(k), size=n)


GRADIENT_CASES = [
    GradientCase(bound_step_vjp, normal((4, 3), (4, 3), (4, 4)), method="complex"),
    GradientCase(bound_step_vjp, normal((2, 1), (2, 1), (2, 2)), {"laplacian_weight": 2.0}, method="complex"),
    GradientCase(bound_step_vjp, normal((4, 3), (4, 3), (4, 4)), {"laplacian_weight": 0.0}, method="complex"),
    GradientCase(
        bound_step_vjp,
        (np.eye(3), 30 * RNG.standard_normal((3, 3)), np.ones((3, 3))),
        method="complex",
        name="saturated",
    ),
    GradientCase(laplacian_energy_vjp, (simplex(RNG, 4, 3), *normal((4, 3), (4, 4))), method="complex"),
    GradientCase(
        laplacian_energy_vjp,
        (simplex(RNG, 1, 2), *normal((1, 2), (1, 1))),
        {"laplacian_weight": 0.0},
        method="complex",
    ),
    GradientCase(prototype_costs_vjp, normal((5, 2), (3, 2)), method="complex"),
    GradientCase(prototype_costs_vjp, normal((1, 4), (2, 4)), {"temperature": 0.1}, method="complex"),
    GradientCase(
        prototype_costs_vjp, (np.ones((2, 3)), np.ones((2, 3))), method="complex", name="points on prototypes"
    ),
]


def task(seed, classes=3, queries=12, features=2):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((classes, features))
    target = np.concatenate([np.arange(classes), rng.integers(classes, size=queries)])
    x = centres[target] + rng.standard_normal((len(target), features))
    return x[:classes], target[:classes], x[classes:], target[classes:]


def cluster(seed=0, **options):
    support, labels, query, _ = task(seed)
    return transductive_cluster(support, labels, query, **{"n_classes": 3, **options})


def test_three_points_on_a_line_by_hand():
    result = transductive_cluster(
        np.array([[0.0], [1.0]]), np.array([0, 1]), np.array([[0.6]]), n_classes=2, laplacian_weight=0.0, k=1,
        inner_iter=1, outer_iter=1,
    )  # fmt: skip
    first, second = 1 / (1 + np.exp(0.2)), 1 / (1 + np.exp(-0.2))
    np.testing.assert_allclose(result.assignments, [[first, second]], rtol=1e-14)
    moved = [[0.6 * first / (1 + first)], [(1 + 0.6 * second) / (1 + second)]]
    np.testing.assert_allclose(result.prototypes, moved, rtol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_hard_clustering_without_a_graph_is_k_means(seed):
    support, labels, query, _ = task(seed, queries=40)
    result = transductive_cluster(support, labels, query, n_classes=3, laplacian_weight=0.0, hard=True, outer_iter=50)
    points = np.concatenate([support, query])
    peer = KMeans(3, init=support, n_init=1, algorithm="lloyd", tol=0).fit(points)
    # k-means is free to move the labelled points; where it does not, the two are the same algorithm.
    if (peer.labels_[:3] == labels).all():
        np.testing.assert_array_equal(result.labels, peer.labels_[3:])
        np.testing.assert_allclose(result.prototypes, peer.cluster_centers_, atol=1e-12)
    assert result.converged
    assert set(np.unique(result.assignments)) <= {0.0, 1.0}


def test_k_means_comparison_is_not_vacuous():
    kept = 0
    for seed in range(5):
        support, labels, query, _ = task(seed, queries=40)
        peer = KMeans(3, init=support, n_init=1, algorithm="lloyd", tol=0).fit(np.concatenate([support, query]))
        kept += (peer.labels_[:3] == labels).all()
    assert kept >= 3


@given(seed=st.integers(0, 999), weight=st.floats(0, 5), temperature=st.floats(0.1, 10), hard=st.booleans())
def test_energy_never_rises(seed, weight, temperature, hard):
    result = cluster(seed, laplacian_weight=weight, temperature=temperature, hard=hard)
    energy = result.history["energy"]
    assert (np.diff(energy) <= 1e-10 * np.abs(energy).max()).all()


@given(seed=st.integers(0, 999), weight=st.floats(0, 5))
def test_bound_step_with_a_positive_graph_lowers_the_energy(seed, weight):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((5, 3))
    z, cost, w = simplex(rng, 5, 3), rng.standard_normal((5, 3)), root @ root.T
    after = bound_step(z, cost, w, laplacian_weight=weight)
    options = {"laplacian_weight": weight}
    assert laplacian_energy(after, cost, w, **options) <= laplacian_energy(z, cost, w, **options) + 1e-10 * (1 + weight)


def test_without_the_shift_two_points_swap_for_ever():
    w, cost, options = np.array([[0.0, 1.0], [1.0, 0.0]]), np.zeros((2, 2)), {"laplacian_weight": 10.0}
    z = np.array([[0.9, 0.1], [0.1, 0.9]])
    first = bound_step(z, cost, w, **options)
    second = bound_step(first, cost, w, **options)
    third = bound_step(second, cost, w, **options)
    assert laplacian_energy(first, cost, w, **options) > laplacian_energy(z, cost, w, **options) + 0.5
    assert first[0, 0] < 0.01 < 0.99 < second[0, 0]
    np.testing.assert_allclose(third, first, atol=1e-3)
    shifted = bound_step(z, cost, w + np.eye(2), **options)
    assert laplacian_energy(shifted, cost, w + np.eye(2), **options) <= laplacian_energy(
        z, cost, w + np.eye(2), **options
    )


def test_energy_of_one_hot_rows_is_the_binary_objective():
    z, cost = np.eye(3)[RNG.integers(3, size=6)], RNG.random((6, 3))
    w = knn_affinity(RNG.standard_normal((6, 2)), k=2)
    apart = ((z[:, None] - z) ** 2).sum(axis=-1)
    binary = (cost * z).sum() + 0.7 / 2 * (w * apart).sum() / 2
    constant = 0.7 / 2 * w.sum()
    np.testing.assert_allclose(laplacian_energy(z, cost, w) + constant, binary, rtol=1e-12)


def test_low_temperature_makes_assignments_hard():
    soft = cluster(1, laplacian_weight=0.0, temperature=1e-3)
    hard = cluster(1, laplacian_weight=0.0, hard=True)
    np.testing.assert_array_equal(soft.labels, hard.labels)
    np.testing.assert_allclose(soft.prototypes, hard.prototypes, atol=1e-6)


def test_fixed_prototypes_are_the_means_of_the_labelled_points():
    support = RNG.standard_normal((4, 2))
    result = transductive_cluster(
        support, np.array([0, 1, 1, 0]), RNG.standard_normal((9, 2)), n_classes=2, update_prototypes=False
    )
    np.testing.assert_allclose(result.prototypes, [support[[0, 3]].mean(axis=0), support[[1, 2]].mean(axis=0)])
    assert result.n_iter == 1


def test_neighbours_pull_a_doubtful_point():
    support, query = np.array([[0.0], [1.0]]), np.array([[0.45], [0.6], [0.65], [0.7]])
    options = {"n_classes": 2, "temperature": 0.2, "k": 2, "update_prototypes": False}
    alone = transductive_cluster(support, np.array([0, 1]), query, laplacian_weight=0.0, **options)
    agreed = transductive_cluster(support, np.array([0, 1]), query, laplacian_weight=2.0, **options)
    np.testing.assert_array_equal(alone.labels, [0, 1, 1, 1])
    np.testing.assert_array_equal(agreed.labels, [1, 1, 1, 1])


@given(seed=st.integers(0, 99))
def test_order_of_the_queries_does_not_matter(seed):
    support, labels, query, _ = task(seed)
    order = np.random.default_rng(seed).permutation(len(query))
    one = transductive_cluster(support, labels, query, n_classes=3)
    other = transductive_cluster(support, labels, query[order], n_classes=3)
    np.testing.assert_allclose(one.assignments[order], other.assignments, atol=1e-8)


def test_ties_between_neighbours_go_to_the_first():
    np.testing.assert_array_equal(
        knn_affinity(np.zeros((4, 1)), k=1), [[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    )


@given(n=st.integers(2, 12), k=st.integers(1, 11), seed=st.integers(0, 99))
def test_graph_is_symmetric_with_at_least_k_neighbours(n, k, seed):
    k = min(k, n - 1)
    w = knn_affinity(np.random.default_rng(seed).standard_normal((n, 2)), k=k)
    np.testing.assert_array_equal(w, w.T)
    assert (np.diag(w) == 0).all()
    assert (w.sum(axis=1) >= k).all()


def test_zero_assignment_counts_nothing_and_has_an_infinite_slope():
    value, pullback = laplacian_energy_vjp(np.array([[1.0, 0.0]]), np.array([[2.0, 5.0]]), np.zeros((1, 1)))
    assert value == 2
    np.testing.assert_array_equal(pullback(np.array(1.0))[0], [[3, -np.inf]])


def test_callback_ends_the_run():
    result = cluster(callback=lambda progress: progress.n_iter == 3, tol=0.0)
    assert len(result.history["energy"]) <= 4
    assert not result.converged


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    support, labels, query, _ = task(0)
    support, query = support.astype(dtype), query.astype(dtype)
    result = transductive_cluster(support, labels, query, n_classes=3)
    w = knn_affinity(query)
    cost, cost_pullback = prototype_costs_vjp(query, support)
    z, step_pullback = bound_step_vjp(np.full_like(cost, 1 / 3), cost, w)
    energy, energy_pullback = laplacian_energy_vjp(z, cost, w)
    arrays = [result.assignments, result.prototypes, w, cost, z, energy, *cost_pullback(cost), *step_pullback(z)]
    assert {a.dtype for a in (*arrays, *energy_pullback(np.array(1, dtype)))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    support, labels, query, _ = task(0)
    w, z = knn_affinity(query), simplex(RNG, len(query), 3)
    cost = prototype_costs(query, support)
    for array in (support, labels, query, w, z, cost):
        array.setflags(write=False)
    transductive_cluster(support, labels, query, n_classes=3)
    prototype_costs_vjp(query, support)[1](cost)
    bound_step_vjp(z, cost, w)[1](z)
    laplacian_energy_vjp(z, cost, w)[1](np.array(1.0))


S, Y, Q = np.array([[0.0], [1.0]]), np.array([0, 1]), np.array([[0.5], [0.7]])
Z = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: transductive_cluster(S, Y, Q, n_classes=3), ValueError, "y_support: expected every class at least once, got none of class 2"),
        (lambda: transductive_cluster(S, Y, Q, n_classes=1), ValueError, "y_support: expected values of at most 0, got 1"),
        (lambda: transductive_cluster(S, Y, Q, n_classes=2, k=4), ValueError, "k: expected an integer >= 1 and <= 3, got 4"),
        (lambda: transductive_cluster(S, Y[:1], Q, n_classes=1), ValueError, r"y_support: expected shape \(2,\), got \(1,\)"),
        (lambda: transductive_cluster(S, Y, np.ones((2, 2)), n_classes=2), ValueError, r"x_query: expected shape \(2, 1\)"),
        (lambda: transductive_cluster(S, Y, Q * np.nan, n_classes=2), ValueError, "x_query: expected finite values"),
        (lambda: transductive_cluster(S, Y * 1.0, Q, n_classes=2), TypeError, "y_support: expected an integer array"),
        (lambda: transductive_cluster(S, Y, Q, n_classes=2, temperature=0.0), ValueError, "temperature: expected a finite number > 0"),
        (lambda: transductive_cluster(S, Y, Q, n_classes=2, laplacian_weight=-1.0), ValueError, "laplacian_weight: expected a finite number >= 0"),
        (lambda: transductive_cluster(S, Y, Q, n_classes=2, inner_iter=0), ValueError, "inner_iter: expected an integer >= 1, got 0"),
        (lambda: transductive_cluster(S, Y, Q.astype("f4"), n_classes=2), TypeError, "x_query: expected dtype float64 like x_support"),
        (lambda: bound_step(Z, Z[:1], Z), ValueError, r"cost: expected shape \(2, 2\), got \(1, 2\)"),
        (lambda: laplacian_energy(Z, Z, np.eye(3)), ValueError, r"w: expected shape \(2, 2\), got \(3, 3\)"),
        (lambda: prototype_costs(S, np.ones((2, 3))), ValueError, r"prototypes: expected shape \(2, 1\), got \(2, 3\)"),
        (lambda: knn_affinity(np.zeros((0, 2))), ValueError, "x: expected at least one entry along axes"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_the_shift_the_labels_of_separate_clusters_are_the_same():
    support, query = np.array([[0.0], [1.0]]), np.array([[0.1], [0.3], [0.6], [0.9]])
    options = {"n_classes": 2, "k": 1, "temperature": 0.1}
    plain, shifted = (
        transductive_cluster(support, np.array([0, 1]), query, psd_shift=shift, **options) for shift in (False, True)
    )
    np.testing.assert_array_equal(plain.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(shifted.labels, plain.labels)
    assert not np.array_equal(shifted.history["energy"], plain.history["energy"])
