"""What the estimators share."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from refnorm._typing import AnyArray, IntArray

FLOATS = (np.float64, np.float32)
"""Dtypes that the solvers take; everything else becomes the first one."""

UNLABELLED = -1
"""What scikit-learn's semi-supervised estimators read as "class not known"."""


def samples(estimator: Any, x: Any, *, reset: bool = False, missing: bool = False) -> AnyArray:
    """Return checked samples, of an estimator that is fitted unless ``reset``; NaN passes if values may be missing."""
    finite = "allow-nan" if missing else True
    checked: AnyArray = validate_data(estimator, x, dtype=FLOATS, reset=reset, ensure_all_finite=finite)
    return checked


def regression(estimator: Any, x: Any, y: Any, *, at_least: int = 1) -> tuple[AnyArray, AnyArray]:
    """Return checked samples, ``at_least`` so many, and targets of one dtype."""
    x, y = validate_data(estimator, x, y, dtype=FLOATS, y_numeric=True, ensure_min_samples=at_least)
    return x, np.asarray(y, dtype=x.dtype)


def classification(estimator: Any, x: Any, y: Any, *, semi_supervised: bool = False) -> tuple[AnyArray, IntArray]:
    """Return checked samples and class numbers; the classes become ``estimator.classes_``.

    A semi-supervised estimator gets the number ``UNLABELLED`` where ``y`` has it.
    """
    x, y = validate_data(estimator, x, y, dtype=FLOATS)
    check_classification_targets(y)
    known = y != UNLABELLED if semi_supervised else np.ones(len(y), bool)
    numbers = np.full(len(y), UNLABELLED)
    estimator.classes_, numbers[known] = np.unique(y[known], return_inverse=True)
    if len(estimator.classes_) < 2:
        found = f"one class, {estimator.classes_[0]!r}" if known.any() else "none with a class"
        raise ValueError(f"y: expected samples of at least two classes, got {found}")
    return x, numbers


def generator(random_state: Any) -> np.random.Generator:
    """Return a generator that scikit-learn's ``random_state`` determines."""
    return np.random.default_rng(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def with_ones(x: AnyArray) -> AnyArray:
    """Append a column of ones, so that a model through the origin has an intercept."""
    return np.column_stack([x, np.ones(len(x), x.dtype)])


def warn_unless(converged: bool, otherwise: str) -> None:
    """Warn from a ``fit`` that its solver has not reached its tolerance."""
    if not converged:
        warnings.warn(otherwise, ConvergenceWarning, stacklevel=3)
