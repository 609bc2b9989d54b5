"""The learned roundings' kernels against mpmath and the reference."""

from __future__ import annotations

import doctest
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.quantizers as reference
import refnorm_fast.quantizers as fast
from refnorm_fast.quantizers import _fit_rounding, _rounding
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
VARIABLES = ("sigmoid", "direct", "ste")
END = np.log(11.0)
"""Logit at which the rectified sigmoid reaches 1."""
UNITS = 2.0
"""Error allowed to h, in units in the last place of 1."""


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def logits(count: int, dtype: Any, seed: int = 0) -> AnyArray:
    """Inside, around both ends, and far away."""
    rng = np.random.default_rng(seed)
    v = np.where(rng.random(count) < 0.7, rng.uniform(-3, 3, count), rng.standard_normal(count) * 20)
    return v.astype(dtype)


def decided(v: AnyArray) -> AnyArray:
    """Where it is clear which side of the ends a logit lies on."""
    return np.abs(np.abs(v.astype(np.float64)) - END) > 32 * np.finfo(v.dtype).eps


def wide_slope(v: AnyArray) -> AnyArray:
    return reference.rectified_sigmoid_vjp(v.astype(np.float64))[1](np.ones(v.shape))[0]


# ---- the rectified sigmoid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_rectified_sigmoid_is_exact_to_two_units(dtype):
    v = np.concatenate([logits(600, dtype), np.array([0.0, 2.39, -2.39, 2.3978, -2.3979, 2.4], dtype)])
    with mpmath.workdps(30):
        exact = [mpmath.mpf("1.2") / (1 + mpmath.exp(-mpmath.mpf(float(x)))) - mpmath.mpf("0.1") for x in v]
        wanted = np.array([np.longdouble(mpmath.nstr(min(max(h, 0), 1), 22)) for h in exact])
    h = fast.rectified_sigmoid(v)
    assert h.dtype == dtype
    assert np.abs(h - wanted).max() <= UNITS * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_rectified_sigmoid_and_its_slope_follow_the_reference(dtype):
    v = np.concatenate([logits(3000, dtype), np.array([*support.SPECIAL, *support.HOSTILE]).astype(dtype)])
    dy = np.random.default_rng(1).standard_normal(v.size).astype(dtype)
    h, pullback = fast.rectified_sigmoid_vjp(v)
    np.testing.assert_array_equal(h, fast.rectified_sigmoid(v))
    np.testing.assert_allclose(h, reference.rectified_sigmoid(v), rtol=0, atol=4 * np.finfo(dtype).eps)
    sure = decided(v) | np.isnan(v)
    # The slope itself is at least 0.09 inside.
    wanted = wide_slope(v)
    np.testing.assert_allclose(pullback(np.ones_like(v))[0][sure], wanted[sure], rtol=16 * np.finfo(dtype).eps, atol=0)
    np.testing.assert_allclose(pullback(dy)[0][sure], (wanted * dy)[sure], rtol=16 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_ends_are_reached_and_nothing_passes_there(dtype):
    v = np.array([-9, -2.41, 2.41, 9, np.inf, -np.inf, np.nan, 1e-30], dtype)
    h, pullback = fast.rectified_sigmoid_vjp(v)
    np.testing.assert_array_equal(h, np.array([0, 0, 1, 1, 1, 0, 0, 0.5], dtype))
    for hostile in support.SPECIAL:
        np.testing.assert_array_equal(pullback(np.full_like(v, hostile))[0][:-1], 0)
    np.testing.assert_allclose(pullback(np.ones_like(v))[0][-1], 0.3, rtol=1e-6)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts_tails_and_out(dtype):
    v = logits(7 * 19, dtype).reshape(7, 19)
    for name, view in support.layouts(v).items():
        np.testing.assert_array_equal(fast.rectified_sigmoid(view), fast.rectified_sigmoid(view.copy()), err_msg=name)
        np.testing.assert_array_equal(
            fast.rounding_regulariser_vjp(view, exponent=3.0)[1](1.0)[0],
            fast.rounding_regulariser_vjp(view.copy(), exponent=3.0)[1](1.0)[0],
            err_msg=name,
        )
    support.check_out(fast.rectified_sigmoid, v)
    support.check_out_errors(fast.rectified_sigmoid, v)
    v = logits(max(support.TAILS), dtype)
    whole, slope = fast.rectified_sigmoid(v), fast.rectified_sigmoid_vjp(v)[1](v)[0]
    for length in support.TAILS:
        guarded = np.full(length + 2, 7, dtype)
        fast.rectified_sigmoid(v[:length], out=guarded[1:-1])
        np.testing.assert_array_equal(guarded[1:-1], whole[:length])
        assert guarded[0] == guarded[-1] == 7
        np.testing.assert_array_equal(fast.rectified_sigmoid_vjp(v[:length])[1](v[:length])[0], slope[:length])


def test_pullbacks_keep_what_they_were_given():
    v, weight, scale = np.array([[-1.0, 2.0]]), np.array([[0.3, -1.2]]), np.array([0.5, 0.25])
    calls = [
        (fast.rectified_sigmoid_vjp(v), np.ones((1, 2))),
        (fast.rounding_regulariser_vjp(v), np.array(1.0)),
        (fast.soft_quantize_vjp(weight, scale, v, bits=4), np.ones((1, 2))),
    ]
    before = [pull(dy) for (_, pull), dy in calls]
    v[...], weight[...] = 0.5, 7
    for (value, pull), dy in calls:
        if value.shape:
            value[...] = 0.25
        first, second = pull(dy), pull(dy)
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
            one[...] = 3  # a result of the pullback is the caller's
    for ((_, pull), dy), wanted in zip(calls, before, strict=True):
        for one, other in zip(pull(dy), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


# ---- the regulariser ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 2.001, 7.3, 20.0, 600.0])
def test_regulariser_follows_the_reference(dtype, exponent):
    rng = np.random.default_rng(2)
    for count in (0, 1, 5, 130, 4096, 4097, 10_000):
        h = rng.random(count).astype(dtype)
        h[::7] = rng.choice(np.array([0, 1, 0.5, 0.5 + 1e-7, 1e-7], dtype), len(h[::7]))
        value, pullback = fast.rounding_regulariser_vjp(h, exponent=exponent)
        assert (value.shape, value.dtype) == ((), dtype)
        wide = reference.rounding_regulariser(h.astype(np.float64), exponent=exponent)
        # 2 h - 1 is rounded below h = 1/4, and powers take that further.
        np.testing.assert_allclose(value, wide, rtol=16 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps * count)
        np.testing.assert_array_equal(value, fast.rounding_regulariser(h, exponent=exponent))
        (dh,) = pullback(dtype(0.3))
        assert dh.dtype == dtype
        # In float64 from the rounded 2 h - 1 on: NumPy's float32 power rounds the exponent too.
        away = (2 * h - 1).astype(np.float64)
        wanted = -2 * exponent * float(dtype(0.3)) * np.abs(away) ** (exponent - 1) * np.sign(away)
        # A power of 600 shows the last digits of the logarithm.
        size = np.abs(wanted)
        units = 4 + np.abs(np.log(np.maximum(size, np.finfo(float).tiny))) / 32
        assert (np.abs(dh - wanted) <= units * np.finfo(dtype).eps * size + np.finfo(dtype).smallest_normal).all()
        (same,) = reference.rounding_regulariser_vjp(h, exponent=exponent)[1](dtype(0.3))
        np.testing.assert_allclose(dh, same, rtol=2e-4, atol=np.finfo(dtype).smallest_normal)


@pytest.mark.parametrize("exponent", [1.3, 2.5, 11.0, 21.0])
def test_powers_are_exact_to_two_ulp(exponent):
    """Where an exponent of 20 would multiply the error of a logarithm by tens."""
    h = np.concatenate([np.random.default_rng(3).random(400), 0.5 + 2.0 ** -np.arange(2, 50)])
    slope = fast.rounding_regulariser_vjp(h, exponent=exponent)[1](-0.5 / exponent)[0]
    with mpmath.workdps(40):
        power = mpmath.mpf(exponent) - 1
        exact = [mpmath.power(abs(2 * mpmath.mpf(float(x)) - 1), power) for x in h]
        error = [
            abs(mpmath.mpf(float(abs(found))) - wanted) / wanted for found, wanted in zip(slope, exact, strict=True)
        ]
    assert max(error) <= 2 * np.finfo(float).eps


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 9.0])
def test_regulariser_of_special_values(dtype, exponent):
    for special in (*support.SPECIAL, 3.0, -2.0, 1e30):
        h = np.array([special, 0.5, 0.25], dtype)
        with np.errstate(all="ignore"):
            value, pullback = reference.rounding_regulariser_vjp(h, exponent=exponent)
            (wanted,) = pullback(np.asarray(1, dtype))
            found, fast_pullback = fast.rounding_regulariser_vjp(h, exponent=exponent)
        np.testing.assert_allclose(found, value, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(fast_pullback(np.asarray(1, dtype))[0], wanted, rtol=4 * np.finfo(dtype).eps)


# ---- quantized weights --------------------------------------------------------------------------------------------


def problem(shape: tuple[int, int], dtype: Any, per_column: bool, seed: int = 0) -> tuple[AnyArray, ...]:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal(shape) * 3).astype(dtype)
    weight.ravel()[::5] = np.round(weight.ravel()[::5])  # on the grid, if the scale is 1/4 or 1/2
    scale = rng.choice([0.25, 0.5, 0.37], shape[1]).astype(dtype) if per_column else np.asarray(0.37, dtype)
    return weight, scale, logits(weight.size, dtype, seed).reshape(shape)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("per_column", [False, True])
