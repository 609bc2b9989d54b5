import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    dawid_skene,
    majority_top_two,
    simulate_top_two,
    soft_label_cross_entropy,
    soft_label_cross_entropy_vjp,
    top_two,
    top_two_likelihood,
    top_two_spectral,
)

RNG = np.random.default_rng(12)
FIRST, SECOND = np.array([1, 4, 2]), np.array([3, 1, 4])
LOGITS, CERTAINTY = RNG.standard_normal((3, 4)), np.array([0.7, 1.0, 0.5])


GRADIENT_CASES = [
    GradientCase(
        soft_label_cross_entropy_vjp,
        (LOGITS, FIRST, SECOND, CERTAINTY),
        {"reduction": reduction},
        method="complex",
        name=reduction,
    )
    for reduction in ("mean", "sum", "none")
] + [
    GradientCase(
        soft_label_cross_entropy_vjp,
        (LOGITS, FIRST, FIRST, CERTAINTY),
        method="complex",
        name="both answers the same",
    ),
    GradientCase(
        soft_label_cross_entropy_vjp,
        (40 * LOGITS, FIRST, SECOND, CERTAINTY),
        {"reduction": "none"},
        method="complex",
        name="confident",
    ),
]


def simulate(seed=0, workers=30, tasks=60, choices=4, rate=0.6, reliability=None):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 0.95, workers) if reliability is None else np.full(workers, reliability)
    q = rng.uniform(0.55, 0.95, tasks)
    return simulate_top_two(rng, workers, tasks, choices, p, q, rate), p, q


def test_simulated_answers_have_the_frequencies_of_the_model():
    (answers, first, second), _, _ = simulate(1, workers=2000, tasks=40, rate=0.5, reliability=0.6)
    assert abs((answers > 0).mean() - 0.5) < 0.01
    assert (first != second).all()
    said = answers[answers > 0]
    assert set(np.unique(said)) == {1, 2, 3, 4}
    other = ((answers != first) & (answers != second) & (answers > 0)).sum() / (answers > 0).sum()
    # The two other choices come from guesses alone: (1 - 0.6) 2 / 4 of the answers.
    assert abs(other - 0.2) < 0.01


def test_spectral_steps_by_hand():
    # One task, three workers say 1 and one says 3. The matrices are columns: (-4, -4, -4, 2) / 3 for k = 1 and
    # (-2, -2, -2, 4) / 3 for k = 2. Each is its own singular vector, up to length and sign.
    result = top_two_spectral(np.array([[1], [1], [1], [3]]), 3)
    one, two = np.array([-4, -4, -4, 2]) / 3, np.array([-2, -2, -2, 4]) / 3
    direction = np.clip((-one / np.linalg.norm(one) - two / np.linalg.norm(two)) / 2, 0, 1)
    w1, w2 = direction @ one / 2, direction @ two / 2
    np.testing.assert_allclose(result.scores[0], [-w1, w1 - w2, w2], rtol=1e-13)
    assert result.first == [1]
    # Everybody said 1 or 3, if those are the top two.
    expected = 0.999 if result.second == [3] else 0.001
    assert result.reliability[3] == expected


