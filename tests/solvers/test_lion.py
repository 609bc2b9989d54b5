import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.solvers import Lion, lion_gradient_weights, lion_update, sign_momentum

RNG = np.random.default_rng(11)


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    for grads in gradients:
        params, state = optimizer.step(params, grads, state)
    return params, state


def test_three_steps_by_hand():
    optimizer = Lion(learning_rate=0.1, weight_decay=0.5)
    params, state = run(optimizer, np.array([1.0]), [np.array([g]) for g in (1.0, -3.0, 0.2)])
    np.testing.assert_allclose(params, [0.762125], rtol=1e-15)
    np.testing.assert_allclose(state.momentum, [-0.017899], rtol=1e-13)


@given(beta1=st.floats(0, 1), beta2=st.floats(0, 0.999), k=st.integers(0, 30), seed=st.integers(0, 99))
def test_direction_is_the_sign_of_the_weighted_past(beta1, beta2, k, seed):
    gradients = np.random.default_rng(seed).standard_normal((k + 1, 4))
    optimizer = Lion(learning_rate=1.0, betas=(beta1, beta2))
    before, state = run(optimizer, np.zeros(4), gradients[:-1])
    after, _ = optimizer.step(before, gradients[-1], state)
    weighted = lion_gradient_weights(k, (beta1, beta2)) @ gradients[::-1]
    clear = np.abs(weighted) > 1e-12
    np.testing.assert_array_equal((before - after)[clear], np.sign(weighted)[clear])


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.5), (0.0, 0.3), (1.0, 0.9)])
def test_weights_of_past_gradients_sum_to_one(betas):
    np.testing.assert_allclose(lion_gradient_weights(6000, betas).sum(), 1, rtol=1e-12)


@given(scale=st.floats(1e-3, 1e3), learning_rate=st.floats(1e-6, 1), decay=st.floats(0, 1), seed=st.integers(0, 99))
def test_step_does_not_feel_the_size_of_the_gradient(scale, learning_rate, decay, seed):
    param, *gradients = np.random.default_rng(seed).standard_normal((4, 3, 2))
    optimizer = Lion(learning_rate=learning_rate, weight_decay=decay)
    # A power of two scales every product exactly.
    scale = 2.0 ** np.round(np.log2(scale))
    np.testing.assert_array_equal(
        run(optimizer, param, gradients)[0], run(optimizer, param, [scale * g for g in gradients])[0]
    )


@given(seed=st.integers(0, 99), steps=st.integers(1, 8))
def test_both_forms_take_the_same_way(seed, steps):
    param, *gradients = np.random.default_rng(seed).standard_normal((steps + 1, 5))
    optimizer = Lion(learning_rate=0.01, weight_decay=0.1)
    other = dataclasses.replace(optimizer, form="lerp")
    np.testing.assert_allclose(
        run(optimizer, param, gradients)[0], run(other, param, gradients)[0], rtol=1e-12, atol=1e-15
    )


def test_forms_may_differ_where_the_direction_is_rounding_error():
    grad, momentum = np.array([1.0]), np.array([-1.0 / 9])
    steps = {
        form: lion_update(np.zeros(1), grad, momentum, learning_rate=1.0, form=form)[0] for form in ("mul_add", "lerp")
    }
    assert all(abs(step) in (0, 1) for step in steps.values())
    assert abs(0.9 * momentum + 0.1 * grad) < 1e-16


def test_maximize_is_descent_on_the_negative():
    param, grad = RNG.standard_normal((2, 4))
    up = run(Lion(learning_rate=0.1, maximize=True), param, [grad])[0]
    np.testing.assert_array_equal(up, run(Lion(learning_rate=0.1), param, [-grad])[0])


def test_decay_by_the_initial_rate_keeps_the_ratio():
    optimizer = Lion(learning_rate=0.5, weight_decay=0.25, decay_mode="init_lr")
    params, state = np.array([8.0]), optimizer.init(np.array([8.0]))
    params, state = optimizer.step(params, np.zeros(1), state)
    assert params == 6.0
    slower = dataclasses.replace(optimizer, learning_rate=0.25)
    params, _ = slower.step(params, np.zeros(1), state)
    assert params == 6.0 * (1 - 0.125)


def test_sign_momentum_is_lion_with_equal_betas():
    param, grad, momentum = RNG.standard_normal((3, 6))
    ours = sign_momentum(param, grad, momentum, learning_rate=0.1, beta=0.8, weight_decay=0.3)
    new = 0.8 * momentum + (1 - 0.8) * grad
    np.testing.assert_array_equal(ours[1], new)
    np.testing.assert_array_equal(ours[0], param * (1 - 0.1 * 0.3) - 0.1 * np.sign(new))


def test_nothing_moves_without_gradient_and_momentum():
    param = RNG.standard_normal(5)
    np.testing.assert_array_equal(run(Lion(learning_rate=1.0), param, [np.zeros(5)] * 3)[0], param)


def test_coordinates_go_on_at_full_speed_long_after_their_gradient_is_gone():
    optimizer = Lion(learning_rate=1.0, betas=(0.9, 0.5))
    params, _ = run(optimizer, np.zeros(1), [np.ones(1)] + [np.zeros(1)] * 1000)
    assert params == -1001.0
    far, state = run(optimizer, np.zeros(1), [np.ones(1)] + [np.zeros(1)] * 1200)
    assert -1080 < far < -1070
    assert state.momentum == 0


