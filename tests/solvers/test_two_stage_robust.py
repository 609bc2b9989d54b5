import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

import refnorm.solvers._two_stage_robust as module
from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    KnapsackInstance,
    SetValueNet,
    ccg,
    exact_main,
    init_value_net,
    interval_bounds,
    knapsack_data,
    neural_adversary,
    neural_ccg,
    neural_main,
    random_knapsack,
    relu_milp_constraints,
    second_stage_value,
    set_value,
    set_value_vjp,
    solve_exact,
    train_value_net,
    worst_case_exact,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(21)
PARAMS = tree_map(
    lambda a: a + 0.1 * RNG.standard_normal(a.shape), init_value_net(RNG, embed=5, pool=4, code=3, head=4)
)
INSTANCE = random_knapsack(4, RNG)
SMALL = SetValueNet(PARAMS, np.array([0.0, 1, 1, 0.5, 1, 0, 10]), np.array([1.0, 19, 20, 15, 30, 10, 40]), -60.0, 60.0)


def predict_vjp(x, xi):
    return SMALL.predict_vjp(INSTANCE, x, xi)


A, B = RNG.uniform(0, 1, (2, 3, 4, 7))

# Short steps: a ReLU that switches within a step would spoil the difference.
GRADIENT_CASES = [
    GradientCase(set_value_vjp, (PARAMS, A, B), step=1e-5, name="sets of four"),
    GradientCase(set_value_vjp, (PARAMS, A[:, :1], B[:, :1]), step=1e-5, name="sets of one"),
    GradientCase(predict_vjp, (A[0, :, 0], B[0, :, 0]), step=1e-5, name="scaled prediction"),
]


def one(capacity):
    ones = np.ones(1)
    return KnapsackInstance(ones, 5 * ones, 4 * ones, 3 * ones, ones, capacity, 1.0)


def reactions(instance, x):
    """All feasible reactions and their slopes and offsets in xi, by the definition."""
    found = []
    for state in itertools.product((0, 1, 2), repeat=instance.n):
        y, r = np.array([s > 0 for s in state], float), np.array([s == 2 for s in state], float)
        if (y <= x).all() and instance.cost @ y + instance.repair @ r <= instance.capacity:
            found.append((instance.degradation * (y - r), -instance.outsourcing @ y))
    return found


def worst_by_linear_program(instance, x):
    found = reactions(instance, x)
    rows = [[*-slope, 1.0] for slope, _ in found] + [[*np.ones(instance.n), 0.0]]
    right = [offset for _, offset in found] + [instance.budget]
    result = linprog(
        [*np.zeros(instance.n), -1.0], A_ub=rows, b_ub=right, bounds=[(0, 1)] * instance.n + [(None, None)]
    )
    return instance.first_stage(x) - result.fun


@pytest.mark.parametrize(("capacity", "worst"), [(2.0, -5.0), (1.0, -2.0), (0.5, -2.0)])
def test_one_item_by_hand(capacity, worst):
    np.testing.assert_allclose(worst_case_exact(one(capacity), np.ones(1))[0], worst, atol=1e-9)
    assert worst_case_exact(one(capacity), np.zeros(1))[0] == 0


@given(seed=st.integers(0, 999), n=st.integers(1, 5))
def test_reaction_is_the_best_of_all(seed, n):
    rng = np.random.default_rng(seed)
    instance, x, xi = random_knapsack(n, rng, budget=1.0), rng.integers(0, 2, n) * 1.0, rng.uniform(0, 1, n)
    value, y, r = second_stage_value(instance, x, xi)
    np.testing.assert_allclose(value, min(slope @ xi + offset for slope, offset in reactions(instance, x)), rtol=1e-12)
    assert (r <= y).all()
    assert (y <= x).all()
    loss = instance.degradation * xi
    np.testing.assert_allclose(value, (loss - instance.outsourcing) @ y - loss @ r, rtol=1e-12)


