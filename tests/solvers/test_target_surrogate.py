import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import cross_entropy_vjp
from refnorm.solvers import (
    Diverged,
    linear_model,
    logistic_target_loss,
    logistic_target_loss_vjp,
    minimize_target_surrogate,
    random_batches,
    squared_target_loss,
    squared_target_loss_vjp,
    target_loss,
    target_smoothness,
    target_step_size,
    target_surrogate,
    target_surrogate_value_grad,
    target_surrogate_vjp,
)

RNG = np.random.default_rng(3)


def value_and_grad_as_vjp(theta):
    x, anchor, gradient = (np.random.default_rng(5).standard_normal(s) for s in ((4, 3), 4, 4))
    value, grad = target_surrogate_value_grad(theta, x, anchor, gradient, step_size=0.3, loss=1.5)
    return value, lambda dq: (dq * grad,)


GRADIENT_CASES = [
    *(
        GradientCase(
            target_surrogate_vjp,
            tuple(RNG.standard_normal((3, *shape))),
            {"step_size": step_size, "loss": 2.0},
            method="complex",
            name=f"shape {shape}, step {step_size}",
        )
        for shape, step_size in (((), 1.0), ((5,), 0.25), ((2, 3), 400.0))
    ),
    GradientCase(squared_target_loss_vjp, tuple(RNG.standard_normal((2, 4, 2))), method="complex"),
    GradientCase(squared_target_loss_vjp, (np.ones(3), np.ones(3)), method="complex", name="on target"),
    GradientCase(logistic_target_loss_vjp, (RNG.standard_normal(5), np.array([1, -1, 1, 1, -1]))),
    GradientCase(
        logistic_target_loss_vjp, (np.array([-40.0, 40.0, 0.0]), np.array([1, -1, 1])), name="far on the wrong side"
    ),
    GradientCase(value_and_grad_as_vjp, (RNG.standard_normal(3),), name="through the model"),
]


def logistic_problem_for(seed, n=12, d=3):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), np.where(rng.random(n) < 0.5, 1, -1)


def half_square(prediction, rows):
    return 0.5 * float(((prediction - 3) ** 2).sum()), prediction - 3


def test_solved_in_one_outer_step_by_hand():
    # loss (z - 3)^2 / 2, z = 2 theta: minimise -6 theta + 2 theta^2.
    x = np.array([[2.0]])
    result = minimize_target_surrogate(half_square, x, np.zeros(1), step_size=1.0, inner_steps=1, inner_rate=0.25)
    assert (result.x == 1.5).all()
    assert result.converged
    assert (result.n_iter, result.n_loss_grads, result.n_model_calls) == (1, 2, 2)
    short = minimize_target_surrogate(
        half_square, x, np.zeros(1), step_size=1.0, inner_steps=1, inner_rate=0.125, n_iter=1
    )
    assert (short.x == 0.75).all()
    assert not short.converged


@given(seed=st.integers(0, 999), rate=st.floats(0.01, 0.3))
def test_one_inner_step_is_gradient_descent_to_the_last_bit(seed, rate):
    x, target = logistic_problem_for(seed)
    loss = target_loss("logistic", target)
    theta = np.zeros(3)
    for _ in range(5):
        _, gradient = loss(x @ theta, slice(None))
        theta = theta - rate * 48.0 * (x.T @ gradient)
    result = minimize_target_surrogate(
        loss, x, np.zeros(3), step_size=48.0, inner_steps=1, inner_rate=rate, n_iter=5, tol=0
    )
    np.testing.assert_array_equal(result.x, theta)


@given(seed=st.integers(0, 999), inner=st.integers(1, 30), kind=st.sampled_from(["squared", "logistic", "softmax"]))
def test_loss_never_grows_below_one_over_the_smoothness(seed, inner, kind):
    rng = np.random.default_rng(seed)
    x, target = logistic_problem_for(seed)
    start = rng.standard_normal(3)
    if kind == "squared":
        target = rng.standard_normal(12)
    if kind == "softmax":
        target, start = rng.integers(4, size=12), rng.standard_normal((3, 4))
    for rate in (None, 1 / np.linalg.norm(x, 2) ** 2):
        result = minimize_target_surrogate(
            target_loss(kind, target),
            x,
            start,
            step_size=1 / target_smoothness(kind, 12),
            inner_steps=inner,
            inner_rate=rate,
            n_iter=8,
            tol=0,
        )
        assert (np.diff(result.history["loss"]) <= 1e-14).all()
        assert result.history["bound_holds"].all()
        assert (result.history["surrogate"] >= result.history["loss"] - 1e-14).all()


@given(seed=st.integers(0, 999))
def test_exact_inner_minimum_is_the_projected_target_step(seed):
    rng = np.random.default_rng(seed)
    x, target = rng.standard_normal((9, 3)), rng.standard_normal(9)
    theta, loss = rng.standard_normal(3), target_loss("squared", target)
    _, gradient = loss(x @ theta, slice(None))
    result = minimize_target_surrogate(
        loss, x, theta, step_size=2.5, inner_steps=2000, inner_tol=1e-13, n_iter=1, tol=0
    )
    np.testing.assert_allclose(result.x, theta - 2.5 * np.linalg.pinv(x) @ gradient, rtol=1e-7, atol=1e-8)


