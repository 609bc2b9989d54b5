"""What all iterative solvers share: a history, a callback for progress, and an end to divergence.

A solver makes one :class:`Monitor`, calls ``record`` once an iteration and hands ``history()`` to its result::

    monitor = Monitor("lasso_path", callback=callback, hint="use a smaller step_size")
    for _ in range(max_iter):
        ...
        if monitor.record(objective=value, gap=gap):
            break
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refnorm import _checks
from refnorm._typing import Array

GROWTH = 1e8
"""Largest size of the watched quantity, relative to where it began (but at least 1), that is not divergence."""


@dataclass(frozen=True)
class Progress:
    """What a solver tells its callback after an iteration.

    Parameters
    ----------
    method
        Name of the solver.
    n_iter
        Iterations done, from 1.
    values
        The quantities of this iteration, by name; the first one is watched for divergence.
    """

    method: str
    n_iter: int
    values: Mapping[str, float]


Callback: TypeAlias = Callable[[Progress], bool | None]
"""Called after every iteration; a true result ends the solver, which then returns what it has."""


class Diverged(ArithmeticError):
    """A solver's iterates left the finite numbers or grew without bound.

    The message says where and what to change; ``history`` holds the quantities up to there.
    """

    def __init__(self, message: str, history: Mapping[str, Array[np.float64]]) -> None:
        super().__init__(message)
        self.history = dict(history)


class Monitor:
    """Collect a solver's history, report progress, and stop a run that has diverged.

    Parameters
    ----------
    method
        Name of the solver, for messages.
    callback
        Called with a :class:`Progress` after every iteration, or ``None``.
    hint
        What the user can change when the run diverges.
    growth : float > 0
        The run has diverged when the size of the first quantity exceeds ``growth`` times the larger of 1 and
        its first size.
    """

    def __init__(
        self,
        method: str,
        *,
        callback: Callback | None = None,
        hint: str = "use a smaller learning_rate",
        growth: float = GROWTH,
    ) -> None:
        if callback is not None and not callable(callback):
            _checks.fail_type("callback", "a function of a Progress, or None", type(callback).__name__)
        _checks.positive(growth, "growth")
        self._method, self._callback, self._hint, self._growth = method, callback, hint, growth
        self._columns: dict[str, list[float]] = {}
        self.n_iter = 0

    def record(self, **values: float) -> bool:
        """Note one iteration's quantities; return whether the callback asks to stop.

        Raises
        ------
        Diverged
            If the first quantity is NaN or infinite, or has grown beyond bounds.
        """
        self.n_iter += 1
        for name, value in values.items():
            self._columns.setdefault(name, []).append(float(value))
        watched = next(iter(values))
        first, last = self._columns[watched][0], self._columns[watched][-1]
        if not (math.isfinite(last) and abs(last) <= self._growth * max(1.0, abs(first))):
            raise Diverged(
                f"{self._method}: diverged at iteration {self.n_iter}: {watched} = {last:.4g} "
                f"(it began at {first:.4g}); {self._hint}",
                self.history(),
            )
        if self._callback is None:
            return False
        return bool(self._callback(Progress(self._method, self.n_iter, dict(values))))

    def history(self) -> dict[str, Array[np.float64]]:
        """Return every quantity's values, one entry an iteration."""
        return {name: np.array(column) for name, column in self._columns.items()}