def test_soft_quantize_follows_the_reference(dtype, variable, per_column):
    eps = np.finfo(dtype).eps
    for shape in [(1, 1), (3, 5), (0, 4), (4, 0), (130, 7), (65, 33), (70, 1030), (2, 5000)]:
        for bits in (2, 4, 16):
            weight, scale, v = problem(shape, dtype, per_column, sum(shape))
            if variable == "ste":
                v = v / 4
            dy = np.random.default_rng(5).standard_normal(shape).astype(dtype)
            y, pullback = fast.soft_quantize_vjp(weight, scale, v, bits=bits, variable=variable)
            wanted, reference_pullback = reference.soft_quantize_vjp(weight, scale, v, bits=bits, variable=variable)
            assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_array_equal(y, fast.soft_quantize(weight, scale, v, bits=bits, variable=variable))
            if variable == "sigmoid":
                np.testing.assert_allclose(y, wanted, rtol=0, atol=8 * eps * max(1, np.abs(y).max(initial=0)))
            else:
                np.testing.assert_array_equal(y, wanted)
            found, expected = pullback(dy), reference_pullback(dy)
            assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
            np.testing.assert_array_equal(found[0], expected[0])
            products = (np.abs(dy * y) / scale).astype(np.float64)
            size = products.sum() if not per_column else products.sum(axis=0)
            assert (np.abs(found[1] - expected[1]) <= 64 * eps * (size + 1e-3)).all()
            # The codes' own ends: a code that is the highest but for rounding passes or does not.
            code = y / scale
            highest = 2 ** (bits - 1) - 1
            far = (np.abs(code - highest) > 1e-2) & (np.abs(code + highest + 1) > 1e-2) & decided(v)
            sure = np.ones(shape, bool) if variable != "sigmoid" else far
            np.testing.assert_allclose(found[2][sure], expected[2][sure], rtol=64 * eps, atol=0)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("variable", VARIABLES)
