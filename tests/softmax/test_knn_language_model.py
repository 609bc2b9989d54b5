import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

import refnorm.softmax._knn_language_model as module
from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    fit_interpolation,
    ivf_build,
    ivf_search,
    knn_lm_nll,
    knn_lm_nll_vjp,
    knn_log_prob,
    knn_log_prob_vjp,
    knn_search,
    knn_search_vjp,
    perplexity,
    softmax,
)

RNG = np.random.default_rng(51)
METRICS = ("sqeuclidean", "euclidean", "inner_product")
QUERIES, KEYS = RNG.standard_normal((4, 3)), RNG.standard_normal((9, 3))
SCORES = -2 * RNG.exponential(size=(4, 6))
VALUES = np.array([[0, 1, 0, 2, 4, 4], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 0], [1, 1, 0, 0, 2, 1]])
LOGITS, TARGET = RNG.standard_normal((4, 5)), np.array([0, 3, 2, 4])
MASKED = np.where(np.arange(6) == 1, -np.inf, SCORES)


def scores_only(queries, keys, **options):
    (scores, _), pullback = knn_search_vjp(queries, keys, **options)
    return scores, pullback


def seen_tokens(scores, values, **options):
    """Only tokens that have a neighbour: the others are -inf."""
    value, pullback = knn_log_prob_vjp(scores, values, **options)
    seen = np.isfinite(value)

    def pull(cotangent):
        full = np.full(value.shape, np.nan)
        full[seen] = cotangent
        return pullback(full)

    return value[seen], pull


GRADIENT_CASES = [
    *(
        GradientCase(knn_search_vjp, (QUERIES, KEYS), {"k": 4, "metric": metric}, call=scores_only, step=1e-3, name=metric)
        for metric in METRICS
    ),
    GradientCase(knn_search_vjp, (QUERIES, KEYS), {"k": 9}, call=scores_only, step=1e-3, name="all keys"),
    GradientCase(knn_log_prob_vjp, (SCORES, VALUES), {"vocab": 5}, call=seen_tokens, method="complex"),
    GradientCase(knn_log_prob_vjp, (SCORES, VALUES), {"vocab": 7, "temperature": 0.3}, call=seen_tokens, step=1e-3, name="cold, differences"),
    *(
        GradientCase(knn_lm_nll_vjp, (LOGITS, SCORES, VALUES, TARGET, 0.3, 1.7), {"reduction": reduction}, method="complex", name=reduction)
        for reduction in ("mean", "sum", "none")
    ),
    GradientCase(knn_lm_nll_vjp, (LOGITS, SCORES, VALUES, TARGET, np.array(0.9), np.array(0.2)), method="complex", name="arrays"),
    GradientCase(knn_lm_nll_vjp, (LOGITS[:3], SCORES[:3], VALUES[:3], TARGET[:3], 0.6, 0.8), step=1e-3, name="differences"),
    GradientCase(knn_lm_nll_vjp, (LOGITS, 200 * SCORES, VALUES, TARGET, 0.3, 1.7), method="complex", name="far neighbours"),
]  # fmt: skip


def reference_scores(queries, keys, metric):
    if metric == "inner_product":
        return queries @ keys.T
    squared = ((queries[:, None] - keys[None]) ** 2).sum(axis=2)
    return -squared if metric == "sqeuclidean" else -np.sqrt(squared)


@given(seed=st.integers(0, 9999), n=st.integers(1, 40), metric=st.sampled_from(METRICS), data=st.data())
def test_search_is_a_sort_of_all_scores(seed, n, metric, data):
    k = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    queries, keys = rng.standard_normal((5, 4)), rng.standard_normal((n, 4))
    scores, indices = knn_search(queries, keys, k=k, metric=metric)
    every = reference_scores(queries, keys, metric)
    order = np.argsort(-every, axis=1, kind="stable")[:, :k]
    assert (indices == order).all()
    np.testing.assert_allclose(scores, np.take_along_axis(every, order, axis=1), rtol=1e-12, atol=1e-14)


def test_equal_keys_come_in_order():
    keys = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]]), 4, axis=0)
    for metric in METRICS:
        _, indices = knn_search(np.array([[0.5, 0.0]]), keys, k=6, metric=metric)
        assert indices[0, :4].tolist() == [0, 1, 2, 3]
        assert indices[0, 4:].tolist() == [4, 5]


