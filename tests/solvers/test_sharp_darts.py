import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.softmax import softmax
from refnorm.solvers import (
    cosine_power_annealing,
    darts_architecture_gradient,
    discretize,
    hypercuboid_options,
    mixed_op,
    mixed_op_vjp,
    strongest_edges,
)

RNG = np.random.default_rng(3)
OUTPUTS, LOGITS = RNG.standard_normal((4, 2, 3)), RNG.standard_normal(4)
GRID_OUTPUTS, GRID_LOGITS = RNG.standard_normal((2, 3, 5)), RNG.standard_normal((2, 3))
LARGEST = float(softmax(LOGITS).max())


def with_constant_maximum(outputs, logits, **_):
    return np.tensordot(1 - LARGEST + softmax(logits), outputs, 1)


GRADIENT_CASES = [
    GradientCase(mixed_op_vjp, (OUTPUTS, LOGITS), method="complex", name="scalar"),
    GradientCase(mixed_op_vjp, (OUTPUTS, LOGITS), {"weighting": "max_w"}, method="complex", name="max-W"),
    GradientCase(mixed_op_vjp, (GRID_OUTPUTS, GRID_LOGITS), {"weighting": "max_w"}, method="complex", name="grid"),
    GradientCase(mixed_op_vjp, (RNG.standard_normal((3,)), LOGITS[:3]), {"weighting": "max_w"}, name="numbers"),
    GradientCase(mixed_op_vjp, (OUTPUTS[:1], LOGITS[:1]), {"weighting": "max_w"}, name="one operation"),
    GradientCase(
        mixed_op_vjp,
        (OUTPUTS, 12 * LOGITS),
        {"weighting": "max_w"},
        method="complex",
        name="almost decided",
    ),
    GradientCase(
        mixed_op_vjp,
        (OUTPUTS, LOGITS),
        {"weighting": "max_w", "stop_gradient_max": True},
        surrogate=with_constant_maximum,
        name="constant maximum",
    ),
]


def test_schedule_by_hand():
    rates = cosine_power_annealing(4, max_learning_rate=1.0, min_learning_rate=0.0)
    np.testing.assert_allclose(rates, np.array([6.137619, 2.162278, 0.401027, 0]) / 6.137619, atol=1e-6)


@given(
    epochs=st.integers(2, 200),
    order=st.floats(1, 1e300),
    low=st.floats(0, 0.01),
    high=st.floats(0.011, 1),
    warmup=st.integers(0, 50),
)
def test_schedule_falls_from_the_largest_to_the_smallest_rate(epochs, order, low, high, warmup):
    warmup = min(warmup, epochs - 2)
    rates = cosine_power_annealing(
        epochs,
        max_learning_rate=high,
        min_learning_rate=low,
        exponent_order=order,
        warmup_epochs=warmup,
    )
    assert rates[warmup] == high
    assert rates[-1] == low
    assert (np.diff(rates[warmup:]) <= 0).all()
    np.testing.assert_allclose(np.diff(rates[: warmup + 1]), (high - low) / (warmup + 1), rtol=1e-9, atol=1e-15)


@given(epochs=st.integers(3, 60), low=st.floats(1, 50), factor=st.floats(1.1, 50))
def test_higher_order_falls_earlier(epochs, low, factor):
    gentle, steep = (cosine_power_annealing(epochs, exponent_order=p) for p in (low, low * factor))
    assert (steep[1:-1] < gentle[1:-1]).all()


def test_order_near_one_meets_the_cosine():
    cosine = cosine_power_annealing(50, exponent_order=1.0)
    np.testing.assert_allclose(cosine_power_annealing(50, exponent_order=1 + 1e-12), cosine, rtol=1e-11)


@pytest.mark.parametrize(("epochs", "warmup", "rates"), [(1, 0, [0.1]), (3, 2, [0.1 / 3, 0.2 / 3, 0.1])])
def test_schedule_without_room_to_fall(epochs, warmup, rates):
    found = cosine_power_annealing(epochs, warmup_epochs=warmup, min_learning_rate=0.0)
    np.testing.assert_allclose(found, rates, rtol=1e-14)


def test_equal_rates_are_constant():
    assert (cosine_power_annealing(5, max_learning_rate=0.3, min_learning_rate=0.3).round(15) == 0.3).all()


