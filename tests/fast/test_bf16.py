"""Matrix products in bfloat16 against the reference and against exact products of the rounded operands."""

from __future__ import annotations

import doctest
import inspect
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.quantizers as reference
import refnorm_fast.quantizers as fast
from refnorm.quantizers import Precision, round_bfloat16
from refnorm_fast.quantizers import _bf16
from tests.fast import support

BFLOAT16 = Precision("bfloat16", "float32", "float32")


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def rounded(x):
    """To 8 digits, ties to even, by a splitting that holds where nothing overflows or is subnormal."""
    if x.dtype == np.float64:
        spread = x * (2.0**45 + 1)
        return spread - (spread - x)
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def check(a, b):
    """Within half a unit of bfloat16, and what a float32 sum of that length may be off by.

    K additions with K roundings are off by at most K 2^-24 of the sum of magnitudes; random signs leave a few roots of
    K, for which 2^-24 (4 + K / 16) is room enough on the lengths tested.
    """
    got = fast.matmul_lowp(a, b, precision=BFLOAT16)
    assert got.dtype == a.dtype
    assert got.shape == (len(a), b.shape[1])
    left, right = (rounded(np.ascontiguousarray(m)).astype(np.float64) for m in (a, b))
    exact, size = left @ right, np.abs(left) @ np.abs(right)
    allowed = 2.0**-24 * (4 + a.shape[1] / 16) * size + a.shape[1] * 2.0**-126
    assert (np.abs(got - exact) <= 2.0**-8 * np.abs(exact) + 2 * allowed).all()
    np.testing.assert_array_equal(got, rounded(got))


def test_equal_to_the_reference_but_for_sums_near_the_middle():
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((90, 300)).astype(np.float32), rng.standard_normal((300, 70)).astype(np.float32)
    got, expected = fast.matmul_lowp(a, b, precision=BFLOAT16), reference.matmul_lowp(a, b, precision=BFLOAT16)
    assert (got == expected).mean() > 0.99
    # One number of bfloat16 apart at most: 2^-7 of it.
    np.testing.assert_allclose(got, expected, rtol=2.0**-7, atol=1e-5)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail(dtype):
    rng = np.random.default_rng(0)
    for size in support.TAILS:
        check(rng.standard_normal((3, size)).astype(dtype), rng.standard_normal((size, 5)).astype(dtype))
        check(rng.standard_normal((14, 9)).astype(dtype), rng.standard_normal((9, size)).astype(dtype))
        check(rng.standard_normal((size, 7)).astype(dtype), rng.standard_normal((7, 33)).astype(dtype))
    check(rng.standard_normal((150, 700)).astype(dtype), rng.standard_normal((700, 190)).astype(dtype))


