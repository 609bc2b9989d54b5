import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import conv2d_vjp
from refnorm.quantizers import (
    Bfloat16Weight,
    LossScale,
    LossScaler,
    Precision,
    bfloat16_linear,
    bfloat16_linear_vjp,
    conv2d_lowp,
    conv2d_lowp_vjp,
    dot_error_bound,
    im2row,
    im2row_vjp,
    linear_lowp,
    linear_lowp_vjp,
    matmul_lowp,
    round_bfloat16,
    round_float16,
    round_weight_bfloat16,
    row2im,
    row2im_vjp,
    sgd_lowp_step,
    softmax_cross_entropy_lowp,
    softmax_cross_entropy_lowp_vjp,
    stochastic_round,
)
from refnorm.softmax import softmax

RNG = np.random.default_rng(1)
EXACT = Precision("float64", "float64", "float64")
MIXED = Precision("float16", "float32", "float32")
ORDERS = ("sequential", "lanes", "pairwise")


def conv_args(n, c, h, w, o, a, b):
    return RNG.standard_normal((n, c, h, w)), RNG.standard_normal((o, c, a, b)), RNG.standard_normal(o)


GRID = RNG.integers(-3, 4, (5, 4)).astype(float)
GRID_DY = RNG.integers(-3, 4, (2, 3, 4)).astype(float)


def stored_sum_vjp(x, bias):
    """The layer's outputs weighted by whole numbers: its gradients are whole numbers, which bfloat16 holds."""
    y, pullback = bfloat16_linear_vjp(x, round_weight_bfloat16(GRID), bias)
    return np.sum(GRID_DY * y), lambda g: tuple(g * each for each in pullback(GRID_DY))


def stored_sum(x, bias):
    return np.sum(GRID_DY * (x @ GRID + bias))


GRADIENT_CASES = [
    GradientCase(
        bfloat16_linear_vjp,
        (RNG.integers(-3, 4, (2, 3, 5)).astype(float), RNG.integers(-3, 4, 4).astype(float)),
        call=stored_sum_vjp,
        surrogate=stored_sum,
        name="whole numbers",
    ),
    GradientCase(im2row_vjp, (RNG.standard_normal((2, 3, 5, 4)), (3, 2)), {"stride": (2, 1), "padding": (1, 0)}, method="complex"),
    GradientCase(im2row_vjp, (RNG.standard_normal((1, 2, 4, 4)), 1), {"stride": 3}, method="complex", name="pixels left out"),
    GradientCase(row2im_vjp, (RNG.standard_normal((12, 12)), (2, 3, 4, 4), 2), {"stride": (2, 1)}, method="complex"),
    GradientCase(row2im_vjp, (RNG.standard_normal((4, 9)), (1, 1, 3, 3), 3), {"stride": 2, "padding": 1}, method="complex", name="padded"),
    GradientCase(linear_lowp_vjp, (RNG.standard_normal((3, 5)), RNG.standard_normal((4, 5)), RNG.standard_normal(4)), {"precision": EXACT}, method="complex"),
    GradientCase(linear_lowp_vjp, (RNG.standard_normal((1, 2)), RNG.standard_normal((1, 2)), None), {"precision": EXACT}, method="complex", name="no bias"),
    *(
        GradientCase(conv2d_lowp_vjp, conv_args(*shape), {"precision": EXACT, "stride": stride, "padding": padding, "input_gradient": form}, method="complex", name=f"{form}, stride {stride}, padding {padding}")
        for shape, stride, padding in (
            ((2, 2, 5, 4, 3, 3, 2), 1, 0),
            ((1, 3, 6, 7, 2, 3, 3), (2, 3), 1),
            ((2, 1, 4, 4, 2, 1, 1), 1, 0),
            ((1, 2, 3, 3, 2, 2, 2), 1, 3),
        )
        for form in ("full", "scatter")
    ),
    GradientCase(conv2d_lowp_vjp, (*conv_args(1, 1, 4, 4, 1, 2, 2)[:2], None), {"precision": EXACT}, method="complex", name="no bias"),
    GradientCase(softmax_cross_entropy_lowp_vjp, (RNG.standard_normal((3, 4)), RNG.random((3, 4)), "float64"), method="complex"),
    GradientCase(softmax_cross_entropy_lowp_vjp, (30 * RNG.standard_normal((2, 3)), np.eye(3)[:2], "float64"), method="complex", name="confident"),
]  # fmt: skip


