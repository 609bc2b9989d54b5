"""Softmax over the largest entries against the reference."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refnorm.softmax as reference
import refnorm_fast.softmax as fast
from refnorm._arrays import ulp_error
from refnorm_fast.softmax import _select
from tests.fast import support

AnyArray = np.ndarray[Any, np.dtype[Any]]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}


@pytest.fixture(params=support.ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    with support.using_isa(request.param):
        yield request.param


def compare(scores: AnyArray, bias: AnyArray | None, message: str = "", **options: Any) -> None:
    (weights, mask), pullback = fast.topk_softmax_vjp(scores, bias, **options)
    (expected, expected_mask), reference_pullback = reference.topk_softmax_vjp(scores, bias, **options)
    assert weights.dtype == scores.dtype
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected_mask, err_msg=message)
    np.testing.assert_allclose(weights, expected, rtol=4 * EPS[scores.dtype], atol=1e-44, err_msg=message)
    again, again_mask = fast.topk_softmax(scores, bias, **options)
    np.testing.assert_array_equal(again, weights, err_msg=message)
    np.testing.assert_array_equal(again_mask, mask, err_msg=message)
    dweights = np.random.default_rng(7).normal(size=scores.shape).astype(scores.dtype)
    for _ in range(2):
        dscores, dbias = pullback(dweights)
        wanted, wanted_bias = reference_pullback(dweights)
        np.testing.assert_allclose(dscores, wanted, rtol=0, atol=16 * EPS[scores.dtype], err_msg=message)
        assert dscores.dtype == scores.dtype
        if bias is None:
            assert dbias is None
        else:
            rows = max(1, scores.size // scores.shape[-1])
            np.testing.assert_allclose(dbias, wanted_bias, rtol=0, atol=16 * EPS[scores.dtype] * rows, err_msg=message)
            assert dbias.dtype == scores.dtype


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for length in support.TAILS[1:]:
        # Neighbours must not be read. Some rows at once, as many as lanes, and one left over.
        guarded = np.full((17, length + 2), np.nan, dtype)
        guarded[:, 1:-1] = rng.normal(size=(17, length))
        bias = rng.normal(size=length).astype(dtype)
        for top_k in {1, min(2, length), min(8, length), max(1, length - 1), length}:
            compare(guarded[:, 1:-1], None, f"{length} {top_k}", top_k=top_k)
        compare(guarded[:, 1:-1], bias, f"{length}", top_k=(length + 1) // 2, select_with_bias=bool(length % 2))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [129, 256, 1023, 1025, 5000, 70001])
def test_long_rows(length: int, dtype: type) -> None:
    rng = np.random.default_rng(length)
    x = rng.normal(size=(3, length)).astype(dtype)
    x[1] = np.sort(x[1])
    x[2] = np.round(x[2])  # many equal entries
    for top_k in (1, 4, 5, 50, length // 3):
        compare(x, None, f"{top_k}", top_k=top_k)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [3, 8, 64, 200, 2000])
def test_equal_scores_select_the_first(length: int, dtype: type) -> None:
    rng = np.random.default_rng(length)
    for values in ((0.0,), (0.0, -0.0), (1.0, 2.0), (1.0, 2.0, 3.0), (np.inf, 1.0), (-np.inf, 1.0), (-np.inf,)):
        x: AnyArray = rng.choice(np.array(values), size=(70, length)).astype(dtype)
        for top_k in sorted({1, 2, 3, min(8, length), (length + 1) // 2}):
            mask = fast.topk_softmax(x, top_k=top_k)[1]
            np.testing.assert_array_equal(mask, reference.topk_softmax(x, top_k=top_k)[1], err_msg=f"{values} {top_k}")
            assert (mask.sum(axis=-1) == top_k).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [4, 40, 400])
def test_special_entries(length: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, length)).astype(dtype)
    for row in x:
        row[rng.integers(length, size=rng.integers(1, length + 1))] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38])
    x[0], x[1] = np.nan, -np.inf
    x[2, 1:] = np.nan
    bias = rng.normal(size=length).astype(dtype)
    odd = bias.copy()
    odd[[0, 2]] = np.inf, -np.inf
    hopeless = bias.copy()
    hopeless[1] = np.nan
    for given_bias in (None, bias, odd, hopeless):
        for with_bias in (False, True):
            for top_k in (1, 2, 4):
                with np.errstate(invalid="ignore"):
                    compare(x, given_bias, f"{top_k}", top_k=top_k, select_with_bias=with_bias)


@pytest.mark.usefixtures("isa")
def test_float32_within_two_ulp() -> None:
    x = (10 * np.random.default_rng(0).normal(size=(3000, 64))).astype(np.float32)
    for top_k in (2, 8, 64):
        weights, mask = fast.topk_softmax(x, top_k=top_k)
        wide = np.where(mask, x, -np.inf).astype(np.longdouble)
        e = np.exp(wide - wide.max(axis=-1, keepdims=True))
        assert ulp_error(weights, e / e.sum(axis=-1, keepdims=True)).max() <= 2


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts(dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(dtype)
    bias = support.misaligned(x[0, 0])
    for name, same in support.layouts(x).items():
        for one in (bias, np.repeat(bias, 2)[::2], None):
            compare(same, one, name, top_k=3)
            straight = fast.topk_softmax_vjp(np.ascontiguousarray(same), one, top_k=3)[1](np.asfortranarray(x))
            for a, b in zip(fast.topk_softmax_vjp(same, one, top_k=3)[1](x), straight, strict=True):
                if a is not None:
                    np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize(("rows", "length", "top_k"), [(5000, 60, 4), (300, 3000, 40)])
def test_same_bits_for_any_number_of_threads(rows: int, length: int, top_k: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, rows, length)).astype(dtype)
    bias = rng.normal(size=length).astype(dtype)

    def results() -> list[AnyArray]:
        (weights, mask), pullback = fast.topk_softmax_vjp(x, bias, top_k=top_k)
        return [weights, mask, *pullback(dy)]

    with support.threads(1):
        expected = results()
    for count in (2, 5):
        with support.threads(count):
            for one, other in zip(results(), expected, strict=True):
                np.testing.assert_array_equal(one, other)


scores = st.one_of(st.floats(-100, 100, width=32), st.sampled_from((*support.HOSTILE, *support.SPECIAL)))


@given(
    hnp.arrays(
        np.float64, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=20), elements=scores, unique=False
    ),
    st.data(),
    st.sampled_from(support.ISAS),
)
def test_equals_the_reference(x: AnyArray, data: Any, isa: str) -> None:
    top_k = data.draw(st.integers(1, x.shape[-1]))
    bias = data.draw(st.one_of(st.none(), hnp.arrays(np.float64, x.shape[-1:], elements=scores)))
    with support.using_isa(isa), np.errstate(invalid="ignore"):
        compare(x, bias, top_k=top_k, select_with_bias=data.draw(st.booleans()))


ERRORS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((np.arange(3),), {"top_k": 1}),
    ((np.float64(1.0),), {"top_k": 1}),
    ((np.zeros((2, 0)),), {"top_k": 1}),
    ((np.zeros((2, 3)),), {"top_k": 0}),
    ((np.zeros((2, 3)),), {"top_k": 4}),
    ((np.zeros((2, 3)),), {"top_k": 1.0}),
    ((np.zeros((2, 3)),), {"top_k": True}),
    ((np.zeros((2, 3)), np.zeros(2)), {"top_k": 1}),
    ((np.zeros((2, 3)), np.zeros((1, 3))), {"top_k": 1}),
    ((np.zeros((2, 3)), np.zeros(3, np.float32)), {"top_k": 1}),
    ((np.zeros((2, 3)), np.zeros(3, int)), {"top_k": 1}),
]


@pytest.mark.parametrize(("arguments", "options"), ERRORS)
def test_errors_are_the_references(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for name in ("topk_softmax", "topk_softmax_vjp"):
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name)(*arguments, **options)
        with pytest.raises(expected.type) as raised:
            getattr(fast, name)(*arguments, **options)
        assert str(raised.value) == str(expected.value)


def test_pullback_checks_its_cotangent() -> None:
    with pytest.raises(ValueError, match=r"dweights: expected shape \(2, 3\)"):
        fast.topk_softmax_vjp(np.zeros((2, 3)), top_k=1)[1](np.zeros(3))


def test_empty_batches() -> None:
    for shape in ((0, 5), (2, 0, 5)):
        (weights, mask), pullback = fast.topk_softmax_vjp(np.zeros(shape), np.zeros(5), top_k=2)
        assert weights.shape == mask.shape == shape
        dscores, dbias = pullback(weights)
        assert dscores.shape == shape
        np.testing.assert_array_equal(dbias, np.zeros(5))


def test_inputs_are_not_written() -> None:
    x = support.read_only(np.random.default_rng(0).normal(size=(4, 9)))
    (weights, _), pullback = fast.topk_softmax_vjp(x, support.read_only(x[0]), top_k=2)
    before = [a.copy() for a in pullback(support.read_only(weights))]
    weights[...] = 7  # the pullback has its own copy
    for one, other in zip(pullback(x), fast.topk_softmax_vjp(x, x[0], top_k=2)[1](x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.isfinite(a).all() for a in before)


def test_examples() -> None:
    outcome = doctest.testmod(_select, extraglobs={"np": np})
    assert outcome.failed == 0
    assert outcome.attempted > 3
