import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import gelu, relu
from refnorm.quantizers import (
    Int8Weight,
    absmax_quantize,
    int8_matmul,
    int8_matmul_trainable,
    int8_matmul_trainable_vjp,
    llm_int8_linear,
    llm_int8_linear_vjp,
    matmul_rowwise,
    matmul_tensorwise,
    matmul_vectorwise,
    matmul_zeropoint,
    outlier_features,
    quantize_weight,
    vectorwise_quantize,
    zeropoint_quantize,
)

RNG = np.random.default_rng(1)
MOST_TERMS = 133_144


def with_outliers(rng, rows, columns, outliers, dtype=np.float64):
    x = rng.standard_normal((rows, columns))
    x[:, rng.choice(columns, outliers, replace=False)] *= 30
    return x.astype(dtype)


def dequantized(weight):
    return weight.q.T * weight.scale / 127


X, W, BIAS = with_outliers(RNG, 6, 10, 2), RNG.standard_normal((10, 4)), RNG.standard_normal(4)
PACKED = quantize_weight(W)
RESIDUAL = RNG.standard_normal((6, 4))
ZERO_ROW = np.concatenate([np.zeros((1, 10)), X])


def layer(x, weight, bias=None, **_):
    """The layer whose exact gradient the straight-through pullback is."""
    product = x @ dequantized(weight)
    return product if bias is None else product + bias


def layer_with_float_outliers(x, weight, bias=None, **_):
    effective = dequantized(weight)
    outliers = (np.abs(X) >= 6).any(axis=0)
    effective[outliers] = W[outliers]
    return x @ effective + bias


def with_scale(x, scale, bias, **options):
    return llm_int8_linear_vjp(x, Int8Weight(PACKED.q, scale, PACKED.col_sum), bias, scale_gradient=True, **options)


def scale_surrogate(x, scale, bias, *, threshold, outlier_weights="dequantized", w_float=None):
    # Codes and row constants held at X: the layer moves linearly with x, and with the column constants.
    q, c, outliers = vectorwise_quantize(X, threshold=threshold)
    held = q * c[:, None] / 127
    if w_float is None:
        held[:, outliers] = X[:, outliers]
        return (x - X + held) @ (PACKED.q.T * scale / 127) + bias
    effective = PACKED.q.T * scale / 127
    regular = np.setdiff1d(np.arange(10), outliers)
    part = (x - X + held)[:, regular] @ effective[regular]
    return part + x[:, outliers] @ w_float[outliers] + bias


def with_residual(x, weight, bias, residual, **options):
    return llm_int8_linear_vjp(x, weight, bias, residual=residual, **options)


def activated(x, weight, bias, residual=0.0, *, activation=None, **_):
    # The slope of an activation is taken at the rounded sum of X, around which the layer moves linearly.
    summed = llm_int8_linear(X, PACKED, BIAS) + layer(x - X, weight) + (bias - BIAS)
    functions = {None: np.asarray, "relu": relu, "gelu": gelu, "gelu_tanh": lambda z: gelu(z, approximate="tanh")}
    return functions[activation](summed) + residual


# Numbers on an int8 grid in every row and column, so that nothing is rounded: the int8 gradient is exact there.
CODES_X = RNG.integers(-126, 127, (5, 6)).astype(np.float64)
CODES_X[2], CODES_X[:, 1] = 127, -127
CODES_W = RNG.integers(-126, 127, (6, 3)).astype(np.float64)
CODES_W[0] = 127
CODES_DY = RNG.integers(-126, 127, (5, 3)).astype(np.float64)
CODES_DY[4] = -127
GRID_X, GRID_W = CODES_X / 64 * 2.0 ** np.array([0, -3, 1, 2, -1, 0]), CODES_W / 128


def weighted_sum_vjp(x, weight, *, threshold):
    y, pullback = int8_matmul_trainable_vjp(x, weight, threshold=threshold)
    return np.sum(CODES_DY * y), lambda g: pullback(g * CODES_DY)


def weighted_sum(x, weight, **_):
    return np.sum(CODES_DY * (x @ weight))


