import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    ball_randomizer,
    clip_rows,
    gaussian_sigma,
    ldp_iht,
    ldp_lower_bound,
    nldp_estimate,
    nldp_messages,
    nldp_public,
    randomizer_scale,
    server_map,
    server_map_vjp,
)

RNG = np.random.default_rng(8)


def positive(d, rng=RNG):
    root = rng.standard_normal((d, d))
    return root @ root.T + np.eye(d)


GRADIENT_CASES = [
    GradientCase(server_map_vjp, (positive(4), RNG.standard_normal(4), np.array(0.05)), step=1e-3),
    GradientCase(server_map_vjp, (RNG.standard_normal((4, 4)) + 3 * np.eye(4), RNG.standard_normal(4), np.array(0.02)), step=1e-3, name="not symmetric"),
    GradientCase(server_map_vjp, (positive(3), 1e-3 * RNG.standard_normal(3), np.array(5.0)), step=1e-4, name="all below"),
    GradientCase(server_map_vjp, (np.array([[2.0]]), np.array([3.0]), np.array(0.5))),
]  # fmt: skip


def users(n, d, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    theta = np.zeros(d)
    theta[:2] = (0.8, -0.6)
    x = rng.standard_normal((n, d))
    return x, x @ theta + noise * rng.standard_normal(n), theta


@given(seed=st.integers(0, 99), radius=st.floats(0.1, 10))
def test_clipping_bounds_the_length_and_keeps_the_direction(seed, radius):
    x = 3 * np.random.default_rng(seed).standard_normal((6, 4))
    clipped = clip_rows(x, radius)
    length, before = np.linalg.norm(clipped, axis=1), np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(length, np.minimum(before, radius), rtol=1e-12)
    np.testing.assert_allclose(clipped * before[:, None], x * length[:, None], atol=1e-12 * radius)


def test_clipping_leaves_a_zero_row():
    np.testing.assert_array_equal(clip_rows(np.zeros((1, 3)), 1.0), 0)


@given(epsilon=st.floats(0.01, 20), delta=st.floats(1e-9, 0.5), sensitivity=st.floats(0.1, 10))
def test_analytic_noise_gives_exactly_the_delta(epsilon, delta, sensitivity):
    s = sensitivity / gaussian_sigma(sensitivity, epsilon, delta, analytic=True)
    spent = norm.cdf(s / 2 - epsilon / s) - np.exp(epsilon) * norm.cdf(-s / 2 - epsilon / s)
    np.testing.assert_allclose(spent, delta, rtol=1e-5, atol=1e-12)


@given(epsilon=st.floats(0.01, 1), delta=st.floats(1e-9, 0.1))
def test_analytic_noise_is_smaller_than_the_classical(epsilon, delta):
    assert gaussian_sigma(1.0, epsilon, delta, analytic=True) < gaussian_sigma(1.0, epsilon, delta)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 150])
def test_scale_of_the_randomizer_undoes_the_shrinkage_of_a_random_half_space(d):
    # Mean of |u_1| for a uniform direction u, by simulation.
    u = np.random.default_rng(0).standard_normal((40000, d))
    along = np.abs(u[:, 0]) / np.linalg.norm(u, axis=1)
    found = randomizer_scale(d, 2.0, 3.0) * np.tanh(1.0) * along.mean()
    assert abs(found - 3) < 5 * 3 * along.std() / along.mean() / 200 + 1e-12


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("length", [0.0, 0.7, 2.0])
def test_randomizer_is_unbiased_and_of_constant_length(d, length):
    direction = np.random.default_rng(d).standard_normal(d)
    v = length * direction / np.linalg.norm(direction)
    messages = ball_randomizer(np.tile(v, (40000, 1)), 1.0, 2.0, np.random.default_rng(3))
    scale = randomizer_scale(d, 1.0, 2.0)
    np.testing.assert_allclose(np.linalg.norm(messages, axis=1), scale, rtol=1e-12)
    assert (np.abs(messages.mean(axis=0) - v) < 4.5 * scale / 200).all()


def test_half_spaces_are_chosen_with_the_privacy_ratio():
    v = np.tile([2.0, 0.0, 0.0], (100_000, 1))
    with_it = (ball_randomizer(v, 0.8, 2.0, np.random.default_rng(0))[:, 0] > 0).mean()
    assert abs(with_it - 1 / (1 + np.exp(-0.8))) < 0.006


