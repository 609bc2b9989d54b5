import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import mlp_init, mlp_vjp

from refnorm.solvers import (
    HESSO,
    HESSOCRIC,
    SGDP,
    AdamP,
    GroupSpec,
    compress_mlp,
    group_sparsity,
    importance_scores,
    mlp_groups,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(9)


def rows(count, layer=""):
    """One group for each row of an array that is the whole parameter tree."""
    return [GroupSpec(str(i), (("", 0, (i,)),), layer) for i in range(count)]


def run(optimizer, params, groups, steps, grad=lambda params, t: tree_map(np.zeros_like, params)):
    state, history = optimizer.init(params, groups), [params]
    for t in range(steps):
        params, state = optimizer.step(params, grad(params, t), state)
        history.append(params)
    return history, state


def noise(seed):
    rng = np.random.default_rng(seed)
    return lambda params, t: tree_map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), params)


@given(length=st.integers(2, 40), start=st.integers(0, 5))
def test_without_gradients_a_group_fades_linearly_to_exactly_zero(length, start):
    optimizer = HESSO(base="sgd", target_sparsity=0.5, start=start, steps=length)
    history, state = run(optimizer, np.array([[2.0], [1.0]]), rows(2), start + length + 2)
    expected = 1 - np.arange(1, length) / (length - 1) if length > 1 else []
    faded = [float(p[1, 0]) for p in history]
    np.testing.assert_allclose(faded[1 : start + 1], 1.0)
    # The first of the factors (N - 2) / (N - 1) acts at once: t counts from 1.
    np.testing.assert_allclose(faded[start + 1 : start + length], expected, atol=1e-14)
    assert faded[start + length - 1 :] == [0.0] * 4
    assert state.pruned.tolist() == [False, True]
    assert float(history[-1][0, 0]) == 2.0


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (HESSO(base="adam", learning_rate=0.1, target_sparsity=0.0), AdamP(learning_rate=0.1, delta=5e-324)),
        (HESSO(learning_rate=0.1, target_sparsity=0.0), AdamP(learning_rate=0.1, weight_decay=0.01, delta=5e-324)),
        (HESSO(base="sgd", learning_rate=0.1, target_sparsity=0.0), SGDP(learning_rate=0.1, momentum=0.9, delta=5e-324)),
        (HESSOCRIC(base="adam", learning_rate=0.1, target_sparsity=0.0), AdamP(learning_rate=0.1, delta=5e-324)),
    ],
)  # fmt: skip
def test_with_nothing_to_prune_it_is_the_base_optimizer(ours, plain):
    params, grads = {"w": RNG.standard_normal((3, 4))}, RNG.standard_normal((6, 3, 4))
    groups = [GroupSpec(str(i), (("w", 0, (i,)),)) for i in range(3)]
    history, _ = run(ours, params, groups, 6, lambda params, t: {"w": grads[t]})
    expected, state = params, plain.init(params)
    for grad in grads:
        expected, state = plain.step(expected, {"w": grad}, state)
    np.testing.assert_allclose(history[-1]["w"], expected["w"], rtol=1e-12)


def test_coupled_decay_enters_the_gradient():
    params, grads = RNG.standard_normal((4, 2)), RNG.standard_normal((5, 4, 2))
    options = {"base": "adam", "learning_rate": 0.1, "target_sparsity": 0.0}
    ours, _ = run(HESSO(weight_decay=0.3, **options), params, rows(4), 5, lambda p, t: grads[t])
    plain, _ = run(HESSO(**options), params, rows(4), 5, lambda p, t: grads[t] + 0.3 * p)
    np.testing.assert_allclose(ours[-1], plain[-1], rtol=1e-13)


