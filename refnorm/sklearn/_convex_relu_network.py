"""Two-layer ReLU networks by convex optimization as an estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from refnorm._typing import AnyArray
from refnorm.sklearn._common import generator, regression, samples, with_ones
from refnorm.solvers import admm_relu, recover_relu, sample_patterns


class ConvexReluRegressor(RegressorMixin, BaseEstimator):
    """Regress with a two-layer ReLU network that a convex program finds: no start and no learning rate to choose.

    Parameters
    ----------
    n_draws : int >= 1
        Activation patterns that are drawn; each distinct one may give two neurons.
    penalty : float >= 0
        Weight decay.
    coupling : float > 0
        Of ADMM: larger values keep the gates more strictly and move more slowly.
    fit_intercept : bool
        Append a column of ones to the samples.
    max_iter : int >= 1
    tol : float >= 0
        Relative size of the residuals that ends the run.
    random_state : int, numpy.random.RandomState or None

    Attributes
    ----------
    weight_ : array (m, d + 1), or (m, d) without ``fit_intercept``
        Hidden weights; the last column is the bias.
    output_ : array (m,)
        Output weights.
    result_ : refnorm.solvers.ConvexReluResult
        Solution of the convex program; its ``violation`` says how far the network's predictions may be from it.
    n_iter_ : int
    n_features_in_ : int

    Notes
    -----
    An iteration costs ``O(n^2 + n d P)`` for n samples of d features and P patterns: for hundreds of samples, or a few
    thousand.

    References
    ----------
    Bai, Gautam, Sojoudi (2022), arXiv 2201.01965; :func:`refnorm.solvers.admm_relu`.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 30)[:, None]
    >>> model = ConvexReluRegressor(random_state=0).fit(x, np.abs(x[:, 0]))
    >>> bool(model.score(x, np.abs(x[:, 0])) > 0.99)
    True
    """

    def __init__(
        self,
        *,
        n_draws: int = 50,
        penalty: float = 1e-3,
        coupling: float = 1e-2,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_draws = n_draws
        self.penalty = penalty
        self.coupling = coupling
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples ``X`` (n, d) and values ``y`` (n,)."""
        x, target = regression(self, X, y)
        x = self._features(x)
        patterns = sample_patterns(x, self.n_draws, rng=generator(self.random_state))
        self.result_ = admm_relu(
            x,
            target,
            patterns,
            penalty=self.penalty,
            coupling=self.coupling,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        self.weight_, self.output_ = recover_relu(self.result_.v, self.result_.w)
        self.n_iter_ = self.result_.n_iter
        return self

    def predict(self, X: Any) -> AnyArray:
        """Return the value of each sample."""
        check_is_fitted(self)
        hidden = np.maximum(self._features(samples(self, X)) @ self.weight_.T, 0)
        return np.asarray(hidden @ self.output_)

    def _features(self, x: AnyArray) -> AnyArray:
        return with_ones(x) if self.fit_intercept else x
