import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.quantizers import (
    absmax_quantize,
    affine_qparams,
    dequantize_weight_int4,
    fake_quantize,
    int4_linear,
    quantize_weight_int4,
)

RNG = np.random.default_rng(7)


def in_float64(weight):
    return dataclasses.replace(weight, scale=weight.scale.astype(float))


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


@given(st.integers(1, 40), st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_activations_in_8_bits_move_an_output_by_less_than_the_bound(inputs, group_size, wide, seed):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if wide else np.float32
    weight = quantize_weight_int4(rng.standard_normal((inputs, 3)).astype(dtype), group_size=group_size)
    x = (rng.standard_normal((4, inputs)) * 10.0 ** rng.integers(-30, 30, (4, 1))).astype(dtype)
    y, exact = int4_linear(x, weight, activations="int8"), int4_linear(x.astype(float), in_float64(weight))
    assert y.dtype == dtype
    largest = np.repeat(np.maximum.reduceat(np.abs(x), range(0, inputs, group_size), axis=1), group_size, axis=1)
    bound = largest[:, :inputs].astype(float) @ np.abs(dequantize_weight_int4(weight)) / 254
    assert (np.abs(y - exact) <= bound * (1 + 1e-4) + 1e-30).all()


def test_codes_of_8_bits_are_those_of_absmax_quantize():
    x = RNG.standard_normal((5, 7))
    codes = [absmax_quantize(x[:, first : first + 3], axis=0) for first in (0, 3, 6)]
    x_hat = np.concatenate([q * (c / 127) for q, c in codes], axis=1)
    np.testing.assert_allclose(
        int4_linear(x, WEIGHT, activations="int8"), int4_linear(x_hat, WEIGHT), rtol=1e-13, atol=1e-14
    )


def test_8_bit_activations_of_any_size():
    tiny, largest = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    weight = quantize_weight_int4(np.ones((2, 1), np.float32))
    for size in (tiny, 1e-40, 1e-38, 1.0, largest / 4):
        x = np.array([[size, size]], np.float32)
        np.testing.assert_allclose(int4_linear(x, weight, activations="int8"), [[2 * x[0, 0]]], rtol=1e-6)
    assert int4_linear(np.zeros((1, 2), np.float32), weight, activations="int8") == 0
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="x: expected finite values"):
            int4_linear(np.full((1, 2), value, np.float32), weight, activations="int8")
    with pytest.raises(ValueError, match="activations: expected one of 'float', 'int8'"):
        int4_linear(np.ones((1, 2), np.float32), weight, activations="int16")


def test_empty_batches():
    assert int4_linear(np.zeros((0, 7)), WEIGHT, activations="int8").shape == (0, 4)
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
