"""Estimators of scikit-learn, fitted on its own data sets; skips where it is absent."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from headrace.core import Array
from tests.tabular_models import library

Make = Callable[[], tuple[Any, Array, Any]]
"""A fitted estimator, its rows, and what it was fitted to."""


@cache
def data(name: str) -> tuple[Array, Array]:
    """Rows and target of `load_NAME`."""
    datasets = library("sklearn.datasets", "sklearn")
    rows, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    return rows, target


def _module(name: str) -> Any:  # noqa: ANN401  # ships no types
    return library(f"sklearn.{name}", "sklearn")


def _scaled(estimator: Any) -> Any:  # noqa: ANN401  # any estimator
    steps = _module("pipeline")
    return steps.make_pipeline(_module("preprocessing").StandardScaler(), estimator)


def _logistic(**options: Any) -> Any:  # noqa: ANN401  # any setting
    return _module("linear_model").LogisticRegression(**options)


def _tree(kind: str, **options: Any) -> Any:  # noqa: ANN401  # any setting
    return getattr(_module("tree"), f"DecisionTree{kind}")(random_state=0, **options)


def _members(kind: str) -> list[tuple[str, Any]]:
    linear = _scaled(_logistic()) if kind == "Classifier" else _module("linear_model").Ridge()
    return [("linear", linear), ("tree", _tree(kind))]


def _pipeline(*steps: Any) -> Any:  # noqa: ANN401  # any steps
    return _module("pipeline").make_pipeline(*steps)


def estimators() -> dict[str, tuple[Any, str]]:
    """By name: an estimator that is not fitted, and the data set for it."""
    calibration, cluster, compose = map(_module, ("calibration", "cluster", "compose"))
    decomposition, ensemble, impute = map(_module, ("decomposition", "ensemble", "impute"))
    linear, processes, search = map(
        _module, ("linear_model", "gaussian_process", "model_selection")
    )
    neighbors, networks, svm = map(_module, ("neighbors", "neural_network", "svm"))
    bayes, discriminant, scale = map(
        _module, ("naive_bayes", "discriminant_analysis", "preprocessing")
    )
    cancer, diabetes, wine = "breast_cancer", "diabetes", "wine"
    short = {"max_iter": 30, "random_state": 0}
    few = {"n_estimators": 20, "random_state": 0}
    return {
        "RandomForestClassifier": (ensemble.RandomForestClassifier(**few), cancer),
        "RandomForestRegressor": (ensemble.RandomForestRegressor(**few), diabetes),
        "ExtraTreesClassifier": (ensemble.ExtraTreesClassifier(**few), wine),
        "ExtraTreesRegressor": (ensemble.ExtraTreesRegressor(**few), diabetes),
        "DecisionTreeClassifier": (_tree("Classifier"), wine),
        "DecisionTreeRegressor": (_tree("Regressor", max_depth=5), diabetes),
        "HistGradientBoostingClassifier": (
            ensemble.HistGradientBoostingClassifier(max_iter=20),
            cancer,
        ),
        "HistGradientBoostingRegressor": (
            ensemble.HistGradientBoostingRegressor(max_iter=20, loss="poisson"),
            diabetes,
        ),
        "GradientBoostingClassifier": (ensemble.GradientBoostingClassifier(**few), wine),
        "GradientBoostingRegressor": (ensemble.GradientBoostingRegressor(**few), diabetes),
        "AdaBoostClassifier": (ensemble.AdaBoostClassifier(**few), wine),
        "AdaBoostRegressor": (ensemble.AdaBoostRegressor(**few), diabetes),
        "BaggingClassifier": (ensemble.BaggingClassifier(n_estimators=5, random_state=0), wine),
        "BaggingRegressor": (ensemble.BaggingRegressor(n_estimators=5, random_state=0), diabetes),
        "VotingClassifier": (
            ensemble.VotingClassifier(_members("Classifier"), voting="soft"),
            wine,
        ),
        "VotingRegressor": (ensemble.VotingRegressor(_members("Regressor")), diabetes),
        "StackingClassifier": (
            ensemble.StackingClassifier(_members("Classifier"), _logistic()),
            wine,
        ),
        "StackingRegressor": (ensemble.StackingRegressor(_members("Regressor")), diabetes),
        "IsolationForest": (ensemble.IsolationForest(**few), cancer),
        "LocalOutlierFactor": (neighbors.LocalOutlierFactor(novelty=True), cancer),
        "OneClassSVM": (_scaled(svm.OneClassSVM()), cancer),
        "EllipticEnvelope": (_module("covariance").EllipticEnvelope(random_state=0), wine),
        "MLPClassifier": (_scaled(networks.MLPClassifier((8,), **short)), cancer),
        "MLPClassifier, sgd": (
            _scaled(networks.MLPClassifier((8,), solver="sgd", **short)),
            wine,
        ),
        "MLPClassifier, lbfgs": (
            _scaled(networks.MLPClassifier((8,), solver="lbfgs", **short)),
            wine,
        ),
        "MLPRegressor": (
            _scaled(networks.MLPRegressor(hidden_layer_sizes=(8,), **short)),
            diabetes,
        ),
        "SVC": (_scaled(svm.SVC()), wine),
        "SVR": (_scaled(svm.SVR()), diabetes),
        "LinearSVC": (svm.LinearSVC(random_state=0, max_iter=20_000), wine),
        "LinearSVR": (_scaled(svm.LinearSVR(random_state=0)), diabetes),
        "KNeighborsClassifier": (neighbors.KNeighborsClassifier(), wine),
        "KNeighborsRegressor": (neighbors.KNeighborsRegressor(), diabetes),
        "RadiusNeighborsRegressor": (neighbors.RadiusNeighborsRegressor(0.3), diabetes),
        "NearestCentroid": (neighbors.NearestCentroid(), wine),
        "GaussianNB": (bayes.GaussianNB(), wine),
        "MultinomialNB": (bayes.MultinomialNB(), wine),
        "LogisticRegression": (_scaled(_logistic()), cancer),
        "LinearRegression": (linear.LinearRegression(), diabetes),
        "Ridge": (linear.Ridge(), diabetes),
        "Lasso": (linear.Lasso(), diabetes),
        "ElasticNet": (linear.ElasticNet(), diabetes),
        "BayesianRidge": (linear.BayesianRidge(), diabetes),
        "PoissonRegressor": (linear.PoissonRegressor(), diabetes),
        "SGDClassifier": (_scaled(linear.SGDClassifier(loss="log_loss", random_state=0)), wine),
        "SGDRegressor": (_scaled(linear.SGDRegressor(random_state=0)), diabetes),
        "RidgeClassifier": (linear.RidgeClassifier(), wine),
        "LinearDiscriminantAnalysis": (discriminant.LinearDiscriminantAnalysis(), wine),
        "QuadraticDiscriminantAnalysis": (discriminant.QuadraticDiscriminantAnalysis(), wine),
        "GaussianProcessClassifier": (_scaled(processes.GaussianProcessClassifier()), wine),
        "GaussianProcessRegressor": (processes.GaussianProcessRegressor(alpha=0.1), diabetes),
        "PLSRegression": (_module("cross_decomposition").PLSRegression(2), diabetes),
        "CalibratedClassifierCV": (
            calibration.CalibratedClassifierCV(bayes.GaussianNB(), cv=3),
            wine,
        ),
        "GridSearchCV": (
            search.GridSearchCV(_tree("Classifier"), {"max_depth": [2, 3]}, cv=3),
            wine,
        ),
        "OneVsOneClassifier": (
            _module("multiclass").OneVsOneClassifier(bayes.GaussianNB()),
            wine,
        ),
        "TransformedTargetRegressor": (
            compose.TransformedTargetRegressor(
                linear.Ridge(), func=np.log1p, inverse_func=np.expm1
            ),
            diabetes,
        ),
        "KMeans": (cluster.KMeans(3, n_init=1, random_state=0), wine),
        "MeanShift": (cluster.MeanShift(), wine),
        "Birch": (cluster.Birch(n_clusters=3), wine),
        "DBSCAN": (cluster.DBSCAN(), wine),
        "GaussianMixture": (_module("mixture").GaussianMixture(3, random_state=0), wine),
        "PCA": (decomposition.PCA(3), wine),
        "TruncatedSVD": (decomposition.TruncatedSVD(3), wine),
        "NMF": (decomposition.NMF(3, random_state=0, max_iter=1000), wine),
        "StandardScaler": (scale.StandardScaler(), wine),
        "QuantileTransformer": (scale.QuantileTransformer(n_quantiles=20), wine),
        "SplineTransformer": (_pipeline(scale.SplineTransformer(), linear.Ridge()), diabetes),
        "FunctionTransformer": (
            _pipeline(scale.FunctionTransformer(np.log1p), scale.StandardScaler(), _logistic()),
            wine,
        ),
        "SimpleImputer": (
            _pipeline(impute.SimpleImputer(), scale.StandardScaler(), _logistic()),
            wine,
        ),
        "KNNImputer": (_pipeline(impute.KNNImputer(), scale.StandardScaler(), _logistic()), wine),
    }
