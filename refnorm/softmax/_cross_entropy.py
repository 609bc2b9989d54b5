"""Log-softmax, log-sum-exp and the cross-entropies.

    logsumexp(x) = x_k + log1p(sum of exp(x_j - x_k) over j != k),      k = argmax(x)
    log_softmax(x)_i = (x_i - x_k) - log1p(...)
    cross_entropy = -sum_i q_i log_softmax(x)_i

Taking the largest term out of the sum keeps both terms of log-softmax at most 0, so that their sum
cannot cancel, and keeps the digits of an entry near 0, which are the digits of the other probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.softmax._two_pass import _chosen

METHOD = Method(
    title="Log-softmax, log-sum-exp and cross-entropy",
    authors="Bridle",
    year=1990,
    arxiv=None,
    functions=("log_softmax", "logsumexp", "cross_entropy", "soft_cross_entropy"),
    chapter="softmax/cross_entropy",
    paper=False,
)

_REDUCTIONS = ("mean", "sum", "none")


def log_softmax(x: Array[F], *, axis: int = -1, where: AnyArray | None = None, temperature: float = 1.0) -> Array[F]:
    """Logarithm of softmax, exact also where softmax itself is 0 or rounds to 1.

    Parameters
    ----------
    x : array of at least one dimension
        Logits.
    axis : int
        The axis along which the exponentials of the result sum to 1.
    where : boolean array, broadcastable to the shape of ``x``, optional
        True for the entries that take part. The others are not read; their result is ``-inf``.
    temperature : float > 0
        The logits are ``x / temperature``.

    Returns
    -------
    array, shape and dtype of ``x``
        All entries at most 0, each with a small relative error; float32 is computed in float64.

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64, or ``where`` is not boolean.
    ValueError
        If the axis does not exist or is empty, ``where`` does not broadcast to the shape of ``x``, or
        ``temperature`` is not a finite number > 0.

    Notes
    -----
    ``z_i = x_i - log(sum_j exp(x_j))``. An entry ``-inf`` stays ``-inf``. A row that holds NaN or
    ``inf``, or nothing but ``-inf``, is NaN everywhere. Entries left out by ``where`` are ``-inf`` in every
    row, and pass no gradient on; a row in which nothing takes part is ``-inf`` everywhere.

    References
    ----------
    Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs", for
    softmax as the output of a classifier.

    Examples
    --------
    >>> log_softmax(np.array([1000.0, 1001.0, 1002.0])).round(4)
    array([-2.4076, -1.4076, -0.4076])
    >>> log_softmax(np.array([0.0, 50.0]))  # the second entry is -exp(-50), not 0
    array([-5.00000000e+01, -1.92874985e-22])
    >>> log_softmax(np.array([0.0, 2.0, 0.0]), where=np.array([True, False, True])).round(4)
    array([-0.6931,    -inf, -0.6931])
    """
    return log_softmax_vjp(x, axis=axis, where=where, temperature=temperature)[0]


def log_softmax_vjp(
    x: Array[F], *, axis: int = -1, where: AnyArray | None = None, temperature: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`log_softmax` and its pullback ``dz -> (dx,)``.

    Parameters, errors and references are those of :func:`log_softmax`.
    """
    x, last = _rows(x, axis)
    chosen = _chosen(where, x.shape)
    logits = _fenced(x, chosen)
    z = np.moveaxis(_log_softmax_and_sum(np.moveaxis(logits, last, -1), temperature)[0], -1, last)
    if chosen is not None:
        z = np.where(chosen, z, -np.inf)

    def pullback(dz: Array[F]) -> tuple[Array[F]]:
        if chosen is not None:
            dz = np.where(chosen, dz, 0)  # an entry left out is -inf whatever happens
        # dz_i/dx_j = [i = j] - y_j: whatever is asked of the row in total is paid in proportion to y.
        dx = dz - np.exp(z) * _wide(dz).sum(axis=last, keepdims=True)
        return (_through(dx, chosen, temperature).astype(x.dtype),)

    return np.ascontiguousarray(z.astype(x.dtype)), pullback