GRADIENT_CASES = [
    GradientCase(llm_int8_linear_vjp, (X, PACKED, BIAS), surrogate=layer, name="outliers"),
    GradientCase(llm_int8_linear_vjp, (X, PACKED, None), {"threshold": 0.0}, surrogate=layer, name="no threshold"),
    GradientCase(llm_int8_linear_vjp, (X.reshape(2, 3, 10), PACKED, BIAS), surrogate=layer, name="leading axes"),
    GradientCase(llm_int8_linear_vjp, (X[0], PACKED, BIAS), {"row_stats": "columns"}, surrogate=layer, name="vector"),
    GradientCase(llm_int8_linear_vjp, (ZERO_ROW, PACKED, BIAS), surrogate=layer, name="row of zeros"),
    GradientCase(
        llm_int8_linear_vjp,
        (X, PACKED, BIAS),
        {"outlier_weights": "float", "w_float": W},
        surrogate=layer_with_float_outliers,
        name="float outlier weights",
    ),
    GradientCase(
        llm_int8_linear_vjp,
        (X, PACKED.scale, BIAS),
        {"threshold": 6.0},
        call=with_scale,
        surrogate=scale_surrogate,
        name="column constants",
    ),
    GradientCase(
        llm_int8_linear_vjp,
        (X, PACKED.scale, BIAS),
        {"threshold": 6.0, "outlier_weights": "float", "w_float": W},
        call=with_scale,
        surrogate=scale_surrogate,
        name="column constants, float outlier weights",
    ),
    *(
        GradientCase(
            llm_int8_linear_vjp,
            (X, PACKED, BIAS),
            {"activation": activation},
            surrogate=activated,
            name=activation,
        )
        for activation in ("gelu", "gelu_tanh", "relu")
    ),
    *(
        GradientCase(
            llm_int8_linear_vjp,
            (X, PACKED, BIAS, RESIDUAL),
            {"activation": activation},
            call=with_residual,
            surrogate=activated,
            name=f"residual, {activation}",
        )
        for activation in (None, "gelu")
    ),
    GradientCase(
        int8_matmul_trainable_vjp,
        (GRID_X, GRID_W),
        {"threshold": 0.0},
        call=weighted_sum_vjp,
        surrogate=weighted_sum,
        name="on the grid",
    ),
    GradientCase(
        int8_matmul_trainable_vjp,
        (GRID_X, GRID_W),
        {"threshold": 6.0},
        call=weighted_sum_vjp,
        surrogate=weighted_sum,
        name="on the grid, outliers",
    ),
]


@given(
    rows=st.integers(0, 6),
    columns=st.integers(0, 40),
    outputs=st.integers(0, 6),
    outliers=st.integers(0, 3),
    row_stats=st.sampled_from(["elements", "columns"]),
    seed=st.integers(0, 999),
)
def test_error_is_at_most_half_a_code_per_operand(rows, columns, outputs, outliers, row_stats, seed):
    rng = np.random.default_rng(seed)
    x = with_outliers(rng, rows, columns, min(outliers, columns))
    w, bias = rng.standard_normal((columns, outputs)), rng.standard_normal(outputs)
    weight = quantize_weight(w)
    y = llm_int8_linear(x, weight, bias, row_stats=row_stats, outlier_weights="float", w_float=w)
    _, c, cut = vectorwise_quantize(x, threshold=6.0, row_stats=row_stats)
    regular = np.setdiff1d(np.arange(columns), cut)
    bound = (
        c[:, None] / 254 * np.abs(w[regular]).sum(axis=0)
        + weight.scale / 254 * np.abs(x[:, regular]).sum(axis=1, keepdims=True)
        + len(regular) * c[:, None] * weight.scale / 254**2
    )
    assert (np.abs(y - (x @ w + bias)) <= bound * (1 + 1e-12) + 1e-12).all()


