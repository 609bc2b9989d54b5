import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    GaussianMoE,
    fit_topk_moe,
    hellinger2,
    moe_log_density,
    moe_log_density_vjp,
    required_selection,
    softmax,
    topk_softmax,
    topk_softmax_vjp,
    voronoi_cells,
    voronoi_loss,
)
from refnorm.solvers import Diverged

RNG = np.random.default_rng(9)
SCORES = 2 * RNG.standard_normal((3, 5))


def mixture(seed, k=4, d=2, dtype=np.float64):
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(s) for s in ((k, d), (k,), (k, d), (k,)))
    return GaussianMoE(*(a.astype(dtype) for a in arrays), np.exp(0.5 * rng.standard_normal(k)).astype(dtype))


def of_weights(scores, bias, **options):
    (weights, _), pullback = topk_softmax_vjp(scores, bias, **options)
    return weights, pullback


def gate_case(name, *args, **options):
    return GradientCase(topk_softmax_vjp, args, options, call=of_weights, method="complex", name=name)


X, Y = RNG.standard_normal((6, 2)), RNG.standard_normal(6)

GRADIENT_CASES = [
    gate_case("two of five", SCORES, RNG.standard_normal(5), top_k=2),
    gate_case("no bias", SCORES, None, top_k=3),
    gate_case("all", SCORES, RNG.standard_normal(5), top_k=5),
    gate_case("bias selects", SCORES[None], 3 * RNG.standard_normal(5), top_k=2, select_with_bias=True),
    gate_case("one: constant weights", SCORES, RNG.standard_normal(5), top_k=1),
    GradientCase(topk_softmax_vjp, (SCORES, RNG.standard_normal(5)), {"top_k": 2}, call=of_weights, step=1e-3, name="differences"),
    *(
        GradientCase(moe_log_density_vjp, (mixture(seed), X, Y), {"top_k": top_k}, method="complex", name=f"{top_k} of 4")
        for seed, top_k in ((1, 1), (2, 2), (3, 4))
    ),
    GradientCase(moe_log_density_vjp, (mixture(4), X, 50 * Y), {"top_k": 3}, method="complex", name="far out"),
    GradientCase(moe_log_density_vjp, (mixture(5, k=1, d=3), X[:, [0, 1, 0]], Y), {"top_k": 1}, step=1e-3, name="one expert, differences"),
]  # fmt: skip


@given(seed=st.integers(0, 9999), k=st.integers(1, 8), data=st.data())
def test_weights_are_softmax_over_the_largest_scores(seed, k, data):
    top_k = data.draw(st.integers(1, k))
    scores = np.random.default_rng(seed).standard_normal((4, k))
    weights, mask = topk_softmax(scores, top_k=top_k)
    assert (mask.sum(axis=1) == top_k).all()
    for row, weight, chosen in zip(scores, weights, mask, strict=True):
        assert row[chosen].min() >= row[~chosen].max(initial=-np.inf)
        np.testing.assert_allclose(weight[chosen], softmax(row[chosen]), rtol=1e-14)
        assert (weight[~chosen] == 0).all()


def test_all_experts_give_dense_softmax():
    bias = RNG.standard_normal(5)
    weights, mask = topk_softmax(SCORES, bias, top_k=5)
    assert mask.all()
    np.testing.assert_array_equal(weights, softmax(SCORES + bias))


def test_bias_counts_in_the_selection_only_on_request():
    scores, bias = np.array([2.0, 1.0, 0.0]), np.array([0.0, 1.0, 5.0])
    assert topk_softmax(scores, bias, top_k=2)[1].tolist() == [True, True, False]
    weights, mask = topk_softmax(scores, bias, top_k=2, select_with_bias=True)
    assert mask.tolist() == [True, False, True]
    np.testing.assert_allclose(weights, np.array([np.exp(-3), 0, 1]) / (1 + np.exp(-3)), rtol=1e-15)


def test_equal_scores_select_the_first():
    _, mask = topk_softmax(np.zeros((2, 4)), top_k=3)
    assert mask.tolist() == [[True, True, True, False]] * 2


