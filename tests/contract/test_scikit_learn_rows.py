"""Law: an estimator that is called independent by rows answers rows of a batch as it does alone."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import SparsePCA
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import all_estimators

from headrace.core import Array
from headrace.runtimes import LoadOptions
from headrace.runtimes.tables.sklearn import SklearnRuntime
from headrace.runtimes.tables.sklearn_file import row_mixing_part

skops = pytest.importorskip("skops.io", reason="needs skops: pip install 'headrace[sklearn]'")

_ROWS = 20
_METHODS = ("predict", "predict_proba", "decision_function", "transform")


def dense(answer: object) -> Array:
    return np.asarray(answer.toarray() if hasattr(answer, "toarray") else answer, np.float64)


@pytest.mark.parametrize(("name", "kind"), all_estimators())
def test_rows_of_a_batch_are_the_rows_alone(name: str, kind: type) -> None:
    table, classes = load_breast_cancer(return_X_y=True)
    table, classes = MinMaxScaler().fit_transform(table)[:200, :8], classes[:200]
    rows = table[:_ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some do not converge on so few rows
        try:
            estimator = kind()
            if "random_state" in estimator.get_params():
                estimator.set_params(random_state=0)
            numbers = 3 * table[:, 0] + table[:, 1]
            estimator.fit(table, numbers if "Regress" in name else classes)
            methods = [method for method in _METHODS if hasattr(estimator, method)]
            together = {method: dense(getattr(estimator, method)(rows)) for method in methods}
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            pytest.skip(f"takes other parameters or another table: {error}")
        if row_mixing_part(estimator):
            return
        for method, answer in together.items():
            alone = [dense(getattr(estimator, method)(rows[i : i + 1])) for i in range(_ROWS)]
            largest = np.abs(answer).max(initial=0)
            np.testing.assert_allclose(
                np.concatenate(alone).reshape(answer.shape), answer, rtol=1e-6, atol=1e-9 * largest
            )


@pytest.mark.parametrize("name", ["NMF", "MiniBatchNMF"])
def test_a_factorization_of_all_rows_is_not_called_independent(name: str) -> None:
    estimator = dict(all_estimators())[name]()

    assert row_mixing_part(estimator) == f"{name} factorizes all rows of a batch together"


@pytest.mark.parametrize("components", [1, 3])
def test_a_single_row_keeps_its_axis(components: int, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((50, 5))
    file = tmp_path / "model.skops"
    estimator = SparsePCA(components, random_state=0).fit(rows)
    skops.dump(estimator, file)
    model = SklearnRuntime().load(file, LoadOptions())

    answer = model.run({"input": rows[:1]})["transformed"]

    assert answer.shape == (1, components)
    np.testing.assert_allclose(answer, estimator.transform(rows[:2])[:1])
