import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    allocate_ratios,
    apply_mask,
    apply_mask_vjp,
    distortion_curves,
    erk_ratios,
    global_ratios,
    iterative_targets,
    lamp_ratios,
    lamp_scores,
    magnitude_mask,
    relative_ratios,
)

RNG = np.random.default_rng(1)

GRADIENT_CASES = [
    GradientCase(apply_mask_vjp, (RNG.standard_normal((3, 4)), RNG.random((3, 4)) < 0.5), method="complex"),
    GradientCase(apply_mask_vjp, (RNG.standard_normal(5), np.zeros(5, bool)), method="complex", name="nothing stays"),
    GradientCase(apply_mask_vjp, (RNG.standard_normal((2, 1, 3)), np.ones((2, 1, 3), bool)), method="complex"),
]


def instance(seed, layers=3, steps=5):
    rng = np.random.default_rng(seed)
    curves = np.cumsum(rng.random((layers, steps + 1)) ** 3, axis=1)
    curves[:, 0] = 0
    return curves, rng.integers(1, 40, layers), np.arange(steps + 1) / steps, float(rng.uniform(0.1, 0.95))


def kept(sizes, ratios):
    return np.array([[n - int(np.floor(a * n + 1e-9)) for a in ratios] for n in sizes])


def exhaustive(curves, sizes, ratios, sparsity, lowest=None):
    stay, budget = kept(sizes, ratios), int(np.floor((1 - sparsity) * sizes.sum() + 1e-9))
    found = [
        (sum(curves[row, d] for row, d in enumerate(choice)), choice)
        for choice in itertools.product(range(len(ratios)), repeat=len(sizes))
        if sum(stay[row, d] for row, d in enumerate(choice)) <= budget
        and all(lowest is None or ratios[d] >= lowest[row] for row, d in enumerate(choice))
    ]
    return min(found)


@given(
    size=st.integers(0, 40),
    ratio=st.floats(-0.5, 1.5),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_mask_prunes_the_smallest_and_ties_from_the_left(size, ratio, levels, seed):
    weight = np.random.default_rng(seed).integers(-levels, levels + 1, size).astype(float)
    mask = magnitude_mask(weight, ratio)
    count = int(np.floor(np.clip(ratio, 0, 1) * size * (1 + 1e-15)))
    expected = np.ones(size, bool)
    expected[np.argsort(np.abs(weight), kind="stable")[:count]] = False
    assert (mask == expected).all()


@pytest.mark.parametrize(("ratio", "size", "pruned"), [(0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7), (1 / 3, 3, 1), (0.999, 100, 99)])  # fmt: skip
def test_products_a_rounding_below_a_whole_number_count_as_it(ratio, size, pruned):
    assert (~magnitude_mask(np.arange(1.0, size + 1), ratio)).sum() == pruned


def test_masks_of_growing_ratios_are_nested():
    weight = RNG.standard_normal((6, 7)).round(1)
    masks = [magnitude_mask(weight, d / 20) for d in range(21)]
    assert all((after <= before).all() for before, after in itertools.pairwise(masks))
    assert masks[0].all()
    assert not masks[-1].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    weight = RNG.standard_normal((2, 3)).astype(dtype)
    y, pullback = apply_mask_vjp(weight, magnitude_mask(weight, 0.5))
    assert y.dtype == pullback(y)[0].dtype == lamp_scores(weight).dtype == dtype
    assert relative_ratios(np.zeros(2, dtype), np.zeros(2, dtype)).dtype == dtype


def test_pruned_nan_disappears():
    assert (apply_mask(np.array([np.nan, 1.0]), np.array([False, True])) == [0, 1]).all()


def test_curve_of_a_linear_layer_is_the_energy_of_what_went():
    weight, x = RNG.standard_normal((5, 3)), RNG.standard_normal((40, 5))
    ratios = np.arange(6) / 5
    curve = distortion_curves(lambda x, w: x @ w[0], [weight], x, ratios=ratios)[0]
    worst = distortion_curves(lambda x, w: x @ w[0], [weight], x, ratios=ratios, worst_case=True)[0]
    for d, ratio in enumerate(ratios):
        lost = x @ np.where(magnitude_mask(weight, ratio), 0, weight)
        np.testing.assert_allclose(curve[d], (lost**2).mean(), rtol=1e-12)
        np.testing.assert_allclose(worst[d], (lost**2).mean(axis=1).max(), rtol=1e-12)
    assert curve[0] == worst[0] == 0


def test_curves_leave_the_weights_alone_and_accumulate_in_float64():
    weights = [RNG.standard_normal((4, 4)).astype(np.float32) for _ in range(2)]
    for weight in weights:
        weight.setflags(write=False)
    x = RNG.standard_normal((10, 4)).astype(np.float32)
    curves = distortion_curves(lambda x, w: np.maximum(x @ w[0], 0) @ w[1], weights, x, ratios=[0, 0.5, 1])
    assert curves.dtype == np.float64
    # Without one of the two layers nothing is left of the output.
    np.testing.assert_allclose(curves[0, 2], curves[1, 2], rtol=1e-6)


@settings(max_examples=50)
@given(seed=st.integers(0, 9999))
def test_allocation_is_the_best_of_all_choices(seed):
    curves, sizes, ratios, sparsity = instance(seed)
    made = allocate_ratios(curves, sizes, ratios=ratios, sparsity=sparsity)
    objective, choice = exhaustive(curves, sizes, ratios, sparsity)
    np.testing.assert_allclose(made.objective, objective, rtol=1e-12)
    assert (made.ratios == ratios[list(choice)]).all()
    assert (made.survivors == kept(sizes, ratios)[range(3), list(choice)]).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 9999))
