"""N2N learning: recurrent policies that read a network layer by layer and make a smaller one of it.

    C = 1 - n_params / teacher_n_params        reward = C (2 - C) accuracy / teacher_accuracy
    gradient = mean over rollouts of (reward - baseline) grad log_prob(actions)

One policy drops layers, the other one shrinks those that are left; training the student is the caller's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.nn import linear_vjp
from refnorm.quantizers._descent import Descent
from refnorm.softmax import log_softmax_vjp
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning",
    authors="Ashok, Rhinehart, Beainy, Kitani",
    year=2018,
    arxiv="1709.06030",
    functions=(
        "compression_reward",
        "reward_baseline",
        "count_params",
        "apply_removal",
        "apply_shrink",
        "encode_layers",
        "LSTMParams",
        "lstm",
        "bilstm",
        "RemovalParams",
        "removal_log_prob",
        "RemovalPolicy",
        "ShrinkParams",
        "shrink_log_prob",
        "ShrinkPolicy",
        "SearchResult",
        "reinforce_search",
        "n2n_search",
    ),
    chapter="quantizers/network_to_network",
)

INVALID_REWARD = -1.0
"""Of a student that cannot be built; every buildable one that meets the limits has at least 0."""

ANNEALING_EPOCHS, ANNEALING_POWER = 15, 4
"""A broken limit costs little at first, 1 from epoch 15 on (the authors' schedule)."""

FACTORS = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The authors' list; the repeated half is five times as likely at the start."""

MIN_WIDTH = 10
MLP_FEATURES, WIDTH_ENTRY = 4, 2
"""Entries of a layer's code in :func:`encode_layers`, and which of them is the width."""

MOVING_SHARE = 0.1
"""Weight of the latest batch in the moving-average baseline."""

Policy: TypeAlias = "RemovalPolicy | ShrinkPolicy"


def compression_reward(
    accuracy: float,
    n_params: int,
    teacher_accuracy: float,
    teacher_n_params: int,
    *,
    size_limit: int | None = None,
    accuracy_limit: float | None = None,
    epoch: int | None = None,
) -> float:
    """Return what a student is worth: how small it is times how good it is.

    Parameters
    ----------
    accuracy : float in [0, 1]
    n_params : int from 0 to ``teacher_n_params``
    teacher_accuracy : float in (0, 1]
    teacher_n_params : int >= 1
    size_limit, accuracy_limit : int, float or None
        More parameters or less accuracy than this break a limit.
    epoch : int >= 0 or None
        How far the search is; a broken limit costs the more the later. None: all of it at once.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range; so is a teacher that is never right.

    Notes
    -----
    With ``C = 1 - n_params / teacher_n_params`` the reward is ``R = C (2 - C) accuracy / teacher_accuracy``,
    and ``(w - 1) + w R`` if a limit is broken, ``w = max(0, (1 - epoch / 15)^4)`` capped at 1.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on the reward function.

    Examples
    --------
    >>> round(compression_reward(0.92, 100, 0.95, 1000), 6)
    0.958737
    >>> compression_reward(0.92, 100, 0.95, 1000, size_limit=50)
    -1.0
    """
    _checks.in_range(accuracy, "accuracy", 0.0, 1.0)
    _checks.in_range(teacher_accuracy, "teacher_accuracy", 0.0, 1.0, closed="right")
    _checks.whole(teacher_n_params, "teacher_n_params", low=1)
    _checks.whole(n_params, "n_params", low=0, high=teacher_n_params)
    compression = 1 - n_params / teacher_n_params
    reward = compression * (2 - compression) * accuracy / teacher_accuracy
    too_large = size_limit is not None and n_params > size_limit
    too_bad = accuracy_limit is not None and accuracy < accuracy_limit
    if not (too_large or too_bad):
        return float(reward)
    share = 0.0 if epoch is None else 1 - min(_checks.whole(epoch, "epoch", low=0) / ANNEALING_EPOCHS, 1.0)
    share = share**ANNEALING_POWER
    return float(share - 1 + share * reward)


def reward_baseline(earlier: Array[F], *, kind: str = "mean") -> float:
    """Return the number that is subtracted from an iteration's rewards.

    Parameters
    ----------
    earlier : array (e,)
        Average rewards of the iterations before; may be empty.
    kind : {"mean", "moving"}
        ``mean``: their sum divided by ``e + 1``. ``moving``: an exponential average in which the latest one
        has weight 0.1; it begins at the first one.

    Returns
    -------
    float
        0 before the first iteration.

    Raises
    ------
    TypeError, ValueError
        If ``earlier`` is not a vector of floats or ``kind`` unknown.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030; the running mean is that of the authors' code.

    Examples
    --------
    >>> reward_baseline(np.array([0.25, 0.5])), reward_baseline(np.array([]))
    (0.25, 0.0)
    """
    earlier = _checks.float_array(earlier, "earlier", ndim=1)
    _checks.one_of(kind, "kind", ("mean", "moving"))
    if not earlier.size:
        return 0.0
    if kind == "mean":
        return math.fsum(earlier) / (earlier.size + 1)
    share = MOVING_SHARE * (1 - MOVING_SHARE) ** np.arange(earlier.size - 1, -1, -1)
    share[0] /= MOVING_SHARE
    return float(share @ earlier)


def count_params(sizes: Sequence[int]) -> int:
    """Return the number of weights and biases of a multilayer perceptron.

    Parameters
    ----------
    sizes : ints >= 1
        Inputs, hidden widths, outputs.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If there are fewer than two sizes or one is not a positive integer.

    Examples
    --------
    >>> count_params((64, 128, 10))
    9610
    """
    checked = _check_sizes(sizes)
    return sum((before + 1) * after for before, after in itertools.pairwise(checked))


def _check_sizes(sizes: Sequence[int], name: str = "sizes") -> tuple[int, ...]:
    if len(sizes) < 2:
        _checks.fail(name, "at least inputs and outputs", tuple(sizes))
    return tuple(_checks.whole(size, name, low=1) for size in sizes)


def apply_removal(sizes: Sequence[int], keep: Sequence[int]) -> tuple[int, ...] | None:
    """Drop hidden layers; each layer behind a gap reads what the layer before the gap gives.

    Parameters
    ----------
    sizes : ints >= 1
        Inputs, hidden widths, outputs.
    keep : one 0 or 1 for each hidden layer

    Returns
    -------
    tuple of ints, or None
        None if no hidden layer is left: no valid student.

    Raises
    ------
    TypeError, ValueError
        If ``keep`` has another length or other entries.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on layer removal.

    Examples
    --------
    >>> apply_removal((64, 128, 32, 16, 10), (1, 0, 1))
    (64, 128, 16, 10)
    """
    checked = _check_sizes(sizes)
    mask = _checks.integer_array(keep, "keep", ndim=1, low=0, high=1)
    _checks.shape(mask, "keep", (len(checked) - 2,))
    hidden = tuple(size for size, kept in zip(checked[1:-1], mask, strict=True) if kept)
    return (checked[0], *hidden, checked[-1]) if hidden else None


def apply_shrink(sizes: Sequence[int], factors: Sequence[float], *, min_width: int = MIN_WIDTH) -> tuple[int, ...]:
    """Multiply the widths of hidden layers.

    Parameters
    ----------
    sizes : ints >= 1
        Inputs, hidden widths, outputs.
    factors : one number in (0, 1] for each hidden layer
    min_width : int >= 1
        Nothing is made narrower than this; what is narrower already stays as it is.

    Returns
    -------
    tuple of ints
        ``min(n, max(floor(factor * n), min_width))`` in the place of each width ``n``.

    Raises
    ------
    TypeError, ValueError
        If ``factors`` has another length or an entry out of its range.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on layer shrinkage; truncation as in the authors' code.

    Examples
    --------
    >>> apply_shrink((64, 64, 16, 10), (0.7, 0.25))
    (64, 44, 10, 10)
    """
    checked = _check_sizes(sizes)
    factor = _checks.float_array(np.asarray(factors, dtype=float), "factors", ndim=1)
    _checks.shape(factor, "factors", (len(checked) - 2,))
    _check_factors(factor)
    _checks.whole(min_width, "min_width", low=1)
    hidden = (
        min(size, max(math.floor(size * one), min_width)) for size, one in zip(checked[1:-1], factor, strict=True)
    )
    return (checked[0], *hidden, checked[-1])


def _check_factors(factors: AnyArray) -> None:
    if not ((factors > 0) & (factors <= 1)).all():
        _checks.fail("factors", "numbers in (0, 1]", factors)


def encode_layers(sizes: Sequence[int]) -> Array[np.float64]:
    """Return what the policies read about a multilayer perceptron.

    Parameters
    ----------
    sizes : ints >= 1
        Inputs, hidden widths, outputs.

    Returns
    -------
    array (L, 4)
        For each linear layer: 1 (its type), inputs and outputs divided by the largest size, place ``t / L``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`count_params`.

    Examples
    --------
    >>> encode_layers((4, 8, 2))
    array([[1.  , 0.5 , 1.  , 0.5 ],
           [1.  , 1.  , 0.25, 1.  ]])
    """
    widths = np.array(_check_sizes(sizes), dtype=float)
    layers = len(widths) - 1
    scaled = widths / widths.max()
    return np.column_stack([np.ones(layers), scaled[:-1], scaled[1:], np.arange(1, layers + 1) / layers])


@dataclass(frozen=True, eq=False)
class LSTMParams:
    """Parameters of one LSTM with D inputs and H units; gates in the order i, f, o, g.

    Parameters
    ----------
    input_weight : array (D, 4H)
    recurrent_weight : array (H, 4H)
    bias : array (4H,)
    """

    input_weight: AnyArray
    recurrent_weight: AnyArray
    bias: AnyArray


def lstm(x: Array[F], input_weight: Array[F], recurrent_weight: Array[F], bias: Array[F]) -> Array[F]:
    """Run an LSTM from a zero state.

    Parameters
    ----------
    x : array (T, ..., D)
        T >= 1 steps; axes between time and features are independent sequences.
    input_weight, recurrent_weight : arrays (D, 4H), (H, 4H)
        Gates in the order i, f, o, g.
    bias : array (4H,)

    Returns
    -------
    array (T, ..., H)
        The state after each step.

    Raises
    ------
    TypeError, ValueError
        If there is no step, a shape is wrong, or dtypes are not one of float32 and float64.

    Notes
    -----
    ``i, f, o = sigmoid(.)`` and ``g = tanh(.)`` of ``x_t input_weight + h recurrent_weight + bias``;
    ``c = f c + i g``, ``h = o tanh(c)``.

    References
    ----------
    Hochreiter, Schmidhuber (1997), with the forget gate of Gers et al. (2000).

    Examples
    --------
    >>> lstm(np.ones((2, 1)), np.zeros((1, 4)), np.zeros((1, 4)), np.array([0.0, 0.0, 0.0, 1.0])).round(4)
    array([[0.1817],
           [0.2581]])
    """
    return lstm_vjp(x, input_weight, recurrent_weight, bias)[0]


def lstm_vjp(
    x: Array[F], input_weight: Array[F], recurrent_weight: Array[F], bias: Array[F]
) -> tuple[Array[F], Pullback]:
    """Return :func:`lstm` and its pullback ``dh -> (dx, dinput_weight, drecurrent_weight, dbias)``.

    Parameters, errors and references are those of :func:`lstm`.
    """
    x, params = _check_lstm(x, LSTMParams(input_weight, recurrent_weight, bias))
    w_x, w_h = params.input_weight, params.recurrent_weight
    from_input = x @ w_x + params.bias
    h = c = np.zeros((*x.shape[1:-1], w_h.shape[0]), from_input.dtype)
    states, steps = [h], []
    for summed in from_input:
        h, c, pull = _cell_vjp(summed + h @ w_h, c)
        states.append(h)
        steps.append(pull)

    def pullback(dy: AnyArray) -> tuple[AnyArray, ...]:
        # Backwards through time: a state is felt by its own output and, through w_h, by the next step.
        dh, dc, dsummed = np.zeros_like(h), np.zeros_like(h), np.zeros_like(from_input)
        for t in reversed(range(len(steps))):
            dsummed[t], dc = steps[t](dh + dy[t], dc)
            dh = dsummed[t] @ w_h.T
        rows, before = dsummed.reshape(-1, dsummed.shape[-1]), np.stack(states[:-1])
        return (
            dsummed @ w_x.T,
            x.reshape(-1, x.shape[-1]).T @ rows,
            before.reshape(-1, before.shape[-1]).T @ rows,
            rows.sum(axis=0),
        )

    return np.stack(states[1:]), pullback


def _cell_vjp(summed: AnyArray, c: AnyArray) -> tuple[AnyArray, AnyArray, Pullback]:
    """Return state, cell, and ``(dh, dc) -> (dsummed, dc_before)`` of one step."""
    i, f, o, g = np.split(summed, 4, axis=-1)
    i, f, o, g = _sigmoid(i), _sigmoid(f), _sigmoid(o), np.tanh(g)
    new_c = f * c + i * g
    exposed = np.tanh(new_c)

    def pullback(dh: AnyArray, dc: AnyArray) -> tuple[AnyArray, AnyArray]:
        # The cell is felt through its state and by the next step. sigmoid' = s (1 - s), tanh' = 1 - t^2.
        dc = dc + dh * o * (1 - exposed * exposed)
        gates = (dc * g * i * (1 - i), dc * c * f * (1 - f), dh * exposed * o * (1 - o), dc * i * (1 - g * g))
        return np.concatenate(gates, axis=-1), dc * f

    return o * exposed, new_c, pullback


def _sigmoid(x: AnyArray) -> AnyArray:
    # The same function as 1 / (1 + exp(-x)), and nothing in it overflows.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _check_lstm(x: AnyArray, params: LSTMParams) -> tuple[AnyArray, LSTMParams]:
    x = _checks.float_array(x, "x", min_ndim=2)
    _checks.not_empty(x, "x", (0,))
    w_x = _checks.float_array(params.input_weight, "input_weight", ndim=2)
    w_h = _checks.float_array(params.recurrent_weight, "recurrent_weight", ndim=2)
    bias = _checks.float_array(params.bias, "bias", ndim=1)
    _checks.same_dtype("x", x, input_weight=w_x, recurrent_weight=w_h, bias=bias)
    units = w_h.shape[0]
    _checks.shape(w_x, "input_weight", (x.shape[-1], 4 * units))
    _checks.shape(w_h, "recurrent_weight", (units, 4 * units))
    _checks.shape(bias, "bias", (4 * units,))
    return x, LSTMParams(w_x, w_h, bias)


def bilstm(x: Array[F], forward: LSTMParams, backward: LSTMParams) -> Array[F]:
    """Run one LSTM forwards and another one backwards over the same sequence.

    Parameters
    ----------
    x : array (T, ..., D)
    forward, backward : LSTMParams
        For D inputs and H units each.

    Returns
    -------
    array (T, ..., 2H)
        At each step the state of the forward one, then that of the backward one.

    Raises
    ------
    TypeError, ValueError
        As for :func:`lstm`.

    Examples
    --------
    >>> params = LSTMParams(np.zeros((1, 4)), np.zeros((1, 4)), np.array([0.0, 0.0, 0.0, 1.0]))
    >>> bilstm(np.ones((2, 1)), params, params).round(4)
    array([[0.1817, 0.2581],
           [0.2581, 0.1817]])
    """
    return bilstm_vjp(x, forward, backward)[0]


def bilstm_vjp(x: Array[F], forward: LSTMParams, backward: LSTMParams) -> tuple[Array[F], Pullback]:
    """Return :func:`bilstm` and its pullback ``dh -> (dx, dforward, dbackward)``.

    Parameters and errors are those of :func:`bilstm`.
    """
    there, pull_there = lstm_vjp(x, forward.input_weight, forward.recurrent_weight, forward.bias)
    back, pull_back = lstm_vjp(x[::-1], backward.input_weight, backward.recurrent_weight, backward.bias)
    units = there.shape[-1]

    def pullback(dy: AnyArray) -> tuple[AnyArray, LSTMParams, LSTMParams]:
        dx_there, *dthere = pull_there(dy[..., :units])
        dx_back, *dback = pull_back(dy[::-1, ..., units:])
        return dx_there + dx_back[::-1], LSTMParams(*dthere), LSTMParams(*dback)

    return np.concatenate([there, back[::-1]], axis=-1), pullback


def _uniform(rng: np.random.Generator, hidden: int, *shape: int) -> Array[np.float64]:
    drawn: Array[np.float64] = rng.uniform(-1, 1, shape) / np.sqrt(hidden)
    return drawn


def _init_lstm(rng: np.random.Generator, features: int, hidden: int) -> LSTMParams:
    shapes = ((features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
    return LSTMParams(*(_uniform(rng, hidden, *shape) for shape in shapes))


@dataclass(frozen=True, eq=False)
class RemovalParams:
    """Parameters of a :class:`RemovalPolicy` for D features and H units.

    Parameters
    ----------
    forward, backward : LSTMParams
    head_weight : array (2H, 2)
        To the logits of removing and keeping.
    head_bias : array (2,)
    """

    forward: LSTMParams
    backward: LSTMParams
    head_weight: AnyArray
    head_bias: AnyArray


def removal_log_prob(
    params: RemovalParams, x: Array[F], actions: IntArray, *, free: Array[np.bool_] | None = None
) -> Array[F]:
    """Return the logarithm of the probability that the policy keeps and removes these layers.

    Parameters
    ----------
    params : RemovalParams
    x : array (L, D)
        The layers' codes.
    actions : int array (M, L)
        M rollouts; 1 keeps a layer, 0 removes it.
    free : bool array (L,), optional
        Layers that the policy decides about; the others do not count. By default all.

    Returns
    -------
    array (M,)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit or an action is unknown.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on layer removal.

    Examples
    --------
    >>> policy = RemovalPolicy.init(np.random.default_rng(0), 4)
    >>> x, masks = encode_layers((8, 8, 4, 2)), np.array(list(itertools.product((0, 1), repeat=3)))
    >>> float(np.exp(removal_log_prob(policy.params, x, masks)).sum().round(12))
    1.0
    """
    return removal_log_prob_vjp(params, x, actions, free=free)[0]


def removal_log_prob_vjp(
    params: RemovalParams, x: Array[F], actions: IntArray, *, free: Array[np.bool_] | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`removal_log_prob` and its pullback ``dlog_prob -> (dparams, dx)``.

    Parameters, errors and references are those of :func:`removal_log_prob`.
    """
    actions = _checks.integer_array(actions, "actions", ndim=2, low=0, high=1)
    log_p, pull = _removal_distribution_vjp(params, x)
    _checks.shape(actions, "actions", (len(actions), len(x)))
    log_prob, pull_chosen = _chosen_vjp(np.broadcast_to(log_p, (len(actions), *log_p.shape)), actions, free)

    def pullback(dlog_prob: AnyArray) -> tuple[Any, ...]:
        # All rollouts read the same states, so their cotangents add before the one walk back through time.
        return pull(pull_chosen(dlog_prob).sum(axis=0))

    return log_prob, pullback


def _removal_distribution_vjp(params: RemovalParams, x: AnyArray) -> tuple[AnyArray, Pullback]:
    """Return log-probabilities (L, 2) of removing and keeping, and their pullback to ``(dparams, dx)``."""
    x = _checks.float_array(x, "x", ndim=2)
    states, pull_states = bilstm_vjp(x, params.forward, params.backward)
    logits, pull_head = linear_vjp(states, params.head_weight, params.head_bias)
    log_p, pull_log = log_softmax_vjp(logits)

    def pullback(dlog_p: AnyArray) -> tuple[RemovalParams, AnyArray]:
        dstates, dweight, dbias = pull_head(pull_log(dlog_p)[0])
        dx, dforward, dbackward = pull_states(dstates)
        return RemovalParams(dforward, dbackward, dweight, dbias), dx

    return log_p, pullback


def _chosen_vjp(
    log_p: AnyArray, actions: AnyArray, free: AnyArray | None
) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    """Sum the log-probabilities (M, L, ..., K) of the chosen actions (M, L, ...) of free layers."""
    weight = np.ones(actions.shape[1:], log_p.real.dtype)
    if free is not None:
        free = np.asarray(free)
        if free.dtype != np.bool_:
            _checks.fail_type("free", "a boolean array", f"dtype {free.dtype}")
        _checks.shape(free, "free", actions.shape[1:2])
        weight[~free] = 0
    index = actions[..., None]
    chosen = np.take_along_axis(log_p, index, axis=-1)[..., 0] * weight

    def pullback(dsum: AnyArray) -> AnyArray:
        dlog_p = np.zeros_like(log_p)
        each = np.asarray(dsum).reshape(-1, *(1,) * weight.ndim) * weight
        np.put_along_axis(dlog_p, index, each[..., None].astype(dlog_p.dtype), axis=-1)
        return dlog_p

    return chosen.sum(axis=tuple(range(1, chosen.ndim))), pullback


def _draw(log_p: AnyArray, shape: tuple[int, ...], rng: np.random.Generator) -> IntArray:
    """Draw one action for each entry of ``shape`` from distributions along the last axis of ``log_p``."""
    below = np.cumsum(np.exp(log_p), axis=-1)[..., :-1]
    drawn: IntArray = (rng.random((*shape, 1)) > below).sum(axis=-1)
    return drawn


@dataclass(frozen=True, eq=False)
class RemovalPolicy:
    """Which layers to keep: a bidirectional LSTM and, for each layer, two actions.

    Parameters
    ----------
    params : RemovalParams

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on layer removal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> policy, x = RemovalPolicy.init(rng, 4), encode_layers((64, 32, 32, 10))
    >>> actions = policy.sample(x, rng, n_rollouts=2)
    >>> actions.shape, policy.log_prob(x, actions).shape
    ((2, 3), (2,))
    """

    params: RemovalParams

    @classmethod
    def init(cls, rng: np.random.Generator, features: int, *, hidden: int = 16) -> RemovalPolicy:
        """Return a policy whose parameters are uniform on ``-1 / sqrt(hidden)`` to ``1 / sqrt(hidden)``."""
        rng = _checks.generator(rng)
        _checks.whole(features, "features", low=1)
        _checks.whole(hidden, "hidden", low=1)
        forward, backward = (_init_lstm(rng, features, hidden) for _ in range(2))
        return cls(RemovalParams(forward, backward, _uniform(rng, hidden, 2 * hidden, 2), _uniform(rng, hidden, 2)))

    def sample(self, x: Array[F], rng: np.random.Generator, *, n_rollouts: int = 1) -> IntArray:
        """Return drawn actions (n_rollouts, L): 1 keeps a layer, 0 removes it."""
        _checks.whole(n_rollouts, "n_rollouts", low=1)
        log_p, _ = _removal_distribution_vjp(self.params, x)
        return _draw(log_p, (n_rollouts, len(x)), _checks.generator(rng))

    def log_prob(self, x: Array[F], actions: IntArray, *, free: Array[np.bool_] | None = None) -> Array[F]:
        """Return :func:`removal_log_prob` with these parameters."""
        return removal_log_prob(self.params, x, actions, free=free)

    def log_prob_vjp(
        self, x: Array[F], actions: IntArray, *, free: Array[np.bool_] | None = None
    ) -> tuple[Array[F], Pullback]:
        """Return :func:`removal_log_prob` and its pullback ``dlog_prob -> (dparams, dx)``."""
        return removal_log_prob_vjp(self.params, x, actions, free=free)

    def log_probs(self, x: Array[F], actions: IntArray) -> Array[F]:
        """Return the log-probabilities (M, L, 2) of all actions."""
        log_p, _ = _removal_distribution_vjp(self.params, x)
        return np.broadcast_to(log_p, (len(actions), *log_p.shape))


@dataclass(frozen=True, eq=False)
class ShrinkParams:
    """Parameters of a :class:`ShrinkPolicy` for D features, H units and K factors.

    Parameters
    ----------
    cell : LSTMParams
    head_weight : array (H, K)
    head_bias : array (K,)
    """

    cell: LSTMParams
    head_weight: AnyArray
    head_bias: AnyArray


def shrink_log_prob(
    params: ShrinkParams,
    x: Array[F],
    actions: IntArray,
    *,
    factors: Sequence[float] = FACTORS,
    decided: Sequence[int] = (WIDTH_ENTRY,),
    free: Array[np.bool_] | None = None,
) -> Array[F]:
    """Return the logarithm of the probability that the policy chooses these factors.

    Parameters
    ----------
    params : ShrinkParams
    x : array (L, D)
        The layers' codes.
    actions : int array (M, L, J)
        M rollouts; which factor each of the J decided entries of a layer takes.
    factors : K numbers in (0, 1]
    decided : J distinct ints
        Entries of a layer's code that are decided, in this order.
    free : bool array (L,), optional
        Layers that the policy decides about; the others do not count. By default all.

    Returns
    -------
    array (M,)

    Raises
    ------
    TypeError, ValueError
        If a shape or dtype does not fit or an action is unknown.

    Notes
    -----
    One step of the LSTM for each decision. An entry is multiplied by its factor before the next decision of
    the same layer, so that later entries see the earlier decisions. Layers that are not free are read
    with their actions too.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on layer shrinkage.

    Examples
    --------
    >>> policy = ShrinkPolicy.init(np.random.default_rng(0), 4, factors=(0.5, 1.0))
    >>> x, actions = encode_layers((8, 8, 2)), np.array(list(itertools.product((0, 1), repeat=2)))[:, :, None]
    >>> float(np.exp(shrink_log_prob(policy.params, x, actions, factors=(0.5, 1.0))).sum().round(12))
    1.0
    """
    return shrink_log_prob_vjp(params, x, actions, factors=factors, decided=decided, free=free)[0]


def shrink_log_prob_vjp(
    params: ShrinkParams,
    x: Array[F],
    actions: IntArray,
    *,
    factors: Sequence[float] = FACTORS,
    decided: Sequence[int] = (WIDTH_ENTRY,),
    free: Array[np.bool_] | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`shrink_log_prob` and its pullback ``dlog_prob -> (dparams, dx)``.

    Parameters, errors and references are those of :func:`shrink_log_prob`.
    """
    log_p, pull = _shrink_distribution_vjp(params, x, actions, factors, decided)
    log_prob, pull_chosen = _chosen_vjp(log_p, np.asarray(actions), free)
    return log_prob, lambda dlog_prob: pull(pull_chosen(dlog_prob))


def _shrink_distribution_vjp(
    params: ShrinkParams, x: AnyArray, actions: IntArray, factors: Sequence[float], decided: Sequence[int]
) -> tuple[AnyArray, Pullback]:
    """Return log-probabilities (M, L, J, K) given the actions before, and their pullback to ``(dparams, dx)``."""
    x = _checks.float_array(x, "x", ndim=2)
    table, entries = _check_decisions(x, factors, decided)
    actions = _checks.integer_array(actions, "actions", ndim=3, low=0, high=len(table) - 1)
    rollouts, layers, count = actions.shape
    _checks.shape(actions, "actions", (rollouts, len(x), len(entries)))

    # shrunk[m, t, j] multiplies layer t's code at decision j: entries decided earlier carry their factors.
    shrunk = np.ones((rollouts, layers, count, x.shape[1]), x.real.dtype)
    for j, entry in enumerate(entries[:-1]):
        shrunk[:, :, j + 1 :, entry] = table[actions[:, :, j, None]]
    seen = np.moveaxis((x[:, None] * shrunk).reshape(rollouts, layers * count, -1), 1, 0)
    cell = params.cell
    states, pull_states = lstm_vjp(seen, cell.input_weight, cell.recurrent_weight, cell.bias)
    logits, pull_head = linear_vjp(states, params.head_weight, params.head_bias)
    _checks.shape(np.asarray(params.head_bias), "head_bias", (len(table),))
    log_p, pull_log = log_softmax_vjp(logits)

    def pullback(dlog_p: AnyArray) -> tuple[ShrinkParams, AnyArray]:
        rows = np.moveaxis(dlog_p.reshape(rollouts, layers * count, -1), 1, 0)
        dstates, dweight, dbias = pull_head(pull_log(rows)[0])
        dseen, *dcell = pull_states(dstates)
        # Chosen factors are constants: the way back through the feedback is a multiplication.
        dx = (np.moveaxis(dseen, 0, 1).reshape(shrunk.shape) * shrunk).sum(axis=(0, 2))
        return ShrinkParams(LSTMParams(*dcell), dweight, dbias), dx

    return np.moveaxis(log_p, 0, 1).reshape(rollouts, layers, count, -1), pullback


def _check_decisions(x: AnyArray, factors: Sequence[float], decided: Sequence[int]) -> tuple[AnyArray, tuple[int, ...]]:
    table = _checks.float_array(np.asarray(factors, dtype=x.real.dtype), "factors", ndim=1)
    _checks.not_empty(table, "factors", (0,))
    _check_factors(table)
    entries = tuple(_checks.whole(entry, "decided", low=0, high=x.shape[1] - 1) for entry in decided)
    if not entries or len(set(entries)) != len(entries):
        _checks.fail("decided", "distinct entries, at least one", entries)
    return table, entries


@dataclass(frozen=True, eq=False)
class ShrinkPolicy:
    """By which factors to shrink: an LSTM that takes one step, and one draw, for each decision.

    Parameters
    ----------
    params : ShrinkParams
    factors : K numbers in (0, 1]
    decided : ints
        Entries of a layer's code that are decided, in this order.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030, section on layer shrinkage.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> policy, x = ShrinkPolicy.init(rng, 4), encode_layers((64, 32, 32, 10))
    >>> actions = policy.sample(x, rng, n_rollouts=2)
    >>> actions.shape, policy.log_prob(x, actions).shape
    ((2, 3, 1), (2,))
    """

    params: ShrinkParams
    factors: tuple[float, ...] = FACTORS
    decided: tuple[int, ...] = (WIDTH_ENTRY,)

    @classmethod
    def init(
        cls,
        rng: np.random.Generator,
        features: int,
        *,
        hidden: int = 16,
        factors: Sequence[float] = FACTORS,
        decided: Sequence[int] = (WIDTH_ENTRY,),
    ) -> ShrinkPolicy:
        """Return a policy whose parameters are uniform on ``-1 / sqrt(hidden)`` to ``1 / sqrt(hidden)``."""
        rng = _checks.generator(rng)
        _checks.whole(features, "features", low=1)
        _checks.whole(hidden, "hidden", low=1)
        count = len(factors)
        cell = _init_lstm(rng, features, hidden)
        params = ShrinkParams(cell, _uniform(rng, hidden, hidden, count), _uniform(rng, hidden, count))
        return cls(params, tuple(factors), tuple(decided))

    def sample(self, x: Array[F], rng: np.random.Generator, *, n_rollouts: int = 1) -> IntArray:
        """Return drawn actions (n_rollouts, L, J), indices into ``factors``."""
        x, rng = _checks.float_array(x, "x", ndim=2), _checks.generator(rng)
        _checks.whole(n_rollouts, "n_rollouts", low=1)
        table, entries = _check_decisions(x, self.factors, self.decided)
        _, cell = _check_lstm(x, self.params.cell)
        h = c = np.zeros((n_rollouts, cell.recurrent_weight.shape[0]), x.dtype)
        drawn = np.zeros((n_rollouts, len(x), len(entries)), np.int64)
        for t, code in enumerate(x):
            seen = np.tile(code, (n_rollouts, 1))
            for j, entry in enumerate(entries):
                h, c, _ = _cell_vjp(seen @ cell.input_weight + h @ cell.recurrent_weight + cell.bias, c)
                log_p, _ = log_softmax_vjp(h @ self.params.head_weight + self.params.head_bias)
                drawn[:, t, j] = _draw(log_p, (n_rollouts,), rng)
                seen[:, entry] *= table[drawn[:, t, j]]
        return drawn

    def log_prob(self, x: Array[F], actions: IntArray, *, free: Array[np.bool_] | None = None) -> Array[F]:
        """Return :func:`shrink_log_prob` with these parameters, factors and entries."""
        return self.log_prob_vjp(x, actions, free=free)[0]

    def log_prob_vjp(
        self, x: Array[F], actions: IntArray, *, free: Array[np.bool_] | None = None
    ) -> tuple[Array[F], Pullback]:
        """Return :func:`shrink_log_prob` and its pullback ``dlog_prob -> (dparams, dx)``."""
        return shrink_log_prob_vjp(self.params, x, actions, factors=self.factors, decided=self.decided, free=free)

    def log_probs(self, x: Array[F], actions: IntArray) -> Array[F]:
        """Return the log-probabilities (M, L, J, K) of all actions, given those before."""
        return _shrink_distribution_vjp(self.params, x, actions, self.factors, self.decided)[0]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found.

    Parameters
    ----------
    best : int array, tuple of ints or None
        The actions (:func:`reinforce_search`) or the student's sizes (:func:`n2n_search`) with the largest
        reward that was met; None if no student was valid.
    best_reward : float
    policy : RemovalPolicy or ShrinkPolicy
        After the last step; it may start the next search, for a network of any depth.
    n_iter : int
    history : dict of arrays
        One entry an iteration: ``mean_reward``, ``best_reward`` so far, ``baseline``, and ``entropy``, the mean
        over decisions in nats.
    """

    best: Any
    best_reward: float
    policy: Policy
    n_iter: int
    history: Mapping[str, AnyArray]


def reinforce_search(
    policy: Policy,
    x: Array[F],
    reward: Callable[[IntArray, int], float],
    *,
    n_iter: int,
    rng: np.random.Generator,
    n_rollouts: int = 5,
    learning_rate: float = 3e-3,
    baseline: str = "mean",
    credit: str = "rollout",
    free: Array[np.bool_] | None = None,
    callback: Callback | None = None,
) -> SearchResult:
    """Raise the expected reward of a policy's actions by REINFORCE.

    Parameters
    ----------
    policy : RemovalPolicy or ShrinkPolicy
    x : array (L, D)
        The layers' codes.
    reward : function (actions of one rollout, iteration) -> finite float
    n_iter : int >= 1
    rng : numpy.random.Generator
    n_rollouts : int >= 1
        Rollouts in an iteration.
    learning_rate : float > 0
        Of Adam.
    baseline : {"mean", "moving"}
        See :func:`reward_baseline`.
    credit : {"rollout", "batch"}
        ``rollout``: each rollout has its own reward, one step an iteration. ``batch``: every rollout has the
        average reward of its batch, and a step of its own.
    free : bool array (L,), optional
        Layers that the policy decides about. By default all.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the search.

    Returns
    -------
    SearchResult

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an option does not fit, or a reward is not finite.

    References
    ----------
    Williams (1992), Machine Learning 8, the REINFORCE algorithm; Ashok et al. (2018), arXiv 1709.06030.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = encode_layers((8, 8, 8, 8))
    >>> found = reinforce_search(RemovalPolicy.init(rng, 4), x, lambda a, e: a.mean(), n_iter=30, rng=rng)
    >>> found.best, found.best_reward
    (array([1, 1, 1]), 1.0)
    """
    rng = _checks.generator(rng)
    _checks.whole(n_iter, "n_iter", low=1)
    _checks.one_of(credit, "credit", ("rollout", "batch"))
    descent = Descent({name: learning_rate for name, _ in tree_leaves(policy.params)})
    monitor = Monitor("reinforce_search", callback=callback)
    best, best_reward, averages = None, -np.inf, np.zeros(0)
    for iteration in range(n_iter):
        actions = policy.sample(x, rng, n_rollouts=n_rollouts)
        rewards = np.array([float(reward(one, iteration)) for one in actions])
        _checks.finite(rewards, "reward")
        if rewards.max() > best_reward:
            best, best_reward = actions[rewards.argmax()], float(rewards.max())
        subtracted, entropy = reward_baseline(averages, kind=baseline), _entropy(policy.log_probs(x, actions), free)
        averages = np.append(averages, rewards.mean())
        if credit == "rollout":
            policy = _ascend(descent, policy, x, actions, (rewards - subtracted) / n_rollouts, free)
        else:
            for one in actions:
                policy = _ascend(descent, policy, x, one[None], averages[-1:] - subtracted, free)
        if monitor.record(mean_reward=averages[-1], best_reward=best_reward, baseline=subtracted, entropy=entropy):
            break
    return SearchResult(best, best_reward, policy, monitor.n_iter, monitor.history())


def _ascend(
    descent: Descent, policy: Policy, x: AnyArray, actions: IntArray, advantage: AnyArray, free: AnyArray | None
) -> Policy:
    """Take one step of Adam up the sum of advantages times log-probabilities."""
    _, pullback = policy.log_prob_vjp(x, actions, free=free)
    # Descent goes down: the cotangent is the negative advantage.
    downhill, _ = pullback(-advantage.astype(x.dtype))
    moved = iter(descent.step(dict(tree_leaves(policy.params)), dict(tree_leaves(downhill))).values())
    return dataclasses.replace(policy, params=tree_map(lambda _: next(moved), policy.params))


def _entropy(log_p: AnyArray, free: AnyArray | None) -> float:
    each = -(np.exp(log_p) * log_p).sum(axis=-1)
    counted = each if free is None else each[:, np.asarray(free)]
    return float(counted.mean()) if counted.size else 0.0


def n2n_search(
    teacher_sizes: Sequence[int],
    evaluate: Callable[[tuple[int, ...]], float],
    *,
    stage: str,
    n_iter: int,
    rng: np.random.Generator,
    n_rollouts: int = 5,
    learning_rate: float = 3e-3,
    baseline: str = "mean",
    credit: str = "rollout",
    teacher_accuracy: float | None = None,
    policy: Policy | None = None,
    keep_first: bool = False,
    factors: Sequence[float] = FACTORS,
    min_width: int = MIN_WIDTH,
    size_limit: int | None = None,
    accuracy_limit: float | None = None,
    callback: Callback | None = None,
) -> SearchResult:
    """Search a small student of a multilayer perceptron.

    Parameters
    ----------
    teacher_sizes : ints >= 1
        Inputs, at least one hidden width, outputs.
    evaluate : function of sizes -> accuracy in [0, 1]
        Trains a student of these sizes and tests it. Called once for every student that is met.
    stage : {"removal", "shrinkage"}
        Which policy acts. The paper's second stage begins with the best student of the first.
    n_iter : int >= 1
    rng : numpy.random.Generator
        For the policy's start and its draws.
    n_rollouts, learning_rate, baseline, credit
        As in :func:`reinforce_search`. The paper shrinks with a rate of 0.1.
    teacher_accuracy : float in (0, 1], optional
        By default ``evaluate(teacher_sizes)``.
    policy : RemovalPolicy or ShrinkPolicy, optional
        To begin with: one that a search on another teacher returned, for example.
    keep_first : bool
        Leave the first hidden layer as it is.
    factors : numbers in (0, 1]
        For a new policy of the second stage.
    min_width : int >= 1
        See :func:`apply_shrink`.
    size_limit, accuracy_limit
        See :func:`compression_reward`.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the search.

    Returns
    -------
    SearchResult
        ``best`` holds the sizes of the best student.

    Raises
    ------
    TypeError, ValueError
        If an option does not fit, there is no hidden layer, or the teacher is never right.

    Notes
    -----
    A student that is no smaller than its teacher, or has no hidden layer, has reward -1.

    References
    ----------
    Ashok et al. (2018), arXiv 1709.06030.

    Examples
    --------
    >>> found = n2n_search(
    ...     (16, 32, 32, 32, 4), lambda sizes: min(1.0, sum(sizes[1:-1]) / 32),
    ...     stage="removal", n_iter=20, rng=np.random.default_rng(0),
    ... )
    >>> found.best
    (16, 32, 4)
    """
    teacher = _check_sizes(teacher_sizes, "teacher_sizes")
    if len(teacher) < 3:
        _checks.fail("teacher_sizes", "at least one hidden width", teacher)
    _checks.one_of(stage, "stage", ("removal", "shrinkage"))
    rng = _checks.generator(rng)
    if policy is None and stage == "removal":
        policy = RemovalPolicy.init(rng, MLP_FEATURES)
    elif policy is None:
        policy = ShrinkPolicy.init(rng, MLP_FEATURES, factors=factors)
    wanted = RemovalPolicy if stage == "removal" else ShrinkPolicy
    if not isinstance(policy, wanted):
        _checks.fail_type("policy", f"a {wanted.__name__} for stage {stage!r}", type(policy).__name__)
    if isinstance(policy, ShrinkPolicy) and policy.decided != (WIDTH_ENTRY,):
        _checks.fail("policy", f"one that decides entry {WIDTH_ENTRY}, the width", f"entries {policy.decided}")
    free = np.ones(len(teacher) - 1, bool)
    free[-1], free[0] = False, not keep_first
    reference = float(evaluate(teacher)) if teacher_accuracy is None else teacher_accuracy
    _checks.in_range(reference, "teacher_accuracy", 0.0, 1.0, closed="right")
    seen: dict[tuple[int, ...], float] = {}

    def student(actions: IntArray) -> tuple[int, ...] | None:
        if isinstance(policy, ShrinkPolicy):
            chosen = np.where(free, np.array(policy.factors)[actions[:, 0]], 1)[:-1]
            made: tuple[int, ...] | None = apply_shrink(teacher, list(chosen), min_width=min_width)
        else:
            made = apply_removal(teacher, list(np.where(free, actions, 1)[:-1]))
        return made if made is not None and count_params(made) < count_params(teacher) else None

    def reward(actions: IntArray, iteration: int) -> float:
        sizes = student(actions)
        if sizes is None:
            return INVALID_REWARD
        if sizes not in seen:
            seen[sizes] = float(evaluate(sizes))
        return compression_reward(
            seen[sizes], count_params(sizes), reference, count_params(teacher),
            size_limit=size_limit, accuracy_limit=accuracy_limit, epoch=iteration,
        )  # fmt: skip

    found = reinforce_search(
        policy, encode_layers(teacher), reward, n_iter=n_iter, rng=rng, n_rollouts=n_rollouts,
        learning_rate=learning_rate, baseline=baseline, credit=credit, free=free, callback=callback,
    )  # fmt: skip
    return dataclasses.replace(found, best=student(found.best))