@given(k=st.integers(1, 6), seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_mixture_ignores_a_common_shift_of_the_logits(k, seed, shift):
    rng = np.random.default_rng(seed)
    outputs, logits = rng.standard_normal((k, 3)), rng.standard_normal(k)
    for weighting in ("scalar", "max_w"):
        y, pullback = mixed_op_vjp(outputs, logits, weighting=weighting)
        np.testing.assert_allclose(mixed_op(outputs, logits + shift, weighting=weighting), y, atol=1e-12)
        np.testing.assert_allclose(pullback(np.ones(3))[1].sum(), 0, atol=1e-12)


@given(k=st.integers(2, 6), seed=st.integers(0, 99), winner=st.integers(0, 5))
def test_both_mixtures_agree_once_one_operation_has_all_the_weight(k, seed, winner):
    outputs = np.random.default_rng(seed).standard_normal((k, 4))
    logits = np.full(k, -np.inf)
    logits[winner % k] = 0
    for weighting in ("scalar", "max_w"):
        np.testing.assert_array_equal(mixed_op(outputs, logits, weighting=weighting), outputs[winner % k])


def test_the_best_operation_passes_the_cotangent_unchanged_in_max_w():
    _, pullback = mixed_op_vjp(OUTPUTS, LOGITS, weighting="max_w")
    dy = RNG.standard_normal((2, 3))
    np.testing.assert_array_equal(pullback(dy)[0][LOGITS.argmax()], dy)


def test_ties_go_to_the_first_operation():
    _, pullback = mixed_op_vjp(np.array([1.0, 2.0]), np.zeros(2), weighting="max_w")
    # score (1, 2), so dweight is (1 - 3, 2); softmax takes the mean off and halves.
    np.testing.assert_allclose(pullback(np.array(1.0))[1], [-1.0, 1.0], rtol=1e-15)


def test_nan_of_an_operation_reaches_only_its_places():
    outputs = OUTPUTS.copy()
    outputs[1, 0, 2] = np.nan
    y = mixed_op(outputs, LOGITS)
    assert np.isnan(y[0, 2])
    assert np.isfinite(np.delete(y.ravel(), 2)).all()


@pytest.mark.parametrize("weighting", ["scalar", "max_w"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_arguments_are_not_written_to(dtype, weighting):
    outputs, logits = OUTPUTS.astype(dtype), LOGITS.astype(dtype)
    outputs.setflags(write=False)
    logits.setflags(write=False)
    y, pullback = mixed_op_vjp(outputs, logits, weighting=weighting)
    assert [a.dtype for a in (y, *pullback(y))] == [dtype] * 3


MIX = RNG.standard_normal((2, 3))


def losses(weight, logits, target):
    """Squared error of a mixture of two maps of one weight vector, and its gradients."""
    outputs, target = np.stack([weight, 2 * weight[::-1]]), np.asarray(target)
    y, back = mixed_op_vjp(outputs, logits)
    doutputs, dlogits = back(y - target)
    return 0.5 * float(np.sum((y - target) ** 2)), (doutputs[0] + 2 * doutputs[1][::-1], dlogits)


@pytest.mark.parametrize("velocity", [None, np.array([0.3, -0.2, 0.1])])
def test_second_order_is_the_gradient_of_the_validation_loss_one_step_ahead(velocity):
    weight, logits, rate = np.array([0.5, -1.0, 0.25]), np.array([0.2, -0.1]), 0.3

    def train(w, a):
        return losses(w, a, MIX[0])[1]

    def ahead(a):
        step = train(weight, a)[0] + 0.1 * weight + (0 if velocity is None else 0.5 * velocity)
        return losses(weight - rate * step, a, MIX[1])[0]

    found = darts_architecture_gradient(
        train,
        lambda w, a: losses(w, a, MIX[1])[1],
        weight,
        logits,
        learning_rate=rate,
        order=2,
        velocity=velocity,
        momentum=0.5,
        weight_decay=0.1,
    )
    step = 1e-5 * np.eye(2)
    expected = [(ahead(logits + e) - ahead(logits - e)) / 2e-5 for e in step]
    # The training gradient in the logits is quadratic in the weights: its central difference is exact.
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_first_order_takes_the_weights_as_they_are():
    weight, logits = {"w": np.ones(3)}, [np.zeros(2)]

    def grad(w, a):
        return {"w": 0 * w["w"]}, [a[0] + 3]

    found = darts_architecture_gradient(None, grad, weight, logits, learning_rate=0.1)
    np.testing.assert_array_equal(found[0], [3, 3])
    second = darts_architecture_gradient(grad, grad, weight, logits, learning_rate=0.1, order=2)
    np.testing.assert_array_equal(second[0], [3, 3])


@given(seed=st.integers(0, 99), edges=st.integers(1, 5), k=st.integers(2, 5))
def test_discretized_operation_has_the_largest_logit_that_is_allowed(seed, edges, k):
    logits = np.random.default_rng(seed).standard_normal((edges, k))
    chosen = discretize(logits, excluded=(0,))
    assert (chosen > 0).all()
    np.testing.assert_array_equal(logits[np.arange(edges), chosen], logits[:, 1:].max(axis=1))
    np.testing.assert_array_equal(discretize(logits), logits.argmax(axis=1))


def test_an_edge_that_prefers_no_connection_is_weak():
    # By the logits alone edge 0 would win; its softmax weight is small, because "none" has most of it.
    edges, operations = strongest_edges(np.array([[9.0, 3.0], [0.0, 2.0], [0.0, 1.0]]), keep=1, excluded=(0,))
    assert (edges.tolist(), operations.tolist()) == ([1], [1])


def test_grid_options_follow_the_order_of_the_logits():
    kernel, width = (3, 5, 7), (16, 32)
    logits = RNG.standard_normal((3, 2))
    best = hypercuboid_options([kernel, width])[int(discretize(logits.ravel()))]
    row, column = np.unravel_index(logits.argmax(), logits.shape)
    assert best == (kernel[row], width[column])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cosine_power_annealing(0), ValueError, "n_epochs: expected an integer >= 1, got 0"),
        (lambda: cosine_power_annealing(2, warmup_epochs=2), ValueError, "warmup_epochs: expected an integer >= 0 and <= 1, got 2"),
        (lambda: cosine_power_annealing(2, exponent_order=0.5), ValueError, r"exponent_order: expected a number in \[1.0, 1.79"),
        (lambda: cosine_power_annealing(2, exponent_order=np.nan), ValueError, "exponent_order: expected a number in"),
        (lambda: cosine_power_annealing(2, min_learning_rate=0.2), ValueError, r"min_learning_rate: expected a number in \[0.0, 0.1\], got 0.2"),
        (lambda: mixed_op(OUTPUTS, LOGITS[:3]), ValueError, r"outputs: expected shape \(3, 2, 3\), got \(4, 2, 3\)"),
        (lambda: mixed_op(OUTPUTS, LOGITS, weighting="sum"), ValueError, "weighting: expected one of 'scalar', 'max_w', got 'sum'"),
        (lambda: mixed_op(OUTPUTS.astype("f4"), LOGITS), TypeError, "logits: expected dtype float32 like outputs, got float64"),
        (lambda: mixed_op(np.zeros((0, 2)), np.zeros(0)), ValueError, "logits: expected at least one entry"),
        (lambda: discretize(np.array([1.0, np.nan])), ValueError, "logits: expected no NaN, got 1"),
        (lambda: discretize(np.ones(2), excluded=(0, 1)), ValueError, r"excluded: expected at most 1 of 2 operations, got \(0, 1\)"),
        (lambda: discretize(np.ones(2), excluded=(2,)), ValueError, "excluded: expected an integer >= 0 and <= 1, got 2"),
        (lambda: strongest_edges(np.ones((2, 2)), keep=3), ValueError, "keep: expected an integer >= 1 and <= 2, got 3"),
        (lambda: hypercuboid_options([(1,), ()]), ValueError, "dims: expected at least one hyper-parameter"),
        (lambda: darts_architecture_gradient(None, None, LOGITS, LOGITS, learning_rate=0.1, order=3), ValueError, "order: expected one of 1, 2, got 3"),
        (lambda: darts_architecture_gradient(None, lambda w, a: (w, w), OUTPUTS, LOGITS, learning_rate=0.1), ValueError, r"val_grad: expected shape \(4,\), got \(4, 2, 3\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
