"""The int8 kernels: integers bit for bit, LLM.int8() against the reference."""

from __future__ import annotations

import doctest
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.quantizers as reference
import refnorm_fast.quantizers as fast
from refnorm_fast.quantizers import _core
from tests.fast import support


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def random_codes(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def layouts(codes):
    doubled = np.repeat(np.repeat(codes, 2, axis=0), 2, axis=1)
    shifted = np.concatenate([codes[:1, :1].ravel(), codes.ravel()])[1:].reshape(codes.shape)
    return (
        np.asfortranarray(codes), doubled[::2, ::2], codes[::-1, ::-1], support.read_only(codes), shifted,
        np.broadcast_to(codes[:1], codes.shape),
    )  # fmt: skip


def exact_product(a, b):
    return a.astype(np.int64) @ b.astype(np.int64).T


MANY = _core.FEW_ROWS + 5
"""Rows beyond which the other matrix is packed."""


@pytest.mark.parametrize("depth", [*support.TAILS, 1040, 1536])
@pytest.mark.parametrize("rows", [5, MANY])
def test_product_is_exact_for_every_tail_of_the_depth(depth, rows):
    rng = np.random.default_rng(depth)
    a, b = random_codes(rng, rows, depth), random_codes(rng, 43, depth)
    np.testing.assert_array_equal(fast.int8_matmul(a, b), exact_product(a, b))


@pytest.mark.parametrize("width", [*range(70), 127, 128, 129])
@pytest.mark.parametrize("rows", [9, MANY])
def test_product_is_exact_for_every_tail_of_the_columns(width, rows):
    rng = np.random.default_rng(width)
    a, b = random_codes(rng, rows, 70), random_codes(rng, width, 70)
    np.testing.assert_array_equal(fast.int8_matmul(a, b), exact_product(a, b))


@pytest.mark.parametrize("rows", [1, 6, MANY])
@pytest.mark.parametrize("at", [(0, 0), (12, 3), (17, 69)])
def test_the_code_without_a_counterpart_is_refused(rows, at):
    rng = np.random.default_rng(rows)
    a, b = random_codes(rng, rows, 70), random_codes(rng, 18, 70)
    b[at] = -128
    with pytest.raises(ValueError, match="b: expected values of at least -127, got -128"):
        fast.int8_matmul(a, b)


def test_product_is_exact_for_every_number_of_rows():
    rng = np.random.default_rng(0)
    a, b = random_codes(rng, 131, 70), random_codes(rng, 33, 70)
    whole = exact_product(a, b)
    for rows in support.TAILS:
        np.testing.assert_array_equal(fast.int8_matmul(a[:rows], b), whole[:rows])


@pytest.mark.parametrize("left", [-127, 127])
@pytest.mark.parametrize("right", [-127, 127])
def test_extreme_codes_do_not_saturate(left, right):
    a, b = np.full((6, 2048), left, np.int8), np.full((40, 2048), right, np.int8)
    assert (fast.int8_matmul(a, b) == left * right * 2048).all()


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_product_is_exact_on_any_shape(rows, depth, width, seed):
    rng = np.random.default_rng(seed)
    a, b = random_codes(rng, rows, depth), random_codes(rng, width, depth)
    got = fast.int8_matmul(a, b)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, exact_product(a, b))


def test_product_in_any_layout_and_out():
    rng = np.random.default_rng(1)
    a, b = random_codes(rng, 12, 24), random_codes(rng, 16, 24)
    for view in layouts(a):
        np.testing.assert_array_equal(fast.int8_matmul(view, b), exact_product(view, b))
    for view in layouts(b):
        np.testing.assert_array_equal(fast.int8_matmul(a, view), exact_product(a, view))
    for out in (np.empty((12, 16), np.int32), np.empty((24, 32), np.int32)[::-2, ::2]):
        assert fast.int8_matmul(a, b, out=out) is out
        np.testing.assert_array_equal(out, exact_product(a, b))
    shared = np.zeros(12 * 16 * 4, np.int8)
    codes = shared[: 12 * 24].reshape(12, 24)
    codes[...] = a
    fast.int8_matmul(codes, b, out=shared.view(np.int32).reshape(12, 16))
    np.testing.assert_array_equal(shared.view(np.int32).reshape(12, 16), exact_product(a, b))


