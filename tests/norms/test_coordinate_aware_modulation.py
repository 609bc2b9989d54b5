import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import linear
from refnorm.norms import (
    CAMField,
    cam_layer,
    cam_layer_vjp,
    grid_interpolate,
    grid_interpolate_vjp,
    layer_norm,
    psnr,
    random_fourier_features,
    random_fourier_features_vjp,
)

RNG = np.random.default_rng(2311)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def points(n, d):
    return RNG.random((n, d))


def layer_arguments(n=5, inputs=3, outputs=4, nodes=(3,)):
    return (*draw((n, inputs), (inputs, outputs), (outputs,), (2, *nodes)), points(n, len(nodes)))


FIELD = CAMField(dimensions=2, outputs=2, width=5, depth=2, resolution=3, features=4, bandwidth=0.5)
LINE = CAMField(dimensions=1, outputs=1, width=4, depth=2, resolution=4, features=0, normalize=False, activation="none", squash=False)  # fmt: skip
PLAIN = dataclasses.replace(FIELD, modulate=False)

GRADIENT_CASES = [
    GradientCase(grid_interpolate_vjp, (*draw((3, 5)), points(7, 1)), method="complex"),
    GradientCase(grid_interpolate_vjp, (*draw((2, 3, 4)), points(6, 2)), method="complex", name="square"),
    GradientCase(grid_interpolate_vjp, (*draw((1, 2, 2)), points(4, 2)), method="complex", name="one cell"),
    GradientCase(grid_interpolate_vjp, (*draw((2, 3, 3)), np.array([[-0.5, 0.3], [0.2, 1.5], [2.0, -1.0]])), method="complex", name="outside"),
    GradientCase(grid_interpolate_vjp, (*draw((2, 3)), np.array([[0.26], [0.26], [0.26]])), method="complex", name="repeated points"),
    GradientCase(grid_interpolate_vjp, (*draw((2, 5, 4)), points(6, 2)), step=1e-3, name="differences"),
    GradientCase(cam_layer_vjp, layer_arguments(), method="complex"),
    GradientCase(cam_layer_vjp, layer_arguments(nodes=(3, 2)), {"eps": 0.1}, method="complex", name="square"),
    GradientCase(cam_layer_vjp, layer_arguments(), {"normalize": False, "activation": "none"}, method="complex", name="linear"),
    GradientCase(cam_layer_vjp, (*layer_arguments()[:3], None, None), method="complex", name="no grid"),
    GradientCase(random_fourier_features_vjp, draw((4, 2), (2, 3)), {"bandwidth": 0.7}, method="complex"),
    GradientCase(random_fourier_features_vjp, draw((4, 1), (1, 5)), {"bandwidth": 2.0, "scale": 3.0}, method="complex", name="scaled"),
    GradientCase(FIELD.apply_vjp, (FIELD.init(RNG), points(6, 2)), method="complex", name="field"),
    GradientCase(LINE.apply_vjp, (LINE.init(RNG), points(6, 1)), method="complex", name="field on a line"),
    GradientCase(PLAIN.apply_vjp, (PLAIN.init(RNG), points(6, 2)), method="complex", name="field without grids"),
]  # fmt: skip


@given(seed=st.integers(0, 99), nodes=st.sampled_from([(2,), (5,), (3, 4)]))
def test_interpolation_reproduces_linear_functions_and_the_nodes(seed, nodes):
    rng = np.random.default_rng(seed)
    d = len(nodes)
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in nodes), indexing="ij")
    slope, offset = rng.standard_normal(d), rng.standard_normal()
    grid = (offset + sum(s * a for s, a in zip(slope, axes, strict=True)))[None]
    x = rng.random((9, d))
    np.testing.assert_allclose(grid_interpolate(grid, x)[:, 0], offset + x @ slope, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(grid_interpolate_vjp(grid, x)[1](np.ones((9, 1)))[1], np.tile(slope, (9, 1)), atol=1e-12)
    random = rng.standard_normal((2, *nodes))
    at_nodes = np.stack([a.ravel() for a in axes], axis=1)
    np.testing.assert_allclose(grid_interpolate(random, at_nodes), random.reshape(2, -1).T, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 99), n=st.integers(0, 8))
