"""What a golden case is, and how near a result has to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refnorm._arrays import ulp_error
from refnorm._checks import one_of, positive
from refnorm._typing import AnyArray

KINDS = ("value", "cotangents", "optimizer", "fields")
RULES = ("ulp", "ulp_of_largest", "relative", "relative_of_largest", "exact")


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the truth.

    Parameters
    ----------
    limit
        Largest error allowed; ignored for ``"exact"``.
    rule
        ``"ulp"``: units in the last place of the result's dtype, entry by entry;
        ``"ulp_of_largest"``: the same unit, taken at the largest expected magnitude;
        ``"relative"``: divided by each expected entry; ``"relative_of_largest"``: divided by the largest
        expected magnitude; ``"exact"``: equal, NaN matching NaN.
    """

    limit: float = 0.0
    rule: str = "exact"

    def __post_init__(self) -> None:
        one_of(self.rule, "rule", RULES)
        if self.rule != "exact":
            positive(self.limit, "limit")

    def error(self, actual: AnyArray, expected: AnyArray) -> float:
        """Return the largest error in this tolerance's unit; ``inf`` if the shapes differ."""
        if actual.shape != expected.shape:
            return float("inf")
        if not expected.size:
            return 0.0
        if self.rule == "exact":
            same = (actual == expected) | ((actual != actual) & (expected != expected))
            return 0.0 if bool(np.all(same)) else float("inf")
        dtype = actual.dtype if actual.dtype.kind == "f" else np.dtype(np.float64)
        special = ~np.isfinite(expected)
        if special.any() and Tolerance().error(actual[special], expected[special].astype(dtype)) > 0:
            return float("inf")
        got, truth = actual[~special], expected[~special]
        if not truth.size:
            return 0.0
        if not np.isfinite(got).all():
            return float("inf")
        if self.rule == "ulp":
            return float(np.max(ulp_error(got, truth, dtype)))
        difference = np.abs(got.astype(np.longdouble) - truth.astype(np.longdouble))
        largest = np.abs(truth).max()
        if self.rule == "ulp_of_largest":
            return float(difference.max() / np.spacing(largest.astype(dtype)))
        scale = np.abs(truth) if self.rule == "relative" else np.full(truth.shape, largest)
        zero = scale == 0
        if bool(np.any(difference[zero] > 0)):
            return float("inf")
        return float(np.max(difference[~zero] / scale[~zero], initial=0.0))

    def accepts(self, error: float) -> bool:
        return error == 0.0 if self.rule == "exact" else error <= self.limit


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One function call with a result that this package did not compute.

    Parameters
    ----------
    function
        ``"room.function"``, for example ``"norms.layer_norm"``.
    name
        What is special about this case, in a few words; unique within its method.
    args
        Positional arguments: arrays, numbers, strings, ``None``, lists of them, or dataclass records.
    expected
        The true result: an array, or a tuple of arrays in the order of the function's results. It may
        hold more digits than the function's dtype.
    source
        What computed it: ``"mpmath, 50 digits"``, ``"torch 2.13 float64"``, ``"by hand"``.
    tolerance
        Largest error allowed.
    options
        Keyword arguments (numbers, strings, booleans, ``None``, tuples of them).
    cotangent
        If given, the case is about ``function_vjp``: ``expected`` are the cotangents that its pullback
        returns for this cotangent (``None`` entries are left out).
    kind
        ``"value"``, ``"cotangents"`` (implied by ``cotangent``), ``"optimizer"``: ``function`` is a class
        built with ``options``; ``args`` are the start parameters and a list of gradients, one a step;
        ``expected`` are the final parameters; or ``"fields"``: the result is a record or a dict that tells more than
        its solution, and ``expected`` is a dict of those fields that count.
    """

    function: str
    name: str
    args: Sequence[Any]
    expected: Any
    source: str
    tolerance: Tolerance = field(default_factory=Tolerance)
    options: Mapping[str, Any] = field(default_factory=dict)
    cotangent: Any = None
    kind: str = "value"

    def __post_init__(self) -> None:
        one_of(self.kind, "kind", KINDS)
        if self.cotangent is not None:
            object.__setattr__(self, "kind", "cotangents")

    @property
    def target(self) -> str:
        """What is asked of an implementation, ``function`` or, for cotangents, ``function_vjp``."""
        return self.function + ("_vjp" if self.kind == "cotangents" else "")