def test_hostile_weights_scales_and_variables(dtype, variable):
    weight, v = np.meshgrid(np.array(support.HOSTILE, dtype), np.array([*support.SPECIAL, *support.HOSTILE], dtype))
    weight, v = weight.copy(), v.copy()
    dy = np.ones_like(weight)
    for scale in (1.0, 1e-30, 1e-45, 1e30, 3e38, np.inf):
        step = np.asarray(scale, dtype)
        if not step > 0:
            continue
        with np.errstate(all="ignore"):
            y, pullback = fast.soft_quantize_vjp(weight, step, v, bits=8, variable=variable)
            wanted, reference_pullback = reference.soft_quantize_vjp(weight, step, v, bits=8, variable=variable)
            np.testing.assert_allclose(y, wanted, rtol=4 * np.finfo(dtype).eps, atol=0)
            np.testing.assert_allclose(pullback(dy)[2], reference_pullback(dy)[2], rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("variable", VARIABLES)
def test_clipped_codes_pass_nothing(dtype, variable):
    weight, v = np.full((2, 3), 100, dtype), np.zeros((2, 3), dtype)
    for special in support.SPECIAL:
        _, pullback = fast.soft_quantize_vjp(weight, np.ones(3, dtype), v, bits=4, variable=variable)
        np.testing.assert_array_equal(pullback(np.full_like(v, special))[2], 0)


@pytest.mark.parametrize("variable", VARIABLES)
def test_soft_quantize_in_any_layout_and_into_out(variable):
    weight, scale, v = problem((7, 19), np.float32, True)
    for name, view in support.layouts(weight).items():
        other = support.layouts(v)[name]
        options = {"bits": 4, "variable": variable}
        y, pullback = fast.soft_quantize_vjp(view, scale, other, **options)
        plain, plain_pullback = fast.soft_quantize_vjp(view.copy(), scale, other.copy(), **options)
        np.testing.assert_array_equal(y, plain, err_msg=name)
        for one, wanted in zip(pullback(view), plain_pullback(view.copy()), strict=True):
            np.testing.assert_array_equal(one, wanted, err_msg=name)
    spread = np.repeat(scale, 3)[::3]
    np.testing.assert_array_equal(
        fast.soft_quantize(weight, spread, v, bits=4, variable=variable),
        fast.soft_quantize(weight, scale, v, bits=4, variable=variable),
    )
    support.check_out(lambda w, **out: fast.soft_quantize(w, scale, v, bits=4, variable=variable, **out), weight)
    support.check_out(lambda u, **out: fast.soft_quantize(weight, scale, u, bits=4, variable=variable, **out), v)
    support.check_out_errors(lambda w, **out: fast.soft_quantize(w, scale, v, bits=4, variable=variable, **out), weight)


@pytest.mark.parametrize("power", [0.5, 0.9])
def test_a_power_grid_is_the_references(power):
    weight, scale, v = problem((5, 6), np.float64, True)
    y, pullback = fast.soft_quantize_vjp(weight, scale, v, bits=4, power=power)
    wanted, reference_pullback = reference.soft_quantize_vjp(weight, scale, v, bits=4, power=power)
    np.testing.assert_array_equal(y, wanted)
    for one, other in zip(pullback(weight), reference_pullback(weight), strict=True):
        np.testing.assert_array_equal(one, other)
    into = np.empty_like(weight)
    assert fast.soft_quantize(weight, scale, v, bits=4, power=power, out=into) is into
    np.testing.assert_array_equal(into, wanted)


def test_results_do_not_depend_on_threads(isa):
    if isa != support.ISAS[-1]:
        pytest.skip("one level: the sharing is the same")
    weight, scale, v = problem((700, 601), np.float32, True)
    found = []
    for count in (1, 2, 3):
        with support.threads(count):
            parts = [*fast.soft_quantize_vjp(weight, scale, v, bits=4)[1](weight)]
            parts += fast.soft_quantize_vjp(weight, scale[0:1].reshape(()), v, bits=4)[1](weight)
            h, pullback = fast.rectified_sigmoid_vjp(v)
            value, pull = fast.rounding_regulariser_vjp(h, exponent=3.3)
            found.append(
                [*parts, h, value, pullback(weight)[0], pull(1.0)[0], fast.soft_quantize(weight, scale, v, bits=4)]
            )
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_results_beyond_the_caches_are_the_same(dtype, isa):
    """They are written past the caches."""
    if isa != support.ISAS[-1]:
        pytest.skip("one level: the loops are the same")
    rows = 12_000_000 // np.dtype(dtype).itemsize // 1024
    small = problem((8, 1024), dtype, True)
    weight, scale, v = np.tile(small[0], (rows // 8, 1)), small[1], np.tile(small[2], (rows // 8, 1))
    for one in (scale, scale[:1].reshape(())):
        y, pullback = fast.soft_quantize_vjp(weight, one, v, bits=4)
        part, part_pullback = fast.soft_quantize_vjp(small[0], one, small[2], bits=4)
        np.testing.assert_array_equal(y[-8:], part)
        np.testing.assert_array_equal(pullback(weight)[2][-8:], part_pullback(small[0])[2])
    v = v.ravel()
    np.testing.assert_array_equal(fast.rectified_sigmoid(v)[-1024:], fast.rectified_sigmoid(v[-1024:]))
    h, pullback = fast.rectified_sigmoid_vjp(v)
    np.testing.assert_array_equal(pullback(v)[0][-99:], fast.rectified_sigmoid_vjp(v[-99:])[1](v[-99:])[0])
    dh = fast.rounding_regulariser_vjp(h)[1](1.0)[0]
    np.testing.assert_array_equal(dh[-99:], fast.rounding_regulariser_vjp(h[-99:])[1](1.0)[0])


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
               elements=st.floats(allow_nan=True, allow_infinity=True)),
)  # fmt: skip
def test_any_array_follows_the_reference(v):
    got, expected = fast.rectified_sigmoid(v), reference.rectified_sigmoid(v)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * np.finfo(float).eps)


