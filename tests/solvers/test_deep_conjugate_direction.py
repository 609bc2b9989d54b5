import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    AdamP,
    conjugate_direction,
    dcdm_loss,
    dcdm_loss_vjp,
    direction_net,
    direction_net_vjp,
    init_direction_net,
    lanczos_ritz,
    poisson_2d,
    ritz_training_set,
    train_linear_proposal,
    train_proposal,
)
from refnorm.tree import tree_leaves

RNG = np.random.default_rng(31)
POISSON = poisson_2d(5, 4)


def net(dtype=np.float64, channels=3):
    return init_direction_net(np.random.default_rng(2), channels=channels, dtype=dtype)


def positive(n, seed):
    root = np.random.default_rng(seed).standard_normal((n, n))
    return root @ root.T + 0.1 * np.eye(n)


def loss_case(f, r):
    return dcdm_loss_vjp(f, r, POISSON)


GRADIENT_CASES = [
    GradientCase(dcdm_loss_vjp, tuple(RNG.standard_normal((2, 3, 20))), call=loss_case, method="complex", name="batch"),
    GradientCase(dcdm_loss_vjp, tuple(RNG.standard_normal((2, 20))), call=loss_case, method="complex", name="one row"),
    GradientCase(
        dcdm_loss_vjp,
        (np.array([[4.0, 1.0], [1.0, -1.0]]), np.array([[1.0, 4.0], [1.0, 1.0]])),
        call=lambda f, r: dcdm_loss_vjp(f, r, lambda v: v @ np.diag([1.0, 2.0])),
        method="complex",
        name="orthogonal to the residual",
    ),
    GradientCase(
        direction_net_vjp,
        (RNG.standard_normal((2, 32)), net()),
        {"shape": (8, 4)},
        step=1e-4,
        name="two residuals",
    ),
]


def test_hand_calculation():
    f = r = np.array([1.0, 1.0])
    loss, pullback = dcdm_loss_vjp(f, r, np.diag([1.0, 4.0]))
    df, dr = pullback(np.array(1.0))
    np.testing.assert_allclose(loss, 0.72, rtol=1e-14)
    np.testing.assert_allclose(df, [-0.336, 0.336], rtol=1e-13)
    # 2 e - 2 (e^T q / beta) f, with e = (0.6, -0.6) and e^T q = -1.8
    np.testing.assert_allclose(dr, [1.2 + 0.72, -1.2 + 0.72], rtol=1e-13)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_loss_ignores_the_length_of_the_proposal(seed, scale):
    f, r = np.random.default_rng(seed).standard_normal((2, 4, 20))
    loss, pullback = dcdm_loss_vjp(f, r, POISSON)
    np.testing.assert_allclose(dcdm_loss(scale * f, r, POISSON), loss, rtol=1e-10)
    np.testing.assert_allclose((pullback(np.array(1.0))[0] * f).sum(axis=1), 0, atol=1e-12)


@given(seed=st.integers(0, 999))
def test_exact_solution_has_no_loss_and_no_slope(seed):
    rng = np.random.default_rng(seed)
    matrix, r = positive(5, seed), rng.standard_normal(5)
    loss, pullback = dcdm_loss_vjp(np.linalg.solve(matrix, r), r, matrix)
    assert loss <= 1e-18 * (r @ r) * np.linalg.cond(matrix) ** 2
    np.testing.assert_allclose(pullback(np.array(1.0))[0], 0, atol=1e-9 * np.linalg.norm(matrix))


@given(seed=st.integers(0, 999))
def test_loss_is_the_squared_residual_after_the_line_search(seed):
    f, r = np.random.default_rng(seed).standard_normal((2, 20))
    result = conjugate_direction(POISSON, r, lambda _: f, max_iter=1, tol=0)
    np.testing.assert_allclose(np.sum((r - POISSON(result.x)) ** 2), dcdm_loss(f, r, POISSON), rtol=1e-10)