def test_momentum_never_underflows_at_the_default():
    momentum = np.array([1e-320])
    for _ in range(5000):
        _, after = lion_update(np.zeros(1), np.zeros(1), momentum, learning_rate=1.0)
        if after == momentum:
            break
        momentum = after
    assert after == momentum > 0
    assert lion_update(np.zeros(1), np.zeros(1), momentum, learning_rate=1.0)[0] == -1.0


def test_nan_stays_in_its_coordinate():
    params, state = run(Lion(), np.ones(3), [np.array([1.0, np.nan, -1.0])])
    assert np.isnan(params[1])
    assert np.isnan(state.momentum[1])
    assert np.isfinite(params[[0, 2]]).all()


def test_infinite_gradient_moves_by_the_learning_rate():
    assert run(Lion(learning_rate=0.5), np.zeros(1), [np.array([-np.inf])])[0] == 0.5


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e300])
def test_tiny_and_huge_gradients_still_count(value):
    assert run(Lion(learning_rate=0.5, betas=(0.0, 0.0)), np.zeros(1), [np.array([value])])[0] == -0.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_and_dtype_are_kept(shape, dtype):
    param = RNG.standard_normal(shape).astype(dtype) if shape else np.asarray(1.5, dtype)
    params, state = run(Lion(weight_decay=0.1), param, [param, param])
    for array in (params, state.momentum):
        assert (array.shape, array.dtype) == (shape, dtype)


def test_float32_rounds_one_minus_beta_once():
    grad = np.ones(1, np.float32)
    _, momentum = lion_update(grad, grad, np.zeros(1, np.float32), learning_rate=1.0, beta2=0.9)
    assert momentum == np.float32(1 - 0.9)
    assert momentum != np.float32(1) - np.float32(0.9)


def test_trees_of_parameters():
    params = {
        "layers": [{"weight": RNG.standard_normal((2, 3))}, (RNG.standard_normal(3), None)],
        "scale": np.array(2.0),
    }
    grads = {"layers": [{"weight": np.ones((2, 3))}, (None, None)], "scale": np.array(-1.0)}
    after, state = run(Lion(learning_rate=0.1), params, [grads])
    np.testing.assert_array_equal(after["layers"][0]["weight"], params["layers"][0]["weight"] - 0.1)
    assert after["layers"][1][0] is params["layers"][1][0]
    assert after["layers"][1][1] is None
    assert after["scale"] == 2.1
    assert (state.momentum["layers"][1][0] == 0).all()


def test_arguments_are_not_written_to():
    param, grad = RNG.standard_normal((2, 3))
    param.setflags(write=False)
    grad.setflags(write=False)
    optimizer = Lion(weight_decay=0.1)
    state = optimizer.init(param)
    state.momentum.setflags(write=False)
    optimizer.step(param, grad, state)
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.learning_rate = 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number > 0, got 0.0"),
        ({"betas": (0.9, 1.1)}, r"betas: expected a number in \[0.0, 1.0\], got 1.1"),
        ({"betas": (0.9,)}, r"betas: expected two numbers, got \(0.9,\)"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number >= 0, got -1.0"),
        ({"decay_mode": "none"}, "decay_mode: expected one of 'scaled', 'init_lr', got 'none'"),
        ({"form": "fma"}, "form: expected one of 'mul_add', 'lerp', got 'fma'"),
    ],
)
def test_bad_hyper_parameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Lion(**options)


@pytest.mark.parametrize(
    ("params", "grads", "error", "message"),
    [
        ({"a": [np.ones(2)]}, {"a": [np.ones(3)]}, ValueError, r"grads.a.0: expected shape \(2,\), got \(3,\)"),
        ({"a": np.ones(2)}, {"b": np.ones(2)}, ValueError, r"grads: expected the same structure dict\['a'\]"),
        ([np.ones(2)], [np.ones(2, "f4")], TypeError, "grads.0: expected dtype float64 like params.0, got float32"),
        (np.ones(2), np.ones(3), ValueError, r"grads: expected shape \(2,\), got \(3,\)"),
        ([np.ones(2, int)], [np.ones(2)], TypeError, "params.0: expected a float32 or float64 array, got dtype int64"),
    ],
)  # fmt: skip
def test_bad_trees_are_named(params, grads, error, message):
    optimizer = Lion()
    with pytest.raises(error, match=message):
        optimizer.step(params, grads, optimizer.init(params))


def test_state_of_other_parameters_is_refused():
    optimizer = Lion()
    with pytest.raises(ValueError, match=r"state.momentum.0: expected shape \(2,\), got \(3,\)"):
        optimizer.step([np.ones(2)], [np.ones(2)], optimizer.init([np.ones(3)]))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.ones(2), np.ones(3), np.ones(2)), {}, ValueError, r"grad: expected shape \(2,\), got \(3,\)"),
        ((np.ones(2), np.ones(2), np.ones(2, "f4")), {}, TypeError, "momentum: expected dtype float64 like param"),
        ((np.ones(2),) * 3, {"beta1": 2.0}, ValueError, "beta1: expected a number in"),
        ((np.ones(2),) * 3, {"learning_rate": np.inf}, ValueError, "learning_rate: expected a finite number > 0"),
    ],
)
def test_bad_arguments_of_one_update_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        lion_update(*arguments, **options)


def test_weights_refuse_a_negative_age():
    with pytest.raises(ValueError, match="k_max: expected an integer >= 0, got -1"):
        lion_gradient_weights(-1)
