import mpmath
import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.poincare import (
    dist,
    exp0,
    expmap,
    fully_connected,
    fully_connected_vjp,
    init_baseline,
    init_identity,
    log0,
    mlr,
    mlr_vjp,
    mobius_add,
)

ball = load(TESTS / "poincare" / "test_ball.py")
truth, points, any_points = ball.truth, ball.points, ball.any_points
RNG = np.random.default_rng(3)


def linear_cases(curvature, n, m, spread):
    x, weight = points(RNG, (2, 2, n), curvature), 0.5 * RNG.standard_normal((n, m))
    bias = spread * RNG.standard_normal(m) / np.sqrt(curvature)
    small = {"step": 1e-3, "name": f"curvature {curvature}, {n} to {m}, bias {spread}"}
    return [
        GradientCase(mlr_vjp, (x, weight, bias, curvature), **small),
        GradientCase(fully_connected_vjp, (x, weight, bias, curvature), {"project": False}, **small),
        GradientCase(fully_connected_vjp, (x, weight, bias, curvature), **small),
    ]


GRADIENT_CASES = [
    case
    for c, n, m, spread in ((1.0, 2, 3, 0.3), (0.1, 5, 4, 0.0), (7.3, 3, 3, 1.0), (1.0, 1, 1, 0.2))
    for case in linear_cases(c, n, m, spread)
]
GRADIENT_CASES += [
    GradientCase(
        fully_connected_vjp,
        (
            np.concatenate([points(RNG, (2, 4), 1.0, 0.1, 0.3), points(RNG, (2, 4), 1.0, 0.9, 0.95)]),
            4.0 * np.eye(4),
            np.zeros(4),
            1.0,
        ),
        step=1e-3,
        name="partly clipped",
    ),
    GradientCase(mlr_vjp, (np.zeros((2, 3)), RNG.standard_normal((3, 2)), np.zeros(2), 1.0), step=1e-3, name="origin"),
    GradientCase(
        fully_connected_vjp,
        (np.zeros((2, 3)), RNG.standard_normal((3, 2)), np.array([0.3, -0.2]), 1.0),
        {"project": False},
        step=1e-3,
        name="origin",
    ),
]


@given(n=st.integers(1, 8), curvature=st.sampled_from([0.1, 1.0, 5.0]), seed=st.integers(0, 99))
def test_half_the_identity_keeps_every_point(n, curvature, seed):
    x = points(np.random.default_rng(seed), (4, n), curvature, low=0.0, high=0.999)
    weight, bias = init_identity(n, n)
    y = fully_connected(x, weight, bias, curvature)
    np.testing.assert_allclose(y, x, rtol=0, atol=4e-15 / np.sqrt(curvature))


def test_output_coordinates_are_the_logits():
    # The signed distance of y to the k-th coordinate hyperplane is mlr_k(x).
    x, weight = points(RNG, (6, 4), 0.6), 0.4 * RNG.standard_normal((4, 3))
    bias = 0.2 * RNG.standard_normal(3)
    y = fully_connected(x, weight, bias, 0.6, project=False)
    to_planes = mlr(y, np.eye(3) / 2, np.zeros(3), 0.6)
    np.testing.assert_allclose(to_planes, mlr(x, weight, bias, 0.6), rtol=1e-12)


def test_logit_is_the_scaled_distance_to_the_hyperplane():
    # Hyperplane: the geodesics that leave the foot point at right angles to the normal.
    rng = np.random.default_rng(4)
    normal, offset, c = rng.standard_normal(2), 0.3, 0.8
    unit = normal / np.linalg.norm(normal)
    foot = exp0(offset * unit, c)
    across = np.array([-unit[1], unit[0]])
    line = expmap(np.tile(foot, (4001, 1)), np.linspace(-4, 4, 4001)[:, None] * across, c, project=False)
    for x in points(rng, (5, 2), c, high=0.8):
        nearest = dist(np.tile(x, (4001, 1)), line, c).min()
        logit = mlr(x, normal[:, None], np.array([offset]), c)[0]
        np.testing.assert_allclose(abs(logit), 2 * np.linalg.norm(normal) * nearest, rtol=1e-4)
        side = np.sign(mobius_add(-foot, x, c) @ unit)
        assert np.sign(logit) == side


def test_flat_limit():
    x, weight, bias = RNG.standard_normal((5, 3)), RNG.standard_normal((3, 2)), RNG.standard_normal(2)
    flat = 4 * (x @ weight - np.linalg.norm(weight, axis=0) * bias)
    np.testing.assert_allclose(mlr(x, weight, bias, 1e-10), flat, rtol=1e-8)
    np.testing.assert_allclose(fully_connected(x, weight, bias, 1e-12), flat / 2, rtol=1e-8)


