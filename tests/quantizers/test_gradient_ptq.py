import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase, check_vjp
from refnorm.quantizers import (
    affine_qparams,
    allocate_bits,
    fake_quantize,
    fit_rounding,
    importance,
    rectified_sigmoid,
    rectified_sigmoid_inverse,
    rectified_sigmoid_inverse_vjp,
    rectified_sigmoid_vjp,
    rounding_regulariser,
    rounding_regulariser_vjp,
    search_power,
    soft_quantize,
    soft_quantize_vjp,
)
from refnorm.quantizers._gradient_ptq import _COMPARED, _activated, bend

RNG = np.random.default_rng(1)
WEIGHT, V = RNG.standard_normal((5, 3)), RNG.standard_normal((5, 3))
OFFSETS = 0.7 * RNG.standard_normal((5, 3))


def held_floor(weight, scale, v, *, bits, variable="sigmoid", power=1.0):
    """The smooth function with the floor (or the rounding error) held; the weights do not matter to it."""
    highest = 2 ** (bits - 1) - 1
    u = bend(weight, power) / scale
    floor, error = np.floor(u), np.rint(u + np.clip(v, -1, 1)) - np.clip(v, -1, 1)
    # Of a straight-through code at the end of the grid, only the side where it is held counts as clipped.
    held = np.rint(u + np.clip(v, -1, 1))
    inside = (held >= -highest - 1) & (held <= highest)

    def surrogate(weight, scale, v, **_):
        if variable == "ste":
            code = np.where(inside, error + np.clip(v, -1, 1), np.clip(held, -highest - 1, highest))
        else:
            code = floor + (np.clip(v, 0, 1) if variable == "direct" else np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1))
            code = np.clip(code, -highest - 1, highest)
        return bend(scale * code, 1 / power)

    return surrogate


def case(name, v=V, scale=0.3, bits=3, **options):
    scale = np.asarray(scale)
    return GradientCase(
        soft_quantize_vjp, (WEIGHT, scale, v), {"bits": bits, **options},
        surrogate=held_floor(WEIGHT, scale, v, bits=bits, **options), step=1e-5, name=name,
    )  # fmt: skip


GRADIENT_CASES = [
    GradientCase(rectified_sigmoid_vjp, (np.array([-9.0, -2.0, -0.3, 0.0, 1.0, 2.2, 9.0]),), method="complex"),
    GradientCase(rectified_sigmoid_inverse_vjp, (np.array([0.01, 0.3, 0.5, 0.97]),), method="complex"),
    GradientCase(rounding_regulariser_vjp, (np.array([0.01, 0.3, 0.6, 0.97]),), step=1e-4),
    GradientCase(rounding_regulariser_vjp, (np.array([[0.2, 0.5], [0.9, 0.05]]),), {"exponent": 7.5}, step=1e-4),
    case("one scale"),
    case("a scale for each column, clipped", scale=RNG.uniform(0.1, 0.5, 3), bits=2),
    case("direct", v=OFFSETS + 0.5, variable="direct"),
    case("straight through", v=OFFSETS, variable="ste"),
    case("power", power=0.6),
    case("power, straight through", v=OFFSETS, variable="ste", power=0.5, scale=RNG.uniform(0.1, 0.5, 3)),
]


@pytest.mark.parametrize("loss", sorted(_COMPARED))
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_of_the_losses(loss, activation):
    y, target = RNG.standard_normal((2, 6, 4))

    def loss_vjp(y):
        value, dy = _activated(_COMPARED[loss], y, target, activation)
        return np.asarray(value), lambda cotangent: (cotangent * dy,)

    check_vjp(loss_vjp, y, step=1e-4)
    assert _COMPARED[loss](target, target)[0] == pytest.approx(0, abs=1e-15)


def test_rows_of_zeros_have_no_cosine():
    value, dy = _COMPARED["cosine"](np.array([[0.0, 0], [1, 0]]), np.array([[1.0, 1], [1, 0]]))
    assert value == 0
    assert (dy == 0).all()


