import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    Diverged,
    LPNParams,
    init_lpn,
    lpn_invert,
    lpn_potential,
    lpn_potential_vjp,
    lpn_prior,
    lpn_prior_vjp,
    lpn_prox,
    lpn_prox_vjp,
    pnp_admm,
    pnp_pgd,
    project_nonneg,
    proximal_matching_loss,
    proximal_matching_loss_vjp,
    soft_threshold,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(7)


def network(n, hidden, layers, seed=0, **options):
    return init_lpn(n, hidden, layers, rng=np.random.default_rng(seed), **options)


UNIT = LPNParams((np.ones((1, 1)),), (), (), np.ones(1), np.zeros(1), np.zeros(()))
INVERTIBLE = {"sharpness": 2.0, "convexity": 0.3}

NETWORKS = (
    ("two layers", (4,), 3, 5, 2, {"sharpness": 2.0, "convexity": 0.3}),
    ("no hidden layer", (3,), 2, 4, 0, {"sharpness": 1.0}),
    ("one row without batch", (), 3, 4, 1, {}),
    ("two batch axes", (2, 3), 1, 3, 3, {"sharpness": 4.0}),
)

GRADIENT_CASES = [
    *(
        GradientCase(
            lpn_potential_vjp, (RNG.standard_normal((*batch, n)), network(n, hidden, layers)), options, name=name
        )
        for name, batch, n, hidden, layers, options in NETWORKS
    ),
    *(
        GradientCase(lpn_prox_vjp, (RNG.standard_normal((*batch, n)), network(n, hidden, layers)), options, name=name)
        for name, batch, n, hidden, layers, options in NETWORKS
    ),
    GradientCase(lpn_prox_vjp, (100 * RNG.standard_normal((3, 2)), network(2, 4, 1)), name="saturated"),
    GradientCase(
        lpn_prior_vjp,
        (lpn_prox(RNG.standard_normal((4, 3)), network(3, 5, 2), **INVERTIBLE), network(3, 5, 2)),
        {**INVERTIBLE, "tol": 1e-10},
        name="two layers",
    ),
    GradientCase(proximal_matching_loss_vjp, tuple(RNG.standard_normal((2, 4, 3))), {"width": 0.7}, name="batch"),
    GradientCase(proximal_matching_loss_vjp, tuple(RNG.standard_normal((2, 5))), {"width": 3.0}, name="one row"),
    GradientCase(
        proximal_matching_loss_vjp, (np.full((2, 2), 1e-3), np.zeros((2, 2))), {"width": 50.0}, name="wide and close"
    ),
]


def jacobian(x, params, **options):
    y, pullback = lpn_prox_vjp(x, params, **options)
    return np.stack([pullback(np.broadcast_to(unit, y.shape).copy())[0] for unit in np.eye(x.shape[-1])], axis=-2)


def test_one_unit_is_the_logistic_function_and_its_prior_the_entropy():
    x = np.array([[-3.0], [0.0], [2.0]])
    y, pullback = lpn_prox_vjp(x, UNIT, sharpness=1.0)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x)), rtol=1e-15)
    np.testing.assert_allclose(pullback(np.ones((3, 1)))[0], y * (1 - y), rtol=1e-14)
    u = np.array([[0.1], [0.5], [0.8]])
    entropy = (u * np.log(u) + (1 - u) * np.log(1 - u) - u**2 / 2)[:, 0]
    np.testing.assert_allclose(lpn_prior(u, UNIT, sharpness=1.0), entropy, rtol=1e-12)
    np.testing.assert_allclose(lpn_prior(u[1:2], UNIT, sharpness=1.0), -0.125 - np.log(2), rtol=1e-14)


@given(
    n=st.integers(1, 4),
    hidden=st.integers(1, 6),
    layers=st.integers(0, 3),
    seed=st.integers(0, 999),
    sharpness=st.floats(0.5, 10),
)
def test_jacobian_is_symmetric_and_positive_for_any_weights(n, hidden, layers, seed, sharpness):
    params = network(n, hidden, layers, seed, log_mean=0.0, log_std=1.0)
    x = 2 * np.random.default_rng(seed).standard_normal((3, n))
    matrix = jacobian(x, params, sharpness=sharpness)
    size = 1e-12 * (1 + np.abs(matrix).max())
    np.testing.assert_allclose(matrix, matrix.transpose(0, 2, 1), rtol=0, atol=size)
    assert np.linalg.eigvalsh(matrix).min() >= -size


