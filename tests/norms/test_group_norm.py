import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    batch_norm,
    group_norm,
    group_norm_vjp,
    instance_norm,
    instance_norm_vjp,
    layer_norm,
    standardize_groups,
    standardize_groups_vjp,
)

RNG = np.random.default_rng(3)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    GradientCase(standardize_groups_vjp, draw((2, 6, 2, 3)), {"groups": 3}, method="complex"),
    GradientCase(standardize_groups_vjp, draw((3, 4)), {"groups": 1, "eps": 1e-2}, method="complex", name="no places"),
    GradientCase(standardize_groups_vjp, (np.ones((2, 4)),), {"groups": 2, "eps": 0.1}, method="complex", name="constant"),
    GradientCase(group_norm_vjp, draw((2, 6, 2, 3), 6, 6), {"groups": 2}, method="complex"),
    GradientCase(group_norm_vjp, draw((3, 4, 5), 4, 4), {"groups": 4}, method="complex", name="one channel a group"),
    GradientCase(group_norm_vjp, draw((3, 8), 8, 8), {"groups": 2, "eps": 1e-3}, name="no places, differences"),
    GradientCase(instance_norm_vjp, draw((2, 3, 2, 4), 3, 3), method="complex"),
    GradientCase(instance_norm_vjp, draw((2, 3, 5), 3, 3), {"eps": 1e-1}, method="complex", name="one axis of places"),
]  # fmt: skip


@given(groups=st.sampled_from([1, 2, 3, 6]), places=st.integers(2, 9), seed=st.integers(0, 99))
def test_every_group_of_every_example_has_mean_zero_and_mean_square_one(groups, places, seed):
    x = 5 + 3 * np.random.default_rng(seed).standard_normal((2, 6, places))
    y = standardize_groups(x, groups=groups, eps=1e-300).reshape(2, groups, -1)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose((y * y).mean(axis=-1), 1, rtol=1e-12)


@given(seed=st.integers(0, 99), size=st.integers(1, 8))
def test_an_example_does_not_depend_on_its_batch(seed, size):
    rng = np.random.default_rng(seed)
    x, gain, bias = rng.standard_normal((8, 6, 3)), rng.standard_normal(6), rng.standard_normal(6)
    np.testing.assert_array_equal(
        group_norm(x[:size], gain, bias, groups=3), group_norm(x, gain, bias, groups=3)[:size]
    )


def test_one_group_is_layer_norm_over_the_image():
    x, gain, bias = draw((3, 4, 2, 5), 4, 4)
    wide_gain, wide_bias = (np.broadcast_to(a[:, None, None], (4, 2, 5)).copy() for a in (gain, bias))
    np.testing.assert_allclose(
        group_norm(x, gain, bias, groups=1), layer_norm(x, wide_gain, wide_bias, axes=(-3, -2, -1)), rtol=1e-12
    )


def test_as_many_groups_as_channels_is_instance_norm():
    x, gain, bias = draw((3, 4, 2, 5), 4, 4)
    np.testing.assert_array_equal(group_norm(x, gain, bias, groups=4), instance_norm(x, gain, bias))


def test_instance_norm_of_one_example_is_batch_norm():
    x, gain, bias = draw((1, 4, 2, 5), 4, 4)
    np.testing.assert_allclose(instance_norm(x, gain, bias), batch_norm(x, gain, bias, axes=(0, 2, 3)), rtol=1e-12)


