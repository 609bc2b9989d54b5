import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import init_pre_norm, pre_norm_forward, pre_norm_forward_vjp, to_pre_crms, to_pre_rms
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(8)
PARAMS = init_pre_norm(RNG, 7, 5, 6, 2, 2, 4)
TOKENS = np.array([[0, 3, 3, 6], [5, 1, 2, 0]])

GRADIENT_CASES = [
    GradientCase(pre_norm_forward_vjp, (PARAMS, TOKENS), method="complex", name="layer norm"),
    GradientCase(pre_norm_forward_vjp, (to_pre_rms(PARAMS), TOKENS), {"kind": "rms"}, method="complex", name="rms"),
    GradientCase(pre_norm_forward_vjp, (PARAMS, TOKENS), {"kind": "rms"}, method="complex", name="rms with gains"),
    GradientCase(pre_norm_forward_vjp, (to_pre_crms(PARAMS), TOKENS), {"kind": "crms"}, method="complex", name="crms"),
    GradientCase(pre_norm_forward_vjp, (PARAMS, TOKENS[:1, :1]), {"eps": 1e-2}, method="complex", name="one token"),
    GradientCase(
        pre_norm_forward_vjp, (init_pre_norm(RNG, 4, 3, 2, 1, 0, 3), TOKENS[:, :3] % 4), name="no blocks, differences"
    ),
]


@given(
    units=st.sampled_from([2, 4, 6, 12]),
    heads=st.sampled_from([1, 2]),
    blocks=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_converted_transformers_compute_the_same(units, heads, blocks, seed):
    rng = np.random.default_rng(seed)
    params = init_pre_norm(rng, 9, 6, units, heads, blocks, 3)
    tokens = rng.integers(9, size=(2, 6))
    # eps is in the square root of every norm, so the identity holds for any eps, and a large one too.
    for eps in (1e-5, 0.5):
        expected = pre_norm_forward(params, tokens, eps=eps)
        np.testing.assert_allclose(
            pre_norm_forward(to_pre_rms(params), tokens, kind="rms", eps=eps), expected, atol=1e-10
        )
        np.testing.assert_allclose(
            pre_norm_forward(to_pre_crms(params), tokens, kind="crms", eps=eps), expected, atol=1e-10
        )


def test_conversion_removes_the_mean_and_the_gains():
    converted = to_pre_rms(PARAMS)
    for block in converted.blocks:
        assert block.attention_gain is None
        assert block.network_bias is None
        np.testing.assert_allclose(block.output_weight.sum(axis=-1), 0, atol=1e-14)
        np.testing.assert_allclose(block.result_bias.sum(), 0, atol=1e-14)
    np.testing.assert_allclose(converted.embedding.sum(axis=-1), 0, atol=1e-14)
    assert to_pre_crms(PARAMS).embedding.shape == (7, 5)
    again = to_pre_rms(converted)
    for (path, before), (_, after) in zip(tree_leaves(converted), tree_leaves(again), strict=True):
        if before is not None:
            np.testing.assert_allclose(after, before, atol=1e-15, err_msg=path)


def test_layer_norm_of_a_converted_transformer_changes_nothing():
    converted = to_pre_rms(PARAMS)
    np.testing.assert_allclose(
        pre_norm_forward(converted, TOKENS), pre_norm_forward(converted, TOKENS, kind="rms"), atol=1e-13
    )


def test_float32_drift_of_the_mean_stays_small_through_many_layers():
    params = init_pre_norm(np.random.default_rng(1), 9, 6, 16, 2, 24, 3)
    tokens = np.arange(6)[None]
    expected = pre_norm_forward(params, tokens)
    narrow = tree_map(lambda leaf: leaf.astype(np.float32), params)
    base = np.abs(pre_norm_forward(narrow, tokens) - expected).max()
    for convert, kind in ((to_pre_rms, "rms"), (to_pre_crms, "crms")):
        result = pre_norm_forward(convert(narrow), tokens, kind=kind)
        assert result.dtype == np.float32
        # The rounding of 48 layers in float32, of the size that the unconverted network has too.
        assert np.abs(result - expected).max() < 20 * base + 1e-5


def test_repeated_tokens_add_up_in_the_embedding():
    value, pullback = pre_norm_forward_vjp(PARAMS, np.array([[3, 3, 3]]))
    grads = pullback(np.ones_like(value))[0]
    np.testing.assert_allclose(grads.embedding[3], grads.position[:3].sum(axis=0), rtol=1e-12, atol=1e-15)
    assert (grads.embedding[[0, 1, 2, 4, 5, 6]] == 0).all()
    assert (grads.position[3:] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    def one(leaf):
        leaf = leaf.astype(dtype)
        leaf.setflags(write=False)
        return leaf

    params = tree_map(one, PARAMS)
    value, pullback = pre_norm_forward_vjp(params, TOKENS)
    assert value.dtype == dtype
    assert {leaf.dtype for _, leaf in tree_leaves(pullback(value))} == {np.dtype(dtype)}
    assert init_pre_norm(RNG, 4, 3, 2, 1, 1, 3, dtype=dtype).blocks[0].query_weight.dtype == dtype


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pre_norm_forward(PARAMS, TOKENS.astype(float)), TypeError, "tokens: expected an integer array"),
        (lambda: pre_norm_forward(PARAMS, TOKENS[0]), ValueError, "tokens: expected 2 dimensions"),
        (lambda: pre_norm_forward(PARAMS, TOKENS + 1), ValueError, "tokens: expected values of at most 6, got 7"),
        (lambda: pre_norm_forward(PARAMS, np.zeros((1, 6), int)), ValueError, "tokens: expected at most 5 places"),
        (lambda: pre_norm_forward(PARAMS, TOKENS, kind="batch"), ValueError, "kind: expected one of 'ln', 'rms', 'crms'"),
        (lambda: pre_norm_forward(PARAMS, TOKENS, kind="crms"), ValueError, "params: expected converted parameters without gains"),
        (lambda: pre_norm_forward(PARAMS, TOKENS, eps=0.0), ValueError, "eps: expected a finite number > 0"),
        (lambda: to_pre_crms(dataclasses.replace(PARAMS, embedding=PARAMS.embedding[:, :1])), ValueError, "params.embedding: expected at least two units"),
        (lambda: init_pre_norm(RNG, 4, 3, 5, 2, 1, 3), ValueError, "units: expected a multiple of heads = 2, got 5"),
        (lambda: init_pre_norm(RNG, 0, 3, 4, 2, 1, 3), ValueError, "tokens: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