def test_listing_and_mixed_integer_program_agree(monkeypatch):
    cases = [(random_knapsack(5, RNG), RNG.integers(0, 2, 5) * 1.0, RNG.uniform(0, 1, 5)) for _ in range(6)]
    listed = [second_stage_value(*case) for case in cases]
    monkeypatch.setattr(module, "ENUMERATE_UP_TO", 0)
    for case, (value, y, r) in zip(cases, listed, strict=True):
        other = second_stage_value(*case)
        np.testing.assert_allclose(other[0], value, rtol=1e-9)
        np.testing.assert_array_equal(other[1:], (y, r))


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_worst_case_is_that_of_the_full_linear_program(seed):
    rng = np.random.default_rng(seed)
    instance, x = random_knapsack(4, rng, budget=rng.uniform(0, 4)), rng.integers(0, 2, 4) * 1.0
    value, xi = worst_case_exact(instance, x)
    np.testing.assert_allclose(value, worst_by_linear_program(instance, x), rtol=1e-7, atol=1e-7)
    assert xi.sum() <= instance.budget + 1e-6
    np.testing.assert_allclose(value, instance.first_stage(x) + second_stage_value(instance, x, xi)[0], rtol=1e-7)


def test_worst_scenario_need_not_be_a_vertex():
    # Two items, room for one, half a budget each way: splitting it hurts more than spending it on either.
    ones = np.ones(2)
    instance = KnapsackInstance(ones, 2 * ones, 2 * ones, 2 * ones, ones, 1.0, 1.0)
    value, xi = worst_case_exact(instance, ones)
    np.testing.assert_allclose(xi, 0.5, atol=1e-6)
    corners = max(second_stage_value(instance, ones, np.array(v))[0] for v in ([0.0, 1], [1.0, 0], [0.0, 0]))
    assert value > corners + 0.5


@settings(max_examples=8)
@given(seed=st.integers(0, 999))
def test_exact_solution_is_the_best_of_all_decisions(seed):
    instance = random_knapsack(4, np.random.default_rng(seed))
    values = [worst_case_exact(instance, np.array(x))[0] for x in itertools.product((0.0, 1.0), repeat=4)]
    solution = solve_exact(instance)
    np.testing.assert_allclose(solution.value, min(values), rtol=1e-9)
    np.testing.assert_allclose(worst_case_exact(instance, solution.x)[0], solution.value, rtol=1e-9)


def test_all_second_stages_are_those_of_single_decisions():
    xi = RNG.uniform(0, 1, 4)
    decisions = np.array(list(itertools.product((0.0, 1.0), repeat=4)))
    expected = [second_stage_value(INSTANCE, x, xi)[0] for x in decisions]
    np.testing.assert_allclose(module._all_second_stages(INSTANCE, decisions, xi), expected, rtol=1e-12)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999))
def test_classical_generation_reaches_the_optimum_with_rising_bounds(seed):
    instance = random_knapsack(4, np.random.default_rng(seed))
    result = ccg(instance, worst_case_exact, exact_main)
    assert result.converged
    np.testing.assert_allclose(result.value, solve_exact(instance).value, rtol=1e-6)
    assert (np.diff(result.history["value"]) >= -1e-6).all()
    assert len(result.history["value"]) == result.n_iter == len(result.scenarios)


def test_generation_stops_at_its_limit_or_when_asked():
    instance = random_knapsack(5, np.random.default_rng(4))
    for options in ({"max_iter": 1}, {"callback": lambda progress: True}):
        result = ccg(instance, worst_case_exact, exact_main, **options)
        assert (result.n_iter, result.converged) == (1, False)


@given(seed=st.integers(0, 99))
def test_order_of_the_items_does_not_matter(seed):
    order = np.random.default_rng(seed).permutation(4)
    np.testing.assert_allclose(set_value(PARAMS, A[:, order], B[:, order]), set_value(PARAMS, A, B), rtol=1e-12)


def forward(layers, x):
    for number, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        x = np.maximum(x, 0) if number < len(layers) - 1 else x
    return x


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), depth=st.integers(1, 3))
def test_relu_constraints_leave_one_output_for_each_input(seed, depth):
    rng = np.random.default_rng(seed)
    sizes = [2, *rng.integers(1, 5, depth - 1), 2]
    layers = [(rng.standard_normal(s), rng.standard_normal(s[1])) for s in itertools.pairwise(sizes)]
    x = rng.uniform(-1, 2, 2)
    program = relu_milp_constraints(layers, np.full(2, -1.0), np.full(2, 2.0))
    low, high = program.variable_low.copy(), program.variable_high.copy()
    low[program.inputs] = high[program.inputs] = x
    for sign in (1, -1):
        goal = np.zeros(len(low))
        goal[program.outputs] = sign
        result = milp(
            goal,
            constraints=LinearConstraint(program.matrix, program.low, program.high),
            integrality=program.integrality,
            bounds=Bounds(low, high),
        )
        np.testing.assert_allclose(result.x[program.outputs], forward(layers, x), atol=1e-5)


