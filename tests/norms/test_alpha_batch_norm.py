import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    alpha_batch_norm,
    alpha_batch_norm_vjp,
    batch_norm,
    batch_norm_vjp,
    class_correlation_loss,
    class_correlation_loss_vjp,
    core_adapt,
)

RNG = np.random.default_rng(2110)


def arguments(shape, seed=0):
    rng = np.random.default_rng(seed)
    channels = shape[1]
    return (*(rng.standard_normal(s) for s in (shape, channels, channels, channels)), rng.random(channels) + 0.5)


X_FIXED = RNG.standard_normal((6, 3))
LOGITS = 3 * RNG.standard_normal((5, 4))


def with_fixed_batch_statistics(x, gain, bias, mean_s, var_s, **_):
    mean = 0.7 * mean_s + 0.3 * X_FIXED.mean(axis=0)
    var = 0.7 * var_s + 0.3 * X_FIXED.var(axis=0, ddof=1)
    return gain * (x - mean) / np.sqrt(var + 1e-5) + bias


def probabilities(logits):
    e = np.exp((logits - logits.real.max(axis=1, keepdims=True)) / 2.5)
    return e / e.sum(axis=1, keepdims=True)


def with_fixed_weights(logits):
    p = probabilities(LOGITS)
    certainty = 1 + np.exp((p * np.log(p)).sum(axis=1))
    p = probabilities(logits)
    r = p.T @ (p * (certainty / certainty.mean())[:, None])
    return 1 - (np.diagonal(r) / r.sum(axis=1)).mean()


GRADIENT_CASES = [
    GradientCase(alpha_batch_norm_vjp, arguments((6, 3)), method="complex"),
    GradientCase(alpha_batch_norm_vjp, arguments((2, 3, 2, 4)), {"source_weight": 0.3, "ddof": 0}, method="complex", name="images"),
    GradientCase(alpha_batch_norm_vjp, arguments((4, 2)), {"source_weight": 0.5, "moments": "mixture"}, method="complex", name="mixture"),
    GradientCase(alpha_batch_norm_vjp, arguments((4, 2)), {"source_weight": 0.0, "eps": 0.1}, method="complex", name="batch alone"),
    GradientCase(alpha_batch_norm_vjp, arguments((4, 2)), {"source_weight": 1.0}, method="complex", name="source alone"),
    GradientCase(alpha_batch_norm_vjp, arguments((1, 3)), {"source_weight": 0.4}, method="complex", name="one value a channel"),
    GradientCase(
        alpha_batch_norm_vjp, (X_FIXED, *arguments((6, 3))[1:]), {"source_weight": 0.7, "detach_stats": True},
        method="complex", surrogate=with_fixed_batch_statistics, name="detached",
    ),
    GradientCase(class_correlation_loss_vjp, (LOGITS,), {"weight_by_entropy": False}, method="complex", name="equal weights"),
    GradientCase(class_correlation_loss_vjp, (RNG.standard_normal((2, 3)),), {"temperature": 0.7, "weight_by_entropy": False}, method="complex", name="two examples"),
    GradientCase(class_correlation_loss_vjp, (LOGITS,), method="complex", surrogate=with_fixed_weights, name="weights are constants"),
    GradientCase(
        class_correlation_loss_vjp, (LOGITS + np.array([0, 0, 0, -200.0]),), {"weight_by_entropy": False}, method="complex", name="a class never predicted"
    ),
]  # fmt: skip


@given(seed=st.integers(0, 99), shape=st.sampled_from([(5, 3), (2, 3, 4), (3, 2, 2, 2)]))
def test_ends_of_the_mixture_are_batch_norm_in_use_and_in_training(seed, shape):
    x, gain, bias, mean, var = arguments(shape, seed)
    over = (0, *range(2, len(shape)))
    in_use = alpha_batch_norm(x, gain, bias, mean, var, source_weight=1.0)
    np.testing.assert_array_equal(in_use, batch_norm(x, gain, bias, mean, var, axes=over))
    alone, pullback = alpha_batch_norm_vjp(x, gain, bias, mean, var, source_weight=0.0, ddof=0)
    training, expected = batch_norm_vjp(x, gain, bias, axes=over)
    np.testing.assert_array_equal(alone, training)
    for got, want in zip(pullback(x)[:3], expected(x)[:3], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)
    assert not np.any(pullback(x)[3])
    assert not np.any(pullback(x)[4])


