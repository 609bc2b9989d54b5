import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    acyclicity,
    acyclicity_vjp,
    fit_order,
    kkt_residual,
    structural_hamming,
    swap,
    swap_candidates,
    threshold_graph,
    topo_search,
)

RNG = np.random.default_rng(31)
CYCLIC = 0.25 * RNG.standard_normal((4, 4))
ACYCLIC = np.triu(RNG.standard_normal((4, 4)), 1)[np.ix_([2, 0, 3, 1], [2, 0, 3, 1])]

GRADIENT_CASES = [
    GradientCase(acyclicity_vjp, (CYCLIC,), {"kind": kind, "transform": transform}, method="complex", name=f"{kind}, {transform}")
    for kind in ("logdet", "exp", "poly")
    for transform in ("abs", "square")
] + [
    GradientCase(acyclicity_vjp, (CYCLIC,), {"s": 3.0}, method="complex", name="larger s"),
    # An acyclic graph is a minimum of h. Its zeros are kinks of |w|, so the smooth transform is checked there.
    GradientCase(acyclicity_vjp, (ACYCLIC + 0.2 * np.eye(4),), {"transform": "square"}, method="complex", name="loops"),
    GradientCase(acyclicity_vjp, (np.full((1, 1), 0.5),), method="complex", name="one variable"),
]  # fmt: skip


def linear_model(rng, d=6, edges=8, n=300):
    """Data, true weights and a true order of a random linear model with unit noise."""
    order = rng.permutation(d)
    pairs = np.array(list(itertools.combinations(range(d), 2)))[rng.permutation(d * (d - 1) // 2)[:edges]]
    weight = np.zeros((d, d))
    weight[order[pairs[:, 0]], order[pairs[:, 1]]] = rng.uniform(0.5, 2, edges) * rng.choice([-1, 1], edges)
    data = np.zeros((n, d))
    for node in order:
        data[:, node] = data @ weight[:, node] + rng.standard_normal(n)
    return data, weight, order


def has_path(weight, i, j):
    """Depth-first search for a path of at least one edge."""
    stack, seen = [i], set()
    while stack:
        for following in np.flatnonzero(weight[stack.pop()]):
            if following == j:
                return True
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return False


@given(seed=st.integers(0, 999), d=st.integers(1, 7), density=st.floats(0, 0.6))
def test_gradient_is_positive_exactly_where_a_path_leads_back(seed, d, density):
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((d, d)) < density, rng.uniform(0.5, 1, (d, d)), 0.0)
    weight /= max(1.0, 2 * np.abs(np.linalg.eigvals(weight)).max())
    for kind in ("logdet", "exp", "poly"):
        _, pullback = acyclicity_vjp(weight, kind=kind, transform="square")
        # The pullback multiplies by 2 w; the matrix itself comes out at the weights 1/2.
        grad = pullback(np.array(1.0))[0]
        for i, j in zip(*np.nonzero(weight), strict=True):
            assert (grad[i, j] > 1e-15) == (i == j or has_path(weight, j, i))


@given(seed=st.integers(0, 99), d=st.integers(1, 8), scale=st.floats(0.1, 30))
def test_acyclic_graphs_have_the_value_zero_whatever_their_weights(seed, d, scale):
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    weight = scale * np.triu(rng.standard_normal((d, d)), 1)[np.ix_(order, order)]
    for kind in ("logdet", "exp", "poly"):
        assert float(acyclicity(weight, kind=kind)) == 0


@pytest.mark.parametrize("kind", ["logdet", "exp", "poly"])
def test_cycles_have_positive_values(kind):
    loop = np.zeros((3, 3))
    loop[[0, 1, 2], [1, 2, 0]] = 0.5
    assert float(acyclicity(loop, kind=kind)) > 1e-3
    assert float(acyclicity(np.diag([0.1, 0.0]), kind=kind)) > 1e-3


def test_regression_of_a_two_variable_order_by_hand():
    data = np.sqrt(2) * np.array([[1.0, 2.0], [0.0, 1.0]])  # covariance ((1, 2), (2, 5))
    for topo, weight, loss in (([0, 1], [[0, 2], [0, 0]], 1.0), ([1, 0], [[0, 0], [0.4, 0]], 2.6)):
        found, value = fit_order(data, topo)
        np.testing.assert_allclose(found, weight, atol=1e-14)
        np.testing.assert_allclose(value, loss, rtol=1e-14)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), l1=st.sampled_from([0.0, 0.1]))