def test_whole_numbers_are_exact():
    rng = np.random.default_rng(1)
    a, b = rng.integers(-3, 4, (60, 40)).astype(np.float32), rng.integers(-3, 4, (40, 50)).astype(np.float32)
    np.testing.assert_array_equal(fast.matmul_lowp(a, b, precision=BFLOAT16), round_bfloat16(a @ b))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_operands_are_rounded_once_to_even(dtype):
    hard = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-22, 257.0, 3.3895e38, 3.4e38, -(1 + 2.0**-8), 0.1, -0.0]
    if dtype == np.float64:
        # Just beside a tie: rounding to float32 first would make it one.
        hard += [1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, 1e300, 1e-300, 3.3961775292304604e38, 3.3961775e38]
    hard += [2.0**-126, 2.0**-127, 1e-40, 9.2e-41, 1e-45]
    x = np.array(hard, dtype)[:, None]
    with np.errstate(over="ignore"):
        expected = round_bfloat16(x)
    np.testing.assert_array_equal(fast.matmul_lowp(x, np.ones((1, 1), dtype), precision=BFLOAT16), expected)
    np.testing.assert_array_equal(fast.matmul_lowp(np.ones((1, 1), dtype), x.T, precision=BFLOAT16), expected.T)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_subnormal_operands_count(dtype):
    small = np.full((2, 3), 1e-39, dtype)
    large = np.full((3, 40), 1e38, dtype)
    np.testing.assert_array_equal(
        fast.matmul_lowp(small, large, precision=BFLOAT16), reference.matmul_lowp(small, large, precision=BFLOAT16)
    )
    np.testing.assert_array_equal(
        fast.matmul_lowp(large.T, small.T, precision=BFLOAT16),
        reference.matmul_lowp(large.T, small.T, precision=BFLOAT16),
    )


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_nan_and_infinity(dtype):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((30, 20)).astype(dtype), rng.standard_normal((20, 40)).astype(dtype)
    for value in support.SPECIAL:
        for place in ((a, (3, 4)), (b, (5, 37))):
            matrix, index = place
            kept, matrix[index] = matrix[index], value
            got = fast.matmul_lowp(a, b, precision=BFLOAT16)
            expected = reference.matmul_lowp(a, b, precision=BFLOAT16)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
            np.testing.assert_array_equal(np.isposinf(got), np.isposinf(expected))
            np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
            matrix[index] = kept
    large = np.full((2, 4), 3e38, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(
            fast.matmul_lowp(large, large.T, precision=BFLOAT16),
            reference.matmul_lowp(large, large.T, precision=BFLOAT16),
        )


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_layouts_and_out(dtype):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((40, 40)).astype(dtype), rng.standard_normal((40, 40)).astype(dtype)
    expected = fast.matmul_lowp(a, b, precision=BFLOAT16)
    for name, view in support.layouts(a).items():
        if "zero stride" not in name:
            np.testing.assert_array_equal(fast.matmul_lowp(view, b, precision=BFLOAT16), expected, err_msg=name)
    for name, view in support.layouts(b).items():
        plain = fast.matmul_lowp(a, view.copy(), precision=BFLOAT16)
        np.testing.assert_array_equal(fast.matmul_lowp(a, view, precision=BFLOAT16), plain, err_msg=name)
    for call in (
        lambda x, **out: fast.matmul_lowp(x, b, precision=BFLOAT16, **out),
        lambda x, **out: fast.matmul_lowp(b, x, precision=BFLOAT16, **out),
        lambda x, **out: fast.linear_lowp(x, b, b[0], precision=BFLOAT16, **out),
        lambda x, **out: fast.linear_lowp(x, b, b[0], **out),
    ):
        support.check_out(call, a)
        support.check_out_errors(call, a)


def test_number_of_threads_changes_nothing():
    rng = np.random.default_rng(4)
    for shape in ((1, 600, 700), (300, 200, 100), (97, 1000, 130)):
        a, b = rng.standard_normal(shape[:2]).astype(np.float32), rng.standard_normal(shape[1:]).astype(np.float32)
        results = []
        for count in (1, 2, 3):
            with support.threads(count):
                results.append(fast.matmul_lowp(a, b, precision=BFLOAT16))
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


@settings(max_examples=40)
@given(
    st.integers(0, 60), st.integers(0, 60), st.integers(0, 80), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_any_shape(rows, depth, width, wide, transposed, seed):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if wide else np.float32
    a, b = rng.standard_normal((rows, depth)).astype(dtype), rng.standard_normal((depth, width)).astype(dtype)
    if transposed:
        a, b = np.asfortranarray(a), np.asfortranarray(b)
    check(a, b)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_linear_and_vjp_follow_the_reference(dtype):
    """Whole numbers, whose sums are exact in float32 in any order: all roundings are the reference's."""
    rng = np.random.default_rng(5)
    x, weight = (rng.integers(-9, 10, shape).astype(dtype) for shape in ((20, 50), (30, 50)))
    bias, dy = rng.standard_normal(30).astype(dtype) * 100, rng.integers(-9, 10, (20, 30)).astype(dtype)
    for given_bias in (bias, None):
        y, pullback = fast.linear_lowp_vjp(x, weight, given_bias, precision=BFLOAT16)
        expected, expected_pullback = reference.linear_lowp_vjp(x, weight, given_bias, precision=BFLOAT16)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(fast.linear_lowp(x, weight, given_bias, precision=BFLOAT16), expected)
        for _ in range(2):
            for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
                assert (got is None) == (want is None)
                if want is not None:
                    assert got.dtype == want.dtype
                    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_stored_weights_are_the_layer_on_floats(dtype):
    """Bit for bit, whether packed once or at the call."""
    rng = np.random.default_rng(20)
    for rows, inputs, outputs in (
        (1, 1, 1),
        (1, 300, 70),
        (5, 33, 32),
        (13, 64, 31),
        (130, 200, 260),
        (0, 3, 2),
        (2, 0, 3),
    ):
        weight = rng.standard_normal((inputs, outputs)).astype(dtype)
        x, bias = rng.standard_normal((rows, inputs)).astype(dtype), rng.standard_normal(outputs).astype(dtype)
        stored = fast.round_weight_bfloat16(weight)
        np.testing.assert_array_equal(stored.bits, reference.round_weight_bfloat16(weight).bits)
        for shift in (bias, None):
            expected = fast.linear_lowp(x, weight.T, shift, precision=BFLOAT16)
            for _ in range(2):
                np.testing.assert_array_equal(fast.bfloat16_linear(x, stored, shift), expected)
            own = reference.Bfloat16Weight(stored.bits.copy())
            np.testing.assert_array_equal(fast.bfloat16_linear(x, own, shift), expected)
            # Rows that do not follow one another, and bits that do not.
            apart = np.repeat(x, 2, axis=1)[:, ::2]
            np.testing.assert_array_equal(fast.bfloat16_linear(apart, stored, shift), expected)
            columns = reference.Bfloat16Weight(np.asfortranarray(stored.bits))
            np.testing.assert_array_equal(fast.bfloat16_linear(x, columns, shift), expected)
    cube = rng.standard_normal((2, 3, 40)).astype(dtype)
    stored = fast.round_weight_bfloat16(rng.standard_normal((40, 6)).astype(dtype))
    np.testing.assert_array_equal(
        fast.bfloat16_linear(cube, stored), fast.bfloat16_linear(cube.reshape(6, 40), stored).reshape(2, 3, 6)
    )
    square = fast.round_weight_bfloat16(rng.standard_normal((40, 40)).astype(dtype))
    x, bias = rng.standard_normal((40, 40)).astype(dtype), rng.standard_normal(40).astype(dtype)
    support.check_out(lambda x, **out: fast.bfloat16_linear(x, square, bias, **out), x)
    support.check_out_errors(lambda x, **out: fast.bfloat16_linear(x, square, bias, **out), x)


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_subnormal_numbers_of_stored_weights_and_of_rows(dtype):
    small, large = np.full((3, 3), 1e-39, dtype), np.full((3, 3), 1e38, dtype)
    for x, weight in ((small, large), (large, small)):
        stored = fast.round_weight_bfloat16(weight)
        got = fast.bfloat16_linear(x, stored, np.ones(3, dtype))
        np.testing.assert_array_equal(got, reference.bfloat16_linear(x, stored, np.ones(3, dtype)))
        assert (got > 1).all()


def test_stored_weights_on_threads_and_through_the_vjp():
    rng = np.random.default_rng(21)
    weight = rng.integers(-9, 10, (120, 300)).astype(np.float32)
    stored = fast.round_weight_bfloat16(weight)
    for rows in (1, 14, 200):
        x, dy = (
            rng.integers(-9, 10, (rows, 120)).astype(np.float32),
            rng.integers(-9, 10, (rows, 300)).astype(np.float32),
        )
        results = []
        for count in (1, 2, 3):
            with support.threads(count):
                results.append(fast.bfloat16_linear(x, stored))
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])
        for shift in (weight[0, :1].repeat(300), None):
            own = reference.Bfloat16Weight(stored.bits.copy())
            y, pullback = fast.bfloat16_linear_vjp(x, own, shift)
            expected, expected_pullback = reference.bfloat16_linear_vjp(x, stored, shift)
            own.bits[...] = 0
            np.testing.assert_array_equal(y, expected)
            for _ in range(2):
                for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
                    np.testing.assert_array_equal(got, want)


