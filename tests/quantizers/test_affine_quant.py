import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.quantizers import (
    affine_equivalent,
    affine_equivalent_vjp,
    affine_quant_linear,
    affine_quant_linear_vjp,
    dequantize_weight_int4,
    dominance_margin,
    fit_affine_quant,
    gradual_mask,
    int4_linear_vjp,
    quantize_weight_int4,
    smooth_init,
)
from refnorm.quantizers._calibration import fake_quantize_range

RNG = np.random.default_rng(1)


def layer(rng, rows=6, inputs=4, outputs=3, dtype=np.float64):
    """Arguments of the layer: x, weight, bias, transform, shift, and both logits."""
    arrays = [rng.standard_normal(shape) for shape in ((rows, inputs), (inputs, outputs), (outputs,))]
    arrays += [2 * np.eye(inputs) + 0.3 * rng.standard_normal((inputs, inputs)), 0.3 * rng.standard_normal(inputs)]
    arrays += [1 + rng.standard_normal(outputs), 1 + rng.standard_normal(outputs)]
    return [array.astype(dtype) for array in arrays]


ARGUMENTS = layer(RNG)
MASK = gradual_mask(4, 1, 3, stability=0.5)


def held_rounding(arguments, *, mask=None, weight_bits=4, bits=4, range_gradient=False):
    """The layer with the errors of all roundings held, and the rows' extremes too unless they are differentiated."""

    def quantized(value, low, high, bits, state):
        highest = 2**bits - 1
        scale = (high - low) / highest
        if not state:
            state += [np.rint(value / scale) - value / scale, np.rint(-low / scale) + low / scale, None]
            code = np.rint(value / scale) + np.rint(-low / scale)
            state[2] = (code < 0, code > highest)
        zero = -low / scale + state[1]
        inside = scale * (value / scale + state[0])
        below, above = state[2]
        return np.where(below, -scale * zero, np.where(above, scale * (highest - zero), inside))

    states, extremes = ([], []), []

    def forward(x, weight, bias, transform, shift, clip_high, clip_low, **_):
        p = transform if mask is None else transform * mask
        w, b, a = p @ weight, bias + shift @ weight, (x - shift) @ np.linalg.inv(p)
        if weight_bits is not None:
            low = np.minimum(w.min(axis=0), 0) / (1 + np.exp(-clip_low))
            high = np.maximum(w.max(axis=0), 0) / (1 + np.exp(-clip_high))
            w = quantized(w, low, high, weight_bits, states[0])
        if bits is not None:
            ends = a.min(axis=1, keepdims=True), a.max(axis=1, keepdims=True)
            if not extremes:
                extremes.extend(ends)
            a = quantized(a, *(ends if range_gradient else extremes), bits, states[1])
        return a @ w + b

    forward(*arguments)
    return forward


def case(name, arguments=ARGUMENTS, **options):
    surrogate = held_rounding(arguments, **options)
    return GradientCase(affine_quant_linear_vjp, tuple(arguments), options, surrogate=surrogate, step=1e-4, name=name)


POSITIVE = [*ARGUMENTS[:1], np.abs(ARGUMENTS[1]), *ARGUMENTS[2:3], np.abs(ARGUMENTS[3]), *ARGUMENTS[4:]]

FOUR_BITS = quantize_weight_int4(RNG.standard_normal((7, 4)), group_size=3)


def int4_case(name, shape, bias=True):
    arrays = (RNG.standard_normal(shape), RNG.standard_normal(4)) if bias else (RNG.standard_normal(shape),)

    def call(x, given_bias=None):
        y, pullback = int4_linear_vjp(x, FOUR_BITS, given_bias)
        return y, lambda dy: pullback(dy)[: len(arrays)]

    return GradientCase(int4_linear_vjp, arrays, call=call, method="complex", name=name)


def float_layer(x, bias, **_):
    return x @ dequantize_weight_int4(FOUR_BITS) + bias


def int8_activations(x, bias, **options):
    return int4_linear_vjp(x, FOUR_BITS, bias, **options)


GRADIENT_CASES = [
    GradientCase(affine_equivalent_vjp, tuple(ARGUMENTS[:5]), method="complex", name="full matrix"),
    GradientCase(affine_equivalent_vjp, tuple(ARGUMENTS[:5]), {"mask": MASK}, method="complex", name="masked"),
    GradientCase(affine_equivalent_vjp, tuple(layer(RNG, 3, 1, 2)[:5]), method="complex", name="one input"),
    case("weights and activations"),
    case("masked", mask=MASK),
    case("weights only", bits=None, weight_bits=3),
    case("activations only, rows' extremes differentiated", weight_bits=None, bits=3, range_gradient=True),
    case("rows' extremes differentiated", bits=3, range_gradient=True),
    case("range of weights ends at 0", POSITIVE, bits=None),
    int4_case("matrix", (5, 7)),
    int4_case("no bias", (5, 7), bias=False),
    int4_case("leading axes", (2, 3, 7)),
    int4_case("one row", (7,)),
    GradientCase(
        int4_linear_vjp,
        (RNG.standard_normal((2, 3, 7)), RNG.standard_normal(4)),
        {"activations": "int8"},
        call=int8_activations,
        surrogate=float_layer,
        name="8-bit activations",
    ),
]


