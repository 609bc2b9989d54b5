import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.solvers import (
    AdaGrad,
    AdaGradNorm,
    Diverged,
    Lion,
    adadagrad,
    augmented_inner_product_test,
    coordinate_norm_test,
    inner_product_test,
    next_batch_size,
    norm_test,
    orthogonality_test,
)

RNG = np.random.default_rng(6)
TESTS = (norm_test, inner_product_test, orthogonality_test, coordinate_norm_test)


def mean_estimation(n=60, d=3, seed=0):
    data = np.random.default_rng(seed).standard_normal((n, d)) + 2
    return data, lambda x, rows: x - data[rows]


def run(test="norm", *, seed=0, **options):
    data, grad = mean_estimation()
    settings = {"optimizer": AdaGradNorm(), "max_samples": 3000, "tolerance": 0.5, "rng": np.random.default_rng(seed)}
    return data, adadagrad(grad, np.zeros(3), len(data), test=test, **settings | options)


@given(b=st.integers(2, 12), d=st.integers(1, 8), seed=st.integers(0, 999))
def test_variance_is_the_sum_of_what_lies_along_and_across_the_mean(b, d, seed):
    grads = np.random.default_rng(seed).standard_normal((b, d)) + 0.3
    whole, along, across = (test(grads, tolerance=0.7).variance for test in TESTS[:3])
    assert whole == pytest.approx(np.var(grads, axis=0, ddof=1).sum(), rel=1e-12)
    assert along + across == pytest.approx(whole, rel=1e-12)


@given(scale=st.floats(1e-100, 1e100), b=st.integers(2, 9), seed=st.integers(0, 99))
def test_statistics_do_not_feel_the_scale_of_the_gradients(scale, b, seed):
    grads = np.random.default_rng(seed).standard_normal((b, 4)) + 1
    for test in TESTS:
        before, after = test(grads, tolerance=0.3), test(scale * grads, tolerance=0.3)
        assert after.statistic == pytest.approx(before.statistic, rel=1e-10)


@given(b=st.integers(2, 9), seed=st.integers(0, 99), tolerance=st.floats(0.05, 2))
def test_required_is_the_smallest_batch_that_passes_and_laxer_tests_ask_for_less(b, seed, tolerance):
    grads = np.random.default_rng(seed).standard_normal((b, 3)) + 0.5
    for test in TESTS:
        found = test(grads, tolerance=tolerance)
        assert found.required == max(b, math.ceil(found.statistic))
        assert test(grads, tolerance=2 * tolerance).statistic == pytest.approx(found.statistic / 4, rel=1e-12)


