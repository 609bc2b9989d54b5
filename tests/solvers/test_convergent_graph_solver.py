import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    contractive_weights,
    contractive_weights_vjp,
    graph_fixed_point,
    graph_fixed_point_vjp,
    graph_solver,
    graph_solver_vjp,
    init_graph_solver,
)
from refnorm.tree import tree_leaves

RNG = np.random.default_rng(37)
N, EDGES, HEADS = 6, 14, 2
# Node 5 has no outgoing edge, node 4 no incoming one; one edge is doubled and one is a loop.
SRC = np.array([0, 0, 1, 2, 3, 4, 4, 1, 2, 0, 3, 0, 2, 1])
DST = np.array([1, 2, 2, 3, 0, 5, 1, 5, 0, 3, 3, 1, 5, 0])
# Inside the interval, some outside on both sides, none close to its ends.
LOGITS = np.where(
    RNG.random((EDGES, HEADS)) < 0.7, RNG.uniform(0.1, 0.9, (EDGES, HEADS)), RNG.choice([-0.5, 1.5], (EDGES, HEADS))
)
B = RNG.standard_normal((N, HEADS))


def matrix_of(weights, head=0, n=N):
    matrix = np.zeros((n, n))
    np.add.at(matrix, (DST, SRC), weights[:, head])
    return matrix


GRADIENT_CASES = [
    GradientCase(contractive_weights_vjp, (LOGITS, SRC, DST, N), method="complex", name="degree"),
    GradientCase(contractive_weights_vjp, (3 * LOGITS, SRC, DST, N), {"norm": "softmax"}, method="complex", name="softmax"),
    *(
        GradientCase(
            graph_fixed_point_vjp,
            (LOGITS, B, SRC, DST),
            {"activation": activation, "norm": norm, "method": method, "contraction": contraction, "tol": 1e-14},
            name=f"{activation}, {norm}, {method}, {contraction}",
        )
        for activation, norm, method, contraction in (
            ("identity", "degree", "direct", 0.5),
            ("identity", "softmax", "direct", 0.9),
            ("identity", "degree", "iterate", 0.9),
            ("tanh", "softmax", "iterate", 0.7),
            ("leaky_relu", "degree", "iterate", 0.5),
        )
    ),
    GradientCase(
        graph_fixed_point_vjp,
        (np.zeros((0, HEADS)), B, np.zeros(0, int), np.zeros(0, int)),
        {"activation": "tanh", "tol": 1e-14},
        name="no edges",
    ),
    GradientCase(
        graph_solver_vjp,
        (
            init_graph_solver(np.random.default_rng(0), 2, 1, 1, heads=2, hidden=4),
            RNG.standard_normal((N, 2)),
            RNG.standard_normal((EDGES, 1)),
            SRC,
            DST,
        ),
        {"contraction": 0.9},
        step=1e-3,
        name="direct",
    ),
]  # fmt: skip


def test_two_nodes_by_hand():
    logits, b = np.array([[0.9], [0.5]]), np.array([[1.0], [0.0]])
    src, dst = np.array([0, 1]), np.array([1, 0])
    # z0 = 1 + 0.25 z1, z1 = 0.45 z0
    z, pullback = graph_fixed_point_vjp(logits, b, src, dst, method="direct")
    np.testing.assert_allclose(z[:, 0], np.array([1, 0.45]) / (1 - 0.25 * 0.45), rtol=1e-14)
    one = graph_fixed_point_vjp(np.array([[1.0], [0.5]]), b, src, dst, method="direct")
    np.testing.assert_allclose(one[0][:, 0], [8 / 7, 4 / 7], rtol=1e-14)
    dlogits, db = one[1](np.array([[1.0], [0.0]]))
    np.testing.assert_allclose(db[:, 0], [8 / 7, 2 / 7], rtol=1e-14)
    # The first logit is clipped at exactly 1.
    np.testing.assert_allclose(dlogits[:, 0], [0, 16 / 49], rtol=1e-14)
    assert pullback(np.array([[1.0], [0.0]]))[0][0, 0] > 0


