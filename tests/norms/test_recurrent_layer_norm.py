import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnorm.gradcheck import GradientCase
from refnorm.norms import (
    init_layer_norm_gru,
    init_layer_norm_lstm,
    layer_norm,
    layer_norm_gru,
    layer_norm_gru_vjp,
    layer_norm_lstm,
    layer_norm_lstm_vjp,
    layer_norm_rnn,
    layer_norm_rnn_vjp,
)
from refnorm.tree import tree_leaves, tree_map

RNG = np.random.default_rng(6)
STEPS, BATCH, INPUTS, UNITS = 4, 3, 2, 5


def draw(*shapes):
    return tuple(RNG.standard_normal(shape) for shape in shapes)


def moved(params):
    """Parameters away from the special values 0 and 1."""
    return tree_map(lambda leaf: leaf + 0.3 * RNG.standard_normal(leaf.shape), params)


X, H, C = draw((STEPS, BATCH, INPUTS), (BATCH, UNITS), (BATCH, UNITS))
RNN = draw((INPUTS, UNITS), (UNITS, UNITS), UNITS, UNITS)
LSTM = moved(init_layer_norm_lstm(RNG, INPUTS, UNITS))
GRU = moved(init_layer_norm_gru(RNG, INPUTS, UNITS))

GRADIENT_CASES = [
    GradientCase(layer_norm_rnn_vjp, (X, H, *RNN), method="complex"),
    GradientCase(layer_norm_rnn_vjp, (X[:1], H, *RNN), {"eps": 0.1}, name="one step, differences"),
    GradientCase(layer_norm_rnn_vjp, (X[:0], H, *RNN), method="complex", name="no steps"),
    GradientCase(layer_norm_lstm_vjp, (X, H, C, LSTM), method="complex"),
    GradientCase(layer_norm_lstm_vjp, (X, H, C, LSTM), {"double_bias": True}, method="complex", name="double bias"),
    GradientCase(layer_norm_lstm_vjp, (X, H, C, LSTM), name="differences"),
    GradientCase(layer_norm_lstm_vjp, (10 * X, 0 * H, 0 * C, LSTM), {"eps": 1e-2}, method="complex", name="from zero"),
    GradientCase(layer_norm_gru_vjp, (X, H, GRU), method="complex"),
    GradientCase(layer_norm_gru_vjp, (X, H, GRU), {"eps": 1e-2}, name="differences"),
    GradientCase(layer_norm_gru_vjp, (X[:, :1], 0 * H[:1], GRU), method="complex", name="one sequence from zero"),
]


def run_lstm(params, x=X, **options):
    return layer_norm_lstm(x, H, C, params, **options)[0]


def test_one_plain_step_is_the_formula():
    input_weight, recurrent_weight, gain, bias = RNN
    total = H @ recurrent_weight + X[0] @ input_weight
    np.testing.assert_array_equal(layer_norm_rnn(X[:1], H, *RNN)[0], np.tanh(layer_norm(total, gain, bias)))


@given(cut=st.integers(0, STEPS))
def test_a_sequence_may_be_cut_anywhere(cut):
    whole = layer_norm_rnn(X, H, *RNN)
    first = layer_norm_rnn(X[:cut], H, *RNN)
    state = first[-1] if cut else H
    np.testing.assert_array_equal(np.concatenate((first, layer_norm_rnn(X[cut:], state, *RNN))), whole)
    states, cells = layer_norm_lstm(X, H, C, LSTM)
    head = layer_norm_lstm(X[:cut], H, C, LSTM)
    state, cell = (head[0][-1], head[1][-1]) if cut else (H, C)
    tail = layer_norm_lstm(X[cut:], state, cell, LSTM)
    np.testing.assert_array_equal(np.concatenate((head[0], tail[0])), states)
    np.testing.assert_array_equal(np.concatenate((head[1], tail[1])), cells)


def test_sequences_of_a_batch_do_not_meet():
    for run in (
        lambda x, h: layer_norm_rnn(x, h, *RNN),
        lambda x, h: layer_norm_gru(x, h, GRU),
        lambda x, h: layer_norm_lstm(x, h, h, LSTM)[0],
    ):
        np.testing.assert_allclose(run(X[:, 1:2], H[1:2])[:, 0], run(X, H)[:, 1], rtol=1e-12)


@given(scale=st.floats(0.1, 100))
def test_scale_of_each_weight_matrix_does_not_matter(scale):
    tiny = {"eps": 1e-300}
    scaled = dataclasses.replace(LSTM, recurrent_weight=scale * LSTM.recurrent_weight)
    np.testing.assert_allclose(run_lstm(scaled, **tiny), run_lstm(LSTM, **tiny), atol=1e-10)
    scaled = dataclasses.replace(LSTM, input_weight=scale * LSTM.input_weight)
    np.testing.assert_allclose(run_lstm(scaled, **tiny), run_lstm(LSTM, **tiny), atol=1e-10)