@given(seed=st.integers(0, 999))
def test_interval_bounds_hold(seed):
    rng = np.random.default_rng(seed)
    layers = [(rng.standard_normal(s), rng.standard_normal(s[1])) for s in ((3, 4), (4, 2))]
    lower = rng.uniform(-2, 0, 3)
    upper = lower + rng.uniform(0, 2, 3)
    bounds = interval_bounds(layers, lower, upper)
    x = rng.uniform(lower, upper, (200, 3))
    a = x @ layers[0][0] + layers[0][1]
    for (low, high), values in zip(bounds, (a, forward(layers, x)), strict=True):
        assert (low <= values).all()
        assert (values <= high).all()
    # A single linear layer's bounds are attained.
    corner = np.where(layers[0][0][:, 0] > 0, upper, lower)
    np.testing.assert_allclose(corner @ layers[0][0][:, 0] + layers[0][1][0], bounds[0][1][0], atol=1e-8)


SCENARIOS = np.array([[0.0, 0, 0, 0], [1, 0, 0, 1], [0.3, 0.9, 0.1, 0.2]])
DECISIONS = np.array(list(itertools.product((0.0, 1.0), repeat=4)))


def test_main_problem_with_predicted_values_is_solved_exactly():
    values = [INSTANCE.first_stage(x) + max(SMALL.predict(INSTANCE, x, xi) for xi in SCENARIOS) for x in DECISIONS]
    x, value, optimal = neural_main(INSTANCE, SMALL, SCENARIOS)
    assert optimal
    np.testing.assert_array_equal(x, DECISIONS[np.argmin(values)])
    np.testing.assert_allclose(value, min(values), rtol=1e-6)


def test_main_problem_with_exact_reaction_to_the_predicted_worst_scenario():
    values = []
    for x in DECISIONS:
        worst = SCENARIOS[np.argmax([SMALL.predict(INSTANCE, x, xi) for xi in SCENARIOS])]
        values.append(INSTANCE.first_stage(x) + second_stage_value(INSTANCE, x, worst)[0])
    x, value, _ = neural_main(INSTANCE, SMALL, SCENARIOS, formulation="argmax")
    np.testing.assert_array_equal(x, DECISIONS[np.argmin(values)])
    np.testing.assert_allclose(value, min(values), rtol=1e-6)


def test_adversary_finds_the_largest_prediction():
    x = np.array([1.0, 1, 0, 1])
    grid = [np.array(v) for v in itertools.product(np.linspace(0, 1, 9), repeat=4) if sum(v) <= INSTANCE.budget]
    best = INSTANCE.first_stage(x) + max(SMALL.predict(INSTANCE, x, xi) for xi in grid)
    value, xi, optimal = neural_adversary(INSTANCE, SMALL, x)
    assert optimal
    assert value >= best - 1e-6
    assert xi.sum() <= INSTANCE.budget + 1e-6
    np.testing.assert_allclose(value, INSTANCE.first_stage(x) + SMALL.predict(INSTANCE, x, xi), rtol=1e-12)
    climbed, where, _ = neural_adversary(INSTANCE, SMALL, x, method="gradient", rng=np.random.default_rng(1))
    assert best - 0.05 * abs(best) <= climbed <= value + 1e-6
    assert ((where >= 0) & (where <= 1)).all()
    assert where.sum() <= INSTANCE.budget + 1e-9


@given(seed=st.integers(0, 99), budget=st.floats(0, 5))
def test_projection_on_the_budget_is_the_closest_point(seed, budget):
    rng = np.random.default_rng(seed)
    xi = rng.normal(0.5, 1, (3, 5))
    projected = module._into_budget(xi, budget)
    assert (projected.sum(axis=1) <= budget + 1e-9).all()
    for _ in range(20):
        other = rng.uniform(0, 1, 5)
        other *= min(1.0, budget / max(other.sum(), 1e-9))
        # The angle between xi - projected and any way into the set is at least a right one.
        assert (((xi - projected) * (other - projected)).sum(axis=1) <= 1e-7).all()


@pytest.mark.parametrize("method", ["milp", "gradient"])
@pytest.mark.parametrize("formulation", ["max", "argmax"])
def test_learned_generation_ends_and_values_its_decision_exactly(formulation, method):
    result = neural_ccg(INSTANCE, SMALL, formulation=formulation, method=method)
    assert result.converged
    np.testing.assert_allclose(result.value, worst_case_exact(INSTANCE, result.x)[0], rtol=1e-9)
    assert result.value >= solve_exact(INSTANCE).value - 1e-6


