import dataclasses

import numpy as np
import pytest
from discovery import TESTS, load
from hypothesis import given, settings
from hypothesis import strategies as st

from refnorm.poincare import RiemannianAdam, RiemannianSGD, conformal_factor, dist, dist_sq_vjp, mobius_add

ball = load(TESTS / "poincare" / "test_ball.py")
points = ball.points
RNG = np.random.default_rng(9)
OPTIMIZERS = (
    RiemannianSGD(learning_rate=0.1),
    RiemannianSGD(learning_rate=0.1, momentum=0.9),
    RiemannianSGD(learning_rate=0.1, momentum=0.9, nesterov=True, dampening=0.5),
    RiemannianAdam(learning_rate=0.1),
    RiemannianAdam(learning_rate=0.1, amsgrad=True),
)


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        params, state = optimizer.step(params, gradient, state)
    return params, state


def to_target(optimizer, start, target, curvature, steps):
    """Minimize half the squared distance to a target."""
    params, state = start, optimizer.init(start)
    for _ in range(steps):
        _, pullback = dist_sq_vjp(params, target, curvature)
        params, state = optimizer.step(params, pullback(np.full(len(params), 0.5))[0], state)
    return params


@given(curvature=st.sampled_from([1.0, 0.1, 5.0]), n=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_step_of_gradient_descent_follows_the_geodesic_to_the_target(curvature, n, seed):
    rng = np.random.default_rng(seed)
    start, target = points(rng, (3, n), curvature), points(rng, (3, n), curvature)
    whole = to_target(RiemannianSGD(learning_rate=1.0, curvature=curvature), start, target, curvature, 1)
    np.testing.assert_allclose(whole, target, rtol=0, atol=1e-12 / np.sqrt(curvature))
    part = to_target(RiemannianSGD(learning_rate=0.25, curvature=curvature), start, target, curvature, 1)
    np.testing.assert_allclose(dist(part, target, curvature), 0.75 * dist(start, target, curvature), rtol=1e-10)


@settings(max_examples=20)
@given(curvature=st.sampled_from([1.0, 0.1, 5.0]), seed=st.integers(0, 99))
def test_steps_move_with_isometries(curvature, seed):
    # A function moved by an isometry has its steps moved: no direction and no place is special.
    rng = np.random.default_rng(seed)
    start, target = points(rng, (2, 3), curvature), points(rng, (2, 3), curvature)
    shift, turn = points(rng, (3,), curvature, high=0.6), np.linalg.qr(rng.standard_normal((3, 3)))[0]

    def moved(x):
        return mobius_add(np.tile(shift, (len(x), 1)), x @ turn, curvature)

    for optimizer in OPTIMIZERS:
        local = dataclasses.replace(optimizer, curvature=curvature)
        there = to_target(local, moved(start), moved(target), curvature, 4)
        np.testing.assert_allclose(there, moved(to_target(local, start, target, curvature, 4)), atol=1e-8 / curvature)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_reach_the_minimum(optimizer):
    start, target = points(RNG, (4, 3), 1.0), points(RNG, (4, 3), 1.0)
    final = to_target(dataclasses.replace(optimizer, learning_rate=0.05), start, target, 1.0, 400)
    assert dist(final, target, 1.0).max() < 2e-2


@given(size=st.sampled_from([1e-30, 1e-3, 1.0, 1e12]), radius=st.sampled_from([0.0, 0.5, 0.999, 1 - 1e-9]))
def test_a_first_step_of_adam_is_as_long_as_the_learning_rate(size, radius):
    start = np.array([[radius, 0.0], [0.0, -radius]])
    optimizer = RiemannianAdam(learning_rate=0.01, eps=1e-300)
    params, _ = run(optimizer, start, [size * np.array([[1.0, -2.0], [3.0, 1.0]])])
    if radius < 1 - 1e-5:
        np.testing.assert_allclose(dist(params, start, 1.0), 0.01, rtol=1e-6)
    assert np.isfinite(params).all()


def test_momentum_is_carried_along_the_geodesic():
    # Without gradients the point coasts on one geodesic, each step as long as 0.9 of the one before.
    optimizer = RiemannianSGD(learning_rate=0.1, momentum=0.9)
    params, state = np.array([0.3, -0.4]), optimizer.init(np.zeros(2))
    track = [params]
    for number in range(6):
        params, state = optimizer.step(params, np.array([4.0, 5.0]) if number == 0 else np.zeros(2), state)
        track.append(params)
    steps = dist(np.array(track[:-1]), np.array(track[1:]), 1.0)
    np.testing.assert_allclose(steps[1:], 0.9 * steps[:-1], rtol=1e-10)
    np.testing.assert_allclose(dist(track[0], track[-1], 1.0), steps.sum(), rtol=1e-12)
    length = conformal_factor(params, 1.0) * np.linalg.norm(state.momentum)
    np.testing.assert_allclose(0.1 * length, steps[-1], rtol=1e-10)


def test_adam_has_one_step_size_a_point():
    _, state = run(RiemannianAdam(), points(RNG, (3, 4), 1.0), [RNG.standard_normal((3, 4))])
    assert (state.square == state.square[:, :1]).all()
    assert (state.largest_square == 0).all()
    _, state = run(RiemannianAdam(amsgrad=True), points(RNG, (3, 4), 1.0), [np.ones((3, 4)), np.zeros((3, 4))])
    assert (state.largest_square > state.square).all()
    assert state.n_steps == 2


def test_points_never_leave_the_ball():
    start, gradients = points(RNG, (5, 2), 1.0), list(10 * RNG.standard_normal((50, 5, 2)))
    for optimizer in OPTIMIZERS:
        params, _ = run(dataclasses.replace(optimizer, learning_rate=3.0), start, gradients)
        assert (np.linalg.norm(params, axis=-1) <= 1 - 0.99e-5).all()


def test_parameters_of_several_geometries_are_moved_each_in_its_own():
    params = {"points": points(RNG, (3, 2), 0.5), "rest": [RNG.standard_normal((2, 2)), np.array(1.5)]}
    grads = {"points": RNG.standard_normal((3, 2)), "rest": [RNG.standard_normal((2, 2)), np.array(-2.0)]}
    for optimizer in OPTIMIZERS:
        mixed = dataclasses.replace(optimizer, curvature={"points": 0.5, "rest": [None, None]})
        together, _ = run(mixed, params, [grads, grads])
        alone = [
            run(dataclasses.replace(optimizer, curvature=c), p, [g, g])[0]
            for c, p, g in ((0.5, params["points"], grads["points"]), (None, params["rest"], grads["rest"]))
        ]
        np.testing.assert_array_equal(together["points"], alone[0])
        np.testing.assert_array_equal(together["rest"][0], alone[1][0])
        assert together["rest"][1] == alone[1][1]


def test_parameters_without_gradient_stay_and_keep_their_state():
    params = [points(RNG, (2, 2), 1.0), points(RNG, (2, 2), 2.0), None]
    optimizer = RiemannianSGD(momentum=0.9, curvature=[1.0, 2.0, None])
    after, state = run(optimizer, params, [[None, np.ones((2, 2)), None]])
    assert after[0] is params[0]
    assert after[2] is None
    assert (state.momentum[0] == 0).all()
    expected, _ = run(RiemannianSGD(momentum=0.9, curvature=2.0), params[1], [np.ones((2, 2))])
    np.testing.assert_array_equal(after[1], expected)


def test_small_curvature_is_a_quarter_of_a_euclidean_step():
    start, grad = RNG.standard_normal((2, 3)), RNG.standard_normal((2, 3))
    curved, _ = run(RiemannianSGD(learning_rate=0.4, curvature=1e-12), start, [grad])
    np.testing.assert_allclose(curved, start - 0.1 * grad, rtol=1e-10)


def test_euclidean_optimizers_are_the_usual_ones():
    start, grad = RNG.standard_normal(5), RNG.standard_normal(5)
    plain, _ = run(RiemannianSGD(learning_rate=0.1, weight_decay=0.5, curvature=None), start, [grad])
    np.testing.assert_array_equal(plain, start - 0.1 * (grad + 0.5 * start))
    adam, _ = run(RiemannianAdam(learning_rate=0.1, eps=1e-300, curvature=None), start, [grad])
    np.testing.assert_allclose(adam, start - 0.1 * np.sign(grad), rtol=1e-12)


def test_hyper_parameters_that_are_left_out():
    sgd = RiemannianSGD(
        learning_rate=1e-2, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, curvature=1.0
    )
    assert RiemannianSGD() == sgd
    adam = RiemannianAdam(
        learning_rate=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, curvature=1.0
    )
    assert RiemannianAdam() == adam


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("curvature", [1.0, None])
def test_dtype_and_shape_are_kept_and_nothing_is_written_to(dtype, curvature):
    start, grad = points(RNG, (3, 2), 1.0).astype(dtype), RNG.standard_normal((3, 2)).astype(dtype)
    for optimizer in OPTIMIZERS:
        local = dataclasses.replace(optimizer, curvature=curvature)
        state = local.init(start)
        for array in (start, grad, state.momentum):
            array.setflags(write=False)
        params, state = local.step(start, grad, state)
        trees = [params, *(value for value in vars(state).values() if isinstance(value, np.ndarray))]
        assert {(array.dtype, array.shape) for array in trees} == {(np.dtype(dtype), (3, 2))}


def test_nan_gradient_stays_in_its_point():
    start, grad = points(RNG, (3, 2), 1.0), np.ones((3, 2))
    grad[1, 0] = np.nan
    for optimizer in OPTIMIZERS:
        params, _ = run(optimizer, start, [grad])
        assert np.isnan(params[1]).all()
        assert np.isfinite(params[[0, 2]]).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RiemannianSGD(learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: RiemannianSGD(momentum=1.0), ValueError, r"momentum: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: RiemannianSGD(dampening=-0.1), ValueError, r"dampening: expected a number in \[0.0, 1.0\), got -0.1"),
        (lambda: RiemannianSGD(weight_decay=-1.0), ValueError, "weight_decay: expected a finite number >= 0, got -1.0"),
        (lambda: RiemannianSGD(curvature=-1.0), ValueError, "curvature: expected a finite number > 0, got -1.0"),
        (
            lambda: RiemannianAdam(curvature=[1.0, "a"]),
            TypeError,
            r"curvature\.1: expected a number or a 0-d float array",
        ),
        (
            lambda: RiemannianSGD(curvature={"a": [1.0, -1.0]}),
            ValueError,
            r"curvature\.a\.1: expected a finite number > 0, got -1.0",
        ),
        (lambda: RiemannianAdam(learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (
            lambda: RiemannianAdam(weight_decay=-1.0),
            ValueError,
            "weight_decay: expected a finite number >= 0, got -1.0",
        ),
        (lambda: RiemannianAdam(betas=(0.9, 1.0)), ValueError, r"betas: expected a number in \[0.0, 1.0\), got 1.0"),
        (lambda: RiemannianAdam(eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
    ],
)
def test_bad_hyper_parameters_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


P = np.full((2, 2), 0.1)


@pytest.mark.parametrize(
    ("optimizer", "params", "grads", "error", "message"),
    [
        (RiemannianSGD(), 10 * P, P, ValueError, r"params: expected points with curvature \* \|x\|\^2 < 1, got a largest value of 2"),
        (RiemannianSGD(), P, P[:1], ValueError, r"grads: expected shape \(2, 2\), got \(1, 2\)"),
        (RiemannianSGD(), [P, P], [P], ValueError, "grads: expected"),
        (RiemannianAdam(), {"a": P}, {"b": P}, ValueError, r"grads: expected the same structure dict\['a'\]"),
        (RiemannianAdam(curvature={"b": 1.0}), {"a": P}, {"a": P}, ValueError, r"curvature: expected the same structure dict\['a'\]"),
        (RiemannianAdam(), [P], [P.astype("f4")], TypeError, "grads.0: expected dtype float64 like params.0, got float32"),
        (RiemannianSGD(), np.array(0.1), np.array(0.1), ValueError, "params: expected at least 1 dimension"),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(optimizer, params, grads, error, message):
    with pytest.raises(error, match=message):
        optimizer.step(params, grads, optimizer.init(params))