@settings(max_examples=40)
@given(
    count=st.integers(1, 12),
    sparsity=st.floats(0, 0.99),
    periods=st.integers(1, 4),
    extra=st.integers(0, 3),
    base=st.sampled_from(["sgd", "adam", "adamw"]),
    seed=st.integers(0, 99),
)
def test_exactly_the_wanted_number_of_groups_ends_at_zero(count, sparsity, periods, extra, base, seed):
    params = np.random.default_rng(seed).standard_normal((count, 2))
    optimizer = HESSO(
        base=base,
        learning_rate=0.01,
        target_sparsity=sparsity,
        start=1,
        steps=4 * periods + extra,
        periods=periods,
    )
    history, state = run(optimizer, params, rows(count), 4 * periods + extra + 3, noise(seed))
    wanted = int(count * sparsity)
    assert state.pruned.sum() == wanted
    assert group_sparsity(history[-1], rows(count)) == wanted / count
    assert (history[-1][state.pruned] == 0).all()
    assert not state.active.any()


def test_periods_share_the_groups_and_the_last_takes_the_rest():
    optimizer = HESSO(base="sgd", target_sparsity=0.7, steps=9, periods=3)
    state, params, counts = optimizer.init(np.ones((10, 1)), rows(10)), np.ones((10, 1)), []
    for _ in range(9):
        params, state = optimizer.step(params, np.zeros((10, 1)), state)
        counts.append(int(state.pruned.sum()))
    # N = 3: each period chooses at its first step and is done at its second.
    assert counts == [0, 2, 2, 2, 4, 4, 4, 7, 7]
    # All scores are equal at first, so the lowest indices go.
    assert state.pruned.tolist() == [True] * 7 + [False] * 3


def test_fading_groups_still_follow_their_gradient():
    optimizer = HESSO(base="sgd", learning_rate=1.0, momentum=0.0, target_sparsity=0.5, steps=4)
    _, state = (None, optimizer.init(np.array([[1.0], [9.0]]), rows(2)))
    params, _ = optimizer.step(np.array([[1.0], [9.0]]), np.array([[-0.5], [0.0]]), state)
    np.testing.assert_allclose(params[0], 1.5 * 2 / 3)


def test_pruned_groups_ignore_even_a_nan_gradient():
    optimizer = HESSO(base="adam", target_sparsity=0.5, steps=2)
    history, state = run(optimizer, np.array([[1.0], [9.0]]), rows(2), 2)
    grads = np.array([[np.nan], [1.0]])
    params, state = optimizer.step(history[-1], grads, state)
    params, _ = optimizer.step(params, grads, state)
    assert params[0] == 0
    assert np.isfinite(params[1])


@given(divisible=st.integers(1, 5), sparsity=st.floats(0.1, 0.99), seed=st.integers(0, 99))
def test_layers_keep_a_positive_multiple(divisible, sparsity, seed):
    rng = np.random.default_rng(seed)
    params = rng.standard_normal((15, 2)) * np.repeat([1.0, 0.01], [10, 5])[:, None]
    groups = [dataclasses.replace(g, layer=str(i >= 10)) for i, g in enumerate(rows(15))]
    optimizer = HESSO(target_sparsity=sparsity, steps=3, divisible=divisible)
    _, state = run(optimizer, params, groups, 3, noise(seed))
    assert state.pruned.sum() <= int(15 * sparsity)
    for kept, size in (((~state.pruned[:10]).sum(), 10), ((~state.pruned[10:]).sum(), 5)):
        assert kept == size or (kept > 0 and kept % divisible == 0)


def test_scores_by_hand():
    params, direction = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    for name, value, other in (
        ("magnitude", 5.0, 0.0),
        ("average_magnitude", 2.5, 0.0),
        ("cosine", 1.6, 1.0),
        ("taylor1", 3.0, 0.0),
        ("taylor2", 4.5, 0.0),
    ):
        scores = importance_scores(params, direction, rows(2), weights={name: 1.0})
        np.testing.assert_allclose(scores, np.array([value, other]) / np.hypot(value, other), rtol=1e-6)


