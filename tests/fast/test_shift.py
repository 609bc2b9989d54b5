"""ShiftQuant's kernels: the reference's codes and products, bit for bit."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.quantizers
import refnorm_fast.quantizers
from refnorm_fast.quantizers import _shift
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
reference: Any = refnorm.quantizers
fast: Any = refnorm_fast.quantizers
ONE = np.ones((3, 4))


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with support.using_isa(request.param):
        yield request.param


def gradient(shape: tuple[int, ...], dtype: Any, axis: int = -1, seed: int = 0) -> AnyArray:
    """Channels along ``axis`` whose ranges differ by powers of 2, one of them of zeros."""
    x = np.moveaxis(np.random.default_rng(seed).standard_normal(shape), axis, -1).copy()
    x *= 0.3 ** (np.arange(x.shape[-1]) % 7)
    x[..., -1] = 0
    return np.moveaxis(x, -1, axis).astype(dtype)


def same(found: Any, expected: Any) -> None:
    for name in ("q", "shift", "scale"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert found.n_groups == expected.n_groups


def identical(found: AnyArray, expected: AnyArray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_every_tail(rounding: str, dtype: Any) -> None:
    for length in support.TAILS:
        for axis in (0, 1):
            x = gradient((3, length + 1), dtype, axis, length)
            options = {"bits": 4 + length % 6, "n_groups": 1 + length % 5, "axis": axis, "rounding": rounding}
            found = fast.shift_quantize(x, rng=np.random.default_rng(1), **options)
            same(found, reference.shift_quantize(x, rng=np.random.default_rng(1), **options))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_random_numbers_are_the_references(axis: int, dtype: Any) -> None:
    x = gradient((9, 90, 101), dtype, axis)
    assert x.size > _shift.DRAWN
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    same(fast.shift_quantize(x, axis=axis, rng=one), reference.shift_quantize(x, axis=axis, rng=other))
    assert one.random() == other.random()


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_ties_and_the_ends_of_the_numbers(dtype: Any) -> None:
    info = np.finfo(dtype)
    tiny, most = float(info.smallest_subnormal), float(info.max)
    for x in (
        [[7.0, 0.5, 1.5, -2.5, -0.0]],
        [[tiny, -tiny, 3 * tiny, 0.0]],
        [[most, -most, most / 3, tiny]],
        [[float(info.tiny), -1.0, 2.0**-20, 1e-30]],
        np.zeros((2, 3)),
    ):
        g = np.array(x, dtype)
        for bits in (2, 4, 8, 13):
            same(
                fast.shift_quantize(g, bits=bits, rounding="nearest"),
                reference.shift_quantize(g, bits=bits, rounding="nearest"),
            )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0**-126, 3.1e-36, 7e30])
def test_next_to_ties(scale: float, dtype: Any) -> None:
    """Products with a reciprocal stand in for quotients, except where these are near a tie."""
    step = np.asarray(scale, dtype)
    ties = (np.arange(-7, 7) + 0.5).astype(dtype) * step
    near = [np.nextafter(ties, side, dtype=dtype) for side in (np.inf, -np.inf)]
    x = np.concatenate(
        [ties, *near, *(np.nextafter(each, 0, dtype=dtype) for each in near)] * 3 + [np.array([7, 0], dtype) * step]
    )
    for n_groups in (1, 3):
        g = np.stack([x, x / 4]) if n_groups == 3 else x
        options = {"bits": 4, "n_groups": n_groups, "axis": 0, "rounding": "nearest"}
        same(fast.shift_quantize(g, **options), reference.shift_quantize(g, **options))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts(dtype: Any) -> None:
    x = gradient((6, 10), dtype)
    expected = reference.shift_quantize(x, rounding="nearest")
    for view in (support.misaligned(x), support.off_vector(x), np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        same(fast.shift_quantize(view, rounding="nearest"), expected)
    x.flags.writeable = False
    same(fast.shift_quantize(x, rounding="nearest"), expected)
    same(fast.shift_quantize(x[:0], rounding="nearest"), reference.shift_quantize(x[:0], rounding="nearest"))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize(("bits", "n_groups"), [(4, 1), (4, 4), (8, 1), (8, 4), (8, 9), (10, 2)])
@pytest.mark.parametrize("shape", [(1, 5, 3), (7, 64, 33), (70, 129, 40)])
def test_products(shape: tuple[int, int, int], bits: int, n_groups: int, dtype: Any) -> None:
    rows, channels, outputs = shape
    rng = np.random.default_rng(2)
    g = reference.shift_quantize(gradient((rows, channels), dtype), bits=bits, n_groups=n_groups, rounding="nearest")
    weight = rng.integers(-127, 128, (channels, outputs)).astype(np.int8)
    for scale in (0.1, np.array(0.3, dtype), rng.random(outputs).astype(dtype)):
        for codes in (weight, np.asfortranarray(weight), weight.astype(np.int32), np.where(weight == 5, -128, weight)):
            codes = codes.astype(np.int8) if codes.dtype == np.int64 else codes
            expected = reference.shift_matmul(g, codes, scale)
            identical(fast.shift_matmul(g, codes, scale), expected)
    out = np.empty((rows, outputs), dtype)
    assert fast.shift_matmul(g, weight, 0.1, out=out) is out
    identical(out, reference.shift_matmul(g, weight, 0.1))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("grad_bits", [None, 4, 8])
@pytest.mark.parametrize("forward_bits", [2, 4, 8, 11])
def test_linear(forward_bits: int, grad_bits: int | None, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    x, weight, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((70, 33), (33, 20), (70, 20)))
    results = []
    for side in (fast, reference):
        options = {"grad_bits": grad_bits, "rng": np.random.default_rng(4)}
        y, pullback = side.shift_linear_vjp(x, weight, forward_bits=forward_bits, **options)
        results.append((y, *pullback(dy), *pullback(-dy)))
    for found, expected in zip(*results, strict=True):
        identical(found, expected)
    out = np.empty((70, 20), dtype)
    assert fast.shift_linear(x, weight, forward_bits=forward_bits, out=out) is out
    identical(out, reference.shift_linear(x, weight, forward_bits=forward_bits))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 31), (16, 64, 33), (129, 5, 8)])
@pytest.mark.parametrize(("grad_bits", "n_groups"), [(2, 1), (4, 4), (5, 4), (3, 6), (8, 1)])
def test_linear_of_every_width(grad_bits: int, n_groups: int, shape: tuple[int, int, int], dtype: Any) -> None:
    examples, inputs, outputs = shape
    x, weight = gradient((examples, inputs), dtype, 0), gradient((inputs, outputs), dtype, seed=1)
    dy = gradient((examples, outputs), dtype, seed=2) + gradient((examples, outputs), dtype, 0, seed=3)
    given = [(x, weight, dy), (np.asfortranarray(x), np.repeat(weight, 2, 1)[:, ::2], np.asfortranarray(dy))]
    given += [(support.misaligned(x), support.misaligned(weight), dy.astype(np.float64)), (x * 0, weight, dy * 0)]
    for each in given:
        results = []
        for side in (fast, reference):
            options = {"grad_bits": grad_bits, "n_groups": n_groups, "rng": np.random.default_rng(4)}
            y, pullback = side.shift_linear_vjp(*each[:2], **options)
            results.append((y, *pullback(each[2])))
        for found, expected in zip(*results, strict=True):
            identical(found, expected)


@pytest.mark.parametrize("dy", [np.ones((2, 3)), np.ones(3), np.full((5, 3), np.nan), np.ones((5, 3), int)])
def test_errors_of_the_pullback_are_the_references(dy: AnyArray) -> None:
    raised = []
    for side in (reference, fast):
        pullback = side.shift_linear_vjp(np.ones((5, 2)), np.ones((2, 3)), rng=np.random.default_rng(0))[1]
        with pytest.raises((TypeError, ValueError)) as found:
            pullback(dy)
        raised.append((found.type, str(found.value)))
    assert raised[0] == raised[1]


def test_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    layer = [rng.standard_normal(shape, np.float32) for shape in ((300, 257), (257, 500), (300, 500))]
    results = []
    for count in (1, 2):
        with support.threads(count):
            y, pullback = fast.shift_linear_vjp(*layer[:2], rng=np.random.default_rng(1))
            results.append((y, *pullback(layer[2])))
    for one, other in zip(*results, strict=True):
        identical(one, other)
    x = gradient((700, 300), np.float32)
    found = []
    for count in (1, 2):
        with support.threads(count):
            found.append(fast.shift_quantize(x, rng=np.random.default_rng(0)))
    same(*found)


ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("shift_quantize", (ONE,), {}),
    ("shift_quantize", (ONE,), {"rng": 3}),
    ("shift_quantize", (ONE,), {"rounding": "up"}),
    ("shift_quantize", (ONE,), {"rounding": "nearest", "bits": 1}),
    ("shift_quantize", (ONE,), {"rounding": "nearest", "bits": 14}),
    ("shift_quantize", (ONE,), {"rounding": "nearest", "n_groups": 0}),
    ("shift_quantize", (ONE,), {"rounding": "nearest", "axis": 2}),
    ("shift_quantize", (ONE,), {"rounding": "nearest", "axis": 1.0}),
    ("shift_quantize", (ONE * np.nan,), {"rounding": "nearest"}),
    ("shift_quantize", (np.array([[1.0, -np.inf]]),), {"rounding": "nearest"}),
    ("shift_quantize", (np.float64(1),), {"rounding": "nearest"}),
    ("shift_quantize", (ONE.astype(int),), {"rounding": "nearest"}),
    ("shift_linear", (ONE, ONE), {}),
    ("shift_linear", (ONE, ONE.T.astype(np.float32)), {}),
    ("shift_linear", (ONE * np.inf, ONE.T), {}),
    ("shift_linear", (ONE, ONE.T), {"forward_bits": 17}),
    ("shift_linear_vjp", (ONE, ONE.T), {}),
    ("shift_linear_vjp", (ONE, ONE.T), {"grad_bits": 1}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(reference, name)(*arguments, **options)
    with pytest.raises(expected.type) as raised:
        getattr(fast, name)(*arguments, **options)
    assert str(raised.value) == str(expected.value)


def test_errors_of_products_are_the_references() -> None:
    g = reference.shift_quantize(ONE, rounding="nearest")
    int8 = np.ones((4, 2), np.int8)
    for weight, scale in ((int8[:3], 1.0), (int8.astype(float), 1.0), (int8, np.ones(3)), (int8[0], 1.0)):
        with pytest.raises((TypeError, ValueError)) as expected:
            reference.shift_matmul(g, weight, scale)
        with pytest.raises(expected.type) as raised:
            fast.shift_matmul(g, weight, scale)
        assert str(raised.value) == str(expected.value)
    for out in (np.empty((3, 3)), np.empty((3, 2), np.float32), [0]):
        with pytest.raises((TypeError, ValueError), match="out"):
            fast.shift_matmul(g, int8, 1.0, out=out)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.integers(2, 9),
    st.integers(1, 8),
    st.sampled_from(support.DTYPES),
)
def test_equals_the_reference(shape: list[int], seed: int, bits: int, n_groups: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, shape)).astype(dtype)
    options = {"bits": bits, "n_groups": n_groups, "axis": int(rng.integers(-len(shape), len(shape)))}
    for rounding in ("nearest", "stochastic"):
        same(
            fast.shift_quantize(x, rounding=rounding, rng=np.random.default_rng(seed), **options),
            reference.shift_quantize(x, rounding=rounding, rng=np.random.default_rng(seed), **options),
        )


def test_examples() -> None:
    outcome = doctest.testmod(_shift, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 1
