"""Layer-normalized recurrent cells.

    plain   h' = tanh(LN(h W_h + x W_x))
    LSTM    i, f, o, g = LN(h W_h) + LN(x W_x) + bias;    c' = sigmoid(f) c + sigmoid(i) tanh(g)
            h' = sigmoid(o) tanh(LN(c'))
    GRU     r, u = sigmoid(LN(h U) + LN(x W + bias));     n = tanh(r LN(h U_n) + LN(x W_n + bias_n))
            h' = u h + (1 - u) n

Each LN has a gain and a bias of its own and normalizes all the stacked sums of one example at one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.norms._layer_norm import layer_norm_vjp
from refnorm.tree import tree_map

METHOD = Method(
    title="Layer-normalized recurrent cells",
    authors="Ba, Kiros, Hinton",
    year=2016,
    arxiv="1607.06450",
    functions=(
        "LayerNormGRUParams",
        "LayerNormLSTMParams",
        "NormParams",
        "init_layer_norm_gru",
        "init_layer_norm_lstm",
        "layer_norm_gru",
        "layer_norm_lstm",
        "layer_norm_rnn",
    ),
    chapter="norms/recurrent_layer_norm",
    paper=False,
)


@dataclass(frozen=True)
class NormParams:
    """Gain and bias of one normalization."""

    gain: AnyArray
    bias: AnyArray


@dataclass(frozen=True)
class LayerNormLSTMParams:
    """Parameters of :func:`layer_norm_lstm` for I inputs and H units; gates in the order i, f, o, g.

    Parameters
    ----------
    input_weight : array (I, 4H)
    recurrent_weight : array (H, 4H)
    bias : array (4H,)
    input_norm, recurrent_norm : NormParams (4H,)
    cell_norm : NormParams (H,)
    """

    input_weight: AnyArray
    recurrent_weight: AnyArray
    bias: AnyArray
    input_norm: NormParams
    recurrent_norm: NormParams
    cell_norm: NormParams


@dataclass(frozen=True)
class LayerNormGRUParams:
    """Parameters of :func:`layer_norm_gru` for I inputs and H units; gates in the order r, u.

    Parameters
    ----------
    gate_input_weight, gate_recurrent_weight : arrays (I, 2H), (H, 2H)
    gate_bias : array (2H,)
    gate_input_norm, gate_recurrent_norm : NormParams (2H,)
    input_weight, recurrent_weight : arrays (I, H), (H, H)
        Of the candidate state.
    bias : array (H,)
    input_norm, recurrent_norm : NormParams (H,)
    """

    gate_input_weight: AnyArray
    gate_recurrent_weight: AnyArray
    gate_bias: AnyArray
    gate_input_norm: NormParams
    gate_recurrent_norm: NormParams
    input_weight: AnyArray
    recurrent_weight: AnyArray
    bias: AnyArray
    input_norm: NormParams
    recurrent_norm: NormParams


def layer_norm_rnn(
    x: Array[F],
    initial: Array[F],
    input_weight: Array[F],
    recurrent_weight: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float = 1e-5,
) -> Array[F]:
    """Run a plain recurrent network whose summed inputs are layer-normalized at every step.

    Parameters
    ----------
    x : array (T, N, I)
        T steps of N sequences.
    initial : array (N, H)
        State before the first step.
    input_weight, recurrent_weight : arrays (I, H), (H, H)
    gain, bias : arrays (H,)
        Shared by all steps.
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array (T, N, H)
        The state after each step.

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or ``eps <= 0``.

    Notes
    -----
    ``h_t = tanh(LN(h_{t-1} recurrent_weight + x_t input_weight))``.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, equation 4.

    Examples
    --------
    >>> x, h = np.ones((3, 1, 2)), np.zeros((1, 2))
    >>> layer_norm_rnn(x, h, np.eye(2), np.eye(2), np.ones(2), np.array([0.5, 0.0])).shape
    (3, 1, 2)
    """
    return layer_norm_rnn_vjp(x, initial, input_weight, recurrent_weight, gain, bias, eps=eps)[0]


def layer_norm_rnn_vjp(
    x: Array[F],
    initial: Array[F],
    input_weight: Array[F],
    recurrent_weight: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]:
    """Return :func:`layer_norm_rnn` and its pullback, one cotangent per argument.

    Parameters, errors and references are those of :func:`layer_norm_rnn`.
    """
    units = _check_sequence(x, {"initial": initial})
    inputs = x.shape[2]
    _check_tree(
        x,
        {"input_weight": input_weight, "recurrent_weight": recurrent_weight, "gain": gain, "bias": bias},
        {
            "input_weight": (inputs, units),
            "recurrent_weight": (units, units),
            "gain": (units,),
            "bias": (units,),
        },
    )
    h, states, steps = initial, [], []
    for x_t in x:
        a, pull_norm = layer_norm_vjp(h @ recurrent_weight + x_t @ input_weight, gain, bias, eps=eps)
        before, h = h, np.tanh(a)
        states.append(h)
        steps.append((x_t, before, h, pull_norm))

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # Backwards through time: a state is felt by its own output and by the next step.
        dh = np.zeros_like(initial)
        total = tree_map(np.zeros_like, (input_weight, recurrent_weight, gain, bias))
        dx = np.zeros_like(x)
        for t in reversed(range(len(steps))):
            x_t, before, h, pull_norm = steps[t]
            dsum, dgain, dbias = pull_norm((dh + dy[t]) * (1 - h * h))
            dx[t], dh = dsum @ input_weight.T, dsum @ recurrent_weight.T
            total = tree_map(np.add, total, (x_t.T @ dsum, before.T @ dsum, dgain, dbias))
        return dx, dh, *total

    return _stack(states, x, initial), pullback


def layer_norm_lstm(
    x: Array[F],
    initial: Array[F],
    initial_cell: Array[F],
    params: LayerNormLSTMParams,
    *,
    eps: float = 1e-5,
    double_bias: bool = False,
) -> tuple[Array[F], Array[F]]:
    """Run a layer-normalized LSTM.

    Parameters
    ----------
    x : array (T, N, I)
        T steps of N sequences.
    initial, initial_cell : arrays (N, H)
        State and cell before the first step.
    params : LayerNormLSTMParams
    eps : float > 0
        Added to the variances.
    double_bias : bool
        Add the gates' bias inside the normalized input sum as well, as the authors' Theano code does.

    Returns
    -------
    states, cells : arrays (T, N, H)
        After each step.

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or ``eps <= 0``.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, supplementary material on the LSTM.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> params = init_layer_norm_lstm(rng, 2, 3)
    >>> states, cells = layer_norm_lstm(rng.standard_normal((5, 1, 2)), np.zeros((1, 3)), np.zeros((1, 3)), params)
    >>> states.shape, cells.shape
    ((5, 1, 3), (5, 1, 3))
    """
    return layer_norm_lstm_vjp(x, initial, initial_cell, params, eps=eps, double_bias=double_bias)[0]


def layer_norm_lstm_vjp(
    x: Array[F],
    initial: Array[F],
    initial_cell: Array[F],
    params: LayerNormLSTMParams,
    *,
    eps: float = 1e-5,
    double_bias: bool = False,
) -> tuple[tuple[Array[F], Array[F]], Pullback]:
    """Return :func:`layer_norm_lstm` and ``(dstates, dcells) -> (dx, dinitial, dinitial_cell, dparams)``.

    Parameters, errors and references are those of :func:`layer_norm_lstm`.
    """
    units = _check_sequence(x, {"initial": initial, "initial_cell": initial_cell})
    _check_tree(x, params, _lstm_shapes(x.shape[2], units))
    h, c, states, cells, pullbacks = initial, initial_cell, [], [], []
    for x_t in x:
        (h, c), pull_step = _lstm_step(params, x_t, h, c, eps, double_bias)
        states.append(h)
        cells.append(c)
        pullbacks.append(pull_step)

    def pullback(cotangent: tuple[Array[F], Array[F]]) -> tuple[Any, ...]:
        dstates, dcells = cotangent
        dh, dc, dx = np.zeros_like(initial), np.zeros_like(initial_cell), np.zeros_like(x)
        dparams = _zeros_like(params, LayerNormLSTMParams)
        for t in reversed(range(len(pullbacks))):
            dx[t], dh, dc, dstep = pullbacks[t](dh + dstates[t], dc + dcells[t])
            dparams = tree_map(np.add, dparams, dstep)
        return dx, dh, dc, dparams

    return (_stack(states, x, initial), _stack(cells, x, initial)), pullback


def _lstm_step(
    params: LayerNormLSTMParams, x: AnyArray, h: AnyArray, c: AnyArray, eps: float, double_bias: bool
) -> tuple[tuple[AnyArray, AnyArray], Pullback]:
    inside = params.bias if double_bias else np.zeros_like(params.bias)
    from_state, pull_state = _normalized(h @ params.recurrent_weight, params.recurrent_norm, eps)
    from_input, pull_input = _normalized(x @ params.input_weight + inside, params.input_norm, eps)
    i, f, o, g = np.split(from_state + from_input + params.bias, 4, axis=-1)
    i, f, o, g = _sigmoid(i), _sigmoid(f), _sigmoid(o), np.tanh(g)
    new_c = f * c + i * g
    cell_hat, pull_cell = _normalized(new_c, params.cell_norm, eps)
    exposed = np.tanh(cell_hat)

    def pullback(dh: AnyArray, dc: AnyArray) -> tuple[Any, ...]:
        # The cell is felt through the state and by the next step. sigmoid' = s (1 - s), tanh' = 1 - t^2.
        dcell, dcell_norm = pull_cell(dh * o * (1 - exposed * exposed))
        dc = dc + dcell
        parts = (dc * g * i * (1 - i), dc * c * f * (1 - f), dh * exposed * o * (1 - o), dc * i * (1 - g * g))
        dgates = np.concatenate(parts, axis=-1)
        dfrom_state, drecurrent_norm = pull_state(dgates)
        dfrom_input, dinput_norm = pull_input(dgates)
        dbias = (dgates + dfrom_input if double_bias else dgates).sum(axis=0)
        dparams = LayerNormLSTMParams(
            x.T @ dfrom_input, h.T @ dfrom_state, dbias, dinput_norm, drecurrent_norm, dcell_norm
        )
        return dfrom_input @ params.input_weight.T, dfrom_state @ params.recurrent_weight.T, dc * f, dparams

    return (o * exposed, new_c), pullback


def layer_norm_gru(x: Array[F], initial: Array[F], params: LayerNormGRUParams, *, eps: float = 1e-5) -> Array[F]:
    """Run a layer-normalized GRU.

    Parameters
    ----------
    x : array (T, N, I)
        T steps of N sequences.
    initial : array (N, H)
        State before the first step.
    params : LayerNormGRUParams
    eps : float > 0
        Added to the variances.

    Returns
    -------
    array (T, N, H)
        The state after each step.

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or ``eps <= 0``.

    Notes
    -----
    The reset gate multiplies the normalized recurrent sum, after the product with the matrix.

    References
    ----------
    Ba, Kiros, Hinton (2016), arXiv 1607.06450, supplementary material on the GRU; the form is that of the
    authors' Theano code.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> params = init_layer_norm_gru(rng, 2, 3)
    >>> layer_norm_gru(rng.standard_normal((5, 1, 2)), np.zeros((1, 3)), params).shape
    (5, 1, 3)
    """
    return layer_norm_gru_vjp(x, initial, params, eps=eps)[0]


def layer_norm_gru_vjp(
    x: Array[F], initial: Array[F], params: LayerNormGRUParams, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]:
    """Return :func:`layer_norm_gru` and its pullback ``dstates -> (dx, dinitial, dparams)``.

    Parameters, errors and references are those of :func:`layer_norm_gru`.
    """
    units = _check_sequence(x, {"initial": initial})
    _check_tree(x, params, _gru_shapes(x.shape[2], units))
    h, states, pullbacks = initial, [], []
    for x_t in x:
        h, pull_step = _gru_step(params, x_t, h, eps)
        states.append(h)
        pullbacks.append(pull_step)

    def pullback(dstates: Array[F]) -> tuple[Any, ...]:
        dh, dx = np.zeros_like(initial), np.zeros_like(x)
        dparams = _zeros_like(params, LayerNormGRUParams)
        for t in reversed(range(len(pullbacks))):
            dx[t], dh, dstep = pullbacks[t](dh + dstates[t])
            dparams = tree_map(np.add, dparams, dstep)
        return dx, dh, dparams

    return _stack(states, x, initial), pullback


def _gru_step(params: LayerNormGRUParams, x: AnyArray, h: AnyArray, eps: float) -> tuple[AnyArray, Pullback]:
    gate_state, pull_gate_state = _normalized(h @ params.gate_recurrent_weight, params.gate_recurrent_norm, eps)
    gate_input, pull_gate_input = _normalized(
        x @ params.gate_input_weight + params.gate_bias, params.gate_input_norm, eps
    )
    r, u = np.split(_sigmoid(gate_state + gate_input), 2, axis=-1)
    from_state, pull_state = _normalized(h @ params.recurrent_weight, params.recurrent_norm, eps)
    from_input, pull_input = _normalized(x @ params.input_weight + params.bias, params.input_norm, eps)
    candidate = np.tanh(r * from_state + from_input)

    def pullback(dh: AnyArray) -> tuple[Any, ...]:
        dsum = dh * (1 - u) * (1 - candidate * candidate)
        dgates = np.concatenate((dsum * from_state * r * (1 - r), dh * (h - candidate) * u * (1 - u)), axis=-1)
        dfrom_state, drecurrent_norm = pull_state(dsum * r)
        dfrom_input, dinput_norm = pull_input(dsum)
        dgate_state, dgate_recurrent_norm = pull_gate_state(dgates)
        dgate_input, dgate_input_norm = pull_gate_input(dgates)
        dparams = LayerNormGRUParams(
            gate_input_weight=x.T @ dgate_input,
            gate_recurrent_weight=h.T @ dgate_state,
            gate_bias=dgate_input.sum(axis=0),
            gate_input_norm=dgate_input_norm,
            gate_recurrent_norm=dgate_recurrent_norm,
            input_weight=x.T @ dfrom_input,
            recurrent_weight=h.T @ dfrom_state,
            bias=dfrom_input.sum(axis=0),
            input_norm=dinput_norm,
            recurrent_norm=drecurrent_norm,
        )
        dx = dgate_input @ params.gate_input_weight.T + dfrom_input @ params.input_weight.T
        # The old state is kept in part, and enters both recurrent sums.
        dbefore = dh * u + dgate_state @ params.gate_recurrent_weight.T + dfrom_state @ params.recurrent_weight.T
        return dx, dbefore, dparams

    return u * h + (1 - u) * candidate, pullback


def init_layer_norm_lstm(
    rng: np.random.Generator, inputs: int, units: int, *, dtype: Any = np.float64
) -> LayerNormLSTMParams:
    """Draw parameters: orthogonal recurrent matrices, scaled Gaussian input weights, gains 1, biases 0.

    Parameters
    ----------
    rng : numpy.random.Generator
    inputs, units : int >= 1
    dtype : float32 or float64

    Returns
    -------
    LayerNormLSTMParams

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Examples
    --------
    >>> init_layer_norm_lstm(np.random.default_rng(0), 2, 3).recurrent_weight.shape
    (3, 12)
    """
    drawn: LayerNormLSTMParams = _initial(rng, inputs, units, dtype, LayerNormLSTMParams, _lstm_shapes)
    return drawn


def init_layer_norm_gru(
    rng: np.random.Generator, inputs: int, units: int, *, dtype: Any = np.float64
) -> LayerNormGRUParams:
    """Draw parameters: orthogonal recurrent matrices, scaled Gaussian input weights, gains 1, biases 0.

    Parameters
    ----------
    rng : numpy.random.Generator
    inputs, units : int >= 1
    dtype : float32 or float64

    Returns
    -------
    LayerNormGRUParams

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.

    Examples
    --------
    >>> init_layer_norm_gru(np.random.default_rng(0), 2, 3).gate_recurrent_weight.shape
    (3, 6)
    """
    drawn: LayerNormGRUParams = _initial(rng, inputs, units, dtype, LayerNormGRUParams, _gru_shapes)
    return drawn


def _initial(rng: Any, inputs: int, units: int, dtype: Any, record: Any, shapes_of: Any) -> Any:
    rng = _checks.generator(rng)
    inputs, units = _checks.whole(inputs, "inputs", low=1), _checks.whole(units, "units", low=1)
    drawn: dict[str, Any] = {}
    for path, shape in shapes_of(inputs, units).items():
        if path.endswith("recurrent_weight"):
            blocks = [np.linalg.qr(rng.standard_normal((units, units)))[0] for _ in range(shape[1] // units)]
            value = np.concatenate(blocks, axis=1)
        elif path.endswith("weight"):
            value = rng.standard_normal(shape) / np.sqrt(inputs)
        else:
            value = np.ones(shape) if path.endswith("gain") else np.zeros(shape)
        drawn[path] = value.astype(dtype)
    return _from_paths(record, drawn)


def _from_paths(record: Any, leaves: dict[str, Any]) -> Any:
    """Build a parameter record from leaves that are named like ``cell_norm.gain``."""
    names = dict.fromkeys(path.split(".")[0] for path in leaves)
    return record(
        **{
            name: leaves[name] if name in leaves else NormParams(leaves[f"{name}.gain"], leaves[f"{name}.bias"])
            for name in names
        }
    )


def _lstm_shapes(inputs: int, units: int) -> dict[str, tuple[int, ...]]:
    return {
        "input_weight": (inputs, 4 * units),
        "recurrent_weight": (units, 4 * units),
        "bias": (4 * units,),
        **_norm_shapes("input_norm", 4 * units),
        **_norm_shapes("recurrent_norm", 4 * units),
        **_norm_shapes("cell_norm", units),
    }


def _gru_shapes(inputs: int, units: int) -> dict[str, tuple[int, ...]]:
    return {
        "gate_input_weight": (inputs, 2 * units),
        "gate_recurrent_weight": (units, 2 * units),
        "gate_bias": (2 * units,),
        **_norm_shapes("gate_input_norm", 2 * units),
        **_norm_shapes("gate_recurrent_norm", 2 * units),
        "input_weight": (inputs, units),
        "recurrent_weight": (units, units),
        "bias": (units,),
        **_norm_shapes("input_norm", units),
        **_norm_shapes("recurrent_norm", units),
    }


def _norm_shapes(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.gain": (size,), f"{name}.bias": (size,)}


def _check_sequence(x: AnyArray, initial: dict[str, AnyArray]) -> int:
    """Check the sequence and the states before it; return the number of units."""
    _checks.float_array(x, "x", ndim=3)
    units = 0
    for name, state in initial.items():
        _checks.float_array(state, name, ndim=2)
        _checks.same_dtype("x", x, **{name: state})
        units = units or int(state.shape[1])
        _checks.shape(state, name, (x.shape[1], units))
        _checks.not_empty(state, name, (1,))
    return units


def _check_tree(x: AnyArray, tree: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    for path, expected in shapes.items():
        leaf = tree[path] if isinstance(tree, dict) else _leaf(tree, path)
        _checks.float_array(leaf, path)
        _checks.same_dtype("x", x, **{path: leaf})
        _checks.shape(leaf, path, expected)


def _leaf(record: Any, path: str) -> Any:
    for name in path.split("."):
        record = getattr(record, name)
    return record


def _zeros_like(params: Any, record: Any) -> Any:
    # Rebuilt as this module's record: a caller's may be any object with the same attributes.
    names = _lstm_shapes(1, 1) if record is LayerNormLSTMParams else _gru_shapes(1, 1)
    return _from_paths(record, {path: np.zeros_like(_leaf(params, path)) for path in names})


def _normalized(total: AnyArray, norm: NormParams, eps: float) -> tuple[AnyArray, Pullback]:
    y, pull = layer_norm_vjp(total, norm.gain, norm.bias, eps=eps)

    def pullback(dy: AnyArray) -> tuple[AnyArray, NormParams]:
        dtotal, dgain, dbias = pull(dy)
        return dtotal, NormParams(dgain, dbias)

    return y, pullback


def _sigmoid(x: AnyArray) -> AnyArray:
    # Equal to 1 / (1 + exp(-x)), without its overflow.
    y: AnyArray = 0.5 * (1 + np.tanh(0.5 * x))
    return y


def _stack(states: list[AnyArray], x: AnyArray, initial: AnyArray) -> AnyArray:
    return np.stack(states) if states else np.zeros((0, *initial.shape), x.dtype)
