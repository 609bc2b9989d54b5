import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    GradientNoise,
    Lion,
    add_gradient_noise,
    clip_by_global_norm,
    clip_by_global_norm_vjp,
    noise_std,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(5)

GRADIENT_CASES = [
    GradientCase(
        clip_by_global_norm_vjp,
        (RNG.standard_normal(6),),
        call=lambda grads: clip_by_global_norm_vjp(grads, 0.5),
        method="complex",
        name="one array, clipped",
    ),
    GradientCase(
        clip_by_global_norm_vjp,
        ({"weight": RNG.standard_normal((2, 3)), "rest": [RNG.standard_normal(4), np.array(0.3)]},),
        call=lambda grads: clip_by_global_norm_vjp(grads, 1.5),
        method="complex",
        name="tree, clipped",
    ),
    GradientCase(
        clip_by_global_norm_vjp,
        ([RNG.standard_normal(3), RNG.standard_normal((2, 2))],),
        call=lambda grads: clip_by_global_norm_vjp(grads, 100.0),
        method="complex",
        name="tree, not clipped",
    ),
    GradientCase(
        clip_by_global_norm_vjp,
        (1e200 * RNG.standard_normal(4),),
        call=lambda grads: clip_by_global_norm_vjp(grads, 1e200),
        method="complex",
        name="squares overflow",
    ),
]


@dataclass(frozen=True)
class Descent:
    learning_rate: float = 0.1

    def init(self, params):
        return None

    def step(self, params, grads, state):
        return tree_map(lambda p, g: p - self.learning_rate * g, params, grads), None


def test_variances_by_hand():
    assert noise_std(0, variance=0.3) ** 2 == pytest.approx(0.3, rel=1e-15)
    assert noise_std(1, variance=0.3) ** 2 == pytest.approx(0.204906, abs=5e-7)
    assert noise_std(99, variance=0.3) ** 2 == pytest.approx(0.023830, abs=5e-7)


def test_without_decay_the_noise_stays():
    assert {noise_std(step, variance=0.25, decay=0.0) for step in (0, 7, 10**9)} == {0.5}


@given(step=st.integers(0, 10**6), variance=st.floats(1e-6, 10), decay=st.floats(0.01, 3))
def test_noise_shrinks_and_its_variance_follows_the_power_law(step, variance, decay):
    now, later = (noise_std(t, variance=variance, decay=decay) for t in (step, 2 * step + 1))
    assert later < now
    assert later**2 / now**2 == pytest.approx(2**-decay, rel=1e-10)


def test_sample_variance_of_a_million_draws():
    noise = add_gradient_noise(np.zeros(10**6), 9, variance=1.0, rng=np.random.default_rng(0))
    assert noise.var() == pytest.approx(10**-0.55, rel=5e-3)
    assert abs(noise.mean()) < 4 * noise_std(9, variance=1.0) / 1000


def test_leaves_draw_in_the_order_of_the_tree_and_in_their_own_dtype():
    grads = {"a": np.ones((2, 3), np.float32), "b": [None, np.ones(4)]}
    noisy = add_gradient_noise(grads, 3, variance=0.5, rng=np.random.default_rng(1))
    rng, std = np.random.default_rng(1), noise_std(3, variance=0.5)
    np.testing.assert_array_equal(noisy["a"], np.float32(1) + std * rng.standard_normal((2, 3), dtype=np.float32))
    np.testing.assert_array_equal(noisy["b"][1], 1 + std * rng.standard_normal(4))
    assert noisy["b"][0] is None
    assert noisy["a"].dtype == np.float32


def test_wrapped_descent_is_descent_on_the_noisy_gradient():
    optimizer, params = GradientNoise(Descent(0.1), variance=0.3), np.array([1.0, -2.0])
    state, clone, expected = optimizer.init(params), np.random.default_rng(8), params
    rng = np.random.default_rng(8)
    for step in range(4):
        grads = np.array([step, -1.0])
        params, state = optimizer.step(params, grads, state, rng)
        expected = expected - 0.1 * (grads + noise_std(step, variance=0.3) * clone.standard_normal(2))
    np.testing.assert_array_equal(params, expected)
    assert state.step == 4


@given(seed=st.integers(0, 99), steps=st.integers(1, 5))
def test_no_noise_is_the_inner_optimizer_and_draws_nothing(seed, steps):
    params, *gradients = np.random.default_rng(seed).standard_normal((steps + 1, 3))
    inner = Lion(learning_rate=0.1, weight_decay=0.3)
    outer, rng = GradientNoise(inner, variance=0.0), np.random.default_rng(0)
    a, inner_state = params, inner.init(params)
    b, outer_state = params, outer.init(params)
    for grads in gradients:
        a, inner_state = inner.step(a, grads, inner_state)
        b, outer_state = outer.step(b, grads, outer_state, rng)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(inner_state.momentum, outer_state.inner.momentum)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_noise_is_added_after_clipping():
    optimizer = GradientNoise(Descent(1.0), variance=4.0, clip_norm=1.0)
    params, _ = optimizer.step(
        np.zeros(2), np.array([300.0, 400.0]), optimizer.init(np.zeros(2)), np.random.default_rng(3)
    )
    noise = 2.0 * np.random.default_rng(3).standard_normal(2)
    np.testing.assert_allclose(params, -np.array([0.6, 0.8]) - noise, rtol=1e-14)