@given(seed=st.integers(0, 99), count=st.integers(1, 8))
def test_default_score_is_a_fifth_of_each_criterion(seed, count):
    params, direction = np.random.default_rng(seed).standard_normal((2, count, 3))
    each = [
        importance_scores(params, direction, rows(count), weights={name: 0.2})
        for name in ("magnitude", "average_magnitude", "cosine", "taylor1", "taylor2")
    ]
    np.testing.assert_allclose(importance_scores(params, direction, rows(count)), sum(each), rtol=1e-13)


def test_groups_may_reach_over_several_parameters_and_axes():
    params = {"w": np.arange(6.0).reshape(2, 3), "b": np.array([3.0, 0.0, 0.0])}
    group = [GroupSpec("g", (("w", 1, (0,)), ("b", 0, (0,)))), GroupSpec("h", (("w", -1, (1, 2)),))]
    score = importance_scores(params, tree_map(np.zeros_like, params), group, weights={"magnitude": 1.0})
    sizes = np.array([np.sqrt(0 + 9 + 9), np.sqrt(1 + 4 + 16 + 25)])
    np.testing.assert_allclose(score, sizes / np.linalg.norm(sizes), rtol=1e-7)


@given(seed=st.integers(0, 99))
def test_compressed_network_gives_the_same_outputs(seed):
    rng = np.random.default_rng(seed)
    params = [(w, b + rng.standard_normal(b.shape)) for w, b in mlp_init(rng, (3, 6, 5, 2))]
    groups = mlp_groups(params)
    optimizer = HESSO(learning_rate=0.01, target_sparsity=0.5, steps=3)
    history, state = run(optimizer, params, groups, 4, noise(seed))
    small = compress_mlp(history[-1], state.pruned)
    assert sum(w.shape[1] for w, _ in small[:-1]) == 11 - state.pruned.sum() >= 6
    x = rng.standard_normal((7, 3))
    np.testing.assert_allclose(mlp_vjp(small, x)[0], mlp_vjp(history[-1], x)[0], atol=1e-13)


def test_a_trial_leaves_no_trace_but_the_scores():
    params = RNG.standard_normal((6, 2))
    optimizer = HESSOCRIC(base="adam", learning_rate=0.1, target_sparsity=0.5, start=2, sampling_steps=3, max_cycles=1)
    plain = HESSO(base="adam", learning_rate=0.1, target_sparsity=0.0)
    grads = RNG.standard_normal((9, 6, 2))
    state, other = optimizer.init(params, rows(6)), plain.init(params, rows(6))
    expected = params
    for t in range(5):
        params, state = optimizer.step(params, grads[t], state)
        if t < 2:
            expected, other = plain.step(expected, grads[t], other)
    assert (state.phase, state.score_count, int(state.active.sum())) == ("pruning", 3, 3)
    np.testing.assert_array_equal(params, expected)
    # And the averages are back as well: a group that stays takes the step that plain Adam would take.
    expected, _ = plain.step(expected, grads[5], other)
    params, state = optimizer.step(params, grads[5], state)
    np.testing.assert_allclose(params[~state.active], expected[~state.active], rtol=1e-13)


@settings(max_examples=25)
@given(count=st.integers(2, 10), sparsity=st.floats(0, 0.9), cycles=st.integers(1, 4), seed=st.integers(0, 99))
def test_trials_end_with_exactly_the_wanted_number_of_groups(count, sparsity, cycles, seed):
    params = np.random.default_rng(seed).standard_normal((count, 2))
    optimizer = HESSOCRIC(
        learning_rate=0.01,
        target_sparsity=sparsity,
        start=1,
        sampling_steps=3,
        hybrid_steps=4,
        max_cycles=cycles,
    )
    history, state = run(optimizer, params, rows(count), 1 + 3 * cycles + 6, noise(seed))
    wanted = int(count * sparsity)
    assert state.phase == ("done" if wanted else "warm-up")
    assert state.pruned.sum() == wanted
    assert (history[-1][state.pruned] == 0).all()
    assert state.cycle <= cycles


