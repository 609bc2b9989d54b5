import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    fit_functional_tucker,
    gp_interpolate,
    kalman_smoother,
    matern_sde,
    predict_functional_tucker,
    sde_transition,
    smoothed_mean,
    smoothed_mean_vjp,
)

RNG = np.random.default_rng(6)


def covariances(rng, steps, r):
    root = rng.standard_normal((steps, r, r))
    return root @ root.swapaxes(1, 2) + 0.1 * np.eye(r)


def gradient_case(steps, r, smoothness, name=""):
    times = np.sort(RNG.random(steps))
    options = {"times": times, "noise": covariances(RNG, steps, r), "sde": matern_sde(smoothness, 0.3, 2.0)}
    return GradientCase(smoothed_mean_vjp, (RNG.standard_normal((steps, r)),), options, name=name)


GRADIENT_CASES = [
    gradient_case(6, 1, 0.5),
    gradient_case(6, 1, 1.5),
    gradient_case(5, 3, 1.5, "three processes"),
    gradient_case(1, 2, 0.5, "one time"),
]


def matern(smoothness, length_scale, variance, a, b):
    return variance * Matern(length_scale, nu=smoothness)(a[:, None], b[:, None])


def dense_posterior(times, y, noise, sde, at):
    """Gaussian-process regression of R independent processes, with one big matrix."""
    r = y.shape[1]
    prior = (sde.smoothness, sde.length_scale, sde.variance)
    own = np.kron(matern(*prior, times, times), np.eye(r))
    observed = own.copy()
    for j, block in enumerate(noise):
        observed[j * r : (j + 1) * r, j * r : (j + 1) * r] += block
    cross = np.kron(matern(*prior, at, times), np.eye(r))
    gain = np.linalg.solve(observed, cross.T).T
    covariance = np.kron(matern(*prior, at, at), np.eye(r)) - gain @ cross.T
    blocks = covariance.reshape(len(at), r, len(at), r)[np.arange(len(at)), :, np.arange(len(at))]
    return (gain @ y.ravel()).reshape(len(at), r), blocks


@pytest.mark.parametrize("smoothness", [0.5, 1.5])
@pytest.mark.parametrize("r", [1, 2])
def test_smoother_is_dense_gaussian_process_regression(smoothness, r):
    times, y, noise = np.sort(RNG.random(40)), RNG.standard_normal((40, r)), covariances(RNG, 40, r)
    sde = matern_sde(smoothness, 0.2, 1.7)
    result = kalman_smoother(times, y, noise, sde)
    mean, covariance = dense_posterior(times, y, noise, sde, times)
    np.testing.assert_allclose(result.mean, mean, atol=1e-10)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-10)