def test_training_lowers_the_error_and_scales_the_data():
    rng = np.random.default_rng(2)
    data = knapsack_data([random_knapsack(3, rng) for _ in range(8)], rng, pairs=10)
    errors = []
    net = train_value_net(
        data, rng=rng, epochs=60, learning_rate=1e-2, batch=32, callback=lambda p: errors.append(p.values["error"])
    )
    assert errors[-1] < 0.3 * errors[0]
    assert (net.low[0], net.scale[0]) == (0, 1)
    assert (net.value_low, net.value_low + net.value_scale) == (data[2].min(), data[2].max())


def test_a_constant_feature_is_not_divided_by_zero():
    rng = np.random.default_rng(2)
    instance = random_knapsack(3, rng)
    net = train_value_net(knapsack_data([instance], rng, pairs=6), rng=rng, epochs=1)
    assert net.scale[6] == 1
    assert np.isfinite(net.predict(instance, np.ones(3), np.zeros(3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype):
    params, a, b = tree_map(lambda array: array.astype(dtype), (PARAMS, A, B))
    for _, leaf in tree_leaves((params, a, b)):
        leaf.setflags(write=False)
    y, pullback = set_value_vjp(params, a, b)
    assert {leaf.dtype for _, leaf in tree_leaves((y, pullback(y)))} == {np.dtype(dtype)}


ONES = np.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KnapsackInstance(ONES, ONES, ONES, ONES, ONES, 1.0, 3.0), ValueError, r"budget: expected a number in \[0.0, 2.0\], got 3.0"),
        (lambda: KnapsackInstance(ONES, ONES, -ONES, ONES, ONES, 1.0, 1.0), ValueError, "degradation: expected numbers >= 0, got -1.0"),
        (lambda: KnapsackInstance(ONES, ONES, ONES, np.ones(3), ONES, 1.0, 1.0), ValueError, r"outsourcing: expected shape \(2,\), got \(3,\)"),
        (lambda: KnapsackInstance(ONES, ONES, ONES, ONES, ONES, -1.0, 1.0), ValueError, "capacity: expected a finite number >= 0, got -1.0"),
        (lambda: second_stage_value(INSTANCE, np.full(4, 0.5), np.zeros(4)), ValueError, "x: expected entries 0 or 1"),
        (lambda: second_stage_value(INSTANCE, np.ones(4), np.full(4, 1.5)), ValueError, r"xi: expected entries in \[0, 1\]"),
        (lambda: worst_case_exact(INSTANCE, np.ones(3)), ValueError, r"x: expected shape \(4,\), got \(3,\)"),
        (lambda: solve_exact(random_knapsack(9, RNG)), ValueError, "instance: expected at most 8 items, got 9"),
        (lambda: ccg(INSTANCE, worst_case_exact, exact_main, scenarios=np.zeros((0, 4))), ValueError, "scenarios: expected at least one scenario, got 0"),
        (lambda: exact_main(INSTANCE, []), ValueError, "scenarios: expected at least one scenario, got 0"),
        (lambda: neural_main(INSTANCE, SMALL, SCENARIOS, formulation="min"), ValueError, "formulation: expected one of 'max', 'argmax', got 'min'"),
        (lambda: neural_main(INSTANCE, SMALL, SCENARIOS, time_limit=0.0), ValueError, "time_limit: expected a finite number > 0, got 0.0"),
        (lambda: neural_adversary(INSTANCE, SMALL, np.ones(4), method="lp"), ValueError, "method: expected one of 'milp', 'gradient', got 'lp'"),
        (lambda: set_value(PARAMS, A, B[:, :2]), ValueError, r"scenarios: expected shape \(3, 4, 7\), got \(3, 2, 7\)"),
        (lambda: knapsack_data([], RNG), ValueError, r"instances: expected at least one, all of one size, got \[\]"),
        (lambda: interval_bounds([], np.ones(2), np.zeros(2)), ValueError, "lower: expected bounds not above upper, got 2 that are"),
        (lambda: init_value_net(RNG, code=0), ValueError, "code: expected an integer >= 1, got 0"),
        (lambda: random_knapsack(3, 0), TypeError, "rng: expected a numpy.random.Generator"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_callback_ends_the_training_of_the_value_network():
    seen = []

    def stop(progress):
        seen.append(progress)
        return True

    rng = np.random.default_rng(0)
    data = knapsack_data([random_knapsack(3, rng)], rng, pairs=20)
    train_value_net(data, rng=rng, epochs=5, callback=stop)
    assert len(seen) == 1
