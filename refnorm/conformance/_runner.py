"""Run golden cases against any implementation and report the worst error of each function."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from refnorm._arrays import ulp_error
from refnorm._names import got
from refnorm.conformance._cases import GoldenCase
from refnorm.conformance._files import function_names, load_cases, method_names
from refnorm.tree import tree_leaves

Implementation: TypeAlias = Mapping[str, Callable[..., Any]] | ModuleType


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
    entry_ulp: float
    """Worst distance in units in the last place of the entry itself."""
    limit: float
    rule: str
    source: str
    problem: str = ""
    """Exception text, if the call failed."""
    supported: bool = True
    """False if the implementation raised ``NotImplementedError``: neither passed nor failed."""

    @property
    def failed(self) -> bool:
        return self.supported and not self.passed


def functions_of(module: ModuleType, methods: Iterable[str] | None = None) -> dict[str, Callable[..., Any]]:
    """Collect the functions of ``module`` that golden cases exist for.

    A dict ``CONFORMANCE`` in the module wins; otherwise ``module.room.function`` and then
    ``module.function`` are looked up.
    """
    declared = getattr(module, "CONFORMANCE", None)
    if declared is not None:
        return dict(declared)
    found: dict[str, Callable[..., Any]] = {}
    for name in function_names(methods=methods):
        room, function = name.split(".")
        holder = getattr(module, room, None)
        target = getattr(holder, function, None) or getattr(module, function, None)
        if callable(target):
            found[name] = target
    return found


def load_implementation(name: str) -> Implementation:
    """Import ``"my_package.my_module"``, or take ``"my_package.my_module:mapping"`` from one.

    A mapping of names to functions may also be given by a function without arguments that returns it.

    Raises
    ------
    ValueError
        If the module has nothing of that name, or it is no mapping of names to functions.
    ImportError
        If there is no such module.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise ValueError(f"implementation: expected MODULE or MODULE:MAPPING, got {name!r}")
    module = _attempt(lambda: importlib.import_module(module_name), module_name)
    if not colon:
        if not isinstance(module, ModuleType):
            raise ValueError(f"implementation: expected a module, got {type(module).__name__}: {module_name}")
        return module
    if not hasattr(module, attribute):
        raise ValueError(f"implementation: expected a name in {module_name}, got {got(attribute, dir(module))}")
    found = getattr(module, attribute)
    if callable(found):
        found = _attempt(found, name)
    if not isinstance(found, Mapping) or not all(isinstance(k, str) and callable(f) for k, f in found.items()):
        raise ValueError(f"implementation: expected a mapping of names to functions, got {type(found).__name__}")
    return found


def _attempt(call: Callable[[], Any], name: str) -> Any:
    """Run somebody else's code; what it raises is told with its place, but for a package that is missing."""
    try:
        return call()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
        raise ValueError(f"implementation: {name}: {type(error).__name__}: {error} ({place})") from error


def run(
    implementation: Implementation,
    *,
    methods: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    vectors: Mapping[str, Sequence[GoldenCase]] | None = None,
) -> list[Outcome]:
    """Hold an implementation to the golden vectors.

    Parameters
    ----------
    implementation
        ``{"norms.layer_norm": f, "norms.layer_norm_vjp": f_vjp}``, or a module (see :func:`functions_of`).
        Functions that it does not have are not tested; one that raises ``NotImplementedError`` (an option that
        it lacks) has neither passed nor failed the case.
    methods
        ``["norms/layer_norm", ...]``; all by default.
    progress
        Called with each method's name before it runs.
    vectors
        Cases by method, as :func:`load_exported` returns them; by default those of this package.

    Returns
    -------
    list of Outcome

    Raises
    ------
    ValueError
        If not one golden case applies to the implementation, or a mapping has a name that there are no golden
        vectors of: a misspelt function would look as if it had passed.
    """
    known = method_names() if vectors is None else sorted(vectors)
    chosen = list(methods or known)
    for method in chosen:
        if method not in known:
            raise ValueError(f"methods: expected methods with golden vectors, got {got(method, known)}")
    functions = functions_of(implementation, chosen) if isinstance(implementation, ModuleType) else implementation
    if not isinstance(implementation, ModuleType) or hasattr(implementation, "CONFORMANCE"):
        _check_names(functions, vectors)
    outcomes = []
    for method in chosen:
        if progress:
            progress(method)
        cases = load_cases(method) if vectors is None else vectors[method]
        outcomes += [_check(method, case, functions[case.target]) for case in cases if case.target in functions]
    if not outcomes:
        raise ValueError(
            "implementation: expected at least one function with golden vectors, "
            f"got {', '.join(sorted(functions)) or 'none'}"
        )
    return outcomes


