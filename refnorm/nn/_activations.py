"""Activations: ReLU and GELU.

relu(x) = max(x, 0)        gelu(x) = x Phi(x)        (Phi: distribution function of N(0, 1))
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="Gaussian Error Linear Units (GELUs)",
    authors="Hendrycks, Gimpel",
    year=2016,
    arxiv="1606.08415",
    functions=("gelu", "relu"),
    chapter="nn/activations",
    paper=False,
)

TANH_SCALE = float(np.sqrt(2 / np.pi))
TANH_CUBIC = 0.044715
"""``Phi(x) ~ (1 + tanh(TANH_SCALE (x + TANH_CUBIC x^3))) / 2``. The slope at 0 is exact; the cubic
coefficient was fitted by the paper's authors. The largest error of x Phi(x) is 4.8e-4, near |x| = 2.7."""

FAR = 40.0
"""``Phi(-FAR)`` and the density at ``FAR`` are below the smallest float64, 4.9e-324, in both forms."""


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
        return np.asarray(ndtr(x))
    with np.errstate(over="ignore"):
        # A logistic function of 2u, not (1 + tanh u) / 2, which cancels for negative u.
        inner = 2 * TANH_SCALE * (x + TANH_CUBIC * x * x * x)
        return np.asarray(1 / (1 + np.exp(-inner)))
