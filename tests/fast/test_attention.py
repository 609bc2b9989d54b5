"""The attention kernels against the reference."""

from __future__ import annotations

import doctest
import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.attention as reference
import refnorm_fast.attention as fast
from refnorm.models import reference_ops
from refnorm_fast.attention import _core
from refnorm_fast.models import ops
from tests.fast import support

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def expected_of(query, key, value, **options):
    arrays = (array.astype(np.float64) for array in (query, key, value))
    return reference.scaled_dot_product_attention(*arrays, **options)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [1, 5, 6, 7, 12, 13, 31, 200])
@pytest.mark.parametrize("keys", [1, 2, 15, 16, 17, 33, 511, 512, 513, 1030])
def test_lengths(dtype, length, keys):
    rng = np.random.default_rng(length * keys)
    query, key = rng.standard_normal((length, 24)).astype(dtype), rng.standard_normal((keys, 24)).astype(dtype)
    value = rng.standard_normal((keys, 40)).astype(dtype)
    got = fast.scaled_dot_product_attention(query, key, value)
    np.testing.assert_allclose(got, expected_of(query, key, value), atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_masks_and_broadcasting(dtype, causal, masked):
    rng = np.random.default_rng(7)
    query = rng.standard_normal((2, 3, 50, 8)).astype(dtype)
    key, value = rng.standard_normal((3, 600, 8)).astype(dtype), rng.standard_normal((2, 1, 600, 5)).astype(dtype)
    mask = rng.random((2, 1, 50, 600)) < 0.3 if masked else None
    if masked:
        mask[0, 0, 7] = False
        mask[1, 0, 3, :520] = False
    options = {"mask": mask, "causal": causal, "scale": 0.7}
    got = fast.scaled_dot_product_attention(query, key, value, **options)
    np.testing.assert_allclose(got, expected_of(query, key, value, **options), atol=TOLERANCE[dtype])
    if masked:
        assert not got[0, :, 7].any()


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_large_scores_do_not_overflow(dtype):
    rng = np.random.default_rng(8)
    query, key, value = (rng.standard_normal((40, 16)).astype(dtype) for _ in range(3))
    got = fast.scaled_dot_product_attention(query * 100, key * 100, value)
    # Scores of size 1e4: one ULP of a float32 score is 1e-3, and so is its weight's relative error.
    tolerance = 2e-2 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(got, expected_of(query * 100, key * 100, value), atol=tolerance)
    assert np.isfinite(got).all()


def test_rows_do_not_depend_on_their_company():
    rng = np.random.default_rng(9)
    query, key, value = (rng.standard_normal((700, 16)).astype(np.float32) for _ in range(3))
    for causal in (False, True):
        whole = fast.scaled_dot_product_attention(query, key, value, causal=causal)
        for rows in (1, 6, 100, 350):
            part = fast.scaled_dot_product_attention(query[:rows], key, value, causal=causal)
            np.testing.assert_array_equal(part, whole[:rows])
        for count in (1, 2, 3):
            with support.threads(count):
                again = fast.scaled_dot_product_attention(query, key, value, causal=causal)
            np.testing.assert_array_equal(again, whole)


FEW_ROWS = (1, 2, 3, 4, 5, 7, 12, 13, 24, 48, 49)
"""Rows that take one path or another through tiles, up to the first number whose keys and values are packed."""


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize(
    ("depth", "width"), [(1, 1), (3, 16), (16, 33), (40, 64), (64, 72), (128, 128)], ids=lambda size: str(size)
)
def test_few_rows_are_those_of_many(dtype, depth, width):
    """Few rows read keys and values in place, many pack them: to the last bit the same, masks and all."""
    rng = np.random.default_rng(21)
    query, key = rng.standard_normal((60, depth)).astype(dtype), rng.standard_normal((600, depth)).astype(dtype)
    value, mask = rng.standard_normal((600, width)).astype(dtype), rng.random((60, 600)) < 0.4
    mask[2] = False
    bias = rng.standard_normal((60, 600)).astype(dtype)
    for keys in (5, 95, 97, 130, 512, 600):
        for allowed in (None, mask[:, :keys]):
            whole = fast.scaled_dot_product_attention(query, key[:keys], value[:keys], mask=allowed, scale=0.2)
            soft = fast.sigmoid_attention(query, key[:keys], value[:keys], mask=allowed, attn_bias=bias[:, :keys])
            for rows in FEW_ROWS:
                part = allowed[:rows] if allowed is not None else None
                few = query[:rows], key[:keys], value[:keys]
                got = fast.scaled_dot_product_attention(*few, mask=part, scale=0.2)
                np.testing.assert_array_equal(got, whole[:rows])
                got = fast.sigmoid_attention(*few, mask=part, attn_bias=bias[:rows, :keys])
                np.testing.assert_array_equal(got, soft[:rows])


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 24])
def test_blocks_of_keys_dealt_out_to_threads(dtype, rows):
    """Too few heads for the threads: blocks of 512 keys are the jobs. Scores rise from block to block, so that each rescales."""
    rng = np.random.default_rng(22)
    query, key, value = (rng.standard_normal((3, n, 40)).astype(dtype) for n in (rows, 2100, 2100))
    key *= np.linspace(0.3, 2, 2100, dtype=dtype)[:, None]
    mask = rng.random((rows, 2100)) < 0.5
    mask[0, :1100] = False
    for heads, options in itertools.product((1, 3), ({}, {"mask": mask}, {"causal": True})):
        arrays = query[:heads], key[:heads], value[:heads]
        results = []
        for count in (1, 2, 3, 5):
            with support.threads(count):
                y, pullback = fast.scaled_dot_product_attention_vjp(*arrays, **options)
                results.append((y, *pullback(y), fast.sigmoid_attention(*arrays, **options)))
        np.testing.assert_allclose(results[0][0], expected_of(*arrays, **options), atol=TOLERANCE[dtype])
        for other in results[1:]:
            for mine, theirs in zip(other, results[0], strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_few_rows_of_any_layout(dtype):
    """Rows of keys and values any distance apart, backwards too; nothing beyond the last entry is read into the result."""
    rng = np.random.default_rng(23)
    query = rng.standard_normal((2, 2, 24)).astype(dtype)
    wide = np.full((2, 3, 530, 100), np.nan, dtype)
    for keys, depth, width in ((1, 24, 24), (17, 24, 50), (130, 24, 33), (525, 24, 64)):
        key, value = wide[:, 0, 2 : keys + 2, 3 : depth + 3], wide[:, 2, 1 : keys + 1, 5 : width + 5]
        key[...], value[...] = rng.standard_normal(key.shape), rng.standard_normal(value.shape)
        for step in (1, -1):
            k, v = key[:, ::step], value[:, ::step]
            got = fast.scaled_dot_product_attention(query, k, v)
            np.testing.assert_array_equal(got, fast.scaled_dot_product_attention(query, k.copy(), v.copy()))
            np.testing.assert_allclose(got, expected_of(query, k, v), atol=TOLERANCE[dtype])
        wide[...] = np.nan


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("grouped", [True, False])
def test_heads_that_share_keys_are_rows_of_one(dtype, grouped):
    """One query a head, several heads on the same keys: as if each had its own copy."""
    rng = np.random.default_rng(24)
    heads = (2, 3, 5) if grouped else (6,)
    query = rng.standard_normal((*heads, 1, 24)).astype(dtype)
    key, value = (rng.standard_normal((*(heads[:-1]), 1, 70, n)).astype(dtype)[() if grouped else 0] for n in (24, 40))
    own_key, own_value = (np.broadcast_to(a, (*heads, *a.shape[-2:])).copy() for a in (key, value))
    mask = rng.random((*heads, 1, 70)) < 0.5
    for options in ({}, {"mask": mask}, {"mask": mask[..., :1]}, {"causal": True}, {"scale": 0.3}):
        got = fast.scaled_dot_product_attention(query, key, value, **options)
        expected = fast.scaled_dot_product_attention(query, own_key, own_value, **options)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_allclose(got, expected_of(query, key, value, **options), atol=TOLERANCE[dtype])
    y, pullback = fast.scaled_dot_product_attention_vjp(query, key, value, mask=mask)
    wide, wide_pullback = reference.scaled_dot_product_attention_vjp(
        *(a.astype(np.float64) for a in (query, key, value)), mask=mask
    )
    for mine, theirs in zip((y, *pullback(y)), (wide, *wide_pullback(y.astype(np.float64))), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=10 * TOLERANCE[dtype])
    for bias, added in (
        ("-log_n", None),
        (np.asarray(0.5, dtype), mask.astype(dtype)),
        (mask[..., :1].astype(dtype), None),
    ):
        got = fast.sigmoid_attention(query, key, value, bias=bias, attn_bias=added)
        expected = fast.sigmoid_attention(query, own_key, own_value, bias=bias, attn_bias=added)
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=30)
@given(
    st.integers(0, 20),
    st.integers(0, 40),
    st.integers(1, 20),
    st.integers(0, 20),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(length, keys, depth, width, causal, seed):
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, length, depth)), rng.standard_normal((2, keys, depth))
    value = rng.standard_normal((2, keys, width))
    got = fast.scaled_dot_product_attention(query, key, value, causal=causal)
    np.testing.assert_allclose(got, expected_of(query, key, value, causal=causal), atol=1e-13)


