import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import mlp_init, mlp_loss_and_grads, mlp_vjp

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    WidthPlan,
    averaging_matrix,
    coalesce,
    coalesce_depth,
    coalesce_depth_vjp,
    coalesce_linear,
    coalesce_linear_vjp,
    coalesce_vjp,
    copy_matrix,
    decoalesce,
    decoalesce_depth,
    decoalesce_depth_vjp,
    decoalesce_linear,
    decoalesce_linear_vjp,
    decoalesce_vjp,
    depth_matrix,
    interpolate,
    interpolate_vjp,
    mlp_width_plan,
    pair_scheme,
    vcycle_train,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(41)
UNEQUAL = [(0, 3, 4), (1,), (2, 5)]


def normal(*shape):
    return RNG.standard_normal(shape)


BIG = [(normal(3, 4), normal(4)), (normal(4, 6), normal(6)), (normal(6, 2), normal(2))]
PLAN = mlp_width_plan(BIG)
SMALL = coalesce(BIG, PLAN)
DEEP = {"embed": normal(5, 4), "layers": [{"w": normal(4, 4), "b": normal(4)} for _ in range(4)]}
STREAM = ("average", pair_scheme(4))
DEEP_PLAN = WidthPlan(
    {"embed": (None, STREAM)}
    | {f"layers.{i}.w": (("sum", pair_scheme(4)), STREAM) for i in range(4)}
    | {f"layers.{i}.b": (STREAM,) for i in range(4)},
    normalized=True,
)
DEPTH = ("layers", depth_matrix(4, near=False))

GRADIENT_CASES = [
    GradientCase(coalesce_linear_vjp, (normal(6, 4), normal(4), normal(2, 4), normal(6, 3)), method="complex"),
    GradientCase(
        coalesce_linear_vjp,
        (normal(4, 6), normal(6), averaging_matrix(UNEQUAL, 6), copy_matrix(pair_scheme(4), 4)),
        method="complex",
        name="true matrices",
    ),
    GradientCase(decoalesce_linear_vjp, (normal(3, 2), normal(2), normal(4, 2), normal(3, 6)), method="complex"),
    GradientCase(coalesce_depth_vjp, (DEEP["layers"], normal(2, 4)), method="complex"),
    GradientCase(decoalesce_depth_vjp, (DEEP["layers"][:2], normal(4, 2)), method="complex"),
    GradientCase(coalesce_vjp, (BIG, PLAN), method="complex", name="width"),
    GradientCase(coalesce_vjp, (DEEP, DEEP_PLAN, DEPTH), method="complex", name="width and depth"),
    GradientCase(decoalesce_vjp, (SMALL, PLAN), method="complex", name="width"),
    GradientCase(
        decoalesce_vjp,
        (coalesce(DEEP, DEEP_PLAN, DEPTH), DEEP_PLAN, DEPTH),
        method="complex",
        name="width and depth",
    ),
    GradientCase(interpolate_vjp, (BIG, mlp_init(RNG, (3, 4, 6, 2)), 0.3), method="complex", name="networks"),
    GradientCase(interpolate_vjp, (normal(3), normal(3), 0.5), method="complex", name="vectors"),
]


@st.composite
def partitions(draw):
    n = draw(st.integers(1, 9))
    labels = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return [tuple(i for i in range(n) if labels[i] == label) for label in sorted(set(labels))], n


@given(partitions())
def test_averaging_undoes_copying(partition):
    groups, n = partition
    average, copied = averaging_matrix(groups, n), copy_matrix(groups, n)
    np.testing.assert_allclose(average @ copied, np.eye(len(groups)), atol=1e-15)
    projection = copied @ average
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-15)
    np.testing.assert_allclose(average.sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_array_equal(copied.sum(axis=1), 1)


def test_two_neurons_by_hand():
    plan = WidthPlan({"0": (None, ("average", [(0, 1)])), "1": (("sum", [(0, 1)]), None)})
    big = [np.array([[1.0, 3.0]]), np.array([[2.0], [4.0]])]
    small = coalesce(big, plan)
    assert [leaf.tolist() for leaf in small] == [[[2.0]], [[6.0]]]
    grown = decoalesce(small, plan)
    assert [leaf.tolist() for leaf in grown] == [[[2.0, 2.0]], [[3.0], [3.0]]]
    blend = interpolate(big, grown, 0.5)
    x = 0.7
    assert np.maximum(x * blend[0], 0) @ blend[1] == pytest.approx(12.5 * x)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), near=st.booleans())
def test_growing_in_width_keeps_the_function(seed, near):
    rng = np.random.default_rng(seed)
    big = mlp_init(rng, (3, 8, 6, 2))
    plan = mlp_width_plan(big, near=near)
    small = [(w, rng.standard_normal(b.shape)) for w, b in coalesce(big, plan)]
    x = rng.standard_normal((5, 3))
    np.testing.assert_allclose(mlp_vjp(decoalesce(small, plan), x)[0], mlp_vjp(small, x)[0], atol=1e-13)


