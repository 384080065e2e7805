"""Models of tables: one matrix in, or one input for each column; a number, or classes, out.

`xgboost`, `lightgbm`, `catboost` and `sklearn` all give the same names, so that a caller need not
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
"""As much as the gateway's limit of a body may be set to."""
_MAX_NAMES: Final = 4096
_LONGEST_EXAMPLE: Final = 200
"""Bytes of a category that stands in the signature as an example."""
_NUMBERED: Final = re.compile(r"(Column_|f|x)?\d+")
_TRIAL_ROWS: Final = 2
_DATATYPES: Final = {np.dtype(kind.dtype): kind for kind in Datatype if kind is not Datatype.BYTES}

Categories = Sequence[Sequence[str] | Sequence[float] | None]
Answer = Callable[[Array], Array]
"""One output for a matrix of rows and features."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayout(Generic[Found]):
    """How a model answers."""

    predict: Callable[[Any], Found]
    """What a matrix's outputs are made of, computed once for all."""
    outputs: Mapping[str, Callable[[Found], Array]]
    """Each of them, in the order of the signature; text as object arrays of `bytes`."""

    def of(self, rows: object, names: Sequence[str] | None = None) -> Tensors:
        """The outputs of these names, or all."""
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
    """How the inputs of a request become the table that the library predicts."""

    specs: tuple[TensorSpec, ...]
    rows: Callable[[Tensors], Any]
    """Makes that table of a request's tensors."""
    examples: Mapping[str, float | bytes]
    """For each input its value in a trial run."""
    names: Mapping[str, tuple[str, ...]]
    """By input that is a matrix: what its columns are called, as `ModelSignature.columns`."""

    @classmethod
    def of_matrix(
        cls, path: Path, features: int, datatype: Datatype, names: Sequence[str] | None = None
    ) -> "TableInputs":
        """One matrix of numbers.

        Args:
            names: What the columns were called in training, if the library kept it; names that it
                made up itself count for none.

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
        """One input [-1] for each column.

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
        """Tensors of so many rows, all of them alike."""
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
    """One matrix, or one input for each column where the model says what its categories are called.

    Categories that are texts are inputs of BYTES; the library of trees takes their codes.

    Args:
        names: Of the columns.
        categories: By column, what the codes 0, 1, ... stand for, None for a column of numbers;
            empty if the model says it of none.
        unseen_is_missing: Whether a category that the model was not trained on is a missing value,
            as the library has it, or refused.

    Raises:
        UnsupportedModelError: Categories of a column are alike, or texts and numbers.
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
    """The code of each value; not a number for one that is missing."""
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
    """A loaded model of a table, whichever library runs it."""

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
        """Run one batch; computes only what is asked for."""
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
        """Rows that the model takes: of columns, values that it was trained on."""
        return example_inputs(self.signature, rows=rows, variable=variable)

    def close(self) -> None:
        """Let go of the library's model; may be called again."""
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
    """A model whose outputs are declared as they come out for two rows of examples.

    This first run also does what libraries put off until then and guard by no lock.

    Args:
        mixes_rows: What in the model may let rows of a batch influence each other; empty for
            nothing, as all libraries of tables predict each row by itself.
        rows_independent: As `LoadOptions.rows_independent`: the operator declares that they do not.

    Raises:
        UnsupportedModelError: The model does not predict, or what it gives has no row for each.
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


def _values_of(table: TableInputs) -> dict[str, float | str]:
    """A value of each column for `ModelSignature.example`; a missing value is no example."""
    values: dict[str, float | str] = {}
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
    """Names of the columns; empty if the library numbered them."""
    stated = tuple(map(str, () if names is None else names))
    if len(stated) != features or len(set(stated)) < len(stated) or len(stated) > _MAX_NAMES:
        return ()
    return () if all(_NUMBERED.fullmatch(name) for name in stated) else stated


def check_input_sizes(path: Path, inputs: Sequence[TensorSpec]) -> None:
    """Refuse a model of which an input is larger than a request may be.

    Raises:
        UnsupportedModelError: One is.
    """
    for spec in inputs:
        elements = math.prod(size for size in spec.shape if size != VARIABLE)
        if elements * spec.datatype.dtype.itemsize > MAX_INPUT_BYTES:
            msg = f"input '{spec.name}' declares the shape {list(spec.shape)} of {spec.datatype}"
            raise refuse(
                path, f"{msg}, but a request may not have more than {MAX_INPUT_BYTES} bytes"
            )


def check_children(path: Path, what: str, children: Array, nodes: int) -> None:
    """Refuse nodes that are no tree, by the numbers of all children; the root is number 0.

    Where no node has two parents and the root has none, no walk from the root comes back.

    Raises:
        UnsupportedModelError: They are not a tree.
    """
    in_range = not children.size or (children.min() > 0 and children.max() < nodes)
    if not in_range or len(np.unique(children)) != len(children):
        raise corrupt(path, f"the nodes of {what} do not form a tree")


def check_features(path: Path, features: int) -> None:
    """Refuse a model without features, or with too many.

    Raises:
        UnsupportedModelError: It does.
    """
    if features < 1:
        raise refuse(path, "has no features, so no request can be sent")
    if features > MAX_FEATURES:
        raise refuse(path, f"declares {features} features; at most {MAX_FEATURES} are supported")


def import_library(module: str, extra: str) -> ModuleType:
    """The library that runs a format.

    Raises:
        FailedPreconditionError: It is not installed, and the message says how to install it; or
            it is a framework, and this process holds another one.
    """
    try:
        return import_package(module)
    except ImportError as error:
        raise FailedPreconditionError(
            f"the runtime '{extra}' needs the package '{module}', which cannot be imported "
            f"({reason_of(error)}): pip install 'headrace[{extra}]'"
        ) from error


def read_head(path: Path, size_bytes: int) -> bytes:
    """The first bytes of a file; none if `path` is no file that can be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(size_bytes)
    except OSError:
        return b""


