"""EvoNorm: normalization and activation as one function, and the search that found it.

B0:  y = gain * x / max(std_batch(x), slope * x + std_instance(x)) + bias
S0:  y = gain * x * sigmoid(slope * x) / std_group(x) + bias
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.nn import conv2d_vjp, linear_vjp
from refnorm.softmax import cross_entropy_vjp

METHOD = Method(
    title="Evolving Normalization-Activation Layers",
    authors="Liu, Brock, Simonyan, Le",
    year=2020,
    arxiv="2004.02967",
    functions=(
        "EvoNormState",
        "Expression",
        "ExpressionSearch",
        "default_groups",
        "evaluate_expression",
        "evonorm_b0_eval",
        "evonorm_b0_train",
        "evonorm_s0",
        "expression_accuracy",
        "largest_gradient",
        "mutate_expression",
        "random_expression",
        "search_expressions",
    ),
    chapter="norms/evonorm",
)

SAMPLE_AXES = (2, 3)
BATCH_AXES = (0, 2, 3)

AGGREGATE_EPS = 1e-5
"""Added under the root of the search's deviations and root mean squares, as in the two layers."""

UNSTABLE = 1e8
"""Gradient norm above which the paper rejects an expression."""


@dataclass(frozen=True)
class EvoNormState:
    """Running variance of every channel.

    Parameters
    ----------
    var : array (C,)
        1 before the first batch.

    Examples
    --------
    >>> EvoNormState.create(2)
    EvoNormState(var=array([1., 1.]))
    """

    var: AnyArray

    @classmethod
    def create(cls, channels: int, dtype: Any = np.float64) -> EvoNormState:
        """Return the state before the first batch."""
        return cls(np.ones(_checks.whole(channels, "channels", low=1), dtype))


def default_groups(channels: int, *, target: int = 32) -> int:
    """Return the largest number of groups up to ``target`` that divides the channels.

    Parameters
    ----------
    channels : int >= 1
    target : int >= 1
        Number to start from; it is lowered by one until it divides.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If an argument is below 1.

    Notes
    -----
    For a prime number of channels above ``target`` this is one group.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, appendix A and the authors' code.

    Examples
    --------
    >>> default_groups(48), default_groups(96), default_groups(7)
    (24, 32, 7)
    """
    channels, target = _checks.whole(channels, "channels", low=1), _checks.whole(target, "target", low=1)
    return max(groups for groups in range(1, min(channels, target) + 1) if channels % groups == 0)


