"""Scalar functions and exact sums that keep the ball's formulas accurate up to its boundary.

Everything here works in float64. The unit roundoff is written u = 2^-53.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from refnorm._typing import Array

Wide: TypeAlias = Array[np.float64]

SPLIT = 2.0**27 + 1.0
"""Veltkamp's constant: halves a 53-bit significand into two of 26 bits, whose products are exact."""

EXACT_GAP = 2.0**-48
"""Below this gap (times n + 4) a doubled-precision sum has fewer than 53 good bits left; then sum exactly.

The doubled sum of n squares is off by at most 2 (n + 4) u^2; divided by (n + 4) 2^-48 that is 2^-57 < u.
"""

SERIES_LIMIT = 1.0
"""Up to here x cosh x - sinh x is summed from its series (all terms positive, no cancellation).

Ten terms leave out less than 2^-60 of the sum. Beyond, the direct difference loses a factor of at most 4.
"""

COSH_EXCESS = tuple((2 * k + 2) / math.factorial(2 * k + 3) for k in range(10))

ARTANH_SERIES_LIMIT = 0.25
"""Up to this s^2 the series of 1/(1-s^2) - artanh(s)/s is used: 28 terms leave out less than 2^-55 of it.

Beyond, the direct difference loses a factor of at most 6 (at s = 1/2: 1.333 - 1.099).
"""

ARTANH_BEND = tuple((2 * k + 2) / (2 * k + 3) for k in range(28))

SATURATED = 400.0
"""From here tanh is 1 and sech^2 is 0 in float64 (the latter below 10^-346): a larger argument changes nothing."""