@given(seed=st.integers(0, 99))
def test_scores_of_a_task_sum_to_zero(seed):
    (answers, _, _), _, _ = simulate(seed)
    np.testing.assert_allclose(top_two_spectral(answers, 4).scores.sum(axis=1), 0, atol=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_order_of_workers_and_tasks_does_not_matter(seed):
    (answers, _, _), _, _ = simulate(seed)
    rng = np.random.default_rng(seed)
    workers, tasks = rng.permutation(30), rng.permutation(60)
    a, b = top_two(answers, 4), top_two(answers[workers][:, tasks], 4)
    np.testing.assert_array_equal(b.first, a.first[tasks])
    np.testing.assert_array_equal(b.second, a.second[tasks])
    np.testing.assert_allclose(b.reliability, a.reliability[workers], rtol=1e-12)
    np.testing.assert_allclose(b.certainty, a.certainty[tasks], atol=1e-9)


def test_reliable_dense_answers_are_recovered_completely():
    rng = np.random.default_rng(3)
    answers, first, second = simulate_top_two(rng, 200, 100, 5, np.full(200, 0.9), np.full(100, 0.75), 1.0)
    for result in (top_two_spectral(answers, 5), top_two(answers, 5)):
        np.testing.assert_array_equal(result.first, first)
        np.testing.assert_array_equal(result.second, second)
    assert np.abs(top_two(answers, 5).certainty - 0.75).mean() < 0.04
    # A share of 100 answers has the standard error 0.024, which becomes 0.04 on the scale of reliabilities.
    assert np.abs(top_two(answers, 5).reliability - 0.9).mean() < 0.04


@given(seed=st.integers(0, 99))
def test_likelihood_is_that_of_the_model(seed):
    (answers, _, _), p, q = simulate(seed, workers=8, tasks=5)
    first, second, ratio = top_two_likelihood(answers, 4, p, q)

    def log_ratio(task, a, b):
        chance = np.full((8, 5), 1 / 4) * (1 - p[:, None])
        chance[:, a] += p * q[task]
        chance[:, b] += p * (1 - q[task])
        asked = answers[:, task] > 0
        return np.log(chance[asked, answers[asked, task]] / ((1 - p[asked]) / 4)).sum()

    for task in range(5):
        pairs = {(a, b): log_ratio(task, a, b) for a in range(1, 5) for b in range(1, 5) if a != b}
        best = max(pairs.values())
        np.testing.assert_allclose(ratio[task], best, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(pairs[first[task], second[task]], best, rtol=1e-12, atol=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_refined_certainty_maximizes_the_likelihood_of_the_pair(seed):
    (answers, _, _), _, _ = simulate(seed, tasks=10)
    result = top_two(answers, 4)

    def value(certainty):
        strength = 4 * (result.reliability / (1 - result.reliability))[:, None]
        terms = np.log1p(strength * certainty) * (answers == result.first)
        return (terms + np.log1p(strength * (1 - certainty)) * (answers == result.second)).sum(axis=0)

    best = value(result.certainty)
    for certainty in np.linspace(0.5, 1, 41):
        assert (best >= value(np.full(10, certainty)) - 1e-8).all()
    rough = top_two(answers, 4, refine=False)
    np.testing.assert_array_equal(rough.first, result.first)
    assert (rough.certainty == top_two_spectral(answers, 4).certainty).all()


def test_splitting_uses_disjoint_answers():
    (answers, first, _), _, _ = simulate(2, workers=100, rate=1.0)
    result = top_two(answers, 4, split=0.5, rng=np.random.default_rng(0))
    whole = top_two(answers, 4)
    assert (result.reliability != whole.reliability).any()
    assert (result.first == first).mean() > 0.9
    again = top_two(answers, 4, split=0.5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(result.certainty, again.certainty)


def test_tasks_without_answers_are_marked():
    (answers, _, _), _, _ = simulate(4)
    answers = answers.copy()
    answers[:, [3, 7]] = 0
    for result in (top_two_spectral(answers, 4), top_two(answers, 4)):
        assert np.flatnonzero(~result.answered).tolist() == [3, 7]
        assert result.first[[3, 7]].tolist() == [1, 1]
        assert result.second[[3, 7]].tolist() == [2, 2]
        assert np.isfinite(result.scores).all()


def test_workers_without_answers_have_the_least_reliability():
    (answers, _, _), _, _ = simulate(4)
    answers = answers.copy()
    answers[5] = 0
    assert top_two(answers, 4).reliability[5] == 0.001


def test_guessing_workers_get_estimates_within_their_limits():
    (answers, _, _), _, _ = simulate(6, reliability=0.0)
    result = top_two(answers, 4)
    assert (result.reliability >= 0.001).all()
    assert (result.certainty >= 0.5).all()
    assert np.isfinite(result.scores).all()


def test_either_gram_matrix_gives_the_workers_direction():
    (answers, _, _), _, _ = simulate(8, workers=40, tasks=9, rate=1.0)
    wide, tall = (top_two_spectral(np.tile(answers, (1, n)), 4) for n in (8, 1))
    # Repeating the tasks changes neither the workers' direction nor a task's score.
    np.testing.assert_allclose(wide.scores[:9], tall.scores, rtol=1e-10, atol=1e-12)


def test_majority_breaks_ties_by_the_lower_answer():
    answers = np.array([[3, 1, 0], [3, 2, 0], [2, 3, 0], [2, 0, 0]])
    first, second = majority_top_two(answers, 4)
    assert (first.tolist(), second.tolist()) == ([2, 1, 1], [3, 2, 2])


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_expectation_maximization_climbs(seed):
    (answers, _, _), _, _ = simulate(seed, tasks=40)
    result = dawid_skene(answers, 4, max_iter=30, tol=0.0)
    np.testing.assert_allclose(result.posterior.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(result.confusion.sum(axis=2), 1, rtol=1e-12)
    # The advance counts add a penalty that EM climbs together with the likelihood.
    objective = result.history["log_likelihood"]
    assert (np.diff(objective) > -0.5).all()
    assert objective[-1] >= objective[0]


def test_expectation_maximization_sees_a_worker_who_always_errs_the_same_way():
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 4, 300)
    good = np.where(rng.random((4, 300)) < 0.8, truth, rng.integers(1, 4, (4, 300)))
    answers = np.vstack([good, truth % 3 + 1])
    result = dawid_skene(answers, 3)
    assert result.converged
    assert (result.first == truth).mean() > 0.99
    assert result.confusion[4, 0, 1] > 0.99


def test_callback_ends_the_iteration():
    (answers, _, _), _, _ = simulate()
    result = dawid_skene(answers, 4, callback=lambda progress: progress.n_iter == 2)
    assert result.n_iter == len(result.history["change"]) == 2
    assert not result.converged


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype):
    logits, certainty = LOGITS.astype(dtype), CERTAINTY.astype(dtype)
    (answers, _, _), _, _ = simulate()
    for array in (logits, certainty, answers):
        array.setflags(write=False)
    loss, pullback = soft_label_cross_entropy_vjp(logits, FIRST, SECOND, certainty)
    assert [a.dtype for a in (loss, *pullback(loss))] == [dtype] * 3
    top_two(answers, 4)
    dawid_skene(answers, 4)


ANSWERS = np.array([[1, 2], [3, 2]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: top_two_spectral(ANSWERS, 2), ValueError, "n_choices: expected an integer >= 3, got 2"),
        (lambda: top_two_spectral(ANSWERS + 1, 3), ValueError, "answers: expected values of at most 3, got 4"),
        (lambda: top_two_spectral(ANSWERS - 2, 3), ValueError, "answers: expected values of at least 0, got -1"),
        (lambda: top_two_spectral(ANSWERS * 1.0, 3), TypeError, "answers: expected an integer array, got dtype float64"),
        (lambda: top_two(ANSWERS[:1], 3), ValueError, r"answers: expected at least 2 workers and 1 task, got shape \(1, 2\)"),
        (lambda: majority_top_two(0 * ANSWERS, 3), ValueError, "answers: expected at least one answer, got only 0"),
        (lambda: top_two_likelihood(ANSWERS, 3, np.ones(2), np.ones(2)), ValueError, r"reliability: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: top_two_likelihood(ANSWERS, 3, np.zeros(3), np.ones(2)), ValueError, r"reliability: expected shape \(2,\), got \(3,\)"),
        (lambda: top_two_likelihood(ANSWERS, 3, np.zeros(2), np.zeros(2)), ValueError, r"certainty: expected a number in \[0.5, 1.0\], got 0.0"),
        (lambda: top_two(ANSWERS, 3, split=0.5), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: top_two(ANSWERS, 3, split=1.0), ValueError, r"split: expected a number in \(0.0, 1.0\), got 1.0"),
        (lambda: simulate_top_two(RNG, 2, 2, 3, np.ones(2), np.ones(2), 1.5), ValueError, r"rate: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: dawid_skene(ANSWERS, 3, max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
        (lambda: soft_label_cross_entropy(LOGITS, FIRST + 1, SECOND, CERTAINTY), ValueError, "first: expected values of at most 4, got 5"),
        (lambda: soft_label_cross_entropy(LOGITS, FIRST, SECOND[:2], CERTAINTY), ValueError, r"second: expected shape \(3,\), got \(2,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_split_that_leaves_no_answer_to_decide_on_is_refused():
    answers = np.array([[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="split: expected some answers on both sides, got 0.999"):
        top_two(answers, 3, split=0.999, rng=np.random.default_rng(0))
