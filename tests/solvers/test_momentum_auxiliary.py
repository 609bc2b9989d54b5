import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import conv2d
from refnorm.softmax import cross_entropy
from refnorm.solvers import (
    Lion,
    LocalNet,
    activation_floats,
    auxiliary_features,
    auxiliary_features_vjp,
    ema_update,
    init_local_net,
    local_grads,
    local_losses,
    local_train_step,
    predict_local_net,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(5)
VARIANTS = ("man", "greedy", "ema_only", "bias_only", "end_to_end")
TARGET = np.array([0, 2, 1, 1])


def small(variant="man", window=None, sizes=(3, 4, 5, 4), blocks=3):
    """A network whose biases are not 0, so that every gradient is seen."""
    net = init_local_net(np.random.default_rng(8), sizes, blocks, 3, variant=variant, head_hidden=6, window=window)
    return tree_map(lambda a: a + 0.1 * RNG.standard_normal(a.shape), net)


def apply(layer, x):
    weight, bias = layer
    if weight.ndim == 4:
        return np.maximum(conv2d(x, weight, bias, padding=weight.shape[-1] // 2), 0)
    return np.maximum(x @ weight + bias, 0)


def run_block(net, number, x, frozen_ema):
    """Loss and output of one block, by the definition."""
    for layer in net.blocks[number]:
        x = apply(layer, x)
    v = x
    if number < len(net.blocks) - 1 and (net.learnable or net.ema):
        v = sum(apply(layers[number], x) for layers in (net.learnable, frozen_ema) if layers)
    v = v.mean(axis=(2, 3)) if v.ndim == 4 else v
    for layer in net.heads[number][:-1]:
        v = apply(layer, v)
    weight, bias = net.heads[number][-1]
    return cross_entropy(v @ weight + bias, TARGET), x


def losses_vjp(net, x):
    losses, grads, _ = local_grads(net, x, TARGET)

    def pullback(dlosses):
        # Block j's parameters have the gradient of loss j alone.
        assert (dlosses == dlosses[0]).all()
        scaled = tree_map(lambda a, g: np.zeros_like(a) if g is None else dlosses[0] * g, net, grads)
        return scaled, np.zeros_like(x)

    return losses.sum(), lambda d: pullback(np.full(len(losses), d))


def stopped(net, x):
    """The sum of losses with every block's input, and the running averages, held at their values."""
    inputs = [x]
    for number in range(len(net.blocks) - 1):
        inputs.append(run_block(net, number, inputs[-1], net.ema)[1])

    def surrogate(moved, _):
        return sum(run_block(moved, number, z, net.ema)[0] for number, z in enumerate(inputs))

    return surrogate


def twin_case(layers, x, name):
    learnable, ema = layers
    return GradientCase(
        auxiliary_features_vjp,
        (x, learnable, ema),
        surrogate=lambda x, learnable, _: apply(learnable, x) + apply(ema, x),
        step=1e-5,
        name=name,
    )


def layer(*shape):
    return RNG.standard_normal(shape), RNG.standard_normal(shape[0] if len(shape) == 4 else shape[1])


DENSE, IMAGES = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 2, 4, 3))
CASES = [(variant, small(variant), DENSE) for variant in VARIANTS]
CASES += [("man, two layers a block", small(sizes=(3, 4, 4, 4, 5), blocks=2), DENSE)]
CASES += [(f"{v}, images", small(v, window=3, sizes=(2, 3, 4), blocks=2), IMAGES) for v in ("man", "greedy")]

# Short steps: a ReLU that switches within a step would spoil the difference.
GRADIENT_CASES = [
    twin_case((layer(3, 5), layer(3, 5)), DENSE, "dense"),
    twin_case((layer(3, 2, 3, 3), layer(3, 2, 3, 3)), IMAGES, "images"),
    *(GradientCase(losses_vjp, (net, x), surrogate=stopped(net, x), step=1e-5, name=name) for name, net, x in CASES),
]


@pytest.mark.parametrize(("variant", "net", "x"), CASES)
def test_losses_are_those_of_the_definition(variant, net, x):
    expected, z = [], x
    for number in range(len(net.blocks)):
        loss, z = run_block(net, number, z, net.ema)
        expected.append(loss)
    np.testing.assert_allclose(local_losses(net, x, TARGET), expected, rtol=1e-13)
    losses, _, logits = local_grads(net, x, TARGET)
    np.testing.assert_array_equal(losses, local_losses(net, x, TARGET))
    np.testing.assert_array_equal(logits, predict_local_net(net, x))


@given(number=st.integers(0, 2), seed=st.integers(0, 99))
def test_a_block_does_not_feel_the_blocks_behind_it(number, seed):
    net = small()
    rng = np.random.default_rng(seed)
    behind = tuple(
        tree_map(lambda a: a + rng.standard_normal(a.shape), block) if place > number else block
        for place, block in enumerate(net.blocks)
    )
    before, after = (local_grads(n, DENSE, TARGET)[1] for n in (net, dataclasses.replace(net, blocks=behind)))
    for name in ("blocks", "heads", "learnable"):
        pairs = zip(
            tree_leaves(getattr(before, name)[: number + 1]),
            tree_leaves(getattr(after, name)[: number + 1]),
            strict=True,
        )
        assert all((a == b).all() for (_, a), (_, b) in pairs)


def test_one_block_is_end_to_end_training():
    whole = small("end_to_end")
    assert len(whole.blocks) == len(whole.heads) == 1
    assert (whole.learnable, whole.ema) == ((), ())
    assert len(local_losses(whole, DENSE, TARGET)) == 1


def test_the_gradient_passes_through_the_average_into_the_block():
    x, layers = np.array([[2.0]]), [(np.array([[w]]), np.zeros(1)) for w in (1.0, 0.5)]
    y, pullback = auxiliary_features_vjp(x, *layers)
    dx, dlearnable, dema = pullback(np.ones((1, 1)))
    assert (y, dx, dlearnable[0], dema[0]) == (3.0, 1.5, 2.0, 0.0)


def test_prediction_ignores_everything_auxiliary():
    net = small()
    other = dataclasses.replace(small(), blocks=net.blocks, heads=(*small().heads[:-1], net.heads[-1]))
    np.testing.assert_array_equal(predict_local_net(net, DENSE), predict_local_net(other, DENSE))


@given(momentum=st.floats(0, 1), steps=st.integers(1, 20))
def test_average_forgets_geometrically(momentum, steps):
    average = {"w": np.array([1.0, -2.0])}
    for _ in range(steps):
        average = ema_update(average, {"w": np.zeros(2)}, momentum=momentum)
    np.testing.assert_allclose(average["w"], momentum**steps * np.array([1.0, -2.0]), rtol=1e-12, atol=1e-300)


def test_average_moves_towards_the_layer_before_the_step():
    net, optimizer = small(), Lion(learning_rate=0.1)
    after, _, losses = local_train_step(net, optimizer, optimizer.init(net), DENSE, TARGET, momentum=0.75)
    np.testing.assert_array_equal(losses, local_losses(net, DENSE, TARGET))
    for number, (weight, bias) in enumerate(after.ema):
        old, target = net.ema[number], net.blocks[number + 1][0]
        np.testing.assert_array_equal(weight, 0.75 * old[0] + 0.25 * target[0])
        np.testing.assert_array_equal(bias, 0.75 * old[1] + 0.25 * target[1])
    assert (after.blocks[1][0][0] != net.blocks[1][0][0]).any()


@settings(max_examples=10)
@given(variant=st.sampled_from(VARIANTS), seed=st.integers(0, 99))
def test_a_few_steps_lower_every_loss(variant, seed):
    rng = np.random.default_rng(seed)
    net = init_local_net(rng, [3, 16, 16, 16], 3, 3, variant=variant, head_hidden=16)
    optimizer = Lion(learning_rate=3e-3)
    state, before = optimizer.init(net), local_losses(net, DENSE, TARGET)
    for _ in range(30):
        net, state, _ = local_train_step(net, optimizer, state, DENSE, TARGET, momentum=0.9)
    assert local_losses(net, DENSE, TARGET).sum() < before.sum()


def test_storage_by_hand():
    # Inputs 2 + 3 (twins) + 4 (head) + 5 (head), probabilities 6; masks of 3 + 4 + 4 + 5 = 16 units are one float.
    net = init_local_net(np.random.default_rng(0), [2, 3, 4], 2, 6, head_hidden=5)
    assert activation_floats(net) == 2 + 3 + 4 + 5 + 6 + 1
    # The last block: inputs 3 and 4, probabilities 6, a mask of 4 units. It is not the largest.
    images = init_local_net(np.random.default_rng(0), [2, 3], 1, 6, window=3)
    assert activation_floats(images, pixels=16) == 2 * 16 + 3 + 6 + 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype):
    net, x = tree_map(lambda a: a.astype(dtype), small()), DENSE.astype(dtype)
    for _, leaf in tree_leaves((net, x)):
        leaf.setflags(write=False)
    optimizer = Lion()
    after, state, losses = local_train_step(net, optimizer, optimizer.init(net), x, TARGET)
    assert losses.dtype == dtype
    assert {leaf.dtype for _, leaf in tree_leaves((after, state.momentum))} == {np.dtype(dtype)}


