"""Region norm against the reference, on hostile input and every instruction set."""

from __future__ import annotations

import doctest
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.norms as reference
import refnorm_fast.norms as fast
from refnorm_fast.norms import _region
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
OPTIONS = (
    {},
    {"stats": "instance"},
    {"eps_mode": "plain", "eps": 0.1},
    {"stats": "instance", "eps_mode": "plain"},
)


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


def wide(arrays: Any) -> list[AnyArray]:
    return [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]


def check(name: str, arguments: tuple[Any, ...], options: dict[str, Any], dy: AnyArray, units: float) -> None:
    """The function and its pullback, twice, within `units` roundings of each result's largest entry."""
    y, pullback = getattr(fast, name + "_vjp")(*arguments, **options)
    np.testing.assert_array_equal(getattr(fast, name)(*arguments, **options), y)
    expected, reference_pullback = getattr(reference, name + "_vjp")(*wide(arguments), **options)
    wanted = (expected, *reference_pullback(dy.astype(np.float64)))
    for _ in range(2):
        for one, other in zip((y, *pullback(dy)), wanted, strict=True):
            assert one.shape == other.shape
            assert one.dtype == dy.dtype
            terms = dy[:, 0].size if other.ndim == 1 else 1
            bound = max(1.0, float(np.abs(other).max(initial=0)), np.sqrt(terms))
            np.testing.assert_allclose(one, other, rtol=0, atol=units * EPS[dy.dtype] * bound, err_msg=str(options))


def compare(
    x: AnyArray, rng: np.random.Generator, options: dict[str, Any], share: float = 0.6, units: float = 64
) -> None:
    mask = rng.random((len(x), 1, *x.shape[2:])) < share
    dy = rng.normal(size=x.shape).astype(x.dtype)
    check("region_normalize", (x, mask), options, dy, units)
    params = tuple(rng.normal(size=(4, x.shape[1])).astype(x.dtype))
    check("region_norm_basic", (x, mask.astype(int), *params), options, dy, units)
    check("region_norm_basic", (x, mask, *params), {**options, "shared_bias": True}, dy, units)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS[1:]:
        memory = np.full(6 * length + 64, np.nan, dtype)
        x = memory[32 : 32 + 6 * length].reshape(2, 3, 1, length)
        x[...] = rng.normal(size=x.shape) + 3
        compare(x, rng, OPTIONS[length % 4], share=(0.0, 0.3, 0.7, 1.0)[length % 3 + (length > 90)], units=512)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shapes(options: dict[str, Any], dtype: type) -> None:
    rng = np.random.default_rng(1)
    for shape in ((4, 3, 20, 31), (1, 1, 90, 100), (7, 5, 6, 6), (2, 40, 9, 3)):
        compare((2 * rng.normal(size=shape) + 1).astype(dtype), rng, options)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts(dtype: type) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 3, 5, 6)).astype(dtype)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for same in (*support.layouts(x).values(), last):
        compare(same, np.random.default_rng(3), {})


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_common_offset_costs_no_digits(offset: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 2, 40, 41)) + offset).astype(np.float32)
    mask = rng.random((3, 1, 40, 41)) < 0.3
    found, expected = fast.region_normalize(x, mask), reference.region_normalize(x.astype(np.float64), mask)
    assert np.abs(found - expected).max() <= 4 * np.spacing(np.float32(np.abs(expected).max()))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("scale", [1e-30, 1e-16, 1e15, 1e30])