@given(h=st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_inverse_brings_every_fraction_back(h):
    np.testing.assert_allclose(rectified_sigmoid(rectified_sigmoid_inverse(np.array(h))), h, atol=1e-15)


def test_sigmoid_does_not_overflow():
    assert rectified_sigmoid(np.array([-1e4, 1e4])).tolist() == [0, 1]
    assert rectified_sigmoid_vjp(np.array([-1e4, 1e4]))[1](np.ones(2))[0].tolist() == [0, 0]


@given(h=st.lists(st.floats(0, 1), min_size=1, max_size=9), exponent=st.floats(1, 30))
def test_penalty_vanishes_only_for_decisions(h, exponent):
    value = float(rounding_regulariser(np.array(h), exponent=exponent))
    assert 0 <= value <= len(h)
    assert rounding_regulariser(np.rint(h), exponent=exponent) == 0


@given(seed=st.integers(0, 99), bits=st.integers(2, 8), power=st.sampled_from([1.0, 0.5]))
def test_first_variable_leaves_the_layer_in_float(seed, bits, power):
    weight = np.random.default_rng(seed).standard_normal((4, 3))
    scale = affine_qparams(bend(weight, power), bits=bits, axis=1)[0][0]
    u = bend(weight, power) / scale
    v = rectified_sigmoid_inverse(u - np.floor(u))
    np.testing.assert_allclose(soft_quantize(weight, scale, v, bits=bits, power=power), weight, atol=1e-12)


@given(seed=st.integers(0, 99), bits=st.integers(2, 8))
def test_offset_zero_rounds_to_nearest(seed, bits):
    weight = np.random.default_rng(seed).standard_normal((4, 3))
    scale = affine_qparams(weight, bits=bits, axis=1)[0]
    y = soft_quantize(weight, scale[0], np.zeros((4, 3)), bits=bits, variable="ste")
    np.testing.assert_array_equal(y, fake_quantize(weight, scale, 0, bits=bits))


def layer(rng, rows=60, inputs=12, outputs=5, dtype=np.float64):
    x = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, inputs)) + 0.1 * rng.standard_normal((rows, inputs))
    return (
        x.astype(dtype),
        rng.standard_normal((inputs, outputs)).astype(dtype),
        rng.standard_normal(outputs).astype(dtype),
    )


def nearest_error(x, weight, bits):
    scale = affine_qparams(weight, bits=bits, axis=1, method="mse")[0]
    return np.square(x @ (fake_quantize(weight, scale, 0, bits=bits) - weight)).sum()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"loss": "l1"}, {"loss": "cosine"}, {"learn": ("rounding", "bias", "scale")}, {"variable": "direct"},
        {"optimizer": "adamax"}, {"variable": "ste"}, {"loss": "cosine", "activation": "relu"},
    ],
)  # fmt: skip
def test_learned_rounding_has_smaller_output_errors_than_rounding_to_nearest(options):
    x, weight, bias = layer(np.random.default_rng(2))
    found = fit_rounding(x, weight, bias, bits=3, n_iter=400, learning_rate=3e-2, **options)
    error = np.square(x @ found.weight + found.bias - (x @ weight + bias)).sum()
    assert error < 0.7 * nearest_error(x, weight, 3)
    np.testing.assert_allclose(found.weight, found.scale * found.codes, rtol=1e-12)
    assert found.codes.min() >= -4
    assert found.codes.max() <= 3
    if options.get("variable") != "ste":
        first = affine_qparams(weight, bits=3, axis=1, method="mse")[0][0]
        assert (np.abs(found.codes - weight / first) <= 1 + 1e-9)[np.abs(weight / first) < 3].all()


def test_divergence_of_softmaxes_falls():
    x, weight, bias = layer(np.random.default_rng(2))
    found = fit_rounding(x, weight, bias, bits=3, n_iter=300, learning_rate=3e-2, loss="kl", variable="ste")
    assert found.history["loss"][-1] < 0.7 * found.history["loss"][0]


def test_inputs_of_the_quantized_network_are_used():
    x, weight, bias = layer(np.random.default_rng(2))
    disturbed = x + 0.2 * np.sign(x)
    plain, found = (
        fit_rounding(x, weight, bias, bits=4, n_iter=300, learning_rate=3e-2, x_quantized=given)
        for given in (None, disturbed)
    )
    target = x @ weight + bias
    errors = [np.square(disturbed @ fit.weight + fit.bias - target).sum() for fit in (plain, found)]
    assert errors[1] < errors[0]


