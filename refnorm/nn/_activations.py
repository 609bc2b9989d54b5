"""Activations: ReLU, GELU, SiLU, softplus, the logistic function and the error function.

relu(x) = max(x, 0)        gelu(x) = x Phi(x)        (Phi: distribution function of N(0, 1))
silu(x) = x sigmoid(x)     softplus(x) = log(1 + exp x)     sigmoid(x) = 1 / (1 + exp(-x))
"""

from __future__ import annotations

import numpy as np
from scipy import special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="Gaussian Error Linear Units (GELUs)",
    authors="Hendrycks, Gimpel",
    year=2016,
    arxiv="1606.08415",
    functions=("erf", "gelu", "relu", "sigmoid", "silu", "softplus"),
    chapter="nn/activations",
    paper=False,
)

TANH_SCALE = float(np.sqrt(2 / np.pi))
TANH_CUBIC = 0.044715
"""``Phi(x) ~ (1 + tanh(TANH_SCALE (x + TANH_CUBIC x^3))) / 2``. The slope at 0 is exact; the cubic
coefficient was fitted by the paper's authors. The largest error of x Phi(x) is 4.8e-4, near |x| = 2.7."""

FAR = 40.0
"""``Phi(-FAR)`` and the density at ``FAR`` are below the smallest float64, 4.9e-324, in both forms."""

FAR_LOGISTIC = 800.0
"""``exp(-FAR_LOGISTIC)`` times any number up to it is below the smallest float64."""


def relu(x: Array[F]) -> Array[F]:
    """Keep positive numbers, replace negative ones by 0.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    ``relu(x) = max(x, 0)``. The derivative at 0, where there is none, is taken as 0. NaN stays NaN and
    lets the cotangent through, so that it cannot hide.

    References
    ----------
    Nair, Hinton (2010), Rectified linear units improve restricted Boltzmann machines, section 2.

    Examples
    --------
    >>> relu(np.array([-2.0, 0.0, 3.0]))
    array([0., 0., 3.])
    """
    return relu_vjp(x)[0]


def relu_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`relu` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    y: Array[F] = np.maximum(x, x.dtype.type(0))

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return (np.where(x <= 0, x.dtype.type(0), dy),)

    return y, pullback


def gelu(x: Array[F], *, approximate: str = "none") -> Array[F]:
    """Weigh each number by the probability that a standard normal variable is below it.

    Parameters
    ----------
    x : array of any shape
    approximate : {"none", "tanh"}
        ``"none"`` is the definition; ``"tanh"`` replaces ``Phi`` by a logistic curve in ``x + 0.0447 x^3``,
        as models do that were trained with it. The two differ by up to 4.8e-4.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.
    ValueError
        If ``approximate`` is neither.

    Notes
    -----
    ``gelu(x) = x Phi(x)``, with ``Phi`` taken from the complementary error function on the negative side:
    ``(1 + erf(x / sqrt 2)) / 2`` loses all digits there by cancellation. Computed in float64 and rounded
    once: float32 results are within 1 ULP, float64 results within ``4 + x^2`` ULP (``Phi`` at a rounded
    argument changes by that much). ``+inf`` gives ``+inf``, ``-inf`` gives 0 (the limit), NaN gives NaN.

    References
    ----------
    Hendrycks, Gimpel (2016), arXiv 1606.08415, section 2.

    Examples
    --------
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    >>> gelu(np.array([-1.0, 0.0, 1.0]), approximate="tanh").round(4)
    array([-0.1588,  0.    ,  0.8412])
    """
    x = _checks.float_array(x, "x")
    _checks.one_of(approximate, "approximate", ("none", "tanh"))
    wide = _widen(x)
    y: Array[F] = (wide * _probability(wide, approximate)).astype(x.dtype)
    return y