def test_same_errors_for_stored_weights():
    stored = reference.round_weight_bfloat16(np.ones((3, 2), np.float32))
    x = np.ones((2, 3), np.float32)
    for arguments in (
        (x[:, 1:], stored),
        (x.astype(int), stored),
        (np.float32(1), stored),
        (x, stored, np.ones(3, np.float32)),
        (x, stored, np.ones(2)),
        (x, reference.Bfloat16Weight(stored.bits.astype(np.int16))),
        (x, reference.Bfloat16Weight(stored.bits[0])),
    ):
        for name in ("bfloat16_linear", "bfloat16_linear_vjp"):
            with pytest.raises((TypeError, ValueError)) as expected:
                getattr(reference, name)(*arguments)
            with pytest.raises(expected.type) as got:
                getattr(fast, name)(*arguments)
            assert str(got.value) == str(expected.value)


def test_few_rows_of_every_depth_are_the_rows_of_many():
    """Right operands are read in another way then, but summed in the same order."""
    rng = np.random.default_rng(22)
    for depth in (*range(1, 20), 700):
        for width in (32, 96, 2080):
            b = rng.standard_normal((depth, width)).astype(np.float32)
            a = rng.standard_normal((40, depth)).astype(np.float32)
            whole = fast.matmul_lowp(a, b, precision=BFLOAT16)
            for rows in (1, 3, 4, 5, 16, 17):
                np.testing.assert_array_equal(fast.matmul_lowp(a[:rows], b, precision=BFLOAT16), whole[:rows])
    a, b = np.full((2, 12), 1e38, np.float32), np.full((12, 64), 1e-39, np.float32)
    np.testing.assert_array_equal(
        fast.matmul_lowp(a, b, precision=BFLOAT16), reference.matmul_lowp(a, b, precision=BFLOAT16)
    )