def read_all(path: Path) -> bytes:
    """The bytes of a model's file.

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
    """The outputs of a library of trees: classes with their probabilities, or a prediction.

    Args:
        is_second: For a model of two classes that gives the probability of the second, whether a
            row is of it.
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
    """Probabilities of both classes from those of the second."""
    both = np.empty((len(positive), 2), positive.dtype)
    np.subtract(1, positive, out=both[:, 0])
    both[:, 1] = positive
    return both


def dense(rows: Array, dtype: type[np.generic]) -> Array:
    """`rows` as a library that is given their address may read them; a copy only if it must be."""
    is_plain = rows.dtype == dtype and rows.flags.c_contiguous and rows.flags.aligned
    return rows if is_plain else np.require(rows, dtype, ["C", "A"])


def as_label(classes: Array) -> Array:
    """One class a row as the protocol has it: text as `bytes`, whole numbers as INT64."""
    if classes.dtype.kind in "OSU":
        encoded = np.empty(classes.size, np.object_)
        encoded[:] = [str(item).encode() for item in classes.ravel().tolist()]
        return encoded.reshape(classes.shape)
    return classes.astype(np.int64) if classes.dtype.kind in "iu" else classes


def refuse(path: Path, reason: str) -> UnsupportedModelError:
    """The error for a model at `path`."""
    return UnsupportedModelError(f"{path}: {reason}")


def corrupt(path: Path, reason: str) -> UnsupportedModelError:
    """The error for a model at `path` that is not what its library writes."""
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
    """The texts of an input of BYTES; `missing` stands for an empty one.

    Raises:
        InvalidArgumentError: One is not UTF-8.
    """
    try:
        return [value.decode() if value else missing for value in values.tolist()]
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"input '{name}' holds bytes that are not valid UTF-8") from None