def test_the_half_code_bound_is_approached():
    # In codes, 1.5 is rounded to 2 in both factors; the largest entries, which are exact, meet zeros.
    others = 20_000
    x = np.array([[127.0, 0.0] + [1.5] * others])
    w = np.array([[0.0, 127.0] + [1.5] * others]).T
    error = float((matmul_vectorwise(x, w) - x @ w)[0, 0])
    assert error == pytest.approx(1.75 * others, rel=1e-12)
    bound = 0.5 * np.abs(w).sum() + 0.5 * np.abs(x).sum() + 0.25 * x.size
    assert 0.99 < error / bound < 1


@given(rows=st.integers(0, 5), terms=st.integers(0, 300), outputs=st.integers(0, 5), seed=st.integers(0, 99))
def test_integer_product_is_exact(rows, terms, outputs, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-127, 128, (n, terms), dtype=np.int8) for n in (rows, outputs))
    product = int8_matmul(a, b)
    assert product.dtype == np.int32
    np.testing.assert_array_equal(product, a.astype(np.int64) @ b.astype(np.int64).T)


def test_integer_product_is_exact_at_the_longest_sum():
    a, b = np.full((1, MOST_TERMS), 127, np.int8), np.full((2, MOST_TERMS), 127, np.int8)
    b[1] = -127
    assert int8_matmul(a, b).tolist() == [[127**2 * MOST_TERMS, -(127**2) * MOST_TERMS]]


@given(seed=st.integers(0, 99), exponents=st.tuples(st.integers(-30, 30), st.integers(-30, 30)))
def test_powers_of_two_pass_through(seed, exponents):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((3, 8)), rng.standard_normal((8, 2))
    left, right = 2.0 ** np.array(exponents)
    np.testing.assert_array_equal(matmul_vectorwise(left * x, right * w), left * right * matmul_vectorwise(x, w))


@given(seed=st.integers(0, 99))
def test_order_of_the_inputs_and_zero_columns_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    x, w = with_outliers(rng, 4, 12, 2), rng.standard_normal((12, 3))
    order = rng.permutation(12)
    longer = np.concatenate([x, np.zeros((4, 5))], axis=1), np.concatenate([w, np.zeros((5, 3))])
    y = llm_int8_linear(x, quantize_weight(w))
    np.testing.assert_allclose(llm_int8_linear(x[:, order], quantize_weight(w[order])), y, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(llm_int8_linear(longer[0], quantize_weight(longer[1])), y, rtol=1e-13, atol=1e-13)


def test_rows_are_independent_where_the_outlier_columns_agree():
    x = with_outliers(RNG, 8, 30, 3)
    weight = quantize_weight(RNG.standard_normal((30, 5)))
    x[:, np.abs(x).max(axis=0) >= 6] = 7.0
    whole = llm_int8_linear(x, weight)
    np.testing.assert_allclose(llm_int8_linear(x[2:5], weight), whole[2:5], rtol=1e-13)


def test_row_statistics_differ_by_the_ordinary_entries_of_outlier_columns():
    x = np.array([[1.0, 5.0], [2.0, 9.0]])
    assert vectorwise_quantize(x, threshold=6.0)[1].tolist() == [5, 2]
    assert vectorwise_quantize(x, threshold=6.0, row_stats="columns")[1].tolist() == [1, 2]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_and_residual_follow_the_sum(activation, dtype):
    functions = {None: np.asarray, "relu": relu, "gelu": gelu, "gelu_tanh": lambda z: gelu(z, approximate="tanh")}
    x, bias, residual = X.astype(dtype), BIAS.astype(dtype), RESIDUAL.astype(dtype)
    packed = quantize_weight(W.astype(dtype))
    y = llm_int8_linear(x.reshape(2, 3, 10), packed, bias, activation=activation, residual=residual.reshape(2, 3, 4))
    assert y.dtype == dtype
    composed = functions[activation](llm_int8_linear(x, packed, bias)) + residual
    # The fused layer rounds once, the composition up to three times.
    np.testing.assert_allclose(y.reshape(6, 4), composed, rtol=0, atol=4 * np.finfo(dtype).eps * np.abs(composed).max())
    plain = llm_int8_linear(x, packed, bias, activation=activation)
    np.testing.assert_array_equal(plain, llm_int8_linear(x, packed, bias, activation=activation, residual=residual * 0))


def test_pullback_with_scale_gradient_and_residual_has_four_parts():
    pullback = llm_int8_linear_vjp(X, PACKED, BIAS, scale_gradient=True, activation="gelu", residual=RESIDUAL)[1]
    dx, dscale, dbias, dresidual = pullback(RESIDUAL)
    assert (dx.shape, dscale.shape, dbias.shape) == (X.shape, (4,), (4,))
    np.testing.assert_array_equal(dresidual, RESIDUAL)
    assert not np.shares_memory(dresidual, RESIDUAL)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "activation"),
        ({"residual": RESIDUAL[:, :3]}, ValueError, "residual"),
        ({"residual": RESIDUAL[0]}, ValueError, "residual"),
        ({"residual": RESIDUAL.astype(np.float32)}, TypeError, "residual"),
    ],
)
def test_bad_activation_or_residual(options, error, message):
    for function in (llm_int8_linear, llm_int8_linear_vjp):
        with pytest.raises(error, match=message):
            function(X, PACKED, BIAS, **options)


