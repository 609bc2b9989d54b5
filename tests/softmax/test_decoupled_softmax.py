import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    _decoupled_softmax,
    cross_entropy,
    decoupled_softmax_loss,
    decoupled_softmax_loss_vjp,
    log_soft_topk,
    log_soft_topk_vjp,
    multilabel_bce_loss,
    multilabel_bce_loss_vjp,
    multilabel_softmax_loss,
    multilabel_softmax_loss_vjp,
    soft_topk,
    soft_topk_loss,
    soft_topk_loss_vjp,
    soft_topk_vjp,
)

RNG = np.random.default_rng(21)
SCORES = 2 * RNG.standard_normal((4, 6))
POSITIVES = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=bool)
ALL_RIGHT = POSITIVES | np.array([[False], [True], [False], [False]])
WEIGHTS = RNG.uniform(0.1, 2, (4, 6))
LOSSES = (decoupled_softmax_loss, multilabel_softmax_loss, multilabel_bce_loss)

GRADIENT_CASES = [
    *(
        GradientCase(f_vjp, (SCORES, right, weights), {"reduction": reduction}, method="complex", name=f"{reduction}, {name}")
        for f_vjp in (decoupled_softmax_loss_vjp, multilabel_softmax_loss_vjp, multilabel_bce_loss_vjp)
        for reduction, right, weights, name in (
            ("mean", POSITIVES, None, "no weights"),
            ("sum", POSITIVES, WEIGHTS, "weights"),
            ("none", ALL_RIGHT, WEIGHTS, "a row without negatives"),
        )
    ),
    GradientCase(decoupled_softmax_loss_vjp, (SCORES, POSITIVES, WEIGHTS), {"normalize_by_positives": False}, method="complex", name="not normalized"),
    GradientCase(multilabel_softmax_loss_vjp, (SCORES, POSITIVES, WEIGHTS), {"normalize_by_positives": True}, method="complex", name="normalized"),
    GradientCase(multilabel_bce_loss_vjp, (40 * SCORES, POSITIVES, None), method="complex", name="far apart"),
    GradientCase(decoupled_softmax_loss_vjp, (40 * SCORES, POSITIVES, None), method="complex", name="far apart"),
    GradientCase(decoupled_softmax_loss_vjp, (SCORES, POSITIVES, None), step=1e-3, name="differences"),
    GradientCase(soft_topk_vjp, (SCORES, 2), step=1e-3, name="two of six"),
    GradientCase(soft_topk_vjp, (SCORES, np.array([1, 2, 3, 5])), {"sharpness": 3.0}, step=1e-3, name="k a row, sharper"),
    GradientCase(soft_topk_vjp, (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0]]), 1), step=1e-3, name="ties"),
    GradientCase(soft_topk_vjp, (RNG.standard_normal(5), 4), {"sharpness": 0.1}, step=1e-3, name="flat, one row"),
    GradientCase(log_soft_topk_vjp, (SCORES, 2), step=1e-3, name="two of six"),
    GradientCase(log_soft_topk_vjp, (RNG.standard_normal((2, 3, 4)), np.array([[1, 2, 3], [3, 2, 1]])), {"sharpness": 2.0}, step=1e-3, name="three axes"),
    GradientCase(log_soft_topk_vjp, (np.array([[40.0, 0.0, -50.0]]), 1), {"sharpness": 2.0}, step=1e-3, name="saturated"),
    GradientCase(soft_topk_loss_vjp, (SCORES, POSITIVES, None), {"k": 3}, step=1e-3, name="k 3"),
    GradientCase(soft_topk_loss_vjp, (SCORES, POSITIVES, WEIGHTS), {"k": "num_pos", "sharpness": 2.0, "reduction": "none"}, step=1e-3, name="k of the row"),
    GradientCase(soft_topk_loss_vjp, (SCORES, POSITIVES, WEIGHTS), {"k": 2, "normalize_by_positives": False, "reduction": "sum"}, step=1e-3, name="not normalized"),
]  # fmt: skip