def test_residual_as_proposal_is_conjugate_gradients():
    b = RNG.standard_normal(20)
    matrix = scipy.sparse.linalg.LinearOperator((20, 20), matvec=POISSON, dtype=float)
    iterates = []
    scipy.sparse.linalg.cg(matrix, b, rtol=1e-14, maxiter=12, callback=lambda x: iterates.append(x.copy()))
    for n_keep in (1, 2, 5):
        for count, expected in enumerate(iterates, start=1):
            result = conjugate_direction(POISSON, b, lambda r: r, n_keep=n_keep, tol=0, max_iter=count)
            np.testing.assert_allclose(result.x, expected, atol=1e-10)


def test_exact_inverse_needs_one_iteration():
    matrix, b = positive(6, 3), RNG.standard_normal(6)
    result = conjugate_direction(lambda v: matrix @ v, b, lambda r: np.linalg.solve(matrix, r), tol=1e-10)
    assert (result.n_iter, result.converged) == (1, True)


def test_diagonal_preconditioner_is_preconditioned_conjugate_gradients():
    matrix, b = positive(12, 5) + np.diag(np.arange(12.0) ** 2), RNG.standard_normal(12)
    scale = 1 / np.diag(matrix)
    iterates = []
    scipy.sparse.linalg.cg(
        matrix, b, M=np.diag(scale), rtol=1e-14, maxiter=6, callback=lambda x: iterates.append(x.copy())
    )
    for count, expected in enumerate(iterates, start=1):
        result = conjugate_direction(lambda v: matrix @ v, b, lambda r: scale * r, n_keep=1, tol=0, max_iter=count)
        np.testing.assert_allclose(result.x, expected, atol=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), n_keep=st.integers(0, 4))
def test_energy_never_grows_for_any_directions(seed, n_keep):
    rng = np.random.default_rng(seed)
    matrix, solution = positive(8, seed), rng.standard_normal(8)
    b, directions = matrix @ solution, rng.standard_normal((8, 8))
    energy = [solution @ b]
    for count in range(1, 8):
        following = iter(directions)
        result = conjugate_direction(
            lambda v: matrix @ v, b, lambda r, it=following: next(it), n_keep=n_keep, tol=0, max_iter=count
        )
        energy.append((result.x - solution) @ matrix @ (result.x - solution))
    assert (np.diff(energy) <= 1e-10 * energy[0]).all()
    np.testing.assert_allclose(-np.diff(energy), result.history["decrease"], atol=1e-9 * energy[0])


def test_directions_that_are_kept_end_an_eight_dimensional_problem_in_eight_steps():
    matrix, b, rng = positive(8, 1), RNG.standard_normal(8), np.random.default_rng(0)
    propose = lambda r: rng.standard_normal(8)  # noqa: E731
    assert conjugate_direction(lambda v: matrix @ v, b, propose, n_keep=8, tol=1e-8, max_iter=9).n_iter == 8


@pytest.mark.parametrize(
    "useless",
    [
        lambda r: 0 * r,
        lambda r: np.full_like(r, np.nan),
        lambda r: np.ones_like(r),
    ],
)
def test_useless_proposals_are_replaced_by_the_residual(useless):
    result = conjugate_direction(POISSON, np.arange(20.0), useless, tol=1e-8)
    assert result.converged
    assert result.n_fallback > 0


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_residual_is_computed_afresh_after_so_many_iterations(every):
    calls = []

    def counted(v):
        calls.append(v)
        return POISSON(v)

    b = np.random.default_rng(4).standard_normal(20).astype(np.float32)
    result = conjugate_direction(counted, b, lambda r: r, tol=1e-6, residual_refresh=every, max_iter=100)
    assert len(calls) == 1 + result.n_iter + result.n_iter // every
    if every == 1:
        np.testing.assert_allclose(result.history["residual"][-1], np.linalg.norm(b - POISSON(result.x)), rtol=1e-6)


