"""Linear layers on 4-bit weights against the reference."""

from __future__ import annotations

import dataclasses
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
from refnorm.quantizers import quantize_weight_int4
from refnorm_fast.quantizers import _int4
from tests.fast import support

GROUPS = (1, 5, 8, 16, 24, 32, 64, 96, 128, 256, 10000)


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def layer(rng, inputs, outputs, group_size, dtype=np.float32):
    return quantize_weight_int4(rng.standard_normal((inputs, outputs)).astype(dtype), group_size=group_size)


def check(x, weight, bias=None):
    """Within 2^-22 (2^-50 in float64) of what the magnitudes of all terms add up to.

    Two roundings of a weight or an input and one of each product are 2^-22 together; sums add errors like a random walk
    of the length of a lane's chain, which is short beside what adding up magnitudes allows.
    """
    got = fast.int4_linear(x, weight, bias)
    expected = reference.int4_linear(
        x.astype(np.float64), in_float64(weight), None if bias is None else bias.astype(float)
    )
    assert got.dtype == x.dtype
    assert got.shape == expected.shape
    size = np.abs(x).astype(np.float64) @ np.abs(reference.dequantize_weight_int4(weight))
    # A block of inputs may be rounded to 2^-24 of its largest: the other inputs' share of that.
    largest = np.abs(x).max(axis=-1, initial=0)[..., None].astype(np.float64)
    size = size + largest * np.abs(reference.dequantize_weight_int4(weight)).sum(axis=0) / 4
    if bias is not None:
        size = size + np.abs(bias)
    unit = 2.0**-22 if x.dtype == np.float32 else 2.0**-50
    # Products below the normal numbers are rounded to multiples of the smallest subnormal.
    least = x.shape[-1] * float(np.finfo(x.dtype).smallest_subnormal)
    assert (np.abs(got - expected) <= unit * size + least).all()


def check_8_bits(x, weight, bias=None):
    """Within 2^-21 of what the magnitudes add up to: an input is rounded to its code, a code to its place, a product is.

    Kept and given weights are one function: the first are packed, the second are not.
    """
    arguments = (x, weight, bias)
    got = fast.int4_linear(*arguments, activations="int8")
    again = fast.int4_linear(x, dataclasses.replace(weight, q=weight.q.copy()), bias, activations="int8")
    expected = reference.int4_linear(*arguments, activations="int8")
    assert got.dtype == x.dtype
    assert got.shape == expected.shape
    largest = np.abs(x).max(axis=-1, initial=0)[..., None].astype(np.float64)
    size = largest * np.abs(reference.dequantize_weight_int4(weight)).sum(axis=0)
    if bias is not None:
        size = size + np.abs(bias)
    unit = 2.0**-21 if x.dtype == np.float32 else 2.0**-50
    least = x.shape[-1] * float(np.finfo(x.dtype).smallest_subnormal) * 2
    assert (np.abs(got - expected) <= unit * size + least).all()
    assert (np.abs(again - expected) <= unit * size + least).all()


def kept(rng, inputs, outputs, group_size, dtype=np.float32):
    return fast.quantize_weight_int4(rng.standard_normal((inputs, outputs)).astype(dtype), group_size=group_size)


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("group_size", GROUPS)
def test_8_bit_activations_of_every_group_and_number_of_rows(group_size, dtype):
    rng = np.random.default_rng(20)
    for inputs, outputs in ((1, 1), (8, 3), (127, 33), (300, 40), (1027, 9)):
        weight, bias = kept(rng, inputs, outputs, group_size, dtype), rng.standard_normal(outputs).astype(dtype)
        for rows in (1, 2, 3, 7, 8, 9, 15):
            check_8_bits(rng.standard_normal((rows, inputs)).astype(dtype), weight, bias)
    check_8_bits(rng.standard_normal((270, 600)).astype(dtype), kept(rng, 600, 70, group_size, dtype))
    check_8_bits(rng.standard_normal((2, 3, 300)).astype(dtype), kept(rng, 300, 5, group_size, dtype))