@given(seed=st.integers(0, 99), scale=st.floats(1e-150, 1e150), max_norm=st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(seed, scale, max_norm):
    grads = [scale * leaf for leaf in np.random.default_rng(seed).standard_normal((2, 3))]
    clipped, norm = clip_by_global_norm(grads, max_norm)
    flat, before = np.concatenate(clipped), np.concatenate(grads)
    assert np.linalg.norm(flat) <= max_norm * (1 + 1e-14)
    np.testing.assert_allclose(flat * norm, before * min(max_norm, float(norm)), rtol=1e-13)
    if norm <= max_norm:
        np.testing.assert_array_equal(flat, before)


def test_norm_is_that_of_all_leaves_together_and_survives_overflow_of_squares():
    assert clip_by_global_norm({"a": np.array([3.0]), "b": (None, np.array([[4.0]]))}, 10.0)[1] == 5.0
    grads = [np.full(4, 1e30, np.float32)]
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert norm == pytest.approx(2e30, rel=1e-7)
    np.testing.assert_allclose(clipped[0], 0.5, rtol=1e-6)
    assert clip_by_global_norm(np.full(4, 1e300), 1.0)[1] == pytest.approx(2e300, rel=1e-15)


def test_zero_gradients_and_empty_ones_are_left_alone():
    (clipped, norm), pullback = clip_by_global_norm_vjp([np.zeros(2), np.zeros(0)], 1.0)
    assert norm == 0
    np.testing.assert_array_equal(clipped[0], 0)
    (dgrads,) = pullback(([np.array([1.0, 2.0]), np.zeros(0)], np.array(3.0)))
    np.testing.assert_array_equal(dgrads[0], [1.0, 2.0])
    assert clip_by_global_norm([None], 1.0)[1] == 0


def test_clipped_cotangent_has_nothing_along_the_gradient():
    grads = RNG.standard_normal(5)
    _, pullback = clip_by_global_norm_vjp(grads, 0.1)
    (dgrads,) = pullback((RNG.standard_normal(5), np.array(0.0)))
    assert abs(dgrads @ grads) < 1e-15


def test_nan_and_infinity_follow_the_arithmetic():
    clipped, norm = clip_by_global_norm([np.array([1.0, np.nan]), np.ones(2)], 1.0)
    assert np.isnan(norm)
    assert all(np.isnan(leaf).all() for leaf in clipped)
    clipped, norm = clip_by_global_norm(np.array([np.inf, 2.0]), 1.0)
    assert norm == np.inf
    np.testing.assert_array_equal(clipped, [np.nan, 0.0])


def test_none_gradients_leave_parameters_alone():
    optimizer = GradientNoise(Lion(learning_rate=0.5), clip_norm=1.0)
    params = [np.zeros(2), np.ones(3)]
    after, _ = optimizer.step(params, [np.ones(2), None], optimizer.init(params), np.random.default_rng(0))
    assert after[1] is params[1]
    assert (after[0] != 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_shape_and_dtype_are_kept_and_nothing_is_written_to(dtype, shape):
    grads = {"a": np.ones(shape, dtype)}
    grads["a"].setflags(write=False)
    noisy = add_gradient_noise(grads, 0, rng=np.random.default_rng(0))
    (clipped, _), pullback = clip_by_global_norm_vjp(grads, 0.5)
    (back,) = pullback((grads, np.array(1.0)))
    for tree in (noisy, clipped, back):
        assert [(leaf.shape, leaf.dtype) for _, leaf in tree_leaves(tree)] == [(shape, dtype)]


def test_the_wrapper_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GradientNoise(Lion()).variance = 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: noise_std(-1), ValueError, "step: expected an integer >= 0, got -1"),
        (lambda: noise_std(1.5), TypeError, "step: expected an integer, got 1.5"),
        (lambda: noise_std(0, variance=-0.1), ValueError, "variance: expected a finite number >= 0, got -0.1"),
        (lambda: noise_std(0, decay=-1), ValueError, "decay: expected a finite number >= 0, got -1"),
        (lambda: add_gradient_noise(np.ones(2), 0, rng=0), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: add_gradient_noise({"a": np.ones(2, int)}, 0, rng=RNG), TypeError, "grads.a: expected a float32 or float64 array, got dtype int64"),
        (lambda: clip_by_global_norm(np.ones(2), 0.0), ValueError, "max_norm: expected a finite number > 0, got 0.0"),
        (lambda: clip_by_global_norm([np.ones(2, bool)], 1.0), TypeError, "grads.0: expected a float32 or float64 array"),
        (lambda: GradientNoise(Lion(), variance=-1.0), ValueError, "variance: expected a finite number >= 0, got -1.0"),
        (lambda: GradientNoise(Lion(), decay=np.nan), ValueError, "decay: expected a finite number >= 0, got nan"),
        (lambda: GradientNoise(Lion(), clip_norm=-1.0), ValueError, "clip_norm: expected a finite number > 0, got -1.0"),
        (lambda: GradientNoise(3), TypeError, "inner: expected an optimizer with init and step, got int"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_leaf_stays_missing_when_gradients_are_clipped():
    grads = {"a": np.array([3.0, 4.0]), "b": None}
    (clipped, norm), pullback = clip_by_global_norm_vjp(grads, 1.0)
    assert clipped["b"] is None
    assert norm == 5
    (dgrads,) = pullback(({"a": np.array([1.0, 0.0]), "b": None}, np.array(0.0)))
    assert dgrads["b"] is None
    np.testing.assert_allclose(dgrads["a"], [0.2 * (1 - 0.36), 0.2 * -0.48])