def test_layouts_and_out():
    rng = np.random.default_rng(10)
    query, key, value = (rng.standard_normal((9, 8)).astype(np.float32) for _ in range(3))
    for name, view in support.layouts(query).items():
        got = fast.scaled_dot_product_attention(view, view, view)
        copy = view.copy()
        np.testing.assert_array_equal(got, fast.scaled_dot_product_attention(copy, copy, copy), err_msg=name)
    support.check_out(lambda x, **out: fast.scaled_dot_product_attention(x, key, value, **out), query)
    support.check_out(lambda x, **out: fast.scaled_dot_product_attention(query, key, x, **out), value)


def test_nan_reaches_the_row_that_sees_it():
    rng = np.random.default_rng(11)
    query, key, value = (rng.standard_normal((20, 8)).astype(np.float32) for _ in range(3))
    query[3, 0] = np.nan
    got = fast.scaled_dot_product_attention(query, key, value)
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_multi_head_attention_follows_the_reference(dtype):
    rng = np.random.default_rng(12)
    x = rng.standard_normal((3, 40, 32)).astype(dtype)
    weight_in, bias_in = (rng.standard_normal((32, 96)) / 6).astype(dtype), rng.standard_normal(96).astype(dtype)
    weight_out, bias_out = (rng.standard_normal((32, 16)) / 6).astype(dtype), rng.standard_normal(16).astype(dtype)
    for options in (
        {},
        {"lengths": np.array([3, 40, 0])},
        {"causal": True},
        {"lengths": np.array([1, 2, 39]), "causal": True},
    ):
        arguments = (x, weight_in, bias_in, weight_out, bias_out)
        got = fast.multi_head_attention(*arguments, heads=4, **options)
        expected = reference.multi_head_attention(*arguments, heads=4, **options)
        np.testing.assert_allclose(got, expected, atol=10 * TOLERANCE[dtype])


