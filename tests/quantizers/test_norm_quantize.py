import numpy as np
import pytest

from refnorm.norms import layer_norm, rms_norm
from refnorm.quantizers import (
    absmax_quantize,
    layer_norm_absmax_quantize,
    layer_norm_quantize,
    quantize,
    rms_norm_absmax_quantize,
    rms_norm_quantize,
)

GAIN, BIAS = np.random.default_rng(0).standard_normal((2, 7))


def grid_layer_norm(x, gain, bias, scale, zero_point, **options):
    return layer_norm_quantize(x, gain, bias, scale, zero_point, **options)


def grid_rms_norm(x, gain, bias, scale, zero_point, **options):
    return rms_norm_quantize(x, scale, zero_point, gain, bias, **options)


PAIRS = [
    (layer_norm, layer_norm_absmax_quantize, grid_layer_norm),
    (rms_norm, rms_norm_absmax_quantize, grid_rms_norm),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("norm", "by_absmax", "on_grid"), PAIRS)
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (0, 7)])
def test_codes_are_those_of_the_normalized_vectors(shape, norm, by_absmax, on_grid, dtype):
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    gain, bias = GAIN.astype(dtype), BIAS.astype(dtype)
    y = norm(x, gain, bias)
    q, absmax = by_absmax(x, gain, bias)
    assert (q.dtype, q.shape, absmax.dtype, absmax.shape) == (np.int8, shape, dtype, (*shape[:-1], 1))
    for index in np.ndindex(shape[:-1]):
        codes, largest = absmax_quantize(y[index])
        np.testing.assert_array_equal(q[index], codes)
        assert absmax[index] == largest
    for lowest, zero_point in ((-128, -3), (0, 120)):
        codes = on_grid(x, gain, bias, 0.01, zero_point, lowest=lowest)
        np.testing.assert_array_equal(codes, quantize(y, 0.01, zero_point, signed=lowest < 0))


@pytest.mark.parametrize(("norm", "by_absmax", "on_grid"), PAIRS)
def test_codes_of_nan_are_refused(norm, by_absmax, on_grid):
    x = np.array([1.0, np.nan, *range(5)])
    with pytest.raises(ValueError, match="x: expected finite values"):
        by_absmax(x, GAIN, BIAS)
    with pytest.raises(ValueError, match="x: expected finite values"):
        on_grid(x, GAIN, BIAS, 0.1, 0)


def test_grid_without_a_dtype_is_refused():
    with pytest.raises(ValueError, match="lowest: expected one of -128, 0, got 1"):
        layer_norm_quantize(np.ones(7), GAIN, BIAS, 0.1, 0, lowest=1)
    with pytest.raises(ValueError, match="lowest: expected one of -128, 0, got 1"):
        rms_norm_quantize(np.ones(7), 0.1, 0, lowest=1)
