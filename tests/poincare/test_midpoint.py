import numpy as np
import pytest
import scipy.optimize
from discovery import TESTS, load
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.poincare import (
    FrechetMeanResult,
    dist,
    dist_sq,
    exp0,
    expmap,
    frechet_mean,
    logmap,
    midpoint,
    midpoint_vjp,
    mobius_add,
)
from refnorm.solvers import Diverged

ball = load(TESTS / "poincare" / "test_ball.py")
points = ball.points
RNG = np.random.default_rng(5)


def midpoint_cases(curvature, shape):
    x, weights = points(RNG, shape, curvature), RNG.uniform(0.2, 2.0, shape[:-1])
    small = {"step": 1e-3, "name": f"curvature {curvature}, {shape}"}
    return [
        GradientCase(midpoint_vjp, (x, curvature, None), **small),
        GradientCase(midpoint_vjp, (x, curvature, weights), **small),
        GradientCase(midpoint_vjp, (x, curvature, weights - 1.1), **small),
    ]


GRADIENT_CASES = [
    case for c, shape in ((1.0, (4, 2)), (0.1, (2, 3, 5)), (7.3, (1, 3)), (1.0, (3, 1))) for case in midpoint_cases(c, shape)
]  # fmt: skip
CLOSE = points(RNG, (1, 3), 1.0) + 1e-2 * RNG.standard_normal((5, 3))
GRADIENT_CASES += [
    GradientCase(midpoint_vjp, (np.zeros((3, 2)), 2.0, np.ones(3)), step=1e-3, name="origin"),
    GradientCase(midpoint_vjp, (CLOSE, 1.0, RNG.uniform(0.5, 1.0, 5)), step=1e-3, name="nearly equal points"),
    GradientCase(midpoint_vjp, (points(RNG, (4, 3), 1.0, 0.97, 0.98), 1.0, None), step=1e-3, name="far out"),
]


def isometry(shift, turn, x, curvature):
    return mobius_add(np.broadcast_to(shift, x.shape).copy(), x @ turn, curvature)


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    n, size = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    curvature = draw(st.sampled_from([1.0, 0.1, 5.0]))
    return points(rng, (size, n), curvature), rng.uniform(0.1, 3.0, size), curvature, rng


@given(batch=batches())
def test_both_means_move_with_isometries(batch):
    x, weights, curvature, rng = batch
    n = x.shape[1]
    shift, turn = points(rng, (n,), curvature), np.linalg.qr(rng.standard_normal((n, n)))[0]
    moved = isometry(shift, turn, x, curvature)
    for mean in (lambda p: midpoint(p, curvature, weights), lambda p: frechet_mean(p, curvature, weights).x):
        expected = isometry(shift, turn, mean(x)[None], curvature)[0]
        assert dist(mean(moved), expected, curvature) * np.sqrt(curvature) < 1e-10


@given(batch=batches())
def test_each_mean_is_where_its_own_cost_is_smallest(batch):
    x, weights, curvature, rng = batch
    root = np.sqrt(curvature)

    def costs(m):
        d = dist(np.tile(m, (len(x), 1)), x, curvature)
        return (weights * np.sinh(root * d / 2) ** 2).sum(), (weights * d**2).sum()

    middle, mean = midpoint(x, curvature, weights), frechet_mean(x, curvature, weights).x
    for _ in range(5):
        step = 1e-3 * rng.standard_normal(x.shape[1]) / root
        assert costs(expmap(middle, step, curvature))[0] > costs(middle)[0]
        assert costs(expmap(mean, step, curvature))[1] > costs(mean)[1]


@given(batch=batches())
def test_logarithms_from_the_frechet_mean_add_up_to_zero(batch):
    x, weights, curvature, _ = batch
    mean = frechet_mean(x, curvature, weights).x
    total = (weights[:, None] * logmap(np.tile(mean, (len(x), 1)), x, curvature)).sum(axis=0)
    assert np.abs(total).max() < 1e-10 * weights.sum() / np.sqrt(curvature)


