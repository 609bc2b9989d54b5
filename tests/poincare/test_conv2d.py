import mpmath
import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import conv2d as flat_conv2d
from refnorm.poincare import (
    beta_concat,
    beta_concat_vjp,
    conv2d,
    conv2d_vjp,
    fully_connected,
    init_conv2d_identity,
    init_identity,
    log0,
)
from refnorm.poincare._conv2d import beta_scale

ball = load(TESTS / "poincare" / "test_ball.py")
RNG = np.random.default_rng(6)


def images(rng, shape, curvature, low=0.0, high=0.8):
    """Images whose pixels are points of the ball."""
    return np.moveaxis(ball.points(rng, (shape[0], *shape[2:], shape[1]), curvature, low, high), -1, 1).copy()


def layer(rng, channels, outputs, area, curvature, size=0.5):
    return size * rng.standard_normal((channels * area, outputs)), 0.1 * rng.standard_normal(outputs) / np.sqrt(
        curvature
    )


def conv_case(name, shape, outputs, area, curvature, size=0.5, **options):
    args = (images(RNG, shape, curvature), *layer(RNG, shape[1], outputs, area, curvature, size), curvature)
    return GradientCase(conv2d_vjp, args, options, step=1e-3, name=name)


GRADIENT_CASES = [
    conv_case("padding", (2, 3, 4, 5), 4, 9, 1.0, kernel=3, padding=1),
    conv_case("stride 2, odd size", (1, 2, 5, 5), 3, 9, 0.1, kernel=3, stride=2, padding=1),
    conv_case("uneven", (2, 2, 4, 5), 2, 6, 7.3, kernel=(2, 3), stride=(1, 2), padding=(0, 1), project=False),
    conv_case("one pixel", (2, 3, 2, 2), 5, 1, 0.5, kernel=1),
    conv_case("results projected", (1, 2, 3, 3), 3, 4, 1.0, 4.0, kernel=2),
    GradientCase(
        conv2d_vjp,
        (images(RNG, (1, 2, 3, 3), 1.0, 0.998, 0.999), *layer(RNG, 2, 3, 4, 1.0), np.array(1.0)),
        {"kernel": 2},
        step=1e-5,
        name="far out",
    ),
    GradientCase(
        conv2d_vjp,
        (images(RNG, (1, 2, 2, 3), 1.0, 1 - 1.2e-6, 1 - 8e-7), *layer(RNG, 2, 3, 4, 1.0, 0.05), 1.0),
        {"kernel": 2},
        step=1e-8,
        tolerance=1e-4,
        name="patches projected",
    ),
    conv_case("padding above and below", (1, 2, 3, 4), 2, 6, 1.0, kernel=(2, 3), padding=(1, 0)),
    GradientCase(
        conv2d_vjp,
        (np.zeros((1, 2, 3, 3)), *layer(RNG, 2, 3, 4, 1.0), 1.0),
        {"kernel": 2},
        step=1e-3,
        name="origin",
    ),
    GradientCase(
        beta_concat_vjp, ([ball.points(RNG, (2, n), 0.7) for n in (1, 3, 2)], 0.7), step=1e-3, name="three parts"
    ),
    GradientCase(
        beta_concat_vjp,
        ([ball.points(RNG, (2, n), 1.0, 1 - 1.2e-6, 1 - 8e-7) for n in (3, 2)], 1.0),
        step=1e-8,
        tolerance=1e-4,
        name="projected",
    ),
    GradientCase(
        beta_concat_vjp, ((np.zeros((2, 2)), ball.points(RNG, (2, 2), 1.0, 0.9, 0.99)), 1.0), step=1e-4, name="origin"
    ),
]


@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    step=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    far=st.booleans(),
    project=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_window_is_joined_and_connected(size, step, pad, far, project, seed):
    rng = np.random.default_rng(seed)
    curvature = 0.7
    x = images(rng, (2, 2, 4, 3), curvature, *((1 - 1e-6, 1 - 1e-8) if far else (0.0, 0.8)))
    weight, bias = layer(rng, 2, 3, size[0] * size[1], curvature, 0.02 if far else 2.0)
    y = conv2d(x, weight, bias, curvature, kernel=size, stride=step, padding=pad, project=project)
    padded = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    order = np.arange(2 * size[0] * size[1]).reshape(-1, 2).T.ravel()  # from place-major to channel-major
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            places = [padded[:, :, i * step[0] + a, j * step[1] + b] for a in range(size[0]) for b in range(size[1])]
            joined = beta_concat(places, curvature, project=project)[:, order]
            expected = fully_connected(joined, weight, bias, curvature, project=project)
            # Joined points that are rounded next to the boundary keep few digits of their gap.
            rtol = 1e-5 if far and not project else 1e-9
            np.testing.assert_allclose(y[:, :, i, j], expected, rtol=rtol, atol=1e-12)
    assert y.shape[2] == (4 + 2 * pad[0] - size[0]) // step[0] + 1


