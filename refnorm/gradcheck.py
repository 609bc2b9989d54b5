"""Check a hand-derived backward pass against numerical derivatives.

For a direction ``v`` in argument space and a cotangent ``g`` of the value, a right pullback satisfies

    <g, J v> = <J^T g, v>        (J: the Jacobian that nobody ever forms)

The left side is measured, by a complex step where the function is analytic and otherwise by central
differences with Richardson extrapolation; the right side is the pullback's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refnorm._arrays import is_differentiable
from refnorm._checks import complex_allowed, one_of
from refnorm._typing import AnyArray, Tree
from refnorm.tree import tree_leaves, tree_map

COMPLEX_STEP = 1e-30
"""No subtraction is involved, so the step may be as small as float64 allows."""

RICHARDSON_SHRINK = 1.6
RICHARDSON_LEVELS = 9
DEFAULT_TOLERANCE = {"complex": 1e-8, "richardson": 1e-6}


class GradientMismatch(AssertionError):
    """A pullback disagrees with the numerical derivative of its function."""


@dataclass(frozen=True)
class GradientReport:
    """Outcome of :func:`check_vjp`: the worst relative error and where it occurred."""

    worst_error: float
    worst_argument: str
    checks: int


@dataclass(frozen=True, eq=False)
class GradientCase:
    """One input at which a ``_vjp`` function is checked.

    Parameters
    ----------
    f_vjp
        The function under test; it returns ``(value, pullback)``.
    args
        Positional arguments: float64 arrays, Python floats or trees of them are differentiated;
        integer arrays, ``None`` and everything else are passed through.
    options
        Keyword arguments, not differentiated.
    method
        ``"richardson"`` or ``"complex"`` (only if the function is analytic in its arguments).
    surrogate
        For a function with a deliberately different gradient (straight-through estimators): the function
        ``surrogate(*args, **options)`` whose exact gradient the pullback must be.
    call
        Replaces ``f_vjp`` in the call, for keyword arrays: ``lambda x, w: f_vjp(x, weights=w)``.
    step
        First step of the differences, relative to the size of the argument.
    name
        Shown in the test's id.
    """

    f_vjp: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "richardson"
    surrogate: Callable[..., Any] | None = None
    call: Callable[..., Any] | None = None
    step: float = 1e-2
    tolerance: float | None = None
    name: str = ""

    def check(self, seed: int = 0) -> GradientReport:
        """Run the check; raises :class:`GradientMismatch`."""
        return check_vjp(
            self.call or self.f_vjp,
            *self.args,
            options=self.options,
            method=self.method,
            surrogate=self.surrogate,
            step=self.step,
            tolerance=self.tolerance,
            rng=np.random.default_rng(seed),
        )


def check_vjp(
    f_vjp: Callable[..., Any],
    *args: Any,
    options: Mapping[str, Any] | None = None,
    method: str = "richardson",
    surrogate: Callable[..., Any] | None = None,
    directions: int = 3,
    step: float = 1e-2,
    tolerance: float | None = None,
    rng: np.random.Generator | None = None,
) -> GradientReport:
    """Check that ``f_vjp(*args)[1]`` is the pullback of ``f_vjp(*args)[0]``.

    Parameters
    ----------
    f_vjp
        Returns ``(value, pullback)``; value is an array or a tree of arrays, and ``pullback(cotangent)``
        returns one cotangent per float argument, in argument order, each with its argument's structure.
        ``None`` arguments have the entry ``None``; integer arrays have no entry.
    *args
        float64 arrays, floats or trees of them (differentiated), or anything else (passed through).
    options
        Keyword arguments of ``f_vjp``.
    method
        ``"complex"`` for analytic functions, ``"richardson"`` for the rest.
    surrogate
        The function whose exact gradient the pullback is meant to be, if that is not ``f_vjp`` itself.
    directions
        Random directions per argument.
    step
        First step of the central differences, relative to the size of the argument.
    tolerance
        Largest relative error allowed; by default 1e-8 (complex) or 1e-6 (richardson).
    rng
        Source of directions and cotangents, ``default_rng(0)`` by default.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientMismatch
        If an entry is missing, has a wrong shape or dtype, or is wrong; the message names the argument,
        the direction, the expected and the obtained derivative.

    Examples
    --------
    >>> def square_vjp(x):
    ...     return x**2, lambda g: (2 * x * g,)
    >>> check_vjp(square_vjp, np.array([1.0, 2.0])).checks
    3
    """
    one_of(method, "method", tuple(DEFAULT_TOLERANCE))
    limit = DEFAULT_TOLERANCE[method] if tolerance is None else tolerance
    rng = rng or np.random.default_rng(0)
    options = dict(options or {})
    label = getattr(f_vjp, "__name__", "f_vjp")

    value, pullback = f_vjp(*args, **options)
    cotangent = tree_map(lambda leaf: np.asarray(rng.standard_normal(np.shape(leaf))), value)
    entries = pullback(cotangent)
    if not isinstance(entries, tuple):
        raise GradientMismatch(f"{label}: pullback returned {type(entries).__name__}, expected a tuple")

    positions = [i for i, arg in enumerate(args) if arg is None or is_differentiable(arg)]
    if len(entries) != len(positions):
        raise GradientMismatch(
            f"{label}: pullback returned {len(entries)} cotangents for {len(positions)} float arguments"
        )

    def evaluate(*at: Any) -> Any:
        return surrogate(*at, **options) if surrogate else f_vjp(*at, **options)[0]

    worst, worst_argument, checks = 0.0, "", 0
    for position, entry in zip(positions, entries, strict=True):
        arg = args[position]
        if arg is None:
            if entry is not None:
                raise GradientMismatch(f"{label}: argument {position} is None but got a cotangent")
            continue
        _check_structure(label, position, arg, entry)
        for number in range(directions):
            direction = tree_map(lambda leaf: np.asarray(rng.standard_normal(np.shape(leaf))), arg)
            along = _derivative_along(evaluate, args, position, direction, method, step)
            expected_terms = _products(cotangent, along)
            got_terms = _products(entry, direction)
            expected, got = float(expected_terms.sum()), float(got_terms.sum())
            scale = max(float(np.abs(expected_terms).sum()), float(np.abs(got_terms).sum()))
            error = 0.0 if expected == got else abs(expected - got) / scale if scale > 0 else np.inf
            checks += 1
            if not error <= limit:
                raise GradientMismatch(
                    f"{label}: argument {position} of shape {_describe(arg)}, direction {number}: "
                    f"expected {expected:.12g} ({method}), got {got:.12g} from the pullback; "
                    f"relative error {error:.2e}, limit {limit:.0e}"
                )
            if error >= worst:
                worst, worst_argument = error, f"argument {position}"
    return GradientReport(worst_error=worst, worst_argument=worst_argument, checks=checks)


def _check_structure(label: str, position: int, arg: Tree, entry: Tree) -> None:
    for (path, leaf), (_, cotangent) in zip(tree_leaves(arg), tree_leaves(entry), strict=True):
        where = f"argument {position}" + (f" ({path})" if path else "")
        if leaf is None and cotangent is None:
            continue
        if np.shape(cotangent) != np.shape(leaf):
            raise GradientMismatch(
                f"{label}: cotangent of {where} has shape {np.shape(cotangent)}, expected {np.shape(leaf)}"
            )
        if np.asarray(cotangent).dtype != np.asarray(leaf).dtype:
            raise GradientMismatch(
                f"{label}: cotangent of {where} has dtype {np.asarray(cotangent).dtype}, "
                f"expected {np.asarray(leaf).dtype}"
            )


def _derivative_along(
    evaluate: Callable[..., Any],
    args: Sequence[Any],
    position: int,
    direction: Tree,
    method: str,
    step: float,
) -> Tree:
    def shifted(amount: complex) -> Any:
        moved = list(args)
        moved[position] = tree_map(
            lambda leaf, v: None if leaf is None else leaf + amount * v, args[position], direction
        )
        return evaluate(*moved)

    if method == "complex":
        with complex_allowed():
            value = shifted(1j * COMPLEX_STEP)
        return tree_map(lambda leaf: np.imag(leaf) / COMPLEX_STEP, value)

    leaves = [np.abs(leaf).max() for _, leaf in tree_leaves(args[position]) if leaf is not None and np.size(leaf)]
    size = max([1e-3, *(float(leaf) for leaf in leaves)])
    h = step * min(size, 1.0)

    def central(h: float) -> Tree:
        return tree_map(lambda up, down: (np.asarray(up) - np.asarray(down)) / (2 * h), shifted(h), shifted(-h))

    return _ridders(central, h)


def _ridders(central: Callable[[float], Tree], h: float) -> Tree:
    """Richardson extrapolation with Ridders' stopping rule, element by element of a tree's vector."""
    first = central(h)
    shapes = [np.shape(leaf) for _, leaf in tree_leaves(first)]

    def flat(tree: Tree) -> AnyArray:
        return np.concatenate([np.ravel(leaf) for _, leaf in tree_leaves(tree)] or [np.zeros(0)])

    row = [flat(first)]
    best, best_error = row[0], np.full(row[0].shape, np.inf)
    for _ in range(1, RICHARDSON_LEVELS):
        h /= RICHARDSON_SHRINK
        following = [flat(central(h))]
        factor = RICHARDSON_SHRINK**2
        for order, previous in enumerate(row):
            following.append(following[order] + (following[order] - previous) / (factor - 1))
            factor *= RICHARDSON_SHRINK**2
            estimate = np.maximum(
                np.abs(following[order + 1] - following[order]), np.abs(following[order + 1] - previous)
            )
            better = estimate < best_error
            best = np.where(better, following[order + 1], best)
            best_error = np.where(better, estimate, best_error)
        row = following

    position = 0

    def take(leaf: AnyArray) -> AnyArray:
        nonlocal position
        count = int(np.size(leaf))
        piece = best[position : position + count].reshape(np.shape(leaf))
        position += count
        return piece

    assert sum(int(np.prod(shape)) for shape in shapes) == best.size
    return tree_map(take, first)


def _products(left: Tree, right: Tree) -> AnyArray:
    pieces = [
        np.ravel(np.asarray(a) * np.asarray(b))
        for (_, a), (_, b) in zip(tree_leaves(left), tree_leaves(right), strict=True)
        if a is not None and b is not None
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0)


def _describe(arg: Tree) -> str:
    shapes = [str(np.shape(leaf)) for _, leaf in tree_leaves(arg)]
    return shapes[0] if len(shapes) == 1 else "{" + ", ".join(shapes) + "}"
