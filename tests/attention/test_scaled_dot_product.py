import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.attention import scaled_dot_product_attention, scaled_dot_product_attention_vjp
from refnorm.gradcheck import GradientCase

RNG = np.random.default_rng(21)


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


QKV = normal((2, 3, 4), (2, 5, 4), (2, 5, 6))
MASK = RNG.random((2, 3, 5)) < 0.5
MASK[1, 2] = False

GRADIENT_CASES = [
    GradientCase(scaled_dot_product_attention_vjp, QKV, method="complex"),
    GradientCase(scaled_dot_product_attention_vjp, QKV, {"mask": MASK, "scale": 0.3}, method="complex", name="mask"),
    GradientCase(
        scaled_dot_product_attention_vjp, normal((4, 3), (4, 3), (4, 2)), {"causal": True}, method="complex", name="causal"
    ),
    GradientCase(
        scaled_dot_product_attention_vjp,
        normal((2, 1, 3, 4), (5, 4), (3, 5, 2)),
        {"causal": True, "mask": np.array([True, True, False, True, False])},
        method="complex",
        name="broadcast",
    ),
    GradientCase(
        scaled_dot_product_attention_vjp,
        (4 * QKV[0], 4 * QKV[1], QKV[2]),
        step=1e-3,
        name="one key takes nearly all",
    ),
    GradientCase(scaled_dot_product_attention_vjp, normal((3, 4), (0, 4), (0, 2)), method="complex", name="no keys"),
    GradientCase(
        scaled_dot_product_attention_vjp, normal((2, 3, 4), (2, 0, 4), (2, 0, 2)), method="complex", name="no keys, batch"
    ),
    GradientCase(scaled_dot_product_attention_vjp, normal((0, 4), (3, 4), (3, 2)), method="complex", name="no queries"),
]  # fmt: skip


@given(queries=st.integers(1, 5), keys=st.integers(1, 6), seed=st.integers(0, 99), large=st.floats(0.1, 100))
def test_results_are_averages_of_values(queries, keys, seed, large):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((queries, 3), (keys, 3), (keys, 2)))
    y = scaled_dot_product_attention(large * query, key, value)
    assert (y <= value.max(axis=0) + 1e-12).all()
    assert (y >= value.min(axis=0) - 1e-12).all()
    np.testing.assert_allclose(scaled_dot_product_attention(query, key, np.ones((keys, 1))), 1, atol=1e-14)


@given(keys=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_order_of_the_keys_does_not_matter(keys, seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((4, 3), (keys, 3), (keys, 2)))
    order = rng.permutation(keys)
    np.testing.assert_allclose(
        scaled_dot_product_attention(query, key[order], value[order]),
        scaled_dot_product_attention(query, key, value),
        atol=1e-13,
    )


@given(seed=st.integers(0, 99))
def test_a_masked_key_might_as_well_not_be_there(seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((4, 3), (6, 3), (6, 2)))
    kept = rng.random(6) < 0.6
    y = scaled_dot_product_attention(query, key, value, mask=kept)
    np.testing.assert_allclose(y, scaled_dot_product_attention(query, key[kept], value[kept]), atol=1e-13)


def test_causal_is_a_mask():
    query, key, value = normal((4, 3), (6, 3), (6, 2))
    expected = scaled_dot_product_attention(query, key, value, mask=np.tri(4, 6, dtype=bool))
    np.testing.assert_array_equal(scaled_dot_product_attention(query, key, value, causal=True), expected)
    np.testing.assert_allclose(expected[0], value[0])


def test_causal_and_a_mask_hide_what_either_hides():
    query, key, value = normal((4, 3), (6, 3), (6, 2))
    mask = RNG.random((4, 6)) < 0.6
    y = scaled_dot_product_attention(query, key, value, mask=mask, causal=True)
    expected = scaled_dot_product_attention(query, key, value, mask=mask & np.tri(4, 6, dtype=bool))
    np.testing.assert_array_equal(y, expected)


def test_nested_lists_are_arrays():
    query, key, value = [[1.0, 2.0]], [[0.5, 0.0], [0.0, 0.5]], [[1.0], [3.0]]
    y = scaled_dot_product_attention(query, key, value, mask=[[True, True]])
    np.testing.assert_array_equal(y, scaled_dot_product_attention(*map(np.array, (query, key, value))))


def test_a_query_without_keys_gives_zeros_and_no_gradient():
    y, pullback = scaled_dot_product_attention_vjp(*QKV, mask=MASK)
    assert (y[1, 2] == 0).all()
    assert (pullback(np.ones_like(y))[0][1, 2] == 0).all()
    assert (scaled_dot_product_attention(*normal((3, 4), (0, 4), (0, 2))) == 0).all()


def test_huge_scores_do_not_overflow():
    query, key = np.array([[1e20, 0.0]]), np.array([[1e20, 0.0], [-1e20, 0.0], [0.0, 1.0]])
    y, pullback = scaled_dot_product_attention_vjp(query, key, np.array([[1.0], [2.0], [3.0]]))
    assert y == 1
    assert all(np.isfinite(entry).all() for entry in pullback(np.ones((1, 1))))


def test_nan_in_a_query_stays_in_its_row():
    query, key, value = (array[0].copy() for array in QKV)
    query[1, 0] = np.nan
    y = scaled_dot_product_attention(query, key, value)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_strides_do_not_matter(dtype):
    arrays = [array.astype(dtype) for array in QKV]
    for array in arrays:
        array.setflags(write=False)
    y, pullback = scaled_dot_product_attention_vjp(*arrays, mask=MASK)
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 3
    views = [np.asfortranarray(array)[::-1] for array in arrays]
    np.testing.assert_allclose(
        scaled_dot_product_attention(*views), scaled_dot_product_attention(*arrays)[::-1], rtol=1e-5
    )


ONES = np.ones((3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ONES, ONES[:, :3], ONES), {}, ValueError, r"key: expected shape \(3, 4\), got \(3, 3\)"),
        ((ONES, ONES, ONES[:2]), {}, ValueError, r"value: expected shape \(3, 4\), got \(2, 4\)"),
        ((ONES[0], ONES, ONES), {}, ValueError, "query: expected at least 2 dimensions"),
        ((ONES, ONES[0], ONES), {}, ValueError, "key: expected at least 2 dimensions"),
        ((ONES, ONES, ONES[0]), {}, ValueError, "value: expected at least 2 dimensions"),
        ((ONES[:, :0], ONES[:, :0], ONES), {}, ValueError, "query: expected at least one entry along axes"),
        ((np.ones((2, 3, 4)), np.ones((3, 3, 4)), ONES), {}, ValueError, "query, key, value: expected leading axes that broadcast"),
        ((ONES, ONES, ONES), {"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
        ((ONES, ONES, ONES), {"mask": np.ones((3, 3))}, TypeError, "mask: expected a boolean array"),
        ((ONES, ONES, ONES), {"mask": np.ones((2, 3), bool)}, ValueError, r"mask: expected a shape that broadcasts to \(3, 3\), got \(2, 3\)"),
        ((ONES, ONES.astype("f4"), ONES), {}, TypeError, "key: expected dtype float64 like query, got float32"),
        ((ONES, ONES, ONES.astype("f4")), {}, TypeError, "value: expected dtype float64 like query, got float32"),
        ((ONES.astype(int), ONES, ONES), {}, TypeError, "query: expected a float32 or float64 array"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(*arguments, **options)
