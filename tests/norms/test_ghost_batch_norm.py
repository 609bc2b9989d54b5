import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    GhostBatchState,
    adapt_regime,
    batch_norm,
    clip_by_global_norm,
    fit_diffusion,
    ghost_batch_norm,
    ghost_batch_norm_train,
    ghost_batch_norm_train_vjp,
    ghost_batch_norm_vjp,
    scale_learning_rate,
    update_running_statistics,
    weight_distance,
)

RNG = np.random.default_rng(17)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def in_training(*arrays, **options):
    (y, _), pullback = ghost_batch_norm_train_vjp(*arrays, GhostBatchState.create(3), **options)
    return y, pullback


GRADIENT_CASES = [
    GradientCase(ghost_batch_norm_vjp, draw((6, 3), 3, 3), {"ghost_size": 3}, method="complex"),
    GradientCase(ghost_batch_norm_vjp, draw((7, 3, 2), 3, 3), {"ghost_size": 3, "eps": 1e-2}, method="complex", name="rest"),
    GradientCase(
        ghost_batch_norm_vjp, draw((7, 3), 3, 3), {"ghost_size": 3, "merge_last": True}, method="complex", name="merged rest"
    ),
    GradientCase(ghost_batch_norm_vjp, draw((4, 3, 2, 2), 3, 3), {"ghost_size": 9}, name="one ghost batch, differences"),
    GradientCase(ghost_batch_norm_vjp, (np.ones((4, 2)), *draw(2, 2)), {"ghost_size": 2, "eps": 0.1}, method="complex", name="constant"),
    GradientCase(ghost_batch_norm_train_vjp, draw((6, 3), 3, 3), {"ghost_size": 2}, method="complex", call=in_training),
]  # fmt: skip


def test_one_ghost_batch_is_batch_norm():
    x, gain, bias = draw((6, 3, 4), 3, 3)
    for size in (6, 100):
        np.testing.assert_allclose(
            ghost_batch_norm(x, gain, bias, ghost_size=size),
            batch_norm(x, gain, bias, axes=(0, 2)),
            rtol=1e-12,
            atol=1e-14,
        )


@given(seed=st.integers(0, 99), size=st.integers(2, 5), count=st.integers(1, 4))
def test_ghost_batches_are_batch_norm_of_each(seed, size, count):
    rng = np.random.default_rng(seed)
    x, (gain, bias) = rng.standard_normal((size * count, 3)), rng.standard_normal((2, 3))
    expected = [batch_norm(part, gain, bias) for part in np.split(x, count)]
    np.testing.assert_allclose(
        ghost_batch_norm(x, gain, bias, ghost_size=size), np.concatenate(expected), rtol=1e-10, atol=1e-12
    )


def test_an_example_depends_on_its_ghost_batch_only():
    x, gain, bias = draw((8, 3), 3, 3)
    moved = x.copy()
    moved[4:] = 7 * moved[4:] + 100
    np.testing.assert_array_equal(
        ghost_batch_norm(x, gain, bias, ghost_size=4)[:4], ghost_batch_norm(moved, gain, bias, ghost_size=4)[:4]
    )


def test_a_smaller_rest_may_join_the_ghost_batch_before_it():
    x, gain, bias = draw((7, 3), 3, 3)
    y = ghost_batch_norm(x, gain, bias, ghost_size=3, merge_last=True)
    np.testing.assert_allclose(y[3:], batch_norm(x[3:], gain, bias), rtol=1e-12, atol=1e-14)
    even = ghost_batch_norm(x[:6], gain, bias, ghost_size=3, merge_last=True)
    np.testing.assert_allclose(even[3:], batch_norm(x[3:6], gain, bias), rtol=1e-12, atol=1e-14)


@given(seed=st.integers(0, 99), momentum=st.floats(0, 1), count=st.integers(1, 5))
def test_running_mean_has_the_closed_form(seed, momentum, count):
    x = np.random.default_rng(seed).standard_normal((4 * count, 2))
    _, state = ghost_batch_norm_train(
        x, np.ones(2), np.zeros(2), GhostBatchState(np.array([5.0, -1.0]), np.ones(2)), ghost_size=4, momentum=momentum
    )
    means = x.reshape(count, 4, 2).mean(axis=1)
    weights = momentum * (1 - momentum) ** np.arange(count - 1, -1, -1)
    expected = (1 - momentum) ** count * np.array([5.0, -1.0]) + weights @ means
    np.testing.assert_allclose(state.mean, expected, rtol=1e-10, atol=1e-12)


