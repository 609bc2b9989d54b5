"""sharpDARTS: search for an architecture by gradient descent.

scalar:  y = sum_i w_i o_i                        w = softmax(logits)
max-W:   y = sum_i (1 - (max(w) - w_i)) o_i
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback, Tree
from refnorm.softmax import softmax, softmax_vjp
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="sharpDARTS: Faster and More Accurate Differentiable Architecture Search",
    authors="Hundt, Jain, Hager",
    year=2019,
    arxiv="1903.09900",
    functions=(
        "cosine_power_annealing",
        "mixed_op",
        "darts_architecture_gradient",
        "discretize",
        "strongest_edges",
        "hypercuboid_options",
    ),
    chapter="solvers/sharp_darts",
)

PROBE = 0.01
"""Length of the step along the validation gradient over which the training gradient is differenced."""

_WEIGHTINGS = ("scalar", "max_w")


def cosine_power_annealing(
    n_epochs: int,
    *,
    max_learning_rate: float = 0.1,
    min_learning_rate: float = 1e-4,
    exponent_order: float = 10.0,
    warmup_epochs: int = 0,
) -> Array[np.float64]:
    """Return the learning rate of every epoch, between a cosine and an exponential decay.

    Parameters
    ----------
    n_epochs : int >= 1
        Number of epochs E.
    max_learning_rate, min_learning_rate : floats, ``0 <= min <= max``, ``max > 0``
        The first rate after the warm-up, and the last rate.
    exponent_order : float >= 1
        1 is the cosine; the larger, the earlier the rate falls.
    warmup_epochs : int >= 0, below ``n_epochs``
        Number of epochs W in which the rate rises linearly.

    Returns
    -------
    float64 array (n_epochs,)

    Raises
    ------
    TypeError, ValueError
        If a number is outside its range.

    Notes
    -----
    With ``c_e = (1 + cos(pi e / E)) / 2`` for e = 1 ... E and order p, the rate is
    ``min + (max - min) (p^c_e - 1) / (p^c_1 - 1)``, and ``min + (max - min) c_e / c_1`` for p = 1. With
    warm-up, epochs 1 ... W + 1 have the rates ``min + (max - min) e / (W + 1)``, then e and E are counted from
    the end of the warm-up and ``c_1`` is replaced by 1. A single epoch has the largest rate.

    References
    ----------
    Hundt, Jain, Hager (2019), arXiv 1903.09900 (cosine power annealing).

    Examples
    --------
    >>> cosine_power_annealing(4, max_learning_rate=1.0, min_learning_rate=0.0).round(6)
    array([1.      , 0.352299, 0.065339, 0.      ])
    >>> cosine_power_annealing(6, max_learning_rate=1.0, min_learning_rate=0.0, warmup_epochs=2).round(3)
    array([0.333, 0.667, 1.   , 0.24 , 0.045, 0.   ])
    """
    n_epochs = _checks.whole(n_epochs, "n_epochs", low=1)
    warmup = _checks.whole(warmup_epochs, "warmup_epochs", low=0, high=n_epochs - 1)
    _checks.positive(max_learning_rate, "max_learning_rate")
    _checks.in_range(min_learning_rate, "min_learning_rate", 0.0, max_learning_rate)
    _checks.in_range(exponent_order, "exponent_order", 1.0, np.finfo(np.float64).max)
    epoch = np.arange(1, n_epochs + 1)
    # (1 + cos t) / 2 = sin^2((pi - t) / 2): exactly 0 at the end, and with all its digits close to it.
    cosine = np.sin(np.pi / 2 * (n_epochs - epoch) / (n_epochs - warmup)) ** 2
    start = 1.0 if warmup else float(cosine[0])
    rise = (epoch / (warmup + 1)) if warmup else np.ones(n_epochs)
    order = np.log(exponent_order)
    # p^c - 1 without the cancellation near p = 1; a quotient, so that p^c itself may be huge.
    power = np.expm1(order * cosine) if order > 0 else cosine
    whole = float(np.expm1(order * start)) if order > 0 else start
    fraction = np.where(epoch <= warmup + 1, rise, power / (whole or 1.0))
    # A weighted mean, not min + (max - min) fraction: both ends are exact.
    return np.asarray((1 - fraction) * min_learning_rate + fraction * max_learning_rate)


def mixed_op(
    outputs: Array[F], logits: Array[F], *, weighting: str = "scalar", stop_gradient_max: bool = False
) -> Array[F]:
    """Blend the outputs of all candidate operations of an edge.

    Parameters
    ----------
    outputs : array (*options, ...)
        Output of every candidate. ``options`` is (K,) for K operations, or the shape of a grid of
        hyper-parameters such as (kernel sizes, widths).
    logits : array (*options)
        Architecture weights before the softmax, which goes over the whole grid.
    weighting : ``"scalar"`` or ``"max_w"``
        ``"scalar"`` weighs candidate i by ``w_i``, DARTS's mixture; ``"max_w"`` by ``1 - max(w) + w_i``, so that
        the best one has weight 1 as it will have when it is the only one left.
    stop_gradient_max : bool
        Treat ``max(w)`` as a constant in the pullback.

    Returns
    -------
    array (...), dtype of ``outputs``

    Raises
    ------
    TypeError, ValueError
        If a shape, dtype or option does not fit.

    Notes
    -----
    A logit of ``-inf`` has weight 0, but NaN or infinity in its output still spreads, as 0 times infinity
    is NaN. Where several logits tie for the largest, the first one counts as the maximum.

    References
    ----------
    Hundt, Jain, Hager (2019), arXiv 1903.09900 (max-W regularization). Liu, Simonyan, Yang (2018), arXiv 1806.09055,
    equation 2 (``"scalar"``).

    Examples
    --------
    >>> outputs, logits = np.array([1.0, 2.0, 3.0]), np.log(np.array([0.5, 0.3, 0.2]))
    >>> round(float(mixed_op(outputs, logits)), 12), round(float(mixed_op(outputs, logits, weighting="max_w")), 12)
    (1.7, 4.7)
    """
    return mixed_op_vjp(outputs, logits, weighting=weighting, stop_gradient_max=stop_gradient_max)[0]


def mixed_op_vjp(
    outputs: Array[F], logits: Array[F], *, weighting: str = "scalar", stop_gradient_max: bool = False
) -> tuple[Array[F], Pullback]:
    """Return :func:`mixed_op` and its pullback ``dy -> (doutputs, dlogits)``."""
    logits = _checks.float_array(logits, "logits", min_ndim=1)
    _checks.not_empty(logits, "logits", range(logits.ndim))
    outputs = _checks.float_array(outputs, "outputs", min_ndim=logits.ndim)
    _checks.same_dtype("outputs", outputs, logits=logits)
    _checks.shape(outputs, "outputs", (*logits.shape, *outputs.shape[logits.ndim :]))
    _checks.one_of(weighting, "weighting", _WEIGHTINGS)

    weight, softmax_back = softmax_vjp(logits.ravel())
    best = int(weight.real.argmax())
    # 1 - (max - w_i), in this order: the best candidate gets exactly 1.
    share = weight if weighting == "scalar" else 1 - (weight[best] - weight)
    stacked = outputs.reshape(weight.size, -1)
    y: Array[F] = np.asarray(share @ stacked).reshape(outputs.shape[logits.ndim :])

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        along = np.asarray(dy).ravel()
        doutputs = (share[:, None] * along).reshape(outputs.shape)
        # score_i = <dy, o_i>: how much the loss would grow if candidate i got more weight.
        score = stacked @ along
        dweight = score.copy()
        if weighting == "max_w" and not stop_gradient_max:
            # Every share holds -max(w): the best weight's own score cancels, the others' sum is left.
            dweight[best] -= score.sum()
        return doutputs.astype(outputs.dtype), softmax_back(dweight)[0].reshape(logits.shape)

    return y, pullback


def darts_architecture_gradient(
    train_grad: Callable[[Tree, Tree], tuple[Tree, Tree]],
    val_grad: Callable[[Tree, Tree], tuple[Tree, Tree]],
    weight: Tree,
    architecture: Tree,
    *,
    learning_rate: float,
    order: int = 1,
    velocity: Tree | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Tree:
    """Return the gradient by which a DARTS step changes the architecture.

    Parameters
    ----------
    train_grad, val_grad : callables
        ``(weight, architecture) -> (dweight, darchitecture)``, the gradients of the losses on training and
        on validation data.
    weight, architecture : parameter trees
        The network's weights and the logits.
    learning_rate : float > 0
        Length xi of the step of the weights that is looked ahead.
    order : 1 or 2
        1 takes the weights as they are, 2 looks one step of them ahead.
    velocity : tree like ``weight``, optional
        Momentum buffer of the optimizer of the weights; 0 if left out.
    momentum, weight_decay : floats >= 0
        Of that optimizer.

    Returns
    -------
    tree like ``architecture``

    Raises
    ------
    TypeError, ValueError
        If trees do not correspond or a number is outside its range.

    Notes
    -----
    With ``w' = w - xi (momentum velocity + d_w L_train(w, a) + weight_decay w)`` the second-order gradient is
    ``d_a L_val(w', a) - xi (d_a L_train(w + r d, a) - d_a L_train(w - r d, a)) / (2 r)``, where
    ``d = d_w' L_val(w', a)`` and ``r = 0.01 / |d|``: a difference in place of a product with the mixed second
    derivative. It is exact if ``d_a L_train`` is at most quadratic in the weights.

    References
    ----------
    Liu, Simonyan, Yang (2018), arXiv 1806.09055, equations 7 and 8.

    Examples
    --------
    Training loss ``a w^2 / 2``, validation loss ``w^2 / 2``: after the step ``w' = w - 0.1 a w`` the validation
    loss is ``w^2 (1 - 0.1 a)^2 / 2``, with slope ``-0.1 w^2 (1 - 0.1 a)`` in ``a``.

    >>> def train(w, a):
    ...     return a * w, w**2 / 2
    >>> def validation(w, a):
    ...     return w, 0 * a
    >>> w, a = np.array([2.0]), np.array([1.0])
    >>> darts_architecture_gradient(train, validation, w, a, learning_rate=0.1, order=2).round(9)
    array([-0.36])
    """
    _checks.positive(learning_rate, "learning_rate")
    _checks.one_of(order, "order", (1, 2))
    _checks.non_negative(momentum, "momentum")
    _checks.non_negative(weight_decay, "weight_decay")
    if order == 1:
        return _like(architecture, val_grad(weight, architecture)[1], "val_grad")
    step = _like(weight, train_grad(weight, architecture)[0], "train_grad")
    if velocity is not None:
        step = tree_map(lambda g, v: g + momentum * v, step, velocity, path="velocity")
    ahead = tree_map(lambda w, g: w - learning_rate * (g + weight_decay * w), weight, step)
    dweight, darchitecture = val_grad(ahead, architecture)
    dweight = _like(weight, dweight, "val_grad")
    darchitecture = _like(architecture, darchitecture, "val_grad")
    length = np.sqrt(sum(float(np.sum(np.square(leaf))) for _, leaf in tree_leaves(dweight) if leaf is not None))
    if length == 0:
        # The validation loss does not feel the weights, so it does not matter how they depend on a.
        return darchitecture
    probe = PROBE / length

    def train_at(sign: float) -> Tree:
        moved = tree_map(lambda w, d: w + sign * probe * d, weight, dweight)
        return _like(architecture, train_grad(moved, architecture)[1], "train_grad")

    # -xi d^T (d2 L_train / dw da), by a central difference along d.
    scale = learning_rate / (2 * probe)
    return tree_map(lambda a, up, down: a - scale * (up - down), darchitecture, train_at(1.0), train_at(-1.0))


def discretize(logits: Array[F], *, excluded: Sequence[int] = ()) -> IntArray:
    """Return the index of the strongest operation of every edge.

    Parameters
    ----------
    logits : array (..., K)
        Architecture weights; the last axis holds the operations.
    excluded : indices from 0 to K - 1
        Operations that must not be chosen, such as "no connection".

    Returns
    -------
    integer array (...)

    Raises
    ------
    TypeError, ValueError
        If the logits hold NaN, an index does not exist, or every operation is excluded.

    Notes
    -----
    The first of several largest logits wins.

    References
    ----------
    Liu, Simonyan, Yang (2018), arXiv 1806.09055, section 2.4.

    Examples
    --------
    >>> discretize(np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]]), excluded=(0,))
    array([2, 1])
    """
    logits = _checks.float_array(logits, "logits", min_ndim=1)
    if np.isnan(logits).any():
        _checks.fail("logits", "no NaN", f"{int(np.isnan(logits).sum())}")
    allowed = _allowed(logits.shape[-1], excluded)
    return np.asarray(allowed[logits[..., allowed].argmax(axis=-1)])


def strongest_edges(logits: Array[F], *, keep: int = 2, excluded: Sequence[int] = ()) -> tuple[IntArray, IntArray]:
    """Choose the edges into a node that stay, and the operation on each.

    Parameters
    ----------
    logits : array (edges, K)
        Architecture weights of all edges into one node.
    keep : int from 1 to the number of edges
        How many edges stay.
    excluded : indices from 0 to K - 1
        Operations that must not be chosen.

    Returns
    -------
    edges, operations : integer arrays (keep,)
        In the order of the edges.

    Raises
    ------
    TypeError, ValueError
        As :func:`discretize`, or if ``keep`` is out of range.

    Notes
    -----
    An edge is as strong as the largest softmax weight among its operations that are not excluded. The excluded
    ones count in the softmax: an edge that would rather not be there is weak. Of equal edges the first stays.

    References
    ----------
    Liu, Simonyan, Yang (2018), arXiv 1806.09055, section 2.4.

    Examples
    --------
    >>> strongest_edges(np.array([[9.0, 3.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), excluded=(0,))
    (array([1, 2]), array([1, 2]))
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    operation = discretize(logits, excluded=excluded)
    keep = _checks.whole(keep, "keep", low=1, high=len(logits))
    strength = np.take_along_axis(softmax(logits), operation[:, None], axis=1)[:, 0]
    edges = np.sort(np.argsort(-strength, kind="stable")[:keep])
    return edges, operation[edges]


def hypercuboid_options(dims: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """List all points of a grid of hyper-parameters, each of which becomes a candidate operation.

    Parameters
    ----------
    dims : sequences of values, one a hyper-parameter
        For example kernel sizes, widths and dilations.

    Returns
    -------
    list of tuples, one value of each hyper-parameter in a tuple
        In the order of ``logits.ravel()`` for logits of shape ``(len(dims[0]), len(dims[1]), ...)``.

    Raises
    ------
    ValueError
        If there is no hyper-parameter or one without a value.

    References
    ----------
    Hundt, Jain, Hager (2019), arXiv 1903.09900 (the differentiable hyper-parameter grid).

    Examples
    --------
    >>> options = hypercuboid_options([(3, 5), (16, 32)])
    >>> options
    [(3, 16), (3, 32), (5, 16), (5, 32)]
    >>> options[discretize(np.array([[0.1, 0.2], [0.7, 0.3]]).ravel())]
    (5, 16)
    """
    axes = [tuple(dim) for dim in dims]
    if not axes or not all(axes):
        _checks.fail("dims", "at least one hyper-parameter, each with at least one value", axes)
    return list(itertools.product(*axes))


def _allowed(count: int, excluded: Sequence[int]) -> IntArray:
    outside = [_checks.whole(index, "excluded", low=0, high=count - 1) for index in excluded]
    allowed = np.setdiff1d(np.arange(count), outside)
    if not allowed.size:
        _checks.fail("excluded", f"at most {max(count - 1, 0)} of {count} operations", tuple(excluded))
    return allowed


def _like(params: Tree, grads: Tree, name: str) -> Tree:
    def check(param: Any, grad: Any) -> AnyArray | None:
        if param is None or grad is None:
            return None if param is None else np.zeros_like(param)
        _checks.shape(np.asarray(grad), name, np.shape(param))
        return np.asarray(grad)

    return tree_map(check, params, grads, path=name)