@given(layers=st.integers(0, 3), seed=st.integers(0, 999), convexity=st.floats(0, 2))
def test_map_is_monotone(layers, seed, convexity):
    x, y = 3 * np.random.default_rng(seed).standard_normal((2, 5, 3))
    params = network(3, 6, layers, seed)
    rise = lpn_prox(x, params, convexity=convexity) - lpn_prox(y, params, convexity=convexity)
    assert ((rise * (x - y)).sum(axis=1) >= convexity * ((x - y) ** 2).sum(axis=1) - 1e-12).all()


@given(seed=st.integers(0, 999))
def test_map_is_the_gradient_of_the_potential(seed):
    params, x = network(3, 6, 2, seed), np.random.default_rng(seed).standard_normal((4, 3))
    _, pullback = lpn_potential_vjp(x, params, convexity=0.2)
    np.testing.assert_array_equal(pullback(np.ones(4))[0], lpn_prox(x, params, convexity=0.2))


@settings(max_examples=20)
@given(seed=st.integers(0, 999), layers=st.integers(0, 2))
def test_inversion_recovers_the_input_and_the_envelope_identity_holds(seed, layers):
    params, x = network(3, 6, layers, seed), np.random.default_rng(seed).standard_normal((4, 3))
    y = lpn_prox(x, params, **INVERTIBLE)
    inverse = lpn_invert(y, params, tol=1e-10, **INVERTIBLE)
    assert inverse.converged
    np.testing.assert_allclose(inverse.x, x, atol=1e-8)
    # R(prox(x)) + |x - prox(x)|^2 / 2 is the Moreau envelope, |x|^2 / 2 - potential(x).
    envelope = lpn_prior(y, params, **INVERTIBLE) + ((x - y) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(envelope, (x**2).sum(axis=1) / 2 - lpn_potential(x, params, **INVERTIBLE), atol=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_proximal_point_minimises_prior_plus_distance(seed):
    rng = np.random.default_rng(seed)
    params, x = network(2, 5, 1, seed), rng.standard_normal((1, 2))
    y = lpn_prox(x, params, **INVERTIBLE)
    others = y + 0.1 * rng.standard_normal((20, 2))
    value = lpn_prior(y, params, **INVERTIBLE) + ((x - y) ** 2).sum() / 2
    around = lpn_prior(others, params, **INVERTIBLE) + ((x - others) ** 2).sum(axis=1) / 2
    assert (around >= value - 1e-12).all()


def test_point_outside_the_range_is_not_found_and_has_infinite_prior():
    inverse = lpn_invert(np.array([[0.5], [1.5]]), UNIT, sharpness=1.0, max_iter=100)
    assert not inverse.converged
    assert inverse.residual[0] <= 1e-7 < inverse.residual[1]
    prior = lpn_prior(np.array([[0.5], [1.5]]), UNIT, sharpness=1.0, max_iter=100)
    assert np.isfinite(prior[0])
    assert prior[1] == np.inf


def test_inversion_can_be_watched_and_stopped():
    gaps = []
    result = lpn_invert(
        lpn_prox(RNG.standard_normal((4, 3)), network(3, 6, 2), **INVERTIBLE),
        network(3, 6, 2),
        **INVERTIBLE,
        x0=np.full((4, 3), 5.0),
        callback=lambda progress: gaps.append(progress.values["gap"]) or progress.n_iter == 2,
    )
    assert result.n_iter == len(gaps) == 2
    np.testing.assert_array_equal(result.history["gap"], gaps)


def test_loss_counts_misses():
    target = np.zeros((2, 3))
    prediction = np.array([[0.0, 0.0, 0.0], [1e3, 0.0, 0.0]])
    assert proximal_matching_loss(prediction, target, width=1.0) == 0.5
    assert proximal_matching_loss(target, target, width=1e-3) == 0


def test_wide_loss_is_the_mean_square_and_keeps_its_digits():
    prediction, target = RNG.standard_normal((2, 6, 3))
    wide = 1e6
    square = ((prediction - target) ** 2).mean()
    np.testing.assert_allclose(proximal_matching_loss(prediction, target, width=wide) * wide**2, square, rtol=1e-10)


def test_far_out_the_gradient_of_the_loss_vanishes():
    _, pullback = proximal_matching_loss_vjp(np.array([[40.0]]), np.array([[0.0]]), width=1.0)
    assert pullback(np.array(1.0))[0] == 0


@pytest.mark.parametrize("positive", ["exp_normal", "clipped_uniform"])
def test_initial_weights_are_valid_and_projection_changes_nothing(positive):
    params = network(3, 8, 2, positive=positive)
    clipped = project_nonneg(params)
    for (path, one), (_, other) in zip(tree_leaves(params), tree_leaves(clipped), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)
    lpn_prox(np.ones((1, 3)), params)


def test_projection_makes_any_weights_valid():
    broken = tree_map(lambda leaf: leaf - 1, network(3, 8, 2))
    with pytest.raises(ValueError, match="hidden_weights"):
        lpn_prox(np.ones((1, 3)), broken)
    lpn_prox(np.ones((1, 3)), project_nonneg(broken))


def test_plug_and_play_with_soft_thresholding_is_the_lasso():
    x, target = RNG.standard_normal((12, 4)), RNG.standard_normal(12)
    smoothness = np.linalg.norm(x, 2) ** 2
    step = 0.9 / smoothness
    pgd = pnp_pgd(
        lambda w: x.T @ (x @ w - target),
        lambda w: soft_threshold(w, step * 1.5),
        np.zeros(4),
        step_size=step,
        max_iter=5000,
        tol=1e-13,
    )
    system = np.linalg.inv(x.T @ x + smoothness * np.eye(4))
    admm = pnp_admm(
        lambda w: system @ (x.T @ target + smoothness * w),
        lambda w: soft_threshold(w, 1.5 / smoothness),
        np.zeros(4),
        max_iter=5000,
        tol=1e-13,
    )
    assert pgd.converged
    assert admm.converged
    np.testing.assert_allclose(pgd.x, admm.x, atol=1e-10)
    gradient = x.T @ (x @ pgd.x - target)
    assert (np.abs(gradient) <= 1.5 + 1e-9).all()
    np.testing.assert_allclose(gradient[pgd.x != 0], -1.5 * np.sign(pgd.x[pgd.x != 0]), atol=1e-9)


def test_plug_and_play_with_a_learned_map_finds_a_stationary_point_of_its_own_objective():
    params, target = network(3, 6, 2), np.array([0.5, -0.2, 0.4])

    def prox_prior(x):
        return lpn_prox(x, params, **INVERTIBLE)

    result = pnp_pgd(lambda x: x - target, prox_prior, np.zeros(3), step_size=0.5, tol=1e-12)
    assert result.converged
    # x minimises 0.5 |x - target|^2 / 2 + R(x): step_size times the gradient is -R'(x) = x - prox^-1(x).
    back = lpn_prior_vjp(result.x[None], params, tol=1e-10, **INVERTIBLE)[1](np.ones(1))[0][0]
    np.testing.assert_allclose(0.5 * (result.x - target) + back, 0, atol=1e-8)


def test_expanding_map_is_stopped():
    with pytest.raises(Diverged, match="pnp_pgd: diverged .* use a smaller step_size"):
        pnp_pgd(lambda x: -x, lambda x: 3 * x, np.ones(2), step_size=1.0)


def test_callback_stops_plug_and_play():
    result = pnp_admm(lambda x: x / 2 + 1, lambda x: x / 2, np.zeros(2), callback=lambda p: p.n_iter == 3)
    assert result.n_iter == 3
    assert not result.converged


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    params = network(3, 6, 2, dtype=dtype)
    x = RNG.standard_normal((4, 3)).astype(dtype)
    for f_vjp in (lpn_potential_vjp, lpn_prox_vjp):
        value, pullback = f_vjp(x, params, **INVERTIBLE)
        dx, dparams = pullback(value)
        assert {value.dtype, dx.dtype, *(leaf.dtype for _, leaf in tree_leaves(dparams))} == {np.dtype(dtype)}
    y = lpn_prox(x, params, **INVERTIBLE)
    prior, pullback = lpn_prior_vjp(y, params, tol=1e-5, **INVERTIBLE)
    assert prior.dtype == pullback(prior)[0].dtype == dtype
    loss, pullback = proximal_matching_loss_vjp(x, y, width=1.0)
    assert loss.dtype == pullback(loss)[0].dtype == dtype


def test_nan_stays_in_its_row():
    x = RNG.standard_normal((3, 2))
    x[1, 0] = np.nan
    y = lpn_prox(x, network(2, 4, 1))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


def test_arguments_are_not_written_to():
    params, x = network(3, 6, 2), RNG.standard_normal((4, 3))
    for array in (x, *(leaf for _, leaf in tree_leaves(params))):
        array.setflags(write=False)
    _, pullback = lpn_prox_vjp(x, params)
    pullback(x)
    lpn_invert(x, params, **INVERTIBLE, max_iter=3)


def changed(**fields):
    return dataclasses.replace(network(3, 6, 2), **fields)


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lpn_prox(np.ones((2, 4)), network(3, 6, 2)), ValueError, r"params.input_weights.0: expected shape \(6, 4\), got \(6, 3\)"),
        (lambda: lpn_prox(X.astype("f4"), network(3, 6, 2)), TypeError, "params.input_weights.0: expected dtype float32 like x, got float64"),
        (lambda: lpn_prox(X, changed(biases=())), ValueError, "params: expected 3 input_weights and 2 biases for 2 hidden_weights, got 3 and 0"),
        (lambda: lpn_prox(X, changed(output_weight=-np.ones(6))), ValueError, r"params.output_weight: expected values of at least 0 \(see project_nonneg\), got -1.0"),
        (lambda: lpn_prox(X, changed(output_linear=np.ones(2))), ValueError, r"params.output_linear: expected shape \(3,\), got \(2,\)"),
        (lambda: lpn_prox(X, network(3, 6, 2), sharpness=0.0), ValueError, "sharpness: expected a finite number > 0, got 0.0"),
        (lambda: lpn_prox(X, network(3, 6, 2), convexity=-1.0), ValueError, "convexity: expected a finite number >= 0, got -1.0"),
        (lambda: lpn_prox(np.ones((2, 3), int), network(3, 6, 2)), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: init_lpn(0, 1, 1, rng=RNG), ValueError, "n: expected an integer >= 1, got 0"),
        (lambda: init_lpn(1, 1, -1, rng=RNG), ValueError, "layers: expected an integer >= 0, got -1"),
        (lambda: init_lpn(1, 1, 1, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: init_lpn(1, 1, 1, rng=RNG, positive="abs"), ValueError, "positive: expected one of 'exp_normal', 'clipped_uniform', got 'abs'"),
        (lambda: init_lpn(1, 1, 1, rng=RNG, dtype=int), TypeError, "dtype: expected a float32 or float64 array, got dtype int64"),
        (lambda: lpn_invert(np.array([[np.nan]]), UNIT), ValueError, r"u: expected finite values, got 1 that are not, the first at index \(0, 0\)"),
        (lambda: lpn_invert(np.ones((1, 1)), UNIT, x0=np.ones(1)), ValueError, r"x0: expected shape \(1, 1\), got \(1,\)"),
        (lambda: lpn_invert(np.ones((1, 1)), UNIT, tol=0.0), ValueError, "tol: expected a finite number > 0, got 0.0"),
        (lambda: proximal_matching_loss(X, X[:1], width=1.0), ValueError, r"target: expected shape \(2, 3\), got \(1, 3\)"),
        (lambda: proximal_matching_loss(X, X, width=0.0), ValueError, "width: expected a finite number > 0, got 0.0"),
        (lambda: proximal_matching_loss(X[:0], X[:0], width=1.0), ValueError, "prediction: expected at least one entry"),
        (lambda: pnp_admm(lambda x: x, lambda x: x[:1], np.ones(2)), ValueError, r"prox_prior: expected shape \(2,\), got \(1,\)"),
        (lambda: pnp_pgd(lambda x: x, lambda x: x, np.ones(2), step_size=0.0), ValueError, "step_size: expected a finite number > 0, got 0.0"),
        (lambda: pnp_pgd(lambda x: x, lambda x: x, np.ones(2), step_size=1.0, max_iter=0), ValueError, "max_iter: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