BAD = [
    ("rectified_sigmoid", (np.arange(3),), {}),
    ("rounding_regulariser", (np.arange(3),), {}),
    ("rounding_regulariser", (np.zeros(3),), {"exponent": 0.5}),
    ("rounding_regulariser", (np.zeros(3),), {"exponent": np.nan}),
    ("soft_quantize", (np.zeros(3), np.ones(3), np.zeros(3)), {"bits": 4}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(2), np.zeros((2, 3))), {"bits": 4}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(3), np.zeros((2, 2))), {"bits": 4}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(3, np.float32), np.zeros((2, 3))), {"bits": 4}),
    ("soft_quantize", (np.zeros((2, 3)), np.zeros(3), np.zeros((2, 3))), {"bits": 4}),
    ("soft_quantize", (np.zeros((2, 3)), np.array([1, np.nan, 1]), np.zeros((2, 3))), {"bits": 4}),
    ("soft_quantize", (np.full((2, 3), np.nan), np.ones(3), np.zeros((2, 3))), {"bits": 4}),
    ("soft_quantize", (np.full((2, 3), -np.inf), np.ones(3), np.zeros((2, 3))), {"bits": 4}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(3), np.zeros((2, 3))), {"bits": 17}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(3), np.zeros((2, 3))), {"bits": 4, "variable": "hard"}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(3), np.zeros((2, 3))), {"bits": 4, "power": 2.0}),
    ("soft_quantize", (np.zeros((2, 3)), np.ones(3), np.zeros((2, 3))), {"bits": 4, "power": "1"}),
]


