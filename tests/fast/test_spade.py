"""Scale and shift from maps (SPADE) against the reference."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.norms as reference
import refnorm_fast.norms as fast
from refnorm_fast.norms import _maps
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with support.using_isa(request.param):
        yield


def maps_of(shape: tuple[int, ...], dtype: type, seed: int = 0) -> list[AnyArray]:
    """x, gain map, bias map, cotangent"""
    return list(np.random.default_rng(seed).normal(size=(4, *shape)).astype(dtype))


def compare_modulate(x: AnyArray, gain: AnyArray, bias: AnyArray, dy: AnyArray, message: str = "") -> None:
    unit = EPS[x.dtype]
    y, pullback = fast.spade_modulate_vjp(x, gain, bias)
    np.testing.assert_array_equal(fast.spade_modulate(x, gain, bias), y, err_msg=message)
    wide = [a.astype(np.float64) for a in (x, gain, bias)]
    expected, reference_pullback = reference.spade_modulate_vjp(*wide)
    assert y.dtype == x.dtype
    terms = np.abs(wide[0] * (1 + wide[1])) + np.abs(wide[2]) + np.abs(wide[0])
    assert np.all(np.abs(y - expected) <= 2 * unit * terms), message
    for _ in range(2):
        for one, other in zip(pullback(dy), reference_pullback(dy.astype(np.float64)), strict=True):
            assert one.dtype == x.dtype
            np.testing.assert_allclose(one, other, rtol=2 * unit, atol=2 * unit * np.abs(dy).max(), err_msg=message)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail(dtype: type) -> None:
    for length in support.TAILS[1:]:
        memory = np.full((4, length + 32), np.nan, dtype)
        arrays = memory[:, 16 : 16 + length]
        arrays[...] = maps_of((length,), dtype)
        compare_modulate(*arrays, f"length {length}")


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts_and_empty(dtype: type) -> None:
    x, gain, bias, dy = maps_of((4, 6, 5, 6), dtype)
    for name, same in support.layouts(x).items():
        compare_modulate(same, gain, bias, dy, name)
        compare_modulate(gain, same, bias, dy, name)
        compare_modulate(gain, bias, same, dy, name)
    none = np.empty((0, 3), dtype)
    y, pullback = fast.spade_modulate_vjp(none, none, none)
    assert y.shape == none.shape
    assert [one.shape for one in pullback(none)] == [(0, 3)] * 3
    point = np.asarray(2, dtype)
    assert fast.spade_modulate(point, point, point) == 8


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_out(dtype: type) -> None:
    x, gain, bias, _ = maps_of((7, 40), dtype)
    support.check_out(lambda x, **out: fast.spade_modulate(x, gain, bias, **out), x)
    support.check_out(lambda gain, **out: fast.spade_modulate(x, gain, bias, **out), gain)
    support.check_out(lambda bias, **out: fast.spade_modulate(x, gain, bias, **out), bias)
    support.check_out_errors(lambda x, **out: fast.spade_modulate(x, gain, bias, **out), x)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_special_numbers_stay_where_they_are(dtype: type) -> None:
    x, gain, bias, dy = maps_of((90,), dtype)
    for i, special in enumerate((np.nan, np.inf, -np.inf, 0, np.finfo(dtype).max, np.finfo(dtype).tiny)):
        x[i], gain[20 + i], bias[40 + i], dy[60 + i] = [special] * 4
    with np.errstate(all="ignore"):
        expected, reference_pullback = reference.spade_modulate_vjp(x, gain, bias)
        wanted = reference_pullback(dy)
    y, pullback = fast.spade_modulate_vjp(x, gain, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(pullback(dy), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def network(
    shape: tuple[int, int, int, int], dtype: type, seed: int = 0, offset: float = 0
) -> tuple[tuple[AnyArray, ...], AnyArray]:
    """The arguments of spade, and a cotangent."""
    rng = np.random.default_rng(seed)
    params = reference.init_spade(shape[1], 2, 3, rng, dtype=dtype)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    condition = rng.normal(size=(shape[0], 2, *shape[2:])).astype(dtype)
    return (x + dtype(offset), condition, *params), dy


def compare_spade(arguments: tuple[AnyArray, ...], dy: AnyArray, **options: Any) -> None:
    unit = EPS[dy.dtype]
    y, pullback = fast.spade_vjp(*arguments, **options)
    np.testing.assert_array_equal(fast.spade(*arguments, **options), y)
    expected, reference_pullback = reference.spade_vjp(*(a.astype(np.float64) for a in arguments), **options)
    assert y.dtype == dy.dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * unit * max(1, np.abs(expected).max()))
    wanted = reference_pullback(dy.astype(np.float64))
    for _ in range(2):
        for one, other in zip(pullback(dy), wanted, strict=True):
            assert one.shape == other.shape
            bound = max(float(np.abs(other).max()), np.sqrt(dy.size / one.size), 1)
            np.testing.assert_allclose(one, other, rtol=0, atol=256 * unit * bound)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_spade(norm: str, dtype: type) -> None:
    for shape, groups in (((2, 4, 5, 7), 2), ((1, 3, 9, 11), 1), ((3, 6, 40, 3), 3), ((1, 2, 70, 130), 1)):
        arguments, dy = network(shape, dtype, offset=3)
        compare_spade(arguments, dy, norm=norm, groups=groups, activation="relu" if groups == 1 else "silu")


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_spade_layouts_and_sizes(dtype: type) -> None:
    arguments, dy = network((2, 4, 6, 8), dtype)
    for same in support.layouts(arguments[0]).values():
        compare_spade((same, *arguments[1:]), dy, groups=2)
    small = np.ascontiguousarray(arguments[1][:, :, ::2, ::2])
    compare_spade((arguments[0], small, *arguments[2:]), dy, groups=2, resize="nearest")
    for size in (1e-30, 1e30) if dtype == np.float32 else (1e-140, 1e140):
        with np.errstate(over="ignore"):
            scaled = (arguments[0] * dtype(size)).astype(dtype)
        y = fast.spade(scaled, *arguments[1:], groups=2, eps=1e-300)
        wide = [a.astype(np.float64) for a in (scaled, *arguments[1:])]
        expected = reference.spade(*wide, groups=2, eps=1e-300)
        np.testing.assert_allclose(y, expected, rtol=0, atol=64 * EPS[np.dtype(dtype)] * np.abs(expected).max())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_special_numbers_stay_in_their_group(dtype: type) -> None:
    arguments, _ = network((2, 4, 5, 6), dtype)
    arguments[0][0, 1, 2, 3], arguments[0][1, 3, 0, 0], arguments[0][1, 0] = np.nan, np.inf, 2
    with np.errstate(invalid="ignore"):
        expected = reference.spade(*arguments, groups=2)
    np.testing.assert_allclose(fast.spade(*arguments, groups=2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_same_bits_for_any_number_of_threads(dtype: type) -> None:
    arguments, dy = network((2, 4, 90, 110), dtype)
    x, gain, bias, up = maps_of((3, 100001), dtype)

    def results() -> list[AnyArray]:
        y, pullback = fast.spade_vjp(*arguments, groups=2)
        of_batch, batch_pullback = fast.spade_vjp(*arguments, norm="batch")
        z, modulate_pullback = fast.spade_modulate_vjp(x, gain, bias)
        return [y, pullback(dy)[0], of_batch, batch_pullback(dy)[0], z, *modulate_pullback(up)]

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores: large enough for any last-level cache that reports itself as up to 64 MiB
    x, gain, bias, dy = maps_of((9_000_001,), np.float32)
    y = fast.spade_modulate(x, gain, bias)
    dx, dgain, _ = fast.spade_modulate_vjp(x, gain, bias)[1](dy)
    np.testing.assert_array_equal(dx, dy * (1 + gain))
    np.testing.assert_array_equal(dgain, dy * x)
    for first in range(0, len(x), 1 << 18):
        part = slice(first, first + (1 << 18))
        np.testing.assert_array_equal(y[part], fast.spade_modulate(x[part], gain[part], bias[part]))


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(2, 6)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(support.ISAS),
    st.sampled_from(support.DTYPES),
    st.sampled_from(("group", "instance", "batch")),
)
def test_equals_the_reference(shape: tuple[int, int, int, int], seed: int, isa: str, dtype: type, norm: str) -> None:
    arguments, dy = network(shape, dtype, seed)
    arguments[0][..., ::2] += 5  # a group of two nearly equal entries has few digits left after centring
    with support.using_isa(isa):
        compare_spade(arguments, dy, norm=norm, groups=1)


GOOD, _ = network((2, 4, 5, 6), np.float64)
TWO = np.ones((2, 3))
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("spade_modulate", (TWO.astype(int), TWO, TWO), {}),
    ("spade_modulate", (TWO, TWO.astype(np.float32), TWO), {}),
    ("spade_modulate", (TWO, TWO[:1], TWO), {}),
    ("spade_modulate", (TWO, TWO, TWO[:, :1]), {}),
    ("spade", (GOOD[0][0], *GOOD[1:]), {}),
    ("spade", (GOOD[0], GOOD[1].astype(np.float32), *GOOD[2:]), {}),
    ("spade", (GOOD[0], GOOD[1][:1], *GOOD[2:]), {"groups": 2}),
    ("spade", GOOD, {"groups": 3}),
    ("spade", GOOD, {"groups": 0}),
    ("spade", GOOD, {"groups": 2.0}),
    ("spade", GOOD, {"groups": 2, "eps": 0.0}),
    ("spade", GOOD, {"norm": "batch", "eps": 0.0}),
    ("spade", GOOD, {"norm": "layer"}),
    ("spade", GOOD, {"groups": 2, "activation": "tanh"}),
    ("spade", GOOD, {"groups": 2, "resize": "linear"}),
    ("spade", (*GOOD[:4], GOOD[4][:2], *GOOD[5:]), {"groups": 2}),
    ("spade", (*GOOD[:2], GOOD[2][..., :2], *GOOD[3:]), {"groups": 2}),
    ("spade", (GOOD[0][:, :0], *GOOD[1:]), {"groups": 2}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_signatures_are_the_references() -> None:
    for name, more in (("spade_modulate", ["out"]), ("spade_modulate_vjp", []), ("spade", []), ("spade_vjp", [])):
        mine = inspect.signature(getattr(fast, name)).parameters
        theirs = inspect.signature(getattr(reference, name)).parameters
        assert list(mine) == [*theirs, *more]
        for parameter, one in theirs.items():
            assert (mine[parameter].kind, mine[parameter].default) == (one.kind, one.default)


def test_examples() -> None:
    outcome = doctest.testmod(_maps, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 3