def test_running_statistics_are_those_of_batch_norm_on_each_ghost_batch():
    x = draw((6, 2, 3))[0]
    _, state = ghost_batch_norm_train(x, np.ones(2), np.zeros(2), GhostBatchState.create(2), ghost_size=3)
    running = np.zeros(2), np.ones(2)
    for part in (x[:3], x[3:]):
        running = update_running_statistics(*running, part.mean(axis=(0, 2)), part.var(axis=(0, 2)), 9)
    np.testing.assert_allclose(state.mean, running[0], rtol=1e-12)
    np.testing.assert_allclose(state.var, running[1], rtol=1e-12)


def test_order_of_ghost_batches_matters_for_the_statistics_only():
    x, gain, bias = draw((8, 2), 2, 2)
    turned = np.concatenate([x[4:], x[:4]])
    (a, first), (b, second) = (
        ghost_batch_norm_train(z, gain, bias, GhostBatchState.create(2), ghost_size=4) for z in (x, turned)
    )
    np.testing.assert_array_equal(a, np.concatenate([b[4:], b[:4]]))
    assert np.abs(first.mean - second.mean).max() > 1e-3


@given(small=st.integers(1, 512), ratio=st.integers(1, 64))
def test_root_rule_keeps_the_noise_of_an_update(small, ratio):
    rate = scale_learning_rate(0.1, small, small * ratio)
    np.testing.assert_allclose(rate**2 / (small * ratio), 0.1**2 / small, rtol=1e-12)
    np.testing.assert_allclose(scale_learning_rate(0.1, small, small * ratio, rule="linear"), 0.1 * ratio, rtol=1e-12)


@given(seed=st.integers(0, 99), max_norm=st.floats(0.01, 100), exponent=st.integers(-250, 250))
def test_clipping_shortens_the_whole_gradient_and_keeps_its_direction(seed, max_norm, exponent):
    rng = np.random.default_rng(seed)
    size = 10.0**exponent
    grads = {"w": size * rng.uniform(1, 2, (3, 2)), "layers": [size * rng.uniform(-2, -1, 4), None]}
    clipped, norm = clip_by_global_norm(grads, max_norm)
    unit = np.sqrt(((grads["w"] / size) ** 2).sum() + ((grads["layers"][0] / size) ** 2).sum())
    np.testing.assert_allclose(norm, size * unit, rtol=1e-12)
    assert clipped["layers"][1] is None
    if norm <= max_norm:
        np.testing.assert_array_equal(clipped["w"], grads["w"])
    else:
        np.testing.assert_allclose(clip_by_global_norm(clipped, 1e300)[1], max_norm, rtol=1e-12)
        np.testing.assert_allclose(clipped["w"] / clipped["w"][0, 0], grads["w"] / grads["w"][0, 0], rtol=1e-12)


def test_clipping_keeps_dtypes_and_lets_nan_through():
    clipped, norm = clip_by_global_norm([np.full(4, 10, np.float32)], 1.0)
    assert clipped[0].dtype == np.float32
    assert norm == 20
    same, norm = clip_by_global_norm([np.array([np.nan, 1.0])], 1.0)
    assert np.isnan(norm)
    np.testing.assert_array_equal(same[0], [np.nan, 1])
    assert clip_by_global_norm([np.zeros(3)])[1] == 0


def test_regime_has_as_many_updates():
    assert adapt_regime([10, 20], 64, 1024) == (160, 320)
    assert adapt_regime([10], 64, 100) == (20,)
    assert adapt_regime([10], 64, 64) == (10,)


def test_weight_distance_is_zero_at_the_start_and_euclidean():
    params = {"a": draw((2, 3))[0], "b": [draw(4)[0], None]}
    assert weight_distance(params, params) == 0
    moved = {"a": params["a"] + 1, "b": [params["b"][0] - 1, None]}
    np.testing.assert_allclose(weight_distance(moved, params), np.sqrt(10), rtol=1e-12)