@pytest.mark.parametrize("group_size", [16, 24, 128])
def test_hostile_8_bit_activations(group_size):
    rng = np.random.default_rng(21)
    weight = kept(rng, 256, 40, group_size)
    for rows in (1, 20):
        for value in support.HOSTILE:
            x = np.full((rows, 256), value / 1024, np.float32)
            check_8_bits(x, weight)
            x[0, ::3] = 0
            check_8_bits(x, weight)
    for value in support.SPECIAL:
        x = np.ones((9, 256), np.float32)
        x[7, 200] = value
        with pytest.raises(ValueError, match="x: expected finite values"):
            fast.int4_linear(x, weight, activations="int8")
    zero_point = rng.integers(0, 256, weight.zero_point.shape, dtype=np.uint8)
    any_code = dataclasses.replace(
        weight, q=rng.integers(0, 256, weight.q.shape, dtype=np.uint8), zero_point=zero_point
    )
    for rows in (1, 9):
        check_8_bits(rng.standard_normal((rows, 256)).astype(np.float32), any_code)


def test_8_bit_activations_on_any_number_of_threads():
    rng = np.random.default_rng(22)
    for group_size in (32, 40, 128):
        for weight in (kept(rng, 520, 301, group_size), layer(rng, 520, 301, group_size)):
            for rows in (1, 5, 40):
                x = rng.standard_normal((rows, 520)).astype(np.float32)
                results = []
                for count in (1, 2, 3):
                    with support.threads(count):
                        results.append(fast.int4_linear(x, weight, activations="int8"))
                for other in results[1:]:
                    np.testing.assert_array_equal(other, results[0])


