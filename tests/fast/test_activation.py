"""The activations' kernels against long doubles, mpmath and the reference."""

from __future__ import annotations

import doctest
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.nn as reference
import refnorm_fast.nn as fast
from refnorm._arrays import ulp_error
from refnorm_fast.nn import _core
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
FORMS = ("none", "tanh")
FUNCTIONS = ("relu", "gelu", "sigmoid", "silu", "softplus", "erf")
# The worst of 5.8e7 float32 arguments is 1.52; in the tanh form it is 1.33, of all from -9.5 to -1/2 and from 1 to 4. float64
# multiplies an exponential and a rational function of |x|; in the tanh form its exponential multiplies the rounding error of 2u
# by 2u.
GELU_ULP = {"none": {np.float32: 1.6, np.float64: 6.0}, "tanh": {np.float32: 1.5, np.float64: 2048.0}}
# Without a fused multiply-add float32 is rounded once from float64.
GELU_ULP_WITHOUT_FMA = 0.51


# The worst of 5.8e7 float32 arguments is 1.93; without a fused multiply-add float64 keeps no quotient's error.
LOGISTIC_ULP = 2.0
LOGISTIC_ULP_WITHOUT_FMA = 3.0
LOGISTIC = {
    "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
    "silu": lambda v: v / (1 + mpmath.exp(-v)),
    "softplus": lambda v: mpmath.log1p(mpmath.exp(v)) if v < 0 else v + mpmath.log1p(mpmath.exp(-v)),
    "erf": mpmath.erf,
}


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def exact_gelu(x: AnyArray, form: str) -> AnyArray:
    def one(v: Any) -> Any:
        if form == "none":
            return v * mpmath.ncdf(v)
        return v / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf("0.044715") * v**3)))

    with mpmath.workdps(40):
        return np.array([np.longdouble(mpmath.nstr(one(mpmath.mpf(float(v))), 25)) for v in x])


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_gelu_is_exact_to_a_few_ulp_in_both_tails(dtype, form, isa):
    rng = np.random.default_rng(0)
    lowest = -38 if form == "none" else -20
    parts = [rng.standard_normal(300), rng.uniform(lowest, 9, 300), rng.uniform(-15, -8, 200)]
    edges = [1e-30, -1e-30, -37.9, 1e30, -13.0, -9.5, 13.0, 9.5, -12.999, -9.499, -3.0160232, -2.7462883]
    x = np.concatenate([*parts, edges]).astype(dtype)
    without = isa == "baseline" and dtype == np.float32
    limit = GELU_ULP_WITHOUT_FMA if without else GELU_ULP[form][dtype]
    assert ulp_error(fast.gelu(x, approximate=form), exact_gelu(x, form)).max() <= limit


@pytest.mark.parametrize("name", LOGISTIC)
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_logistic_relatives_are_within_two_ulp(name, dtype, isa):
    rng = np.random.default_rng(5)
    edge = -104 if dtype == np.float32 else -745
    parts = [
        rng.standard_normal(300) * 3,
        rng.uniform(edge, 100, 300),
        rng.uniform(edge, 0.8 * edge, 200),
        [1e-30, -1e-30, 0.75, 1e30],
    ]
    x = np.concatenate(parts).astype(dtype)
    with mpmath.workdps(40):
        exact = np.array([np.longdouble(mpmath.nstr(LOGISTIC[name](mpmath.mpf(float(v))), 25)) for v in x])
    limit = LOGISTIC_ULP_WITHOUT_FMA if isa == "baseline" and dtype == np.float64 else LOGISTIC_ULP
    assert ulp_error(getattr(fast, name)(x), exact).max() <= limit


