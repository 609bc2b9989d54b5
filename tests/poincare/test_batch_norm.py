import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import batch_statistics
from refnorm.poincare import _geodesics as geodesics
from refnorm.poincare import (
    dist,
    dist_sq,
    exp0,
    log0,
    midpoint,
    midpoint_batch_norm,
    midpoint_batch_norm_vjp,
    midpoint_statistics,
    midpoint_statistics_vjp,
    mobius_add,
    update_running_midpoint,
)

ball, conv = load(TESTS / "poincare" / "test_ball.py"), load(TESTS / "poincare" / "test_conv2d.py")
points, images = ball.points, conv.images
RNG = np.random.default_rng(7)


def parameters(rng, channels, curvature, gain=0.8):
    unit = np.sqrt(curvature)
    return 0.3 * rng.standard_normal(channels) / unit, np.array(gain / curvature)


def bn_cases(curvature, x, gain=0.8, **options):
    channels = x.shape[1]
    given = (points(RNG, (channels,), curvature, 0.1, 0.5), np.array(1.3 / curvature))
    args = (x, *parameters(RNG, channels, curvature, gain), curvature)
    small = {"step": 1e-3, "name": f"curvature {curvature}, {x.shape}, gain {gain}"}
    return [
        GradientCase(midpoint_batch_norm_vjp, (*args, None, None), options, **small),
        GradientCase(midpoint_batch_norm_vjp, (*args, *given), options, **small),
        GradientCase(midpoint_statistics_vjp, (x, curvature), **small),
    ]


GRADIENT_CASES = [
    *bn_cases(1.0, points(RNG, (6, 3), 1.0)),
    *bn_cases(0.1, images(RNG, (2, 2, 3, 2), 0.1), project=False),
    *bn_cases(7.3, points(RNG, (5, 2), 7.3), 12.0),
    *bn_cases(1.0, points(RNG, (4, 1), 1.0), eps=0.3),
    GradientCase(
        midpoint_batch_norm_vjp,
        (points(RNG, (1, 3), 1.0), *parameters(RNG, 3, 1.0), 1.0, None, None),
        {"eps": 0.5},
        step=1e-3,
        name="one point",
    ),
    GradientCase(
        midpoint_batch_norm_vjp,
        (points(RNG, (4, 3), 1.0), np.zeros(3), np.array(1.0), np.array(1.0), None, None),
        step=1e-3,
        name="initial parameters",
    ),
    GradientCase(
        midpoint_batch_norm_vjp,
        (points(RNG, (6, 3), 0.7, 0.2), *parameters(RNG, 3, 0.7, 200.0), 0.7, None, None),
        step=1e-4,
        name="partly projected",
    ),
    GradientCase(midpoint_statistics_vjp, (np.zeros((3, 2)), 1.0), step=1e-3, name="all at the origin"),
]


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    curvature = draw(st.sampled_from([1.0, 0.1, 5.0]))
    channels, size = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    return points(rng, (size, channels), curvature), curvature, rng


@given(batch=batches(), gain=st.sampled_from([0.1, 1.0, 3.0]))
def test_variance_about_the_bias_is_the_gain(batch, gain):
    x, curvature, rng = batch
    bias, gain = parameters(rng, x.shape[1], curvature, gain)
    y = midpoint_batch_norm(x, bias, gain, curvature, eps=1e-12, project=False)
    centre = np.tile(exp0(bias, curvature), (len(x), 1))
    np.testing.assert_allclose(dist_sq(y, centre, curvature).mean(), gain, rtol=1e-8)


@given(batch=batches())
def test_directions_and_relative_distances_stay(batch):
    # Logarithms from the mean are transported and scaled: their Gram matrix keeps its shape.
    x, curvature, rng = batch
    bias, gain = parameters(rng, x.shape[1], curvature)
    y = midpoint_batch_norm(x, bias, gain, curvature, project=False)

    def gram(centre, p):
        v = geodesics.logmap(np.tile(centre, (len(p), 1)), p, curvature)
        return v @ v.T / np.trace(v @ v.T)

    np.testing.assert_allclose(gram(midpoint(x, curvature), x), gram(exp0(bias, curvature), y), atol=1e-9)


