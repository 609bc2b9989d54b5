from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, GradientMismatch
from refnorm.nn import linear
from refnorm.norms import (
    UnifiedNormState,
    fold_into_linear,
    power_norm_v,
    power_norm_v_vjp,
    unified_norm,
    unified_norm_vjp,
)

RNG = np.random.default_rng(2208)
MASK = np.array([[True, True, False], [True, False, True]])


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def random_state(rng=RNG, window=4, channels=3, iteration=2000):
    squares = np.exp(0.1 * rng.standard_normal((window, channels)))
    return UnifiedNormState(
        squares,
        rng.standard_normal((window, channels)),
        np.exp(0.1 * rng.standard_normal(channels)),
        rng.standard_normal(channels),
        iteration,
    )


def call(state, **options):
    def function(*arrays):
        (y, _), pullback = unified_norm_vjp(*arrays, state, **options)
        return y, lambda dy: pullback(dy)[0]

    return function


GRADIENT_CASES = [
    GradientCase(unified_norm_vjp, draw((5, 3), 3, 3), method="complex", call=call(UnifiedNormState.create(3, 1)), name="windows of one"),
    GradientCase(
        unified_norm_vjp, draw((2, 3, 3), 3, 3), method="complex", call=call(random_state(window=1), mask=MASK), name="mask, late"
    ),
    GradientCase(unified_norm_vjp, draw((5, 3), 3, 3), call=call(random_state(window=1), eps=0.1), name="differences"),
    GradientCase(unified_norm_vjp, draw((5, 3), 3, 3), method="complex", call=call(random_state(), training=False), name="in use"),
]  # fmt: skip


def test_first_batch_is_divided_by_its_own_root_mean_square():
    x, gain, bias = draw((6, 3), 3, 3)
    y, state = unified_norm(x, gain, bias, UnifiedNormState.create(3))
    np.testing.assert_allclose(y, power_norm_v(x, gain, bias), rtol=1e-12, atol=1e-14)
    square = (x * x).mean(axis=0)
    np.testing.assert_allclose(state.mean_square, 0.9 + 0.1 * square, rtol=1e-12)
    np.testing.assert_array_equal(state.forward_buffer, [[0, 0, 0], square, [0, 0, 0], [0, 0, 0]])
    assert (state.iteration, state.skipped) == (1, 0)


