"""Runtime of scikit-learn's estimators, and the columns of the tables that they take.

An estimator of numbers takes a matrix. One that selects columns by name, or that encodes text,
takes one input for each column; the fitted transformers determine which of them are text.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    Tensors,
    TensorSpec,
)
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.libraries import import_package
from headrace.runtimes.tables.sklearn_file import (
    code_of_estimator,
    looks_like_sklearn,
    parts_of,
    read_estimator,
    row_mixing_part,
)
from headrace.runtimes.tables.tabular import (
    INPUT,
    LABEL,
    PREDICTION,
    PROBABILITIES,
    SCORE,
    TRANSFORMED,
    Answer,
    Column,
    OutputLayout,
    TableInputs,
    as_label,
    import_library,
    open_tabular,
    refuse,
    texts_of,
)

_ONLY: Final = 0
"""The column of an estimator that takes a list of texts instead of a table."""
_METHODS: Final = ("predict", "predict_proba", "transform")
_INNER: Final = (
    *(
        "_preprocessor",
        "best_estimator_",
        "calibrated_classifiers_",
        "estimators_",
        "estimator_",
        "regressor_",
    ),
    "estimator",  # a fitted part of a calibrated classifier
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """Values that a fitted transformer expects in a column."""

    is_text: bool = False
    example: float | str | None = None
    """A value from the training data."""
    missing: object = ""
    """Python value of an absent text."""

    @property
    def rank(self) -> tuple[bool, bool]:
        """Precedence among two expectations of one column; the larger one applies."""
        return self.is_text, self.example is not None

    @property
    def sample(self) -> float | bytes:
        """Return the example in the form that callers send."""
        return str(self.example or "a").encode() if self.is_text else float(self.example or 0.0)


_NUMBER: Final = _Values()
_TEXT: Final = _Values(is_text=True)


def table_of(path: Path, estimator: Any) -> TableInputs:  # noqa: ANN401  # any estimator
    """Return the conversion from tensors to an estimator's input.

    Raises:
        UnsupportedModelError: It cannot be determined, or the estimator reads files.
        FailedPreconditionError: It takes a data frame, and pandas is not installed.
    """
    refuse_file_names(path, estimator)
    features = getattr(estimator, "n_features_in_", None)
    if features == 0:  # CatBoost does not pickle the number
        features = len(estimator.feature_names_)
    columns: dict[int, _Values] = {}
    width = features if isinstance(features, int) else 1
    _look(estimator, list(range(width)), columns)
    if features is None and columns.get(_ONLY, _NUMBER).is_text:
        spec = TensorSpec(name=INPUT, datatype=Datatype.BYTES, shape=(VARIABLE,))
        return TableInputs(
            specs=(spec,),
            rows=lambda inputs: texts_of(INPUT, inputs[INPUT]),
            examples={INPUT: b"a word"},
            names={},
        )
    if not isinstance(features, int):
        raise refuse(
            path,
            "does not declare how many features it takes; fit it on a table of numbers, or "
            "begin a pipeline with a vectorizer of texts",
        )
    names = getattr(estimator, "feature_names_in_", None)
    by_name = names is not None and any(
        hasattr(part, "transformers_") and hasattr(part, "feature_names_in_")
        for part in parts_of(estimator)
    )
    if not by_name and not any(values.is_text for values in columns.values()):
        return TableInputs.of_matrix(path, features, Datatype.FP64, names)
    called = [f"x{i}" for i in range(features)] if names is None else [str(name) for name in names]
    table = _Frame(
        names=called,
        columns=dict(sorted(columns.items())),
        pandas=None if names is None else _pandas(path),
    )
    return TableInputs.of_columns(
        path,
        [
            Column(
                name=called[i],
                datatype=Datatype.BYTES if values.is_text else Datatype.FP64,
                example=values.sample,
            )
            for i, values in table.columns.items()
        ],
        table.rows,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Builder of the training table: a data frame, or an array if columns had no names."""

    names: Sequence[str]
    columns: Mapping[int, _Values]
    """Used columns by position; others are left empty."""
    pandas: Any

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # a data frame or an array
        """Return the table of one batch."""
        rows = len(next(iter(inputs.values())))
        columns = [self._column(i, name, inputs, rows) for i, name in enumerate(self.names)]
        if self.pandas is None:
            table = np.empty((rows, len(columns)), np.object_)
            for i, values in enumerate(columns):
                table[:, i] = values
            return table
        return self.pandas.DataFrame(dict(zip(self.names, columns, strict=True)))

    def _column(self, number: int, name: str, inputs: Tensors, rows: int) -> Array:
        values = self.columns.get(number)
        if values is None:
            return np.full(rows, np.nan)
        if not values.is_text:
            return inputs[name]
        texts = np.empty(rows, np.object_)
        texts[:] = texts_of(name, inputs[name], missing=values.missing)
        return texts