def test_means_of_one_point_and_of_two_are_known():
    x = points(RNG, (2, 3), 0.7)
    half_way = expmap(x[0], logmap(x[0], x[1], 0.7) / 2, 0.7)
    for mean in (midpoint, lambda p, c: frechet_mean(p, c).x):
        np.testing.assert_allclose(mean(x[:1], 0.7), x[0], rtol=1e-15)
        np.testing.assert_allclose(mean(x, 0.7), half_way, rtol=1e-13)


def test_frechet_mean_agrees_with_a_general_minimizer():
    x = exp0(1.5 * RNG.standard_normal((20, 2)), 1.0)

    def variance(tangent):
        return dist_sq(np.tile(exp0(tangent, 1.0), (20, 1)), x, 1.0).mean()

    found = scipy.optimize.minimize(variance, np.zeros(2), tol=1e-14)
    result = frechet_mean(x, 1.0)
    np.testing.assert_allclose(result.x, exp0(found.x, 1.0), atol=1e-6)
    np.testing.assert_allclose(result.variance, found.fun, rtol=1e-12)


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 10.0])
def test_frechet_mean_converges_from_points_however_far_apart(spread):
    # 10 (unit normal) vectors are up to 37 / sqrt(c) from the origin: rounded to the last number of the ball.
    result = frechet_mean(exp0(spread * RNG.standard_normal((40, 3)), 0.5, project=False), 0.5)
    assert result.converged
    assert (np.diff(result.history["variance"]) <= 1e-14 * result.variance).all()
    assert len(result.history["moved"]) == result.n_iter < 100


def test_frechet_mean_settles_near_the_boundary():
    x = np.array([0.6, 0.8]) * (1 - 1e-10) + 1e-11 * RNG.standard_normal((6, 2))
    result = frechet_mean(x, 1.0)
    assert result.converged
    assert result.n_iter < 30


@pytest.mark.parametrize("radius", [0.0, 0.99])
def test_frechet_mean_settles_as_far_as_its_numbers_go_without_a_tolerance(radius):
    for seed in range(16):
        around_origin = 0.7 * np.tanh(0.5 * np.random.default_rng(seed).standard_normal((6, 2)))
        x = mobius_add(np.tile(radius * np.array([0.6, 0.8]), (6, 1)), around_origin, 1.0)
        result = frechet_mean(x, 1.0, tol=0.0)
        assert result.converged
        assert result.n_iter < 40


@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_frechet_tolerance_is_what_is_documented_unless_told(dtype, tol):
    last = []
    for seed in range(60):
        x = (0.2 * np.random.default_rng(seed).standard_normal((6, 3))).astype(dtype)
        moved = frechet_mean(x, 1.0).history["moved"]
        np.testing.assert_array_equal(moved, frechet_mean(x, 1.0, tol=tol).history["moved"])
        last += [moved[-2], moved[-1]]
    assert min(step for step in last if step > 1.1 * tol) < 2 * tol
    assert max(step for step in last if step <= 1.1 * tol) > tol / 2


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("curvature", [0.3, 1.0, 5e5])
def test_frechet_history_is_that_of_means_after_so_many_iterations(curvature, batches):
    x, weights = points(RNG, (batches, 5, 3), curvature), RNG.uniform(0.1, 2.0, (batches, 5))

    def variance(m):
        squares = dist_sq(np.repeat(m[:, None], 5, axis=1), x, curvature)
        return (weights * squares).sum(axis=-1) / weights.sum(axis=-1)

    result = frechet_mean(x, curvature, weights, tol=1e-6)
    np.testing.assert_allclose(result.variance, variance(result.x), rtol=1e-12)
    before = midpoint(x, curvature, weights)
    for k in range(result.n_iter):
        short = frechet_mean(x, curvature, weights, tol=1e-6, max_iter=k + 1)
        assert short.n_iter == k + 1
        assert short.converged == (k + 1 == result.n_iter)
        np.testing.assert_allclose(short.variance, variance(short.x), rtol=1e-12)
        np.testing.assert_allclose(result.history["variance"][k], variance(before).mean(), rtol=1e-12)
        moved = dist(before, short.x, curvature).max()
        np.testing.assert_allclose(result.history["moved"][k], moved, rtol=1e-8, atol=1e-15 / np.sqrt(curvature))
        assert (moved * np.sqrt(curvature) <= 1e-6) == short.converged
        before = short.x
    assert result.n_iter > 2


