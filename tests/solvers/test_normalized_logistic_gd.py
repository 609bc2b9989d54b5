import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from sklearn.linear_model import Perceptron

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    Diverged,
    batch_perceptron,
    batch_perceptron_bound,
    logistic_gd,
    logistic_gradient,
    logistic_gradient_vjp,
    logistic_loss,
    logistic_loss_vjp,
    normalized_direction,
    normalized_direction_vjp,
    normalized_gd_bound,
    perceptron,
    perceptron_bound,
)

RNG = np.random.default_rng(12)


def problem(n, d, scale=1.0, rng=RNG):
    return scale * rng.standard_normal(d), rng.standard_normal((n, d)), rng.choice([-1, 1], n)


GRADIENT_CASES = [
    GradientCase(logistic_loss_vjp, problem(7, 3)),
    GradientCase(logistic_loss_vjp, problem(1, 2), name="one sample"),
    GradientCase(logistic_loss_vjp, problem(6, 2, 5.0), name="large weights"),
    GradientCase(logistic_loss_vjp, (np.array([0.3, -0.2]), np.zeros((3, 2)), np.array([1, -1, 1])), name="samples at 0"),
    GradientCase(logistic_gradient_vjp, problem(7, 3)),
    GradientCase(logistic_gradient_vjp, problem(4, 5, 0.0), name="ties"),
    GradientCase(logistic_gradient_vjp, problem(6, 2, 5.0), name="large weights"),
    GradientCase(normalized_direction_vjp, problem(7, 3)),
    GradientCase(normalized_direction_vjp, problem(1, 2), name="one sample"),
    GradientCase(normalized_direction_vjp, problem(4, 5, 0.0), name="ties"),
    GradientCase(normalized_direction_vjp, problem(6, 2, 5.0), name="large weights"),
]  # fmt: skip


def separable(n=30, d=4, seed=0, gap=0.1):
    rng = np.random.default_rng(seed)
    normal, x = rng.standard_normal(d), rng.standard_normal((n, d))
    normal /= np.linalg.norm(normal)
    x = x[np.abs(x @ normal) > gap]
    return x, np.where(x @ normal > 0, 1, -1), normal


@given(seed=st.integers(0, 999), n=st.integers(1, 9), d=st.integers(1, 5))
def test_gradient_is_that_of_the_loss(seed, n, d):
    weight, x, target = problem(n, d, rng=np.random.default_rng(seed))
    _, pullback = logistic_loss_vjp(weight, x, target)
    np.testing.assert_allclose(pullback(np.array(1.0))[0], logistic_gradient(weight, x, target), atol=1e-15)
    error = check_grad(lambda w: float(logistic_loss(w, x, target)), lambda w: logistic_gradient(w, x, target), weight)
    assert error < 1e-6


@given(seed=st.integers(0, 999), n=st.integers(1, 9), scale=st.floats(0, 20))
def test_direction_is_the_gradient_over_the_mean_share(seed, n, scale):
    weight, x, target = problem(n, 3, scale, rng=np.random.default_rng(seed))
    share = 1 / (1 + np.exp(target * (x @ weight)))
    np.testing.assert_allclose(
        normalized_direction(weight, x, target) * share.mean(), -logistic_gradient(weight, x, target), atol=1e-14
    )


def test_direction_survives_where_every_share_underflows():
    x, target = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1])
    weight = np.array([800.0, 900.0])
    np.testing.assert_array_equal(logistic_gradient(weight, x, target), 0)
    np.testing.assert_allclose(normalized_direction(weight, x, target), [1.0, np.exp(-100.0)], rtol=1e-12)


def test_loss_is_finite_on_both_sides():
    x, target = np.array([[1.0]]), np.array([1])
    assert logistic_loss(np.array([-1e8]), x, target) == 1e8
    assert logistic_loss(np.array([1e8]), x, target) == 0
    assert logistic_loss(np.array([-1e30], np.float32), x.astype(np.float32), target) == np.float32(1e30)


