"""The norms with statistics per channel against the reference, on hostile input and every instruction set."""

from __future__ import annotations

import doctest
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.norms as reference
import refnorm_fast.norms as fast
from refnorm_fast.norms import _channel
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
STATES: dict[str, Callable[[int, Any], Any]] = {
    "batch_norm_train": reference.BatchNormState.create,
    "batch_norm_eval": lambda channels, dtype: reference.BatchNormState(
        np.linspace(-1, 1, channels, dtype=dtype), np.linspace(0.2, 2, channels, dtype=dtype)
    ),
}
"""A state before the call, of the functions that take one."""


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with support.using_isa(request.param):
        yield


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The reference warns of overflow and NaN on its way."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def places(x: AnyArray) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def with_axes(*units: int, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    return lambda x, per_channel: ((x, *(per_channel[i] for i in units)), {"axes": places(x), **options})


def with_state(name: str, **options: Any) -> Callable[[AnyArray, AnyArray], Arguments]:
    return lambda x, per_channel: (
        (x, per_channel[0], per_channel[1], STATES[name](x.shape[1], x.dtype)),
        options,
    )


# Arrays of one number a channel: 0 gain, 1 bias, 2 mean, 3 variance or deviation.
CASES: dict[str, Callable[[AnyArray, AnyArray], Arguments]] = {
    "batch_statistics": with_axes(),
    "batch_norm": with_axes(0, 1),
    "batch_norm eps": with_axes(0, 1, eps=0.3),
    "batch_norm given": with_axes(0, 1, 2, 3),
    "batch_norm_train": with_state("batch_norm_train", momentum=0.3),
    "batch_norm_eval": with_state("batch_norm_eval"),
}


def leaves(value: Any) -> Iterator[AnyArray | None]:
    """The arrays of a result, of which some are tuples and states."""
    if isinstance(value, tuple):
        for one in value:
            yield from leaves(one)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from leaves(getattr(value, name))
    else:
        yield None if value is None else np.asarray(value)