def cotangents_of(module, arrays, dy, **options):
    y, pullback = module.scaled_dot_product_attention_vjp(*arrays, **options)
    return [y, *pullback(dy)]


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (5, 7), (32, 120), (33, 121), (130, 250), (64, 3), (7, 300)])
def test_cotangents_follow_the_reference(dtype, masked, causal, length, keys):
    rng = np.random.default_rng(length * keys)
    arrays = [rng.standard_normal((2, n, width)).astype(dtype) for n, width in ((length, 24), (keys, 24), (keys, 20))]
    dy = rng.standard_normal((2, length, 20)).astype(dtype)
    mask = rng.random((2, length, keys)) < 0.4 if masked else None
    if masked:
        mask[0, length // 2] = False
    options = {"mask": mask, "causal": causal, "scale": 0.3}
    got = cotangents_of(fast, arrays, dy, **options)
    expected = cotangents_of(reference, [a.astype(np.float64) for a in arrays], dy.astype(np.float64), **options)
    for name, mine, theirs in zip(("y", "dquery", "dkey", "dvalue"), got, expected, strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine, theirs, atol=3 * TOLERANCE[dtype] * max(1, np.abs(theirs).max()), err_msg=name)


@settings(max_examples=30)
@given(
    st.integers(0, 40), st.integers(0, 130), st.integers(1, 20), st.integers(0, 20), st.booleans(), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_cotangents_of_any_shape(length, keys, depth, width, causal, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, *shape)) for shape in ((length, depth), (keys, depth), (keys, width))]
    dy = rng.standard_normal((2, length, width))
    got, expected = (cotangents_of(module, arrays, dy, causal=causal) for module in (fast, reference))
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-13)


