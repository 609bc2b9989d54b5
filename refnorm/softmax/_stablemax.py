"""StableMax and gradients orthogonal to the weights: training past 100 % accuracy in few digits.

s(x) = x + 1 (x >= 0),  1 / (1 - x) (x < 0)         p_i = s(x_i) / sum_j s(x_j) = softmax(sign(x) log(1 + |x|))_i

orthogonal = grad - <weight, grad> / <weight, weight> weight
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback, Tree
from refnorm.softmax._cross_entropy import cross_entropy_vjp, log_softmax_vjp
from refnorm.tree import tree_leaves, tree_map

if TYPE_CHECKING:
    from refnorm.solvers import Optimizer

METHOD = Method(
    title="Grokking at the Edge of Numerical Stability (StableMax, orthogonal gradients)",
    authors="Prieto, Barsbey, Mediano, Birdal",
    year=2025,
    arxiv="2501.04697",
    functions=(
        "OrthoGrad",
        "log_stablemax",
        "nlm_cosine",
        "orthogonalize_gradient",
        "softmax_collapse_rate",
        "stable_s",
        "stablemax",
        "stablemax_cross_entropy",
    ),
    chapter="softmax/stablemax",
)

PROJECTION_EPS = 1e-30
"""Added to <weight, weight> and to the norm of the projected gradient, so that zero weights divide nothing:
weights of a norm far below 1e-15 count as zero."""

LEAST_EXPONENT = -1000
"""2**1000 is finite; terms as small as 1 / (1 - x) can be for a finite x, 2**-1024, lose nothing by it."""

_DIAGNOSTIC_DTYPES = (np.float16, np.float32, np.float64)


def stable_s(x: Array[F]) -> Array[F]:
    """Positive, increasing function that replaces the exponential in StableMax.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.

    Notes
    -----
    ``s(x) = x + 1`` for ``x >= 0`` and ``1 / (1 - x)`` below; value and slope agree at 0. ``s(-x) = 1 / s(x)``,
    as for the exponential. ``-inf`` gives 0, ``inf`` gives ``inf``.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> stable_s(np.array([-3.0, -1.0, 0.0, 1.0, 3.0]))
    array([0.25, 0.5 , 1.  , 2.  , 4.  ])
    """
    return stable_s_vjp(x)[0]


def stable_s_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`stable_s` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    positive, size = _one_plus_magnitude(x)
    inverse = 1 / size
    y: Array[F] = np.where(positive, size, inverse)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # (1 + x)' = 1 and (1 / (1 - x))' = 1 / (1 - x)^2: both are 1 at 0.
        return (np.asarray(dy * np.where(positive, 1, inverse * inverse)).astype(x.dtype),)

    return y, pullback


def stablemax(x: Array[F], *, axis: int = -1) -> Array[F]:
    """Softmax with a function of linear growth in place of the exponential.

    Parameters
    ----------
    x : array of at least one dimension
        Logits.
    axis : int
        The axis along which the result sums to 1.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If the axis does not exist or is empty.

    Notes
    -----
    ``p_i = s(x_i) / sum_j s(x_j)`` with :func:`stable_s`. A common shift of the logits changes the result, unlike
    softmax's. An entry ``-inf`` is masked; a row that holds NaN or ``inf``, or nothing but ``-inf``, is NaN.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> (7 * stablemax(np.array([1.0, 0.0, -1.0]))).round(12)
    array([4., 2., 1.])
    """
    return stablemax_vjp(x, axis=axis)[0]


def stablemax_vjp(x: Array[F], *, axis: int = -1) -> tuple[Array[F], Pullback]:
    """Return :func:`stablemax` and its pullback ``dy -> (dx,)``.

    Parameters, errors and references are those of :func:`stablemax`.
    """
    x, last = _rows(x, axis)
    positive, size = _one_plus_magnitude(_wide(x))
    s = np.where(positive, size, 1 / size)
    # Only float64 sums can overflow. The factor is a power of two that brings the largest term near 1: exact.
    top = s.real.max(axis=last, keepdims=True)
    exponent = np.frexp(np.where(np.isfinite(top), top, 1))[1]
    s = s * np.ldexp(1.0, -np.maximum(exponent, LEAST_EXPONENT))
    total = s.sum(axis=last, keepdims=True)
    with np.errstate(invalid="ignore"):
        p = s / np.where(np.isinf(total), np.nan, total)
    largest = np.expand_dims(p.real.argmax(axis=last), last)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # StableMax is softmax of h(x) = sign(x) log(1 + |x|), and h'(x) = 1 / (1 + |x|) on both sides of 0.
        # As for softmax, the cotangent's entry at the largest p may be taken off first: nothing cancels.
        relative = dy - np.take_along_axis(np.asarray(dy), largest, axis=last)
        dh = p * (relative - (relative * p).sum(axis=last, keepdims=True))
        return ((dh / size).astype(x.dtype),)

    return p.astype(x.dtype), pullback


def log_stablemax(x: Array[F], *, axis: int = -1) -> Array[F]:
    """Logarithm of :func:`stablemax`, accurate where the result is near 0 as well.

    Parameters
    ----------
    x : array of at least one dimension
        Logits.
    axis : int
        The axis along which the exponentials of the result sum to 1.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If the axis does not exist or is empty.

    Notes
    -----
    ``log_softmax(h)`` with ``h = sign(x) log(1 + |x|)``, whose size grows only with the logarithm of ``x``.
    Special rows are those of :func:`stablemax`; a masked entry is ``-inf``.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> np.exp(log_stablemax(np.array([3.0, 0.0, -1.0, -1.0]))).round(4)
    array([0.6667, 0.1667, 0.0833, 0.0833])
    """
    return log_stablemax_vjp(x, axis=axis)[0]


def log_stablemax_vjp(x: Array[F], *, axis: int = -1) -> tuple[Array[F], Pullback]:
    """Return :func:`log_stablemax` and its pullback ``dz -> (dx,)``.

    Parameters, errors and references are those of :func:`log_stablemax`.
    """
    x, _ = _rows(x, axis)
    h, slope = _signed_log(x)
    z, back = log_softmax_vjp(h, axis=axis)

    def pullback(dz: Array[F]) -> tuple[Array[F]]:
        return ((slope * back(dz)[0]).astype(x.dtype),)

    return z.astype(x.dtype), pullback


def stablemax_cross_entropy(logits: Array[F], target: IntArray, *, reduction: str = "mean") -> Array[F]:
    """Cross-entropy between StableMax of the logits and class labels.

    Parameters
    ----------
    logits : array (B, C)
    target : integer array (B,)
        Classes from 0 to C - 1.
    reduction : {"mean", "sum", "none"}
        ``"none"`` returns one loss a row.

    Returns
    -------
    array, () or (B,), dtype of ``logits``

    Raises
    ------
    TypeError
        If the logits are not float32 or float64, or the targets are not integers.
    ValueError
        If a shape or the reduction is wrong, a target is out of range, or there is no row to take the mean of.

    Notes
    -----
    ``-log p_target``, summed over the *other* classes' shares, so that a confident, right answer keeps a loss.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on StableMax.

    Examples
    --------
    >>> float(stablemax_cross_entropy(np.array([[1.0, 0.0, -1.0]]), np.array([0])).round(6))
    0.559616
    """
    return stablemax_cross_entropy_vjp(logits, target, reduction=reduction)[0]


def stablemax_cross_entropy_vjp(
    logits: Array[F], target: IntArray, *, reduction: str = "mean"
) -> tuple[Array[F], Pullback]:
    """Return :func:`stablemax_cross_entropy` and its pullback ``dloss -> (dlogits,)``.

    Parameters, errors and references are those of :func:`stablemax_cross_entropy`.
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    target = _labels(logits, target)
    h, slope = _signed_log(logits)
    loss, back = cross_entropy_vjp(h, target, reduction=reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F]]:
        # dlogits_i = h'(x_i) (p_i - [i = target]): linear growth of s makes the slope fall like 1 / c^2 when a
        # right answer's logits grow like c, where softmax's falls like exp(-c).
        return ((slope * back(dloss)[0]).astype(logits.dtype),)

    return np.asarray(loss.astype(logits.dtype)), pullback