def _check_names(functions: Iterable[str], vectors: Mapping[str, Sequence[GoldenCase]] | None) -> None:
    known = (
        function_names() if vectors is None else sorted({case.target for cases in vectors.values() for case in cases})
    )
    for name in functions:
        if name not in known:
            raise ValueError(f"implementation: expected names of functions with golden vectors, got {got(name, known)}")


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
    result = function(*case.args, **options)
    if case.kind == "fields":
        return {name: result[name] if isinstance(result, Mapping) else getattr(result, name) for name in case.expected}
    return result


def _check(method: str, case: GoldenCase, function: Callable[..., Any]) -> Outcome:
    tolerance = case.tolerance
    error = ulp = entry_ulp = float("inf")
    problem, supported = "", True
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
                entry_ulp = max((_ulp_of_entries(a, e) for a, e in pairs), default=0.0)
    except NotImplementedError as exception:
        supported, problem = False, str(exception) or "not implemented"
    except Exception as exception:  # whatever a third party's function raises is a failed case, not our crash
        problem = f"{type(exception).__name__}: {exception}"
    return Outcome(
        method=method,
        function=case.target,
        name=case.name,
        passed=not problem and tolerance.accepts(error),
        error=error,
        ulp=ulp,
        entry_ulp=entry_ulp,
        limit=tolerance.limit,
        rule=tolerance.rule,
        source=case.source,
        problem=problem,
        supported=supported,
    )


def _ulp_of_largest(actual: Any, expected: Any) -> float:
    if actual.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    usable = np.isfinite(expected) & np.isfinite(actual)
    if not usable.any():
        return 0.0
    difference = np.abs(actual[usable].astype(np.longdouble) - expected[usable].astype(np.longdouble)).max()
    return float(difference / np.spacing(np.abs(expected[usable]).max().astype(actual.dtype)))


def _ulp_of_entries(actual: Any, expected: Any) -> float:
    if actual.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    return float(np.max(ulp_error(actual, expected), initial=0.0))


def format_table(outcomes: Sequence[Outcome]) -> str:
    """One line a function: cases passed, worst error in ULP, and each failed case below it.

    The error is in units in the last place of the largest entry that was expected. Cases that an implementation
    does not support are counted, not listed.
    """
    lines = [f"{'function':<44}{'passed':>9}{'worst ULP':>12}"]
    for function in dict.fromkeys(outcome.function for outcome in outcomes):
        group = [outcome for outcome in outcomes if outcome.function == function]
        tried = [outcome for outcome in group if outcome.supported]
        worst = f"{max(outcome.ulp for outcome in tried):>12.3g}" if tried else f"{'–':>12}"
        left_out = f"   {len(group) - len(tried)} not supported" if len(tried) < len(group) else ""
        lines.append(f"{function:<44}{f'{sum(o.passed for o in tried)}/{len(tried)}':>9}{worst}{left_out}")
        for outcome in tried:
            if not outcome.passed:
                reason = outcome.problem or f"error {outcome.error:.3g}, limit {outcome.limit:.3g} ({outcome.rule})"
                lines.append(f"  FAILED {outcome.name}: {reason} [truth: {outcome.source}]")
    failed, passed = sum(outcome.failed for outcome in outcomes), sum(outcome.passed for outcome in outcomes)
    left_out = f", {len(outcomes) - failed - passed} not supported" if failed + passed < len(outcomes) else ""
    lines.append(f"{passed} passed, {failed} failed{left_out}")
    return "\n".join(lines)