def test_no_layer_goes_below_its_previous_ratio(seed):
    curves, sizes, ratios, sparsity = instance(seed)
    previous = np.random.default_rng(seed).choice(ratios, 3)
    made = allocate_ratios(curves, sizes, ratios=ratios, sparsity=sparsity, previous=previous)
    assert (made.ratios >= previous).all()
    np.testing.assert_allclose(made.objective, exhaustive(curves, sizes, ratios, sparsity, previous)[0], rtol=1e-12)


@settings(max_examples=60)
@given(seed=st.integers(0, 9999), resolution=st.integers(1, 60))
def test_buckets_never_exceed_the_budget_and_cost_only_objective(seed, resolution):
    curves, sizes, ratios, sparsity = instance(seed, layers=4, steps=8)
    exact = allocate_ratios(curves, sizes, ratios=ratios, sparsity=sparsity)
    coarse = allocate_ratios(curves, sizes, ratios=ratios, sparsity=sparsity, resolution=resolution)
    budget = int(np.floor((1 - sparsity) * sizes.sum() + 1e-9))
    assert coarse.survivors.sum() <= budget
    assert exact.survivors.sum() <= budget
    assert coarse.objective >= exact.objective - 1e-12


def test_large_budgets_are_divided_into_buckets():
    curves = np.cumsum(RNG.random((5, 11)), axis=1)
    sizes = np.array([1000, 200_000, 37, 50_000, 1_000_000])
    made = allocate_ratios(curves, sizes, ratios=np.arange(11) / 10, sparsity=0.5)
    assert made.survivors.sum() <= sizes.sum() // 2


@given(seed=st.integers(0, 9999))
def test_more_sparsity_never_costs_less(seed):
    curves, sizes, ratios, _ = instance(seed)
    objectives = [allocate_ratios(curves, sizes, ratios=ratios, sparsity=s).objective for s in (0, 0.3, 0.6, 0.9, 1)]
    assert objectives == sorted(objectives)
    assert objectives[0] == 0


def test_no_budget_prunes_everything():
    made = allocate_ratios(np.ones((2, 3)), [5, 7], ratios=[0, 0.5, 1], sparsity=1.0)
    assert (made.ratios == 1).all()
    assert made.survivors.sum() == 0


def test_ties_prune_the_last_layer_least():
    made = allocate_ratios(np.zeros((2, 3)), [4, 4], ratios=[0, 0.5, 1], sparsity=0.5)
    assert (made.ratios == [1, 0]).all()


