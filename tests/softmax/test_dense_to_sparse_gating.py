import dataclasses

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import (
    GaussianMoE,
    TemperatureMoE,
    fisher_information,
    fit_moe,
    moe_log_density,
    moe_nll,
    moe_nll_vjp,
    null_direction,
    temperature_gate,
    temperature_gate_vjp,
    temperature_schedule,
)
from refnorm.solvers import Diverged

RNG = np.random.default_rng(12)
ACTIVATIONS = ("identity", "sigmoid", "tanh", "gelu")
X, Y = RNG.standard_normal((6, 2)), RNG.standard_normal(6)


def mixture(seed, k=3, d=2, dtype=np.float64, last_gate=True):
    rng = np.random.default_rng(seed)
    gate_weight, gate_bias, weight, bias = (rng.standard_normal(s) for s in ((k, d), (k,), (k, d), (k,)))
    if not last_gate:
        gate_weight[-1], gate_bias[-1] = 0, 0
    arrays = [a.astype(dtype) for a in (gate_weight, gate_bias, weight, bias)]
    return TemperatureMoE(*arrays[:2], 0.7, *arrays[2:], np.exp(0.5 * rng.standard_normal(k)).astype(dtype))


def gate_of(params):
    return params.gate_weight, params.gate_bias, params.temperature


EVERY = [(activation, bias) for activation in ACTIVATIONS for bias in ("outside", "inside")]

GRADIENT_CASES = [
    *(
        GradientCase(
            temperature_gate_vjp, (X, *gate_of(mixture(1))), {"activation": activation, "bias": bias},
            method="richardson" if activation == "gelu" else "complex", step=1e-3, name=f"{activation}, bias {bias}",
        )
        for activation, bias in EVERY
    ),
    GradientCase(temperature_gate_vjp, (X, *gate_of(mixture(2))), step=1e-3, name="differences"),
    GradientCase(temperature_gate_vjp, (X, np.ones((1, 2)), np.ones(1), 0.3), method="complex", name="one expert"),
    *(
        GradientCase(
            moe_nll_vjp, (X, Y, mixture(3)), {"activation": activation, "bias": bias},
            method="richardson" if activation == "gelu" else "complex", step=1e-3, name=f"{activation}, bias {bias}",
        )
        for activation, bias in EVERY
    ),
    GradientCase(moe_nll_vjp, (X, 30 * Y, mixture(4)), method="complex", name="far out"),
    GradientCase(moe_nll_vjp, (X, Y, mixture(5, k=1)), step=1e-3, name="one expert, differences"),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "bias"), EVERY)
def test_gate_is_softmax_of_scores_over_the_temperature(activation, bias):
    phi = {
        "identity": lambda s: s,
        "sigmoid": scipy.special.expit,
        "tanh": np.tanh,
        "gelu": lambda s: s * scipy.stats.norm.cdf(s),
    }[activation]
    gate_weight, gate_bias, temperature = gate_of(mixture(6))
    scores = X @ gate_weight.T
    raised = phi(scores + gate_bias) if bias == "inside" else phi(scores) + gate_bias
    got = temperature_gate(X, gate_weight, gate_bias, temperature, activation=activation, bias=bias)
    np.testing.assert_allclose(got, scipy.special.softmax(raised / temperature, axis=1), rtol=1e-13)


@given(seed=st.integers(0, 9999), factor=st.floats(0.01, 100))
def test_linear_gate_does_not_feel_a_common_factor(seed, factor):
    gate_weight, gate_bias, temperature = gate_of(mixture(seed))
    before = temperature_gate(X, gate_weight, gate_bias, temperature)
    after = temperature_gate(X, factor * gate_weight, factor * gate_bias, factor * temperature)
    np.testing.assert_allclose(after, before, rtol=1e-11, atol=1e-300)


@given(seed=st.integers(0, 9999), bias=st.sampled_from(["outside", "inside"]))
def test_slopes_of_a_linear_gate_cancel_at_every_point(seed, bias):
    params = mixture(seed)
    for i in range(len(X)):
        dparams = moe_nll_vjp(X[i : i + 1], Y[i : i + 1], params, bias=bias)[1](np.ones(1))[2]
        total = (
            (params.gate_weight * dparams.gate_weight).sum()
            + params.gate_bias @ dparams.gate_bias
            + params.temperature * dparams.temperature
        )
        size = np.abs(params.gate_weight * dparams.gate_weight).sum() + abs(dparams.temperature)
        assert abs(total) <= 1e-13 * (1 + size)


def test_slopes_of_a_sigmoid_gate_do_not_cancel():
    params = mixture(7)
    dparams = moe_nll_vjp(X, Y, params, activation="sigmoid")[1](np.ones(6))[2]
    total = (
        (params.gate_weight * dparams.gate_weight).sum()
        + params.gate_bias @ dparams.gate_bias
        + params.temperature * dparams.temperature
    )
    assert abs(total) > 1e-2


