import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.attention import multi_head_attention, multi_head_attention_vjp, scaled_dot_product_attention
from refnorm.gradcheck import GradientCase

RNG = np.random.default_rng(22)


def arguments(sequences=2, positions=4, hidden=3, inner=4, outputs=5, rng=RNG):
    return tuple(
        rng.standard_normal(shape)
        for shape in ((sequences, positions, hidden), (hidden, 3 * inner), (3 * inner,), (inner, outputs), (outputs,))
    )


X, WEIGHT_IN, BIAS_IN, WEIGHT_OUT, BIAS_OUT = arguments()

GRADIENT_CASES = [
    GradientCase(multi_head_attention_vjp, arguments(), {"heads": 2}, method="complex"),
    GradientCase(
        multi_head_attention_vjp,
        arguments(),
        {"heads": 4, "lengths": np.array([0, 3]), "scale": 0.4},
        method="complex",
        name="lengths",
    ),
    GradientCase(
        multi_head_attention_vjp,
        arguments(),
        {"heads": 1, "causal": True, "mask": RNG.random((4, 4)) < 0.7, "lengths": np.array([4, 2])},
        method="complex",
        name="causal, mask and lengths",
    ),
    GradientCase(
        multi_head_attention_vjp, (X, WEIGHT_IN, None, WEIGHT_OUT, None), {"heads": 2}, method="complex", name="no bias"
    ),
    GradientCase(multi_head_attention_vjp, arguments(sequences=0), {"heads": 2}, method="complex", name="no sequences"),
    GradientCase(multi_head_attention_vjp, arguments(positions=1), {"heads": 2}, method="complex", name="one position"),
]  # fmt: skip


@pytest.mark.parametrize("scale", [None, 0.2])
def test_each_head_attends_on_its_own(scale):
    projected = X @ WEIGHT_IN + BIAS_IN
    parts = []
    for head in range(2):
        query, key, value = (projected[..., 4 * i + 2 * head : 4 * i + 2 * head + 2] for i in range(3))
        parts.append(scaled_dot_product_attention(query, key, value, scale=scale))
    expected = np.concatenate(parts, axis=-1) @ WEIGHT_OUT + BIAS_OUT
    y = multi_head_attention(X, WEIGHT_IN, BIAS_IN, WEIGHT_OUT, BIAS_OUT, heads=2, scale=scale)
    np.testing.assert_allclose(y, expected, atol=1e-13)


@given(positions=st.integers(1, 5), seed=st.integers(0, 99))
def test_reordered_positions_give_reordered_results(positions, seed):
    rng = np.random.default_rng(seed)
    x, *weights = arguments(positions=positions, rng=rng)
    order = rng.permutation(positions)
    y = multi_head_attention(x, *weights, heads=2)
    np.testing.assert_allclose(multi_head_attention(x[:, order], *weights, heads=2), y[:, order], atol=1e-12)