def test_monotone_does_not_believe_a_dip():
    curves = np.array([[0.0, 3.0, 2.0], [0.0, 2.5, 2.6]])
    plain = allocate_ratios(curves, [4, 4], ratios=[0, 0.5, 1], sparsity=0.5)
    careful = allocate_ratios(curves, [4, 4], ratios=[0, 0.5, 1], sparsity=0.5, monotone=True)
    assert (plain.objective, *plain.ratios) == (2.0, 1.0, 0.0)
    assert (careful.objective, *careful.ratios) == (2.6, 0.0, 1.0)


def test_rounds_reach_their_targets_and_relative_ratios_compose():
    targets = iterative_targets(0.2, 5)
    np.testing.assert_allclose(targets, 1 - 0.8 ** np.arange(1, 6), rtol=1e-14)
    np.testing.assert_allclose(relative_ratios(targets[1:], targets[:-1]), 0.2, rtol=1e-13)
    assert (relative_ratios(np.array([0.3]), np.array([0.5])) == 0).all()


@given(
    shapes=st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=4), min_size=1, max_size=6),
    sparsity=st.floats(0, 1),
)
def test_erk_meets_the_budget_and_orders_layers_by_their_score(shapes, sparsity):
    ratios = erk_ratios(shapes, sparsity)
    sizes = np.array([np.prod(shape) for shape in shapes])
    np.testing.assert_allclose(((1 - ratios) * sizes).sum(), (1 - sparsity) * sizes.sum(), rtol=1e-9, atol=1e-9)
    assert ratios.min() >= -1e-12
    score = np.array([sum(shape) for shape in shapes]) / sizes
    order = np.argsort(score)
    assert (np.diff(1 - ratios[order]) >= -1e-9).all()


@pytest.mark.parametrize("rule", [global_ratios, lamp_ratios])
@given(seed=st.integers(0, 999), sparsity=st.floats(0, 1))
def test_threshold_rules_prune_exactly_the_share(rule, seed, sparsity):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((4, 5)), 3 * rng.standard_normal(11), rng.standard_normal((2, 2, 2))]
    ratios = rule(weights, sparsity)
    pruned = [int((~magnitude_mask(weight, ratio)).sum()) for weight, ratio in zip(weights, ratios, strict=True)]
    assert sum(pruned) == int(np.floor(39 * sparsity * (1 + 1e-15)))


def test_lamp_keeps_one_weight_of_each_layer_to_the_end():
    weights = [1e-3 * RNG.standard_normal(10), RNG.standard_normal(20), 1e3 * RNG.standard_normal(30)]
    assert (lamp_ratios(weights, 57 / 60) == [0.9, 0.95, 29 / 30]).all()
    assert global_ratios(weights, 0.5)[2] == 0


@given(scale=st.floats(1e-150, 1e150), seed=st.integers(0, 99))
def test_lamp_scores_have_no_scale_and_the_order_of_magnitudes(scale, seed):
    weight = np.random.default_rng(seed).standard_normal(12)
    scores = lamp_scores(weight)
    np.testing.assert_allclose(lamp_scores(scale * weight), scores, rtol=1e-12)
    assert (np.argsort(scores) == np.argsort(np.abs(weight))).all()
    assert scores.max() == 1


def test_lamp_scores_of_zeros_are_zero():
    assert (lamp_scores(np.zeros((2, 2))) == 0).all()


