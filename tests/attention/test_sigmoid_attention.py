import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.attention import (
    alibi_bias,
    qk_norm,
    qk_norm_vjp,
    row_mass,
    sigmoid_attention,
    sigmoid_attention_vjp,
    sigmoid_bias,
)
from refnorm.gradcheck import GradientCase

RNG = np.random.default_rng(22)


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


QKV = normal((2, 3, 4), (2, 5, 4), (2, 5, 6))
MASK = RNG.random((2, 3, 5)) < 0.5
MASK[1, 2] = False


def with_biases(query, key, value, bias, attn_bias):
    return sigmoid_attention_vjp(query, key, value, bias=bias, attn_bias=attn_bias, causal=True, scale=0.4)


def in_blocks_with_biases(query, key, value, bias, attn_bias):
    return sigmoid_attention_vjp(query, key, value, bias=bias, attn_bias=attn_bias, block=3)


GRADIENT_CASES = [
    GradientCase(sigmoid_attention_vjp, QKV, method="complex"),
    GradientCase(
        sigmoid_attention_vjp, QKV, {"mask": MASK, "scale": 0.3, "bias": "per_row"}, method="complex", name="mask"
    ),
    GradientCase(
        sigmoid_attention_vjp, normal((4, 3), (4, 3), (4, 2)), {"causal": True, "bias": 0.7}, method="complex", name="causal"
    ),
    GradientCase(
        sigmoid_attention_vjp,
        normal((2, 1, 3, 4), (5, 4), (3, 5, 2)),
        {"mask": np.array([True, True, False, True, False])},
        method="complex",
        name="broadcast",
    ),
    GradientCase(
        sigmoid_attention_vjp,
        normal((2, 3, 4), (2, 5, 4), (2, 5, 6), (), (5,)),
        method="complex",
        call=with_biases,
        name="biases of all scores and of keys",
    ),
    GradientCase(
        sigmoid_attention_vjp,
        normal((3, 4), (2, 5, 4), (2, 5, 6), (2, 1, 1), (3, 5)),
        method="complex",
        call=with_biases,
        name="biases of heads and of pairs",
    ),
    GradientCase(sigmoid_attention_vjp, (3 * QKV[0], 3 * QKV[1], QKV[2]), method="complex", name="saturated"),
    GradientCase(sigmoid_attention_vjp, QKV, {"block": 2, "mask": MASK}, method="complex", name="blocks of keys"),
    GradientCase(
        sigmoid_attention_vjp,
        normal((2, 3, 4), (2, 5, 4), (2, 5, 6), (2, 1, 1), (3, 5)),
        method="complex",
        call=in_blocks_with_biases,
        name="blocks of keys with biases",
    ),
    GradientCase(sigmoid_attention_vjp, normal((0, 4), (3, 4), (3, 2)), method="complex", name="no queries"),
    GradientCase(qk_norm_vjp, normal((2, 3, 4), (5, 4)), method="complex"),
    GradientCase(qk_norm_vjp, (np.zeros((2, 3)), RNG.standard_normal((2, 3))), {"eps": 0.1}, method="complex", name="zeros"),
]  # fmt: skip


def weights_of(query, key, **options):
    return sigmoid_attention(query, key, np.eye(key.shape[-2]), **options)


@given(keys=st.integers(1, 300), queries=st.integers(1, 4))
def test_weights_at_zero_scores_sum_to_n_over_n_plus_one(keys, queries):
    weights = weights_of(np.zeros((queries, 3)), np.ones((keys, 3)))
    np.testing.assert_allclose(row_mass(weights), keys / (keys + 1), rtol=1e-13)
    visible = np.arange(1, queries + 1).clip(max=keys)
    by_row = weights_of(np.zeros((queries, 3)), np.ones((keys, 3)), bias="per_row", causal=True)
    np.testing.assert_allclose(row_mass(by_row), visible / (visible + 1), rtol=1e-13)


