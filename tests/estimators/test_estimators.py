import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from refnorm import sklearn as estimators
from refnorm import solvers

CHECKED = [
    estimators.NormalizedLogisticRegression(max_iter=200),
    estimators.GradientBoostedNetworkRegressor(total_units=30, max_iter=50),
    estimators.GradientBoostedNetworkClassifier(total_units=10, max_iter=50),
    estimators.ConvexReluRegressor(n_draws=20, max_iter=100),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(CHECKED)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_every_estimator_is_checked():
    assert {type(estimator).__name__ for estimator in CHECKED} == set(estimators.__all__)


def test_the_hyperplane_is_the_solvers():
    x, y = load_iris(return_X_y=True)
    x, y = x[:100], y[:100]
    model = estimators.NormalizedLogisticRegression(learning_rate=3.0).fit(x, y)
    result = solvers.logistic_gd(
        np.column_stack([x, np.ones(100)]), 2 * y - 1, learning_rate=3.0, max_iter=1000, normalize=True
    )
    np.testing.assert_array_equal(np.append(model.coef_, model.intercept_), result.weight)
    assert model.converged_
    assert model.score(x, y) == 1
    through_origin = estimators.NormalizedLogisticRegression(fit_intercept=False).fit(x, y)
    assert through_origin.intercept_ == 0


def test_classes_that_no_hyperplane_separates_are_a_warning():
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([0, 1, 0])
    with pytest.warns(ConvergenceWarning, match="no separating hyperplane was found in 30 steps"):
        model = estimators.NormalizedLogisticRegression(max_iter=30).fit(x, y)
    assert not model.converged_


def test_three_classes_need_a_wrapper():
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="Only binary classification .*OneVsRestClassifier"):
        estimators.NormalizedLogisticRegression().fit(x, y)
    with pytest.warns(ConvergenceWarning):
        model = OneVsRestClassifier(estimators.NormalizedLogisticRegression(max_iter=300)).fit(x, y)
    assert model.predict(x[:1]) == y[:1]


@pytest.mark.parametrize("classes", [2, 3])
def test_boosted_probabilities_are_those_of_the_pieces(classes):
    x, y = load_iris(return_X_y=True)
    x, y = StandardScaler().fit_transform(x[y < classes]), y[y < classes]
    model = estimators.GradientBoostedNetworkClassifier(total_units=3, max_step=2.0, random_state=0).fit(x, y)
    score = np.broadcast_to(model.model_.intercept, (len(x), len(model.model_.intercept)))
    for piece, step in zip(model.model_.pieces, model.model_.steps, strict=True):
        score = score + step * solvers.small_net(x, piece.weight, piece.bias, piece.output, piece.output_bias)
    logits = np.column_stack([-score, score]) if classes == 2 else score
    shares = np.exp(logits)
    np.testing.assert_allclose(model.predict_proba(x), shares / shares.sum(axis=1, keepdims=True), rtol=1e-9)
    np.testing.assert_array_equal(model.predict(x), model.predict_proba(x).argmax(axis=1))
    assert model.score(x, y) > 0.9


def test_the_convex_network_has_the_programs_predictions():
    x, y = load_diabetes(return_X_y=True)
    x, y = StandardScaler().fit_transform(x)[:80, :3], (y[:80] - y.mean()) / y.std()
    model = estimators.ConvexReluRegressor(
        n_draws=30, penalty=0.5, coupling=1.0, max_iter=5000, tol=1e-6, random_state=0
    ).fit(x, y)
    assert model.result_.violation < 1e-3
    objective = solvers.relu_objective(np.column_stack([x, np.ones(80)]), y, model.weight_, model.output_, penalty=0.5)
    np.testing.assert_allclose(objective, model.result_.objective, rtol=1e-2)


@pytest.mark.parametrize("estimator", CHECKED, ids=lambda estimator: type(estimator).__name__)
def test_float32_stays_float32_and_a_seed_decides(estimator):
    x, y = load_iris(return_X_y=True)
    x, y = StandardScaler().fit_transform(x[:100]).astype(np.float32), y[:100]
    first, second = (clone(estimator).set_params(**seed(estimator)).fit(x, y) for _ in range(2))
    output = "predict" if hasattr(estimator, "n_draws") or not hasattr(first, "classes_") else "decision_function"
    one, other = getattr(first, output)(x), getattr(second, output)(x)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, other)


def seed(estimator):
    return {"random_state": 5} if "random_state" in estimator.get_params() else {}


def test_a_grid_search_over_a_pipeline():
    x, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(
        StandardScaler(), estimators.GradientBoostedNetworkClassifier(subsample=1.0, max_step=2.0, random_state=0)
    )
    grid = {"gradientboostednetworkclassifier__total_units": [1, 6]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(x, y)
    assert search.best_score_ > 0.93


def test_without_scikit_learn_the_extra_is_named():
    code = "import sys; sys.modules['sklearn'] = None\ntry:\n    import refnorm.sklearn\nexcept ImportError as error:\n    print(error)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == 'refnorm.sklearn: scikit-learn is not installed; pip install "refnorm[sklearn]"\n'
