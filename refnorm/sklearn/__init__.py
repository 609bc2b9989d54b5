"""Methods of :mod:`refnorm.solvers` as scikit-learn estimators: for pipelines, grid searches and cross-validation.

Needs scikit-learn: ``pip install "refnorm[sklearn]"``.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "sklearn":
        raise
    raise ModuleNotFoundError(
        'refnorm.sklearn: scikit-learn is not installed; pip install "refnorm[sklearn]"', name="sklearn"
    ) from None

from refnorm.sklearn._convex_relu_network import ConvexReluRegressor
from refnorm.sklearn._gradient_boosted_network import GradientBoostedNetworkClassifier, GradientBoostedNetworkRegressor
from refnorm.sklearn._matrix_completion import MatrixCompletionImputer
from refnorm.sklearn._normalized_logistic_regression import NormalizedLogisticRegression
from refnorm.sklearn._supervised_dictionary import SupervisedDictionaryClassifier
from refnorm.sklearn._transductive_clustering import TransductiveClustering

__all__ = [
    "ConvexReluRegressor",
    "GradientBoostedNetworkClassifier",
    "GradientBoostedNetworkRegressor",
    "MatrixCompletionImputer",
    "NormalizedLogisticRegression",
    "SupervisedDictionaryClassifier",
    "TransductiveClustering",
]