def test_batches_are_reproducible_and_the_callback_ends_the_fit():
    x, weight, bias = layer(np.random.default_rng(2))
    first, again = (
        fit_rounding(x, weight, bias, bits=3, n_iter=5, batch_size=8, rng=np.random.default_rng(0)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.history["loss"], again.history["loss"])
    assert fit_rounding(x, weight, bias, bits=3, n_iter=9, callback=lambda progress: progress.n_iter == 4).n_iter == 4


def test_two_weights_that_must_not_be_rounded_alike():
    x = np.ones((6, 2)) + 1e-3 * RNG.standard_normal((6, 2))
    found = fit_rounding(x, np.array([[0.5], [0.5]]), np.zeros(1), bits=2, method="absmax", n_iter=500)
    # The grid has the points -1, -1/2, 0, 1/2 with this scale, on which both lie: nothing has to be decided.
    np.testing.assert_allclose(found.weight, 0.5)


def test_power_grid_is_finer_near_zero():
    weight = RNG.standard_normal((300, 2)) ** 3
    power = search_power(weight, bits=4)
    assert 0.3 <= power < 0.8
    scale = affine_qparams(bend(weight, power), bits=4, axis=1, method="absmax")[0][0]
    bent = soft_quantize(weight, scale, np.zeros_like(weight), bits=4, variable="ste", power=power)
    uniform = fake_quantize(weight, *affine_qparams(weight, bits=4, axis=1, method="absmax"), bits=4)
    assert np.square(bent - weight).sum() < 0.8 * np.square(uniform - weight).sum()
    assert search_power(RNG.uniform(-1, 1, (500, 2)), bits=4) > 0.8


def test_importance_of_arrays_and_of_outputs():
    weights, grads = [RNG.standard_normal((3, 2)), RNG.standard_normal((2, 4))], [np.ones((3, 2)), 2 * np.ones((2, 4))]
    np.testing.assert_allclose(importance(weights, grads), [np.abs(weights[0]).sum(), 2 * np.abs(weights[1]).sum()])
    per_output = importance(weights, grads, axis=1)
    np.testing.assert_allclose(per_output, np.concatenate([np.abs(weights[0]).sum(0), 2 * np.abs(weights[1]).sum(0)]))


@given(seed=st.integers(0, 999), groups=st.integers(1, 5), average=st.floats(2, 8))
def test_allocation_keeps_to_the_budget_and_is_nearly_the_best(seed, groups, average):
    rng = np.random.default_rng(seed)
    matter, sizes = np.exp(3 * rng.standard_normal(groups)), np.full(groups, 7)
    bits = allocate_bits(matter, sizes, average_bits=average)
    assert bits.mean() <= average + 1e-9
    assert set(bits.tolist()) <= {2, 4, 8}

    def damage(bits):
        return (matter * 4.0 ** -np.asarray(bits, float)).sum()

    best = min(damage(c) for c in itertools.product((2, 4, 8), repeat=groups) if np.mean(c) <= average + 1e-9)
    # At most one upgrade is missing.
    upgraded = [damage(np.where(np.arange(groups) == g, {2: 4, 4: 8, 8: 8}[int(b)], bits)) for g, b in enumerate(bits)]
    assert min(upgraded) <= best * (1 + 1e-9) or damage(bits) <= best * (1 + 1e-9)
    assert (np.diff(bits[np.argsort(matter)]) >= 0).all() or groups == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_learned_rounding(dtype):
    y, pullback = soft_quantize_vjp(WEIGHT.astype(dtype), np.array(0.3, dtype), V.astype(dtype), bits=4, power=0.5)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3
    for function in (rectified_sigmoid_vjp, rectified_sigmoid_inverse_vjp, rounding_regulariser_vjp):
        value, pullback = function(np.array([0.2, 0.7], dtype))
        assert value.dtype == pullback(value)[0].dtype == dtype
    found = fit_rounding(*layer(RNG, dtype=dtype), bits=4, n_iter=3, learn=("rounding", "bias", "scale"))
    assert found.weight.dtype == found.scale.dtype == found.bias.dtype == found.h.dtype == dtype


def test_learned_rounding_writes_to_no_argument():
    arrays = layer(RNG)
    for array in (*arrays, WEIGHT, V):
        array.setflags(write=False)
    fit_rounding(*arrays, bits=4, n_iter=3)
    y, pullback = soft_quantize_vjp(WEIGHT, np.array(0.3), V, bits=4)
    pullback(y)


X, W, B = np.ones((4, 3)), np.ones((3, 2)), np.ones(2)
S = np.array(0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rectified_sigmoid_inverse(np.array([1.5])), ValueError, "h: expected numbers from 0 to 1"),
        (lambda: rounding_regulariser(np.ones(2), exponent=0.5), ValueError, "exponent: expected a finite number >= 1, got 0.5"),
        (lambda: soft_quantize(W, S, W.T, bits=4), ValueError, r"v: expected shape \(3, 2\), got \(2, 3\)"),
        (lambda: soft_quantize(W, -S, W, bits=4), ValueError, "scale: expected numbers > 0, got -0.5"),
        (lambda: soft_quantize(W, np.ones(3), W, bits=4), ValueError, r"scale: expected shape \(2,\), got \(3,\)"),
        (lambda: soft_quantize(W, S, W, bits=4, power=0.2), ValueError, r"power: expected a number in \[0.3, 1.0\], got 0.2"),
        (lambda: soft_quantize(W, S, W, bits=4, variable="tanh"), ValueError, "variable: expected one of 'sigmoid'"),
        (lambda: soft_quantize(W, S.astype("f4"), W, bits=4), TypeError, "scale: expected dtype float64 like weight"),
        (lambda: fit_rounding(X[:0], W, B, bits=4), ValueError, "x: expected at least one entry"),
        (lambda: fit_rounding(X, W, np.ones(3), bits=4), ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        (lambda: fit_rounding(X, W, B, bits=1), ValueError, "bits: expected an integer >= 2"),
        (lambda: fit_rounding(X, W, B, bits=4, loss="mae"), ValueError, "loss: expected one of 'mse', 'l1', 'cosine', 'kl', got 'mae'"),
        (lambda: fit_rounding(X, W, B, bits=4, learn=("bias",)), ValueError, "learn: expected 'rounding' among them"),
        (lambda: fit_rounding(X, W, B, bits=4, learn=("gain",)), ValueError, "learn: expected one of 'rounding', 'bias', 'scale'"),
        (lambda: fit_rounding(X, W, B, bits=4, activation="gelu"), ValueError, "activation: expected one of None, 'relu'"),
        (lambda: fit_rounding(X, W, B, bits=4, optimizer="lion"), ValueError, "optimizer: expected one of 'adam'"),
        (lambda: fit_rounding(X, W, B, bits=4, warmup=1.0), ValueError, r"warmup: expected a number in \[0.0, 1.0\)"),
        (lambda: fit_rounding(X, W, B, bits=4, batch_size=2), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: fit_rounding(X, W, B, bits=4, x_quantized=X[1:]), ValueError, "x_quantized: expected shape"),
        (lambda: search_power(W, bits=4, n_grid=1), ValueError, "n_grid: expected an integer >= 2, got 1"),
        (lambda: importance([], []), ValueError, "grads: expected as many arrays as weights, at least one"),
        (lambda: importance([W], [W.T]), ValueError, r"grads\[0\]: expected shape \(3, 2\), got \(2, 3\)"),
        (lambda: allocate_bits(B, np.array([1, 2]), average_bits=1.5), ValueError, "average_bits: expected a number of at least 2, got 1.5"),
        (lambda: allocate_bits(-B, np.array([1, 2]), average_bits=4), ValueError, "importance: expected numbers >= 0, got -1.0"),
        (lambda: allocate_bits(B, np.array([1]), average_bits=4), ValueError, r"sizes: expected shape \(2,\), got \(1,\)"),
        (lambda: allocate_bits(B, np.array([1, 1]), average_bits=4, choices=()), ValueError, "choices: expected at least one"),
    ],
)  # fmt: skip
def test_bad_input_of_learned_rounding_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_one_width_to_choose_from_is_chosen():
    np.testing.assert_array_equal(
        allocate_bits(np.array([3.0, 0.1]), np.array([10, 20]), average_bits=6.0, choices=(4,)), [4, 4]
    )