def evonorm_s0(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> Array[F]:
    """Apply the layer that looks at one sample only.

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    gain, bias, slope : arrays (C,)
        1, 0 and 1 at initialization; ``slope`` is the steepness inside the sigmoid.
    groups : int >= 1, optional
        Number of groups of channels; by default ``default_groups(C)``.
    eps : float > 0
        Added to the variance.
    nonlinearity : bool
        False gives ``gain x + bias``, for places where no activation is wanted.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or ``groups`` is not an integer.
    ValueError
        If ``groups`` does not divide C, a group has a single entry, a shape is wrong or ``eps <= 0``.

    Notes
    -----
    ``y = gain x sigmoid(slope x) / sqrt(var + eps) + bias``, with the biased variance of each sample's group.
    The numerator is not centred: a constant sample other than 0 gives very large values.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, table 2.

    Examples
    --------
    >>> x, one, zero = np.array([[[[-1.0, 1.0]]]]), np.ones(1), np.zeros(1)
    >>> evonorm_s0(x, one, zero, one, eps=1e-12).round(4)
    array([[[[-0.2689,  0.7311]]]])
    """
    return evonorm_s0_vjp(x, gain, bias, slope, groups=groups, eps=eps, nonlinearity=nonlinearity)[0]


def evonorm_s0_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`evonorm_s0` and its pullback ``dy -> (dx, dgain, dbias, dslope)``."""
    x, (gain_, bias_, slope_), dtype = _checked(x, gain, bias, slope, eps)
    count, channels = x.shape[:2]
    groups = default_groups(channels) if groups is None else _checks.whole(groups, "groups", low=1)
    if channels % groups:
        _checks.fail("groups", f"a divisor of the {channels} channels", groups)
    blocks = (count, groups, channels // groups * x.shape[2] * x.shape[3])
    if blocks[2] < 2:
        _checks.fail("x", "at least two entries in a group", f"shape {x.shape} with {groups} groups")
    if not nonlinearity:
        return _affine(x, gain_, bias_, dtype)

    std, back_std = _deviation(x.reshape(blocks), (2,), eps)
    inv_std = np.repeat(1 / std[..., 0], channels // groups, axis=1)[..., None, None]
    gate = _sigmoid(slope_ * x)
    swish = x * gate
    y: Array[F] = (gain_ * swish * inv_std + bias_).astype(dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dnormal = dy * gain_
        dswish = dnormal * inv_std
        # The quotient rule's other half: one number a group, d std = -sum(dnormal swish) / std^2.
        dstd = -(dnormal * swish * inv_std**2).reshape(blocks).sum(axis=2, keepdims=True)
        steep = gate * _sigmoid(-slope_ * x)  # 1 - gate would lose its digits where the gate is close to 1
        dx = dswish * (gate + slope_ * x * steep) + back_std(dstd).reshape(x.shape)
        return _sums(x, dx, dy * swish * inv_std, dy, dswish * x * x * steep)

    return y, pullback


def evonorm_b0_train(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    decay: float = 0.9,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[Array[F], EvoNormState]:
    """Apply the layer that looks at the batch, in training.

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    gain, bias, slope : arrays (C,)
        1, 0 and 1 at initialization; ``slope`` multiplies ``x`` in the denominator.
    state : EvoNormState
        Running variance before this batch.
    decay : float in [0, 1]
        Weight of the old running variance.
    eps : float > 0
        Added to both variances.
    nonlinearity : bool
        False gives ``gain x + bias`` and leaves the state as it is.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : EvoNormState

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, there is nothing to average over or an option is out of range.

    Notes
    -----
    ``y = gain x / max(sqrt(var_batch + eps), slope x + sqrt(var_instance + eps)) + bias`` with biased
    variances, over (N, H, W) and over (H, W). The denominator is at least the batch's deviation. Where both
    sides of the maximum are equal, the derivative is the batch's.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, table 2.

    Examples
    --------
    >>> x, one, zero = np.array([[[[-1.0, 1.0]]]]), np.ones(1), np.zeros(1)
    >>> y, state = evonorm_b0_train(x, one, zero, one, EvoNormState.create(1), eps=1e-12)
    >>> y
    array([[[[-1. ,  0.5]]]])
    """
    return evonorm_b0_train_vjp(x, gain, bias, slope, state, decay=decay, eps=eps, nonlinearity=nonlinearity)[0]


def evonorm_b0_train_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    decay: float = 0.9,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[tuple[Array[F], EvoNormState], Pullback]:
    """Return :func:`evonorm_b0_train` and its pullback ``dy -> (dx, dgain, dbias, dslope)``.

    The state takes no cotangent and gets none.
    """
    x, (gain_, bias_, slope_), dtype = _checked(x, gain, bias, slope, eps)
    old = _running_var(state, x)
    _checks.in_range(decay, "decay", 0, 1)
    if not nonlinearity:
        y, pullback = _affine(x, gain_, bias_, dtype)
        return (y, EvoNormState(old)), pullback
    std, back_std = _deviation(x, BATCH_AXES, eps)
    y, pullback = _b0(x, gain_, bias_, slope_, std, back_std, eps, dtype)
    new = decay * old + (1 - decay) * (std.real.reshape(-1) ** 2 - eps)
    return (y, EvoNormState(new.astype(old.dtype))), pullback


def evonorm_b0_eval(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> Array[F]:
    """Apply the batch layer in use: the running variance stands for the batch's.

    Parameters, errors and formula are those of :func:`evonorm_b0_train`. The instance's deviation is still
    computed from ``x``.

    Returns
    -------
    array, shape and dtype of ``x``

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, table 2.

    Examples
    --------
    >>> x, one, zero = np.array([[[[-1.0, 1.0]]]]), np.ones(1), np.zeros(1)
    >>> evonorm_b0_eval(x, one, zero, one, EvoNormState(np.array([16.0])), eps=1e-12)
    array([[[[-0.25,  0.25]]]])
    """
    return evonorm_b0_eval_vjp(x, gain, bias, slope, state, eps=eps, nonlinearity=nonlinearity)[0]


def evonorm_b0_eval_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    slope: Array[F],
    state: EvoNormState,
    *,
    eps: float = 1e-5,
    nonlinearity: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`evonorm_b0_eval` and its pullback ``dy -> (dx, dgain, dbias, dslope)``."""
    x, (gain_, bias_, slope_), dtype = _checked(x, gain, bias, slope, eps)
    old = _running_var(state, x)
    if not nonlinearity:
        return _affine(x, gain_, bias_, dtype)
    std = np.sqrt(old.astype(np.float64) + eps).reshape(1, -1, 1, 1)
    return _b0(x, gain_, bias_, slope_, std, None, eps, dtype)


def _b0(
    x: AnyArray,
    gain: AnyArray,
    bias: AnyArray,
    slope: AnyArray,
    std: AnyArray,
    back_std: Callable[[AnyArray], AnyArray] | None,
    eps: float,
    dtype: Any,
) -> tuple[AnyArray, Pullback]:
    """Return the layer for a given deviation of the channels; ``back_std`` is ``None`` if it is a constant."""
    instance, back_instance = _deviation(x, SAMPLE_AXES, eps)
    other = slope * x + instance
    by_batch = np.broadcast_to(std.real, x.shape) >= other.real
    inv = 1 / np.where(by_batch, std, other)
    y = (gain * x * inv + bias).astype(dtype)

    def pullback(dy: AnyArray) -> tuple[AnyArray, ...]:
        dnormal = dy * gain
        ddenominator = -dnormal * x * inv**2
        # The maximum hands its cotangent to the side that won; each side's deviation hands it on to x.
        dother = np.where(by_batch, 0, ddenominator)
        dx = dnormal * inv + slope * dother + back_instance(dother.sum(axis=SAMPLE_AXES, keepdims=True))
        if back_std is not None:
            dx = dx + back_std((ddenominator - dother).sum(axis=BATCH_AXES, keepdims=True))
        return _sums(x, dx, dy * x * inv, dy, dother * x)

    return y, pullback


def _affine(x: AnyArray, gain: AnyArray, bias: AnyArray, dtype: Any) -> tuple[AnyArray, Pullback]:
    def pullback(dy: AnyArray) -> tuple[AnyArray, ...]:
        return _sums(x, dy * gain, dy * x, dy, np.zeros(x.shape))

    return (gain * x + bias).astype(dtype), pullback


def _sums(x: AnyArray, dx: AnyArray, *per_entry: AnyArray) -> tuple[AnyArray, ...]:
    """Return ``dx`` and the sums of the others over examples and places, in the dtype of ``x``."""
    sums = (np.sum(entry, axis=BATCH_AXES, dtype=np.float64) for entry in per_entry)
    return tuple(entry.astype(x.dtype) for entry in (dx, *sums))


def _deviation(x: AnyArray, over: tuple[int, ...], eps: float) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    """Return ``sqrt(var + eps)`` in float64, axes kept, and its pullback."""
    wide = x.astype(np.result_type(x, np.float64), copy=False)
    with np.errstate(invalid="ignore"):
        centred = wide - wide.mean(axis=over, keepdims=True)
        std = np.sqrt((centred * centred).mean(axis=over, keepdims=True) + eps)
    count = int(np.prod([x.shape[axis] for axis in over]))

    def pullback(dstd: AnyArray) -> AnyArray:
        # d std = sum((x - mean) dx) / (count std); the mean's own part sums to zero.
        return np.asarray(dstd / std * centred / count)

    return std, pullback


def _sigmoid(z: AnyArray) -> AnyArray:
    # exp(-z) may overflow to infinity, and then 1 / (1 + exp(-z)) is 0, as it should be.
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-z)))