def test_messages_are_symmetric_and_unbiased_for_rows_that_are_not_clipped():
    x, y = np.tile([0.3, -0.4], (200_000, 1)), np.full(200_000, 0.5)
    covariances, moments = nldp_messages(x, y, 1.0, 0.1, 1.0, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(covariances, covariances.swapaxes(1, 2))
    for messages, truth in ((covariances, np.outer(x[0], x[0])), (moments, 0.5 * x[0])):
        error = messages.std(axis=0) / np.sqrt(len(x))
        assert (np.abs(messages.mean(axis=0) - truth) < 4.5 * error).all()
    np.testing.assert_allclose(covariances.std(axis=0), gaussian_sigma(np.sqrt(2), 0.5, 0.05), rtol=0.02)
    np.testing.assert_allclose(moments.std(axis=0), gaussian_sigma(2.0, 0.5, 0.05), rtol=0.02)


def test_joint_clipping_keeps_the_linear_model():
    x, y, theta = users(50, 3, noise=0.0)
    huge = {"epsilon": 1.0, "delta": 0.5, "radius": 1.0, "bound": 100.0}
    for joint, exact in ((True, True), (False, False)):
        # The same generator draws the same noise for users without data: the difference is what was clipped.
        signal, noise = (
            nldp_messages(scale * x, scale * y, **huge, rng=np.random.default_rng(0), joint=joint) for scale in (1, 0)
        )
        covariance, moment = ((a - b).mean(axis=0) for a, b in zip(signal, noise, strict=True))
        assert np.allclose(np.linalg.solve(covariance, moment), theta, atol=1e-6) == exact


def test_estimate_without_noise_is_least_squares():
    x, y, _ = users(200, 5)
    covariance, moment = x.T @ x / 200, x.T @ y / 200
    found = nldp_estimate(covariance, moment, threshold=0.0)
    np.testing.assert_allclose(found.theta, np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-10)
    assert found.n_clipped == 0
    kept = nldp_estimate(covariance, moment, k=2)
    np.testing.assert_array_equal(kept.support, [0, 1])
    np.testing.assert_array_equal(kept.theta[:2], found.theta[:2])


@given(seed=st.integers(0, 99), threshold=st.floats(0, 2))
def test_soft_threshold_solves_the_linear_program(seed, threshold):
    rng = np.random.default_rng(seed)
    covariance, moment = positive(4, rng), rng.standard_normal(4)
    centre = np.linalg.solve(covariance, moment)
    # theta = a - b with a, b >= 0, least a + b, within the box around the centre.
    box = np.block([[np.eye(4), -np.eye(4)], [-np.eye(4), np.eye(4)]])
    truth = linprog(np.ones(8), A_ub=box, b_ub=np.concatenate([centre, -centre]) + threshold)
    np.testing.assert_allclose(server_map(covariance, moment, threshold), truth.x[:4] - truth.x[4:], atol=1e-8)


def test_negative_eigenvalues_are_raised_and_counted():
    found = nldp_estimate(np.diag([2.0, 1.0, -3.0]), np.array([2.0, 1.0, 0.3]), threshold=0.0)
    assert found.n_clipped == 1
    np.testing.assert_allclose(found.theta, [1.0, 1.0, 0.3 / 0.15], rtol=1e-12)


def test_public_rows_and_many_users_find_the_vector():
    x, y, theta = users(300_000, 4)
    public = np.random.default_rng(1).standard_normal((20_000, 4))
    found = nldp_public(public, x, y, 1.0, 1e-3, 3.0, 3.0, np.random.default_rng(0), k=2)
    np.testing.assert_array_equal(found.support, [0, 1])
    assert np.linalg.norm(found.theta - theta) < 0.25


def test_interactive_rounds_find_the_vector():
    x, y, theta = users(200_000, 8)
    options = {"epsilon": 1.0, "k": 2, "radius": 4.0, "bound": 3.0, "gradient_bound": 3.0, "rounds": 3}
    found = ldp_iht(x, y, rng=np.random.default_rng(0), **options)
    assert np.linalg.norm(found.theta - theta) < 0.35
    assert set(found.support) >= {0, 1}
    assert len(found.support) <= 4
    assert np.linalg.norm(found.theta) <= 1 + 1e-12
    assert len(found.history["norm"]) == found.n_iter == 3


def test_default_rounds_and_callback():
    x, y, _ = users(1000, 3)
    options = {"epsilon": 1.0, "k": 1, "radius": 2.0, "bound": 2.0, "rng": RNG}
    assert ldp_iht(x, y, **options).n_iter == 7
    assert ldp_iht(x, y, callback=lambda progress: progress.n_iter == 2, **options).n_iter == 2


def test_lower_bounds():
    assert ldp_lower_bound(10_000, 16, 4, 0.5) == 0.16
    np.testing.assert_allclose(ldp_lower_bound(10_000, 16, 4, 0.5, interactive=False), 0.16 * np.sqrt(np.log(16)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, y, _ = users(60, 3)
    x, y = x.astype(dtype), y.astype(dtype)
    covariances, moments = nldp_messages(x, y, 1.0, 0.1, 1.0, 1.0, RNG)
    theta, pullback = server_map_vjp(np.eye(3, dtype=dtype), y[:3], np.array(0.01, dtype))
    arrays = [
        clip_rows(x, 1.0),
        covariances,
        moments,
        theta,
        *pullback(theta),
        ball_randomizer(clip_rows(x, 0.7), 1.0, 0.7, RNG),
    ]
    arrays.append(nldp_estimate(np.eye(3, dtype=dtype), y[:3], k=1).theta)
    arrays.append(nldp_public(x, x, y, 1.0, 0.1, 1.0, 1.0, RNG, k=1).theta)
    arrays.append(ldp_iht(x, y, epsilon=1.0, k=1, radius=1.0, bound=1.0, rounds=2, rng=RNG).theta)
    assert {a.dtype for a in arrays} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    x, y, _ = users(60, 3)
    for array in (x, y):
        array.setflags(write=False)
    nldp_messages(x, y, 1.0, 0.1, 1.0, 1.0, RNG)
    nldp_public(x, x, y, 1.0, 0.1, 1.0, 1.0, RNG, k=1)
    ldp_iht(x, y, epsilon=1.0, k=1, radius=1.0, bound=1.0, rounds=2, rng=RNG)
    server_map_vjp(x[:3], y[:3], 0.1)[1](y[:3])


X, Y = np.ones((4, 2)), np.ones(4)
IHT = {"epsilon": 1.0, "k": 1, "radius": 1.0, "bound": 1.0, "rng": RNG}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gaussian_sigma(1.0, 0.0, 0.1), ValueError, "epsilon: expected a finite number > 0, got 0.0"),
        (lambda: gaussian_sigma(1.0, 2.0, 0.1), ValueError, r"epsilon: expected a number in \(0.0, 1.0\], got 2.0"),
        (lambda: gaussian_sigma(1.0, 1.0, 1.0), ValueError, r"delta: expected a number in \(0.0, 1.0\), got 1.0"),
        (lambda: gaussian_sigma(-1.0, 1.0, 0.1), ValueError, "sensitivity: expected a finite number > 0, got -1.0"),
        (lambda: randomizer_scale(0, 1.0, 1.0), ValueError, "dimension: expected an integer >= 1, got 0"),
        (lambda: ball_randomizer(X, 1.0, 1.0, RNG), ValueError, "v: expected vectors of length at most 1, got length 1.41421"),
        (lambda: ball_randomizer(X * np.nan, 1.0, 9.0, RNG), ValueError, "v: expected finite values"),
        (lambda: ball_randomizer(X, -1.0, 9.0, RNG), ValueError, "epsilon: expected a finite number > 0, got -1.0"),
        (lambda: ball_randomizer(X, 1.0, 9.0, 0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: clip_rows(X, 0.0), ValueError, "radius: expected a finite number > 0, got 0.0"),
        (lambda: nldp_messages(X, Y[:3], 1.0, 0.1, 1.0, 1.0, RNG), ValueError, r"y: expected shape \(4,\), got \(3,\)"),
        (lambda: nldp_messages(X, Y, 1.0, 0.1, 1.0, 0.0, RNG), ValueError, "bound: expected a finite number > 0, got 0.0"),
        (lambda: nldp_messages(X, Y, 4.0, 0.1, 1.0, 1.0, RNG), ValueError, "epsilon: expected a number in"),
        (lambda: nldp_estimate(np.eye(2), Y[:2]), ValueError, r"threshold, k: expected exactly one of the two, got \(None, None\)"),
        (lambda: nldp_estimate(np.eye(2), Y[:2], k=3), ValueError, "k: expected an integer >= 1 and <= 2, got 3"),
        (lambda: nldp_estimate(-np.eye(2), Y[:2], k=1), ValueError, "covariance: expected a positive eigenvalue, got largest -1"),
        (lambda: nldp_estimate(np.eye(3), Y[:2], k=1), ValueError, r"covariance: expected shape \(2, 2\), got \(3, 3\)"),
        (lambda: server_map(np.zeros((2, 2)), Y[:2], 0.1), ValueError, "covariance: expected an invertible matrix, got a singular one"),
        (lambda: server_map(np.eye(2), Y[:2], -0.1), ValueError, "threshold: expected values >= 0, got -0.1"),
        (lambda: nldp_public(np.ones((3, 3)), X, Y, 1.0, 0.1, 1.0, 1.0, RNG, k=1), ValueError, r"x_public: expected shape \(3, 2\)"),
        (lambda: ldp_iht(X, Y, **{**IHT, "k": 3}), ValueError, "k: expected an integer >= 1 and <= 2, got 3"),
        (lambda: ldp_iht(X, Y, **IHT, rounds=5), ValueError, "rounds: expected an integer >= 1 and <= 4, got 5"),
        (lambda: ldp_iht(X, Y, **{**IHT, "k": 2}, kept=1), ValueError, "kept: expected an integer >= 2 and <= 2, got 1"),
        (lambda: ldp_iht(X * np.inf, Y, **IHT), ValueError, "x: expected finite values"),
        (lambda: ldp_lower_bound(10, 2, 3, 1.0), ValueError, "k: expected an integer >= 1 and <= 2, got 3"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