def test_a_packed_weight_is_not_taken_for_another():
    rng = np.random.default_rng(23)
    weight, x = kept(rng, 256, 40, 64), rng.standard_normal((3, 256)).astype(np.float32)
    first = fast.int4_linear(x, weight, activations="int8")
    assert not weight.q.flags.writeable
    other = dataclasses.replace(weight, q=np.zeros_like(weight.q))
    assert not np.array_equal(fast.int4_linear(x, other, activations="int8"), first)
    np.testing.assert_array_equal(fast.int4_linear(x, weight, activations="int8"), first)
    for view in (np.asfortranarray(weight.q), np.repeat(weight.q, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(
            fast.int4_linear(x, dataclasses.replace(weight, q=view), activations="int8"),
            fast.int4_linear(x, dataclasses.replace(weight, q=weight.q.copy()), activations="int8"),
        )


def test_quantize_weight_is_the_references():
    rng = np.random.default_rng(24)
    weight = rng.standard_normal((50, 7)).astype(np.float32)
    for method in ("minmax", "mse"):
        got = fast.quantize_weight_int4(weight, group_size=16, method=method)
        expected = quantize_weight_int4(weight, group_size=16, method=method)
        for name in ("q", "scale", "zero_point"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    with pytest.raises(ValueError, match="group_size: expected an integer >= 1"):
        fast.quantize_weight_int4(weight, group_size=0)


def in_float64(weight):
    return dataclasses.replace(weight, scale=weight.scale.astype(np.float64))


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("group_size", GROUPS)
def test_every_tail_of_the_inputs(group_size, dtype):
    rng = np.random.default_rng(group_size)
    for inputs in (*support.TAILS[1::3], 255, 256, 257, 300):
        weight = layer(rng, inputs, 5, group_size, dtype)
        check(rng.standard_normal((3, inputs)).astype(dtype), weight, rng.standard_normal(5).astype(dtype))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_every_tail_of_the_outputs_and_rows(dtype):
    rng = np.random.default_rng(1)
    for outputs in (*range(36), 63, 64, 65, 127, 129):
        check(rng.standard_normal((14, 70)).astype(dtype), layer(rng, 70, outputs, 32, dtype))
    for group_size in (32, 128):
        weight = layer(rng, 300, 40, group_size, dtype)
        for rows in (*range(27), 49):
            check(rng.standard_normal((rows, 300)).astype(dtype), weight, rng.standard_normal(40).astype(dtype))


@pytest.mark.parametrize("group_size", [24, 32, 128])
def test_hostile_numbers(group_size):
    rng = np.random.default_rng(2)
    weight = layer(rng, 256, 9, group_size)
    for rows in (1, 2, 20):
        for value in support.HOSTILE:
            if abs(value) > 1e35:
                continue  # sums overflow
            x = rng.standard_normal((rows, 256)).astype(np.float32)
            x[0, ::3] = value
            check(x, weight)
            check(np.full((rows, 256), value, np.float32), weight)
        check(np.zeros((rows, 256), np.float32), weight)


@pytest.mark.parametrize("group_size", [24, 32, 128])
def test_nan_and_infinity_stay_in_their_row(group_size):
    rng = np.random.default_rng(3)
    weight = layer(rng, 130, 21, group_size)
    for rows in (3, 30):
        x = rng.standard_normal((rows, 130)).astype(np.float32)
        x[1, 129] = np.nan
        x[2, 4] = np.inf
        got = fast.int4_linear(x, weight)
        with np.errstate(invalid="ignore"):
            expected = reference.int4_linear(x, weight)
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[2], expected[2])


def test_zero_points_and_codes_of_any_value():
    rng = np.random.default_rng(4)
    for group_size in (32, 128):
        weight = layer(rng, 256, 12, group_size)
        zero_point = rng.integers(0, 256, weight.zero_point.shape, dtype=np.uint8)
        q = rng.integers(0, 256, weight.q.shape, dtype=np.uint8)
        check(rng.standard_normal((2, 256)).astype(np.float32), dataclasses.replace(weight, q=q, zero_point=zero_point))


@pytest.mark.parametrize("dtype", support.DTYPES)
def test_number_of_threads_changes_nothing(dtype):
    rng = np.random.default_rng(5)
    for group_size in (32, 40, 128):
        weight = layer(rng, 520, 301, group_size, dtype)
        for rows in (1, 5, 40):
            x = rng.standard_normal((rows, 520)).astype(dtype)
            results = []
            for count in (1, 2, 3):
                with support.threads(count):
                    results.append(fast.int4_linear(x, weight))
            for other in results[1:]:
                np.testing.assert_array_equal(other, results[0])


def test_layouts_and_out():
    rng = np.random.default_rng(6)
    for dtype in support.DTYPES:
        weight, bias = layer(rng, 33, 33, 16, dtype), rng.standard_normal(33).astype(dtype)
        x = rng.standard_normal((40, 33)).astype(dtype)
        for name, view in support.layouts(x).items():
            np.testing.assert_array_equal(
                fast.int4_linear(view, weight, bias), fast.int4_linear(view.copy(), weight, bias), err_msg=name
            )
        for field in ("q", "scale", "zero_point"):
            part = getattr(weight, field)
            views = [np.asfortranarray(part), np.repeat(part, 2, axis=1)[:, ::2], part[::-1].copy()[::-1]]
            for view in [*views, support.read_only(part), *([support.misaligned(part)] if field == "scale" else [])]:
                np.testing.assert_array_equal(
                    fast.int4_linear(x, dataclasses.replace(weight, **{field: view}), bias),
                    fast.int4_linear(x, weight, bias),
                )
        support.check_out(lambda x, **out: fast.int4_linear(x, weight, bias, **out), x)  # noqa: B023
        support.check_out_errors(lambda x, **out: fast.int4_linear(x, weight, bias, **out), x)  # noqa: B023
        support.check_out(lambda x, **out: fast.int4_linear(x, weight, bias, activations="int8", **out), x)  # noqa: B023
        whole = fast.int4_linear(x, weight, bias)
        np.testing.assert_array_equal(fast.int4_linear(x.reshape(5, 8, 33), weight, bias).reshape(40, 33), whole)
        assert fast.int4_linear(x[0], weight).shape == (33,)


@settings(max_examples=40)
@given(
    st.integers(0, 30),
    st.integers(1, 300),
    st.integers(0, 70),
    st.integers(1, 300),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_reference_on_any_shape(rows, inputs, outputs, group_size, wide, seed):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if wide else np.float32
    weight = layer(rng, inputs, outputs, group_size, dtype)
    scale = 10.0 ** rng.integers(-3, 4, (rows, 1))
    check(
        (scale * rng.standard_normal((rows, inputs))).astype(dtype), weight, rng.standard_normal(outputs).astype(dtype)
    )


@pytest.mark.parametrize("dtype", support.DTYPES)
@pytest.mark.parametrize("group_size", [7, 32, 128, 300])
def test_vjp_follows_the_reference(group_size, dtype):
    rng = np.random.default_rng(7)
    weight, bias = layer(rng, 300, 30, group_size, dtype), rng.standard_normal(30).astype(dtype)
    x, dy = rng.standard_normal((2, 5, 300)).astype(dtype), rng.standard_normal((2, 5, 30)).astype(dtype)
    changing = dataclasses.replace(weight, q=weight.q.copy())
    y, pullback = fast.int4_linear_vjp(x, changing, bias)
    expected, expected_pullback = reference.int4_linear_vjp(x, weight, bias)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(y, expected, atol=tolerance)
    changing.q[...] = 0
    for _ in range(2):
        for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, atol=tolerance)
    assert fast.int4_linear_vjp(x, weight)[1](dy)[1] is None
    y, pullback = fast.int4_linear_vjp(x, weight, bias, activations="int8")
    np.testing.assert_array_equal(y, fast.int4_linear(x, weight, bias, activations="int8"))
    for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance)
    empty = layer(rng, 3, 0, 2, dtype)
    assert fast.int4_linear_vjp(x[..., :3], empty)[1](dy[..., :0])[0].shape == (2, 5, 3)


def test_pullback_in_blocks_of_outputs(monkeypatch):
    rng = np.random.default_rng(8)
    weight = layer(rng, 50, 37, 32)
    x, dy = rng.standard_normal((4, 50)).astype(np.float32), rng.standard_normal((4, 37)).astype(np.float32)
    monkeypatch.setattr(_int4, "DEQUANTIZED", 300)
    np.testing.assert_allclose(
        fast.int4_linear_vjp(x, weight)[1](dy)[0], reference.int4_linear_vjp(x, weight)[1](dy)[0], atol=2e-5
    )


def test_eight_python_threads_at_once():
    rng = np.random.default_rng(9)
    weight = layer(rng, 256, 100, 128)
    inputs = [rng.standard_normal((1 + 5 * index, 256)).astype(np.float32) for index in range(8)]
    expected = [fast.int4_linear(x, weight) for x in inputs]
    wrong = []

    def work(index):
        for _ in range(20):
            if not np.array_equal(fast.int4_linear(inputs[index], weight), expected[index]):
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
    rng = np.random.default_rng(10)
    weight, x = layer(rng, 512, 512, 128), rng.standard_normal((40, 512)).astype(np.float32)
    expected = fast.int4_linear(x, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fast.int4_linear(x, weight), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_same_errors_as_the_reference():
    rng = np.random.default_rng(11)
    weight = layer(rng, 7, 4, 3)
    x = np.ones((2, 7), np.float32)
    calls = [
        (x[:, :6], weight, None),
        (x.astype(np.float64), weight, None),
        (x.astype(int), weight, None),
        (np.float32(1), weight, None),
        (x, weight, np.ones(3, np.float32)),
        (x, weight, np.ones(4)),
        (x, dataclasses.replace(weight, q=weight.q.astype(np.int8)), None),
        (x, dataclasses.replace(weight, q=weight.q[:, 1:]), None),
        (x, dataclasses.replace(weight, scale=weight.scale[:, 1:]), None),
        (x, dataclasses.replace(weight, zero_point=weight.zero_point[1:]), None),
        (x, dataclasses.replace(weight, group_size=0), None),
    ]
    for function in (reference.int4_linear, fast.int4_linear):
        with pytest.raises(ValueError, match="activations: expected one of 'float', 'int8', got 'int16'"):
            function(x, weight, activations="int16")
    for arguments in calls:
        for name in ("int4_linear", "int4_linear_vjp"):
            with pytest.raises((TypeError, ValueError)) as expected:
                getattr(reference, name)(*arguments)
            with pytest.raises(expected.type) as got:
                getattr(fast, name)(*arguments)
            assert str(got.value) == str(expected.value)


def test_signatures_and_examples():
    for name in ("int4_linear", "int4_linear_vjp"):
        expected = list(inspect.signature(getattr(reference, name)).parameters)
        assert [each for each in inspect.signature(getattr(fast, name)).parameters if each != "out"] == expected
    assert doctest.testmod(_int4).failed == 0