def _checked(
    x: AnyArray, gain: AnyArray, bias: AnyArray, slope: AnyArray, eps: float
) -> tuple[AnyArray, tuple[AnyArray, AnyArray, AnyArray], Any]:
    x = _checks.float_array(x, "x", ndim=4)
    named = {"gain": gain, "bias": bias, "slope": slope}
    for name, array in named.items():
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (x.shape[1],))
    _checks.not_empty(x, "x", range(4))
    _checks.positive(eps, "eps")
    wide = tuple(np.asarray(array).reshape(1, -1, 1, 1) for array in named.values())
    return x, (wide[0], wide[1], wide[2]), np.result_type(x, gain, bias, slope)


def _running_var(state: EvoNormState, x: AnyArray) -> AnyArray:
    var = _checks.float_array(state.var, "state.var")
    _checks.same_dtype("x", x, **{"state.var": var})
    _checks.shape(var, "state.var", (x.shape[1],))
    if var.min() < 0:
        _checks.fail("state.var", "values >= 0", var.min())
    return var


# The search: expressions, their values and gradients, mutation, rejection, tournaments.

INPUTS = ("x", "0", "v0", "v1")
"""What nodes may refer to besides earlier nodes: the input, zero, and two vectors of one number a channel."""

_BINARY = ("add", "mul", "div", "max")
_UNARY = ("neg", "sigmoid", "tanh", "exp", "log", "sqrt", "square")
_AGGREGATES = tuple(
    f"{over}_{what}" for over in ("instance", "batch", "group", "layer") for what in ("mean", "std", "rms")
)
OPERATIONS = (*_BINARY, *_UNARY, *_AGGREGATES)


