"""Small array helpers that several rooms share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refnorm._typing import AnyArray, Array, F
from refnorm.tree import tree_leaves


def sum_to(array: Array[F], shape: Sequence[int]) -> Array[F]:
    """Sum ``array`` over the axes that broadcasting added or stretched, down to ``shape``.

    It is the adjoint of ``numpy.broadcast_to``: the pullback of every implicit broadcast.

    Examples
    --------
    >>> sum_to(np.ones((4, 3)), (3,))
    array([4., 4., 4.])
    >>> sum_to(np.ones((4, 3)), (4, 1)).shape
    (4, 1)
    """
    added = array.ndim - len(shape)
    stretched = [i + added for i, size in enumerate(shape) if size == 1 and array.shape[i + added] != 1]
    summed: Array[F] = array.sum(axis=(*range(added), *stretched)) if added or stretched else array
    return summed.reshape(tuple(shape))


def ulp_error(actual: AnyArray, expected: AnyArray, dtype: Any = None) -> AnyArray:
    """Distance in units in the last place of ``dtype``, measured at ``expected``.

    Parameters
    ----------
    actual, expected : arrays of one shape
        ``expected`` may hold more digits than ``dtype`` has.
    dtype
        The format whose spacing is the unit; by default that of ``actual``.

    Returns
    -------
    float64 array
        0 where both are NaN or the same infinity, ``inf`` where only one is NaN or infinite.

    Examples
    --------
    >>> float(ulp_error(np.float32(1.0000001), np.float64(1.0)))
    1.0
    """
    unit_dtype = np.dtype(dtype or np.asarray(actual).dtype)
    wide = np.longdouble
    a, e = np.asarray(actual, dtype=wide), np.asarray(expected, dtype=wide)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.asarray(expected).astype(unit_dtype)
        finite_unit = np.where(np.isfinite(rounded), rounded, np.finfo(unit_dtype).max)
        spacing = np.abs(np.spacing(np.abs(finite_unit).astype(unit_dtype))).astype(wide)
        error = np.abs(a - e) / spacing
        same = (a == rounded) & ~np.isfinite(rounded) | (np.isnan(a) & np.isnan(e))
        return np.where(same, 0.0, np.where(np.isfinite(a) & np.isfinite(e), error, np.inf)).astype(np.float64)


def is_differentiable(argument: Any) -> bool:
    """Whether a pullback has an entry for this argument: a float, a float array or a tree of nothing else.

    Examples
    --------
    >>> is_differentiable({"weight": np.ones(2), "bias": None}), is_differentiable(np.array([1, 2]))
    (True, False)
    """
    leaves = [leaf for _, leaf in tree_leaves(argument) if leaf is not None]
    return bool(leaves) and all(
        isinstance(leaf, (float, np.ndarray, np.floating)) and np.asarray(leaf).dtype.kind == "f" for leaf in leaves
    )
