import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.nn import embedding, embedding_vjp

RNG = np.random.default_rng(13)

GRADIENT_CASES = [
    GradientCase(embedding_vjp, (np.array([2, 0, 2]), RNG.standard_normal((4, 3))), method="complex"),
    GradientCase(embedding_vjp, (np.array([[1, 1], [1, 0]]), RNG.standard_normal((2, 5))), method="complex", name="grid"),
    GradientCase(embedding_vjp, (np.zeros((0,), int), RNG.standard_normal((2, 5))), method="complex", name="none"),
    GradientCase(embedding_vjp, (np.array(1), RNG.standard_normal((2, 5))), method="complex", name="one"),
]  # fmt: skip


@given(ids=st.lists(st.integers(0, 6), max_size=20), seed=st.integers(0, 99))
def test_it_is_a_product_with_one_hot_rows(ids, seed):
    table = np.random.default_rng(seed).standard_normal((7, 3))
    ids = np.array(ids, int)
    one_hot = np.eye(7)[ids]
    y, pullback = embedding_vjp(ids, table)
    np.testing.assert_array_equal(y, one_hot @ table)
    dy = np.random.default_rng(seed + 1).standard_normal(y.shape)
    np.testing.assert_allclose(pullback(dy)[0], one_hot.T @ dy, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_rows_are_copies(dtype):
    table = RNG.standard_normal((4, 3)).astype(dtype)
    y, pullback = embedding_vjp(np.array([1, 1], np.uint8), table)
    assert y.dtype == pullback(y)[0].dtype == dtype
    assert not np.shares_memory(y, table)


@pytest.mark.parametrize(
    ("ids", "table", "error", "message"),
    [
        ([4], np.ones((4, 2)), ValueError, "ids: expected values of at most 3, got 4"),
        ([-1], np.ones((4, 2)), ValueError, "ids: expected values of at least 0, got -1"),
        ([0], np.ones((0, 2)), ValueError, "ids: expected values of at most -1, got 0"),
        ([1.0], np.ones((4, 2)), TypeError, "ids: expected an integer array, got dtype float64"),
        ([True], np.ones((4, 2)), TypeError, "ids: expected an integer array, got dtype bool"),
        ([1], np.ones((4, 2), int), TypeError, "table: expected a float32 or float64 array, got dtype int64"),
        ([1], np.ones(4), ValueError, r"table: expected 2 dimensions, got shape \(4,\)"),
    ],
)
def test_bad_input_is_named(ids, table, error, message):
    with pytest.raises(error, match=message):
        embedding(np.array(ids), table)
