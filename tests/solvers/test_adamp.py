import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.solvers import (
    SGDP,
    AdamP,
    adamp_update,
    project_radial,
    project_radial_vjp,
    sgdp_update,
    which_view,
)

RNG = np.random.default_rng(12)


def orthogonal_rows(param, grad):
    """The gradient without its radial part in each row."""
    unit = param / np.linalg.norm(param, axis=1, keepdims=True)
    return grad - unit * (unit * grad).sum(axis=1, keepdims=True)


PARAM, UPDATE = RNG.standard_normal((2, 3, 5))
LAYER_GRAD = np.zeros((3, 5))
LAYER_GRAD[0], LAYER_GRAD[1] = PARAM[0], -PARAM[1] * (PARAM[0] @ PARAM[0]) / (PARAM[1] @ PARAM[1])

# The test for scale invariance is a switch: the cases hold delta so large, or the gradient so far from
# orthogonal, that no step of the differences crosses it.
GRADIENT_CASES = [
    GradientCase(project_radial_vjp, (PARAM, RNG.standard_normal((3, 5)), UPDATE), {"delta": 10.0}, name="channel"),
    GradientCase(
        project_radial_vjp, (PARAM, LAYER_GRAD, UPDATE), {"delta": 1.0, "eps": 0.5}, name="layer, large eps", step=1e-3
    ),
    GradientCase(project_radial_vjp, (PARAM, PARAM, UPDATE), name="none"),
    GradientCase(project_radial_vjp, (PARAM[0], PARAM[1], UPDATE[0]), {"delta": 10.0}, name="vector"),
    GradientCase(
        project_radial_vjp,
        (RNG.standard_normal((2, 3, 2, 2)), RNG.standard_normal((2, 3, 2, 2)), RNG.standard_normal((2, 3, 2, 2))),
        {"delta": 10.0, "weight_decay_ratio": 0.5},
        name="convolution",
    ),
]  # fmt: skip


def run(optimizer, params, gradients):
    state = optimizer.init(params)
    for grads in gradients:
        params, state = optimizer.step(params, grads, state)
    return params, state


def test_views():
    grad = orthogonal_rows(PARAM, UPDATE)
    assert which_view(PARAM, grad) == "channel"
    assert which_view(PARAM, LAYER_GRAD) == "layer"
    assert which_view(PARAM, PARAM) == "none"
    assert which_view(PARAM[0], grad[0]) == "none"
    assert which_view(np.zeros((0, 3)), np.zeros((0, 3))) == "none"


def test_one_channel_above_the_threshold_stops_all():
    grad = orthogonal_rows(PARAM, UPDATE)
    grad[2] = PARAM[2]
    assert which_view(PARAM, grad) == "none"


def test_threshold_is_strict_and_shrinks_with_the_root_of_the_size():
    param, grad = np.zeros((1, 4)), np.zeros((1, 4))
    param[0, 0], grad[0] = 1.0, [0.05, np.sqrt(1 - 0.05**2), 0, 0]
    # |cos| = 0.05 = delta / sqrt(4) at delta = 0.1
    assert which_view(param, grad, delta=0.1000001) == "channel"
    assert which_view(param, grad, delta=0.0999999) == "none"