def test_double_bias_is_the_bias_inside_the_input_sum_too():
    without = dataclasses.replace(LSTM, bias=0 * LSTM.bias)
    np.testing.assert_array_equal(run_lstm(without), run_lstm(without, double_bias=True))
    assert np.abs(run_lstm(LSTM) - run_lstm(LSTM, double_bias=True)).max() > 1e-3


def test_initial_recurrent_matrices_are_orthogonal():
    for params, blocks in (
        (init_layer_norm_lstm(np.random.default_rng(0), 3, 6), 4),
        (init_layer_norm_gru(np.random.default_rng(0), 3, 6), 1),
    ):
        for block in np.split(params.recurrent_weight, blocks, axis=1):
            np.testing.assert_allclose(block.T @ block, np.eye(6), atol=1e-14)
    assert (params.gate_input_norm.gain == 1).all()
    assert (params.gate_bias == 0).all()


def test_extreme_sums_saturate_without_warning():
    with np.errstate(all="raise", under="ignore"):
        big = tree_map(lambda leaf: 1e4 * leaf, LSTM)
        states, cells = layer_norm_lstm(X, H, C, big)
        assert np.isfinite(states).all()
        assert np.isfinite(cells).all()
        assert np.isfinite(layer_norm_gru(X, H, tree_map(lambda leaf: 1e4 * leaf, GRU))).all()


def test_nan_stays_in_its_sequence():
    x = X.copy()
    x[1, 2, 0] = np.nan
    states = layer_norm_gru(x, H, GRU)
    assert np.isnan(states[1:, 2]).all()
    assert np.isfinite(states[:, :2]).all()
    assert np.isfinite(states[0]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out_and_nothing_is_written_to(dtype):
    def cast(tree):
        def one(leaf):
            leaf = leaf.astype(dtype)
            leaf.setflags(write=False)
            return leaf

        return tree_map(one, tree)

    x, h = cast((X, H))
    for value, pullback, size in (
        (*layer_norm_rnn_vjp(x, h, *cast(RNN)), 6),
        (*layer_norm_lstm_vjp(x, h, h, cast(LSTM)), 4),
        (*layer_norm_gru_vjp(x, h, cast(GRU)), 3),
    ):
        entries = pullback(value)
        assert len(entries) == size
        assert {leaf.dtype for _, leaf in tree_leaves((value, entries))} == {np.dtype(dtype)}
    assert init_layer_norm_gru(np.random.default_rng(0), 2, 3, dtype=dtype).bias.dtype == dtype


def test_any_record_with_the_right_attributes_will_do():
    record = SimpleNamespace(**{field.name: getattr(GRU, field.name) for field in dataclasses.fields(GRU)})
    value, pullback = layer_norm_gru_vjp(X, H, record)
    np.testing.assert_array_equal(value, layer_norm_gru(X, H, GRU))
    assert type(pullback(value)[2]) is type(GRU)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layer_norm_rnn(X[0], H, *RNN), ValueError, r"x: expected 3 dimensions, got shape \(3, 2\)"),
        (lambda: layer_norm_rnn(X, H[:2], *RNN), ValueError, r"initial: expected shape \(3, 5\), got \(2, 5\)"),
        (lambda: layer_norm_rnn(X, H, RNN[1], *RNN[1:]), ValueError, r"input_weight: expected shape \(2, 5\), got \(5, 5\)"),
        (lambda: layer_norm_rnn(X, H, *RNN, eps=-1.0), ValueError, "eps: expected a finite number > 0, got -1.0"),
        (lambda: layer_norm_rnn(X, H[:, :0], *RNN), ValueError, "initial: expected at least one entry"),
        (lambda: layer_norm_rnn(X.astype("f4"), H, *RNN), TypeError, "initial: expected dtype float32 like x, got float64"),
        (lambda: layer_norm_lstm(X, H, C[:, :4], LSTM), ValueError, r"initial_cell: expected shape \(3, 5\), got \(3, 4\)"),
        (lambda: layer_norm_lstm(X, H, C, dataclasses.replace(LSTM, cell_norm=LSTM.input_norm)), ValueError, r"cell_norm.gain: expected shape \(5,\), got \(20,\)"),
        (lambda: layer_norm_gru(X, H, dataclasses.replace(GRU, bias=GRU.gate_bias)), ValueError, r"bias: expected shape \(5,\), got \(10,\)"),
        (lambda: init_layer_norm_lstm(0, 2, 3), TypeError, "rng: expected a numpy.random.Generator"),
        (lambda: init_layer_norm_gru(np.random.default_rng(0), 0, 3), ValueError, "inputs: expected an integer >= 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
