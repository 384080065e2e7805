"""Runtime of scikit-learn's estimators, from skops archives and from pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.core import Array
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.sklearn_columns import table_of
from headrace.runtimes.sklearn_file import (
    code_of_estimator,
    looks_like_sklearn,
    read_estimator,
    row_mixing_part,
)
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    SCORE,
    TRANSFORMED,
    Answer,
    Answers,
    as_label,
    import_library,
    open_tabular,
    refuse,
)


class SklearnRuntime:
    """Loads `.skops`, as `skops.io.dump` writes it, and `.joblib`, `.pkl` and `.pickle`."""

    name = "sklearn"
    runs_code = False
    libraries = ("sklearn", "skops")
    extra = "sklearn"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like a skops file, or is named as a pickle."""
        return looks_like_sklearn(path)

    def code_in(self, path: Path) -> str:
        """What in the file runs code: all of a pickle, and types that are not trusted."""
        return code_of_estimator(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU. Runs what `code_in` names."""
        return open_estimator(path, read_estimator(path, allow_code=True), options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimator:
    """An estimator whose libraries are held to some threads while it predicts."""

    estimator: Any
    threads: int
    controller: Any

    def call(self, method: str, rows: Any) -> Any:  # noqa: ANN401  # a matrix, a data frame or texts
        """What one of its methods returns."""
        with self.controller.limit(limits=self.threads):
            return getattr(self.estimator, method)(rows)

    def predict(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """What its `predict` returns."""
        return np.asarray(self.call("predict", rows))

    def label(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """The class of each row."""
        return as_label(self.predict(rows))

    def probabilities(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """What its `predict_proba` returns."""
        return np.asarray(self.call("predict_proba", rows))

    def score(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """How far each row is from an outlier, which has a negative score."""
        return np.asarray(self.call("decision_function", rows))

    def transform(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """What its `transform` returns, as a dense matrix."""
        transformed = self.call("transform", rows)
        if hasattr(transformed, "toarray"):
            transformed = transformed.toarray()
        transformed = np.asarray(transformed)
        if transformed.ndim == 1 and len(rows) == 1:  # SparsePCA drops the axis of a single row
            twice = rows.iloc[[0, 0]] if hasattr(rows, "iloc") else rows[[0, 0]]
            return self.transform(twice)[:1]
        return transformed


def open_estimator(path: Path, estimator: Any, options: LoadOptions) -> Model:  # noqa: ANN401  # any estimator
    """A model that runs an estimator, which was read from `path`.

    Raises:
        UnsupportedModelError: It cannot be served; the message says why.
    """
    if not (hasattr(estimator, "predict") or hasattr(estimator, "transform")):
        raise refuse(
            path,
            f"holds a {type(estimator).__name__}, which does not predict or transform rows that it "
            "was not fitted on",
        )
    controller = import_library("threadpoolctl", "sklearn").ThreadpoolController()
    held = _Estimator(estimator=estimator, threads=options.intra_op_threads, controller=controller)
    # Estimators compute in doubles unless they are given something else, and then round otherwise.
    # They are Python, and nothing promises that two threads may be in one.
    return open_tabular(
        path,
        Answers(
            predict=lambda rows: rows,  # `predict` and `predict_proba` share nothing
            outputs=_outputs(path, held),
        ),
        table_of(path, estimator),
        concurrent=False,
        mixes_rows=row_mixing_part(estimator),
        rows_independent=options.rows_independent,
    )


def _outputs(path: Path, held: _Estimator) -> Mapping[str, Answer]:
    base = import_library("sklearn.base", "sklearn")
    estimator = held.estimator
    if not hasattr(estimator, "predict"):
        return {TRANSFORMED: held.transform}
    if base.is_outlier_detector(estimator):
        return {LABEL: held.label, SCORE: held.score}
    if not base.is_classifier(estimator):
        return {PREDICTION: held.predict}
    if isinstance(estimator.classes_, list):
        raise refuse(path, "gives several labels to a row; one is served")
    if not hasattr(estimator, "predict_proba"):
        return {LABEL: held.label}
    return {LABEL: held.label, PROBABILITIES: held.probabilities}
