"""Turns training data (Parquet, CSV, .npz) into the tensors of one model, to make a reference of.

Unlike what is sent to a model, data may lack values, and may have many rows.
"""

import csv
import importlib
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)

MAX_ROWS: Final = 500_000
"""The first so many rows are read: more make no better reference."""
_NUMPY: Final = frozenset({".npz", ".npy"})
_LATEST_S: Final = 1e11
"""Larger numbers are milliseconds. Unit: seconds since 1970."""
Table = dict[str, Array]
"""Columns by name: float64 with NaN for what is missing, or texts."""


def read_tensors(
    path: Path, signature: ModelSignature, *, columns: Sequence[str] = (), without: str = ""
) -> tuple[Tensors, dict[str, tuple[str, ...]]]:
    """The inputs, and outputs if the file has them, and the columns that each was made of.

    A column (or array) that is named like an input or output is that one. Else all columns together
    are the only input, in their order.

    Args:
        columns: Which columns of a table are the input; empty for all.
        without: A column that is no input, as the rows' times; empty for none.

    Raises:
        InvalidArgumentError: The file cannot be read, or does not fit the model.
        FailedPreconditionError: It is Parquet, and pyarrow is not installed.
    """
    if path.suffix in _NUMPY:
        return _from_numpy(path, signature, without), {}
    table = _table(path)
    table.pop(without, None)
    return _from_table(table, signature, columns)


def read_times(path: Path, column: str) -> Array:
    """The times of a file's rows, `[rows]`, in seconds since 1970, of one column or array.

    Numbers are such seconds; texts are ISO 8601, in UTC where they name no zone.

    Raises:
        InvalidArgumentError: There is no such column, or a value is no time.
        FailedPreconditionError: It is Parquet, and pyarrow is not installed.
    """
    table = _loaded(path) if path.suffix in _NUMPY else _table(path)
    if column not in table:
        raise InvalidArgumentError(f"{path} has no column {column!r} of times: {_names(table)}")
    values = table[column].reshape(-1)[:MAX_ROWS]
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]").astype(np.float64) / 1e6
    times = np.array([_time(value) for value in values.tolist()], dtype=np.float64)
    wrong = np.flatnonzero(~(np.abs(times) < _LATEST_S))
    if len(wrong):
        message = (
            f"{path}, row {wrong[0] + 1}: column {column!r} holds no time; "
            "write ISO 8601 (2026-11-29T16:00:00Z) or seconds since 1970"
        )
        raise InvalidArgumentError(message)
    return times


def _time(value: float | str) -> float:
    """Seconds since 1970; NaN for what is no time."""
    if not isinstance(value, str):
        return float(value)
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _loaded(path: Path) -> dict[str, Array]:
    """The arrays of a file of NumPy's; one without a name is called ``."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return {name: loaded[name] for name in loaded} if hasattr(loaded, "files") else {"": loaded}
    except (ValueError, OSError, EOFError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None


def _from_numpy(path: Path, signature: ModelSignature, without: str) -> Tensors:
    specs = (*signature.inputs, *signature.outputs)
    arrays = {
        name or signature.inputs[0].name: array
        for name, array in _loaded(path).items()
        if not without or name != without
    }
    unknown = ", ".join(sorted(arrays.keys() - {spec.name for spec in specs}))
    if unknown:
        raise InvalidArgumentError(f"the model has no input or output called {unknown}")
    return {name: array[:MAX_ROWS] for name, array in arrays.items()}


def _table(path: Path) -> Table:
    return _parquet(path) if path.suffix in {".parquet", ".pq"} else _csv(path)


def _csv(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                row
                for row, _ in zip(csv.reader(file, strict=True), range(MAX_ROWS + 1), strict=False)
            ]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    rows = [row for row in rows if row]
    if len(rows) < 2:  # noqa: PLR2004  # names, and a row
        raise InvalidArgumentError(f"{path} holds no rows under a line of names")
    names = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            message = f"{path}, row {number}: {len(row)} values under {len(names)} names"
            raise InvalidArgumentError(message)
    return {name: _cells([row[i] for row in rows[1:]]) for i, name in enumerate(names)}


def _cells(texts: Sequence[str]) -> Array:
    """Numbers if all are, empty ones missing; else texts."""
    try:
        return np.array([float(text) if text.strip() else math.nan for text in texts])
    except ValueError:
        return np.array(texts, dtype=np.object_)


def _parquet(path: Path) -> Table:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        message = "Parquet is read by pyarrow, which is not installed: `pip install pyarrow`"
        raise FailedPreconditionError(message) from None
    try:
        table = parquet.read_table(path).slice(0, MAX_ROWS)
    except (ValueError, OSError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from None
    return {name: _arrow_column(table.column(name)) for name in table.column_names}


def _arrow_column(column: Any) -> Array:  # noqa: ANN401  # pyarrow has no types
    values = column.to_pylist()
    if any(isinstance(value, str | bytes) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=np.object_)
    return np.array([_number(value) for value in values])


def _number(value: float | date | None) -> float:
    """A cell as a number: a moment as seconds since 1970, NaN for what is missing."""
    if isinstance(value, date):
        whole = value if isinstance(value, datetime) else datetime.combine(value, time())
        return (whole if whole.tzinfo else whole.replace(tzinfo=UTC)).timestamp()
    return math.nan if value is None else float(value)


def _from_table(
    table: Table, signature: ModelSignature, columns: Sequence[str]
) -> tuple[Tensors, dict[str, tuple[str, ...]]]:
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    unknown = [name for name in columns if name not in table]
    if unknown:
        raise InvalidArgumentError(f"the file has no column {unknown[0]!r}: {_names(table)}")
    named = {name: column for name, column in table.items() if name in specs and not columns}
    tensors = {name: _tensor([column], specs[name]) for name, column in named.items()}
    made_of: dict[str, tuple[str, ...]] = {name: (name,) for name in named}
    missing = [spec for spec in signature.inputs if spec.name not in tensors]
    if not missing:
        return tensors, made_of
    if len(missing) > 1 or len(signature.inputs) > 1:
        told = ", ".join(spec.name for spec in missing)
        raise InvalidArgumentError(f"the file has no column for input {told}: {_names(table)}")
    spec = missing[0]
    chosen = list(columns) or [name for name in table if name not in named]
    width = math.prod(spec.shape[1:] if signature.batched else spec.shape)
    if VARIABLE not in spec.shape[1:] and len(chosen) != width:
        message = (
            f"input '{spec.name}' has {width} values a row, the file {len(chosen)} columns "
            f"({_names(chosen)}); name the right ones with --columns"
        )
        raise InvalidArgumentError(message)
    tensors[spec.name] = _tensor([table[name] for name in chosen], spec)
    return tensors, made_of | {spec.name: tuple(chosen)}


def _tensor(columns: Sequence[Array], spec: TensorSpec) -> Array:
    """Columns beside each other, as the model takes them; what is missing stays NaN."""
    if spec.datatype is Datatype.BYTES:
        made = np.empty((len(columns[0]), len(columns)), dtype=np.object_)
        for i, column in enumerate(columns):
            made[:, i] = [value if isinstance(value, bytes) else str(value) for value in column]
        return made
    texts = [i for i, column in enumerate(columns) if column.dtype.kind == "O"]
    if texts:
        raise InvalidArgumentError(
            f"'{spec.name}' takes numbers, and column {texts[0] + 1} is text"
        )
    return np.stack(columns, axis=1)


def _names(names: "Sequence[str] | Table") -> str:
    shown = 8
    listed = list(names)
    return ", ".join(listed[:shown]) + (", …" if len(listed) > shown else "")