def test_column_of_zeros_gives_zero_and_learns_nothing():
    x, weight = points(RNG, (4, 3), 1.0), RNG.standard_normal((3, 2))
    weight[:, 1] = 0
    for f_vjp in (mlr_vjp, fully_connected_vjp):
        y, pullback = f_vjp(x, weight, np.array([0.1, 0.2]), 1.0)
        assert (y[:, 1] == 0).all()
        dx, dweight, dbias, dc = pullback(np.ones_like(y))
        assert (dweight[:, 1] == 0).all()
        assert all(np.isfinite(entry).all() for entry in (dx, dweight, dbias, dc))


@given(given_points=any_points(), size=st.sampled_from([1e-30, 0.5, 30.0, 1e4]), m=st.integers(1, 5))
def test_no_point_of_the_ball_gives_nan_or_infinity(given_points, size, m):
    dtype, curvature, rng, x = given_points
    weight = (size * rng.standard_normal((x.size, m))).astype(dtype)
    bias = (rng.standard_normal(m) / np.sqrt(curvature)).astype(dtype)
    for f_vjp in (mlr_vjp, fully_connected_vjp):
        y, pullback = f_vjp(x, weight, bias, curvature)
        assert np.isfinite(y).all()
        for entry in pullback((1e-6 * np.ones_like(y)).astype(dtype))[:-1]:
            assert np.isfinite(entry).all()
    assert ball.inside(fully_connected(x, weight, bias, curvature, project=False), curvature)


def test_logits_beyond_the_range_of_sinh():
    # sinh(10^4) overflows; the ratio of the two large entries still decides where on the boundary y lies.
    x, weight = np.array([0.9, 0.0]), np.array([[4e3, 4e3, -4e3], [0.0, 1.0, 0.0]])
    y, pullback = fully_connected_vjp(x, weight, np.zeros(3), 1.0, project=False)
    np.testing.assert_allclose(np.linalg.norm(y), 1.0, rtol=1e-15)
    assert y[0] == -y[2]
    assert all(np.isfinite(entry).all() for entry in pullback(np.array([1.0, 2.0, 3.0])))


def test_cotangents_of_far_hyperplanes():
    """Seen from far away the distance is its bias plus a function of the point: p and its square are not needed to be finite."""
    x, weight, g = points(RNG, (6, 3), 1.0), RNG.standard_normal((3, 2)), RNG.standard_normal((6, 2))
    with np.errstate(all="raise", under="ignore"):
        near, far = (mlr_vjp(x, weight, np.array([bias, -bias]), 1.0)[1](g) for bias in (60.0, 249.0))
        for bias in (180.0, 249.0):
            _, pullback = fully_connected_vjp(x, weight, np.array([bias, 0.3]), 1.0)
            assert all(np.isfinite(entry).all() for entry in pullback(g))
    np.testing.assert_allclose(far[0], near[0], rtol=1e-12)
    np.testing.assert_allclose(far[2], -4 * np.linalg.norm(weight, axis=0) * g.sum(axis=0), rtol=1e-12)


def test_a_mirrored_coordinate_mirrors_its_cotangents():
    # The first logits are so large that only the entry which dwarfs the others, of either sign, is known on its own.
    x, weight, bias = points(RNG, (5, 3), 1.0), RNG.standard_normal((3, 4)), 0.1 * RNG.standard_normal(4)
    weight[:, 0] *= 40
    g, signs = RNG.standard_normal((5, 4)), np.array([-1.0, 1.0, -1.0, 1.0])
    y, pullback = fully_connected_vjp(x, weight, bias, 0.7, project=False)
    mirrored, mirrored_pullback = fully_connected_vjp(x, signs * weight, signs * bias, 0.7, project=False)
    np.testing.assert_array_equal(mirrored, signs * y)
    dx, dweight, dbias, dc = pullback(g)
    for entry, expected in zip(mirrored_pullback(signs * g), (dx, signs * dweight, signs * dbias, dc), strict=True):
        np.testing.assert_allclose(entry, expected, rtol=1e-11)


def test_the_curvature_s_cotangent_of_short_vectors_keeps_its_digits():
    # It is of third order in the vector's length: what is of first order cancels.
    x, weight, g = 1e-5 * RNG.standard_normal(3), RNG.standard_normal((3, 2)), np.array([1.0, -0.4])

    def inner_product(c):
        root = mpmath.sqrt(c)
        gap = 1 - c * mpmath.fsum(mpmath.mpf(float(v)) ** 2 for v in x)
        w = []
        for column in weight.T:
            size = mpmath.sqrt(mpmath.fsum(mpmath.mpf(float(v)) ** 2 for v in column))
            along = (
                mpmath.fsum(mpmath.mpf(float(a)) * mpmath.mpf(float(b)) for a, b in zip(x, column, strict=True)) / size
            )
            w.append(mpmath.sinh(2 * size * mpmath.asinh(2 * root * along / gap)) / root)
        length = 1 + mpmath.sqrt(1 + c * mpmath.fsum(v * v for v in w))
        return mpmath.fsum(mpmath.mpf(float(a)) * b for a, b in zip(g, w, strict=True)) / length

    with mpmath.workdps(60):
        expected = float(mpmath.diff(inner_product, mpmath.mpf("0.7")))
    dc = fully_connected_vjp(x, weight, np.zeros(2), 0.7, project=False)[1](g)[3]
    np.testing.assert_allclose(dc, expected, rtol=1e-10)