@given(rows=st.integers(1, 4), columns=st.integers(1, 6), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
def test_projection_is_idempotent_linear_and_orthogonal_to_the_weight(rows, columns, seed, scale):
    param, grad, first, second = np.random.default_rng(seed).standard_normal((4, rows, columns))

    def project(update):
        return project_radial(param, grad, update, delta=1e6, eps=0.0)[0]

    np.testing.assert_allclose((project(first) * param).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(project(project(first)), project(first), atol=1e-13)
    np.testing.assert_allclose(
        project(scale * first + second), scale * project(first) + project(second), atol=1e-12 * scale + 1e-12
    )


@given(seed=st.integers(0, 99))
def test_projection_ignores_the_length_of_the_weight(seed):
    param, grad, update = np.random.default_rng(seed).standard_normal((3, 2, 5))
    first, second = (project_radial(s * param, grad, update, delta=10.0)[0] for s in (1.0, 1024.0))
    np.testing.assert_allclose(first, second, atol=1e-7)


def test_zero_weight_keeps_its_update_and_has_less_decay():
    update, ratio = project_radial(np.zeros((2, 3)), np.ones((2, 3)), np.full((2, 3), 7.0))
    assert (update == 7.0).all()
    assert ratio == 0.1
    assert project_radial(np.zeros((2, 3)), np.ones((2, 3)), np.ones((2, 3)), eps=0.0)[1] == 0.1


def test_zero_gradient_counts_as_orthogonal():
    assert which_view(PARAM, np.zeros((3, 5))) == "channel"


def test_nan_is_not_projected():
    grad = orthogonal_rows(PARAM, UPDATE)
    grad[0, 0] = np.nan
    assert which_view(PARAM, grad) == "none"
    params, _ = run(AdamP(), PARAM, [grad])
    assert np.isnan(params[0, 0])
    assert np.isnan(params).sum() == 1


@pytest.mark.parametrize("size", [1e-30, 1e18])
def test_float32_norms_neither_overflow_nor_vanish(size):
    param = (PARAM * size).astype(np.float32)
    grad = orthogonal_rows(PARAM, UPDATE).astype(np.float32)
    assert which_view(param, grad) == "channel"
    update, _ = project_radial(param, grad, UPDATE.astype(np.float32), eps=0.0)
    expected = project_radial(PARAM, orthogonal_rows(PARAM, UPDATE), UPDATE, eps=0.0)[0]
    np.testing.assert_allclose(update, expected, atol=1e-6)


def test_adamp_by_hand():
    start, grad = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]])
    optimizer = AdamP(learning_rate=0.1, weight_decay=0.5)
    np.testing.assert_allclose(run(optimizer, start, [grad])[0], [[3.0969999984, 3.8960000011]], rtol=1e-10)
    np.testing.assert_allclose(run(optimizer, start, [grad] * 2)[0], [[3.1915048253, 3.7890871228]], rtol=1e-10)


def test_sgdp_by_hand():
    start, grad = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]])
    optimizer = SGDP(learning_rate=0.1, momentum=0.9)
    np.testing.assert_allclose(run(optimizer, start, [grad])[0], [[3.08, 3.94]], rtol=1e-14)
    after, state = run(optimizer, start, [grad] * 2)
    np.testing.assert_allclose(after, [[3.229660136, 3.8230067973]], rtol=1e-10)
    np.testing.assert_allclose(state.buffer, 1.9 * grad, rtol=1e-14)


@given(seed=st.integers(0, 99), decay=st.sampled_from([0.0, 0.3]))
def test_without_momentum_the_buffer_may_be_projected_or_not(seed, decay):
    param, *gradients = np.random.default_rng(seed).standard_normal((4, 3, 4))
    optimizer = SGDP(0.1, weight_decay=decay, delta=1.0)
    other = dataclasses.replace(optimizer, project_buffer=True)
    np.testing.assert_array_equal(run(optimizer, param, gradients)[0], run(other, param, gradients)[0])


def test_projected_buffer_is_another_trajectory_with_momentum():
    param, *gradients = RNG.standard_normal((6, 3, 4))
    optimizer = SGDP(0.1, momentum=0.9, delta=10.0)
    other = dataclasses.replace(optimizer, project_buffer=True)
    first, state = run(optimizer, param, gradients)
    second, projected = run(other, param, gradients)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(state.buffer - projected.buffer).max() > 1e-3


def test_projected_steps_are_orthogonal_to_the_weight():
    param, grad = RNG.standard_normal((2, 4, 6))
    for optimizer in (
        AdamP(delta=10.0, eps=0.0),
        SGDP(0.1, momentum=0.9, delta=10.0, eps=0.0),
        SGDP(0.1, momentum=0.5, nesterov=True, delta=10.0, eps=0.0),
    ):
        state = optimizer.init(param)
        at = param
        for _ in range(4):
            after, state = optimizer.step(at, grad, state)
            np.testing.assert_allclose(((after - at) * at).sum(axis=1), 0, atol=1e-14)
            assert (np.linalg.norm(after, axis=1) > np.linalg.norm(at, axis=1)).all()
            at = after


def test_decay_is_reduced_where_the_update_is_projected():
    grad, free = np.zeros((1, 4)), AdamP(learning_rate=0.1, weight_decay=0.5, weight_decay_ratio=0.2)
    np.testing.assert_allclose(run(free, np.ones((1, 4)), [grad])[0], 1 - 0.1 * 0.5 * 0.2)
    np.testing.assert_allclose(run(free, np.ones(4), [grad[0]])[0], 1 - 0.1 * 0.5)
    heavy = SGDP(0.1, momentum=0.75, weight_decay=0.5, weight_decay_ratio=0.2)
    np.testing.assert_allclose(run(heavy, np.ones((1, 4)), [grad])[0], 1 - 0.1 * 0.5 * 0.2 / 0.25)


