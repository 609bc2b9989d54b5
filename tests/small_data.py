"""Small data sets for claims: scikit-learn's bundled data and generated data, always with a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from refnorm._typing import AnyArray, IntArray


@dataclass(frozen=True)
class Split:
    """Training and test data of a classification problem."""

    x: AnyArray
    target: IntArray
    x_test: AnyArray
    target_test: IntArray


def digits(*, test: int = 360, seed: int = 0, images: bool = False, scale: float = 16.0) -> Split:
    """Return the 1797 handwritten digits of 8x8 pixels divided by ``scale``, shuffled and split.

    ``images=True`` gives arrays (N, 1, 8, 8), otherwise (N, 64).
    """
    x, target = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, target = x[order] / scale, target[order]
    if images:
        x = x.reshape(-1, 1, 8, 8)
    return Split(x[test:], target[test:], x[:test], target[:test])


def gaussian_classes(
    rng: np.random.Generator, n: int, *, classes: int = 3, features: int = 2, distance: float = 3.0
) -> tuple[AnyArray, IntArray]:
    """Return ``n`` points of unit-variance Gaussians whose centres are drawn with that typical distance."""
    centres = rng.standard_normal((classes, features)) * distance / np.sqrt(2 * features)
    target = rng.integers(classes, size=n)
    return centres[target] + rng.standard_normal((n, features)), target
