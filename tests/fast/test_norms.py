"""The norms room's kernels against the reference and against long doubles."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.norms as reference
import refnorm_fast.norms as fast
from refnorm_fast.norms import _core
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def exact_layer_norm(x: AnyArray, eps: float) -> AnyArray:
    wide = x.astype(np.longdouble)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    result: AnyArray = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    return result


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("length", [2, 10, 128, 768, 1024, 40000, 1000003])
def test_common_offset_costs_no_digits(length: int, offset: float) -> None:
    x = (np.random.default_rng(length).normal(size=(3, length)) + offset).astype(np.float32)
    y = fast.layer_norm(x, np.ones(length, np.float32), np.zeros(length, np.float32))
    expected = exact_layer_norm(x, 1e-5)
    ulp = np.spacing(np.abs(expected).max().astype(np.float32))
    assert np.abs(y - expected).max() <= 4 * ulp


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("length", [16, 40, 257, 5000, 70000])
@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("first", [0.0, 30.0, 1e4, 1e7])
def test_entries_that_begin_far_from_the_mean_cost_no_digits(length: int, scale: float, first: float) -> None:
    rng = np.random.default_rng(length)
    x = rng.normal(size=(2, length))
    x[0, :16] += first
    x[1, ::3] += first
    x = (scale * x).astype(np.float32)
    y = fast.layer_norm(x, np.ones(length, np.float32), np.zeros(length, np.float32), eps=1e-300)
    expected = exact_layer_norm(x, 1e-300)
    ulp = np.spacing(np.abs(expected).max().astype(np.float32))
    assert np.abs(y - expected).max() <= 4 * ulp


@pytest.mark.usefixtures("isa")
def test_common_offset_in_float64() -> None:
    x = np.random.default_rng(0).normal(size=(3, 777)) + 1e4
    y = fast.layer_norm(x, np.ones(777), np.zeros(777))
    expected = exact_layer_norm(x, 1e-5)
    assert np.abs(y - expected).max() <= 8 * np.spacing(np.float64(np.abs(expected).max()))


CASES: dict[str, Callable[[AnyArray, AnyArray, AnyArray], tuple[AnyArray, ...]]] = {
    "layer_norm": lambda x, gain, bias: (x, gain, bias),
    "rms_norm": lambda x, gain, bias: (x, gain, bias),
    "rms_norm without bias": lambda x, gain, bias: (x, gain),
    "rms_norm without gain": lambda x, gain, bias: (x, None, bias),  # type: ignore[return-value]
    "rms_norm plain": lambda x, gain, bias: (x,),
    "compressed_rms_norm": lambda x, gain, bias: (x,),
}


def compare(case: str, x: AnyArray, gain: AnyArray, bias: AnyArray, dy: AnyArray, message: str = "") -> None:
    name, arguments = case.split()[0], CASES[case](x, gain, bias)
    unit = EPS[x.dtype]
    y, pullback = getattr(fast, name + "_vjp")(*arguments)
    np.testing.assert_array_equal(getattr(fast, name)(*arguments), y, err_msg=message)
    # float32 is compared with the reference in float64, which has the digits to judge it
    wide = [None if a is None else a.astype(np.float64) for a in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(y, expected, rtol=8 * unit, atol=8 * unit * scale, err_msg=message)
    found, wanted = pullback(dy), reference_pullback(dy.astype(np.float64))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == x.dtype
        assert one.shape == other.shape
        bound = float(np.abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=64 * unit * max(bound, 1), err_msg=message)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_tail(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS:
        if length == 0:
            continue
        guarded = np.full((11, length + 2), np.nan, dtype)  # neighbours that must not be read
        guarded[:, 1:-1] = rng.normal(size=(11, length)) + 3
        gain, bias = rng.normal(size=(2, length)).astype(dtype)
        compare(case, guarded[:, 1:-1], gain, bias, rng.normal(size=(11, length)).astype(dtype), f"length {length}")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(1, 5000), (100, 700), (2, 300001), (3, 4, 5, 6), (0, 4), (7,)])
def test_shapes(case: str, shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(1)
    gain, bias = rng.normal(size=(2, shape[-1])).astype(dtype)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    compare(case, x, gain, bias, dy)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_several_axes(dtype: type) -> None:
    rng = np.random.default_rng(1)
    x, dy = rng.normal(size=(2, 6, 3, 4, 5)).astype(dtype)
    for axes in ((-1,), (-2, -1), (1, 2, 3), (0, 1, 2, 3)):
        units = x.shape[-len(axes) :]
        gain, bias = rng.normal(size=(2, *units)).astype(dtype)
        y, pullback = fast.layer_norm_vjp(x, gain, bias, axes=axes)
        expected, reference_pullback = reference.layer_norm_vjp(x, gain, bias, axes=axes)
        np.testing.assert_allclose(y, expected, rtol=0, atol=64 * EPS[x.dtype])
        np.testing.assert_array_equal(fast.layer_norm(x, gain, bias, axes=axes), y)
        for one, other in zip(pullback(dy), reference_pullback(dy), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=512 * EPS[x.dtype])
        for name, same in support.layouts(x).items():
            straight = fast.layer_norm(np.ascontiguousarray(same), gain, bias, axes=axes)
            np.testing.assert_array_equal(fast.layer_norm(same, gain, bias, axes=axes), straight, err_msg=name)
            for one, other in zip(
                fast.layer_norm_vjp(same, gain, bias, axes=axes)[1](np.asfortranarray(dy)),
                fast.layer_norm_vjp(np.ascontiguousarray(same), gain, bias, axes=axes)[1](dy),
                strict=True,
            ):
                np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(5, 33), (3, 2, 8), (3, 70000)])
def test_out(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, residual = rng.normal(size=(2, *shape)).astype(dtype)
    gain, bias = rng.normal(size=(2, shape[-1])).astype(dtype)
    functions: list[Callable[..., AnyArray]] = [
        lambda x, **out: fast.layer_norm(x, gain, bias, **out),
        lambda x, **out: fast.rms_norm(x, gain, **out),
        lambda x, **out: fast.compressed_rms_norm(x, **out),
        lambda x, **out: fast.add_layer_norm(x, residual, gain, bias, **out),
        lambda x, **out: fast.add_rms_norm(x, residual, gain, **out),
    ]
    for function in functions:
        support.check_out(function, x)
        support.check_out_errors(function, x)
    in_place = residual.copy()
    np.testing.assert_array_equal(
        fast.add_layer_norm(x, in_place, gain, bias, out=in_place), fast.add_layer_norm(x, residual, gain, bias)
    )
    square = rng.normal(size=(8, 8)).astype(dtype)
    expected = fast.layer_norm(square, square[0].copy(), square[1].copy())
    np.testing.assert_array_equal(fast.layer_norm(square, square[0], square[1], out=square), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norm_of_a_sum_is_the_composition(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    norm, norm_vjp = getattr(fast, name), getattr(fast, name + "_vjp")
    add_norm, add_norm_vjp = getattr(fast, "add_" + name), getattr(fast, f"add_{name}_vjp")
    # The last one is larger than the caches.
    for shape in ((7,), (3, 7), (0, 5), (200, 768), (2, 300001), (9, 1000003))[: 6 if dtype == np.float32 else 5]:
        x, residual = rng.normal(size=(2, *shape)).astype(dtype)
        gain, bias = rng.normal(size=(2, shape[-1])).astype(dtype)
        expected, back = norm_vjp(x + residual, gain, bias)
        np.testing.assert_array_equal(add_norm(x, residual, gain, bias), expected)
        y, pullback = add_norm_vjp(x, residual, gain, bias)
        np.testing.assert_array_equal(y, expected)
        for dy in (residual, x):
            dx, dgain, dbias = back(dy)
            for one, other in zip(pullback(dy), (dx, dx, dgain, dbias), strict=True):
                np.testing.assert_array_equal(one, other)
    x, residual = rng.normal(size=(2, 30, 40)).astype(dtype)
    gain, bias = rng.normal(size=(2, 30)).astype(dtype)
    expected = norm(x.T + residual.T, gain, bias)
    np.testing.assert_array_equal(add_norm(x.T, residual.T, gain, bias), expected)
    np.testing.assert_array_equal(add_norm_vjp(x.T, residual.T, gain, bias)[0], expected)
    for layout, same in support.layouts(x).items():
        dx, dresidual, *_ = add_norm_vjp(same, residual, gain.repeat(2)[:40], bias.repeat(2)[:40])[1](residual)
        straight = add_norm_vjp(same.copy("C"), residual, gain.repeat(2)[:40], bias.repeat(2)[:40])[1](residual)
        np.testing.assert_array_equal(dx, straight[0], err_msg=layout)
        assert dx is dresidual


def test_rms_norm_of_a_sum_without_gain_or_bias() -> None:
    x, residual, bias = np.random.default_rng(0).normal(size=(3, 5))
    for options in ({}, {"bias": bias}, {"gain": bias}):
        y, pullback = fast.add_rms_norm_vjp(x, residual, **options)
        expected, back = reference.add_rms_norm_vjp(x, residual, **options)
        np.testing.assert_allclose(y, expected, rtol=1e-14)
        for one, other in zip(pullback(x), back(x), strict=True):
            if other is None:
                assert one is None
            else:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(3000, 200), (3, 400000)])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    gain, bias = rng.normal(size=(2, shape[1])).astype(dtype)

    def results() -> list[AnyArray]:
        y, pullback = fast.add_layer_norm_vjp(x, dy, gain, bias)
        found = [fast.add_layer_norm(x, dy, gain, bias), y, *pullback(dy)]
        for case, arguments in CASES.items():
            y, pullback = getattr(fast, case.split()[0] + "_vjp")(*arguments(x, gain, bias))
            found += [y, *(one for one in pullback(dy) if one is not None)]
        return found

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_special_rows(dtype: type) -> None:
    for length in (5, 300, 70000):
        x = np.random.default_rng(0).normal(size=(5, length)).astype(dtype)
        x[0, 1], x[1, 2], x[2, 3] = np.nan, np.inf, -np.inf
        x[3] = 7
        gain, bias = np.ones(length, dtype), np.full(length, 0.5, dtype)
        y = fast.layer_norm(x, gain, bias)
        assert np.isnan(y[:3]).all()
        np.testing.assert_array_equal(y[3], bias)
        assert np.isfinite(y[4]).all()
        for name in ("rms_norm", "compressed_rms_norm"):
            np.testing.assert_allclose(
                getattr(fast, name)(x), getattr(reference, name)(x), rtol=8 * EPS[x.dtype], err_msg=name
            )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 1e-19, 1e19, 1e30, 1e38, 3e38])
@pytest.mark.parametrize("eps", [1e-300, 1e-12, 1e-5])
def test_sizes_at_the_ends_of_the_range(size: float, eps: float) -> None:
    x = (np.random.default_rng(0).uniform(-1, 1, size=(3, 100)) * size).astype(np.float32)
    x[x == 0] = 1e-45
    wide = x.astype(np.float64)
    ones, zeros = np.ones(100, np.float32), np.zeros(100, np.float32)
    expected = reference.layer_norm(wide, ones.astype(float), zeros.astype(float), eps=eps)
    bound = 8 * 2.0**-23
    np.testing.assert_allclose(fast.layer_norm(x, ones, zeros, eps=eps), expected, rtol=1e-6, atol=bound)
    np.testing.assert_allclose(fast.rms_norm(x, eps=eps), reference.rms_norm(wide, eps=eps), rtol=1e-6, atol=bound)
    np.testing.assert_allclose(
        fast.compressed_rms_norm(x, eps=eps), reference.compressed_rms_norm(wide, eps=eps), rtol=1e-6, atol=bound
    )


finite = st.one_of(st.floats(-100, 100, width=32), st.sampled_from((0.0, -0.0, 1e-30, 1e4, 1e15)))


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=12), elements=finite),
    st.integers(0, 2**32),
    st.sampled_from(list(CASES)),
    st.sampled_from(support.ISAS),
)
def test_equals_the_reference(x: AnyArray, seed: int, case: str, isa: str) -> None:
    rng = np.random.default_rng(seed)
    gain, bias = rng.normal(size=(2, x.shape[-1]))
    name, arguments = case.split()[0], CASES[case](x, gain, bias)
    with support.using_isa(isa):
        y, pullback = getattr(fast, name + "_vjp")(*arguments)
        expected, reference_pullback = getattr(reference, name + "_vjp")(*arguments)
        # A row of nearly equal large entries has few digits left after centring, in any arithmetic.
        spread = np.abs(x).max() / max(1e-3, float(np.sqrt(x.var(axis=-1).min() + 1e-5)))
        tolerance = 1e-14 * max(1.0, spread)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=10 * tolerance)
        dy = rng.normal(size=x.shape)
        for one, other in zip(pullback(dy), reference_pullback(dy), strict=True):
            if other is None:
                assert one is None
            else:
                scale = max(1.0, float(np.abs(other).max()))
                np.testing.assert_allclose(one, other, rtol=0, atol=300 * x.size * tolerance * scale)


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores: large enough for any last-level cache that reports itself as up to 64 MiB
    x = np.random.default_rng(0).normal(size=(9000, 1001)).astype(np.float32)
    gain, bias = np.random.default_rng(1).normal(size=(2, 1001)).astype(np.float32)
    y = fast.layer_norm(x, gain, bias)
    for first in (0, 4321, 8950):
        np.testing.assert_array_equal(y[first : first + 50], fast.layer_norm(x[first : first + 50], gain, bias))
    out = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    np.testing.assert_array_equal(fast.layer_norm(x, gain, bias, out=out), y)


ONE, TWO = np.ones(3), np.ones((2, 3))
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("layer_norm", (TWO.astype(int), ONE, ONE), {}),
    ("layer_norm", (TWO, ONE.astype(np.float32), ONE), {}),
    ("layer_norm", (TWO, ONE, np.ones(4)), {}),
    ("layer_norm", (TWO, np.ones((1, 3)), ONE), {}),
    ("layer_norm", (TWO, ONE, ONE), {"eps": 0.0}),
    ("layer_norm", (TWO, ONE, ONE), {"eps": np.nan}),
    ("layer_norm", (TWO, ONE, ONE), {"eps": np.inf}),
    ("layer_norm", (TWO, np.ones(2), np.ones(2)), {"axes": (0,)}),
    ("layer_norm", (TWO, ONE, ONE), {"axes": (2,)}),
    ("layer_norm", (np.ones((2, 0)), np.ones(0), np.ones(0)), {}),
    ("layer_norm", (np.float64(1), ONE, ONE), {}),
    ("layer_norm", (TWO, None, ONE), {}),
    ("rms_norm", (np.ones((2, 0)),), {}),
    ("rms_norm", (TWO, np.ones(2)), {}),
    ("rms_norm", (TWO, ONE, ONE.astype(np.float32)), {}),
    ("rms_norm", (TWO,), {"eps": -1.0}),
    ("compressed_rms_norm", (np.ones((2, 0)),), {}),
    ("compressed_rms_norm", (np.ones(3, bool),), {}),
    ("add_layer_norm", (TWO, ONE, ONE, ONE), {}),
    ("add_layer_norm", (TWO, TWO.astype(np.float32), ONE, ONE), {}),
    ("add_layer_norm", (TWO, TWO, np.ones(2), ONE), {}),
    ("add_layer_norm", (TWO, TWO, ONE, None), {}),
    ("add_layer_norm", (TWO, None, ONE, ONE), {}),
    ("add_layer_norm", (TWO, TWO, ONE, ONE), {"eps": 0.0}),
    ("add_layer_norm", (np.ones((2, 0)), np.ones((2, 0)), np.ones(0), np.ones(0)), {}),
    ("add_layer_norm", (np.float64(1), np.float64(1), ONE, ONE), {}),
    ("add_rms_norm", (TWO, ONE), {}),
    ("add_rms_norm", (TWO, TWO, np.ones(2)), {}),
    ("add_rms_norm", (np.ones((2, 0)), np.ones((2, 0))), {}),
    ("add_rms_norm", (TWO, TWO), {"eps": np.nan}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_examples() -> None:
    outcome = doctest.testmod(_core, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 8