def test_concatenation_keeps_the_expected_length():
    # 9 parts of 16 coordinates, uniform on spheres: the joined vectors' mean squared length is near the parts'.
    tangent = RNG.standard_normal((9, 400, 16))
    tangent *= 1e-3 / np.linalg.norm(tangent, axis=-1, keepdims=True)
    joined = log0(beta_concat(list(tangent), 1.0), 1.0)
    ratio = np.sqrt((joined**2).sum(axis=-1).mean()) / 1e-3
    assert 0.98 < ratio < 1.0


@pytest.mark.parametrize(("features", "part"), [(2, 1), (144, 16), (9, 1), (4608, 512), (3, 3), (1001, 3), (257, 600)])
def test_beta_scale_is_accurate(features, part):
    with mpmath.workdps(30):
        exact = mpmath.beta(mpmath.mpf(features) / 2, 0.5) / mpmath.beta(mpmath.mpf(part) / 2, 0.5)
    assert abs(beta_scale(features, part) / float(exact) - 1) < 2e-14


def test_joining_one_part_changes_nothing_and_points_may_be_scalars():
    x = ball.points(RNG, (3, 4), 2.0)
    np.testing.assert_allclose(beta_concat([x], 2.0), x, rtol=1e-14)


@pytest.mark.parametrize("kind", [list, tuple])
def test_cotangents_of_parts_come_as_the_parts_did(kind):
    y, pullback = beta_concat_vjp(kind(ball.points(RNG, (2, 3, 4), 1.0)), 1.0)
    dxs, _ = pullback(y)
    assert type(dxs) is kind
    assert [dx.shape for dx in dxs] == [(3, 4)] * 2


def test_small_curvature_gives_the_flat_convolution():
    x = RNG.standard_normal((2, 3, 5, 4))
    weight, bias = layer(RNG, 3, 4, 9, 1.0)
    filters = 2 * beta_scale(27, 3) * weight.T.reshape(4, 3, 3, 3)
    shift = -2 * np.linalg.norm(weight, axis=0) * bias
    expected = flat_conv2d(x, filters, shift, stride=2, padding=1)
    y = conv2d(x, weight, bias, 1e-12, kernel=3, stride=2, padding=1)
    np.testing.assert_allclose(y, expected, rtol=1e-7, atol=1e-9)


def test_unit_of_length_does_not_matter():
    x, (weight, bias) = images(RNG, (1, 2, 4, 4), 1.0), layer(RNG, 2, 3, 9, 1.0)
    scale = 2.0**-150
    y, pullback = conv2d_vjp(x, weight, bias, 1.0, kernel=3, padding=1)
    small, small_pullback = conv2d_vjp(scale * x, weight, scale * bias, scale**-2, kernel=3, padding=1)
    assert (small == scale * y).all()
    g = RNG.standard_normal(y.shape)
    for entry, plain, power in zip(small_pullback(g), pullback(g), (0, 1, 0, 3), strict=True):
        np.testing.assert_allclose(entry, plain * scale**power, rtol=1e-14)


@pytest.mark.parametrize("identity", ["unfolded", "centre"])
def test_identity_copies_the_entries_it_names(identity):
    weight, bias = init_conv2d_identity(3, 5, 3, identity=identity, dtype=np.float32)
    assert weight.dtype == bias.dtype == np.float32
    assert (weight.sum(axis=0) == 0.5).all()
    rows = weight.argmax(axis=0)
    # Centre: place 4 of channels 0, 1, 2, then the next place of channels 0, 1.
    assert rows.tolist() == ([0, 1, 2, 3, 4] if identity == "unfolded" else [4, 13, 22, 1, 10])


def test_identity_of_one_pixel_is_the_identity():
    x = images(RNG, (2, 3, 2, 2), 1.0)
    for identity in ("unfolded", "centre"):
        y = conv2d(x, *init_conv2d_identity(3, 3, 1, identity=identity), 1.0, kernel=1)
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-15)


def test_central_identity_keeps_short_features_if_asked():
    x = 1e-5 * RNG.standard_normal((1, 4, 5, 5))
    plain = conv2d(x, *init_conv2d_identity(4, 4, 3, identity="centre"), 1.0, kernel=3, padding=1)
    np.testing.assert_allclose(plain, beta_scale(36, 4) * x, rtol=1e-6)
    parameters = init_conv2d_identity(4, 4, 3, identity="centre", keep_length=True)
    np.testing.assert_allclose(conv2d(x, *parameters, 1.0, kernel=3, padding=1), x, rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (5, 5), (3, 4), (1, 2)])
def test_central_identity_goes_outwards_and_among_equals_in_the_order_of_places(rows, columns):
    places = [(i, j) for i in range(rows) for j in range(columns)]
    outwards = sorted(places, key=lambda place: (2 * place[0] - rows + 1) ** 2 + (2 * place[1] - columns + 1) ** 2)
    weight, _ = init_conv2d_identity(1, rows * columns, (rows, columns), identity="centre")
    assert [places[row] for row in weight.argmax(axis=0)] == outwards


