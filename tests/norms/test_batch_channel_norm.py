import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, GradientMismatch
from refnorm.norms import (
    BatchChannelState,
    batch_channel_norm,
    batch_channel_norm_estimated,
    batch_channel_norm_estimated_vjp,
    batch_channel_norm_vjp,
    batch_norm,
    group_norm,
    weight_standardize,
    weight_standardize_vjp,
)

RNG = np.random.default_rng(19)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


STATE = BatchChannelState(RNG.standard_normal(6), RNG.random(6) + 0.3)


def estimated(training):
    """The pullback's call, and the function that it is the exact gradient of: constant estimates."""
    options = {"groups": 2, "rate": 0.3, "training": training}

    def call(*arrays):
        (y, _), pullback = batch_channel_norm_estimated_vjp(*arrays, STATE, **options)
        return y, pullback

    arrays = draw((3, 6, 4), 6, 6, 2, 2)
    _, used = batch_channel_norm_estimated(*arrays, STATE, **options)

    def frozen(*moved):
        return batch_channel_norm_estimated(*moved, used, groups=2, training=False)[0]

    return GradientCase(
        batch_channel_norm_estimated_vjp,
        arrays,
        method="complex",
        call=call,
        surrogate=frozen,
        name="training" if training else "in use",
    )


GRADIENT_CASES = [
    GradientCase(weight_standardize_vjp, draw((3, 2, 2, 2)), method="complex"),
    GradientCase(weight_standardize_vjp, draw((3, 5)), {"ddof": 0, "eps": 1e-2}, method="complex", name="biased"),
    GradientCase(weight_standardize_vjp, (np.ones((2, 4)),), {"eps": 0.1}, method="complex", name="constant filters"),
    GradientCase(batch_channel_norm_vjp, draw((3, 6, 2, 2), 6, 6, 2, 2), {"groups": 2}, method="complex"),
    GradientCase(
        batch_channel_norm_vjp, draw((4, 4), 4, 4, 1, 1), {"groups": 1, "eps": 1e-2}, method="complex", name="no places"
    ),
    GradientCase(batch_channel_norm_vjp, draw((2, 4, 3), 4, 4, 2, 2), {"groups": 2}, name="differences"),
    estimated(training=True),
    estimated(training=False),
]


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100), shift=st.floats(-10, 10), ddof=st.integers(0, 1))
def test_standardized_weights_ignore_scale_and_shift_of_a_filter(seed, scale, shift, ddof):
    weight = np.random.default_rng(seed).standard_normal((3, 2, 2, 2))
    a, b = (weight_standardize(w, eps=1e-300, ddof=ddof) for w in (weight, scale * weight + shift))
    np.testing.assert_allclose(b, a, atol=1e-9)
    np.testing.assert_allclose((a * a).sum(axis=(1, 2, 3)), 8 - ddof, rtol=1e-10)


@given(seed=st.integers(0, 99))
def test_gradient_of_a_filter_is_orthogonal_to_constants_and_to_the_centred_filter(seed):
    weight, dy = np.random.default_rng(seed).standard_normal((2, 3, 7))
    (dweight,) = weight_standardize_vjp(weight, eps=1e-300)[1](dy)
    centred = weight - weight.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(dweight.sum(axis=1), 0, atol=1e-11 * np.abs(dweight).max())
    np.testing.assert_allclose((dweight * centred).sum(axis=1), 0, atol=1e-11 * np.abs(dweight).max())


def test_constant_filter_gives_zero_and_a_finite_gradient():
    weight_hat, pullback = weight_standardize_vjp(np.full((1, 3), 7.0), eps=1e-4)
    assert not weight_hat.any()
    np.testing.assert_allclose(pullback(np.array([[3.0, 0, 0]]))[0], [[200, -100, -100]], rtol=1e-12)


def test_large_batch_form_is_batch_norm_then_group_norm():
    x, gain, bias = draw((5, 6, 3, 2), 6, 6)
    group_gain, group_bias = draw(3, 3)
    middle = batch_norm(x, gain, bias, axes=(0, 2, 3))
    expected = group_norm(middle, np.repeat(group_gain, 2), np.repeat(group_bias, 2), groups=3)
    np.testing.assert_allclose(
        batch_channel_norm(x, gain, bias, group_gain, group_bias, groups=3), expected, rtol=1e-11, atol=1e-12
    )


def test_in_use_the_channel_step_is_batch_norm_with_given_statistics():
    x, gain, bias = draw((5, 6, 3), 6, 6)
    expected = group_norm(
        batch_norm(x, gain, bias, STATE.mean, STATE.var, axes=(0, 2)), np.ones(6), np.zeros(6), groups=2
    )
    y, state = batch_channel_norm_estimated(x, gain, bias, np.ones(2), np.zeros(2), STATE, groups=2, training=False)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(state.mean, STATE.mean)
    np.testing.assert_array_equal(state.var, STATE.var)


def test_second_moment_is_taken_about_the_old_estimate():
    one, zero = np.ones(1), np.zeros(1)
    state = BatchChannelState.create(1)
    x = np.array([[[1.0, 3.0]]])
    _, state = batch_channel_norm_estimated(x, one, zero, one, zero, state, groups=1)
    np.testing.assert_allclose([state.mean[0], state.var[0]], [0.2, 1.4], rtol=1e-12)