def widen(value: Any) -> Any:
    """The same arguments in float64."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return value.astype(np.float64)
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{name: widen(getattr(value, name)) for name in value.__dataclass_fields__})
    return value


def check_equal(found: Any, expected: Any, message: str) -> None:
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=message)


def check_close(found: Any, expected: Any, dtype: Any, units: float, message: str) -> None:
    """Every array within ``units`` roundings of its largest entry."""
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        if other is None:
            assert one is None
            continue
        assert one is not None
        assert one.shape == other.shape, message
        if other.dtype.kind == "f" and other.ndim:
            assert one.dtype == dtype, message
        bound = max(1.0, float(np.abs(other[np.isfinite(other)]).max(initial=0)))
        np.testing.assert_allclose(one, other, rtol=0, atol=units * EPS[np.dtype(dtype)] * bound, err_msg=message)


def cotangent_of(value: Any, rng: np.random.Generator) -> Any:
    """A random cotangent: of ``y`` where a state comes with it."""
    if isinstance(value, tuple) and hasattr(value[1], "__dataclass_fields__"):
        value = value[0]
    if isinstance(value, tuple):
        return tuple(cotangent_of(one, rng) for one in value)
    return rng.normal(size=value.shape).astype(value.dtype)


def wide_cotangent(dy: Any) -> Any:
    return tuple(wide_cotangent(one) for one in dy) if isinstance(dy, tuple) else dy.astype(np.float64)


def compare(case: str, x: AnyArray, rng: np.random.Generator, message: str = "", units: float = 16) -> None:
    """A function and its pullback against the reference in float64, which has the digits to judge float32."""
    per_channel = rng.normal(size=(4, x.shape[1])).astype(x.dtype)
    per_channel[3] = np.abs(per_channel[3])
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)
    value, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    check_equal(getattr(fast, name)(*arguments, **options), value, message)
    wide = [widen(argument) for argument in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    check_close(value, expected, x.dtype, units, message)
    dy = cotangent_of(value, rng)
    gradient = pullback(dy)
    check_close(gradient, reference_pullback(wide_cotangent(dy)), x.dtype, 4 * units, message)
    check_equal(pullback(dy), gradient, message)


def guarded(shape: tuple[int, ...], dtype: type, rng: np.random.Generator) -> AnyArray:
    """Numbers whose neighbours in memory are NaN and must not be read."""
    size = int(np.prod(shape))
    memory = np.full(size + 64, np.nan, dtype)
    x = memory[32 : 32 + size].reshape(shape)
    x[...] = rng.normal(size=shape) + 3
    return x


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_tail_of_a_run(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS:
        if length:
            compare(case, guarded((3, 2, length), dtype, rng), rng, f"length {length}")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_tail_of_columns(case: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for channels in support.TAILS:
        if channels:
            compare(case, guarded((5 + channels % 17, channels), dtype, rng), rng, f"channels {channels}")


SHAPES = (
    (2000, 3),
    (70, 300),
    (3, 5, 130, 131),
    (40, 6, 7, 7),
    (9, 4, 2, 2),
    (1, 3, 8, 8),
    (5, 1, 6),
    (4, 700, 33),
    (2, 2, 9000),
)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(case: str, shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(1)
    compare(case, (rng.normal(size=shape) * 2 + 1).astype(dtype), rng, units=32)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_layouts(case: str, dtype: type) -> None:
    rng = np.random.default_rng(2)
    for shape in ((6, 5), (4, 3, 5, 6), (3, 4, 40)):
        x = rng.normal(size=shape).astype(dtype)
        last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        for name, same in {**support.layouts(x), "channels last": np.moveaxis(last, -1, 1)}.items():
            compare(case, same, np.random.default_rng(3), name)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("axes", [(0,), (-1,), (0, 1, 2), (1, 2), (0, 1, 2, 3), (2, 0), (1,), (1, 3), (0, 3)])
def test_axes(axes: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4, 5, 6, 3)).astype(dtype)
    over = [axis % 4 for axis in axes]
    units = [size for axis, size in enumerate(x.shape) if axis not in over]
    gain, bias, mean = (np.asarray(rng.normal(size=units), dtype) for _ in range(3))
    dy = rng.normal(size=x.shape).astype(dtype)
    for arguments in ((x, gain, bias), (x, gain, bias, mean, np.asarray(np.abs(mean)))):
        y, pullback = fast.batch_norm_vjp(*arguments, axes=axes)
        expected, reference_pullback = reference.batch_norm_vjp(*(widen(a) for a in arguments), axes=axes)
        check_close(y, expected, dtype, 32, str(axes))
        check_close(pullback(dy), reference_pullback(widen(dy)), dtype, 64, str(axes))
    check_close(fast.batch_statistics(x, axes), reference.batch_statistics(widen(x), axes), dtype, 16, str(axes))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(500, 6), (7, 3, 40, 41), (20000, 2)], ids=str)
def test_common_offset_costs_no_digits(shape: tuple[int, ...], offset: float) -> None:
    x = (np.random.default_rng(0).normal(size=shape) + offset).astype(np.float32)
    one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    y = fast.batch_norm(x, one, zero, axes=places(x))
    expected = reference.batch_norm(widen(x), widen(one), widen(zero), axes=places(x))
    assert np.abs(y - expected).max() <= 4 * np.spacing(np.float32(np.abs(expected).max()))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(300, 40), (16, 3, 70)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("first", [0.0, 30.0, 1e4, 1e7])
def test_entries_that_begin_far_from_the_mean_cost_no_digits(
    shape: tuple[int, ...], scale: float, first: float
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    x[:2] += first
    x[:, 1] -= first
    x = (scale * x).astype(np.float32)
    one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    y = fast.batch_norm(x, one, zero, axes=places(x), eps=1e-300)
    expected = reference.batch_norm(widen(x), widen(one), widen(zero), axes=places(x), eps=1e-300)
    assert np.abs(y - expected).max() <= 4 * np.spacing(np.float32(np.abs(expected).max()))
    mean, var = fast.batch_statistics(x, places(x))
    wide_mean, wide_var = reference.batch_statistics(widen(x), places(x))
    np.testing.assert_allclose(mean, wide_mean, rtol=1e-6, atol=1e-6 * float(np.abs(x).max()))
    if scale <= 1e15:
        np.testing.assert_allclose(var, wide_var.astype(np.float32), rtol=2e-6, atol=1e-44)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(40, 9), (6, 9, 35)], ids=str)
def test_special_channels(case: str, shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    flat = x.swapaxes(0, 1).reshape(9, -1).copy()
    flat[0, 1], flat[1, 2], flat[2, 3], flat[3] = np.nan, np.inf, -np.inf, 7
    flat[4, 0], flat[4, 5] = np.inf, -np.inf
    flat[5] = np.resize(support.HOSTILE, flat[5].shape)
    flat[6] = 0
    x = np.ascontiguousarray(flat.reshape(9, shape[0], *shape[2:]).swapaxes(0, 1))
    per_channel = rng.uniform(0.5, 2, size=(4, 9)).astype(dtype)
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)
    found, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    wide = [widen(argument) for argument in arguments]
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide, **options)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        with np.errstate(over="ignore"):
            wanted = other.astype(one.dtype)  # type: ignore[union-attr]
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=2e-5)
    dy = cotangent_of(found, rng)
    plain = np.array([6, 7, 8]) if "statistics" in case else np.array([3, 6, 7, 8])
    ours, theirs = pullback(dy)[0], reference_pullback(wide_cotangent(dy))[0]
    np.testing.assert_allclose(ours[:, plain], theirs[:, plain], rtol=1e-3, atol=1e-5 * np.abs(theirs[:, plain]).max())
    if not any(word in case for word in ("given", "eval", "statistics")):
        assert np.isnan(ours[:, :3]).all()


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(5, 33), (3, 2, 40), (3, 2, 70000), (600, 64)], ids=str)
def test_out(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    gain, bias, mean = rng.normal(size=(3, shape[1])).astype(dtype)
    state, axes = reference.BatchNormState(mean, np.abs(mean)), places(x)
    functions: list[Callable[..., AnyArray]] = [
        lambda x, **out: fast.batch_norm(x, gain, bias, axes=axes, **out),
        lambda x, **out: fast.batch_norm(x, gain, bias, mean, np.abs(mean), axes=axes, **out),
        lambda x, **out: fast.batch_norm_eval(x, gain, bias, state, **out),
    ]
    for function in functions:
        support.check_out(function, x)
        support.check_out_errors(function, x)
    square = rng.normal(size=(8, 8)).astype(dtype)
    expected = fast.batch_norm(square, square[0].copy(), square[1].copy())
    np.testing.assert_array_equal(fast.batch_norm(square, square[0], square[1], out=square), expected)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(4000, 300), (2, 3, 300000), (40, 60, 400)], ids=str)
def test_same_bits_for_any_number_of_threads(case: str, shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, per_channel = rng.normal(size=shape).astype(dtype), rng.uniform(0.5, 2, size=(4, shape[1])).astype(dtype)
    name, (arguments, options) = case.split()[0], CASES[case](x, per_channel)

    def results() -> list[AnyArray | None]:
        value, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
        dy = cotangent_of(value, np.random.default_rng(1))
        return [*leaves(value), *leaves(pullback(dy))]

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_results_too_large_for_the_caches() -> None:
    # non-temporal stores: large enough for any last-level cache that reports itself as up to 64 MiB
    rng = np.random.default_rng(0)
    for shape in ((9000, 1008), (20, 10, 45001)):
        x = rng.normal(size=shape).astype(np.float32)
        gain, bias, mean = rng.normal(size=(3, shape[1])).astype(np.float32)
        y = fast.batch_norm(x, gain, bias, mean, np.abs(mean), axes=places(x))
        for first in range(0, shape[0], shape[0] // 4):
            part = x[first : first + 1]
            np.testing.assert_array_equal(
                y[first : first + 1], fast.batch_norm(part, gain, bias, mean, np.abs(mean), axes=places(x))
            )
        trained = fast.batch_norm(x, gain, bias, axes=places(x))
        in_place = x.copy()
        np.testing.assert_array_equal(fast.batch_norm(in_place, gain, bias, axes=places(x), out=in_place), trained)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(CASES)),
    st.sampled_from(support.ISAS),
    st.sampled_from(support.DTYPES),
    st.sampled_from((0.0, 1.0, 100.0)),
)
def test_equals_the_reference(shape: list[int], seed: int, case: str, isa: str, dtype: type, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2 * shape[0], *shape[1:])) + offset).astype(dtype)
    with support.using_isa(isa):
        compare(case, x, rng, units=16 * max(1, offset))


def test_empty() -> None:
    for dtype in support.DTYPES:
        none, two = np.ones(0, dtype), np.ones(2, dtype)
        y, pullback = fast.batch_norm_vjp(np.ones((3, 0), dtype), none, none)
        assert y.shape == (3, 0)
        assert [one.shape for one in pullback(y)[:3]] == [(3, 0), (0,), (0,)]
        x = np.ones((0, 2, 4), dtype)
        y, pullback = fast.batch_norm_vjp(x, two, two, two, two, axes=(0, 2))
        assert y.shape == x.shape
        for one in pullback(y)[1:]:
            np.testing.assert_array_equal(one, [0, 0])


ONE, TWO = np.ones(3), np.ones((2, 3))
STATE = reference.BatchNormState(ONE, ONE)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("batch_statistics", (TWO.astype(int),), {}),
    ("batch_statistics", (np.float64(1),), {}),
    ("batch_statistics", (TWO, (2,)), {}),
    ("batch_statistics", (TWO, (0, 0)), {}),
    ("batch_statistics", (np.ones((0, 3)),), {}),
    ("batch_norm", (TWO.astype(int), ONE, ONE), {}),
    ("batch_norm", (TWO, ONE.astype(np.float32), ONE), {}),
    ("batch_norm", (TWO, ONE, np.ones(4)), {}),
    ("batch_norm", (TWO, ONE, ONE, ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, None, ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, ONE, -ONE), {}),
    ("batch_norm", (TWO, ONE, ONE, ONE, np.ones(2)), {}),
    ("batch_norm", (TWO, ONE, ONE), {"eps": 0.0}),
    ("batch_norm", (TWO, ONE, ONE), {"eps": np.nan}),
    ("batch_norm", (TWO, ONE, ONE), {"axes": (5,)}),
    ("batch_norm", (TWO, ONE, ONE), {"axes": (1,)}),
    ("batch_norm", (np.ones((0, 3)), ONE, ONE), {}),
    ("batch_norm", (np.float64(1), ONE, ONE), {}),
    ("batch_norm_train", (ONE, ONE, ONE, STATE), {}),
    ("batch_norm_train", (TWO[:1], ONE, ONE, STATE), {}),
    ("batch_norm_train", (TWO, ONE, ONE, reference.BatchNormState.create(2)), {}),
    ("batch_norm_train", (TWO, ONE, ONE, STATE), {"momentum": 1.5}),
    ("batch_norm_eval", (TWO, ONE, ONE, reference.BatchNormState(ONE, -ONE)), {}),
    ("batch_norm_eval", (TWO, ONE, ONE, reference.BatchNormState(ONE[:2], ONE)), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("name", sorted({case.split()[0] for case in CASES}))
def test_signatures_are_the_references(name: str) -> None:
    for suffix in ("", "_vjp"):
        wanted = inspect.signature(getattr(reference, name + suffix)).parameters
        found = dict(inspect.signature(getattr(fast, name + suffix)).parameters)
        found.pop("out", None)
        assert [(p.name, p.default, p.kind) for p in found.values()] == [
            (p.name, p.default, p.kind) for p in wanted.values()
        ]


def test_examples() -> None:
    outcome = doctest.testmod(_channel, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 8
