import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    batch_norm,
    l1_batch_norm,
    l1_batch_norm_vjp,
    l1_batch_statistics,
    l1_batch_statistics_vjp,
    update_l1_running_statistics,
)

RNG = np.random.default_rng(18)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


SMALL = {"step": 1e-4}
"""Steps that do not carry an entry over its mean, where the function has a kink."""

GRADIENT_CASES = [
    GradientCase(l1_batch_statistics_vjp, draw((5, 3)), **SMALL),
    GradientCase(l1_batch_statistics_vjp, (*draw((4, 3, 5)), (0, 2)), name="images", **SMALL),
    GradientCase(l1_batch_norm_vjp, (*draw((5, 3), 3, 3), None, None), name="training", **SMALL),
    GradientCase(l1_batch_norm_vjp, (*draw((5, 3), 3, 3), None, None), {"match_std": True}, name="match std", **SMALL),
    GradientCase(
        l1_batch_norm_vjp, (*draw((3, 4, 2, 5), 4, 4), None, None), {"axes": (0, 2, 3), "eps": 0.1}, name="images", **SMALL
    ),
    GradientCase(
        l1_batch_norm_vjp, (*draw((5, 3), 3, 3, 3), RNG.random(3) + 0.2), {"match_std": True}, name="inference"
    ),
    GradientCase(
        l1_batch_norm_vjp, (*draw((4, 3, 5), 3, 3, 3), np.array([0.01, 1.0, 1e3])), {"axes": (0, 2), "eps": 0.1}, name="inference, unequal deviations", **SMALL
    ),
]  # fmt: skip


@given(scale=st.floats(0.1, 10), shift=st.floats(-100, 100), n=st.integers(2, 20), seed=st.integers(0, 99))
def test_training_output_ignores_shift_and_scale_of_a_unit(scale, shift, n, seed):
    x = np.random.default_rng(seed).standard_normal((n, 3))
    one, zero = np.ones(3), np.zeros(3)
    y = l1_batch_norm(x, one, zero, eps=1e-300)
    np.testing.assert_allclose(l1_batch_norm(scale * x + shift, one, zero, eps=1e-300), y, atol=1e-9)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(y).mean(axis=0), 1, rtol=1e-12)


@given(seed=st.integers(0, 99), n=st.integers(2, 30))
def test_deviation_lies_between_std_over_root_n_and_std(seed, n):
    x = np.random.default_rng(seed).standard_normal((n, 2))
    _, deviation = l1_batch_statistics(x)
    assert (deviation <= x.std(axis=0) * (1 + 1e-12)).all()
    assert (deviation >= x.std(axis=0) / np.sqrt(n) * (1 - 1e-12)).all()


@given(seed=st.integers(0, 99), n=st.integers(1, 12))
def test_gradient_of_a_unit_sums_to_zero(seed, n):
    x, dy = np.random.default_rng(seed).standard_normal((2, n, 3))
    dx = l1_batch_norm_vjp(x, np.ones(3), np.zeros(3))[1](dy)[0]
    np.testing.assert_allclose(dx.sum(axis=0), 0, atol=1e-10 * max(1, np.abs(dx).max()))


def test_with_the_factor_normal_data_come_out_as_from_batch_norm():
    x = np.random.default_rng(0).standard_normal((100_000, 1))
    one, zero = np.ones(1), np.zeros(1)
    ratio = l1_batch_norm(x, one, zero, match_std=True) / batch_norm(x, one, zero)
    np.testing.assert_allclose(ratio, 1, atol=0.01)


def test_inference_with_the_batch_statistics_is_training():
    x, gain, bias = draw((6, 4, 3), 4, 4)
    mean, deviation = l1_batch_statistics(x, (0, 2))
    for match_std in (False, True):
        np.testing.assert_allclose(
            l1_batch_norm(x, gain, bias, mean, deviation, axes=(0, 2), match_std=match_std),
            l1_batch_norm(x, gain, bias, axes=(0, 2), match_std=match_std),
            rtol=1e-12,
            atol=1e-13,
        )