@given(seed=st.integers(0, 999))
def test_gradient_at_the_anchor_is_that_of_the_loss(seed):
    x, target = logistic_problem_for(seed)
    theta = np.random.default_rng(seed).standard_normal(3)
    value, gradient = target_loss("logistic", target)(x @ theta, slice(None))
    surrogate, grad = target_surrogate_value_grad(theta, x, x @ theta, gradient, step_size=7.0, loss=float(value))
    np.testing.assert_array_equal(grad, x.T @ gradient)
    assert surrogate == value


def test_step_beyond_the_bound_is_allowed_and_noted():
    x = np.eye(3)
    loss = target_loss("squared", np.array([1.0, 2.0, 3.0]))
    result = minimize_target_surrogate(
        loss,
        x,
        np.zeros(3),
        step_size=2 / target_smoothness("squared", 3) * 0.9,
        inner_steps=1,
        inner_rate=1.0,
        n_iter=3,
    )
    assert not result.history["bound_holds"].any()


def test_divergence_is_named_with_a_way_out():
    loss = target_loss("squared", np.ones(3))
    with pytest.raises(Diverged, match="use a smaller step_size") as caught:
        minimize_target_surrogate(
            loss, np.eye(3), np.zeros(3), step_size=30.0, inner_steps=1, inner_rate=1.0, n_iter=99
        )
    assert len(caught.value.history["loss"]) > 1


def test_nonlinear_model_with_a_tree_of_parameters_and_line_search():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 2))
    target = np.tanh(x[:, 0]) - np.tanh(2 * x[:, 1])

    def model(theta, rows):
        hidden = np.tanh(x[rows] @ theta["inner"])

        def pullback(dz):
            slope = np.outer(dz, theta["outer"]) * (1 - hidden**2)
            return ({"inner": x[rows].T @ slope, "outer": hidden.T @ dz},)

        return hidden @ theta["outer"], pullback

    start = {"inner": rng.standard_normal((2, 5)), "outer": rng.standard_normal(5)}
    result = minimize_target_surrogate(
        target_loss("squared", target), model, start, step_size=20.0, inner_steps=20, n_iter=50, tol=0
    )
    losses = result.history["loss"]
    assert (np.diff(losses) <= 1e-14).all()
    assert losses[-1] < 0.05 * losses[0]
    assert set(result.x) == {"inner", "outer"}
    assert result.n_loss_grads == 51


def test_line_search_ends_where_decrease_is_below_rounding():
    result = minimize_target_surrogate(
        half_square, np.array([[2.0]]), np.array([1.5]), step_size=1.0, inner_steps=5, n_iter=3, tol=0, inner_tol=0
    )
    assert (result.x == 1.5).all()


@pytest.mark.parametrize("schedule", ["constant", "stochastic", "exponential"])
def test_batches_approach_the_optimum(schedule):
    x, target = logistic_problem_for(4, n=40)
    loss = target_loss("logistic", target)
    best = minimize_target_surrogate(loss, x, np.zeros(3), step_size=160.0, inner_steps=50, n_iter=300)
    assert best.converged
    result = minimize_target_surrogate(
        loss,
        x,
        np.zeros(3),
        step_size=10.0,
        inner_steps=5,
        inner_rate=0.02,
        schedule=schedule,
        n_iter=400,
        batches=random_batches(np.random.default_rng(0), 40, 10),
    )
    assert not result.converged
    assert "bound_holds" not in result.history
    assert result.n_loss_grads == 400
    full = [float(loss(x @ theta, slice(None))[0]) for theta in (np.zeros(3), best.x, result.x)]
    assert full[2] - full[1] < 0.1 * (full[0] - full[1])


def test_run_ends_with_the_batches():
    x, target = logistic_problem_for(0)
    batches = itertools.islice(random_batches(np.random.default_rng(0), 12, 4), 3)
    result = minimize_target_surrogate(
        target_loss("logistic", target), x, np.zeros(3), step_size=4.0, inner_steps=2, inner_rate=0.05, batches=batches
    )
    assert result.n_iter == 3


def test_callback_ends_the_run():
    x, target = logistic_problem_for(0)
    seen = []
    result = minimize_target_surrogate(
        target_loss("logistic", target),
        x,
        np.zeros(3),
        step_size=4.0,
        inner_steps=2,
        callback=lambda progress: seen.append(progress) or progress.n_iter == 2,
    )
    assert result.n_iter == len(seen) == 2


def test_schedules():
    steps = [[target_step_size(t, 6.0, schedule=s, n_iter=9) for t in (1, 4, 9)] for s in ("constant", "stochastic", "exponential")]  # fmt: skip
    np.testing.assert_allclose(steps, [[6, 6, 6], [6, 3, 2], [6 * 9 ** (-1 / 9), 6 * 9 ** (-4 / 9), 6 / 9]], rtol=1e-14)


