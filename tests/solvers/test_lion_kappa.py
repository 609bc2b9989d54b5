import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    Diverged,
    Kappa,
    Lion,
    LionK,
    integrate_lion_ode,
    lion_kappa_update,
    lion_kappa_update_vjp,
    lyapunov,
    lyapunov_rate,
    make_kappa,
)

RNG = np.random.default_rng(13)
NAMES = ("l1", "l2", "sq", "lp", "group", "huber", "softl1", "relu", "topk")
CONSTANTS = {"gradient_rate": 1.5, "momentum_rate": 2.0, "weight_decay": 0.7, "lookahead": 0.3}
OPTIONS = {"learning_rate": 0.3, "beta1": 0.6, "beta2": 0.8, "weight_decay": 0.5}


def arrays(*shape):
    return tuple(RNG.standard_normal((3, *shape)))


GRADIENT_CASES = [
    GradientCase(lion_kappa_update_vjp, arrays(4), OPTIONS | {"kappa": "sq"}, method="complex", name="sq"),
    GradientCase(
        lion_kappa_update_vjp,
        arrays(2, 3),
        OPTIONS | {"kappa": "sq", "decay": "implicit"},
        method="complex",
        name="sq, implicit",
    ),
    GradientCase(lion_kappa_update_vjp, arrays(2, 3), OPTIONS | {"kappa": "l2"}, name="l2"),
    GradientCase(lion_kappa_update_vjp, arrays(2, 3), OPTIONS | {"kappa": "group"}, name="group"),
    GradientCase(
        lion_kappa_update_vjp, arrays(3, 2), OPTIONS | {"kappa": make_kappa("group", axis=0)}, name="group, axis 0"
    ),
    GradientCase(
        lion_kappa_update_vjp, arrays(5), OPTIONS | {"kappa": make_kappa("huber", width=0.4)}, name="huber", step=1e-3
    ),
    GradientCase(
        lion_kappa_update_vjp, arrays(5), OPTIONS | {"kappa": make_kappa("lp", power=3.5)}, name="lp, power 3.5"
    ),
    GradientCase(lion_kappa_update_vjp, arrays(4), OPTIONS | {"kappa": "lp"}, name="lp, power 1.5", step=1e-3),
    GradientCase(
        lion_kappa_update_vjp, arrays(4), OPTIONS | {"kappa": "l1", "decay": "implicit"}, name="l1", step=1e-3
    ),
    GradientCase(lion_kappa_update_vjp, arrays(4), OPTIONS | {"kappa": "softl1"}, name="softl1", step=1e-3),
    GradientCase(lion_kappa_update_vjp, arrays(4), OPTIONS | {"kappa": "relu"}, name="relu", step=1e-3),
    GradientCase(
        lion_kappa_update_vjp, arrays(5), OPTIONS | {"kappa": make_kappa("topk", k=2)}, name="topk", step=1e-3
    ),
]


def run(optimizer, x, gradients):
    state = optimizer.init(x)
    for grads in gradients:
        x, state = optimizer.step(x, grads, state)
    return x, state


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 999), d=st.integers(1, 6), scale=st.floats(0.05, 5))
def test_gradient_attains_the_conjugate(name, seed, d, scale):
    z, other = scale * np.random.default_rng(seed).standard_normal((2, d))
    kappa = make_kappa(name)
    step = kappa.gradient(z)
    assert kappa.in_domain(step)
    # Fenchel: equality at a subgradient, inequality at any other point.
    assert kappa.value(z) + kappa.conjugate(step) == pytest.approx(z @ step, rel=1e-9, abs=1e-12)
    assert kappa.value(other) + kappa.conjugate(step) >= other @ step - 1e-9


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 999), d=st.integers(1, 6))
def test_conjugate_gradient_is_a_preimage(name, seed, d):
    kappa = make_kappa(name)
    y = 0.4 / d * np.random.default_rng(seed).uniform(0.1, 1, d)
    k = kappa.conjugate_gradient(y)
    assert kappa.value(k) + kappa.conjugate(y) == pytest.approx(k @ y, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["l1", "l2", "huber", "softl1", "relu", "topk", "group"])