@given(seed=st.integers(0, 200), rate=st.sampled_from([0.1, 1.0, 10.0, 1e4, 1e8]), normalize=st.booleans())
def test_every_rate_separates_separable_data(seed, rate, normalize):
    x, target, _ = separable(seed=seed)
    result = logistic_gd(x, target, learning_rate=rate, max_iter=20_000, normalize=normalize)
    assert result.converged
    assert (target * (x @ result.weight) > 0).all()
    assert len(result.history["loss"]) == len(result.history["errors"]) == result.n_iter
    assert result.history["errors"][-1] == 0
    assert (result.history["errors"][:-1] > 0).all()


@given(seed=st.integers(0, 200))
def test_counts_are_within_their_bounds(seed):
    x, target, normal = separable(seed=seed, gap=0.3)
    assume(len(x) > 1)
    # The margin of any separating direction is below the largest one, so its bounds are laxer ones.
    radius, margin = np.linalg.norm(x, axis=1).max(), (target * (x @ normal)).min()
    assert perceptron(x, target, max_epochs=10_000).n_iter <= perceptron_bound(radius, margin)
    assert batch_perceptron(x, target, max_iter=10_000).n_iter <= batch_perceptron_bound(radius, margin, len(x))
    for rate in (0.1, 1.0, 1e8):
        count = logistic_gd(x, target, learning_rate=rate, max_iter=100_000, normalize=True).n_iter
        assert count <= normalized_gd_bound(radius, margin, len(x), rate)


@given(seed=st.integers(0, 200))
def test_large_steps_are_the_batch_perceptron(seed):
    x, target, _ = separable(seed=seed)
    limit = batch_perceptron(x, target, max_iter=1000)
    ours = logistic_gd(x, target, learning_rate=1e10, max_iter=1000)
    assert ours.n_iter == limit.n_iter
    np.testing.assert_allclose(ours.weight / 1e10, limit.weight, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_perceptron_is_that_of_scikit_learn(seed):
    x, target, _ = separable(seed=seed)
    ours = perceptron(x, target, max_epochs=500)
    peer = Perceptron(shuffle=False, tol=None, fit_intercept=False, max_iter=500, penalty=None).fit(x, target)
    assert ours.converged
    np.testing.assert_allclose(peer.coef_[0], ours.weight, rtol=1e-10, atol=1e-12)


def test_perceptron_stops_after_its_rounds():
    x, target = np.array([[1.0], [-1.0]]), np.array([1, 1])
    result = perceptron(x, target, max_epochs=3)
    assert not result.converged
    # Sample 0 is wrong at weight 0 and repairs it, sample 1 undoes it: two mistakes a round.
    assert result.n_iter == 6


def test_data_that_nothing_separates_end_unconverged():
    x, target = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, -1])
    for result in (
        logistic_gd(x, target, learning_rate=1.0, max_iter=20),
        logistic_gd(x, target, learning_rate=1.0, max_iter=20, normalize=True),
        batch_perceptron(x, target, max_iter=20),
    ):
        assert not result.converged
        assert result.n_iter == 20


def test_separating_start_needs_no_update():
    x, target, normal = separable()
    result = logistic_gd(x, target, learning_rate=1.0, max_iter=5, weight0=normal)
    assert result.converged
    assert result.n_iter == 0
    assert result.history == {}
    np.testing.assert_array_equal(result.weight, normal)


def test_first_step_from_ties_is_half_the_mean_sample():
    x, target, _ = separable(n=6)
    mean = (target[:, None] * x).mean(axis=0)
    for result, factor in (
        (batch_perceptron(x, target, max_iter=1), 0.5),
        (logistic_gd(x, target, learning_rate=3.0, max_iter=1), 1.5),
        (logistic_gd(x, target, learning_rate=3.0, max_iter=1, normalize=True), 3.0),
    ):
        np.testing.assert_allclose(result.weight, factor * mean, rtol=1e-14)