def orthogonalize_gradient(
    weight: Array[F], grad: Array[F], *, rescale: bool = True, min_ratio: float = 0.0, eps: float = PROJECTION_EPS
) -> Array[F]:
    """Remove the part of a gradient that only scales the weights.

    Parameters
    ----------
    weight, grad : arrays of one shape and dtype
        Taken as one long vector each.
    rescale : bool
        Give what is left the gradient's norm again.
    min_ratio : float in [0, 1]
        Where the norm of what is left is below ``min_ratio`` times the gradient's, return 0. With the default
        of 0, a gradient parallel to the weights leaves rounding errors, and rescaling blows them up to full size.
    eps : float > 0
        Added to the squared norm of the weights and to the norm of what is left.

    Returns
    -------
    array, shape and dtype of ``grad``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If the shapes differ or a number is outside its range.

    Notes
    -----
    ``left = grad - <weight, grad> / (<weight, weight> + eps) weight``, times ``|grad| / (|left| + eps)``. Sums
    are float64. A parameter with a single entry is always parallel to its gradient: leave it out.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on the orthogonal gradient.

    Examples
    --------
    >>> orthogonalize_gradient(np.array([1.0, 0.0]), np.array([3.0, 4.0]))
    array([0., 5.])
    >>> orthogonalize_gradient(np.array([1.0, 0.0]), np.array([3.0, 4.0]), rescale=False)
    array([0., 4.])
    """
    weight, grad = _checks.float_array(weight, "weight"), _checks.float_array(grad, "grad")
    _checks.same_dtype("weight", weight, grad=grad)
    _checks.shape(grad, "grad", weight.shape)
    _checks.in_range(min_ratio, "min_ratio", 0.0, 1.0)
    _checks.positive(eps, "eps")
    w, g = _wide(weight).ravel(), _wide(grad).ravel()
    left = g - (w @ g) / (w @ w + eps) * w
    size, size_left = np.linalg.norm(g), np.linalg.norm(left)
    if size_left < min_ratio * size:
        return np.zeros_like(grad)
    if rescale:
        left = left * (size / (size_left + eps))
    return left.reshape(grad.shape).astype(grad.dtype)


