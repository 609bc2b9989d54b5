import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    SpadeBlockParams,
    SpadeParams,
    group_norm,
    init_spade,
    init_spade_block,
    instance_norm,
    spade,
    spade_modulate,
    spade_modulate_vjp,
    spade_resblock,
    spade_resblock_vjp,
    spade_vjp,
    zero_conv_add,
    zero_conv_add_vjp,
)
from refnorm.norms._spatially_adaptive_norm import _resize_nearest
from refnorm.tree import tree_leaves

RNG = np.random.default_rng(24)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def parameters(channels=4, hidden=3, **options):
    return init_spade(channels, 2, hidden, np.random.default_rng(0), **options)


X, CONDITION = draw((2, 4, 3, 4), (2, 2, 3, 4))
BLOCK = init_spade_block(4, 4, 2, 3, np.random.default_rng(1))
WIDER = init_spade_block(4, 6, 2, 3, np.random.default_rng(2), time_features=5)

GRADIENT_CASES = [
    GradientCase(spade_modulate_vjp, draw((2, 3), (2, 3), (2, 3)), method="complex"),
    GradientCase(spade_vjp, (X, CONDITION, *parameters()), {"groups": 2}, method="complex"),
    GradientCase(spade_vjp, (X, CONDITION, *parameters()), {"norm": "batch", "eps": 1e-2}, method="complex", name="batch"),
    GradientCase(spade_vjp, (X, CONDITION, *parameters()), {"norm": "instance", "activation": "relu"}, step=1e-4, name="instance, relu"),
    GradientCase(spade_vjp, (X, draw((2, 2, 2, 3))[0], *parameters()), {"groups": 1, "resize": "nearest"}, method="complex", name="enlarged"),
    GradientCase(spade_vjp, (X, draw((2, 2, 7, 5))[0], *parameters()), {"groups": 4, "resize": "nearest"}, method="complex", name="reduced"),
    GradientCase(spade_vjp, (np.ones(X.shape), CONDITION, *parameters()), {"groups": 2, "eps": 0.1}, method="complex", name="constant"),
    GradientCase(spade_resblock_vjp, (X, CONDITION, BLOCK, None), {"groups": 2}, method="complex"),
    GradientCase(spade_resblock_vjp, (X, CONDITION, WIDER, *draw((2, 5))), {"groups": 2}, method="complex", name="wider, with time"),
    GradientCase(zero_conv_add_vjp, draw((2, 3, 2, 2), (2, 4, 2, 2), (3, 4, 1, 1), 3), method="complex"),
]  # fmt: skip


def test_zero_heads_start_as_the_plain_norm():
    params = parameters(zero_heads=True)
    one, zero = np.ones(4), np.zeros(4)
    np.testing.assert_array_equal(spade(X, CONDITION, *params, groups=2), group_norm(X, one, zero, groups=2))
    np.testing.assert_array_equal(spade(X, CONDITION, *params, norm="instance"), instance_norm(X, one, zero))


def test_constant_features_give_the_bias_map():
    params = parameters()
    without_gain = params._replace(gain_weight=0 * params.gain_weight, gain_bias=0 * params.gain_bias)
    y = spade(np.full(X.shape, 3.0), CONDITION, *params, groups=2)
    np.testing.assert_array_equal(y, spade(np.zeros(X.shape), CONDITION, *without_gain, groups=2))
    assert np.abs(y).max() > 0.1


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_scale_and_shift_of_an_example_do_not_matter(seed, scale, shift):
    rng = np.random.default_rng(seed)
    x, condition = rng.standard_normal((2, 4, 3, 3)), rng.standard_normal((2, 2, 3, 3))
    options = {"groups": 2, "eps": 1e-300}
    np.testing.assert_allclose(
        spade(scale * x + shift, condition, *parameters(), **options),
        spade(x, condition, *parameters(), **options),
        atol=1e-10,
    )


def test_spatially_constant_maps_are_one_gain_and_bias_a_channel():
    params = parameters()
    flat = params._replace(gain_weight=0 * params.gain_weight, bias_weight=0 * params.bias_weight)
    np.testing.assert_allclose(
        spade(X, CONDITION, *flat, groups=2),
        group_norm(X, 1 + params.gain_bias, params.bias_bias, groups=2),
        rtol=1e-12,
        atol=1e-13,
    )


def test_a_pixel_of_the_condition_reaches_two_pixels_around():
    x, condition = draw((1, 4, 9, 9), (1, 2, 9, 9))
    moved = condition.copy()
    moved[0, 0, 4, 4] += 1
    changed = np.abs(spade(x, moved, *parameters(), groups=2) - spade(x, condition, *parameters(), groups=2)).max(
        (0, 1)
    )
    assert (changed[2:7, 2:7] > 0).all()
    changed[2:7, 2:7] = 0
    assert not changed.any()


