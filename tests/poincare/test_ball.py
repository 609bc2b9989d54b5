from fractions import Fraction

import mpmath
import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given
from hypothesis import strategies as st

from refnorm import poincare
from refnorm.gradcheck import GradientCase
from refnorm.poincare import (
    conformal_factor,
    conformal_factor_vjp,
    dist,
    dist_sq,
    exp0,
    exp0_vjp,
    expmap,
    expmap_vjp,
    log0,
    log0_vjp,
    mobius_add,
    mobius_add_vjp,
    mobius_matvec,
    mobius_matvec_vjp,
    mobius_scalar_mul,
    mobius_scalar_mul_vjp,
    project_ball,
    project_ball_vjp,
)
from refnorm.poincare._frame import Frame
from refnorm.poincare._numerics import (
    artanh_bend,
    artanh_ratio,
    cosh_excess,
    gap,
    norm,
    tanh_bend,
    tanh_excess,
)

truth = load(TESTS / "golden" / "poincare" / "ball.py")
U = 2.0**-53
RNG = np.random.default_rng(1)


def points(rng, shape, curvature, low=0.05, high=0.9):
    direction = rng.standard_normal(shape)
    radius = rng.uniform(low, high, (*shape[:-1], 1)) / np.sqrt(curvature)
    return direction / np.linalg.norm(direction, axis=-1, keepdims=True) * radius


def ball_cases(curvature, n):
    x, y = points(RNG, (3, n), curvature), points(RNG, (3, n), curvature)
    v = 0.5 * RNG.standard_normal((3, n)) / np.sqrt(curvature)
    small = {"step": 1e-3, "name": f"curvature {curvature}, {n} coordinates"}
    return [
        GradientCase(mobius_add_vjp, (x, y, curvature), **small),
        GradientCase(mobius_scalar_mul_vjp, (0.7, x, curvature), **small),
        GradientCase(mobius_scalar_mul_vjp, (RNG.standard_normal(3), x, curvature), **small),
        GradientCase(mobius_matvec_vjp, (RNG.standard_normal((4, n)), x, curvature), **small),
        GradientCase(exp0_vjp, (v, curvature), **small),
        GradientCase(exp0_vjp, (30 * v, curvature), **small),
        GradientCase(log0_vjp, (x, curvature), **small),
        GradientCase(conformal_factor_vjp, (x, curvature), **small),
        GradientCase(project_ball_vjp, (1.3 * x, curvature), {"eps": 0.2}, **small),
    ]


GRADIENT_CASES = [case for c, n in ((1.0, 2), (0.1, 1), (7.3, 5)) for case in ball_cases(c, n)]
EDGE = points(RNG, (2, 3, 4), 1.0).transpose(0, 2, 1)
GRADIENT_CASES += [
    GradientCase(mobius_add_vjp, (EDGE, EDGE[::-1], 1.0), {"axis": 1}, step=1e-3, name="axis 1"),
    GradientCase(mobius_add_vjp, (EDGE, -EDGE, 1.0), {"axis": 1}, step=1e-3, name="opposite points"),
    GradientCase(
        mobius_matvec_vjp,
        (RNG.standard_normal((2, 4)), EDGE, np.array(0.8)),
        {"axis": 1, "project": True},
        step=1e-3,
        name="axis 1, projected",
    ),
    GradientCase(exp0_vjp, (np.zeros((2, 3)), 2.0), step=1e-3, name="origin"),
    GradientCase(log0_vjp, (np.zeros((2, 3)), 2.0), step=1e-3, name="origin"),
    GradientCase(mobius_scalar_mul_vjp, (-1.3, np.zeros((2, 3)), 2.0), step=1e-3, name="origin"),
    GradientCase(exp0_vjp, (EDGE, 1.0), {"axis": 1, "project": False}, step=1e-3, name="axis 1"),
    GradientCase(log0_vjp, (EDGE, 1.0), {"axis": 1}, step=1e-3, name="axis 1"),
    GradientCase(conformal_factor_vjp, (EDGE, 1.0), {"axis": 1}, step=1e-3, name="axis 1"),
    GradientCase(project_ball_vjp, (3 * EDGE, 1.0), {"axis": 1}, step=1e-3, name="axis 1"),
]

