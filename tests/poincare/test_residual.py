import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given

from refnorm import nn
from refnorm.gradcheck import GradientCase
from refnorm.poincare import (
    avg_pool2d,
    avg_pool2d_vjp,
    dist,
    exp0,
    log0,
    mobius_add,
    relu,
    relu_vjp,
    residual_add,
    residual_add_vjp,
)

ball, conv = load(TESTS / "poincare" / "test_ball.py"), load(TESTS / "poincare" / "test_conv2d.py")
points, any_points, images = ball.points, ball.any_points, conv.images
RNG = np.random.default_rng(8)


def cases(curvature, n):
    x, y = points(RNG, (4, n), curvature), points(RNG, (4, n), curvature)
    small = {"step": 1e-3, "name": f"curvature {curvature}, {n} coordinates"}
    return [
        # On a line ReLU does not depend on the curvature, and differences measure rounding errors.
        *([GradientCase(relu_vjp, (x, curvature), **small)] if n > 1 else []),
        GradientCase(residual_add_vjp, (x, y, curvature), **small),
        GradientCase(residual_add_vjp, (x, y, curvature), {"order": "rf"}, **small),
        GradientCase(avg_pool2d_vjp, (images(RNG, (1, n, 4, 3), curvature), curvature), {"size": 2}, **small),
    ]


GRADIENT_CASES = [case for c, n in ((1.0, 2), (0.1, 1), (7.3, 5)) for case in cases(c, n)]
X = images(RNG, (2, 3, 4, 4), 1.0)
GRADIENT_CASES += [
    GradientCase(relu_vjp, (X, np.array(0.9)), {"axis": 1}, step=1e-3, name="axis 1"),
    GradientCase(relu_vjp, (-np.abs(X), 1.0), {"axis": 1}, step=1e-3, name="all negative"),
    GradientCase(relu_vjp, (points(RNG, (6, 3), 1.0, 0.99, 0.995), 1.0), step=1e-4, name="far out"),
    GradientCase(relu_vjp, (1e-3 * points(RNG, (6, 3), 1.0), 1.0), step=1e-1, name="near the origin"),
    GradientCase(relu_vjp, (0.999999 * np.array([[0.6, 0.8], [1.0, -1e-3]]), 1.0), step=1e-8, tolerance=1e-4, name="projected"),
    GradientCase(
        avg_pool2d_vjp,
        (images(RNG, (1, 3, 2, 1), 1.0, 1 - 1.2e-6, 1 - 8e-7).repeat(2, axis=2).repeat(2, axis=3), 1.0),
        {"size": 2},
        step=1e-8,
        tolerance=1e-4,
        name="projected",
    ),
    GradientCase(residual_add_vjp, (X, X[::-1], 1.0), {"axis": 1}, step=1e-3, name="axis 1"),
    GradientCase(avg_pool2d_vjp, (X, 1.0), {"size": (3, 2), "stride": (1, 2)}, step=1e-3, name="overlapping"),
    GradientCase(avg_pool2d_vjp, (np.zeros((1, 2, 2, 2)), 1.0), {"size": 2}, step=1e-3, name="origin"),
]  # fmt: skip


@given(given_points=any_points())
def test_relu_is_the_rectified_logarithm_everywhere_in_the_ball(given_points):
    dtype, curvature, _, x = given_points
    y = relu(x, curvature, project=False)
    expected = exp0(np.maximum(log0(x, curvature), 0).astype(dtype), curvature, project=False)
    np.testing.assert_allclose(y, expected, rtol=0, atol=40 * np.finfo(dtype).eps / np.sqrt(curvature))
    assert y.dtype == dtype
    assert ball.inside(y, curvature)
    np.testing.assert_allclose(
        relu(y, curvature, project=False), y, rtol=0, atol=8 * np.finfo(dtype).eps / np.sqrt(curvature)
    )


@given(given_points=any_points())
def test_relu_and_its_pullback_never_give_nan(given_points):
    dtype, curvature, _, x = given_points
    y, pullback = relu_vjp(x, curvature)
    for entry in (y, *pullback((1e-12 * np.ones_like(y)).astype(dtype))[:-1]):
        assert np.isfinite(entry).all()


def test_relu_moves_no_point_away_from_the_origin_and_keeps_positive_ones():
    x = points(RNG, (50, 4), 0.6)
    origin = np.zeros_like(x)
    assert (dist(relu(x, 0.6), origin, 0.6) <= dist(x, origin, 0.6) * (1 + 1e-14)).all()
    np.testing.assert_allclose(relu(np.abs(x), 0.6), np.abs(x), rtol=1e-13)
    assert (relu(-np.abs(x), 0.6) == 0).all()


def test_where_all_coordinates_are_positive_the_pullback_is_the_identity():
    x = np.abs(points(RNG, (20, 3), 0.6, 0.1, 0.9999))
    _, pullback = relu_vjp(x, 0.6, project=False)
    dx, dc = pullback(x)
    np.testing.assert_allclose(dx, x, rtol=1e-11)
    assert abs(dc) < 1e-10