@given(n=st.integers(1, 30), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_pass_of_batches_shows_no_example_twice(n, size, seed):
    size = min(n, size)
    batches = random_batches(np.random.default_rng(seed), n, size)
    shown = np.concatenate([next(batches) for _ in range(n // size)])
    assert len(set(shown.tolist())) == len(shown) == n // size * size


def test_curvature_of_a_softmax_never_exceeds_its_smoothness():
    # diag(p) - p p^T is largest, 1/2, at two classes of equal probability.
    logits = np.array([[0.0, 0.0, -800.0]])
    hessian = np.stack([(cross_entropy_vjp(logits + 1e-6 * e, np.array([0]))[1](np.array(1.0))[0] - cross_entropy_vjp(logits - 1e-6 * e, np.array([0]))[1](np.array(1.0))[0])[0] / 2e-6 for e in np.eye(3)])  # fmt: skip
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian).max(), target_smoothness("softmax", 1), rtol=1e-8)


def test_logistic_loss_is_finite_far_out():
    value, pullback = logistic_target_loss_vjp(np.array([1e4, -1e4]), np.array([-1, -1]))
    assert value == 5e3
    np.testing.assert_array_equal(pullback(np.array(1.0))[0], [0.5, 0.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    z, g = RNG.standard_normal((2, 4)).astype(dtype)
    value, pullback = target_surrogate_vjp(z, g, g, step_size=0.1)
    assert [value.dtype, *(entry.dtype for entry in pullback(value))] == [dtype] * 4
    assert squared_target_loss_vjp(z, g)[1](value)[0].dtype == dtype
    assert logistic_target_loss_vjp(z, np.ones(4, int))[1](value)[0].dtype == dtype
    x = RNG.standard_normal((4, 2)).astype(dtype)
    result = minimize_target_surrogate(
        target_loss("squared", g), x, np.zeros(2, dtype), step_size=4.0, inner_steps=3, n_iter=3
    )
    assert result.x.dtype == dtype


def test_arguments_are_not_written_to():
    x, target = logistic_problem_for(0)
    theta = np.zeros(3)
    for array in (x, target, theta):
        array.setflags(write=False)
    minimize_target_surrogate(target_loss("logistic", target), x, theta, step_size=4.0, inner_steps=2, n_iter=2)


def run(**changes):
    x, target = logistic_problem_for(0)
    arguments = {"loss_grad": target_loss("logistic", target), "model_vjp": x, "theta0": np.zeros(3)}
    options = {"step_size": 1.0, "inner_steps": 2}
    return minimize_target_surrogate(**(arguments | options | changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(step_size=0.0), ValueError, "step_size: expected a finite number > 0, got 0.0"),
        (lambda: run(inner_steps=0), ValueError, "inner_steps: expected an integer >= 1, got 0"),
        (lambda: run(inner_rate=-1.0), ValueError, "inner_rate: expected a finite number > 0, got -1.0"),
        (lambda: run(schedule="cosine"), ValueError, "schedule: expected one of 'constant', 'stochastic', 'exponential', got 'cosine'"),
        (lambda: run(n_iter=0), ValueError, "n_iter: expected an integer >= 1, got 0"),
        (lambda: run(tol=-1.0), ValueError, "tol: expected a finite number >= 0, got -1.0"),
        (lambda: run(theta0=np.zeros(3, int)), TypeError, "theta0: expected a float32 or float64 array, got dtype int64"),
        (lambda: run(model_vjp=np.zeros(3)), ValueError, r"model_vjp: expected 2 dimensions, got shape \(3,\)"),
        (lambda: run(loss_grad=lambda z, rows: (0.0, np.zeros(5))), ValueError, r"gradient of the loss: expected shape \(12,\), got \(5,\)"),
        (lambda: run(batches=[np.array([0.5])]), TypeError, "batches: expected an integer array, got dtype float64"),
        (lambda: target_surrogate(np.zeros(2), np.zeros(3), np.zeros(2), step_size=1.0), ValueError, r"anchor: expected shape \(2,\), got \(3,\)"),
        (lambda: target_surrogate(np.zeros(2), np.zeros(2), np.zeros(2, "f4"), step_size=1.0), TypeError, "gradient: expected dtype float64 like prediction, got float32"),
        (lambda: target_smoothness("hinge", 3), ValueError, "loss: expected one of 'squared', 'logistic', 'softmax', got 'hinge'"),
        (lambda: target_smoothness("squared", 0), ValueError, "n: expected an integer >= 1, got 0"),
        (lambda: target_loss("hinge", np.zeros(2)), ValueError, "loss: expected one of"),
        (lambda: target_step_size(0, 1.0), ValueError, "t: expected an integer >= 1, got 0"),
        (lambda: squared_target_loss(np.zeros(0), np.zeros(0)), ValueError, "prediction: expected at least one entry"),
        (lambda: logistic_target_loss(np.zeros(2), np.array([0, 1])), ValueError, "target: expected labels -1 and 1, got 0"),
        (lambda: linear_model(np.zeros((2, 2), int)), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: random_batches(0, 3, 1), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: random_batches(np.random.default_rng(0), 3, 4), ValueError, "size: expected an integer >= 1 and <= 3, got 4"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
