"""Steps that run a vectorizer or transformer of scikit-learn: texts, numbers or columns."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.pipeline.context import StepContext
from headrace.pipeline.spec import VectorizerSpec
from headrace.pipeline.tokenize import texts_of
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.tables.sklearn import refuse_file_names
from headrace.runtimes.tables.sklearn_file import read_estimator
from headrace.runtimes.tables.tabular import INPUT, check_features, import_library, refuse

TEXT: Final = "text"
_WORDS: Final = b"a word "


class Taken(Protocol):
    """Conversion of a request's tensors to the input of `transform`."""

    specs: tuple[TensorSpec, ...]
    described: str

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # what the library takes
        """Return one batch as the input of `transform`.

        Raises:
            InvalidArgumentError: A text is not valid UTF-8.
        """

    def example(self, rows: int, variable: int) -> Tensors:
        """Return tensors of this many rows."""


class TextInput:
    """`text` BYTES [N] to a list of strings. Implements `Taken`."""

    described = "texts"

    def __init__(self) -> None:
        text = TensorSpec(name=TEXT, datatype=Datatype.BYTES, shape=(VARIABLE,))
        self.specs: tuple[TensorSpec, ...] = (text,)

    def rows(self, inputs: Tensors) -> list[str]:
        """Return the texts."""
        return texts_of(inputs[TEXT])

    def example(self, rows: int, variable: int) -> Tensors:
        """Return texts of about this many words."""
        texts = np.empty(rows, np.object_)
        texts[:] = [_WORDS * max(variable // 2, 1)] * rows
        return {TEXT: texts}


class Matrix:
    """`input` FP64 [N, columns] unchanged. Implements `Taken`."""

    def __init__(self, columns: int) -> None:
        shape = (VARIABLE, columns)
        matrix = TensorSpec(name=INPUT, datatype=Datatype.FP64, shape=shape)
        self.specs: tuple[TensorSpec, ...] = (matrix,)
        self.described = f"a matrix of {columns} numbers per row"

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # an array
        """Return the matrix."""
        return inputs[INPUT]

    def example(self, rows: int, variable: int) -> Tensors:
        """Return zeros."""
        del variable
        return {INPUT: np.zeros((rows, *self.specs[0].shape[1:]))}


class TableInput:
    """One tensor [N] for each column to a data frame. Implements `Taken`."""

    def __init__(self, columns: Mapping[str, str], library: Any) -> None:  # noqa: ANN401  # a module
        self.specs = tuple(
            TensorSpec(name=name, datatype=Datatype(datatype), shape=(VARIABLE,))
            for name, datatype in columns.items()
        )
        self.described = f"a table with the columns {', '.join(columns)}"
        self._library = library

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # a data frame
        """Return the table; texts are in object columns."""
        return self._library.DataFrame({spec.name: _column(spec, inputs) for spec in self.specs})

    def example(self, rows: int, variable: int) -> Tensors:
        """Return zeros and short texts."""
        del variable
        inputs: Tensors = {}
        for spec in self.specs:
            filling = b"a" if spec.datatype is Datatype.BYTES else 0
            inputs[spec.name] = np.full(rows, filling, spec.datatype.dtype)
        return inputs


def _column(spec: TensorSpec, inputs: Tensors) -> Any:  # noqa: ANN401  # an array
    array = inputs[spec.name]
    if spec.datatype is not Datatype.BYTES:
        return array
    texts = np.empty(len(array), np.object_)
    try:
        texts[:] = texts_of(array)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"'{spec.name}': {error}") from None
    return texts


FEATURES: Final = "features"
MAX_COLUMNS: Final = 1 << 20
MAX_VALUES: Final = 64 << 20
"""Limit of values in one run: dense, 256 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """An estimator whose libraries are limited to the threads of a run."""

    estimator: Any
    controller: Any
    threads: int

    def transform(self, rows: Any) -> Any:  # noqa: ANN401  # texts or a matrix; dense or sparse
        """Return the result of its `transform`."""
        with self.controller.limit(limits=self.threads):
            return self.estimator.transform(rows)


class VectorizerStep:
    """Step from texts, a matrix or a table to `features` [N, columns]. Implements `Model`."""

    # The transformer is Python code that is not documented as thread-safe.
    concurrent = False

    def __init__(self, transformer: Transformer, taken: Taken, output: TensorSpec) -> None:
        self.signature = ModelSignature(inputs=taken.specs, outputs=(output,), batched=True)
        self._transformer = transformer
        self._taken = taken
        self._columns = output.shape[1]
        self._dtype = output.datatype.dtype

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Transform one batch.

        Raises:
            InvalidArgumentError: A text is not UTF-8, the library rejects the values, or the output
                would be too large.
        """
        del outputs
        rows = len(next(iter(inputs.values())))
        if rows * self._columns > MAX_VALUES:
            msg = (
                f"{rows} rows of {self._columns} features are more than {MAX_VALUES} values; "
                "send fewer rows at once"
            )
            raise InvalidArgumentError(msg)
        if not rows:
            return {FEATURES: np.zeros((0, self._columns), self._dtype)}
        taken = self._taken.rows(inputs)
        try:
            features = self._transformer.transform(taken)
        except Exception as error:
            raise _run_error(inputs, error) from error
        return {FEATURES: _dense(features, self._dtype)}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return inputs that a transformer of this kind may take."""
        return self._taken.example(rows, variable)

    def close(self) -> None:
        """Do nothing; the step only holds memory."""


def open_vectorizer(spec: VectorizerSpec, around: StepContext) -> VectorizerStep:
    """Return the step that `spec` describes; transforms one row to determine the output.

    Raises:
        UnsupportedModelError: The file holds no transformer, or gives more columns than can be
            served.
        FailedPreconditionError: A library is missing.
    """
    path = around.file(spec.path)
    estimator = read_estimator(path, allow_code=False)
    if not hasattr(estimator, "transform"):
        raise refuse(path, f"holds a {type(estimator).__name__}, which is not a transformer")
    refuse_file_names(path, estimator)
    transformer = Transformer(
        estimator=estimator,
        controller=import_library("threadpoolctl", "sklearn").ThreadpoolController(),
        threads=around.options.intra_op_threads,
    )
    taken = _taken(path, estimator, spec.columns)
    columns = _columns(path, transformer, taken)
    if not 0 < columns <= MAX_COLUMNS:
        raise refuse(path, f"returns {columns} columns; 1 to {MAX_COLUMNS} are supported")
    output = TensorSpec(name=FEATURES, datatype=Datatype(spec.datatype), shape=(VARIABLE, columns))
    return VectorizerStep(transformer, taken, output)


def _taken(path: Path, estimator: Any, columns: Mapping[str, str] | None) -> Taken:  # noqa: ANN401  # any estimator
    """Return the kind of input: texts, unless the estimator counted columns when it was fitted."""
    if columns is not None:
        fitted = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
        if fitted != list(columns):
            fitted_on = (
                f"the columns {', '.join(fitted)}" if fitted else "data without column names"
            )
            raise refuse(path, f"was fitted on {fitted_on}; 'columns' must list them in this order")
        try:
            return TableInput(columns, importlib.import_module("pandas"))
        except ImportError as error:
            msg = "a vectorizer with 'columns' needs the package pandas: pip install pandas"
            raise FailedPreconditionError(msg) from error
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        return TextInput()
    check_features(path, features)
    return Matrix(features)


def _columns(path: Path, transformer: Transformer, taken: Taken) -> int:
    """Return the number of output columns: from an example, or else as the estimator states it."""
    estimator = transformer.estimator
    try:
        shape = transformer.transform(taken.rows(taken.example(1, 2))).shape
    except Exception as error:
        # The library's errors share no base class but Exception.
        if isinstance(taken, TableInput) and isinstance(error, ValueError):
            return _declared_columns(path, estimator, error)
        hint = ""
        if isinstance(taken, TableInput):
            hint = "; are the datatypes in 'columns' those of the training?"
        elif hasattr(estimator, "feature_names_in_"):
            hint = "; it was fitted on a data frame: declare its 'columns'"
        reason = f"does not transform {taken.described}: {reason_of(error)}{hint}"
        raise refuse(path, reason) from error
    if len(shape) != 2 or shape[0] != 1:  # noqa: PLR2004  # a matrix
        raise refuse(path, f"returns the shape {list(shape)} for one row, not [1, columns]")
    return int(shape[1])


def _declared_columns(path: Path, estimator: Any, error: Exception) -> int:  # noqa: ANN401  # any estimator
    """Return the count from output names; an encoder may know no category of an example."""
    try:
        return len(estimator.get_feature_names_out())
    except Exception:  # noqa: BLE001  # a library call: the first error says more
        raise refuse(path, f"does not transform a row: {reason_of(error)}") from error


def _dense(matrix: Any, dtype: "np.dtype[Any]") -> Array:  # noqa: ANN401  # a matrix of NumPy's, or a sparse one of SciPy's
    if hasattr(matrix, "toarray"):
        matrix = matrix.astype(dtype).toarray()
    return np.ascontiguousarray(matrix, dtype)


def _run_error(inputs: Tensors, error: Exception) -> HeadraceError:
    reason = reason_of(error)
    if not isinstance(error, ValueError):
        return RuntimeFailedError(f"the vectorizer failed: {reason}")
    location = _missing(inputs) if "NaN" in reason or "infinity" in reason else ""
    return InvalidArgumentError(f"the vectorizer does not accept these values{location}: {reason}")


def _missing(inputs: Tensors) -> str:
    """Return the location of the first missing or infinite value."""
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = (~np.isfinite(array)).reshape(len(array), -1).any(axis=1)
            return f" as in row {int(wrong.argmax())} of '{name}'"
    return ""