@given(batch=batches())
def test_moving_the_batch_by_an_isometry_only_turns_the_result(batch):
    x, curvature, rng = batch
    n = x.shape[1]
    shift, turn = points(rng, (n,), curvature), np.linalg.qr(rng.standard_normal((n, n)))[0]
    moved = mobius_add(np.tile(shift, (len(x), 1)), x @ turn, curvature)
    gain = np.array(1.0 / curvature)
    y, z = (midpoint_batch_norm(p, np.zeros(n), gain, curvature, project=False) for p in (x, moved))
    np.testing.assert_allclose(y @ y.T, z @ z.T, atol=1e-8 / curvature)


def test_with_bias_zero_no_gyration_is_needed():
    x, c = points(RNG, (6, 3), 0.7), 0.7
    mean, var = midpoint_statistics(x, c)
    simple = exp0(log0(mobius_add(np.tile(-mean, (6, 1)), x, c), c) / np.sqrt(var + 1e-6), c)
    np.testing.assert_allclose(midpoint_batch_norm(x, np.zeros(3), np.array(1.0), c), simple, rtol=1e-12)


def test_statistics_are_the_midpoint_and_the_mean_squared_distance():
    x = images(RNG, (3, 2, 2, 4), 2.0)
    rows = np.moveaxis(x, 1, -1).reshape(-1, 2)
    mean, var = midpoint_statistics(x, 2.0)
    np.testing.assert_allclose(mean, midpoint(rows, 2.0), rtol=1e-14)
    np.testing.assert_allclose(var, dist_sq(rows, np.tile(mean, (24, 1)), 2.0).mean(), rtol=1e-13)


def test_inference_with_the_batch_s_own_statistics_is_training():
    x, (bias, gain) = images(RNG, (2, 3, 4, 2), 1.0), parameters(RNG, 3, 1.0)
    mean, var = midpoint_statistics(x, 1.0)
    training = midpoint_batch_norm(x, bias, gain, 1.0)
    np.testing.assert_allclose(midpoint_batch_norm(x, bias, gain, 1.0, mean, var), training, rtol=1e-13)


def test_in_inference_points_are_independent():
    x, (bias, gain) = points(RNG, (5, 3), 1.0), parameters(RNG, 3, 1.0)
    given = points(RNG, (3,), 1.0), np.array(0.5)
    together = midpoint_batch_norm(x, bias, gain, 1.0, *given)
    alone = np.concatenate([midpoint_batch_norm(row[None], bias, gain, 1.0, *given) for row in x])
    np.testing.assert_allclose(together, alone, rtol=1e-14)


def test_images_are_batches_of_pixels():
    x, (bias, gain) = images(RNG, (2, 3, 4, 2), 1.0), parameters(RNG, 3, 1.0)
    rows = np.moveaxis(x, 1, -1).reshape(-1, 3)
    y = np.moveaxis(midpoint_batch_norm(x, bias, gain, 1.0), 1, -1).reshape(-1, 3)
    np.testing.assert_allclose(y, midpoint_batch_norm(rows, bias, gain, 1.0), rtol=1e-14)


def test_small_curvature_gives_one_scale_for_all_channels():
    # Distances are twice the Euclidean ones there.
    x, bias = RNG.standard_normal((8, 3)), np.array([0.1, -0.2, 0.3])
    mean, var = batch_statistics(x)
    expected = bias + (x - mean) / np.sqrt(4 * var.sum())
    np.testing.assert_allclose(midpoint_batch_norm(x, bias, np.array(1.0), 1e-12, eps=1e-12), expected, rtol=1e-9)