@given(seed=st.integers(0, 9999), shift=st.floats(-50, 50))
def test_common_shift_changes_nothing(seed, shift):
    scores, bias = np.random.default_rng(seed).standard_normal((2, 6))
    before, after = (topk_softmax(scores + s, bias, top_k=3) for s in (0, shift))
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_allclose(before[0], after[0], atol=1e-13)


def test_nan_makes_its_row_nan_and_no_other():
    scores = SCORES.copy()
    scores[1, 4] = np.nan
    weights, _ = topk_softmax(scores, top_k=2)
    assert np.isnan(weights[1]).all()
    assert np.isfinite(weights[[0, 2]]).all()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_density_integrates_to_one_and_is_the_sum_of_its_parts(top_k):
    params = mixture(11)
    grid = np.linspace(-40, 40, 4001)
    for x in X:
        density = np.exp(moe_log_density(params, np.tile(x, (len(grid), 1)), grid, top_k=top_k))
        np.testing.assert_allclose(np.trapezoid(density, grid), 1, rtol=1e-9)
    weights, _ = topk_softmax(X @ params.gate_weight.T, params.gate_bias, top_k=top_k)
    parts = scipy.stats.norm.pdf(Y[:, None], X @ params.weight.T + params.bias, np.sqrt(params.variance))
    np.testing.assert_allclose(
        np.exp(moe_log_density(params, X, Y, top_k=top_k)), (weights * parts).sum(axis=1), rtol=1e-12
    )


def test_density_far_out_is_finite_where_the_plain_one_underflows():
    log_density = moe_log_density(mixture(12), X, Y + 1e4, top_k=2)
    assert np.isfinite(log_density).all()
    assert (log_density < -1e5).all()


def test_expert_that_nobody_selects_gets_no_gradient():
    params = dataclasses.replace(mixture(13), gate_weight=np.array([[9.0, 0], [8, 0], [7, 0], [-7, 0]]))
    dparams, _, _ = moe_log_density_vjp(params, np.abs(X), Y, top_k=2)[1](np.ones(6))
    for field in dataclasses.fields(dparams):
        assert (getattr(dparams, field.name)[2:] == 0).all()
        assert (getattr(dparams, field.name)[:2] != 0).any()


def test_one_expert_is_fitted_by_least_squares():
    x = RNG.standard_normal((50, 3))
    y = x @ [1.0, -2.0, 0.5] + 3 + 0.1 * RNG.standard_normal(50)
    fit = fit_topk_moe(x, y, k=1, top_k=1, rng=np.random.default_rng(0))
    design = np.c_[x, np.ones(50)]
    solution, squares, *_ = np.linalg.lstsq(design, y)
    assert fit.converged
    np.testing.assert_allclose(np.r_[fit.params.weight[0], fit.params.bias], solution, rtol=1e-6)
    np.testing.assert_allclose(fit.params.variance, squares / 50, rtol=1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), top_k=st.integers(1, 3))
def test_likelihood_never_falls(seed, top_k):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (60, 2))
    y = np.abs(x[:, 0]) + 0.2 * rng.standard_normal(60)
    fit = fit_topk_moe(x, y, k=3, top_k=top_k, rng=rng, max_iter=15, gate_steps=3)
    assert (np.diff(fit.history["log_likelihood"]) > -1e-6).all()
    reached = moe_log_density(fit.params, x, y, top_k=top_k).mean()
    np.testing.assert_allclose(reached, fit.history["log_likelihood"][-1], rtol=1e-9)
    assert (fit.params.gate_weight[-1] == 0).all()
    assert fit.params.gate_bias[-1] == 0


def test_fit_recovers_two_separate_experts_from_no_start():
    rng = np.random.default_rng(4)
    x = rng.uniform(-1, 1, (500, 1))
    y = np.where(x[:, 0] > 0, 4 * x[:, 0] + 1, -2 * x[:, 0] - 1) + 0.1 * rng.standard_normal(500)
    fit = fit_topk_moe(x, y, k=2, top_k=2, rng=rng)
    order = np.argsort(fit.params.weight[:, 0])
    np.testing.assert_allclose(fit.params.weight[order, 0], [-2, 4], atol=0.1)
    np.testing.assert_allclose(fit.params.bias[order], [-1, 1], atol=0.1)