def _pandas(path: Path) -> ModuleType:
    try:
        return import_package("pandas")
    except ImportError as error:
        msg = f"{path} takes a data frame, which needs the package pandas: pip install pandas"
        raise FailedPreconditionError(msg) from error


def _look(part: Any, columns: list[int], expectations: dict[int, _Values]) -> None:  # noqa: ANN401  # an estimator
    """Record what a fitted estimator expects in the columns that it gets."""
    if hasattr(part, "_transformer_to_input_indices"):
        _look_at_columns(part, columns, expectations)
    elif hasattr(part, "steps"):
        _look_at_steps(part, columns, expectations)
    elif isinstance(categories := getattr(part, "categories_", None), list | tuple):
        for column, values in zip(columns, categories, strict=False):
            _note(expectations, [column], _of_categories(values))
    elif hasattr(part, "build_analyzer"):  # a vectorizer
        _note(expectations, columns, _TEXT)
    elif inner := _inner(part):
        for estimator in inner:
            _look(estimator, columns, expectations)
    else:
        _note(expectations, columns, _NUMBER)


def _look_at_columns(part: Any, columns: list[int], expectations: dict[int, _Values]) -> None:  # noqa: ANN401  # a column transformer
    """Record what each transformer expects; dropped columns are not used."""
    selected = part._transformer_to_input_indices  # noqa: SLF001  # columns by number, however they were chosen
    for name, transformer, _ in part.transformers_:
        some = [columns[i] for i in selected[name]]
        if not isinstance(transformer, str):
            _look(transformer, some, expectations)
        elif transformer == "passthrough":
            _note(expectations, some, _NUMBER)


def _look_at_steps(pipeline: Any, columns: list[int], expectations: dict[int, _Values]) -> None:  # noqa: ANN401  # a pipeline
    """Record what the first step expects; if it only imputes, what the next step expects."""
    missing: object = ""
    filled = _NUMBER
    for _, step in pipeline.steps:
        if step is None or isinstance(step, str):
            continue
        if type(step).__name__ != "SimpleImputer":
            _look(step, columns, expectations)
            break
        if step.missing_values is None or isinstance(step.missing_values, float):
            missing = step.missing_values
        filled = _TEXT if getattr(step, "_fit_dtype", np.dtype(float)).kind in "OSU" else _NUMBER
    else:
        _note(expectations, columns, filled)
    for column in columns if missing != "" else ():
        if expectations[column].is_text:
            expectations[column] = replace(expectations[column], missing=missing)


def _inner(part: Any) -> list[Any]:  # noqa: ANN401  # an estimator
    """Return fitted estimators within one that passes the table on unchanged."""
    if hasattr(part, "estimators_features_"):  # bagging checks the numbers itself
        return []
    if hasattr(part, "transformer_list"):  # a union
        return [transformer for _, transformer in part.transformer_list]
    for name in _INNER:
        some = getattr(part, name, None)
        some = some if isinstance(some, list | tuple) else [some]
        if estimators := [
            candidate for candidate in some if any(hasattr(candidate, name) for name in _METHODS)
        ]:
            return estimators
    return []


def _note(expectations: dict[int, _Values], columns: Sequence[int], values: _Values) -> None:
    """Record an expectation; text precedes numbers, and training values precede defaults."""
    for column in columns:
        if column not in expectations or values.rank > expectations[column].rank:
            expectations[column] = values