def test_temperature_runs_from_dense_to_sparse():
    gate_weight, gate_bias, _ = gate_of(mixture(8))
    np.testing.assert_allclose(temperature_gate(X, gate_weight, gate_bias, 1e9), 1 / 3, rtol=1e-8)
    cold = temperature_gate(X, gate_weight, gate_bias, 1e-300)
    assert np.sort(cold, axis=1).tolist() == [[0, 0, 1]] * 6
    assert (cold.argmax(axis=1) == (X @ gate_weight.T + gate_bias).argmax(axis=1)).all()


def test_saturated_sigmoid_has_no_warning_and_no_slope():
    weights, pullback = temperature_gate_vjp(1e4 * X, *gate_of(mixture(9)), activation="sigmoid")
    assert np.isfinite(weights).all()
    assert np.abs(pullback(weights)[1]).max() < 1e-300


def test_density_is_that_of_a_dense_top_k_gate_at_temperature_one():
    params = dataclasses.replace(mixture(10), temperature=1.0)
    dense = GaussianMoE(params.gate_weight, params.gate_bias, params.weight, params.bias, params.variance)
    np.testing.assert_allclose(moe_nll(X, Y, params), -moe_log_density(dense, X, Y, top_k=3), rtol=1e-13)


def test_likelihood_far_out_is_finite_where_the_density_underflows():
    nll = moe_nll(X, Y + 1e4, mixture(11))
    assert np.isfinite(nll).all()
    assert (nll > 1e5).all()


@pytest.mark.parametrize(("activation", "bias"), EVERY)
def test_information_is_the_mean_square_of_the_scores(activation, bias):
    params = mixture(13, last_gate=False)
    rows = []
    for i in range(len(X)):
        point = X[i : i + 1], Y[i : i + 1]
        d = moe_nll_vjp(*point, params, activation=activation, bias=bias)[1](np.ones(1))[2]
        rows.append(
            np.r_[d.gate_weight[:-1].ravel(), d.gate_bias[:-1], d.temperature, d.weight.ravel(), d.bias, d.variance]
        )
    expected = np.mean([np.outer(row, row) for row in rows], axis=0)
    got = fisher_information(params, X, Y, activation=activation, bias=bias)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-14)
    assert null_direction(params).shape == got.shape[:1]


@given(seed=st.integers(0, 9999))
def test_null_direction_is_flat_for_the_linear_gate_only(seed):
    params = mixture(seed, last_gate=False)
    direction = null_direction(params)
    linear = fisher_information(params, X, Y)
    assert np.abs(linear @ direction).max() <= 1e-12 * (1 + np.abs(linear).max()) * np.linalg.norm(direction)
    active = fisher_information(params, X, Y, activation="tanh")
    assert direction @ active @ direction > 0


def test_information_has_no_negative_eigenvalue():
    information = fisher_information(mixture(14, last_gate=False), X, Y)
    np.testing.assert_array_equal(information, information.T)
    assert np.linalg.eigvalsh(information).min() > -1e-12 * np.abs(information).max()


@given(t=st.floats(0, 7))
def test_schedule_is_geometric(t):
    got = temperature_schedule(t, total=7.0, start=3.0, end=0.2)
    np.testing.assert_allclose(np.log(got), np.interp(t, [0, 7], np.log([3.0, 0.2])), atol=1e-12)


def two_lines(seed=1, n=300):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 1))
    return x, np.where(x[:, 0] > 0, 2 * x[:, 0] + 1, -x[:, 0]) + 0.2 * rng.standard_normal(n)


@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_fit_climbs_to_a_stationary_point(activation):
    x, y = two_lines()
    fit = fit_moe(x, y, k=2, activation=activation, rng=np.random.default_rng(0))
    assert (np.diff(fit.history["nll"]) <= 0).all()
    assert fit.n_iter == len(fit.history["nll"])
    nll, pullback = moe_nll_vjp(x, y, fit.params, activation=activation)
    np.testing.assert_allclose(nll.mean(), fit.history["nll"][-1], rtol=1e-12)
    dparams = pullback(np.full(len(y), 1 / len(y)))[2]
    assert np.abs(dparams.weight).max() < 1e-3
    assert np.abs(dparams.variance * fit.params.variance).max() < 1e-3
    np.testing.assert_allclose(np.sort(fit.params.weight[:, 0]), [-1, 2], atol=0.15)
    assert (fit.params.gate_weight[-1] == 0).all()


def test_one_expert_is_fitted_by_least_squares():
    x = RNG.standard_normal((60, 2))
    y = x @ [1.0, -2.0] + 0.5 + 0.3 * RNG.standard_normal(60)
    fit = fit_moe(x, y, k=1, rng=RNG)
    solution, squares, *_ = np.linalg.lstsq(np.c_[x, np.ones(60)], y)
    np.testing.assert_allclose(np.r_[fit.params.weight[0], fit.params.bias], solution, atol=1e-5)
    np.testing.assert_allclose(fit.params.variance, squares / 60, rtol=1e-4)


