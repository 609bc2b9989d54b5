"""Networks with one hidden layer that are trained a few units at a time, as estimators."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from refnorm._typing import AnyArray
from refnorm.sklearn._common import classification, generator, regression, samples
from refnorm.softmax import softmax
from refnorm.solvers import assemble_boosted, fit_gradient_boosted_network, small_net


class _GradientBoostedNetwork(BaseEstimator):
    def __init__(
        self,
        *,
        total_units: int = 50,
        units_per_step: int = 1,
        learning_rate: float = 0.5,
        subsample: float = 1.0,
        activation: str = "logistic",
        l2: float = 1e-4,
        max_iter: int = 200,
        max_step: float | None = 2.0,
        random_state: Any = None,
    ) -> None:
        self.total_units = total_units
        self.units_per_step = units_per_step
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.activation = activation
        self.l2 = l2
        self.max_iter = max_iter
        self.max_step = max_step
        self.random_state = random_state

    def _train(self, x: AnyArray, target: AnyArray, loss: str) -> None:
        options = self.get_params()
        rng = generator(options.pop("random_state"))
        self.model_ = fit_gradient_boosted_network(x, target, loss=loss, rng=rng, **options)
        self.network_ = assemble_boosted(self.model_)
        self.n_iter_ = len(self.model_.pieces)

    def _outputs(self, X: Any) -> AnyArray:
        check_is_fitted(self)
        network = self.network_
        x = samples(self, X).astype(network.weight.dtype, copy=False)
        return small_net(
            x, network.weight, network.bias, network.output, network.output_bias, activation=self.model_.activation
        )


_PARAMETERS = """
    Parameters
    ----------
    total_units, units_per_step : int >= 1
        ``total_units // units_per_step`` small networks are trained, one after the other.
    learning_rate : float > 0
        Factor on every step.
    subsample : float in (0, 1]
        Fraction of the samples that each small network is fitted to. The paper's 0.5 is for thousands of samples: on
        hundreds, a small network fits what it drew, and the loss on the others may rise.
    activation : ``"logistic"``, ``"tanh"`` or ``"relu"``
    l2 : float >= 0
        Weight decay of a small network.
    max_iter : int >= 1
        Iterations of L-BFGS for each small network.
    max_step : float > 0, or None
        Largest size of a Newton step; without a limit, boosting may diverge once the classes are separated.
    random_state : int, numpy.random.RandomState or None
"""


class GradientBoostedNetworkRegressor(RegressorMixin, _GradientBoostedNetwork):
    __doc__ = f"""Regress with a network that gradient boosting builds, unit by unit.

    Features should be standardized: logistic units saturate on others.
{_PARAMETERS}
    Attributes
    ----------
    model_ : refnorm.solvers.GradientBoostedNetwork
        The pieces, their steps and the history of the loss.
    network_ : refnorm.solvers.SmallNet
        All of it as one network.
    n_iter_ : int
        Number of small networks.
    n_features_in_ : int

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098; :func:`refnorm.solvers.fit_gradient_boosted_network`.

    Examples
    --------
    >>> x = np.linspace(-2, 2, 40)[:, None]
    >>> model = GradientBoostedNetworkRegressor(total_units=30, random_state=0).fit(x, np.sin(2 * x[:, 0]))
    >>> bool(model.score(x, np.sin(2 * x[:, 0])) > 0.9)
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples ``X`` (n, d) and values ``y`` (n,)."""
        x, target = regression(self, X, y, at_least=2)
        self._train(x, target, "squared")
        return self

    def predict(self, X: Any) -> AnyArray:
        """Return the value of each sample."""
        return np.asarray(self._outputs(X)[:, 0])


class GradientBoostedNetworkClassifier(ClassifierMixin, _GradientBoostedNetwork):
    __doc__ = f"""Classify with a network that gradient boosting builds, unit by unit.

    Features should be standardized: logistic units saturate on others.
{_PARAMETERS}
    Attributes
    ----------
    classes_ : array (K,)
    model_ : refnorm.solvers.GradientBoostedNetwork
        The pieces, their steps and the history of the loss.
    network_ : refnorm.solvers.SmallNet
        All of it as one network, whose outputs are logits.
    n_iter_ : int
        Number of small networks.
    n_features_in_ : int

    References
    ----------
    Emami, Martinez-Munoz (2019), arXiv 1909.12098; :func:`refnorm.solvers.fit_gradient_boosted_network`.

    Examples
    --------
    >>> x = np.linspace(-2, 2, 40)[:, None]
    >>> model = GradientBoostedNetworkClassifier(total_units=4, random_state=0).fit(x, np.abs(x[:, 0]) < 1)
    >>> model.predict([[-1.8], [0.0], [1.8]])
    array([False,  True, False])
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples ``X`` (n, d) and classes ``y`` (n,)."""
        x, numbers = classification(self, X, y)
        if len(self.classes_) == 2:
            self._train(x, (2 * numbers - 1).astype(x.dtype), "binary")
        else:
            self._train(x, np.eye(len(self.classes_), dtype=x.dtype)[numbers], "multiclass")
        return self

    def decision_function(self, X: Any) -> AnyArray:
        """Return logits: of ``classes_[1]``, (n,), for two classes, else (n, K)."""
        outputs = self._outputs(X)
        return np.asarray(outputs[:, 0] if len(self.classes_) == 2 else outputs)

    def predict_proba(self, X: Any) -> AnyArray:
        """Return the probabilities of the classes, (n, K)."""
        logits = self.decision_function(X)
        return np.stack([expit(-logits), expit(logits)], axis=1) if logits.ndim == 1 else softmax(logits)

    def predict(self, X: Any) -> AnyArray:
        """Return the most probable class of each sample."""
        logits = self.decision_function(X)
        return np.asarray(self.classes_[logits.argmax(axis=1) if logits.ndim == 2 else (logits > 0).astype(int)])