@dataclass(frozen=True)
class Expression:
    """A small computation, node by node; its value is that of the last node.

    Parameters
    ----------
    nodes : tuple of (operation, arguments)
        Operations are those of ``OPERATIONS``: add, mul, div, max; neg, sigmoid, tanh, exp, log (of the
        absolute value), sqrt (of the absolute value), square; and mean, std or rms over an instance's channel, a
        batch's channel, a group or a layer, such as ``batch_std``. Arguments 0 to 3 are ``x``, zero, ``v0`` and
        ``v1``; argument ``4 + i`` is node ``i``, an earlier one.
    groups : int >= 1
        Number of groups of channels aimed at, lowered until it divides.

    Examples
    --------
    >>> relu_of_batch_norm = Expression((("batch_mean", (0,)), ("neg", (4,)), ("add", (0, 5)),
    ...                                  ("batch_std", (0,)), ("div", (6, 7)), ("max", (1, 8))))
    >>> print(relu_of_batch_norm)
    max(0, div(add(x, neg(batch_mean(x))), batch_std(x)))
    """

    nodes: tuple[tuple[str, tuple[int, ...]], ...]
    groups: int = 4

    def __post_init__(self) -> None:
        if not self.nodes:
            _checks.fail("nodes", "at least one node", self.nodes)
        _checks.whole(self.groups, "groups", low=1)
        for number, (operation, arguments) in enumerate(self.nodes):
            _checks.one_of(operation, "nodes", OPERATIONS)
            wanted = 2 if operation in _BINARY else 1
            if len(arguments) != wanted or not all(0 <= a < len(INPUTS) + number for a in arguments):
                _checks.fail(f"nodes[{number}]", f"{wanted} earlier arguments of {operation}", arguments)

    def __str__(self) -> str:
        terms = list(INPUTS)
        for operation, arguments in self.nodes:
            terms.append(f"{operation}({', '.join(terms[a] for a in arguments)})")
        return terms[-1]


def random_expression(rng: np.random.Generator, n_nodes: int = 5) -> Expression:
    """Draw an expression: every node's operation and arguments uniformly.

    Parameters
    ----------
    rng : numpy.random.Generator
    n_nodes : int >= 1

    Returns
    -------
    Expression

    Raises
    ------
    TypeError
        If ``rng`` is not a generator or ``n_nodes`` not an integer.
    ValueError
        If ``n_nodes < 1``.

    Notes
    -----
    Nodes that the last one does not depend on are possible and harmless.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, section 3.1.

    Examples
    --------
    >>> len(random_expression(np.random.default_rng(0), 3).nodes)
    3
    """
    rng = _checks.generator(rng)
    n_nodes = _checks.whole(n_nodes, "n_nodes", low=1)
    return Expression(tuple(_random_node(rng, number) for number in range(n_nodes)))


