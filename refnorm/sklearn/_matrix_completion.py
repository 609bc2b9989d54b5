"""Low-rank matrix completion as an estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from refnorm import _checks
from refnorm._typing import AnyArray
from refnorm.sklearn._common import generator, samples, warn_unless
from refnorm.solvers import complete_matrix, masked_regressions


class MatrixCompletionImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill in missing values (NaN) by a matrix of low rank; known values stay as they are.

    :meth:`fit` finds the two factors of the table. :meth:`transform` keeps the factor of the features: each row gets
    the combination of ``components_`` that fits its known values best, by least squares, and its missing values are
    read off. So rows that were not in the table are completed too, but they teach the model nothing.

    Parameters
    ----------
    rank : int from 1 to min(n, d)
    solver : ``"exact"`` or ``"sketch"``
        How the regressions are solved while fitting.
    accuracy : float in (0, 1)
        For ``"sketch"``: see :func:`refnorm.solvers.sketched_least_squares`.
    sketch : ``"count"``, ``"gaussian"`` or ``"srht"``
    clip : float >= 1, optional
        Incoherence at which the start is clipped; see :func:`refnorm.solvers.spectral_init`.
    max_iter : int >= 1
    tol : float >= 0
        Error on the known values, relative to their norm, or its relative change, that ends the run.
    random_state : int, numpy.random.RandomState or None
        Draws sketches.

    Attributes
    ----------
    components_ : array (rank, d)
        Factor of the features; orthonormal rows.
    result_ : refnorm.solvers.CompletionResult
    n_iter_ : int
    n_features_in_ : int

    Notes
    -----
    There is no penalty and no intercept. Put ``sklearn.preprocessing.StandardScaler``, which passes NaN, in front
    of features with different means or sizes. A row or feature needs more than ``rank`` known values to be filled
    in well; with fewer than ``rank`` it gets the solution of smallest norm, and 0 without any.

    References
    ----------
    Gu, Song, Yin, Zhang (2023), arXiv 2302.11068; :func:`refnorm.solvers.complete_matrix`,
    :func:`refnorm.solvers.masked_regressions`.

    Examples
    --------
    >>> x = np.array([[1.0, -1.0, np.nan], [2.0, np.nan, 4.0], [np.nan, -3.0, 6.0]])
    >>> model = MatrixCompletionImputer(tol=1e-9).fit(x)
    >>> model.transform(x).round(3)
    array([[ 1., -1.,  2.],
           [ 2., -2.,  4.],
           [ 3., -3.,  6.]])
    >>> model.transform([[np.nan, np.nan, 10.0]]).round(3)
    array([[ 5., -5., 10.]])
    """

    def __init__(
        self,
        *,
        rank: int = 1,
        solver: str = "exact",
        accuracy: float = 1e-3,
        sketch: str = "count",
        clip: float | None = None,
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.solver = solver
        self.accuracy = accuracy
        self.sketch = sketch
        self.clip = clip
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to samples ``X`` (n, d), in which NaN marks what is missing; ``y`` is ignored."""
        x = samples(self, X, reset=True, missing=True)
        known = ~np.isnan(x)
        if not known.any():
            _checks.fail("X", "at least one known value", "NaN alone")
        if _checks.whole(self.rank, "rank", low=1) > min(x.shape):
            n, d = x.shape
            _checks.fail("rank", f"at most min(n_samples, n_features) for n_samples={n}, n_features={d}", self.rank)
        rows, columns = np.nonzero(known)
        self.result_ = complete_matrix(
            rows,
            columns,
            x[known],
            (len(x), x.shape[1]),
            rank=self.rank,
            n_iter=_checks.whole(self.max_iter, "max_iter", low=1),
            solver=self.solver,
            accuracy=self.accuracy,
            sketch=self.sketch,
            clip=self.clip,
            tol=self.tol,
            rng=generator(self.random_state),
        )
        self.components_ = self.result_.right.T
        self.n_iter_ = self.result_.n_iter
        warn_unless(self.result_.converged, f"no convergence in {self.max_iter} iterations; raise max_iter or tol")
        return self

    def transform(self, X: Any) -> AnyArray:
        """Return the samples ``X`` (n, d) with their missing values filled in, from ``components_``."""
        check_is_fitted(self)
        x = samples(self, X, missing=True)
        known = ~np.isnan(x)
        rows, columns = np.nonzero(known)
        values = x[known].astype(self.components_.dtype, copy=False)
        scores = masked_regressions(self.components_.T, columns, rows, values, len(x))
        return np.where(known, x, (scores @ self.components_).astype(x.dtype, copy=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