dtypes = st.sampled_from([np.float32, np.float64])
curvatures = st.sampled_from([1.0, 0.1, 3.0, 1e-6, 1e8])


@st.composite
def any_points(draw, count=1, max_size=6):
    """Points anywhere in the ball: at the origin, one rounding unit from the boundary, opposite, equal."""
    dtype, curvature = draw(dtypes), draw(curvatures)
    u = float(np.finfo(dtype).epsneg)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    radius = st.sampled_from([1 - u, 1 - 2 * u, 1 - 100 * u, 1 - 1e-3, 0.7, 0.5, 1e-3, 1e-9, 1e-30, 0.0])
    n = draw(st.integers(1, max_size))
    found = [truth.ball_points(dtype, n, rng, (draw(radius),), curvature)[0]]
    for _ in range(count - 1):
        kind = draw(st.sampled_from(["free", "same", "opposite", "neighbour", "opposite neighbour"]))
        if kind == "free":
            found.append(truth.ball_points(dtype, n, rng, (draw(radius),), curvature)[0])
        else:
            near = np.nextafter(found[0], dtype(0)) if "neighbour" in kind else found[0]
            found.append(-near if "opposite" in kind else near)
    return dtype, curvature, rng, *found


def relative_error(actual, expected):
    """Length of the error over length of the truth, in units roundoff of the result's dtype."""
    actual = np.asarray(actual)
    error = np.ravel(actual).astype(np.longdouble) - np.ravel(expected)
    size = norm(np.ravel(expected).astype(float)[None])[0, 0]
    wrong = norm(error.astype(float)[None])[0, 0]
    return wrong / size / float(np.finfo(actual.dtype).epsneg) if size else wrong


def inside(x, curvature):
    with mpmath.workdps(60):
        return mpmath.mpf(float(curvature)) * truth.dot(truth.vec(x), truth.vec(x)) < 1


@given(given_points=any_points())
def test_gap_is_exact_to_two_roundings(given_points):
    _, curvature, _, x = given_points
    with mpmath.workdps(100):
        exact = 1 - mpmath.mpf(curvature) * truth.dot(truth.vec(x), truth.vec(x))
        got = mpmath.mpf(float(gap(x.astype(float)[None], curvature)[0, 0]))
        assert abs(got - exact) <= 2 * U * exact


def test_gap_is_right_where_doubled_precision_ends():
    # 1 - x^2 - y^2 with y chosen so that about 2^-104 is left.
    x = np.array([[0.6, 0.0]])
    x[0, 1] = np.sqrt(1 - x[0, 0] ** 2)
    for _ in range(4):
        with mpmath.workdps(100):
            exact = 1 - truth.dot(truth.vec(x[0]), truth.vec(x[0]))
        assert float(gap(x, 1.0)[0, 0]) == float(exact)
        x[0, 1] = np.nextafter(x[0, 1], 0)


@pytest.mark.parametrize(
    ("curvature", "coordinates"),
    [
        (0.7, "0x1.7acaa8766fe12p-1 -0x1.da53e6013b247p-1 0x1.3664e7b6e5b64p-3"),
        (1.3, "-0x1.a2fd70b90a8acp-2 -0x1.422edc32d65e2p-2 -0x1.48146e1e14f72p-2 -0x1.530386957786dp-4 "
              "-0x1.16b60fe842a2bp-1 -0x1.6c40b34cc24d1p-5 -0x1.cd758b772b8f1p-3 0x1.aec8f58de0835p-3"),
    ],
)  # fmt: skip
def test_gap_is_right_where_squares_of_roundings_count(curvature, coordinates):
    # Found by search: the gap is 10^-21, of which products and sums with their rounding errors know 40 bits.
    x = [float.fromhex(text) for text in coordinates.split()]
    exact = 1 - Fraction(curvature) * sum(Fraction(value) ** 2 for value in x)
    assert 0 < exact < 1e-21
    assert abs(Fraction(float(gap(np.array([x]), curvature)[0, 0])) - exact) <= 2 * U * exact