def test_first_gradient_is_a_tenth_of_the_way_to_the_exact_one():
    x, dy = draw((6, 3), (6, 3))
    one, zero = np.ones(3), np.zeros(3)
    (dx, dgain, dbias), _ = unified_norm_vjp(x, one, zero, UnifiedNormState.create(3))[1](dy)
    exact = power_norm_v_vjp(x, one, zero)[1](dy)
    none = dy / np.sqrt((x * x).mean(axis=0) + 1e-5)
    np.testing.assert_allclose(dx, 0.9 * none + 0.1 * exact[0], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(dgain, exact[1], rtol=1e-12)
    np.testing.assert_allclose(dbias, exact[2], rtol=1e-12)


@given(seed=st.integers(0, 99), window=st.integers(2, 5))
def test_late_batches_are_divided_by_the_geometric_mean_of_the_window(seed, window):
    rng = np.random.default_rng(seed)
    state, x = random_state(rng, window), rng.standard_normal((6, 3))
    y, after = unified_norm(x, np.ones(3), np.zeros(3), state, warmup=10)
    squares = state.forward_buffer.copy()
    squares[2001 % window] = (x * x).mean(axis=0)
    used = np.prod(squares, axis=0) ** (1 / window)
    np.testing.assert_allclose(y, x / np.sqrt(used + 1e-5), rtol=1e-10)
    np.testing.assert_array_equal(after.forward_buffer, squares)
    np.testing.assert_allclose(after.mean_square, 0.9 * state.mean_square + 0.1 * used, rtol=1e-10)


def test_averages_wait_for_a_full_buffer_and_for_the_end_of_warmup():
    x, one, zero = draw((6, 3))[0], np.ones(3), np.zeros(3)
    own = power_norm_v(x, one, zero)
    early = replace(random_state(), iteration=3)
    np.testing.assert_allclose(unified_norm(x, one, zero, early, warmup=0)[0], own, rtol=1e-12)
    np.testing.assert_allclose(unified_norm(x, one, zero, random_state(), warmup=2002)[0], own, rtol=1e-12)
    assert np.abs(unified_norm(x, one, zero, random_state(), warmup=2001)[0] - own).max() > 1e-3


def test_gradient_is_rescaled_by_the_ratio_of_scales_within_limits():
    x, dy, one, zero = *draw((6, 3), (6, 3)), np.ones(3), np.zeros(3)
    state = replace(random_state(), backward_buffer=np.zeros((4, 3)), backward_mean=np.zeros(3))
    (y, after), pullback = unified_norm_vjp(x, one, zero, state, warmup=10)
    (_, dgain, _), _ = pullback(dy)
    used = (after.mean_square - 0.9 * state.mean_square) / 0.1
    ratio = np.sqrt((used + 1e-5) / (state.mean_square + 1e-5))
    np.testing.assert_allclose(dgain, ratio * (dy * y).sum(axis=0), rtol=1e-10)
    far = replace(state, mean_square=np.full(3, 1e6))
    (y, _), pullback = unified_norm_vjp(x, one, zero, far, warmup=10)
    np.testing.assert_allclose(pullback(dy)[0][1], (dy * y).sum(axis=0) / 5, rtol=1e-10)


def test_outlier_is_divided_by_its_own_scale_and_kept_out_of_the_buffer():
    rng = np.random.default_rng(0)
    scales = np.array([0.5, 1.0, 3.0])
    state = replace(random_state(rng), forward_buffer=scales**2 * np.exp(0.02 * rng.standard_normal((4, 3))))
    x, one, zero = 20 * scales * rng.standard_normal((64, 3)), np.ones(3), np.zeros(3)
    (y, after), pullback = unified_norm_vjp(x, one, zero, state, warmup=10, outlier_filtration=True)
    assert after.skipped == 1
    np.testing.assert_allclose(y, power_norm_v(x, one, zero), rtol=1e-12)
    np.testing.assert_array_equal(after.forward_buffer[2001 % 4], state.mean_square)
    dy = rng.standard_normal(x.shape)
    (dx, _, _), final = pullback(dy)
    np.testing.assert_allclose(dx, power_norm_v_vjp(x, one, zero)[1](dy)[0], rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(final.backward_buffer[2001 % 4], state.backward_mean)
    _, after = unified_norm(x / 20, one, zero, state, warmup=10, outlier_filtration=True)
    assert after.skipped == 0


def test_a_silent_channel_does_not_make_the_scale_zero():
    x = np.zeros((4, 2))
    x[:, 0] = 1
    state = random_state(channels=2)
    y, after = unified_norm(x, np.ones(2), np.zeros(2), state, warmup=10)
    assert np.isfinite(y).all()
    assert (after.mean_square > 0).all()


def test_the_smoothed_gradient_is_not_the_derivative():
    case = GradientCase(unified_norm_vjp, draw((5, 3), 3, 3), call=call(random_state(), warmup=10))
    with pytest.raises(GradientMismatch):
        case.check()


def test_repeated_batch_ends_at_the_exact_gradient():
    x, dy, gain, bias = draw((6, 3), (6, 3), 3, 3)
    state = UnifiedNormState.create(3)
    for _ in range(400):
        _, pullback = unified_norm_vjp(x, gain, bias, state, warmup=10)
        grads, state = pullback(dy)
    for found, expected in zip(grads, power_norm_v_vjp(x, gain, bias)[1](dy), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_in_use_the_state_stays_and_examples_do_not_see_each_other():
    x, gain, bias = draw((6, 3), 3, 3)
    state = random_state()
    y, after = unified_norm(x, gain, bias, state, training=False)
    assert after is state
    assert unified_norm_vjp(x, gain, bias, state, training=False)[1](x)[1] is state
    np.testing.assert_array_equal(unified_norm(x[:2], gain, bias, state, training=False)[0], y[:2])


@given(seed=st.integers(0, 99), outputs=st.integers(1, 5))
def test_folded_layer_does_what_norm_and_layer_do(seed, outputs):
    rng = np.random.default_rng(seed)
    state, x = random_state(rng), rng.standard_normal((6, 3))
    weight, bias, (gain, norm_bias) = (
        rng.standard_normal((3, outputs)),
        rng.standard_normal(outputs),
        rng.standard_normal((2, 3)),
    )
    y, _ = unified_norm(x, gain, norm_bias, state, training=False)
    folded = fold_into_linear(weight, bias, gain, norm_bias, state.mean_square)
    np.testing.assert_allclose(linear(x, *folded), linear(y, weight, bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [a.astype(dtype) for a in draw((5, 3), 3, 3)]
    (y, state), pullback = unified_norm_vjp(*arrays, UnifiedNormState.create(3, dtype=dtype))
    grads, after = pullback(y)
    kept = (state.forward_buffer, state.mean_square, after.backward_buffer, after.backward_mean)
    assert {a.dtype for a in (y, *grads, *kept)} == {np.dtype(dtype)}
    weight = np.ones((3, 2), dtype)
    assert {a.dtype for a in fold_into_linear(weight, weight[0], *arrays[1:], state.mean_square)} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays, state = draw((5, 3), 3, 3), random_state()
    for array in (*arrays, state.forward_buffer, state.backward_buffer, state.mean_square, state.backward_mean):
        array.setflags(write=False)
    unified_norm_vjp(*arrays, state, warmup=10, outlier_filtration=True)[1](arrays[0])


X, ONE, START = np.ones((4, 3)), np.ones(3), UnifiedNormState.create(3)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (unified_norm, (X, ONE, ONE, START), {"momentum": 1.0}, ValueError, r"momentum: expected a number in \(0, 1\), got 1.0"),
        (unified_norm, (X, ONE, ONE, START), {"warmup": -1}, ValueError, "warmup: expected an integer >= 0, got -1"),
        (unified_norm, (X[:0], ONE, ONE, START), {}, ValueError, "x: expected at least one token that counts"),
        (unified_norm, (X, ONE, ONE, START), {"mask": np.zeros(4, bool)}, ValueError, "mask: expected at least one token that counts"),
        (unified_norm, (X, ONE, ONE, UnifiedNormState.create(2)), {}, ValueError, r"state.forward_buffer: expected shape \(4, 3\), got \(4, 2\)"),
        (unified_norm, (X, ONE, ONE, replace(START, mean_square=-ONE)), {}, ValueError, "state.mean_square: expected values >= 0, got -1.0"),
        (unified_norm, (X, ONE, ONE, UnifiedNormState.create(3, dtype="f4")), {}, TypeError, "state.forward_buffer: expected dtype float64 like x"),
        (unified_norm, (X, np.ones(2), ONE, START), {}, ValueError, r"gain: expected shape \(3,\), got \(2,\)"),
        (UnifiedNormState.create, (3, 0), {}, ValueError, "window: expected an integer >= 1, got 0"),
        (fold_into_linear, (np.ones((3, 2)), ONE, ONE, ONE, ONE), {}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        (fold_into_linear, (np.ones((3, 2)), np.ones(2), ONE, ONE, -ONE), {}, ValueError, "mean_square: expected values >= 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
