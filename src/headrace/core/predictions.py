"""Layout of MLflow's scoring protocol: the inputs of a request, and the outputs of its response.

A request holds a data frame (`dataframe_split`, `dataframe_records`, CSV) or tensors (`instances`,
`inputs`). The response holds what the model's `predict` returns in MLflow.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from headrace.core.datatypes import Datatype
from headrace.core.errors import InvalidArgumentError
from headrace.core.signature import VARIABLE, ModelSignature, TensorSpec

FORMATS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SPLIT_KEYS: Final = frozenset({"columns", "data", "index"})
_MATRIX_RANK: Final = 2
_SHOWN: Final = 5
_MISSING: Final = frozenset(
    {
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "<NA>"),
        *("1.#QNAN", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    }
)
"""Texts in CSV that pandas reads as a missing value."""
_BOOLEANS: Final = {"True": True, "TRUE": True, "true": True} | dict.fromkeys(
    ("False", "FALSE", "false"), False
)
_FLOATS: Final = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64})


class PredictionForm(StrEnum):
    """Type of Python object that `predict` returns in MLflow, and its representation in JSON."""

    VALUES = "values"
    """An array: nested lists of one output."""
    COLUMNS = "columns"
    """A data frame of one matrix, whose columns are numbered: an object per row."""
    RECORDS = "records"
    """A data frame with a column per output: an object per row."""
    MAPPING = "mapping"
    """A dictionary of arrays: nested lists by output name."""
    DOCUMENT = "document"
    """Anything else: one output of BYTES holds the JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionLayout:
    """Outputs that are the prediction, and rules for inputs that MLflow's model declares."""

    outputs: tuple[str, ...]
    """Names of the outputs that the response holds."""
    of_table: PredictionForm
    """Form of the response to a data frame."""
    of_tensors: PredictionForm
    """Form of the response to tensors."""
    optional: frozenset[str] = frozenset()
    """Inputs that a data frame may lack: their values are missing."""
    is_table: bool = False
    """Whether the model declares columns, so that tensors become a data frame too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedInputs:
    """Inputs of a request, not yet validated against datatypes."""

    values: Mapping[str, Any]
    """Values by input name, as nested lists."""
    is_table: bool
    """Whether the request holds a data frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Columns of a data frame; without names, numbered."""

    names: Sequence[str] | None
    columns: Sequence[Sequence[Any]]
    rows: int


def layout_of(signature: ModelSignature) -> PredictionLayout:
    """Return the layout of a model that MLflow did not log.

    The output `prediction` or `label` is the prediction, else all outputs together.
    """
    names = tuple(spec.name for spec in signature.outputs)
    outputs = next(((name,) for name in ("prediction", "label") if name in names), names)
    if len(outputs) == 1:
        form = PredictionForm.VALUES
    else:
        form = PredictionForm.RECORDS if signature.batched else PredictionForm.MAPPING
    return PredictionLayout(outputs=outputs, of_table=form, of_tensors=form)


def parse_inputs(
    document: object, signature: ModelSignature, layout: PredictionLayout
) -> ParsedInputs:
    """Return the inputs in a JSON document.

    Raises:
        InvalidArgumentError: It has none of the formats, or several, or other columns than the
            model.
    """
    if not isinstance(document, Mapping):
        raise InvalidArgumentError(f"the body must be a JSON object with one of {_listed(FORMATS)}")
    formats = [name for name in FORMATS if name in document]
    if len(formats) != 1:
        got = _listed(list(document)[:_SHOWN]) or "no field"
        raise InvalidArgumentError(f"the body must hold one of {_listed(FORMATS)}; it holds {got}")
    if document.get("params"):
        raise InvalidArgumentError("'params' of a request are not supported; remove them")
    content = document[formats[0]]
    match formats[0]:
        case "dataframe_split":
            table = _split(content)
        case "dataframe_records":
            table = _records(content, "dataframe_records")
        case "instances":
            return _of_instances(content, signature, layout)
        case _:
            return _of_tensors(content, signature, layout)
    return _of_table(table, signature, layout)


def parse_csv(text: str, signature: ModelSignature, layout: PredictionLayout) -> ParsedInputs:
    """Return the inputs in a data frame that `pandas.DataFrame.to_csv` wrote.

    Raises:
        InvalidArgumentError: It is not CSV with a header, or has other columns than the model.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise InvalidArgumentError(f"the body is not CSV: {error}") from None
    if not rows:
        raise InvalidArgumentError("the body has no rows; CSV begins with a line of column names")
    names, data = rows[0], rows[1:]
    if any(len(row) != len(names) for row in data):
        raise InvalidArgumentError("a line of CSV has another number of values than the header")
    table = _Table(names=names, columns=[*zip(*data, strict=True)], rows=len(data))
    parsed = _of_table(table, signature, layout)
    values = {
        spec.name: _typed(spec, parsed.values[spec.name])
        for spec in signature.inputs
        if spec.name in parsed.values
    }
    return ParsedInputs(values=values, is_table=True)


def _typed(spec: TensorSpec, values: Sequence[Any]) -> list[Any]:
    """Return the values that texts of CSV stand for."""
    if values and isinstance(values[0], list):
        return [_typed(spec, row) for row in values]
    return [_value(spec, text) if isinstance(text, str) else text for text in values]


def _value(spec: TensorSpec, text: str) -> object:
    if spec.datatype is Datatype.BYTES:
        return "" if text in _MISSING else text
    try:
        if spec.datatype in _FLOATS:
            return None if text in _MISSING else float(text)
        return _BOOLEANS[text] if spec.datatype is Datatype.BOOL else int(text)
    except (KeyError, ValueError):
        shown = repr(text[:40])
        msg = f"column '{spec.name}' has the value {shown}, but its datatype is {spec.datatype}"
        raise InvalidArgumentError(msg) from None


