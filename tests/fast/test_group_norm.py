"""Norms over groups of channels against the reference."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.norms as reference
import refnorm_fast.norms as fast
from refnorm_fast.norms import _group
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


Case = tuple[str, Callable[[AnyArray, AnyArray, AnyArray], tuple[AnyArray, ...]], dict[str, Any]]
CASES: list[Case] = [
    ("group_norm", lambda x, gain, bias: (x, gain, bias), {"groups": 2}),
    ("group_norm", lambda x, gain, bias: (x, gain, bias), {"groups": 1, "eps": 1e-2}),
    ("instance_norm", lambda x, gain, bias: (x, gain, bias), {}),
    ("standardize_groups", lambda x, gain, bias: (x,), {"groups": 2}),
    ("weight_standardize", lambda x, gain, bias: (x,), {}),
    ("weight_standardize", lambda x, gain, bias: (x,), {"ddof": 0}),
    ("group_scale", lambda x, gain, bias: (np.moveaxis(x, 1, -1).copy(),), {"groups": 2}),
]


def compare(case: Case, x: AnyArray, gain: AnyArray, bias: AnyArray, dy: AnyArray, message: str = "") -> None:
    """Value and pullback against the reference in float64, which has the digits to judge float32."""
    name, pick, options = case
    arguments = pick(x, gain, bias)
    dy = dy.reshape(arguments[0].shape)
    unit = EPS[x.dtype]
    y, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    np.testing.assert_array_equal(getattr(fast, name)(*arguments, **options), y, err_msg=message)
    wide = [a.astype(np.float64) for a in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    assert y.dtype == x.dtype
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(y, expected, rtol=8 * unit, atol=8 * unit * scale, err_msg=f"{name} {message}")
    wanted = reference_pullback(dy.astype(np.float64))
    for _ in range(2):
        found = pullback(dy)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == x.dtype
            assert one.shape == other.shape
            # of the terms of a sum, which may cancel
            bound = max(float(np.abs(other).max(initial=0)), np.sqrt(max(1, x.size // max(1, one.size))))
            np.testing.assert_allclose(one, other, rtol=0, atol=64 * unit * bound, err_msg=f"{name} {message}")


def data(shape: tuple[int, ...], dtype: type, seed: int = 0) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    rng = np.random.default_rng(seed)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    gain, bias = rng.normal(size=(2, shape[1])).astype(dtype)
    # Neighbours apart: a group of two nearly equal entries has few digits left after centring, in any arithmetic.
    x[..., ::2] += np.asarray(5, dtype)
    return x, gain, bias, dy


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_every_number_of_places(case: Case, dtype: type) -> None:
    for places in support.TAILS:
        if places < 2:
            continue
        x, gain, bias, dy = data((3, 4, places), dtype, places)
        guarded: AnyArray = np.full(x.size + 2, np.nan, dtype)  # neighbours that must not be read
        guarded[1:-1] = x.ravel()
        compare(case, guarded[1:-1].reshape(x.shape), gain, bias, dy, f"{places} places")


SHAPES = [
    (1, 2, 2),
    (37, 8, 5),
    (5, 6, 3, 4, 5),
    (70, 4, 17),
    (2, 4, 40, 40),
    (1, 2, 300001),
    (0, 4, 3),
    (9, 6, 31, 33),
]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, ...], dtype: type) -> None:
    for case in CASES:
        compare(case, *data(shape, dtype))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("groups", [1, 3, 6, 24])
def test_groups_without_places(groups: int, dtype: type) -> None:
    for examples in (1, 4, 67):
        compare((*CASES[0][:2], {"groups": groups}), *data((examples, 24), dtype))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_one_entry_gives_the_bias_and_no_slope(dtype: type) -> None:
    x, gain, bias, dy = data((7, 20, 1), dtype)
    y, pullback = fast.instance_norm_vjp(x, gain, bias)
    np.testing.assert_array_equal(y[..., 0], np.broadcast_to(bias, (7, 20)))
    dx, dgain, _ = pullback(dy)
    assert not dx.any()
    assert not dgain.any()


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts(dtype: type) -> None:
    x, gain, bias, dy = data((4, 6, 5, 7), dtype)
    for name, pick, options in CASES:
        for layout, same in support.layouts(x).items():
            straight = getattr(fast, name + "_vjp")(*pick(np.ascontiguousarray(same), gain, bias), **options)
            found = getattr(fast, name + "_vjp")(*pick(same, np.repeat(gain, 2)[::2], bias), **options)
            np.testing.assert_array_equal(found[0], straight[0], err_msg=layout)
            down = dy.reshape(found[0].shape)
            for one, other in zip(found[1](np.asfortranarray(down)), straight[1](down), strict=True):
                np.testing.assert_array_equal(one, other, err_msg=layout)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_out(dtype: type) -> None:
    x, gain, bias, _ = data((4, 6, 5, 8), dtype)
    functions: list[Callable[..., AnyArray]] = [
        lambda x, **out: fast.group_norm(x, gain, bias, groups=3, **out),
        lambda x, **out: fast.instance_norm(x, gain, bias, **out),
        lambda x, **out: fast.standardize_groups(x, groups=3, **out),
        lambda x, **out: fast.weight_standardize(x, **out),
        lambda x, **out: fast.group_scale(x, groups=2, **out),
    ]
    for function in functions:
        support.check_out(function, x)
        support.check_out_errors(function, x)
    square: AnyArray = np.random.default_rng(0).normal(size=(8, 8)).astype(dtype)
    expected = fast.group_norm(square, square[0].copy(), square[1].copy(), groups=2)
    np.testing.assert_array_equal(fast.group_norm(square, square[0], square[1], groups=2, out=square), expected)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(20, 16, 30, 31), (3, 4, 400, 300), (300, 64), (90, 64, 7)])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], dtype: type) -> None:
    x, gain, bias, dy = data(shape, dtype)

    def results() -> list[AnyArray]:
        found = []
        for name, pick, options in CASES:
            if name != "instance_norm" or x.ndim > 2:
                y, pullback = getattr(fast, name + "_vjp")(*pick(x, gain, bias), **options)
                found += [y, *pullback(dy.reshape(y.shape))]
        return found

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("places", [3, 40, 9000])
def test_special_numbers_stay_in_their_group(places: int, dtype: type) -> None:
    x, gain, bias, dy = data((3, 4, places), dtype)
    x[0, 0, 1], x[1, 3, 2], x[2, 2, 0] = np.nan, np.inf, -np.inf
    y, pullback = fast.group_norm_vjp(x, gain, bias, groups=2)
    wrong = np.isnan(y.reshape(3, 2, -1))
    np.testing.assert_array_equal(wrong.all(axis=2), [[True, False], [False, True], [False, True]])
    np.testing.assert_array_equal(wrong.any(axis=2), wrong.all(axis=2))
    np.testing.assert_array_equal(np.isnan(pullback(dy)[0].reshape(3, 2, -1)), wrong)
    x[...] = 7
    y, pullback = fast.group_norm_vjp(x, gain, bias, groups=2)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], x.shape))
    np.testing.assert_allclose(
        pullback(dy)[0], reference.group_norm_vjp(x, gain, bias, groups=2)[1](dy)[0], rtol=0, atol=4e4 * EPS[x.dtype]
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("places", [3, 40])
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 1e-19, 1e19, 1e30, 3e38])
def test_sizes_at_the_ends_of_the_range(size: float, places: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.uniform(-1, 1, size=(3, 4, places)) * size).astype(np.float32)
    gain, bias, dy = np.array([1, 1e-3, -2, 0], np.float32), np.zeros(4, np.float32), rng.normal(size=x.shape)
    dy = dy.astype(np.float32)
    for eps in (1e-300, 1e-5):
        y, pullback = fast.group_norm_vjp(x, gain, bias, groups=2, eps=eps)
        expected, back = reference.group_norm_vjp(
            x.astype(np.float64), gain.astype(np.float64), bias.astype(np.float64), groups=2, eps=eps
        )
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=8 * 2.0**-23)
        if size == 1e-45:  # entries of one bit, of which few have a gradient within the range
            continue
        with np.errstate(over="ignore"):
            dx, *_ = (a.astype(np.float32) for a in back(dy.astype(np.float64)))
        finite = np.isfinite(dx)
        largest = float(np.abs(dx[finite]).max(initial=0))
        np.testing.assert_allclose(pullback(dy)[0][finite], dx[finite], rtol=1e-4, atol=1e-5 * largest)
    for factor in (1e-37, 1e30):  # gains whose product with the scale leaves the range
        small, scale = (x / np.float32(size or 1)).astype(np.float32), np.full(4, factor, np.float32)
        np.testing.assert_allclose(
            fast.group_norm(small, scale, bias, groups=2, eps=1e-5),
            reference.group_norm(small, scale, bias, groups=2, eps=1e-5),
            rtol=2e-5,
            atol=1e-6 * factor,
        )


@pytest.mark.usefixtures("isa")
def test_common_offset_costs_no_digits() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 4, 50, 61)) + 1e6).astype(np.float32)
    gain, bias = np.array([1, 2, -1, 0.5], np.float32), np.zeros(4, np.float32)
    rows = x.reshape(2, 2, -1).astype(np.longdouble)
    centred = rows - rows.mean(axis=2, keepdims=True)
    exact = (centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + 1e-5)).reshape(x.shape)
    exact *= gain[:, None, None]
    bound = 4 * np.spacing(np.float32(np.abs(exact).max()))
    assert np.abs(fast.group_norm(x, gain, bias, groups=2) - exact).max() <= bound


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores, from a start that is no vector's
    x, gain, bias, dy = data((40, 32, 84, 84), np.float32)
    out = support.off_vector(np.empty_like(x))
    y, pullback = fast.group_norm_vjp(x, gain, bias, groups=8)
    np.testing.assert_array_equal(fast.group_norm(x, gain, bias, groups=8, out=out), y)
    dx, dgain, _ = pullback(dy)
    for first in (0, 17, 38):
        part, part_back = fast.group_norm_vjp(x[first : first + 2], gain, bias, groups=8)
        np.testing.assert_array_equal(y[first : first + 2], part)
        np.testing.assert_array_equal(dx[first : first + 2], part_back(dy[first : first + 2])[0])
    hat = (y - bias[:, None, None]) / gain[:, None, None]
    np.testing.assert_allclose(dgain, (hat * dy).sum(axis=(0, 2, 3), dtype=np.float64), rtol=0, atol=0.05)


@given(
    st.tuples(*(st.integers(0, 9), st.integers(1, 3), st.integers(1, 5), st.integers(1, 40))),
    st.integers(0, 2**32),
    st.sampled_from(support.ISAS),
    st.sampled_from([0.0, 1.0, 1e3]),
)
def test_equals_the_reference(shape: tuple[int, int, int, int], seed: int, isa: str, offset: float) -> None:
    examples, groups, channels, places = shape
    x, gain, bias, dy = data((examples, groups * channels, places), np.float64, seed)
    with support.using_isa(isa):
        y, pullback = fast.group_norm_vjp(x + offset, gain, bias, groups=groups)
    expected, back = reference.group_norm_vjp(x + offset, gain, bias, groups=groups)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-9)
    for one, other in zip(pullback(dy), back(dy), strict=True):
        # two entries that are nearly equal have a steep slope
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8 * max(1.0, float(np.abs(other).max(initial=0))))


X, C4 = np.ones((2, 4, 3)), np.ones(4)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("group_norm", (X.astype(int), C4, C4), {}),
    ("group_norm", (np.ones(4), C4, C4), {}),
    ("group_norm", (X, C4, C4), {}),
    ("group_norm", (X, C4, C4), {"groups": 3}),
    ("group_norm", (X, C4, C4), {"groups": 0}),
    ("group_norm", (X, C4, C4), {"groups": 2.0}),
    ("group_norm", (X, C4, C4), {"groups": True}),
    ("group_norm", (X, C4, C4), {"groups": 1 << 70}),
    ("group_norm", (X, np.ones(3), C4), {"groups": 2}),
    ("group_norm", (X, C4[:, None], C4), {"groups": 2}),
    ("group_norm", (X, C4.astype(np.float32), C4), {"groups": 2}),
    ("group_norm", (X, C4, None), {"groups": 2}),
    ("group_norm", (X, C4, C4), {"groups": 2, "eps": 0.0}),
    ("group_norm", (X, C4, C4), {"groups": 2, "eps": np.nan}),
    ("group_norm", (X[:, :, :0], C4, C4), {"groups": 2}),
    ("group_norm", (X[:, :0], C4[:0], C4[:0]), {"groups": 2}),
    ("instance_norm", (X[:, :, 0], C4, C4), {}),
    ("instance_norm", (X[:, :0], C4[:0], C4[:0]), {}),
    ("instance_norm", (X, C4, C4), {"eps": -1.0}),
    ("standardize_groups", (X,), {"groups": 3}),
    ("standardize_groups", (X[0, 0],), {}),
    ("weight_standardize", (C4,), {}),
    ("weight_standardize", (X,), {"ddof": 2}),
    ("weight_standardize", (X,), {"ddof": 1.0}),
    ("weight_standardize", (X[:, :1, :1],), {}),
    ("weight_standardize", (X,), {"eps": np.inf}),
    ("group_scale", (X,), {"groups": 2}),
    ("group_scale", (X[:, :, :0],), {}),
    ("group_scale", (np.float64(1),), {}),
    ("group_scale", (X,), {"eps": 0}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_wrong_cotangent() -> None:
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 4, 3\)"):
        fast.group_norm_vjp(X, C4, C4, groups=2)[1](X[:1])


def test_signatures_are_the_references() -> None:
    for name in {name for name, _, _ in CASES}:
        for suffix, more in (("", ["out"]), ("_vjp", [])):
            mine = inspect.signature(getattr(fast, name + suffix)).parameters
            theirs = inspect.signature(getattr(reference, name + suffix)).parameters
            assert list(mine) == [*theirs, *more]
            for parameter, one in theirs.items():
                assert (mine[parameter].kind, mine[parameter].default) == (one.kind, one.default)


def test_examples() -> None:
    found = doctest.testmod(_group, extraglobs={"np": np})
    assert found.failed == 0
    assert found.attempted > 0