@settings(max_examples=60)
@given(
    st.integers(0, 20), st.integers(0, 40), st.sampled_from([0.0, 1.0, 1.7, 6.0]), st.sampled_from(["elements", "columns"]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_codes_equal_the_reference_bit_for_bit(rows, depth, threshold, row_stats, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, depth)) * 10.0 ** rng.integers(-44, 3, (rows, 1))).astype(np.float32)
    # Ties of the rounding: halves of the codes of a row whose constant is 127.
    x[rows // 2 :] = (rng.integers(-254, 255, x[rows // 2 :].shape) / 2).astype(np.float32)
    got = fast.vectorwise_quantize(x, threshold=threshold, row_stats=row_stats)
    expected = reference.vectorwise_quantize(x, threshold=threshold, row_stats=row_stats)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_threshold_between_two_float32_is_compared_as_the_reference_does():
    x = np.array([[np.float32(0.1), 0.05]], np.float32)
    for threshold in (0.1, float(np.float32(0.1)), float(np.nextafter(np.float32(0.1), np.float32(1)))):
        got = fast.vectorwise_quantize(x, threshold=threshold)[2]
        np.testing.assert_array_equal(got, reference.vectorwise_quantize(x, threshold=threshold)[2])


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_absmax_codes_equal_the_reference(axis, dtype):
    x = np.random.default_rng(2).standard_normal((13, 70)).astype(dtype)
    x[3] = 0
    for name, view in support.layouts(x).items():
        got, expected = fast.absmax_quantize(view, axis=axis), reference.absmax_quantize(view, axis=axis)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("outlier_weights", ["dequantized", "float"])
@pytest.mark.parametrize("row_stats", ["elements", "columns"])
@pytest.mark.parametrize("threshold", [0.0, 1.5, 6.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 13, 5), (64, 384, 100), (3, 130, 17), (0, 5, 3), (5, 8, 0)])
def test_linear_follows_the_reference(shape, threshold, row_stats, outlier_weights):
    rows, depth, width = shape
    rng = np.random.default_rng(3)
    x = rng.standard_normal((rows, depth)).astype(np.float32) * 2
    if rows > 2:
        x[2, depth // 2], x[1] = 9, 0
    weight, bias = rng.standard_normal((depth, width)).astype(np.float32), rng.standard_normal(width).astype(np.float32)
    options = {"threshold": threshold, "row_stats": row_stats, "outlier_weights": outlier_weights, "w_float": weight}
    ours, theirs = fast.quantize_weight(weight), reference.quantize_weight(weight)
    for field in ("q", "scale", "col_sum"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    expected = reference.llm_int8_linear(x, theirs, bias, **options)
    # float32 after the exact integers: a few roundings of terms as large as the largest result, one an outlier column.
    scale = 1 + np.abs(expected).max(initial=0)
    for packed in (ours, theirs):
        got = fast.llm_int8_linear(x, packed, bias, **options)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * scale)
        out = np.empty_like(got)
        assert fast.llm_int8_linear(x, packed, bias, out=out, **options) is out
        np.testing.assert_array_equal(out, got)


@pytest.mark.parametrize("outlier_weights", ["dequantized", "float"])
@pytest.mark.parametrize("row_stats", ["elements", "columns"])
@pytest.mark.parametrize("rows", [0, 3, MANY])
def test_linear_in_float64_is_the_references_to_a_few_ulp(rows, row_stats, outlier_weights):
    rng = np.random.default_rng(13)
    x, weight, bias = rng.standard_normal((2, rows, 90)) * 2, rng.standard_normal((90, 33)), rng.standard_normal(33)
    x[..., 7] *= 9
    packed = reference.quantize_weight(weight)
    options = {"row_stats": row_stats, "outlier_weights": outlier_weights, "w_float": weight}
    for given_bias in (bias, None):
        expected = reference.llm_int8_linear(x, packed, given_bias, **options)
        got = fast.llm_int8_linear(x, packed, given_bias, **options)
        assert got.dtype == np.float64
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * (1 + np.abs(expected).max(initial=0)))
        out = np.empty(expected.shape)
        assert fast.llm_int8_linear(x, packed, given_bias, out=out, **options) is out
        np.testing.assert_array_equal(out, got)
    support.check_out(
        lambda x, **out: fast.llm_int8_linear(x, fast.quantize_weight(weight[:33]), **out), x[0, :, :33] + 0
    )


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("name", ["matmul_tensorwise", "matmul_rowwise", "matmul_vectorwise", "matmul_zeropoint"])
def test_products_of_two_float_matrices(name, dtype):
    rng = np.random.default_rng(14)
    for rows, depth, width in ((1, 1, 1), (3, 50, 7), (MANY, 130, 40)):
        x, weight = rng.standard_normal((rows, depth)).astype(dtype), rng.standard_normal((depth, width)).astype(dtype)
        x[0] *= 100
        weight[:, 0] += 3
        expected = getattr(reference, name)(x, weight)
        scale = np.abs(expected).max()
        for left, right in (
            (x, weight),
            (np.asfortranarray(x), weight[::-1].copy()[::-1]),
            (x, np.asfortranarray(weight)),
        ):
            got = getattr(fast, name)(left, right)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, expected, rtol=0, atol=4 * np.finfo(dtype).eps * scale)
    if name != "matmul_zeropoint":
        assert getattr(fast, name)(np.zeros((0, 3), dtype), np.ones((3, 2), dtype)).shape == (0, 2)
        np.testing.assert_array_equal(getattr(fast, name)(np.zeros((2, 3), dtype), np.ones((3, 2), dtype)), 0)
    for wrong in (
        (x, weight[1:]),
        (x[0], weight),
        (x, weight.astype(np.float16)),
        (x * np.nan, weight),
        (x, weight + np.inf),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            getattr(reference, name)(*wrong)
        with pytest.raises(error.type) as got_error:
            getattr(fast, name)(*wrong)
        assert str(got_error.value) == str(error.value)


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_activation_and_residual_follow_the_reference(dtype, with_residual, activation):
    rng = np.random.default_rng(16)
    for rows, depth, width in (
        (0, 3, 2),
        (1, 1, 1),
        (7, 13, 5),
        (13, 40, 31),
        (5, 33, 32),
        (6, 20, 65),
        (MANY, 50, 100),
    ):
        x, weight = rng.standard_normal((rows, depth)) * 3, rng.standard_normal((depth, width)) / np.sqrt(depth)
        x, weight, bias = x.astype(dtype), weight.astype(dtype), rng.standard_normal(width).astype(dtype)
        packed = fast.quantize_weight(weight)
        residual = rng.standard_normal((rows, width)).astype(dtype) if with_residual else None
        options = {"activation": activation, "residual": residual}
        expected = reference.llm_int8_linear(x, packed, bias, **options)
        got = fast.llm_int8_linear(x, packed, bias, **options)
        limit = (2e-6 if dtype == np.float32 else 1e-13) * (1 + np.abs(expected).max(initial=0))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
        if residual is None:
            continue
        shifted = (
            np.concatenate([residual.ravel()[:1], residual.ravel()])[1:].reshape(residual.shape) if rows else residual
        )
        for view in (
            np.asfortranarray(residual),
            np.repeat(residual, 2, axis=1)[:, ::2],
            support.read_only(residual),
            shifted,
        ):
            np.testing.assert_array_equal(
                fast.llm_int8_linear(x, packed, bias, activation=activation, residual=view), got
            )
        # Added to the residual where that stands, and to one that lies across `out`.
        place = residual.copy()
        assert fast.llm_int8_linear(x, packed, bias, activation=activation, residual=place, out=place) is place
        np.testing.assert_array_equal(place, got)
        room = np.empty((rows + 1, width), dtype)
        room[:-1] = residual
        fast.llm_int8_linear(x, packed, bias, activation=activation, residual=room[:-1], out=room[1:])
        np.testing.assert_array_equal(room[1:], got)


def test_hostile_residuals_and_no_terms():
    x, packed = np.ones((2, 3), np.float32), fast.quantize_weight(np.ones((3, 2), np.float32))
    residual = np.array([[np.nan, np.inf], [-np.inf, 1]], np.float32)
    for function in ("gelu", None):
        np.testing.assert_allclose(
            fast.llm_int8_linear(x, packed, activation=function, residual=residual),
            reference.llm_int8_linear(x, packed, activation=function, residual=residual),
            rtol=1e-6,
        )
    none = reference.quantize_weight(np.zeros((0, 2), np.float32))
    y = fast.llm_int8_linear(x[:, :0], none, activation="relu", residual=residual)
    np.testing.assert_array_equal(y, residual)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu"])
def test_pullback_with_activation_and_residual_follows_the_reference(activation, dtype):
    rng = np.random.default_rng(17)
    x, dy, residual = (rng.standard_normal((5, 4, n)).astype(dtype) for n in (30, 20, 20))
    weight, bias = rng.standard_normal((30, 20)).astype(dtype), rng.standard_normal(20).astype(dtype)
    packed = reference.quantize_weight(weight)
    for options in ({"residual": residual}, {}, {"residual": residual, "scale_gradient": True}):
        y, pullback = fast.llm_int8_linear_vjp(x, packed, bias, activation=activation, **options)
        expected, expected_pullback = reference.llm_int8_linear_vjp(x, packed, bias, activation=activation, **options)
        np.testing.assert_allclose(y, expected, atol=2e-5)
        for _ in range(2):
            for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
                assert got.dtype == dtype
                np.testing.assert_allclose(got, want, atol=1e-4)
        assert not any(np.shares_memory(part, dy) for part in pullback(dy))


@pytest.mark.parametrize("module", [fast, reference])
@pytest.mark.parametrize("dtype", support.DTYPES)
def test_errors_of_activation_and_residual(module, dtype):
    x, packed = np.ones((2, 3), dtype), fast.quantize_weight(np.ones((3, 2), dtype))
    other = np.float64 if dtype == np.float32 else np.float32
    for wrong, error in (
        ({"activation": "swish"}, ValueError),
        ({"residual": np.zeros(2, dtype)}, ValueError),
        ({"residual": np.zeros((2, 3), dtype)}, ValueError),
        ({"residual": np.zeros((2, 2), other)}, TypeError),
        ({"residual": np.zeros((2, 2), np.int64)}, TypeError),
        ({"activation": "gelu", "residual": np.zeros((3, 2), dtype)}, ValueError),
    ):
        for function in (module.llm_int8_linear, module.llm_int8_linear_vjp):
            with pytest.raises(error, match=list(wrong)[-1]):
                function(x, packed, **wrong)


@pytest.mark.parametrize("width", [*range(18), 31, 64, 65])
def test_transposed_operands_of_every_size(width):
    rng = np.random.default_rng(width)
    for rows, depth in ((3, 8), (9, 17), (MANY, 24)):
        a, b = random_codes(rng, depth, rows), random_codes(rng, depth, width)
        np.testing.assert_array_equal(fast.int8_matmul(a.T, b.T), exact_product(a.T, b.T))


def test_outliers_in_every_place_of_a_row():
    rng = np.random.default_rng(15)
    for depth in (*support.TAILS[1::5], 130):
        x = np.clip(rng.standard_normal((5, depth)), -2, 2).astype(np.float32)
        weight = rng.standard_normal((depth, 35)).astype(np.float32)
        packed = fast.quantize_weight(weight)
        for column in range(depth):
            hit = x.copy()
            hit[column % 5, column] = 7
            np.testing.assert_array_equal(fast.vectorwise_quantize(hit, threshold=6.0)[2], [column])
            if column % 7 == 0:
                expected = reference.llm_int8_linear(hit, packed)
                np.testing.assert_allclose(
                    fast.llm_int8_linear(hit, packed), expected, rtol=0, atol=1e-5 * (1 + depth / 8)
                )


def test_changed_codes_are_seen():
    rng = np.random.default_rng(4)
    x, weight = rng.standard_normal((4, 6)).astype(np.float32), rng.standard_normal((6, 3)).astype(np.float32)
    writeable = reference.quantize_weight(weight)
    before = fast.llm_int8_linear(x, writeable)
    writeable.q[...] = -writeable.q
    np.testing.assert_allclose(fast.llm_int8_linear(x, writeable), -before, atol=1e-6)


def test_out_may_overlap_x():
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((9, 8)).astype(np.float32), rng.standard_normal((8, 8)).astype(np.float32)
    packed = fast.quantize_weight(weight)
    support.check_out(lambda x, **out: fast.llm_int8_linear(x, packed, **out), x)
    support.check_out_errors(lambda x, **out: fast.llm_int8_linear(x, packed, **out), x)


def test_vjp_follows_the_reference():
    rng = np.random.default_rng(6)
    x, dy = rng.standard_normal((5, 4, 30)).astype(np.float32) * 2, rng.standard_normal((5, 4, 20)).astype(np.float32)
    weight, bias = rng.standard_normal((30, 20)).astype(np.float32), rng.standard_normal(20).astype(np.float32)
    packed = reference.quantize_weight(weight)
    for outlier_weights in ("dequantized", "float"):
        options = {"threshold": 5.0, "outlier_weights": outlier_weights, "w_float": weight}
        y, pullback = fast.llm_int8_linear_vjp(x, packed, bias, **options)
        expected, expected_pullback = reference.llm_int8_linear_vjp(x, packed, bias, **options)
        np.testing.assert_allclose(y, expected, atol=1e-4)
        for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_number_of_threads_changes_nothing():
    rng = np.random.default_rng(7)
    x, weight = (
        rng.standard_normal((333, 300)).astype(np.float32) * 3,
        rng.standard_normal((300, 200)).astype(np.float32),
    )
    packed = fast.quantize_weight(weight)
    results = []
    for count in (1, 2, 5):
        with support.threads(count):
            results.append((fast.llm_int8_linear(x, packed), fast.llm_int8_linear(x[:3], packed)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_eight_python_threads_at_once():
    rng = np.random.default_rng(8)
    b = random_codes(rng, 100, 200)
    inputs = [random_codes(rng, 97, 200) for _ in range(8)]
    wrong = []

    def work(index):
        expected = exact_product(inputs[index], b)
        for _ in range(20):
            if not np.array_equal(fast.int8_matmul(inputs[index], b), expected):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes():
    rng = np.random.default_rng(9)
    a, b = random_codes(rng, 300, 300), random_codes(rng, 300, 300)
    expected = fast.int8_matmul(a, b)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fast.int8_matmul(a, b), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_bad_input():
    codes = np.ones((2, 3), np.int8)
    with pytest.raises(TypeError, match="a: expected dtype int8, got int64"):
        fast.int8_matmul(np.ones((2, 3), int), codes)
    with pytest.raises(ValueError, match="b: expected values of at least -127, got -128"):
        fast.int8_matmul(codes, np.full((2, 3), -128, np.int8))
    with pytest.raises(ValueError, match=r"b: expected shape \(N, 3\) like a, got \(2, 4\)"):
        fast.int8_matmul(codes, np.ones((2, 4), np.int8))
    with pytest.raises(ValueError, match="at most 133144 terms"):
        fast.int8_matmul(np.zeros((1, 133145), np.int8), np.zeros((1, 133145), np.int8))
    x, packed = np.ones((2, 3), np.float32), fast.quantize_weight(np.ones((3, 4), np.float32))
    for value in support.SPECIAL:
        wrong = x.copy()
        wrong[1, 2] = value
        with pytest.raises(
            ValueError, match=r"x: expected finite values, got 1 that are not, the first at index \(1, 2\)"
        ):
            fast.llm_int8_linear(wrong, packed)
        with pytest.raises(ValueError, match="weight: expected finite values"):
            fast.quantize_weight(wrong)
    with pytest.raises(ValueError, match="threshold: expected a finite number >= 0"):
        fast.llm_int8_linear(x, packed, threshold=-1.0)
    with pytest.raises(ValueError, match="w_float: expected the float weights"):
        fast.llm_int8_linear(x, packed, outlier_weights="float")
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 3\) like weight.q"):
        fast.llm_int8_linear(np.ones((2, 5), np.float32), packed)
    with pytest.raises(TypeError, match="weight.scale: expected dtype float64 like x"):
        fast.llm_int8_linear(x.astype(float), packed)


def test_examples():
    assert doctest.testmod(_core).failed == 0