def test_cotangents_of_broadcast_arguments_are_summed():
    rng = np.random.default_rng(15)
    arrays = [rng.standard_normal(shape) for shape in ((2, 3, 50, 8), (3, 60, 8), (2, 1, 60, 5))]
    dy = rng.standard_normal((2, 3, 50, 5))
    got, expected = (cotangents_of(module, arrays, dy) for module in (fast, reference))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_cotangents_do_not_depend_on_the_number_of_threads(heads, causal):
    """One head is split among the threads, which compute its scores twice; many are dealt out whole."""
    rng = np.random.default_rng(16)
    arrays = rng.standard_normal((3, heads, 300, 16)).astype(np.float32)
    dy = rng.standard_normal((heads, 300, 16)).astype(np.float32)
    with support.threads(1):
        expected = cotangents_of(fast, arrays, dy, causal=causal)
    for count in (2, 3):
        with support.threads(count):
            for mine, theirs in zip(cotangents_of(fast, arrays, dy, causal=causal), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_pullback_of_any_layout_and_again():
    rng = np.random.default_rng(17)
    arrays, dy = list(rng.standard_normal((3, 2, 40, 16))), rng.standard_normal((2, 40, 16))
    expected = cotangents_of(fast, arrays, dy)
    turned = [np.moveaxis(np.moveaxis(a, 0, 1).copy(), 1, 0) for a in (*arrays, dy)]
    y, pullback = fast.scaled_dot_product_attention_vjp(*turned[:3])
    y[...] = 0  # the result is the caller's
    for _ in range(2):
        for mine, theirs in zip(pullback(turned[3]), expected[1:], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 40, 16\), got \(40, 16\)"):
        pullback(dy[0])


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_multi_head_cotangents_follow_the_reference(dtype):
    rng = np.random.default_rng(18)
    x, dy = rng.standard_normal((3, 40, 32)).astype(dtype), rng.standard_normal((3, 40, 16)).astype(dtype)
    weights = [(rng.standard_normal(shape) / 6).astype(dtype) for shape in ((32, 96), (96,), (32, 16), (16,))]
    for biases in (True, False):
        arguments = [w if biases or w.ndim == 2 else None for w in weights]
        options = {"heads": 4, "lengths": np.array([3, 40, 0]), "causal": biases}
        y, pullback = fast.multi_head_attention_vjp(x, *arguments, **options)
        expected, expected_pullback = reference.multi_head_attention_vjp(x, *arguments, **options)
        np.testing.assert_allclose(y, expected, atol=10 * TOLERANCE[dtype])
        for mine, theirs in zip(pullback(dy), expected_pullback(dy), strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_allclose(mine, theirs, atol=10 * TOLERANCE[dtype] * np.abs(theirs).max())


# ---- sigmoid attention -------------------------------------------------------------------------------------------


def sigmoid_results(module, arrays, dy, **options):
    y, pullback = module.sigmoid_attention_vjp(*arrays, **options)
    return [y, *pullback(dy)]


def assert_sigmoid_follows(arrays, dy, dtype, **options):
    got = sigmoid_results(fast, arrays, dy, **options)
    np.testing.assert_array_equal(fast.sigmoid_attention(*arrays, **options), got[0])
    wide = {
        n: o.astype(np.float64) if isinstance(o, np.ndarray) and o.dtype == dtype else o for n, o in options.items()
    }
    expected = sigmoid_results(reference, [a.astype(np.float64) for a in arrays], dy.astype(np.float64), **wide)
    for number, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        assert mine.dtype == dtype
        assert mine.shape == theirs.shape
        # Errors of a sum are those of its largest terms; with many keys or queries it may be small itself.
        size = max(1.0, np.abs(theirs).max(initial=0))
        np.testing.assert_allclose(mine, theirs, atol=5 * TOLERANCE[dtype] * size, err_msg=f"result {number}")
    return got


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("length", [1, 5, 13, 31, 130])
@pytest.mark.parametrize("keys", [1, 2, 15, 16, 17, 33, 120, 121, 511, 512, 513])
def test_sigmoid_lengths(dtype, length, keys):
    rng = np.random.default_rng(length * keys)
    arrays = [rng.standard_normal((n, width)).astype(dtype) for n, width in ((length, 24), (keys, 24), (keys, 20))]
    assert_sigmoid_follows(arrays, rng.standard_normal((length, 20)).astype(dtype), dtype)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("bias", ["-log_n", "per_row", 0.5, (), (3, 1, 1), (30, 1), (520,), (2, 1, 30, 520)])
def test_sigmoid_masks_biases_and_broadcasting(dtype, bias):
    rng = np.random.default_rng(19)
    shapes = ((2, 3, 30, 8), (3, 520, 8), (2, 1, 520, 5))
    arrays, dy = (
        [rng.standard_normal(s).astype(dtype) for s in shapes],
        rng.standard_normal((2, 3, 30, 5)).astype(dtype),
    )
    mask = rng.random((2, 1, 30, 520)) < 0.3
    mask[0, 0, 7] = False
    choices = itertools.product((False, True), (None, mask), (None, (30, 520), (3, 1, 520)))
    for causal, allowed, attn_bias in choices:
        drawn = {
            name: np.asarray(rng.standard_normal(shape), dtype) if isinstance(shape, tuple) else shape
            for name, shape in (("bias", bias), ("attn_bias", attn_bias))
        }
        got = assert_sigmoid_follows(arrays, dy, dtype, mask=allowed, causal=causal, scale=0.7, **drawn)
        if allowed is not None:
            assert not got[0][0, :, 7].any()
            assert not got[1][0, :, 7].any()


@settings(max_examples=30)
@given(
    st.integers(0, 40), st.integers(1, 130), st.integers(1, 20), st.integers(0, 20), st.booleans(), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_sigmoid_of_any_shape(length, keys, depth, width, causal, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, *shape)) for shape in ((length, depth), (keys, depth), (keys, width))]
    options = {"causal": causal, "bias": "per_row", "attn_bias": rng.standard_normal((length, 1))}
    assert_sigmoid_follows(arrays, rng.standard_normal((2, length, width)), np.float64, **options)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_sigmoid_weights_are_good_to_a_few_units(dtype):
    """One key and the value 1 show a weight, the cotangent of the bias its slope; far out they keep their digits."""
    bias = np.linspace(-80, 80, 4001).astype(dtype)[:, None]
    arrays = np.zeros((len(bias), 1), dtype), np.zeros((1, 1), dtype), np.ones((1, 1), dtype)
    y, pullback = fast.sigmoid_attention_vjp(*arrays, bias=bias)
    slope = pullback(np.ones_like(y))[3]
    wide = bias.astype(np.longdouble)
    # A score's rounding in units of the exponential is worth 80 eps.
    relative = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-wide)), rtol=relative)
    np.testing.assert_allclose(slope, np.exp(-np.abs(wide)) / (1 + np.exp(-np.abs(wide))) ** 2, rtol=relative)
    near = np.abs(bias) < 1
    np.testing.assert_allclose(y[near], 1 / (1 + np.exp(-wide[near])), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_sigmoid_of_infinite_and_huge_scores(dtype):
    rng = np.random.default_rng(20)
    arrays = [rng.standard_normal((40, 16)).astype(dtype) for _ in range(3)]
    pair_bias = np.where(rng.random((40, 40)) < 0.5, -np.inf, 0).astype(dtype)
    pair_bias[3] = -np.inf
    pair_bias[:, 5] = np.inf
    pair_bias[4] = 1e30
    got = assert_sigmoid_follows(arrays, arrays[0].copy(), dtype, attn_bias=pair_bias)
    assert (got[4][np.isinf(pair_bias)] == 0).all()
    only_none = np.full((40, 1), -np.inf, dtype)
    assert not fast.sigmoid_attention(*arrays, bias=only_none).any()


def test_sigmoid_nan_reaches_the_row_that_sees_it():
    rng = np.random.default_rng(11)
    query, key, value = (rng.standard_normal((20, 8)).astype(np.float32) for _ in range(3))
    query[3, 0] = np.nan
    got = fast.sigmoid_attention(query, key, value)
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_sigmoid_does_not_depend_on_the_number_of_threads(heads, causal):
    rng = np.random.default_rng(16)
    arrays = rng.standard_normal((3, heads, 400, 16)).astype(np.float32)
    dy = rng.standard_normal((heads, 400, 16)).astype(np.float32)
    options = {"causal": causal, "bias": np.array(-3, np.float32), "attn_bias": rng.standard_normal(400).astype("f4")}
    with support.threads(1):
        expected = sigmoid_results(fast, arrays, dy, **options)
    for count in (2, 3):
        with support.threads(count):
            for mine, theirs in zip(sigmoid_results(fast, arrays, dy, **options), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_sigmoid_layouts_and_out():
    rng = np.random.default_rng(10)
    query, key, value = (rng.standard_normal((9, 8)).astype(np.float32) for _ in range(3))
    added = rng.standard_normal((9, 9)).astype(np.float32)
    for name, view in support.layouts(query).items():
        copy = view.copy()
        expected = fast.sigmoid_attention(copy, copy, copy, attn_bias=added)
        np.testing.assert_array_equal(fast.sigmoid_attention(view, view, view, attn_bias=added), expected, err_msg=name)
    for name, view in support.layouts(added).items():
        for kind in ("bias", "attn_bias"):
            got = fast.sigmoid_attention(query, key, value, **{kind: view})
            np.testing.assert_array_equal(got, fast.sigmoid_attention(query, key, value, **{kind: view.copy()}), name)
    support.check_out(lambda x, **out: fast.sigmoid_attention(x, key, value, **out), query)
    support.check_out(lambda x, **out: fast.sigmoid_attention(query, key, x, **out), value)
    square = added[:, :8].copy()
    support.check_out(lambda x, **out: fast.sigmoid_attention(query, key[:8], value[:8], attn_bias=x, **out), square)
    support.check_out_errors(lambda x, **out: fast.sigmoid_attention(x, key, value, **out), query)


def test_sigmoid_pullback_again_and_after_the_caller_wrote_to_result_and_biases():
    rng = np.random.default_rng(17)
    arrays, dy = list(rng.standard_normal((3, 2, 40, 16))), rng.standard_normal((2, 40, 16))
    options = {"bias": rng.standard_normal((40, 1)), "attn_bias": rng.standard_normal((40, 40))}
    expected = sigmoid_results(reference, arrays, dy, **options)
    y, pullback = fast.sigmoid_attention_vjp(*arrays, **options)
    for array in (y, *options.values()):
        array[...] = 7
    for _ in range(2):
        for mine, theirs in zip(pullback(dy), expected[1:], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-12)
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 40, 16\), got \(40, 16\)"):
        pullback(dy[0])


def test_sigmoid_bad_input():
    x = np.zeros((2, 3), np.float32)
    for arguments, options in (
        ((x, x[:0], x[:0]), {}),
        ((x, x[:, :2], x), {}),
        ((x, x, x.astype(float)), {}),
        ((x, x, x), {"bias": "log_n"}),
        ((x, x, x), {"bias": True}),
        ((x, x, x), {"bias": np.zeros(3, np.float32)}),
        ((x, x, x), {"bias": np.zeros(2)}),
        ((x, x, x), {"attn_bias": np.zeros((2, 2), int)}),
        ((x, x, x), {"attn_bias": np.zeros((1, 2, 2), np.float32)}),
        ((x, x, x), {"mask": np.ones((2, 2))}),
        ((x, x, x), {"mask": np.ones((3, 2), bool), "bias": "per_row"}),
        ((x, x, x), {"scale": -1.0}),
        ((x, x, x), {"block": 0}),
        ((x, x, x), {"block": 1.5}),
    ):
        with pytest.raises((TypeError, ValueError)) as expected:
            reference.sigmoid_attention(*arguments, **options)
        for function in (fast.sigmoid_attention, fast.sigmoid_attention_vjp):
            with pytest.raises(expected.type) as got:
                function(*arguments, **options)
            assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [3, 0, 70, 1], [256, 255, 600, 2], [], [0]])
