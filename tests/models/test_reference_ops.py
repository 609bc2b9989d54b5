import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.attention import multi_head_attention
from refnorm.gradcheck import GradientCase
from refnorm.models import reference_ops as ops
from refnorm.norms import layer_norm

RNG = np.random.default_rng(3)
OFFSETS = np.array([0, 3, 3, 4, 7])
IDS = np.array([1, 0, 4, 1, 1, 2, 4]), np.array([0, 1, 2, 0, 0, 1, 2]), np.zeros(7, np.int64)


def normal(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


GRADIENT_CASES = [
    GradientCase(ops.linear_activated_vjp, normal((5, 3), (3, 4), (4,)), method="complex"),
    GradientCase(
        ops.linear_activated_vjp, normal((5, 3), (3, 4), (4,)), {"activation": "gelu"}, method="complex", name="gelu"
    ),
    GradientCase(
        ops.linear_activated_vjp, normal((5, 3), (3, 4), (4,)), {"activation": "gelu_tanh"}, method="complex", name="tanh"
    ),
    GradientCase(ops.linear_activated_vjp, normal((5, 3), (3, 4), (4,)), {"activation": "relu"}, step=1e-4, name="relu"),
    GradientCase(
        ops.linear_residual_norm_vjp, normal((5, 3), (3, 4), (4,), (5, 4), (4,), (4,)), {"eps": 1e-3}, method="complex"
    ),
    GradientCase(
        ops.embed_vjp, (*IDS, *normal((6, 4), (3, 4), (2, 4), (4,), (4,))), {"eps": 1e-3}, method="complex"
    ),
    GradientCase(ops.attention_vjp, (*normal((7, 4), (7, 4), (7, 4)), OFFSETS, 2), {"scale": 0.7}, method="complex"),
    GradientCase(ops.attention_vjp, (*normal((0, 4), (0, 4), (0, 4)), np.array([0, 0]), 2), name="no tokens"),
    GradientCase(ops.mean_pool_vjp, (*normal((7, 4)), np.array([0, 3, 4, 7])), method="complex"),
    GradientCase(ops.normalize_vjp, normal((3, 4)), method="complex"),
    GradientCase(ops.mean_pool_normalize_vjp, (*normal((7, 4)), np.array([0, 3, 4, 7])), method="complex"),
]  # fmt: skip


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_packed_attention_is_padded_attention_without_the_padding(lengths, heads, seed):
    rng = np.random.default_rng(seed)
    width, total, longest = 2 * heads, sum(lengths), max(max(lengths), 1)
    qkv = rng.standard_normal((total, 3 * width))
    offsets = np.cumsum([0, *lengths])
    packed = ops.attention(qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :], offsets, heads)
    # With the identity as both projections, multi-head attention takes queries, keys and values as they are.
    padded = np.full((len(lengths), longest, 3 * width), 7.0)
    for i, length in enumerate(lengths):
        padded[i, :length] = qkv[offsets[i] : offsets[i + 1]]
    expected = multi_head_attention(
        padded, np.eye(3 * width), None, np.eye(width), None, heads=heads, lengths=np.array(lengths)
    )
    for i, length in enumerate(lengths):
        np.testing.assert_allclose(packed[offsets[i] : offsets[i + 1]], expected[i, :length], atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_receives_what_is_returned(rows, dtype):
    def normal(*shape):
        return RNG.standard_normal(shape).astype(dtype)

    x, residual, gain, bias = normal(rows, 3), normal(rows, 4), normal(4), normal(4)
    handle = ops.prepare_linear(normal(3, 4), normal(4))
    for call in (
        lambda out: ops.linear(x, handle, activation="gelu", out=out),
        lambda out: ops.linear_residual_norm(x, handle, residual, gain, bias, eps=1e-5, out=out),
        lambda out: ops.attention(residual, residual, residual, np.array([0, rows]), 2, out=out),
    ):
        out = np.full((rows, 4), np.nan, dtype)
        fresh, same = call(None), call(out)
        assert same is out
        assert fresh.dtype == dtype
        np.testing.assert_array_equal(fresh, out)


def test_joined_operations_are_their_parts():
    x, weight, linear_bias, residual, gain, bias = normal((9, 3), (3, 4), (4,), (9, 4), (4,), (4,))
    joint = ops.linear_residual_norm(x, ops.prepare_linear(weight, linear_bias), residual, gain, bias, eps=1e-5)
    np.testing.assert_allclose(joint, layer_norm(x @ weight + linear_bias + residual, gain, bias, eps=1e-5), atol=1e-12)


def test_zero_vectors_stay_zero_when_normalized():
    x = np.zeros((2, 3))
    y, pullback = ops.mean_pool_normalize_vjp(x, np.array([0, 2]))
    assert (y == 0).all()
    assert np.isfinite(pullback(np.ones((1, 3)))[0]).all()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.array([0, 2]), "offsets: expected numbers from 0 to 3 that do not decrease, got"),
        (np.array([1, 3]), "offsets: expected numbers from 0 to 3 that do not decrease, got"),
        (np.array([0, 2, 1, 3]), "offsets: expected numbers from 0 to 3 that do not decrease, got"),
        (np.array([0, 4]), "offsets: expected values of at most 3, got 4"),
        (np.array([], int), "offsets: expected numbers from 0 to 3 that do not decrease, got"),
        (np.array([0, 3, 3]), "offsets: expected at least one row for each text, got"),
    ],
)
def test_bad_offsets_are_named(offsets, message):
    with pytest.raises(ValueError, match=message):
        ops.mean_pool_normalize(np.ones((3, 2)), offsets)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation: expected one of 'gelu', 'gelu_tanh', 'relu', got 'swish'"):
        ops.linear(np.ones((1, 2)), ops.prepare_linear(np.eye(2), np.zeros(2)), activation="swish")
