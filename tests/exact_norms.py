"""Normalized vectors in mpmath at 50 digits, and 8-bit codes of them: truth for the norms that end in codes."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np

AnyArray = np.ndarray[Any, np.dtype[Any]]

NEAREST_TIE = 1e-4
"""Quotients this close to a tie are no truth for float32: its norms may be off by a few units in the last place."""


def exact_rows(x: AnyArray, gain: AnyArray, bias: AnyArray, *, eps: float, centred: bool) -> list[list[Any]]:
    """Layer norm (``centred``) or root-mean-square norm of each row of a matrix, from the definition."""
    found = []
    with mpmath.workdps(50):
        scale, shift = ([mpmath.mpf(float(v)) for v in vector] for vector in (gain, bias))
        for row in x:
            values = [mpmath.mpf(float(v)) for v in row]
            mean = mpmath.fsum(values) / len(values) if centred else mpmath.mpf(0)
            away = [v - mean for v in values]
            root = mpmath.sqrt(mpmath.fsum(v * v for v in away) / len(values) + mpmath.mpf(eps))
            found.append([a / root * g + b for a, g, b in zip(away, scale, shift, strict=True)])
    return found


def clear_code(quotient: Any, lowest: int, highest: int) -> int | None:
    """The nearest of ``lowest .. highest``, or None if the quotient is near a tie."""
    whole = mpmath.nint(quotient)
    if abs(abs(quotient - whole) - mpmath.mpf(1) / 2) < NEAREST_TIE:
        return None
    return int(min(max(whole, lowest), highest))


def draw_clear(rng: np.random.Generator, shape: tuple[int, int], dtype: Any, codes_of: Any) -> tuple[AnyArray, Any]:
    """Numbers whose ``codes_of`` are all clear of ties, and those codes."""
    while True:
        x = (3 * rng.standard_normal(shape) + 1).astype(dtype)
        codes = codes_of(x)
        if all(code is not None for row in codes for code in row):
            return x, codes
