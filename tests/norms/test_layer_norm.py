import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    Invariances,
    add_layer_norm,
    add_layer_norm_vjp,
    invariance_report,
    layer_norm,
    layer_norm_vjp,
)

RNG = np.random.default_rng(1)

GRADIENT_CASES = [
    GradientCase(layer_norm_vjp, tuple(RNG.standard_normal(s) for s in ((3, 5), (5,), (5,))), method="complex"),
    GradientCase(
        layer_norm_vjp,
        tuple(RNG.standard_normal(s) for s in ((2, 3, 4), (3, 4), (3, 4))),
        {"axes": (-2, -1), "eps": 1e-2},
        method="complex",
        name="two axes",
    ),
    GradientCase(
        layer_norm_vjp,
        (np.full((2, 4), 3.0), RNG.standard_normal(4), RNG.standard_normal(4)),
        {"eps": 1e-1},
        method="complex",
        name="constant rows",
    ),
    GradientCase(
        layer_norm_vjp,
        (1e3 + RNG.standard_normal((2, 6)), RNG.standard_normal(6), RNG.standard_normal(6)),
        step=1e-4,
        name="offset",
    ),
    GradientCase(
        add_layer_norm_vjp,
        tuple(RNG.standard_normal(s) for s in ((2, 3, 5), (2, 3, 5), (5,), (5,))),
        {"eps": 1e-3},
        method="complex",
    ),
]


def ones_and_zeros(units, dtype=np.float64):
    return np.ones(units, dtype), np.zeros(units, dtype)


@given(shift=st.floats(-100, 100), scale=st.floats(0.1, 10), units=st.integers(2, 40), seed=st.integers(0, 99))
def test_output_ignores_shift_and_scale_of_an_example(shift, scale, units, seed):
    x = np.random.default_rng(seed).standard_normal((2, units))
    gain, bias = ones_and_zeros(units)
    y = layer_norm(x, gain, bias, eps=1e-300)
    np.testing.assert_allclose(layer_norm(scale * x + shift, gain, bias, eps=1e-300), y, atol=1e-9)


@given(units=st.integers(1, 40), rows=st.integers(0, 5), seed=st.integers(0, 99))
def test_gradient_of_input_sums_to_zero(units, rows, seed):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, rows, units))
    _, pullback = layer_norm_vjp(x, *ones_and_zeros(units))
    np.testing.assert_allclose(pullback(dy)[0].sum(axis=-1), 0, atol=1e-11 * (1 + 300 * (units == 1)))


def test_one_unit_gives_the_bias():
    x = RNG.standard_normal((4, 1))
    assert (layer_norm(x, np.array([3.0]), np.array([0.5])) == 0.5).all()


def test_constant_row_gives_the_bias_and_a_finite_large_gradient():
    gain, bias = np.ones(3), np.array([1.0, 2.0, 3.0])
    y, pullback = layer_norm_vjp(np.full((1, 3), 7.0), gain, bias, eps=1e-6)
    assert (y == bias).all()
    np.testing.assert_allclose(pullback(np.array([[1.0, 0, 0]]))[0], 1e3 * np.array([[2, -1, -1]]) / 3, rtol=1e-12)


def test_nan_stays_in_its_row():
    x = RNG.standard_normal((3, 4))
    x[1, 2] = np.nan
    y = layer_norm(x, *ones_and_zeros(4))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x = RNG.standard_normal((2, 3)).astype(dtype)
    y, pullback = layer_norm_vjp(x, *ones_and_zeros(3, dtype))
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3


def test_arguments_are_not_written_to():
    x, gain, bias = RNG.standard_normal((2, 3)), np.ones(3), np.zeros(3)
    for array in (x, gain, bias):
        array.setflags(write=False)
    _, pullback = layer_norm_vjp(x, gain, bias)
    pullback(x)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.ones((2, 3)), np.ones(4), np.zeros(3)), {}, ValueError, r"gain: expected shape \(3,\), got \(4,\)"),
        ((np.ones((2, 3)), np.ones(3), np.zeros((1, 3))), {}, ValueError, r"bias: expected shape \(3,\), got \(1, 3\)"),
        ((np.ones((2, 0)), np.ones(0), np.zeros(0)), {}, ValueError, "x: expected at least one entry along axes"),
        ((np.ones((2, 3), int), np.ones(3), np.zeros(3)), {}, TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        ((np.ones((2, 3)), np.ones(3, "f4"), np.zeros(3)), {}, TypeError, "gain: expected dtype float64 like x, got float32"),
        ((np.ones((2, 3)), np.ones(3), np.zeros(3)), {"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        ((np.ones((2, 3)), np.ones(2), np.zeros(2)), {"axes": (0,)}, ValueError, "axes: expected the last axes of 2"),
        ((np.float64(1.0), np.ones(1), np.zeros(1)), {}, ValueError, "x: expected at least 1 dimension, got shape"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        layer_norm(*arguments, **options)


@given(seed=st.integers(0, 9999))
def test_invariances_are_those_of_the_paper(seed):
    report = invariance_report(np.random.default_rng(seed))
    assert report.layer_norm == Invariances(True, True, False, True, False, True)
    assert report.batch_norm == Invariances(True, False, True, True, True, False)


def test_invariance_report_needs_a_generator():
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator"):
        invariance_report(0)


def test_a_sum_is_normalized_like_any_input():
    x, residual = RNG.standard_normal((2, 4, 6))
    gain, bias = RNG.standard_normal((2, 6))
    np.testing.assert_array_equal(add_layer_norm(x, residual, gain, bias), layer_norm(x + residual, gain, bias))
    y, pullback = add_layer_norm_vjp(x, residual, gain, bias)
    dx, dresidual, *_ = pullback(y)
    assert dx is dresidual


def test_a_sum_of_two_shapes_or_dtypes_is_refused():
    one = np.ones(3)
    with pytest.raises(ValueError, match=r"residual: expected shape \(2, 3\), got \(3,\)"):
        add_layer_norm(np.ones((2, 3)), one, one, one)
    with pytest.raises(TypeError, match="residual: expected dtype float64 like x, got float32"):
        add_layer_norm(one, one.astype(np.float32), one, one)
