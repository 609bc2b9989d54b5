import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    LSTMParams,
    RemovalPolicy,
    ShrinkPolicy,
    apply_removal,
    apply_shrink,
    bilstm,
    bilstm_vjp,
    compression_reward,
    count_params,
    encode_layers,
    lstm,
    lstm_vjp,
    n2n_search,
    reinforce_search,
    removal_log_prob_vjp,
    reward_baseline,
    shrink_log_prob,
    shrink_log_prob_vjp,
)
from refnorm.tree import tree_leaves

RNG = np.random.default_rng(1)


def lstm_arrays(features, hidden, scale=1.0):
    shapes = ((features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
    return tuple(scale * RNG.standard_normal(shape) for shape in shapes)


REMOVAL = RemovalPolicy.init(RNG, 3, hidden=4)
SHRINK = ShrinkPolicy.init(RNG, 3, hidden=4, factors=(0.3, 0.5, 0.5, 1.0), decided=(2, 0, 1))
TABLE = {"factors": SHRINK.factors, "decided": SHRINK.decided}
CODES = RNG.standard_normal((4, 3))
KEPT = RNG.integers(0, 2, (5, 4))
CHOSEN = RNG.integers(0, 4, (5, 4, 3))
SOME = np.array([False, True, True, False])

GRADIENT_CASES = [
    GradientCase(lstm_vjp, (RNG.standard_normal((6, 3)), *lstm_arrays(3, 4)), method="complex"),
    GradientCase(lstm_vjp, (RNG.standard_normal((3, 2, 5)), *lstm_arrays(5, 2)), method="complex", name="batch"),
    GradientCase(lstm_vjp, (RNG.standard_normal((1, 2)), *lstm_arrays(2, 1)), method="complex", name="one step"),
    GradientCase(lstm_vjp, (RNG.standard_normal((4, 3)), *lstm_arrays(3, 3, 8.0)), name="saturated gates"),
    GradientCase(
        bilstm_vjp,
        (RNG.standard_normal((5, 3)), LSTMParams(*lstm_arrays(3, 4)), LSTMParams(*lstm_arrays(3, 2))),
        method="complex",
    ),
    GradientCase(removal_log_prob_vjp, (REMOVAL.params, CODES, KEPT)),
    GradientCase(removal_log_prob_vjp, (REMOVAL.params, CODES, KEPT[:1]), {"free": SOME}, name="two free layers"),
    GradientCase(shrink_log_prob_vjp, (SHRINK.params, CODES, CHOSEN), TABLE),
    GradientCase(shrink_log_prob_vjp, (SHRINK.params, CODES, CHOSEN), TABLE | {"free": SOME}, name="two free layers"),
    GradientCase(
        shrink_log_prob_vjp,
        (SHRINK.params, CODES, CHOSEN[:2, :, :1]),
        {"factors": SHRINK.factors, "decided": (1,)},
        name="one entry",
    ),
]


def test_lstm_runs_sequences_of_a_batch_independently():
    x, arrays = RNG.standard_normal((5, 3, 2)), lstm_arrays(2, 4)
    together = lstm(x, *arrays)
    for n in range(3):
        np.testing.assert_allclose(together[:, n], lstm(x[:, n], *arrays), rtol=1e-13, atol=1e-15)


def test_lstm_state_depends_on_the_past_only_and_bilstm_on_both_sides():
    x, arrays = RNG.standard_normal((5, 2)), lstm_arrays(2, 3)
    changed = x.copy()
    changed[3] += 1
    params = LSTMParams(*arrays)
    moved = (lstm(changed, *arrays) != lstm(x, *arrays)).any(axis=1)
    assert moved.tolist() == [False, False, False, True, True]
    assert (bilstm(changed, params, params) != bilstm(x, params, params)).any(axis=1).all()


def test_bilstm_of_a_reversed_sequence_swaps_the_directions():
    x = RNG.standard_normal((4, 2))
    one, two = LSTMParams(*lstm_arrays(2, 3)), LSTMParams(*lstm_arrays(2, 3))
    h, reversed_h = bilstm(x, one, two), bilstm(x[::-1], two, one)[::-1]
    np.testing.assert_array_equal(np.concatenate([h[:, 3:], h[:, :3]], axis=1), reversed_h)


def test_lstm_stays_finite_for_huge_sums():
    x = np.full((3, 1), 1e200)
    h, pullback = lstm_vjp(x, np.full((1, 4), 1e50), np.ones((1, 4)), np.zeros(4))
    np.testing.assert_allclose(h[:, 0], np.tanh([1.0, 2.0, 3.0]))
    assert all(np.isfinite(part).all() for part in pullback(np.ones_like(h))[1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [a.astype(dtype) for a in (RNG.standard_normal((3, 2)), *lstm_arrays(2, 3))]
    h, pullback = lstm_vjp(*arrays)
    assert h.dtype == dtype
    assert [d.dtype for d in pullback(h)] == [dtype] * 4


def test_arguments_are_not_written_to():
    arrays = [RNG.standard_normal((3, 2)), *lstm_arrays(2, 3)]
    codes, chosen = CODES.copy(), CHOSEN.copy()
    for array in (*arrays, codes, chosen):
        array.setflags(write=False)
    h, pullback = lstm_vjp(*arrays)
    pullback(h)
    value, back = shrink_log_prob_vjp(SHRINK.params, codes, chosen, **TABLE)
    back(value)
    SHRINK.sample(codes, np.random.default_rng(0))


def test_probabilities_of_all_actions_sum_to_one():
    masks = np.array(list(itertools.product((0, 1), repeat=4)))
    np.testing.assert_allclose(np.exp(REMOVAL.log_prob(CODES, masks)).sum(), 1, rtol=1e-13)
    chains = np.array(list(itertools.product(range(4), repeat=6))).reshape(-1, 2, 3)
    np.testing.assert_allclose(np.exp(SHRINK.log_prob(CODES[:2], chains)).sum(), 1, rtol=1e-12)


def test_draws_have_the_probabilities_that_log_prob_gives():
    n = 20000
    masks = np.array(list(itertools.product((0, 1), repeat=3)))
    drawn = REMOVAL.sample(CODES[:3], np.random.default_rng(2), n_rollouts=n) @ [4, 2, 1]
    p = np.exp(REMOVAL.log_prob(CODES[:3], masks))
    assert (np.abs(np.bincount(drawn, minlength=8) / n - p) < 5 * np.sqrt(p * (1 - p) / n)).all()
    # One layer, two entries: the second draw depends on the first through the input.
    policy = ShrinkPolicy.init(np.random.default_rng(3), 3, hidden=4, factors=(0.1, 1.0), decided=(0, 1))
    pairs, code = np.array(list(itertools.product((0, 1), repeat=2)))[:, None], np.array([[3.0, 2.0, -1.0]])
    drawn = policy.sample(code, np.random.default_rng(2), n_rollouts=n)[:, 0] @ [2, 1]
    p = np.exp(policy.log_prob(code, pairs))
    assert (np.abs(np.bincount(drawn, minlength=4) / n - p) < 5 * np.sqrt(p * (1 - p) / n)).all()


def test_later_entries_see_earlier_decisions():
    policy = ShrinkPolicy.init(np.random.default_rng(4), 3, factors=(0.1, 1.0), decided=(0, 1))
    pairs = np.array(list(itertools.product((0, 1), repeat=2)))[:, None]
    log_p = policy.log_probs(np.array([[3.0, 2.0, -1.0]]), pairs)[:, 0]
    np.testing.assert_allclose(log_p[0, 0], log_p[2, 0], rtol=1e-13)
    assert np.abs(log_p[0, 1] - log_p[2, 1]).max() > 1e-3


def test_layers_that_are_not_free_do_not_count():
    other = KEPT.copy()
    other[:, ~SOME] = 1 - other[:, ~SOME]
    np.testing.assert_array_equal(REMOVAL.log_prob(CODES, KEPT, free=SOME), REMOVAL.log_prob(CODES, other, free=SOME))


def test_gradient_of_one_logit_is_action_minus_probability():
    # The head's bias alone: with zero weights both actions have probability 1/2.
    zero = [np.zeros_like(leaf) for _, leaf in tree_leaves(REMOVAL.params)]
    forward, backward = LSTMParams(*zero[:3]), LSTMParams(*zero[3:6])
    params = type(REMOVAL.params)(forward, backward, *zero[6:])
    value, pullback = removal_log_prob_vjp(params, CODES[:1], np.array([[1], [0]]))
    np.testing.assert_allclose(value, np.log([0.5, 0.5]))
    # Half of the rollouts keep, with reward 1: the mean of reward times (1 - 1/2) is sigmoid'(0) = 1/4.
    dparams, _ = pullback(np.array([1.0, 0.0]) / 2)
    np.testing.assert_allclose(dparams.head_bias, [-0.25, 0.25])


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1))
def test_reward_falls_with_size_and_is_proportional_to_accuracy(one, other, accuracy):
    small, large = sorted((one, other))
    rewards = [compression_reward(accuracy, n, 0.9, 1000) for n in (small, large)]
    assert rewards[0] >= rewards[1] >= 0
    np.testing.assert_allclose(compression_reward(accuracy / 2, small, 0.9, 1000), rewards[0] / 2, atol=1e-15)


def test_broken_limits_cost_more_as_the_search_goes_on():
    costs = [compression_reward(0.9, 200, 0.9, 1000, accuracy_limit=0.95, epoch=e) for e in range(20)]
    assert costs[0] == compression_reward(0.9, 200, 0.9, 1000)
    assert (np.diff(costs[:16]) < 0).all()
    assert costs[15:] == [-1.0] * 5
    assert compression_reward(0.9, 200, 0.9, 1000, size_limit=200, accuracy_limit=0.9) == costs[0]


@given(
    st.lists(st.integers(1, 300), min_size=3, max_size=7),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_shrinking_never_grows_and_factor_one_changes_nothing(sizes, min_width, random):
    factors = [random.uniform(0.05, 1) for _ in sizes[2:]]
    shrunk = apply_shrink(sizes, factors, min_width=min_width)
    assert (shrunk[0], shrunk[-1]) == (sizes[0], sizes[-1])
    assert all(min(n, min_width) <= m <= n for m, n in zip(shrunk, sizes, strict=True) if m != n)
    assert count_params(shrunk) <= count_params(sizes)
    assert apply_shrink(sizes, [1.0] * len(factors), min_width=min_width) == tuple(sizes)


def test_removal_keeps_the_order_and_needs_a_hidden_layer():
    assert apply_removal((5, 1, 2, 3, 4), (1, 0, 1)) == (5, 1, 3, 4)
    assert apply_removal((5, 1, 2, 3, 4), (1, 1, 1)) == (5, 1, 2, 3, 4)
    assert apply_removal((5, 1, 2, 3, 4), (0, 0, 0)) is None


def test_moving_baseline_is_the_recursion():
    rewards, expected = RNG.random(7), None
    for reward in rewards:
        expected = reward if expected is None else 0.9 * expected + 0.1 * reward
    np.testing.assert_allclose(reward_baseline(rewards, kind="moving"), expected, rtol=1e-14)


TEACHER = (16, 64, 64, 64, 4)


def enough(sizes):
    return min(1.0, sum(sizes[1:-1]) / 60)


@pytest.mark.parametrize("credit", ["rollout", "batch"])
@pytest.mark.parametrize("baseline", ["mean", "moving"])
def test_search_improves_its_rewards(credit, baseline):
    rng = np.random.default_rng(0)
    x = np.column_stack([np.eye(4), np.ones(4)])
    wanted = np.array([1, 0, 1, 0])
    found = reinforce_search(
        RemovalPolicy.init(rng, 5), x, lambda a, _: float((a == wanted).mean()), n_iter=80, rng=rng,
        learning_rate=2e-2, credit=credit, baseline=baseline,
    )  # fmt: skip
    assert found.best.tolist() == wanted.tolist()
    rewards = found.history["mean_reward"]
    assert rewards[-20:].mean() > rewards[:20].mean() + (0.2 if credit == "rollout" else 0.0)
    assert found.history["entropy"].max() <= np.log(2) + 1e-12


def test_search_evaluates_a_student_once_and_returns_the_best():
    calls = []

    def evaluate(sizes):
        calls.append(sizes)
        return enough(sizes)

    found = n2n_search(TEACHER, evaluate, stage="shrinkage", n_iter=10, rng=np.random.default_rng(0))
    assert len(set(calls)) == len(calls)
    assert calls[0] == TEACHER
    rewards = [compression_reward(enough(s), count_params(s), 1.0, count_params(TEACHER)) for s in calls[1:]]
    np.testing.assert_allclose(max(rewards), found.best_reward, rtol=1e-15)
    assert found.best == calls[1 + int(np.argmax(rewards))]
    assert min(found.best[1:-1]) >= 10


def test_search_keeps_the_first_layer_if_told_to():
    seen = set()

    def evaluate(sizes):
        seen.add(sizes[1])
        return 1.0

    teacher = (16, 30, 64, 50, 4)
    for stage in ("removal", "shrinkage"):
        n2n_search(teacher, evaluate, stage=stage, n_iter=5, rng=np.random.default_rng(0), keep_first=True)
    assert seen == {30}


def test_search_starts_from_a_policy_of_another_depth():
    first = n2n_search(TEACHER, enough, stage="removal", n_iter=3, rng=np.random.default_rng(0))
    deeper = (16, *(64,) * 6, 4)
    again = n2n_search(
        deeper, enough, stage="removal", n_iter=3, rng=np.random.default_rng(0), policy=first.policy
    )  # fmt: skip
    assert again.n_iter == 3
    assert again.policy.params.head_bias is not first.policy.params.head_bias


def test_no_valid_student_is_reported():
    found = n2n_search((4, 8, 2), enough, stage="removal", n_iter=3, rng=np.random.default_rng(0))
    assert found.best is None
    assert found.best_reward == -1


def test_search_is_repeatable_and_stops_when_asked():
    runs = [n2n_search(TEACHER, enough, stage="removal", n_iter=4, rng=np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*(run.history["mean_reward"] for run in runs))
    stopped = n2n_search(
        TEACHER, enough, stage="removal", n_iter=9, rng=np.random.default_rng(5), callback=lambda p: p.n_iter == 2
    )
    assert stopped.n_iter == 2


X, W, R, B = np.ones((2, 3)), np.ones((3, 8)), np.ones((2, 8)), np.ones(8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lstm(np.ones((0, 3)), W, R, B), ValueError, "x: expected at least one entry along axes"),
        (lambda: lstm(X, np.ones((2, 8)), R, B), ValueError, r"input_weight: expected shape \(3, 8\), got \(2, 8\)"),
        (lambda: lstm(X, W, np.ones((2, 7)), B), ValueError, r"recurrent_weight: expected shape \(2, 8\), got \(2, 7\)"),
        (lambda: lstm(X, W, R, B.astype("f4")), TypeError, "bias: expected dtype float64 like x, got float32"),
        (lambda: compression_reward(1.2, 1, 1.0, 2), ValueError, r"accuracy: expected a number in \[0.0, 1.0\], got 1.2"),
        (lambda: compression_reward(0.5, 1, 0.0, 2), ValueError, r"teacher_accuracy: expected a number in \(0.0, 1.0\], got 0.0"),
        (lambda: compression_reward(0.5, 3, 1.0, 2), ValueError, "n_params: expected an integer >= 0 and <= 2, got 3"),
        (lambda: reward_baseline(np.ones(2), kind="ema"), ValueError, "kind: expected one of 'mean', 'moving', got 'ema'"),
        (lambda: count_params((3,)), ValueError, r"sizes: expected at least inputs and outputs, got \(3,\)"),
        (lambda: encode_layers((3, 0)), ValueError, "sizes: expected an integer >= 1, got 0"),
        (lambda: apply_removal((3, 4, 5), (1, 0)), ValueError, r"keep: expected shape \(1,\), got \(2,\)"),
        (lambda: apply_removal((3, 4, 5), (2,)), ValueError, "keep: expected values of at most 1, got 2"),
        (lambda: apply_shrink((3, 4, 5), (0.0,)), ValueError, r"factors: expected numbers in \(0, 1\], got"),
        (lambda: REMOVAL.log_prob(CODES, KEPT[:, :3]), ValueError, r"actions: expected shape \(5, 4\), got \(5, 3\)"),
        (lambda: REMOVAL.log_prob(CODES, KEPT, free=np.ones(4)), TypeError, "free: expected a boolean array, got dtype float64"),
        (lambda: SHRINK.log_prob(CODES, CHOSEN + 1), ValueError, "actions: expected values of at most 3"),
        (lambda: shrink_log_prob(SHRINK.params, CODES, CHOSEN, decided=(0, 0, 1)), ValueError, "decided: expected distinct entries"),
        (lambda: shrink_log_prob(SHRINK.params, CODES, CHOSEN, decided=(0, 1, 2)), ValueError, r"head_bias: expected shape \(11,\), got \(4,\)"),
        (lambda: REMOVAL.sample(CODES, 0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: n2n_search((3, 4), enough, stage="removal", n_iter=1, rng=RNG), ValueError, "teacher_sizes: expected at least one hidden width"),
        (lambda: n2n_search(TEACHER, enough, stage="1", n_iter=1, rng=RNG), ValueError, "stage: expected one of 'removal', 'shrinkage', got '1'"),
        (lambda: n2n_search(TEACHER, lambda s: 0.0, stage="removal", n_iter=1, rng=RNG), ValueError, "teacher_accuracy: expected a number in"),
        (lambda: n2n_search(TEACHER, enough, stage="shrinkage", n_iter=1, rng=RNG, policy=REMOVAL), TypeError, "policy: expected a ShrinkPolicy for stage"),
        (lambda: n2n_search(TEACHER, enough, stage="shrinkage", n_iter=1, rng=RNG, policy=SHRINK), ValueError, "policy: expected one that decides entry 2"),
        (lambda: reinforce_search(REMOVAL, CODES, lambda a, e: np.nan, n_iter=1, rng=RNG), ValueError, "reward: expected finite values"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