GRID = [0, 0.5, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: magnitude_mask(np.array([1, 2]), 0.5), TypeError, "weight: expected a float32 or float64 array, got dtype int64"),
        (lambda: magnitude_mask(np.array([1.0, np.nan]), 0.5), ValueError, "weight: expected finite values, got 1 that are not"),
        (lambda: magnitude_mask(np.ones(2), np.nan), ValueError, "ratio: expected a finite number, got nan"),
        (lambda: apply_mask(np.ones(2), np.ones(2)), TypeError, "mask: expected a bool array, got dtype float64"),
        (lambda: apply_mask(np.ones(2), np.ones(3, bool)), ValueError, r"mask: expected shape \(2,\), got \(3,\)"),
        (lambda: distortion_curves(lambda x, w: x, [], np.ones(2), ratios=GRID), ValueError, "weights: expected at least one array, got none"),
        (lambda: distortion_curves(lambda x, w: x, [np.ones(2)], np.ones(2), ratios=[0.5, 0.2]), ValueError, "ratios: expected increasing numbers"),
        (lambda: distortion_curves(lambda x, w: np.ones(int(w[0].sum())), [np.ones(2)], 0, ratios=GRID), ValueError, r"output of forward: expected shape \(2,\), got \(1,\)"),
        (lambda: distortion_curves(lambda x, w: x, [np.ones(2)], np.ones(0), ratios=GRID), ValueError, "output of forward: expected at least one entry"),
        (lambda: allocate_ratios(np.ones((2, 3)), [4], ratios=GRID, sparsity=0.5), ValueError, r"curves: expected shape \(1, 3\), got \(2, 3\)"),
        (lambda: allocate_ratios(np.array([[0, 1.0, 2], [0, np.nan, 1]]), [4, 4], ratios=GRID, sparsity=0.5), ValueError, "curves: expected finite values, got NaN or infinity in layer 1"),
        (lambda: allocate_ratios(np.ones((1, 3)), [0], ratios=GRID, sparsity=0.5), ValueError, "sizes: expected values of at least 1, got 0"),
        (lambda: allocate_ratios(np.ones((1, 3)), [4], ratios=GRID, sparsity=1.5), ValueError, r"sparsity: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: allocate_ratios(np.ones((1, 3)), [4], ratios=[0, 0.5, 0.75], sparsity=0.9), ValueError, "sparsity: expected ratios that let at most 0 weights stay, got at least 1"),
        (lambda: allocate_ratios(np.ones((1, 2)), [4], ratios=[0, 0.5], sparsity=0.5, previous=[0.75]), ValueError, "previous: expected numbers of at most 0.5, the end of the grid, got 0.75"),
        (lambda: allocate_ratios(np.ones((1, 3)), [4], ratios=GRID, sparsity=0.5, previous=[0.5, 0]), ValueError, r"previous: expected shape \(1,\), got \(2,\)"),
        (lambda: allocate_ratios(np.ones((1, 3)), [4], ratios=GRID, sparsity=0.5, resolution=0), ValueError, "resolution: expected an integer >= 1, got 0"),
        (lambda: allocate_ratios(np.ones((2, 2)), [4, 4], ratios=[0, 0.5], sparsity=0.5, resolution=1), ValueError, "resolution: expected buckets fine enough for the smallest layers, got 1"),
        (lambda: iterative_targets(1.0, 3), ValueError, r"rate: expected a number in \(0.0, 1.0\), got 1.0"),
        (lambda: relative_ratios(np.array([1.5]), np.array([0.0])), ValueError, r"ratios: expected numbers in \[0, 1\]"),
        (lambda: erk_ratios([], 0.5), ValueError, r"shapes: expected at least one, got \[\]"),
        (lambda: erk_ratios([(2, 0)], 0.5), ValueError, "shapes: expected an integer >= 1, got 0"),
        (lambda: global_ratios([np.ones(2), np.ones(0)], 0.5), ValueError, r"weights\[1\]: expected at least one entry"),
        (lambda: lamp_ratios([np.ones(2)], -0.1), ValueError, r"sparsity: expected a number in \[0.0, 1.0\], got -0.1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("curves", "sizes", "ratios", "message"),
    [
        (np.zeros((0, 2)), [], [0.0, 1.0], "sizes: expected at least one layer, got none"),
        (
            np.zeros((1, 2)),
            [4],
            [[0.0, 1.0]],
            r"ratios: expected 1 to \d+ numbers in one dimension, got shape \(1, 2\)",
        ),
        (np.zeros((1, 0)), [4], [], r"ratios: expected 1 to \d+ numbers in one dimension, got shape \(0,\)"),
    ],
)
def test_curves_without_layers_or_ratios_are_refused(curves, sizes, ratios, message):
    with pytest.raises(ValueError, match=message):
        allocate_ratios(curves, np.array(sizes, int), ratios=ratios, sparsity=0.5)
