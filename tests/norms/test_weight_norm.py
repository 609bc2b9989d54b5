import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    init_weight_norm,
    mean_only_batch_norm,
    mean_only_batch_norm_vjp,
    weight_norm,
    weight_norm_vjp,
)

RNG = np.random.default_rng(16)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    GradientCase(weight_norm_vjp, draw((4, 3, 2, 2), 4), method="complex"),
    GradientCase(weight_norm_vjp, draw((5, 3), 3), {"axis": 1}, method="complex", name="linear layer"),
    GradientCase(weight_norm_vjp, draw((5, 3), 5), {"axis": -2}, name="differences"),
    GradientCase(weight_norm_vjp, draw((4,), 4), method="complex", name="one weight a unit"),
    GradientCase(mean_only_batch_norm_vjp, (*draw((5, 3), 3), None), method="complex", name="training"),
    GradientCase(
        mean_only_batch_norm_vjp, (*draw((2, 3, 4, 2), 3), None), {"axes": (0, 2, 3)}, method="complex", name="images"
    ),
    GradientCase(mean_only_batch_norm_vjp, draw((5, 3), 3, 3), method="complex", name="inference"),
]  # fmt: skip


@given(seed=st.integers(0, 99), units=st.integers(1, 6), inputs=st.integers(1, 6))
def test_weights_have_the_length_of_the_gain(seed, units, inputs):
    rng = np.random.default_rng(seed)
    direction, gain = rng.standard_normal((units, inputs)), rng.standard_normal(units)
    np.testing.assert_allclose(np.linalg.norm(weight_norm(direction, gain), axis=1), np.abs(gain), rtol=1e-12)


@given(seed=st.integers(0, 99), exponent=st.integers(-300, 300))
def test_the_length_of_the_direction_does_not_matter(seed, exponent):
    rng = np.random.default_rng(seed)
    direction, gain = rng.uniform(0.5, 1, (3, 4)), rng.standard_normal(3)
    np.testing.assert_allclose(weight_norm(direction * 10.0**exponent, gain), weight_norm(direction, gain), rtol=1e-12)


@given(seed=st.integers(0, 99), length=st.floats(0.01, 100))
def test_gradient_is_orthogonal_to_the_direction_and_shrinks_with_its_length(seed, length):
    rng = np.random.default_rng(seed)
    direction, gain, dweight = rng.standard_normal((4, 5)), rng.standard_normal(4), rng.standard_normal((4, 5))
    ddirection, dgain = weight_norm_vjp(direction, gain)[1](dweight)
    np.testing.assert_allclose((ddirection * direction).sum(axis=1), 0, atol=1e-12 * np.abs(ddirection).max())
    longer, dgain_longer = weight_norm_vjp(length * direction, gain)[1](dweight)
    np.testing.assert_allclose(longer, ddirection / length, rtol=1e-9, atol=1e-12 / length)
    np.testing.assert_allclose(dgain_longer, dgain, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 99), rate=st.floats(0.001, 10))
def test_a_gradient_step_lengthens_the_direction(seed, rate):
    rng = np.random.default_rng(seed)
    direction, gain, dweight = rng.standard_normal((4, 5)), rng.standard_normal(4), rng.standard_normal((4, 5))
    step = rate * weight_norm_vjp(direction, gain)[1](dweight)[0]
    before, after, moved = (np.linalg.norm(a, axis=1) for a in (direction, direction - step, step))
    np.testing.assert_allclose(after**2, before**2 + moved**2, rtol=1e-10)


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_initialization_standardizes_the_first_batch(seed, scale, shift):
    outputs = shift + scale * np.random.default_rng(seed).standard_normal((7, 3, 4))
    gain, bias = init_weight_norm(outputs, axes=(0, 2))
    y = gain[:, None] * outputs + bias[:, None]
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=1e-9)
    np.testing.assert_allclose(y.std(axis=(0, 2)), 1, rtol=1e-9)


def test_initialization_of_a_constant_unit_is_finite():
    gain, bias = init_weight_norm(np.full((4, 1), 3.0), min_std=0.5)
    np.testing.assert_array_equal(gain, [2.0])
    np.testing.assert_array_equal(bias, [-6.0])


def test_mean_only_batch_norm_keeps_the_scale():
    x = 5 + 3 * RNG.standard_normal((8, 2, 4))
    y = mean_only_batch_norm(x, np.array([0.0, 7.0]), axes=(0, 2))
    np.testing.assert_allclose(y.mean(axis=(0, 2)), [0, 7], atol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 2)), x.std(axis=(0, 2)), rtol=1e-12)


def test_inference_with_the_batch_mean_is_training():
    x, bias = draw((6, 4), 4)
    np.testing.assert_allclose(mean_only_batch_norm(x, bias, x.mean(axis=0)), mean_only_batch_norm(x, bias), rtol=1e-12)


def test_nan_stays_in_its_unit():
    direction = RNG.standard_normal((3, 4))
    direction[1, 2] = np.nan
    weight = weight_norm(direction, np.ones(3))
    assert np.isnan(weight[1]).all()
    assert np.isfinite(weight[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    direction, gain, x = (a.astype(dtype) for a in draw((3, 4), 3, (5, 3)))
    weight, pullback = weight_norm_vjp(direction, gain)
    assert {a.dtype for a in (weight, *pullback(weight), *init_weight_norm(x))} == {np.dtype(dtype)}
    for mean in (None, gain):
        y, pullback = mean_only_batch_norm_vjp(x, gain, mean)
        assert {a.dtype for a in (y, *pullback(y)) if a is not None} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    direction, gain, x = draw((3, 4), 3, (5, 3))
    for array in (direction, gain, x):
        array.setflags(write=False)
    weight_norm_vjp(direction, gain)[1](direction)
    mean_only_batch_norm_vjp(x, gain)[1](x)
    init_weight_norm(x)


ONE = np.ones(3)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (weight_norm, (np.ones((3, 2)), np.ones(2)), {}, ValueError, r"gain: expected shape \(3,\), got \(2,\)"),
        (weight_norm, (np.diag([1.0, 0, 2]), ONE), {}, ValueError, "direction: expected a vector other than 0 for every unit, got zeros for unit 1"),
        (weight_norm, (np.ones((3, 2)), ONE), {"axis": 2}, ValueError, "axis: expected integers from -2 to 1, got 2"),
        (weight_norm, (np.ones((3, 2), int), ONE), {}, TypeError, "direction: expected a float32 or float64 array"),
        (weight_norm, (np.ones((3, 2)), ONE.astype("f4")), {}, TypeError, "gain: expected dtype float64 like direction, got float32"),
        (init_weight_norm, (np.ones((0, 3)),), {}, ValueError, "outputs: expected at least one entry along axes"),
        (init_weight_norm, (np.ones((2, 3)),), {"min_std": 0.0}, ValueError, "min_std: expected a finite number > 0, got 0.0"),
        (mean_only_batch_norm, (np.ones((2, 3)), np.ones(2)), {}, ValueError, r"bias: expected shape \(3,\), got \(2,\)"),
        (mean_only_batch_norm, (np.ones((2, 3)), ONE, np.ones(2)), {}, ValueError, r"mean: expected shape \(3,\), got \(2,\)"),
        (mean_only_batch_norm, (np.ones((0, 3)), ONE), {}, ValueError, "x: expected at least one entry along axes"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