def test_zero_right_hand_side_and_exact_start_need_no_iteration():
    assert conjugate_direction(POISSON, np.zeros(20), lambda r: r).n_iter == 0
    x = RNG.standard_normal(20)
    assert conjugate_direction(POISSON, POISSON(x), lambda r: r, x0=x).n_iter == 0


def test_callback_stops():
    b = RNG.standard_normal(20)
    assert conjugate_direction(POISSON, b, lambda r: r, callback=lambda p: p.n_iter == 3).n_iter == 3


def test_poisson_is_the_matrix_of_two_chains():
    def chain(n):
        return scipy.sparse.diags_array([-np.ones(n - 1), 2 * np.ones(n), -np.ones(n - 1)], offsets=[-1, 0, 1])

    matrix = scipy.sparse.kron(chain(5), np.eye(4)) + scipy.sparse.kron(np.eye(5), chain(4))
    x = RNG.standard_normal((3, 20))
    np.testing.assert_allclose(POISSON(x), x @ matrix.toarray(), atol=1e-13)


def test_full_krylov_space_has_the_eigenvalues():
    matrix = positive(12, 7)
    values, vectors = lanczos_ritz(lambda v: matrix @ v, 12, 12, rng=np.random.default_rng(0))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-9)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-8)


def test_basis_stays_orthogonal_and_extremes_come_first():
    matrix = poisson_2d(16, 16)
    values, vectors = lanczos_ritz(matrix, 256, 60, rng=np.random.default_rng(0))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(60), atol=1e-13)
    largest = 4 + 4 * np.cos(np.pi / 17)
    np.testing.assert_allclose(values[-1], largest, rtol=1e-6)
    assert (np.diff(values) > 0).all()


def test_complete_space_ends_early_and_null_vectors_are_dropped():
    values, vectors = lanczos_ritz(lambda v: v * np.repeat([1.0, 2.0], 4), 8, 6, rng=np.random.default_rng(0))
    np.testing.assert_allclose(values, [1, 2], rtol=1e-10)
    assert vectors.shape == (8, 2)
    singular = np.diag([0.0, 1.0, 2.0])
    values, _ = lanczos_ritz(lambda v: singular @ v, 3, 3, rng=np.random.default_rng(0))
    assert (values > 1e-8).all()


def test_training_residuals_have_unit_length_and_more_of_the_low_frequencies():
    samples = ritz_training_set(np.eye(40), 500, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(samples, axis=1), 1, rtol=1e-14)
    size = np.sqrt((samples**2).mean(axis=0))
    ratio = size[:22].mean() / size[22:].mean()
    assert 8 < ratio < 10


def test_linear_proposal_learns_the_inverse():
    matrix = poisson_2d(2, 3)
    samples = RNG.standard_normal((200, 6))
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    trained = train_linear_proposal(samples, matrix, rng=np.random.default_rng(0), n_iter=1500)
    assert trained.history["loss"][-50:].mean() < 0.01 * trained.history["loss"][0]
    b = np.arange(6.0)
    learned = conjugate_direction(matrix, b, lambda r: trained.params @ r, tol=1e-4)
    plain = conjugate_direction(matrix, b, lambda r: r, tol=1e-4)
    assert learned.n_iter < plain.n_iter