@pytest.mark.parametrize("name", LOGISTIC)
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_logistic_relatives_follow_the_reference(name, dtype):
    rng = np.random.default_rng(6)
    spread = np.concatenate([rng.standard_normal(500) * 4, rng.uniform(-110, 110, 500)])
    x = np.concatenate([spread, support.SPECIAL, support.HOSTILE]).astype(dtype)
    dy = rng.standard_normal(x.size).astype(dtype)
    y, pullback = getattr(fast, f"{name}_vjp")(x)
    expected, expected_pullback = getattr(reference, f"{name}_vjp")(x)
    np.testing.assert_array_equal(y, getattr(fast, name)(x))
    assert (ulp_error(y, expected) <= 3).all()
    np.testing.assert_array_equal(np.signbit(y[~np.isnan(y)]), np.signbit(expected[~np.isnan(y)]))
    np.testing.assert_allclose(pullback(dy)[0], expected_pullback(dy)[0], rtol=0, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_follows_the_reference(dtype, form):
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal(1000) * 4).astype(dtype), rng.standard_normal(1000).astype(dtype)
    y, pullback = fast.gelu_vjp(x, approximate=form)
    (dx,) = pullback(dy)
    (expected,) = reference.gelu_vjp(x, approximate=form)[1](dy)
    np.testing.assert_array_equal(y, fast.gelu(x, approximate=form))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_special_values(dtype, form):
    x = np.array([*support.SPECIAL, *support.HOSTILE]).astype(dtype)
    # Half of the smallest subnormal is a tie, which the two may break differently.
    np.testing.assert_allclose(
        fast.gelu(x, approximate=form),
        reference.gelu(x, approximate=form),
        rtol=1e-6,
        atol=2 * np.finfo(dtype).smallest_subnormal,
    )
    one = np.ones_like(x)
    got, expected = (m.gelu_vjp(x, approximate=form)[1](one)[0] for m in (fast, reference))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(fast.relu(x), reference.relu(x))
    np.testing.assert_array_equal(fast.relu_vjp(x)[1](one)[0], reference.relu_vjp(x)[1](one)[0])


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail_length(dtype):
    x = np.random.default_rng(2).standard_normal(max(support.TAILS)).astype(dtype)
    for function in (fast.relu, fast.gelu, fast.sigmoid, fast.silu, fast.softplus, fast.erf):
        whole = function(x)
        for length in support.TAILS:
            guarded = np.full(length + 2, 7, dtype)
            function(x[:length], out=guarded[1:-1])
            np.testing.assert_array_equal(guarded[1:-1], whole[:length])
            assert guarded[0] == guarded[-1] == 7


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("function", [fast.relu, fast.gelu, fast.sigmoid, fast.silu, fast.softplus, fast.erf])
def test_layouts_and_out(dtype, function):
    x = np.random.default_rng(3).standard_normal((7, 19)).astype(dtype)
    for name, view in support.layouts(x).items():
        np.testing.assert_array_equal(function(view), function(view.copy()), err_msg=name)
    support.check_out(function, x)
    support.check_out_errors(function, x)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
               elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
)  # fmt: skip
def test_gelu_equals_the_reference_on_any_array(x):
    got, expected = fast.gelu(x), reference.gelu(x)
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    assert (ulp_error(got, expected) <= 2).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_an_entry_depends_on_nothing_but_itself(name, dtype):
    """Not on its neighbours, which may be arguments that only a longer form serves, nor on its place."""
    rng = np.random.default_rng(7)
    x = (rng.standard_normal(400) * 2).astype(dtype)
    hostile = x.copy()
    hostile[::7] = np.resize([*support.SPECIAL, *support.HOSTILE, -6.5, -13.5, -85.0, 90.0], len(x[::7]))
    others = np.arange(400) % 7 != 0
    f, f_vjp = getattr(fast, name), getattr(fast, f"{name}_vjp")
    np.testing.assert_array_equal(f(hostile)[others], f(x)[others])
    np.testing.assert_array_equal(f(x[3:]), f(x)[3:])
    for array in (x, hostile):
        y, pullback = f_vjp(array)
        np.testing.assert_array_equal(y, f(array))
        one_by_one = [f_vjp(array[i : i + 1])[1](np.ones(1, dtype))[0][0] for i in range(100)]
        np.testing.assert_array_equal(pullback(np.ones_like(array))[0][:100], one_by_one)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_are_within_a_few_units(name):
    """float32 against float64's, in both tails too; between -3 and 0 two slopes cross 0, and 1/4 stands for less."""
    x = np.concatenate([np.linspace(-20, 20, 4001), [-5.9, 5.9, -5.90001, 5.90001, -80.0, 80.0]]).astype(np.float32)
    slope = getattr(fast, f"{name}_vjp")(x)[1](np.ones_like(x))[0]
    exact = getattr(reference, f"{name}_vjp")(x.astype(np.float64))[1](np.ones(x.size))[0]
    size = np.maximum(np.abs(exact), np.where((x > -3) & (x < 0), 0.25, 1e-30))
    assert (np.abs(slope - exact) <= 6 * 2**-24 * size).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_number_of_threads_changes_nothing(name):
    x = np.random.default_rng(4).standard_normal(300_001).astype(np.float32) * 3
    found = []
    for count in (1, 3):
        with support.threads(count):
            y, pullback = getattr(fast, f"{name}_vjp")(x)
            found.append((getattr(fast, name)(x), y, pullback(x)[0]))
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", ["relu", "gelu", "softplus"])
def test_results_beyond_the_caches_are_the_same(name, dtype, isa):
    """They are written past the caches, from the first aligned address on."""
    if isa != support.ISAS[-1]:
        pytest.skip("one level: the loops are the same")
    x = np.resize(
        np.random.default_rng(8).standard_normal(10_007).astype(dtype), 36_000_000 // np.dtype(dtype).itemsize + 1
    )
    part = getattr(fast, name)(x[:10_007])
    memory = np.empty(x.size + 3, dtype)
    getattr(fast, name)(x, out=memory[3:])
    np.testing.assert_array_equal(memory[3:10_010], part)
    np.testing.assert_array_equal(memory[-5:], getattr(fast, name)(x[-5:]))
    y, pullback = getattr(fast, f"{name}_vjp")(x)
    np.testing.assert_array_equal(y, memory[3:])
    np.testing.assert_array_equal(pullback(x)[0][:10_007], getattr(fast, f"{name}_vjp")(x[:10_007])[1](x[:10_007])[0])


def test_pullback_keeps_what_it_was_given():
    x = np.array([-1.0, 2.0])
    _, pullback = fast.relu_vjp(x)
    x[0] = 5.0
    np.testing.assert_array_equal(pullback(np.ones(2))[0], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"dy: expected shape \(2,\), got \(3,\)"):
        pullback(np.ones(3))


def test_bad_input():
    with pytest.raises(TypeError, match="x: expected a float32 or float64 array, got dtype int64"):
        fast.gelu(np.arange(3))
    with pytest.raises(ValueError, match="approximate: expected one of 'none', 'tanh', got 'erf'"):
        fast.gelu(np.zeros(3), approximate="erf")


def test_examples():
    assert doctest.testmod(_core).failed == 0