@given(b=st.integers(2, 9), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_coordinate_test_is_at_least_as_strict_as_the_norm_test(b, d, seed):
    grads = np.random.default_rng(seed).standard_normal((b, d)) + 0.5
    joint, each = norm_test(grads, tolerance=0.5), coordinate_norm_test(grads, tolerance=0.5)
    assert each.statistic >= joint.statistic * (1 - 1e-12)


@pytest.mark.parametrize("test", TESTS)
def test_samples_that_agree_pass_even_at_zero(test):
    for grads in (np.zeros((3, 2)), np.full((3, 2), 4.0)):
        found = test(grads, tolerance=0.1)
        assert (found.statistic, found.required) == (0.0, 3.0)


@pytest.mark.parametrize("test", TESTS)
def test_mean_zero_of_samples_that_differ_asks_for_everything(test):
    found = test(np.array([[1.0, 2.0], [-1.0, -2.0]]), tolerance=0.1)
    assert found.required == math.inf
    assert next_batch_size(2, found.required, max_batch_size=50) == 50


def test_coordinates_without_variance_are_skipped():
    grads = np.array([[0.0, 1.0], [0.0, 3.0]])
    assert coordinate_norm_test(grads, tolerance=1.0).statistic == 0.5


def test_nan_stays_visible_and_is_no_batch_size():
    found = norm_test(np.array([[1.0, np.nan], [2.0, 1.0]]), tolerance=0.5)
    assert math.isnan(found.statistic)
    with pytest.raises(ValueError, match="required: expected a number, got nan"):
        next_batch_size(2, found.required, max_batch_size=5)


def test_float32_gradients_with_a_large_mean_keep_their_variance():
    noise = RNG.standard_normal((50, 3))
    grads = (1e5 + noise).astype(np.float32)
    truth = np.var(grads.astype(np.float64), axis=0, ddof=1).sum()
    assert norm_test(grads, tolerance=0.5).variance == pytest.approx(truth, rel=1e-12)


def test_batches_never_shrink_and_are_capped_before_rounding():
    assert next_batch_size(8, 3.0, max_batch_size=20) == 8
    assert next_batch_size(8, 8.2, max_batch_size=20) == 9
    assert next_batch_size(8, 1e200, max_batch_size=20) == 20


def test_augmented_test_is_the_stricter_of_two():
    grads = RNG.standard_normal((6, 4)) + 0.5
    for across in (0.05, 50.0):
        found = augmented_inner_product_test(grads, tolerance=0.5, orthogonality_tolerance=across)
        parts = (inner_product_test(grads, tolerance=0.5), orthogonality_test(grads, tolerance=across))
        assert found == max(parts, key=lambda part: part.statistic)


@given(seed=st.integers(0, 99), steps=st.integers(1, 6))
def test_adagrad_norm_sees_all_parameters_together_and_is_bounded_by_the_rate(seed, steps):
    rng = np.random.default_rng(seed)
    params = {"a": rng.standard_normal(3), "b": [rng.standard_normal((2, 2))]}
    optimizer = AdaGradNorm(learning_rate=0.5)
    state, total = optimizer.init(params), 1e-2
    for _ in range(steps):
        grads = {"a": rng.standard_normal(3), "b": [rng.standard_normal((2, 2))]}
        flat = np.concatenate([grads["a"], grads["b"][0].ravel()])
        total += flat @ flat
        after, state = optimizer.step(params, grads, state)
        moved = np.concatenate([after["a"] - params["a"], (after["b"][0] - params["b"][0]).ravel()])
        np.testing.assert_allclose(moved, -0.5 * flat / np.sqrt(total), rtol=1e-8, atol=1e-14)
        assert np.linalg.norm(moved) <= 0.5
        params = after


def test_first_adagrad_step_is_the_sign_of_the_gradient():
    optimizer = AdaGrad(learning_rate=0.25)
    params, grads = np.zeros(4), np.array([1e-3, -5.0, 1e8, 0.0])
    after, _ = optimizer.step(params, grads, optimizer.init(params))
    np.testing.assert_allclose(after, [-0.25, 0.25, -0.25, 0.0], rtol=1e-6)


def test_zero_gradients_move_nothing():
    params = np.ones(2)
    for optimizer in (AdaGradNorm(initial_accumulator_value=0.0), AdaGrad()):
        after, _ = optimizer.step(params, np.zeros(2), optimizer.init(params))
        np.testing.assert_array_equal(after, params)


def test_decayed_rate_counts_steps():
    optimizer = AdaGrad(learning_rate=1.0, learning_rate_decay=1.0)
    params, state = np.zeros(1), optimizer.init(np.zeros(1))
    moves = []
    for _ in range(3):
        after, state = optimizer.step(params, np.ones(1), state)
        moves.append(float(params[0] - after[0]))
        params = after
    np.testing.assert_allclose(moves, [1, 1 / 2 / np.sqrt(2), 1 / 3 / np.sqrt(3)], rtol=1e-9)


def test_none_gradients_leave_parameters_alone():
    params = [np.ones(2), np.ones(3)]
    for optimizer in (AdaGradNorm(), AdaGrad()):
        after, _ = optimizer.step(params, [np.ones(2), None], optimizer.init(params))
        assert after[1] is params[1]


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_parameters_without_axes_have_a_state_of_arrays(start):
    optimizer = AdaGrad(learning_rate=0.1, initial_accumulator_value=start)
    params = {"scale": np.array(2.0, np.float32), "weight": np.ones(3), "none": None}
    state = optimizer.init(params)
    assert type(state.accumulator["scale"]) is np.ndarray
    assert state.accumulator["scale"].dtype == np.float32
    grads = {"scale": np.array(0.5, np.float32), "weight": np.ones(3), "none": None}
    for _ in range(2):
        params, state = optimizer.step(params, grads, state)
        for tree in (params, state.accumulator):
            assert [type(tree[name]) for name in ("scale", "weight")] == [np.ndarray, np.ndarray]
    first = start + 0.25
    moved = 0.05 / np.sqrt(first) + 0.05 / np.sqrt(first + 0.25)
    np.testing.assert_allclose(params["scale"], 2 - moved, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written_to(dtype):
    params, grads = RNG.standard_normal((2, 3)).astype(dtype)
    params.setflags(write=False)
    grads.setflags(write=False)
    for optimizer in (AdaGradNorm(), AdaGrad(weight_decay=0.1)):
        after, _ = optimizer.step(params, grads, optimizer.init(params))
        assert after.dtype == dtype
        with pytest.raises(dataclasses.FrozenInstanceError):
            optimizer.learning_rate = 2.0


@pytest.mark.parametrize("test", ["norm", "inner_product", "augmented", "coordinate"])
def test_run_grows_its_batches_to_all_samples_and_solves_the_problem(test):
    data, result = run(test)
    assert (np.diff(result.batch_sizes) >= 0).all()
    assert result.batch_sizes[0] == 8
    assert result.batch_sizes[-1] == len(data)
    assert result.batch_sizes.sum() <= 3000
    np.testing.assert_allclose(result.x, data.mean(axis=0), atol=1e-3)
    assert not result.converged
    assert len(result.history["gradient_norm"]) == result.n_iter == len(result.batch_sizes)


def test_run_follows_the_loop_of_the_paper():
    _, grad = mean_estimation()
    _, result = run(max_samples=200)
    rng, x, size, used = np.random.default_rng(0), np.zeros(3), 8, 0
    optimizer = AdaGradNorm()
    state, sizes = optimizer.init(x), []
    while used + size <= 200:
        rows = rng.choice(60, size, replace=False) if size < 60 else np.arange(60)
        grads = grad(x, rows)
        sizes, used = [*sizes, size], used + size
        x, state = optimizer.step(x, grads.mean(axis=0), state)
        variance, mean = np.var(grads, axis=0, ddof=1).sum(), grads.mean(axis=0)
        size = min(60, math.ceil(max(size, variance / (0.25 * (mean @ mean)))))
    assert result.batch_sizes.tolist() == sizes
    np.testing.assert_allclose(result.x, x, rtol=1e-12)


def test_no_test_keeps_the_batch_size_and_interval_skips_tests():
    _, constant = run(None, max_samples=100)
    assert set(constant.batch_sizes.tolist()) == {8}
    assert np.isnan(constant.history["statistic"]).all()
    _, sparse = run(test_interval=3, max_samples=200, max_batch_size=50)
    tested = ~np.isnan(sparse.history["statistic"])
    assert tested[0]
    assert not tested[1:3].any()


def test_full_batches_with_a_small_gradient_end_the_run():
    data, result = run(tol=1e-8, batch_size=60, max_samples=10**6, optimizer=AdaGradNorm(learning_rate=5.0))
    assert result.converged
    assert result.history["gradient_norm"][-1] <= 1e-8
    np.testing.assert_allclose(result.x, data.mean(axis=0), atol=1e-7)


def test_callback_ends_the_run_after_its_update():
    _, result = run(callback=lambda progress: progress.n_iter == 2)
    assert result.n_iter == 2
    assert not result.converged


def test_divergence_is_reported():
    @dataclasses.dataclass(frozen=True)
    class Ascent:
        def init(self, params):
            return None

        def step(self, params, grads, state):
            return params + 10 * grads, None

    with pytest.raises(Diverged, match="adadagrad: diverged at iteration .*; use a smaller learning_rate"):
        run(optimizer=Ascent())


def test_other_optimizers_and_dtypes_work():
    data, _ = mean_estimation()
    wide = data.astype(np.float32)
    result = adadagrad(
        lambda x, rows: x - wide[rows],
        np.zeros(3, np.float32),
        60,
        optimizer=Lion(learning_rate=0.05),
        max_samples=2000,
        rng=np.random.default_rng(0),
    )
    assert result.x.dtype == np.float32
    np.testing.assert_allclose(result.x, data.mean(axis=0), atol=0.2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: norm_test(np.ones((1, 3)), tolerance=0.5), ValueError, r"per_sample_grads: expected at least 2 samples, got shape \(1, 3\)"),
        (lambda: norm_test(np.ones(3), tolerance=0.5), ValueError, r"per_sample_grads: expected 2 dimensions, got shape \(3,\)"),
        (lambda: norm_test(np.ones((2, 3), int), tolerance=0.5), TypeError, "per_sample_grads: expected a float32 or float64 array"),
        (lambda: norm_test(np.ones((2, 3)), tolerance=0.0), ValueError, "tolerance: expected a finite number > 0, got 0.0"),
        (lambda: augmented_inner_product_test(np.ones((2, 3)), tolerance=1.0, orthogonality_tolerance=-1.0), ValueError, "orthogonality_tolerance: expected"),
        (lambda: next_batch_size(0, 1.0, max_batch_size=3), ValueError, "current: expected an integer >= 1, got 0"),
        (lambda: next_batch_size(8, 1.0, max_batch_size=3), ValueError, "max_batch_size: expected an integer >= 8, got 3"),
        (lambda: AdaGradNorm(learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: AdaGradNorm(initial_accumulator_value=-1.0), ValueError, "initial_accumulator_value: expected a finite number >= 0"),
        (lambda: AdaGrad(eps=0.0), ValueError, "eps: expected a finite number > 0, got 0.0"),
        (lambda: AdaGrad(weight_decay=-1.0), ValueError, "weight_decay: expected a finite number >= 0, got -1.0"),
        (lambda: AdaGradNorm().step(np.ones(2), np.ones(3), AdaGradNorm().init(np.ones(2))), ValueError, r"grads: expected shape \(2,\), got \(3,\)"),
        (lambda: run(batch_size=1), ValueError, "batch_size: expected an integer >= 2 and <= 60, got 1"),
        (lambda: run(max_batch_size=4), ValueError, "max_batch_size: expected an integer >= 8 and <= 60, got 4"),
        (lambda: run(max_batch_size=61), ValueError, "max_batch_size: expected an integer >= 8 and <= 60, got 61"),
        (lambda: run("variance"), ValueError, "test: expected one of 'norm', 'inner_product', 'augmented', 'coordinate', None"),
        (lambda: run(test_interval=0), ValueError, "test_interval: expected an integer >= 1, got 0"),
        (lambda: run(rng=3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: adadagrad(lambda x, rows: x, np.ones(3), 60, optimizer=Lion(), max_samples=90, rng=RNG), ValueError, r"per_sample_grad: expected shape \(8, 3\), got \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