def _of_categories(categories: Array) -> _Values:
    values = categories.tolist()
    texts = [value for value in values if isinstance(value, str)]
    if not texts:
        numbers = [
            value for value in values if isinstance(value, int | float) and not math.isnan(value)
        ]
        return _Values(example=float(numbers[0])) if numbers else _NUMBER
    is_none = any(value is None for value in values)
    missing: object = "" if "" in texts else None if is_none else np.nan
    return _Values(is_text=True, example=texts[0], missing=missing)


def refuse_file_names(path: Path, estimator: Any) -> None:  # noqa: ANN401  # any estimator
    """Refuse a vectorizer that would open files named by callers."""
    for part in parts_of(estimator):
        kind = getattr(part, "input", "content")
        if hasattr(part, "build_analyzer") and kind != "content":
            msg = f"reads {kind}s, which callers would choose; set input='content'"
            raise refuse(path, msg)


class SklearnRuntime:
    """Loader of `.skops`, as `skops.io.dump` writes it, and `.joblib`, `.pkl` and `.pickle`."""

    name = "sklearn"
    runs_code = False
    libraries = ("sklearn", "skops")
    extra = "sklearn"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like a skops file, or has the suffix of a pickle."""
        return looks_like_sklearn(path)

    def code_in(self, path: Path) -> str:
        """Return the code in the file: all of a pickle, and untrusted types."""
        return code_of_estimator(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU. Runs the code that `code_in` names."""
        return open_estimator(path, read_estimator(path, allow_code=True), options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimator:
    """An estimator whose libraries are limited to some threads during predictions."""

    estimator: Any
    threads: int
    controller: Any

    def call(self, method: str, rows: Any) -> Any:  # noqa: ANN401  # a matrix, a data frame or texts
        """Return the result of one of its methods."""
        with self.controller.limit(limits=self.threads):
            return getattr(self.estimator, method)(rows)

    def answer(self, method: str) -> Answer:
        """Return the output that one of its methods computes."""
        return lambda rows: np.asarray(self.call(method, rows))

    def label(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """Return the class of each row."""
        labels = as_label(np.asarray(self.call("predict", rows)))
        return labels.reshape(-1) if labels.shape[1:] == (1,) else labels  # as CatBoost's are

    def transform(self, rows: Any) -> Array:  # noqa: ANN401  # as above
        """Return the result of its `transform` as a dense matrix."""
        transformed = self.call("transform", rows)
        if hasattr(transformed, "toarray"):
            transformed = transformed.toarray()
        transformed = np.asarray(transformed)
        if transformed.ndim == 1 and len(rows) == 1:  # SparsePCA drops the axis of a single row
            twice = rows.iloc[[0, 0]] if hasattr(rows, "iloc") else rows[[0, 0]]
            return self.transform(twice)[:1]
        return transformed


def open_estimator(path: Path, estimator: Any, options: LoadOptions) -> Model:  # noqa: ANN401  # any estimator
    """Return a model that runs an estimator, which was read from `path`.

    Raises:
        UnsupportedModelError: It cannot be served; the message says why.
    """
    controller = import_library("threadpoolctl", "sklearn").ThreadpoolController()
    held = _Estimator(estimator=estimator, threads=options.intra_op_threads, controller=controller)
    # A matrix has no column names: scikit-learn would warn of that at each prediction.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    # Estimators compute in FP64 unless they get another type, and then round differently. They are
    # Python code that is not documented as thread-safe.
    return open_tabular(
        path,
        OutputLayout(
            predict=lambda rows: rows,  # `predict` and `predict_proba` share no computation
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
        return {LABEL: held.label, SCORE: held.answer("decision_function")}
    if not base.is_classifier(estimator):
        return {PREDICTION: held.answer("predict")}
    if isinstance(estimator.classes_, list):
        raise refuse(path, "returns several labels per row; one is supported")
    if not hasattr(estimator, "predict_proba"):
        return {LABEL: held.label}
    return {LABEL: held.label, PROBABILITIES: held.answer("predict_proba")}
