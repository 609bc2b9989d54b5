import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    AdditiveQuantized,
    PVOptimizer,
    additive_dequantize,
    additive_dequantize_vjp,
    continuous_only_step,
    kmeans_init,
    nearest_codes,
    partition,
    pv_exact_quadratic,
    pv_linearized_quadratic,
    ste_step,
    values,
)

RNG = np.random.default_rng(1)

GRADIENT_CASES = [
    GradientCase(additive_dequantize_vjp, (RNG.integers(4, size=(2, 3, 1)), RNG.standard_normal((1, 4, 2)), RNG.standard_normal(2)), method="complex"),
    GradientCase(additive_dequantize_vjp, (RNG.integers(3, size=(3, 2, 2)), RNG.standard_normal((2, 3, 4)), RNG.standard_normal(3)), method="complex", name="two codebooks"),
    GradientCase(additive_dequantize_vjp, (np.zeros((2, 5, 1), int), RNG.standard_normal((1, 3, 1)), np.array([0.0, 1.0])), method="complex", name="unused codewords, scale 0"),
]  # fmt: skip


def quadratic(seed, d=6, c=2):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d))
    matrix = root @ root.T
    return matrix, matrix @ rng.standard_normal(d), rng.standard_normal(c)[rng.integers(c, size=d)]


def quantized(seed, rows=4, groups=6, m=1, k=4, g=2):
    rng = np.random.default_rng(seed)
    codes = rng.integers(k, size=(rows, groups, m))
    return AdditiveQuantized(codes, rng.standard_normal((m, k, g)), rng.uniform(0.5, 2, rows)), rng


@given(seed=st.integers(0, 999), c=st.integers(1, 3))
def test_values_and_classes_give_the_vector(seed, c):
    x = quadratic(seed, c=c)[2]
    assert (values(x)[partition(x)] == x).all()
    assert (np.diff(values(x)) > 0).all()


@given(seed=st.integers(0, 999), c=st.integers(1, 3), subspace=st.sampled_from(["exact", None, 1, 3]))
def test_objective_never_grows_and_values_never_get_more(seed, c, subspace):
    matrix, vector, x0 = quadratic(seed, c=c)
    if subspace == "exact":
        found = pv_exact_quadratic(matrix, vector, x0)
    else:
        found = pv_linearized_quadratic(matrix, vector, x0, subspace=subspace)
        assert subspace is None or found.history["changed"].max() <= subspace
    path = np.r_[x0 @ matrix @ x0 / 2 - vector @ x0, found.history["objective"]]
    assert (np.diff(path) <= 1e-12 * np.abs(path).max()).all()
    assert len(values(found.x)) <= len(values(x0))
    assert path[-1] == found.x @ (matrix @ found.x) / 2 - vector @ found.x


@given(seed=st.integers(0, 999))
def test_exact_steps_end_where_neither_step_gains(seed):
    matrix, vector, x0 = quadratic(seed)
    found = pv_exact_quadratic(matrix, vector, x0)
    assert found.converged
    slope = matrix @ found.x - vector
    sums = np.bincount(partition(found.x), slope)
    np.testing.assert_allclose(sums, 0, atol=1e-9 * np.abs(vector).max())
    assert pv_exact_quadratic(matrix, vector, found.x).n_iter == 1


def test_semidefinite_matrix_has_a_solution():
    matrix = np.diag([1.0, 0.0, 0.0])
    vector, x0 = np.array([3.0, 0.0, 0.0]), np.array([0.0, 1.0, 1.0])
    np.testing.assert_allclose(pv_exact_quadratic(matrix, vector, x0).x, [3, 1, 1], rtol=1e-12)
    np.testing.assert_allclose(pv_linearized_quadratic(matrix, vector, x0).x, [3, 1, 1], rtol=1e-12)
    assert (pv_linearized_quadratic(0 * matrix, 0 * vector, x0).x == x0).all()


def test_callback_ends_the_run():
    assert pv_linearized_quadratic(*quadratic(0), callback=lambda progress: progress.n_iter == 2).n_iter == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_inputs_are_not_written(dtype):
    arrays = [a.astype(dtype) for a in quadratic(3)]
    for array in arrays:
        array.setflags(write=False)
    for solve in (pv_exact_quadratic, pv_linearized_quadratic):
        assert solve(*arrays).x.dtype == dtype
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 8)).astype(dtype)
    weight.setflags(write=False)
    start = kmeans_init(weight, group=2, codebook_size=3, n_codebooks=2, rng=rng)
    for array in (start.codes, start.codebooks, start.scales):
        array.setflags(write=False)
    assert nearest_codes(weight, start, beam_size=2).shape == (3, 4, 2)
    for options in ({}, {"delta_decay": 0.5, "temperature": 1.0, "max_code_change": 0.5}):
        optimizer = PVOptimizer(learning_rate_codes=0.5, trust_ratio=1.0, **options)
        params, state = optimizer.step(start, weight, optimizer.init(start), rng=rng)
        leaves = [params.codebooks, params.scales, params.dequantize(), state.weight]
        leaves += [*state.first.values(), *state.second.values()]
        assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}