@pytest.mark.parametrize("smoothness", [0.5, 1.5])
def test_interpolation_is_dense_regression_before_between_on_and_after_the_times(smoothness):
    times, y, noise = np.sort(RNG.random(15)), RNG.standard_normal((15, 2)), covariances(RNG, 15, 2)
    sde = matern_sde(smoothness, 0.3, 0.8)
    at = np.concatenate([[-0.4, -1e-3], RNG.random(20), times[[0, 7, 14]], [1.1, 3.0]])
    found = gp_interpolate(kalman_smoother(times, y, noise, sde), at)
    for got, expected in zip(found, dense_posterior(times, y, noise, sde, at), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_smoother_agrees_with_scikit_learn():
    times, y = np.sort(RNG.random(20)), RNG.standard_normal(20)
    peer = GaussianProcessRegressor(Matern(0.2, nu=1.5), alpha=0.25, optimizer=None).fit(times[:, None], y)
    mean, deviation = peer.predict(times[:, None], return_std=True)
    result = kalman_smoother(times, y[:, None], np.full((20, 1, 1), 0.25), matern_sde(1.5, 0.2))
    np.testing.assert_allclose(result.mean[:, 0], mean, atol=1e-9)
    np.testing.assert_allclose(np.sqrt(result.covariance[:, 0, 0]), deviation, atol=1e-8)


def test_two_times_by_hand():
    vague = np.array([[[1.0]], [[1e14]]])
    result = kalman_smoother(np.array([0.0, np.log(2.0)]), np.array([[1.0], [0.0]]), vague, matern_sde(0.5, 1.0))
    np.testing.assert_allclose(result.mean, [[0.5], [0.25]], rtol=1e-12)
    np.testing.assert_allclose(result.covariance.ravel(), [0.5, 0.875], rtol=1e-12)


@given(gap=st.floats(0, 5), length=st.floats(0.05, 5), variance=st.floats(0.1, 10))
def test_transition_is_the_matrix_exponential_and_keeps_the_stationary_covariance(gap, length, variance):
    rate = np.sqrt(3) / length
    drift, stationary = np.array([[0, 1], [-(rate**2), -2 * rate]]), variance * np.diag([1, rate**2])
    a, q = sde_transition(matern_sde(1.5, length, variance), np.array(gap))
    np.testing.assert_allclose(a, expm(drift * gap), rtol=1e-8, atol=1e-9 * (1 + rate**2))
    np.testing.assert_allclose(a @ stationary @ a.T + q, stationary, atol=1e-12 * variance * (1 + rate**2))


@pytest.mark.parametrize("smoothness", [0.5, 1.5])
def test_two_short_gaps_are_one_long_gap(smoothness):
    sde = matern_sde(smoothness, 0.4, 2.0)
    (a1, q1), (a2, q2), (a, q) = (sde_transition(sde, np.array(gap)) for gap in (0.1, 0.25, 0.35))
    np.testing.assert_allclose(a2 @ a1, a, rtol=1e-12)
    np.testing.assert_allclose(a2 @ q1 @ a2.T + q2, q, rtol=1e-11)


def test_noise_of_a_tiny_gap_keeps_its_digits():
    # The leading term is 4/3 variance (rate gap)^3.
    _, noise = sde_transition(matern_sde(1.5, 1.0), np.array(1e-8))
    np.testing.assert_allclose(noise[0, 0], 4 / 3 * (np.sqrt(3) * 1e-8) ** 3, rtol=1e-6)


def surface(seed, n=150, noise=0.02):
    rng = np.random.default_rng(seed)
    index = rng.random((n, 2))
    clean = np.sin(3 * index[:, 0]) * np.cos(2 * index[:, 1])
    return index, clean, clean + noise * rng.standard_normal(n)


def test_fit_recovers_a_smooth_surface_with_honest_intervals():
    index, clean, y = surface(0)
    result = fit_functional_tucker(
        index[:120], y[:120], ranks=(1, 1), length_scales=0.5, max_iter=50, rng=np.random.default_rng(0)
    )
    mean, variance = predict_functional_tucker(result, index[120:])
    assert np.sqrt(np.mean((mean - clean[120:]) ** 2)) < 0.02
    assert np.mean(np.abs(mean - y[120:]) < 2 * np.sqrt(variance)) > 0.85
    assert len(result.history["change"]) == result.n_iter
    assert result.history["residual"][-1] < result.history["residual"][0]


def test_mean_at_known_entries_is_the_core_times_the_factors():
    index, _, y = surface(1, 60)
    result = fit_functional_tucker(index, y, ranks=(2, 3), max_iter=3, rng=np.random.default_rng(0))
    mean, _ = predict_functional_tucker(result, index)
    rows = [np.searchsorted(f.times, index[:, k]) for k, f in enumerate(result.factors)]
    u, v = (f.mean[row] for f, row in zip(result.factors, rows, strict=True))
    np.testing.assert_allclose(mean, np.einsum("na,nb,ab->n", u, v, result.core_mean), atol=1e-10)


@pytest.mark.parametrize("core_covariance", [False, True])
def test_three_modes_with_repeated_indices(core_covariance):
    rng = np.random.default_rng(2)
    index = rng.integers(6, size=(200, 3)) / 5
    target = 3 * (index[:, 0] - index[:, 1] * index[:, 2])
    result = fit_functional_tucker(
        index,
        target,
        ranks=(2, 2, 3),
        length_scales=(0.5, 0.6, 0.7),
        core_covariance=core_covariance,
        max_iter=40,
        rng=rng,
    )
    assert [f.mean.shape for f in result.factors] == [(6, 2), (6, 2), (6, 3)]
    assert result.core_mean.shape == (2, 2, 3)
    assert np.abs(predict_functional_tucker(result, index)[0] - target).mean() < 0.1


def test_variance_grows_away_from_the_data():
    index, _, y = surface(3)
    result = fit_functional_tucker(index, y, ranks=(1, 1), max_iter=10, rng=np.random.default_rng(0))
    _, variance = predict_functional_tucker(result, np.array([[0.5, 0.5], [3.0, 0.5], [3.0, 3.0]]))
    assert variance[0] < variance[1]
    assert (variance > result.noise_variance).all()


def test_order_of_the_entries_hardly_matters():
    index, _, y = surface(4, 80)
    order = np.random.default_rng(0).permutation(80)
    options = {"ranks": (1, 1), "length_scales": 0.5, "max_iter": 40}
    one = fit_functional_tucker(index, y, rng=np.random.default_rng(0), **options)
    other = fit_functional_tucker(index[order], y[order], rng=np.random.default_rng(0), **options)
    np.testing.assert_allclose(
        predict_functional_tucker(one, index)[0], predict_functional_tucker(other, index)[0], atol=5e-3
    )


def test_loose_tolerance_and_callback_end_the_run():
    index, _, y = surface(5, 40)
    loose = fit_functional_tucker(index, y, ranks=(1, 1), tol=1e3, rng=RNG)
    assert loose.converged
    assert loose.n_iter == 1
    stopped = fit_functional_tucker(index, y, ranks=(1, 1), callback=lambda progress: progress.n_iter == 2, rng=RNG)
    assert stopped.n_iter == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    index, _, y = (a.astype(dtype) for a in surface(6, 30))
    result = fit_functional_tucker(index, y, ranks=(1, 2), max_iter=2, rng=RNG)
    times, noise = np.arange(3, dtype=dtype), np.ones((3, 1, 1), dtype)
    smoother = kalman_smoother(times, times[:, None], noise, matern_sde(1.5, 1.0))
    mean, pullback = smoothed_mean_vjp(times[:, None], times=times, noise=noise, sde=matern_sde(0.5, 1.0))
    arrays = [
        result.core_mean,
        result.core_covariance,
        *predict_functional_tucker(result, index),
        mean,
        *pullback(mean),
    ]
    arrays += [smoother.mean, smoother.state_covariance, *gp_interpolate(smoother, times)]
    arrays += sde_transition(matern_sde(1.5, 1.0), times)
    assert {a.dtype for a in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    index, _, y = surface(7, 30)
    times, noise = np.arange(3.0), np.ones((3, 1, 1))
    for array in (index, y, times, noise):
        array.setflags(write=False)
    predict_functional_tucker(fit_functional_tucker(index, y, ranks=(1, 1), max_iter=2, rng=RNG), index)
    smoothed_mean_vjp(times[:, None], times=times, noise=noise, sde=matern_sde(0.5, 1.0))[1](times[:, None])


TIMES, SEEN, NOISE = np.array([0.0, 1.0]), np.ones((2, 1)), np.ones((2, 1, 1))
SDE = matern_sde(1.5, 1.0)


def fit(index=SEEN, target=TIMES, **options):
    return fit_functional_tucker(index, target, **{"ranks": (1,), "rng": RNG, **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: matern_sde(2.5, 1.0), ValueError, "smoothness: expected one of 0.5, 1.5, got 2.5"),
        (lambda: matern_sde(0.5, 0.0), ValueError, "length_scale: expected a finite number > 0, got 0.0"),
        (lambda: matern_sde(0.5, 1.0, -1.0), ValueError, "variance: expected a finite number > 0, got -1.0"),
        (lambda: sde_transition(SDE, np.array(-1.0)), ValueError, "gap: expected finite values >= 0, got -1.0"),
        (lambda: kalman_smoother(TIMES[::-1], SEEN, NOISE, SDE), ValueError, "times: expected strictly increasing values, got 1 that are not"),
        (lambda: kalman_smoother(TIMES, SEEN, -NOISE, SDE), ValueError, "noise: expected positive definite matrices"),
        (lambda: kalman_smoother(TIMES, SEEN, NOISE[:1], SDE), ValueError, r"noise: expected shape \(2, 1, 1\), got \(1, 1, 1\)"),
        (lambda: smoothed_mean(SEEN * np.nan, times=TIMES, noise=NOISE, sde=SDE), ValueError, "y: expected finite values"),
        (lambda: gp_interpolate(kalman_smoother(TIMES, SEEN, NOISE, SDE), SEEN), ValueError, "new_times: expected 1 dimensions"),
        (lambda: fit(ranks=(1, 1)), ValueError, r"ranks: expected 1 integers, got \(1, 1\)"),
        (lambda: fit(ranks=(0,)), ValueError, "ranks: expected an integer >= 1, got 0"),
        (lambda: fit(ranks=(5000,)), ValueError, "ranks: expected a core of at most 4096 entries, got 5000"),
        (lambda: fit(length_scales=(1.0, 2.0)), ValueError, "length_scales: expected one number or 1"),
        (lambda: fit(length_scales=-1.0), ValueError, "length_scale: expected a finite number > 0, got -1.0"),
        (lambda: fit(index=SEEN * np.inf), ValueError, "index: expected finite values"),
        (lambda: fit(target=TIMES[:1]), ValueError, r"target: expected shape \(2,\), got \(1,\)"),
        (lambda: fit(initial_noise=0.0), ValueError, "initial_noise: expected a finite number > 0, got 0.0"),
        (lambda: fit(rng=1), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: predict_functional_tucker(fit(max_iter=1), np.ones((1, 2))), ValueError, r"index: expected shape \(1, 1\), got \(1, 2\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