def test_no_batch_has_no_mean():
    result = frechet_mean(np.zeros((0, 3, 2)), 1.0)
    assert result.x.shape == (0, 2)
    assert result.variance.shape == (0,)
    assert result.converged


def test_a_point_without_weight_counts_nothing_and_learns_its_weight():
    x, weights = points(RNG, (3, 4), 1.0), np.array([1.0, 0.0, 2.0])
    np.testing.assert_allclose(frechet_mean(x, 1.0, weights).x, frechet_mean(x[::2], 1.0, weights[::2]).x, rtol=1e-12)
    m, pullback = midpoint_vjp(x, 1.0, weights)
    g, h = RNG.standard_normal(4), 1e-7
    slope = (midpoint(x, 1.0, weights + [0, h, 0]) - m) @ g / h
    np.testing.assert_allclose(pullback(g)[2][1], slope, rtol=1e-5)


def test_weights_count_points_and_their_scale_does_not_matter():
    x = points(RNG, (3, 4), 1.0)
    repeated = np.concatenate([x, x[:1], x[:1]])
    for mean in (midpoint, lambda *args: frechet_mean(*args).x):
        np.testing.assert_allclose(mean(x, 1.0, np.array([3.0, 1.0, 1.0])), mean(repeated, 1.0), rtol=1e-12)
        np.testing.assert_allclose(mean(x, 1.0, np.full(3, 2.0**40)), mean(x, 1.0), rtol=1e-12)


def test_a_negative_weight_turns_its_point_over():
    x, weights = points(RNG, (3, 4), 1.0), np.array([1.0, -0.5, 2.0])
    turned = x * np.sign(weights)[:, None]
    assert (midpoint(x, 1.0, weights) == midpoint(turned, 1.0, np.abs(weights))).all()


def test_small_curvature_gives_the_arithmetic_mean():
    x, weights = RNG.standard_normal((5, 3)), RNG.uniform(0.5, 1.0, 5)
    flat = (weights[:, None] * x).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(midpoint(x, 1e-12, weights), flat, rtol=1e-10)
    np.testing.assert_allclose(frechet_mean(x, 1e-12, weights).x, flat, rtol=1e-10)


def test_unit_of_length_does_not_matter():
    x, scale = points(RNG, (4, 3), 1.0), 2.0**-200
    assert (midpoint(scale * x, scale**-2) == scale * midpoint(x, 1.0)).all()
    small, plain = frechet_mean(scale * x, scale**-2), frechet_mean(x, 1.0)
    assert (small.x == scale * plain.x).all()
    assert small.n_iter == plain.n_iter
    np.testing.assert_array_equal(small.history["moved"], scale * plain.history["moved"])


def test_batches_are_independent():
    x, weights = points(RNG, (2, 3, 4, 2), 1.0), RNG.uniform(0.5, 1.0, (2, 3, 4))
    together = frechet_mean(x, 1.0, weights)
    assert together.x.shape == (2, 3, 2)
    assert together.variance.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = frechet_mean(x[i, j], 1.0, weights[i, j])
            np.testing.assert_allclose(together.x[i, j], alone.x, atol=1e-11)
            one = midpoint(x[i, j], 1.0, weights[i, j])
            np.testing.assert_array_equal(midpoint(x, 1.0, weights)[i, j], one)


