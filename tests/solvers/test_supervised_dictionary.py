import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    Diverged,
    multinomial_loss,
    multinomial_loss_vjp,
    rank_projection,
    sdl_bcd,
    sdl_encode,
    sdl_encode_vjp,
    sdl_factorize,
    sdl_lift,
    sdl_lpgd,
    sdl_objective,
    sdl_objective_vjp,
    sdl_predict_proba,
)

RNG = np.random.default_rng(4)
MODES = ("filter", "feature")


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def factors(p=4, n=5, k=2, r=3, q=2):
    x, dictionary, code, weight, covariates, gamma = normal((p, n), (p, r), (r, n), (r, k), (q, n), (q, k))
    target = np.eye(k + 1)[1:, RNG.integers(k + 1, size=n)]
    return x, target, covariates, dictionary, code, weight, gamma


def without_covariates(args):
    return (*args[:2], None, *args[3:6], None)


GRADIENT_CASES = [
    GradientCase(multinomial_loss_vjp, normal((3, 4), (3, 4)), method="complex"),
    GradientCase(multinomial_loss_vjp, (np.array([[12.0, -12.0]]), np.array([[1.0, 0.0]])), method="complex", name="certain"),
    *(
        GradientCase(sdl_objective_vjp, args, {"mode": mode, "ridge": 0.4, "reconstruction": 0.7}, method="complex")
        for mode in MODES
        for args in (factors(), without_covariates(factors()))
    ),
    GradientCase(sdl_objective_vjp, factors(1, 1, 1, 1, 1), {"reconstruction": 0.0}, method="complex"),
    GradientCase(sdl_encode_vjp, normal((6, 3), (6, 4))),
    GradientCase(sdl_encode_vjp, normal((6, 3), (6, 5)), {"nonnegative": True}, step=1e-4),
    GradientCase(sdl_encode_vjp, normal((1, 1), (1, 1))),
    GradientCase(
        sdl_encode_vjp, (np.abs(RNG.standard_normal((5, 2))), -np.ones((5, 2))), {"nonnegative": True}, step=1e-4, name="no atom used"
    ),
]  # fmt: skip


def data(seed=0, p=6, n=40, classes=2):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((p, 3)) @ rng.standard_normal((3, n)) + 0.1 * rng.standard_normal((p, n))
    labels = np.digitize(x[0] + 0.3 * rng.standard_normal(n), np.quantile(x[0], np.arange(1, classes) / classes))
    return x / np.linalg.norm(x, 2), labels


def one_hot(labels):
    return np.eye(labels.max() + 1)[1:, labels]


def objective(result, x, labels, covariates=None, **options):
    return float(
        sdl_objective(
            x, one_hot(labels), covariates, result.dictionary, result.code, result.weight, result.gamma,
            mode=result.mode, **options,
        )
    )  # fmt: skip