@pytest.mark.parametrize(("name", "args", "options"), BAD)
def test_bad_input_raises_what_the_reference_raises(name, args, options):
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as wanted:
            getattr(reference, name + suffix)(*args, **options)
        with pytest.raises(type(wanted.value)) as found:
            getattr(fast, name + suffix)(*args, **options)
        assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variable": "direct", "loss": "kl"},
        {"variable": "ste", "activation": "relu"},
        {"power": 0.7, "optimizer": "adamax"},
        {"learn": ("rounding", "scale", "bias"), "loss": "cosine"},
    ],
)
def test_fits_follow_the_reference(options):
    # Not with the loss l1: a fit begins where all errors are 0 but for rounding, and their signs are its gradient. And with no
    # weight on the grid, which begins at an end of the relaxation, where rounding decides whether it moves.
    rng = np.random.default_rng(10)
    x, weight, bias = rng.standard_normal((40, 9)), rng.standard_normal((9, 7)), rng.standard_normal(7)
    mine = fast.fit_rounding(x, weight, bias, bits=3, n_iter=60, learning_rate=3e-2, **options)
    wanted = reference.fit_rounding(x, weight, bias, bits=3, n_iter=60, learning_rate=3e-2, **options)
    assert isinstance(mine, reference.RoundingResult)
    np.testing.assert_allclose(mine.history["loss"], wanted.history["loss"], rtol=1e-9)
    np.testing.assert_allclose(mine.h, wanted.h, atol=1e-9)
    np.testing.assert_array_equal(mine.codes, wanted.codes)
    with pytest.raises(ValueError, match="bits"):
        fast.fit_rounding(x, weight, bias, bits=1)


def test_nothing_is_written_where_a_weight_is_not_finite():
    out = np.full((1, 2), 7.0)
    with pytest.raises(ValueError, match="weight"):
        fast.soft_quantize(np.array([[1.0, np.inf]]), np.array(1.0), np.zeros((1, 2)), bits=4, out=out)
    np.testing.assert_array_equal(out, 7)


def test_cotangents_of_another_shape():
    with pytest.raises(ValueError, match=r"dy: expected shape \(2,\), got \(3,\)"):
        fast.rectified_sigmoid_vjp(np.ones(2))[1](np.ones(3))
    with pytest.raises(ValueError, match=r"dy: expected shape \(\), got \(3,\)"):
        fast.rounding_regulariser_vjp(np.ones(2))[1](np.ones(3))
    with pytest.raises(ValueError, match=r"dy: expected shape \(1, 2\), got \(2,\)"):
        fast.soft_quantize_vjp(np.ones((1, 2)), np.array(1.0), np.ones((1, 2)), bits=4)[1](np.ones(2))


def test_examples():
    assert doctest.testmod(_rounding).failed == 0
    assert doctest.testmod(_fit_rounding).failed == 0
