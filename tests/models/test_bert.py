import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.models import bert_embed, bert_embed_vjp, bert_encode, bert_encode_vjp, bert_init
from refnorm.tree import tree_leaves, tree_map


def model(seed=0, dtype=np.float64, **sizes):
    """Weights large enough for every term of the gradient to matter."""
    rng = np.random.default_rng(seed)
    sizes = {"vocabulary": 11, "hidden": 6, "inner": 10, "layers": 2, "positions": 9} | sizes
    params = bert_init(rng, **sizes)
    return tree_map(lambda leaf: (leaf + 0.3 * rng.standard_normal(leaf.shape)).astype(dtype), params)


IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
OFFSETS = np.array([0, 3, 4, 8])

GRADIENT_CASES = [
    GradientCase(bert_encode_vjp, (model(), IDS, OFFSETS), {"heads": 2, "eps": 1e-3}, method="complex"),
    GradientCase(
        bert_encode_vjp,
        (model(1), IDS, OFFSETS),
        {"heads": 3, "eps": 1e-2, "activation": "gelu_tanh", "first_position": 2},
        method="complex",
        name="tanh, positions from 2",
    ),
    GradientCase(bert_encode_vjp, (model(2, layers=0), IDS, OFFSETS), {"heads": 1}, method="complex", name="no layer"),
    GradientCase(bert_encode_vjp, (model(3), IDS, OFFSETS), {"heads": 1, "activation": "relu"}, step=1e-4, name="relu"),
    GradientCase(bert_embed_vjp, (model(4), IDS, OFFSETS), {"heads": 6, "eps": 1e-3}, method="complex"),
]


def test_the_vjp_computes_the_same_value():
    params = model()
    for f, f_vjp in ((bert_encode, bert_encode_vjp), (bert_embed, bert_embed_vjp)):
        np.testing.assert_allclose(
            f(params, IDS, OFFSETS, heads=2), f_vjp(params, IDS, OFFSETS, heads=2)[0], atol=1e-13
        )


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 50))
def test_a_text_does_not_see_its_neighbours(lengths, seed):
    ids = np.random.default_rng(seed).integers(11, size=sum(lengths))
    offsets = np.cumsum([0, *lengths])
    together = bert_embed(model(), ids, offsets, heads=2)
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        alone = bert_embed(model(), ids[start:stop], np.array([0, stop - start]), heads=2)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-12)


def test_embeddings_are_unit_vectors():
    y = bert_embed(model(), IDS, OFFSETS, heads=2)
    np.testing.assert_allclose((y**2).sum(axis=1), 1, atol=1e-14)


def test_gradient_of_embeddings_never_used_is_zero():
    _, pullback = bert_embed_vjp(model(), IDS, OFFSETS, heads=2)
    (dparams,) = pullback(np.ones((3, 6)))
    unused = sorted(set(range(11)) - set(IDS.tolist()))
    assert (dparams["token_table"][unused] == 0).all()
    assert (dparams["token_table"][IDS] != 0).any(axis=1).all()
    assert (dparams["type_table"][1] == 0).all()


def test_one_gradient_step_brings_two_texts_together():
    params = model()

    def loss(params):
        y, pullback = bert_embed_vjp(params, IDS[:7], np.array([0, 3, 7]), heads=2)
        return -float(y[0] @ y[1]), pullback(-y[::-1])[0]

    before, gradient = loss(params)
    after, _ = loss(tree_map(lambda p, g: p - 0.01 * g, params, gradient))
    assert after < before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    params = model(dtype=dtype)
    y, pullback = bert_embed_vjp(params, IDS, OFFSETS, heads=2)
    assert y.dtype == dtype
    assert bert_embed(params, IDS, OFFSETS, heads=2).dtype == dtype
    assert {leaf.dtype for _, leaf in tree_leaves(pullback(y)[0])} == {np.dtype(dtype)}


def test_parameters_are_not_written_to():
    params = model()
    for _, leaf in tree_leaves(params):
        leaf.setflags(write=False)
    y, pullback = bert_embed_vjp(params, IDS, OFFSETS, heads=2)
    pullback(y)
    bert_embed(params, IDS, OFFSETS, heads=2)


def test_no_texts_give_no_rows():
    assert bert_encode(model(), np.array([], int), np.array([0]), heads=2).shape == (0, 6)


@pytest.mark.parametrize(
    ("ids", "offsets", "options", "message"),
    [
        ([11], [0, 1], {}, "token_ids: expected values of at most 10, got 11"),
        ([-1], [0, 1], {}, "token_ids: expected values of at least 0, got -1"),
        ([1] * 10, [0, 10], {}, "offsets: expected texts of at most 9 tokens, got 10"),
        ([1] * 8, [0, 8], {"first_position": 2}, "offsets: expected texts of at most 7 tokens, got 8"),
        ([1, 2], [0, 1], {}, "offsets: expected numbers from 0 to 2 that do not decrease"),
        ([1, 2], [0, 2], {"heads": 4}, "heads: expected a divisor of the hidden width 6, got 4"),
        ([1, 2], [0, 2], {"eps": 0.0}, "eps: expected a finite number > 0, got 0.0"),
        ([1, 2], [0, 2], {"activation": "elu"}, "activation: expected one of 'gelu', 'gelu_tanh', 'relu', got 'elu'"),
    ],
)
@pytest.mark.parametrize("function", [bert_encode, bert_encode_vjp])
def test_bad_input_is_named(function, ids, offsets, options, message):
    with pytest.raises(ValueError, match=message):
        function(model(), np.array(ids), np.array(offsets), **({"heads": 2} | options))


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="hidden: expected an integer >= 1, got 0"):
        model(hidden=0)
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator"):
        bert_init(0, vocabulary=2, hidden=2, inner=2, layers=1)