@given(seed=st.integers(0, 999), inputs=st.integers(1, 8))
def test_equivalent_layer_has_the_same_outputs(seed, inputs):
    x, weight, bias, transform, shift, *_ = layer(np.random.default_rng(seed), 5, inputs, 3)
    new_x, new_weight, new_bias = affine_equivalent(x, weight, bias, transform, shift)
    condition = np.linalg.cond(transform)
    np.testing.assert_allclose(new_x @ new_weight + new_bias, x @ weight + bias, atol=1e-13 * condition * 30)


@given(seed=st.integers(0, 999))
def test_gradient_of_the_transform_vanishes_without_quantizers(seed):
    arguments = layer(np.random.default_rng(seed))
    y, pullback = affine_quant_linear_vjp(*arguments, weight_bits=None, bits=None)
    dtransform, dshift = pullback(np.random.default_rng(seed + 1).standard_normal(y.shape))[3:5]
    scale = np.linalg.cond(arguments[3]) ** 2
    np.testing.assert_allclose(dtransform, 0, atol=1e-12 * scale)
    np.testing.assert_allclose(dshift, 0, atol=1e-12 * scale)


@given(size=st.integers(1, 12), n_epochs=st.integers(1, 15), block=st.sampled_from([None, 1, 2, 3]))
def test_mask_opens_from_the_diagonal_to_all(size, n_epochs, block):
    if block is not None:
        size *= block
    masks = [gradual_mask(size, epoch, n_epochs, stability=0.25, block=block) for epoch in range(n_epochs)]
    side = block or size
    for mask in masks:
        assert (np.diagonal(mask) == 1).all()
        assert set(np.unique(mask)) <= {0.0, 0.25, 1.0}
        np.testing.assert_array_equal(mask, mask.T)
    assert all((after >= before).all() for before, after in itertools.pairwise(masks))
    if n_epochs > 1:
        np.testing.assert_array_equal(masks[0], np.eye(size))
    inside = np.kron(np.eye(size // side), np.ones((side, side))) == 1
    assert (masks[-1][inside] > 0).all()
    assert (masks[-1][~inside] == 0).all()


@given(seed=st.integers(0, 999))
def test_inverse_of_a_dominant_matrix_is_bounded_by_its_margin(seed):
    matrix = 3 * np.eye(4) + np.random.default_rng(seed).uniform(-0.9, 0.9, (4, 4))
    margin = dominance_margin(matrix)
    assert np.abs(np.linalg.inv(matrix)).sum(axis=1).max() <= 1 / margin * (1 + 1e-12) if margin > 0 else True


def test_identity_without_clipping_is_the_plain_quantized_layer():
    x, weight, bias, *_ = ARGUMENTS
    none, open_ = np.zeros(4), np.full(3, 50.0)
    y = affine_quant_linear(x, weight, bias, np.eye(4), none, open_, open_)
    w = fake_quantize_range(weight, np.minimum(weight.min(axis=0), 0), np.maximum(weight.max(axis=0), 0), bits=4)
    a = fake_quantize_range(x, x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True), bits=4)
    np.testing.assert_allclose(y, a @ w + bias, rtol=1e-12)


def test_smooth_init_balances_the_ranges():
    x, weight = RNG.standard_normal((20, 4)) * np.array([0.01, 1, 10, 100]), RNG.standard_normal((4, 5))
    transform, shift = smooth_init(x, weight)
    new_x, new_weight, _ = affine_equivalent(x, weight, np.zeros(5), transform, np.zeros(4))
    np.testing.assert_allclose(np.abs(new_x).max(axis=0), np.abs(new_weight).max(axis=1))
    np.testing.assert_allclose((x - shift).max(axis=0), -(x - shift).min(axis=0), rtol=1e-9)
    assert (smooth_init(x, weight, shift=False)[1] == 0).all()
    dead = smooth_init(np.zeros((3, 2)), np.zeros((2, 2)))[0]
    assert (np.diagonal(dead) > 0).all()


def fitting(seed=0, inputs=8):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, inputs)) * np.geomspace(0.2, 5, inputs) @ rng.standard_normal((inputs, inputs))
    return x, rng.standard_normal((inputs, 6)), rng.standard_normal(6)


def test_result_of_the_fit_is_its_best_step():
    x, weight, bias = fitting()
    found = fit_affine_quant(x, weight, bias, n_epochs=4, steps_per_epoch=15)
    y = affine_quant_linear(x, weight, bias, found.transform, found.shift, found.clip_high, found.clip_low)
    loss = np.mean((y - (x @ weight + bias)) ** 2)
    assert loss == pytest.approx(found.history["loss"].min(), rel=1e-9)
    assert loss < found.history["loss"][0]
    # The folded layer is the same.
    a = (x - found.shift) @ found.inverse
    a = fake_quantize_range(a, a.min(axis=1, keepdims=True), a.max(axis=1, keepdims=True), bits=4)
    np.testing.assert_allclose(a @ found.weight + found.bias, y, rtol=1e-6, atol=1e-9 * np.abs(y).max())