def test_surplus_outputs_start_over_so_that_no_column_is_zero():
    weight, _ = init_conv2d_identity(2, 5, 1)
    assert (weight != 0).sum(axis=0).tolist() == [1] * 5
    assert weight.argmax(axis=0).tolist() == [0, 1, 0, 1, 0]
    assert (weight[:, :2] == init_identity(2, 2)[0]).all()
    assert init_conv2d_identity(1, 1, 2)[0].ravel().tolist() == [0.5, 0, 0, 0]


def test_nan_reaches_the_windows_that_hold_it_and_no_other():
    x, (weight, bias) = images(RNG, (2, 2, 5, 5), 1.0), layer(RNG, 2, 3, 4, 1.0)
    x[0, 1, 4, 4] = np.nan
    y = conv2d(x, weight, bias, 1.0, kernel=2)
    assert np.isnan(y[0, :, 3, 3]).all()
    y[0, :, 3, 3] = 0
    assert np.isfinite(y).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_results_are_inside(dtype):
    x = images(RNG, (1, 2, 4, 4), 1.0, 0.999, 0.99999).astype(dtype)
    weight, bias = (array.astype(dtype) for array in layer(RNG, 2, 3, 9, 1.0, 20.0))
    y, pullback = conv2d_vjp(x, weight, bias, 1.0, kernel=3, padding=1, project=False)
    assert all(ball.inside(y[0, :, i, j], 1.0) for i in range(4) for j in range(4))
    entries = pullback(y)
    assert [y.dtype, *(entry.dtype for entry in entries)] == [dtype] * 5
    assert all(np.isfinite(entry).all() for entry in entries)
    joined, pullback = beta_concat_vjp([x[:, :, 0, 0], x[:, :, 1, 1]], 1.0)
    assert [joined.dtype, *(entry.dtype for entry in pullback(joined)[0])] == [dtype] * 3


def test_arguments_are_not_written_to_and_the_pullback_may_be_called_again():
    arrays = (images(RNG, (1, 2, 4, 4), 1.0), *layer(RNG, 2, 3, 9, 1.0))
    for array in arrays:
        array.setflags(write=False)
    y, pullback = conv2d_vjp(*arrays, 1.0, kernel=3)
    y.setflags(write=False)
    for first, second in zip(pullback(y), pullback(y), strict=True):
        np.testing.assert_array_equal(first, second)


X, W, B = np.full((1, 2, 4, 4), 0.1), np.ones((18, 3)), np.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv2d(X[0], W, B, 1.0, kernel=3), ValueError, r"x: expected 4 dimensions, got shape \(2, 4, 4\)"),
        (lambda: conv2d(X, W, B, 1.0, kernel=2), ValueError, r"weight: expected shape \(8, 3\), got \(18, 3\)"),
        (lambda: conv2d(X, W, B[:2], 1.0, kernel=3), ValueError, r"bias: expected shape \(3,\), got \(2,\)"),
        (lambda: conv2d(X[:, :, :2], W, B, 1.0, kernel=3), ValueError, r"x: expected padded images of at least 3 x 3 pixels, got \(2, 4\)"),
        (lambda: conv2d(X, W, B, 1.0, kernel=3, stride=0), ValueError, "stride: expected an integer >= 1, got 0"),
        (lambda: conv2d(X, W, B, 1.0, kernel=3, padding=-1), ValueError, "padding: expected an integer >= 0, got -1"),
        (lambda: conv2d(X, W, B, 1.0, kernel=1.5), TypeError, "kernel: expected an integer, got 1.5"),
        (lambda: conv2d(8 * X, W, B, 1.0, kernel=3), ValueError, r"x: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 1.28"),
        (lambda: conv2d(X, W.astype("f4"), B, 1.0, kernel=3), TypeError, "weight: expected dtype float64 like x, got float32"),
        (lambda: beta_concat([], 1.0), ValueError, "xs: expected a list or tuple of at least one array, got none"),
        (lambda: beta_concat([X, X[0]], 1.0), ValueError, r"xs\[1\]: expected shape \(1, 2, 4, 4\), got \(2, 4, 4\)"),
        (lambda: beta_concat([X, X.astype("f4")], 1.0), TypeError, r"xs\[1\]: expected dtype float64 like xs\[0\], got float32"),
        (lambda: conv2d(X, W, B, 1.0, kernel=0), ValueError, "kernel: expected an integer >= 1, got 0"),
        (lambda: init_conv2d_identity(2, 0, 3), ValueError, "channels_out: expected an integer >= 1, got 0"),
        (lambda: init_conv2d_identity(2, 1, 0), ValueError, "kernel: expected an integer >= 1, got 0"),
        (lambda: init_conv2d_identity(0, 2, 3), ValueError, "channels_in: expected an integer >= 1, got 0"),
        (lambda: init_conv2d_identity(2, 2, 3, identity="left"), ValueError, "identity: expected one of 'unfolded', 'centre', got 'left'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