def test_packed_sequences(lengths):
    rng = np.random.default_rng(13)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    fused = rng.standard_normal((offsets[-1], 3 * 48)).astype(np.float32)
    query, key, value = fused[:, :48], fused[:, 48:96], fused[:, 96:]
    expected = reference_ops.attention(*(a.astype(float) for a in (query, key, value)), offsets, 3)
    for count in (1, 2):
        with support.threads(count):
            got = ops("fast").attention(query, key, value, offsets, 3)
            np.testing.assert_allclose(got, expected, atol=3e-6)
            again = np.empty_like(got)
            assert ops("fast").attention(query, key, value, offsets, 3, out=again) is again
            np.testing.assert_array_equal(again, got)
            overlapping = fused.copy()
            first = overlapping[:, :48]
            ops("fast").attention(first, overlapping[:, 48:96], overlapping[:, 96:], offsets, 3, out=first)
            np.testing.assert_array_equal(first, got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes():
    x = np.random.default_rng(14).standard_normal((600, 32)).astype(np.float32)
    expected = fast.scaled_dot_product_attention(x, x, x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fast.scaled_dot_product_attention(x, x, x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_bad_input():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"key: expected shape \(4, 3\), got \(4, 2\)"):
        fast.scaled_dot_product_attention(x, np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"value: expected shape \(4, 2\), got \(5, 2\)"):
        fast.scaled_dot_product_attention(x, np.zeros((4, 3), np.float32), np.zeros((5, 2), np.float32))
    with pytest.raises(TypeError, match="mask: expected a boolean array"):
        fast.scaled_dot_product_attention(x, x, x, mask=np.ones((2, 2)))
    with pytest.raises(ValueError, match="mask: expected a shape that broadcasts"):
        fast.scaled_dot_product_attention(x, x, x, mask=np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="scale: expected a finite number > 0"):
        fast.scaled_dot_product_attention(x, x, x, scale=-1.0)
    with pytest.raises(TypeError, match="dtype float32 like query"):
        fast.scaled_dot_product_attention(x, x, x.astype(float))
    with pytest.raises(ValueError, match="heads: expected a divisor of 3 columns"):
        ops("fast").attention(x, x, x, [0, 2], 2)
    with pytest.raises(ValueError, match="offsets: expected ascending integers from 0 to 2"):
        ops("fast").attention(x, x, x, [0, 3], 1)


def test_examples():
    assert doctest.testmod(_core).failed == 0