def test_adamp_without_projection_is_adam_with_decoupled_decay():
    param, *gradients = RNG.standard_normal((8, 3, 4))
    params, state = run(AdamP(learning_rate=0.01, weight_decay=0.1, delta=1e-30), param, gradients)
    p, m, v = param, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p * (1 - 0.01 * 0.1) - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(params, p, rtol=1e-12)
    assert state.step == len(gradients)


@pytest.mark.parametrize("optimizer", [AdamP(weight_decay=0.1), SGDP(0.1, momentum=0.9, weight_decay=0.1)])
@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (2, 0), (3, 4), (2, 3, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_dtype_and_arguments_are_kept(optimizer, shape, dtype):
    param = np.asarray(RNG.standard_normal(shape), dtype)
    grad = np.asarray(RNG.standard_normal(shape), dtype)
    for array in (param, grad):
        array.setflags(write=False)
    params, state = run(optimizer, [param], [[grad], [grad]])
    arrays = [params[0]]
    arrays += [state.buffer[0]] if isinstance(optimizer, SGDP) else [state.first_moment[0], state.second_moment[0]]
    for array in arrays:
        assert (array.shape, array.dtype) == (shape, dtype)


def test_update_of_one_array_is_the_step_of_the_optimizer():
    param, grad, first = RNG.standard_normal((3, 2, 3))
    second = RNG.random((2, 3))
    optimizer = AdamP(0.01, (0.8, 0.9), 1e-4, 0.3, 0.7, 0.2, True)
    state = dataclasses.replace(optimizer.init(param), step=6, first_moment=first, second_moment=second)
    after, moved = optimizer.step(param, grad, state)
    expected = adamp_update(
        param, grad, first, second, step=7, learning_rate=0.01, beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.3,
        delta=0.7, weight_decay_ratio=0.2, nesterov=True,
    )  # fmt: skip
    for ours, theirs in zip((after, moved.first_moment, moved.second_moment), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (AdamP, {"learning_rate": -1.0}, "learning_rate: expected a finite number >= 0, got -1.0"),
        (AdamP, {"betas": (0.9, 1.0)}, r"betas: expected a number in \[0.0, 1.0\), got 1.0"),
        (AdamP, {"eps": -1e-8}, "eps: expected a finite number >= 0"),
        (AdamP, {"delta": 0.0}, "delta: expected a finite number > 0, got 0.0"),
        (AdamP, {"weight_decay": np.nan}, "weight_decay: expected a finite number >= 0, got nan"),
        (SGDP, {"learning_rate": np.inf}, "learning_rate: expected a finite number >= 0, got inf"),
        (SGDP, {"learning_rate": 1.0, "momentum": -0.1}, "momentum: expected a finite number >= 0"),
        (SGDP, {"learning_rate": 1.0, "dampening": np.nan}, "dampening: expected a finite number, got nan"),
        (
            SGDP,
            {"learning_rate": 1.0, "momentum": 1.0, "weight_decay": 0.1},
            "momentum: expected a number below 1 where there is weight decay, got 1.0",
        ),
    ],
)
def test_bad_hyper_parameters_are_named(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**options)


def test_momentum_of_one_is_allowed_without_decay():
    assert run(SGDP(0.1, momentum=1.0), np.zeros(1), [np.ones(1)] * 3)[0] == pytest.approx(-0.6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: project_radial(PARAM, PARAM[:2], PARAM), ValueError, r"grad: expected shape \(3, 5\), got \(2, 5\)"),
        (lambda: project_radial(PARAM, PARAM, PARAM[:2]), ValueError, r"update: expected shape \(3, 5\), got"),
        (lambda: which_view(PARAM, PARAM.astype("f4")), TypeError, "grad: expected dtype float64 like param"),
        (lambda: which_view(PARAM, PARAM, delta=-1.0), ValueError, "delta: expected a finite number > 0, got -1.0"),
        (lambda: adamp_update(*[PARAM] * 4, step=0), ValueError, "step: expected an integer >= 1, got 0"),
        (lambda: adamp_update(*[PARAM] * 3, PARAM[:1], step=1), ValueError, "second_moment: expected shape"),
        (lambda: sgdp_update(PARAM, PARAM, PARAM[:1], learning_rate=0.1), ValueError, "buffer: expected shape"),
        (lambda: AdamP().step({"w": PARAM}, {"w": PARAM[:1]}, AdamP().init({"w": PARAM})), ValueError, "grads.w: expected shape"),
        (lambda: SGDP(0.1).step([PARAM], [PARAM], SGDP(0.1).init([PARAM[:1]])), ValueError, "state.buffer.0: expected shape"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