@pytest.mark.parametrize(
    ("ours", "exact", "limit"),
    [
        (tanh_bend, lambda s: mpmath.sech(s) ** 2 - mpmath.tanh(s) / s, 12),
        (tanh_excess, lambda s: mpmath.tanh(s) - s, 8),
        (cosh_excess, lambda s: s * mpmath.cosh(s) - mpmath.sinh(s), 12),
        (lambda s: artanh_ratio(s, gap(s, 1.0)), lambda s: mpmath.atanh(s) / s, 6),
        (lambda s: artanh_bend(s, gap(s, 1.0)), lambda s: 1 / (1 - s * s) - mpmath.atanh(s) / s, 16),
    ],
    ids=["tanh_bend", "tanh_excess", "cosh_excess", "artanh_ratio", "artanh_bend"],
)
def test_helper_functions_against_mpmath(ours, exact, limit):
    # Both sides of every switch from series to direct formula, and the whole range.
    s = np.concatenate([np.geomspace(1e-9, 0.999, 80), [0.4999, 0.5, 0.5001, 1 - U, 1 - 1e-12]])
    if ours in (tanh_bend, tanh_excess, cosh_excess):
        s = np.concatenate([s, [0.9999, 1.0, 1.0001, 2.0, 5.0, 30.0, 300.0]])
    with mpmath.workdps(80):
        expected = np.array([float(exact(mpmath.mpf(float(value)))) for value in s])
    error = np.abs(ours(s[:, None])[:, 0] - expected) / np.abs(np.spacing(expected))
    assert error.max() <= limit


def test_helper_functions_are_odd_where_they_are():
    s = np.concatenate([np.geomspace(1e-9, 30, 40), [1.0]])[:, None]
    for function in (tanh_excess, cosh_excess):
        np.testing.assert_allclose(function(-s), -function(s), rtol=1e-14)


def test_the_shortest_vectors_have_lengths_and_directions():
    x = np.array([[3e-200, -4e-200], [3e-320, -4e-320]])
    np.testing.assert_allclose(norm(x)[:, 0], [5e-200, 5e-320], rtol=1e-3)
    np.testing.assert_allclose(dist(0 * x, x, 1.0), [1e-199, 1e-319], rtol=1e-3)
    for curvature in (1e200, 1.0, 1e-200):
        np.testing.assert_allclose(exp0_vjp(x[:1], curvature)[1](np.ones((1, 2)))[0], np.ones((1, 2)), rtol=1e-14)
    np.testing.assert_allclose(norm(np.array([[3e307, -4e307]])), [[5e307]], rtol=1e-15)


def test_infinity_makes_its_row_nan_silently():
    v = np.array([[np.inf, 0.1], [0.3, 0.4]])
    for curvature in (1.0, 7.3):
        for y, pullback in (
            exp0_vjp(v, curvature),
            project_ball_vjp(v, curvature),
            expmap_vjp(np.zeros((2, 2)), v, curvature),
        ):
            assert np.isnan(y).any(axis=-1).tolist() == [True, False]
            assert np.isfinite(pullback(np.ones((2, 2)))[-2][1]).all()


@given(given_points=any_points(2))
def test_addition_is_exact_to_its_stated_bound(given_points):
    dtype, curvature, _, x, y = given_points
    z = mobius_add(x, y, curvature)
    exact = truth.value(truth.mobius_add, (x, y, curvature))
    assert relative_error(z, exact) <= (6 * (x.size + 8) if dtype == np.float64 else 4)
    assert inside(z, curvature)


@given(given_points=any_points())
def test_maps_at_the_origin_are_exact_to_a_few_roundings(given_points):
    _, curvature, _, x = given_points
    tangent = log0(x, curvature)
    assert relative_error(tangent, truth.value(truth.log0, (x, curvature))) <= x.size + 8
    point = exp0(tangent, curvature, project=False)
    assert relative_error(point, truth.value(truth.exp0, (tangent, curvature))) <= x.size + 8
    assert inside(point, curvature)


