"""What the estimators share."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from refnorm._typing import AnyArray, IntArray

FLOATS = (np.float64, np.float32)
"""Dtypes that the solvers take; everything else becomes the first one."""


def samples(estimator: Any, x: Any) -> AnyArray:
    """Return checked samples for an estimator that is fitted."""
    checked: AnyArray = validate_data(estimator, x, dtype=FLOATS, reset=False)
    return checked


def regression(estimator: Any, x: Any, y: Any, *, at_least: int = 1) -> tuple[AnyArray, AnyArray]:
    """Return checked samples, ``at_least`` so many, and targets of one dtype."""
    x, y = validate_data(estimator, x, y, dtype=FLOATS, y_numeric=True, ensure_min_samples=at_least)
    return x, np.asarray(y, dtype=x.dtype)


def classification(estimator: Any, x: Any, y: Any) -> tuple[AnyArray, IntArray]:
    """Return checked samples and class numbers; the classes become ``estimator.classes_``."""
    x, y = validate_data(estimator, x, y, dtype=FLOATS)
    check_classification_targets(y)
    estimator.classes_, numbers = np.unique(y, return_inverse=True)
    if len(estimator.classes_) < 2:
        raise ValueError(f"y: expected samples of at least two classes, got one class, {estimator.classes_[0]!r}")
    return x, numbers


def generator(random_state: Any) -> np.random.Generator:
    """Return a generator that scikit-learn's ``random_state`` determines."""
    return np.random.default_rng(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def with_ones(x: AnyArray) -> AnyArray:
    """Append a column of ones, so that a model through the origin has an intercept."""
    return np.column_stack([x, np.ones(len(x), x.dtype)])