def test_groups_of_different_sizes_keep_the_function_as_well():
    groups = ("average", UNEQUAL), ("sum", UNEQUAL)
    plan = WidthPlan({"0.0": (None, groups[0]), "0.1": (groups[0],), "1.0": (groups[1], None)})
    small = mlp_init(RNG, (4, 3, 2))
    x = normal(5, 4)
    np.testing.assert_allclose(mlp_vjp(decoalesce(small, plan), x)[0], mlp_vjp(small, x)[0], atol=1e-13)


@settings(max_examples=25)
@given(seed=st.integers(0, 99))
def test_shrinking_undoes_growing(seed):
    rng = np.random.default_rng(seed)
    small = tree_map(lambda a: rng.standard_normal(a.shape), coalesce(DEEP, DEEP_PLAN, DEPTH))
    again = coalesce(decoalesce(small, DEEP_PLAN, DEPTH), DEEP_PLAN, DEPTH)
    for (_, a), (_, b) in zip(tree_leaves(again), tree_leaves(small), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)


def test_single_layers_and_whole_networks_agree():
    average, copied = averaging_matrix(pair_scheme(4), 4), copy_matrix(pair_scheme(4), 4)
    layer = DEEP["layers"][1]
    weight, bias = coalesce_linear(layer["w"], layer["b"], average, copied)
    whole = coalesce(DEEP, DEEP_PLAN)["layers"][1]
    np.testing.assert_allclose(weight, whole["w"], rtol=1e-14)
    np.testing.assert_allclose(bias, whole["b"], rtol=1e-14)
    weight, bias = decoalesce_linear(whole["w"], whole["b"], copied, average)
    grown = decoalesce(coalesce(DEEP, DEEP_PLAN), DEEP_PLAN)["layers"][1]
    np.testing.assert_allclose(weight, grown["w"], rtol=1e-14)
    np.testing.assert_allclose(bias, grown["b"], rtol=1e-14)


def test_depth_and_width_commute():
    width_first = coalesce(DEEP, DEEP_PLAN, DEPTH)
    depth_first = coalesce(DEEP | {"layers": coalesce_depth(DEEP["layers"], DEPTH[1])}, DEEP_PLAN)
    for (_, a), (_, b) in zip(tree_leaves(width_first), tree_leaves(depth_first), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)
    copies = decoalesce_depth(width_first["layers"], copy_matrix(pair_scheme(4), 4))
    np.testing.assert_array_equal(copies[0]["w"], copies[2]["w"])


