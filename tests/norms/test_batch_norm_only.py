import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import conv2d, linear, relu
from refnorm.norms import (
    BatchNormState,
    MaskedSGD,
    RandomFeatureResNet,
    batch_norm,
    batch_norm_eval,
    batch_norm_eval_vjp,
    batch_norm_train,
    batch_norm_train_vjp,
    batch_statistics,
    dead_relu_fraction,
    disabled_fraction,
    run_batch_norm_only,
    trainable_mask,
    update_running_statistics,
)

RNG = np.random.default_rng(2003)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


STATE = BatchNormState(RNG.standard_normal(3), RNG.random(3) + 0.3)
SMALL = RandomFeatureResNet(width=3, depth=1, classes=4, stages=2)


def in_training(*arrays, **options):
    (y, _), pullback = batch_norm_train_vjp(*arrays, STATE, **options)
    return y, pullback


def network(training):
    states = SMALL.init_states()
    if training is False:
        _, states = SMALL.apply(SMALL.init(np.random.default_rng(1)), states, draw((4, 1, 6, 6))[0])

    def call(params, x):
        (logits, _), pullback = SMALL.apply_vjp(params, states, x, training=training)
        return logits, pullback

    return call


GRADIENT_CASES = [
    GradientCase(batch_norm_train_vjp, draw((5, 3), 3, 3), method="complex", call=in_training),
    GradientCase(batch_norm_train_vjp, draw((2, 3, 2, 4), 3, 3), {"eps": 1e-2}, method="complex", call=in_training, name="images"),
    GradientCase(batch_norm_eval_vjp, draw((2, 3, 2, 4), 3, 3), method="complex", call=lambda *a: batch_norm_eval_vjp(*a, STATE)),
    GradientCase(
        RandomFeatureResNet.apply_vjp, (SMALL.init(np.random.default_rng(0)), draw((3, 1, 6, 6))[0]), call=network(True), step=1e-6, name="training"
    ),
    GradientCase(
        RandomFeatureResNet.apply_vjp, (SMALL.init(np.random.default_rng(0)), draw((3, 1, 5, 6))[0]), call=network(False), step=1e-6, name="in use"
    ),
]  # fmt: skip


def test_training_form_is_batch_norm_and_its_running_statistics():
    x, gain, bias = draw((4, 3, 2, 5), 3, 3)
    y, state = batch_norm_train(x, gain, bias, STATE, momentum=0.3)
    np.testing.assert_array_equal(y, batch_norm(x, gain, bias, axes=(0, 2, 3)))
    running = update_running_statistics(STATE.mean, STATE.var, *batch_statistics(x, (0, 2, 3)), 40, momentum=0.3)
    np.testing.assert_array_equal(state.mean, running[0])
    np.testing.assert_array_equal(state.var, running[1])
    np.testing.assert_array_equal(
        batch_norm_eval(x, gain, bias, state), batch_norm(x, gain, bias, state.mean, state.var, axes=(0, 2, 3))
    )


def test_channel_without_gain_sends_nothing_back_but_can_revive():
    x, dy = draw((6, 1), (6, 1))
    dx, dgain, _ = batch_norm_train_vjp(x, np.zeros(1), np.zeros(1), BatchNormState.create(1))[1](dy)
    assert not dx.any()
    assert abs(dgain[0]) > 1e-3


def test_norms_of_one_stage_have_twice_the_width_for_every_convolution():
    params = RandomFeatureResNet(width=16, depth=2).init(np.random.default_rng(0))
    assert (
        sum(a.size for name, a in params.items() if name.endswith((".gain", ".bias")) and "output" not in name) == 160
    )


@pytest.mark.parametrize(
    ("kind", "gain", "bias"),
    [("uniform", (0, 1), 0), ("fixed", (1, 1), 0), ("one_one", (1, 1), 1), ("positive_negative", (-1, 1), 0)],
)
def test_initial_gains_and_biases(kind, gain, bias):
    params = RandomFeatureResNet(width=64, depth=1, norm_init=kind).init(np.random.default_rng(0))
    found = params["stem.gain"]
    assert (found >= gain[0]).all()
    assert (found <= gain[1]).all()
    assert (found.min() < 0) == (kind == "positive_negative")
    assert (params["stem.bias"] == bias).all()


def test_convolutions_start_with_variance_two_over_fan_in():
    params = RandomFeatureResNet(width=32, depth=1).init(np.random.default_rng(0))
    weight = params["stage0.block0.second.conv"]
    np.testing.assert_allclose(weight.var(), 2 / 288, rtol=0.05)


