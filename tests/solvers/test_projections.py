import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    ball_projection,
    ball_projection_vjp,
    box_projection,
    box_projection_vjp,
    lasso_prox,
    lasso_prox_vjp,
    ridge_prox,
    ridge_prox_vjp,
    simplex_projection,
    simplex_projection_vjp,
    soft_threshold,
    soft_threshold_vjp,
)

RNG = np.random.default_rng(13)
X = RNG.standard_normal((3, 5))

# Steps of the differences are small enough not to cross a kink from these points.
GRADIENT_CASES = [
    GradientCase(box_projection_vjp, (X, -0.5, 0.5), step=1e-4, name="numbers"),
    GradientCase(
        box_projection_vjp,
        (X, X - 0.6 + (X < -1), X + np.where(X > 0, 0.6, -0.3) + (X < -1) * 2),
        step=1e-4,
        name="arrays",
    ),
    GradientCase(box_projection_vjp, (np.array([3.0, -2.0]), np.zeros(2), np.full(2, np.inf)), name="open", step=1e-4),
    GradientCase(simplex_projection_vjp, (X,), step=1e-4, name="rows"),
    GradientCase(simplex_projection_vjp, (np.array([0.3]),), name="one entry"),
    GradientCase(simplex_projection_vjp, (X[0] * 0.01,), {"total": 4.0}, step=1e-4, name="all in the support"),
    GradientCase(ball_projection_vjp, (X, 1.0), step=1e-4, name="outside and inside"),
    GradientCase(ball_projection_vjp, (np.array([0.1, 0.2]), 1.0), name="inside"),
    GradientCase(ball_projection_vjp, (np.array([[0.0, 0.0], [3.0, 4.0]]), np.array(2.0)), step=1e-3, name="zero"),
    GradientCase(soft_threshold_vjp, (X, 0.5), step=1e-4, name="number"),
    GradientCase(soft_threshold_vjp, (X, 0.9 * np.abs(X[::-1])), step=1e-4, name="array"),
    GradientCase(lasso_prox_vjp, (X, 2.0), {"step_size": 0.2}, step=1e-4),
    GradientCase(lasso_prox_vjp, (X, 2.0), {"step_size": RNG.uniform(0.1, 0.3, (3, 5))}, step=1e-4, name="blocks"),
    GradientCase(ridge_prox_vjp, (X, 2.0), {"step_size": 0.2}),
    GradientCase(ridge_prox_vjp, (X, np.array(0.3)), {"step_size": RNG.uniform(0.1, 3, (3, 5))}, name="blocks"),
]

PROJECTIONS = {
    "box": lambda x: box_projection(x, -0.5, 0.25),
    "simplex": simplex_projection,
    "ball": lambda x: ball_projection(x, 0.7),
}


@pytest.mark.parametrize("name", PROJECTIONS)
@given(seed=st.integers(0, 99), size=st.integers(1, 12), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_projections_are_idempotent_and_do_not_expand(name, seed, size, scale):
    project = PROJECTIONS[name]
    x, y = scale * np.random.default_rng(seed).standard_normal((2, size))
    np.testing.assert_allclose(project(project(x)), project(x), atol=1e-15)
    assert np.linalg.norm(project(x) - project(y)) <= np.linalg.norm(x - y) * (1 + 1e-12)


@given(seed=st.integers(0, 99), size=st.integers(1, 12), total=st.floats(0.1, 10), shift=st.floats(-1e3, 1e3))
def test_simplex_has_its_sum_and_ignores_a_shift(seed, size, total, shift):
    x = np.random.default_rng(seed).standard_normal(size)
    y = simplex_projection(x, total=total)
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(), total, rtol=1e-14)
    np.testing.assert_allclose(simplex_projection(x + shift, total=total), y, atol=1e-12)


@given(seed=st.integers(0, 99), size=st.integers(2, 8))
def test_simplex_is_closer_than_other_points_of_the_simplex(seed, size):
    rng = np.random.default_rng(seed)
    x, others = rng.standard_normal(size), rng.dirichlet(np.ones(size), 50)
    assert (np.linalg.norm(x - simplex_projection(x)) <= np.linalg.norm(x - others, axis=1) + 1e-12).all()


def test_simplex_by_hand():
    y, pullback = simplex_projection_vjp(np.array([0.6, 0.5, -1.0]))
    np.testing.assert_allclose(y, [0.55, 0.45, 0.0], rtol=1e-15)
    jacobian = np.stack([pullback(row)[0] for row in np.eye(3)])
    np.testing.assert_array_equal(jacobian, [[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]])


