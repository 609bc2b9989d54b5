from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, GradientMismatch
from refnorm.norms import (
    PowerNormState,
    group_scale,
    group_scale_vjp,
    power_norm,
    power_norm_v,
    power_norm_v_vjp,
    power_norm_vjp,
)

RNG = np.random.default_rng(2003)
MASK = np.array([[True, True, False], [True, False, True]])


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


STATE = PowerNormState(RNG.random(4) + 0.3, np.zeros(4), 5)
OPTIONS = {"warmup": 0, "groups": 2}


def call(state, **options):
    def function(*arrays):
        (y, _), pullback = power_norm_vjp(*arrays, state, **options)
        return y, lambda dy: pullback(dy)[0]

    return function


def frozen(x, gain, bias):
    return power_norm(x, gain, bias, STATE, groups=2, training=False)[0]


GRADIENT_CASES = [
    GradientCase(power_norm_v_vjp, draw((5, 4), 4, 4), method="complex"),
    GradientCase(power_norm_v_vjp, draw((2, 3, 4), 4, 4), {"mask": MASK, "eps": 1e-2}, method="complex", name="mask"),
    GradientCase(power_norm_v_vjp, (np.zeros((3, 4)), *draw(4, 4)), {"eps": 0.1}, method="complex", name="zeros"),
    GradientCase(power_norm_v_vjp, draw((5, 4), 4, 4), name="differences"),
    GradientCase(group_scale_vjp, draw((3, 6)), {"groups": 2}, method="complex"),
    GradientCase(group_scale_vjp, draw((2, 3, 6)), {"groups": 6, "eps": 0.1}, method="complex", name="one channel a group"),
    GradientCase(power_norm_vjp, draw((5, 4), 4, 4), method="complex", call=call(STATE, groups=2, training=False), name="in use"),
    GradientCase(
        power_norm_vjp, draw((5, 4), 4, 4), method="complex", call=call(STATE, **OPTIONS), surrogate=frozen, name="training, backward mean zero"
    ),
]  # fmt: skip


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10))
def test_batch_form_has_mean_square_one_and_ignores_scale(seed, scale):
    x = 1 + np.random.default_rng(seed).standard_normal((6, 3))
    one, zero = np.ones(3), np.zeros(3)
    z = power_norm_v(x, one, zero, eps=1e-300)
    np.testing.assert_allclose((z * z).mean(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(power_norm_v(scale * x, one, zero, eps=1e-300), z, rtol=1e-12)


@given(seed=st.integers(0, 99))
def test_gradient_of_the_batch_form_is_orthogonal_to_the_channel(seed):
    x, dy = np.random.default_rng(seed).standard_normal((2, 7, 3))
    dx = power_norm_v_vjp(x, np.ones(3), np.zeros(3), eps=1e-300)[1](dy)[0]
    np.testing.assert_allclose((dx * x).sum(axis=0), 0, atol=1e-12)


def test_padding_is_normalized_but_not_averaged():
    x, gain, bias = draw((2, 3, 4), 4, 4)
    y = power_norm_v(x, gain, bias, mask=MASK)
    np.testing.assert_allclose(y[MASK], power_norm_v(x[MASK], gain, bias), rtol=1e-12)
    moved = x.copy()
    moved[~MASK] = 1e6
    np.testing.assert_array_equal(power_norm_v(moved, gain, bias, mask=MASK)[MASK], y[MASK])


def test_after_warmup_a_batch_is_not_divided_by_its_own_statistics():
    x, one, zero = draw((5, 4))[0], np.ones(4), np.zeros(4)
    y, state = power_norm(x, one, zero, STATE, warmup=5, groups=None)
    np.testing.assert_allclose(y, x / np.sqrt(STATE.mean_square + 1e-5), rtol=1e-12)
    expected = 0.9 * STATE.mean_square + 0.1 * (x * x).mean(axis=0)
    np.testing.assert_allclose(state.mean_square, expected, rtol=1e-12)
    assert state.iteration == 6


def test_during_warmup_it_is_and_the_running_value_is_first_averaged():
    x, gain, bias = draw((5, 4), 4, 4)
    y, state = power_norm(x, gain, bias, STATE, warmup=6, groups=None)
    np.testing.assert_allclose(y, power_norm_v(x, gain, bias), rtol=1e-12, atol=1e-14)
    square = (x * x).mean(axis=0)
    expected = 0.9 * (STATE.mean_square * 5 / 6 + square / 6) + 0.1 * square
    np.testing.assert_allclose(state.mean_square, expected, rtol=1e-12)


def test_in_use_the_state_stays_and_examples_do_not_see_each_other():
    x, gain, bias = draw((6, 4), 4, 4)
    y, state = power_norm(x, gain, bias, STATE, training=False)
    assert state is STATE
    np.testing.assert_array_equal(power_norm(x[:2], gain, bias, STATE, training=False)[0], y[:2])
    assert power_norm_vjp(x, gain, bias, STATE, training=False)[1](x)[1] is STATE


@given(seed=st.integers(0, 99), masked=st.booleans())
def test_repeated_batch_ends_at_the_exact_gradient_of_the_batch_form(seed, masked):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, 6, 3))
    gain, bias = rng.standard_normal((2, 3))
    options = {"eps": 1e-300, "mask": np.arange(6) < 4 if masked else None}
    state = PowerNormState.create(3)
    for _ in range(500):
        _, pullback = power_norm_vjp(x, gain, bias, state, warmup=0, groups=None, **options)
        grads, state = pullback(dy)
    _, exact = power_norm_v_vjp(x, gain, bias, **options)
    for found, expected in zip(grads, exact(dy), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_the_training_gradient_is_not_the_derivative():
    state = replace(STATE, backward_mean=np.full(4, 0.3))
    case = GradientCase(power_norm_vjp, draw((5, 4), 4, 4), call=call(state, **OPTIONS), surrogate=frozen)
    with pytest.raises(GradientMismatch):
        case.check()


def test_stored_statistic_follows_the_form_of_the_authors_code():
    # The code stores e = backward_mean / (1 - decay) and adds mean(dz_tilde z).
    x, dy = draw((5, 4), (5, 4))
    decay, state = 0.8, replace(STATE, backward_mean=RNG.standard_normal(4))
    _, pullback = power_norm_vjp(x, np.ones(4), np.zeros(4), state, warmup=0, groups=None, decay_backward=decay)
    (dx, _, _), after = pullback(dy)
    z = x / np.sqrt(state.mean_square + 1e-5)
    e = state.backward_mean / (1 - decay)
    tilde = dy - (1 - decay) * e * z
    np.testing.assert_allclose(after.backward_mean, (1 - decay) * (e + (tilde * z).mean(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(dx, tilde / np.sqrt(state.mean_square + 1e-5), rtol=1e-12)


def test_backward_scale_of_the_batch_divides_by_its_root_mean_square():
    x, dy = draw((5, 4), (5, 4))
    grads = {}
    for scale in ("running", "batch"):
        _, pullback = power_norm_vjp(x, np.ones(4), np.zeros(4), STATE, warmup=0, groups=None, backward_scale=scale)
        grads[scale] = pullback(dy)[0][0]
    factor = np.sqrt((STATE.mean_square + 1e-5) / ((x * x).mean(axis=0) + 1e-5))
    np.testing.assert_allclose(grads["batch"], grads["running"] * factor, rtol=1e-12)


@given(seed=st.integers(0, 99), groups=st.sampled_from([1, 2, 3, 6]))
def test_group_scaling_gives_every_group_of_a_token_mean_square_one(seed, groups):
    x = np.random.default_rng(seed).standard_normal((4, 6))
    y = group_scale(x, groups=groups, eps=1e-300).reshape(4, groups, -1)
    np.testing.assert_allclose((y * y).mean(axis=-1), 1, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [a.astype(dtype) for a in draw((5, 4), 4, 4)]
    y, pullback = power_norm_v_vjp(*arrays)
    assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    (y, state), pullback = power_norm_vjp(*arrays, PowerNormState.create(4, dtype), groups=2)
    grads, after = pullback(y)
    assert {a.dtype for a in (y, state.mean_square, after.backward_mean, *grads)} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays, state = draw((5, 4), 4, 4), PowerNormState.create(4)
    for array in (*arrays, state.mean_square, state.backward_mean):
        array.setflags(write=False)
    power_norm_vjp(*arrays, state, warmup=0)[1](arrays[0])
    power_norm_v_vjp(*arrays)[1](arrays[0])


X, ONE = np.ones((3, 4)), np.ones(4)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (power_norm_v, (X, np.ones(3), ONE), {}, ValueError, r"gain: expected shape \(4,\), got \(3,\)"),
        (power_norm_v, (X, ONE, ONE), {"mask": np.zeros(3, bool)}, ValueError, "mask: expected at least one token that counts"),
        (power_norm_v, (X, ONE, ONE), {"mask": np.ones(3)}, TypeError, "mask: expected a boolean array, got dtype float64"),
        (power_norm_v, (X, ONE, ONE), {"mask": np.ones(2, bool)}, ValueError, r"mask: expected shape \(3,\), got \(2,\)"),
        (power_norm_v, (X[:0], ONE, ONE), {}, ValueError, "x: expected at least one token that counts"),
        (power_norm_v, (X, ONE, ONE), {"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        (group_scale, (X,), {"groups": 3}, ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        (power_norm, (X, ONE, ONE, PowerNormState.create(3)), {}, ValueError, r"state.mean_square: expected shape \(4,\), got \(3,\)"),
        (power_norm, (X, ONE, ONE, PowerNormState(-ONE, ONE)), {}, ValueError, "state.mean_square: expected values >= 0, got -1.0"),
        (power_norm, (X, ONE, ONE, PowerNormState.create(4)), {"decay_forward": 1.0}, ValueError, r"decay_forward: expected a number in \[0, 1\), got 1.0"),
        (power_norm, (X, ONE, ONE, PowerNormState.create(4)), {"decay_backward": -0.1}, ValueError, r"decay_backward: expected a number in \[0, 1\), got -0.1"),
        (power_norm, (X, ONE, ONE, PowerNormState.create(4)), {"warmup": -1}, ValueError, "warmup: expected an integer >= 0, got -1"),
        (power_norm, (X, ONE, ONE, PowerNormState.create(4)), {"backward_scale": "no"}, ValueError, "backward_scale: expected one of 'running', 'batch', got 'no'"),
        (power_norm, (X, ONE, ONE, PowerNormState.create(4, "f4")), {}, TypeError, "state.mean_square: expected dtype float64 like x, got float32"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