@given(given_points=any_points(2))
def test_no_point_of_the_ball_gives_nan_or_infinity(given_points):
    dtype, curvature, rng, x, y = given_points
    calls = [
        (mobius_add_vjp, (x, y)),
        (mobius_scalar_mul_vjp, (dtype(rng.normal()), x)),
        (mobius_matvec_vjp, (rng.standard_normal((2, x.size)).astype(dtype), x)),
        (log0_vjp, (x,)),
        (exp0_vjp, (x,)),
        (project_ball_vjp, (x,)),
    ]
    for f_vjp, args in calls:
        value, pullback = f_vjp(*args, curvature)
        assert np.isfinite(value).all(), f_vjp
        # The curvature's cotangent reaches 1/gap; in float32 it may exceed the largest number for c = 1e-6.
        for entry in pullback((1e-6 * np.ones_like(value)).astype(dtype))[:-1]:
            assert np.isfinite(entry).all(), f_vjp


@given(given_points=any_points(2))
def test_left_cancellation(given_points):
    dtype, curvature, _, x, y = given_points
    if dtype == np.float32 or max(np.linalg.norm(x), np.linalg.norm(y)) * np.sqrt(curvature) > 0.9:
        return
    back = mobius_add(-x, mobius_add(x, y, curvature), curvature)
    np.testing.assert_allclose(back * np.sqrt(curvature), y * np.sqrt(curvature), atol=1e-13)


def test_group_facts():
    x = points(RNG, (5, 4), 0.3)
    zero = np.zeros_like(x)
    assert (mobius_add(zero, x, 0.3) == x).all()
    np.testing.assert_allclose(mobius_add(x, zero, 0.3), x, rtol=1e-15)
    assert (mobius_add(-x, x, 0.3) == 0).all()


def test_addition_of_collinear_points_adds_distances():
    x, unit = np.zeros((1, 3)), np.array([[0.36, 0.48, 0.8]])
    a, b = 0.7 * unit, 0.2 * unit
    total = dist(x, a, 1.0) + dist(x, b, 1.0)
    np.testing.assert_allclose(dist(x, mobius_add(a, b, 1.0), 1.0), total, rtol=1e-14)


@given(count=st.integers(1, 6), seed=st.integers(0, 99))
def test_integer_multiples_are_repeated_sums(count, seed):
    x = points(np.random.default_rng(seed), (3, 2), 1.0, high=0.6)
    total = np.zeros_like(x)
    for _ in range(count):
        total = mobius_add(x, total, 1.0)
    np.testing.assert_allclose(mobius_scalar_mul(float(count), x, 1.0), total, rtol=1e-11)


def test_matrix_product_composes():
    a, b, x = RNG.standard_normal((2, 3)), RNG.standard_normal((3, 4)), points(RNG, (5, 4), 1.0, high=0.5)
    twice = mobius_matvec(a, mobius_matvec(b, x, 1.0), 1.0)
    np.testing.assert_allclose(mobius_matvec(a @ b, x, 1.0), twice, rtol=1e-9)
    np.testing.assert_allclose(mobius_matvec(2 * np.eye(4), x, 1.0), mobius_scalar_mul(2.0, x, 1.0), rtol=1e-13)