def test_zero_sample_can_never_be_classified():
    result = batch_perceptron(np.array([[1.0], [0.0]]), np.array([1, 1]), max_iter=4)
    assert not result.converged
    assert result.history["errors"].tolist() == [1, 1, 1, 1]


def test_callback_ends_the_run():
    x, target, _ = separable(seed=2)
    result = logistic_gd(x, target, learning_rate=1e-3, max_iter=100, callback=lambda progress: progress.n_iter == 4)
    assert result.n_iter == 4


def test_loss_that_is_no_number_is_divergence():
    x = np.array([[1e308], [-1e307]])
    with pytest.raises(Diverged, match="logistic_gd: diverged at iteration"):
        logistic_gd(x, np.array([1, 1]), learning_rate=1e10, max_iter=10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written_to(dtype):
    weight, x, target = problem(5, 3)
    weight, x = weight.astype(dtype), x.astype(dtype)
    for array in (weight, x, target):
        array.setflags(write=False)
    for f_vjp in (logistic_loss_vjp, logistic_gradient_vjp, normalized_direction_vjp):
        value, pullback = f_vjp(weight, x, target)
        assert value.dtype == dtype
        assert [entry.dtype for entry in pullback(value)] == [dtype] * 2
    for result in (
        logistic_gd(x, target, learning_rate=1.0, max_iter=3),
        logistic_gd(x, target, learning_rate=1.0, max_iter=3, normalize=True),
        batch_perceptron(x, target, max_iter=3),
        perceptron(x, target, max_epochs=2),
    ):
        assert result.weight.dtype == dtype


GOOD = (np.zeros(2), np.ones((3, 2)), np.array([1, -1, 1]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: logistic_loss(np.zeros(3), *GOOD[1:]), ValueError, r"weight: expected shape \(2,\), got \(3,\)"),
        (lambda: logistic_loss(*GOOD[:2], np.array([1, 0, 1])), ValueError, "target: expected classes -1 and 1, got 0"),
        (lambda: logistic_loss(*GOOD[:2], np.array([1.0, -1.0, 1.0])), TypeError, "target: expected an integer array, got dtype float64"),
        (lambda: logistic_loss(*GOOD[:2], np.array([1, 1])), ValueError, r"target: expected shape \(3,\), got \(2,\)"),
        (lambda: logistic_gradient(np.zeros(2, "f4"), *GOOD[1:]), TypeError, "weight: expected dtype float64 like x, got float32"),
        (lambda: normalized_direction(np.zeros(2), np.zeros((0, 2)), np.zeros(0, int)), ValueError, "x: expected at least one entry"),
        (lambda: batch_perceptron(np.array([[np.nan]]), np.array([1]), max_iter=2), ValueError, "x: expected finite values, got 1 that are not"),
        (lambda: batch_perceptron(*GOOD[1:], max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: perceptron(*GOOD[1:], max_epochs=0), ValueError, "max_epochs: expected an integer >= 1, got 0"),
        (lambda: logistic_gd(*GOOD[1:], learning_rate=0.0, max_iter=3), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: logistic_gd(*GOOD[1:], learning_rate=1.0, max_iter=3, weight0=np.zeros(3)), ValueError, r"weight0: expected shape \(2,\), got \(3,\)"),
        (lambda: perceptron_bound(1.0, 0.0), ValueError, "margin: expected a finite number > 0, got 0.0"),
        (lambda: batch_perceptron_bound(1.0, 1.0, 0), ValueError, "n: expected an integer >= 1, got 0"),
        (lambda: normalized_gd_bound(1.0, 1.0, 3, -1.0), ValueError, "learning_rate: expected a finite number > 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_callback_ends_the_perceptron():
    x, target = np.array([[1.0, 0.0], [-1.0, 1.0]]), np.array([1, 1])
    cut = perceptron(x, target, max_epochs=10, callback=lambda progress: True)
    assert (cut.n_iter, cut.converged) == (1, False)