def test_callback_sees_every_iteration_and_can_stop():
    seen = []

    def callback(progress):
        seen.append(progress.values["log_likelihood"])
        return progress.n_iter == 3

    fit = fit_topk_moe(X, Y, k=2, top_k=1, rng=np.random.default_rng(0), tol=0.0, callback=callback)
    assert fit.n_iter == len(seen) <= 3
    assert seen == fit.history["log_likelihood"].tolist()


def test_start_without_a_finite_likelihood_is_reported():
    wide = dataclasses.replace(mixture(1, k=2), gate_weight=np.full((2, 2), np.inf))
    with pytest.raises(Diverged, match="fit_topk_moe: diverged at iteration 1"), np.errstate(invalid="ignore"):
        fit_topk_moe(X, Y, k=2, top_k=2, rng=RNG, init=wide)


def test_exact_estimate_has_no_loss_whatever_its_order():
    true = mixture(21)
    turned = GaussianMoE(*(getattr(true, f.name)[[2, 0, 3, 1]] for f in dataclasses.fields(true)))
    assert voronoi_loss(turned, true, top_k=2) == 0
    assert [cell.tolist() for cell in voronoi_cells(turned, true)] == [[1], [3], [0], [2]]


@given(seed=st.integers(0, 9999), top_k=st.integers(1, 3), k=st.integers(1, 6), over=st.booleans())
def test_loss_is_the_largest_sum_over_cells(seed, top_k, k, over):
    estimated, true = mixture(seed, k=k), mixture(seed + 1, k=3)
    cells = voronoi_cells(estimated, true)
    assert sorted(np.concatenate(cells).tolist()) == list(range(k))
    terms = [voronoi_loss_of_cell(estimated, true, j, cell, over) for j, cell in enumerate(cells)]
    expected = max(sum(chosen) for chosen in itertools.combinations(terms, top_k))
    np.testing.assert_allclose(voronoi_loss(estimated, true, top_k=top_k, over_specified=over), expected, rtol=1e-12)
    assert required_selection(cells, top_k) == max(
        sum(len(c) for c in chosen) for chosen in itertools.combinations(cells, top_k)
    )


def voronoi_loss_of_cell(estimated, true, j, cell, over):
    power = {1: 1, 2: 4, 3: 6}.get(len(cell), 7) if over else 1
    half = power / 2 if power > 1 else 1
    total = 0.0
    for i in cell:
        total += np.exp(estimated.gate_bias[i]) * (
            np.linalg.norm(estimated.gate_weight[i] - true.gate_weight[j]) ** power
            + np.linalg.norm(estimated.weight[i] - true.weight[j]) ** half
            + abs(estimated.bias[i] - true.bias[j]) ** power
            + abs(estimated.variance[i] - true.variance[j]) ** half
        )
    return total + abs(sum(np.exp(estimated.gate_bias[i]) for i in cell) - np.exp(true.gate_bias[j]))


def test_empty_cell_costs_the_mass_of_its_expert():
    true = mixture(22, k=2)
    only = GaussianMoE(*(getattr(true, f.name)[:1] for f in dataclasses.fields(true)))
    np.testing.assert_allclose(voronoi_loss(only, true, top_k=2), np.exp(true.gate_bias[1]), rtol=1e-15)