def test_threshold_itself_is_an_outlier():
    q, c, outliers = vectorwise_quantize(np.array([[6.0, np.nextafter(6.0, 0)]]), threshold=6.0)
    assert outliers.tolist() == [0]
    assert q.tolist() == [[0, 127]]
    assert c[0] < 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_rows_tiny_rows_and_huge_rows(dtype):
    info = np.finfo(dtype)
    x = np.zeros((4, 3), dtype)
    x[1] = info.smallest_subnormal * np.array([1, -2, 4])
    x[2] = info.tiny * np.array([1, -2, 4])
    x[3] = info.max / 2 * np.array([0.25, -0.5, 1])
    q, c, _ = vectorwise_quantize(x)
    assert q.tolist() == [[0, 0, 0], [32, -64, 127], [32, -64, 127], [32, -64, 127]]
    assert c[0] == 0
    y = llm_int8_linear(x, quantize_weight(np.eye(3, dtype=dtype)), threshold=0.0)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[2:], q[2:] / dtype(127) * c[2:, None], rtol=4 * info.eps)


def test_outlier_row_alone_gives_outlier_part_and_bias():
    weight = quantize_weight(np.array([[1.0], [3.0]]))
    assert llm_int8_linear(np.array([[0.0, 10.0]]), weight, np.array([0.5])) == pytest.approx(30.5)


def test_empty_inputs():
    weight = quantize_weight(np.zeros((3, 0)))
    assert llm_int8_linear(np.ones((2, 3)), weight).shape == (2, 0)
    no_terms = quantize_weight(np.zeros((0, 2)))
    y, pullback = llm_int8_linear_vjp(np.ones((4, 0)), no_terms, np.array([1.0, 2.0]))
    assert y.tolist() == [[1, 2]] * 4
    assert [entry.shape for entry in pullback(y)] == [(4, 0), (2,)]
    y, pullback = llm_int8_linear_vjp(np.ones((0, 3)), quantize_weight(np.ones((3, 2))), np.zeros(2))
    assert y.shape == (0, 2)
    assert pullback(y)[1].tolist() == [0, 0]
    y, pullback = int8_matmul_trainable_vjp(np.ones((0, 3)), np.ones((3, 2)))
    assert pullback(y)[1].tolist() == np.zeros((3, 2)).tolist()


def test_pullback_agrees_with_a_coarse_finite_difference():
    # Steps of many codes average the staircase. The largest entry of the row is held, and with it the row constant.
    rng = np.random.default_rng(3)
    x, w = rng.uniform(-1, 1, (1, 400)), rng.standard_normal((400, 64))
    x[0, 0] = 4.0
    weight = quantize_weight(w)
    y, pullback = llm_int8_linear_vjp(x, weight)
    expected = dequantized(weight)
    np.testing.assert_allclose(pullback(np.ones_like(y))[0], expected.sum(axis=1)[None], rtol=1e-12)
    direction = np.where(x == 4.0, 0, rng.choice([-1.0, 1.0], x.shape))
    steps = rng.uniform(1.0, 2.0, 50)
    slopes = [
        (llm_int8_linear(x + h * direction, weight) - llm_int8_linear(x - h * direction, weight)) / (2 * h)
        for h in steps
    ]
    true = direction @ expected
    assert np.linalg.norm(np.mean(slopes, axis=0) - true) < 0.05 * np.linalg.norm(true)