@given(length=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_changes_nothing_and_gives_the_bias(length, seed):
    rng = np.random.default_rng(seed)
    x, *weights = arguments(sequences=1, rng=rng)
    options = {"heads": 2, "lengths": np.array([length])}
    y, pullback = multi_head_attention_vjp(x, *weights, **options)
    other = x.copy()
    other[:, length:] = 1e3
    np.testing.assert_array_equal(multi_head_attention(other, *weights, **options), y)
    np.testing.assert_array_equal(y[0, length:], np.broadcast_to(weights[-1], (4 - length, 5)))
    assert (pullback(np.ones_like(y))[0][0, length:] == 0).all()
    if length:
        alone = multi_head_attention(x[:, :length], *weights, heads=2)
        np.testing.assert_allclose(y[:, :length], alone, atol=1e-13)


def test_causal_results_do_not_depend_on_later_positions():
    later = X.copy()
    later[:, 2:] += 1
    y, z = (multi_head_attention(x, WEIGHT_IN, BIAS_IN, WEIGHT_OUT, BIAS_OUT, heads=2, causal=True) for x in (X, later))
    np.testing.assert_allclose(y[:, :2], z[:, :2], atol=1e-14)
    assert np.abs(y[:, 2:] - z[:, 2:]).max() > 0.1


def test_a_mask_and_lengths_hide_what_either_hides():
    mask = np.random.default_rng(5).random((1, 2, 4, 4)) < 0.6
    inside = np.arange(4) < np.array([3, 2])[:, None, None, None]
    options = {"heads": 2, "mask": mask, "lengths": np.array([3, 2])}
    y = multi_head_attention(X, WEIGHT_IN, BIAS_IN, WEIGHT_OUT, BIAS_OUT, **options)
    expected = multi_head_attention(X, WEIGHT_IN, BIAS_IN, WEIGHT_OUT, BIAS_OUT, heads=2, mask=mask & inside)
    for n, length in enumerate(options["lengths"]):
        np.testing.assert_array_equal(y[n, :length], expected[n, :length])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype):
    given_arrays = [array.astype(dtype) for array in arguments()]
    for array in given_arrays:
        array.setflags(write=False)
    y, pullback = multi_head_attention_vjp(*given_arrays, heads=2, lengths=np.array([4, 1]))
    assert y.dtype == dtype
    assert [entry.dtype for entry in pullback(y)] == [dtype] * 5


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({0: X[0]}, {}, ValueError, "x: expected 3 dimensions"),
        ({}, {"heads": 3}, ValueError, "weight_in: expected a positive multiple of 3 heads = 9 columns"),
        ({}, {"heads": 0}, ValueError, "heads: expected an integer >= 1, got 0"),
        ({1: WEIGHT_IN[:2]}, {}, ValueError, r"weight_in: expected shape \(3, 12\), got \(2, 12\)"),
        ({3: WEIGHT_OUT[:3]}, {}, ValueError, r"weight_out: expected shape \(4, 5\), got \(3, 5\)"),
        ({2: BIAS_IN[:3]}, {}, ValueError, r"bias_in: expected shape \(12,\), got \(3,\)"),
        ({}, {"lengths": np.array([4, 5])}, ValueError, "lengths: expected values of at most 4, got 5"),
        ({}, {"lengths": np.array([4])}, ValueError, r"lengths: expected shape \(2,\), got \(1,\)"),
        ({}, {"lengths": np.array([4, -1])}, ValueError, "lengths: expected values of at least 0, got -1"),
        ({}, {"lengths": np.array([[4, 1]])}, ValueError, "lengths: expected 1 dimensions"),
        ({}, {"lengths": np.array([4.0, 1.0])}, TypeError, "lengths: expected an integer array"),
        ({}, {"mask": np.ones((3, 4), bool)}, ValueError, "mask: expected a shape that broadcasts to"),
        ({1: WEIGHT_IN[:, :0]}, {}, ValueError, "weight_in: expected a positive multiple of 3 heads = 6 columns"),
        ({1: WEIGHT_IN[0]}, {}, ValueError, "weight_in: expected 2 dimensions"),
        ({3: WEIGHT_OUT[0]}, {}, ValueError, "weight_out: expected 2 dimensions"),
        ({1: WEIGHT_IN.astype(int)}, {}, TypeError, "weight_in: expected a float32 or float64 array"),
        ({3: WEIGHT_OUT.astype(int)}, {}, TypeError, "weight_out: expected a float32 or float64 array"),
        ({1: WEIGHT_IN.astype("f4")}, {}, TypeError, "weight_in: expected dtype float64 like x, got float32"),
        ({2: BIAS_IN.astype("f4")}, {}, TypeError, "bias_in: expected dtype float64 like x, got float32"),
        ({3: WEIGHT_OUT.astype("f4")}, {}, TypeError, "weight_out: expected dtype float64 like x, got float32"),
        ({4: BIAS_OUT.astype("f4")}, {}, TypeError, "bias_out: expected dtype float64 like x, got float32"),
    ],
)
def test_bad_input_is_named(changes, options, error, message):
    values = [X, WEIGHT_IN, BIAS_IN, WEIGHT_OUT, BIAS_OUT]
    for position, value in changes.items():
        values[position] = value
    with pytest.raises(error, match=message):
        multi_head_attention(*values, **({"heads": 2} | options))