def mutate_expression(expression: Expression, rng: np.random.Generator) -> Expression:
    """Replace the operation and the arguments of one node, drawn uniformly.

    Parameters
    ----------
    expression : Expression
    rng : numpy.random.Generator

    Returns
    -------
    Expression

    Raises
    ------
    TypeError
        If ``rng`` is not a generator.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, section 3.3.

    Examples
    --------
    >>> before = random_expression(np.random.default_rng(0), 4)
    >>> after = mutate_expression(before, np.random.default_rng(1))
    >>> sum(a != b for a, b in zip(before.nodes, after.nodes))
    1
    """
    rng = _checks.generator(rng)
    nodes = list(expression.nodes)
    number = int(rng.integers(len(nodes)))
    nodes[number] = _random_node(rng, number)
    return Expression(tuple(nodes), expression.groups)


def _random_node(rng: np.random.Generator, number: int) -> tuple[str, tuple[int, ...]]:
    operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
    size = 2 if operation in _BINARY else 1
    return operation, tuple(int(a) for a in rng.integers(len(INPUTS) + number, size=size))


def evaluate_expression(expression: Expression, x: Array[F], v0: Array[F], v1: Array[F]) -> Array[F]:
    """Return the value of an expression.

    Parameters
    ----------
    expression : Expression
    x : array (N, C, H, W)
    v0, v1 : arrays (C,)

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or there is nothing to average over.

    Notes
    -----
    Divisions by zero, logarithms of zero and overflows follow the IEEE rules, silently: an expression may well
    be nonsense, and the search finds out.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, table 1.

    Examples
    --------
    >>> swish = Expression((("mul", (0, 2)), ("sigmoid", (4,)), ("mul", (0, 5))))
    >>> evaluate_expression(swish, np.full((1, 1, 1, 1), 2.0), np.ones(1), np.ones(1)).round(4)
    array([[[[1.7616]]]])
    """
    return evaluate_expression_vjp(expression, x, v0, v1)[0]


def evaluate_expression_vjp(
    expression: Expression, x: Array[F], v0: Array[F], v1: Array[F]
) -> tuple[Array[F], Pullback]:
    """Return :func:`evaluate_expression` and its pullback ``dy -> (dx, dv0, dv1)``."""
    x = _checks.float_array(x, "x", ndim=4)
    for name, v in (("v0", v0), ("v1", v1)):
        _checks.same_dtype("x", x, **{name: _checks.float_array(v, name)})
        _checks.shape(v, name, (x.shape[1],))
    _checks.not_empty(x, "x", range(4))
    groups = default_groups(x.shape[1], target=expression.groups)
    whole = [np.broadcast_to(np.asarray(v).reshape(1, -1, 1, 1), x.shape) for v in (np.zeros(x.shape[1]), v0, v1)]
    values: list[AnyArray] = [x.astype(np.float64), *whole]
    pullbacks = []
    with np.errstate(all="ignore"):
        for operation, arguments in expression.nodes:
            value, back = _apply(operation, [values[a] for a in arguments], groups)
            values.append(value)
            pullbacks.append(back)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # Reverse order; every node adds what it owes to each of its arguments.
        owed: list[AnyArray] = [np.zeros(x.shape) for _ in values]
        owed[-1] = np.asarray(dy, dtype=np.float64)
        with np.errstate(all="ignore"):
            for number in reversed(range(len(expression.nodes))):
                place = len(INPUTS) + number
                for argument, share in zip(expression.nodes[number][1], pullbacks[number](owed[place]), strict=True):
                    owed[argument] = owed[argument] + share
            dv0, dv1 = (owed[i].sum(axis=BATCH_AXES) for i in (2, 3))
        return owed[0].astype(x.dtype), dv0.astype(x.dtype), dv1.astype(x.dtype)

    return values[-1].astype(x.dtype), pullback


