import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    dual_bank_norm,
    dual_bank_norm_vjp,
    dynamic_inverted_softmax,
    dynamic_inverted_softmax_vjp,
    hubness_skewness,
    inverted_softmax,
    inverted_softmax_vjp,
    k_occurrence,
    recall_at_k,
)

RNG = np.random.default_rng(41)
SIM, QUERY_BANK, GALLERY_BANK = (RNG.uniform(-1, 1, s) for s in ((5, 6), (4, 6), (7, 6)))
# Popular items of a bank of two rows: some test rows are active, some are not.
FEW = QUERY_BANK[:2]

GRADIENT_CASES = [
    GradientCase(inverted_softmax_vjp, (SIM, QUERY_BANK), method="complex", name="log"),
    GradientCase(inverted_softmax_vjp, (SIM, QUERY_BANK), {"log": False, "sharpness": 3.0}, method="complex", name="exp"),
    GradientCase(inverted_softmax_vjp, (SIM, QUERY_BANK[:1]), {"sharpness": 0.5}, step=1e-3, name="one row in the bank, differences"),
    *(
        GradientCase(
            dynamic_inverted_softmax_vjp, (SIM, FEW), {"sharpness": 2.0, "inactive": inactive, "log": log},
            method="complex", name=f"{inactive}, log {log}",
        )
        for inactive in ("exp", "raw")
        for log in (True, False)
    ),
    *(
        GradientCase(
            dual_bank_norm_vjp, (SIM, FEW, GALLERY_BANK[:3]), {"dynamic": dynamic, "inactive": inactive, "log": log},
            method="complex", name=f"dynamic {dynamic}, {inactive}, log {log}",
        )
        for dynamic, inactive in ((False, "exp"), (True, "exp"), (True, "raw"))
        for log in (True, False)
    ),
    GradientCase(dual_bank_norm_vjp, (SIM, QUERY_BANK, GALLERY_BANK), step=1e-3, name="differences"),
]  # fmt: skip


def active(sim, bank):
    return np.isin(sim.argmax(axis=1), bank.argmax(axis=1))


def test_cases_have_active_and_inactive_rows():
    for bank in (FEW, GALLERY_BANK[:3]):
        assert 0 < active(SIM, bank).sum() < len(SIM)


@given(seed=st.integers(0, 9999), sharpness=st.floats(0.1, 1e4))
def test_logarithm_is_a_shift_of_each_column(seed, sharpness):
    sim, bank = np.random.default_rng(seed).uniform(-1, 1, (2, 4, 5))
    got = inverted_softmax(sim, bank, sharpness=sharpness)
    expected = sharpness * sim - scipy.special.logsumexp(sharpness * bank, axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * sharpness)
    assert np.isfinite(got).all()


def test_bank_of_the_queries_themselves_makes_columns_sum_to_one():
    np.testing.assert_allclose(inverted_softmax(SIM, SIM, log=False).sum(axis=0), 1, rtol=1e-13)


def test_repeating_the_bank_does_not_change_a_ranking():
    once, twice = (inverted_softmax(SIM, b) for b in (QUERY_BANK, np.concatenate([QUERY_BANK] * 2)))
    np.testing.assert_allclose(once - twice, np.log(2), rtol=1e-12)