def _split(content: object) -> _Table:
    if not isinstance(content, Mapping) or "data" not in content or set(content) - _SPLIT_KEYS:
        raise InvalidArgumentError(
            "'dataframe_split' must be an object with 'data', and optionally 'columns' and 'index'"
        )
    data, names = content["data"], content.get("columns")
    if not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        raise InvalidArgumentError("'data' of 'dataframe_split' must be a list of rows")
    width = len(names) if isinstance(names, list) else len(data[0]) if data else 0
    if any(len(row) != width for row in data):
        raise InvalidArgumentError("a row of 'dataframe_split' has another number of values")
    return _Table(
        names=[str(name) for name in names] if isinstance(names, list) else None,
        columns=[list(column) for column in zip(*data, strict=True)] or [[] for _ in range(width)],
        rows=len(data),
    )


def _records(content: object, name: str) -> _Table:
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise InvalidArgumentError(f"'{name}' must be a list of objects, one per row")
    names = list(dict.fromkeys(str(key) for row in content for key in row))
    columns = [[row.get(key) for row in content] for key in names]
    return _Table(names=names, columns=columns, rows=len(content))


def _of_instances(
    content: object, signature: ModelSignature, layout: PredictionLayout
) -> ParsedInputs:
    if not isinstance(content, list):
        raise InvalidArgumentError("'instances' must be a list")
    if content and isinstance(content[0], Mapping):
        table = _records(content, "instances")
        return _of_table(table, signature, layout, is_frame=layout.is_table)
    return _of_tensors(content, signature, layout)


def _of_tensors(
    content: object, signature: ModelSignature, layout: PredictionLayout
) -> ParsedInputs:
    if isinstance(content, Mapping):
        columns = [value if isinstance(value, list) else [value] for value in content.values()]
        table = _Table(names=list(content), columns=columns, rows=len(columns[0]) if columns else 0)
        return _of_table(table, signature, layout, is_frame=layout.is_table)
    if len(signature.inputs) != 1:
        raise InvalidArgumentError(
            f"the model has several inputs; name them: {_listed(s.name for s in signature.inputs)}"
        )
    (spec,) = signature.inputs
    values = content if isinstance(content, list) else [content]
    return ParsedInputs(values={spec.name: _flat(spec, values)}, is_table=layout.is_table)


def _of_table(
    table: _Table, signature: ModelSignature, layout: PredictionLayout, *, is_frame: bool = True
) -> ParsedInputs:
    """Return the columns as inputs; columns that the model does not take are dropped."""
    specs = signature.inputs
    if table.names is None:
        if len(specs) != 1:
            names = _listed(spec.name for spec in specs)
            raise InvalidArgumentError(f"the data frame has no 'columns'; the model takes {names}")
        values: dict[str, Any] = {specs[0].name: _rows(specs[0], table.columns)}
        return ParsedInputs(values=values, is_table=is_frame)
    columns = dict(zip(table.names, table.columns, strict=True))
    if len(columns) < len(table.names):
        raise InvalidArgumentError("two columns of the data frame have the same name")
    lacking = [spec for spec in specs if spec.name not in columns]
    if len(specs) == 1 and lacking and len(specs[0].shape) == _MATRIX_RANK:
        trained = signature.columns.get(specs[0].name, ())
        if missing := [name for name in trained if name not in columns]:
            raise InvalidArgumentError(f"the data frame lacks the columns {_listed(missing)}")
        chosen = [columns[name] for name in trained] if trained else table.columns
        values = {specs[0].name: _rows(specs[0], chosen)}
        return ParsedInputs(values=values, is_table=is_frame)
    if missing := [spec.name for spec in lacking if spec.name not in layout.optional]:
        raise InvalidArgumentError(f"the data frame lacks the columns {_listed(missing)}")
    values = {}
    for spec in specs:
        blank = "" if spec.datatype is Datatype.BYTES else None
        column = columns.get(spec.name, [blank] * table.rows)
        values[spec.name] = _flat(spec, column)
    return ParsedInputs(values=values, is_table=is_frame)


def _rows(spec: TensorSpec, columns: Sequence[Sequence[Any]]) -> list[Any]:
    """Return columns as rows of a matrix, or as a vector if the input has one value per row."""
    if len(spec.shape) == 1 and len(columns) == 1:
        return _flat(spec, columns[0])
    if len(spec.shape) == _MATRIX_RANK and spec.shape[1] not in {VARIABLE, len(columns)}:
        msg = f"the data frame has {len(columns)} columns, but the model takes {spec.shape[1]}"
        raise InvalidArgumentError(msg)
    return [_flat(spec, row) for row in zip(*columns, strict=True)]


def _flat(spec: TensorSpec, values: Sequence[Any]) -> list[Any]:
    """Return values with the JSON types that the datatype allows, if they have equal ones.

    As in pandas, a whole number may be written with a fraction of zero, and texts may be missing.
    An object in a column of BYTES becomes its JSON text.
    """
    if spec.datatype is Datatype.BYTES:
        is_column = len(spec.shape) == 1
        return [
            ""
            if value is None
            else json.dumps(value)
            if is_column and isinstance(value, list | dict)
            else value
            for value in values
        ]
    if spec.datatype in _FLOATS or spec.datatype is Datatype.BOOL:
        return list(values)
    return [
        int(value) if isinstance(value, float) and value.is_integer() else value for value in values
    ]


def _listed(names: Any) -> str:  # noqa: ANN401  # an iterable of texts
    shown = [f"'{name}'" for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
