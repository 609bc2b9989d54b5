"""Batch statistics calibrated at test time, and the loss that adapts what is left.

mean = a * source_mean + (1 - a) * batch_mean,   var = a * source_var + (1 - a) * batch_var
y = gain * (x - mean) / sqrt(var + eps) + bias                             (a: source_weight)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback, Tree
from refnorm.norms._batch_statistics import batch_norm_vjp, batch_statistics_vjp
from refnorm.softmax import softmax_vjp
from refnorm.tree import tree_map

METHOD = Method(
    title="Test-time Batch Statistics Calibration for Covariate Shift",
    authors="You, Li, Zhao",
    year=2021,
    arxiv="2110.04065",
    functions=("CoreResult", "alpha_batch_norm", "class_correlation_loss", "core_adapt"),
    chapter="norms/alpha_batch_norm",
)

SMALLEST_MASS = 1e-12
"""A class whose predicted mass in the whole batch is below this counts as never predicted: no division by 0."""


def alpha_batch_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    source_mean: Array[F],
    source_var: Array[F],
    *,
    source_weight: float = 0.9,
    ddof: int = 1,
    moments: str = "linear",
    eps: float = 1e-5,
    detach_stats: bool = False,
) -> Array[F]:
    """Normalize a test batch by a mixture of the training statistics and its own.

    Parameters
    ----------
    x : array (N, C, ...)
        Test batch; the axes after the second are places of an image and may be missing.
    gain, bias : arrays (C,)
        Affine parameters of the trained batch norm.
    source_mean, source_var : arrays (C,)
        Its running statistics.
    source_weight : float in [0, 1]
        Weight of the running statistics: 1 is batch norm in use, 0 trusts the test batch alone.
    ddof : {0, 1}
        The test variance is the sum of squares divided by the count less ``ddof``; a single value a channel
        takes 0.
    moments : {"linear", "mixture"}
        ``"linear"`` mixes the variances; ``"mixture"`` gives the variance of the mixed population, which also
        counts the distance of the two means.
    eps : float > 0
        Added to the variance.
    detach_stats : bool
        Treat the test statistics as constants in the backward pass.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, a source variance is negative, there is nothing to average over or an option is
        out of range.

    Notes
    -----
    ``mean = a source_mean + (1 - a) batch_mean`` and ``var = a source_var + (1 - a) batch_var``, to which
    ``"mixture"`` adds ``a (1 - a) (source_mean - batch_mean)^2``. NaN or infinity in a channel makes that channel
    NaN, also for ``source_weight=1``.

    References
    ----------
    You, Li, Zhao (2021), arXiv 2110.04065, the section on alpha-BN.

    Examples
    --------
    >>> x, one, zero = np.array([[2.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> alpha_batch_norm(x, one, zero, zero, one, source_weight=0.5, ddof=0, eps=1e-12).ravel().round(4)
    array([0.5, 2.5])
    """
    options = {"ddof": ddof, "moments": moments, "eps": eps, "detach_stats": detach_stats}
    return alpha_batch_norm_vjp(x, gain, bias, source_mean, source_var, source_weight=source_weight, **options)[0]  # type: ignore[arg-type]


def alpha_batch_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    source_mean: Array[F],
    source_var: Array[F],
    *,
    source_weight: float = 0.9,
    ddof: int = 1,
    moments: str = "linear",
    eps: float = 1e-5,
    detach_stats: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`alpha_batch_norm` and its pullback ``dy -> (dx, dgain, dbias, dsource_mean, dsource_var)``."""
    x = _checks.float_array(x, "x", min_ndim=2)
    named = {"gain": gain, "bias": bias, "source_mean": source_mean, "source_var": source_var}
    for name, array in named.items():
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (x.shape[1],))
    if source_var.size and source_var.real.min() < 0:
        _checks.fail("source_var", "values >= 0", source_var.real.min())
    _checks.in_range(source_weight, "source_weight", 0, 1)
    _checks.one_of(ddof, "ddof", (0, 1))
    _checks.one_of(moments, "moments", ("linear", "mixture"))
    wide, gain_, bias_, mean_s, var_s = (_wide(array) for array in (x, *named.values()))

    over = (0, *range(2, x.ndim))
    (mean_t, biased_t), back_stats = batch_statistics_vjp(wide, over)
    count = x.size // x.shape[1] if x.shape[1] else 1
    correction = count / (count - ddof) if count > 1 else 1.0
    a, b = source_weight, 1 - source_weight
    mean = a * mean_s + b * mean_t
    var = a * var_s + b * correction * biased_t
    between = a * b if moments == "mixture" else 0.0
    gap = mean_s - mean_t
    if between:
        var = var + between * gap * gap
    y, back_norm = batch_norm_vjp(wide, gain_, bias_, mean, var, axes=over, eps=eps)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # Batch norm with given statistics hands over their cotangents; the mixture shares each of them between
        # source and batch. Only the batch's share goes on to x, by the pullback of mean and variance.
        dx, dgain, dbias, dmean, dvar = back_norm(dy)
        dgap = 2 * between * gap * dvar
        if not detach_stats:
            (through,) = back_stats((b * dmean - dgap, b * correction * dvar))
            dx = dx + through
        entries = (dx, dgain, dbias, a * dmean + dgap, a * dvar)
        return tuple(np.asarray(entry).astype(x.dtype) for entry in entries)

    return y.astype(np.result_type(x, *named.values())), pullback


def class_correlation_loss(logits: Array[F], *, temperature: float = 2.5, weight_by_entropy: bool = True) -> Array[F]:
    """Measure how much a batch's predictions mix up the classes; no labels are needed.

    Parameters
    ----------
    logits : array (B, K)
        At least one example and one class.
    temperature : float > 0
        The logits are divided by it: probabilities of a confident network show no confusion otherwise.
    weight_by_entropy : bool
        Let confident examples count more, up to a factor of 2.

    Returns
    -------
    array ()
        Between 0 and 1: the average share of a class's correlation that belongs to other classes.

    Raises
    ------
    TypeError
        If the logits are not float32 or float64.
    ValueError
        If there is no example or class, or the temperature is not a finite number > 0.

    Notes
    -----
    With ``p = softmax(logits / temperature)``, the entropies ``H_i``, weights ``w_i`` proportional to
    ``1 + exp(-H_i)`` with mean 1, and ``R = p^T diag(w) p``, the loss is
    ``mean_k (sum_{l != k} R_kl / sum_l R_kl)``. The weights are constants for the gradient.

    References
    ----------
    You, Li, Zhao (2021), arXiv 2110.04065, the section on Core, in the form of minimum class confusion
    (Jin, Wang, Long, Wang (2020), arXiv 1912.03699).

    Examples
    --------
    >>> float(class_correlation_loss(np.zeros((3, 2))))
    0.5
    >>> float(class_correlation_loss(np.array([[1e4, 0.0], [0.0, 1e4]])))
    0.0
    """
    return class_correlation_loss_vjp(logits, temperature=temperature, weight_by_entropy=weight_by_entropy)[0]


def class_correlation_loss_vjp(
    logits: Array[F], *, temperature: float = 2.5, weight_by_entropy: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`class_correlation_loss` and its pullback ``dloss -> (dlogits,)``."""
    logits = _checks.float_array(logits, "logits", ndim=2)
    _checks.not_empty(logits, "logits", (0, 1))
    _checks.positive(temperature, "temperature")
    examples, classes = logits.shape
    p, back_softmax = softmax_vjp(_wide(logits) / temperature)
    weight = _entropy_weights(p.real) if weight_by_entropy else np.ones(examples)
    correlation = p.T @ (weight[:, None] * p)
    own = np.diagonal(correlation)
    # Summed without the diagonal: 1 - own / total would lose the digits of a small loss.
    others = np.where(np.eye(classes, dtype=bool), 0, correlation).sum(axis=1)
    seen = (own + others).real > SMALLEST_MASS
    total = np.where(seen, own + others, SMALLEST_MASS)
    loss = np.where(seen, others / total, 1 - own / total).mean()

    def pullback(dloss: Array[F]) -> tuple[Array[F]]:
        # others / (own + others): the slope is own / total^2 in each other class, -others / total^2 in the own.
        # Below the smallest mass the total is a constant and only the own class has a slope.
        dcorrelation = np.repeat(np.where(seen, own / total**2, 0)[:, None], classes, axis=1)
        np.fill_diagonal(dcorrelation, np.where(seen, -others / total**2, -1 / total))
        dcorrelation = dcorrelation * (dloss / classes)
        dp = weight[:, None] * (p @ (dcorrelation + dcorrelation.T))
        return ((back_softmax(dp)[0] / temperature).astype(logits.dtype),)

    return np.asarray(loss, dtype=logits.dtype), pullback


def _entropy_weights(p: AnyArray) -> AnyArray:
    certainty = 1 + np.exp(xlogy(p, p).sum(axis=1))
    return np.asarray(certainty / certainty.mean())


@dataclass(frozen=True)
class CoreResult:
    """What :func:`core_adapt` leaves behind.

    Parameters
    ----------
    predictions : tuple of integer arrays
        Predicted classes of every batch, made before the step on that batch.
    losses : float64 array (batches,)
        Class correlation of every batch, before its step.
    params : tree of arrays
        Parameters after the last step.
    """

    predictions: tuple[IntArray, ...]
    losses: AnyArray
    params: Tree


def core_adapt(
    network_vjp: Callable[[Tree, AnyArray, float], tuple[AnyArray, Pullback]],
    params: Tree,
    stream: Iterable[AnyArray],
    *,
    source_weight: float = 0.9,
    learning_rate: float = 1e-3,
    temperature: float = 2.5,
    weight_by_entropy: bool = True,
) -> CoreResult:
    """Predict a stream of test batches, adapting after each one with a step on the class correlation.

    Parameters
    ----------
    network_vjp : function
        ``network_vjp(params, x, source_weight) -> (logits, pullback)``, with ``pullback(dlogits)`` a tuple whose
        first entry is the cotangent of ``params``. It applies :func:`alpha_batch_norm` where the trained network
        has batch norm.
    params : tree of arrays
        What may change: gains and biases of the batch norms.
    stream : iterable of arrays
        Test batches in the order of their arrival.
    source_weight : float in [0, 1]
        Passed on to the network.
    learning_rate : float > 0
        Of plain gradient descent, one step a batch.
    temperature, weight_by_entropy
        As in :func:`class_correlation_loss`.

    Returns
    -------
    CoreResult

    Raises
    ------
    ValueError
        If a number is outside its range.

    Notes
    -----
    ``params`` itself is not changed: to start anew after a change of domain, call again with the first
    parameters; to go on, with those of the result. Without such a reset the parameters drift for as long as
    the stream lasts.

    References
    ----------
    You, Li, Zhao (2021), arXiv 2110.04065, the section on Core.

    Examples
    --------
    >>> def network_vjp(params, x, source_weight):
    ...     y, back = alpha_batch_norm_vjp(x, *params, np.zeros(2), np.ones(2), source_weight=source_weight)
    ...     return y, lambda dy: (back(dy)[1:3],)
    >>> batch = np.array([[2.0, 1.0], [0.0, 1.5], [3.0, 0.0]])
    >>> result = core_adapt(network_vjp, (np.ones(2), np.zeros(2)), [batch, batch], learning_rate=0.1)
    >>> result.predictions[0], bool(result.losses[1] < result.losses[0])
    (array([0, 1, 0]), True)
    """
    _checks.in_range(source_weight, "source_weight", 0, 1)
    _checks.positive(learning_rate, "learning_rate")
    predictions, losses = [], []
    for x in stream:
        logits, network = network_vjp(params, x, source_weight)
        loss, back = class_correlation_loss_vjp(logits, temperature=temperature, weight_by_entropy=weight_by_entropy)
        predictions.append(logits.argmax(axis=1))
        losses.append(float(loss))
        (dlogits,) = back(np.ones((), logits.dtype))
        params = tree_map(lambda p, g: p - learning_rate * g, params, network(dlogits)[0])
    return CoreResult(tuple(predictions), np.array(losses), params)


def _wide(x: AnyArray) -> AnyArray:
    return x.astype(np.result_type(x, np.float64), copy=False)