def test_simplex_survives_large_offsets_ties_and_float32():
    x = np.array([1e6, 1e6 + 0.25, 1e6, -1e6], np.float32)
    np.testing.assert_array_equal(simplex_projection(x), np.array([0.25, 0.5, 0.25, 0], np.float32))
    np.testing.assert_allclose(simplex_projection(np.full(7, 3.0)), 1 / 7)


def test_simplex_special_values():
    nan, inf = np.nan, np.inf
    y = simplex_projection(np.array([[nan, 1.0], [inf, 0.0], [-inf, 0.0], [0.2, 0.8]]))
    assert np.isnan(y[:2]).all()
    np.testing.assert_allclose(y[2:], [[0, 1], [0.2, 0.8]])


def test_kinks_have_the_derivative_of_the_closed_side():
    ones = np.ones(1)
    assert box_projection_vjp(ones, 0.0, 1.0)[1](ones)[0] == 0
    assert soft_threshold_vjp(ones, 1.0)[1](ones) == (0, 0)
    np.testing.assert_allclose(
        ball_projection_vjp(np.array([0.6, 0.8]), 1.0)[1](np.array([0.6, 0.8]))[0], 0, atol=1e-16
    )


def test_box_of_one_point():
    y, pullback = box_projection_vjp(np.array([3.0, -3.0]), 1.0, 1.0)
    assert (y == 1).all()
    dx, dlower, dupper = pullback(np.array([1.0, 2.0]))
    assert (dx == 0).all()
    assert dlower + dupper == 3.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ball_neither_overflows_nor_vanishes(scale):
    np.testing.assert_allclose(ball_projection(np.array([3.0, 4.0]) * scale, scale), np.array([0.6, 0.8]) * scale)


def test_nan_is_kept():
    x = np.array([np.nan, 2.0])
    for y in (box_projection(x, 0.0, 1.0), soft_threshold(x, 0.5), ridge_prox(x, 1.0)):
        assert np.isnan(y[0])
        assert np.isfinite(y[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x = X.astype(dtype)
    for vjp, extra in (
        (box_projection_vjp, (-0.5, np.asarray(0.5, dtype))),
        (simplex_projection_vjp, ()),
        (ball_projection_vjp, (1.0,)),
        (soft_threshold_vjp, (0.5,)),
        (lasso_prox_vjp, (0.5,)),
        (ridge_prox_vjp, (0.5,)),
    ):
        y, pullback = vjp(x, *extra)
        assert [y.dtype, *(entry.dtype for entry in pullback(y))] == [dtype] * (2 + len(extra))


def test_lasso_prox_is_a_scaled_soft_threshold():
    np.testing.assert_array_equal(lasso_prox(X, 2.0, step_size=0.25), soft_threshold(X, 0.5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: box_projection(X, 1.0, 0.0), ValueError, "lower: expected bounds not above upper, got 1 that are"),
        (lambda: box_projection(X, np.zeros(5), 1.0), ValueError, r"lower: expected shape \(3, 5\), got \(5,\)"),
        (lambda: box_projection(X, np.nan, 1.0), ValueError, "lower: expected numbers, got NaN"),
        (lambda: box_projection(X, np.zeros((3, 5), "f4"), 1.0), TypeError, "lower: expected dtype float64 like x"),
        (lambda: simplex_projection(np.zeros((2, 0))), ValueError, "x: expected at least one entry along axes"),
        (lambda: simplex_projection(X, total=0.0), ValueError, "total: expected a finite number > 0, got 0.0"),
        (lambda: ball_projection(X, -1.0), ValueError, "radius: expected a finite number > 0, got -1.0"),
        (lambda: ball_projection(X, np.ones(3)), ValueError, r"radius: expected shape \(3, 5\), got \(3,\)"),
        (lambda: soft_threshold(X, -1.0), ValueError, "threshold: expected values >= 0, got -1.0"),
        (lambda: lasso_prox(X, -1.0), ValueError, "penalty: expected a finite number >= 0, got -1.0"),
        (lambda: ridge_prox(X, 1.0, step_size=0.0), ValueError, "step_size: expected finite numbers > 0, got 0.0"),
        (lambda: simplex_projection([1, 2]), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_list_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"lower: expected shape \(3,\), got \(2,\)"):
        box_projection(np.zeros(3), [0.0, 1.0], 2.0)