@given(seed=st.integers(0, 99), weight=st.integers(0, 6))
def test_mixture_moments_are_those_of_the_pooled_population(seed, weight):
    rng = np.random.default_rng(seed)
    source, x = rng.standard_normal((weight, 2)) + 3, rng.standard_normal((7, 2))
    if weight == 0:
        source = np.ones((1, 2))
    share = weight / (weight + 7)
    y = alpha_batch_norm(
        x, np.ones(2), np.zeros(2), source.mean(axis=0), source.var(axis=0), source_weight=share, ddof=0, moments="mixture"
    )  # fmt: skip
    pooled = np.concatenate([source[:weight], x])
    np.testing.assert_allclose(y, (x - pooled.mean(axis=0)) / np.sqrt(pooled.var(axis=0) + 1e-5), rtol=1e-9, atol=1e-10)


def test_one_value_a_channel_has_variance_zero_and_not_nan():
    y = alpha_batch_norm(
        np.array([[3.0]]), np.ones(1), np.zeros(1), np.zeros(1), np.ones(1), source_weight=0.5, eps=1e-12
    )
    np.testing.assert_allclose(y, 1.5 / np.sqrt(0.5), rtol=1e-11)


def test_large_offset_does_not_cost_digits_in_float32():
    x = (1e6 + RNG.integers(-8, 8, (32, 2))).astype(np.float32)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0, ddof=1) + 1e-5)
    np.testing.assert_allclose(
        alpha_batch_norm(x, one, zero, zero, one, source_weight=0.0), exact, rtol=1e-6, atol=1e-7
    )


def test_nan_stays_in_its_channel():
    x, *rest = arguments((4, 3))
    x[1, 2] = np.nan
    y = alpha_batch_norm(x, *rest)
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(y[:, :2]).all()


@given(seed=st.integers(0, 99), size=st.integers(1, 6), classes=st.integers(1, 5), spread=st.floats(0, 50))
def test_loss_lies_between_0_and_1_and_ignores_a_common_shift_and_the_order(seed, size, classes, spread):
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((size, classes))
    loss = class_correlation_loss(logits)
    assert 0 <= loss <= 1
    moved = (logits + rng.standard_normal((size, 1)))[rng.permutation(size)][:, rng.permutation(classes)]
    np.testing.assert_allclose(class_correlation_loss(moved), loss, rtol=1e-9, atol=1e-12)


@given(classes=st.integers(1, 6), size=st.integers(1, 5))
def test_uniform_predictions_give_the_share_of_the_other_classes(classes, size):
    np.testing.assert_allclose(
        class_correlation_loss(np.zeros((size, classes))), 1 - 1 / classes, rtol=1e-13, atol=1e-15
    )