def test_close_keys_far_from_the_origin_keep_their_distances():
    keys = 1e6 + np.arange(5)[:, None] * 1e-3
    scores, indices = knn_search(np.array([[1e6]]), keys, k=3)
    assert set(indices[0, :1].tolist()) == {0}
    np.testing.assert_allclose(scores[0], -((keys[indices[0], 0] - 1e6) ** 2), rtol=1e-15)


def test_blocks_do_not_change_the_result(monkeypatch):
    whole = knn_search_vjp(QUERIES, KEYS, k=4)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 1)
    parts = knn_search_vjp(QUERIES, KEYS, k=4)
    np.testing.assert_array_equal(whole[0][1], parts[0][1])
    for a, b in zip(whole[1](np.ones((4, 4))), parts[1](np.ones((4, 4))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_distance_zero_has_no_slope():
    (scores, _), pullback = knn_search_vjp(KEYS[:2], KEYS, k=2, metric="euclidean")
    assert (scores[:, 0] == 0).all()
    dqueries, _ = pullback(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert (dqueries == 0).all()


@given(seed=st.integers(0, 9999), n_cells=st.integers(1, 8), k=st.integers(1, 12))
def test_probing_all_cells_is_exact(seed, n_cells, k):
    rng = np.random.default_rng(seed)
    keys, queries = rng.standard_normal((12, 3)), rng.standard_normal((4, 3))
    index = ivf_build(keys, n_cells=n_cells, rng=rng)
    assert sorted(np.concatenate(index.cells).tolist()) == list(range(12))
    exact, found = knn_search(queries, keys, k=k), ivf_search(index, queries, k=k, n_probe=n_cells)
    np.testing.assert_array_equal(found[1], exact[1])
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-13)


@given(seed=st.integers(0, 9999), n_probe=st.integers(1, 4))
def test_probing_some_cells_finds_true_scores_of_keys_in_them(seed, n_probe):
    rng = np.random.default_rng(seed)
    keys, queries = rng.standard_normal((40, 2)), rng.standard_normal((3, 2))
    index = ivf_build(keys, n_cells=4, rng=rng)
    scores, indices = ivf_search(index, queries, k=5, n_probe=n_probe)
    exact, _ = knn_search(queries, keys, k=5)
    assert (scores <= exact + 1e-12).all()
    np.testing.assert_allclose(scores, -((keys[indices] - queries[:, None]) ** 2).sum(axis=2), rtol=1e-12)
    assert all(len(set(row)) == 5 for row in indices.tolist())


def test_more_cells_are_probed_when_too_few_keys_are_in_them():
    index = ivf_build(KEYS, n_cells=4, rng=np.random.default_rng(0))
    _, indices = ivf_search(index, QUERIES, k=9, n_probe=1)
    assert (np.sort(indices, axis=1) == np.arange(9)).all()


def test_without_rescoring_a_key_counts_as_its_centroid():
    index = ivf_build(KEYS, n_cells=3, rng=np.random.default_rng(0))
    scores, indices = ivf_search(index, QUERIES, k=9, n_probe=3, rescore=False)
    cell_of = {key: number for number, cell in enumerate(index.cells) for key in cell.tolist()}
    for query, row, keys in zip(QUERIES, scores, indices, strict=True):
        expected = [-((index.centroids[cell_of[key]] - query) ** 2).sum() for key in keys.tolist()]
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_centroids_are_means_of_separate_groups():
    keys = np.concatenate([RNG.normal(c, 0.1, (20, 2)) for c in (-5, 0, 5)])
    index = min(
        (ivf_build(keys, n_cells=3, rng=np.random.default_rng(s)) for s in range(5)),
        key=lambda i: sum(((keys[c] - m) ** 2).sum() for c, m in zip(i.cells, i.centroids, strict=True)),
    )
    np.testing.assert_allclose(np.sort(index.centroids[:, 0]), [-5, 0, 5], atol=0.2)
    for cell, centroid in zip(index.cells, index.centroids, strict=True):
        np.testing.assert_allclose(keys[cell].mean(axis=0), centroid, rtol=1e-12)


@given(seed=st.integers(0, 9999), temperature=st.sampled_from([0.05, 1.0, 20.0]))
def test_votes_are_probabilities(seed, temperature):
    rng = np.random.default_rng(seed)
    scores, values = -rng.exponential(3, (3, 7)), rng.integers(5, size=(3, 7))
    p = np.exp(knn_log_prob(scores, values, vocab=6, temperature=temperature))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-13)
    share = softmax(scores / temperature)
    expected = np.zeros((3, 6))
    for b, i in np.ndindex(3, 7):
        expected[b, values[b, i]] += share[b, i]
    np.testing.assert_allclose(p, expected, rtol=1e-12)


def test_far_vote_keeps_its_logarithm():
    log_p = knn_log_prob(np.array([[0.0, -5000.0, -5000.0]]), np.array([[0, 1, 1]]), vocab=3)
    np.testing.assert_allclose(log_p, [[0, np.log(2) - 5000, -np.inf]], rtol=1e-15)


def test_masked_neighbour_does_not_vote():
    without = knn_log_prob(np.delete(SCORES, 1, axis=1), np.delete(VALUES, 1, axis=1), vocab=5)
    value, pullback = knn_log_prob_vjp(MASKED, VALUES, vocab=5)
    np.testing.assert_allclose(value, without, rtol=1e-14)
    assert (pullback(np.ones((4, 5)))[0][:, 1] == 0).all()
    options = (VALUES, np.array([0, 3, 2, 1]), 0.5, 1.3)
    loss, pullback = knn_lm_nll_vjp(LOGITS, MASKED, *options)
    assert np.isfinite(loss)
    assert all(np.isfinite(c).all() for c in pullback(1.0))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_mixture_is_the_sum_of_probabilities(weight):
    target = np.array([0, 3, 2, 1])
    p = (1 - weight) * softmax(LOGITS) + weight * np.exp(knn_log_prob(SCORES, VALUES, vocab=5, temperature=2.0))
    loss = knn_lm_nll(LOGITS, SCORES, VALUES, target, weight, 2.0, reduction="none")
    np.testing.assert_allclose(loss, -np.log(p[np.arange(4), target]), rtol=1e-12)


def test_weight_zero_is_the_language_model_itself():
    loss, pullback = knn_lm_nll_vjp(LOGITS, SCORES, VALUES, TARGET, 0.0, 1.0, reduction="none")
    np.testing.assert_allclose(loss, -scipy.special.log_softmax(LOGITS, axis=1)[np.arange(4), TARGET], rtol=1e-14)
    assert (pullback(np.ones(4))[1] == 0).all()


def test_impossible_target_is_flagged_and_has_no_gradient():
    with pytest.warns(RuntimeWarning, match="knn_lm_nll: a target has probability 0"):
        loss, pullback = knn_lm_nll_vjp(LOGITS, SCORES, VALUES, TARGET, 1.0, 1.0, reduction="none")
    assert loss[3] == np.inf
    assert np.isfinite(loss[:3]).all()
    dlogits, dscores, dweight, dtemperature = pullback(np.ones(4))
    assert (dlogits[3] == 0).all()
    assert (dscores[3] == 0).all()
    assert np.isfinite([dweight, dtemperature]).all()


@given(seed=st.integers(0, 9999))
def test_fit_is_the_maximum_and_the_likelihood_never_falls(seed):
    rng = np.random.default_rng(seed)
    lm, knn = np.log(rng.uniform(0.01, 1, (2, 30)))
    knn[0], lm[1] = -np.inf, -np.inf
    fit = fit_interpolation(lm, knn)
    assert fit.converged
    assert (np.diff(fit.history["log_likelihood"]) >= -1e-15).all()

    def loss(weight):
        return -np.logaddexp(np.log1p(-weight) + lm, np.log(weight) + knn).mean()

    best = scipy.optimize.minimize_scalar(loss, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-10})
    np.testing.assert_allclose(fit.knn_weight, best.x, atol=1e-5)


