"""Clustering around labelled samples as an estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted

from refnorm import _checks
from refnorm._typing import AnyArray, IntArray
from refnorm.sklearn._common import UNLABELLED, classification, samples, warn_unless
from refnorm.softmax import softmax
from refnorm.solvers import TransductiveResult, prototype_costs, transductive_cluster


class TransductiveClustering(ClassifierMixin, BaseEstimator):
    """Label samples all at once, by clustering them around the few that are labelled.

    ``y == -1`` marks a sample without a label, as in ``sklearn.semi_supervised``; so -1 is no class.

    Parameters
    ----------
    laplacian_weight : float >= 0
        Weight of the agreement with neighbours; 0 is soft k-means with labelled samples.
    temperature : float > 0
        Divides the squared distances; small values make assignments hard.
    n_neighbors : int from 1 to n - 1
        Neighbours in the graph.
    update_prototypes : bool
        Move the prototypes; False with a graph is LaplacianShot.
    hard : bool
        Assign every sample to one class while fitting: k-means. Probabilities of later samples stay soft.
    max_iter, inner_iter : int >= 1
        Prototype steps, and the largest number of assignment steps before each.
    tol : float >= 0
        Relative change of the energy that ends a round; move of a prototype's entry that ends the run.

    Attributes
    ----------
    classes_ : array (K,)
    transduction_ : array (n,)
        Class of each training sample; labelled ones keep theirs.
    label_distributions_ : array (n, K)
        Probabilities of the classes for each training sample.
    prototypes_ : array (K, d)
        Centre of each class.
    result_ : refnorm.solvers.TransductiveResult or None
        Of the samples without a label, or None if there were none: then the prototypes are the classes' means.
    n_iter_ : int
    n_features_in_ : int

    Notes
    -----
    The defaults are meant for samples of unit length: put ``sklearn.preprocessing.Normalizer`` in front, or choose
    ``temperature`` by the squared distances within a class. Fitting needs the eigenvalues of an n x n matrix, so n is
    a few thousand at most.

    The method itself labels only what it was fitted to. A later sample x gets the assignment step that a training
    sample gets, with all else held fixed: ``softmax(-|x - prototypes|^2 / temperature + laplacian_weight agreement)``,
    where ``agreement`` sums ``label_distributions_`` over the ``n_neighbors`` nearest training samples.

    References
    ----------
    Ziko et al. (2021), arXiv 2106.09516; :func:`refnorm.solvers.transductive_cluster`.

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [0.3], [0.6], [0.9], [1.0]])
    >>> model = TransductiveClustering(n_neighbors=1, temperature=0.1).fit(x, [0, -1, -1, -1, -1, 1])
    >>> model.transduction_
    array([0, 0, 0, 1, 1, 1])
    >>> model.predict([[0.2], [0.7]])
    array([0, 1])
    """

    def __init__(
        self,
        *,
        laplacian_weight: float = 0.7,
        temperature: float = 1.0,
        n_neighbors: int = 3,
        update_prototypes: bool = True,
        hard: bool = False,
        max_iter: int = 100,
        inner_iter: int = 20,
        tol: float = 1e-6,
    ) -> None:
        self.laplacian_weight = laplacian_weight
        self.temperature = temperature
        self.n_neighbors = n_neighbors
        self.update_prototypes = update_prototypes
        self.hard = hard
        self.max_iter = max_iter
        self.inner_iter = inner_iter
        self.tol = tol

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples ``X`` (n, d) and classes ``y`` (n,), -1 where the class is not known."""
        x, numbers = classification(self, X, y, semi_supervised=True)
        _checks.whole(self.n_neighbors, "n_neighbors", low=1, high=len(x) - 1)
        known = numbers != UNLABELLED
        # Rows of samples without a label are filled in below.
        self.label_distributions_ = np.eye(len(self.classes_), dtype=x.dtype)[numbers]
        if known.all():
            self.result_, self.n_iter_ = None, 1
            self.prototypes_ = np.stack([x[numbers == number].mean(axis=0) for number in range(len(self.classes_))])
        else:
            result = self.result_ = self._cluster(x, numbers, known)
            self.prototypes_, self.n_iter_ = result.prototypes, result.n_iter
            self.label_distributions_[~known] = result.assignments
            warn_unless(result.converged, f"no convergence in {self.max_iter} iterations; raise max_iter or tol")
        self.transduction_ = self._most_probable(self.label_distributions_)
        self._neighbours = NearestNeighbors(n_neighbors=self.n_neighbors).fit(x)
        return self

    def predict_proba(self, X: Any) -> AnyArray:
        """Return the probabilities of the classes, (n, K); for the training samples see ``label_distributions_``."""
        check_is_fitted(self)
        x = samples(self, X).astype(self.prototypes_.dtype, copy=False)
        nearest = self._neighbours.kneighbors(x, return_distance=False)
        agreement = self.label_distributions_[nearest].sum(axis=1)
        cost = prototype_costs(x, self.prototypes_, temperature=self.temperature)
        return softmax(self.laplacian_weight * agreement - cost)

    def predict(self, X: Any) -> AnyArray:
        """Return the most probable class of each sample; for the training samples see ``transduction_``."""
        return self._most_probable(self.predict_proba(X))

    def _cluster(self, x: AnyArray, numbers: IntArray, known: AnyArray) -> TransductiveResult:
        return transductive_cluster(
            x[known],
            numbers[known],
            x[~known],
            n_classes=len(self.classes_),
            laplacian_weight=self.laplacian_weight,
            temperature=self.temperature,
            k=self.n_neighbors,
            update_prototypes=self.update_prototypes,
            hard=self.hard,
            inner_iter=self.inner_iter,
            outer_iter=_checks.whole(self.max_iter, "max_iter", low=1),
            tol=self.tol,
        )

    def _most_probable(self, probabilities: AnyArray) -> AnyArray:
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])