@given(scale=st.floats(0.1, 10), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_instance_norm_ignores_brightness_and_contrast_of_a_channel(scale, shift, seed):
    x = np.random.default_rng(seed).standard_normal((2, 3, 4, 4))
    moved = x.copy()
    moved[1, 2] = scale * x[1, 2] + shift
    one, zero = np.ones(3), np.zeros(3)
    np.testing.assert_allclose(
        instance_norm(moved, one, zero, eps=1e-300), instance_norm(x, one, zero, eps=1e-300), atol=1e-9
    )


def test_gradient_of_a_group_sums_to_zero():
    x, dy = draw((2, 6, 4), (2, 6, 4))
    (dx,) = standardize_groups_vjp(x, groups=2)[1](dy)
    np.testing.assert_allclose(dx.reshape(2, 2, -1).sum(axis=-1), 0, atol=1e-12)


def test_one_pixel_gives_the_bias():
    x, gain, bias = draw((3, 4, 1, 1), 4, 4)
    np.testing.assert_array_equal(instance_norm(x, gain, bias)[..., 0, 0], np.broadcast_to(bias, (3, 4)))


def test_nan_stays_in_its_group_and_example():
    x = RNG.standard_normal((3, 4, 2))
    x[1, 2, 0] = np.nan
    y = standardize_groups(x, groups=2)
    assert np.isnan(y[1, 2:]).all()
    y[1, 2:] = 0
    assert np.isfinite(y).all()


def test_float32_keeps_its_digits_beside_a_large_offset():
    x = (1e5 + RNG.standard_normal((2, 4, 50))).astype(np.float32)
    truth = standardize_groups(x.astype(np.float64), groups=2)
    np.testing.assert_allclose(standardize_groups(x, groups=2), truth, rtol=1e-6, atol=1e-7)


def test_no_examples_give_no_examples():
    y, pullback = group_norm_vjp(np.zeros((0, 4, 2)), np.ones(4), np.zeros(4), groups=2)
    dx, dgain, dbias = pullback(y)
    assert y.shape == dx.shape == (0, 4, 2)
    assert not dgain.any()
    assert not dbias.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, gain, bias = (a.astype(dtype) for a in draw((2, 4, 3), 4, 4))
    y, pullback = group_norm_vjp(x, gain, bias, groups=2)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3
    z, pullback = standardize_groups_vjp(x, groups=2)
    assert (z.dtype, pullback(z)[0].dtype) == (dtype, dtype)


def test_arguments_are_not_written_to():
    x, gain, bias = draw((2, 4, 3), 4, 4)
    for array in (x, gain, bias):
        array.setflags(write=False)
    group_norm_vjp(x, gain, bias, groups=2)[1](x)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (group_norm, (np.ones((2, 4, 3)), np.ones(3), np.ones(4)), {"groups": 2}, ValueError, r"gain: expected shape \(4,\), got \(3,\)"),
        (group_norm, (np.ones((2, 4, 3)), np.ones(4), np.ones((4, 1))), {"groups": 2}, ValueError, r"bias: expected shape \(4,\), got \(4, 1\)"),
        (group_norm, (np.ones((2, 4, 3)), np.ones(4), np.ones(4)), {"groups": 3}, ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        (group_norm, (np.ones((2, 4, 3)), np.ones(4), np.ones(4)), {"groups": 0}, ValueError, "groups: expected an integer >= 1, got 0"),
        (group_norm, (np.ones((2, 4, 3)), np.ones(4), np.ones(4)), {"groups": 2.0}, TypeError, "groups: expected an integer, got 2.0"),
        (group_norm, (np.ones((2, 4, 3)), np.ones(4, "f4"), np.ones(4)), {"groups": 2}, TypeError, "gain: expected dtype float64 like x, got float32"),
        (group_norm, (np.ones((2, 4, 3)), np.ones(4), np.ones(4)), {"groups": 2, "eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        (standardize_groups, (np.ones((2, 4, 0)),), {"groups": 2}, ValueError, r"x: expected at least one entry in a group, got shape \(2, 4, 0\)"),
        (standardize_groups, (np.ones(4),), {"groups": 2}, ValueError, "x: expected at least 2 dimensions"),
        (standardize_groups, (np.ones((2, 4), int),), {"groups": 2}, TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (instance_norm, (np.ones((2, 4)), np.ones(4), np.ones(4)), {}, ValueError, "x: expected at least 3 dimensions"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
