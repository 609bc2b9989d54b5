import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    HypernetParams,
    encode_complement,
    encode_complement_vjp,
    encode_cos_sin,
    encode_cos_sin_vjp,
    hypernet,
    hypernet_vjp,
    init_hypernet,
    magnitude_profile,
    unflatten,
    unflatten_vjp,
)

RNG = np.random.default_rng(2304)
SHAPES = {"weight": (3, 2), "bias": (2,)}


def drawn(inputs, seed=0):
    rng = np.random.default_rng(seed)
    sizes = (inputs, 4, 5, 8)
    weights = tuple(rng.standard_normal(pair) for pair in itertools.pairwise(sizes))
    return HypernetParams(weights, tuple(rng.standard_normal(n) for n in sizes[1:-1]), rng.standard_normal(8))


X = RNG.random((3, 2))
ALL_OUTSIDE = np.array([[-0.5, 1.5], [2.0, 0.4]])

GRADIENT_CASES = [
    GradientCase(encode_cos_sin_vjp, (RNG.random((2, 3, 4)),), method="complex"),
    GradientCase(encode_cos_sin_vjp, (ALL_OUTSIDE,), {"clip": True}, method="complex", name="clipped"),
    GradientCase(encode_complement_vjp, (RNG.random((5, 2)),), method="complex"),
    GradientCase(encode_complement_vjp, (ALL_OUTSIDE,), {"clip": True}, method="complex", name="clipped"),
    GradientCase(hypernet_vjp, (X, drawn(4)), method="complex"),
    GradientCase(hypernet_vjp, (X, drawn(4)), {"encoding": "complement", "slope": 0.2}, method="complex", name="complement"),
    GradientCase(hypernet_vjp, (5 * X - 2, drawn(2)), {"encoding": "none"}, method="complex", name="raw input"),
    GradientCase(hypernet_vjp, (X, drawn(4)), {"residual": False, "slope": 0.0}, method="complex", name="no base"),
    GradientCase(hypernet_vjp, (X, HypernetParams((RNG.random((4, 3)),), (), RNG.random(3))), method="complex", name="one layer"),
    GradientCase(hypernet_vjp, (ALL_OUTSIDE, drawn(4)), {"clip": True}, method="complex", name="clipped"),
    GradientCase(hypernet_vjp, (X, drawn(4)), step=1e-3, name="differences"),
    GradientCase(unflatten_vjp, (RNG.standard_normal((2, 8)),), method="complex", call=lambda theta: unflatten_vjp(theta, SHAPES), name="two rows"),
]  # fmt: skip


@given(seed=st.integers(0, 99), d=st.integers(1, 6))
def test_codes_have_constant_norms(seed, d):
    x = np.random.default_rng(seed).random((7, d))
    np.testing.assert_allclose(np.linalg.norm(encode_cos_sin(x), axis=1), np.sqrt(d), rtol=4e-16 * (d + 1))
    np.testing.assert_allclose(np.abs(encode_complement(x)).sum(axis=1), d, rtol=1e-15)


def test_different_inputs_have_different_codes_and_equal_steps_equal_distances():
    code = encode_cos_sin(np.linspace(0, 1, 51)[:, None])
    np.testing.assert_allclose(np.linalg.norm(np.diff(code, axis=0), axis=1), 2 * np.sin(np.pi / 200), rtol=1e-12)


def test_clipping_moves_to_the_ends_and_stops_the_gradient():
    y, pullback = encode_cos_sin_vjp(np.array([-1.0, 0.5, 2.0]), clip=True)
    np.testing.assert_array_equal(y, encode_cos_sin(np.array([0.0, 0.5, 1.0])))
    (dx,) = pullback(np.ones(6))
    assert dx[0] == dx[2] == 0
    dx = encode_complement_vjp(np.array([0.0, 1.0]), clip=True)[1](np.array([1.0, 1.0, 0.0, 0.0]))[0]
    np.testing.assert_array_equal(dx, [1, 1])


def test_nan_stays_in_its_row():
    x = X.copy()
    x[1, 0] = np.nan
    theta = hypernet(x, drawn(4))
    assert np.isnan(theta[1]).all()
    np.testing.assert_array_equal(theta[[0, 2]], hypernet(X, drawn(4))[[0, 2]])


@given(seed=st.integers(0, 99), factor=st.floats(1e-3, 1e3))
def test_without_encoding_and_biases_the_output_is_proportional_to_the_input(seed, factor):
    params = drawn(2, seed)
    params = HypernetParams(params.weights, tuple(0 * bias for bias in params.biases), params.base)
    options = {"encoding": "none", "residual": False}
    theta, pullback = hypernet_vjp(X, params, **options)
    scaled, pullback_scaled = hypernet_vjp(factor * X, params, **options)
    np.testing.assert_allclose(scaled, factor * theta, rtol=1e-9, atol=1e-12 * factor)
    first, first_scaled = (back(np.ones((3, 8)))[1].weights[0] for back in (pullback, pullback_scaled))
    np.testing.assert_allclose(first_scaled, factor * first, rtol=1e-9, atol=1e-12 * factor)


def test_base_is_added_to_every_row_and_collects_from_all():
    params = drawn(4)
    np.testing.assert_array_equal(hypernet(X, params), params.base + hypernet(X, params, residual=False))
    dtheta = RNG.standard_normal((3, 8))
    np.testing.assert_array_equal(hypernet_vjp(X, params)[1](dtheta)[1].base, dtheta.sum(axis=0))