def test_gradient_of_the_grid_is_the_adjoint_of_reading_it(seed, n):
    rng = np.random.default_rng(seed)
    grid, x, dy = rng.standard_normal((2, 4, 3)), rng.integers(-1, 4, (n, 2)) / 2.7, rng.standard_normal((n, 2))
    y, pullback = grid_interpolate_vjp(grid, x)
    np.testing.assert_allclose((pullback(dy)[0] * grid).sum(), (dy * y).sum(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pullback(dy)[0].sum(axis=(1, 2)), dy.sum(axis=0), atol=1e-12)


def test_slope_at_a_node_is_that_of_the_cell_to_the_right_and_zero_outside():
    x = np.array([[0.0], [0.5], [1.0], [-0.1], [1.1]])
    y, pullback = grid_interpolate_vjp(np.array([[0.0, 10.0, 40.0]]), x)
    np.testing.assert_array_equal(y.ravel(), [0, 10, 40, 0, 40])
    np.testing.assert_array_equal(pullback(np.ones((5, 1)))[1].ravel(), [20, 60, 60, 0, 0])


def test_fine_grid_is_read_exactly_at_a_float32_coordinate():
    nodes = 10001
    grid = np.arange(nodes, dtype=np.float32)[None] % 2
    x = np.float32(0.87654321)
    u = float(x) * (nodes - 1)
    cell = int(u)
    expected = (u - cell) if cell % 2 == 0 else 1 - (u - cell)
    np.testing.assert_allclose(grid_interpolate(grid, np.array([[x]])), expected, rtol=1e-6)


def test_first_grid_leaves_layer_norm():
    h, weight, bias, _, x = layer_arguments()
    grid = np.stack([np.ones(3), np.zeros(3)])
    y = cam_layer(h, weight, bias, grid, x, activation="none")
    np.testing.assert_array_equal(y, layer_norm(linear(h, weight, bias), np.ones(4), np.zeros(4)))
    np.testing.assert_array_equal(y, cam_layer(h, weight, bias, activation="none"))


@given(seed=st.integers(0, 99), factor=st.floats(0.1, 10))
def test_standardized_layer_ignores_the_scale_of_the_weights(seed, factor):
    rng = np.random.default_rng(seed)
    h, weight, bias, grid = (rng.standard_normal(s) for s in ((4, 3), (3, 5), (5,), (2, 3)))
    x = rng.random((4, 1))
    y = cam_layer(h, weight, bias, grid, x, eps=1e-300)
    np.testing.assert_allclose(cam_layer(h, factor * weight, factor * bias, grid, x, eps=1e-300), y, atol=1e-9)


def test_points_do_not_affect_each_other():
    args = layer_arguments()
    y = cam_layer(*args)
    one = cam_layer(args[0][2:3], *args[1:4], args[4][2:3])
    np.testing.assert_allclose(one, y[2:3], rtol=1e-12, atol=1e-14)


def test_linear_model_on_a_line_is_a_polynomial_of_degree_of_depth_inside_a_cell():
    # The input is linear in x, and each of the two layers multiplies once by a function linear inside a cell.
    params = LINE.init(np.random.default_rng(0))
    layers = tuple(dataclasses.replace(layer, grid=RNG.standard_normal((2, 4))) for layer in params.layers)
    params = dataclasses.replace(params, layers=layers)
    x = np.linspace(0.34, 0.66, 12)[:, None]
    y = LINE.apply(params, x).ravel()
    assert np.abs(np.diff(y, 4)).max() < 1e-10
    assert np.abs(np.diff(y, 3)).max() > 1e-6


def test_features_lie_on_circles():
    y = random_fourier_features(points(5, 2), RNG.standard_normal((2, 7)), scale=3.0)
    np.testing.assert_allclose((y * y).sum(axis=1), 9, rtol=1e-13)
    np.testing.assert_allclose(y[:, :7] ** 2 + y[:, 7:] ** 2, 9 / 7, rtol=1e-12)


def test_initial_parameters_are_bounded_and_the_grids_neutral():
    params = CAMField(width=6, resolution=3, features=5).init(np.random.default_rng(0))
    assert [layer.weight.shape for layer in params.layers] == [(10, 6), (6, 6), (6, 6)]
    for layer in params.layers:
        assert np.abs(layer.weight).max() <= 1 / np.sqrt(len(layer.weight))
        assert (layer.grid[0] == 1).all()
        assert (layer.grid[1] == 0).all()
    assert PLAIN.init(RNG).layers[0].grid is None


def test_psnr_of_equal_pictures_is_infinite_and_ten_decibels_are_a_factor_of_ten():
    target = RNG.random((4, 3))
    assert psnr(target, target) == np.inf
    difference = psnr(target + 0.01, target) - psnr(target + 0.01 * np.sqrt(10), target)
    np.testing.assert_allclose(difference, 10, rtol=1e-9)
    np.testing.assert_allclose(psnr(255 * target + 2.55, 255 * target, peak=255.0), 40, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    params, x = FIELD.init(np.random.default_rng(0), dtype), points(3, 2).astype(dtype)
    y, pullback = FIELD.apply_vjp(params, x)
    dparams, dx = pullback(y)
    assert y.dtype == dx.dtype == dparams.projection.dtype == dparams.layers[0].grid.dtype == dtype
    assert dparams.weight.dtype == dparams.layers[1].weight.dtype == dtype


def test_arguments_are_not_written_to():
    args = layer_arguments()
    for array in args:
        array.setflags(write=False)
    y, pullback = cam_layer_vjp(*args)
    pullback(y)


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grid_interpolate(np.ones((1, 1)), np.ones((2, 1))), ValueError, r"grid: expected at least two nodes an axis, got shape \(1, 1\)"),
        (lambda: grid_interpolate(np.ones((1, 2, 2, 2)), np.ones((2, 3))), ValueError, "grid: expected 2 or 3 dimensions, got shape"),
        (lambda: grid_interpolate(ONES, np.ones((2, 2))), ValueError, r"x: expected shape \(2, 1\), got \(2, 2\)"),
        (lambda: grid_interpolate(ONES, np.array([[0.5], [np.nan]])), ValueError, r"x: expected finite values, got 1 that are not, the first at index \(1, 0\)"),
        (lambda: grid_interpolate(ONES, np.ones((2, 1), "f4")), TypeError, "x: expected dtype float64 like grid, got float32"),
        (lambda: cam_layer(ONES, np.ones((3, 1)), np.ones(1)), ValueError, r"weight: expected at least two features to standardize, got shape \(3, 1\)"),
        (lambda: cam_layer(ONES, np.ones((3, 2)), np.ones(2), ONES), ValueError, "grid, x: expected both for modulation or neither without, got only one of them"),
        (lambda: cam_layer(ONES, np.ones((3, 2)), np.ones(2), np.ones((3, 4)), np.ones((2, 1))), ValueError, r"grid: expected shape \(2, 4\), got \(3, 4\)"),
        (lambda: cam_layer(ONES, np.ones((3, 2)), np.ones(2), ONES, np.ones((3, 1))), ValueError, r"x: expected shape \(2, 1\), got \(3, 1\)"),
        (lambda: cam_layer(ONES, np.ones((3, 2)), np.ones(2), activation="gelu"), ValueError, "activation: expected one of 'relu', 'none', got 'gelu'"),
        (lambda: cam_layer(ONES, np.ones((3, 2)), np.ones(2), eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: random_fourier_features(ONES, np.ones((2, 4))), ValueError, r"projection: expected shape \(3, 4\), got \(2, 4\)"),
        (lambda: random_fourier_features(ONES, np.ones((3, 0))), ValueError, "projection: expected at least one entry along axes"),
        (lambda: random_fourier_features(ONES, np.ones((3, 2)), bandwidth=0.0), ValueError, "bandwidth: expected a finite number > 0, got 0.0"),
        (lambda: random_fourier_features(ONES, np.ones((3, 2)), scale=-1.0), ValueError, "scale: expected a finite number > 0, got -1.0"),
        (lambda: CAMField(dimensions=3), ValueError, "dimensions: expected an integer >= 1 and <= 2, got 3"),
        (lambda: CAMField(resolution=1), ValueError, "resolution: expected an integer >= 2, got 1"),
        (lambda: CAMField().init(0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: psnr(ONES, np.ones(3)), ValueError, r"target: expected shape \(2, 3\), got \(3,\)"),
        (lambda: psnr(ONES[:0], ONES[:0]), ValueError, "prediction: expected at least one entry, got shape"),
        (lambda: psnr(ONES, ONES, peak=0.0), ValueError, "peak: expected a finite number > 0, got 0.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