def test_a_batch_of_one_point_gives_the_bias():
    x, (bias, gain) = points(RNG, (1, 3), 1.0), parameters(RNG, 3, 1.0)
    np.testing.assert_allclose(midpoint_batch_norm(x, bias, gain, 1.0), exp0(bias, 1.0)[None], rtol=1e-14)
    # The point that the bias stands for is projected, whether the result is or not.
    far = np.array([40.0, 0.0, -30.0])
    np.testing.assert_allclose(midpoint_batch_norm(x, far, gain, 1.0, project=False), exp0(far, 1.0)[None], rtol=1e-9)
    same = np.tile(x, (4, 1))
    np.testing.assert_allclose(midpoint_batch_norm(same, bias, gain, 1.0)[2], exp0(bias, 1.0), rtol=1e-10)


def test_running_statistics_walk_along_the_geodesic():
    mean, var = np.zeros(2), np.array(1.0)
    target = points(RNG, (2,), 1.0)
    for _ in range(200):
        before = dist(mean, target, 1.0)
        mean, var = update_running_midpoint(mean, var, target, np.array(4.0), 1.0)
        np.testing.assert_allclose(dist(mean, target, 1.0), 0.9 * before, rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(mean, target, rtol=1e-8)
    np.testing.assert_allclose(var, 4.0, rtol=1e-8)
    np.testing.assert_allclose(update_running_midpoint(mean, var, -target, var, 1.0, momentum=1.0)[0], -target)
    np.testing.assert_allclose(update_running_midpoint(mean, var, -target, var, 1.0, momentum=0.0)[0], mean)


def test_running_statistics_reach_the_edge():
    target = (1 - 1e-7) * np.array([0.6, 0.8])
    mean, _ = update_running_midpoint(np.zeros(2), np.array(1.0), target, np.array(1.0), 1.0, momentum=1.0)
    np.testing.assert_allclose(mean, target, rtol=1e-9)


def test_a_given_variance_may_be_zero():
    x, (bias, gain) = points(RNG, (4, 3), 1.0), parameters(RNG, 3, 1.0)
    mean = points(RNG, (3,), 1.0)
    y, z = (
        midpoint_batch_norm(x, bias, gain, 1.0, mean, np.array(var), eps=eps) for var, eps in ((0.0, 0.5), (0.2, 0.3))
    )
    np.testing.assert_allclose(y, z, rtol=1e-12)


def test_unit_of_length_does_not_matter():
    x, (bias, gain) = points(RNG, (6, 3), 1.0), parameters(RNG, 3, 1.0)
    scale = 2.0**-100
    y, pullback = midpoint_batch_norm_vjp(x, bias, gain, 1.0)
    small = (scale * x, scale * bias, scale**2 * gain, scale**-2)
    z, small_pullback = midpoint_batch_norm_vjp(*small, eps=1e-6 * scale**2)
    assert (z == scale * y).all()
    g = RNG.standard_normal(y.shape)
    for entry, plain, power in zip(small_pullback(g)[:4], pullback(g)[:4], (0, 0, -1, 3), strict=True):
        np.testing.assert_allclose(entry, plain * scale**power, rtol=1e-13)


def test_points_at_the_boundary_are_brought_back():
    x = points(RNG, (20, 3), 1.0, 1 - 1e-12, 1 - 1e-13)
    y, pullback = midpoint_batch_norm_vjp(x, np.zeros(3), np.array(1.0), 1.0)
    np.testing.assert_allclose(dist_sq(y, np.zeros_like(y), 1.0).mean(), 1.0, rtol=1e-5)
    assert all(np.isfinite(entry).all() for entry in pullback(1e-12 * y)[:4])


def test_nan_spreads_in_training_and_stays_in_inference():
    x, (bias, gain) = points(RNG, (4, 3), 1.0), parameters(RNG, 3, 1.0)
    x[1, 0] = np.nan
    assert np.isnan(midpoint_batch_norm(x, bias, gain, 1.0)).all()
    y = midpoint_batch_norm(x, bias, gain, 1.0, np.zeros(3), np.array(1.0))
    assert np.isfinite(y).all(axis=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x = images(RNG, (2, 3, 2, 2), 1.0).astype(dtype)
    bias, gain = (np.asarray(array, dtype) for array in parameters(RNG, 3, 1.0))
    mean, var = midpoint_statistics(x, 1.0)
    moved = update_running_midpoint(mean, var, mean, var, 1.0)
    for statistics in ((None, None), (mean, var)):
        y, pullback = midpoint_batch_norm_vjp(x, bias, gain, 1.0, *statistics)
        entries = [entry for entry in pullback(y) if entry is not None]
        assert {array.dtype for array in (y, mean, var, *moved, *entries)} == {np.dtype(dtype)}
        assert len(entries) == (4 if statistics[0] is None else 6)


def test_arguments_are_not_written_to():
    arrays = (points(RNG, (4, 3), 1.0), *parameters(RNG, 3, 1.0))
    for array in arrays:
        array.setflags(write=False)
    y, pullback = midpoint_batch_norm_vjp(*arrays, 1.0)
    y.setflags(write=False)
    for first, second in zip(pullback(y)[:4], pullback(y)[:4], strict=True):
        np.testing.assert_array_equal(first, second)


X, B, G, ONE = np.full((2, 3), 0.1), np.zeros(3), np.array(1.0), np.array(1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: midpoint_batch_norm(X[0], B, G, 1.0), ValueError, r"x: expected at least 2 dimensions, got shape \(3,\)"),
        (lambda: midpoint_batch_norm(X[None], B, G, 1.0), ValueError, r"x: expected shape \(N, C\) or \(N, C, H, W\), got \(1, 2, 3\)"),
        (lambda: midpoint_batch_norm(X[:0], B, G, 1.0), ValueError, r"x: expected at least one entry along axes \(0, 1\)"),
        (lambda: midpoint_batch_norm(20 * X, B, G, 1.0), ValueError, r"x: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 12"),
        (lambda: midpoint_batch_norm(X, B[:2], G, 1.0), ValueError, r"bias: expected shape \(3,\), got \(2,\)"),
        (lambda: midpoint_batch_norm(X, B, B, 1.0), ValueError, r"gain: expected shape \(\), got \(3,\)"),
        (lambda: midpoint_batch_norm(X, B, -G, 1.0), ValueError, "gain: expected a finite number > 0, got -1.0"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B), ValueError, "mean, var: expected both for inference or neither for training, got only one"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B, -ONE), ValueError, "var: expected a number >= 0, got -1.0"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B + 1, ONE), ValueError, r"mean: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 3"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B[:2], ONE), ValueError, r"mean: expected shape \(3,\), got \(2,\)"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B, B), ValueError, r"var: expected shape \(\), got \(3,\)"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B.astype("f4"), ONE), TypeError, "mean: expected dtype float64 like x, got float32"),
        (lambda: midpoint_batch_norm(X, B, G, 1.0, B, ONE.astype("f4")), TypeError, "var: expected dtype float64 like x, got float32"),
        (lambda: midpoint_batch_norm(X, B.astype("f4"), G, 1.0), TypeError, "bias: expected dtype float64 like x, got float32"),
        (lambda: update_running_midpoint(X, ONE, X, ONE, 1.0), ValueError, "running_mean: expected 1 dimensions"),
        (lambda: update_running_midpoint(B.astype(int), ONE, B, ONE, 1.0), TypeError, "running_mean: expected a float32 or float64 array"),
        (lambda: update_running_midpoint(B, 1, B, ONE, 1.0), TypeError, "running_var: expected a float32 or float64 array"),
        (lambda: update_running_midpoint(B, ONE, B.astype("f4"), ONE, 1.0), TypeError, "mean: expected dtype float64 like running_mean, got float32"),
        (lambda: update_running_midpoint(B, ONE, B[:2], ONE, 1.0), ValueError, r"mean: expected shape \(3,\), got \(2,\)"),
        (lambda: update_running_midpoint(B, ONE, B, ONE, 1.0, momentum=2.0), ValueError, r"momentum: expected a number in \[0, 1\], got 2.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