def logsumexp(
    x: Array[F],
    *,
    axis: int = -1,
    keepdims: bool = False,
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> Array[F]:
    """Logarithm of the sum of exponentials, without overflow.

    Parameters
    ----------
    x : array of at least one dimension
    axis : int
        The axis that is summed.
    keepdims : bool
        Keep it in the result with length 1.
    where : boolean array, broadcastable to the shape of ``x``, optional
        True for the entries that are summed; the others are not read.
    temperature : float > 0
        The exponents are ``x / temperature``; the result is not multiplied by it.

    Returns
    -------
    array, dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64, or ``where`` is not boolean.
    ValueError
        If the axis does not exist or is empty, ``where`` does not broadcast to the shape of ``x``, or
        ``temperature`` is not a finite number > 0.

    Notes
    -----
    ``inf`` in a row gives ``inf``, NaN gives NaN, nothing but ``-inf`` gives ``-inf``; the pullback of
    such a row is NaN, like its softmax. The sum over nothing has the logarithm ``-inf``; entries that are left
    out get the gradient 0.

    Examples
    --------
    >>> float(logsumexp(np.array([1000.0, 1001.0, 1002.0])).round(6))
    1002.407606
    """
    return logsumexp_vjp(x, axis=axis, keepdims=keepdims, where=where, temperature=temperature)[0]


def logsumexp_vjp(
    x: Array[F],
    *,
    axis: int = -1,
    keepdims: bool = False,
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`logsumexp` and its pullback ``dlse -> (dx,)``.

    Parameters and errors are those of :func:`logsumexp`.
    """
    x, last = _rows(x, axis)
    chosen = _chosen(where, x.shape)
    z, total = _log_softmax_and_sum(np.moveaxis(_fenced(x, chosen), last, -1), temperature)
    value = np.moveaxis(total, -1, last) if keepdims else total[..., 0]

    def pullback(dlse: Array[F]) -> tuple[Array[F]]:
        # d lse / dx_j = y_j = exp(z_j)
        along = dlse if keepdims else np.expand_dims(dlse, last)
        dx = along * np.moveaxis(np.exp(z), -1, last)
        return (_through(dx, chosen, temperature).astype(x.dtype),)

    with np.errstate(over="ignore"):  # a quotient by a low temperature may leave the range of float32
        return np.asarray(value.astype(x.dtype)), pullback


def cross_entropy(
    logits: Array[F],
    target: IntArray,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array[F]:
    """Cross-entropy between softmax of the logits and class labels.

    Parameters
    ----------
    logits : array (B, C)
    target : integer array (B,)
        Classes from 0 to C - 1, or ``ignore_index``.
    label_smoothing : float in [0, 1)
        Part of the target probability that is spread evenly over all C classes.
    ignore_index : int
        Rows with this target have loss 0 and gradient 0, and are not counted in the mean.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number of counted rows; ``"none"`` returns one loss a row.

    Returns
    -------
    array, () or (B,), dtype of ``logits``

    Raises
    ------
    TypeError
        If the logits are not float32 or float64, or the targets are not integers.
    ValueError
        If a shape or an option is wrong, a target is out of range, or there is no row to take the mean of.

    Notes
    -----
    With ``q_i = (1 - s) [i = target] + s / C`` and ``z = log_softmax(logits)``, a row's loss is
    ``-sum_i q_i z_i``: a sum of terms of one sign. ``-log(softmax)`` would be infinite once the
    probability underflows, and ``logsumexp - logit`` would cancel where the classifier is right.

    References
    ----------
    Szegedy et al. (2016), arXiv 1512.00567, section 7 (label smoothing).

    Examples
    --------
    >>> float(cross_entropy(np.array([[1000.0, 1001.0, 1002.0]]), np.array([2])).round(6))
    0.407606
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
    return cross_entropy_vjp(logits, target, label_smoothing=label_smoothing, **options)[0]


def cross_entropy_vjp(
    logits: Array[F],
    target: IntArray,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Array[F], Pullback]:
    """Return :func:`cross_entropy` and its pullback ``dloss -> (dlogits,)``.

    Parameters, errors and references are those of :func:`cross_entropy`; the integer targets have no
    cotangent.
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    _checks.not_empty(logits, "logits", (1,))
    target = _checks.integer_array(target, "target", ndim=1)
    _checks.shape(target, "target", logits.shape[:1])
    _checks.in_range(label_smoothing, "label_smoothing", 0, 1, closed="left")
    _checks.whole(ignore_index, "ignore_index")
    _checks.one_of(reduction, "reduction", _REDUCTIONS)
    classes = logits.shape[1]
    counted = target != ignore_index
    wrong = counted & ((target < 0) | (target >= classes))
    if wrong.any():
        _checks.fail("target", f"classes from 0 to {classes - 1} or {ignore_index}", target[wrong][0])

    z, _ = _log_softmax_and_sum(logits)
    column = np.where(counted, target, 0)[:, None]
    z_target = np.take_along_axis(z, column, axis=1)
    loss = -(1 - label_smoothing) * z_target[:, 0]
    if label_smoothing:  # otherwise a masked class would enter as 0 * inf
        loss = loss - label_smoothing * z.mean(axis=1)
    value, row_weights = _reduce(np.where(counted, loss, 0), counted, reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F]]:
        # dlogits_i = y_i - q_i; in the target's column 1 is taken off inside expm1, so that a confident,
        # right answer keeps a gradient instead of rounding to 0.
        difference = np.exp(z) - label_smoothing / classes
        smoothed = label_smoothing - label_smoothing / classes
        np.put_along_axis(difference, column, np.expm1(z_target) + smoothed, axis=1)
        dlogits = np.where(counted[:, None], row_weights(dloss)[:, None] * difference, 0)
        return (dlogits.astype(logits.dtype),)

    return np.asarray(value.astype(logits.dtype)), pullback


def soft_cross_entropy(logits: Array[F], target: Array[F], *, reduction: str = "mean") -> Array[F]:
    """Cross-entropy between softmax of the logits and given weights of the classes.

    Parameters
    ----------
    logits : array (B, C)
    target : array (B, C)
        The weight of each class; usually a probability distribution, but any numbers will do.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by B; ``"none"`` returns one loss a row.

    Returns
    -------
    array, () or (B,), dtype of ``logits``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape or the reduction is wrong, or there is no row to take the mean of.

    Notes
    -----
    A row's loss is ``-sum_i target_i z_i`` with ``z = log_softmax(logits)``; a weight of exactly 0 counts
    as 0 even where ``z_i`` is ``-inf``.

    Examples
    --------
    >>> logits, target = np.array([[0.0, 0.0]]), np.array([[0.25, 0.75]])
    >>> float(soft_cross_entropy(logits, target).round(6))
    0.693147
    """
    return soft_cross_entropy_vjp(logits, target, reduction=reduction)[0]


def soft_cross_entropy_vjp(logits: Array[F], target: Array[F], *, reduction: str = "mean") -> tuple[Array[F], Pullback]:
    """Return :func:`soft_cross_entropy` and its pullback ``dloss -> (dlogits, dtarget)``.

    Parameters and errors are those of :func:`soft_cross_entropy`.
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    target = _checks.float_array(target, "target")
    _checks.same_dtype("logits", logits, target=target)
    _checks.not_empty(logits, "logits", (1,))
    _checks.shape(target, "target", logits.shape)
    _checks.one_of(reduction, "reduction", _REDUCTIONS)

    z, _ = _log_softmax_and_sum(logits)
    with np.errstate(invalid="ignore"):
        loss = -np.where(target == 0, 0, target * z).sum(axis=1)
    value, row_weights = _reduce(loss, np.ones(len(loss), bool), reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F]]:
        # The loss is linear in the target, with slopes -z. In the logits, each weight target_i asks for
        # y - onehot_i, so the weights' total multiplies y; it need not be 1.
        weight = row_weights(dloss)[:, None]
        dlogits = weight * (np.exp(z) * _wide(target).sum(axis=1, keepdims=True) - target)
        return dlogits.astype(logits.dtype), (-weight * z).astype(target.dtype)

    return np.asarray(value.astype(np.result_type(logits, target))), pullback


def _rows(x: Array[F], axis: int) -> tuple[Array[F], int]:
    x = _checks.float_array(x, "x", min_ndim=1)
    last = _checks.axes((axis,), x.ndim)[0]
    _checks.not_empty(x, "x", (last,))
    return x, last


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x).astype(np.result_type(x, np.float64), copy=False)