@given(seed=st.integers(0, 99), m=st.integers(1, 3), beam=st.integers(1, 5))
def test_search_never_makes_a_group_worse(seed, m, beam):
    start, rng = quantized(seed, m=m)
    target = rng.standard_normal((4, 12))
    found = nearest_codes(target, start, beam_size=beam, rng=rng)
    after = additive_dequantize(found, start.codebooks, start.scales)
    before, after = (np.square(w - target).reshape(4, 6, 2).sum(axis=2) for w in (start.dequantize(), after))
    assert (after <= before + 1e-12).all()
    assert ((found != start.codes).any(axis=2) == (after < before - 1e-12)).all()


@given(seed=st.integers(0, 99), m=st.integers(1, 3))
def test_weights_that_the_codes_give_keep_their_codes(seed, m):
    start, _ = quantized(seed, m=m)
    assert (nearest_codes(start.dequantize(), start, beam_size=3) == start.codes).all()


def test_ties_keep_the_old_code_or_take_the_lowest():
    start = AdditiveQuantized(np.array([[[2], [1]]]), np.array([[[1.0], [-1.0], [1.0]]]), np.ones(1))
    weight = np.array([[1.0, 0.0]])
    assert nearest_codes(weight, start).ravel().tolist() == [2, 1]
    assert nearest_codes(weight, start, keep_ties=False).ravel().tolist() == [0, 0]


def test_distances_far_from_the_origin_are_exact_enough():
    codebooks = 1e6 + np.array([[[0.0], [1e-3], [2e-3]]])
    start = AdditiveQuantized(np.zeros((1, 3, 1), int), codebooks, np.ones(1))
    assert nearest_codes(codebooks.reshape(1, 3), start, keep_ties=False).ravel().tolist() == [0, 1, 2]


def test_kmeans_recovers_clusters_and_skips_rows_of_zeros():
    book = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    codes = np.random.default_rng(0).integers(3, size=(5, 8))
    weight = (np.arange(5.0)[:, None, None] * book[codes]).reshape(5, 16)
    start = kmeans_init(weight, group=2, codebook_size=4, rng=np.random.default_rng(0))
    np.testing.assert_allclose(start.scales, np.arange(5), rtol=1e-15)
    np.testing.assert_allclose(start.dequantize(), weight, atol=1e-14)
    assert (nearest_codes(weight + 1, start)[0] == start.codes[0]).all()


def test_further_codebooks_reduce_the_error():
    weight = np.random.default_rng(0).standard_normal((8, 32))
    errors = [
        np.square(
            kmeans_init(weight, group=4, codebook_size=8, n_codebooks=m, rng=np.random.default_rng(1)).dequantize()
            - weight
        ).mean()
        for m in (1, 2, 3)
    ]
    assert errors[0] > 1.3 * errors[1] > 1.5 * errors[2]


@given(
    seed=st.integers(0, 99), share=st.floats(0.01, 1), trust=st.floats(0.01, 2), temperature=st.sampled_from([0.0, 0.5])
)
def test_changes_stay_within_both_limits(seed, share, trust, temperature):
    start, rng = quantized(seed)
    optimizer = PVOptimizer(1e-3, 3.0, share, trust, temperature=temperature)
    after, state = optimizer.step(start, rng.standard_normal((4, 12)), optimizer.init(start), rng=rng)
    assert state.changed == (after.codes != start.codes).any(axis=2).sum() <= max(1, share * 24)
    before = additive_dequantize(start.codes, after.codebooks, after.scales)
    if state.changed > 1:
        assert np.linalg.norm(after.dequantize() - before) <= trust * np.linalg.norm(before) * (1 + 1e-12)


def test_first_step_moves_values_by_the_rate_against_the_gradient():
    start, rng = quantized(0)
    grads = rng.standard_normal((4, 12))
    dcodebooks, dscales = additive_dequantize_vjp(start.codes, start.codebooks, start.scales)[1](grads)
    after, state = continuous_only_step(start, grads, PVOptimizer().init(start), learning_rate_values=0.01)
    np.testing.assert_allclose(after.codebooks - start.codebooks, -0.01 * np.sign(dcodebooks), rtol=1e-5)
    np.testing.assert_allclose(after.scales - start.scales, -0.01 * np.sign(dscales), rtol=1e-5)
    assert (after.codes == start.codes).all()
    assert state.n_steps == 1


def test_unused_codewords_stay():
    start = AdditiveQuantized(np.zeros((2, 3, 1), int), np.arange(6.0).reshape(1, 3, 2), np.ones(2))
    after, _ = continuous_only_step(start, np.ones((2, 6)), PVOptimizer().init(start))
    assert (after.codebooks[0, 1:] == start.codebooks[0, 1:]).all()
    assert (after.codebooks[0, 0] < start.codebooks[0, 0]).all()