@given(seed=st.integers(0, 99))
def test_distance_is_that_to_the_nearest_point_of_the_domain(name, seed):
    y = 1.5 * np.random.default_rng(seed).standard_normal(4)
    kappa = make_kappa(name, k=2)
    constraints = {
        "l2": [{"type": "ineq", "fun": lambda p: 1 - p @ p}],
        "group": [{"type": "ineq", "fun": lambda p: 1 - p @ p}],
        # The 1-norm through positive and negative parts is avoided: the nearest point has the signs of y.
        "topk": [{"type": "ineq", "fun": lambda p: 2 - np.sign(y) @ p}],
    }.get(name, [])
    low = np.where(y < 0, -1, 0) if name == "topk" else np.full(4, 0.0 if name == "relu" else -1.0)
    high = np.where(y > 0, 1, 0) if name == "topk" else np.ones(4)
    found = minimize(
        lambda p: 0.5 * (p - y) @ (p - y),
        np.clip(y, low, high) / 4,
        jac=lambda p: p - y,
        bounds=list(zip(low, high, strict=True)),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    assert kappa.distance_to_domain(y) == pytest.approx(np.linalg.norm(found.x - y), abs=1e-5)
    assert kappa.in_domain(y) == (kappa.conjugate(y) < math.inf)


@given(seed=st.integers(0, 99), k=st.integers(1, 6))
def test_topk_takes_the_signs_of_the_largest(seed, k):
    z = np.random.default_rng(seed).standard_normal(6)
    step = make_kappa("topk", k=k).gradient(z)
    assert np.count_nonzero(step) == k
    assert np.abs(z)[step == 0].max(initial=0) <= np.abs(z)[step != 0].min()


def test_ties_of_topk_go_to_the_first_entries():
    np.testing.assert_array_equal(make_kappa("topk", k=2).gradient(np.array([1.0, -1.0, 1.0])), [1, -1, 0])


def test_kinks_have_the_step_zero():
    for name in NAMES:
        np.testing.assert_array_equal(make_kappa(name).gradient(np.zeros(3)), 0)


@pytest.mark.parametrize("name", ["huber", "sq", "l2", "lp", "group"])
def test_hessian_product_is_symmetric_and_positive(name):
    z, u, v = RNG.standard_normal((3, 2, 3))
    product = make_kappa(name).hessian_product
    assert np.sum(u * product(z, v)) == pytest.approx(np.sum(v * product(z, u)), rel=1e-12, abs=1e-14)
    assert np.sum(v * product(z, v)) >= 0


def test_hessian_of_lp_below_power_two_lets_nothing_through_zero():
    np.testing.assert_array_equal(make_kappa("lp").hessian_product(np.zeros(2), np.ones(2)), 0)
    np.testing.assert_array_equal(make_kappa("lp", power=2.0).hessian_product(np.zeros(2), np.ones(2)), 1)


@given(seed=st.integers(0, 99), steps=st.integers(1, 6), decay=st.floats(0, 2))
def test_l1_is_lion(seed, steps, decay):
    x, *gradients = np.random.default_rng(seed).standard_normal((steps + 1, 4))
    ours, state = run(LionK(learning_rate=0.01, weight_decay=decay), x, gradients)
    theirs, other = run(Lion(learning_rate=0.01, weight_decay=decay), x, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state.momentum, -other.momentum, rtol=1e-14)


def test_sq_without_decay_is_heavy_ball():
    x, *gradients = RNG.standard_normal((6, 3))
    ours, _ = run(LionK(learning_rate=0.5, betas=(0.8, 0.8), weight_decay=0.0, kappa="sq"), x, gradients)
    velocity, theirs = np.zeros(3), x
    for grad in gradients:
        velocity = 0.8 * velocity - 0.2 * grad
        theirs = theirs + 0.5 * velocity
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_l1_without_momentum_is_sign_descent():
    x, grad = RNG.standard_normal((2, 3))
    ours, _ = run(LionK(learning_rate=0.5, betas=(0.0, 0.0), weight_decay=0.0), x, [grad])
    np.testing.assert_array_equal(ours, x - 0.5 * np.sign(grad))


@pytest.mark.parametrize("decay", ["explicit", "implicit"])
@pytest.mark.parametrize("name", ["l1", "l2", "huber", "relu", "topk", "group"])
def test_domain_is_entered_at_its_rate_and_never_left(name, decay):
    rng = np.random.default_rng(3)
    optimizer, x = LionK(learning_rate=0.1, weight_decay=0.5, kappa=name, decay=decay), 10 * rng.standard_normal(4)
    factor = 1 - 0.05 if decay == "explicit" else 1 / 1.05
    distance, state = make_kappa(name).distance_to_domain, optimizer.init(x)
    before = distance(0.5 * x)
    for _ in range(200):
        x, state = optimizer.step(x, rng.standard_normal(4), state)
        after = distance(0.5 * x)
        assert after <= factor * before + 1e-12
        before = after


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("sq", {}, [1.5, 0.1, -1.0]),
        ("l1", {}, [1.0, 0.2, -1.0]),
        ("relu", {}, [1.0, 0.2, 0.0]),
        ("huber", {"width": 0.5}, [1.0, 0.2 / 1.5, -1.0]),
        ("softl1", {"threshold": 0.5}, [1.0, 0.0, -1.0]),
        ("topk", {"k": 1}, [1.0, 0.0, 0.0]),
        ("l2", {}, [3 / np.sqrt(13.04), 0.2 / np.sqrt(13.04), -2 / np.sqrt(13.04)]),
    ],
)
def test_limit_is_the_minimum_of_the_composite_problem(name, parameters, expected):
    target = np.array([3.0, 0.2, -2.0])
    optimizer = LionK(learning_rate=2e-3, kappa=make_kappa(name, **parameters), betas=(0.9, 0.95))
    x, state = np.zeros(3), optimizer.init(np.zeros(3))
    for _ in range(6000):
        x, state = optimizer.step(x, x - target, state)
    np.testing.assert_allclose(x, expected, atol=2e-2 if name == "topk" else 5e-3)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 99), lookahead=st.floats(0, 0.5))