@given(st.floats(allow_nan=True, allow_infinity=True, width=64))
def test_rounding_to_float16_is_numpys_conversion_and_idempotent(value):
    y = round_float16(np.array([value]))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, np.array([value]).astype(np.float16).astype(np.float64))
    np.testing.assert_array_equal(round_float16(y), y)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_rounding_to_bfloat16_is_addition_of_half_and_cutting(value):
    x = np.array([value], dtype=np.float32)
    word = x.view(np.uint32).astype(np.uint64)
    cut = ((word + 0x7FFF + ((word >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)).astype(np.uint32)
    np.testing.assert_array_equal(round_bfloat16(x).view(np.uint32), cut)
    np.testing.assert_array_equal(round_bfloat16(x.astype(np.float64)), round_bfloat16(x))


def test_float64_is_rounded_once_where_float32_in_between_would_make_a_tie():
    x = 1 + 2.0**-8 + 2.0**-40
    assert round_bfloat16(np.array(x)) == 1 + 2.0**-7
    assert round_bfloat16(np.array(x).astype(np.float32)) == 1


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float32"])
@given(seed=st.integers(0, 999), exponent=st.integers(-30, 14))
def test_stochastic_rounding_draws_a_neighbour_and_keeps_numbers_of_the_format(storage, seed, exponent):
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.standard_normal(20), exponent)
    y = stochastic_round(x, storage, rng=rng)
    np.testing.assert_array_equal(stochastic_round(y, storage, rng=rng), y)
    digits, lowest = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126)}[storage]
    distance = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(x))), lowest) - digits + 1)
    assert (np.abs(y - x) < distance).all()


def test_stochastic_rounding_is_unbiased():
    x = np.array([1 + 2.0**-13, -3e-8, 100.03])
    draws = stochastic_round(np.tile(x, (20000, 1)), rng=np.random.default_rng(0))
    error = np.abs(draws.mean(axis=0) - x) / (draws.std(axis=0) / np.sqrt(20000))
    assert (error < 5).all()


def test_stochastic_rounding_handles_the_ends_of_the_range():
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 70000.0])
    y = stochastic_round(x, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(y, [np.inf, -np.inf, np.nan, 0, 0, np.inf])
    assert np.signbit(y[4])


@given(
    seed=st.integers(0, 999), stride=st.integers(1, 3), padding=st.integers(0, 2), size=st.integers(1, 3)
)  # fmt: skip
def test_row2im_is_the_adjoint_of_im2row(seed, stride, padding, size):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, 5, 4))
    rows = im2row(x, size, stride=stride, padding=padding)
    q = rng.standard_normal(rows.shape)
    back = row2im(q, x.shape, size, stride=stride, padding=padding)
    np.testing.assert_allclose((rows * q).sum(), (x * back).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@given(seed=st.integers(0, 999), terms=st.integers(1, 70), fused=st.booleans())
def test_products_stay_within_the_bound(order, seed, terms, fused):
    rng = np.random.default_rng(seed)
    a, b = (round_float16(rng.standard_normal(shape) + 2) for shape in ((2, terms), (terms, 3)))
    error = np.abs(matmul_lowp(a, b, order=order, fused=fused) - a @ b)
    # Products below the normal numbers (2^-14) may lose half of the smallest number each.
    allowed = dot_error_bound(terms, 2.0**-11, order) * (np.abs(a) @ np.abs(b)) + terms * 2.0**-25
    assert (error <= allowed).all()


@pytest.mark.parametrize("order", ORDERS)
def test_order_and_fusion_decide_about_the_result(order):
    a, b = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), np.ones((5, 1))
    assert matmul_lowp(a, b, order=order) == 15
    # (1 + 2^-10)^2 - (1 + 2^-9) = 2^-20, which the rounding of the product removes.
    x = 1 + 2.0**-10
    a, b = np.array([[-1 - 2.0**-9, x]]), np.array([[1.0], [x]])
    assert matmul_lowp(a, b, order=order) == 0
    assert matmul_lowp(a, b, order="sequential", fused=True) == 2.0**-20


@pytest.mark.parametrize("terms", [0, 1, 2, 3, 6, 7])
def test_all_orders_agree_on_sums_without_rounding(terms):
    a, b = RNG.integers(-4, 5, (3, terms)).astype(np.float64), RNG.integers(-4, 5, (terms, 2)).astype(np.float64)
    for order in ORDERS:
        for precision in (Precision(), MIXED, Precision("bfloat16", "float16", "float32"), EXACT):
            np.testing.assert_array_equal(matmul_lowp(a, b, order=order, precision=precision), a @ b)