def test_constant_unit_gives_the_bias_and_its_gradient_is_centred():
    gain, bias = draw(2, 2)
    y, pullback = l1_batch_norm_vjp(np.ones((4, 2)), gain, bias, eps=0.5)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (4, 2)))
    dy = RNG.standard_normal((4, 2))
    np.testing.assert_allclose(pullback(dy)[0], 2 * gain * (dy - dy.mean(axis=0)), rtol=1e-12)


def test_squares_that_would_overflow_do_not_occur():
    x = np.array([[1e200], [3e200]])
    np.testing.assert_allclose(l1_batch_norm(x, np.ones(1), np.zeros(1)), [[-1], [1]], rtol=1e-12)


def test_nan_stays_in_its_unit():
    x = RNG.standard_normal((4, 3))
    x[1, 2] = np.nan
    y = l1_batch_norm(x, np.ones(3), np.zeros(3))
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(y[:, :2]).all()


def test_running_statistics_converge_to_those_of_a_repeated_batch():
    mean, deviation = l1_batch_statistics(RNG.standard_normal((9, 3)))
    running = np.zeros(3), np.ones(3)
    for _ in range(300):
        running = update_l1_running_statistics(*running, mean, deviation)
    np.testing.assert_allclose(running[0], mean, atol=1e-12)
    np.testing.assert_allclose(running[1], deviation, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    x, gain, bias, mean = (a.astype(dtype) for a in draw((5, 3), 3, 3, 3))
    deviation = np.ones(3, dtype)
    for given_statistics in ((None, None), (mean, deviation)):
        y, pullback = l1_batch_norm_vjp(x, gain, bias, *given_statistics)
        assert y.dtype == dtype
        assert {entry.dtype for entry in pullback(y) if entry is not None} == {np.dtype(dtype)}
    value, pullback = l1_batch_statistics_vjp(x)
    assert {entry.dtype for entry in (*value, *pullback(value))} == {np.dtype(dtype)}
    assert {entry.dtype for entry in update_l1_running_statistics(mean, deviation, *value)} == {np.dtype(dtype)}


def test_arguments_are_not_written_to():
    x, gain, bias = draw((5, 3), 3, 3)
    for array in (x, gain, bias):
        array.setflags(write=False)
    l1_batch_norm_vjp(x, gain, bias)[1](x)


ONE = np.ones(3)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (l1_batch_norm, (np.ones((2, 3)), np.ones(2), ONE), {}, ValueError, r"gain: expected shape \(3,\), got \(2,\)"),
        (l1_batch_norm, (np.ones((2, 3)), ONE, None), {}, TypeError, "bias: expected a float32 or float64 array, got dtype object"),
        (l1_batch_norm, (np.ones((2, 3)), ONE, ONE, ONE), {}, ValueError, "mean, deviation: expected both for inference"),
        (l1_batch_norm, (np.ones((2, 3)), ONE, ONE, ONE, -ONE), {}, ValueError, r"deviation: expected values >= 0, got -1.0"),
        (l1_batch_norm, (np.ones((2, 3)), ONE, ONE), {"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        (l1_batch_norm, (np.ones((2, 3)), ONE, ONE), {"axes": (2,)}, ValueError, "axes: expected integers from -2 to 1"),
        (l1_batch_norm, (np.ones((0, 3)), ONE, ONE), {}, ValueError, "x: expected at least one entry along axes"),
        (l1_batch_norm, (np.ones((2, 3)), ONE.astype("f4"), ONE), {}, TypeError, "gain: expected dtype float64 like x"),
        (l1_batch_statistics, (np.ones((2, 3), int),), {}, TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (update_l1_running_statistics, (ONE, ONE, ONE, np.ones(2)), {}, ValueError, r"deviation: expected shape \(3,\), got \(2,\)"),
        (update_l1_running_statistics, (ONE, ONE, ONE, ONE), {"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\], got 1.5"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)
