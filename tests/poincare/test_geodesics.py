import mpmath
import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.poincare import (
    conformal_factor,
    dist,
    dist_sq,
    dist_sq_vjp,
    dist_vjp,
    exp0,
    expmap,
    expmap_vjp,
    gyration,
    gyration_vjp,
    log0,
    logmap,
    logmap_vjp,
    mobius_add,
    transport,
    transport_vjp,
)

ball = load(TESTS / "poincare" / "test_ball.py")
gap = ball.gap
truth, points, any_points, relative_error = ball.truth, ball.points, ball.any_points, ball.relative_error
RNG = np.random.default_rng(2)


def geodesic_cases(curvature, n):
    x, y = points(RNG, (3, n), curvature), points(RNG, (3, n), curvature)
    v = 0.5 * RNG.standard_normal((3, n)) / np.sqrt(curvature)
    small = {"step": 1e-3, "name": f"curvature {curvature}, {n} coordinates"}
    free = {"project": False}
    return [
        GradientCase(expmap_vjp, (x, 0.3 * v, curvature), free, **small),
        GradientCase(expmap_vjp, (x, 20 * v, curvature), **small),
        GradientCase(expmap_vjp, (points(RNG, (3, n), curvature, 0.6), -x, curvature), free, **small),
        GradientCase(logmap_vjp, (x, y, curvature), **small),
        GradientCase(dist_vjp, (x, y, curvature), **small),
        GradientCase(dist_sq_vjp, (x, y, curvature), **small),
        GradientCase(transport_vjp, (x, y, v, curvature), **small),
    ]


GRADIENT_CASES = [case for c, n in ((1.0, 2), (0.1, 3), (7.3, 5)) for case in geodesic_cases(c, n)]
X, Y, V = points(RNG, (3, 2, 3), 1.0)
GRADIENT_CASES += [
    GradientCase(gyration_vjp, (X, Y, V, 1.0), step=1e-3),
    GradientCase(gyration_vjp, (X.T, Y.T, 4 * V.T, 0.5), {"axis": 0}, step=1e-3, name="axis 0"),
    GradientCase(gyration_vjp, (X, 0.05 * Y - X, V, 1.0), step=1e-4, name="nearly opposite"),
    GradientCase(expmap_vjp, (X, 0 * X, 1.0), {"project": False}, step=1e-3, name="no velocity"),
    GradientCase(expmap_vjp, (0 * X, V, 1.0), {"project": False}, step=1e-3, name="from the origin"),
    GradientCase(expmap_vjp, (X.T, V.T, 0.5), {"axis": 0}, step=1e-3, name="axis 0"),
    GradientCase(expmap_vjp, (X, -3 * X, 1.0), {"project": False}, step=1e-3, name="through the origin"),
    GradientCase(logmap_vjp, (X.T, Y.T, 0.5), {"axis": 0}, step=1e-3, name="axis 0"),
    GradientCase(logmap_vjp, (X, 1.001 * X, 1.0), step=1e-3, name="near points"),
    GradientCase(logmap_vjp, (X, 0 * X, 1.0), step=1e-3, name="to the origin"),
    GradientCase(dist_vjp, (X.T, Y.T, 0.5), {"axis": 0}, step=1e-3, name="axis 0"),
    GradientCase(dist_sq_vjp, (X.T, Y.T, 0.5), {"axis": 0}, step=1e-3, name="axis 0"),
    GradientCase(transport_vjp, (X.T, Y.T, 3 * V.T, 0.5), {"axis": 0}, step=1e-3, name="axis 0"),
    GradientCase(transport_vjp, (X, X, V, 1.0), step=1e-3, name="nowhere"),
]


@given(given_points=any_points(2))
def test_distance_and_logarithm_are_exact_to_their_stated_bounds(given_points):
    _, curvature, _, x, y = given_points
    exact = truth.value(truth.dist, (x, y, curvature))
    assert relative_error(dist(x, y, curvature)[None], exact) <= x.size + 12
    exact = truth.value(truth.logmap, (x, y, curvature))
    assert relative_error(logmap(x, y, curvature), exact) <= x.size + 20