def test_sizes_that_squares_in_float32_cannot_hold(scale: float) -> None:
    rng = np.random.default_rng(0)
    x = (scale * (rng.normal(size=(2, 3, 20, 21)) + 1)).astype(np.float32)
    mask = rng.random((2, 1, 20, 21)) < 0.5
    dy = rng.normal(size=x.shape).astype(np.float32)
    y, pullback = fast.region_normalize_vjp(x, mask, eps=1e-300)
    expected, reference_pullback = reference.region_normalize_vjp(x.astype(np.float64), mask, eps=1e-300)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    wanted = reference_pullback(dy.astype(np.float64))[0]
    np.testing.assert_allclose(pullback(dy)[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_special_numbers_stay_in_their_region(options: dict[str, Any], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 6, 7)).astype(dtype)
    mask = np.zeros((3, 1, 6, 7), bool)
    mask[:, :, :3] = True
    x[0, 0, 1, 1], x[0, 1, 4, 2], x[1, 2, 0, 0], x[2, 3, :3] = np.nan, np.inf, -np.inf, 5
    dy = rng.normal(size=x.shape).astype(dtype)
    y, pullback = fast.region_normalize_vjp(x, mask, **options)
    expected, reference_pullback = reference.region_normalize_vjp(x.astype(np.float64), mask, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pullback(dy)[0], reference_pullback(dy.astype(np.float64))[0], rtol=1e-4, atol=1e-5)
    assert np.isnan(y[0, 0, 0]).all()
    assert np.isfinite(y[0, 0, 3:]).all()


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("stats", ["batch", "instance"])
def test_one_region_and_one_pixel(stats: str, dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(dtype)
    mask = np.zeros((2, 1, 4, 5), bool)
    for count in (0, 1):
        mask[0, 0, 0, :count] = True
        for one in (mask, ~mask):
            check("region_normalize", (x, one), {"stats": stats}, x[::-1].copy(), 16)
    assert fast.region_normalize(x, mask, stats=stats)[0, :, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_a_small_mask_and_gray_values(dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, params = rng.normal(size=(2, 3, 8, 9)).astype(dtype), tuple(rng.normal(size=(4, 3)).astype(dtype))
    mask = rng.random((2, 1, 4, 3)).astype(dtype)
    check("region_norm_basic", (x, mask, *params), {"binarize": True}, x[::-1].copy(), 16)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_out(dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, params = rng.normal(size=(3, 4, 5, 6)).astype(dtype), tuple(rng.normal(size=(4, 4)).astype(dtype))
    mask = rng.random((3, 1, 5, 6)) < 0.5
    functions: list[Callable[..., AnyArray]] = [
        lambda x, **out: fast.region_normalize(x, mask, **out),
        lambda x, **out: fast.region_norm_basic(x, mask, *params, **out),
    ]
    for function in functions:
        support.check_out(function, x)
        support.check_out_errors(function, x)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("stats", ["batch", "instance"])
def test_same_bits_for_any_number_of_threads(stats: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 6, 12, 90, 70)).astype(dtype)
    mask = rng.random((6, 1, 90, 70)) < 0.5

    def results() -> list[AnyArray]:
        y, pullback = fast.region_normalize_vjp(x, mask, stats=stats)
        return [y, *pullback(dy)]

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 40)),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.sampled_from(OPTIONS),
    st.sampled_from(support.ISAS),
    st.sampled_from(support.DTYPES),
)
def test_equals_the_reference(
    shape: tuple[int, ...], seed: int, share: float, options: dict[str, Any], isa: str, dtype: type
) -> None:
    rng = np.random.default_rng(seed)
    with support.using_isa(isa):
        compare((rng.normal(size=shape) + 3).astype(dtype), rng, {"eps": 0.01, **options}, share, units=512)


def test_empty() -> None:
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2)):
        x, mask = np.ones(shape), np.ones((shape[0], 1, 2, 2), bool)
        y, pullback = fast.region_normalize_vjp(x, mask)
        assert y.shape == pullback(y)[0].shape == shape
        assert fast.region_normalize(x, mask, out=y) is y
        params = [np.ones(shape[1])] * 4
        assert [one.shape for one in fast.region_norm_basic_vjp(x, mask, *params)[1](y)[1:]] == [shape[1:2]] * 4


X, MASK, ONE = np.ones((2, 3, 4, 4)), np.ones((2, 1, 4, 4)), np.ones(3)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("region_normalize", (X.astype(int), MASK), {}),
    ("region_normalize", (X[0], MASK), {}),
    ("region_normalize", (X, MASK[:1]), {}),
    ("region_normalize", (X, MASK / 2), {}),
    ("region_normalize", (X, MASK), {"stats": "layer"}),
    ("region_normalize", (X, MASK), {"eps_mode": "none"}),
    ("region_normalize", (X, MASK), {"eps": 0.0}),
    ("region_norm_basic", (X, MASK, ONE, ONE, ONE, ONE[:2]), {}),
    ("region_norm_basic", (X, MASK, ONE, ONE.astype(np.float32), ONE, ONE), {}),
    ("region_norm_basic", (X, MASK[0], ONE, ONE, ONE, ONE), {}),
    ("region_norm_basic", (X, MASK / 2, ONE, ONE, ONE, ONE), {}),
    ("region_norm_basic", (X, MASK, ONE, ONE, ONE, None), {}),
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
    outcome = doctest.testmod(_region, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 8