def test_fit_of_a_useless_model_goes_to_the_edge():
    lm = np.log(np.full(5, 0.5))
    assert fit_interpolation(lm, np.full(5, -np.inf)).knn_weight == 0
    np.testing.assert_allclose(fit_interpolation(lm, lm + 0.5).knn_weight, 1, atol=1e-8)


def test_callback_sees_every_iteration_and_can_stop():
    seen = []

    def callback(progress):
        seen.append(progress.n_iter)
        return progress.n_iter == 2

    fit = fit_interpolation(np.log([0.2, 0.8]), np.log([0.5, 0.4]), callback=callback)
    assert (seen, fit.n_iter, fit.converged) == ([1, 2], 2, False)


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    np.testing.assert_allclose(perplexity(np.full(7, -np.log(61))), 61, rtol=1e-13)
    assert perplexity(np.array([0.0, -np.inf])) == np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    arrays = [a.astype(dtype) for a in (QUERIES, KEYS, LOGITS, SCORES)]
    for array in arrays:
        array.setflags(write=False)
    queries, keys, logits, scores = arrays
    (found, indices), pullback = knn_search_vjp(queries, keys, k=2)
    assert {found.dtype, *(c.dtype for c in pullback(found))} == {np.dtype(dtype)}
    assert indices.dtype.kind == "i"
    value, pullback = knn_log_prob_vjp(scores, VALUES, vocab=5)
    assert value.dtype == pullback(np.ones((4, 5), dtype))[0].dtype == dtype
    loss, pullback = knn_lm_nll_vjp(logits, scores, VALUES, TARGET, dtype(0.5), dtype(1.0))
    assert {loss.dtype, *(c.dtype for c in pullback(loss))} == {np.dtype(dtype)}
    index = ivf_build(keys, n_cells=2, rng=np.random.default_rng(0))
    assert index.centroids.dtype == ivf_search(index, queries, k=2, n_probe=1)[0].dtype == dtype


