import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from refnorm import sklearn as estimators
from refnorm import solvers

CHECKED = [
    estimators.NormalizedLogisticRegression(max_iter=200),
    estimators.GradientBoostedNetworkRegressor(total_units=30, max_iter=50),
    estimators.GradientBoostedNetworkClassifier(total_units=10, max_iter=50),
    estimators.ConvexReluRegressor(n_draws=20, max_iter=100),
    estimators.SupervisedDictionaryClassifier(max_iter=300),
    estimators.SupervisedDictionaryClassifier(mode="feature", solver="bcd", n_components=3, max_iter=50, tol=1e-2),
    estimators.MatrixCompletionImputer(),
    estimators.TransductiveClustering(),
]

CANNOT_APPLY = {
    "TransductiveClustering": {
        "check_classifiers_classes": "takes -1 for a class; here, as in sklearn.semi_supervised, it is none, and "
        "scikit-learn spares its own estimators by name"
    }
}


def cannot_apply(estimator):
    return CANNOT_APPLY.get(type(estimator).__name__, {})


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(CHECKED, expected_failed_checks=cannot_apply)
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


def wine():
    x, y = load_wine(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.mark.parametrize("mode", ["filter", "feature"])
def test_the_dictionary_is_the_solvers(mode):
    x, y = wine()
    model = estimators.SupervisedDictionaryClassifier(n_components=3, mode=mode, tol=1e-2).fit(x, y)
    scale, constant = np.linalg.norm(x, 2), np.full((1, len(x)), len(x) ** -0.5)
    options = {"rank": 3, "mode": mode, "covariates": constant, "max_iter": 1000, "tol": 1e-2}
    result = solvers.sdl_lpgd(x.T / scale, y, **options)
    np.testing.assert_allclose(model.components_, result.dictionary.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.transform(x), solvers.sdl_encode(result.dictionary, x.T).T, rtol=1e-7, atol=1e-7)
    shares = solvers.sdl_predict_proba(result, x.T / scale, constant).T
    np.testing.assert_allclose(model.predict_proba(x), shares, rtol=1e-9)
    np.testing.assert_allclose(model.predict_proba(x[:5]), shares[:5], rtol=1e-9)
    assert model.n_iter_ == result.n_iter
    assert model.score(x, y) > 0.95
    assert list(model.get_feature_names_out()) == [f"superviseddictionaryclassifier{i}" for i in range(3)]


def test_the_size_of_the_samples_does_not_matter_to_a_dictionary():
    x, y = wine()
    model = estimators.SupervisedDictionaryClassifier(n_components=3, tol=1e-2)
    probabilities = [clone(model).fit(factor * x, y).predict_proba(factor * x) for factor in (1.0, 64.0)]
    np.testing.assert_allclose(*probabilities, rtol=1e-9)


def test_the_intercept_of_a_dictionary_is_the_classes_shares():
    x, y = np.ones((40, 1)), np.repeat([0, 1], [10, 30])
    # A ridge of 1e-9 on samples that are all alike: the probabilities are the shares of the classes.
    model = estimators.SupervisedDictionaryClassifier(ridge=1e-9, tol=1e-9).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x[:1]), [[0.25, 0.75]], rtol=1e-4)
    through_origin = estimators.SupervisedDictionaryClassifier(fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(through_origin.predict_proba([[0.0]]), [[0.5, 0.5]])
    assert through_origin.result_.gamma is None


def test_a_nonnegative_dictionary_has_nonnegative_codes():
    x, y = load_iris(return_X_y=True)
    model = estimators.SupervisedDictionaryClassifier(n_components=2, solver="bcd", nonnegative=True, max_iter=200)
    codes = model.fit_transform(x, y)
    constant = np.full((1, len(x)), len(x) ** -0.5)
    options = {"rank": 2, "covariates": constant, "max_iter": 200, "tol": 1e-3, "nonnegative": True}
    result = solvers.sdl_bcd(x.T / np.linalg.norm(x, 2), y, **options)
    np.testing.assert_allclose(model.components_, result.dictionary.T, rtol=1e-9, atol=1e-12)
    assert min(codes.min(), model.components_.min()) >= 0
    assert codes.any()
    with pytest.raises(ValueError, match=r'nonnegative: expected False for solver="lpgd", got True'):
        model.set_params(solver="lpgd").fit(x, y)
    with pytest.raises(ValueError, match="solver: expected one of 'lpgd', 'bcd', got 'sgd'"):
        model.set_params(solver="sgd").fit(x, y)


def table(dtype=np.float64):
    """A 60 x 30 matrix of rank 3, and the same with two entries in five missing."""
    rng = np.random.default_rng(0)
    full = (rng.standard_normal((60, 3)) @ rng.standard_normal((3, 30))).astype(dtype)
    return full, np.where(rng.random(full.shape) < 0.4, np.nan, full).astype(dtype)


@pytest.mark.parametrize("options", [{}, {"solver": "sketch", "sketch": "gaussian", "accuracy": 1e-8}], ids=str)
def test_the_completed_table_is_the_solvers(options):
    full, x = table()
    model = estimators.MatrixCompletionImputer(rank=3, tol=1e-7, random_state=3, **options)
    completed = model.fit_transform(x)
    known = ~np.isnan(x)
    rng = np.random.default_rng(np.random.RandomState(3).randint(np.iinfo(np.int32).max))
    places = np.nonzero(known)
    result = solvers.complete_matrix(*places, x[known], x.shape, rank=3, n_iter=100, tol=1e-7, rng=rng, **options)
    np.testing.assert_array_equal(model.components_, result.right.T)
    np.testing.assert_array_equal(completed[known], x[known])
    np.testing.assert_allclose(completed[~known], (result.left @ result.right.T)[~known], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(completed, full, atol=1e-4)


def test_rows_that_were_not_in_the_table_are_completed():
    full, x = table()
    model = estimators.MatrixCompletionImputer(rank=3, tol=1e-8).fit(x[:40])
    np.testing.assert_allclose(model.transform(x[40:]), full[40:], atol=1e-4)
    # By least squares, each row on what it has.
    seen = ~np.isnan(x[40])
    scores = np.linalg.lstsq(model.components_[:, seen].T, x[40, seen], rcond=None)[0]
    np.testing.assert_allclose(model.transform(x[40:41])[0, ~seen], (scores @ model.components_)[~seen], rtol=1e-8)
    empty = np.full((1, 30), np.nan)
    np.testing.assert_array_equal(model.transform(empty), np.zeros((1, 30)))


def test_a_feature_without_values_is_filled_with_zeros():
    _, x = table()
    x[:, 4] = np.nan
    completed = estimators.MatrixCompletionImputer(rank=3).fit_transform(x)
    assert completed.shape == x.shape
    np.testing.assert_array_equal(completed[:, 4], 0)


def test_an_imputer_keeps_float32_and_repeats_with_a_seed():
    _, x = table(np.float32)
    model = estimators.MatrixCompletionImputer(rank=3, solver="sketch", random_state=1)
    one, other = (clone(model).fit_transform(x) for _ in range(2))
    assert one.dtype == np.float32
    assert not np.isnan(one).any()
    np.testing.assert_array_equal(one, other)


def test_what_an_imputer_cannot_complete_is_an_error():
    _, x = table()
    with pytest.raises(ValueError, match="X: expected at least one known value, got NaN alone"):
        estimators.MatrixCompletionImputer().fit(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match=r"rank: expected at most min.* n_samples=60, n_features=30, got 31"):
        estimators.MatrixCompletionImputer(rank=31).fit(x)
    with pytest.raises(ValueError, match="infinity"):
        estimators.MatrixCompletionImputer().fit(np.where(np.isnan(x), np.inf, x))
    with pytest.warns(ConvergenceWarning, match="no convergence in 2 iterations"):
        estimators.MatrixCompletionImputer(rank=2, max_iter=2).fit(x)


def digits():
    """Three hundred images of unit length, three of each digit with their label."""
    x, y = load_digits(return_X_y=True)
    x, y = Normalizer().fit_transform(x[:300]), y[:300]
    known = np.concatenate([np.flatnonzero(y == digit)[:3] for digit in range(10)])
    partly = np.full(300, -1)
    partly[known] = y[known]
    return x, y, partly


@pytest.mark.parametrize("options", [{}, {"laplacian_weight": 0.2, "hard": True}], ids=str)
def test_the_transduction_is_the_solvers(options):
    x, y, partly = digits()
    known = partly != -1
    model = estimators.TransductiveClustering(temperature=0.3, **options).fit(x, partly)
    result = solvers.transductive_cluster(
        x[known], y[known], x[~known], n_classes=10, temperature=0.3, outer_iter=100, **options
    )
    np.testing.assert_array_equal(model.transduction_[~known], result.labels)
    np.testing.assert_array_equal(model.transduction_[known], y[known])
    np.testing.assert_array_equal(model.label_distributions_[~known], result.assignments)
    np.testing.assert_array_equal(model.label_distributions_[known], np.eye(10)[y[known]])
    np.testing.assert_array_equal(model.prototypes_, result.prototypes)
    means = estimators.TransductiveClustering(laplacian_weight=0.0).fit(x[known], y[known])
    assert (model.transduction_ == y)[~known].mean() > means.score(x[~known], y[~known])


def test_a_later_sample_gets_the_assignment_step_of_a_training_sample():
    x, _, partly = digits()
    new = Normalizer().fit_transform(load_digits(return_X_y=True)[0][300:310])
    model = estimators.TransductiveClustering(temperature=0.3, n_neighbors=4, laplacian_weight=0.5).fit(x, partly)
    z, cost = model.label_distributions_, solvers.prototype_costs(new, model.prototypes_, temperature=0.3)
    distances = np.linalg.norm(new[:, None] - x, axis=2)
    graph = np.zeros((310, 310))
    np.put_along_axis(graph[300:], distances.argsort(axis=1)[:, :4], 1, axis=1)
    everything = np.concatenate([z, np.full((10, 10), 0.1)]), np.concatenate([np.zeros((300, 10)), cost])
    expected = solvers.bound_step(*everything, graph, laplacian_weight=0.5)[300:]
    np.testing.assert_allclose(model.predict_proba(new), expected, rtol=1e-10)
    assert (model.predict(x) == model.transduction_).mean() > 0.95


def test_without_unlabelled_samples_the_prototypes_are_the_means():
    x, y = wine()
    names = np.array(["red", "white", "rose"])[y]
    model = estimators.TransductiveClustering(temperature=10.0).fit(x, names)
    assert model.result_ is None
    np.testing.assert_array_equal(model.classes_, ["red", "rose", "white"])
    np.testing.assert_allclose(model.prototypes_[1], x[names == "rose"].mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(model.transduction_, names)
    assert model.score(x, names) > 0.95


def test_what_cannot_be_clustered_is_an_error():
    x, y = wine()
    with pytest.raises(ValueError, match="at least two classes, got none with a class"):
        estimators.TransductiveClustering().fit(x, np.full(len(x), -1))
    with pytest.raises(ValueError, match="at least two classes, got one class, .*2"):
        estimators.TransductiveClustering().fit(x, np.where(y == 2, 2, -1))
    with pytest.raises(ValueError, match="n_neighbors: expected an integer >= 1 and <= 177, got 178"):
        estimators.TransductiveClustering(n_neighbors=178).fit(x, y)
    with pytest.warns(ConvergenceWarning, match="no convergence in 1 iterations"):
        estimators.TransductiveClustering(max_iter=1).fit(x, np.where(np.arange(len(y)) % 5, -1, y))


@pytest.mark.parametrize("estimator", CHECKED, ids=lambda estimator: type(estimator).__name__)
def test_float32_stays_float32_and_a_seed_decides(estimator):
    x, y = load_iris(return_X_y=True)
    x, y = StandardScaler().fit_transform(x[:100]).astype(np.float32), y[:100]
    first, second = (clone(estimator).set_params(**seed(estimator)).fit(x, y) for _ in range(2))
    outputs = ("decision_function", "predict_proba", "predict", "transform")
    output = next(name for name in outputs if hasattr(first, name))
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