def test_the_farthest_hyperplanes_that_are_taken():
    assert np.isfinite(mlr(X, W, np.full(4, 250.0), 1.0)).all()
    assert np.isfinite(mlr(X, W, np.full(4, 83.0), 9.0)).all()


def test_rows_are_independent_and_batches_may_have_any_shape():
    x, (weight, bias) = points(RNG, (2, 3, 4), 1.0), init_baseline(4, 5, RNG)
    y, pullback = fully_connected_vjp(x, weight, bias, 1.0)
    g = RNG.standard_normal(y.shape)
    single = [[fully_connected_vjp(row, weight, bias, 1.0) for row in rows] for rows in x]
    np.testing.assert_allclose(y, [[pair[0] for pair in rows] for rows in single], rtol=1e-13)
    parts = [single[i][j][1](g[i, j]) for i in range(2) for j in range(3)]
    np.testing.assert_allclose(pullback(g)[1], sum(part[1] for part in parts), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(pullback(g)[0][1, 2], parts[5][0], rtol=1e-11)


def test_unit_of_length_does_not_matter():
    x, weight, bias = points(RNG, (3, 4), 1.0), RNG.standard_normal((4, 2)), np.array([0.2, -0.1])
    scale = 2.0**150
    scaled = fully_connected(scale * x, weight, scale * bias, scale**-2)
    assert (scaled == scale * fully_connected(x, weight, bias, 1.0)).all()


def test_initial_weights():
    weight, bias = init_identity(3, 2, dtype=np.float32)
    assert weight.dtype == bias.dtype == np.float32
    assert (weight == [[0.5, 0], [0, 0.5], [0, 0]]).all()
    weight, bias = init_baseline(100, 50, np.random.default_rng(0))
    np.testing.assert_allclose(weight.var(), 1 / (2 * 100 * 50), rtol=0.05)
    assert not bias.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, weight, bias = (a.astype(dtype) for a in (points(RNG, (3, 4), 1.0), np.eye(4), np.zeros(4)))
    for f_vjp in (mlr_vjp, fully_connected_vjp):
        y, pullback = f_vjp(x, weight, bias, 1.0)
        assert y.dtype == dtype
        assert [entry.dtype for entry in pullback(y)] == [dtype] * 4


def test_nan_stays_in_its_row():
    x, (weight, bias) = points(RNG, (3, 4), 1.0), init_identity(4, 4)
    x[1, 2] = np.nan
    y = fully_connected(x, weight, bias, 1.0)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


def test_tangent_vectors_pass_unchanged_through_twenty_identity_layers():
    x = exp0(0.5 * RNG.standard_normal((10, 6)), 1.0)
    y = x
    for _ in range(20):
        y = fully_connected(y, *init_identity(6, 6), 1.0)
    np.testing.assert_allclose(log0(y, 1.0), log0(x, 1.0), rtol=0, atol=1e-12)


X, W, B = np.full((2, 3), 0.1), np.ones((3, 4)), np.zeros(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mlr(X, W[:2], B, 1.0), ValueError, r"weight: expected shape \(3, 4\), got \(2, 4\)"),
        (lambda: mlr(X, W[0], B, 1.0), ValueError, r"weight: expected 2 dimensions, got shape \(4,\)"),
        (lambda: mlr(X, W, B[:3], 1.0), ValueError, r"bias: expected shape \(4,\), got \(3,\)"),
        (lambda: mlr(X, W, B.astype("f4"), 1.0), TypeError, "bias: expected dtype float64 like x, got float32"),
        (lambda: mlr(X, W, B + 300, 1.0), ValueError, r"bias: expected 2 sqrt\(curvature\) \|bias\| <= 500, got a largest value of 600"),
        (lambda: mlr(X, W, np.array([0.0, 1.0, -300.0, 0.0]), 1.0), ValueError, r"bias: expected 2 sqrt\(curvature\) \|bias\| <= 500, got a largest value of 600"),
        (lambda: mlr(X, W, B + 84, 9.0), ValueError, r"bias: expected 2 sqrt\(curvature\) \|bias\| <= 500, got a largest value of 504"),
        (lambda: fully_connected(20 * X, W, B, 1.0), ValueError, r"x: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 12"),
        (lambda: fully_connected(X, W[:, :0], B[:0], 1.0), ValueError, "weight: expected at least one entry along axes"),
        (lambda: fully_connected(X, W, B, -1.0), ValueError, "curvature: expected a finite number > 0, got -1.0"),
        (lambda: init_identity(0, 3), ValueError, "features_in: expected an integer >= 1, got 0"),
        (lambda: init_identity(3, 0), ValueError, "features_out: expected an integer >= 1, got 0"),
        (lambda: init_baseline(2, 3, 0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: init_identity(2, 3, dtype=int), ValueError, "dtype: expected one of"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