def gelu_vjp(x: Array[F], *, approximate: str = "none") -> tuple[Array[F], Pullback]:
    """Return :func:`gelu` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    _checks.one_of(approximate, "approximate", ("none", "tanh"))
    wide = _widen(x)
    probability = _probability(wide, approximate)
    y: Array[F] = (wide * probability).astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # (x P(x))' = P(x) + x P'(x). P' is the normal density for the exact form; for the logistic form
        # with P = (1 + tanh u) / 2 it is (1 - tanh^2 u) u' / 2 = 2 P (1 - P) u'.
        # Far out both are 0, and stay 0 when multiplied by x: the clip keeps infinity out of the product.
        near = np.clip(wide, -FAR, FAR)
        if approximate == "none":
            density = np.exp(-0.5 * near * near) / np.sqrt(2 * np.pi)
        else:
            # P(-x) is 1 - P(x) without the cancellation.
            both = probability * _probability(-near, approximate)
            density = 2 * both * TANH_SCALE * (1 + 3 * TANH_CUBIC * near * near)
        return (np.asarray(dy * (probability + near * density)).astype(x.dtype),)

    return y, pullback


def _widen(x: AnyArray) -> AnyArray:
    """Return ``x`` in float64, numbers below -FAR (where the value is 0) raised to it: no -inf times 0."""
    if x.dtype.kind == "c":
        return x
    return np.maximum(x.astype(np.float64), -FAR)


def _probability(x: AnyArray, approximate: str) -> AnyArray:
    if approximate == "none":
        return np.asarray(special.ndtr(x))
    with np.errstate(over="ignore"):
        # A logistic function of 2u, not (1 + tanh u) / 2, which cancels for negative u.
        inner = 2 * TANH_SCALE * (x + TANH_CUBIC * x * x * x)
        return np.asarray(1 / (1 + np.exp(-inner)))


def sigmoid(x: Array[F]) -> Array[F]:
    """Map each number to the probability whose log-odds it is.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array, shape and dtype of ``x``, in [0, 1]

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    ``sigmoid(x) = 1 / (1 + exp(-x))``, computed in float64 and rounded once. ``sigmoid(-x) = 1 - sigmoid(x)``: the small
    one of the two keeps its digits.

    References
    ----------
    Hendrycks, Gimpel (2016), arXiv 1606.08415, section 2.

    Examples
    --------
    >>> sigmoid(np.array([-1.0, 0.0, 1.0])).round(4)
    array([0.2689, 0.5   , 0.7311])
    """
    return sigmoid_vjp(x)[0]


def sigmoid_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`sigmoid` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    wide = _double(x)
    y = _logistic(wide)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # With e = exp(-x): y = 1 / (1 + e), dy/dx = e / (1 + e)^2 = y (1 - y), and 1 - y = sigmoid(-x) has its digits.
        return (np.asarray(dy * (y * _logistic(-wide))).astype(x.dtype),)

    return np.asarray(y).astype(x.dtype), pullback


def silu(x: Array[F]) -> Array[F]:
    """Weigh each number by its logistic function; also called swish.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    ``silu(x) = x sigmoid(x)``, computed in float64 and rounded once. ``-inf`` gives 0, the limit.

    References
    ----------
    Hendrycks, Gimpel (2016), arXiv 1606.08415, section 2.

    Examples
    --------
    >>> silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return silu_vjp(x)[0]


def silu_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`silu` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    wide = _double(x)
    if wide.dtype.kind != "c":
        wide = np.maximum(wide, -FAR_LOGISTIC)
    weight = _logistic(wide)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # (x s)' = s + x s (1 - s). Far out s (1 - s) is 0 and must stay 0 when multiplied by infinity.
        near = wide if wide.dtype.kind == "c" else np.minimum(wide, FAR_LOGISTIC)
        return (np.asarray(dy * (weight + near * (weight * _logistic(-near)))).astype(x.dtype),)

    return np.asarray(wide * weight).astype(x.dtype), pullback


def softplus(x: Array[F]) -> Array[F]:
    """Round the corner of ReLU: the logarithm of 1 plus the exponential.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array, shape and dtype of ``x``, not negative

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    ``softplus(x) = log(1 + exp x) = max(x, 0) + log1p(exp(-|x|))``: the second form neither overflows nor loses the small
    values on the negative side. It is the integral of :func:`sigmoid`.

    References
    ----------
    Dugas, Bengio, Belisle, Nadeau, Garcia (2001), Incorporating second-order functional knowledge for better option
    pricing, equation 5.

    Examples
    --------
    >>> softplus(np.array([-1.0, 0.0, 1.0])).round(4)
    array([0.3133, 0.6931, 1.3133])
    """
    return softplus_vjp(x)[0]


def softplus_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`softplus` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    wide = _double(x)
    # The larger of x and 0 taken out: log(1 + e^x) = m + log(e^(x - m) + e^-m) with one of the two exponents 0.
    largest = np.where(wide.real < 0, 0.0, wide)
    y = largest + np.log1p(np.exp(np.where(wide.real < 0, wide, -wide)))

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # e^x / (1 + e^x)
        return (np.asarray(dy * _logistic(wide)).astype(x.dtype),)

    return np.asarray(y).astype(x.dtype), pullback


def erf(x: Array[F]) -> Array[F]:
    """Compute the error function: the probability that a normal variable of variance 1/2 is nearer to 0 than ``x``.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array, shape and dtype of ``x``, in [-1, 1], with the sign of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    ``erf(x) = 2 / sqrt(pi) * integral of exp(-t^2) from 0 to x``, computed in float64 and rounded once.
    ``Phi(x) = (1 + erf(x / sqrt 2)) / 2`` connects it with :func:`gelu`, which does not use it: the sum cancels for
    negative ``x``.

    References
    ----------
    Abramowitz, Stegun (1964), Handbook of mathematical functions, equation 7.1.1.

    Examples
    --------
    >>> erf(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.8427,  0.    ,  0.8427])
    """
    return erf_vjp(x)[0]


def erf_vjp(x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`erf` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x")
    wide = _double(x)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # The integrand at the upper end.
        return (np.asarray(dy * (2 / np.sqrt(np.pi) * np.exp(-wide * wide))).astype(x.dtype),)

    return np.asarray(special.erf(wide)).astype(x.dtype), pullback


def _double(x: AnyArray) -> AnyArray:
    return x if x.dtype.kind == "c" else np.asarray(x.astype(np.float64))


def _logistic(x: AnyArray) -> AnyArray:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(np.where(x.real < 0, x, -x))
    return np.asarray(np.where(x.real < 0, small, 1.0) / (1 + small))
