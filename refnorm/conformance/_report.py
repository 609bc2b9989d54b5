"""The outcome of a run for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import refnorm
from refnorm.conformance._runner import Outcome
from refnorm.conformance._version import VECTORS_VERSION

REPORT_FORMAT = "refnorm-conformance-report"
REPORT_VERSION = 1
"""Rises when a program that reads the report would misread it."""


def report(outcomes: Sequence[Outcome], implementation: str = "") -> dict[str, Any]:
    """Describe a run as JSON.

    Parameters
    ----------
    outcomes
        What :func:`refnorm.conformance.run` returned.
    implementation
        What was tested, in words.

    Returns
    -------
    dict
        ``format``, ``version``, ``vectors_version``, ``refnorm``, ``implementation``, ``summary`` (numbers of cases
        that passed, failed and were not supported) and ``cases``: for each its method, function and name, whether
        it is ``supported`` and ``passed``, the ``error`` in the unit of its ``rule``, the ``limit``, the distance from the truth
        in units in the last place of the largest entry (``ulp``) and of each entry (``entry_ulp``), the
        ``source`` of the truth and the ``problem``, if there was one. An error that is no finite number is ``None``.
    """
    return {
        "format": REPORT_FORMAT,
        "version": REPORT_VERSION,
        "vectors_version": VECTORS_VERSION,
        "refnorm": refnorm.__version__,
        "implementation": implementation,
        "summary": {
            "passed": sum(outcome.passed for outcome in outcomes),
            "failed": sum(outcome.failed for outcome in outcomes),
            "not_supported": sum(not outcome.supported for outcome in outcomes),
        },
        "cases": [{name: _json(value) for name, value in asdict(outcome).items()} for outcome in outcomes],
    }


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