@pytest.mark.parametrize("exponent", [-1000, -301, -7, 5, 300, 1000])
def test_geometry_does_not_depend_on_the_unit_of_length(exponent):
    # Scaling by powers of two is exact, so results agree to the last bit.
    x, y = points(RNG, (2, 3, 4), 1.0)
    scale = 2.0 ** (-exponent // 2)
    curvature = 1.0 / scale / scale
    assert (mobius_add(scale * x, scale * y, curvature) == scale * mobius_add(x, y, 1.0)).all()
    assert (log0(scale * x, curvature) == scale * log0(x, 1.0)).all()


@pytest.mark.parametrize("curvature", [5e-324, 1e-300, 0.49, 0.5, 1.0, 1.99, 2.0, 7.3, 1e300, np.finfo(float).max])
def test_inside_a_frame_the_curvature_is_near_one(curvature):
    frame = Frame(curvature, -1, True, x=X)
    assert 0.5 <= frame.curvature < 2
    assert frame.curvature * frame.unit * frame.unit == curvature


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_never_leave_the_ball(dtype):
    # The exact sum is nearer to the boundary than the dtype resolves.
    x = np.array([[1 - float(np.finfo(dtype).epsneg), 0.0], [0.6, 0.799999]], dtype)
    for z in (mobius_add(x, x, 1.0), exp0(1e30 * x, 1.0, project=False), mobius_scalar_mul(1e6, x, 1.0)):
        assert all(inside(row, 1.0) for row in z)
        assert (norm(z.astype(float)) > 1 - max(1e-12, 4 * np.finfo(dtype).eps)).all()
        mobius_add(z, z, 1.0)


def test_projection_margin():
    v = 50 * RNG.standard_normal((4, 3))
    np.testing.assert_allclose(np.linalg.norm(exp0(v, 1.0), axis=-1), 1 - 1e-5, rtol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(exp0(v.astype("f4"), 4.0), axis=-1), 0.5 * 0.996, rtol=1e-6)
    on_the_radius = np.array([0.5, 0.0])
    _, pullback = project_ball_vjp(on_the_radius, 1.0, eps=0.5)
    assert (pullback(np.array([1.0, 2.0]))[0] == [1.0, 2.0]).all()
    assert np.isfinite(project_ball(np.array([1e300, -1e300]), 1.0)).all()


def test_conformal_factor_at_the_boundary():
    x = np.array([1 - U, 0.0])
    assert conformal_factor(x, 1.0) == 2 / (2 * U - U * U)


def test_saturated_and_tiny_tangent_vectors():
    huge, tiny = np.array([1e308, 1e308]), np.array([5e-324, 0.0])
    np.testing.assert_allclose(exp0(huge, 1.0, project=False), np.sqrt([0.5, 0.5]), rtol=1e-15)
    assert (exp0(tiny, 1.0) == tiny).all()
    value, pullback = exp0_vjp(huge, 1.0)
    assert all(np.isfinite(entry).all() for entry in pullback(value))


@pytest.mark.parametrize("curvature", [1e-300, 0.3, 1.0, 3.0, 1e8, 1e300])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_longest_vectors_keep_their_direction(curvature, axis):
    largest = np.finfo(np.float64).max
    unit = np.array([[0.6, 0.8], [0.0, -1.0]])
    v = np.stack([largest * unit[0], 0.1 * largest * unit[1]])
    edge = np.moveaxis(unit / np.sqrt(curvature), -1, axis)
    v = np.moveaxis(v, -1, axis)
    np.testing.assert_allclose(exp0(v, curvature, axis=axis, project=False), edge, rtol=1e-14)
    np.testing.assert_allclose(project_ball(v, curvature, axis=axis, eps=0.0), edge, rtol=1e-14)
    np.testing.assert_allclose(expmap(0 * v, v, curvature, axis=axis, project=False), edge, rtol=1e-14)
    with pytest.raises(
        ValueError, match=r"y: expected points with curvature \* \|x\|\^2 < 1, got a largest value of inf"
    ):
        log0(v, curvature, axis=axis)


def test_vectors_of_all_lengths_point_where_they_point():
    unit = np.array([0.6, -0.8])
    v = np.array([1e2, 1e3, 1e5, 1e10, 1e20, 1e30, 1e100, 1e280, 1e300, 1e308])[:, None] * unit
    np.testing.assert_allclose(exp0(v, 1.0, project=False), np.tile(unit, (10, 1)), rtol=1e-15)
    short = np.array([0.3, 0.4])
    np.testing.assert_array_equal(exp0(np.stack([v[-1], short]), 1.0)[1], exp0(short, 1.0))


def test_results_beyond_the_range_of_single_precision_are_infinite():
    _, pullback = log0_vjp(np.array([np.nextafter(np.float32(1), np.float32(0)), 0], np.float32), 1.0)
    dy, dcurvature = pullback(np.array([1e38, 0], np.float32))
    assert dy.tolist() == [np.inf, 0.0]
    assert dcurvature == np.inf
    far = np.array([1e38, 0], np.float32)
    assert dist_sq(-far, far, 1e-77) == np.inf


@pytest.mark.parametrize("curvature", [0.3, 1.0, 3.0, 1e8])
@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_by_the_longest_vectors_are_right_as_far_as_numbers_go(curvature, axis):
    largest = np.finfo(np.float64).max
    unit, across = np.array([[0.6, 0.8], [0.0, -1.0]]), np.array([[0.8 * 0.2, -0.6 * 0.2], [10.0, 0.0]])
    v = np.moveaxis(np.stack([largest * unit[0], 0.1 * largest * unit[1]]), -1, axis)
    zero = np.zeros_like(v)
    for f_vjp, arguments in ((exp0_vjp, (v,)), (project_ball_vjp, (v,)), (expmap_vjp, (zero, v))):
        _, pullback = f_vjp(*arguments, curvature, axis=axis)
        *_, dv, dcurvature = pullback(np.ones((2, 2)))
        # A turn of the vector moves the result by the turn times the radius; its length changes nothing.
        np.testing.assert_allclose(dv * np.sqrt(curvature) * largest, np.moveaxis(across, -1, axis), rtol=1e-4)
        np.testing.assert_allclose(dcurvature, -unit.sum() / 2 * curvature**-1.5, rtol=1e-4)


def test_nan_stays_in_its_row():
    x = points(RNG, (3, 4), 1.0)
    x[1, 2] = np.nan
    for z in (mobius_add(x, np.zeros_like(x), 1.0), exp0(x, 1.0), log0(x, 1.0), project_ball(x, 1.0)):
        assert np.isnan(z[1, 2])
        assert np.isfinite(z[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, matrix = points(RNG, (3, 4), 1.0).astype(dtype), np.eye(4, dtype=dtype)
    for f_vjp, args in (
        (mobius_add_vjp, (x, x)),
        (mobius_scalar_mul_vjp, (x[:, 0], x)),
        (mobius_scalar_mul_vjp, (0.5, x)),
        (mobius_matvec_vjp, (matrix, x)),
        (exp0_vjp, (x,)),
        (log0_vjp, (x,)),
        (conformal_factor_vjp, (x,)),
        (project_ball_vjp, (x,)),
    ):
        value, pullback = f_vjp(*args, 1.0)
        assert value.dtype == dtype
        assert [entry.dtype for entry in pullback(value)] == [dtype] * (len(args) + 1)
    cotangent = mobius_add_vjp(x, x, np.array(1.0, np.float64))[1](x)[-1]
    assert cotangent.dtype == np.float64
    assert cotangent.shape == ()


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (np.float32(0.5), np.float32),
        (np.array(0.5, "f4"), np.float32),
        (0.5, np.float64),
        (2, np.float64),
        (np.int64(2), np.float64),
    ],
)
def test_the_cotangent_of_a_scale_has_the_scale_s_dtype_if_it_is_a_float_array(scale, dtype):
    y, pullback = mobius_scalar_mul_vjp(scale, 0.5 * X, 1.0)
    assert y.dtype == np.float64
    assert pullback(y)[0].dtype == dtype


def test_a_scale_for_each_point_follows_any_axis():
    x, scale = points(RNG, (2, 4, 3), 1.0), RNG.standard_normal((2, 4))
    expected = mobius_scalar_mul(scale, x, 1.0)
    for axis in (0, 1):
        moved = np.moveaxis(x, -1, axis)
        np.testing.assert_array_equal(mobius_scalar_mul(scale, moved, 1.0, axis=axis), np.moveaxis(expected, -1, axis))


def test_arguments_are_not_written_to():
    x = points(RNG, (3, 4), 1.0)
    x.setflags(write=False)
    for name in ("mobius_add", "exp0", "log0", "project_ball"):
        args = (x, x, 1.0) if name == "mobius_add" else (x, 1.0)
        value, pullback = getattr(poincare, f"{name}_vjp")(*args)
        value.setflags(write=False)
        pullback(value)


X = np.full((2, 3), 0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mobius_add(X, X[:1], 1.0), ValueError, r"y: expected shape \(2, 3\), got \(1, 3\)"),
        (lambda: mobius_add(X, X.astype("f4"), 1.0), TypeError, "y: expected dtype float64 like x, got float32"),
        (lambda: mobius_add(X.astype(int), X, 1.0), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: mobius_add(X, X, 0.0), ValueError, "curvature: expected a finite number > 0, got 0.0"),
        (lambda: mobius_add(X, X, np.nan), ValueError, "curvature: expected a finite number > 0, got nan"),
        (lambda: mobius_add(X, X, np.ones(2)), TypeError, r"curvature: expected a number or a 0-d float array, got float64 of shape \(2,\)"),
        (lambda: mobius_add(X, 10 * X, 1.0), ValueError, r"y: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 3"),
        (lambda: log0(np.array([[0.5, 0.0], [2.0, 0.0]]), 1.0), ValueError, "got a largest value of 4$"),
        (lambda: log0(np.array([1.0, 0.0]), 1.0), ValueError, "y: expected points with curvature .* got a largest value of 1$"),
        (lambda: log0(np.array([0.6, 0.8]), 1.0), ValueError, "y: expected points with curvature"),
        (lambda: log0(np.array([1e300, 0.0]), 1.0), ValueError, "y: expected points with curvature"),
        (lambda: mobius_add(X, X, 1.0, axis=2), ValueError, "axis: expected integers from -2 to 1, got 2"),
        (lambda: exp0(np.zeros((2, 0)), 1.0), ValueError, "v: expected at least one entry along axes"),
        (lambda: exp0(np.float64(1.0), 1.0), ValueError, "v: expected at least 1 dimension"),
        (lambda: project_ball(X, 1.0, eps=1.0), ValueError, r"eps: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: mobius_scalar_mul(np.ones(3), X, 1.0), ValueError, r"scale: expected shape \(2,\), got \(3,\)"),
        (lambda: mobius_scalar_mul("2", X, 1.0), TypeError, "scale: expected numbers, got dtype"),
        (lambda: mobius_scalar_mul(np.ones(2, "f4"), X, 1.0), TypeError, "scale: expected dtype float64 like x, got float32"),
        (lambda: mobius_matvec(np.ones(3), X, 1.0), ValueError, "matrix: expected 2 dimensions"),
        (lambda: mobius_matvec(np.ones((0, 3)), X, 1.0), ValueError, r"matrix: expected at least one entry along axes \(0,\)"),
        (lambda: mobius_matvec(np.eye(3, dtype="f4"), X, 1.0), TypeError, "matrix: expected dtype float64 like x, got float32"),
        (lambda: mobius_matvec(np.eye(2), X, 1.0), ValueError, r"matrix: expected shape \(2, 3\), got \(2, 2\)"),
        (lambda: mobius_add_vjp(X, X, 1.0)[1](X[0]), ValueError, r"cotangent: expected shape \(2, 3\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nested_lists_are_arrays():
    y, pullback = mobius_add_vjp(X.tolist(), X.tolist(), 1.0)
    for entry, same in zip(pullback(X.tolist()), mobius_add_vjp(X, X, 1.0)[1](X), strict=True):
        np.testing.assert_array_equal(entry, same)
    np.testing.assert_array_equal(
        conformal_factor_vjp(X, 1.0)[1]([1.0, 2.0])[0][1], 2 * conformal_factor_vjp(X, 1.0)[1](np.ones(2))[0][1]
    )
    assert y.shape == X.shape


def test_unchecked_points_outside_do_not_raise():
    assert mobius_add(X, 10 * X, 1.0, check=False).shape == X.shape


def test_empty_batches():
    empty = np.zeros((0, 3))
    value, pullback = mobius_add_vjp(empty, empty, 1.0)
    assert value.shape == (0, 3)
    assert pullback(value)[2] == 0


def test_a_vector_with_nan_is_not_taken_for_an_endless_one():
    _, pullback = project_ball_vjp(np.array([[np.nan, 0.5], [0.1, 0.2]]), 1.0)
    np.testing.assert_array_equal(pullback(np.array([[1.0, 2.0], [3.0, 4.0]]))[0], [[1, 2], [3, 4]])
