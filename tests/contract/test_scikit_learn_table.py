"""The table of `docs/how-to/scikit-learn.md` is what happens to each estimator."""

from pathlib import Path
from typing import Any, Final

import joblib
import numpy as np
import pytest

from headrace.core import HeadraceError, Tensors, UnsupportedModelError
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source
from headrace.runtimes import Model, code_of_model, get_runtime, inspect_model, load_model
from tests import sklearn_models
from tests.tabular_models import library

pytestmark = pytest.mark.slow

library("skl2onnx", "convert")
library("skops.io", "sklearn")

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "scikit-learn.md"
METHODS: Final = {
    "label": "predict",
    "prediction": "predict",
    "probabilities": "predict_proba",
    "score": "decision_function",
    "transformed": "transform",
}
NO_MISSING: Final = " with `--convert-no-missing`"
ALLOWED: Final = "with `--allow-code`"


def documented() -> dict[str, tuple[str, str, str]]:
    """By estimator: what its row says of skops, of pickles and of the conversion."""
    lines = PAGE.read_text().split("<!-- estimators -->")[1].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: (skops, pickle, converted) for name, skops, pickle, converted in rows}


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


def converted(file: Path, expected: str) -> tuple[Model, str]:
    """The source, and the datatype that the model beside `file` computes in."""
    source = open_source(file, "sklearn", allow_code=True)
    made = convert(
        source,
        file.with_suffix(".onnx"),
        max_changed_ratio=0,
        no_missing=expected.endswith(NO_MISSING),
    )
    return source.model, made.computes.value


def test_every_estimator_is_in_the_table() -> None:
    assert documented().keys() == sklearn_models.estimators().keys()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_a_file_is_served_and_equal_to_scikit_learn_or_refused(
    fitted: tuple[str, Any, Any], tmp_path: Path
) -> None:
    name, estimator, rows = fitted
    skops, pickle, _ = documented()[name]
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


@pytest.mark.filterwarnings("ignore")
def test_a_file_is_converted_and_equal_on_real_data_or_refused(
    fitted: tuple[str, Any, Any], tmp_path: Path
) -> None:
    name, estimator, rows = fitted
    file = tmp_path / "model.joblib"
    joblib.dump(estimator, file)
    expected = documented()[name][2]
    if expected == "no":
        with pytest.raises(HeadraceError):
            converted(file, "")
        return
    source, computes = converted(file, expected)
    assert expected.removesuffix(NO_MISSING) == computes
    want: Tensors = source.run({"input": rows})
    got = load_model(file.with_suffix(".onnx")).run({"input": rows})
    for output, values in want.items():
        if values.dtype.kind == "f":
            scale = np.maximum(np.abs(values), np.median(np.abs(values)))
            assert (np.abs(got[output] - values) <= 1e-4 * scale).all(), output
        else:
            assert (got[output] != values).sum() == 0, output
