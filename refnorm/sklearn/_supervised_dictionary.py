"""Supervised dictionary learning as an estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from refnorm import _checks
from refnorm._typing import AnyArray, IntArray
from refnorm.sklearn._common import classification, samples, warn_unless
from refnorm.solvers import SDLResult, sdl_bcd, sdl_encode, sdl_lpgd, sdl_predict_proba

SOLVERS = ("lpgd", "bcd")


class SupervisedDictionaryClassifier(ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """Classify with a dictionary that reconstructs the samples and predicts their classes; transform to its codes.

    Parameters
    ----------
    n_components : int >= 1
        Atoms of the dictionary. K classes take up to K - 1 directions; the others are left for the reconstruction.
    reconstruction : float >= 0
        Weight of the squared reconstruction error against the sum of the samples' log-losses. A large one makes the
        steps short: lower ``tol`` with it.
    ridge : float >= 0
        Weight of half the squares of the classifier.
    mode : ``"filter"`` or ``"feature"``
        Classify by the dictionary applied to a sample, or by its code. For ``"feature"`` the codes of the training
        samples may move towards their classes, which those of other samples cannot: it overfits more easily.
    solver : ``"lpgd"`` or ``"bcd"``
        Gradient steps with the rank cut after each, or descent in one factor at a time.
    nonnegative : bool
        Keep dictionary and codes at or above 0, for samples that are; only for ``"bcd"``.
    fit_intercept : bool
    max_iter : int >= 1
    tol : float >= 0
        Relative change that ends the run: of the combined factor for ``"lpgd"``, of the objective for ``"bcd"``.

    Attributes
    ----------
    classes_ : array (K,)
    components_ : array (n_components, d)
        Atoms of the dictionary.
    result_ : refnorm.solvers.SDLResult
        Of the samples divided by ``scale_``, as columns. Its ``code`` was fitted to the classes as well; that of
        :meth:`transform` is not.
    scale_ : float
        Spectral norm of the training samples.
    n_iter_ : int
    n_features_in_ : int

    Notes
    -----
    Features should be centred and of similar size. Dividing by ``scale_`` brings the samples to the size that the step
    of the solver is meant for, so ``reconstruction`` and ``ridge`` refer to samples of that size. The start is the
    truncated singular value decomposition: nothing is drawn. An iteration costs ``O(n d min(n, d))`` for ``"lpgd"``.

    References
    ----------
    Lee, Lyu, Yao (2022), arXiv 2206.06774; :func:`refnorm.solvers.sdl_lpgd`, :func:`refnorm.solvers.sdl_bcd`.

    Examples
    --------
    >>> x = np.array([[1.0, 0.1], [0.9, -0.1], [-1.0, 0.1], [-1.1, 0.0]])
    >>> model = SupervisedDictionaryClassifier(n_components=1, ridge=0.1).fit(x, ["right", "right", "left", "left"])
    >>> model.predict([[2.0, 0.0], [-2.0, 0.0]])
    array(['right', 'left'], dtype='<U5')
    >>> model.transform(x).shape
    (4, 1)
    """

    def __init__(
        self,
        *,
        n_components: int = 8,
        reconstruction: float = 1.0,
        ridge: float = 1e-3,
        mode: str = "filter",
        solver: str = "lpgd",
        nonnegative: bool = False,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-3,
    ) -> None:
        self.n_components = n_components
        self.reconstruction = reconstruction
        self.ridge = ridge
        self.mode = mode
        self.solver = solver
        self.nonnegative = nonnegative
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples ``X`` (n, d) and classes ``y`` (n,)."""
        x, numbers = classification(self, X, y)
        # The step is as short as the largest norm demands: samples and covariate are brought to norm 1 each.
        self.scale_ = float(np.linalg.norm(x, 2)) or 1.0
        self._constant = len(x) ** -0.5
        self.result_ = self._solve((x / self.scale_).T, numbers)
        self.components_ = self.result_.dictionary.T
        self.n_iter_ = self.result_.n_iter
        warn_unless(self.result_.converged, f"no convergence in {self.max_iter} iterations; raise max_iter or tol")
        return self

    def transform(self, X: Any) -> AnyArray:
        """Return the codes (n, n_components) for which ``codes @ components_`` is closest to the samples."""
        columns = self._columns(X)
        return np.asarray(sdl_encode(self.result_.dictionary, columns, nonnegative=self.nonnegative).T)

    def predict_proba(self, X: Any) -> AnyArray:
        """Return the probabilities of the classes, (n, K)."""
        columns = self._columns(X) / self.result_.dictionary.dtype.type(self.scale_)
        return np.asarray(sdl_predict_proba(self.result_, columns, self._covariates(columns)).T)

    def predict(self, X: Any) -> AnyArray:
        """Return the most probable class of each sample."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[most_probable])

    def _solve(self, columns: AnyArray, numbers: IntArray) -> SDLResult:
        options: dict[str, Any] = {
            "rank": _checks.whole(self.n_components, "n_components", low=1),
            "reconstruction": self.reconstruction,
            "ridge": self.ridge,
            "mode": self.mode,
            "covariates": self._covariates(columns),
            "max_iter": self.max_iter,
            "tol": self.tol,
        }
        _checks.one_of(self.solver, "solver", SOLVERS)
        if self.solver == "bcd":
            return sdl_bcd(columns, numbers, nonnegative=self.nonnegative, **options)
        if self.nonnegative:
            _checks.fail("nonnegative", 'False for solver="lpgd"', self.nonnegative)
        return sdl_lpgd(columns, numbers, **options)

    def _columns(self, X: Any) -> AnyArray:
        check_is_fitted(self)
        return np.asarray(samples(self, X).T, dtype=self.result_.dictionary.dtype)

    def _covariates(self, columns: AnyArray) -> AnyArray | None:
        return np.full((1, columns.shape[1]), self._constant, columns.dtype) if self.fit_intercept else None

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