def test_network_is_the_composition_that_it_says():
    model = RandomFeatureResNet(width=3, depth=1, classes=4)
    params, states, x = model.init(np.random.default_rng(0)), model.init_states(), draw((2, 1, 5, 5))[0]

    def layer(h, name):
        h = conv2d(h, params[f"{name}.conv"], padding=1)
        return batch_norm(h, params[f"{name}.gain"], params[f"{name}.bias"], axes=(0, 2, 3))

    h = relu(layer(x, "stem"))
    inner = layer(relu(layer(h, "stage0.block0.first")), "stage0.block0.second")
    expected = linear(relu(h + inner).mean(axis=(2, 3)), params["output.weight"], params["output.bias"])
    np.testing.assert_allclose(model.apply(params, states, x)[0], expected, rtol=1e-12)


def test_later_stages_double_the_width_and_have_shortcuts():
    params = RandomFeatureResNet(width=4, depth=2, stages=3).init(np.random.default_rng(0))
    assert params["stage1.block0.shortcut.conv"].shape == (8, 4, 1, 1)
    assert params["stage2.block0.first.conv"].shape == (16, 8, 3, 3)
    assert params["output.weight"].shape == (16, 10)
    assert "stage1.block1.shortcut.conv" not in params
    assert "stage0.block0.shortcut.conv" not in params


def test_in_use_an_example_does_not_see_its_neighbours():
    params, states, x = SMALL.init(np.random.default_rng(0)), SMALL.init_states(), draw((6, 1, 6, 6))[0]
    _, states = SMALL.apply(params, states, x)
    whole, after = SMALL.apply(params, states, x, training=False)
    part, _ = SMALL.apply(params, states, x[:2], training=False)
    np.testing.assert_allclose(part, whole[:2], rtol=1e-10)
    for name, state in states.items():
        assert after[name] is state


@pytest.mark.parametrize("mode", ["all", "bn", "output", "bn+output", "random_per_channel", "shortcut"])
def test_masks_choose_what_their_mode_says(mode):
    params = SMALL.init(np.random.default_rng(0))
    mask = trainable_mask(params, mode, np.random.default_rng(0))
    assert {name: m.shape for name, m in mask.items()} == {name: p.shape for name, p in params.items()}
    for name, chosen in mask.items():
        kind = name.rsplit(".", 1)[1]
        output = name.startswith("output.")
        expected = {
            "all": True,
            "bn": kind in ("gain", "bias") and not output,
            "output": output,
            "bn+output": kind in ("gain", "bias") or output,
            "shortcut": "shortcut" in name,
        }.get(mode)
        if mode == "random_per_channel":
            assert chosen.sum() == (2 * len(chosen) if kind == "conv" else 0)
        else:
            assert (chosen == expected).all()


@given(k=st.integers(1, 9), seed=st.integers(0, 99))
def test_random_weights_are_as_many_for_every_channel(k, seed):
    params = {"stem.conv": np.ones((5, 1, 3, 3))}
    chosen = trainable_mask(params, "random_per_channel", np.random.default_rng(seed), k=k)["stem.conv"]
    assert (chosen.sum(axis=(1, 2, 3)) == k).all()


@given(seed=st.integers(0, 99), momentum=st.floats(0, 0.99), decay=st.floats(0, 0.1))
def test_masked_steps_are_momentum_sgd_on_the_chosen_entries_and_leave_the_rest(seed, momentum, decay):
    rng = np.random.default_rng(seed)
    params, mask = {"w": rng.standard_normal(6)}, {"w": rng.random(6) < 0.5}
    optimizer = MaskedSGD(0.1, momentum, decay)
    state, w, v = optimizer.init(params), params["w"].copy(), np.zeros(6)
    moved = params
    for _ in range(4):
        grad = rng.standard_normal(6)
        moved, state = optimizer.step(moved, {"w": grad}, state, mask)
        v = momentum * v + grad + decay * w
        w = w - 0.1 * v
    chosen = mask["w"]
    np.testing.assert_allclose(moved["w"][chosen], w[chosen], rtol=1e-12)
    np.testing.assert_array_equal(moved["w"][~chosen], params["w"][~chosen])
    assert not state.velocity["w"][~chosen].any()


@given(seed=st.integers(0, 99), share=st.floats(0, 1))
def test_fractions_count_gains_and_channels(seed, share):
    rng = np.random.default_rng(seed)
    small = rng.random(50) < share
    gain = np.where(small, 0.009, 0.011) * rng.choice([-1, 1], 50)
    assert disabled_fraction(gain) == small.mean()
    activation = np.where(small, 0.0, rng.random((200, 50)))
    assert dead_relu_fraction(activation) == small.mean()