@settings(max_examples=15)
@given(seed=st.integers(0, 99))
def test_gradients_at_a_grown_network_are_symmetric(seed):
    rng = np.random.default_rng(seed)
    small = mlp_init(rng, (3, 2, 3, 4))
    plan = mlp_width_plan(mlp_init(rng, (3, 4, 6, 4)))
    x, target = rng.standard_normal((6, 3)), rng.integers(4, size=6)
    grads = mlp_loss_and_grads(decoalesce(small, plan), x, target)[1]
    small_grads = mlp_loss_and_grads(small, x, target)[1]
    # The small network's gradient is the pullback of the big one's, and the big one's has nothing more to say.
    (pulled,) = decoalesce_vjp(small, plan)[1](grads)
    for (_, a), (_, b) in zip(tree_leaves(pulled), tree_leaves(small_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
    averaged = averaging_matrix(pair_scheme(4), 4)
    copied = copy_matrix(pair_scheme(4), 4)
    np.testing.assert_allclose(grads[0][0], small_grads[0][0] @ averaged, atol=1e-13)
    np.testing.assert_allclose(grads[0][0][:, :2], grads[0][0][:, 2:], atol=1e-14)
    np.testing.assert_allclose(grads[1][0][:2], grads[1][0][2:], atol=1e-14)
    np.testing.assert_allclose(copied @ grads[1][0][:2], grads[1][0], atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_the_blend_are_exact(alpha):
    grown = decoalesce(SMALL, PLAN)
    expected = grown if alpha else BIG
    for (_, a), (_, b) in zip(tree_leaves(interpolate(BIG, grown, alpha)), tree_leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pairs_of_blocks():
    assert pair_scheme(8, block=4) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert pair_scheme(4, near=True) == ((0, 1), (2, 3))


def test_cycle_visits_the_levels_and_counts_their_cost():
    big = {"layers": [{"w": normal(4, 4)} for _ in range(4)]}
    plan = WidthPlan({f"layers.{i}.w": (("sum", pair_scheme(4)), ("average", pair_scheme(4))) for i in range(4)})
    narrow = coalesce(big, plan)
    second = WidthPlan({f"layers.{i}.w": (("sum", [(0, 1)]), ("average", [(0, 1)])) for i in range(4)})
    seen = []

    def train(params, steps, rng):
        seen.append((len(params["layers"]), params["layers"][0]["w"].shape[0], steps))
        return tree_map(lambda a: a + 1.0, params), rng.uniform(0.5, 1, steps)

    result = vcycle_train(
        big, [(plan, None), (second, ("layers", depth_matrix(4)))], train, rng=np.random.default_rng(0), steps=(1, 2, 3)
    )
    assert seen == [(4, 4, 1), (4, 2, 1), (2, 1, 2), (4, 2, 2), (4, 4, 3)]
    assert result.history["level"].tolist() == [1, 2, 3, 3, 2, 2, 1, 1, 1]
    assert result.cost == 4 * 64 + 3 * 16 + 2 * 2
    assert (result.n_iter, result.converged) == (9, True)
    # By hand: every stage adds 1, and the blends take half of each side.
    first = tree_map(lambda a: a + 1.0, big)
    middle = tree_map(lambda a: a + 1.0, coalesce(first, plan))
    bottom = tree_map(lambda a: a + 1.0, coalesce(middle, second, ("layers", depth_matrix(4))))
    up = tree_map(lambda a: a + 1.0, interpolate(middle, decoalesce(bottom, second, ("layers", depth_matrix(4))), 0.5))
    top = tree_map(lambda a: a + 1.0, interpolate(first, decoalesce(up, plan), 0.5))
    np.testing.assert_array_equal(result.params["layers"][3]["w"], top["layers"][3]["w"])
    assert narrow["layers"][0]["w"].shape == (2, 2)


def test_without_levels_the_cycle_is_plain_training_and_the_callback_ends_it():
    def train(params, steps, rng):
        return params, [1.0] * steps

    result = vcycle_train(BIG, [], train, rng=np.random.default_rng(0), steps=(7, 7, 2))
    assert result.history["level"].tolist() == [1, 1]
    result = vcycle_train(BIG, PLAN, train, rng=RNG, steps=(2, 3, 4), callback=lambda p: p.n_iter == 2)
    assert (result.n_iter, result.converged) == (2, False)
    assert [w.shape for w, _ in result.params] == [w.shape for w, _ in BIG]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype):
    big = tree_map(lambda a: a.astype(dtype), DEEP)
    for _, leaf in tree_leaves(big):
        leaf.setflags(write=False)
    small, back = coalesce_vjp(big, DEEP_PLAN, DEPTH)
    grown, back_grown = decoalesce_vjp(small, DEEP_PLAN, DEPTH)
    blend, back_blend = interpolate_vjp(big, grown, 0.25)
    trees = (small, grown, blend, back(small), back_grown(grown), back_blend(blend)[:2])
    assert {leaf.dtype for _, leaf in tree_leaves(trees)} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: averaging_matrix([(0, 1), (1, 2)], 3), ValueError, "groups: expected every index from 0 to 2 exactly once, and no empty group"),
        (lambda: copy_matrix([(0, 1), ()], 2), ValueError, "groups: expected every index from 0 to 1 exactly once, and no empty group"),
        (lambda: copy_matrix([(0, 2)], 2), ValueError, "groups: expected an integer >= 0 and <= 1, got 2"),
        (lambda: pair_scheme(6, block=2), ValueError, "d: expected an even number of blocks of 2, got 6"),
        (lambda: depth_matrix(3), ValueError, "d: expected an even number of blocks of 1, got 3"),
        (lambda: coalesce_linear(normal(3, 4), normal(4), normal(2, 5), normal(3, 2)), ValueError, r"average_out: expected shape \(2, 4\), got \(2, 5\)"),
        (lambda: decoalesce_linear(normal(3, 4), normal(4), normal(8, 4), normal(2, 6)), ValueError, r"average_in: expected shape \(3, 6\), got \(2, 6\)"),
        (lambda: coalesce_linear(normal(3, 4), normal(4), normal(2, 4).astype("f4"), normal(3, 2)), TypeError, "average_out: expected dtype float64 like weight, got float32"),
        (lambda: coalesce_depth(DEEP["layers"], np.ones((2, 3))), ValueError, r"matrix: expected 4 columns, one a layer, got shape \(2, 3\)"),
        (lambda: coalesce(BIG, WidthPlan({"0.1": (("average", [(0, 1)]),)})), ValueError, "plan: expected groups for axis 0 of size 4 of '0.1', got 2"),
        (lambda: coalesce(BIG, WidthPlan({"0.1": (("mean", [(0, 1)]),)})), ValueError, "plan: expected one of 'average', 'sum', got 'mean'"),
        (lambda: coalesce(BIG, WidthPlan({"0.1": (("average", [(0, 1, 2), (3,)]),)}, normalized=True)), ValueError, r"plan: expected groups of one size in a normalized network, got \[1, 3\]"),
        (lambda: coalesce(DEEP, DEEP_PLAN, ("blocks", DEPTH[1])), ValueError, "depth: expected the key of a list of layers in a dict of parameters, got 'blocks'"),
        (lambda: interpolate(BIG, BIG, 1.5), ValueError, r"alpha: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: interpolate(BIG, SMALL, 0.5), ValueError, r"grown: expected shape \(3, 4\), got \(3, 2\)"),
        (lambda: vcycle_train(BIG, PLAN, None, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: vcycle_train(BIG, PLAN, None, rng=RNG, steps=(1, -1, 1)), ValueError, "steps: expected an integer >= 0, got -1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