@given(seed=st.integers(0, 99), classes=st.integers(1, 6))
def test_single_example_teaches_nothing(seed, classes):
    logits = 3 * np.random.default_rng(seed).standard_normal((1, classes))
    loss, pullback = class_correlation_loss_vjp(logits)
    np.testing.assert_allclose(loss, 1 - 1 / classes, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(pullback(np.array(1.0))[0], 0, atol=1e-15)


def test_small_loss_keeps_its_digits():
    gap = 60.0
    logits = np.array([[gap, 0.0], [0.0, gap]])
    small = np.exp(-gap)
    p = small / (1 + small)
    expected = 2 * p * (1 - p)
    np.testing.assert_allclose(class_correlation_loss(logits, temperature=1.0), expected, rtol=1e-13)


def test_class_that_is_never_predicted_counts_as_fully_confused():
    logits = np.array([[1e5, 0.0, -1e5], [0.0, 1e5, -1e5]])
    loss, pullback = class_correlation_loss_vjp(logits)
    np.testing.assert_allclose(loss, 1 / 3, rtol=1e-14)
    assert np.isfinite(pullback(np.array(1.0))[0]).all()


def test_confident_examples_count_more():
    confused = np.array([[1.0, 1.0]])
    logits = np.concatenate([confused, confused, 50 * np.eye(2)])
    assert class_correlation_loss(logits) < class_correlation_loss(logits, weight_by_entropy=False) - 0.02


def network_vjp(params, x, source_weight):
    y, back = alpha_batch_norm_vjp(x, *params, np.zeros(3), np.ones(3), source_weight=source_weight)
    return y, lambda dy: (back(dy)[1:3],)


def test_each_batch_is_predicted_before_its_step_and_the_start_is_kept():
    params = (np.ones(3), np.zeros(3))
    stream = RNG.standard_normal((4, 8, 3))
    result = core_adapt(network_vjp, params, stream, learning_rate=0.1)
    first, back = network_vjp(params, stream[0], 0.9)
    loss, back_loss = class_correlation_loss_vjp(first)
    np.testing.assert_array_equal(result.predictions[0], first.argmax(axis=1))
    assert result.losses[0] == loss
    gain_step = back(back_loss(np.array(1.0))[0])[0][0]
    one = core_adapt(network_vjp, params, stream[:1], learning_rate=0.1)
    np.testing.assert_array_equal(one.params[0], 1 - 0.1 * gain_step)
    rest = core_adapt(network_vjp, one.params, stream[1:], learning_rate=0.1)
    np.testing.assert_array_equal(rest.params[0], result.params[0])
    assert (params[0] == 1).all()
    assert core_adapt(network_vjp, params, []).params is params


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    args = tuple(a.astype(dtype) for a in arguments((4, 3)))
    y, pullback = alpha_batch_norm_vjp(*args)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 5
    loss, back = class_correlation_loss_vjp(args[0])
    assert loss.dtype == back(loss)[0].dtype == dtype


def test_arguments_are_not_written_to():
    args = arguments((4, 3))
    for array in args:
        array.setflags(write=False)
    _, pullback = alpha_batch_norm_vjp(*args)
    pullback(args[0])
    loss, back = class_correlation_loss_vjp(args[0])
    back(loss)


GOOD = arguments((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: alpha_batch_norm(*GOOD, source_weight=1.1), ValueError, r"source_weight: expected a number in \[0, 1\], got 1.1"),
        (lambda: alpha_batch_norm(*GOOD, ddof=2), ValueError, "ddof: expected one of 0, 1, got 2"),
        (lambda: alpha_batch_norm(*GOOD, moments="sum"), ValueError, "moments: expected one of 'linear', 'mixture', got 'sum'"),
        (lambda: alpha_batch_norm(*GOOD, eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: alpha_batch_norm(*GOOD[:4], -np.ones(3)), ValueError, "source_var: expected values >= 0, got -1.0"),
        (lambda: alpha_batch_norm(*GOOD[:4], np.ones(2)), ValueError, r"source_var: expected shape \(3,\), got \(2,\)"),
        (lambda: alpha_batch_norm(np.ones((0, 3)), *GOOD[1:]), ValueError, "x: expected at least one entry along axes"),
        (lambda: alpha_batch_norm(GOOD[0].astype("f4"), *GOOD[1:]), TypeError, "gain: expected dtype float32 like x, got float64"),
        (lambda: class_correlation_loss(np.ones((0, 3))), ValueError, "logits: expected at least one entry along axes"),
        (lambda: class_correlation_loss(np.ones(3)), ValueError, r"logits: expected 2 dimensions, got shape \(3,\)"),
        (lambda: class_correlation_loss(np.ones((2, 2)), temperature=0.0), ValueError, "temperature: expected a finite number > 0, got 0.0"),
        (lambda: core_adapt(network_vjp, (), [], learning_rate=-1.0), ValueError, "learning_rate: expected a finite number > 0, got -1.0"),
        (lambda: core_adapt(network_vjp, (), [], source_weight=-1.0), ValueError, r"source_weight: expected a number in \[0, 1\], got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