def test_one_step_by_hand():
    # From A = B = 0: P = 1/2, so the slopes are -1/2 and -2, and the step is 0.1.
    result = sdl_lpgd(
        np.array([[1.0, 0.0]]), np.array([1, 0]), rank=1, ridge=0.0, step_size=0.1, max_iter=1,
        rng=np.random.default_rng(0), init_scale=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(result.x, [[0.05, 0.2, 0.0]], rtol=1e-14)


@given(seed=st.integers(0, 99), k=st.integers(1, 4))
def test_loss_is_the_log_probability_of_the_labels(seed, k):
    rng = np.random.default_rng(seed)
    activation, labels = 3 * rng.standard_normal((k, 6)), rng.integers(k + 1, size=6)
    logits = np.vstack([np.zeros(6), activation])
    probability = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = -np.log(probability[labels, np.arange(6)]).sum()
    np.testing.assert_allclose(multinomial_loss(activation, np.eye(k + 1)[1:, labels]), expected, rtol=1e-12)


def test_large_activations_do_not_overflow():
    assert multinomial_loss(np.array([[1e4]]), np.array([[1.0]])) == 0
    assert multinomial_loss(np.array([[1e4]]), np.array([[0.0]])) == 1e4
    assert multinomial_loss(np.array([[-1e4]]), np.array([[0.0]])) == 0


@given(seed=st.integers(0, 99), rank=st.integers(1, 5))
def test_rank_projection_is_the_nearest(seed, rank):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((4, 6))
    found = rank_projection(matrix, rank)
    assert np.linalg.matrix_rank(found) == min(rank, 4)
    rival = rng.standard_normal((4, rank)) @ rng.standard_normal((rank, 6))
    assert np.linalg.norm(matrix - found) <= np.linalg.norm(matrix - rival) + 1e-12
    np.testing.assert_allclose(rank_projection(found, rank), found, atol=1e-12)


@given(seed=st.integers(0, 99), mode=st.sampled_from(MODES), rank=st.integers(1, 6), k=st.integers(1, 3))
def test_lifting_undoes_factorizing(seed, mode, rank, k):
    rng = np.random.default_rng(seed)
    shape = (5, k + 7) if mode == "filter" else (k + 5, 7)
    lifted = rank_projection(rng.standard_normal(shape), rank)
    dictionary, code, weight = sdl_factorize(lifted, k + 1, rank, mode=mode)
    assert (dictionary.shape, code.shape, weight.shape) == ((5, rank), (rank, 7), (rank, k))
    np.testing.assert_allclose(sdl_lift(dictionary, code, weight, mode=mode), lifted, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(dictionary), 1, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [2, 3])
def test_history_is_the_objective_and_falls(mode, classes):
    x, labels = data(1, classes=classes)
    covariates = np.vstack([np.ones(40), np.random.default_rng(0).standard_normal(40)])
    options = {"ridge": 0.1, "reconstruction": 0.5}
    result = sdl_lpgd(x, labels, rank=8, mode=mode, covariates=covariates, max_iter=60, **options)
    history = result.history["objective"]
    np.testing.assert_allclose(objective(result, x, labels, covariates, **options), history[-1], rtol=1e-9)
    # With a rank that cuts nothing off it is plain gradient descent.
    assert (np.diff(history) <= 1e-12).all()


@pytest.mark.parametrize("mode", MODES)
def test_starts_do_not_matter_when_the_problem_is_well_conditioned(mode):
    x, labels = data(2)
    options = {"rank": 2, "reconstruction": 0.5, "ridge": 1.0, "mode": mode, "tol": 0.0, "max_iter": 120}
    ends = [sdl_lpgd(x, labels, rng=np.random.default_rng(s), init_scale=0.5, **options).x for s in range(3)]
    ends.append(sdl_lpgd(x, labels, **options).x)
    assert max(np.abs(end - ends[0]).max() for end in ends) < 1e-10


def test_full_rank_without_reconstruction_is_logistic_regression():
    x, labels = data(3, p=4)
    result = sdl_lpgd(20 * x, labels, rank=9, reconstruction=0.0, ridge=0.5, tol=1e-13, max_iter=20_000)
    peer = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(20 * x.T, labels)
    np.testing.assert_allclose(result.x[:, 0], peer.coef_[0], rtol=1e-5, atol=1e-7)


def test_large_reconstruction_is_the_truncated_svd():
    x, labels = data(4)
    result = sdl_lpgd(x, labels, rank=2, reconstruction=1e8, ridge=0.0, max_iter=50)
    np.testing.assert_allclose(result.dictionary @ result.code, rank_projection(x, 2), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_block_descent_reaches_the_same_loss(mode):
    x, labels = data(5)
    options = {"rank": 2, "reconstruction": 0.5, "ridge": 1.0, "mode": mode}
    convex = sdl_lpgd(x, labels, tol=0.0, max_iter=200, **options).history["objective"][-1]
    result = sdl_bcd(x, labels, tol=1e-12, max_iter=150, rng=np.random.default_rng(0), init_scale=0.3, **options)
    history = result.history["objective"]
    np.testing.assert_allclose(history[-1], convex, rtol=1e-6)
    assert history[-1] >= convex - 1e-9
    np.testing.assert_allclose(objective(result, x, labels, reconstruction=0.5, ridge=1.0), history[-1], rtol=1e-12)
    np.testing.assert_allclose(sdl_lift(result.dictionary, result.code, result.weight, mode=mode), result.x, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_nonnegative_factors(mode):
    x, labels = data(6)
    result = sdl_bcd(np.abs(x), labels, rank=3, nonnegative=True, mode=mode, max_iter=10)
    assert (result.dictionary >= 0).all()
    assert (result.code >= 0).all()


def test_small_radius_slows_block_descent():
    x, labels = data(6)
    slow, fast = (sdl_bcd(x, labels, rank=2, radius=r, max_iter=3, tol=0.0).history["objective"] for r in (1e-3, 1.0))
    assert slow[-1] > fast[-1]


def test_constraints_are_kept_before_the_rank_is_cut():
    x, labels = data(7)
    seen = []

    def project(lifted, gamma):
        seen.append(gamma)
        return np.clip(lifted, -0.05, 0.05), gamma

    result = sdl_lpgd(x, labels, rank=40, project=project, max_iter=5, tol=0.0)
    assert np.abs(result.x).max() <= 0.05 + 1e-15
    assert set(seen) == {None}


def test_too_long_a_step_is_reported():
    x, labels = data(8)
    with pytest.raises(Diverged, match="use a smaller step_size"):
        sdl_lpgd(x, labels, rank=2, step_size=10.0)


@pytest.mark.parametrize("mode", MODES)
def test_probabilities_sum_to_one_and_predict_the_labels(mode):
    x, labels = data(9, classes=3)
    ones = np.ones((1, 40))
    result = sdl_lpgd(20 * x, labels, rank=3, mode=mode, covariates=ones, ridge=1e-3, reconstruction=1.0, max_iter=800)
    probability = sdl_predict_proba(result, 20 * x, ones)
    assert probability.shape == (3, 40)
    np.testing.assert_allclose(probability.sum(axis=0), 1, rtol=1e-12)
    assert (probability.argmax(axis=0) == labels).mean() > 0.6


@given(seed=st.integers(0, 99))
def test_nonnegative_code_is_optimal(seed):
    rng = np.random.default_rng(seed)
    dictionary, x = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    code = sdl_encode(dictionary, x, nonnegative=True)
    slope = dictionary.T @ (dictionary @ code - x)
    assert (code >= 0).all()
    np.testing.assert_allclose(slope[code > 0], 0, atol=1e-10)
    assert (slope[code == 0] >= -1e-10).all()


def test_dependent_atoms_give_the_smallest_code_and_no_derivative():
    dictionary = np.array([[1.0, 1.0], [0.0, 0.0]])
    code, pullback = sdl_encode_vjp(dictionary, np.array([[2.0], [3.0]]))
    np.testing.assert_allclose(code, [[1.0], [1.0]])
    with pytest.raises(ValueError, match="dictionary: expected linearly independent atoms, got 2 dependent"):
        pullback(code)


def test_callback_ends_the_run():
    x, labels = data(0)
    for solve in (sdl_lpgd, sdl_bcd):
        assert solve(x, labels, rank=2, callback=lambda progress: progress.n_iter == 2).n_iter == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", MODES)
def test_dtype_in_is_dtype_out(mode, dtype):
    x, labels = data(0)
    x, ones = x.astype(dtype), np.ones((1, 40), dtype)
    arrays = []
    for solve in (sdl_lpgd, sdl_bcd):
        result = solve(x, labels, rank=2, mode=mode, covariates=ones, max_iter=2)
        arrays += [result.dictionary, result.code, result.weight, result.gamma, result.x]
    arrays.append(sdl_predict_proba(result, x, ones))
    args = (x, one_hot(labels).astype(dtype), ones, *arrays[:4])
    value, pullback = sdl_objective_vjp(*args, mode=mode)
    code, code_pullback = sdl_encode_vjp(result.dictionary, x)
    arrays += [value, *pullback(np.array(1, dtype)), code, *code_pullback(code), rank_projection(x, 2)]
    arrays += sdl_factorize(result.x, 2, 2, mode=mode)
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    x, labels = data(0)
    args = factors()
    for array in (x, labels, *args):
        array.setflags(write=False)
    for solve in (sdl_lpgd, sdl_bcd):
        solve(x, labels, rank=40, max_iter=2, nonnegative=True) if solve is sdl_bcd else solve(x, labels, rank=40)
    sdl_objective_vjp(*args)[1](np.array(1.0))
    sdl_encode_vjp(args[3], args[0])[1](args[4])


X, L = np.ones((2, 3)), np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sdl_lpgd(X, np.array([0, 2, 2]), rank=1), ValueError, "labels: expected every class from 0 to the largest"),
        (lambda: sdl_lpgd(X, np.array([0, 0, 0]), rank=1), ValueError, "labels: expected every class from 0 to the largest"),
        (lambda: sdl_lpgd(X, L - 1, rank=1), ValueError, "labels: expected values of at least 0, got -1"),
        (lambda: sdl_lpgd(X, L * 1.0, rank=1), TypeError, "labels: expected an integer array, got dtype float64"),
        (lambda: sdl_lpgd(X, L[:2], rank=1), ValueError, r"labels: expected shape \(3,\), got \(2,\)"),
        (lambda: sdl_lpgd(X, L, rank=0), ValueError, "rank: expected an integer >= 1, got 0"),
        (lambda: sdl_lpgd(X, L, rank=1, reconstruction=-1.0), ValueError, "reconstruction: expected a finite number >= 0"),
        (lambda: sdl_lpgd(X * np.nan, L, rank=1), ValueError, "x: expected finite values, got 6 that are not"),
        (lambda: sdl_lpgd(X, L, rank=1, mode="other"), ValueError, "mode: expected one of 'filter', 'feature', got 'other'"),
        (lambda: sdl_lpgd(X, L, rank=1, covariates=np.ones((1, 2))), ValueError, r"covariates: expected shape \(1, 3\)"),
        (lambda: sdl_lpgd(X, L, rank=1, step_size=0.0), ValueError, "step_size: expected a finite number > 0, got 0.0"),
        (lambda: sdl_lpgd(X, L, rank=1, rng=7), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: sdl_bcd(X, L, rank=1, radius=0.0), ValueError, "radius: expected a finite number > 0, got 0.0"),
        (lambda: sdl_predict_proba(sdl_lpgd(X, L, rank=1), np.ones((3, 1))), ValueError, r"x: expected shape \(2, 1\), got \(3, 1\)"),
        (lambda: sdl_predict_proba(sdl_lpgd(X, L, rank=1), X, X), ValueError, "covariates: expected an array if and only if"),
        (lambda: sdl_factorize(X, 4, 1), ValueError, r"lifted: expected more than 3 columns, got shape \(2, 3\)"),
        (lambda: sdl_lift(X, X, X), ValueError, r"code: expected shape \(3, 3\), got \(2, 3\)"),
        (lambda: sdl_objective(*factors()[:6], None), ValueError, "gamma: expected an array if and only if covariates are given"),
        (lambda: sdl_encode(X, np.ones((3, 1))), ValueError, r"x: expected shape \(2, 1\), got \(3, 1\)"),
        (lambda: multinomial_loss(X, X[:1]), ValueError, r"target: expected shape \(2, 3\), got \(1, 3\)"),
        (lambda: rank_projection(X, 0), ValueError, "rank: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