def test_a_group_is_tried_once():
    optimizer = HESSOCRIC(
        base="sgd",
        target_sparsity=0.3,
        sampling_steps=4,
        hybrid_steps=4,
        score_weights={"taylor1": 1.0},
    )
    params = RNG.standard_normal((10, 2))
    grad, state, tried = noise(4), optimizer.init(params, rows(10)), []
    for t in range(60):
        params, state = optimizer.step(params, grad(params, t), state)
        if state.phase == "trial" and state.since == 1:
            tried.append(state.active)
    assert len(tried) > 1
    assert (np.sum(tried, axis=0) <= 1).all()


def test_a_gradient_of_none_leaves_its_parameter():
    params = {"a": np.ones((2, 1)), "b": np.ones(3)}
    groups = [GroupSpec(str(i), (("a", 0, (i,)),)) for i in range(2)]
    optimizer = HESSO(target_sparsity=0.5, steps=3)
    after, _ = optimizer.step(params, {"a": np.ones((2, 1)), "b": None}, optimizer.init(params, groups))
    np.testing.assert_array_equal(after["b"], params["b"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", [HESSO(steps=4), HESSOCRIC(sampling_steps=2, hybrid_steps=2)])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(optimizer, dtype):
    params = {"w": RNG.standard_normal((4, 2)).astype(dtype)}
    params["w"].setflags(write=False)
    groups = [GroupSpec(str(i), (("w", 0, (i,)),)) for i in range(4)]
    history, state = run(optimizer, params, groups, 5, noise(1))
    leaves = [leaf for tree in (*history, state.first, state.second) for _, leaf in tree_leaves(tree)]
    assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}


MLP = [(np.ones((2, 3)), np.ones(3)), (np.ones((3, 1)), np.ones(1))]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: HESSO(base="lion"), ValueError, "base: expected one of 'sgd', 'adam', 'adamw', got 'lion'"),
        (lambda: HESSO(target_sparsity=1.0), ValueError, r"target_sparsity: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: HESSO(steps=3, periods=2), ValueError, "steps: expected an integer >= 4, got 3"),
        (lambda: HESSO(steps=1), ValueError, "steps: expected an integer >= 2, got 1"),
        (lambda: HESSO(score_weights={"norm": 1.0}), ValueError, "score_weights: expected one of 'magnitude'"),
        (lambda: HESSO(score_weights={"cosine": 0.0}), ValueError, "score_weights: expected at least one weight > 0"),
        (lambda: HESSOCRIC(sampling_steps=1), ValueError, "sampling_steps: expected an integer >= 2, got 1"),
        (lambda: HESSO().init(np.ones(2), [GroupSpec("a", ())]), ValueError, "groups: expected at least one parameter in every group, got none in 'a'"),
        (lambda: HESSO().init(np.ones(2), rows(2) + rows(1)), ValueError, "groups: expected no parameter in two groups, got '0' and '0'"),
        (lambda: HESSO().init({"w": np.ones(2)}, rows(1)), ValueError, "groups: expected paths of parameters in '0', got ''"),
        (lambda: HESSO().init(np.ones(2), rows(3)), ValueError, "groups: expected values of at most 1, got 2"),
        (lambda: HESSO().init(np.ones(2, int), []), TypeError, "params: expected a float32 or float64 array, got dtype int64"),
        (lambda: group_sparsity(np.ones(2), []), ValueError, "groups: expected at least one group, got 0"),
        (lambda: compress_mlp(MLP, np.zeros(2, bool)), ValueError, r"pruned: expected shape \(3,\), got \(2,\)"),
        (lambda: compress_mlp(MLP, np.zeros(3)), TypeError, "pruned: expected a boolean array, got dtype float64"),
        (lambda: compress_mlp(MLP, np.ones(3, bool)), ValueError, "pruned: expected neurons whose incoming weights and bias are 0, got others in layer 0"),
        (lambda: mlp_groups(MLP[:1] + MLP[:1]), ValueError, r"params.1.0: expected shape \(3, 3\), got \(2, 3\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="params: expected at least one layer, got 0"):
        compress_mlp([], np.zeros(0, bool))