def test_callback_sees_every_iteration_and_can_stop():
    seen = []
    x = points(RNG, (5, 2), 1.0)
    stopped = frechet_mean(x, 1.0, callback=lambda progress: seen.append(progress.values["moved"]) or len(seen) == 2)
    assert stopped.n_iter == len(seen) == 2
    assert not stopped.converged
    assert isinstance(stopped, FrechetMeanResult)
    assert frechet_mean(x, 1.0, max_iter=1).n_iter == 1


def test_nan_is_reported_as_divergence():
    x = points(RNG, (3, 2), 1.0)
    x[1, 0] = np.nan
    with pytest.raises(
        Diverged, match="frechet_mean: diverged at iteration 1: variance = nan.*x must not hold NaN or infinity"
    ):
        frechet_mean(x, 1.0)
    assert np.isnan(midpoint(x, 1.0)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, weights = points(RNG, (3, 4), 1.0).astype(dtype), np.ones(3, dtype)
    m, pullback = midpoint_vjp(x, 1.0, weights)
    assert [m.dtype, *(entry.dtype for entry in pullback(m))] == [dtype] * 4
    result = frechet_mean(x, 1.0, weights)
    assert result.converged
    assert (result.x.dtype, result.variance.dtype) == (dtype, dtype)


def test_arguments_are_not_written_to():
    x, weights = points(RNG, (3, 4), 1.0), np.ones(3)
    for array in (x, weights):
        array.setflags(write=False)
    m, pullback = midpoint_vjp(x, 1.0, weights)
    m.setflags(write=False)
    pullback(m)
    frechet_mean(x, 1.0, weights)


X, W = np.full((2, 3), 0.1), np.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: midpoint(X[0], 1.0), ValueError, r"x: expected at least 2 dimensions, got shape \(3,\)"),
        (lambda: midpoint(X[:0], 1.0), ValueError, r"x: expected at least one entry along axes \(0,\), got shape \(0, 3\)"),
        (lambda: midpoint(20 * X, 1.0), ValueError, r"x: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 12"),
        (lambda: midpoint(X, 0.0), ValueError, "curvature: expected a finite number > 0, got 0.0"),
        (lambda: midpoint(X, 1.0, W[:1]), ValueError, r"weights: expected shape \(2,\), got \(1,\)"),
        (lambda: midpoint(X, 1.0, 0 * W), ValueError, "weights: expected at least one that is not 0, got zeros"),
        (lambda: midpoint(X[None].repeat(2, 0), 1.0, np.array([[1.0, 1.0], [0.0, 0.0]])), ValueError, "weights: expected at least one that is not 0"),
        (lambda: midpoint(X, 1.0, W.astype(int)), TypeError, "weights: expected a float32 or float64 array"),
        (lambda: midpoint(X, 1.0, W.astype("f4")), TypeError, "weights: expected dtype float64 like x, got float32"),
        (lambda: midpoint(X.astype(int), 1.0), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: frechet_mean(X, 1.0, np.array([1.0, -0.5])), ValueError, "weights: expected numbers >= 0, got -0.5"),
        (lambda: frechet_mean(X, 1.0, W - 1.5), ValueError, "weights: expected numbers >= 0, got -0.5"),
        (lambda: frechet_mean(X, 1.0, tol=-1.0), ValueError, "tol: expected a finite number >= 0, got -1.0"),
        (lambda: frechet_mean(X, 1.0, max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: frechet_mean(X, 1.0, callback=3), TypeError, "callback: expected a function of a Progress, or None, got int"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_cotangent_of_another_shape_is_refused():
    _, pullback = midpoint_vjp(X, 1.0)
    with pytest.raises(ValueError, match=r"cotangent: expected shape \(3,\), got \(2, 3\)"):
        pullback(X)