@dataclass(frozen=True)
class OrthoGrad:
    """An optimizer that sees only gradients orthogonal to the weights.

    Parameters
    ----------
    base : Optimizer
        Any optimizer of ``refnorm.solvers``, or an object with its ``init`` and ``step``.
    rescale, min_ratio
        As in :func:`orthogonalize_gradient`, for each parameter array.

    Raises
    ------
    ValueError
        If ``min_ratio`` is outside [0, 1].

    Notes
    -----
    Under plain gradient descent ``|weight|^2`` grows by exactly ``learning_rate^2 |grad|^2`` a step. A gradient
    of ``None`` stays ``None``.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on the orthogonal gradient.

    Examples
    --------
    >>> from refnorm.solvers import Lion
    >>> optimizer = OrthoGrad(Lion(learning_rate=0.5))
    >>> params = [np.array([1.0, 0.0])]
    >>> optimizer.step(params, [np.array([3.0, 4.0])], optimizer.init(params))[0]
    [array([ 1. , -0.5])]
    """

    base: Optimizer[Any]
    rescale: bool = True
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        _checks.in_range(self.min_ratio, "min_ratio", 0.0, 1.0)

    def init(self, params: Tree) -> Any:
        """Return the base optimizer's state before the first step."""
        return self.base.init(params)

    def step(self, params: Tree, grads: Tree, state: Any) -> tuple[Tree, Any]:
        """Return parameters and state after the base optimizer's step with the orthogonal gradients."""

        def orthogonal(weight: AnyArray | None, grad: AnyArray | None) -> AnyArray | None:
            if weight is None or grad is None:
                return grad
            return orthogonalize_gradient(weight, grad, rescale=self.rescale, min_ratio=self.min_ratio)

        return self.base.step(params, tree_map(orthogonal, params, grads, path="grads"), state)