@given(seed=st.integers(0, 999), norm=st.sampled_from(["degree", "softmax"]), scale=st.floats(0.1, 100))
def test_no_column_sum_exceeds_one(seed, norm, scale):
    logits = scale * np.random.default_rng(seed).standard_normal((EDGES, HEADS))
    weights = contractive_weights(logits, SRC, DST, N, norm=norm)
    assert (weights >= 0).all()
    for head in range(HEADS):
        sums = matrix_of(weights, head).sum(axis=0)
        assert (sums <= 1 + 1e-14).all()
        if norm == "softmax":
            np.testing.assert_allclose(sums[:5], 1, rtol=1e-14)
        assert sums[5] == 0


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    norm=st.sampled_from(["degree", "softmax"]),
    contraction=st.floats(0.05, 0.95),
)
def test_iteration_reaches_the_solution_of_the_linear_system(seed, norm, contraction):
    rng = np.random.default_rng(seed)
    logits, b = 10 * rng.standard_normal((EDGES, HEADS)), rng.standard_normal((N, HEADS))
    options = {"contraction": contraction, "norm": norm}
    result = graph_fixed_point(logits, b, SRC, DST, tol=1e-12, **options)
    assert result.converged
    weights = contractive_weights(logits, SRC, DST, N, norm=norm)
    for head in range(HEADS):
        expected = np.linalg.solve(np.eye(N) - contraction * matrix_of(weights, head), b[:, head])
        np.testing.assert_allclose(result.x[:, head], expected, atol=1e-9)
    np.testing.assert_allclose(
        graph_fixed_point(logits, b, SRC, DST, method="direct", **options).x, result.x, atol=1e-9
    )


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_nonlinear_fixed_point_is_that_of_a_root_finder(activation):
    weights = contractive_weights(LOGITS, SRC, DST, N)
    function = {"tanh": np.tanh, "leaky_relu": lambda u: np.where(u > 0, u, 0.2 * u)}[activation]
    for head in range(HEADS):
        matrix = matrix_of(weights, head)
        found = scipy.optimize.root(
            lambda z, m=matrix, h=head: z - function(0.8 * m @ z + B[:, h]), np.zeros(N), tol=1e-12
        )
        z = graph_fixed_point(LOGITS, B, SRC, DST, contraction=0.8, activation=activation, tol=1e-13).x
        np.testing.assert_allclose(z[:, head], found.x, atol=1e-8)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), contraction=st.floats(0.3, 0.95))
def test_error_bound_holds_and_error_shrinks_as_promised(seed, contraction):
    logits = np.random.default_rng(seed).random((EDGES, HEADS)) * 2
    exact = graph_fixed_point(logits, B, SRC, DST, contraction=contraction, method="direct").x
    before = np.abs(exact).sum(axis=0)
    for count in range(1, 8):
        found = graph_fixed_point(logits, B, SRC, DST, contraction=contraction, max_iter=count)
        error = np.abs(found.x - exact).sum(axis=0)
        assert (error <= contraction * before + 1e-12).all()
        assert error.max() <= found.error_bound + 1e-12
        before = error


def test_page_rank_is_the_case_of_equal_weights():
    src, dst = SRC[SRC != 4], DST[SRC != 4]
    src, dst = np.append(src, [5, 4]), np.append(dst, [4, 0])
    rank = graph_fixed_point(
        np.ones((len(src), 1)), np.full((N, 1), 0.15 / N), src, dst, contraction=0.85, method="direct"
    ).x[:, 0]
    matrix = np.zeros((N, N))
    np.add.at(matrix, (dst, src), 1 / np.bincount(src)[src])
    values, vectors = np.linalg.eig(0.85 * matrix + 0.15 / N)
    leading = vectors[:, values.real.argmax()].real
    np.testing.assert_allclose(rank, leading / leading.sum(), rtol=1e-10)


def test_node_without_incoming_edges_keeps_its_bias():
    np.testing.assert_allclose(graph_fixed_point(LOGITS, B, SRC, DST, method="direct").x[4], B[4], rtol=1e-15)


def test_graphs_side_by_side_do_not_feel_each_other():
    both = graph_fixed_point(
        np.tile(LOGITS, (2, 1)),
        np.concatenate([B, 2 * B]),
        np.append(SRC, SRC + N),
        np.append(DST, DST + N),
        method="direct",
    ).x
    alone = graph_fixed_point(LOGITS, B, SRC, DST, method="direct").x
    np.testing.assert_allclose(both, np.concatenate([alone, 2 * alone]), rtol=1e-12)


def test_nodes_may_be_renamed():
    names = np.random.default_rng(0).permutation(N)
    params = init_graph_solver(np.random.default_rng(0), 2, 1, 1, heads=2, hidden=4)
    nodes, edges = RNG.standard_normal((N, 2)), RNG.standard_normal((EDGES, 1))
    y = graph_solver(params, nodes, edges, SRC, DST)
    renamed = np.empty_like(nodes)
    renamed[names] = nodes
    np.testing.assert_allclose(graph_solver(params, renamed, edges, names[SRC], names[DST])[names], y, rtol=1e-10)


