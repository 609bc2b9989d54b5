"""The packed float32 product with what is fused to it, through linear layers of nn and of the encoder."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refnorm.nn as reference
import refnorm_fast.nn as fast
from refnorm.models import reference_ops
from refnorm_fast.models import ops
from tests.fast import support


def tolerance(depth):
    """Bound on the error of float32 sums of ``depth`` products with partial sums up to about 4.

    Each addition is off by at most half an ULP, 2^-24 relatively; the errors add up like a random walk, of which four
    standard deviations are allowed. 1e-6 is for the bias and the activation.
    """
    return 4 * 2.0**-24 * 4 / 3**0.5 * depth**0.5 + 1e-6


@pytest.fixture(params=support.ISAS, autouse=True)
def isa(request):
    with support.using_isa(request.param):
        yield request.param


def layer(rng, depth, width):
    weight = (rng.standard_normal((depth, width)) / max(depth, 1) ** 0.5).astype(np.float32)
    return weight, rng.standard_normal(width).astype(np.float32)


def wide(*arrays):
    return tuple(array.astype(np.float64) for array in arrays)


@pytest.mark.parametrize("width", [*range(1, 34), 63, 64, 65, 95, 96, 97])
def test_every_tail_of_the_columns(width):
    rng = np.random.default_rng(width)
    weight, bias = layer(rng, 37, width)
    x = rng.standard_normal((26, 37)).astype(np.float32)
    np.testing.assert_allclose(
        fast.linear(x, weight, bias), reference.linear(*wide(x, weight, bias)), atol=tolerance(x.shape[1])
    )


def test_every_tail_of_the_rows_and_rows_do_not_depend_on_each_other():
    rng = np.random.default_rng(0)
    weight, bias = layer(rng, 70, 40)
    handle = ops("fast").prepare_linear(weight, bias)
    x = rng.standard_normal((131, 70)).astype(np.float32)
    whole = ops("fast").linear(x, handle)
    np.testing.assert_allclose(whole, reference.linear(*wide(x, weight, bias)), atol=tolerance(x.shape[1]))
    for rows in support.TAILS:
        np.testing.assert_array_equal(ops("fast").linear(x[:rows], handle), whole[:rows])


@pytest.mark.parametrize("depth", [0, 1, 2, 383, 384, 385, 769, 1536])
def test_depth_blocks(depth):
    rng = np.random.default_rng(depth)
    weight, bias = layer(rng, depth, 50)
    x = rng.standard_normal((30, depth)).astype(np.float32)
    handle = ops("fast").prepare_linear(weight, bias)
    for act in (None, "gelu", "gelu_tanh", "relu"):
        expected = reference_ops.linear(x.astype(float), wide(weight, bias), activation=act)
        np.testing.assert_allclose(ops("fast").linear(x, handle, activation=act), expected, atol=tolerance(depth))


def test_number_of_threads_changes_nothing():
    rng = np.random.default_rng(1)
    weight, bias = layer(rng, 300, 200)
    handle = ops("fast").prepare_linear(weight, bias)
    gain, shift = rng.standard_normal((2, 200)).astype(np.float32)
    for rows in (1, 5, 40, 333):
        x = rng.standard_normal((rows, 300)).astype(np.float32)
        residual = rng.standard_normal((rows, 200)).astype(np.float32)
        results = []
        for count in (1, 2, 3, 7):
            with support.threads(count):
                results.append(
                    (
                        ops("fast").linear(x, handle),
                        ops("fast").linear_residual_norm(x, handle, residual, gain, shift, eps=1e-5),
                    )
                )
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.booleans(), st.integers(0, 2**32 - 1))
def test_linear_equals_the_reference_on_any_shape(rows, depth, width, with_bias, seed):
    rng = np.random.default_rng(seed)
    weight, bias = layer(rng, depth, width)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    given_bias = bias if with_bias else None
    expected = reference.linear(*wide(x, weight), None if given_bias is None else bias.astype(float))
    np.testing.assert_allclose(fast.linear(x, weight, given_bias), expected, atol=tolerance(depth))


def test_layouts_and_out():
    rng = np.random.default_rng(2)
    weight, bias = layer(rng, 32, 32)
    x = rng.standard_normal((40, 32)).astype(np.float32)
    expected = fast.linear(x, weight, bias)
    for name, view in support.layouts(x).items():
        np.testing.assert_array_equal(
            fast.linear(view, weight, bias), fast.linear(view.copy(), weight, bias), err_msg=name
        )
    for name, view in support.layouts(weight).items():
        np.testing.assert_array_equal(fast.linear(x, view, bias), fast.linear(x, view.copy(), bias), err_msg=name)
    support.check_out(lambda x, **out: fast.linear(x, weight, bias, **out), x)
    support.check_out_errors(lambda x, **out: fast.linear(x, weight, bias, **out), x)
    np.testing.assert_array_equal(fast.linear(x.reshape(5, 8, 32), weight, bias).reshape(40, 32), expected)


def test_nan_and_infinity_stay_in_their_row():
    rng = np.random.default_rng(3)
    weight, bias = layer(rng, 50, 40)
    x = rng.standard_normal((30, 50)).astype(np.float32)
    expected = fast.linear(x, weight, bias)
    x[4, 7], x[9, 0] = np.nan, np.inf
    got = fast.linear(x, weight, bias)
    assert np.isnan(got[4]).all()
    assert not np.isfinite(got[9]).any()
    others = np.delete(np.arange(30), [4, 9])
    np.testing.assert_array_equal(got[others], expected[others])


def test_linear_vjp_follows_the_reference():
    rng = np.random.default_rng(4)
    weight, bias = layer(rng, 20, 30)
    x, dy = rng.standard_normal((3, 11, 20)).astype(np.float32), rng.standard_normal((3, 11, 30)).astype(np.float32)
    y, pullback = fast.linear_vjp(x, weight, bias)
    expected, expected_pullback = reference.linear_vjp(x, weight, bias)
    np.testing.assert_allclose(y, expected, atol=tolerance(20))
    for got, want in zip(pullback(dy), expected_pullback(dy), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_eight_python_threads_at_once():
    rng = np.random.default_rng(5)
    weight, bias = layer(rng, 200, 100)
    handle = ops("fast").prepare_linear(weight, bias)
    inputs = [rng.standard_normal((97, 200)).astype(np.float32) for _ in range(8)]
    expected = [ops("fast").linear(x, handle) for x in inputs]
    wrong = []

    def work(index):
        for _ in range(20):
            if not np.array_equal(ops("fast").linear(inputs[index], handle), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_bad_input():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"x: expected shape \(2, 4\), got \(2, 3\)"):
        fast.linear(x, np.zeros((4, 5), np.float32))
    with pytest.raises(TypeError, match="dtype float32 like x"):
        fast.linear(x, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"bias: expected shape \(5,\)"):
        fast.linear(x, np.zeros((3, 5), np.float32), np.zeros(4, np.float32))
    with pytest.raises(TypeError, match="x: expected a float32 or float64 array"):
        fast.linear(np.zeros((2, 3), int), np.zeros((3, 5)))