def _apply(
    operation: str, arguments: Sequence[AnyArray], groups: int
) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, ...]]]:
    """Return one operation's value and pullback; everything has the full shape (N, C, H, W)."""
    a = arguments[0]
    if operation in _AGGREGATES:
        return _aggregate(operation, a, groups)
    if operation in _BINARY:
        b = arguments[1]
        if operation == "add":
            return a + b, lambda dy: (dy, dy)
        if operation == "mul":
            return a * b, lambda dy: (dy * b, dy * a)
        if operation == "div":
            return a / b, lambda dy: (dy / b, -dy * a / (b * b))
        return np.maximum(a, b), lambda dy: (np.where(a >= b, dy, 0), np.where(a >= b, 0, dy))
    if operation == "neg":
        return -a, lambda dy: (-dy,)
    if operation == "log":
        return np.log(np.abs(a)), lambda dy: (dy / a,)
    if operation == "square":
        return a * a, lambda dy: (2 * a * dy,)
    if operation == "sqrt":
        root = np.sqrt(np.abs(a))
        return root, lambda dy: (0.5 * np.sign(a) * dy / root,)
    if operation == "sigmoid":
        gate = _sigmoid(a)
        return gate, lambda dy: (dy * gate * (1 - gate),)
    if operation == "tanh":
        bent = np.tanh(a)
        return bent, lambda dy: (dy * (1 - bent * bent),)
    power = np.exp(a)
    return power, lambda dy: (dy * power,)