INDEX = ivf_build(KEYS, n_cells=2, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: knn_search(QUERIES, KEYS, k=10), ValueError, "k: expected an integer >= 1 and <= 9, got 10"),
        (lambda: knn_search(QUERIES, KEYS[:, :2], k=1), ValueError, r"keys: expected shape \(9, 3\), got \(9, 2\)"),
        (lambda: knn_search(QUERIES, KEYS, k=1, metric="cosine"), ValueError, "metric: expected one of 'sqeuclidean'"),
        (lambda: knn_search(QUERIES * np.nan, KEYS, k=1), ValueError, "queries: expected finite values"),
        (lambda: ivf_build(KEYS, n_cells=10, rng=RNG), ValueError, "n_cells: expected an integer >= 1 and <= 9, got 10"),
        (lambda: ivf_build(KEYS, n_cells=2, rng=3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: ivf_search(INDEX, QUERIES, k=2, n_probe=3), ValueError, "n_probe: expected an integer >= 1 and <= 2, got 3"),
        (lambda: ivf_search(INDEX, QUERIES.astype("f4"), k=2, n_probe=1), TypeError, "queries: expected dtype float64 like index.keys"),
        (lambda: knn_log_prob(SCORES, VALUES, vocab=4), ValueError, "values: expected values of at most 3, got 4"),
        (lambda: knn_log_prob(SCORES, VALUES[:, :2], vocab=5), ValueError, r"values: expected shape \(4, 6\), got \(4, 2\)"),
        (lambda: knn_log_prob(SCORES, VALUES, vocab=5, temperature=0.0), ValueError, "temperature: expected a finite number > 0"),
        (lambda: knn_log_prob(SCORES[:, :0], VALUES[:, :0], vocab=5), ValueError, "scores: expected at least one entry"),
        (lambda: knn_lm_nll(LOGITS, SCORES, VALUES, TARGET, 1.5, 1.0), ValueError, r"knn_weight: expected a number in \[0, 1\], got 1.5"),
        (lambda: knn_lm_nll(LOGITS, SCORES, VALUES, TARGET, 0.5, 0.0), ValueError, "temperature: expected a finite number > 0"),
        (lambda: knn_lm_nll(LOGITS, SCORES[:2], VALUES[:2], TARGET, 0.5, 1.0), ValueError, r"scores: expected shape \(4, 6\), got \(2, 6\)"),
        (lambda: knn_lm_nll(LOGITS, SCORES, VALUES, TARGET + 1, 0.5, 1.0), ValueError, "target: expected values of at most 4, got 5"),
        (lambda: knn_lm_nll(LOGITS, SCORES, VALUES, TARGET, 0.5, 1.0, reduction="max"), ValueError, "reduction: expected one of"),
        (lambda: fit_interpolation(np.zeros(2), np.zeros(3)), ValueError, r"knn_logp: expected shape \(2,\), got \(3,\)"),
        (lambda: fit_interpolation(np.array([-np.inf]), np.array([-np.inf])), ValueError, "knn_logp: expected a finite entry where lm_logp is -inf"),
        (lambda: fit_interpolation(np.array([np.nan]), np.array([0.0])), ValueError, "lm_logp: expected finite numbers or -inf"),
        (lambda: fit_interpolation(np.zeros(0), np.zeros(0)), ValueError, "lm_logp: expected at least one entry"),
        (lambda: perplexity(np.zeros(0)), ValueError, "logp: expected at least one entry"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_fit_that_is_cut_short_says_so():
    lm, knn = np.log(np.array([0.2, 0.8])), np.log(np.array([0.5, 0.4]))
    short = fit_interpolation(lm, knn, max_iter=2)
    assert (short.n_iter, short.converged) == (2, False)
    assert fit_interpolation(lm, knn).converged