def test_estimates_are_updated_before_they_are_used():
    one, zero = np.ones(2), np.zeros(2)
    x = np.array([[[1.0, 3.0], [2.0, 8.0]]])
    y, state = batch_channel_norm_estimated(x, one, zero, one[:1], zero[:1], BatchChannelState.create(2), groups=1)
    again, _ = batch_channel_norm_estimated(x, one, zero, one[:1], zero[:1], state, groups=1, training=False)
    np.testing.assert_array_equal(y, again)


def test_rate_zero_freezes_and_rate_one_replaces_the_estimates():
    x = draw((4, 6, 3))[0]
    parameters = np.ones(6), np.zeros(6), np.ones(2), np.zeros(2)
    _, frozen = batch_channel_norm_estimated(x, *parameters, STATE, groups=2, rate=0.0)
    np.testing.assert_array_equal(frozen.mean, STATE.mean)
    np.testing.assert_array_equal(frozen.var, STATE.var)
    _, replaced = batch_channel_norm_estimated(x, *parameters, STATE, groups=2, rate=1.0)
    np.testing.assert_allclose(replaced.mean, x.mean(axis=(0, 2)), rtol=1e-12)
    error = x.mean(axis=(0, 2)) - STATE.mean
    np.testing.assert_allclose(replaced.var, x.var(axis=(0, 2)) + error**2, rtol=1e-12)


def test_estimates_converge_to_the_statistics_of_a_repeated_batch():
    x = 3 + 2 * RNG.standard_normal((4, 6, 3))
    parameters = np.ones(6), np.zeros(6), np.ones(2), np.zeros(2)
    state = BatchChannelState.create(6)
    for _ in range(400):
        _, state = batch_channel_norm_estimated(x, *parameters, state, groups=2)
    np.testing.assert_allclose(state.mean, x.mean(axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(state.var, x.var(axis=(0, 2)), rtol=1e-12)


def test_one_pixel_is_a_batch():
    x = draw((1, 4))[0]
    y, state = batch_channel_norm_estimated(
        x, np.ones(4), np.zeros(4), np.ones(1), np.zeros(1), BatchChannelState.create(4), groups=1
    )
    assert np.isfinite(y).all()
    assert (state.var > 0).all()


def test_the_pullback_treats_estimates_as_constants():
    case = estimated(training=True)
    GradientCase(case.f_vjp, case.args, call=case.call, surrogate=case.surrogate).check()
    with pytest.raises(GradientMismatch):
        GradientCase(case.f_vjp, case.args, call=case.call).check()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [a.astype(dtype) for a in draw((3, 4, 2), 4, 4, 2, 2)]
    y, pullback = batch_channel_norm_vjp(*arrays, groups=2)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    (y, state), pullback = batch_channel_norm_estimated_vjp(*arrays, BatchChannelState.create(4, dtype), groups=2)
    assert {a.dtype for a in (y, state.mean, state.var, *pullback(y))} == {np.dtype(dtype)}
    weight_hat, pullback = weight_standardize_vjp(arrays[0])
    assert {a.dtype for a in (weight_hat, *pullback(weight_hat))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays = draw((3, 4, 2), 4, 4, 2, 2)
    state = BatchChannelState.create(4)
    for array in (*arrays, state.mean, state.var):
        array.setflags(write=False)
    batch_channel_norm_vjp(*arrays, groups=2)[1](arrays[0])
    batch_channel_norm_estimated_vjp(*arrays, state, groups=2)[1](arrays[0])
    weight_standardize_vjp(arrays[0])[1](arrays[0])


X, FOUR, TWO = np.ones((2, 4, 3)), np.ones(4), np.ones(2)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (weight_standardize, (np.ones((3, 1, 1, 1)),), {}, ValueError, r"weight: expected more than 1 entries in a filter, got shape \(3, 1, 1, 1\)"),
        (weight_standardize, (np.ones((3, 2)),), {"ddof": 2}, ValueError, "ddof: expected an integer >= 0 and <= 1, got 2"),
        (weight_standardize, (np.ones((3, 2)),), {"eps": 0.0}, ValueError, "eps: expected a finite number > 0"),
        (batch_channel_norm, (X, FOUR, FOUR, TWO, TWO), {"groups": 3}, ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        (batch_channel_norm, (X, FOUR, FOUR, FOUR, TWO), {"groups": 2}, ValueError, r"group_gain: expected shape \(2,\), got \(4,\)"),
        (batch_channel_norm, (X, FOUR, TWO, TWO, TWO), {"groups": 2}, ValueError, r"bias: expected shape \(4,\), got \(2,\)"),
        (batch_channel_norm, (X[:0], FOUR, FOUR, TWO, TWO), {"groups": 2}, ValueError, "x: expected at least one entry along axes"),
        (batch_channel_norm, (X, FOUR.astype("f4"), FOUR, TWO, TWO), {"groups": 2}, TypeError, "gain: expected dtype float64 like x, got float32"),
        (batch_channel_norm_estimated, (X, FOUR, FOUR, TWO, TWO, BatchChannelState.create(3)), {"groups": 2}, ValueError, r"state.mean: expected shape \(4,\), got \(3,\)"),
        (batch_channel_norm_estimated, (X, FOUR, FOUR, TWO, TWO, BatchChannelState(FOUR, -FOUR)), {"groups": 2}, ValueError, "state.var: expected values >= 0, got -1.0"),
        (batch_channel_norm_estimated, (X, FOUR, FOUR, TWO, TWO, BatchChannelState.create(4)), {"groups": 2, "rate": 2.0}, ValueError, r"rate: expected a number in \[0, 1\], got 2.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