def _aggregate(operation: str, a: AnyArray, groups: int) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, ...]]]:
    over, what = operation.split("_")

    def average(b: AnyArray) -> AnyArray:
        # A symmetric projection onto arrays that are constant over each set: its own pullback.
        if over == "group":
            mean = b.reshape(len(b), groups, -1).mean(axis=2)
            return np.broadcast_to(np.repeat(mean, b.shape[1] // groups, axis=1)[..., None, None], b.shape)
        axes = {"instance": SAMPLE_AXES, "batch": BATCH_AXES, "layer": (1, 2, 3)}[over]
        return np.broadcast_to(b.mean(axis=axes, keepdims=True), b.shape)

    if what == "mean":
        return average(a), lambda dy: (average(dy),)
    centred = a - average(a) if what == "std" else a
    size = np.sqrt(average(centred * centred) + AGGREGATE_EPS)
    return size, lambda dy: (centred / size * average(dy),)


def expression_accuracy(
    expression: Expression,
    x: Array[F],
    target: IntArray,
    rng: np.random.Generator,
    *,
    channels: Sequence[int] = (8, 16),
    steps: int = 60,
    batch_size: int = 32,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
) -> float:
    """Train a small convolutional network with the expression as its layer; return the training accuracy.

    Parameters
    ----------
    expression : Expression
        Put after every convolution, with ``v0`` starting at 1 and ``v1`` at 0, followed by a gain and a bias.
    x : array (N, I, H, W)
        Images.
    target : integer array (N,)
        Classes, from 0.
    rng : numpy.random.Generator
        Draws weights and batches.
    channels : ints >= 1
        Width of each 3 x 3 convolution.
    steps, batch_size : ints >= 1
        Steps of momentum SGD and examples a step.
    learning_rate : float > 0
    momentum : float in [0, 1)

    Returns
    -------
    float
        Fraction of right answers on all of ``x``; 0 if anything stopped being finite.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, shape or range.

    Notes
    -----
    This is the quality test of the search. Most random expressions fail it.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, section 3.2.

    Examples
    --------
    >>> x, target = np.random.default_rng(0).standard_normal((8, 1, 4, 4)), np.arange(8) % 2
    >>> exploding = Expression((("exp", (0,)), ("exp", (4,)), ("exp", (5,))))
    >>> expression_accuracy(exploding, 10 * x, target, np.random.default_rng(0), steps=2)
    0.0
    """
    x = _checks.float_array(x, "x", ndim=4)
    target = _checks.integer_array(target, "target", ndim=1, low=0)
    _checks.shape(target, "target", (len(x),))
    rng = _checks.generator(rng)
    steps, batch_size = _checks.whole(steps, "steps", low=1), _checks.whole(batch_size, "batch_size", low=1)
    _checks.positive(learning_rate, "learning_rate")
    _checks.in_range(momentum, "momentum", 0, 1, closed="left")
    params = _init_network(rng, x.shape[1], channels, int(target.max()) + 1)
    velocity = [np.zeros_like(p) for p in params]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            batch = rng.integers(len(x), size=min(batch_size, len(x)))
            logits, network = _network_vjp(expression, params, x[batch])
            if not np.isfinite(logits).all():
                return 0.0
            _, back = cross_entropy_vjp(logits, target[batch])
            grads = network(back(np.array(1.0))[0])
            velocity = [momentum * v + g for v, g in zip(velocity, grads, strict=True)]
            params = [p - learning_rate * v for p, v in zip(params, velocity, strict=True)]
        logits = _network_vjp(expression, params, x)[0]
    return float((logits.argmax(axis=1) == target).mean()) if np.isfinite(logits).all() else 0.0


def _init_network(rng: np.random.Generator, inputs: int, channels: Sequence[int], classes: int) -> list[AnyArray]:
    params: list[AnyArray] = []
    for width in channels:
        weight = rng.standard_normal((width, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        params += [weight, np.ones(width), np.zeros(width), np.ones((width, 1, 1)), np.zeros((width, 1, 1))]
        inputs = width
    return [*params, rng.standard_normal((inputs, classes)) / np.sqrt(inputs), np.zeros(classes)]


def _network_vjp(
    expression: Expression, params: Sequence[AnyArray], x: AnyArray
) -> tuple[AnyArray, Callable[[AnyArray], list[AnyArray]]]:
    """Convolution, expression, gain and bias, once a width; then the mean over places and a linear layer."""
    steps = []
    for first in range(0, len(params) - 2, 5):
        weight, v0, v1, gain, bias = params[first : first + 5]
        z, back_conv = conv2d_vjp(x, weight, padding=1)
        value, back_value = evaluate_expression_vjp(expression, z, v0, v1)
        x = gain * value + bias
        steps.append((back_conv, back_value, gain, value))
    logits, back_linear = linear_vjp(x.mean(axis=SAMPLE_AXES), params[-2], params[-1])
    shape = x.shape

    def pullback(dlogits: AnyArray) -> list[AnyArray]:
        dpooled, *last = back_linear(dlogits)
        dx = np.broadcast_to(dpooled[..., None, None] / (shape[2] * shape[3]), shape)
        grads: list[AnyArray] = list(last)
        for back_conv, back_value, gain, value in reversed(steps):
            dgain, dbias = ((d.sum(axis=BATCH_AXES)).reshape(gain.shape) for d in (dx * value, dx))
            dz, dv0, dv1 = back_value(dx * gain)
            dx, dweight, _ = back_conv(dz)
            grads = [dweight, dv0, dv1, dgain, dbias, *grads]
        return grads

    return logits, pullback


def largest_gradient(expression: Expression, x: Array[F], rng: np.random.Generator, *, tries: int = 30) -> float:
    """Look for the parameters that make an expression's gradient as large as possible.

    Parameters
    ----------
    expression : Expression
    x : array (N, C, H, W)
        Input at the start.
    rng : numpy.random.Generator
        Draws the cotangent and the changes.
    tries : int >= 1
        Number of changes tried.

    Returns
    -------
    float
        Largest norm of the input's gradient that was met, ``inf`` if one was not finite; above ``1e8`` the
        paper rejects the expression.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, shape or range.

    Notes
    -----
    Random ascent: the scale of ``x``, ``v0`` and ``v1`` are multiplied by random factors, and a change is kept
    if the gradient grew. The cotangent has norm 1.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, section 3.2 (stability).

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((2, 4, 3, 3))
    >>> bounded = Expression((("sigmoid", (0,)),))
    >>> largest_gradient(bounded, x, np.random.default_rng(0)) <= 0.25
    True
    """
    x = _checks.float_array(x, "x", ndim=4)
    rng = _checks.generator(rng)
    direction = rng.standard_normal(x.shape)
    dy = direction / np.linalg.norm(direction)
    channels = x.shape[1]
    point, best = (x, np.ones(channels, x.dtype), np.zeros(channels, x.dtype)), 0.0
    for _ in range(_checks.whole(tries, "tries", low=1)):
        size = float(np.exp(rng.standard_normal()))
        v0, v1 = (v + rng.standard_normal(channels).astype(x.dtype) for v in point[1:])
        moved = ((point[0] * size).astype(x.dtype), v0, v1)
        with np.errstate(all="ignore"):
            norm = float(np.linalg.norm(evaluate_expression_vjp(expression, *moved)[1](dy)[0]))
        if not np.isfinite(norm):
            return float("inf")
        if norm > best:
            point, best = moved, norm
    return best


@dataclass(frozen=True)
class ExpressionSearch:
    """What :func:`search_expressions` found.

    Parameters
    ----------
    expression
        The best expression, by the mean of its scores, or ``None`` if all were rejected.
    scores
        Its score on each task.
    evaluated, rejected
        How many expressions were scored, and how many of them were rejected.
    history
        The best mean score after each evaluation, 0 before the first one that was not rejected.
    """

    expression: Expression | None
    scores: tuple[float, ...]
    evaluated: int
    rejected: int
    history: tuple[float, ...]


def search_expressions(
    score: Callable[[Expression], Sequence[float]],
    rng: np.random.Generator,
    *,
    population: int = 20,
    generations: int = 50,
    n_nodes: int = 5,
    threshold: float = 0.2,
    tournament: int = 5,
    callback: Callable[[int, float], Any] | None = None,
) -> ExpressionSearch:
    """Search for an expression that scores well on several tasks, by mutation and tournaments.

    Parameters
    ----------
    score
        Returns an expression's score on each task, for example training accuracies of several networks
        (:func:`expression_accuracy`).
    rng : numpy.random.Generator
    population : int >= 1
        Random expressions drawn at the start, and largest number kept.
    generations : int >= 0
        Mutations tried after that, one at a time.
    n_nodes : int >= 1
        Nodes of an expression.
    threshold : float
        An expression is rejected if one of its scores is below.
    tournament : int >= 1
        Members drawn to find a parent among.
    callback
        Called with the number of expressions evaluated and the best mean score.

    Returns
    -------
    ExpressionSearch

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or range.

    Notes
    -----
    A parent is drawn at random from the tournament's Pareto front: members that no other beats on one task
    without losing on another. The oldest member makes room. As long as no expression has survived, new ones are
    drawn at random.

    References
    ----------
    Liu et al. (2020), arXiv 2004.02967, section 3.3.

    Examples
    --------
    >>> found = search_expressions(lambda e: (float("tanh" in str(e)),), np.random.default_rng(0))
    >>> "tanh" in str(found.expression)
    True
    """
    rng = _checks.generator(rng)
    population = _checks.whole(population, "population", low=1)
    generations = _checks.whole(generations, "generations", low=0)
    tournament = _checks.whole(tournament, "tournament", low=1)
    alive: list[tuple[Expression, tuple[float, ...]]] = []
    best: tuple[Expression | None, tuple[float, ...]] = (None, ())
    history: list[float] = []
    rejected = 0
    for number in range(population + generations):
        if number < population or not alive:
            candidate = random_expression(rng, n_nodes)
        else:
            drawn = [alive[i] for i in rng.choice(len(alive), size=min(tournament, len(alive)), replace=False)]
            front = _pareto_front([scores for _, scores in drawn])
            candidate = mutate_expression(drawn[front[int(rng.integers(len(front)))]][0], rng)
        scores = tuple(float(s) for s in score(candidate))
        if scores and min(scores) >= threshold:
            alive = [*alive, (candidate, scores)][-population:]
            if best[0] is None or np.mean(scores) > np.mean(best[1]):
                best = candidate, scores
        else:
            rejected += 1
        history.append(float(np.mean(best[1])) if best[1] else 0.0)
        if callback is not None:
            callback(number + 1, history[-1])
    return ExpressionSearch(*best, population + generations, rejected, tuple(history))


def _pareto_front(scores: Sequence[tuple[float, ...]]) -> list[int]:
    table = np.array(scores)
    at_least = (table[:, None] >= table[None]).all(axis=2)
    better = (table[:, None] > table[None]).any(axis=2)
    return [int(i) for i in np.flatnonzero(~(at_least & better).any(axis=0))]