NET = small()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ema_update(np.ones(2), np.ones(2), momentum=1.5), ValueError, r"momentum: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: ema_update(np.ones(2), np.ones(3)), ValueError, r"target: expected shape \(2,\), got \(3,\)"),
        (lambda: init_local_net(RNG, [3, 4], 2, 2), ValueError, "n_blocks: expected an integer >= 1 and <= 1, got 2"),
        (lambda: init_local_net(RNG, [3], 1, 2), ValueError, "sizes: expected the input's width and at least one layer's"),
        (lambda: init_local_net(RNG, [3, 4], 1, 2, variant="dgl"), ValueError, "variant: expected one of 'man', 'greedy'"),
        (lambda: init_local_net(RNG, [3, 4], 1, 2, window=2), ValueError, "window: expected an odd number, got 2"),
        (lambda: init_local_net(0, [3, 4], 1, 2), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: local_losses(dataclasses.replace(NET, blocks=NET.blocks[::-1]), DENSE, TARGET), ValueError, r"net.learnable.1: expected shape \(3, 4\), got \(5, 4\)"),
        (lambda: local_losses(dataclasses.replace(NET, ema=NET.ema[:1]), DENSE, TARGET), ValueError, "net.ema: expected 0 or 2 layers, got 1"),
        (lambda: local_losses(dataclasses.replace(NET, learnable=NET.learnable[::-1]), DENSE, TARGET), ValueError, "net.learnable.0: expected a layer of 4 inputs, got 5"),
        (lambda: local_losses(dataclasses.replace(NET, heads=NET.heads[:2]), DENSE, TARGET), ValueError, "net.heads: expected 3 heads"),
        (lambda: local_losses(LocalNet((), ()), DENSE, TARGET), ValueError, "net.blocks: expected at least one block"),
        (lambda: local_losses(NET, DENSE[:, :2], TARGET), ValueError, r"x: expected shape \(4, 3\), got \(4, 2\)"),
        (lambda: auxiliary_features(DENSE, layer(3, 4), layer(3, 5)), ValueError, r"ema: expected shape \(4, 4\), got \(4, 5\)"),
        (lambda: activation_floats(NET, pixels=0), ValueError, "pixels: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