def test_lyapunov_rate_is_the_derivative_along_the_field_and_not_positive(name, seed, lookahead):
    rng = np.random.default_rng(seed)
    x, m, centre = rng.uniform(0.05, 0.3, 4), rng.standard_normal(4), rng.standard_normal(4)
    kappa, constants = make_kappa(name), CONSTANTS | {"lookahead": lookahead}

    def energy(t):
        at, momentum = x + t * dx, m - t * pull
        return lyapunov(at, momentum, float(0.5 * (at - centre) @ (at - centre)), kappa, **constants)

    pull = 1.5 * (x - centre) + 2.0 * m
    dx = kappa.gradient(m - lookahead * pull) - 0.7 * x
    rate = lyapunov_rate(x, m, x - centre, kappa, **constants)
    assert rate <= 1e-12
    h = 1e-6
    assert rate == pytest.approx((energy(h) - energy(-h)) / (2 * h), rel=1e-5, abs=1e-6)


def test_lyapunov_is_infinite_outside_the_domain():
    assert lyapunov(np.array([1.1]), np.array([0.0]), 0.0, "l1") == math.inf
    assert lyapunov(np.array([1.1]), np.array([0.0]), 0.0, "sq") < math.inf


def test_euler_step_is_the_discrete_update():
    x, m, centre = RNG.standard_normal((3, 3))
    h, gamma, lookahead = 0.1, 2.0, 0.15
    flow = integrate_lion_ode(
        lambda x: x - centre,
        x,
        "huber",
        momentum0=m,
        gradient_rate=gamma,
        momentum_rate=gamma,
        lookahead=lookahead,
        step_size=h,
        max_iter=1,
        scheme="euler",
    )
    after, momentum = lion_kappa_update(
        x, x - centre, m, learning_rate=h, beta1=1 - lookahead * gamma, beta2=1 - h * gamma, kappa="huber"
    )
    np.testing.assert_allclose(flow.x[1], after, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(flow.momentum[1], momentum, rtol=1e-13, atol=1e-15)


def test_runge_kutta_is_of_fourth_order_on_a_linear_field():
    def end(steps):
        return integrate_lion_ode(lambda x: x - 3.0, np.zeros(1), "sq", step_size=2 / steps, max_iter=steps).x[-1, 0]

    exact = end(4000)
    assert abs(end(20) - exact) / abs(end(40) - exact) == pytest.approx(16, rel=0.2)


def test_flow_ends_at_rest_or_at_the_callback():
    flow = integrate_lion_ode(lambda x: x - 3.0, np.zeros(1), "sq", step_size=0.1, max_iter=10_000, tol=1e-9)
    assert flow.converged
    assert flow.n_iter < 10_000
    assert flow.x[-1, 0] == pytest.approx(1.5, abs=1e-8)
    assert len(flow.x) == len(flow.time) == flow.n_iter + 1
    stopped = integrate_lion_ode(lambda x: x, np.ones(2), "l1", callback=lambda progress: progress.n_iter == 3)
    assert stopped.n_iter == 3
    assert not stopped.converged


def test_divergence_is_reported():
    with pytest.raises(Diverged, match="integrate_lion_ode: diverged at iteration .*; use a smaller step_size"):
        integrate_lion_ode(lambda x: x, np.ones(1), "sq", weight_decay=100.0, step_size=1.0, scheme="euler")


def test_trees_none_gradients_and_dtypes():
    params = {"a": np.ones(2, np.float32), "b": [np.ones((2, 2)), np.ones(3)]}
    grads = {"a": np.ones(2, np.float32), "b": [np.ones((2, 2)), None]}
    for name in NAMES:
        after, state = run(LionK(learning_rate=0.1, kappa=name), params, [grads, grads])
        assert after["a"].dtype == state.momentum["a"].dtype == np.float32
        assert after["b"][1] is params["b"][1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_shape_are_kept_and_nothing_is_written_to(name, dtype):
    given_arrays = tuple(a.astype(dtype) for a in arrays(3, 2))
    for array in given_arrays:
        array.setflags(write=False)
    value, pullback = lion_kappa_update_vjp(*given_arrays, kappa=name)
    for entry in (*value, *pullback(value)):
        assert (entry.shape, entry.dtype) == ((3, 2), dtype)


def test_norms_survive_tiny_float32_numbers():
    z = np.array([3e-30, 4e-30], np.float32)
    np.testing.assert_allclose(make_kappa("l2").gradient(z), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_never_hidden(name):
    step = make_kappa(name).gradient(np.array([1.0, np.nan, -2.0]))
    assert np.isnan(step[1])
    if name not in ("l2", "group"):
        assert np.isfinite(step[[0, 2]]).all()


def test_own_functions_can_be_used():
    absolute = make_kappa("l1")
    own = dataclasses.replace(absolute, name="own", gradient=lambda z: np.tanh(z))
    assert isinstance(own, Kappa)
    x, _ = run(LionK(learning_rate=0.1, weight_decay=0.0, betas=(0.0, 0.0), kappa=own), np.zeros(1), [np.ones(1)])
    assert x == 0.1 * np.tanh(-1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LionK(learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: LionK(betas=(0.9, 1.0)), ValueError, r"betas: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: LionK(weight_decay=-1.0), ValueError, "weight_decay: expected a finite number >= 0, got -1.0"),
        (lambda: LionK(learning_rate=1.0, weight_decay=2.0), ValueError, r"learning_rate \* weight_decay: expected a number < 2 for explicit decay, got 2.0"),
        (lambda: LionK(decay="none"), ValueError, "decay: expected one of 'explicit', 'implicit', got 'none'"),
        (lambda: LionK(kappa="l3"), ValueError, "name: expected one of 'l1', 'l2', 'sq'"),
        (lambda: make_kappa("lp", power=1.0), ValueError, r"power: expected a number in \(1.0, inf\), got 1.0"),
        (lambda: make_kappa("huber", width=0.0), ValueError, "width: expected a finite number > 0, got 0.0"),
        (lambda: make_kappa("softl1", threshold=-1.0), ValueError, "threshold: expected a finite number >= 0"),
        (lambda: make_kappa("topk", k=0), ValueError, "k: expected an integer >= 1, got 0"),
        (lambda: make_kappa("topk", k=4).gradient(np.ones(3)), ValueError, "k: expected an integer >= 1 and <= 3, got 4"),
        (lambda: lion_kappa_update(np.ones(2), np.ones(3), np.ones(2)), ValueError, r"grad: expected shape \(2,\), got \(3,\)"),
        (lambda: lion_kappa_update(np.ones(2), np.ones(2), np.ones(2, "f4")), TypeError, "momentum: expected dtype float64 like param"),
        (lambda: lyapunov(np.ones(2), np.ones(3), 0.0, "sq"), ValueError, r"momentum: expected shape \(2,\), got \(3,\)"),
        (lambda: lyapunov(np.ones(2), np.ones(2), 0.0, "sq", weight_decay=0.0), ValueError, "weight_decay: expected a finite number > 0, got 0.0"),
        (lambda: lyapunov_rate(np.ones(2), np.ones(2), np.ones(2), "sq", lookahead=1.5), ValueError, r"lookahead: expected a number in \[0.0, 1.0\], got 1.5"),
        (lambda: integrate_lion_ode(lambda x: x[:1], np.ones(2), "sq"), ValueError, r"gradient: expected shape \(2,\), got \(1,\)"),
        (lambda: integrate_lion_ode(lambda x: x, np.ones(2), "sq", scheme="rk5"), ValueError, "scheme: expected one of 'rk4', 'euler', got 'rk5'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