@given(given_points=any_points(2), reach=st.sampled_from([1e-9, 0.1, 1.0, 30.0, 1e6, 1e30]))
def test_no_point_of_the_ball_gives_nan_or_infinity(given_points, reach):
    dtype, curvature, rng, x, y = given_points
    v = (reach * rng.standard_normal(x.size) / np.sqrt(curvature)).astype(dtype)
    calls = [
        (expmap_vjp, (x, v)),
        (expmap_vjp, (x, -x)),
        (logmap_vjp, (x, y)),
        (dist_vjp, (x, y)),
        (dist_sq_vjp, (x, y)),
        (gyration_vjp, (x, y, y)),
        (transport_vjp, (x, y, y)),
    ]
    for f_vjp, args in calls:
        value, pullback = f_vjp(*args, curvature)
        assert np.isfinite(value).all(), f_vjp
        # Gradients by a point grow with 1/gap^2 times the gap of the result, up to 10^32 in float64.
        for entry in pullback((1e-12 * np.ones_like(value)).astype(dtype))[:-1]:
            assert np.isfinite(entry).all(), f_vjp


@given(given_points=any_points(2), reach=st.sampled_from([1e-3, 1.0, 5.0, 30.0]))
def test_the_exponential_is_exact_for_nearby_arguments(given_points, reach):
    # Hyperbolic distance from the truth, against what perturbing point and velocity by u may move.
    dtype, curvature, rng, x, _ = given_points
    v = rng.standard_normal(x.size)
    with mpmath.workdps(60):
        factor = 2 / (1 - mpmath.mpf(curvature) * truth.dot(truth.vec(x), truth.vec(x)))
        v = (v / np.linalg.norm(v) * reach / np.sqrt(curvature) / float(factor)).astype(dtype)
        exact = truth.expmap(truth.vec(x), truth.vec(v), mpmath.mpf(curvature))
        got = truth.vec(expmap(x, v, curvature, project=False))
        gap_x, gap_y, gap_got = (1 - mpmath.mpf(curvature) * truth.dot(p, p) for p in (truth.vec(x), exact, got))
        moved = truth.length(truth.plus(got, exact, -1)) * mpmath.sqrt(curvature)
    u, result_u = 2.0**-53, float(np.finfo(dtype).epsneg)
    assert float(gap_got) > 0
    allowed = 50 * (x.size + 8) * u * (1 + reach) * min(1 / float(gap_x), 2 / u) * max(float(gap_y), u)
    assert float(moved) <= allowed + 4 * result_u