def test_training_a_network_lowers_its_loss():
    matrix = poisson_2d(8, 8)
    _, vectors = lanczos_ritz(matrix, 64, 30, rng=np.random.default_rng(0))
    samples = ritz_training_set(vectors, 40, rng=np.random.default_rng(1))

    def model_vjp(params, r):
        f, pullback = direction_net_vjp(r, params, shape=(8, 8))
        return f, lambda df: (pullback(df)[1],)

    faster = AdamP(learning_rate=3e-3, delta=5e-324)
    trained = train_proposal(
        model_vjp, net(), samples, matrix, rng=np.random.default_rng(2), n_iter=200, optimizer=faster
    )
    assert trained.history["loss"][-20:].mean() < 0.8 * trained.history["loss"][:20].mean()
    stopped = train_proposal(
        model_vjp, net(), samples, matrix, rng=np.random.default_rng(2), n_iter=60, callback=lambda p: p.n_iter == 2
    )
    assert stopped.n_iter == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    f, r = RNG.standard_normal((2, 3, 32)).astype(dtype)
    loss, pullback = dcdm_loss_vjp(f, r, poisson_2d(8, 4))
    assert {loss.dtype, *(entry.dtype for entry in pullback(loss))} == {np.dtype(dtype)}
    y, pullback = direction_net_vjp(r, net(dtype), shape=(8, 4))
    dr, dparams = pullback(y)
    assert {y.dtype, dr.dtype, *(leaf.dtype for _, leaf in tree_leaves(dparams))} == {np.dtype(dtype)}
    low = net(np.float32)
    result = conjugate_direction(
        poisson_2d(8, 4), r[0], lambda v: direction_net(v.astype("f4"), low, shape=(8, 4)), max_iter=3
    )
    assert result.x.dtype == dtype


def test_arguments_are_not_written_to():
    params, r, b = net(), RNG.standard_normal((2, 32)), np.ones(20)
    for array in (r, b, *(leaf for _, leaf in tree_leaves(params))):
        array.setflags(write=False)
    y, pullback = direction_net_vjp(r, params, shape=(8, 4))
    pullback(y)
    conjugate_direction(POISSON, b, lambda v: v, x0=b)


B = np.ones(20)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conjugate_direction(POISSON, np.ones((2, 2)), lambda r: r), ValueError, r"b: expected 1 dimensions, got shape \(2, 2\)"),
        (lambda: conjugate_direction(lambda v: -v, B, lambda r: r), ValueError, "matvec: expected a positive definite matrix, got r.T A r = -20"),
        (lambda: conjugate_direction(POISSON, B, lambda r: r[:3]), ValueError, r"propose: expected shape \(20,\), got \(3,\)"),
        (lambda: conjugate_direction(POISSON, B, lambda r: r, n_keep=-1), ValueError, "n_keep: expected an integer >= 0, got -1"),
        (lambda: conjugate_direction(POISSON, B, lambda r: r, tol=-1.0), ValueError, "tol: expected a finite number >= 0, got -1.0"),
        (lambda: conjugate_direction(POISSON, B, lambda r: r, x0=np.ones(3)), ValueError, r"x0: expected shape \(20,\), got \(3,\)"),
        (lambda: dcdm_loss(B, B[:3], POISSON), ValueError, r"r: expected shape \(20,\), got \(3,\)"),
        (lambda: dcdm_loss(0 * B, B, POISSON), ValueError, r"f: expected rows with f\^T A f > 0, got 0.0"),
        (lambda: dcdm_loss(B, B.astype("f4"), POISSON), TypeError, "r: expected dtype float64 like f, got float32"),
        (lambda: poisson_2d(0, 3), ValueError, "nx: expected an integer >= 1, got 0"),
        (lambda: POISSON(np.ones(3)), ValueError, r"v: expected shape \(..., 20\), got \(3,\)"),
        (lambda: lanczos_ritz(POISSON, 20, 21, rng=RNG), ValueError, "m: expected an integer >= 1 and <= 20, got 21"),
        (lambda: ritz_training_set(np.eye(3), 2, boost=0.0, rng=RNG), ValueError, "boost: expected a finite number > 0, got 0.0"),
        (lambda: ritz_training_set(np.eye(3), 2, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: train_linear_proposal(np.ones((3, 20)), POISSON, rng=RNG, batch_size=4), ValueError, "batch_size: expected an integer >= 1 and <= 3, got 4"),
        (lambda: direction_net(np.ones((2, 36)), net(), shape=(6, 6)), ValueError, r"shape: expected sides divisible by 4, got \(6, 6\)"),
        (lambda: direction_net(np.ones((2, 30)), net(), shape=(8, 4)), ValueError, r"r: expected shape \(2, 32\), got \(2, 30\)"),
        (lambda: init_direction_net(RNG, channels=0), ValueError, "channels: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