def test_hellinger_distance_of_two_normal_densities():
    def normal(mean, deviation):
        return lambda x, y: scipy.stats.norm.logpdf(y, mean * x[:, 0], deviation)

    x, grid = np.array([[0.5], [2.0]]), np.linspace(-30, 30, 2000)
    got = hellinger2(normal(1.0, 0.7), normal(-0.5, 1.3), x, grid=grid)
    squares = 0.7**2 + 1.3**2
    closed = 1 - np.sqrt(2 * 0.7 * 1.3 / squares) * np.exp(-((1.5 * x[:, 0]) ** 2) / (4 * squares))
    np.testing.assert_allclose(got, closed.mean(), rtol=1e-12)
    assert hellinger2(normal(1.0, 0.7), normal(1.0, 0.7), x, grid=grid) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    params, x, y = mixture(1, dtype=dtype), X.astype(dtype), Y.astype(dtype)
    for array in (x, y, params.weight, params.variance, params.gate_weight):
        array.setflags(write=False)
    value, pullback = moe_log_density_vjp(params, x, y, top_k=2)
    dparams, dx, dy = pullback(value)
    assert {value.dtype, dx.dtype, dy.dtype} == {np.dtype(dtype)}
    assert {getattr(dparams, f.name).dtype for f in dataclasses.fields(dparams)} == {np.dtype(dtype)}
    (weights, mask), back = topk_softmax_vjp(x, None, top_k=1)
    assert (weights.dtype, mask.dtype, back(weights)[0].dtype) == (dtype, bool, dtype)
    fit = fit_topk_moe(x, y, k=2, top_k=1, rng=np.random.default_rng(0), max_iter=3)
    assert {getattr(fit.params, f.name).dtype for f in dataclasses.fields(dparams)} == {np.dtype(dtype)}


GOOD = mixture(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: topk_softmax(SCORES, top_k=6), ValueError, "top_k: expected an integer >= 1 and <= 5, got 6"),
        (lambda: topk_softmax(SCORES, top_k=1.0), TypeError, "top_k: expected an integer, got 1.0"),
        (lambda: topk_softmax(SCORES, np.ones(4), top_k=1), ValueError, r"bias: expected shape \(5,\), got \(4,\)"),
        (lambda: topk_softmax(SCORES, np.ones(5, "f4"), top_k=1), TypeError, "bias: expected dtype float64 like scores"),
        (lambda: moe_log_density(GOOD, X, Y[:3], top_k=1), ValueError, r"y: expected shape \(6,\), got \(3,\)"),
        (lambda: moe_log_density(GOOD, X, Y, top_k=5), ValueError, "top_k: expected an integer >= 1 and <= 4, got 5"),
        (lambda: moe_log_density(GOOD, X[:, :1], Y, top_k=1), ValueError, "params.weight: expected 1 columns like x"),
        (lambda: moe_log_density(dataclasses.replace(GOOD, bias=np.ones(3)), X, Y, top_k=1), ValueError, r"params.bias: expected shape \(4,\), got \(3,\)"),
        (lambda: moe_log_density(dataclasses.replace(GOOD, variance=np.array([1.0, 1, 0, 1])), X, Y, top_k=1), ValueError, "params.variance: expected numbers > 0, got 0.0"),
        (lambda: fit_topk_moe(X, Y, k=0, top_k=1, rng=RNG), ValueError, "k: expected an integer >= 1, got 0"),
        (lambda: fit_topk_moe(X, Y, k=2, top_k=1, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: fit_topk_moe(X, Y, k=2, top_k=1, rng=RNG, init=GOOD), ValueError, "init: expected 2 experts, got 4"),
        (lambda: fit_topk_moe(X[:1], Y[:1], k=1, top_k=1, rng=RNG), ValueError, "x: expected at least 2 points, got 1"),
        (lambda: fit_topk_moe(X, np.full(6, np.nan), k=1, top_k=1, rng=RNG), ValueError, "y: expected finite values"),
        (lambda: voronoi_cells(mixture(1, d=1), GOOD), ValueError, "estimated.weight: expected 2 columns like true"),
        (lambda: voronoi_loss(GOOD, GOOD, top_k=5), ValueError, "top_k: expected an integer >= 1 and <= 4"),
        (lambda: required_selection([np.array([0])], 2), ValueError, "top_k: expected an integer >= 1 and <= 1"),
        (lambda: hellinger2(None, None, X[:0], grid=np.arange(3.0)), ValueError, "x: expected at least one entry"),
        (lambda: hellinger2(None, None, X, grid=np.array([1.0, 0.0])), ValueError, "grid: expected at least 2 increasing points"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
