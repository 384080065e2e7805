"""Conversion of table columns to tensors, with the reason for each row that fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from headrace.core import VARIABLE, Array, Datatype, ModelSignature, NullPolicy, Tensors, TensorSpec
from headrace.jobs.libraries import pa, pl
from headrace.jobs.messages import ColumnPlan

POLARS: Final[dict[Datatype, Any]] = {
    Datatype.BOOL: pl.Boolean,
    Datatype.UINT8: pl.UInt8,
    Datatype.UINT16: pl.UInt16,
    Datatype.UINT32: pl.UInt32,
    Datatype.UINT64: pl.UInt64,
    Datatype.INT8: pl.Int8,
    Datatype.INT16: pl.Int16,
    Datatype.INT32: pl.Int32,
    Datatype.INT64: pl.Int64,
    Datatype.FP16: pl.Float32,  # NumPy converts it to FP16, which Polars hardly supports
    Datatype.FP32: pl.Float32,
    Datatype.FP64: pl.Float64,
    Datatype.BYTES: pl.Binary,
}
PARSED: Final[dict[str, Any]] = {"f": pl.Float64, "i": pl.Int64, "u": pl.UInt64, "b": pl.Boolean}
"""Type that text is parsed to first, by NumPy kind; the same as for JSON, so digits agree."""


def row_shape(spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """Return the shape of one row, without a leading axis of size 1 where rows are not batched."""
    shape = spec.shape[1:] if batched else spec.shape
    if not batched and len(shape) > 1 and shape[0] in {1, VARIABLE}:
        return shape[1:]
    return shape


def width(shape: tuple[int, ...]) -> int | None:
    """Return the number of values of a shape; None if it varies."""
    if VARIABLE in shape:
        return None
    size = 1
    for dimension in shape:
        size *= dimension
    return size


def is_list(kind: Any) -> bool:  # noqa: ANN401  # pyarrow has no types
    """Return whether a column holds several values per row."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def innermost(kind: Any) -> Any:  # noqa: ANN401  # as above
    """Return the element type of a column's lists."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def convertible(kind: Any, datatype: Datatype) -> bool:  # noqa: ANN401  # as above
    """Return whether values keep their meaning; values out of range are reported row by row."""
    types = pa.types
    if datatype is Datatype.BYTES:
        return is_text(kind)
    if types.is_boolean(kind):
        return True
    if datatype is Datatype.BOOL:
        return False
    if types.is_integer(kind):
        return True
    is_float = bool(types.is_floating(kind) or types.is_decimal(kind))
    return is_float and datatype.dtype.kind == "f"


def is_text(kind: Any) -> bool:  # noqa: ANN401  # as above
    """Return whether a column holds text or bytes."""
    types = pa.types
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_string_view,
        types.is_binary_view,
        types.is_fixed_size_binary,
    )
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(check(kind) for check in checks)


_SHOWN: Final = 40


@dataclass(slots=True, kw_only=True)
class TensorWindow:
    """Rows as model inputs. Every tensor has all rows; those in `bad` have arbitrary values."""

    rows: int
    dense: Tensors = field(default_factory=dict)
    ragged: dict[str, list[Array]] = field(default_factory=dict)
    """Inputs whose rows differ in shape, one tensor per row."""
    bad: dict[int, str] = field(default_factory=dict)
    """Reason why a row cannot be scored, by its index."""


def feed(
    frame: pl.DataFrame,
    plan: ColumnPlan,
    signature: ModelSignature,
    *,
    broken: Mapping[int, str],
    nulls: NullPolicy,
) -> TensorWindow:
    """Return all model inputs for the rows of a frame."""
    window = TensorWindow(rows=frame.height, bad=dict(broken))
    for input_columns in plan.inputs:
        spec = signature.input(input_columns.input)
        assert spec is not None, "the plan was made for this signature"
        shape = row_shape(spec, batched=signature.batched)
        first = frame[input_columns.columns[0]]
        if len(input_columns.columns) == 1 and first.dtype.is_nested():
            _lists(first, spec, shape, window, nulls)
        elif spec.datatype is Datatype.BYTES:
            some = [frame[name] for name in input_columns.columns]
            array = np.empty((window.rows, len(some)), np.object_)
            for i, column in enumerate(some):
                for row in column.is_null().arg_true().to_list():
                    window.bad.setdefault(row, f"column '{column.name}' is null")
                array[:, i] = _bytes(column)
            window.dense[spec.name] = _shaped(array, spec, shape, window.rows)
        else:
            _scalars([frame[name] for name in input_columns.columns], spec, shape, window, nulls)
    return window


def _scalars(
    some: Sequence[pl.Series],
    spec: TensorSpec,
    shape: tuple[int, ...],
    window: TensorWindow,
    nulls: NullPolicy,
) -> None:
    """Add an input of one or more number columns; Polars builds rows faster than NumPy does."""
    dtype = POLARS[spec.datatype]
    may_be_nan = _may_be_nan(spec, nulls)
    columns = []
    for column in some:
        cast = column if column.dtype == dtype else column.cast(dtype, strict=False)
        if column.dtype == pl.Float64 and dtype == pl.Float32:
            _mark_overflows(column, cast, spec, window)
        if cast.null_count():
            if cast.null_count() > column.null_count():
                lost = cast.is_null() & column.is_not_null()
                for row in lost.arg_true().to_list():
                    text = str(column[row])[:_SHOWN]
                    reason = f"column '{column.name}': {text} does not fit {spec.datatype}"
                    window.bad.setdefault(row, reason)
            if not may_be_nan:
                for row in column.is_null().arg_true().to_list():
                    window.bad.setdefault(row, f"column '{column.name}' is null")
            cast = cast.fill_null(float("nan") if may_be_nan else _zero(spec.datatype))
        columns.append(cast)
    array = (
        columns[0].to_numpy() if len(columns) == 1 else pl.DataFrame(columns).to_numpy(order="c")
    )
    window.dense[spec.name] = _shaped(array, spec, shape, window.rows)


def _mark_overflows(
    column: pl.Series, cast: pl.Series, spec: TensorSpec, window: TensorWindow
) -> None:
    """Mark rows whose doubles are too large for floats; endpoints refuse these as well."""
    lost = cast.is_infinite() & column.is_finite()
    for row in lost.arg_true().to_list() if lost.any() else ():
        window.bad.setdefault(
            row, f"column '{column.name}': {column[row]:g} does not fit {spec.datatype}"
        )


def _lists(
    column: pl.Series,
    spec: TensorSpec,
    shape: tuple[int, ...],
    window: TensorWindow,
    nulls: NullPolicy,
) -> None:
    """Add an input from a column of lists, each one row's tensor in row-major order."""
    flat, lengths = _flat(column)
    for row in column.is_null().arg_true().to_list():
        window.bad.setdefault(row, f"column '{column.name}' is null")
    ends = np.cumsum(lengths)
    if spec.datatype is Datatype.BYTES:
        values = _bytes(flat)
        missing = flat.is_null()
    else:
        cast = flat.cast(POLARS[spec.datatype], strict=False)
        missing = cast.is_null()
        fill = _zero(spec.datatype)
        if _may_be_nan(spec, nulls):
            missing, fill = missing & flat.is_not_null(), float("nan")
        values = cast.fill_null(fill).to_numpy().astype(spec.datatype.dtype)
    for index in missing.arg_true().to_list():
        row = int(np.searchsorted(ends, index, side="right"))
        cause = f"column '{column.name}' holds a value that is no {spec.datatype}: "
        window.bad.setdefault(row, f"{cause}{str(flat[index])[:_SHOWN]}")
    size = width(shape)
    if size is None:
        _ragged(column.name, values, lengths, spec, shape, window)
        return
    wrong = np.flatnonzero(lengths != size)
    for row in wrong.tolist():
        reason = f"column '{column.name}' has {lengths[row]} values, and {size} are needed"
        window.bad.setdefault(row, reason)
    if len(wrong):
        starts = ends - lengths
        whole = np.zeros((window.rows, size), values.dtype)
        for row in np.flatnonzero(lengths == size).tolist():
            whole[row] = values[starts[row] : ends[row]]
        values = whole
    window.dense[spec.name] = _shaped(values.reshape(window.rows, size), spec, shape, window.rows)