def test_coordinates_at_zero_get_no_cotangent():
    x = np.array([[0.0, 0.5], [0.0, 0.0]])
    y, pullback = relu_vjp(x, 1.0)
    np.testing.assert_allclose(y, x)
    dx, dc = pullback(np.ones((2, 2)))
    assert dx[0, 0] == 0
    assert (dx[1] == 0).all()
    assert np.isfinite(dc)


def test_residual_sum_is_mobius_addition_in_the_order_that_is_asked_for():
    f, skip = points(RNG, (2, 5, 3), 0.8)
    np.testing.assert_array_equal(residual_add(f, skip, 0.8), mobius_add(f, skip, 0.8))
    np.testing.assert_array_equal(residual_add(f, skip, 0.8, order="rf"), mobius_add(skip, f, 0.8))
    lengths = [np.linalg.norm(residual_add(f, skip, 0.8, order=order), axis=-1) for order in ("fr", "rf")]
    np.testing.assert_allclose(*lengths, rtol=1e-13)


def test_a_branch_that_computes_the_origin_is_skipped():
    x = points(RNG, (5, 3), 1.0)
    for order in ("fr", "rf"):
        np.testing.assert_allclose(residual_add(0 * x, x, 1.0, order=order), x, rtol=1e-15)


def test_pooling_averages_logarithms():
    x = images(RNG, (2, 3, 5, 4), 0.7)
    expected = exp0(nn.avg_pool2d(log0(x, 0.7, axis=1), (3, 2), stride=(2, 1)), 0.7, axis=1)
    np.testing.assert_allclose(avg_pool2d(x, 0.7, size=(3, 2), stride=(2, 1)), expected, rtol=1e-13)
    np.testing.assert_allclose(avg_pool2d(x, 0.7, size=1), x, rtol=1e-13)


def test_small_curvature_gives_the_flat_operations():
    x, y = RNG.standard_normal((2, 1, 3, 4, 4))
    np.testing.assert_allclose(relu(x, 1e-14), np.maximum(x, 0), atol=1e-12)
    np.testing.assert_allclose(residual_add(x, y, 1e-14), x + y, atol=1e-12)
    np.testing.assert_allclose(avg_pool2d(x, 1e-14, size=2), nn.avg_pool2d(x, 2), atol=1e-12)


def test_unit_of_length_does_not_matter():
    x, scale = images(RNG, (1, 2, 2, 2), 1.0), 2.0**-150
    for f in (
        lambda p, c: relu(p, c, axis=1),
        lambda p, c: residual_add(p, p, c),
        lambda p, c: avg_pool2d(p, c, size=2),
    ):
        assert (f(scale * x, scale**-2) == scale * f(x, 1.0)).all()


def test_nan_stays_in_its_row_and_window():
    x = images(RNG, (1, 2, 4, 4), 1.0)
    x[0, 1, 3, 3] = np.nan
    assert np.isnan(relu(x, 1.0, axis=1)[0, :, 3, 3]).all()
    pooled = avg_pool2d(x, 1.0, size=2)
    assert np.isnan(pooled[0, :, 1, 1]).all()
    assert np.isfinite(pooled[0, :, 0]).all()
    assert np.isfinite(relu(x, 1.0, axis=1)[0, :, :3]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x = images(RNG, (1, 2, 4, 4), 1.0).astype(dtype)
    x.setflags(write=False)
    calls = [
        relu_vjp(x, 1.0, axis=1),
        residual_add_vjp(x, x, 1.0, axis=1),
        residual_add_vjp(x, x, 1.0, axis=1, order="rf"),
        avg_pool2d_vjp(x, 1.0, size=2),
    ]
    for y, pullback in calls:
        y.setflags(write=False)
        assert {array.dtype for array in (y, *pullback(y))} == {np.dtype(dtype)}


P = np.full((1, 2, 3, 3), 0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: relu(20 * P, 1.0), ValueError, r"x: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 12"),
        (lambda: relu(P, np.nan), ValueError, "curvature: expected a finite number > 0, got nan"),
        (lambda: residual_add(P, P[0], 1.0), ValueError, r"skip: expected shape \(1, 2, 3, 3\), got \(2, 3, 3\)"),
        (lambda: residual_add(P, 20 * P, 1.0, order="rf"), ValueError, r"skip: expected points with curvature \* \|x\|\^2 < 1"),
        (lambda: residual_add(P, P, 1.0, order="ff"), ValueError, "order: expected one of 'fr', 'rf', got 'ff'"),
        (lambda: avg_pool2d(P[0], 1.0, size=2), ValueError, r"x: expected 4 dimensions, got shape \(2, 3, 3\)"),
        (lambda: avg_pool2d(P, 1.0, size=4), ValueError, r"x: expected padded images of at least 4 x 4 pixels, got \(3, 3\)"),
        (lambda: avg_pool2d(P, 1.0, size=0), ValueError, "size: expected an integer >= 1, got 0"),
        (lambda: avg_pool2d(P, 1.0, size=2, stride=0), ValueError, "stride: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
