"""Softmax, log-softmax and log-sum-exp over the entries that take part, at a temperature: kernels against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnorm.softmax as reference
import refnorm_fast.softmax as fast
from refnorm._arrays import ulp_error
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
NAMES = ("softmax", "log_softmax", "logsumexp")
TEMPERATURES = (1.0, 0.1, 0.7, 2.0, 13.0, 1e-3, 1e4)


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def exact(x: AnyArray, where: AnyArray | None, temperature: float) -> tuple[AnyArray, AnyArray]:
    """Softmax and its logarithm in long double."""
    chosen = np.broadcast_to(True if where is None else where, x.shape)
    wide = np.where(chosen, x.astype(np.longdouble), -np.inf)
    at = wide.argmax(axis=-1)[..., None]
    with np.errstate(invalid="ignore"):
        shifted = (wide - np.take_along_axis(wide, at, axis=-1)) / np.longdouble(temperature)
    e = np.exp(shifted)
    others = e.copy()
    np.put_along_axis(others, at, 0, axis=-1)
    y = np.where(chosen, e / e.sum(axis=-1, keepdims=True), 0)
    return y, np.where(chosen, shifted - np.log1p(others.sum(axis=-1, keepdims=True)), -np.inf)


def some_rows(rng: np.random.Generator, rows: int, length: int, share: float = 0.6) -> AnyArray:
    """A mask with an entry left in every row but the second, which has none."""
    where = rng.random((rows, length)) < share
    where[:, 0] |= ~where.any(axis=1)
    if rows > 1:
        where[1] = False
    return where


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("temperature", [*TEMPERATURES, 1e-12])
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_error_does_not_depend_on_the_temperature(dtype: Any, temperature: float) -> None:
    rng = np.random.default_rng(7)
    for length in (1, 5, 33, 100, 1000, 50000):
        # logits up to a few dozen: divided by hand in the dtype, they would lose five digits of the two
        x = (10 * temperature * rng.standard_normal((4, length))).astype(dtype)
        for where in (None, some_rows(rng, 4, length)):
            y, z = exact(x, where, temperature)
            assert ulp_error(fast.softmax(x, where=where, temperature=temperature), y).max() <= (
                2 if dtype == np.float32 else 3
            )
            found = fast.log_softmax(x, where=where, temperature=temperature)
            finite = np.isfinite(z)
            np.testing.assert_array_equal(np.isfinite(found), finite)
            assert ulp_error(found[finite], z[finite]).max(initial=0) <= (2 if dtype == np.float32 else 40)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail(dtype: Any) -> None:
    rng = np.random.default_rng(8)
    limit = 4 * np.finfo(dtype).eps
    for length in support.TAILS[1:]:
        x, g = (3 * rng.standard_normal((2, 3, length))).astype(dtype)
        where = some_rows(rng, 3, length)
        # what is left out is not read, forward or backward
        given, up = np.where(where, x, np.nan).astype(dtype), np.where(where, g, np.nan).astype(dtype)
        for name in NAMES:
            for options in ({"where": where, "temperature": 0.7}, {"where": where}, {"temperature": 3.0}):
                masked = "where" in options
                value, pull = getattr(fast, name + "_vjp")(given if masked else x, **options)
                expected, back = getattr(reference, name + "_vjp")(x.astype(np.float64), **options)
                np.testing.assert_allclose(value, expected, rtol=limit, atol=limit, err_msg=f"{name} of {length}")
                cotangent = g[:, 0] if name == "logsumexp" else up if masked else g
                wanted = back(np.nan_to_num(cotangent).astype(np.float64))[0]
                for _ in range(2):
                    (dx,) = pull(cotangent)
                    assert dx.dtype == dtype
                    np.testing.assert_allclose(
                        dx, wanted, rtol=0, atol=limit * 8 * length**0.5, err_msg=f"{name} of {length}"
                    )
                    if masked:
                        assert (dx[~where] == 0).all()
                np.testing.assert_array_equal(
                    getattr(fast, name)(given if masked else x, **options), value, err_msg=name
                )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_special_rows(dtype: Any) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[1, 2, nan], [1, 2, inf], [1, nan, 2], [-inf, -inf, 5], [1, 2, 3], [inf, 1, 1], [1, -inf, 9]], dtype)
    where = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]], bool)
    for size in (3, 130):
        at = np.arange(size) % 3
        for name in NAMES:
            for temperature in (1.0, 0.3):
                options = {"where": where[:, at], "temperature": temperature}
                value, pull = getattr(fast, name + "_vjp")(x[:, at], **options)
                expected, back = getattr(reference, name + "_vjp")(x[:, at], **options)
                np.testing.assert_allclose(value, expected, rtol=2e-6)
                g = np.ones_like(value)
                np.testing.assert_allclose(pull(g)[0], back(g)[0], rtol=1e-5, atol=1e-5)
    y = fast.softmax(x, where=where)
    assert (y[4] == 0).all()
    assert (y[:, 2] == 0).all()
    assert np.isnan(y[[2, 3, 5], :2]).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_far_from_zero(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    for offset in (1e3, 6e4, 1e5, -1e7):
        for temperature in (0.01, 1.0, 100.0):
            x = (offset + 4 * rng.standard_normal((3, 70))).astype(dtype)
            where = some_rows(rng, 3, 70)
            y, z = exact(x, where, temperature)
            assert ulp_error(fast.softmax(x, where=where, temperature=temperature), y).max() <= (
                2 if dtype == np.float32 else 3
            )
            found = fast.log_softmax(x, where=where, temperature=temperature)
            least = np.finfo(dtype).smallest_subnormal
            np.testing.assert_allclose(found, z.astype(np.float64), rtol=4 * np.finfo(dtype).eps, atol=least)


@pytest.mark.parametrize("name", NAMES)
def test_layouts_axes_and_masks_that_broadcast(name: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    masks = {
        "whole": rng.random((4, 5, 6)) < 0.6,
        "of a row": rng.random(6) < 0.6,
        "of rows": rng.random((4, 5, 1)) < 0.6,
        "of a matrix": rng.random((5, 6)) < 0.6,
        "middle": rng.random((4, 1, 6)) < 0.6,
        "number": np.array(True),
        "list": [True, False, True, True, False, True],
        "Fortran": np.asfortranarray(rng.random((4, 5, 6)) < 0.6),
        "reversed": (rng.random((4, 5, 6)) < 0.6)[::-1, :, ::-1],
    }
    function, both = getattr(fast, name), getattr(fast, name + "_vjp")
    for axis in (-1, 0, 1):
        for label, where in masks.items():
            expected, back = getattr(reference, name + "_vjp")(x, axis=axis, where=where, temperature=0.5)
            g = rng.standard_normal(expected.shape).astype(np.float32)
            (wanted,) = back(g)
            for layout, same in support.layouts(x).items():
                if layout == "row repeated by a zero stride":
                    continue
                for found in (function(same, axis=axis, where=where, temperature=0.5),):
                    np.testing.assert_allclose(
                        found, expected, rtol=1e-6, atol=1e-6, err_msg=f"{layout}, {label}, axis {axis}"
                    )
                value, pull = both(same, axis=axis, where=where, temperature=0.5)
                np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
                np.testing.assert_allclose(
                    pull(g)[0], wanted, rtol=1e-5, atol=2e-6, err_msg=f"{layout}, {label}, axis {axis}"
                )


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_out(name: str, axis: int, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 37)).astype(dtype)
    where = rng.random(x.shape) < 0.7

    def function(x: AnyArray, out: AnyArray | None = None) -> AnyArray:
        kept = where if x.shape == where.shape else None
        result: AnyArray = getattr(fast, name)(x, axis=axis, where=kept, temperature=0.7, out=out)
        return result

    support.check_out(function, x)
    support.check_out_errors(function, x)


def test_more_than_a_chunk_of_columns() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 700, 300)).astype(np.float32)
    where = rng.random((700, 300)) < 0.5
    for axis in (0, 1):
        expected = reference.softmax(x, axis=axis, where=where, temperature=2.0)
        np.testing.assert_allclose(fast.softmax(x, axis=axis, where=where, temperature=2.0), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_results_past_the_caches_and_of_every_number_of_threads(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    for rows, length in ((4100, 1031), (40, 50001)):
        x = rng.standard_normal((rows, length), dtype=np.float32).astype(dtype)
        where = rng.random(length) < 0.7
        for name in NAMES:
            found = []
            for count in (1, 2):
                with support.threads(count):
                    value, pull = getattr(fast, name + "_vjp")(x, where=where, temperature=0.6)
                    found.append((value, pull(value if name != "log_softmax" else x)[0]))
            for one, two in zip(*found, strict=True):
                np.testing.assert_array_equal(one, two)
            one, _ = getattr(fast, name + "_vjp")(x[-1:].copy(), where=where, temperature=0.6)
            np.testing.assert_array_equal(one[0], found[0][0][-1])


def test_all_entries_at_temperature_one_is_plain_softmax() -> None:
    x = (5 * np.random.default_rng(1).standard_normal((20, 200))).astype(np.float32)
    everything = np.ones(x.shape, bool)
    np.testing.assert_array_equal(fast.softmax(x, where=everything), fast.softmax(x))
    np.testing.assert_array_equal(fast.softmax(x, where=None, temperature=1), fast.softmax(x))


def test_mask_may_change_before_the_pullback() -> None:
    x, g = np.random.default_rng(2).standard_normal((2, 3, 9))
    for name in NAMES:
        where = np.ones((3, 9), bool)
        where[:, 4] = False
        _, pull = getattr(fast, name + "_vjp")(x, where=where)
        up = g[:, 0] if name == "logsumexp" else g
        (before,) = pull(up)
        where[...] = False
        np.testing.assert_array_equal(pull(up)[0], before)


@pytest.mark.parametrize("name", [f"{name}{suffix}" for name in NAMES for suffix in ("", "_vjp")])
def test_errors_are_the_reference_s(name: str) -> None:
    x = np.zeros((2, 3))
    for options in (
        {"where": np.ones((2, 3))},
        {"where": np.ones((3, 2), bool)},
        {"where": np.ones((1, 2, 3), bool)},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": np.nan},
        {"temperature": np.inf},
        {"where": np.ones(3, bool), "axis": 2},
    ):
        with pytest.raises((TypeError, ValueError)) as wanted:
            getattr(reference, name)(x, **options)
        with pytest.raises(wanted.type) as found:
            getattr(fast, name)(x, **options)
        assert str(found.value) == str(wanted.value)


def test_rare_options_are_the_reference_s() -> None:
    x, g = np.random.default_rng(3).standard_normal((2, 3, 9)).astype(np.float32)
    where = x < 1
    for options in ({"temperature": 2.0**70}, {"temperature": 2.0**-70, "where": where}):
        for name in NAMES:
            value, pull = getattr(fast, name + "_vjp")(x, **options)
            expected, back = getattr(reference, name + "_vjp")(x, **options)
            np.testing.assert_array_equal(value, expected)
            np.testing.assert_array_equal(getattr(fast, name)(x, **options), expected)
            up = g[:, 0] if name == "logsumexp" else g
            np.testing.assert_array_equal(pull(up)[0], back(up)[0])
    options = {"algorithm": "online", "where": where, "temperature": 0.5}
    out = np.empty_like(x)
    assert fast.softmax(x, **options, out=out) is out
    np.testing.assert_array_equal(out, reference.softmax(x, **options))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows(name: str) -> None:
    for shape in ((0, 3), (2, 0, 5)):
        value, pull = getattr(fast, name + "_vjp")(np.empty(shape), where=np.ones(shape[-1], bool), temperature=0.5)
        assert value.size == 0
        assert pull(value)[0].shape == shape
        assert getattr(fast, name)(np.empty(shape), temperature=0.5).size == 0


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    axis=st.integers(-3, 2),
    temperature=st.sampled_from(TEMPERATURES),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(support.DTYPES),
    seed=st.integers(0, 999),
)
def test_random_shapes(
    shape: list[int], axis: int, temperature: float, share: float, name: str, dtype: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice([*support.HOSTILE, *rng.standard_normal(20)], size=shape).astype(dtype)
    where = rng.random(shape) < share
    options: dict[str, Any] = {"axis": axis % len(shape), "where": where, "temperature": temperature}
    value, pull = getattr(fast, name + "_vjp")(x, **options)
    expected, back = getattr(reference, name + "_vjp")(x, **options)
    limit = 8 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, expected, rtol=limit, atol=limit)
    g = rng.standard_normal(expected.shape).astype(dtype)
    np.testing.assert_allclose(pull(g)[0], back(g)[0], rtol=10 * limit, atol=10 * limit / temperature)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("temperature", [0.7, 1e-3, 1e4])
def test_logsumexp_down_columns(temperature: float, dtype: Any) -> None:
    # In float64 the quotient, the logarithm and their sum round; in float32 the result alone does.
    limit = 1 if dtype is np.float32 else 2
    rng = np.random.default_rng(9)
    for length, columns in ((1, 5), (2, 33), (37, 70), (5, 600), (1500, 130)):
        x = (3 * temperature * rng.standard_normal((2, length, columns))).astype(dtype)
        x[0, :, 0] += dtype(1000 * temperature)
        x[1, 0] = x[1].max(axis=0)  # the largest entry twice
        for layout, same in support.layouts(x).items():
            wide = same.astype(np.longdouble) / np.longdouble(temperature)
            top = wide.max(axis=1, keepdims=True)
            expected = top[:, 0] + np.log(np.exp(wide - top).sum(axis=1))
            found = fast.logsumexp(same, axis=1, temperature=temperature)
            assert found.dtype == dtype
            unit = np.finfo(dtype).eps * np.maximum(np.abs(expected), 1)
            assert (np.abs(found - expected) / unit).max() <= limit, layout
        kept = fast.logsumexp(x, axis=1, temperature=temperature, keepdims=True)
        np.testing.assert_array_equal(kept, fast.logsumexp(x, axis=1, temperature=temperature)[:, None])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_logsumexp_down_special_columns(dtype: Any) -> None:
    x = np.random.default_rng(1).standard_normal((40, 70)).astype(dtype)
    x[3, 0], x[4, 1], x[5, 2], x[:, 3], x[6, 4], x[7, 4] = np.nan, np.inf, -np.inf, -np.inf, np.nan, np.inf
    x[:, 5], x[8, 6] = np.finfo(dtype).max, np.finfo(dtype).max
    for axis, array in ((0, x), (1, np.stack([x, x[::-1]]))):
        for temperature in (0.5, 3.0):
            with np.errstate(all="ignore"):
                expected = reference.logsumexp(array, axis=axis, temperature=temperature)
                found = fast.logsumexp(array, axis=axis, temperature=temperature)
            np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(dtype).eps)
    empty = fast.logsumexp(x[:, :0], axis=0, temperature=2.0)
    assert empty.shape == (0,)


def test_logsumexp_down_columns_is_the_same_for_any_number_of_threads() -> None:
    x = np.random.default_rng(2).standard_normal((700, 900), np.float32)
    with support.threads(1):
        expected = fast.logsumexp(x, axis=0, temperature=0.3)
    with support.threads(2):
        np.testing.assert_array_equal(fast.logsumexp(x, axis=0, temperature=0.3), expected)
