"""Files of model objects."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from headrace.core import InvalidArgumentError
from headrace.launch.objects import write_object
from headrace.runtimes import LoadOptions
from headrace.runtimes.python import PythonRuntime


def test_an_estimator_is_a_joblib_file(tmp_path: Path) -> None:
    pipeline = make_pipeline(LinearRegression()).fit([[0.0], [1.0]], [0.0, 2.0])

    assert write_object(pipeline, tmp_path).name == "model.joblib"


def test_a_function_is_loaded_with_its_closure_and_resolved_hints(tmp_path: Path) -> None:
    factor = 3.0

    def scaled(x: "float", *, by: "float" = 2.0) -> "np.float32":
        return np.float32(factor * by * x)

    path = write_object(scaled, tmp_path)
    model = PythonRuntime().load(path, LoadOptions())

    (output,) = model.signature.outputs
    assert (path.name, output.datatype) == ("scaled", "FP32")
    answer = model.run({"x": np.array([1.0]), "by": np.array([2.0])})
    assert answer["output"].tolist() == [6.0]
    assert scaled.__annotations__["x"] == "float", "the program's function is unchanged"


def test_hints_that_name_nothing_are_refused(tmp_path: Path) -> None:
    def wrong(x: "Missing") -> float:  # type: ignore[name-defined]  # noqa: F821
        return float(x)

    with pytest.raises(InvalidArgumentError, match="type hints of wrong name something unknown"):
        write_object(wrong, tmp_path)


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)

    with pytest.raises(InvalidArgumentError, match=r"headrace\[notebook\]"):
        write_object(lambda x: x, tmp_path)


def test_objects_of_other_kinds_are_refused_with_the_supported_ones(tmp_path: Path) -> None:
    for model in (3, object(), np.zeros(3)):
        with pytest.raises(InvalidArgumentError, match="an estimator of scikit-learn"):
            write_object(model, tmp_path)