def test_frozen_weights_are_the_same_bits_after_training():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((48, 1, 4, 4)), np.arange(48) % 3
    model, seen = RandomFeatureResNet(width=4, depth=1, classes=3), []
    run = run_batch_norm_only(
        np.random.default_rng(5),
        "bn",
        x,
        target,
        x,
        target,
        model=model,
        epochs=4,
        batch_size=16,
        callback=lambda e, loss: seen.append(loss),
    )
    start = model.init(np.random.default_rng(5))
    for name, array in run.params.items():
        if name.endswith((".gain", ".bias")) and not name.startswith("output"):
            assert (array != start[name]).any()
        else:
            np.testing.assert_array_equal(array, start[name])
    assert run.trained == 24
    assert seen == list(run.history)
    assert run.history[-1] < run.history[0]
    assert run.train_accuracy == run.test_accuracy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, gain, bias = (a.astype(dtype) for a in draw((4, 3, 2, 2), 3, 3))
    (y, state), pullback = batch_norm_train_vjp(x, gain, bias, BatchNormState.create(3, dtype))
    assert {a.dtype for a in (y, state.mean, state.var, *pullback(y))} == {np.dtype(dtype)}
    params = SMALL.init(np.random.default_rng(0), dtype=dtype)
    (logits, states), pullback = SMALL.apply_vjp(
        params, SMALL.init_states(dtype=dtype), x[:, :1].repeat(3, 2).repeat(3, 3)
    )
    grads, dx = pullback(logits)
    kept = [a for s in states.values() for a in (s.mean, s.var)]
    assert {a.dtype for a in (logits, dx, *grads.values(), *kept)} == {np.dtype(dtype)}
    mask = trainable_mask(params, "bn", np.random.default_rng(0))
    moved, _ = MaskedSGD().step(params, grads, MaskedSGD().init(params), mask)
    assert {a.dtype for a in moved.values()} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    params, x = SMALL.init(np.random.default_rng(0)), draw((3, 1, 6, 6))[0]
    for array in (*params.values(), x):
        array.setflags(write=False)
    (logits, _), pullback = SMALL.apply_vjp(params, SMALL.init_states(), x)
    grads, _ = pullback(logits)
    MaskedSGD().step(params, grads, MaskedSGD().init(params), trainable_mask(params, "all", np.random.default_rng(0)))


ONE, W = np.ones(3), {"w": np.ones(2)}
MADE = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (batch_norm_train, (np.ones((1, 3)), ONE, ONE, STATE), {}, ValueError, r"x: expected at least two values a channel, got shape \(1, 3\)"),
        (batch_norm_train, (np.ones((4, 3)), np.ones(2), ONE, STATE), {}, ValueError, r"gain: expected shape \(3,\), got \(2,\)"),
        (batch_norm_train, (np.ones((4, 3)), ONE, ONE, STATE), {"momentum": 2.0}, ValueError, r"momentum: expected a number in \[0, 1\], got 2.0"),
        (batch_norm_eval, (np.ones((4, 3)), ONE, ONE, BatchNormState(ONE, -ONE)), {}, ValueError, "var: expected values >= 0, got -1.0"),
        (trainable_mask, (W, "bn", MADE), {}, ValueError, "mode: expected one that trains at least one parameter, got 'bn'"),
        (trainable_mask, (W, "none", MADE), {}, ValueError, "mode: expected one of 'all', .*, got 'none'"),
        (trainable_mask, ({"a.conv": np.ones((2, 1, 1, 1))}, "random_per_channel", MADE), {}, ValueError, "k: expected at most the 1 weights of a filter of a.conv, got 2"),
        (trainable_mask, (W, "all", 0), {}, TypeError, "rng: expected a numpy.random.Generator"),
        (MaskedSGD, (0.0,), {}, ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (MaskedSGD, (0.1, 1.0), {}, ValueError, r"momentum: expected a number in \[0, 1\), got 1.0"),
        (MaskedSGD().step, (W, W, MaskedSGD().init(W), {"w": np.ones(2)}), {}, TypeError, "mask: expected boolean arrays, got dtype float64"),
        (MaskedSGD().step, (W, W, MaskedSGD().init(W), {"w": np.ones(3, bool)}), {}, ValueError, r"mask: expected shape \(2,\), got \(3,\)"),
        (disabled_fraction, (np.ones(0),), {}, ValueError, "gain: expected at least one entry"),
        (dead_relu_fraction, (np.ones((2, 3)),), {"share": 1.0}, ValueError, r"share: expected a number in \[0, 1\), got 1.0"),
        (RandomFeatureResNet, (0,), {}, ValueError, "width: expected an integer >= 1, got 0"),
        (RandomFeatureResNet, (), {"norm_init": "zero"}, ValueError, "norm_init: expected one of 'uniform', .*, got 'zero'"),
        (run_batch_norm_only, (MADE, "bn", np.ones((4, 1, 4, 4)), np.zeros(3, int), np.ones((4, 1, 4, 4)), np.zeros(4, int)), {}, ValueError, r"target: expected shape \(4,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