def test_callback_sees_every_iteration_and_can_stop():
    seen = []

    def callback(progress):
        seen.append(progress.n_iter)
        return progress.n_iter == 3

    fit = fit_moe(*two_lines(), k=2, rng=np.random.default_rng(0), callback=callback)
    assert seen == [1, 2, 3]
    assert (fit.n_iter, fit.converged) == (3, False)


def test_diverged_fit_is_reported():
    x, y = two_lines()
    with pytest.raises(Diverged, match="fit_moe: diverged at iteration 1: nll = nan"):
        fit_moe(x, 1e200 * y, k=2, rng=np.random.default_rng(0), init=mixture(1, k=2, d=1, last_gate=False))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    params, x, y = mixture(1, dtype=dtype, last_gate=False), X.astype(dtype), Y.astype(dtype)
    for array in (x, y, params.weight, params.variance, params.gate_weight):
        array.setflags(write=False)
    for activation in ACTIVATIONS:
        nll, pullback = moe_nll_vjp(x, y, params, activation=activation)
        dx, dy, dparams = pullback(nll)
        assert {nll.dtype, dx.dtype, dy.dtype, dparams.weight.dtype, dparams.variance.dtype} == {np.dtype(dtype)}
        weights, pullback = temperature_gate_vjp(x, *gate_of(params), activation=activation)
        cotangents = pullback(weights)
        assert {weights.dtype, *(c.dtype for c in cotangents[:3])} == {np.dtype(dtype)}
        assert cotangents[3].dtype == np.float64
    single = temperature_gate_vjp(x, params.gate_weight, params.gate_bias, np.asarray(0.7, dtype))[1](weights)
    assert single[3].dtype == dtype
    assert fisher_information(params, x, y).dtype == np.float64


GOOD = mixture(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: temperature_gate(X, *gate_of(GOOD)[:2], 0.0), ValueError, "temperature: expected a finite number > 0, got 0.0"),
        (lambda: temperature_gate(X, *gate_of(GOOD)[:2], np.ones(2)), ValueError, r"temperature: expected one number, got shape \(2,\)"),
        (lambda: temperature_gate(X[:, :1], *gate_of(GOOD)), ValueError, r"gate_weight: expected shape \(3, 1\), got \(3, 2\)"),
        (lambda: temperature_gate(X, *gate_of(GOOD), activation="relu"), ValueError, "activation: expected one of 'identity', 'sigmoid'"),
        (lambda: temperature_gate(X, *gate_of(GOOD), bias="none"), ValueError, "bias: expected one of 'outside', 'inside', got 'none'"),
        (lambda: temperature_gate(X.astype("f4"), *gate_of(GOOD)), TypeError, "gate_weight: expected dtype float32 like x"),
        (lambda: moe_nll(X, Y[:3], GOOD), ValueError, r"y: expected shape \(6,\), got \(3,\)"),
        (lambda: moe_nll(X, Y, dataclasses.replace(GOOD, variance=np.zeros(3))), ValueError, "params.variance: expected numbers > 0, got 0.0"),
        (lambda: moe_nll(X, Y, dataclasses.replace(GOOD, temperature=-1.0)), ValueError, "params.temperature: expected a finite number > 0"),
        (lambda: moe_nll(X, Y, dataclasses.replace(GOOD, bias=np.ones(2))), ValueError, r"params.bias: expected shape \(3,\), got \(2,\)"),
        (lambda: moe_nll(X[:, :1], Y, GOOD), ValueError, "params.weight: expected 1 columns like x"),
        (lambda: fisher_information(GOOD, X, Y), ValueError, "params.gate_weight: expected the gate of the last expert at 0"),
        (lambda: fisher_information(mixture(1, last_gate=False), X[:0], Y[:0]), ValueError, "x: expected at least one entry"),
        (lambda: null_direction(GOOD), ValueError, "params.gate_weight: expected the gate of the last expert at 0"),
        (lambda: temperature_schedule(2.0, total=1.0), ValueError, r"t: expected a number in \[0, 1.0\], got 2.0"),
        (lambda: temperature_schedule(0.0, total=1.0, end=0.0), ValueError, "end: expected a finite number > 0"),
        (lambda: fit_moe(X, Y, k=0, rng=RNG), ValueError, "k: expected an integer >= 1, got 0"),
        (lambda: fit_moe(X, Y, k=2, rng=1), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: fit_moe(X, Y, k=2, rng=RNG, init=mixture(1, last_gate=False)), ValueError, "init: expected 2 experts, got 3"),
        (lambda: fit_moe(X, Y, k=3, rng=RNG, init=GOOD), ValueError, "init.gate_weight: expected the gate of the last expert at 0"),
        (lambda: fit_moe(X[:1], Y[:1], k=1, rng=RNG), ValueError, "x: expected at least 2 points, got 1"),
        (lambda: fit_moe(X, np.full(6, np.inf), k=1, rng=RNG), ValueError, "y: expected finite values"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