def test_small_steps_change_codes_only_if_they_are_remembered():
    start = AdditiveQuantized(np.zeros((1, 2, 1), int), np.array([[[1.0], [-1.0]]]), np.ones(1))
    grads = np.array([[1.0, -1.0]])
    changed = {}
    for decay in (0.0, 0.5, 1.0):
        optimizer = PVOptimizer(1e-9, 0.3, 1.0, np.inf, delta_decay=decay)
        params, state = start, optimizer.init(start)
        for _ in range(8):
            params, state = optimizer.step(params, grads, state)
        changed[decay] = params.codes.ravel().tolist()
    # A buffer that halves its distance each step goes no farther than 0.6 from the codeword.
    assert changed == {0.0: [1, 0], 0.5: [0, 0], 1.0: [0, 0]}


def test_straight_through_is_the_optimizer_without_limits():
    start, rng = quantized(1)
    optimizer = PVOptimizer(0.01, 0.2, 1.0, np.inf, delta_decay=0.0)
    one = two = (start, optimizer.init(start))
    for _ in range(5):
        grads = rng.standard_normal((4, 12))
        one = optimizer.step(one[0], grads, one[1])
        two = ste_step(two[0], grads, two[1], learning_rate_values=0.01, learning_rate_codes=0.2)
    assert (one[0].dequantize() == two[0].dequantize()).all()
    assert (one[0].codes != start.codes).any()


def test_temperature_draws_in_proportion_to_the_step():
    # Four groups whose steps are in the ratio 1 : 2 : 3 : 4; one may change. The first averages equal the gradient.
    start = AdditiveQuantized(np.zeros((1, 4, 1), int), np.array([[[0.0], [-1.0]]]), np.ones(1))
    optimizer = PVOptimizer(1e-9, 1.0, 0.25, np.inf, temperature=1.0, delta_decay=0.0)
    state = optimizer.init(start)
    buffer = -np.array([[1.0, 2.0, 3.0, 4.0]])
    state = type(state)(buffer, state.first, state.second)
    rng = np.random.default_rng(0)
    counts = np.zeros(4)
    for _ in range(600):
        counts += optimizer.step(start, np.zeros((1, 4)), state, rng=rng)[0].codes[0, :, 0]
    # Five standard deviations of 600 draws are 0.1 at most.
    np.testing.assert_allclose(counts / 600, [0.1, 0.2, 0.3, 0.4], atol=0.1)
    assert counts.sum() == 600


START = quantized(0)[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: partition(np.zeros((2, 2))), ValueError, "x: expected 1 dimensions, got shape (2, 2)"),
        (lambda: values(np.zeros(0)), ValueError, "x: expected at least one entry along axes (0,), got shape (0,)"),
        (
            lambda: pv_exact_quadratic(np.eye(17), np.zeros(17), np.arange(17) % 2 + 0.0),
            ValueError,
            "x0: expected c values for d coordinates with c ** d <= 65536, got c = 2, d = 17",
        ),
        (
            lambda: pv_linearized_quadratic(np.array([[1.0, 1.0], [0.0, 1.0]]), np.zeros(2), np.ones(2)),
            ValueError,
            "matrix: expected a symmetric matrix, got a difference of 1",
        ),
        (
            lambda: pv_linearized_quadratic(np.eye(2), np.zeros(2), np.ones(2), subspace=3),
            ValueError,
            "subspace: expected an integer >= 1 and <= 2, got 3",
        ),
        (
            lambda: AdditiveQuantized(np.zeros((1, 1, 1), int), np.zeros((1, 1, 2)), np.ones(1)),
            ValueError,
            "codebooks: expected at least 2 codewords, got shape (1, 1, 2)",
        ),
        (
            lambda: AdditiveQuantized(np.full((1, 1, 1), 2), np.zeros((1, 2, 2)), np.ones(1)),
            ValueError,
            "codes: expected values of at most 1, got 2",
        ),
        (
            lambda: kmeans_init(np.ones((2, 5)), group=2, codebook_size=2, rng=np.random.default_rng(0)),
            ValueError,
            "group: expected a divisor of the row's length 5, got 2",
        ),
        (
            lambda: kmeans_init(np.ones((2, 4)), group=2, codebook_size=1, rng=np.random.default_rng(0)),
            ValueError,
            "codebook_size: expected an integer >= 2, got 1",
        ),
        (lambda: nearest_codes(np.ones((4, 11)), START), ValueError, "weight: expected shape (4, 12), got (4, 11)"),
        (lambda: PVOptimizer(max_code_change=0), ValueError, "max_code_change: expected a number in (0.0, 1.0], got 0"),
        (lambda: PVOptimizer(trust_ratio=0), ValueError, "trust_ratio: expected a number in (0.0, inf], got 0"),
        (
            lambda: PVOptimizer(temperature=1.0).step(START, np.ones((4, 12)), PVOptimizer().init(START)),
            TypeError,
            "rng: expected a numpy.random.Generator (numpy.random.default_rng(seed)), got NoneType",
        ),
        (
            lambda: PVOptimizer().step(START, np.ones((4, 12), np.float32), PVOptimizer().init(START)),
            TypeError,
            "grads: expected dtype float64 like codebooks, got float32",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
