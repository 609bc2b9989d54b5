import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.quantizers import (
    affine_qparams,
    dequantize_weight_int4,
    fake_quantize,
    int4_linear,
    quantize_weight_int4,
)

RNG = np.random.default_rng(7)
WEIGHT = quantize_weight_int4(RNG.standard_normal((7, 4)), group_size=3)


@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(1, 20), st.sampled_from(["minmax", "mse"]), st.integers(0, 99)
)
def test_every_group_is_the_affine_quantizer_of_its_weights(inputs, outputs, group_size, method, seed):
    weight = np.random.default_rng(seed).standard_normal((inputs, outputs))
    packed = quantize_weight_int4(weight, group_size=group_size, method=method)
    w_hat = dequantize_weight_int4(packed)
    for first in range(0, inputs, group_size):
        group = weight[first : first + group_size]
        grid = affine_qparams(group, bits=4, signed=False, symmetric=False, axis=1, method=method)
        np.testing.assert_allclose(
            w_hat[first : first + group_size], fake_quantize(group, *grid, bits=4, signed=False), atol=1e-12
        )
    assert packed.q.shape == (outputs, (inputs + 1) // 2)
    assert packed.q.dtype == packed.zero_point.dtype == np.uint8


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_an_error_is_at_most_half_a_grid_step(inputs, group_size, seed):
    weight = np.random.default_rng(seed).standard_normal((inputs, 3))
    packed = quantize_weight_int4(weight, group_size=group_size)
    step = np.repeat(packed.scale, group_size, axis=1)[:, :inputs].T
    # The zero point is rounded too, by which the ends of a range may move by half a step beyond the grid.
    assert (np.abs(dequantize_weight_int4(packed) - weight) <= step * (1 + 1e-12)).all()


def test_zero_weights_stay_zero():
    weight = RNG.standard_normal((20, 3))
    weight[RNG.random(weight.shape) < 0.5] = 0
    weight[10:, 1] = 0
    w_hat = dequantize_weight_int4(quantize_weight_int4(weight, group_size=5))
    assert (w_hat[weight == 0] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layer_is_the_product_with_the_dequantized_weights(dtype):
    weight = quantize_weight_int4(RNG.standard_normal((33, 8)).astype(dtype), group_size=8)
    x, bias = RNG.standard_normal((2, 5, 33)).astype(dtype), RNG.standard_normal(8).astype(dtype)
    y = int4_linear(x, weight, bias)
    assert y.dtype == dtype
    expected = x.astype(np.float64) @ dequantize_weight_int4(weight) + bias
    np.testing.assert_allclose(y, expected, rtol=np.finfo(dtype).eps, atol=1e-14)


def test_empty_batches():
    assert int4_linear(np.zeros((0, 7)), WEIGHT).shape == (0, 4)
    empty = quantize_weight_int4(np.zeros((5, 0)), group_size=2)
    assert int4_linear(np.zeros((3, 5)), empty).shape == (3, 0)


def test_bad_input():
    with pytest.raises(ValueError, match=r"weight: expected at least one entry along axes \(0,\)"):
        quantize_weight_int4(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="weight: expected finite values"):
        quantize_weight_int4(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="group_size: expected an integer >= 1"):
        quantize_weight_int4(np.ones((2, 3)), group_size=0)
    with pytest.raises(ValueError, match="method: expected one of 'minmax', 'mse'"):
        quantize_weight_int4(np.ones((2, 3)), method="absmax")
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 7\) like weight, got \(2, 6\)"):
        int4_linear(np.ones((2, 6)), WEIGHT)
    with pytest.raises(TypeError, match="weight.scale: expected dtype float32 like x"):
        int4_linear(np.ones((2, 7), np.float32), WEIGHT)
    with pytest.raises(ValueError, match=r"bias: expected shape \(4,\)"):
        int4_linear(np.ones((2, 7)), WEIGHT, np.ones(3))
    for name, value, message in (
        ("q", WEIGHT.q.astype(np.int8), "weight.q: expected a uint8 matrix"),
        ("q", WEIGHT.q[:, 1:], r"weight.q: expected shape \(4, 4\)"),
        ("scale", WEIGHT.scale[:, 1:], r"weight.scale: expected shape \(4, 3\)"),
        ("zero_point", WEIGHT.zero_point[1:], r"weight.zero_point: expected shape \(4, 3\)"),
        ("group_size", 0, "weight.group_size: expected an integer >= 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            int4_linear(np.ones((2, 7)), dataclasses.replace(WEIGHT, **{name: value}))