@given(seed=st.integers(0, 99))
def test_int8_weight_gradient_is_within_half_a_code_per_operand(seed):
    rng = np.random.default_rng(seed)
    x, w, dy = with_outliers(rng, 9, 7, 2), rng.standard_normal((7, 3)), rng.standard_normal((9, 3))
    _, pullback = int8_matmul_trainable_vjp(x, w)
    dw = pullback(dy)[1]
    outliers = (np.abs(x) >= 6).any(axis=0)
    np.testing.assert_allclose(dw[outliers], x[:, outliers].T @ dy, rtol=1e-12)
    cx, cg = np.abs(x).max(axis=0)[:, None], np.abs(dy).max(axis=0)
    bound = cx / 254 * np.abs(dy).sum(axis=0) + cg / 254 * np.abs(x).sum(axis=0)[:, None] + len(x) * cx * cg / 254**2
    error = np.abs(dw - x.T @ dy)
    assert (error <= bound * (1 + 1e-12)).all()
    assert error[~outliers].max(initial=0) > 0 or outliers.all()


def test_trainable_forward_is_the_decomposed_product_with_float_outlier_weights():
    expected = llm_int8_linear(X, PACKED, outlier_weights="float", w_float=W)
    np.testing.assert_array_equal(int8_matmul_trainable(X, W), expected)
    assert int8_matmul_trainable(X.reshape(2, 3, 10), W).shape == (2, 3, 4)


@given(offset=st.floats(-1e3, 1e3), spread=st.floats(1e-6, 10), seed=st.integers(0, 99))
def test_zero_point_codes_return_within_half_a_code(offset, spread, seed):
    x = offset + spread * np.random.default_rng(seed).uniform(-1, 1, 12)
    q, n, z = zeropoint_quantize(x)
    span = x.max() - x.min()
    if span < np.abs(x).max() / 2**14:
        span = max(x.max(), 0) - min(x.min(), 0)
    # Half a code, and half a code more where the rounded zero point pushes an end off the grid.
    assert np.abs((q - z) / n - x).max() <= span / 254 * (1 + 1e-6)


def test_zero_point_uses_the_whole_grid_of_one_sided_data():
    x = np.abs(RNG.standard_normal((40, 60)))
    w = RNG.standard_normal((60, 20))
    q, _, _ = zeropoint_quantize(x)
    assert (q.min(), q.max()) == (-127, 127)
    # One factor on twice as fine a grid: only its half of the error shrinks, so compare that factor alone.
    zero_point_error, absmax_error = (
        np.abs(x_hat - x).max()
        for x_hat in (
            (q - zeropoint_quantize(x)[2]) / zeropoint_quantize(x)[1],
            absmax_quantize(x)[0] * absmax_quantize(x)[1] / 127,
        )
    )
    assert zero_point_error < 0.6 * absmax_error
    assert np.abs(matmul_zeropoint(x, w) - x @ w).max() < 1


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-320, 1e300])
def test_zero_point_of_a_constant(value):
    q, n, z = zeropoint_quantize(np.full((2, 2), value))
    np.testing.assert_allclose((q - z) / n, value, rtol=1e-2, atol=1e-300)


@pytest.mark.parametrize("product", [matmul_tensorwise, matmul_rowwise, matmul_vectorwise, matmul_zeropoint])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_for_comparison_are_near_the_float_product(product, dtype):
    x, w = RNG.standard_normal((8, 32)).astype(dtype), RNG.standard_normal((32, 5)).astype(dtype)
    y = product(x, w)
    assert y.dtype == dtype
    assert np.linalg.norm(y - x @ w) < 0.05 * np.linalg.norm(x @ w)


