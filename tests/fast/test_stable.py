"""StableMax against the reference."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.softmax as reference
import refnorm_fast.softmax as fast
from refnorm._arrays import ulp_error
from refnorm_fast.softmax import _stable
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
VALUES = ("stable_s", "stablemax", "log_stablemax")


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def exact_log_stablemax(x: AnyArray, axis: int = -1) -> AnyArray:
    """In long doubles, from ratios of s and not from exponentials of its logarithm, as the kernel."""
    wide = np.moveaxis(x.astype(np.longdouble), axis, -1)
    h, s = np.copysign(np.log1p(np.abs(wide)), wide), np.where(wide >= 0, 1 + np.abs(wide), 1 / (1 + np.abs(wide)))
    at = wide.argmax(axis=-1)[..., None]
    ratios = s / np.take_along_axis(s, at, axis=-1)
    np.put_along_axis(ratios, at, 0, axis=-1)
    z = h - np.take_along_axis(h, at, axis=-1) - np.log1p(ratios.sum(axis=-1, keepdims=True))
    result: AnyArray = np.moveaxis(z, -1, axis).astype(np.float64)
    return result


def compare(name: str, x: AnyArray, dy: AnyArray, message: str = "", **options: Any) -> None:
    """float32 against the reference in float64, which has the digits to judge it."""
    unit = EPS[x.dtype]
    wide, wide_dy = x.astype(np.float64), dy.astype(np.float64)
    y, pullback = getattr(fast, name + "_vjp")(x, **options)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(getattr(fast, name)(x, **options), y, err_msg=message)
    expected, reference_pullback = getattr(reference, name + "_vjp")(wide, **options)
    if name == "log_stablemax":
        expected = exact_log_stablemax(x, **options)
    # In float64 the reference has no more digits than the kernel: it rounds a sum of the axis's terms, too.
    judge = 0.5 * x.shape[options.get("axis", -1)] if x.dtype == np.float64 else 0
    np.testing.assert_allclose(y, expected, rtol=(4 + judge) * unit, atol=4 * unit * unit, err_msg=message)
    for _ in range(2):
        (dx,), (wanted,) = pullback(dy), reference_pullback(wide_dy)
        assert dx.dtype == x.dtype
        scale = max(1.0, np.abs(dy).sum()) if name == "log_stablemax" else 1.0
        np.testing.assert_allclose(dx, wanted, rtol=16 * unit, atol=16 * unit * scale, err_msg=message)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_every_tail(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS[1:]:
        guarded = np.full((3, length + 2), np.nan, dtype)  # neighbours that must not be read
        guarded[:, 1:-1] = 5 * rng.normal(size=(3, length))
        compare(name, guarded[:, 1:-1], rng.normal(size=(3, length)).astype(dtype), f"length {length}")
        out = np.full(3 * length + 2, 7, dtype)
        getattr(fast, name)(guarded[:, 1:-1], out=out[1:-1].reshape(3, length))
        assert out[0] == out[-1] == 7


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", VALUES)
def test_float32_within_two_ulp(name: str) -> None:
    rng = np.random.default_rng(1)
    for length in (10, 1000, 70001):
        for spread in (1, 30, 1e5):
            x = (spread * rng.normal(size=(2, length))).astype(np.float32)
            expected = getattr(reference, name)(x.astype(np.float64))
            assert ulp_error(getattr(fast, name)(x), expected).max() <= 2


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [5, 64, 3000])
def test_special_rows(length: int, dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(12, length)).astype(dtype)
    largest = np.finfo(dtype).max
    x[0, -1] = np.nan
    x[1, 0] = np.inf
    x[2] = -np.inf
    x[3, 1:] = -np.inf
    x[4, ::2] = -np.inf
    x[5] = largest
    x[6] = -largest
    x[7, ::2], x[7, 1::2] = largest, -largest
    x[8] = -np.inf
    x[8, 1] = np.nan
    x[9] = 1
    x[10, 0] = 1e30
    x[11] = -1e30
    dy = np.random.default_rng(1).normal(size=x.shape).astype(dtype)
    for name in ("stablemax", "log_stablemax"):
        y, pullback = getattr(fast, name + "_vjp")(x)
        assert np.isnan(y[[0, 1, 2, 8]]).all()
        assert not np.isnan(y[[3, 4, 5, 6, 7, 9, 10, 11]]).any()
        with np.errstate(all="ignore"):
            expected, reference_pullback = getattr(reference, name + "_vjp")(x)
            wanted = reference_pullback(dy)[0]
        np.testing.assert_allclose(y, expected, rtol=8 * EPS[x.dtype], atol=EPS[x.dtype] ** 2, err_msg=name)
        np.testing.assert_allclose(pullback(dy)[0], wanted, rtol=1e-5, atol=16 * EPS[x.dtype] * length, err_msg=name)
    np.testing.assert_allclose(fast.stable_s(x), reference.stable_s(x), rtol=4 * EPS[x.dtype])


def test_a_sure_answer_keeps_its_digits() -> None:
    x = np.array([[1e12, -1e12, -3e12]])
    rest = 1 / (1 + 1e12) / (1 + 1e12) + 1 / (1 + 3e12) / (1 + 1e12)
    np.testing.assert_allclose(fast.log_stablemax(x)[0, 0], -rest, rtol=1e-14)
    loss, pullback = fast.stablemax_cross_entropy_vjp(x, np.array([0]))
    np.testing.assert_allclose(loss, rest, rtol=1e-14)
    np.testing.assert_allclose(pullback(1.0)[0][0, 0], -rest / (1 + 1e12), rtol=1e-14)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_layouts_and_axes(name: str, dtype: type) -> None:
    x, dy = np.random.default_rng(0).normal(size=(2, 6, 5, 7)).astype(dtype)
    for label, same in support.layouts(x).items():
        for axis in (-1, 0, 1):
            options = {} if name == "stable_s" else {"axis": axis}
            compare(name, same, dy, f"{label}, {axis}", **options)
            straight = getattr(fast, name)(np.ascontiguousarray(same), **options)
            np.testing.assert_array_equal(getattr(fast, name)(same, **options), straight, err_msg=label)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("shape", [(5, 33), (3, 2, 8), (3, 60000)])
def test_out(name: str, shape: tuple[int, ...], dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    function: Callable[..., AnyArray] = getattr(fast, name)
    support.check_out(function, x)
    support.check_out_errors(function, x)
    if name != "stable_s":
        support.check_out(lambda x, **out: function(x, axis=0, **out), x[:, :8])


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("shape", [(2000, 300), (3, 100000)])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    target = rng.integers(0, shape[1], shape[0])

    def results() -> list[AnyArray]:
        found = []
        for name in VALUES:
            y, pullback = getattr(fast, name + "_vjp")(x)
            found += [y, *pullback(dy)]
        loss, pullback = fast.stablemax_cross_entropy_vjp(x, target)
        return [*found, loss, *pullback(1.0)]

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


finite = st.one_of(st.floats(-100, 100, width=32), st.sampled_from(support.HOSTILE))


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=20), elements=finite),
    st.data(),
    st.sampled_from(support.ISAS),
)
def test_equals_the_reference(x: AnyArray, data: Any, isa: str) -> None:
    dy = np.random.default_rng(0).normal(size=x.shape)
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    with support.using_isa(isa):
        compare("stable_s", x, dy)
        for name in ("stablemax", "log_stablemax"):
            compare(name, x, dy, axis=axis)


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from(("mean", "sum", "none")),
    st.sampled_from(support.ISAS),
    st.sampled_from(support.DTYPES),
    st.integers(0, 2**32),
)
def test_cross_entropy_equals_the_reference(
    rows: int, classes: int, reduction: str, isa: str, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.choice([1, 30, 300]) * rng.normal(size=(rows, 2 * classes))).astype(dtype)[:, ::2]
    target = rng.integers(0, classes, rows)
    dy = rng.normal(size=(rows,) if reduction == "none" else ()).astype(dtype)
    tolerance = {"rtol": 8 * EPS[logits.dtype], "atol": 8 * EPS[logits.dtype]}
    with support.using_isa(isa):
        loss, pullback = fast.stablemax_cross_entropy_vjp(logits, target, reduction=reduction)
        expected, reference_pullback = reference.stablemax_cross_entropy_vjp(logits, target, reduction=reduction)
        assert loss.dtype == expected.dtype
        np.testing.assert_allclose(loss, expected, **tolerance)
        np.testing.assert_array_equal(fast.stablemax_cross_entropy(logits, target, reduction=reduction), loss)
        np.testing.assert_allclose(pullback(dy)[0], reference_pullback(dy)[0], **tolerance)


ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("stable_s", (np.arange(3),), {}),
    ("stablemax", (np.zeros(3, np.float16),), {}),
    ("stablemax", (np.float64(1.0),), {}),
    ("stablemax", (np.zeros((2, 0)),), {}),
    ("stablemax", (np.zeros((2, 3)),), {"axis": 2}),
    ("log_stablemax", (np.zeros((2, 3)),), {"axis": 1.0}),
    ("stablemax_cross_entropy", (np.zeros(3), np.array([0])), {}),
    ("stablemax_cross_entropy", (np.zeros((2, 3)), np.array([0])), {}),
    ("stablemax_cross_entropy", (np.zeros((2, 3)), np.array([0, 3])), {}),
    ("stablemax_cross_entropy", (np.zeros((2, 3)), np.array([0, -1])), {}),
    ("stablemax_cross_entropy", (np.zeros((2, 3)), np.array([0.0, 1.0])), {}),
    ("stablemax_cross_entropy", (np.zeros((2, 3)), np.array([0, 1])), {"reduction": "max"}),
    ("stablemax_cross_entropy", (np.zeros((2, 0)), np.array([0, 1])), {}),
    ("stablemax_cross_entropy", (np.zeros((0, 3)), np.zeros(0, int)), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), ERRORS)
def test_errors_are_the_references(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for suffix in ("", "_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name + suffix)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name + suffix)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_empty_and_zero_dimensional_arrays() -> None:
    for shape in ((0, 5), (2, 0, 5)):
        x = np.zeros(shape, np.float32)
        for name in VALUES:
            y, pullback = getattr(fast, name + "_vjp")(x)
            assert y.shape == pullback(y)[0].shape == shape
    y, pullback = fast.stable_s_vjp(np.float64(-1.0))
    assert y.shape == ()
    assert y == 0.5
    assert pullback(np.float64(1.0))[0] == 0.25


def test_examples() -> None:
    outcome = doctest.testmod(_stable, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 8