def test_wide_accumulator_rounds_the_result_only():
    a, b = round_float16(RNG.standard_normal((4, 300))), round_float16(RNG.standard_normal((300, 2)))
    y = matmul_lowp(a, b, precision=MIXED)
    assert (np.abs(y - a @ b) <= 2.0**-11 * np.abs(a @ b) + 300 * 2.0**-24 * (np.abs(a) @ np.abs(b))).all()
    np.testing.assert_array_equal(y, round_float16(y))


def test_overflow_becomes_infinity_without_a_warning():
    assert matmul_lowp(np.full((1, 2), 300.0), np.full((2, 1), 300.0)) == np.inf
    assert linear_lowp(np.full((1, 1), 60000.0), np.ones((1, 1)), np.array([60000.0])) == np.inf


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_both_input_gradients_and_the_exact_convolution_agree_on_small_integers(stride, padding):
    rng = np.random.default_rng(stride + padding)
    x, weight, bias = (rng.integers(-3, 4, s).astype(np.float64) for s in ((2, 2, 6, 5), (3, 2, 3, 2), (3,)))
    y, back = conv2d_lowp_vjp(x, weight, bias, stride=stride, padding=padding)
    _, scattered = conv2d_lowp_vjp(x, weight, bias, stride=stride, padding=padding, input_gradient="scatter")
    truth, exact = conv2d_vjp(x, weight, bias, stride=stride, padding=padding)
    dy = rng.integers(-2, 3, y.shape).astype(np.float64)
    np.testing.assert_array_equal(y, truth)
    for got, also, wanted in zip(back(dy), scattered(dy), exact(dy), strict=True):
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(also, wanted)


def test_weight_gradient_over_many_pixels_is_swamped_and_the_forward_sum_is_not():
    x, weight = np.ones((1, 1, 64, 64)), np.ones((1, 1, 1, 1))
    _, back = conv2d_lowp_vjp(x, weight, np.zeros(1))
    _, dweight, dbias = back(np.ones((1, 1, 64, 64)))
    assert dweight == 2048
    assert dbias == 2048
    assert linear_lowp(np.ones((1, 4096)), np.ones((1, 4096))) == 4096


@given(seed=st.integers(0, 999))
def test_gradient_of_the_loss_is_within_one_rounding(seed):
    rng = np.random.default_rng(seed)
    logits, target = round_float16(rng.standard_normal((1, 5))), np.eye(5)[[seed % 5]]
    loss, back = softmax_cross_entropy_lowp_vjp(logits, target)
    exact = softmax(logits) - target
    assert (np.abs(back(np.array(1.0))[0] - exact) <= 2.0**-11 * np.abs(exact) + 2.0**-25).all()
    assert loss == softmax_cross_entropy_lowp(logits, target) == round_float16(loss)


def test_scale_of_the_loss_saves_small_gradients():
    logits, target = np.zeros((1, 2)), np.array([[1.0, 0.0]])
    _, back = softmax_cross_entropy_lowp_vjp(logits, target)
    assert (back(np.array(1e-8))[0] == 0).all()
    scaler = LossScaler(initial=2.0**15)
    state = scaler.init()
    (dlogits, _) = back(scaler.scale(np.array(1e-8), state))
    grads, finite = scaler.unscale({"logits": dlogits, "none": None}, state)
    assert finite
    np.testing.assert_allclose(grads["logits"], [[-5e-9, 5e-9]], rtol=2.0**-10)


def test_scaler_halves_at_overflow_doubles_after_good_steps_and_stops_at_the_ends():
    scaler = LossScaler(initial=8.0, growth_interval=2, largest=16.0)
    state = scaler.update(scaler.init(), True)
    assert state == LossScale(8.0, 1)
    assert scaler.update(state, False) == LossScale(4.0, 0)
    state = scaler.update(state, True)
    assert state == LossScale(16.0, 0)
    assert scaler.update(LossScale(16.0, 1), True) == LossScale(16.0, 0)
    assert scaler.update(LossScale(2.0**-24), False).scale == 2.0**-24
    assert LossScaler(dynamic=False).update(LossScale(4.0), False) == LossScale(4.0)
    assert not scaler.unscale([np.array([1.0, np.nan])], state)[1]


