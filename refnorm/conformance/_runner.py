"""Run golden cases against any implementation and report the worst error of each function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from refnorm.conformance._cases import GoldenCase, load_cases, method_names
from refnorm.tree import tree_leaves


@dataclass(frozen=True)
class Outcome:
    """What one golden case showed."""

    method: str
    function: str
    name: str
    passed: bool
    error: float
    """Worst error in the unit of the case's tolerance (see ``rule``)."""
    ulp: float
    """Worst distance from the truth in units in the last place of the largest expected entry."""
    limit: float
    rule: str
    source: str
    problem: str = ""
    """Exception text, if the call failed."""


def functions_of(module: ModuleType, methods: Iterable[str] | None = None) -> dict[str, Callable[..., Any]]:
    """Collect the functions of ``module`` that golden cases exist for.

    A dict ``CONFORMANCE`` in the module wins; otherwise ``module.room.function`` and then
    ``module.function`` are looked up.
    """
    declared = getattr(module, "CONFORMANCE", None)
    if declared is not None:
        return dict(declared)
    found: dict[str, Callable[..., Any]] = {}
    for method in methods or method_names():
        for case in load_cases(method):
            name = _target(case)
            room, function = name.split(".")
            holder = getattr(module, room, None)
            target = getattr(holder, function, None) or getattr(module, function, None)
            if callable(target):
                found[name] = target
    return found


def run(
    implementation: Mapping[str, Callable[..., Any]] | ModuleType,
    *,
    methods: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Hold an implementation to the golden vectors.

    Parameters
    ----------
    implementation
        ``{"norms.layer_norm": f, "norms.layer_norm_vjp": f_vjp}``, or a module (see :func:`functions_of`).
        Functions that it does not have are not tested.
    methods
        ``["norms/layer_norm", ...]``; all by default.
    progress
        Called with each method's name before it runs.

    Returns
    -------
    list of Outcome

    Raises
    ------
    ValueError
        If not one golden case applies to the implementation.
    """
    chosen = list(methods or method_names())
    functions = functions_of(implementation, chosen) if isinstance(implementation, ModuleType) else implementation
    outcomes = []
    for method in chosen:
        if progress:
            progress(method)
        outcomes += [
            _check(method, case, functions[_target(case)]) for case in load_cases(method) if _target(case) in functions
        ]
    if not outcomes:
        raise ValueError(
            "implementation: expected at least one function with golden vectors, "
            f"got {', '.join(sorted(functions)) or 'none'}"
        )
    return outcomes


def _target(case: GoldenCase) -> str:
    return case.function + ("_vjp" if case.kind == "cotangents" else "")


def _call(case: GoldenCase, function: Callable[..., Any]) -> Any:
    options = dict(case.options)
    if case.kind == "optimizer":
        optimizer = function(**options)
        params, gradients = case.args
        state = optimizer.init(params)
        for gradient in gradients:
            params, state = optimizer.step(params, gradient, state)
        return params
    if case.kind == "cotangents":
        _, pullback = function(*case.args, **options)
        return tuple(entry for entry in pullback(case.cotangent) if entry is not None)
    return function(*case.args, **options)


def _check(method: str, case: GoldenCase, function: Callable[..., Any]) -> Outcome:
    tolerance = case.tolerance
    error, ulp, problem = float("inf"), float("inf"), ""
    try:
        result = _call(case, function)
        actual = [np.asarray(leaf) for _, leaf in tree_leaves(result) if leaf is not None]
        expected = [np.asarray(leaf) for _, leaf in tree_leaves(case.expected) if leaf is not None]
        if len(actual) != len(expected):
            problem = f"{len(actual)} results for {len(expected)} expected"
        else:
            pairs = list(zip(actual, expected, strict=True))
            shapes = [f"shape {a.shape} for {e.shape}" for a, e in pairs if a.shape != e.shape]
            if shapes:
                problem = shapes[0]
            else:
                error = max((tolerance.error(a, e) for a, e in pairs), default=0.0)
                ulp = max((_ulp_of_largest(a, e) for a, e in pairs), default=0.0)
    except Exception as exception:  # whatever a third party's function raises is a failed case, not our crash
        problem = f"{type(exception).__name__}: {exception}"
    return Outcome(
        method=method,
        function=_target(case),
        name=case.name,
        passed=not problem and tolerance.accepts(error),
        error=error,
        ulp=ulp,
        limit=tolerance.limit,
        rule=tolerance.rule,
        source=case.source,
        problem=problem,
    )


def _ulp_of_largest(actual: Any, expected: Any) -> float:
    if actual.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    usable = np.isfinite(expected) & np.isfinite(actual)
    if not usable.any():
        return 0.0
    difference = np.abs(actual[usable].astype(np.longdouble) - expected[usable].astype(np.longdouble)).max()
    return float(difference / np.spacing(np.abs(expected[usable]).max().astype(actual.dtype)))


def format_table(outcomes: Sequence[Outcome]) -> str:
    """One line a function: cases passed, worst error in ULP, and each failed case below it."""
    lines = [f"{'function':<44}{'passed':>9}{'worst ULP':>12}"]
    for function in dict.fromkeys(outcome.function for outcome in outcomes):
        group = [outcome for outcome in outcomes if outcome.function == function]
        passed = sum(outcome.passed for outcome in group)
        worst = max(outcome.ulp for outcome in group)
        lines.append(f"{function:<44}{f'{passed}/{len(group)}':>9}{worst:>12.3g}")
        for outcome in group:
            if not outcome.passed:
                reason = outcome.problem or f"error {outcome.error:.3g}, limit {outcome.limit:.3g} ({outcome.rule})"
                lines.append(f"  FAILED {outcome.name}: {reason} [truth: {outcome.source}]")
    failed = sum(not outcome.passed for outcome in outcomes)
    lines.append(f"{len(outcomes) - failed} passed, {failed} failed")
    return "\n".join(lines)