@given(slope=st.floats(0.1, 10), intercept=st.floats(-5, 5), power=st.floats(0.05, 2), seed=st.integers(0, 99))
def test_fits_recover_exact_laws(slope, intercept, power, seed):
    t = np.sort(np.random.default_rng(seed).uniform(1, 1000, 50))
    fit = fit_diffusion(t, intercept + slope * np.log(t))
    np.testing.assert_allclose(
        [fit.log_intercept, fit.log_slope, fit.log_r2], [intercept, slope, 1], rtol=1e-8, atol=1e-8
    )
    fit = fit_diffusion(t, 3 * t**power)
    np.testing.assert_allclose([fit.power_scale, fit.power, fit.power_r2], [3, power, 1], rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    arrays = [a.astype(dtype) for a in draw((4, 3), 3, 3)]
    (y, state), pullback = ghost_batch_norm_train_vjp(*arrays, GhostBatchState.create(3, dtype), ghost_size=2)
    assert {a.dtype for a in (y, state.mean, state.var, *pullback(y))} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    arrays = draw((4, 3), 3, 3)
    state = GhostBatchState.create(3)
    for array in (*arrays, state.mean, state.var):
        array.setflags(write=False)
    ghost_batch_norm_train_vjp(*arrays, state, ghost_size=2)[1](arrays[0])
    clip_by_global_norm(arrays, 0.1)


X, ONE, T = np.ones((5, 3)), np.ones(3), np.arange(1.0, 6.0)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (ghost_batch_norm, (X, ONE, ONE), {"ghost_size": 0}, ValueError, "ghost_size: expected an integer >= 1, got 0"),
        (ghost_batch_norm, (X, ONE, ONE), {"ghost_size": 2}, ValueError, r"ghost_size: expected ghost batches of at least 2 values a channel \(merge_last=True may help\)"),
        (ghost_batch_norm, (X, ONE, ONE), {"ghost_size": 1}, ValueError, "ghost_size: expected ghost batches of at least 2 values"),
        (ghost_batch_norm, (X[:0], ONE, ONE), {}, ValueError, "x: expected at least one entry along axes"),
        (ghost_batch_norm, (X, np.ones(2), ONE), {}, ValueError, r"gain: expected shape \(3,\), got \(2,\)"),
        (ghost_batch_norm, (X, ONE, ONE.astype("f4")), {}, TypeError, "bias: expected dtype float64 like x, got float32"),
        (ghost_batch_norm, (X, ONE, ONE), {"eps": -1.0}, ValueError, "eps: expected a finite number > 0, got -1.0"),
        (ghost_batch_norm_train, (X, ONE, ONE, GhostBatchState.create(2)), {}, ValueError, r"state.mean: expected shape \(3,\), got \(2,\)"),
        (ghost_batch_norm_train, (X, ONE, ONE, GhostBatchState.create(3)), {"momentum": 2.0}, ValueError, r"momentum: expected a number in \[0, 1\], got 2.0"),
        (scale_learning_rate, (0.1, 0, 5), {}, ValueError, "small: expected an integer >= 1, got 0"),
        (scale_learning_rate, (0.1, 2, 5), {"rule": "cube"}, ValueError, "rule: expected one of 'sqrt', 'linear', got 'cube'"),
        (clip_by_global_norm, ([ONE], 0.0), {}, ValueError, "max_norm: expected a finite number > 0, got 0.0"),
        (clip_by_global_norm, ({"w": np.ones(2, int)},), {}, TypeError, "grads.w: expected a float32 or float64 array"),
        (adapt_regime, ([-1], 1, 2), {}, ValueError, "boundaries: expected an integer >= 0, got -1"),
        (weight_distance, ([ONE], [np.ones(2)]), {}, ValueError, r"start: expected shape \(3,\), got \(2,\)"),
        (fit_diffusion, (T - 1, T), {}, ValueError, "t: expected at least three different times > 0"),
        (fit_diffusion, (T, 0 * T), {}, ValueError, "distance: expected values that are not all equal"),
        (fit_diffusion, (T, T[:3]), {}, ValueError, r"distance: expected shape \(5,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
