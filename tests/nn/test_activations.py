import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm._arrays import ulp_error
from refnorm.gradcheck import GradientCase
from refnorm.nn import (
    erf,
    erf_vjp,
    gelu,
    gelu_vjp,
    relu,
    relu_vjp,
    sigmoid,
    sigmoid_vjp,
    silu,
    silu_vjp,
    softplus,
    softplus_vjp,
)

RNG = np.random.default_rng(12)
SPREAD = 3 * RNG.standard_normal((4, 5))
WIDE = np.array([-30.0, -1e-9, 0.0, 1e-9, 30.0])

GRADIENT_CASES = [
    GradientCase(gelu_vjp, (SPREAD,), method="complex"),
    GradientCase(gelu_vjp, (np.array([-9.0, -1e-9, 0.0, 1e-9, 9.0]),), method="complex", name="awkward"),
    GradientCase(gelu_vjp, (np.array(-0.7),), method="complex", name="a number"),
    GradientCase(gelu_vjp, (SPREAD,), {"approximate": "tanh"}, method="complex", name="tanh"),
    GradientCase(
        gelu_vjp, (np.array([-5.0, 0.0, 5.0]),), {"approximate": "tanh"}, method="complex", name="tanh, awkward"
    ),
    GradientCase(sigmoid_vjp, (SPREAD,), method="complex"),
    GradientCase(sigmoid_vjp, (WIDE,), method="complex", name="awkward"),
    GradientCase(sigmoid_vjp, (np.array(-0.7),), method="complex", name="a number"),
    GradientCase(silu_vjp, (SPREAD,), method="complex"),
    GradientCase(silu_vjp, (WIDE,), method="complex", name="awkward"),
    GradientCase(silu_vjp, (np.array(-0.7),), method="complex", name="a number"),
    GradientCase(softplus_vjp, (SPREAD,), method="complex"),
    GradientCase(softplus_vjp, (WIDE,), method="complex", name="awkward"),
    GradientCase(softplus_vjp, (np.array(-0.7),), method="complex", name="a number"),
    GradientCase(erf_vjp, (SPREAD,), method="complex"),
    GradientCase(erf_vjp, (WIDE,), method="complex", name="awkward"),
    GradientCase(erf_vjp, (np.array(-0.7),), method="complex", name="a number"),
    GradientCase(relu_vjp, (SPREAD,), step=1e-4),
    GradientCase(relu_vjp, (np.array([-1e-3, 2e-3, 1.0]),), step=1e-5, name="near the corner"),
]

FINITE = st.floats(-50, 50)


@given(x=st.lists(FINITE, min_size=1, max_size=20), approximate=st.sampled_from(["none", "tanh"]))
def test_gelu_of_both_signs_differ_by_x(x, approximate):
    """Phi(x) + Phi(-x) = 1, so gelu(x) - gelu(-x) = x."""
    x = np.array(x)
    difference = gelu(x, approximate=approximate) - gelu(-x, approximate=approximate)
    np.testing.assert_allclose(difference, x, rtol=1e-14, atol=0)


@given(x=FINITE)
def test_gelu_lies_between_its_bounds(x):
    y = float(gelu(np.array(x)))
    assert -0.17 < y <= max(x, 0)
    assert abs(y - float(gelu(np.array(x), approximate="tanh"))) < 4.8e-4


@given(x=st.lists(st.floats(allow_nan=False), max_size=20))
def test_relu_is_idempotent_and_never_negative(x):
    y = relu(np.array(x))
    assert (y >= 0).all()
    np.testing.assert_array_equal(relu(y), y)


@pytest.mark.parametrize(("dtype", "growth"), [(np.float32, 0), (np.float64, 1)])
def test_gelu_keeps_its_digits_in_the_far_tail(dtype, growth):
    # The textbook form (1 + erf(x / sqrt 2)) / 2 has no digit left below -6.
    x = np.array([-12.0, -9.0, -6.0, -3.0, -1e-3, 1e-30, 0.5, 7.0], dtype)
    truth = np.array([float(mpmath.mpf(float(v)) * mpmath.ncdf(float(v))) for v in x])
    limit = 1 + growth * (3 + x.astype(float) ** 2)
    assert (ulp_error(gelu(x), truth) <= limit).all()


