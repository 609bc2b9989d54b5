import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    batch_norm,
    batch_norm_vjp,
    batch_statistics,
    batch_statistics_vjp,
    update_running_statistics,
)

RNG = np.random.default_rng(5)


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    GradientCase(batch_statistics_vjp, (*draw((5, 3)),), method="complex"),
    GradientCase(batch_statistics_vjp, (*draw((4, 3, 5)), (0, 2)), method="complex", name="images"),
    GradientCase(batch_statistics_vjp, (*draw((4, 3)), (-1,)), name="last axis, differences"),
    GradientCase(batch_norm_vjp, (*draw((5, 3), 3, 3), None, None), method="complex", name="training"),
    GradientCase(
        batch_norm_vjp,
        (*draw((4, 3, 5, 2), 3, 3), None, None),
        {"axes": (0, 2, 3), "eps": 1e-2},
        method="complex",
        name="training, images",
    ),
    GradientCase(
        batch_norm_vjp, (np.ones((4, 2)), *draw(2, 2), None, None), {"eps": 0.1}, method="complex", name="constant units"
    ),
    GradientCase(
        batch_norm_vjp, (*draw((5, 3), 3, 3, 3), RNG.random(3) + 0.2), method="complex", name="inference"
    ),
    GradientCase(
        batch_norm_vjp,
        (*draw((4, 3, 5), 3, 3, 3), np.array([0.0, 1.0, 1e4])),
        {"axes": (0, 2), "eps": 1e-2},
        method="complex",
        name="inference, variance zero",
    ),
    GradientCase(batch_norm_vjp, (*draw((5, 3), 3, 3), None, None), name="training, differences"),
]  # fmt: skip


@given(
    n=st.integers(2, 20),
    units=st.integers(1, 6),
    shift=st.floats(-100, 100),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_training_output_ignores_shift_and_scale_of_a_unit(n, units, shift, scale, seed):
    x = np.random.default_rng(seed).standard_normal((n, units))
    gain, bias = np.ones(units), np.zeros(units)
    y = batch_norm(x, gain, bias, eps=1e-300)
    moved = x.copy()
    moved[:, 0] = scale * x[:, 0] + shift
    np.testing.assert_allclose(batch_norm(moved, gain, bias, eps=1e-300), y, atol=1e-8)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose((y * y).mean(axis=0), 1, rtol=1e-10)


def test_inference_with_the_batch_statistics_is_training():
    x, gain, bias = draw((6, 4, 3), 4, 4)
    mean, var = batch_statistics(x, (0, 2))
    np.testing.assert_allclose(
        batch_norm(x, gain, bias, mean, var, axes=(0, 2)),
        batch_norm(x, gain, bias, axes=(0, 2)),
        rtol=1e-12,
        atol=1e-13,
    )


def test_inference_does_not_look_at_other_examples():
    x, gain, bias, mean = draw((6, 4), 4, 4, 4)
    var = np.ones(4)
    assert (batch_norm(x[:2], gain, bias, mean, var) == batch_norm(x, gain, bias, mean, var)[:2]).all()
    assert batch_norm(x[:0], gain, bias, mean, var).shape == (0, 4)


def test_running_statistics_reach_those_of_the_population():
    rng = np.random.default_rng(0)
    running = np.zeros(2), np.ones(2)
    for _ in range(2000):
        batch = rng.normal([3.0, -1.0], [2.0, 0.5], (8, 2))
        running = update_running_statistics(*running, *batch_statistics(batch), 8, momentum=0.01)
    np.testing.assert_allclose(running[0], [3, -1], atol=0.2)
    np.testing.assert_allclose(running[1], [4, 0.25], rtol=0.1)


def test_running_statistics_take_the_unbiased_variance_and_keep_their_arguments():
    start = np.zeros(1, np.float32), np.ones(1, np.float32)
    for array in start:
        array.setflags(write=False)
    mean, var = update_running_statistics(*start, np.ones(1, np.float32), np.full(1, 3, np.float32), 4, momentum=1)
    assert (mean, var) == (1, 4)
    assert mean.dtype == var.dtype == np.float32


def test_common_offset_costs_no_digits():
    x = (1e6 + np.random.default_rng(0).standard_normal((100, 3))).astype(np.float32)
    mean, var = batch_statistics(x)
    np.testing.assert_allclose(mean, x.astype(float).mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(var, x.astype(float).var(axis=0), rtol=1e-6)


def test_nan_stays_in_its_unit():
    x, gain, bias = draw((4, 3), 3, 3)
    x[1, 2] = np.nan
    y = batch_norm(x, gain, bias)
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(y[:, :2]).all()


def test_one_example_gives_the_bias():
    x, gain, bias = draw((1, 3), 3, 3)
    y, pullback = batch_norm_vjp(x, gain, bias)
    assert (y == bias).all()
    assert (pullback(x)[0] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inference", [False, True])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype, inference):
    args = [RNG.random(s).astype(dtype) for s in ((4, 3), 3, 3, *([3, 3] if inference else []))]
    for array in args:
        array.setflags(write=False)
    y, pullback = batch_norm_vjp(*args)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y) if entry is not None] == [dtype] * len(args)
    (mean, var), pullback = batch_statistics_vjp(args[0])
    assert mean.dtype == var.dtype == pullback((mean, var))[0].dtype == dtype


X, THREE = np.ones((4, 3)), np.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: batch_statistics(np.ones((0, 3))), ValueError, "x: expected at least one entry along axes"),
        (lambda: batch_statistics(X, (2,)), ValueError, "axes: expected integers from -2 to 1"),
        (lambda: batch_statistics(X, (0, -2)), ValueError, "axes: expected distinct axes"),
        (lambda: batch_statistics(np.ones((2, 2), int)), TypeError, "x: expected a float32 or float64 array"),
        (lambda: batch_norm(X, np.ones(4), THREE), ValueError, r"gain: expected shape \(3,\), got \(4,\)"),
        (lambda: batch_norm(X, THREE, np.ones(3, "f4")), TypeError, "bias: expected dtype float64 like x, got float32"),
        (lambda: batch_norm(X, THREE, None), TypeError, "bias: expected a float32 or float64 array, got dtype object"),
        (lambda: batch_norm(X, None, THREE), TypeError, "gain: expected a float32 or float64 array, got dtype object"),
        (lambda: batch_norm(X, THREE, THREE, THREE), ValueError, "mean, var: expected both for inference or neither"),
        (lambda: batch_norm(X, THREE, THREE, THREE, -THREE), ValueError, "var: expected values >= 0, got -1.0"),
        (lambda: batch_norm(X, THREE, THREE, eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: update_running_statistics(THREE, THREE, THREE, THREE, 1), ValueError, "count: expected an integer >= 2, got 1"),
        (lambda: update_running_statistics(THREE, THREE, np.ones(2), THREE, 4), ValueError, r"mean: expected shape \(3,\), got \(2,\)"),
        (lambda: update_running_statistics(THREE, THREE, THREE, THREE, 4, momentum=2.0), ValueError, r"momentum: expected a number in \[0, 1\]"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