def test_slope_at_zero_is_the_one_of_negative_numbers():
    params = HypernetParams((np.zeros((4, 3)), np.ones((3, 2))), (np.zeros(3),), np.zeros(2))
    grads = hypernet_vjp(X, params, slope=0.25)[1](np.ones((3, 2)))[1]
    np.testing.assert_array_equal(grads.biases[0], [1.5, 1.5, 1.5])


@given(seed=st.integers(0, 20))
def test_profile_is_flat_on_the_circle_and_straight_without_it(seed):
    x = np.array([[0.1], [0.4], [1.0]])
    raw = magnitude_profile(x, (1, 8, 200), np.random.default_rng(seed), n_draws=20, encoding="none")
    np.testing.assert_allclose(raw / raw[-1], x[:, 0], rtol=1e-12)
    # A linear backbone: the mean square over many weights is that of the code, 1 / outputs a draw.
    linear = magnitude_profile(x, (2, 4000), np.random.default_rng(seed), n_draws=20)
    np.testing.assert_allclose(linear * np.sqrt(4000), 1, rtol=0.03)


def test_initial_weights_have_the_variances_of_fan_out_and_the_base_that_of_the_primary_network():
    params = init_hypernet((200, 300), {"w": (50, 40), "b": (40,)}, np.random.default_rng(0), slope=0.5)
    np.testing.assert_allclose(params.weights[0].var() * 300, 2 / 1.25, rtol=0.02)
    np.testing.assert_allclose(params.weights[1].var() * 2040, 1, rtol=0.02)
    parts = unflatten(params.base, {"w": (50, 40), "b": (40,)})
    np.testing.assert_allclose(parts["w"].var() * 50, 2, rtol=0.1)
    assert not parts["b"].any()
    assert not params.biases[0].any()


def test_own_initialization_of_the_primary_network_is_used():
    params = init_hypernet(
        (2,), SHAPES, np.random.default_rng(0), primary_init=lambda name, shape, rng: np.full(shape, len(name))
    )
    np.testing.assert_array_equal(params.base, [6] * 6 + [4] * 2)
    assert params.biases == ()


@given(seed=st.integers(0, 99))
def test_unflatten_keeps_order_and_rows(seed):
    theta = np.random.default_rng(seed).standard_normal((4, 8))
    parts, pullback = unflatten_vjp(theta, SHAPES)
    np.testing.assert_array_equal(parts["weight"][2], theta[2, :6].reshape(3, 2))
    np.testing.assert_array_equal(parts["bias"], theta[:, 6:])
    np.testing.assert_array_equal(pullback(parts)[0], theta)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    params = drawn(4)
    params = HypernetParams(
        *(tuple(a.astype(dtype) for a in part) for part in (params.weights, params.biases)), params.base.astype(dtype)
    )
    theta, pullback = hypernet_vjp(X.astype(dtype), params)
    dx, dparams = pullback(theta)
    assert theta.dtype == dx.dtype == dparams.base.dtype == dparams.weights[0].dtype == dparams.biases[1].dtype == dtype
    assert magnitude_profile(X.astype(dtype), (4, 5), np.random.default_rng(0), n_draws=1).dtype == dtype


def test_arguments_are_not_written_to():
    x, params = X.copy(), drawn(4)
    for array in (x, *params.weights, *params.biases, params.base):
        array.setflags(write=False)
    theta, pullback = hypernet_vjp(x, params)
    pullback(theta)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encode_cos_sin(np.array([0.5, 1.5])), ValueError, r"x: expected numbers in \[0, 1\], or clip=True, got 1.5 at index \(1,\)"),
        (lambda: encode_complement(np.array([[-0.5]])), ValueError, r"x: expected numbers in \[0, 1\], or clip=True, got -0.5 at index \(0, 0\)"),
        (lambda: encode_cos_sin(np.array([0, 1])), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: hypernet(X, drawn(2)), ValueError, r"x: expected shape \(3, 2\), got \(3, 4\)"),
        (lambda: hypernet(X, drawn(4), encoding="log"), ValueError, "encoding: expected one of 'cos_sin', 'complement', 'none', got 'log'"),
        (lambda: hypernet(X, drawn(4), slope=-1.0), ValueError, "slope: expected a finite number >= 0, got -1.0"),
        (lambda: hypernet(X, HypernetParams(drawn(4).weights, (), np.zeros(8))), ValueError, "params.biases: expected one for every weight but the last, got 0"),
        (lambda: hypernet(X, HypernetParams(drawn(4).weights, drawn(4).biases, np.zeros(7))), ValueError, r"params.base: expected shape \(8,\), got \(7,\)"),
        (lambda: hypernet(X.astype("f4"), drawn(4)), TypeError, "weight: expected dtype float32 like x, got float64"),
        (lambda: unflatten(np.zeros(7), SHAPES), ValueError, r"theta: expected shape \(8,\), got \(7,\)"),
        (lambda: unflatten(np.zeros(7), {}), ValueError, "shapes: expected at least one array, got none"),
        (lambda: init_hypernet((2, 128), {"w": (10**3, 10**3)}, RNG), ValueError, "shapes: expected at most 100000000 entries in the last layer, got 128000000"),
        (lambda: init_hypernet((), SHAPES, RNG), ValueError, r"sizes: expected at least one, got \(\)"),
        (lambda: init_hypernet((2,), SHAPES, 0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: init_hypernet((2,), SHAPES, RNG, primary_init=lambda *_: np.zeros(1)), ValueError, r"primary_init\('weight'\): expected shape \(3, 2\), got \(1,\)"),
        (lambda: magnitude_profile(X, (4,), RNG), ValueError, "sizes: expected at least inputs and outputs"),
        (lambda: magnitude_profile(X, (4, 3), RNG, n_draws=0), ValueError, "n_draws: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