@given(seed=st.integers(0, 99), keys=st.integers(1, 8), moved=st.integers(0, 7))
def test_a_key_changes_its_own_column_of_weights_only(seed, keys, moved):
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((4, 3)), rng.standard_normal((keys, 3))
    before = weights_of(query, key)
    key[moved % keys] += 1.0
    after = weights_of(query, key)
    others = np.arange(keys) != moved % keys
    np.testing.assert_array_equal(after[:, others], before[:, others])
    assert (after[:, ~others] != before[:, ~others]).all()


@given(seed=st.integers(0, 99), keys=st.integers(2, 9), cut=st.integers(1, 8))
def test_parts_of_the_keys_add_up(seed, keys, cut):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((4, 3), (keys, 3), (keys, 2)))
    cut = min(cut, keys - 1)
    parts = [sigmoid_attention(query, key[p], value[p], bias=-1.0) for p in (slice(None, cut), slice(cut, None))]
    np.testing.assert_allclose(sum(parts), sigmoid_attention(query, key, value, bias=-1.0), atol=1e-13)


@given(seed=st.integers(0, 99), block=st.integers(1, 9), by_key=st.booleans(), causal=st.booleans())
def test_blocks_of_keys_change_nothing(seed, block, by_key, causal):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((2, 4, 3), (7, 3), (2, 7, 2)))
    options = {
        "bias": rng.standard_normal((4, 7 if by_key else 1)),
        "mask": rng.random((2, 1, 7)) < 0.7,
        "causal": causal,
    }
    y, pullback = sigmoid_attention_vjp(query, key, value, **options)
    in_blocks, pullback_in_blocks = sigmoid_attention_vjp(query, key, value, block=block, **options)
    np.testing.assert_allclose(in_blocks, y, atol=1e-14)
    for mine, whole in zip(pullback_in_blocks(y), pullback(y), strict=True):
        np.testing.assert_allclose(mine, whole, atol=1e-14)
    if block >= 7:
        np.testing.assert_array_equal(in_blocks, y)


@given(seed=st.integers(0, 99))
def test_a_masked_key_might_as_well_not_be_there(seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((4, 3), (6, 3), (6, 2)))
    kept = rng.random(6) < 0.6
    kept[rng.integers(6)] = True
    expected = sigmoid_attention(query, key[kept], value[kept])
    y = sigmoid_attention(query, key, value, mask=kept, bias="per_row")
    np.testing.assert_allclose(y, expected, atol=1e-13)
    minus_infinity = np.where(kept, 0.0, -np.inf)
    y, pullback = sigmoid_attention_vjp(
        query, key, value, attn_bias=minus_infinity, bias=float(sigmoid_bias(kept.sum()))
    )
    np.testing.assert_allclose(y, expected, atol=1e-13)
    assert (pullback(np.ones_like(y))[1][~kept] == 0).all()


def test_small_weights_keep_their_digits():
    """1 - sigmoid by subtraction, or sigmoid by the hyperbolic tangent, would give zeros here."""
    one = np.ones((1, 1))
    y, pullback = sigmoid_attention_vjp(one, one, one, bias=np.array(-101.0))
    np.testing.assert_allclose(y, np.exp(-100.0), rtol=1e-13)
    np.testing.assert_allclose(pullback(one)[3], np.exp(-100.0), rtol=1e-13)
    y, pullback = sigmoid_attention_vjp(one, one, one, bias=np.array(99.0))
    np.testing.assert_allclose(pullback(one)[3], np.exp(-100.0), rtol=1e-13)


def test_causal_is_a_mask():
    arrays = normal((4, 3), (6, 3), (6, 2))
    expected = sigmoid_attention(*arrays, mask=np.tri(4, 6, dtype=bool))
    np.testing.assert_array_equal(sigmoid_attention(*arrays, causal=True), expected)


def test_a_query_without_keys_gives_zeros_and_no_gradient():
    for bias in ("-log_n", "per_row"):
        y, pullback = sigmoid_attention_vjp(*QKV, mask=MASK, bias=bias)
        assert (y[1, 2] == 0).all()
        assert (pullback(np.ones_like(y))[0][1, 2] == 0).all()


