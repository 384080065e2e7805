"""Law: converted trees answer alike on and beside every threshold, or the difference is told."""

import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core import Array, UnsupportedModelError
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source
from headrace.runtimes import load_model
from tests.tabular_models import library

pytestmark = pytest.mark.slow

library("skl2onnx", "convert")

FEATURES = 3


def kinds(seed: int) -> dict[str, Any]:
    ensemble = library("sklearn.ensemble", "sklearn")
    tree = library("sklearn.tree", "sklearn")
    return {
        "tree": tree.DecisionTreeRegressor(max_depth=4, random_state=seed),
        "forest": ensemble.RandomForestRegressor(4, max_depth=4, random_state=seed),
        "extra": ensemble.ExtraTreesRegressor(4, max_depth=4, random_state=seed),
        "boosting": ensemble.GradientBoostingRegressor(n_estimators=4, random_state=seed),
        "ada": ensemble.AdaBoostRegressor(n_estimators=3, random_state=seed),
        "histograms": ensemble.HistGradientBoostingRegressor(
            max_iter=4, min_samples_leaf=3, random_state=seed
        ),
    }


def thresholds(estimator: Any) -> Array:  # noqa: ANN401  # ships no types
    """All numbers that the trees of an estimator compare with."""
    if hasattr(estimator, "_predictors"):
        nodes = [tree.nodes for trees in estimator._predictors for tree in trees]
        parts = [one["num_threshold"][one["is_leaf"] == 0] for one in nodes]
    else:
        trees = np.ravel(getattr(estimator, "estimators_", estimator)).tolist()
        parts = [one.tree_.threshold[one.tree_.children_left != -1] for one in trees]
    found: Array = np.concatenate([np.zeros(1), *parts])
    return np.asarray(found[np.isfinite(found)])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["tree", "forest", "extra", "boosting", "ada", "histograms"]),
    seed=st.integers(0, 1_000),
    scale=st.sampled_from([1e-3, 1.0, 1e6, 1.7e9]),
    digits=st.sampled_from([1, 4, 17]),
)
def test_converted_trees_answer_alike_on_and_beside_thresholds(
    kind: str, seed: int, scale: float, digits: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.round(rng.normal(size=(60, FEATURES)), digits) * scale
    estimator = kinds(seed)[kind].fit(rows, rng.normal(size=60))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trees.joblib"
        joblib.dump(estimator, path)
        source = open_source(path, "sklearn", allow_code=True)
        try:
            conversion = convert(source, path.with_suffix(".onnx"), max_changed_ratio=0)
        except UnsupportedModelError:
            return
        cuts = thresholds(estimator)
        asked = np.concatenate((cuts, np.nextafter(cuts, -np.inf), np.nextafter(cuts, np.inf)))
        if conversion.beside is not None:  # which says so of what only doubles hold
            narrow = cuts.astype(np.float32)
            asked = np.concatenate((narrow, np.nextafter(narrow, np.float32(np.inf))))
        inputs = {"input": rng.choice(asked.astype(np.float64), (2_000, FEATURES))}
        want = source.model.run(inputs)["prediction"]
        got = load_model(path.with_suffix(".onnx")).run(inputs)["prediction"]

    same = np.isclose(got, want, rtol=conversion.tolerance, atol=1e-6 * np.abs(want).max())
    assert same.mean() == 1.0