def test_small_steps_are_lost_in_16_bits_but_not_in_a_copy_or_on_average():
    weight, grad = np.ones(4000), np.full(4000, 0.1)
    low, _ = sgd_lowp_step(weight, grad, learning_rate=1e-3)
    np.testing.assert_array_equal(low, weight)
    master = weight
    for _ in range(10):
        low, master = sgd_lowp_step(low, grad, learning_rate=1e-3, master=master)
    np.testing.assert_allclose(master, 1 - 1e-3, rtol=1e-12)
    np.testing.assert_array_equal(low, round_float16(master))
    drawn, _ = sgd_lowp_step(
        weight, grad, learning_rate=1e-3, rounding="stochastic", rng=np.random.default_rng(0)
    )  # fmt: skip
    assert set(drawn.tolist()) == {1.0, 1 - 2.0**-11}
    assert abs(drawn.mean() - (1 - 1e-4)) < 5 * drawn.std() / np.sqrt(4000)


def test_weight_decay_is_rounded_as_written():
    weight, grad = np.array([3.0]), np.array([0.3])
    g = round_float16(round_float16(grad) + round_float16(0.01 * weight))
    expected = round_float16(weight - round_float16(0.1 * g))
    np.testing.assert_array_equal(sgd_lowp_step(weight, grad, learning_rate=0.1, weight_decay=0.01)[0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_nothing_is_written(dtype):
    x, weight, bias = (array.astype(dtype) for array in conv_args(1, 2, 4, 4, 3, 2, 2))
    matrix, target = np.asarray(x.reshape(8, 4)), np.eye(4, dtype=dtype)[[0] * 8]
    for array in (x, weight, bias, target):
        array.setflags(write=False)
    for precision in (Precision(), MIXED, EXACT):
        y, back = conv2d_lowp_vjp(x, weight, bias, precision=precision)
        assert {y.dtype, *(entry.dtype for entry in back(y))} == {np.dtype(dtype)}
        z, back = linear_lowp_vjp(matrix, matrix, np.zeros(8, dtype), precision=precision)
        assert {z.dtype, *(entry.dtype for entry in back(z))} == {np.dtype(dtype)}
    loss, back = softmax_cross_entropy_lowp_vjp(matrix, target)
    assert {loss.dtype, *(entry.dtype for entry in back(loss))} == {np.dtype(dtype)}
    low, master = sgd_lowp_step(bias, bias, learning_rate=0.1, master=bias)
    results = [round_float16(x), round_bfloat16(x), stochastic_round(x, rng=np.random.default_rng(0)), low, master]
    results += [im2row(x, 2), row2im(im2row(x, 2), x.shape, 2)]
    assert {result.dtype for result in results} == {np.dtype(dtype)}
    np.testing.assert_array_equal(conv2d_lowp(x, weight, bias).astype(dtype), conv2d_lowp_vjp(x, weight, bias)[0])


X, W = np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Precision("int8"), ValueError, "storage: expected one of 'float16', 'bfloat16', 'float32', 'float64', got 'int8'"),
        (lambda: round_float16(np.arange(2)), TypeError, "x: expected a float32 or float64 array, got dtype int64"),
        (lambda: stochastic_round(X, "float64", rng=RNG), ValueError, "storage: expected one of 'float16', 'bfloat16', 'float32', got 'float64'"),
        (lambda: stochastic_round(X, rng=0), TypeError, "rng: expected a numpy.random.Generator (numpy.random.default_rng(seed)), got int"),
        (lambda: im2row(X, 3), ValueError, "x: expected padded images of at least 3 x 3 pixels, got (2, 2)"),
        (lambda: im2row(X, 0), ValueError, "kernel: expected an integer >= 1, got 0"),
        (lambda: row2im(ONES, (1, 1, 2), 2), ValueError, "shape: expected four sizes (N, C, H, W), got (1, 1, 2)"),
        (lambda: row2im(ONES, (1, 1, 1, 2), 2), ValueError, "shape: expected padded images of at least 2 x 2 pixels, got (1, 2)"),
        (lambda: row2im(ONES, (1, 1, 2, 2), 2), ValueError, "rows: expected shape (1, 4), got (2, 3)"),
        (lambda: matmul_lowp(ONES, ONES), ValueError, "b: expected shape (3, 3), got (2, 3)"),
        (lambda: matmul_lowp(ONES, ONES.T, order="tree"), ValueError, "order: expected one of 'sequential', 'lanes', 'pairwise', got 'tree'"),
        (lambda: matmul_lowp(ONES, ONES.T.astype(np.float32)), TypeError, "b: expected dtype float64 like a, got float32"),
        (lambda: linear_lowp(ONES, np.ones((2, 2))), ValueError, "x: expected shape (2, 2), got (2, 3)"),
        (lambda: linear_lowp(ONES, ONES, np.ones(3)), ValueError, "bias: expected shape (2,), got (3,)"),
        (lambda: conv2d_lowp(X, np.ones((1, 2, 2, 2))), ValueError, "x: expected shape (1, 2, 2, 2), got (1, 1, 2, 2)"),
        (lambda: conv2d_lowp_vjp(X, W, input_gradient="fft"), ValueError, "input_gradient: expected one of 'full', 'scatter', got 'fft'"),
        (lambda: softmax_cross_entropy_lowp(ONES, np.ones((2, 2))), ValueError, "target: expected shape (2, 3), got (2, 2)"),
        (lambda: softmax_cross_entropy_lowp(ONES, ONES, "half"), ValueError, "storage: expected one of 'float16', 'bfloat16', 'float32', 'float64', got 'half'"),
        (lambda: LossScaler(initial=0.0), ValueError, "initial: expected a finite number > 0, got 0.0"),
        (lambda: LossScaler(initial=4.0, largest=2.0), ValueError, "initial: expected a number <= largest = 2.0, got 4.0"),
        (lambda: sgd_lowp_step(ONES, ONES[0], learning_rate=0.1), ValueError, "grad: expected shape (2, 3), got (3,)"),
        (lambda: sgd_lowp_step(ONES, ONES, learning_rate=0.0), ValueError, "learning_rate: expected a finite number > 0, got 0.0"),
        (lambda: sgd_lowp_step(ONES, ONES, learning_rate=0.1, rounding="stochastic"), TypeError, "rng: expected a numpy.random.Generator (numpy.random.default_rng(seed)), got NoneType"),
        (lambda: dot_error_bound(0, 0.1), ValueError, "terms: expected an integer >= 1, got 0"),
        (lambda: dot_error_bound(2048, 2.0**-11), ValueError, "terms: expected fewer than 1 / unit_roundoff = 2048 roundings, got 2048"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@given(st.integers(0, 6), st.integers(1, 40), st.integers(0, 5), st.booleans(), st.integers(0, 99))
def test_layer_on_stored_weights_is_the_layer_on_floats(rows, inputs, outputs, wide, seed):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if wide else np.float32
    x, weight = rng.standard_normal((rows, inputs)).astype(dtype), rng.standard_normal((inputs, outputs)).astype(dtype)
    bias, dy = rng.standard_normal(outputs).astype(dtype), rng.standard_normal((rows, outputs)).astype(dtype)
    stored, precision = round_weight_bfloat16(weight), Precision("bfloat16", "float32", "float32")
    y, pullback = bfloat16_linear_vjp(x, stored, bias)
    expected, expected_pullback = linear_lowp_vjp(x, np.ascontiguousarray(weight.T), bias, precision=precision)
    assert y.dtype == dtype
    # Sums of another order may end on the other side of a middle: one number of bfloat16 apart.
    np.testing.assert_allclose(y, expected, rtol=2.0**-7, atol=1e-5)
    dx, _, dbias = expected_pullback(dy)
    np.testing.assert_allclose(pullback(dy)[0], dx, rtol=2.0**-7, atol=1e-5)
    np.testing.assert_allclose(pullback(dy)[1], dbias, rtol=2.0**-7, atol=1e-5)
    assert bfloat16_linear_vjp(x, stored)[1](dy)[1] is None


def test_bad_stored_weights():
    stored = round_weight_bfloat16(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 3\) like weight, got \(1, 4\)"):
        bfloat16_linear(np.ones((1, 4)), stored)
    with pytest.raises(TypeError, match="weight.bits: expected a uint16 matrix"):
        bfloat16_linear(np.ones((1, 3)), Bfloat16Weight(stored.bits.astype(np.int16)))
    with pytest.raises(ValueError, match=r"bias: expected shape \(2,\)"):
        bfloat16_linear(np.ones((1, 3)), stored, np.ones(3))
    with pytest.raises(ValueError, match="weight: expected 2 dimensions"):
        round_weight_bfloat16(np.ones(3))
