"""The table of `docs/how-to/scikit-learn.md` is what happens to each estimator."""

from pathlib import Path
from typing import Any, Final

import joblib
import numpy as np
import pytest

from headrace.core import UnsupportedModelError
from headrace.runtimes import Model, code_of_model, get_runtime, inspect_model, load_model
from tests import sklearn_models
from tests.tabular_models import library

pytestmark = pytest.mark.slow

library("skops.io", "sklearn")

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "scikit-learn.md"
METHODS: Final = {
    "label": "predict",
    "prediction": "predict",
    "probabilities": "predict_proba",
    "score": "decision_function",
    "transformed": "transform",
}
ALLOWED: Final = "with `--allow-code`"


def documented() -> dict[str, tuple[str, str]]:
    """By estimator: what its row says of skops and of pickles."""
    lines = PAGE.read_text().split("<!-- estimators -->")[1].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: (skops, pickle) for name, skops, pickle in rows}


@pytest.fixture(scope="module", params=sorted(documented()))
def fitted(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """A name, an estimator, and its rows."""
    estimator, data = sklearn_models.estimators()[request.param]
    rows, target = sklearn_models.data(data)
    return request.param, estimator.fit(rows, target), rows


def check_equal(model: Model, estimator: Any, rows: Any) -> None:  # noqa: ANN401  # ship no types
    """Fail if an answer is not the estimator's own to the last bit."""
    for name, got in model.run({"input": rows}).items():
        want = getattr(estimator, METHODS[name])(rows)
        assert np.array_equal(got, want), name


def served(path: Path, estimator: Any, rows: Any) -> str:  # noqa: ANN401  # ship no types
    """How a file is served, once its answers are those of the estimator."""
    try:
        needs_allow = bool(code_of_model(get_runtime("sklearn"), path))
        inspect_model(path, allow_code=True)
    except UnsupportedModelError:
        return "no"
    check_equal(load_model(path), estimator, rows)
    return ALLOWED if needs_allow else "yes"


def test_every_estimator_is_in_the_table() -> None:
    assert documented().keys() == sklearn_models.estimators().keys()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_a_file_is_served_and_equal_to_scikit_learn_or_refused(
    fitted: tuple[str, Any, Any], tmp_path: Path
) -> None:
    name, estimator, rows = fitted
    skops, pickle = documented()[name]
    file = tmp_path / "model.skops"
    try:
        library("skops.io", "sklearn").dump(estimator, file)
    except TypeError:
        assert skops == "no"
    else:
        assert served(file, estimator, rows) == skops
    for suffix in (".joblib", ".pkl"):
        file = tmp_path / f"model{suffix}"
        joblib.dump(estimator, file)
        assert served(file, estimator, rows) == pickle