def test_outlier_features_need_layers_and_positions():
    hidden = [np.zeros((50, 5)) for _ in range(4)]
    for layer_values in hidden:
        layer_values[0, 0] = 100.0  # in all layers, but at one position of 50
        layer_values[:3, 3] = -6.0  # exactly 6 % of the positions of every layer
    hidden[2][:, 1] = 9.0  # all positions of one layer in four
    hidden[1][:, 2] = 5.999
    assert outlier_features(hidden).tolist() == [1, 3]
    assert outlier_features(hidden, layer_fraction=0.26).tolist() == [3]
    assert outlier_features(hidden, 5.0, 0.25, 0.0).tolist() == [0, 1, 2, 3]
    assert outlier_features(hidden, 5.0, 0.0, 0.0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_for_llm_int8(dtype):
    x, w, bias = (a.astype(dtype) for a in (X, W, BIAS))
    weight = quantize_weight(w)
    assert (weight.q.dtype, weight.scale.dtype, weight.col_sum.dtype) == (np.int8, dtype, np.int32)
    assert weight.q.flags.c_contiguous
    y, pullback = llm_int8_linear_vjp(x, weight, bias, scale_gradient=True)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3
    y, pullback = int8_matmul_trainable_vjp(x, w)
    assert [entry.dtype for entry in (y, *pullback(y))] == [dtype] * 3
    q, c, outliers = vectorwise_quantize(x, threshold=6.0)
    assert (q.dtype, c.dtype, outliers.dtype) == (np.int8, dtype, np.intp)
    assert zeropoint_quantize(x)[1].dtype == dtype


def test_codes_sum_is_the_correction_for_unsigned_activations():
    a = RNG.integers(-127, 128, (3, 10), dtype=np.int8)
    shifted = a.astype(np.int64) + 128
    corrected = shifted @ PACKED.q.T.astype(np.int64) - 128 * PACKED.col_sum
    np.testing.assert_array_equal(corrected, int8_matmul(a, PACKED.q))


def test_llm_int8_arguments_are_not_written_to():
    x, w, bias = X.copy(), W.copy(), BIAS.copy()
    weight = quantize_weight(w)
    for array in (x, w, bias, weight.q, weight.scale, weight.col_sum):
        array.setflags(write=False)
    _, pullback = llm_int8_linear_vjp(x, weight, bias, outlier_weights="float", w_float=w)
    pullback(x[:, :4])
    int8_matmul_trainable_vjp(x, w)[1](x[:, :4])


def test_agreement_with_the_authors_package():
    package = pytest.importorskip("bitsandbytes.functional")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = with_outliers(rng, 16, 64, 3).astype(np.float16).astype(np.float32)
    w = rng.standard_normal((64, 24)).astype(np.float16).astype(np.float32)
    weight = quantize_weight(w)
    their_q, their_scale, _ = package.int8_vectorwise_quant(torch.tensor(w.T.copy()).half())
    np.testing.assert_array_equal(their_q.numpy(), weight.q)
    np.testing.assert_allclose(their_scale.numpy(), weight.scale, rtol=1e-3)
    _, their_c, their_columns = package.int8_vectorwise_quant(torch.tensor(x).half(), threshold=6.0)
    _, c, columns = vectorwise_quantize(x, threshold=6.0)
    np.testing.assert_array_equal(their_columns.numpy(), columns)
    np.testing.assert_allclose(their_c.numpy(), c, rtol=1e-3)
    operators = pytest.importorskip("bitsandbytes")
    state = operators.MatmulLtState()
    state.CB, state.SCB, state.threshold, state.has_fp16_weights = their_q, their_scale, 6.0, False
    theirs = operators.matmul(torch.tensor(x).half(), their_q, threshold=6.0, state=state).float().numpy()
    ours = llm_int8_linear(x, weight)
    assert np.abs(theirs - ours).max() < 2e-3 * np.abs(ours).max()


SMALL = quantize_weight(np.ones((3, 2)))
TOO_LONG = np.zeros((1, MOST_TERMS + 1))


@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    [
        (llm_int8_linear, (np.ones((2, 4)), SMALL), {}, ValueError, r"x: expected shape \(..., 3\) like weight.q, got \(2, 4\)"),
        (llm_int8_linear, (np.ones((2, 3)), SMALL, np.ones(3)), {}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        (llm_int8_linear, (np.ones((2, 3), "f4"), SMALL), {}, TypeError, "weight.scale: expected dtype float32 like x, got float64"),
        (llm_int8_linear, (np.ones((2, 3)), SMALL), {"threshold": -1.0}, ValueError, "threshold: expected a finite number >= 0, got -1.0"),
        (llm_int8_linear, (np.full((2, 3), np.inf), SMALL), {}, ValueError, "x: expected finite values, got 6"),
        (llm_int8_linear, (np.ones((2, 3)), SMALL), {"row_stats": "rows"}, ValueError, "row_stats: expected one of 'elements', 'columns'"),
        (llm_int8_linear, (np.ones((2, 3)), SMALL), {"outlier_weights": "half"}, ValueError, "outlier_weights: expected one of"),
        (llm_int8_linear, (np.ones((2, 3)), SMALL), {"outlier_weights": "float"}, ValueError, "w_float: expected the float weights"),
        (llm_int8_linear, (np.ones((2, 3)), SMALL), {"outlier_weights": "float", "w_float": np.ones((2, 3))}, ValueError, r"w_float: expected shape \(3, 2\)"),
        (llm_int8_linear, (np.float64(1), SMALL), {}, ValueError, "x: expected at least 1 dimension"),
        (llm_int8_linear, (np.ones((2, 3)), Int8Weight(SMALL.q, np.ones(3), SMALL.col_sum)), {}, ValueError, r"weight.scale: expected shape \(2,\)"),
        (quantize_weight, (TOO_LONG.T,), {}, ValueError, "weight: expected at most 133144 terms.*, got 133145"),
        (quantize_weight, (np.array([[np.nan]]),), {}, ValueError, "x: expected finite|weight: expected finite"),
        (quantize_weight, (np.ones(3),), {}, ValueError, "weight: expected 2 dimensions"),
        (matmul_vectorwise, (TOO_LONG, TOO_LONG.T), {}, ValueError, "x: expected at most 133144 terms"),
        (matmul_zeropoint, (np.ones((0, 3)), np.ones((3, 2))), {}, ValueError, "x: expected at least one entry"),
        (int8_matmul, (np.zeros(TOO_LONG.shape, np.int8), np.zeros(TOO_LONG.shape, np.int8)), {}, ValueError, "a: expected at most 133144"),
        (int8_matmul, (np.full((1, 1), -128, np.int8), np.ones((1, 1), np.int8)), {}, ValueError, "a: expected values of at least -127, got -128"),
        (int8_matmul, (np.ones((1, 1), np.int8), np.ones((1, 1), int)), {}, TypeError, "b: expected dtype int8, got int64"),
        (int8_matmul, (np.ones((1, 2), np.int8), np.ones((1, 3), np.int8)), {}, ValueError, r"b: expected shape \(N, 2\) like a"),
        (matmul_tensorwise, (np.ones((2, 3)), np.ones((2, 3))), {}, ValueError, r"weight: expected shape \(3, N\), got \(2, 3\)"),
        (int8_matmul_trainable, (np.ones((2, 3)), np.ones((3, 2), "f4")), {}, TypeError, "weight: expected dtype float64 like x"),
        (outlier_features, ([],), {}, ValueError, "hidden: expected at least one layer, got 0"),
        (outlier_features, ([np.ones((2, 3)), np.ones((2, 4))],), {}, ValueError, r"hidden\[1\]: expected shape \(2, 3\)"),
        (outlier_features, ([np.ones((2, 3))],), {"layer_fraction": 2.0}, ValueError, r"layer_fraction: expected a number in \[0, 1\]"),
    ],
)  # fmt: skip
def test_bad_input_of_llm_int8_is_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_cotangent_of_the_int8_weight_gradient_must_be_finite():
    _, pullback = int8_matmul_trainable_vjp(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="dy: expected finite values"):
        pullback(np.full((2, 2), np.nan))