@given(seed=st.integers(0, 9999), labels=st.integers(2, 12), scale=st.sampled_from([1.0, 50.0]))
def test_one_positive_is_ordinary_cross_entropy(seed, labels, scale):
    rng = np.random.default_rng(seed)
    scores, target = scale * rng.standard_normal((3, labels)), rng.integers(labels, size=3)
    right = np.eye(labels, dtype=int)[target]
    expected = cross_entropy(scores, target)
    np.testing.assert_allclose(decoupled_softmax_loss(scores, right), expected, rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(multilabel_softmax_loss(scores, right), expected, rtol=1e-11, atol=1e-300)
    grads = [f(scores, right)[1](1.0)[0] for f in (decoupled_softmax_loss_vjp, multilabel_softmax_loss_vjp)]
    np.testing.assert_allclose(*grads, rtol=1e-9, atol=1e-14)


@given(seed=st.integers(0, 9999))
def test_decoupled_rows_sum_to_zero_and_push_positives_up_and_negatives_down(seed):
    rng = np.random.default_rng(seed)
    scores, right = 3 * rng.standard_normal((3, 8)), rng.random((3, 8)) < 0.4
    (dscores, _) = decoupled_softmax_loss_vjp(scores, right)[1](1.0)
    np.testing.assert_allclose(dscores.sum(axis=1), 0, atol=1e-14)
    assert (dscores[right] <= 0).all()
    assert (dscores[~right] >= 0).all()


def test_positives_do_not_feel_each_other():
    other = SCORES.copy()
    other[0, 0] += 5
    slopes = [decoupled_softmax_loss_vjp(s, POSITIVES, reduction="none")[1](np.ones(4))[0] for s in (SCORES, other)]
    assert slopes[0][0, 1] == slopes[1][0, 1]
    slopes = [multilabel_softmax_loss_vjp(s, POSITIVES, reduction="none")[1](np.ones(4))[0] for s in (SCORES, other)]
    assert slopes[0][0, 1] != slopes[1][0, 1]


def test_rows_without_positives_or_without_negatives_cost_nothing():
    for loss in LOSSES[:2]:
        assert loss(SCORES, POSITIVES, reduction="none")[3] == 0
    value, pullback = decoupled_softmax_loss_vjp(SCORES, ALL_RIGHT, WEIGHTS, reduction="none")
    assert value[1] == 0
    dscores, dweights = pullback(np.ones(4))
    assert (dscores[[1, 3]] == 0).all()
    assert (dweights[[1, 3]] == 0).all()
    total = decoupled_softmax_loss(SCORES, POSITIVES, reduction="sum")
    np.testing.assert_allclose(decoupled_softmax_loss(SCORES, POSITIVES), total / 4, rtol=1e-15)
    assert decoupled_softmax_loss(np.full((1, 2), -np.inf), np.ones((1, 2), int)) == 0


def test_removed_label_is_as_good_as_absent():
    wider = np.concatenate([SCORES, np.full((4, 1), -np.inf)], axis=1)
    right = np.concatenate([POSITIVES, np.zeros((4, 1), bool)], axis=1)
    for f, f_vjp in (
        (decoupled_softmax_loss, decoupled_softmax_loss_vjp),
        (multilabel_softmax_loss, multilabel_softmax_loss_vjp),
    ):
        np.testing.assert_allclose(f(wider, right), f(SCORES, POSITIVES), rtol=1e-15)
        assert (f_vjp(wider, right)[1](1.0)[0][:, -1] == 0).all()
    np.testing.assert_allclose(soft_topk_loss(wider, right, k=2), soft_topk_loss(SCORES, POSITIVES, k=2), rtol=1e-13)
    y, pullback = soft_topk_vjp(wider, 2)
    assert (y[:, -1] == 0).all()
    assert (pullback(np.ones(y.shape))[0][:, -1] == 0).all()


def test_weights_of_negatives_are_not_read():
    spoiled = np.where(POSITIVES, WEIGHTS, np.nan)
    for loss in LOSSES:
        assert loss(SCORES, POSITIVES, spoiled) == loss(SCORES, POSITIVES, WEIGHTS)


def test_extreme_scores_keep_finite_losses():
    scores = np.array([[800.0, -800.0, 0.0, 700.0]])
    right = np.array([[0, 1, 0, 0]])
    for loss in LOSSES:
        assert np.isfinite(loss(scores, right))
    np.testing.assert_allclose(decoupled_softmax_loss(scores, right), 1600, rtol=1e-15)
    np.testing.assert_allclose(decoupled_softmax_loss(-scores, right), np.exp(-800) + 0.0, atol=1e-300)


@given(
    seed=st.integers(0, 9999),
    size=st.integers(2, 30),
    sharpness=st.sampled_from([0.01, 1.0, 30.0, 1e4]),
    data=st.data(),
)
def test_soft_indicator_sums_to_k_and_keeps_the_order(seed, size, sharpness, data):
    k = data.draw(st.integers(1, size - 1))
    scores = np.random.default_rng(seed).standard_normal((2, size))
    y = soft_topk(scores, k, sharpness=sharpness)
    np.testing.assert_allclose(y.sum(axis=1), k, rtol=1e-12)
    order = np.argsort(scores, axis=1)
    assert (np.diff(np.take_along_axis(y, order, axis=1), axis=1) >= 0).all()
    np.testing.assert_allclose(np.exp(log_soft_topk(scores, k, sharpness=sharpness)), y, rtol=1e-12, atol=1e-300)


@given(seed=st.integers(0, 9999), shift=st.floats(-100, 100), k=st.integers(1, 6))
def test_common_shift_changes_nothing_and_gradients_sum_to_zero(seed, shift, k):
    scores, g = np.random.default_rng(seed).standard_normal((2, 7))
    y, pullback = soft_topk_vjp(scores, k)
    np.testing.assert_allclose(soft_topk(scores + shift, k), y, rtol=1e-12)
    np.testing.assert_allclose(pullback(g)[0].sum(), 0, atol=1e-14)
    np.testing.assert_allclose(log_soft_topk_vjp(scores, k)[1](g)[0].sum(), 0, atol=1e-13)


@given(seed=st.integers(0, 9999), size=st.integers(2, 9), data=st.data())
def test_shift_is_the_root_that_brent_finds(seed, size, data):
    k = data.draw(st.integers(1, size - 1))
    scores = np.random.default_rng(seed).standard_normal(size)
    shift = scipy.optimize.brentq(lambda t: scipy.special.expit(scores + t).sum() - k, -50, 50, xtol=1e-14)
    np.testing.assert_allclose(soft_topk(scores, k), scipy.special.expit(scores + shift), rtol=1e-11)


def test_complement_is_the_soft_indicator_of_the_smallest():
    y = soft_topk(SCORES, 2, sharpness=1.5)
    np.testing.assert_allclose(1 - y, soft_topk(-SCORES, 4, sharpness=1.5), rtol=1e-12)


def test_two_scores_are_half_their_difference_apart_from_the_shift():
    for sharpness in (0.1, 1.0, 50.0):
        y = soft_topk(np.array([1.0, 0.0]), 1, sharpness=sharpness)
        np.testing.assert_allclose(y, scipy.special.expit(sharpness * np.array([0.5, -0.5])), rtol=1e-14)


def test_saturated_row_keeps_its_logarithms_and_its_slopes():
    scores = np.array([2000.0, 0.0])
    z, pullback = log_soft_topk_vjp(scores, 1)
    np.testing.assert_allclose(z, [0, -1000], rtol=1e-15)
    # z_1 = -(s_0 - s_1) / 2 there
    np.testing.assert_allclose(pullback(np.array([0.0, 1.0]))[0], [-0.5, 0.5], rtol=1e-15)


@pytest.mark.parametrize("k", [1, 3, 99_999])
def test_extreme_k_in_a_long_row(k):
    scores = RNG.standard_normal(100_000)
    np.testing.assert_allclose(soft_topk(scores, k).sum(), k, rtol=1e-10)


def test_sharp_indicator_is_hard():
    y = soft_topk(SCORES, 2, sharpness=1e6)
    hard = (np.sort(SCORES, axis=1)[:, [-2]] <= SCORES).astype(float)
    np.testing.assert_allclose(y, hard, atol=1e-12)


def test_membership_not_rank_is_paid_for():
    scores = np.array([[9.0, 6.0, -4.0, -5.0]])
    right = np.array([[False, True, False, False]])
    assert soft_topk_loss(scores, right, k=2) < 0.01
    assert decoupled_softmax_loss(scores, right) > 3


def test_k_of_the_row_is_its_number_of_positives():
    each = [soft_topk_loss(SCORES[i : i + 1], POSITIVES[i : i + 1], k=int(POSITIVES[i].sum())) for i in range(3)]
    got = soft_topk_loss(SCORES, POSITIVES, k="num_pos", reduction="none")
    np.testing.assert_allclose(got, [*each, 0], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    scores, weights = SCORES.astype(dtype), WEIGHTS.astype(dtype)
    scores.setflags(write=False)
    weights.setflags(write=False)
    for value, pullback in (
        decoupled_softmax_loss_vjp(scores, POSITIVES, weights),
        multilabel_softmax_loss_vjp(scores, POSITIVES, weights),
        multilabel_bce_loss_vjp(scores, POSITIVES, weights),
        soft_topk_loss_vjp(scores, POSITIVES, weights, k=2),
    ):
        assert value.dtype == dtype
        assert [c.dtype for c in pullback(value)] == [dtype] * 2
    for f_vjp in (soft_topk_vjp, log_soft_topk_vjp):
        value, pullback = f_vjp(scores, 3)
        assert (value.dtype, pullback(value)[0].dtype) == (dtype, dtype)
        np.testing.assert_allclose(value, f_vjp(SCORES, 3)[0], rtol=1e-5)


ONE = np.ones((4, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: decoupled_softmax_loss(SCORES, POSITIVES[:, :5]), ValueError, r"positives: expected shape \(4, 6\), got \(4, 5\)"),
        (lambda: decoupled_softmax_loss(SCORES, 2 * POSITIVES.astype(int)), ValueError, "positives: expected values of at most 1, got 2"),
        (lambda: decoupled_softmax_loss(SCORES, ONE), TypeError, "positives: expected an integer array, got dtype float64"),
        (lambda: decoupled_softmax_loss(SCORES, POSITIVES, -ONE), ValueError, "weights: expected numbers of at least 0, got -1.0"),
        (lambda: decoupled_softmax_loss(SCORES, POSITIVES, ONE[:2]), ValueError, r"weights: expected shape \(4, 6\), got \(2, 6\)"),
        (lambda: multilabel_softmax_loss(SCORES, POSITIVES, ONE.astype("f4")), TypeError, "weights: expected dtype float64 like scores"),
        (lambda: multilabel_bce_loss(SCORES[0], POSITIVES[0]), ValueError, r"scores: expected 2 dimensions, got shape \(6,\)"),
        (lambda: multilabel_bce_loss(SCORES, POSITIVES, reduction="max"), ValueError, "reduction: expected one of 'mean', 'sum', 'none'"),
        (lambda: decoupled_softmax_loss(SCORES[:0], POSITIVES[:0]), ValueError, "scores: expected at least one entry along axes"),
        (lambda: soft_topk(SCORES, 6), ValueError, "k: expected less than the number of finite scores in its row, got 6 of 6"),
        (lambda: soft_topk(SCORES, 0), ValueError, "k: expected an integer >= 1, got 0"),
        (lambda: soft_topk(SCORES, 1.5), TypeError, "k: expected an integer"),
        (lambda: soft_topk(SCORES, np.array([1, 2])), ValueError, r"k: expected shape \(4,\), got \(2,\)"),
        (lambda: soft_topk(SCORES, np.array([1, 2, 0, 1])), ValueError, "k: expected values of at least 1, got 0"),
        (lambda: soft_topk(SCORES, 2, sharpness=0.0), ValueError, "sharpness: expected a finite number > 0, got 0.0"),
        (lambda: log_soft_topk(np.array([1.0, np.nan, 0.0]), 1), ValueError, "scores: expected finite numbers or -inf, got NaN or inf"),
        (lambda: log_soft_topk(np.array([1.0, -np.inf]), 1), ValueError, "k: expected less than the number of finite scores"),
        (lambda: soft_topk_loss(SCORES, POSITIVES, k="all"), ValueError, "k: expected one of 'num_pos', got 'all'"),
        (lambda: soft_topk_loss(SCORES, ALL_RIGHT, k="num_pos"), ValueError, "positives: expected a negative in every row"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_rows_that_have_arrived_wait_for_the_others_without_moving(monkeypatch):
    evaluations = 0
    original = _decoupled_softmax._imbalance

    def counted(*arguments):
        nonlocal evaluations
        evaluations += 1
        return original(*arguments)

    monkeypatch.setattr(_decoupled_softmax, "_imbalance", counted)
    soft_topk(3 * np.random.default_rng(0).standard_normal((256, 1024)), 5)
    assert evaluations <= 8