@given(before=st.integers(1, 7), after=st.integers(1, 7))
def test_resizing_copies_the_nearest_pixel_and_its_adjoint_collects(before, after):
    condition = np.arange(float(before * 2)).reshape(1, 1, before, 2)
    resized, back = _resize_nearest(condition, (after, 2))
    np.testing.assert_array_equal(resized[0, 0], condition[0, 0][np.arange(after) * before // after])
    dy = np.random.default_rng(0).standard_normal(resized.shape)
    np.testing.assert_allclose((back(dy) * condition).sum(), (dy * resized).sum(), rtol=1e-12, atol=1e-12)


def test_block_with_zero_second_convolution_is_its_shortcut():
    still = BLOCK._replace(second_weight=0 * BLOCK.second_weight, second_bias=0 * BLOCK.second_bias)
    np.testing.assert_array_equal(spade_resblock(X, CONDITION, still, groups=2), X)


def test_zero_convolution_leaves_the_backbone_and_learns_at_once():
    backbone, control, dy = draw((2, 3, 4, 4), (2, 5, 4, 4), (2, 3, 4, 4))
    y, pullback = zero_conv_add_vjp(backbone, control, np.zeros((3, 5, 1, 1)), np.zeros(3))
    np.testing.assert_array_equal(y, backbone)
    dbackbone, dcontrol, dweight, dbias = pullback(dy)
    np.testing.assert_array_equal(dbackbone, dy)
    assert not dcontrol.any()
    assert np.abs(dweight).min() > 0
    assert np.abs(dbias).min() > 0


@given(channels=st.integers(1, 6), hidden=st.integers(1, 6), seed=st.integers(0, 99))
def test_initial_numbers_stay_within_the_bound_of_their_fan_in(channels, hidden, seed):
    params = init_spade(channels, 3, hidden, np.random.default_rng(seed))
    assert np.abs(params.hidden_weight).max() <= 1 / np.sqrt(27)
    for array in params[2:]:
        assert np.abs(array).max() <= 1 / np.sqrt(9 * hidden)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, condition = X.astype(dtype), CONDITION.astype(dtype)
    for norm in ("group", "batch", "instance"):
        y, pullback = spade_vjp(x, condition, *parameters(dtype=dtype), norm=norm, groups=2)
        assert {a.dtype for a in (y, *pullback(y))} == {np.dtype(dtype)}
    block = init_spade_block(4, 6, 2, 3, np.random.default_rng(2), time_features=5, dtype=dtype)
    y, pullback = spade_resblock_vjp(x, condition, block, np.ones((2, 5), dtype), groups=2)
    leaves = [leaf for _, leaf in tree_leaves(pullback(y))]
    assert {a.dtype for a in (y, *leaves)} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays = [array.copy() for array in (X, CONDITION, *parameters())]
    for array in arrays:
        array.setflags(write=False)
    spade_vjp(*arrays, groups=2)[1](arrays[0])


P = parameters()


def with_(**changes):
    return (X, CONDITION, *P._replace(**changes))


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (spade, (X, CONDITION, *P), {"groups": 3}, ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        (spade, (X, CONDITION[..., :2], *P), {"groups": 2}, ValueError, r"condition: expected shape \(2, 2, 3, 4\), got \(2, 2, 3, 2\)"),
        (spade, (X, np.zeros((2, 2, 3, 4), int), *P), {"groups": 2}, TypeError, "condition: expected a float32 or float64 array, got dtype int64"),
        (spade, (X, CONDITION.astype("f4"), *P), {"groups": 2}, TypeError, "condition: expected dtype float64 like x, got float32"),
        (spade, (X, CONDITION, *P), {"norm": "layer"}, ValueError, "norm: expected one of 'group', 'batch', 'instance', got 'layer'"),
        (spade, (X, CONDITION, *P), {"activation": "gelu"}, ValueError, "activation: expected one of 'silu', 'relu', got 'gelu'"),
        (spade, (X, CONDITION, *P), {"resize": "linear"}, ValueError, "resize: expected one of None, 'nearest', got 'linear'"),
        (spade, with_(gain_weight=np.ones((3, 3, 3, 3))), {"groups": 2}, ValueError, r"gain_weight: expected shape \(4, 3, 3, 3\), got \(3, 3, 3, 3\)"),
        (spade, with_(hidden_weight=np.ones((3, 2, 2, 2))), {"groups": 2}, ValueError, "hidden_weight: expected a filter with odd sizes"),
        (spade, with_(hidden_weight=np.ones((3, 5, 3, 3))), {"groups": 2}, ValueError, r"hidden_weight: expected shape \(3, 2, 3, 3\)"),
        (spade_modulate, (X, X[:1], X), {}, ValueError, r"gain_map: expected shape \(2, 4, 3, 4\)"),
        (spade_resblock, (X, CONDITION, WIDER), {"groups": 2}, ValueError, "time_embedding: expected both of it and params.time_weight, or neither"),
        (spade_resblock, (X, CONDITION, WIDER._replace(time_weight=None, shortcut_weight=None)), {"groups": 2}, ValueError, "params.shortcut_weight: expected a 1 x 1 filter where the channels change"),
        (zero_conv_add, (X, CONDITION, np.ones((4, 3, 1, 1)), np.ones(4)), {}, ValueError, r"weight: expected shape \(4, 2, 1, 1\), got \(4, 3, 1, 1\)"),
        (init_spade, (0, 1, 1, np.random.default_rng(0)), {}, ValueError, "channels: expected an integer >= 1, got 0"),
        (init_spade, (1, 1, 1, 0), {}, TypeError, "rng: expected a numpy.random.Generator"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_parameters_are_named_trees():
    assert isinstance(P, SpadeParams)
    assert isinstance(BLOCK, SpadeBlockParams)
    assert [path for path, _ in tree_leaves(P)] == [str(i) for i in range(6)]