def test_both_methods_give_the_network_the_same_gradient():
    params = init_graph_solver(np.random.default_rng(0), 2, 1, 1, heads=2, hidden=4)
    nodes, edges, dy = RNG.standard_normal((N, 2)), RNG.standard_normal((EDGES, 1)), RNG.standard_normal((N, 1))
    one, other = (
        graph_solver_vjp(params, nodes, edges, SRC, DST, method=method, tol=1e-13)[1](dy)
        for method in ("direct", "iterate")
    )
    for (path, a), (_, b) in zip(tree_leaves(one), tree_leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10, err_msg=path)


def test_unfinished_run_says_so_and_callback_stops_it():
    short = graph_fixed_point(LOGITS, B, SRC, DST, contraction=0.95, max_iter=2)
    assert not short.converged
    assert len(short.history["step"]) == 2
    assert graph_fixed_point(LOGITS, B, SRC, DST, callback=lambda progress: progress.n_iter == 3).n_iter == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    logits, b = LOGITS.astype(dtype), B.astype(dtype)
    for options in ({"method": "direct"}, {"tol": 1e-4}, {"norm": "softmax", "activation": "tanh", "tol": 1e-4}):
        z, pullback = graph_fixed_point_vjp(logits, b, SRC, DST, **options)
        assert {z.dtype, *(entry.dtype for entry in pullback(z))} == {np.dtype(dtype)}
    params = init_graph_solver(np.random.default_rng(0), 1, 1, 1, hidden=4, dtype=dtype)
    y, pullback = graph_solver_vjp(params, np.ones((N, 1), dtype), np.ones((EDGES, 1), dtype), SRC, DST)
    assert {y.dtype, *(leaf.dtype for _, leaf in tree_leaves(pullback(y)))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    logits, b = LOGITS.copy(), B.copy()
    for array in (logits, b, SRC, DST):
        array.setflags(write=False)
    graph_fixed_point_vjp(logits, b, SRC, DST)[1](b)


NET = init_graph_solver(np.random.default_rng(0), 1, 1, 1, hidden=4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: graph_fixed_point(LOGITS, B, SRC, DST, contraction=1.0), ValueError, r"contraction: expected a number in \(0, 1\), got 1.0"),
        (lambda: graph_fixed_point(LOGITS, B, SRC, DST + 1), ValueError, "dst: expected values of at most 5, got 6"),
        (lambda: graph_fixed_point(LOGITS, B, SRC[:3], DST), ValueError, r"src: expected shape \(14,\), got \(3,\)"),
        (lambda: graph_fixed_point(LOGITS, B[:, :1], SRC, DST), ValueError, r"b: expected shape \(6, 2\), got \(6, 1\)"),
        (lambda: graph_fixed_point(LOGITS, B[:0], SRC, DST), ValueError, "b: expected at least one entry along axes"),
        (lambda: graph_fixed_point(LOGITS.astype("f4"), B, SRC, DST), TypeError, "b: expected dtype float32 like logits, got float64"),
        (lambda: graph_fixed_point(LOGITS, B, SRC, DST, activation="relu"), ValueError, "activation: expected one of 'identity', 'tanh', 'leaky_relu', got 'relu'"),
        (lambda: graph_fixed_point(LOGITS, B, SRC, DST, activation="tanh", method="direct"), ValueError, "method: expected 'iterate' with this activation, got 'direct'"),
        (lambda: graph_fixed_point(LOGITS, B, SRC, DST, norm="row"), ValueError, "norm: expected one of 'degree', 'softmax', got 'row'"),
        (lambda: graph_fixed_point(LOGITS, B, SRC, DST, tol=0.0), ValueError, "tol: expected a finite number > 0, got 0.0"),
        (lambda: contractive_weights(LOGITS, SRC, DST, 0), ValueError, "n: expected an integer >= 1, got 0"),
        (lambda: contractive_weights(LOGITS, SRC * 1.0, DST, N), TypeError, "src: expected an integer array, got dtype float64"),
        (lambda: graph_solver(NET, np.ones((0, 1)), np.ones((0, 1)), SRC[:0], DST[:0]), ValueError, "nodes: expected at least one entry along axes"),
        (lambda: graph_solver(NET, np.ones((N, 1), "f4"), np.ones((EDGES, 1), "f4"), SRC, DST), TypeError, "params.edge_encoder.0.0: expected dtype float32 like nodes, got float64"),
        (lambda: init_graph_solver(RNG, 0, 1, 1), ValueError, "node_features: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