def _ragged(  # noqa: PLR0917  # the last step of `_lists`
    name: str,
    values: Array,
    lengths: Array,
    spec: TensorSpec,
    shape: tuple[int, ...],
    window: TensorWindow,
) -> None:
    fixed_size = int(np.prod([size for size in shape if size != VARIABLE], dtype=np.int64))
    parts = []
    start = 0
    for row, length in enumerate(lengths.tolist()):
        if length % fixed_size or not length:
            window.bad.setdefault(
                row, f"column '{name}' has {length} values, no multiple of {fixed_size}"
            )
            parts.append(np.empty(0, values.dtype))
        else:
            sizes = [length // fixed_size if size == VARIABLE else size for size in shape]
            parts.append(values[start : start + length].reshape(sizes))
        start += length
    window.ragged[spec.name] = parts


def _flat(column: pl.Series) -> tuple[pl.Series, Array]:
    """Return all values of nested lists as one column, and the number of values of each row."""
    sizes: list[Array] = []
    flat = column
    while flat.dtype.is_nested():
        if isinstance(flat.dtype, pl.Array):
            flat = flat.arr.to_list()
        sizes.append(flat.list.len().fill_null(0).to_numpy().astype(np.int64))
        flat = flat.list.explode(empty_as_null=False, keep_nulls=False)
    lengths = sizes.pop()
    while sizes:
        lengths = _summed(lengths, sizes.pop())
    return flat, lengths


def _summed(lengths: Array, groups: Array) -> Array:
    """Return the sums of consecutive `lengths`, in groups of the sizes in `groups`."""
    totals = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.cumsum(groups)
    summed: Array = totals[ends] - totals[ends - groups]
    return summed


def _bytes(column: pl.Series) -> Array:
    values = column.cast(pl.Binary).to_list()
    array = np.empty(len(values), np.object_)
    array[:] = [b"" if value is None else value for value in values]
    return array


def _may_be_nan(spec: TensorSpec, nulls: NullPolicy) -> bool:
    return nulls is NullPolicy.NAN and spec.datatype.dtype.kind == "f"


def _zero(kind: Datatype) -> Any:  # noqa: ANN401  # a value of any datatype
    return False if kind is Datatype.BOOL else 0


def _shaped(array: Array, spec: TensorSpec, shape: Sequence[int], rows: int) -> Array:
    per_row = array.size // rows if rows else 0
    sizes = [per_row if size == VARIABLE else size for size in shape]
    shaped = array.reshape((rows, *sizes)) if rows else np.empty((0, *sizes), array.dtype)
    if shaped.dtype != spec.datatype.dtype:
        shaped = shaped.astype(spec.datatype.dtype)
    return np.ascontiguousarray(shaped) if spec.datatype is not Datatype.BYTES else shaped