def softmax_collapse_rate(logits: AnyArray, target: IntArray, *, dtype: Any = np.float32) -> float:
    """Fraction of rows on which the usual softmax cross-entropy is exactly 0, and its slope as well.

    Parameters
    ----------
    logits : array (B, C)
        At least one row.
    target : integer array (B,)
    dtype : float16, float32 or float64
        The number format in which the loss would be computed.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    TypeError
        If the logits are not float32 or float64, or the targets are not integers.
    ValueError
        If a shape or ``dtype`` is wrong, or a target is out of range.

    Notes
    -----
    A row has collapsed if ``sum_j exp(x_j - max x)``, computed in ``dtype``, is exactly 1 and the maximum is the
    target's: all other terms were absorbed. Logits that ``dtype`` cannot hold count as infinite.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on Softmax Collapse.

    Examples
    --------
    >>> logits = np.array([[10.0, 0.0], [20.0, 0.0]])
    >>> softmax_collapse_rate(logits, np.array([0, 0])), softmax_collapse_rate(logits, np.array([0, 0]), dtype=np.float64)
    (0.5, 0.0)
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    _checks.not_empty(logits, "logits", (0, 1))
    target = _labels(logits, target)
    _checks.one_of(dtype, "dtype", _DIAGNOSTIC_DTYPES)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        z = logits.astype(dtype)
        total = np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1, dtype=dtype)
    return float(((total == 1) & (logits.argmax(axis=1) == target)).mean())


def nlm_cosine(params: Tree, grads: Tree) -> list[float]:
    """Cosine between each weight array and the direction of steepest descent.

    Parameters
    ----------
    params, grads : trees of one structure

    Returns
    -------
    list of float
        One number in [-1, 1] an array, in the tree's order; 0 where an array is all zeros or its gradient is
        ``None``. Near 1, training only scales the weights up: naive loss minimisation.

    Raises
    ------
    TypeError, ValueError
        If structure, shape or dtype of an array differ.

    References
    ----------
    Prieto et al. (2025), arXiv 2501.04697, section on naive loss minimisation.

    Examples
    --------
    >>> nlm_cosine({"a": np.array([1.0, 0.0]), "b": np.ones(4)}, {"a": np.array([-3.0, 4.0]), "b": -np.ones(4)})
    [0.6, 1.0]
    """

    def cosine(weight: AnyArray | None, grad: AnyArray | None) -> float:
        if weight is None or grad is None:
            return 0.0
        weight, grad = _checks.float_array(weight, "params"), _checks.float_array(grad, "grads")
        _checks.shape(grad, "grads", weight.shape)
        w, g = _wide(weight).ravel(), _wide(grad).ravel()
        sizes = np.linalg.norm(w) * np.linalg.norm(g)
        return float(np.clip(-(w @ g) / sizes, -1, 1)) if sizes > 0 else 0.0

    return [leaf for _, leaf in tree_leaves(tree_map(cosine, params, grads, path="grads"))]


def _rows(x: AnyArray, axis: int) -> tuple[AnyArray, int]:
    x = _checks.float_array(x, "x", min_ndim=1)
    last = _checks.axes((axis,), x.ndim)[0]
    _checks.not_empty(x, "x", (last,))
    return x, last


def _labels(logits: AnyArray, target: IntArray) -> IntArray:
    _checks.not_empty(logits, "logits", (1,))
    target = _checks.integer_array(target, "target", ndim=1, low=0, high=logits.shape[1] - 1)
    _checks.shape(target, "target", logits.shape[:1])
    return target


def _wide(x: AnyArray) -> AnyArray:
    return x.astype(np.result_type(x, np.float64), copy=False)


def _one_plus_magnitude(x: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Whether ``x >= 0``, and ``1 + |x|`` as an analytic function on each side of 0."""
    positive = x.real >= 0
    return positive, 1 + np.where(positive, x, -x)


def _signed_log(x: AnyArray) -> tuple[AnyArray, AnyArray]:
    """``h(x) = sign(x) log(1 + |x|)`` and its slope ``1 / (1 + |x|)``, in float64."""
    x = _wide(x)
    positive, size = _one_plus_magnitude(x)
    log = np.log1p(np.where(positive, x, -x))
    return np.where(positive, log, -log), 1 / size
