"""Similarities normalized by banks on the kernels, against the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.softmax as reference
import refnorm_fast.softmax as fast
from tests.fast.support import DTYPES, ISAS, layouts, threads, using_isa

RNG = np.random.default_rng(231011420)


def draw(shape: tuple[int, int], dtype: Any) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


def assert_close(actual: Any, expected: Any, limit: float) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unit = np.finfo(expected.dtype).eps * max(np.abs(expected).max(initial=0), np.finfo(expected.dtype).tiny)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * unit)


def assert_same(name: str, arrays: tuple[Any, ...], **options: Any) -> None:
    value, back = getattr(reference, f"{name}_vjp")(*arrays, **options)
    y, back_fast = getattr(fast, f"{name}_vjp")(*arrays, **options)
    assert_close(y, value, 4)
    np.testing.assert_array_equal(getattr(fast, name)(*arrays, **options), y)
    dy = draw(value.shape, value.dtype)
    # exp(s x) with s rounded to 1 / (1 / s) is off by s x units.
    for actual, expected in zip(back_fast(dy), back(dy), strict=True):
        assert_close(actual, expected, 64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 7, 33, 130])
def test_levels_and_tails(isa: str, dtype: Any, columns: int) -> None:
    sim, bank, other = draw((9, columns), dtype), draw((5, columns), dtype), draw((1, columns), dtype)
    with using_isa(isa):
        assert_same("inverted_softmax", (sim, bank))
        assert_same("dual_bank_norm", (sim, bank, other), query_sharpness=0.25, gallery_sharpness=7)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.floats(1e-3, 60), st.booleans()
)
def test_shapes(queries: int, columns: int, first: int, second: int, sharpness: float, wide: bool) -> None:
    dtype = DTYPES[wide]
    sim, bank, other = draw((queries, columns), dtype), draw((first, columns), dtype), draw((second, columns), dtype)
    assert_same("inverted_softmax", (sim, bank), sharpness=sharpness)
    assert_same("dual_bank_norm", (sim, bank, other), query_sharpness=sharpness)


@pytest.mark.parametrize("options", [{"dynamic": True}, {"dynamic": True, "inactive": "raw"}, {"log": False}])
def test_rare_options_are_the_reference(options: dict[str, Any]) -> None:
    arrays = draw((8, 6), np.float64), draw((5, 6), np.float64), draw((4, 6), np.float64)
    assert_same("dual_bank_norm", arrays, k=2, **options)


def test_more_rows_than_a_block_any_layout_and_any_number_of_threads() -> None:
    sim, bank = draw((700, 97), np.float32), draw((300, 97), np.float32)
    expected = reference.inverted_softmax(sim, bank)
    for case in layouts(sim).values():
        assert_close(fast.inverted_softmax(case, bank), reference.inverted_softmax(case, bank), 4)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(fast.inverted_softmax(sim, bank))
    np.testing.assert_array_equal(*results)
    assert_close(results[0], expected, 4)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sim": np.zeros(3)}, ValueError),
        ({"sim": np.zeros((2, 3), int)}, TypeError),
        ({"bank": np.zeros((0, 3))}, ValueError),
        ({"bank": np.zeros((2, 4))}, ValueError),
        ({"bank": np.zeros((2, 3), np.float32)}, TypeError),
        ({"bank": np.full((2, 3), np.nan)}, ValueError),
        ({"sharpness": 0.0}, ValueError),
        ({"sharpness": "2"}, TypeError),
    ],
)
def test_errors_are_those_of_the_reference(change: dict[str, Any], error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"sim": np.zeros((2, 3)), "bank": np.zeros((2, 3)), **change}
    with pytest.raises(error) as expected:
        reference.inverted_softmax(**arguments)
    with pytest.raises(error) as raised:
        fast.inverted_softmax(**arguments)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("k", [0, 4, 1.5, True])
def test_k_is_checked(k: Any) -> None:
    x = np.zeros((2, 3))
    with pytest.raises((TypeError, ValueError)) as expected:
        reference.dual_bank_norm(x, x, x, k=k)
    with pytest.raises(expected.type) as raised:
        fast.dual_bank_norm(x, x, x, k=k)
    assert str(raised.value) == str(expected.value)