def test_restricted_transforms_keep_their_zeros():
    x, weight, bias = fitting()
    diagonal = fit_affine_quant(x, weight, bias, n_epochs=2, steps_per_epoch=5, diagonal_only=True)
    assert (diagonal.transform == np.diag(np.diagonal(diagonal.transform))).all()
    blocks = fit_affine_quant(x, weight, bias, n_epochs=2, steps_per_epoch=20, block=4)
    assert (blocks.transform[:4, 4:] == 0).all()


def test_error_on_quantized_inputs_is_added():
    x, weight, bias = fitting()
    alone = fit_affine_quant(x, weight, bias, n_epochs=1, steps_per_epoch=1)
    twice = fit_affine_quant(x, weight, bias, n_epochs=1, steps_per_epoch=1, x_quantized=x)
    assert twice.history["loss"][0] == pytest.approx(2 * alone.history["loss"][0])


def test_callback_ends_the_fit():
    x, weight, bias = fitting()
    found = fit_affine_quant(
        x, weight, bias, n_epochs=3, steps_per_epoch=4, callback=lambda progress: progress.n_iter == 5
    )
    assert found.n_iter == len(found.history["margin"]) == 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_affine_quant(dtype):
    arguments = layer(RNG, dtype=dtype)
    y, pullback = affine_quant_linear_vjp(*arguments, mask=MASK)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 7
    found = fit_affine_quant(*arguments[:3], n_epochs=1, steps_per_epoch=2)
    assert {
        getattr(found, name).dtype for name in ("transform", "inverse", "shift", "clip_high", "weight", "bias")
    } == {np.dtype(dtype)}


def test_affine_quant_writes_to_no_argument():
    arguments = layer(RNG)
    for array in arguments:
        array.setflags(write=False)
    y, pullback = affine_quant_linear_vjp(*arguments, range_gradient=True)
    pullback(y)
    fit_affine_quant(*arguments[:3], n_epochs=1, steps_per_epoch=2)


X, W, B, A, S, C, D = ARGUMENTS


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: affine_equivalent(X, W, B, np.ones((4, 4)), S), ValueError, "transform: expected an invertible matrix; a smaller stability"),
        (lambda: affine_equivalent(X, W, B, np.zeros((4, 4)), S), ValueError, "transform: expected an invertible matrix"),
        (lambda: affine_equivalent(X, W, B, np.full((4, 4), np.nan), S), ValueError, "transform: expected finite values"),
        (lambda: affine_equivalent(X, W, B, A[:3], S), ValueError, r"transform: expected shape \(4, 4\), got \(3, 4\)"),
        (lambda: affine_equivalent(X, W, B, A, S[:2]), ValueError, r"shift: expected shape \(4,\), got \(2,\)"),
        (lambda: affine_equivalent(X, W, B, A, S, mask=np.ones(4)), ValueError, r"mask: expected shape \(4, 4\), got \(4,\)"),
        (lambda: affine_equivalent(X, W.astype("f4"), B, A, S), TypeError, "weight: expected dtype float64 like x, got float32"),
        (lambda: affine_quant_linear(*ARGUMENTS[:6], D[:1]), ValueError, r"clip_low: expected shape \(3,\), got \(1,\)"),
        (lambda: affine_quant_linear(*ARGUMENTS, bits=1), ValueError, "bits: expected an integer >= 2 and <= 16, got 1"),
        (lambda: gradual_mask(4, 3, 3), ValueError, "epoch: expected an integer >= 0 and <= 2, got 3"),
        (lambda: gradual_mask(4, 0, 3, block=3), ValueError, "block: expected a divisor of 4, got 3"),
        (lambda: gradual_mask(4, 0, 3, stability=0.0), ValueError, "stability: expected a finite number > 0, got 0.0"),
        (lambda: dominance_margin(np.ones((2, 3))), ValueError, r"matrix: expected shape \(2, 2\), got \(2, 3\)"),
        (lambda: smooth_init(X, W, alpha=2), ValueError, r"alpha: expected a number in \[0.0, 1.0\], got 2"),
        (lambda: smooth_init(X[:0], W), ValueError, "x: expected at least one entry"),
        (lambda: fit_affine_quant(X, W, B, weight_bits=1), ValueError, "weight_bits: expected an integer >= 2"),
        (lambda: fit_affine_quant(X, W, B, n_epochs=0), ValueError, "n_epochs: expected an integer >= 1, got 0"),
        (lambda: fit_affine_quant(X, W, B, x_quantized=X[:2]), ValueError, "x_quantized: expected shape"),
    ],
)  # fmt: skip
def test_bad_input_of_affine_quant_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