def test_hub_loses_its_queries():
    sim, bank = np.array([[0.9, 0.8], [0.7, 0.1]]), np.array([[0.9, 0.1], [0.8, 0.2]])
    assert sim.argmax(axis=1).tolist() == [0, 0]
    assert inverted_softmax(sim, bank, sharpness=10.0).argmax(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("inactive", ["exp", "raw"])
def test_only_rows_with_a_popular_best_item_are_normalized(inactive, log):
    options = {"sharpness": 2.0, "log": log}
    got = dynamic_inverted_softmax(SIM, FEW, inactive=inactive, **options)
    rows = active(SIM, FEW)
    np.testing.assert_allclose(got[rows], inverted_softmax(SIM, FEW, **options)[rows], rtol=1e-14)
    kept = SIM if inactive == "raw" else 2 * SIM if log else np.exp(2 * SIM)
    np.testing.assert_allclose(got[~rows], kept[~rows], rtol=1e-14)


def test_larger_k_makes_more_rows_active_and_all_at_the_end():
    everything = dynamic_inverted_softmax(SIM, FEW, k=6)
    np.testing.assert_allclose(everything, inverted_softmax(SIM, FEW), rtol=1e-14)


@pytest.mark.parametrize("dynamic", [True, False])
def test_two_banks_multiply(dynamic):
    options = {"query_sharpness": 2.0, "gallery_sharpness": 3.0, "dynamic": dynamic}
    one = dynamic_inverted_softmax if dynamic else inverted_softmax
    expected = one(SIM, FEW, sharpness=2.0) + one(SIM, GALLERY_BANK[:3], sharpness=3.0)
    got = dual_bank_norm(SIM, FEW, GALLERY_BANK[:3], **options)
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    np.testing.assert_allclose(
        dual_bank_norm(SIM, FEW, GALLERY_BANK[:3], log=False, **options), np.exp(expected), rtol=1e-13
    )


def test_raw_factors_are_multiplied_as_they_are():
    options = {"dynamic": True, "inactive": "raw"}
    got = dual_bank_norm(SIM, FEW, GALLERY_BANK[:3], query_sharpness=2.0, gallery_sharpness=3.0, **options)
    factors = [
        dynamic_inverted_softmax(SIM, b, sharpness=s, inactive="raw", log=False)
        for b, s in ((FEW, 2.0), (GALLERY_BANK[:3], 3.0))
    ]
    mixed = ~(active(SIM, FEW) & active(SIM, GALLERY_BANK[:3]))
    np.testing.assert_allclose(got[mixed], (factors[0] * factors[1])[mixed], rtol=1e-13)
    np.testing.assert_allclose(got[~mixed], np.log(factors[0] * factors[1])[~mixed], rtol=1e-12)
    # Both inactive: the square of a similarity, which does not rank like it.
    both = ~active(SIM, FEW) & ~active(SIM, GALLERY_BANK[:3])
    np.testing.assert_allclose(got[both], SIM[both] ** 2, rtol=1e-14)


def test_equal_banks_are_one_bank_at_another_sharpness_but_for_its_weights():
    dual = dual_bank_norm(SIM, QUERY_BANK, QUERY_BANK, query_sharpness=2.0, gallery_sharpness=2.0)
    np.testing.assert_allclose(dual, 2 * inverted_softmax(SIM, QUERY_BANK, sharpness=2.0), rtol=1e-13)
    assert (np.argsort(dual) == np.argsort(inverted_softmax(SIM, QUERY_BANK, sharpness=2.0))).all()


@given(seed=st.integers(0, 9999), k=st.integers(1, 7))
def test_occurrences_count_the_best(seed, k):
    sim = np.random.default_rng(seed).uniform(size=(8, 7))
    counts = k_occurrence(sim, k=k)
    assert counts.sum() == 8 * k
    expected = (np.argsort(np.argsort(-sim, axis=1), axis=1) < k).sum(axis=0)
    assert counts.tolist() == expected.tolist()
    np.testing.assert_allclose(
        hubness_skewness(sim, k=k), np.nan_to_num(scipy.stats.skew(expected)) if np.ptp(expected) else 0, atol=1e-12
    )


def test_skewness_can_leave_out_what_never_occurs():
    sim = np.array([[0.9, 0.2, 0.1, 0.0], [0.8, 0.1, 0.7, 0.0], [0.1, 0.9, 0.3, 0.0]])
    np.testing.assert_allclose(hubness_skewness(sim, k=1), scipy.stats.skew([2, 1, 0, 0]))
    assert hubness_skewness(sim, k=1, include_zero=False) == 0
    assert hubness_skewness(sim, k=4) == 0


def test_recall_counts_true_items_among_the_best_and_takes_ties_in_order():
    truth = np.arange(5)
    assert recall_at_k(np.eye(5), truth, k=1) == 1
    assert recall_at_k(np.zeros((5, 5)), truth, k=2) == 0.4
    assert recall_at_k(SIM, np.zeros(5, int), k=6) == 1
    shifted = recall_at_k(SIM + np.arange(5)[:, None], truth, k=2)
    assert shifted == recall_at_k(SIM, truth, k=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    arrays = [a.astype(dtype) for a in (SIM, QUERY_BANK, GALLERY_BANK)]
    for array in arrays:
        array.setflags(write=False)
    for value, pullback in (
        inverted_softmax_vjp(*arrays[:2]),
        dynamic_inverted_softmax_vjp(*arrays[:2], inactive="raw"),
        dual_bank_norm_vjp(*arrays),
        dual_bank_norm_vjp(*arrays, dynamic=True, inactive="raw", log=False),
    ):
        assert value.dtype == dtype
        assert {c.dtype for c in pullback(value)} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: inverted_softmax(SIM, QUERY_BANK[:, :5]), ValueError, r"bank: expected shape \(4, 6\), got \(4, 5\)"),
        (lambda: inverted_softmax(SIM, QUERY_BANK[:0]), ValueError, "bank: expected at least one entry along axes"),
        (lambda: inverted_softmax(SIM, QUERY_BANK.astype("f4")), TypeError, "bank: expected dtype float64 like sim, got float32"),
        (lambda: inverted_softmax(SIM, QUERY_BANK, sharpness=0.0), ValueError, "sharpness: expected a finite number > 0, got 0.0"),
        (lambda: inverted_softmax(SIM * np.nan, QUERY_BANK), ValueError, "sim: expected finite values"),
        (lambda: inverted_softmax(SIM[0], QUERY_BANK), ValueError, r"sim: expected 2 dimensions, got shape \(6,\)"),
        (lambda: dynamic_inverted_softmax(SIM, FEW, k=7), ValueError, "k: expected an integer >= 1 and <= 6, got 7"),
        (lambda: dynamic_inverted_softmax(SIM, FEW, inactive="zero"), ValueError, "inactive: expected one of 'exp', 'raw', got 'zero'"),
        (lambda: dual_bank_norm(SIM, FEW, GALLERY_BANK[:, :2]), ValueError, r"gallery_bank: expected shape \(7, 6\), got \(7, 2\)"),
        (lambda: dual_bank_norm(SIM, FEW * np.inf, GALLERY_BANK), ValueError, "query_bank: expected finite values"),
        (lambda: dual_bank_norm(SIM, FEW, GALLERY_BANK, gallery_sharpness=-1.0), ValueError, "gallery_sharpness: expected a finite number > 0"),
        (lambda: k_occurrence(SIM, k=0), ValueError, "k: expected an integer >= 1 and <= 6, got 0"),
        (lambda: hubness_skewness(SIM[:0], k=1), ValueError, "sim: expected at least one entry along axes"),
        (lambda: recall_at_k(SIM, np.arange(4), k=1), ValueError, r"truth: expected shape \(5,\), got \(4,\)"),
        (lambda: recall_at_k(SIM, np.full(5, 6), k=1), ValueError, "truth: expected values of at most 5, got 6"),
        (lambda: recall_at_k(SIM, np.ones(5), k=1), TypeError, "truth: expected an integer array, got dtype float64"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