def test_regressions_satisfy_their_optimality_conditions(seed, l1):
    rng = np.random.default_rng(seed)
    data, _, _ = linear_model(rng)
    topo = rng.permutation(6)
    weight, loss = fit_order(data, topo, l1=l1)
    slope = -data.T @ (data - data @ weight) / len(data)
    place = np.argsort(topo)
    allowed = place[:, None] < place[None, :]
    assert (weight[~allowed] == 0).all()
    inside = allowed & (weight != 0)
    np.testing.assert_allclose(slope[inside], -l1 * np.sign(weight[inside]), atol=1e-7)
    assert (np.abs(slope[allowed]) <= l1 + 1e-7).all()
    residual = data - data @ weight
    np.testing.assert_allclose(loss, (residual**2).sum() / (2 * len(data)) + l1 * np.abs(weight).sum(), rtol=1e-10)


def test_collinear_predecessors_get_the_solution_of_smallest_norm():
    x = RNG.standard_normal(20)
    weight, loss = fit_order(np.stack([x, x, 2 * x], axis=1), [0, 1, 2])
    np.testing.assert_allclose(weight[:, 2], [1, 1, 0], atol=1e-7)
    np.testing.assert_allclose(weight[0, 1], 1, atol=1e-12)
    np.testing.assert_allclose(loss, (x @ x) / 40, rtol=1e-10)
    few = RNG.standard_normal((3, 6))
    assert np.isfinite(fit_order(few, range(6))[0]).all()
    np.testing.assert_allclose(fit_order(few, range(6))[1], fit_order(few, [0, 1, 2, 4, 3, 5])[1], rtol=1e-9)


def test_data_with_a_tiny_and_a_large_variable_are_regressed_accurately():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 3)) * [1e6, 1e-3, 1.0]
    weight, _ = fit_order(x, [0, 1, 2])
    np.testing.assert_allclose(weight[:2, 2], np.linalg.lstsq(x[:, :2], x[:, 2], rcond=None)[0], rtol=1e-7)


@given(seed=st.integers(0, 99), d=st.integers(2, 7))
def test_candidates_are_the_smallest_gradients_of_pairs_out_of_order(seed, d):
    rng = np.random.default_rng(seed)
    grad, topo = rng.integers(0, 4, (d, d)) * 1.0, rng.permutation(d)
    size = int(rng.integers(1, d * (d - 1) // 2 + 1))
    found = swap_candidates(grad, topo, size)
    place = np.argsort(topo)
    every = sorted((grad[i, j], i, j) for i in range(d) for j in range(d) if place[j] < place[i])
    assert found == [(i, j) for _, i, j in every[:size]]


@given(seed=st.integers(0, 99), d=st.integers(2, 8))
def test_swapping_twice_changes_nothing(seed, d):
    rng = np.random.default_rng(seed)
    topo = rng.permutation(d).tolist()
    i, j = rng.permutation(d)[:2]
    assert swap(swap(topo, int(i), int(j)), int(j), int(i)) == topo


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), greedy=st.booleans())
def test_search_ends_in_an_order_that_no_swap_improves(seed, greedy):
    rng = np.random.default_rng(seed)
    data, _, _ = linear_model(rng, d=5, edges=6, n=100)
    result = topo_search(data, rng.permutation(5), greedy=greedy)
    assert result.converged
    losses = result.history["loss"]
    assert (np.diff(losses) < 0).all()
    np.testing.assert_allclose(result.loss, losses[-1], rtol=1e-12)
    weight, loss = fit_order(data, result.topo)
    np.testing.assert_allclose(result.weight, weight, atol=1e-10)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-10)
    best = min(fit_order(data, order)[1] for order in itertools.permutations(range(5)))
    assert result.loss >= best - 1e-10
    for i, j in itertools.combinations(range(5), 2):
        assert fit_order(data, swap(result.topo, i, j))[1] >= result.loss - 1e-9


def test_a_chain_is_found_from_its_reverse():
    rng = np.random.default_rng(2)
    data = np.cumsum(rng.standard_normal((2000, 6)), axis=1)
    result = topo_search(data, range(6)[::-1])
    assert result.topo == tuple(range(6))
    found = threshold_graph(result.weight)
    assert structural_hamming(found, np.diag(np.ones(5), 1)) == 0


def test_greedy_rounds_take_swaps_that_do_not_overlap():
    rng = np.random.default_rng(2)
    data = np.cumsum(rng.standard_normal((500, 4)), axis=1)
    result = topo_search(data, [1, 0, 3, 2])
    assert result.topo == (0, 1, 2, 3)
    assert result.history["swaps"].tolist() == [0, 2]
    single = topo_search(data, [1, 0, 3, 2], greedy=False)
    assert single.history["swaps"].tolist() == [0, 1, 1]
    np.testing.assert_allclose(single.loss, result.loss, rtol=1e-12)


