"""Models of tables: a matrix or one input per column in; a number or classes out.

`xgboost`, `lightgbm`, `catboost` and `sklearn` all use the same names, so that a caller need not
know which library made the model.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ExampleValue,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RowIndependence,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
    example_inputs,
)
from headrace.core.devices import ON_CPU, Device, DeviceUse
from headrace.runtimes.libraries import import_package, reason_of

INPUT: Final = "input"
PREDICTION: Final = "prediction"
LABEL: Final = "label"
PROBABILITIES: Final = "probabilities"
SCORE: Final = "score"
TRANSFORMED: Final = "transformed"
MAX_FEATURES: Final = 1_000_000
MAX_INPUT_BYTES: Final = 2_000_000_000
"""Upper bound of the gateway's body limit."""
_MAX_NAMES: Final = 4096
_LONGEST_EXAMPLE: Final = 200
"""Longest category, in bytes, that the signature shows as an example."""
_NUMBERED: Final = re.compile(r"(Column_|f|x)?\d+")
_TRIAL_ROWS: Final = 2
_DATATYPES: Final = {np.dtype(kind.dtype): kind for kind in Datatype if kind is not Datatype.BYTES}

Categories = Sequence[Sequence[str] | Sequence[float] | None]
Answer = Callable[[Array], Array]
"""Function from a matrix of rows and features to one output."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayout(Generic[Found]):
    """Functions that compute a model's outputs."""

    predict: Callable[[Any], Found]
    """Returns the data from which all outputs of a table are computed, once per batch."""
    outputs: Mapping[str, Callable[[Found], Array]]
    """Output functions in the order of the signature; text as object arrays of `bytes`."""

    def of(self, rows: object, names: Sequence[str] | None = None) -> Tensors:
        """Return the outputs of these names, or all."""
        prediction = self.predict(rows)
        return {
            name: np.ascontiguousarray(self.outputs[name](prediction))
            for name in names or self.outputs
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Input of a model that takes a table column by column."""

    name: str
    datatype: Datatype
    example: float | bytes = 0.0
    """A value that the model accepts, for trial runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInputs:
    """Conversion of a request's inputs to the table that the library predicts."""

    specs: tuple[TensorSpec, ...]
    rows: Callable[[Tensors], Any]
    """Returns the table of a request's tensors."""
    examples: Mapping[str, float | bytes]
    """Trial value by input."""
    names: Mapping[str, tuple[str, ...]]
    """Column names by matrix input, as in `ModelSignature.columns`."""

    @classmethod
    def of_matrix(
        cls, path: Path, features: int, datatype: Datatype, names: Sequence[str] | None = None
    ) -> "TableInputs":
        """Return the inputs of a model that takes one matrix of numbers.

        Args:
            names: The columns' names in training, if the library stored them; names that it
                generated do not count.

        Raises:
            UnsupportedModelError: It has no column, or too many.
        """
        check_features(path, features)
        meant = _meant(names, features)
        return cls(
            specs=(TensorSpec(name=INPUT, datatype=datatype, shape=(VARIABLE, features)),),
            rows=lambda inputs: inputs[INPUT],
            examples={INPUT: 0.0},
            names={INPUT: meant} if meant else {},
        )

    @classmethod
    def of_columns(
        cls, path: Path, columns: Sequence[Column], rows: Callable[[Tensors], Any]
    ) -> "TableInputs":
        """Return the inputs of a model that takes one input [-1] for each column.

        Raises:
            UnsupportedModelError: There is no column, or too many, or two have one name.
        """
        names = [column.name for column in columns]
        if not 0 < len(names) <= _MAX_NAMES:
            raise refuse(
                path, f"takes {len(names)} columns; 1 to {_MAX_NAMES} are supported by name"
            )
        if len(set(names)) < len(names) or not all(names):
            raise refuse(path, "has columns with the same name, or without a name; rename them")
        return cls(
            specs=tuple(
                TensorSpec(name=column.name, datatype=column.datatype, shape=(VARIABLE,))
                for column in columns
            ),
            rows=rows,
            examples={column.name: column.example for column in columns},
            names={},
        )

    def example(self, rows: int) -> Tensors:
        """Return tensors of this many equal rows."""
        return {
            spec.name: np.full(
                (rows, *spec.shape[1:]), self.examples[spec.name], spec.datatype.dtype
            )
            for spec in self.specs
        }


def table_with_categories(
    path: Path,
    names: Sequence[str],
    categories: Categories,
    datatype: Datatype,
    *,
    unseen_is_missing: bool,
) -> TableInputs:
    """Return one matrix, or one input for each column if the model stores category values.

    Categories that are strings are inputs of BYTES; the library of trees gets their codes.

    Args:
        names: Of the columns.
        categories: By column, the values of the codes 0, 1, ..., None for a column of numbers;
            empty if the model stores none.
        unseen_is_missing: Whether a category that the model was not trained on counts as a missing
            value, as in the library, or is refused.

    Raises:
        UnsupportedModelError: Categories of a column are equal, or mix strings and numbers.
    """
    if not categories:
        return TableInputs.of_matrix(path, len(names), datatype, names)
    columns = []
    for name, values in zip(names, categories, strict=True):
        kinds = {isinstance(value, str) for value in values or ()}
        if len(kinds) > 1 or len(set(values or ())) < len(values or ()):
            raise refuse(path, f"has categories of '{name}' that cannot be distinguished")
        if values is None:
            columns.append(Column(name=name, datatype=datatype))
        elif True in kinds:
            example = str(values[0]).encode()
            columns.append(Column(name=name, datatype=Datatype.BYTES, example=example))
        else:
            number = float(values[0]) if values else math.nan
            columns.append(Column(name=name, datatype=Datatype.FP64, example=number))
    codes = [
        None if some is None else {value: float(code) for code, value in enumerate(some)}
        for some in categories
    ]

    def rows(inputs: Tensors) -> Array:
        count = len(next(iter(inputs.values())))
        matrix = np.empty((count, len(columns)), datatype.dtype)
        for i, column in enumerate(columns):
            values, codes_by_value = inputs[column.name], codes[i]
            matrix[:, i] = (
                values
                if codes_by_value is None
                else _codes(
                    column.name, values, codes_by_value, unseen_is_missing=unseen_is_missing
                )
            )
        return matrix

    return TableInputs.of_columns(path, columns, rows)


def _codes(
    name: str, values: Array, codes: Mapping[Any, float], *, unseen_is_missing: bool
) -> list[float]:
    """Return the code of each value; NaN for a missing one."""
    is_text = values.dtype.kind == "O"
    items = texts_of(name, values, missing=None) if is_text else values.tolist()
    encoded = [codes.get(item, math.nan) for item in items]
    if not unseen_is_missing:
        for item, code in zip(items, encoded, strict=True):
            if math.isnan(code) and not (item is None or item != item):  # noqa: PLR0124  # not a number
                raise InvalidArgumentError(
                    f"input '{name}' has a category that the model was not trained on"
                )
    return encoded


class TabularModel:
    """A loaded model of a table, for any library."""

    def __init__(
        self,
        signature: ModelSignature,
        table: TableInputs,
        answers: OutputLayout[Any],
        *,
        concurrent: bool,
    ) -> None:
        self.signature = signature
        self.concurrent = concurrent
        self.device = DeviceUse(asked=Device.CPU, used=ON_CPU)
        self._table = table
        self._answers: OutputLayout[Any] | None = answers

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; computes only the requested outputs."""
        if self._answers is None:
            raise RuntimeFailedError("the model is closed")
        rows = self._table.rows(inputs)
        try:
            return self._answers.of(rows, outputs)
        except HeadraceError:
            raise
        except Exception as error:
            raise _run_error(inputs, error) from error

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return rows that the model accepts: for columns, values from its training."""
        return example_inputs(self.signature, rows=rows, variable=variable)

    def close(self) -> None:
        """Release the library's model; may be called again."""
        self._answers = None


def open_tabular(
    path: Path,
    answers: OutputLayout[Any],
    table: TableInputs,
    *,
    concurrent: bool,
    mixes_rows: str = "",
    rows_independent: bool = False,
) -> TabularModel:
    """Return a model whose outputs are declared as observed for two example rows.

    This first run also does the lazy setup of libraries, which no lock guards.

    Args:
        mixes_rows: Part of the model that may let rows of a batch influence each other; empty for
            none, as all libraries of tables predict each row independently.
        rows_independent: As `LoadOptions.rows_independent`: the operator declares that they do not.

    Raises:
        UnsupportedModelError: The model does not predict, or an output lacks a row for each input
            row.
    """
    try:
        trial = answers.of(table.rows(table.example(_TRIAL_ROWS)))
    except Exception as error:
        # The libraries' errors share no base class but Exception.
        raise refuse(path, f"does not predict: {reason_of(error)}") from error
    outputs = tuple(_output(path, name, array) for name, array in trial.items())
    independence = RowIndependence.PROVEN
    if mixes_rows:
        independence = RowIndependence.DECLARED if rows_independent else RowIndependence.UNPROVEN
    signature = ModelSignature(
        inputs=table.specs,
        outputs=outputs,
        batched=rows_independent or not mixes_rows,
        row_independence=independence,
        row_reason=mixes_rows or "predictions of this format are made row by row",
        columns=table.names,
        example=_values_of(table),
    )
    return TabularModel(signature, table, answers, concurrent=concurrent)


def _values_of(table: TableInputs) -> dict[str, ExampleValue]:
    """Return a value of each column for `ModelSignature.example`; missing values are skipped."""
    values: dict[str, ExampleValue] = {}
    for spec in table.specs:
        value = table.examples[spec.name]
        if spec.shape[1:]:  # a matrix
            continue
        if isinstance(value, bytes):
            if len(value) <= _LONGEST_EXAMPLE:
                values[spec.name] = value.decode()
        elif math.isfinite(value):
            values[spec.name] = float(value)
    return values


def _meant(names: Sequence[str] | None, features: int) -> tuple[str, ...]:
    """Return the names of the columns; empty if the library numbered them."""
    stated = tuple(map(str, () if names is None else names))
    if len(stated) != features or len(set(stated)) < len(stated) or len(stated) > _MAX_NAMES:
        return ()
    return () if all(_NUMBERED.fullmatch(name) for name in stated) else stated


def check_input_sizes(path: Path, inputs: Sequence[TensorSpec]) -> None:
    """Refuse a model with an input larger than a request may be.

    Raises:
        UnsupportedModelError: An input is too large.
    """
    for spec in inputs:
        elements = math.prod(size for size in spec.shape if size != VARIABLE)
        if elements * spec.datatype.dtype.itemsize > MAX_INPUT_BYTES:
            msg = f"input '{spec.name}' declares the shape {list(spec.shape)} of {spec.datatype}"
            raise refuse(
                path, f"{msg}, but a request may not have more than {MAX_INPUT_BYTES} bytes"
            )


def check_children(path: Path, description: str, children: Array, nodes: int) -> None:
    """Check by the indices of all children that nodes form a tree; the root is number 0.

    If no node has two parents and the root has none, no path from the root has a cycle.

    Raises:
        UnsupportedModelError: They are not a tree.
    """
    in_range = not children.size or (children.min() > 0 and children.max() < nodes)
    if not in_range or len(np.unique(children)) != len(children):
        raise corrupt(path, f"the nodes of {description} do not form a tree")


def check_features(path: Path, features: int) -> None:
    """Refuse a model without features, or with too many.

    Raises:
        UnsupportedModelError: The number is out of range.
    """
    if features < 1:
        raise refuse(path, "has no features, so no request can be sent")
    if features > MAX_FEATURES:
        raise refuse(path, f"declares {features} features; at most {MAX_FEATURES} are supported")


def import_library(module: str, extra: str) -> ModuleType:
    """Import and return the library that runs a format.

    Raises:
        FailedPreconditionError: It is not installed, and the message says how to install it; or it
            is a framework, and this process has imported another one.
    """
    try:
        return import_package(module)
    except ImportError as error:
        raise FailedPreconditionError(
            f"the runtime '{extra}' needs the package '{module}', which cannot be imported "
            f"({reason_of(error)}): pip install 'headrace[{extra}]'"
        ) from error


def read_head(path: Path, size_bytes: int) -> bytes:
    """Return the first bytes of a file; none if `path` is not a readable file."""
    try:
        with path.open("rb") as stream:
            return stream.read(size_bytes)
    except OSError:
        return b""


def read_all(path: Path) -> bytes:
    """Return the content of a model's file.

    Raises:
        UnsupportedModelError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise refuse(path, error.strerror or str(error)) from error


def outputs_of_trees(
    *, is_second: Answer | None = None, has_classes: bool = False
) -> Mapping[str, Answer]:
    """Return the outputs of a library of trees: classes with their probabilities, or a prediction.

    Args:
        is_second: For a model of two classes that gives the probability of the second, returns
            whether each row belongs to it.
        has_classes: Whether the model gives a probability for each class.
    """
    if is_second is not None:
        return {
            LABEL: lambda second: is_second(second).astype(np.int64),
            PROBABILITIES: _two_classes,
        }
    if has_classes:
        return {
            LABEL: lambda scores: scores.argmax(axis=1).astype(np.int64),
            PROBABILITIES: lambda scores: scores,
        }
    return {PREDICTION: lambda values: values}


def _two_classes(positive: Array) -> Array:
    """Return the probabilities of both classes from those of the second."""
    both = np.empty((len(positive), 2), positive.dtype)
    np.subtract(1, positive, out=both[:, 0])
    both[:, 1] = positive
    return both


def dense(rows: Array, dtype: type[np.generic]) -> Array:
    """Return `rows` in the memory layout for access by address; copied only if needed."""
    is_plain = rows.dtype == dtype and rows.flags.c_contiguous and rows.flags.aligned
    return rows if is_plain else np.require(rows, dtype, ["C", "A"])


def as_label(classes: Array) -> Array:
    """Return one class per row in protocol types: text as `bytes`, integers as INT64."""
    if classes.dtype.kind in "OSU":
        encoded = np.empty(classes.size, np.object_)
        encoded[:] = [str(item).encode() for item in classes.ravel().tolist()]
        return encoded.reshape(classes.shape)
    return classes.astype(np.int64) if classes.dtype.kind in "iu" else classes


def refuse(path: Path, reason: str) -> UnsupportedModelError:
    """Return the error for a model at `path`."""
    return UnsupportedModelError(f"{path}: {reason}")


def corrupt(path: Path, reason: str) -> UnsupportedModelError:
    """Return the error for a model at `path` that its library would not write."""
    return refuse(path, f"is truncated or corrupt: {reason}")


def _run_error(inputs: Tensors, error: Exception) -> HeadraceError:
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            msg = (
                "the model does not accept missing or infinite values such as those in "
                f"'{name}': {reason_of(error)}"
            )
            return InvalidArgumentError(msg)
    by_column = any(array.ndim == 1 for array in inputs.values())
    if by_column and isinstance(error, ValueError):  # a category that an encoder refuses
        return InvalidArgumentError(f"the model does not accept these values: {reason_of(error)}")
    return RuntimeFailedError(f"the model failed: {reason_of(error)}")


def _output(path: Path, name: str, array: Array) -> TensorSpec:
    datatype = Datatype.BYTES if array.dtype.kind == "O" else _DATATYPES.get(array.dtype)
    if datatype is None or array.shape[:1] != (_TRIAL_ROWS,):
        raise refuse(path, f"returns '{name}' as {array.dtype} with shape {list(array.shape)}")
    return TensorSpec(name=name, datatype=datatype, shape=(VARIABLE, *array.shape[1:]))


def texts_of(name: str, values: Array, *, missing: object = "") -> list[Any]:
    """Return the texts of an input of BYTES; `missing` replaces an empty one.

    Raises:
        InvalidArgumentError: A text is not UTF-8.
    """
    try:
        return [value.decode() if value else missing for value in values.tolist()]
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"input '{name}' holds bytes that are not valid UTF-8") from None
