"""The normalized gradient method for logistic regression as an estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from refnorm._typing import AnyArray
from refnorm.sklearn._common import classification, samples, warn_unless, with_ones
from refnorm.solvers import logistic_gd


class NormalizedLogisticRegression(ClassifierMixin, BaseEstimator):
    """Separate two classes by a hyperplane, by normalized gradient descent on the logistic loss.

    It looks for a hyperplane without errors and stops at the first one; there is no penalty, so the size of the
    weights says nothing and there are no probabilities. Where no hyperplane separates the classes, it ends after
    ``max_iter`` steps with a warning.

    Parameters
    ----------
    learning_rate : float > 0
        Any size will do on separable data.
    normalize : bool
        False for plain gradient descent.
    fit_intercept : bool
        Append a column of ones to the samples.
    max_iter : int >= 1

    Attributes
    ----------
    classes_ : array (2,)
    coef_ : array (1, d)
    intercept_ : array (1,)
    converged_ : bool
        Whether all training samples are on their side.
    n_iter_ : int
    n_features_in_ : int

    References
    ----------
    Tyurin (2024), arXiv 2412.08424; :func:`refnorm.solvers.logistic_gd`.

    Examples
    --------
    >>> model = NormalizedLogisticRegression().fit([[0.0], [1.0], [3.0], [4.0]], ["low", "low", "high", "high"])
    >>> model.predict([[-1.0], [5.0]])
    array(['low', 'high'], dtype='<U4')
    """

    def __init__(
        self, *, learning_rate: float = 1.0, normalize: bool = True, fit_intercept: bool = True, max_iter: int = 1000
    ) -> None:
        self.learning_rate = learning_rate
        self.normalize = normalize
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples ``X`` (n, d) of two classes ``y`` (n,)."""
        x, numbers = classification(self, X, y)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is multiclass; wrap the estimator "
                "in sklearn.multiclass.OneVsRestClassifier"
            )
        result = logistic_gd(
            with_ones(x) if self.fit_intercept else x,
            2 * numbers - 1,
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            normalize=self.normalize,
        )
        self.coef_ = result.weight[None, : x.shape[1]]
        self.intercept_ = result.weight[x.shape[1] :] if self.fit_intercept else np.zeros(1, x.dtype)
        self.n_iter_, self.converged_ = result.n_iter, result.converged
        warn_unless(self.converged_, f"no separating hyperplane was found in {self.max_iter} steps; there may be none")
        return self

    def decision_function(self, X: Any) -> AnyArray:
        """Return the margin of each sample, positive on the side of ``classes_[1]``."""
        check_is_fitted(self)
        return np.asarray(samples(self, X) @ self.coef_[0] + self.intercept_[0])

    def predict(self, X: Any) -> AnyArray:
        """Return the class of each sample."""
        margin = self.decision_function(X)
        return np.asarray(self.classes_[(margin > 0).astype(int)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