def test_other_precisions_are_the_references():
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((7, 9)), rng.standard_normal((9, 5))
    for precision in (
        Precision(),
        Precision("bfloat16", "bfloat16", "float32"),
        Precision("bfloat16", "float32", "bfloat16"),
    ):
        for order in ("sequential", "lanes", "pairwise"):
            np.testing.assert_array_equal(
                fast.matmul_lowp(a, b, precision=precision, order=order),
                reference.matmul_lowp(a, b, precision=precision, order=order),
            )
        np.testing.assert_array_equal(
            fast.linear_lowp(a, b.T, precision=precision), reference.linear_lowp(a, b.T, precision=precision)
        )
        for got, want in zip(
            fast.linear_lowp_vjp(a, b.T, b[0], precision=precision)[1](np.ones((7, 5))),
            reference.linear_lowp_vjp(a, b.T, b[0], precision=precision)[1](np.ones((7, 5))),
            strict=True,
        ):
            np.testing.assert_array_equal(got, want)
    fused = Precision("bfloat16", "bfloat16", "float32")
    got = fast.matmul_lowp(a, b, precision=fused, fused=True)
    np.testing.assert_array_equal(got, fast.matmul_lowp(a, b, precision=BFLOAT16))


def test_eight_python_threads_at_once():
    rng = np.random.default_rng(7)
    b = rng.standard_normal((256, 100)).astype(np.float32)
    inputs = [rng.standard_normal((1 + 5 * index, 256)).astype(np.float32) for index in range(8)]
    expected = [fast.matmul_lowp(a, b, precision=BFLOAT16) for a in inputs]
    wrong = []

    def work(index):
        for _ in range(20):
            if not np.array_equal(fast.matmul_lowp(inputs[index], b, precision=BFLOAT16), expected[index]):
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
    rng = np.random.default_rng(8)
    a = rng.standard_normal((300, 300)).astype(np.float32)
    expected = fast.matmul_lowp(a, a, precision=BFLOAT16)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fast.matmul_lowp(a, a, precision=BFLOAT16), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_same_errors_as_the_reference():
    x, weight = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    calls = [
        ("matmul_lowp", (x, weight), {}),
        ("matmul_lowp", (x, weight.T.astype(float)), {}),
        ("matmul_lowp", (x, weight[0]), {}),
        ("matmul_lowp", (x.astype(int), weight.T), {}),
        ("matmul_lowp", (x, weight.T), {"order": "random"}),
        ("linear_lowp", (x, weight[:, 1:]), {}),
        ("linear_lowp", (x, weight.astype(float)), {}),
        ("linear_lowp", (x, weight, np.ones(3, np.float32)), {}),
        ("linear_lowp", (x, weight, np.ones(4)), {}),
        ("linear_lowp_vjp", (x[0], weight), {}),
    ]
    for name, arguments, options in calls:
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name)(*arguments, precision=BFLOAT16, **options)
        with pytest.raises(expected.type) as got:
            getattr(fast, name)(*arguments, precision=BFLOAT16, **options)
        assert str(got.value) == str(expected.value)


def test_signatures_and_examples():
    names = ("matmul_lowp", "linear_lowp", "linear_lowp_vjp")
    for name in (*names, "round_weight_bfloat16", "bfloat16_linear", "bfloat16_linear_vjp"):
        expected = inspect.signature(getattr(reference, name)).parameters
        got = {key: one for key, one in inspect.signature(getattr(fast, name)).parameters.items() if key != "out"}
        assert [(key, one.kind, one.default) for key, one in got.items()] == [
            (key, one.kind, one.default) for key, one in expected.items()
        ]
    assert doctest.testmod(_bf16).failed == 0