def two_sum(a: Wide, b: Wide) -> tuple[Wide, Wide]:
    """Return the rounded sum and its exact error (Knuth)."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)


def two_product(a: Wide, b: Wide | np.float64) -> tuple[Wide, Wide]:
    """Return the rounded product and its exact error (Veltkamp, Dekker); valid below 2^996."""
    product = a * b
    a_scaled, b_scaled = SPLIT * a, SPLIT * b
    a_high, b_high = a_scaled - (a_scaled - a), b_scaled - (b_scaled - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def gap(x: Wide, curvature: float) -> Wide:
    """Return 1 - curvature |x|^2 over the last axis, which is kept, with a relative error of at most 2u.

    Near the boundary the subtraction cancels nearly everything, so the square has to be known to twice the
    working precision: products and sums carry their rounding errors along. A point closer to the boundary
    than that resolves is summed exactly, term by term.
    """
    c = np.float64(curvature)
    square, product_errors = two_product(x, x)
    low: Wide = product_errors.sum(axis=-1, keepdims=True)
    while square.shape[-1] > 1:
        if square.shape[-1] % 2:
            square = np.concatenate([square, np.zeros_like(square[..., :1])], axis=-1)
        square, sum_errors = two_sum(square[..., ::2], square[..., 1::2])
        low = low + sum_errors.sum(axis=-1, keepdims=True)
    scaled, scaled_error = two_product(square, c)
    result, error = two_sum(np.ones_like(scaled), -scaled)
    result = result + (error - (scaled_error + c * low))
    for row in np.argwhere((np.abs(result) < (x.shape[-1] + 4) * EXACT_GAP)[..., 0]):
        result[(*row, 0)] = _exact_gap(x[tuple(row)], c)
    return result


def _exact_gap(row: Wide, curvature: np.float64) -> float:
    """Sum 1 - curvature |row|^2 as exactly representable terms with one rounding at the end."""
    terms = [1.0]
    for part in two_product(row, row):
        for piece in two_product(part, curvature):
            terms += (-piece).tolist()
    return math.fsum(terms)


def dot(a: Wide, b: Wide) -> Wide:
    """Return the inner product over the last axis, which is kept."""
    product: Wide = (a * b).sum(axis=-1, keepdims=True)
    return product


def norm(x: Wide) -> Wide:
    """Return the Euclidean norm over the last axis, which is kept; no square overflows or underflows."""
    scaled, exponent = _scaled(x)
    with np.errstate(over="ignore"):
        length: Wide = np.ldexp(np.sqrt(dot(scaled, scaled)), exponent)
    return length


def direction(x: Wide) -> Wide:
    """Return x / norm(x) over the last axis, and the zero vector for a zero vector."""
    scaled, _ = _scaled(x)
    size = np.sqrt(dot(scaled, scaled))
    with np.errstate(invalid="ignore"):
        unit: Wide = scaled / np.where(size == 0, 1.0, size)
    return unit


def _scaled(x: Wide) -> tuple[Wide, Array[np.intc]]:
    """Divide by a power of two that brings the largest entry between 1/2 and 1; return the exponent, too."""
    largest = np.abs(x).max(axis=-1, keepdims=True, initial=0.0)
    exponent: Array[np.intc] = np.frexp(largest)[1]
    return np.ldexp(x, -exponent), exponent


def ratio(numerator: Wide, denominator: Wide, limit: float | Wide) -> Wide:
    """Return numerator / denominator, and ``limit`` where the denominator is 0."""
    zero = denominator == 0
    quotient: Wide = np.where(zero, limit, numerator / np.where(zero, 1.0, denominator))
    return quotient


def horner(coefficients: Sequence[float], z: Wide) -> Wide:
    """Evaluate a polynomial, lowest coefficient first."""
    value = np.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * z + coefficient
    return value


def sech_square(s: Wide) -> Wide:
    """Return 1 / cosh(s)^2 for s >= 0 as 4 e^(-2s) / (1 + e^(-2s))^2: cosh itself overflows."""
    decay = np.exp(-2 * np.minimum(s, SATURATED))
    square: Wide = 4 * decay / (1 + decay) ** 2
    return square


def tanh_ratio(s: Wide) -> Wide:
    """Return tanh(s) / s, 1 at 0."""
    return ratio(np.tanh(s), s, 1.0)


def artanh_ratio(s: Wide, gap_s: Wide) -> Wide:
    """Return artanh(s) / s for a norm s whose gap 1 - s^2 is known, 1 at 0.

    artanh(s) = arsinh(s / sqrt(1 - s^2)): the argument is known to its last digits however close s is
    to 1, and arsinh amplifies no relative error.
    """
    return ratio(np.arcsinh(s / np.sqrt(gap_s)), s, 1.0)


def cosh_excess(b: Wide) -> Wide:
    """Return b cosh(b) - sinh(b), which is b^3 / 3 for small b."""
    near = np.abs(b) <= SERIES_LIMIT
    small, large = np.where(near, b, 0.0), np.where(near, SERIES_LIMIT, b)
    return np.where(near, small**3 * horner(COSH_EXCESS, small * small), large * np.cosh(large) - np.sinh(large))


def tanh_excess(a: Wide) -> Wide:
    """Return tanh(a) - a, which is -a^3 / 3 for small a."""
    near = np.abs(a) <= SERIES_LIMIT
    small = np.where(near, a, 0.0)
    return np.where(near, -cosh_excess(small) / np.cosh(small), np.tanh(a) - a)


def tanh_bend(s: Wide) -> Wide:
    """Return sech(s)^2 - tanh(s)/s = s d/ds (tanh(s)/s) for s >= 0, which is -2 s^2 / 3 for small s."""
    near = s <= SERIES_LIMIT
    small = np.where(near, s, 0.0)
    # With t = tanh(s)/s: sech^2 - t = (1 - t) - s^2 t^2, and 1 - t = (s cosh s - sinh s) / (s cosh s).
    t = tanh_ratio(small)
    z = small * small
    return np.where(near, z * (horner(COSH_EXCESS, z) / np.cosh(small) - t * t), sech_square(s) - tanh_ratio(s))


def artanh_bend(s: Wide, gap_s: Wide) -> Wide:
    """Return 1/(1-s^2) - artanh(s)/s = s d/ds (artanh(s)/s), which is 2 s^2 / 3 for small s."""
    z = s * s
    near = z <= ARTANH_SERIES_LIMIT
    small = np.where(near, z, 0.0)
    return np.where(near, small * horner(ARTANH_BEND, small), 1 / gap_s - artanh_ratio(s, gap_s))


def project_off(u: Wide, unit: Wide, radial: Wide) -> Wide:
    """Return the part of ``u`` orthogonal to ``unit``, given ``radial = <u, unit>``."""
    return u - radial * unit