@given(x=st.lists(FINITE, min_size=1, max_size=20))
def test_logistic_relatives_of_both_signs(x):
    """sigmoid(x) + sigmoid(-x) = 1, silu(x) - silu(-x) = x, softplus(x) - softplus(-x) = x, erf is odd."""
    x = np.array(x)
    np.testing.assert_allclose(sigmoid(x) + sigmoid(-x), 1, rtol=3e-16)
    np.testing.assert_allclose(silu(x) - silu(-x), x, rtol=1e-14, atol=0)
    np.testing.assert_allclose(softplus(x) - softplus(-x), x, rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(erf(-x), -erf(x))


@given(x=st.lists(st.floats(-40, 40), min_size=1, max_size=20))
def test_gelu_is_made_of_erf_where_nothing_cancels(x):
    x = np.abs(x)
    np.testing.assert_allclose(gelu(x), x * (1 + erf(x / np.sqrt(2))) / 2, rtol=1e-15)


def test_logistic_relatives_keep_their_digits_in_the_far_tail():
    x = np.array([-740.0, -300.0, -88.0, -37.0, -1e-3, 1e-30, 0.5])
    for function, exact in (
        (sigmoid, lambda v: 1 / (1 + mpmath.exp(-v))),
        (silu, lambda v: v / (1 + mpmath.exp(-v))),
        (softplus, lambda v: mpmath.log1p(mpmath.exp(v))),
    ):
        with mpmath.workdps(50):
            truth = np.array([float(exact(mpmath.mpf(v))) for v in x])
        # A subnormal exponential has few digits, which silu's factor then counts in its own.
        assert (ulp_error(function(x[1:]), truth[1:]) <= 3).all()
        np.testing.assert_allclose(function(x[:1]), truth[:1], rtol=2**-4)


def test_logistic_relatives_at_special_values():
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 1e30, -1e30])
    one = np.ones(6)
    for f_vjp, value, slope in (
        (sigmoid_vjp, [1, 0, np.nan, 0.5, 1, 0], [0, 0, np.nan, 0.25, 0, 0]),
        (silu_vjp, [np.inf, 0, np.nan, 0, 1e30, 0], [1, 0, np.nan, 0.5, 1, 0]),
        (softplus_vjp, [np.inf, 0, np.nan, np.log(2), 1e30, 0], [1, 0, np.nan, 0.5, 1, 0]),
        (erf_vjp, [1, -1, np.nan, 0, 1, -1], [0, 0, np.nan, 2 / np.sqrt(np.pi), 0, 0]),
    ):
        y, pullback = f_vjp(x)
        np.testing.assert_array_equal(y, value)
        np.testing.assert_array_equal(pullback(one)[0], slope)


def test_special_values():
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 1e30, -1e30])
    expected = [np.inf, 0, np.nan, 0, 1e30, 0]
    for approximate in ("none", "tanh"):
        y, pullback = gelu_vjp(x, approximate=approximate)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(pullback(np.ones(6))[0], [1, 0, np.nan, 0.5, 1, 0])
    y, pullback = relu_vjp(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pullback(np.ones(6))[0], [1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,)])
def test_dtype_and_shape_are_kept(dtype, shape):
    x = RNG.standard_normal(shape).astype(dtype)
    for f_vjp in (relu_vjp, gelu_vjp, sigmoid_vjp, silu_vjp, softplus_vjp, erf_vjp):
        y, pullback = f_vjp(x)
        (dx,) = pullback(np.ones(shape, dtype))
        assert (y.dtype, y.shape, dx.dtype, dx.shape) == (dtype, shape, dtype, shape)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="x: expected a float32 or float64 array, got dtype int64"):
        relu(np.array([1]))
    with pytest.raises(TypeError, match="x: expected a float32 or float64 array, got dtype float16"):
        gelu(np.array([1], np.float16))
    for function in (gelu, gelu_vjp):
        with pytest.raises(ValueError, match="approximate: expected one of 'none', 'tanh', got 'erf'"):
            function(np.ones(2), approximate="erf")