def test_huge_scores_do_not_overflow():
    query, key = np.array([[1e20, 0.0]]), np.array([[1e20, 0.0], [-1e20, 0.0], [0.0, 1.0]])
    y, pullback = sigmoid_attention_vjp(query, key, np.array([[1.0], [2.0], [3.0]]), bias=0.0)
    assert y == 2.5
    assert all(np.isfinite(entry).all() for entry in pullback(np.ones((1, 1))))


def test_only_float_arrays_have_a_cotangent():
    for bias, attn_bias, extra in (
        ("-log_n", None, []),
        (0.5, None, []),
        (np.float64(0.5), np.zeros(5), [(5,)]),
        (np.array(0.5), None, [()]),
        (np.zeros((2, 1, 1)), np.zeros((3, 1)), [(2, 1, 1), (3, 1)]),
    ):
        y, pullback = sigmoid_attention_vjp(*QKV, bias=bias, attn_bias=attn_bias)
        assert y.shape == (2, 3, 6)
        assert [entry.shape for entry in pullback(y)] == [*(a.shape for a in QKV), *extra]


def test_alibi_falls_with_distance_and_head():
    bias = alibi_bias(4, 6, 8)
    assert bias.shape == (8, 4, 6)
    np.testing.assert_array_equal(bias[0, 0], -np.arange(6) / 2)
    np.testing.assert_array_equal(bias[7, 3], -np.abs(3 - np.arange(6)) / 256)
    np.testing.assert_array_equal(bias[:, :, :4], np.swapaxes(bias[:, :, :4], 1, 2))


@given(seed=st.integers(0, 99), large=st.floats(1e-2, 1e6), width=st.integers(1, 9))
def test_qk_norm_bounds_the_scores(seed, large, width):
    query, key = large * np.random.default_rng(seed).standard_normal((2, 3, width))
    query, key = qk_norm(query, key, eps=1e-12)
    np.testing.assert_allclose((query**2).mean(axis=1), 1, rtol=1e-6)
    assert np.abs(query @ key.T).max() <= width * (1 + 1e-12)


def test_minus_log_n_counts_all_keys_whatever_the_mask():
    query, key, _ = QKV
    weights = weights_of(query, key)
    np.testing.assert_array_equal(weights_of(query, key, mask=MASK), np.where(MASK, weights, 0))
    np.testing.assert_allclose(weights_of(query, key, bias=-np.log(5)), weights, rtol=1e-14)


@pytest.mark.parametrize("norm", [qk_norm, lambda query, key: qk_norm_vjp(query, key)[0]])
def test_qk_norm_adds_a_millionth_unless_told(norm):
    for normed in norm(np.full((2, 4), 1e-3), np.full((3, 4), -1e-3)):
        np.testing.assert_allclose(np.abs(normed), np.sqrt(0.5), rtol=1e-12)


def test_qk_norm_and_row_mass_take_any_number_of_leading_axes():
    query, key = qk_norm(np.full(4, 3.0), np.full(4, 5.0))
    np.testing.assert_allclose([query, key], 1, rtol=1e-6)
    weights = np.arange(24.0).reshape(2, 3, 4)
    mass = row_mass(weights)
    assert mass.shape == (2, 3)
    assert mass[1, 2] == row_mass(weights[1, 2]) == 20 + 21 + 22 + 23


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_strides_do_not_matter(dtype):
    arrays = [array.astype(dtype) for array in QKV]
    added = RNG.standard_normal((3, 5)).astype(dtype)
    for array in arrays:
        array.setflags(write=False)
    y, pullback = sigmoid_attention_vjp(*arrays, mask=MASK, attn_bias=added, bias="per_row")
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 4
    views = [np.asfortranarray(array)[::-1] for array in arrays]
    np.testing.assert_allclose(sigmoid_attention(*views), sigmoid_attention(*arrays)[::-1], rtol=1e-5)
    assert sigmoid_attention(*arrays, bias=0.7).dtype == dtype
    assert all(a.dtype == dtype for a in qk_norm(arrays[0], arrays[1]))