def test_the_large_set_helps_only_as_often_as_it_may():
    data, _, _ = linear_model(np.random.default_rng(3), d=7, edges=12)
    start = np.random.default_rng(4).permutation(7)
    runs = [topo_search(data, start, size_small=1, size_large=21, n_large=n, greedy=False) for n in (0, 1, 2, 100)]
    losses = [run.loss for run in runs]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_limits_and_callback_end_the_search():
    data, _, _ = linear_model(np.random.default_rng(3), d=7, edges=12)
    start = np.random.default_rng(4).permutation(7)
    short = topo_search(data, start, max_iter=1, greedy=False)
    assert (short.n_iter, short.converged) == (1, False)
    asked = topo_search(data, start, callback=lambda progress: progress.n_iter == 2)
    assert (asked.n_iter, asked.converged) == (1, False)


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_residual_is_zero_at_a_regression_and_positive_where_an_edge_is_missing(seed):
    rng = np.random.default_rng(seed)
    data, _, order = linear_model(rng)
    weight, _ = fit_order(data, order)
    assert kkt_residual(data, weight) < 1e-10
    assert kkt_residual(data, np.zeros((6, 6))) > 0.05
    slope = -data.T @ (data - data @ weight) / len(data)
    free = [abs(slope[i, j]) for i in range(6) for j in range(6) if i != j and not has_path(weight, j, i)]
    np.testing.assert_allclose(kkt_residual(data, weight), max(free), atol=1e-14)


def test_distance_counts_a_reversed_edge_once():
    truth = np.zeros((4, 4))
    truth[0, 1] = truth[1, 2] = truth[2, 3] = 1
    other = np.zeros((4, 4))
    other[1, 0] = other[1, 2] = other[0, 3] = 5.0  # one reversed, one right, one missing, one too many
    assert structural_hamming(other, truth) == structural_hamming(truth, other) == 3
    assert structural_hamming(truth, truth) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype):
    weight, data = CYCLIC.astype(dtype), RNG.standard_normal((20, 3)).astype(dtype)
    topo = np.array([2, 0, 1])
    for array in (weight, data, topo):
        array.setflags(write=False)
    h, pullback = acyclicity_vjp(weight)
    found = (h, pullback(h)[0], fit_order(data, topo)[0], topo_search(data, topo).weight, threshold_graph(weight))
    assert {array.dtype for array in found} == {np.dtype(dtype)}


X = RNG.standard_normal((5, 3))
NAN = np.array([[0.0, np.nan], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: acyclicity(np.full((2, 2), 1.0)), ValueError, "s: expected a number above the spectral radius 2, got 1.0"),
        (lambda: acyclicity(np.ones((2, 3))), ValueError, r"weight: expected shape \(2, 2\), got \(2, 3\)"),
        (lambda: acyclicity(NAN), ValueError, "weight: expected finite values, got 1 that are not"),
        (lambda: acyclicity(CYCLIC, kind="trace"), ValueError, "kind: expected one of 'logdet', 'exp', 'poly', got 'trace'"),
        (lambda: acyclicity(CYCLIC, transform="relu"), ValueError, "transform: expected one of 'abs', 'square', got 'relu'"),
        (lambda: fit_order(X, [0, 1, 1]), ValueError, r"topo: expected a permutation of 0 to 2, got \[0, 1, 1\]"),
        (lambda: fit_order(X, [0, 1]), ValueError, "topo: expected a permutation of 0 to 2"),
        (lambda: fit_order(X, [0, 1, 2], l1=-1.0), ValueError, "l1: expected a finite number >= 0, got -1.0"),
        (lambda: fit_order(X * np.nan, [0, 1, 2]), ValueError, "data: expected finite values"),
        (lambda: swap_candidates(np.zeros((3, 3)), [0, 1, 2], 4), ValueError, "size: expected an integer >= 1 and <= 3, got 4"),
        (lambda: swap([0, 1], 0, 2), ValueError, "j: expected an integer >= 0 and <= 1, got 2"),
        (lambda: topo_search(X[:, :1], [0]), ValueError, r"data: expected at least 2 variables, got shape \(5, 1\)"),
        (lambda: topo_search(X, [0, 1, 2], size_small=0), ValueError, "size_small: expected an integer >= 1 and <= 3, got 0"),
        (lambda: topo_search(X, [0, 1, 2], size_small=2, size_large=1), ValueError, "size_large: expected an integer >= 2 and <= 3, got 1"),
        (lambda: kkt_residual(X[:, :2], np.full((2, 2), 0.1)), ValueError, "weight: expected a graph without cycles, got 2 variables on cycles"),
        (lambda: structural_hamming(CYCLIC, np.zeros((3, 3))), ValueError, r"truth: expected shape \(4, 4\), got \(3, 3\)"),
        (lambda: threshold_graph(CYCLIC, -1.0), ValueError, "threshold: expected a finite number >= 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