def test_exponential_from_the_boundary_straight_through_the_ball():
    # Radius, velocity and end point lie on one axis, where rounding leaves the direction exact.
    x = np.array([[1 - 2.0**-53, 0.0], [1 - 2.0**-40, 0.0]])
    for length in (1e-16, 1e-13, 1e-10, 1.0, 1e300):
        v = np.array([[-length, 0.0]] * 2)
        expected = truth_rows(truth.expmap, (x, v), 1.0) if length < 1 else -np.array([[1.0, 0.0]] * 2)
        np.testing.assert_allclose(expmap(x, v, 1.0, project=False), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gap_bits", [20, 40, 52])
@pytest.mark.parametrize("past", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_a_dive_from_the_boundary_comes_up_where_it_should(gap_bits, past):
    # On an axis no direction is rounded: the point and the velocity are what they are, and so is the end point.
    radius = 1 - 2.0**-gap_bits
    x = np.array([[-radius, 0.0]])
    v = np.array([[(np.arctanh(radius) + past) * gap(x, 1.0)[0, 0], 0.0]])
    expected = truth_rows(truth.expmap, (x, v), 1.0)
    np.testing.assert_allclose(expmap(x, v, 1.0, project=False), expected, rtol=0, atol=1e-14)


def test_no_velocity_is_too_long_where_no_number_is_nearer_to_the_boundary():
    # Found by search: 1 - |x|^2 is 3e-21.
    x = np.array([[float.fromhex("0x1.181d7dbf500a2p-1"), float.fromhex("0x1.ac94144ca626ap-1")]])
    v = np.array([[-np.finfo(np.float64).max, 0.0]])
    np.testing.assert_allclose(expmap(x, v, 1.0, project=False), x, rtol=1e-15)


def truth_rows(function, arrays, curvature):
    return np.stack([truth.value(function, (*row, curvature)) for row in zip(*arrays, strict=True)])


@given(seed=st.integers(0, 99), curvature=st.sampled_from([0.1, 1.0, 5.0]))
def test_exponential_and_logarithm_are_inverse(seed, curvature):
    rng = np.random.default_rng(seed)
    x, y = points(rng, (2, 4, 3), curvature)
    np.testing.assert_allclose(
        expmap(x, logmap(x, y, curvature), curvature, project=False), y, atol=1e-12 / np.sqrt(curvature)
    )


def test_origin_is_the_special_case():
    y = points(RNG, (5, 4), 0.4)
    zero = np.zeros_like(y)
    np.testing.assert_allclose(logmap(zero, y, 0.4), log0(y, 0.4), rtol=1e-14)
    np.testing.assert_allclose(expmap(zero, y, 0.4), exp0(y, 0.4), rtol=1e-14)


@given(seed=st.integers(0, 99))
def test_distance_is_a_metric_that_translations_keep(seed):
    rng = np.random.default_rng(seed)
    x, y, z = points(rng, (3, 4, 3), 1.0, high=0.99)
    assert (dist(x, y, 1.0) == dist(y, x, 1.0)).all()
    assert (dist(x, z, 1.0) <= dist(x, y, 1.0) + dist(y, z, 1.0) + 1e-12).all()
    moved = dist(mobius_add(z, x, 1.0), mobius_add(z, y, 1.0), 1.0)
    np.testing.assert_allclose(moved, dist(x, y, 1.0), rtol=1e-11)


def test_length_of_the_logarithm_is_the_distance():
    x, y = points(RNG, (2, 5, 4), 2.0)
    length = conformal_factor(x, 2.0) * np.linalg.norm(logmap(x, y, 2.0), axis=-1)
    np.testing.assert_allclose(length, dist(x, y, 2.0), rtol=1e-14)


def test_squared_distance_has_minus_twice_the_logarithm_as_gradient():
    x, y = points(RNG, (2, 5, 4), 2.0)
    dx, dy, _ = dist_sq_vjp(x, y, 2.0)[1](np.ones(5))
    for at, to, gradient in ((x, y, dx), (y, x, dy)):
        factor = conformal_factor(at, 2.0)[:, None]
        np.testing.assert_allclose(gradient, -2 * factor**2 * logmap(at, to, 2.0), rtol=1e-13)


def test_coinciding_points():
    x = points(RNG, (2, 3), 1.0)
    assert (dist(x, x, 1.0) == 0).all()
    assert all((entry == 0).all() for entry in dist_vjp(x, x, 1.0)[1](np.ones(2)))
    _, pullback = logmap_vjp(x, x, 1.0)
    g = RNG.standard_normal((2, 3))
    dx, dy, dc = pullback(g)
    np.testing.assert_allclose(dx, -g, rtol=1e-14)
    np.testing.assert_allclose(dy, g, rtol=1e-14)
    assert dc == 0


def test_distance_of_neighbours_keeps_its_digits():
    x = np.array([0.6, 0.3])
    y = np.nextafter(x, 1)
    expected = conformal_factor(x, 1.0) * np.linalg.norm(y - x)
    np.testing.assert_allclose(dist(x, y, 1.0), expected, rtol=1e-15)
    np.testing.assert_allclose(dist_sq(x, y, 1.0), expected**2, rtol=1e-15)


@given(given_points=any_points(2), seed=st.integers(0, 99))
def test_gyration_is_a_rotation(given_points, seed):
    dtype, curvature, rng, u, v = given_points
    a, b = rng.standard_normal((2, u.size)).astype(dtype)
    ga, gb = gyration(u, v, a, curvature), gyration(u, v, b, curvature)
    tolerance = 60 * (u.size + 4) * float(np.finfo(dtype).epsneg)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    assert abs(float(ga.astype(float) @ gb) - float(a.astype(float) @ b)) <= tolerance * size
    back = gyration(v, u, ga, curvature)
    assert np.linalg.norm(back - a) <= tolerance * np.linalg.norm(a)


def test_gyration_repairs_commutativity_and_associativity():
    u, v, w = points(RNG, (3, 5, 3), 1.0, high=0.7)
    swapped = gyration(u, v, mobius_add(v, u, 1.0), 1.0)
    np.testing.assert_allclose(mobius_add(u, v, 1.0), swapped, rtol=1e-12)
    left = mobius_add(u, mobius_add(v, w, 1.0), 1.0)
    right = mobius_add(mobius_add(u, v, 1.0), gyration(u, v, w, 1.0), 1.0)
    np.testing.assert_allclose(left, right, rtol=1e-11)


def test_transport_keeps_inner_products_and_the_geodesic_direction():
    x, y = points(RNG, (2, 5, 3), 0.5)
    v, w = RNG.standard_normal((2, 5, 3))
    at_x = conformal_factor(x, 0.5) ** 2 * (v * w).sum(axis=-1)
    at_y = conformal_factor(y, 0.5) ** 2 * (transport(x, y, v, 0.5) * transport(x, y, w, 0.5)).sum(axis=-1)
    np.testing.assert_allclose(at_y, at_x, rtol=1e-12)
    np.testing.assert_allclose(transport(x, y, logmap(x, y, 0.5), 0.5), -logmap(y, x, 0.5), rtol=1e-10)
    np.testing.assert_allclose(transport(x, x, v, 0.5), v, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, y = (a.astype(dtype) for a in (X, Y))
    for f_vjp, args in (
        (expmap_vjp, (x, y)),
        (logmap_vjp, (x, y)),
        (dist_vjp, (x, y)),
        (dist_sq_vjp, (x, y)),
        (gyration_vjp, (x, y, x)),
        (transport_vjp, (x, y, x)),
    ):
        value, pullback = f_vjp(*args, 1.0)
        assert value.dtype == dtype
        assert [entry.dtype for entry in pullback(value)] == [dtype] * (len(args) + 1)


def test_axis_and_unit_of_length_do_not_matter():
    x, y = points(RNG, (2, 4, 3), 1.0)
    for f in (logmap, dist):
        assert (f(x, y, 1.0) == f(x.T.copy(), y.T.copy(), 1.0, axis=0).T).all()
    scale = 2.0**200
    assert (dist(scale * x, scale * y, scale**-2) == scale * dist(x, y, 1.0)).all()
    assert (logmap(scale * x, scale * y, scale**-2) == scale * logmap(x, y, 1.0)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dist(X, Y[:1], 1.0), ValueError, r"y: expected shape \(2, 3\), got \(1, 3\)"),
        (lambda: dist(X, 9 * Y, 1.0), ValueError, r"y: expected points with curvature \* \|x\|\^2 < 1"),
        (lambda: expmap(9 * X, Y, 1.0), ValueError, r"x: expected points with curvature"),
        (lambda: gyration(X, Y, V.astype("f4"), 1.0), TypeError, "w: expected dtype float64 like u, got float32"),
        (lambda: transport(X, Y, V, -1.0), ValueError, "curvature: expected a finite number > 0, got -1.0"),
        (lambda: dist_vjp(X, Y, 1.0)[1](np.ones(3)), ValueError, r"cotangent: expected shape \(2,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