ONES = np.ones((3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ONES, ONES[:, :3], ONES), {}, ValueError, r"key: expected shape \(3, 4\), got \(3, 3\)"),
        ((ONES, ONES[:0], ONES[:0]), {}, ValueError, r"key: expected at least one entry along axes \(0,\), got shape \(0, 4\)"),
        ((ONES, ONES, ONES[:2]), {}, ValueError, r"value: expected shape \(3, 4\), got \(2, 4\)"),
        ((ONES, ONES, ONES), {"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
        ((ONES, ONES, ONES), {"mask": np.ones((3, 3))}, TypeError, "mask: expected a boolean array"),
        ((ONES, ONES, ONES), {"bias": "log_n"}, ValueError, "bias: expected one of '-log_n', 'per_row', got 'log_n'"),
        ((ONES, ONES, ONES), {"bias": np.ones((2, 3))}, ValueError, r"bias: expected a shape that broadcasts to \(3, 3\), got \(2, 3\)"),
        ((ONES, ONES, ONES), {"bias": True}, TypeError, "bias: expected a float32 or float64 array"),
        ((ONES, ONES, ONES), {"bias": np.ones(3, "f4")}, TypeError, "bias: expected dtype float64 like query, got float32"),
        ((ONES, ONES, ONES), {"attn_bias": np.ones((2, 3, 3))}, ValueError, r"attn_bias: expected a shape that broadcasts to \(3, 3\), got \(2, 3, 3\)"),
        ((ONES, ONES, ONES), {"block": 0}, ValueError, "block: expected an integer >= 1, got 0"),
        ((ONES, ONES, ONES), {"block": 2.0}, TypeError, "block: expected an integer"),
        ((ONES, ONES, ONES), {"attn_bias": np.ones(3, int)}, TypeError, "attn_bias: expected a float32 or float64 array"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        sigmoid_attention(*arguments, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sigmoid_bias(0), ValueError, "n: expected values of at least 1, got 0"),
        (lambda: sigmoid_bias(2.0), TypeError, "n: expected an integer array"),
        (lambda: alibi_bias(2, 2, 0), ValueError, "heads: expected an integer >= 1, got 0"),
        (lambda: alibi_bias(-1, 2, 1), ValueError, "n: expected an integer >= 0, got -1"),
        (lambda: alibi_bias(2, -1, 1), ValueError, "m: expected an integer >= 0, got -1"),
        (lambda: alibi_bias(2.0, 2, 1), TypeError, "n: expected an integer, got 2.0"),
        (lambda: qk_norm(ONES, ONES[:, :2]), ValueError, r"key: expected shape \(3, 4\), got \(3, 2\)"),
        (lambda: qk_norm(ONES, ONES, eps=0.0), ValueError, "eps: expected a finite number > 0"),
        (lambda: qk_norm(ONES, ONES.astype("f4")), TypeError, "key: expected dtype float64 like query, got float32"),
        (
            lambda: qk_norm(ONES[:, :0], ONES[:, :0]),
            ValueError,
            r"query: expected at least one entry along axes \(1,\)",
        ),
        (lambda: qk_norm(np.ones(()), ONES), ValueError, "query: expected at least 1 dimension"),
        (lambda: qk_norm(ONES, np.ones(())), ValueError, "key: expected at least 1 dimension"),
        (lambda: qk_norm(ONES.astype(int), ONES), TypeError, "query: expected a float32 or float64 array"),
        (lambda: row_mass(np.ones((2, 2), int)), TypeError, "weights: expected a float32 or float64 array"),
        (lambda: row_mass(np.ones(())), ValueError, "weights: expected at least 1 dimension"),
    ],
)
def test_bad_input_of_the_parts_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_alibi_without_queries_or_keys_is_empty():
    assert alibi_bias(0, 3, 2).shape == (2, 0, 3)
    assert alibi_bias(3, 0, 2).shape == (2, 3, 0)