def _fenced(x: AnyArray, chosen: AnyArray | None) -> AnyArray:
    return x if chosen is None else np.where(chosen, x, x.dtype.type(-np.inf))


def _divided(x: AnyArray, temperature: float) -> AnyArray:
    """Parts apart: a complex quotient of ``-inf`` and a real number is NaN in NumPy."""
    return (x.view(x.real.dtype) / temperature).view(x.dtype)


def _through(dx: AnyArray, chosen: AnyArray | None, temperature: float) -> AnyArray:
    """The cotangent of the logits as that of ``x``."""
    if temperature != 1:
        dx = dx / temperature
    return dx if chosen is None else np.where(chosen, dx, 0)


def _log_softmax_and_sum(x: AnyArray, temperature: float = 1.0) -> tuple[AnyArray, AnyArray]:
    """Log-softmax and log-sum-exp (with its axis kept) over the last axis, in float64."""
    _checks.positive(temperature, "temperature")
    x = np.ascontiguousarray(_wide(x))
    at = x.real.argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(x, at, axis=-1)
    usable = np.isfinite(largest)
    anchor = np.where(usable, largest, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        shifted = _divided(x - anchor, temperature)
        terms = np.exp(shifted)
        np.put_along_axis(terms, at, 0, axis=-1)
        log_rest = np.log1p(terms.sum(axis=-1, keepdims=True))
        z = np.where(usable, shifted - log_rest, np.nan)
        total = np.where(usable, anchor / temperature + log_rest, largest)
    return z, total


def _reduce(loss: AnyArray, counted: AnyArray, reduction: str) -> tuple[AnyArray, Any]:
    """The reduced loss, and the function from its cotangent to the weight of each row's gradient."""
    if reduction == "none":
        return loss, _wide
    count = 1 if reduction == "sum" else int(counted.sum())
    if count == 0:
        _checks.fail("target", "at least one row that is not ignored for the mean", f"{len(loss)} rows, 0 counted")
    return loss.sum() / count, lambda dloss: np.full(len(loss), np.asarray(dloss) / count)
